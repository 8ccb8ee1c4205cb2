/*
 * repair_source.c
 *		Mending the source: repair(…, direction => 'source').
 *
 * The target is right.  For each open discrepancy one ordinary statement makes
 * the source's row what the target's was found to be.  It runs in the caller's
 * name, under the caller's settings, so privileges, row security and triggers
 * are those of any statement of theirs; it is captured like one, too, and goes
 * to all syncs.  At the target that was taken for right it changes nothing.
 *
 * Guard.  The statement's own condition says what the source's row was when
 * the discrepancy was found, column by column; PostgreSQL evaluates it anew
 * under the row's lock (in READ COMMITTED), so a row that has changed since is
 * left alone.  A row that was not there is inserted unless something is in the
 * way.  So what a dry run shows may be run by hand as well.
 *
 * A row that a constraint or a trigger refuses is reported, and does not keep
 * the others from being mended.  Any other error ends the whole.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/typcache.h"

#include "capture/capture.h"
#include "base/attempt.h"
#include "compat.h"
#include "reconcile/reconcile.h"
#include "sync/admin.h"

/* Discrepancies handled in one go. */
#define PSYNC_REPAIR_BATCH	100

/* A JSON value of a json column is its own text, not what it stands for. */
#define VALUES_OF(row) \
	"CASE WHEN " row " IS NOT NULL THEN ARRAY(SELECT CASE WHEN c.json" \
	" THEN NULLIF((" row " -> c.name::text)::text, 'null') ELSE " row " ->> c.name::text END" \
	" FROM unnest($4, $5) WITH ORDINALITY c (name, json, n) ORDER BY c.n) END"

/* What stands for a value that was too large to be recorded; see record.c. */
#define IS_SHORT(value) \
	"(jsonb_typeof(" value ") = 'object' AND (NOT c.json" \
	" OR " value " ?& '{bytes,hash,begins}'))"

static const char load_command[] =
	"SELECT d.id, d.kind, d.key, d.target, " VALUES_OF("d.source") ", " VALUES_OF("d.target") ","
	" ARRAY(SELECT c.name = ANY (d.columns) FROM unnest($4) WITH ORDINALITY c (name, n)"
	"  ORDER BY c.n),"
	" (SELECT count(*) FROM jsonb_object_keys(COALESCE(d.source, d.target)) k"
	"  WHERE k <> ALL ($4::text[])) + cardinality($4) -"
	" (SELECT count(*) FROM unnest($4) c WHERE COALESCE(d.source, d.target) ? c::text),"
	" (SELECT c.name FROM unnest($4, $5) c (name, json)"
	"  WHERE " IS_SHORT("d.source -> c.name::text") " OR " IS_SHORT("d.target -> c.name::text") " LIMIT 1)"
	" FROM payment_sync.discrepancy d"
	" WHERE d.sync = $1 AND d.relid = $2 AND d.last_run = $3 AND d.state = 'open'"
	" AND d.id > $6 ORDER BY d.id LIMIT $7";

typedef struct PsyncSourceColumn
{
	char	   *name;			/* as discrepancies have it */
	char	   *quoted;			/* as it is now */
	char	   *type;			/* qualified; no modifier: what is too long is to
								 * be refused, not cut */
	bool		key;
	bool		generated;
	bool		always;			/* identity that only INSERT may set */
	bool		json;
	bool		comparable;		/* its type has an equality */
} PsyncSourceColumn;

typedef struct PsyncSourceBreak
{
	int64		id;
	char	   *kind;
	Datum		key;			/* jsonb */
	Datum		row;			/* jsonb of the target's; 0: it has none */
	char	  **source;			/* per column; NULL: no such row */
	char	  **target;
	bool	   *differs;
	bool		outdated;		/* the table had other columns then */
	char	   *too_large;		/* a column whose value is not recorded, or NULL */
} PsyncSourceBreak;

typedef struct PsyncSourceRepair
{
	const PsyncSync *sync;
	Oid			relid;
	const char *from;			/* quoted */
	bool		only;			/* a plain table: not its children */
	int			ncolumns;
	PsyncSourceColumn *columns;
	bool		dry_run;
	Tuplestorestate *store;
	TupleDesc	desc;
} PsyncSourceRepair;

/* ---------------------------------------------------------------- reading */

/*
 * What the statements need to know of the captured columns.
 */
static void
describe_columns(PsyncSourceRepair *repair, Relation rel, const PsyncShape *shape)
{
	repair->ncolumns = shape->ncolumns;
	repair->columns = palloc0(shape->ncolumns * sizeof(PsyncSourceColumn));
	for (int i = 0; i < shape->ncolumns; i++)
	{
		const PsyncColumn *column = &shape->columns[i];
		PsyncSourceColumn *mine = &repair->columns[i];
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), column->attnum - 1);
		Oid			base = getBaseType(att->atttypid);

		Assert(!att->attisdropped);
		mine->name = pstrdup(NameStr(att->attname));
		mine->quoted = pstrdup(quote_identifier(mine->name));
		mine->type = format_type_extended(att->atttypid, -1,
										  FORMAT_TYPE_TYPEMOD_GIVEN | FORMAT_TYPE_FORCE_QUALIFY);
		mine->key = column->key;
		mine->generated = att->attgenerated != '\0';
		mine->always = att->attidentity == ATTRIBUTE_IDENTITY_ALWAYS;
		mine->json = base == JSONOID || base == JSONBOID;
		mine->comparable = OidIsValid(lookup_type_cache(att->atttypid, TYPECACHE_EQ_OPR)->eq_opr);
	}
}

/*
 * A text[] that may hold nulls, as C strings; NULL for a null.
 */
static char **
read_values(HeapTuple row, int column, int expected)
{
	bool		isnull;
	Datum		value = SPI_getbinval(row, SPI_tuptable->tupdesc, column, &isnull);
	Datum	   *elems;
	bool	   *nulls;
	char	  **result;
	int			n;

	if (isnull)
		return NULL;
	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false, TYPALIGN_INT,
					  &elems, &nulls, &n);
	Assert(n == expected);
	result = palloc(n * sizeof(char *));
	for (int i = 0; i < n; i++)
		result[i] = nulls[i] ? NULL : TextDatumGetCString(elems[i]);
	return result;
}

/*
 * One row of load_command, in the current memory context.
 */
static void
read_break(const PsyncSourceRepair *repair, HeapTuple row, PsyncSourceBreak *b)
{
	TupleDesc	desc = SPI_tuptable->tupdesc;
	bool		isnull;
	Datum		value;
	Datum	   *elems;
	int			n;

	b->id = DatumGetInt64(SPI_getbinval(row, desc, 1, &isnull));
	b->kind = SPI_getvalue(row, desc, 2);
	b->key = PointerGetDatum(PG_DETOAST_DATUM_COPY(SPI_getbinval(row, desc, 3, &isnull)));
	value = SPI_getbinval(row, desc, 4, &isnull);
	b->row = isnull ? (Datum) 0 : PointerGetDatum(PG_DETOAST_DATUM_COPY(value));
	b->source = read_values(row, 5, repair->ncolumns);
	b->target = read_values(row, 6, repair->ncolumns);
	deconstruct_array(DatumGetArrayTypeP(SPI_getbinval(row, desc, 7, &isnull)), BOOLOID,
					  sizeof(bool), true, TYPALIGN_CHAR, &elems, NULL, &n);
	Assert(n == repair->ncolumns);
	b->differs = palloc(n * sizeof(bool));
	for (int i = 0; i < n; i++)
		b->differs[i] = DatumGetBool(elems[i]);
	b->outdated = DatumGetInt64(SPI_getbinval(row, desc, 8, &isnull)) != 0;
	b->too_large = SPI_getvalue(row, desc, 9);
	Assert(b->source != NULL || b->target != NULL);
}

/*
 * The next batch of open discrepancies after "after", and how many they are.
 */
static int
load_breaks(const PsyncSourceRepair *repair, int64 run, int64 after,
			PsyncSourceBreak *breaks)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[7] = {UUIDOID, OIDOID, INT8OID, NAMEARRAYOID, BOOLARRAYOID, INT8OID, INT8OID};
	Datum		values[7];
	Datum	   *json = palloc(repair->ncolumns * sizeof(Datum));
	List	   *names = NIL;
	int			n;

	for (int i = 0; i < repair->ncolumns; i++)
	{
		names = lappend(names, repair->columns[i].name);
		json[i] = BoolGetDatum(repair->columns[i].json);
	}
	values[0] = UUIDPGetDatum(&repair->sync->id);
	values[1] = ObjectIdGetDatum(repair->relid);
	values[2] = Int64GetDatum(run);
	values[3] = psync_name_array(names);
	values[4] = PointerGetDatum(construct_array(json, repair->ncolumns, BOOLOID, sizeof(bool),
												true, TYPALIGN_CHAR));
	values[5] = Int64GetDatum(after);
	values[6] = Int64GetDatum(PSYNC_REPAIR_BATCH);
	n = (int) psync_owner_execute(load_command, 7, types, values, NULL);
	Assert(n <= PSYNC_REPAIR_BATCH);
	for (int i = 0; i < n; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		read_break(repair, SPI_tuptable->vals[i], &breaks[i]);
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	return n;
}

/* -------------------------------------------------------------- statements */

/*
 * "'12.5'::pg_catalog.numeric(14,2)".
 */
static void
append_value(StringInfo buf, const PsyncSourceColumn *column, const char *value)
{
	if (value == NULL)
		appendStringInfoString(buf, "NULL");
	else
		appendStringInfo(buf, "%s::%s", quote_literal_cstr(value), column->type);
}

/*
 * "t.c IS NOT DISTINCT FROM value"; of types without equality, by their texts.
 */
static void
append_same(StringInfo buf, const PsyncSourceColumn *column, const char *value)
{
	const char *cast = column->json ? "::jsonb" : "::text";

	if (value == NULL)
		appendStringInfo(buf, "t.%s IS NULL", column->quoted);
	else if (column->comparable)
	{
		appendStringInfo(buf, "t.%s = ", column->quoted);
		append_value(buf, column, value);
	}
	else
	{
		appendStringInfo(buf, "t.%s%s = ", column->quoted, cast);
		append_value(buf, column, value);
		appendStringInfoString(buf, cast);
	}
}

/* The guard: the row is still what it was, generated columns included. */
static void
append_guard(StringInfo buf, const PsyncSourceRepair *repair, const PsyncSourceBreak *b)
{
	Assert(b->source != NULL);

	/* the key first, for people */
	for (int pass = 0; pass < 2; pass++)
	{
		for (int i = 0; i < repair->ncolumns; i++)
		{
			if (repair->columns[i].key != (pass == 0))
				continue;
			appendStringInfoString(buf, buf->data[buf->len - 1] == 'E' ? " " : " AND ");
			append_same(buf, &repair->columns[i], b->source[i]);
		}
	}
}

/*
 * All columns that may be given.
 */
static void
append_insert(StringInfo buf, const PsyncSourceRepair *repair, const PsyncSourceBreak *b)
{
	bool		first = true;

	Assert(b->target != NULL);

	appendStringInfo(buf, "INSERT INTO %s (", repair->from);
	for (int i = 0; i < repair->ncolumns; i++)
	{
		if (repair->columns[i].generated)
			continue;
		appendStringInfo(buf, "%s%s", first ? "" : ", ", repair->columns[i].quoted);
		first = false;
	}
	appendStringInfoString(buf, ") OVERRIDING SYSTEM VALUE VALUES (");
	first = true;
	for (int i = 0; i < repair->ncolumns; i++)
	{
		if (repair->columns[i].generated)
			continue;
		appendStringInfoString(buf, first ? "" : ", ");
		append_value(buf, &repair->columns[i], b->target[i]);
		first = false;
	}
	appendStringInfoString(buf, ") ON CONFLICT DO NOTHING");
}

/*
 * The columns that differ, as far as they may be set.  False if there are
 * none.
 */
static bool
append_update(StringInfo buf, const PsyncSourceRepair *repair, const PsyncSourceBreak *b)
{
	bool		any = false;

	appendStringInfo(buf, "UPDATE %s%s t SET ", repair->only ? "ONLY " : "", repair->from);
	for (int i = 0; i < repair->ncolumns; i++)
	{
		const PsyncSourceColumn *column = &repair->columns[i];

		if (!b->differs[i] || column->generated || column->always)
			continue;
		appendStringInfo(buf, "%s%s = ", any ? ", " : "", column->quoted);
		append_value(buf, column, b->target[i]);
		any = true;
	}
	appendStringInfoString(buf, " WHERE");
	append_guard(buf, repair, b);
	return any;
}

/*
 * JSON that jsonb cannot hold is recorded as a string of its text, which cannot
 * be told from JSON that is such a string.  Name of a column whose value looks
 * so; NULL if there is none.
 */
static const char *
unclear_json(const PsyncSourceRepair *repair, char **values)
{
	for (int i = 0; values != NULL && i < repair->ncolumns; i++)
	{
		if (repair->columns[i].json && values[i] != NULL && values[i][0] == '"' &&
			values[i][1] != '\0' && strchr("{[\\ ", values[i][1]) != NULL)
			return repair->columns[i].name;
	}
	return NULL;
}

/*
 * What would make the source's row the target's; NULL if nothing can, and
 * *reason says why.
 */
static char *
make_statement(const PsyncSourceRepair *repair, const PsyncSourceBreak *b,
			   const char **operation, const char **reason)
{
	const char *unclear = unclear_json(repair, b->source);
	StringInfoData buf;

	*operation = "none";
	if (b->outdated)
	{
		*reason = "the table's columns have changed since";
		return NULL;
	}
	if (b->too_large != NULL)
	{
		*reason = psprintf("a value of column \"%s\" is too large to be recorded", b->too_large);
		return NULL;
	}
	if (unclear == NULL)
		unclear = unclear_json(repair, b->target);
	if (unclear != NULL)
	{
		*reason = psprintf("a value of column \"%s\" is recorded as text, which jsonb cannot hold as JSON",
						   unclear);
		return NULL;
	}
	initStringInfo(&buf);
	if (b->source == NULL)
	{
		append_insert(&buf, repair, b);
		*operation = "insert";
	}
	else if (b->target == NULL)
	{
		appendStringInfo(&buf, "DELETE FROM %s%s t WHERE", repair->only ? "ONLY " : "",
						 repair->from);
		append_guard(&buf, repair, b);
		*operation = "delete";
	}
	else if (append_update(&buf, repair, b))
		*operation = "update";
	else
	{
		*reason = "only columns differ that the server itself fills in";
		return NULL;
	}
	return buf.data;
}

/* -------------------------------------------------------------- execution */

/*
 * In the caller's name.  Returns how many rows it was about.
 */
static uint64
execute(const char *sql)
{
	uint64		processed;
	int			ret;

	SPI_connect();
	ret = SPI_execute(sql, false, 0);
	if (ret < 0)
		elog(ERROR, "could not execute a repair: %s", SPI_result_code_string(ret));
	processed = SPI_processed;
	SPI_finish();
	return processed;
}

/* A row that was refused is no reason to give up the others. */
static bool
is_refusal(const ErrorData *error)
{
	return ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION ||
		error->sqlerrcode == ERRCODE_RAISE_EXCEPTION;
}

typedef struct PsyncStatementAttempt
{
	const char *sql;
	uint64		rows;
} PsyncStatementAttempt;

static void
attempt_statement(void *arg)
{
	PsyncStatementAttempt *attempt = arg;

	attempt->rows = execute(attempt->sql);
}

/*
 * The statement in a subtransaction: NULL, or why nothing has come of it.
 */
static const char *
execute_guarded(const char *sql, const char *nothing)
{
	PsyncStatementAttempt attempt = {sql, 0};
	bool		late;
	ErrorData  *error = psync_attempt(attempt_statement, &attempt, &late);

	if (error == NULL)
		return attempt.rows == 0 ? nothing : NULL;
	if (!is_refusal(error))
		ReThrowError(error);
	return error->message;
}

/*
 * Is the row what the discrepancy says?  Looks only.
 */
static bool
would_apply(const PsyncSourceRepair *repair, const PsyncSourceBreak *b)
{
	StringInfoData buf;
	bool		is_new = b->source == NULL;

	initStringInfo(&buf);
	appendStringInfo(&buf, "SELECT FROM %s%s t WHERE", repair->only ? "ONLY " : "", repair->from);
	if (!is_new)
		append_guard(&buf, repair, b);
	for (int i = 0; is_new && i < repair->ncolumns; i++)
	{
		if (!repair->columns[i].key)
			continue;
		appendStringInfoString(&buf, buf.data[buf.len - 1] == 'E' ? " " : " AND ");
		append_same(&buf, &repair->columns[i], b->target[i]);
	}
	return (execute(buf.data) > 0) != is_new;
}

/*
 * It is on its way, as far as the books are concerned: the next run will say
 * whether the two agree.
 */
static void
mark_repairing(const PsyncSourceBreak *b)
{
	Oid			types[2] = {INT8OID, NAMEOID};
	Datum		values[2];
	NameData	user;

	namestrcpy(&user, GetUserNameFromId(GetUserId(), false));
	values[0] = Int64GetDatum(b->id);
	values[1] = NameGetDatum(&user);
	(void) psync_owner_execute("UPDATE payment_sync.discrepancy SET state = 'repairing',"
							   " changed_by = $2, changed_at = clock_timestamp()"
							   " WHERE id = $1 AND state = 'open'", 2, types, values, NULL);
	SPI_finish();
}

/* One discrepancy: what is done, or why not, becomes a row of the result. */
static void
repair_one(const PsyncSourceRepair *repair, const PsyncSourceBreak *b)
{
	Datum		values[7];
	bool		nulls[7] = {false};
	const char *operation;
	const char *reason = NULL;
	const char *nothing = b->source == NULL ?
		"the source has a row by now, or one with the same unique values" :
		"the source's row has changed since";
	char	   *sql = make_statement(repair, b, &operation, &reason);

	if (sql != NULL && repair->dry_run)
		reason = would_apply(repair, b) ? NULL : nothing;
	else if (sql != NULL)
		reason = execute_guarded(sql, nothing);
	if (reason != NULL)
		operation = "none";
	else if (!repair->dry_run)
		mark_repairing(b);

	values[0] = ObjectIdGetDatum(repair->relid);
	values[1] = b->key;
	values[2] = CStringGetTextDatum(b->kind);
	values[3] = CStringGetTextDatum(operation);
	values[4] = b->row;
	nulls[4] = b->row == (Datum) 0;
	nulls[5] = sql == NULL;
	values[5] = sql != NULL ? CStringGetTextDatum(sql) : (Datum) 0;
	nulls[6] = reason == NULL;
	values[6] = reason != NULL ? CStringGetTextDatum(reason) : (Datum) 0;
	Assert(repair->desc->natts == lengthof(values));
	tuplestore_putvalues(repair->store, repair->desc, values, nulls);
}

/*
 * All open discrepancies that the run has seen in this table, in the order in
 * which they were found.
 */
void
psync_repair_source(const PsyncSync *sync, const PsyncTable *table, int64 run,
					bool dry_run, Tuplestorestate *store, TupleDesc desc)
{
	PsyncSourceRepair repair = {.sync = sync, .relid = table->relid, .dry_run = dry_run,
	.store = store, .desc = desc};
	Relation	rel = table_open(table->relid, AccessShareLock);
	PsyncCaptureRel *crel = psync_rel_cache_get(rel);
	PsyncSourceBreak breaks[PSYNC_REPAIR_BATCH];
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "payment_sync repair batch",
												  ALLOCSET_DEFAULT_SIZES);
	int64		after = 0;
	int			n;

	if (!crel->captured)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" is not captured", table->source_name)));
	repair.only = rel->rd_rel->relkind == RELKIND_RELATION;
	repair.from = quote_qualified_identifier(table->source_schema, table->source_name);
	describe_columns(&repair, rel,
					 psync_capture_rel_for_query(rel, CurrentMemoryContext)->shape);
	do
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		n = load_breaks(&repair, run, after, breaks);
		for (int i = 0; i < n; i++)
		{
			CHECK_FOR_INTERRUPTS();
			repair_one(&repair, &breaks[i]);
		}
		if (n > 0)
			after = breaks[n - 1].id;
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
	} while (n > 0);
	MemoryContextDelete(context);
	table_close(rel, NoLock);
}
