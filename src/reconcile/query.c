/*
 * query.c
 *		The statements that are run on both sides.
 *
 * They are the same on both sides but for names, and use nothing that an
 * ordinary PostgreSQL server does not have.
 *
 * A checksum of a cell is the number of its rows and, of the text of each
 * row's canonical form, two 64-bit hashes with different seeds, each summed
 * up.  A sum, unlike XOR, does not lose pairs of equal changes.  Taking the
 * hashes for random: a changed row, or any set of changed rows, is overlooked
 * with a probability of 2^-128; the seeds are chosen anew for each run.  Such
 * hashes do not resist somebody who knows the seeds and crafts rows: for that
 * there is sha256 over those of all rows of the cell, in order.
 *
 * Why the text of the whole row.  Hashes of the columns' own types would cost
 * half, but hash_record_extended() adds them up, so that two rows that have
 * exchanged a value have the same sum; and hash_numeric() does not see the
 * sign, and those of bigint and of timestamps fold 64 bits into 32.  Chaining
 * them, each one's result the next one's seed, loses a little of the 128 bits
 * with each column.
 *
 * The lengths of up to two strings are mixed into the seeds instead of being
 * printed into the text: what is hashed is the pair of both, so nothing is
 * lost, and printing costs as much as a column does.
 *
 * The row's text is made once and hashed twice: "OFFSET 0" keeps the planner
 * from making it twice.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"

#include "compat.h"
#include "reconcile/reconcile.h"

/* Columns that one call of concat_ws() takes: two of its 100 arguments each. */
#define PSYNC_CONCAT_COLUMNS	40
#define PSYNC_ROW_SHA256	"pg_catalog.sha256(pg_catalog.convert_to(x, 'UTF8'))"
/* "OFFSET 0": see the header comment.  Cells without rows are not sent. */
#define PSYNC_END_OF_DIGESTS	" OFFSET 0) s(x, y) HAVING pg_catalog.count(*) > 0"

/* ---------------------------------------------------------------- arrays */

/*
 * Append an array's literal, of every stride-th value: '{"a","b"}', quoted
 * twice over, as an array's element and as an SQL string.
 */
void
psync_append_array(StringInfo buf, char **values, int n, int stride)
{
	StringInfoData array;

	Assert(n >= 0 && stride > 0);

	initStringInfo(&array);
	appendStringInfoChar(&array, '{');
	for (int i = 0; i < n; i++)
	{
		const char *value = values[i * stride];

		if (i > 0)
			appendStringInfoChar(&array, ',');
		if (value == NULL)
		{
			appendStringInfoString(&array, "NULL");
			continue;
		}
		appendStringInfoChar(&array, '"');
		for (const char *at = value; *at != '\0'; at++)
		{
			if (*at == '"' || *at == '\\')
				appendStringInfoChar(&array, '\\');
			appendStringInfoChar(&array, *at);
		}
		appendStringInfoChar(&array, '"');
	}
	appendStringInfoChar(&array, '}');
	appendStringInfoString(buf, quote_literal_cstr(array.data));
	pfree(array.data);
}

/*
 * The k-th column of the key, as one side has it.
 */
static const PsyncSideColumn *
key_column(const PsyncReconcile *rec, int side, int k)
{
	Assert(k >= 0 && k < rec->nkeys);
	return &rec->pairs[rec->keys[k]].side[side];
}

/*
 * What values of a key column are cast to: the column's type, or bigint for
 * any integer, since the other side's may not fit into it.
 */
static const char *
key_type(const PsyncReconcile *rec, int side, int k)
{
	const PsyncSideColumn *column = key_column(rec, side, k);

	if (column->base == INT2OID || column->base == INT4OID)
		return "bigint";
	return column->type;
}

/*
 * A key column as its type prints it, which is what the log's keys are turned
 * into; the cast to text differs from that for a few types.  "value" is the
 * column, by any alias.
 */
static char *
key_text(const PsyncReconcile *rec, int side, int k, const char *value)
{
	const PsyncSideColumn *column = key_column(rec, side, k);

	if (column->base == BOOLOID || column->base == INETOID)
		return psprintf("pg_catalog.format('%%s', %s)", value);
	return psprintf("%s::text", value);
}

/*
 * The beginning of "SELECT key FROM (SELECT key, its number …": only the keys
 * that are wanted are turned into text.
 */
static void
append_numbered_keys(StringInfo buf, const PsyncReconcile *rec, int side)
{
	appendStringInfoString(buf, "SELECT ");
	for (int k = 0; k < rec->nkeys; k++)
		appendStringInfo(buf, "%s%s", k > 0 ? ", " : "",
						 key_text(rec, side, k, psprintf("s._psync_k%d", k)));
	appendStringInfoString(buf, " FROM (");
}

/* The list of the inner one. */
static char *
numbered_list(const PsyncReconcile *rec, int side)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int k = 0; k < rec->nkeys; k++)
		appendStringInfo(&list, "t.%s AS _psync_k%d, ", key_column(rec, side, k)->name, k);
	appendStringInfoString(&list, "pg_catalog.row_number() OVER (ORDER BY ");
	for (int k = 0; k < rec->nkeys; k++)
		appendStringInfo(&list, "%st.%s", k > 0 ? ", " : "", key_column(rec, side, k)->name);
	appendStringInfoString(&list, ") AS n");
	return list.data;
}

/* "(t.a, t.b)", or with another alias and invented names "(r.l0, r.l1)". */
static void
append_key(StringInfo buf, const PsyncReconcile *rec, int side, const char *invented)
{
	appendStringInfoChar(buf, '(');
	for (int k = 0; k < rec->nkeys; k++)
	{
		if (invented != NULL)
			appendStringInfo(buf, "%s%s%d", k > 0 ? ", " : "", invented, k);
		else
			appendStringInfo(buf, "%st.%s", k > 0 ? ", " : "",
							 key_column(rec, side, k)->name);
	}
	appendStringInfoChar(buf, ')');
}

/* "('1'::bigint, 'x'::text)" */
static void
append_bound(StringInfo buf, const PsyncReconcile *rec, int side, char **bound)
{
	appendStringInfoChar(buf, '(');
	for (int k = 0; k < rec->nkeys; k++)
		appendStringInfo(buf, "%s%s::%s", k > 0 ? ", " : "",
						 quote_literal_cstr(bound[k]), key_type(rec, side, k));
	appendStringInfoChar(buf, ')');
}

/*
 * The run's own condition, if it has one.  On a line of its own, so that a
 * comment in it cannot swallow what follows.  It runs with the rights of
 * whoever asked, here and at the target, like any query of theirs.
 */
static void
append_where(StringInfo buf, const PsyncReconcile *rec)
{
	if (rec->run->where != NULL)
		appendStringInfo(buf, " AND (%s\n)", rec->run->where);
}

/*
 * A text to be hashed.  Encodings that differ are turned into UTF-8, and that
 * into ASCII, which all can hold.
 */
static void
append_escaped(StringInfo buf, const PsyncReconcile *rec, const char *text)
{
	if (rec->escape)
		appendStringInfo(buf, "pg_catalog.encode(pg_catalog.convert_to(%s, 'UTF8'), 'escape')",
						 text);
	else
		appendStringInfoString(buf, text);
}

/* The text of a key's canonical form. */
static void
append_key_text(StringInfo buf, const PsyncReconcile *rec, int side)
{
	StringInfoData row;

	initStringInfo(&row);
	for (int k = 0; k < rec->nkeys; k++)
		appendStringInfo(&row, "%s%s", k > 0 ? ", " : "ROW(",
						 key_column(rec, side, k)->canonical);
	appendStringInfoString(&row, ")::text");
	append_escaped(buf, rec, row.data);
	pfree(row.data);
}

/*
 * An argument of concat_ws(), of which the caller counts the columns.
 */
static void
append_argument(StringInfo buf, int *n, const char *argument)
{
	const char *before = ", ";

	if (*n == 0)
		before = "pg_catalog.concat_ws('|', ";
	else if (*n % PSYNC_CONCAT_COLUMNS == 0)
		before = ") || pg_catalog.concat_ws('|', '', ";
	appendStringInfo(buf, "%s%s", before, argument);
	(*n)++;
}

/*
 * The text of a row's canonical form, in the same encoding on both sides.
 * concat_ws() makes it in two thirds of the time that a row's own text takes,
 * but has at most so many arguments.  With seeds, the lengths of some strings
 * need not be in it; without, rows follow each other in one text, and all are.
 */
static void
append_concat(StringInfo buf, const PsyncReconcile *rec, int side)
{
	const char *last = NULL;
	int			n = 0;

	for (int i = 0; i < rec->npairs; i++)
	{
		const PsyncSideColumn *column = &rec->pairs[i].side[side];
		PsyncLengthPlace place = rec->run->crypto ? PSYNC_LENGTH_BEFORE :
			rec->pairs[i].length_place;

		if (place == PSYNC_LENGTH_NOWHERE)
		{
			Assert(last == NULL);
			last = column->hashed;
		}
		else if (place == PSYNC_LENGTH_BEFORE && column->length != NULL)
			append_argument(buf, &n, psprintf("%s, %s", column->length, column->hashed));
		else
			append_argument(buf, &n, column->hashed);
	}
	if (last != NULL && n == 0)
		append_argument(buf, &n, "''"); /* tells null from empty */
	if (last != NULL)
		append_argument(buf, &n, last);
	appendStringInfoChar(buf, ')');
}

/*
 * The text of a row's canonical form, if the encodings differ: lengths of
 * strings would mean something in one of them only.
 */
static void
append_escaped_row(StringInfo buf, const PsyncReconcile *rec, int side)
{
	StringInfoData row;

	Assert(rec->escape);

	initStringInfo(&row);
	for (int i = 0; i < rec->npairs; i++)
		appendStringInfo(&row, "%s%s", i > 0 ? ", " : "ROW(",
						 rec->pairs[i].side[side].canonical);
	appendStringInfoString(&row, ")::text");
	append_escaped(buf, rec, row.data);
	pfree(row.data);
}

/*
 * What is to be mixed into the seeds: the lengths that are not in the text.
 * Each is less than 2^30, or -1, so that two are told apart in one number.
 * False if there is nothing.
 */
static bool
append_seed_lengths(StringInfo buf, const PsyncReconcile *rec, int side)
{
	int			n = 0;

	if (rec->escape || rec->run->crypto)
		return false;
	for (int i = 0; i < rec->npairs; i++)
	{
		const PsyncPair *pair = &rec->pairs[i];

		if (pair->length_place != PSYNC_LENGTH_SEED)
			continue;
		appendStringInfo(buf, n > 0 ? " + %s" : "%s * 2147483648::bigint",
						 pair->side[side].length);
		n++;
	}
	Assert(n <= PSYNC_SEED_LENGTHS);
	return n > 0;
}

/* ------------------------------------------------------------------ cells */

/*
 * The first bits of the hash of a row's key; its seed is fixed, since both
 * sides and all steps must agree.
 */
static void
append_prefix(StringInfo buf, const PsyncReconcile *rec, int side)
{
	Assert(rec->hash_bits > 0 && rec->hash_bits < 64);

	appendStringInfoString(buf, "(pg_catalog.hashtextextended(");
	append_key_text(buf, rec, side);
	appendStringInfo(buf, " COLLATE \"C\", 0) >> %d)", 64 - rec->hash_bits);
}

/* " AND key > after AND key <= upto", where there are such bounds. */
static void
append_limits(StringInfo buf, const PsyncReconcile *rec, int side, char **after,
			  char **upto)
{
	if (after != NULL)
	{
		appendStringInfoString(buf, " AND ");
		append_key(buf, rec, side, NULL);
		appendStringInfoString(buf, " > ");
		append_bound(buf, rec, side, after);
	}
	if (upto != NULL)
	{
		appendStringInfoString(buf, " AND ");
		append_key(buf, rec, side, NULL);
		appendStringInfoString(buf, " <= ");
		append_bound(buf, rec, side, upto);
	}
}

/*
 * A cell with one bound or none: a query of its own, so that the index can be
 * used for the bound that there is.
 */
static void
append_open_cell(StringInfo buf, const PsyncReconcile *rec, int side,
				 const PsyncCell *cell, int number, const char *list,
				 const char *digests)
{
	Assert(number >= 0);

	if (digests != NULL)
		appendStringInfo(buf, "SELECT %d, %s FROM (SELECT %s", number, digests, list);
	else
		appendStringInfo(buf, "SELECT %d AS i, %s", number, list);
	appendStringInfo(buf, " FROM %s t WHERE true", rec->side[side].from);
	append_limits(buf, rec, side, cell->after, cell->upto);
	append_where(buf, rec);
	if (digests != NULL)
		appendStringInfoString(buf, PSYNC_END_OF_DIGESTS);
}

/* ", '{…}'::type[]" per key column */
static void
append_bounds(StringInfo buf, const PsyncReconcile *rec, int side,
			  PsyncCell **cells, int n, bool upper)
{
	char	  **values = palloc(n * sizeof(char *));

	Assert(n > 0);

	for (int k = 0; k < rec->nkeys; k++)
	{
		for (int i = 0; i < n; i++)
			values[i] = upper ? cells[i]->upto[k] : cells[i]->after[k];
		appendStringInfoString(buf, ", ");
		psync_append_array(buf, values, n, 1);
		appendStringInfo(buf, "::%s[]", key_type(rec, side, k));
	}
	pfree(values);
}

/*
 * The cells' numbers, as an array.
 */
static void
append_numbers(StringInfo buf, const int *numbers, int n)
{
	appendStringInfoString(buf, "'{");
	for (int i = 0; i < n; i++)
		appendStringInfo(buf, "%s%d", i > 0 ? "," : "", numbers[i]);
	appendStringInfoString(buf, "}'::int[]");
}

/*
 * Cells with both bounds, by one index scan each.  Digests are made in the
 * loop over the cells: no row needs to look for its group.
 */
static void
append_closed_cells(StringInfo buf, const PsyncReconcile *rec, int side,
					PsyncCell **cells, const int *numbers, int n, const char *list,
					const char *digests)
{
	Assert(n > 0);

	appendStringInfo(buf, "SELECT r._psync_i, %s FROM unnest(",
					 digests != NULL ? "s.*" : list);
	append_numbers(buf, numbers, n);
	append_bounds(buf, rec, side, cells, n, false);
	append_bounds(buf, rec, side, cells, n, true);
	appendStringInfoString(buf, ") r(_psync_i");
	for (int k = 0; k < rec->nkeys; k++)
		appendStringInfo(buf, ", _psync_l%d", k);
	for (int k = 0; k < rec->nkeys; k++)
		appendStringInfo(buf, ", _psync_h%d", k);
	if (digests != NULL)
		appendStringInfo(buf, ") CROSS JOIN LATERAL (SELECT %s FROM (SELECT %s FROM %s t WHERE ",
						 digests, list, rec->side[side].from);
	else
		appendStringInfo(buf, ") JOIN %s t ON ", rec->side[side].from);
	append_key(buf, rec, side, NULL);
	appendStringInfoString(buf, " > ");
	append_key(buf, rec, side, "r._psync_l");
	appendStringInfoString(buf, " AND ");
	append_key(buf, rec, side, NULL);
	appendStringInfoString(buf, " <= ");
	append_key(buf, rec, side, "r._psync_h");
	append_where(buf, rec);
	if (digests != NULL)
		appendStringInfoString(buf, PSYNC_END_OF_DIGESTS ") s");
}

/*
 * Rows of ranges, or their digests: those with both bounds in one join, the
 * others by a query each.
 */
static void
append_ranges(StringInfo buf, const PsyncReconcile *rec, int side, List *cells,
			  const char *list, const char *digests)
{
	PsyncCell **closed = palloc(list_length(cells) * sizeof(PsyncCell *));
	int		   *numbers = palloc(list_length(cells) * sizeof(int));
	int			nclosed = 0;
	int			number = 0;
	bool		first = true;
	ListCell   *lc;

	Assert(!rec->hashed);

	foreach(lc, cells)
	{
		PsyncCell  *cell = lfirst(lc);

		if (cell->after != NULL && cell->upto != NULL)
		{
			closed[nclosed] = cell;
			numbers[nclosed++] = number;
		}
		else
		{
			appendStringInfoString(buf, first ? "" : " UNION ALL ");
			append_open_cell(buf, rec, side, cell, number, list, digests);
			first = false;
		}
		number++;
	}
	if (nclosed > 0)
	{
		appendStringInfoString(buf, first ? "" : " UNION ALL ");
		append_closed_cells(buf, rec, side, closed, numbers, nclosed, list, digests);
	}
}

/*
 * Rows of hashed cells: one pass over the table, whatever their number.
 */
static void
append_hashed(StringInfo buf, const PsyncReconcile *rec, int side, List *cells,
			  const char *list)
{
	int			n = 0;
	ListCell   *lc;

	Assert(rec->hashed);

	appendStringInfo(buf, "SELECT r._psync_i, %s FROM %s t"
					 " JOIN unnest('{", list, rec->side[side].from);
	for (int i = 0; i < list_length(cells); i++)
		appendStringInfo(buf, "%s%d", i > 0 ? "," : "", i);
	appendStringInfoString(buf, "}'::int[], '{");
	foreach(lc, cells)
		appendStringInfo(buf, "%s" INT64_FORMAT, n++ > 0 ? "," : "",
						 ((PsyncCell *) lfirst(lc))->prefix);
	appendStringInfoString(buf, "}'::bigint[]) r(_psync_i, _psync_p) ON r._psync_p = ");
	append_prefix(buf, rec, side);
	append_where(buf, rec);
}

/* Rows of the cells, with "list" of each and the number of its cell, i. */
static void
append_cells(StringInfo buf, const PsyncReconcile *rec, int side, List *cells,
			 const char *list)
{
	Assert(cells != NIL);
	if (rec->hashed)
		append_hashed(buf, rec, side, cells, list);
	else
		append_ranges(buf, rec, side, cells, list, NULL);
}

/* --------------------------------------------------------------- statements */

/*
 * A row as it goes into a digest: its text x, and y, which is a number for the
 * seeds, the key that sha256 goes by, or nothing.
 */
static void
append_digest_list(StringInfo buf, const PsyncReconcile *rec, int side)
{
	if (rec->escape)
		append_escaped_row(buf, rec, side);
	else
		append_concat(buf, rec, side);
	appendStringInfoString(buf, ", ");
	if (rec->run->crypto && !rec->hashed)
	{
		appendStringInfoString(buf, rec->nkeys > 1 ? "ROW" : "");
		append_key(buf, rec, side, NULL);
	}
	else if (!append_seed_lengths(buf, rec, side))
		appendStringInfoString(buf, "0::bigint");
}

/*
 * One of the two digests of a row.
 */
static void
append_row_digest(StringInfo buf, const PsyncReconcile *rec, int i)
{
	Assert(i == 0 || i == 1);

	if (!rec->run->crypto)
		appendStringInfo(buf, "pg_catalog.hashtextextended(x COLLATE \"C\", '" INT64_FORMAT "'::bigint # y)",
						 rec->run->seeds[i]);
	else if (i == 0)
		appendStringInfoString(buf, "pg_catalog.encode(" PSYNC_ROW_SHA256 ", 'hex')");
	else
		appendStringInfoString(buf, "''");
}

/*
 * The number of rows and two 64-bit sums, or sha256 over the rows' own, in
 * order; see the header comment.  Rows are not put together: they may be large.
 */
static void
append_digests(StringInfo buf, const PsyncReconcile *rec)
{
	appendStringInfoString(buf, "pg_catalog.count(*), ");
	if (rec->run->crypto)
		appendStringInfo(buf, "pg_catalog.encode(pg_catalog.sha256("
						 "pg_catalog.string_agg(%s, ''::bytea ORDER BY %s)), 'hex'), ''",
						 PSYNC_ROW_SHA256, rec->hashed ? PSYNC_ROW_SHA256 : "y");
	else
	{
		appendStringInfoString(buf, "pg_catalog.sum(");
		append_row_digest(buf, rec, 0);
		appendStringInfoString(buf, "), pg_catalog.sum(");
		append_row_digest(buf, rec, 1);
		appendStringInfoChar(buf, ')');
	}
}

/*
 * The checksums of the cells.  A row per cell that has rows: number of the
 * cell, rows, two digests.
 */
char *
psync_query_checksum(const PsyncReconcile *rec, int side, List *cells)
{
	StringInfoData buf;
	StringInfoData list;
	StringInfoData digests;

	initStringInfo(&list);
	append_digest_list(&list, rec, side);
	initStringInfo(&digests);
	append_digests(&digests, rec);
	initStringInfo(&buf);
	if (rec->hashed)
	{
		appendStringInfo(&buf, "SELECT i, %s FROM (", digests.data);
		append_hashed(&buf, rec, side, cells, list.data);
		appendStringInfoString(&buf, " OFFSET 0) s(i, x, y) GROUP BY i");
	}
	else
		append_ranges(&buf, rec, side, cells, list.data, digests.data);
	return buf.data;
}

/*
 * The digests of the single rows of cells: number of the cell, key, digest in
 * two columns.
 */
char *
psync_query_row_digests(const PsyncReconcile *rec, int side, List *cells)
{
	StringInfoData buf;
	StringInfoData list;

	Assert(!rec->hashed);

	initStringInfo(&list);
	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT i");
	for (int k = 0; k < rec->nkeys; k++)
	{
		appendStringInfo(&list, "%s, ",
						 key_text(rec, side, k,
								  psprintf("t.%s", key_column(rec, side, k)->name)));
		appendStringInfo(&buf, ", k%d", k);
	}
	append_digest_list(&list, rec, side);
	for (int i = 0; i < 2; i++)
	{
		appendStringInfoString(&buf, ", ");
		append_row_digest(&buf, rec, i);
	}
	appendStringInfoString(&buf, " FROM (");
	append_ranges(&buf, rec, side, cells, list.data, NULL);
	appendStringInfoString(&buf, " OFFSET 0) s(i");
	for (int k = 0; k < rec->nkeys; k++)
		appendStringInfo(&buf, ", k%d", k);
	appendStringInfoString(&buf, ", x, y)");
	return buf.data;
}

/*
 * Every width-th key of a range, in order: where to split it.
 */
char *
psync_query_split(const PsyncReconcile *rec, int side, const PsyncCell *cell,
				  int64 width)
{
	StringInfoData buf;

	Assert(width > 0);

	initStringInfo(&buf);
	append_numbered_keys(&buf, rec, side);
	append_open_cell(&buf, rec, side, cell, 0, numbered_list(rec, side), NULL);
	appendStringInfo(&buf, ") s WHERE n %% " INT64_FORMAT " = 0 ORDER BY n", width);
	return buf.data;
}

/* Keys at which to cut the whole table into cells, from a sample of its pages. */
char *
psync_query_sample(const PsyncReconcile *rec, double percent, int64 stride)
{
	StringInfoData buf;

	Assert(percent > 0 && percent <= 100 && stride > 0);

	initStringInfo(&buf);
	append_numbered_keys(&buf, rec, PSYNC_SOURCE);
	appendStringInfo(&buf, "SELECT %s FROM %s t TABLESAMPLE SYSTEM (%g) WHERE true",
					 numbered_list(rec, PSYNC_SOURCE), rec->side[PSYNC_SOURCE].from, percent);
	append_limits(&buf, rec, PSYNC_SOURCE, rec->after, rec->run->upto);
	append_where(&buf, rec);
	appendStringInfo(&buf, ") s WHERE n %% " INT64_FORMAT " = 0 ORDER BY n", stride);
	return buf.data;
}

/*
 * Key columns, then all columns, as text.  Types that differ have their key's
 * text in common as they have a column's.
 */
static char *
text_list(const PsyncReconcile *rec, int side)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int k = 0; k < rec->nkeys; k++)
	{
		const PsyncSideColumn *column = key_column(rec, side, k);

		appendStringInfo(&list, "%s, ", rec->pairs[rec->keys[k]].by_text ? column->text :
						 key_text(rec, side, k, psprintf("t.%s", column->name)));
	}
	for (int i = 0; i < rec->nshown; i++)
		appendStringInfo(&list, "%s%s", i > 0 ? ", " : "", rec->pairs[i].side[side].text);
	return list.data;
}

/*
 * Put the position before the rows, in one statement, so that both are of one
 * time.  At the source, and where there is no position, a null stands there.
 */
static void
append_position(StringInfo buf, const PsyncReconcile *rec, int side)
{
	Assert(side == PSYNC_SOURCE || side == PSYNC_OTHER);

	if (side == PSYNC_OTHER && rec->position_query != NULL)
		appendStringInfo(buf, "SELECT -1 AS i, (%s)", rec->position_query);
	else
		appendStringInfoString(buf, "SELECT -1 AS i, NULL::text");
	for (int i = 1; i < rec->nkeys + rec->nshown; i++)
		appendStringInfoString(buf, ", NULL::text");
	appendStringInfoString(buf, " UNION ALL ");
}

/*
 * All rows of the cells: number of the cell, key, columns; and the position.
 */
char *
psync_query_rows(const PsyncReconcile *rec, int side, List *cells)
{
	StringInfoData buf;

	initStringInfo(&buf);
	append_position(&buf, rec, side);
	append_cells(&buf, rec, side, cells, text_list(rec, side));
	return buf.data;
}

/*
 * "k = r._psync_k0".  By text, the canonical one, where the types differ: what
 * one side has need not be a value of the other's type at all.  A key that is
 * null, in a file, is found as well, if there is one to be found.
 */
static void
append_key_match(StringInfo buf, const PsyncReconcile *rec, int side, int k, bool null)
{
	const PsyncSideColumn *column = key_column(rec, side, k);

	if (rec->pairs[rec->keys[k]].by_text)
		appendStringInfo(buf, "(%s)::text COLLATE \"C\"", column->canonical);
	else
		appendStringInfo(buf, "t.%s", column->name);
	appendStringInfo(buf, "%s r._psync_k%d", null ? " IS NOT DISTINCT FROM" : " =", k);
}

/*
 * Rows by key, in the same form; keys[i] are the key columns of one.
 */
char *
psync_query_keys(const PsyncReconcile *rec, int side, char ***keys, int nkeys)
{
	StringInfoData buf;
	StringInfoData match;
	char	  **values = palloc(nkeys * sizeof(char *));

	Assert(nkeys > 0);

	initStringInfo(&buf);
	initStringInfo(&match);
	append_position(&buf, rec, side);
	appendStringInfo(&buf, "SELECT 0, %s FROM unnest(",
					 text_list(rec, side));
	for (int k = 0; k < rec->nkeys; k++)
	{
		const PsyncPair *pair = &rec->pairs[rec->keys[k]];
		bool		null = false;

		for (int i = 0; i < nkeys; i++)
		{
			values[i] = pair->by_text ? psync_key_significant(pair, keys[i][k]) :
				keys[i][k];
			null |= values[i] == NULL;
		}
		appendStringInfoString(&buf, k > 0 ? ", " : "");
		psync_append_array(&buf, values, nkeys, 1);
		appendStringInfo(&buf, "::%s[]", pair->by_text ? "text" : key_type(rec, side, k));
		appendStringInfoString(&match, k > 0 ? " AND " : "");
		append_key_match(&match, rec, side, k, null);
	}
	appendStringInfoString(&buf, ") r(");
	for (int k = 0; k < rec->nkeys; k++)
		appendStringInfo(&buf, "%s_psync_k%d", k > 0 ? ", " : "", k);
	appendStringInfo(&buf, ") JOIN %s t ON %s", rec->side[side].from, match.data);
	append_where(&buf, rec);
	return buf.data;
}
