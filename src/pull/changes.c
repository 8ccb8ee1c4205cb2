/*
 * changes.c
 *		The change log as rows: read_changes(), which the view changes shows;
 *		sync_lag() and pending_changes(), which count; sync_live().
 *
 * Who may see what: rows of a table are shown to who may SELECT all of it; a
 * row security policy that applies to the caller hides the table's changes
 * altogether, since it cannot be evaluated on changes.
 */
#include "postgres.h"

#include <math.h>

#include "access/htup_details.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rls.h"
#include "utils/syscache.h"
#include "utils/uuid.h"
#include "utils/xid8.h"

#include "compat.h"
#include "decode/change_rows.h"
#include "pull/pull.h"
#include "sync/live.h"

PG_FUNCTION_INFO_V1(payment_sync_read_changes);
PG_FUNCTION_INFO_V1(payment_sync_pending_changes);
PG_FUNCTION_INFO_V1(payment_sync_sync_lag);
PG_FUNCTION_INFO_V1(payment_sync_sync_live);

/* What read_changes() keeps from one row to the next. */
typedef struct PsyncReadChanges
{
	PsyncChangeRows rows;
	PsyncReader *reader;
	bool		found;			/* the window is open */
} PsyncReadChanges;

/* In the memory context that lives as long as the call. */
static PsyncReadChanges *
read_changes_begin(FunctionCallInfo fcinfo)
{
	PsyncReadChanges *state = palloc0(sizeof(PsyncReadChanges));

	psync_change_rows_lookups(&state->rows);
	if (get_call_result_type(fcinfo, NULL, &state->rows.desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	Assert(state->rows.desc->natts == PSYNC_CHANGE_ROW_NATTS);
	state->rows.desc = BlessTupleDesc(CreateTupleDescCopy(state->rows.desc));
	state->reader = psync_reader_create(CurrentMemoryContext,
										psync_snapshot_parse(PSYNC_BEFORE_ALL), NULL);
	state->found = psync_reader_open(state->reader, NULL, NULL, NULL);
	return state;
}

/*
 * The next change that the caller may see; false at the end.
 */
static bool
read_changes_next(PsyncReadChanges *state, PsyncChange *change, Oid *relid)
{
	uint32		shape_id;

	while (state->found && psync_reader_next(state->reader, change, &shape_id))
	{
		CHECK_FOR_INTERRUPTS();
		*relid = psync_change_rows_resolve(&state->rows, change, shape_id);
		if (psync_change_rows_visible(&state->rows, *relid))
			return true;
	}
	return false;
}

/*
 * read_changes(): all committed changes that the log holds, in order of
 * position, as far as the caller may see them.  Others are left out without an
 * error: this is a view for people.
 *
 * Row by row, so that who wants to see a few does not have millions decoded:
 * the pages are walked once, to find the order, and the rest is read as it is
 * asked for.
 */
Datum
payment_sync_read_changes(PG_FUNCTION_ARGS)
{
	FuncCallContext *call;
	PsyncReadChanges *state;
	MemoryContext old;
	PsyncChange change;
	Oid			relid;
	bool		more;

	if (SRF_IS_FIRSTCALL())
	{
		call = SRF_FIRSTCALL_INIT();
		old = MemoryContextSwitchTo(call->multi_call_memory_ctx);
		call->user_fctx = read_changes_begin(fcinfo);
		MemoryContextSwitchTo(old);
	}
	call = SRF_PERCALL_SETUP();
	state = call->user_fctx;
	old = MemoryContextSwitchTo(call->multi_call_memory_ctx);
	more = read_changes_next(state, &change, &relid);
	MemoryContextSwitchTo(old);
	if (more)
	{
		Datum		values[PSYNC_CHANGE_ROW_NATTS];
		bool		nulls[PSYNC_CHANGE_ROW_NATTS];

		psync_change_rows_fill(&change, relid, Int64GetDatum((int64) change.position),
							   values, nulls);
		SRF_RETURN_NEXT(call, HeapTupleGetDatum(heap_form_tuple(state->rows.desc,
																values, nulls)));
	}
	psync_reader_free(state->reader);
	SRF_RETURN_DONE(call);
}

/* -------------------------------------------------------------------- lag */

/* Pages that who watches reads at most; what is on fewer is counted exactly. */
#define PSYNC_LAG_PAGES		64

/* What is counted, and for whom. */
typedef struct PsyncPending
{
	PsyncSync  *sync;
	PsyncPull  *pull;			/* of a sync without a server, or NULL */
	PsyncSnapshot *window;		/* at hand, of a target that takes messages */
	PsyncChangeRows rows;
	PsyncWindowSize size;
} PsyncPending;

/*
 * Is the change settled, though the sync's position does not see it?
 */
static bool
is_settled(const PsyncPending *pending, const PsyncChange *change)
{
	const PsyncSync *sync = pending->sync;

	if (pending->pull != NULL && psync_pull_acknowledged(pending->pull, change))
		return true;
	return pending->window != NULL && change->position <= sync->window_position &&
		psync_snapshot_sees(pending->window, change->xid) &&
		(change->position < sync->window_position ||
		 change->xid <= sync->window_xid);
}

/*
 * Is the table one of the sync's?  It may have thousands, so each is looked for
 * once; "visible" says here that it was found.
 */
static bool
has_table(PsyncPending *pending, Oid relid)
{
	bool		found;
	PsyncVisibleTable *entry = hash_search(pending->rows.tables, &relid, HASH_ENTER,
										 &found);

	if (!found)
		entry->visible = psync_sync_wants(pending->sync, relid, NULL);
	return entry->visible;
}

static void
count_change(void *arg, PsyncChange *change, uint32 shape_id)
{
	PsyncPending *pending = arg;
	PsyncWindowSize *size = &pending->size;
	Oid			relid = psync_change_rows_resolve(&pending->rows, change, shape_id);

	if (!has_table(pending, relid) ||
		psync_sync_excludes(pending->sync, change->origin) ||
		is_settled(pending, change))
		return;
	size->changes++;
	size->bytes += PSYNC_CHANGE_HEADER_SIZE + sizeof(uint32) +
		change->new_size + change->old_size;
	if (size->oldest == 0 || change->at < size->oldest)
		size->oldest = change->at;
}

/*
 * Up to where all is settled: as its target has confirmed a moment ago, or else
 * as was saved.
 */
static PsyncSnapshot *
find_position(PsyncPending *pending)
{
	PsyncSync  *sync = pending->sync;
	PsyncLive	live;

	if (psync_live_read(&sync->id, sync->generation, &live))
	{
		if (live.has_window)
			pending->window = psync_live_get_snapshot(&live.window);
		sync->window_position = live.window_position;
		sync->window_xid = live.window_xid;
		return psync_live_get_snapshot(&live.position);
	}
	if (sync->window_upto != NULL)
		pending->window = psync_snapshot_parse(sync->window_upto);
	return psync_snapshot_parse(sync->position);
}

/*
 * Count what is committed and not behind the sync's position, by a sample of
 * max_pages pages if there are more.  An estimate of zero would be a guess, so
 * all pages are read if the sample holds nothing for the sync.
 */
static void
count_pending(PsyncSync *sync, int max_pages, PsyncWindowSize *size)
{
	PsyncPending pending = {0};
	PsyncSnapshot *position;
	double		factor;

	Assert(sync->has_state);

	pending.sync = sync;
	pending.pull = sync->server == NULL ? psync_pull_load(sync, false) : NULL;
	psync_change_rows_lookups(&pending.rows);
	position = find_position(&pending);
	factor = psync_log_sample(position, &sync->hint, max_pages, count_change, &pending);
	if (factor > 1 && pending.size.changes == 0)
		factor = psync_log_sample(position, &sync->hint, PG_INT32_MAX,
								  count_change, &pending);
	*size = pending.size;
	size->changes = (uint64) rint(size->changes * factor);
	size->bytes = (uint64) rint(size->bytes * factor);
}

/*
 * pg_monitor may watch all syncs, others their own.
 */
static bool
may_watch(const PsyncSync *sync)
{
	return has_privs_of_role(GetUserId(), ROLE_PG_MONITOR) ||
		has_privs_of_role(GetUserId(), sync->owner);
}

/*
 * sync_lag(sync uuid): number, bytes and oldest time of the changes that are
 * committed and not behind the sync's saved position.  NULLs if it has none,
 * or if the caller may not know.
 */
Datum
payment_sync_sync_lag(PG_FUNCTION_ARGS)
{
	PsyncSync  *sync = psync_sync_load(PG_GETARG_UUID_P(0));
	PsyncWindowSize size = {0};
	TupleDesc	desc;
	Datum		values[3];
	bool		nulls[3] = {false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (sync == NULL || !sync->has_state || !may_watch(sync))
		memset(nulls, true, sizeof(nulls));
	else
		count_pending(sync, PSYNC_LAG_PAGES, &size);

	values[0] = Int64GetDatum((int64) size.changes);
	values[1] = Int64GetDatum((int64) size.bytes);
	values[2] = TimestampTzGetDatum(size.oldest);
	nulls[2] |= size.oldest == 0;
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

/*
 * pending_changes(name): the same number, of all pages: exact, however long
 * that takes.  NULL if the sync has no position.
 */
Datum
payment_sync_pending_changes(PG_FUNCTION_ARGS)
{
	const char *name = NameStr(*PG_GETARG_NAME(0));
	PsyncSync  *sync = psync_sync_load_by_name(name);
	PsyncWindowSize size;

	if (sync == NULL || !may_watch(sync))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("sync \"%s\" does not exist", name)));
	if (!sync->has_state)
		PG_RETURN_NULL();
	count_pending(sync, PG_INT32_MAX, &size);
	PG_RETURN_INT64((int64) size.changes);
}

/*
 * sync_live(sync uuid, generation int): what its target has confirmed by now,
 * from shared memory; NULLs if the table counts.
 */
Datum
payment_sync_sync_live(PG_FUNCTION_ARGS)
{
	PsyncLive	live;
	TupleDesc	desc;
	Datum		values[6];
	bool		nulls[6] = {false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (!psync_live_read(PG_GETARG_UUID_P(0), PG_GETARG_INT32(1), &live))
	{
		memset(&live, 0, sizeof(live));
		memset(nulls, true, sizeof(nulls));
	}
	values[0] = Int64GetDatum(live.total.windows);
	values[1] = Int64GetDatum(live.total.changes);
	values[2] = Int64GetDatum(live.total.rows_read);
	values[3] = Int64GetDatum(live.total.bytes);
	values[4] = TimestampTzGetDatum(live.delivered_at);
	nulls[4] |= live.delivered_at == 0;
	values[5] = BoolGetDatum(live.standby);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}
