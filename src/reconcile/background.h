/*
 * background.h
 *		Reconciliation in a process of its own.
 */
#ifndef PSYNC_RECONCILE_BACKGROUND_H
#define PSYNC_RECONCILE_BACKGROUND_H

/* From _PG_init: delivery workers start reconcilers from then on. */
extern void psync_reconcile_init(void);

#endif							/* PSYNC_RECONCILE_BACKGROUND_H */
