/*
 * wait_event.c
 *		Names for what our processes wait for.
 *
 * Custom wait events live in a small table in shared memory, from which they
 * are never removed: so the set is fixed here, each is registered when a
 * process first waits for it, and every process gets the same number for the
 * same name.
 */
#include "postgres.h"

#include "base/wait_event.h"
#include "compat.h"

static const char *const psync_wait_event_names[] = {
	[PSYNC_WAIT_LAUNCHER_MAIN] = "PaymentSyncLauncherMain",
	[PSYNC_WAIT_WORKER_MAIN] = "PaymentSyncWorkerMain",
	[PSYNC_WAIT_PACE] = "PaymentSyncPace",
	[PSYNC_WAIT_WORKER_EXIT] = "PaymentSyncWorkerExit",
	[PSYNC_WAIT_TARGET] = "PaymentSyncTarget",
	[PSYNC_WAIT_STANDBY] = "PaymentSyncStandby",
};

StaticAssertDecl(lengthof(psync_wait_event_names) == PSYNC_WAIT_EVENTS,
				 "every wait event has a name");

/*
 * Registration takes a lock in shared memory and may raise an error if the
 * table is full, so it must not happen between preparing to wait and waiting:
 * callers that sleep on a condition variable ask for the event beforehand.
 */
uint32
psync_wait_event(PsyncWaitEvent event)
{
	static uint32 known[PSYNC_WAIT_EVENTS];

	Assert(event >= 0 && event < PSYNC_WAIT_EVENTS);

	/* A custom event's number is never zero: its class is in the high byte. */
	if (known[event] == 0)
		known[event] = psync_wait_event_new(psync_wait_event_names[event]);

	Assert(known[event] != 0);
	return known[event];
}
