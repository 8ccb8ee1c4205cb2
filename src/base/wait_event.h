/*
 * wait_event.h
 *		What the server's monitoring views show of payment_sync.
 *
 * A file per kind: wait_event.c names what our processes wait for.
 */
#ifndef PSYNC_STATS_H
#define PSYNC_STATS_H

/* ---------------------------------------------------------- wait_event.c */

/*
 * One per thing waited for.  PostgreSQL 17 and newer show these by name in
 * pg_stat_activity; older servers show "Extension" for all of them.
 */
typedef enum PsyncWaitEvent
{
	PSYNC_WAIT_LAUNCHER_MAIN,	/* the launcher, for a message or a timer */
	PSYNC_WAIT_WORKER_MAIN,		/* an idle worker, for changes or a timer */
	PSYNC_WAIT_PACE,			/* a worker, before the next window of a busy
								 * sync */
	PSYNC_WAIT_WORKER_EXIT,		/* a session, for workers to leave a database */
	PSYNC_WAIT_TARGET,			/* a delivering process, for its target */
	PSYNC_WAIT_STANDBY			/* a session that fetches or delivers, for a
								 * synchronous standby */
} PsyncWaitEvent;

#define PSYNC_WAIT_EVENTS	(PSYNC_WAIT_STANDBY + 1)

/* The value that WaitLatch() and its like take. */
extern uint32 psync_wait_event(PsyncWaitEvent event);

#endif							/* PSYNC_STATS_H */
