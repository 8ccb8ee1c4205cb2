/*
 * recheck.c
 *		From rows that differ to verdicts: what is on its way is no difference.
 *
 * The target trails the source, so two rows may differ and all be well.  What
 * tells the two cases apart is the change log.  Rows are read thus:
 *
 *	1	keep the log from being truncated (ACCESS SHARE on its tables)
 *	2	read the target's rows together with the position P that the target
 *		has recorded, in one statement: the rows are the source's state at P
 *	3	take a snapshot B of the source, and read its rows under it
 *	4	read the log from P to B
 *
 * A key that no change between P and B is about had at P the row that it has at
 * B.  If the two sides differ on it, they differ: a verdict, however busy the
 * table and however late the sync.  A key that such a change is about cannot
 * be judged now; it is a suspect, and is read again later, when P has moved.
 * What is still undecided when max_wait is over is in flight, which is no
 * verdict.  So there are no false alarms, by construction, as long as P8 holds.
 *
 * Where P comes from.  The target records a position with each window that
 * held something for the sync; our own state may be ahead of it by windows
 * that held nothing.  The later of the two is taken.  Ours is read before the
 * target's rows, and is never ahead of what the target has, else.
 *
 * A server that lags.  What is read may be a standby of the target, or the
 * target restored from a backup.  We remember which position the target has
 * recorded; a server whose row is older than that, or that has none, does not
 * have all that ours speaks for.  The log may have been truncated since its own:
 * nothing is decided until it has caught up, or max_wait is over.
 *
 * Why the log is complete.  A chunk that was truncated before step 1 lies
 * behind the saved position of every sync, hence behind P, or held nothing for
 * this sync.
 *
 * While a batch of the table is pending or running, rows may be missing that
 * will come without any change: then nothing is decided.
 *
 * For reconcile_with() there is no sync, and no log that could explain a
 * difference: both relations are read under one snapshot, and what differs,
 * differs.  If the other one follows the source by means of its own, max_wait
 * says for how long: what differs is looked at again until then, and what
 * differs at the end is a discrepancy.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/wait_event.h"
#include "capture/shape.h"
#include "compat.h"
#include "decode/jsonb.h"
#include "reconcile/reconcile.h"
#include "sync/sync.h"

/* Between looks at suspects, ms: at first, and at most. */
#define PSYNC_PAUSE_MIN			50
#define PSYNC_PAUSE_MAX			1000

/*
 * Step 1 of the header comment: rotation takes the tables' locks conditionally
 * and exclusively, so it passes them over meanwhile.  Writers do not mind.
 */
static void
lock_log(bool lock)
{
	for (int i = 0; i < PSYNC_LOG_TABLES; i++)
	{
		if (lock)
			LockRelationOid(psync_log_relid(i), AccessShareLock);
		else
			UnlockRelationOid(psync_log_relid(i), AccessShareLock);
	}
}

/* --------------------------------------------------------------- the log */

/* Shapes met while reading the log; there are few. */
static const PsyncShape *
get_shape(List **shapes, uint32 id)
{
	ListCell   *lc;
	PsyncShape *shape;

	foreach(lc, *shapes)
	{
		if (((PsyncShape *) lfirst(lc))->id == id)
			return lfirst(lc);
	}
	shape = psync_shape_load(id);
	if (shape == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("shape %u of the change log is missing", id)));
	*shapes = lappend(*shapes, shape);
	return shape;
}

/*
 * Is the text by which both sides' types are compared the one that the source's
 * type prints?  Trailing zeros aside, which do not count in either.
 */
static bool
prints_as_compared(const PsyncPair *pair)
{
	const PsyncSideColumn *source = &pair->side[PSYNC_SOURCE];

	if (source->as != source->base &&
		strcmp(source->value, psprintf("t.%s::text", source->name)) != 0)
		return false;
	switch (source->base)
	{
		case BOOLOID:
		case INETOID:
		case FLOAT4OID:
		case FLOAT8OID:
		case TIMESTAMPTZOID:
			return !pair->by_text;
		default:
			return true;
	}
}

/*
 * The key of an image or old part, as key columns in our order.  NULL if the
 * table had another key then, or if it cannot be told which rows it is about.
 */
static char **
change_key(const PsyncReconcile *rec, const PsyncChange *change, bool old)
{
	char	  **key = palloc0(rec->nkeys * sizeof(char *));
	int			nfields;
	PsyncKeyField *fields = psync_change_key_fields(change, old, &nfields);

	if (nfields != rec->nkeys)
		return NULL;
	for (int i = 0; i < nfields; i++)
	{
		int			k = 0;

		while (k < rec->nkeys && rec->key_attnums[k] != fields[i].column->attnum)
			k++;
		if (k == rec->nkeys || !prints_as_compared(&rec->pairs[rec->keys[k]]))
			return NULL;
		key[k] = psync_value_to_text(fields[i].column, fields[i].value, fields[i].size);
	}
	return key;
}

/*
 * As the differences are sorted.
 */
static int
compare_names(const void *a, const void *b)
{
	return strcmp(((const PsyncDifference *) a)->name,
				  ((const PsyncDifference *) b)->name);
}

/*
 * Nothing can be decided about any of them.
 */
static void
touch_all(PsyncDifference *differences, int n)
{
	for (int i = 0; i < n; i++)
		differences[i].touched = true;
}

/* A change is about this key; rows of the same key lie side by side. */
static void
touch(PsyncReconcile *rec, PsyncDifference *differences, int n, char **key)
{
	PsyncDifference wanted;
	PsyncDifference *hit;

	if (key == NULL)
	{
		touch_all(differences, n);
		return;
	}
	wanted.name = psync_key_name(rec, key);
	hit = bsearch(&wanted, differences, n, sizeof(PsyncDifference), compare_names);
	if (hit == NULL)
		return;
	while (hit > differences && strcmp(hit[-1].name, wanted.name) == 0)
		hit--;
	for (; hit < differences + n && strcmp(hit->name, wanted.name) == 0; hit++)
		hit->touched = true;
}

/* Mark the differences that a change of the reader's window is about. */
static void
touch_by_log(PsyncReconcile *rec, PsyncReader *reader,
			 PsyncDifference *differences, int n)
{
	MemoryContext each = AllocSetContextCreate(CurrentMemoryContext,
											   "payment_sync change",
											   ALLOCSET_DEFAULT_SIZES);
	List	   *shapes = NIL;
	PsyncChange change;
	uint32		shape_id;

	while (psync_reader_next(reader, &change, &shape_id))
	{
		MemoryContext old;

		CHECK_FOR_INTERRUPTS();
		if (change.op == PSYNC_TRUNCATE)
		{
			if (psync_sync_wants(rec->sync, (Oid) shape_id, change.origin))
				touch_all(differences, n);
			continue;
		}
		change.shape = get_shape(&shapes, shape_id);
		if (change.shape->relid != rec->run->relid ||
			!psync_sync_wants(rec->sync, change.shape->relid, change.origin))
			continue;
		old = MemoryContextSwitchTo(each);
		if (change.new_size > 0)
			touch(rec, differences, n, change_key(rec, &change, false));
		if (change.op == PSYNC_DELETE || change.key_changed)
			touch(rec, differences, n, change_key(rec, &change, true));
		MemoryContextSwitchTo(old);
		MemoryContextReset(each);
	}
	MemoryContextDelete(each);
}

/* --------------------------------------------------------------- examining */

/* Is the table being copied, so that rows will come without a change? */
static bool
batch_under_way(const PsyncReconcile *rec)
{
	Oid			types[2] = {UUIDOID, OIDOID};
	Datum		values[2];
	bool		found;

	values[0] = UUIDPGetDatum(&rec->run->sync);
	values[1] = ObjectIdGetDatum(rec->run->relid);
	found = psync_owner_execute("SELECT FROM payment_sync.batch WHERE sync = $1"
								" AND relid = $2 AND state IN ('pending', 'running')",
								2, types, values, NULL) > 0;
	SPI_finish();
	return found;
}

/*
 * Is the position that was read older than the one that we know the target to
 * have recorded?
 */
static bool
lags_behind(const PsyncSync *sync, const char *remote)
{
	const char *known = sync->target_position;

	if (known == NULL || sync->restart)
		return false;
	if (remote == NULL)
		return true;
	return strcmp(remote, known) != 0 &&
		!psync_snapshot_covers(psync_snapshot_parse(remote), psync_snapshot_parse(known));
}

/* The position must not be one that we do not know. */
static void
check_past(const char *remote)
{
	PsyncSnapshot *now;

	PushActiveSnapshot(GetTransactionSnapshot());
	now = psync_snapshot_current();
	PopActiveSnapshot();
	if (!psync_snapshot_covers(now, psync_snapshot_parse(remote)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the target has changes that this server does not know"),
				 errdetail("This server was restored from a backup, or the target follows another one.")));
}

/*
 * The later of what the target has recorded and what we have saved; NULL if
 * nothing can be decided, as the sync has no position, or the server lags.
 */
static const char *
choose_position(PsyncReconcile *rec, const PsyncSync *sync, const char *remote)
{
	const char *ours = sync->position;

	if (ours == NULL)
		return NULL;			/* stopped: it has none */
	rec->lags = lags_behind(sync, remote);
	rec->has_lagged |= rec->lags;
	if (rec->lags)
	{
		/* perhaps the table of positions was not there when it was asked for */
		if (remote == NULL)
			psync_side_ask_position(rec);
		return NULL;
	}
	if (remote == NULL || sync->restart ||
		psync_snapshot_covers(psync_snapshot_parse(ours), psync_snapshot_parse(remote)))
		return ours;
	check_past(remote);
	return remote;
}

/* For the reader: the source's rows, under the snapshot that ends the window. */
typedef struct PsyncSourceRead
{
	PsyncReconcile *rec;
	const char *sql;
	int			ncolumns;
	PsyncRows  *rows;
} PsyncSourceRead;

/*
 * Called back by the reader: step 3. Must not end the transaction.
 */
static void
read_source(void *arg)
{
	PsyncSourceRead *read = arg;
	PsyncSide  *side = &read->rec->side[PSYNC_SOURCE];

	psync_side_send(side, read->sql, read->ncolumns, 1);
	read->rows = psync_side_collect_here(side);
}

/*
 * Steps 1 to 4 of the header comment, for these two queries, whose first of
 * ncolumns columns is never null.  The reader is
 * open on the log from P to B when this returns; the caller gives it to
 * psync_read_end().
 */
void
psync_read_begin(PsyncReconcile *rec, const char *source, const char *other,
				 int ncolumns, PsyncBothRows *both)
{
	PsyncSourceRead read = {rec, source, ncolumns, NULL};
	PsyncSync  *sync;

	Assert(rec->sync != NULL && rec->side[PSYNC_OTHER].remote);

	lock_log(true);
	sync = psync_sync_load(&rec->run->sync);
	if (sync == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("sync \"%s\" does not exist any more", rec->sync->name)));
	both->undecidable = batch_under_way(rec);
	both->rows[PSYNC_OTHER] = psync_side_query(&rec->side[PSYNC_OTHER], other,
											   ncolumns, 1);
	rec->counts.rows_moved += both->rows[PSYNC_OTHER]->nrows - 1;
	both->position = choose_position(rec, sync,
									 psync_rows_position(both->rows[PSYNC_OTHER]));
	both->undecidable |= both->position == NULL;

	both->reader = psync_reader_create(CurrentMemoryContext,
									   psync_snapshot_parse(both->position ? both->position : PSYNC_BEFORE_ALL),
									   both->position ? &sync->hint : NULL);
	(void) psync_reader_open(both->reader, NULL, read_source, &read);
	both->rows[PSYNC_SOURCE] = read.rows;
}

void
psync_read_end(PsyncReconcile *rec, PsyncBothRows *both)
{
	psync_reader_free(both->reader);
	lock_log(false);
}

/* The differences, touched or not. */
static PsyncDifference *
examine_with_log(PsyncReconcile *rec, const char *source, const char *other, int *n)
{
	PsyncBothRows both;
	PsyncDifference *differences;

	psync_read_begin(rec, source, other, 1 + rec->nkeys + rec->nshown, &both);
	for (int side = 0; side < 2; side++)
		rec->rows_read[side] = both.rows[side]->nrows - 1;
	differences = psync_rows_compare(rec, both.rows[PSYNC_SOURCE],
									 both.rows[PSYNC_OTHER], n);
	if (*n > 0)
	{
		/* keys in the log are to look as those that were read */
		int			guc_level = psync_text_settings();

		touch_by_log(rec, both.reader, differences, *n);
		psync_text_settings_end(guc_level);
	}
	psync_read_end(rec, &both);

	Assert(both.undecidable || both.position != NULL);
	if (both.undecidable)
		touch_all(differences, *n);
	else
		rec->position = MemoryContextStrdup(rec->context, both.position);
	return differences;
}

/* How many changes of the table lie between P and B. */
int64
psync_read_count_changes(PsyncReconcile *rec, PsyncBothRows *both)
{
	List	   *shapes = NIL;
	PsyncChange change;
	uint32		shape_id;
	int64		n = 0;

	while (psync_reader_next(both->reader, &change, &shape_id))
	{
		Oid			relid = change.op == PSYNC_TRUNCATE ? (Oid) shape_id :
			get_shape(&shapes, shape_id)->relid;

		CHECK_FOR_INTERRUPTS();
		if (relid == rec->run->relid &&
			psync_sync_wants(rec->sync, relid, change.origin))
			n++;
	}
	return n;
}

/*
 * For reconcile_with(): both relations under one snapshot, no log, no
 * suspects.
 */
static PsyncDifference *
examine_at_once(PsyncReconcile *rec, const char *source, const char *other, int *n)
{
	PsyncRows  *rows[2];
	PsyncDifference *differences;

	Assert(rec->sync == NULL && !rec->side[PSYNC_OTHER].remote);

	PushActiveSnapshot(GetTransactionSnapshot());
	psync_side_send(&rec->side[PSYNC_SOURCE], source, 1 + rec->nkeys + rec->nshown, 1);
	rows[0] = psync_side_collect_here(&rec->side[PSYNC_SOURCE]);
	psync_side_send(&rec->side[PSYNC_OTHER], other, 1 + rec->nkeys + rec->nshown, 1);
	rows[1] = psync_side_collect_here(&rec->side[PSYNC_OTHER]);
	PopActiveSnapshot();
	rec->counts.rows_moved += rows[1]->nrows - 1;
	for (int side = 0; side < 2; side++)
		rec->rows_read[side] = rows[side]->nrows - 1;
	differences = psync_rows_compare(rec, rows[0], rows[1], n);
	if (rec->run->max_wait > 0 && !rec->deciding)
		touch_all(differences, *n);
	return differences;
}

/*
 * What is touched is no verdict.
 */
static void
count_verdicts(PsyncReconcile *rec, const PsyncDifference *differences, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (differences[i].touched)
			continue;
		if (differences[i].target == NULL)
			rec->counts.missing++;
		else if (differences[i].source == NULL)
			rec->counts.unexpected++;
		else
			rec->counts.different++;
	}
}

/*
 * Of a run about recent keys nobody else counts the rows: they are counted
 * when they are decided, since keys that are not are read again.
 */
static void
count_recent(PsyncReconcile *rec, const PsyncDifference *differences, int n)
{
	rec->counts.source_rows += rec->rows_read[PSYNC_SOURCE];
	rec->counts.target_rows += rec->rows_read[PSYNC_OTHER];
	for (int i = 0; i < n; i++)
	{
		if (!differences[i].touched)
			continue;
		rec->counts.source_rows -= differences[i].source != NULL;
		rec->counts.target_rows -= differences[i].target != NULL;
	}
	Assert(rec->counts.source_rows >= 0 && rec->counts.target_rows >= 0);
}

/*
 * Read, compare, and file what differs: as a verdict, or as a suspect.
 */
static void
examine(PsyncReconcile *rec, const char *source, const char *other)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "payment_sync rows",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	PsyncDifference *differences;
	int			n;

	Assert(source != NULL && other != NULL);

	if (rec->sync != NULL)
		differences = examine_with_log(rec, source, other, &n);
	else
		differences = examine_at_once(rec, source, other, &n);
	count_verdicts(rec, differences, n);
	if (rec->run->recent)
		count_recent(rec, differences, n);
	psync_store_differences(rec, differences, n);
	psync_store_suspects(rec, differences, n);
	rec->found += n;
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/*
 * All rows of the cells.
 */
void
psync_examine_cells(PsyncReconcile *rec, List *cells)
{
	Assert(cells != NIL);

	examine(rec, psync_query_rows(rec, PSYNC_SOURCE, cells),
			psync_query_rows(rec, PSYNC_OTHER, cells));
}

/*
 * The rows with these keys, wherever they are.
 */
void
psync_examine_keys(PsyncReconcile *rec, char ***keys, int nkeys)
{
	Assert(nkeys > 0 && nkeys <= PSYNC_READ_KEYS);

	examine(rec, psync_query_keys(rec, PSYNC_SOURCE, keys, nkeys),
			psync_query_keys(rec, PSYNC_OTHER, keys, nkeys));
}

/* ---------------------------------------------------------------- settling */

/*
 * Read each suspect once more.  Those that stay undecided are put back with
 * higher ids, beyond "upto", so that a round ends.
 */
static void
settle_round(PsyncReconcile *rec)
{
	int64		upto = psync_store_last_suspect(rec);

	for (;;)
	{
		MemoryContext old = MemoryContextSwitchTo(rec->work);
		int			n;
		char	 ***keys = psync_store_take_suspects(rec, upto, &n);

		CHECK_FOR_INTERRUPTS();
		if (n > 0)
			psync_examine_keys(rec, keys, n);
		MemoryContextSwitchTo(old);
		MemoryContextReset(rec->work);
		if (n == 0)
			break;
		psync_reconcile_pause(rec);
	}
}

/*
 * Wait, or be told to stop.
 */
void
psync_pause_ms(long ms)
{
	int			rc = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							   ms, psync_wait_event(PSYNC_WAIT_TARGET));

	Assert(ms > 0);

	if (rc & WL_LATCH_SET)
		ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/* Why they are in flight is not to be seen from their number. */
static void
warn_of_lag(const PsyncReconcile *rec)
{
	ereport(WARNING,
			(errcode(ERRCODE_WARNING),
			 errmsg("server \"%s\" lags behind the target of sync \"%s\"",
					rec->run->server != NULL ? rec->run->server : rec->sync->server,
					rec->sync->name),
			 errdetail("What differs cannot be judged: the position that was read there is older than the one that the target has recorded, or is missing.")));
}

/*
 * Decide about suspects, for as long as the run may wait.  What remains is in
 * flight.
 */
void
psync_settle(PsyncReconcile *rec)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													   rec->run->max_wait);
	long		pause = PSYNC_PAUSE_MIN;

	for (;;)
	{
		rec->counts.in_flight = psync_store_count_suspects(rec);
		if (rec->counts.in_flight == 0)
			return;
		psync_progress_update(rec, true);
		settle_round(rec);
		rec->counts.in_flight = psync_store_count_suspects(rec);
		if (rec->counts.in_flight == 0)
			return;
		if (GetCurrentTimestamp() >= deadline)
			break;
		psync_pause_ms(pause);
		pause = Min(2 * pause, PSYNC_PAUSE_MAX);
	}
	if (rec->lags)
		warn_of_lag(rec);
	if (rec->sync == NULL)
	{
		rec->deciding = true;
		settle_round(rec);
		rec->counts.in_flight = psync_store_count_suspects(rec);
		Assert(rec->counts.in_flight == 0);
	}
}

/* ------------------------------------------------------------ recent changes */

/*
 * Another key; they are filed a thousand at a time.
 */
static void
suspect_key(PsyncReconcile *rec, PsyncDifference *keys, int *n, char **key)
{
	if (key == NULL)
		return;
	keys[*n].key = key;
	keys[*n].name = psync_key_name(rec, key);
	keys[(*n)++].touched = true;
	Assert(*n <= PSYNC_READ_KEYS);
	if (*n == PSYNC_READ_KEYS)
	{
		psync_store_suspects(rec, keys, *n);
		*n = 0;
	}
}

/*
 * Instead of the whole table: suspect each key that a change in the log is
 * about.  The log keeps changes until all syncs are done with them, and
 * then some.
 */
void
psync_suspect_recent(PsyncReconcile *rec)
{
	PsyncReader *reader = psync_reader_create(rec->work,
											  psync_snapshot_parse(PSYNC_BEFORE_ALL),
											  NULL);
	PsyncDifference *keys = palloc0(PSYNC_READ_KEYS * sizeof(PsyncDifference));
	List	   *shapes = NIL;
	PsyncChange change;
	uint32		shape_id;
	int			n = 0;
	bool		found = psync_reader_open(reader, NULL, NULL, NULL);
	int			guc_level = psync_text_settings();

	while (found && psync_reader_next(reader, &change, &shape_id))
	{
		CHECK_FOR_INTERRUPTS();
		if (change.op == PSYNC_TRUNCATE)
			continue;
		change.shape = get_shape(&shapes, shape_id);
		if (change.shape->relid != rec->run->relid)
			continue;
		if (change.op != PSYNC_DELETE)
			suspect_key(rec, keys, &n, change_key(rec, &change, false));
		if (change.op == PSYNC_DELETE || change.key_changed)
			suspect_key(rec, keys, &n, change_key(rec, &change, true));
	}
	psync_store_suspects(rec, keys, n);
	psync_text_settings_end(guc_level);
	psync_reader_free(reader);
}
