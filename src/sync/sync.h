/*
 * sync.h
 *		Syncs: their definition, their state, and the lock that owns them.
 *
 * The definition is in the tables payment_sync.sync and sync_table, which
 * pg_dump keeps; the state is in payment_sync.sync_state, which it does not.
 * A sync without a state row (after a restore) does not run until
 * enable_sync() is told where to begin.
 */
#ifndef PSYNC_SYNC_H
#define PSYNC_SYNC_H

#include "fmgr.h"
#include "storage/itemptr.h"
#include "utils/uuid.h"

#include "base/owner.h"
#include "compat.h"
#include "log/log.h"

/* What was delivered, as long as there are statistics. */
typedef struct PsyncSyncCounters
{
	int64		windows;
	int64		changes;
	int64		rows_read;		/* batch rows */
	int64		bytes;
} PsyncSyncCounters;

/* The definition and state of one sync, as read at one time. */
typedef struct PsyncSync
{
	pg_uuid_t	id;
	char	   *name;
	char	   *id_text;
	char	   *server;			/* NULL: pull */
	Oid			owner;
	bool		enabled;
	List	   *tables;			/* of PsyncTable * */
	List	   *exclude_origins;	/* of char * */
	int64		log_size_max;	/* bytes; 0: payment_sync.max_log_size */
	bool		disable_when_full;
	char	   *transform;		/* SQL expression, or NULL */
	/* state; has_state false: the fields below are unset */
	bool		has_state;
	char	   *position;		/* snapshot A as text, maybe lagging behind the
								 * target's own row */
	char	   *target_position;	/* what the target was last seen to hold, or
								 * NULL; older than position if the windows
								 * since held nothing for it */
	PsyncReadHint hint;
	bool		restart;		/* told to start anew, and nothing delivered
								 * since: a position at the target is outdated */
	bool		batch_pending;	/* a batch is asked for or under way */
	TimestampTz retry_at;		/* 0: now */
	int32		failures;		/* in a row */
	/* of targets that take messages: the window at hand, if it was begun */
	char	   *window_upto;	/* its B as text, or NULL */
	uint64		window_position;	/* up to here (and xid) all is settled */
	uint64		window_xid;
	uint64	   *ahead;			/* position and xid of changes that are
								 * settled beyond that; */
	int			nahead;			/* numbers, two per change */
	int32		generation;		/* changed when the position was set by hand */
	TimestampTz failing_since;	/* 0: not failing */
	bool		parked;			/* there are parked events */
	PsyncSyncCounters saved;
	bool		log_full;		/* was seen to hold back too much of the log */
} PsyncSync;

/*
 * Which version of a sync's row in payment_sync.sync one has seen.  Whatever
 * changes a definition such that changes would be lost on who does not know it
 * writes that row, so a version that is the same means a definition that is.
 */
typedef struct PsyncSyncVersion
{
	TransactionId xmin;			/* 0: there is no row */
	ItemPointerData place;
} PsyncSyncVersion;

/* What a delivery adds to the state; deltas are added, positions replaced. */
typedef struct PsyncSyncProgress
{
	const char *position;		/* NULL: leave */
	const char *target_position;	/* NULL: leave */
	const PsyncReadHint *hint;	/* with position */
	int64		windows;
	int64		changes;
	int64		rows_read;		/* batch rows */
	int64		bytes;
	TimestampTz delivered_at;	/* 0: leave */
	TimestampTz lag_at;			/* "at" of the last delivered change; 0: leave */
	/* targets that take messages only */
	const char *window_upto;	/* NULL: no window is begun */
	uint64		window_position;
	uint64		window_xid;
	const uint64 *ahead;		/* settled beyond that: as in PsyncSync */
	int			nahead;
	const int32 *generation;	/* must still be this; NULL: any */
} PsyncSyncProgress;

/*
 * All of these need a transaction; those that read take their own snapshot
 * and release it.  They work as the extension's owner, whoever calls.
 */
extern PsyncSync *psync_sync_load(const pg_uuid_t *id);	/* NULL: none */
extern PsyncSync *psync_sync_load_by_name(const char *name);
extern void psync_sync_version(const pg_uuid_t *id, PsyncSyncVersion *version);
extern bool psync_sync_version_equal(const PsyncSyncVersion *a,
									 const PsyncSyncVersion *b);
extern List *psync_sync_list_runnable(void);	/* of PsyncSync *, with server,
												 * enabled, with state */
extern List *psync_sync_list_with_state(void);	/* of PsyncSync * */
extern List *psync_sync_list_positions(void);	/* of PsyncSnapshot *: A of
												 * every sync with a state */
/* How often this process has saved any sync's progress. */
extern uint64 psync_progress_saves;

extern bool psync_sync_save_progress(const pg_uuid_t *id,
									 const PsyncSyncProgress *progress);
extern void psync_sync_save_failure(const pg_uuid_t *id, const char *sqlstate,
									const char *message, const char *detail,
									TimestampTz retry_at);
extern void psync_sync_save_success(const pg_uuid_t *id);	/* failures := 0 */
extern void psync_sync_disable(const pg_uuid_t *id, const char *reason);
extern void psync_sync_give_up(const pg_uuid_t *id, const char *reason);

/*
 * Where a backlog can be cut (waypoint.c).  note(): the caller's transaction
 * should end soon if true.  next(): where the reader's next window should end,
 * in the current memory context; NULL: now.  tidy(): what whoever passes by
 * does for the log, see psync_log_rotate().
 */
extern bool psync_waypoint_note(void);
extern PsyncWaypoint *psync_waypoint_next(PsyncReader *reader);
extern bool psync_log_tidy(void);

/*
 * Warn of syncs that hold back too much of the log, or disable them, as they
 * are set.  To be called now and then, in a transaction of its own.
 */
extern void psync_log_limit_check(void);

/*
 * Changes of this origin are not delivered by the sync: because it says so, or
 * because they were logged to repair another sync's target.
 */
#define PSYNC_ORIGIN_REPAIR		"repair:"	/* followed by the sync's id */

extern bool psync_sync_excludes(const PsyncSync *sync, const char *origin);

/* Does a change of this relation and origin concern the sync? */
extern bool psync_sync_wants(const PsyncSync *sync, Oid relid,
							 const char *origin);

/* Identity of this change log: a uuid made at CREATE EXTENSION, as text. */
extern char *psync_log_identity(void);
extern void psync_log_claim(void);

extern uint64 *psync_numbers_read(Datum value, int *n);

/*
 * The session lock that the process delivering a sync holds.  Shared by the
 * worker and incremental_sync(), so that one process delivers at a time.
 */
extern bool psync_sync_lock(const pg_uuid_t *id, bool wait);
extern void psync_sync_unlock(const pg_uuid_t *id);
extern bool psync_sync_lock_wanted(const pg_uuid_t *id);

/* Does someone who is allowed to (see sync/rights.c) call? */
extern void psync_check_server_usage(const char *server);
extern void psync_check_sync_owner(const PsyncSync *sync);

extern bool psync_sync_has_table(const PsyncSync *sync, Oid relid);
pg_noreturn extern void psync_refuse_table_of_sync(const PsyncSync *sync, Oid relid);

/* The sync of that name, which the caller must own; else an error. */
extern PsyncSync *psync_sync_get_own(const char *name);

#endif							/* PSYNC_SYNC_H */
