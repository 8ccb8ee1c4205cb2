/*
 * check.c
 *		Trying a target: is it there, does it have the tables, who else writes?
 *
 * Triggers at the target are asked for as our session sees them, since
 * session_replication_role decides which of them fire.  A target whose schema is
 * a copy of the source's has those of the source, too: what they write to other
 * tables of a sync is delivered as well, and so done twice.
 */
#include "postgres.h"

#include "portability/instr_time.h"
#include "utils/builtins.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"

static const char server_query[] =
	"SELECT pg_catalog.format('PostgreSQL %s, database %I, role %I',"
	" pg_catalog.current_setting('server_version'),"
	" pg_catalog.current_database(), CURRENT_USER)";

/*
 * For each table of the two arrays: is it there, and which triggers of others
 * than us fire?  Those of a partition are its table's.
 */
static const char tables_query[] =
	"SELECT w.n, c.oid IS NOT NULL,"
	" (SELECT pg_catalog.string_agg(DISTINCT pg_catalog.quote_ident(g.tgname), ', ')"
	" FROM pg_catalog.pg_trigger g JOIN pg_catalog.pg_proc p ON p.oid = g.tgfoid"
	" WHERE NOT g.tgisinternal"
	" AND g.tgenabled IN ('A', CASE pg_catalog.current_setting('session_replication_role')"
	" WHEN 'replica' THEN 'R' ELSE 'O' END::\"char\")"
	" AND p.pronamespace IS DISTINCT FROM pg_catalog.to_regnamespace('payment_sync')"
	" AND (g.tgrelid = c.oid OR c.oid IN"
	" (SELECT a.relid FROM pg_catalog.pg_partition_ancestors(g.tgrelid) a)))"
	" FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.name[]), pg_catalog.unnest($2::pg_catalog.name[]))"
	" WITH ORDINALITY w(nsp, rel, n)"
	" LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = w.nsp"
	" LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.rel"
	" ORDER BY w.n";

/* Microseconds since "start", which begins anew. */
static int64
lap(instr_time *start)
{
	instr_time	now;
	instr_time	elapsed;

	INSTR_TIME_SET_CURRENT(now);
	elapsed = now;
	INSTR_TIME_SUBTRACT(elapsed, *start);
	*start = now;
	return (int64) INSTR_TIME_GET_MICROSEC(elapsed);
}

/* The step of one table, from a row of the query above. */
static void
report_table(PsyncPgSession *session, PGresult *result, int row,
			 PsyncCheckReport report, void *arg, int64 elapsed)
{
	const PsyncTable *table = list_nth(session->target->tables, row);
	char	   *step = psprintf("table %s", quote_qualified_identifier(table->target_schema,
																	   table->target_name));
	const char *triggers;

	if (psync_pg_text(session, result, row, 1)[0] != 't')
	{
		report(arg, step, false, "it does not exist at the target", elapsed);
		return;
	}
	triggers = psync_pg_text_or_null(session, result, row, 2);
	report(arg, step, triggers == NULL, triggers == NULL ? "no triggers fire" :
		   psprintf("triggers fire on what is delivered: %s", psync_pg_clean_text(triggers)),
		   elapsed);
}

/*
 * Open a session and look.  Leaves the target as it was.
 */
void
psync_pg_check(PsyncTarget *target, void (*open) (PsyncTarget *target),
			   PsyncCheckReport report, void *arg)
{
	const List *tables = target->tables;
	const char *params[2];
	PsyncPgSession *session;
	PGresult   *result;
	instr_time	start;
	int64		elapsed;

	INSTR_TIME_SET_CURRENT(start);
	open(target);
	session = target->private_data;
	result = psync_pg_query(session, server_query, 0, NULL, 1, 1);
	report(arg, "connection", true, psync_pg_clean_text(psync_pg_text(session, result, 0, 0)),
		   lap(&start));
	if (tables == NIL)
		return;

	psync_pg_execute(session, psync_pg_begin_commands(session));
	psync_pg_name_arrays(tables, params);
	result = psync_pg_query(session, tables_query, 2, params, list_length(tables), 3);
	elapsed = lap(&start) / list_length(tables);
	for (int i = 0; i < list_length(tables); i++)
		report_table(session, result, i, report, arg, elapsed);
	psync_pg_execute(session, "ROLLBACK");
}
