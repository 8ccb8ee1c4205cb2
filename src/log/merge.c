/*
 * merge.c
 *		The changes of a window in order of position.
 *
 * A chunk's position is at most that of its first change, and references are
 * sorted by it; so once the next reference lies behind the top of the heap,
 * the top is the window's next change.  Chunks of one transaction follow each
 * other without overlap, so the heap holds about as many chunks as there were
 * transactions at one time.
 *
 *		refs, by position:	 10 A   12 B   40 A   55 C
 *		heap after opening A and B: A(10), B(12); handed out are A's changes up
 *		to 12, then B's; the chunk at 40 is opened when the top reaches 40
 *
 * Rejected: to sort all changes, which needs memory or disk for the whole of a
 * window, and to hand chunks out one by one, which breaks the order of a key
 * that two transactions have changed (P4).
 *
 * Buffers of closed chunks are kept for the next ones: a window of a million
 * changes is read with a handful of allocations.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "compat.h"
#include "log/log.h"
#include "log/log_internal.h"
#include "log/reader.h"

/* ------------------------------------------------------------- the heap */

/*
 * Is the change that a has come to due before b's?
 */
static bool
before(const PsyncOpenChunk *a, const PsyncOpenChunk *b)
{
	if (a->change.position != b->change.position)
		return a->change.position < b->change.position;
	return a->change.xid < b->change.xid;
}

/*
 * Put the chunk at i, which may have grown, where it belongs.
 */
static void
sift_down(PsyncReader *reader, int i)
{
	PsyncOpenChunk **heap = reader->heap;
	PsyncOpenChunk *chunk = heap[i];

	Assert(i >= 0 && i < reader->nheap);

	for (;;)
	{
		int			child = 2 * i + 1;

		if (child >= reader->nheap)
			break;
		if (child + 1 < reader->nheap && before(heap[child + 1], heap[child]))
			child++;
		if (!before(heap[child], chunk))
			break;
		heap[i] = heap[child];
		i = child;
	}
	heap[i] = chunk;
}

/*
 * Add an open chunk to the heap.  The array grows with the number of
 * transactions that overlap, and is kept.
 */
static void
push(PsyncReader *reader, PsyncOpenChunk *chunk)
{
	int			i;

	if (reader->nheap == reader->heap_capacity)
	{
		int			capacity = Max(16, reader->heap_capacity * 2);

		if (reader->heap == NULL)
			reader->heap = MemoryContextAlloc(reader->context,
											  capacity * sizeof(PsyncOpenChunk *));
		else
			reader->heap = repalloc(reader->heap,
									capacity * sizeof(PsyncOpenChunk *));
		reader->heap_capacity = capacity;
	}
	i = reader->nheap++;
	while (i > 0 && before(chunk, reader->heap[(i - 1) / 2]))
	{
		reader->heap[i] = reader->heap[(i - 1) / 2];
		i = (i - 1) / 2;
	}
	reader->heap[i] = chunk;
}

/* ------------------------------------------------------------ the chunks */

/*
 * A chunk to be filled: one that was closed before, or a new one.  Its buffer
 * holds a full page's data; the reader owns both.
 */
static PsyncOpenChunk *
get_chunk(PsyncReader *reader)
{
	PsyncOpenChunk *chunk;

	if (reader->spare != NIL)
	{
		chunk = llast(reader->spare);
		reader->spare = list_delete_last(reader->spare);
	}
	else
	{
		chunk = MemoryContextAllocZero(reader->context, sizeof(PsyncOpenChunk));
		chunk->capacity = PSYNC_CHUNK_BYTES_MAX;
		chunk->data = MemoryContextAlloc(reader->context, chunk->capacity);
	}
	chunk->size = 0;
	chunk->offset = 0;
	return chunk;
}

/*
 * The chunk is used up, or given up with its window.
 */
static void
put_chunk(PsyncReader *reader, PsyncOpenChunk *chunk)
{
	MemoryContext old = MemoryContextSwitchTo(reader->context);

	/* a huge row's buffer is not kept */
	if (chunk->capacity > 16 * PSYNC_CHUNK_BYTES_MAX)
	{
		pfree(chunk->data);
		chunk->capacity = PSYNC_CHUNK_BYTES_MAX;
		chunk->data = palloc(chunk->capacity);
	}
	reader->spare = lappend(reader->spare, chunk);
	MemoryContextSwitchTo(old);
}

/*
 * Make the chunk's data longer.  Doubling keeps the copying of a huge row,
 * which comes in thousands of tuples, in proportion.  A change is at most 1 GB
 * long, so twice that fits the fields.
 */
static void
append_data(PsyncOpenChunk *chunk, const char *data, uint32 size)
{
	if (chunk->size + size > chunk->capacity)
	{
		Size		capacity = Max((Size) chunk->capacity * 2,
								   (Size) chunk->size + size);

		chunk->data = repalloc_huge(chunk->data, capacity);
		chunk->capacity = capacity;
	}
	memcpy(chunk->data + chunk->size, data, size);
	chunk->size += size;
	Assert(chunk->size <= chunk->capacity);
}

/* It was there when its window was looked for. */
pg_noreturn static void
refuse_chunk(Relation rel, const PsyncChunkRef *ref)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("chunk (%u,%u) of change log table \"%s\" has vanished",
					ref->block, ref->offset, RelationGetRelationName(rel))));
}

/*
 * Append a tuple's data to the chunk; the first one also says whose it is.
 * No snapshot is needed: the tuple was found visible, and the table is still
 * in the file in which it was found.
 */
static void
read_tuple(Relation rel, const PsyncChunkRef *ref, PsyncOpenChunk *chunk)
{
	Buffer		buffer;
	Page		page;
	ItemId		item;
	HeapTupleData tuple;
	const PsyncLogTuple *head;
	bytea	   *data;
	bool		isnull;

	Assert(ref->block < RelationGetNumberOfBlocks(rel));
	buffer = ReadBuffer(rel, ref->block);
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	item = PageGetItemId(page, ref->offset);

	/* a damaged page may have lost what was there a moment ago */
	if (PageIsNew(page) || ref->offset > PageGetMaxOffsetNumber(page) ||
		!ItemIdIsNormal(item))
		refuse_chunk(rel, ref);

	tuple.t_tableOid = RelationGetRelid(rel);
	tuple.t_data = (HeapTupleHeader) PageGetItem(page, item);
	tuple.t_len = ItemIdGetLength(item);
	ItemPointerSet(&tuple.t_self, ref->block, ref->offset);
	head = PSYNC_LOG_TUPLE(&tuple);
	data = (bytea *) DatumGetPointer(heap_getattr(&tuple, 6,
												  RelationGetDescr(rel), &isnull));
	if (isnull || head->xid != ref->xid)
		refuse_chunk(rel, ref);

	if (ref->head)
	{
		Datum		origin = heap_getattr(&tuple, 5, RelationGetDescr(rel),
										  &isnull);

		chunk->base = (uint64) head->position;
		chunk->change.xid = head->xid;
		chunk->change.at = head->at;
		chunk->origin[0] = '\0';
		if (!isnull)
			strlcpy(chunk->origin, NameStr(*DatumGetName(origin)), NAMEDATALEN);
		chunk->change.origin = isnull ? NULL : chunk->origin;
	}
	append_data(chunk, VARDATA_ANY(data), VARSIZE_ANY_EXHDR(data));
	UnlockReleaseBuffer(buffer);
}

/*
 * Go to the next change of the chunk.  Its images point into the chunk's data.
 */
static void
decode_next(PsyncOpenChunk *chunk)
{
	Assert(chunk->offset < chunk->size);

	psync_change_decode(chunk->data, chunk->size, &chunk->offset, chunk->base,
						&chunk->change, &chunk->shape_id);
}

/*
 * Open the next chunk: its first tuple and those that continue it, which
 * follow it in the references.  The chunk's data is copied, so no buffer stays
 * pinned while its changes are handed out.
 */
static void
open_chunk(PsyncReader *reader)
{
	PsyncChunkRef *ref = &reader->refs[reader->next_ref++];
	PsyncOpenChunk *chunk = get_chunk(reader);
	Relation	rel = table_open(psync_log_relid(ref->table), AccessShareLock);

	Assert(ref->head);
	psync_reader_check_file(reader, ref->table, rel);
	read_tuple(rel, ref, chunk);
	while (reader->next_ref < reader->nrefs)
	{
		PsyncChunkRef *more = &reader->refs[reader->next_ref];

		if (more->head || more->xid != ref->xid ||
			more->position != ref->position)
			break;
		Assert(more->table == ref->table);
		CHECK_FOR_INTERRUPTS();
		read_tuple(rel, more, chunk);
		reader->next_ref++;
	}
	/* keep the lock to the end of the transaction: many chunks follow */
	table_close(rel, NoLock);

	decode_next(chunk);
	push(reader, chunk);
}

/* The change handed out last is done with. */
static void
consume_top(PsyncReader *reader)
{
	PsyncOpenChunk *top = reader->heap[0];

	reader->top_consumed = false;
	if (top->offset < top->size)
		decode_next(top);
	else
	{
		reader->heap[0] = reader->heap[--reader->nheap];
		put_chunk(reader, top);
		if (reader->nheap == 0)
			return;
	}
	sift_down(reader, 0);
}

/*
 * The next change of the window; log.h has the contract.
 *
 * The change at the top of the heap is consumed only by the next call, since
 * the caller uses it until then.  New chunks are opened as long as one could
 * come before the top; the last pass's references must be there for that,
 * hence the look for more of them before.
 */
bool
psync_reader_next(PsyncReader *reader, PsyncChange *change, uint32 *shape_id)
{
	Assert(reader->upto != NULL);

	if (reader->top_consumed)
		consume_top(reader);
	if (reader->next_ref == reader->nrefs &&
		reader->pass_upto != PG_UINT64_MAX)
	{
		/*
		 * The heap may still hold changes, but those of the next pass may
		 * come before them.
		 */
		psync_reader_collect_more(reader);
	}
	while (reader->next_ref < reader->nrefs &&
		   (reader->nheap == 0 ||
			reader->refs[reader->next_ref].position <=
			reader->heap[0]->change.position))
		open_chunk(reader);

	if (reader->nheap == 0)
		return false;
	*change = reader->heap[0]->change;
	*shape_id = reader->heap[0]->shape_id;
	reader->top_consumed = true;
	return true;
}

/*
 * The window is left: its chunks' buffers are kept for the next one.
 */
void
psync_reader_close_chunks(PsyncReader *reader)
{
	while (reader->nheap > 0)
		put_chunk(reader, reader->heap[--reader->nheap]);
	reader->top_consumed = false;
}
