/*
 * pull.c
 *		fetch_changes() and ack_changes(): syncs without a server.
 *
 * A window is opened once and its end, B, stored; its changes are handed out
 * in order.  The position of a change, as consumers see it, is
 *
 *		window/position/xid
 *
 * the window's number, and the change's place in it.  Acknowledging moves the
 * stored place, in the caller's own transaction: what an application does
 * with the changes and its acknowledgement commit together, or neither does
 * (P5).  Whatever follows the stored place is handed out again by the next
 * fetch, in whichever session, also after a crash, with the same positions
 * (P6); B is stored, so the window cannot change meanwhile.  Once nothing is
 * left of a window, the next fetch makes B the new A.
 *
 * The number of the window makes acknowledgements that are repeated, or come
 * late, harmless: positions of the log alone say nothing about order from one
 * window to the next (log/log.h).
 *
 * A consumer that fetches again and again over one connection goes on with
 * the open reader, which is kept for the session; so a window of millions of
 * changes is not searched anew for each thousand of them.
 *
 * The state's row is locked until the end of the transaction: a second
 * consumer of the same sync waits for the first.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/xid8.h"

#include "compat.h"
#include "decode/change_rows.h"
#include "pull/pull.h"
#include "sync/admin.h"

PG_FUNCTION_INFO_V1(payment_sync_fetch_changes);
PG_FUNCTION_INFO_V1(payment_sync_ack_changes);

/*
 * A reader that has just handed out the change at (position, xid).  Good for the
 * next fetch only if exactly that change is what the state has as acknowledged;
 * a transaction that was rolled back, a second consumer, or another window make
 * it useless, and it is replaced.
 */
typedef struct PsyncPullReader
{
	MemoryContext context;		/* of all of it; NULL: there is none */
	PsyncReader *reader;
	pg_uuid_t	sync;
	int64		window;
	char	   *upto;			/* B, as text */
	uint64		position;
	uint64		xid;
} PsyncPullReader;

static PsyncPullReader kept;

/* ------------------------------------------------------------------- state */

#define PULL_COLUMNS \
	"SELECT position::text, pull_upto::text, pull_window, pull_position, pull_xid" \
	" FROM payment_sync.sync_state WHERE sync = $1 AND NOT released"

/*
 * The state as it is now.  With "lock" it is locked, and sync->position is
 * brought up to date; NULL if there is none.
 */
PsyncPull *
psync_pull_load(PsyncSync *sync, bool lock)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[1] = {UUIDOID};
	Datum		values[1];
	PsyncPull  *pull = NULL;

	Assert(sync->server == NULL);

	values[0] = UUIDPGetDatum(&sync->id);
	if (psync_owner_execute(lock ? PULL_COLUMNS " FOR UPDATE" : PULL_COLUMNS,
							1, types, values, NULL) > 0)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		MemoryContext old = MemoryContextSwitchTo(context);
		char	   *upto = SPI_getvalue(row, desc, 2);
		bool		isnull;
		Datum		xid;

		pull = palloc0(sizeof(PsyncPull));
		pull->sync = sync;
		sync->position = SPI_getvalue(row, desc, 1);
		pull->upto = upto != NULL ? psync_snapshot_parse(upto) : NULL;
		pull->window = DatumGetInt64(SPI_getbinval(row, desc, 3, &isnull));
		pull->position = (uint64) DatumGetInt64(SPI_getbinval(row, desc, 4, &isnull));
		xid = SPI_getbinval(row, desc, 5, &isnull);
		pull->xid = U64FromFullTransactionId(DatumGetFullTransactionId(xid));
		Assert(pull->window > 0);
		Assert(pull->upto != NULL || pull->position == 0);
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	return pull;
}

/*
 * Does (position, xid) come after the last change acknowledged, in the order
 * in which the reader hands changes out?
 */
static bool
is_after(uint64 position, uint64 xid, const PsyncPull *pull)
{
	if (position != pull->position)
		return position > pull->position;
	return xid > pull->xid;
}

/*
 * Of a change that the sync's position does not see: is it behind the consumer
 * all the same?  Changes of later windows are not, wherever their positions
 * lie.
 */
bool
psync_pull_acknowledged(const PsyncPull *pull, const PsyncChange *change)
{
	return pull->upto != NULL &&
		psync_snapshot_sees(pull->upto, change->xid) &&
		!is_after(change->position, change->xid, pull);
}

/*
 * The caller's sync, its state locked until the end of the transaction; an
 * error that says what is missing if it cannot be fetched from.
 */
static PsyncPull *
lock_own_pull(const char *name)
{
	PsyncSync  *sync = psync_sync_get_own(name);
	PsyncPull  *pull;

	if (sync->server != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("changes of sync \"%s\" cannot be fetched", name),
				 errdetail("They are delivered to server \"%s\".", sync->server)));
	if (!sync->enabled)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("sync \"%s\" is disabled", name),
				 errhint("Enable it with payment_sync.enable_sync().")));
	pull = sync->has_state ? psync_pull_load(sync, true) : NULL;
	if (pull == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("sync \"%s\" has no position", name),
				 errhint("Choose one with payment_sync.enable_sync(name, start => 'now').")));
	return pull;
}

/*
 * A window was opened, up to B. From now on it is what it is, for all sessions
 * and after a crash (P6).
 */
static void
save_open(PsyncPull *pull, const PsyncSnapshot *upto)
{
	Oid			types[2] = {UUIDOID, TEXTOID};
	Datum		values[2];

	Assert(pull->upto == NULL && upto != NULL);

	values[0] = UUIDPGetDatum(&pull->sync->id);
	values[1] = CStringGetTextDatum(psync_snapshot_text(upto));
	(void) psync_owner_execute("UPDATE payment_sync.sync_state"
							   " SET pull_upto = $2::pg_snapshot WHERE sync = $1",
							   2, types, values, NULL);
	SPI_finish();
}

/*
 * The reader's window holds nothing more: A := B. A window in which nothing
 * was handed out does not count as one.
 */
static void
save_done(PsyncPull *pull, PsyncReader *reader)
{
	PsyncSyncProgress progress = {0};
	PsyncReadHint hint;
	Oid			types[1] = {UUIDOID};
	Datum		values[1];

	if (psync_reader_upto(reader) != NULL)
		psync_reader_done(reader);
	psync_reader_hint(reader, &hint);
	progress.position = psync_snapshot_text(psync_reader_after(reader));
	progress.hint = &hint;
	progress.windows = pull->position > 0 ? 1 : 0;
	psync_sync_save_progress(&pull->sync->id, &progress);

	values[0] = UUIDPGetDatum(&pull->sync->id);
	(void) psync_owner_execute("UPDATE payment_sync.sync_state SET pull_upto = NULL,"
							   " pull_window = pull_window + 1, pull_position = 0,"
							   " pull_xid = '0' WHERE sync = $1",
							   1, types, values, NULL);
	SPI_finish();
}

/* --------------------------------------------------------- the kept reader */

/*
 * The reader and all that belongs to it.  There may be none.
 */
static void
forget_reader(void)
{
	if (kept.context != NULL)
		MemoryContextDelete(kept.context);
	memset(&kept, 0, sizeof(kept));
}

/*
 * Does the kept reader stand right behind the last change acknowledged, in the
 * window that is open?
 */
static bool
kept_reader_fits(const PsyncPull *pull)
{
	return kept.context != NULL && pull->upto != NULL &&
		memcmp(&kept.sync, &pull->sync->id, sizeof(pg_uuid_t)) == 0 &&
		kept.window == pull->window &&
		kept.position == pull->position && kept.xid == pull->xid &&
		strcmp(kept.upto, psync_snapshot_text(pull->upto)) == 0;
}

/*
 * A reader that stands behind the last change acknowledged, or before it: a
 * new one begins at the window's begin, and fetch_window() passes over what
 * was dealt with.  With kept.upto NULL its window is empty.
 */
static PsyncReader *
get_reader(const PsyncPull *pull)
{
	if (kept_reader_fits(pull))
		return kept.reader;

	forget_reader();
	kept.context = AllocSetContextCreate(TopMemoryContext, "payment_sync pull",
										 ALLOCSET_SMALL_SIZES);
	kept.reader = psync_reader_create(kept.context,
									  psync_snapshot_parse(pull->sync->position),
									  &pull->sync->hint);
	kept.sync = pull->sync->id;
	kept.window = pull->window;
	Assert(kept.reader != NULL && kept.upto == NULL);
	if (psync_reader_open_upto(kept.reader, pull->upto))
		kept.upto = MemoryContextStrdup(kept.context,
										psync_snapshot_text(psync_reader_upto(kept.reader)));
	return kept.reader;
}

/* --------------------------------------------------------------- fetching */

/*
 * Changes are not left out silently: a consumer that misses
 * a table would never know.
 */
pg_noreturn static void
refuse_unreadable(const PsyncPull *pull, Oid relid)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for changes of sync \"%s\"",
					pull->sync->name),
			 errdetail("SELECT on table %s is needed, without a row security policy that applies.",
					   psync_qualified_name(relid))));
}

/*
 * The position of a change as its consumer sees it.  The window comes first,
 * since positions of the log say nothing about order from one window to the
 * next.
 */
static Datum
position_text(const PsyncPull *pull, const PsyncChange *change)
{
	return CStringGetTextDatum(psprintf(INT64_FORMAT "/" UINT64_FORMAT "/" UINT64_FORMAT,
										pull->window, change->position, change->xid));
}

/*
 * Return what follows the last change acknowledged, max_changes at most.  The
 * kept reader's place moves with it, before it is known whether the consumer
 * acknowledges; kept_reader_fits() tells.
 */
static void
fetch_window(PsyncChangeRows *rows, const PsyncPull *pull, PsyncReader *reader,
			 int max_changes)
{
	PsyncChange change;
	uint32		shape_id;

	Assert(max_changes > 0);

	while (rows->count < max_changes &&
		   psync_reader_next(reader, &change, &shape_id))
	{
		Oid			relid = psync_change_rows_resolve(rows, &change, shape_id);

		CHECK_FOR_INTERRUPTS();
		if (!is_after(change.position, change.xid, pull) ||
			!psync_sync_wants(pull->sync, relid, change.origin))
			continue;
		if (!psync_change_rows_visible(rows, relid))
			refuse_unreadable(pull, relid);
		psync_change_rows_put(rows, &change, relid, position_text(pull, &change));
		kept.position = change.position;
		kept.xid = change.xid;
	}
}

/*
 * Look into the open window, or a new one.  True if this was the last look:
 * something was returned, or there is nothing more.
 */
static bool
fetch_round(PsyncChangeRows *rows, PsyncPull *pull, int max_changes)
{
	PsyncReader *reader = get_reader(pull);
	bool		fresh = pull->upto == NULL;

	if (kept.upto == NULL)
	{
		/* empty; where nothing happens, nothing is written either */
		if (!fresh)
			save_done(pull, reader);
		forget_reader();
		return fresh;
	}
	psync_reader_await_durable(reader);
	fetch_window(rows, pull, reader, max_changes);
	if (rows->count == 0)
	{
		save_done(pull, reader);
		forget_reader();
	}
	else if (fresh)
		save_open(pull, psync_reader_upto(reader));
	return fresh || rows->count > 0;
}

/*
 * fetch_changes(name, max_changes)
 *
 * Looks into the open window; if that is used up, closes it and opens the next
 * one.  At most two rounds find something or nothing, since an empty window
 * that was just opened ends the search.
 */
Datum
payment_sync_fetch_changes(PG_FUNCTION_ARGS)
{
	PsyncChangeRows rows;
	char	   *name;
	int32		max_changes;
	bool		done = false;

	psync_require_argument(fcinfo, 0, "name");
	psync_require_argument(fcinfo, 1, "max_changes");
	name = NameStr(*PG_GETARG_NAME(0));
	max_changes = PG_GETARG_INT32(1);
	if (max_changes < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid max_changes %d", max_changes),
				 errhint("Give the number of changes to return at most, 1 or more.")));
	psync_change_rows_begin(fcinfo, &rows);
	PG_TRY();
	{
		while (!done)
			done = fetch_round(&rows, lock_own_pull(name), max_changes);
	}
	PG_CATCH();
	{
		/* who knows where it stands */
		forget_reader();
		PG_RE_THROW();
	}
	PG_END_TRY();
	return (Datum) 0;
}

/* ---------------------------------------------------------- acknowledging */

pg_noreturn static void
bad_position(const char *position)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid position \"%s\"", position),
			 errhint("Give the position of a change that fetch_changes() has returned.")));
}

/*
 * The three numbers, or an error: the text is a consumer's.
 */
static void
parse_position(const char *text, int64 *window, uint64 *position, uint64 *xid)
{
	uint64		parts[3];
	const char *at = text;

	for (int i = 0; i < 3; i++)
	{
		char	   *end;

		if (*at < '0' || *at > '9')
			bad_position(text);
		parts[i] = strtou64(at, &end, 10);
		if (*end != (i < 2 ? '/' : '\0'))
			bad_position(text);
		at = end + 1;
	}
	if (parts[0] > PG_INT64_MAX || parts[1] > PG_INT64_MAX)
		bad_position(text);
	*window = (int64) parts[0];
	*position = parts[1];
	*xid = parts[2];
}

/*
 * In the caller's transaction, so it counts if the caller's own work does
 * (P5).
 */
static void
save_acknowledged(const PsyncPull *pull, uint64 position, uint64 xid)
{
	Oid			types[3] = {UUIDOID, INT8OID, XID8OID};
	Datum		values[3];

	Assert(pull->upto != NULL && is_after(position, xid, pull));

	values[0] = UUIDPGetDatum(&pull->sync->id);
	values[1] = Int64GetDatum((int64) position);
	values[2] = FullTransactionIdGetDatum(FullTransactionIdFromU64(xid));
	(void) psync_owner_execute("UPDATE payment_sync.sync_state SET pull_position = $2,"
							   " pull_xid = $3, last_success = clock_timestamp()"
							   " WHERE sync = $1", 3, types, values, NULL);
	SPI_finish();
}

/*
 * ack_changes(name, position): all changes up to this one are dealt with.
 *
 * Said twice, or of a window that is over, it does nothing: an application
 * whose commit was in doubt may repeat it.
 */
Datum
payment_sync_ack_changes(PG_FUNCTION_ARGS)
{
	PsyncPull  *pull;
	char	   *given;
	int64		window;
	uint64		position;
	uint64		xid;

	psync_require_argument(fcinfo, 0, "name");
	psync_require_argument(fcinfo, 1, "position");
	given = text_to_cstring(PG_GETARG_TEXT_PP(1));
	pull = lock_own_pull(NameStr(*PG_GETARG_NAME(0)));
	parse_position(given, &window, &position, &xid);
	if (window > pull->window || (window == pull->window && pull->upto == NULL))
		bad_position(given);
	if (window == pull->window)
	{
		if (!psync_snapshot_sees(pull->upto, xid))
			bad_position(given);
		if (is_after(position, xid, pull))
			save_acknowledged(pull, position, xid);
	}
	/* else a window that was finished before: said once more */
	PG_RETURN_VOID();
}
