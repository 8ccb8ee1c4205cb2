/*
 * engine.c
 *		Delivery to targets that take messages: the loop.
 *
 * A step feeds the line from the log, sends what may be sent, lets the
 * transport work, and saves progress now and then; until nothing is left to
 * do, or the worker should look at its other syncs.
 *
 * The reader runs ahead of what is settled: several windows may be in the
 * line at once, and each event goes as soon as its key allows.  So an event
 * waits for none of another key, however slow the target is about it.
 *
 * How a step ends:
 *
 *		IDLE	nothing is left; parked events may become due, see
 *				psync_delivery_wake_at()
 *		DONE	there is more, but others should have a look in
 *		YIELD	a session wants the sync
 *		WATCH	answers are to come, or some time; the worker waits for all of
 *				its targets at once, see psync_delivery_watch()
 *		WAIT	the target is down: nothing is to be tried before
 *				psync_delivery_failure()'s time
 *		GONE	close the delivery; its successor goes on from what is saved
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "capture/shape.h"
#include "compat.h"
#include "message/init.h"
#include "message/message.h"
#include "sync/admin.h"

/* A step ends after this time, for the worker to look around. */
#define PSYNC_STEP_MS			50
/* Answers are awaited so long before an outdated delivery is closed. */
#define PSYNC_RETIRE_MS			1000
/* Changes that are looked at before the answers are. */
#define PSYNC_FEED_MAX			4096
/* Progress is saved after this time, or so many events … */
#define PSYNC_GROUP_MS			1000
#define PSYNC_GROUP_EVENTS		8192
/* … or when parked events and dead letters wait, after these. */
#define PSYNC_ROWS_MS			100
#define PSYNC_ROWS_MAX			200

/* ---------------------------------------------------------------- feeding */

/* Changes up to the saved position of the window at hand are settled. */
static bool
is_settled(const PsyncMessages *messages, const PsyncChange *change)
{
	return change->position < messages->skip_position ||
		(change->position == messages->skip_position &&
		 change->xid <= messages->skip_xid);
}

/*
 * Make the change's event and put it in the line; or, of a truncation, before
 * the fence.  A transform may leave a change out: then there is none.  If
 * feeding cannot go on with this change, messages->stuck says why.
 */
static void
add_event(PsyncMessages *messages, const PsyncChange *change)
{
	PsyncEventKeys keys;
	PsyncEvent *event;

	if (!psync_change_to_event(messages, change, &keys, &event))
		return;
	if (event == NULL)
	{
		if (change->op != PSYNC_READ)
			psync_ledger_note(&messages->line.ledger, change, PSYNC_FATE_LEFT_OUT);
		return;
	}
	if (change->op == PSYNC_TRUNCATE &&
		messages->settings.ordering == PSYNC_ORDER_KEY)
	{
		/* it comes after all before it, of whatever key */
		messages->fence = true;
		messages->fenced = event;
		return;
	}
	(void) psync_line_add(messages, event, &keys);
}

/* A change of the sync's tables, and where it belongs. */
static void
take_change(PsyncMessages *messages, const PsyncChange *change)
{
	PsyncLedger *ledger = &messages->line.ledger;

	if (psync_sync_excludes(messages->delivery->sync, change->origin))
		psync_ledger_note(ledger, change, PSYNC_FATE_EXCLUDED);
	else if (psync_ledger_is_ahead(ledger, change))
		psync_line_add_recorded(&messages->line, change);
	else
		add_event(messages, change);
}

/* A truncation waits for the line to be empty, then all wait for it. */
static bool
pass_fence(PsyncMessages *messages)
{
	PsyncEventKeys none = {0};

	if (!messages->fence)
		return true;
	if (!psync_line_is_empty(&messages->line))
		return false;
	if (messages->fenced == NULL)
	{
		messages->fence = false;
		return true;
	}
	(void) psync_line_add(messages, messages->fenced, &none);
	messages->fenced = NULL;
	return false;
}

/*
 * The next row of the batch's chunk, as an event.  It bears a position before
 * any change that the batch did not see (event.c).
 */
static void
feed_row(PsyncMessages *messages)
{
	PsyncBatch *batch = messages->delivery->batch;
	PsyncChange change = {0};
	uint32		size;

	Assert(messages->chunk_open && messages->chunk_at != NULL);

	memcpy(&size, messages->chunk_at, sizeof(size));
	change.op = PSYNC_READ;
	change.position = messages->safe_position;
	change.xid = messages->chunk_xmax;
	change.at = GetCurrentTimestamp();
	change.shape = batch->shape;
	change.table = batch->table;
	change.new_image = messages->chunk_at + sizeof(size);
	change.new_size = size;
	add_event(messages, &change);
	if (messages->stuck != NULL)
		return;
	messages->chunk_at += sizeof(size) + size;
	if (messages->chunk_at >= batch->rows.data + batch->rows.len)
		messages->chunk_at = NULL;
}

/*
 * All changes of the window are fed: mark the place in the line behind which A
 * may become its B, and let the reader go on.
 */
static void
end_window(PsyncMessages *messages)
{
	PsyncDelivery *delivery = messages->delivery;
	char	   *upto = psync_snapshot_text(psync_reader_upto(delivery->reader));
	PsyncReadHint hint;

	messages->window_open = false;
	messages->skip_position = messages->skip_xid = 0;
	psync_reader_done(delivery->reader);
	psync_reader_hint(delivery->reader, &hint);
	psync_line_mark(&messages->line, upto, &hint, messages->window_bytes);
	messages->window_bytes = 0;
	if (messages->unsaved_since == 0)
		messages->unsaved_since = GetCurrentTimestamp();
	pfree(upto);
}

/* The window was opened with a chunk of a batch. */
static void
begin_chunk(PsyncMessages *messages)
{
	PsyncBatch *batch = messages->delivery->batch;

	if (batch->mirror)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot mirror table \"%s\" to a target that takes messages",
						batch->table->source_name),
				 errdetail("Such a target cannot be told what it should not have."),
				 errhint("Cancel the batch with payment_sync.cancel_batch(), and ask for one without mirror.")));
	messages->window_open = true;
	messages->chunk_open = true;
	messages->chunk_at = batch->nrows > 0 ? batch->rows.data : NULL;
	messages->chunk_xmax = psync_reader_upto(messages->delivery->reader)->xmax;
}

/*
 * See event.c for what this is about.  A transaction that this window
 * does not see began after the mark was made, if the mark's xmax is not
 * above the window's xmin; so its positions are behind the mark's.
 */
static void
note_positions(PsyncMessages *messages, uint64 insert_position)
{
	const PsyncSnapshot *upto = psync_reader_upto(messages->delivery->reader);

	if (upto == NULL)
		upto = psync_reader_after(messages->delivery->reader);
	if (upto->xmin >= messages->mark_xmax)
	{
		messages->safe_position = messages->mark_position;
		messages->mark_position = insert_position;
		messages->mark_xmax = upto->xmax;
	}
}

/*
 * Look for a window, with a chunk of a batch if one is asked for.  False: the
 * definition has changed, and the delivery is to be closed.
 */
static bool
open_window(PsyncMessages *messages)
{
	PsyncDelivery *delivery = messages->delivery;
	uint64		insert_position = GetXLogInsertRecPtr();
	PsyncWindowSize size;

	if (messages->chunk_open || messages->line.nmarks == PSYNC_MARKS_MAX)
		return true;
	if (delivery->batch == NULL && delivery->sync->batch_pending)
		delivery->batch = psync_batch_load(delivery);
	messages->window_open = psync_reader_open(delivery->reader, &size,
											  delivery->batch ? psync_batch_read : NULL,
											  delivery->batch);
	messages->window_bytes = size.bytes;
	note_positions(messages, insert_position);

	if ((messages->window_open || delivery->batch != NULL) &&
		psync_delivery_outdated(delivery))
		return false;
	if (delivery->batch != NULL)
		begin_chunk(messages);
	return true;
}

/* The loop of feed(). */
static bool
fill_line(PsyncMessages *messages)
{
	PsyncDelivery *delivery = messages->delivery;
	TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), PSYNC_STEP_MS);
	bool		looked = false;

	messages->more = false;
	for (int n = 0; n < PSYNC_FEED_MAX; n++)
	{
		PsyncChange change;
		uint32		shape_id;

		if (messages->stuck != NULL || !psync_line_has_room(&messages->line) ||
			!pass_fence(messages))
			return true;
		/* what a transform does may take its time */
		if (messages->writer->transform != NULL && GetCurrentTimestamp() > until)
			break;
		if (!messages->window_open && messages->chunk_at != NULL)
		{
			feed_row(messages);
			continue;
		}
		if (!messages->window_open)
		{
			if (looked || messages->breaker != PSYNC_BREAKER_CLOSED)
			{
				/* while the target is down, what is in the line will do */
				if (looked || !psync_line_is_empty(&messages->line))
					return true;
			}
			looked = true;
			psync_trial_end(messages);
			if (!open_window(messages))
				return false;
			if (!messages->window_open)
				return true;
		}
		/* nor may any be sent that a synchronous standby lacks */
		if (!psync_reader_durable(delivery->reader))
			return true;
		if (!psync_reader_next(delivery->reader, &change, &shape_id))
		{
			end_window(messages);
			continue;
		}
		if (!is_settled(messages, &change) &&
			psync_delivery_locate(delivery, &change, shape_id))
			take_change(messages, &change);
	}
	messages->more = true;
	return true;
}

/*
 * Fill the line, from the window at hand and then from the next ones.  False
 * if the definition has changed.
 */
static bool
feed(PsyncMessages *messages)
{
	volatile bool result = false;

	PG_TRY();
	{
		result = fill_line(messages);
		psync_trial_end(messages);
	}
	PG_CATCH();
	{
		psync_trial_rethrow(messages);
	}
	PG_END_TRY();
	return result;
}

/* ------------------------------------------------------------------- open */

/*
 * Room for the attempts that may be under way at once.
 */
static void
make_slots(PsyncMessages *messages)
{
	int			n = messages->settings.in_flight_max;

	Assert(messages->settings.in_flight_max > 0);

	messages->nslots = n;
	messages->slots = palloc0(n * sizeof(PsyncSlot));
	messages->free_slots = palloc(n * sizeof(int));
	messages->answered = palloc(n * sizeof(int));
	for (int i = 0; i < n; i++)
	{
		messages->slots[i].items = palloc(messages->settings.batch_max);
		messages->free_slots[messages->nfree++] = n - 1 - i;
	}
}

/* Where reading goes on: in the window that was begun, or after A. */
static void
resume(PsyncMessages *messages)
{
	PsyncDelivery *delivery = messages->delivery;
	const PsyncSync *sync = delivery->sync;
	PsyncSnapshot *upto;

	if (sync->window_upto == NULL)
		return;
	upto = psync_snapshot_parse(sync->window_upto);
	if (!psync_snapshot_covers(upto, psync_reader_after(delivery->reader)))
		return;
	messages->window_open = psync_reader_open_upto(delivery->reader, upto);
	messages->skip_position = sync->window_position;
	messages->skip_xid = sync->window_xid;

	/* until something of it is settled, this is what is saved again */
	messages->line.settled_position = sync->window_position;
	messages->line.settled_xid = sync->window_xid;
}

/*
 * The target is open and takes messages.  window_open says whether the
 * delivery's reader has a window.
 */
PsyncMessages *
psync_messages_open(PsyncDelivery *delivery)
{
	MemoryContext context = AllocSetContextCreate(delivery->context,
												  "payment_sync messages",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	PsyncMessages *messages = palloc0(sizeof(PsyncMessages));

	messages->context = context;
	messages->delivery = delivery;
	messages->transport = delivery->transport->messages;
	messages->target = delivery->target;
	psync_message_settings(&messages->settings, delivery->target,
						   delivery->sync->transform);
	messages->writer = psync_event_writer(delivery->target, &messages->settings,
										  delivery->sync->transform,
										  delivery->sync->owner);
	psync_line_init(&messages->line, context, &messages->settings);
	psync_ledger_init(&messages->line.ledger, context, delivery->sync->ahead,
					  delivery->sync->nahead);
	make_slots(messages);
	dlist_init(&messages->failed);
	dlist_init(&messages->parked);
	dlist_init(&messages->changes);
	psync_keys_init(&messages->parked_keys, 1024);
	messages->asked_wait_ms = -1;
	messages->mark_position = GetXLogInsertRecPtr();
	messages->mark_xmax = U64FromFullTransactionId(ReadNextFullTransactionId());
	messages->saved_at = GetCurrentTimestamp();
	messages->failing_since = delivery->sync->failing_since;
	if (delivery->sync->failures > 0)
	{
		/* begin with a probe */
		messages->breaker = PSYNC_BREAKER_OPEN;
		messages->breaker_opened = Min(delivery->sync->failures, 30);
		messages->success_unsaved = false;
		if (messages->failing_since == 0)
			messages->failing_since = messages->saved_at;
	}
	messages->window_open = psync_reader_upto(delivery->reader) != NULL;
	if (!messages->window_open)
		resume(messages);
	else if (delivery->batch != NULL)
		begin_chunk(messages);
	MemoryContextSwitchTo(old);

	messages->looks = delivery->looks;
	psync_parked_load(messages);
	delivery->target->core_data = messages;
	return messages;
}

/* ---------------------------------------------------------------- the loop */

/*
 * DT_NOEND is later than any time.
 */
static TimestampTz
earlier(TimestampTz a, TimestampTz b)
{
	return b < a ? b : a;
}

/* When a message may be sent that may not be now. */
static TimestampTz
send_time(PsyncMessages *messages)
{
	const PsyncLine *line = &messages->line;
	TimestampTz next = DT_NOEND;
	dlist_iter	iter;

	/* with nothing in the line, a parked one is the next probe */
	if (messages->breaker == PSYNC_BREAKER_OPEN && messages->in_flight == 0 &&
		messages->pending == NULL && messages->nparked > 0)
		return messages->parked_next;
	if (messages->breaker != PSYNC_BREAKER_CLOSED || messages->nfree == 0 ||
		(messages->settings.ordering == PSYNC_ORDER_STRICT &&
		 messages->in_flight > 0))
		return next;
	if (messages->pending != NULL && messages->settings.rate_limit > 0)
		return psync_rate_next(messages);
	dlist_foreach(iter, &messages->failed)
	{
		const PsyncOutgoing *message = dlist_container(PsyncOutgoing, node, iter.cur);

		if (psync_line_may_send(messages, message))
			next = earlier(next, message->next_at);
	}
	if (psync_line_ready(line) && messages->settings.linger_ms > 0)
		next = earlier(next,
					   TimestampTzPlusMilliseconds(PSYNC_PLACE(line, line->ready[line->ready_head & line->mask])->arrived,
												   messages->settings.linger_ms));
	if (messages->nparked > 0)
		next = earlier(next, messages->parked_next);
	return next;
}

/* When there is something to do even if no answer comes. */
static TimestampTz
next_time(PsyncMessages *messages, TimestampTz now)
{
	TimestampTz next = send_time(messages);

	if (messages->more)
		return now;
	if (messages->window_open && !psync_reader_durable(messages->delivery->reader))
		next = earlier(next, TimestampTzPlusMilliseconds(now,
														 psync_standby_next_look(PSYNC_STEP_MS)));
	if (messages->unsaved_since != 0)
		next = earlier(next, TimestampTzPlusMilliseconds(messages->unsaved_since,
														 PSYNC_GROUP_MS));
	if (messages->nchanges > 0)
		next = earlier(next, TimestampTzPlusMilliseconds(messages->saved_at,
														 PSYNC_ROWS_MS));
	return earlier(next, psync_park_time(messages, now));
}

/* How long to wait for answers, in ms; -1: until there is one. */
static long
wait_time(PsyncMessages *messages, TimestampTz now)
{
	TimestampTz next = next_time(messages, now);

	if (next == DT_NOEND)
		return -1;
	return next <= now ? 0 : TimestampDifferenceMilliseconds(now, next);
}

/*
 * May we wait here?  Not if the process has other things to do, and can be
 * told what we wait for.
 */
static bool
may_wait(const PsyncMessages *messages)
{
	return messages->transport->watch == NULL ||
		psync_deliver_alone_hook == NULL || psync_deliver_alone_hook();
}

/*
 * Has enough come together, or waited long enough, to be worth a transaction?
 */
static bool
save_is_due(const PsyncMessages *messages, TimestampTz now)
{
	if (messages->nchanges >= PSYNC_ROWS_MAX ||
		messages->line.settled >= PSYNC_GROUP_EVENTS)
		return true;
	if (messages->nchanges > 0 &&
		now >= TimestampTzPlusMilliseconds(messages->saved_at, PSYNC_ROWS_MS))
		return true;
	if (messages->chunk_open && messages->chunk_at == NULL &&
		!messages->window_open && psync_line_is_empty(&messages->line))
		return true;
	return messages->unsaved_since != 0 &&
		now >= TimestampTzPlusMilliseconds(messages->unsaved_since, PSYNC_GROUP_MS);
}

/* Is there nothing but what a synchronous standby lacks? */
static bool
awaits_standby(const PsyncMessages *messages)
{
	return messages->window_open && messages->in_flight == 0 &&
		messages->pending == NULL && psync_line_is_empty(&messages->line) &&
		!psync_reader_durable(messages->delivery->reader);
}

/* Is nothing left to do, but for parked messages whose time has not come? */
static bool
is_finished(const PsyncMessages *messages)
{
	return messages->in_flight == 0 && messages->pending == NULL &&
		messages->looks == messages->delivery->looks &&
		!messages->window_open && !messages->chunk_open && !messages->fence &&
		psync_line_is_empty(&messages->line);
}

/*
 * Has nothing a chance before some time has passed?  Then the worker is more
 * useful elsewhere.
 */
static bool
is_down(PsyncMessages *messages, TimestampTz now)
{
	if (messages->in_flight > 0)
		return false;
	if (messages->breaker == PSYNC_BREAKER_CLOSED && messages->failures > 1 &&
		messages->nfailed > 0 && messages->pending == NULL &&
		!psync_line_ready(&messages->line) && !messages->window_open)
	{
		/* all there is has failed, and not for the first time */
		psync_breaker_open(messages, now);
	}
	return messages->breaker == PSYNC_BREAKER_OPEN &&
		messages->breaker_until > now;
}

/* Disable the sync, which keeps its position. */
static PsyncDeliverResult
disable(PsyncMessages *messages, const char *reason)
{
	PsyncDelivery *delivery = messages->delivery;

	if (!psync_messages_save(messages))
		return PSYNC_DELIVER_GONE;
	psync_sync_give_up(&delivery->sync->id, reason);
	psync_definition_changed();
	psync_delivery_next_transaction(delivery);
	ereport(WARNING,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("sync \"%s\" was disabled", delivery->sync->name),
			 errdetail("%s", reason),
			 errhint("Nothing is lost: payment_sync.enable_sync() goes on where it stopped.")));
	return PSYNC_DELIVER_GONE;
}

/*
 * The target is down: save what there is and let the worker go; or disable the
 * sync, if it has been down for as long as its owner will wait.
 */
static PsyncDeliverResult
give_up(PsyncMessages *messages, TimestampTz now)
{
	int64		limit = messages->settings.disable_after;

	if (limit > 0 && messages->failing_since != 0 &&
		TimestampDifferenceExceeds(messages->failing_since, now, 0) &&
		now - messages->failing_since >= limit * USECS_PER_SEC)
		return disable(messages, psprintf("The target has failed for %lld seconds: %s",
										  (long long) ((now - messages->failing_since) / USECS_PER_SEC),
										  messages->failure.reason));
	if (messages->failure_unsaved && !psync_messages_save(messages))
		return PSYNC_DELIVER_GONE;
	return PSYNC_DELIVER_WAIT;
}

/*
 * Nothing is left to do: what is worth saving at once is saved now, the rest
 * by the worker's timer.
 */
static PsyncDeliverResult
finish(PsyncMessages *messages, bool worked)
{
	if (messages->nchanges > 0 || messages->success_unsaved)
	{
		if (!psync_messages_save(messages))
			return PSYNC_DELIVER_GONE;
		return PSYNC_DELIVER_DONE;
	}
	return worked ? PSYNC_DELIVER_DONE : PSYNC_DELIVER_IDLE;
}

/*
 * See to it that what others have done is known: definitions, dead letters.
 * False: the delivery is outdated.
 */
static bool
look_around(PsyncMessages *messages)
{
	PsyncDelivery *delivery = messages->delivery;

	if (psync_delivery_changed(delivery))
		return false;
	if (psync_parked_wanted(messages))
		messages->looks = delivery->looks - 1;	/* read them anew */
	if (messages->looks != delivery->looks)
	{
		/* something was changed, perhaps who is parked */
		while (messages->nchanges > 0)
		{
			/* saving settles places, whose successors may be parked, too */
			if (!psync_messages_save(messages))
				return false;
		}
		messages->looks = delivery->looks;
		psync_parked_load(messages);
	}
	return true;
}

/*
 * Await the answers to what is under way, but not for longer than that: what is
 * not answered before the delivery is closed, is sent again.  Nothing new is
 * sent.
 */
static void
await(PsyncMessages *messages, long limit_ms)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz until = TimestampTzPlusMilliseconds(now, limit_ms);

	while (messages->in_flight > 0 && !messages->gone && now < until)
	{
		psync_messages_poll(messages, TimestampDifferenceMilliseconds(now, until));
		now = GetCurrentTimestamp();
	}
}

/*
 * The delivery is outdated: save what there is.  Its successor goes on from
 * what is saved.
 */
static PsyncDeliverResult
retire(PsyncMessages *messages)
{
	await(messages, PSYNC_RETIRE_MS);
	(void) psync_messages_save(messages);
	return PSYNC_DELIVER_GONE;
}

/*
 * All before the change that feeding is stuck at is settled: raise what was
 * the matter.  Who tries again begins with that change.
 */
static PsyncDeliverResult
raise_stuck(PsyncMessages *messages)
{
	Assert(psync_line_is_empty(&messages->line));

	await(messages, PSYNC_RETIRE_MS);
	if (!psync_messages_save(messages))
		return PSYNC_DELIVER_GONE;
	ReThrowError(messages->stuck);
}

/*
 * Deliver for a while; the header comment says how it ends.  Never holds a
 * snapshot while it waits, and never waits for more than one thing at a time.
 */
static PsyncDeliverResult
work(PsyncDelivery *delivery)
{
	PsyncMessages *messages = delivery->engine_state;
	TimestampTz started = GetCurrentTimestamp();
	TimestampTz now = started;
	bool		worked = false;

	/* whoever calls knows that the time has come */
	if (messages->breaker == PSYNC_BREAKER_OPEN)
		messages->breaker_until = Min(messages->breaker_until, now);

	while (now < TimestampTzPlusMilliseconds(started, PSYNC_STEP_MS))
	{
		uint64		settled = messages->line.settled;
		bool		watch = false;
		long		wait;

		if (!look_around(messages) || !feed(messages))
			return retire(messages);
		if (messages->stuck != NULL && psync_line_is_empty(&messages->line))
			return raise_stuck(messages);
		psync_messages_dispatch(messages, now);
		if (is_finished(messages))
			return finish(messages, worked);
		if (is_down(messages, now))
			return give_up(messages, now);
		if (awaits_standby(messages) && !save_is_due(messages, now))
		{
			psync_figures_await_standby(delivery);
			return PSYNC_DELIVER_STANDBY;
		}
		wait = wait_time(messages, now);

		/*
		 * Not if there is something to save, nor without a reason: definitions
		 * may have changed while a window was looked for.
		 */
		messages->nanswered = 0;
		if (!save_is_due(messages, now) &&
			(messages->in_flight > 0 || messages->pending != NULL || wait >= 0))
		{
			watch = wait != 0 && !may_wait(messages);
			psync_messages_poll(messages, watch ? 0 : wait);
			watch &= messages->nanswered == 0;
		}
		now = GetCurrentTimestamp();
		worked |= messages->nanswered > 0 || messages->line.settled != settled;
		psync_messages_publish(messages);

		psync_park_overdue(messages, now);
		if (messages->gone)
			return disable(messages, psprintf("The target wants no more: %s",
											  messages->failure.reason));
		if (save_is_due(messages, now) && !psync_messages_save(messages))
			return PSYNC_DELIVER_GONE;
		if (messages->nanswered == 0 &&
			psync_sync_lock_wanted(&delivery->sync->id))
		{
			(void) psync_messages_save(messages);
			return PSYNC_DELIVER_YIELD;
		}
		if (watch)
			return worked ? PSYNC_DELIVER_DONE : PSYNC_DELIVER_WATCH;
		psync_delivery_cycle_transaction(delivery);
	}
	return PSYNC_DELIVER_DONE;
}

/* --------------------------------------------------------------- the engine */

static void
engine_open(PsyncDelivery *delivery)
{
	delivery->engine_state = psync_messages_open(delivery);
}

static PsyncDeliverResult
engine_step(PsyncDelivery *delivery)
{
	PsyncDeliverResult result = work(delivery);

	MemoryContextReset(delivery->window_context);
	return result;
}

static TimestampTz
engine_unsaved_since(const PsyncDelivery *delivery)
{
	return ((PsyncMessages *) delivery->engine_state)->unsaved_since;
}

static void
engine_save(PsyncDelivery *delivery)
{
	if (psync_messages_save(delivery->engine_state))
		MemoryContextReset(delivery->window_context);
}

static bool
engine_under_way(const PsyncDelivery *delivery)
{
	return ((PsyncMessages *) delivery->engine_state)->in_flight > 0;
}

static void
engine_await(PsyncDelivery *delivery, long limit_ms)
{
	await(delivery->engine_state, limit_ms);
}

/* When parked events are due; 0: there are none. */
static TimestampTz
engine_wake_at(const PsyncDelivery *delivery)
{
	const PsyncMessages *messages = delivery->engine_state;

	if (messages->nparked == 0 || messages->parked_next == DT_NOEND)
		return 0;
	return Max(messages->parked_next, 1);
}

static bool
engine_watchable(const PsyncDelivery *delivery)
{
	return ((PsyncMessages *) delivery->engine_state)->transport->watch != NULL;
}

static pgsocket
engine_watch(const PsyncDelivery *delivery, TimestampTz *until)
{
	PsyncMessages *messages = delivery->engine_state;
	TimestampTz now = GetCurrentTimestamp();
	long		timeout_ms = -1;
	pgsocket	socket;

	Assert(messages->transport->watch != NULL);
	socket = messages->transport->watch(messages->target, &timeout_ms);
	*until = next_time(messages, now);
	if (timeout_ms >= 0)
		*until = earlier(*until, TimestampTzPlusMilliseconds(now, timeout_ms));
	return socket;
}

/* What the target said is for the sync's owner, see stat_target. */
static void
engine_failure(const PsyncDelivery *delivery, PsyncDeliveryFailure *failure)
{
	const PsyncMessages *messages = delivery->engine_state;

	failure->sqlerrcode = messages->failure.sqlerrcode != 0 ?
		messages->failure.sqlerrcode : ERRCODE_CONNECTION_EXCEPTION;
	failure->message = messages->failure.reason;
	failure->detail = NULL;
	failure->retry_at = messages->breaker_until;
	failure->failures = messages->breaker_opened;
}

static const PsyncEngine engine = {
	.open = engine_open,
	.step = engine_step,
	.unsaved_since = engine_unsaved_since,
	.save = engine_save,
	.under_way = engine_under_way,
	.await = engine_await,
	.wake_at = engine_wake_at,
	.watchable = engine_watchable,
	.watch = engine_watch,
	.failure = engine_failure,
};

void
psync_messages_init(void)
{
	psync_message_engine = &engine;
}
