/*
 * value.h
 *		Values of images as datums, and back.
 */
#ifndef PSYNC_VALUE_H
#define PSYNC_VALUE_H

#include "decode/value.h"
#include "transport/payment_sync_transport.h"

extern Datum psync_value_to_datum(const PsyncColumn *column, const char *value,
								  int32 size);
extern bytea *psync_datum_to_value(Oid type, Datum value);

/* Makes something of a value that is not NULL, in the current context. */
typedef Datum (*PsyncDecode) (const PsyncColumn *column, const char *value,
							  int32 size);

/*
 * Decode a value that may be none of its type as that is now, or whose
 * functions users have made: in the name of the table's owner, in a
 * subtransaction.  False if that cannot be done, or takes too long, with the
 * error; or if the owner is gone, without one.  Errors that are not about the
 * value are raised, as is any when the time of the caller's own limit is up.
 */
extern bool psync_value_try(const PsyncColumn *column, PsyncDecode decoder,
							const char *value, int32 size, Datum *result,
							ErrorData **failure);
extern bool psync_value_runs_user_code(const PsyncColumn *column);
extern bool psync_error_is_about_server(const ErrorData *error);

#endif							/* PSYNC_VALUE_H */
