/*
 * shmem.h
 *		What sessions, launcher and workers share; private to this folder.
 *
 * Three parts, of fixed size: the control, a slot per delivery worker, an
 * entry per database that has the extension (or may have it: not yet probed).
 *
 * Locking.  psync_control->lock protects everything but the atomics; it is
 * held for a few instructions, never while waiting, allocating or raising.
 * The atomics exist so that a committing session need not take it:
 *
 *	slot.dboid		changed under the exclusive lock, read without
 *	slot.proc		likewise; a stale number costs some process a spurious
 *					wake-up, which every process must bear anyway
 *	slot.wake		messages not yet taken: set by anyone, emptied by the owner
 *	slot.asked		set by the launcher, cleared when the slot is free
 *	database.dboid	changed under the exclusive lock, read without
 *	database.pending	messages for which no worker was there: set by anyone,
 *						emptied by the launcher
 *
 * Why no message is lost.  A sender sets its bit in slot.wake, then reads
 * slot.dboid again; a leaving worker clears dboid, then empties wake.  Both
 * steps are full barriers, so either the worker sees the bit and turns it into
 * database.pending, or the sender sees that the slot is gone and sets pending
 * itself.  A worker at work empties wake before it takes its snapshot, and a
 * sender sets the bit after its commit is visible: a change is either seen by
 * that snapshot or announced by a bit still set, which the worker reads
 * before it sleeps.
 */
#ifndef PSYNC_WORKER_SHMEM_H
#define PSYNC_WORKER_SHMEM_H

#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

/* Messages to a worker, bits of slot.wake; README.md says when and why. */
#define PSYNC_WAKE_CHANGES		0x01	/* changes were committed */
#define PSYNC_WAKE_CONFIG		0x02	/* definitions have changed */
#define PSYNC_WAKE_YIELD		0x04	/* a session wants a sync's lock */

/* Messages to the launcher, bits of control.launcher_wake. */
#define PSYNC_LAUNCHER_WORK		0x01	/* look at the database entries */
#define PSYNC_LAUNCHER_SCAN		0x02	/* databases were made or dropped */

/* One delivery worker. */
typedef struct PsyncSharedWorker
{
	pg_atomic_uint32 dboid;		/* InvalidOid: the slot is free, and the rest
								 * invalid */
	pg_atomic_uint32 wake;		/* PSYNC_WAKE_… */
	pg_atomic_uint32 proc;		/* index of its PGPROC plus 1; 0: starting */
	pg_atomic_uint32 asked;		/* 1: another database waits for the slot; a
								 * state, not a message, so nobody can miss it */
	uint32		generation;		/* tells this use of the slot from others */
	pid_t		pid;			/* 0: starting */
	TimestampTz started_at;
	TimestampTz asked_at;		/* valid if asked */
	bool		idle;			/* waits for messages or timers */
	bool		leaving;		/* has decided to leave */
	bool		serving;		/* sync is valid */
	pg_uuid_t	sync;			/* the sync whose turn it is now */
} PsyncSharedWorker;

typedef enum PsyncSharedPresence
{
	PSYNC_EXTENSION_UNKNOWN,	/* a worker must look */
	PSYNC_EXTENSION_ABSENT,		/* was looked for in vain */
	PSYNC_EXTENSION_PRESENT
} PsyncSharedPresence;

/* One database. */
typedef struct PsyncSharedDatabase
{
	pg_atomic_uint32 dboid;		/* InvalidOid: the entry is free */
	pg_atomic_uint32 pending;	/* PSYNC_WAKE_… that found no worker */
	PsyncSharedPresence presence;
	int			holds;			/* commands that want no worker here now */
	bool		help;			/* a worker has left syncs to others */
	/* For the launcher, while the database has no worker: */
	TimestampTz due;			/* a worker is needed then in any case */
	TimestampTz changes_after;	/* changes alone are no reason before */
	TimestampTz start_after;	/* nothing is a reason before */
} PsyncSharedDatabase;

/* A sync in whose turn workers have died, see crash.c. */
typedef struct PsyncCrashNote
{
	Oid			dboid;			/* InvalidOid: none */
	pg_uuid_t	sync;
	int32		crashes;		/* in a row */
	int32		recorded;		/* the last one is in the sync's table */
} PsyncCrashNote;

#define PSYNC_CRASH_NOTES	64

typedef struct PsyncSharedControl
{
	pg_atomic_uint32 launcher_proc; /* like slot.proc; 0: no launcher */
	pg_atomic_uint32 launcher_wake; /* PSYNC_LAUNCHER_… */
	uint32		generation;		/* last one given to a slot */
	int			waiting;		/* databases that need a worker and have none;
								 * the launcher's last count */
	PsyncCrashNote dead[PSYNC_CRASH_NOTES];
	ConditionVariable gone;		/* broadcast when a slot becomes free */
} PsyncSharedControl;

#define PSYNC_NEVER		DT_NOEND

/* settings.c */
extern int	psync_max_workers;
extern int	psync_max_databases;
extern int	psync_database_scan_interval;	/* s */
extern int	psync_worker_idle_timeout;	/* s */
extern int	psync_window_interval;	/* ms; 0: none */
extern int	psync_database_turn;	/* ms */
extern int	psync_lock_timeout; /* ms */
extern int	psync_max_crashes;	/* 0: no limit */
extern void psync_settings_init(void);

/* shmem.c; all but init and ready need psync_shmem_ready() */
extern PsyncSharedControl *psync_control;
extern PsyncSharedWorker *psync_slots;	/* psync_max_workers of them */
extern PsyncSharedDatabase *psync_databases;	/* psync_max_databases */
extern LWLock *psync_control_lock;

extern void psync_shmem_init(void);
extern bool psync_shmem_ready(void);
extern PsyncSharedDatabase *psync_database_find(Oid dboid);
extern PsyncSharedDatabase *psync_database_enter(Oid dboid);
extern void psync_database_forget(PsyncSharedDatabase *database);
extern int	psync_database_workers(Oid dboid);
extern PsyncSharedWorker *psync_slot_claim(Oid dboid);
extern void psync_slot_release(PsyncSharedWorker *slot, bool again);

/* crash.c */
extern void psync_crash_startup(void);
extern void psync_crash_told_to_end(void);
extern void psync_crash_attach(int slot);
extern void psync_crash_serving(const pg_uuid_t *sync);
extern void psync_crash_exit(void);
extern int	psync_crash_count(const pg_uuid_t *sync, bool *recorded);
extern void psync_crash_settle(const pg_uuid_t *sync, bool over);

/* wakeup.c */
extern void psync_wakeup_init(void);
extern void psync_wakeup_launcher(uint32 message);
extern void psync_wakeup_slot(PsyncSharedWorker *slot, uint32 message);
extern void psync_wakeup_leave(PsyncSharedWorker *slot);
extern bool psync_wakeup_workers(Oid dboid, uint32 message);
extern void psync_wakeup_scan(void);

/*
 * Changes were committed just now.  For the log's commit hook: takes no
 * heavyweight lock, allocates nothing, never raises.
 */
extern void psync_wakeup_changes(void);

/* hold.c */
extern void psync_hold_init(void);
extern void psync_hold_release(void);

/* launcher.c */
extern void psync_launcher_init(void);

#endif							/* PSYNC_WORKER_SHMEM_H */
