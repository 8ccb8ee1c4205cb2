/*
 * neighbour.c
 *		One bad neighbour harms nobody (P7): what a worker does for its other
 *		syncs while one of them takes long.
 *
 * A worker serves its syncs one after the other, and keeps their locks.  If
 * one takes long, the worker leaves the others: it closes their deliveries,
 * gives back their locks, and tells an idle worker of the same database, or
 * else the launcher, which starts another.  This happens between turns (see
 * psync_serve_pass), when a pending sync has waited too long, and from within
 * a turn, by the hook that a delivery calls before it waits for its target:
 * so a target that hangs holds up its own sync only.
 *
 * Rejected: a process that watches how long each worker has been busy.  It
 * would have to poll, and could not make a worker that is stuck give back the
 * locks of its other syncs.
 *
 * If there is nobody to take them the syncs are kept, since leaving them
 * would only cost their connections.  Then, and when the launcher wants this
 * worker for another database, the stuck sync gives up its turn after a while:
 * that is a failure like others, with back-off, so the others get theirs.  A
 * window that takes long because it is large must come to its end some time,
 * so each failure in a row doubles the patience; but not beyond a few turns of
 * a database while another one waits.
 *
 * Every wait for a target ends after PSYNC_LOOK_MS at the latest, and all is
 * looked at again: who waits for this worker is a state in shared memory, not
 * a message that could be taken by someone who has no use for it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"

#include "sync/sync.h"
#include "worker/serve.h"

/* Does another database wait for this worker? */
bool
psync_neighbour_asked(void)
{
	return pg_atomic_read_u32(&psync_serve.slot->asked) != 0;
}

/* Could anyone take syncs that we leave?  Other databases come first. */
bool
psync_neighbour_help_available(void)
{
	bool		available = false;

	LWLockAcquire(psync_control_lock, LW_SHARED);
	for (int i = 0; i < psync_max_workers; i++)
	{
		PsyncSharedWorker *slot = &psync_slots[i];
		Oid			dboid = pg_atomic_read_u32(&slot->dboid);

		if (!OidIsValid(dboid))
			available |= psync_control->waiting == 0;
		else if (dboid == MyDatabaseId && slot != psync_serve.slot)
			available |= slot->idle;
	}
	LWLockRelease(psync_control_lock);
	return available;
}

/* Tell whoever can take syncs that there are some. */
static void
psync_neighbour_call_help(void)
{
	PsyncSharedDatabase *database;

	LWLockAcquire(psync_control_lock, LW_EXCLUSIVE);
	database = psync_database_find(MyDatabaseId);
	Assert(database != NULL);
	database->help = true;
	for (int i = 0; i < psync_max_workers; i++)
	{
		PsyncSharedWorker *slot = &psync_slots[i];

		if (pg_atomic_read_u32(&slot->dboid) == MyDatabaseId && slot->idle)
			psync_wakeup_slot(slot, PSYNC_WAKE_CONFIG);
	}
	LWLockRelease(psync_control_lock);
	psync_wakeup_launcher(PSYNC_LAUNCHER_WORK);
}

/* Leave one sync to other workers; in a transaction. */
static void
psync_neighbour_leave(PsyncServed *served, TimestampTz not_before)
{
	if (served->owned)
		psync_turn_release(served, not_before);
	else
		served->not_before = Max(served->not_before, not_before);
}

/*
 * Between turns: leave those that still wait for theirs.  What has had its
 * turn in this pass is kept, so that two busy syncs end up with a worker each.
 */
void
psync_neighbour_leave_due(void *arg)
{
	TimestampTz now = GetCurrentTimestamp();
	dlist_iter	iter;

	Assert(psync_serve.serving == NULL);

	dlist_foreach(iter, &psync_serve.syncs)
	{
		PsyncServed *served = dlist_container(PsyncServed, node, iter.cur);

		if (served->pass != psync_serve.pass && psync_served_due(served, now))
			psync_neighbour_leave(served, psync_after(now, PSYNC_LEFT_MS));
	}
	psync_neighbour_call_help();
}

/* Stuck in a turn, in the transaction of a step: leave all the others. */
static void
psync_neighbour_leave_others(void)
{
	TimestampTz not_before = psync_after(GetCurrentTimestamp(), PSYNC_LEFT_MS);
	dlist_iter	iter;

	Assert(psync_serve.serving != NULL);

	dlist_foreach(iter, &psync_serve.syncs)
	{
		PsyncServed *served = dlist_container(PsyncServed, node, iter.cur);

		if (served != psync_serve.serving)
			psync_neighbour_leave(served, not_before);
	}
	psync_neighbour_call_help();
}

/*
 * Give back those syncs that a session wants to deliver itself; likewise.  It
 * has made that known before it sent its message, so one look is enough.
 */
void
psync_neighbour_yield(void *arg)
{
	dlist_iter	iter;

	dlist_foreach(iter, &psync_serve.syncs)
	{
		PsyncServed *served = dlist_container(PsyncServed, node, iter.cur);

		if (served != psync_serve.serving && served->owned &&
			psync_sync_lock_wanted(&served->id))
			psync_turn_release(served, psync_after(GetCurrentTimestamp(),
												   PSYNC_RECHECK_MS));
	}
}

/* ------------------------------------------------------------ while waiting */

/*
 * Is another worker, or a session, serving this sync, which is not ours?  If
 * so it need not concern us for a while.
 */
static bool
psync_neighbour_served_elsewhere(PsyncServed *other)
{
	Assert(!other->owned);

	if (psync_sync_lock(&other->id, false))
	{
		psync_sync_unlock(&other->id);
		return false;
	}
	other->not_before = psync_after(GetCurrentTimestamp(), PSYNC_RECHECK_MS);
	return true;
}

/*
 * When, while one sync has its turn, another one wants a worker: the earliest
 * time, PSYNC_NEVER if none does.  Messages not yet taken may concern any.
 */
static TimestampTz
psync_neighbour_wanted_at(TimestampTz now)
{
	uint32		untaken = pg_atomic_read_u32(&psync_serve.slot->wake);
	TimestampTz at = PSYNC_NEVER;
	dlist_iter	iter;

	/* Perhaps a new sync, which nobody knows yet. */
	if (psync_serve.reload_wanted && !psync_serve.reload_helped)
		return 0;

	dlist_foreach(iter, &psync_serve.syncs)
	{
		PsyncServed *other = dlist_container(PsyncServed, node, iter.cur);

		if (other == psync_serve.serving ||
			(!other->pending && !other->watched &&
			 (untaken & PSYNC_WAKE_CHANGES) == 0))
			continue;
		if (!other->owned && other->not_before <= now)
			(void) psync_neighbour_served_elsewhere(other);
		at = Min(at, other->not_before);
	}
	return at;
}

/*
 * Definitions have changed while we are stuck.  If it is our sync that was
 * disabled or dropped, waiting for its target has no point any more.
 */
static void
psync_neighbour_hear_config(void)
{
	uint32		taken = pg_atomic_fetch_and_u32(&psync_serve.slot->wake,
												~PSYNC_WAKE_CONFIG);

	if ((taken & PSYNC_WAKE_CONFIG) == 0)
		return;

	psync_serve.reload_wanted = true;
	psync_serve.reload_helped = false;
	if (!psync_extension_present() ||
		psync_turn_load_runnable(psync_serve.serving) == NULL)
	{
		psync_serve.called_off = true;
		ereport(ERROR,
				(errcode(ERRCODE_OPERATOR_INTERVENTION),
				 errmsg("sync \"%s\" is not to be delivered any more",
						psync_serve.serving->name)));
	}
}

/*
 * Others want this worker, and nobody else can serve them: until when may the
 * sync whose turn it is wait for its target?
 */
static TimestampTz
psync_neighbour_patient_until(bool asked)
{
	int			failures = Min(psync_serve.serving->failures,
							   PSYNC_STUCK_DOUBLINGS_MAX);
	int64		patience = (int64) PSYNC_STUCK_MS << failures;

	Assert(failures >= 0);
	if (asked)
		patience = Min(patience, PSYNC_STUCK_TURNS_MAX * (int64) psync_database_turn);
	return psync_after(psync_serve.turn_started, patience);
}

static void
psync_neighbour_give_up(TimestampTz now)
{
	long		waited = TimestampDifferenceMilliseconds(psync_serve.turn_started,
														 now);

	ereport(ERROR,
			(errcode(ERRCODE_QUERY_CANCELED),
			 errmsg("target has not finished a window within %ld ms, and others wait for this worker",
					waited),
			 errhint("If the target is only slow, this goes on by itself. You might need to increase payment_sync.max_workers.")));
}

/*
 * When the process is to end, a target that does not answer must not hold it
 * up.  Returns the time left.
 */
static long
psync_neighbour_ending(TimestampTz now)
{
	if (now >= psync_serve.end_by)
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("target has not answered while this worker is to end")));
	return Max(TimestampDifferenceMilliseconds(now, psync_serve.end_by), 1);
}

/* Milliseconds until that time, within limits; the latch may be set before. */
static long
psync_neighbour_look_in(TimestampTz now, TimestampTz at, long least)
{
	return Min(PSYNC_LOOK_MS,
			   Max(TimestampDifferenceMilliseconds(now, at), least));
}

/*
 * The hook: called by a delivery before each wait for its target, in a
 * transaction without a snapshot, with nothing half done on our side.
 * Returns after how many milliseconds it wants to be called again at the
 * latest.
 */
long
psync_neighbour_waiting(void)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz patient_until;
	TimestampTz wanted_at;
	bool		asked;

	/* Its own time is limited; what we do meanwhile is to give syncs back. */
	if (psync_serve.leaving)
		return PSYNC_LOOK_MS;
	if (psync_serve.end_by != PSYNC_NEVER)
		return psync_neighbour_ending(now);

	/* Not in a turn: a close. */
	if (psync_serve.serving == NULL)
		return PSYNC_LOOK_MS;

	psync_neighbour_hear_config();
	if ((pg_atomic_read_u32(&psync_serve.slot->wake) & PSYNC_WAKE_YIELD) != 0)
		psync_neighbour_yield(NULL);

	asked = psync_neighbour_asked();
	wanted_at = asked ? now : psync_neighbour_wanted_at(now);

	/* It need not be left nor given up: its turn ends, and it is watched. */
	if (psync_delivery_watchable(psync_serve.serving->delivery))
		return psync_neighbour_look_in(now, wanted_at, 0);

	wanted_at = Max(wanted_at, psync_after(psync_serve.turn_started,
										   PSYNC_PATIENCE_MS));
	if (wanted_at > now)
		return psync_neighbour_look_in(now, wanted_at, 1);

	if (!asked && psync_neighbour_help_available())
	{
		psync_neighbour_leave_others();
		psync_serve.reload_helped = true;
		return PSYNC_LEFT_MS;
	}
	patient_until = psync_neighbour_patient_until(asked);
	if (patient_until <= now)
		psync_neighbour_give_up(now);
	return psync_neighbour_look_in(now, patient_until, 1);
}
