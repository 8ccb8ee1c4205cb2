/*
 * field.c
 *		Splitting row images into fields.  See field.h; the format is described
 *		at PsyncChange.
 */
#include "postgres.h"

#include "port/pg_bswap.h"

#include "compat.h"
#include "decode/field.h"

/*
 * Every length in an image is checked, since the log's pages
 * can be damaged, and a transport may hand in bytes of its own.
 */
void
psync_corrupt_image(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("invalid row image in the change log")));
}

/*
 * The next two bytes, and "at" moved behind them.
 */
static inline uint16
take_uint16(const char **at, const char *end)
{
	uint16		value;

	if (end - *at < (ptrdiff_t) sizeof(value))
		psync_corrupt_image();
	memcpy(&value, *at, sizeof(value));
	*at += sizeof(value);
	return pg_ntoh16(value);
}

/*
 * Likewise four.
 */
static inline uint32
take_uint32(const char **at, const char *end)
{
	uint32		value;

	if (end - *at < (ptrdiff_t) sizeof(value))
		psync_corrupt_image();
	memcpy(&value, *at, sizeof(value));
	*at += sizeof(value);
	return pg_ntoh32(value);
}

/*
 * Split an image, or an old part ("sparse"), into its fields, and return their
 * number; fields[] has room for one per column.  They point into "data". All
 * that the caller relies on is checked here: indexes ascend and are the
 * shape's, sizes end where the image ends.
 */
int
psync_fields_split(const PsyncShape *shape, const char *data, uint32 size,
				   bool sparse, PsyncField *fields)
{
	const char *at = data;
	const char *end = data + size;
	int			last = -1;
	int			n;

	Assert(shape != NULL && data != NULL);

	n = take_uint16(&at, end);
	if (n > shape->ncolumns || (!sparse && n != shape->ncolumns))
		psync_corrupt_image();
	for (int i = 0; i < n; i++)
	{
		PsyncField *field = &fields[i];

		field->index = sparse ? take_uint16(&at, end) : i;
		field->size = (int32) take_uint32(&at, end);
		field->value = at;
		if (field->index <= last || field->index >= shape->ncolumns ||
			field->size < -1 || field->size > end - at)
			psync_corrupt_image();
		last = field->index;
		at += Max(field->size, 0);
	}
	if (at != end)
		psync_corrupt_image();
	return n;
}
