/*
 * apply_batch.c
 *		Chunks of a batch.
 *
 * A chunk's rows make a group of their own, applied like any other: straight
 * into the table by COPY as long as nothing is in the way, which is the usual
 * first copy, else by upsert.  Rows that are already as they should be are
 * then left alone.
 *
 * In mirror mode, rows of the chunk's range that the source does not have are
 * deleted before: the keys of all rows go into the temporary table, and what
 * is not among them goes.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"

/*
 * A chunk's rows are about to come.  The window's changes go before them and
 * are waited for, since the chunk shows the state after all of them.
 */
void
psync_pg_chunk_begin(PsyncPgSession *session, const PsyncChunk *chunk)
{
	Assert(session->chunk_map == NULL);

	/* the window's changes come first */
	psync_pg_apply_submit(session);
	session->chunk_map = psync_pg_map_get(session, chunk->shape, chunk->table);
	session->chunk_whole = chunk->mirror;

	/* a batch that begins may find the table empty */
	if (chunk->first)
		session->chunk_map->direct_failed = false;
	psync_pg_apply_wait(session);
	session->growing->batch = true;
}

/*
 * A row of the chunk, as a change of its own kind: one that may find its row
 * there already.
 */
void
psync_pg_chunk_row(PsyncPgSession *session, const char *image, uint32 size)
{
	PsyncPgMap *map = session->chunk_map;
	PsyncChange change = {0};

	Assert(map != NULL);
	change.op = PSYNC_READ;
	change.shape = map->shape;
	change.table = map->table->table;
	change.new_image = image;
	change.new_size = size;
	psync_pg_apply_change(session, &change);
	session->growing->batch = true;
}

/*
 * Set a bound's key as parameters from "at" on; returns the number of the
 * next.  A NULL bound takes none.
 */
static int
put_bound(PsyncPgMap *map, int at, const char *bound, uint32 size)
{
	PsyncPgField *fields;

	if (bound == NULL)
		return at;
	fields = palloc(map->shape->ncolumns * sizeof(PsyncPgField));
	psync_pg_part_fields(map->shape, bound, size, fields);
	return psync_pg_put_key(map, at, fields);
}

/*
 * Delete what the range has and the source does not.  Before the rows, so that
 * a unique value which has moved to another row at the source is free.
 */
static void
delete_unsent(PsyncPgSession *session, const PsyncChunk *chunk)
{
	PsyncPgMap *map = session->chunk_map;
	PsyncPgFailure failure;
	MemoryContext old;
	int			n;

	psync_pg_group_add_map(session->growing, map);
	psync_pg_set_start(session, session->growing, PSYNC_PG_SET_KEYS);
	if (!psync_pg_set_finish(session, &failure))
		psync_pg_failure_raise(session, session->growing, &failure);

	old = MemoryContextSwitchTo(session->scratch);
	n = put_bound(map, 0, chunk->after, chunk->after_size);
	n = put_bound(map, n, chunk->upto, chunk->upto_size);
	if (!psync_pg_try_params(session,
							 psync_pg_sql_delete_range(map, chunk->after != NULL,
													   chunk->upto != NULL),
							 map, n, &failure.error))
		psync_pg_error_raise(session, &failure.error,
							 psprintf("could not remove rows from table %s that the source lacks",
									  map->table->name));
	MemoryContextSwitchTo(old);
	MemoryContextReset(session->scratch);
}

/*
 * The rows stay in the growing group until the window is committed.
 */
void
psync_pg_chunk_end(PsyncPgSession *session, const PsyncChunk *chunk)
{
	Assert(session->chunk_map != NULL);

	if (chunk->mirror)
	{
		psync_pg_apply_wait(session);
		delete_unsent(session, chunk);
	}
	session->chunk_map = NULL;
	session->chunk_whole = false;
}
