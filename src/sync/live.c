/*
 * live.c
 *		What targets have confirmed, known to everyone at once.
 *
 * Progress is saved about once a second (state.c); whoever looked at the tables
 * would see as pending what has been delivered, for that long.  So who delivers
 * puts what its target has confirmed into shared memory as well, after each
 * window, and who asks how far a sync is (stat_sync, pending_changes) reads it
 * there.  Delivery itself never does: nothing depends on it.
 *
 * One process writes a sync's figures at a time, the one that holds the sync's
 * lock.  They are totals, not what is to be added: the table's are the same or
 * a second older, so nothing is counted twice while they are being saved.
 *
 * Who takes a sync over may begin before what was confirmed, if its predecessor
 * could not save.  A target that keeps the position will tell, so what is here
 * stays true, and what had been counted is taken over.  One that takes messages
 * will get those again: the figures go with the process, and the table counts.
 *
 * A sync that was started anew has another generation.  If there are more syncs
 * than places here, the one that has been silent for longest loses its own.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/procarray.h"

#include "compat.h"
#include "sync/live.h"

#define PSYNC_LIVE_SYNCS	256

typedef struct PsyncLiveEntry
{
	Oid			dboid;			/* InvalidOid: free */
	pg_uuid_t	sync;
	uint64		used;			/* the larger the later */
	PsyncLive	live;
} PsyncLiveEntry;

typedef struct PsyncLiveTable
{
	uint64		clock;			/* last value of "used" */
	PsyncLiveEntry entries[PSYNC_LIVE_SYNCS];
} PsyncLiveTable;

static PsyncLiveTable *table = NULL;
static LWLock *table_lock = NULL;

Size
psync_live_size(void)
{
	return MAXALIGN(sizeof(PsyncLiveTable));
}

void
psync_live_attach(void *memory, LWLock *lock, bool found)
{
	table = memory;
	table_lock = lock;
	if (!found)
		memset(table, 0, sizeof(PsyncLiveTable));
}

/* ----------------------------------------------------------------- snapshots */

/*
 * If there is no room for all that it does not see, one that sees less: more
 * may seem to be pending than is, never less.
 */
void
psync_live_set_snapshot(PsyncLiveSnapshot *live, const PsyncSnapshot *snapshot)
{
	bool		fits = snapshot->nxip <= PSYNC_LIVE_XIDS;

	live->xmin = snapshot->xmin;
	live->xmax = fits ? snapshot->xmax : snapshot->xip[PSYNC_LIVE_XIDS];
	live->nxip = fits ? snapshot->nxip : PSYNC_LIVE_XIDS;
	memcpy(live->xip, snapshot->xip, live->nxip * sizeof(uint64));
}

/* In the current memory context. */
PsyncSnapshot *
psync_live_get_snapshot(const PsyncLiveSnapshot *live)
{
	PsyncSnapshot *snapshot = palloc(offsetof(PsyncSnapshot, xip) +
									 live->nxip * sizeof(uint64));

	snapshot->xmin = live->xmin;
	snapshot->xmax = live->xmax;
	snapshot->nxip = live->nxip;
	memcpy(snapshot->xip, live->xip, live->nxip * sizeof(uint64));
	return snapshot;
}

/* ------------------------------------------------------------------- entries */

/* The lock is held. */
static PsyncLiveEntry *
find_entry(const pg_uuid_t *sync)
{
	for (int i = 0; i < PSYNC_LIVE_SYNCS; i++)
	{
		PsyncLiveEntry *entry = &table->entries[i];

		if (entry->dboid == MyDatabaseId &&
			memcmp(&entry->sync, sync, UUID_LEN) == 0)
			return entry;
	}
	return NULL;
}

/* A free one, or that which was written to before all others. */
static PsyncLiveEntry *
make_entry(const pg_uuid_t *sync)
{
	PsyncLiveEntry *oldest = &table->entries[0];

	for (int i = 1; i < PSYNC_LIVE_SYNCS; i++)
	{
		if (table->entries[i].used < oldest->used)
			oldest = &table->entries[i];
	}
	oldest->dboid = MyDatabaseId;
	oldest->sync = *sync;
	return oldest;
}

/*
 * By whoever holds the sync's lock.
 */
void
psync_live_publish(const pg_uuid_t *sync, PsyncLive *live)
{
	PsyncLiveEntry *entry;

	if (table == NULL)
		return;
	live->pid = MyProcPid;
	LWLockAcquire(table_lock, LW_EXCLUSIVE);
	entry = find_entry(sync);
	if (entry == NULL)
		entry = make_entry(sync);
	entry->used = ++table->clock;
	entry->live = *live;
	LWLockRelease(table_lock);
}

/* The table counts from now on; unless somebody else has taken over. */
void
psync_live_forget(const pg_uuid_t *sync)
{
	PsyncLiveEntry *entry;

	if (table == NULL)
		return;
	LWLockAcquire(table_lock, LW_EXCLUSIVE);
	entry = find_entry(sync);
	if (entry != NULL && entry->live.pid == MyProcPid)
		memset(entry, 0, sizeof(PsyncLiveEntry));
	LWLockRelease(table_lock);
}

/*
 * To be asked after the table was read, so that what is here is not older.
 * False: the table counts.
 */
bool
psync_live_read(const pg_uuid_t *sync, int32 generation, PsyncLive *live)
{
	PsyncLiveEntry *entry;
	bool		alive;

	if (table == NULL)
		return false;
	LWLockAcquire(table_lock, LW_SHARED);
	entry = find_entry(sync);
	if (entry != NULL)
		*live = entry->live;
	LWLockRelease(table_lock);
	if (entry == NULL || live->generation != generation)
		return false;

	alive = BackendPidGetProc(live->pid) != NULL;
	live->standby &= alive;
	return alive || !live->messages;
}
