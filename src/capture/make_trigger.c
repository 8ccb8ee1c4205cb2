/*
 * make_trigger.c
 *		Making, finding and dropping the capture triggers.
 *
 * They are made by ordinary DDL as the caller, who must own the table.  Being
 * theirs, they may be renamed by the owner; so they are found by the function
 * they call.  They depend on the extension, so that DROP EXTENSION takes them
 * along, and are ENABLE ALWAYS (capture/trigger.c says why).
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_trigger.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "capture/captured.h"
#include "compat.h"

/*
 * "schema.table", quoted as SQL needs it, in the current memory context.  The
 * caller has a lock on the table, so it has a name.
 */
char *
psync_qualified_name(Oid relid)
{
	Assert(OidIsValid(relid) && get_rel_name(relid) != NULL);

	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
									  get_rel_name(relid));
}

/*
 * As the current user; every name in it must be quoted and qualified, since
 * the caller's search_path is in force.  Fires event triggers as any command
 * does, ours as well.
 */
static void
run_ddl(const char *command)
{
	int			ret;

	SPI_connect();
	ret = SPI_execute(command, false, 0);
	if (ret != SPI_OK_UTILITY)
		elog(ERROR, "could not execute \"%s\": %s", command,
			 SPI_result_code_string(ret));
	SPI_finish();
}

/*
 * A function of ours, whether or not the current user may call it: DDL of
 * tables must go on where privileges on the extension have been taken away.
 */
static Oid
trigger_function(const char *name)
{
	Oid			function = GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid,
										   CStringGetDatum(name),
										   PointerGetDatum(buildoidvector(NULL, 0)),
										   ObjectIdGetDatum(get_namespace_oid(PSYNC_SCHEMA, false)));

	if (!OidIsValid(function))
		elog(ERROR, "function \"%s\" is missing", name);
	return function;
}

/*
 * Does the trigger do what ours do?  One that somebody has made for a function
 * of ours may fire for other events, for some rows or columns only, or later.
 */
static bool
is_complete(const Trigger *trigger)
{
	int16		wanted = TRIGGER_FOR_ROW(trigger->tgtype) ?
		TRIGGER_TYPE_ROW | TRIGGER_TYPE_AFTER | TRIGGER_TYPE_INSERT |
		TRIGGER_TYPE_UPDATE | TRIGGER_TYPE_DELETE :
		TRIGGER_TYPE_STATEMENT | TRIGGER_TYPE_BEFORE | TRIGGER_TYPE_TRUNCATE;

	return trigger->tgtype == wanted && trigger->tgqual == NULL &&
		trigger->tgnattr == 0 && !trigger->tgdeferrable;
}

/*
 * The table's first trigger that calls a function of ours, by whatever name;
 * false if there is none.  The lock on the table stays until the end of the
 * transaction.
 */
bool
psync_trigger_find(Oid relid, const char *function, PsyncTrigger *trigger)
{
	Oid			funcoid = trigger_function(function);
	Relation	rel = relation_open(relid, AccessShareLock);
	TriggerDesc *desc = rel->trigdesc;

	Assert(trigger != NULL);

	memset(trigger, 0, sizeof(*trigger));
	for (int i = 0; desc != NULL && i < desc->numtriggers; i++)
	{
		Trigger    *candidate = &desc->triggers[i];

		if (candidate->tgfoid != funcoid)
			continue;
		trigger->count++;
		trigger->incomplete |= !is_complete(candidate);
		if (trigger->count > 1)
			continue;
		trigger->oid = candidate->tgoid;
		trigger->enabled = candidate->tgenabled;
		strlcpy(trigger->name, candidate->tgname, NAMEDATALEN);
	}
	relation_close(rel, NoLock);
	return trigger->count > 0;
}

/*
 * ONLY this table: each partition's clone has a firing state of its own.
 */
void
psync_trigger_enable(Oid relid, const PsyncTrigger *trigger)
{
	Assert(trigger->name[0] != '\0' && trigger->enabled != TRIGGER_FIRES_ALWAYS);

	run_ddl(psprintf("ALTER TABLE ONLY %s ENABLE ALWAYS TRIGGER %s",
					 psync_qualified_name(relid), quote_identifier(trigger->name)));
}

/*
 * Drop it if it is there, with all that were made beside it.  The definition
 * is gone already, so our event trigger does not mind.
 */
static void
trigger_drop(Oid relid, const char *function)
{
	PsyncTrigger trigger;

	while (psync_trigger_find(relid, function, &trigger))
		run_ddl(psprintf("DROP TRIGGER %s ON %s", quote_identifier(trigger.name),
						 psync_qualified_name(relid)));
}

static const char *const functions[] = {PSYNC_ROW_FUNCTION, PSYNC_TRUNCATE_FUNCTION};

/* Has the table other triggers for the function than one as we make it? */
static bool
has_others(Oid relid, const char *function)
{
	PsyncTrigger trigger;

	return psync_trigger_find(relid, function, &trigger) &&
		(trigger.count > 1 || trigger.incomplete);
}

/*
 * A trigger that calls a function of ours was made, perhaps by hand; pg_dump's
 * scripts do, too.  Two would record each change twice, and one that is not
 * like ours would be taken for it.
 */
void
psync_triggers_check(Oid relid)
{
	for (int i = 0; i < lengthof(functions); i++)
	{
		if (!has_others(relid, functions[i]))
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("cannot make a capture trigger of table \"%s\" by hand",
						get_rel_name(relid)),
				 errdetail("A table has one trigger for each of payment_sync's trigger functions, as capture_table() makes them."),
				 errhint("Use payment_sync.capture_table() instead.")));
	}
}

/*
 * What was made by hand for a table that is about to be captured gives way.
 */
void
psync_triggers_clear(Oid relid)
{
	for (int i = 0; i < lengthof(functions); i++)
	{
		if (has_others(relid, functions[i]))
			trigger_drop(relid, functions[i]);
	}
}

/*
 * Make it unless it is there; "event" is what comes before ON. Names given
 * here are ours and need no quotes; that of a trigger found may be the owner's
 * choice.
 */
static void
trigger_create(Oid relid, const char *name, const char *event,
			   const char *each, const char *function)
{
	char	   *table = psync_qualified_name(relid);
	PsyncTrigger trigger;

	if (!psync_trigger_find(relid, function, &trigger))
	{
		run_ddl(psprintf("CREATE TRIGGER %s %s ON %s FOR EACH %s"
						 " EXECUTE FUNCTION payment_sync.%s()",
						 name, event, table, each, function));
		run_ddl(psprintf("ALTER TRIGGER %s ON %s DEPENDS ON EXTENSION payment_sync",
						 name, table));
		if (!psync_trigger_find(relid, function, &trigger))
			elog(ERROR, "trigger \"%s\" was not created", name);
	}
	if (trigger.enabled != TRIGGER_FIRES_ALWAYS)
		psync_trigger_enable(relid, &trigger);
	Assert(psync_trigger_find(relid, function, &trigger));
}

/*
 * PostgreSQL does not clone statement triggers to partitions, so this is
 * called for each.
 */
void
psync_truncate_trigger_create(Oid relid)
{
	trigger_create(relid, PSYNC_TRUNCATE_TRIGGER, "BEFORE TRUNCATE", "STATEMENT",
				   PSYNC_TRUNCATE_FUNCTION);
}

/*
 * The table and its partitions.  Children by inheritance are tables of their
 * own, captured by their own definition or not.
 */
static List *
members_of(Oid relid)
{
	if (get_rel_relkind(relid) != RELKIND_PARTITIONED_TABLE)
		return list_make1_oid(relid);
	return find_all_inheritors(relid, ShareRowExclusiveLock, NULL);
}

static bool
is_leaf(Oid relid)
{
	return get_rel_relkind(relid) != RELKIND_PARTITIONED_TABLE;
}

/*
 * All that a captured table needs.  The firing state of a row trigger is
 * inherited by clones made later, but not given to those that are there.  It
 * matters for partitions that hold rows, and for those that will be made of
 * others.  TRUNCATE of a partitioned table fires its own trigger and those of
 * its leaves.
 */
void
psync_triggers_create(Oid relid)
{
	ListCell   *lc;

	trigger_create(relid, PSYNC_ROW_TRIGGER, "AFTER INSERT OR UPDATE OR DELETE",
				   "ROW", PSYNC_ROW_FUNCTION);
	psync_truncate_trigger_create(relid);
	foreach(lc, members_of(relid))
	{
		Oid			member = lfirst_oid(lc);
		PsyncTrigger trigger;

		if (psync_trigger_find(member, PSYNC_ROW_FUNCTION, &trigger) &&
			trigger.enabled != TRIGGER_FIRES_ALWAYS)
			psync_trigger_enable(member, &trigger);
		if (is_leaf(member))
			psync_truncate_trigger_create(member);
	}
}

/*
 * The inverse of psync_triggers_create(); PostgreSQL drops the clones of the
 * row trigger by itself.
 */
void
psync_triggers_drop(Oid relid)
{
	ListCell   *lc;

	trigger_drop(relid, PSYNC_ROW_FUNCTION);
	trigger_drop(relid, PSYNC_TRUNCATE_FUNCTION);
	foreach(lc, members_of(relid))
	{
		if (is_leaf(lfirst_oid(lc)))
			trigger_drop(lfirst_oid(lc), PSYNC_TRUNCATE_FUNCTION);
	}
}
