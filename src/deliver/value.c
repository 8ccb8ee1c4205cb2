/*
 * value.c
 *		Values of row images, decoded by their types' own functions.
 */
#include "postgres.h"

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/lsyscache.h"

#include "compat.h"
#include "deliver/delivery.h"

/*
 * The value of a field that is not NULL.  Raises what the type's input
 * function raises.
 */
Datum
psync_value_to_datum(const PsyncColumn *column, const char *value, int32 size)
{
	Oid			function;
	Oid			param;
	StringInfoData buf;

	Assert(size >= 0);

	/* receive functions want a terminated buffer of their own */
	initStringInfo(&buf);
	appendBinaryStringInfo(&buf, value, size);

	if (column->textual)
	{
		getTypeInputInfo(column->type, &function, &param);
		return OidInputFunctionCall(function, buf.data, param, column->typmod);
	}
	getTypeBinaryInputInfo(column->type, &function, &param);
	return OidReceiveFunctionCall(function, &buf, param, column->typmod);
}
