/*
 * backoff.h
 *		How long to wait before a failed sync is tried again.
 */
#ifndef PSYNC_BACKOFF_H
#define PSYNC_BACKOFF_H

/* payment_sync.retry_delay_min and _max, in ms */
extern int	psync_retry_delay_min;
extern int	psync_retry_delay_max;

/* Milliseconds to wait after the n-th failure in a row (n >= 1), jittered. */
extern int64 psync_backoff_delay(int failures);

#endif							/* PSYNC_BACKOFF_H */
