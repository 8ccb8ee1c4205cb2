/*
 * retry.c
 *		When to try again: delays, the breaker, the rate limit.
 *
 * States of the breaker, which is about the target as a whole:
 *
 *		closed		messages are sent
 *		open		nothing is sent until breaker_until; the sync is given up
 *					until then, so that its worker can serve others
 *		probing		one message was sent to see whether the target is back
 *
 *	closed -> open		psync_breaker_failure, psync_breaker_open: failures in
 *						a row, or one that is about the target
 *	open -> probing		psync_messages_dispatch, when the time has come
 *	probing -> closed	psync_breaker_success
 *	probing -> open		psync_breaker_failure
 *
 * A refusal is an answer like a success: the target is alive.  Failures of
 * parked messages do not count: they are parked because they fail although
 * the target answers.  Unless one is the probe, since nothing else is left.
 */
#include "postgres.h"

#include <math.h>

#include "compat.h"
#include "message/message.h"

/* Failures in a row after which the target as a whole is held to be down. */
#define PSYNC_BREAKER_FAILURES	5
/* The most that jitter adds to a delay, as a part of it. */
#define PSYNC_JITTER			0.25

/*
 * Milliseconds to wait after the n-th failure in a row: doubling, with jitter.
 * What the target asked for (asked_ms, -1: nothing) counts if it is longer
 * than our own delay, up to retry_after_max, and is never undercut.
 */
int64
psync_retry_delay(const PsyncMessageSettings *settings, int failures,
				  int64 asked_ms)
{
	int64		delay = settings->retry_delay_min;

	Assert(failures >= 1);
	for (int i = 1; i < failures && delay < settings->retry_delay_max; i++)
		delay *= 2;
	delay = Min(delay, settings->retry_delay_max);
	asked_ms = Min(asked_ms, settings->retry_after_max);
	delay = Max(delay, asked_ms);
	return delay + (int64) (delay * PSYNC_JITTER * psync_random());
}

/*
 * An answer that says that the target is alive.  What failed while it was not
 * is due at once.
 */
void
psync_breaker_success(PsyncMessages *messages, TimestampTz now)
{
	messages->failures = 0;
	messages->asked_wait_ms = -1;
	messages->last_success = now;
	messages->breaker_opened = 0;
	messages->target_fault = false;
	if (messages->failing_since != 0)
		messages->success_unsaved = true;
	messages->failing_since = 0;
	if (messages->breaker != PSYNC_BREAKER_CLOSED)
	{
		dlist_iter	iter;

		/* what failed while the target was down need not wait any longer */
		dlist_foreach(iter, &messages->failed)
		{
			PsyncOutgoing *message = dlist_container(PsyncOutgoing, node, iter.cur);

			/* that it failed meanwhile says nothing about it, either */
			message->next_at = message->created = now;
			message->failures = 0;
		}
	}
	messages->breaker = PSYNC_BREAKER_CLOSED;
}

/*
 * The target as a whole is held to be down: nothing is sent until the time
 * that is set here, which grows with each time in a row that this happens.
 */
void
psync_breaker_open(PsyncMessages *messages, TimestampTz now)
{
	int64		delay;

	Assert(messages->failures > 0 || messages->target_fault);

	messages->breaker_opened++;
	delay = psync_retry_delay(&messages->settings, messages->breaker_opened,
							  messages->asked_wait_ms);
	messages->breaker = PSYNC_BREAKER_OPEN;
	messages->breaker_until = TimestampTzPlusMilliseconds(now, delay);
	messages->asked_wait_ms = -1;
	messages->failure_unsaved = true;
}

/* An attempt of a message in the line has failed. */
void
psync_breaker_failure(PsyncMessages *messages, const PsyncAnswer *answer,
					  TimestampTz now)
{
	messages->failures++;
	messages->failure = *answer;
	messages->asked_wait_ms = Max(messages->asked_wait_ms, answer->retry_after_ms);
	if (messages->failing_since == 0)
		messages->failing_since = now;
	messages->target_fault |= answer->kind == PSYNC_OUTCOME_TARGET;

	/* attempts that were under way when it opened change nothing */
	if (messages->breaker == PSYNC_BREAKER_PROBING ||
		(messages->breaker == PSYNC_BREAKER_CLOSED &&
		 (messages->target_fault ||
		  messages->failures >= PSYNC_BREAKER_FAILURES)))
		psync_breaker_open(messages, now);
}

/* ------------------------------------------------------------- the rate */

/* Short bursts of a tenth of a second's worth are smoothed out by then. */
static double
burst(const PsyncMessages *messages)
{
	return Max(messages->settings.rate_limit / 10.0, 1.0);
}

/* May one more message be sent now?  Takes note of it if so. */
bool
psync_rate_allows(PsyncMessages *messages, TimestampTz now)
{
	double		elapsed;

	Assert(messages->settings.rate_limit >= 0);

	if (messages->settings.rate_limit == 0)
		return true;
	elapsed = Max(now - messages->tokens_at, 0) / (double) USECS_PER_SEC;
	messages->tokens = Min(messages->tokens + elapsed * messages->settings.rate_limit,
						   burst(messages));
	messages->tokens_at = now;
	if (messages->tokens < 1.0)
		return false;
	messages->tokens -= 1.0;
	return true;
}

/*
 * When the next one may be sent, if not now.  To be asked only after a
 * refusal.
 */
TimestampTz
psync_rate_next(const PsyncMessages *messages)
{
	double		missing = Max(1.0 - messages->tokens, 0.0);

	Assert(messages->settings.rate_limit > 0);
	return messages->tokens_at +
		(int64) ceil(missing * USECS_PER_SEC / messages->settings.rate_limit);
}

/* ---------------------------------------------------------------- parking */

/*
 * When this message is old enough to be parked; never, if the target has taken
 * nothing since it was made.  If it is old enough there was no room for it.
 */
static TimestampTz
park_time_of(const PsyncMessages *messages, const PsyncOutgoing *message, TimestampTz now)
{
	TimestampTz at;

	Assert(message != NULL);
	if (message->parked != NULL || messages->last_success <= message->created)
		return DT_NOEND;
	at = TimestampTzPlusMilliseconds(message->created, PSYNC_PARK_MS);
	return at > now ? at : DT_NOEND;
}

/*
 * The same of all, in flight or failed: one that may be tried again only in
 * an hour must not hold up the position as long.
 */
TimestampTz
psync_park_time(const PsyncMessages *messages, TimestampTz now)
{
	TimestampTz next = DT_NOEND;
	dlist_iter	iter;

	if (messages->settings.ordering == PSYNC_ORDER_STRICT)
		return next;
	for (int i = 0; i < messages->nslots; i++)
	{
		if (messages->slots[i].message != NULL)
			next = Min(next, park_time_of(messages, messages->slots[i].message, now));
	}
	dlist_foreach(iter, &unconstify(PsyncMessages *, messages)->failed)
		next = Min(next, park_time_of(messages,
										  dlist_container(PsyncOutgoing, node, iter.cur), now));
	return next;
}
