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
 * that is rolled back, which undoes settings as well.  So what the reader wants
 * to be set is set anew in each of them.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"

/*
 * Readers keep all rows of a statement, which they ask for in ranges and by
 * keys, so that there are not many.  A target that sends more than this is
 * lying.  Each value takes some bytes besides its own.
 */
#define PSYNC_PG_ROWS_BYTES_MAX		(512 * 1024 * 1024)
#define PSYNC_PG_VALUE_BYTES		32

/*
 * A setting for the statements that follow.
 */
static void
read_set(PsyncTarget *target, const char *name, const char *value)
{
	psync_pg_settings_add(target->private_data, name, value);
}

/*
 * Send a statement: one, by the extended protocol, which takes no more.  It
 * may hold a condition that a user has given; with the simple protocol that
 * could end the statement and go on with others, also to leave the read-only
 * mode.
 */
static void
read_send(PsyncTarget *target, const char *sql, int ncolumns, int nfilled)
{
	PsyncPgSession *session = target->private_data;

	Assert(target->read_only && !session->reading);
	Assert(nfilled >= 0 && nfilled <= ncolumns);

	session->row_columns = ncolumns;
	session->row_filled = nfilled;
	session->row_values = MemoryContextAlloc(session->context,
											 Max(1, ncolumns) * sizeof(char *));
	psync_pg_execute(session, psync_pg_begin_commands(session));
	if (!PQsendQueryParams(session->conn, sql, 0, NULL, NULL, NULL, NULL, 0) ||
		!PQsetSingleRowMode(session->conn))
		psync_pg_lost(session);
	session->row_bytes = 0;
	session->reading = true;
	psync_pg_flush(session);
}

/* The statement has ended: nothing may follow, or it had failed. */
static void
read_ended(PsyncPgSession *session)
{
	session->reading = false;
	pfree(session->row_values);
	session->row_values = NULL;
	if (psync_pg_get_result(session) != NULL)
		psync_pg_unexpected(session, "It answered a query twice.");
	if (PQstatus(session->conn) == CONNECTION_BAD)
		psync_pg_lost(session);
}

/*
 * The statement has failed.
 */
static void
read_failed(PsyncPgSession *session, PGresult *result)
{
	PsyncPgError error;

	psync_pg_error_take(&error, result);
	read_ended(session);
	psync_pg_error_raise(session, &error, "could not read at the target");
}

/* A row's columns must be as many as the reader has said, and not null. */
static void
check_columns(PsyncPgSession *session, PGresult *result)
{
	if (PQnfields(result) != session->row_columns)
		psync_pg_unexpected(session,
							psprintf("It answered a query with %d columns instead of %d.",
									 PQnfields(result), session->row_columns));
}

/*
 * The next row, valid until the next call; NULL at the end.  The values point
 * into libpq's result, which is kept with the session so that closing it frees
 * it.
 */
static const char *const *
read_row(PsyncTarget *target)
{
	PsyncPgSession *session = target->private_data;
	PGresult   *result;

	Assert(session->reading);

	result = psync_pg_get_result(session);
	if (result == NULL)
		psync_pg_unexpected(session, "It did not answer a query.");
	switch (PQresultStatus(result))
	{
		case PGRES_TUPLES_OK:
			check_columns(session, result);
			read_ended(session);
			psync_pg_execute(session, "ROLLBACK");
			return NULL;
		case PGRES_SINGLE_TUPLE:
			break;
		case PGRES_FATAL_ERROR:
			read_failed(session, result);
			break;
		default:
			psync_pg_unexpected(session, "It answered a query with something else than rows.");
	}

	check_columns(session, result);
	for (int i = 0; i < session->row_columns; i++)
	{
		session->row_values[i] = i < session->row_filled ?
			psync_pg_text(session, result, 0, i) :
			psync_pg_text_or_null(session, result, 0, i);
		session->row_bytes += PQgetlength(result, 0, i) + PSYNC_PG_VALUE_BYTES;
	}
	if (session->row_bytes > PSYNC_PG_ROWS_BYTES_MAX)
		psync_pg_unexpected(session, "It has sent more rows than can be meant.");
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
	.set = read_set,
	.send = read_send,
	.row = read_row,
	.position_query = read_position_query,
};
