/*
 * error.c
 *		Errors of the target, told in our words.
 *
 * The message names table and, where known, key; the target's own message is
 * the cause, its SQLSTATE is kept.  Its context is dropped: it speaks of our
 * statements.
 *
 * Values stay out (P9), in whatever language the target speaks: only its
 * superuser can choose that.  Messages show the value at fault where it cannot
 * be read as its type, and details show rows and the values of constraints; see
 * mask_message() and mask_detail().  What a trigger at the target says with
 * RAISE EXCEPTION is its author's doing, and shown.
 */
#include "postgres.h"

#include <ctype.h>

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

/* What the data exceptions are called where the target's words may not be shown. */
static const struct
{
	int			sqlstate;
	const char *message;
}			data_exceptions[] = {
	{ERRCODE_STRING_DATA_RIGHT_TRUNCATION, "value too long for the column's type"},
	{ERRCODE_STRING_DATA_LENGTH_MISMATCH, "value of the wrong length for the column's type"},
	{ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE, "number out of range"},
	{ERRCODE_NULL_VALUE_NOT_ALLOWED, "null value not allowed"},
	{ERRCODE_INVALID_DATETIME_FORMAT, "invalid input syntax for a date or time"},
	{ERRCODE_DATETIME_VALUE_OUT_OF_RANGE, "date or time out of range"},
	{ERRCODE_INVALID_TIME_ZONE_DISPLACEMENT_VALUE, "time zone out of range"},
	{ERRCODE_INTERVAL_FIELD_OVERFLOW, "interval out of range"},
	{ERRCODE_DIVISION_BY_ZERO, "division by zero"},
	{ERRCODE_INVALID_TEXT_REPRESENTATION, "invalid input syntax for the column's type"},
	{ERRCODE_INVALID_BINARY_REPRESENTATION, "invalid binary form for the column's type"},
	{ERRCODE_INVALID_PARAMETER_VALUE, "invalid parameter value"},
	{ERRCODE_INVALID_XML_CONTENT, "invalid XML content"},
	{ERRCODE_INVALID_XML_DOCUMENT, "invalid XML document"},
	{ERRCODE_ARRAY_SUBSCRIPT_ERROR, "wrong number of array dimensions"},
	{ERRCODE_SYNTAX_ERROR, "syntax error"},
};

/*
 * Messages that quote a value: "invalid input syntax for type date: "x"".  Data
 * exceptions do, but for two that quote names of encodings, and syntax errors,
 * since our statements have none, but a value of type tsquery may.
 */
static bool
quotes_value(int sqlstate)
{
	return sqlstate == ERRCODE_SYNTAX_ERROR ||
		(ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_DATA_EXCEPTION &&
		 sqlstate != ERRCODE_CHARACTER_NOT_IN_REPERTOIRE &&
		 sqlstate != ERRCODE_UNTRANSLATABLE_CHARACTER);
}

/* Put "…" in place of what stands between two places of a text. */
static char *
blot_out(const char *text, const char *from, const char *upto)
{
	Assert(from >= text && upto >= from);
	return psprintf("%.*s...%s", (int) (from - text), text, upto);
}

/*
 * How much of a message, from its beginning, is words, a type's name perhaps
 * with its length in parentheses.  In every language values stand behind a quote
 * or a colon.  Which quotes there are is another matter, so what may be shown
 * is named, not what may not: letters of ASCII, and digits within words.
 */
static int
words_length(const char *message)
{
	int			i = 0;

	for (; message[i] != '\0'; i++)
	{
		char		c = message[i];
		bool		in_word = i > 0 && (isalnum((unsigned char) message[i - 1]) ||
										message[i - 1] == '_');

		if (c == '(')
		{
			int			n = strspn(message + i + 1, "0123456789,");

			if (message[i + 1 + n] != ')')
				break;
			i += n + 1;
		}
		else if (IS_HIGHBIT_SET(c) ||
				 !(isalpha((unsigned char) c) || strchr(" ,./_-", c) != NULL ||
				   (isdigit((unsigned char) c) && in_word)))
			break;
	}
	return i;
}

/*
 * The message without values.  One in English is shown up to where values may
 * begin.  In others that may be in the first word; then the words are ours.
 */
static char *
mask_message(int sqlstate, char *message)
{
	int			n;

	if (!quotes_value(sqlstate))
		return message;
	n = words_length(message);
	if (message[n] == '\0')
		return message;
	if (message[n] == ':' && n > 0)
		return pnstrdup(message, n);
	for (int i = 0; i < lengthof(data_exceptions); i++)
	{
		if (data_exceptions[i].sqlstate == sqlstate)
			return pstrdup(data_exceptions[i].message);
	}
	return pstrdup("invalid value");
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
			return sqlstate != ERRCODE_SYNTAX_ERROR ? detail : NULL;
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
	if (quotes_value(error->sqlstate))
		error->hint = NULL;
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
	switch (error->sqlstate)
	{
		case ERRCODE_UNDEFINED_FUNCTION:
		case ERRCODE_UNDEFINED_TABLE:
		case ERRCODE_UNDEFINED_OBJECT:
			return "If a trigger, check, domain or generated column at the target names it without its schema: the session's search_path is empty there; qualify the name, or set option \"search_path\" of the server.";
		default:
			break;
	}
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

/* The map's columns that the target generates, for messages. */
static char *
identity_columns(const PsyncPgMap *map)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < map->ncolumns; i++)
		if (map->columns[i].target->identity_always)
			appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "", map->columns[i].name);
	return buf.data;
}

/*
 * A statement that checks has divided by zero (statement.c): say what that
 * means.
 */
void
psync_pg_error_of_check(PsyncPgError *error, const PsyncPgMap *map, bool identity)
{
	if (error->sqlstate != ERRCODE_DIVISION_BY_ZERO)
		return;
	memset(error, 0, sizeof(*error));
	if (identity)
	{
		error->sqlstate = ERRCODE_GENERATED_ALWAYS;
		error->message = psprintf("a new value of a column that is GENERATED ALWAYS AS IDENTITY there (%s)",
								  identity_columns(map));
		error->detail = pstrdup("Rows of other tables depend on the row, so that it cannot be replaced either.");
		error->hint = pstrdup("Make the column GENERATED BY DEFAULT at the target.");
		return;
	}
	error->sqlstate = ERRCODE_TRIGGERED_ACTION_EXCEPTION;
	error->message = pstrdup("a trigger or rule of the target has kept it from having an effect");
	error->hint = pstrdup("Let the trigger pass on what payment_sync applies, or set the server's option session_replication_role to replica.");
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
