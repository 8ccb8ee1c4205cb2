/*
 * compare.c
 *		Rows of both sides, laid beside each other by key.
 *
 * Rows come as text, in any order, key columns first.  Both sides' are sorted
 * by a name made of the key's values, and merged; a key that a side has more
 * than once (a file may) is paired off as often as the other side has it, too,
 * and the rest are missing or unexpected.
 */
#include "postgres.h"

#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/typcache.h"

#include "compat.h"
#include "reconcile/reconcile.h"

/* A row of a result, by the name of its key. */
typedef struct PsyncNamedRow
{
	char	   *name;
	char	  **values;			/* key columns, then all columns */
} PsyncNamedRow;

/* ------------------------------------------------------------------- keys */

/* Digits with a point among them, as numeric prints a number with a fraction. */
static bool
is_decimal(const char *value)
{
	const char *at = value + (value[0] == '-');
	size_t		digits = strspn(at, "0123456789");

	if (digits == 0 || at[digits] != '.')
		return false;
	at += digits + 1;
	return at[0] != '\0' && at[strspn(at, "0123456789")] == '\0';
}

/*
 * How much of a value tells it from others: of a numeric, or of a text that is
 * compared with one, "1.00" and "1" are the same, and so are, of a character,
 * "EUR" and "EUR  ".  A file's text may be no number at all.
 */
static int
significant_length(const PsyncPair *pair, const char *value)
{
	int			length = strlen(value);
	Oid			a = pair->side[PSYNC_SOURCE].as;
	Oid			b = pair->side[PSYNC_OTHER].as;

	if (a == BPCHAROID || b == BPCHAROID)
	{
		while (length > 0 && value[length - 1] == ' ')
			length--;
	}
	if ((a == NUMERICOID || b == NUMERICOID) && is_decimal(value))
	{
		while (value[length - 1] == '0')
			length--;
		if (value[length - 1] == '.')
			length--;
	}
	return length;
}

/* A key's value as it is looked up by its text; see psync_query_keys(). */
char *
psync_key_significant(const PsyncPair *pair, const char *value)
{
	return value == NULL ? NULL : pnstrdup(value, significant_length(pair, value));
}

/*
 * A string that is the same for equal keys of both sides, and no others: each
 * value is preceded by its length, so that no two columns can run into each
 * other.  In the current memory context.
 */
char *
psync_key_name(const PsyncReconcile *rec, char **key)
{
	StringInfoData buf;

	Assert(rec->nkeys > 0);

	initStringInfo(&buf);
	for (int k = 0; k < rec->nkeys; k++)
	{
		const PsyncPair *pair = &rec->pairs[rec->keys[k]];
		Oid			base = pair->side[PSYNC_SOURCE].base;
		const char *value = key[k];
		int			length;

		if (value == NULL)
		{
			appendStringInfoString(&buf, "-:");
			continue;
		}
		if ((base == FLOAT4OID || base == FLOAT8OID) && strcmp(value, "-0") == 0)
			value = "0";
		length = significant_length(pair, value);
		appendStringInfo(&buf, "%d:%.*s", length, length, value);
	}
	return buf.data;
}

/*
 * By bytes, on both sides alike: an order of our own, no collation.
 */
static int
compare_named(const void *a, const void *b)
{
	return strcmp(((const PsyncNamedRow *) a)->name,
				  ((const PsyncNamedRow *) b)->name);
}

/* The row that bears the position has number -1; it stands first, or nearly. */
static bool
is_position_row(const PsyncRows *rows, int row)
{
	return strcmp(psync_rows_get(rows, row, 0), "-1") == 0;
}

/*
 * The position that came with the rows, or NULL. Valid as long as they are.
 */
const char *
psync_rows_position(const PsyncRows *rows)
{
	for (int i = 0; i < rows->nrows; i++)
	{
		if (is_position_row(rows, i))
			return psync_rows_get(rows, i, 1);
	}
	return NULL;
}

/*
 * The rows with their keys' names, sorted; *n of them, without the one that
 * bears the position.
 */
static PsyncNamedRow *
name_rows(const PsyncReconcile *rec, const PsyncRows *rows, int *n)
{
	PsyncNamedRow *named = palloc(Max(1, rows->nrows) * sizeof(PsyncNamedRow));

	*n = 0;
	for (int i = 0; i < rows->nrows; i++)
	{
		if (is_position_row(rows, i))
			continue;
		named[*n].values = &psync_rows_get(rows, i, 1);
		named[*n].name = psync_key_name(rec, named[*n].values);
		(*n)++;
	}
	qsort(named, *n, sizeof(PsyncNamedRow), compare_named);
	return named;
}

/* ----------------------------------------------------------------- values */

/*
 * Does a type for numbers print it?  A file's text may say "n/a", or "5,50".
 * An exponent is floating point's, of three digits at most.
 */
bool
psync_is_number(const char *value)
{
	const char *at = value + (value[0] == '-');
	size_t		digits = strspn(at, "0123456789");

	if (digits == 0)
		return false;
	at += digits;
	if (at[0] == '.')
	{
		digits = strspn(at + 1, "0123456789");
		if (digits == 0)
			return false;
		at += 1 + digits;
	}
	if (at[0] == 'e')
	{
		at += 1 + (at[1] == '-' || at[1] == '+');
		digits = strspn(at, "0123456789");
		if (digits == 0 || digits > 3)
			return false;
		at += digits;
	}
	return at[0] == '\0';
}

/*
 * Is the difference between two numbers small enough?  In numeric, so that no
 * tolerance is lost to rounding.  What is no number, NaN and infinity among
 * them, is within no tolerance of anything but itself.
 */
static bool
within_tolerance(const PsyncPair *pair, const char *a, const char *b)
{
	Datum		x;
	Datum		y;
	Datum		most;

	Assert(pair->tolerance != NULL);

	if (!psync_is_number(a) || !psync_is_number(b))
		return false;
	x = DirectFunctionCall3(numeric_in, CStringGetDatum(a), ObjectIdGetDatum(InvalidOid),
							Int32GetDatum(-1));
	y = DirectFunctionCall3(numeric_in, CStringGetDatum(b), ObjectIdGetDatum(InvalidOid),
							Int32GetDatum(-1));
	most = DirectFunctionCall3(numeric_in, CStringGetDatum(pair->tolerance),
							   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1));
	x = DirectFunctionCall1(numeric_abs, DirectFunctionCall2(numeric_sub, x, y));
	return DatumGetBool(DirectFunctionCall2(numeric_le, x, most));
}

/*
 * Does the type's own "=" say that two values of different text are equal?
 * Only for types that are the same at both sides (table.c), whose input
 * accepts what their output has written.
 */
static bool
type_says_equal(Oid base, const char *a, const char *b)
{
	TypeCacheEntry *type = lookup_type_cache(base, TYPECACHE_EQ_OPR_FINFO);
	Oid			input;
	Oid			param;
	Datum		x;
	Datum		y;

	getTypeInputInfo(base, &input, &param);
	x = OidInputFunctionCall(input, unconstify(char *, a), param, -1);
	y = OidInputFunctionCall(input, unconstify(char *, b), param, -1);
	return DatumGetBool(FunctionCall2Coll(&type->eq_opr_finfo,
										  C_COLLATION_OID, x, y));
}

/*
 * A null differs from all but a null.
 */
static bool
values_differ(const PsyncPair *pair, const char *a, const char *b)
{
	int			length;

	if (a == NULL || b == NULL)
		return a != b;
	if (strcmp(a, b) == 0)
		return false;
	length = significant_length(pair, a);
	if (length == significant_length(pair, b) && strncmp(a, b, length) == 0)
		return false;
	if (pair->tolerance != NULL && within_tolerance(pair, a, b))
		return false;
	return !OidIsValid(pair->decide_type) ||
		!type_says_equal(pair->decide_type, a, b);
}

/*
 * Which columns differ, as an array by pairs; NULL if the rows are equal.  The
 * key's are equal already.
 */
static bool *
rows_differ(const PsyncReconcile *rec, char **source, char **other)
{
	bool	   *differs = NULL;

	for (int i = 0; i < rec->npairs; i++)
	{
		if (rec->pairs[i].key ||
			!values_differ(&rec->pairs[i], source[i], other[i]))
			continue;
		if (differs == NULL)
			differs = palloc0(rec->npairs * sizeof(bool));
		differs[i] = true;
	}
	return differs;
}

/* ------------------------------------------------------------------- rows */

/* All keys on which the rows of the two results differ, by name. */
PsyncDifference *
psync_rows_compare(PsyncReconcile *rec, const PsyncRows *source,
				   const PsyncRows *other, int *n)
{
	int			ns;
	int			no;
	PsyncNamedRow *s = name_rows(rec, source, &ns);
	PsyncNamedRow *o = name_rows(rec, other, &no);
	PsyncDifference *result = palloc0(Max(1, ns + no) * sizeof(PsyncDifference));
	int			i = 0;
	int			j = 0;

	Assert(source != NULL && other != NULL && n != NULL);

	*n = 0;
	while (i < ns || j < no)
	{
		int			order = i == ns ? 1 : j == no ? -1 : strcmp(s[i].name, o[j].name);
		PsyncDifference *difference = &result[*n];

		difference->name = order <= 0 ? s[i].name : o[j].name;
		difference->key = order <= 0 ? s[i].values : o[j].values;
		difference->source = order <= 0 ? s[i].values + rec->nkeys : NULL;
		difference->target = order >= 0 ? o[j].values + rec->nkeys : NULL;
		difference->differs = NULL;
		if (order == 0)
			difference->differs = rows_differ(rec, difference->source,
											  difference->target);
		if (order != 0 || difference->differs != NULL)
			(*n)++;
		i += order <= 0;
		j += order >= 0;
	}
	Assert(*n <= ns + no);
	return result;
}

/* ---------------------------------------------------------------- digests */

/*
 * Has a row a null in its key?
 */
static bool
null_in_key(const PsyncReconcile *rec, const PsyncNamedRow *rows, int n)
{
	for (int i = 0; i < n; i++)
		for (int k = 0; k < rec->nkeys; k++)
			if (rows[i].values[k] == NULL)
				return true;
	return false;
}

/*
 * How many of the rows, from the first on, have the same key as that.
 */
static int
same_key(const PsyncNamedRow *rows, int n)
{
	int			count = 0;

	while (count < n && strcmp(rows[count].name, rows[0].name) == 0)
		count++;
	return count;
}

/*
 * Of rows with their digests, the keys that do not have one row with the same
 * digest on each side; each once.  A null digest is never the same. NULL if
 * there are nulls in keys.
 */
char ***
psync_rows_single_out(const PsyncReconcile *rec, const PsyncRows *source,
					  const PsyncRows *other, int *n)
{
	int			ns;
	int			no;
	PsyncNamedRow *s = name_rows(rec, source, &ns);
	PsyncNamedRow *o = name_rows(rec, other, &no);
	char	 ***keys = palloc(Max(1, ns + no) * sizeof(char **));
	int			i = 0;
	int			j = 0;

	*n = 0;
	if (null_in_key(rec, s, ns) || null_in_key(rec, o, no))
		return NULL;
	while (i < ns || j < no)
	{
		int			order = i == ns ? 1 : j == no ? -1 : strcmp(s[i].name, o[j].name);
		int			at_source = order <= 0 ? same_key(s + i, ns - i) : 0;
		int			at_other = order >= 0 ? same_key(o + j, no - j) : 0;
		bool		same = at_source == 1 && at_other == 1;

		for (int c = rec->nkeys; same && c < rec->nkeys + 2; c++)
			same = s[i].values[c] != NULL && o[j].values[c] != NULL &&
				strcmp(s[i].values[c], o[j].values[c]) == 0;
		if (!same)
			keys[(*n)++] = at_source > 0 ? s[i].values : o[j].values;
		i += at_source;
		j += at_other;
	}
	Assert(*n <= ns + no);
	return keys;
}
