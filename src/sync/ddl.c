/*
 * ddl.c
 *		Event triggers: keeping the definitions true when tables change.
 *
 * They run for every DDL command of the database, as whoever runs it, so the
 * first thing each does is to look whether a captured table is concerned.
 * During a restore no table is captured yet when its definition is made, so
 * they do nothing then; in binary-upgrade mode they do nothing at all.
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/event_trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "compat.h"
#include "sync/admin.h"

PG_FUNCTION_INFO_V1(payment_sync_on_ddl_command_end);
PG_FUNCTION_INFO_V1(payment_sync_on_sql_drop);

/* An object that the command has touched. */
typedef struct PsyncDdlObject
{
	Oid			objid;
	int32		objsubid;
	char	   *tag;
	char	   *type;
} PsyncDdlObject;

static bool
inert(FunctionCallInfo fcinfo)
{
	if (!CALLED_AS_EVENT_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_EVENT_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function must be called as an event trigger")));
	return psync_own_ddl > 0 || IsBinaryUpgrade || !psync_extension_present() ||
		!OidIsValid(get_relname_relid("batch", get_namespace_oid(PSYNC_SCHEMA, true)));
}

static List *
ddl_objects(void)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *result = NIL;
	int			ret;

	SPI_connect();
	ret = SPI_execute("SELECT objid, objsubid, command_tag, object_type"
					  " FROM pg_catalog.pg_event_trigger_ddl_commands()"
					  " WHERE object_type IN ('table', 'table column')",
					  true, 0);
	if (ret != SPI_OK_SELECT)
		elog(ERROR, "could not list DDL commands: %s", SPI_result_code_string(ret));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		MemoryContext old = MemoryContextSwitchTo(context);
		PsyncDdlObject *object = palloc(sizeof(PsyncDdlObject));
		bool		isnull;

		object->objid = DatumGetObjectId(SPI_getbinval(row, desc, 1, &isnull));
		object->objsubid = DatumGetInt32(SPI_getbinval(row, desc, 2, &isnull));
		object->tag = SPI_getvalue(row, desc, 3);
		object->type = SPI_getvalue(row, desc, 4);
		result = lappend(result, object);
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	return result;
}

/* The captured table that the relation is or belongs to, or InvalidOid. */
static Oid
captured_root(Oid relid)
{
	List	   *ancestors;
	ListCell   *lc;

	if (psync_is_captured(relid))
		return relid;
	if (!get_rel_relispartition(relid))
		return InvalidOid;
	ancestors = get_partition_ancestors(relid);
	foreach(lc, ancestors)
	{
		if (psync_is_captured(lfirst_oid(lc)))
			return lfirst_oid(lc);
	}
	return InvalidOid;
}

/* -------------------------------------------------------- column changes */

static void
read_definition(Oid relid, List **columns, List **key)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[1] = {OIDOID};
	Datum		values[1];
	bool		isnull;

	*columns = *key = NIL;
	values[0] = ObjectIdGetDatum(relid);
	if (psync_owner_execute("SELECT columns, key FROM payment_sync.captured"
							" WHERE relid = $1::regclass", 1, types, values, NULL) > 0)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		MemoryContext old = MemoryContextSwitchTo(context);
		Datum		value = SPI_getbinval(row, desc, 1, &isnull);

		if (!isnull)
			*columns = psync_name_list(DatumGetArrayTypePCopy(value));
		value = SPI_getbinval(row, desc, 2, &isnull);
		*key = psync_name_list(DatumGetArrayTypePCopy(value));
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
}

static void
write_definition(Oid relid, List *columns, List *key)
{
	Oid			types[3] = {OIDOID, NAMEARRAYOID, NAMEARRAYOID};
	Datum		values[3];
	char		nulls[4] = "   ";

	values[0] = ObjectIdGetDatum(relid);
	values[1] = columns != NIL ? psync_name_array(columns) : (Datum) 0;
	nulls[1] = columns != NIL ? ' ' : 'n';
	values[2] = psync_name_array(key);
	(void) psync_owner_execute("UPDATE payment_sync.captured SET columns = $2, key = $3"
							   " WHERE relid = $1::regclass", 3, types, values, nulls);
	SPI_finish();
	CacheInvalidateRelcacheByRelid(relid);
	psync_definition_changed();
}

/*
 * One command renames one column, so a name that is gone is the one that this
 * column had.
 */
static bool
replace_missing(Oid relid, List *names, const char *now)
{
	ListCell   *lc;
	bool		replaced = false;

	foreach(lc, names)
	{
		if (get_attnum(relid, lfirst(lc)) == InvalidAttrNumber)
		{
			lfirst(lc) = pstrdup(now);
			replaced = true;
		}
	}
	return replaced;
}

static void
column_renamed(Oid relid, AttrNumber attnum)
{
	List	   *columns;
	List	   *key;
	char	   *now = get_attname(relid, attnum, true);
	bool		replaced;

	if (now == NULL)
		return;
	read_definition(relid, &columns, &key);
	replaced = replace_missing(relid, columns, now);
	replaced |= replace_missing(relid, key, now);
	if (replaced)
		write_definition(relid, columns, key);
}

/*
 * After ALTER TABLE or DROP INDEX: named columns that were dropped are no
 * longer captured; the key must stay.
 */
static void
table_altered(Oid relid)
{
	Relation	rel = try_relation_open(relid, AccessShareLock);
	List	   *columns;
	List	   *key;
	List	   *kept = NIL;
	ListCell   *lc;

	if (rel == NULL)
		return;
	if (rel->rd_rel->relpersistence == RELPERSISTENCE_UNLOGGED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot make captured table \"%s\" unlogged",
						RelationGetRelationName(rel)),
				 errdetail("Its rows would vanish in a crash without a change being made."),
				 errhint("Run payment_sync.release_table() first.")));
	read_definition(relid, &columns, &key);
	if (key != NIL && psync_find_key(rel, key) == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot take away the key of captured table \"%s\"",
						RelationGetRelationName(rel)),
				 errhint("Name another key with payment_sync.capture_table(), or run payment_sync.release_table() first.")));
	foreach(lc, columns)
		if (get_attnum(relid, lfirst(lc)) != InvalidAttrNumber)
			kept = lappend(kept, lfirst(lc));
	if (list_length(kept) < list_length(columns))
		write_definition(relid, kept, key);
	relation_close(rel, AccessShareLock);
}

/* ------------------------------------------------------------- partitions */

/* A partition of a captured table that came into being or was attached. */
static void
partition_added(Oid relid, Oid root)
{
	List	   *members = find_all_inheritors(relid, ShareRowExclusiveLock, NULL);
	ListCell   *lc;

	foreach(lc, members)
	{
		Oid			member = lfirst_oid(lc);

		if (psync_is_captured(member))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("cannot attach captured table \"%s\"", get_rel_name(member)),
					 errdetail("Its changes would be captured as those of \"%s\".",
							   get_rel_name(root)),
					 errhint("Run payment_sync.release_table() first.")));
		if (psync_trigger_exists(member, PSYNC_TRUNCATE_TRIGGER))
			continue;
		if (psync_trigger_exists(member, PSYNC_ROW_TRIGGER))
			psync_run_ddl("ALTER TABLE ONLY %s ENABLE ALWAYS TRIGGER " PSYNC_ROW_TRIGGER,
						  psync_qualified_name(member));
		psync_create_truncate_trigger(member);
		CacheInvalidateRelcacheByRelid(member);
	}
}

static bool
partition_lacks_trigger(Oid relid)
{
	return get_rel_relispartition(relid) &&
		!psync_trigger_exists(relid, PSYNC_TRUNCATE_TRIGGER);
}

/* A table that carries our TRUNCATE trigger but belongs to no captured one. */
static void
partition_removed(Oid relid)
{
	List	   *members = find_all_inheritors(relid, ShareRowExclusiveLock, NULL);
	ListCell   *lc;

	foreach(lc, members)
	{
		psync_drop_trigger(lfirst_oid(lc), PSYNC_TRUNCATE_TRIGGER);
		CacheInvalidateRelcacheByRelid(lfirst_oid(lc));
	}
}

static void
warn_not_logged(const char *what, Oid relid)
{
	ereport(WARNING,
			(errcode(ERRCODE_WARNING),
			 errmsg("rows of partition \"%s\" were %s without being logged",
					get_rel_name(relid), what),
			 errhint("Run payment_sync.batch_sync(name, rel, mirror => true) for each sync of the table, unless the target does the same.")));
}

/* Partitions of the captured table that lack its TRUNCATE trigger. */
static void
check_members(Oid root, bool attached)
{
	List	   *members = find_all_inheritors(root, NoLock, NULL);
	ListCell   *lc;

	foreach(lc, members)
	{
		if (lfirst_oid(lc) == root || !partition_lacks_trigger(lfirst_oid(lc)))
			continue;
		partition_added(lfirst_oid(lc), root);
		if (attached)
			warn_not_logged("attached", lfirst_oid(lc));
	}
}

/* Tables that were partitions of a captured one and are no more. */
static void
check_detached(void)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *relids = NIL;
	ListCell   *lc;

	(void) psync_owner_execute("SELECT t.tgrelid FROM pg_trigger t"
							   " JOIN pg_class c ON c.oid = t.tgrelid"
							   " WHERE t.tgname = '" PSYNC_TRUNCATE_TRIGGER "'"
							   " AND NOT c.relispartition AND NOT EXISTS"
							   " (SELECT FROM payment_sync.captured x WHERE x.relid = c.oid::regclass)",
							   0, NULL, NULL, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		MemoryContext old = MemoryContextSwitchTo(context);

		relids = lappend_oid(relids,
							 DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i],
															SPI_tuptable->tupdesc, 1,
															&isnull)));
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	MemoryContextSwitchTo(context);
	foreach(lc, relids)
	{
		if (!psync_owns_table(lfirst_oid(lc), GetUserId()))
			continue;
		warn_not_logged("detached", lfirst_oid(lc));
		partition_removed(lfirst_oid(lc));
	}
}

/* --------------------------------------------------------------- triggers */

static void
handle_object(const PsyncDdlObject *object)
{
	Oid			root;

	if (get_rel_name(object->objid) == NULL)
		return;
	root = captured_root(object->objid);
	if (!OidIsValid(root))
		return;
	if (strcmp(object->type, "table column") == 0)
		column_renamed(root, root == object->objid ? object->objsubid : 0);
	if (root == object->objid && strcmp(object->tag, "ALTER TABLE") == 0)
		table_altered(root);
	if (strcmp(object->tag, "CREATE TABLE") == 0 ||
		strcmp(object->tag, "ALTER TABLE") == 0)
		check_members(root, strcmp(object->tag, "ALTER TABLE") == 0);
}

Datum
payment_sync_on_ddl_command_end(PG_FUNCTION_ARGS)
{
	static bool running = false;
	List	   *objects;
	ListCell   *lc;
	volatile bool altered = false;

	/* our own DDL, from here or from capture_table(), needs no looking at */
	if (running || inert(fcinfo))
		PG_RETURN_VOID();
	running = true;
	PG_TRY();
	{
		objects = ddl_objects();
		foreach(lc, objects)
		{
			handle_object(lfirst(lc));
			altered |= strcmp(((PsyncDdlObject *) lfirst(lc))->tag, "ALTER TABLE") == 0;
		}
		if (altered)
			check_detached();
	}
	PG_FINALLY();
	{
		running = false;
	}
	PG_END_TRY();
	PG_RETURN_VOID();
}

/*
 * Dropped tables leave the definitions; a captured table that has lost its
 * key's index or a key column must not.
 */
Datum
payment_sync_on_sql_drop(PG_FUNCTION_ARGS)
{
	uint64		removed;

	if (inert(fcinfo))
		PG_RETURN_VOID();
	removed = psync_owner_execute("DELETE FROM payment_sync.captured c"
								  " WHERE NOT EXISTS (SELECT FROM pg_class"
								  "  WHERE oid = c.relid::oid)", 0, NULL, NULL, NULL);
	SPI_finish();
	if (removed == 0)
		PG_RETURN_VOID();
	(void) psync_owner_execute("DELETE FROM payment_sync.sync_table t"
							   " WHERE NOT EXISTS (SELECT FROM pg_class"
							   "  WHERE oid = t.relid::oid)", 0, NULL, NULL, NULL);
	SPI_finish();
	(void) psync_owner_execute("DELETE FROM payment_sync.batch b"
							   " WHERE NOT EXISTS (SELECT FROM pg_class"
							   "  WHERE oid = b.relid)", 0, NULL, NULL, NULL);
	SPI_finish();
	psync_definition_changed();
	PG_RETURN_VOID();
}
