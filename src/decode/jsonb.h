/*
 * jsonb.h
 *		Changes decoded for people and for JSON.
 */
#ifndef PSYNC_EVENT_H
#define PSYNC_EVENT_H

#include "transport/payment_sync_transport.h"

/*
 * The value as its type's text output, NULL for size -1.  In the current
 * memory context.
 */
extern char *psync_value_to_text(const PsyncColumn *column, const char *value,
								 int32 size);

/* "(id)=(42)": the key a change is about, for messages (P9: only the key). */
extern char *psync_change_describe_key(const PsyncChange *change);

/*
 * The fields of a change's key: of the old part, or of the new image.  Values
 * point into the change.
 */
typedef struct PsyncKeyField
{
	const PsyncColumn *column;
	const char *value;
	int32		size;			/* bytes, or -1: NULL */
} PsyncKeyField;

extern PsyncKeyField *psync_change_key_fields(const PsyncChange *change,
											  bool old, int *n);

/*
 * A jsonb object of an image's columns, by the names they had then; of an old
 * part, of the columns it holds; of the key alone.  (Datum) 0 if there is none.
 */
extern Datum psync_image_to_jsonb(const PsyncShape *shape, const char *image,
								  uint32 size);
extern Datum psync_old_to_jsonb(const PsyncShape *shape, const char *part,
								uint32 size);
extern Datum psync_key_to_jsonb(const PsyncChange *change);

/* A value that is not NULL as jsonb; as text or hex if its type refuses it. */
extern Datum psync_value_to_jsonb(const PsyncColumn *column, const char *value,
								  int32 size);

/* "insert", "update", "delete", "truncate", "read" */
extern const char *psync_operation_name(PsyncOperation op);

#endif							/* PSYNC_EVENT_H */
