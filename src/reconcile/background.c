/*
 * background.c
 *		Reconciliation in a process of its own, asked for or by schedule.
 *
 * A delivery worker has no time for it: while a checksum is computed, changes
 * would wait.  So it only looks, now and then, whether there is a run to work
 * on, and starts a reconciler, one per database.  The reconciler takes up runs
 * that nobody holds, oldest first, also those whose process was killed, and
 * then syncs whose reconcile_every has passed; when nothing is left, it ends.
 *
 * A target that does not answer holds its run until payment_sync.reconcile_timeout
 * ends that.  Others need not wait for it: if runs are waiting and none has come
 * on for a while, another reconciler is started beside, up to a few.
 *
 * A sync that is due waits for a quiet moment, but not for longer than a tenth
 * of its interval.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "base/lock.h"
#include "compat.h"
#include "deliver/deliver.h"
#include "reconcile/background.h"
#include "reconcile/reconcile.h"
#include "sync/admin.h"
#include "worker/process.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(payment_sync_reconcile_every);

#define PSYNC_RECONCILER_TYPE	"payment_sync reconciler"

/* Runs have kind 5 (reconcile.c). */
#define PSYNC_LOCK_RECONCILER	6

/* How often to look, and how soon to start another process, ms. */
#define PSYNC_RECONCILE_LOOK_MS	1000
#define PSYNC_RECONCILE_START_MS	5000

/* Somebody works on a run: see whether he is still there, ms. */
#define PSYNC_RECONCILE_IDLE_MS	60000

/* Reconcilers of a database at most; and for how long no run has come on when
 * another is started, ms. */
#define PSYNC_RECONCILERS_MAX	4
#define PSYNC_RECONCILE_STALLED_MS	10000

/* So long a run waits for a lock on a table here, unless lock_timeout says it. */
#define PSYNC_RECONCILE_LOCK_TIMEOUT	"60s"

PGDLLEXPORT void psync_reconciler_main(Datum arg);

/* Whoever holds it is the database's reconciler of this number. */
static void
reconciler_lock_tag(LOCKTAG *tag, int number)
{
	Assert(number >= 0 && number < PSYNC_RECONCILERS_MAX);
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, 0, number, PSYNC_LOCK_RECONCILER);
}

/* --------------------------------------------------------------- what is due */

/*
 * Syncs whose interval has passed since their last complete run began.  Their
 * runs cover all of their tables and nothing less.
 */
static const char due_command[] =
	"SELECT s.name, s.owner::oid, l.last + s.reconcile_every AS due,"
	" l.last + s.reconcile_every * 1.1 AS overdue"
	" FROM payment_sync.sync s"
	" JOIN payment_sync.sync_state st ON st.sync = s.id AND NOT st.released"
	" CROSS JOIN LATERAL (SELECT COALESCE(max(r.requested), s.created) AS last"
	"  FROM payment_sync.reconciliation r WHERE r.sync = s.id AND r.scheduled) l"
	" WHERE s.reconcile_every IS NOT NULL AND s.enabled AND s.server IS NOT NULL"
	" ORDER BY 3 LIMIT 1";

/* A run that has been asked for, or was left by a process that was killed. */
static const char open_command[] =
	"SELECT run FROM payment_sync.reconciliation"
	" WHERE state IN ('pending', 'running') GROUP BY run ORDER BY run";

/* Is a run coming on? */
static const char progress_command[] =
	"SELECT FROM payment_sync.reconciliation WHERE state = 'running'"
	" AND COALESCE(saved, started) > clock_timestamp() - $1 * interval '1 ms' LIMIT 1";

typedef struct PsyncDue
{
	bool		quiet;			/* in: nothing is being delivered */
	bool		open;			/* out: there are open runs, free or not */
	int64		run;			/* out: to be worked on; 0: none */
	bool		scheduled;		/* out: a sync is due now */
	TimestampTz next;			/* out: when one will be; DT_NOEND: never */
} PsyncDue;

/* Open runs that no process holds; the first of them, or 0. */
static int64
first_free_run(bool *open)
{
	int64		result = 0;
	uint64		n = psync_owner_execute(open_command, 0, NULL, NULL, NULL);

	*open = n > 0;
	for (uint64 i = 0; i < n && result == 0; i++)
	{
		bool		isnull;
		int64		run = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
													  SPI_tuptable->tupdesc, 1, &isnull));

		if (psync_run_is_free(run))
			result = run;
	}
	SPI_finish();
	return result;
}

static void
look(void *arg)
{
	PsyncDue   *due = arg;

	due->run = 0;
	due->scheduled = false;
	due->next = DT_NOEND;
	if (!psync_extension_present())
		return;
	due->run = first_free_run(&due->open);
	if (psync_owner_execute(due_command, 0, NULL, NULL, NULL) > 0)
	{
		bool		isnull;
		TimestampTz at = DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[0],
														   SPI_tuptable->tupdesc, 3, &isnull));
		TimestampTz late = DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[0],
															 SPI_tuptable->tupdesc, 4, &isnull));
		TimestampTz now = GetCurrentTimestamp();

		due->scheduled = late <= now || (at <= now && due->quiet);
		due->next = at > now ? at : late;
	}
	SPI_finish();
}

/* ------------------------------------------------------------ in the worker */

static bool
reconciler_is_running(int number)
{
	LOCKTAG		tag;

	reconciler_lock_tag(&tag, number);
	if (LockAcquire(&tag, ExclusiveLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
		return true;
	LockRelease(&tag, ExclusiveLock, true);
	return false;
}

static bool
run_comes_on(void)
{
	Oid			types[1] = {INT4OID};
	Datum		values[1];
	bool		result;

	values[0] = Int32GetDatum(PSYNC_RECONCILE_STALLED_MS);
	result = psync_owner_execute(progress_command, 1, types, values, NULL) > 0;
	SPI_finish();
	return result;
}

/*
 * The number of the reconciler that is to be started: the only one, or one
 * beside those that do not come on.  -1: none.
 */
static void
choose_reconciler(void *arg)
{
	int		   *number = arg;

	*number = 0;
	while (*number < PSYNC_RECONCILERS_MAX && reconciler_is_running(*number))
		(*number)++;
	if (*number == PSYNC_RECONCILERS_MAX || (*number > 0 && run_comes_on()))
		*number = -1;
}

static void
start_reconciler(int number)
{
	BackgroundWorker worker = {0};

	Assert(OidIsValid(MyDatabaseId));
	StaticAssertStmt(sizeof(number) <= BGW_EXTRALEN, "a number fits");

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, "payment_sync", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "psync_reconciler_main", BGW_MAXLEN);
	strlcpy(worker.bgw_name, PSYNC_RECONCILER_TYPE, BGW_MAXLEN);
	strlcpy(worker.bgw_type, PSYNC_RECONCILER_TYPE, BGW_MAXLEN);
	worker.bgw_main_arg = ObjectIdGetDatum(MyDatabaseId);
	memcpy(worker.bgw_extra, &number, sizeof(number));
	if (!RegisterDynamicBackgroundWorker(&worker, NULL))
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("could not start a process for reconciliation"),
				 errhint("You may need to increase max_worker_processes.")));
}

/*
 * For a delivery worker's loop, between turns: start a reconciler if there is
 * something for it.  Returns when to look again.
 */
static TimestampTz
psync_reconcile_check(bool quiet, bool asked)
{
	static TimestampTz look_at = 0;
	static TimestampTz start_after = 0;
	PsyncDue	due = {.quiet = quiet};
	int			number = -1;
	TimestampTz now = GetCurrentTimestamp();
	ErrorData  *error;

	Assert(!IsTransactionState());

	if (!asked && now < look_at)
		return look_at;
	error = psync_process_try(look, &due);
	if (error == NULL && (due.run != 0 || due.scheduled))
		error = psync_process_try(choose_reconciler, &number);
	if (error != NULL)
	{
		ereport(WARNING,
				(errcode(error->sqlerrcode),
				 errmsg("could not look for reconciliations: %s", error->message)));
		FreeErrorData(error);
		look_at = TimestampTzPlusMilliseconds(now, PSYNC_RECONCILE_IDLE_MS);
		return look_at;
	}
	if (number >= 0 && now >= start_after)
	{
		start_reconciler(number);
		start_after = TimestampTzPlusMilliseconds(now, PSYNC_RECONCILE_START_MS);
	}
	if (due.run != 0 || due.scheduled || due.next <= now)
		look_at = TimestampTzPlusMilliseconds(now, PSYNC_RECONCILE_LOOK_MS);
	else if (due.open)
		look_at = Min(due.next, TimestampTzPlusMilliseconds(now, PSYNC_RECONCILE_IDLE_MS));
	else
		look_at = due.next;
	return look_at;
}

/* -------------------------------------------------------- in the reconciler */

static void
work_on_run(void *arg)
{
	psync_reconcile_run(*(int64 *) arg, psync_worker_next_transaction, false);
}

/* An error and the run it is about. */
typedef struct PsyncRunFailure
{
	int64		run;
	const char *message;
} PsyncRunFailure;

static void
note_failure(void *arg)
{
	PsyncRunFailure *failure = arg;

	psync_run_failed(failure->run, failure->message);
}

/*
 * One reconciler at a time: another one may have made the run meanwhile.
 */
static void
request_due(void *arg)
{
	PsyncDue   *due = arg;
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 1, 0, PSYNC_LOCK_RECONCILER);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	look(due);
	if (due->run == 0 && due->scheduled)
		due->run = psync_run_request_due(due_command);
}

/* One run, whatever becomes of it. */
static void
do_run(int64 run)
{
	char		activity[64];
	ErrorData  *error;
	PsyncRunFailure failure = {run, NULL};

	Assert(run > 0 && !IsTransactionState());

	snprintf(activity, sizeof(activity), "reconciliation %lld", (long long) run);
	pgstat_report_activity(STATE_RUNNING, activity);
	error = psync_process_try(work_on_run, &run);
	pgstat_report_activity(STATE_IDLE, NULL);
	if (error == NULL)
		return;
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("reconciliation %lld failed: %s", (long long) run, error->message),
			 error->detail ? errdetail_internal("%s", error->detail) : 0));
	failure.message = error->message;
	(void) psync_process_try(note_failure, &failure);
	FreeErrorData(error);
}

/* Is this the only process that has the number? */
static void
take_reconciler_lock(void *arg)
{
	LOCKTAG		tag;
	int			number;

	memcpy(&number, MyBgworkerEntry->bgw_extra, sizeof(number));
	reconciler_lock_tag(&tag, number);
	*(bool *) arg = psync_session_lock(&tag, false);
}

/*
 * Nobody watches: a run that meets a table that stays locked fails, and holds up
 * neither those behind it nor the log, which it keeps while it reads.
 */
static void
limit_lock_waits(const char *lock_timeout)
{
	SetConfigOption("lock_timeout", strcmp(lock_timeout, "0") != 0 ? lock_timeout :
					PSYNC_RECONCILE_LOCK_TIMEOUT, PGC_SUSET, PGC_S_OVERRIDE);
}

void
psync_reconciler_main(Datum arg)
{
	PsyncDue	due = {.quiet = true};
	bool		alone = false;
	char		lock_timeout[32];

	Assert(OidIsValid(DatumGetObjectId(arg)));

	psync_process_signals();
	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(arg), InvalidOid, 0);
	strlcpy(lock_timeout, GetConfigOption("lock_timeout", false, false), sizeof(lock_timeout));
	psync_worker_settings();
	limit_lock_waits(lock_timeout);
	MemoryContextSwitchTo(AllocSetContextCreate(TopMemoryContext,
												"payment_sync reconciler",
												ALLOCSET_DEFAULT_SIZES));
	if (psync_process_try(take_reconciler_lock, &alone) != NULL || !alone)
		proc_exit(0);
	for (;;)
	{
		if (psync_process_should_stop() ||
			psync_process_try(look, &due) != NULL)
			break;
		if (due.run == 0 && due.scheduled &&
			psync_process_try(request_due, &due) != NULL)
			break;
		if (due.run == 0)
			break;
		do_run(due.run);
		MemoryContextReset(CurrentMemoryContext);
	}
	proc_exit(0);
}

/* ------------------------------------------------------------------ schedule */

/*
 * reconcile_every(name, every): NULL ends the schedule.
 */
Datum
payment_sync_reconcile_every(PG_FUNCTION_ARGS)
{
	PsyncSync  *sync;
	Oid			types[2] = {UUIDOID, INTERVALOID};
	Datum		values[2];
	char		nulls[3] = "  ";

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"name\" must not be null")));
	sync = psync_reconcile_sync(NameStr(*PG_GETARG_NAME(0)));
	if (!PG_ARGISNULL(1) && psync_interval_ms(PG_GETARG_INTERVAL_P(1)) < 1000)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("interval of reconciliation must be at least one second")));
	values[0] = UUIDPGetDatum(&sync->id);
	values[1] = PG_GETARG_DATUM(1);
	nulls[1] = PG_ARGISNULL(1) ? 'n' : ' ';
	(void) psync_owner_execute("UPDATE payment_sync.sync SET reconcile_every = $2 WHERE id = $1",
							   2, types, values, nulls);
	SPI_finish();
	psync_wakeup_config();
	PG_RETURN_VOID();
}

void
psync_reconcile_init(void)
{
	psync_side_init();
	psync_worker_turn_hook = psync_reconcile_check;
}
