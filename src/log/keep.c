/*
 * keep.c
 *		Positions that are chosen, but not committed yet.
 *
 * Rotation reads the syncs' positions from a table, where one that was chosen
 * by an open transaction is not to be seen.  So whoever chooses one says so by
 * locks, which end with its transaction, whatever becomes of that; a prepared
 * one keeps them.
 *
 *		gate	shared while a position is chosen, exclusive while rotation
 *				judges and empties tables; held for moments
 *		any		shared from then on: somebody has chosen a position
 *		xid		shared, named by the first transaction id that this position
 *				may not see: all before are done with
 *
 * Hence a transaction that creates a sync and is left open keeps the log from
 * its snapshot on, which its sync will need, and nothing before.  Rotation
 * looks at "any" alone as long as nobody holds it: to list all locks of the
 * server is dear.
 *
 * A chooser waits for the gate only while a table is being emptied; rotation
 * never waits.  Locks are listed before the positions in the table are read, so
 * one that is committed meanwhile is seen there.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"

#include "compat.h"
#include "log/log.h"
#include "log/log_internal.h"

/*
 * Advisory locks of these kinds.  Users have 1 and 2; sync/lock.c has 3 and 4,
 * reconcile/ has 5 and 6, base/lock.c has 7.  The view log_holders knows the
 * last one.
 */
#define PSYNC_LOCK_GATE			8
#define PSYNC_LOCK_KEEP_ANY		9
#define PSYNC_LOCK_KEEP_XID		10

static void
set_tag(LOCKTAG *tag, int kind, uint64 xid)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, (uint32) (xid >> 32), (uint32) xid, kind);
}

/*
 * log.h has the contract.
 */
void
psync_log_choose(void)
{
	LOCKTAG		gate;

	set_tag(&gate, PSYNC_LOCK_GATE, 0);
	(void) LockAcquire(&gate, ShareLock, false, false);
}

/*
 * Likewise.
 */
void
psync_log_keep(uint64 xmin)
{
	LOCKTAG		tag;

	set_tag(&tag, PSYNC_LOCK_KEEP_ANY, 0);
	(void) LockAcquire(&tag, ShareLock, false, false);
	set_tag(&tag, PSYNC_LOCK_KEEP_XID, xmin);
	(void) LockAcquire(&tag, ShareLock, false, false);
	set_tag(&tag, PSYNC_LOCK_GATE, 0);
	(void) LockRelease(&tag, ShareLock, false);
}

/*
 * For rotation: no position is chosen from here to the end of the transaction.
 * False if one is being chosen now.
 */
bool
psync_keep_close_gate(void)
{
	LOCKTAG		gate;

	set_tag(&gate, PSYNC_LOCK_GATE, 0);
	return LockAcquire(&gate, ExclusiveLock, false, true) != LOCKACQUIRE_NOT_AVAIL;
}

/* A position that sees all ids before this one, and no other. */
static PsyncSnapshot *
position_from(uint64 xid)
{
	PsyncSnapshot *position = palloc(offsetof(PsyncSnapshot, xip));

	position->xmin = position->xmax = Max(xid, 1);
	position->nxip = 0;
	return position;
}

/*
 * The positions that were chosen and are not committed, in the current memory
 * context.  The caller has closed the gate.
 */
List *
psync_keep_positions(void)
{
	LOCKTAG		any;
	int			holders;
	LockData   *locks;
	List	   *result = NIL;

	set_tag(&any, PSYNC_LOCK_KEEP_ANY, 0);
	(void) GetLockConflicts(&any, ExclusiveLock, &holders);
	if (holders == 0)
		return NIL;

	locks = GetLockStatusData();
	for (int i = 0; i < locks->nelements; i++)
	{
		LOCKTAG    *tag = &locks->locks[i].locktag;

		if (tag->locktag_type == LOCKTAG_ADVISORY &&
			tag->locktag_field1 == MyDatabaseId &&
			tag->locktag_field4 == PSYNC_LOCK_KEEP_XID)
			result = lappend(result,
							 position_from((uint64) tag->locktag_field2 << 32 |
										   tag->locktag_field3));
	}
	return result;
}
