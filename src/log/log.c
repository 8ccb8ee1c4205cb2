/*
 * log.c
 *		The change log's part of _PG_init.
 *
 * Shared memory holds no more than the append locks.  It exists if the library
 * was named in shared_preload_libraries, and then for all processes; else for
 * none, and append.c takes heavyweight locks.  The two kinds never meet: which
 * one is in use cannot change before the next start of the server.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"

#include "compat.h"
#include "log/log.h"
#include "log/log_internal.h"

#ifdef PSYNC_HAVE_SHMEM_REQUEST_HOOK
static shmem_request_hook_type prev_shmem_request_hook = NULL;
#endif
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

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
	psync_append_shmem_request();
}
#endif

/*
 * Runs in the postmaster, and again in each child where processes do not fork.
 */
static void
log_shmem_startup(void)
{
	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();
	psync_append_shmem_startup();
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
	psync_append_shmem_request();
#endif
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = log_shmem_startup;
}
