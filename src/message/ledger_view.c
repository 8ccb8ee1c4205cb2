/*
 * ledger_view.c
 *		Reading the books: the view payment_sync.ledger, and what people did.
 *
 * The view's figures come from four places, all read under one snapshot, so
 * that they add up at any moment, however much is going on:
 *
 *		ledger_count	what the saved position has passed (ledger.c)
 *		unsettled		events that are parked, held or dead, row by row
 *		ledger_manual	what people have discarded, or had sent again
 *		the log			changes that nobody has counted yet: pending
 *
 * The log tables are locked, as readers do, before the snapshot is taken:
 * rotation empties a table without regard to older snapshots.
 *
 * ledger_manual is only ever added to.  A discard may be part of a transaction
 * that stays open for hours; it must not hold a row that a delivery will
 * update (P7).
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"
#include "utils/uuid.h"

#include "compat.h"
#include "decode/change_rows.h"
#include "decode/jsonb.h"
#include "message/message.h"
#include "sync/admin.h"
#include "target/registry.h"

PG_FUNCTION_INFO_V1(payment_sync_read_ledger);

static const char state_command[] =
	"SELECT st.position::text, st.window_upto::text, st.window_position,"
	" st.window_xid::text::int8, st.window_ahead"
	" FROM payment_sync.sync_state st WHERE st.sync = $1 AND NOT st.released";

/* $1 … $5: pending; $6: who asks */
static const char ledger_command[] =
	"SELECT s.name, a.relid::regclass, a.day, a.operation,"
	" (sum(a.counted) - sum(a.replayed) + sum(a.pending))::bigint,"
	" sum(a.delivered)::bigint, sum(a.left_out)::bigint, sum(a.excluded)::bigint,"
	" sum(a.parked)::bigint, sum(a.held)::bigint, sum(a.dead)::bigint,"
	" sum(a.discarded)::bigint, sum(a.pending)::bigint, sum(a.replayed)::bigint"
	" FROM (SELECT sync, relid, day, operation, captured AS counted, delivered,"
	"   left_out, excluded, 0 AS parked, 0 AS held, 0 AS dead, 0 AS discarded,"
	"   0 AS pending, 0 AS replayed FROM payment_sync.ledger_count"
	"  UNION ALL SELECT u.sync, t.relid, t.day, t.operation, 0, 0, 0, 0,"
	"   CASE WHEN u.state IN ('parked', 'asked') THEN t.n ELSE 0 END,"
	"   CASE WHEN u.state = 'held' THEN t.n ELSE 0 END,"
	"   CASE WHEN u.state = 'dead' THEN t.n ELSE 0 END, 0, 0, 0"
	"  FROM payment_sync.unsettled u, unnest(u.tally_relids, u.tally_days,"
	"   u.tally_operations, u.tally_counts) t (relid, day, operation, n)"
	"  UNION ALL SELECT sync, relid, day, operation, 0, 0, 0, 0, 0, 0, 0,"
	"   discarded, 0, replayed FROM payment_sync.ledger_manual"
	"  UNION ALL SELECT p.*, 0 FROM (SELECT sync, relid, day, operation, 0, 0, 0, 0,"
	"   0, 0, 0, 0, n FROM unnest($1, $2, $3, $4, $5)"
	"   t (sync, relid, day, operation, n)) p) a"
	" JOIN payment_sync.sync s ON s.id = a.sync"
	" WHERE pg_has_role($6, 'pg_monitor', 'USAGE') OR pg_has_role($6, s.owner, 'USAGE')"
	" GROUP BY s.name, a.relid, a.day, a.operation";

static const char replayed_command[] =
	"INSERT INTO payment_sync.ledger_manual (sync, relid, day, operation, replayed, made_by)"
	" SELECT t.sync, t.relid, t.day, t.operation, t.n, $6"
	" FROM unnest($1, $2, $3, $4, $5) t (sync, relid, day, operation, n)";

/* Counts of changes, of several syncs, as five arrays. */
typedef struct PsyncTally
{
	int			n;
	int			capacity;
	Datum	   *columns[5];		/* sync, relid, day, operation, number */
} PsyncTally;

/* Where a sync stands. */
typedef struct PsyncStand
{
	PsyncSnapshot *position;	/* A */
	PsyncSnapshot *window;		/* B of the window at hand, or NULL */
	uint64		window_position;
	uint64		window_xid;
	uint64	   *ahead;
	int			nahead;
} PsyncStand;

/* ------------------------------------------------------------------ tallies */

/*
 * One more change of this kind.  There are few kinds, and neighbours in the
 * log are mostly of one; so the last ones are looked at first.
 */
static void
tally_add(PsyncTally *tally, const PsyncSync *sync, Oid relid,
		  const PsyncChange *change)
{
	int32		day = psync_ledger_day(change->at);
	const char *operation = psync_operation_name(change->op);
	int			i = tally->n - 1;

	while (i >= 0 &&
		   (DatumGetObjectId(tally->columns[1][i]) != relid ||
			DatumGetDateADT(tally->columns[2][i]) != day ||
			strcmp(DatumGetCString(tally->columns[3][i]), operation) != 0 ||
			memcmp(DatumGetUUIDP(tally->columns[0][i]), &sync->id, UUID_LEN) != 0))
		i--;
	if (i < 0)
	{
		if (tally->n == tally->capacity)
		{
			tally->capacity = Max(64, 2 * tally->capacity);
			for (int c = 0; c < 5; c++)
				tally->columns[c] = tally->n == 0 ?
					palloc(tally->capacity * sizeof(Datum)) :
					repalloc(tally->columns[c], tally->capacity * sizeof(Datum));
		}
		i = tally->n++;
		tally->columns[0][i] = UUIDPGetDatum(&sync->id);
		tally->columns[1][i] = ObjectIdGetDatum(relid);
		tally->columns[2][i] = DateADTGetDatum(day);
		tally->columns[3][i] = CStringGetDatum(operation);
		tally->columns[4][i] = Int64GetDatum(0);
	}
	tally->columns[4][i] = Int64GetDatum(DatumGetInt64(tally->columns[4][i]) + 1);
}

/* Five parameters. */
static void
tally_parameters(PsyncTally *tally, Oid *types, Datum *values)
{
	Datum	   *operations = palloc(Max(1, tally->n) * sizeof(Datum));

	for (int i = 0; i < tally->n; i++)
		operations[i] = CStringGetTextDatum(DatumGetCString(tally->columns[3][i]));
	types[0] = UUIDARRAYOID;
	types[1] = OIDARRAYOID;
	types[2] = DATEARRAYOID;
	types[3] = TEXTARRAYOID;
	types[4] = INT8ARRAYOID;
	values[0] = PointerGetDatum(construct_array(tally->columns[0], tally->n, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
	values[1] = PointerGetDatum(construct_array(tally->columns[1], tally->n, OIDOID, sizeof(Oid), true, TYPALIGN_INT));
	values[2] = PointerGetDatum(construct_array(tally->columns[2], tally->n, DATEOID, sizeof(DateADT), true, TYPALIGN_INT));
	values[3] = PointerGetDatum(construct_array(operations, tally->n, TEXTOID, -1, false, TYPALIGN_INT));
	values[4] = PointerGetDatum(construct_array(tally->columns[4], tally->n, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/* ------------------------------------------------------------------ pending */

/*
 * Run a query of ours as the tables' owner, under the active snapshot.  SPI
 * stays connected.
 */
static uint64
query_here(const char *command, int nargs, Oid *types, Datum *values)
{
	PsyncRole	save;

	Assert(ActiveSnapshotSet());

	psync_owner_become(&save);
	SPI_connect();
	if (SPI_execute_with_args(command, nargs, types, values, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the ledger");
	psync_role_return(&save);
	return SPI_processed;
}

/*
 * Where the sync stands under the active snapshot; false if it has no
 * position.  In the current memory context.
 */
static bool
read_stand(const PsyncSync *sync, PsyncStand *stand)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[1] = {UUIDOID};
	Datum		values[1] = {UUIDPGetDatum(&sync->id)};
	bool		found = query_here(state_command, 1, types, values) > 0;

	memset(stand, 0, sizeof(*stand));
	if (found)
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		HeapTuple	row = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		char	   *window = SPI_getvalue(row, desc, 2);
		bool		isnull;
		Datum		ahead = SPI_getbinval(row, desc, 5, &isnull);

		if (!isnull)
			stand->ahead = psync_numbers_read(ahead, &stand->nahead);
		stand->position = psync_snapshot_parse(SPI_getvalue(row, desc, 1));
		stand->window = window != NULL ? psync_snapshot_parse(window) : NULL;
		stand->window_position = (uint64) DatumGetInt64(SPI_getbinval(row, desc, 3, &isnull));
		stand->window_xid = (uint64) DatumGetInt64(SPI_getbinval(row, desc, 4, &isnull));
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	return found;
}

/*
 * Was the change, which A does not see, counted nevertheless?  Few are ahead,
 * so they are not sorted.
 */
static bool
is_counted(const PsyncStand *stand, const PsyncChange *change)
{
	if (stand->window != NULL && psync_snapshot_sees(stand->window, change->xid) &&
		(change->position < stand->window_position ||
		 (change->position == stand->window_position &&
		  change->xid <= stand->window_xid)))
		return true;
	for (int i = 0; i + 1 < stand->nahead; i += 2)
		if (stand->ahead[i] == change->position && stand->ahead[i + 1] == change->xid)
			return true;
	return false;
}

/*
 * Changes of the sync's tables, of whatever origin, between two snapshots:
 * those that are counted, or those that are not.
 */
static void
tally_window(PsyncTally *tally, const PsyncSync *sync, const PsyncStand *stand,
			 const PsyncSnapshot *upto, bool counted)
{
	PsyncReader *reader = psync_reader_create(CurrentMemoryContext, stand->position, NULL);
	PsyncChangeRows rows = {0};
	PsyncChange change;
	uint32		shape_id;
	bool		found = psync_reader_open_upto(reader, upto);

	psync_change_rows_lookups(&rows);
	while (found && psync_reader_next(reader, &change, &shape_id))
	{
		Oid			relid = psync_change_rows_resolve(&rows, &change, shape_id);

		CHECK_FOR_INTERRUPTS();
		if (psync_sync_has_table(sync, relid) &&
			is_counted(stand, &change) == counted)
			tally_add(tally, sync, relid, &change);
	}
	psync_reader_free(reader);
}

/* A sync whose books the caller may see, with a target that takes messages. */
static bool
keeps_books(const PsyncSync *sync)
{
	ForeignServer *server = sync->server == NULL ? NULL :
		GetForeignServerByName(sync->server, true);

	return server != NULL &&
		(has_privs_of_role(GetUserId(), ROLE_PG_MONITOR) ||
		 has_privs_of_role(GetUserId(), sync->owner)) &&
		psync_wrapper_takes_messages(server->fdwid);
}

/*
 * What is pending, under the active snapshot.
 */
static void
tally_pending(PsyncTally *tally, List *syncs)
{
	PsyncSnapshot *upto = psync_snapshot_current();
	ListCell   *lc;

	foreach(lc, syncs)
	{
		PsyncSync  *sync = lfirst(lc);
		PsyncStand	stand;

		/* one that joined since has nothing that this snapshot sees */
		if (keeps_books(sync) && read_stand(sync, &stand) &&
			psync_snapshot_covers(upto, stand.position))
			tally_window(tally, sync, &stand, upto, false);
	}
}

/* ---------------------------------------------------------------- functions */

/*
 * read_ledger(): the rows of payment_sync.ledger.
 */
Datum
payment_sync_read_ledger(PG_FUNCTION_ARGS)
{
	PsyncTally	tally = {0};
	Oid			types[6];
	Datum		values[6];
	TupleDesc	desc;
	Tuplestorestate *store = psync_result_begin(fcinfo, &desc);
	List	   *syncs;

	for (int i = 0; i < PSYNC_LOG_TABLES; i++)
		LockRelationOid(psync_log_relid(i), AccessShareLock);
	syncs = psync_sync_list_with_state();
	PushActiveSnapshot(GetLatestSnapshot());
	tally_pending(&tally, syncs);
	tally_parameters(&tally, types, values);
	types[5] = OIDOID;
	values[5] = ObjectIdGetDatum(GetUserId());
	(void) query_here(ledger_command, 6, types, values);
	psync_result_put_spi(store, desc);
	SPI_finish();
	PopActiveSnapshot();
	return (Datum) 0;
}

/*
 * For replay(): note the changes that will be delivered once more.  These are
 * what the position has passed and is set back behind, from "first" on; and
 * what is settled of the window at hand, which is forgotten.  The caller has
 * locked the sync's state.
 */
void
psync_ledger_replayed(const PsyncSync *sync, uint64 first)
{
	PsyncTally	tally = {0};
	PsyncStand	stand = {0};
	Oid			types[6];
	Datum		values[6];
	NameData	user;

	/* all before "first" stays counted, all from there on does not */
	stand.position = psync_snapshot_parse(PSYNC_BEFORE_ALL);
	stand.window = psync_snapshot_parse(sync->position);
	stand.window_position = first - 1;
	stand.window_xid = PG_UINT64_MAX;
	tally_window(&tally, sync, &stand, stand.window, false);
	if (sync->window_upto != NULL)
	{
		stand.position = psync_snapshot_parse(sync->position);
		stand.window = psync_snapshot_parse(sync->window_upto);
		stand.window_position = sync->window_position;
		stand.window_xid = sync->window_xid;
		stand.ahead = sync->ahead;
		stand.nahead = sync->nahead;
		PushActiveSnapshot(GetLatestSnapshot());
		tally_window(&tally, sync, &stand, psync_snapshot_current(), true);
		PopActiveSnapshot();
	}
	if (tally.n == 0)
		return;
	tally_parameters(&tally, types, values);
	namestrcpy(&user, GetUserNameFromId(GetUserId(), false));
	types[5] = NAMEOID;
	values[5] = NameGetDatum(&user);
	(void) psync_owner_execute(replayed_command, 6, types, values, NULL);
	SPI_finish();
}
