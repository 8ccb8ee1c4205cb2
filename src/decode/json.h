/*
 * json.h
 *		JSON written straight from row images.
 *
 * json.c writes objects, json_value.c values.  All output is UTF-8, whatever
 * the database's encoding.  How SQL types become JSON:
 *
 *	boolean						true, false
 *	smallint, integer, oid		number
 *	bigint						string, or number if so set
 *	numeric						string of all its decimal digits, or number; a
 *								NaN or infinity is a string in any case
 *	real, double precision		number, the shortest that reads back the same;
 *								"NaN", "Infinity", "-Infinity" as strings
 *	text, varchar, char, name,
 *	enums						string
 *	timestamptz					string, RFC 3339 in UTC with microseconds
 *	timestamp					the same without offset
 *	date, time					string, ISO 8601
 *	uuid						string
 *	bytea						string, base64
 *	json, jsonb					as it is
 *	arrays of these				array, nested as the array's dimensions
 *	domains						as their base type
 *	anything else				as to_jsonb() shows it
 *	types that are gone			string, the bytes in hex
 */
#ifndef PSYNC_JSON_H
#define PSYNC_JSON_H

#include "lib/stringinfo.h"

#include "decode/field.h"

typedef enum PsyncJsonKind
{
	PSYNC_JSON_BOOL,
	PSYNC_JSON_INT2,
	PSYNC_JSON_INT4,
	PSYNC_JSON_INT8,
	PSYNC_JSON_OID,
	PSYNC_JSON_NUMERIC,
	PSYNC_JSON_FLOAT4,
	PSYNC_JSON_FLOAT8,
	PSYNC_JSON_TEXT,
	PSYNC_JSON_TIMESTAMPTZ,
	PSYNC_JSON_TIMESTAMP,
	PSYNC_JSON_DATE,
	PSYNC_JSON_TIME,
	PSYNC_JSON_UUID,
	PSYNC_JSON_BYTEA,
	PSYNC_JSON_JSON,
	PSYNC_JSON_JSONB,
	PSYNC_JSON_ARRAY,
	PSYNC_JSON_OTHER,			/* by the type's own functions */
	PSYNC_JSON_GONE				/* the type does not exist any more */
} PsyncJsonKind;

/* How values of one type are written. */
typedef struct PsyncJsonType
{
	PsyncJsonKind kind;
	Oid			type;			/* not a domain */
	bool		quoted;			/* numbers as strings */
	struct PsyncJsonType *element;	/* ARRAY */
	const PsyncColumn *column;	/* must last as long */
} PsyncJsonType;

/* Numbers that other languages read as doubles. */
typedef struct PsyncJsonSettings
{
	bool		numeric_quoted;
	bool		bigint_quoted;
} PsyncJsonSettings;

typedef struct PsyncJsonColumn
{
	char	   *label;			/* "name":  with quotes and colon, UTF-8 */
	int			label_size;
	PsyncJsonType type;
} PsyncJsonColumn;

/*
 * How the rows of one shape are written, made once.  Has room for the fields
 * of one change, so that splitting allocates nothing.
 */
typedef struct PsyncJsonShape
{
	const PsyncShape *shape;
	PsyncJsonColumn *columns;
	PsyncField *new_fields;
	PsyncField *old_fields;
	int			nnew;			/* -1: there is no new image */
	int			nold;			/* -1: there is no old part */
} PsyncJsonShape;

/* json.c */
extern PsyncJsonShape *psync_json_shape(const PsyncShape *shape,
										const PsyncJsonSettings *settings);
extern void psync_json_split(PsyncJsonShape *plan, const PsyncChange *change);
extern void psync_json_new(StringInfo out, const PsyncJsonShape *plan);
extern void psync_json_old(StringInfo out, const PsyncJsonShape *plan);
extern void psync_json_key(StringInfo out, const PsyncJsonShape *plan);
extern void psync_json_key_text(StringInfo out, const PsyncJsonShape *plan);
extern const PsyncField *psync_json_key_field(const PsyncJsonShape *plan,
											  int n, bool old);

/* json_value.c */
extern void psync_json_type_init(PsyncJsonType *type, const PsyncColumn *column,
								 const PsyncJsonSettings *settings);
extern void psync_json_value(StringInfo out, PsyncJsonType *type,
							 const char *value, int32 size);
extern void psync_json_number(StringInfo out, PsyncJsonType *type,
							  const char *value, int32 size);

/* json_text.c */
extern void psync_json_string(StringInfo out, const char *text, int size);
extern void psync_json_utf8(StringInfo out, const char *text, int size);
extern void psync_json_verbatim(StringInfo out, const char *text, int size);
extern void psync_json_plain_utf8(StringInfo out, const char *text);

/* json_time.c */
extern void psync_json_timestamp(StringInfo out, int64 timestamp, bool offset);
extern void psync_json_date(StringInfo out, int32 date);
extern void psync_json_time(StringInfo out, int64 time);

/* json_text.c; raises an error if a text would be larger than it can be. */
extern void psync_json_enlarge(StringInfo out, Size n);

/* Room for n more bytes; then the bytes themselves. */
static inline char *
psync_json_room(StringInfo out, Size n)
{
	if (unlikely(n >= (Size) (out->maxlen - out->len)))
		psync_json_enlarge(out, n);
	return out->data + out->len;
}

static inline void
psync_json_put(StringInfo out, const char *bytes, Size n)
{
	memcpy(psync_json_room(out, n), bytes, n);
	out->len += n;
}

#define psync_json_literal(out, text) \
	psync_json_put((out), (text), sizeof(text) - 1)

#endif							/* PSYNC_JSON_H */
