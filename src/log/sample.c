/*
 * sample.c
 *		How much of the log lies behind a position: for who watches.
 *
 * Counts what a window from a position to now would hold, without order and
 * without memory, page by page.  Whoever watches looks often, and most when a
 * target is away and millions of changes wait; so of many pages only some are
 * read, spread evenly, and the caller scales up what they hold.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "log/log.h"
#include "log/log_internal.h"

/* The pages that a window may be in: of each log table those from first on. */
typedef struct PsyncSample
{
	const PsyncSnapshot *after;
	PsyncSampleCallback callback;
	void	   *arg;
	BlockNumber first[PSYNC_LOG_TABLES];
	BlockNumber end[PSYNC_LOG_TABLES];
} PsyncSample;

/*
 * Hand out the changes of one tuple.  A change too large for it is handed out
 * with the tuple that begins it, with the size of its new image; what continues
 * it says no more.
 */
static void
sample_tuple(PsyncSample *sample, Relation rel, HeapTuple tuple)
{
	const PsyncLogTuple *chunk = PSYNC_LOG_TUPLE(tuple);
	PsyncChange change = {0};
	uint32		offset = 0;
	uint32		shape_id;
	bool		isnull;
	Datum		origin = heap_getattr(tuple, 5, RelationGetDescr(rel), &isnull);
	bytea	   *data;

	if (chunk->changes == 0)
		return;
	change.xid = chunk->xid;
	change.at = chunk->at;
	change.origin = isnull ? NULL : NameStr(*DatumGetName(origin));
	data = (bytea *) DatumGetPointer(heap_getattr(tuple, 6, RelationGetDescr(rel),
												  &isnull));
	if (chunk->changes == 1 &&
		psync_change_begin(VARDATA_ANY(data), VARSIZE_ANY_EXHDR(data),
						   (uint64) chunk->position, &change, &shape_id))
	{
		sample->callback(sample->arg, &change, shape_id);
		return;
	}
	while (offset < VARSIZE_ANY_EXHDR(data))
	{
		psync_change_decode(VARDATA_ANY(data), VARSIZE_ANY_EXHDR(data), &offset,
							(uint64) chunk->position, &change, &shape_id);
		sample->callback(sample->arg, &change, shape_id);
	}
}

/*
 * Hand out what the page holds of the window.  The page is copied, for the
 * caller may look into the catalogs, which nobody may do under a buffer's lock.
 */
static void
sample_page(PsyncSample *sample, Relation rel, BlockNumber block)
{
	Buffer		buffer = ReadBuffer(rel, block);
	PGAlignedBlock copy;
	Page		page;
	HeapTupleData tuple;
	OffsetNumber wanted[MaxHeapTuplesPerPage];
	int			nwanted = 0;

	CHECK_FOR_INTERRUPTS();
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	tuple.t_tableOid = RelationGetRelid(rel);
	for (OffsetNumber off = FirstOffsetNumber;
		 !PageIsNew(page) && off <= PageGetMaxOffsetNumber(page); off++)
	{
		ItemId		item = PageGetItemId(page, off);

		if (!ItemIdIsNormal(item))
			continue;
		tuple.t_data = (HeapTupleHeader) PageGetItem(page, item);
		tuple.t_len = ItemIdGetLength(item);
		ItemPointerSet(&tuple.t_self, block, off);
		if (!psync_snapshot_sees(sample->after, PSYNC_LOG_TUPLE(&tuple)->xid) &&
			HeapTupleSatisfiesVisibility(&tuple, GetActiveSnapshot(), buffer))
			wanted[nwanted++] = off;
	}
	memcpy(copy.data, page, BLCKSZ);
	UnlockReleaseBuffer(buffer);

	page = (Page) copy.data;
	for (int i = 0; i < nwanted; i++)
	{
		ItemId		item = PageGetItemId(page, wanted[i]);

		tuple.t_data = (HeapTupleHeader) PageGetItem(page, item);
		tuple.t_len = ItemIdGetLength(item);
		ItemPointerSet(&tuple.t_self, block, wanted[i]);
		sample_tuple(sample, rel, &tuple);
	}
}

/*
 * Of one table's pages those whose number among all is a multiple of "step", the
 * first one always: with it comes the oldest change.  Returns how many.
 */
static int64
sample_table(PsyncSample *sample, int table, int64 step)
{
	Relation	rel = table_open(psync_log_relid(table), AccessShareLock);
	int64		looked = 0;

	for (int64 b = sample->first[table]; b < sample->end[table]; b += step)
	{
		sample_page(sample, rel, (BlockNumber) b);
		looked++;
	}
	table_close(rel, AccessShareLock);
	return looked;
}

/*
 * log.h has the contract.
 *
 * The pages are measured under the snapshot, as a reader does it, so that what
 * it sees lies within them.  Each table is locked until it is read, so that none is
 * emptied meanwhile, and no longer: who watches must not stand in the way of rotation.
 */
double
psync_log_sample(const PsyncSnapshot *after, const PsyncReadHint *hint,
				 int max_pages, PsyncSampleCallback callback, void *arg)
{
	PsyncSample sample = {0};
	int64		pages = 0;
	int64		looked = 0;
	int64		step;

	Assert(max_pages >= PSYNC_LOG_TABLES);

	sample.after = after;
	sample.callback = callback;
	sample.arg = arg;
	PushActiveSnapshot(GetTransactionSnapshot());
	for (int t = 0; t < PSYNC_LOG_TABLES; t++)
	{
		Relation	rel = table_open(psync_log_relid(t), AccessShareLock);

		sample.end[t] = RelationGetNumberOfBlocks(rel);
		if (hint->filenode[t] == rel->rd_rel->relfilenode &&
			hint->block[t] < sample.end[t])
			sample.first[t] = hint->block[t];
		pages += sample.end[t] - sample.first[t];
		table_close(rel, NoLock);
	}
	step = pages <= max_pages ? 1 : (pages + max_pages - 1) / max_pages;
	for (int t = 0; t < PSYNC_LOG_TABLES; t++)
	{
		looked += sample_table(&sample, t, step);
		UnlockRelationOid(psync_log_relid(t), AccessShareLock);
	}
	PopActiveSnapshot();
	return looked < pages ? (double) pages / looked : 1.0;
}
