/*
 * record.c
 *		Rows and keys as the jsonb that discrepancies record of them.
 *
 * Whatever the values are, they make a record: what jsonb cannot hold becomes a
 * string of its text, what is too large for it is recorded in short.
 */
#include "postgres.h"

#include <ctype.h>
#include <limits.h>

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/memutils.h"

#include "base/attempt.h"
#include "compat.h"
#include "reconcile/reconcile.h"

/* A row's values may be so long in all, in a record; of a longer one, so much is
 * shown. */
#define PSYNC_RECORD_BYTES	(64 * 1024 * 1024)
#define PSYNC_SHORT_BEGINS	200

/*
 * A number as JSON writes it: no zero in front.  "00042", a key of a file, is
 * none.
 */
static bool
is_json_number(const char *value)
{
	const char *digits = value + (value[0] == '-');

	return psync_is_number(value) &&
		(digits[0] != '0' || !isdigit((unsigned char) digits[1]));
}

static void
attempt_jsonb(void *arg)
{
	(void) DirectFunctionCall1(jsonb_in, CStringGetDatum((const char *) arg));
}

/*
 * Can jsonb hold the JSON?  Not zeros within strings, lone surrogates, and more.
 */
static bool
is_jsonb(const char *value)
{
	bool		late;
	ErrorData  *error = psync_attempt(attempt_jsonb, unconstify(char *, value), &late);

	if (error == NULL)
		return true;
	if (ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_DATA_EXCEPTION &&
		ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_PROGRAM_LIMIT_EXCEEDED &&
		error->sqlerrcode != ERRCODE_UNTRANSLATABLE_CHARACTER)
		ReThrowError(error);
	FreeErrorData(error);
	return false;
}

/*
 * What stands for a large value: {"bytes": …, "hash": …, "begins": …}.  A
 * column that is no JSON has no other objects.
 */
static void
append_short(StringInfo buf, const char *bytes, int nbytes, const char *hash, int nhash,
			 const char *begins)
{
	int			length = strlen(begins);

	appendStringInfo(buf, "{\"bytes\": %.*s, \"hash\": ", nbytes, bytes);
	escape_json(buf, pnstrdup(hash, nhash));
	appendStringInfoString(buf, ", \"begins\": ");
	escape_json(buf, pnstrdup(begins, pg_mbcliplen(begins, length, PSYNC_SHORT_BEGINS)));
	appendStringInfoChar(buf, '}');
}

/*
 * A value that was read in short; false if it was not.  The text may be a
 * user's own that looks like one: then it has to be one in all its parts.
 */
static bool
append_read_short(StringInfo buf, const char *value)
{
	static const char mark[] = "\001payment_sync:";
	const char *bytes = value + sizeof(mark) - 1;
	const char *hash;
	int			nbytes;
	int			nhash;

	if (strncmp(value, mark, sizeof(mark) - 1) != 0)
		return false;
	nbytes = strspn(bytes, "0123456789");
	hash = bytes + nbytes + 1;
	if (nbytes == 0 || nbytes > 10 || bytes[0] == '0' || bytes[nbytes] != ':')
		return false;
	nhash = strspn(hash, "0123456789abcdef.-");
	if (hash[nhash] != ':')
		return false;
	append_short(buf, bytes, nbytes, hash, nhash, hash + nhash + 1);
	return true;
}

/*
 * One that was read whole, but has no room in the row's record.
 */
static void
append_made_short(StringInfo buf, const char *value)
{
	int			length = strlen(value);
	char		bytes[16];
	char		hash[20];

	snprintf(bytes, sizeof(bytes), "%d", length);
	snprintf(hash, sizeof(hash), "%016llx",
			 (unsigned long long) hash_bytes_extended((const unsigned char *) value, length, 1));
	append_short(buf, bytes, strlen(bytes), hash, strlen(hash), value);
}

/*
 * So long may a value of these be that all of them have room in a record: jsonb
 * holds no string, nor all of an object, of 256 MB.
 */
static int
value_limit(char **values, int n)
{
	int64		bytes = 0;

	for (int i = 0; i < n; i++)
		bytes += values[i] != NULL ? strlen(values[i]) : 0;
	return bytes <= PSYNC_RECORD_BYTES ? INT_MAX : Max(PSYNC_RECORD_BYTES / n, PSYNC_SHORT_BEGINS);
}

/*
 * Numbers and truth values as such, jsonb as it is, all else as a string, also
 * what is no value of its type (a file's key) or no JSON that jsonb can hold.
 * Values of the same column look the same on both sides if their types do.
 */
static void
append_json_value(StringInfo buf, Oid base, const char *value, int limit)
{
	if (value == NULL)
	{
		appendStringInfoString(buf, "null");
		return;
	}
	if (append_read_short(buf, value))
		return;
	if (limit < INT_MAX && strlen(value) > limit)
	{
		append_made_short(buf, value);
		return;
	}
	switch (base)
	{
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case NUMERICOID:
		case FLOAT4OID:
		case FLOAT8OID:
			/* NaN and Infinity are no numbers to JSON */
			if (is_json_number(value))
				appendStringInfoString(buf, value);
			else
				escape_json(buf, value);
			break;
		case BOOLOID:
			if (strcmp(value, "t") == 0 || strcmp(value, "true") == 0)
				appendStringInfoString(buf, "true");
			else if (strcmp(value, "f") == 0 || strcmp(value, "false") == 0)
				appendStringInfoString(buf, "false");
			else
				escape_json(buf, value);
			break;
		case JSONOID:
		case JSONBOID:
			if (is_jsonb(value))
				appendStringInfoString(buf, value);
			else
				escape_json(buf, value);
			break;
		default:
			escape_json(buf, value);
			break;
	}
}

/*
 * A row as a JSON object, by the source's names of the columns on both sides.
 */
Datum
psync_row_json(const PsyncReconcile *rec, int side, char **values)
{
	int			limit = value_limit(values, rec->nshown);
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	for (int i = 0; i < rec->nshown; i++)
	{
		appendStringInfoString(&buf, i > 0 ? ", " : "");
		escape_json(&buf, rec->pairs[i].name);
		appendStringInfoString(&buf, ": ");
		append_json_value(&buf, rec->pairs[i].side[side].as, values[i], limit);
	}
	appendStringInfoChar(&buf, '}');
	return CStringGetTextDatum(buf.data);
}

/*
 * Its key, likewise.
 */
Datum
psync_key_json(const PsyncReconcile *rec, char **key)
{
	int			limit = value_limit(key, rec->nkeys);
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	for (int k = 0; k < rec->nkeys; k++)
	{
		const PsyncPair *pair = &rec->pairs[rec->keys[k]];

		appendStringInfoString(&buf, k > 0 ? ", " : "");
		escape_json(&buf, pair->name);
		appendStringInfoString(&buf, ": ");
		append_json_value(&buf, pair->side[PSYNC_SOURCE].base, key[k], limit);
	}
	appendStringInfoChar(&buf, '}');
	return CStringGetTextDatum(buf.data);
}
