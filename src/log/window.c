/*
 * window.c
 *		Reading the change log in windows.
 *
 * Finding a window.  Under snapshot B the reader walks the blocks that may
 * hold unread chunks and sorts what it finds there by the chunk's xid:
 *
 *		seen by A				done before
 *		not seen by B			not yet: its block is held out
 *		else, dead				rolled back
 *		else					in the window
 *
 * What need not be walked again.  Chunks are only ever put on the last page
 * or behind it (append.c), so with n blocks found under B, nothing new can
 * appear before block n - 1, the tail.  Before the tail only the blocks of
 * held-out transactions are of interest, and those not before their
 * transaction has ended.  Hence a long transaction costs others nothing, and
 * an idle sync costs three file-size lookups.
 *
 * Order and memory.  Of each chunk in the window only a reference is kept.
 * References are sorted by position; while reading, chunks whose ranges of
 * positions overlap (transactions that ran at the same time) are merged by a
 * heap of open chunks.  If a window has more chunks than PSYNC_REFS_MAX, the
 * references with the lowest positions are kept and the blocks are walked
 * again for the rest later: whether a chunk belongs to the window depends on
 * A, B and its own commit status only, all of which stay.  A table in which
 * nothing of the window was found is left out then: others may have passed it
 * as well, and it may be emptied meanwhile.  One in which something was found
 * is not, since this sync has not passed it.
 *
 * B may be a snapshot that was taken before, a waypoint.  What was logged since
 * is not seen by it, and would be held out block by block; so with it comes how
 * far the tables reached then, and the walk ends there.  Such a window leaves
 * the reader as one that was read then: with a tail, which is not the table's
 * last page any more, and with holdouts of those that were unfinished then.
 *
 * Between two calls the reader holds neither snapshot, buffer nor memory of
 * the transaction, so that its caller may end the transaction at any time.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "log/log.h"
#include "log/log_internal.h"
#include "log/reader.h"

/* ------------------------------------------------------ finding chunks */

/*
 * Remember a tuple of the window.  It belongs to a committed transaction, so
 * neither vacuum nor pruning moves or removes it, and it is found again at
 * this place without a snapshot.
 */
static void
add_reference(PsyncReader *reader, int table, HeapTuple tuple)
{
	const PsyncLogTuple *chunk = PSYNC_LOG_TUPLE(tuple);
	PsyncChunkRef *ref;

	if (reader->nrefs == reader->refs_capacity)
	{
		int			capacity = Max(64, reader->refs_capacity * 2);

		if (reader->refs == NULL)
			reader->refs = MemoryContextAlloc(reader->context,
											  capacity * sizeof(PsyncChunkRef));
		else
			reader->refs = repalloc(reader->refs,
									capacity * sizeof(PsyncChunkRef));
		reader->refs_capacity = capacity;
	}
	Assert(chunk->xid != 0 && chunk->changes >= 0);
	ref = &reader->refs[reader->nrefs++];
	ref->position = (uint64) chunk->position;
	ref->xid = chunk->xid;
	ref->block = ItemPointerGetBlockNumber(&tuple->t_self);
	ref->offset = ItemPointerGetOffsetNumber(&tuple->t_self);
	ref->table = table;
	ref->head = chunk->changes > 0;
}

/*
 * The order in which chunks are opened: by position.  The id decides between
 * transactions that ran at once and happen to share a position; for changes of
 * one key that does not happen (log.h), for others any order will do, if only
 * it is the same each time (P6).
 */
static int
compare_refs(const void *a, const void *b)
{
	const PsyncChunkRef *x = a;
	const PsyncChunkRef *y = b;

	if (x->position != y->position)
		return x->position < y->position ? -1 : 1;
	if (x->xid != y->xid)
		return x->xid < y->xid ? -1 : 1;
	/* of one chunk: the tuples' order in the heap is theirs, the head's first */
	Assert(x->table == y->table);
	if (x->head != y->head)
		return x->head ? -1 : 1;
	if (x->block != y->block)
		return x->block < y->block ? -1 : 1;
	return (int) x->offset - (int) y->offset;
}

/*
 * Too many references: keep those with the lowest positions, remember that
 * there are more behind.  All that have the last position kept stay together,
 * since a pass takes positions up to a bound, and one chunk's tuples share
 * theirs.
 */
static void
drop_high_references(PsyncReader *reader)
{
	int			keep = PSYNC_REFS_MAX;

	Assert(reader->nrefs > keep);

	qsort(reader->refs, reader->nrefs, sizeof(PsyncChunkRef), compare_refs);
	while (keep < reader->nrefs &&
		   reader->refs[keep].position == reader->refs[keep - 1].position)
		keep++;
	if (keep < reader->nrefs)
	{
		reader->pass_upto = reader->refs[keep - 1].position;
		reader->nrefs = keep;
	}
	Assert(reader->nrefs >= PSYNC_REFS_MAX);
}

/*
 * Holdouts are a shortcut, not a duty: when there are too many the next window
 * walks from the first of them, and finds them again.  The walk at hand has its
 * ranges already, hence not in the hint (P7).
 */
static void
fold_holdouts(PsyncReader *reader)
{
	for (int i = 0; i < reader->nholdouts; i++)
	{
		PsyncHoldout *holdout = &reader->holdouts[i];
		BlockNumber *floor = &reader->floor[holdout->table];

		*floor = Min(*floor, holdout->first);
	}
	reader->nholdouts = 0;
}

/* When a window is left: where the next one begins. */
static void
apply_floor(PsyncReader *reader)
{
	for (int t = 0; t < PSYNC_LOG_TABLES; t++)
	{
		reader->hint.block[t] = Min(reader->hint.block[t], reader->floor[t]);
		reader->floor[t] = InvalidBlockNumber;
	}
}

/*
 * Remember that an unfinished transaction has a chunk in this block.  Blocks
 * close to each other make one range: what lies between them is walked in vain
 * later, which is cheaper than remembering each block of a long transaction
 * that shared its pages with others.
 */
static void
hold_out(PsyncReader *reader, int table, BlockNumber block, uint64 xid)
{
	PsyncHoldout *last;

	Assert(xid != 0);

	/* transactions take turns within a page, so look back a little */
	for (int i = reader->nholdouts - 1;
		 i >= 0 && i >= reader->nholdouts - PSYNC_HOLDOUT_LOOKBACK; i--)
	{
		last = &reader->holdouts[i];
		if (last->xid == xid && last->table == table &&
			block >= last->first && block <= last->last + PSYNC_HOLDOUT_GAP)
		{
			last->last = Max(last->last, block);
			return;
		}
	}
	if (reader->nholdouts == PSYNC_HOLDOUTS_MAX)
		fold_holdouts(reader);
	if (reader->nholdouts == reader->holdouts_capacity)
	{
		int			capacity = Max(16, reader->holdouts_capacity * 2);

		if (reader->holdouts == NULL)
			reader->holdouts = MemoryContextAlloc(reader->context,
												  capacity * sizeof(PsyncHoldout));
		else
			reader->holdouts = repalloc(reader->holdouts,
										capacity * sizeof(PsyncHoldout));
		reader->holdouts_capacity = capacity;
	}
	last = &reader->holdouts[reader->nholdouts++];
	last->table = table;
	last->xid = xid;
	last->first = last->last = block;
}

/*
 * Sort the chunks of one page into the classes of the header comment.
 *
 * Under a share lock on the buffer, as any scan would.  A tuple under the lock
 * is complete, whatever its transaction's state is, so its columns may be read
 * before its visibility is looked at; and the two snapshots that decide most
 * cases are looked at first, since the tuple's own status may need clog.
 *
 * That a chunk is not seen by B does not mean that it is not yet committed; it
 * may have been a moment after B. It belongs to a later window then.
 *
 * The visibility is judged by a snapshot at least as new as B: for an id that
 * B sees, all such snapshots agree.  A frozen tuple is visible to all of them.
 */
static void
scan_page(PsyncReader *reader, PsyncScan *scan, BlockNumber block)
{
	Buffer		buffer;
	Page		page;
	HeapTupleData tuple;
	OffsetNumber max;

	Assert(scan->snapshot != NULL);
	buffer = ReadBufferExtended(scan->rel, MAIN_FORKNUM, block, RBM_NORMAL,
								scan->strategy);
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	max = PageIsNew(page) ? 0 : PageGetMaxOffsetNumber(page);

	tuple.t_tableOid = RelationGetRelid(scan->rel);
	for (OffsetNumber off = FirstOffsetNumber; off <= max; off++)
	{
		ItemId		item = PageGetItemId(page, off);
		const PsyncLogTuple *chunk;

		if (!ItemIdIsNormal(item))
			continue;
		tuple.t_data = (HeapTupleHeader) PageGetItem(page, item);
		tuple.t_len = ItemIdGetLength(item);
		ItemPointerSet(&tuple.t_self, block, off);
		chunk = PSYNC_LOG_TUPLE(&tuple);

		if (psync_snapshot_sees(reader->after, chunk->xid))
			continue;
		if (!psync_snapshot_sees(reader->upto, chunk->xid))
		{
			if (scan->first_pass)
				hold_out(reader, scan->table, block, chunk->xid);
			continue;
		}
		if (!HeapTupleSatisfiesVisibility(&tuple, scan->snapshot, buffer))
			continue;
		if (scan->first_pass)
		{
			reader->size.chunks += chunk->changes > 0;
			reader->size.changes += chunk->changes;
			reader->size.bytes += tuple.t_len;
			if (reader->size.oldest == 0 || chunk->at < reader->size.oldest)
				reader->size.oldest = chunk->at;
			reader->found[scan->table] = true;
			reader->committed[scan->table] = Max(reader->committed[scan->table],
												 block);
		}
		if ((uint64) chunk->position > reader->pass_after &&
			(uint64) chunk->position <= reader->pass_upto)
			add_reference(reader, scan->table, &tuple);
	}
	UnlockReleaseBuffer(buffer);
}

/*
 * By table, then by first block.
 */
static int
compare_ranges(const void *a, const void *b)
{
	const PsyncBlockRange *x = a;
	const PsyncBlockRange *y = b;

	if (x->table != y->table)
		return x->table < y->table ? -1 : 1;
	return (x->first > y->first) - (x->first < y->first);
}

/*
 * Add the blocks [first, end) to those to be walked, if there are any.
 */
static void
add_range(PsyncReader *reader, int table, BlockNumber first, BlockNumber end)
{
	Assert(table >= 0 && table < PSYNC_LOG_TABLES);

	if (first >= end)
		return;
	if (reader->nranges == reader->ranges_capacity)
	{
		int			capacity = Max(16, reader->ranges_capacity * 2);

		if (reader->ranges == NULL)
			reader->ranges = MemoryContextAlloc(reader->context,
												capacity * sizeof(PsyncBlockRange));
		else
			reader->ranges = repalloc(reader->ranges,
									  capacity * sizeof(PsyncBlockRange));
		reader->ranges_capacity = capacity;
	}
	reader->ranges[reader->nranges].table = table;
	reader->ranges[reader->nranges].first = first;
	reader->ranges[reader->nranges].end = end;
	reader->nranges++;
}

/*
 * Which blocks to walk for the window up to B: from each table's tail to its
 * end, and what was held out for transactions that have ended by now.
 * Overlaps are joined, lest a chunk be found twice.
 *
 * Holdouts that are walked are forgotten here; if the walk fails,
 * psync_reader_rewind() goes back to before them.
 */
static void
choose_ranges(PsyncReader *reader)
{
	int			kept = 0;
	int			n = 0;

	reader->nranges = 0;
	for (int i = 0; i < reader->nholdouts; i++)
	{
		PsyncHoldout *holdout = &reader->holdouts[i];

		if (psync_snapshot_sees(reader->upto, holdout->xid))
			add_range(reader, holdout->table, holdout->first,
					  Min(holdout->last + 1, reader->nblocks[holdout->table]));
		else
			reader->holdouts[kept++] = *holdout;
	}
	reader->nholdouts = kept;
	for (int t = 0; t < PSYNC_LOG_TABLES; t++)
		add_range(reader, t, reader->hint.block[t], reader->nblocks[t]);

	if (reader->nranges == 0)
		return;
	qsort(reader->ranges, reader->nranges, sizeof(PsyncBlockRange),
		  compare_ranges);
	for (int i = 1; i < reader->nranges; i++)
	{
		PsyncBlockRange *last = &reader->ranges[n];
		PsyncBlockRange *next = &reader->ranges[i];

		if (next->table == last->table && next->first <= last->end)
			last->end = Max(last->end, next->end);
		else
			reader->ranges[++n] = *next;
	}
	reader->nranges = n + 1;
}

/*
 * Recognise the block by its first tuple.  None if it has no tuple yet, or none
 * any more.
 */
static PsyncAnchor
find_anchor(Relation rel, BlockNumber block)
{
	PsyncAnchor anchor = {InvalidBlockNumber};
	Buffer		buffer = ReadBuffer(rel, block);
	Page		page = BufferGetPage(buffer);
	ItemId		item;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	if (!PageIsNew(page) && PageGetMaxOffsetNumber(page) >= FirstOffsetNumber)
	{
		item = PageGetItemId(page, FirstOffsetNumber);
		if (ItemIdIsNormal(item))
		{
			HeapTupleData tuple;

			tuple.t_data = (HeapTupleHeader) PageGetItem(page, item);
			anchor.block = block;
			anchor.xid = PSYNC_LOG_TUPLE(&tuple)->xid;
			anchor.position = (uint64) PSYNC_LOG_TUPLE(&tuple)->position;
		}
	}
	UnlockReleaseBuffer(buffer);
	return anchor;
}

/*
 * Is what was before the table's tail when it was last walked still before it?
 * VACUUM (TRUNCATE) may have cut off pages of rolled back chunks since, and
 * others may have filled them up again: then the block that was the tail begins
 * with another chunk, if it is there at all.
 */
static bool
tail_stands(const PsyncReader *reader, int table, Relation rel,
			BlockNumber blocks)
{
	const PsyncAnchor *old = &reader->anchor[table];
	PsyncAnchor now;

	/* no more was walked than what cannot be cut off */
	if (reader->hint.block[table] <= reader->committed[table] &&
		(reader->hint.block[table] == 0 || reader->hint.block[table] < blocks))
		return true;
	if (old->block == InvalidBlockNumber || old->block >= blocks)
		return false;
	now = find_anchor(rel, old->block);
	return now.block == old->block && now.xid == old->xid &&
		now.position == old->position;
}

/* All that is remembered of the table is void: read it from its first block. */
static void
forget_table(PsyncReader *reader, int table)
{
	int			kept = 0;

	for (int i = 0; i < reader->nholdouts; i++)
		if (reader->holdouts[i].table != table)
			reader->holdouts[kept++] = reader->holdouts[i];
	reader->nholdouts = kept;
	reader->hint.block[table] = 0;
	reader->committed[table] = 0;
}

/*
 * Note each log table's file and size under B.  A table that has another file
 * than remembered was truncated since: chunks may lie anywhere in it.  One
 * that has lost its end to VACUUM (TRUNCATE) still has all up to the last
 * committed chunk that was seen.
 *
 * With "end", the size is what it was when B was taken, though no less than
 * what was walked before: the two were measured by different processes.  If the
 * table has had another file then, all of it is walked: a table that was
 * emptied since holds nothing that B sees, one that was rewritten may.
 */
static void
measure_tables(PsyncReader *reader, const PsyncReadHint *end)
{
	for (int t = 0; t < PSYNC_LOG_TABLES; t++)
	{
		Relation	rel = table_open(psync_log_relid(t), AccessShareLock);
		Oid			filenode = rel->rd_rel->relfilenode;
		BlockNumber blocks = RelationGetNumberOfBlocks(rel);

		if (reader->hint.filenode[t] != filenode)
			forget_table(reader, t);
		else if (!tail_stands(reader, t, rel, blocks))
		{
			reader->hint.block[t] = Min(reader->hint.block[t],
										reader->committed[t]);
			if (reader->hint.block[t] >= blocks)
				forget_table(reader, t);
		}
		if (end != NULL && end->filenode[t] == filenode)
			blocks = Min(blocks, Max(end->block[t], reader->hint.block[t] + 1));
		reader->hint.filenode[t] = filenode;
		reader->nblocks[t] = blocks;
		reader->anchor[t].block = InvalidBlockNumber;
		if (blocks > 0)
			reader->anchor[t] = find_anchor(rel, blocks - 1);
		table_close(rel, NoLock);

		Assert(reader->hint.block[t] == 0 ||
			   reader->hint.block[t] < reader->nblocks[t]);
	}
}

/*
 * References name blocks of the file that a table had under B.  Rotation does
 * not touch a table that a sync has not passed, but a VACUUM FULL puts the
 * tuples elsewhere, and a pull sync may be started anew by one session while
 * another one has a window open.  Then the window must be found anew.
 */
void
psync_reader_check_file(const PsyncReader *reader, int table, Relation rel)
{
	Assert(table >= 0 && table < PSYNC_LOG_TABLES);

	if (reader->hint.filenode[table] != rel->rd_rel->relfilenode)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("change log table \"%s\" was rewritten while it was read",
						RelationGetRelationName(rel)),
				 errhint("Nothing is lost: try again.")));
}

/*
 * Walk the chosen blocks and collect references, sorted.  In the first pass,
 * also count, and note holdouts.
 *
 * Whoever walks much does so through a ring of buffers, lest a worker that
 * catches up push the working set of the database out of the cache.
 *
 * Interrupts are processed between blocks.  The lock on the table stays until
 * the transaction ends.
 */
static void
collect(PsyncReader *reader, Snapshot snapshot, bool first_pass)
{
	PsyncScan	scan = {0};

	reader->nrefs = 0;
	reader->next_ref = 0;
	reader->pass_upto = PG_UINT64_MAX;
	scan.snapshot = snapshot;
	scan.first_pass = first_pass;

	for (int i = 0; i < reader->nranges; i++)
	{
		PsyncBlockRange *range = &reader->ranges[i];

		if (!first_pass && !reader->found[range->table])
			continue;
		scan.table = range->table;
		scan.rel = table_open(psync_log_relid(range->table), AccessShareLock);
		psync_reader_check_file(reader, range->table, scan.rel);
		scan.strategy = NULL;
		if (range->end - range->first > (BlockNumber) NBuffers / 4)
			scan.strategy = GetAccessStrategy(BAS_BULKREAD);
		for (BlockNumber b = range->first; b < range->end; b++)
		{
			CHECK_FOR_INTERRUPTS();
			scan_page(reader, &scan, b);
			if (reader->nrefs > 2 * PSYNC_REFS_MAX)
				drop_high_references(reader);
		}
		if (scan.strategy != NULL)
			FreeAccessStrategy(scan.strategy);
		table_close(scan.rel, NoLock);
	}
	qsort(reader->refs, reader->nrefs, sizeof(PsyncChunkRef), compare_refs);
	Assert(reader->nrefs == 0 || reader->refs[0].head);
}

/*
 * A later pass: the references that did not fit before.  Needs a transaction;
 * its snapshot is newer than B, which is all that the walk wants of it, and is
 * gone before this returns.
 */
void
psync_reader_collect_more(PsyncReader *reader)
{
	Assert(reader->pass_upto != PG_UINT64_MAX);

	Assert(reader->next_ref == reader->nrefs);
	reader->pass_after = reader->pass_upto;
	PushActiveSnapshot(GetTransactionSnapshot());
	collect(reader, GetActiveSnapshot(), false);
	PopActiveSnapshot();
}

/* ------------------------------------------------------------ life cycle */

/*
 * In the current memory context.
 */
static PsyncSnapshot *
copy_snapshot(const PsyncSnapshot *snapshot)
{
	Size		size = offsetof(PsyncSnapshot, xip) +
		snapshot->nxip * sizeof(uint64);
	PsyncSnapshot *copy = palloc(size);

	memcpy(copy, snapshot, size);
	return copy;
}

/*
 * log.h has the contract.  Nothing is read yet, and no lock is taken.
 */
PsyncReader *
psync_reader_create(MemoryContext parent, const PsyncSnapshot *after,
					const PsyncReadHint *hint)
{
	MemoryContext context = AllocSetContextCreate(parent, "payment_sync reader",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	PsyncReader *reader = palloc0(sizeof(PsyncReader));

	Assert(after != NULL);

	reader->context = context;
	reader->after = copy_snapshot(after);
	if (hint != NULL)
		reader->hint = *hint;
	memcpy(reader->committed, reader->hint.block, sizeof(reader->committed));
	for (int t = 0; t < PSYNC_LOG_TABLES; t++)
		reader->anchor[t].block = reader->floor[t] = InvalidBlockNumber;
	MemoryContextSwitchTo(old);
	return reader;
}

/*
 * Frees all of it, open or not; there is nothing else to release.
 */
void
psync_reader_free(PsyncReader *reader)
{
	MemoryContextDelete(reader->context);
}

/*
 * Nothing was found yet.
 */
static void
reset_window(PsyncReader *reader)
{
	psync_reader_close_chunks(reader);
	reader->nrefs = reader->next_ref = 0;
	reader->pass_after = 0;
	reader->pass_upto = PG_UINT64_MAX;
	memset(&reader->size, 0, sizeof(reader->size));
	memset(reader->found, 0, sizeof(reader->found));
}

/*
 * Find the window that ends at "upto", or now if that is NULL. With "end", the
 * tables held all that it sees when they reached that far.  True if it
 * holds a chunk, or if the caller wants to read something else under the same
 * snapshot; then the window is open until psync_reader_done() or
 * psync_reader_rewind(). False: there was nothing, and A has moved to B.
 *
 * B is taken before the tables are measured: a transaction that B sees wrote
 * all its chunks before, so they lie within the blocks found then.
 *
 * WAL is flushed only if there is something to hand out (P3). A position that
 * moved over an empty window is stored by a transaction of ours, whose commit
 * comes behind whatever B saw.
 */
static bool
open_window(PsyncReader *reader, const PsyncSnapshot *upto,
			const PsyncReadHint *end, PsyncWindowSize *size,
			void (*under_snapshot) (void *arg), void *arg)
{
	MemoryContext old;

	/* a window given up before is found anew, from the tail it began at */
	psync_reader_rewind(reader);
	reset_window(reader);

	PushActiveSnapshot(GetTransactionSnapshot());
	old = MemoryContextSwitchTo(reader->context);
	reader->upto = upto != NULL ? copy_snapshot(upto) : psync_snapshot_current();
	MemoryContextSwitchTo(old);
	if (!psync_snapshot_covers(reader->upto, reader->after))
	{
		/*
		 * A transaction under repeatable read has made a sync itself, whose
		 * position is later than all that the transaction can see.
		 */
		Assert(IsolationUsesXactSnapshot() && under_snapshot == NULL);
		PopActiveSnapshot();
		pfree(reader->upto);
		reader->upto = NULL;
		return false;
	}

	measure_tables(reader, end);
	choose_ranges(reader);
	collect(reader, GetActiveSnapshot(), true);
	if (under_snapshot != NULL)
		under_snapshot(arg);
	PopActiveSnapshot();
	InvalidateCatalogSnapshot();

	if (size != NULL)
		*size = reader->size;
	if (reader->nrefs == 0 && under_snapshot == NULL)
	{
		psync_reader_done(reader);
		return false;
	}
	reader->flushed_upto = psync_log_flush_wal();
	reader->durable = false;
	return reader->nrefs > 0;
}

/*
 * See log.h.  "under_snapshot" runs with B's snapshot active and must not end
 * the transaction.
 */
bool
psync_reader_open(PsyncReader *reader, PsyncWindowSize *size,
				  void (*under_snapshot) (void *arg), void *arg)
{
	return open_window(reader, NULL, NULL, size, under_snapshot, arg);
}

/*
 * For a window whose end was stored and that is now found again.
 */
bool
psync_reader_open_upto(PsyncReader *reader, const PsyncSnapshot *upto)
{
	return open_window(reader, upto, NULL, NULL, NULL, NULL);
}

/*
 * See log.h.
 */
bool
psync_reader_open_waypoint(PsyncReader *reader, const PsyncWaypoint *waypoint,
						   PsyncWindowSize *size)
{
	return open_window(reader, waypoint->snapshot, &waypoint->end, size, NULL, NULL);
}

/*
 * The window is done.  The next one need not walk what lies before each
 * table's last page, except what is held out.
 */
void
psync_reader_done(PsyncReader *reader)
{
	Assert(reader->upto != NULL);

	psync_reader_close_chunks(reader);
	pfree(reader->after);
	reader->after = reader->upto;
	reader->upto = NULL;
	for (int t = 0; t < PSYNC_LOG_TABLES; t++)
		reader->hint.block[t] = reader->nblocks[t] > 0 ? reader->nblocks[t] - 1 : 0;
	apply_floor(reader);
	if (reader->refs_capacity > 4096)
	{
		pfree(reader->refs);
		reader->refs = NULL;
		reader->refs_capacity = 0;
	}
	reader->nrefs = reader->next_ref = 0;
}

/* Give up the window: it will be found again, perhaps with more in it. */
void
psync_reader_rewind(PsyncReader *reader)
{
	if (reader->upto == NULL)
		return;
	psync_reader_close_chunks(reader);

	/* what choose_ranges() took off the holdouts lies before the hint */
	for (int i = 0; i < reader->nranges; i++)
	{
		PsyncBlockRange *range = &reader->ranges[i];

		reader->hint.block[range->table] = Min(reader->hint.block[range->table],
											   range->first);
	}
	fold_holdouts(reader);
	apply_floor(reader);
	pfree(reader->upto);
	reader->upto = NULL;
}

/*
 * A: all that it sees is dealt with.
 */
const PsyncSnapshot *
psync_reader_after(PsyncReader *reader)
{
	return reader->after;
}

/*
 * B, or NULL if no window is open.  Valid until the window is done or given
 * up.
 */
const PsyncSnapshot *
psync_reader_upto(PsyncReader *reader)
{
	return reader->upto;
}

/*
 * Where a reader that knows nothing of holdouts would have to start, to be
 * stored.
 *
 * The tail itself may be a block that exists only in this moment: it was added
 * to the file without WAL, and the chunk that it was added for is not written
 * yet, or will be rolled back.  After a crash of the machine, or at a promoted
 * standby, the table may end before it, and the next chunk would be put on a
 * page before the tail and never be read (P2).  A block in which a committed
 * chunk was seen is safe: WAL has it, and the transaction that stores the hint
 * commits behind that.
 */
void
psync_reader_hint(PsyncReader *reader, PsyncReadHint *hint)
{
	PsyncReadHint result = reader->hint;

	for (int t = 0; t < PSYNC_LOG_TABLES; t++)
	{
		result.block[t] = Min(result.block[t], reader->committed[t]);
		result.block[t] = Min(result.block[t], reader->floor[t]);
	}
	for (int i = 0; i < reader->nholdouts; i++)
	{
		PsyncHoldout *holdout = &reader->holdouts[i];

		result.block[holdout->table] = Min(result.block[holdout->table],
										   holdout->first);
	}
	*hint = result;
}

/*
 * Where this reader goes on; holdouts apart.
 */
const PsyncReadHint *
psync_reader_tail(PsyncReader *reader)
{
	return &reader->hint;
}
