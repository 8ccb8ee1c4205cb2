/*
 * conversion.c
 *		The decision about a pair of types; see conversion.h.
 *
 *	source				target				decision
 *	same structure		same				exact
 *	 … and length		wider				exact
 *	 … and length		narrower			checked
 *	integer, real		wider				cast
 *	text, varchar, name	wider				cast
 *	char(n)				text, varchar		cast; its padding is no part of the value
 *	other built-in		with a cast			checked, by the cast
 *	anything			text				checked, by text
 *	text				built in			checked, by text
 *	array, range		array, range		checked, by text
 *	text				enum, citext		text
 *	money				of another unit		checked, by its amount
 *	anything else							refused; by text with consent
 *
 * "Checked" means that a value is converted and converted back, and must be
 * equal, by its own type's "=", to what it was.  So a column of a wider type
 * than need be can be delivered as long as its values fit.  Moments without a
 * zone are taken to be of UTC.
 *
 * What the casts are is looked up here: those between types of initdb's list
 * are the same on every server.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "parser/parse_coerce.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "compat.h"
#include "transport/conversion.h"

/* Decimal digits that any value of an integer type may have. */
#define DIGITS_INT2		5
#define DIGITS_INT4		10
#define DIGITS_INT8		19

/* ------------------------------------------------------------------ facts */

/* Cut the text at the next bar; returns the part before it. */
static char *
next_part(char **rest)
{
	char	   *part = *rest;
	char	   *bar = strchr(part, '|');

	if (bar == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_ERROR),
				 errmsg("invalid description of a type")));
	*bar = '\0';
	*rest = bar + 1;
	return part;
}

/*
 * conversion.h has the contract.  The text may come from a target, so nothing
 * about it is taken for granted.
 */
void
psync_type_facts_parse(const char *text, PsyncTypeFacts *facts)
{
	char	   *rest;

	memset(facts, 0, sizeof(*facts));
	facts->money_digits = -1;
	facts->collation = "";
	if (text == NULL || text[0] == '\0')
		return;
	rest = pstrdup(text);
	facts->base = (Oid) strtoul(next_part(&rest), NULL, 10);
	facts->typmod = atoi(next_part(&rest));
	facts->kind = next_part(&rest)[0];
	facts->category = next_part(&rest)[0];
	facts->array = next_part(&rest)[0] == 't';
	facts->money_digits = atoi(next_part(&rest));
	facts->money_plain = next_part(&rest)[0] == 't';
	facts->parts = next_part(&rest);
	facts->structure = rest;
}

static bool
is_built_in(const PsyncTypeFacts *facts)
{
	return OidIsValid(facts->base) && facts->base < FirstGenbkiObjectId;
}

bool
psync_type_is_text(Oid type)
{
	return type == TEXTOID || type == VARCHAROID || type == BPCHAROID ||
		type == NAMEOID;
}

/* Text, or a type of an extension that holds text, such as citext. */
static bool
holds_text(const PsyncTypeFacts *facts)
{
	return psync_type_is_text(facts->base) ||
		(facts->kind == TYPTYPE_BASE && facts->category == TYPCATEGORY_STRING &&
		 !is_built_in(facts));
}

/* Numbers of this server's objects, or what is read as such. */
static bool
is_object(Oid type)
{
	switch (type)
	{
		case REGCLASSOID:
		case REGTYPEOID:
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGROLEOID:
		case REGNAMESPACEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
		case REGCOLLATIONOID:
			return true;
		default:
			return false;
	}
}

/* How many digits any value may have before the point; -1: any number. */
static int
integer_digits(const PsyncTypeFacts *facts)
{
	switch (facts->base)
	{
		case INT2OID:
			return DIGITS_INT2;
		case INT4OID:
			return DIGITS_INT4;
		case INT8OID:
			return DIGITS_INT8;
		case NUMERICOID:
			if (facts->typmod < 0)
				return -1;
			return psync_numeric_precision(facts->typmod) -
				psync_numeric_scale(facts->typmod);
		default:
			return -1;
	}
}

static bool
is_integer(Oid type)
{
	return type == INT2OID || type == INT4OID || type == INT8OID;
}

/* As numeric.c packs them; scales may be negative from version 15 on. */
int
psync_numeric_precision(int32 typmod)
{
	Assert(typmod >= 0);
	return ((typmod - VARHDRSZ) >> 16) & 0xffff;
}

int
psync_numeric_scale(int32 typmod)
{
	Assert(typmod >= 0);
	return (((typmod - VARHDRSZ) & 0x7ff) ^ 1024) - 1024;
}

/* ---------------------------------------------------------------- lengths */

/*
 * Could a value of the first type's length not fit into that of the second?
 * Both are of the same base type.
 */
static bool
narrows(const PsyncTypeFacts *source, const PsyncTypeFacts *target)
{
	int32		from = source->typmod;
	int32		to = target->typmod;

	if (to < 0 || from == to)
		return false;
	if (from < 0)
		return true;
	switch (source->base)
	{
		case NUMERICOID:
			return psync_numeric_scale(from) > psync_numeric_scale(to) ||
				integer_digits(source) > integer_digits(target);
		case VARCHAROID:
		case BPCHAROID:
		case VARBITOID:
		case TIMEOID:
		case TIMETZOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return from > to;
		default:
			return true;		/* bit(n) has exactly n, interval has fields */
	}
}

/* The function that makes values fit the type's length, or InvalidOid. */
static Oid
length_function(const PsyncTypeFacts *target)
{
	Oid			function;

	if (target->typmod < 0 || target->array ||
		find_typmod_coercion_function(target->base, &function) != COERCION_PATH_FUNC)
		return InvalidOid;
	return function;
}

/* ------------------------------------------------------------------ pairs */

static const char no_conversion[] = "there is no conversion between the two types";
static const char other_structure[] = "the two types have different structures";

/* What a value would lose, as a clause. */
static const char *
loss_of(const PsyncTypeFacts *source, const PsyncTypeFacts *target)
{
	if (psync_type_is_text(target->base))
		return "it is too long, or ends in blanks that the target's type would not keep";
	if (holds_text(source))
		return psprintf("invalid input syntax for type %s, out of range, or it would be written otherwise there",
						format_type_be(target->base));
	switch (target->base)
	{
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case NUMERICOID:
		case CASHOID:
			return "it has more digits than the target's type, or is out of its range";
		case FLOAT4OID:
		case FLOAT8OID:
			return "it has more digits than the target's type";
		case DATEOID:
			return "it has a time of day, which a date does not keep";
		case TIMEOID:
			if (source->base == TIMETZOID)
				return "its time zone is not UTC, and the target's type keeps none";
			return "it has a part that a time of day does not keep";
		case TIMETZOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return "it has more fractional digits than the target's type, or is out of its range";
		case JSONBOID:
			return "it has a key twice, of which jsonb keeps one, or what jsonb cannot hold";
		default:
			return "it would not be the same in the target's type";
	}
}

static void
set_checked(PsyncConversion *conversion, bool by_text)
{
	conversion->kind = PSYNC_CONVERSION_CHECKED;
	conversion->by_text = by_text;
	conversion->back_by_text = by_text;
	conversion->length = length_function(&conversion->target);
	conversion->reason = loss_of(&conversion->source, &conversion->target);
}

static void
set_refused(PsyncConversion *conversion, const char *reason)
{
	conversion->kind = PSYNC_CONVERSION_REFUSED;
	conversion->reason = reason;
}

/* Is there a cast from one to the other that is not by way of text? */
static bool
find_cast(Oid from, Oid to, Oid *function)
{
	CoercionPathType path;

	*function = InvalidOid;
	if (from == to)
		return true;
	path = find_coercion_pathway(to, from, COERCION_EXPLICIT, function);
	if (path == COERCION_PATH_FUNC)
		return true;
	*function = InvalidOid;
	return path == COERCION_PATH_RELABELTYPE;
}

/*
 * Can nothing be lost on the way from one built-in type to another, whatever
 * the value is?  Only casts that do not depend on settings.
 */
static bool
always_fits(const PsyncTypeFacts *source, const PsyncTypeFacts *target)
{
	Oid			from = source->base;
	Oid			to = target->base;

	if (is_integer(from) && is_integer(to))
		return integer_digits(source) <= integer_digits(target);
	if (is_integer(from) && to == NUMERICOID)
		return target->typmod < 0 ||
			(integer_digits(target) >= integer_digits(source) &&
			 psync_numeric_scale(target->typmod) >= 0);
	if (psync_type_is_text(from) && (to == TEXTOID || to == VARCHAROID))
		return target->typmod < 0 ||
			(from != NAMEOID && source->typmod >= 0 && source->typmod <= target->typmod);
	if (target->typmod >= 0)
		return false;
	return (from == FLOAT4OID && to == FLOAT8OID) ||
		(from == CIDROID && to == INETOID) ||
		(from == MACADDROID && to == MACADDR8OID) ||
		(from == BITOID && to == VARBITOID) ||
		(from == OIDOID && to == INT8OID);
}

/*
 * Pairs that are better converted by text, although some have casts: a
 * floating-point number is what its shortest text says, and the cast to numeric
 * gives less of it; integers turn into oids of quite other numbers.
 */
static bool
goes_by_text(const PsyncTypeFacts *source, const PsyncTypeFacts *target)
{
	Oid			from = source->base;
	Oid			to = target->base;

	if (holds_text(source) || psync_type_is_text(to))
		return true;
	if ((from == FLOAT4OID || from == FLOAT8OID) && to == NUMERICOID)
		return true;
	if (from == OIDOID || to == OIDOID)
		return is_integer(from) || is_integer(to);
	if ((from == JSONOID && to == JSONBOID) || (from == JSONBOID && to == JSONOID))
		return true;
	return (source->array && target->array) ||
		(source->kind == target->kind && source->kind != TYPTYPE_BASE &&
		 source->kind != TYPTYPE_COMPOSITE);
}

/*
 * Two types of initdb's list, of different structure.
 */
static void
decide_built_in(PsyncConversion *conversion)
{
	const PsyncTypeFacts *source = &conversion->source;
	const PsyncTypeFacts *target = &conversion->target;

	if (is_object(target->base) || (is_object(source->base) && !holds_text(target)))
		set_refused(conversion, "names and numbers of objects mean something on their own server only");
	else if (source->base == target->base)
		set_checked(conversion, source->array);
	else if (always_fits(source, target))
		conversion->kind = PSYNC_CONVERSION_CAST;
	else if (goes_by_text(source, target))
		set_checked(conversion, true);
	else if (find_cast(source->base, target->base, &conversion->forth))
	{
		set_checked(conversion, false);
		/* numeric comes back from floating point by its shortest text */
		conversion->back_by_text = source->base == NUMERICOID ||
			!find_cast(target->base, source->base, &conversion->back);
	}
	else
		set_refused(conversion, no_conversion);
}

/* Could an amount of money go there, or come from there? */
static bool
holds_amount(const PsyncTypeFacts *facts)
{
	return is_built_in(facts) &&
		(facts->base == CASHOID || facts->base == NUMERICOID ||
		 is_integer(facts->base) || holds_text(facts));
}

/*
 * Money becomes something else, or money of another unit: by way of its amount,
 * a numeric.
 */
static void
decide_amount(PsyncConversion *conversion)
{
	const PsyncTypeFacts *source = &conversion->source;
	const PsyncTypeFacts *target = &conversion->target;
	Oid			from = source->base == CASHOID ? NUMERICOID : source->base;
	Oid			to = target->base == CASHOID ? NUMERICOID : target->base;

	if (!holds_amount(source) || !holds_amount(target))
	{
		set_refused(conversion, no_conversion);
		return;
	}
	set_checked(conversion, holds_text(source) || holds_text(target));
	if (!conversion->by_text && (!find_cast(from, to, &conversion->forth) ||
								 !find_cast(to, from, &conversion->back)))
		set_refused(conversion, no_conversion);
}

/*
 * Where one of the two has money in it.  Its unit is a matter of each server's
 * lc_monetary; within a row it is captured as the C locale writes it.  False
 * if the pair is like any other.
 */
static bool
decide_money(PsyncConversion *conversion)
{
	const PsyncTypeFacts *source = &conversion->source;
	const PsyncTypeFacts *target = &conversion->target;
	bool		same = strcmp(source->structure, target->structure) == 0 &&
		source->money_digits == target->money_digits;
	bool		binary = is_built_in(source);

	if (source->money_digits < 0 && target->money_digits < 0)
		return false;
	if (source->base == CASHOID || target->base == CASHOID)
	{
		if (!same)
			decide_amount(conversion);
		return !same;
	}
	if ((same && (binary || (source->money_plain && target->money_plain))) ||
		psync_type_is_text(target->base))
		return false;
	set_refused(conversion, "it has amounts of type money in it, which the two servers' lc_monetary write in different ways");
	return true;
}

/*
 * What is not of the same structure, and not of two built-in types.
 */
static void
decide_other(PsyncConversion *conversion)
{
	const PsyncTypeFacts *source = &conversion->source;
	const PsyncTypeFacts *target = &conversion->target;

	if (is_built_in(target) && psync_type_is_text(target->base))
		set_checked(conversion, true);
	else if (is_built_in(target) && source->array && target->array)
		set_checked(conversion, true);
	else if (holds_text(target) ||
			 (holds_text(source) && target->kind == TYPTYPE_ENUM))
		conversion->kind = PSYNC_CONVERSION_TEXT;
	else if (conversion->lossy)
	{
		conversion->kind = PSYNC_CONVERSION_TEXT;
		conversion->reason = other_structure;
	}
	else
		set_refused(conversion, other_structure);
}

/*
 * The rest of *conversion from its facts.  "lossy": whether the target's
 * options consent to loss.  In the current memory context; needs a transaction.
 */
void
psync_conversion_decide(PsyncConversion *conversion, bool lossy)
{
	const PsyncTypeFacts *source = &conversion->source;
	const PsyncTypeFacts *target = &conversion->target;

	conversion->kind = PSYNC_CONVERSION_EXACT;
	conversion->lossy = lossy;
	conversion->reason = NULL;
	conversion->forth = conversion->back = conversion->length = InvalidOid;
	if (!OidIsValid(source->base) || !OidIsValid(target->base))
	{
		conversion->kind = PSYNC_CONVERSION_TEXT;	/* of a type that is gone */
		return;
	}
	if (decide_money(conversion) || strcmp(source->structure, target->structure) == 0)
		return;
	if (source->base == target->base && is_built_in(source) && !source->array &&
		!narrows(source, target))
		return;
	if (is_built_in(source) && is_built_in(target) &&
		SearchSysCacheExists1(TYPEOID, ObjectIdGetDatum(target->base)))
		decide_built_in(conversion);
	else
		decide_other(conversion);
}

/* ------------------------------------------------------------------- keys */

/*
 * conversion.h has the contract.  "collation" is that of the target's index.
 * Values that change are refused one by one; here it is about those that do
 * not change, and still are equal to others there.
 */
bool
psync_conversion_merges_keys(const PsyncConversion *conversion,
							 const char *collation)
{
	const PsyncTypeFacts *source = &conversion->source;
	const PsyncTypeFacts *target = &conversion->target;

	if (collation[0] != '\0' && strcmp(collation, source->collation) != 0)
		return true;
	return !is_built_in(target) && holds_text(target) &&
		strcmp(source->structure, target->structure) != 0;
}
