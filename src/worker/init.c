/*
 * init.c
 *		The background processes' part of _PG_init.
 */
#include "postgres.h"

#include "miscadmin.h"

#include "worker/shmem.h"
#include "worker/worker.h"

/*
 * Without preload there is no shared memory, and so nobody to wake and
 * nothing to hook into; sessions deliver by incremental_sync().
 */
void
psync_worker_init(void)
{
	psync_settings_init();
	if (!process_shared_preload_libraries_in_progress)
		return;

	psync_shmem_init();
	psync_wakeup_init();
	psync_hold_init();
	psync_launcher_init();
}
