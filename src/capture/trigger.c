/*
 * trigger.c
 *		The capture triggers.
 *
 * capture_change() fires AFTER each row, capture_truncate() BEFORE TRUNCATE
 * (a table's rows can be read only before).  Both are ENABLE ALWAYS, so that
 * changes applied under session_replication_role = replica are captured as
 * well; payment_sync.origin tells them from local ones.
 *
 * TRUNCATE of a captured partitioned table is one change.  Its partitions'
 * own triggers fire after that and stay silent, since by the log the table is
 * empty; but a partition that is truncated by itself has its rows logged as
 * deletes, because the target knows the partitioned table only.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "commands/trigger.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "capture/capture.h"
#include "compat.h"
#include "log/log.h"

PG_FUNCTION_INFO_V1(payment_sync_capture_change);
PG_FUNCTION_INFO_V1(payment_sync_capture_truncate);

/* Rows of up to this many columns need no allocation for the flags. */
#define PSYNC_FLAGS_ON_STACK	64

/*
 * The captured table whose truncation was logged last, if nothing that left a
 * row in it was logged since.  It counts within the transaction and
 * subtransaction; ids of the latter begin anew in each transaction.
 */
static Oid	truncated_root = InvalidOid;
static SubTransactionId truncated_subxact = InvalidSubTransactionId;
static uint64 truncated_transaction = 0;

/* A row of the table is being logged: it is not empty any more. */
static inline void
not_empty(const PsyncCaptureRel *crel)
{
	if (truncated_root == crel->rootid)
		truncated_root = InvalidOid;
}

/*
 * An insert: the new image is all.
 */
static void
log_insert(PsyncCaptureRel *crel, TupleTableSlot *slot)
{
	uint32		shape_id = psync_rel_cache_shape(crel);
	StringInfo	buf = psync_log_begin(PSYNC_INSERT, shape_id);

	psync_image_append(buf, crel, slot);
	psync_log_end(0);
	not_empty(crel);
}

/*
 * A delete: no image, and an old part with the key, and with all that is
 * captured unless old_values is none; what "changed" is to all columns of a
 * row that goes.
 */
static void
log_delete(PsyncCaptureRel *crel, TupleTableSlot *slot)
{
	uint32		shape_id = psync_rel_cache_shape(crel);
	bool		stack[PSYNC_FLAGS_ON_STACK];
	bool	   *include = stack;
	StringInfo	buf;

	if (crel->ncolumns > PSYNC_FLAGS_ON_STACK)
		include = palloc(crel->ncolumns * sizeof(bool));
	for (int i = 0; i < crel->ncolumns; i++)
		include[i] = crel->old_values != PSYNC_OLD_NONE || crel->columns[i].key;

	buf = psync_log_begin(PSYNC_DELETE, shape_id);
	psync_log_old();
	psync_old_part_append(buf, crel, slot, include);
	psync_log_end(0);
	if (include != stack)
		pfree(include);
}

/*
 * An update: the new image, and of the old row what old_values asks for, the
 * old key in any case if it changed.  Nothing if no captured column differs.
 * Returns whether the key changed.
 */
static bool
log_update(PsyncCaptureRel *crel, TupleTableSlot *oldslot,
		   TupleTableSlot *newslot)
{
	bool		stack[PSYNC_FLAGS_ON_STACK];
	bool	   *include = stack;
	bool		key_changed;

	if (crel->ncolumns > PSYNC_FLAGS_ON_STACK)
		include = palloc(crel->ncolumns * sizeof(bool));

	if (psync_image_changed(crel, oldslot, newslot, include, &key_changed))
	{
		uint32		shape_id = psync_rel_cache_shape(crel);
		StringInfo	buf;
		bool		any = false;

		/* include[] says what changed; make it say what to keep */
		for (int i = 0; i < crel->ncolumns; i++)
		{
			if (crel->old_values == PSYNC_OLD_ALL)
				include[i] = true;
			else if (crel->columns[i].key)
				include[i] = key_changed;
			else if (crel->old_values == PSYNC_OLD_NONE)
				include[i] = false;
			any |= include[i];
		}
		buf = psync_log_begin(PSYNC_UPDATE, shape_id);
		psync_image_append(buf, crel, newslot);
		not_empty(crel);
		if (any)
		{
			psync_log_old();
			psync_old_part_append(buf, crel, oldslot, include);
		}
		psync_log_end(key_changed ? PSYNC_CHANGE_KEY_CHANGED : 0);
	}
	if (include != stack)
		pfree(include);
	return key_changed;
}

/*
 * Does the new row have another key than the old one?
 */
static bool
key_changed(PsyncCaptureRel *crel, TupleTableSlot *oldslot, TupleTableSlot *newslot)
{
	bool	   *changed = palloc(Max(crel->ncolumns, 1) * sizeof(bool));
	bool		result;

	(void) psync_image_changed(crel, oldslot, newslot, changed, &result);
	pfree(changed);
	return result;
}

/*
 * An insert, or an update if there is an old row.  Returns whether a key was
 * taken away.
 */
static bool
capture_new_row(PsyncCaptureRel *crel, Relation rel, TupleTableSlot *oldslot,
				TupleTableSlot *newslot)
{
	TupleTableSlot *latest;
	bool		freed = false;

	switch (psync_row_fate(rel, newslot, &latest))
	{
		case PSYNC_ROW_CURRENT:
		case PSYNC_ROW_CHANGED:
			if (oldslot == NULL)
				log_insert(crel, latest);
			else
				freed = log_update(crel, oldslot, latest);
			break;
		case PSYNC_ROW_GONE:
			/* the new key's end was logged as such, the old key's was not */
			freed = oldslot != NULL && key_changed(crel, oldslot, newslot);
			if (freed)
				log_delete(crel, oldslot);
			break;
	}
	if (latest != NULL && latest != newslot)
		ExecDropSingleTupleTableSlot(latest);
	return freed;
}

/*
 * A key was taken away, by a command that is logged late: if it was given to a
 * row since, that row was logged before.
 */
static void
log_key_again(PsyncCaptureRel *crel, Relation rel, TupleTableSlot *oldslot)
{
	TupleTableSlot *row = psync_row_by_key(crel, rel, oldslot);

	if (row == NULL)
		return;
	log_insert(crel, row);
	ExecDropSingleTupleTableSlot(row);
}

/*
 * The trigger's data, if the function was called as the trigger it is meant
 * for.  "expected" is evaluated by the caller, after a look at whether there
 * is a trigger at all.
 */
static TriggerData *
check_trigger(FunctionCallInfo fcinfo, const char *name, bool expected)
{
	if (!CALLED_AS_TRIGGER(fcinfo) || !expected)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called as payment_sync.capture_table() sets it up",
						name)));
	return (TriggerData *) fcinfo->context;
}

/*
 * AFTER INSERT OR UPDATE OR DELETE FOR EACH ROW
 *
 * On the writer's path: what is done here is done for each row (P10).  The
 * result is ignored by the executor; SQL NULL is no error for an AFTER
 * trigger.
 */
Datum
payment_sync_capture_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger;
	PsyncCaptureRel *crel;
	bool		deleted;
	bool		late;
	bool		freed = true;

	trigger = check_trigger(fcinfo, "capture_change",
							CALLED_AS_TRIGGER(fcinfo) &&
							TRIGGER_FIRED_AFTER(((TriggerData *) fcinfo->context)->tg_event) &&
							TRIGGER_FIRED_FOR_ROW(((TriggerData *) fcinfo->context)->tg_event));
	crel = psync_rel_cache_get(trigger->tg_relation);
	if (!crel->captured)
		return PointerGetDatum(NULL);

	deleted = TRIGGER_FIRED_BY_DELETE(trigger->tg_event);
	late = psync_row_is_late(crel, TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ?
							 trigger->tg_newslot : trigger->tg_trigslot, deleted);
	if (deleted)
		log_delete(crel, trigger->tg_trigslot);
	else if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		freed = capture_new_row(crel, trigger->tg_relation, NULL,
								trigger->tg_trigslot);
	else
		freed = capture_new_row(crel, trigger->tg_relation,
								trigger->tg_trigslot, trigger->tg_newslot);
	if (late && freed)
		log_key_again(crel, trigger->tg_relation, trigger->tg_trigslot);
	return PointerGetDatum(NULL);
}

/* --------------------------------------------------------------- TRUNCATE */

/*
 * Does the log say that the captured table is empty?  It does for partitions
 * that are truncated together with their table, whatever other triggers of the
 * TRUNCATE do elsewhere in between.
 */
static bool
truncation_logged(Oid rootid)
{
	return truncated_root == rootid &&
		truncated_transaction == psync_capture_transaction &&
		truncated_subxact == GetCurrentSubTransactionId();
}

/*
 * The truncation of a captured table, as one change.  Its shape id is the
 * relation's oid, since there is no image.
 */
static void
log_truncate(PsyncCaptureRel *crel)
{
	(void) psync_log_begin(PSYNC_TRUNCATE, crel->rootid);
	psync_log_end(0);
	truncated_root = crel->rootid;
	truncated_transaction = psync_capture_transaction;
	truncated_subxact = GetCurrentSubTransactionId();
}

/*
 * A partition is truncated by itself: its rows go, its siblings' stay.  The
 * table is locked exclusively, so the latest snapshot sees all of them.
 *
 * This makes TRUNCATE of a partition as dear as DELETE; the alternative, to
 * tell the target which rows by a condition, would need partitions there as
 * well.
 */
static void
log_rows_as_deleted(PsyncCaptureRel *crel, Relation rel)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TableScanDesc scan = table_beginscan(rel, snapshot, 0, NULL);
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "payment_sync truncate",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);

	/* others changed these rows before we got the lock: order after them */
	psync_log_advance();
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		CHECK_FOR_INTERRUPTS();
		log_delete(crel, slot);
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	UnregisterSnapshot(snapshot);
}

/*
 * BEFORE TRUNCATE FOR EACH STATEMENT
 *
 * Before, because a partition's rows can be read only then.  If the truncation
 * fails afterwards, the transaction or savepoint does, and the change goes
 * with it (P1).
 */
Datum
payment_sync_capture_truncate(PG_FUNCTION_ARGS)
{
	TriggerData *trigger;
	PsyncCaptureRel *crel;
	Relation	rel;

	trigger = check_trigger(fcinfo, "capture_truncate",
							CALLED_AS_TRIGGER(fcinfo) &&
							TRIGGER_FIRED_BEFORE(((TriggerData *) fcinfo->context)->tg_event) &&
							TRIGGER_FIRED_BY_TRUNCATE(((TriggerData *) fcinfo->context)->tg_event));
	rel = trigger->tg_relation;
	crel = psync_rel_cache_get(rel);
	if (!crel->captured)
		return PointerGetDatum(NULL);

	if (crel->rootid == RelationGetRelid(rel))
		log_truncate(crel);
	else if (!truncation_logged(crel->rootid) &&
			 rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		log_rows_as_deleted(crel, rel);
	return PointerGetDatum(NULL);
}
