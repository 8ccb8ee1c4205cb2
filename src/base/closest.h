/*
 * base/closest.h
 *		Which of some names was a mistyped one meant to be?
 */
#ifndef PSYNC_CLOSEST_H
#define PSYNC_CLOSEST_H

typedef struct PsyncClosest
{
	const char *wanted;
	const char *name;			/* the best so far, or NULL */
	int			distance;		/* its distance, or what is too far already */
} PsyncClosest;

/* Begin with a name, offer all candidates; the answer is in closest->name. */
extern void psync_closest_begin(PsyncClosest *closest, const char *wanted);
extern void psync_closest_offer(PsyncClosest *closest, const char *candidate);

#endif							/* PSYNC_CLOSEST_H */
