/*
 * apply_set.c
 *		Applying a group set-wise: COPY, then few statements for many rows.
 *
 * All that a group takes goes as one string of commands, in which COPYs read
 * the rows as their turn comes:
 *
 *		[BEGIN, or release of the previous group's savepoint]
 *		[temporary tables made, or emptied]
 *		SAVEPOINT
 *		1	deletes of tables that no foreign key points to
 *		2	table by table, referenced ones first: new rows by COPY straight
 *			into the table; changed rows by COPY into a temporary table and
 *			UPDATE … FROM
 *		3	deletes of tables that foreign keys point to, referencing ones first
 *
 * Why deletes come on both sides.  Unique indexes want rows gone before others
 * take their values; foreign keys want rows gone only when nothing refers to
 * them any more, and with ON DELETE CASCADE a delete that comes too early
 * would take along rows that merely have not been moved yet.  The latter is
 * loss, the former an error that has a remedy (apply.c): so (3) for tables
 * that are referenced, (1) for the rest.
 *
 * Nothing is waited for but the word that a COPY may begin.  While the target
 * works on one group, the core hands us the changes of the next, and now and
 * then we look whether the target can be fed further (psync_pg_set_poke).
 */
#include "postgres.h"

#include "port/pg_bswap.h"
#include "utils/memutils.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"

/* Rows are handed to libpq in pieces of about this size. */
#define PSYNC_PG_PIECE_BYTES	(64 * 1024)

/* … of which libpq is given so many before they are waited for. */
#define PSYNC_PG_UNSENT_BYTES_MAX	(1024 * 1024)

/* What is expected of one command of the string. */
typedef enum StepKind
{
	STEP_PLAIN,
	STEP_COPY,
	STEP_UPDATE					/* must hit as many rows as were sent */
} StepKind;

/* One command of the string. */
typedef struct Step
{
	StepKind	kind;
	PsyncPgMap *map;			/* NULL for commands about no table */
	/* STEP_COPY: entries[] or all of the group if NULL; their keys or rows */
	const int  *entries;
	int			n;				/* rows to send, or to be hit */
	bool		keys;			/* COPY of keys, not of rows */
	bool		direct;			/* COPY into the table itself */
	bool		fed;			/* the target has asked for the rows */
	int			next;			/* the row to be sent next */
	bool		check;			/* divides by zero if rows had no effect … */
	bool		identity;		/* … or an identity column cannot change */
} Step;

/*
 * A group on its way.  Lives in the session's scratch context from start to
 * finish; the target's answers move "current" from step to step.
 */
struct PsyncPgSetRun
{
	PsyncPgGroup *group;
	PsyncPgSetMode mode;
	StringInfoData sql;			/* all commands, sent as one string */
	Step	   *steps;
	int			nsteps;
	int			steps_size;		/* allocated */
	int			current;		/* the step whose answer comes next */
	Step	   *feeding;		/* a COPY whose rows are being sent; or NULL */
	int			savepoint;		/* the step that sets it */
	List	   *incomplete;		/* maps some of whose rows were not there */
	bool		failed;
	PsyncPgError error;
};

/* --------------------------------------------------------------- planning */

/*
 * Append a command.  The result is valid until the next call.
 */
static Step *
add_step(PsyncPgSetRun *run, StepKind kind, PsyncPgMap *map, const char *sql)
{
	Step	   *step;

	if (run->nsteps == run->steps_size)
	{
		run->steps_size *= 2;
		run->steps = repalloc(run->steps, run->steps_size * sizeof(Step));
	}
	appendStringInfo(&run->sql, "%s%s", run->nsteps > 0 ? "; " : "", sql);
	step = &run->steps[run->nsteps++];
	memset(step, 0, sizeof(Step));
	step->kind = kind;
	step->map = map;
	return step;
}

/*
 * Append a COPY: of the given entries, or of all entries of the group if NULL.
 */
static Step *
add_copy(PsyncPgSetRun *run, PsyncPgMap *map, const char *sql,
		 const int *entries, int n, bool keys)
{
	Step	   *step = add_step(run, STEP_COPY, map, sql);

	step->entries = entries;
	step->n = n;
	step->keys = keys;
	return step;
}

/* Have the map's temporary tables there, and empty. */
static void
add_temp(PsyncPgSetRun *run, PsyncPgSession *session, PsyncPgMap *map)
{
	if (!map->temp_created)
	{
		add_step(run, STEP_PLAIN, map, psync_pg_sql_create_temp_rows(map, session->pooled));
		add_step(run, STEP_PLAIN, map, psync_pg_sql_create_temp_keys(map, session->pooled));
	}
	else if (map->temp_used)
		add_step(run, STEP_PLAIN, map, psync_pg_sql_truncate_temp(map));
	map->temp_created = true;
	map->temp_used = true;
}

/*
 * A group is small next to its table, so the key's index is the way to find
 * rows; without statistics of the temporary table the planner might read and
 * hash all of the target instead.  (300,000 rows, 40,000 of them updated: 280
 * instead of 350 ms; the larger the table, the more it matters.)
 */
static void
add_join_methods(PsyncPgSetRun *run, bool all)
{
	const char *value = all ? "DEFAULT" : "off";

	add_step(run, STEP_PLAIN, NULL, psprintf("SET LOCAL enable_hashjoin = %s", value));
	add_step(run, STEP_PLAIN, NULL, psprintf("SET LOCAL enable_mergejoin = %s", value));
}

/*
 * See that rows, or deletes, have had their effect, where that may not be so.
 * Keys that are equal without having the same bytes cannot be told from others.
 */
static void
add_check(PsyncPgSetRun *run, PsyncPgMap *map, bool rows)
{
	if (map->table->hooked && (rows || !map->key_ambiguous))
		add_step(run, STEP_PLAIN, map, rows ? psync_pg_sql_check_rows(map) :
				 psync_pg_sql_check_gone(map))->check = true;
}

/* Rows of which an identity column changes, before others are updated. */
static void
add_identity(PsyncPgSetRun *run, PsyncPgMap *map)
{
	if (map->identity_beside_key)
		add_step(run, STEP_PLAIN, map, psync_pg_sql_identity(map))->identity = true;
}

/*
 * Are new rows copied straight into the table?  Until that has failed once,
 * for this map and session: a table that has rows where none should be, as
 * after a batch, will have more.
 */
static bool
goes_direct(const PsyncPgSetRun *run, const PsyncPgNet *net)
{
	return run->mode == PSYNC_PG_SET_FAST && net->map->direct &&
		!net->map->direct_failed && !net->map->table->hooked &&
		!(net->map->identity_beside_key && net->nupdates > 0);
}

/*
 * The keys into the temporary table, then one DELETE.
 */
static void
add_deletes(PsyncPgSetRun *run, const PsyncPgNet *net)
{
	if (net->ndeletes == 0)
		return;
	add_copy(run, net->map, psync_pg_sql_copy_keys(net->map), net->deletes,
			 net->ndeletes, true);
	add_step(run, STEP_PLAIN, net->map, psync_pg_sql_delete(net->map));
	add_check(run, net->map, false);
}

/*
 * Deletes that come after the rows.  A new key that is equal to an old one
 * would have met the old row, in a COPY straight into the table; an upsert
 * takes it for the same row, which the delete must not take away.
 */
static void
add_late_deletes(PsyncPgSetRun *run, const PsyncPgNet *net)
{
	if (net->ndeletes == 0 || net->ninserts == 0 || goes_direct(run, net))
	{
		add_deletes(run, net);
		return;
	}
	add_copy(run, net->map, psync_pg_sql_copy_keys(net->map), net->deletes,
			 net->ndeletes, true);
	add_join_methods(run, true);
	add_step(run, STEP_PLAIN, net->map, psync_pg_sql_delete_others(net->map));
	add_join_methods(run, false);
	add_check(run, net->map, false);
}

/*
 * New rows straight into the table, by COPY; known ones by UPDATE.  If the
 * UPDATE does not hit all of them, the rest is inserted at the end, when it is
 * known (complete()): while a batch has not come to a row, the target does not
 * have it.
 */
static void
add_rows_direct(PsyncPgSetRun *run, const PsyncPgNet *net)
{
	PsyncPgMap *map = net->map;

	if (net->ninserts > 0)
		add_copy(run, map, psync_pg_sql_copy_direct(map), net->inserts,
				 net->ninserts, false)->direct = true;
	if (net->nupdates > 0)
	{
		char	   *update = psync_pg_sql_update(map);

		add_copy(run, map, psync_pg_sql_copy_rows(map), net->updates,
				 net->nupdates, false);
		if (update != NULL)
			add_step(run, STEP_UPDATE, map, update)->n = net->nupdates;
		else
			add_step(run, STEP_PLAIN, map, psync_pg_sql_insert_missing(map));
	}
}

/* Rows of a net into its temporary table. */
static void
add_copy_all(PsyncPgSetRun *run, const PsyncPgNet *net)
{
	int			n = net->ninserts + net->nupdates;
	int		   *rows = palloc(Max(n, 1) * sizeof(int));

	memcpy(rows, net->inserts, net->ninserts * sizeof(int));
	memcpy(rows + net->ninserts, net->updates, net->nupdates * sizeof(int));
	add_copy(run, net->map, psync_pg_sql_copy_rows(net->map), rows, n, false);
}

/* All rows into the temporary table, then an upsert. */
static void
add_rows_by_temp(PsyncPgSetRun *run, const PsyncPgNet *net)
{
	if (net->ninserts + net->nupdates == 0)
		return;
	add_copy_all(run, net);
	add_identity(run, net->map);
	add_step(run, STEP_PLAIN, net->map,
			 psync_pg_sql_upsert(net->map, run->group->batch));
	add_check(run, net->map, true);
}

/* Does applying this net involve the temporary tables? */
static bool
needs_temp(const PsyncPgSetRun *run, const PsyncPgNet *net)
{
	return net->ndeletes > 0 || net->nupdates > 0 || !goes_direct(run, net);
}

/*
 * Referenced tables first.
 */
static int
compare_ranks(const void *a, const void *b)
{
	return ((const PsyncPgNet *) a)->map->table->rank -
		((const PsyncPgNet *) b)->map->table->rank;
}

/*
 * What comes before the savepoint: the transaction, the end of the group
 * before, and temporary tables, which must not vanish when the group is
 * undone.  So a savepoint that cannot be reached means that the session is of
 * no use.
 */
static void
add_preparation(PsyncPgSetRun *run, PsyncPgSession *session,
				const PsyncPgNet *nets, int n)
{
	if (!session->in_transaction)
	{
		add_step(run, STEP_PLAIN, NULL, session->begin);
		if (session->local_settings != NULL)
			add_step(run, STEP_PLAIN, NULL, session->local_settings);
		add_step(run, STEP_PLAIN, NULL, "SET CONSTRAINTS ALL DEFERRED");
	}
	else if (session->in_savepoint)
		add_step(run, STEP_PLAIN, NULL, "RELEASE SAVEPOINT " PSYNC_PG_SAVEPOINT);
	for (int i = 0; i < n; i++)
	{
		if (needs_temp(run, &nets[i]))
			add_temp(run, session, nets[i].map);
	}
	run->savepoint = run->nsteps;
	add_step(run, STEP_PLAIN, NULL, "SAVEPOINT " PSYNC_PG_SAVEPOINT);
}

/* All tables at once; see psync_pg_sql_replace(). */
static void
add_replacement(PsyncPgSetRun *run, const PsyncPgNet *nets, int n)
{
	List	   *maps = NIL;

	/* what joins the temporary tables to each other needs no index */
	add_join_methods(run, true);
	for (int i = 0; i < n; i++)
	{
		add_copy_all(run, &nets[i]);
		add_copy(run, nets[i].map, psync_pg_sql_copy_keys(nets[i].map),
				 nets[i].deletes, nets[i].ndeletes, true);
		if (nets[i].map->table->bound)
			add_identity(run, nets[i].map);
		maps = lappend(maps, nets[i].map);
	}
	add_step(run, STEP_PLAIN, NULL, psync_pg_sql_replace(maps));
	for (int i = 0; i < n; i++)
	{
		add_check(run, nets[i].map, true);
		add_check(run, nets[i].map, false);
	}
}

/*
 * Turn the group into a string of commands; the header comment has their
 * order.  What a group comes to for each table is decided by collapse.c.
 */
static void
plan(PsyncPgSetRun *run, PsyncPgSession *session)
{
	int			n;
	PsyncPgNet *nets = psync_pg_collapse(run->group, &n);

	psync_pg_rank_tables(run->group);
	qsort(nets, n, sizeof(PsyncPgNet), compare_ranks);
	add_preparation(run, session, nets, n);

	if (run->mode == PSYNC_PG_SET_REPLACE)
	{
		add_replacement(run, nets, n);
		return;
	}

	add_join_methods(run, false);
	for (int i = 0; i < n; i++)
	{
		if (!nets[i].map->table->referenced)
			add_deletes(run, &nets[i]);
	}
	for (int i = 0; i < n; i++)
	{
		if (goes_direct(run, &nets[i]))
			add_rows_direct(run, &nets[i]);
		else
			add_rows_by_temp(run, &nets[i]);
	}
	for (int i = n - 1; i >= 0; i--)
	{
		if (nets[i].map->table->referenced)
			add_late_deletes(run, &nets[i]);
	}
}

/*
 * Only load the rows, or the keys, of all entries behind those loaded before,
 * for what apply_batch.c does with them.
 */
static void
plan_load(PsyncPgSetRun *run, PsyncPgSession *session, PsyncPgMap *map)
{
	const PsyncPgGroup *group = run->group;
	PsyncPgNet	none = {.map = map};	/* which makes for temporary tables */
	bool		rows = group->nentries > 0 && group->entries[0].op == PSYNC_READ;

	Assert(map != NULL && run->mode == PSYNC_PG_SET_LOAD);

	add_preparation(run, session, &none, session->chunk_loaded ? 0 : 1);
	add_join_methods(run, true);
	if (rows)
	{
		none.ninserts = group->nentries;
		none.inserts = palloc(group->nentries * sizeof(int));
		for (int i = 0; i < group->nentries; i++)
			none.inserts[i] = i;
		add_copy_all(run, &none);
	}
	else
		add_copy(run, map, psync_pg_sql_copy_keys(map), NULL, group->nentries, true);
}

/* ---------------------------------------------------------------- feeding */

/*
 * Hand rows to libpq, which keeps what the socket does not take: never more
 * than some pieces, so a huge row is waited for.
 */
static void
put(PsyncPgSession *session, const char *data, int size)
{
	int			unsent = 0;

	Assert(size >= 0);

	while (size > 0)
	{
		int			piece = Min(size, PSYNC_PG_PIECE_BYTES);

		if (unsent >= PSYNC_PG_UNSENT_BYTES_MAX)
		{
			psync_pg_flush(session);
			unsent = 0;
		}
		if (PQputCopyData(session->conn, data, piece) != 1)
			psync_pg_lost(session);
		data += piece;
		size -= piece;
		unsent += piece;
	}
}

/*
 * Rows that stand in the group as they are to be sent, in long stretches:
 * images of one table that follow each other in the log are sent by a pointer
 * and a size.  This is where a large window is fast.
 */
static void
feed_verbatim(PsyncPgSession *session, const PsyncPgGroup *group, Step *step)
{
	uint32		start = 0;
	uint32		end = 0;
	uint32		size = 0;

	Assert(step->entries != NULL && step->map->verbatim);

	while (step->next < step->n && size < PSYNC_PG_PIECE_BYTES)
	{
		const PsyncPgEntry *entry = &group->entries[step->entries[step->next++]];

		if (entry->image_at != end)
		{
			put(session, group->data.data + start, end - start);
			start = entry->image_at;
		}
		end = entry->image_at + entry->image_size;
		size += entry->image_size;
	}
	put(session, group->data.data + start, end - start);
}

/*
 * Rows, or keys, that must be put together: some columns are not sent, or not
 * in the form that the image has.
 */
static void
feed_composed(PsyncPgSession *session, const PsyncPgGroup *group, Step *step)
{
	PsyncPgMap *map = step->map;
	PsyncPgField *fields = palloc(map->shape->ncolumns * sizeof(PsyncPgField));
	StringInfoData buf;

	initStringInfo(&buf);
	while (step->next < step->n && buf.len < PSYNC_PG_PIECE_BYTES)
	{
		int			i = step->next++;
		const PsyncPgEntry *entry = &group->entries[step->entries ? step->entries[i] : i];
		bool		old = step->keys && entry->part_size > 0;

		psync_pg_entry_fields(group, entry, old ? NULL : fields, old ? fields : NULL);
		if (step->keys)
			psync_pg_copy_key(&buf, map, fields);
		else
			psync_pg_copy_row(&buf, map, fields);
	}
	put(session, buf.data, buf.len);
	pfree(buf.data);
	pfree(fields);
}

/*
 * The data of one COPY: header, rows, trailer.  Does not wait, but for huge
 * rows.  False if the socket takes no more now: libpq would keep the rest, and
 * never give back the memory that it took for that.
 */
static bool
feed(PsyncPgSession *session, PsyncPgSetRun *run)
{
	/* signature, flags, length of header extension */
	static const char header[] = "PGCOPY\n\377\r\n\0\0\0\0\0\0\0\0\0";
	static const char trailer[] = "\377\377";
	Step	   *step = run->feeding;

	Assert(step->kind == STEP_COPY);
	StaticAssertStmt(sizeof(header) - 1 == 19, "COPY BINARY header has 19 bytes");

	if (step->next == 0)
		put(session, header, sizeof(header) - 1);
	while (step->next < step->n)
	{
		int			rc;

		if (step->map->verbatim && !step->keys)
			feed_verbatim(session, run->group, step);
		else
			feed_composed(session, run->group, step);

		/* which reads, too, if the socket is full */
		(void) psync_pg_input_begin(session);
		rc = PQflush(session->conn);
		if (rc < 0)
			psync_pg_lost(session);
		if (rc > 0 && step->next < step->n)
			return false;
	}
	put(session, trailer, sizeof(trailer) - 1);
	if (PQputCopyEnd(session->conn, NULL) != 1)
		psync_pg_lost(session);
	run->feeding = NULL;
	return true;
}

/* ---------------------------------------------------------------- running */

/*
 * The step that an answer is about; an error if all steps were answered, or
 * one has failed, after which the target skips what follows.
 */
static Step *
answered_step(PsyncPgSession *session)
{
	PsyncPgSetRun *run = session->run;

	if (run->failed || run->current >= run->nsteps)
		psync_pg_unexpected(session, "It answered more commands than were sent.");
	return &run->steps[run->current];
}

/*
 * The target asks for the rows of a COPY.
 */
static void
step_copies(PsyncPgSession *session)
{
	Step	   *step = answered_step(session);

	if (step->kind != STEP_COPY || step->fed)
		psync_pg_unexpected(session, "It asked for rows where there are none.");
	step->fed = true;
	session->run->feeding = step;
}

/*
 * A command has succeeded; an UPDATE is noted if it has hit fewer rows than
 * were sent.
 */
static void
step_done(PsyncPgSession *session, PGresult *result)
{
	PsyncPgSetRun *run = session->run;
	Step	   *step = answered_step(session);

	if (step->kind == STEP_COPY && !step->fed)
		psync_pg_unexpected(session, "It has finished COPY without rows.");
	if (step->kind == STEP_UPDATE &&
		strtoul(PQcmdTuples(result), NULL, 10) != (unsigned long) step->n)
		run->incomplete = lappend(run->incomplete, step->map);
	run->current++;
}

/*
 * A command has failed: the rest of the string is void.  Only the first error
 * arrives, since the target skips what follows it.
 */
static void
step_failed(PsyncPgSession *session, PGresult *result)
{
	PsyncPgSetRun *run = session->run;
	Step	   *step;

	if (run->failed)
		psync_pg_unexpected(session, "It reported two errors for one command.");
	psync_pg_error_take(&run->error, result);
	run->failed = true;

	if (run->current >= run->nsteps)
		return;
	step = &run->steps[run->current];
	if (step->check || step->identity)
		psync_pg_error_of_check(&run->error, step->map, step->identity);

	/* rows were there that should not be: do not try that way again soon */
	if (step->direct)
		step->map->direct_failed = true;
}

/*
 * Send what the target is to be fed with.  With "wait", all of it; without,
 * false if the rest must wait.
 */
static bool
feed_on(PsyncPgSession *session, bool wait)
{
	while (session->run->feeding != NULL && !feed(session, session->run))
	{
		if (!wait)
			return false;
		psync_pg_flush(session);
	}
	return true;
}

/*
 * Go on with what has come; true when all is done.  With "wait", until all is
 * done; without, as far as it goes without waiting.
 */
static bool
advance(PsyncPgSession *session, bool wait)
{
	while (feed_on(session, wait) && (wait || psync_pg_result_ready(session)))
	{
		PGresult   *result = wait ? psync_pg_get_result(session) :
			psync_pg_take_result(session);

		if (result == NULL)
			return true;
		switch (PQresultStatus(result))
		{
			case PGRES_COPY_IN:
				step_copies(session);
				break;
			case PGRES_COMMAND_OK:
			case PGRES_TUPLES_OK:
				step_done(session, result);
				break;
			default:
				step_failed(session, result);
				break;
		}
		if (PQstatus(session->conn) == CONNECTION_BAD)
			psync_pg_lost(session);
	}
	return false;
}

/*
 * Send the group's commands and begin to feed them.  The group must stay as it
 * is until psync_pg_set_finish().
 */
void
psync_pg_set_start(PsyncPgSession *session, PsyncPgGroup *group,
				   PsyncPgSetMode mode)
{
	MemoryContext old = MemoryContextSwitchTo(session->scratch);
	PsyncPgSetRun *run = palloc0(sizeof(PsyncPgSetRun));

	Assert(session->run == NULL);
	Assert(!group->has_truncate);
	Assert(PQpipelineStatus(session->conn) == PQ_PIPELINE_OFF);

	run->group = group;
	run->mode = mode;
	initStringInfo(&run->sql);
	run->steps_size = 16;
	run->steps = palloc(run->steps_size * sizeof(Step));
	if (mode == PSYNC_PG_SET_LOAD)
		plan_load(run, session, linitial(group->maps));
	else
		plan(run, session);

	if (!PQsendQuery(session->conn, run->sql.data))
		psync_pg_lost(session);
	session->run = run;
	session->in_transaction = true;
	session->in_savepoint = true;
	(void) advance(session, false);
	MemoryContextSwitchTo(old);
}

/*
 * See whether the target can be fed further, without waiting.  Called while
 * the next group grows.
 */
void
psync_pg_set_poke(PsyncPgSession *session)
{
	MemoryContext old = MemoryContextSwitchTo(session->scratch);

	/* the end of results is left for finish() to find */
	if (!session->run->failed && session->run->current < session->run->nsteps)
		(void) advance(session, false);
	MemoryContextSwitchTo(old);
}

/*
 * Rows that the target did not have are inserted after all.
 */
static void
complete(PsyncPgSession *session, PsyncPgSetRun *run)
{
	ListCell   *lc;

	foreach(lc, run->incomplete)
	{
		if (!psync_pg_try(session, psync_pg_sql_insert_missing(lfirst(lc)), &run->error))
		{
			run->failed = true;
			return;
		}
	}
}

/*
 * Wait until the group is applied.  False if the target refused it: then all
 * is undone up to the savepoint.
 */
bool
psync_pg_set_finish(PsyncPgSession *session, PsyncPgFailure *failure)
{
	MemoryContext old = MemoryContextSwitchTo(session->scratch);
	PsyncPgSetRun *run = session->run;

	Assert(run != NULL);
	(void) advance(session, true);
	session->run = NULL;
	if (!run->failed)
	{
		if (run->current != run->nsteps)
			psync_pg_unexpected(session, "It answered fewer commands than were sent.");
		complete(session, run);
	}
	MemoryContextSwitchTo(old);
	if (!run->failed)
		return true;

	/* not even a savepoint: the session is of no use */
	if (run->current <= run->savepoint)
		psync_pg_error_raise(session, &run->error, "could not prepare to apply changes");
	failure->what = PSYNC_PG_WHAT_GROUP;
	failure->entry = -1;
	failure->error = run->error;
	psync_pg_execute(session, "ROLLBACK TO SAVEPOINT " PSYNC_PG_SAVEPOINT);
	return false;
}
