/*
 * statement_parts.c
 *		What statements that go row by row have in common with set-wise ones.
 *
 * OVERRIDING SYSTEM VALUE lets the source's values into identity columns; on
 * other tables it means nothing.
 */
#include "postgres.h"

#include "utils/builtins.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"
#include "transport/postgres/statement.h"

/*
 * The k-th column of the key.
 */
const PsyncPgMapColumn *
psync_pg_key_column(const PsyncPgMap *map, int k)
{
	Assert(k >= 0 && k < map->nkeys);
	return &map->columns[map->keys[k]];
}

/*
 * a, b, … of all columns that are sent
 */
void
psync_pg_add_column_names(StringInfo sql, const PsyncPgMap *map)
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
		appendStringInfo(sql, "%s%s", k > 0 ? ", " : "", psync_pg_key_column(map, k)->name);
}

/*
 * Append columns that only the target has, and that have values of their own,
 * each after a comma; returns how many.
 */
int
psync_pg_add_extra_columns(StringInfo sql, const PsyncPgMap *map, const char *alias)
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

/* a = …, b = …; returns their number, which may be 0 */
int
psync_pg_add_assignments(StringInfo sql, const PsyncPgMap *map, PsyncPgSetFrom from,
						 bool with_keys)
{
	int			n = 0;

	for (int i = 0; i < map->ncolumns; i++)
	{
		const PsyncPgMapColumn *column = &map->columns[i];

		if ((column->key && !with_keys) || column->target->identity_always)
			continue;
		appendStringInfo(sql, "%s%s = ", n++ > 0 ? ", " : "", column->name);
		if (from == PSYNC_PG_FROM_PARAMS)
			appendStringInfo(sql, "$%d%s", i + 1, column->param_cast);
		else if (from == PSYNC_PG_FROM_EXCLUDED)
			appendStringInfo(sql, "EXCLUDED.%s", column->name);
		else
			appendStringInfo(sql, "r.c%d%s", i + 1, column->temp_cast);
	}
	return n;
}

/*
 * INSERT INTO t (a, b, …), for what gives the values
 */
void
psync_pg_add_insert_head(StringInfo sql, const PsyncPgMap *map)
{
	Assert(map->ncolumns > 0);

	appendStringInfo(sql, "INSERT INTO %s AS t (", map->table->name);
	psync_pg_add_column_names(sql, map);
	appendStringInfoString(sql, ") OVERRIDING SYSTEM VALUE ");
}

/*
 * ON CONFLICT (key) DO, of the key's index.  The columns alone would also stand
 * for a deferrable constraint on them, which cannot arbitrate.
 */
void
psync_pg_add_arbiter(StringInfo sql, const PsyncPgMap *map)
{
	if (map->table->unique_deferrable && map->arbiter != NULL)
	{
		appendStringInfo(sql, " ON CONFLICT ON CONSTRAINT %s DO ",
						 quote_identifier(map->arbiter));
		return;
	}
	appendStringInfoString(sql, " ON CONFLICT (");
	add_key_names(sql, map);
	appendStringInfoString(sql, ") DO ");
}

/*
 * ON CONFLICT (key) DO UPDATE, or DO NOTHING if there is nothing beside the
 * key: then it returns false.  The conflict's index is the one that
 * column_map.c has found.  A key that is equal but not
 * the same is written, too.
 */
bool
psync_pg_add_on_conflict_update(StringInfo sql, const PsyncPgMap *map)
{
	int			start;

	psync_pg_add_arbiter(sql, map);
	start = sql->len;
	appendStringInfoString(sql, "UPDATE SET ");
	if (psync_pg_add_assignments(sql, map, PSYNC_PG_FROM_EXCLUDED, map->key_ambiguous) > 0)
		return true;

	/* nothing beside the key */
	sql->len = start;
	appendStringInfoString(sql, "NOTHING");
	return false;
}

/*
 * "a column GENERATED ALWAYS AS IDENTITY is not as sent": by parameters, or by
 * the temporary table.
 */
void
psync_pg_add_identity_differs(StringInfo sql, const PsyncPgMap *map, bool temp)
{
	int			n = 0;

	for (int i = 0; i < map->ncolumns; i++)
	{
		const PsyncPgMapColumn *column = &map->columns[i];

		if (column->target->identity_always)
			appendStringInfo(sql, "%st.%s IS DISTINCT FROM %s%d%s",
							 n++ > 0 ? " OR " : "", column->name,
							 temp ? "r.c" : "$", i + 1,
							 temp ? column->temp_cast : column->param_cast);
	}
	Assert(n > 0);
}

/*
 * "the row is written by this transaction, or as it was sent".  Compared as the
 * target's type with its length: a value that was padded or rounded is the same.
 */
void
psync_pg_add_written(StringInfo sql, const PsyncPgMap *map, bool temp)
{
	appendStringInfoString(sql, "(pg_catalog.age(t.xmin) <= 0"
						   " OR NOT pg_catalog.record_image_ne(ROW(");
	for (int i = 0; i < map->ncolumns; i++)
		appendStringInfo(sql, "%st.%s", i > 0 ? ", " : "", map->columns[i].name);
	appendStringInfoString(sql, "), ROW(");
	for (int i = 0; i < map->ncolumns; i++)
		appendStringInfo(sql, "%s%s%d%s::%s", i > 0 ? ", " : "", temp ? "r.c" : "$", i + 1,
						 temp ? map->columns[i].temp_cast : map->columns[i].param_cast,
						 map->columns[i].target->full_type);
	appendStringInfoString(sql, ")))");
}

