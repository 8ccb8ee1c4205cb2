/*
 * fuzz_change.c
 *		The change log's chunks, as a damaged page may hold them.
 */
#include "fuzz.h"

#include "../../src/log/change.c"

const bool	fuzz_terminated = false;

/* Images are read to their last byte, so that a wrong size is seen. */
static uint32
sum(const char *bytes, uint32 size)
{
	uint32		total = 0;

	for (uint32 i = 0; i < size; i++)
		total += (unsigned char) bytes[i];
	return total;
}

void
fuzz_one(const char *data, size_t size)
{
	uint32		offset = 0;
	volatile uint32 total = 0;

	while (offset < size)
	{
		PsyncChange change = {0};
		uint32		shape_id;
		uint32		before = offset;

		psync_change_decode(data, size, &offset, 1, &change, &shape_id);
		fuzz_check(offset > before && offset <= size);
		total += sum(change.new_image, change.new_size) + sum(change.old_part, change.old_size);
	}
}
