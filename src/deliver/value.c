/*
 * value.c
 *		Values of row images, decoded by their types' own functions.
 *
 * To decode a value may run what a user has written: the check of a domain,
 * within a composite type, say, or a cast to json.  Whoever looks at the log,
 * or delivers it, a superuser perhaps, must not run that with rights of their
 * own.  It is run as the owner of the table that the value is from, as VACUUM
 * and REINDEX run functions of indexes, and settings that it makes are undone.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/pg_class.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "compat.h"
#include "deliver/delivery.h"
#include "deliver/event.h"

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
 * Settings under which text forms are the same on every server, until
 * AtEOXact_GUC(true, result) or the end of the transaction.
 */
int
psync_value_settings(void)
{
	static const struct
	{
		const char *name;
		const char *value;
	}			settings[] = {
		{"search_path", "pg_catalog, pg_temp"},
		{"timezone", "UTC"},
		{"datestyle", "ISO, MDY"},
		{"intervalstyle", "postgres"},
		{"extra_float_digits", "3"},
		{"bytea_output", "hex"},
	};
	int			guc_level = NewGUCNestLevel();

	for (int i = 0; i < lengthof(settings); i++)
	{
		if (strcmp(GetConfigOption(settings[i].name, false, false), settings[i].value) != 0)
			(void) set_config_option(settings[i].name, settings[i].value, PGC_USERSET,
									 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	}
	return guc_level;
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

bool
psync_decoding_enter(const PsyncColumn *column, PsyncDecodingContext *save)
{
	HeapTuple	tuple;
	Oid			owner;

	Assert(OidIsValid(column->relid));
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(column->relid));
	if (!HeapTupleIsValid(tuple))
		return false;
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);

	GetUserIdAndSecContext(&save->userid, &save->sec_context);
	save->guc_level = NewGUCNestLevel();
	SetUserIdAndSecContext(owner, save->sec_context |
						   SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	return true;
}

void
psync_decoding_leave(const PsyncDecodingContext *save)
{
	AtEOXact_GUC(false, save->guc_level);
	SetUserIdAndSecContext(save->userid, save->sec_context);
}
