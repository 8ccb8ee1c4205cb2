/*
 * log.c
 *		The change log's part of _PG_init.
 *
 * Shared memory holds the append locks, and when this database's log was last
 * reported to be too large.  It exists if the library
 * was named in shared_preload_libraries, and then for all processes; else for
 * none, and append.c takes heavyweight locks.  The two kinds never meet: which
 * one is in use cannot change before the next start of the server.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "log/log.h"
#include "log/log_internal.h"

/* Databases share the places by the hash of their oid, and then take turns. */
#define PSYNC_WARNED_PLACES		16
#define PSYNC_WARNED_MS			(10 * 60 * 1000)

typedef struct PsyncLogShared
{
	pg_atomic_uint64 warned[PSYNC_WARNED_PLACES];	/* TimestampTz; 0: never */
} PsyncLogShared;

static PsyncLogShared *shared = NULL;	/* NULL: not preloaded */

#ifdef PSYNC_HAVE_SHMEM_REQUEST_HOOK
static shmem_request_hook_type prev_shmem_request_hook = NULL;
#endif
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

/*
 * What both versions of the hook ask for.
 */
static void
log_shmem_request_all(void)
{
	psync_append_shmem_request();
	RequestAddinShmemSpace(MAXALIGN(sizeof(PsyncLogShared)));
}

#ifdef PSYNC_HAVE_SHMEM_REQUEST_HOOK
/*
 * Named LWLocks must be asked for before shared memory is made; since 15 that
 * has a hook of its own.  Hooks form a chain: who was there before goes first.
 */
static void
log_shmem_request(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	log_shmem_request_all();
}
#endif

/*
 * Runs in the postmaster, and again in each child where processes do not fork.
 */
static void
log_shmem_startup(void)
{
	bool		found;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();
	psync_append_shmem_startup();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("payment_sync log", sizeof(PsyncLogShared), &found);
	for (int i = 0; !found && i < PSYNC_WARNED_PLACES; i++)
		pg_atomic_init_u64(&shared->warned[i], 0);
	LWLockRelease(AddinShmemInitLock);
}

/*
 * log.h has the contract.  Without shared memory no worker runs that could ask.
 */
bool
psync_log_may_warn(void)
{
	pg_atomic_uint64 *place;
	uint64		warned;
	TimestampTz now = GetCurrentTimestamp();

	if (shared == NULL)
		return false;
	place = &shared->warned[murmurhash32(MyDatabaseId) % PSYNC_WARNED_PLACES];
	warned = pg_atomic_read_u64(place);
	if (warned != 0 &&
		!TimestampDifferenceExceeds((TimestampTz) warned, now, PSYNC_WARNED_MS))
		return false;
	return pg_atomic_compare_exchange_u64(place, &warned, (uint64) now);
}

/*
 * Called once per process, by _PG_init.  Settings and callbacks are wanted
 * everywhere, hooks only where they still have an effect.
 */
void
psync_log_init(void)
{
	psync_append_init();
	psync_rotate_init();

	if (!process_shared_preload_libraries_in_progress)
		return;
#ifdef PSYNC_HAVE_SHMEM_REQUEST_HOOK
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = log_shmem_request;
#else
	log_shmem_request_all();
#endif
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = log_shmem_startup;
}
