/*
 * payment_sync_callbacks.c
 *		Another library that works at the end of a transaction: preloaded
 *		before payment_sync, its callbacks run after payment_sync's.
 *
 * payment_sync_callbacks.pre_commit is a statement that is run before each
 * commit and each PREPARE, when deferred triggers have run already.
 * payment_sync_callbacks.relcache is how many of PostgreSQL's ten places for
 * relcache callbacks it takes.
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/snapmgr.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

static char *statement = NULL;
static int	relcache_callbacks = 0;

static void
xact_callback(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_PRE_COMMIT && event != XACT_EVENT_PRE_PREPARE)
		return;
	if (statement == NULL || statement[0] == '\0')
		return;
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	SPI_execute(statement, false, 0);
	SPI_finish();
	PopActiveSnapshot();
}

static void
relcache_callback(Datum arg, Oid relid)
{
}

void
_PG_init(void)
{
	DefineCustomIntVariable("payment_sync_callbacks.relcache",
							"How many relcache callbacks to register.", NULL,
							&relcache_callbacks, 0, 0, 10,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	for (int i = 0; i < relcache_callbacks; i++)
		CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
	DefineCustomStringVariable("payment_sync_callbacks.pre_commit",
							   "Is run before each commit.", NULL, &statement, "",
							   PGC_USERSET, 0, NULL, NULL, NULL);
	RegisterXactCallback(xact_callback, NULL);
}
