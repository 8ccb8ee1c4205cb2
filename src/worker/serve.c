/*
 * serve.c
 *		The syncs of one worker: whose turn it is, and when.
 *
 * A worker knows all runnable syncs of its database, and serves those whose
 * lock it holds.  It keeps their deliveries open between turns, so that a
 * change finds a connected target.  States of a sync, as one worker sees it:
 *
 *		elsewhere	owned = false; its lock is someone else's, or free
 *		owned		owned = true, delivery = NULL; nothing open (it is new,
 *					or has failed and backs off)
 *		open		owned = true, delivery set
 *
 *	elsewhere -> owned		psync_turn_take
 *	owned -> open			psync_turn_work
 *	open -> owned			psync_turn_failed
 *	open, owned -> elsewhere	psync_turn_release: dropped or disabled, wanted
 *								by a session, or left to another worker
 *
 * The back-off after a failure is kept together with the lock: so no other
 * worker knocks at the same target meanwhile.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"

#include "base/backoff.h"
#include "sync/sync.h"
#include "worker/serve.h"
#include "worker/worker.h"

/* Progress kept in memory is saved when it is that old. */
#define PSYNC_SAVE_MS			1000

PsyncServeState psync_serve;

static MemoryContext serve_context = NULL;

/*
 * Once in a worker's life.
 */
void
psync_serve_init(PsyncSharedWorker *slot)
{
	Assert(psync_serve.slot == NULL && slot != NULL);

	memset(&psync_serve, 0, sizeof(psync_serve));
	psync_serve.slot = slot;
	dlist_init(&psync_serve.syncs);
	psync_serve.reload_wanted = true;
	psync_serve.end_by = PSYNC_NEVER;
	psync_serve.last_work = GetCurrentTimestamp();
	serve_context = AllocSetContextCreate(TopMemoryContext,
										  "payment_sync served syncs",
										  ALLOCSET_SMALL_SIZES);
	psync_deliver_wait_hook = psync_neighbour_waiting;
	psync_deliver_alone_hook = psync_watch_alone;
}

/* It may have something to deliver; since when, if it did not before. */
void
psync_served_mark(PsyncServed *served, TimestampTz now)
{
	if (!served->pending)
		served->pending_since = now;
	served->pending = true;
	served->watched = false;
}

/* Note what the messages mean for our syncs. */
void
psync_serve_hear(uint32 messages)
{
	TimestampTz now = GetCurrentTimestamp();
	dlist_iter	iter;

	if ((messages & PSYNC_WAKE_CONFIG) != 0)
	{
		psync_serve.reload_wanted = true;
		psync_serve.reload_at = 0;
	}
	if ((messages & PSYNC_WAKE_YIELD) != 0)
		psync_serve.yield_wanted = true;
	if ((messages & PSYNC_WAKE_CHANGES) == 0)
		return;

	dlist_foreach(iter, &psync_serve.syncs)
		psync_served_mark(dlist_container(PsyncServed, node, iter.cur), now);
}

/* ------------------------------------------------------------------ the set */

/* There are few: no need for a hash table. */
static PsyncServed *
psync_serve_find(const pg_uuid_t *id)
{
	dlist_iter	iter;

	dlist_foreach(iter, &psync_serve.syncs)
	{
		PsyncServed *served = dlist_container(PsyncServed, node, iter.cur);

		if (memcmp(&served->id, id, sizeof(pg_uuid_t)) == 0)
			return served;
	}
	return NULL;
}

/* A runnable sync: new, or perhaps changed. */
static void
psync_serve_enlist(const PsyncSync *sync)
{
	PsyncServed *served = psync_serve_find(&sync->id);
	TimestampTz now = GetCurrentTimestamp();

	if (served == NULL)
	{
		served = MemoryContextAllocZero(serve_context, sizeof(PsyncServed));
		served->id = sync->id;
		dlist_push_tail(&psync_serve.syncs, &served->node);
	}
	strlcpy(served->name, sync->name, NAMEDATALEN);
	served->listed = true;
	Assert(served->delivery == NULL || served->owned);
	if (served->delivery != NULL)
		psync_delivery_recheck(served->delivery);

	/* It has waited for a turn only since it could have one. */
	if (!psync_served_due(served, now))
		served->pending_since = now;
	served->pending = true;
	served->watched = false;

	/*
	 * The time of the next attempt is taken from the table, where someone may
	 * have cleared it; but not as long as we could not put it there ourselves.
	 */
	if (!served->unrecorded)
	{
		served->not_before = sync->retry_at;
		served->failures = sync->failures;
		if (sync->failures == 0)
			served->streak = 0;
	}
}

/*
 * Mark, enlist, sweep.  What is no longer runnable is closed and given back;
 * a delivery that stays open finds out by itself whether its definition has
 * changed.
 */
static void
psync_serve_reload_work(void *arg)
{
	bool	   *present = arg;
	dlist_mutable_iter iter;
	ListCell   *lc;

	dlist_foreach_modify(iter, &psync_serve.syncs)
		dlist_container(PsyncServed, node, iter.cur)->listed = false;

	*present = psync_extension_present();
	if (*present)
	{
		foreach(lc, psync_sync_list_runnable())
			psync_serve_enlist(lfirst(lc));
	}

	dlist_foreach_modify(iter, &psync_serve.syncs)
	{
		PsyncServed *served = dlist_container(PsyncServed, node, iter.cur);

		if (served->listed)
			continue;
		if (served->owned)
			psync_turn_release(served, 0);
		dlist_delete(&served->node);
		pfree(served);
	}
}

/*
 * Somebody holds a lock that keeps us from reading the definitions.  What is
 * known goes on; a look at them is due later.
 */
static void
psync_serve_reload_later(const ErrorData *error)
{
	int64		delay = psync_backoff_delay(++psync_serve.reload_failures);

	delay = Min(delay, PSYNC_RECHECK_MS);
	psync_serve.reload_at = psync_after(GetCurrentTimestamp(), delay);
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("could not read the definitions of syncs: %s", error->message),
			 errcontext("failure %d in a row, next attempt in %lld ms",
						psync_serve.reload_failures, (long long) delay)));
}

/*
 * Read the definitions again, if that is wanted.  False if the extension is
 * not there.  An error ends the process, and the next one tries again: we
 * could not tell what to serve.
 */
bool
psync_serve_reload(void)
{
	bool		present = true;
	ErrorData  *error;

	Assert(psync_serve.serving == NULL);

	if (psync_serve.reload_at != 0)
		psync_serve.reload_wanted =
			psync_serve.reload_at <= GetCurrentTimestamp();
	if (!psync_serve.reload_wanted)
		return true;
	psync_serve.reload_at = 0;
	psync_serve.reload_wanted = false;
	psync_serve.reload_helped = false;

	error = psync_process_try(psync_serve_reload_work, &present);
	if (error != NULL && error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
		ReThrowError(error);
	if (error == NULL)
		psync_serve.reload_failures = 0;
	else
	{
		psync_serve_reload_later(error);
		FreeErrorData(error);
	}
	return present;
}

/*
 * Whether or not they are ours.
 */
bool
psync_serve_has_syncs(void)
{
	return !dlist_is_empty(&psync_serve.syncs);
}

/* ----------------------------------------------------------------- the pass */

/*
 * Has this sync, which is ours, waited so long for the turns of others that
 * another worker should have it?  Time in which we opened targets does not
 * count: that happens once, and there may be many when a worker starts.
 */
static bool
psync_serve_overdue(const PsyncServed *served, TimestampTz now)
{
	TimestampTz since = Max(served->pending_since, served->not_before);

	since = Max(since, psync_serve.last_open);
	return served->owned &&
		TimestampDifferenceExceeds(since, now, PSYNC_PATIENCE_MS);
}

/*
 * Give back what others want or should have, saved so that they know where
 * to go on.  Releasing does not raise; if a transaction cannot even end, the
 * process had better.
 */
static void
psync_serve_give(PsyncWork work)
{
	ErrorData  *error;

	(void) psync_serve_save(true);
	error = psync_process_try(work, NULL);
	if (error != NULL)
		ReThrowError(error);
}

/*
 * One turn for each sync that is due.  True if one is still, or again, due
 * when the pass ends.
 */
bool
psync_serve_pass(void)
{
	bool		more = false;
	int			turns = 0;
	dlist_iter	iter;

	Assert(psync_serve.serving == NULL);

	psync_serve.pass++;
	if (psync_serve.yield_wanted)
		psync_serve_give(psync_neighbour_yield);
	psync_serve.yield_wanted = false;

	dlist_foreach(iter, &psync_serve.syncs)
	{
		PsyncServed *served = dlist_container(PsyncServed, node, iter.cur);
		TimestampTz now = GetCurrentTimestamp();

		/* whoever is to go begins nothing */
		if (ProcDiePending || psync_neighbour_asked())
			return false;
		if (served->wake_at != 0 && served->wake_at <= now)
		{
			served->wake_at = 0;
			psync_served_mark(served, now);
		}
		if (served->watched && served->watch_until <= now)
			psync_served_mark(served, now);
		if (!psync_served_due(served, now))
			continue;

		if (turns > 0 && psync_serve_overdue(served, now) &&
			psync_neighbour_help_available())
		{
			psync_serve_give(psync_neighbour_leave_due);
			break;
		}
		served->pass = psync_serve.pass;
		psync_turn(served);
		turns++;
		more |= psync_served_due(served, GetCurrentTimestamp());
	}
	return more || (psync_serve.reload_wanted && psync_serve.reload_at == 0);
}

/* ------------------------------------------------------------ saving, timers */

/* In a transaction, which the delivery may end and begin anew. */
static void
psync_serve_save_work(void *arg)
{
	psync_delivery_save(((PsyncServed *) arg)->delivery);
}

/*
 * Saving has the target flush, so it may be stuck there like a window: to the
 * others it is a turn.
 */
static ErrorData *
psync_serve_save_one(PsyncServed *served)
{
	ErrorData  *error;

	Assert(psync_serve.serving == NULL);

	psync_serve.turn_started = GetCurrentTimestamp();
	psync_serve.serving = served;
	psync_crash_serving(&served->id);
	error = psync_process_try(psync_serve_save_work, served);
	psync_crash_serving(NULL);
	psync_serve.serving = NULL;
	return error;
}

/* Progress was saved: what has failed in a row has come to an end. */
void
psync_served_saved(PsyncServed *served)
{
	served->streak = 0;
	if (served->crashes > 0)
		psync_crash_settle(&served->id, true);
	served->crashes = 0;
}

/* Since when something of this sync is unsaved; 0 if nothing is. */
TimestampTz
psync_served_unsaved_since(const PsyncServed *served)
{
	return served->delivery == NULL ? 0 :
		psync_delivery_unsaved_since(served->delivery);
}

/*
 * Save progress that has been in memory long enough, or all.  A failure to do
 * so is the sync's failure, unless we are about to end and have no time: the
 * target knows its position.  True if anything was saved.
 */
bool
psync_serve_save(bool all)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		saved = false;
	dlist_iter	iter;

	dlist_foreach(iter, &psync_serve.syncs)
	{
		PsyncServed *served = dlist_container(PsyncServed, node, iter.cur);
		TimestampTz since = psync_served_unsaved_since(served);
		ErrorData  *error;

		if (since == 0 || (!all && psync_after(since, PSYNC_SAVE_MS) > now))
			continue;

		error = psync_serve_save_one(served);
		saved |= error == NULL;
		if (error == NULL)
			psync_served_saved(served);
		/* what saving has settled may set others free */
		if (error == NULL && served->watched)
			psync_served_mark(served, now);
		if (error != NULL)
		{
			if (psync_serve.end_by == PSYNC_NEVER)
				psync_turn_failed(served, error);
			FreeErrorData(error);
		}
	}
	return saved;
}

/* When there will be something to do without any message. */
TimestampTz
psync_serve_next_time(void)
{
	TimestampTz next = psync_serve.reload_at != 0 ? psync_serve.reload_at :
		PSYNC_NEVER;
	dlist_iter	iter;

	dlist_foreach(iter, &psync_serve.syncs)
	{
		PsyncServed *served = dlist_container(PsyncServed, node, iter.cur);
		TimestampTz since = psync_served_unsaved_since(served);

		if (served->pending)
			next = Min(next, served->not_before);
		else if (served->wake_at != 0)
			next = Min(next, Max(served->wake_at, served->not_before));
		if (served->watched)
			next = Min(next, served->watch_until);
		if (since != 0)
			next = Min(next, psync_after(since, PSYNC_SAVE_MS));
	}
	return next;
}

/*
 * In a transaction of its own.
 */
static void
psync_serve_release_work(void *arg)
{
	dlist_iter	iter;

	dlist_foreach(iter, &psync_serve.syncs)
	{
		PsyncServed *served = dlist_container(PsyncServed, node, iter.cur);

		if (served->owned)
			psync_turn_release(served, PSYNC_NEVER);
	}
}

/* Before an orderly exit: save everything, close everything. */
void
psync_serve_release_all(void)
{
	Assert(psync_serve.serving == NULL);

	psync_serve_give(psync_serve_release_work);
}
