/*
 * form.c
 *		As what values of two types are compared.
 *
 * What counts as equal is what delivery would have made of the value, by the
 * decision that delivery uses (transport/conversion.h).  Where nothing can be
 * lost, the source's values are cast to the target's type.  Where something
 * can, both sides are brought into a form in which each value of either type
 * is told from all others: a value that delivery would have refused is never
 * equal to what a cast would have made of it.  With consent to loss
 * (lossy_casts), the source's values are compared after the same loss.
 *
 * Expressions must not fail, whatever the value is: those that could are
 * guarded by what they look like.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"

#include "compat.h"
#include "reconcile/reconcile.h"

static void
set_value(PsyncSideColumn *column, char *value, Oid as)
{
	column->value = value;
	column->as = as;
	column->as_typmod = -1;
}

/* "t.a::type" */
static void
set_cast(PsyncSideColumn *column, const char *type, Oid as)
{
	set_value(column, psprintf("t.%s::%s", column->name, type), as);
}

static void
set_text(PsyncSideColumn *column)
{
	set_cast(column, "text", TEXTOID);
}

static bool
is_integer(Oid type)
{
	return type == INT2OID || type == INT4OID || type == INT8OID;
}

static bool
is_float(Oid type)
{
	return type == FLOAT4OID || type == FLOAT8OID;
}

/* A moment that is a date is written as one; others are as they are. */
static void
set_date_or_text(PsyncSideColumn *column, const char *moment)
{
	set_value(column,
			  psprintf("CASE WHEN %s = pg_catalog.date_trunc('day', %s)"
					   " THEN (%s)::date::text ELSE (%s)::text END",
					   moment, moment, moment, moment), TEXTOID);
}

/* Floating point beside another number. */
static void
set_float(PsyncSideColumn *column, Oid peer)
{
	const char *name = column->name;

	if (is_float(peer))
		set_cast(column, "float8", FLOAT8OID);
	else if (peer == NUMERICOID)
		set_cast(column, "text::numeric", NUMERICOID);
	else if (is_integer(peer))
		set_value(column,
				  psprintf("CASE WHEN t.%s = pg_catalog.floor(t.%s) AND pg_catalog.abs(t.%s) < 9e18"
						   " THEN t.%s::bigint::text ELSE t.%s::text END",
						   name, name, name, name, name), TEXTOID);
	else
		set_text(column);
}

static void
set_time(PsyncSideColumn *column, Oid peer)
{
	const char *name = column->name;
	Oid			base = column->base;

	if (base == TIMESTAMPTZOID && peer == TIMESTAMPOID)
		set_value(column, psprintf("(t.%s AT TIME ZONE 'UTC')", name), TIMESTAMPOID);
	else if (base == TIMESTAMPTZOID && peer == DATEOID)
		set_date_or_text(column, psprintf("(t.%s AT TIME ZONE 'UTC')", name));
	else if (base == TIMESTAMPOID && peer == DATEOID)
		set_date_or_text(column, psprintf("t.%s", name));
	else if (base == DATEOID && (peer == TIMESTAMPOID || peer == TIMESTAMPTZOID))
		set_text(column);
	else if (base == TIMEOID && peer == TIMETZOID)
		set_value(column, psprintf("(t.%s::text || '+00')", name), TEXTOID);
	else if (base == TIMETZOID && peer == TIMEOID)
		set_text(column);
}

/*
 * jsonb writes an object in one way.  What it cannot hold stays as it is: a
 * null character, and a key that is there twice, which shows by colons that are
 * gone (one may also stand in a string, as \u003a).
 */
static void
set_json(PsyncSideColumn *column)
{
	static const char form[] =
		"CASE WHEN pg_catalog.strpos(%1$s, '\\u0000') > 0 THEN %1$s"
		" WHEN pg_catalog.strpos(pg_catalog.lower(%1$s), '\\u003a') = 0"
		" AND pg_catalog.length(pg_catalog.replace(%1$s, ':', '')) - pg_catalog.length(%1$s)"
		" <> pg_catalog.length(pg_catalog.replace(%1$s::jsonb::text, ':', ''))"
		" - pg_catalog.length(%1$s::jsonb::text) THEN %1$s ELSE %1$s::jsonb::text END";

	if (column->base == JSONOID)
		set_value(column, psprintf(form, psprintf("t.%s::text", column->name)), TEXTOID);
	else
		set_text(column);
}

/*
 * One side of a pair of unequal types, in the form that tells all values of
 * both apart.  What is not named here is compared by text.
 */
static void
set_common(PsyncSideColumn *column, Oid peer, bool sync)
{
	Oid			base = column->base;

	if (psync_type_is_text(base) || psync_type_is_text(peer))
	{
		/* a sync's text that ends in blanks is not what a char(n) keeps of it */
		if (sync && base == BPCHAROID && psync_type_is_text(peer))
			set_text(column);
		/* files write booleans as PostgreSQL does, in either of its ways */
		if (!sync && peer == BOOLOID)
			set_value(column,
					  psprintf("CASE t.%s::text WHEN 't' THEN 'true' WHEN 'f' THEN 'false'"
							   " ELSE t.%s::text END", column->name, column->name), TEXTOID);
		/* numbers without trailing zeros, see trim_number_in_text() */
		if (!psync_type_is_text(base) && base != NUMERICOID)
			set_text(column);
	}
	else if (is_float(base))
		set_float(column, peer);
	else if (is_integer(base) && is_float(peer))
		set_text(column);
	else if (base == BOOLOID && is_integer(peer))
		set_cast(column, "int", INT4OID);
	else if (base == CIDROID && peer == INETOID)
		set_cast(column, "inet", INETOID);
	else if (base == MACADDROID && peer == MACADDR8OID)
		set_cast(column, "macaddr8", MACADDR8OID);
	else if (base == TIMEOID && peer == INTERVALOID)
		set_cast(column, "interval", INTERVALOID);
	else if ((base == JSONOID && peer == JSONBOID) || (base == JSONBOID && peer == JSONOID))
		set_json(column);
	else
		set_time(column, peer);
}

/* Amounts of money are compared as such, whatever lc_monetary makes of them. */
static void
set_amount(PsyncSideColumn *column)
{
	if (column->base == CASHOID)
		set_cast(column, "numeric", NUMERICOID);
}

/* The source's value after the loss that the server's owner consents to. */
static void
set_loss(PsyncSideColumn *column, const PsyncSideColumn *target,
		 const PsyncConversion *conversion)
{
	const char *value = column->base == CASHOID || target->base == CASHOID ?
		psprintf("t.%s%s::numeric", column->name,
				 psync_type_is_text(column->base) ? "::text" : "") :
		psprintf("t.%s%s", column->name, conversion->by_text ? "::text" : "");

	if (target->base == CASHOID)
		set_value(column, psprintf("pg_catalog.round(%s, %d)", value,
								   conversion->target.money_digits), NUMERICOID);
	else if (column->base == NUMERICOID && is_integer(target->base))
		set_value(column, psprintf("pg_catalog.round(%s)", value), NUMERICOID);
	else if (column->base == NUMERICOID && target->base == NUMERICOID)
		set_value(column, psprintf("pg_catalog.round(%s, %d)", value,
								   psync_numeric_scale(target->typmod)), NUMERICOID);
	else if (!(is_integer(column->base) && is_integer(target->base)))
	{
		set_value(column, psprintf("(%s)::%s", value,
								   format_type_with_typemod(target->base, target->typmod)),
				  target->base);
		column->as_typmod = target->typmod;
	}
}

/*
 * Set as what the pair's columns are compared.  "sync": the one was delivered
 * to the other; "lossy": the target's options consent to loss.
 */
void
psync_pair_compare_as(PsyncPair *pair, bool sync, bool lossy)
{
	PsyncSideColumn *source = &pair->side[PSYNC_SOURCE];
	PsyncSideColumn *other = &pair->side[PSYNC_OTHER];
	PsyncConversion conversion = {0};

	for (int i = 0; i < lengthof(pair->side); i++)
	{
		PsyncSideColumn *column = &pair->side[i];

		set_value(column, psprintf("t.%s", column->name), column->base);
		column->as_typmod = column->typmod;
		set_amount(column);
	}
	conversion.source = source->facts;
	conversion.target = other->facts;
	psync_conversion_decide(&conversion, lossy);
	if (lossy && conversion.kind == PSYNC_CONVERSION_CHECKED)
		set_loss(source, other, &conversion);
	else if (source->base != other->base && source->base != CASHOID &&
			 other->base != CASHOID)
	{
		set_common(source, other->base, sync);
		set_common(other, source->base, sync);
	}
}
