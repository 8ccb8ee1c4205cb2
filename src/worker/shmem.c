/*
 * shmem.c
 *		The shared memory of the background processes.
 *
 * Only a library in shared_preload_libraries has it; elsewhere
 * psync_shmem_ready() is false and nothing else here may be called.  A crash
 * of any process makes the postmaster start over with fresh shared memory, so
 * nothing here outlives a crash and nothing needs repair; but see crash.c.
 *
 * See shmem.h for the rules of locking.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"

#include "compat.h"
#include "sync/live.h"
#include "worker/shmem.h"

#define PSYNC_LOCK_TRANCHE	"payment_sync workers"

PsyncSharedControl *psync_control = NULL;
PsyncSharedWorker *psync_slots = NULL;
PsyncSharedDatabase *psync_databases = NULL;
LWLock	   *psync_control_lock = NULL;

static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

#ifdef PSYNC_HAVE_SHMEM_REQUEST_HOOK
static shmem_request_hook_type prev_shmem_request_hook = NULL;
#endif

/* The parts follow each other, each aligned for any type. */
static Size
psync_shmem_size(void)
{
	Size		size = MAXALIGN(sizeof(PsyncSharedControl));

	size = add_size(size, MAXALIGN(mul_size(psync_max_workers,
											sizeof(PsyncSharedWorker))));
	size = add_size(size, MAXALIGN(mul_size(psync_max_databases,
											sizeof(PsyncSharedDatabase))));
	size = add_size(size, psync_live_size());
	return size;
}

/* One lock suffices: it is taken a few times per wake-up of a worker.  The
 * other is for the figures that are written once per window. */
static void
psync_shmem_request(void)
{
#ifdef PSYNC_HAVE_SHMEM_REQUEST_HOOK
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
#endif
	RequestAddinShmemSpace(psync_shmem_size());
	RequestNamedLWLockTranche(PSYNC_LOCK_TRANCHE, 2);
}

/* Everything starts empty: the launcher finds the databases. */
static void
psync_shmem_fill(void)
{
	memset(psync_control, 0, psync_shmem_size());
	pg_atomic_init_u32(&psync_control->launcher_proc, 0);
	pg_atomic_init_u32(&psync_control->launcher_wake, 0);
	ConditionVariableInit(&psync_control->gone);

	for (int i = 0; i < psync_max_workers; i++)
	{
		pg_atomic_init_u32(&psync_slots[i].dboid, InvalidOid);
		pg_atomic_init_u32(&psync_slots[i].wake, 0);
		pg_atomic_init_u32(&psync_slots[i].proc, 0);
		pg_atomic_init_u32(&psync_slots[i].asked, 0);
	}
	for (int i = 0; i < psync_max_databases; i++)
	{
		pg_atomic_init_u32(&psync_databases[i].dboid, InvalidOid);
		pg_atomic_init_u32(&psync_databases[i].pending, 0);
	}
}

/*
 * In the postmaster, before it forks anyone; and with EXEC_BACKEND in each
 * process, which then finds the memory filled.  The pointers are the process's
 * own, the same in all of them where fork() is used.
 */
static void
psync_shmem_startup(void)
{
	LWLockPadded *locks;
	char	   *base;
	bool		found;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	base = ShmemInitStruct("payment_sync workers", psync_shmem_size(), &found);
	psync_control = (PsyncSharedControl *) base;
	base += MAXALIGN(sizeof(PsyncSharedControl));
	psync_slots = (PsyncSharedWorker *) base;
	base += MAXALIGN(psync_max_workers * sizeof(PsyncSharedWorker));
	psync_databases = (PsyncSharedDatabase *) base;
	base += MAXALIGN(psync_max_databases * sizeof(PsyncSharedDatabase));
	locks = GetNamedLWLockTranche(PSYNC_LOCK_TRANCHE);
	psync_control_lock = &locks[0].lock;
	psync_live_attach(base, &locks[1].lock, found);
	if (!found)
		psync_shmem_fill();
	LWLockRelease(AddinShmemInitLock);
	if (!found)
		psync_crash_startup();
}

/* From _PG_init, while shared_preload_libraries are loaded. */
void
psync_shmem_init(void)
{
	Assert(process_shared_preload_libraries_in_progress);

#ifdef PSYNC_HAVE_SHMEM_REQUEST_HOOK
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = psync_shmem_request;
#else
	psync_shmem_request();
#endif
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = psync_shmem_startup;
}

/* Is this the library of shared_preload_libraries? */
bool
psync_shmem_ready(void)
{
	return psync_control != NULL;
}

/* ------------------------------------------------------------ databases */

/*
 * The entry of a database, or NULL.  Without the lock the answer may be out
 * of date, but a session's own database cannot vanish under it, and so
 * neither can its entry once there is a reason to keep it.
 */
PsyncSharedDatabase *
psync_database_find(Oid dboid)
{
	Assert(OidIsValid(dboid));

	for (int i = 0; i < psync_max_databases; i++)
	{
		if (pg_atomic_read_u32(&psync_databases[i].dboid) == dboid)
			return &psync_databases[i];
	}
	return NULL;
}

/* Likewise, made if there is none; NULL if all entries are in use. */
PsyncSharedDatabase *
psync_database_enter(Oid dboid)
{
	PsyncSharedDatabase *database = psync_database_find(dboid);

	Assert(LWLockHeldByMeInMode(psync_control_lock, LW_EXCLUSIVE));

	for (int i = 0; database == NULL && i < psync_max_databases; i++)
	{
		PsyncSharedDatabase *entry = &psync_databases[i];

		if (pg_atomic_read_u32(&entry->dboid) != InvalidOid)
			continue;

		pg_atomic_write_u32(&entry->pending, 0);
		entry->presence = PSYNC_EXTENSION_UNKNOWN;
		entry->holds = 0;
		entry->help = false;
		entry->due = PSYNC_NEVER;
		entry->changes_after = 0;
		entry->start_after = 0;
		pg_write_barrier();		/* the name last: readers take no lock */
		pg_atomic_write_u32(&entry->dboid, dboid);
		database = entry;
	}
	return database;
}

/*
 * Free an entry that nobody uses.  What was pending is lost, so the caller
 * must know that it does not matter.
 */
void
psync_database_forget(PsyncSharedDatabase *database)
{
	Assert(LWLockHeldByMeInMode(psync_control_lock, LW_EXCLUSIVE));
	Assert(database->holds == 0);
	Assert(psync_database_workers(pg_atomic_read_u32(&database->dboid)) == 0);

	pg_atomic_write_u32(&database->dboid, InvalidOid);
}

/* How many workers the database has, those starting included. */
int
psync_database_workers(Oid dboid)
{
	int			workers = 0;

	Assert(LWLockHeldByMe(psync_control_lock));
	Assert(OidIsValid(dboid));

	for (int i = 0; i < psync_max_workers; i++)
	{
		if (pg_atomic_read_u32(&psync_slots[i].dboid) == dboid)
			workers++;
	}
	return workers;
}

/* ---------------------------------------------------------------- slots */

/* Take a free slot for a worker about to be started; NULL if there is none. */
PsyncSharedWorker *
psync_slot_claim(Oid dboid)
{
	Assert(LWLockHeldByMeInMode(psync_control_lock, LW_EXCLUSIVE));
	Assert(OidIsValid(dboid));

	for (int i = 0; i < psync_max_workers; i++)
	{
		PsyncSharedWorker *slot = &psync_slots[i];

		if (pg_atomic_read_u32(&slot->dboid) != InvalidOid)
			continue;

		/*
		 * A session that has read the slot's former owner may still set a bit
		 * in "wake".  It will see that the owner has changed, and look for a
		 * worker elsewhere; ours is woken for nothing at worst.
		 */
		Assert(slot->pid == 0 && pg_atomic_read_u32(&slot->proc) == 0);
		slot->generation = ++psync_control->generation;
		slot->started_at = GetCurrentTimestamp();
		slot->idle = false;
		slot->leaving = false;
		slot->serving = false;
		pg_atomic_write_u32(&slot->asked, 0);
		pg_atomic_write_u32(&slot->wake, 0);
		pg_write_barrier();
		pg_atomic_write_u32(&slot->dboid, dboid);
		return slot;
	}
	return NULL;
}

/*
 * Give a slot back.  Messages that its worker has not taken become the
 * database's, so that the next worker is started for them; "again" asks for a
 * next worker in any case.  The order of the two exchanges matters, see
 * shmem.h.
 */
void
psync_slot_release(PsyncSharedWorker *slot, bool again)
{
	Oid			dboid = pg_atomic_read_u32(&slot->dboid);
	PsyncSharedDatabase *database;
	uint32		pending;

	Assert(LWLockHeldByMeInMode(psync_control_lock, LW_EXCLUSIVE));
	Assert(OidIsValid(dboid));

	pg_atomic_exchange_u32(&slot->dboid, InvalidOid);
	pending = pg_atomic_exchange_u32(&slot->wake, 0);
	pending &= PSYNC_WAKE_CHANGES | PSYNC_WAKE_CONFIG;
	if (again)
		pending |= PSYNC_WAKE_CONFIG;

	pg_atomic_write_u32(&slot->proc, 0);
	slot->pid = 0;
	slot->leaving = false;
	slot->serving = false;
	pg_atomic_write_u32(&slot->asked, 0);

	database = psync_database_find(dboid);
	Assert(database != NULL);	/* not forgotten while it has workers */
	pg_atomic_fetch_or_u32(&database->pending, pending);
}
