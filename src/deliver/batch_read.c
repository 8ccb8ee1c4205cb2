/*
 * batch_read.c
 *		Reading a chunk of a batch, and handing it over.
 *
 * A chunk is read under the snapshot that ends the window, and sent when that
 * snapshot is gone: nothing is held while the target is waited for.  In between
 * it is kept here.  Rows are kept in memory, for which they are few enough; the
 * keys, or rows, of a whole table are kept in a temporary file, which lives as
 * long as the batch, across transactions.
 */
#include "postgres.h"

#include "decode/value.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "storage/buffile.h"
#include "tcop/dest.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "deliver/delivery.h"
#include "transport/payment_sync_transport.h"

/* How many rows of a file go between looks at the clock. */
#define PSYNC_ROWS_PER_CLOCK	1024

/* ------------------------------------------------------------- the queries */

/*
 * Append the key's columns, or as many parameters, separated by commas: for
 * ORDER BY and for both sides of the comparison.  In the columns' own order,
 * whatever that is: the key's index has it, and nobody else need know it.
 */
static void
append_key_list(StringInfo buf, const PsyncBatch *batch, bool params)
{
	const PsyncShape *shape = batch->shape;

	Assert(batch->shape->nkeys > 0);

	for (int i = 0; i < shape->nkeys; i++)
	{
		appendStringInfoString(buf, i > 0 ? ", " : "");
		if (params)
			appendStringInfo(buf, "$%d", i + 1);
		else
			appendStringInfoString(buf, quote_identifier(shape->columns[shape->keys[i]].current_name));
	}
}

/* SELECT captured columns FROM the table; with "keys", only those of the key. */
static void
append_select(StringInfo buf, const PsyncBatch *batch, bool keys)
{
	const PsyncShape *shape = batch->shape;

	Assert(shape->ncolumns > 0);

	appendStringInfoString(buf, "SELECT ");
	for (int i = 0; i < shape->ncolumns; i++)
		appendStringInfo(buf, "%s%s", i > 0 ? ", " : "",
						 keys && !shape->columns[i].key ? "NULL" :
						 quote_identifier(shape->columns[i].current_name));
	appendStringInfo(buf, " FROM %s%s", batch->plain ? "ONLY " : "",
					 quote_qualified_identifier(batch->table->source_schema,
												batch->table->source_name));
}

/*
 * The next rows in key order.  The row comparison uses the types' default
 * operators, found by the pinned search_path.
 */
static char *
build_rows_query(const PsyncBatch *batch, bool bounded)
{
	StringInfoData buf;

	initStringInfo(&buf);
	append_select(&buf, batch, false);
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

/* All keys, or all rows, in any order. */
static char *
build_all_query(const PsyncBatch *batch)
{
	StringInfoData buf;

	initStringInfo(&buf);
	append_select(&buf, batch, batch->sweep);
	return buf.data;
}

/* In the batch's memory, which is the current context. */
void
psync_batch_build_queries(PsyncBatch *batch)
{
	batch->query_first = build_rows_query(batch, false);
	batch->query_next = build_rows_query(batch, true);
	batch->query_all = build_all_query(batch);
}

/* ---------------------------------------------------------------- reading */

/* A receiver that encodes each row, or its key, for the target. */
typedef struct PsyncRowReceiver
{
	DestReceiver pub;
	PsyncBatch *batch;
	bool	   *key_columns;
	MemoryContext row_context;	/* reset for each row of a file */
} PsyncRowReceiver;

/*
 * Append what chunk_row() takes to the batch's temporary file, as size and
 * bytes.
 */
static void
spool(PsyncBatch *batch, const StringInfo data)
{
	uint32		size = data->len;

	BufFileWrite(batch->spool, &size, sizeof(size));
	BufFileWrite(batch->spool, data->data, size);
}

/*
 * Encode a row, or its key, for the file.  There may be any number of them, so
 * what that allocates is not left to the query's end.
 */
static bool
receive_any(TupleTableSlot *slot, DestReceiver *self)
{
	PsyncRowReceiver *receiver = (PsyncRowReceiver *) self;
	PsyncBatch *batch = receiver->batch;
	MemoryContext old = MemoryContextSwitchTo(receiver->row_context);

	resetStringInfo(&batch->rows);
	if (batch->sweep)
		psync_old_part_append(&batch->rows, batch->encoder, slot,
							  receiver->key_columns);
	else
		psync_image_append(&batch->rows, batch->encoder, slot);
	spool(batch, &batch->rows);
	batch->nrows++;
	MemoryContextSwitchTo(old);
	MemoryContextReset(receiver->row_context);
	return true;
}

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

/* A saved cursor is a row of ours; still, nothing beyond its end is read. */
pg_noreturn static void
refuse_cursor(const PsyncBatch *batch)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("invalid cursor of the batch of table \"%s\"",
					batch->table->source_name),
			 errhint("Start the batch again with payment_sync.batch_sync().")));
}

/*
 * A value of a domain is one of its base type here: it was valid when it was
 * written, whatever the domain demands by now.
 */
static void
set_param(ParamExternData *param, const PsyncColumn *column, const char *value,
		  uint32 size)
{
	PsyncColumn base = *column;
	PsyncTimeLimit limit;

	base.type = getBaseTypeAndTypmod(column->type, &base.typmod);
	psync_limit_begin(&limit, "functions of user-defined types",
					  psync_value_runs_user_code(&base) ? psync_user_code_timeout : 0,
					  "payment_sync.user_code_timeout");
	param->value = psync_value_to_datum(&base, value, size);
	psync_limit_end(&limit);
	param->isnull = false;
	param->pflags = PARAM_FLAG_CONST;
	param->ptype = base.type;
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
	const char *end = batch->after.data + batch->after.len;

	for (int entry = 0; entry < shape->nkeys; entry++)
	{
		uint16		index;
		uint32		size;
		ParamExternData *param = NULL;

		if (at + sizeof(index) + sizeof(size) > end)
			refuse_cursor(batch);
		memcpy(&index, at, sizeof(index));
		memcpy(&size, at + sizeof(index), sizeof(size));
		index = pg_ntoh16(index);
		size = pg_ntoh32(size);
		at += sizeof(index) + sizeof(size);
		for (int k = 0; k < shape->nkeys; k++)
			if (shape->keys[k] == index)
				param = &params->params[k];
		if (param == NULL || size > (Size) (end - at))
			refuse_cursor(batch);
		set_param(param, &shape->columns[index], at, size);
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
	bool		all = batch->sweep || batch->whole;
	bool		bounded = batch->after.len > 0 && !all;
	ParamListInfo params = bounded ? cursor_params(batch) : NULL;
	SPIExecuteOptions options = {0};
	SPIPlanPtr	plan;
	const char *query = all ? batch->query_all :
		bounded ? batch->query_next : batch->query_first;
	Oid		   *types = NULL;
	int			nargs = bounded ? batch->shape->nkeys : 0;
	int			ret;

	if (bounded)
	{
		types = palloc(nargs * sizeof(Oid));
		for (int i = 0; i < nargs; i++)
			types[i] = params->params[i].ptype;
	}
	plan = SPI_prepare(query, nargs, types);
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

/* Before the memory that the file's descriptor is in goes. */
static void
close_spool(void *arg)
{
	PsyncBatch *batch = arg;

	if (batch->spool != NULL)
		BufFileClose(batch->spool);
	batch->spool = NULL;
}

/*
 * A new file for the chunk at hand; one of a window that was given up is empty
 * again.  It is no transaction's, so an error does not close it: the end of the
 * batch's memory does.
 */
static void
open_spool(PsyncBatch *batch)
{
	MemoryContext old = MemoryContextSwitchTo(batch->context);

	close_spool(batch);
	if (batch->spool_closer.func == NULL)
	{
		batch->spool_closer.func = close_spool;
		batch->spool_closer.arg = batch;
		MemoryContextRegisterResetCallback(batch->context, &batch->spool_closer);
	}
	batch->spool = BufFileCreateTemp(true);
	MemoryContextSwitchTo(old);
}

/*
 * Read the next chunk under the active snapshot, as the sync's owner.
 *
 * SECURITY_RESTRICTED_OPERATION: the table's owner may have put functions of
 * their own into views, policies and types, and must not get at the worker's
 * session through them.  An error leaves the identity to the transaction's
 * abort, as usual.
 */
static void
read_one(PsyncBatch *batch)
{
	PsyncRowReceiver receiver = {{receive_row, receive_startup, receive_nothing, receive_nothing, DestTuplestore}};
	PsyncRole	role;

	Assert(ActiveSnapshotSet());
	Assert(OidIsValid(batch->owner));
	resetStringInfo(&batch->rows);
	resetStringInfo(&batch->upto);
	batch->nrows = 0;
	batch->full = false;

	receiver.batch = batch;
	if (batch->sweep || batch->whole)
	{
		receiver.pub.receiveSlot = receive_any;
		receiver.row_context = AllocSetContextCreate(CurrentMemoryContext,
													 "payment_sync row",
													 ALLOCSET_DEFAULT_SIZES);
		open_spool(batch);
	}
	receiver.key_columns = palloc(batch->shape->ncolumns * sizeof(bool));
	for (int i = 0; i < batch->shape->ncolumns; i++)
		receiver.key_columns[i] = batch->shape->columns[i].key;

	psync_role_become(&role, batch->owner, PSYNC_ROLE_USER_CODE | PSYNC_ROLE_ALL_ROWS);
	SPI_connect();
	run_query(batch, &receiver.pub);
	SPI_finish();
	psync_role_return(&role);
}

/*
 * Under the active snapshot, which ends the window.  Called back from
 * psync_reader_open().
 */
void
psync_batch_read(void *arg)
{
	for (PsyncBatch *batch = arg; batch != NULL; batch = batch->next)
		read_one(batch);
}

/* ---------------------------------------------------------------- sending */

/* The rows at hand, which are in memory. */
static void
send_rows(PsyncDelivery *delivery, const PsyncBatch *batch)
{
	const char *at = batch->rows.data;
	const char *end = at + batch->rows.len;

	while (at < end)
	{
		uint32		size;

		memcpy(&size, at, sizeof(size));
		at += sizeof(size);
		Assert(size > 0 && size <= end - at);
		delivery->transport->chunk_row(delivery->target, at, size);
		at += size;
	}
	Assert(at == end);
}

/* So many bytes of the file. */
static void
read_spool(PsyncBatch *batch, void *data, size_t size)
{
	if (BufFileRead(batch->spool, data, size) != size)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read rows of table \"%s\" from temporary file",
						batch->table->source_name)));
}

/*
 * What is in the file.  There may be much, and the target slow: the local
 * transaction is not kept for all of it.
 */
static void
send_spool(PsyncDelivery *delivery, PsyncBatch *batch)
{
	if (BufFileSeek(batch->spool, 0, 0, SEEK_SET) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not rewind temporary file")));
	for (int64 i = 0; i < batch->nrows; i++)
	{
		uint32		size;

		if (i % PSYNC_ROWS_PER_CLOCK == 0)
			psync_delivery_cycle_transaction(delivery);
		read_spool(batch, &size, sizeof(size));
		resetStringInfo(&batch->rows);
		enlargeStringInfo(&batch->rows, size);
		read_spool(batch, batch->rows.data, size);
		delivery->transport->chunk_row(delivery->target, batch->rows.data, size);
	}
}

/*
 * Hand one chunk over, between its begin and its end.  False if the target has
 * left it out.
 */
static bool
send_one(PsyncDelivery *delivery, PsyncBatch *batch)
{
	const PsyncTransport *transport = delivery->transport;
	PsyncChunk	chunk = {0};

	Assert(delivery->window_begun);

	if (transport->begin_chunk == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("transport \"%s\" cannot copy whole tables",
						transport->name)));

	chunk.table = batch->table;
	chunk.shape = batch->shape;
	chunk.keys = batch->sweep;
	chunk.first = batch->first && !batch->sweep;
	chunk.circular = batch->circular;
	chunk.whole = batch->whole;
	chunk.last = batch->next == NULL;

	transport->begin_chunk(delivery->target, &chunk);
	if (batch->spool != NULL)
		send_spool(delivery, batch);
	else
		send_rows(delivery, batch);
	return transport->end_chunk(delivery->target, &chunk);
}

/* False if the target has left the chunk out, which it may if it is circular. */
bool
psync_batch_send(PsyncDelivery *delivery, PsyncBatch *batch)
{
	bool		taken = true;

	for (; batch != NULL; batch = batch->next)
		taken = send_one(delivery, batch) && taken;
	return taken;
}
