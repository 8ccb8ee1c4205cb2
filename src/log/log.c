/*
 * log.c
 *		The change log's part of _PG_init.
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
static void
log_shmem_request(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	psync_append_shmem_request();
}
#endif

static void
log_shmem_startup(void)
{
	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();
	psync_append_shmem_startup();
}

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
