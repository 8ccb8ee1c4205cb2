/*
 * statement.c
 *		The SQL of single changes: prepared statements.
 *
 * They take a new image's sent columns as $1 … $n, or a key's; those that move a
 * row take the old key behind the image.
 *
 * A column GENERATED ALWAYS AS IDENTITY takes no UPDATE: a row in which it changes
 * is deleted and inserted, with what else the target has of it, before the
 * statement that would have updated it.  Not where rows of others depend on it;
 * then the change is refused.
 *
 * A BEFORE trigger or a rule of the target may let a change of a row come to
 * nothing.  Where there are any, another statement looks: the row must have been
 * written by this transaction, or be as it should be anyway.  What must not be so
 * is made an error by a division, since the commit may be on its way already.
 * Where there are none, position.c sees that no trigger has come; a rule is an
 * error of its own for INSERT with ON CONFLICT, for UPDATE in WITH, and for
 * DELETE with RETURNING.
 *
 * ONLY keeps statements from reaching children by inheritance, which have
 * keys of their own; a partitioned table is nothing without its partitions.  A
 * table without children gets none: it may be swapped for a partitioned one
 * during the session, in which ONLY would find no row to delete.
 */
#include "postgres.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"
#include "transport/postgres/statement.h"

/* $1, $2::type, … */
static void
add_params(StringInfo sql, const PsyncPgMap *map)
{
	for (int i = 0; i < map->ncolumns; i++)
		appendStringInfo(sql, "%s$%d%s", i > 0 ? ", " : "", i + 1,
						 map->columns[i].param_cast);
}

/* t.key = $first, …; with "image", of the parameter that is in the image */
static void
add_key_equals_params(StringInfo sql, const PsyncPgMap *map, const char *alias,
					  bool image, int first)
{
	for (int k = 0; k < map->nkeys; k++)
	{
		const PsyncPgMapColumn *column = psync_pg_key_column(map, k);

		appendStringInfo(sql, "%s%s.%s %s $%d%s", k > 0 ? " AND " : "", alias,
						 column->name, column->equals,
						 image ? map->keys[k] + 1 : first + k,
						 column->param_cast);
	}
}

/* Is the key in the image the same as the old one, to the index's mind? */
static void
add_keys_equal(StringInfo sql, const PsyncPgMap *map, int first)
{
	for (int k = 0; k < map->nkeys; k++)
	{
		const PsyncPgMapColumn *column = psync_pg_key_column(map, k);

		appendStringInfo(sql, "%s$%d%s %s $%d%s", k > 0 ? " AND " : "",
						 map->keys[k] + 1, column->param_cast, column->equals,
						 first + k, column->param_cast);
	}
}

/*
 * Where no rule is known of: makes one that was made since, and that would have
 * the row stay, an error.
 */
static void
add_returning(StringInfo sql, const PsyncPgMap *map)
{
	if (!map->table->hooked)
		appendStringInfoString(sql, " RETURNING 1");
}

/*
 * A new row; or, if a batch has brought it already, its values.
 */
static void
build_upsert(StringInfo sql, const PsyncPgMap *map)
{
	psync_pg_add_insert_head(sql, map);
	appendStringInfoString(sql, "VALUES (");
	add_params(sql, map);
	appendStringInfoChar(sql, ')');
	(void) psync_pg_add_on_conflict_update(sql, map);
}

/*
 * Update a row; insert it if it is not there, which is so while a batch has
 * not come to it yet.  A mere upsert would do the same to the captured
 * columns, but it demands values for columns that only the target has, and it
 * fires triggers for inserts.
 */
static void
build_update(StringInfo sql, const PsyncPgMap *map, bool move)
{
	appendStringInfo(sql, "WITH updated AS (UPDATE %s%s t SET ", psync_pg_only(map->table),
					 map->table->name);
	if (psync_pg_add_assignments(sql, map, PSYNC_PG_FROM_PARAMS, move) == 0)
	{
		resetStringInfo(sql);
		build_upsert(sql, map);
		return;
	}
	appendStringInfoString(sql, " WHERE ");
	add_key_equals_params(sql, map, "t", !move, map->ncolumns + 1);
	appendStringInfoString(sql, " RETURNING 1) ");
	psync_pg_add_insert_head(sql, map);
	appendStringInfoString(sql, "SELECT ");
	add_params(sql, map);
	appendStringInfoString(sql, " WHERE NOT EXISTS (SELECT FROM updated)");
	(void) psync_pg_add_on_conflict_update(sql, map);
}

/*
 * By key; a row that is not there is no error, since a batch may not have come
 * to it.
 */
static void
build_delete(StringInfo sql, const PsyncPgMap *map)
{
	appendStringInfo(sql, "DELETE FROM %s%s t WHERE ", psync_pg_only(map->table), map->table->name);
	add_key_equals_params(sql, map, "t", false, 1);
	add_returning(sql, map);
}

/*
 * Before a move: if a row with the new key is in the way, that row will get
 * the new values, and the old row must go.  Keys that differ in their bytes
 * may be equal to the index (1.0 and 1.00); then the row is not in its own
 * way.
 */
static void
build_clear(StringInfo sql, const PsyncPgMap *map)
{
	int			old = map->ncolumns + 1;

	appendStringInfo(sql, "DELETE FROM %s%s t WHERE ", psync_pg_only(map->table), map->table->name);
	add_key_equals_params(sql, map, "t", false, old);
	appendStringInfoString(sql, " AND NOT (");
	add_keys_equal(sql, map, old);
	appendStringInfo(sql, ") AND EXISTS (SELECT FROM %s%s o WHERE ", psync_pg_only(map->table),
					 map->table->name);
	add_key_equals_params(sql, map, "o", true, 0);
	appendStringInfoChar(sql, ')');
	add_returning(sql, map);
}

/*
 * Before an update: if it changes an identity column, the row is replaced; or
 * the statement fails.
 */
static void
build_identity(StringInfo sql, const PsyncPgMap *map)
{
	bool		bound = map->table->bound;

	appendStringInfo(sql, "%s %s%s t WHERE ",
					 bound ? PSYNC_PG_ERROR_IF_EXISTS "SELECT FROM" : "WITH gone AS (DELETE FROM",
					 psync_pg_only(map->table), map->table->name);
	add_key_equals_params(sql, map, "t", false, map->ncolumns + 1);
	appendStringInfoString(sql, " AND (");
	psync_pg_add_identity_differs(sql, map, false);
	if (bound)
	{
		appendStringInfoString(sql, ")" PSYNC_PG_ERROR_END);
		return;
	}
	appendStringInfoString(sql, ") RETURNING 1 AS one");
	(void) psync_pg_add_extra_columns(sql, map, "t.");
	appendStringInfo(sql, ") INSERT INTO %s (", map->table->name);
	psync_pg_add_column_names(sql, map);
	(void) psync_pg_add_extra_columns(sql, map, "");
	appendStringInfoString(sql, ") OVERRIDING SYSTEM VALUE SELECT ");
	add_params(sql, map);
	(void) psync_pg_add_extra_columns(sql, map, "g.");
	appendStringInfoString(sql, " FROM gone g");
}

/* After a change: the row is there. */
static void
build_check_row(StringInfo sql, const PsyncPgMap *map)
{
	appendStringInfo(sql, "SELECT 1 OPERATOR(pg_catalog./) CASE WHEN EXISTS (SELECT FROM %s%s t WHERE ",
					 psync_pg_only(map->table), map->table->name);
	add_key_equals_params(sql, map, "t", true, 0);
	appendStringInfoString(sql, " AND ");
	psync_pg_add_written(sql, map, false);
	appendStringInfoString(sql, ") THEN 1 ELSE 0 END");
}

/* After a delete: it is not. */
static void
build_check_gone(StringInfo sql, const PsyncPgMap *map)
{
	appendStringInfo(sql, PSYNC_PG_ERROR_IF_EXISTS "SELECT FROM %s%s t WHERE ", psync_pg_only(map->table),
					 map->table->name);
	add_key_equals_params(sql, map, "t", false, 1);
	appendStringInfoString(sql, PSYNC_PG_ERROR_END);
}

/*
 * The text of one of a map's prepared statements, in the current memory
 * context.
 */
char *
psync_pg_statement(const PsyncPgMap *map, PsyncPgStatement statement)
{
	StringInfoData sql;

	Assert(statement >= 0 && statement < PSYNC_PG_STATEMENTS);

	initStringInfo(&sql);
	switch (statement)
	{
		case PSYNC_PG_UPSERT:
			build_upsert(&sql, map);
			break;
		case PSYNC_PG_UPDATE:
			build_update(&sql, map, false);
			break;
		case PSYNC_PG_DELETE:
			build_delete(&sql, map);
			break;
		case PSYNC_PG_CLEAR:
			build_clear(&sql, map);
			break;
		case PSYNC_PG_MOVE:
			build_update(&sql, map, true);
			break;
		case PSYNC_PG_IDENTITY:
			build_identity(&sql, map);
			break;
		case PSYNC_PG_CHECK_ROW:
			build_check_row(&sql, map);
			break;
		case PSYNC_PG_CHECK_GONE:
			build_check_gone(&sql, map);
			break;
	}
	return sql.data;
}

