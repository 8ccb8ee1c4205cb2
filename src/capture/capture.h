/*
 * capture.h
 *		Encoding of captured rows, and the per-relation state of a writer.
 *
 * Includes point one way: capture uses log, log knows nothing of capture.
 */
#ifndef PSYNC_CAPTURE_H
#define PSYNC_CAPTURE_H

#include "executor/tuptable.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/rel.h"

#include "capture/shape.h"

typedef enum PsyncOldValues
{
	PSYNC_OLD_NONE,				/* the key, when it changed */
	PSYNC_OLD_CHANGED,			/* the key and the columns that changed */
	PSYNC_OLD_ALL				/* every captured column */
} PsyncOldValues;

/* How one column is put into an image without calling its send function. */
typedef enum PsyncEncoding
{
	PSYNC_ENC_SEND,				/* call the send function */
	PSYNC_ENC_TEXT,				/* call the output function */
	PSYNC_ENC_INT2,
	PSYNC_ENC_INT4,
	PSYNC_ENC_INT8,
	PSYNC_ENC_BOOL,
	PSYNC_ENC_UUID,
	PSYNC_ENC_VARLENA			/* the bytes as they are stored */
} PsyncEncoding;

/* What it takes to read one captured column and to encode it. */
typedef struct PsyncCaptureColumn
{
	AttrNumber	attnum;			/* in this relation (a leaf, if partitioned) */
	PsyncEncoding encoding;
	FmgrInfo	send;			/* for PSYNC_ENC_SEND, or the output function
								 * for PSYNC_ENC_TEXT; else unset */
	bool		byval;			/* as in pg_type */
	int16		len;			/* as in pg_type; -1: varlena */
	bool		key;			/* part of the key */
} PsyncCaptureColumn;

/*
 * What a writer knows of one relation that fires capture triggers.  Dropped
 * on relcache invalidation of the relation or of its root.
 */
typedef struct PsyncCaptureRel
{
	Oid			relid;			/* hash key: the relation that fires */
	bool		valid;
	bool		captured;		/* false: the root is not captured (any more) */
	Oid			rootid;			/* the captured relation: itself, or the
								 * partitioned table above it */
	uint32		shape_id;		/* 0: not yet recorded in this transaction */
	PsyncShape *shape;
	PsyncOldValues old_values;
	int			ncolumns;
	PsyncCaptureColumn *columns;	/* in the shape's order */
	AttrNumber	attnum_max;		/* of columns: none behind it is deformed */
	bool		textual;		/* does any column have PSYNC_ENC_TEXT? */
	bool		textual_money;	/* … that has money in it? */
	bool		shape_new;		/* shape_id was recorded by the current
								 * transaction and goes with it */
	uint64		transaction;	/* in which the next was set; kept, with it,
								 * when the entry is rebuilt */
	CommandId	command_last;	/* the last command whose changes of this
								 * relation were logged */
	MemoryContext context;		/* of all that this struct points to */
} PsyncCaptureRel;

/* rel_cache.c */
extern void psync_rel_cache_init(void);

/* Counts this backend's transactions, to tell old notes from new ones. */
extern uint64 psync_capture_transaction;

/*
 * The state of a relation that fires a capture trigger.  Valid until the next
 * call: an invalidation marks it, a later call rebuilds it.
 */
extern PsyncCaptureRel *psync_rel_cache_get(Relation rel);

/* The id of its shape, recorded if need be. */
extern uint32 psync_rel_cache_shape(PsyncCaptureRel *crel);

/*
 * An encoder for rows of a query that returns the captured columns in the
 * shape's order.  Allocated in "context".
 */
extern PsyncCaptureRel *psync_capture_rel_for_query(Relation rel,
													MemoryContext context);

/* latest.c: what has become of a row since its trigger was queued */
typedef enum PsyncRowFate
{
	PSYNC_ROW_CURRENT,
	PSYNC_ROW_CHANGED,			/* again, by this transaction */
	PSYNC_ROW_GONE				/* likewise; or moved to another partition */
} PsyncRowFate;

/*
 * *latest is set to the slot itself (CURRENT), a new slot that the caller is
 * to drop (CHANGED), or NULL (GONE).
 */
extern PsyncRowFate psync_row_fate(Relation rel, TupleTableSlot *slot,
								   TupleTableSlot **latest);

/* Were changes of the relation by a later command logged already? */
extern bool psync_row_is_late(PsyncCaptureRel *crel, TupleTableSlot *slot,
							  bool deleted);

/*
 * The row that has, now, the key that the slot's row has or had, in a new
 * slot; or NULL.
 */
extern TupleTableSlot *psync_row_by_key(PsyncCaptureRel *crel, Relation rel,
										TupleTableSlot *slot);

/* row_image.c */
extern void psync_image_append(StringInfo buf, PsyncCaptureRel *crel,
							   TupleTableSlot *slot);
extern bool psync_image_changed(PsyncCaptureRel *crel, TupleTableSlot *oldslot,
								TupleTableSlot *newslot, bool *changed,
								bool *key_changed);
extern void psync_old_part_append(StringInfo buf, PsyncCaptureRel *crel,
								  TupleTableSlot *slot, const bool *include);

#endif							/* PSYNC_CAPTURE_H */
