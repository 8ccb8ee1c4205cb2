/*
 * read.c
 *		Reading at the target, for reconciliation.
 *
 * A statement is sent and its rows are taken one by one as they arrive.  If
 * the reader goes away in the middle (an error, a cancel), the connection is
 * closed, and the target notices that by itself; to send it a cancel would
 * mean to wait for another connection.
 *
 * Whatever the role at the target may do, nothing is written there, and none
 * of its time-outs is taken away: they protect the target.  A statement may
 * hold a condition that calls functions, so it is not enough that transactions
 * of the session are read-only by default: one statement could change the
 * default for the next.  Each runs in a transaction of its own that is begun
 * as READ ONLY, which cannot be changed from within once a query has begun, and
 * that is rolled back, which undoes settings as well.
 */
#include "postgres.h"

#include "storage/latch.h"
#include "utils/memutils.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"

/*
 * What all values' text forms depend on, beyond what every session of ours
 * has; and a statement that nobody waits for any more should end.
 */
static const char settings_command[] =
	"SELECT pg_catalog.set_config('default_transaction_read_only', 'on', false),"
	" pg_catalog.set_config('timezone', 'UTC', false),"
	" pg_catalog.set_config('standard_conforming_strings', 'on', false),"
	" pg_catalog.set_config('jit', 'off', false)";

static const char notice_command[] =
	"SELECT pg_catalog.set_config('client_connection_check_interval', '1s', false)";

/* client_connection_check_interval came with this version */
#define PSYNC_PG_VERSION_CHECKS_CLIENT	140000

/*
 * The settings above, once per session.  Instead of those for delivery, not on
 * top of them.
 */
void
psync_pg_read_settings(PsyncPgSession *session)
{
	PsyncPgError error;

	Assert(session->target->read_only);
	psync_pg_execute(session, settings_command);

	/* some platforms cannot do that, and say so by an error */
	if (PQserverVersion(session->conn) >= PSYNC_PG_VERSION_CHECKS_CLIENT)
		(void) psync_pg_try(session, notice_command, &error);
}

/*
 * Send a statement: one, by the extended protocol, which takes no more.  It
 * may hold a condition that a user has given; with the simple protocol that
 * could end the statement and go on with others, also to leave the read-only
 * mode.
 */
static void
read_send(PsyncTarget *target, const char *sql)
{
	PsyncPgSession *session = target->private_data;

	Assert(target->read_only && !session->reading);
	psync_pg_execute(session, "BEGIN TRANSACTION READ ONLY");
	if (!PQsendQueryParams(session->conn, sql, 0, NULL, NULL, NULL, NULL, 0) ||
		!PQsetSingleRowMode(session->conn))
		psync_pg_lost(session);
	session->reading = true;
	psync_pg_flush(session);
}

/* The statement has ended: nothing may follow, or it had failed. */
static void
read_ended(PsyncPgSession *session)
{
	PGresult   *rest;

	session->reading = false;
	while ((rest = psync_pg_get_result(session)) != NULL)
		PQclear(rest);
	if (PQstatus(session->conn) == CONNECTION_BAD)
		psync_pg_lost(session);
}

/*
 * Does not return.
 */
static void
read_failed(PsyncPgSession *session, PGresult *result)
{
	PsyncPgError error;

	psync_pg_error_take(&error, result);
	read_ended(session);
	psync_pg_error_raise(session, &error, "could not read at the target");
}

/*
 * The next row, valid until the next call; NULL at the end.  The values point
 * into libpq's result, which is kept with the session so that closing it frees
 * it.
 */
static const char *const *
read_row(PsyncTarget *target, int *ncolumns)
{
	PsyncPgSession *session = target->private_data;
	PGresult   *result;
	int			n;

	Assert(session->reading);
	PQclear(session->row);
	session->row = NULL;

	result = psync_pg_get_result(session);
	if (result == NULL)
		psync_pg_lost(session);
	if (PQresultStatus(result) == PGRES_TUPLES_OK ||
		PQresultStatus(result) == PGRES_COMMAND_OK)
	{
		PQclear(result);
		read_ended(session);
		psync_pg_execute(session, "ROLLBACK");
		return NULL;
	}
	if (PQresultStatus(result) != PGRES_SINGLE_TUPLE)
		read_failed(session, result);

	session->row = result;
	n = PQnfields(result);
	if (n > session->row_capacity)
	{
		session->row_values = MemoryContextAlloc(session->context,
												 n * sizeof(char *));
		session->row_capacity = n;
	}
	for (int i = 0; i < n; i++)
		session->row_values[i] = PQgetisnull(result, 0, i) ? NULL :
			PQgetvalue(result, 0, i);
	*ncolumns = n;
	return session->row_values;
}

/*
 * As an expression, to be put into a statement of the reader's.
 */
static char *
read_position_query(PsyncTarget *target)
{
	return psync_pg_position_query(target->private_data);
}

const PsyncReadTransport psync_pg_reading = {
	.send = read_send,
	.row = read_row,
	.position_query = read_position_query,
};
