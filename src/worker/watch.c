/*
 * watch.c
 *		Waiting for the answers of several targets at once.
 *
 * A target that takes messages answers when it likes.  If its sync is all that
 * the worker has to look after, the delivery waits by itself, which is
 * cheapest.  Otherwise its turn ends as soon as nothing can be done without an
 * answer, and the worker's sleep waits for the sockets of all such syncs
 * together with its latch.  So one that never answers (P7) keeps nobody, and
 * one worker serves many of them.
 *
 * The set of sockets is made anew for each sleep: they come and go with
 * transfers, and a set whose descriptors were closed behind its back would
 * miss what happens at their successors.
 *
 * While every sync of ours waits for a certain time (its target is down), new
 * changes are no news.  Then the bit that announces them is set by ourselves,
 * so that commits find it set and leave our latch alone: writers do not pay
 * for a target that is down.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#include "base/wait_event.h"
#include "compat.h"
#include "worker/serve.h"

/* Would the worker, but for the one whose turn it is, sleep without end? */
bool
psync_watch_alone(void)
{
	TimestampTz now = GetCurrentTimestamp();
	dlist_iter	iter;

	/* not in a turn: nobody else is waited for while we save or close */
	if (psync_serve.serving == NULL)
		return true;
	if ((pg_atomic_read_u32(&psync_serve.slot->wake) & ~PSYNC_WAKE_CHANGES) != 0 ||
		psync_serve.reload_wanted || psync_neighbour_asked())
		return false;
	dlist_foreach(iter, &psync_serve.syncs)
	{
		PsyncServed *other = dlist_container(PsyncServed, node, iter.cur);

		if (other == psync_serve.serving)
			continue;
		if (!other->owned && other->not_before > now)
			continue;
		if (pg_atomic_read_u32(&psync_serve.slot->wake) != 0)
			return false;
		if (other->pending || other->watched || other->wake_at != 0 ||
			psync_served_unsaved_since(other) != 0)
			return false;
	}
	return true;
}

/* The turn has ended because there is nothing to do before an answer. */
void
psync_watch_begin(PsyncServed *served)
{
	Assert(served->owned && served->delivery != NULL);

	served->watched = true;
	served->watch_socket = psync_delivery_watch(served->delivery,
												&served->watch_until);
	served->pending = false;
}

/* Is any sync being watched? */
bool
psync_watch_any(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &psync_serve.syncs)
	{
		if (dlist_container(PsyncServed, node, iter.cur)->watched)
			return true;
	}
	return false;
}

/* How many sockets there are to wait for. */
static int
count_sockets(void)
{
	int			n = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &psync_serve.syncs)
	{
		PsyncServed *served = dlist_container(PsyncServed, node, iter.cur);

		Assert(!served->watched || served->owned);
		if (served->watched && served->watch_socket != PGINVALID_SOCKET)
			n++;
	}
	return n;
}

/* A set of the latch and all sockets, each with its sync. */
static WaitEventSet *
make_set(int nsockets)
{
	WaitEventSet *set = psync_create_wait_event_set(nsockets + 2);
	dlist_iter	iter;

	(void) AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	(void) AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	dlist_foreach(iter, &psync_serve.syncs)
	{
		PsyncServed *served = dlist_container(PsyncServed, node, iter.cur);

		if (served->watched && served->watch_socket != PGINVALID_SOCKET)
			(void) AddWaitEventToSet(set, WL_SOCKET_READABLE, served->watch_socket,
									 NULL, served);
	}
	return set;
}

/* Who has got an answer has something to do. */
static void
wait_for_set(WaitEventSet *set, int nsockets, long timeout_ms)
{
	WaitEvent  *events = palloc((nsockets + 2) * sizeof(WaitEvent));
	TimestampTz now;
	int			n;

	n = WaitEventSetWait(set, timeout_ms, events, nsockets + 2,
						 psync_wait_event(PSYNC_WAIT_WORKER_MAIN));
	now = GetCurrentTimestamp();
	for (int i = 0; i < n; i++)
	{
		if ((events[i].events & WL_SOCKET_READABLE) != 0)
			psync_served_mark(events[i].user_data, now);
	}
	pfree(events);
}

/*
 * Sleep until a message, an answer, or that time.
 */
void
psync_watch_sleep(TimestampTz until)
{
	int			nsockets = count_sockets();
	WaitEventSet *set;
	long		timeout_ms = -1;

	if (nsockets == 0)
	{
		psync_process_wait(until, psync_wait_event(PSYNC_WAIT_WORKER_MAIN));
		return;
	}
	if (until != PSYNC_NEVER)
		timeout_ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
	set = make_set(nsockets);
	wait_for_set(set, nsockets, timeout_ms);
	FreeWaitEventSet(set);
}

/*
 * Before a sleep: would it make a difference if changes were announced?  If
 * not, see to it that nobody takes the trouble.  The bit makes the next pass
 * mark all syncs as pending, which they are.
 */
bool
psync_watch_deafen(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &psync_serve.syncs)
	{
		PsyncServed *served = dlist_container(PsyncServed, node, iter.cur);

		if (!served->pending || served->watched)
			return false;
	}
	Assert(psync_serve.serving == NULL);
	pg_atomic_fetch_or_u32(&psync_serve.slot->wake, PSYNC_WAKE_CHANGES);
	return true;
}
