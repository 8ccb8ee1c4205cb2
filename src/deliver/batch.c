/*
 * batch.c
 *		Copying whole tables in chunks that ride on the incremental stream.
 *
 * Each chunk is a range of keys, read under the snapshot B that ends the
 * current window and sent in the same target transaction, after the window's
 * changes.  So the chunk is the source's state at B, and so is the rest of
 * what the target has: no snapshot outlives the reading of a chunk, and the
 * incremental stream never pauses.
 *
 * The last key copied is saved here after the target has committed the chunk.
 * If we crash in between, the chunk is sent again; it is upserted, so that
 * does no harm.
 *
 * Identity.  A batch that is asked for while one of the same table is under way
 * takes its row, and begins at the table's start.  The column "request" tells
 * the two apart: who has come along with a chunk of the former finds that it is
 * gone, and saves nothing.
 *
 * First copies.  Of a table whose first copy is still to come, the target need
 * not have a row that the source has; applying changes of it would only run
 * into foreign keys of rows that are not there yet.  Such changes are left
 * out: the copy, read later, brings what they have made.  Tables are copied
 * after those that their foreign keys refer to.  Deletes are applied, since the
 * copy would not bring them (of an update of the key, the old key's), and so is
 * everything once the copy has begun, or where the target was in step before.
 *
 * Rows are read with the rights of the sync's owner and row_security = off:
 * a policy that would hide rows raises an error instead (nothing is filtered
 * silently).
 *
 * Mirrors.  A batch that mirrors begins with a chunk of another kind: the keys
 * of all rows as of the window's end, by which the target removes what the
 * source lacks.  The target is not told in pieces, by ranges of keys: its order
 * need not be ours, and then a range would hold rows there that it does not
 * hold here.  Where tables refer to each other the referencing ones lose their
 * rows first.  From then on a mirror is a batch like any other.
 *
 * Circles.  Rows of a table that refers to itself, or of tables that refer to
 * each other, may come before the rows that they refer to.  Mostly they do not,
 * since keys grow and rows refer to earlier ones; so such a table is copied in
 * chunks as long as the target takes them.  If a foreign key refuses one, or a
 * change of the first copy's time, all tables of the circle are copied as a
 * whole: read under one snapshot and applied at once.  Until then, changes of
 * them are left out again, if it is the first copy.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"

#include "compat.h"
#include "deliver/delivery.h"

/* ------------------------------------------------------- the batch's state */

#define BATCH_COLUMNS \
	"SELECT relid, mirror, shape, cursor, chunks, request," \
	" mirror AND NOT swept, whole FROM payment_sync.batch"

/* The tables of sync $1 that refer to table $2 and that it refers to. */
#define CIRCLE \
	"WITH RECURSIVE edge AS (" \
	"SELECT c.conrelid AS child, c.confrelid AS parent FROM pg_constraint c" \
	" JOIN payment_sync.sync_table a ON a.sync = $1 AND a.relid = c.conrelid" \
	" JOIN payment_sync.sync_table b ON b.sync = $1 AND b.relid = c.confrelid" \
	" WHERE c.contype = 'f')," \
	" up AS (SELECT parent AS relid FROM edge WHERE child = $2" \
	" UNION SELECT e.parent FROM up JOIN edge e ON e.child = up.relid)," \
	" down AS (SELECT child AS relid FROM edge WHERE parent = $2" \
	" UNION SELECT e.child FROM down JOIN edge e ON e.parent = down.relid)," \
	" circle AS (SELECT relid FROM up INTERSECT SELECT relid FROM down)"

static const char circular_command[] =
	CIRCLE " SELECT FROM circle LIMIT 1";

static const char refused_command[] =
	CIRCLE
	" UPDATE payment_sync.batch SET whole = true, state = 'pending',"
	" shape = NULL, cursor = NULL, chunks = 0, rows = 0"
	" WHERE sync = $1 AND relid IN (SELECT relid FROM circle)"
	" AND state IN ('pending', 'running') AND NOT whole AND ($3 OR initial)";

static const char whole_command[] =
	BATCH_COLUMNS
	" WHERE sync = $1 AND state IN ('pending', 'running') AND whole"
	" AND (swept OR NOT mirror) ORDER BY relid";

/*
 * Of thousands of tables: no subquery refers to a row around it, and "IS TRUE"
 * keeps the planner from making a join of it, so that each is hashed and runs
 * once, not for each table that waits.
 */
static const char load_command[] =
	BATCH_COLUMNS
	" WHERE sync = $1 AND state IN ('pending', 'running')"
	" ORDER BY (mirror AND NOT swept) DESC,"
	" mirror AND NOT swept AND relid IN ("
	"  SELECT confrelid FROM pg_constraint"
	"  WHERE contype = 'f' AND confrelid <> conrelid"
	"  AND (conrelid IN (SELECT relid FROM payment_sync.batch"
	"   WHERE sync = $1 AND state = 'pending' AND mirror AND NOT swept)) IS TRUE),"
	" whole DESC, (state = 'running') DESC, requested,"
	" relid IN (SELECT conrelid FROM pg_constraint"
	"  WHERE contype = 'f' AND confrelid <> conrelid"
	"  AND (confrelid IN (SELECT relid FROM payment_sync.batch"
	"   WHERE sync = $1 AND state = 'pending')) IS TRUE),"
	" relid"
	" LIMIT 1";

static const char uncopied_command[] =
	"SELECT relid FROM payment_sync.batch"
	" WHERE sync = $1 AND initial AND state = 'pending'";

static const char save_command[] =
	"UPDATE payment_sync.batch SET state = CASE WHEN $3 THEN 'done' ELSE 'running' END,"
	" shape = $4, cursor = $5, chunks = chunks + 1,"
	" rows = rows + $6,"
	" started = COALESCE(started, clock_timestamp()),"
	" finished = CASE WHEN $3 THEN clock_timestamp() END"
	" WHERE sync = $1 AND request = $2"
	" AND state IN ('pending', 'running')";

static const char swept_command[] =
	"UPDATE payment_sync.batch SET swept = true,"
	" started = COALESCE(started, clock_timestamp())"
	" WHERE sync = $1 AND request = $2"
	" AND state IN ('pending', 'running')";

/*
 * What we know of the sync may be older than the request: it is forgotten only
 * if the table is nobody's to copy now.
 */
static const char forget_command[] =
	"DELETE FROM payment_sync.batch b"
	" WHERE sync = $1 AND request = $2 AND NOT EXISTS ("
	"SELECT FROM payment_sync.sync_table t"
	" JOIN payment_sync.captured c ON c.relid = t.relid"
	" JOIN pg_class r ON r.oid = t.relid"
	" WHERE t.sync = b.sync AND t.relid = b.relid)";

/* ---------------------------------------------------------------- loading */

/*
 * The table as it is now: its shape, recorded, and how to encode its rows.
 * False if it is gone, or no longer captured or part of the sync.
 */
static bool
prepare_table(PsyncDelivery *delivery, PsyncBatch *batch)
{
	Relation	rel = try_relation_open(batch->relid, AccessShareLock);
	PsyncCaptureRel *crel;
	uint32		shape_id;
	ListCell   *lc;

	if (rel == NULL)
		return false;
	foreach(lc, delivery->sync->tables)
	{
		if (((PsyncTable *) lfirst(lc))->relid == batch->relid)
			batch->table = lfirst(lc);
	}
	crel = psync_rel_cache_get(rel);
	if (batch->table == NULL || !crel->captured)
	{
		table_close(rel, AccessShareLock);
		return false;
	}
	batch->plain = rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE;
	batch->encoder = psync_capture_rel_for_query(rel, batch->context);

	/* recording a shape is an insertion, and those want a snapshot */
	PushActiveSnapshot(GetTransactionSnapshot());
	shape_id = psync_rel_cache_shape(crel);
	PopActiveSnapshot();
	CommandCounterIncrement();	/* it may just have been recorded */
	batch->shape = psync_delivery_shape(delivery, shape_id);
	table_close(rel, AccessShareLock);
	return true;
}

/*
 * Is the saved cursor's key made of the same columns as the table's now?  If
 * not the table is copied from its start: the old values could not be compared
 * with the new key.
 */
static bool
cursor_fits(PsyncDelivery *delivery, uint32 shape_id, const PsyncShape *now)
{
	const PsyncShape *then = psync_delivery_shape(delivery, shape_id);

	Assert(shape_id != 0);

	if (then->nkeys != now->nkeys)
		return false;
	for (int i = 0; i < now->nkeys; i++)
	{
		PsyncColumn *a = &then->columns[then->keys[i]];
		PsyncColumn *b = &now->columns[now->keys[i]];

		if (a->attnum != b->attnum || a->type != b->type ||
			then->keys[i] != now->keys[i])
			return false;
	}
	return true;
}

/*
 * The batch that a row of payment_sync.batch describes, in a context of its
 * own below the delivery's; the rest is filled in by prepare_table().
 */
static PsyncBatch *
batch_from_row(PsyncDelivery *delivery, HeapTuple tuple, TupleDesc desc)
{
	MemoryContext context = AllocSetContextCreate(delivery->context,
												  "payment_sync batch",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	PsyncBatch *batch = palloc0(sizeof(PsyncBatch));
	bool		isnull;
	Datum		value;

	batch->context = context;
	batch->owner = delivery->sync->owner;
	batch->relid = DatumGetObjectId(SPI_getbinval(tuple, desc, 1, &isnull));
	batch->mirror = DatumGetBool(SPI_getbinval(tuple, desc, 2, &isnull));
	value = SPI_getbinval(tuple, desc, 3, &isnull);
	batch->saved_shape = isnull ? 0 : (uint32) DatumGetInt32(value);
	initStringInfo(&batch->after);
	initStringInfo(&batch->upto);
	initStringInfo(&batch->rows);
	value = SPI_getbinval(tuple, desc, 4, &isnull);
	if (!isnull)
	{
		bytea	   *bytes = DatumGetByteaPP(value);

		appendBinaryStringInfo(&batch->after, VARDATA_ANY(bytes),
							   VARSIZE_ANY_EXHDR(bytes));
	}
	batch->first = DatumGetInt64(SPI_getbinval(tuple, desc, 5, &isnull)) == 0;
	batch->request = *DatumGetUUIDP(SPI_getbinval(tuple, desc, 6, &isnull));
	batch->sweep = DatumGetBool(SPI_getbinval(tuple, desc, 7, &isnull));
	batch->whole = DatumGetBool(SPI_getbinval(tuple, desc, 8, &isnull)) && !batch->sweep;
	MemoryContextSwitchTo(old);
	return batch;
}

/* All batches that the command finds, one behind the other; NULL if none. */
static PsyncBatch *
load_all(PsyncDelivery *delivery, const char *command)
{
	Oid			types[1] = {UUIDOID};
	Datum		values[1];
	PsyncBatch *first = NULL;
	PsyncBatch **last = &first;

	values[0] = UUIDPGetDatum(&delivery->sync->id);
	(void) psync_owner_execute(command, 1, types, values, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		*last = batch_from_row(delivery, SPI_tuptable->vals[i],
							   SPI_tuptable->tupdesc);
		last = &(*last)->next;
	}
	SPI_finish();
	return first;
}

/*
 * The batch that is under way, else the one asked for first, or several that
 * are to be made as a whole; NULL if none.
 */
static PsyncBatch *
load_next(PsyncDelivery *delivery)
{
	PsyncBatch *batch = load_all(delivery, load_command);

	if (batch == NULL || !batch->whole)
		return batch;
	psync_batch_free(batch);
	return load_all(delivery, whole_command);
}

static bool
is_circular(PsyncDelivery *delivery, Oid relid)
{
	Oid			types[2] = {UUIDOID, OIDOID};
	Datum		values[2];
	bool		circular;

	values[0] = UUIDPGetDatum(&delivery->sync->id);
	values[1] = ObjectIdGetDatum(relid);
	circular = psync_owner_execute(circular_command, 2, types, values, NULL) > 0;
	SPI_finish();
	return circular;
}

/* The batch is to be made as a whole, with all that it is in a circle with. */
static void
make_whole(const pg_uuid_t *id, Oid relid, bool later_ones)
{
	Oid			types[3] = {UUIDOID, OIDOID, BOOLOID};
	Datum		values[3];

	values[0] = UUIDPGetDatum(id);
	values[1] = ObjectIdGetDatum(relid);
	values[2] = BoolGetDatum(later_ones);
	(void) psync_owner_execute(refused_command, 3, types, values, NULL);
	SPI_finish();
}

/*
 * The batch's table is gone: so is what was asked for.  False if it is there
 * after all, and only we do not know it yet.
 */
static bool
forget(PsyncDelivery *delivery, const PsyncBatch *batch)
{
	Oid			types[2] = {UUIDOID, UUIDOID};
	Datum		values[2];
	uint64		forgotten;

	values[0] = UUIDPGetDatum(&delivery->sync->id);
	values[1] = UUIDPGetDatum(&batch->request);
	forgotten = psync_owner_execute(forget_command, 2, types, values, NULL);
	SPI_finish();
	return forgotten > 0;
}

/* Fill in what is not in the row; false as of prepare_table(). */
static bool
prepare(PsyncDelivery *delivery, PsyncBatch *batch)
{
	MemoryContext old = MemoryContextSwitchTo(batch->context);
	bool		known = prepare_table(delivery, batch);

	if (known)
	{
		if (batch->after.len > 0 &&
			!cursor_fits(delivery, batch->saved_shape, batch->shape))
			resetStringInfo(&batch->after);
		batch->circular = !batch->sweep && !batch->whole &&
			is_circular(delivery, batch->relid);
		psync_batch_build_queries(batch);
	}
	MemoryContextSwitchTo(old);
	return known;
}

void
psync_batch_load_uncopied(PsyncDelivery *delivery)
{
	Oid			types[1] = {UUIDOID};
	Datum		values[1];
	MemoryContext old;

	list_free(delivery->uncopied);
	delivery->uncopied = NIL;
	values[0] = UUIDPGetDatum(&delivery->sync->id);
	(void) psync_owner_execute(uncopied_command, 1, types, values, NULL);
	old = MemoryContextSwitchTo(delivery->context);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		Datum		relid = SPI_getbinval(SPI_tuptable->vals[i],
										  SPI_tuptable->tupdesc, 1, &isnull);

		Assert(!isnull);
		delivery->uncopied = lappend_oid(delivery->uncopied, DatumGetObjectId(relid));
	}
	MemoryContextSwitchTo(old);
	SPI_finish();
}

/*
 * Will a first copy, still to come, bring what this change has made?  It will
 * be read under a later snapshot than the one that ends this window.  The table
 * whose first chunk of rows has come, or comes with this window, has begun; one
 * that comes as a whole brings all of the window.  May leave a part of the change.
 */
bool
psync_batch_leaves_out(const PsyncDelivery *delivery, PsyncChange *change)
{
	Assert(change->table != NULL);
	if (delivery->uncopied == NIL ||
		!list_member_oid(delivery->uncopied, change->table->relid) ||
		(delivery->batch != NULL && !delivery->batch->sweep &&
		 !delivery->batch->whole &&
		 delivery->batch->relid == change->table->relid &&
		 (delivery->chunk != NULL || !delivery->batch->first)))
		return false;

	if (change->op == PSYNC_UPDATE && change->key_changed)
	{
		change->op = PSYNC_DELETE;
		change->key_changed = false;
		change->new_image = NULL;
		change->new_size = 0;
	}
	return change->op == PSYNC_INSERT || change->op == PSYNC_UPDATE;
}

/*
 * The batch that is under way or asked for next; NULL if none.  Ends the
 * transaction, since a shape that was just recorded must be visible to the
 * snapshot that ends the window.
 *
 * A batch that cannot be is forgotten, and the next one looked at, until there
 * is one or none is left.  One of a table that the sync has got since it was
 * read waits until it is read anew.
 */
PsyncBatch *
psync_batch_load(PsyncDelivery *delivery)
{
	PsyncBatch *batch = NULL;
	bool		forgotten = true;

	while (forgotten && (batch = load_next(delivery)) != NULL)
	{
		PsyncBatch *lost = batch;

		while (lost != NULL && prepare(delivery, lost))
			lost = lost->next;
		if (lost == NULL)
			break;
		/* the table was dropped or released since */
		forgotten = forget(delivery, lost);
		psync_batch_free(batch);
		batch = NULL;
	}
	if (!forgotten)
		psync_delivery_recheck(delivery);
	else if (batch == NULL)
		delivery->sync->batch_pending = false;
	psync_batch_load_uncopied(delivery);

	/* a shape just recorded must be visible to the window's snapshot */
	delivery->next();
	MemoryContextSwitchTo(delivery->window_context);
	return batch;
}

/*
 * The delivery's pointer to it is the caller's to clear.
 */
void
psync_batch_free(PsyncBatch *batch)
{
	while (batch != NULL)
	{
		PsyncBatch *next = batch->next;

		MemoryContextDelete(batch->context);
		batch = next;
	}
}

/* ----------------------------------------------------------------- saving */

/*
 * The target has no row any more that the source lacks: see what is next,
 * which may be another table's.
 */
static void
sweep_delivered(PsyncDelivery *delivery, PsyncBatch *batch)
{
	Oid			types[2] = {UUIDOID, UUIDOID};
	Datum		values[2];

	values[0] = UUIDPGetDatum(&delivery->sync->id);
	values[1] = UUIDPGetDatum(&batch->request);
	(void) psync_owner_execute(swept_command, 2, types, values, NULL);
	SPI_finish();
	psync_batch_free(batch);
	delivery->batch = NULL;
}

/* The chunk is not at the target, but the window is. */
void
psync_batch_refused(PsyncDelivery *delivery, PsyncBatch *batch)
{
	Assert(batch->circular);
	make_whole(&delivery->sync->id, batch->relid, true);
	psync_batch_free(batch);
	delivery->batch = NULL;
}

/* deliver.h has the contract. */
void
psync_batch_note_failure(const pg_uuid_t *id, int sqlerrcode)
{
	Oid			types[1] = {UUIDOID};
	Datum		values[1];
	Oid			relid = InvalidOid;

	if (sqlerrcode != ERRCODE_FOREIGN_KEY_VIOLATION)
		return;
	values[0] = UUIDPGetDatum(id);
	if (psync_owner_execute(load_command, 1, types, values, NULL) > 0)
	{
		bool		isnull;

		relid = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0],
											   SPI_tuptable->tupdesc, 1, &isnull));
	}
	SPI_finish();
	if (OidIsValid(relid))
		make_whole(id, relid, false);
}

/* Save that a chunk is at the target; false if the batch is no longer wanted. */
static bool
save_chunk(PsyncDelivery *delivery, const PsyncBatch *batch)
{
	Oid			types[6] = {UUIDOID, UUIDOID, BOOLOID, INT4OID, BYTEAOID, INT8OID};
	Datum		values[6];
	char		nulls[7] = "      ";
	bytea	   *cursor = palloc(VARHDRSZ + batch->upto.len);
	uint64		updated;

	Assert(!batch->full || batch->upto.len > 0);

	SET_VARSIZE(cursor, VARHDRSZ + batch->upto.len);
	memcpy(VARDATA(cursor), batch->upto.data, batch->upto.len);
	values[0] = UUIDPGetDatum(&delivery->sync->id);
	values[1] = UUIDPGetDatum(&batch->request);
	values[2] = BoolGetDatum(!batch->full);
	values[3] = Int32GetDatum((int32) batch->shape->id);
	values[4] = PointerGetDatum(cursor);
	nulls[4] = batch->full ? ' ' : 'n';
	values[5] = Int64GetDatum(batch->nrows);
	updated = psync_owner_execute(save_command, 6, types, values, nulls);
	SPI_finish();
	Assert(updated <= 1);
	return updated > 0;
}

/*
 * The chunk is at the target: save how far the batch has come, and forget
 * the batch if that was the last one.
 */
void
psync_batch_delivered(PsyncDelivery *delivery, PsyncBatch *batch)
{
	bool		wanted = true;

	Assert(!delivery->window_begun);
	if (batch->sweep)
	{
		sweep_delivered(delivery, batch);
		return;
	}
	for (PsyncBatch *b = batch; b != NULL; b = b->next)
	{
		wanted = save_chunk(delivery, b);
		delivery->unsaved.rows_read += b->nrows;
	}
	batch->first = false;
	resetStringInfo(&batch->after);
	appendBinaryStringInfo(&batch->after, batch->upto.data, batch->upto.len);

	/* cancelled, asked for anew, or done: see what is next */
	if (!wanted || !batch->full)
	{
		psync_batch_free(batch);
		delivery->batch = NULL;
	}
}
