/*
 * change_rows.c
 *		Changes as rows of a query.
 *
 * Who may see what: rows of a table are shown to who may SELECT all of it; a
 * row security policy that applies to the caller hides the table's changes
 * altogether, since it cannot be evaluated on changes.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rls.h"
#include "utils/syscache.h"
#include "utils/xid8.h"

#include "capture/shape.h"
#include "compat.h"
#include "decode/change_rows.h"
#include "decode/jsonb.h"

/* An entry of rows->shapes; the key first. */
typedef struct PsyncShapeEntry
{
	uint32		id;
	PsyncShape *shape;
} PsyncShapeEntry;

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
							 sizeof(PsyncVisibleTable));
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
	Assert(rows->desc->natts == PSYNC_CHANGE_ROW_NATTS);
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
	PsyncVisibleTable *entry = hash_search(rows->tables, &relid, HASH_FIND, &found);

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
void
psync_change_rows_fill(const PsyncChange *change, Oid relid, Datum position,
					   Datum *values, bool *nulls)
{
	Assert(change->op == PSYNC_TRUNCATE || change->shape != NULL);

	memset(nulls, false, PSYNC_CHANGE_ROW_NATTS * sizeof(bool));
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
	Datum		values[PSYNC_CHANGE_ROW_NATTS];
	bool		nulls[PSYNC_CHANGE_ROW_NATTS];

	psync_change_rows_fill(change, relid, position, values, nulls);
	tuplestore_putvalues(rows->store, rows->desc, values, nulls);
	rows->count++;
	MemoryContextSwitchTo(old);
	MemoryContextReset(rows->row_context);
}
