/*
 * worker.h
 *		Background processes, as the rest of the library sees them.
 */
#ifndef PSYNC_WORKER_H
#define PSYNC_WORKER_H

#include "utils/timestamp.h"

/*
 * Called between a delivery worker's turns, outside a transaction, by whoever
 * lies above: for what is to be started now and then.  "quiet" says that nothing
 * is being delivered, "asked" that a session may have asked for something just
 * now.  Cheap if called often; returns when to call it again at the latest.
 */
extern TimestampTz (*psync_worker_turn_hook) (bool quiet, bool asked);

/* From _PG_init: GUCs, shared memory request, launcher registration, hooks. */
extern void psync_worker_init(void);

#endif							/* PSYNC_WORKER_H */
