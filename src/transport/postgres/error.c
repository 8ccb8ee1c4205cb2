/*
 * error.c
 *		Errors of the target, told in our words.
 *
 * The message names table and, where known, key; the target's own message is
 * the cause, its SQLSTATE is kept.  Its context is dropped: it speaks of our
 * statements.
 *
 * Values stay out (P9).  PostgreSQL's messages show the value at fault where
 * it cannot be read as its type, and details show rows and the values of
 * constraints; see mask_message() and mask_detail().  What a trigger at the
 * target says is its author's doing, and shown.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"

/* Texts of a target are cut to this many bytes; one may be of megabytes. */
#define PSYNC_PG_TEXT_BYTES_MAX		4096

/*
 * A text from outside, in the current memory context: of bounded length, and
 * text in this database's encoding, whatever it was.
 */
char *
psync_pg_clean_text(const char *text)
{
	size_t		size = strnlen(text, PSYNC_PG_TEXT_BYTES_MAX + 1);
	char	   *copy = pnstrdup(text, Min(size, PSYNC_PG_TEXT_BYTES_MAX));
	int			length = strlen(copy);

	if (size > PSYNC_PG_TEXT_BYTES_MAX)
	{
		/* a character may have been cut in two */
		length = pg_mbcliplen(copy, length, PSYNC_PG_TEXT_BYTES_MAX - 3);
		strcpy(copy + length, "...");
	}
	if (!pg_verifymbstr(copy, strlen(copy), true))
	{
		for (char *c = copy; *c != '\0'; c++)
		{
			if (IS_HIGHBIT_SET(*c))
				*c = '?';
		}
	}
	length = strlen(copy);
	while (length > 0 && copy[length - 1] == '\n')
		copy[--length] = '\0';
	return copy;
}

/*
 * A field of the error, in the current memory context; NULL if the target did
 * not send it.
 */
static char *
copy_field(PGresult *result, int field)
{
	char	   *value = PQresultErrorField(result, field);

	return value != NULL ? psync_pg_clean_text(value) : NULL;
}

/*
 * The five characters as one number.  libpq's own errors have none: they are
 * about the connection.  Those of successes and warnings are no errors, so a
 * target that sends one with an error is not to be understood.
 */
static int
encode_sqlstate(const char *text)
{
	if (text == NULL || strlen(text) != 5 ||
		strspn(text, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") != 5 ||
		(text[0] == '0' && text[1] <= '2'))
		return ERRCODE_CONNECTION_FAILURE;
	return MAKE_SQLSTATE(text[0], text[1], text[2], text[3], text[4]);
}

/*
 * Data exceptions that quote a value: "invalid input syntax for type date:
 * "x"".  Two of that class quote names of encodings instead.
 */
static bool
quotes_value(int sqlstate)
{
	return ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_DATA_EXCEPTION &&
		sqlstate != ERRCODE_CHARACTER_NOT_IN_REPERTOIRE &&
		sqlstate != ERRCODE_UNTRANSLATABLE_CHARACTER;
}

/* Put "…" in place of what stands between two places of a text. */
static char *
blot_out(const char *text, const char *from, const char *upto)
{
	Assert(from >= text && upto >= from);
	return psprintf("%.*s...%s", (int) (from - text), text, upto);
}

/* From the first quote to the last, as values may have quotes in them. */
static char *
mask_message(int sqlstate, char *message)
{
	char	   *open = strchr(message, '"');
	char	   *close = strrchr(message, '"');

	if (!quotes_value(sqlstate) || open == close)
		return message;
	return blot_out(message, open + 1, close);
}

/*
 * A constraint's detail is worth having without its values: "Key (a)=(1) is
 * not present in table "b"."  Whatever language it is in, the values stand
 * between the first ")=(" and the last parenthesis.  Other details of data and
 * constraints show rows, or say how a value could not be read.
 */
static char *
mask_detail(int sqlstate, char *detail)
{
	char	   *open = strstr(detail, ")=(");
	char	   *close = strrchr(detail, ')');

	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION:
			if (open == NULL || close < open + 3 ||
				sqlstate == ERRCODE_CHECK_VIOLATION ||
				sqlstate == ERRCODE_NOT_NULL_VIOLATION)
				return NULL;
			return blot_out(detail, open + 3, close);
		case ERRCODE_DATA_EXCEPTION:
		case ERRCODE_PLPGSQL_ERROR:
			return NULL;
		default:
			return detail;
	}
}

/*
 * Copy the error.  The copies are in the current memory context, the session's
 * scratch as a rule: they last until the group is done with.
 */
void
psync_pg_error_take(PsyncPgError *error, PGresult *result)
{
	ExecStatusType status = PQresultStatus(result);

	Assert(status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK);

	memset(error, 0, sizeof(*error));
	error->sqlstate = encode_sqlstate(PQresultErrorField(result, PG_DIAG_SQLSTATE));
	error->message = copy_field(result, PG_DIAG_MESSAGE_PRIMARY);
	error->detail = copy_field(result, PG_DIAG_MESSAGE_DETAIL);
	error->hint = copy_field(result, PG_DIAG_MESSAGE_HINT);
	error->schema = copy_field(result, PG_DIAG_SCHEMA_NAME);
	error->table = copy_field(result, PG_DIAG_TABLE_NAME);
	error->constraint = copy_field(result, PG_DIAG_CONSTRAINT_NAME);
	if (error->message == NULL)
	{
		const char *text = PQresultErrorMessage(result);

		error->message = text && *text ? psync_pg_clean_text(text) :
			psprintf("unexpected result status: %s", PQresStatus(status));
	}
	else
		error->message = mask_message(error->sqlstate, error->message);
	if (error->detail != NULL)
		error->detail = mask_detail(error->sqlstate, error->detail);
	Assert(error->sqlstate != 0);
}

/*
 * Does not return.  The connection has failed; libpq knows why.
 */
void
psync_pg_lost(PsyncPgSession *session)
{
	const char *text = PQerrorMessage(session->conn);

	ereport(ERROR,
			(errcode(ERRCODE_CONNECTION_FAILURE),
			 errmsg("lost connection to server \"%s\"",
					session->target->server_name),
			 text && *text ?
			 errdetail_internal("%s", psync_pg_clean_text(text)) : 0));
	pg_unreachable();
}

/*
 * Raise an error of the target.  "what" is what could not be done; NULL if
 * that says nothing beyond the target's message.
 */
void
psync_pg_error_raise(PsyncPgSession *session, const PsyncPgError *error,
					 const char *what)
{
	Assert(error->sqlstate != 0 && error->message != NULL);

	ereport(ERROR,
			(errcode(error->sqlstate),
			 what ? errmsg("%s: %s", what, error->message) :
			 errmsg_internal("%s", error->message),
			 error->detail ? errdetail_internal("%s", error->detail) : 0,
			 error->hint ? errhint("%s", error->hint) : 0,
			 errcontext("remote server \"%s\"", session->target->server_name)));
	pg_unreachable();
}

/* The change that an entry was made of, as far as its key goes. */
static void
change_of_entry(const PsyncPgGroup *group, const PsyncPgEntry *entry,
				PsyncChange *change)
{
	memset(change, 0, sizeof(*change));
	change->op = entry->op;
	change->shape = entry->map->shape;
	change->table = entry->table->table;
	change->key_changed = entry->key_changed;
	change->new_image = entry->image_size ? group->data.data + entry->image_at : NULL;
	change->new_size = entry->image_size;
	change->old_part = entry->part_size ? group->data.data + entry->part_at : NULL;
	change->old_size = entry->part_size;
}

/*
 * What to do about it, where the target does not say so itself; NULL if only
 * its message can tell.
 */
static const char *
hint_for(const PsyncPgError *error)
{
	if (error->hint != NULL)
		return error->hint;
	switch (error->sqlstate)
	{
		case ERRCODE_INSUFFICIENT_PRIVILEGE:
			return "Grant SELECT, INSERT, UPDATE, DELETE and, for TRUNCATE, TRUNCATE on the table to the target's role.";
		case ERRCODE_UNIQUE_VIOLATION:
		case ERRCODE_FOREIGN_KEY_VIOLATION:
		case ERRCODE_EXCLUSION_VIOLATION:
			return "Remove what is in the way at the target, or make the constraint deferrable there.";
		default:
			return NULL;
	}
}

/*
 * Does not return.  "table" is quoted already; "key" is as describe_key()
 * gives it, or NULL.
 */
static void
raise_for_table(PsyncPgSession *session, const char *table, const char *key,
				const PsyncPgError *error)
{
	const char *hint = hint_for(error);
	StringInfoData detail;

	initStringInfo(&detail);
	if (key != NULL && key[0] != '\0')
		appendStringInfo(&detail, "The change's key is %s.", key);
	if (error->detail != NULL)
		appendStringInfo(&detail, "%s%s", detail.len > 0 ? " " : "", error->detail);

	ereport(ERROR,
			(errcode(error->sqlstate),
			 errmsg("could not apply change to table %s: %s", table, error->message),
			 detail.len > 0 ? errdetail_internal("%s", detail.data) : 0,
			 hint ? errhint("%s", hint) : 0,
			 errcontext("remote server \"%s\"", session->target->server_name)));
	pg_unreachable();
}

/*
 * Raise what kept the group from being applied.  Does not return.  If it is
 * known which change it was, its key is told, for people to look at (P9: only
 * the key).
 */
void
psync_pg_failure_raise(PsyncPgSession *session, const PsyncPgGroup *group,
					   const PsyncPgFailure *failure)
{
	const PsyncPgError *error = &failure->error;

	switch (failure->what)
	{
		case PSYNC_PG_WHAT_POSITION:
			psync_pg_position_refused(session, error);
			break;
		case PSYNC_PG_WHAT_ENTRY:
			{
				const PsyncPgEntry *entry = &group->entries[failure->entry];
				PsyncChange change;
				char	   *key = NULL;

				Assert(failure->entry >= 0 && failure->entry < group->nentries);
				if (entry->map != NULL)
				{
					change_of_entry(group, entry, &change);
					key = psync_pg_services->describe_key(&change);
				}
				raise_for_table(session, entry->table->name, key, error);
			}
			break;
		case PSYNC_PG_WHAT_GROUP:
		case PSYNC_PG_WHAT_CONTROL:
			/* a constraint checked at the end knows its table */
			if (error->table != NULL)
				raise_for_table(session, psprintf("\"%s.%s\"",
												  error->schema ? error->schema : "",
												  error->table),
								NULL, error);
			break;
	}
	psync_pg_error_raise(session, error, "could not apply changes");
}

/*
 * A constraint between rows, which may be fulfilled when the rows arrive in
 * another order?
 */
bool
psync_pg_error_is_constraint(const PsyncPgError *error)
{
	switch (error->sqlstate)
	{
		case ERRCODE_UNIQUE_VIOLATION:
		case ERRCODE_FOREIGN_KEY_VIOLATION:
		case ERRCODE_RESTRICT_VIOLATION:
		case ERRCODE_EXCLUSION_VIOLATION:
		case ERRCODE_CARDINALITY_VIOLATION:
			return true;
		default:
			return false;
	}
}

/*
 * Is the error about some change, so that it is worth finding out which?  Not
 * if the target is shutting down, out of resources, let us wait too long for a
 * lock, or chose us as the victim of a deadlock: the window will be sent again
 * as it is.
 */
bool
psync_pg_error_is_change(const PsyncPgError *error)
{
	if (error->sqlstate == ERRCODE_LOCK_NOT_AVAILABLE)
		return false;
	switch (ERRCODE_TO_CATEGORY(error->sqlstate))
	{
		case ERRCODE_CONNECTION_EXCEPTION:
		case ERRCODE_OPERATOR_INTERVENTION:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_SYSTEM_ERROR:
		case ERRCODE_INTERNAL_ERROR:
			return false;
		default:
			return true;
	}
}
