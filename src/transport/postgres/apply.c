/*
 * apply.c
 *		Applying windows: groups, and ways around constraints.
 *
 * A window that is small is one group and one round trip (apply_pipeline.c).
 * A larger one is cut into groups, each applied set-wise (apply_set.c) while
 * the next one grows.  Either way all of it is one transaction at the target,
 * and the position is its last statement (P5).
 *
 * Constraints.  The source has met its constraints at the end of each
 * statement, or of each transaction if they are deferrable there.  The target
 * checks its own after each of our statements, so the same changes may be
 * refused although source and target agree.  Then the group is taken back, to
 * its savepoint, and tried in another way:
 *
 *	in order		as it happened.  Right whenever the source's constraints were
 *					checked at once and the change of one row is a statement.
 *	by table		in order within each table, referenced tables first, deletes
 *					from referenced tables last.  Children that arrive before
 *					their parents; keys changed with ON UPDATE CASCADE, where
 *					the source logs the children's change first.
 *	upsert			what the group comes to, set-wise.  Rows of a table that
 *					reference each other.
 *	replace			the same, with rows of all tables taken away and put back in
 *					one statement, at whose end foreign keys are checked.  Values
 *					of a unique column that were swapped under a deferrable
 *					constraint; tables that reference each other.
 *
 * Small groups begin in order, large ones set-wise.  If the target's
 * constraints are deferrable they are deferred and nothing of this is needed.
 *
 * A foreign key may still be violated because a large window was cut between
 * a row and the row it references.  Then the group is kept and grows further
 * before it is tried again, up to PSYNC_PG_GROUP_BYTES_LIMIT.
 *
 * What is never done: taking away a row that rows of others depend on, where
 * the target would delete or change those in turn.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"

/* A group that constraints keep from being applied grows up to this. */
#define PSYNC_PG_GROUP_BYTES_LIMIT	(16 * 1024 * 1024)

/* See whether the target can be fed after this many changes. */
#define PSYNC_PG_POKE_CHANGES		64

typedef enum Strategy
{
	STRATEGY_IN_ORDER,
	STRATEGY_BY_TABLE,
	STRATEGY_UPSERT,
	STRATEGY_REPLACE
#define NSTRATEGIES	(STRATEGY_REPLACE + 1)
} Strategy;

/*
 * Two groups, for the life of the session: their buffers are used again and
 * again.
 */
void
psync_pg_apply_init(PsyncPgSession *session)
{
	session->growing = psync_pg_group_create(session->context);
	session->spare = psync_pg_group_create(session->context);
	session->growing_max = PSYNC_PG_GROUP_BYTES_MAX;
}

/* ------------------------------------------------------------- strategies */

/* Sort key of an entry: its place in the order "by table". */
typedef struct TableOrder
{
	int			rank;			/* negative for deletes, which go last */
	bool		last;
	int			entry;
} TableOrder;

/*
 * Rows first, by rank; then deletes, whose ranks are negative, from the
 * highest table down.  Within a table, as it happened (P4).
 */
static int
compare_table_order(const void *a, const void *b)
{
	const TableOrder *x = a;
	const TableOrder *y = b;

	if (x->last != y->last)
		return x->last ? 1 : -1;
	if (x->rank != y->rank)
		return x->rank < y->rank ? -1 : 1;
	return x->entry < y->entry ? -1 : 1;
}

/* Which entries are the last of their key, and delete it? */
static bool *
find_last_deletes(const PsyncPgGroup *group)
{
	bool	   *last = palloc0(group->nentries * sizeof(bool));
	int			n;
	PsyncPgNet *nets = psync_pg_collapse(group, &n);

	for (int i = 0; i < n; i++)
	{
		for (int j = 0; j < nets[i].ndeletes; j++)
			last[nets[i].deletes[j]] = true;
	}
	return last;
}

/*
 * Only deletes after which their key does not come back may go last: the row
 * that has come back would go with them.
 */
static int *
order_by_table(const PsyncPgGroup *group)
{
	TableOrder *sorted = palloc(group->nentries * sizeof(TableOrder));
	int		   *order = palloc(group->nentries * sizeof(int));
	bool	   *last_deletes = find_last_deletes(group);

	Assert(!group->has_truncate);
	psync_pg_rank_tables(group);
	for (int i = 0; i < group->nentries; i++)
	{
		const PsyncPgEntry *entry = &group->entries[i];

		sorted[i].last = entry->op == PSYNC_DELETE && last_deletes[i] &&
			entry->table->referenced;
		sorted[i].rank = sorted[i].last ? -entry->table->rank : entry->table->rank;
		sorted[i].entry = i;
	}
	qsort(sorted, group->nentries, sizeof(TableOrder), compare_table_order);
	for (int i = 0; i < group->nentries; i++)
		order[i] = sorted[i].entry;
	pfree(sorted);
	pfree(last_deletes);
	return order;
}

/* Keys are compared by bytes above, so those must be all there is to them. */
static bool
may_order_by_table(const PsyncPgGroup *group)
{
	ListCell   *lc;

	if (group->has_truncate || list_length(group->maps) < 2)
		return false;
	foreach(lc, group->maps)
	{
		PsyncPgMap *map = lfirst(lc);

		if (map->key_ambiguous && map->table->referenced)
			return false;
	}
	return true;
}

/*
 * Set-wise, a change of key deletes the old row and inserts the new one.  That
 * must not be where rows of tables that are not ours would go with it.
 */
static bool
may_apply_set(const PsyncPgGroup *group)
{
	ListCell   *lc;

	if (group->has_truncate)
		return false;
	foreach(lc, group->maps)
	{
		if (group->key_changed &&
			((PsyncPgMap *) lfirst(lc))->table->actions_outside)
			return false;
	}
	return true;
}

/*
 * Could the strategy succeed where the others have failed, and would it be
 * right?
 */
static bool
is_worth_trying(const PsyncPgGroup *group, Strategy strategy,
				const PsyncPgFailure *last)
{
	switch (strategy)
	{
		case STRATEGY_IN_ORDER:
			return true;
		case STRATEGY_BY_TABLE:
			return may_order_by_table(group);
		case STRATEGY_UPSERT:
		case STRATEGY_REPLACE:
			return may_apply_set(group);
	}
	return false;
}

/*
 * One attempt, within the group's savepoint; false if it was undone.  The
 * savepoint is there again in either case, for the next attempt or the next
 * group.
 */
static bool
try_strategy(PsyncPgSession *session, PsyncPgGroup *group, Strategy strategy,
			 PsyncPgFailure *failure)
{
	int		   *order = NULL;

	Assert(session->in_savepoint);
	switch (strategy)
	{
		case STRATEGY_BY_TABLE:
			order = order_by_table(group);
			/* fall through */
		case STRATEGY_IN_ORDER:
			if (psync_pg_pipeline_run(session, group, order, 0, NULL, failure))
				return true;
			psync_pg_execute(session, "ROLLBACK TO SAVEPOINT " PSYNC_PG_SAVEPOINT);
			return false;
		case STRATEGY_UPSERT:
			psync_pg_set_start(session, group, PSYNC_PG_SET_UPSERT);
			return psync_pg_set_finish(session, failure);
		case STRATEGY_REPLACE:
			psync_pg_set_start(session, group, PSYNC_PG_SET_REPLACE);
			return psync_pg_set_finish(session, failure);
	}
	return false;
}

/*
 * The target has refused the group, and it is undone: try what is left.  True
 * if it is applied now; otherwise *failure is the best that can be said: which
 * change of the group it was, if the attempt in order has told.
 */
static bool
resolve(PsyncPgSession *session, PsyncPgGroup *group, bool in_order_tried,
		PsyncPgFailure *failure)
{
	static const Strategy small_first[NSTRATEGIES] =
	{STRATEGY_IN_ORDER, STRATEGY_BY_TABLE, STRATEGY_UPSERT, STRATEGY_REPLACE};
	static const Strategy large_first[NSTRATEGIES] =
	{STRATEGY_UPSERT, STRATEGY_IN_ORDER, STRATEGY_BY_TABLE, STRATEGY_REPLACE};
	const Strategy *strategies = in_order_tried ? small_first : large_first;
	PsyncPgFailure last = *failure;

	for (int i = in_order_tried ? 1 : 0; i < NSTRATEGIES; i++)
	{
		/* what is wrong with a value stays wrong in any order */
		if (last.what == PSYNC_PG_WHAT_ENTRY &&
			!psync_pg_error_is_constraint(&last.error))
			return false;
		if (!psync_pg_error_is_change(&last.error))
			return false;
		if (!is_worth_trying(group, strategies[i], &last))
			continue;
		if (try_strategy(session, group, strategies[i], &last))
			return true;

		/* the change in order is what people can look at */
		if (failure->what != PSYNC_PG_WHAT_ENTRY || strategies[i] == STRATEGY_IN_ORDER)
			*failure = last;
	}
	return false;
}

/* ----------------------------------------------------------------- groups */

/*
 * Make the refused group the growing one again, with what has come since.
 * False if it must not grow further: then the error is real, or the window is
 * cut in a place that more memory would not mend (P7).
 */
static bool
keep_growing(PsyncPgSession *session, const PsyncPgFailure *failure)
{
	PsyncPgGroup *kept = session->spare;
	PsyncPgGroup *later = session->growing;
	ListCell   *lc;

	Assert(session->spare->nentries > 0 && !session->applying);

	/* one buffer cannot hold more than 1 GB, and each may hold a huge row */
	if ((uint64) kept->data.len + later->data.len >= MaxAllocSize)
		return false;
	if (failure->error.sqlstate != ERRCODE_FOREIGN_KEY_VIOLATION ||
		session->growing_max >= PSYNC_PG_GROUP_BYTES_LIMIT ||
		kept->batch || later->batch || later->has_truncate)
		return false;
	foreach(lc, later->maps)
	{
		if (!psync_pg_group_takes(kept, lfirst(lc)))
			return false;
	}
	session->growing_max *= 2;
	psync_pg_group_merge(kept, later);
	psync_pg_group_reset(later);
	session->growing = kept;
	session->spare = later;
	return true;
}

/*
 * Does the failure concern a chunk whose rows may refer to later ones?  It is
 * taken back as a whole then (apply_batch.c).
 */
static bool
is_refused_chunk(const PsyncPgSession *session, const PsyncPgFailure *failure)
{
	return session->chunk_circular &&
		failure->error.sqlstate == ERRCODE_FOREIGN_KEY_VIOLATION;
}

/*
 * Wait until nothing is under way at the target.  If the group that was is
 * refused by a foreign key, and more changes may follow, it is kept.  Raises
 * what cannot be resolved.
 */
static void
finish_group(PsyncPgSession *session, bool more_may_follow)
{
	PsyncPgFailure failure;

	if (!session->applying)
		return;
	session->applying = false;
	if (!psync_pg_set_finish(session, &failure) &&
		(is_refused_chunk(session, &failure) ||
		 !resolve(session, session->spare, false, &failure)))
	{
		if (is_refused_chunk(session, &failure))
		{
			session->chunk_refused = true;
			psync_pg_group_reset(session->spare);
		}
		else if (!more_may_follow || !keep_growing(session, &failure))
			psync_pg_failure_raise(session, session->spare, &failure);
	}
	else
	{
		session->growing_max = PSYNC_PG_GROUP_BYTES_MAX;
		psync_pg_group_reset(session->spare);
	}
	MemoryContextReset(session->scratch);
}

/*
 * To be called before anything else is asked of the target: it answers one
 * thing at a time.
 */
void
psync_pg_apply_wait(PsyncPgSession *session)
{
	finish_group(session, true);
}

/*
 * A savepoint right before the group that comes.  The one of the group before
 * is given up, with the right to undo it: it is applied.  In this way there is
 * one at any time, however large the window.
 */
static void
ensure_savepoint(PsyncPgSession *session)
{
	if (!session->in_transaction)
		psync_pg_execute(session,
						 psprintf("%s; SET CONSTRAINTS ALL DEFERRED; SAVEPOINT " PSYNC_PG_SAVEPOINT,
								  psync_pg_begin_commands(session)));
	else
		psync_pg_execute(session,
						 session->in_savepoint ?
						 "RELEASE SAVEPOINT " PSYNC_PG_SAVEPOINT "; SAVEPOINT " PSYNC_PG_SAVEPOINT :
						 "SAVEPOINT " PSYNC_PG_SAVEPOINT);
	session->in_transaction = true;
	session->in_savepoint = true;
	Assert(!session->applying && session->run == NULL);
}

/*
 * A savepoint for a chunk as a whole, which may have several groups; to be
 * called when nothing is under way.
 */
void
psync_pg_apply_protect(PsyncPgSession *session)
{
	ensure_savepoint(session);
	psync_pg_execute(session, "RELEASE SAVEPOINT " PSYNC_PG_SAVEPOINT
					 "; SAVEPOINT " PSYNC_PG_CHUNK_SAVEPOINT);
	session->in_savepoint = false;
}

/*
 * Apply a group change by change, and wait for it.
 */
static void
apply_in_order(PsyncPgSession *session, PsyncPgGroup *group)
{
	PsyncPgFailure failure;

	Assert(group->nentries > 0 && !session->applying);

	ensure_savepoint(session);
	if (!try_strategy(session, group, STRATEGY_IN_ORDER, &failure) &&
		!resolve(session, group, true, &failure))
		psync_pg_failure_raise(session, group, &failure);
	psync_pg_group_reset(group);
	MemoryContextReset(session->scratch);
}

/*
 * Send the growing group off.  The one before must be done first; if that is
 * kept, it has become part of this one.
 */
void
psync_pg_apply_submit(PsyncPgSession *session)
{
	PsyncPgGroup *group;

	psync_pg_apply_wait(session);
	group = session->growing;
	if (group->nentries == 0)
		return;
	session->since_poke = 0;
	if (psync_pg_group_is_small(group) || !may_apply_set(group))
	{
		apply_in_order(session, group);
		return;
	}
	session->growing = session->spare;
	session->spare = group;
	Assert(session->growing->nentries == 0);
	psync_pg_set_start(session, group, PSYNC_PG_SET_FAST);
	session->applying = true;
}

/*
 * Must the growing group be sent before it can take this change?  By its size,
 * by its shape (one map per table), or because a TRUNCATE is applied in order,
 * which a large group would make slow.
 */
static bool
submit_before(const PsyncPgSession *session, const PsyncChange *change,
			  const PsyncPgMap *map)
{
	const PsyncPgGroup *group = session->growing;

	if (group->nentries == 0)
		return false;

	/* tables truncated together can only be truncated together */
	if (change->op == PSYNC_TRUNCATE &&
		group->entries[group->nentries - 1].op == PSYNC_TRUNCATE)
		return false;
	if (map != NULL && !psync_pg_group_takes(group, map))
		return true;
	/* one buffer cannot hold more than 1 GB, and two changes may be as large */
	if ((uint64) group->data.len + change->new_size + change->old_size >
		Max(session->growing_max, PSYNC_PG_GROUP_BYTES_MAX))
		return true;
	if (group->nentries >= PSYNC_PG_GROUP_CHANGES_MAX *
		(session->growing_max / PSYNC_PG_GROUP_BYTES_MAX))
		return true;
	/* a group with a TRUNCATE is applied in order, so it is kept small */
	return (group->has_truncate || change->op == PSYNC_TRUNCATE) &&
		!psync_pg_group_is_small(group);
}

/* The window changes the table: see HOOK_MADE in position.c. */
void
psync_pg_apply_touch(PsyncPgSession *session, PsyncPgTable *table)
{
	MemoryContext old;

	if (table->touched || table->hooked)
		return;
	old = MemoryContextSwitchTo(session->context);
	session->touched = lappend(session->touched, table);
	table->touched = true;
	MemoryContextSwitchTo(old);
}

/*
 * Take a change of the window.  It is copied; what it points to may be gone
 * when this returns.  May send a group, and wait for the one before.
 */
void
psync_pg_apply_change(PsyncPgSession *session, const PsyncChange *change)
{
	PsyncPgMap *map = NULL;
	PsyncPgTable *table;
	PsyncChange converted = *change;

	if (change->op == PSYNC_TRUNCATE)
		table = psync_pg_table_get(session, change->table);
	else
	{
		map = psync_pg_map_get(session, change->shape, change->table);
		table = map->table;
		if (map->shape != map->from)
			psync_pg_convert_change(session, map, &converted);
	}
	psync_pg_apply_touch(session, table);
	if (submit_before(session, &converted, map))
		psync_pg_apply_submit(session);
	psync_pg_group_add(session->growing, &converted, map, table);

	if (session->applying && ++session->since_poke >= PSYNC_PG_POKE_CHANGES)
	{
		session->since_poke = 0;
		psync_pg_set_poke(session);
	}
}

/* ----------------------------------------------------------------- commit */

/*
 * The window is at the target: forget what belonged to it.  Temporary tables
 * are empty after a commit, or gone.
 */
static void
window_committed(PsyncPgSession *session, const char *position)
{
	ListCell   *lc;

	foreach(lc, session->maps)
	{
		PsyncPgMap *map = lfirst(lc);

		map->temp_used = false;
		if (session->pooled)
			map->temp_created = false;
	}
	foreach(lc, session->touched)
		((PsyncPgTable *) lfirst(lc))->touched = false;
	list_free(session->touched);
	session->touched = NIL;
	session->in_transaction = false;
	session->in_savepoint = false;
	psync_pg_position_recorded(session, position);
	psync_pg_group_reset(session->growing);
	psync_pg_group_release(session->growing);
	psync_pg_group_release(session->spare);
	MemoryContextReset(session->scratch);
	Assert(!session->applying && session->spare->nentries == 0);
}

/*
 * A window in one round trip; false if that was refused and undone.  Errors
 * that no other way of applying would mend are raised.
 */
static bool
commit_at_once(PsyncPgSession *session, const char *position)
{
	PsyncPgFailure failure;

	Assert(!session->in_transaction);
	if (psync_pg_pipeline_run(session, session->growing, NULL,
							  PSYNC_PG_BEGIN | PSYNC_PG_COMMIT, position, &failure))
		return true;
	if (!psync_pg_error_is_constraint(&failure.error) ||
		failure.what == PSYNC_PG_WHAT_POSITION)
		psync_pg_failure_raise(session, session->growing, &failure);
	psync_pg_execute(session, "ROLLBACK");
	return false;
}

/*
 * Apply what is left, record the position, commit (P5).  Returns when the
 * target has confirmed the commit; raises if it has not, and then nobody here
 * knows whether it did: the position read by the next session says so.
 */
void
psync_pg_apply_commit(PsyncPgSession *session, const char *position)
{
	PsyncPgFailure failure;

	Assert(position != NULL);
	psync_pg_apply_wait(session);
	if (!session->in_transaction && psync_pg_group_is_small(session->growing) &&
		commit_at_once(session, position))
	{
		window_committed(session, position);
		return;
	}
	psync_pg_apply_submit(session);
	finish_group(session, false);
	Assert(session->in_transaction && session->growing->nentries == 0);
	if (!psync_pg_pipeline_run(session, session->growing, NULL, PSYNC_PG_COMMIT,
							   position, &failure))
		psync_pg_failure_raise(session, session->growing, &failure);
	window_committed(session, position);
}

/*
 * Make durable what was committed so far.  Windows are committed without
 * waiting for the target's disk: if the target crashes it loses the last ones
 * together with their position, and they are sent again, since the core
 * forgets nothing before it has called this.  A commit that does wait flushes
 * all WAL before it.
 *
 * It is a window without changes, so it fails if the target has another
 * position: behind this connection may be another server than before.
 */
void
psync_pg_apply_flush(PsyncPgSession *session)
{
	PsyncPgFailure failure;

	Assert(!session->in_transaction && session->growing->nentries == 0);
	if (session->position == NULL)
		return;
	if (!psync_pg_pipeline_run(session, session->growing, NULL,
							   PSYNC_PG_BEGIN | PSYNC_PG_COMMIT | PSYNC_PG_DURABLE,
							   session->position, &failure))
		psync_pg_failure_raise(session, session->growing, &failure);
	window_committed(session, session->position);
}
