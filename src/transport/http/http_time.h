/*
 * http_time.h
 *		Times in options of the http transport: UTC, as 2027-01-31T00:00:00Z.
 *
 * Read by the core's validator and by the transport, which do not link to
 * each other; therefore in a header.
 */
#ifndef PSYNC_HTTP_TIME_H
#define PSYNC_HTTP_TIME_H

#include "datatype/timestamp.h"
#include "utils/datetime.h"

static inline bool
psync_http_parse_time(const char *text, TimestampTz *result)
{
	int			year,
				month,
				day,
				hour,
				minute,
				second,
				used = 0;
	int64		seconds;

	if (sscanf(text, "%4d-%2d-%2dT%2d:%2d:%2dZ%n", &year, &month, &day,
			   &hour, &minute, &second, &used) != 6 ||
		used == 0 || text[used] != '\0')
		return false;
	if (year < 2000 || month < 1 || month > 12 || day < 1 || day > 31 ||
		hour < 0 || hour > 23 || minute < 0 || minute > 59 ||
		second < 0 || second > 60)
		return false;
	seconds = (int64) (date2j(year, month, day) - POSTGRES_EPOCH_JDATE) * SECS_PER_DAY +
		hour * SECS_PER_HOUR + minute * SECS_PER_MINUTE + second;
	*result = seconds * USECS_PER_SEC;
	return true;
}

#endif							/* PSYNC_HTTP_TIME_H */
