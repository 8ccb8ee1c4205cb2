/*
 * process.c
 *		What launcher and workers have in common: signals, sleep, errors.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "compat.h"
#include "worker/process.h"

static void
psync_process_die(SIGNAL_ARGS)
{
	psync_crash_told_to_end();
	die(postgres_signal_arg);
}

/*
 * SIGTERM ends the process at the next check for interrupts, wherever that
 * is: a transport that waits for its target, or a statement that waits for a
 * lock, must not hold up a shutdown.  Between turns it is noticed by
 * psync_process_should_stop() first, and then ends the process quietly.
 * SIGINT (pg_cancel_backend) keeps the meaning that the server gave it:
 * it cancels a step, as any statement.
 */
void
psync_process_signals(void)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, psync_process_die);
	BackgroundWorkerUnblockSignals();
}

/*
 * To be called when nothing is being done.  True if the process should end;
 * otherwise the settings are up to date, and messages of the server itself
 * (barriers, cache invalidations) have been handled.
 */
bool
psync_process_should_stop(void)
{
	Assert(!IsTransactionState());

	if (ProcDiePending)
		return true;

	/* There is nothing to cancel now, and there may not be later on. */
	QueryCancelPending = false;
	CHECK_FOR_INTERRUPTS();

	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
	return false;
}

/* Sleep until the latch is set or the time has come. */
void
psync_process_wait(TimestampTz until, uint32 wait_event)
{
	int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;
	long		timeout = -1;

	Assert(!IsTransactionState());

	if (until != PSYNC_NEVER)
	{
		events |= WL_TIMEOUT;
		timeout = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
	}
	(void) WaitLatch(MyLatch, events, timeout, wait_event);
}

/*
 * Do some work in a transaction of its own.  An error ends the transaction
 * and is returned, in the current context; NULL if all went well.
 *
 * An error while we clean up after an error reaches the handler that the
 * server has set up for every background worker, which reports it and ends
 * the process; the launcher then starts another.
 */
ErrorData *
psync_process_try(PsyncWork work, void *arg)
{
	MemoryContext caller = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;

	Assert(!IsTransactionState());
	Assert(caller != ErrorContext);

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PG_TRY();
	{
		work(arg);
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		AbortOutOfAnyTransaction();
		FlushErrorState();

		/* A cancel that has arrived was meant for what has just ended. */
		QueryCancelPending = false;
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();

	MemoryContextSwitchTo(caller);
	Assert(!IsTransactionState());
	return error;
}
