/*
 * background.h
 *		What delivery workers do for reconciliation: start it.
 */
#ifndef PSYNC_RECONCILE_BACKGROUND_H
#define PSYNC_RECONCILE_BACKGROUND_H

#include "utils/timestamp.h"

/*
 * Start a process if a reconciliation is asked for, due, or was left by one
 * that was killed.  "quiet" says that nothing is being delivered, "asked" that
 * a session may have asked for one just now.  Cheap if called often; returns
 * when to call it again at the latest.  Outside a transaction.
 */
extern TimestampTz psync_reconcile_check(bool quiet, bool asked);

#endif							/* PSYNC_RECONCILE_BACKGROUND_H */
