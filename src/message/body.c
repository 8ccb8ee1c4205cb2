/*
 * body.c
 *		Messages: what is sent at once, frozen.
 *
 * A message is made of one event or several when a slot is free for it, and
 * does not change from then on: each attempt has the same bytes and the same
 * id, so that a receiver can tell a repetition.  The id of several events is
 * made of all their ids.
 *
 * The events' texts stay findable in the body, so that a target which refuses
 * some of them, or the whole, can be served the others in a message of their
 * own.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/memutils.h"

#include "compat.h"
#include "decode/jsonb.h"
#include "message/message.h"

/* What goes around and between the events of a body. */
typedef struct PsyncFrame
{
	const char *content_type;
	const char *before;
	const char *between;
	const char *after;
} PsyncFrame;

/*
 * What goes around the events, and what the whole is called.
 */
static PsyncFrame
frame_of(const PsyncMessageSettings *settings)
{
	PsyncFrame	object = {"application/json", "", "", ""};
	PsyncFrame	array = {"application/json", "[", ",", "]"};
	PsyncFrame	lines = {"application/x-ndjson", "", "\n", "\n"};
	PsyncFrame	event = {"application/cloudevents+json", "", "", ""};
	PsyncFrame	events = {"application/cloudevents-batch+json", "[", ",", "]"};

	switch (settings->format)
	{
		case PSYNC_FORMAT_NDJSON:
			return lines;
		case PSYNC_FORMAT_CLOUDEVENTS:
			return event;
		case PSYNC_FORMAT_CLOUDEVENTS_BATCH:
			return events;
		case PSYNC_FORMAT_JSON:
		case PSYNC_FORMAT_DEBEZIUM:
			return settings->batch_max > 1 ? array : object;
		default:
			return object;
	}
}

/*
 * One event: its own id.  More: the first one's, their number, and a hash of
 * all, which differs when the composition does.
 */
static char *
make_id(const PsyncEvent *const *events, int n)
{
	uint64		hash = 0;

	Assert(n >= 1);

	if (n == 1)
		return pstrdup(PSYNC_EVENT_ID(events[0]));
	for (int i = 0; i < n; i++)
		hash = hash_bytes_extended((const unsigned char *) PSYNC_EVENT_ID(events[i]),
								   events[i]->id_size, hash + 1);
	return psprintf("%s_b%d_%016llx", PSYNC_EVENT_ID(events[0]), n,
					(unsigned long long) hash);
}

/*
 * As an attribute's value.
 */
static char *
position_text(uint64 position)
{
	StringInfoData buf;

	initStringInfo(&buf);
	psync_event_put_position(&buf, position);
	appendStringInfoChar(&buf, '\0');
	return buf.data;
}

/*
 * Likewise, without the quotes that JSON wants.
 */
static char *
time_text(TimestampTz at)
{
	StringInfoData buf;

	initStringInfo(&buf);
	psync_json_timestamp(&buf, at, true);
	buf.data[buf.len - 1] = '\0';	/* the quotes */
	return buf.data + 1;
}

/* CloudEvents' binary mode: all but the data travels beside the body. */
static void
set_attributes(PsyncMessage *m, const PsyncMessageSettings *settings,
			   const PsyncEvent *event)
{
	PsyncAttribute *attributes = palloc(8 * sizeof(PsyncAttribute));
	int			n = 0;

	attributes[n++] = (PsyncAttribute) {"specversion", "1.0"};
	attributes[n++] = (PsyncAttribute) {"id", m->id};
	attributes[n++] = (PsyncAttribute) {"source", settings->source};
	attributes[n++] = (PsyncAttribute) {"type", m->type};
	if (event->key_size > 0)
		attributes[n++] = (PsyncAttribute) {"subject", m->key};
	attributes[n++] = (PsyncAttribute) {"time", time_text(event->at)};
	attributes[n++] = (PsyncAttribute) {"sequence", position_text(event->position)};
	if (event->previous != 0)
		attributes[n++] = (PsyncAttribute) {"previoussequence", position_text(event->previous)};
	Assert(n <= 8);
	m->attributes = attributes;
	m->nattributes = n;
}

/*
 * What the message says of itself, or of its first event: enough for a target
 * that takes one event at a time, a summary for the others.
 */
static void
set_head(PsyncMessage *m, const PsyncMessageSettings *settings,
		 const PsyncEvent *const *events, int n)
{
	const PsyncEvent *first = events[0];
	int			op = psync_op_index(first->op);

	m->id = make_id(events, n);
	m->nevents = n;
	m->type = first->table->types[op];
	m->schema = first->table->schema;
	m->table = first->table->name;
	m->operation = psync_operation_name(first->op);
	m->key = PSYNC_EVENT_KEY(first);
	m->content_type = first->content_type != NULL &&
		(settings->format == PSYNC_FORMAT_RAW ||
		 settings->format == PSYNC_FORMAT_CLOUDEVENTS_BINARY) ?
		first->content_type : frame_of(settings).content_type;
	if (settings->format == PSYNC_FORMAT_CLOUDEVENTS_BINARY)
		set_attributes(m, settings, first);
}

/*
 * Copy, and return where to go on.
 */
static char *
put(char *at, const char *text, Size size)
{
	memcpy(at, text, size);
	return at + size;
}

/* texts[i] of sizes[i] bytes, framed; where they are goes into offsets. */
static void
set_body(PsyncOutgoing *message, const PsyncFrame *frame,
		 const char *const *texts, int n)
{
	Size		between = strlen(frame->between);
	Size		size = strlen(frame->before) + strlen(frame->after) + between * (n - 1);
	char	   *body;
	char	   *at;

	Assert(n >= 1);

	for (int i = 0; i < n; i++)
		size += message->sizes[i];
	body = MemoryContextAllocHuge(CurrentMemoryContext, size + 1);
	at = put(body, frame->before, strlen(frame->before));
	for (int i = 0; i < n; i++)
	{
		if (i > 0)
			at = put(at, frame->between, between);
		message->offsets[i] = at - body;
		at = put(at, texts[i], message->sizes[i]);
	}
	at = put(at, frame->after, strlen(frame->after));
	*at = '\0';
	Assert(at - body == size);
	message->m.body = body;
	message->m.size = size;
}

/*
 * An empty message for n events, in a context of its own, which becomes the
 * current one.
 */
static PsyncOutgoing *
begin(PsyncMessages *messages, int n)
{
	MemoryContext context = AllocSetContextCreate(messages->context,
												  "payment_sync message",
												  ALLOCSET_SMALL_SIZES);
	PsyncOutgoing *message;

	Assert(n > 0);

	MemoryContextSwitchTo(context);
	message = palloc0(sizeof(PsyncOutgoing));
	message->context = context;
	message->state = PSYNC_OUT_IDLE;
	message->offsets = palloc(n * sizeof(uint32));
	message->sizes = palloc(n * sizeof(uint32));
	message->events = palloc(n * sizeof(PsyncEvent *));
	message->places = palloc(n * sizeof(uint64));
	message->created = GetCurrentTimestamp();
	return message;
}

/*
 * The body.  One event without a frame is the event's text as it is: no copy
 * then.
 */
static void
finish(PsyncMessages *messages, PsyncOutgoing *message,
	   const char *const *texts, int n)
{
	PsyncFrame	frame = frame_of(&messages->settings);

	if (n == 1 && frame.before[0] == '\0' && frame.after[0] == '\0')
	{
		message->offsets[0] = 0;
		message->m.body = texts[0];
		message->m.size = message->sizes[0];
	}
	else
		set_body(message, &frame, texts, n);
}

/*
 * A message of the events at these places, which stay in memory until it is
 * settled.
 */
PsyncOutgoing *
psync_outgoing_make(PsyncMessages *messages, const uint64 *places, int n)
{
	MemoryContext old = CurrentMemoryContext;
	PsyncOutgoing *message = begin(messages, n);
	const char **texts = palloc(n * sizeof(char *));

	Assert(n >= 1);
	for (int i = 0; i < n; i++)
	{
		PsyncPlace *place = PSYNC_PLACE(&messages->line, places[i]);

		Assert(place->event != NULL);
		message->places[i] = places[i];
		message->events[i] = place->event;
		message->sizes[i] = place->event->text_size;
		texts[i] = PSYNC_EVENT_TEXT(place->event);
	}
	set_head(&message->m, &messages->settings, message->events, n);
	finish(messages, message, texts, n);
	MemoryContextSwitchTo(old);
	return message;
}

/* A message of an event that has no place in the line; it owns the event. */
PsyncOutgoing *
psync_outgoing_of_event(PsyncMessages *messages, PsyncEvent *event)
{
	MemoryContext old = CurrentMemoryContext;
	PsyncOutgoing *message = begin(messages, 1);
	const char *text = PSYNC_EVENT_TEXT(event);

	message->places = NULL;
	message->events[0] = event;
	message->keeps_events = true;
	message->sizes[0] = event->text_size;
	set_head(&message->m, &messages->settings, message->events, 1);
	finish(messages, message, &text, 1);
	MemoryContextSwitchTo(old);
	return message;
}

/*
 * Some of a message's events as a message of their own.  The events stay
 * those of their places; the message may be freed then.
 */
PsyncOutgoing *
psync_outgoing_split(PsyncMessages *messages, PsyncOutgoing *message, int first,
					 int n)
{
	PsyncOutgoing *part;

	Assert(message->places != NULL);
	Assert(first >= 0 && n >= 1 && first + n <= message->m.nevents);
	part = psync_outgoing_make(messages, message->places + first, n);
	part->part = true;
	return part;
}

/*
 * The message with all that belongs to it; not while an attempt is under way,
 * whose transport reads the body.
 */
void
psync_outgoing_free(PsyncOutgoing *message)
{
	Assert(message->state == PSYNC_OUT_IDLE);
	for (int i = 0; message->keeps_events && i < message->m.nevents; i++)
		pfree(unconstify(PsyncEvent *, message->events[i]));
	MemoryContextDelete(message->context);
}
