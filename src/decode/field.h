/*
 * field.h
 *		Row images and old parts split into fields.
 *
 * An image may come from a damaged page, so nothing about it is believed:
 * every length is checked against what is there.
 */
#ifndef PSYNC_FIELD_H
#define PSYNC_FIELD_H

#include "compat.h"
#include "transport/payment_sync_transport.h"

/* A field of an image or old part: which column, and its bytes. */
typedef struct PsyncField
{
	int			index;			/* into the shape's columns */
	int32		size;			/* -1: NULL */
	const char *value;			/* not aligned, not terminated */
} PsyncField;

/*
 * Split an image, or an old part ("sparse"), into fields, of which there is
 * room for shape->ncolumns.  Returns their number.  Indexes ascend.
 */
extern int	psync_fields_split(const PsyncShape *shape, const char *data,
							   uint32 size, bool sparse, PsyncField *fields);

pg_noreturn extern void psync_corrupt_image(void);

#endif							/* PSYNC_FIELD_H */
