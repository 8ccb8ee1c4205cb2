/*
 * answer.c
 *		What the target answers: waiting for it, and looking at it.
 *
 * libpq is only ever used without blocking.  Whatever must be waited for is
 * waited for in services->wait(), which answers to cancel and shutdown, and
 * holds no snapshot meanwhile.
 *
 * Nothing that a target sends is taken on trust (P7): it may be broken, or not
 * PostgreSQL at all.  This is the one place where its answers are looked at:
 *
 *	status		an answer of a kind that was not asked for ends the session.  In
 *				a COPY that we did not begin, libpq would hand out one result
 *				after the other without end.
 *	shape		a query says how many rows and columns it wants.
 *	texts		psync_pg_text() gives no NULL, and nothing that is no text in this
 *				database's encoding.
 *	size		libpq keeps whatever comes until it makes a complete result: a row
 *				of a gigabyte, rows without end, or notices and parameters that
 *				nobody asked for.  So what comes is counted, and what results
 *				account for is taken off again; and libpq's memory is looked at
 *				before each time that it reads.
 *
 * Results belong to the session, which frees them when it closes: an error may
 * be raised at any time.
 */
#include "postgres.h"

#include <sys/ioctl.h>
#include <sys/socket.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"

/*
 * How much may come beyond what results account for.  While we write, the
 * target only confirms; an error that quotes a value is the largest answer.
 * Who reads gets rows, which may be large.
 */
#define PSYNC_PG_UNTAKEN_MAX		(16 * 1024 * 1024)
#define PSYNC_PG_ROOM_MAX			(64 * 1024 * 1024)
#define PSYNC_PG_UNTAKEN_MAX_READ	(256 * 1024 * 1024)

/* A connection that was not used for so long is tried before it is. */
#define PSYNC_PG_QUIET_MS			60000

/* libpq has room for at least so much when it reads */
#define PSYNC_PG_READ_LEAST			8192

/*
 * The target has sent what was not asked for.
 */
void
psync_pg_unexpected(PsyncPgSession *session, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("unexpected answer from server \"%s\"",
					session->target->server_name),
			 errdetail("%s", detail)));
	pg_unreachable();
}

/* ------------------------------------------------------------------- size */

/*
 * What the socket holds.  Not an error if the system cannot say: then nothing
 * is known.
 */
static int
bytes_waiting(PsyncPgSession *session)
{
	int			n = 0;

	if (ioctl(PQsocket(session->conn), FIONREAD, &n) != 0 || n < 0)
		return 0;
	return n;
}

/*
 * An error if more has come than anything accounts for.
 */
static void
check_untaken(PsyncPgSession *session)
{
	int64		most = session->target->read_only ?
		PSYNC_PG_UNTAKEN_MAX_READ : PSYNC_PG_UNTAKEN_MAX;

	if (session->untaken > most)
		psync_pg_unexpected(session,
							psprintf("It has sent more than %d MB that make no complete answer.",
									 (int) (most / (1024 * 1024))));
}

/*
 * Memory of the process outside of memory contexts: libpq's, in the main.  0
 * where the C library cannot say.
 */
static int64
foreign_memory(int64 allocated)
{
	return allocated - (int64) MemoryContextMemAllocated(TopMemoryContext, true);
}

#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 33)
static int64
allocated_memory(void)
{
	struct mallinfo2 info = mallinfo2();

	return (int64) info.uordblks + (int64) info.hblkhd;
}
#else
static int64
allocated_memory(void)
{
	return 0;
}
#endif

/*
 * A session begins: what is there now is not its doing.
 */
void
psync_pg_memory_begin(PsyncPgSession *session)
{
	session->allocated = allocated_memory();
	session->foreign = foreign_memory(session->allocated);
}

/*
 * An error if libpq has made room for an answer that is too large.  It does so
 * when it sees how large an answer is to be, and then reads as long as there is
 * something, which from a fast target is all of it.  Our own memory grows as
 * well, so the exact count, which is dearer, is made only if there is much
 * more than at the last.
 */
static void
check_memory(PsyncPgSession *session)
{
	int64		most = session->target->read_only ?
		PSYNC_PG_UNTAKEN_MAX_READ : PSYNC_PG_ROOM_MAX;
	int64		allocated = allocated_memory();

	if (allocated - session->allocated < PSYNC_PG_UNTAKEN_MAX)
		return;
	session->allocated = allocated;
	if (foreign_memory(allocated) - session->foreign > most)
		psync_pg_unexpected(session,
							psprintf("It has announced an answer of more than %d MB.",
									 (int) (most / (1024 * 1024))));
}

/*
 * libpq is about to read from the socket, and has read.  It does not say how
 * much that was.  What was there is not there any more, unless more has come
 * meanwhile; the count may fall short, never exceed.
 */
int
psync_pg_input_begin(PsyncPgSession *session)
{
	check_memory(session);
	return bytes_waiting(session);
}

void
psync_pg_input_end(PsyncPgSession *session, int before)
{
	session->untaken += Max(before - bytes_waiting(session),
							Min(before, PSYNC_PG_READ_LEAST));
	check_untaken(session);
}

/*
 * Read what has come; false if the connection has failed.
 */
static bool
read_input(PsyncPgSession *session)
{
	int			before = psync_pg_input_begin(session);

	if (!PQconsumeInput(session->conn))
		return false;
	psync_pg_input_end(session, before);
	return true;
}

/*
 * The same, where that is an error.
 */
static void
take_input(PsyncPgSession *session)
{
	if (!read_input(session))
		psync_pg_lost(session);
}

/* A target's word to listeners; nobody here listens. */
static void
drop_notifications(PsyncPgSession *session)
{
	PGnotify   *notify;

	while ((notify = PQnotifies(session->conn)) != NULL)
		PQfreemem(notify);
}

/* ---------------------------------------------------------------- waiting */

/*
 * Send what libpq has buffered, taking in what arrives meanwhile.  Returns
 * when all is sent; raises if the connection fails or the process is to stop.
 */
void
psync_pg_flush(PsyncPgSession *session)
{
	for (;;)
	{
		int			rc = PQflush(session->conn);
		int			events;

		if (rc < 0)
			psync_pg_lost(session);
		if (rc == 0)
			return;

		/* the target may not read on before we read what it has sent */
		events = psync_pg_services->wait(PQsocket(session->conn),
										 WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE,
										 -1);
		if (events & WL_SOCKET_READABLE)
			take_input(session);
	}
}

/*
 * Is there a result (or the end of results) that can be had without waiting?
 * Sends and receives what can be sent and received at once.
 */
bool
psync_pg_result_ready(PsyncPgSession *session)
{
	if (PQflush(session->conn) < 0)
		psync_pg_lost(session);
	if (!PQisBusy(session->conn))
		return true;
	take_input(session);
	return !PQisBusy(session->conn);
}

/*
 * The result that is ready, valid until the next one; NULL at the end of a
 * command's.  Whether COPY_IN was asked for is known to the caller; COPY to us
 * is asked for nowhere.
 */
PGresult *
psync_pg_take_result(PsyncPgSession *session)
{
	Assert(!PQisBusy(session->conn));

	/* there may be something to take each time, so that nothing waits */
	CHECK_FOR_INTERRUPTS();
	drop_notifications(session);
	PQclear(session->result);
	session->result = PQgetResult(session->conn);
	if (session->result == NULL)
		return NULL;
	session->untaken = Max(0, session->untaken -
						   (int64) PQresultMemorySize(session->result));
	switch (PQresultStatus(session->result))
	{
		case PGRES_COPY_OUT:
		case PGRES_COPY_BOTH:
		case PGRES_BAD_RESPONSE:
		case PGRES_EMPTY_QUERY:
			psync_pg_unexpected(session,
								psprintf("It answered with %s.",
										 PQresStatus(PQresultStatus(session->result))));
			break;
		default:
			break;
	}
	return session->result;
}

/*
 * The same, after waiting for it.
 */
PGresult *
psync_pg_get_result(PsyncPgSession *session)
{
	Assert(session->conn != NULL);

	psync_pg_flush(session);
	while (PQisBusy(session->conn))
	{
		(void) psync_pg_services->wait(PQsocket(session->conn),
									   WL_SOCKET_READABLE, -1);
		take_input(session);
	}
	return psync_pg_take_result(session);
}

/* ----------------------------------------------------- quiet connections */

/*
 * Has the other end closed the connection?  Takes in what has come unasked, such
 * as the word that a session was idle for too long.  Does not wait.
 */
static bool
is_closed(PsyncPgSession *session)
{
	char		byte;

	for (;;)
	{
		ssize_t		n = recv(PQsocket(session->conn), &byte, 1, MSG_PEEK | MSG_DONTWAIT);

		if (n < 0)
			return errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR;
		if (n == 0)
			return true;
		if (!read_input(session))
			return true;
		(void) PQisBusy(session->conn);
		drop_notifications(session);
		if (session->dismissed)
			return true;
	}
}

/*
 * Does the target answer?  A firewall may have forgotten a quiet connection
 * without telling either end.
 */
static bool
answers(PsyncPgSession *session)
{
	PGconn	   *conn = session->conn;

	if (!PQsendQuery(conn, "SELECT"))
		return false;
	for (;;)
	{
		PGresult   *result;
		bool		ok;
		int			rc;

		while ((rc = PQflush(conn)) > 0 || (rc == 0 && PQisBusy(conn)))
		{
			(void) psync_pg_services->wait(PQsocket(conn), WL_SOCKET_READABLE |
										   (rc > 0 ? WL_SOCKET_WRITEABLE : 0), -1);
			if (!read_input(session))
				return false;
		}
		result = rc == 0 ? PQgetResult(conn) : NULL;
		if (result == NULL)
			return rc == 0 && PQstatus(conn) == CONNECTION_OK;
		ok = PQresultStatus(result) == PGRES_TUPLES_OK;
		PQclear(result);
		if (!ok)
			return false;
	}
}

/*
 * Can the session be used, after it may have been quiet for long?  Asks the
 * target only if it was.
 */
bool
psync_pg_is_alive(PsyncPgSession *session)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		quiet = TimestampDifferenceExceeds(session->used_at, now,
												   PSYNC_PG_QUIET_MS);

	session->used_at = now;
	return !is_closed(session) && (!quiet || answers(session));
}

/* ---------------------------------------------------------------- queries */

/* A transaction around one query, where settings belong to transactions. */
static bool
needs_transaction(const PsyncPgSession *session)
{
	return session->local_settings != NULL && !session->in_transaction;
}

/*
 * End that transaction; what the query has answered is kept.
 */
static void
end_transaction(PsyncPgSession *session)
{
	PGresult   *result;

	if (!PQsendQuery(session->conn, "COMMIT"))
		psync_pg_lost(session);
	while ((result = psync_pg_get_result(session)) != NULL)
	{
		if (PQresultStatus(result) != PGRES_COMMAND_OK)
			psync_pg_unexpected(session, "It did not end a transaction.");
	}
}

/*
 * The last result of what was sent, or NULL with *error set.  Outside of
 * pipeline mode only.  Reads to the end in either case, so that the connection
 * can be used again.
 */
static PGresult *
collect(PsyncPgSession *session, PsyncPgError *error)
{
	PGresult   *result;

	error->sqlstate = 0;
	PQclear(session->answer);
	session->answer = NULL;
	while ((result = psync_pg_get_result(session)) != NULL)
	{
		ExecStatusType status = PQresultStatus(result);

		PQclear(session->answer);
		session->answer = NULL;
		if (status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK)
		{
			session->answer = result;
			session->result = NULL;
		}
		else if (status == PGRES_FATAL_ERROR)
			psync_pg_error_take(error, result);
		else
			psync_pg_unexpected(session, psprintf("It answered with %s.",
												  PQresStatus(status)));
	}
	if (PQstatus(session->conn) == CONNECTION_BAD)
		psync_pg_lost(session);
	if (error->sqlstate != 0)
		return NULL;
	if (session->answer == NULL)
		psync_pg_unexpected(session, "It did not answer a command.");
	return session->answer;
}

/*
 * Run a query with text parameters and text results; errors are raised.  The
 * answer must have so many columns, and so many rows, or any number if that is
 * PSYNC_PG_ANY_ROWS.  It is valid until the next command.
 */
PGresult *
psync_pg_query(PsyncPgSession *session, const char *sql, int nparams,
			   const char *const *params, int nrows, int ncolumns)
{
	PsyncPgError error;
	PGresult   *result;
	bool		alone = needs_transaction(session);

	Assert(PQpipelineStatus(session->conn) == PQ_PIPELINE_OFF);
	if (alone)
		psync_pg_execute(session, psync_pg_begin_commands(session));
	if (!PQsendQueryParams(session->conn, sql, nparams, NULL, params, NULL, NULL, 0))
		psync_pg_lost(session);
	result = collect(session, &error);
	if (result == NULL)
		psync_pg_error_raise(session, &error, NULL);
	if (alone)
		end_transaction(session);
	if (PQnfields(result) != ncolumns ||
		(nrows != PSYNC_PG_ANY_ROWS && PQntuples(result) != nrows))
		psync_pg_unexpected(session,
							psprintf("It answered a query with %d rows of %d columns.",
									 PQntuples(result), PQnfields(result)));
	return result;
}

/*
 * A field of an answer, which must not be null.  Valid as long as the answer.
 */
const char *
psync_pg_text(PsyncPgSession *session, PGresult *result, int row, int column)
{
	const char *value = psync_pg_text_or_null(session, result, row, column);

	if (value == NULL)
		psync_pg_unexpected(session, "A value that is never null was null.");
	return value;
}

/* The same; NULL for a null. */
const char *
psync_pg_text_or_null(PsyncPgSession *session, PGresult *result, int row, int column)
{
	const char *value;

	if (row >= PQntuples(result) || column >= PQnfields(result))
		psync_pg_unexpected(session, "An answer has too few rows or columns.");
	if (PQgetisnull(result, row, column))
		return NULL;
	value = PQgetvalue(result, row, column);
	if (strlen(value) != PQgetlength(result, row, column) ||
		!pg_verifymbstr(value, strlen(value), true))
		psync_pg_unexpected(session, "A value is no text in the session's encoding.");
	return value;
}

/*
 * Run commands, separated by semicolons; false and *error if one of them
 * fails, those after it are skipped.
 */
bool
psync_pg_try(PsyncPgSession *session, const char *sql, PsyncPgError *error)
{
	Assert(PQpipelineStatus(session->conn) == PQ_PIPELINE_OFF);
	if (!PQsendQuery(session->conn, sql))
		psync_pg_lost(session);
	return collect(session, error) != NULL;
}

/*
 * Run commands whose failure is nothing to recover from: it is raised.
 */
void
psync_pg_execute(PsyncPgSession *session, const char *sql)
{
	PsyncPgError error;

	if (!psync_pg_try(session, sql, &error))
		psync_pg_error_raise(session, &error, NULL);
}
