/*
 * json_value.c
 *		Values of row images as JSON; json.h has the table of types.
 *
 * The types that payments are made of are read from their binary form
 * without a call of their functions, numeric among them: its digits go into
 * the text as they are, never through a double.  Other types are decoded by
 * their receive function and shown as to_jsonb() shows them.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "common/base64.h"
#include "common/shortest_dec.h"
#include "port/pg_bswap.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/uuid.h"

#include "compat.h"
#include "decode/json.h"
#include "decode/jsonb.h"

/* Marks in numeric's binary form. */
#define NUMERIC_SIGN_POS	0x0000
#define NUMERIC_SIGN_NEG	0x4000
#define NUMERIC_SIGN_NAN	0xC000
#define NUMERIC_SIGN_PINF	0xD000
#define NUMERIC_SIGN_NINF	0xF000
#define NUMERIC_DSCALE_MAX	0x3FFF
#define NUMERIC_BASE		10000
#define NUMERIC_BASE_DIGITS 4
#define NUMERIC_HEADER_SIZE (4 * sizeof(uint16))

/* ------------------------------------------------------------- the types */

/*
 * How values of the type are written; OTHER: as to_jsonb() shows them.
 */
static PsyncJsonKind
kind_of_base(Oid type)
{
	switch (type)
	{
		case BOOLOID:
			return PSYNC_JSON_BOOL;
		case INT2OID:
			return PSYNC_JSON_INT2;
		case INT4OID:
			return PSYNC_JSON_INT4;
		case INT8OID:
			return PSYNC_JSON_INT8;
		case OIDOID:
			return PSYNC_JSON_OID;
		case NUMERICOID:
			return PSYNC_JSON_NUMERIC;
		case FLOAT4OID:
			return PSYNC_JSON_FLOAT4;
		case FLOAT8OID:
			return PSYNC_JSON_FLOAT8;
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case NAMEOID:
			return PSYNC_JSON_TEXT;
		case TIMESTAMPTZOID:
			return PSYNC_JSON_TIMESTAMPTZ;
		case TIMESTAMPOID:
			return PSYNC_JSON_TIMESTAMP;
		case DATEOID:
			return PSYNC_JSON_DATE;
		case TIMEOID:
			return PSYNC_JSON_TIME;
		case UUIDOID:
			return PSYNC_JSON_UUID;
		case BYTEAOID:
			return PSYNC_JSON_BYTEA;
		case JSONOID:
			return PSYNC_JSON_JSON;
		case JSONBOID:
			return PSYNC_JSON_JSONB;
		default:
			return PSYNC_JSON_OTHER;
	}
}

/*
 * How the column's values are to be written, by its type as it is now; a type
 * that is gone leaves its bytes.  Made in the current memory context, in which
 * it must last.
 */
void
psync_json_type_init(PsyncJsonType *type, const PsyncColumn *column,
					 const PsyncJsonSettings *settings)
{
	int32		typmod = column->typmod;
	Oid			element;

	memset(type, 0, sizeof(*type));
	type->column = column;
	if (!SearchSysCacheExists1(TYPEOID, ObjectIdGetDatum(column->type)))
	{
		type->kind = PSYNC_JSON_GONE;
		return;
	}
	type->type = getBaseTypeAndTypmod(column->type, &typmod);
	type->kind = kind_of_base(type->type);
	type->quoted = type->kind == PSYNC_JSON_INT8 ? settings->bigint_quoted :
		settings->numeric_quoted;
	if (type->kind != PSYNC_JSON_OTHER)
	{
		Assert(!column->textual);
		return;
	}

	element = get_base_element_type(type->type);
	if (!column->textual && OidIsValid(element) &&
		kind_of_base(element) != PSYNC_JSON_OTHER)
	{
		PsyncColumn *of = palloc0(sizeof(PsyncColumn));

		of->type = element;
		of->typmod = -1;
		type->kind = PSYNC_JSON_ARRAY;
		type->element = palloc(sizeof(PsyncJsonType));
		psync_json_type_init(type->element, of, settings);
	}
	else if (!column->textual && type_is_enum(type->type))
		type->kind = PSYNC_JSON_TEXT;
}

/* ---------------------------------------------------------- fixed sizes */

/*
 * A value of another size is none of its type: the log is damaged.
 */
static inline void
check_size(int32 size, int32 expected)
{
	if (unlikely(size != expected))
		psync_corrupt_image();
}

/*
 * In network order, at any address; likewise the next two.
 */
static inline uint16
get_uint16(const char *value)
{
	uint16		n;

	memcpy(&n, value, sizeof(n));
	return pg_ntoh16(n);
}

static inline uint32
get_uint32(const char *value)
{
	uint32		n;

	memcpy(&n, value, sizeof(n));
	return pg_ntoh32(n);
}

static inline uint64
get_uint64(const char *value)
{
	uint64		n;

	memcpy(&n, value, sizeof(n));
	return pg_ntoh64(n);
}

/*
 * The only one whose bytes are few enough to check them all.
 */
static void
put_bool(StringInfo out, const char *value, int32 size)
{
	check_size(size, 1);
	if (*value == 1)
		psync_json_literal(out, "true");
	else if (*value == 0)
		psync_json_literal(out, "false");
	else
		psync_corrupt_image();
}

/*
 * In the usual groups, lower case.
 */
static void
put_uuid(StringInfo out, const char *value, int32 size)
{
	static const char hex[] = "0123456789abcdef";
	char	   *at;

	check_size(size, UUID_LEN);
	at = psync_json_room(out, 2 + 2 * UUID_LEN + 4);
	*at++ = '"';
	for (int i = 0; i < UUID_LEN; i++)
	{
		unsigned char c = (unsigned char) value[i];

		if (i == 4 || i == 6 || i == 8 || i == 10)
			*at++ = '-';
		*at++ = hex[c >> 4];
		*at++ = hex[c & 0xf];
	}
	*at++ = '"';
	out->len = at - out->data;
}

/* ---------------------------------------------------------------- numbers */

/*
 * Room for the longest number, sign included.
 */
static void
put_int64(StringInfo out, int64 value)
{
	out->len += pg_lltoa(value, psync_json_room(out, MAXINT8LEN + 1));
}

/*
 * JSON has no words for NaN and the infinities.
 */
static void
put_special(StringInfo out, const char *name)
{
	psync_json_literal(out, "\"");
	psync_json_put(out, name, strlen(name));
	psync_json_literal(out, "\"");
}

/*
 * The shortest digits that read back as the same number, whatever
 * extra_float_digits says.
 */
static void
put_float8(StringInfo out, const char *value, int32 size)
{
	uint64		bits;
	double		number;

	check_size(size, sizeof(number));
	bits = get_uint64(value);
	memcpy(&number, &bits, sizeof(number));
	if (isnan(number))
		put_special(out, "NaN");
	else if (isinf(number))
		put_special(out, number > 0 ? "Infinity" : "-Infinity");
	else
		out->len += double_to_shortest_decimal_buf(number,
												   psync_json_room(out, DOUBLE_SHORTEST_DECIMAL_LEN));
}

/*
 * Likewise for single precision.
 */
static void
put_float4(StringInfo out, const char *value, int32 size)
{
	uint32		bits;
	float		number;

	check_size(size, sizeof(number));
	bits = get_uint32(value);
	memcpy(&number, &bits, sizeof(number));
	if (isnan(number))
		put_special(out, "NaN");
	else if (isinf(number))
		put_special(out, number > 0 ? "Infinity" : "-Infinity");
	else
		out->len += float_to_shortest_decimal_buf(number,
												  psync_json_room(out, FLOAT_SHORTEST_DECIMAL_LEN));
}

/* numeric's binary form, checked */
typedef struct PsyncNumeric
{
	int			ndigits;
	int			weight;			/* of the first digit, in powers of 10000 */
	uint16		sign;
	int			dscale;			/* decimal digits after the point */
	const char *digits;			/* big-endian int16, base 10000 */
} PsyncNumeric;

/*
 * Take numeric's binary form apart, checking all that the digits are read by.
 */
static void
read_numeric(PsyncNumeric *numeric, const char *value, int32 size)
{
	if (size < (int32) NUMERIC_HEADER_SIZE)
		psync_corrupt_image();
	numeric->ndigits = get_uint16(value);
	numeric->weight = (int16) get_uint16(value + 2);
	numeric->sign = get_uint16(value + 4);
	numeric->dscale = get_uint16(value + 6);
	numeric->digits = value + NUMERIC_HEADER_SIZE;
	check_size(size, NUMERIC_HEADER_SIZE + numeric->ndigits * sizeof(uint16));
	switch (numeric->sign)
	{
		case NUMERIC_SIGN_POS:
		case NUMERIC_SIGN_NEG:
			if (numeric->dscale > NUMERIC_DSCALE_MAX)
				psync_corrupt_image();
			break;
		case NUMERIC_SIGN_NAN:
		case NUMERIC_SIGN_PINF:
		case NUMERIC_SIGN_NINF:
			break;
		default:
			psync_corrupt_image();
	}
}

/* Four decimal digits of the given power of 10000; zero if not stored. */
static char *
put_numeric_digit(char *at, const PsyncNumeric *numeric, int power)
{
	int			index = numeric->weight - power;
	int			digit = 0;

	Assert(power <= Max(numeric->weight, 0));

	if (index >= 0 && index < numeric->ndigits)
		digit = get_uint16(numeric->digits + index * sizeof(uint16));
	if (digit >= NUMERIC_BASE)
		psync_corrupt_image();
	at[0] = '0' + digit / 1000;
	at[1] = '0' + digit / 100 % 10;
	at[2] = '0' + digit / 10 % 10;
	at[3] = '0' + digit % 10;
	return at + NUMERIC_BASE_DIGITS;
}

/*
 * The digits as they are, with the scale as it is: 1.50 stays 1.50. Numerics
 * may have a hundred thousand digits; the room is made for what the weight and
 * scale say.
 */
static void
put_finite_numeric(StringInfo out, const PsyncNumeric *numeric)
{
	int			integral = Max(numeric->weight + 1, 1);
	char	   *at = psync_json_room(out, 3 + NUMERIC_BASE_DIGITS * (integral + 1) +
									 numeric->dscale);
	char	   *first;

	if (numeric->sign == NUMERIC_SIGN_NEG)
		*at++ = '-';
	first = at;
	for (int power = integral - 1; power >= 0; power--)
		at = put_numeric_digit(at, numeric, power);

	/* JSON allows no leading zeros */
	for (char *digit = first; digit < at - 1 && *digit == '0'; digit++)
		first = digit + 1;
	if (*(out->data + out->len) == '-')
		out->len++;
	memmove(out->data + out->len, first, at - first);
	at = out->data + out->len + (at - first);

	if (numeric->dscale > 0)
	{
		char	   *end;

		*at++ = '.';
		end = at + numeric->dscale;
		for (int power = -1; at < end; power--)
			at = put_numeric_digit(at, numeric, power);
		at = end;
	}
	out->len = at - out->data;
}

/*
 * With quotes if the receiver would read it into a double.
 */
static void
put_numeric(StringInfo out, const char *value, int32 size, bool quoted)
{
	PsyncNumeric numeric;

	read_numeric(&numeric, value, size);
	switch (numeric.sign)
	{
		case NUMERIC_SIGN_NAN:
			put_special(out, "NaN");
			return;
		case NUMERIC_SIGN_PINF:
			put_special(out, "Infinity");
			return;
		case NUMERIC_SIGN_NINF:
			put_special(out, "-Infinity");
			return;
	}
	if (quoted)
		psync_json_literal(out, "\"");
	put_finite_numeric(out, &numeric);
	if (quoted)
		psync_json_literal(out, "\"");
}

/* ------------------------------------------------------- variable sizes */

/*
 * As JSON's receivers expect bytes.
 */
static void
put_base64(StringInfo out, const char *value, int32 size)
{
	Size		room = ((Size) size + 2) / 3 * 4;
	char	   *at = psync_json_room(out, room + 2);
	int			written;

	Assert(size >= 0);

	*at++ = '"';
	written = pg_b64_encode((const void *) value, size, at, (int) room);
	Assert(written >= 0);
	at += written;
	*at++ = '"';
	out->len = at - out->data;
}

/*
 * As PostgreSQL shows them.
 */
static void
put_hex(StringInfo out, const char *value, int32 size)
{
	char	   *at = psync_json_room(out, 5 + 2 * (Size) size);

	Assert(size >= 0);

	memcpy(at, "\"\\\\x", 4);
	at += 4;
	at += hex_encode(value, size, at);
	*at++ = '"';
	out->len = at - out->data;
}

/* What to_jsonb() says of the value, decoded by the type's own function. */
static void
put_other(StringInfo out, const PsyncJsonType *type, const char *value, int32 size)
{
	Datum		jsonb = psync_value_to_jsonb(type->column, value, size);
	char	   *json = DatumGetCString(DirectFunctionCall1(jsonb_out, jsonb));

	psync_json_verbatim(out, json, strlen(json));
}

/* ----------------------------------------------------------------- arrays */

/* Reading an array's binary form. */
typedef struct PsyncArrayCursor
{
	const char *at;
	const char *end;
	int			ndim;
	int			dims[MAXDIM];
} PsyncArrayCursor;

/*
 * The next four bytes.
 */
static uint32
take_uint32(PsyncArrayCursor *cursor)
{
	uint32		value;

	if (cursor->end - cursor->at < (ptrdiff_t) sizeof(value))
		psync_corrupt_image();
	value = get_uint32(cursor->at);
	cursor->at += sizeof(value);
	return value;
}

/*
 * One element, null or not.
 */
static void
put_element(StringInfo out, PsyncJsonType *type, PsyncArrayCursor *cursor)
{
	int32		size = (int32) take_uint32(cursor);

	if (size < -1 || size > cursor->end - cursor->at)
		psync_corrupt_image();
	psync_json_value(out, type, cursor->at, size);
	cursor->at += Max(size, 0);
}

/*
 * A dimension of the array as a JSON array.  At most MAXDIM deep.
 */
static void
put_dimension(StringInfo out, PsyncJsonType *type, PsyncArrayCursor *cursor,
			  int dim)
{
	Assert(dim < MAXDIM);
	psync_json_literal(out, "[");
	for (int i = 0; i < cursor->dims[dim]; i++)
	{
		if (i > 0)
			psync_json_literal(out, ",");
		if (dim + 1 < cursor->ndim)
			put_dimension(out, type, cursor, dim + 1);
		else
			put_element(out, type, cursor);
	}
	psync_json_literal(out, "]");
}

/*
 * Arrays of known elements, without building the array.  Lower bounds other
 * than 1 are not shown: JSON's arrays have none.
 */
static void
put_array(StringInfo out, PsyncJsonType *type, const char *value, int32 size)
{
	PsyncArrayCursor cursor = {.at = value, .end = value + size};

	cursor.ndim = (int) take_uint32(&cursor);
	(void) take_uint32(&cursor);	/* are there nulls? */
	if (take_uint32(&cursor) != type->element->type ||
		cursor.ndim < 0 || cursor.ndim > MAXDIM)
		psync_corrupt_image();
	for (int i = 0; i < cursor.ndim; i++)
	{
		cursor.dims[i] = (int) take_uint32(&cursor);
		(void) take_uint32(&cursor);	/* lower bound */
		/* each element has at least a length, so this bounds the loops */
		if (cursor.dims[i] <= 0 || cursor.dims[i] > size)
			psync_corrupt_image();
	}
	if (cursor.ndim == 0)
		psync_json_literal(out, "[]");
	else
		put_dimension(out, type->element, &cursor, 0);
	if (cursor.at != cursor.end)
		psync_corrupt_image();
}

/* ---------------------------------------------------------------- a value */

/* Numbers; without quotes unless there is no such number in JSON. */
void
psync_json_number(StringInfo out, PsyncJsonType *type, const char *value,
				  int32 size)
{
	switch (type->kind)
	{
		case PSYNC_JSON_INT2:
			check_size(size, sizeof(int16));
			put_int64(out, (int16) get_uint16(value));
			break;
		case PSYNC_JSON_INT4:
			check_size(size, sizeof(int32));
			put_int64(out, (int32) get_uint32(value));
			break;
		case PSYNC_JSON_OID:
			check_size(size, sizeof(Oid));
			put_int64(out, get_uint32(value));
			break;
		case PSYNC_JSON_INT8:
			check_size(size, sizeof(int64));
			put_int64(out, (int64) get_uint64(value));
			break;
		case PSYNC_JSON_FLOAT4:
			put_float4(out, value, size);
			break;
		case PSYNC_JSON_FLOAT8:
			put_float8(out, value, size);
			break;
		case PSYNC_JSON_NUMERIC:
			put_numeric(out, value, size, false);
			break;
		default:
			Assert(false);
	}
}

/*
 * All of these are integers in their binary form.
 */
static void
put_temporal(StringInfo out, PsyncJsonKind kind, const char *value, int32 size)
{
	check_size(size, kind == PSYNC_JSON_DATE ? sizeof(int32) : sizeof(int64));
	if (kind == PSYNC_JSON_DATE)
		psync_json_date(out, (int32) get_uint32(value));
	else if (kind == PSYNC_JSON_TIME)
		psync_json_time(out, (int64) get_uint64(value));
	else
		psync_json_timestamp(out, (int64) get_uint64(value),
							 kind == PSYNC_JSON_TIMESTAMPTZ);
}

/*
 * One value, null or not, of any type.
 */
void
psync_json_value(StringInfo out, PsyncJsonType *type, const char *value,
				 int32 size)
{
	Assert(size >= -1);

	if (size < 0)
	{
		psync_json_literal(out, "null");
		return;
	}
	switch (type->kind)
	{
		case PSYNC_JSON_BOOL:
			put_bool(out, value, size);
			break;
		case PSYNC_JSON_INT8:
			if (type->quoted)
				psync_json_literal(out, "\"");
			psync_json_number(out, type, value, size);
			if (type->quoted)
				psync_json_literal(out, "\"");
			break;
		case PSYNC_JSON_NUMERIC:
			put_numeric(out, value, size, type->quoted);
			break;
		case PSYNC_JSON_INT2:
		case PSYNC_JSON_INT4:
		case PSYNC_JSON_OID:
		case PSYNC_JSON_FLOAT4:
		case PSYNC_JSON_FLOAT8:
			psync_json_number(out, type, value, size);
			break;
		case PSYNC_JSON_TEXT:
			psync_json_string(out, value, size);
			break;
		case PSYNC_JSON_TIMESTAMPTZ:
		case PSYNC_JSON_TIMESTAMP:
		case PSYNC_JSON_DATE:
		case PSYNC_JSON_TIME:
			put_temporal(out, type->kind, value, size);
			break;
		case PSYNC_JSON_UUID:
			put_uuid(out, value, size);
			break;
		case PSYNC_JSON_BYTEA:
			put_base64(out, value, size);
			break;
		case PSYNC_JSON_JSONB:
			/* the binary form is a version number and text */
			if (size < 1 || *value != 1)
				psync_corrupt_image();
			psync_json_verbatim(out, value + 1, size - 1);
			break;
		case PSYNC_JSON_JSON:
			psync_json_verbatim(out, value, size);
			break;
		case PSYNC_JSON_ARRAY:
			put_array(out, type, value, size);
			break;
		case PSYNC_JSON_OTHER:
			put_other(out, type, value, size);
			break;
		case PSYNC_JSON_GONE:
			put_hex(out, value, size);
			break;
	}
}
