/*
 * invalidation.c
 *		One relcache callback for all of the library.
 *
 * PostgreSQL has ten places for relcache callbacks in each process, some of
 * which it takes itself, and a process that needs one more ends with FATAL.  So
 * the library takes one, and hands on what it hears.
 */
#include "postgres.h"

#include "utils/inval.h"

#include "base/invalidation.h"
#include "compat.h"

#define PSYNC_SUBSCRIBERS_MAX	4

static PsyncRelationCallback subscribers[PSYNC_SUBSCRIBERS_MAX];
static int	nsubscribers = 0;

static void
relcache_callback(Datum arg, Oid relid)
{
	for (int i = 0; i < nsubscribers; i++)
		subscribers[i] (relid);
}

/*
 * For the rest of the process's life; each subscriber once.
 */
void
psync_invalidation_subscribe(PsyncRelationCallback callback)
{
	Assert(nsubscribers < PSYNC_SUBSCRIBERS_MAX);

	if (nsubscribers == 0)
		CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
	subscribers[nsubscribers++] = callback;
}
