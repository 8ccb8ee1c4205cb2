/*
 * image.c
 *		Row images as parameters of statements and as rows of COPY.
 *
 * An image is a COPY BINARY tuple: int16 count, then per field int32 length
 * (-1: NULL) and bytes.  A sparse part has an int16 index before each length.
 * Sizes are checked although the core has made them: what is read past the
 * end here would end up at the target.
 */
#include "postgres.h"

#include "port/pg_bswap.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"

/* ---------------------------------------------------------------- reading */

/* What is left of an image. */
typedef struct Cursor
{
	const char *at;
	const char *end;
} Cursor;

/*
 * Does not return.
 */
static void
refuse_image(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("invalid row image in the change log")));
}

/*
 * The next two bytes.
 */
static int16
read_int16(Cursor *cursor)
{
	uint16		value;

	if (cursor->end - cursor->at < sizeof(value))
		refuse_image();
	memcpy(&value, cursor->at, sizeof(value));
	cursor->at += sizeof(value);
	return (int16) pg_ntoh16(value);
}

/*
 * A length and as many bytes; the value points into the image.
 */
static void
read_field(Cursor *cursor, PsyncPgField *field)
{
	uint32		value;

	if (cursor->end - cursor->at < sizeof(value))
		refuse_image();
	memcpy(&value, cursor->at, sizeof(value));
	cursor->at += sizeof(value);
	field->size = (int32) pg_ntoh32(value);
	field->value = NULL;
	if (field->size < 0)
	{
		field->size = -1;
		return;
	}
	if (cursor->end - cursor->at < field->size)
		refuse_image();
	field->value = cursor->at;
	cursor->at += field->size;
}

/*
 * Split an image into its fields; fields[] has an entry per column of the
 * shape.  They point into the image.
 */
void
psync_pg_image_fields(const PsyncShape *shape, const char *image, uint32 size,
					  PsyncPgField *fields)
{
	Cursor		cursor = {image, image + size};

	if (read_int16(&cursor) != shape->ncolumns)
		refuse_image();
	for (int i = 0; i < shape->ncolumns; i++)
		read_field(&cursor, &fields[i]);
	if (cursor.at != cursor.end)
		refuse_image();
}

/* Fields that the part does not hold are marked PSYNC_PG_ABSENT. */
void
psync_pg_part_fields(const PsyncShape *shape, const char *part, uint32 size,
					 PsyncPgField *fields)
{
	Cursor		cursor = {part, part + size};
	int			count = read_int16(&cursor);

	for (int i = 0; i < shape->ncolumns; i++)
		fields[i].size = PSYNC_PG_ABSENT;
	for (int n = 0; n < count; n++)
	{
		int			index = read_int16(&cursor);

		if (index < 0 || index >= shape->ncolumns)
			refuse_image();
		read_field(&cursor, &fields[index]);
	}
	if (cursor.at != cursor.end)
		refuse_image();
	for (int k = 0; k < shape->nkeys; k++)
	{
		if (fields[shape->keys[k]].size < 0)
			refuse_image();
	}
}

/*
 * Append the key's fields, lengths and bytes in the order of columns, from an
 * image or a sparse part.  Equal bytes mean equal keys; the reverse does not
 * hold for every type.
 */
void
psync_pg_append_key(StringInfo buf, const PsyncShape *shape, const char *data,
					uint32 size, bool sparse)
{
	Cursor		cursor = {data, data + size};
	int			left = shape->nkeys;
	int			count = read_int16(&cursor);

	for (int i = 0; i < count && left > 0; i++)
	{
		int			index = sparse ? read_int16(&cursor) : i;
		const char *start = cursor.at;
		PsyncPgField field;

		read_field(&cursor, &field);
		if (index < 0 || index >= shape->ncolumns)
			refuse_image();
		if (!shape->columns[index].key)
			continue;
		appendBinaryStringInfo(buf, start, cursor.at - start);
		left--;
	}
	if (left > 0)
		refuse_image();
}

/* ------------------------------------------------------------- parameters */

/* Set parameter "at" of the map's statement; text is copied, to end it. */
static void
put_param(PsyncPgMap *map, int at, const PsyncPgMapColumn *column,
		  const PsyncPgField *field)
{
	Assert(at < map->shape->ncolumns + map->shape->nkeys);
	Assert(field->size != PSYNC_PG_ABSENT);

	map->types[at] = column->param_type;
	map->formats[at] = column->as_text ? 0 : 1;
	map->lengths[at] = Max(field->size, 0);
	if (field->size < 0)
		map->values[at] = NULL;
	else if (column->as_text)
		map->values[at] = pnstrdup(field->value, field->size);
	else
		map->values[at] = field->value;
}

/* The sent columns of an image; returns their number. */
int
psync_pg_put_image(PsyncPgMap *map, const PsyncPgField *fields)
{
	Assert(map->ncolumns <= map->shape->ncolumns);

	for (int i = 0; i < map->ncolumns; i++)
		put_param(map, i, &map->columns[i], &fields[map->columns[i].field]);
	return map->ncolumns;
}

/* The key, from parameter "at" on; returns the number of the next. */
int
psync_pg_put_key(PsyncPgMap *map, int at, const PsyncPgField *fields)
{
	Assert(at >= 0);

	for (int k = 0; k < map->nkeys; k++)
	{
		const PsyncPgMapColumn *column = &map->columns[map->keys[k]];

		put_param(map, at + k, column, &fields[column->field]);
	}
	return at + map->nkeys;
}

/* ------------------------------------------------------------------- COPY */

/*
 * In network order.
 */
static void
append_int16(StringInfo buf, int16 value)
{
	uint16		n = pg_hton16((uint16) value);

	appendBinaryStringInfo(buf, (char *) &n, sizeof(n));
}

/*
 * A field of a COPY row.
 */
static void
append_field(StringInfo buf, const PsyncPgField *field)
{
	uint32		n = pg_hton32((uint32) field->size);

	Assert(field->size != PSYNC_PG_ABSENT);
	appendBinaryStringInfo(buf, (char *) &n, sizeof(n));
	if (field->size > 0)
		appendBinaryStringInfo(buf, field->value, field->size);
}

/*
 * Append an image's sent columns as a row of COPY BINARY.
 */
void
psync_pg_copy_row(StringInfo buf, PsyncPgMap *map, const PsyncPgField *fields)
{
	append_int16(buf, map->ncolumns);
	for (int i = 0; i < map->ncolumns; i++)
		append_field(buf, &fields[map->columns[i].field]);
}

/*
 * Append its key, likewise.
 */
void
psync_pg_copy_key(StringInfo buf, PsyncPgMap *map, const PsyncPgField *fields)
{
	append_int16(buf, map->nkeys);
	for (int k = 0; k < map->nkeys; k++)
	{
		const PsyncPgMapColumn *column = &map->columns[map->keys[k]];

		append_field(buf, &fields[column->field]);
	}
}
