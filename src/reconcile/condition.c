/*
 * condition.c
 *		The arguments that ask for a reconciliation, checked before it begins.
 *
 * A condition is SQL of whoever asks, and becomes part of statements on both
 * sides.  It runs with the rights of the sync's owner here, whom the caller is a
 * member of, and of the mapped user there, read-only on both.  Here it is seen
 * to that it is one expression, so that it cannot mean anything but a condition,
 * and that a mistake in it is told as such.
 */
#include "postgres.h"

#include "nodes/parsenodes.h"
#include "parser/parser.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "reconcile/reconcile.h"

/* The position of a mistake is one within the condition. */
static void
condition_error(void *arg)
{
	int			position = geterrposition();

	if (position > 0)
	{
		errposition(0);
		internalerrposition(position);
		internalerrquery(arg);
	}
	errcontext("condition of a reconciliation");
}

/* Has the statement, which PL/pgSQL would take for an expression, more in it? */
static bool
is_expression(const SelectStmt *select)
{
	return list_length(select->targetList) == 1 &&
		linitial_node(ResTarget, select->targetList)->name == NULL &&
		select->distinctClause == NIL && select->fromClause == NIL &&
		select->whereClause == NULL && select->groupClause == NIL &&
		select->havingClause == NULL && select->windowClause == NIL &&
		select->sortClause == NIL && select->limitOffset == NULL &&
		select->limitCount == NULL && select->lockingClause == NIL &&
		select->op == SETOP_NONE;
}

/*
 * An error unless the text is one expression.  Whether it is a boolean, and
 * which columns there are, each side says itself.
 */
void
psync_check_condition(const char *condition)
{
	ErrorContextCallback context;
	List	   *parsed;

	Assert(condition != NULL);

	context.callback = condition_error;
	context.arg = unconstify(char *, condition);
	context.previous = error_context_stack;
	error_context_stack = &context;
	parsed = raw_parser(condition, RAW_PARSE_PLPGSQL_EXPR);
	if (list_length(parsed) != 1 ||
		!IsA(linitial_node(RawStmt, parsed)->stmt, SelectStmt) ||
		!is_expression((SelectStmt *) linitial_node(RawStmt, parsed)->stmt))
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("a condition must be one expression")));
	error_context_stack = context.previous;
}

/* Rows per second: at least one, where there is a limit. */
void
psync_check_rate(int rows_per_second)
{
	if (rows_per_second <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"rows_per_second\" must be greater than zero"),
				 errhint("Leave it out, or give null, for no limit.")));
}

/* How long to wait for what is in flight, in ms. */
int64
psync_check_wait(const Interval *interval)
{
	int64		ms = psync_interval_ms(interval);

	if (ms < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"max_wait\" must not be negative")));
	return ms;
}
