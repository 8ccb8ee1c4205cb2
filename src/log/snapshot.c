/*
 * snapshot.c
 *		Snapshots that outlive their transaction, as pg_snapshot prints them.
 *
 * A transaction id is "seen" by such a snapshot if it had ended when the
 * snapshot was taken.  Whether it committed is not known here: that is what
 * the tuple's own visibility is for.
 *
 * The stored form is pg_snapshot's text, "xmin:xmax:xip,xip,…":
 *
 *		xmin	all ids below had ended
 *		xmax	no id from here on had ended (it had not even begun)
 *		xip		ids from xmin on, below xmax, that were running; ascending
 *
 * Ids are 64 bits wide, so positions do not wrap and may be kept for years;
 * freezing a chunk takes nothing away that is needed, since the chunk's id is a
 * column of its own.
 *
 * Only top-level ids occur.  A savepoint's chunk bears its transaction's id.
 *
 * After a crash an id may be used again, if no WAL of the transaction that had
 * it before was flushed.  A snapshot that is stored or handed out must hence not
 * see such an id: it cannot, because an id counts as ended only after its commit
 * or abort record was written, and positions leave the server or are committed
 * here only behind a flush of WAL up to that point (P3).
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "log/log.h"

/*
 * For qsort() and bsearch(); a difference would not fit an int.
 */
static int
compare_xid8(const void *a, const void *b)
{
	uint64		x = *(const uint64 *) a;
	uint64		y = *(const uint64 *) b;

	return (x > y) - (x < y);
}

/*
 * Our own transaction is not over.  A snapshot of PostgreSQL's leaves it out of
 * the running ones, because it treats its own rows in another way; here it
 * counts among them like any other.
 */
static PsyncSnapshot *
add_own_transaction(PsyncSnapshot *snapshot)
{
	FullTransactionId own = GetTopFullTransactionIdIfAny();
	uint64		xid = U64FromFullTransactionId(own);

	if (!FullTransactionIdIsValid(own) || !psync_snapshot_sees(snapshot, xid))
		return snapshot;

	Assert(xid >= snapshot->xmin && xid < snapshot->xmax);
	snapshot = repalloc(snapshot, offsetof(PsyncSnapshot, xip) +
						(snapshot->nxip + 1) * sizeof(uint64));
	snapshot->xip[snapshot->nxip++] = xid;
	qsort(snapshot->xip, snapshot->nxip, sizeof(uint64), compare_xid8);
	return snapshot;
}

/*
 * The active snapshot, as one that can be stored; in the current memory
 * context.
 *
 * By way of its text, since what a pg_snapshot looks like inside is no
 * business of ours.  The caller has pushed the snapshot and keeps it for as
 * long as it wants to read what the result sees.
 */
PsyncSnapshot *
psync_snapshot_current(void)
{
	Datum		snapshot = DirectFunctionCall1(pg_current_snapshot, (Datum) 0);
	char	   *text = DatumGetCString(DirectFunctionCall1(pg_snapshot_out,
														   snapshot));
	PsyncSnapshot *result = psync_snapshot_parse(text);

	Assert(ActiveSnapshotSet());

	pfree(text);
	pfree(DatumGetPointer(snapshot));
	return add_own_transaction(result);
}

/*
 * No more of the text is shown than helps.
 */
pg_noreturn static void
bad_snapshot(const char *text)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
			 errmsg("invalid snapshot \"%.64s\"", text),
			 errdetail("Expected \"xmin:xmax:xid,xid,…\", as pg_current_snapshot() returns it.")));
}

/*
 * Parse.  The text ends with the string, or at a "@": what follows is not the
 * snapshot's (deliver/position.c).  It may come from a target and is not
 * trusted.  In the current memory context; an error if it is not a snapshot at
 * all.  Whether it makes sense here, an id from another server say, is for the
 * caller to judge: see psync_snapshot_covers().
 *
 * The ids are sorted, lest a stranger's order mislead a binary search.
 */
PsyncSnapshot *
psync_snapshot_parse(const char *text)
{
	const char *at = text;
	int			capacity = 1;
	uint64		bounds[2];
	PsyncSnapshot *result;

	Assert(text != NULL);

	for (int i = 0; i < 2; i++)
	{
		char	   *end;

		bounds[i] = strtou64(at, &end, 10);
		if (end == at || *end != ':')
			bad_snapshot(text);
		at = end + 1;
	}
	for (const char *p = at; *p != '\0' && *p != '@'; p++)
		capacity += (*p == ',');

	result = palloc(offsetof(PsyncSnapshot, xip) + capacity * sizeof(uint64));
	result->xmin = bounds[0];
	result->xmax = bounds[1];
	result->nxip = 0;
	while (*at != '\0' && *at != '@')
	{
		char	   *end;
		uint64		xid = strtou64(at, &end, 10);

		if (end == at || (*end != ',' && *end != '\0' && *end != '@') ||
			(*end == ',' && (end[1] == '\0' || end[1] == '@')) ||
			xid < result->xmin || xid >= result->xmax)
			bad_snapshot(text);
		Assert(result->nxip < capacity);
		result->xip[result->nxip++] = xid;
		at = *end == ',' ? end + 1 : end;
	}
	if (result->xmin == 0 || result->xmin > result->xmax)
		bad_snapshot(text);

	qsort(result->xip, result->nxip, sizeof(uint64), compare_xid8);
	return result;
}

/*
 * The inverse of psync_snapshot_parse(): equal snapshots give equal texts,
 * which deliver.c relies on when it compares a target's position with ours.  In
 * the current memory context.
 */
char *
psync_snapshot_text(const PsyncSnapshot *snapshot)
{
	StringInfoData buf;

	Assert(snapshot->xmin > 0 && snapshot->xmin <= snapshot->xmax);

	initStringInfo(&buf);
	appendStringInfo(&buf, UINT64_FORMAT ":" UINT64_FORMAT ":",
					 snapshot->xmin, snapshot->xmax);
	for (int i = 0; i < snapshot->nxip; i++)
		appendStringInfo(&buf, "%s" UINT64_FORMAT, i > 0 ? "," : "",
						 snapshot->xip[i]);
	return buf.data;
}

/*
 * Had the transaction ended?  Called for each tuple that is walked over, so the
 * two comparisons that decide nearly always come first.
 */
bool
psync_snapshot_sees(const PsyncSnapshot *snapshot, uint64 xid)
{
	Assert(xid != 0);

	if (xid < snapshot->xmin)
		return true;
	if (xid >= snapshot->xmax)
		return false;
	return bsearch(&xid, snapshot->xip, snapshot->nxip, sizeof(uint64),
				   compare_xid8) == NULL;
}

/*
 * Does b see everything that a sees?  That is so if a sees nothing that b
 * does not: neither b's running transactions nor anything from b's xmax on.
 */
bool
psync_snapshot_covers(const PsyncSnapshot *b, const PsyncSnapshot *a)
{
	if (a->xmax > b->xmax)
	{
		/* a could still agree, if all of that were running for it: give up */
		return false;
	}
	for (int i = 0; i < b->nxip; i++)
	{
		if (psync_snapshot_sees(a, b->xip[i]))
			return false;
	}
	return true;
}
