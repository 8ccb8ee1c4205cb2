/*
 * progress.c
 *		What reconciliations under way have come to, for other sessions.
 *
 * The table payment_sync.reconciliation tells of runs whose steps are
 * committed.  reconcile() runs in its caller's transaction: what it has written
 * is seen by nobody before that commits.  So whoever reconciles also reports by
 * way of PostgreSQL's own progress reporting, in shared memory: that needs no
 * room of ours, and ends by itself when the command is cancelled, fails, or its
 * process is killed.
 *
 * The server's views ask for the commands they know, by number; ours is none of
 * theirs.  If the statement reports progress itself already (COPY of a query
 * that reconciles), that is left alone.
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "commands/progress.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/backend_progress.h"
#include "utils/backend_status.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "compat.h"
#include "reconcile/reconcile.h"
#include "sync/admin.h"

PG_FUNCTION_INFO_V1(payment_sync_read_progress);

/* Far from the server's own, which are numbered from 0. */
#define PSYNC_PROGRESS_COMMAND	((ProgressCommandType) 0x5053)

/* Parameters; all are bigint. */
enum
{
	PROGRESS_RUN,
	PROGRESS_STARTED,
	PROGRESS_SETTLING,
	PROGRESS_ESTIMATED,
	PROGRESS_SOURCE_ROWS,
	PROGRESS_TARGET_ROWS,
	PROGRESS_MISSING,
	PROGRESS_UNEXPECTED,
	PROGRESS_DIFFERENT,
	PROGRESS_SUSPECTS,
	PROGRESS_SYNC_HIGH,			/* the sync's id; zero: reconcile_with */
	PROGRESS_SYNC_LOW
#define PROGRESS_N	(PROGRESS_SYNC_LOW + 1)
};

StaticAssertDecl(PROGRESS_N <= PGSTAT_NUM_PROGRESS_PARAM, "parameters fit");

/* pid, run, sync, table, phase, started, estimate, six counts, percent */
#define NATTS_PROGRESS	13

static bool
is_reporting(void)
{
	return MyBEEntry != NULL && MyBEEntry->st_progress_command == PSYNC_PROGRESS_COMMAND;
}

/*
 * A table's part of a run begins, or is gone on with.
 */
void
psync_progress_begin(const PsyncReconcile *rec)
{
	static const int index[] = {PROGRESS_RUN, PROGRESS_STARTED, PROGRESS_ESTIMATED,
	PROGRESS_SYNC_HIGH, PROGRESS_SYNC_LOW};
	int64		values[lengthof(index)];
	int64		id[2] = {0, 0};

	if (MyBEEntry == NULL || MyBEEntry->st_progress_command != PROGRESS_COMMAND_INVALID)
		return;
	if (rec->sync != NULL)
		memcpy(id, &rec->sync->id, UUID_LEN);
	values[0] = rec->run->run;
	values[1] = rec->started;
	values[2] = (int64) rec->side[PSYNC_SOURCE].rows;
	values[3] = id[0];
	values[4] = id[1];
	pgstat_progress_start_command(PSYNC_PROGRESS_COMMAND, rec->run->relid);
	pgstat_progress_update_multi_param(lengthof(index), index, values);
	psync_progress_update(rec, false);
}

/*
 * What was counted so far.  "settling": ranges are done, suspects are looked
 * at again.
 */
void
psync_progress_update(const PsyncReconcile *rec, bool settling)
{
	static const int index[] = {PROGRESS_SETTLING, PROGRESS_SOURCE_ROWS,
		PROGRESS_TARGET_ROWS, PROGRESS_MISSING, PROGRESS_UNEXPECTED,
	PROGRESS_DIFFERENT, PROGRESS_SUSPECTS};
	const PsyncCounts *counts = &rec->counts;
	int64		values[lengthof(index)] = {settling, counts->source_rows,
		counts->target_rows, counts->missing, counts->unexpected,
	counts->different, counts->in_flight};

	if (is_reporting())
		pgstat_progress_update_multi_param(lengthof(index), index, values);
}

void
psync_progress_end(void)
{
	if (is_reporting())
		pgstat_progress_end_command();
}

/*
 * May the caller see what this process reports?  Its own, that of its syncs,
 * or all if it is a member of pg_monitor.
 */
static bool
may_see(const PgBackendStatus *status, const PsyncSync *sync)
{
	return has_privs_of_role(GetUserId(), ROLE_PG_MONITOR) ||
		(OidIsValid(status->st_userid) &&
		 has_privs_of_role(GetUserId(), status->st_userid)) ||
		(sync != NULL && has_privs_of_role(GetUserId(), sync->owner));
}

/*
 * A row of the result.
 */
static void
put_progress(Tuplestorestate *store, TupleDesc desc, const PgBackendStatus *status)
{
	const int64 *params = status->st_progress_param;
	Datum		values[NATTS_PROGRESS];
	bool		nulls[NATTS_PROGRESS] = {false};
	NameData	name;
	pg_uuid_t	id;
	PsyncSync  *sync;

	Assert(desc->natts == NATTS_PROGRESS);
	memcpy(&id, &params[PROGRESS_SYNC_HIGH], UUID_LEN);
	sync = psync_sync_load(&id);
	if (!may_see(status, sync))
		return;
	values[0] = Int32GetDatum(status->st_procpid);
	values[1] = Int64GetDatum(params[PROGRESS_RUN]);
	nulls[2] = sync == NULL;
	namestrcpy(&name, sync != NULL ? sync->name : "");
	values[2] = NameGetDatum(&name);
	values[3] = ObjectIdGetDatum(status->st_progress_command_target);
	values[4] = CStringGetTextDatum(params[PROGRESS_SETTLING] ? "settling" : "comparing");
	values[5] = TimestampTzGetDatum(params[PROGRESS_STARTED]);
	for (int i = PROGRESS_ESTIMATED; i <= PROGRESS_SUSPECTS; i++)
		values[6 + i - PROGRESS_ESTIMATED] = Int64GetDatum(params[i]);
	tuplestore_putvalues(store, desc, values, nulls);
}

/*
 * read_progress(): the rows of payment_sync.progress_reconcile.
 */
Datum
payment_sync_read_progress(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	Tuplestorestate *store = psync_result_begin(fcinfo, &desc);
	int			n = pgstat_fetch_stat_numbackends();

	for (int i = 1; i <= n; i++)
	{
		LocalPgBackendStatus *local = psync_local_beentry(i);

		if (local != NULL &&
			local->backendStatus.st_progress_command == PSYNC_PROGRESS_COMMAND &&
			local->backendStatus.st_databaseid == MyDatabaseId)
			put_progress(store, desc, &local->backendStatus);
	}
	return (Datum) 0;
}
