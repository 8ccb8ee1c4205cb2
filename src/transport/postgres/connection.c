/*
 * connection.c
 *		Connecting to the target, and closing the connection.
 *
 * Whose credentials.  A sync runs with the rights of its owner.  If that is no
 * superuser, the user mapping must have credentials of its own and the target
 * must have asked for them; otherwise a user could reach through this server
 * whatever trusts the server itself: a local socket with "peer", its password
 * file, its certificates.  postgres_fdw has the same rule.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/builtins.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"

/* Seconds to wait for a connection, where the server does not say. */
#define PSYNC_PG_CONNECT_TIMEOUT	30

/* Options that are ours, or of postgres_fdw, not libpq's. */
static const char *const not_for_libpq[] = {
	"position_schema", "position_table", "session_replication_role", "origin",
	"search_path", "password_required", "lossy_casts",
	/* postgres_fdw's */
	"use_remote_estimate", "fdw_startup_cost", "fdw_tuple_cost", "extensions",
	"updatable", "truncatable", "fetch_size", "batch_size", "async_capable",
	"parallel_commit", "parallel_abort", "analyze_sampling", "keep_connections",
	"use_scram_passthrough", "restore_stats",
	NULL
};

/*
 * Used unless the server says otherwise.  A dead network is noticed within
 * about a minute instead of hours.
 */
static const struct
{
	const char *keyword;
	const char *value;
}			defaults[] = {
	{"keepalives_idle", "30"},
	{"keepalives_interval", "10"},
	{"keepalives_count", "3"},
	{"tcp_user_timeout", "60000"},
	{NULL, NULL}
};

/* ------------------------------------------------------------- connecting */

/*
 * Is the word in the list, which NULL ends?
 */
static bool
is_listed(const char *const *list, const char *word)
{
	for (; *list != NULL; list++)
	{
		if (strcmp(*list, word) == 0)
			return true;
	}
	return false;
}

/*
 * Options are validated by a table of ours, which is newer or older than the
 * libpq we run with.
 */
static bool
libpq_knows(const PQconninfoOption *known, const char *keyword)
{
	for (; known->keyword != NULL; known++)
	{
		if (strcmp(known->keyword, keyword) == 0)
			return true;
	}
	return false;
}

/* Keywords and values for libpq; grows by add(). */
typedef struct Conninfo
{
	const char **keywords;
	const char **values;
	int			n;
} Conninfo;

/*
 * The arrays were made large enough for all.
 */
static void
conninfo_add(Conninfo *info, const char *keyword, const char *value)
{
	info->keywords[info->n] = keyword;
	info->values[info->n] = value;
	info->n++;
}

/*
 * Add the options that are meant for libpq.  The value is asked for by
 * keyword, so that a user mapping's goes before the server's.  An option that
 * this libpq does not know is an error rather than left out: it may be the one
 * that demands protection.
 */
static void
conninfo_add_options(Conninfo *info, PsyncPgSession *session, List *options,
					 const PQconninfoOption *known)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		const char *keyword = lfirst_node(DefElem, lc)->defname;

		if (is_listed(not_for_libpq, keyword))
			continue;
		if (!libpq_knows(known, keyword))
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
					 errmsg("option \"%s\" of server \"%s\" is not known to this version of libpq",
							keyword, session->target->server_name),
					 errdetail("The transport uses libpq %d.%d.",
							   PQlibVersion() / 10000, PQlibVersion() % 10000)));
		conninfo_add(info, keyword,
					 psync_pg_services->option(session->target, keyword));
	}
}

/*
 * What to hand to libpq.  A keyword given twice counts with its last value:
 * defaults first, then the server's and the user mapping's, then ours.
 */
static void
build_conninfo(PsyncPgSession *session, Conninfo *info)
{
	PsyncTarget *target = session->target;
	PQconninfoOption *known = PQconndefaults();
	int			most = list_length(target->server_options) +
		list_length(target->user_options) + lengthof(defaults) + 3;

	if (known == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	info->keywords = palloc(most * sizeof(char *));
	info->values = palloc(most * sizeof(char *));
	info->n = 0;
	PG_TRY();
	{
		for (int i = 0; defaults[i].keyword != NULL; i++)
			conninfo_add(info, defaults[i].keyword, defaults[i].value);
		conninfo_add_options(info, session, target->server_options, known);
		conninfo_add_options(info, session, target->user_options, known);
		conninfo_add(info, "fallback_application_name", "payment_sync");
		conninfo_add(info, "client_encoding", GetDatabaseEncodingName());
		conninfo_add(info, NULL, NULL);
	}
	PG_FINALLY();
	{
		PQconninfoFree(known);
	}
	PG_END_TRY();
	Assert(info->n <= most);
}

/*
 * May the owner connect without credentials of the user mapping's own?
 * Superusers may; others if a superuser has said so in the mapping.
 */
static bool
password_optional(const PsyncTarget *target)
{
	const char *required = psync_pg_services->option(target, "password_required");
	bool		value = true;

	if (target->owner_is_superuser)
		return true;
	if (required != NULL)
		(void) parse_bool(required, &value);
	return !value;
}

/*
 * Does not return.  The hint says who can do something about it.
 */
static void
refuse_without_password(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED),
			 errmsg("password is required"),
			 errdetail("%s", detail),
			 errhint("Set a password in the user mapping, and let the target ask for it; or let a superuser set password_required to \"false\" there.")));
}

/*
 * -1: without limit.  libpq itself heeds connect_timeout only in its blocking
 * calls, which are not used here.
 */
static long
connect_timeout_ms(const PsyncTarget *target)
{
	const char *value = psync_pg_services->option(target, "connect_timeout");
	long		seconds = value ? atol(value) : PSYNC_PG_CONNECT_TIMEOUT;

	return seconds > 0 ? seconds * 1000L : -1;
}

/*
 * Let libpq connect, within the time allowed for all hosts together.  libpq's
 * messages about connections name hosts, users and databases, but no password
 * (P9).
 */
static void
establish(PsyncPgSession *session)
{
	long		timeout = connect_timeout_ms(session->target);
	TimestampTz deadline = GetCurrentTimestamp() + timeout * 1000;
	PostgresPollingStatusType poll = PGRES_POLLING_WRITING;

	while (PQstatus(session->conn) != CONNECTION_BAD && poll != PGRES_POLLING_OK)
	{
		long		left = -1;
		int			events;
		int			before;

		if (poll == PGRES_POLLING_FAILED)
			break;
		if (timeout >= 0)
		{
			left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
			if (left <= 0)
				ereport(ERROR,
						(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
						 errmsg("could not connect to server \"%s\": timeout expired",
								session->target->server_name)));
		}
		events = psync_pg_services->wait(PQsocket(session->conn),
										 poll == PGRES_POLLING_READING ?
										 WL_SOCKET_READABLE : WL_SOCKET_WRITEABLE,
										 left);
		/* libpq takes a call for the news that its socket is ready */
		if ((events & (WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE)) == 0)
			continue;
		before = psync_pg_input_begin(session);
		poll = PQconnectPoll(session->conn);
		psync_pg_input_end(session, before);
	}
	if (PQstatus(session->conn) != CONNECTION_OK)
		ereport(ERROR,
				(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
				 errmsg("could not connect to server \"%s\"",
						session->target->server_name),
				 errdetail_internal("%s", psync_pg_clean_text(PQerrorMessage(session->conn)))));
}

/*
 * Notices of the target have no reader here; libpq would print them to the
 * server's standard error.  To libpq the last word to a session that is idle is
 * one, too.
 */
static void
note_notice(void *arg, const PGresult *result)
{
	PsyncPgSession *session = arg;
	const char *severity = PQresultErrorField(result, PG_DIAG_SEVERITY_NONLOCALIZED);

	if (severity != NULL &&
		(strcmp(severity, "FATAL") == 0 || strcmp(severity, "PANIC") == 0))
		session->dismissed = true;
}

/*
 * Connect and set up the session.  A failure leaves session->conn or only the
 * file descriptor's reservation behind, both of which psync_pg_disconnect()
 * takes care of.
 *
 * Whether the password was used is looked at after the fact, since only the
 * target knows what it asks for; nothing was sent to it until then but the
 * start of the session.
 */
void
psync_pg_connect(PsyncPgSession *session)
{
	Conninfo	info;
	bool		optional = password_optional(session->target);
	const char *password = psync_pg_services->option(session->target, "password");

	Assert(session->conn == NULL);
	if (!optional && (password == NULL || password[0] == '\0'))
		refuse_without_password("The owner of the sync is no superuser, and the user mapping has no password.");
	build_conninfo(session, &info);

	if (!AcquireExternalFD())
		ereport(ERROR,
				(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
				 errmsg("could not connect to server \"%s\"",
						session->target->server_name),
				 errdetail("There are too many open files on this server."),
				 errhint("Raise the server's max_files_per_process and/or \"ulimit -n\" limits.")));
	session->fd_acquired = true;

	session->conn = PQconnectStartParams(info.keywords, info.values, false);
	if (session->conn == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	psync_pg_memory_begin(session);
	(void) PQsetNoticeReceiver(session->conn, note_notice, session);
	establish(session);

	if (!optional && !PQconnectionUsedPassword(session->conn))
		refuse_without_password("The owner of the sync is no superuser, and the target did not ask for the password.");
	if (PQsetnonblocking(session->conn, 1) != 0)
		psync_pg_lost(session);
	Assert(session->fd_acquired && PQisnonblocking(session->conn));
	psync_pg_settings_apply(session);
	session->used_at = GetCurrentTimestamp();
}

/* Does not wait: libpq says good-bye if the socket takes it, and closes. */
void
psync_pg_disconnect(PsyncPgSession *session)
{
	if (session->conn != NULL)
		PQfinish(session->conn);
	session->conn = NULL;
	PQclear(session->result);
	session->result = NULL;
	PQclear(session->answer);
	session->answer = NULL;
	if (session->fd_acquired)
		ReleaseExternalFD();
	session->fd_acquired = false;
}
