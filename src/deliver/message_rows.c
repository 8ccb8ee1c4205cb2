/*
 * message_rows.c
 *		Writing the rows of payment_sync.unsettled.
 *
 * What parking and burying decide (message_park.c) is noted in memory, and
 * written here within the transaction of a save.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/uuid.h"

#include "compat.h"
#include "deliver/message.h"

/* ------------------------------------------------------------- the table */

static const char insert_command[] =
	"INSERT INTO payment_sync.unsettled (sync, state, event_id, events, relids,"
	" keys, truncate, type, schema, \"table\", operation, key, content_type,"
	" attributes, body, failures, next_at, status, reason, excerpt, error_state,"
	" tally_relids, tally_days, tally_operations, tally_counts)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15,"
	" $16, $17, $18, $19, $20, $21, $22, $23, $24, $25) RETURNING id";

static const char update_command[] =
	"UPDATE payment_sync.unsettled SET state = $2, failures = $3, next_at = $4,"
	" status = $5, reason = $6, excerpt = $7, error_state = $8,"
	" updated = clock_timestamp() WHERE id = $1";

static const char delete_command[] =
	"WITH gone AS (DELETE FROM payment_sync.unsettled WHERE id = $1 RETURNING *)"
	" INSERT INTO payment_sync.ledger_count AS l (sync, relid, day, operation, delivered)"
	" SELECT g.sync, t.* FROM gone g,"
	" unnest(g.tally_relids, g.tally_days, g.tally_operations, g.tally_counts) t"
	" ON CONFLICT (sync, relid, day, operation) DO UPDATE SET"
	" delivered = l.delivered + excluded.delivered";

static Datum
text_utf8(const char *utf8)
{
	char	   *converted = pg_any_to_server(utf8, strlen(utf8), PG_UTF8);

	return CStringGetTextDatum(converted);
}

static void
set_text(Datum *value, char *null, const char *string)
{
	*null = string == NULL || string[0] == '\0' ? 'n' : ' ';
	if (*null == ' ')
		*value = CStringGetTextDatum(string);
}

/* Four parameters: status, reason, excerpt, error_state. */
static void
set_answer(Datum *values, char *nulls, const PsyncAnswer *answer)
{
	values[0] = Int32GetDatum(answer->status);
	nulls[0] = answer->status != 0 ? ' ' : 'n';
	set_text(&values[1], &nulls[1], answer->reason);
	set_text(&values[2], &nulls[2], answer->excerpt);
	set_text(&values[3], &nulls[3], answer->sqlerrcode != 0 ?
			 unpack_sql_state(answer->sqlerrcode) : NULL);
}

static Datum
int8_array(const uint64 *numbers, int n)
{
	Datum	   *values = palloc(Max(n, 1) * sizeof(Datum));

	for (int i = 0; i < n; i++)
		values[i] = Int64GetDatum((int64) numbers[i]);
	return PointerGetDatum(construct_array(values, n, INT8OID, sizeof(int64),
										   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

static Datum
oid_array(const Oid *oids, int n)
{
	Datum	   *values = palloc(Max(n, 1) * sizeof(Datum));

	for (int i = 0; i < n; i++)
		values[i] = ObjectIdGetDatum(oids[i]);
	return PointerGetDatum(construct_array(values, n, OIDOID, sizeof(Oid), true,
										   TYPALIGN_INT));
}

static Datum
attribute_array(const PsyncMessage *m)
{
	Datum	   *values = palloc((2 * m->nattributes + 1) * sizeof(Datum));

	for (int i = 0; i < m->nattributes; i++)
	{
		values[2 * i] = text_utf8(m->attributes[i].name);
		values[2 * i + 1] = text_utf8(m->attributes[i].value);
	}
	return PointerGetDatum(construct_array(values, 2 * m->nattributes, TEXTOID, -1,
										   false, TYPALIGN_INT));
}

/*
 * Eight parameters: all of a message but its id, so that it can be sent again
 * as it was (P6).
 */
static void
set_message(Datum *values, const PsyncMessage *m)
{
	bytea	   *body = MemoryContextAllocHuge(CurrentMemoryContext, VARHDRSZ + m->size);

	SET_VARSIZE(body, VARHDRSZ + m->size);
	memcpy(VARDATA(body), m->body, m->size);
	values[0] = text_utf8(m->type);
	values[1] = text_utf8(m->schema);
	values[2] = text_utf8(m->table);
	values[3] = CStringGetTextDatum(m->operation);
	values[4] = text_utf8(m->key);
	values[5] = CStringGetTextDatum(m->content_type);
	values[6] = attribute_array(m);
	values[7] = PointerGetDatum(body);
}

/* Write a row for a message of the line; returns its id. */
static int64
insert_row(PsyncMessages *messages, PsyncRowChange *change)
{
	Oid			types[25] = {UUIDOID, TEXTOID, TEXTOID, INT4OID, OIDARRAYOID,
		INT8ARRAYOID, BOOLOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID,
	TEXTOID, TEXTARRAYOID, BYTEAOID, INT4OID, TIMESTAMPTZOID, INT4OID, TEXTOID, TEXTOID, TEXTOID,
	OIDARRAYOID, DATEARRAYOID, TEXTARRAYOID, INT4ARRAYOID};
	Datum		values[25] = {0};
	char		nulls[26] = "                         ";
	PsyncOutgoing *message = change->message;
	PsyncParked *parked = change->parked;
	PsyncParked own = {0};
	const char *state = parked == NULL ? "dead" : parked->held ? "held" : "parked";
	bool		isnull;
	int64		id;

	if (parked == NULL)
		psync_parked_gather(messages, message, &own);
	values[0] = UUIDPGetDatum(&messages->delivery->sync->id);
	values[1] = CStringGetTextDatum(state);
	values[2] = CStringGetTextDatum(message->m.id);
	values[3] = Int32GetDatum(message->m.nevents);
	values[4] = parked ? oid_array(parked->relids, parked->nrelids) :
		oid_array(own.relids, own.nrelids);
	values[5] = parked ? int8_array(parked->keys, parked->nkeys) :
		int8_array(own.keys, own.nkeys);
	values[6] = BoolGetDatum(parked ? parked->truncate : own.truncate);
	set_message(&values[7], &message->m);
	values[15] = Int32GetDatum(parked ? parked->failures : change->failures);
	values[16] = TimestampTzGetDatum(parked ? parked->next_at : 0);
	nulls[16] = parked != NULL && parked->next_at != 0 ? ' ' : 'n';
	set_answer(&values[17], &nulls[17], &change->answer);
	psync_ledger_tally(messages, message, &values[21]);
	(void) psync_owner_execute(insert_command, 25, types, values, nulls);
	id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
									 1, &isnull));
	SPI_finish();
	return id;
}

static void
update_row(PsyncRowChange *change, const char *state)
{
	Oid			types[8] = {INT8OID, TEXTOID, INT4OID, TIMESTAMPTZOID, INT4OID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[8] = {0};
	char		nulls[9] = "        ";
	PsyncParked *parked = change->parked;

	values[0] = Int64GetDatum(change->id);
	values[1] = CStringGetTextDatum(state);
	values[2] = Int32GetDatum(parked ? parked->failures : change->failures);
	values[3] = TimestampTzGetDatum(parked ? parked->next_at : 0);
	nulls[3] = parked != NULL ? ' ' : 'n';
	set_answer(&values[4], &nulls[4], &change->answer);
	(void) psync_owner_execute(update_command, 8, types, values, nulls);
	SPI_finish();
}

/*
 * Delivered after all.  If the row is gone by now, its events were discarded
 * while they were on their way, and that is how they were counted.
 */
static void
delete_row(int64 id)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(id)};

	(void) psync_owner_execute(delete_command, 1, types, values, NULL);
	SPI_finish();
}

/*
 * Before the position is saved: which places' events get rows by this save.
 */
void
psync_row_changes_record(PsyncMessages *messages)
{
	dlist_iter	iter;

	dlist_foreach(iter, &messages->changes)
	{
		PsyncRowChange *change = dlist_container(PsyncRowChange, node, iter.cur);

		if (change->op == PSYNC_ROW_PARK || change->op == PSYNC_ROW_BURY)
			psync_ledger_record(messages, change->message);
	}
}

/*
 * Within the transaction of a save: rows and position are durable together, or
 * neither.
 */
void
psync_row_changes_write(PsyncMessages *messages)
{
	dlist_iter	iter;

	dlist_foreach(iter, &messages->changes)
	{
		PsyncRowChange *change = dlist_container(PsyncRowChange, node, iter.cur);

		switch (change->op)
		{
			case PSYNC_ROW_PARK:
			case PSYNC_ROW_BURY:
				change->id = insert_row(messages, change);
				break;
			case PSYNC_ROW_UPDATE:
				update_row(change, "parked");
				break;
			case PSYNC_ROW_HOLD:
				update_row(change, "held");
				break;
			case PSYNC_ROW_KILL:
				update_row(change, "dead");
				break;
			case PSYNC_ROW_DELETE:
				delete_row(change->id);
				break;
		}
	}
}
