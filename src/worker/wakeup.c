/*
 * wakeup.c
 *		Messages to the launcher and to workers: a bit and a latch each.
 *
 * A message says "look", never what is to be seen: it may be repeated, may
 * come for nothing, and may be merged with others.  README.md lists them.
 *
 * Those about definitions are sent when the transaction that changed them has
 * committed and has sent its cache invalidations, so that the receiver sees
 * the change also in what it has cached; those about changes by the log's
 * commit hook, which runs a moment earlier.  Changes of prepared
 * transactions become visible in another session, at COMMIT PREPARED, see
 * hold.c.
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/resowner.h"
#include "utils/uuid.h"

#include "base/wakeup.h"
#include "log/log.h"
#include "worker/shmem.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(payment_sync_worker_pid);

/* What to send when the current transaction commits. */
static bool wakeup_config_at_commit = false;
static bool wakeup_scan_at_commit = false;

/* It has committed; the message waits for its invalidations to be sent. */
static bool wakeup_config_committed = false;

/*
 * This session has asked for a sync, and has not said yet that it has given
 * it back.  If it fails instead, the worker need not wait for a timer.
 */
static bool wakeup_config_at_abort = false;

/* ---------------------------------------------------------------- sending */

/*
 * The latch of the process with this number plus 1.  The process may be gone
 * and its PGPROC be another's by now; that one is woken for nothing.
 */
static void
psync_wakeup_proc(uint32 proc)
{
	Assert(proc <= ProcGlobal->allProcCount);

	if (proc != 0)
		SetLatch(&ProcGlobal->allProcs[proc - 1].procLatch);
}

/* Safe in any state: neither allocates nor raises nor waits. */
void
psync_wakeup_launcher(uint32 message)
{
	Assert(psync_shmem_ready());

	pg_atomic_fetch_or_u32(&psync_control->launcher_wake, message);
	psync_wakeup_proc(pg_atomic_read_u32(&psync_control->launcher_proc));
}

/*
 * Another database waits for the slot.  The caller holds the lock, and repeats
 * this for as long as it is so: whatever the worker waits for, it looks again.
 */
void
psync_wakeup_leave(PsyncSharedWorker *slot)
{
	pg_atomic_write_u32(&slot->asked, 1);
	pg_memory_barrier();
	psync_wakeup_proc(pg_atomic_read_u32(&slot->proc));
}

/*
 * A bit that is set already was sent by someone who has seen to the latch, and
 * has not been taken: the worker will look once more in any case.  So while a
 * worker is busy, all but the first of many commits only read.
 */
void
psync_wakeup_slot(PsyncSharedWorker *slot, uint32 message)
{
	uint32		before = pg_atomic_read_u32(&slot->wake);

	Assert(message != 0);

	if ((before & message) == message)
		return;

	before = pg_atomic_fetch_or_u32(&slot->wake, message);
	if ((before & message) != message)
		psync_wakeup_proc(pg_atomic_read_u32(&slot->proc));
}

/* Tell all workers of a database; false if it has none. */
bool
psync_wakeup_workers(Oid dboid, uint32 message)
{
	bool		told = false;

	/* What the message is about must be visible before the bit is read. */
	pg_memory_barrier();

	for (int i = 0; i < psync_max_workers; i++)
	{
		PsyncSharedWorker *slot = &psync_slots[i];

		if (pg_atomic_read_u32(&slot->dboid) != dboid)
			continue;

		psync_wakeup_slot(slot, message);

		/* Was it still there?  See shmem.h. */
		pg_memory_barrier();
		if (pg_atomic_read_u32(&slot->dboid) == dboid)
			told = true;
	}
	return told;
}

/*
 * Called after each commit that has logged changes.  Without a worker the
 * database's entry keeps the message; without an entry nobody needs to be
 * told: the launcher will look into every database that it does not know.
 */
void
psync_wakeup_changes(void)
{
	PsyncSharedDatabase *database;

	if (!psync_shmem_ready() ||
		psync_wakeup_workers(MyDatabaseId, PSYNC_WAKE_CHANGES))
		return;

	database = psync_database_find(MyDatabaseId);
	if (database == NULL ||
		(pg_atomic_read_u32(&database->pending) & PSYNC_WAKE_CHANGES) != 0)
		return;

	pg_atomic_fetch_or_u32(&database->pending, PSYNC_WAKE_CHANGES);
	psync_wakeup_launcher(PSYNC_LAUNCHER_WORK);
}

/*
 * A session wants a sync: who serves it should look, and give it back.
 */
static void
wakeup_yield(void)
{
	if (!psync_shmem_ready())
		return;
	wakeup_config_at_abort = true;
	(void) psync_wakeup_workers(MyDatabaseId, PSYNC_WAKE_YIELD);
}

/*
 * Definitions of this database have changed; perhaps the extension has just
 * come or gone.  In a database without a worker the launcher has one look.
 */
static void
psync_wakeup_send_config(void)
{
	PsyncSharedDatabase *database;

	Assert(OidIsValid(MyDatabaseId));

	if (psync_wakeup_workers(MyDatabaseId, PSYNC_WAKE_CONFIG))
		return;

	LWLockAcquire(psync_control_lock, LW_EXCLUSIVE);
	database = psync_database_enter(MyDatabaseId);
	if (database != NULL)
		pg_atomic_fetch_or_u32(&database->pending, PSYNC_WAKE_CONFIG);
	LWLockRelease(psync_control_lock);

	/* No entry left: the launcher will say so when it finds no place either. */
	psync_wakeup_launcher(database != NULL ? PSYNC_LAUNCHER_WORK :
						  PSYNC_LAUNCHER_SCAN);
}

/* -------------------------------------------------------------- at commit */

/*
 * Definitions are changed by this transaction: tell the workers when it
 * commits.
 */
static void
wakeup_config(void)
{
	if (!psync_shmem_ready())
		return;
	wakeup_config_at_commit = true;
	wakeup_config_at_abort = false;
}

/* Databases are being made, dropped or renamed by this transaction. */
void
psync_wakeup_scan(void)
{
	Assert(psync_shmem_ready());
	wakeup_scan_at_commit = true;
}

/*
 * Runs after the transaction's end is visible to others.  PREPARE sends
 * nothing: COMMIT PREPARED will.
 */
static void
psync_wakeup_xact_callback(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT &&
		event != XACT_EVENT_PREPARE)
		return;

	psync_hold_release();
	wakeup_config_committed = event == XACT_EVENT_COMMIT && wakeup_config_at_commit;
	if (event == XACT_EVENT_ABORT && wakeup_config_at_abort)
		psync_wakeup_send_config();
	if (event == XACT_EVENT_ABORT)
		wakeup_config_at_abort = false;
	if (event == XACT_EVENT_COMMIT && wakeup_scan_at_commit)
		psync_wakeup_launcher(PSYNC_LAUNCHER_SCAN);
	wakeup_config_at_commit = false;
	wakeup_scan_at_commit = false;
}

/*
 * A worker that looked before a server's invalidation is sent would find the
 * old options in its cache, and nobody would wake it again.
 */
static void
psync_wakeup_release_callback(ResourceReleasePhase phase, bool is_commit,
							  bool is_top_level, void *arg)
{
	if (!wakeup_config_committed || !is_top_level ||
		phase != RESOURCE_RELEASE_AFTER_LOCKS)
		return;
	wakeup_config_committed = false;
	Assert(is_commit);
	psync_wakeup_send_config();
}

/* With preload only. */
void
psync_wakeup_init(void)
{
	RegisterXactCallback(psync_wakeup_xact_callback, NULL);
	RegisterResourceReleaseCallback(psync_wakeup_release_callback, NULL);
	psync_log_commit_hook = psync_wakeup_changes;
	psync_wakeup_config_hook = wakeup_config;
	psync_wakeup_yield_hook = wakeup_yield;
}

/* ---------------------------------------------------------------- watching */

/*
 * worker_pid(sync uuid): the process that serves the sync at this moment; NULL
 * if no worker is at it.
 */
Datum
payment_sync_worker_pid(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = PG_GETARG_UUID_P(0);
	int			pid = 0;

	if (!psync_shmem_ready())
		PG_RETURN_NULL();

	LWLockAcquire(psync_control_lock, LW_SHARED);
	for (int i = 0; i < psync_max_workers; i++)
	{
		PsyncSharedWorker *slot = &psync_slots[i];

		if (pg_atomic_read_u32(&slot->dboid) == MyDatabaseId &&
			slot->serving && memcmp(&slot->sync, id, UUID_LEN) == 0)
			pid = slot->pid;
	}
	LWLockRelease(psync_control_lock);
	if (pid == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT32(pid);
}
