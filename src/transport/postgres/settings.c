/*
 * settings.c
 *		What the session at the target is set to.
 *
 * Settings belong to a session, and a session is not always ours.  Behind a
 * connection pooler in transaction mode it is lent to us for a transaction, and
 * to some other application for the next: what we set, that one would get.  It
 * would lose its search_path, and its commits would not wait for the disk.  So
 * nothing is set before it is known whose the session is, and where it may be
 * somebody else's, everything is set within each transaction and for it alone.
 *
 * The process that a server names when a connection begins is the one that
 * runs our statements; a pooler names something of its own, in whatever mode it
 * is.  (A pooler that passes on the server's word keeps the session for us, as
 * it could not send it a cancel otherwise.)
 *
 * Who reads sets everything for a transaction in any case: each of its
 * statements runs in one that is rolled back (read.c).
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"

/* When a setting applies. */
#define ALWAYS		0x00
#define YIELDS		0x01		/* not if the server's option "options" sets it */
#define WRITING		0x02		/* not for who only reads: it protects the target */
#define SESSION		0x04		/* means nothing within a transaction */

/*
 * What the remote session must have: for names and values to mean the same on
 * both sides, and for errors rather than silent loss.  And what it should
 * have, unless the server's option "options" says otherwise.
 */
static const struct
{
	const char *name;
	const char *value;
	int			when;
	int			version;		/* of the server that has it first */
}			settings[] = {
	{"datestyle", "ISO", ALWAYS, 0},
	{"intervalstyle", "postgres", ALWAYS, 0},
	{"timezone", "UTC", ALWAYS, 0},
	{"extra_float_digits", "3", ALWAYS, 0},
	{"bytea_output", "hex", ALWAYS, 0},
	{"standard_conforming_strings", "on", ALWAYS, 0},
	{"row_security", "off", ALWAYS, 0}, /* an error instead of rows left out */
	{"client_min_messages", "error", ALWAYS, 0},
	{"synchronous_commit", "off", YIELDS | WRITING, 0}, /* psync_pg_position_flush() */
	{"statement_timeout", "0", YIELDS | WRITING, 0},
	{"lock_timeout", "0", YIELDS | WRITING, 0},
	{"idle_in_transaction_session_timeout", "0", YIELDS | WRITING, 0},
	{"idle_session_timeout", "0", YIELDS | WRITING | SESSION, 140000},
	{"transaction_timeout", "0", YIELDS | WRITING, 170000},
	{"jit", "off", YIELDS, 110000},
	{"default_transaction_isolation", "read committed", SESSION, 0},
	{"default_transaction_read_only", "off", WRITING | SESSION, 0},
	/* so that the target notices when this server vanishes */
	{"tcp_keepalives_idle", "60", YIELDS | SESSION, 0},
	{"tcp_keepalives_interval", "10", YIELDS | SESSION, 0},
	{"tcp_keepalives_count", "6", YIELDS | SESSION, 0},
};

/*
 * So that a statement ends that nobody waits for any more, with the locks that
 * would keep our successor waiting.  Some platforms cannot do that, and say so by
 * an error.
 */
static const char notice_command[] =
	"SELECT pg_catalog.set_config('client_connection_check_interval', '1s', false)";

#define PSYNC_PG_VERSION_CHECKS_CLIENT	140000

/* ---------------------------------------------------- the option "options" */

/*
 * Is this the name of a setting, up to "="?  As the server takes them: in any
 * case, and with a dash for an underscore.
 */
static bool
names_setting(const char *word, const char *name)
{
	while (*name != '\0')
	{
		char		c = *word++;

		if (c == '-')
			c = '_';
		if (pg_tolower((unsigned char) c) != *name++)
			return false;
	}
	return *word == '=';
}

/*
 * Do the command-line options set it: "-c name=value", "-cname=value" or
 * "--name=value"?
 */
static bool
options_set(const char *options, const char *name)
{
	const char *word = options;

	while (word != NULL && *word != '\0')
	{
		word += strspn(word, " \t\r\n");
		if (strncmp(word, "--", 2) == 0 && names_setting(word + 2, name))
			return true;
		if (strncmp(word, "-c", 2) == 0)
		{
			word += 2;
			word += strspn(word, " \t\r\n");
			if (names_setting(word, name))
				return true;
		}

		/* a backslash keeps a blank within a word */
		while (*word != '\0' && strchr(" \t\r\n", *word) == NULL)
			word += word[0] == '\\' && word[1] != '\0' ? 2 : 1;
	}
	return false;
}

/* --------------------------------------------------------------- settings */

/* Is this one to be set, in a session or in a transaction? */
static bool
setting_applies(const PsyncPgSession *session, int i, bool local)
{
	const char *options = psync_pg_services->option(session->target, "options");
	int			when = settings[i].when;

	if ((when & SESSION) != 0 && local)
		return false;
	if ((when & WRITING) != 0 && session->target->read_only)
		return false;
	if (PQserverVersion(session->conn) < settings[i].version)
		return false;
	return (when & YIELDS) == 0 || !options_set(options, settings[i].name);
}

static void
add_setting(StringInfo sql, const char *name, const char *value, bool local)
{
	appendStringInfo(sql, "%s pg_catalog.set_config('%s', %s, %s)",
					 sql->len > 0 ? "," : "SELECT", name,
					 quote_literal_cstr(value), local ? "true" : "false");
}

/*
 * The statement that sets all, in the current memory context.
 */
static char *
settings_statement(PsyncPgSession *session, bool local)
{
	const PsyncTarget *target = session->target;
	const char *path = psync_pg_services->option(target, "search_path");
	const char *role = psync_pg_services->option(target, "session_replication_role");
	const char *origin = psync_pg_services->option(target, "origin");
	StringInfoData sql;

	initStringInfo(&sql);
	add_setting(&sql, "search_path",
				path != NULL && !target->read_only ? path : "", local);
	add_setting(&sql, "payment_sync.origin",
				origin != NULL ? origin : target->log_id, local);
	for (int i = 0; i < lengthof(settings); i++)
	{
		if (setting_applies(session, i, local))
			add_setting(&sql, settings[i].name, settings[i].value, local);
	}
	/* takes a privilege, so it is not touched without need */
	if (role != NULL && strcmp(role, "origin") != 0 && !target->read_only)
		add_setting(&sql, "session_replication_role", role, local);
	return sql.data;
}

/*
 * Is there a pooler between us and the server?  The first thing asked, since
 * nothing may be set before.
 */
static bool
is_pooled(PsyncPgSession *session)
{
	PGresult   *result = psync_pg_query(session, "SELECT pg_catalog.pg_backend_pid()",
										0, NULL, 1, 1);

	return atoi(psync_pg_text(session, result, 0, 0)) != PQbackendPID(session->conn);
}

/*
 * A new session: set what it is to have, or find out that this must be done for
 * each transaction.  session->begin is how those begin.
 */
void
psync_pg_settings_apply(PsyncPgSession *session)
{
	MemoryContext old = MemoryContextSwitchTo(session->context);
	bool		read_only = session->target->read_only;
	PsyncPgError error;

	session->pooled = is_pooled(session);
	if (session->pooled || read_only)
	{
		session->begin = read_only ?
			"BEGIN TRANSACTION ISOLATION LEVEL READ COMMITTED READ ONLY" :
			"BEGIN TRANSACTION ISOLATION LEVEL READ COMMITTED READ WRITE";
		session->local_settings = settings_statement(session, true);
	}
	else
	{
		session->begin = "BEGIN";
		psync_pg_execute(session, settings_statement(session, false));
	}
	if (!session->pooled &&
		PQserverVersion(session->conn) >= PSYNC_PG_VERSION_CHECKS_CLIENT)
		(void) psync_pg_try(session, notice_command, &error);
	MemoryContextSwitchTo(old);
}

/*
 * A further setting of a reader's transactions; the last value counts.
 */
void
psync_pg_settings_add(PsyncPgSession *session, const char *name, const char *value)
{
	MemoryContext old = MemoryContextSwitchTo(session->context);
	StringInfoData sql;

	Assert(session->target->read_only);
	initStringInfo(&sql);
	appendStringInfoString(&sql, session->local_settings);
	add_setting(&sql, name, value, true);
	session->local_settings = sql.data;
	MemoryContextSwitchTo(old);
}

/*
 * What begins a transaction, as one string of commands.
 */
char *
psync_pg_begin_commands(PsyncPgSession *session)
{
	if (session->local_settings == NULL)
		return pstrdup(session->begin);
	return psprintf("%s; %s", session->begin, session->local_settings);
}
