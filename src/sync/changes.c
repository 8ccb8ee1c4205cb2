/*
 * changes.c
 *		The change log as rows: read_changes(), which the view changes shows,
 *		and sync_lag(), which counts.
 *
 * Who may see what: rows of a table are shown to who may SELECT all of it; a
 * row security policy that applies to the caller hides the table's changes
 * altogether, since it cannot be evaluated on changes.
 */
#include "postgres.h"

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
#include "deliver/event.h"
#include "sync/changes.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(payment_sync_read_changes);
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
 * Add a row; "position" is the value of the first column, which the two
 * functions show differently.  What the decoding allocates is freed with it.
 */
void
psync_change_rows_put(PsyncChangeRows *rows, const PsyncChange *change,
					  Oid relid, Datum position)
{
	MemoryContext old = MemoryContextSwitchTo(rows->row_context);
	Datum		values[NATTS_CHANGE];
	bool		nulls[NATTS_CHANGE] = {false};

	Assert(change->op == PSYNC_TRUNCATE || change->shape != NULL);

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

/*
 * read_changes(): all committed changes that the log holds, in order of
 * position, as far as the caller may see them.  Others are left out without an
 * error: this is a view for people.
 */
Datum
payment_sync_read_changes(PG_FUNCTION_ARGS)
{
	PsyncChangeRows rows;
	PsyncReader *reader;
	PsyncChange change;
	uint32		shape_id;

	psync_change_rows_begin(fcinfo, &rows);
	reader = psync_reader_create(CurrentMemoryContext,
								 psync_snapshot_parse(PSYNC_BEFORE_ALL), NULL);
	if (psync_reader_open(reader, NULL, NULL, NULL))
	{
		while (psync_reader_next(reader, &change, &shape_id))
		{
			Oid			relid = psync_change_rows_resolve(&rows, &change, shape_id);

			CHECK_FOR_INTERRUPTS();
			if (psync_change_rows_visible(&rows, relid))
				psync_change_rows_put(&rows, &change, relid,
									  Int64GetDatum((int64) change.position));
		}
	}
	psync_reader_free(reader);
	return (Datum) 0;
}

/* -------------------------------------------------------------------- lag */

/*
 * Count what concerns the sync.  Exact, and no dearer than delivering without
 * a target: changes are decoded, row images are not.  A sync far behind makes
 * this slow; who watches often should mind the bytes held, which cost three
 * file sizes.
 */
static void
count_pending(PsyncSync *sync, PsyncWindowSize *size)
{
	PsyncReader *reader = psync_reader_create(CurrentMemoryContext,
											  psync_snapshot_parse(sync->position),
											  &sync->hint);
	PsyncPull  *pull = sync->server == NULL ? psync_pull_load(sync, false) : NULL;
	PsyncSnapshot *window = sync->window_upto == NULL ? NULL :
		psync_snapshot_parse(sync->window_upto);
	PsyncChangeRows rows = {0};
	PsyncChange change;
	uint32		shape_id;

	Assert(sync->has_state);

	psync_change_rows_lookups(&rows);
	if (psync_reader_open(reader, NULL, NULL, NULL))
	{
		while (psync_reader_next(reader, &change, &shape_id))
		{
			Oid			relid = psync_change_rows_resolve(&rows, &change, shape_id);

			CHECK_FOR_INTERRUPTS();
			if (!psync_sync_wants(sync, relid, change.origin) ||
				(pull != NULL && psync_pull_acknowledged(pull, &change)) ||
				(window != NULL && change.position <= sync->window_position &&
				 psync_snapshot_sees(window, change.xid) &&
				 (change.position < sync->window_position ||
				  change.xid <= sync->window_xid)))
				continue;
			size->changes++;
			size->bytes += PSYNC_CHANGE_HEADER_SIZE + sizeof(uint32) +
				change.new_size + change.old_size;
			if (size->oldest == 0 || change.at < size->oldest)
				size->oldest = change.at;
		}
	}
	psync_reader_free(reader);
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
		count_pending(sync, &size);

	values[0] = Int64GetDatum((int64) size.changes);
	values[1] = Int64GetDatum((int64) size.bytes);
	values[2] = TimestampTzGetDatum(size.oldest);
	nulls[2] |= size.oldest == 0;
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
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
