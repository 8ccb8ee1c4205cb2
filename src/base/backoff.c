/*
 * backoff.c
 *		How long to wait before a failed sync is tried again.
 */
#include "postgres.h"

#include "base/backoff.h"
#include "compat.h"

int			psync_retry_delay_min = 100;
int			psync_retry_delay_max = 60 * 1000;

/*
 * Doubling, from retry_delay_min up to retry_delay_max, then shortened by up
 * to a third: syncs that failed together because one target went down must
 * not all knock again at the same moment when it comes up (P7).  The spread is
 * to one side, so that retry_delay_max is what it says, and less than half,
 * so that each delay up to there is longer than the one before.
 */
int64
psync_backoff_delay(int failures)
{
	int64		longest = Max(psync_retry_delay_min, psync_retry_delay_max);
	int64		delay = psync_retry_delay_min;

	Assert(failures >= 1);

	/* Both are ints, so the doubled value cannot overflow an int64. */
	for (int i = 1; i < failures && delay < longest; i++)
		delay *= 2;
	delay = Min(delay, longest);
	delay -= (int64) (delay * psync_random() / 3);

	Assert(delay >= 0 && delay <= longest);
	return Max(delay, 1);
}
