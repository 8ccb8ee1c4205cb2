/*
 * crash.c
 *		Which sync was being served when a worker died.
 *
 * A target that makes its worker crash makes the whole server start over, and
 * the next worker would serve the same sync at once.  So a worker notes in a
 * file whose turn it is, and takes that back when the turn is over; the note of
 * one that died in between stays.  The next to take that sync finds the note:
 * the turn has failed, with back-off like others, and after
 * payment_sync.max_crashes in a row the sync is disabled, so that the shop stays
 * up.  Progress that was saved ends the row; after a crash it is saved at once.
 *
 * Why a file.  Shared memory starts empty after a crash, and a row in a table
 * for each turn would cost a flush.  Writing to a file that nobody flushes
 * costs next to nothing, and outlives what it is for: the death of a process,
 * not of the machine.  It lies in pg_stat_tmp, which base backups leave out.
 *
 * Whose fault.  When one process crashes the postmaster ends all others by
 * SIGQUIT; those take their notes back on the way out.  One that was told to
 * end by SIGTERM does so as well.  If the postmaster itself was killed, all
 * died together and no sync is to blame: the notes count only if the
 * postmaster has written that it saw its children end.
 *
 * The file: the notes on dead workers, what the postmaster has seen, then a
 * note for each slot.  The first part is also in shared memory, protected by
 * psync_control_lock.
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/pmsignal.h"

#include "libpq/pqsignal.h"
#include "worker/serve.h"

#define PSYNC_CRASH_FILE	PG_STAT_TMP_DIR "/payment_sync.turns"
#define PSYNC_CRASH_MAGIC	0x50535931

/* The beginning of the file. */
typedef struct PsyncCrashHead
{
	uint32		magic;
	uint32		seen;			/* the postmaster saw its children end */
	PsyncCrashNote dead[PSYNC_CRASH_NOTES];
} PsyncCrashHead;

#define PSYNC_CRASH_SEEN_AT		((off_t) offsetof(PsyncCrashHead, seen))
#define PSYNC_CRASH_SLOT_AT(n) \
	((off_t) (sizeof(PsyncCrashHead) + (n) * sizeof(PsyncCrashNote)))

static int	crash_file = -1;	/* -1: not open, and nothing is noted */
static int	my_slot_number = -1;
static PsyncCrashNote my_note;	/* what the file has for us */
static volatile sig_atomic_t told_to_end = false;

/* ------------------------------------------------------------------ the file */

/*
 * What cannot be written is not noted: that costs the back-off after a crash,
 * and must cost nothing else.  Safe in a signal handler.
 */
static void
psync_crash_write(const void *data, size_t size, off_t at)
{
	ssize_t		written;

	if (crash_file < 0)
		return;
	written = pwrite(crash_file, data, size, at);
	(void) written;
}

static void
psync_crash_open(void)
{
	crash_file = BasicOpenFile(PSYNC_CRASH_FILE, O_RDWR | O_CREAT | PG_BINARY);
	if (crash_file < 0)
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", PSYNC_CRASH_FILE),
				 errdetail("Nothing will be known of a worker that crashes.")));
}

/* -------------------------------------------------------------- dead workers */

/* The note on this sync, or NULL; the caller holds the lock, or is alone. */
static PsyncCrashNote *
psync_crash_find(Oid dboid, const pg_uuid_t *sync)
{
	for (int i = 0; i < PSYNC_CRASH_NOTES; i++)
	{
		PsyncCrashNote *note = &psync_control->dead[i];

		if (note->dboid == dboid && memcmp(&note->sync, sync, UUID_LEN) == 0)
			return note;
	}
	return NULL;
}

/*
 * One more crash.  If there are so many different syncs that the notes are
 * full, the oldest is overwritten.
 */
static void
psync_crash_add(const PsyncCrashNote *turn)
{
	static int	next = 0;
	PsyncCrashNote *note = psync_crash_find(turn->dboid, &turn->sync);

	for (int i = 0; note == NULL && i < PSYNC_CRASH_NOTES; i++)
	{
		if (!OidIsValid(psync_control->dead[i].dboid))
			note = &psync_control->dead[i];
	}
	if (note == NULL)
		note = &psync_control->dead[next++ % PSYNC_CRASH_NOTES];
	if (note->dboid != turn->dboid ||
		memcmp(&note->sync, &turn->sync, UUID_LEN) != 0)
	{
		note->dboid = turn->dboid;
		note->sync = turn->sync;
		note->crashes = 0;
	}
	note->crashes++;
	note->recorded = 0;
}

/* The caller holds the lock. */
static void
psync_crash_write_dead(void)
{
	psync_crash_write(psync_control->dead, sizeof(psync_control->dead),
					  offsetof(PsyncCrashHead, dead));
}

/* --------------------------------------------------------- in the postmaster */

/* All children have ended, and we have not: one of them is to blame. */
static void
psync_crash_seen(int code, Datum arg)
{
	uint32		seen = 1;

	psync_crash_write(&seen, sizeof(seen), PSYNC_CRASH_SEEN_AT);
}

/* What the last generation of processes has left. */
static void
psync_crash_read(void)
{
	PsyncCrashHead head;
	PsyncCrashNote note;

	if (pread(crash_file, &head, sizeof(head), 0) != sizeof(head) ||
		head.magic != PSYNC_CRASH_MAGIC)
		return;
	memcpy(psync_control->dead, head.dead, sizeof(head.dead));
	if (head.seen == 0)
		return;
	for (int n = 0;
		 pread(crash_file, &note, sizeof(note), PSYNC_CRASH_SLOT_AT(n)) == sizeof(note);
		 n++)
	{
		if (OidIsValid(note.dboid))
			psync_crash_add(&note);
	}
}

/*
 * When shared memory is made: at the start, and again after a crash.  In the
 * postmaster only; a single-user server has no workers.
 */
void
psync_crash_startup(void)
{
	PsyncCrashHead head = {.magic = PSYNC_CRASH_MAGIC};

	if (!IsPostmasterEnvironment || IsUnderPostmaster || IsBinaryUpgrade)
		return;
	if (crash_file < 0)
		psync_crash_open();
	if (crash_file < 0)
		return;
	psync_crash_read();
	memcpy(head.dead, psync_control->dead, sizeof(head.dead));
	if (ftruncate(crash_file, 0) == 0)
		psync_crash_write(&head, sizeof(head), 0);
	on_shmem_exit(psync_crash_seen, (Datum) 0);
}

/* --------------------------------------------------------------- in a worker */

/* Safe in a signal handler. */
static void
psync_crash_take_back(void)
{
	my_note.dboid = InvalidOid;
	if (my_slot_number >= 0)
		psync_crash_write(&my_note, sizeof(my_note), PSYNC_CRASH_SLOT_AT(my_slot_number));
}

/* Another process has crashed: we have not. */
static void
psync_crash_quickdie(SIGNAL_ARGS)
{
	psync_crash_take_back();
	SignalHandlerForCrashExit(postgres_signal_arg);
}

/* Told to end while a sync is served: that is not the sync's doing. */
void
psync_crash_told_to_end(void)
{
	told_to_end = true;
}

/* Once in a worker's life. */
void
psync_crash_attach(int slot)
{
	Assert(slot >= 0 && slot < psync_max_workers);

	if (crash_file < 0)
		psync_crash_open();
	my_slot_number = slot;
	psync_crash_take_back();
	pqsignal(SIGQUIT, psync_crash_quickdie);
}

/*
 * The sync that is served from now on; NULL: none.
 */
void
psync_crash_serving(const pg_uuid_t *sync)
{
	if (sync == NULL)
	{
		if (OidIsValid(my_note.dboid))
			psync_crash_take_back();
		return;
	}
	my_note.dboid = MyDatabaseId;
	my_note.sync = *sync;
	psync_crash_write(&my_note, sizeof(my_note), PSYNC_CRASH_SLOT_AT(my_slot_number));
}

/*
 * The process ends, by itself and not by a signal that nobody can catch.  If
 * that was in a turn (FATAL, raised by what the sync's target or types
 * brought), it is a crash to the sync all the same.  The caller holds the lock.
 */
void
psync_crash_exit(void)
{
	if (!OidIsValid(my_note.dboid))
		return;
	if (!told_to_end && PostmasterIsAlive())
	{
		psync_crash_add(&my_note);
		psync_crash_write_dead();
	}
	psync_crash_take_back();
}

/*
 * How many workers in a row have died while they served this sync of ours?
 * Has the last of them been recorded as a failure?
 */
int
psync_crash_count(const pg_uuid_t *sync, bool *recorded)
{
	PsyncCrashNote *note;
	int			crashes = 0;

	LWLockAcquire(psync_control_lock, LW_SHARED);
	note = psync_crash_find(MyDatabaseId, sync);
	*recorded = note == NULL || note->recorded != 0;
	if (note != NULL)
		crashes = note->crashes;
	LWLockRelease(psync_control_lock);
	return crashes;
}

/* It is in the table now; or the row of crashes has ended. */
void
psync_crash_settle(const pg_uuid_t *sync, bool over)
{
	PsyncCrashNote *note;

	LWLockAcquire(psync_control_lock, LW_EXCLUSIVE);
	note = psync_crash_find(MyDatabaseId, sync);
	if (note != NULL)
	{
		note->recorded = 1;
		if (over)
			note->dboid = InvalidOid;
		psync_crash_write_dead();
	}
	LWLockRelease(psync_control_lock);
}
