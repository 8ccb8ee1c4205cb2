/*
 * group.c
 *		Groups: changes held in memory until they are sent, and until the
 *		target has taken them.
 *
 * Changes are copied, since the reader reuses its buffers; keeping them is
 * what allows to try another way when the target refuses one.  A group has
 * one map per table: were there two shapes of one table, their keys could not
 * be compared byte by byte.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"

#define INITIAL_ENTRIES		256

/* An idle session keeps at most so large a buffer. */
#define PSYNC_PG_KEPT_BYTES_MAX	(64 * 1024)

/*
 * An empty group, which lives and grows in "context".
 */
PsyncPgGroup *
psync_pg_group_create(MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	PsyncPgGroup *group = palloc0(sizeof(PsyncPgGroup));

	initStringInfo(&group->data);
	group->entries_size = INITIAL_ENTRIES;
	group->entries = palloc(group->entries_size * sizeof(PsyncPgEntry));
	MemoryContextSwitchTo(old);
	return group;
}

/*
 * Give back what a group has grown to, beyond what it had at first and what
 * small windows need.  It must be empty.
 */
static void
shrink(PsyncPgGroup *group, int most)
{
	MemoryContext old = MemoryContextSwitchTo(GetMemoryChunkContext(group));

	if (group->data.maxlen > most)
	{
		pfree(group->data.data);
		initStringInfo(&group->data);
	}
	if (group->entries_size > PSYNC_PG_SMALL_CHANGES_MAX * 2 &&
		most < PSYNC_PG_GROUP_BYTES_MAX)
	{
		pfree(group->entries);
		group->entries_size = INITIAL_ENTRIES;
		group->entries = palloc(group->entries_size * sizeof(PsyncPgEntry));
	}
	MemoryContextSwitchTo(old);
}

/*
 * After a window: a worker has many sessions, each with two groups, and those
 * that are quiet must not keep the memory of the largest window they have seen.
 */
void
psync_pg_group_release(PsyncPgGroup *group)
{
	Assert(group->nentries == 0);
	shrink(group, PSYNC_PG_KEPT_BYTES_MAX);
}

/* Empty the group.  A single huge row must not leave a huge buffer behind. */
void
psync_pg_group_reset(PsyncPgGroup *group)
{
	shrink(group, 2 * PSYNC_PG_GROUP_BYTES_MAX);
	resetStringInfo(&group->data);
	group->nentries = 0;
	list_free(group->maps);
	group->maps = NIL;
	group->has_truncate = false;
	group->key_changed = false;
	group->actions = false;
	group->batch = false;
}

/* Can the group take a change of this map, or must it be sent first? */
bool
psync_pg_group_takes(const PsyncPgGroup *group, const PsyncPgMap *map)
{
	ListCell   *lc;

	foreach(lc, group->maps)
	{
		const PsyncPgMap *other = lfirst(lc);

		if (other == map)
			return true;
		if (other->table->table == map->table->table)
			return false;
	}
	return true;
}

/*
 * Small enough to be sent change by change, in one round trip?  Not rows of a batch: those that
 * are at the target already are to be left alone, which only a set-wise upsert
 * does.  Nor deletes that take other rows along (ON DELETE CASCADE): a row that
 * is deleted and comes back would come back alone, but set-wise it does not go
 * in the first place.
 */
bool
psync_pg_group_is_small(const PsyncPgGroup *group)
{
	if ((group->batch || group->actions) && group->nentries > 0)
		return false;
	return group->nentries <= PSYNC_PG_SMALL_CHANGES_MAX &&
		group->data.len <= PSYNC_PG_SMALL_BYTES_MAX;
}

/*
 * Room for one more entry, not yet filled in.  Valid until the next call.
 */
static PsyncPgEntry *
add_entry(PsyncPgGroup *group)
{
	if (group->nentries == group->entries_size)
	{
		group->entries_size *= 2;
		group->entries = repalloc_huge(group->entries,
									   group->entries_size * sizeof(PsyncPgEntry));
	}
	return &group->entries[group->nentries++];
}

/*
 * Note that the group has changes of this map.  To be asked before whether it
 * takes them.
 */
void
psync_pg_group_add_map(PsyncPgGroup *group, PsyncPgMap *map)
{
	MemoryContext old;

	/* nearly always the latest one */
	if (group->maps != NIL && llast(group->maps) == map)
		return;
	Assert(psync_pg_group_takes(group, map));
	if (list_member_ptr(group->maps, map))
		return;
	old = MemoryContextSwitchTo(GetMemoryChunkContext(group));
	group->maps = lappend(group->maps, map);
	MemoryContextSwitchTo(old);
}

/*
 * Copy the change into the group; map is NULL for a TRUNCATE.  Images and old
 * parts are stored one behind the other, which is what makes long stretches
 * for COPY.
 */
void
psync_pg_group_add(PsyncPgGroup *group, const PsyncChange *change,
				   PsyncPgMap *map, PsyncPgTable *table)
{
	PsyncPgEntry *entry = add_entry(group);

	Assert((map == NULL) == (change->op == PSYNC_TRUNCATE));
	Assert(change->op != PSYNC_DELETE || change->old_size > 0);
	Assert(!change->key_changed || change->old_size > 0);

	entry->map = map;
	entry->table = table;
	entry->op = change->op;
	entry->key_changed = change->op == PSYNC_UPDATE && change->key_changed;
	entry->image_at = group->data.len;
	entry->image_size = change->new_size;
	if (change->new_size > 0)
		appendBinaryStringInfo(&group->data, change->new_image, change->new_size);

	/* old values matter only where they hold the key */
	entry->part_at = group->data.len;
	entry->part_size = 0;
	if (change->op == PSYNC_DELETE || entry->key_changed)
	{
		entry->part_size = change->old_size;
		appendBinaryStringInfo(&group->data, change->old_part, change->old_size);
	}

	group->key_changed |= entry->key_changed;
	group->actions |= change->op == PSYNC_DELETE && table->actions;
	if (map != NULL)
		psync_pg_group_add_map(group, map);
	else
		group->has_truncate = true;
}

/*
 * Append a later group's changes, by copy; the later group is the caller's to
 * reset.
 */
void
psync_pg_group_merge(PsyncPgGroup *group, const PsyncPgGroup *later)
{
	uint32		shift = group->data.len;
	ListCell   *lc;

	appendBinaryStringInfo(&group->data, later->data.data, later->data.len);
	for (int i = 0; i < later->nentries; i++)
	{
		PsyncPgEntry *entry = add_entry(group);

		*entry = later->entries[i];
		entry->image_at += shift;
		entry->part_at += shift;
	}
	foreach(lc, later->maps)
		psync_pg_group_add_map(group, lfirst(lc));
	group->has_truncate |= later->has_truncate;
	group->key_changed |= later->key_changed;
	group->actions |= later->actions;
}

/*
 * Take an entry apart; image and part have room for all columns of the shape,
 * and may be NULL if not wanted.
 */
void
psync_pg_entry_fields(const PsyncPgGroup *group, const PsyncPgEntry *entry,
					  PsyncPgField *image, PsyncPgField *part)
{
	const PsyncShape *shape = entry->map->shape;

	Assert(entry->image_at + entry->image_size <= group->data.len);
	Assert(entry->part_at + entry->part_size <= group->data.len);

	if (image != NULL)
		psync_pg_image_fields(shape, group->data.data + entry->image_at,
							  entry->image_size, image);
	if (part != NULL)
		psync_pg_part_fields(shape, group->data.data + entry->part_at,
							 entry->part_size, part);
}
