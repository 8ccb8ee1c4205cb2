/*
 * window.c
 *		The engine for targets that apply windows: one step, one window.
 *
 * deliver.c has the steps, and what a position counts.
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "deliver/delivery.h"

/* How many changes go between looks at the clock. */
#define PSYNC_CHANGES_PER_CLOCK	1024

/*
 * Begin the window at the target unless it has begun: a window without
 * anything for this sync costs no round trip.  Noted before the call, so that
 * an error within it leads to abort_window().
 */
static void
ensure_window(PsyncDelivery *delivery, const PsyncWindowSize *size)
{
	PsyncWindowInfo info;

	Assert(delivery->target != NULL);

	if (delivery->window_begun)
		return;
	info.changes = size->changes;
	info.bytes = size->bytes;
	info.batch = delivery->chunk != NULL;
	delivery->window_begun = true;
	delivery->transport->begin_window(delivery->target, &info);
}

/*
 * Hand over what concerns the sync, in order of position (P4). The clock is
 * read once per thousand changes; that is often enough for a second.
 *
 * Counts what the target has not confirmed yet: an error drops the delivery
 * with its counters.
 */
static void
send_changes(PsyncDelivery *delivery, const PsyncWindowSize *size)
{
	PsyncChange change;
	uint32		shape_id;
	uint64		n = 0;

	while (psync_reader_next(delivery->reader, &change, &shape_id))
	{
		if (++n % PSYNC_CHANGES_PER_CLOCK == 0)
			psync_delivery_cycle_transaction(delivery);
		if (!psync_delivery_resolve(delivery, &change, shape_id) ||
			psync_batch_leaves_out(delivery, &change))
			continue;
		ensure_window(delivery, size);
		delivery->transport->change(delivery->target, &change);
		delivery->unsaved.changes++;
		delivery->unsaved.lag_at = change.at;
		psync_last_change_set(&delivery->mark, &change);
	}
}

/*
 * What the target has confirmed must be on its disk before we forget it: the
 * log is truncated by saved positions, and a batch goes on at its saved key.
 */
static void
flush_target(PsyncDelivery *delivery)
{
	if (delivery->target != NULL && delivery->transport->flush != NULL)
		delivery->transport->flush(delivery->target);
}

/*
 * Write what is unsaved, in a transaction of its own, and see whether the log
 * can be tidied up now.  Not while a window is at the target.
 *
 * The target is flushed first, because a saved position lets the log forget
 * what lies before it (P2). Rotation comes in the next transaction: it needs
 * the saved position to be committed, and a lock on sync_state that our own
 * row would be in the way of for others.
 */
static void
save_progress(PsyncDelivery *delivery)
{
	PsyncReadHint hint;

	Assert(!delivery->window_begun);
	Assert(stepping == delivery);

	if (delivery->unsaved.windows > 0)
		flush_target(delivery);
	psync_reader_hint(delivery->reader, &hint);
	delivery->unsaved.hint = &hint;
	delivery->unsaved.position =
		psync_snapshot_text(psync_reader_after(delivery->reader));
	delivery->unsaved.target_position = delivery->target_position;
	delivery->unsaved.generation = &delivery->sync->generation;
	if (!psync_figures_save(delivery, &delivery->unsaved))
		psync_delivery_recheck(delivery);	/* started anew meanwhile */
	delivery->sync->hint = hint;
	memset(&delivery->unsaved, 0, sizeof(delivery->unsaved));
	delivery->unsaved_since = 0;
	psync_delivery_next_transaction(delivery);
	psync_delivery_rotate(delivery);
	MemoryContextReset(delivery->window_context);
}

static TimestampTz
windows_unsaved_since(const PsyncDelivery *delivery)
{
	return delivery->unsaved_since;
}

/*
 * The window is at the target: our own books follow, in memory.  If we crash
 * before they are saved the target's position counts (psync_position_adopt()).
 */
static void
window_delivered(PsyncDelivery *delivery, const PsyncWindowSize *size)
{
	psync_figures_note(delivery);
	if (delivery->window_begun)
	{
		char	   *position = psync_position_text(delivery);

		if (delivery->target_position != NULL)
			pfree(delivery->target_position);
		delivery->target_position = MemoryContextStrdup(delivery->context, position);
		delivery->unsaved.windows++;
		delivery->unsaved.bytes += size->bytes;
		delivery->unsaved.delivered_at = GetCurrentTimestamp();
		delivery->window_begun = false;
		delivery->sync->restart = false;
	}
	Assert(!delivery->window_begun);
	Assert(psync_reader_upto(delivery->reader) != NULL);
	psync_reader_done(delivery->reader);
}

/* The target has answered: failures in a row end here, if there were any. */
static bool
note_success(PsyncDelivery *delivery)
{
	Assert(delivery->target != NULL);

	if (!delivery->failing)
		return false;
	psync_sync_save_success(&delivery->sync->id);
	delivery->failing = false;
	return true;
}

/*
 * The changes, the chunk of a batch if there is one, and the position, in one
 * transaction of the target (P5).
 *
 * A batch's progress is saved at once, not at leisure: if it were lost, the
 * chunk would be sent again, which is harmless, but a batch that crashed every
 * second would not end.
 */
static void
deliver_window(PsyncDelivery *delivery, const PsyncWindowSize *size)
{
	bool		commit;
	bool		taken = true;

	send_changes(delivery, size);
	if (delivery->chunk != NULL)
	{
		ensure_window(delivery, size);
		taken = psync_batch_send(delivery, delivery->chunk);
	}
	if (delivery->window_begun)
	{
		psync_delivery_check_shapes(delivery);
		delivery->transport->commit_window(delivery->target,
										   psync_position_text(delivery));
	}
	window_delivered(delivery, size);

	commit = TimestampDifferenceExceeds(delivery->transaction_start,
										GetCurrentTimestamp(),
										PSYNC_TRANSACTION_MS);
	if (delivery->chunk != NULL)
	{
		flush_target(delivery);
		if (taken)
			psync_batch_delivered(delivery, delivery->chunk);
		else
			psync_batch_refused(delivery, delivery->chunk);
		commit = true;
	}
	psync_figures_publish(delivery);
	commit |= note_success(delivery);
	if (commit)
		psync_delivery_next_transaction(delivery);
}

/*
 * Has a target that takes messages something to do whether or not there are
 * changes: a window that was begun, parked events?
 */
static bool
messages_pending(const PsyncDelivery *delivery)
{
	return delivery->target == NULL && delivery->sync != NULL &&
		delivery->definition != NULL &&
		(delivery->sync->window_upto != NULL || delivery->sync->parked);
}

/*
 * Find the window that is due, up to the waypoint or to one behind it, if any;
 * else up to now, with the next chunk of a batch.  A window up to a waypoint
 * carries no chunk, which would be a state of another moment.  The window that a
 * synchronous standby has kept from being sent is open still.  False: there is
 * nothing to deliver.  What is still to be copied first is known since the batch
 * at hand was loaded, unless that one has just ended.
 */
static bool
find_window(PsyncDelivery *delivery, PsyncWaypoint *waypoint)
{
	if (psync_reader_upto(delivery->reader) != NULL)
		return true;
	delivery->chunk = NULL;
	if (waypoint != NULL && delivery->batch == NULL && delivery->sync->batch_pending)
		psync_batch_load_uncopied(delivery);
	while (waypoint != NULL)
	{
		if (psync_reader_open_waypoint(delivery->reader, waypoint, &delivery->size))
			return true;
		waypoint = psync_waypoint_next(delivery->reader);
	}
	if (delivery->batch == NULL && delivery->sync->batch_pending)
		delivery->batch = psync_batch_load(delivery);
	delivery->chunk = delivery->batch;
	return psync_reader_open(delivery->reader, &delivery->size,
							 delivery->chunk ? psync_batch_read : NULL,
							 delivery->chunk) || delivery->chunk != NULL;
}

/*
 * One window, or none; see the header comment.  Allocations on the way go to
 * the window's context, which is reset at its end, or with the delivery after
 * an error.
 */
static PsyncDeliverResult
step_window(PsyncDelivery *delivery)
{
	PsyncWaypoint *waypoint = NULL;

	Assert(!delivery->window_begun);
	Assert(!ActiveSnapshotSet());

	if (psync_delivery_changed(delivery))
		return PSYNC_DELIVER_GONE;
	if (psync_figures_taken_over(delivery))
	{
		/* the target knows how far its predecessor came */
		if (psync_delivery_open_target(delivery))
			return PSYNC_DELIVER_DONE;
		psync_figures_forget(delivery);
		if (delivery->engine != &psync_window_engine)
			return delivery->engine->step(delivery);
	}
	if (psync_reader_upto(delivery->reader) == NULL)
		waypoint = psync_waypoint_next(delivery->reader);

	/* what the target takes decides whether a backlog is cut; and it may be away */
	if (messages_pending(delivery) || (waypoint != NULL && delivery->target == NULL))
	{
		if (psync_delivery_open_target(delivery))
			return PSYNC_DELIVER_DONE;
		if (delivery->engine != &psync_window_engine)
			return delivery->engine->step(delivery);
	}
	if (!find_window(delivery, waypoint))
	{
		/*
		 * All may have been at the target already, and only its answer was
		 * lost: then there is no window to tell that it is well again.
		 */
		if (delivery->target != NULL && note_success(delivery))
			psync_delivery_next_transaction(delivery);
		MemoryContextReset(delivery->window_context);
		return PSYNC_DELIVER_IDLE;
	}
	if (psync_delivery_outdated(delivery))
		return PSYNC_DELIVER_GONE;
	if (!psync_reader_durable(delivery->reader))
	{
		psync_figures_await_standby(delivery);
		return PSYNC_DELIVER_STANDBY;
	}
	if (delivery->target == NULL && psync_delivery_open_target(delivery))
		return PSYNC_DELIVER_DONE;
	/* another engine finds the window that is open, and its chunk */
	if (delivery->engine != &psync_window_engine)
		return PSYNC_DELIVER_DONE;
	deliver_window(delivery, &delivery->size);

	if (delivery->unsaved_since != 0 &&
		TimestampDifferenceExceeds(delivery->unsaved_since, GetCurrentTimestamp(),
								   PSYNC_SAVE_INTERVAL_MS))
		save_progress(delivery);
	MemoryContextReset(delivery->window_context);
	return PSYNC_DELIVER_DONE;
}

/* Its target has answered when the window is committed, so nothing is awaited. */
const PsyncEngine psync_window_engine = {
	.step = step_window,
	.unsaved_since = windows_unsaved_since,
	.save = save_progress,
};

