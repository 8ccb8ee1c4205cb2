/*
 * procedures.c
 *		incremental_sync() and batch_sync(): delivery in the caller's session;
 *		tidy_log(): rotation of the log, for where there is no worker.
 *
 * All run the worker's code.  They need to end transactions on their way, so
 * they must be called outside a transaction block.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/builtins.h"

#include "compat.h"
#include "deliver/deliver.h"
#include "sync/admin.h"
#include "target/registry.h"

PG_FUNCTION_INFO_V1(payment_sync_incremental_sync);
PG_FUNCTION_INFO_V1(payment_sync_batch_sync);
PG_FUNCTION_INFO_V1(payment_sync_tidy_log);

/*
 * Refuse to run in a transaction block or a function.  Delivery must end
 * transactions: a snapshot kept for its whole time would hold back vacuum, and
 * progress would be lost with an error at the end.
 */
static void
require_nonatomic(FunctionCallInfo fcinfo, const char *name)
{
	if (fcinfo->context == NULL || !IsA(fcinfo->context, CallContext) ||
		castNode(CallContext, fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("procedure \"%s\" cannot run inside a transaction block",
						name),
				 errdetail("It commits after each window that it has delivered."),
				 errhint("Call it by itself, in autocommit mode.")));
}

/* The sync, which the caller must own and which must be able to run. */
static PsyncSync *
get_sync(const char *name)
{
	PsyncSync  *sync = psync_sync_get_own(name);

	if (sync->server == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("sync \"%s\" has no target", name),
				 errhint("Its changes are fetched with payment_sync.fetch_changes().")));
	if (!sync->enabled || !sync->has_state)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("sync \"%s\" is not enabled", name),
				 errhint("Enable it with payment_sync.enable_sync().")));
	return sync;
}

/* The target is down; a session does not wait for it. */
static void
raise_failure(const PsyncDelivery *delivery)
{
	PsyncDeliveryFailure failure;

	psync_delivery_failure(delivery, &failure);
	ereport(ERROR,
			(errcode(failure.sqlerrcode),
			 errmsg("%s", failure.message),
			 failure.detail ? errdetail_internal("%s", failure.detail) : 0));
}

/*
 * Deliver until nothing is pending; the caller holds the sync's lock.
 * *delivery is the caller's to close after an error, NULL if there is none.
 *
 * With a stream of changes that does not end, neither does this: each step
 * takes what is pending then.  The caller may cancel it at any time; what was
 * delivered stays so.
 */
static void
deliver_all(const pg_uuid_t *id, PsyncDelivery **delivery)
{
	PsyncDeliverResult result;

	for (;;)
	{
		*delivery = psync_delivery_create(id, psync_spi_next_transaction);
		do
		{
			CHECK_FOR_INTERRUPTS();
			result = psync_delivery_step(*delivery);
			if (result == PSYNC_DELIVER_STANDBY)
				psync_delivery_await_standby(*delivery);
		} while (result == PSYNC_DELIVER_DONE || result == PSYNC_DELIVER_YIELD ||
				 result == PSYNC_DELIVER_STANDBY);
		if (result == PSYNC_DELIVER_WAIT)
			raise_failure(*delivery);
		if (result == PSYNC_DELIVER_IDLE)
			break;

		/* redefined in between: go on if it still exists */
		psync_delivery_close(*delivery);
		*delivery = NULL;
		if (psync_sync_load(id) == NULL)
			return;
	}
	psync_delivery_save(*delivery);
	psync_delivery_close(*delivery);
	*delivery = NULL;
}

/*
 * Take the sync from the worker, deliver, give it back.  The worker that holds
 * it sees that its lock is wanted and lets go at the end of its window.
 *
 * The lock is the session's, not the transaction's, because there will be
 * many; so it must be given back after an error as well.
 */
static void
deliver_in_session(const pg_uuid_t *id)
{
	PsyncDelivery *volatile delivery = NULL;

	(void) psync_sync_lock(id, true);
	PG_TRY();
	{
		deliver_all(id, (PsyncDelivery **) &delivery);
	}
	PG_FINALLY();
	{
		if (delivery != NULL)
			psync_delivery_close(delivery);
		psync_sync_unlock(id);
	}
	PG_END_TRY();
	psync_wakeup_config();
}

/*
 * Argument "name", copied: the call's memory does not outlive the commits.
 * Procedures are called on null input, too.
 */
static void
copy_name(FunctionCallInfo fcinfo, char *name)
{
	psync_require_argument(fcinfo, 0, "name");
	strlcpy(name, NameStr(*PG_GETARG_NAME(0)), NAMEDATALEN);
}

/*
 * incremental_sync(name)
 */
Datum
payment_sync_incremental_sync(PG_FUNCTION_ARGS)
{
	char		name[NAMEDATALEN];
	PsyncSync  *sync;

	copy_name(fcinfo, name);
	require_nonatomic(fcinfo, "incremental_sync");

	SPI_connect_ext(SPI_OPT_NONATOMIC);
	sync = get_sync(name);
	SPI_commit();
	deliver_in_session(&sync->id);
	SPI_finish();
	PG_RETURN_VOID();
}

/*
 * Ask for a batch of the sync's tables, or of one of them, starting over if
 * one was under way.
 */
static void
request_batch(PsyncSync *sync, Oid relid, bool mirror)
{
	static const char command[] =
		"INSERT INTO payment_sync.batch AS b (sync, relid, mirror, rows_estimated)"
		" SELECT $1, c.oid, $3, GREATEST(c.reltuples, 0)::int8"
		" FROM payment_sync.sync_table t"
		" JOIN pg_class c ON c.oid = t.relid"
		" WHERE t.sync = $1"
		" AND ($2 IS NULL OR c.oid = $2)"
		" ON CONFLICT (sync, relid) DO UPDATE SET mirror = excluded.mirror,"
		" initial = b.initial AND b.state <> 'done',"
		" state = 'pending', shape = NULL, cursor = NULL, chunks = 0, rows = 0,"
		" request = excluded.request, swept = false, whole = false, rows_estimated = excluded.rows_estimated,"
		" requested = clock_timestamp(), started = NULL, finished = NULL";
	Oid			types[3] = {UUIDOID, OIDOID, BOOLOID};
	Datum		values[3];
	char		nulls[4] = "   ";
	uint64		requested;

	values[0] = UUIDPGetDatum(&sync->id);
	values[1] = ObjectIdGetDatum(relid);
	nulls[1] = OidIsValid(relid) ? ' ' : 'n';
	values[2] = BoolGetDatum(mirror);

	requested = psync_owner_execute(command, 3, types, values, nulls);
	SPI_finish();
	if (requested == 0 && OidIsValid(relid))
		psync_refuse_table_of_sync(sync, relid);
	if (requested == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("sync \"%s\" has no tables", sync->name),
				 errhint("Add some with payment_sync.alter_sync(name, add_tables => …).")));
}

/*
 * batch_sync(name, rel, mirror): rel NULL means all tables of the sync.
 */
Datum
payment_sync_batch_sync(PG_FUNCTION_ARGS)
{
	char		name[NAMEDATALEN];
	Oid			relid = PG_ARGISNULL(1) ? InvalidOid : PG_GETARG_OID(1);
	bool		mirror;
	PsyncSync  *sync;

	copy_name(fcinfo, name);
	psync_require_argument(fcinfo, 2, "mirror");
	mirror = PG_GETARG_BOOL(2);
	require_nonatomic(fcinfo, "batch_sync");

	SPI_connect_ext(SPI_OPT_NONATOMIC);
	sync = get_sync(name);
	if (mirror)
		psync_refuse_mirror(sync->server);
	request_batch(sync, relid, mirror);
	SPI_commit();
	deliver_in_session(&sync->id);
	SPI_finish();
	PG_RETURN_VOID();
}

/*
 * tidy_log()
 *
 * Each round is a transaction of its own, for it locks writers out of the
 * tables that it empties; one round may only make room for the next.
 */
Datum
payment_sync_tidy_log(PG_FUNCTION_ARGS)
{
	bool		more = true;

	require_nonatomic(fcinfo, "tidy_log");

	SPI_connect_ext(SPI_OPT_NONATOMIC);
	SPI_commit();
	for (int i = 0; i < PSYNC_LOG_TABLES && more; i++)
	{
		more = psync_log_tidy();
		SPI_commit();
	}
	SPI_finish();
	PG_RETURN_VOID();
}
