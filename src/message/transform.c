/*
 * transform.c
 *		The subscriber's SQL expression that makes the body of an event.
 *
 * The expression sees the event as jsonb, as $1 or by the name event, and
 * yields jsonb, text or bytea; NULL leaves the event out.
 *
 * It is evaluated with the rights of the sync's owner and nothing more: as
 * that role, in a security-restricted operation, with a pinned search_path,
 * so that neither the worker's rights nor the caller's are lent to it.  It may
 * read tables; it should depend on nothing but the event, or the same event
 * sent again after a crash might look different.
 *
 * Its time is limited (event.c).
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/plancache.h"

#include "compat.h"
#include "message/message.h"

/* Made once per delivery. */
struct PsyncTransform
{
	char	   *expression;		/* as the subscriber wrote it */
	char	   *query;			/* that evaluates it */
	Oid			owner;			/* of the sync: whose rights it has */
	SPIPlanPtr	plan;			/* NULL: not yet prepared */
	Oid			type;			/* of the result */
	MemoryContextCallback on_reset;
};

/* Become the owner, with SPI connected; an error leaves all to the abort. */
static void
enter(PsyncRole *role, Oid owner)
{
	psync_role_become(role, owner, PSYNC_ROLE_USER_CODE);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
}

static void
leave(const PsyncRole *role)
{
	SPI_finish();
	psync_role_return(role);
}

/* The transform's memory goes; its plan, which is the server's, with it. */
static void
free_plan(void *arg)
{
	PsyncTransform *transform = arg;

	if (transform->plan != NULL)
		SPI_freeplan(transform->plan);
}

/*
 * Parse and plan the expression.  What it yields is known then; and that it is
 * one expression, not a way out of the parentheses into a statement of its
 * own.
 */
static void
prepare(PsyncTransform *transform)
{
	Oid			types[1] = {JSONBOID};
	CachedPlanSource *source;
	TupleDesc	desc;

	SPIPlanPtr	plan = SPI_prepare(transform->query, 1, types);

	Assert(transform->plan == NULL);
	if (plan == NULL)
		elog(ERROR, "could not prepare transform: %s",
			 SPI_result_code_string(SPI_result));
	source = linitial(SPI_plan_get_plan_sources(plan));
	desc = source->resultDesc;
	if (list_length(SPI_plan_get_plan_sources(plan)) != 1 ||
		desc == NULL || desc->natts != 1)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("transform must be one expression"),
				 errdetail("It is: %s", transform->expression)));
	transform->type = TupleDescAttr(desc, 0)->atttypid;
	if (transform->type != JSONBOID && transform->type != TEXTOID &&
		transform->type != BYTEAOID)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("transform yields type %s",
						format_type_be(transform->type)),
				 errhint("It must yield jsonb, text or bytea.")));
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "could not keep plan of transform");
	transform->plan = plan;
}

/*
 * Made in the current memory context, with which it is freed; prepared when it
 * is first run.
 */
PsyncTransform *
psync_transform_create(const char *expression, Oid owner)
{
	PsyncTransform *transform = palloc0(sizeof(PsyncTransform));

	transform->expression = pstrdup(expression);
	transform->owner = owner;

	/* the line breaks end a comment within the expression */
	transform->query = psprintf("SELECT (\n%s\n) FROM (SELECT $1 AS event) AS e",
								expression);
	transform->on_reset.func = free_plan;
	transform->on_reset.arg = transform;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &transform->on_reset);
	return transform;
}

/*
 * The result of the expression, appended to "body" in UTF-8; false if NULL.
 * jsonb and text of a database with another encoding are converted.
 */
static void
append_result(StringInfo body, Oid type, Datum value)
{
	if (type == BYTEAOID)
	{
		bytea	   *bytes = DatumGetByteaPP(value);

		psync_json_put(body, VARDATA_ANY(bytes), VARSIZE_ANY_EXHDR(bytes));
	}
	else
	{
		char	   *result = type == TEXTOID ? TextDatumGetCString(value) :
			DatumGetCString(DirectFunctionCall1(jsonb_out, value));

		psync_json_plain_utf8(body, result);
	}
}

/*
 * The envelope as jsonb, in the database's encoding.
 */
static Datum
parse_event(const char *event, int size)
{
	char	   *copy = pnstrdup(event, size);
	char	   *converted = pg_any_to_server(copy, size, PG_UTF8);

	return DirectFunctionCall1(jsonb_in, CStringGetDatum(converted));
}

/*
 * Evaluate the expression; the result is SPI's.
 */
static Datum
evaluate(PsyncTransform *transform, Datum event, bool *isnull)
{
	Datum		values[1] = {event};

	if (transform->plan == NULL)
		prepare(transform);
	if (SPI_execute_plan(transform->plan, values, NULL, false, 2) != SPI_OK_SELECT ||
		SPI_processed != 1)
		ereport(ERROR,
				(errcode(ERRCODE_CARDINALITY_VIOLATION),
				 errmsg("transform must yield one value")));
	return SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, isnull);
}

/*
 * Append to "body" what the expression makes of the event; false if it leaves
 * it out.  Raises whatever the expression raises; unmade.c says what
 * becomes of the change then.
 */
bool
psync_transform_run(PsyncTransform *transform, const char *event, int size,
					StringInfo body, const char **content_type)
{
	PsyncRole	role;
	Datum		parsed = parse_event(event, size);
	Datum		result;
	bool		isnull;

	Assert(size > 0);

	enter(&role, transform->owner);
	result = evaluate(transform, parsed, &isnull);
	if (!isnull)
		append_result(body, transform->type, result);
	leave(&role);
	*content_type = transform->type == JSONBOID ? "application/json" :
		transform->type == TEXTOID ? "text/plain" : "application/octet-stream";
	return !isnull;
}

/* Raises an error if the expression cannot be prepared with these rights. */
void
psync_transform_check(const char *expression, Oid owner)
{
	PsyncTransform *transform = psync_transform_create(expression, owner);
	PsyncRole	role;

	enter(&role, owner);
	prepare(transform);
	leave(&role);
}
