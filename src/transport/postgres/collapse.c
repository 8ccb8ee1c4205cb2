/*
 * collapse.c
 *		What a group comes to: the last change of each key.
 *
 * Every change writes one key, except that an update which changes the key
 * takes away the old and writes the new one.  Of each key two things count:
 *
 *	what came first		insert: the target has no such row yet
 *						update, delete: it has
 *	what came last		insert, update: this image is the row
 *						delete: there is no row
 *
 * So a key ends up among the inserts (new, and there at the end), the updates
 * (known, and there at the end) or the deletes (not there at the end).
 *
 * Keys are compared by their bytes.  Types have values that are equal though
 * their bytes are not (1.0 and 1.00); at the source such keys cannot exist
 * together, so when one appears the other has been deleted before.  That is
 * why deletes can be applied first without harm; where they cannot
 * (apply_set.c), the two run into each other at the target, or the late delete
 * finds that it has hit a new row, and the group is applied change by change.
 */
#include "postgres.h"

#include "common/hashfn.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"

/* What is known of one key. */
typedef struct KeyState
{
	const PsyncPgMap *map;
	uint32		hash;
	int			key_at;			/* in the table's key bytes */
	int			key_size;
	int			last;			/* entry */
	bool		existed;		/* before the group, as its first change tells */
	bool		gone;			/* deleted by the last change */
} KeyState;

/* Open addressing over states; slots hold an index + 1, or 0. */
typedef struct KeyTable
{
	const PsyncPgGroup *group;
	StringInfoData bytes;
	KeyState   *states;
	int			nstates;
	uint32	   *slots;
	uint32		mask;
} KeyTable;

/*
 * Room for all keys that the group can bring, so that nothing grows while it
 * is filled.  In the current memory context.
 */
static void
table_init(KeyTable *table, const PsyncPgGroup *group)
{
	/* each entry brings at most two keys; leave half of the slots free */
	int			most = group->nentries * (group->key_changed ? 2 : 1);
	uint32		nslots = 64;

	while (nslots < (uint32) most * 2)
		nslots *= 2;
	table->group = group;
	initStringInfo(&table->bytes);
	table->states = palloc(Max(most, 1) * sizeof(KeyState));
	table->nstates = 0;
	table->slots = palloc0(nslots * sizeof(uint32));
	table->mask = nslots - 1;
}

/*
 * Early, since the nets need as much again.
 */
static void
table_free(KeyTable *table)
{
	pfree(table->bytes.data);
	pfree(table->states);
	pfree(table->slots);
}

/*
 * The state of the key that an entry's image or old part holds, made if it is
 * new (then *found is false).
 */
static KeyState *
lookup(KeyTable *table, const PsyncPgEntry *entry, bool old, bool *found)
{
	StringInfo	bytes = &table->bytes;
	int			start = bytes->len;
	int			size;
	uint32		hash;
	uint32		slot;
	KeyState   *state;

	psync_pg_append_key(bytes, entry->map->shape,
						table->group->data.data + (old ? entry->part_at : entry->image_at),
						old ? entry->part_size : entry->image_size, old);
	size = bytes->len - start;
	hash = hash_combine(hash_bytes((unsigned char *) bytes->data + start, size),
						entry->map->id);

	for (slot = hash & table->mask; table->slots[slot] != 0;
		 slot = (slot + 1) & table->mask)
	{
		state = &table->states[table->slots[slot] - 1];
		if (state->hash == hash && state->map == entry->map &&
			state->key_size == size &&
			memcmp(bytes->data + state->key_at, bytes->data + start, size) == 0)
		{
			bytes->len = start;
			*found = true;
			return state;
		}
	}

	state = &table->states[table->nstates++];
	table->slots[slot] = table->nstates;
	Assert((uint32) table->nstates <= table->mask / 2 + 1);
	state->map = entry->map;
	state->hash = hash;
	state->key_at = start;
	state->key_size = size;
	*found = false;
	return state;
}

/* Note that an entry writes (or takes away) a key. */
static void
note(KeyTable *table, int n, bool old, bool existed, bool gone)
{
	bool		found;
	KeyState   *state = lookup(table, &table->group->entries[n], old, &found);

	if (!found)
		state->existed = existed;
	state->last = n;
	state->gone = gone;
}

/*
 * What one change does to the keys.  An update that keeps its key says that
 * the row was there; one that changes it says so of the old key, and that the
 * new one was not.
 */
static void
note_entry(KeyTable *table, int n)
{
	const PsyncPgEntry *entry = &table->group->entries[n];

	switch (entry->op)
	{
		case PSYNC_INSERT:
		case PSYNC_READ:
			note(table, n, false, false, false);
			break;
		case PSYNC_UPDATE:
			if (entry->key_changed)
				note(table, n, true, true, true);
			note(table, n, false, !entry->key_changed, false);
			break;
		case PSYNC_DELETE:
			note(table, n, true, true, true);
			break;
		default:
			Assert(false);		/* TRUNCATE is never applied set-wise */
	}
}

/*
 * The net of the key's map; there is one for each.
 */
static PsyncPgNet *
net_of_map(PsyncPgNet *nets, const PsyncPgMap *map)
{
	while (nets->map != map)
		nets++;
	return nets;
}

/* Sort keys to inserts, updates, deletes; arrays of the group's size at most. */
static void
fill_nets(const KeyTable *table, PsyncPgNet *nets)
{
	for (int i = 0; i < table->nstates; i++)
	{
		const KeyState *state = &table->states[i];
		PsyncPgNet *net = net_of_map(nets, state->map);

		if (state->gone)
			net->deletes[net->ndeletes++] = state->last;
		else if (state->existed)
			net->updates[net->nupdates++] = state->last;
		else
			net->inserts[net->ninserts++] = state->last;
	}
}

/*
 * Keys of this map, to allocate its arrays.
 */
static int
count_states(const KeyTable *table, const PsyncPgMap *map)
{
	int			n = 0;

	for (int i = 0; i < table->nstates; i++)
		n += table->states[i].map == map;
	return n;
}

/*
 * What the group comes to: one net per map, in the current memory context.
 * Each key is in one of its three arrays, by the number of the entry that was
 * the key's last.
 */
PsyncPgNet *
psync_pg_collapse(const PsyncPgGroup *group, int *nnets)
{
	int			n = list_length(group->maps);
	PsyncPgNet *nets = palloc0(Max(n, 1) * sizeof(PsyncPgNet));
	KeyTable	table;

	Assert(!group->has_truncate);

	table_init(&table, group);
	for (int i = 0; i < group->nentries; i++)
		note_entry(&table, i);
	for (int i = 0; i < n; i++)
	{
		int			most;

		nets[i].map = list_nth(group->maps, i);
		most = Max(count_states(&table, nets[i].map), 1);
		nets[i].inserts = palloc(most * sizeof(int));
		nets[i].updates = palloc(most * sizeof(int));
		nets[i].deletes = palloc(most * sizeof(int));
	}
	fill_nets(&table, nets);
	for (int i = 0; i < n; i++)
		Assert(nets[i].ninserts + nets[i].nupdates + nets[i].ndeletes ==
			   count_states(&table, nets[i].map));
	table_free(&table);
	*nnets = n;
	return nets;
}
