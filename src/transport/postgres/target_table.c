/*
 * target_table.c
 *		Facts: what the target's catalogs say of a table.
 *
 * Fetched in one round trip when the sync's first table is met in a session, and
 * in another for all others when the second one is; never trusted beyond the
 * session: a table that is altered under us makes a statement fail, the failure
 * ends the session, and the next one looks again.
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"

/* How many tables are asked about at once. */
#define PSYNC_PG_TABLES_AT_ONCE	1000

/*
 * One query for all facts of the tables whose schemas and names are in two
 * arrays.  The first column tells the kind of row, the second which table it is
 * about, counted from one:
 *
 *	t	table			oid, relkind, may changes of rows come to nothing?
 *						children by inheritance?
 *	d					has deferrable constraints
 *	c	column			name, type oid, type, type with typmod, generated, identity,
 *						facts of the type
 *	i	index column	index oid, name, the index's operator for "equal", facts
 *						of its collation, constraint of the index
 *	u	unique index	immediate? (of any kind)
 *	f	foreign key		referencing oid, referenced oid, action on delete,
 *						referencing schema and name
 *
 * An index counts if it tells any two rows apart at once: a btree, unique,
 * immediate, valid, without predicate and expressions.  Foreign keys of
 * partitions stem from those of their parents, which are listed.  Constraints
 * have no index by what they reference: all of them are read, once.
 */
static const char facts_query[] =
	"WITH t AS MATERIALIZED (SELECT w.n, c.oid, c.relkind, c.relhassubclass, c.relhasrules"
	" FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.name[]), pg_catalog.unnest($2::pg_catalog.name[]))"
	" WITH ORDINALITY w(nsp, rel, n)"
	" JOIN pg_catalog.pg_namespace n ON n.nspname = w.nsp"
	" JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.rel)"
	" SELECT 't' AS kind, t.n, t.oid::text AS a, t.relkind::text AS b,"
	" (t.relhasrules OR t.oid IN (SELECT tgrelid FROM pg_catalog.pg_trigger WHERE " PSYNC_PG_HOOK
	" UNION ALL SELECT p.relid FROM pg_catalog.pg_trigger"
	" CROSS JOIN LATERAL pg_catalog.pg_partition_ancestors(tgrelid) p WHERE " PSYNC_PG_HOOK
	"))::text AS c,"
	" (t.relkind = 'r' AND t.relhassubclass)::text AS d, NULL AS e, NULL AS f, NULL AS g, 0 AS position FROM t"
	" UNION ALL"
	" SELECT DISTINCT 'd', t.n, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0"
	" FROM t JOIN (SELECT conrelid AS relid FROM pg_catalog.pg_constraint WHERE condeferrable"
	" UNION ALL SELECT confrelid FROM pg_catalog.pg_constraint WHERE condeferrable) k"
	" ON k.relid = t.oid"
	" UNION ALL"
	" SELECT 'c', t.n, a.attname, a.atttypid::text,"
	" pg_catalog.format_type(a.atttypid, -1),"
	" pg_catalog.format_type(a.atttypid, a.atttypmod),"
	" a.attgenerated::text, a.attidentity::text, " PSYNC_TYPE_FACTS ", a.attnum"
	" FROM t JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid"
	" WHERE a.attnum > 0 AND NOT a.attisdropped"
	" UNION ALL"
	" SELECT 'i', t.n, i.indexrelid::text, a.attname,"
	" pg_catalog.format('OPERATOR(%I.%s)', n.nspname, o.oprname),"
	" " PSYNC_COLLATION_FACTS("i.indcollation[s]") ","
	" (SELECT k.conname FROM pg_catalog.pg_constraint k WHERE k.conrelid = t.oid"
	" AND k.conindid = i.indexrelid AND k.contype IN ('p', 'u')),"
	" NULL, NULL, i.indexrelid::bigint"
	" FROM t JOIN pg_catalog.pg_index i ON i.indrelid = t.oid"
	" CROSS JOIN LATERAL pg_catalog.generate_series(0, i.indnkeyatts - 1) s"
	" JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attnum = i.indkey[s]"
	" JOIN pg_catalog.pg_opclass p ON p.oid = i.indclass[s]"
	" JOIN pg_catalog.pg_am am ON am.oid = p.opcmethod AND am.amname = 'btree'"
	" JOIN pg_catalog.pg_amop m ON m.amopfamily = p.opcfamily AND m.amopstrategy = 3"
	" AND m.amoplefttype = p.opcintype AND m.amoprighttype = p.opcintype"
	" JOIN pg_catalog.pg_operator o ON o.oid = m.amopopr"
	" JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace"
	" WHERE i.indisunique AND i.indimmediate AND i.indisvalid AND NOT i.indisexclusion"
	" AND i.indpred IS NULL AND i.indexprs IS NULL"
	" UNION ALL"
	" SELECT 'u', t.n, i.indexrelid::text, i.indimmediate::text, NULL, NULL, NULL, NULL, NULL, 0"
	" FROM t JOIN pg_catalog.pg_index i ON i.indrelid = t.oid"
	" WHERE i.indisunique OR i.indisexclusion"
	" UNION ALL"
	" SELECT 'f', k.n, k.conrelid::text, k.confrelid::text, k.confdeltype::text,"
	" n.nspname, c.relname, NULL, NULL, 0 FROM ("
	"SELECT t.n, k.* FROM t JOIN pg_catalog.pg_constraint k ON k.conrelid = t.oid"
	" UNION ALL"
	" SELECT t.n, k.* FROM t JOIN pg_catalog.pg_constraint k"
	" ON k.confrelid = t.oid AND k.conrelid <> t.oid) k"
	" JOIN pg_catalog.pg_class c ON c.oid = k.conrelid"
	" JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
	" WHERE k.contype = 'f' AND k.conparentid = 0"
	" ORDER BY n, kind, position";

/* Where the facts begin in a row, behind its kind and table. */
#define FACT(n)		((n) + 2)

/* The rows of one table in the result. */
typedef struct Facts
{
	PsyncPgSession *session;
	PGresult   *result;
	int			from;
	int			upto;			/* exclusive */
} Facts;

/*
 * What a row of the facts is about.
 */
static bool
is_kind(const Facts *facts, int row, char kind)
{
	return PQgetvalue(facts->result, row, 0)[0] == kind;
}

/* A fact that is never NULL. */
static const char *
get_text(const Facts *facts, int row, int n)
{
	return psync_pg_text(facts->session, facts->result, row, FACT(n));
}

/*
 * An oid as the target prints it; 0 for what is none.
 */
static Oid
get_oid(const Facts *facts, int row, int n)
{
	return (Oid) strtoul(PQgetvalue(facts->result, row, FACT(n)), NULL, 10);
}

/*
 * In the order of the target's table.
 */
static void
read_columns(PsyncPgTable *table, const Facts *facts)
{
	table->columns = palloc0((facts->upto - facts->from) * sizeof(PsyncPgColumn));
	for (int i = facts->from; i < facts->upto; i++)
	{
		PsyncPgColumn *column = &table->columns[table->ncolumns];

		if (!is_kind(facts, i, 'c'))
			continue;
		column->name = pstrdup(get_text(facts, i, 0));
		column->type = get_oid(facts, i, 1);
		column->type_name = pstrdup(get_text(facts, i, 2));
		column->full_type = pstrdup(get_text(facts, i, 3));
		column->generated = PQgetvalue(facts->result, i, FACT(4))[0] != '\0';
		column->identity_always = PQgetvalue(facts->result, i, FACT(5))[0] == 'a';
		psync_pg_services->conversions->parse_facts(PQgetvalue(facts->result, i, FACT(6)),
													&column->facts);
		table->ncolumns++;
	}
}

/* Index columns come ordered by index. */
static void
read_indexes(PsyncPgTable *table, const Facts *facts)
{
	Oid			last = InvalidOid;
	List	   *columns = NIL;
	int			unique = 0;

	for (int i = facts->from; i < facts->upto; i++)
	{
		PsyncPgIndexColumn *column;
		const char *constraint;

		if (is_kind(facts, i, 'u'))
		{
			unique++;
			table->unique_deferrable |= get_text(facts, i, 1)[0] != 't';
		}
		if (!is_kind(facts, i, 'i'))
			continue;
		if (get_oid(facts, i, 0) != last && columns != NIL)
		{
			table->unique_keys = lappend(table->unique_keys, columns);
			columns = NIL;
		}
		last = get_oid(facts, i, 0);
		column = palloc(sizeof(PsyncPgIndexColumn));
		column->name = pstrdup(get_text(facts, i, 1));
		column->equals = pstrdup(get_text(facts, i, 2));
		column->collation = pstrdup(get_text(facts, i, 3));
		constraint = psync_pg_text_or_null(facts->session, facts->result, i, FACT(4));
		column->constraint = constraint != NULL ? pstrdup(constraint) : NULL;
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
read_foreign_keys(PsyncPgTable *table, const Facts *facts)
{
	for (int i = facts->from; i < facts->upto; i++)
	{
		PsyncPgForeignKey *key;

		if (!is_kind(facts, i, 'f'))
			continue;
		key = palloc0(sizeof(PsyncPgForeignKey));
		key->referencing = get_oid(facts, i, 0);
		key->referenced = get_oid(facts, i, 1);
		key->on_delete = get_text(facts, i, 2)[0];
		key->inside = belongs_to_sync(facts->session, get_text(facts, i, 3),
									  get_text(facts, i, 4));
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

/* What a session knows of the table already, or NULL. */
static PsyncPgTable *
find_loaded(const PsyncPgSession *session, const PsyncTable *table)
{
	ListCell   *lc;

	foreach(lc, session->tables)
	{
		if (((PsyncPgTable *) lfirst(lc))->table == table)
			return lfirst(lc);
	}
	return NULL;
}

/* An element of an array as a literal; one that is none is quoted, too. */
static void
append_element(StringInfo array, const char *element)
{
	appendStringInfoString(array, array->len > 1 ? ",\"" : "\"");
	for (const char *at = element; *at != '\0'; at++)
	{
		if (*at == '"' || *at == '\\')
			appendStringInfoChar(array, '\\');
		appendStringInfoChar(array, *at);
	}
	appendStringInfoChar(array, '"');
}

/*
 * The tables' schemas and names at the target, as two arrays of equal length.
 */
void
psync_pg_name_arrays(const List *tables, const char *params[2])
{
	StringInfoData schemas;
	StringInfoData names;
	ListCell   *lc;

	initStringInfo(&schemas);
	initStringInfo(&names);
	appendStringInfoChar(&schemas, '{');
	appendStringInfoChar(&names, '{');
	foreach(lc, tables)
	{
		append_element(&schemas, ((PsyncTable *) lfirst(lc))->target_schema);
		append_element(&names, ((PsyncTable *) lfirst(lc))->target_name);
	}
	appendStringInfoChar(&schemas, '}');
	appendStringInfoChar(&names, '}');
	params[0] = schemas.data;
	params[1] = names.data;
}

/*
 * One table's rows, into the session's memory.
 */
static void
read_table(const Facts *facts, const PsyncTable *core)
{
	PsyncPgTable *table = palloc0(sizeof(PsyncPgTable));

	table->table = core;
	table->name = pstrdup(quote_qualified_identifier(core->target_schema,
													 core->target_name));
	for (int i = facts->from; i < facts->upto; i++)
	{
		table->deferrable |= is_kind(facts, i, 'd');
		if (!is_kind(facts, i, 't'))
			continue;
		table->oid = get_oid(facts, i, 0);
		table->relkind = get_text(facts, i, 1)[0];
		table->hooked = get_text(facts, i, 2)[0] == 't';
		table->children = get_text(facts, i, 3)[0] == 't';
	}
	read_columns(table, facts);
	read_indexes(table, facts);
	read_foreign_keys(table, facts);
	facts->session->tables = lappend(facts->session->tables, table);
	if (table->relkind != RELKIND_PARTITIONED_TABLE || facts->session->partitioned)
		return;
	facts->session->partitioned = true;
	facts->session->position_prepared = false;
}

/*
 * Ask the target about tables.  Those that it does not have are passed over.
 * Nothing may be under way at the target.
 */
static void
load_tables(PsyncPgSession *session, const List *tables)
{
	Facts		facts = {.session = session};
	const char *params[2];
	MemoryContext old;
	int			rows;

	Assert(!session->applying);

	psync_pg_name_arrays(tables, params);
	facts.result = psync_pg_query(session, facts_query, 2, params, PSYNC_PG_ANY_ROWS, 10);

	old = MemoryContextSwitchTo(session->context);
	rows = PQntuples(facts.result);
	while (facts.upto < rows)
	{
		const char *number = psync_pg_text(session, facts.result, facts.upto, 1);
		int			n = atoi(number);

		if (n < 1 || n > list_length(tables))
			psync_pg_unexpected(session, "It told of a table that it was not asked about.");
		facts.from = facts.upto;
		while (facts.upto < rows &&
			   strcmp(PQgetvalue(facts.result, facts.upto, 1), number) == 0)
			facts.upto++;
		read_table(&facts, list_nth(tables, n - 1));
	}
	MemoryContextSwitchTo(old);
}

/*
 * The table, and tables of the sync that the session does not know yet: which
 * of them will come next nobody knows, and one question for all costs less than
 * one for each, if many do.
 */
static List *
tables_to_load(const PsyncPgSession *session, const PsyncTable *table)
{
	List	   *tables = list_make1(unconstify(PsyncTable *, table));
	ListCell   *lc;

	/* the first is often the only one */
	if (session->tables == NIL)
		return tables;
	foreach(lc, session->target->tables)
	{
		if (list_length(tables) < PSYNC_PG_TABLES_AT_ONCE && lfirst(lc) != table &&
			find_loaded(session, lfirst(lc)) == NULL)
			tables = lappend(tables, lfirst(lc));
	}
	return tables;
}

/*
 * What the target has told of a table, asked now if need be.  An error if there
 * is no such table.
 */
PsyncPgTable *
psync_pg_table_get(PsyncPgSession *session, const PsyncTable *table)
{
	PsyncPgTable *known = find_loaded(session, table);

	if (known == NULL)
	{
		psync_pg_apply_wait(session);
		load_tables(session, tables_to_load(session, table));
		known = find_loaded(session, table);
	}
	if (known == NULL)
		refuse_missing_table(table);
	check_relkind(known);
	return known;
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
