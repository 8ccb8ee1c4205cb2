/*
 * column_map.c
 *		Maps: how the columns of a shape fall on the columns of a table.
 *
 * Columns are matched by name: a captured column goes to the target's column
 * of its current name, or else of the name it had when the change was made,
 * so that either side may be renamed first; unless the source has given the
 * old name to another column.  The target may have further columns, which get
 * their defaults, and any order.  Columns that the target computes are left to
 * it.
 *
 * Values of a column that was dropped at the source go nowhere, even if the
 * target has one of its name: that may be meant for a column made since.  A
 * column that is missing at the target alone is an error, since leaving it out
 * would lose data silently.  A dropped column of the key is still needed to
 * find rows by; without it, changes cannot be applied.
 *
 * How values travel is decided by the core (transport/conversion.h):
 *
 *	exact		as in the image: binary, or text if the shape says so
 *	cast		binary as the source's type, cast at the target
 *	checked		converted here, then as if the source had the target's type
 *	text		converted to text here, read by the target's type
 *	refused		not at all
 *
 * Casts at the target go to the type without its length, so that the length is
 * enforced by assignment: too long is an error, not truncated.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"

/*
 * Does not return.  What the image holds of such a value are bytes that only
 * the type could have read.
 */
static void
refuse_dropped_type(const PsyncPgMap *map, const PsyncPgMapColumn *column)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("the type that column \"%s\" of table %s had was dropped",
					column->source->name, map->table->name),
			 errdetail("Changes that were captured before hold values that cannot be read without it."),
			 errhint("Copy the tables anew with payment_sync.enable_sync(name, start => 'batch').")));
}

/*
 * How the column's values travel; see the header comment.
 */
static void
choose_transfer(const PsyncPgMap *map, PsyncPgMapColumn *column)
{
	const PsyncPgColumn *target = column->target;
	PsyncConversion *conversion = &column->conversion;

	column->param_cast = "";
	column->temp_cast = "";
	column->param_type = target->type;
	column->temp_type = target->full_type;
	if (!column->source->textual && column->source->type_name == NULL)
		refuse_dropped_type(map, column);
	column->as_text = column->source->textual &&
		conversion->kind != PSYNC_CONVERSION_CHECKED;

	/* a binary array or row names the types in it, domains too, by oid */
	if (conversion->kind == PSYNC_CONVERSION_EXACT && !column->as_text &&
		strcmp(conversion->source.parts, conversion->target.parts) != 0)
		conversion->kind = PSYNC_CONVERSION_TEXT;

	column->converted = conversion->kind == PSYNC_CONVERSION_CHECKED ||
		(conversion->kind == PSYNC_CONVERSION_TEXT && !column->as_text);
	if (conversion->kind == PSYNC_CONVERSION_CAST)
	{
		/* oids of built-in types mean the same at the target */
		column->param_type = conversion->source.base;
		column->temp_type = format_type_with_typemod(column->param_type, -1);
		column->param_cast = psprintf("::%s", target->type_name);
		column->temp_cast = column->param_cast;
	}
	else if (column->as_text || conversion->kind == PSYNC_CONVERSION_TEXT)
	{
		/* a parameter in text form is read by the target's type itself */
		column->temp_type = "pg_catalog.text";
		column->temp_cast = psprintf("::%s", target->type_name);
	}
}

/* Does not return. */
pg_noreturn static void
refuse_missing_column(const PsyncPgMap *map, const PsyncColumn *column)
{
	const char *name = column->current_name ? column->current_name : column->name;
	const PsyncTable *table = map->table->table;

	if (column->current_name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("key column \"%s\" of table %s was dropped", name,
						map->table->name),
				 errdetail("Changes of table \"%s.%s\" that were captured before cannot be applied without it.",
						   table->source_schema, table->source_name),
				 errhint("Copy the tables anew with payment_sync.enable_sync(name, start => 'batch').")));
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_COLUMN),
			 errmsg("column \"%s\" of table %s does not exist at the target",
					name, map->table->name),
			 errdetail("Column \"%s\" of table \"%s.%s\" is captured.", name,
					   table->source_schema, table->source_name),
			 errhint("Add the column at the target, or capture the table without it.")));
}

/*
 * Does not return.
 */
pg_noreturn static void
refuse_types(const PsyncPgSession *session, const PsyncPgMap *map,
			 const PsyncPgMapColumn *column)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATATYPE_MISMATCH),
			 errmsg("column %s of type %s cannot be delivered to table %s, where its type is %s: %s",
					column->name,
					column->source->type_name ? column->source->type_name : "unknown",
					map->table->name, column->target->full_type,
					column->conversion.reason),
			 errhint("Give the column at the target the type that it has here, or let values change with option lossy_casts of server \"%s\".",
					 session->target->server_name)));
}

/* The target's column for a captured one; NULL: leave it out. */
static PsyncPgColumn *
find_target(const PsyncPgMap *map, const PsyncColumn *source)
{
	PsyncPgColumn *target = NULL;

	if (source->current_name == NULL && !source->key)
		return NULL;
	if (source->current_name != NULL)
		target = psync_pg_table_column(map->table, source->current_name);
	if (target == NULL && !source->name_reused)
		target = psync_pg_table_column(map->table, source->name);
	if (target == NULL)
		refuse_missing_column(map, source);
	if (target->generated)
	{
		if (source->key)
			ereport(ERROR,
					(errcode(ERRCODE_WRONG_OBJECT_TYPE),
					 errmsg("key column \"%s\" of table %s is a generated column at the target",
							target->name, map->table->name)));
		return NULL;
	}
	return target;
}

/*
 * An image's values can be sent without taking it apart if all its columns
 * are sent; and straight into the table if it has the very types.
 */
static void
note_shortcuts(PsyncPgMap *map)
{
	map->verbatim = map->ncolumns == map->shape->ncolumns;
	map->direct = true;
	for (int i = 0; i < map->ncolumns; i++)
		map->direct &= map->columns[i].temp_cast[0] == '\0';
}

/* Types of which two values are equal if and only if their bytes are. */
static bool
equals_by_bytes(Oid type)
{
	switch (type)
	{
		case BOOLOID:
		case BYTEAOID:
		case DATEOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case OIDOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
		case UUIDOID:
			return true;
		default:
			return false;		/* text: a collation may see it otherwise */
	}
}

/* Does the server's owner consent to values that change on their way? */
static bool
lossy_casts(const PsyncPgSession *session)
{
	const char *option = psync_pg_services->option(session->target, "lossy_casts");
	bool		value = false;

	if (option != NULL)
		(void) parse_bool(option, &value);
	return value;
}

/*
 * Find each captured column's place at the target, and how its values get
 * there; those that have none are left out of the map, though not of the
 * images.
 */
static void
map_columns(PsyncPgSession *session, PsyncPgMap *map)
{
	const PsyncConversions *conversions = psync_pg_services->conversions;
	const PsyncShape *shape = map->from;
	PsyncTypeFacts *facts = palloc0(shape->ncolumns * sizeof(PsyncTypeFacts));

	conversions->source_facts(shape, facts);
	map->columns = palloc0(shape->ncolumns * sizeof(PsyncPgMapColumn));
	for (int i = 0; i < shape->ncolumns; i++)
	{
		PsyncPgMapColumn *column = &map->columns[map->ncolumns];
		PsyncPgColumn *target = find_target(map, &shape->columns[i]);

		if (target == NULL)
			continue;
		column->source = &shape->columns[i];
		column->target = target;
		column->field = i;
		column->name = pstrdup(quote_identifier(target->name));
		column->key = shape->columns[i].key;
		column->conversion.source = facts[i];
		column->conversion.target = target->facts;
		conversions->decide(&column->conversion, lossy_casts(session));
		if (column->conversion.kind == PSYNC_CONVERSION_REFUSED)
			refuse_types(session, map, column);
		map->identity |= target->identity_always;
		map->identity_beside_key |= target->identity_always && !column->key;
		choose_transfer(map, column);
		map->ncolumns++;
	}
	map->shape = psync_pg_converted_shape(map);
	for (int i = 0; i < map->ncolumns; i++)
	{
		map->columns[i].source = &map->shape->columns[map->columns[i].field];
		map->columns[i].as_text = map->columns[i].source->textual;
	}
}

/* Find the key's columns among those that are sent. */
static void
map_keys(PsyncPgMap *map)
{
	const PsyncShape *shape = map->shape;

	map->nkeys = shape->nkeys;
	map->keys = palloc0(shape->nkeys * sizeof(int));
	for (int k = 0; k < shape->nkeys; k++)
	{
		for (int i = 0; i < map->ncolumns; i++)
			if (map->columns[i].field == shape->keys[k])
				map->keys[k] = i;
		Assert(map->columns[map->keys[k]].key);
		map->key_ambiguous |= !equals_by_bytes(map->columns[map->keys[k]].target->type);
	}
}

/*
 * The key's column that goes to this one of the target, or NULL.
 */
static PsyncPgMapColumn *
key_column(const PsyncPgMap *map, const char *name)
{
	for (int k = 0; k < map->nkeys; k++)
	{
		PsyncPgMapColumn *column = &map->columns[map->keys[k]];

		if (strcmp(column->target->name, name) == 0)
			return column;
	}
	return NULL;
}

/*
 * Two keys that differ here must not be one there, or a row is lost.
 */
static void
check_key_collation(const PsyncPgSession *session, const PsyncPgMap *map,
					const PsyncPgMapColumn *key, const PsyncPgIndexColumn *index)
{
	if (key->conversion.lossy ||
		!psync_pg_services->conversions->merges_keys(&key->conversion, index->collation))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_DATATYPE_MISMATCH),
			 errmsg("key column %s of table %s cannot be delivered: keys that differ here may be equal there",
					key->name, map->table->name),
			 errdetail("Its type or collation there, %s, does not tell all texts apart.",
					   key->target->full_type),
			 errhint("Give the key at the target the type and collation that it has here, or let one of such rows replace the other with option lossy_casts of server \"%s\".",
					 session->target->server_name)));
}

/*
 * Does some unique index of the target have exactly the key's columns?  Its
 * operators are the ones to find rows by.
 */
static bool
use_key_index(const PsyncPgSession *session, PsyncPgMap *map)
{
	ListCell   *lc;

	foreach(lc, map->table->unique_keys)
	{
		List	   *index = lfirst(lc);
		int			found = 0;
		ListCell   *li;

		if (list_length(index) != map->nkeys)
			continue;
		foreach(li, index)
		{
			PsyncPgIndexColumn *column = lfirst(li);
			PsyncPgMapColumn *key = key_column(map, column->name);

			if (key == NULL)
				break;
			check_key_collation(session, map, key, column);
			key->equals = column->equals;
			found++;
		}
		if (found != map->nkeys)
			continue;
		map->arbiter = ((PsyncPgIndexColumn *) linitial(index))->constraint;
		return true;
	}
	return false;
}

/*
 * For messages.
 */
static char *
key_list(const PsyncPgMap *map)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int k = 0; k < map->nkeys; k++)
		appendStringInfo(&buf, "%s%s", k > 0 ? ", " : "",
						 map->columns[map->keys[k]].name);
	return buf.data;
}

/*
 * Make a map, which may ask the target, and refuse what cannot work before the
 * first row is sent.
 */
static PsyncPgMap *
map_create(PsyncPgSession *session, const PsyncShape *shape,
		   const PsyncTable *table)
{
	PsyncPgTable *facts = psync_pg_table_get(session, table);
	MemoryContext old = MemoryContextSwitchTo(session->context);
	PsyncPgMap *map = palloc0(sizeof(PsyncPgMap));
	int			nparams = shape->ncolumns + shape->nkeys;

	Assert(shape->nkeys > 0 && shape->nkeys <= shape->ncolumns);

	map->id = ++session->maps_made;
	map->from = shape;
	map->table = facts;
	map_columns(session, map);
	map_keys(map);
	note_shortcuts(map);
	map->values = palloc0(nparams * sizeof(char *));
	map->lengths = palloc0(nparams * sizeof(int));
	map->formats = palloc0(nparams * sizeof(int));
	map->types = palloc0(nparams * sizeof(Oid));
	if (!use_key_index(session, map))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
				 errmsg("table %s at the target has no unique index on the key (%s)",
						facts->name, key_list(map)),
				 errdetail("The index must be on exactly these columns, not deferrable, and without predicate."),
				 errhint("Add a primary key or unique constraint to the table at the target.")));
	Assert(map->nkeys == shape->nkeys && map->ncolumns >= map->nkeys);
	session->maps = lcons(map, session->maps);
	MemoryContextSwitchTo(old);
	return map;
}

/*
 * The map for a shape and a table, made if need be: that asks the target, so
 * nothing may be under way there.
 */
PsyncPgMap *
psync_pg_map_get(PsyncPgSession *session, const PsyncShape *shape,
				 const PsyncTable *table)
{
	PsyncPgMap *map = session->last_map;
	ListCell   *lc;

	if (map != NULL && map->from == shape && map->table->table == table)
		return map;
	foreach(lc, session->maps)
	{
		map = lfirst(lc);
		if (map->from == shape && map->table->table == table)
		{
			session->last_map = map;
			return map;
		}
	}
	psync_pg_apply_wait(session);
	session->last_map = map_create(session, shape, table);
	return session->last_map;
}
