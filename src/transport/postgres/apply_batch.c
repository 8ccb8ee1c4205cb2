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
 *
 * Rows may refer to rows of a later chunk, of the same table or of one that
 * refers back.  Where the core says that this may be (a circular table) a chunk
 * has a savepoint of its own, and the foreign key's verdict is waited for before
 * the window goes on; a chunk that is refused is taken back, and the window
 * is committed without it.  The core then sends the tables of the circle as a
 * whole: into temporary tables, and from there by one statement for all, at
 * whose end foreign keys are checked.
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
	session->chunk_loads = chunk->keys || chunk->whole;
	session->chunk_loaded = false;

	/* a batch that begins may find the table empty */
	if (chunk->first)
		session->chunk_map->direct_failed = false;
	psync_pg_apply_wait(session);
	psync_pg_apply_touch(session, session->chunk_map->table);
	if (chunk->circular)
		psync_pg_apply_protect(session);
	session->chunk_circular = chunk->circular;
	session->chunk_temp = session->chunk_map->temp_created;
	session->chunk_refused = false;
	session->growing->batch = true;
}

/*
 * The growing group into its temporary table, behind what came before.
 */
static void
load(PsyncPgSession *session)
{
	PsyncPgFailure failure;

	psync_pg_group_add_map(session->growing, session->chunk_map);
	psync_pg_set_start(session, session->growing, PSYNC_PG_SET_LOAD);
	if (!psync_pg_set_finish(session, &failure))
		psync_pg_failure_raise(session, session->growing, &failure);
	session->chunk_loaded = true;
	psync_pg_group_reset(session->growing);
	MemoryContextReset(session->scratch);
}

/* A row or key that is loaded; what becomes of it is another matter. */
static void
take(PsyncPgSession *session, PsyncChange *change)
{
	PsyncPgGroup *group = session->growing;
	PsyncPgMap *map = session->chunk_map;

	if (group->nentries >= PSYNC_PG_GROUP_CHANGES_MAX ||
		group->data.len + change->new_size + change->old_size > PSYNC_PG_GROUP_BYTES_MAX)
		load(session);
	if (map->shape != map->from)
		psync_pg_convert_change(session, map, change);
	psync_pg_group_add(group, change, map, map->table);
}

/*
 * A row of the chunk, as a change of its own kind: one that may find its row
 * there already.  Or a key, in the form of a delete.
 */
void
psync_pg_chunk_row(PsyncPgSession *session, const char *data, uint32 size)
{
	PsyncPgMap *map = session->chunk_map;
	PsyncChange change = {0};

	Assert(map != NULL);
	change.shape = map->from;
	change.table = map->table->table;
	change.op = session->chunk_keys ? PSYNC_DELETE : PSYNC_READ;
	if (session->chunk_keys)
	{
		change.old_part = data;
		change.old_size = size;
	}
	else
	{
		change.new_image = data;
		change.new_size = size;
	}

	if (session->chunk_loads)
		take(session, &change);
	else if (!session->chunk_refused)
	{
		psync_pg_apply_change(session, &change);
		session->growing->batch = true;
	}
}

/*
 * One statement about what was loaded; or one that sees what has become of the
 * rows of a map (statement.c).
 */
static void
run_loaded(PsyncPgSession *session, const char *sql, const char *what,
		   const PsyncPgMap *map, bool identity)
{
	PsyncPgError error;

	if (psync_pg_try(session, sql, &error))
		return;
	if (map != NULL)
		psync_pg_error_of_check(&error, map, identity);
	psync_pg_error_raise(session, &error,
							 psprintf(what, session->chunk_map->table->name));
}

/* All keys are loaded: rows that have none of them go. */
static void
remove_unsent(PsyncPgSession *session, const PsyncPgMap *map)
{
	static const char what[] = "could not remove rows from table %s that the source lacks";

	psync_pg_execute(session, psync_pg_sql_analyze_keys(map));
	run_loaded(session, psync_pg_sql_delete_unsent(map, false), what, NULL, false);
	if (map->table->hooked)
		run_loaded(session, psync_pg_sql_delete_unsent(map, true), what, map, false);
}

/* All rows of all tables of the circle are loaded: into the tables with them. */
static void
copy_whole(PsyncPgSession *session)
{
	static const char what[] = "could not copy table %s together with those that it is in a circle with";
	ListCell   *lc;

	foreach(lc, session->whole_maps)
	{
		PsyncPgMap *map = lfirst(lc);

		if (map->identity_beside_key)
			run_loaded(session, psync_pg_sql_identity(map), what, map, true);
	}
	run_loaded(session, psync_pg_sql_upsert_together(session->whole_maps), what, NULL, false);
	foreach(lc, session->whole_maps)
	{
		PsyncPgMap *map = lfirst(lc);

		if (map->table->hooked)
			run_loaded(session, psync_pg_sql_check_rows(map), what, map, false);
	}
	list_free(session->whole_maps);
	session->whole_maps = NIL;
}

/*
 * All keys, or all rows of the table, have come.
 */
static void
end_load(PsyncPgSession *session, const PsyncChunk *chunk)
{
	PsyncPgMap *map = session->chunk_map;
	MemoryContext old;

	load(session);
	old = MemoryContextSwitchTo(session->context);
	if (chunk->whole)
		session->whole_maps = lappend(session->whole_maps, map);
	MemoryContextSwitchTo(session->scratch);
	if (chunk->keys)
		remove_unsent(session, map);
	else if (chunk->last)
		copy_whole(session);
	MemoryContextSwitchTo(old);
	MemoryContextReset(session->scratch);
}

/*
 * Do the foreign keys agree to what has come of the chunk, deferred ones as
 * well?  If not it is taken back.
 */
static bool
settle_circular(PsyncPgSession *session)
{
	PsyncPgError error;

	psync_pg_apply_submit(session);
	psync_pg_apply_wait(session);
	session->chunk_circular = false;
	if (!session->chunk_refused && session->chunk_map->table->deferrable &&
		!psync_pg_try(session, "SET CONSTRAINTS ALL IMMEDIATE", &error))
	{
		if (error.sqlstate != ERRCODE_FOREIGN_KEY_VIOLATION)
			psync_pg_error_raise(session, &error, NULL);
		session->chunk_refused = true;
	}
	if (!session->chunk_refused)
		return true;
	psync_pg_execute(session, "ROLLBACK TO SAVEPOINT " PSYNC_PG_CHUNK_SAVEPOINT);
	session->in_savepoint = false;
	session->chunk_map->temp_created = session->chunk_temp;
	session->chunk_map->temp_used = session->chunk_temp;
	psync_pg_group_reset(session->growing);
	return false;
}

/*
 * Rows that may refer to no later ones stay in the growing group until the
 * window is committed.
 */
bool
psync_pg_chunk_end(PsyncPgSession *session, const PsyncChunk *chunk)
{
	bool		taken = true;

	Assert(session->chunk_map != NULL);

	if (session->chunk_loads)
		end_load(session, chunk);
	else if (chunk->circular)
		taken = settle_circular(session);
	session->chunk_map = NULL;
	session->chunk_loads = false;
	session->chunk_circular = false;
	return taken;
}
