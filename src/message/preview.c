/*
 * preview.c
 *		preview_event() and check_target(): trying a target.
 *
 * Both work with the caller's session, the caller's (or the sync owner's) user
 * mapping, and the very code that delivers: what they show is what would be
 * sent.  Nothing is recorded.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "funcapi.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

#include "compat.h"
#include "message/message.h"
#include "sync/admin.h"
#include "target/registry.h"

PG_FUNCTION_INFO_V1(payment_sync_preview_event);
PG_FUNCTION_INFO_V1(payment_sync_check_target);

/* --------------------------------------------------------------- the row */

/* The sync's table that is meant: the one named, or the only one. */
static const PsyncTable *
choose_table(const PsyncSync *sync, Oid relid)
{
	ListCell   *lc;

	if (!OidIsValid(relid) && list_length(sync->tables) == 1)
		return linitial(sync->tables);
	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("sync \"%s\" has several tables", sync->name),
				 errhint("Name one with the argument \"rel\".")));
	foreach(lc, sync->tables)
	{
		if (((PsyncTable *) lfirst(lc))->relid == relid)
			return lfirst(lc);
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("sync \"%s\" has no such table", sync->name)));
	return NULL;				/* keep the compiler quiet */
}

/* SELECT the captured columns of the row whose key is $1, a jsonb object. */
static char *
row_query(const PsyncTable *table, const PsyncShape *shape)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	for (int i = 0; i < shape->ncolumns; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "",
						 quote_identifier(shape->columns[i].current_name));
	appendStringInfo(&buf, " FROM %s WHERE ",
					 quote_qualified_identifier(table->source_schema,
												table->source_name));
	for (int i = 0; i < shape->nkeys; i++)
	{
		const PsyncColumn *column = &shape->columns[shape->keys[i]];

		appendStringInfo(&buf, "%s%s = ($1 ->> %s)::%s", i > 0 ? " AND " : "",
						 quote_identifier(column->current_name),
						 quote_literal_cstr(column->current_name),
						 format_type_extended(column->type, -1, FORMAT_TYPE_FORCE_QUALIFY));
	}
	appendStringInfoString(&buf, " LIMIT 1");
	return buf.data;
}

/* Read and encode it with the sync owner's rights. */
static void
read_image(const PsyncSync *sync, const char *query, Datum key,
		   PsyncCaptureRel *encoder, StringInfo image)
{
	Oid			types[1] = {JSONBOID};
	PsyncRole	role;
	TupleTableSlot *slot;

	psync_role_become(&role, sync->owner, PSYNC_ROLE_USER_CODE | PSYNC_ROLE_ALL_ROWS);
	SPI_connect();
	if (SPI_execute_with_args(query, 1, types, &key, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read row");
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_NO_DATA_FOUND),
				 errmsg("there is no row with this key"),
				 errhint("The key is an object with the key's columns, such as {\"id\": 1}.")));
	slot = MakeSingleTupleTableSlot(SPI_tuptable->tupdesc, &TTSOpsHeapTuple);
	ExecStoreHeapTuple(SPI_tuptable->vals[0], slot, false);
	psync_image_append(image, encoder, slot);
	ExecDropSingleTupleTableSlot(slot);
	SPI_finish();
	psync_role_return(&role);
}

/* ------------------------------------------------------------ the message */

/* As much of an engine as it takes to make a message. */
static PsyncMessages *
make_engine(PsyncTarget *target, const char *transform, Oid owner)
{
	PsyncMessages *messages = palloc0(sizeof(PsyncMessages));

	messages->context = CurrentMemoryContext;
	messages->target = target;
	psync_message_settings(&messages->settings, target, transform);
	messages->writer = psync_event_writer(target, &messages->settings, transform,
										  owner);
	psync_line_init(&messages->line, CurrentMemoryContext, &messages->settings);
	psync_ledger_init(&messages->line.ledger, CurrentMemoryContext, NULL, 0);
	return messages;
}

/* NULL: the transform leaves the event out. */
static PsyncOutgoing *
make_message(PsyncMessages *messages, const PsyncTable *table,
			 const PsyncShape *shape, StringInfo image)
{
	PsyncChange change = {0};
	PsyncEventKeys keys;
	PsyncEvent *event;
	uint64		place;

	change.op = PSYNC_INSERT;
	change.position = GetXLogInsertRecPtr();
	change.xid = U64FromFullTransactionId(ReadNextFullTransactionId());
	change.at = GetCurrentTimestamp();
	change.shape = shape;
	change.table = table;
	change.new_image = image->data;
	change.new_size = image->len;
	event = psync_event_make(messages->writer, &change, &keys, false);
	if (event == NULL)
		return NULL;
	place = psync_line_add(messages, event, &keys);
	return psync_outgoing_make(messages, &place, 1);
}

/* Of a transport that shows nothing: what it would be given. */
static char *
describe(const PsyncMessage *m)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "id: %s\ncontent-type: %s\n", m->id, m->content_type);
	for (int i = 0; i < m->nattributes; i++)
		appendStringInfo(&buf, "%s: %s\n", m->attributes[i].name,
						 m->attributes[i].value);
	appendStringInfoChar(&buf, '\n');
	appendBinaryStringInfo(&buf, m->body, m->size);
	return buf.data;
}

static char *
preview(const PsyncTransport *transport, PsyncTarget *target,
		PsyncOutgoing *message)
{
	char	   *volatile result = NULL;

	if (transport->messages->preview == NULL)
		return describe(&message->m);
	transport->open(target);
	PG_TRY();
	{
		result = transport->messages->preview(target, &message->m);
	}
	PG_FINALLY();
	{
		transport->close(target);
	}
	PG_END_TRY();
	return result;
}

static void
require_messages(const PsyncTransport *transport, const char *server)
{
	if (transport->messages == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("server \"%s\" takes no messages", server)));
}

/*
 * preview_event(name, key jsonb, rel): the request that inserting the row with
 * this key would cause.
 */
Datum
payment_sync_preview_event(PG_FUNCTION_ARGS)
{
	PsyncSync  *sync;
	const PsyncTransport *transport;
	PsyncTarget *target;
	const PsyncTable *table;
	PsyncMessages *messages;
	PsyncOutgoing *message;
	PsyncCaptureRel *captured;
	Relation	rel;
	StringInfoData image;
	char	   *result;

	psync_require_argument(fcinfo, 0, "name");
	psync_require_argument(fcinfo, 1, "key");
	sync = psync_sync_get_own(NameStr(*PG_GETARG_NAME(0)));
	if (sync->server == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("sync \"%s\" has no target", sync->name)));
	table = choose_table(sync, PG_ARGISNULL(2) ? InvalidOid : PG_GETARG_OID(2));
	target = psync_target_create(CurrentMemoryContext, sync, psync_log_identity(),
								 &transport);
	require_messages(transport, sync->server);

	initStringInfo(&image);
	rel = table_open(table->relid, AccessShareLock);
	captured = psync_capture_rel_for_query(rel, CurrentMemoryContext);
	read_image(sync, row_query(table, captured->shape), PG_GETARG_DATUM(1),
			   captured, &image);
	table_close(rel, NoLock);

	messages = make_engine(target, sync->transform, sync->owner);
	message = make_message(messages, table, captured->shape, &image);
	if (message == NULL)
		PG_RETURN_NULL();
	result = preview(transport, target, message);
	PG_RETURN_TEXT_P(cstring_to_text(result));
}

/* -------------------------------------------------------------- the check */

/*
 * A row of no table, with one column, as a change: what a target gets of it is
 * in the target's own format.  Its event's type is "payment_sync.ping", its
 * key the time.
 */
static void
make_ping_change(PsyncChange *change, TimestampTz now)
{
	static PsyncTable table = {
		.source_schema = "payment_sync",.source_name = "ping",
		.target_schema = "payment_sync",.target_name = "ping",
	};
	static PsyncColumn column = {
		.attnum = 1,.key = true,.type = TEXTOID,.typmod = -1,
		.name = "id",.current_name = "id",.type_name = "text",
	};
	static int	key = 0;
	static PsyncShape shape = {.ncolumns = 1,.columns = &column,.nkeys = 1,.keys = &key};
	StringInfoData image;
	char	   *id = psprintf("%llx", (unsigned long long) now);

	Assert(psync_event_is_ping(&table));
	initStringInfo(&image);
	pq_sendint16(&image, 1);
	pq_sendint32(&image, strlen(id));
	appendStringInfoString(&image, id);
	change->op = PSYNC_INSERT;
	change->position = (uint64) now;
	change->xid = U64FromFullTransactionId(ReadNextFullTransactionId());
	change->at = now;
	change->shape = &shape;
	change->table = &table;
	change->new_image = image.data;
	change->new_size = image.len;
}

/*
 * With the format raw only a sync's transform makes bodies, and here is none:
 * then a plain object has to do.
 */
static void
make_plain_ping(PsyncMessage *ping, const PsyncTarget *target, TimestampTz now)
{
	StringInfoData at;

	initStringInfo(&at);
	psync_json_timestamp(&at, now, true);
	appendStringInfoChar(&at, '\0');
	ping->id = psprintf("%s_ping_%llx", target->log_id, (unsigned long long) now);
	ping->nevents = 1;
	ping->type = "payment_sync.ping";
	ping->schema = "payment_sync";
	ping->table = "ping";
	ping->operation = "insert";
	ping->key = "ping";
	ping->content_type = "application/json";
	ping->body = psprintf("{\"id\":\"%s\",\"type\":\"%s\",\"at\":%s}", ping->id,
						  ping->type, at.data);
	ping->size = strlen(ping->body);
}

/* An event like any other, but for its type. */
static void
make_ping(PsyncMessage *ping, PsyncTarget *target)
{
	TimestampTz now = GetCurrentTimestamp();
	const char *format = psync_services->option(target, "format");
	PsyncMessages *messages;
	PsyncChange change = {0};
	PsyncEventKeys keys;
	uint64		place;

	if (format != NULL && strcmp(format, "raw") == 0)
		make_plain_ping(ping, target, now);
	else
	{
		messages = make_engine(target, NULL, GetUserId());
		make_ping_change(&change, now);
		place = psync_line_add(messages, psync_event_make(messages->writer, &change, &keys, false),
							   &keys);
		*ping = psync_outgoing_make(messages, &place, 1)->m;
	}
	ping->attempt = 1;
}

typedef struct PsyncCheckRows
{
	Tuplestorestate *store;
	TupleDesc	desc;
} PsyncCheckRows;

static void
report_step(void *arg, const char *step, bool ok, const char *detail,
			int64 elapsed_us)
{
	PsyncCheckRows *rows = arg;
	Datum		values[4];
	bool		nulls[4] = {false};

	Assert(rows->desc->natts == 4);
	values[0] = CStringGetTextDatum(step);
	values[1] = BoolGetDatum(ok);
	nulls[2] = detail == NULL;
	values[2] = nulls[2] ? (Datum) 0 : CStringGetTextDatum(detail);
	values[3] = Float8GetDatum(elapsed_us / 1000.0);
	tuplestore_putvalues(rows->store, rows->desc, values, nulls);
}

/*
 * What the caller's syncs deliver to the server, each of the target's tables
 * once.
 */
static List *
tables_at_server(const char *server)
{
	List	   *result = NIL;
	ListCell   *ls;
	ListCell   *lt;
	ListCell   *lr;

	foreach(ls, psync_sync_list_with_state())
	{
		PsyncSync  *sync = lfirst(ls);

		if (sync->server == NULL || strcmp(sync->server, server) != 0 ||
			!has_privs_of_role(GetUserId(), sync->owner))
			continue;
		foreach(lt, sync->tables)
		{
			PsyncTable *table = lfirst(lt);

			foreach(lr, result)
			{
				PsyncTable *known = lfirst(lr);

				if (strcmp(known->target_schema, table->target_schema) == 0 &&
					strcmp(known->target_name, table->target_name) == 0)
					break;
			}
			if (lr == NULL)
				result = lappend(result, table);
		}
	}
	return result;
}

/* By the transport, in the way that fits what its targets take. */
static void
check(const PsyncTransport *transport, PsyncTarget *target, PsyncCheckRows *rows)
{
	PsyncMessage ping = {0};

	if (transport->messages != NULL ? transport->messages->check == NULL :
		transport->check == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("transport \"%s\" cannot check its target", transport->name)));
	if (transport->messages != NULL)
	{
		make_ping(&ping, target);
		transport->messages->check(target, &ping, report_step, rows);
		return;
	}
	target->tables = tables_at_server(target->server_name);
	transport->check(target, report_step, rows);
}

/*
 * check_target(server): a row per step of reaching the target, as the caller,
 * up to a signed ping that the target must take, or to the tables that it has.
 */
Datum
payment_sync_check_target(PG_FUNCTION_ARGS)
{
	PsyncCheckRows rows;
	PsyncSync	sync = {0};
	const PsyncTransport *transport;
	PsyncTarget *target;
	bool		reading = psync_deliver_reading;

	psync_require_argument(fcinfo, 0, "server");
	rows.store = psync_result_begin(fcinfo, &rows.desc);
	sync.name = "check_target";
	sync.id_text = "00000000-0000-0000-0000-000000000000";
	sync.server = pstrdup(NameStr(*PG_GETARG_NAME(0)));
	sync.owner = GetUserId();
	psync_check_server_usage(sync.server);
	target = psync_target_create(CurrentMemoryContext, &sync, psync_log_identity(),
								 &transport);

	/* the caller's statement has its snapshot, which only the caller minds */
	psync_deliver_reading = true;
	PG_TRY();
	{
		check(transport, target, &rows);
	}
	PG_FINALLY();
	{
		psync_deliver_reading = reading;
	}
	PG_END_TRY();
	return (Datum) 0;
}
