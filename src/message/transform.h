/*
 * transform.h
 *		What the functions that define syncs need to know of transforms.
 */
#ifndef PSYNC_TRANSFORM_H
#define PSYNC_TRANSFORM_H

/*
 * Raises an error if the expression cannot be prepared with the owner's
 * rights, or yields a type that cannot be a body.
 */
extern void psync_transform_check(const char *expression, Oid owner);

struct ForeignServer;

/* Raises an error if the options of a server that takes messages contradict
 * each other, or the transform (NULL: none). */
extern void psync_message_options_check(const struct ForeignServer *server,
										const char *transform);

#endif							/* PSYNC_TRANSFORM_H */
