/*
 * value.c
 *		Values of row images, decoded by their types' own functions.
 */
#include "postgres.h"

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/lsyscache.h"

#include "compat.h"
#include "deliver/delivery.h"

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
