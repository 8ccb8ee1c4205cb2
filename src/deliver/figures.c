/*
 * figures.c
 *		What a delivery makes known of its progress: at leisure in the sync's
 *		state, at once in shared memory (sync/live.c).
 */
#include "postgres.h"

#include "compat.h"
#include "deliver/delivery.h"

/* As saved: what is to be made known if nothing better is. */
static void
set_saved(PsyncLive *live, const PsyncSync *sync, const PsyncSnapshot *position)
{
	live->generation = sync->generation;
	live->total = sync->saved;
	psync_live_set_snapshot(&live->position, position);
	live->has_window = sync->window_upto != NULL;
	if (live->has_window)
		psync_live_set_snapshot(&live->window,
								psync_snapshot_parse(sync->window_upto));
	live->window_position = sync->window_position;
	live->window_xid = sync->window_xid;
}

/*
 * The time by which progress is to be saved runs from the first window that is
 * not.
 */
void
psync_figures_note(PsyncDelivery *delivery)
{
	if (delivery->unsaved_since == 0)
		delivery->unsaved_since = GetCurrentTimestamp();
}

/*
 * A delivery begins.  What its predecessor had counted and could not save is
 * ours to save, once the target has said that it has it, see
 * psync_figures_taken_over(); with a target that takes messages it is delivered,
 * and counted, again.
 */
void
psync_figures_begin(PsyncDelivery *delivery)
{
	const PsyncSync *sync = delivery->sync;
	PsyncLive  *live = &delivery->live;
	PsyncSyncProgress *unsaved = &delivery->unsaved;

	delivery->saved = sync->saved;
	if (psync_live_read(&sync->id, sync->generation, live) && !live->messages)
	{
		unsaved->windows = Max(live->total.windows - sync->saved.windows, 0);
		unsaved->changes = Max(live->total.changes - sync->saved.changes, 0);
		unsaved->rows_read = Max(live->total.rows_read - sync->saved.rows_read, 0);
		unsaved->bytes = Max(live->total.bytes - sync->saved.bytes, 0);
		if (unsaved->windows > 0)
			unsaved->delivered_at = live->delivered_at;
	}
	else
	{
		memset(live, 0, sizeof(*live));
		set_saved(live, sync, psync_reader_after(delivery->reader));
	}
	live->standby = false;
}

/*
 * Has a predecessor delivered windows whose position is not saved?  It is not ours
 * to save either before the target was asked for it: the position here is an
 * earlier one.
 */
bool
psync_figures_taken_over(const PsyncDelivery *delivery)
{
	return delivery->target == NULL && delivery->unsaved.windows > 0;
}

/* The target does not have what a predecessor had counted. */
void
psync_figures_forget(PsyncDelivery *delivery)
{
	memset(&delivery->unsaved, 0, sizeof(delivery->unsaved));
	delivery->live.total = delivery->saved;
}

/* False: the position was set by hand meanwhile, and ours is void. */
bool
psync_figures_save(PsyncDelivery *delivery, PsyncSyncProgress *progress)
{
	PsyncSyncCounters *saved = &delivery->saved;

	if (!psync_sync_save_progress(&delivery->sync->id, progress))
		return false;
	saved->windows += progress->windows;
	saved->changes += progress->changes;
	saved->rows_read += progress->rows_read;
	saved->bytes += progress->bytes;
	return true;
}

/* The counters, with what is not saved yet. */
static void
set_counters(PsyncDelivery *delivery, const PsyncSyncProgress *unsaved)
{
	PsyncLive  *live = &delivery->live;

	live->total.windows = delivery->saved.windows + unsaved->windows;
	live->total.changes = delivery->saved.changes + unsaved->changes;
	live->total.rows_read = delivery->saved.rows_read + unsaved->rows_read;
	live->total.bytes = delivery->saved.bytes + unsaved->bytes;
	if (unsaved->delivered_at != 0)
		live->delivered_at = unsaved->delivered_at;
	live->standby = false;
}

/*
 * A window was delivered.
 */
void
psync_figures_publish(PsyncDelivery *delivery)
{
	set_counters(delivery, &delivery->unsaved);
	psync_live_set_snapshot(&delivery->live.position,
							psync_reader_after(delivery->reader));
	psync_live_publish(&delivery->sync->id, &delivery->live);
}

/*
 * Of a target that takes messages: windows that are done, and how far the one
 * at hand is.
 */
void
psync_figures_publish_messages(PsyncDelivery *delivery,
								const PsyncSyncProgress *progress)
{
	PsyncLive  *live = &delivery->live;

	set_counters(delivery, progress);
	live->messages = true;
	if (progress->position != NULL)
		psync_live_set_snapshot(&live->position,
								psync_snapshot_parse(progress->position));
	live->has_window = progress->window_upto != NULL;
	if (live->has_window)
		psync_live_set_snapshot(&live->window,
								psync_snapshot_parse(progress->window_upto));
	live->window_position = progress->window_position;
	live->window_xid = progress->window_xid;
	psync_live_publish(&delivery->sync->id, live);
}

/*
 * A synchronous standby lacks what would be sent next.
 */
void
psync_figures_await_standby(PsyncDelivery *delivery)
{
	if (delivery->live.standby)
		return;
	delivery->live.standby = true;
	psync_live_publish(&delivery->sync->id, &delivery->live);
}
