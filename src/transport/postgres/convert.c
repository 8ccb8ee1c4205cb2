/*
 * convert.c
 *		Changes whose values become values of other types before they are sent.
 *
 * What the conversion is, and whether a value survives it, is the core's
 * decision (transport/conversion.h).  Here images and keys are put together
 * anew, and what cannot be delivered is refused, with its key and column.
 */
#include "postgres.h"

#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"

/*
 * The shape of changes that are sent: converted columns have the types that
 * they become.  The same shape if there are none.  To be called before the
 * map's columns are pointed to it.
 */
const PsyncShape *
psync_pg_converted_shape(const PsyncPgMap *map)
{
	PsyncShape *shape = NULL;

	for (int i = 0; i < map->ncolumns; i++)
	{
		const PsyncPgMapColumn *from = &map->columns[i];
		PsyncColumn *to;

		if (!from->converted)
			continue;
		if (shape == NULL)
		{
			shape = palloc(sizeof(PsyncShape));
			*shape = *map->from;
			shape->columns = palloc(shape->ncolumns * sizeof(PsyncColumn));
			memcpy(shape->columns, map->from->columns,
				   shape->ncolumns * sizeof(PsyncColumn));
		}
		to = &shape->columns[from->field];
		to->typmod = -1;
		to->textual = from->conversion.kind == PSYNC_CONVERSION_TEXT;
		if (!to->textual)
			to->type = from->conversion.target.base;
		to->type_name = format_type_be(to->type);
	}
	return shape != NULL ? shape : map->from;
}

/*
 * Does not return.  The change is as it came, so that its key can be told; of
 * the value nothing is (P9).
 */
pg_noreturn static void
refuse_value(PsyncPgSession *session, const PsyncPgMap *map,
			 const PsyncPgMapColumn *column, const PsyncChange *change)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_EXCEPTION),
			 errmsg("could not apply change to table %s: the value of column %s does not fit type %s there: %s",
					map->table->name, column->name, column->target->full_type,
					column->conversion.reason),
			 errdetail("The change's key is %s. The column's type here is %s.",
					   psync_pg_services->describe_key(change),
					   map->from->columns[column->field].type_name),
			 errhint("Give the column at the target the type that it has here, or let values change with option lossy_casts of server \"%s\".",
					 session->target->server_name)));
}

/* Append a field, converted if its column is. */
static void
append_converted(PsyncPgSession *session, const PsyncPgMap *map,
				 const PsyncPgMapColumn *column, const PsyncPgField *field,
				 const PsyncChange *change, StringInfo out)
{
	uint32		n = pg_hton32((uint32) field->size);

	if (column != NULL && column->converted && field->size >= 0)
	{
		if (!psync_pg_services->conversions->convert(&column->conversion,
													 &map->from->columns[column->field],
													 field->value, field->size, out))
			refuse_value(session, map, column, change);
		return;
	}
	appendBinaryStringInfo(out, (char *) &n, sizeof(n));
	if (field->size > 0)
		appendBinaryStringInfo(out, field->value, field->size);
}

static void
append_int16(StringInfo out, int value)
{
	uint16		n = pg_hton16((uint16) value);

	appendBinaryStringInfo(out, (char *) &n, sizeof(n));
}

/* The map's columns stand in the order of fields; some fields have none. */
static void
convert_image(PsyncPgSession *session, const PsyncPgMap *map,
			  const PsyncChange *change, StringInfo out)
{
	PsyncPgField *fields = palloc(map->from->ncolumns * sizeof(PsyncPgField));
	int			next = 0;

	psync_pg_image_fields(map->from, change->new_image, change->new_size, fields);
	append_int16(out, map->from->ncolumns);
	for (int i = 0; i < map->from->ncolumns; i++)
	{
		const PsyncPgMapColumn *column = NULL;

		if (next < map->ncolumns && map->columns[next].field == i)
			column = &map->columns[next++];
		append_converted(session, map, column, &fields[i], change, out);
	}
	pfree(fields);
}

/* Of an old part, the key is all that is used. */
static void
convert_part(PsyncPgSession *session, const PsyncPgMap *map,
			 const PsyncChange *change, StringInfo out)
{
	PsyncPgField *fields = palloc(map->from->ncolumns * sizeof(PsyncPgField));

	psync_pg_part_fields(map->from, change->old_part, change->old_size, fields);
	append_int16(out, map->nkeys);
	for (int i = 0; i < map->ncolumns; i++)
	{
		const PsyncPgMapColumn *column = &map->columns[i];

		if (!column->key)
			continue;
		append_int16(out, column->field);
		append_converted(session, map, column, &fields[column->field], change, out);
	}
	pfree(fields);
}

/*
 * Replace the change's images by converted ones, which live until the next
 * call.  Raises if a value does not survive.
 */
void
psync_pg_convert_change(PsyncPgSession *session, const PsyncPgMap *map,
						PsyncChange *change)
{
	PsyncChange from = *change;
	MemoryContext old;
	StringInfoData buf;

	Assert(map->shape != map->from);

	MemoryContextReset(session->converting);
	old = MemoryContextSwitchTo(session->converting);
	change->shape = map->shape;
	if (from.new_size > 0)
	{
		initStringInfo(&buf);
		convert_image(session, map, &from, &buf);
		change->new_image = buf.data;
		change->new_size = buf.len;
	}
	if (from.op == PSYNC_DELETE || from.key_changed)
	{
		initStringInfo(&buf);
		convert_part(session, map, &from, &buf);
		change->old_part = buf.data;
		change->old_size = buf.len;
	}
	MemoryContextSwitchTo(old);
}
