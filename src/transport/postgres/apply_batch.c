/*
 * apply_batch.c
 *		Chunks of a batch.
 *
 * A chunk's rows make a group of their own, applied like any other: straight
 * into the table by COPY as long as nothing is in the way, which is the usual
 * first copy, else by upsert.  Rows that are already as they should be are
 * then left alone.
 *
 * A mirror begins with the keys of all rows that the source has.  They go into
 * the temporary table for keys, group by group, and rows of the target that are
 * not among them are deleted by one statement.  Keys are compared by the
 * operator of the target's own index, as delivery does when it looks for a row,
 * and never by their order: what sorts otherwise here, by collation, type or
 * enum, is found all the same.  Before the rows come, so that a unique value
 * which has moved to another row at the source is free.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"

/*
 * A chunk is about to come.  The window's changes go before it and are waited
 * for, since the chunk shows the state after all of them.
 */
void
psync_pg_chunk_begin(PsyncPgSession *session, const PsyncChunk *chunk)
{
	Assert(session->chunk_map == NULL);

	/* the window's changes come first */
	psync_pg_apply_submit(session);
	session->chunk_map = psync_pg_map_get(session, chunk->shape, chunk->table);
	session->chunk_keys = chunk->keys;
	session->keys_loaded = false;

	/* a batch that begins may find the table empty */
	if (chunk->first)
		session->chunk_map->direct_failed = false;
	psync_pg_apply_wait(session);
	session->growing->batch = true;
}

/*
 * The growing group's keys into the temporary table, behind those that came
 * before.
 */
static void
load_keys(PsyncPgSession *session)
{
	PsyncPgFailure failure;

	psync_pg_group_add_map(session->growing, session->chunk_map);
	psync_pg_set_start(session, session->growing, PSYNC_PG_SET_KEYS);
	if (!psync_pg_set_finish(session, &failure))
		psync_pg_failure_raise(session, session->growing, &failure);
	session->keys_loaded = true;
	psync_pg_group_reset(session->growing);
	MemoryContextReset(session->scratch);
}

/*
 * A key, in the form of a delete; what becomes of it is another matter.
 */
static void
take_key(PsyncPgSession *session, const char *part, uint32 size)
{
	PsyncPgGroup *group = session->growing;
	PsyncPgMap *map = session->chunk_map;
	PsyncChange change = {0};

	if (group->nentries >= PSYNC_PG_GROUP_CHANGES_MAX ||
		group->data.len + size > PSYNC_PG_GROUP_BYTES_MAX)
		load_keys(session);
	change.op = PSYNC_DELETE;
	change.shape = map->from;
	change.table = map->table->table;
	change.old_part = part;
	change.old_size = size;
	if (map->shape != map->from)
		psync_pg_convert_change(session, map, &change);
	psync_pg_group_add(group, &change, map, map->table);
}

/*
 * A row of the chunk, as a change of its own kind: one that may find its row
 * there already.
 */
void
psync_pg_chunk_row(PsyncPgSession *session, const char *data, uint32 size)
{
	PsyncPgMap *map = session->chunk_map;
	PsyncChange change = {0};

	Assert(map != NULL);
	if (session->chunk_keys)
	{
		take_key(session, data, size);
		return;
	}
	change.op = PSYNC_READ;
	change.shape = map->from;
	change.table = map->table->table;
	change.new_image = data;
	change.new_size = size;
	psync_pg_apply_change(session, &change);
	session->growing->batch = true;
}

/*
 * All keys have come: delete the rows that have none of them.
 */
static void
delete_unsent(PsyncPgSession *session)
{
	PsyncPgMap *map = session->chunk_map;
	PsyncPgError error;
	MemoryContext old;

	load_keys(session);
	old = MemoryContextSwitchTo(session->scratch);
	psync_pg_execute(session, psync_pg_sql_analyze_keys(map));
	for (int check = 0; check <= (map->table->hooked ? 1 : 0); check++)
	{
		if (psync_pg_try(session, psync_pg_sql_delete_unsent(map, check), &error))
			continue;
		if (check)
			psync_pg_error_of_check(&error, map, false);
		psync_pg_error_raise(session, &error,
							 psprintf("could not remove rows from table %s that the source lacks",
									  map->table->name));
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(session->scratch);
}

/*
 * Rows stay in the growing group until the window is committed.
 */
void
psync_pg_chunk_end(PsyncPgSession *session, const PsyncChunk *chunk)
{
	Assert(session->chunk_map != NULL);

	if (chunk->keys)
		delete_unsent(session);
	session->chunk_map = NULL;
	session->chunk_keys = false;
}
