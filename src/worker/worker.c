/*
 * worker.c
 *		A delivery worker: a process that serves one database.
 *
 * The launcher starts it with a slot; it connects, looks for the extension,
 * and serves the runnable syncs (serve.c) until there is a reason to leave:
 *
 *		the extension is not there
 *		there are no runnable syncs
 *		it has had no work for a while, and the database has another worker
 *		the launcher needs the slot for another database
 *		SIGTERM: shutdown, pg_terminate_backend(), or a hold (hold.c)
 *
 * The loop is: take the messages, read the definitions if they changed, give
 * each sync that is due a turn, save what is old enough, sleep until a message
 * or the next time computed.  It never polls.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "base/wait_event.h"
#include "compat.h"
#include "log/log.h"
#include "sync/sync.h"
#include "worker/serve.h"
#include "worker/worker.h"

/*
 * Tidying: emptying log tables that no sync needs any more.  A worker tidies
 * some time after it has saved progress or heard that definitions have
 * changed, and again while there is more to do.  In a database without
 * runnable syncs changes may be logged all the same; so often, at most, they
 * are a reason to start a worker that tidies and leaves.
 */
#define PSYNC_TIDY_MS			5000

/* How often to look for syncs that hold back too much of the log. */
#define PSYNC_LIMIT_CHECK_MS	5000
#define PSYNC_TIDY_ALONE_MS		60000

/* Without a delivery for so long, there is time for other things. */
#define PSYNC_QUIET_MS			1000

static PsyncSharedWorker *my_slot = NULL;

/* When to tidy. */
static TimestampTz tidy_at = PSYNC_NEVER;

TimestampTz (*psync_worker_turn_hook) (bool quiet, bool asked) = NULL;

/* When to call it. */
static TimestampTz turn_hook_at = PSYNC_NEVER;

/* Has the launcher been told what is left to do?  See psync_worker_decide. */
static bool left_in_order = false;

/* ------------------------------------------------------------ coming, going */

/*
 * Runs after the process has left the database (it is registered before the
 * process enters it), so that whoever waits for the slot to become free can
 * rely on that; and after its locks are released, so that the workers that
 * remain can take its syncs.
 */
static void
psync_worker_exit(int code, Datum arg)
{
	Oid			dboid = pg_atomic_read_u32(&my_slot->dboid);

	Assert(OidIsValid(dboid) && my_slot->pid == MyProcPid);

	/* One that has not left in order has left work behind. */
	LWLockAcquire(psync_control_lock, LW_EXCLUSIVE);
	psync_crash_exit();
	psync_slot_release(my_slot, !left_in_order);
	LWLockRelease(psync_control_lock);

	ConditionVariableBroadcast(&psync_control->gone);
	(void) psync_wakeup_workers(dboid, PSYNC_WAKE_CONFIG);
	psync_wakeup_launcher(PSYNC_LAUNCHER_WORK);
}

/* Report to the slot; false if it is not ours any more. */
static bool
psync_worker_attach(int n, const PsyncWorkerStart *start)
{
	PsyncSharedWorker *slot = &psync_slots[n];
	bool		ok;

	Assert(n >= 0 && n < psync_max_workers);

	LWLockAcquire(psync_control_lock, LW_EXCLUSIVE);
	ok = pg_atomic_read_u32(&slot->dboid) == start->dboid &&
		slot->generation == start->generation;
	if (ok)
	{
		Assert(slot->pid == 0);
		slot->pid = MyProcPid;
		pg_atomic_write_u32(&slot->proc, psync_my_proc_number() + 1);
	}
	LWLockRelease(psync_control_lock);

	if (ok)
	{
		my_slot = slot;
		psync_crash_attach(n);
		on_shmem_exit(psync_worker_exit, (Datum) 0);
	}
	return ok;
}

/*
 * Settings that someone may have made for the database or for everybody must
 * not change what a worker does.  An empty origin: what we write ourselves is
 * our own.  Commits of a worker follow what targets know, who have nothing that
 * a synchronous standby lacks; they need not wait for it, and a worker that
 * hung there could neither be told anything nor serve anybody.
 */
void
psync_worker_settings(void)
{
	static const char *const settings[][2] = {
		{"search_path", ""},
		{"session_replication_role", "origin"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"lock_timeout", "0"},
		{"statement_timeout", "0"},
		{"transaction_timeout", "0"},	/* 17 and newer */
		{"idle_in_transaction_session_timeout", "0"},
		{"synchronous_commit", "local"},
		{"payment_sync.origin", ""},
	};

	for (int i = 0; i < lengthof(settings); i++)
	{
		if (GetConfigOption(settings[i][0], true, false) != NULL)
			SetConfigOption(settings[i][0], settings[i][1],
							PGC_SUSET, PGC_S_OVERRIDE);
	}
	SetConfigOption("application_name", PSYNC_WORKER_TYPE,
					PGC_USERSET, PGC_S_OVERRIDE);
}

/*
 * Locks of this server are waited for within limits, or a transaction that
 * someone has left open would keep all syncs of this worker waiting.  After a
 * reload the setting may be another.
 */
static void
psync_worker_limit_locks(void)
{
	static int	limit = 0;
	char		value[16];

	if (limit == psync_lock_timeout)
		return;
	limit = psync_lock_timeout;
	snprintf(value, sizeof(value), "%d", limit);
	SetConfigOption("lock_timeout", value, PGC_SUSET, PGC_S_OVERRIDE);
	psync_owner_lock_timeout = Max(limit / 10, 1);
}

/* ------------------------------------------------------------------- leaving */

/* Why a worker leaves, and so what the launcher should do next. */
typedef enum PsyncLeave
{
	PSYNC_LEAVE_NOT,
	PSYNC_LEAVE_ABSENT,			/* wait until the extension is created */
	PSYNC_LEAVE_NO_SYNCS,		/* wait for definitions, tidy now and then */
	PSYNC_LEAVE_IDLE,			/* the others suffice */
	PSYNC_LEAVE_ASKED			/* start another when there is something to do */
} PsyncLeave;

/* Is there another worker in this database that means to stay? */
static bool
psync_worker_has_sibling(void)
{
	for (int i = 0; i < psync_max_workers; i++)
	{
		PsyncSharedWorker *slot = &psync_slots[i];

		if (slot != my_slot && slot->pid != 0 && !slot->leaving &&
			pg_atomic_read_u32(&slot->asked) == 0 &&
			pg_atomic_read_u32(&slot->dboid) == MyDatabaseId)
			return true;
	}
	return false;
}

/* Idle means: nothing was delivered, however often it was woken. */
static bool
psync_worker_idle_too_long(void)
{
	return psync_worker_idle_timeout >= 0 && !psync_watch_any() &&
		psync_after(psync_serve.last_work,
					psync_worker_idle_timeout * INT64CONST(1000)) <=
		GetCurrentTimestamp();
}

/*
 * Why, if at all; the caller holds the lock.  What has not been heard may be a
 * reason to stay, unless another database waits: then it is left to the next
 * worker (psync_slot_release).
 */
static PsyncLeave
psync_worker_reason(bool present, bool idle)
{
	bool		asked = psync_neighbour_asked();

	if ((pg_atomic_read_u32(&my_slot->wake) & PSYNC_WAKE_CONFIG) != 0 ||
		psync_serve.reload_at != 0)
		return asked ? PSYNC_LEAVE_ASKED : PSYNC_LEAVE_NOT;
	if (!present)
		return PSYNC_LEAVE_ABSENT;
	if (!psync_serve_has_syncs())
		return PSYNC_LEAVE_NO_SYNCS;
	if (asked)
		return PSYNC_LEAVE_ASKED;
	if (idle && psync_worker_has_sibling())
		return PSYNC_LEAVE_IDLE;
	return PSYNC_LEAVE_NOT;
}

/*
 * Decide, and tell the launcher, in one go: two idle workers must not both
 * rely on each other, and a message that comes meanwhile must be heard.
 */
static PsyncLeave
psync_worker_decide(bool present)
{
	TimestampTz alone_until = psync_after(GetCurrentTimestamp(),
										  PSYNC_TIDY_ALONE_MS);
	TimestampTz due = psync_serve_next_time();
	bool		idle = psync_worker_idle_too_long();
	PsyncSharedDatabase *database;
	PsyncLeave	leave;

	LWLockAcquire(psync_control_lock, LW_EXCLUSIVE);
	database = psync_database_find(MyDatabaseId);
	Assert(database != NULL);

	leave = psync_worker_reason(present, idle);
	left_in_order = leave != PSYNC_LEAVE_NOT;
	my_slot->leaving = left_in_order;
	database->presence = present ? PSYNC_EXTENSION_PRESENT :
		PSYNC_EXTENSION_ABSENT;
	if (left_in_order)
	{
		database->start_after = 0;
		database->changes_after = leave == PSYNC_LEAVE_NO_SYNCS ? alone_until : 0;
		database->due = leave == PSYNC_LEAVE_ASKED ? due : PSYNC_NEVER;
	}
	LWLockRelease(psync_control_lock);
	return leave;
}

/*
 * What is in memory is saved and closed first, within a limit: a target that
 * hangs must not keep the slot from whoever waits for it.
 */
static void
psync_worker_leave(PsyncLeave leave)
{
	ereport(DEBUG1,
			(errmsg_internal("payment_sync worker leaves, reason %d", leave)));

	Assert(left_in_order);

	psync_serve.end_by = psync_after(GetCurrentTimestamp(), PSYNC_LEAVE_ALL_MS);
	psync_serve_release_all();
	proc_exit(0);
}

/* -------------------------------------------------------------------- tidying */

/* True in *arg if there may be more to do. */
static void
psync_worker_tidy_work(void *arg)
{
	*(bool *) arg = psync_log_tidy();
}

/*
 * One round of it; true if there may be more to do.  A failure concerns no
 * sync, so it is only reported, and the next occasion tries again.
 */
static bool
psync_worker_tidy(void)
{
	bool		more = false;
	ErrorData  *error = psync_process_try(psync_worker_tidy_work, &more);

	if (error == NULL)
		return more;

	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("could not empty tables of the change log: %s",
					error->message)));
	FreeErrorData(error);
	return false;
}

/*
 * And see when to do it again.
 */
static void
psync_worker_tidy_if_due(void)
{
	TimestampTz now;

	if (tidy_at == PSYNC_NEVER)
		return;
	now = GetCurrentTimestamp();
	if (tidy_at <= now)
		tidy_at = psync_worker_tidy() ? psync_after(now, PSYNC_TIDY_MS) :
			PSYNC_NEVER;
}

/* Nobody else will for a while: one round may only make room for the next. */
static void
psync_worker_tidy_alone(void)
{
	for (int i = 0; i < PSYNC_LOG_TABLES; i++)
	{
		if (!psync_worker_tidy())
			break;
	}
}

/*
 * In a transaction of its own: it may disable a sync.  While targets are away
 * this is what looks at the log.
 */
static void
psync_worker_check_limit_work(void *arg)
{
	(void) psync_waypoint_note();
	psync_log_limit_check();
}

/*
 * Does a sync hold back too much of the log?  It grows by commits only, and
 * those wake us.
 */
static void
psync_worker_check_limit(void)
{
	static TimestampTz last_check = 0;
	TimestampTz now = GetCurrentTimestamp();
	ErrorData  *error;

	if (!TimestampDifferenceExceeds(last_check, now, PSYNC_LIMIT_CHECK_MS))
		return;
	last_check = now;
	error = psync_process_try(psync_worker_check_limit_work, NULL);
	if (error == NULL)
		return;
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("could not check the size of the change log: %s",
					error->message)));
	FreeErrorData(error);
}

/* ---------------------------------------------------------------------- loop */

/* Has nothing been delivered for a moment? */
static bool
psync_worker_quiet(void)
{
	return TimestampDifferenceExceeds(psync_serve.last_work, GetCurrentTimestamp(),
									  PSYNC_QUIET_MS);
}

/*
 * Say that we are about to sleep.  False if there is a reason not to: syncs
 * that another worker has left, while nobody was idle.
 */
static bool
psync_worker_enter_idle(void)
{
	PsyncSharedDatabase *database;
	bool		help;

	Assert(!my_slot->idle);

	LWLockAcquire(psync_control_lock, LW_EXCLUSIVE);
	database = psync_database_find(MyDatabaseId);
	Assert(database != NULL);
	help = database->help;
	database->help = false;
	my_slot->idle = !help;
	LWLockRelease(psync_control_lock);

	if (help)
		psync_serve_hear(PSYNC_WAKE_CONFIG);
	return !help;
}

/* Awake again, for whatever reason. */
static void
psync_worker_leave_idle(void)
{
	LWLockAcquire(psync_control_lock, LW_EXCLUSIVE);
	my_slot->idle = false;
	LWLockRelease(psync_control_lock);
}

/* Sleep until a message or the next time to do something. */
static void
psync_worker_sleep(void)
{
	TimestampTz until = Min(Min(psync_serve_next_time(), tidy_at), turn_hook_at);
	bool		additional;

	LWLockAcquire(psync_control_lock, LW_SHARED);
	additional = psync_worker_has_sibling();
	LWLockRelease(psync_control_lock);

	/* An additional worker looks whether it is needed any longer. */
	if (psync_worker_idle_timeout >= 0 && additional && !psync_watch_any())
		until = Min(until, psync_after(psync_serve.last_work,
									   psync_worker_idle_timeout * INT64CONST(1000)));

	if (!psync_worker_enter_idle())
		return;
	pgstat_report_activity(STATE_IDLE, NULL);

	/* Counters are sent now and then; before a sleep without end, too. */
	pgstat_report_stat(until == PSYNC_NEVER);

	/* The log grows meanwhile, and nobody tells. */
	if (psync_watch_deafen())
		until = Min(until, psync_after(GetCurrentTimestamp(),
									   PSYNC_LIMIT_CHECK_MS));
	psync_watch_sleep(until);
	psync_worker_leave_idle();
}

/*
 * SIGTERM came while nothing was being done: there is time to save what is in
 * memory.  A second SIGTERM ends that, too.
 */
static void
psync_worker_stop(void)
{
	Assert(ProcDiePending);

	ProcDiePending = false;
	psync_serve.end_by = psync_after(GetCurrentTimestamp(), PSYNC_END_MS);
	psync_serve_release_all();
	proc_exit(0);
}

/*
 * The latch is reset before anything is looked at: what comes later sets it
 * again.
 */
static void
psync_worker_loop(void)
{
	for (;;)
	{
		uint32		messages;
		bool		changed;
		bool		present;
		bool		more;
		PsyncLeave	leave;

		ResetLatch(MyLatch);
		if (psync_process_should_stop())
			psync_worker_stop();
		psync_worker_limit_locks();

		messages = pg_atomic_exchange_u32(&my_slot->wake, 0);
		psync_serve_hear(messages);

		changed = psync_serve.reload_wanted;
		present = psync_serve_reload();
		if (present && !psync_serve_has_syncs() && psync_serve.reload_at == 0)
			psync_worker_tidy_alone();
		more = present && psync_serve_pass();
		changed |= psync_serve_save(false);
		if (changed && tidy_at == PSYNC_NEVER)
			tidy_at = psync_after(GetCurrentTimestamp(), PSYNC_TIDY_MS);
		psync_worker_tidy_if_due();
		if (present)
			psync_worker_check_limit();
		if (present && psync_worker_turn_hook != NULL)
			turn_hook_at = psync_worker_turn_hook(!more && psync_worker_quiet(),
												  (messages & PSYNC_WAKE_CONFIG) != 0);

		leave = psync_worker_decide(present);
		if (leave != PSYNC_LEAVE_NOT)
			psync_worker_leave(leave);

		MemoryContextReset(CurrentMemoryContext);
		if (more)
			pgstat_report_stat(false);
		else if (pg_atomic_read_u32(&my_slot->wake) == 0)
			psync_worker_sleep();
	}
}

PGDLLEXPORT void psync_worker_main(Datum arg);

/*
 * The entry of a delivery worker.  The slot comes first: whoever waits for the
 * process looks there.
 */
void
psync_worker_main(Datum arg)
{
	PsyncWorkerStart start;

	memcpy(&start, MyBgworkerEntry->bgw_extra, sizeof(start));
	psync_process_signals();

	/* A hold has taken the slot away, or a new launcher has. */
	if (!psync_worker_attach(DatumGetInt32(arg), &start))
		proc_exit(0);

	BackgroundWorkerInitializeConnectionByOid(start.dboid, InvalidOid, 0);
	psync_worker_settings();
	psync_serve_init(my_slot);
	MemoryContextSwitchTo(AllocSetContextCreate(TopMemoryContext,
												"payment_sync worker cycle",
												ALLOCSET_DEFAULT_SIZES));
	psync_worker_loop();
}
