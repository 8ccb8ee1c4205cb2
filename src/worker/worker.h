/*
 * worker.h
 *		Background processes and the messages by which they are woken.
 */
#ifndef PSYNC_WORKER_H
#define PSYNC_WORKER_H

#include "utils/timestamp.h"

/* From _PG_init: GUCs, shared memory request, launcher registration, hooks. */
extern void psync_worker_init(void);

/*
 * Tell the database's workers that there is something to do; a no-op without
 * preload.  psync_wakeup_config() says that definitions have changed (at
 * commit of the current transaction); psync_wakeup_changes() that changes
 * were committed just now (called from the log's commit hook: takes no
 * heavyweight lock, allocates nothing, never raises); psync_wakeup_yield()
 * that this session is about to wait for a sync's lock (at once).  Whoever
 * gives such a lock back calls psync_wakeup_config().
 */
extern void psync_wakeup_config(void);
extern void psync_wakeup_changes(void);
extern void psync_wakeup_yield(void);

/* CREATE EXTENSION / DROP EXTENSION happened in this database. */
extern void psync_wakeup_database(bool present);

/* Milliseconds to wait after the n-th failure in a row (n >= 1), jittered. */
extern int64 psync_backoff_delay(int failures);

/* Pid of the worker that serves the sync now, or 0. */
extern int	psync_worker_pid(const char *sync_id);

#endif							/* PSYNC_WORKER_H */
