/*
 * launcher.c
 *		The launcher: one process that sees to it that every database that
 *		has the extension, and work, has a worker.
 *
 * It is connected to no database, and so reads shared catalogs only.  Whether
 * a database has the extension, a worker started there finds out; the answer
 * is in the database's entry.  Databases without it are remembered here, by
 * oid, so that the entries in shared memory are left to those with it.
 *
 * One cycle: take the messages; look at pg_database if told to or if it is
 * time; give slots to the databases whose time has come; if there are not
 * enough slots, ask workers elsewhere to leave; start processes for the
 * slots; sleep until a message or the next time computed.
 *
 * A new launcher (after pg_terminate_backend, say) finds the workers of the
 * old one in their slots and goes on with them.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/wait_event.h"
#include "compat.h"
#include "worker/process.h"
#include "worker/shmem.h"

/*
 * Seconds until the postmaster replaces a launcher that has ended.  Workers
 * go on without it; only new ones are not started meanwhile.
 */
#define PSYNC_LAUNCHER_RESTART_S	5

static List *absent_databases = NIL;	/* looked at in vain */
static bool databases_left_out = false;	/* by the last scan */
static bool warned_databases = false;

/* ------------------------------------------------------------- databases */

/* Oids of the databases that can be connected to; in the current context. */
static List *
psync_launcher_list_databases(void)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *result = NIL;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		/* Half-dropped databases refuse connections, too. */
		if (form->datallowconn &&
			form->datconnlimit != DATCONNLIMIT_INVALID_DB)
		{
			MemoryContextSwitchTo(caller);
			result = lappend_oid(result, form->oid);
		}
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(caller);
	return result;
}

/*
 * Is the entry of no use?  Its database is gone; or is known to be without
 * the extension, and the entry only served to hold it (hold.c).
 */
static bool
psync_launcher_useless(PsyncSharedDatabase *database, List *databases)
{
	Oid			dboid = pg_atomic_read_u32(&database->dboid);

	if (!OidIsValid(dboid) || database->holds > 0 ||
		psync_database_workers(dboid) > 0)
		return false;
	if (!list_member_oid(databases, dboid))
		return true;
	return database->presence == PSYNC_EXTENSION_UNKNOWN &&
		pg_atomic_read_u32(&database->pending) == 0 &&
		list_member_oid(absent_databases, dboid);
}

/*
 * Bring the entries in line with pg_database.  Databases that find no entry
 * are looked at later, when others have turned out to need none; if no such
 * others are left it is time for a warning.
 */
static void
psync_launcher_enter_databases(List *databases)
{
	bool		unknown = false;
	ListCell   *lc;

	databases_left_out = false;

	LWLockAcquire(psync_control_lock, LW_EXCLUSIVE);
	for (int i = 0; i < psync_max_databases; i++)
	{
		if (psync_launcher_useless(&psync_databases[i], databases))
			psync_database_forget(&psync_databases[i]);
	}
	foreach(lc, databases)
	{
		PsyncSharedDatabase *database;

		if (list_member_oid(absent_databases, lfirst_oid(lc)))
			continue;
		database = psync_database_enter(lfirst_oid(lc));
		if (database == NULL)
			databases_left_out = true;
		else
			unknown |= database->presence != PSYNC_EXTENSION_PRESENT;
	}
	LWLockRelease(psync_control_lock);

	if (databases_left_out && !unknown && !warned_databases)
	{
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many databases for background delivery"),
				 errdetail("Only %d of them are looked after.",
						   psync_max_databases),
				 errhint("You might need to increase payment_sync.max_databases.")));
		warned_databases = true;
	}
}

/* Look at pg_database; see when in psync_launcher_cycle. */
static void
psync_launcher_scan(void)
{
	List	   *databases = psync_launcher_list_databases();
	ListCell   *lc;

	/* An oid may come back, so those of databases dropped are forgotten. */
	foreach(lc, absent_databases)
	{
		if (!list_member_oid(databases, lfirst_oid(lc)))
			absent_databases = foreach_delete_current(absent_databases, lc);
	}
	psync_launcher_enter_databases(databases);
}

/* Databases in which a worker has looked for the extension in vain. */
static void
psync_launcher_note_absent(const PsyncPlan *plan)
{
	MemoryContext caller = MemoryContextSwitchTo(TopMemoryContext);

	for (int i = 0; i < plan->nabsent; i++)
		absent_databases = list_append_unique_oid(absent_databases,
												  plan->absent[i]);
	MemoryContextSwitchTo(caller);
}

/* ------------------------------------------------------------------ process */

/* Nobody to be woken any more: messages wait in launcher_wake. */
static void
psync_launcher_exit(int code, Datum arg)
{
	pg_atomic_write_u32(&psync_control->launcher_proc, 0);
}

/*
 * Slots whose process was asked for by an earlier launcher and has not come:
 * we cannot tell whether it will, so those are taken back.
 */
static void
psync_launcher_attach(void)
{
	LWLockAcquire(psync_control_lock, LW_EXCLUSIVE);
	for (int i = 0; i < psync_max_workers; i++)
	{
		if (OidIsValid(pg_atomic_read_u32(&psync_slots[i].dboid)) &&
			psync_slots[i].pid == 0)
			psync_slot_release(&psync_slots[i], true);
	}
	LWLockRelease(psync_control_lock);

	on_shmem_exit(psync_launcher_exit, (Datum) 0);
	pg_atomic_write_u32(&psync_control->launcher_proc,
						psync_my_proc_number() + 1);
}

/*
 * Once in a launcher's life: on a small server it may be what its owner
 * wants, and it would be said again and again.
 */
static void
psync_launcher_warn_workers(void)
{
	static bool warned = false;

	if (!warned)
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("all delivery workers are in use"),
				 errdetail("Databases and syncs beyond them take turns."),
				 errhint("You might need to increase payment_sync.max_workers.")));
	warned = true;
}

/* Returns when to wake up next. */
static TimestampTz
psync_launcher_cycle(uint32 messages, TimestampTz *scan_at)
{
	TimestampTz now = GetCurrentTimestamp();
	PsyncPlan	plan;

	Assert(psync_max_workers > 0);	/* or we would not have been started */

	plan.granted = palloc(psync_max_workers * sizeof(int));
	plan.absent = palloc(psync_max_databases * sizeof(Oid));

	psync_start_check();
	if ((messages & PSYNC_LAUNCHER_SCAN) != 0 || now >= *scan_at)
	{
		/* Told or not, the next unasked look is an interval away. */
		psync_launcher_scan();
		*scan_at = psync_database_scan_interval < 0 ? PSYNC_NEVER :
			TimestampTzPlusMilliseconds(now, Max(psync_database_scan_interval, 1) *
										INT64CONST(1000));
	}


	/*
	 * Entries that have just become free are for databases that found none:
	 * so a few entries serve any number of databases without the extension.
	 */
	psync_plan(&plan);
	Assert(plan.next > now);
	psync_launcher_note_absent(&plan);
	if (databases_left_out && plan.nabsent > 0)
		psync_wakeup_launcher(PSYNC_LAUNCHER_SCAN);
	for (int i = 0; i < plan.ngranted; i++)
		psync_start_worker(plan.granted[i]);
	if (plan.short_of_workers)
		psync_launcher_warn_workers();
	return Min(plan.next, *scan_at);
}

PGDLLEXPORT void psync_launcher_main(Datum arg);

void
psync_launcher_main(Datum arg)
{
	MemoryContext cycle_context;
	TimestampTz scan_at = 0;

	psync_process_signals();
	psync_launcher_attach();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	psync_start_init();
	cycle_context = AllocSetContextCreate(TopMemoryContext,
										  "payment_sync launcher cycle",
										  ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(cycle_context);

	for (;;)
	{
		TimestampTz wake_at;

		ResetLatch(MyLatch);

		/*
		 * With status 1 the postmaster starts a new launcher after a while;
		 * with 0 it would not do so before its own restart.
		 */
		if (psync_process_should_stop())
			proc_exit(1);

		wake_at = psync_launcher_cycle(pg_atomic_exchange_u32(&psync_control->launcher_wake, 0),
									   &scan_at);
		MemoryContextReset(cycle_context);
		psync_process_wait(wake_at, psync_wait_event(PSYNC_WAIT_LAUNCHER_MAIN));
	}
}

/* From _PG_init: ask the postmaster for the launcher. */
void
psync_launcher_init(void)
{
	BackgroundWorker worker;

	/*
	 * pg_upgrade must find the cluster as it left it, and its servers let
	 * nobody in but pg_upgrade.
	 */
	if (IsBinaryUpgrade || psync_max_workers == 0)
		return;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;

	/* A standby may not write; it gets a launcher when it is promoted. */
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = PSYNC_LAUNCHER_RESTART_S;
	strlcpy(worker.bgw_library_name, "payment_sync",
			sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "psync_launcher_main",
			sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_name, PSYNC_LAUNCHER_TYPE, sizeof(worker.bgw_name));
	strlcpy(worker.bgw_type, PSYNC_LAUNCHER_TYPE, sizeof(worker.bgw_type));
	RegisterBackgroundWorker(&worker);
}
