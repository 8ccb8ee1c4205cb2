/*
 * invalidation.h
 *		Hearing of relations whose cached facts are outdated.
 */
#ifndef PSYNC_INVALIDATION_H
#define PSYNC_INVALIDATION_H

/*
 * Called with the relation's oid, or InvalidOid for all relations, at any place
 * that takes a lock: it may only mark, and must not fail.
 */
typedef void (*PsyncRelationCallback) (Oid relid);

extern void psync_invalidation_subscribe(PsyncRelationCallback callback);

#endif							/* PSYNC_INVALIDATION_H */
