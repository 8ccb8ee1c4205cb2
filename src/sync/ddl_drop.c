/*
 * ddl_drop.c
 *		The event trigger on sql_drop: definitions after something is gone; and one
 *		before DROP INDEX CONCURRENTLY, after which it would be too late.
 *
 * Dropped tables leave their syncs; dropped columns are no longer captured;
 * syncs of a dropped server are disabled.  But a captured table must not lose
 * its key, nor its triggers: dropping those is refused, for changes would be
 * lost silently (P1).  DROP TABLE, DROP SCHEMA, DROP OWNED and the like take
 * tables with all that belongs to them, and all of it is in one list here.
 */
#include "postgres.h"

#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/event_trigger.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/tuplestore.h"
#include "utils/xml.h"

#include "compat.h"
#include "sync/admin.h"

PG_FUNCTION_INFO_V1(payment_sync_on_ddl_command_start);
PG_FUNCTION_INFO_V1(payment_sync_on_sql_drop);

/* Columns of pg_event_trigger_dropped_objects(). */
#define ANUM_DROPPED_CLASSID	1
#define ANUM_DROPPED_OBJID		2
#define ANUM_DROPPED_OBJSUBID	3
#define ANUM_DROPPED_ORIGINAL	4
#define ANUM_DROPPED_TEMPORARY	6
#define ANUM_DROPPED_TYPE		7
#define ANUM_DROPPED_NAME		9
#define ANUM_DROPPED_NAMES		11

/* What was dropped, as far as it may concern us. */
typedef struct PsyncDropped
{
	List	   *tables;			/* of Oid */
	List	   *altered;		/* of Oid: tables that lost a column, constraint
								 * or trigger */
	List	   *servers;		/* of char * */
	List	   *partitions;		/* of char *: had our trigger, and are gone */
	bool		index;			/* an index, without its table or constraint */
} PsyncDropped;

/*
 * Those that the caller takes without a look at *isnull are never NULL.
 */
static Datum
get_attribute(TupleTableSlot *slot, int attnum, bool *isnull)
{
	return slot_getattr(slot, attnum, isnull);
}

/*
 * The table that an address such as {schema,table,trigger} begins with.  The
 * object is gone, and its oid says nothing; whether its table is still there
 * decides: if so it has been altered, else all of it went.
 */
static void
note_part(PsyncDropped *dropped, TupleTableSlot *slot)
{
	bool		isnull;
	Datum		names = get_attribute(slot, ANUM_DROPPED_NAMES, &isnull);
	Datum	   *parts;
	int			n;
	Oid			schema;
	Oid			relid = InvalidOid;

	if (isnull)
		return;
	deconstruct_array(DatumGetArrayTypeP(names), TEXTOID, -1, false, TYPALIGN_INT,
					  &parts, NULL, &n);
	if (n != 3)
		return;					/* a domain's constraint */
	schema = get_namespace_oid(TextDatumGetCString(parts[0]), true);
	if (OidIsValid(schema))
		relid = get_relname_relid(TextDatumGetCString(parts[1]), schema);
	if (OidIsValid(relid))
		dropped->altered = list_append_unique_oid(dropped->altered, relid);
	else if (strcmp(TextDatumGetCString(parts[2]), PSYNC_TRUNCATE_TRIGGER) == 0)
		dropped->partitions = lappend(dropped->partitions,
									  TextDatumGetCString(parts[1]));
}

/*
 * A table, a column of one, or an index.
 */
static void
note_relation(PsyncDropped *dropped, TupleTableSlot *slot, Oid objid)
{
	bool		isnull;
	int32		column = DatumGetInt32(get_attribute(slot, ANUM_DROPPED_OBJSUBID,
													 &isnull));
	char	   *type = TextDatumGetCString(get_attribute(slot, ANUM_DROPPED_TYPE,
														 &isnull));

	Assert(OidIsValid(objid));

	if (column != 0)
		dropped->altered = list_append_unique_oid(dropped->altered, objid);
	else if (strcmp(type, "table") == 0)
		dropped->tables = lappend_oid(dropped->tables, objid);
	else if (strcmp(type, "index") == 0 &&
			 DatumGetBool(get_attribute(slot, ANUM_DROPPED_ORIGINAL, &isnull)))
		dropped->index = true;
}

/*
 * Sort one dropped object.  Most kinds do not concern us.
 */
static void
note_object(PsyncDropped *dropped, TupleTableSlot *slot)
{
	bool		isnull;
	Oid			classid = DatumGetObjectId(get_attribute(slot, ANUM_DROPPED_CLASSID,
														 &isnull));
	Oid			objid = DatumGetObjectId(get_attribute(slot, ANUM_DROPPED_OBJID,
													   &isnull));
	Datum		name;

	if (DatumGetBool(get_attribute(slot, ANUM_DROPPED_TEMPORARY, &isnull)))
		return;
	switch (classid)
	{
		case RelationRelationId:
			note_relation(dropped, slot, objid);
			break;
		case ConstraintRelationId:
		case TriggerRelationId:
			note_part(dropped, slot);
			break;
		case ForeignServerRelationId:
			name = get_attribute(slot, ANUM_DROPPED_NAME, &isnull);
			if (!isnull)
				dropped->servers = lappend(dropped->servers, TextDatumGetCString(name));
			break;
		default:
			break;
	}
}

/*
 * Read the list of what was dropped, by a direct call: cheaper than a query,
 * and this runs whenever anything at all is dropped.
 */
static void
read_dropped(PsyncDropped *dropped)
{
	LOCAL_FCINFO(fcinfo, 0);
	FmgrInfo	function;
	ReturnSetInfo rsinfo = {.type = T_ReturnSetInfo};
	TupleTableSlot *slot;

	memset(dropped, 0, sizeof(*dropped));
	rsinfo.econtext = CreateStandaloneExprContext();
	rsinfo.allowedModes = SFRM_Materialize;
	fmgr_info(F_PG_EVENT_TRIGGER_DROPPED_OBJECTS, &function);
	InitFunctionCallInfoData(*fcinfo, &function, 0, InvalidOid, NULL,
							 (Node *) &rsinfo);
	(void) FunctionCallInvoke(fcinfo);
	Assert(rsinfo.returnMode == SFRM_Materialize && rsinfo.setResult != NULL);
	Assert(rsinfo.setDesc->natts >= ANUM_DROPPED_NAMES);

	slot = MakeSingleTupleTableSlot(rsinfo.setDesc, &TTSOpsMinimalTuple);
	while (tuplestore_gettupleslot(rsinfo.setResult, true, false, slot))
		note_object(dropped, slot);
	ExecDropSingleTupleTableSlot(slot);
	FreeExprContext(rsinfo.econtext, true);
}

/* ------------------------------------------------------------ consequences */

/*
 * A dropped table leaves all that names it.  Its changes stay in the log and
 * are passed over.
 */
static void
forget_table(Oid relid)
{
	static const char *const commands[] = {
		"DELETE FROM payment_sync.captured WHERE relid = $1::regclass",
		"DELETE FROM payment_sync.sync_table WHERE relid = $1::regclass",
		"DELETE FROM payment_sync.batch WHERE relid = $1",
	};
	Oid			types[1] = {OIDOID};
	Datum		values[1];

	Assert(OidIsValid(relid));

	values[0] = ObjectIdGetDatum(relid);
	for (int i = 0; i < lengthof(commands); i++)
	{
		(void) psync_owner_execute(commands[i], 1, types, values, NULL);
		SPI_finish();
	}
	psync_definition_changed();
}

/*
 * Columns captured by name that are no more.  The key's cannot be among them,
 * see psync_definition_check().
 */
static void
forget_columns(Oid relid)
{
	List	   *columns;
	List	   *key;
	List	   *kept = NIL;
	ListCell   *lc;

	psync_captured_read(relid, &columns, &key);
	foreach(lc, columns)
	{
		if (get_attnum(relid, lfirst(lc)) != InvalidAttrNumber)
			kept = lappend(kept, lfirst(lc));
	}
	Assert(columns == NIL || kept != NIL);	/* the key is among them */
	if (list_length(kept) < list_length(columns))
		psync_captured_write(relid, kept, key, NULL);
}

/*
 * Is this a script of pg_dump, which drops all that it is about to make again?
 * It drops triggers and constraints before their table, each by a command of
 * its own.  Such scripts, and pg_restore, begin by setting these.  Who sets them
 * by hand owns the table and is warned all the same.
 */
static bool
is_restore(void)
{
	return !check_function_bodies && xmloption == XMLOPTION_CONTENT &&
		namespace_search_path[0] == '\0';
}

/*
 * Has the table what it needs to be captured?
 */
static bool
has_triggers(Oid relid, Oid root)
{
	PsyncTrigger ignored;

	Assert(OidIsValid(relid) && OidIsValid(root));

	/* TRUNCATE fires the triggers of the table named and of leaves */
	return psync_trigger_find(relid, PSYNC_ROW_FUNCTION, &ignored) &&
		((relid != root && get_rel_relkind(relid) == RELKIND_PARTITIONED_TABLE) ||
		 psync_trigger_find(relid, PSYNC_TRUNCATE_FUNCTION, &ignored));
}

/*
 * A capture trigger was dropped.  The command fails, unless it restores a dump:
 * then the table is captured no more, as it would be after the DROP TABLE that
 * is to follow.  The dump's own rows say what is captured after it.
 */
static void
trigger_dropped(Oid relid, Oid root)
{
	if (!is_restore())
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("cannot drop a capture trigger of table \"%s\"",
						get_rel_name(relid)),
				 errdetail("The table's changes would no longer be recorded."),
				 errhint("Use payment_sync.release_table() instead.")));
	forget_table(root);
	psync_captured_changed(root);
	ereport(WARNING,
			(errcode(ERRCODE_WARNING),
			 errmsg("table \"%s\" is no longer captured because a restore has dropped its capture trigger",
					get_rel_name(root)),
			 errhint("If the restore does not make the table anew, run payment_sync.capture_table() and add it to its syncs again.")));
}

/* A table that is still there has lost something. */
static void
check_altered(Oid relid)
{
	Oid			root = psync_captured_root(relid);

	Assert(OidIsValid(relid));

	if (!OidIsValid(root))
		return;
	if (!has_triggers(relid, root))
	{
		trigger_dropped(relid, root);
		return;
	}
	if (root == relid)
	{
		psync_definition_check(relid, InvalidOid);
		forget_columns(relid);
	}
}

/*
 * An index went by itself.  Which table it belonged to is not said; captured
 * tables are few, and DROP INDEX is rare.
 */
static void
check_all(void)
{
	List	   *relids = psync_captured_list();
	ListCell   *lc;

	foreach(lc, relids)
		psync_definition_check(lfirst_oid(lc), InvalidOid);
}

/*
 * Syncs of a dropped server.  They are kept, with their positions: a server of
 * the same name may follow, and the log grows at most to its limit.
 */
static void
disable_syncs_of(const char *server)
{
	NameData	name;
	List	   *syncs;
	ListCell   *lc;

	Assert(server != NULL);

	namestrcpy(&name, server);
	syncs = psync_owner_names("UPDATE payment_sync.sync SET enabled = false"
							  " WHERE server = $1 AND enabled RETURNING name",
							  NAMEOID, NameGetDatum(&name));
	foreach(lc, syncs)
	{
		psync_sync_set_reason(lfirst(lc), psprintf("server \"%s\" was dropped", server));
		ereport(NOTICE,
				(errmsg("sync \"%s\" is disabled because its server was dropped",
						(char *) lfirst(lc))));
	}
	if (syncs != NIL)
		psync_definition_changed();
}

/*
 * Event trigger ON sql_drop
 *
 * Dropped tables first, so that what is looked at afterwards are the
 * definitions that remain.
 */
Datum
payment_sync_on_sql_drop(PG_FUNCTION_ARGS)
{
	PsyncDropped dropped;
	bool		captured = false;
	ListCell   *lc;

	if (!psync_ddl_concerns_us(fcinfo))
		PG_RETURN_VOID();

	read_dropped(&dropped);
	foreach(lc, dropped.tables)
	{
		if (psync_is_captured(lfirst_oid(lc)))
		{
			forget_table(lfirst_oid(lc));
			captured = true;
		}
	}
	foreach(lc, dropped.altered)
		check_altered(lfirst_oid(lc));
	if (dropped.index)
		check_all();
	foreach(lc, dropped.servers)
		disable_syncs_of(lfirst(lc));

	/* with the whole table gone, its partitions are no news */
	foreach(lc, captured ? NIL : dropped.partitions)
		psync_partition_warn(lfirst(lc), "dropped");
	PG_RETURN_VOID();
}

/*
 * Event trigger ON ddl_command_start, of DROP INDEX
 *
 * DROP INDEX CONCURRENTLY commits on its way: when it can be seen that a
 * captured table has lost its key, the index enforces nothing any more, and
 * refusing to drop it would not bring it back.  So this is refused at once.
 */
Datum
payment_sync_on_ddl_command_start(PG_FUNCTION_ARGS)
{
	Node	   *stmt;
	ListCell   *lc;

	if (!psync_ddl_concerns_us(fcinfo))
		PG_RETURN_VOID();
	stmt = ((EventTriggerData *) fcinfo->context)->parsetree;
	if (!IsA(stmt, DropStmt) || !((DropStmt *) stmt)->concurrent)
		PG_RETURN_VOID();

	foreach(lc, ((DropStmt *) stmt)->objects)
	{
		RangeVar   *name = makeRangeVarFromNameList(lfirst_node(List, lc));
		Oid			index = RangeVarGetRelid(name, NoLock, true);
		Oid			table = OidIsValid(index) ? IndexGetRelation(index, true) : InvalidOid;

		if (OidIsValid(table) && psync_is_captured(table))
			psync_definition_check(table, index);
	}
	PG_RETURN_VOID();
}
