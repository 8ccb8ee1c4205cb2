/*
 * changes.c
 *		The change log as rows: read_changes(), which the view changes shows;
 *		sync_lag() and pending_changes(), which count.
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

#include "capture/shape.h"
#include "compat.h"
#include "decode/jsonb.h"
#include "sync/changes.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(payment_sync_read_changes);
PG_FUNCTION_INFO_V1(payment_sync_pending_changes);
PG_FUNCTION_INFO_V1(payment_sync_sync_lag);
PG_FUNCTION_INFO_V1(payment_sync_worker_pid);

/* position, xid, at, operation, table, key, new, old, origin */
#define NATTS_CHANGE	9

/* A snapshot that sees nothing that a log could hold. */
#define PSYNC_BEFORE_ALL	"3:3:"

/* Entries of rows->shapes and ->tables; keys first. */
typedef struct PsyncShapeEntry
{
	uint32		id;
	PsyncShape *shape;
} PsyncShapeEntry;

typedef struct PsyncTableEntry
{
	Oid			relid;
	bool		visible;
} PsyncTableEntry;

/*
 * A hash table in the current memory context.
 */
static HTAB *
make_hash(const char *name, Size keysize, Size entrysize)
{
	HASHCTL		ctl = {0};

	ctl.keysize = keysize;
	ctl.entrysize = entrysize;
	ctl.hcxt = CurrentMemoryContext;
	return hash_create(name, 32, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/*
 * What is looked up once per shape and per table, not per change.
 */
void
psync_change_rows_lookups(PsyncChangeRows *rows)
{
	rows->shapes = make_hash("payment_sync shapes", sizeof(uint32),
							 sizeof(PsyncShapeEntry));
	rows->tables = make_hash("payment_sync tables", sizeof(Oid),
							 sizeof(PsyncTableEntry));
	rows->row_context = AllocSetContextCreate(CurrentMemoryContext,
											  "payment_sync row",
											  ALLOCSET_DEFAULT_SIZES);
}

/*
 * Prepare to return a set of changes: into a tuplestore, which goes to disk
 * when it is large, in the context that the executor keeps for the query.
 */
void
psync_change_rows_begin(FunctionCallInfo fcinfo, PsyncChangeRows *rows)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext old;

	if (rsinfo == NULL || !IsA(rsinfo, ReturnSetInfo) ||
		(rsinfo->allowedModes & SFRM_Materialize) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("set-valued function called in context that cannot accept a set")));

	memset(rows, 0, sizeof(*rows));
	psync_change_rows_lookups(rows);
	old = MemoryContextSwitchTo(rsinfo->econtext->ecxt_per_query_memory);
	if (get_call_result_type(fcinfo, NULL, &rows->desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	Assert(rows->desc->natts == NATTS_CHANGE);
	rows->desc = CreateTupleDescCopy(rows->desc);
	rows->store = tuplestore_begin_heap(true, false, work_mem);
	MemoryContextSwitchTo(old);
	rsinfo->returnMode = SFRM_Materialize;
	rsinfo->setResult = rows->store;
	rsinfo->setDesc = rows->desc;
}

/*
 * Fill in change->shape, and say which relation the change is about.  Also of
 * relations that are gone: their shapes stay.
 */
Oid
psync_change_rows_resolve(PsyncChangeRows *rows, PsyncChange *change,
						  uint32 shape_id)
{
	PsyncShapeEntry *entry;
	PsyncShape *shape;

	if (change->op == PSYNC_TRUNCATE)
		return (Oid) shape_id;

	entry = hash_search(rows->shapes, &shape_id, HASH_FIND, NULL);
	if (entry == NULL)
	{
		shape = psync_shape_load(shape_id);
		if (shape == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("shape %u of the change log is missing", shape_id)));
		entry = hash_search(rows->shapes, &shape_id, HASH_ENTER, NULL);
		entry->shape = shape;
	}
	Assert(entry->shape->id == shape_id);
	change->shape = entry->shape;
	return entry->shape->relid;
}

/*
 * May the caller see the table's rows, all of them?  Of a table that is gone,
 * nobody but superusers can be known to have read.
 */
static bool
may_read(Oid relid)
{
	Assert(OidIsValid(relid));

	if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)))
		return superuser();
	return pg_class_aclcheck(relid, GetUserId(), ACL_SELECT) == ACLCHECK_OK &&
		check_enable_rls(relid, GetUserId(), true) != RLS_ENABLED;
}

/*
 * May the caller see all changes of the relation?  Looked up once per call of
 * the function.
 */
bool
psync_change_rows_visible(PsyncChangeRows *rows, Oid relid)
{
	bool		found;
	PsyncTableEntry *entry = hash_search(rows->tables, &relid, HASH_FIND, &found);

	if (!found)
	{
		bool		visible = may_read(relid);

		entry = hash_search(rows->tables, &relid, HASH_ENTER, NULL);
		entry->visible = visible;
	}
	return entry->visible;
}

/*
 * (Datum) 0 stands for none: a jsonb is never that.
 */
static void
set_jsonb(Datum *value, bool *isnull, Datum jsonb)
{
	*value = jsonb;
	*isnull = jsonb == (Datum) 0;
}

/*
 * The columns of a row; "position" is the value of the first one, which the two
 * functions show differently.  In the current memory context.
 */
static void
fill_row(const PsyncChange *change, Oid relid, Datum position, Datum *values,
		 bool *nulls)
{
	Assert(change->op == PSYNC_TRUNCATE || change->shape != NULL);

	memset(nulls, false, NATTS_CHANGE * sizeof(bool));
	values[0] = position;
	values[1] = FullTransactionIdGetDatum(FullTransactionIdFromU64(change->xid));
	values[2] = TimestampTzGetDatum(change->at);
	values[3] = CStringGetTextDatum(psync_operation_name(change->op));
	values[4] = ObjectIdGetDatum(relid);
	set_jsonb(&values[5], &nulls[5], psync_key_to_jsonb(change));
	set_jsonb(&values[6], &nulls[6],
			  psync_image_to_jsonb(change->shape, change->new_image,
								   change->new_size));
	set_jsonb(&values[7], &nulls[7],
			  psync_old_to_jsonb(change->shape, change->old_part,
								 change->old_size));
	nulls[8] = change->origin == NULL;
	values[8] = nulls[8] ? (Datum) 0 : CStringGetTextDatum(change->origin);
}

/*
 * Add a row.  What the decoding allocates is freed with it.
 */
void
psync_change_rows_put(PsyncChangeRows *rows, const PsyncChange *change,
					  Oid relid, Datum position)
{
	MemoryContext old = MemoryContextSwitchTo(rows->row_context);
	Datum		values[NATTS_CHANGE];
	bool		nulls[NATTS_CHANGE];

	fill_row(change, relid, position, values, nulls);
	tuplestore_putvalues(rows->store, rows->desc, values, nulls);
	rows->count++;
	MemoryContextSwitchTo(old);
	MemoryContextReset(rows->row_context);
}

/*
 * Does a change of this relation and origin concern the sync?  The same rule
 * as a delivery's (deliver/deliver.c).
 */
bool
psync_sync_wants(const PsyncSync *sync, Oid relid, const char *origin)
{
	ListCell   *lc;

	if (psync_sync_excludes(sync, origin))
		return false;
	foreach(lc, sync->tables)
	{
		if (((PsyncTable *) lfirst(lc))->relid == relid)
			return true;
	}
	return false;
}

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
	Assert(state->rows.desc->natts == NATTS_CHANGE);
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
		Datum		values[NATTS_CHANGE];
		bool		nulls[NATTS_CHANGE];

		fill_row(&change, relid, Int64GetDatum((int64) change.position), values,
				 nulls);
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
	PsyncTableEntry *entry = hash_search(pending->rows.tables, &relid, HASH_ENTER,
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
	pending.window = sync->window_upto == NULL ? NULL :
		psync_snapshot_parse(sync->window_upto);
	psync_change_rows_lookups(&pending.rows);
	position = psync_snapshot_parse(sync->position);
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
 * worker_pid(sync uuid): from shared memory; NULL if no worker is at it.
 */
Datum
payment_sync_worker_pid(PG_FUNCTION_ARGS)
{
	Datum		id = DirectFunctionCall1(uuid_out, PG_GETARG_DATUM(0));
	int			pid = psync_worker_pid(DatumGetCString(id));

	if (pid == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT32(pid);
}
