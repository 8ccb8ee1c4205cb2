/*
 * pace.c
 *		How soon one window of a sync may follow the other.
 *
 * Most of what a small window costs is not its changes but the window: a
 * transaction at the target, two round trips between processes, a snapshot.
 * A busy sync is therefore slowed down to one window in each
 * payment_sync.window_interval, which then takes all commits of that time
 * together; on a machine whose processors are all busy, that is what leaves
 * them to the writers.
 *
 * A sync that has been quiet must not wait, nor must one customer's few
 * statements in a row.  So windows are paid for with credits: each costs one,
 * each interval earns one, and PSYNC_PACE_CREDITS can be saved up.  A payment
 * on an idle system is delivered at once; only who has used up the credits,
 * with more than 1 / window_interval commits per second for a while, is paced.
 *
 * Targets that take messages acknowledge each event by itself and are not
 * paced: there a window costs nothing at the target.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/latch.h"

#include "base/wait_event.h"
#include "worker/serve.h"

/* Windows that may follow each other at once. */
#define PSYNC_PACE_CREDITS		20

StaticAssertDecl(PSYNC_PACE_CREDITS > 0, "a quiet sync never waits");

/* Credits that the time since the last look has earned. */
static void
psync_pace_earn(PsyncServed *served, TimestampTz now)
{
	int64		interval_us = psync_window_interval * INT64CONST(1000);
	int64		earned = (now - served->paced_at) / Max(interval_us, 1);

	/* the first look; or a clock that was set back */
	if (served->paced_at == 0 || now < served->paced_at ||
		earned >= PSYNC_PACE_CREDITS - served->credits)
	{
		served->credits = PSYNC_PACE_CREDITS;
		served->paced_at = now;
		return;
	}
	served->credits += (int) earned;
	served->paced_at += earned * interval_us;
	Assert(served->credits >= 0 && served->credits <= PSYNC_PACE_CREDITS);
}

/* A window was delivered. */
void
psync_pace_spend(PsyncServed *served)
{
	Assert(served->delivery != NULL);

	if (psync_window_interval == 0 ||
		!psync_delivery_takes_windows(served->delivery))
		return;
	psync_pace_earn(served, GetCurrentTimestamp());
	if (served->credits > 0)
		served->credits--;
}

/* When the next window may begin; 0: now. */
TimestampTz
psync_pace_next(PsyncServed *served)
{
	TimestampTz now = GetCurrentTimestamp();

	if (psync_window_interval == 0 || served->paced_at == 0)
		return 0;
	psync_pace_earn(served, now);
	if (served->credits > 0)
		return 0;
	return psync_after(served->paced_at, psync_window_interval);
}

/*
 * Wait until then, in a transaction without a snapshot.  False if a message
 * about something else than changes has come, which the caller's caller must
 * see to first.
 *
 * The bit for changes is set by ourselves, so that the commits of this time
 * find it set and leave our latch alone (see psync_wakeup_slot).  It makes the
 * worker's loop look once more after the turn, as it should.
 */
bool
psync_pace_wait(TimestampTz until)
{
	PsyncSharedWorker *slot = psync_serve.slot;

	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();
		uint32		before = pg_atomic_fetch_or_u32(&slot->wake,
													PSYNC_WAKE_CHANGES);

		if ((before & ~PSYNC_WAKE_CHANGES) != 0 || psync_serve.reload_wanted ||
			psync_neighbour_asked())
			return false;
		if (now >= until)
			return true;
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 TimestampDifferenceMilliseconds(now, until),
						 psync_wait_event(PSYNC_WAIT_PACE));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}
