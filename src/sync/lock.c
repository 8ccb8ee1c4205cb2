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
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/uuid.h"

#include "compat.h"
#include "sync/sync.h"
#include "worker/worker.h"

/* Advisory locks of users have 1 or 2 here. */
#define PSYNC_LOCK_DELIVER		3
#define PSYNC_LOCK_INTEREST		4

static void
lock_tag(LOCKTAG *tag, const pg_uuid_t *id, int kind)
{
	uint64		hash = hash_bytes_extended(id->data, UUID_LEN, 0);

	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, (uint32) (hash >> 32),
						 (uint32) hash, kind);
}

/* Does some session want to deliver the sync by itself? */
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

bool
psync_sync_lock(const pg_uuid_t *id, bool wait)
{
	LOCKTAG		tag;
	LOCKTAG		interest;

	lock_tag(&tag, id, PSYNC_LOCK_DELIVER);
	if (!wait)
		return !psync_sync_lock_wanted(id) &&
			LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL;

	lock_tag(&interest, id, PSYNC_LOCK_INTEREST);
	(void) LockAcquire(&interest, ExclusiveLock, true, false);
	PG_TRY();
	{
		psync_wakeup_yield();
		(void) LockAcquire(&tag, ExclusiveLock, true, false);
	}
	PG_FINALLY();
	{
		LockRelease(&interest, ExclusiveLock, true);
	}
	PG_END_TRY();
	return true;
}

void
psync_sync_unlock(const pg_uuid_t *id)
{
	LOCKTAG		tag;

	lock_tag(&tag, id, PSYNC_LOCK_DELIVER);
	LockRelease(&tag, ExclusiveLock, true);
}
