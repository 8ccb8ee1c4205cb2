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
 * Lock order: sync_state (which keeps new syncs from choosing a start), then
 * the log table.  Both are taken conditionally: writers never wait for a
 * rotation, and a rotation never waits.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "log/log.h"
#include "log/log_internal.h"

#define NATTS_ROTATION			4
#define ANUM_ROTATION_ACTIVE	1
#define ANUM_ROTATION_AT		2

int			psync_log_segment_size = 64;
int			psync_log_size_max = 0;

/* Cached; InvalidOid and -1 when unknown. */
static Oid	rotation_relid = InvalidOid;
static Oid	log_relids[PSYNC_LOG_TABLES];
static int	active = -1;

static void
relcache_callback(Datum arg, Oid relid)
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

static BlockNumber
table_blocks(int n)
{
	Relation	rel = table_open(psync_log_relid(n), AccessShareLock);
	BlockNumber blocks = RelationGetNumberOfBlocks(rel);

	table_close(rel, AccessShareLock);
	return blocks;
}

int64
psync_log_size(void)
{
	int64		blocks = 0;

	for (int i = 0; i < PSYNC_LOG_TABLES; i++)
		blocks += table_blocks(i);
	return blocks * BLCKSZ;
}

/* Name another table the active one, unless somebody is just doing so. */
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

/* Is some sync not done with this chunk? */
static bool
still_needed(uint64 xid, List *positions)
{
	ListCell   *lc;

	foreach(lc, positions)
	{
		if (!psync_snapshot_sees((PsyncSnapshot *) lfirst(lc), xid))
			return true;
	}
	return false;
}

/*
 * Does the table hold a committed chunk that a sync still needs?  Walks from
 * the end, where such a chunk most likely is.  The caller's lock excludes
 * unfinished writers.
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

/* Truncate log_n, whose lock the caller holds: gives it a new, empty file. */
static void
truncate_table(int n)
{
	char		command[64];
	int			ret;

	snprintf(command, sizeof(command), "TRUNCATE ONLY %s.log_%d", PSYNC_SCHEMA, n);
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	ret = SPI_execute(command, false, 0);
	if (ret != SPI_OK_UTILITY)
		elog(ERROR, "could not truncate log table: %s", SPI_result_code_string(ret));
	SPI_finish();
	PopActiveSnapshot();
}

/* Empty an inactive table if every sync is done with it and nobody minds. */
static void
try_truncate(int n, List *positions)
{
	Oid			relid = psync_log_relid(n);
	Relation	rel;
	bool		needed;

	if (!ConditionalLockRelationOid(relid, AccessExclusiveLock))
		return;
	rel = table_open(relid, NoLock);
	needed = table_needed(rel, positions);
	table_close(rel, NoLock);
	if (needed)
		UnlockRelationOid(relid, AccessExclusiveLock);
	else
		truncate_table(n);
}

bool
psync_log_rotate(List *(*positions) (void))
{
	int			current = psync_log_active();
	int			next = (current + 1) % PSYNC_LOG_TABLES;
	BlockNumber limit = (BlockNumber) ((int64) psync_log_segment_size * 1024 * 1024 / BLCKSZ);
	bool		inactive_used = false;
	List	   *done;

	for (int i = 0; i < PSYNC_LOG_TABLES; i++)
		if (i != current && table_blocks(i) > 0)
			inactive_used = true;

	if (table_blocks(current) >= limit && table_blocks(next) == 0)
	{
		switch_active(current, next);
		return true;
	}
	if (!inactive_used)
		return false;

	/* no sync may choose its start while a table is judged */
	if (!ConditionalLockRelationOid(our_relid("sync_state"), ShareRowExclusiveLock))
		return false;
	PushActiveSnapshot(GetLatestSnapshot());
	done = positions();
	PopActiveSnapshot();
	for (int i = 0; i < PSYNC_LOG_TABLES; i++)
		if (i != current && table_blocks(i) > 0)
			try_truncate(i, done);
	return table_blocks(current) >= limit;
}

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
	CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
}
