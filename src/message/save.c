/*
 * save.c
 *		Progress and statistics, made durable in groups.
 *
 * One transaction holds: how far all is settled, the parked events and dead
 * letters that were passed, what became of earlier ones, how the target fares,
 * the counters, and the books (ledger.c).  It need not wait for its own WAL to be flushed: if it is
 * lost it is lost as a whole, and its events are sent again with the same ids
 * (P6); and no truncation of the log that relies on it can be on disk before
 * it, since that comes later in the WAL.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/uuid.h"

#include "compat.h"
#include "message/message.h"

static const char stats_command[] =
	"INSERT INTO payment_sync.target_stats AS t (sync, requests, events, retries,"
	" refused, bytes, statuses, latency, in_flight, breaker, breaker_until,"
	" last_status, last_reason, last_excerpt, last_at)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)"
	" ON CONFLICT (sync) DO UPDATE SET requests = t.requests + excluded.requests,"
	" events = t.events + excluded.events, retries = t.retries + excluded.retries,"
	" refused = t.refused + excluded.refused, bytes = t.bytes + excluded.bytes,"
	" statuses = ARRAY(SELECT a + b FROM unnest(t.statuses, excluded.statuses)"
	"  WITH ORDINALITY AS u (a, b, n) ORDER BY n),"
	" latency = ARRAY(SELECT a + b FROM unnest(t.latency, excluded.latency)"
	"  WITH ORDINALITY AS u (a, b, n) ORDER BY n),"
	" in_flight = excluded.in_flight, breaker = excluded.breaker,"
	" breaker_until = excluded.breaker_until,"
	" last_status = COALESCE(excluded.last_status, t.last_status),"
	" last_reason = CASE WHEN excluded.last_at IS NULL THEN t.last_reason"
	"  ELSE excluded.last_reason END,"
	" last_excerpt = CASE WHEN excluded.last_at IS NULL THEN t.last_excerpt"
	"  ELSE excluded.last_excerpt END,"
	" last_at = COALESCE(excluded.last_at, t.last_at)";

/* ------------------------------------------------------------- statistics */

/*
 * Which bucket: four per power of two, so a bucket is at most a quarter wider
 * than it is high.  The last one takes the rest.
 */
static int
latency_bucket(int64 us)
{
	int			power = 0;
	int			bucket;

	if (us < 4)
		return (int) Max(us, 0);
	while ((us >> (power + 1)) >= 4)
		power++;
	/* now 4 <= us >> power < 8 */
	bucket = 4 * (power + 1) + (int) ((us >> power) - 4);
	return Min(bucket, PSYNC_LATENCY_BUCKETS - 1);
}

/*
 * Count an attempt that has ended.  In memory; a crash loses at most what was
 * not saved, as it does of the progress.
 */
void
psync_stats_note(PsyncMessages *messages, const PsyncOutgoing *message,
				 const PsyncAnswer *answer)
{
	PsyncMessageStats *stats = &messages->stats;
	int			class = answer->status >= 100 && answer->status < 600 ?
		answer->status / 100 : 0;

	stats->changed = true;
	stats->requests++;
	stats->statuses[answer->kind == PSYNC_OUTCOME_DELIVERED && class == 0 ? 2 : class]++;
	stats->latency[latency_bucket(answer->elapsed_us)]++;
	stats->last_status = answer->status;
	stats->last_at = GetCurrentTimestamp();
	strlcpy(stats->last_reason, answer->reason, sizeof(stats->last_reason));
	strlcpy(stats->last_excerpt, answer->excerpt, sizeof(stats->last_excerpt));
	if (messages->unsaved_since == 0)
		messages->unsaved_since = stats->last_at;
}

/*
 * Counters as a bigint[].
 */
static Datum
counter_array(const int64 *counters, int n)
{
	Datum		values[PSYNC_LATENCY_BUCKETS];

	Assert(n <= PSYNC_LATENCY_BUCKETS);
	for (int i = 0; i < n; i++)
		values[i] = Int64GetDatum(counters[i]);
	return PointerGetDatum(construct_array(values, n, INT8OID, sizeof(int64),
										   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/*
 * As the view shows it.
 */
static const char *
breaker_name(PsyncBreaker breaker)
{
	switch (breaker)
	{
		case PSYNC_BREAKER_CLOSED:
			return "closed";
		case PSYNC_BREAKER_OPEN:
			return "open";
		case PSYNC_BREAKER_PROBING:
			return "probing";
	}
	return "unknown";
}

/*
 * Add the counters to the row, and replace what was last.
 */
static void
save_stats(PsyncMessages *messages)
{
	PsyncMessageStats *stats = &messages->stats;
	Oid			types[15] = {UUIDOID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID,
		INT8ARRAYOID, INT8ARRAYOID, INT4OID, TEXTOID, TIMESTAMPTZOID, INT4OID,
	TEXTOID, TEXTOID, TIMESTAMPTZOID};
	Datum		values[15] = {0};
	char		nulls[16] = "               ";

	values[0] = UUIDPGetDatum(&messages->delivery->sync->id);
	values[1] = Int64GetDatum(stats->requests);
	values[2] = Int64GetDatum(stats->events);
	values[3] = Int64GetDatum(stats->retries);
	values[4] = Int64GetDatum(stats->refused);
	values[5] = Int64GetDatum(stats->bytes);
	values[6] = counter_array(stats->statuses, lengthof(stats->statuses));
	values[7] = counter_array(stats->latency, PSYNC_LATENCY_BUCKETS);
	values[8] = Int32GetDatum(messages->in_flight);
	values[9] = CStringGetTextDatum(breaker_name(messages->breaker));
	values[10] = TimestampTzGetDatum(messages->breaker_until);
	nulls[10] = messages->breaker == PSYNC_BREAKER_OPEN ? ' ' : 'n';
	values[11] = Int32GetDatum(stats->last_status);
	nulls[11] = stats->last_status != 0 ? ' ' : 'n';
	values[12] = CStringGetTextDatum(stats->last_reason);
	nulls[12] = stats->last_reason[0] != '\0' ? ' ' : 'n';
	values[13] = CStringGetTextDatum(stats->last_excerpt);
	nulls[13] = stats->last_excerpt[0] != '\0' ? ' ' : 'n';
	values[14] = TimestampTzGetDatum(stats->last_at);
	nulls[14] = stats->last_at != 0 ? ' ' : 'n';
	(void) psync_owner_execute(stats_command, 15, types, values, nulls);
	SPI_finish();
}

/*
 * They are in the row now; what was last stays, to be replaced.
 */
static void
reset_stats(PsyncMessageStats *stats)
{
	stats->changed = false;
	stats->requests = stats->events = stats->retries = 0;
	stats->refused = stats->bytes = 0;
	memset(stats->statuses, 0, sizeof(stats->statuses));
	memset(stats->latency, 0, sizeof(stats->latency));
}

/* ---------------------------------------------------------------- progress */

/* The window at hand: the first that is not done. */
static void
set_window(PsyncMessages *messages, PsyncSyncProgress *progress)
{
	PsyncLine  *line = &messages->line;

	if (line->nmarks > 0)
		progress->window_upto = line->marks[0].upto;
	else if (messages->window_open)
		progress->window_upto =
			psync_snapshot_text(psync_reader_upto(messages->delivery->reader));
	else
		return;
	progress->window_position = line->settled_position;
	progress->window_xid = line->settled_xid;
}

/*
 * How far all is settled: the last window that is done as a whole, and the
 * place in the one at hand.
 */
static void
set_progress(PsyncMessages *messages, PsyncSyncProgress *progress)
{
	PsyncDelivery *delivery = messages->delivery;
	PsyncLine  *line = &messages->line;

	progress->position = line->done;
	progress->hint = line->done != NULL ? &line->done_hint : NULL;
	progress->windows = line->done_windows;
	progress->bytes = line->done_bytes;
	progress->changes = line->settled - delivery->unsaved.rows_read;
	progress->changes = Max(progress->changes, 0);
	progress->rows_read = delivery->unsaved.rows_read;
	progress->delivered_at = messages->last_success;
	progress->lag_at = line->settled_at;
	set_window(messages, progress);
}

/*
 * Make that durable.  False if the position was set by hand meanwhile,
 * which the generation tells.
 */
static bool
save_position(PsyncMessages *messages)
{
	PsyncDelivery *delivery = messages->delivery;
	PsyncSyncProgress progress = {0};
	uint64	   *ahead = NULL;

	progress.nahead = psync_ledger_ahead(messages, &ahead);
	progress.ahead = ahead;
	progress.generation = &delivery->sync->generation;
	set_progress(messages, &progress);
	return psync_figures_save(delivery, &progress);
}

/*
 * What is unsaved, made known to who asks now; most often nothing has been
 * settled since the last time.
 */
void
psync_messages_publish(PsyncMessages *messages)
{
	PsyncSyncProgress progress = {0};
	MemoryContext old;

	if (messages->published == messages->line.moves)
		return;
	messages->published = messages->line.moves;
	old = MemoryContextSwitchTo(messages->delivery->window_context);
	set_progress(messages, &progress);
	psync_figures_publish_messages(messages->delivery, &progress);
	MemoryContextSwitchTo(old);
}

/*
 * The failure that opened the breaker, for stat_sync.
 */
static void
save_failure(PsyncMessages *messages)
{
	const PsyncAnswer *failure = &messages->failure;

	psync_sync_save_failure(&messages->delivery->sync->id,
							unpack_sql_state(failure->sqlerrcode),
							failure->reason, NULL, messages->breaker_until);
}

/*
 * What was just committed need not be saved again.
 */
static void
forget_saved(PsyncMessages *messages)
{
	PsyncLine  *line = &messages->line;

	if (line->done != NULL)
	{
		pfree(line->done);
		line->done = NULL;
	}
	line->done_windows = line->done_bytes = line->settled = 0;
	memset(&messages->delivery->unsaved, 0, sizeof(messages->delivery->unsaved));
	messages->unsaved_since = 0;
	messages->failure_unsaved = messages->success_unsaved = false;
	messages->saved_at = GetCurrentTimestamp();
	psync_ledger_saved(&line->ledger);
	reset_stats(&messages->stats);
}

/*
 * The rows of a batch that were fed are all settled, and so is the window that
 * they came with: only then may the batch's cursor move.
 */
static bool
chunk_is_settled(const PsyncMessages *messages)
{
	return messages->chunk_open && messages->chunk_at == NULL &&
		!messages->window_open && psync_line_is_empty(&messages->line);
}

/*
 * Save all there is.  False if the position was set by hand meanwhile: then
 * nothing is saved, and the delivery is to be closed.
 */
bool
psync_messages_save(PsyncMessages *messages)
{
	PsyncDelivery *delivery = messages->delivery;
	MemoryContext old = MemoryContextSwitchTo(delivery->window_context);
	bool		chunk = chunk_is_settled(messages);

	psync_messages_publish(messages);
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	if (chunk)
		delivery->unsaved.rows_read += delivery->batch->nrows;
	psync_row_changes_record(messages);
	if (!save_position(messages))
	{
		MemoryContextSwitchTo(old);
		return false;
	}
	psync_row_changes_write(messages);
	psync_ledger_save(&messages->line.ledger, &delivery->sync->id);
	if (chunk)
		psync_batch_delivered(delivery, delivery->batch);
	if (messages->failure_unsaved)
		save_failure(messages);
	else if (messages->success_unsaved)
		psync_sync_save_success(&delivery->sync->id);
	if (messages->stats.changed || messages->failure_unsaved)
		save_stats(messages);
	psync_delivery_next_transaction(delivery);

	messages->chunk_open &= !chunk;
	forget_saved(messages);
	psync_row_changes_done(messages);
	psync_delivery_rotate(delivery);
	MemoryContextSwitchTo(old);
	return true;
}
