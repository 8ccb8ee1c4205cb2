/*
 * changes.h
 *		Changes as rows of a query, shared by changes.c and pull.c.
 */
#ifndef PSYNC_CHANGES_H
#define PSYNC_CHANGES_H

#include "fmgr.h"
#include "nodes/execnodes.h"
#include "utils/hsearch.h"
#include "utils/tuplestore.h"

#include "sync/sync.h"

/* A set of changes being returned by a function. */
typedef struct PsyncChangeRows
{
	Tuplestorestate *store;
	TupleDesc	desc;
	HTAB	   *shapes;			/* id -> PsyncShape */
	HTAB	   *tables;			/* Oid -> may the caller read it? */
	MemoryContext row_context;	/* reset after each row */
	int64		count;
} PsyncChangeRows;

extern void psync_change_rows_begin(FunctionCallInfo fcinfo,
									PsyncChangeRows *rows);

/* The lookups alone, for who counts and returns no rows. */
extern void psync_change_rows_lookups(PsyncChangeRows *rows);

/*
 * Fill in change->shape, and say which relation the change is about.
 */
extern Oid	psync_change_rows_resolve(PsyncChangeRows *rows, PsyncChange *change,
									  uint32 shape_id);

/* May the caller see all changes of the relation? */
extern bool psync_change_rows_visible(PsyncChangeRows *rows, Oid relid);

/* Add a row; "position" is the value of the first column. */
extern void psync_change_rows_put(PsyncChangeRows *rows,
								  const PsyncChange *change, Oid relid,
								  Datum position);

/* Does a change of this relation and origin concern the sync? */
extern bool psync_sync_wants(const PsyncSync *sync, Oid relid,
							 const char *origin);

/* pull.c: has the consumer acknowledged this change already? */
typedef struct PsyncPull
{
	PsyncSync  *sync;
	PsyncSnapshot *upto;		/* B; NULL: no window is open */
	int64		window;			/* its number */
	uint64		position;		/* of the last change acknowledged in it */
	uint64		xid;
} PsyncPull;

extern PsyncPull *psync_pull_load(PsyncSync *sync, bool lock);
extern bool psync_pull_acknowledged(const PsyncPull *pull,
									const PsyncChange *change);

#endif							/* PSYNC_CHANGES_H */
