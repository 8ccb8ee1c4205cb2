/*
 * target_table.c
 *		Facts: what the target's catalogs say of a table.
 *
 * Fetched in one round trip when a map is made, that is when a shape is first
 * met in a session, and never trusted beyond the session: a table that is
 * altered under us makes a statement fail, the failure ends the session, and
 * the next one looks again.
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"

/*
 * One query for all facts; the first column tells the kind of row:
 *
 *	t	table			oid, relkind, has deferrable constraints?
 *	c	column			name, type oid, type, type with typmod, generated, identity,
 *						facts of the type
 *	i	index column	index oid, name, the index's operator for "equal", facts
 *						of its collation
 *	u	unique index	(of any kind)
 *	f	foreign key		referencing oid, referenced oid, action on delete,
 *						referencing schema and name
 *
 * An index counts if it tells any two rows apart at once: unique, immediate,
 * valid, without predicate and expressions.  Foreign keys of partitions stem
 * from those of their parents, which are listed.
 */
static const char facts_query[] =
	"WITH t AS (SELECT c.oid, c.relkind FROM pg_catalog.pg_class c"
	" JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
	" WHERE n.nspname = $1 AND c.relname = $2)"
	" SELECT 't' AS kind, t.oid::text AS a, t.relkind::text AS b,"
	" EXISTS (SELECT FROM pg_catalog.pg_constraint k"
	" WHERE k.condeferrable AND (k.conrelid = t.oid OR k.confrelid = t.oid))::text AS c,"
	" NULL AS d, NULL AS e, NULL AS f, NULL AS g, 0 AS position FROM t"
	" UNION ALL"
	" SELECT 'c', a.attname, a.atttypid::text,"
	" pg_catalog.format_type(a.atttypid, -1),"
	" pg_catalog.format_type(a.atttypid, a.atttypmod),"
	" a.attgenerated::text, a.attidentity::text, " PSYNC_TYPE_FACTS ", a.attnum"
	" FROM t JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid"
	" WHERE a.attnum > 0 AND NOT a.attisdropped"
	" UNION ALL"
	" SELECT 'i', i.indexrelid::text, a.attname,"
	" pg_catalog.format('OPERATOR(%I.%s)', n.nspname, o.oprname),"
	" " PSYNC_COLLATION_FACTS("i.indcollation[s]") ", NULL, NULL, NULL, i.indexrelid::bigint"
	" FROM t JOIN pg_catalog.pg_index i ON i.indrelid = t.oid"
	" CROSS JOIN LATERAL pg_catalog.generate_series(0, i.indnkeyatts - 1) s"
	" JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attnum = i.indkey[s]"
	" JOIN pg_catalog.pg_opclass p ON p.oid = i.indclass[s]"
	" JOIN pg_catalog.pg_amop m ON m.amopfamily = p.opcfamily AND m.amopstrategy = 3"
	" AND m.amoplefttype = p.opcintype AND m.amoprighttype = p.opcintype"
	" JOIN pg_catalog.pg_operator o ON o.oid = m.amopopr"
	" JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace"
	" WHERE i.indisunique AND i.indimmediate AND i.indisvalid"
	" AND i.indpred IS NULL AND i.indexprs IS NULL"
	" UNION ALL"
	" SELECT 'u', i.indexrelid::text, NULL, NULL, NULL, NULL, NULL, NULL, 0"
	" FROM t JOIN pg_catalog.pg_index i ON i.indrelid = t.oid"
	" WHERE i.indisunique OR i.indisexclusion"
	" UNION ALL"
	" SELECT 'f', k.conrelid::text, k.confrelid::text, k.confdeltype::text,"
	" n.nspname, c.relname, NULL, NULL, 0"
	" FROM t JOIN pg_catalog.pg_constraint k ON k.contype = 'f'"
	" AND k.conparentid = 0 AND (k.conrelid = t.oid OR k.confrelid = t.oid)"
	" JOIN pg_catalog.pg_class c ON c.oid = k.conrelid"
	" JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
	" ORDER BY kind, position";

/*
 * What a row of the facts is about.
 */
static bool
is_kind(PGresult *result, int row, char kind)
{
	return PQgetvalue(result, row, 0)[0] == kind;
}

/*
 * An oid as the target prints it; 0 for what is none.
 */
static Oid
get_oid(PGresult *result, int row, int field)
{
	return (Oid) strtoul(PQgetvalue(result, row, field), NULL, 10);
}

/*
 * In the order of the target's table.
 */
static void
read_columns(PsyncPgSession *session, PsyncPgTable *table, PGresult *result)
{
	int			rows = PQntuples(result);

	table->columns = palloc0(rows * sizeof(PsyncPgColumn));
	for (int i = 0; i < rows; i++)
	{
		PsyncPgColumn *column = &table->columns[table->ncolumns];

		if (!is_kind(result, i, 'c'))
			continue;
		column->name = pstrdup(psync_pg_text(session, result, i, 1));
		column->type = get_oid(result, i, 2);
		column->type_name = pstrdup(psync_pg_text(session, result, i, 3));
		column->full_type = pstrdup(psync_pg_text(session, result, i, 4));
		column->generated = PQgetvalue(result, i, 5)[0] != '\0';
		column->identity_always = PQgetvalue(result, i, 6)[0] == 'a';
		psync_pg_services->conversions->parse_facts(PQgetvalue(result, i, 7),
													&column->facts);
		table->ncolumns++;
	}
}

/* Index columns come ordered by index. */
static void
read_indexes(PsyncPgSession *session, PsyncPgTable *table, PGresult *result)
{
	Oid			last = InvalidOid;
	List	   *columns = NIL;
	int			unique = 0;

	for (int i = 0; i < PQntuples(result); i++)
	{
		PsyncPgIndexColumn *column;

		if (is_kind(result, i, 'u'))
			unique++;
		if (!is_kind(result, i, 'i'))
			continue;
		if (get_oid(result, i, 1) != last && columns != NIL)
		{
			table->unique_keys = lappend(table->unique_keys, columns);
			columns = NIL;
		}
		last = get_oid(result, i, 1);
		column = palloc(sizeof(PsyncPgIndexColumn));
		column->name = pstrdup(psync_pg_text(session, result, i, 2));
		column->equals = pstrdup(psync_pg_text(session, result, i, 3));
		column->collation = pstrdup(psync_pg_text(session, result, i, 4));
		columns = lappend(columns, column);
	}
	if (columns != NIL)
		table->unique_keys = lappend(table->unique_keys, columns);
	table->unique_beyond = unique > 1;
}

/* Is the table at the target, named so, one that this sync delivers to? */
static bool
belongs_to_sync(PsyncPgSession *session, const char *schema, const char *name)
{
	ListCell   *lc;

	foreach(lc, session->target->tables)
	{
		const PsyncTable *table = lfirst(lc);

		if (strcmp(table->target_schema, schema) == 0 &&
			strcmp(table->target_name, name) == 0)
			return true;
	}
	return false;
}

/*
 * Those that point to the table, and those that point from it to others.
 * Actions on delete count where they would reach rows that nobody here has
 * asked to change.
 */
static void
read_foreign_keys(PsyncPgSession *session, PsyncPgTable *table, PGresult *result)
{
	for (int i = 0; i < PQntuples(result); i++)
	{
		PsyncPgForeignKey *key;

		if (!is_kind(result, i, 'f'))
			continue;
		key = palloc0(sizeof(PsyncPgForeignKey));
		key->referencing = get_oid(result, i, 1);
		key->referenced = get_oid(result, i, 2);
		key->on_delete = psync_pg_text(session, result, i, 3)[0];
		key->inside = belongs_to_sync(session, psync_pg_text(session, result, i, 4),
									  psync_pg_text(session, result, i, 5));
		table->foreign_keys = lappend(table->foreign_keys, key);

		if (key->referenced != table->oid)
			continue;
		table->referenced = true;
		/* restrict, cascade, set null, set default */
		table->bound |= strchr("rcnd", key->on_delete) != NULL;
		if (strchr("cnd", key->on_delete) != NULL)
		{
			table->actions = true;
			table->actions_outside |= !key->inside;
		}
	}
}

/*
 * Does not return.
 */
static void
refuse_missing_table(const PsyncTable *table)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_TABLE),
			 errmsg("table \"%s.%s\" does not exist at the target",
					table->target_schema, table->target_name),
			 errdetail("Changes of table \"%s.%s\" are to go there.",
					   table->source_schema, table->source_name),
			 errhint("Create it there with the same columns and key, or name another table in the sync.")));
}

/*
 * A view, say, may take INSERT; it has no unique index to find rows by.
 */
static void
check_relkind(const PsyncPgTable *table)
{
	if (table->relkind != RELKIND_RELATION &&
		table->relkind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("%s at the target is not a table", table->name)));
}

/*
 * Ask the target about a table; the facts are in the session's memory.  An
 * error if there is no such table.  Nothing may be under way at the target.
 */
PsyncPgTable *
psync_pg_table_load(PsyncPgSession *session, const PsyncTable *table)
{
	const char *params[2];
	PGresult   *result;
	MemoryContext old;
	PsyncPgTable *facts;

	Assert(!session->applying);

	params[0] = table->target_schema;
	params[1] = table->target_name;
	result = psync_pg_query(session, facts_query, 2, params, PSYNC_PG_ANY_ROWS, 9);

	old = MemoryContextSwitchTo(session->context);
	facts = palloc0(sizeof(PsyncPgTable));
	facts->table = table;
	facts->name = pstrdup(quote_qualified_identifier(table->target_schema,
													 table->target_name));
	for (int i = 0; i < PQntuples(result); i++)
	{
		if (!is_kind(result, i, 't'))
			continue;
		facts->oid = get_oid(result, i, 1);
		facts->relkind = PQgetvalue(result, i, 2)[0];
		facts->deferrable = PQgetvalue(result, i, 3)[0] == 't';
	}
	read_columns(session, facts, result);
	read_indexes(session, facts, result);
	read_foreign_keys(session, facts, result);
	MemoryContextSwitchTo(old);

	if (!OidIsValid(facts->oid))
		refuse_missing_table(table);
	check_relkind(facts);
	Assert(facts->rank == 0);
	return facts;
}

/*
 * The table's column of this name, or NULL.
 */
PsyncPgColumn *
psync_pg_table_column(const PsyncPgTable *table, const char *name)
{
	for (int i = 0; i < table->ncolumns; i++)
	{
		if (strcmp(table->columns[i].name, name) == 0)
			return &table->columns[i];
	}
	return NULL;
}

/* ------------------------------------------------------------------ ranks */

/*
 * Tables that the group has no rows of do not matter to its order.
 */
static PsyncPgTable *
table_in_group(const PsyncPgGroup *group, Oid oid)
{
	ListCell   *lc;

	foreach(lc, group->maps)
	{
		PsyncPgMap *map = lfirst(lc);

		if (map->table->oid == oid)
			return map->table;
	}
	return NULL;
}

/*
 * Raise tables above those they reference; true if anything changed.
 */
static bool
raise_ranks(const PsyncPgGroup *group)
{
	bool		changed = false;
	ListCell   *lc;
	ListCell   *lk;

	foreach(lc, group->maps)
	{
		PsyncPgTable *table = ((PsyncPgMap *) lfirst(lc))->table;

		foreach(lk, table->foreign_keys)
		{
			PsyncPgForeignKey *key = lfirst(lk);
			PsyncPgTable *parent;

			if (key->referencing != table->oid || key->referenced == table->oid)
				continue;
			parent = table_in_group(group, key->referenced);
			if (parent != NULL && table->rank <= parent->rank)
			{
				table->rank = parent->rank + 1;
				changed = true;
			}
		}
	}
	return changed;
}

/*
 * Rank the group's tables so that each is above all that it references.  For
 * tables that reference each other in a circle there is no such order; they
 * end up somewhere.
 */
void
psync_pg_rank_tables(const PsyncPgGroup *group)
{
	int			rounds = list_length(group->maps);
	ListCell   *lc;

	foreach(lc, group->maps)
		((PsyncPgMap *) lfirst(lc))->table->rank = 0;
	while (rounds-- > 0 && raise_ranks(group))
		;
}
