/*
 * lock.c
 *		Who delivers a sync: one process at a time.
 *
 * A session-level lock, named by the sync's id.  A session that wants to
 * deliver itself first takes a second lock, "interest", wakes the workers, and
 * then waits for the first.  A worker that holds the sync looks for interest
 * before each sleep and gives way; one that does not hold it does not take it
 * meanwhile.  Interest is taken before the wake-up is sent, so the worker
 * cannot look too early.
 *
 *		session							worker
 *		locks interest					delivers, holding the sync's lock
 *		wakes the workers
 *		waits for the sync's lock		wakes, sees interest, saves, unlocks
 *		has it, unlocks interest		sees the lock taken: leaves it alone
 *
 * Nobody waits for "interest" while holding the other lock, so the two cannot
 * deadlock.  Both are session locks: a delivery spans many transactions, and a
 * backend that dies gives them back (P8).  A row lock would end with its
 * transaction, a flag in shared memory would have to be cleaned up.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/uuid.h"

#include "base/lock.h"
#include "base/wakeup.h"
#include "compat.h"
#include "sync/sync.h"

/* Advisory locks of users have 1 or 2 here. */
#define PSYNC_LOCK_DELIVER		3
#define PSYNC_LOCK_INTEREST		4

StaticAssertDecl(sizeof(pg_uuid_t) == UUID_LEN, "an id is hashed as a whole");

/*
 * Advisory locks (base/lock.c), of kinds that SQL cannot name: they
 * show up in pg_locks, and 64 bits of the id's hash keep two syncs apart well
 * enough; a collision would only make them take turns.
 */
static void
lock_tag(LOCKTAG *tag, const pg_uuid_t *id, int kind)
{
	uint64		hash = hash_bytes_extended(id->data, UUID_LEN, 0);

	Assert(kind == PSYNC_LOCK_DELIVER || kind == PSYNC_LOCK_INTEREST);
	Assert(OidIsValid(MyDatabaseId));

	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, (uint32) (hash >> 32),
						 (uint32) hash, kind);
}

/*
 * Does some session want to deliver the sync by itself?  Never waits.  Asked
 * by whoever delivers, between windows.
 */
bool
psync_sync_lock_wanted(const pg_uuid_t *id)
{
	LOCKTAG		tag;

	lock_tag(&tag, id, PSYNC_LOCK_INTEREST);
	if (LockAcquire(&tag, ShareLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
		return true;
	LockRelease(&tag, ShareLock, true);
	return false;
}

/*
 * Become the one who delivers the sync.  With "wait", for a session: always
 * true, after however long the present one needs for its window; may be
 * cancelled.  Without, for a worker: false if someone delivers or wants to.
 *
 * Given back by psync_sync_unlock(), or at the end of the process.
 */
bool
psync_sync_lock(const pg_uuid_t *id, bool wait)
{
	LOCKTAG		tag;
	LOCKTAG		interest;

	lock_tag(&tag, id, PSYNC_LOCK_DELIVER);
	if (!wait)
		return !psync_sync_lock_wanted(id) &&
			psync_session_lock(&tag, false);

	lock_tag(&interest, id, PSYNC_LOCK_INTEREST);
	(void) LockAcquire(&interest, ExclusiveLock, true, false);
	PG_TRY();
	{
		psync_wakeup_yield();
		(void) psync_session_lock(&tag, true);
	}
	PG_FINALLY();
	{
		LockRelease(&interest, ExclusiveLock, true);
	}
	PG_END_TRY();
	return true;
}

/*
 * Also after an error, with or without a transaction.
 */
void
psync_sync_unlock(const pg_uuid_t *id)
{
	LOCKTAG		tag;

	lock_tag(&tag, id, PSYNC_LOCK_DELIVER);
	psync_session_unlock(&tag);
}
