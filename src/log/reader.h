/*
 * reader.h
 *		The reader's state, shared by window.c (which chunks) and merge.c
 *		(their changes in order).
 */
#ifndef PSYNC_READER_H
#define PSYNC_READER_H

#include "storage/bufmgr.h"
#include "utils/rel.h"
#include "utils/snapshot.h"

#include "log/log.h"

/*
 * References kept in memory at a time; 32 bytes each, twice that at peak: 12 MB
 * at most, whatever the size of a window (P7).
 */
#define PSYNC_REFS_MAX			(192 * 1024)
/* Held-out ranges are exchanged for walking blocks again when there are as many. */
#define PSYNC_HOLDOUTS_MAX		4096
/* How many of the newest ranges to look at for one to extend. */
#define PSYNC_HOLDOUT_LOOKBACK	16
/* Blocks of others that a range may include. */
#define PSYNC_HOLDOUT_GAP		8

/*
 * A tuple of the window.  Names its place by block and offset: the transaction is
 * committed, so it stays there as long as the table keeps its file.
 */
typedef struct PsyncChunkRef
{
	uint64		position;		/* the chunk's */
	uint64		xid;			/* top-level transaction */
	BlockNumber block;
	OffsetNumber offset;
	int8		table;			/* n of log_n */
	bool		head;			/* false: continues the one before it */
} PsyncChunkRef;

/*
 * Blocks with chunks of a transaction that B did not see.  A shortcut: without
 * it, the walk would have to begin at the first of them in each window until the
 * transaction ends.
 */
typedef struct PsyncHoldout
{
	uint64		xid;
	int			table;
	BlockNumber first;
	BlockNumber last;			/* inclusive */
} PsyncHoldout;

/* Blocks to be walked for the window at hand. */
typedef struct PsyncBlockRange
{
	int			table;
	BlockNumber first;
	BlockNumber end;			/* exclusive */
} PsyncBlockRange;

/*
 * The block that was a table's last, recognised by its first tuple: VACUUM may
 * cut off blocks in which all was rolled back, and they may be filled again.
 */
typedef struct PsyncAnchor
{
	BlockNumber block;			/* InvalidBlockNumber: it had no tuple */
	uint64		xid;			/* with position, names a chunk */
	uint64		position;
} PsyncAnchor;

/* A walk over blocks of one table. */
typedef struct PsyncScan
{
	int			table;
	Relation	rel;			/* locked until the end of the transaction */
	Snapshot	snapshot;		/* active; B's or a newer one */
	BufferAccessStrategy strategy;	/* NULL: through the common buffers */
	bool		first_pass;		/* count, and note holdouts */
} PsyncScan;

/* A chunk being read: its data and the change it has come to. */
typedef struct PsyncOpenChunk
{
	char	   *data;			/* of all its tuples, joined */
	uint32		size;			/* bytes of data */
	uint32		capacity;		/* bytes allocated */
	uint32		offset;			/* of the change after "change" */
	uint64		base;			/* its position, to which deltas relate */
	uint32		shape_id;		/* of "change" */
	char		origin[NAMEDATALEN];	/* change.origin points here */
	PsyncChange change;			/* the next one to hand out */
} PsyncOpenChunk;

/*
 * States: with upto NULL no window is open, and refs, ranges and heap mean
 * nothing.  While one is open, A sees nothing that B does not; refs[next_ref …]
 * are still to be opened, and the changes due next are in the heap.
 *
 *		closed	--psync_reader_open()-->	open		chunks were found
 *		closed	--psync_reader_open()-->	closed		none; A := B
 *		open	--psync_reader_done()-->	closed		A := B
 *		open	--psync_reader_rewind()-->	closed		A stays
 */
struct PsyncReader
{
	MemoryContext context;		/* of the reader and all that it points to */
	PsyncSnapshot *after;		/* A */
	PsyncSnapshot *upto;		/* B, NULL while no window is open */

	/* where to look */
	PsyncReadHint hint;			/* each table's file and tail */
	BlockNumber committed[PSYNC_LOG_TABLES];	/* at or before the last block
												 * seen to hold a committed
												 * chunk: no crash takes it away */
	BlockNumber nblocks[PSYNC_LOG_TABLES];	/* under B */
	PsyncAnchor anchor[PSYNC_LOG_TABLES];	/* of the tail, when last measured */
	PsyncHoldout *holdouts;
	int			nholdouts;
	int			holdouts_capacity;
	BlockNumber floor[PSYNC_LOG_TABLES];	/* first block of holdouts that were
											 * too many; else InvalidBlockNumber */
	PsyncBlockRange *ranges;	/* walked for this window */
	int			nranges;
	int			ranges_capacity;

	/* what was found */
	PsyncWindowSize size;
	XLogRecPtr	flushed_upto;	/* all of the window is in WAL before this */
	bool		durable;		/* and synchronous standbys have that, too */
	bool		found[PSYNC_LOG_TABLES];	/* in this table */
	PsyncChunkRef *refs;
	int			nrefs;
	int			next_ref;
	int			refs_capacity;
	uint64		pass_after;		/* refs have positions in (after, upto] */
	uint64		pass_upto;		/* PG_UINT64_MAX: none are missing */

	/* merging: a binary heap by position of the chunks' next changes */
	PsyncOpenChunk **heap;
	int			nheap;
	int			heap_capacity;
	bool		top_consumed;	/* the top's change was handed out */
	List	   *spare;			/* closed PsyncOpenChunk, to be used again */
};

extern void psync_reader_check_file(const PsyncReader *reader, int table,
									Relation rel);
extern void psync_reader_collect_more(PsyncReader *reader);
extern void psync_reader_close_chunks(PsyncReader *reader);

#endif							/* PSYNC_READER_H */
