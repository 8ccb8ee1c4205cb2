/*
 * rows.c
 *		Writing the rows of payment_sync.unsettled.
 *
 * What parking and burying decide (park.c) is noted in memory, and
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
#include "decode/jsonb.h"
#include "message/message.h"

/* ------------------------------------------------------------- the table */

static const char insert_command[] =
	"INSERT INTO payment_sync.unsettled (sync, state, event_id, events, relids,"
	" keys, truncate, type, schema, \"table\", operation, key, content_type,"
	" attributes, body, failures, next_at, status, reason, excerpt, error_state,"
	" tally_relids, tally_days, tally_operations, tally_counts, part_numbers,"
	" part_texts, change)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15,"
	" $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28) RETURNING id";

/*
 * A row of the n events from the one numbered $2 on, of a row of several.  The
 * body keeps its frame: what is before the first event, between two, and after
 * the last.  Six numbers per event: offset and size in the body, table, two
 * keys or 0, day or null; six texts: id, type, schema, table, operation, key.
 */
static const char part_command[] =
	"WITH u AS MATERIALIZED ("
	" SELECT x.*, x.part_numbers[1] AS head, x.part_numbers[1] + x.part_numbers[2] AS first_end,"
	"  x.part_numbers[6 * x.events - 5] + x.part_numbers[6 * x.events - 4] AS last_end"
	" FROM payment_sync.unsettled x WHERE x.id = $1),"
	"f AS MATERIALIZED ("
	" SELECT substring(body FROM 1 FOR head::int) AS before,"
	"  substring(body FROM first_end::int + 1 FOR (part_numbers[7] - first_end)::int) AS between,"
	"  substring(body FROM last_end::int + 1) AS after FROM u),"
	"e AS MATERIALIZED ("
	" SELECT i, substring(body FROM part_numbers[6 * i + 1]::int + 1 FOR part_numbers[6 * i + 2]::int) AS event,"
	"  part_numbers[6 * i + 2] AS size, part_numbers[6 * i + 3]::oid AS relid,"
	"  part_numbers[6 * i + 4] AS key1, part_numbers[6 * i + 5] AS key2,"
	"  date '2000-01-01' + part_numbers[6 * i + 6]::int AS day,"
	"  part_texts[6 * i + 1] AS id, part_texts[6 * i + 5] AS operation"
	" FROM u, generate_series($2::int, $2::int + $3::int - 1) i),"
	"o AS (SELECT e.*, (octet_length(f.before) + octet_length(f.between) * (e.i - $2::int)"
	"  + COALESCE(sum(e.size) OVER (ORDER BY e.i ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0))::bigint AS at"
	" FROM e, f),"
	"t AS (SELECT array_agg(relid) AS relids, array_agg(day) AS days,"
	"  array_agg(operation) AS operations, array_agg(n) AS counts"
	" FROM (SELECT relid, day, operation, count(*)::int AS n FROM e"
	"  WHERE day IS NOT NULL GROUP BY 1, 2, 3) g) "
	"INSERT INTO payment_sync.unsettled (sync, state, event_id, events, relids,"
	" keys, truncate, type, schema, \"table\", operation, key, content_type,"
	" attributes, body, failures, next_at, status, reason, excerpt, error_state,"
	" created, tally_relids, tally_days, tally_operations, tally_counts, origin,"
	" part, part_numbers, part_texts) "
	"SELECT u.sync, u.state, CASE WHEN $3::int = 1 THEN u.part_texts[6 * $2::int + 1]"
	"  ELSE u.part_texts[6 * $2::int + 1] || '_b' || $3::int || '_' ||"
	"   lpad(to_hex((SELECT hashtextextended(string_agg(id, ' ' ORDER BY i), 0) FROM e)), 16, '0') END,"
	" $3::int, ARRAY(SELECT DISTINCT relid FROM e),"
	" ARRAY(SELECT k FROM (SELECT key1 AS k FROM e UNION SELECT key2 FROM e) k WHERE k <> 0),"
	" (SELECT bool_or(operation = 'truncate') FROM e), u.part_texts[6 * $2::int + 2],"
	" u.part_texts[6 * $2::int + 3], u.part_texts[6 * $2::int + 4], u.part_texts[6 * $2::int + 5],"
	" u.part_texts[6 * $2::int + 6], u.content_type, u.attributes,"
	" f.before || (SELECT string_agg(e.event, f.between ORDER BY e.i) FROM e) || f.after,"
	" u.failures, clock_timestamp(), u.status, u.reason, u.excerpt, u.error_state, u.created,"
	" COALESCE(t.relids, '{}'), COALESCE(t.days, '{}'), COALESCE(t.operations, '{}'),"
	" COALESCE(t.counts, '{}'), COALESCE(u.origin, u.id), u.part + $2::int,"
	" CASE WHEN $3::int > 1 THEN ARRAY(SELECT unnest(ARRAY[o.at, o.size, o.relid::bigint,"
	"  o.key1, o.key2, o.day - date '2000-01-01']) FROM (SELECT * FROM o ORDER BY i) o) END,"
	" CASE WHEN $3::int > 1 THEN u.part_texts[6 * $2::int + 1 : 6 * ($2::int + $3::int)] END"
	" FROM u, f, t";

static const char parts_command[] =
	"SELECT events FROM payment_sync.unsettled WHERE id = $1 AND state = 'parked'"
	" AND part_numbers IS NOT NULL FOR UPDATE";

static const char update_command[] =
	"UPDATE payment_sync.unsettled SET state = $2, failures = $3, next_at = $4,"
	" status = $5, reason = $6, excerpt = $7, error_state = $8,"
	" updated = clock_timestamp() WHERE id = $1";

/* Its events are counted in that column of the ledger. */
#define DELETE_COMMAND(column) \
	"WITH gone AS (DELETE FROM payment_sync.unsettled WHERE id = $1 RETURNING *)" \
	" INSERT INTO payment_sync.ledger_count AS l (sync, relid, day, operation, " column ")" \
	" SELECT g.sync, t.* FROM gone g," \
	" unnest(g.tally_relids, g.tally_days, g.tally_operations, g.tally_counts) t" \
	" ON CONFLICT (sync, relid, day, operation) DO UPDATE SET " \
	column " = l." column " + excluded." column

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
 * as it was (P6).  Of an event that could not be made there is no body.
 */
static void
set_message(Datum *values, const PsyncMessage *m, bool unmade)
{
	Size		size = unmade ? 0 : m->size;
	bytea	   *body = MemoryContextAllocHuge(CurrentMemoryContext, VARHDRSZ + size);

	SET_VARSIZE(body, VARHDRSZ + size);
	memcpy(VARDATA(body), m->body, size);
	values[0] = text_utf8(m->type);
	values[1] = text_utf8(m->schema);
	values[2] = text_utf8(m->table);
	values[3] = CStringGetTextDatum(m->operation);
	values[4] = text_utf8(m->key);
	values[5] = CStringGetTextDatum(unmade ? "" : m->content_type);
	values[6] = attribute_array(m);
	values[7] = PointerGetDatum(body);
}

/*
 * Two parameters: what it takes to split the message when it is refused as a
 * whole; see part_command.
 */
static void
set_parts(PsyncMessages *messages, const PsyncOutgoing *message, Datum *values)
{
	int			n = message->m.nevents;
	Datum	   *numbers = palloc(6 * n * sizeof(Datum));
	bool	   *nulls = palloc0(6 * n * sizeof(bool));
	Datum	   *texts = palloc(6 * n * sizeof(Datum));
	int			dims[1] = {6 * n};
	int			bounds[1] = {1};

	Assert(n > 1 && message->places != NULL);
	for (int i = 0; i < n; i++)
	{
		const PsyncPlace *place = PSYNC_PLACE(&messages->line, message->places[i]);
		const PsyncEvent *event = message->events[i];
		Datum	   *number = &numbers[6 * i];
		Datum	   *text = &texts[6 * i];

		number[0] = Int64GetDatum(message->offsets[i]);
		number[1] = Int64GetDatum(message->sizes[i]);
		number[2] = Int64GetDatum(event->table->table->relid);
		number[3] = Int64GetDatum(place->nkeys > 0 ? (int64) place->keys[0] : 0);
		number[4] = Int64GetDatum(place->nkeys > 1 ? (int64) place->keys[1] : 0);
		nulls[6 * i + 5] = place->ledger == NULL;
		number[5] = place->ledger == NULL ? (Datum) 0 : Int64GetDatum(place->ledger->key.day);
		text[0] = text_utf8(PSYNC_EVENT_ID(event));
		text[1] = text_utf8(event->table->types[psync_op_index(event->op)]);
		text[2] = text_utf8(event->table->schema);
		text[3] = text_utf8(event->table->name);
		text[4] = CStringGetTextDatum(psync_operation_name(event->op));
		text[5] = text_utf8(PSYNC_EVENT_KEY(event));
	}
	values[0] = PointerGetDatum(construct_md_array(numbers, nulls, 1, dims, bounds, INT8OID,
												   sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[1] = PointerGetDatum(construct_array(texts, 6 * n, TEXTOID, -1, false, TYPALIGN_INT));
}

/* Write a row for a message of the line; returns its id. */
static int64
insert_row(PsyncMessages *messages, PsyncRowChange *change)
{
	Oid			types[28] = {UUIDOID, TEXTOID, TEXTOID, INT4OID, OIDARRAYOID,
		INT8ARRAYOID, BOOLOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID,
	TEXTOID, TEXTARRAYOID, BYTEAOID, INT4OID, TIMESTAMPTZOID, INT4OID, TEXTOID, TEXTOID, TEXTOID,
	OIDARRAYOID, DATEARRAYOID, TEXTARRAYOID, INT4ARRAYOID, INT8ARRAYOID, TEXTARRAYOID, BYTEAOID};
	Datum		values[28] = {0};
	char		nulls[29] = "                            ";
	PsyncOutgoing *message = change->message;
	PsyncParked *parked = change->parked;
	PsyncParked own = {0};
	const char *state = parked == NULL ? "dead" : parked->held ? "held" : "parked";
	bool		unmade = message->events[0]->unmade;
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
	set_message(&values[7], &message->m, unmade);
	values[15] = Int32GetDatum(parked ? parked->failures : change->failures);
	values[16] = TimestampTzGetDatum(parked ? parked->next_at : 0);
	nulls[16] = parked != NULL && parked->next_at != 0 ? ' ' : 'n';
	set_answer(&values[17], &nulls[17], &change->answer);
	psync_ledger_tally(messages, message, &values[21]);
	if (message->m.nevents > 1)
		set_parts(messages, message, &values[25]);
	else
		nulls[25] = nulls[26] = 'n';
	nulls[27] = unmade ? ' ' : 'n';
	values[27] = unmade ? psync_unmade_change(message->events[0]) : (Datum) 0;
	(void) psync_owner_execute(insert_command, 28, types, values, nulls);
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
 * Two rows of one: a half of its events each, to be sent at once, at the same
 * place in the order.  If the row is gone, someone has discarded it.
 */
static void
split_row(int64 id)
{
	Oid			types[3] = {INT8OID, INT4OID, INT4OID};
	Datum		values[3] = {Int64GetDatum(id)};
	bool		isnull;
	int			n = 0;

	if (psync_owner_execute(parts_command, 1, types, values, NULL) > 0)
		n = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
										1, &isnull));
	SPI_finish();
	if (n == 0)
		return;
	Assert(n > 1);
	for (int half = 0; half < 2; half++)
	{
		values[1] = Int32GetDatum(half == 0 ? 0 : n / 2);
		values[2] = Int32GetDatum(half == 0 ? n / 2 : n - n / 2);
		(void) psync_owner_execute(part_command, 3, types, values, NULL);
		SPI_finish();
	}
	(void) psync_owner_execute("DELETE FROM payment_sync.unsettled WHERE id = $1",
							   1, types, values, NULL);
	SPI_finish();
}

/*
 * Delivered after all, or left out.  If the row is gone by now, its events were
 * discarded while they were on their way, and that is how they were counted.
 */
static void
delete_row(int64 id, const char *command)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(id)};

	(void) psync_owner_execute(command, 1, types, values, NULL);
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
			case PSYNC_ROW_SPLIT:
				split_row(change->id);
				break;
			case PSYNC_ROW_LEAVE_OUT:
				delete_row(change->id, DELETE_COMMAND("left_out"));
				break;
			case PSYNC_ROW_DELETE:
				delete_row(change->id, DELETE_COMMAND("delivered"));
				break;
		}
	}
}
