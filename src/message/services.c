/*
 * services.c
 *		What the core offers to transports; see payment_sync_transport.h.
 */
#include "postgres.h"

#include "commands/defrem.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/snapmgr.h"

#include "base/wait_event.h"
#include "compat.h"
#include "decode/jsonb.h"
#include "deliver/deliver.h"
#include "message/init.h"
#include "message/message.h"
#include "target/registry.h"
#include "transport/conversion.h"

long		(*psync_deliver_wait_hook) (void) = NULL;
bool		(*psync_deliver_alone_hook) (void) = NULL;
bool		psync_deliver_reading = false;

/*
 * Most waits are over within this time.  Only a longer one is worth ending
 * the transaction for.
 */
#define PSYNC_WAIT_SHORT_MS		10

/* One wait for latch, socket or time, whichever comes first. */
static int
wait_once(pgsocket fd, int events, long timeout_ms)
{
	int			wake = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;

	if (fd != PGINVALID_SOCKET)
		wake |= events;
	if (timeout_ms >= 0)
		wake |= WL_TIMEOUT;
	return WaitLatchOrSocket(MyLatch, wake, fd, timeout_ms,
							 psync_wait_event(PSYNC_WAIT_TARGET));
}

/*
 * Wait for the target.  Nothing that holds back vacuum may be held here, and
 * after a moment no lock either.
 */
static int
wait_for_target(pgsocket fd, int events, long timeout_ms)
{
	bool		shortened = false;
	long		first_ms;
	int			rc;

	CHECK_FOR_INTERRUPTS();
	if (psync_deliver_wait_hook != NULL)
	{
		long		hook_ms = psync_deliver_wait_hook();

		Assert(hook_ms >= 0);
		shortened = timeout_ms < 0 || hook_ms < timeout_ms;
		if (shortened)
			timeout_ms = hook_ms;
	}

	Assert(fd == PGINVALID_SOCKET || events != 0);
	InvalidateCatalogSnapshot();
	Assert(psync_deliver_reading || !ActiveSnapshotSet());

	first_ms = timeout_ms >= 0 ? Min(timeout_ms, PSYNC_WAIT_SHORT_MS) :
		PSYNC_WAIT_SHORT_MS;
	rc = wait_once(fd, events, first_ms);
	if ((rc & WL_TIMEOUT) != 0 && timeout_ms != first_ms)
	{
		bool		paused = psync_delivery_pause();

		rc = wait_once(fd, events,
					   timeout_ms < 0 ? -1 : timeout_ms - first_ms);
		if (paused)
			psync_delivery_resume();
	}
	if (rc & WL_LATCH_SET)
	{
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}

	/* Not the caller's time is up: to it, this is like a latch set. */
	if (shortened && (rc & WL_TIMEOUT) != 0)
		rc = WL_LATCH_SET;
	return rc;
}

/*
 * The last word on options is the validators'; here a value is a string.
 */
static const char *
find_option(List *options, const char *keyword)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (strcmp(def->defname, keyword) == 0)
			return defGetString(def);
	}
	return NULL;
}

/* A user mapping's option goes before the server's of the same name. */
static const char *
target_option(const PsyncTarget *target, const char *keyword)
{
	const char *value = find_option(target->user_options, keyword);

	return value != NULL ? value : find_option(target->server_options, keyword);
}

static const PsyncServices services = {
	.magic = PSYNC_TRANSPORT_MAGIC,
	.wait = wait_for_target,
	.value_to_text = psync_value_to_text,
	.describe_key = psync_change_describe_key,
	.option = target_option,
	.conversions = &psync_conversions,
	.settle = psync_messages_settle,
};

void
psync_services_init(void)
{
	psync_services = &services;
}
