/*
 * ddl.c
 *		The event trigger on ddl_command_end: definitions follow their tables.
 *
 * It runs after every DDL command of the database, with the rights of whoever
 * gave it.  Most commands do not concern us; the kind of statement tells, so
 * those cost one function call.  What the statement says is only a reason to
 * look: decisions are made by what the catalogs say after it.
 *
 *		ALTER TABLE		partitions attached and detached; UNLOGGED; the key's
 *						NOT NULL; capture triggers switched off; owner; columns
 *						that give all rows new values
 *		CREATE TABLE	partitions
 *		CREATE TRIGGER	of a function of ours
 *		RENAME			columns, schemas, servers
 *		ALTER SERVER, USER MAPPING	a failing sync need not wait any longer
 *
 * What is dropped is seen by the other event trigger, ddl_drop.c.  Both do
 * nothing in binary-upgrade mode; a restore does not disturb them, nor they
 * it, since pg_dump restores our rows after the tables, and nothing here makes
 * objects that the dump contains (see partition.c).
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/event_trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "parser/parse_coerce.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "compat.h"
#include "sync/admin.h"

PG_FUNCTION_INFO_V1(payment_sync_on_ddl_command_end);

/*
 * Should an event trigger do anything?  Not in pg_upgrade, which copies our
 * tables as they are, and not while the extension is being dropped.  An error
 * if someone calls the function by hand.
 */
bool
psync_ddl_concerns_us(FunctionCallInfo fcinfo)
{
	if (!CALLED_AS_EVENT_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_EVENT_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function must be called as an event trigger")));
	return !IsBinaryUpgrade && psync_extension_present();
}

/*
 * Names in a command are found as the command found them, under the
 * search_path that is still in force.  InvalidOid if there is no such relation
 * any more: the command may have renamed or dropped it.
 */
static Oid
statement_relation(const RangeVar *name)
{
	return name == NULL ? InvalidOid : RangeVarGetRelid(name, NoLock, true);
}

/* -------------------------------------------------------------- definitions */

/*
 * A captured table, or a partition of one, must not become unlogged, and the
 * table's key must remain one.  "without" is an index that is about to be
 * dropped, or InvalidOid.
 */
void
psync_definition_check(Oid relid, Oid without)
{
	Relation	rel = try_relation_open(relid, AccessShareLock);
	List	   *columns;
	List	   *key;

	Assert(OidIsValid(relid));

	if (rel == NULL)
		return;
	if (rel->rd_rel->relpersistence == RELPERSISTENCE_UNLOGGED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot make captured table \"%s\" unlogged",
						RelationGetRelationName(rel)),
				 errdetail("Its rows would vanish in a crash without a change being made."),
				 errhint("Run payment_sync.release_table() first.")));
	psync_captured_read(relid, &columns, &key);
	if (key != NIL && psync_find_key(rel, key, without) == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("cannot take away the key of captured table \"%s\"",
						RelationGetRelationName(rel)),
				 errdetail("Its key (%s) must stay unique and not null.",
						   psync_name_list_text(key)),
				 errhint("Name another key with payment_sync.capture_table(), or run payment_sync.release_table(), first.")));
	relation_close(rel, NoLock);
}

/*
 * The relation and all that inherits from it, as far as it is captured.  No
 * lock is taken: the command has locked what it has changed.
 */
static void
check_definitions(Oid relid)
{
	List	   *members = find_all_inheritors(relid, NoLock, NULL);
	ListCell   *lc;

	foreach(lc, members)
	{
		if (OidIsValid(psync_captured_root(lfirst_oid(lc))))
			psync_definition_check(lfirst_oid(lc), InvalidOid);
	}
}

/*
 * A capture trigger was switched on or off.  One that fires by default only
 * becomes ALWAYS again; one that does not fire is the owner's decision, but
 * not one to be taken by accident (ALTER TABLE … DISABLE TRIGGER ALL).
 */
static void
check_triggers(Oid relid)
{
	static const char *const functions[] = {PSYNC_ROW_FUNCTION, PSYNC_TRUNCATE_FUNCTION};
	List	   *members = find_all_inheritors(relid, NoLock, NULL);
	ListCell   *lc;

	Assert(OidIsValid(relid));

	foreach(lc, members)
	{
		Oid			member = lfirst_oid(lc);
		bool		off = false;

		if (!OidIsValid(psync_captured_root(member)))
			continue;
		for (int i = 0; i < lengthof(functions); i++)
		{
			PsyncTrigger trigger;

			if (!psync_trigger_find(member, functions[i], &trigger))
				continue;
			if (trigger.enabled == TRIGGER_DISABLED)
				off = true;
			else if (trigger.enabled != TRIGGER_FIRES_ALWAYS)
				psync_trigger_enable(member, &trigger);
		}
		if (off)
			ereport(WARNING,
					(errcode(ERRCODE_WARNING),
					 errmsg("changes of captured table \"%s\" are not recorded while its capture trigger is disabled",
							get_rel_name(member)),
					 errhint("Enable it again, then run payment_sync.batch_sync(name, rel, mirror => true) for each sync of the table.")));
	}
}

/* ------------------------------------------------------------------ values */

/*
 * Was the column made by this transaction?  ADD COLUMN IF NOT EXISTS may have
 * found one.
 */
static bool
is_new_column(HeapTuple tuple)
{
	return TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data));
}

/*
 * Has the clause given the column a value in rows that were there?  A new one
 * has NULL unless it has a default, which takes in serial, or is computed.  A
 * new type keeps values as they were unless an expression says otherwise, or
 * what does not fit its scale is rounded.
 */
static bool
clause_changes_values(Oid relid, const AlterTableCmd *cmd)
{
	const ColumnDef *def = castNode(ColumnDef, cmd->def);
	bool		adds = cmd->subtype == AT_AddColumn;
	HeapTuple	tuple = SearchSysCacheAttName(relid, adds ? def->colname : cmd->name);
	Form_pg_attribute att;
	bool		result;

	if (!HeapTupleIsValid(tuple))
		return false;
	att = (Form_pg_attribute) GETSTRUCT(tuple);
	if (adds)
		result = is_new_column(tuple) && !psync_att_is_virtual(att) &&
			(att->atthasdef || att->attidentity != '\0');
	else
		result = def->raw_default != NULL ||
			(att->atttypmod >= 0 &&
			 (att->atttypid == NUMERICOID ||
			  TypeCategory(att->atttypid) == TYPCATEGORY_DATETIME ||
			  TypeCategory(att->atttypid) == TYPCATEGORY_TIMESPAN));
	ReleaseSysCache(tuple);
	return result;
}

/*
 * Rows were rewritten, or will be read as if they had been, and no trigger has
 * seen it.  The command may have reached the table by way of a parent.  Not an
 * error: the target may do the same, and then all is well.
 */
static void
warn_of_values(Oid relid, const AlterTableCmd *cmd)
{
	const char *column = cmd->subtype == AT_AddColumn ?
		castNode(ColumnDef, cmd->def)->colname : cmd->name;
	List	   *members = find_all_inheritors(relid, NoLock, NULL);
	ListCell   *lc;

	foreach(lc, members)
	{
		Oid			member = lfirst_oid(lc);
		List	   *columns;
		List	   *key;

		if (!psync_is_captured(member) || !clause_changes_values(member, cmd))
			continue;
		psync_captured_read(member, &columns, &key);
		if ((columns != NIL && !psync_name_list_has(columns, column)) ||
			!psync_captured_has_rows(member))
			continue;
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("values of column \"%s\" of captured table \"%s\" were set without being recorded as changes",
						column, get_rel_name(member)),
				 errhint("Run payment_sync.batch_sync(name, rel) for each sync of the table, unless its target does the same.")));
	}
}

/*
 * A table has a new owner.  A sync works with the rights of its own owner, who
 * must own its tables; one whose owner does not any more is disabled.  REASSIGN
 * OWNED fires no event trigger: then the sync fails (target/registry.c).
 */
static void
check_owners(void)
{
	List	   *names =
		psync_owner_names("UPDATE payment_sync.sync s SET enabled = false"
						  " WHERE enabled AND EXISTS"
						  " (SELECT FROM payment_sync.sync_table t"
						  "  JOIN pg_class c ON c.oid = t.relid"
						  "  WHERE t.sync = s.id AND NOT pg_has_role(s.owner, c.relowner, 'USAGE'))"
						  " RETURNING name", InvalidOid, (Datum) 0);
	ListCell   *lc;

	foreach(lc, names)
	{
		psync_sync_set_reason(lfirst(lc), "its owner does not own all of its tables");
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("sync \"%s\" is disabled because its owner does not own all of its tables",
						(char *) lfirst(lc)),
				 errhint("Drop the table from it with payment_sync.alter_sync(), or create a sync as the new owner.")));
	}
	if (names != NIL)
		psync_definition_changed();
}

/* ------------------------------------------------------------- statements */

/*
 * One clause of ALTER TABLE. After DETACH … CONCURRENTLY the partition is none
 * yet in its first transaction; it is dealt with at the end, where the same
 * clause appears.
 */
static void
attach_or_detach(Oid relid, const AlterTableCmd *cmd)
{
	Oid			root = psync_captured_root(relid);
	Oid			partition;

	Assert(OidIsValid(relid));

	if (!OidIsValid(root))
		return;
	partition = statement_relation(castNode(PartitionCmd, cmd->def)->name);
	if (!OidIsValid(partition))
		return;
	if (cmd->subtype == AT_AttachPartition)
		psync_partition_added(partition, root, true);
	else
		psync_partition_removed(partition);
}

/*
 * The clauses of ALTER TABLE that can break a definition.  Others are left to
 * their own devices: a new column or type is a new shape, which writers find
 * by themselves.
 */
static void
table_altered(const AlterTableStmt *stmt)
{
	Oid			relid = statement_relation(stmt->relation);
	bool		definition = false;
	bool		triggers = false;
	ListCell   *lc;

	if (stmt->objtype != OBJECT_TABLE || !OidIsValid(relid))
		return;
	foreach(lc, stmt->cmds)
	{
		const AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);

		switch (cmd->subtype)
		{
			case AT_AttachPartition:
			case AT_DetachPartition:
			case AT_DetachPartitionFinalize:
				attach_or_detach(relid, cmd);
				break;
			case AT_AlterColumnType:
				warn_of_values(relid, cmd);
				definition = true;
				break;
			case AT_AddColumn:
				warn_of_values(relid, cmd);
				break;
			case AT_SetUnLogged:
			case AT_DropNotNull:
				definition = true;
				break;
			case AT_EnableTrig:
			case AT_EnableReplicaTrig:
			case AT_EnableTrigAll:
			case AT_EnableTrigUser:
			case AT_DisableTrig:
			case AT_DisableTrigAll:
			case AT_DisableTrigUser:
				triggers = true;
				break;
			case AT_ChangeOwner:
				check_owners();
				break;
			default:
				break;
		}
	}
	if (definition)
		check_definitions(relid);
	if (triggers)
		check_triggers(relid);
}

/*
 * CREATE TABLE … PARTITION OF; other tables are nobody's business.
 */
static void
table_created(const CreateStmt *stmt)
{
	Oid			relid;
	Oid			root;

	if (stmt->partbound == NULL)
		return;
	relid = statement_relation(stmt->relation);
	root = OidIsValid(relid) ? psync_captured_root(relid) : InvalidOid;
	if (OidIsValid(root) && root != relid)
		psync_partition_added(relid, root, false);
}

/* Of a table that is not captured it would do nothing. */
static void
trigger_created(const CreateTrigStmt *stmt)
{
	Oid			relid = statement_relation(stmt->relation);

	if (OidIsValid(relid) && OidIsValid(psync_captured_root(relid)))
		psync_triggers_check(relid);
}

/*
 * Tables may be made in CREATE SCHEMA, without a command of their own.
 */
static void
schema_created(const CreateSchemaStmt *stmt)
{
	ListCell   *lc;

	foreach(lc, stmt->schemaElts)
	{
		if (IsA(lfirst(lc), CreateStmt))
			table_created(lfirst_node(CreateStmt, lc));
	}
}

/*
 * A column, or an attribute of a type that has typed tables, has a new name.
 * The definitions that mean it are those that name a column which is no more,
 * of a table that has one by the new name.  That finds inheriting tables, too.
 *
 * Changes in the log keep the old name for people, and are delivered by the
 * column's number (capture/shape.c).
 */
static void
column_renamed(const char *from, const char *to)
{
	Oid			types[2] = {NAMEOID, NAMEOID};
	Datum		values[2];
	NameData	names[2];

	Assert(from != NULL && to != NULL);

	namestrcpy(&names[0], from);
	namestrcpy(&names[1], to);
	values[0] = NameGetDatum(&names[0]);
	values[1] = NameGetDatum(&names[1]);
	if (psync_owner_execute("UPDATE payment_sync.captured c SET"
							" columns = array_replace(columns, $1, $2),"
							" key = array_replace(key, $1, $2)"
							" WHERE ($1 = ANY (columns) OR $1 = ANY (key))"
							" AND NOT EXISTS (SELECT FROM pg_attribute"
							"  WHERE attrelid = c.relid AND attname = $1)"
							" AND EXISTS (SELECT FROM pg_attribute"
							"  WHERE attrelid = c.relid AND attname = $2)"
							" RETURNING relid::oid",
							2, types, values, NULL) > 0)
	{
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			bool		isnull;

			CacheInvalidateRelcacheByRelid(DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i],
																		  SPI_tuptable->tupdesc,
																		  1, &isnull)));
		}
		psync_definition_changed();
	}
	SPI_finish();
}

/* Syncs name their server, so that they outlive its replacement. */
static void
server_renamed(const char *from, const char *to)
{
	Oid			types[2] = {NAMEOID, NAMEOID};
	Datum		values[2];
	NameData	names[2];

	Assert(from != NULL && to != NULL);

	namestrcpy(&names[0], from);
	namestrcpy(&names[1], to);
	values[0] = NameGetDatum(&names[0]);
	values[1] = NameGetDatum(&names[1]);
	if (psync_owner_execute("UPDATE payment_sync.sync SET server = $2 WHERE server = $1",
							2, types, values, NULL) > 0)
		psync_definition_changed();
	SPI_finish();
}

/*
 * Tables are known by oid, so their new names are found by themselves.
 */
static void
renamed(const RenameStmt *stmt)
{
	switch (stmt->renameType)
	{
		case OBJECT_COLUMN:
		case OBJECT_ATTRIBUTE:
			column_renamed(stmt->subname, stmt->newname);
			break;
		case OBJECT_FOREIGN_SERVER:
			server_renamed(strVal(stmt->object), stmt->newname);
			break;
		case OBJECT_SCHEMA:
			/* of a captured table, maybe; no relcache entry is invalidated */
			psync_definition_changed();
			break;
		default:
			break;
	}
}

/*
 * What made a sync fail may be mended: let it try at once.  One that does not
 * fail is told, too, so that its open target gets the new options now and not
 * with its next change.
 */
static void
server_altered(const char *server)
{
	Oid			types[1] = {NAMEOID};
	Datum		values[1];
	NameData	name;
	bool		used;

	Assert(server != NULL);

	namestrcpy(&name, server);
	values[0] = NameGetDatum(&name);
	(void) psync_owner_execute("UPDATE payment_sync.sync_state SET retry_at = NULL"
							   " WHERE retry_at IS NOT NULL AND sync IN"
							   " (SELECT id FROM payment_sync.sync WHERE server = $1)",
							   1, types, values, NULL);
	SPI_finish();
	used = psync_owner_execute("SELECT FROM payment_sync.sync WHERE server = $1",
							   1, types, values, NULL) > 0;
	SPI_finish();
	if (used)
		psync_definition_changed();
}

/*
 * Event trigger ON ddl_command_end
 *
 * An error here undoes the command: that is how a captured table keeps its
 * key.
 */
Datum
payment_sync_on_ddl_command_end(PG_FUNCTION_ARGS)
{
	Node	   *stmt;

	if (!psync_ddl_concerns_us(fcinfo))
		PG_RETURN_VOID();

	stmt = ((EventTriggerData *) fcinfo->context)->parsetree;
	switch (nodeTag(stmt))
	{
		case T_AlterTableStmt:
			table_altered((AlterTableStmt *) stmt);
			break;
		case T_CreateStmt:
			table_created((CreateStmt *) stmt);
			break;
		case T_CreateTrigStmt:
			trigger_created((CreateTrigStmt *) stmt);
			break;
		case T_CreateForeignTableStmt:
			table_created(&((CreateForeignTableStmt *) stmt)->base);
			break;
		case T_CreateSchemaStmt:
			schema_created((CreateSchemaStmt *) stmt);
			break;
		case T_RenameStmt:
			renamed((RenameStmt *) stmt);
			break;
		case T_AlterForeignServerStmt:
			server_altered(((AlterForeignServerStmt *) stmt)->servername);
			break;
		case T_CreateUserMappingStmt:
			server_altered(((CreateUserMappingStmt *) stmt)->servername);
			break;
		case T_AlterUserMappingStmt:
			server_altered(((AlterUserMappingStmt *) stmt)->servername);
			break;
		default:
			break;
	}
	PG_RETURN_VOID();
}
