/*
 * deliver.c
 *		The one loop that delivers changes, for worker and procedure alike.
 *
 * A step:
 *
 *	1	find the next window, A to B (log/window.c); under B's snapshot, read
 *		the next chunk of a batch if one is under way
 *	2	open the target if it is not open, and compare its position with ours
 *	3	hand over the window's changes that concern this sync, then the chunk
 *	4	commit at the target, together with B as position (P5)
 *	5	A := B; progress is saved here at leisure (PSYNC_SAVE_INTERVAL_MS)
 *
 * Whose position counts.  The target's, since it was committed with the
 * changes.  The state here may lag behind it after a crash; it may also be
 * ahead of it by windows that held nothing for this sync.  Therefore the state
 * remembers which position the target had (target_position):
 *
 *		target has			means						start after
 *		target_position		nothing was lost			our position
 *		a later one			we crashed before saving	the target's
 *		an earlier one,		the target was restored		refuse (the log
 *		or none				from a backup				may be gone)
 *		one ahead of this	this server was restored	refuse
 *		server
 *
 * Between steps and while waiting for the target no snapshot is held (P7).
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "capture/shape.h"
#include "compat.h"
#include "deliver/delivery.h"
#include "transport/registry.h"

/* How many changes go between looks at the clock. */
#define PSYNC_CHANGES_PER_CLOCK	1024
/* A local transaction is ended when it is older than this. */
#define PSYNC_TRANSACTION_MS	1000

/* Entries of delivery->tables and ->shapes; keys first. */
typedef struct PsyncTableEntry
{
	Oid			relid;
	PsyncTable *table;
} PsyncTableEntry;

typedef struct PsyncShapeEntry
{
	uint32		id;
	PsyncShape *shape;
} PsyncShapeEntry;

/* Counts relcache invalidations: definitions may have changed. */
static uint64 invalidations = 0;

static void
relcache_callback(Datum arg, Oid relid)
{
	invalidations++;
}

/* ----------------------------------------------------------- transactions */

void
psync_worker_next_transaction(void)
{
	CommitTransactionCommand();
	StartTransactionCommand();
}

void
psync_spi_next_transaction(void)
{
	SPI_commit();
}

static void
next_transaction(PsyncDelivery *delivery)
{
	MemoryContext old = CurrentMemoryContext;

	Assert(!ActiveSnapshotSet());
	delivery->next();
	delivery->transaction_start = GetCurrentTimestamp();
	MemoryContextSwitchTo(old);
}

/*
 * The delivery whose step or save is under way; between those, and while
 * anything is closed, a transaction is not ours to end.
 */
static PsyncDelivery *stepping = NULL;

/*
 * A transaction would hold locks: on the log tables, against rotation; on a
 * table that a chunk was read from, against ALTER TABLE and all who queue
 * behind it.  A target that hangs must not do that to anyone (P7).  A worker
 * has no transaction at all meanwhile; a session that delivers by a procedure
 * cannot be without one, so it gets a new one.
 */
bool
psync_delivery_pause(void)
{
	MemoryContext old = CurrentMemoryContext;

	if (stepping == NULL || !IsTransactionState())
		return false;
	Assert(!ActiveSnapshotSet());

	if (stepping->next != psync_worker_next_transaction)
	{
		next_transaction(stepping);
		return false;
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);
	return true;
}

void
psync_delivery_resume(void)
{
	MemoryContext old = CurrentMemoryContext;

	Assert(stepping != NULL && !IsTransactionState());

	StartTransactionCommand();
	stepping->transaction_start = GetCurrentTimestamp();
	MemoryContextSwitchTo(old);
}

/* ------------------------------------------------------------- definition */

/* All that a delivery was built from, in one string. */
static char *
fingerprint(const PsyncSync *sync)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	appendStringInfo(&buf, "%d %u %s %s", sync->enabled, sync->owner,
					 sync->name, sync->server ? sync->server : "");
	foreach(lc, sync->tables)
	{
		PsyncTable *table = lfirst(lc);

		appendStringInfo(&buf, " %u%s \"%s\" \"%s\" \"%s\" \"%s\"", table->relid,
						 psync_owns_table(table->relid, sync->owner) ? "" : "!",
						 table->source_schema, table->source_name,
						 table->target_schema, table->target_name);
	}
	foreach(lc, sync->exclude_origins)
		appendStringInfo(&buf, " -%s", (char *) lfirst(lc));
	return buf.data;
}

static HTAB *
make_hash(const char *name, Size keysize, Size entrysize, MemoryContext context)
{
	HASHCTL		ctl = {0};

	ctl.keysize = keysize;
	ctl.entrysize = entrysize;
	ctl.hcxt = context;
	return hash_create(name, 32, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

static void
index_tables(PsyncDelivery *delivery)
{
	ListCell   *lc;

	foreach(lc, delivery->sync->tables)
	{
		PsyncTable *table = lfirst(lc);
		PsyncTableEntry *entry = hash_search(delivery->tables, &table->relid,
											 HASH_ENTER, NULL);

		entry->table = table;
	}
}

PsyncDelivery *
psync_delivery_create(const pg_uuid_t *id, PsyncNextTransaction next)
{
	static bool registered = false;
	MemoryContext context = AllocSetContextCreate(TopMemoryContext,
												  "payment_sync delivery",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	PsyncDelivery *delivery = palloc0(sizeof(PsyncDelivery));

	if (!registered)
		CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
	registered = true;

	delivery->context = context;
	delivery->next = next;
	delivery->window_context = AllocSetContextCreate(context,
													 "payment_sync window",
													 ALLOCSET_DEFAULT_SIZES);
	delivery->invalidations = invalidations;
	delivery->sync = psync_sync_load(id);
	if (delivery->sync == NULL || delivery->sync->server == NULL ||
		!delivery->sync->enabled || !delivery->sync->has_state)
	{
		/* gone already: the first step will say so */
		MemoryContextSwitchTo(old);
		return delivery;
	}
	delivery->definition = fingerprint(delivery->sync);
	delivery->tables = make_hash("payment_sync tables", sizeof(Oid),
								 sizeof(PsyncTableEntry), context);
	delivery->shapes = make_hash("payment_sync shapes", sizeof(uint32),
								 sizeof(PsyncShapeEntry), context);
	index_tables(delivery);
	delivery->reader = psync_reader_create(context,
										   psync_snapshot_parse(delivery->sync->position),
										   &delivery->sync->hint);
	if (delivery->sync->target_position != NULL)
		delivery->target_position = pstrdup(delivery->sync->target_position);
	delivery->failing = delivery->sync->failures > 0;
	delivery->transaction_start = GetCurrentTimestamp();
	MemoryContextSwitchTo(old);
	return delivery;
}

/* Has a column of a shape in use been renamed or dropped? */
static bool
shapes_changed(PsyncDelivery *delivery)
{
	HASH_SEQ_STATUS status;
	PsyncShapeEntry *entry;

	hash_seq_init(&status, delivery->shapes);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		for (int i = 0; i < entry->shape->ncolumns; i++)
		{
			PsyncColumn *column = &entry->shape->columns[i];
			char	   *now = get_attname(entry->shape->relid, column->attnum, true);

			if ((now == NULL) != (column->current_name == NULL) ||
				(now != NULL && strcmp(now, column->current_name) != 0))
			{
				hash_seq_term(&status);
				return true;
			}
		}
	}
	return false;
}

/*
 * Is the delivery built from an outdated definition?  Looked up only after a
 * relcache invalidation; the functions that change a definition send one.
 */
static bool
definition_changed(PsyncDelivery *delivery)
{
	PsyncSync  *sync;
	uint64		seen = invalidations;

	if (delivery->definition == NULL)
		return true;
	if (delivery->invalidations == seen)
		return false;

	sync = psync_sync_load(&delivery->sync->id);
	if (sync == NULL || !sync->has_state ||
		strcmp(fingerprint(sync), delivery->definition) != 0 ||
		shapes_changed(delivery))
		return true;
	delivery->sync->batch_pending = sync->batch_pending;
	delivery->invalidations = seen;
	return false;
}

/* ------------------------------------------------------------- the target */

static void
refuse_position(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the target's recorded position does not fit this change log"),
			 errdetail("%s", detail),
			 errhint("Start afresh with payment_sync.enable_sync(name, start => 'batch').")));
}

/*
 * Compare the target's position with ours; see the table in the header
 * comment.  True if the reader was moved.
 */
static bool
adopt_position(PsyncDelivery *delivery, const char *remote)
{
	const char *ours = delivery->target_position;
	PsyncSnapshot *there;
	PsyncSnapshot *now;
	MemoryContext old;

	if (remote == NULL)
	{
		if (ours != NULL)
			refuse_position("The target has lost its position: it was restored or emptied.");
		return false;
	}
	if (ours != NULL && strcmp(ours, remote) == 0)
		return false;

	there = psync_snapshot_parse(remote);
	if (delivery->sync->restart &&
		!psync_snapshot_covers(there, psync_reader_after(delivery->reader)))
		return false;			/* from before the sync was started anew */
	PushActiveSnapshot(GetTransactionSnapshot());
	now = psync_snapshot_current();
	PopActiveSnapshot();
	if (!psync_snapshot_covers(now, there))
		refuse_position("The target has changes that this server does not know: it was restored from a backup.");
	if (!psync_snapshot_covers(there, psync_reader_after(delivery->reader)))
		refuse_position("The target is at an earlier position than was delivered: it was restored from a backup.");

	old = MemoryContextSwitchTo(delivery->context);
	psync_reader_free(delivery->reader);
	delivery->reader = psync_reader_create(delivery->context, there,
										   &delivery->sync->hint);
	delivery->target_position = pstrdup(remote);
	MemoryContextSwitchTo(old);

	/* what is stored here is out of date */
	if (delivery->unsaved_since == 0)
		delivery->unsaved_since = GetCurrentTimestamp();
	return true;
}

/* Open the target.  True if the window at hand must be found anew. */
static bool
open_target(PsyncDelivery *delivery)
{
	MemoryContext old = MemoryContextSwitchTo(delivery->context);
	char	   *remote = NULL;

	delivery->target = psync_target_create(delivery->context, delivery->sync,
										   psync_log_identity(),
										   &delivery->transport);
	MemoryContextSwitchTo(delivery->window_context);
	delivery->transport->open(delivery->target);
	if (delivery->transport->read_position != NULL)
		remote = delivery->transport->read_position(delivery->target);
	MemoryContextSwitchTo(old);

	/* a target that stores none cannot contradict ours */
	return delivery->transport->read_position != NULL &&
		adopt_position(delivery, remote);
}

static void
ensure_window(PsyncDelivery *delivery, const PsyncWindowSize *size)
{
	PsyncWindowInfo info;

	if (delivery->window_begun)
		return;
	info.changes = size->changes;
	info.bytes = size->bytes;
	info.batch = delivery->batch != NULL;
	delivery->window_begun = true;
	delivery->transport->begin_window(delivery->target, &info);
}

/* ------------------------------------------------------------ the changes */

const PsyncShape *
psync_delivery_shape(PsyncDelivery *delivery, uint32 id)
{
	PsyncShapeEntry *entry = hash_search(delivery->shapes, &id, HASH_FIND, NULL);
	MemoryContext old;
	PsyncShape *shape;

	if (entry != NULL)
		return entry->shape;

	old = MemoryContextSwitchTo(delivery->context);
	shape = psync_shape_load(id);
	MemoryContextSwitchTo(old);
	if (shape == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("shape %u of the change log is missing", id),
				 errhint("Copy the tables anew with payment_sync.enable_sync(name, start => 'batch').")));
	entry = hash_search(delivery->shapes, &id, HASH_ENTER, NULL);
	entry->shape = shape;
	return shape;
}

static bool
origin_excluded(PsyncDelivery *delivery, const char *origin)
{
	ListCell   *lc;

	if (origin == NULL)
		return false;
	foreach(lc, delivery->sync->exclude_origins)
	{
		const char *excluded = lfirst(lc);

		if (strcmp(excluded, "*") == 0 || strcmp(excluded, origin) == 0)
			return true;
	}
	return false;
}

/* Fill in shape and table; false if the change does not concern the sync. */
static bool
resolve(PsyncDelivery *delivery, PsyncChange *change, uint32 shape_id)
{
	PsyncTableEntry *entry;
	Oid			relid = shape_id;

	if (origin_excluded(delivery, change->origin))
		return false;
	if (change->op != PSYNC_TRUNCATE)
	{
		change->shape = psync_delivery_shape(delivery, shape_id);
		relid = change->shape->relid;
	}
	entry = hash_search(delivery->tables, &relid, HASH_FIND, NULL);
	if (entry == NULL)
		return false;
	change->table = entry->table;
	return true;
}

/* End the local transaction if it has become old. */
static void
cycle_transaction(PsyncDelivery *delivery)
{
	CHECK_FOR_INTERRUPTS();
	if (TimestampDifferenceExceeds(delivery->transaction_start,
								   GetCurrentTimestamp(), PSYNC_TRANSACTION_MS))
		next_transaction(delivery);
}

static void
send_changes(PsyncDelivery *delivery, const PsyncWindowSize *size)
{
	PsyncChange change;
	uint32		shape_id;
	uint64		n = 0;

	while (psync_reader_next(delivery->reader, &change, &shape_id))
	{
		if (++n % PSYNC_CHANGES_PER_CLOCK == 0)
			cycle_transaction(delivery);
		if (!resolve(delivery, &change, shape_id))
			continue;
		ensure_window(delivery, size);
		delivery->transport->change(delivery->target, &change);
		delivery->unsaved.changes++;
		delivery->unsaved.lag_at = change.at;
	}
}

/* ------------------------------------------------------------ progress */

static void
note_progress(PsyncDelivery *delivery)
{
	if (delivery->unsaved_since == 0)
		delivery->unsaved_since = GetCurrentTimestamp();
}

static List *
positions_as_owner(void)
{
	return psync_sync_list_positions();
}

/*
 * What the target has confirmed must be on its disk before we forget it: the
 * log is truncated by saved positions, and a batch goes on at its saved key.
 */
static void
flush_target(PsyncDelivery *delivery)
{
	if (delivery->target != NULL && delivery->transport->flush != NULL)
		delivery->transport->flush(delivery->target);
}

static void
save_progress(PsyncDelivery *delivery)
{
	PsyncReadHint hint;
	PsyncOwnerContext save;
	MemoryContext old;

	Assert(!delivery->window_begun);
	Assert(stepping == delivery);

	old = MemoryContextSwitchTo(delivery->window_context);
	if (delivery->unsaved.windows > 0)
		flush_target(delivery);
	psync_reader_hint(delivery->reader, &hint);
	delivery->unsaved.hint = &hint;
	delivery->unsaved.position =
		psync_snapshot_text(psync_reader_after(delivery->reader));
	delivery->unsaved.target_position = delivery->target_position;
	psync_sync_save_progress(&delivery->sync->id, &delivery->unsaved);
	delivery->sync->hint = hint;
	memset(&delivery->unsaved, 0, sizeof(delivery->unsaved));
	delivery->unsaved_since = 0;
	next_transaction(delivery);

	/* what has just become old may go */
	psync_owner_enter(&save);
	psync_log_rotate(positions_as_owner);
	psync_owner_leave(&save);
	next_transaction(delivery);
	MemoryContextSwitchTo(old);
	MemoryContextReset(delivery->window_context);
}

void
psync_delivery_save(PsyncDelivery *delivery)
{
	if (delivery->unsaved_since == 0)
		return;
	stepping = delivery;
	save_progress(delivery);
	stepping = NULL;
}

bool
psync_delivery_takes_windows(PsyncDelivery *delivery)
{
	return delivery->target != NULL && delivery->transport->messages == NULL;
}

TimestampTz
psync_delivery_unsaved_since(PsyncDelivery *delivery)
{
	return delivery->unsaved_since;
}

/* The window is at the target: our own books follow. */
static void
window_delivered(PsyncDelivery *delivery, const PsyncWindowSize *size)
{
	note_progress(delivery);
	if (delivery->window_begun)
	{
		char	   *position = psync_snapshot_text(psync_reader_upto(delivery->reader));

		if (delivery->target_position != NULL)
			pfree(delivery->target_position);
		delivery->target_position = MemoryContextStrdup(delivery->context, position);
		delivery->unsaved.windows++;
		delivery->unsaved.bytes += size->bytes;
		delivery->unsaved.delivered_at = GetCurrentTimestamp();
		delivery->window_begun = false;
		delivery->sync->restart = false;
	}
	psync_reader_done(delivery->reader);
}

static void
deliver_window(PsyncDelivery *delivery, const PsyncWindowSize *size)
{
	bool		commit;

	send_changes(delivery, size);
	if (delivery->batch != NULL)
	{
		ensure_window(delivery, size);
		psync_batch_send(delivery, delivery->batch);
	}
	if (delivery->window_begun)
		delivery->transport->commit_window(delivery->target,
										   psync_snapshot_text(psync_reader_upto(delivery->reader)));
	window_delivered(delivery, size);

	commit = TimestampDifferenceExceeds(delivery->transaction_start,
										GetCurrentTimestamp(),
										PSYNC_TRANSACTION_MS);
	if (delivery->batch != NULL)
	{
		flush_target(delivery);
		psync_batch_delivered(delivery, delivery->batch);
		commit = true;
	}
	if (delivery->failing)
	{
		psync_sync_save_success(&delivery->sync->id);
		delivery->failing = false;
		commit = true;
	}
	if (commit)
		next_transaction(delivery);
}

static PsyncDeliverResult
step(PsyncDelivery *delivery)
{
	PsyncWindowSize size;
	MemoryContext old;
	bool		found;

	old = MemoryContextSwitchTo(delivery->window_context);
	if (definition_changed(delivery))
	{
		MemoryContextSwitchTo(old);
		return PSYNC_DELIVER_GONE;
	}
	if (delivery->batch == NULL && delivery->sync->batch_pending)
		delivery->batch = psync_batch_load(delivery);
	found = psync_reader_open(delivery->reader, &size,
							  delivery->batch ? psync_batch_read : NULL,
							  delivery->batch);

	/*
	 * B may see changes of a table that joined the sync after we looked; who
	 * passed over them now would never come back (P2).
	 */
	AcceptInvalidationMessages();
	if (definition_changed(delivery))
	{
		MemoryContextSwitchTo(old);
		return PSYNC_DELIVER_GONE;
	}
	if (!found && delivery->batch == NULL)
	{
		MemoryContextSwitchTo(old);
		MemoryContextReset(delivery->window_context);
		return PSYNC_DELIVER_IDLE;
	}
	if (delivery->target == NULL && open_target(delivery))
	{
		MemoryContextSwitchTo(old);
		return PSYNC_DELIVER_DONE;
	}
	deliver_window(delivery, &size);

	if (delivery->unsaved_since != 0 &&
		TimestampDifferenceExceeds(delivery->unsaved_since, GetCurrentTimestamp(),
								   PSYNC_SAVE_INTERVAL_MS))
		save_progress(delivery);
	MemoryContextSwitchTo(old);
	MemoryContextReset(delivery->window_context);
	return PSYNC_DELIVER_DONE;
}

PsyncDeliverResult
psync_delivery_step(PsyncDelivery *delivery)
{
	PsyncDeliverResult result;

	/* after an error, psync_delivery_close() tidies this up */
	stepping = delivery;
	result = step(delivery);
	stepping = NULL;
	return result;
}

void
psync_delivery_close(PsyncDelivery *delivery)
{
	PsyncDelivery *outer = stepping != delivery ? stepping : NULL;

	/* ours to close, perhaps from within another one's wait */
	stepping = NULL;
	if (delivery->target != NULL)
	{
		if (delivery->window_begun)
			(void) delivery->transport->abort_window(delivery->target);
		delivery->transport->close(delivery->target);
	}
	MemoryContextDelete(delivery->context);
	stepping = outer;
}
