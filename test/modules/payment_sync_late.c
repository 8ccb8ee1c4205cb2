/*
 * payment_sync_late.c
 *		A backend that is held up in COMMIT: its transaction can be seen, and
 *		its invalidations have not been sent yet.
 *
 * LOAD it in a session and set payment_sync_late.delay.
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "utils/guc.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

static int	delay = 0;

static void
xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT && delay > 0)
		pg_usleep(delay * 1000L);
}

void
_PG_init(void)
{
	DefineCustomIntVariable("payment_sync_late.delay",
							"Sets for how long a commit is held up.", NULL,
							&delay, 0, 0, 60000, PGC_USERSET, GUC_UNIT_MS,
							NULL, NULL, NULL);
	RegisterXactCallback(xact_callback, NULL);
}
