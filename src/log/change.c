/*
 * change.c
 *		Decoding changes from a chunk's data; log.h has the format.
 *
 * The data was written by append.c into a table that only it writes to, but a
 * torn or damaged page must not crash the reader: every size is checked.
 */
#include "postgres.h"

#include "port/pg_bswap.h"

#include "log/log.h"

static uint32
get_uint32(const char *at)
{
	uint32		value;

	memcpy(&value, at, sizeof(value));
	return pg_ntoh32(value);
}

static void
corrupt(uint64 position)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("invalid change log data in the chunk at position " UINT64_FORMAT,
					position),
			 errhint("The log's storage is damaged.  Copy the tables anew with enable_sync(name, start => 'batch').")));
}

void
psync_change_decode(const char *data, uint32 size, uint32 *offset,
					uint64 first_position, PsyncChange *change,
					uint32 *shape_id)
{
	const char *at = data + *offset;
	uint32		left = size - *offset;

	Assert(*offset < size);

	if (left < PSYNC_CHANGE_HEADER_SIZE + sizeof(uint32))
		corrupt(first_position);
	change->op = (PsyncOperation) at[0];
	change->key_changed = (at[1] & PSYNC_CHANGE_KEY_CHANGED) != 0;
	change->position = first_position + get_uint32(at + 2);
	*shape_id = get_uint32(at + 6);
	change->new_size = get_uint32(at + 10);
	at += PSYNC_CHANGE_HEADER_SIZE;
	left -= PSYNC_CHANGE_HEADER_SIZE;

	if (change->new_size > left - sizeof(uint32))
		corrupt(first_position);
	change->new_image = change->new_size > 0 ? at : NULL;
	at += change->new_size;
	left -= change->new_size;

	change->old_size = get_uint32(at);
	at += sizeof(uint32);
	left -= sizeof(uint32);
	if (change->old_size > left)
		corrupt(first_position);
	change->old_part = change->old_size > 0 ? at : NULL;
	at += change->old_size;

	*offset = at - data;
	change->shape = NULL;
	change->table = NULL;

	if (strchr("IUDT", change->op) == NULL || change->op == '\0')
		corrupt(first_position);
}
