/*
 * ledger.c
 *		The books: what became of each change, by table, day and operation.
 *
 * Of a target that cannot be read, nobody can say what it has; but how many
 * changes were captured for it, and where each of them is, can be said to the
 * last one.  The counts belong to the saved progress: they are written in its
 * transaction (save.c), so whatever a crash takes back, it takes back
 * from both, and an event that is sent once more is counted once.
 *
 * Which changes are counted at any moment:
 *
 *	1	those that the saved position has passed: of the windows before A, and
 *		of the window at hand up to its saved place
 *	2	those ahead of it whose events have a row in payment_sync.unsettled
 *
 * All others are pending; they are counted in the log (ledger_view.c).
 *
 * "captured" is counted as the reader hands the change over, the fates by what
 * happens to its event; that the two agree is no tautology, but what the view
 * proves.  An event's place remembers its entry.  A change without an event
 * (left out by the transform, excluded by its origin) has no place: it lies in
 * the gap before the next place or mark, and is passed with that.
 *
 * Of 2, the places (position and transaction) are saved with the position.
 * Who reads them again after a crash passes over them: no event gets a second
 * row.
 *
 * Rows of batches are no changes, and not in the books.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/uuid.h"

#include "compat.h"
#include "decode/jsonb.h"
#include "message/message.h"

/* payment_sync.ledger_retention, in days; 0: for ever */
int			psync_ledger_retention = 0;

/* Old entries are looked for this often. */
#define PSYNC_LEDGER_PRUNE_MS	(60 * 60 * 1000)

static const char save_command[] =
	"INSERT INTO payment_sync.ledger_count AS l (sync, relid, day, operation,"
	" captured, delivered, left_out, excluded)"
	" SELECT $1, n.* FROM unnest($2, $3, $4, $5, $6, $7, $8) n"
	" ON CONFLICT (sync, relid, day, operation) DO UPDATE SET"
	" captured = l.captured + excluded.captured,"
	" delivered = l.delivered + excluded.delivered,"
	" left_out = l.left_out + excluded.left_out,"
	" excluded = l.excluded + excluded.excluded";

/*
 * Only what nothing can happen to any more: what is parked or dead may still
 * be delivered, and is counted then.
 */
static const char prune_command[] =
	"WITH old AS (DELETE FROM payment_sync.ledger_count l WHERE l.sync = $1"
	"  AND l.day < (clock_timestamp() AT TIME ZONE 'UTC')::date - $2"
	"  AND l.captured = l.delivered + l.left_out + l.excluded + COALESCE(("
	"   SELECT sum(m.discarded) FROM payment_sync.ledger_manual m"
	"   WHERE m.sync = l.sync AND m.relid = l.relid AND m.day = l.day"
	"   AND m.operation = l.operation), 0) RETURNING l.relid, l.day, l.operation)"
	" DELETE FROM payment_sync.ledger_manual m USING old WHERE m.sync = $1"
	" AND m.relid = old.relid AND m.day = old.day AND m.operation = old.operation";

/* ---------------------------------------------------------------- entries */

/*
 * By position, then by transaction, as the log is read.
 */
static int
compare_ahead(const void *a, const void *b)
{
	const PsyncAhead *x = a;
	const PsyncAhead *y = b;

	if (x->position != y->position)
		return x->position < y->position ? -1 : 1;
	return (x->xid > y->xid) - (x->xid < y->xid);
}

/*
 * Empty books, in "context".  "numbers" are those of sync_state: position and
 * transaction of each place whose event has a row already.
 */
void
psync_ledger_init(PsyncLedger *ledger, MemoryContext context,
				  const uint64 *numbers, int n)
{
	HASHCTL		ctl = {0};

	Assert(n % 2 == 0);

	memset(ledger, 0, sizeof(*ledger));
	ledger->context = context;
	ctl.keysize = sizeof(PsyncLedgerKey);
	ctl.entrysize = sizeof(PsyncLedgerEntry);
	ctl.hcxt = context;
	ledger->entries = hash_create("payment_sync ledger", 64, &ctl,
								  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	ledger->gaps_size = 256;
	ledger->gaps = MemoryContextAlloc(context, ledger->gaps_size * sizeof(PsyncGap));
	ledger->nahead = n / 2;
	ledger->ahead = MemoryContextAllocZero(context, Max(1, n / 2) * sizeof(PsyncAhead));
	for (int i = 0; i < n / 2; i++)
	{
		ledger->ahead[i].position = numbers[2 * i];
		ledger->ahead[i].xid = numbers[2 * i + 1];
	}
	qsort(ledger->ahead, ledger->nahead, sizeof(PsyncAhead), compare_ahead);
}

/* The day of a moment, in UTC, as a date; also of moments before 2000. */
int32
psync_ledger_day(TimestampTz at)
{
	int64		day = at / USECS_PER_DAY;

	if (at < 0 && at % USECS_PER_DAY != 0)
		day--;
	return (int32) day;
}

/*
 * The entry of a change; they live as long as the delivery, and there are few:
 * one per table, operation and day.
 */
PsyncLedgerEntry *
psync_ledger_entry(PsyncLedger *ledger, Oid relid, TimestampTz at, PsyncOperation op)
{
	PsyncLedgerKey key = {relid, psync_ledger_day(at), op};
	bool		found;

	Assert(OidIsValid(relid) && op != PSYNC_READ);

	if (ledger->last != NULL &&
		memcmp(&ledger->last->key, &key, sizeof(key)) == 0)
		return ledger->last;
	ledger->last = hash_search(ledger->entries, &key, HASH_ENTER, &found);
	if (!found)
		memset((char *) ledger->last + sizeof(key), 0,
			   sizeof(PsyncLedgerEntry) - sizeof(key));
	return ledger->last;
}

/* ------------------------------------------------------------------- gaps */

/*
 * A change without an event.  Entries that the gap at hand touches are in a
 * list, so that its memory depends on their number, not on the changes'.
 */
void
psync_ledger_note(PsyncLedger *ledger, const PsyncChange *change, PsyncFate fate)
{
	PsyncLedgerEntry *entry = psync_ledger_entry(ledger, change->table->relid,
												 change->at, change->op);

	Assert(fate == PSYNC_FATE_LEFT_OUT || fate == PSYNC_FATE_EXCLUDED);

	if (!entry->in_gap)
	{
		entry->in_gap = true;
		entry->next_in_gap = ledger->gap;
		ledger->gap = entry;
	}
	if (fate == PSYNC_FATE_LEFT_OUT)
		entry->gap_left_out++;
	else
		entry->gap_excluded++;
}

/*
 * Room for one more at the end.  What was passed is given up first.
 */
static void
reserve_gap(PsyncLedger *ledger)
{
	uint64		n = ledger->gaps_end - ledger->gaps_begin;

	Assert(ledger->gaps_begin >= ledger->gaps_base);

	if (ledger->gaps_end - ledger->gaps_base < ledger->gaps_size)
		return;
	if (n > ledger->gaps_size / 2)
	{
		ledger->gaps_size *= 2;
		ledger->gaps = repalloc(ledger->gaps, ledger->gaps_size * sizeof(PsyncGap));
	}
	memmove(ledger->gaps, ledger->gaps + (ledger->gaps_begin - ledger->gaps_base),
			n * sizeof(PsyncGap));
	ledger->gaps_base = ledger->gaps_begin;
}

/*
 * A place or a mark comes here: the gap before it is closed.  Returns what
 * psync_ledger_pass() is to be told when that is passed.
 */
uint64
psync_ledger_boundary(PsyncLedger *ledger)
{
	while (ledger->gap != NULL)
	{
		PsyncLedgerEntry *entry = ledger->gap;
		PsyncGap   *gap;

		reserve_gap(ledger);
		gap = &ledger->gaps[ledger->gaps_end++ - ledger->gaps_base];
		gap->entry = entry;
		gap->left_out = entry->gap_left_out;
		gap->excluded = entry->gap_excluded;
		entry->gap_left_out = entry->gap_excluded = 0;
		entry->in_gap = false;
		ledger->gap = entry->next_in_gap;
	}
	return ledger->gaps_end;
}

/* All gaps before this boundary are behind the position now. */
void
psync_ledger_pass(PsyncLedger *ledger, uint64 boundary)
{
	Assert(boundary <= ledger->gaps_end);

	while (ledger->gaps_begin < boundary)
	{
		PsyncGap   *gap = &ledger->gaps[ledger->gaps_begin++ - ledger->gaps_base];

		gap->entry->captured += gap->left_out + gap->excluded;
		gap->entry->left_out += gap->left_out;
		gap->entry->excluded += gap->excluded;
	}
}

/* ------------------------------------------------------------------ places */

/* The position has passed the place. */
void
psync_ledger_pass_place(PsyncLedger *ledger, const PsyncPlace *place)
{
	Assert(place->state == PSYNC_PLACE_SETTLED);

	psync_ledger_pass(ledger, place->gaps);
	if (place->recorded)
	{
		/* was counted with its row */
		Assert(ledger->nrecorded > 0);
		ledger->nrecorded--;
	}
	else if (place->ledger != NULL)
	{
		place->ledger->captured++;
		if (place->fate == PSYNC_FATE_DELIVERED)
			place->ledger->delivered++;
	}
}

/*
 * The message's events get a row with the save at hand: from then on they are
 * counted there.
 */
void
psync_ledger_record(PsyncMessages *messages, const PsyncOutgoing *message)
{
	for (int i = 0; i < message->m.nevents; i++)
	{
		PsyncPlace *place = PSYNC_PLACE(&messages->line, message->places[i]);

		/* a save that found the sync dropped is tried once more on leaving */
		if (place->ledger == NULL || place->recorded)
			continue;
		Assert(place->state == PSYNC_PLACE_TAKEN);
		place->recorded = true;
		messages->line.ledger.nrecorded++;
		place->ledger->captured++;
	}
}

/*
 * What the row of a message says of its events: how many there are of each
 * entry.  Four arrays, for payment_sync.unsettled.
 */
void
psync_ledger_tally(PsyncMessages *messages, const PsyncOutgoing *message,
				   Datum *values)
{
	int			n = message->m.nevents;
	PsyncLedgerEntry **entries = palloc(n * sizeof(PsyncLedgerEntry *));
	Datum	   *columns[4];
	int			count = 0;

	for (int c = 0; c < 4; c++)
		columns[c] = palloc(n * sizeof(Datum));
	for (int i = 0; i < n; i++)
	{
		PsyncLedgerEntry *entry = PSYNC_PLACE(&messages->line, message->places[i])->ledger;
		int			k = 0;

		if (entry == NULL)
			continue;
		while (k < count && entries[k] != entry)
			k++;
		if (k == count)
		{
			entries[count++] = entry;
			columns[0][k] = ObjectIdGetDatum(entry->key.relid);
			columns[1][k] = DateADTGetDatum(entry->key.day);
			columns[2][k] = CStringGetTextDatum(psync_operation_name(entry->key.op));
			columns[3][k] = Int32GetDatum(0);
		}
		columns[3][k] = Int32GetDatum(DatumGetInt32(columns[3][k]) + 1);
	}
	values[0] = PointerGetDatum(construct_array(columns[0], count, OIDOID, sizeof(Oid), true, TYPALIGN_INT));
	values[1] = PointerGetDatum(construct_array(columns[1], count, DATEOID, sizeof(DateADT), true, TYPALIGN_INT));
	values[2] = PointerGetDatum(construct_array(columns[2], count, TEXTOID, -1, false, TYPALIGN_INT));
	values[3] = PointerGetDatum(construct_array(columns[3], count, INT4OID, sizeof(int32), true, TYPALIGN_INT));
}

/* ------------------------------------------------------------------- ahead */

/*
 * Has the change an event with a row, from before this process began?  Each is
 * met once.
 */
bool
psync_ledger_is_ahead(PsyncLedger *ledger, const PsyncChange *change)
{
	PsyncAhead	wanted = {change->position, change->xid, false};
	PsyncAhead *hit;

	if (ledger->nahead == 0)
		return false;
	hit = bsearch(&wanted, ledger->ahead, ledger->nahead, sizeof(PsyncAhead),
				  compare_ahead);
	if (hit == NULL || hit->met)
		return false;
	hit->met = true;
	return true;
}

/*
 * Those that A has passed are of no use any more; they were met, or their
 * table has left the sync.
 */
static void
forget_ahead(PsyncLedger *ledger, const char *position)
{
	PsyncSnapshot *after;
	int			n = 0;

	if (ledger->nahead == 0 || position == NULL)
		return;
	after = psync_snapshot_parse(position);
	for (int i = 0; i < ledger->nahead; i++)
		if (!psync_snapshot_sees(after, ledger->ahead[i].xid))
			ledger->ahead[n++] = ledger->ahead[i];
	ledger->nahead = n;
	pfree(after);
}

/*
 * What is to be saved with the position: the places ahead of it whose events
 * have a row, those included that get one by the save at hand.  Returns how
 * many numbers that are, two per place.
 */
int
psync_ledger_ahead(PsyncMessages *messages, uint64 **numbers)
{
	PsyncLine  *line = &messages->line;
	PsyncLedger *ledger = &line->ledger;
	int			n = 0;

	forget_ahead(ledger, line->done);
	if (ledger->nrecorded == 0 && ledger->nahead == 0)
		return 0;
	*numbers = palloc(2 * (ledger->nrecorded + ledger->nahead) * sizeof(uint64));
	for (int i = 0; i < ledger->nahead; i++)
	{
		if (ledger->ahead[i].met)
			continue;
		(*numbers)[n++] = ledger->ahead[i].position;
		(*numbers)[n++] = ledger->ahead[i].xid;
	}
	for (uint64 at = line->head; at < line->tail && ledger->nrecorded > 0; at++)
	{
		const PsyncPlace *place = PSYNC_PLACE(line, at);

		if (!place->recorded)
			continue;
		(*numbers)[n++] = place->position;
		(*numbers)[n++] = place->xid;
	}
	Assert(n <= 2 * (ledger->nrecorded + ledger->nahead));
	return n;
}

/* -------------------------------------------------------------------- save */

static bool
is_changed(const PsyncLedgerEntry *entry)
{
	return entry->captured != 0 || entry->delivered != 0 ||
		entry->left_out != 0 || entry->excluded != 0;
}

/*
 * Add what has come to the table, within the transaction of a save: one
 * statement, however many changes it was.
 */
static void
write_entries(PsyncLedger *ledger, const pg_uuid_t *sync)
{
	static const Oid element_types[7] = {OIDOID, DATEOID, TEXTOID, INT8OID, INT8OID,
	INT8OID, INT8OID};
	Oid			types[8] = {UUIDOID, OIDARRAYOID, DATEARRAYOID, TEXTARRAYOID,
	INT8ARRAYOID, INT8ARRAYOID, INT8ARRAYOID, INT8ARRAYOID};
	Datum		values[8];
	Datum	   *columns[7];
	HASH_SEQ_STATUS status;
	PsyncLedgerEntry *entry;
	int			n = 0;

	for (int c = 0; c < 7; c++)
		columns[c] = palloc(hash_get_num_entries(ledger->entries) * sizeof(Datum));
	hash_seq_init(&status, ledger->entries);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		if (!is_changed(entry))
			continue;
		columns[0][n] = ObjectIdGetDatum(entry->key.relid);
		columns[1][n] = DateADTGetDatum(entry->key.day);
		columns[2][n] = CStringGetTextDatum(psync_operation_name(entry->key.op));
		columns[3][n] = Int64GetDatum(entry->captured);
		columns[4][n] = Int64GetDatum(entry->delivered);
		columns[5][n] = Int64GetDatum(entry->left_out);
		columns[6][n++] = Int64GetDatum(entry->excluded);
	}
	if (n == 0)
		return;
	values[0] = UUIDPGetDatum(sync);
	for (int c = 0; c < 7; c++)
	{
		int16		typlen;
		bool		typbyval;
		char		typalign;

		get_typlenbyvalalign(element_types[c], &typlen, &typbyval, &typalign);
		values[c + 1] = PointerGetDatum(construct_array(columns[c], n, element_types[c],
														typlen, typbyval, typalign));
	}
	(void) psync_owner_execute(save_command, 8, types, values, NULL);
	SPI_finish();
}

/*
 * Let go of what is older than it need be kept, now and then.
 */
static void
prune(PsyncLedger *ledger, const pg_uuid_t *sync)
{
	Oid			types[2] = {UUIDOID, INT4OID};
	Datum		values[2];
	TimestampTz now = GetCurrentTimestamp();

	if (psync_ledger_retention <= 0 ||
		(ledger->pruned_at != 0 &&
		 !TimestampDifferenceExceeds(ledger->pruned_at, now, PSYNC_LEDGER_PRUNE_MS)))
		return;
	ledger->pruned_at = now;
	values[0] = UUIDPGetDatum(sync);
	values[1] = Int32GetDatum(psync_ledger_retention);
	(void) psync_owner_execute(prune_command, 2, types, values, NULL);
	SPI_finish();
}

void
psync_ledger_save(PsyncLedger *ledger, const pg_uuid_t *sync)
{
	Assert(IsTransactionState());

	write_entries(ledger, sync);
	prune(ledger, sync);
}

/* That has been committed. */
void
psync_ledger_saved(PsyncLedger *ledger)
{
	HASH_SEQ_STATUS status;
	PsyncLedgerEntry *entry;

	hash_seq_init(&status, ledger->entries);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		entry->captured = entry->delivered = 0;
		entry->left_out = entry->excluded = 0;
	}
}
