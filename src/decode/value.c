/*
 * value.c
 *		Values of row images, decoded by their types' own functions.
 *
 * To decode a value may run what a user has written: the check of a domain,
 * within a composite type, say, or a cast to json.  Whoever looks at the log,
 * or delivers it, a superuser perhaps, must not run that with rights of their
 * own.  It is run as the owner of the table that the value is from, as VACUUM
 * and REINDEX run functions of indexes, and within a limit of time.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/pg_class.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "base/attempt.h"
#include "base/role.h"
#include "compat.h"
#include "decode/jsonb.h"
#include "decode/value.h"

/*
 * By the type's input function for text, else by its receive function.  The
 * shape's typmod is the one of the time of the change; for types without one
 * it is -1.
 */
static Datum
decode(const PsyncColumn *column, char *value, int32 size)
{
	Oid			function;
	Oid			param;
	StringInfoData buf;

	if (column->textual)
	{
		getTypeInputInfo(column->type, &function, &param);
		return OidInputFunctionCall(function, value, param, column->typmod);
	}
	buf.data = value;
	buf.len = size;
	buf.maxlen = size + 1;
	buf.cursor = 0;
	getTypeBinaryInputInfo(column->type, &function, &param);
	return OidReceiveFunctionCall(function, &buf, param, column->typmod);
}

/*
 * The value of a field that is not NULL.  Raises what the type's input
 * function raises.  Receive functions take text to be in the client's
 * encoding; images are in the database's (row_image.c).
 */
Datum
psync_value_to_datum(const PsyncColumn *column, const char *value, int32 size)
{
	int			client = pg_get_client_encoding();
	char	   *copy = palloc(size + 1);
	Datum		result;

	Assert(size >= 0);

	/* receive functions want a terminated buffer of their own */
	memcpy(copy, value, size);
	copy[size] = '\0';

	if (client == GetDatabaseEncoding())
		return decode(column, copy, size);

	(void) SetClientEncoding(GetDatabaseEncoding());
	PG_TRY();
	{
		result = decode(column, copy, size);
	}
	PG_FINALLY();
	{
		(void) SetClientEncoding(client);
	}
	PG_END_TRY();
	return result;
}

/*
 * The other way round: the binary form of a value, in the database's encoding.
 */
bytea *
psync_datum_to_value(Oid type, Datum value)
{
	int			client = pg_get_client_encoding();
	Oid			function;
	bool		is_varlena;
	bytea	   *result;

	getTypeBinaryOutputInfo(type, &function, &is_varlena);
	if (client == GetDatabaseEncoding())
		return OidSendFunctionCall(function, value);

	(void) SetClientEncoding(GetDatabaseEncoding());
	PG_TRY();
	{
		result = OidSendFunctionCall(function, value);
	}
	PG_FINALLY();
	{
		(void) SetClientEncoding(client);
	}
	PG_END_TRY();
	return result;
}

/*
 * Of types that PostgreSQL comes with, nothing does.  Of those made since, all
 * may: it does not pay to look what is inside.
 */
bool
psync_value_runs_user_code(const PsyncColumn *column)
{
	return column->type >= FirstNormalObjectId;
}

/*
 * The owner of the table that the value is from; InvalidOid if the table is
 * gone, then nothing that users wrote is to be run.
 */
static Oid
find_owner(const PsyncColumn *column)
{
	HeapTuple	tuple;
	Oid			owner;

	Assert(OidIsValid(column->relid));

	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(column->relid));
	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/*
 * Does the error say nothing about the value?  A deadlock, a full disk, a
 * shutdown or a cancel would have come with any other.  What user code raises
 * by itself in the name of a cancel is none.
 */
bool
psync_error_is_about_server(const ErrorData *error)
{
	switch (ERRCODE_TO_CATEGORY(error->sqlerrcode))
	{
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_SYSTEM_ERROR:
			return true;
		case ERRCODE_OPERATOR_INTERVENTION:
			return error->sqlerrcode != ERRCODE_QUERY_CANCELED ||
				error->funcname == NULL ||
				strcmp(error->funcname, "ProcessInterrupts") == 0;
		default:
			return error->sqlerrcode == ERRCODE_DATA_CORRUPTED ||
				error->sqlerrcode == ERRCODE_INDEX_CORRUPTED;
	}
}

/* The server's own functions run as the reader, others as the table's owner. */
static Datum
decode_within_limit(const PsyncColumn *column, Oid owner,
					PsyncDecode decoder, const char *value, int32 size)
{
	PsyncTimeLimit limit;
	PsyncRole	role;
	Datum		result;

	if (!psync_value_runs_user_code(column))
		return decoder(column, value, size);
	psync_limit_begin(&limit, "functions of user-defined types",
					  psync_user_code_timeout, "payment_sync.user_code_timeout");
	psync_role_become(&role, owner, PSYNC_ROLE_USER_CODE);
	result = decoder(column, value, size);
	psync_role_return(&role);
	psync_limit_end(&limit);
	return result;
}

typedef struct PsyncValueAttempt
{
	const PsyncColumn *column;
	Oid			owner;
	PsyncDecode decoder;
	const char *value;
	int32		size;
	Datum		result;
} PsyncValueAttempt;

static void
attempt_decode(void *arg)
{
	PsyncValueAttempt *attempt = arg;

	attempt->result = decode_within_limit(attempt->column, attempt->owner,
										  attempt->decoder, attempt->value,
										  attempt->size);
}

/*
 * value.h has the contract.  Input functions hold resources when they fail, and
 * user code may have written something.  A limit that began within the attempt
 * has ended with it; one that is still running is the caller's.
 */
bool
psync_value_try(const PsyncColumn *column, PsyncDecode decoder,
				const char *value, int32 size, Datum *result,
				ErrorData **failure)
{
	PsyncValueAttempt attempt = {column, find_owner(column), decoder, value, size};
	ErrorData  *error;
	bool		late;

	*failure = NULL;
	if (!OidIsValid(attempt.owner) &&
		(column->textual || psync_value_runs_user_code(column)))
		return false;
	error = psync_attempt(attempt_decode, &attempt, &late);
	if (error == NULL)
	{
		*result = attempt.result;
		return true;
	}
	if (psync_limit_exceeded() || (!late && psync_error_is_about_server(error)))
		ReThrowError(error);
	*failure = error;
	return false;
}
