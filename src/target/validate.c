/*
 * validate.c
 *		Checking the options of wrappers, servers and user mappings against
 *		the option table of their transport.
 *
 * The tables are plain data (PsyncOption), so that one checker serves all
 * transports.  A value that is wrong is refused when it is given, not when
 * the sync first runs; whether it leads anywhere only the target can tell.
 *
 * PostgreSQL hands a validator all options that the object will have, also
 * those that an ALTER leaves alone.  So someone who may alter an object, but
 * may not set one of its options, may not alter it at all: just what is
 * wanted of options that only a superuser may set.
 */
#include "postgres.h"

#include "access/reloptions.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "base/closest.h"
#include "compat.h"
#include "target/registry.h"

PG_FUNCTION_INFO_V1(payment_sync_postgres_validator);
PG_FUNCTION_INFO_V1(payment_sync_http_validator);

/* Where the object's options are allowed; 0 if such objects have none. */
static int
place_of_catalog(Oid catalog)
{
	switch (catalog)
	{
		case ForeignDataWrapperRelationId:
			return PSYNC_ON_WRAPPER;
		case ForeignServerRelationId:
			return PSYNC_ON_SERVER;
		case UserMappingRelationId:
			return PSYNC_ON_USER;
		default:
			return 0;
	}
}

/*
 * For messages.
 */
static const char *
name_of_place(int where)
{
	if (where & PSYNC_ON_SERVER)
		return (where & PSYNC_ON_USER) ? "a server or a user mapping" : "a server";
	return (where & PSYNC_ON_USER) ? "a user mapping" : "a foreign-data wrapper";
}

/*
 * By its keyword, which is case-sensitive, as everywhere in options.
 */
static const PsyncOption *
find_option(const PsyncOption *table, const char *keyword)
{
	for (const PsyncOption *option = table; option->keyword; option++)
	{
		if (strcmp(option->keyword, keyword) == 0)
			return option;
	}
	return NULL;
}

/* The option of that place that looks most like the keyword, or NULL. */
static const char *
closest_keyword(const PsyncOption *table, int place, const char *keyword)
{
	PsyncClosest closest;

	psync_closest_begin(&closest, keyword);
	for (const PsyncOption *option = table; option->keyword; option++)
	{
		if (option->where & place)
			psync_closest_offer(&closest, option->keyword);
	}
	return closest.name;
}

/*
 * A mistyped keyword is answered with the one that was meant.
 */
pg_noreturn static void
refuse_unknown(const PsyncOption *table, int place, const char *keyword)
{
	const char *closest = closest_keyword(table, place, keyword);

	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
			 errmsg("invalid option \"%s\"", keyword),
			 closest ? errhint("Perhaps you meant the option \"%s\".", closest) :
			 errhint("View payment_sync.transport_options lists the valid options.")));
}

/*
 * Allowed on such an object, and to this user?
 */
static void
check_place(const PsyncOption *option, int place)
{
	Assert(option->where != 0);

	if ((option->where & place) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
				 errmsg("option \"%s\" is not allowed on %s",
						option->keyword, name_of_place(place)),
				 errhint("Set it on %s.", name_of_place(option->where))));
	if ((option->where & PSYNC_BY_SUPERUSER) && !superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to set option \"%s\"", option->keyword),
				 errdetail("Only a superuser may set this option, or alter an object that has it.")));
}

/* Values are shown in messages, except secret ones (P9). */
static void
refuse_value(const PsyncOption *option, const char *value, const char *expected)
{
	if (option->secret)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("invalid value for option \"%s\"", option->keyword),
				 errdetail("%s", expected)));
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
			 errmsg("invalid value for option \"%s\": \"%s\"",
					option->keyword, value),
			 errdetail("%s", expected)));
}

/*
 * All of the value is a number, and within the range.
 */
static void
check_int(const PsyncOption *option, const char *value)
{
	char	   *end;
	long long	number;

	errno = 0;
	number = strtoll(value, &end, 10);
	if (end == value || *end != '\0' || errno != 0 ||
		number < option->min || number > option->max)
		refuse_value(option, value,
					 psprintf("Valid values are integers from " INT64_FORMAT " to " INT64_FORMAT ".",
							  option->min, option->max));
}

/* Is value one of the words of "a|b|c"? */
static bool
is_one_of(const char *value, const char *values)
{
	size_t		len = strlen(value);

	if (strchr(value, '|') != NULL)
		return false;
	for (const char *at = values; at != NULL; at = strchr(at, '|'))
	{
		if (*at == '|')
			at++;
		if (strncmp(at, value, len) == 0 && (at[len] == '|' || at[len] == '\0'))
			return len > 0;
	}
	return false;
}

/*
 * The value by itself; what only makes sense with others, the transport looks
 * at.
 */
static void
check_value(const PsyncOption *option, const char *value)
{
	bool		ignored;

	switch (option->type)
	{
		case PSYNC_OPT_STRING:
			break;
		case PSYNC_OPT_INT:
			Assert(option->min <= option->max);
			check_int(option, value);
			break;
		case PSYNC_OPT_BOOL:
			if (!parse_bool(value, &ignored))
				refuse_value(option, value, "Valid values are \"true\" and \"false\".");
			break;
		case PSYNC_OPT_ENUM:
			Assert(option->values != NULL);
			if (!is_one_of(value, option->values))
				refuse_value(option, value,
							 psprintf("Valid values are: %s.", option->values));
			break;
	}
}

/*
 * Check all options of one object; "catalog" says of which kind it is.
 */
void
psync_options_validate(List *options, Oid catalog, const PsyncOption *table)
{
	int			place = place_of_catalog(catalog);
	ListCell   *lc;

	Assert(table != NULL);

	if (place == 0 && options != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
				 errmsg("invalid option \"%s\"",
						linitial_node(DefElem, options)->defname),
				 errdetail("Servers of payment_sync have no foreign tables.")));

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);
		const PsyncOption *option = find_option(table, def->defname);

		if (option == NULL)
			refuse_unknown(table, place, def->defname);
		check_place(option, place);
		check_value(option, defGetString(def));
	}
}

/*
 * Called by PostgreSQL, for wrappers, servers and user mappings.
 */
Datum
payment_sync_postgres_validator(PG_FUNCTION_ARGS)
{
	List	   *options = untransformRelOptions(PG_GETARG_DATUM(0));

	psync_options_validate(options, PG_GETARG_OID(1), psync_postgres_options);
	PG_RETURN_VOID();
}

/*
 * Likewise; some options of http are checked further.
 */
Datum
payment_sync_http_validator(PG_FUNCTION_ARGS)
{
	List	   *options = untransformRelOptions(PG_GETARG_DATUM(0));

	psync_options_validate(options, PG_GETARG_OID(1), psync_http_options);
	psync_http_check_options(options, PG_GETARG_OID(1));
	PG_RETURN_VOID();
}
