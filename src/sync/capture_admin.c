/*
 * capture_admin.c
 *		capture_table() and release_table().
 *
 * The definition goes into payment_sync.captured as the extension's owner; the
 * triggers are made by ordinary DDL as the caller, who must own the table.
 * Triggers depend on the extension, so DROP EXTENSION takes them along, and
 * are ENABLE ALWAYS (capture/trigger.c says why).
 *
 * A partitioned table's row triggers are cloned to its partitions by
 * PostgreSQL; TRUNCATE triggers are not, so each partition gets its own here,
 * and those attached later by the event trigger (ddl.c).
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/genam.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/dependency.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "compat.h"
#include "sync/admin.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(payment_sync_capture_table);
PG_FUNCTION_INFO_V1(payment_sync_release_table);

/* ------------------------------------------------------ what is refused */

static void
refuse(Relation rel, const char *what, const char *why)
{
	ereport(ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("cannot capture %s \"%s\"", what, RelationGetRelationName(rel)),
			 errdetail("%s", why)));
}

static void
check_kind(Relation rel)
{
	switch (rel->rd_rel->relkind)
	{
		case RELKIND_RELATION:
		case RELKIND_PARTITIONED_TABLE:
			break;
		case RELKIND_VIEW:
			refuse(rel, "view", "A view has no rows of its own; capture the tables it reads.");
			break;
		case RELKIND_MATVIEW:
			refuse(rel, "materialized view", "Triggers do not fire when it is refreshed.");
			break;
		case RELKIND_FOREIGN_TABLE:
			refuse(rel, "foreign table", "Its rows can change without this server knowing.");
			break;
		default:
			refuse(rel, "relation", "Only tables can be captured.");
	}
	if (IsCatalogRelation(rel) || IsToastRelation(rel) ||
		isAnyTempNamespace(RelationGetNamespace(rel)) ||
		RelationGetNamespace(rel) == get_namespace_oid("information_schema", true))
	{
		if (RELATION_IS_OTHER_TEMP(rel) || rel->rd_rel->relpersistence == RELPERSISTENCE_TEMP)
			refuse(rel, "temporary table", "It vanishes at the end of the session.");
		refuse(rel, "system table", "Triggers do not fire on system catalogs.");
	}
	if (rel->rd_rel->relpersistence == RELPERSISTENCE_UNLOGGED)
		refuse(rel, "unlogged table",
			   "Its rows vanish in a crash without a change being made, so no target could be kept equal to it.");
	if (getExtensionOfObject(RelationRelationId, RelationGetRelid(rel)) ==
		get_extension_oid("payment_sync", false))
		refuse(rel, "table", "It belongs to the extension payment_sync itself.");
}

/* Is the relation in payment_sync.captured? */
bool
psync_is_captured(Oid relid)
{
	Oid			types[1] = {OIDOID};
	Datum		values[1];
	uint64		found;

	values[0] = ObjectIdGetDatum(relid);
	found = psync_owner_execute("SELECT FROM payment_sync.captured"
								" WHERE relid = $1::regclass",
								1, types, values, NULL);
	SPI_finish();
	return found > 0;
}

/* A row must not be captured twice, as its table's and as its partition's. */
static void
check_partitions(Relation rel)
{
	ListCell   *lc;

	if (rel->rd_rel->relispartition)
	{
		List	   *ancestors = get_partition_ancestors(RelationGetRelid(rel));

		foreach(lc, ancestors)
			if (psync_is_captured(lfirst_oid(lc)))
				ereport(ERROR,
						(errcode(ERRCODE_WRONG_OBJECT_TYPE),
						 errmsg("cannot capture partition \"%s\"",
								RelationGetRelationName(rel)),
						 errdetail("Its changes are captured as those of partitioned table \"%s\".",
								   get_rel_name(lfirst_oid(lc)))));
	}
	if (rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
	{
		List	   *members = find_all_inheritors(RelationGetRelid(rel),
												  ShareRowExclusiveLock, NULL);

		foreach(lc, members)
			if (lfirst_oid(lc) != RelationGetRelid(rel) &&
				psync_is_captured(lfirst_oid(lc)))
				ereport(ERROR,
						(errcode(ERRCODE_WRONG_OBJECT_TYPE),
						 errmsg("cannot capture partitioned table \"%s\"",
								RelationGetRelationName(rel)),
						 errdetail("Its partition \"%s\" is captured by itself.",
								   get_rel_name(lfirst_oid(lc))),
						 errhint("Release the partition first.")));
	}
}

/* ------------------------------------------------------------------- keys */

static bool
is_key_index(Relation index)
{
	Form_pg_index form = index->rd_index;

	return form->indisunique && form->indimmediate && form->indisvalid &&
		heap_attisnull(index->rd_indextuple, Anum_pg_index_indpred, NULL) &&
		heap_attisnull(index->rd_indextuple, Anum_pg_index_indexprs, NULL);
}

static bool
all_not_null(Relation rel, Form_pg_index form)
{
	for (int i = 0; i < form->indnkeyatts; i++)
		if (!TupleDescAttr(RelationGetDescr(rel), form->indkey.values[i] - 1)->attnotnull)
			return false;
	return true;
}

/* Are the index's key columns exactly these, in any order? */
static bool
index_has_columns(Relation rel, Form_pg_index form, List *names)
{
	if (form->indnkeyatts != list_length(names))
		return false;
	for (int i = 0; i < form->indnkeyatts; i++)
	{
		ListCell   *lc;
		bool		found = false;
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel),
											  form->indkey.values[i] - 1);

		foreach(lc, names)
			found = found || strcmp(lfirst(lc), NameStr(att->attname)) == 0;
		if (!found)
			return false;
	}
	return true;
}

static List *
index_columns(Relation rel, Form_pg_index form)
{
	List	   *result = NIL;

	for (int i = 0; i < form->indnkeyatts; i++)
		result = lappend(result,
						 pstrdup(NameStr(TupleDescAttr(RelationGetDescr(rel),
													   form->indkey.values[i] - 1)->attname)));
	return result;
}

/*
 * The key's column names: those named, if a suitable index has exactly them,
 * or the primary key's.  NIL if there is none.
 */
List *
psync_find_key(Relation rel, List *names)
{
	List	   *indexes = RelationGetIndexList(rel);
	ListCell   *lc;
	List	   *result = NIL;

	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);
		Form_pg_index form = index->rd_index;

		if (result == NIL && is_key_index(index) && all_not_null(rel, form) &&
			(names != NIL ? index_has_columns(rel, form, names) : form->indisprimary))
			result = names != NIL ? names : index_columns(rel, form);
		index_close(index, AccessShareLock);
	}
	return result;
}

static List *
require_key(Relation rel, List *names)
{
	List	   *key = psync_find_key(rel, names);

	if (key == NIL && names == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TABLE_DEFINITION),
				 errmsg("table \"%s\" has no primary key", RelationGetRelationName(rel)),
				 errhint("Add one with ALTER TABLE … ADD PRIMARY KEY, or name the columns of a unique index, all NOT NULL, as key.")));
	if (key == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TABLE_DEFINITION),
				 errmsg("table \"%s\" has no index that makes the named key unique",
						RelationGetRelationName(rel)),
				 errdetail("A key needs a unique, immediate index without predicate or expressions on exactly its columns, all NOT NULL.")));
	return key;
}

/* The named columns exist, can be captured, and include the key. */
static void
check_columns(Relation rel, List *columns, List *key)
{
	ListCell   *lc;

	foreach(lc, columns)
	{
		AttrNumber	attnum = get_attnum(RelationGetRelid(rel), lfirst(lc));

		if (attnum <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of table \"%s\" does not exist",
							(char *) lfirst(lc), RelationGetRelationName(rel))));
		if (psync_att_is_virtual(TupleDescAttr(RelationGetDescr(rel), attnum - 1)))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot capture virtual generated column \"%s\"",
							(char *) lfirst(lc))));
	}
	if (columns == NIL)
		return;
	foreach(lc, key)
	{
		ListCell   *lc2;
		bool		found = false;

		foreach(lc2, columns)
			found = found || strcmp(lfirst(lc), lfirst(lc2)) == 0;
		if (!found)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("key column \"%s\" is not among the columns to capture",
							(char *) lfirst(lc))));
	}
}

/* --------------------------------------------------------------- triggers */

int			psync_own_ddl = 0;

void
psync_run_ddl(const char *format,...)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (;;)
	{
		va_list		args;
		int			needed;

		va_start(args, format);
		needed = appendStringInfoVA(&buf, format, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&buf, needed);
	}
	SPI_connect();
	psync_own_ddl++;
	PG_TRY();
	{
		int			ret = SPI_execute(buf.data, false, 0);

		if (ret != SPI_OK_UTILITY)
			elog(ERROR, "could not execute \"%s\": %s", buf.data,
				 SPI_result_code_string(ret));
	}
	PG_FINALLY();
	{
		psync_own_ddl--;
	}
	PG_END_TRY();
	SPI_finish();
	pfree(buf.data);
}

char *
psync_qualified_name(Oid relid)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
									  get_rel_name(relid));
}

bool
psync_trigger_exists(Oid relid, const char *name)
{
	return OidIsValid(get_trigger_oid(relid, name, true));
}

/* On the table itself or on a partition of it. */
void
psync_create_truncate_trigger(Oid relid)
{
	char	   *name = psync_qualified_name(relid);

	if (!psync_trigger_exists(relid, PSYNC_TRUNCATE_TRIGGER))
		psync_run_ddl("CREATE TRIGGER " PSYNC_TRUNCATE_TRIGGER
					  " BEFORE TRUNCATE ON %s FOR EACH STATEMENT"
					  " EXECUTE FUNCTION payment_sync.capture_truncate()", name);
	psync_run_ddl("ALTER TRIGGER " PSYNC_TRUNCATE_TRIGGER
				  " ON %s DEPENDS ON EXTENSION payment_sync", name);
	psync_run_ddl("ALTER TABLE ONLY %s ENABLE ALWAYS TRIGGER "
				  PSYNC_TRUNCATE_TRIGGER, name);
}

static void
create_triggers(Oid relid)
{
	char	   *name = psync_qualified_name(relid);
	List	   *members;
	ListCell   *lc;

	if (!psync_trigger_exists(relid, PSYNC_ROW_TRIGGER))
		psync_run_ddl("CREATE TRIGGER " PSYNC_ROW_TRIGGER
					  " AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW"
					  " EXECUTE FUNCTION payment_sync.capture_change()", name);
	psync_run_ddl("ALTER TRIGGER " PSYNC_ROW_TRIGGER
				  " ON %s DEPENDS ON EXTENSION payment_sync", name);

	/* a plain table's children are not part of it; a partition is */
	members = get_rel_relkind(relid) == RELKIND_PARTITIONED_TABLE ?
		find_all_inheritors(relid, ShareRowExclusiveLock, NULL) : list_make1_oid(relid);
	foreach(lc, members)
	{
		psync_run_ddl("ALTER TABLE ONLY %s ENABLE ALWAYS TRIGGER " PSYNC_ROW_TRIGGER,
					  psync_qualified_name(lfirst_oid(lc)));
		psync_create_truncate_trigger(lfirst_oid(lc));
	}
}

void
psync_drop_trigger(Oid relid, const char *trigger)
{
	if (psync_trigger_exists(relid, trigger))
		psync_run_ddl("DROP TRIGGER %s ON %s", trigger, psync_qualified_name(relid));
}

/* Writers must look again at what they know of the table and its partitions. */
static void
invalidate_members(Oid relid)
{
	List	   *members = find_all_inheritors(relid, NoLock, NULL);
	ListCell   *lc;

	foreach(lc, members)
		CacheInvalidateRelcacheByRelid(lfirst_oid(lc));
	psync_definition_changed();
}

/* -------------------------------------------------------------- functions */

List *
psync_name_list(ArrayType *array)
{
	Datum	   *elems;
	bool	   *nulls;
	int			n;
	List	   *result = NIL;

	deconstruct_array(array, NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR,
					  &elems, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("name array must not contain nulls")));
		result = lappend(result, pstrdup(NameStr(*DatumGetName(elems[i]))));
	}
	return result;
}

Datum
psync_name_array(List *names)
{
	Datum	   *elems = palloc(Max(list_length(names), 1) * sizeof(Datum));
	int			n = 0;
	ListCell   *lc;

	foreach(lc, names)
	{
		Name		name = palloc0(NAMEDATALEN);

		namestrcpy(name, lfirst(lc));
		elems[n++] = NameGetDatum(name);
	}
	return PointerGetDatum(construct_array(elems, n, NAMEOID, NAMEDATALEN, false,
										   TYPALIGN_CHAR));
}

static void
save_captured(Oid relid, List *columns, List *key, const char *old_values)
{
	Oid			types[4] = {OIDOID, NAMEARRAYOID, NAMEARRAYOID, TEXTOID};
	Datum		values[4];
	char		nulls[5] = "    ";

	values[0] = ObjectIdGetDatum(relid);
	values[1] = columns != NIL ? psync_name_array(columns) : (Datum) 0;
	nulls[1] = columns != NIL ? ' ' : 'n';
	values[2] = psync_name_array(key);
	values[3] = CStringGetTextDatum(old_values);
	(void) psync_owner_execute("INSERT INTO payment_sync.captured"
							   " (relid, columns, key, old_values)"
							   " VALUES ($1::regclass, $2, $3, $4)"
							   " ON CONFLICT (relid) DO UPDATE SET columns = excluded.columns,"
							   " key = excluded.key, old_values = excluded.old_values",
							   4, types, values, nulls);
	SPI_finish();
}

/*
 * capture_table(rel regclass, columns name[], key name[], old_values text)
 */
Datum
payment_sync_capture_table(PG_FUNCTION_ARGS)
{
	Oid			relid;
	List	   *columns = PG_ARGISNULL(1) ? NIL : psync_name_list(PG_GETARG_ARRAYTYPE_P(1));
	List	   *key = PG_ARGISNULL(2) ? NIL : psync_name_list(PG_GETARG_ARRAYTYPE_P(2));
	char	   *old_values;
	Relation	rel;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(3))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("table and old_values must not be null")));
	relid = PG_GETARG_OID(0);
	old_values = text_to_cstring(PG_GETARG_TEXT_PP(3));
	if (strcmp(old_values, "none") != 0 && strcmp(old_values, "changed") != 0 &&
		strcmp(old_values, "all") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid old_values \"%s\"", old_values),
				 errhint("Valid values are \"none\", \"changed\" and \"all\".")));

	/* lock first: what is checked must not change before it is done */
	psync_check_table_owner(relid);
	rel = relation_open(relid, ShareRowExclusiveLock);
	psync_check_table_owner(relid);
	check_kind(rel);
	check_partitions(rel);
	key = require_key(rel, key);
	check_columns(rel, columns, key);

	relation_close(rel, NoLock);	/* ALTER TABLE minds open relations */
	save_captured(relid, columns, key, old_values);
	create_triggers(relid);
	CommandCounterIncrement();
	invalidate_members(relid);
	PG_RETURN_VOID();
}

static void
refuse_if_synced(Oid relid)
{
	Oid			types[1] = {OIDOID};
	Datum		values[1];
	char	   *name = NULL;

	values[0] = ObjectIdGetDatum(relid);
	if (psync_owner_execute("SELECT s.name FROM payment_sync.sync_table t"
							" JOIN payment_sync.sync s ON s.id = t.sync"
							" WHERE t.relid = $1::regclass ORDER BY s.name LIMIT 1",
							1, types, values, NULL) > 0)
		name = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	if (name != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("cannot release table \"%s\"", get_rel_name(relid)),
				 errdetail("Sync \"%s\" delivers its changes.", name),
				 errhint("Use payment_sync.alter_sync(name, drop_tables => …) or payment_sync.drop_sync() first.")));
	SPI_finish();
}

/*
 * release_table(rel regclass)
 */
Datum
payment_sync_release_table(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	Oid			types[1] = {OIDOID};
	Datum		values[1];
	List	   *members;
	ListCell   *lc;

	psync_check_table_owner(relid);
	LockRelationOid(relid, ShareRowExclusiveLock);
	if (!psync_is_captured(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table \"%s\" is not captured", get_rel_name(relid))));
	refuse_if_synced(relid);

	values[0] = ObjectIdGetDatum(relid);
	(void) psync_owner_execute("DELETE FROM payment_sync.captured WHERE relid = $1::regclass",
							   1, types, values, NULL);
	SPI_finish();

	psync_drop_trigger(relid, PSYNC_ROW_TRIGGER);
	psync_drop_trigger(relid, PSYNC_TRUNCATE_TRIGGER);
	if (get_rel_relkind(relid) == RELKIND_PARTITIONED_TABLE)
	{
		members = find_all_inheritors(relid, ShareRowExclusiveLock, NULL);
		foreach(lc, members)
			psync_drop_trigger(lfirst_oid(lc), PSYNC_TRUNCATE_TRIGGER);
	}
	CommandCounterIncrement();
	invalidate_members(relid);
	PG_RETURN_VOID();
}
