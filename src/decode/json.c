/*
 * json.c
 *		Rows as JSON objects.
 *
 * What can be known of a shape beforehand is: the names, escaped, and how each
 * column's values are written.  A change is split once; its key, new and old
 * values are then written from the fields.
 */
#include "postgres.h"

#include "compat.h"
#include "decode/json.h"
#include "decode/jsonb.h"

/*
 * What can be written beforehand of a shape's rows.  Made in the current
 * memory context; the shape must last as long.
 */
PsyncJsonShape *
psync_json_shape(const PsyncShape *shape, const PsyncJsonSettings *settings)
{
	PsyncJsonShape *plan = palloc0(sizeof(PsyncJsonShape));
	int			n = Max(shape->ncolumns, 1);

	plan->shape = shape;
	plan->columns = palloc0(n * sizeof(PsyncJsonColumn));
	plan->new_fields = palloc(n * sizeof(PsyncField));
	plan->old_fields = palloc(n * sizeof(PsyncField));
	plan->nnew = plan->nold = -1;
	for (int i = 0; i < shape->ncolumns; i++)
	{
		PsyncJsonColumn *column = &plan->columns[i];
		StringInfoData label;

		initStringInfo(&label);
		psync_json_string(&label, shape->columns[i].name,
						  strlen(shape->columns[i].name));
		appendStringInfoChar(&label, ':');
		column->label = label.data;
		column->label_size = label.len;
		psync_json_type_init(&column->type, &shape->columns[i], settings);
	}
	return plan;
}

/*
 * Take the change apart.  The fields are valid as long as it is, and until the
 * next split: one plan serves one change at a time.
 */
void
psync_json_split(PsyncJsonShape *plan, const PsyncChange *change)
{
	Assert(change->shape == plan->shape);

	plan->nnew = plan->nold = -1;
	if (change->new_size > 0)
		plan->nnew = psync_fields_split(plan->shape, change->new_image,
										change->new_size, false,
										plan->new_fields);
	if (change->old_size > 0)
		plan->nold = psync_fields_split(plan->shape, change->old_part,
										change->old_size, true,
										plan->old_fields);
	if (plan->nnew < 0 && plan->nold < 0)
		psync_corrupt_image();
}

/*
 * A member: the label as it was prepared, then the value.
 */
static inline void
put_field(StringInfo out, const PsyncJsonShape *plan, const PsyncField *field,
		  bool first)
{
	PsyncJsonColumn *column = &plan->columns[field->index];

	if (!first)
		psync_json_literal(out, ",");
	psync_json_put(out, column->label, column->label_size);
	psync_json_value(out, &column->type, field->value, field->size);
}

/*
 * An object of the fields; null if there are none.
 */
static void
put_fields(StringInfo out, const PsyncJsonShape *plan, const PsyncField *fields,
		   int n)
{
	if (n < 0)
	{
		psync_json_literal(out, "null");
		return;
	}
	psync_json_literal(out, "{");
	for (int i = 0; i < n; i++)
		put_field(out, plan, &fields[i], i == 0);
	psync_json_literal(out, "}");
}

/*
 * The new row.
 */
void
psync_json_new(StringInfo out, const PsyncJsonShape *plan)
{
	put_fields(out, plan, plan->new_fields, plan->nnew);
}

/*
 * What is kept of the old row.
 */
void
psync_json_old(StringInfo out, const PsyncJsonShape *plan)
{
	put_fields(out, plan, plan->old_fields, plan->nold);
}

/*
 * The field of the key's n-th column: of the row as it is now, or as it was
 * ("old"; also if it is gone).  NULL if the old part lacks it.
 */
const PsyncField *
psync_json_key_field(const PsyncJsonShape *plan, int n, bool old)
{
	int			index = plan->shape->keys[n];

	Assert(n >= 0 && n < plan->shape->nkeys);
	if (!old && plan->nnew >= 0)
		return &plan->new_fields[index];
	for (int i = 0; i < plan->nold; i++)
		if (plan->old_fields[i].index == index)
			return &plan->old_fields[i];
	return NULL;
}

static const PsyncField *
required_key_field(const PsyncJsonShape *plan, int n)
{
	const PsyncField *field = psync_json_key_field(plan, n, false);

	if (field == NULL)
		psync_corrupt_image();
	return field;
}

/*
 * The key as an object; of a row whose key has changed, the new one.
 */
void
psync_json_key(StringInfo out, const PsyncJsonShape *plan)
{
	psync_json_literal(out, "{");
	for (int i = 0; i < plan->shape->nkeys; i++)
		put_field(out, plan, required_key_field(plan, i), i == 0);
	psync_json_literal(out, "}");
}

/* A value as plain UTF-8 text. */
static void
put_plain(StringInfo out, const PsyncJsonShape *plan, const PsyncField *field)
{
	PsyncJsonType *type = &plan->columns[field->index].type;
	int			start = out->len;
	char	   *text;

	switch (type->kind)
	{
		case PSYNC_JSON_INT2:
		case PSYNC_JSON_INT4:
		case PSYNC_JSON_INT8:
		case PSYNC_JSON_OID:
			psync_json_number(out, type, field->value, field->size);
			return;
		case PSYNC_JSON_UUID:
		case PSYNC_JSON_NUMERIC:
		case PSYNC_JSON_TIMESTAMPTZ:
		case PSYNC_JSON_DATE:
			psync_json_value(out, type, field->value, field->size);
			if (out->data[start] == '"')
			{
				/* none of these has anything to escape */
				out->len -= 2;
				memmove(out->data + start, out->data + start + 1,
						out->len - start);
			}
			return;
		default:
			text = psync_value_to_text(&plan->shape->columns[field->index],
									   field->value, field->size);
			psync_json_plain_utf8(out, text);
			pfree(text);
	}
}

/*
 * From there on, commas and backslashes get a backslash: one of several values
 * must not look like two.
 */
static void
escape_commas(StringInfo out, int start)
{
	int			size = out->len - start;
	char	   *text;

	Assert(size >= 0);
	if (memchr(out->data + start, ',', size) == NULL &&
		memchr(out->data + start, '\\', size) == NULL)
		return;
	text = palloc(size);
	memcpy(text, out->data + start, size);
	out->len = start;
	for (int i = 0; i < size; i++)
	{
		if (text[i] == ',' || text[i] == '\\')
			psync_json_literal(out, "\\");
		psync_json_put(out, &text[i], 1);
	}
	pfree(text);
}

/*
 * Values of the key's columns, comma-separated, for addresses and people.  Of
 * different keys of a table they differ.
 */
void
psync_json_key_text(StringInfo out, const PsyncJsonShape *plan)
{
	for (int i = 0; i < plan->shape->nkeys; i++)
	{
		const PsyncField *field = required_key_field(plan, i);

		if (i > 0)
			psync_json_literal(out, ",");
		if (field->size >= 0)
		{
			int			start = out->len;

			put_plain(out, plan, field);
			if (plan->shape->nkeys > 1)
				escape_commas(out, start);
		}
	}
}
