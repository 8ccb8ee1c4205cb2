/*
 * fuzz_image.c
 *		Row images and old parts, split by the core and by the postgres
 *		transport: neither reads past the end, and both agree.
 */
#include "fuzz.h"

#include "shape.h"

#define Cursor CoreCursor
#include "../../src/decode/field.c"
#undef Cursor
#include "../../src/transport/postgres/image.c"

const bool	fuzz_terminated = false;

void
fuzz_one(const char *data, size_t size)
{
	PsyncShape *shape = fuzz_shape(&data, &size);
	PsyncPgField pg[8];
	PsyncField	core[8];
	StringInfoData key;
	bool		sparse;
	int			n;

	if (shape == NULL || size < 1)
		return;
	sparse = (data[0] & 1) != 0;
	data++;
	size--;
	n = psync_fields_split(shape, data, size, sparse, core);
	if (sparse)
		psync_pg_part_fields(shape, data, size, pg);
	else
		psync_pg_image_fields(shape, data, size, pg);
	for (int i = 0; i < n; i++)
	{
		fuzz_check(pg[core[i].index].size == core[i].size);
		if (core[i].size > 0)
			fuzz_check(memcmp(pg[core[i].index].value, core[i].value, core[i].size) == 0);
	}
	initStringInfo(&key);
	psync_pg_append_key(&key, shape, data, size, sparse);
	fuzz_check((size_t) key.len <= size);
}
