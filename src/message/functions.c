/*
 * functions.c
 *		retry_dead_letters(), discard_dead_letters(), replay(),
 *		latency_quantile().
 *
 * All of these change tables that the process delivering the sync knows from
 * memory.  It is told by an invalidation at our commit; until it has heard, it
 * may be a step behind, which does no harm: a row that is gone is not sent, and
 * a position that was set by hand is not overwritten (generation).
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"

#include "compat.h"
#include "decode/change_rows.h"
#include "message/message.h"
#include "sync/admin.h"
#include "target/registry.h"

PG_FUNCTION_INFO_V1(payment_sync_retry_dead_letters);
PG_FUNCTION_INFO_V1(payment_sync_discard_dead_letters);
PG_FUNCTION_INFO_V1(payment_sync_replay);
PG_FUNCTION_INFO_V1(payment_sync_latency_quantile);

/* ------------------------------------------------------------ dead letters */

/*
 * Run a command on the rows of the sync named by the first argument: those
 * whose ids are listed in the second, or all dead letters.  Its third parameter
 * is who asks.
 */
static uint64
run_on_letters(FunctionCallInfo fcinfo, const char *command)
{
	Oid			types[3] = {UUIDOID, INT8ARRAYOID, NAMEOID};
	Datum		values[3];
	char		nulls[4] = "   ";
	NameData	user;
	PsyncSync  *sync;
	uint64		n;

	psync_require_argument(fcinfo, 0, "name");
	sync = psync_sync_get_own(NameStr(*PG_GETARG_NAME(0)));
	values[0] = UUIDPGetDatum(&sync->id);
	values[1] = PG_GETARG_DATUM(1);
	nulls[1] = PG_ARGISNULL(1) ? 'n' : ' ';
	namestrcpy(&user, GetUserNameFromId(GetUserId(), false));
	values[2] = NameGetDatum(&user);
	n = psync_owner_execute(command, 3, types, values, nulls);
	SPI_finish();
	psync_definition_changed();
	return n;
}

/*
 * retry_dead_letters(name, ids): they become parked events, due at once, with
 * their old ids and bodies.  At most ten thousand at a time, so that the
 * statement does not take long.  However many are asked for, the process that
 * delivers takes them in portions (park.c); a held one is known to it,
 * and goes on holding its keys.
 */
Datum
payment_sync_retry_dead_letters(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(run_on_letters(fcinfo,
								   "UPDATE payment_sync.unsettled"
								   " SET state = CASE state WHEN 'held' THEN 'parked' ELSE 'asked' END,"
								   " next_at = clock_timestamp(), updated = clock_timestamp()"
								   " WHERE id IN (SELECT id FROM payment_sync.unsettled"
								   "  WHERE sync = $1 AND state IN ('dead', 'held')"
								   "  AND ($2 IS NULL OR id = ANY ($2)) AND $3 IS NOT NULL"
								   "  ORDER BY id LIMIT 10000)"));
}

/*
 * discard_dead_letters(name, ids): for good.  Parked events only if they are
 * named.
 */
Datum
payment_sync_discard_dead_letters(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(run_on_letters(fcinfo,
								   "WITH gone AS (DELETE FROM payment_sync.unsettled WHERE sync = $1"
								   " AND (id = ANY ($2)"
								   "  OR $2 IS NULL AND state IN ('dead', 'held')) RETURNING *),"
								   " noted AS (INSERT INTO payment_sync.ledger_manual"
								   "  (sync, relid, day, operation, discarded, made_by)"
								   "  SELECT g.sync, t.relid, t.day, t.operation, sum(t.n), $3"
								   "  FROM gone g, unnest(g.tally_relids, g.tally_days,"
								   "   g.tally_operations, g.tally_counts) t (relid, day, operation, n)"
								   "  GROUP BY 1, 2, 3, 4)"
								   " SELECT id FROM gone"));
}

/* ------------------------------------------------------------------ replay */

/* The sync of replay(), which must have a target that takes messages. */
static PsyncSync *
get_replayable(const char *name)
{
	PsyncSync  *sync = psync_sync_get_own(name);
	ForeignServer *server;
	const PsyncTransport *transport;

	if (sync->server == NULL || !sync->has_state)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("sync \"%s\" has no target or no position", name)));
	server = GetForeignServerByName(sync->server, false);
	transport = psync_transport_load(psync_wrapper_library(server->fdwid),
									 GetForeignDataWrapper(server->fdwid)->fdwname);
	if (transport->messages == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot replay changes to a target that takes windows"),
				 errdetail("It has applied all of them, and would refuse to go back."),
				 errhint("Copy tables anew with payment_sync.batch_sync().")));
	return sync;
}

/*
 * Nobody moves the position from here to our commit: what it has passed is
 * what will be counted as sent again.
 */
static void
lock_state(const PsyncSync *sync)
{
	Oid			types[1] = {UUIDOID};
	Datum		values[1] = {UUIDPGetDatum(&sync->id)};

	Assert(sync->has_state);
	(void) psync_owner_execute("SELECT FROM payment_sync.sync_state WHERE sync = $1"
							   " FOR UPDATE", 1, types, values, NULL);
	SPI_finish();
}

static uint64
parse_position(FunctionCallInfo fcinfo, int n)
{
	char	   *given;
	char	   *end;
	uint64		position;

	if (PG_ARGISNULL(n))
		return 0;
	given = text_to_cstring(PG_GETARG_TEXT_PP(n));
	errno = 0;
	position = strtou64(given, &end, 10);
	if (end == given || *end != '\0' || errno != 0 || position == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid position \"%s\"", given),
				 errhint("Positions are those that events bear.")));
	return position;
}

/*
 * Of what the log still holds and the sync has delivered: how many changes
 * are not older than "since" nor before "from"; *first is the first one's
 * position.
 */
static int64
count_replayed(const PsyncSync *sync, TimestampTz since, uint64 from,
			   uint64 *first)
{
	PsyncReader *reader = psync_reader_create(CurrentMemoryContext,
											  psync_snapshot_parse(PSYNC_BEFORE_ALL),
											  NULL);
	PsyncChangeRows rows = {0};
	PsyncChange change;
	uint32		shape_id;
	int64		n = 0;

	psync_change_rows_lookups(&rows);
	*first = 0;
	if (psync_reader_open_upto(reader, psync_snapshot_parse(sync->position)))
	{
		while (psync_reader_next(reader, &change, &shape_id))
		{
			CHECK_FOR_INTERRUPTS();
			if (change.position < from || change.at < since ||
				!psync_sync_wants(sync, psync_change_rows_resolve(&rows, &change, shape_id),
								  change.origin))
				continue;
			if (*first == 0 || change.position < *first)
				*first = change.position;
			n++;
		}
	}
	psync_reader_free(reader);
	return n;
}

/*
 * Back to the beginning of the log, in a window that ends where the sync
 * stands and of which all before "first" is settled; from there on as ever.
 */
static void
set_back(const PsyncSync *sync, uint64 first)
{
	Oid			types[3] = {UUIDOID, INT8OID, TEXTOID};
	Datum		values[3];

	values[0] = UUIDPGetDatum(&sync->id);
	values[1] = Int64GetDatum((int64) first - 1);
	values[2] = CStringGetTextDatum(PSYNC_BEFORE_ALL);
	(void) psync_owner_execute("UPDATE payment_sync.sync_state SET window_upto = position,"
							   " window_position = $2, window_xid = '9223372036854775807', window_ahead = NULL,"
							   " position = $3::pg_snapshot, hint_filenode = DEFAULT,"
							   " hint_block = DEFAULT, generation = generation + 1"
							   " WHERE sync = $1",
							   3, types, values, NULL);
	SPI_finish();
}

/*
 * replay(name, since, position): send again what was sent since then, as far
 * as the log still holds it; the same ids, in the same order per key.  Returns
 * how many changes that are.
 */
Datum
payment_sync_replay(PG_FUNCTION_ARGS)
{
	TimestampTz since = PG_ARGISNULL(1) ? DT_NOBEGIN : PG_GETARG_TIMESTAMPTZ(1);
	uint64		from = parse_position(fcinfo, 2);
	PsyncSync  *sync;
	uint64		first;
	int64		n;

	psync_require_argument(fcinfo, 0, "name");

	/* nothing may be truncated from here to our commit */
	psync_log_choose();
	psync_log_keep(0);
	lock_state(get_replayable(NameStr(*PG_GETARG_NAME(0))));
	sync = get_replayable(NameStr(*PG_GETARG_NAME(0)));
	n = count_replayed(sync, since, from, &first);
	if (n > 0)
	{
		psync_ledger_replayed(sync, first);
		set_back(sync, first);
		psync_definition_changed();
	}
	PG_RETURN_INT64(n);
}

/* -------------------------------------------------------------- statistics */

/* The upper end of a bucket, in microseconds; see latency_bucket(). */
static double
bucket_end(int bucket)
{
	if (bucket < 4)
		return bucket + 1;
	return (double) (((int64) (bucket % 4) + 5) << (bucket / 4 - 1));
}

/*
 * latency_quantile(latency bigint[], quantile float8): milliseconds that so
 * large a part of the attempts took at most.  NULL if there were none.
 */
Datum
payment_sync_latency_quantile(PG_FUNCTION_ARGS)
{
	ArrayType  *array = PG_GETARG_ARRAYTYPE_P(0);
	double		quantile = PG_GETARG_FLOAT8(1);
	int			n = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	int64	   *counts = (int64 *) ARR_DATA_PTR(array);
	double		total = 0;
	double		sum = 0;

	if (ARR_HASNULL(array) || n != PSYNC_LATENCY_BUCKETS ||
		!(quantile >= 0 && quantile <= 1))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid histogram or quantile")));
	for (int i = 0; i < n; i++)
		total += counts[i];
	if (total == 0)
		PG_RETURN_NULL();
	for (int i = 0; i < n; i++)
	{
		sum += counts[i];
		if (sum >= total * quantile && counts[i] > 0)
			PG_RETURN_FLOAT8(bucket_end(i) / 1000);
	}
	PG_RETURN_FLOAT8(bucket_end(n - 1) / 1000);
}
