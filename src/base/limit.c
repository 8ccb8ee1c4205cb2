/*
 * limit.c
 *		A limit of time for what users have written.
 *
 * While it runs, a worker can do nothing else: other syncs, of other owners,
 * wait for it (P7, P13).  So its time is limited, whatever it waits for: a
 * lock, a sleep, itself.
 *
 * When the time is up the code is cancelled as by pg_cancel_backend().  It may
 * catch that, as PL/pgSQL can by "WHEN query_canceled"; then it is cancelled
 * again, as soon as the subtransaction that caught it has been rolled back.
 * Each time at least one block of it ends, so all of it does.  Nothing stops
 * code that never looks for interrupts; the server itself could not either.
 *
 * The limit is a timer of its own, not statement_timeout: that one is the
 * session's, whose limit holds as well.
 *
 * Only one is running at a time; one that begins within another counts for
 * nothing.  It ends with psync_limit_end(), or when the (sub)transaction in
 * which it began ends.  In between, its signal may arrive at any time; one that
 * comes too late to cancel anything must not cancel what comes next, so the
 * request is taken back with the timer.
 */
#include "postgres.h"

#include <limits.h>
#include <signal.h>

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/timeout.h"

#include "base/role.h"
#include "compat.h"

int			psync_user_code_timeout = 2000;

static struct
{
	bool		registered;
	TimeoutId	id;
	bool		running;
	int			nest_level;		/* of the transaction in which it began */
	volatile sig_atomic_t fired;
}			timer;

/* In a signal handler. */
static void
cancel(void)
{
	timer.fired = true;
	QueryCancelPending = true;
	InterruptPending = true;
}

/* The timer, and what it has asked for in vain. */
static void
stop(void)
{
	Assert(timer.running);

	disable_timeout(timer.id, false);
	timer.running = false;
	if (timer.fired)
		QueryCancelPending = false;
	timer.fired = false;
}

static void
on_transaction_end(XactEvent event, void *arg)
{
	if (timer.running &&
		(event == XACT_EVENT_ABORT || event == XACT_EVENT_COMMIT ||
		 event == XACT_EVENT_PREPARE))
		stop();
}

/*
 * The abort of the subtransaction in which it began, or of one around that,
 * ends it.  The abort of one within it, though the time was up, means that
 * the cancel was caught.
 */
static void
on_subtransaction_end(SubXactEvent event, SubTransactionId mySubid,
					  SubTransactionId parentSubid, void *arg)
{
	if (event != SUBXACT_EVENT_ABORT_SUB || !timer.running)
		return;
	if (GetCurrentTransactionNestLevel() <= timer.nest_level)
		stop();
	else if (timer.fired)
		cancel();
}

/* What the error at hand is to say. */
static int
describe(const PsyncTimeLimit *limit)
{
	errmsg("%s took longer than %d ms", limit->what, limit->ms);
	errhint("Make it faster, or raise %s.", limit->setting);
	return 0;
}

/* The server takes the cancel to be "due to user request", which it is not. */
static void
explain(void *arg)
{
	if (timer.fired && geterrcode() == ERRCODE_QUERY_CANCELED)
		(void) describe(arg);
}

/* Once per process, when it first needs a limit. */
static void
register_timer(void)
{
	timer.id = RegisterTimeout(USER_TIMEOUT, cancel);
	RegisterXactCallback(on_transaction_end, NULL);
	RegisterSubXactCallback(on_subtransaction_end, NULL);
	timer.registered = true;
}

void
psync_limit_init(void)
{
	DefineCustomIntVariable("payment_sync.user_code_timeout",
							"Sets how long functions of user-defined types may take for one change.",
							"Input functions, checks of domains, casts to json. What takes longer is canceled. 0 sets no limit.",
							&psync_user_code_timeout,
							2000, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
}

/*
 * From now on, "ms" until psync_limit_end(); 0 sets none.  "limit" is the
 * caller's, and lasts as long.
 */
void
psync_limit_begin(PsyncTimeLimit *limit, const char *what, int ms,
				  const char *setting)
{
	limit->running = ms > 0 && !timer.running;
	if (!limit->running)
		return;
	if (!timer.registered)
		register_timer();
	limit->what = what;
	limit->ms = ms;
	limit->setting = setting;
	limit->callback.callback = explain;
	limit->callback.arg = limit;
	limit->callback.previous = error_context_stack;
	error_context_stack = &limit->callback;

	timer.nest_level = GetCurrentTransactionNestLevel();
	timer.fired = false;
	timer.running = true;
	enable_timeout_after(timer.id, ms);
}

/*
 * Raises an error if the time is up: the code may have come to its end without
 * noticing, or may have caught what was to end it.
 */
void
psync_limit_end(PsyncTimeLimit *limit)
{
	if (!limit->running)
		return;
	Assert(timer.running && error_context_stack == &limit->callback);

	disable_timeout(timer.id, false);
	error_context_stack = limit->callback.previous;
	if (timer.fired)
	{
		QueryCancelPending = false;
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED), describe(limit)));
	}
	timer.running = false;
}

/*
 * Is the time of a limit up that is still running?  Whoever has caught an error
 * within it must not go on then.
 */
bool
psync_limit_exceeded(void)
{
	return timer.running && timer.fired;
}
