/*
 * reconcile.c
 *		Running a reconciliation.
 *
 * A run has a row per table in payment_sync.reconciliation, which says what is
 * asked for and how far it has come.  The same code runs it, whoever does:
 *
 *		reconcile()				makes the rows and runs them in one transaction
 *		start_reconciliation()	makes the rows; a background process runs them
 *		run_reconciliation()	runs them in this session, commits each step
 *
 *	state		means							left by
 *	pending		nobody has begun				psync_run_begin
 *	running		some steps may be done			psync_run_finish, cancel, error
 *	done, cancelled, failed						run_reconciliation: failed and
 *												cancelled ones go on
 *
 * Whoever runs a run holds a lock on it, so "running" without such a lock means
 * that its process was killed; the next one goes on at the cursor.
 *
 *	table.c		columns, equality		checksum.c	cells, from many to few rows
 *	side.c		queries on a side		compare.c	rows of two results
 *	query.c		their SQL				recheck.c	what is on its way; verdicts
 *	store.c		our tables				request.c	the SQL functions that run
 *	repair.c	mending, accepting		totals.c	control totals
 *	report.c	HTML					background.c	processes, schedule
 *	record.c	rows as jsonb
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/lock.h"
#include "base/wait_event.h"
#include "compat.h"
#include "deliver/deliver.h"
#include "reconcile/reconcile.h"
#include "sync/admin.h"

/* Advisory locks of users have 1 or 2 here, those of syncs 3 and 4. */
#define PSYNC_LOCK_RECONCILE	5

/* ----------------------------------------------------------------- one table */

/*
 * Keep to the run's rate.  What was compared counts, on the side that has
 * more.
 */
void
psync_reconcile_pause(PsyncReconcile *rec)
{
	int64		rows = Max(rec->counts.source_rows, rec->counts.target_rows);
	TimestampTz due;

	CHECK_FOR_INTERRUPTS();
	if (rec->run->rows_per_second <= 0)
		return;
	due = TimestampTzPlusMilliseconds(rec->started,
									  (rows - rec->rows_before) * 1000 / rec->run->rows_per_second);
	for (;;)
	{
		long		ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), due);

		if (ms <= 0)
			return;
		if (WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, ms,
					  psync_wait_event(PSYNC_WAIT_TARGET)) & WL_LATCH_SET)
			ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * A relation of this database, to be read with the rights of "userid".
 */
static void
set_local_side(PsyncSide *side, Oid relid, Oid userid)
{
	Assert(OidIsValid(userid));

	side->userid = userid;
	side->schema = get_namespace_name(get_rel_namespace(relid));
	side->relname = get_rel_name(relid);
	if (side->relname == NULL || side->schema == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
}

/*
 * Who is compared with whom: names only; what they look like, table.c finds
 * out.
 */
static void
set_sides(PsyncReconcile *rec)
{
	PsyncRun   *run = rec->run;
	PsyncSide  *other = &rec->side[PSYNC_OTHER];
	ListCell   *lc;

	set_local_side(&rec->side[PSYNC_SOURCE], run->relid, run->owner);
	if (rec->sync == NULL)
	{
		set_local_side(other, run->other, run->owner);
		return;
	}
	foreach(lc, rec->sync->tables)
	{
		PsyncTable *table = lfirst(lc);

		if (table->relid != run->relid)
			continue;
		other->schema = pstrdup(table->target_schema);
		other->relname = pstrdup(table->target_name);
	}
	if (other->relname == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("sync \"%s\" has no table \"%s\"", rec->sync->name,
						rec->side[PSYNC_SOURCE].relname)));
}

/*
 * End the transaction, if the run may: what was found so far is kept then, and
 * no lock is held while the next step begins.
 */
static void
next_transaction(PsyncReconcile *rec)
{
	MemoryContext old = CurrentMemoryContext;

	if (rec->next != NULL)
		rec->next();
	MemoryContextSwitchTo(old);
}

/* All steps, then the suspects.  Stops in between if it was cancelled. */
static void
compare_tables(PsyncReconcile *rec)
{
	bool		more = !rec->run->compared;
	bool		cancelled;

	while (more)
	{
		MemoryContext old = MemoryContextSwitchTo(rec->work);

		if (rec->run->recent)
		{
			psync_suspect_recent(rec);
			more = false;
		}
		else
			more = psync_cells_step(rec);
		cancelled = !psync_run_save(rec, more ? rec->after : NULL, !more);
		psync_progress_update(rec, !more);
		MemoryContextSwitchTo(old);
		MemoryContextReset(rec->work);
		if (cancelled)
			return;
		next_transaction(rec);
		psync_reconcile_pause(rec);
	}
	psync_settle(rec);

	/* keys of recent changes are counted when they are decided */
	if (rec->run->recent)
		rec->counts.source_rows += rec->counts.in_flight;
	(void) psync_run_save(rec, NULL, true);
	psync_run_finish(rec);
}

/*
 * One table, from the description of both sides to the verdicts.  Memory that
 * lasts is the reconciliation's.
 */
static void
run_table(PsyncReconcile *rec)
{
	MemoryContext old = MemoryContextSwitchTo(rec->context);

	set_sides(rec);
	if (rec->sync != NULL)
		psync_side_open(rec, rec->run->server);
	psync_table_describe(rec);
	psync_cells_begin(rec);
	psync_run_begin(rec);
	psync_progress_begin(rec);
	next_transaction(rec);
	compare_tables(rec);
	psync_progress_end();
	MemoryContextSwitchTo(old);
}

/* The same, leaving nothing open whatever happens. */
static void
run_table_and_close(PsyncReconcile *rec)
{
	psync_deliver_reading = true;
	PG_TRY();
	{
		run_table(rec);
	}
	PG_CATCH();
	{
		psync_deliver_reading = false;
		psync_side_close(&rec->side[PSYNC_OTHER]);
		PG_RE_THROW();
	}
	PG_END_TRY();
	psync_deliver_reading = false;
	psync_side_close(&rec->side[PSYNC_OTHER]);
}

/*
 * All that a table's run needs, in a context of its own below
 * TopMemoryContext: it outlives the transactions that the run commits.  run is
 * NULL in it if the row is gone.
 */
static PsyncReconcile *
make_reconcile(int64 number, Oid relid, PsyncReconcileNext next)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext,
												  "payment_sync reconciliation",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	PsyncReconcile *rec = palloc0(sizeof(PsyncReconcile));

	rec->context = context;
	rec->work = AllocSetContextCreate(context, "payment_sync reconciliation step",
									  ALLOCSET_DEFAULT_SIZES);
	rec->next = next;
	rec->run = psync_run_load(number, relid, &rec->counts);
	rec->rows_before = Max(rec->counts.source_rows, rec->counts.target_rows);
	rec->started = GetCurrentTimestamp();
	if (rec->run != NULL && rec->run->has_sync)
	{
		rec->sync = psync_sync_load(&rec->run->sync);
		if (rec->sync == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("the sync of run %lld does not exist any more",
							(long long) number)));
	}
	MemoryContextSwitchTo(old);
	return rec;
}

/* Run one table's part of a run, from where it stands. */
static void
reconcile_table(int64 number, Oid relid, PsyncReconcileNext next)
{
	PsyncReconcile *rec = make_reconcile(number, relid, next);

	if (rec->run != NULL && (strcmp(rec->run->state, "pending") == 0 ||
							 strcmp(rec->run->state, "running") == 0))
		run_table_and_close(rec);
	MemoryContextDelete(rec->context);
}

/*
 * Both sides of a table, opened and described, for who wants to look without
 * a run.  "run" says at what; it must last as long as the result.
 */
PsyncReconcile *
psync_look_open(PsyncSync *sync, Oid relid, PsyncRun *run)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "payment_sync reconciliation",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	PsyncReconcile *rec = palloc0(sizeof(PsyncReconcile));

	Assert(sync->server != NULL && OidIsValid(relid));

	rec->context = context;
	rec->run = run;
	rec->sync = sync;
	run->relid = relid;
	run->sync = sync->id;
	run->has_sync = true;
	run->owner = sync->owner;
	set_sides(rec);
	psync_deliver_reading = true;
	PG_TRY();
	{
		psync_side_open(rec, run->server);
		psync_table_describe(rec);
	}
	PG_CATCH();
	{
		psync_look_close(rec);
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	return rec;
}

/* Closes, but leaves the memory to the caller's context. */
void
psync_look_close(PsyncReconcile *rec)
{
	psync_deliver_reading = false;
	psync_side_close(&rec->side[PSYNC_OTHER]);
}

/* -------------------------------------------------------------------- runs */

/*
 * A kind of its own, so that it meets no advisory lock of users or of syncs.
 */
static void
run_lock_tag(LOCKTAG *tag, int64 number)
{
	uint64		hash = hash_bytes_extended((const unsigned char *) &number,
										   sizeof(number), 0);

	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, (uint32) (hash >> 32), (uint32) hash,
						 PSYNC_LOCK_RECONCILE);
}

/* Is no process working on the run? */
bool
psync_run_is_free(int64 run)
{
	LOCKTAG		tag;

	run_lock_tag(&tag, run);
	if (LockAcquire(&tag, ExclusiveLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
		return false;
	LockRelease(&tag, ExclusiveLock, true);
	return true;
}

/* The tables of a run that are not done, in a fixed order. */
static List *
pending_tables(int64 number)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[1] = {INT8OID};
	Datum		values[1];
	List	   *result = NIL;

	values[0] = Int64GetDatum(number);
	(void) psync_owner_execute("SELECT relid FROM payment_sync.reconciliation"
							   " WHERE run = $1 AND state IN ('pending', 'running')"
							   " ORDER BY relid", 1, types, values, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		bool		isnull;

		result = lappend_oid(result,
							 DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i],
															SPI_tuptable->tupdesc,
															1, &isnull)));
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	return result;
}

/*
 * Not inlined, so that nothing of it is kept in registers across the caller's
 * PG_TRY.
 */
static pg_noinline void
run_tables(int64 number, PsyncReconcileNext next, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	List	   *tables = pending_tables(number);
	ListCell   *lc;

	MemoryContextSwitchTo(old);
	foreach(lc, tables)
		reconcile_table(number, lfirst_oid(lc), next);
}

/*
 * Run what is left of a run.  "next" ends the transaction after each step;
 * without it, all happens in the caller's.  If another process is at it, wait
 * for it to end, or let it be.
 */
void
psync_reconcile_run(int64 number, PsyncReconcileNext next, bool wait)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext,
												  "payment_sync run",
												  ALLOCSET_SMALL_SIZES);
	LOCKTAG		tag;

	Assert(number > 0);
	run_lock_tag(&tag, number);
	if (!psync_session_lock(&tag, wait))
	{
		MemoryContextDelete(context);
		return;
	}
	PG_TRY();
	{
		run_tables(number, next, context);
	}
	PG_FINALLY();
	{
		psync_session_unlock(&tag);
		MemoryContextDelete(context);
	}
	PG_END_TRY();
}
