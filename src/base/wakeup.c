/*
 * wakeup.c
 *		Telling the background processes that there is something to do.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"

#include "base/owner.h"
#include "base/wakeup.h"
#include "compat.h"

void		(*psync_wakeup_config_hook) (void) = NULL;
void		(*psync_wakeup_yield_hook) (void) = NULL;

void
psync_wakeup_config(void)
{
	if (psync_wakeup_config_hook != NULL)
		psync_wakeup_config_hook();
}

void
psync_wakeup_yield(void)
{
	if (psync_wakeup_yield_hook != NULL)
		psync_wakeup_yield_hook();
}

/*
 * Open deliveries compare their definition after any relcache invalidation;
 * workers are woken at commit to do so.  Both happen when we commit, so they
 * see what we wrote.
 */
void
psync_definition_changed(void)
{
	Oid			schema = get_namespace_oid(PSYNC_SCHEMA, false);

	CacheInvalidateRelcacheByRelid(get_relname_relid("sync", schema));
	psync_wakeup_config();
}
