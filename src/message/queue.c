/*
 * queue.c
 *		The line: events in order of position, and which of them may be sent.
 *
 * Order by key.  The table "keys" knows the last place with each key that is
 * not settled.  A new place waits for that one, and is told when it is
 * settled; so an event of a key has at most one predecessor and one
 * successor, or two of each if the key was changed.  A place that waits for
 * nobody is in the queue of ready ones.
 *
 * Within a batch the order of its events is that of the body, so a place may
 * join the batch that its predecessor is in.
 *
 * How far it is settled.  Places are settled in any order; "head" is the first
 * that is not.  Windows end at marks; a window is done when head has passed
 * its mark.  Of the window at hand the position of the last place before head
 * is remembered: after a crash it is read again from there.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "compat.h"
#include "message/message.h"

/* Room for events beyond those that can be in flight, for free keys' sake. */
#define PSYNC_LINE_MIN		1024
#define PSYNC_LINE_MAX		32768
/* Bytes of events after which none is added; what is in bodies comes on top. */
#define PSYNC_LINE_BYTES	(8 * 1024 * 1024)
/* Likewise for what lies between places: 24 bytes each. */
#define PSYNC_LINE_GAPS		(64 * 1024)

/*
 * An empty line, with room for twice what can be under way, so that there is
 * something to choose from.  Places are numbered from 1 on for as long as the
 * delivery lives; the number's low bits are the place's index.
 */
void
psync_line_init(PsyncLine *line, MemoryContext context,
				const PsyncMessageSettings *settings)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	uint64		wanted = (uint64) settings->batch_max * settings->in_flight_max * 2;
	uint64		capacity = PSYNC_LINE_MIN;

	while (capacity < wanted && capacity < PSYNC_LINE_MAX)
		capacity *= 2;
	memset(line, 0, sizeof(*line));
	line->context = context;
	line->mask = capacity - 1;
	line->places = palloc0(capacity * sizeof(PsyncPlace));
	line->ready = palloc(capacity * sizeof(uint64));
	line->behind = palloc(capacity * sizeof(uint64));
	line->head = line->tail = 1;
	psync_keys_init(&line->keys, PSYNC_LINE_MIN);
	MemoryContextSwitchTo(old);
}

/*
 * May another event be added?  One is always taken, however large (P7: bytes
 * are bounded, but for a single row).
 */
bool
psync_line_has_room(const PsyncLine *line)
{
	return line->tail - line->head <= line->mask &&
		(psync_line_is_empty(line) ||
		 (line->bytes < PSYNC_LINE_BYTES &&
		  line->ledger.gaps_end - line->ledger.gaps_begin < PSYNC_LINE_GAPS));
}

/*
 * Is there a place that waits for nobody?
 */
bool
psync_line_ready(const PsyncLine *line)
{
	return line->ready_head != line->ready_tail;
}

/*
 * What an event takes of memory, nearly.
 */
static inline Size
event_bytes(const PsyncEvent *event)
{
	return sizeof(PsyncEvent) + event->id_size + event->key_size + event->text_size;
}

/*
 * The place waits for nobody any more.
 */
static void
push_ready(PsyncLine *line, uint64 n)
{
	Assert(n >= line->head && n < line->tail);

	PSYNC_PLACE(line, n)->state = PSYNC_PLACE_READY;
	line->ready[line->ready_tail++ & line->mask] = n;
	Assert(line->ready_tail - line->ready_head <= line->mask + 1);
}

/*
 * Nothing in the line holds the place back any more; a parked event may.
 * Then it is parked as well, if there is room, or waits for some.
 */
static void
unblocked(PsyncMessages *messages, uint64 n)
{
	PsyncLine  *line = &messages->line;
	PsyncPlace *place = PSYNC_PLACE(line, n);
	const PsyncEvent *event = place->event;

	Assert(place->state == PSYNC_PLACE_WAITING && place->blockers == 0);
	if (messages->nparked > 0 &&
		psync_parked_blocks(messages, place->nkeys, place->keys,
							event->table->table->relid,
							event->op == PSYNC_TRUNCATE))
	{
		if (!psync_park_place(messages, n))
			line->behind[line->nbehind++] = n;
		return;
	}
	if (event->unmade)
		psync_unmade_turn(messages, n);
	else
		push_ready(line, n);
}

/*
 * A parked event is gone: those behind it may go on.
 */
void
psync_line_recheck(PsyncMessages *messages)
{
	PsyncLine  *line = &messages->line;
	uint64		n = line->nbehind;

	line->nbehind = 0;
	/* each is put back, at most where it was */
	for (uint64 i = 0; i < n; i++)
		unblocked(messages, line->behind[i]);
}

/* Put an event at the end of the line; returns its place's number. */
uint64
psync_line_add(PsyncMessages *messages, PsyncEvent *event,
			   const PsyncEventKeys *keys)
{
	PsyncLine  *line = &messages->line;
	uint64		n = line->tail++;
	PsyncPlace *place = PSYNC_PLACE(line, n);

	Assert(n - line->head <= line->mask);
	memset(place, 0, sizeof(*place));
	place->state = PSYNC_PLACE_WAITING;
	place->event = event;
	place->position = event->position;
	place->xid = event->xid;
	place->arrived = GetCurrentTimestamp();
	line->bytes += event_bytes(event);
	place->gaps = psync_ledger_boundary(&line->ledger);
	if (event->op != PSYNC_READ && !psync_event_is_ping(event->table->table))
		place->ledger = psync_ledger_entry(&line->ledger, event->table->table->relid,
										   event->at, event->op);

	if (messages->settings.ordering == PSYNC_ORDER_KEY)
	{
		place->nkeys = keys->n;
		for (int i = 0; i < keys->n; i++)
		{
			uint64	   *last = psync_keys_enter(&line->keys, keys->keys[i]);

			place->keys[i] = keys->keys[i];
			if (*last != 0)
			{
				PsyncPlace *before = PSYNC_PLACE(line, *last);
				int			k = before->keys[0] == keys->keys[i] ? 0 : 1;

				Assert(*last >= line->head && before->keys[k] == keys->keys[i]);
				Assert(before->next[k] == 0);
				before->next[k] = n;
				place->blockers++;
			}
			*last = n;
		}
	}
	if (place->blockers == 0)
		unblocked(messages, n);
	return n;
}

/*
 * Windows that end here or before are done; the last of them is what is saved
 * as A.
 */
static void
pass_marks(PsyncLine *line)
{
	int			passed = 0;

	while (passed < line->nmarks && line->marks[passed].end <= line->head)
	{
		PsyncMark  *mark = &line->marks[passed++];

		if (line->done != NULL)
			pfree(line->done);
		line->done = mark->upto;
		line->done_hint = mark->hint;
		psync_ledger_pass(&line->ledger, mark->gaps);
		line->done_windows += mark->windows;
		line->done_bytes += mark->bytes;
		line->settled_position = 0;
		line->settled_xid = 0;
	}
	if (passed == 0)
		return;
	line->moves++;
	line->nmarks -= passed;
	memmove(line->marks, line->marks + passed, line->nmarks * sizeof(PsyncMark));
}

/*
 * Move head over what is settled, and remember how far that is within the
 * window at hand.
 */
static void
advance(PsyncLine *line)
{
	while (line->head < line->tail &&
		   PSYNC_PLACE(line, line->head)->state == PSYNC_PLACE_SETTLED)
	{
		PsyncPlace *place = PSYNC_PLACE(line, line->head);

		psync_ledger_pass_place(&line->ledger, place);

		/* rows of a batch have no position of their own in the log */
		if (place->xid != 0)
		{
			line->settled_position = place->position;
			line->settled_xid = place->xid;
		}
		line->head++;
		if (line->nmarks > 0 && line->marks[0].end <= line->head)
			pass_marks(line);
	}
}

/*
 * The change's event has a row since before this process began: a place that
 * is settled already, lest the position pass it unnoticed.
 */
void
psync_line_add_recorded(PsyncLine *line, const PsyncChange *change)
{
	PsyncPlace *place = PSYNC_PLACE(line, line->tail++);

	Assert(line->tail - line->head <= line->mask + 1);

	memset(place, 0, sizeof(*place));
	place->state = PSYNC_PLACE_SETTLED;
	place->fate = PSYNC_FATE_RECORDED;
	place->recorded = true;
	place->position = change->position;
	place->xid = change->xid;
	place->gaps = psync_ledger_boundary(&line->ledger);
	line->ledger.nrecorded++;
	line->moves++;
	advance(line);
}

/*
 * The place's event is delivered, or written down elsewhere.
 */
void
psync_line_settle(PsyncMessages *messages, uint64 n, PsyncFate fate)
{
	PsyncLine  *line = &messages->line;
	PsyncPlace *place = PSYNC_PLACE(line, n);

	Assert(n >= line->head && n < line->tail);
	Assert(place->state == PSYNC_PLACE_TAKEN);
	Assert(fate == PSYNC_FATE_DELIVERED || fate == PSYNC_FATE_RECORDED);
	place->state = PSYNC_PLACE_SETTLED;
	place->fate = fate;
	line->bytes -= event_bytes(place->event);
	line->settled_at = place->event->at;
	if (place->event->op == PSYNC_READ)
		place->xid = 0;
	if (!place->event_kept)
		pfree(place->event);
	place->event = NULL;
	line->settled++;
	line->moves++;

	for (int i = 0; i < place->nkeys; i++)
	{
		if (place->next[i] == 0)
			psync_keys_remove(&line->keys, place->keys[i]);
		else
		{
			PsyncPlace *next = PSYNC_PLACE(line, place->next[i]);

			Assert(next->blockers > 0);
			if (--next->blockers == 0 && next->state == PSYNC_PLACE_WAITING)
				unblocked(messages, place->next[i]);
		}
	}
	advance(line);
	if (messages->unsaved_since == 0)
		messages->unsaved_since = GetCurrentTimestamp();
}

/* The window that was being fed ends here. */
void
psync_line_mark(PsyncLine *line, const char *upto, const PsyncReadHint *hint,
				uint64 bytes)
{
	PsyncMark  *last = line->nmarks > 0 ? &line->marks[line->nmarks - 1] : NULL;

	Assert(upto != NULL && hint != NULL);

	/* windows without events take no mark of their own */
	if (last == NULL || last->end != line->tail)
	{
		Assert(line->nmarks < PSYNC_MARKS_MAX);
		last = &line->marks[line->nmarks++];
		memset(last, 0, sizeof(*last));
		last->end = line->tail;
	}
	else
		pfree(last->upto);
	last->upto = MemoryContextStrdup(line->context, upto);
	last->hint = *hint;
	last->gaps = psync_ledger_boundary(&line->ledger);
	last->windows++;
	last->bytes += bytes;
	pass_marks(line);
}

/* ----------------------------------------------------------------- batches */

/*
 * Let those successors of the n-th place of the batch join it whose
 * predecessors are all in it.
 */
static int
join_successors(PsyncMessages *messages, uint64 *places, int i, int n)
{
	PsyncLine  *line = &messages->line;
	int			max = messages->settings.batch_max;
	PsyncPlace *place = PSYNC_PLACE(line, places[i]);

	for (int k = 0; k < place->nkeys && n < max; k++)
	{
		PsyncPlace *next;

		if (place->next[k] == 0)
			continue;
		next = PSYNC_PLACE(line, place->next[k]);
		if (next->batch != line->batch)
		{
			next->batch = line->batch;
			next->in_batch = 0;
		}
		if (++next->in_batch == next->blockers &&
			next->state == PSYNC_PLACE_WAITING && !next->event->unmade &&
			!(messages->nparked > 0 &&
			  psync_parked_blocks(messages, next->nkeys, next->keys,
								  next->event->table->table->relid, false)))
		{
			next->state = PSYNC_PLACE_TAKEN;
			places[n++] = place->next[k];
		}
	}
	return n;
}

/*
 * A part of a message that was refused may hold events whose predecessors are
 * in another part: these must be settled first (P4).
 */
bool
psync_line_waits_for_part(PsyncMessages *messages, const PsyncOutgoing *message)
{
	PsyncLine  *line = &messages->line;

	if (!message->part || messages->settings.ordering != PSYNC_ORDER_KEY)
		return false;
	Assert(message->places != NULL && message->parked == NULL);

	/* as when a batch is made: predecessors within the message do not count */
	line->batch++;
	for (int i = 0; i < message->m.nevents; i++)
	{
		PsyncPlace *place = PSYNC_PLACE(line, message->places[i]);
		int			inside = place->batch == line->batch ? place->in_batch : 0;

		if (place->blockers > inside)
			return true;
		for (int k = 0; k < place->nkeys; k++)
		{
			PsyncPlace *next;

			if (place->next[k] == 0)
				continue;
			next = PSYNC_PLACE(line, place->next[k]);
			if (next->batch != line->batch)
				next->in_batch = 0;
			next->batch = line->batch;
			next->in_batch++;
		}
	}
	return false;
}

/*
 * They may have been parked meanwhile; then it is to be parked as well.
 */
bool
psync_line_waits_for_parked(PsyncMessages *messages, const PsyncOutgoing *message)
{
	if (!message->part || messages->nparked == 0)
		return false;
	for (int i = 0; i < message->m.nevents; i++)
	{
		PsyncPlace *place = PSYNC_PLACE(&messages->line, message->places[i]);

		if (psync_parked_blocks(messages, place->nkeys, place->keys,
								message->events[i]->table->table->relid, false))
			return true;
	}
	return false;
}

/*
 * May a message of those that wait for their next attempt have it, as far as
 * order is concerned?
 */
bool
psync_line_may_send(PsyncMessages *messages, const PsyncOutgoing *message)
{
	return !psync_line_waits_for_part(messages, message) &&
		!psync_line_waits_for_parked(messages, message);
}

/*
 * Take the places of the next message, as many as fit; returns their number.
 * Those with the same key come in order.
 */
int
psync_line_take(PsyncMessages *messages, uint64 *places)
{
	PsyncLine  *line = &messages->line;
	const PsyncMessageSettings *settings = &messages->settings;
	Size		bytes = 0;
	int			joined = 0;		/* places whose successors were asked */
	int			n = 0;

	line->batch++;
	while (n < settings->batch_max && bytes < settings->batch_bytes_max)
	{
		if (joined == n)
		{
			PsyncPlace *place;

			if (!psync_line_ready(line))
				break;
			places[n] = line->ready[line->ready_head++ & line->mask];
			place = PSYNC_PLACE(line, places[n]);
			Assert(place->state == PSYNC_PLACE_READY);
			place->state = PSYNC_PLACE_TAKEN;
			n++;
		}
		bytes += PSYNC_PLACE(line, places[joined])->event->text_size;
		n = join_successors(messages, places, joined, n);
		joined++;
	}
	Assert(n <= settings->batch_max);
	return n;
}
