/*
 * state.c
 *		Writing the state of syncs.
 *
 * Progress is written by whoever delivers the sync, at most about once a
 * second.  It may lag behind what the target has recorded; see
 * deliver/deliver.c for how the two are reconciled after a crash.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/uuid.h"

#include "compat.h"
#include "sync/admin.h"

uint64		psync_progress_saves = 0;

static const char progress_command[] =
	"UPDATE payment_sync.sync_state SET"
	" position = COALESCE($2::pg_snapshot, position),"
	" target_position = COALESCE($3, target_position),"
	" restart = restart AND $3 IS NULL,"
	" hint_filenode = COALESCE($4, hint_filenode),"
	" hint_block = COALESCE($5, hint_block),"
	" windows = windows + $6, changes = changes + $7,"
	" rows_read = rows_read + $8, bytes = bytes + $9,"
	" last_success = COALESCE($10, last_success), lag_at = COALESCE($11, lag_at),"
	" changes_per_second = ($7 + $8) / GREATEST(extract(epoch FROM"
	"  clock_timestamp() - GREATEST(saved, clock_timestamp() - interval '5 s')), 0.5)::float8,"
	" saved = clock_timestamp(),"
	" window_upto = $12::pg_snapshot, window_position = $13,"
	" window_xid = $14::text::xid8, window_ahead = $16"
	" WHERE sync = $1 AND generation = COALESCE($15, generation)";

/*
 * One statement that returns nothing, as the tables' owner.
 */
static void
execute(const char *command, int nargs, Oid *types, Datum *values, const char *nulls)
{
	(void) psync_owner_execute(command, nargs, types, values, nulls);
	SPI_finish();
}

/*
 * A parameter that may be NULL; copied.
 */
static void
set_text(Datum *value, char *null, const char *text)
{
	*null = text != NULL ? ' ' : 'n';
	*value = text != NULL ? CStringGetTextDatum(text) : (Datum) 0;
}

/*
 * A parameter that is NULL if the time is 0, which none is after 2000-01-01.
 */
static void
set_time(Datum *value, char *null, TimestampTz time)
{
	*null = time != 0 ? ' ' : 'n';
	*value = TimestampTzGetDatum(time);
}

/*
 * A bigint[], or NULL if there are none.
 */
static void
set_numbers(Datum *value, char *null, const uint64 *numbers, int n)
{
	Datum	   *elements = palloc(Max(n, 1) * sizeof(Datum));

	Assert(n == 0 || numbers != NULL);

	for (int i = 0; i < n; i++)
		elements[i] = Int64GetDatum((int64) numbers[i]);
	*null = n > 0 ? ' ' : 'n';
	*value = PointerGetDatum(construct_array(elements, n, INT8OID, sizeof(int64),
											 FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/*
 * Two parameters, arrays; both NULL without a hint.  The statement leaves what
 * is NULL as it is.
 */
void
psync_hint_write(Datum *values, char *nulls, const PsyncReadHint *hint)
{
	Datum		filenodes[PSYNC_LOG_TABLES];
	Datum		blocks[PSYNC_LOG_TABLES];

	if (hint == NULL)
	{
		nulls[0] = nulls[1] = 'n';
		values[0] = values[1] = (Datum) 0;
		return;
	}
	for (int i = 0; i < PSYNC_LOG_TABLES; i++)
	{
		filenodes[i] = ObjectIdGetDatum(hint->filenode[i]);
		blocks[i] = Int64GetDatum((int64) hint->block[i]);
	}
	values[0] = PointerGetDatum(construct_array(filenodes, PSYNC_LOG_TABLES, OIDOID,
												sizeof(Oid), true, TYPALIGN_INT));
	values[1] = PointerGetDatum(construct_array(blocks, PSYNC_LOG_TABLES, INT8OID,
												sizeof(int64), true, TYPALIGN_DOUBLE));
}

/*
 * Add what was delivered and replace the position.  By whoever holds the
 * sync's lock, so nobody else writes these columns; if the sync was dropped
 * meanwhile there is no row, and nothing is done.
 *
 * The rate is that of the last interval, of 0.5 to 5 seconds: what a person
 * who looks at it now wants to know.
 *
 * False: the position was set by hand meanwhile, and ours is void.
 */
bool
psync_sync_save_progress(const pg_uuid_t *id, const PsyncSyncProgress *progress)
{
	Oid			types[16] = {UUIDOID, TEXTOID, TEXTOID, OIDARRAYOID, INT8ARRAYOID,
		INT8OID, INT8OID, INT8OID, INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID,
	TEXTOID, INT8OID, INT8OID, INT4OID, INT8ARRAYOID};
	Datum		values[16];
	char		nulls[17] = "                ";
	uint64		saved;

	/* a hint is about a position; windows and changes only grow */
	Assert(progress->hint == NULL || progress->position != NULL);
	Assert(progress->windows >= 0 && progress->changes >= 0);
	Assert(progress->rows_read >= 0 && progress->bytes >= 0);

	values[0] = UUIDPGetDatum(id);
	set_text(&values[1], &nulls[1], progress->position);
	set_text(&values[2], &nulls[2], progress->target_position);
	psync_hint_write(&values[3], &nulls[3], progress->hint);
	values[5] = Int64GetDatum(progress->windows);
	values[6] = Int64GetDatum(progress->changes);
	values[7] = Int64GetDatum(progress->rows_read);
	values[8] = Int64GetDatum(progress->bytes);
	set_time(&values[9], &nulls[9], progress->delivered_at);
	set_time(&values[10], &nulls[10], progress->lag_at);
	set_text(&values[11], &nulls[11], progress->window_upto);
	values[12] = Int64GetDatum((int64) progress->window_position);
	values[13] = Int64GetDatum((int64) progress->window_xid);
	nulls[14] = progress->generation != NULL ? ' ' : 'n';
	values[14] = Int32GetDatum(progress->generation ? *progress->generation : 0);
	set_numbers(&values[15], &nulls[15], progress->ahead, progress->nahead);
	saved = psync_owner_execute(progress_command, 16, types, values, nulls);
	SPI_finish();
	psync_progress_saves++;
	return saved > 0;
}

/*
 * A failure, with the time of the next attempt (the worker's back-off). The
 * message is the error's as it was raised; whoever raised it has kept secrets
 * out of it (P9).
 */
void
psync_sync_save_failure(const pg_uuid_t *id, const char *sqlstate,
						const char *message, const char *detail,
						TimestampTz retry_at)
{
	Oid			types[5] = {UUIDOID, TEXTOID, TEXTOID, TEXTOID, TIMESTAMPTZOID};
	Datum		values[5];
	char		nulls[6] = "     ";

	Assert(sqlstate != NULL && message != NULL);

	values[0] = UUIDPGetDatum(id);
	set_text(&values[1], &nulls[1], sqlstate);
	set_text(&values[2], &nulls[2], message);
	set_text(&values[3], &nulls[3], detail);
	set_time(&values[4], &nulls[4], retry_at);
	execute("UPDATE payment_sync.sync_state SET errors = errors + 1,"
			" failures = failures + 1, last_error_state = $2, last_error = $3,"
			" last_error_detail = $4, last_error_at = clock_timestamp(),"
			" failing_since = COALESCE(failing_since, clock_timestamp()),"
			" retry_at = $5 WHERE sync = $1",
			5, types, values, nulls);
}

/*
 * The row of failures is over; the last error stays to be seen.
 */
void
psync_sync_save_success(const pg_uuid_t *id)
{
	Oid			types[1] = {UUIDOID};
	Datum		values[1];

	values[0] = UUIDPGetDatum(id);
	execute("UPDATE payment_sync.sync_state SET failures = 0, retry_at = NULL,"
			" failing_since = NULL, last_success = clock_timestamp() WHERE sync = $1",
			1, types, values, NULL);
}

/*
 * Disabled by ourselves: its position no longer holds back the log, and is
 * thereby void.  It must be started anew.
 */
void
psync_sync_disable(const pg_uuid_t *id, const char *reason)
{
	Oid			types[2] = {UUIDOID, TEXTOID};
	Datum		values[2];

	Assert(reason != NULL);

	values[0] = UUIDPGetDatum(id);
	values[1] = CStringGetTextDatum(reason);
	execute("UPDATE payment_sync.sync SET enabled = false WHERE id = $1",
			1, types, values, NULL);
	execute("UPDATE payment_sync.sync_state SET released = true,"
			" disabled_reason = $2 WHERE sync = $1",
			2, types, values, NULL);
}

/*
 * Disabled because its target wants no more, or has failed for too long; its
 * position stays, and with it the log.
 */
void
psync_sync_give_up(const pg_uuid_t *id, const char *reason)
{
	Oid			types[2] = {UUIDOID, TEXTOID};
	Datum		values[2];

	values[0] = UUIDPGetDatum(id);
	values[1] = CStringGetTextDatum(reason);
	execute("UPDATE payment_sync.sync SET enabled = false WHERE id = $1",
			1, types, values, NULL);
	execute("UPDATE payment_sync.sync_state SET disabled_reason = $2"
			" WHERE sync = $1", 2, types, values, NULL);
}

/*
 * Why it is disabled, for stat_sync.  The position stays in force.
 */
void
psync_sync_set_reason(const char *name, const char *reason)
{
	Oid			types[2] = {NAMEOID, TEXTOID};
	Datum		values[2];
	NameData	sync;

	namestrcpy(&sync, name);
	values[0] = NameGetDatum(&sync);
	values[1] = CStringGetTextDatum(reason);
	execute("UPDATE payment_sync.sync_state SET disabled_reason = $2"
			" WHERE sync = (SELECT id FROM payment_sync.sync WHERE name = $1)",
			2, types, values, NULL);
}
