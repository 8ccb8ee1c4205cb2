/*
 * functions.c
 *		capture_table() and release_table(): what can be captured, and by what
 *		key.
 *
 * The definition goes into payment_sync.captured as the extension's owner; the
 * triggers are made as the caller (capture_trigger.c).  The table is locked
 * against writers first: each of them captures from its next statement on, or
 * was finished before.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "base/closest.h"
#include "base/function.h"
#include "capture/captured.h"
#include "compat.h"

PG_FUNCTION_INFO_V1(payment_sync_capture_table);
PG_FUNCTION_INFO_V1(payment_sync_release_table);

/* ------------------------------------------------------ what is refused */

/*
 * "why" is a sentence: the reasons differ by kind, and none
 * is a privilege.
 */
pg_noreturn static void
refuse(Relation rel, const char *what, const char *why)
{
	Assert(what != NULL && why != NULL);

	ereport(ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("cannot capture %s \"%s\"", what, RelationGetRelationName(rel)),
			 errdetail("%s", why)));
}

/*
 * Only what holds rows of its own, and fires row triggers for all of their
 * changes.
 */
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
			refuse(rel, "materialized view", "No trigger fires when it is refreshed.");
			break;
		case RELKIND_FOREIGN_TABLE:
			refuse(rel, "foreign table", "Its rows can change without this server knowing.");
			break;
		default:
			refuse(rel, "relation", "Only tables can be captured.");
	}
}

/*
 * Only tables whose rows outlive the session and a crash, and which are not
 * the system's or ours: a trigger on the log would log its own insertions.
 */
static void
check_place(Relation rel)
{
	Assert(RELKIND_HAS_STORAGE(rel->rd_rel->relkind) || rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE);

	if (rel->rd_rel->relpersistence == RELPERSISTENCE_TEMP)
		refuse(rel, "temporary table", "Its rows vanish at the end of the session.");
	if (IsCatalogRelation(rel) || IsToastRelation(rel) ||
		RelationGetNamespace(rel) == get_namespace_oid("information_schema", true))
		refuse(rel, "system table", "It belongs to the database system.");
	if (getExtensionOfObject(RelationRelationId, RelationGetRelid(rel)) ==
		get_extension_oid("payment_sync", false))
		refuse(rel, "table", "It belongs to the extension payment_sync itself.");
	if (rel->rd_rel->relpersistence == RELPERSISTENCE_UNLOGGED)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("cannot capture unlogged table \"%s\"",
						RelationGetRelationName(rel)),
				 errdetail("Its rows vanish in a crash without a change being made, so no target could be kept equal to it."),
				 errhint("Make it permanent with ALTER TABLE … SET LOGGED.")));
}

/*
 * A row must not be captured twice, as its table's and as its partition's.
 * Locks all partitions as the table itself is locked: triggers are about to be
 * made on each.
 */
static void
check_partitions(Relation rel)
{
	Oid			relid = RelationGetRelid(rel);
	Oid			root = psync_captured_root(relid);
	List	   *members;
	ListCell   *lc;

	if (OidIsValid(root) && root != relid)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("cannot capture partition \"%s\"",
						RelationGetRelationName(rel)),
				 errdetail("Its changes are captured already, as those of partitioned table \"%s\".",
						   get_rel_name(root))));
	if (rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		return;
	members = find_all_inheritors(relid, ShareRowExclusiveLock, NULL);
	foreach(lc, members)
	{
		if (lfirst_oid(lc) != relid)
			psync_partition_check(lfirst_oid(lc), relid);
	}
}

/* ------------------------------------------------------------------- keys */

/*
 * Does the index make its key columns unique and not null, at once?  A
 * deferrable constraint lets two rows share a key in the midst of a
 * transaction, and a partial or expression index says nothing about all rows:
 * with either, the last change of a key would not be the last of a row.
 */
static bool
is_key_index(Relation rel, Relation index)
{
	Form_pg_index form = index->rd_index;

	Assert(index->rd_index->indrelid == RelationGetRelid(rel));

	if (!form->indisunique || !form->indimmediate || !form->indisvalid ||
		form->indisexclusion ||
		!heap_attisnull(index->rd_indextuple, Anum_pg_index_indpred, NULL) ||
		!heap_attisnull(index->rd_indextuple, Anum_pg_index_indexprs, NULL))
		return false;
	for (int i = 0; i < form->indnkeyatts; i++)
	{
		AttrNumber	attnum = form->indkey.values[i];

		if (attnum <= 0 ||
			!psync_att_is_not_null(RelationGetDescr(rel), attnum - 1))
			return false;
	}
	return true;
}

/*
 * The names of the index's key columns, in its order; INCLUDE columns are not
 * part of the key.
 */
static List *
index_columns(Relation rel, Form_pg_index form)
{
	List	   *result = NIL;

	for (int i = 0; i < form->indnkeyatts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel),
											  form->indkey.values[i] - 1);

		Assert(form->indkey.values[i] > 0 && !att->attisdropped);
		result = lappend(result, pstrdup(NameStr(att->attname)));
	}
	return result;
}

/*
 * Are the index's columns exactly those named, in any order?  Neither list has
 * duplicates.
 */
static bool
same_names(List *columns, List *names)
{
	ListCell   *lc;

	if (list_length(columns) != list_length(names))
		return false;
	foreach(lc, columns)
	{
		if (!psync_name_list_has(names, lfirst(lc)))
			return false;
	}
	return true;
}

/*
 * The columns of an index that can be the key: the one with exactly the
 * columns named, or the primary key.  In the index's order, so that batches
 * can be read by it.  NIL if there is none.  "without" is an index that does not
 * count, or InvalidOid.
 */
List *
psync_find_key(Relation rel, List *names, Oid without)
{
	List	   *indexes = RelationGetIndexList(rel);
	ListCell   *lc;
	List	   *result = NIL;

	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);

		if (result == NIL && lfirst_oid(lc) != without && is_key_index(rel, index) &&
			(names != NIL || index->rd_index->indisprimary))
		{
			List	   *columns = index_columns(rel, index->rd_index);

			if (names == NIL || same_names(columns, names))
				result = columns;
		}
		index_close(index, AccessShareLock);
	}
	Assert(names == NIL || list_length(result) == 0 ||
		   list_length(result) == list_length(names));
	return result;
}

/*
 * The key for the table, or an error that says what to do: the most common
 * mistake deserves two hints.
 */
static List *
require_key(Relation rel, List *names)
{
	List	   *key = psync_find_key(rel, names, InvalidOid);

	if (key == NIL && names == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TABLE_DEFINITION),
				 errmsg("table \"%s\" has no usable primary key",
						RelationGetRelationName(rel)),
				 errdetail("Without a key, a row at the target cannot be told from another."),
				 errhint("Add one with ALTER TABLE … ADD PRIMARY KEY, or name the columns of a unique index, all of them NOT NULL, as key.")));
	if (key == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TABLE_DEFINITION),
				 errmsg("columns (%s) of table \"%s\" cannot be the key",
						psync_name_list_text(names), RelationGetRelationName(rel)),
				 errdetail("There is no unique index on exactly these columns which is valid, not deferrable, and without predicate or expressions; or one of them is not NOT NULL."),
				 errhint("Make them so with ALTER TABLE … ALTER COLUMN … SET NOT NULL and CREATE UNIQUE INDEX.")));
	return key;
}

/* ---------------------------------------------------------------- columns */

/*
 * Suggests the column that looks most like the one named.
 */
pg_noreturn static void
refuse_unknown_column(Relation rel, const char *name)
{
	TupleDesc	desc = RelationGetDescr(rel);
	PsyncClosest closest;

	psync_closest_begin(&closest, name);
	for (int i = 0; i < desc->natts; i++)
	{
		if (!TupleDescAttr(desc, i)->attisdropped)
			psync_closest_offer(&closest, NameStr(TupleDescAttr(desc, i)->attname));
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_COLUMN),
			 errmsg("column \"%s\" of table \"%s\" does not exist",
					name, RelationGetRelationName(rel)),
			 closest.name ?
			 errhint("Perhaps you meant the column \"%s\".", closest.name) : 0));
}

/*
 * The column can be captured: it is the user's, and stored.
 */
static void
check_column(Relation rel, const char *name)
{
	AttrNumber	attnum = get_attnum(RelationGetRelid(rel), name);

	if (attnum == InvalidAttrNumber)
		refuse_unknown_column(rel, name);
	if (attnum < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
				 errmsg("cannot capture system column \"%s\"", name)));
	if (psync_att_is_virtual(TupleDescAttr(RelationGetDescr(rel), attnum - 1)))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot capture virtual generated column \"%s\"", name),
				 errdetail("Its values are not stored.")));
}

/* The columns named exist, once each. */
static void
check_columns(Relation rel, List *columns)
{
	List	   *seen = NIL;
	ListCell   *lc;

	foreach(lc, columns)
	{
		check_column(rel, lfirst(lc));
		if (psync_name_list_has(seen, lfirst(lc)))
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_COLUMN),
					 errmsg("column \"%s\" is named twice", (char *) lfirst(lc))));
		seen = lappend(seen, lfirst(lc));
	}
}

/*
 * If columns are named, the key's are among them.  They are not added
 * silently: who leaves out a column may mean that it must not leave the server
 * (P9).
 */
static void
check_key_captured(List *columns, List *key)
{
	ListCell   *lc;

	Assert(key != NIL);

	if (columns == NIL)
		return;
	foreach(lc, key)
	{
		if (!psync_name_list_has(columns, lfirst(lc)))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("key column \"%s\" is not among the columns to capture",
							(char *) lfirst(lc)),
					 errhint("Name all columns of the key (%s), too.",
							 psync_name_list_text(key))));
	}
}

/* -------------------------------------------------------------- functions */

/*
 * The same three words as the CHECK of payment_sync.captured, said with a
 * hint.
 */
static void
check_old_values(const char *value)
{
	if (strcmp(value, "none") != 0 && strcmp(value, "changed") != 0 &&
		strcmp(value, "all") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid old_values \"%s\"", value),
				 errhint("Valid values are \"none\", \"changed\" and \"all\".")));
}

/* NULL means "not given"; an empty array is a mistake. */
static List *
get_names(FunctionCallInfo fcinfo, int n, const char *argument)
{
	List	   *names;

	if (PG_ARGISNULL(n))
		return NIL;
	names = psync_name_list(PG_GETARG_ARRAYTYPE_P(n));
	if (names == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be an empty array", argument)));
	return names;
}

/*
 * Lock the table as CREATE TRIGGER does: writers are waited for and kept out
 * until we commit.  Its owner is looked up before, lest others lock it, and
 * after, since it may have changed while we waited.  The lock is kept when the
 * relation is closed.
 */
static Relation
open_own_table(Oid relid)
{
	Relation	rel;

	psync_check_table_owner(relid);
	LockRelationOid(relid, ShareRowExclusiveLock);
	psync_check_table_owner(relid);
	rel = relation_open(relid, NoLock);
	return rel;
}

/*
 * capture_table(rel regclass, columns name[], key name[], old_values text)
 *
 * Called again it replaces the definition and leaves the triggers; changes
 * that are in the log keep the shape that they were made with.
 */
Datum
payment_sync_capture_table(PG_FUNCTION_ARGS)
{
	List	   *columns = get_names(fcinfo, 1, "columns");
	List	   *key = get_names(fcinfo, 2, "key");
	char	   *old_values;
	Oid			relid;
	Relation	rel;

	psync_require_argument(fcinfo, 0, "rel");
	psync_require_argument(fcinfo, 3, "old_values");
	relid = PG_GETARG_OID(0);
	old_values = text_to_cstring(PG_GETARG_TEXT_PP(3));
	check_old_values(old_values);

	rel = open_own_table(relid);
	check_kind(rel);
	check_place(rel);
	check_partitions(rel);
	check_columns(rel, columns);
	check_columns(rel, key);
	key = require_key(rel, key);
	Assert(list_length(key) <= INDEX_MAX_KEYS);
	check_key_captured(columns, key);
	relation_close(rel, NoLock);	/* ALTER TABLE minds open relations */

	if (!psync_is_captured(relid))
		psync_triggers_clear(relid);
	psync_captured_write(relid, columns, key, old_values);
	psync_triggers_create(relid);
	PG_RETURN_VOID();
}

/* Syncs that deliver the table would silently deliver nothing any more. */
static void
refuse_if_synced(Oid relid)
{
	List	   *syncs =
		psync_owner_names("SELECT s.name FROM payment_sync.sync_table t"
						  " JOIN payment_sync.sync s ON s.id = t.sync"
						  " WHERE t.relid = $1::regclass ORDER BY s.name",
						  OIDOID, ObjectIdGetDatum(relid));

	if (syncs != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("cannot release table \"%s\" because a sync delivers its changes",
						get_rel_name(relid)),
				 errdetail("Syncs with this table: %s.", psync_name_list_text(syncs)),
				 errhint("Take it out with payment_sync.alter_sync(name, drop_tables => …), or drop the sync, first.")));
}

/* A partition may be captured by way of its parent. */
static void
refuse_not_captured(Oid relid)
{
	Oid			root = psync_captured_root(relid);

	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("table \"%s\" is not captured", get_rel_name(relid)),
			 OidIsValid(root) ?
			 errdetail("Its changes are captured as those of partitioned table \"%s\".",
					   get_rel_name(root)) : 0,
			 errhint("View payment_sync.captured_tables lists the captured tables.")));
}

/*
 * release_table(rel regclass)
 *
 * What the log holds of the table stays there, for people to read, until the
 * log is rotated.
 */
Datum
payment_sync_release_table(PG_FUNCTION_ARGS)
{
	Oid			relid;
	Oid			types[1] = {OIDOID};
	Datum		values[1];

	psync_require_argument(fcinfo, 0, "rel");
	relid = PG_GETARG_OID(0);
	relation_close(open_own_table(relid), NoLock);
	if (!psync_is_captured(relid))
		refuse_not_captured(relid);
	refuse_if_synced(relid);

	/* first the definition: it protects the triggers (ddl_drop.c) */
	values[0] = ObjectIdGetDatum(relid);
	(void) psync_owner_execute("DELETE FROM payment_sync.captured WHERE relid = $1::regclass",
							   1, types, values, NULL);
	SPI_finish();
	psync_triggers_drop(relid);
	psync_captured_changed(relid);
	PG_RETURN_VOID();
}
