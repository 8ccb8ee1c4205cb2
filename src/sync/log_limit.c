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
	int64		blocks = 0;

	Assert(hint != NULL);

	for (int i = 0; i < PSYNC_LOG_TABLES; i++)
	{
		Relation	rel = table_open(psync_log_relid(i), AccessShareLock);
		BlockNumber n = RelationGetNumberOfBlocks(rel);

		/* the block that the reader is at is as good as read */
		if (hint->filenode[i] != rel->rd_rel->relfilenode)
			blocks += n;
		else if (hint->block[i] + 1 < n)
			blocks += n - hint->block[i] - 1;
		table_close(rel, AccessShareLock);
	}
	return blocks * BLCKSZ;
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

/* Remember in the state that the limit is crossed; true if that is new. */
static bool
note_crossing(const PsyncSync *sync, bool full)
{
	Oid			types[2] = {UUIDOID, BOOLOID};
	Datum		values[2];
	uint64		changed;

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
 * Look at one sync.  A sync beyond its limit is warned of when it crosses it,
 * not at each look: the server log would fill up instead of the change log.
 */
static void
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
		return;
	}

	pretty = size_text(held);
	if (sync->disable_when_full)
		give_up(sync, pretty);
	else if (!sync->log_full && note_crossing(sync, true))
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("sync \"%s\" holds back %s of the change log",
						sync->name, pretty),
				 errdetail("Its limit is %s.", size_text(limit)),
				 errhint("Mend or drop the sync, or raise max_log_size.")));
}

/*
 * Called by workers now and then, in a transaction of their own.
 */
void
psync_log_limit_check(void)
{
	ListCell   *lc;

	foreach(lc, psync_sync_list_with_state())
		check_sync(lfirst(lc));
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
