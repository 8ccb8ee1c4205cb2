/*
 * send.c
 *		Attempts: which message is sent next, and what comes of it.
 *
 * The transport tells how an attempt ended by psync_messages_settle(), from
 * within its poll().  That only takes a note; what follows is done when poll()
 * has returned, at our own pace.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#include "compat.h"
#include "message/message.h"

/* AGAIN is no failure, but not for ever. */
#define PSYNC_AGAIN_MAX		5

/* ------------------------------------------------------------- what is next */

/*
 * Is what is ready enough for a message, or has it waited long enough?  Nobody
 * waits for company that cannot come: the line is full, or stands before a
 * fence.
 */
static bool
may_take(const PsyncMessages *messages, TimestampTz now)
{
	const PsyncLine *line = &messages->line;
	const PsyncPlace *oldest;

	if (!psync_line_ready(line))
		return false;
	if (messages->settings.linger_ms == 0 || messages->fence ||
		line->ready_tail - line->ready_head >= messages->settings.batch_max ||
		!psync_line_has_room(line))
		return true;
	oldest = PSYNC_PLACE(line, line->ready[line->ready_head & line->mask]);
	return now >= TimestampTzPlusMilliseconds(oldest->arrived,
											  messages->settings.linger_ms);
}

/* A new message of what is ready. */
static PsyncOutgoing *
take(PsyncMessages *messages)
{
	static uint64 *places = NULL;
	static int	capacity = 0;
	int			n;

	/* kept for the process: no allocation per message */
	if (capacity < messages->settings.batch_max)
	{
		capacity = messages->settings.batch_max;
		places = places == NULL ?
			MemoryContextAlloc(TopMemoryContext, capacity * sizeof(uint64)) :
			repalloc(places, capacity * sizeof(uint64));
	}
	n = psync_line_take(messages, places);
	Assert(n >= 1);
	return psync_outgoing_make(messages, places, n);
}

/*
 * Take a message out of those that wait for their next attempt.
 */
static PsyncOutgoing *
take_failed(PsyncMessages *messages, PsyncOutgoing *message)
{
	Assert(message->state == PSYNC_OUT_FAILED);
	dlist_delete(&message->node);
	messages->nfailed--;
	message->state = PSYNC_OUT_IDLE;
	return message;
}

/*
 * The first of them whose time has come.
 */
static PsyncOutgoing *
failed_due(PsyncMessages *messages, TimestampTz now)
{
	dlist_iter	iter;

	dlist_foreach(iter, &messages->failed)
	{
		PsyncOutgoing *message = dlist_container(PsyncOutgoing, node, iter.cur);

		if (message->next_at <= now && psync_line_may_send(messages, message))
			return take_failed(messages, message);
	}
	return NULL;
}

/*
 * A message to see whether the target is back: another one each time, new ones
 * first, lest one that no target would take keep the breaker open.  If there
 * is none, the caller takes a parked one.
 */
static PsyncOutgoing *
probe(PsyncMessages *messages, TimestampTz now)
{
	bool		strict = messages->settings.ordering == PSYNC_ORDER_STRICT;
	uint64		turn = messages->probes++;
	int			skip = messages->nfailed > 0 ? (int) (turn / 2 % messages->nfailed) : 0;
	dlist_iter	iter;

	if (messages->nfailed == 0 ||
		(turn % 2 == 0 && !strict && psync_line_ready(&messages->line) &&
		 messages->nfailed < messages->nslots))
		return psync_line_ready(&messages->line) ? take(messages) : NULL;
	dlist_foreach(iter, &messages->failed)
	{
		PsyncOutgoing *message = dlist_container(PsyncOutgoing, node, iter.cur);

		if (strict || (skip-- <= 0 && psync_line_may_send(messages, message)))
			return take_failed(messages, message);
	}
	return NULL;
}

/*
 * The next message to be sent, or NULL if there is none now.  In this order:
 * one that the transport had no room for, a probe, one to be tried again, a
 * new one, a parked one.
 */
static PsyncOutgoing *
next_message(PsyncMessages *messages, TimestampTz now)
{
	PsyncOutgoing *message = messages->pending;

	if (messages->nfree == 0 || messages->gone)
		return NULL;
	if (messages->settings.ordering == PSYNC_ORDER_STRICT &&
		messages->in_flight > 0)
		return NULL;
	if (messages->breaker == PSYNC_BREAKER_PROBING ||
		(messages->breaker == PSYNC_BREAKER_OPEN &&
		 (now < messages->breaker_until || messages->in_flight > 0)))
		return NULL;

	messages->pending = NULL;
	if (message == NULL && messages->breaker == PSYNC_BREAKER_OPEN)
		message = probe(messages, now);
	else if (message == NULL)
	{
		message = failed_due(messages, now);
		if (message == NULL &&
			(messages->nfailed == 0 ||
			 messages->settings.ordering != PSYNC_ORDER_STRICT) &&
			may_take(messages, now))
			message = take(messages);
	}
	if (message == NULL)
		message = psync_parked_due(messages, now);
	return message;
}

/* ----------------------------------------------------------------- sending */

/*
 * Begin an attempt; false if the transport has no room now.  The handle names
 * the slot and its generation, so that an answer which comes late is
 * recognised as nobody's.
 */
static bool
attempt(PsyncMessages *messages, PsyncOutgoing *message, TimestampTz now)
{
	int			number = messages->free_slots[messages->nfree - 1];
	PsyncSlot  *slot = &messages->slots[number];

	Assert(messages->nfree > 0);
	Assert(slot->message == NULL && message->state == PSYNC_OUT_IDLE);
	slot->generation++;
	message->m.handle = ((uint64) slot->generation << 32) | (uint64) number;
	message->m.attempt++;
	if (!messages->transport->submit(messages->target, &message->m))
	{
		message->m.attempt--;
		return false;
	}
	messages->nfree--;
	messages->in_flight++;
	slot->message = message;
	slot->submitted = now;
	slot->answered = false;
	message->state = PSYNC_OUT_FLYING;
	if (message->parked != NULL)
		messages->parked_flying++;
	if (messages->breaker == PSYNC_BREAKER_OPEN)
		messages->breaker = PSYNC_BREAKER_PROBING;
	messages->stats.bytes += message->m.size;

	/* a target that never answers is to be seen, too */
	messages->stats.changed = true;
	if (messages->unsaved_since == 0)
		messages->unsaved_since = now;
	return true;
}

/*
 * Send what may be sent.  Does not wait.
 */
void
psync_messages_dispatch(PsyncMessages *messages, TimestampTz now)
{
	PsyncOutgoing *message;

	while ((message = next_message(messages, now)) != NULL)
	{
		if (!psync_rate_allows(messages, now) ||
			!attempt(messages, message, now))
		{
			messages->pending = message;
			return;
		}
	}
}

/* ---------------------------------------------------------------- outcomes */

/*
 * A text of the target, cut at a character, into a buffer of fixed size.
 */
static void
copy_text(char *to, size_t size, const char *from)
{
	Assert(size > 0);

	to[0] = '\0';
	if (from != NULL)
	{
		int			length = pg_mbcliplen(from, strlen(from), size - 1);

		memcpy(to, from, length);
		to[length] = '\0';
	}
}

/*
 * Why events have failed, kept with their message.  Without memory for it, the
 * answer's reason has to do: nothing may be raised here.
 */
static char **
copy_reasons(const PsyncOutgoing *message, const PsyncOutcome *outcome)
{
	int			n = message->m.nevents;
	char	  **reasons;

	if (outcome->item_reasons == NULL)
		return NULL;
	reasons = MemoryContextAllocExtended(message->context, n * sizeof(char *),
										 MCXT_ALLOC_NO_OOM | MCXT_ALLOC_ZERO);
	for (int i = 0; reasons != NULL && i < n; i++)
	{
		Size		size;

		if (outcome->item_reasons[i] == NULL)
			continue;
		size = Min(strlen(outcome->item_reasons[i]) + 1, sizeof(((PsyncAnswer *) NULL)->reason));
		reasons[i] = MemoryContextAllocExtended(message->context, size, MCXT_ALLOC_NO_OOM);
		if (reasons[i] != NULL)
			copy_text(reasons[i], size, outcome->item_reasons[i]);
	}
	return reasons;
}

/*
 * services->settle(): take note.  Neither raises nor waits.
 */
static void
note_answer(PsyncMessages *messages, PsyncSlot *slot, const PsyncOutcome *outcome)
{
	PsyncAnswer *answer = &slot->answer;

	answer->kind = outcome->kind;
	answer->sqlerrcode = outcome->sqlerrcode;
	answer->status = outcome->status;
	answer->retry_after_ms = outcome->retry_after_ms;
	answer->elapsed_us = outcome->elapsed_us;
	answer->partly = outcome->items != NULL;
	copy_text(answer->reason, sizeof(answer->reason), outcome->reason);
	copy_text(answer->excerpt, sizeof(answer->excerpt), outcome->excerpt);
	slot->reasons = NULL;
	if (answer->partly)
	{
		memcpy(slot->items, outcome->items, slot->message->m.nevents);
		slot->reasons = copy_reasons(slot->message, outcome);
	}
	slot->answered = true;
	messages->answered[messages->nanswered++] = slot - messages->slots;
}

/*
 * services->settle(): an attempt has ended.  Called by the transport, which
 * may be anybody's: what it says is taken note of only if it fits an attempt
 * that is under way.
 */
void
psync_messages_settle(PsyncTarget *target, uint64 handle, const PsyncOutcome *outcome)
{
	PsyncMessages *messages = target->core_data;
	uint32		number = (uint32) handle;
	PsyncSlot  *slot;

	/* a transport that makes up handles is ignored, not trusted */
	if (messages == NULL || number >= (uint32) messages->nslots)
		return;
	slot = &messages->slots[number];
	if (slot->message == NULL || slot->answered ||
		slot->generation != (uint32) (handle >> 32))
		return;
	note_answer(messages, slot, outcome);
}

/* Put a message among those that wait for their next attempt. */
void
psync_message_requeue(PsyncMessages *messages, PsyncOutgoing *message,
					  TimestampTz next_at)
{
	Assert(message->state == PSYNC_OUT_IDLE && message->parked == NULL);
	message->state = PSYNC_OUT_FAILED;
	message->next_at = next_at;
	dlist_push_tail(&messages->failed, &message->node);
	messages->nfailed++;
}

/* One event that the target never takes. */
static void
refused_event(PsyncMessages *messages, PsyncOutgoing *message,
			  const PsyncAnswer *answer, TimestampTz now)
{
	Assert(message->m.nevents == 1);
	if (!messages->settings.hold_refused)
	{
		messages->stats.refused++;
		psync_bury(messages, message, answer);
	}
	else if (messages->settings.ordering == PSYNC_ORDER_STRICT ||
			 !psync_park(messages, message))
	{
		/* nothing may pass it: as if the target were down */
		psync_message_requeue(messages, message, now);
		messages->target_fault = true;
		psync_breaker_failure(messages, answer, now);
	}
	else
		psync_parked_refused(messages, message->parked, answer);
}

/*
 * The target refused several events as a whole; perhaps one of them is at
 * fault.  Halves are tried until it is found; the second one waits for the
 * first if they share a key.
 */
static void
refused(PsyncMessages *messages, PsyncOutgoing *message,
		const PsyncAnswer *answer, TimestampTz now)
{
	int			n = message->m.nevents;

	psync_breaker_success(messages, now);
	if (message->parked != NULL)
		psync_parked_refused(messages, message->parked, answer);
	else if (n == 1)
		refused_event(messages, message, answer, now);
	else
	{
		psync_message_requeue(messages,
							  psync_outgoing_split(messages, message, 0, n / 2), now);
		psync_message_requeue(messages,
							  psync_outgoing_split(messages, message, n / 2, n - n / 2), now);
		psync_outgoing_free(message);
	}
}

/*
 * An attempt has failed for a reason that may pass.  Each message has its own
 * delay; the breaker counts all of them together.
 */
static void
failed(PsyncMessages *messages, PsyncOutgoing *message,
	   const PsyncAnswer *answer, TimestampTz now)
{
	message->again = 0;
	if (message->parked != NULL)
	{
		psync_parked_failed(messages, message->parked, answer);
		/* as a probe it has told that the target is not back */
		if (messages->breaker == PSYNC_BREAKER_PROBING)
			psync_breaker_failure(messages, answer, now);
		return;
	}
	message->failures++;
	messages->stats.retries++;
	psync_message_requeue(messages, message,
						  TimestampTzPlusMilliseconds(now,
													  psync_retry_delay(&messages->settings, message->failures,
																		answer->retry_after_ms)));
	psync_breaker_failure(messages, answer, now);
}

/*
 * What must not overtake an event that is to be sent again is sent again with
 * it, whatever the target says of it: a target that took it has seen them in
 * the wrong order, and sees them in the right one now (P4).
 */
static void
hold_back(const PsyncMessages *messages, const PsyncOutgoing *message, uint8 *items)
{
	PsyncKeyTable keys;
	bool		all = false;

	if (messages->settings.ordering == PSYNC_ORDER_NONE)
		return;
	psync_keys_init(&keys, 64);
	for (int i = 0; i < message->m.nevents; i++)
	{
		const PsyncPlace *place = PSYNC_PLACE(&messages->line, message->places[i]);

		for (int k = 0; k < place->nkeys; k++)
			if (psync_keys_find(&keys, place->keys[k]) != NULL)
				items[i] = PSYNC_ITEM_RETRY;
		if (all)
			items[i] = PSYNC_ITEM_RETRY;
		if (items[i] != PSYNC_ITEM_RETRY)
			continue;
		all = messages->settings.ordering == PSYNC_ORDER_STRICT;
		for (int k = 0; k < place->nkeys; k++)
			*psync_keys_enter(&keys, place->keys[k]) = 1;
	}
	pfree(keys.keys);
	pfree(keys.values);
}

/* How many of a message's events fared like this? */
static int
count_items(const uint8 *items, int n, PsyncItemOutcome outcome)
{
	int			count = 0;

	for (int i = 0; i < n; i++)
		count += items[i] == outcome;
	Assert(count <= n);
	return count;
}

/*
 * Those of a message's events that may succeed later, as a message of its own:
 * the others are no part of it any more.
 */
static void
retry_items(PsyncMessages *messages, const PsyncOutgoing *message,
			const PsyncSlot *slot, TimestampTz now)
{
	uint64	   *places = palloc(message->m.nevents * sizeof(uint64));
	PsyncOutgoing *rest;
	int			n = 0;

	for (int i = 0; i < message->m.nevents; i++)
		if (slot->items[i] == PSYNC_ITEM_RETRY)
			places[n++] = message->places[i];
	Assert(n > 0 && n < message->m.nevents);
	rest = psync_outgoing_make(messages, places, n);
	pfree(places);

	/* as old as the whole, so that it is parked if it goes on like this */
	rest->part = true;
	rest->created = message->created;
	rest->failures = message->failures + 1;
	messages->stats.retries++;
	psync_message_requeue(messages, rest,
						  TimestampTzPlusMilliseconds(now,
													  psync_retry_delay(&messages->settings, rest->failures,
																		slot->answer.retry_after_ms)));
}

/* A message of the line, some of whose events are delivered or refused. */
static void
partly_delivered(PsyncMessages *messages, PsyncOutgoing *message, PsyncSlot *slot,
				 TimestampTz now)
{
	const uint8 *items = slot->items;
	int			n = message->m.nevents;

	messages->stats.events += count_items(items, n, PSYNC_ITEM_DELIVERED);
	if (count_items(items, n, PSYNC_ITEM_RETRY) > 0)
		retry_items(messages, message, slot, now);
	for (int i = 0; i < n; i++)
	{
		PsyncAnswer answer = slot->answer;

		if (slot->reasons != NULL && slot->reasons[i] != NULL)
			strlcpy(answer.reason, slot->reasons[i], sizeof(answer.reason));
		if (items[i] == PSYNC_ITEM_REFUSED)
			refused_event(messages, psync_outgoing_split(messages, message, i, 1),
						  &answer, now);
		else if (items[i] == PSYNC_ITEM_DELIVERED)
			psync_line_settle(messages, message->places[i], PSYNC_FATE_DELIVERED);
	}
	psync_outgoing_free(message);
}

/*
 * Delivered, but perhaps not every event of it.  A target that wants all of
 * them again is as busy as one that says so by its status.
 */
static void
delivered(PsyncMessages *messages, PsyncOutgoing *message, PsyncSlot *slot,
		  TimestampTz now)
{
	int			n = message->m.nevents;

	if (slot->answer.partly && message->places != NULL)
		hold_back(messages, message, slot->items);
	if (slot->answer.partly && count_items(slot->items, n, PSYNC_ITEM_RETRY) == n)
	{
		failed(messages, message, &slot->answer, now);
		return;
	}
	psync_breaker_success(messages, now);
	if (slot->answer.partly && message->parked != NULL)
	{
		if (count_items(slot->items, n, PSYNC_ITEM_RETRY) > 0)
			psync_parked_failed(messages, message->parked, &slot->answer);
		else
			psync_parked_refused(messages, message->parked, &slot->answer);
	}
	else if (slot->answer.partly)
		partly_delivered(messages, message, slot, now);
	else
	{
		messages->stats.events += n;
		if (message->parked != NULL)
		{
			psync_parked_delivered(messages, message);
			return;
		}
		for (int i = 0; i < n; i++)
			psync_line_settle(messages, message->places[i], PSYNC_FATE_DELIVERED);
		psync_outgoing_free(message);
	}
}

/* It is not the message's fault: it is as good as never sent. */
static void
send_again(PsyncMessages *messages, PsyncOutgoing *message, TimestampTz now)
{
	if (messages->breaker == PSYNC_BREAKER_PROBING)
	{
		messages->breaker = PSYNC_BREAKER_OPEN;
		messages->breaker_until = now;
	}
	if (message->parked != NULL)
		psync_parked_again(messages, message, now);
	else
		psync_message_requeue(messages, message, now);
}

/*
 * The failure is about the target, not the message: its own count stays as it
 * is.
 */
static void
target_failed(PsyncMessages *messages, PsyncOutgoing *message,
			  const PsyncAnswer *answer, TimestampTz now)
{
	if (message->parked != NULL)
		psync_parked_again(messages, message, now);
	else
		psync_message_requeue(messages, message, now);
	messages->gone |= answer->kind == PSYNC_OUTCOME_GONE;
	psync_breaker_failure(messages, answer, now);
}

/* What becomes of the message whose attempt has ended. */
static void
handle_answer(PsyncMessages *messages, PsyncSlot *slot, TimestampTz now)
{
	PsyncOutgoing *message = slot->message;
	PsyncAnswer *answer = &slot->answer;

	Assert(slot->answered && message->state == PSYNC_OUT_FLYING);
	slot->message = NULL;
	messages->free_slots[messages->nfree++] = slot - messages->slots;
	messages->in_flight--;
	if (message->parked != NULL)
		messages->parked_flying--;
	message->state = PSYNC_OUT_IDLE;
	psync_stats_note(messages, message, answer);

	switch (answer->kind)
	{
		case PSYNC_OUTCOME_DELIVERED:
			delivered(messages, message, slot, now);
			break;
		case PSYNC_OUTCOME_AGAIN:
			if (++message->again <= PSYNC_AGAIN_MAX)
				send_again(messages, message, now);
			else
				failed(messages, message, answer, now);
			break;
		case PSYNC_OUTCOME_RETRY:
			failed(messages, message, answer, now);
			break;
		case PSYNC_OUTCOME_REFUSED:
			refused(messages, message, answer, now);
			break;
		case PSYNC_OUTCOME_TARGET:
		case PSYNC_OUTCOME_GONE:
			target_failed(messages, message, answer, now);
			break;
	}
}

/* Let the transport work until something has happened, and see to it. */
void
psync_messages_poll(PsyncMessages *messages, long timeout_ms)
{
	TimestampTz now;

	messages->nanswered = 0;
	messages->transport->poll(messages->target, timeout_ms);
	now = GetCurrentTimestamp();
	for (int i = 0; i < messages->nanswered; i++)
		handle_answer(messages, &messages->slots[messages->answered[i]], now);
}
