/*
 * latest.c
 *		Rows that have changed again before their change is logged.
 *
 * Row triggers fire at the end of their statement, one after another.  What
 * fires before ours, for this row or an earlier one, may change the same rows
 * by statements of its own; so may a function that the statement calls.  Such
 * a statement's own triggers fire at its end, hence its changes are logged
 * first, although they were made last.  Logged in that order, a target would
 * end with a row that the source had for a moment only (P4).
 *
 * The remedy, for the statement that comes late:
 *
 *	its new row was changed again		the row's latest version is logged in
 *										its place
 *	its new row was deleted again		nothing is left to log; except that the
 *										row's old key, if it had another, is gone
 *	it took a key away (DELETE, or		if there is a row with that key once
 *	UPDATE of the key)					more, that is logged after it
 *
 * Any version of a row says which transaction, and which command of it, has
 * made and replaced it; so the usual case costs a look at two fields of a
 * tuple at hand.  Rows of other access methods than heap do not say it.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_index.h"
#include "utils/combocid.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "capture/capture.h"
#include "compat.h"

/* The tuple as it is on its page at this moment, or NULL. */
static HeapTupleHeader
stored_tuple(TupleTableSlot *slot)
{
	HeapTuple	tuple;

	if (!TTS_IS_BUFFERTUPLE(slot))
		return NULL;
	tuple = ((BufferHeapTupleTableSlot *) slot)->base.tuple;
	return tuple != NULL ? tuple->t_data : NULL;
}

/*
 * Has this transaction replaced or deleted the row version?  What was rolled
 * back to a savepoint does not count.
 */
static bool
superseded(HeapTupleHeader tuple)
{
	if ((tuple->t_infomask & HEAP_XMAX_INVALID) != 0 ||
		HEAP_XMAX_IS_LOCKED_ONLY(tuple->t_infomask))
		return false;
	return TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetUpdateXid(tuple));
}

/*
 * Follow the row from the version in the slot to its latest one; capture.h has
 * the contract.  Each step is one fetch by ctid, and there are as many as this
 * transaction has made versions of the row since.
 *
 * Versions made by this transaction cannot be vacuumed or pruned away before
 * it ends, so the chain is unbroken.
 */
PsyncRowFate
psync_row_fate(Relation rel, TupleTableSlot *slot, TupleTableSlot **latest)
{
	HeapTupleHeader tuple = stored_tuple(slot);
	ItemPointerData tid = slot->tts_tid;

	Assert(latest != NULL);

	*latest = slot;
	if (tuple == NULL || !superseded(tuple))
		return PSYNC_ROW_CURRENT;

	*latest = table_slot_create(rel, NULL);
	do
	{
		ItemPointerData next = tuple->t_ctid;

		if (ItemPointerEquals(&next, &tid) ||
			ItemPointerIndicatesMovedPartitions(&next) ||
			!table_tuple_fetch_row_version(rel, &next, SnapshotAny, *latest))
		{
			ExecDropSingleTupleTableSlot(*latest);
			*latest = NULL;
			return PSYNC_ROW_GONE;
		}
		tid = next;
		tuple = stored_tuple(*latest);
		Assert(tuple != NULL);
	} while (superseded(tuple));
	return PSYNC_ROW_CHANGED;
}

/*
 * The command that made the row version, or that deleted it.  Zero if it
 * cannot be known.
 */
static CommandId
command_of(TupleTableSlot *slot, bool deleted)
{
	HeapTupleHeader tuple = stored_tuple(slot);

	if (tuple == NULL)
		return FirstCommandId;
	if ((tuple->t_infomask & HEAP_COMBOCID) == 0)
		return HeapTupleHeaderGetRawCommandId(tuple);
	if (HeapTupleHeaderXminFrozen(tuple))
		return FirstCommandId;	/* COPY FREEZE */
	return deleted ? HeapTupleHeaderGetCmax(tuple) : HeapTupleHeaderGetCmin(tuple);
}

/*
 * Is the slot's change older than one of the relation that was logged already?
 * Notes it if not.  Commands are numbered in the order in which they began.
 */
bool
psync_row_is_late(PsyncCaptureRel *crel, TupleTableSlot *slot, bool deleted)
{
	CommandId	command = command_of(slot, deleted);

	if (crel->transaction != psync_capture_transaction)
	{
		crel->transaction = psync_capture_transaction;
		crel->command_last = command;
		return false;
	}
	if (command < crel->command_last)
		return true;
	crel->command_last = command;
	return false;
}

/* --------------------------------------------------------- a row by its key */

/*
 * Fill in the scan keys for the key's values in "slot", if that is what the
 * index is on.
 */
static bool
use_index(PsyncCaptureRel *crel, Relation index, TupleTableSlot *slot,
		  ScanKeyData *keys)
{
	Form_pg_index form = index->rd_index;
	int			found = 0;

	if (!form->indisunique || !form->indimmediate || !form->indisvalid ||
		form->indnkeyatts != crel->shape->nkeys ||
		!heap_attisnull(index->rd_indextuple, Anum_pg_index_indpred, NULL))
		return false;
	for (int i = 0; i < crel->ncolumns; i++)
	{
		AttrNumber	attnum = crel->columns[i].attnum;

		for (int k = 0; k < form->indnkeyatts && crel->columns[i].key; k++)
		{
			Oid			type = index->rd_opcintype[k];
			Oid			equal;

			if (form->indkey.values[k] != attnum)
				continue;
			equal = get_opfamily_member(index->rd_opfamily[k], type, type,
										BTEqualStrategyNumber);
			if (!OidIsValid(equal))
				return false;
			Assert(!slot->tts_isnull[attnum - 1]);
			ScanKeyEntryInitialize(&keys[found++], 0, attnum, BTEqualStrategyNumber,
								   InvalidOid, index->rd_indcollation[k],
								   get_opcode(equal), slot->tts_values[attnum - 1]);
		}
	}
	return found == form->indnkeyatts;
}

/*
 * Oid of an index that finds rows by the key, with its scan keys filled in
 * from the slot; InvalidOid if there is none any more.  The key's own index is
 * the usual find; any other with the same columns and rules serves as well.
 */
static Oid
find_index(PsyncCaptureRel *crel, Relation rel, TupleTableSlot *slot,
		   ScanKeyData *keys)
{
	List	   *indexes = RelationGetIndexList(rel);
	ListCell   *lc;
	Oid			result = InvalidOid;

	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);

		if (!OidIsValid(result) && use_index(crel, index, slot, keys))
			result = lfirst_oid(lc);
		index_close(index, AccessShareLock);
	}
	return result;
}

/*
 * The present row with the slot's key; capture.h has the contract.
 * SnapshotSelf sees what this transaction has done up to now, and nothing of
 * others that are still running.
 */
TupleTableSlot *
psync_row_by_key(PsyncCaptureRel *crel, Relation rel, TupleTableSlot *slot)
{
	ScanKeyData keys[INDEX_MAX_KEYS];
	Oid			index;
	SysScanDesc scan;
	HeapTuple	tuple;
	TupleTableSlot *result = NULL;

	slot_getsomeattrs(slot, crel->attnum_max);
	index = find_index(crel, rel, slot, keys);
	if (!OidIsValid(index))
		return NULL;			/* being taken away in this transaction */

	Assert(crel->shape->nkeys > 0 && crel->shape->nkeys <= INDEX_MAX_KEYS);
	scan = systable_beginscan(rel, index, true, SnapshotSelf,
							  crel->shape->nkeys, keys);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		result = MakeSingleTupleTableSlot(RelationGetDescr(rel), &TTSOpsHeapTuple);
		ExecStoreHeapTuple(heap_copytuple(tuple), result, true);
	}
	systable_endscan(scan);
	return result;
}
