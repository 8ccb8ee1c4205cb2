/*
 * conversion.h
 *		What a value of one type becomes as a value of another (P12).
 *
 * One decision for delivery and for proof: a transport asks it how a column
 * travels, reconciliation asks it what counts as equal.  It speaks of types
 * alone; what SQL or protocol carries it out is the business of who asks.
 *
 * Types of two servers are compared by facts, which each server's catalogs
 * tell in the same way: PSYNC_TYPE_FACTS below.  Oids mean the same on both
 * only below FirstGenbkiObjectId, so facts name other types by their structure.
 */
#ifndef PSYNC_CONVERSION_H
#define PSYNC_CONVERSION_H

#include "lib/stringinfo.h"

#include "transport/payment_sync_transport.h"

/* What the catalogs of a server say of a column's type. */
typedef struct PsyncTypeFacts
{
	Oid			base;			/* what domains are over; InvalidOid: the type is
								 * not known */
	int32		typmod;			/* of that */
	char		kind;			/* as pg_type.typtype, of that */
	char		category;		/* as pg_type.typcategory */
	bool		array;			/* an array of some type */
	int			money_digits;	/* after the point, where money is in it; else -1 */
	bool		money_plain;	/* money is written as in the C locale */
	char	   *parts;			/* oids of the types within it */
	char	   *structure;		/* see above; domains do not show */
	char	   *collation;		/* "", or what a nondeterministic one consists of */
} PsyncTypeFacts;

typedef enum PsyncConversionKind
{
	PSYNC_CONVERSION_EXACT,		/* the same bits */
	PSYNC_CONVERSION_CAST,		/* by a cast that loses nothing, whatever the value
								 * and the session */
	PSYNC_CONVERSION_CHECKED,	/* may lose: value by value is converted here, and
								 * refused if it does not come back as it was */
	PSYNC_CONVERSION_TEXT,		/* by text, which the target's type reads as it
								 * stands or not at all */
	PSYNC_CONVERSION_REFUSED	/* may lose in ways that no value shows, or cannot
								 * be done at all */
} PsyncConversionKind;

typedef struct PsyncConversion
{
	PsyncConversionKind kind;
	bool		lossy;			/* the target's options consent to loss */
	const char *reason;			/* why the pair, or a value, is refused: a clause
								 * for a message; NULL if nothing can be lost */
	PsyncTypeFacts source;
	PsyncTypeFacts target;

	/* if CHECKED */
	bool		by_text;		/* else by the cast */
	Oid			forth;			/* the cast's function; InvalidOid: same bits */
	bool		back_by_text;
	Oid			back;			/* likewise, in the other direction */
	Oid			length;			/* function that applies the target's typmod, or
								 * InvalidOid */
} PsyncConversion;

/*
 * What the core offers to transports about conversions.  Memory comes from the
 * current context.
 */
typedef struct PsyncConversions
{
	/* The facts of a shape's columns, an entry each. */
	void		(*source_facts) (const PsyncShape *shape, PsyncTypeFacts *facts);

	/* The functions below. */
	void		(*parse_facts) (const char *text, PsyncTypeFacts *facts);
	void		(*decide) (PsyncConversion *conversion, bool lossy);
	bool		(*merges_keys) (const PsyncConversion *conversion,
								const char *collation);

	/*
	 * Append a value, as a field of an image (length and bytes), as it becomes
	 * by a conversion that is CHECKED, in the binary form of the target's base
	 * type, or by TEXT, as text.  "column" is the source's.  False if it would
	 * lose something: then the caller must raise an error.
	 */
	bool		(*convert) (const PsyncConversion *conversion,
							const PsyncColumn *column, const char *value,
							int32 size, StringInfo out);
} PsyncConversions;

extern const PsyncConversions psync_conversions;

extern void psync_conversion_decide(PsyncConversion *conversion, bool lossy);

/* Could two keys that differ at the source be equal at the target? */
extern bool psync_conversion_merges_keys(const PsyncConversion *conversion,
										 const char *collation);

/* Facts from their text; NULL or "": the type is not known. */
extern void psync_type_facts_parse(const char *text, PsyncTypeFacts *facts);

/* Types that hold text, of any length or of some. */
extern bool psync_type_is_text(Oid type);

/* Of a numeric's typmod. */
extern int	psync_numeric_precision(int32 typmod);
extern int	psync_numeric_scale(int32 typmod);

/*
 * Facts of a collation, as SQL: an empty string if it tells all strings apart,
 * else all that it consists of.
 */
#define PSYNC_COLLATION_FACTS(collation) \
	"COALESCE((SELECT CASE WHEN l.collisdeterministic THEN '' ELSE" \
	" (pg_catalog.to_jsonb(l) - '{oid,collname,collnamespace,collowner,collversion,collencoding}'::text[])::text" \
	" END FROM pg_catalog.pg_collation l WHERE l.oid = " collation "), '')"

/*
 * Facts of the type of column "a" (atttypid, atttypmod), as one text: the type
 * is taken apart, domains replaced by what they are over, and each part
 * noted with its depth.  Types of initdb's own list are noted by oid, others by
 * what they are made of, or if they are made of nothing, by name.
 *
 * For money, the text tells how the server writes it: its unit is a matter of
 * lc_monetary.
 */
#define PSYNC_TYPE_FACTS \
	"(WITH RECURSIVE part(path, depth, type, typmod, label, top) AS (" \
	"SELECT '{}'::int[], 0, a.atttypid, a.atttypmod, ''::text COLLATE \"C\", true" \
	" UNION ALL SELECT p.path || c.n, c.depth, c.type, c.typmod, c.label, c.top" \
	" FROM part p JOIN pg_catalog.pg_type t ON t.oid = p.type CROSS JOIN LATERAL (" \
	"SELECT 0 AS n, p.depth AS depth, t.typbasetype AS type," \
	" CASE WHEN t.typtypmod >= 0 THEN t.typtypmod ELSE p.typmod END AS typmod," \
	" p.label AS label, p.top AS top WHERE t.typtype = 'd'" \
	" UNION ALL SELECT 0, p.depth + 1, t.typelem, p.typmod, '', false" \
	" WHERE t.typtype = 'b' AND t.typcategory = 'A' AND t.typlen = -1 AND t.oid NOT IN (22, 30)" \
	" UNION ALL SELECT 0, p.depth + 1, r.rngsubtype, -1, '', false" \
	" FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid AND t.oid >= 10000" \
	" UNION ALL SELECT 0, p.depth + 1, r.rngtypid, -1, '', false" \
	" FROM pg_catalog.pg_range r WHERE t.typtype = 'm' AND t.oid >= 10000" \
	" AND (pg_catalog.to_jsonb(r) ->> 'rngmultitypid')::oid = t.oid" \
	" UNION ALL SELECT f.attnum::int, p.depth + 1, f.atttypid, f.atttypmod, f.attname::text, false" \
	" FROM pg_catalog.pg_attribute f WHERE t.typtype = 'c' AND f.attrelid = t.typrelid" \
	" AND f.attnum > 0 AND NOT f.attisdropped) c)," \
	" known AS (SELECT p.*, t.typtype, t.typcategory," \
	" t.typtype = 'b' AND t.typcategory = 'A' AND t.typlen = -1 AND t.oid NOT IN (22, 30) AS is_array," \
	" pg_catalog.format('%s:%s%s', p.depth, CASE WHEN p.label <> '' THEN pg_catalog.quote_ident(p.label) || ' ' END," \
	" CASE WHEN t.typtype = 'e' THEN 'enum' WHEN t.typtype = 'c' THEN 'row'" \
	" WHEN t.typtype = 'b' AND t.typcategory = 'A' AND t.typlen = -1 AND t.oid NOT IN (22, 30) THEN 'array'" \
	" WHEN t.oid < 10000 THEN pg_catalog.format('%s(%s)', t.oid, p.typmod)" \
	" WHEN t.typtype = 'r' THEN 'range' WHEN t.typtype = 'm' THEN 'multirange'" \
	" ELSE pg_catalog.format('%I.%I', n.nspname, t.typname) END) AS note" \
	" FROM part p JOIN pg_catalog.pg_type t ON t.oid = p.type" \
	" JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace)," \
	" whole AS (SELECT pg_catalog.bool_or(k.type = 790) AS money," \
	" pg_catalog.string_agg(k.type::text, ',' ORDER BY k.path) FILTER (WHERE NOT k.top) AS parts," \
	" pg_catalog.string_agg(k.note, ' ' ORDER BY k.path) FILTER (WHERE k.typtype <> 'd') AS structure" \
	" FROM known k)" \
	" SELECT pg_catalog.format('%s|%s|%s|%s|%s|%s|%s|%s|%s', k.type, k.typmod, k.typtype, k.typcategory, k.is_array," \
	" CASE WHEN w.money THEN pg_catalog.scale('0'::pg_catalog.money::numeric) ELSE -1 END," \
	" w.money AND (-1234.56)::numeric::pg_catalog.money::text = '-$1,234.56', w.parts, w.structure)" \
	" FROM known k, whole w WHERE k.top AND k.typtype <> 'd')"

#endif							/* PSYNC_CONVERSION_H */
