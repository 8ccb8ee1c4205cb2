/*
 * change.c
 *		Decoding changes from a chunk's data; log.h has the format.
 *
 * The data was written by append.c into a table that only it writes to, but a
 * torn or damaged page must not crash the reader: every size is checked.
 */
#include "postgres.h"

#include "port/pg_bswap.h"

#include "compat.h"
#include "log/log.h"

/*
 * Integers in a chunk are big-endian and lie anywhere, so they are copied.
 */
static uint32
get_uint32(const char *at)
{
	uint32		value;

	memcpy(&value, at, sizeof(value));
	return pg_ntoh32(value);
}

/*
 * A sync whose window holds such a chunk stops here, with the
 * way out in the hint; other syncs go on until they come to it.
 */
pg_noreturn static void
corrupt(uint64 position)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("invalid change log data in the chunk at position " UINT64_FORMAT,
					position),
			 errhint("The log's storage is damaged.  Copy the tables anew with enable_sync(name, start => 'batch').")));
}

/*
 * What comes before the new image.
 */
static void
decode_header(const char *at, uint32 left, uint64 first_position,
			  PsyncChange *change, uint32 *shape_id)
{
	if (left < PSYNC_CHANGE_HEADER_SIZE + sizeof(uint32))
		corrupt(first_position);
	change->op = (PsyncOperation) at[0];
	change->key_changed = (at[1] & PSYNC_CHANGE_KEY_CHANGED) != 0;
	change->position = first_position + get_uint32(at + 2);
	*shape_id = get_uint32(at + 6);
	change->new_size = get_uint32(at + 10);
	change->new_image = change->old_part = NULL;
	change->old_size = 0;
	change->shape = NULL;
	change->table = NULL;
	if (strchr("IUDT", change->op) == NULL || change->op == '\0')
		corrupt(first_position);
}

/*
 * Of a chunk's first tuple: does it hold but the beginning of one change?  Then
 * what is known of that is in *change, its old part not included.
 */
bool
psync_change_begin(const char *data, uint32 size, uint64 first_position,
				   PsyncChange *change, uint32 *shape_id)
{
	uint64		end;

	decode_header(data, size, first_position, change, shape_id);
	end = (uint64) PSYNC_CHANGE_HEADER_SIZE + change->new_size + sizeof(uint32);
	if (end > size)
		return true;
	return end + get_uint32(data + end - sizeof(uint32)) > size;
}

/*
 * Decode the change at *offset of a chunk's data, and advance *offset to the
 * next one, or to "size".
 *
 * The images are not copied: they point into "data" and live as long as it.
 * Which table the change is about is not known here; shape and table are set
 * to NULL for the caller to fill in, *shape_id says with what.  The fields that
 * belong to the whole chunk (xid, at, origin) are the caller's business and
 * left alone.
 *
 * May raise data_corrupted, never reads beyond data + size.
 */
void
psync_change_decode(const char *data, uint32 size, uint32 *offset,
					uint64 first_position, PsyncChange *change,
					uint32 *shape_id)
{
	const char *at = data + *offset;
	uint32		left = size - *offset;

	Assert(data != NULL && change != NULL && shape_id != NULL);
	Assert(*offset < size);

	decode_header(at, left, first_position, change, shape_id);
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
	Assert(*offset <= size);
}
