/*
 * change_rows.h
 *		Changes as rows of a query.
 */
#ifndef PSYNC_CHANGE_ROWS_H
#define PSYNC_CHANGE_ROWS_H

#include "fmgr.h"
#include "nodes/execnodes.h"
#include "utils/hsearch.h"
#include "utils/tuplestore.h"

#include "transport/payment_sync_transport.h"

/* position, xid, at, operation, table, key, new, old, origin */
#define PSYNC_CHANGE_ROW_NATTS	9

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

/* An entry of ->tables; the key first. */
typedef struct PsyncVisibleTable
{
	Oid			relid;
	bool		visible;
} PsyncVisibleTable;

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

/* The columns of a row, in the current memory context; "position" likewise. */
extern void psync_change_rows_fill(const PsyncChange *change, Oid relid,
								   Datum position, Datum *values, bool *nulls);

#endif							/* PSYNC_CHANGE_ROWS_H */
