/*
 * convert.c
 *		Values that become values of another type, one by one (P12).
 *
 * A value is converted by the functions that SQL's casts call, converted back,
 * and compared with what it was.  What is sent is the result, in the target's
 * type and length, so that nothing is left for the target to round or cut.
 *
 * Both directions run under settings of our own: moments without a zone are of
 * UTC.  Only types of initdb's list are read or compared here; of others the
 * text alone counts.
 */
#include "postgres.h"

#include "decode/value.h"
#include "access/htup_details.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "parser/parse_coerce.h"
#include "port/pg_bswap.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/cash.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "base/attempt.h"
#include "compat.h"
#include "decode/jsonb.h"
#include "deliver/delivery.h"
#include "sync/admin.h"
#include "transport/conversion.h"

/* The binary form of a numeric: ndigits, weight, sign, dscale, digits. */
#define NUMERIC_HEADER_BYTES	8
#define NUMERIC_DECIMAL_DIGITS	4

/* ------------------------------------------------------------------ facts */

static const char facts_query[] =
	"SELECT f.facts, f.strings FROM unnest($1, $2, $3)"
	" WITH ORDINALITY a(atttypid, atttypmod, attcollation, n),"
	" LATERAL (SELECT " PSYNC_TYPE_FACTS ", " PSYNC_COLLATION_FACTS("a.attcollation")
	") f(facts, strings) ORDER BY a.n";

/* The collation that the column has now, or InvalidOid. */
static Oid
column_collation(const PsyncColumn *column)
{
	HeapTuple	tuple = SearchSysCacheAttNum(column->relid, column->attnum);
	Oid			result;

	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	result = ((Form_pg_attribute) GETSTRUCT(tuple))->attcollation;
	ReleaseSysCache(tuple);
	return result;
}

/*
 * The unit of money is that of the database, whatever the session at hand
 * has set.
 */
static void
source_facts(const PsyncShape *shape, PsyncTypeFacts *facts)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[3] = {OIDARRAYOID, INT4ARRAYOID, OIDARRAYOID};
	Datum		values[3];
	Datum	   *elems[3];
	int			guc_level = NewGUCNestLevel();

	for (int i = 0; i < lengthof(elems); i++)
		elems[i] = palloc(shape->ncolumns * sizeof(Datum));
	for (int i = 0; i < shape->ncolumns; i++)
	{
		elems[0][i] = ObjectIdGetDatum(shape->columns[i].type);
		elems[1][i] = Int32GetDatum(shape->columns[i].typmod);
		elems[2][i] = ObjectIdGetDatum(column_collation(&shape->columns[i]));
	}
	for (int i = 0; i < lengthof(elems); i++)
		values[i] = PointerGetDatum(construct_array(elems[i], shape->ncolumns,
													i == 1 ? INT4OID : OIDOID,
													sizeof(int32), true, TYPALIGN_INT));
	(void) set_config_option("lc_monetary",
							 GetConfigOptionResetString("lc_monetary"),
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (psync_owner_execute(facts_query, 3, types, values, NULL) != shape->ncolumns)
		elog(ERROR, "could not describe the types of shape %u", shape->id);
	psync_text_settings_end(guc_level);
	for (int i = 0; i < shape->ncolumns; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		char	   *text = SPI_getvalue(row, SPI_tuptable->tupdesc, 1);
		MemoryContext old = MemoryContextSwitchTo(context);

		psync_type_facts_parse(text, &facts[i]);
		facts[i].collation = pstrdup(SPI_getvalue(row, SPI_tuptable->tupdesc, 2));
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
}

/* --------------------------------------------------------------- functions */

/* A cast's function, or a length's: some take a typmod, too. */
static Datum
call_cast(Oid function, Datum value, int32 typmod)
{
	switch (get_func_nargs(function))
	{
		case 1:
			return OidFunctionCall1Coll(function, DEFAULT_COLLATION_OID, value);
		case 2:
			return OidFunctionCall2Coll(function, DEFAULT_COLLATION_OID, value,
										Int32GetDatum(typmod));
		default:
			return OidFunctionCall3Coll(function, DEFAULT_COLLATION_OID, value,
										Int32GetDatum(typmod), BoolGetDatum(true));
	}
}

/* As SQL's cast to text gives it: without padding, say. */
static char *
datum_to_text(Oid type, Datum value)
{
	Oid			function;
	bool		is_varlena;

	if (find_coercion_pathway(TEXTOID, type, COERCION_EXPLICIT,
							  &function) == COERCION_PATH_FUNC)
		return TextDatumGetCString(call_cast(function, value, -1));
	getTypeOutputInfo(type, &function, &is_varlena);
	return OidOutputFunctionCall(function, value);
}

static Datum
text_to_datum(Oid type, char *text, int32 typmod)
{
	Oid			function;
	Oid			param;

	getTypeInputInfo(type, &function, &param);
	return OidInputFunctionCall(function, text, param, typmod);
}

/* ------------------------------------------------------------------- money */

static Datum
power_of_ten(int digits)
{
	return text_to_datum(NUMERICOID, psprintf("1e%d", digits), -1);
}

/* An amount in the source's unit. */
static Datum
money_to_numeric(Datum money, int digits)
{
	Datum		units = DirectFunctionCall1(int8_numeric,
											Int64GetDatum(DatumGetCash(money)));

	Assert(digits >= 0);
	return DirectFunctionCall2(numeric_mul, units, power_of_ten(-digits));
}

/* In the target's unit; *same tells whether nothing was rounded off. */
static Datum
numeric_to_money(Datum amount, int digits, bool *same)
{
	Datum		units = DirectFunctionCall2(numeric_mul, amount, power_of_ten(digits));
	Datum		whole = DirectFunctionCall2(numeric_round, units, Int32GetDatum(0));

	Assert(digits >= 0);
	*same = DatumGetBool(DirectFunctionCall2(numeric_eq, units, whole));
	return CashGetDatum(DatumGetInt64(DirectFunctionCall1(numeric_int8, whole)));
}

/* -------------------------------------------------------------- comparison */

/* Intervals are compared by text: to "=", a month is 30 days. */
static bool
equal_values(Oid type, Datum a, Datum b)
{
	TypeCacheEntry *entry = lookup_type_cache(type, TYPECACHE_EQ_OPR_FINFO);

	if (type == INTERVALOID || !OidIsValid(entry->eq_opr_finfo.fn_oid))
		return strcmp(datum_to_text(type, a), datum_to_text(type, b)) == 0;
	return DatumGetBool(FunctionCall2Coll(&entry->eq_opr_finfo, C_COLLATION_OID, a, b));
}

/* Length without zeros at the end of a fraction. */
static int
significant_digits(const char *number)
{
	int			length = strlen(number);

	if (strchr(number, '.') == NULL || strpbrk(number, "eE") != NULL)
		return length;
	while (number[length - 1] == '0')
		length--;
	if (number[length - 1] == '.')
		length--;
	return length;
}

static bool
equal_numbers(const char *a, const char *b)
{
	int			length = significant_digits(a);

	return length == significant_digits(b) && strncmp(a, b, length) == 0;
}

/*
 * Keys of objects in valid JSON: each is followed by the only kind of colon
 * that stands outside of strings.
 */
static int64
count_json_keys(const char *json)
{
	bool		in_string = false;
	int64		n = 0;

	for (const char *at = json; *at != '\0'; at++)
	{
		if (in_string && *at == '\\' && at[1] != '\0')
			at++;
		else if (*at == '"')
			in_string = !in_string;
		else if (*at == ':' && !in_string)
			n++;
	}
	return n;
}

/* Does the text, read and written again, say the same? */
static bool
text_is_kept(const PsyncConversion *conversion, Oid from, Oid to, char *text,
			 Datum value, Datum result)
{
	char	   *again = datum_to_text(to, result);

	if (strcmp(text, again) == 0)
		return true;
	if (from == JSONOID && to == JSONBOID)
		return count_json_keys(text) == count_json_keys(again);
	if (psync_type_is_text(from) && to == NUMERICOID)
		return equal_numbers(text, again);
	if (psync_type_is_text(from) || psync_type_is_text(to) ||
		from >= FirstGenbkiObjectId)
		return false;
	return equal_values(from, value, text_to_datum(from, again, -1));
}

static bool
comes_back(const PsyncConversion *conversion, Oid from, Oid to, Datum value,
		   Datum result)
{
	Datum		again = result;

	if (conversion->back_by_text)
		again = text_to_datum(from, datum_to_text(to, result), -1);
	else if (OidIsValid(conversion->back))
		again = call_cast(conversion->back, result, -1);
	return equal_values(from, value, again);
}

/* -------------------------------------------------------------- conversion */

/*
 * The value in the target's type; false if it is not what it was.  Raises what
 * functions of types raise.
 */
static bool
convert_datum(const PsyncConversion *conversion, const PsyncColumn *column,
			  const char *value, int32 size, Datum *result)
{
	PsyncColumn base = *column;
	Oid			from = conversion->source.base;
	Oid			to = conversion->target.base;
	Datum		datum = (Datum) 0;
	char	   *text = NULL;
	bool		same;
	bool		whole = true;

	base.type = from;
	base.typmod = -1;
	if (column->textual || from >= FirstGenbkiObjectId)
		text = psync_value_to_text(column, value, size);
	else
		datum = psync_value_to_datum(&base, value, size);
	if (from == CASHOID)
	{
		datum = money_to_numeric(datum, conversion->source.money_digits);
		from = NUMERICOID;
	}
	if (to == CASHOID)
		to = NUMERICOID;

	if (conversion->by_text)
	{
		if (text == NULL)
			text = datum_to_text(from, datum);
		*result = text_to_datum(to, text, conversion->target.array ?
								conversion->target.typmod : -1);
	}
	else if (OidIsValid(conversion->forth))
		*result = call_cast(conversion->forth, datum, conversion->target.typmod);
	else
		*result = datum;
	if (OidIsValid(conversion->length))
		*result = call_cast(conversion->length, *result, conversion->target.typmod);

	if (conversion->by_text)
		same = text_is_kept(conversion, from, to, text, datum, *result);
	else
		same = comes_back(conversion, from, to, datum, *result);
	if (conversion->target.base == CASHOID)
		*result = numeric_to_money(*result, conversion->target.money_digits, &whole);
	return same && whole;
}

/*
 * Values that fit as they are, seen at their bytes: a text that is shorter
 * than the limit, a number whose digits are few enough.
 */
static bool
fits_as_it_is(const PsyncConversion *conversion, const char *value, int32 size)
{
	const PsyncTypeFacts *source = &conversion->source;
	const PsyncTypeFacts *target = &conversion->target;
	uint16		header[5];
	int			scale;
	int			digits = 0;

	if ((source->base == TEXTOID || source->base == VARCHAROID) &&
		(target->base == TEXTOID || target->base == VARCHAROID))
		return size <= target->typmod - VARHDRSZ;
	if (source->base != NUMERICOID || target->base != NUMERICOID ||
		size < NUMERIC_HEADER_BYTES + sizeof(int16))
		return false;
	memcpy(header, value, sizeof(header));
	for (int i = 0; i < lengthof(header); i++)
		header[i] = pg_ntoh16(header[i]);
	scale = psync_numeric_scale(target->typmod);
	if ((header[2] & 0x8000) != 0 || (int) header[3] > scale)
		return false;			/* no number, or a long fraction */
	if ((int16) header[1] >= 0)
		digits = (int16) header[1] * NUMERIC_DECIMAL_DIGITS +
			snprintf(NULL, 0, "%d", header[4]);
	return digits <= psync_numeric_precision(target->typmod) - scale;
}

static void
append_field(StringInfo out, const char *value, int32 size)
{
	uint32		n = pg_hton32((uint32) size);

	appendBinaryStringInfo(out, (char *) &n, sizeof(n));
	appendBinaryStringInfo(out, value, size);
}

typedef struct PsyncConvertAttempt
{
	const PsyncConversion *conversion;
	const PsyncColumn *column;
	const char *value;
	int32		size;
	Datum		result;
	bool		same;
} PsyncConvertAttempt;

static bool
is_sql_function(Oid function)
{
	HeapTuple	tuple;
	bool		result;

	if (!OidIsValid(function))
		return false;
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	if (!HeapTupleIsValid(tuple))
		return false;
	result = ((Form_pg_proc) GETSTRUCT(tuple))->prolang == SQLlanguageId;
	ReleaseSysCache(tuple);
	return result;
}

static bool
runs_sql(const PsyncConversion *conversion)
{
	return is_sql_function(conversion->forth) ||
		is_sql_function(conversion->back) || is_sql_function(conversion->length);
}

static void
attempt_conversion(void *arg)
{
	PsyncConvertAttempt *attempt = arg;

	attempt->same = convert_datum(attempt->conversion, attempt->column,
								  attempt->value, attempt->size, &attempt->result);
}

/* The same with what SQL needs: a delivery has no active snapshot. */
static void
attempt_sql(void *arg)
{
	PushActiveSnapshot(GetTransactionSnapshot());
	attempt_conversion(arg);
	PopActiveSnapshot();
}

/* "cannot convert NaN to integer" is of the second kind. */
static bool
is_about_value(int sqlerrcode)
{
	return ERRCODE_TO_CATEGORY(sqlerrcode) == ERRCODE_DATA_EXCEPTION ||
		sqlerrcode == ERRCODE_FEATURE_NOT_SUPPORTED;
}

/*
 * False if an error is about the value.  A function of the server's that is
 * written in C holds nothing but memory when it refuses a value, users' code
 * has had a subtransaction of its own, and our caller raises an error at once:
 * so this does without one, which would cost as much as the conversion.
 */
static bool
convert_lightly(PsyncConvertAttempt *attempt)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool done = false;

	PG_TRY();
	{
		attempt_conversion(attempt);
		done = true;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		if (!is_about_value(geterrcode()))
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();
	return done;
}

/*
 * The same for casts that are SQL functions, of which the server has some:
 * they leave a snapshot and more behind when they fail.
 */
static bool
convert_in_sql(PsyncConvertAttempt *attempt)
{
	bool		late;
	ErrorData  *error = psync_attempt(attempt_sql, attempt, &late);

	if (error == NULL)
		return true;
	if (late || !is_about_value(error->sqlerrcode))
		ReThrowError(error);
	FreeErrorData(error);
	return false;
}

/*
 * An error about the value is no other answer than that it does not fit: the
 * caller raises one of its own, which names the column but not the value (P9).
 */
static bool
try_datum(const PsyncConversion *conversion, const PsyncColumn *column,
		  const char *value, int32 size, Datum *result)
{
	PsyncConvertAttempt attempt = {conversion, column, value, size};
	bool		done = runs_sql(conversion) ? convert_in_sql(&attempt) :
		convert_lightly(&attempt);

	*result = attempt.result;
	return done && (attempt.same || conversion->lossy);
}

/*
 * conversion.h has the contract.
 */
static bool
convert(const PsyncConversion *conversion, const PsyncColumn *column,
		const char *value, int32 size, StringInfo out)
{
	Datum		result;
	bytea	   *bytes;
	int			guc_level;

	Assert(size >= 0);
	if (conversion->kind == PSYNC_CONVERSION_CHECKED &&
		fits_as_it_is(conversion, value, size))
	{
		append_field(out, value, size);
		return true;
	}

	guc_level = psync_text_settings();
	if (conversion->kind == PSYNC_CONVERSION_TEXT)
	{
		char	   *text = psync_value_to_text(column, value, size);

		append_field(out, text, strlen(text));
		psync_text_settings_end(guc_level);
		return true;
	}
	if (!try_datum(conversion, column, value, size, &result))
		return false;			/* the error restores the settings */
	bytes = psync_datum_to_value(conversion->target.base, result);
	append_field(out, VARDATA(bytes), VARSIZE(bytes) - VARHDRSZ);
	psync_text_settings_end(guc_level);
	return true;
}

const PsyncConversions psync_conversions = {
	.source_facts = source_facts,
	.parse_facts = psync_type_facts_parse,
	.decide = psync_conversion_decide,
	.merges_keys = psync_conversion_merges_keys,
	.convert = convert,
};
