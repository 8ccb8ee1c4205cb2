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

#endif							/* PSYNC_TRANSFORM_H */
