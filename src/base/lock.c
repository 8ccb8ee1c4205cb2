/*
 * lock.c
 *		Locks of a process that what users have written cannot give back.
 *
 * They are session-level advisory locks, of kinds that SQL cannot name: other
 * session-level locks end with a transaction that fails, row locks with any.
 * But pg_advisory_unlock_all() gives back all that the session has, and user
 * code may call it in the middle of a delivery.  Another process could then
 * deliver the same sync beside this one (P4, P6).
 *
 * So before user code runs, each lock is taken by the transaction as well:
 * pinned.  That is a matter of this process's own count.  Whatever becomes of
 * the session's part, the lock stays held until the transaction ends; and
 * before it does, the session's part is taken anew.  There is no moment in
 * which somebody else could have it.
 *
 * A worker has no session-level advisory locks but these.  Those that user
 * code has taken there are given back with the transaction, since nobody else
 * would.  A user's session may have some of its own; there, a lock that nobody
 * waits for tells whether all were given back.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "base/lock.h"
#include "compat.h"

/* Kind of the lock that tells; others are where they are used. */
#define PSYNC_LOCK_SENTINEL		7

/* By this process, in exclusive mode; in TopMemoryContext. */
static LOCKTAG *held = NULL;
static int	nheld = 0;
static int	capacity = 0;

/* Has the present transaction pinned all of them? */
static bool pinned = false;

static void
sentinel_tag(LOCKTAG *tag)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, 0, (uint32) MyProcPid, PSYNC_LOCK_SENTINEL);
}

static bool
sentinel_is_held(void)
{
	LOCKTAG		tag;

	sentinel_tag(&tag);
	return psync_lock_held_by_me(&tag, ShareLock);
}

/*
 * Is the process one of ours?  It has no session whose user could know of a
 * lock, so all advisory locks of its session are what user code has left.  Other
 * libraries' background workers are sessions like any other.
 */
static bool
in_own_worker(void)
{
	return MyBgworkerEntry != NULL &&
		strcmp(MyBgworkerEntry->bgw_library_name, "payment_sync") == 0;
}

/* The session has its part of each lock again, if it was given back. */
static void
restore(void)
{
	Assert(pinned);

	if (in_own_worker())
		LockReleaseSession(USER_LOCKMETHOD);
	else if (sentinel_is_held())
		return;
	for (int i = 0; i < nheld; i++)
		(void) LockAcquire(&held[i], ExclusiveLock, true, true);
}

/* Runs before the transaction gives back its locks. */
static void
on_transaction_end(XactEvent event, void *arg)
{
	if (!pinned || (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT &&
					event != XACT_EVENT_PREPARE))
		return;
	restore();
	pinned = false;
}

/* Before anything is locked: afterwards, nothing may fail. */
static void
make_room(void)
{
	if (capacity == 0)
	{
		held = MemoryContextAlloc(TopMemoryContext, 8 * sizeof(LOCKTAG));
		capacity = 8;
		RegisterXactCallback(on_transaction_end, NULL);
	}
	else if (nheld == capacity)
	{
		held = repalloc(held, 2 * capacity * sizeof(LOCKTAG));
		capacity *= 2;
	}
}

/*
 * False if somebody else has it, and "wait" is false.  Given back by
 * psync_session_unlock(), or at the end of the process.
 */
bool
psync_session_lock(const LOCKTAG *tag, bool wait)
{
	make_room();
	if (LockAcquire(tag, ExclusiveLock, true, !wait) == LOCKACQUIRE_NOT_AVAIL)
		return false;
	held[nheld++] = *tag;

	/* this one is not pinned; pinning the others twice does no harm */
	if (pinned)
	{
		restore();
		pinned = false;
		psync_session_locks_pin();
	}
	return true;
}

/*
 * Also after an error, with or without a transaction.  If the transaction has
 * pinned it, others can have it when that has ended.
 */
void
psync_session_unlock(const LOCKTAG *tag)
{
	int			i = 0;

	while (i < nheld && memcmp(&held[i], tag, sizeof(LOCKTAG)) != 0)
		i++;
	Assert(i < nheld);
	if (pinned)
		restore();
	held[i] = held[--nheld];
	LockRelease(tag, ExclusiveLock, true);
	if (nheld == 0 && sentinel_is_held())
	{
		LOCKTAG		sentinel;

		sentinel_tag(&sentinel);
		LockRelease(&sentinel, ShareLock, true);
	}
}

/*
 * User code is to run in the present transaction.  Once per transaction this
 * costs something.
 */
void
psync_session_locks_pin(void)
{
	ResourceOwner owner = CurrentResourceOwner;
	LOCKTAG		sentinel;

	if (pinned || nheld == 0)
		return;
	if (!in_own_worker() && !sentinel_is_held())
	{
		sentinel_tag(&sentinel);
		(void) LockAcquire(&sentinel, ShareLock, true, true);
	}
	CurrentResourceOwner = TopTransactionResourceOwner;
	for (int i = 0; i < nheld; i++)
		(void) LockAcquire(&held[i], ExclusiveLock, false, true);
	CurrentResourceOwner = owner;
	pinned = true;
}
