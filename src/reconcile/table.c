/*
 * table.c
 *		What is compared: the columns of both sides, and in which form.
 *
 * What counts as equal.  Two values are equal if the source's type says so:
 * numeric 1.0 = 1.00, -0 = 0 and NaN = NaN for floating point, char(n)
 * without its padding, jsonb whatever the order of its keys or the scale of
 * its numbers, a timestamptz by the moment it names.  Text is equal byte by
 * byte, after conversion to one encoding, whatever the collations.  Types
 * without an "=" (json, xml, point) and types of extensions are compared by
 * their text forms.  If the types of a column differ between the sides, the
 * text forms are compared, of numbers without trailing zeros.
 *
 * Forms of a column, made by the same expression on both sides:
 *
 *	canonical	goes into checksums.  Equal canonical forms imply equal values.
 *				The reverse holds nearly always; where it does not (jsonb,
 *				intervals, arrays of numeric), rows look different to a
 *				checksum that are not, which costs time but yields no verdict.
 *	hashed		the same, such that the forms of a row's columns can be put
 *				together into one text; see set_hashed_form()
 *	text		is read from rows that have been found to differ, compared, and
 *				shown.
 *
 * How rows are divided into cells.  By ranges of the key, if both sides have
 * an index in one and the same order: the key's types sort alike on every
 * server, collatable ones only where both sort bytes.  Otherwise by the hash
 * of the key's text, which needs no index and no order, but reads a whole
 * table for each level of division.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "capture/capture.h"
#include "compat.h"
#include "reconcile/reconcile.h"
#include "target/registry.h"

/* trim_scale() came with this version of PostgreSQL. */
#define PSYNC_VERSION_MIN	130000

/* Rows per page, where nobody has counted. */
#define PSYNC_ROWS_PER_PAGE	50

static const char relation_query[] =
	"SELECT c.relkind, s.rows, s.pages, pg_catalog.current_setting('server_encoding'),"
	" pg_catalog.current_setting('server_version_num'),"
	" EXISTS (SELECT FROM pg_catalog.pg_index i"
	" JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid"
	" JOIN pg_catalog.pg_am m ON m.oid = ic.relam"
	" WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL AND m.amname = 'btree'"
	" AND (SELECT pg_catalog.array_agg(a.attname ORDER BY n)"
	" FROM pg_catalog.generate_series(0, pg_catalog.cardinality(%s::name[]) - 1) n"
	" JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[n]"
	" JOIN pg_catalog.pg_opclass o ON o.oid = i.indclass[n] AND o.opcdefault"
	" WHERE i.indcollation[n] = a.attcollation AND i.indoption[n] = 0) = %s::name[]), s.bytes"
	" FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
	" CROSS JOIN LATERAL (SELECT COALESCE(pg_catalog.sum(l.reltuples), 0) AS rows,"
	" COALESCE(pg_catalog.sum(pg_catalog.pg_relation_size(l.oid)"
	" / pg_catalog.current_setting('block_size')::bigint), 0) AS pages,"
	" COALESCE(pg_catalog.sum(pg_catalog.pg_table_size(l.oid)), 0) AS bytes"
	" FROM pg_catalog.pg_class l WHERE l.oid = c.oid OR l.oid IN"
	" (SELECT t.relid FROM pg_catalog.pg_partition_tree(c.oid) t WHERE t.isleaf)) s"
	" WHERE n.nspname = %s AND c.relname = %s";

/*
 * The type is what is below all domains.  NOT NULL is believed only of tables
 * that enforce it: of a foreign table, be it a partition, it is a declaration,
 * and so it is (since PostgreSQL 18) as long as it is NOT VALID.
 */
static const char columns_query[] =
	"SELECT a.attname, pg_catalog.format_type(b.type, -1), b.type, b.typmod,"
	" a.attcollation = 0 OR EXISTS (SELECT FROM pg_catalog.pg_collation l"
	" WHERE l.oid = a.attcollation AND l.collnamespace = 'pg_catalog'::regnamespace"
	" AND (l.collname IN ('C', 'POSIX') OR"
	" l.collname = 'default' AND EXISTS (SELECT FROM pg_catalog.pg_database d"
	" WHERE d.datname = pg_catalog.current_database() AND d.datcollate IN ('C', 'POSIX')"
	" AND COALESCE(pg_catalog.to_jsonb(d) ->> 'datlocprovider', 'c') = 'c'))),"
	" a.attnotnull AND c.relkind IN ('r', 'p')"
	" AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conrelid = c.oid"
	" AND k.contype = 'n' AND NOT k.convalidated AND a.attnum = ANY (k.conkey))"
	" AND NOT EXISTS (SELECT FROM pg_catalog.pg_partition_tree(c.oid) p"
	" JOIN pg_catalog.pg_class l ON l.oid = p.relid WHERE l.relkind NOT IN ('r', 'p')),"
	" " PSYNC_TYPE_FACTS ", a.attgenerated <> '' FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
	" JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid"
	" CROSS JOIN LATERAL (WITH RECURSIVE d(type, typmod) AS (SELECT a.atttypid, a.atttypmod"
	" UNION ALL SELECT t.typbasetype, t.typtypmod FROM d"
	" JOIN pg_catalog.pg_type t ON t.oid = d.type AND t.typtype = 'd')"
	" SELECT d.type, d.typmod FROM d"
	" JOIN pg_catalog.pg_type t ON t.oid = d.type AND t.typtype <> 'd') b"
	" WHERE a.attnum > 0 AND NOT a.attisdropped";

/* ---------------------------------------------------------------- classes */

/* How values of a type are brought into canonical form. */
typedef enum PsyncClass
{
	PSYNC_CLASS_TEXT,			/* as they are printed */
	PSYNC_CLASS_INTEGER,
	PSYNC_CLASS_NUMERIC,		/* without trailing zeros */
	PSYNC_CLASS_FLOAT,			/* without a negative zero */
	PSYNC_CLASS_CHAR,			/* without padding */
	PSYNC_CLASS_TIMESTAMP,
	PSYNC_CLASS_TIMESTAMPTZ
} PsyncClass;

/*
 * What kind of canonical form the type needs.
 */
static PsyncClass
class_of(Oid base)
{
	switch (base)
	{
		case INT2OID:
		case INT4OID:
		case INT8OID:
			return PSYNC_CLASS_INTEGER;
		case NUMERICOID:
			return PSYNC_CLASS_NUMERIC;
		case FLOAT4OID:
		case FLOAT8OID:
			return PSYNC_CLASS_FLOAT;
		case BPCHAROID:
			return PSYNC_CLASS_CHAR;
		case TIMESTAMPOID:
			return PSYNC_CLASS_TIMESTAMP;
		case TIMESTAMPTZOID:
			return PSYNC_CLASS_TIMESTAMPTZ;
		default:
			return PSYNC_CLASS_TEXT;
	}
}

/*
 * Integers of different sizes sort alike.
 */
static bool
is_integer(Oid base)
{
	return class_of(base) == PSYNC_CLASS_INTEGER;
}

/*
 * Does the type sort alike on every server (if collatable: by bytes)? Floating
 * point does not: -0 and NaN have moved between versions; so neither do types
 * that contain it.
 */
static bool
sorts_alike(Oid base)
{
	switch (base)
	{
		case BOOLOID:
		case BYTEAOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case NUMERICOID:
		case OIDOID:
		case DATEOID:
		case TIMEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
		case UUIDOID:
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case NAMEOID:
			return true;
		default:
			return false;
	}
}

/*
 * Set both forms of a column of one side; "peer" is the same column on the
 * other side.
 */
static void
set_forms(PsyncSideColumn *column, const PsyncSideColumn *peer)
{
	const char *name = column->value;
	PsyncClass	class = class_of(column->as);
	PsyncClass	peer_class = class_of(peer->as);
	bool		same = column->as == peer->as;
	bool		plain = column->base == peer->base && same;

	Assert(OidIsValid(column->as) && OidIsValid(peer->as));

	column->text = psprintf("(%s)::text", name);
	switch (class)
	{
		case PSYNC_CLASS_NUMERIC:
			/* with a declared scale, all values have it */
			if (!same || column->as_typmod < 0 || column->as_typmod != peer->as_typmod)
				name = psprintf("pg_catalog.trim_scale(%s)", name);
			column->text = psprintf("%s::text", name);
			break;
		case PSYNC_CLASS_FLOAT:
			name = psprintf("(%s + '0'::%s)", name,
							column->as == FLOAT4OID ? "float4" : "float8");
			column->text = psprintf("%s::text", name);
			break;
		case PSYNC_CLASS_TIMESTAMPTZ:
			/* sixteen digits are made faster than a date */
			if (plain)
				name = psprintf("pg_catalog.timestamptz_send(%s)", name);
			break;
		case PSYNC_CLASS_TIMESTAMP:
			if (plain)
				name = psprintf("pg_catalog.timestamp_send(%s)", name);
			break;
		case PSYNC_CLASS_TEXT:
			/* the text of bytes is twice as long, which may be too long */
			if (plain && column->as == BYTEAOID)
				name = psprintf("CASE WHEN pg_catalog.octet_length(%1$s) > %2$d"
								" THEN pg_catalog.encode(pg_catalog.sha256(%1$s), 'hex')"
								" ELSE %1$s::text END", name, PSYNC_VALUE_BYTES);
			break;
		case PSYNC_CLASS_CHAR:
			if (!same || column->as_typmod != peer->as_typmod)
				name = column->text;	/* the cast drops the padding */
			break;
		default:
			break;
	}
	if (peer_class == PSYNC_CLASS_CHAR && class == PSYNC_CLASS_TEXT)
		name = column->text = psprintf("pg_catalog.rtrim((%s)::text, ' ')", name);
	column->canonical = pstrdup(name);
}

/*
 * A number that is kept as text, such as a file's amount, has no trailing zeros
 * in checksums either where it is compared with a numeric, whose text has none.
 * What is read is the text as it is; compare.c knows how to compare it.
 */
static void
trim_number_in_text(PsyncSideColumn *column, const PsyncSideColumn *peer)
{
	if (peer->as != NUMERICOID ||
		(column->as != TEXTOID && column->as != VARCHAROID && column->as != BPCHAROID))
		return;
	Assert(column->text != NULL && column->canonical != NULL);
	/* the collation may be one that regular expressions do not support */
	column->canonical = psprintf("pg_catalog.regexp_replace(%s COLLATE \"C\","
								 " '^(-?[0-9]+)([.]0+|([.][0-9]*[1-9])0+)$', E'\\\\1\\\\3')",
								 column->text);
}

typedef enum PsyncShapeOfText
{
	PSYNC_TEXT_BARE,			/* never a bar, never empty */
	PSYNC_TEXT_STRING,
	PSYNC_TEXT_QUOTED
} PsyncShapeOfText;

static PsyncShapeOfText
shape_of_text(Oid base)
{
	switch (base)
	{
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
			return PSYNC_TEXT_STRING;
		case BOOLOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case NUMERICOID:
		case FLOAT4OID:
		case FLOAT8OID:
		case DATEOID:
		case UUIDOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return PSYNC_TEXT_BARE;
		default:
			return PSYNC_TEXT_QUOTED;
	}
}

/*
 * A column's part of the text that is hashed, as an argument of concat_ws('|',
 * …).  From the whole, each value can be told: those of types that never print
 * a bar or nothing at all stand as they are, strings bear their length, what
 * else there is is quoted as in a row.  A null prints nothing, and a string's
 * has length -1.
 */
static void
set_hashed_form(PsyncSideColumn *column, PsyncShapeOfText shape)
{
	const char *form = column->canonical;

	Assert(column->length == NULL);
	switch (shape)
	{
		case PSYNC_TEXT_STRING:
			column->hashed = column->canonical;
			column->length = psprintf(column->not_null ? "pg_catalog.octet_length(%s)" :
									  "COALESCE(pg_catalog.octet_length(%s), -1)", form);
			break;
		case PSYNC_TEXT_BARE:
			column->hashed = column->not_null ? column->canonical :
				psprintf("COALESCE(%s%s, '')", form,
						 strstr(form, "_send(") != NULL ? "" : "::text");
			break;
		case PSYNC_TEXT_QUOTED:
			column->hashed = psprintf("ROW(%s)::text", form);
			break;
	}
}

/* Both sides write a column in the same way. */
static void
set_hashed_forms(PsyncPair *pair)
{
	PsyncShapeOfText shape = shape_of_text(pair->side[0].as);

	if (shape != shape_of_text(pair->side[1].as))
		shape = PSYNC_TEXT_QUOTED;
	else if (shape == PSYNC_TEXT_STRING && pair->side[0].as == BPCHAROID &&
			 pair->side[1].as == BPCHAROID && pair->side[0].as_typmod > 0 &&
			 pair->side[0].as_typmod == pair->side[1].as_typmod &&
			 pair->side[0].not_null && pair->side[1].not_null)
		shape = PSYNC_TEXT_BARE;	/* always there, always of the same length */
	set_hashed_form(&pair->side[0], shape);
	set_hashed_form(&pair->side[1], shape);
}

/*
 * One string needs no length, if it comes last, and two lengths need not be
 * printed: a length costs as much as a column.  The one without is the last of
 * those that may be null, whose length is the dearest.
 */
static void
place_lengths(PsyncReconcile *rec)
{
	PsyncPair  *last = NULL;
	int			in_seed = 0;

	for (int i = 0; i < rec->npairs; i++)
	{
		PsyncPair  *pair = &rec->pairs[i];

		Assert((pair->side[0].length == NULL) == (pair->side[1].length == NULL));
		if (pair->side[0].length != NULL &&
			(last == NULL || last->side[0].not_null || !pair->side[0].not_null))
			last = pair;
	}
	for (int i = 0; i < rec->npairs; i++)
	{
		PsyncPair  *pair = &rec->pairs[i];

		if (pair == last)
			pair->length_place = PSYNC_LENGTH_NOWHERE;
		else if (pair->side[0].length != NULL && in_seed < PSYNC_SEED_LENGTHS)
		{
			pair->length_place = PSYNC_LENGTH_SEED;
			in_seed++;
		}
	}
}

/* May equal values of the type print differently, the same everywhere? */
static bool
prints_in_many_ways(Oid type)
{
	switch (type)
	{
		case NUMERICOID:
		case FLOAT4OID:
		case FLOAT8OID:
		case INTERVALOID:
		case JSONBOID:
			return true;
		default:
			return false;
	}
}

/*
 * The type whose "=" decides where texts differ, or InvalidOid: the texts
 * decide.  Only types that need it, or arrays and ranges of them, the same on
 * both sides: so reading the other side's text cannot fail, as that of a
 * regclass or of money could.
 */
static Oid
decide_type(const PsyncPair *pair)
{
	Oid			base = pair->side[PSYNC_SOURCE].as;
	Oid			element = get_element_type(base);
	Oid			range = get_multirange_range(base);

	if (base != pair->side[PSYNC_OTHER].as || base >= FirstGenbkiObjectId)
		return InvalidOid;
	if (OidIsValid(range))
		element = get_range_subtype(range);
	else if (OidIsValid(get_range_subtype(base)))
		element = get_range_subtype(base);
	return prints_in_many_ways(OidIsValid(element) ? element : base) ? base : InvalidOid;
}

/* ------------------------------------------------------------ description */

/*
 * The names as an array's literal, for a query.
 */
static char *
name_array(List *names)
{
	StringInfoData buf;
	char	  **values = palloc(Max(1, list_length(names)) * sizeof(char *));
	int			n = 0;
	ListCell   *lc;

	foreach(lc, names)
		values[n++] = lfirst(lc);
	initStringInfo(&buf);
	psync_append_array(&buf, values, n, 1);
	return buf.data;
}

/*
 * What kind of relation a side has, how large it is, and whether there is an
 * index in the key's order.
 */
static void
describe_relation(PsyncSide *side, List *key)
{
	char	   *keys = name_array(key);
	PsyncRows  *rows = psync_side_query(side,
										psprintf(relation_query, keys, keys,
												 quote_literal_cstr(side->schema),
												 quote_literal_cstr(side->relname)),
										7, 7);

	if (rows->nrows == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"%s.%s\" does not exist%s", side->schema,
						side->relname, side->remote ? " at the target" : "")));
	side->relkind = psync_rows_get(rows, 0, 0)[0];
	side->rows = atof(psync_rows_get(rows, 0, 1));
	side->pages = atof(psync_rows_get(rows, 0, 2));
	if (side->rows <= 0)
		side->rows = side->pages * PSYNC_ROWS_PER_PAGE;
	side->encoding = psync_rows_get(rows, 0, 3);
	side->version = atoi(psync_rows_get(rows, 0, 4));
	side->ordered = psync_rows_get(rows, 0, 5)[0] == 't';
	side->bytes = atof(psync_rows_get(rows, 0, 6));
	side->from = psprintf("%s%s", side->relkind == RELKIND_RELATION ? "ONLY " : "",
						  quote_qualified_identifier(side->schema, side->relname));
	if (side->version < PSYNC_VERSION_MIN)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot reconcile with a server of version %d",
						side->version / 10000),
				 errdetail("It must be at least %d.", PSYNC_VERSION_MIN / 10000)));
}

/*
 * Fill in one side of a pair; an error if the side has no such column.
 */
static void
describe_column(PsyncReconcile *rec, int at, const PsyncRows *columns,
				PsyncPair *pair, const char *name)
{
	PsyncSide  *side = &rec->side[at];
	PsyncSideColumn *column = &pair->side[at];

	Assert(at == PSYNC_SOURCE || at == PSYNC_OTHER);

	for (int i = 0; i < columns->nrows; i++)
	{
		if (strcmp(psync_rows_get(columns, i, 0), name) != 0)
			continue;
		column->name = pstrdup(quote_identifier(name));
		column->type = psync_rows_get(columns, i, 1);
		column->base = (Oid) strtoul(psync_rows_get(columns, i, 2), NULL, 10);
		column->typmod = atoi(psync_rows_get(columns, i, 3));
		column->bytewise = psync_rows_get(columns, i, 4)[0] == 't';
		column->not_null = psync_rows_get(columns, i, 5)[0] == 't';
		psync_type_facts_parse(psync_rows_get(columns, i, 6), &column->facts);
		column->generated = psync_rows_get(columns, i, 7)[0] == 't';
		return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_COLUMN),
			 errmsg("column \"%s\" of table \"%s.%s\" does not exist%s", name,
					side->schema, side->relname,
					side->remote ? " at the target" : "")));
}

/*
 * The columns of a side's relation, as its catalogs have them.
 */
static PsyncRows *
query_columns(PsyncSide *side)
{
	return psync_side_query(side, psprintf("%s AND n.nspname = %s AND c.relname = %s",
										   columns_query,
										   quote_literal_cstr(side->schema),
										   quote_literal_cstr(side->relname)), 8, 8);
}

/* Does the target's server consent to values that change on their way? */
static bool
lossy_casts(const PsyncReconcile *rec)
{
	const PsyncTarget *target = rec->side[PSYNC_OTHER].target;
	const char *option = target != NULL ? psync_services->option(target, "lossy_casts") : NULL;
	bool		value = false;

	if (option != NULL)
		(void) parse_bool(option, &value);
	return value;
}

/* The forms of a column on both sides, once it is known whether it is in the key. */
static void
set_pair_forms(PsyncPair *pair, bool sync, bool lossy)
{
	psync_pair_compare_as(pair, sync, lossy);
	set_forms(&pair->side[0], &pair->side[1]);
	set_forms(&pair->side[1], &pair->side[0]);
	trim_number_in_text(&pair->side[0], &pair->side[1]);
	trim_number_in_text(&pair->side[1], &pair->side[0]);
	set_hashed_forms(pair);
	pair->decide_type = decide_type(pair);
	pair->by_text = pair->side[0].base >= FirstGenbkiObjectId ||
		(pair->side[0].base != pair->side[1].base &&
		 !(is_integer(pair->side[0].base) && is_integer(pair->side[1].base)));
}

/* A column that is not compared is shown as it is printed. */
static void
set_shown_form(PsyncSideColumn *column)
{
	column->as = column->base;
	column->value = psprintf("t.%s", column->name);
	column->text = psprintf("%s::text", column->value);
}

/*
 * What the target of a sync computes by itself is not delivered, so it is not
 * compared either; unless it is in the key, which tells rows apart.
 */
static bool
only_shown(const PsyncReconcile *rec, const PsyncPair *pair, List *key)
{
	ListCell   *lc;

	if (rec->sync == NULL || !pair->side[PSYNC_OTHER].generated)
		return false;
	foreach(lc, key)
	{
		if (strcmp(pair->name, lfirst(lc)) == 0)
			return false;
	}
	return true;
}

/*
 * names and other_names are parallel; key is a part of names.  Columns that
 * are only shown come last: a row that was found to differ is recorded whole.
 */
static void
describe_columns(PsyncReconcile *rec, List *names, List *other_names, List *key)
{
	PsyncRows  *source = query_columns(&rec->side[PSYNC_SOURCE]);
	PsyncRows  *other = query_columns(&rec->side[PSYNC_OTHER]);
	ListCell   *lc;
	ListCell   *lo;
	int			nonly = 0;

	Assert(list_length(names) == list_length(other_names));

	rec->nshown = list_length(names);
	rec->pairs = palloc(rec->nshown * sizeof(PsyncPair));
	forboth(lc, names, lo, other_names)
	{
		PsyncPair	pair = {.name = lfirst(lc), .other_name = lfirst(lo)};

		describe_column(rec, PSYNC_SOURCE, source, &pair, pair.name);
		describe_column(rec, PSYNC_OTHER, other, &pair, pair.other_name);
		if (only_shown(rec, &pair, key))
			rec->pairs[rec->nshown - ++nonly] = pair;
		else
			rec->pairs[rec->npairs++] = pair;
	}

	rec->keys = palloc(list_length(key) * sizeof(int));
	foreach(lc, key)
	{
		for (int i = 0; i < rec->npairs; i++)
		{
			if (strcmp(rec->pairs[i].name, lfirst(lc)) != 0)
				continue;
			rec->pairs[i].key = true;
			rec->keys[rec->nkeys++] = i;
		}
	}
	Assert(rec->nkeys == list_length(key));

	for (int i = 0; i < rec->npairs; i++)
		set_pair_forms(&rec->pairs[i], rec->sync != NULL, lossy_casts(rec));
	for (int i = rec->npairs; i < rec->nshown; i++)
	{
		set_shown_form(&rec->pairs[i].side[PSYNC_SOURCE]);
		set_shown_form(&rec->pairs[i].side[PSYNC_OTHER]);
	}
	place_lengths(rec);
}

/* ------------------------------------------------------------ division */

/*
 * Have both sides' indexes the same order?  Only then do ranges mean the same
 * rows on both.  A null in a key lies in no range.
 */
static bool
keys_sort_alike(const PsyncReconcile *rec)
{
	Assert(rec->nkeys > 0);

	if (!rec->side[0].ordered || !rec->side[1].ordered)
		return false;
	for (int k = 0; k < rec->nkeys; k++)
	{
		const PsyncPair *pair = &rec->pairs[rec->keys[k]];
		Oid			a = pair->side[0].base;
		Oid			b = pair->side[1].base;

		if (!sorts_alike(a) ||
			(a != b && !(is_integer(a) && is_integer(b))))
			return false;
		if (!pair->side[0].bytewise || !pair->side[1].bytewise ||
			!pair->side[0].not_null || !pair->side[1].not_null)
			return false;
		if (rec->escape && type_is_collatable(a))
			return false;
	}
	return true;
}

/*
 * Ranges are scanned by the key's index, even where a planner that knows
 * little of them would rather read the whole table.
 */
static void
choose_division(PsyncReconcile *rec)
{
	Assert(rec->nkeys > 0 && rec->npairs >= rec->nkeys);

	rec->escape = strcmp(rec->side[0].encoding, rec->side[1].encoding) != 0;
	rec->hashed = !keys_sort_alike(rec);
	rec->integer_key = rec->nkeys == 1 &&
		is_integer(rec->pairs[rec->keys[0]].side[0].base) &&
		is_integer(rec->pairs[rec->keys[0]].side[1].base);
	for (int i = 0; i < 2; i++)
	{
		PsyncSide  *side = &rec->side[i];

		side->ordered = !rec->hashed;
		if (side->remote)
			side->transport->reading->set(side->target, "enable_seqscan",
										  side->ordered ? "off" : "on");
	}
}

/* ------------------------------------------------------------ large values */

/* So many rows of the side's average width fit into what is read at a time. */
static int
rows_at_a_time(const PsyncSide *side)
{
	double		width = side->bytes / Max(side->rows, 1);

	if (!(width > 0) || width * PSYNC_READ_ROWS <= PSYNC_READ_BYTES)
		return PSYNC_READ_ROWS;
	return Max(PSYNC_LEAF_ROWS, (int) (PSYNC_READ_BYTES / width));
}

/*
 * Of a large value, what is read is a hash, and a beginning to show; record.c
 * records it as such.
 */
static void
shorten_text(PsyncSideColumn *column)
{
	const char *text = column->text;

	if (column->as == BYTEAOID)
		column->text = psprintf("CASE WHEN pg_catalog.octet_length(%1$s) > %2$d THEN"
								" pg_catalog.concat(E'" PSYNC_SHORT_MARK "', pg_catalog.octet_length(%1$s), ':',"
								" pg_catalog.encode(pg_catalog.sha256(%1$s), 'hex'), ':', '\\x',"
								" pg_catalog.encode(pg_catalog.substr(%1$s, 1, 100), 'hex')) ELSE %3$s END",
								column->value, PSYNC_VALUE_BYTES, text);
	else
		column->text = psprintf("CASE WHEN pg_catalog.octet_length(%1$s) > %2$d THEN"
								" pg_catalog.concat(E'" PSYNC_SHORT_MARK "', pg_catalog.octet_length(%1$s), ':',"
								" pg_catalog.hashtextextended(%1$s COLLATE \"C\", 1), '.',"
								" pg_catalog.hashtextextended(%1$s COLLATE \"C\", 2), ':',"
								" pg_catalog.\"left\"(%1$s, 200)) ELSE %1$s END",
								text, PSYNC_VALUE_BYTES);
}

/*
 * One value must not make a row too large to be read.  Not where the type's "="
 * decides, which needs the whole value: jsonb has a limit of its own.
 */
static void
limit_sizes(PsyncReconcile *rec)
{
	rec->read_rows = Min(rows_at_a_time(&rec->side[0]), rows_at_a_time(&rec->side[1]));
	for (int i = 0; i < rec->nshown && !rec->escape; i++)
	{
		PsyncPair  *pair = &rec->pairs[i];

		if (pair->key || OidIsValid(pair->decide_type) ||
			(pair->side[0].as == BYTEAOID) != (pair->side[1].as == BYTEAOID) ||
			shape_of_text(pair->side[0].as) == PSYNC_TEXT_BARE ||
			shape_of_text(pair->side[1].as) == PSYNC_TEXT_BARE)
			continue;
		shorten_text(&pair->side[0]);
		shorten_text(&pair->side[1]);
	}
}

/* ------------------------------------------------------------- tolerances */

/*
 * Note the tolerance with its column; an error if the column cannot have one.
 */
static void
set_tolerance(PsyncReconcile *rec, const char *name, const char *value)
{
	for (int i = 0; i < rec->npairs; i++)
	{
		PsyncPair  *pair = &rec->pairs[i];
		PsyncClass	class = class_of(pair->side[PSYNC_SOURCE].base);

		if (strcmp(pair->name, name) != 0)
			continue;
		if (pair->key || (class != PSYNC_CLASS_NUMERIC &&
						  class != PSYNC_CLASS_INTEGER &&
						  class != PSYNC_CLASS_FLOAT))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("column \"%s\" cannot have a tolerance", name),
					 errdetail("Only columns of numbers that are not part of the key can.")));
		pair->tolerance = value;
		return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_COLUMN),
			 errmsg("column \"%s\" of the tolerance is not compared", name)));
}

/* {"amount": 0.01, …} */
static void
read_tolerance(PsyncReconcile *rec)
{
	Jsonb	   *jsonb;
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	value;
	char	   *name = NULL;

	if (rec->run->tolerance == NULL)
		return;
	jsonb = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
											   CStringGetDatum(rec->run->tolerance)));
	it = JsonbIteratorInit(&jsonb->root);
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			name = pnstrdup(value.val.string.val, value.val.string.len);
		else if (token == WJB_VALUE && name != NULL && value.type == jbvNumeric)
			set_tolerance(rec, name,
						  DatumGetCString(DirectFunctionCall1(numeric_out,
															  NumericGetDatum(value.val.numeric))));
		else if (token == WJB_ELEM || token == WJB_VALUE)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("invalid tolerance"),
					 errhint("Give an object of column names and numbers, such as '{\"amount\": 0.01}'.")));
	}
}

/* ------------------------------------------------------------------ entry */

/* The columns that the sync delivers, and the key. */
static void
captured_columns(PsyncReconcile *rec, List **names, List **key)
{
	Relation	rel = table_open(rec->run->relid, AccessShareLock);
	PsyncCaptureRel *crel = psync_rel_cache_get(rel);

	if (!crel->captured)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" is not captured", RelationGetRelationName(rel))));
	for (int i = 0; i < crel->shape->ncolumns; i++)
		*names = lappend(*names, pstrdup(crel->shape->columns[i].name));
	for (int k = 0; k < crel->shape->nkeys; k++)
		*key = lappend(*key, pstrdup(crel->shape->columns[crel->shape->keys[k]].name));
	table_close(rel, AccessShareLock);
}

/*
 * Find out all that the queries need, of both sides.  After this nothing about
 * columns changes: DDL in the middle of a run makes a query fail, and the run
 * with it.
 */
void
psync_table_describe(PsyncReconcile *rec)
{
	PsyncRun   *run = rec->run;
	List	   *names = run->columns;
	List	   *key = run->key;
	List	   *other_names;
	List	   *other_key = NIL;

	if (rec->sync != NULL)
		captured_columns(rec, &names, &key);
	Assert(names != NIL && key != NIL);

	other_names = run->other_columns != NIL ? run->other_columns : names;
	describe_columns(rec, names, other_names, key);
	for (int k = 0; k < rec->nkeys; k++)
		other_key = lappend(other_key, rec->pairs[rec->keys[k]].other_name);
	describe_relation(&rec->side[PSYNC_SOURCE], key);
	describe_relation(&rec->side[PSYNC_OTHER], other_key);
	choose_division(rec);
	limit_sizes(rec);
	read_tolerance(rec);

	rec->key_attnums = palloc(rec->nkeys * sizeof(AttrNumber));
	Assert(rec->nkeys > 0 && rec->nkeys <= rec->npairs);
	for (int k = 0; k < rec->nkeys; k++)
		rec->key_attnums[k] = get_attnum(run->relid, rec->pairs[rec->keys[k]].name);
}
