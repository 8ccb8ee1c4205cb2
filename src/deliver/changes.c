/*
 * changes.c
 *		The change log as rows: read_changes(), fetch_changes(), ack_changes().
 *
 * fetch_changes() serves pull syncs.  A window is opened once and stored
 * (pull_upto); its changes are returned in order, those after pull_position
 * only, so a fetch that is repeated, also after a crash, returns the same
 * changes until they are acknowledged.  ack_changes() moves pull_position in
 * the caller's own transaction: what the application does with the changes and
 * their acknowledgement commit together (P5).
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/rls.h"
#include "utils/syscache.h"
#include "utils/uuid.h"
#include "utils/xid8.h"

#include "capture/shape.h"
#include "compat.h"
#include "deliver/event.h"
#include "sync/sync.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(payment_sync_read_changes);
PG_FUNCTION_INFO_V1(payment_sync_fetch_changes);
PG_FUNCTION_INFO_V1(payment_sync_ack_changes);
PG_FUNCTION_INFO_V1(payment_sync_sync_lag);
PG_FUNCTION_INFO_V1(payment_sync_log_size);
PG_FUNCTION_INFO_V1(payment_sync_worker_pid);

#define NATTS_CHANGE	9

/* What is looked up once per shape or table while changes are returned. */
typedef struct PsyncShapeInfo
{
	uint32		id;				/* hash key */
	PsyncShape *shape;
} PsyncShapeInfo;

typedef struct PsyncRowSource
{
	ReturnSetInfo *rsinfo;
	Tuplestorestate *store;
	TupleDesc	desc;
	HTAB	   *shapes;
	List	   *visible;		/* of Oid: tables the caller may read */
	List	   *hidden;
	MemoryContext row_context;
} PsyncRowSource;

static void
open_rows(FunctionCallInfo fcinfo, PsyncRowSource *source)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	HASHCTL		ctl = {0};
	MemoryContext old;

	if (rsinfo == NULL || !IsA(rsinfo, ReturnSetInfo) ||
		(rsinfo->allowedModes & SFRM_Materialize) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("set-valued function called in context that cannot accept a set")));

	memset(source, 0, sizeof(*source));
	source->rsinfo = rsinfo;
	old = MemoryContextSwitchTo(rsinfo->econtext->ecxt_per_query_memory);
	if (get_call_result_type(fcinfo, NULL, &source->desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	source->desc = CreateTupleDescCopy(source->desc);
	source->store = tuplestore_begin_heap(true, false, work_mem);
	MemoryContextSwitchTo(old);
	rsinfo->returnMode = SFRM_Materialize;
	rsinfo->setResult = source->store;
	rsinfo->setDesc = source->desc;

	ctl.keysize = sizeof(uint32);
	ctl.entrysize = sizeof(PsyncShapeInfo);
	ctl.hcxt = CurrentMemoryContext;
	source->shapes = hash_create("payment_sync shapes", 32, &ctl,
								 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	source->row_context = AllocSetContextCreate(CurrentMemoryContext,
												"payment_sync row",
												ALLOCSET_DEFAULT_SIZES);
}

static const PsyncShape *
get_shape(PsyncRowSource *source, uint32 id)
{
	bool		found;
	PsyncShapeInfo *info = hash_search(source->shapes, &id, HASH_ENTER, &found);

	if (!found)
	{
		info->shape = NULL;
		info->shape = psync_shape_load(id);
	}
	if (info->shape == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("shape %u of the change log is missing", id)));
	return info->shape;
}

/*
 * May the caller read all of the table?  A row security policy that applies
 * to the caller hides the table's changes altogether.
 */
static bool
table_visible(PsyncRowSource *source, Oid relid)
{
	bool		visible;

	if (list_member_oid(source->visible, relid))
		return true;
	if (list_member_oid(source->hidden, relid))
		return false;
	if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)))
		visible = superuser();
	else
		visible = pg_class_aclcheck(relid, GetUserId(), ACL_SELECT) == ACLCHECK_OK &&
			check_enable_rls(relid, GetUserId(), true) != RLS_ENABLED;
	if (visible)
		source->visible = lappend_oid(source->visible, relid);
	else
		source->hidden = lappend_oid(source->hidden, relid);
	return visible;
}

static void
set_jsonb(Datum *value, bool *isnull, Datum jsonb)
{
	*value = jsonb;
	*isnull = jsonb == (Datum) 0;
}

/* xid, position, at, operation, table, key, new, old, origin */
static void
put_change(PsyncRowSource *source, const PsyncChange *change, Oid relid)
{
	Datum		values[NATTS_CHANGE];
	bool		nulls[NATTS_CHANGE] = {false};
	const PsyncShape *shape = change->shape;

	values[0] = FullTransactionIdGetDatum(FullTransactionIdFromU64(change->xid));
	values[1] = Int64GetDatum((int64) change->position);
	values[2] = TimestampTzGetDatum(change->at);
	values[3] = CStringGetTextDatum(psync_operation_name(change->op));
	values[4] = ObjectIdGetDatum(relid);
	set_jsonb(&values[5], &nulls[5], psync_key_to_jsonb(change));
	set_jsonb(&values[6], &nulls[6],
			  psync_image_to_jsonb(shape, change->new_image, change->new_size));
	set_jsonb(&values[7], &nulls[7],
			  psync_old_to_jsonb(shape, change->old_part, change->old_size));
	nulls[8] = change->origin == NULL;
	values[8] = nulls[8] ? (Datum) 0 : CStringGetTextDatum(change->origin);
	tuplestore_putvalues(source->store, source->desc, values, nulls);
}

/* Return the change if the caller may see it. */
static bool
return_change(PsyncRowSource *source, PsyncChange *change, uint32 shape_id)
{
	Oid			relid = shape_id;
	MemoryContext old;

	if (change->op != PSYNC_TRUNCATE)
	{
		change->shape = get_shape(source, shape_id);
		relid = change->shape->relid;
	}
	if (!table_visible(source, relid))
		return false;
	old = MemoryContextSwitchTo(source->row_context);
	put_change(source, change, relid);
	MemoryContextSwitchTo(old);
	MemoryContextReset(source->row_context);
	return true;
}

/*
 * read_changes(): all committed changes the log holds, in order.
 */
Datum
payment_sync_read_changes(PG_FUNCTION_ARGS)
{
	PsyncRowSource source;
	PsyncReader *reader;
	PsyncChange change;
	uint32		shape_id;

	open_rows(fcinfo, &source);
	reader = psync_reader_create(CurrentMemoryContext,
								 psync_snapshot_parse("3:3:"), NULL);
	if (psync_reader_open(reader, NULL, NULL, NULL))
	{
		while (psync_reader_next(reader, &change, &shape_id))
		{
			CHECK_FOR_INTERRUPTS();
			(void) return_change(&source, &change, shape_id);
		}
	}
	psync_reader_free(reader);
	return (Datum) 0;
}

/*
 * sync_lag(sync uuid): changes, bytes and oldest time of what is committed
 * and not yet behind the sync's saved position.  Counts changes of all
 * tables; a sync's position passes those of others within a second.
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
	if (sync == NULL || !sync->has_state)
		memset(nulls, true, sizeof(nulls));
	else
	{
		PsyncReader *reader = psync_reader_create(CurrentMemoryContext,
												  psync_snapshot_parse(sync->position),
												  &sync->hint);

		(void) psync_reader_open(reader, &size, NULL, NULL);
		psync_reader_free(reader);
	}
	values[0] = Int64GetDatum((int64) size.changes);
	values[1] = Int64GetDatum((int64) size.bytes);
	values[2] = TimestampTzGetDatum(size.oldest);
	nulls[2] |= size.oldest == 0;
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

Datum
payment_sync_log_size(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(psync_log_size());
}

/* worker_pid(sync uuid) */
Datum
payment_sync_worker_pid(PG_FUNCTION_ARGS)
{
	char	   *id = DatumGetCString(DirectFunctionCall1(uuid_out,
														 PG_GETARG_DATUM(0)));
	int			pid = psync_worker_pid(id);

	if (pid == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT32(pid);
}

/* ------------------------------------------------------------------- pull */

/* The pull sync's state row, locked. */
typedef struct PsyncPullState
{
	PsyncSync  *sync;
	PsyncSnapshot *upto;		/* NULL: no window is open */
	uint64		position;		/* acknowledged up to here within it */
} PsyncPullState;

static void
lock_pull_state(const char *name, PsyncPullState *state)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[1] = {UUIDOID};
	Datum		values[1];
	bool		isnull;
	char	   *upto;

	state->upto = NULL;
	state->sync = psync_sync_load_by_name(name);
	if (state->sync == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("sync \"%s\" does not exist", name)));
	psync_check_sync_owner(state->sync);
	if (state->sync->server != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("sync \"%s\" has a target", name),
				 errdetail("Its changes are delivered; only those of syncs without a server can be fetched.")));

	values[0] = UUIDPGetDatum(&state->sync->id);
	if (psync_owner_execute("SELECT position::text, pull_upto::text, pull_position"
							" FROM payment_sync.sync_state"
							" WHERE sync = $1 AND NOT released FOR UPDATE",
							1, types, values, NULL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("sync \"%s\" has no position", name),
				 errhint("Start it with payment_sync.enable_sync(name, start => 'now').")));
	state->sync->position =
		MemoryContextStrdup(context, SPI_getvalue(SPI_tuptable->vals[0],
												  SPI_tuptable->tupdesc, 1));
	upto = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2);
	state->position = (uint64) DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
														   SPI_tuptable->tupdesc, 3,
														   &isnull));
	if (upto != NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		state->upto = psync_snapshot_parse(upto);
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	MemoryContextSwitchTo(context);
}

static void
save_pull_state(PsyncPullState *state, const char *command, const char *text,
				uint64 position)
{
	Oid			types[3] = {UUIDOID, TEXTOID, INT8OID};
	Datum		values[3];

	values[0] = UUIDPGetDatum(&state->sync->id);
	values[1] = CStringGetTextDatum(text);
	values[2] = Int64GetDatum((int64) position);
	(void) psync_owner_execute(command, 3, types, values, NULL);
	SPI_finish();
}

static bool
concerns_sync(PsyncRowSource *source, const PsyncSync *sync,
			  const PsyncChange *change, uint32 shape_id)
{
	Oid			relid = shape_id;
	ListCell   *lc;

	if (change->op != PSYNC_TRUNCATE)
		relid = get_shape(source, shape_id)->relid;
	if (change->origin != NULL)
	{
		foreach(lc, sync->exclude_origins)
		{
			if (strcmp(lfirst(lc), "*") == 0 ||
				strcmp(lfirst(lc), change->origin) == 0)
				return false;
		}
	}
	foreach(lc, sync->tables)
	{
		if (((PsyncTable *) lfirst(lc))->relid == relid)
			return true;
	}
	return false;
}

/*
 * Return the next changes of the open window, or of a new one.  Changes of
 * different transactions may share a position; they are not parted, so that
 * acknowledging a position leaves no doubt.
 */
static int
fetch_window(PsyncRowSource *source, PsyncPullState *state, PsyncReader *reader,
			 int max_changes)
{
	PsyncChange change;
	uint32		shape_id;
	uint64		last = 0;
	int			returned = 0;

	while (psync_reader_next(reader, &change, &shape_id))
	{
		CHECK_FOR_INTERRUPTS();
		if (change.position <= state->position ||
			!concerns_sync(source, state->sync, &change, shape_id))
			continue;
		if (returned >= max_changes && change.position != last)
			break;
		last = change.position;
		if (!return_change(source, &change, shape_id))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("permission denied to read all changes of sync \"%s\"",
							state->sync->name),
					 errhint("SELECT on its tables is needed, and no row security policy may apply.")));
		returned++;
	}
	return returned;
}

/*
 * One round: true if changes were returned or there is nothing more, false if
 * a window was finished and the next one is to be looked at.
 */
static bool
fetch_round(PsyncRowSource *source, PsyncPullState *state, int max_changes)
{
	PsyncReader *reader = psync_reader_create(CurrentMemoryContext,
											  psync_snapshot_parse(state->sync->position),
											  &state->sync->hint);
	bool		finished = state->upto != NULL;
	const PsyncSnapshot *done;
	int			returned = 0;

	if (psync_reader_open_upto(reader, state->upto))
		returned = fetch_window(source, state, reader, max_changes);

	done = psync_reader_upto(reader);
	if (done == NULL)
		done = psync_reader_after(reader);
	if (returned == 0)
		save_pull_state(state, "UPDATE payment_sync.sync_state SET"
						" position = $2::pg_snapshot, pull_upto = NULL,"
						" pull_position = 0 WHERE sync = $1 AND $3 >= 0",
						psync_snapshot_text(done), 0);
	else if (state->upto == NULL)
		save_pull_state(state, "UPDATE payment_sync.sync_state SET"
						" pull_upto = $2::pg_snapshot, pull_position = 0"
						" WHERE sync = $1 AND $3 >= 0",
						psync_snapshot_text(done), 0);
	psync_reader_free(reader);
	return returned > 0 || !finished;
}

/*
 * fetch_changes(name, max_changes): the next changes of a pull sync.
 */
Datum
payment_sync_fetch_changes(PG_FUNCTION_ARGS)
{
	int32		max_changes = PG_GETARG_INT32(1);
	PsyncPullState state = {0};
	PsyncRowSource source;

	if (max_changes < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_changes must be at least 1")));
	open_rows(fcinfo, &source);
	lock_pull_state(NameStr(*PG_GETARG_NAME(0)), &state);
	while (!fetch_round(&source, &state, max_changes))
		lock_pull_state(NameStr(*PG_GETARG_NAME(0)), &state);
	return (Datum) 0;
}

/*
 * ack_changes(name, position): changes up to this position, as returned by
 * the last fetch, are dealt with.
 */
Datum
payment_sync_ack_changes(PG_FUNCTION_ARGS)
{
	int64		position = PG_GETARG_INT64(1);
	PsyncPullState state = {0};

	lock_pull_state(NameStr(*PG_GETARG_NAME(0)), &state);
	if (state.upto == NULL || position < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("position " INT64_FORMAT " was not returned by fetch_changes()",
						position),
				 errhint("Acknowledge the position of a change that was fetched.")));
	if ((uint64) position > state.position)
		save_pull_state(&state, "UPDATE payment_sync.sync_state SET"
						" pull_position = $3, last_success = clock_timestamp()"
						" WHERE sync = $1 AND $2 IS NOT NULL", "",
						(uint64) position);
	PG_RETURN_VOID();
}
