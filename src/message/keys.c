/*
 * keys.c
 *		A hash table from keys to numbers.
 *
 * The line looks up each event's key a few times, so this is kept lean: keys
 * are hashes already, probing is linear, and removal moves entries back
 * instead of leaving marks.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "compat.h"
#include "message/message.h"

/* Made in the current memory context.  capacity is a power of two. */
void
psync_keys_init(PsyncKeyTable *table, uint32 capacity)
{
	Assert(capacity > 0 && (capacity & (capacity - 1)) == 0);
	table->mask = capacity - 1;
	table->used = 0;
	table->keys = palloc0(capacity * sizeof(uint64));
	table->values = palloc(capacity * sizeof(uint64));
}

/*
 * Empty, with its room kept.
 */
void
psync_keys_clear(PsyncKeyTable *table)
{
	memset(table->keys, 0, ((Size) table->mask + 1) * sizeof(uint64));
	table->used = 0;
}

/*
 * Where the key is, or where it would go.  There is always a free slot, since
 * at most half of them are used.
 */
static inline uint32
slot_of(const PsyncKeyTable *table, uint64 key)
{
	uint32		slot = (uint32) key & table->mask;

	Assert(key != 0);

	while (table->keys[slot] != 0 && table->keys[slot] != key)
		slot = (slot + 1) & table->mask;
	return slot;
}

/* The key's value, or NULL; valid until the table changes. */
uint64 *
psync_keys_find(PsyncKeyTable *table, uint64 key)
{
	uint32		slot = slot_of(table, key);

	Assert(key != 0);
	return table->keys[slot] != 0 ? &table->values[slot] : NULL;
}

/*
 * Twice as large, in the context that it was made in.
 */
static void
grow(PsyncKeyTable *table)
{
	MemoryContext old = MemoryContextSwitchTo(GetMemoryChunkContext(table->keys));
	PsyncKeyTable larger;

	psync_keys_init(&larger, (table->mask + 1) * 2);
	for (uint32 i = 0; i <= table->mask; i++)
		if (table->keys[i] != 0)
			*psync_keys_enter(&larger, table->keys[i]) = table->values[i];
	pfree(table->keys);
	pfree(table->values);
	*table = larger;
	MemoryContextSwitchTo(old);
}

/* The same; entered with 0 if it was not there. */
uint64 *
psync_keys_enter(PsyncKeyTable *table, uint64 key)
{
	uint32		slot;

	Assert(key != 0);
	if (table->used >= table->mask / 2)
		grow(table);
	slot = slot_of(table, key);
	if (table->keys[slot] == 0)
	{
		table->keys[slot] = key;
		table->values[slot] = 0;
		table->used++;
	}
	return &table->values[slot];
}

/*
 * Entries behind the gap that probing would no longer reach move into it.
 */
void
psync_keys_remove(PsyncKeyTable *table, uint64 key)
{
	uint32		gap = slot_of(table, key);
	uint32		slot = gap;

	Assert(table->keys[gap] == key);
	for (;;)
	{
		uint32		home;

		slot = (slot + 1) & table->mask;
		if (table->keys[slot] == 0)
			break;
		home = (uint32) table->keys[slot] & table->mask;
		if (((slot - home) & table->mask) >= ((slot - gap) & table->mask))
		{
			table->keys[gap] = table->keys[slot];
			table->values[gap] = table->values[slot];
			gap = slot;
		}
	}
	Assert(table->used > 0);
	table->keys[gap] = 0;
	table->used--;
}
