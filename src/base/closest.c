/*
 * base/closest.c
 *		Which of some names was a mistyped one meant to be?
 *
 * For hints only.  PostgreSQL has the same since 16; 14 and 15 must do
 * without.
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/varlena.h"

#include "base/closest.h"

/* A suggestion must not differ in more than this many letters. */
#define PSYNC_CLOSEST_DISTANCE_MAX	4

void
psync_closest_begin(PsyncClosest *closest, const char *wanted)
{
	Assert(wanted != NULL);
	closest->wanted = wanted;
	closest->name = NULL;
	closest->distance = PSYNC_CLOSEST_DISTANCE_MAX + 1;
}

/*
 * The candidate must live as long as the answer is needed.
 */
void
psync_closest_offer(PsyncClosest *closest, const char *candidate)
{
	int			length = strlen(closest->wanted);
	int			distance;

	Assert(candidate != NULL && strlen(candidate) <= NAMEDATALEN);

	/* the distance is not defined for longer strings */
	if (length == 0 || length > NAMEDATALEN)
		return;
	distance = varstr_levenshtein_less_equal(candidate, strlen(candidate),
											 closest->wanted, length,
											 1, 1, 1, closest->distance, true);

	/* more changes than half the letters: no resemblance */
	if (distance < closest->distance && distance <= length / 2)
	{
		closest->name = candidate;
		closest->distance = distance;
	}
}
