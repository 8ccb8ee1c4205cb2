/*
 * payment_sync.c
 *		Where the server enters the library: a table of contents.
 *
 * Each part defines its own settings, hooks and shared memory.  With
 * shared_preload_libraries this runs in the postmaster; otherwise in the first
 * session that captures a change or calls one of our functions, without
 * background processes.
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"

#include "base/role.h"
#include "capture/capture.h"
#include "compat.h"
#include "log/log.h"
#include "message/init.h"
#include "reconcile/background.h"
#include "target/registry.h"
#include "worker/worker.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(payment_sync_version);

PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	psync_limit_init();			/* how long users' code may run */
	psync_log_init();			/* the change log; settings of size */
	psync_rel_cache_init();		/* what writers know of captured tables */
	psync_transport_settings_init();	/* which hosts may be reached */
	psync_services_init();		/* what transports are offered */
	psync_messages_init();		/* how to deliver to those that take messages */
	psync_worker_init();		/* launcher and workers, and their wake-up */
	psync_reconcile_init();		/* reconciliation by schedule */

	/* Last: what is not defined by now is a mistake in someone's settings. */
	MarkGUCPrefixReserved("payment_sync");
}

/*
 * version(): of this library, as the control file had it when it was built.
 * If it is not the extension's, the server runs a library that is older or
 * newer than the last ALTER EXTENSION … UPDATE.
 */
Datum
payment_sync_version(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(PSYNC_VERSION));
}
