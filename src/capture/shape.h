/*
 * shape.h
 *		Shapes: versions of a captured table's column list.
 *
 * A writer that meets a column list which the table's newest recorded shape
 * does not describe records a new one, in its own transaction, by inserting
 * into payment_sync.shape directly (no privilege needed).  Two writers may
 * record equal shapes at once; duplicates are harmless.  Row images name
 * their shape by id, so that changes captured before an ALTER TABLE can be
 * decoded after it.
 */
#ifndef PSYNC_SHAPE_H
#define PSYNC_SHAPE_H

#include "access/tupdesc.h"
#include "utils/rel.h"

#include "transport/payment_sync_transport.h"

/* Is the type's binary form free of this server's object ids? */
extern bool psync_type_is_portable(Oid type);

/* Are there amounts of money in the type's values? */
extern bool psync_type_holds_money(Oid type);

/*
 * Build the shape that the relation has now.  attnums lists the captured
 * columns, keys the key's attnums in key order.  Allocated in the current
 * context, id 0.
 */
extern PsyncShape *psync_shape_build(Relation rel, int nattnums,
									 const AttrNumber *attnums,
									 int nkeys, const AttrNumber *keys);

extern bool psync_shape_equal(const PsyncShape *a, const PsyncShape *b);

/* The id of a recorded shape equal to this one, recording it if need be. */
extern uint32 psync_shape_record(const PsyncShape *shape);

/*
 * Read a recorded shape by id, with current column names; NULL if there is
 * none.  Allocated in the current context.
 */
extern PsyncShape *psync_shape_load(uint32 id);

/*
 * Has a column been renamed or dropped, or its old name been given to another
 * one, since the shape was loaded?
 */
extern bool psync_shape_outdated(const PsyncShape *shape);

#endif							/* PSYNC_SHAPE_H */
