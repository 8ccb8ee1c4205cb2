/*
 * message_transform.c
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
 * While it runs, the worker can do nothing else, and hears of nothing; so its
 * time is limited, by the server's own statement timeout.  What exceeds it has
 * failed, which is that sync's failure (P7).
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "compat.h"
#include "deliver/message.h"

int			psync_transform_timeout = 5000;

/* Made once per delivery; the plan is SPI's, and lasts until it is freed. */
struct PsyncTransform
{
	char	   *expression;		/* as the subscriber wrote it */
	char	   *query;			/* that evaluates it */
	Oid			owner;			/* of the sync: whose rights it has */
	SPIPlanPtr	plan;			/* NULL: not yet prepared */
	Oid			type;			/* of the result */
};

/* Becoming the owner, and back; undone by an abort if an error comes up. */
typedef struct PsyncTransformContext
{
	Oid			userid;
	int			sec_context;
	int			guc_level;
	bool		pushed;
} PsyncTransformContext;

/*
 * Become the owner, with SPI connected.  An error leaves all of it to the
 * abort.
 */
static void
enter(PsyncTransformContext *save, Oid owner)
{
	Assert(OidIsValid(owner));

	save->pushed = !ActiveSnapshotSet();
	if (save->pushed)
		PushActiveSnapshot(GetTransactionSnapshot());
	GetUserIdAndSecContext(&save->userid, &save->sec_context);
	save->guc_level = NewGUCNestLevel();
	SetUserIdAndSecContext(owner, save->sec_context |
						   SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
}

/*
 * The inverse, in reverse order.
 */
static void
leave(const PsyncTransformContext *save)
{
	SPI_finish();
	AtEOXact_GUC(false, save->guc_level);
	SetUserIdAndSecContext(save->userid, save->sec_context);
	if (save->pushed)
		PopActiveSnapshot();
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

	Assert(transform->plan == NULL);

	transform->plan = SPI_prepare(transform->query, 1, types);
	if (transform->plan == NULL)
		elog(ERROR, "could not prepare transform: %s",
			 SPI_result_code_string(SPI_result));
	source = linitial(SPI_plan_get_plan_sources(transform->plan));
	desc = source->resultDesc;
	if (list_length(SPI_plan_get_plan_sources(transform->plan)) != 1 ||
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
	if (SPI_keepplan(transform->plan) != 0)
		elog(ERROR, "could not keep plan of transform");
}

/*
 * Made in the current memory context; prepared when it is first run.
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
 * The same within the time allowed, unless the caller's own statement timeout
 * is running: then that holds.
 */
static Datum
evaluate_in_time(PsyncTransform *transform, Datum event, bool *isnull)
{
	TimestampTz started = GetCurrentTimestamp();
	bool		limited = psync_transform_timeout > 0 &&
		!get_timeout_active(STATEMENT_TIMEOUT);
	volatile Datum result = (Datum) 0;

	if (!limited)
		return evaluate(transform, event, isnull);

	enable_timeout_after(STATEMENT_TIMEOUT, psync_transform_timeout);
	PG_TRY();
	{
		result = evaluate(transform, event, isnull);
		disable_timeout(STATEMENT_TIMEOUT, false);
	}
	PG_CATCH();
	{
		disable_timeout(STATEMENT_TIMEOUT, false);
		if (geterrcode() == ERRCODE_QUERY_CANCELED &&
			TimestampDifferenceExceeds(started, GetCurrentTimestamp(),
									   psync_transform_timeout))
		{
			FlushErrorState();
			ereport(ERROR,
					(errcode(ERRCODE_QUERY_CANCELED),
					 errmsg("transform took longer than %d ms for an event",
							psync_transform_timeout),
					 errdetail("Other syncs have to wait for it."),
					 errhint("Make it faster, or raise payment_sync.transform_timeout.")));
		}
		PG_RE_THROW();
	}
	PG_END_TRY();
	Assert(!get_timeout_active(STATEMENT_TIMEOUT));
	return result;
}

/*
 * Append to "body" what the expression makes of the event; false if it leaves
 * it out.  Raises whatever the expression raises: the sync stops at the event
 * then.
 */
bool
psync_transform_run(PsyncTransform *transform, const char *event, int size,
					StringInfo body, const char **content_type)
{
	PsyncTransformContext save;
	Datum		parsed = parse_event(event, size);
	Datum		result;
	bool		isnull;

	Assert(size > 0);

	enter(&save, transform->owner);
	result = evaluate_in_time(transform, parsed, &isnull);
	if (!isnull)
		append_result(body, transform->type, result);
	leave(&save);
	*content_type = transform->type == JSONBOID ? "application/json" :
		transform->type == TEXTOID ? "text/plain" : "application/octet-stream";
	return !isnull;
}

/* Raises an error if the expression cannot be prepared with these rights. */
void
psync_transform_check(const char *expression, Oid owner)
{
	PsyncTransform *transform = psync_transform_create(expression, owner);
	PsyncTransformContext save;

	enter(&save, owner);
	prepare(transform);
	SPI_freeplan(transform->plan);
	leave(&save);
}
