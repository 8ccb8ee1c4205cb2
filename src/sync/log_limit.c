/*
 * log_limit.c
 *		Syncs that hold back too much of the change log.
 *
 * What a sync holds back is measured by where its reader would start: the
 * blocks of the log tables from there to their ends.  That costs three file
 * sizes, and is never less than what is pending for it.  Beyond the limit
 * (the sync's own, or payment_sync.max_log_size) the server log has one
 * warning per crossing, and by choice the sync is disabled and its position
 * given up, so that the log can be truncated.  Writers are never stopped (P7).
 *
 * Open transactions hold the log as well: those that have written to a table
 * of it, and those that have chosen a position.  If no sync is to blame, the
 * oldest of them is named; the view log_holders has them all.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "storage/bufmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/uuid.h"

#include "compat.h"
#include "sync/admin.h"

PG_FUNCTION_INFO_V1(payment_sync_log_size);
PG_FUNCTION_INFO_V1(payment_sync_sync_held);
PG_FUNCTION_INFO_V1(payment_sync_log_size_limit);

/* Bytes from where the reader would start to the log's end. */
int64
psync_log_held(const PsyncReadHint *hint)
{
	PsyncReadHint end;

	Assert(hint != NULL);

	psync_log_measure(&end);
	return psync_log_between(hint, &end);
}

/*
 * As people read sizes.
 */
static char *
size_text(int64 bytes)
{
	Datum		pretty = DirectFunctionCall1(pg_size_pretty, Int64GetDatum(bytes));

	return TextDatumGetCString(pretty);
}

/*
 * In bytes; 0: none.  A sync's own limit goes before the setting.
 */
static int64
limit_of(int64 log_size_max)
{
	Assert(log_size_max >= 0);
	return log_size_max > 0 ? log_size_max :
		(int64) psync_log_size_max * 1024 * 1024;
}

/*
 * Disable the sync and give its position up, for which its owner asked by
 * on_log_full => 'disable'. From the commit on, rotation does not wait for it;
 * a delivery under way finds its definition changed.
 */
static void
give_up(const PsyncSync *sync, const char *held)
{
	Assert(sync->disable_when_full);

	psync_sync_disable(&sync->id,
					   psprintf("it held back %s of the change log", held));
	psync_definition_changed();
	ereport(WARNING,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("sync \"%s\" is disabled because it holds back %s of the change log",
					sync->name, held),
			 errhint("Start it anew with payment_sync.enable_sync(name, start => 'batch').")));
}

/*
 * Lock the sync's rows, unless somebody else has: a consumer that fetches
 * changes may do so for as long as it likes, and a worker that waited for it
 * would let all its other syncs wait.  Then the next look is soon enough.
 */
static bool
lock_rows(const PsyncSync *sync)
{
	Oid			types[1] = {UUIDOID};
	Datum		values[1] = {UUIDPGetDatum(&sync->id)};
	uint64		locked;

	locked = psync_owner_execute("SELECT FROM payment_sync.sync s"
								 " JOIN payment_sync.sync_state st ON st.sync = s.id"
								 " WHERE s.id = $1 FOR NO KEY UPDATE SKIP LOCKED",
								 1, types, values, NULL);
	SPI_finish();
	return locked > 0;
}

/* Remember in the state that the limit is crossed; true if that is new. */
static bool
note_crossing(const PsyncSync *sync, bool full)
{
	Oid			types[2] = {UUIDOID, BOOLOID};
	Datum		values[2];
	uint64		changed;

	if (!lock_rows(sync))
		return false;
	values[0] = UUIDPGetDatum(&sync->id);
	values[1] = BoolGetDatum(full);
	changed = psync_owner_execute("UPDATE payment_sync.sync_state"
								  " SET log_full_at = CASE WHEN $2 THEN clock_timestamp() END"
								  " WHERE sync = $1 AND (log_full_at IS NULL) = $2",
								  2, types, values, NULL);
	SPI_finish();
	return changed > 0;
}

/*
 * Look at one sync; true if it is beyond its limit.  It is warned of when it
 * crosses it, not at each look: the server log would fill up instead of the
 * change log.
 */
static bool
check_sync(const PsyncSync *sync)
{
	int64		limit = limit_of(sync->log_size_max);
	int64		held = psync_log_held(&sync->hint);
	char	   *pretty;

	Assert(sync->has_state && held >= 0);

	if (limit == 0 || held <= limit)
	{
		if (sync->log_full)
			(void) note_crossing(sync, false);
		return false;
	}

	pretty = size_text(held);
	if (sync->disable_when_full)
	{
		if (lock_rows(sync))
			give_up(sync, pretty);
	}
	else if (!sync->log_full && note_crossing(sync, true))
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("sync \"%s\" holds back %s of the change log",
						sync->name, pretty),
				 errdetail("Its limit is %s.", size_text(limit)),
				 errhint("Mend or drop the sync, or raise max_log_size.")));
	return true;
}

/*
 * Warn of the transaction that has held the log for the longest time.  One that
 * has just begun is none to worry about.
 */
static void
warn_of_holder(int64 size, int64 limit)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *who = NULL;
	char	   *since = NULL;
	char	   *reason = NULL;

	if (psync_owner_execute("SELECT CASE WHEN pid IS NULL"
							" THEN format('Prepared transaction \"%s\"', gid)"
							" ELSE format('The transaction of process %s', pid) END,"
							" since::timestamptz(0), reason"
							" FROM payment_sync.log_holders WHERE kind <> 'sync'"
							" AND since < clock_timestamp() - interval '5 s'"
							" ORDER BY since LIMIT 1", 0, NULL, NULL, NULL) > 0)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;

		who = MemoryContextStrdup(context, SPI_getvalue(row, desc, 1));
		since = MemoryContextStrdup(context, SPI_getvalue(row, desc, 2));
		reason = MemoryContextStrdup(context, SPI_getvalue(row, desc, 3));
	}
	SPI_finish();
	if (who != NULL && psync_log_may_warn())
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("the change log has grown to %s, and a transaction keeps it from being emptied",
						size_text(size)),
				 errdetail("%s began at %s: %s.  Expected are %s at most.",
						   who, since, reason, size_text(limit)),
				 errhint("End it; the view payment_sync.log_holders has all that hold the log.")));
}

/*
 * Without a limit, the log is large when it is larger than it becomes while all
 * keep up: each table full, and the active one again.
 */
static void
check_log(void)
{
	int64		size = psync_log_size();
	int64		limit = limit_of(0);

	if (limit == 0)
		limit = (int64) (PSYNC_LOG_TABLES + 1) * psync_log_segment_size * 1024 * 1024;
	if (size > limit)
		warn_of_holder(size, limit);
}

/*
 * Called by workers now and then, in a transaction of their own.
 */
void
psync_log_limit_check(void)
{
	ListCell   *lc;
	bool		blamed = false;

	foreach(lc, psync_sync_list_with_state())
		blamed |= check_sync(lfirst(lc));
	if (!blamed)
		check_log();
}

/* --------------------------------------------------------- SQL functions */

/*
 * The elements of an array that mirrors PsyncReadHint.  Called with what the
 * view reads from sync_state, but anyone may call it with anything.
 */
static void
elements(ArrayType *array, Oid type, int16 len, char align, Datum *values)
{
	Datum	   *elems;
	int			n;

	deconstruct_array(array, type, len, true, align, &elems, NULL, &n);
	if (n != PSYNC_LOG_TABLES)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("a hint has %d elements", PSYNC_LOG_TABLES)));
	memcpy(values, elems, PSYNC_LOG_TABLES * sizeof(Datum));
}

/* log_size() */
Datum
payment_sync_log_size(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(psync_log_size());
}

/* sync_held(hint_filenode oid[], hint_block bigint[]) */
Datum
payment_sync_sync_held(PG_FUNCTION_ARGS)
{
	Datum		filenodes[PSYNC_LOG_TABLES];
	Datum		blocks[PSYNC_LOG_TABLES];
	PsyncReadHint hint;

	elements(PG_GETARG_ARRAYTYPE_P(0), OIDOID, sizeof(Oid), TYPALIGN_INT, filenodes);
	elements(PG_GETARG_ARRAYTYPE_P(1), INT8OID, sizeof(int64), TYPALIGN_DOUBLE, blocks);
	for (int i = 0; i < PSYNC_LOG_TABLES; i++)
	{
		hint.filenode[i] = DatumGetObjectId(filenodes[i]);
		hint.block[i] = (BlockNumber) DatumGetInt64(blocks[i]);
	}
	PG_RETURN_INT64(psync_log_held(&hint));
}

/* log_size_limit(max_log_size bigint) */
Datum
payment_sync_log_size_limit(PG_FUNCTION_ARGS)
{
	int64		limit = limit_of(PG_ARGISNULL(0) ? 0 : Max(PG_GETARG_INT64(0), 0));

	if (limit == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT64(limit);
}
