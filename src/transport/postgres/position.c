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
 * Versions.  While a snapshot is held at the target, by a backup, say, or a
 * long report, the versions of the row that were replaced cannot go.  They all
 * stand under the row's key in its index, and the statement would have to look at
 * each of them: 720,000 after an hour of 200 windows a second.  So the key has a
 * number that grows every few windows.  The statement names the present one,
 * under which there are a few versions at most; those between stay in one page
 * and out of the index (HOT).  It is an INSERT with ON CONFLICT, since that
 * always goes by the index, whatever the planner knows of the table.
 *
 * A table that was made by version 1.0 has no such number.  It gets one if we
 * own it; else it is used as it is.
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


/* So many windows share a version number. */
#define PSYNC_PG_WINDOWS_PER_VERSION	32

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
					 " version bigint NOT NULL DEFAULT 0,"
					 " PRIMARY KEY (sync_id, log_id, version))",
					 session->position_table);
	return sql.data;
}

/* What there is of the table. */
typedef struct PositionTable
{
	bool		schema_exists;
	bool		exists;
	bool		versioned;		/* has a version in its key */
	bool		ours;			/* to alter */
	char	   *key;			/* name of the key of version 1.0; NULL: none */
	char	   *grant;			/* what the role lacks on the database, as a
								 * command; NULL: nothing */
} PositionTable;

/*
 * Names go as parameters, quoted, as to_regclass() wants them.
 */
static const char look_query[] =
	"SELECT pg_catalog.to_regnamespace($1) IS NOT NULL, c.oid IS NOT NULL,"
	" EXISTS (SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a"
	" ON a.attrelid OPERATOR(pg_catalog.=) c.oid AND a.attname OPERATOR(pg_catalog.=) 'version'"
	" AND a.attnum OPERATOR(pg_catalog.=) i.indkey[2]"
	" WHERE i.indrelid OPERATOR(pg_catalog.=) c.oid AND i.indisprimary"
	" AND i.indnkeyatts OPERATOR(pg_catalog.=) 3),"
	" COALESCE(pg_catalog.pg_has_role(c.relowner, 'USAGE'), false),"
	" (SELECT pg_catalog.quote_ident(k.conname) FROM pg_catalog.pg_constraint k"
	" WHERE k.conrelid OPERATOR(pg_catalog.=) c.oid AND k.contype OPERATOR(pg_catalog.=) 'p'),"
	" CASE WHEN NOT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMPORARY')"
	" THEN pg_catalog.format('GRANT TEMPORARY ON DATABASE %I TO %I',"
	" pg_catalog.current_database(), CURRENT_USER) END"
	" FROM (SELECT 1) one LEFT JOIN pg_catalog.pg_class c"
	" ON c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass($2)";

static void
look_at_table(PsyncPgSession *session, PositionTable *table)
{
	const char *params[2];
	const char *key;
	const char *grant;
	PGresult   *result;

	params[0] = quote_identifier(position_schema(session));
	params[1] = session->position_table;
	result = psync_pg_query(session, look_query, 2, params, 1, 6);
	table->schema_exists = psync_pg_text(session, result, 0, 0)[0] == 't';
	table->exists = psync_pg_text(session, result, 0, 1)[0] == 't';
	table->versioned = psync_pg_text(session, result, 0, 2)[0] == 't';
	table->ours = psync_pg_text(session, result, 0, 3)[0] == 't';
	key = psync_pg_text_or_null(session, result, 0, 4);
	table->key = key != NULL ? pstrdup(key) : NULL;
	grant = psync_pg_text_or_null(session, result, 0, 5);
	table->grant = grant != NULL ? pstrdup(grant) : NULL;
	session->position_versioned = table->versioned;
}

/*
 * Large windows need temporary tables.  The first may come late, so this is
 * found early.
 */
static void
check_temporary(PsyncPgSession *session, const PositionTable *table)
{
	if (table->grant != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("the role at server \"%s\" may not create temporary tables",
						session->target->server_name),
				 errdetail("Large windows and batches go through temporary tables at the target."),
				 errhint("Run at the target: %s;", table->grant)));
}

/*
 * Give a table of version 1.0 what ours have, if that can be had at once: who
 * waits for the lock would hold up all others that deliver to this target.
 * Nothing is lost if not; the next session tries again.
 */
static void
add_version(PsyncPgSession *session, PositionTable *table)
{
	PsyncPgError error;

	if (table->versioned || !table->ours || table->key == NULL)
		return;
	(void) psync_pg_try(session,
						psprintf("BEGIN; SET LOCAL lock_timeout TO '100ms';"
								 " ALTER TABLE %s ADD COLUMN IF NOT EXISTS version bigint NOT NULL DEFAULT 0,"
								 " DROP CONSTRAINT %s, ADD PRIMARY KEY (sync_id, log_id, version); COMMIT",
								 session->position_table, table->key), &error);
	if (PQtransactionStatus(session->conn) != PQTRANS_IDLE)
		psync_pg_execute(session, "ROLLBACK");
	look_at_table(session, table);
}

/*
 * See that the table is there.  Two syncs that come to a new target at once
 * may both try to make it: the one that fails looks again.
 */
static void
create_position_table(PsyncPgSession *session)
{
	PsyncPgError error;
	PositionTable table;
	char	   *ddl;

	look_at_table(session, &table);
	check_temporary(session, &table);
	if (table.exists)
	{
		add_version(session, &table);
		return;
	}
	ddl = position_ddl(session, table.schema_exists);
	if (psync_pg_try(session, ddl, &error))
	{
		psync_pg_execute(session,
						 psprintf("COMMENT ON TABLE %s IS 'how far each sync of payment_sync has come; its row is written with the changes'",
								  session->position_table));
		session->position_versioned = true;
		return;
	}

	/* somebody else may have been faster, then all is well */
	if (error.sqlstate != ERRCODE_INSUFFICIENT_PRIVILEGE)
	{
		look_at_table(session, &table);
		if (table.exists)
			return;
	}
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
	PositionTable table;

	Assert(session->target->read_only);
	name_position_table(session);
	look_at_table(session, &table);
	if (!table.exists)
		return pstrdup("SELECT NULL::pg_catalog.text WHERE false");
	return psprintf("SELECT position FROM %s"
					" WHERE sync_id OPERATOR(pg_catalog.=) '%s'::pg_catalog.uuid"
					" AND log_id OPERATOR(pg_catalog.=) '%s'::pg_catalog.uuid%s",
					session->position_table, session->target->sync_id,
					session->target->log_id,
					table.versioned ? " ORDER BY version DESC LIMIT 1" : "");
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
							psprintf("SELECT log_id, position, %s FROM %s WHERE sync_id OPERATOR(pg_catalog.=) $1::pg_catalog.uuid",
									 session->position_versioned ? "version" : "0",
									 session->position_table),
							1, params, PSYNC_PG_ANY_ROWS, 3);
	session->position = NULL;
	session->windows = 0;
	for (int i = 0; i < PQntuples(result); i++)
	{
		const char *log_id = psync_pg_text(session, result, i, 0);

		if (pg_strcasecmp(log_id, session->target->log_id) == 0)
		{
			session->position = MemoryContextStrdup(session->context,
													psync_pg_text(session, result, i, 1));
			session->position_version = strtoll(psync_pg_text(session, result, i, 2), NULL, 10);
		}
		else
			foreign = pstrdup(log_id);
	}
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
 * Tables that had no trigger when the session looked, so that changes of theirs
 * were not checked, must have none now.  Whoever makes one waits for our
 * transaction once it has changed the table; so this comes after all changes, and
 * with the position, since a statement of its own would cost more than the look.
 * The root of a negative number is another error than the position's.  Partitions
 * have triggers of their own; those of a table may be thousands, so it is their
 * triggers that are looked at.
 */
#define HOOK_MADE \
	"EXISTS (SELECT FROM pg_catalog.pg_trigger" \
	" WHERE tgrelid OPERATOR(pg_catalog.=) ANY ($5::pg_catalog.oid[]) AND " PSYNC_PG_HOOK ")"
#define HOOK_MADE_PARTITIONED \
	"EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE " PSYNC_PG_HOOK \
	" AND (tgrelid OPERATOR(pg_catalog.=) ANY ($5::pg_catalog.oid[])" \
	" OR EXISTS (SELECT FROM pg_catalog.pg_partition_ancestors(tgrelid) a" \
	" WHERE a.relid OPERATOR(pg_catalog.=) ANY ($5::pg_catalog.oid[]))))"
#define RECORDED_UNLESS_HOOKED \
	"SELECT pg_catalog.sqrt(CASE WHEN %s THEN -1 ELSE" \
	" 1 OPERATOR(pg_catalog./) pg_catalog.count(*) END)"

/* The text that goes where %s stands. */
static const char *
hook_made(const PsyncPgSession *session)
{
	return session->partitioned ? HOOK_MADE_PARTITIONED : HOOK_MADE;
}

/*
 * Statements that record the position have the parameters log, sync, name, new
 * position, tables to look at, and (for all but the first window) the position
 * before.
 *
 * The first window makes the row; a row that is there then is an error.  In a
 * table with versions the key alone would not tell, since the row may have moved
 * on; whoever comes second waits for the lock, and sees it (position_send).
 *
 * Told to start anew, we take over the row of another change log: its server,
 * should it live, finds its row gone and stops.  Its log is the parameter then,
 * in the place of the position before.
 */
static char *
first_statement(PsyncPgSession *session)
{
	if (session->foreign_log != NULL)
		return psprintf("WITH taken AS (UPDATE %s SET log_id = $1::pg_catalog.uuid,"
						" sync_name = $3, position = $4,%s"
						" updated = pg_catalog.clock_timestamp()"
						" WHERE log_id OPERATOR(pg_catalog.=) $6::pg_catalog.uuid"
						" AND sync_id OPERATOR(pg_catalog.=) $2::pg_catalog.uuid RETURNING 1) "
						RECORDED_UNLESS_HOOKED
						" FROM taken",
						session->position_table,
						session->position_versioned ? " version = 0," : "",
						hook_made(session));
	return psprintf("WITH recorded AS (INSERT INTO %s (log_id, sync_id, sync_name, position)"
					" SELECT $1::pg_catalog.uuid, $2::pg_catalog.uuid, $3, $4"
					" WHERE NOT EXISTS (SELECT FROM %s"
					" WHERE log_id OPERATOR(pg_catalog.=) $1::pg_catalog.uuid"
					" AND sync_id OPERATOR(pg_catalog.=) $2::pg_catalog.uuid) RETURNING 1) "
					RECORDED_UNLESS_HOOKED
					" FROM recorded",
					session->position_table, session->position_table, hook_made(session));
}

/*
 * For all later windows.  With versions: $7 is the present one, $8 what it
 * grows by.  A row that this inserts is one that was not there; it is told by
 * its time, and the statement fails.
 */
static char *
next_statement(PsyncPgSession *session)
{
	if (session->position_versioned)
		return psprintf("WITH recorded AS (INSERT INTO %s AS p"
						" (log_id, sync_id, sync_name, position, version, updated)"
						" VALUES ($1::pg_catalog.uuid, $2::pg_catalog.uuid, $3, $4,"
						" $7::pg_catalog.int8, 'infinity')"
						" ON CONFLICT (sync_id, log_id, version) DO UPDATE"
						" SET sync_name = $3, position = $4,"
						" version = p.version OPERATOR(pg_catalog.+) $8::pg_catalog.int8,"
						" updated = pg_catalog.clock_timestamp()"
						" WHERE p.position OPERATOR(pg_catalog.=) $6"
						" RETURNING pg_catalog.isfinite(p.updated) AS known) "
						RECORDED_UNLESS_HOOKED
						" FROM recorded WHERE known",
						session->position_table, hook_made(session));
	return psprintf("WITH recorded AS (UPDATE %s SET sync_name = $3, position = $4,"
					" updated = pg_catalog.clock_timestamp()"
					" WHERE log_id OPERATOR(pg_catalog.=) $1::pg_catalog.uuid"
					" AND sync_id OPERATOR(pg_catalog.=) $2::pg_catalog.uuid"
					" AND position OPERATOR(pg_catalog.=) $6 RETURNING 1) "
					RECORDED_UNLESS_HOOKED
					" FROM recorded",
					session->position_table, hook_made(session));
}

/* The name under which the statement above is prepared. */
static const char *
next_statement_name(const PsyncPgSession *session)
{
	return session->partitioned ? "psync_position_partitioned" : "psync_position";
}

/* Does the version grow with the window at hand? */
static bool
version_grows(const PsyncPgSession *session)
{
	return session->windows + 1 >= PSYNC_PG_WINDOWS_PER_VERSION;
}

/*
 * Queue the command that must come before the one below, in pipeline mode.  True
 * if there was one.  Before the first window: a lock by which of two sessions that
 * begin the sync at once the second sees the row of the first.  Before others:
 * the statement is prepared, if it is not yet and the session is ours to keep it.
 */
bool
psync_pg_position_prepare(PsyncPgSession *session)
{
	const char *params[1] = {session->target->sync_id};

	Assert(PQpipelineStatus(session->conn) == PQ_PIPELINE_ON);
	if (session->position == NULL)
	{
		if (!PQsendQueryParams(session->conn,
							   "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended($1, 0))",
							   1, NULL, params, NULL, NULL, 0))
			psync_pg_lost(session);
		return true;
	}
	if (session->pooled || session->position_prepared)
		return false;
	if (!PQsendPrepare(session->conn, next_statement_name(session),
					   next_statement(session), 0, NULL))
		psync_pg_lost(session);
	return true;
}

/*
 * The command that psync_pg_position_prepare() has queued has succeeded, even
 * if the window does not.
 */
void
psync_pg_position_ready(PsyncPgSession *session)
{
	session->position_prepared = session->position != NULL;
}

/*
 * The window's tables to look at, as an array of oids at the target.
 */
static char *
touched_tables(const PsyncPgSession *session)
{
	StringInfoData oids;
	ListCell   *lc;

	initStringInfo(&oids);
	appendStringInfoChar(&oids, '{');
	foreach(lc, session->touched)
		appendStringInfo(&oids, "%s%u", oids.len > 1 ? "," : "",
						 ((PsyncPgTable *) lfirst(lc))->oid);
	appendStringInfoChar(&oids, '}');
	return oids.data;
}

/*
 * Queue the statement that records the position, in pipeline mode.
 */
void
psync_pg_position_send(PsyncPgSession *session, const char *position)
{
	const PsyncTarget *target = session->target;
	const char *params[8];
	bool		first = session->position == NULL;
	int			nparams = session->position_versioned ? 8 : 6;
	int			ok;

	Assert(PQpipelineStatus(session->conn) == PQ_PIPELINE_ON);
	Assert(session->position_table != NULL);
	Assert(first || session->foreign_log == NULL);

	params[0] = target->log_id;
	params[1] = target->sync_id;
	params[2] = target->sync_name;
	params[3] = position;
	params[4] = touched_tables(session);
	params[5] = first ? session->foreign_log : session->position;
	params[6] = psprintf(INT64_FORMAT, session->position_version);
	params[7] = version_grows(session) ? "1" : "0";

	if (first)
		ok = PQsendQueryParams(session->conn, first_statement(session),
							   session->foreign_log != NULL ? 6 : 5, NULL,
							   params, NULL, NULL, 0);
	else if (session->pooled)
		ok = PQsendQueryParams(session->conn, next_statement(session), nparams,
							   NULL, params, NULL, NULL, 0);
	else
		ok = PQsendQueryPrepared(session->conn, next_statement_name(session),
								 nparams, params, NULL, NULL, 0);
	if (!ok)
		psync_pg_lost(session);
}

/*
 * The window is committed: this is what the target has now.
 */
void
psync_pg_position_recorded(PsyncPgSession *session, const char *position)
{
	char	   *copy = MemoryContextStrdup(session->context, position);

	if (session->position == NULL)
		session->position_version = 0;
	else
	{
		session->position_version += version_grows(session) ? 1 : 0;
		session->windows = version_grows(session) ? 0 : session->windows + 1;
		pfree(session->position);
	}
	session->position = copy;
	session->foreign_log = NULL;
}

/*
 * Does not return.  The statement has failed: because somebody else delivers
 * the sync, or for a reason that the target gives.
 */
void
psync_pg_position_refused(PsyncPgSession *session, const PsyncPgError *error)
{
	/* see HOOK_MADE; the next session knows of them */
	if (error->sqlstate == ERRCODE_INVALID_ARGUMENT_FOR_POWER_FUNCTION)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("triggers were made at the target meanwhile"),
				 errdetail("The changes are sent again, and it is checked that they have an effect."),
				 errcontext("remote server \"%s\"", session->target->server_name)));

	/* see first_statement() and next_statement(): these two are our own doing */
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
