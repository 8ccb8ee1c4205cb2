/*
 * rotate.c
 *		Which log table is active, and emptying those that are done with.
 *
 * One row of payment_sync.log_rotation names the active table.  A writer reads
 * it once and keeps the answer until the relation is invalidated, which the
 * rotator does when it changes the row.  A writer that misses the message for
 * a moment writes to the former table; that is harmless, for readers look at
 * all tables, and a table is truncated only while nobody has written to it in
 * a transaction still open (the conditional lock) and after each remaining
 * chunk was seen to be behind every sync.
 *
 * Lock order: the gate (which keeps syncs from choosing a start, keep.c), then the
 * log table.  Both are taken conditionally: writers never wait for a
 * rotation, and a rotation never waits.
 *
 * Locks considered.  "X > Y" is: waits for Y while holding X.
 *
 *		writer			(row locks of its own) > log table, shared
 *		reader			log table, shared; waits for nothing
 *		create_sync		gate, shared, for a moment
 *		delivery		its row of sync_state; a consumer of a pull sync for as
 *						long as it likes, hence no lock on that table here
 *		rotation		gate, exclusive; log table, exclusive
 *
 * The only process that holds an exclusive lock never waits, so none of these
 * can be part of a deadlock.  Waiting for the log table instead was rejected: a
 * queued exclusive lock stops all writers that come after it (P7).
 *
 * Why not DELETE and VACUUM: an emptied table has a new file, its readers
 * recognise that by the file's number, and emptying 64 MB costs as much as
 * emptying nothing.  Why three tables: while one is written, a second may be
 * waiting for a slow sync or an old transaction, and there is a third to go on
 * with.  If that one is full as well the active table just grows; writers are
 * never stopped, log_limit.c decides what becomes of who holds it back.
 *
 * A crash at any point leaves the row in log_rotation and the files as they were
 * before or after, since both are changed by ordinary transactions.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "commands/tablecmds.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/invalidation.h"
#include "base/owner.h"
#include "compat.h"
#include "log/log.h"
#include "log/log_internal.h"

#define NATTS_ROTATION			4
#define ANUM_ROTATION_ACTIVE	1
#define ANUM_ROTATION_AT		2

StaticAssertDecl(PSYNC_LOG_TABLES >= 3,
				 "one table to write, one that a slow reader holds, one to go on with");

int			psync_log_segment_size = 64;
int			psync_log_size_max = 0;
int			psync_backlog_step = 32;

/* Cached; InvalidOid and -1 when unknown. */
static Oid	rotation_relid = InvalidOid;
static Oid	log_relids[PSYNC_LOG_TABLES];
static int	active = -1;

/*
 * Forget what is cached.  Any of our tables' invalidation drops all of it: they
 * are rare, and looking everything up again is cheap.  InvalidOid stands for
 * every relation.
 *
 * Runs at any place where a lock is taken, so it does nothing that could fail.
 */
static void
forget_cached(Oid relid)
{
	bool		ours = relid == InvalidOid || relid == rotation_relid;

	for (int i = 0; i < PSYNC_LOG_TABLES; i++)
		ours = ours || relid == log_relids[i];
	if (!ours)
		return;
	rotation_relid = InvalidOid;
	active = -1;
	memset(log_relids, 0, sizeof(log_relids));
}

/*
 * Oid of a table of the extension, by name: whoever owns the schema could
 * otherwise not rename it for good.  Raises an error without the extension,
 * which a writer can only meet if triggers were made by hand.
 */
static Oid
our_relid(const char *name)
{
	Oid			schema = get_namespace_oid(PSYNC_SCHEMA, true);
	Oid			relid = InvalidOid;

	if (OidIsValid(schema))
		relid = get_relname_relid(name, schema);
	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"%s.%s\" does not exist", PSYNC_SCHEMA, name),
				 errhint("Run CREATE EXTENSION payment_sync in this database.")));
	return relid;
}

/*
 * The oid of log_0, which stands for the whole log: InvalidOid without the
 * extension, and another one if it was dropped and made again.
 */
Oid
psync_log_current(void)
{
	Oid			schema;

	if (OidIsValid(log_relids[0]))
		return log_relids[0];
	schema = get_namespace_oid(PSYNC_SCHEMA, true);
	return OidIsValid(schema) ? get_relname_relid("log_0", schema) : InvalidOid;
}

/*
 * Oid of a log table; cached, since writers ask for each chunk.
 */
Oid
psync_log_relid(int n)
{
	Assert(n >= 0 && n < PSYNC_LOG_TABLES);

	if (!OidIsValid(log_relids[n]))
	{
		char		name[NAMEDATALEN];

		snprintf(name, sizeof(name), "log_%d", n);
		log_relids[n] = our_relid(name);
	}
	return log_relids[n];
}

/*
 * The active table's number, as the one row of log_rotation has it.  With
 * "copy", the row itself as well, palloc'd in the current context, for an
 * update.
 *
 * Read under a catalog snapshot, not the transaction's: a writer under
 * repeatable read must follow a rotation, too, or it would keep the old table
 * from being emptied for as long as it runs.
 */
static int
read_active(Relation rel, HeapTuple *copy)
{
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		isnull;
	int			result;

	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	tuple = systable_getnext(scan);
	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("table \"%s.log_rotation\" is empty", PSYNC_SCHEMA),
				 errhint("It must hold exactly one row, made by CREATE EXTENSION.")));
	result = DatumGetInt16(heap_getattr(tuple, ANUM_ROTATION_ACTIVE,
										RelationGetDescr(rel), &isnull));
	Assert(!isnull);
	if (copy != NULL)
		*copy = heap_copytuple(tuple);
	systable_endscan(scan);

	if (result < 0 || result >= PSYNC_LOG_TABLES)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("table \"%s.log_rotation\" names log table %d",
						PSYNC_SCHEMA, result)));
	return result;
}

/*
 * Number of the table that new chunks go to.  From the cache, except after an
 * invalidation; it may be outdated by the time the caller has the table's
 * lock, and need not be checked again then: see the header comment.
 */
int
psync_log_active(void)
{
	Oid			relid;
	Relation	rel;

	if (active >= 0)
		return active;

	relid = our_relid("log_rotation");
	rel = table_open(relid, AccessShareLock);

	/*
	 * Set only now, since opening the table may have run our callback.  None
	 * arrives while a locked table is read; one that is sent meanwhile is
	 * processed later, and then finds what it is to reset.
	 */
	rotation_relid = relid;
	active = read_active(rel, NULL);
	table_close(rel, AccessShareLock);
	return active;
}

/*
 * A file-size lookup.  The lock is released at once: that the table may be
 * truncated right after makes the answer old, not wrong.
 */
static BlockNumber
table_blocks(int n)
{
	Relation	rel = table_open(psync_log_relid(n), AccessShareLock);
	BlockNumber blocks = RelationGetNumberOfBlocks(rel);

	table_close(rel, AccessShareLock);
	return blocks;
}

/*
 * Of all log tables, in bytes; three file-size lookups.
 */
int64
psync_log_size(void)
{
	int64		blocks = 0;

	for (int i = 0; i < PSYNC_LOG_TABLES; i++)
		blocks += table_blocks(i);
	return blocks * BLCKSZ;
}

/*
 * Likewise three lookups.  Whoever wants to find all that a snapshot sees within
 * the result takes the snapshot first.
 */
void
psync_log_measure(PsyncReadHint *end)
{
	for (int i = 0; i < PSYNC_LOG_TABLES; i++)
	{
		Relation	rel = table_open(psync_log_relid(i), AccessShareLock);

		end->filenode[i] = rel->rd_rel->relfilenode;
		end->block[i] = RelationGetNumberOfBlocks(rel);
		table_close(rel, AccessShareLock);
	}
}

/*
 * log.h has the contract.  A file that "from" does not know began after it.
 */
int64
psync_log_between(const PsyncReadHint *from, const PsyncReadHint *to)
{
	int64		blocks = 0;

	for (int i = 0; i < PSYNC_LOG_TABLES; i++)
	{
		if (from->filenode[i] != to->filenode[i])
			blocks += to->block[i];
		else if (from->block[i] + 1 < to->block[i])
			blocks += to->block[i] - from->block[i] - 1;
	}
	return blocks * BLCKSZ;
}

/*
 * Name another table the active one, unless somebody is just doing so.  Takes
 * effect at our commit, when writers get the invalidation; the row is changed
 * with catalog functions because the caller may be a process without any
 * privilege.
 */
static void
switch_active(int from, int to)
{
	Oid			relid = our_relid("log_rotation");
	Relation	rel;
	HeapTuple	tuple;
	HeapTuple	changed;
	Datum		values[NATTS_ROTATION];
	bool		nulls[NATTS_ROTATION] = {false};
	bool		replace[NATTS_ROTATION] = {false};

	Assert(from != to);
	Assert(to >= 0 && to < PSYNC_LOG_TABLES);

	if (!ConditionalLockRelationOid(relid, ShareRowExclusiveLock))
		return;
	rel = table_open(relid, NoLock);
	Assert(RelationGetDescr(rel)->natts == NATTS_ROTATION);
	if (read_active(rel, &tuple) == from)
	{
		values[ANUM_ROTATION_ACTIVE - 1] = Int16GetDatum(to);
		replace[ANUM_ROTATION_ACTIVE - 1] = true;
		values[ANUM_ROTATION_AT - 1] = TimestampTzGetDatum(GetCurrentTimestamp());
		replace[ANUM_ROTATION_AT - 1] = true;
		changed = heap_modify_tuple(tuple, RelationGetDescr(rel), values, nulls,
									replace);
		CatalogTupleUpdate(rel, &tuple->t_self, changed);
		CacheInvalidateRelcache(rel);
		heap_freetuple(changed);
	}
	heap_freetuple(tuple);
	table_close(rel, NoLock);
}

/*
 * Is some sync not done with this chunk?  An aborted transaction's chunk counts
 * here until every sync's position has passed it; the caller looks at its
 * visibility.
 */
static bool
still_needed(uint64 xid, List *positions)
{
	ListCell   *lc;

	Assert(xid != 0);

	foreach(lc, positions)
	{
		if (!psync_snapshot_sees((PsyncSnapshot *) lfirst(lc), xid))
			return true;
	}
	return false;
}

/*
 * Does the table hold a committed chunk that a sync still needs?  Walks from
 * the end, where such a chunk most likely is: a table that is needed is seen
 * to be so after a page or two, and one that is not is about to be emptied.
 *
 * The caller's lock excludes unfinished writers, also prepared transactions,
 * which keep theirs.  So each chunk's fate is known to the latest snapshot.
 */
static bool
table_needed(Relation rel, List *positions)
{
	BlockNumber blocks = RelationGetNumberOfBlocks(rel);
	bool		needed = false;

	if (positions == NIL)
		return false;

	PushActiveSnapshot(GetLatestSnapshot());
	for (BlockNumber b = blocks; b > 0 && !needed; b--)
	{
		Buffer		buffer = ReadBuffer(rel, b - 1);
		Page		page;
		OffsetNumber max;

		CHECK_FOR_INTERRUPTS();
		LockBuffer(buffer, BUFFER_LOCK_SHARE);
		page = BufferGetPage(buffer);
		max = PageIsNew(page) ? 0 : PageGetMaxOffsetNumber(page);
		for (OffsetNumber off = FirstOffsetNumber; off <= max && !needed; off++)
		{
			ItemId		item = PageGetItemId(page, off);
			HeapTupleData tuple;

			if (!ItemIdIsNormal(item))
				continue;
			tuple.t_data = (HeapTupleHeader) PageGetItem(page, item);
			tuple.t_len = ItemIdGetLength(item);
			tuple.t_tableOid = RelationGetRelid(rel);
			ItemPointerSet(&tuple.t_self, b - 1, off);
			if (still_needed(PSYNC_LOG_TUPLE(&tuple)->xid, positions) &&
				HeapTupleSatisfiesVisibility(&tuple, GetActiveSnapshot(), buffer))
				needed = true;
		}
		UnlockReleaseBuffer(buffer);
	}
	PopActiveSnapshot();
	return needed;
}

/*
 * Give the table, which the caller has locked, a new and empty file.  As TRUNCATE
 * does, which however would be decoded: a publication FOR ALL TABLES would have
 * it repeated by a subscriber, in the subscriber's own change log.
 */
static void
truncate_table(Relation rel)
{
	CheckTableNotInUse(rel, "rotation");
	PushActiveSnapshot(GetTransactionSnapshot());
	psync_new_file(rel);
	PopActiveSnapshot();
	pgstat_count_truncate(rel);
}

/*
 * Empty an inactive table if every sync is done with it and nobody minds.  If
 * it is needed the lock is given back at once, not at the end of the
 * transaction; if it was truncated it must be kept until our commit.
 */
static void
try_truncate(int n, List *positions)
{
	Oid			relid = psync_log_relid(n);
	Relation	rel;
	bool		needed;

	Assert(n >= 0 && n < PSYNC_LOG_TABLES);

	if (!ConditionalLockRelationOid(relid, AccessExclusiveLock))
		return;
	rel = table_open(relid, NoLock);
	needed = table_needed(rel, positions);
	if (!needed)
		truncate_table(rel);
	table_close(rel, NoLock);
	if (needed)
		UnlockRelationOid(relid, AccessExclusiveLock);
}

/*
 * An inactive table without a page, the next one if there are several; -1: none.
 * One that is held, by an open transaction say, must not stand in the way of
 * another that is free.
 */
static int
empty_table(int current)
{
	for (int i = 1; i < PSYNC_LOG_TABLES; i++)
	{
		int			n = (current + i) % PSYNC_LOG_TABLES;

		if (table_blocks(n) == 0)
			return n;
	}
	return -1;
}

/*
 * Switch to another table or empty what can be emptied; log.h has the
 * contract.  The usual call finds the active table small and the others empty,
 * and costs a few file-size lookups.
 *
 * A switch and a truncation are never done in one call: a table that was
 * active a moment ago still has writers, and the truncation would only find
 * its lock taken.
 */
bool
psync_log_rotate(List *(*positions) (void))
{
	int			current = psync_log_active();
	int			next = empty_table(current);
	BlockNumber limit = (BlockNumber) ((int64) psync_log_segment_size * 1024 * 1024 / BLCKSZ);
	bool		inactive_used = false;
	List	   *done;

	for (int i = 0; i < PSYNC_LOG_TABLES; i++)
		if (i != current && table_blocks(i) > 0)
			inactive_used = true;

	if (next >= 0 && table_blocks(current) >= limit)
	{
		switch_active(current, next);
		return true;
	}
	if (!inactive_used)
		return false;

	/* no sync may choose its start while a table is judged */
	if (!psync_keep_close_gate())
		return false;
	done = psync_keep_positions();
	PushActiveSnapshot(GetLatestSnapshot());
	done = list_concat(done, positions());
	PopActiveSnapshot();
	for (int i = 0; i < PSYNC_LOG_TABLES; i++)
		if (i != current && table_blocks(i) > 0)
			try_truncate(i, done);
	return table_blocks(current) >= limit;
}

/*
 * Settings of size, and the callback that drops the cache.
 */
void
psync_rotate_init(void)
{
	DefineCustomIntVariable("payment_sync.log_segment_size",
							"Sets the size at which the change log goes on in its next table.",
							"A table is emptied once every sync is done with it.",
							&psync_log_segment_size, 64, 1, 1024 * 1024,
							PGC_SIGHUP, GUC_UNIT_MB, NULL, NULL, NULL);
	DefineCustomIntVariable("payment_sync.max_log_size",
							"Sets the size of the change log beyond which its syncs' on_log_full applies.",
							"Writers are never stopped. Zero means no limit.",
							&psync_log_size_max, 0, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MB, NULL, NULL, NULL);
	DefineCustomIntVariable("payment_sync.backlog_step",
							"Sets how much of a backlog a database is sent in one transaction.",
							"Zero sends all of it in one.",
							&psync_backlog_step, 32, 0, 1024 * 1024,
							PGC_SIGHUP, GUC_UNIT_MB, NULL, NULL, NULL);
	psync_invalidation_subscribe(forget_cached);
}
