/*
 * set_statement.c
 *		The SQL that takes many rows at once, from temporary tables.
 *
 * A map has two: psync_rows_N with columns c1 … cn and psync_keys_N with k1 … km.
 * They live in pg_temp, which comes first in the (otherwise empty) search_path
 * but is named anyway.  As for identity columns, triggers, rules and ONLY, see
 * statement.c.
 */
#include "postgres.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"
#include "transport/postgres/statement.h"

/*
 * r.c1, r.c2::type, … of the temporary table of rows
 */
static void
add_temp_columns(StringInfo sql, const PsyncPgMap *map)
{
	for (int i = 0; i < map->ncolumns; i++)
		appendStringInfo(sql, "%sr.c%d%s", i > 0 ? ", " : "", i + 1,
						 map->columns[i].temp_cast);
}

/* t.key = r.cN, … or t.key = k.kN, … */
static void
add_key_equals_temp(StringInfo sql, const PsyncPgMap *map, bool rows)
{
	for (int k = 0; k < map->nkeys; k++)
	{
		const PsyncPgMapColumn *column = psync_pg_key_column(map, k);

		appendStringInfo(sql, "%st.%s %s %s%d%s", k > 0 ? " AND " : "",
						 column->name, column->equals, rows ? "r.c" : "k.k",
						 rows ? map->keys[k] + 1 : k + 1, column->temp_cast);
	}
}

/*
 * A temporary table for rows.  It has the columns' types at the target where
 * those are the same as here, so that COPY checks the values as an insertion
 * would.  It goes with the transaction if the session may not keep it.
 */
char *
psync_pg_sql_create_temp_rows(const PsyncPgMap *map, bool drop)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "CREATE TEMPORARY TABLE pg_temp.psync_rows_%u (", map->id);
	for (int i = 0; i < map->ncolumns; i++)
		appendStringInfo(&sql, "%sc%d %s", i > 0 ? ", " : "", i + 1,
						 map->columns[i].temp_type);
	appendStringInfoString(&sql, drop ? ") ON COMMIT DROP" : ") ON COMMIT DELETE ROWS");
	return sql.data;
}

/*
 * Likewise for keys.
 */
char *
psync_pg_sql_create_temp_keys(const PsyncPgMap *map, bool drop)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "CREATE TEMPORARY TABLE pg_temp.psync_keys_%u (", map->id);
	for (int k = 0; k < map->nkeys; k++)
		appendStringInfo(&sql, "%sk%d %s", k > 0 ? ", " : "", k + 1,
						 psync_pg_key_column(map, k)->temp_type);
	appendStringInfoString(&sql, drop ? ") ON COMMIT DROP" : ") ON COMMIT DELETE ROWS");
	return sql.data;
}

/*
 * For a second group in one transaction; a commit empties them by itself.
 */
char *
psync_pg_sql_truncate_temp(const PsyncPgMap *map)
{
	Assert(map->temp_created);

	return psprintf("TRUNCATE pg_temp.psync_rows_%u, pg_temp.psync_keys_%u",
					map->id, map->id);
}

/*
 * Straight into the table: new rows only, for COPY knows no ON CONFLICT.
 */
char *
psync_pg_sql_copy_direct(const PsyncPgMap *map)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "COPY %s (", map->table->name);
	psync_pg_add_column_names(&sql, map);
	appendStringInfoString(&sql, ") FROM STDIN (FORMAT binary)");
	return sql.data;
}

/*
 * Images as they stand, when the map is verbatim.
 */
char *
psync_pg_sql_copy_rows(const PsyncPgMap *map)
{
	return psprintf("COPY pg_temp.psync_rows_%u FROM STDIN (FORMAT binary)", map->id);
}

/*
 * Keys of deletes, or of a chunk's rows.
 */
char *
psync_pg_sql_copy_keys(const PsyncPgMap *map)
{
	return psprintf("COPY pg_temp.psync_keys_%u FROM STDIN (FORMAT binary)", map->id);
}

/*
 * Known rows get their values; NULL if there is nothing beside the key.
 * Counts the rows it hits, see apply_set.c.
 */
char *
psync_pg_sql_update(const PsyncPgMap *map)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "UPDATE %s%s t SET ", psync_pg_only(map->table), map->table->name);
	if (psync_pg_add_assignments(&sql, map, PSYNC_PG_FROM_TEMP, false) == 0)
		return NULL;
	appendStringInfo(&sql, " FROM pg_temp.psync_rows_%u r WHERE ", map->id);
	add_key_equals_temp(&sql, map, true);
	return sql.data;
}

/*
 * "if the row is not what it should be", for any types: compares bytes.  By
 * the function, since an operator between two ROW() constructors compares
 * them column by column.
 */
static void
add_if_different(StringInfo sql, const PsyncPgMap *map)
{
	const char *aliases[2] = {"t", "EXCLUDED"};

	for (int side = 0; side < 2; side++)
	{
		int			n = 0;

		appendStringInfoString(sql, side == 0 ?
							   " WHERE pg_catalog.record_image_ne(ROW(" : "), ROW(");
		for (int i = 0; i < map->ncolumns; i++)
		{
			if ((!map->columns[i].key || map->key_ambiguous) &&
				!map->columns[i].target->identity_always)
				appendStringInfo(sql, "%s%s.%s", n++ > 0 ? ", " : "", aliases[side],
								 map->columns[i].name);
		}
		Assert(n > 0);
	}
	appendStringInfoString(sql, "))");
}

/*
 * With if_different, rows that are as they should be are left alone, for
 * batches, which meet many such rows if they are done again.
 */
char *
psync_pg_sql_upsert(const PsyncPgMap *map, bool if_different)
{
	StringInfoData sql;

	initStringInfo(&sql);
	psync_pg_add_insert_head(&sql, map);
	appendStringInfoString(&sql, "SELECT ");
	add_temp_columns(&sql, map);
	appendStringInfo(&sql, " FROM pg_temp.psync_rows_%u r", map->id);
	if (psync_pg_add_on_conflict_update(&sql, map) && if_different)
		add_if_different(&sql, map);
	return sql.data;
}

/*
 * Rows of which an identity column changes, as build_identity() does it.
 */
char *
psync_pg_sql_identity(const PsyncPgMap *map)
{
	StringInfoData sql;
	bool		bound = map->table->bound;

	initStringInfo(&sql);
	if (bound)
		appendStringInfo(&sql, PSYNC_PG_ERROR_IF_EXISTS "SELECT FROM %s%s t, pg_temp.psync_rows_%u r WHERE ",
						 psync_pg_only(map->table), map->table->name, map->id);
	else
		appendStringInfo(&sql, "WITH gone AS (DELETE FROM %s%s t USING pg_temp.psync_rows_%u r WHERE ",
						 psync_pg_only(map->table), map->table->name, map->id);
	add_key_equals_temp(&sql, map, true);
	appendStringInfoString(&sql, " AND (");
	psync_pg_add_identity_differs(&sql, map, true);
	if (bound)
	{
		appendStringInfoString(&sql, ")" PSYNC_PG_ERROR_END);
		return sql.data;
	}
	appendStringInfoString(&sql, ") RETURNING r.ctid AS line");
	(void) psync_pg_add_extra_columns(&sql, map, "t.");
	appendStringInfo(&sql, "), ready AS MATERIALIZED (SELECT pg_catalog.count(*) AS n FROM gone)"
					 " INSERT INTO %s (", map->table->name);
	psync_pg_add_column_names(&sql, map);
	(void) psync_pg_add_extra_columns(&sql, map, "");
	appendStringInfoString(&sql, ") OVERRIDING SYSTEM VALUE SELECT ");
	add_temp_columns(&sql, map);
	(void) psync_pg_add_extra_columns(&sql, map, "g.");
	appendStringInfo(&sql, " FROM ready, pg_temp.psync_rows_%u r JOIN gone g ON g.line = r.ctid"
					 " WHERE ready.n >= 0", map->id);
	return sql.data;
}

/* Fails unless all rows of psync_rows_N have had their effect. */
char *
psync_pg_sql_check_rows(const PsyncPgMap *map)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, PSYNC_PG_ERROR_IF_EXISTS "SELECT FROM pg_temp.psync_rows_%u r WHERE NOT EXISTS"
					 " (SELECT FROM %s%s t WHERE ", map->id, psync_pg_only(map->table), map->table->name);
	add_key_equals_temp(&sql, map, true);
	appendStringInfoString(&sql, " AND ");
	psync_pg_add_written(&sql, map, true);
	appendStringInfoString(&sql, ")" PSYNC_PG_ERROR_END);
	return sql.data;
}

/* Fails if a row of psync_keys_N is still there. */
char *
psync_pg_sql_check_gone(const PsyncPgMap *map)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, PSYNC_PG_ERROR_IF_EXISTS "SELECT FROM %s%s t, pg_temp.psync_keys_%u k WHERE ",
					 psync_pg_only(map->table), map->table->name, map->id);
	add_key_equals_temp(&sql, map, false);
	appendStringInfoString(&sql, PSYNC_PG_ERROR_END);
	return sql.data;
}

/* Add those rows that the target does not have. */
char *
psync_pg_sql_insert_missing(const PsyncPgMap *map)
{
	StringInfoData sql;

	initStringInfo(&sql);
	psync_pg_add_insert_head(&sql, map);
	appendStringInfoString(&sql, "SELECT ");
	add_temp_columns(&sql, map);
	appendStringInfo(&sql, " FROM pg_temp.psync_rows_%u r", map->id);
	psync_pg_add_arbiter(&sql, map);
	appendStringInfoString(&sql, "NOTHING");
	return sql.data;
}

/*
 * Wrap a DELETE, or not: as one of WITH with RETURNING, it fails if a rule was
 * made that would let rows stay (see statement.c).  LIMIT 0 reads none of them,
 * they are deleted all the same.
 */
static char *
unless_ruled(const PsyncPgMap *map, const char *sql)
{
	if (map->table->hooked)
		return pstrdup(sql);
	return psprintf("WITH gone AS (%s RETURNING 1) SELECT FROM gone LIMIT 0", sql);
}

/* DELETE of rows whose keys are in psync_keys_N */
static char *
delete_by_keys(const PsyncPgMap *map)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "DELETE FROM %s%s t USING pg_temp.psync_keys_%u k WHERE ",
					 psync_pg_only(map->table), map->table->name, map->id);
	add_key_equals_temp(&sql, map, false);
	return sql.data;
}

/*
 * Rows whose keys are in psync_keys_N.
 */
char *
psync_pg_sql_delete(const PsyncPgMap *map)
{
	return unless_ruled(map, delete_by_keys(map));
}

/*
 * The same, after the rows in psync_rows_N were written: fails, by a division,
 * if it has deleted one of those.  That is so if an old key is equal to a new
 * one, to the index's mind, though not in its bytes (1.0 and 1.00, or what a
 * collation holds to be the same).
 */
char *
psync_pg_sql_delete_others(const PsyncPgMap *map)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "WITH gone AS (%s RETURNING ", delete_by_keys(map));
	for (int k = 0; k < map->nkeys; k++)
		appendStringInfo(&sql, "%st.%s", k > 0 ? ", " : "", psync_pg_key_column(map, k)->name);
	appendStringInfo(&sql, ") SELECT 1 OPERATOR(pg_catalog./) CASE WHEN EXISTS"
					 " (SELECT FROM gone t JOIN pg_temp.psync_rows_%u r ON ", map->id);
	add_key_equals_temp(&sql, map, true);
	appendStringInfoString(&sql, ") THEN 0 ELSE 1 END");
	return sql.data;
}

/*
 * dropped_N: rows that will not come back; gone_N: rows that will, with what
 * only the target knows of them.  Where other rows would be deleted or changed
 * along with them, or would not let them go, rows that stay do not go in
 * between.
 */
static void
add_replace_deletes(StringInfo sql, const PsyncPgMap *map)
{
	appendStringInfo(sql, "dropped_%u AS (DELETE FROM %s%s t USING pg_temp.psync_keys_%u k WHERE ",
					 map->id, psync_pg_only(map->table), map->table->name, map->id);
	add_key_equals_temp(sql, map, false);
	appendStringInfoString(sql, " RETURNING 1), ");
	if (map->table->bound)
		return;
	appendStringInfo(sql, "gone_%u AS (DELETE FROM %s%s t USING pg_temp.psync_rows_%u r WHERE ",
					 map->id, psync_pg_only(map->table), map->table->name, map->id);
	add_key_equals_temp(sql, map, true);
	appendStringInfoString(sql, " RETURNING r.ctid AS line");
	(void) psync_pg_add_extra_columns(sql, map, "t.");
	appendStringInfoString(sql, "), ");
}

/* back_N: rows that were gone */
static void
add_replace_back(StringInfo sql, const PsyncPgMap *map)
{
	appendStringInfo(sql, ", back_%u AS (INSERT INTO %s (", map->id, map->table->name);
	psync_pg_add_column_names(sql, map);
	(void) psync_pg_add_extra_columns(sql, map, "");
	appendStringInfoString(sql, ") OVERRIDING SYSTEM VALUE SELECT ");
	add_temp_columns(sql, map);
	(void) psync_pg_add_extra_columns(sql, map, "g.");
	appendStringInfo(sql, " FROM ready, pg_temp.psync_rows_%u r JOIN gone_%u g ON g.line = r.ctid"
					 " WHERE ready.n >= 0)", map->id, map->id);
}

/* added_N: the other rows */
static void
add_replace_added(StringInfo sql, const PsyncPgMap *map)
{
	appendStringInfo(sql, ", added_%u AS (", map->id);
	psync_pg_add_insert_head(sql, map);
	appendStringInfoString(sql, "SELECT ");
	add_temp_columns(sql, map);
	appendStringInfo(sql, " FROM ready, pg_temp.psync_rows_%u r WHERE ready.n >= 0",
					 map->id);
	if (map->table->bound)
		(void) psync_pg_add_on_conflict_update(sql, map);
	else
		appendStringInfo(sql, " AND NOT EXISTS (SELECT FROM gone_%u g WHERE g.line = r.ctid)",
						 map->id);
	appendStringInfoChar(sql, ')');
}

/*
 * Take all rows of the group away and put those that stay back with their new
 * values, in one statement for all tables: unique indexes then see the old
 * values gone before the new ones come, and foreign keys without action are
 * checked only at the end, so that the order of tables does not matter.
 *
 * "ready" is there to run the deletes to their ends before the first row is
 * inserted.
 */
char *
psync_pg_sql_replace(const List *maps)
{
	StringInfoData sql;
	ListCell   *lc;

	Assert(maps != NIL);
	initStringInfo(&sql);
	appendStringInfoString(&sql, "WITH ");
	foreach(lc, maps)
		add_replace_deletes(&sql, lfirst(lc));
	appendStringInfoString(&sql, "ready AS MATERIALIZED (SELECT 0");
	foreach(lc, maps)
	{
		uint32		id = ((PsyncPgMap *) lfirst(lc))->id;

		appendStringInfo(&sql, " + (SELECT pg_catalog.count(*) FROM dropped_%u)", id);
		if (!((PsyncPgMap *) lfirst(lc))->table->bound)
			appendStringInfo(&sql, " + (SELECT pg_catalog.count(*) FROM gone_%u)", id);
	}
	appendStringInfoString(&sql, " AS n)");
	foreach(lc, maps)
	{
		if (!((PsyncPgMap *) lfirst(lc))->table->bound)
			add_replace_back(&sql, lfirst(lc));
		add_replace_added(&sql, lfirst(lc));
	}
	appendStringInfoString(&sql, " SELECT");
	return sql.data;
}

/* ------------------------------------------------- rows that have no keys */

/*
 * The planner must not take the keys for a few: it would read them all for
 * each row.
 */
char *
psync_pg_sql_analyze_keys(const PsyncPgMap *map)
{
	return psprintf("ANALYZE pg_temp.psync_keys_%u", map->id);
}

/*
 * Delete rows that are not in psync_keys_N; or, with "check", fail if there are
 * any.
 */
char *
psync_pg_sql_delete_unsent(const PsyncPgMap *map, bool check)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "%s FROM %s%s t WHERE NOT EXISTS"
					 " (SELECT FROM pg_temp.psync_keys_%u k WHERE ",
					 check ? PSYNC_PG_ERROR_IF_EXISTS "SELECT" : "DELETE", psync_pg_only(map->table),
					 map->table->name, map->id);
	add_key_equals_temp(&sql, map, false);
	appendStringInfo(&sql, ")%s", check ? PSYNC_PG_ERROR_END : "");
	return check ? sql.data : unless_ruled(map, sql.data);
}

/*
 * The upserts of several tables as one statement, at whose end foreign keys are
 * checked: rows may refer to each other in circles.
 */
char *
psync_pg_sql_upsert_together(const List *maps)
{
	StringInfoData sql;
	ListCell   *lc;

	Assert(maps != NIL);
	initStringInfo(&sql);
	foreach(lc, maps)
	{
		const PsyncPgMap *map = lfirst(lc);

		appendStringInfo(&sql, "%supserted_%u AS (%s)",
						 sql.len > 0 ? ", " : "WITH ", map->id,
						 psync_pg_sql_upsert(map, true));
	}
	appendStringInfoString(&sql, " SELECT");
	return sql.data;
}
