/*
 * serve.h
 *		The syncs of one worker; private to the worker process.
 *
 * serve.c keeps the set, turn.c gives turns, pace.c spaces the windows of a busy
 * sync, watch.c waits for the answers of several targets, neighbour.c sees to it that a long turn harms no other sync.
 */
#ifndef PSYNC_WORKER_SERVE_H
#define PSYNC_WORKER_SERVE_H

#include "lib/ilist.h"

#include "deliver/deliver.h"
#include "worker/process.h"

/* How long one sync may keep the worker while others are pending. */
#define PSYNC_TURN_MS			100

/* How long a pending sync waits before another worker is asked for. */
#define PSYNC_PATIENCE_MS		100

/*
 * When to try again for the lock of a sync that is served elsewhere.  Whoever
 * gives the lock back sends PSYNC_WAKE_CONFIG; this covers a session that is
 * killed before it can.
 */
#define PSYNC_RECHECK_MS		10000

/* A sync left to others is not taken back before they had a chance. */
#define PSYNC_LEFT_MS			1000

/*
 * How long a sync may be stuck at its target while others want its worker;
 * doubled for each failure in a row, so many times at most.
 */
#define PSYNC_STUCK_MS			5000
#define PSYNC_STUCK_DOUBLINGS_MAX	10

/* No longer than so many turns of a database while another database waits. */
#define PSYNC_STUCK_TURNS_MAX	3

/* How soon whoever waits for a target looks again whether others wait for it. */
#define PSYNC_LOOK_MS			1000

/* How long answers are awaited when a sync is left to others. */
#define PSYNC_LEAVE_MS			500

/* A sync whose worker has crashed is not served before. */
#define PSYNC_CRASH_DELAY_MS	1000

/* How long an ending process waits for its targets. */
#define PSYNC_END_MS			500

/* The same, of one that is not told to hurry. */
#define PSYNC_LEAVE_ALL_MS		1000

/* One sync of this worker's database. */
typedef struct PsyncServed
{
	dlist_node	node;
	pg_uuid_t	id;
	char		name[NAMEDATALEN];
	bool		listed;			/* found by the reload under way */
	bool		owned;			/* we hold its lock */
	PsyncDelivery *delivery;	/* NULL: none open; only if owned */
	bool		pending;		/* may have something to deliver */
	TimestampTz pending_since;	/* valid if pending */
	TimestampTz not_before;		/* no turn before; 0: now */
	TimestampTz wake_at;		/* pending then without any message; 0: never */
	bool		watched;		/* waits for answers, see watch.c; only if owned */
	pgsocket	watch_socket;	/* if watched; PGINVALID_SOCKET: none */
	TimestampTz watch_until;	/* if watched: pending then anyway */
	uint64		pass;			/* the pass in which it last had a turn */
	int			failures;		/* in a row */
	int			streak;			/* of failures without progress saved in between */
	bool		unrecorded;		/* the table lacks the last failure */
	int			crashes;		/* workers that died in its turn, in a row */
	bool		crashed;		/* the last of them is to be recorded */
	long		standby_waited; /* ms, for what is to be sent next; 0: not */
	int			credits;		/* windows that need not wait, see pace.c */
	TimestampTz paced_at;		/* up to when credits are counted; 0: never */
} PsyncServed;

/* What this worker knows; "serving" is NULL between turns and saves. */
typedef struct PsyncServeState
{
	PsyncSharedWorker *slot;
	dlist_head	syncs;			/* of PsyncServed */
	uint64		pass;			/* number of the pass under way */
	PsyncServed *serving;		/* whose turn it is */
	TimestampTz turn_started;	/* valid if serving */
	bool		called_off;		/* the turn was ended because its sync had been
								 * disabled or dropped */
	bool		leaving;		/* a sync is being given back */
	TimestampTz end_by;			/* when the process ends: wait for targets no
								 * longer than this; else PSYNC_NEVER */
	bool		reload_wanted;	/* definitions may have changed */
	TimestampTz reload_at;		/* the last look at them failed: look again
								 * then; 0: it did not */
	int			reload_failures;	/* in a row */
	bool		reload_helped;	/* stuck in a turn, we have told another
								 * worker to look at them */
	bool		yield_wanted;	/* a session wants one of our syncs */
	TimestampTz last_open;		/* when a target was last opened */
	TimestampTz last_work;		/* when a window was last delivered */
} PsyncServeState;

/* serve.c */
extern PsyncServeState psync_serve;

extern void psync_serve_init(PsyncSharedWorker *slot);
extern void psync_serve_hear(uint32 messages);
extern bool psync_serve_reload(void);
extern bool psync_serve_pass(void);
extern bool psync_serve_save(bool all);
extern void psync_serve_release_all(void);
extern bool psync_serve_has_syncs(void);
extern TimestampTz psync_serve_next_time(void);

extern void psync_served_mark(PsyncServed *served, TimestampTz now);
extern TimestampTz psync_served_unsaved_since(const PsyncServed *served);
extern void psync_served_saved(PsyncServed *served);

/* turn.c */
extern void psync_turn(PsyncServed *served);
extern void psync_turn_failed(PsyncServed *served, ErrorData *error);
extern PsyncSync *psync_turn_load_runnable(const PsyncServed *served);
extern void psync_turn_release(PsyncServed *served, TimestampTz not_before);

/* pace.c */
extern void psync_pace_spend(PsyncServed *served);
extern TimestampTz psync_pace_next(PsyncServed *served);
extern bool psync_pace_wait(TimestampTz until);

/* watch.c */
extern bool psync_watch_alone(void);
extern void psync_watch_begin(PsyncServed *served);
extern bool psync_watch_any(void);
extern void psync_watch_sleep(TimestampTz until);
extern bool psync_watch_deafen(void);

/* neighbour.c */
extern bool psync_neighbour_asked(void);
extern bool psync_neighbour_help_available(void);
extern void psync_neighbour_leave_due(void *arg);
extern void psync_neighbour_yield(void *arg);
extern long psync_neighbour_waiting(void);

static inline TimestampTz
psync_after(TimestampTz from, int64 ms)
{
	return TimestampTzPlusMilliseconds(from, ms);
}

static inline bool
psync_served_due(const PsyncServed *served, TimestampTz now)
{
	return served->pending && served->not_before <= now;
}

#endif							/* PSYNC_WORKER_SERVE_H */
