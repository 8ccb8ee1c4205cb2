/*
 * deliver.h
 *		The one loop that delivers: for the procedure and for the worker.
 *
 * A delivery is what a process knows of one sync while it serves it: the open
 * target, the reader, cached shapes, the batch in progress.  The caller holds
 * the sync's lock (psync_sync_lock) for as long as the delivery lives.
 */
#ifndef PSYNC_DELIVER_H
#define PSYNC_DELIVER_H

#include "sync/sync.h"

typedef struct PsyncDelivery PsyncDelivery;

typedef enum PsyncDeliverResult
{
	PSYNC_DELIVER_IDLE,			/* nothing was pending */
	PSYNC_DELIVER_DONE,			/* a window was delivered; maybe more */
	PSYNC_DELIVER_WAIT,			/* the target is down; the delivery stays open,
								 * psync_delivery_failure() says till when */
	PSYNC_DELIVER_WATCH,		/* answers are to come, and the process has other
								 * things to do: psync_delivery_watch() says
								 * what for to wait */
	PSYNC_DELIVER_STANDBY,		/* a synchronous standby lacks what is to be
								 * sent: ask again in a moment */
	PSYNC_DELIVER_YIELD,		/* a session wants the sync's lock */
	PSYNC_DELIVER_GONE			/* the sync is dropped, disabled or changed:
								 * close the delivery */
} PsyncDeliverResult;

/*
 * How the process ends a transaction and begins the next: the worker with
 * CommitTransactionCommand, the procedure with SPI_commit.
 */
typedef void (*PsyncNextTransaction) (void);

extern void psync_worker_next_transaction(void);
extern void psync_spi_next_transaction(void);

/*
 * Create, step, save, close.  All need a transaction without an active
 * snapshot.  step() delivers at most one window.  Errors propagate; after one
 * the caller must close (which does not raise) and may create anew later.
 * save() writes progress that was kept in memory (at most one second's
 * worth); close() does not.
 */
extern PsyncDelivery *psync_delivery_create(const pg_uuid_t *id,
											PsyncNextTransaction next);
extern PsyncDeliverResult psync_delivery_step(PsyncDelivery *delivery);
extern void psync_delivery_save(PsyncDelivery *delivery);

/* Save what must not be delivered again by another process that takes over. */
extern void psync_delivery_leave(PsyncDelivery *delivery, long await_ms);
extern void psync_delivery_close(PsyncDelivery *delivery);

/*
 * Around a long wait for the target: end the transaction, and begin another.
 * pause() does nothing, and returns false, if this is not a moment for it.
 */
extern bool psync_delivery_pause(void);
extern void psync_delivery_resume(void);

/*
 * After PSYNC_DELIVER_STANDBY, for a session that has nothing else to do: wait
 * until the standby has what is to be sent, without a transaction's locks.
 */
extern void psync_delivery_await_standby(PsyncDelivery *delivery);

/* Does the target, if it is open, take windows (rather than messages)? */
extern bool psync_delivery_takes_windows(PsyncDelivery *delivery);

/*
 * After a failure, in a transaction of its own: if it was a foreign key's, and
 * a first copy is under way of tables that refer to each other, those are copied
 * as a whole.
 */
extern void psync_batch_note_failure(const pg_uuid_t *id, int sqlerrcode);

/* Definitions may have changed: the next step looks. */
extern void psync_delivery_recheck(PsyncDelivery *delivery);

/* Something is unsaved since: for the worker's timer; 0 if nothing. */
extern TimestampTz psync_delivery_unsaved_since(PsyncDelivery *delivery);

/*
 * When the delivery has something to do without any new change; 0: never.
 * Asked after PSYNC_DELIVER_IDLE.
 */
extern TimestampTz psync_delivery_wake_at(const PsyncDelivery *delivery);

/*
 * After PSYNC_DELIVER_WATCH: the delivery has something to do when the socket
 * returned is readable (PGINVALID_SOCKET: there is none), or at *until at the
 * latest (DT_NOEND: never).
 */
extern pgsocket psync_delivery_watch(const PsyncDelivery *delivery,
									 TimestampTz *until);

/* May a step end with PSYNC_DELIVER_WATCH?  NULL: no. */
extern bool psync_delivery_watchable(const PsyncDelivery *delivery);

/* Why a delivery waits, after PSYNC_DELIVER_WAIT; it has been recorded. */
typedef struct PsyncDeliveryFailure
{
	int			sqlerrcode;
	const char *message;
	const char *detail;			/* or NULL */
	TimestampTz retry_at;
	int			failures;		/* in a row */
} PsyncDeliveryFailure;

extern void psync_delivery_failure(const PsyncDelivery *delivery,
								   PsyncDeliveryFailure *failure);

/*
 * Called before each wait for a target; returns after how many milliseconds
 * it wants to be called again at the latest.
 * Set by the worker layer, which looks after its other syncs meanwhile: it
 * may close other deliveries.
 */
extern long (*psync_deliver_wait_hook) (void);

/* payment_sync.ledger_retention, in days; 0: for ever */
extern int	psync_ledger_retention;

/* How long a transform may take for one event, in ms; 0: no limit. */
extern int	psync_transform_timeout;

/*
 * May a delivery that takes messages wait for their answers itself?  Set by the
 * worker layer: true if it has nothing else to look after.  NULL: yes.
 */
extern bool (*psync_deliver_alone_hook) (void);

/*
 * A reconciliation reads at the target on behalf of a statement, whose snapshot
 * is held meanwhile.  A delivery must hold none.
 */
extern bool psync_deliver_reading;

#endif							/* PSYNC_DELIVER_H */
