/*
 * plan.c
 *		The launcher's decisions: which database gets a delivery worker now.
 *
 * Databases without a worker come first, in turn; then those in which a worker
 * has left syncs to others.  When slots run out, workers elsewhere are asked
 * to leave, so that every database gets its turn (P7).
 *
 * All of this happens under the lock, on plain numbers: what needs memory or
 * may fail is left to launcher.c.
 */
#include "postgres.h"

#include "miscadmin.h"

#include "worker/process.h"

/*
 * A worker that ends by an error is not replaced before this long after its
 * start: an error that hits every worker at once, such as a library that
 * cannot be loaded, must not keep the postmaster forking.
 */
#define PSYNC_RESTART_DELAY_MS	5000

/* One without work may leave sooner than after payment_sync.database_turn. */
#define PSYNC_IDLE_TURN_MS		1000

/* How often a worker that is to leave is reminded. */
#define PSYNC_REMIND_MS			500

/* One that has not left after so many turns is not counted on any more. */
#define PSYNC_LEAVE_TURNS		4

/* Where to begin among the databases, so that all get their turn. */
static int	next_database = 0;

/*
 * A database in which a worker has looked for the extension in vain.  The
 * launcher remembers it, and its entry becomes free; unless a message that
 * came meanwhile makes it worth a new look.
 */
static void
psync_plan_absent(PsyncPlan *plan, PsyncSharedDatabase *database)
{
	Assert(database->presence == PSYNC_EXTENSION_ABSENT);

	if ((pg_atomic_read_u32(&database->pending) & PSYNC_WAKE_CONFIG) != 0)
		database->presence = PSYNC_EXTENSION_UNKNOWN;
	else if (database->holds == 0)
	{
		Assert(plan->nabsent < psync_max_databases);
		plan->absent[plan->nabsent++] = pg_atomic_read_u32(&database->dboid);
		psync_database_forget(database);
	}
}

/* From when on the database, which has no worker, needs one. */
static TimestampTz
psync_plan_wanted_at(PsyncSharedDatabase *database)
{
	uint32		pending = pg_atomic_read_u32(&database->pending);
	TimestampTz at = database->due;

	Assert(database->holds >= 0);

	if (database->holds > 0 || database->presence == PSYNC_EXTENSION_ABSENT)
		return PSYNC_NEVER;

	if (database->presence == PSYNC_EXTENSION_UNKNOWN ||
		(pending & PSYNC_WAKE_CONFIG) != 0)
		at = 0;
	else if ((pending & PSYNC_WAKE_CHANGES) != 0)
		at = Min(at, database->changes_after);

	return at == PSYNC_NEVER ? at : Max(at, database->start_after);
}

/*
 * Give the database a slot; false if none is free.  Messages that wait for a
 * worker are dropped: the new one begins with a look at everything, and what
 * comes from now on finds the slot.
 */
static bool
psync_plan_grant(PsyncPlan *plan, PsyncSharedDatabase *database)
{
	PsyncSharedWorker *slot = psync_slot_claim(pg_atomic_read_u32(&database->dboid));

	if (slot == NULL)
		return false;

	pg_atomic_exchange_u32(&database->pending, 0);
	database->due = PSYNC_NEVER;
	database->help = false;
	database->start_after = TimestampTzPlusMilliseconds(slot->started_at,
														PSYNC_RESTART_DELAY_MS);

	Assert(plan->ngranted < psync_max_workers);
	Assert(slot >= psync_slots && slot < psync_slots + psync_max_workers);
	plan->granted[plan->ngranted++] = slot - psync_slots;
	return true;
}

/*
 * Databases that have no worker and need one now, or later (plan->next).
 * Returns how many must go without.  Those that were refused begin the next
 * round, so that few slots serve many databases fairly.
 */
static int
psync_plan_first_workers(PsyncPlan *plan, TimestampTz now)
{
	int			start = next_database;
	int			waiting = 0;

	for (int i = 0; i < psync_max_databases; i++)
	{
		int			n = (start + i) % psync_max_databases;
		PsyncSharedDatabase *database = &psync_databases[n];
		Oid			dboid = pg_atomic_read_u32(&database->dboid);
		TimestampTz at;

		if (!OidIsValid(dboid) || psync_database_workers(dboid) > 0)
			continue;

		if (database->presence == PSYNC_EXTENSION_ABSENT)
			psync_plan_absent(plan, database);
		if (pg_atomic_read_u32(&database->dboid) != dboid)
			continue;			/* forgotten */

		at = psync_plan_wanted_at(database);
		if (at > now)
			plan->next = Min(plan->next, at);
		else if (psync_plan_grant(plan, database))
			next_database = (n + 1) % psync_max_databases;
		else
		{
			waiting++;
			plan->short_of_workers |=
				database->presence == PSYNC_EXTENSION_PRESENT;
		}
	}
	return waiting;
}

/* Is a worker of the database free to take syncs, or about to come? */
static bool
psync_plan_has_idle_worker(Oid dboid)
{
	for (int i = 0; i < psync_max_workers; i++)
	{
		if (pg_atomic_read_u32(&psync_slots[i].dboid) == dboid &&
			(psync_slots[i].idle || psync_slots[i].pid == 0))
			return true;
	}
	return false;
}

/*
 * Further workers where one has left syncs to others, unless an idle worker,
 * which has been told as well, can take them.
 */
static void
psync_plan_further_workers(PsyncPlan *plan)
{
	for (int i = 0; i < psync_max_databases; i++)
	{
		PsyncSharedDatabase *database = &psync_databases[i];
		Oid			dboid = pg_atomic_read_u32(&database->dboid);

		if (OidIsValid(dboid) && database->help && database->holds == 0 &&
			!psync_plan_has_idle_worker(dboid) &&
			!psync_plan_grant(plan, database))
			plan->short_of_workers = true;
	}
}

/*
 * Remind those that were asked.  Returns how many slots will be free before
 * long: whoever does not leave in time, which is none of ours but for a process
 * that is stopped, is not to keep the others waiting.
 */
static int
psync_plan_remind(TimestampTz now)
{
	int			leaving = 0;

	for (int i = 0; i < psync_max_workers; i++)
	{
		PsyncSharedWorker *slot = &psync_slots[i];

		if (!OidIsValid(pg_atomic_read_u32(&slot->dboid)))
			continue;
		if (pg_atomic_read_u32(&slot->asked) == 0)
		{
			leaving += slot->leaving ? 1 : 0;
			continue;
		}
		psync_wakeup_leave(slot);
		if (TimestampTzPlusMilliseconds(slot->asked_at, PSYNC_LEAVE_TURNS *
										(int64) psync_database_turn) > now)
			leaving++;
	}
	return leaving;
}

/* From when on the worker may be asked to leave. */
static TimestampTz
psync_plan_may_leave(const PsyncSharedWorker *slot)
{
	int			stay = psync_database_turn;

	if (slot->idle)
		stay = Min(stay, PSYNC_IDLE_TURN_MS);
	return TimestampTzPlusMilliseconds(slot->started_at, stay);
}

/*
 * Databases wait and all slots are taken: ask as many workers to leave, the
 * idle ones first, then any that has been there long enough.  That a slot is
 * asked for stays in shared memory until it is free, and is looked at again
 * here while anyone waits: no message that is lost keeps a database waiting.
 */
static void
psync_plan_ask_leave(PsyncPlan *plan, int waiting, TimestampTz now)
{
	waiting -= psync_plan_remind(now);
	plan->next = Min(plan->next,
					 TimestampTzPlusMilliseconds(now, PSYNC_REMIND_MS));

	for (int round = 0; round < 2; round++)
	{
		for (int i = 0; i < psync_max_workers && waiting > 0; i++)
		{
			PsyncSharedWorker *slot = &psync_slots[i];
			TimestampTz may_leave = psync_plan_may_leave(slot);

			if (!OidIsValid(pg_atomic_read_u32(&slot->dboid)) ||
				pg_atomic_read_u32(&slot->asked) != 0 || slot->leaving ||
				(round == 0 && !slot->idle))
				continue;
			if (may_leave > now)
			{
				plan->next = Min(plan->next, may_leave);
				continue;
			}
			slot->asked_at = now;
			psync_wakeup_leave(slot);
			waiting--;
		}
	}
}

/* Who gets a slot now, and when is the next time to look? */
void
psync_plan(PsyncPlan *plan)
{
	TimestampTz now = GetCurrentTimestamp();
	int			waiting;

	plan->ngranted = 0;
	plan->nabsent = 0;
	plan->next = PSYNC_NEVER;
	plan->short_of_workers = false;

	LWLockAcquire(psync_control_lock, LW_EXCLUSIVE);
	waiting = psync_plan_first_workers(plan, now);
	if (waiting > 0)
		psync_plan_ask_leave(plan, waiting, now);
	else
		psync_plan_further_workers(plan);
	psync_control->waiting = waiting;
	LWLockRelease(psync_control_lock);
}
