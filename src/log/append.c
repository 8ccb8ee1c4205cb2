/*
 * append.c
 *		Appending changes to the change log, on the writer's path.
 *
 * Changes of a transaction are packed into chunks in memory and written with
 * heap_insert(): no executor, no index, no TOAST.  A chunk is written when it
 * is full, and before the commit (or prepare) of its transaction; so the log
 * holds a change if and only if its transaction committed (P1).
 *
 * Subtransactions.  Pending chunks form a stack, one entry per nesting level
 * that has logged something.  A chunk that fills up is written under the id
 * of the level that made it, so a later rollback to a savepoint kills it; an
 * entry is joined with its parent's when its level commits and dropped when
 * it aborts.  Only the top entry ever grows, hence only it is ever written
 * before the commit.
 *
 * Positions.  A change gets the larger of "previous position of this writer +
 * 1" and the end of the last WAL record that this transaction wrote.  Let
 * transaction 2 change a row that transaction 1 has changed.  It can do so
 * only after 1 has committed, so its own record of the row change ends behind
 * 1's commit record; and 1's positions all lie before its commit record,
 * because "+ 1" counts slower than the WAL that holds the changes grows.
 * ensure_wal_beyond() makes sure of the latter even where a table skips WAL.
 * No sequence, no shared counter is touched (P10).  TRUNCATE logs before it
 * writes WAL of its own, so it takes the server's insert position instead.
 *
 * Where chunks go.  Readers remember up to which block they have read, so a
 * chunk must never land before the last block.  psync_append_tuple() chooses
 * the last page and inserts under one short lock: a lightweight lock when
 * the library is preloaded, else a heavyweight one.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/hio.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xloginsert.h"
#include "catalog/pg_class.h"
#include "catalog/pg_control.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/lwlock.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/xid8.h"

#include "compat.h"
#include "log/log.h"
#include "log/log_internal.h"

/*
 * Locks are shared by all databases; a few keep them out of each other's way.
 * That two log tables meet at one lock is harmless: nobody ever wants two.
 */
#define PSYNC_APPEND_LOCKS		16
#define PSYNC_APPEND_TRANCHE	"payment_sync append"

/* objsubid of the heavyweight append lock, so that it meets no other user. */
#define PSYNC_APPEND_OBJSUBID	17

/*
 * The fixed part of a chunk's tuple: header, null bitmap, and the columns before
 * the data, aligned.  What is left of a page must hold a full chunk, or every
 * chunk would be cut in two.
 */
#define PSYNC_CHUNK_OVERHEAD \
	(MAXALIGN(SizeofHeapTupleHeader + (PSYNC_LOG_NATTS + 7) / 8) + \
	 3 * sizeof(int64) + sizeof(int32) + NAMEDATALEN + sizeof(int32) + VARHDRSZ)

StaticAssertDecl(PSYNC_CHUNK_OVERHEAD + PSYNC_CHUNK_BYTES_MAX <= MaxHeapTupleSize,
				 "a full chunk fits a page");
StaticAssertDecl(PSYNC_CHANGE_HEADER_SIZE == 2 + 3 * sizeof(uint32),
				 "the header's fields are those of log.h");

/* The open chunk of one nesting level. */
typedef struct PsyncPending
{
	int			nest_level;
	Oid			log;			/* psync_log_current() when it was begun */
	int			changes;		/* 0: the entry is empty */
	uint64		base;			/* position to which the changes' deltas relate */
	char		origin[NAMEDATALEN];	/* "" for local changes */
	StringInfoData data;
} PsyncPending;

char	   *psync_origin = NULL;
void		(*psync_log_commit_hook) (void) = NULL;

/*
 * A stack of open chunks, levels ascending from bottom to top.  It lives in a
 * context of its own as long as the session, and so do the entries' buffers: a
 * transaction that captures a few rows allocates nothing.
 */
static MemoryContext pending_context = NULL;
static PsyncPending *pending = NULL;
static int	pending_count = 0;	/* entries in use; the last is the top */
static int	pending_capacity = 0;

/*
 * Of the current top-level transaction; a savepoint rolled back does not turn
 * them back, positions only grow.
 */
static uint64 last_position = 0;	/* the greatest one given out; 0: none */
static bool logged = false;		/* a change was completed */
static bool ending = false;		/* our callback before the end has run */

/* The change between psync_log_begin() and psync_log_end(). */
static PsyncPending *current = NULL;
static int	current_start = 0;	/* its offset in current->data */
static int	current_old = 0;	/* offset of its old part's size, 0: none yet */

static LWLockPadded *append_locks = NULL;	/* NULL: not preloaded */

/*
 * Big-endian, at any address.
 */
static void
put_uint32(char *at, uint32 value)
{
	value = pg_hton32(value);
	memcpy(at, &value, sizeof(value));
}

/*
 * The inverse.
 */
static uint32
get_uint32(const char *at)
{
	uint32		value;

	memcpy(&value, at, sizeof(value));
	return pg_ntoh32(value);
}

/*
 * The lock that orders appends to a log table: held while the last page is
 * chosen and the tuple put there, so that no chunk lands before one that is
 * already there, however two backends race for a new page.
 *
 * All processes agree on its kind: shared memory exists for all or for none.
 * It is the innermost lock.  What happens under it is one heap_insert(): it may
 * write a dirty page or extend the file, and may fail for want of disk, which
 * releases the lock with the (sub)transaction.
 *
 * Rejected: a target block in shared memory, which would save a lookup of the
 * file's size but has to be made right again after each truncation and crash.
 */
static void
append_lock(Oid relid)
{
	Assert(OidIsValid(relid));

	if (append_locks != NULL)
	{
		uint32		h = murmurhash32(MyDatabaseId ^ murmurhash32(relid));

		LWLockAcquire(&append_locks[h % PSYNC_APPEND_LOCKS].lock, LW_EXCLUSIVE);
	}
	else
		LockDatabaseObject(RelationRelationId, relid, PSYNC_APPEND_OBJSUBID,
						   ExclusiveLock);
}

/*
 * Before the transaction ends: who waits is another writer.  The heavyweight
 * lock of a failed insertion goes with the transaction.
 */
static void
append_unlock(Oid relid)
{
	if (append_locks != NULL)
	{
		uint32		h = murmurhash32(MyDatabaseId ^ murmurhash32(relid));

		LWLockRelease(&append_locks[h % PSYNC_APPEND_LOCKS].lock);
	}
	else
		UnlockDatabaseObject(RelationRelationId, relid, PSYNC_APPEND_OBJSUBID,
							 ExclusiveLock);
}

/*
 * Insert one tuple at the end of the log table.  With no target block and no
 * free space map, heap_insert() tries the last page and then extends.
 *
 * Logical decoding leaves chunks out.  They are of no use to a subscriber, least
 * of all to one that has a log of its own, and a publication FOR ALL TABLES
 * would include the log tables.
 *
 * The lock on the relation's extension is taken while we hold ours.  Nobody
 * waits for ours while holding that one: vacuum takes it at most for a moment,
 * other writers of the table come this way.
 */
static void
append_tuple(Relation rel, HeapTuple tuple)
{
	Assert(MAXALIGN(tuple->t_len) <= MaxHeapTupleSize);
	Assert(!OidIsValid(rel->rd_rel->reltoastrelid));
	Assert(rel->rd_rel->relpersistence == RELPERSISTENCE_PERMANENT);

	append_lock(RelationGetRelid(rel));
	RelationSetTargetBlock(rel, InvalidBlockNumber);
	heap_insert(rel, tuple, GetCurrentCommandId(true),
				HEAP_INSERT_SKIP_FSM | HEAP_INSERT_NO_LOGICAL, NULL);
	append_unlock(RelationGetRelid(rel));
}

/*
 * The entry holds no change any more: it was written, or its level aborted.
 * A huge row's buffer is not kept for the rest of the session.
 */
static void
empty_chunk(PsyncPending *entry)
{
	entry->changes = 0;
	if (entry->data.maxlen > 16 * PSYNC_CHUNK_BYTES_MAX)
	{
		MemoryContext old = MemoryContextSwitchTo(pending_context);

		pfree(entry->data.data);
		initStringInfo(&entry->data);
		MemoryContextSwitchTo(old);
	}
	else
		resetStringInfo(&entry->data);
}

/*
 * Let the chunk's deltas relate to the position of its first change.
 *
 * While it is pending they may relate to the parent's base, so that the two
 * could be joined.  A chunk that is written by itself must not keep that base:
 * a reader opens a chunk when it comes to the chunk's position, so thousands of
 * savepoints that all bear the position of their parent's first change would
 * be open at once (P7).  It also makes (xid, position) name one chunk, which is
 * how a reader knows whose continuation a tuple is.
 */
static void
rebase_chunk(PsyncPending *entry)
{
	uint32		less = get_uint32(entry->data.data + 2);
	int			offset = 0;

	if (less == 0)
		return;
	while (offset < entry->data.len)
	{
		char	   *header = entry->data.data + offset;
		uint32		delta = get_uint32(header + 2);
		uint32		size;

		Assert(delta >= less);
		put_uint32(header + 2, delta - less);

		/* over the new image and the old part; log.h has the offsets */
		size = get_uint32(header + 10);
		offset += PSYNC_CHANGE_HEADER_SIZE + size + sizeof(uint32);
		offset += get_uint32(header + PSYNC_CHANGE_HEADER_SIZE + size);
	}
	Assert(offset == entry->data.len);
	entry->base += less;
}

/*
 * Write one tuple of the entry's chunk, with its data from "offset" on; returns
 * how many bytes of it that were.  The first tuple says how many changes there
 * are, those that continue it say none.
 */
static int
write_tuple(Relation rel, Datum *values, bool *nulls, const PsyncPending *entry,
			int offset)
{
	int			size = Min(entry->data.len - offset, PSYNC_CHUNK_BYTES_MAX);
	bytea	   *data = (bytea *) palloc(VARHDRSZ + size);
	HeapTuple	tuple;

	Assert(size > 0);

	SET_VARSIZE(data, VARHDRSZ + size);
	memcpy(VARDATA(data), entry->data.data + offset, size);
	values[3] = Int32GetDatum(offset == 0 ? entry->changes : 0);
	values[5] = PointerGetDatum(data);
	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	append_tuple(rel, tuple);
	heap_freetuple(tuple);
	pfree(data);
	return size;
}

/*
 * Write the entry's chunk under the current (sub)transaction's id, in as many
 * tuples as it takes, and empty the entry.
 *
 * Called while a statement runs, or in the callbacks before a commit, where no
 * snapshot is active: hence nothing here may need one.  May raise (the disk is
 * full, say), which aborts the transaction with all that it wants to log (P1).
 *
 * The time is that of writing; all chunks of small transactions bear that of
 * their commit, nearly, which is what lag is measured by.
 */
static void
write_chunk(PsyncPending *entry)
{
	Relation	rel;
	Datum		values[PSYNC_LOG_NATTS];
	bool		nulls[PSYNC_LOG_NATTS] = {false};
	NameData	origin;
	int			offset = 0;

	Assert(entry->changes > 0);
	Assert(entry->nest_level == GetCurrentTransactionNestLevel());

	if (entry->log != psync_log_current())
	{
		/* DROP EXTENSION in this transaction: the log is gone */
		empty_chunk(entry);
		return;
	}
	rebase_chunk(entry);
	rel = table_open(psync_log_relid(psync_log_active()), RowExclusiveLock);

	values[0] = FullTransactionIdGetDatum(GetTopFullTransactionId());
	values[1] = Int64GetDatum((int64) entry->base);
	values[2] = TimestampTzGetDatum(GetCurrentTimestamp());
	namestrcpy(&origin, entry->origin);
	values[4] = NameGetDatum(&origin);
	nulls[4] = entry->origin[0] == '\0';

	while (offset < entry->data.len)
	{
		/* a row of a gigabyte is a hundred thousand tuples */
		CHECK_FOR_INTERRUPTS();
		offset += write_tuple(rel, values, nulls, entry, offset);
	}

	/* the lock stays until the end of the transaction, as for any writer */
	table_close(rel, NoLock);
	empty_chunk(entry);
}

/*
 * The entry of the current nesting level, made if need be.  Entries of levels
 * that have ended are gone: the callbacks see to that.
 *
 * The result is valid until the next call, which may move the array.
 */
static PsyncPending *
pending_entry(void)
{
	int			level = GetCurrentTransactionNestLevel();
	PsyncPending *entry;

	if (pending_count > 0 && pending[pending_count - 1].nest_level == level)
		return &pending[pending_count - 1];

	Assert(pending_count == 0 ||
		   pending[pending_count - 1].nest_level < level);

	if (pending_count == pending_capacity)
	{
		int			capacity = Max(4, pending_capacity * 2);
		MemoryContext old = MemoryContextSwitchTo(pending_context);

		if (pending == NULL)
			pending = palloc(capacity * sizeof(PsyncPending));
		else
			pending = repalloc(pending, capacity * sizeof(PsyncPending));
		for (int i = pending_capacity; i < capacity; i++)
			initStringInfo(&pending[i].data);
		pending_capacity = capacity;
		MemoryContextSwitchTo(old);
	}

	entry = &pending[pending_count++];
	entry->nest_level = level;
	entry->log = InvalidOid;
	entry->base = 0;
	entry->origin[0] = '\0';
	empty_chunk(entry);
	return entry;
}

/*
 * Give the entry the base and origin for a first change at this position.  A
 * new level's chunk relates to the same base as its parent's, so that the two
 * can be joined by appending bytes; a delta has 32 bits, so that it cannot if
 * the parent's first change is 4 GB of WAL ago.
 */
static void
start_chunk(PsyncPending *entry, uint64 position, const char *origin)
{
	PsyncPending *parent = entry > pending ? entry - 1 : NULL;

	Assert(entry->changes == 0 && entry->data.len == 0);

	strlcpy(entry->origin, origin, NAMEDATALEN);
	entry->base = position;
	if (parent != NULL && parent->changes > 0 &&
		position - parent->base <= PG_UINT32_MAX &&
		strcmp(parent->origin, origin) == 0)
		entry->base = parent->base;
	Assert(entry->base <= position);
}

/*
 * The position for a change that is made now: see the header comment for why
 * this orders the changes of a key.  It is not given out before
 * psync_log_begin() stores it in last_position.
 */
static uint64
next_position(PsyncOperation op)
{
	uint64		wal = XactLastRecEnd;

	/* TRUNCATE's own WAL is yet to come: see the header comment */
	if (op == PSYNC_TRUNCATE || XLogRecPtrIsInvalid(wal))
		wal = GetXLogInsertRecPtr();

	Assert(wal > 0 && wal <= PG_INT64_MAX);
	return Max(last_position + 1, wal);
}

/*
 * Has this transaction logged anything?  For those who would compare what is
 * committed.
 */
bool
psync_log_has_changes(void)
{
	return logged;
}

/*
 * For rows that others have changed, and that are logged now without a record
 * of our own in between: what comes is to lie behind all of theirs.
 */
void
psync_log_advance(void)
{
	last_position = Max(last_position, GetXLogInsertRecPtr());
}

/*
 * Begin a change; the caller appends the new image to the returned buffer,
 * which holds other changes before it and may move at each append. log.h has
 * the contract of the three.
 *
 * Up to psync_log_end() the change counts for nothing: an error in between
 * leaves only bytes, and the level that raised it is rolled back with its
 * entry.
 */
StringInfo
psync_log_begin(PsyncOperation op, uint32 shape_id)
{
	const char *origin = psync_origin != NULL ? psync_origin : "";
	uint64		position = next_position(op);
	Oid			log = psync_log_relid(0);
	PsyncPending *entry;
	char	   *header;

	/* an error that was caught without a savepoint may leave half a change */
	if (current != NULL)
		current->data.len = current_start;
	current = NULL;

	entry = pending_entry();
	if (entry->changes > 0 && entry->log != log)
		empty_chunk(entry);		/* the extension was made anew */
	if (entry->changes > 0 &&
		(strcmp(entry->origin, origin) != 0 ||
		 position - entry->base > PG_UINT32_MAX))
		write_chunk(entry);
	if (entry->changes == 0)
	{
		resetStringInfo(&entry->data);
		start_chunk(entry, position, origin);
		entry->log = log;
	}

	current = entry;
	current_start = entry->data.len;
	current_old = 0;

	enlargeStringInfo(&entry->data, PSYNC_CHANGE_HEADER_SIZE);
	header = entry->data.data + entry->data.len;
	header[0] = (char) op;
	header[1] = 0;
	put_uint32(header + 2, (uint32) (position - entry->base));
	put_uint32(header + 6, shape_id);
	entry->data.len += PSYNC_CHANGE_HEADER_SIZE;

	Assert(position > last_position);
	last_position = position;
	return &entry->data;
}

/*
 * A type's send or output function may run anything, even a statement that
 * changes a captured table.  That change has replaced ours.
 */
static void
require_current(void)
{
	if (unlikely(current == NULL))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("cannot log a change while another one is being encoded"),
				 errdetail("The output function of a captured column's type has changed a captured table.")));
}

/*
 * The new image is complete, the old part follows.  Not called for a change
 * without one.
 */
void
psync_log_old(void)
{
	Assert(current_old == 0);
	require_current();

	current_old = current->data.len;
	put_uint32(current->data.data + current_start + 10,
			   current_old - current_start - PSYNC_CHANGE_HEADER_SIZE);
	enlargeStringInfo(&current->data, sizeof(uint32));
	current->data.len += sizeof(uint32);
}

/*
 * Before commit: positions must lie before the end of the WAL that this
 * transaction has written, or the next change of the same key by another
 * transaction could get a smaller one (P4).
 *
 * They do, except when a table skipped WAL (wal_level = minimal) or a
 * savepoint was rolled back just now; then pad.  A record of nothing is skipped
 * by recovery and by logical decoding.
 */
static void
ensure_wal_beyond(uint64 position)
{
	static char padding[4096];

	while (XactLastRecEnd <= position)
	{
		XLogBeginInsert();
		XLogRegisterData(padding, sizeof(padding));
		(void) XLogInsert(RM_XLOG_ID, XLOG_NOOP);
	}
	Assert(XactLastRecEnd > position);
}

/*
 * The change is complete.  If the chunk has outgrown a page by it, the chunk is
 * written without it, and it begins the next one.  Usually nothing is written
 * here: a page takes dozens of changes.  After our callback before the commit
 * nobody would come back for it, so each change is written by itself.
 */
void
psync_log_end(uint8 flags)
{
	PsyncPending *entry;

	require_current();
	entry = current;
	if (current_old == 0)
		psync_log_old();
	Assert(current_old >= current_start + PSYNC_CHANGE_HEADER_SIZE);
	Assert(entry->nest_level == GetCurrentTransactionNestLevel());
	put_uint32(entry->data.data + current_old,
			   entry->data.len - current_old - sizeof(uint32));
	entry->data.data[current_start + 1] = (char) flags;
	current = NULL;
	logged = true;

	if (entry->data.len > PSYNC_CHUNK_BYTES_MAX && entry->changes > 0)
	{
		int			size = entry->data.len - current_start;
		char	   *last = palloc(size);
		uint64		delta;

		memcpy(last, entry->data.data + current_start, size);
		entry->data.len = current_start;
		write_chunk(entry);

		/* its position is the last one given out */
		start_chunk(entry, last_position, psync_origin ? psync_origin : "");
		delta = last_position - entry->base;
		Assert(delta <= PG_UINT32_MAX);
		put_uint32(last + 2, (uint32) delta);
		appendBinaryStringInfo(&entry->data, last, size);
		pfree(last);
	}
	entry->changes++;

	/* one that fills a page by itself need not wait for company */
	if (entry->data.len > PSYNC_CHUNK_BYTES_MAX || ending)
		write_chunk(entry);
	if (ending)
		ensure_wal_beyond(last_position);
}

/*
 * The transaction is over, in one way or another: what is pending was written
 * or is void.
 */
static void
forget_pending(void)
{
	while (pending_count > 0)
		empty_chunk(&pending[--pending_count]);
	last_position = 0;
	logged = false;
	ending = false;
	current = NULL;
}

/*
 * The ends of transactions.
 *
 * Before a commit is the last moment that may fail, and deferred triggers have
 * run; what they captured is pending, too.  Other libraries' callbacks may
 * still change captured tables after ours: such a change does not wait for
 * company, psync_log_end() writes it.
 *
 * A prepared transaction is written like a committed one; nobody is woken when
 * it is committed later by another session, delivery finds it by its timer.
 *
 * Parallel workers never write to tables, so they have nothing to log.
 */
static void
xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			ending = true;
			if (!logged)
				break;
			Assert(pending_count <= 1);
			if (pending_count > 0 && pending[0].changes > 0)
				write_chunk(&pending[0]);
			ensure_wal_beyond(last_position);
			break;
		case XACT_EVENT_COMMIT:
			if (logged && psync_log_commit_hook != NULL)
				psync_log_commit_hook();
			forget_pending();
			break;
		case XACT_EVENT_PREPARE:
		case XACT_EVENT_ABORT:
			forget_pending();
			break;
		default:
			break;
	}
}

/*
 * May the child's chunk be appended to its parent's?  Deltas must relate to the
 * same base, all changes of a chunk have one origin, and together they must
 * fit a page; else the child's is written by itself.
 */
static bool
can_join(const PsyncPending *parent, const PsyncPending *child)
{
	return parent->changes == 0 || parent->log != child->log ||
		(parent->base == child->base &&
		 strcmp(parent->origin, child->origin) == 0 &&
		 parent->data.len + child->data.len <= PSYNC_CHUNK_BYTES_MAX);
}

/*
 * The top level has committed into the one below it: so do its changes, in
 * memory.  Appending keeps positions ascending, since the parent logs nothing
 * while a child of its is open.
 */
static void
join_parent(void)
{
	PsyncPending *child = &pending[pending_count - 1];
	PsyncPending *parent = &pending[pending_count - 2];

	Assert(pending_count >= 2);
	Assert(can_join(parent, child));
	if (child->changes > 0)
	{
		/* of another log: it was dropped by the child, or one of its own */
		if (parent->changes == 0 || parent->log != child->log)
		{
			StringInfoData spare = parent->data;

			parent->data = child->data;
			child->data = spare;
			parent->changes = 0;
			parent->log = child->log;
			parent->base = child->base;
			strlcpy(parent->origin, child->origin, NAMEDATALEN);
		}
		else
			appendBinaryStringInfo(&parent->data, child->data.data,
								   child->data.len);
		parent->changes += child->changes;
		Assert(parent->data.len > 0 && parent->changes > 0);
	}
	pending_count--;
}

/*
 * The ends of savepoints and of PL blocks with an exception handler: millions
 * per transaction, perhaps, so levels that have logged nothing leave at once.
 *
 *		PRE_COMMIT_SUB	write what cannot be joined, under this level's id
 *		COMMIT_SUB		join with the parent's entry, or become it
 *		ABORT_SUB		drop the entries of this level and of those within
 *
 * A level that commits into a parent without an entry becomes the parent's
 * entry as it stands: nothing is written, and nothing copied.
 */
static void
subxact_callback(SubXactEvent event, SubTransactionId mySubid,
				 SubTransactionId parentSubid, void *arg)
{
	int			level = GetCurrentTransactionNestLevel();
	PsyncPending *top;

	if (pending_count == 0)
		return;
	top = &pending[pending_count - 1];
	if (top->nest_level < level)
		return;
	Assert(top->nest_level == level || event == SUBXACT_EVENT_ABORT_SUB);

	switch (event)
	{
		case SUBXACT_EVENT_PRE_COMMIT_SUB:
			/* the last moment to write under this level's id */
			if (top->changes > 0 && pending_count > 1 &&
				top[-1].nest_level == level - 1 && !can_join(&top[-1], top))
				write_chunk(top);
			break;
		case SUBXACT_EVENT_COMMIT_SUB:
			if (pending_count > 1 && top[-1].nest_level == level - 1)
			{
				if (top->changes == 0)
					pending_count--;
				else
					join_parent();
			}
			else
				top->nest_level = level - 1;
			break;
		case SUBXACT_EVENT_ABORT_SUB:
			while (pending_count > 0 &&
				   pending[pending_count - 1].nest_level >= level)
				empty_chunk(&pending[--pending_count]);
			current = NULL;
			break;
		default:
			break;
	}
}

/*
 * An origin is stored as a name; longer ones are refused rather than cut,
 * since syncs compare them.
 */
static bool
check_origin(char **newval, void **extra, GucSource source)
{
	if (*newval != NULL && strlen(*newval) >= NAMEDATALEN)
	{
		GUC_check_errdetail("An origin is at most %d bytes long.",
							NAMEDATALEN - 1);
		return false;
	}
	return true;
}

/*
 * In the postmaster, before shared memory is made.
 */
void
psync_append_shmem_request(void)
{
	RequestNamedLWLockTranche(PSYNC_APPEND_TRANCHE, PSYNC_APPEND_LOCKS);
}

/*
 * From here on this process uses the lightweight locks.
 */
void
psync_append_shmem_startup(void)
{
	append_locks = GetNamedLWLockTranche(PSYNC_APPEND_TRANCHE);
}

/*
 * The setting, the stack's memory, and the callbacks, once per process.
 *
 * payment_sync.origin can be set by anyone, as application_name can: a
 * transport sets it in a session that has no privileges beyond those on the
 * tables.  It says who applied a change, for syncs that leave origins out; it
 * is no protection against a writer who wants to hide one.
 */
void
psync_append_init(void)
{
	pending_context = AllocSetContextCreate(TopMemoryContext,
											"payment_sync pending changes",
											ALLOCSET_DEFAULT_SIZES);
	DefineCustomStringVariable("payment_sync.origin",
							   "Names the origin of changes made in this session.",
							   "Set by a transport that applies another database's changes; "
							   "empty for changes made here.",
							   &psync_origin, "", PGC_USERSET, 0,
							   check_origin, NULL, NULL);
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
}
