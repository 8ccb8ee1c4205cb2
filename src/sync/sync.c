/*
 * sync.c
 *		Reading definitions and states of syncs.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"

#include "compat.h"
#include "sync/admin.h"

/*
 * Is the position of "st" one that counts?  Not if it was given up; and not in
 * a database that was made as a copy of the one that the log is from (CREATE
 * DATABASE … TEMPLATE): two databases must not deliver as one sync.
 */
#define IN_FORCE \
	"NOT st.released AND EXISTS (SELECT FROM payment_sync.log_rotation r" \
	" JOIN pg_database d ON d.oid = r.database" \
	" WHERE d.datname = current_database())"

#define SYNC_COLUMNS \
	"SELECT s.id, s.name, s.server, s.owner::oid, s.enabled, s.exclude_origins," \
	" s.max_log_size, s.on_log_full = 'disable'," \
	" st.position::text, st.target_position, st.hint_filenode, st.hint_block," \
	" st.retry_at, st.failures," \
	" EXISTS (SELECT FROM payment_sync.batch b WHERE b.sync = s.id" \
	"  AND b.state IN ('pending', 'running'))," \
	" COALESCE(st.restart, false), st.log_full_at IS NOT NULL," \
	" s.transform, st.window_upto::text, st.window_position, st.window_xid::text::int8," \
	" st.generation, st.failing_since," \
	" EXISTS (SELECT FROM payment_sync.unsettled u WHERE u.sync = s.id" \
	"  AND u.state IN ('parked', 'asked')), st.window_ahead," \
	" st.windows, st.changes, st.rows_read, st.bytes" \
	" FROM payment_sync.sync s" \
	" LEFT JOIN payment_sync.sync_state st ON st.sync = s.id AND " \
	IN_FORCE

static const char tables_command[] =
	"SELECT c.oid, n.nspname, c.relname, COALESCE(t.target_schema, n.nspname),"
	" COALESCE(t.target_table, c.relname)"
	" FROM payment_sync.sync_table t"
	" JOIN pg_class c ON c.oid = t.relid"
	" JOIN pg_namespace n ON n.oid = c.relnamespace"
	" WHERE t.sync = $1 ORDER BY c.oid";

/*
 * A text-like column of the current SPI row, copied to the current memory
 * context; NULL for a null.
 */
static char *
get_string(HeapTuple row, TupleDesc desc, int column)
{
	return SPI_getvalue(row, desc, column);
}

/*
 * Not copied: of a type passed by reference, it is the row's.
 */
static Datum
get_datum(HeapTuple row, TupleDesc desc, int column, bool *isnull)
{
	return SPI_getbinval(row, desc, column, isnull);
}

/*
 * A hint stored in this column and the next.  Whatever it says, reading from the
 * start is right, too: so one that is no hint is passed over.  Blocks beyond a
 * table's end are seen to when the table is measured (log/window.c).
 */
void
psync_hint_read(HeapTuple row, TupleDesc desc, int column, PsyncReadHint *hint)
{
	bool		null1;
	bool		null2;
	Datum		filenodes = get_datum(row, desc, column, &null1);
	Datum		blocks = get_datum(row, desc, column + 1, &null2);
	ArrayType  *f;
	ArrayType  *b;

	memset(hint, 0, sizeof(*hint));
	if (null1 || null2)
		return;
	f = DatumGetArrayTypeP(filenodes);
	b = DatumGetArrayTypeP(blocks);
	if (ArrayGetNItems(ARR_NDIM(f), ARR_DIMS(f)) != PSYNC_LOG_TABLES ||
		ArrayGetNItems(ARR_NDIM(b), ARR_DIMS(b)) != PSYNC_LOG_TABLES)
		return;					/* a hint: reading from the start is right, too */
	for (int i = 0; i < PSYNC_LOG_TABLES; i++)
	{
		hint->filenode[i] = ((Oid *) ARR_DATA_PTR(f))[i];
		hint->block[i] = (BlockNumber) ((int64 *) ARR_DATA_PTR(b))[i];
	}
}

/*
 * The elements of a text[] that are not null, as C strings in the current
 * memory context.
 */
static List *
get_text_list(Datum value)
{
	Datum	   *elems;
	bool	   *nulls;
	int			n;
	List	   *result = NIL;

	Assert(value != (Datum) 0);

	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false, TYPALIGN_INT,
					  &elems, &nulls, &n);
	for (int i = 0; i < n; i++)
		if (!nulls[i])
			result = lappend(result, TextDatumGetCString(elems[i]));
	return result;
}

/* A bigint[] without nulls, in the current memory context. */
uint64 *
psync_numbers_read(Datum value, int *n)
{
	ArrayType  *array = DatumGetArrayTypeP(value);
	uint64	   *numbers;

	Assert(!ARR_HASNULL(array) && ARR_ELEMTYPE(array) == INT8OID);
	*n = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	numbers = palloc(Max(*n, 1) * sizeof(uint64));
	memcpy(numbers, ARR_DATA_PTR(array), *n * sizeof(uint64));
	return numbers;
}

/* The window at hand of a target that takes messages, and how it fares. */
static void
get_window(HeapTuple row, TupleDesc desc, PsyncSync *sync)
{
	bool		isnull;
	Datum		value;

	sync->window_upto = get_string(row, desc, 19);
	value = get_datum(row, desc, 20, &isnull);
	sync->window_position = isnull ? 0 : (uint64) DatumGetInt64(value);
	value = get_datum(row, desc, 21, &isnull);
	sync->window_xid = isnull ? 0 : (uint64) DatumGetInt64(value);
	value = get_datum(row, desc, 22, &isnull);
	sync->generation = isnull ? 0 : DatumGetInt32(value);
	value = get_datum(row, desc, 23, &isnull);
	sync->failing_since = isnull ? 0 : DatumGetTimestampTz(value);
	sync->parked = DatumGetBool(get_datum(row, desc, 24, &isnull));
	value = get_datum(row, desc, 25, &isnull);
	if (!isnull)
		sync->ahead = psync_numbers_read(value, &sync->nahead);
}

/* 0 for a null. */
static int64
get_count(HeapTuple row, TupleDesc desc, int column)
{
	bool		isnull;
	Datum		value = get_datum(row, desc, column, &isnull);

	return isnull ? 0 : DatumGetInt64(value);
}

/*
 * A row of SYNC_COLUMNS, all of it copied to the current memory context.  The
 * columns' numbers are those of that list.
 */
static PsyncSync *
sync_from_row(HeapTuple row, TupleDesc desc)
{
	PsyncSync  *sync = palloc0(sizeof(PsyncSync));
	bool		isnull;
	Datum		value;

	sync->id = *DatumGetUUIDP(get_datum(row, desc, 1, &isnull));
	sync->id_text = get_string(row, desc, 1);
	sync->name = get_string(row, desc, 2);
	sync->server = get_string(row, desc, 3);
	sync->owner = DatumGetObjectId(get_datum(row, desc, 4, &isnull));
	sync->enabled = DatumGetBool(get_datum(row, desc, 5, &isnull));
	value = get_datum(row, desc, 6, &isnull);
	sync->exclude_origins = isnull ? NIL : get_text_list(value);
	value = get_datum(row, desc, 7, &isnull);
	sync->log_size_max = isnull ? 0 : DatumGetInt64(value);
	sync->disable_when_full = DatumGetBool(get_datum(row, desc, 8, &isnull));
	sync->position = get_string(row, desc, 9);
	sync->has_state = sync->position != NULL;
	Assert(sync->name != NULL && sync->id_text != NULL);
	Assert(sync->log_size_max >= 0);
	sync->target_position = get_string(row, desc, 10);
	psync_hint_read(row, desc, 11, &sync->hint);
	value = get_datum(row, desc, 13, &isnull);
	sync->retry_at = isnull ? 0 : DatumGetTimestampTz(value);
	value = get_datum(row, desc, 14, &isnull);
	sync->failures = isnull ? 0 : DatumGetInt32(value);
	sync->batch_pending = DatumGetBool(get_datum(row, desc, 15, &isnull));
	sync->restart = DatumGetBool(get_datum(row, desc, 16, &isnull));
	sync->log_full = DatumGetBool(get_datum(row, desc, 17, &isnull));
	sync->transform = get_string(row, desc, 18);
	get_window(row, desc, sync);
	sync->saved.windows = get_count(row, desc, 26);
	sync->saved.changes = get_count(row, desc, 27);
	sync->saved.rows_read = get_count(row, desc, 28);
	sync->saved.bytes = get_count(row, desc, 29);
	return sync;
}

/*
 * Append the sync's tables that still exist, in "context". Their order is by
 * oid, so that the same definition always gives the same list, which
 * deliveries compare.
 */
static void
load_tables(PsyncSync *sync, MemoryContext context)
{
	Oid			types[1] = {UUIDOID};
	Datum		values[1];

	values[0] = UUIDPGetDatum(&sync->id);
	(void) psync_owner_execute(tables_command, 1, types, values, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		MemoryContext old = MemoryContextSwitchTo(context);
		PsyncTable *table = palloc0(sizeof(PsyncTable));
		bool		isnull;

		table->relid = DatumGetObjectId(get_datum(row, desc, 1, &isnull));
		table->source_schema = get_string(row, desc, 2);
		table->source_name = get_string(row, desc, 3);
		table->target_schema = get_string(row, desc, 4);
		table->target_name = get_string(row, desc, 5);
		Assert(OidIsValid(table->relid) && table->target_name != NULL);
		sync->tables = lappend(sync->tables, table);
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
}

/*
 * Syncs that the condition names, in the current memory context: first the one
 * that has been without success or failure for longest.  A worker begins with
 * that, so that none goes short where workers come and go before each has had a
 * turn.  The condition is a constant of ours with at most one parameter.
 */
static List *
load_syncs(const char *condition, Oid type, Datum value)
{
	MemoryContext context = CurrentMemoryContext;
	StringInfoData command;
	List	   *result = NIL;
	ListCell   *lc;

	Assert(condition != NULL);

	initStringInfo(&command);
	appendStringInfo(&command, "%s WHERE %s"
					 " ORDER BY GREATEST(st.saved, st.last_error_at), s.name",
					 SYNC_COLUMNS, condition);
	(void) psync_owner_execute(command.data, OidIsValid(type) ? 1 : 0,
							   &type, &value, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		result = lappend(result, sync_from_row(SPI_tuptable->vals[i],
											   SPI_tuptable->tupdesc));
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	MemoryContextSwitchTo(context);
	foreach(lc, result)
		load_tables(lfirst(lc), context);
	return result;
}

/*
 * The sync with this id, or NULL.
 */
PsyncSync *
psync_sync_load(const pg_uuid_t *id)
{
	List	   *syncs = load_syncs("s.id = $1", UUIDOID, UUIDPGetDatum(id));

	Assert(id != NULL);

	return syncs != NIL ? linitial(syncs) : NULL;
}

/*
 * The sync of this name, or NULL. Whether the caller may know it is the
 * caller's affair, see psync_sync_get_own().
 */
PsyncSync *
psync_sync_load_by_name(const char *name)
{
	NameData	value;
	List	   *syncs;

	namestrcpy(&value, name);
	syncs = load_syncs("s.name = $1", NAMEOID, NameGetDatum(&value));
	return syncs != NIL ? linitial(syncs) : NULL;
}

/*
 * What workers have to do: enabled, with a server, with a position.
 */
List *
psync_sync_list_runnable(void)
{
	return load_syncs("s.enabled AND s.server IS NOT NULL AND st.sync IS NOT NULL",
					  InvalidOid, (Datum) 0);
}

/*
 * The version that the latest snapshot sees, read past the executor: each
 * window looks.
 */
void
psync_sync_version(const pg_uuid_t *id, PsyncSyncVersion *version)
{
	Oid			schema = get_namespace_oid(PSYNC_SCHEMA, false);
	Relation	rel = table_open(get_relname_relid("sync", schema), AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	memset(version, 0, sizeof(*version));
	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_UUID_EQ, UUIDPGetDatum(id));
	scan = systable_beginscan(rel, get_relname_relid("sync_pkey", schema), true,
							  snapshot, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		version->xmin = HeapTupleHeaderGetRawXmin(tuple->t_data);
		version->place = tuple->t_self;
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
}

bool
psync_sync_version_equal(const PsyncSyncVersion *a, const PsyncSyncVersion *b)
{
	return a->xmin == b->xmin &&
		memcmp(&a->place, &b->place, sizeof(ItemPointerData)) == 0;
}

/*
 * All that hold back the log, whether or not they run: a disabled sync keeps
 * its position.
 */
List *
psync_sync_list_with_state(void)
{
	return load_syncs("st.sync IS NOT NULL", InvalidOid, (Datum) 0);
}

/*
 * The positions that rotation must heed, in the current memory context.
 * Called under a lock that keeps others from coming up, see log/rotate.c.
 */
List *
psync_sync_list_positions(void)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *result = NIL;

	(void) psync_owner_execute("SELECT position::text FROM payment_sync.sync_state st"
							   " JOIN payment_sync.sync s ON s.id = st.sync"
							   " WHERE " IN_FORCE, 0, NULL, NULL, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *text = SPI_getvalue(SPI_tuptable->vals[i],
										SPI_tuptable->tupdesc, 1);
		MemoryContext old = MemoryContextSwitchTo(context);

		result = lappend(result, psync_snapshot_parse(text));
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	return result;
}

/*
 * In a copy of another database: from now on the log is this database's.  It
 * gets an identity of its own, and the other's positions are forgotten.
 */
void
psync_log_claim(void)
{
	(void) psync_owner_execute("WITH claimed AS ("
							   "UPDATE payment_sync.log_rotation r"
							   " SET identity = gen_random_uuid(), database = d.oid"
							   " FROM pg_database d"
							   " WHERE d.datname = current_database() AND r.database <> d.oid"
							   " RETURNING 1), forgotten AS ("
							   "DELETE FROM payment_sync.sync_state WHERE EXISTS (SELECT FROM claimed))"
							   " DELETE FROM payment_sync.batch WHERE EXISTS (SELECT FROM claimed)",
							   0, NULL, NULL, NULL);
	SPI_finish();
}

/*
 * "*" stands for all that were not made here; local changes always go.  A
 * repair is for one sync, whatever that one excludes.
 */
bool
psync_sync_excludes(const PsyncSync *sync, const char *origin)
{
	ListCell   *lc;

	if (origin == NULL)
		return false;
	if (strncmp(origin, PSYNC_ORIGIN_REPAIR, strlen(PSYNC_ORIGIN_REPAIR)) == 0)
		return strcmp(origin + strlen(PSYNC_ORIGIN_REPAIR), sync->id_text) != 0;
	foreach(lc, sync->exclude_origins)
	{
		const char *excluded = lfirst(lc);

		if (strcmp(excluded, "*") == 0 || strcmp(excluded, origin) == 0)
			return true;
	}
	return false;
}

/*
 * The identity of this change log, in the current memory context.  Targets
 * record it with the position: the same text from another log would mean
 * something else.
 */
char *
psync_log_identity(void)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *result = NULL;

	if (psync_owner_execute("SELECT identity FROM payment_sync.log_rotation",
							0, NULL, NULL, NULL) > 0)
		result = MemoryContextStrdup(context,
									 SPI_getvalue(SPI_tuptable->vals[0],
												  SPI_tuptable->tupdesc, 1));
	SPI_finish();
	if (result == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("table \"%s.log_rotation\" is empty", PSYNC_SCHEMA)));
	return result;
}

/*
 * Does a change of this relation and origin concern the sync?  The same rule
 * as a delivery's (deliver/deliver.c).
 */
bool
psync_sync_wants(const PsyncSync *sync, Oid relid, const char *origin)
{
	ListCell   *lc;

	if (psync_sync_excludes(sync, origin))
		return false;
	foreach(lc, sync->tables)
	{
		if (((PsyncTable *) lfirst(lc))->relid == relid)
			return true;
	}
	return false;
}
