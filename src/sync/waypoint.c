/*
 * waypoint.c
 *		Where a backlog can be cut.
 *
 * While a target is away the log grows, and when it is back all that is pending
 * could be one window: a transaction that shows nothing for as long as it takes,
 * and that an error near its end sends back to its begin.  What was logged says
 * no more in which order its transactions ended, so a window cannot be cut
 * afterwards: a set of transactions is a state that the source had only if some
 * snapshot saw it and no other (P5).  So snapshots are taken on the way, and
 * kept: waypoints.  A delivery that is far behind ends its window at one of
 * them, and is where it would be if it had been served at that moment.
 *
 * Who passes by notes them: a worker that delivers, tidies, or looks for syncs
 * that hold back the log, and procedures.  Each looks how much the log has grown
 * since the newest one, which costs three file sizes.  A waypoint is a row of
 * payment_sync.log_waypoint: the snapshot, each log table's file and number of
 * blocks, measured after the snapshot was taken, and how many bytes had been
 * logged, which orders them and tells how far apart they are.
 *
 * Why a stored snapshot may be used later.  A window up to it holds what it
 * sees, and those transactions had ended: their fate does not change, so any
 * later snapshot may judge their chunks.
 *
 *		a prepared or long	is running for the waypoints on its way, held out
 *		transaction			until one that sees it, or until now
 *		emptied table		all that a waypoint sees in it is behind all
 *							positions; the new file holds nothing of it
 *		VACUUM FULL			another file, whose size says nothing: walked whole,
 *							and what is left of it is one window
 *		crash				the row's commit record is behind those of all
 *							transactions that the snapshot sees: if the row is
 *							there, they are
 *		dump				not dumped; a copy of the database (template) has
 *							them, and forgets its positions
 *		pg_upgrade			transaction ids go on; files that have other numbers
 *							are walked whole
 *
 * Not cut: a transaction, however large; what no waypoint lies in, because
 * nobody passed by; windows of targets that take messages, which are settled
 * event by event.
 *
 * Each row goes when all positions have passed it, but the newest, from which
 * growth is measured.  If there are too many, the one goes without which the
 * gap is smallest; so they stay about as far apart from each other.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "sync/admin.h"

/* So many rows at most; with more, a long backlog's steps grow instead. */
#define PSYNC_WAYPOINTS_MAX		128

/* A row; the waypoint is first. */
typedef struct PsyncWaypointRow
{
	PsyncWaypoint waypoint;
	int64		bytes;			/* logged up to here */
	bool		passed;
} PsyncWaypointRow;

/* In bytes; 0: windows are not cut. */
static int64
step_size(void)
{
	return (int64) psync_backlog_step * 1024 * 1024;
}

/* InvalidOid in a database whose objects are of a version without it. */
static Oid
waypoint_relid(void)
{
	Oid			schema = get_namespace_oid(PSYNC_SCHEMA, true);

	return OidIsValid(schema) ? get_relname_relid("log_waypoint", schema) : InvalidOid;
}

/* All rows, from the oldest on, in the current memory context. */
static List *
load_rows(void)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *result = NIL;

	(void) psync_owner_execute("SELECT bytes, snapshot::text, filenode, block"
							   " FROM payment_sync.log_waypoint ORDER BY bytes",
							   0, NULL, NULL, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		MemoryContext old = MemoryContextSwitchTo(context);
		PsyncWaypointRow *row = palloc0(sizeof(PsyncWaypointRow));
		bool		isnull;

		row->bytes = DatumGetInt64(SPI_getbinval(tuple, desc, 1, &isnull));
		row->waypoint.snapshot = psync_snapshot_parse(SPI_getvalue(tuple, desc, 2));
		psync_hint_read(tuple, desc, 3, &row->waypoint.end);
		result = lappend(result, row);
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	return result;
}

/* ------------------------------------------------------------------ noting */

static void
insert_row(const PsyncWaypoint *waypoint, int64 bytes)
{
	Oid			types[4] = {INT8OID, TEXTOID, OIDARRAYOID, INT8ARRAYOID};
	Datum		values[4];
	char		nulls[5] = "    ";

	values[0] = Int64GetDatum(bytes);
	values[1] = CStringGetTextDatum(psync_snapshot_text(waypoint->snapshot));
	psync_hint_write(&values[2], &nulls[2], &waypoint->end);
	(void) psync_owner_execute("INSERT INTO payment_sync.log_waypoint"
							   " (bytes, snapshot, filenode, block)"
							   " VALUES ($1, $2::pg_snapshot, $3, $4)",
							   4, types, values, nulls);
	SPI_finish();
}

static void
delete_row(const PsyncWaypointRow *row)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(row->bytes)};

	(void) psync_owner_execute("DELETE FROM payment_sync.log_waypoint WHERE bytes = $1",
							   1, types, values, NULL);
	SPI_finish();
}

/* Are all positions behind it? */
static bool
all_passed(const PsyncWaypoint *waypoint, List *positions)
{
	ListCell   *lc;

	foreach(lc, positions)
	{
		if (!psync_snapshot_covers(lfirst(lc), waypoint->snapshot))
			return false;
	}
	return true;
}

/*
 * Of rows that are too many, without the first and the last: the one whose
 * neighbours are nearest to each other.
 */
static PsyncWaypointRow *
least_missed(List *rows)
{
	PsyncWaypointRow *result = NULL;
	int64		smallest = PG_INT64_MAX;

	Assert(list_length(rows) >= 3);

	for (int i = 1; i + 1 < list_length(rows); i++)
	{
		PsyncWaypointRow *before = list_nth(rows, i - 1);
		PsyncWaypointRow *after = list_nth(rows, i + 1);

		if (after->bytes - before->bytes < smallest)
		{
			smallest = after->bytes - before->bytes;
			result = list_nth(rows, i);
		}
	}
	return result;
}

/* Make room for a new row, which is in "rows" no more than those passed are. */
static void
remove_rows(List *rows, List *positions)
{
	List	   *kept = NIL;
	ListCell   *lc;

	foreach(lc, rows)
	{
		PsyncWaypointRow *row = lfirst(lc);

		if (all_passed(&row->waypoint, positions))
			delete_row(row);
		else
			kept = lappend(kept, row);
	}
	while (list_length(kept) >= PSYNC_WAYPOINTS_MAX)
	{
		PsyncWaypointRow *row = least_missed(kept);

		delete_row(row);
		kept = list_delete_ptr(kept, row);
	}
	list_free(kept);
}

/*
 * Note a waypoint if the log has grown by a step since the newest one; log.h
 * and sync.h have the contract.  Whoever finds another process doing so leaves
 * it to that one.
 *
 * The positions are read before the lock is taken, so that nothing is waited
 * for under it.
 */
bool
psync_waypoint_note(void)
{
	static PsyncReadHint newest;	/* where it was, as far as we know */
	PsyncReadHint end;
	PsyncWaypoint waypoint;
	List	   *positions;
	List	   *rows;
	int64		grown;
	Oid			relid;

	if (psync_backlog_step == 0)
		return false;
	psync_log_measure(&end);
	if (psync_log_between(&newest, &end) < step_size())
		return false;

	relid = waypoint_relid();
	if (!OidIsValid(relid))
		return false;
	positions = psync_sync_list_positions();
	if (positions == NIL ||
		!ConditionalLockRelationOid(relid, ShareRowExclusiveLock))
		return false;
	rows = load_rows();
	if (rows != NIL)
		newest = ((PsyncWaypointRow *) llast(rows))->waypoint.end;

	/* the snapshot comes first: all that it sees is within what is measured */
	PushActiveSnapshot(GetLatestSnapshot());
	waypoint.snapshot = psync_snapshot_current();
	PopActiveSnapshot();
	psync_log_measure(&waypoint.end);
	grown = psync_log_between(&newest, &waypoint.end);
	if (grown < step_size())
		return false;

	insert_row(&waypoint,
			   grown + (rows != NIL ? ((PsyncWaypointRow *) llast(rows))->bytes : 0));
	remove_rows(rows, positions);
	newest = waypoint.end;
	return true;
}

/* -------------------------------------------------------------- using them */

/*
 * sync.h has the contract.  The first one that is worth a window of its own,
 * and behind which there is still enough for another.
 *
 * Each is later than the position, so a window up to it gets the reader on, be
 * there anything in it or not.
 */
PsyncWaypoint *
psync_waypoint_next(PsyncReader *reader)
{
	const PsyncSnapshot *after = psync_reader_after(reader);
	const PsyncReadHint *tail = psync_reader_tail(reader);
	int64		step = step_size();
	PsyncReadHint end;
	ListCell   *lc;

	if (step == 0)
		return NULL;
	psync_log_measure(&end);
	if (psync_log_between(tail, &end) < step || !OidIsValid(waypoint_relid()))
		return NULL;

	foreach(lc, load_rows())
	{
		PsyncWaypoint *waypoint = &((PsyncWaypointRow *) lfirst(lc))->waypoint;

		if (psync_snapshot_covers(waypoint->snapshot, after) &&
			!psync_snapshot_covers(after, waypoint->snapshot) &&
			psync_log_between(tail, &waypoint->end) >= step / 2 &&
			psync_log_between(&waypoint->end, &end) >= step / 2)
			return waypoint;
	}
	return NULL;
}

/* ------------------------------------------------------------------ tidying */

/*
 * In a transaction that should end soon.  True if a later call may find more to
 * do.
 */
bool
psync_log_tidy(void)
{
	PsyncRole	save;
	bool		more;

	(void) psync_waypoint_note();
	psync_owner_become(&save);
	more = psync_log_rotate(psync_sync_list_positions);
	psync_role_return(&save);
	return more;
}
