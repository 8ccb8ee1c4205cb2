/*
 * request.c
 *		The SQL functions that ask for reconciliations and run them.
 *
 * Who may: a sync's owner for the sync, anybody for relations that he may
 * read (reconcile_with).  Source rows are read with the rights of the sync's
 * owner, who owns the tables.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "compat.h"
#include "deliver/deliver.h"
#include "reconcile/reconcile.h"
#include "sync/admin.h"

PG_FUNCTION_INFO_V1(payment_sync_reconcile);
PG_FUNCTION_INFO_V1(payment_sync_reconcile_with);
PG_FUNCTION_INFO_V1(payment_sync_start_reconciliation);
PG_FUNCTION_INFO_V1(payment_sync_start_reconciliation_with);
PG_FUNCTION_INFO_V1(payment_sync_run_reconciliation);
PG_FUNCTION_INFO_V1(payment_sync_cancel_reconciliation);

/* Arguments of reconcile() and start_reconciliation(). */
enum
{
	ARG_NAME,
	ARG_REL,
	ARG_CONDITION,
	ARG_KEY_AFTER,
	ARG_KEY_UPTO,
	ARG_RECENT,
	ARG_TOLERANCE,
	ARG_DIGEST,
	ARG_SERVER,
	ARG_ROWS_PER_SECOND,
	ARG_MAX_WAIT
#define ARGS_RECONCILE	(ARG_MAX_WAIT + 1)
};

/* Arguments of reconcile_with() and start_reconciliation_with(). */
enum
{
	WITH_REL,
	WITH_OTHER,
	WITH_KEY,
	WITH_COLUMNS,
	WITH_OTHER_COLUMNS,
	WITH_CONDITION,
	WITH_TOLERANCE,
	WITH_DIGEST,
	WITH_MAX_WAIT
#define ARGS_WITH	(WITH_MAX_WAIT + 1)
};

static const char request_command[] =
	"INSERT INTO payment_sync.reconciliation (run, relid, sync, sync_name, owner,"
	" condition, key_after, key_upto, recent, tolerance, digest, server,"
	" rows_per_second, max_wait)"
	" SELECT $1, c.oid, s.id, s.name, s.owner, $4, $5, $6, COALESCE($7, false), $8, $9, $10,"
	" $11, COALESCE($12, interval '10 s')"
	" FROM payment_sync.sync s JOIN payment_sync.sync_table t ON t.sync = s.id"
	" JOIN pg_class c ON c.oid = t.relid"
	" WHERE s.id = $2 AND ($3 IS NULL OR c.oid = $3)";

/*
 * Without a key: the primary key.  Without columns: those that both relations
 * have.
 */
static const char request_with_command[] =
	"INSERT INTO payment_sync.reconciliation (run, owner, relid, other, key, columns,"
	" other_columns, condition, tolerance, digest, max_wait)"
	" SELECT $1, $2::regrole, $3, $4, COALESCE($5, (SELECT array_agg(a.attname ORDER BY n)"
	"  FROM pg_index i, generate_series(0, i.indnkeyatts - 1) n, pg_attribute a"
	"  WHERE i.indrelid = $3 AND i.indisprimary AND a.attrelid = $3 AND a.attnum = i.indkey[n])),"
	" COALESCE($6, (SELECT array_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a"
	"  WHERE a.attrelid = $3 AND a.attnum > 0 AND NOT a.attisdropped AND EXISTS"
	"  (SELECT FROM pg_attribute o WHERE o.attrelid = $4 AND o.attname = a.attname"
	"   AND o.attnum > 0 AND NOT o.attisdropped))),"
	" $7, $8, $9, $10, COALESCE($11, interval '0')";

static const char result_command[] =
	"SELECT run, relid::regclass, source_rows, target_rows, matched, missing, unexpected,"
	" different, in_flight, started, finished, position"
	" FROM payment_sync.reconciliation WHERE run = $1 ORDER BY relid";

/* ---------------------------------------------------------------- requests */

/*
 * From a sequence, so runs are numbered in the order in which they were asked
 * for.
 */
static int64
next_run(void)
{
	bool		isnull;
	int64		run;

	(void) psync_owner_execute("SELECT nextval('payment_sync.reconciliation_run')",
							   0, NULL, NULL, NULL);
	run = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
									  1, &isnull));
	SPI_finish();
	return run;
}

/*
 * One of two words.
 */
static void
check_digest(FunctionCallInfo fcinfo, int arg)
{
	char	   *digest = PG_ARGISNULL(arg) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(arg));

	if (digest == NULL || (strcmp(digest, "hash") != 0 && strcmp(digest, "sha256") != 0))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid digest \"%s\"", digest ? digest : "null"),
				 errhint("Valid values are \"hash\" and \"sha256\".")));
}

/* A sync of the caller's that has a target. */
PsyncSync *
psync_reconcile_sync(const char *name)
{
	PsyncSync  *sync = psync_sync_get_own(name);

	if (sync->server == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("sync \"%s\" has no target", sync->name),
				 errhint("Load what the consumer reports into a table, and compare with payment_sync.reconcile_with().")));
	return sync;
}

static PsyncSync *
get_sync(FunctionCallInfo fcinfo)
{
	PsyncSync  *sync;

	if (PG_ARGISNULL(ARG_NAME))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"name\" must not be null")));
	sync = psync_reconcile_sync(NameStr(*PG_GETARG_NAME(ARG_NAME)));
	if (!PG_ARGISNULL(ARG_SERVER))
		psync_check_server_usage(NameStr(*PG_GETARG_NAME(ARG_SERVER)));
	return sync;
}

/* Make the rows of a new run; its number. */
static int64
request_run(FunctionCallInfo fcinfo)
{
	static const Oid arg_types[ARGS_RECONCILE] = {NAMEOID, OIDOID, TEXTOID, TEXTARRAYOID,
	TEXTARRAYOID, BOOLOID, JSONBOID, TEXTOID, NAMEOID, INT4OID, INTERVALOID};
	PsyncSync  *sync = get_sync(fcinfo);
	int64		run = next_run();
	Oid			types[ARGS_RECONCILE + 1] = {INT8OID, UUIDOID};
	Datum		values[ARGS_RECONCILE + 1];
	char		nulls[ARGS_RECONCILE + 2] = "  ";
	uint64		tables;

	check_digest(fcinfo, ARG_DIGEST);
	if (!PG_ARGISNULL(ARG_CONDITION))
		psync_check_condition(text_to_cstring(PG_GETARG_TEXT_PP(ARG_CONDITION)));
	if (!PG_ARGISNULL(ARG_ROWS_PER_SECOND))
		psync_check_rate(PG_GETARG_INT32(ARG_ROWS_PER_SECOND));
	if (!PG_ARGISNULL(ARG_MAX_WAIT))
		(void) psync_check_wait(PG_GETARG_INTERVAL_P(ARG_MAX_WAIT));
	values[0] = Int64GetDatum(run);
	values[1] = UUIDPGetDatum(&sync->id);
	for (int arg = ARG_REL; arg < ARGS_RECONCILE; arg++)
	{
		types[arg + 1] = arg_types[arg];
		values[arg + 1] = PG_GETARG_DATUM(arg);
		nulls[arg + 1] = PG_ARGISNULL(arg) ? 'n' : ' ';
	}
	tables = psync_owner_execute(request_command, ARGS_RECONCILE + 1, types, values, nulls);
	SPI_finish();
	if (tables == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("sync \"%s\" has no such table", sync->name)));
	return run;
}

/*
 * The columns named exist.  "argument" is for the message.
 */
static void
check_names(ArrayType *names, Oid relid, const char *argument)
{
	ListCell   *lc;

	Assert(OidIsValid(relid));

	foreach(lc, psync_name_list(names))
	{
		if (get_attnum(relid, lfirst(lc)) == InvalidAttrNumber)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of relation \"%s\" does not exist",
							(char *) lfirst(lc), get_rel_name(relid)),
					 errdetail("Argument \"%s\" names it.", argument)));
	}
}

/* What the request's statement cannot check. */
static void
check_with(const PsyncRun *run)
{
	ListCell   *lc;

	if (run->key == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("relation \"%s\" has no primary key", get_rel_name(run->relid)),
				 errhint("Name the columns that identify a row with the argument \"key\".")));
	foreach(lc, run->key)
	{
		if (!psync_name_list_has(run->columns, lfirst(lc)))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("key column \"%s\" is not among the columns to compare",
							(char *) lfirst(lc))));
	}
	if (run->other_columns != NIL &&
		list_length(run->other_columns) != list_length(run->columns))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("arguments \"columns\" and \"other_columns\" must have the same length")));
}

/*
 * Make the row of a new run of two relations of this database; its number.
 * What the statement could not check is checked on the row that it has made;
 * an error takes that back.
 */
static int64
request_with(FunctionCallInfo fcinfo)
{
	static const Oid arg_types[ARGS_WITH] = {OIDOID, OIDOID, NAMEARRAYOID, NAMEARRAYOID,
	NAMEARRAYOID, TEXTOID, JSONBOID, TEXTOID, INTERVALOID};
	int64		run;
	Oid			types[ARGS_WITH + 2] = {INT8OID, OIDOID};
	Datum		values[ARGS_WITH + 2];
	char		nulls[ARGS_WITH + 3] = "  ";
	PsyncCounts counts;

	if (PG_ARGISNULL(WITH_REL) || PG_ARGISNULL(WITH_OTHER))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("arguments \"rel\" and \"other\" must not be null")));
	run = next_run();
	check_digest(fcinfo, WITH_DIGEST);
	if (!PG_ARGISNULL(WITH_CONDITION))
		psync_check_condition(text_to_cstring(PG_GETARG_TEXT_PP(WITH_CONDITION)));
	if (!PG_ARGISNULL(WITH_MAX_WAIT))
		(void) psync_check_wait(PG_GETARG_INTERVAL_P(WITH_MAX_WAIT));
	for (int arg = WITH_KEY; arg <= WITH_OTHER_COLUMNS; arg++)
	{
		if (!PG_ARGISNULL(arg))
			check_names(PG_GETARG_ARRAYTYPE_P(arg),
						PG_GETARG_OID(arg == WITH_OTHER_COLUMNS ? WITH_OTHER : WITH_REL),
						arg == WITH_KEY ? "key" : arg == WITH_COLUMNS ? "columns" :
						"other_columns");
	}
	values[0] = Int64GetDatum(run);
	values[1] = ObjectIdGetDatum(GetUserId());
	for (int arg = 0; arg < ARGS_WITH; arg++)
	{
		types[arg + 2] = arg_types[arg];
		values[arg + 2] = PG_GETARG_DATUM(arg);
		nulls[arg + 2] = PG_ARGISNULL(arg) ? 'n' : ' ';
	}
	(void) psync_owner_execute(request_with_command, ARGS_WITH + 2, types, values, nulls);
	SPI_finish();
	check_with(psync_run_load(run, PG_GETARG_OID(WITH_REL), &counts));
	return run;
}

/* ----------------------------------------------------------------- results */

/* The rows of the run, as the function's result. */
static void
return_run(Tuplestorestate *store, TupleDesc desc, int64 run)
{
	Oid			types[1] = {INT8OID};
	Datum		args[1];

	args[0] = Int64GetDatum(run);
	(void) psync_owner_execute(result_command, 1, types, args, NULL);
	psync_result_put_spi(store, desc);
	SPI_finish();
}

int64
psync_interval_ms(const Interval *interval)
{
	return interval->time / 1000 +
		(interval->day + (int64) interval->month * DAYS_PER_MONTH) * (USECS_PER_DAY / 1000);
}

/*
 * Rows are compared with what has been committed, as the log knows it: own
 * changes that are not committed, or a snapshot from before, would look like
 * differences.
 */
void
psync_check_reconcile_transaction(const char *function)
{
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("function \"%s\" needs isolation level READ COMMITTED", function),
				 errdetail("It must see what is committed while it runs.")));
	if (psync_log_has_changes())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("function \"%s\" cannot run in a transaction that has changed captured tables",
						function),
				 errhint("Commit first.")));
}

/* ------------------------------------------------------------ SQL functions */

/*
 * reconcile(name, rel, condition, key_after, key_upto, recent, tolerance,
 *			 digest, server, rows_per_second, max_wait)
 */
Datum
payment_sync_reconcile(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	Tuplestorestate *store = psync_result_begin(fcinfo, &desc);
	int64		run;

	psync_check_reconcile_transaction("reconcile");
	run = request_run(fcinfo);
	psync_reconcile_run(run, NULL, false);
	return_run(store, desc, run);
	return (Datum) 0;
}

/*
 * reconcile_with(rel, other, key, columns, other_columns, condition,
 *				  tolerance, digest, max_wait)
 */
Datum
payment_sync_reconcile_with(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	Tuplestorestate *store = psync_result_begin(fcinfo, &desc);
	int64		run = request_with(fcinfo);

	psync_reconcile_run(run, NULL, false);
	return_run(store, desc, run);
	return (Datum) 0;
}

/*
 * start_reconciliation(…): the same arguments as reconcile(); returns the
 * run's number at once.  A background process takes it from there, when this
 * transaction has committed.
 */
Datum
payment_sync_start_reconciliation(PG_FUNCTION_ARGS)
{
	int64		run = request_run(fcinfo);

	psync_wakeup_config();
	PG_RETURN_INT64(run);
}

/*
 * start_reconciliation_with(…): the same arguments as reconcile_with().  The
 * relations are read with the caller's rights, there as here.
 */
Datum
payment_sync_start_reconciliation_with(PG_FUNCTION_ARGS)
{
	int64		run = request_with(fcinfo);

	psync_wakeup_config();
	PG_RETURN_INT64(run);
}

/* Does the run exist, and is it the caller's? */
static void
check_run_owner(int64 run)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1];
	Oid			owner = InvalidOid;
	bool		isnull;

	values[0] = Int64GetDatum(run);
	if (psync_owner_execute("SELECT owner::oid FROM payment_sync.reconciliation"
							" WHERE run = $1 LIMIT 1", 1, types, values, NULL) > 0)
		owner = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0],
											   SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	if (!OidIsValid(owner))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("run %lld does not exist", (long long) run)));
	if (!has_privs_of_role(GetUserId(), owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of run %lld", (long long) run)));
}

/*
 * The run that a function is called for; it exists, and is the caller's.
 */
int64
psync_run_argument(FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"run\" must not be null")));
	check_run_owner(PG_GETARG_INT64(0));
	return PG_GETARG_INT64(0);
}

/*
 * CALL run_reconciliation(run): go on with it in this session, wherever it
 * stands: after a crash, a failure, or a cancellation.
 */
Datum
payment_sync_run_reconciliation(PG_FUNCTION_ARGS)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1];
	int64		run;

	if (fcinfo->context == NULL || !IsA(fcinfo->context, CallContext) ||
		castNode(CallContext, fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("procedure \"run_reconciliation\" cannot run inside a transaction block"),
				 errdetail("It commits after each step."),
				 errhint("Call it by itself, in autocommit mode.")));
	SPI_connect_ext(SPI_OPT_NONATOMIC);
	psync_check_reconcile_transaction("run_reconciliation");
	run = psync_run_argument(fcinfo);
	values[0] = Int64GetDatum(run);
	(void) psync_owner_execute("UPDATE payment_sync.reconciliation SET state = 'pending'"
							   " WHERE run = $1 AND state IN ('failed', 'cancelled')",
							   1, types, values, NULL);
	SPI_finish();
	SPI_commit();
	psync_reconcile_run(run, psync_spi_next_transaction, true);
	SPI_finish();
	PG_RETURN_VOID();
}

/* cancel_reconciliation(run): true if something was left to do. */
Datum
payment_sync_cancel_reconciliation(PG_FUNCTION_ARGS)
{
	int64		run = psync_run_argument(fcinfo);
	Oid			types[1] = {INT8OID};
	Datum		values[1];
	uint64		cancelled;

	values[0] = Int64GetDatum(run);
	cancelled = psync_owner_execute("UPDATE payment_sync.reconciliation SET state = 'cancelled',"
									" finished = clock_timestamp() WHERE run = $1"
									" AND state IN ('pending', 'running')",
									1, types, values, NULL);
	SPI_finish();
	PG_RETURN_BOOL(cancelled > 0);
}
