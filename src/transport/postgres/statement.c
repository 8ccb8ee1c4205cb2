/*
 * statement.c
 *		The SQL sent to the target.
 *
 * Prepared statements take a new image's sent columns as $1 … $n, or a key's;
 * those that move a row take the old key behind the image.  Set-wise ones read
 * a map's two temporary tables, psync_rows_N with columns c1 … cn and
 * psync_keys_N with k1 … km.  Those live in pg_temp, which comes first in the
 * (otherwise empty) search_path but is named anyway.
 *
 * OVERRIDING SYSTEM VALUE lets the source's values into identity columns; on
 * other tables it means nothing.  A column GENERATED ALWAYS AS IDENTITY takes
 * no UPDATE, so it is set when the row is made and then left alone.
 *
 * ONLY keeps statements from reaching children by inheritance, which have
 * keys of their own; a partitioned table is nothing without its partitions.
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"

/* ------------------------------------------------------------------ parts */

/*
 * Nothing for a partitioned table, which has no rows of its own.
 */
static const char *
only(const PsyncPgMap *map)
{
	return map->table->relkind == RELKIND_PARTITIONED_TABLE ? "" : "ONLY ";
}

/*
 * The k-th column of the key.
 */
static const PsyncPgMapColumn *
key_column(const PsyncPgMap *map, int k)
{
	Assert(k >= 0 && k < map->nkeys);
	return &map->columns[map->keys[k]];
}

/*
 * a, b, … of all columns that are sent
 */
static void
add_column_names(StringInfo sql, const PsyncPgMap *map)
{
	for (int i = 0; i < map->ncolumns; i++)
		appendStringInfo(sql, "%s%s", i > 0 ? ", " : "", map->columns[i].name);
}

/*
 * a, b, … of the key
 */
static void
add_key_names(StringInfo sql, const PsyncPgMap *map)
{
	for (int k = 0; k < map->nkeys; k++)
		appendStringInfo(sql, "%s%s", k > 0 ? ", " : "", key_column(map, k)->name);
}

/* $1, $2::type, … */
static void
add_params(StringInfo sql, const PsyncPgMap *map)
{
	for (int i = 0; i < map->ncolumns; i++)
		appendStringInfo(sql, "%s$%d%s", i > 0 ? ", " : "", i + 1,
						 map->columns[i].param_cast);
}

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

/* t.key = $first, …; with "image", of the parameter that is in the image */
static void
add_key_equals_params(StringInfo sql, const PsyncPgMap *map, const char *alias,
					  bool image, int first)
{
	for (int k = 0; k < map->nkeys; k++)
	{
		const PsyncPgMapColumn *column = key_column(map, k);

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
		const PsyncPgMapColumn *column = key_column(map, k);

		appendStringInfo(sql, "%s$%d%s %s $%d%s", k > 0 ? " AND " : "",
						 map->keys[k] + 1, column->param_cast, column->equals,
						 first + k, column->param_cast);
	}
}

/* t.key = r.cN, … or t.key = k.kN, … */
static void
add_key_equals_temp(StringInfo sql, const PsyncPgMap *map, bool rows)
{
	for (int k = 0; k < map->nkeys; k++)
	{
		const PsyncPgMapColumn *column = key_column(map, k);

		appendStringInfo(sql, "%st.%s %s %s%d%s", k > 0 ? " AND " : "",
						 column->name, column->equals, rows ? "r.c" : "k.k",
						 rows ? map->keys[k] + 1 : k + 1, column->temp_cast);
	}
}

typedef enum SetFrom
{
	FROM_PARAMS, FROM_EXCLUDED, FROM_TEMP
} SetFrom;

/* a = …, b = …; returns their number, which may be 0 */
static int
add_assignments(StringInfo sql, const PsyncPgMap *map, SetFrom from,
				bool with_keys)
{
	int			n = 0;

	for (int i = 0; i < map->ncolumns; i++)
	{
		const PsyncPgMapColumn *column = &map->columns[i];

		if ((column->key && !with_keys) ||
			(column->target->identity_always && from != FROM_PARAMS) ||
			(column->target->identity_always && !column->key))
			continue;
		appendStringInfo(sql, "%s%s = ", n++ > 0 ? ", " : "", column->name);
		if (from == FROM_PARAMS)
			appendStringInfo(sql, "$%d%s", i + 1, column->param_cast);
		else if (from == FROM_EXCLUDED)
			appendStringInfo(sql, "EXCLUDED.%s", column->name);
		else
			appendStringInfo(sql, "r.c%d%s", i + 1, column->temp_cast);
	}
	return n;
}

/*
 * INSERT INTO t (a, b, …), for what gives the values
 */
static void
add_insert_head(StringInfo sql, const PsyncPgMap *map)
{
	Assert(map->ncolumns > 0);

	appendStringInfo(sql, "INSERT INTO %s AS t (", map->table->name);
	add_column_names(sql, map);
	appendStringInfoString(sql, ") OVERRIDING SYSTEM VALUE ");
}

/*
 * ON CONFLICT (key) DO UPDATE, or DO NOTHING if there is nothing beside the
 * key: then it returns false.  The conflict's index is the one that
 * column_map.c has found.  A key that is equal but not
 * the same is written, too.
 */
static bool
add_on_conflict_update(StringInfo sql, const PsyncPgMap *map)
{
	int			start;

	appendStringInfoString(sql, " ON CONFLICT (");
	add_key_names(sql, map);
	appendStringInfoString(sql, ") DO ");
	start = sql->len;
	appendStringInfoString(sql, "UPDATE SET ");
	if (add_assignments(sql, map, FROM_EXCLUDED, map->key_ambiguous) > 0)
		return true;

	/* nothing beside the key */
	sql->len = start;
	appendStringInfoString(sql, "NOTHING");
	return false;
}

/* ---------------------------------------------------- prepared statements */

/*
 * A new row; or, if a batch has brought it already, its values.
 */
static void
build_upsert(StringInfo sql, const PsyncPgMap *map)
{
	add_insert_head(sql, map);
	appendStringInfoString(sql, "VALUES (");
	add_params(sql, map);
	appendStringInfoChar(sql, ')');
	(void) add_on_conflict_update(sql, map);
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
	appendStringInfo(sql, "WITH updated AS (UPDATE %s%s t SET ", only(map),
					 map->table->name);
	if (add_assignments(sql, map, FROM_PARAMS, move) == 0)
	{
		resetStringInfo(sql);
		build_upsert(sql, map);
		return;
	}
	appendStringInfoString(sql, " WHERE ");
	add_key_equals_params(sql, map, "t", !move, map->ncolumns + 1);
	appendStringInfoString(sql, " RETURNING 1) ");
	add_insert_head(sql, map);
	appendStringInfoString(sql, "SELECT ");
	add_params(sql, map);
	appendStringInfoString(sql, " WHERE NOT EXISTS (SELECT FROM updated)");
	(void) add_on_conflict_update(sql, map);
}

/*
 * By key; a row that is not there is no error, since a batch may not have come
 * to it.
 */
static void
build_delete(StringInfo sql, const PsyncPgMap *map)
{
	appendStringInfo(sql, "DELETE FROM %s%s t WHERE ", only(map), map->table->name);
	add_key_equals_params(sql, map, "t", false, 1);
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

	appendStringInfo(sql, "DELETE FROM %s%s t WHERE ", only(map), map->table->name);
	add_key_equals_params(sql, map, "t", false, old);
	appendStringInfoString(sql, " AND NOT (");
	add_keys_equal(sql, map, old);
	appendStringInfo(sql, ") AND EXISTS (SELECT FROM %s%s o WHERE ", only(map),
					 map->table->name);
	add_key_equals_params(sql, map, "o", true, 0);
	appendStringInfoChar(sql, ')');
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
	}
	return sql.data;
}

/* ----------------------------------------------------- set-wise statements */

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
						 key_column(map, k)->temp_type);
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
	add_column_names(&sql, map);
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
	appendStringInfo(&sql, "UPDATE %s%s t SET ", only(map), map->table->name);
	if (add_assignments(&sql, map, FROM_TEMP, false) == 0)
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
	add_insert_head(&sql, map);
	appendStringInfoString(&sql, "SELECT ");
	add_temp_columns(&sql, map);
	appendStringInfo(&sql, " FROM pg_temp.psync_rows_%u r", map->id);
	if (add_on_conflict_update(&sql, map) && if_different)
		add_if_different(&sql, map);
	return sql.data;
}

/* Add those rows that the target does not have. */
char *
psync_pg_sql_insert_missing(const PsyncPgMap *map)
{
	StringInfoData sql;

	initStringInfo(&sql);
	add_insert_head(&sql, map);
	appendStringInfoString(&sql, "SELECT ");
	add_temp_columns(&sql, map);
	appendStringInfo(&sql, " FROM pg_temp.psync_rows_%u r ON CONFLICT (", map->id);
	add_key_names(&sql, map);
	appendStringInfoString(&sql, ") DO NOTHING");
	return sql.data;
}

/*
 * Rows whose keys are in psync_keys_N.
 */
char *
psync_pg_sql_delete(const PsyncPgMap *map)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "DELETE FROM %s%s t USING pg_temp.psync_keys_%u k WHERE ",
					 only(map), map->table->name, map->id);
	add_key_equals_temp(&sql, map, false);
	return sql.data;
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
	appendStringInfo(&sql, "WITH gone AS (%s RETURNING ", psync_pg_sql_delete(map));
	for (int k = 0; k < map->nkeys; k++)
		appendStringInfo(&sql, "%st.%s", k > 0 ? ", " : "", key_column(map, k)->name);
	appendStringInfo(&sql, ") SELECT 1 OPERATOR(pg_catalog./) CASE WHEN EXISTS"
					 " (SELECT FROM gone t JOIN pg_temp.psync_rows_%u r ON ", map->id);
	add_key_equals_temp(&sql, map, true);
	appendStringInfoString(&sql, ") THEN 0 ELSE 1 END");
	return sql.data;
}

/*
 * Append columns that only the target has, and that have values of their own,
 * each after a comma; returns how many.
 */
static int
add_extra_columns(StringInfo sql, const PsyncPgMap *map, const char *alias)
{
	int			n = 0;

	for (int i = 0; i < map->table->ncolumns; i++)
	{
		const PsyncPgColumn *column = &map->table->columns[i];
		bool		sent = column->generated;

		for (int j = 0; j < map->ncolumns && !sent; j++)
			sent = map->columns[j].target == column;
		if (!sent)
		{
			appendStringInfo(sql, ", %s%s", alias, quote_identifier(column->name));
			n++;
		}
	}
	return n;
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
					 map->id, only(map), map->table->name, map->id);
	add_key_equals_temp(sql, map, false);
	appendStringInfoString(sql, " RETURNING 1), ");
	if (map->table->bound)
		return;
	appendStringInfo(sql, "gone_%u AS (DELETE FROM %s%s t USING pg_temp.psync_rows_%u r WHERE ",
					 map->id, only(map), map->table->name, map->id);
	add_key_equals_temp(sql, map, true);
	appendStringInfoString(sql, " RETURNING r.ctid AS line");
	(void) add_extra_columns(sql, map, "t.");
	appendStringInfoString(sql, "), ");
}

/* back_N: rows that were gone */
static void
add_replace_back(StringInfo sql, const PsyncPgMap *map)
{
	appendStringInfo(sql, ", back_%u AS (INSERT INTO %s (", map->id, map->table->name);
	add_column_names(sql, map);
	(void) add_extra_columns(sql, map, "");
	appendStringInfoString(sql, ") OVERRIDING SYSTEM VALUE SELECT ");
	add_temp_columns(sql, map);
	(void) add_extra_columns(sql, map, "g.");
	appendStringInfo(sql, " FROM ready, pg_temp.psync_rows_%u r JOIN gone_%u g ON g.line = r.ctid"
					 " WHERE ready.n >= 0)", map->id, map->id);
}

/* added_N: the other rows */
static void
add_replace_added(StringInfo sql, const PsyncPgMap *map)
{
	appendStringInfo(sql, ", added_%u AS (", map->id);
	add_insert_head(sql, map);
	appendStringInfoString(sql, "SELECT ");
	add_temp_columns(sql, map);
	appendStringInfo(sql, " FROM ready, pg_temp.psync_rows_%u r WHERE ready.n >= 0",
					 map->id);
	if (map->table->bound)
		(void) add_on_conflict_update(sql, map);
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
 * Delete rows that are not in psync_keys_N.
 */
char *
psync_pg_sql_delete_unsent(const PsyncPgMap *map)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "DELETE FROM %s%s t WHERE NOT EXISTS"
					 " (SELECT FROM pg_temp.psync_keys_%u k WHERE ",
					 only(map), map->table->name, map->id);
	add_key_equals_temp(&sql, map, false);
	appendStringInfoChar(&sql, ')');
	return sql.data;
}
