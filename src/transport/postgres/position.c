/*
 * position.c
 *		The sync's position, recorded at the target with the changes (P5).
 *
 * The table has a row per change log and sync; the row is replaced in the
 * transaction of each window, under the condition that it still holds the
 * position from which the window was read.  Two processes that deliver the
 * same sync at once, or a commit whose confirmation was lost, therefore
 * cannot apply a window twice: the second finds another position, its
 * statement fails, and so does its transaction.  No lock outlives a session,
 * so a session cut off by the network holds up nobody.
 *
 * The statement must fail at the target, since the commit that follows is
 * sent along without waiting: it divides by the number of rows it has hit.
 *
 * A row of the same sync with another change log's identity means that this
 * server is a copy (a restored dump or backup of the source): two sources of
 * one target.  That is refused, unless this one was told to start anew: then it
 * takes over the other's row, and the other is refused.
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/memutils.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"

#define PSYNC_PG_POSITION_STATEMENT	"psync_position"

/*
 * The option's value, or the given one if it is not set or empty.
 */
static const char *
option_or(PsyncPgSession *session, const char *keyword, const char *value)
{
	const char *given = psync_pg_services->option(session->target, keyword);

	return given != NULL && given[0] != '\0' ? given : value;
}

/*
 * Where the table is, or is to be made.
 */
static const char *
position_schema(PsyncPgSession *session)
{
	return option_or(session, "position_schema", "payment_sync_target");
}

/* ------------------------------------------------------------- the table */

/*
 * What makes the table, in the current memory context: run by us if we may,
 * else told to whoever may.
 */
static char *
position_ddl(PsyncPgSession *session, bool schema_exists)
{
	StringInfoData sql;

	initStringInfo(&sql);
	if (!schema_exists)
		appendStringInfo(&sql, "CREATE SCHEMA IF NOT EXISTS %s; ",
						 quote_identifier(position_schema(session)));
	appendStringInfo(&sql,
					 "CREATE TABLE IF NOT EXISTS %s ("
					 "log_id uuid NOT NULL, sync_id uuid NOT NULL,"
					 " sync_name text NOT NULL, position text NOT NULL,"
					 " updated timestamptz NOT NULL DEFAULT pg_catalog.now(),"
					 " PRIMARY KEY (sync_id, log_id))",
					 session->position_table);
	return sql.data;
}

/*
 * True if it is there; *schema_exists is set anyway.  Names go as parameters,
 * quoted, as to_regclass() wants them.
 */
static bool
position_table_exists(PsyncPgSession *session, bool *schema_exists)
{
	const char *params[2];
	PGresult   *result;
	bool		found;

	params[0] = quote_identifier(position_schema(session));
	params[1] = session->position_table;
	result = psync_pg_query(session,
							"SELECT pg_catalog.to_regnamespace($1) IS NOT NULL,"
							" pg_catalog.to_regclass($2) IS NOT NULL", 2, params);
	*schema_exists = PQgetvalue(result, 0, 0)[0] == 't';
	found = PQgetvalue(result, 0, 1)[0] == 't';
	PQclear(result);
	return found;
}

/*
 * See that the table is there.  Two syncs that come to a new target at once
 * may both try to make it: the one that fails looks again.
 */
static void
create_position_table(PsyncPgSession *session)
{
	PsyncPgError error;
	bool		schema_exists;
	char	   *ddl;

	if (position_table_exists(session, &schema_exists))
		return;
	ddl = position_ddl(session, schema_exists);
	if (psync_pg_try(session, ddl, &error))
	{
		psync_pg_execute(session,
						 psprintf("COMMENT ON TABLE %s IS 'how far each sync of payment_sync has come; its row is written with the changes'",
								  session->position_table));
		return;
	}

	/* somebody else may have been faster, then all is well */
	if (error.sqlstate != ERRCODE_INSUFFICIENT_PRIVILEGE &&
		position_table_exists(session, &schema_exists))
		return;
	ereport(ERROR,
			(errcode(error.sqlstate),
			 errmsg("could not create position table %s: %s",
					session->position_table, error.message),
			 errhint("Run at the target, and grant USAGE on the schema and SELECT, INSERT, UPDATE on the table to the target's role: %s;",
					 ddl),
			 errcontext("remote server \"%s\"", session->target->server_name)));
}

/* --------------------------------------------------------------- reading */

/*
 * Does not return.  Two sources of one target would overwrite each other's
 * rows.
 */
static void
refuse_foreign_log(PsyncPgSession *session, const char *log_id)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the target already follows sync \"%s\" of another change log",
					session->target->sync_name),
			 errdetail("Table %s at the target has a position for change log %s; this server's change log is %s.",
					   session->position_table, log_id, session->target->log_id),
			 errhint("If this server was restored from a dump or backup to take the other's place, start afresh with payment_sync.enable_sync(name, start => 'batch').")));
}

static void
name_position_table(PsyncPgSession *session)
{
	session->position_table =
		MemoryContextStrdup(session->context,
							quote_qualified_identifier(position_schema(session),
													   option_or(session, "position_table", "position")));
}

/*
 * For who only reads: the position as a query.  If there is no table yet, no
 * window was committed yet; one that commits meanwhile makes what is read
 * newer than the position, which the caller must bear anyway.
 */
char *
psync_pg_position_query(PsyncPgSession *session)
{
	bool		schema_exists;

	Assert(session->target->read_only);
	name_position_table(session);
	if (!position_table_exists(session, &schema_exists))
		return pstrdup("SELECT NULL::pg_catalog.text WHERE false");
	return psprintf("SELECT position FROM %s"
					" WHERE sync_id OPERATOR(pg_catalog.=) '%s'::pg_catalog.uuid"
					" AND log_id OPERATOR(pg_catalog.=) '%s'::pg_catalog.uuid",
					session->position_table, session->target->sync_id,
					session->target->log_id);
}

/*
 * The position the target has, NULL if none; in the session's memory, and
 * remembered as what the next window must find.  Also makes the table, since
 * the first thing asked of a new target is this.
 */
char *
psync_pg_position_read(PsyncPgSession *session)
{
	const char *params[1];
	PGresult   *result;
	char	   *foreign = NULL;

	Assert(!session->in_transaction);

	name_position_table(session);
	create_position_table(session);

	params[0] = session->target->sync_id;
	result = psync_pg_query(session,
							psprintf("SELECT log_id, position FROM %s WHERE sync_id OPERATOR(pg_catalog.=) $1::pg_catalog.uuid",
									 session->position_table), 1, params);
	session->position = NULL;
	for (int i = 0; i < PQntuples(result); i++)
	{
		if (pg_strcasecmp(PQgetvalue(result, i, 0), session->target->log_id) == 0)
			session->position = MemoryContextStrdup(session->context,
													PQgetvalue(result, i, 1));
		else
			foreign = pstrdup(PQgetvalue(result, i, 0));
	}
	PQclear(result);
	if (session->position == NULL && foreign != NULL)
	{
		if (!session->target->restart)
			refuse_foreign_log(session, foreign);
		session->foreign_log = MemoryContextStrdup(session->context, foreign);
	}
	return session->position;
}

/* ------------------------------------------------------------- recording */

/*
 * The statement that records the position, with parameters log, sync, name,
 * new position, and (for all but the first window) the one before.  In the
 * current memory context.
 *
 * Told to start anew, we take over the row of another change log: its server,
 * should it live, finds its row gone and stops.  Its log is the parameter
 * then, in the place of the position before.
 */
static char *
position_statement(PsyncPgSession *session)
{
	if (session->foreign_log != NULL)
		return psprintf("WITH taken AS (UPDATE %s SET log_id = $1::pg_catalog.uuid,"
						" sync_name = $3, position = $4,"
						" updated = pg_catalog.clock_timestamp()"
						" WHERE log_id OPERATOR(pg_catalog.=) $5::pg_catalog.uuid"
						" AND sync_id OPERATOR(pg_catalog.=) $2::pg_catalog.uuid RETURNING 1)"
						" SELECT 1 OPERATOR(pg_catalog./) pg_catalog.count(*) FROM taken",
						session->position_table);

	/* the first window makes the row; a row that is there then is an error */
	if (session->position == NULL)
		return psprintf("INSERT INTO %s (log_id, sync_id, sync_name, position)"
						" VALUES ($1::pg_catalog.uuid, $2::pg_catalog.uuid, $3, $4)",
						session->position_table);
	return psprintf("WITH recorded AS (UPDATE %s SET sync_name = $3, position = $4,"
					" updated = pg_catalog.clock_timestamp()"
					" WHERE log_id OPERATOR(pg_catalog.=) $1::pg_catalog.uuid"
					" AND sync_id OPERATOR(pg_catalog.=) $2::pg_catalog.uuid"
					" AND position OPERATOR(pg_catalog.=) $5 RETURNING 1)"
					" SELECT 1 OPERATOR(pg_catalog./) pg_catalog.count(*) FROM recorded",
					session->position_table);
}

/*
 * Queue the statement that records the position, in pipeline mode.  Returns
 * the number of commands queued: one more if it had to be prepared.
 */
int
psync_pg_position_send(PsyncPgSession *session, const char *position)
{
	const PsyncTarget *target = session->target;
	const char *params[5];
	bool		first = session->position == NULL;
	int			queued = 1;
	int			ok;

	Assert(PQpipelineStatus(session->conn) == PQ_PIPELINE_ON);
	Assert(session->position_table != NULL);

	params[0] = target->log_id;
	params[1] = target->sync_id;
	params[2] = target->sync_name;
	params[3] = position;
	params[4] = first ? session->foreign_log : session->position;
	Assert(first || session->foreign_log == NULL);

	if (first)
		ok = PQsendQueryParams(session->conn, position_statement(session),
							   session->foreign_log != NULL ? 5 : 4, NULL,
							   params, NULL, NULL, 0);
	else
	{
		if (!session->position_prepared)
		{
			if (!PQsendPrepare(session->conn, PSYNC_PG_POSITION_STATEMENT,
							   position_statement(session), 0, NULL))
				psync_pg_lost(session);
			queued++;
		}
		ok = PQsendQueryPrepared(session->conn, PSYNC_PG_POSITION_STATEMENT, 5,
								 params, NULL, NULL, 0);
	}
	if (!ok)
		psync_pg_lost(session);
	return queued;
}

/*
 * The window is committed: this is what the target has now.  The prepared
 * statement is the one for later windows, so after the first one it is still
 * to be prepared.
 */
void
psync_pg_position_recorded(PsyncPgSession *session, const char *position)
{
	char	   *copy = MemoryContextStrdup(session->context, position);

	session->position_prepared = session->position != NULL;
	if (session->position != NULL)
		pfree(session->position);
	session->position = copy;
	session->foreign_log = NULL;
}

/*
 * Make durable what was committed so far.  Windows are committed without
 * waiting for the target's disk: if the target crashes it loses the last ones
 * together with their position, and they are sent again, since the core
 * forgets nothing before it has called this.  A commit that does wait flushes
 * all WAL before it.
 */
void
psync_pg_position_flush(PsyncPgSession *session)
{
	if (session->position == NULL)
		return;
	psync_pg_execute(session,
					 psprintf("BEGIN; SET LOCAL synchronous_commit TO on;"
							  " UPDATE %s SET updated = pg_catalog.clock_timestamp()"
							  " WHERE log_id OPERATOR(pg_catalog.=) %s"
							  " AND sync_id OPERATOR(pg_catalog.=) %s; COMMIT",
							  session->position_table,
							  quote_literal_cstr(session->target->log_id),
							  quote_literal_cstr(session->target->sync_id)));
}

/*
 * Does not return.  The statement has failed: because somebody else delivers
 * the sync, or for a reason that the target gives.
 */
void
psync_pg_position_refused(PsyncPgSession *session, const PsyncPgError *error)
{
	/* see position_statement(): these two are our own doing */
	if (error->sqlstate == ERRCODE_DIVISION_BY_ZERO ||
		error->sqlstate == ERRCODE_UNIQUE_VIOLATION)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("position of sync \"%s\" at the target was changed by another session",
						session->target->sync_name),
				 errdetail("The window was not applied."),
				 errcontext("remote server \"%s\"", session->target->server_name)));
	psync_pg_error_raise(session, error,
						 psprintf("could not record the position in table %s",
								  session->position_table));
	pg_unreachable();
}
