/*
 * settings.c
 *		The settings of the background processes.
 *
 * All can be seen by everybody.  None is a session's own: what the background
 * processes do must not depend on who happened to wake them.
 */
#include "postgres.h"

#include <limits.h>

#include "miscadmin.h"
#include "utils/guc.h"

#include "base/backoff.h"
#include "deliver/deliver.h"
#include "worker/shmem.h"

/* Initial values as below; documented at DefineCustomIntVariable. */
int			psync_max_workers = 4;
int			psync_max_databases = 128;
int			psync_database_scan_interval = 60;
int			psync_worker_idle_timeout = 60;
int			psync_window_interval = 5;
int			psync_database_turn = 5000;
int			psync_lock_timeout = 1000;
int			psync_max_crashes = 5;

/*
 * Sizes of shared memory.  A session that has loaded the library by itself
 * may no longer define settings that need a restart; it defines them all the
 * same, so that they can be shown and are not reported as unknown, but there
 * they have no effect.
 */
static void
psync_settings_define_sizes(void)
{
	GucContext	context = process_shared_preload_libraries_in_progress ?
		PGC_POSTMASTER : PGC_SIGHUP;

	DefineCustomIntVariable("payment_sync.max_workers",
							"Sets the maximum number of delivery workers, over all databases.",
							"0 starts no background process: changes are then delivered "
							"only by calls of incremental_sync.",
							&psync_max_workers,
							4, 0, 1024,
							context, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("payment_sync.max_databases",
							"Sets the maximum number of databases in which background delivery works.",
							NULL,
							&psync_max_databases,
							128, 1, 65536,
							context, 0,
							NULL, NULL, NULL);
}

/*
 * Delays.  Both processes read them anew at each use, so a reload is enough;
 * a delay that has begun is not shortened by it.
 */
static void
psync_settings_define_delays(void)
{
	DefineCustomIntVariable("payment_sync.retry_delay_min",
							"Sets the time to wait after the first failure of a sync.",
							"Each further failure in a row doubles it.",
							&psync_retry_delay_min,
							100, 1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("payment_sync.retry_delay_max",
							"Sets the longest time to wait after a failure of a sync.",
							"A value below payment_sync.retry_delay_min counts as equal to it.",
							&psync_retry_delay_max,
							60 * 1000, 1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("payment_sync.database_scan_interval",
							"Sets how often the launcher looks for databases unasked.",
							"Commands that create or drop databases tell the launcher "
							"anyway. -1 never looks unasked, but for the start.",
							&psync_database_scan_interval,
							60, -1, INT_MAX / 1000,
							PGC_SIGHUP, GUC_UNIT_S,
							NULL, NULL, NULL);
	DefineCustomIntVariable("payment_sync.worker_idle_timeout",
							"Sets how long a database's additional workers stay without work.",
							"0 lets them leave at once, -1 lets them stay.",
							&psync_worker_idle_timeout,
							60, -1, INT_MAX / 1000,
							PGC_SIGHUP, GUC_UNIT_S,
							NULL, NULL, NULL);
	DefineCustomIntVariable("payment_sync.database_turn",
							"Sets how long a worker serves one database while another one waits for a worker.",
							"A worker without work leaves after a second, if that is less. A target that "
							"does not answer holds its worker for three turns at most.",
							&psync_database_turn,
							5000, 10, INT_MAX / 1000,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("payment_sync.lock_timeout",
							"Sets how long a worker waits for a lock on a table of this server.",
							"For its own records it waits a tenth of that. A sync whose delivery needs a "
							"lock for longer has failed, and is tried again; others go on.",
							&psync_lock_timeout,
							1000, 1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("payment_sync.max_crashes",
							"Sets after how many crashes in a row a sync is disabled.",
							"Counted are workers that died while they served it. 0 never disables it.",
							&psync_max_crashes,
							5, 0, INT_MAX,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("payment_sync.window_interval",
							"Sets the time from one window of a busy sync to the next.",
							"A sync that was quiet before is not made to wait. "
							"0 delivers each window at once.",
							&psync_window_interval,
							5, 0, 10000,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
}

/*
 * What a delivery keeps of what it did.
 */
static void
psync_settings_define_books(void)
{
	DefineCustomIntVariable("payment_sync.transform_timeout",
							"Sets how long a transform may take for one event.",
							"A sync whose transform takes longer fails, and is tried again. 0 sets no limit.",
							&psync_transform_timeout,
							5000, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("payment_sync.ledger_retention",
							"Sets for how many days the ledger keeps what is settled.",
							"0 keeps it for ever.",
							&psync_ledger_retention,
							0, 0, 36500,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);
}

void
psync_settings_init(void)
{
	psync_settings_define_sizes();
	psync_settings_define_delays();
	psync_settings_define_books();
}
