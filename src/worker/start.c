/*
 * start.c
 *		Starting the processes for slots that were granted.
 *
 * The launcher does not wait for a process to come up: a postmaster that is
 * busy, or out of memory, would hold up all other databases.  It keeps the
 * handle, and is signalled when the process starts or ends.  A process
 * reports to its slot first of all (psync_worker_attach); if it ends before,
 * the slot is taken back here.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "utils/memutils.h"

#include "worker/process.h"

/* A process that we have asked for and that has not come yet. */
typedef struct PsyncStarting
{
	BackgroundWorkerHandle *handle; /* NULL: none; the rest is invalid */
	uint32		generation;		/* of the slot then */
} PsyncStarting;

static PsyncStarting *starting = NULL;	/* by slot */
static bool warned_processes = false;

/*
 * Once in a launcher's life.
 */
void
psync_start_init(void)
{
	Assert(starting == NULL);

	starting = MemoryContextAllocZero(TopMemoryContext,
									  psync_max_workers * sizeof(PsyncStarting));
}

/*
 * The slot's process will not come: plan again.  Unless the slot has been
 * taken back, and perhaps granted anew, already; its generation tells.
 */
static void
psync_start_give_up(int n, uint32 generation)
{
	PsyncSharedWorker *slot = &psync_slots[n];

	Assert(n >= 0 && n < psync_max_workers);

	LWLockAcquire(psync_control_lock, LW_EXCLUSIVE);
	if (OidIsValid(pg_atomic_read_u32(&slot->dboid)) &&
		slot->generation == generation && slot->pid == 0)
		psync_slot_release(slot, true);
	LWLockRelease(psync_control_lock);
	psync_wakeup_launcher(PSYNC_LAUNCHER_WORK);
}

/* False if the postmaster has no place for another background worker. */
static bool
psync_start_register(int n, const PsyncWorkerStart *start,
						const char *dbname)
{
	BackgroundWorker worker;
	MemoryContext caller;
	bool		ok;

	Assert(OidIsValid(start->dboid) && start->generation != 0);

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;

	/* Whether and when another one is needed, plan.c decides. */
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, "payment_sync",
			sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "psync_worker_main",
			sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_type, PSYNC_WORKER_TYPE, sizeof(worker.bgw_type));
	snprintf(worker.bgw_name, sizeof(worker.bgw_name),
			 "payment_sync worker for database %s", dbname);
	worker.bgw_main_arg = Int32GetDatum(n);
	worker.bgw_notify_pid = MyProcPid;
	StaticAssertStmt(sizeof(PsyncWorkerStart) <= BGW_EXTRALEN,
					 "start fits bgw_extra");
	memcpy(worker.bgw_extra, start, sizeof(PsyncWorkerStart));

	/* The handle must outlive the cycle. */
	caller = MemoryContextSwitchTo(TopMemoryContext);
	if (starting[n].handle != NULL)
		pfree(starting[n].handle);
	starting[n].handle = NULL;
	starting[n].generation = start->generation;
	ok = RegisterDynamicBackgroundWorker(&worker, &starting[n].handle);
	MemoryContextSwitchTo(caller);
	return ok;
}

/*
 * Start the process for a slot granted.  Once only is it said that there is
 * no place for it: the reason does not go away by itself, and the planner
 * tries again every few seconds.
 */
void
psync_start_worker(int n)
{
	MemoryContext caller = CurrentMemoryContext;
	PsyncWorkerStart start;
	char	   *dbname;

	LWLockAcquire(psync_control_lock, LW_SHARED);
	start.dboid = pg_atomic_read_u32(&psync_slots[n].dboid);
	start.generation = psync_slots[n].generation;
	LWLockRelease(psync_control_lock);

	/* Taken back by a hold meanwhile?  Or the database dropped? */
	if (!OidIsValid(start.dboid))
		return;

	/* The name is for people; a rename does not matter. */
	StartTransactionCommand();
	dbname = get_database_name(start.dboid);
	if (dbname != NULL)
		dbname = MemoryContextStrdup(caller, dbname);
	CommitTransactionCommand();
	MemoryContextSwitchTo(caller);

	if (dbname == NULL)
	{
		psync_start_give_up(n, start.generation);
		psync_wakeup_launcher(PSYNC_LAUNCHER_SCAN); /* dropped */
	}
	else if (!psync_start_register(n, &start, dbname))
	{
		psync_start_give_up(n, start.generation);
		if (!warned_processes)
			ereport(WARNING,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("out of background worker slots"),
					 errhint("You might need to increase max_worker_processes.")));
		warned_processes = true;
	}
}

/*
 * Have the processes asked for reported to their slots, or ended before they
 * could?  The postmaster signals us in either case.
 */
void
psync_start_check(void)
{
	for (int n = 0; n < psync_max_workers; n++)
	{
		pid_t		pid;
		bool		stopped;

		if (starting[n].handle == NULL)
			continue;

		stopped = GetBackgroundWorkerPid(starting[n].handle, &pid) ==
			BGWH_STOPPED;
		if (stopped)
			psync_start_give_up(n, starting[n].generation);
		else if (pg_atomic_read_u32(&psync_slots[n].proc) == 0)
			continue;			/* neither */

		pfree(starting[n].handle);
		starting[n].handle = NULL;
	}
}
