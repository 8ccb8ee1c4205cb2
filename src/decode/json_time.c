/*
 * json_time.c
 *		Dates and times in JSON, as RFC 3339 wants them.
 *
 * RFC 3339 has years 0000 to 9999; what lies outside is written as
 * PostgreSQL itself writes it in JSON.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "datatype/timestamp.h"
#include "utils/date.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "decode/json.h"

/* Days since 2000-01-01 of 0001-01-01 and of 10000-01-01. */
#define DAY_FIRST	(-730119)
#define DAY_END		2921940

/*
 * With leading zeros; the value has no more digits than that.
 */
static char *
put_digits(char *at, int value, int digits)
{
	for (int i = digits - 1; i >= 0; i--)
	{
		at[i] = '0' + value % 10;
		value /= 10;
	}
	Assert(value == 0);
	return at + digits;
}

/*
 * YYYY-MM-DD, of a day within the years that have four digits.
 */
static char *
put_date(char *at, int32 days)
{
	int			year;
	int			month;
	int			day;

	Assert(days >= DAY_FIRST && days < DAY_END);
	j2date(days + POSTGRES_EPOCH_JDATE, &year, &month, &day);
	at = put_digits(at, year, 4);
	*at++ = '-';
	at = put_digits(at, month, 2);
	*at++ = '-';
	return put_digits(at, day, 2);
}

/* Always with microseconds, so that the texts sort as the times do. */
static char *
put_time(char *at, int64 time)
{
	int			seconds = (int) (time / USECS_PER_SEC);

	Assert(time >= 0 && time <= USECS_PER_DAY);
	at = put_digits(at, seconds / 3600, 2);
	*at++ = ':';
	at = put_digits(at, seconds / 60 % 60, 2);
	*at++ = ':';
	at = put_digits(at, seconds % 60, 2);
	*at++ = '.';
	return put_digits(at, (int) (time % USECS_PER_SEC), 6);
}

/* By PostgreSQL's own function, which knows eras and infinities. */
static void
put_unusual(StringInfo out, Datum value, Oid type)
{
	char		buf[MAXDATELEN + 1];
	int			utc = 0;

	JsonEncodeDateTime(buf, value, type, type == TIMESTAMPTZOID ? &utc : NULL);
	psync_json_literal(out, "\"");
	psync_json_put(out, buf, strlen(buf));
	psync_json_literal(out, "\"");
}

/*
 * RFC 3339, in UTC if "offset", else without a zone.  Times of other eras are
 * shown as PostgreSQL shows them.
 */
void
psync_json_timestamp(StringInfo out, int64 timestamp, bool offset)
{
	int64		days = timestamp / USECS_PER_DAY;
	int64		time = timestamp % USECS_PER_DAY;
	char	   *at;

	if (time < 0)
	{
		time += USECS_PER_DAY;
		days--;
	}
	if (days < DAY_FIRST || days >= DAY_END)
	{
		if (!TIMESTAMP_NOT_FINITE(timestamp) && !IS_VALID_TIMESTAMP(timestamp))
			psync_corrupt_image();
		put_unusual(out, TimestampTzGetDatum(timestamp),
					offset ? TIMESTAMPTZOID : TIMESTAMPOID);
		return;
	}
	at = psync_json_room(out, 40);
	*at++ = '"';
	at = put_date(at, (int32) days);
	*at++ = 'T';
	at = put_time(at, time);
	if (offset)
	{
		memcpy(at, "+00:00", 6);
		at += 6;
	}
	*at++ = '"';
	out->len = at - out->data;
}

/*
 * Likewise for a date.
 */
void
psync_json_date(StringInfo out, int32 date)
{
	char	   *at;

	if (date < DAY_FIRST || date >= DAY_END)
	{
		if (!DATE_NOT_FINITE(date) && !IS_VALID_DATE(date))
			psync_corrupt_image();
		put_unusual(out, DateADTGetDatum(date), DATEOID);
		return;
	}
	at = psync_json_room(out, 16);
	*at++ = '"';
	at = put_date(at, date);
	*at++ = '"';
	out->len = at - out->data;
}

/*
 * Of day, without a zone; 24:00:00 is a time to PostgreSQL.
 */
void
psync_json_time(StringInfo out, int64 time)
{
	char	   *at;

	if (time < 0 || time > USECS_PER_DAY)
		psync_corrupt_image();
	at = psync_json_room(out, 24);
	*at++ = '"';
	at = put_time(at, time);
	*at++ = '"';
	out->len = at - out->data;
}
