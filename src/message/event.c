/*
 * event.c
 *		Events of changes, in the formats that targets understand.
 *
 * An event's id is made of the log's identity, the transaction and the
 * position, so that whoever sends it again gives it the same one (P6).  An
 * event of a batch's row is named after its key and the snapshot under which
 * it was read.  Ids hold no dot, which webhook signatures use as separator.
 *
 * Positions are written with 20 digits, zero-padded: they sort as text.  For
 * one key a later event has a greater position.  A batch's row bears a
 * position before any change that the batch did not see (or 0, if a
 * transaction older than this delivery was under way): a receiver that
 * remembers the last position of each key overwrites nothing newer with it.
 *
 * What the events of a shape have in common is written once.
 */
#include "postgres.h"

#include "decode/value.h"
#include "common/hashfn.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "compat.h"
#include "decode/jsonb.h"
#include "message/message.h"

/* Keys whose last positions are remembered; 16 bytes each. */
#define PSYNC_PREVIOUS_SIZE	16384

/* A buffer of an event larger than this is not kept. */
#define PSYNC_BUFFER_KEPT	(256 * 1024)

/* Key of PsyncEventWriter.tables: PsyncEventTable's first two members. */
#define TABLE_KEY_SIZE		(offsetof(PsyncEventTable, truncate) + sizeof(bool))

int			psync_transform_timeout = 5000;

static const PsyncOperation operations[] = {
	PSYNC_INSERT, PSYNC_UPDATE, PSYNC_DELETE, PSYNC_TRUNCATE, PSYNC_READ
};

/*
 * The operations, numbered, for tables of what is written once per operation.
 */
int
psync_op_index(PsyncOperation op)
{
	for (int i = 0; i < lengthof(operations); i++)
		if (operations[i] == op)
			return i;
	Assert(false);
	return 0;
}

/* ---------------------------------------------------------- what is shared */

/*
 * What goes to targets is UTF-8, whatever the database's encoding is.  In the
 * current memory context.
 */
static char *
utf8(const char *text)
{
	StringInfoData buf;

	initStringInfo(&buf);
	psync_json_plain_utf8(&buf, text);
	appendStringInfoChar(&buf, '\0');
	return buf.data;
}

/*
 * The text as a JSON string, quotes included.
 */
static char *
json_of(const char *text_utf8)
{
	StringInfoData buf;

	initStringInfo(&buf);
	psync_json_utf8(&buf, text_utf8, strlen(text_utf8));
	appendStringInfoChar(&buf, '\0');
	return buf.data;
}

/*
 * What an event says of its table and operation, ready to be copied: the same
 * for millions of them.
 */
static void
name_operations(PsyncEventTable *table)
{
	for (int i = 0; i < lengthof(operations); i++)
	{
		const char *operation = psync_operation_name(operations[i]);

		table->types[i] = psync_event_is_ping(table->table) ?
			psprintf("%s.%s", table->schema, table->name) :
			psprintf("%s.%s", table->name, operation);
		table->names[i] = psprintf("\"type\":%s,\"schema\":%s,\"table\":%s,\"operation\":\"%s\"",
								   json_of(table->types[i]), json_of(table->schema),
								   json_of(table->name), operation);
	}
}

/*
 * What the events of the change's shape have in common, made when the first
 * one is met.  Lasts as long as the writer, as the shape does.
 */
static PsyncEventTable *
get_table(PsyncEventWriter *writer, const PsyncChange *change)
{
	PsyncEventTable key = {0};
	PsyncEventTable *table;
	MemoryContext old;
	bool		found;

	Assert(change->table != NULL);

	key.truncate = change->op == PSYNC_TRUNCATE;
	key.id = key.truncate ? change->table->relid : change->shape->id;
	table = hash_search(writer->tables, &key, HASH_FIND, NULL);
	if (table != NULL)
		return table;

	/* complete before it is entered: an error must leave no half of it */
	old = MemoryContextSwitchTo(writer->context);
	key.table = change->table;
	key.schema = utf8(change->table->source_schema);
	key.name = utf8(change->table->source_name);
	name_operations(&key);
	if (!key.truncate)
	{
		key.json = psync_json_shape(change->shape, &writer->settings->json);
		for (int i = 0; i < change->shape->ncolumns; i++)
			key.runs_user_code |=
				psync_value_runs_user_code(&change->shape->columns[i]);
	}
	MemoryContextSwitchTo(old);
	table = hash_search(writer->tables, &key, HASH_ENTER, &found);
	Assert(!found);
	*table = key;
	return table;
}

/*
 * By shape, or by table for truncations, which have none.
 */
static HTAB *
make_tables(MemoryContext context)
{
	HASHCTL		ctl = {0};

	ctl.keysize = TABLE_KEY_SIZE;
	ctl.entrysize = sizeof(PsyncEventTable);
	ctl.hcxt = context;
	return hash_create("payment_sync event tables", 32, &ctl,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* Made in the current memory context, in which it lasts. */
PsyncEventWriter *
psync_event_writer(const PsyncTarget *target, const PsyncMessageSettings *settings,
				   const char *transform, Oid owner)
{
	PsyncEventWriter *writer = palloc0(sizeof(PsyncEventWriter));
	int			n = 0;

	writer->context = CurrentMemoryContext;
	writer->value_context = AllocSetContextCreate(CurrentMemoryContext,
												  "payment_sync event values",
												  ALLOCSET_DEFAULT_SIZES);
	writer->settings = settings;
	writer->target = target;
	if (transform != NULL)
		writer->transform = psync_transform_create(transform, owner);
	for (const char *at = target->log_id; *at != '\0' && n < 32; at++)
		if (*at != '-')
			writer->log_id[n++] = *at;
	writer->tables = make_tables(CurrentMemoryContext);
	writer->source_json = json_of(settings->source);
	writer->database_json = json_of(utf8(get_database_name(MyDatabaseId)));
	writer->previous_keys = palloc0(PSYNC_PREVIOUS_SIZE * sizeof(uint64));
	writer->previous_positions = palloc0(PSYNC_PREVIOUS_SIZE * sizeof(uint64));
	initStringInfo(&writer->id);
	initStringInfo(&writer->key);
	initStringInfo(&writer->text);
	initStringInfo(&writer->envelope);
	initStringInfo(&writer->data);
	return writer;
}

/* ------------------------------------------------------------------ keys */

/*
 * A hash of the key's bytes and of the table, never 0. Two keys that share one
 * merely stay in order with each other; ids of a batch's rows are made of two
 * with different seeds.
 */
static uint64
hash_key(const PsyncJsonShape *json, Oid relid, bool old, uint64 seed)
{
	uint64		hash = hash_combine64(seed, relid);

	for (int i = 0; i < json->shape->nkeys; i++)
	{
		const PsyncField *field = psync_json_key_field(json, i, old);

		if (field == NULL)
			psync_corrupt_image();
		hash = hash_bytes_extended((const unsigned char *) field->value,
								   Max(field->size, 0), hash + 1);
	}
	return hash != 0 ? hash : 1;
}

/*
 * Which events must stay in order with this one: those of its key, and of the
 * key that the row had before.
 */
static void
find_keys(const PsyncEventTable *table, const PsyncChange *change,
		  PsyncEventKeys *keys)
{
	keys->n = 0;
	if (table->truncate)
		return;
	keys->keys[keys->n++] = hash_key(table->json, table->table->relid, false, 0);
	if (change->key_changed)
	{
		uint64		before = hash_key(table->json, table->table->relid, true, 0);

		if (before != keys->keys[0])
			keys->keys[keys->n++] = before;
	}
}

/*
 * The position of the previous event of the same key, or 0.  A cache: each key
 * has one place, which another key may take.
 */
static uint64
find_previous(const PsyncEventWriter *writer, const PsyncEventKeys *keys)
{
	uint64		previous = 0;

	Assert(keys->n <= 2);

	for (int i = 0; i < keys->n; i++)
	{
		uint32		slot = (uint32) keys->keys[i] & (PSYNC_PREVIOUS_SIZE - 1);

		if (writer->previous_keys[slot] == keys->keys[i])
			previous = Max(previous, writer->previous_positions[slot]);
	}
	return previous;
}

/*
 * It is the next one's previous event.  One that a transform leaves out is
 * not: a receiver would miss it.
 */
static void
remember_position(PsyncEventWriter *writer, const PsyncEventKeys *keys,
				  uint64 position)
{
	Assert(position > 0);

	for (int i = 0; i < keys->n; i++)
	{
		uint32		slot = (uint32) keys->keys[i] & (PSYNC_PREVIOUS_SIZE - 1);

		writer->previous_keys[slot] = keys->keys[i];
		writer->previous_positions[slot] = position;
	}
}

/* ----------------------------------------------------------------- members */

/*
 * Without leading zeros: ids are compared, not sorted.
 */
static void
put_hex(StringInfo out, uint64 value)
{
	char		buf[17];

	psync_json_put(out, buf, snprintf(buf, sizeof(buf), "%llx",
									  (unsigned long long) value));
}

/*
 * With 20 digits, so that positions sort as text.
 */
void
psync_event_put_position(StringInfo out, uint64 position)
{
	char	   *at = psync_json_room(out, 20);

	for (int i = 19; i >= 0; i--)
	{
		at[i] = '0' + position % 10;
		position /= 10;
	}
	out->len += 20;
}

/*
 * Faster than a format, of which there would be several per event.
 */
static void
put_decimal(StringInfo out, uint64 value)
{
	char		digits[20];
	int			n = sizeof(digits);

	do
	{
		digits[--n] = '0' + value % 10;
		value /= 10;
	} while (value > 0);
	psync_json_put(out, digits + n, sizeof(digits) - n);
}

/*
 * A text that needs no escaping, or has it.
 */
static void
put_text(StringInfo out, const char *text)
{
	psync_json_put(out, text, strlen(text));
}

/*
 * The event's id (P6); see the header comment.  Into writer->id.
 */
static void
make_id(PsyncEventWriter *writer, const PsyncEventTable *table,
		const PsyncChange *change, const PsyncEventKeys *keys)
{
	StringInfo	id = &writer->id;

	Assert(change->op != PSYNC_READ || keys->n > 0);

	resetStringInfo(id);
	put_text(id, writer->log_id);
	psync_json_literal(id, "_");
	if (psync_event_is_ping(change->table))
	{
		psync_json_literal(id, "ping_");
		put_hex(id, change->position);
		return;
	}
	if (change->op == PSYNC_READ)
	{
		psync_json_literal(id, "r");
		put_hex(id, keys->keys[0]);
		psync_json_literal(id, "_");
		put_hex(id, hash_key(table->json, table->table->relid, false, PG_UINT32_MAX));
		psync_json_literal(id, "_");
		put_hex(id, change->xid);
		return;
	}
	put_hex(id, change->xid);
	psync_json_literal(id, "_");
	put_hex(id, change->position);
}

/*
 * As the first member, behind which others follow.
 */
static void
put_id(PsyncEventWriter *writer, StringInfo out)
{
	psync_json_literal(out, "\"id\":\"");
	psync_json_put(out, writer->id.data, writer->id.len);
	psync_json_literal(out, "\",");
}

/*
 * The key as an object; of a truncation there is none.
 */
static void
put_key(StringInfo out, const PsyncEventTable *table)
{
	if (table->truncate)
		psync_json_literal(out, "\"key\":null");
	else
	{
		psync_json_literal(out, "\"key\":");
		psync_json_key(out, table->json);
	}
}

/*
 * The new row, or what is kept of the old one; null if there is none.
 */
static void
put_row(StringInfo out, const PsyncEventTable *table, bool old)
{
	if (table->truncate)
		psync_json_literal(out, "null");
	else if (old)
		psync_json_old(out, table->json);
	else
		psync_json_new(out, table->json);
}

/*
 * Both of them.
 */
static void
put_rows(StringInfo out, const PsyncEventTable *table)
{
	psync_json_literal(out, ",\"new\":");
	put_row(out, table, false);
	psync_json_literal(out, ",\"old\":");
	put_row(out, table, true);
}

/*
 * Only if it is known: a receiver that gets none must not conclude that there
 * was none.
 */
static void
put_previous(StringInfo out, const char *name, uint64 previous)
{
	if (previous == 0)
		return;
	put_text(out, name);
	psync_event_put_position(out, previous);
	psync_json_literal(out, "\"");
}

/* ----------------------------------------------------------------- formats */

/*
 * Our own envelope: the most that can be said of a change.  A transform is
 * given this, whatever the format.
 */
static void
put_envelope(PsyncEventWriter *writer, StringInfo out,
			 const PsyncEventTable *table, const PsyncChange *change,
			 uint64 previous)
{
	psync_json_literal(out, "{");
	put_id(writer, out);
	put_text(out, table->names[psync_op_index(change->op)]);
	psync_json_literal(out, ",");
	put_key(out, table);
	put_rows(out, table);
	psync_json_literal(out, ",\"position\":\"");
	psync_event_put_position(out, change->position);
	psync_json_literal(out, "\"");
	put_previous(out, ",\"previous\":\"", previous);
	psync_json_literal(out, ",\"xid\":\"");
	put_decimal(out, change->xid);
	psync_json_literal(out, "\",\"at\":");
	psync_json_timestamp(out, change->at, true);
	psync_json_literal(out, "}");
}

/*
 * That something has changed, and where to look.
 */
static void
put_thin(PsyncEventWriter *writer, StringInfo out, const PsyncEventTable *table,
		 const PsyncChange *change)
{
	psync_json_literal(out, "{");
	put_id(writer, out);
	psync_json_literal(out, "\"type\":");
	psync_json_utf8(out, table->types[psync_op_index(change->op)],
					strlen(table->types[psync_op_index(change->op)]));
	psync_json_literal(out, ",");
	put_key(out, table);
	psync_json_literal(out, "}");
}

/* What CloudEvents calls data: all that is not one of its attributes. */
static void
put_data(PsyncEventWriter *writer, StringInfo out, const PsyncEventTable *table,
		 const PsyncChange *change)
{
	psync_json_literal(out, "{");
	if (writer->settings->thin)
		put_key(out, table);
	else
	{
		/* behind "type", which is an attribute */
		const char *names = table->names[psync_op_index(change->op)];

		put_text(out, strstr(names, "\"schema\":"));
		psync_json_literal(out, ",");
		put_key(out, table);
		put_rows(out, table);
		psync_json_literal(out, ",\"xid\":\"");
		put_decimal(out, change->xid);
		psync_json_literal(out, "\"");
	}
	psync_json_literal(out, "}");
}

/*
 * CloudEvents 1.0, structured: attributes beside the data.
 */
static void
put_cloudevent(PsyncEventWriter *writer, StringInfo out,
			   const PsyncEventTable *table, const PsyncChange *change,
			   uint64 previous)
{
	const char *type = table->types[psync_op_index(change->op)];

	psync_json_literal(out, "{\"specversion\":\"1.0\",");
	put_id(writer, out);
	psync_json_literal(out, "\"source\":");
	put_text(out, writer->source_json);
	psync_json_literal(out, ",\"type\":");
	psync_json_utf8(out, type, strlen(type));
	if (writer->key.len > 0)
	{
		psync_json_literal(out, ",\"subject\":");
		psync_json_utf8(out, writer->key.data, writer->key.len);
	}
	psync_json_literal(out, ",\"time\":");
	psync_json_timestamp(out, change->at, true);
	psync_json_literal(out, ",\"datacontenttype\":\"application/json\",\"sequence\":\"");
	psync_event_put_position(out, change->position);
	psync_json_literal(out, "\"");
	put_previous(out, ",\"previoussequence\":\"", previous);
	psync_json_literal(out, ",\"data\":");
	psync_json_put(out, writer->data.data, writer->data.len);
	psync_json_literal(out, "}");
}

/*
 * Milliseconds since 1970.
 */
static void
put_ms(StringInfo out, TimestampTz at)
{
	int64		ms = at / 1000 +
		(int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY * 1000;

	put_decimal(out, (uint64) Max(ms, 0));
}

/*
 * The envelope of Debezium's connector for PostgreSQL, for consumers that read
 * that.
 */
static void
put_debezium(PsyncEventWriter *writer, StringInfo out,
			 const PsyncEventTable *table, const PsyncChange *change)
{
	static const char letters[] = "cudtr";	/* as psync_op_index() */

	psync_json_literal(out, "{\"before\":");
	put_row(out, table, true);
	psync_json_literal(out, ",\"after\":");
	put_row(out, table, false);
	psync_json_literal(out, ",\"source\":{\"version\":\"" PSYNC_VERSION
					   "\",\"connector\":\"payment_sync\",\"name\":");
	put_text(out, writer->source_json);
	psync_json_literal(out, ",\"ts_ms\":");
	put_ms(out, change->at);
	psync_json_literal(out, ",\"snapshot\":");
	put_text(out, change->op == PSYNC_READ ? "\"true\"" : "\"false\"");
	psync_json_literal(out, ",\"db\":");
	put_text(out, writer->database_json);
	psync_json_literal(out, ",\"schema\":");
	psync_json_utf8(out, table->schema, strlen(table->schema));
	psync_json_literal(out, ",\"table\":");
	psync_json_utf8(out, table->name, strlen(table->name));
	psync_json_literal(out, ",\"txId\":");
	put_decimal(out, change->xid);
	psync_json_literal(out, ",\"lsn\":");
	put_decimal(out, change->position);
	psync_json_literal(out, "},\"op\":\"");
	psync_json_put(out, &letters[psync_op_index(change->op)], 1);
	psync_json_literal(out, "\",\"ts_ms\":");
	put_ms(out, change->at);
	psync_json_literal(out, "}");
}

/*
 * What the transform makes of the event, into "out".  False: it leaves the
 * event out.
 */
static bool
transform(PsyncEventWriter *writer, StringInfo out, const PsyncEventTable *table,
		  const PsyncChange *change, uint64 previous, const char **content_type)
{
	bool		any = writer->settings->format == PSYNC_FORMAT_RAW ||
		writer->settings->format == PSYNC_FORMAT_CLOUDEVENTS_BINARY;

	resetStringInfo(&writer->envelope);
	put_envelope(writer, &writer->envelope, table, change, previous);
	if (!psync_transform_run(writer->transform, writer->envelope.data,
							 writer->envelope.len, out, content_type))
		return false;
	if (!any && strcmp(*content_type, "application/json") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("transform must yield jsonb with this format"),
				 errhint("Text and bytea can be bodies with the formats raw and cloudevents_binary.")));
	return true;
}

/* The event's text in the target's format; false: it is left out. */
static bool
make_text(PsyncEventWriter *writer, const PsyncEventTable *table,
		  const PsyncChange *change, uint64 previous, const char **content_type)
{
	StringInfo	out = &writer->text;
	PsyncFormat format = writer->settings->format;
	bool		cloudevents = format == PSYNC_FORMAT_CLOUDEVENTS ||
		format == PSYNC_FORMAT_CLOUDEVENTS_BATCH ||
		format == PSYNC_FORMAT_CLOUDEVENTS_BINARY;

	resetStringInfo(out);
	*content_type = NULL;
	if (cloudevents)
	{
		resetStringInfo(&writer->data);
		if (writer->transform == NULL)
			put_data(writer, &writer->data, table, change);
		else if (!transform(writer, &writer->data, table, change, previous, content_type))
			return false;
		if (format == PSYNC_FORMAT_CLOUDEVENTS_BINARY)
			psync_json_put(out, writer->data.data, writer->data.len);
		else
			put_cloudevent(writer, out, table, change, previous);
	}
	else if (writer->transform != NULL)
		return transform(writer, out, table, change, previous, content_type);
	else if (format == PSYNC_FORMAT_DEBEZIUM)
		put_debezium(writer, out, table, change);
	else if (writer->settings->thin)
		put_thin(writer, out, table, change);
	else
		put_envelope(writer, out, table, change, previous);
	return true;
}

/* -------------------------------------------------------------- the event */

/*
 * A buffer that has held a huge event is not kept.
 */
static void
shrink(StringInfo buf)
{
	if (buf->maxlen <= PSYNC_BUFFER_KEPT)
		return;
	pfree(buf->data);
	initStringInfo(buf);
}

/*
 * The event in one piece of memory: one allocation per event, freed when it is
 * settled.
 */
static PsyncEvent *
pack(PsyncEventWriter *writer, const PsyncEventTable *table,
	 const PsyncChange *change)
{
	Size		size = offsetof(PsyncEvent, data) + writer->id.len +
		writer->key.len + writer->text.len + 3;
	PsyncEvent *event = MemoryContextAllocHuge(writer->context, size);
	char	   *at = event->data;

	memset(event, 0, offsetof(PsyncEvent, data));
	event->table = table;
	event->op = change->op;
	event->position = change->position;
	event->xid = change->xid;
	event->at = change->at;
	event->id_size = writer->id.len;
	event->key_size = writer->key.len;
	event->text_size = writer->text.len;
	memcpy(at, writer->id.data, writer->id.len);
	at += writer->id.len;
	*at++ = '\0';
	memcpy(at, writer->key.data, writer->key.len);
	at += writer->key.len;
	*at++ = '\0';
	memcpy(at, writer->text.data, writer->text.len);
	at[writer->text.len] = '\0';
	return event;
}

/*
 * While users' code runs, the worker can do nothing else, and hears of nothing.
 * What takes longer than it may has failed, which is that sync's failure (P7).
 */
static void
begin_limit(PsyncTimeLimit *limit, const PsyncEventWriter *writer,
			const PsyncEventTable *table)
{
	if (writer->transform != NULL)
		psync_limit_begin(limit, "transform", psync_transform_timeout,
						  "payment_sync.transform_timeout");
	else
		psync_limit_begin(limit, "functions of user-defined types",
						  table->runs_user_code ? psync_user_code_timeout : 0,
						  "payment_sync.user_code_timeout");
}

/* Nothing of the event at hand is needed any more. */
static void
tidy_up(PsyncEventWriter *writer)
{
	MemoryContext old = MemoryContextSwitchTo(writer->context);

	shrink(&writer->text);
	shrink(&writer->data);
	shrink(&writer->envelope);
	MemoryContextSwitchTo(old);
	MemoryContextReset(writer->value_context);
}

/*
 * The event of a change, in the writer's context, and its keys.  NULL if the
 * transform leaves it out.  "again": the change comes out of its turn, and
 * says nothing about which event was the previous one.
 */
PsyncEvent *
psync_event_make(PsyncEventWriter *writer, const PsyncChange *change,
				 PsyncEventKeys *keys, bool again)
{
	MemoryContext old = MemoryContextSwitchTo(writer->value_context);
	const PsyncEventTable *table = get_table(writer, change);
	bool		chained = writer->settings->previous && change->op != PSYNC_READ && !again;
	PsyncTimeLimit limit;
	const char *content_type;
	uint64		previous = 0;
	PsyncEvent *event = NULL;

	begin_limit(&limit, writer, table);
	resetStringInfo(&writer->key);
	writer->key_made = false;
	if (!table->truncate)
	{
		psync_json_split(table->json, change);
		psync_json_key_text(&writer->key, table->json);
	}
	writer->key_made = true;
	find_keys(table, change, keys);
	if (chained)
		previous = find_previous(writer, keys);
	make_id(writer, table, change, keys);
	if (make_text(writer, table, change, previous, &content_type))
	{
		event = pack(writer, table, change);
		event->previous = previous;
		event->content_type = content_type;
		if (chained)
			remember_position(writer, keys, change->position);
	}
	psync_limit_end(&limit);
	MemoryContextSwitchTo(old);
	tidy_up(writer);
	return event;
}

/*
 * In place of the event that psync_event_make() has just failed to make: with
 * its id, keys and, if that much was made, the text of its key.  Runs nothing
 * that users wrote.
 */
PsyncEvent *
psync_event_unmade(PsyncEventWriter *writer, const PsyncChange *change,
				   PsyncEventKeys *keys, const PsyncFault *fault)
{
	MemoryContext old = MemoryContextSwitchTo(writer->value_context);
	const PsyncEventTable *table = get_table(writer, change);
	PsyncEvent *event;

	if (!writer->key_made)
		resetStringInfo(&writer->key);
	if (!table->truncate)
		psync_json_split(table->json, change);
	find_keys(table, change, keys);
	make_id(writer, table, change, keys);
	resetStringInfo(&writer->text);
	psync_json_put(&writer->text, (const char *) fault, sizeof(*fault));
	psync_change_pack(&writer->text, change);
	event = pack(writer, table, change);
	event->unmade = true;
	MemoryContextSwitchTo(old);
	tidy_up(writer);
	return event;
}
