/*
 * park.c
 *		Events that must not hold up the others: parked ones and dead letters.
 *
 * Both are rows of payment_sync.unsettled, body and all.  A row is written in
 * the transaction that lets the settled position pass its events
 * (save.c) or before, so an event is in the log or in a row or at the
 * target, never nowhere.  Until that transaction has committed the events keep
 * their places in the line.  Places of rows that the position has not passed
 * yet are saved as well (ledger.c), so none gets a second row.
 *
 * Of a parked message only what order needs is kept in memory: the hashes of
 * its keys and the tables it is about.  Its body is read when its time has
 * come.  A message waits for all earlier ones that share a key with it; a
 * truncation for all of its table, and all of that table for it.
 *
 * Dead letters that somebody wants to be retried may be any number.  They stay
 * as they are, but marked, until there are few parked ones; then the next
 * portion of them is parked, in order.  So memory depends on max_parked and
 * the size of a portion.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/uuid.h"
#include "utils/xid8.h"

#include "compat.h"
#include "message/message.h"

/* Keys that stand for "a row of this table" and "a truncation of it". */
#define PSYNC_KEY_ROW			1
#define PSYNC_KEY_TRUNCATE		2

/* Events that are retried at once, and how few are left when more are fetched. */
#define PSYNC_RETRIED_MAX		1000
#define PSYNC_RETRIED_MIN		500

/* No more events are made anew at a stretch after this time. */
#define PSYNC_REMAKE_MS			20

static inline uint64
table_key(uint64 relid, int kind)
{
	uint64		hash = hash_combine64(relid, kind);

	return hash != 0 ? hash : 1;
}

/* ------------------------------------------------------------ who waits */

bool
psync_parked_blocks(const PsyncMessages *messages, int nkeys, const uint64 *keys,
					uint64 relid, bool truncate)
{
	PsyncKeyTable *table = unconstify(PsyncKeyTable *, &messages->parked_keys);

	if (messages->settings.ordering != PSYNC_ORDER_KEY)
		return false;
	for (int i = 0; i < nkeys; i++)
		if (psync_keys_find(table, keys[i]) != NULL)
			return true;
	return psync_keys_find(table, table_key(relid, PSYNC_KEY_TRUNCATE)) != NULL ||
		(truncate &&
		 psync_keys_find(table, table_key(relid, PSYNC_KEY_ROW)) != NULL);
}

/* A key that nobody is parked with is not in the table. */
static void
count_key(PsyncKeyTable *table, uint64 key, int delta)
{
	uint64	   *count = psync_keys_enter(table, key);

	Assert(delta > 0 || *count > 0);
	*count += delta;
	if (*count == 0)
		psync_keys_remove(table, key);
}

/*
 * Likewise for all keys and tables of a parked message.  Rows and truncations
 * of a table are counted apart: rows do not hold up each other.
 */
static void
count_keys(PsyncKeyTable *table, const PsyncParked *parked, int delta)
{
	for (int i = 0; i < parked->nkeys; i++)
		count_key(table, parked->keys[i], delta);
	for (int i = 0; i < parked->nrelids; i++)
		count_key(table, table_key(parked->relids[i],
								   parked->truncate ? PSYNC_KEY_TRUNCATE : PSYNC_KEY_ROW),
				  delta);
}

/* Must it wait for one of those counted in "earlier"? */
static bool
waits_for(PsyncKeyTable *earlier, const PsyncParked *parked)
{
	for (int i = 0; i < parked->nkeys; i++)
		if (psync_keys_find(earlier, parked->keys[i]) != NULL)
			return true;
	for (int i = 0; i < parked->nrelids; i++)
	{
		if (psync_keys_find(earlier, table_key(parked->relids[i], PSYNC_KEY_TRUNCATE)) != NULL)
			return true;
		if (parked->truncate &&
			psync_keys_find(earlier, table_key(parked->relids[i], PSYNC_KEY_ROW)) != NULL)
			return true;
	}
	return false;
}

/* ---------------------------------------------------------- in and out */

/* At the end: they are in the order of their rows. */
static void
parked_enter(PsyncMessages *messages, PsyncParked *parked)
{
	dlist_push_tail(&messages->parked, &parked->node);
	messages->nparked += parked->nevents;
	messages->nheld += parked->held ? parked->nevents : 0;
	count_keys(&messages->parked_keys, parked, 1);
	messages->parked_next = 0;
}

/* Gone from memory; its row, if it has one, is the caller's affair. */
static void
parked_remove(PsyncMessages *messages, PsyncParked *parked)
{
	Assert(parked->nevents > 0);

	dlist_delete(&parked->node);
	messages->nparked -= parked->nevents;
	messages->nheld -= parked->held ? parked->nevents : 0;
	count_keys(&messages->parked_keys, parked, -1);
	messages->parked_next = 0;
	Assert(messages->nparked >= 0);
	pfree(parked->keys);
	pfree(parked->relids);
	pfree(parked);
}

/* Something to be written with the next save, in this order. */
static PsyncRowChange *
add_change(PsyncMessages *messages, PsyncRowOp op, PsyncParked *parked)
{
	PsyncRowChange *change = MemoryContextAllocZero(messages->context,
													sizeof(PsyncRowChange));

	change->op = op;
	change->parked = parked;
	change->id = parked != NULL ? parked->id : 0;
	dlist_push_tail(&messages->changes, &change->node);
	messages->nchanges++;
	if (messages->unsaved_since == 0)
		messages->unsaved_since = GetCurrentTimestamp();
	return change;
}

static void
drop_change(PsyncMessages *messages, PsyncRowChange *change)
{
	dlist_delete(&change->node);
	messages->nchanges--;
	pfree(change);
}

/* The insertion of a parked message that has no row yet. */
static PsyncRowChange *
unsaved_insertion(PsyncMessages *messages, const PsyncParked *parked)
{
	dlist_iter	iter;

	Assert(parked->id == 0);
	dlist_foreach(iter, &messages->changes)
	{
		PsyncRowChange *change = dlist_container(PsyncRowChange, node, iter.cur);

		if (change->op == PSYNC_ROW_PARK && change->parked == parked)
			return change;
	}
	Assert(false);
	return NULL;
}

/* Keys and tables of a message's places, each table once. */
void
psync_parked_gather(PsyncMessages *messages, PsyncOutgoing *message,
					PsyncParked *parked)
{
	parked->keys = MemoryContextAlloc(messages->context,
									  2 * message->m.nevents * sizeof(uint64));
	parked->relids = MemoryContextAlloc(messages->context,
										message->m.nevents * sizeof(Oid));
	for (int i = 0; i < message->m.nevents; i++)
	{
		PsyncPlace *place = PSYNC_PLACE(&messages->line, message->places[i]);
		Oid			relid = message->events[i]->table->table->relid;
		bool		known = false;

		for (int k = 0; k < place->nkeys; k++)
			parked->keys[parked->nkeys++] = place->keys[k];
		for (int k = 0; k < parked->nrelids; k++)
			known |= parked->relids[k] == relid;
		if (!known)
			parked->relids[parked->nrelids++] = relid;
		parked->truncate |= message->events[i]->op == PSYNC_TRUNCATE;
	}
}

/* Park a message of the line; false if there is no room for it. */
bool
psync_park(PsyncMessages *messages, PsyncOutgoing *message)
{
	PsyncParked *parked;

	Assert(message->parked == NULL && message->places != NULL);
	Assert(messages->settings.ordering != PSYNC_ORDER_STRICT);
	if (messages->nparked + message->m.nevents > messages->settings.parked_max)
		return false;

	parked = MemoryContextAllocZero(messages->context, sizeof(PsyncParked));
	parked->nevents = message->m.nevents;
	parked->failures = message->failures;
	parked->message = message;
	psync_parked_gather(messages, message, parked);
	if (message->state == PSYNC_OUT_FAILED)
	{
		dlist_delete(&message->node);
		messages->nfailed--;
		message->state = PSYNC_OUT_IDLE;
		parked->next_at = message->next_at;
	}
	if (message->state == PSYNC_OUT_FLYING)
		messages->parked_flying++;
	message->parked = parked;
	parked_enter(messages, parked);
	add_change(messages, PSYNC_ROW_PARK, parked)->message = message;
	return true;
}

/* Park an event that follows a parked one of its key; false: no room. */
bool
psync_park_place(PsyncMessages *messages, uint64 n)
{
	if (messages->nparked >= messages->settings.parked_max)
		return false;
	PSYNC_PLACE(&messages->line, n)->state = PSYNC_PLACE_TAKEN;
	return psync_park(messages, psync_outgoing_make(messages, &n, 1));
}

/*
 * Has the message been tried long or often enough, while the target took
 * others?  Only then is it the message's fault.
 */
static bool
is_overdue(const PsyncMessages *messages, const PsyncOutgoing *message,
		   TimestampTz now)
{
	return message->parked == NULL &&
		messages->last_success > message->created &&
		(message->failures >= PSYNC_PARK_FAILURES ||
		 now >= TimestampTzPlusMilliseconds(message->created, PSYNC_PARK_MS));
}

/*
 * Park those that take long while the target answers others: failing ones,
 * and those whose answer does not come.
 */
void
psync_park_overdue(PsyncMessages *messages, TimestampTz now)
{
	dlist_mutable_iter iter;

	if (messages->settings.ordering == PSYNC_ORDER_STRICT ||
		messages->breaker != PSYNC_BREAKER_CLOSED)
		return;
	dlist_foreach_modify(iter, &messages->failed)
	{
		PsyncOutgoing *message = dlist_container(PsyncOutgoing, node, iter.cur);

		if ((is_overdue(messages, message, now) ||
			 psync_line_waits_for_parked(messages, message)) &&
			!psync_line_waits_for_part(messages, message))
			(void) psync_park(messages, message);
	}
	for (int i = 0; i < messages->nslots; i++)
	{
		PsyncOutgoing *message = messages->slots[i].message;

		if (message != NULL && is_overdue(messages, message, now))
			(void) psync_park(messages, message);
	}
}

/* ----------------------------------------------------------- outcomes */

/* Make a dead letter of a message of the line. */
void
psync_bury(PsyncMessages *messages, PsyncOutgoing *message,
		   const PsyncAnswer *answer)
{
	PsyncRowChange *change = add_change(messages, PSYNC_ROW_BURY, NULL);

	Assert(message->parked == NULL && message->state == PSYNC_OUT_IDLE);
	change->message = message;
	change->answer = *answer;
	change->failures = message->failures + 1;
}

/*
 * Give up a message's places.  If it is still under way its bytes must stay
 * where they are, which is in the events.
 */
static void
settle_places(PsyncMessages *messages, PsyncOutgoing *message, PsyncFate fate)
{
	uint64	   *places = message->places;

	message->places = NULL;
	message->keeps_events = message->state == PSYNC_OUT_FLYING;
	for (int i = 0; i < message->m.nevents; i++)
	{
		PSYNC_PLACE(&messages->line, places[i])->event_kept = message->keeps_events;
		psync_line_settle(messages, places[i], fate);
	}
}

/* A parked message has arrived after all: those behind it may go on. */
void
psync_parked_delivered(PsyncMessages *messages, PsyncOutgoing *message)
{
	PsyncParked *parked = message->parked;

	if (parked->id == 0)
	{
		/* it has no row yet, and needs none any more */
		drop_change(messages, unsaved_insertion(messages, parked));
		settle_places(messages, message, PSYNC_FATE_DELIVERED);
	}
	else
		add_change(messages, PSYNC_ROW_DELETE, parked)->parked = NULL;
	parked_remove(messages, parked);
	psync_outgoing_free(message);
	psync_line_recheck(messages);
}

/* Made anew, it is no event any more. */
void
psync_parked_left_out(PsyncMessages *messages, PsyncParked *parked)
{
	Assert(parked->id != 0 && parked->message == NULL);
	add_change(messages, PSYNC_ROW_LEAVE_OUT, parked)->parked = NULL;
	parked_remove(messages, parked);
	psync_line_recheck(messages);
}

/* The body is not kept; unless there is no row to read it from. */
static void
forget_body(PsyncParked *parked)
{
	if (parked->id == 0 || parked->message == NULL)
		return;
	psync_outgoing_free(parked->message);
	parked->message = NULL;
}

/*
 * The attempt says nothing about the message: it is as it was, and due at
 * once.  If its body stayed, it would be taken to be under way for ever.
 */
void
psync_parked_again(PsyncMessages *messages, PsyncOutgoing *message, TimestampTz now)
{
	PsyncParked *parked = message->parked;

	Assert(message->state == PSYNC_OUT_IDLE && parked->message == message);
	parked->again = message->again;
	parked->next_at = now;
	messages->parked_next = 0;
	forget_body(parked);
	Assert(parked->id == 0 || parked->message == NULL);
}

/* It waits longer each time; its body is read again when it is due. */
void
psync_parked_failed(PsyncMessages *messages, PsyncParked *parked,
					const PsyncAnswer *answer)
{
	int64		delay;

	parked->failures++;
	parked->again = 0;
	messages->stats.retries++;
	delay = psync_retry_delay(&messages->settings, parked->failures,
							  answer->retry_after_ms);
	parked->next_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), delay);
	messages->parked_next = 0;
	if (parked->id != 0)
		add_change(messages, PSYNC_ROW_UPDATE, parked)->answer = *answer;
	else
		unsaved_insertion(messages, parked)->answer = *answer;
	forget_body(parked);
}

static void
hold_keys(PsyncMessages *messages, PsyncParked *parked)
{
	Assert(!parked->held);
	parked->held = true;
	messages->nheld += parked->nevents;
}

/* Refused for good: it holds its keys, or is a dead letter. */
void
psync_parked_refused(PsyncMessages *messages, PsyncParked *parked,
					 const PsyncAnswer *answer)
{
	bool		hold = messages->settings.hold_refused;
	PsyncRowChange *change;

	parked->failures++;
	if (parked->nevents > 1)
	{
		/* as in the line: halves are tried, once there is a row to be split */
		if (parked->id == 0)
			unsaved_insertion(messages, parked)->answer = *answer;
		parked->split = true;
		parked->next_at = GetCurrentTimestamp();
		messages->parked_next = 0;
		forget_body(parked);
		return;
	}
	messages->stats.refused += parked->nevents;
	if (parked->id == 0)
	{
		change = unsaved_insertion(messages, parked);
		change->answer = *answer;
		if (hold)
		{
			hold_keys(messages, parked);
			return;
		}
		change->op = PSYNC_ROW_BURY;
		change->parked = NULL;
		change->failures = parked->failures;
		parked->message->parked = NULL;
	}
	else
	{
		change = add_change(messages, hold ? PSYNC_ROW_HOLD : PSYNC_ROW_KILL, parked);
		change->answer = *answer;
		change->failures = parked->failures;
		forget_body(parked);
		if (hold)
		{
			hold_keys(messages, parked);
			return;
		}
		change->parked = NULL;
	}
	parked_remove(messages, parked);
	psync_line_recheck(messages);
}

/* ------------------------------------------------------------- the table */

static const char list_command[] =
	"SELECT id, state = 'held', truncate, events, keys, relids, failures, next_at"
	" , COALESCE(origin, id), part FROM payment_sync.unsettled"
	" WHERE sync = $1 AND state IN ('parked', 'held')"
	" ORDER BY COALESCE(origin, id), part";

/*
 * The next portion.  One that somebody is about to discard is left alone, not
 * waited for.
 */
static const char promote_command[] =
	"UPDATE payment_sync.unsettled SET state = 'parked', next_at = clock_timestamp()"
	" WHERE id IN (SELECT id FROM payment_sync.unsettled"
	"  WHERE sync = $1 AND state = 'asked' ORDER BY id"
	"  LIMIT GREATEST(0, $2 - (SELECT count(*) FROM payment_sync.unsettled"
	"   WHERE sync = $1 AND state = 'parked')) FOR UPDATE SKIP LOCKED)";

static const char asked_command[] =
	"SELECT FROM payment_sync.unsettled WHERE sync = $1 AND state = 'asked' LIMIT 1";

static const char read_command[] =
	"SELECT event_id, events, type, schema, \"table\", operation, key,"
	" content_type, attributes, body, change FROM payment_sync.unsettled"
	" WHERE id = $1 AND state = 'parked'";

/* That transaction has committed: their places are settled. */
void
psync_row_changes_done(PsyncMessages *messages)
{
	/* settling may park others, which come behind these */
	for (int n = messages->nchanges; n > 0; n--)
	{
		PsyncRowChange *change = dlist_container(PsyncRowChange, node,
												 dlist_pop_head_node(&messages->changes));
		PsyncOutgoing *message = change->message;

		messages->nchanges--;
		if (message != NULL)
		{
			settle_places(messages, message, PSYNC_FATE_RECORDED);
			if (change->op == PSYNC_ROW_BURY)
				psync_outgoing_free(message);
			else
			{
				change->parked->id = change->parked->origin = change->id;
				messages->parked_next = 0;
				if (message->state == PSYNC_OUT_IDLE)
					forget_body(change->parked);
			}
		}
		else if (change->op == PSYNC_ROW_SPLIT)
			messages->looks = messages->delivery->looks - 1;	/* read them anew */
		pfree(change);
	}
}

/* ---------------------------------------------------------------- reading */

static uint64 *
read_keys(MemoryContext context, Datum value, int *n)
{
	ArrayType  *array = DatumGetArrayTypeP(value);
	uint64	   *keys;

	*n = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	keys = MemoryContextAlloc(context, Max(*n, 1) * sizeof(uint64));
	memcpy(keys, ARR_DATA_PTR(array), *n * sizeof(uint64));
	return keys;
}

static Oid *
read_relids(MemoryContext context, Datum value, int *n)
{
	ArrayType  *array = DatumGetArrayTypeP(value);
	Oid		   *relids;

	*n = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	relids = MemoryContextAlloc(context, Max(*n, 1) * sizeof(Oid));
	memcpy(relids, ARR_DATA_PTR(array), *n * sizeof(Oid));
	return relids;
}

/* What is kept in memory of it: all but its body.  In "context". */
static PsyncParked *
parked_from_row(MemoryContext context, HeapTuple row, TupleDesc desc)
{
	PsyncParked *parked = MemoryContextAllocZero(context, sizeof(PsyncParked));
	bool		isnull;
	Datum		value;

	parked->id = DatumGetInt64(SPI_getbinval(row, desc, 1, &isnull));
	parked->held = DatumGetBool(SPI_getbinval(row, desc, 2, &isnull));
	parked->truncate = DatumGetBool(SPI_getbinval(row, desc, 3, &isnull));
	parked->nevents = DatumGetInt32(SPI_getbinval(row, desc, 4, &isnull));
	parked->keys = read_keys(context, SPI_getbinval(row, desc, 5, &isnull),
							 &parked->nkeys);
	parked->relids = read_relids(context, SPI_getbinval(row, desc, 6, &isnull),
								 &parked->nrelids);
	parked->failures = DatumGetInt32(SPI_getbinval(row, desc, 7, &isnull));
	value = SPI_getbinval(row, desc, 8, &isnull);
	parked->next_at = isnull ? 0 : DatumGetTimestampTz(value);
	parked->origin = DatumGetInt64(SPI_getbinval(row, desc, 9, &isnull));
	parked->part = DatumGetInt32(SPI_getbinval(row, desc, 10, &isnull));
	return parked;
}

/* The order of their rows: halves are where the whole was. */
static bool
comes_before(const PsyncParked *a, const PsyncParked *b)
{
	Assert(a->id != 0 && b->id != 0);
	return a->origin < b->origin || (a->origin == b->origin && a->part < b->part);
}

/* Park the next portion of those that are to be retried. */
static void
promote_asked(PsyncMessages *messages)
{
	Oid			types[2] = {UUIDOID, INT4OID};
	Datum		values[2];

	values[0] = UUIDPGetDatum(&messages->delivery->sync->id);
	values[1] = Int32GetDatum(PSYNC_RETRIED_MAX);
	messages->asked = psync_owner_execute(asked_command, 1, types, values, NULL) > 0;
	SPI_finish();
	if (!messages->asked)
		return;
	(void) psync_owner_execute(promote_command, 2, types, values, NULL);
	SPI_finish();
}

/* Is it time for the next portion? */
bool
psync_parked_wanted(const PsyncMessages *messages)
{
	return messages->asked &&
		messages->nparked - messages->nheld < PSYNC_RETRIED_MIN;
}

/*
 * Read anew who is parked, after someone has retried or discarded some.
 * Nothing unsaved may be left.  Those under way are kept as they are.
 */
void
psync_parked_load(PsyncMessages *messages)
{
	Oid			types[1] = {UUIDOID};
	Datum		values[1] = {UUIDPGetDatum(&messages->delivery->sync->id)};
	dlist_head	flying;
	dlist_mutable_iter iter;

	Assert(messages->nchanges == 0);
	dlist_init(&flying);
	dlist_foreach_modify(iter, &messages->parked)
	{
		PsyncParked *parked = dlist_container(PsyncParked, node, iter.cur);

		if (parked->message != NULL)
		{
			dlist_delete(&parked->node);
			dlist_push_tail(&flying, &parked->node);
		}
		else
			parked_remove(messages, parked);
	}
	messages->ndue = messages->next_due = 0;
	promote_asked(messages);
	(void) psync_owner_execute(list_command, 1, types, values, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		PsyncParked *parked = parked_from_row(messages->context, SPI_tuptable->vals[i],
											  SPI_tuptable->tupdesc);

		/* both lists are in the same order */
		while (!dlist_is_empty(&flying) &&
			   comes_before(dlist_head_element(PsyncParked, node, &flying), parked))
			dlist_push_tail(&messages->parked, dlist_pop_head_node(&flying));
		if (!dlist_is_empty(&flying) &&
			dlist_head_element(PsyncParked, node, &flying)->id == parked->id)
		{
			dlist_push_tail(&messages->parked, dlist_pop_head_node(&flying));
			pfree(parked->keys);
			pfree(parked->relids);
			pfree(parked);
			continue;
		}
		parked_enter(messages, parked);
	}
	SPI_finish();
	while (!dlist_is_empty(&flying))
		dlist_push_tail(&messages->parked, dlist_pop_head_node(&flying));
	messages->parked_next = 0;
	psync_line_recheck(messages);
}

static const char *
column_utf8(HeapTuple row, TupleDesc desc, int n)
{
	char	   *value = SPI_getvalue(row, desc, n);

	return value == NULL ? "" : pg_server_to_any(value, strlen(value), PG_UTF8);
}

/* The inverse of attribute_array(). */
static void
read_attributes(PsyncMessage *m, Datum value)
{
	Datum	   *elems;
	bool	   *nulls;
	int			n;
	PsyncAttribute *attributes;

	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false, TYPALIGN_INT,
					  &elems, &nulls, &n);
	attributes = palloc(Max(n / 2, 1) * sizeof(PsyncAttribute));
	for (int i = 0; i + 1 < n; i += 2)
	{
		char	   *name = TextDatumGetCString(elems[i]);
		char	   *value_text = TextDatumGetCString(elems[i + 1]);

		attributes[i / 2].name = pg_server_to_any(name, strlen(name), PG_UTF8);
		attributes[i / 2].value = pg_server_to_any(value_text, strlen(value_text),
														PG_UTF8);
	}
	m->attributes = attributes;
	m->nattributes = n / 2;
}

/*
 * A message as it was when it was parked, body and all.  In the current
 * context; the result outlives SPI.
 */
static PsyncOutgoing *
outgoing_from_row(HeapTuple row, TupleDesc desc)
{
	PsyncOutgoing *message = palloc0(sizeof(PsyncOutgoing));
	bool		isnull;
	bytea	   *body;

	message->context = CurrentMemoryContext;
	message->state = PSYNC_OUT_IDLE;
	message->created = GetCurrentTimestamp();
	message->m.id = column_utf8(row, desc, 1);
	message->m.nevents = DatumGetInt32(SPI_getbinval(row, desc, 2, &isnull));
	message->m.type = column_utf8(row, desc, 3);
	message->m.schema = column_utf8(row, desc, 4);
	message->m.table = column_utf8(row, desc, 5);
	message->m.operation = column_utf8(row, desc, 6);
	message->m.key = column_utf8(row, desc, 7);
	message->m.content_type = column_utf8(row, desc, 8);
	read_attributes(&message->m, SPI_getbinval(row, desc, 9, &isnull));
	body = DatumGetByteaPCopy(SPI_getbinval(row, desc, 10, &isnull));
	message->m.body = VARDATA(body);
	message->m.size = VARSIZE(body) - VARHDRSZ;
	return message;
}

/*
 * The message of a row, in a context of its own.  NULL if the row is gone; or,
 * with *packed set, if it holds a change of which an event is to be made.
 */
static PsyncOutgoing *
read_message(PsyncMessages *messages, PsyncParked *parked, bytea **packed)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(parked->id)};
	PsyncOutgoing *message = NULL;

	*packed = NULL;
	if (psync_owner_execute(read_command, 1, types, values, NULL) > 0)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		bool		isnull;
		Datum		change = SPI_getbinval(row, SPI_tuptable->tupdesc, 11, &isnull);

		if (isnull)
		{
			MemoryContext context = AllocSetContextCreate(messages->context,
														  "payment_sync message",
														  ALLOCSET_SMALL_SIZES);

			MemoryContextSwitchTo(context);
			message = outgoing_from_row(row, SPI_tuptable->tupdesc);
		}
		else
		{
			MemoryContextSwitchTo(caller);
			*packed = DatumGetByteaPCopy(change);
		}
	}
	SPI_finish();
	MemoryContextSwitchTo(caller);
	return message;
}

/*
 * Find parked messages that are due, wait for no other and have a row to be
 * read, as many as there is room for.  None of them waits for another, so they
 * stay due whatever becomes of the others.  If there is none, parked_next says
 * when to ask again.
 */
static void
look_for_due(PsyncMessages *messages, TimestampTz now)
{
	PsyncKeyTable earlier;
	dlist_iter	iter;

	psync_keys_init(&earlier, 1024);
	messages->ndue = messages->next_due = 0;
	messages->parked_next = DT_NOEND;
	dlist_foreach(iter, &messages->parked)
	{
		PsyncParked *parked = dlist_container(PsyncParked, node, iter.cur);
		bool		waits = messages->settings.ordering == PSYNC_ORDER_KEY &&
			waits_for(&earlier, parked);

		if (!waits && !parked->held && !parked->splitting && parked->id != 0 &&
			parked->message == NULL)
		{
			if (parked->next_at <= now)
				messages->due[messages->ndue++] = parked;
			else
				messages->parked_next = Min(messages->parked_next, parked->next_at);
			if (messages->ndue == PSYNC_DUE_MAX)
				break;
		}
		count_keys(&earlier, parked, 1);
	}
	if (messages->ndue > 0)
		messages->parked_next = 0;
	pfree(earlier.keys);
	pfree(earlier.values);
}

/* The next of them, NULL if there is none. */
static PsyncParked *
find_due(PsyncMessages *messages, TimestampTz now)
{
	if (messages->next_due == messages->ndue)
		look_for_due(messages, now);
	return messages->next_due < messages->ndue ?
		messages->due[messages->next_due++] : NULL;
}

/*
 * A parked message that is to be tried again now, read from its row; NULL if
 * there is none.  Parked ones get a quarter of the slots, so that what fails
 * does not keep what is new from being sent (P7).  While the breaker is open
 * the caller asks only if nothing of the line can be the probe.
 */
PsyncOutgoing *
psync_parked_due(PsyncMessages *messages, TimestampTz now)
{
	PsyncParked *parked;

	/* parked ones must not take all slots while new ones wait */
	Assert(messages->breaker != PSYNC_BREAKER_PROBING);
	if (messages->nparked == 0 || now < messages->parked_next ||
		messages->parked_flying >= Max(messages->nslots / 4, 1))
		return NULL;
	while ((parked = find_due(messages, now)) != NULL)
	{
		PsyncOutgoing *message;
		bytea	   *packed;

		if (parked->split)
		{
			add_change(messages, PSYNC_ROW_SPLIT, parked);
			parked->splitting = true;
			continue;
		}
		message = read_message(messages, parked, &packed);
		if (packed != NULL)
		{
			message = psync_unmade_remake(messages, parked, packed);
			pfree(packed);
		}
		else if (message == NULL)
		{
			/* discarded meanwhile */
			parked_remove(messages, parked);
			psync_line_recheck(messages);
		}
		if (message != NULL)
		{
			message->m.attempt = parked->failures;
			message->again = parked->again;
			message->parked = parked;
			parked->message = message;
			return message;
		}
		/* trying what cannot be made may take its time */
		if (TimestampDifferenceExceeds(now, GetCurrentTimestamp(), PSYNC_REMAKE_MS))
			return NULL;
	}
	return NULL;
}
