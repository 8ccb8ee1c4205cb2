/*
 * partition.c
 *		Partitions of captured tables, as they come and go.
 *
 * PostgreSQL clones row triggers to partitions, firing state included, and
 * drops the clones on DETACH; of TRUNCATE triggers it knows nothing, so those
 * are made and dropped here.  Only leaves need one: TRUNCATE of a partitioned
 * table fires its own and its leaves'.
 *
 * This happens for CREATE TABLE and ALTER TABLE … ATTACH only.  pg_dump puts
 * both before the rows of payment_sync.captured, so that during a restore no
 * trigger is made here which the dump contains as well.
 *
 * Rows that come or go with their partition were not changed by any statement
 * and are not in the log.  That is said with a WARNING: whether the target
 * needs them copied only people can know.
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/dependency.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_trigger.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "capture/captured.h"
#include "compat.h"

/*
 * The captured table that the relation is, or is a partition of; InvalidOid if
 * none.  The nearest one counts, as for writers (capture/rel_cache.c).
 */
Oid
psync_captured_root(Oid relid)
{
	List	   *ancestors;
	ListCell   *lc;

	Assert(OidIsValid(relid));

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

/*
 * Can this be a partition of a captured table?  Returns NULL, or why not.
 */
static const char *
why_not(Relation partition)
{
	if (partition->rd_rel->relkind == RELKIND_FOREIGN_TABLE)
		return "It is a foreign table, whose rows can change without this server knowing.";
	if (partition->rd_rel->relpersistence == RELPERSISTENCE_UNLOGGED)
		return "It is unlogged: its rows vanish in a crash without a change being made.";
	if (partition->rd_rel->relpersistence == RELPERSISTENCE_TEMP)
		return "It is temporary: its rows vanish at the end of the session.";
	return NULL;
}

/*
 * Can the relation be a partition of the captured table?  An error if not.
 * The lock is kept until the end of the transaction only by those that fail;
 * the callers hold stronger ones.
 */
void
psync_partition_check(Oid relid, Oid root)
{
	Relation	rel = relation_open(relid, AccessShareLock);
	const char *reason = why_not(rel);

	Assert(OidIsValid(root));

	if (reason != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" cannot be a partition of captured table \"%s\"",
						RelationGetRelationName(rel), get_rel_name(root)),
				 errdetail("%s", reason)));
	if (relid != root && psync_is_captured(relid))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("captured table \"%s\" cannot be a partition of captured table \"%s\"",
						RelationGetRelationName(rel), get_rel_name(root)),
				 errdetail("Each of its changes would be recorded twice."),
				 errhint("Run payment_sync.release_table() for one of them.")));
	relation_close(rel, NoLock);
}

/*
 * Said once per partition.  Not an error: partitions are made to be taken out.
 */
void
psync_partition_warn(const char *name, const char *what)
{
	ereport(WARNING,
			(errcode(ERRCODE_WARNING),
			 errmsg("rows of partition \"%s\" were %s without being recorded as changes",
					name, what),
			 errhint("Run payment_sync.batch_sync(name, rel, mirror => true) for each sync of the partitioned table, unless its target does the same.")));
}

/*
 * Blocks, not rows: a table that has been emptied may be warned of once too
 * often.
 */
static bool
has_rows(Oid relid)
{
	Relation	rel = relation_open(relid, AccessShareLock);
	bool		result = RELKIND_HAS_STORAGE(rel->rd_rel->relkind) &&
		RelationGetNumberOfBlocks(rel) > 0;

	relation_close(rel, AccessShareLock);
	return result;
}

/* The same for a captured table, whose partitions count. */
bool
psync_captured_has_rows(Oid relid)
{
	List	   *members;
	ListCell   *lc;

	if (get_rel_relkind(relid) != RELKIND_PARTITIONED_TABLE)
		return has_rows(relid);
	members = find_all_inheritors(relid, AccessShareLock, NULL);
	foreach(lc, members)
	{
		if (has_rows(lfirst_oid(lc)))
			return true;
	}
	return false;
}

/*
 * A table has become a partition of the captured table "root": directly or
 * with partitions of its own.
 */
void
psync_partition_added(Oid relid, Oid root, bool attached)
{
	List	   *members = find_all_inheritors(relid, ShareRowExclusiveLock, NULL);
	ListCell   *lc;

	Assert(relid != root);
	foreach(lc, members)
	{
		Oid			member = lfirst_oid(lc);

		psync_partition_check(member, root);
		if (get_rel_relkind(member) == RELKIND_RELATION)
			psync_truncate_trigger_create(member);
		psync_triggers_check(member);
		if (attached && has_rows(member))
			psync_partition_warn(get_rel_name(member), "attached");
		CacheInvalidateRelcacheByRelid(member);
	}
}

/*
 * It is one no more.  Who detaches need not own the partition; therefore the
 * trigger is removed without a command.
 */
void
psync_partition_removed(Oid relid)
{
	List	   *members = find_all_inheritors(relid, AccessExclusiveLock, NULL);
	ListCell   *lc;

	Assert(OidIsValid(relid));

	foreach(lc, members)
	{
		Oid			member = lfirst_oid(lc);
		PsyncTrigger trigger;

		if (psync_trigger_find(member, PSYNC_TRUNCATE_FUNCTION, &trigger))
		{
			ObjectAddress address;

			ObjectAddressSet(address, TriggerRelationId, trigger.oid);
			performDeletion(&address, DROP_RESTRICT, PERFORM_DELETION_INTERNAL);
		}
		if (has_rows(member))
			psync_partition_warn(get_rel_name(member), "detached");
		CacheInvalidateRelcacheByRelid(member);
	}
}
