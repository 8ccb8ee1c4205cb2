/*
 * wakeup.h
 *		Telling the background processes that there is something to do.
 *
 * Those are above all others, so they say here how they are told: hooks that
 * worker/ sets where the library is preloaded.  Without them nobody listens,
 * and these functions do nothing.
 */
#ifndef PSYNC_WAKEUP_H
#define PSYNC_WAKEUP_H

/* At commit of the current transaction: definitions have changed. */
extern void psync_wakeup_config(void);

/*
 * At once: this session is about to wait for a sync's lock.  Whoever gives
 * such a lock back calls psync_wakeup_config().
 */
extern void psync_wakeup_yield(void);

/* Deliveries, of this process too, and workers look at all definitions again. */
extern void psync_definition_changed(void);

extern void (*psync_wakeup_config_hook) (void);
extern void (*psync_wakeup_yield_hook) (void);

#endif							/* PSYNC_WAKEUP_H */
