/*
 * payment_sync_clock.c
 *		A server on another day: preloaded by the dynamic linker (LD_PRELOAD),
 *		shifts the clock by PSYNC_CLOCK_SHIFT seconds.
 *
 * For tests of what depends on the date.  Delays and time-outs are measured by
 * other clocks, which run as they are.
 */
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long
shift(void)
{
	const char *seconds = getenv("PSYNC_CLOCK_SHIFT");

	return seconds != NULL ? atol(seconds) : 0;
}

int
gettimeofday(struct timeval *restrict tv, void *restrict tz)
{
	struct timespec now;

	(void) tz;
	clock_gettime(CLOCK_REALTIME, &now);
	tv->tv_sec = now.tv_sec + shift();
	tv->tv_usec = now.tv_nsec / 1000;
	return 0;
}

time_t
time(time_t *result)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	now.tv_sec += shift();
	if (result != NULL)
		*result = now.tv_sec;
	return now.tv_sec;
}
