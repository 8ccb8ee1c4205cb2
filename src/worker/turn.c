/*
 * turn.c
 *		One sync's turn: lock, open, deliver, and what happens on failure.
 *
 * A turn is one call of psync_process_try: whatever goes wrong in it, at the
 * target or here, is this sync's failure and nobody else's (P7).  Only
 * FATAL, that is, being told to go, gets through.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"

#include "base/backoff.h"
#include "sync/admin.h"
#include "worker/serve.h"
#include "worker/worker.h"

/*
 * Close the delivery and give back the lock; must be called in a transaction,
 * and does not raise.  If the delivery was not saved before (from within a
 * step there is no way to), no change is lost: the target's own record of the
 * position is ahead of ours, and the next delivery reads it.  Only what was
 * counted in the last second is.
 */
void
psync_turn_release(PsyncServed *served, TimestampTz not_before)
{
	PsyncDelivery *delivery = served->delivery;

	Assert(served->owned);
	Assert(IsTransactionState());

	/* what is under way may still be answered; nobody is served meanwhile */
	psync_crash_serving(&served->id);
	psync_serve.leaving = true;
	if (delivery != NULL)
		psync_delivery_leave(delivery, psync_serve.end_by == PSYNC_NEVER ?
							 PSYNC_LEAVE_MS : PSYNC_END_MS / 5);
	psync_serve.leaving = false;

	/* Forget it first: an interrupt must not make us close it twice. */
	served->delivery = NULL;
	if (delivery != NULL)
		psync_delivery_close(delivery);
	psync_crash_serving(psync_serve.serving != NULL ?
						&psync_serve.serving->id : NULL);
	psync_sync_unlock(&served->id);
	served->owned = false;
	served->watched = false;
	served->wake_at = 0;
	served->not_before = not_before;
}

/* The sync as it is defined now; NULL if it is not to be delivered. */
PsyncSync *
psync_turn_load_runnable(const PsyncServed *served)
{
	PsyncSync  *sync = psync_sync_load(&served->id);

	if (sync == NULL || sync->server == NULL || !sync->enabled ||
		!sync->has_state)
		return NULL;
	return sync;
}

/*
 * Try to become the one who serves the sync.  What we know of it may be older
 * than what its last server did, so it is read anew.
 */
static bool
psync_turn_take(PsyncServed *served)
{
	PsyncSync  *sync;

	Assert(!served->owned && served->delivery == NULL);

	if (!psync_sync_lock(&served->id, false))
	{
		served->not_before = psync_after(GetCurrentTimestamp(),
										 PSYNC_RECHECK_MS);
		return false;
	}
	served->owned = true;

	sync = psync_turn_load_runnable(served);
	if (sync == NULL)
	{
		psync_turn_release(served, PSYNC_NEVER);
		psync_serve.reload_wanted = true;
		return false;
	}
	served->failures = sync->failures;
	served->not_before = sync->retry_at;
	served->unrecorded = false;
	return served->not_before <= GetCurrentTimestamp();
}

/* Does another sync of this worker wait for its turn? */
static bool
psync_turn_others_due(TimestampTz now)
{
	dlist_iter	iter;

	dlist_foreach(iter, &psync_serve.syncs)
	{
		PsyncServed *other = dlist_container(PsyncServed, node, iter.cur);

		if (other != psync_serve.serving && psync_served_due(other, now))
			return true;
	}
	return false;
}

/* Between windows: should the sync let others have a turn? */
static bool
psync_turn_is_over(void)
{
	TimestampTz now = GetCurrentTimestamp();

	if (psync_neighbour_asked())
		return true;
	if (!TimestampDifferenceExceeds(psync_serve.turn_started, now,
									PSYNC_TURN_MS))
		return false;

	return pg_atomic_read_u32(&psync_serve.slot->wake) != 0 ||
		psync_serve.reload_wanted || psync_turn_others_due(now);
}

/*
 * Before each window: wait if the sync is paced.  False ends the turn: others
 * are due, who may as well use the time, or there is a message for the loop.
 */
static bool
psync_turn_pace(PsyncServed *served)
{
	TimestampTz next = psync_pace_next(served);

	if (next == 0)
		return true;
	if (psync_turn_others_due(GetCurrentTimestamp()))
	{
		served->not_before = next;
		return false;
	}
	return psync_pace_wait(next);
}

/*
 * The target is down, as the delivery has recorded.  It stays open: what it
 * was about to send is to be the same next time.
 */
static void
psync_turn_wait(PsyncServed *served)
{
	PsyncDeliveryFailure failure;
	TimestampTz now = GetCurrentTimestamp();

	psync_delivery_failure(served->delivery, &failure);
	served->failures = failure.failures;
	served->not_before = failure.retry_at;
	served->pending = true;
	served->pending_since = now;
	ereport(WARNING,
			(errcode(failure.sqlerrcode),
			 errmsg("sync \"%s\" failed: %s", served->name, failure.message),
			 failure.detail ? errdetail_internal("%s", failure.detail) : 0,
			 errcontext("failure %d in a row, next attempt in %lld ms",
						failure.failures,
						(long long) Max(failure.retry_at - now, 0) / 1000)));
}

/*
 * After a step: has progress been saved?  After a crash it is at once, so that
 * the next one is known to be another.
 */
static void
psync_turn_note_saved(PsyncServed *served, bool saved)
{
	if (served->crashes > 0 &&
		psync_delivery_unsaved_since(served->delivery) != 0)
	{
		psync_delivery_save(served->delivery);
		saved = true;
	}
	if (saved)
		psync_served_saved(served);
}

/*
 * A synchronous standby lacks what is to be sent (P3).  That is no failure, and
 * the other syncs have their turns, though they will wait as well.
 */
static void
psync_turn_await_standby(PsyncServed *served)
{
	TimestampTz now = GetCurrentTimestamp();
	long		ms = psync_standby_next_look(served->standby_waited);

	served->standby_waited += ms;
	served->not_before = psync_after(now, ms);
	served->pending = true;
	served->pending_since = now;
}

/*
 * Deliver windows until there is none, or the turn is over.  "Pending" is
 * cleared only here, after a look that began when all messages taken so far
 * had been heard: changes committed since then have set a new one.
 */
static void
psync_turn_deliver(PsyncServed *served)
{
	Assert(served->owned && served->delivery != NULL);

	while (psync_turn_pace(served))
	{
		uint64		saves = psync_progress_saves;
		PsyncDeliverResult result = psync_delivery_step(served->delivery);

		if (result != PSYNC_DELIVER_STANDBY)
			served->standby_waited = 0;
		if (result != PSYNC_DELIVER_GONE && result != PSYNC_DELIVER_WAIT)
			psync_turn_note_saved(served, psync_progress_saves != saves);
		if (result == PSYNC_DELIVER_GONE)
		{
			psync_turn_release(served, PSYNC_NEVER);
			psync_serve.reload_wanted = true;
			return;
		}
		if (result == PSYNC_DELIVER_IDLE)
		{
			served->pending = false;
			served->wake_at = psync_delivery_wake_at(served->delivery);
			return;
		}
		if (result == PSYNC_DELIVER_WATCH)
		{
			psync_watch_begin(served);
			return;
		}
		if (result == PSYNC_DELIVER_WAIT)
		{
			psync_turn_wait(served);
			return;
		}
		if (result == PSYNC_DELIVER_STANDBY)
		{
			psync_turn_await_standby(served);
			return;
		}
		if (result == PSYNC_DELIVER_YIELD)
		{
			served->pending_since = GetCurrentTimestamp();
			return;
		}
		Assert(result == PSYNC_DELIVER_DONE);
		psync_pace_spend(served);
		served->failures = 0;	/* as the delivery has recorded */
		served->unrecorded = false;
		psync_serve.last_work = GetCurrentTimestamp();
		if (psync_turn_is_over())
		{
			served->pending_since = psync_serve.last_work;
			return;
		}
		psync_worker_next_transaction();
	}
}

/*
 * Before a delivery is opened: have workers died of this one?  If the last has
 * not been recorded, that is this turn's failure.
 */
static void
psync_turn_check_crashes(PsyncServed *served)
{
	bool		recorded;

	served->crashes = psync_crash_count(&served->id, &recorded);
	served->crashed = served->crashes > 0 && !recorded;
	if (served->crashed)
		ereport(ERROR,
				(errcode(ERRCODE_CRASH_SHUTDOWN),
				 errmsg("worker process died while it served this sync"),
				 errdetail("This has happened %d times in a row.", served->crashes),
				 errhint("The server log before this says how the process ended.")));
}

/* Runs in a transaction of its own; an error is psync_turn_failed's. */
static void
psync_turn_work(void *arg)
{
	PsyncServed *served = arg;

	Assert(served == psync_serve.serving);

	if (!served->owned && !psync_turn_take(served))
		return;

	/* Opening counts as the sync's own time, see psync_serve_overdue. */
	if (served->delivery == NULL)
	{
		psync_turn_check_crashes(served);
		served->delivery = psync_delivery_create(&served->id,
												 psync_worker_next_transaction);
		psync_turn_deliver(served);
		psync_serve.last_open = GetCurrentTimestamp();
	}
	else
		psync_turn_deliver(served);
}

/* ------------------------------------------------------------------ failure */

/* What is to be done after a failure. */
typedef struct PsyncTurnFailure
{
	PsyncServed *served;
	const ErrorData *error;
	bool		void_now;		/* out: the sync is not runnable any more */
	bool		disabled;		/* out: it has crashed too often */
} PsyncTurnFailure;

/*
 * The target's connection is not to be trusted after an error, whatever it
 * was, so the delivery is always closed.  Its lock is kept.
 */
static void
psync_turn_close(void *arg)
{
	PsyncServed *served = arg;
	PsyncDelivery *delivery = served->delivery;

	served->delivery = NULL;
	served->watched = false;
	if (delivery != NULL)
		psync_delivery_close(delivery);
}

/*
 * The last of several crashes is to be recorded: is that enough?  Then the sync
 * is disabled; its position stays.
 */
static void
psync_turn_limit_crashes(PsyncTurnFailure *failure)
{
	PsyncServed *served = failure->served;

	if (!served->crashed || psync_max_crashes == 0 ||
		served->crashes < psync_max_crashes)
		return;
	psync_sync_give_up(&served->id,
					   psprintf("%d worker processes in a row died while they served it",
								served->crashes));
	psync_definition_changed();
	failure->disabled = true;
}

/*
 * In a transaction of its own, since that of the turn has failed.
 */
static void
psync_turn_record_failure(void *arg)
{
	PsyncTurnFailure *failure = arg;
	PsyncServed *served = failure->served;

	psync_turn_close(served);
	failure->void_now = !psync_extension_present() ||
		psync_turn_load_runnable(served) == NULL;
	if (failure->void_now)
		return;
	psync_sync_save_failure(&served->id,
							unpack_sql_state(failure->error->sqlerrcode),
							failure->error->message,
							failure->error->detail,
							served->not_before);
	psync_turn_limit_crashes(failure);
	psync_batch_note_failure(&served->id, failure->error->sqlerrcode);
}

/* Once per failure, in the server log; the text holds no secret (P9). */
static void
psync_turn_report(const PsyncServed *served, const ErrorData *error,
				  int64 delay)
{
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("sync \"%s\" failed: %s", served->name, error->message),
			 error->detail ? errdetail_internal("%s", error->detail) : 0,
			 error->hint ? errhint("%s", error->hint) : 0,
			 errcontext("failure %d in a row, next attempt in %lld ms",
						served->streak, (long long) delay)));
}

/*
 * Who waited for a lock, the target or we?  The server's own words do not say.
 */
static void
psync_turn_explain(ErrorData *error)
{
	if (error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE && error->detail == NULL &&
		error->funcname != NULL && strcmp(error->funcname, "ProcessInterrupts") == 0)
		error->detail = psprintf("Another transaction of this server, perhaps one left open, holds a lock that the worker has waited for as long as payment_sync.lock_timeout allows.");
}

/* The failure is in the table, or could not be put there. */
static void
psync_turn_recorded(const PsyncTurnFailure *failure, bool recorded)
{
	PsyncServed *served = failure->served;

	if (!recorded || !served->crashed)
		return;
	psync_crash_settle(&served->id, failure->disabled);
	served->crashed = false;
	if (failure->disabled)
		ereport(WARNING,
				(errcode(ERRCODE_CRASH_SHUTDOWN),
				 errmsg("sync \"%s\" was disabled", served->name),
				 errdetail("%d worker processes in a row died while they served it.",
						   served->crashes),
				 errhint("Nothing is lost: payment_sync.enable_sync() goes on where it stopped.")));
}

/*
 * Close, back off, record, report.  The definitions may have changed under
 * the step, so they are read again; a sync that was disabled or dropped, or is
 * gone with the extension, has not failed.
 *
 * The delay grows with failures in a row.  One after windows that were
 * delivered is in a row with those before all the same, unless their progress
 * could be saved: a sync that delivers, but cannot save that, would otherwise
 * try without pause.
 */
void
psync_turn_failed(PsyncServed *served, ErrorData *error)
{
	PsyncTurnFailure failure = {.served = served, .error = error};
	TimestampTz now = GetCurrentTimestamp();
	ErrorData  *second;
	int64		delay;

	Assert(psync_serve.serving == NULL);
	Assert(served->owned || served->delivery == NULL);

	psync_turn_explain(error);
	served->failures++;
	served->streak = Max(served->streak + 1, served->failures);
	if (served->crashed)
		served->streak = Max(served->streak, served->crashes);
	delay = psync_backoff_delay(served->streak);
	if (served->crashed)
		delay = Max(delay, Min(PSYNC_CRASH_DELAY_MS,
							   Max(psync_retry_delay_min, psync_retry_delay_max)));
	served->not_before = psync_after(now, delay);
	served->pending = true;
	served->pending_since = now;
	psync_serve.reload_wanted = true;

	/*
	 * Recording may fail, too (a full disk, say).  Then the next attempt
	 * relies on what this process remembers.
	 */
	psync_crash_serving(&served->id);
	second = psync_process_try(psync_turn_record_failure, &failure);
	psync_crash_serving(NULL);
	psync_turn_recorded(&failure, second == NULL);
	if (!failure.void_now)
		psync_turn_report(served, error, delay);
	served->unrecorded = second != NULL;
	if (second != NULL)
	{
		psync_turn_report(served, second, delay);
		FreeErrorData(second);
	}
}

/*
 * The turn was broken off because its sync had been disabled or dropped.  That
 * is no failure, also if the sync is enabled again by now.
 */
static void
psync_turn_call_off(PsyncServed *served)
{
	ErrorData  *error = psync_process_try(psync_turn_close, served);

	served->pending = true;
	served->pending_since = GetCurrentTimestamp();
	psync_serve.reload_wanted = true;
	if (error != NULL)
	{
		psync_turn_report(served, error, 0);
		FreeErrorData(error);
	}
}

/* ----------------------------------------------------------------- the turn */

/* For psync_worker_pid(). */
static void
psync_turn_publish(const PsyncServed *served)
{
	LWLockAcquire(psync_control_lock, LW_EXCLUSIVE);
	psync_serve.slot->serving = served != NULL;
	if (served != NULL)
		psync_serve.slot->sync = served->id;
	LWLockRelease(psync_control_lock);
}

/*
 * One turn of one sync, with all that may come of it; does not raise.
 */
void
psync_turn(PsyncServed *served)
{
	char		activity[NAMEDATALEN + 16];
	ErrorData  *error;

	Assert(psync_serve.serving == NULL);

	/* What pg_stat_activity shows as the query. */
	snprintf(activity, sizeof(activity), "sync \"%s\"", served->name);
	pgstat_report_activity(STATE_RUNNING, activity);
	psync_turn_publish(served);
	psync_serve.turn_started = GetCurrentTimestamp();
	psync_serve.called_off = false;
	psync_crash_serving(&served->id);
	psync_serve.serving = served;

	error = psync_process_try(psync_turn_work, served);

	psync_crash_serving(NULL);
	psync_serve.serving = NULL;
	psync_turn_publish(NULL);
	if (error != NULL)
	{
		if (psync_serve.called_off)
			psync_turn_call_off(served);
		else
			psync_turn_failed(served, error);
		FreeErrorData(error);
	}
}
