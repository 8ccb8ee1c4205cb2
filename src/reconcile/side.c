/*
 * side.c
 *		Running a query on one side.
 *
 * A statement is sent to one side and collected later.  The target begins to
 * work when it is sent; a local one runs when it is collected.  So who sends
 * to the target, sends here, collects here, and then from the target, lets
 * both servers work at the same time.
 *
 * Local statements run with the rights of the relation's reader and
 * row_security = off, so that a policy that would hide rows raises an error
 * instead of hiding them; so does the session at the target.  They are
 * read-only on both sides, whatever functions a condition calls.  The settings on
 * which text forms depend are the same on both sides.
 */
#include "postgres.h"

#include <limits.h>

#include "access/xact.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/role.h"
#include "compat.h"
#include "decode/jsonb.h"
#include "deliver/deliver.h"
#include "reconcile/reconcile.h"
#include "target/registry.h"

/* ms; documented at DefineCustomIntVariable */
static int	answer_timeout = 10 * 60 * 1000;

void
psync_side_init(void)
{
	DefineCustomIntVariable("payment_sync.reconcile_timeout",
							"Sets how long a reconciliation waits for a target's answer to one question.",
							"A run whose target takes longer fails, and can be gone on with. 0 sets no limit.",
							&answer_timeout,
							10 * 60 * 1000, 0, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS,
							NULL, NULL, NULL);
}

/*
 * Whatever is asked of a target is answered within the limit: meanwhile the
 * run may keep the log, and others wait for their turn.
 */
static void
answer_begin(PsyncTimeLimit *limit)
{
	psync_limit_begin(limit, "an answer of the target", answer_timeout,
					  "payment_sync.reconcile_timeout");
}

/*
 * Room for one more row.  Results may be large, and grow while they arrive.
 */
static void
rows_reserve(PsyncRows *rows, int *capacity)
{
	if ((rows->nrows + 1) * rows->ncolumns <= *capacity)
		return;
	*capacity = Max(64, 2 * (*capacity + rows->ncolumns));
	if (rows->values == NULL)
		rows->values = palloc(*capacity * sizeof(char *));
	else
		rows->values = repalloc(rows->values, *capacity * sizeof(char *));
}

/* ------------------------------------------------------------------ local */

/*
 * The statement's rows, in "context"; SPI's own go with SPI_finish().
 */
static PsyncRows *
copy_result(MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	PsyncRows  *rows = palloc0(sizeof(PsyncRows));

	if (SPI_tuptable != NULL)
	{
		rows->nrows = (int) SPI_processed;
		rows->ncolumns = SPI_tuptable->tupdesc->natts;
		rows->values = palloc(Max(1, rows->nrows * rows->ncolumns) * sizeof(char *));
		for (int i = 0; i < rows->nrows; i++)
			for (int j = 0; j < rows->ncolumns; j++)
				psync_rows_get(rows, i, j) = SPI_getvalue(SPI_tuptable->vals[i],
														  SPI_tuptable->tupdesc,
														  j + 1);
	}
	MemoryContextSwitchTo(old);
	return rows;
}

/*
 * Run it under the active snapshot if the caller has put one up for it, else
 * under a fresh one.  Errors restore user and settings with the transaction.
 */
static PsyncRows *
run_local(PsyncSide *side)
{
	MemoryContext context = CurrentMemoryContext;
	PsyncRows  *rows;
	PsyncRole	role;
	bool		read_only = XactReadOnly;
	int			ret;

	Assert(!side->remote && ActiveSnapshotSet());

	psync_role_become(&role, side->userid,
					  PSYNC_ROLE_USER_CODE | PSYNC_ROLE_ALL_ROWS | PSYNC_ROLE_TEXT);
	(void) set_config_option("enable_seqscan", side->ordered ? "off" : "on",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	SPI_connect();

	/* also for volatile functions; an error resets it with the transaction */
	XactReadOnly = true;
	ret = SPI_execute(side->sql, true, 0);
	XactReadOnly = read_only;
	if (ret != SPI_OK_SELECT)
		elog(ERROR, "could not run a query for reconciliation: %s",
			 SPI_result_code_string(ret));
	rows = copy_result(context);
	SPI_finish();
	psync_role_return(&role);
	MemoryContextSwitchTo(context);
	return rows;
}

/*
 * Under a fresh snapshot, which is gone afterwards: no side is read under one
 * that outlives a query.
 */
static PsyncRows *
collect_local(PsyncSide *side)
{
	PsyncRows  *rows;

	PushActiveSnapshot(GetTransactionSnapshot());
	rows = run_local(side);
	PopActiveSnapshot();
	return rows;
}

/* ----------------------------------------------------------------- remote */

/*
 * The target's rows, as they arrive; waits in the transport, which answers to
 * cancel.
 */
static PsyncRows *
collect_remote(PsyncSide *side)
{
	const PsyncReadTransport *reading = side->transport->reading;
	PsyncRows  *rows = palloc0(sizeof(PsyncRows));
	const char *const *values;
	int			capacity = 0;
	PsyncTimeLimit limit;

	rows->ncolumns = side->ncolumns;
	answer_begin(&limit);
	while ((values = reading->row(side->target)) != NULL)
	{
		rows_reserve(rows, &capacity);
		for (int j = 0; j < rows->ncolumns; j++)
			psync_rows_get(rows, rows->nrows, j) =
				values[j] != NULL ? pstrdup(values[j]) : NULL;
		rows->nrows++;
	}
	psync_limit_end(&limit);
	return rows;
}

/* The target takes the statement. */
static void
send_remote(PsyncSide *side, const char *sql, int nfilled)
{
	PsyncTimeLimit limit;

	answer_begin(&limit);
	side->transport->reading->send(side->target, sql, side->ncolumns, nfilled);
	psync_limit_end(&limit);
}

/*
 * The query of the position is known from now on, or anew: the table of positions
 * may not have been there when it was asked for.
 */
void
psync_side_ask_position(PsyncReconcile *rec)
{
	PsyncSide  *side = &rec->side[PSYNC_OTHER];
	PsyncTimeLimit limit;

	answer_begin(&limit);
	rec->position_query = MemoryContextStrdup(rec->context,
											  side->transport->reading->position_query(side->target));
	psync_limit_end(&limit);
}

/* ------------------------------------------------------------------- both */

/*
 * Send a statement, which must be a single SELECT. "sql" must last until it is
 * collected.  Its rows have ncolumns columns; the first nfilled of them are never
 * null, and it is an error if a target sends anything else.
 */
void
psync_side_send(PsyncSide *side, const char *sql, int ncolumns, int nfilled)
{
	Assert(side->sql == NULL);

	elog(DEBUG2, "reconciliation, %s: %s", side->remote ? "target" : "source", sql);
	side->ncolumns = ncolumns;
	if (side->remote)
		send_remote(side, sql, nfilled);
	else
		side->sql = sql;
}

/*
 * The rows of what was sent, in the current memory context.
 */
PsyncRows *
psync_side_collect(PsyncSide *side)
{
	PsyncRows  *rows;

	if (side->remote)
		return collect_remote(side);
	Assert(side->sql != NULL);
	rows = collect_local(side);
	side->sql = NULL;
	return rows;
}

/* The same for a local statement, under the snapshot that is active. */
PsyncRows *
psync_side_collect_here(PsyncSide *side)
{
	PsyncRows  *rows;

	Assert(!side->remote && side->sql != NULL && ActiveSnapshotSet());
	rows = run_local(side);
	side->sql = NULL;
	return rows;
}

/*
 * Both in one, where the other side has nothing to do meanwhile.
 */
PsyncRows *
psync_side_query(PsyncSide *side, const char *sql, int ncolumns, int nfilled)
{
	psync_side_send(side, sql, ncolumns, nfilled);
	return psync_side_collect(side);
}

/* ---------------------------------------------------------------- opening */

pg_noreturn static void
refuse_unreadable(const PsyncReconcile *rec)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("the target of sync \"%s\" cannot be read", rec->sync->name),
			 errdetail("Transport \"%s\" only sends.",
					   rec->side[PSYNC_OTHER].transport->name),
			 errhint("Load what the other side reports into a table, and compare with payment_sync.reconcile_with().")));
}

/*
 * Time-outs of this session hold at the target as well: who limits how long
 * a statement may take here, means the whole of it.  A shorter one of the
 * target's own stays: it protects the target.
 */
static void
pass_timeout(PsyncSide *side)
{
	int			timeout = StatementTimeout;
	PsyncRows  *rows;
	int			own;

	if (timeout == 0)
		return;
	rows = psync_side_query(side, "SELECT setting FROM pg_catalog.pg_settings"
							" WHERE name = 'statement_timeout'", 1, 1);
	own = rows->nrows == 1 ? atoi(psync_rows_get(rows, 0, 0)) : 0;
	if (own == 0 || own > timeout)
		side->transport->reading->set(side->target, "statement_timeout",
									  psprintf("%d", timeout));
}

/*
 * Connect to the sync's target, or to another server that shows the same
 * tables, a standby, say, or the same one with a role that may only read.
 */
void
psync_side_open(PsyncReconcile *rec, const char *server)
{
	PsyncSide  *side = &rec->side[PSYNC_OTHER];
	PsyncSync	through = *rec->sync;
	PsyncTimeLimit limit;

	Assert(rec->sync != NULL);
	Assert(side->target == NULL);
	if (server != NULL)
		through.server = pstrdup(server);
	side->remote = true;
	side->target = psync_target_create(rec->context, &through,
									   psync_log_identity(), &side->transport);
	side->target->read_only = true;
	if (side->transport->reading == NULL)
		refuse_unreadable(rec);
	answer_begin(&limit);
	side->transport->open(side->target);
	psync_limit_end(&limit);
	pass_timeout(side);
	psync_side_ask_position(rec);
}

/*
 * Also after an error; does not raise.  A side that was not opened is left
 * alone.
 */
void
psync_side_close(PsyncSide *side)
{
	if (side->target != NULL)
		side->transport->close(side->target);
	side->target = NULL;
}
