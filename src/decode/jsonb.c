/*
 * jsonb.c
 *		Changes decoded for people and for JSON.
 *
 * An image's fields are decoded by their types' own functions and rendered by
 * to_jsonb(), so a value looks exactly as to_jsonb() of the table's row would
 * have shown it; except that names of objects (regclass …) are qualified.
 *
 * What a type's functions accept may have changed since: an attribute was
 * added to a composite type, the table that a regclass names was dropped.  And
 * jsonb cannot hold all that json and text can: \u0000, lone surrogates, numbers
 * that are no numeric, strings of 256 MB.  One such value must not hide all the
 * others.  It is shown as a string: its text or, in hex, the bytes that the
 * image holds; so is one whose type is gone.  If even that is too long, the
 * string says how many bytes there are.
 *
 * Not by way of a row type: each set of columns would need one, and a session
 * keeps those it has seen for good.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "nodes/primnodes.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "compat.h"
#include "decode/field.h"
#include "decode/jsonb.h"
#include "decode/value.h"

/* jsonb measures strings, and all that is in an object, with 28 bits. */
#define JSONB_STRING_MAX	JENTRY_OFFLENMASK
/* Whether larger values fit is tried; none that is smaller can exceed that. */
#define JSONB_CHECKED_SIZE	(1024 * 1024)
/* What a member may take, alignment included. */
#define JSONB_MEMBER_SIZE(name, value) \
	(strlen(name) + 2 * sizeof(JEntry) + 2 * sizeof(int32) + \
	 ((value) != NULL ? VARSIZE(value) : 0))

/*
 * Split an image, or an old part ("sparse"), into its fields, *n of them, in
 * the current memory context.  The fields point into "data". Indexes are
 * checked against the shape, sizes against the end.
 */
static PsyncField *
split(const PsyncShape *shape, const char *data, uint32 size, bool sparse, int *n)
{
	PsyncField *fields = palloc(Max(shape->ncolumns, 1) * sizeof(PsyncField));

	Assert(data != NULL);

	*n = psync_fields_split(shape, data, size, sparse, fields);
	Assert(*n >= 0 && *n <= shape->ncolumns);
	return fields;
}

/* ------------------------------------------------------------------ text */

/*
 * A value nobody here can read, as bytea would be shown.
 */
static char *
bytes_to_hex(const char *value, int32 size)
{
	char	   *result = palloc(2 + 2 * (Size) size + 1);

	Assert(size >= 0);

	memcpy(result, "\\x", 2);
	hex_encode(value, size, result + 2);
	result[2 + 2 * size] = '\0';
	return result;
}

/*
 * Types may be dropped while the log has values of theirs.
 */
static bool
type_exists(Oid type)
{
	return SearchSysCacheExists1(TYPEOID, ObjectIdGetDatum(type));
}

/*
 * Does the image hold the very text that people see?  Labels of enums, and
 * names of objects; either may be called something else by now.
 */
static bool
image_is_text(const PsyncColumn *column)
{
	if (!column->textual)
		return type_is_enum(column->type);
	return column->type < FirstGenbkiObjectId &&
		!OidIsValid(get_element_type(column->type));
}

/* As the type's output function shows it. */
static Datum
decode_to_text(const PsyncColumn *column, const char *value, int32 size)
{
	Oid			output;
	bool		is_varlena;

	getTypeOutputInfo(column->type, &output, &is_varlena);
	return CStringGetDatum(OidOutputFunctionCall(output,
												 psync_value_to_datum(column, value, size)));
}

/*
 * event.h has the contract.  A domain's value is read as its base type's: it
 * was valid when it was written, whatever the domain demands by now.  Raises
 * what the functions of other types raise.
 */
char *
psync_value_to_text(const PsyncColumn *column, const char *value, int32 size)
{
	PsyncColumn base = *column;
	ErrorData  *failure;
	Datum		text;

	if (size < 0)
		return NULL;
	if (column->textual)
		return pnstrdup(value, size);
	if (!type_exists(column->type))
		return bytes_to_hex(value, size);

	base.type = getBaseTypeAndTypmod(column->type, &base.typmod);
	if (image_is_text(&base))
		return pnstrdup(value, size);
	if (!psync_value_runs_user_code(&base))
		return DatumGetCString(decode_to_text(&base, value, size));
	if (psync_value_try(&base, decode_to_text, value, size, &text, &failure))
		return DatumGetCString(text);
	if (failure != NULL)
		ReThrowError(failure);
	return bytes_to_hex(value, size);
}

/*
 * The fields that identify the row: the old key if the change has one, else
 * that of the new image.
 */
static PsyncField *
key_fields(const PsyncChange *change, int *n)
{
	bool		old = change->op == PSYNC_DELETE || change->new_size == 0;
	PsyncField *fields;
	int			kept = 0;

	if (old)
		fields = split(change->shape, change->old_part, change->old_size, true, n);
	else
		fields = split(change->shape, change->new_image, change->new_size, false, n);
	for (int i = 0; i < *n; i++)
		if (change->shape->columns[fields[i].index].key)
			fields[kept++] = fields[i];
	*n = kept;
	return fields;
}

/*
 * The key's fields of the new image, or of the old part: columns and bytes,
 * for who compares keys.
 */
PsyncKeyField *
psync_change_key_fields(const PsyncChange *change, bool old, int *n)
{
	PsyncField *fields;
	PsyncKeyField *key;
	int			kept = 0;

	Assert(change->shape != NULL);
	Assert(old ? change->old_size > 0 : change->new_size > 0);
	if (old)
		fields = split(change->shape, change->old_part, change->old_size, true, n);
	else
		fields = split(change->shape, change->new_image, change->new_size, false, n);
	key = palloc(Max(*n, 1) * sizeof(PsyncKeyField));
	for (int i = 0; i < *n; i++)
	{
		const PsyncColumn *column = &change->shape->columns[fields[i].index];

		if (!column->key)
			continue;
		key[kept].column = column;
		key[kept].value = fields[i].value;
		key[kept++].size = fields[i].size;
	}
	*n = kept;
	return key;
}

/*
 * event.h has the contract.  The columns' names are those of the time of the
 * change.  Only fields of the key are decoded (P9).
 */
char *
psync_change_describe_key(const PsyncChange *change)
{
	StringInfoData buf;
	PsyncField *fields;
	int			n;

	initStringInfo(&buf);
	if (change->shape == NULL)
		return buf.data;
	fields = key_fields(change, &n);
	for (int i = 0; i < n; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "(",
						 change->shape->columns[fields[i].index].name);
	appendStringInfoString(&buf, ")=(");
	for (int i = 0; i < n; i++)
	{
		char	   *text = psync_value_to_text(&change->shape->columns[fields[i].index],
											   fields[i].value, fields[i].size);

		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "", text ? text : "null");
	}
	appendStringInfoChar(&buf, ')');
	return buf.data;
}

/* ------------------------------------------------------------------ jsonb */

/*
 * to_jsonb(value) as SQL would call it: the function learns the type of its
 * argument from the call's expression.
 */
static Datum
value_to_jsonb(Oid type, Datum value)
{
	LOCAL_FCINFO(fcinfo, 1);
	FmgrInfo	function;
	Param	   *argument = makeNode(Param);
	FuncExpr   *call = makeNode(FuncExpr);

	argument->paramtype = type;
	call->args = list_make1(argument);
	fmgr_info(F_TO_JSONB, &function);
	fmgr_info_set_expr((Node *) call, &function);
	InitFunctionCallInfoData(*fcinfo, &function, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = value;
	fcinfo->args[0].isnull = false;
	return FunctionCallInvoke(fcinfo);
}

/* In place of a value that is too large. */
static Datum
size_to_jsonb(int64 size)
{
	return value_to_jsonb(TEXTOID, CStringGetTextDatum(psprintf("(" INT64_FORMAT " bytes)",
																size)));
}

/*
 * Not as JSON, but as a string: as text if it is text, or can be made text,
 * else in hex.
 */
static Datum
raw_to_jsonb(const PsyncColumn *column, const PsyncField *field)
{
	ErrorData  *failure;
	Datum		text;

	if (field->size > (int32) JSONB_STRING_MAX)
		return size_to_jsonb(field->size);
	if (column->textual || column->type == JSONOID || image_is_text(column))
		text = CStringGetDatum(pnstrdup(field->value, field->size));
	else if (!type_exists(column->type) || psync_value_runs_user_code(column) ||
			 !psync_value_try(column, decode_to_text, field->value, field->size, &text,
							  &failure))
		text = CStringGetDatum(bytes_to_hex(field->value, field->size));
	if (strlen(DatumGetCString(text)) > JSONB_STRING_MAX)
		return size_to_jsonb(field->size);
	return value_to_jsonb(TEXTOID, CStringGetTextDatum(DatumGetCString(text)));
}

/* As to_jsonb() shows it. */
static Datum
decode_to_jsonb(const PsyncColumn *column, const char *value, int32 size)
{
	return value_to_jsonb(column->type, psync_value_to_datum(column, value, size));
}

/* May jsonb be unable to hold the value, though nobody's code is run? */
static bool
may_not_fit(const PsyncColumn *column, const PsyncField *field)
{
	return column->type == JSONOID || column->type == JSONARRAYOID ||
		field->size > JSONB_CHECKED_SIZE;
}

/*
 * A field as jsonb.  A domain's value is read as its base type's: it was valid
 * when it was written, whatever the domain demands by now.
 */
static Datum
field_to_jsonb(const PsyncColumn *column, const PsyncField *field)
{
	PsyncColumn base = *column;
	ErrorData  *failure;
	Datum		jsonb;

	Assert(field->size >= 0);
	if (!type_exists(column->type))
		return raw_to_jsonb(column, field);
	base.type = getBaseTypeAndTypmod(column->type, &base.typmod);
	if (image_is_text(&base))
		return raw_to_jsonb(&base, field);
	if (!base.textual && !psync_value_runs_user_code(&base) &&
		!may_not_fit(&base, field))
		return decode_to_jsonb(&base, field->value, field->size);
	if (!psync_value_try(&base, decode_to_jsonb, field->value, field->size, &jsonb,
						 &failure))
		return raw_to_jsonb(&base, field);
	return jsonb;
}

/*
 * event.h has the contract.
 */
Datum
psync_value_to_jsonb(const PsyncColumn *column, const char *value, int32 size)
{
	PsyncField	field = {0, size, value};

	return field_to_jsonb(column, &field);
}

/*
 * The fields as jsonb, NULL for null, so that an object can hold them all: of
 * those that are too large together, the largest are left out.
 */
static Jsonb **
fields_that_fit(const PsyncShape *shape, const PsyncField *fields, int n)
{
	Jsonb	  **values = palloc0(Max(n, 1) * sizeof(Jsonb *));
	Size		total = 0;

	for (int i = 0; i < n; i++)
	{
		const PsyncColumn *column = &shape->columns[fields[i].index];

		if (fields[i].size >= 0)
			values[i] = DatumGetJsonbP(field_to_jsonb(column, &fields[i]));
		total += JSONB_MEMBER_SIZE(column->name, values[i]);
	}
	while (total > JSONB_STRING_MAX)
	{
		int			largest = -1;

		for (int i = 0; i < n; i++)
			if (values[i] != NULL &&
				(largest < 0 || VARSIZE(values[i]) > VARSIZE(values[largest])))
				largest = i;
		Assert(largest >= 0);
		total -= VARSIZE(values[largest]);
		values[largest] = DatumGetJsonbP(size_to_jsonb(fields[largest].size));
		total += VARSIZE(values[largest]);
	}
	return values;
}

/*
 * An object of the fields, by their columns' names.  Duplicates cannot be,
 * names of columns are unique.
 */
static Datum
fields_to_jsonb(const PsyncShape *shape, const PsyncField *fields, int n)
{
	Jsonb	  **values = fields_that_fit(shape, fields, n);
	JsonbParseState *state = NULL;
	JsonbValue	item;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < n; i++)
	{
		const PsyncColumn *column = &shape->columns[fields[i].index];

		item.type = jbvString;
		item.val.string.val = unconstify(char *, column->name);
		item.val.string.len = strlen(column->name);
		pushJsonbValue(&state, WJB_KEY, &item);
		if (values[i] == NULL)
			item.type = jbvNull;
		else
		{
			item.type = jbvBinary;
			item.val.binary.data = &values[i]->root;
			item.val.binary.len = VARSIZE(values[i]) - VARHDRSZ;
		}
		pushJsonbValue(&state, WJB_VALUE, &item);
	}
	return JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL)));
}

/*
 * (Datum) 0 without an image, as of a delete.
 */
Datum
psync_image_to_jsonb(const PsyncShape *shape, const char *image, uint32 size)
{
	int			n;
	PsyncField *fields;

	if (size == 0)
		return (Datum) 0;
	fields = split(shape, image, size, false, &n);
	return fields_to_jsonb(shape, fields, n);
}

/*
 * Of the columns that it holds, and no others.
 */
Datum
psync_old_to_jsonb(const PsyncShape *shape, const char *part, uint32 size)
{
	int			n;
	PsyncField *fields;

	if (size == 0)
		return (Datum) 0;
	fields = split(shape, part, size, true, &n);
	return fields_to_jsonb(shape, fields, n);
}

/*
 * The key that the change is about; of a truncation there is none.
 */
Datum
psync_key_to_jsonb(const PsyncChange *change)
{
	int			n;
	PsyncField *fields;

	if (change->shape == NULL)
		return (Datum) 0;
	fields = key_fields(change, &n);
	return fields_to_jsonb(change->shape, fields, n);
}

/*
 * As the view, events and messages show it.
 */
const char *
psync_operation_name(PsyncOperation op)
{
	switch (op)
	{
		case PSYNC_INSERT:
			return "insert";
		case PSYNC_UPDATE:
			return "update";
		case PSYNC_DELETE:
			return "delete";
		case PSYNC_TRUNCATE:
			return "truncate";
		case PSYNC_READ:
			return "read";
	}
	return "unknown";
}
