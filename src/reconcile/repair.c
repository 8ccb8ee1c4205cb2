/*
 * repair.c
 *		Mending the target, and accepting what is not to be mended.
 *
 * The source is right; if the target is, see repair_source.c.  For a key on which the target differs, a change is
 * logged that says what the source has: an update to the row as it is now,
 * which inserts where there is no such row, or a delete.  It travels as all
 * changes do, so the order of changes to a key and exactly-once hold (P4, P5),
 * and a repair may be repeated.  Its origin names the sync that is to be
 * repaired; other syncs pass over it.
 *
 * Order.  What is logged must lie between the changes before and after it:
 *
 *	a row that is there		is locked before it is read, until we commit: who
 *							changed it before has committed, who changes it
 *							later logs later
 *	no row					cannot be locked.  The table is, against writers
 *							(SHARE ROW EXCLUSIVE), before we look and until we
 *							commit.  Only repairs of unexpected rows need that.
 *
 * A row that was missing or different and is gone from the source by now was
 * deleted by a change that is on its way: nothing needs to be done.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "tcop/dest.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"
#include "utils/typcache.h"

#include "capture/capture.h"
#include "compat.h"
#include "decode/jsonb.h"
#include "reconcile/reconcile.h"
#include "sync/admin.h"

PG_FUNCTION_INFO_V1(payment_sync_repair);
PG_FUNCTION_INFO_V1(payment_sync_accept_discrepancy);

/* Discrepancies handled in one go. */
#define PSYNC_REPAIR_BATCH	1000

/* table, key, kind, operation, row, statement, reason */
#define NATTS_REPAIR		7

/* A discrepancy that is to be repaired. */
typedef struct PsyncBreak
{
	int64		id;
	char	   *kind;
	Datum		key;			/* jsonb */
	char	  **values;			/* of the key's columns, as text */
	bool		handled;
} PsyncBreak;

/* One call of repair(). */
typedef struct PsyncRepair
{
	PsyncSync  *sync;
	bool		dry_run;		/* say what would be done, lock and log nothing */
	Tuplestorestate *store;		/* of the result, and its columns */
	TupleDesc	desc;
	MemoryContext context;		/* of a batch */
	/* the table at hand */
	Oid			relid;
	char	   *from;			/* quoted, with ONLY if it is a plain table */
	const PsyncShape *shape;
	uint32		shape_id;
	PsyncCaptureRel *encoder;	/* columns as the queries return them */
	bool		locked;			/* against writers */
	PsyncBreak *breaks;
	int			nbreaks;
} PsyncRepair;

/* ----------------------------------------------------------------- reading */

static const char load_command[] =
	"SELECT d.id, d.kind, d.key, ARRAY(SELECT d.key ->> k FROM unnest($4) k)"
	" FROM payment_sync.discrepancy d"
	" WHERE d.sync = $1 AND d.relid = $2 AND d.last_run = $3 AND d.state = 'open'"
	" AND d.id > $5 ORDER BY d.id LIMIT $6";

/*
 * The key's columns by the names that discrepancies have them under.
 */
static Datum
key_names(const PsyncRepair *repair)
{
	List	   *names = NIL;

	for (int k = 0; k < repair->shape->nkeys; k++)
		names = lappend(names, unconstify(char *, repair->shape->columns[repair->shape->keys[k]].name));
	return psync_name_array(names);
}

/*
 * One row of load_command, copied to the current memory context.
 */
static void
read_break(PsyncRepair *repair, int i)
{
	PsyncBreak *b = &repair->breaks[i];
	HeapTuple	row = SPI_tuptable->vals[i];
	TupleDesc	desc = SPI_tuptable->tupdesc;
	bool		isnull;
	Datum	   *elems;
	bool	   *nulls;
	int			n;

	Assert(i >= 0 && i < repair->nbreaks);

	b->id = DatumGetInt64(SPI_getbinval(row, desc, 1, &isnull));
	b->kind = SPI_getvalue(row, desc, 2);
	b->key = PointerGetDatum(PG_DETOAST_DATUM_COPY(SPI_getbinval(row, desc, 3, &isnull)));
	b->handled = false;
	deconstruct_array(DatumGetArrayTypeP(SPI_getbinval(row, desc, 4, &isnull)),
					  TEXTOID, -1, false, TYPALIGN_INT, &elems, &nulls, &n);
	Assert(n == repair->shape->nkeys);
	b->values = palloc(n * sizeof(char *));
	for (int k = 0; k < n; k++)
		b->values[k] = nulls[k] ? NULL : TextDatumGetCString(elems[k]);
}

/*
 * The next batch of open discrepancies after "after"; false if none is left.
 * Batches bound the memory and the length of the queries.
 */
static bool
load_breaks(PsyncRepair *repair, int64 run, int64 after)
{
	Oid			types[6] = {UUIDOID, OIDOID, INT8OID, NAMEARRAYOID, INT8OID, INT8OID};
	Datum		values[6];
	MemoryContext old;

	values[0] = UUIDPGetDatum(&repair->sync->id);
	values[1] = ObjectIdGetDatum(repair->relid);
	values[2] = Int64GetDatum(run);
	values[3] = key_names(repair);
	values[4] = Int64GetDatum(after);
	values[5] = Int64GetDatum(PSYNC_REPAIR_BATCH);
	repair->nbreaks = (int) psync_owner_execute(load_command, 6, types, values, NULL);
	old = MemoryContextSwitchTo(repair->context);
	repair->breaks = palloc(Max(1, repair->nbreaks) * sizeof(PsyncBreak));
	for (int i = 0; i < repair->nbreaks; i++)
		read_break(repair, i);
	MemoryContextSwitchTo(old);
	SPI_finish();
	return repair->nbreaks > 0;
}

/* --------------------------------------------------------------- queries */

/*
 * The k-th column of the key.
 */
static const PsyncColumn *
key_column(const PsyncRepair *repair, int k)
{
	Assert(k >= 0 && k < repair->shape->nkeys);

	return &repair->shape->columns[repair->shape->keys[k]];
}

/*
 * The type without a modifier; unlike "character", which is one character long.
 */
static char *
type_name(Oid type)
{
	Assert(OidIsValid(type));
	return format_type_extended(type, -1,
								FORMAT_TYPE_TYPEMOD_GIVEN | FORMAT_TYPE_FORCE_QUALIFY);
}

/*
 * The type's own "=", wherever it lives: an extension's is not in the
 * search_path.
 */
static char *
equality_operator(Oid type)
{
	TypeCacheEntry *entry = lookup_type_cache(type, TYPECACHE_EQ_OPR);
	HeapTuple	tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(entry->eq_opr));
	Form_pg_operator form;
	char	   *result;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("could not identify an equality operator for type %s",
						format_type_be(type))));
	form = (Form_pg_operator) GETSTRUCT(tuple);
	result = psprintf("OPERATOR(%s.%s)",
					  quote_identifier(get_namespace_name(form->oprnamespace)),
					  NameStr(form->oprname));
	ReleaseSysCache(tuple);
	return result;
}

/* "unnest('{0,1}'::int[], '{…}'::type[]) r(i, k0)" of the unhandled breaks */
static int
append_keys(StringInfo buf, const PsyncRepair *repair)
{
	char	  **values = palloc(repair->nbreaks * sizeof(char *));
	int			n = 0;

	appendStringInfoString(buf, "unnest('{");
	for (int i = 0; i < repair->nbreaks; i++)
	{
		if (!repair->breaks[i].handled)
			appendStringInfo(buf, "%s%d", n++ > 0 ? "," : "", i);
	}
	appendStringInfoString(buf, "}'::int[]");
	for (int k = 0; k < repair->shape->nkeys; k++)
	{
		n = 0;
		for (int i = 0; i < repair->nbreaks; i++)
		{
			if (!repair->breaks[i].handled)
				values[n++] = repair->breaks[i].values[k];
		}
		appendStringInfoString(buf, ", ");
		psync_append_array(buf, values, n, 1);
		appendStringInfo(buf, "::%s[]", type_name(key_column(repair, k)->type));
	}
	appendStringInfoString(buf, ") r(_psync_i");
	for (int k = 0; k < repair->shape->nkeys; k++)
		appendStringInfo(buf, ", _psync_k%d", k);
	appendStringInfoChar(buf, ')');
	return n;
}

/*
 * Rows of the source, locked unless nothing is to be done.  The lock is the
 * one that an UPDATE of other columns takes: it keeps writers of the row out,
 * not foreign keys to it.
 */
static char *
rows_query(const PsyncRepair *repair)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	for (int i = 0; i < repair->shape->ncolumns; i++)
		appendStringInfo(&buf, "t.%s, ",
						 quote_identifier(repair->shape->columns[i].current_name));
	appendStringInfoString(&buf, "r._psync_i FROM ");
	(void) append_keys(&buf, repair);
	appendStringInfo(&buf, " JOIN %s t ON ", repair->from);
	for (int k = 0; k < repair->shape->nkeys; k++)
		appendStringInfo(&buf, "%st.%s %s r._psync_k%d", k > 0 ? " AND " : "",
						 quote_identifier(key_column(repair, k)->current_name),
						 equality_operator(key_column(repair, k)->type), k);
	if (!repair->dry_run)
		appendStringInfoString(&buf, " FOR NO KEY UPDATE OF t");
	return buf.data;
}

/*
 * Rows that hold nothing but the keys of what must go; NULL if there are none.
 * They have the shape's columns, so that the same encoder reads them.
 */
static char *
keys_query(const PsyncRepair *repair)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	for (int i = 0; i < repair->shape->ncolumns; i++)
	{
		const PsyncColumn *column = &repair->shape->columns[i];
		int			k = 0;

		while (k < repair->shape->nkeys && repair->shape->keys[k] != i)
			k++;
		if (k < repair->shape->nkeys)
			appendStringInfo(&buf, "r._psync_k%d, ", k);
		else
			appendStringInfo(&buf, "NULL::%s, ", type_name(column->type));
	}
	appendStringInfoString(&buf, "r._psync_i FROM ");
	if (append_keys(&buf, repair) == 0)
		return NULL;
	return buf.data;
}

/* ----------------------------------------------------------------- results */

/*
 * A row of the function's result: what is done about the break.
 */
static void
put_result(PsyncRepair *repair, const PsyncBreak *b, const char *operation, Datum row)
{
	Datum		values[NATTS_REPAIR];
	bool		nulls[NATTS_REPAIR] = {false};

	values[0] = ObjectIdGetDatum(repair->relid);
	values[1] = b->key;
	values[2] = CStringGetTextDatum(b->kind);
	values[3] = CStringGetTextDatum(operation);
	values[4] = row;
	nulls[4] = row == (Datum) 0;
	nulls[5] = true;			/* it is a change, no statement */
	nulls[6] = strcmp(operation, "none") != 0;
	values[6] = nulls[6] ? (Datum) 0 :
		CStringGetTextDatum("the source's row is gone by now, and its delete is on its way");
	tuplestore_putvalues(repair->store, repair->desc, values, nulls);
}

/* ----------------------------------------------------------------- logging */

/* Receives rows of a query; each becomes a change. */
typedef struct PsyncRepairReceiver
{
	DestReceiver pub;
	PsyncRepair *repair;
	bool		deletes;		/* rows hold the keys of rows that must go */
	bool	   *key_columns;
} PsyncRepairReceiver;

/*
 * Which break the row is about: its number stands behind the columns.
 */
static PsyncBreak *
slot_break(const PsyncRepair *repair, TupleTableSlot *slot)
{
	bool		isnull;
	int			i = DatumGetInt32(slot_getattr(slot, repair->shape->ncolumns + 1, &isnull));

	Assert(!isnull && i >= 0 && i < repair->nbreaks);
	return &repair->breaks[i];
}

/*
 * Log one change, or say that it would be.
 */
static bool
receive_row(TupleTableSlot *slot, DestReceiver *self)
{
	PsyncRepairReceiver *receiver = (PsyncRepairReceiver *) self;
	PsyncRepair *repair = receiver->repair;
	PsyncBreak *b = slot_break(repair, slot);
	MemoryContext old = MemoryContextSwitchTo(repair->context);
	StringInfoData image;
	StringInfo	buf;

	/* a key that is there twice is repaired once */
	if (b->handled)
	{
		MemoryContextSwitchTo(old);
		return true;
	}
	b->handled = true;
	initStringInfo(&image);
	if (!receiver->deletes)
		psync_image_append(&image, repair->encoder, slot);
	if (!repair->dry_run)
	{
		buf = psync_log_begin(receiver->deletes ? PSYNC_DELETE : PSYNC_UPDATE,
							  repair->shape_id);
		if (receiver->deletes)
		{
			psync_log_old();
			psync_old_part_append(buf, repair->encoder, slot, receiver->key_columns);
		}
		else
			appendBinaryStringInfo(buf, image.data, image.len);
		psync_log_end(0);
	}
	put_result(repair, b, receiver->deletes ? "delete" : "update",
			   psync_image_to_jsonb(repair->shape, image.data, image.len));
	MemoryContextSwitchTo(old);
	return true;
}

/*
 * The columns are known from the shape.
 */
static void
receive_startup(DestReceiver *self, int operation, TupleDesc desc)
{
}

/*
 * There is nothing to free.
 */
static void
receive_nothing(DestReceiver *self)
{
}

/*
 * Run the query with the owner's rights and log a change for each row.  The
 * origin is set for as long as that takes.
 */
static void
log_rows(PsyncRepair *repair, const char *sql, bool deletes)
{
	PsyncRepairReceiver receiver = {{receive_row, receive_startup, receive_nothing, receive_nothing, DestTuplestore}};
	SPIExecuteOptions options = {0};
	SPIPlanPtr	plan;
	PsyncRole	role;

	receiver.repair = repair;
	receiver.deletes = deletes;
	receiver.key_columns = palloc(repair->shape->ncolumns * sizeof(bool));
	for (int i = 0; i < repair->shape->ncolumns; i++)
		receiver.key_columns[i] = repair->shape->columns[i].key;

	psync_role_become(&role, repair->sync->owner,
					  PSYNC_ROLE_USER_CODE | PSYNC_ROLE_ALL_ROWS | PSYNC_ROLE_TEXT);
	(void) set_config_option("payment_sync.origin",
							 psprintf("%s%s", PSYNC_ORIGIN_REPAIR, repair->sync->id_text),
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	SPI_connect();
	plan = SPI_prepare(sql, 0, NULL);
	if (plan == NULL)
		elog(ERROR, "could not prepare a query for repair: %s",
			 SPI_result_code_string(SPI_result));
	options.read_only = false;
	options.dest = &receiver.pub;
	if (SPI_execute_plan_extended(plan, &options) != SPI_OK_SELECT)
		elog(ERROR, "could not run a query for repair");
	SPI_finish();
	psync_role_return(&role);
}

/* ------------------------------------------------------------------ a batch */

/*
 * No writer may come between our look and our change.  Partitions are locked
 * with their table, lest a row be written to one directly.
 */
static void
lock_out_writers(PsyncRepair *repair)
{
	Assert(!repair->dry_run);

	if (!repair->locked)
		(void) find_all_inheritors(repair->relid, ShareRowExclusiveLock, NULL);
	repair->locked = true;
}

/*
 * Only those need the lock, see the header comment.
 */
static bool
has_unexpected(const PsyncRepair *repair)
{
	for (int i = 0; i < repair->nbreaks; i++)
	{
		if (strcmp(repair->breaks[i].kind, "unexpected") == 0)
			return true;
	}
	return false;
}

/*
 * They are open again if the next run sees them once more, and gone if it does
 * not.
 */
static void
mark_repairing(const PsyncRepair *repair)
{
	Oid			types[2] = {INT8ARRAYOID, NAMEOID};
	Datum		values[2];
	Datum	   *ids = palloc(repair->nbreaks * sizeof(Datum));
	NameData	user;

	Assert(repair->nbreaks > 0 && !repair->dry_run);

	for (int i = 0; i < repair->nbreaks; i++)
		ids[i] = Int64GetDatum(repair->breaks[i].id);
	values[0] = PointerGetDatum(construct_array(ids, repair->nbreaks, INT8OID, sizeof(int64),
												true, TYPALIGN_DOUBLE));
	namestrcpy(&user, GetUserNameFromId(GetUserId(), false));
	values[1] = NameGetDatum(&user);
	(void) psync_owner_execute("UPDATE payment_sync.discrepancy SET state = 'repairing',"
							   " changed_by = $2, changed_at = clock_timestamp()"
							   " WHERE id = ANY ($1) AND state = 'open'",
							   2, types, values, NULL);
	SPI_finish();
}

/*
 * Rows that are there are sent as they are; of what is not there, an
 * unexpected row is deleted, and of the others nothing is left to say.
 */
static void
repair_batch(PsyncRepair *repair)
{
	char	   *sql;

	Assert(repair->nbreaks > 0 && repair->nbreaks <= PSYNC_REPAIR_BATCH);

	if (has_unexpected(repair) && !repair->dry_run)
		lock_out_writers(repair);
	log_rows(repair, rows_query(repair), false);

	/* what is not there any more, and was not there before, is to go */
	for (int i = 0; i < repair->nbreaks; i++)
	{
		PsyncBreak *b = &repair->breaks[i];

		if (b->handled || strcmp(b->kind, "unexpected") == 0)
			continue;
		b->handled = true;
		put_result(repair, b, "none", (Datum) 0);
	}
	sql = keys_query(repair);
	if (sql != NULL)
	{
		if (!repair->dry_run)
			psync_log_advance();
		log_rows(repair, sql, true);
	}
	if (!repair->dry_run)
		mark_repairing(repair);
}

/* ------------------------------------------------------------------ a table */

/*
 * All open discrepancies that the run has seen in this table.
 */
static void
repair_table(PsyncRepair *repair, const PsyncTable *table, int64 run)
{
	Relation	rel = table_open(table->relid, AccessShareLock);
	PsyncCaptureRel *crel = psync_rel_cache_get(rel);
	int64		after = 0;

	if (!crel->captured)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" is not captured", table->source_name)));
	repair->relid = table->relid;
	repair->locked = false;
	repair->from = psprintf("%s%s",
							rel->rd_rel->relkind == RELKIND_RELATION ? "ONLY " : "",
							quote_qualified_identifier(table->source_schema,
													   table->source_name));
	repair->encoder = psync_capture_rel_for_query(rel, CurrentMemoryContext);
	repair->shape = repair->encoder->shape;
	repair->shape_id = repair->dry_run ? 0 : psync_rel_cache_shape(crel);
	while (load_breaks(repair, run, after))
	{
		CHECK_FOR_INTERRUPTS();
		after = repair->breaks[repair->nbreaks - 1].id;
		repair_batch(repair);
		MemoryContextReset(repair->context);
	}
	table_close(rel, NoLock);
}

/* The sync's last run that saw something in this table. */
static int64
latest_run(const PsyncSync *sync, Oid relid)
{
	Oid			types[2] = {UUIDOID, OIDOID};
	Datum		values[2];
	Datum		value;
	bool		isnull;

	values[0] = UUIDPGetDatum(&sync->id);
	values[1] = ObjectIdGetDatum(relid);
	(void) psync_owner_execute("SELECT max(last_run) FROM payment_sync.discrepancy"
							   " WHERE sync = $1 AND relid = $2 AND state = 'open'",
							   2, types, values, NULL);
	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	SPI_finish();
	return isnull ? 0 : DatumGetInt64(value);
}

/*
 * Who is to be mended.
 */
static bool
is_to_source(FunctionCallInfo fcinfo, int arg)
{
	char	   *direction = PG_ARGISNULL(arg) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(arg));

	if (direction == NULL ||
		(strcmp(direction, "target") != 0 && strcmp(direction, "source") != 0))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid direction \"%s\"", direction ? direction : "null"),
				 errhint("Valid values are \"target\" and \"source\".")));
	return strcmp(direction, "source") == 0;
}

/*
 * repair(name, run, rel, dry_run, direction)
 *
 * In the caller's transaction: the changes are delivered when it commits, and
 * the locks are kept until then.
 */
Datum
payment_sync_repair(PG_FUNCTION_ARGS)
{
	PsyncRepair repair = {0};
	int64		run = PG_ARGISNULL(1) ? 0 : PG_GETARG_INT64(1);
	bool		to_source = is_to_source(fcinfo, 4);
	Oid			relid = PG_ARGISNULL(2) ? InvalidOid : PG_GETARG_OID(2);
	ListCell   *lc;

	repair.store = psync_result_begin(fcinfo, &repair.desc);
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"name\" must not be null")));
	repair.sync = psync_reconcile_sync(NameStr(*PG_GETARG_NAME(0)));
	repair.dry_run = !PG_ARGISNULL(3) && PG_GETARG_BOOL(3);
	psync_check_reconcile_transaction("repair");
	repair.context = AllocSetContextCreate(CurrentMemoryContext, "payment_sync repair",
										   ALLOCSET_DEFAULT_SIZES);
	foreach(lc, repair.sync->tables)
	{
		PsyncTable *table = lfirst(lc);
		int64		table_run = run != 0 ? run : latest_run(repair.sync, table->relid);

		if (table_run == 0 || (OidIsValid(relid) && relid != table->relid))
			continue;
		if (to_source)
			psync_repair_source(repair.sync, table, table_run, repair.dry_run,
								repair.store, repair.desc);
		else
			repair_table(&repair, table, table_run);
	}
	return (Datum) 0;
}

/* ---------------------------------------------------------------- accepting */

/*
 * accept_discrepancy(id, reason)
 *
 * A difference that somebody has explained.  It is open again as soon as it is
 * seen with other values.
 */
Datum
payment_sync_accept_discrepancy(PG_FUNCTION_ARGS)
{
	Oid			types[3] = {INT8OID, TEXTOID, NAMEOID};
	Datum		values[3];
	NameData	user;
	Oid			owner = InvalidOid;
	bool		isnull;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("arguments \"id\" and \"reason\" must not be null")));
	namestrcpy(&user, GetUserNameFromId(GetUserId(), false));
	values[0] = PG_GETARG_DATUM(0);
	values[1] = PG_GETARG_DATUM(1);
	values[2] = NameGetDatum(&user);
	if (psync_owner_execute("SELECT owner::oid FROM payment_sync.discrepancy WHERE id = $1"
							" AND state IN ('open', 'accepted') FOR UPDATE",
							1, types, values, NULL) > 0)
		owner = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0],
											   SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	if (!OidIsValid(owner) || !has_privs_of_role(GetUserId(), owner))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("there is no open discrepancy %lld",
						(long long) PG_GETARG_INT64(0)),
				 errhint("See payment_sync.discrepancies.")));
	(void) psync_owner_execute("UPDATE payment_sync.discrepancy SET state = 'accepted',"
							   " reason = $2, changed_by = $3, changed_at = clock_timestamp()"
							   " WHERE id = $1", 3, types, values, NULL);
	SPI_finish();
	PG_RETURN_VOID();
}
