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
 * Order of keys.  A chunk's bounds only matter at the target in mirror mode,
 * where rows between them that the source lacks are deleted.  Then keys of
 * collatable types are compared in "C" order on both sides, since the servers'
 * collations may differ; otherwise in the column's own order, for the index.
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
#include "port/pg_bswap.h"
#include "tcop/dest.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"

#include "compat.h"
#include "deliver/delivery.h"

/* ------------------------------------------------------- the batch's state */

static const char load_command[] =
	"SELECT relid, mirror, shape, cursor, chunks, request FROM payment_sync.batch b"
	" WHERE sync = $1 AND state IN ('pending', 'running')"
	" ORDER BY (state = 'running') DESC, requested,"
	" EXISTS (SELECT FROM pg_constraint c JOIN payment_sync.batch p"
	"  ON p.sync = b.sync AND p.relid = c.confrelid AND p.state = 'pending'"
	"  WHERE c.contype = 'f' AND c.conrelid = b.relid AND c.confrelid <> b.relid),"
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

/* ------------------------------------------------------------- the queries */

/*
 * Append the key's columns, or as many parameters, separated by commas: for
 * ORDER BY and for both sides of the comparison, so that all three agree on
 * the order.
 */
static void
append_key_list(StringInfo buf, const PsyncBatch *batch, bool params)
{
	const PsyncShape *shape = batch->shape;

	Assert(batch->shape->nkeys > 0);

	for (int i = 0; i < shape->nkeys; i++)
	{
		const PsyncColumn *column = &shape->columns[shape->keys[i]];

		appendStringInfoString(buf, i > 0 ? ", " : "");
		if (params)
			appendStringInfo(buf, "$%d", i + 1);
		else
			appendStringInfoString(buf, quote_identifier(column->current_name));
		if (batch->mirror && type_is_collatable(column->type))
			appendStringInfoString(buf, " COLLATE pg_catalog.\"C\"");
	}
}

/*
 * SELECT captured columns of the next rows in key order.  The row comparison
 * uses the types' default operators, found by the pinned search_path.
 */
static char *
build_query(const PsyncBatch *batch, bool bounded)
{
	StringInfoData buf;

	Assert(batch->shape->ncolumns > 0 && batch->shape->nkeys > 0);

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	for (int i = 0; i < batch->shape->ncolumns; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "",
						 quote_identifier(batch->shape->columns[i].current_name));
	appendStringInfo(&buf, " FROM %s%s", batch->plain ? "ONLY " : "",
					 quote_qualified_identifier(batch->table->source_schema,
												batch->table->source_name));
	if (bounded)
	{
		appendStringInfoString(&buf, " WHERE (");
		append_key_list(&buf, batch, false);
		appendStringInfoString(&buf, ") > (");
		append_key_list(&buf, batch, true);
		appendStringInfoString(&buf, ")");
	}
	appendStringInfoString(&buf, " ORDER BY ");
	append_key_list(&buf, batch, false);
	appendStringInfo(&buf, " LIMIT %d", PSYNC_CHUNK_ROWS_MAX);
	return buf.data;
}

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
batch_from_row(PsyncDelivery *delivery, HeapTuple tuple, TupleDesc desc,
			   uint32 *shape_id)
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
	*shape_id = isnull ? 0 : (uint32) DatumGetInt32(value);
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
	MemoryContextSwitchTo(old);
	return batch;
}

/*
 * The batch that is under way, else the one asked for first; NULL if none.
 */
static PsyncBatch *
load_one(PsyncDelivery *delivery, uint32 *shape_id)
{
	Oid			types[1] = {UUIDOID};
	Datum		values[1];
	PsyncBatch *batch = NULL;

	values[0] = UUIDPGetDatum(&delivery->sync->id);
	if (psync_owner_execute(load_command, 1, types, values, NULL) > 0)
		batch = batch_from_row(delivery, SPI_tuptable->vals[0],
							   SPI_tuptable->tupdesc, shape_id);
	SPI_finish();
	return batch;
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
 * whose first chunk comes with this window has begun.  May leave a part of the
 * change.
 */
bool
psync_batch_leaves_out(const PsyncDelivery *delivery, PsyncChange *change)
{
	Assert(change->table != NULL);
	if (delivery->uncopied == NIL ||
		!list_member_oid(delivery->uncopied, change->table->relid) ||
		(delivery->batch != NULL &&
		 delivery->batch->relid == change->table->relid))
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
	PsyncBatch *batch;
	uint32		shape_id = 0;
	MemoryContext old;
	bool		forgotten = true;

	while (forgotten && (batch = load_one(delivery, &shape_id)) != NULL)
	{
		old = MemoryContextSwitchTo(batch->context);
		if (prepare_table(delivery, batch))
		{
			if (batch->after.len > 0 &&
				!cursor_fits(delivery, shape_id, batch->shape))
				resetStringInfo(&batch->after);
			batch->query_first = build_query(batch, false);
			batch->query_next = build_query(batch, true);
			MemoryContextSwitchTo(old);
			break;
		}
		/* the table was dropped or released since */
		MemoryContextSwitchTo(old);
		forgotten = forget(delivery, batch);
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
	Assert(batch->context != NULL);

	MemoryContextDelete(batch->context);
}

/* ---------------------------------------------------------------- reading */

/* A receiver that encodes each row into the batch's buffer. */
typedef struct PsyncRowReceiver
{
	DestReceiver pub;
	PsyncBatch *batch;
	bool	   *key_columns;
} PsyncRowReceiver;

/*
 * Encode a row of the query behind the others, and remember its key as the
 * chunk's last.  False ends the query: the chunk is full.  So a chunk's memory
 * is bounded by its size and one row (P7).
 */
static bool
receive_row(TupleTableSlot *slot, DestReceiver *self)
{
	PsyncRowReceiver *receiver = (PsyncRowReceiver *) self;
	PsyncBatch *batch = receiver->batch;
	uint32		size = 0;
	int			start = batch->rows.len;

	appendBinaryStringInfo(&batch->rows, (char *) &size, sizeof(size));
	psync_image_append(&batch->rows, batch->encoder, slot);
	size = batch->rows.len - start - sizeof(size);
	memcpy(batch->rows.data + start, &size, sizeof(size));
	batch->nrows++;

	resetStringInfo(&batch->upto);
	psync_old_part_append(&batch->upto, batch->encoder, slot,
						  receiver->key_columns);
	Assert(size > 0 && batch->nrows <= PSYNC_CHUNK_ROWS_MAX);
	batch->full = batch->nrows == PSYNC_CHUNK_ROWS_MAX ||
		batch->rows.len >= PSYNC_CHUNK_ROWS_BYTES;
	return !batch->full;
}

/*
 * The rows' descriptor is known from the shape.
 */
static void
receive_startup(DestReceiver *self, int operation, TupleDesc desc)
{
}

/*
 * Nothing was allocated that a shutdown would free.
 */
static void
receive_nothing(DestReceiver *self)
{
}

/*
 * The cursor's key values as the query's parameters, in the current memory
 * context.  The bytes were stored here, but a table of ours can be damaged as
 * any other.
 */
static ParamListInfo
cursor_params(const PsyncBatch *batch)
{
	const PsyncShape *shape = batch->shape;
	ParamListInfo params = makeParamList(shape->nkeys);
	const char *at = batch->after.data + sizeof(int16);

	for (int entry = 0; entry < shape->nkeys; entry++)
	{
		uint16		index;
		uint32		size;
		ParamExternData *param = NULL;

		memcpy(&index, at, sizeof(index));
		memcpy(&size, at + sizeof(index), sizeof(size));
		index = pg_ntoh16(index);
		size = pg_ntoh32(size);
		at += sizeof(index) + sizeof(size);
		for (int k = 0; k < shape->nkeys; k++)
			if (shape->keys[k] == index)
				param = &params->params[k];
		if (param == NULL || at + size > batch->after.data + batch->after.len)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("invalid cursor of the batch of table \"%s\"",
							batch->table->source_name),
					 errhint("Start the batch again with payment_sync.batch_sync().")));
		param->value = psync_value_to_datum(&shape->columns[index], at, size);
		param->isnull = false;
		param->pflags = PARAM_FLAG_CONST;
		param->ptype = shape->columns[index].type;
		at += size;
	}
	return params;
}

/*
 * Run the chunk's query into "dest", under the active snapshot and by a plan
 * of its own: with the bound's values known it uses the key's index.  A plan
 * is made per chunk, which is nothing beside sending 4 MB.
 */
static void
run_query(PsyncBatch *batch, DestReceiver *dest)
{
	bool		bounded = batch->after.len > 0;
	ParamListInfo params = bounded ? cursor_params(batch) : NULL;
	SPIExecuteOptions options = {0};
	SPIPlanPtr	plan;
	Oid		   *types = NULL;
	int			nargs = bounded ? batch->shape->nkeys : 0;
	int			ret;

	if (bounded)
	{
		types = palloc(nargs * sizeof(Oid));
		for (int i = 0; i < nargs; i++)
			types[i] = params->params[i].ptype;
	}
	plan = SPI_prepare(bounded ? batch->query_next : batch->query_first,
					   nargs, types);
	if (plan == NULL)
		elog(ERROR, "could not prepare batch query: %s",
			 SPI_result_code_string(SPI_result));
	options.params = params;
	options.read_only = true;
	options.dest = dest;
	ret = SPI_execute_plan_extended(plan, &options);
	if (ret != SPI_OK_SELECT)
		elog(ERROR, "could not run batch query: %s", SPI_result_code_string(ret));
}

/*
 * Read the next chunk under the active snapshot, which ends the window, as the
 * sync's owner.  Called back from psync_reader_open().
 *
 * SECURITY_RESTRICTED_OPERATION: the table's owner may have put functions of
 * their own into views, policies and types, and must not get at the worker's
 * session through them.  An error leaves the identity to the transaction's
 * abort, as usual.
 */
void
psync_batch_read(void *arg)
{
	PsyncBatch *batch = arg;
	PsyncRowReceiver receiver = {{receive_row, receive_startup, receive_nothing, receive_nothing, DestTuplestore}};
	Oid			userid;
	int			sec_context;
	int			guc_level;

	Assert(ActiveSnapshotSet());
	Assert(OidIsValid(batch->owner));
	resetStringInfo(&batch->rows);
	resetStringInfo(&batch->upto);
	batch->nrows = 0;
	batch->full = false;

	receiver.batch = batch;
	receiver.key_columns = palloc(batch->shape->ncolumns * sizeof(bool));
	for (int i = 0; i < batch->shape->ncolumns; i++)
		receiver.key_columns[i] = batch->shape->columns[i].key;

	GetUserIdAndSecContext(&userid, &sec_context);
	guc_level = NewGUCNestLevel();
	SetUserIdAndSecContext(batch->owner,
						   sec_context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("row_security", "off", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	SPI_connect();
	run_query(batch, &receiver.pub);
	SPI_finish();
	AtEOXact_GUC(false, guc_level);
	SetUserIdAndSecContext(userid, sec_context);
}

/* ---------------------------------------------------------------- sending */

/*
 * Hand the chunk over, between its begin and its end.  The bounds tell a
 * mirror which rows of the target have no counterpart: those after the last
 * chunk's last key, up to this one's, or to the end if the query came to its
 * end.
 */
void
psync_batch_send(PsyncDelivery *delivery, PsyncBatch *batch)
{
	const PsyncTransport *transport = delivery->transport;
	PsyncChunk	chunk = {0};
	const char *at = batch->rows.data;
	const char *end = at + batch->rows.len;

	Assert(delivery->window_begun);

	if (transport->begin_chunk == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("transport \"%s\" cannot copy whole tables",
						transport->name)));

	chunk.table = batch->table;
	chunk.shape = batch->shape;
	chunk.mirror = batch->mirror;
	chunk.first = batch->first;
	if (batch->after.len > 0)
	{
		chunk.after = batch->after.data;
		chunk.after_size = batch->after.len;
	}
	if (batch->full)
	{
		chunk.upto = batch->upto.data;
		chunk.upto_size = batch->upto.len;
	}

	transport->begin_chunk(delivery->target, &chunk);
	while (at < end)
	{
		uint32		size;

		memcpy(&size, at, sizeof(size));
		at += sizeof(size);
		Assert(size > 0 && size <= end - at);
		transport->chunk_row(delivery->target, at, size);
		at += size;
	}
	Assert(at == end);
	transport->end_chunk(delivery->target, &chunk);
}

/*
 * The chunk is at the target: save how far the batch has come, and forget
 * the batch if that was the last one.
 */
void
psync_batch_delivered(PsyncDelivery *delivery, PsyncBatch *batch)
{
	Oid			types[6] = {UUIDOID, UUIDOID, BOOLOID, INT4OID, BYTEAOID, INT8OID};
	Datum		values[6];
	char		nulls[7] = "      ";
	bytea	   *cursor = palloc(VARHDRSZ + batch->upto.len);
	uint64		updated;

	Assert(!delivery->window_begun);
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

	delivery->unsaved.rows_read += batch->nrows;
	batch->first = false;
	resetStringInfo(&batch->after);
	appendBinaryStringInfo(&batch->after, batch->upto.data, batch->upto.len);

	Assert(updated <= 1);

	/* cancelled, asked for anew, or done: see what is next */
	if (updated == 0 || !batch->full)
	{
		psync_batch_free(batch);
		delivery->batch = NULL;
	}
}
