/*
 * deliver.c
 *		The one loop that delivers changes, for worker and procedure alike.
 *
 * A step:
 *
 *	1	find the next window, A to B (log/window.c); under B's snapshot, read
 *		the next chunk of a batch if one is under way.  B is the snapshot of
 *		this moment, or, if that is far ahead of A, one that was taken on the
 *		way (sync/waypoint.c); chunks wait until A has caught up
 *	2	unless synchronous standbys lack it still: open the target if it is not
 *		open, and compare its position with ours
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
 *		one that this		this server was restored	refuse
 *		server has never
 *		had (position.c)
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
#include "target/registry.h"


const PsyncEngine *psync_message_engine = NULL;

/* An entry of delivery->tables; the key first. */
typedef struct PsyncTableEntry
{
	Oid			relid;
	PsyncTable *table;
} PsyncTableEntry;

/* ----------------------------------------------------------- transactions */

/*
 * For a worker, whose transactions hold nothing but what a step needs of the
 * catalogs.
 */
void
psync_worker_next_transaction(void)
{
	CommitTransactionCommand();
	StartTransactionCommand();
}

/*
 * For a procedure, called outside a transaction block: SPI keeps the memory of
 * the call alive across the commit, and starts the next transaction by itself.
 */
void
psync_spi_next_transaction(void)
{
	SPI_commit();
}

/*
 * End the local transaction and begin another.  The current memory context is
 * kept: it is one of the delivery's, none of the transaction's.
 *
 * May process invalidations, so what the caller knows of the catalogs is old.
 */
void
psync_delivery_next_transaction(PsyncDelivery *delivery)
{
	MemoryContext old = CurrentMemoryContext;

	Assert(!ActiveSnapshotSet());
	delivery->next();
	delivery->transaction_start = GetCurrentTimestamp();
	MemoryContextSwitchTo(old);
}

/*
 * Into a memory context that outlives transactions, for as long as they are
 * ended; and out of it.  If the caller's was its transaction's, that is gone
 * by then, and it goes on in the present one's.
 */
static MemoryContext
enter_context(PsyncDelivery *delivery)
{
	MemoryContext caller = MemoryContextSwitchTo(delivery->context);

	Assert(caller != delivery->window_context);
	return caller == TopTransactionContext || caller == CurTransactionContext ?
		NULL : caller;
}

static void
leave_context(MemoryContext caller)
{
	MemoryContextSwitchTo(caller != NULL ? caller : CurTransactionContext);
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
		psync_delivery_next_transaction(stepping);
		return false;
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);
	return true;
}

/*
 * After psync_delivery_pause() has returned true.  Never raises anything but
 * what starting a transaction may.
 */
void
psync_delivery_resume(void)
{
	MemoryContext old = CurrentMemoryContext;

	Assert(stepping != NULL && !IsTransactionState());

	StartTransactionCommand();
	stepping->transaction_start = GetCurrentTimestamp();
	MemoryContextSwitchTo(old);
}

/* ----------------------------------------------------------------- creation */

/* A hash table in "context", by a key of plain bytes. */
static HTAB *
make_hash(const char *name, Size keysize, Size entrysize, MemoryContext context)
{
	HASHCTL		ctl = {0};

	ctl.keysize = keysize;
	ctl.entrysize = entrysize;
	ctl.hcxt = context;
	return hash_create(name, 32, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/*
 * Each change looks its table up, so a list would not do for a sync of many
 * tables.
 */
static void
index_tables(PsyncDelivery *delivery)
{
	ListCell   *lc;

	Assert(delivery->tables != NULL);

	foreach(lc, delivery->sync->tables)
	{
		PsyncTable *table = lfirst(lc);
		PsyncTableEntry *entry = hash_search(delivery->tables, &table->relid,
											 HASH_ENTER, NULL);

		entry->table = table;
	}
}

/*
 * deliver.h has the contract.  Nothing is opened yet: a sync without work
 * costs no connection.
 *
 * All lives in a context of its own, which close() deletes as a whole; so an
 * error on the way to here leaks the context at most, if the sync cannot be
 * read.
 */
PsyncDelivery *
psync_delivery_create(const pg_uuid_t *id, PsyncNextTransaction next)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext,
												  "payment_sync delivery",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	PsyncDelivery *delivery = palloc0(sizeof(PsyncDelivery));

	delivery->context = context;
	delivery->engine = &psync_window_engine;
	delivery->next = next;
	delivery->window_context = AllocSetContextCreate(context,
													 "payment_sync window",
													 ALLOCSET_DEFAULT_SIZES);
	delivery->invalidations = psync_definition_invalidations();
	psync_sync_version(id, &delivery->version);
	delivery->sync = psync_sync_load(id);
	if (delivery->sync == NULL || delivery->sync->server == NULL ||
		!delivery->sync->enabled || !delivery->sync->has_state)
	{
		/* gone already: the first step will say so */
		MemoryContextSwitchTo(old);
		return delivery;
	}
	delivery->definition = psync_definition_text(delivery->sync);
	delivery->tables = make_hash("payment_sync tables", sizeof(Oid),
								 sizeof(PsyncTableEntry), context);
	delivery->shapes = make_hash("payment_sync shapes", sizeof(uint32),
								 sizeof(PsyncShapeEntry), context);
	index_tables(delivery);
	delivery->reader = psync_reader_create(context,
										   psync_snapshot_parse(delivery->sync->position),
										   &delivery->sync->hint);
	if (delivery->sync->target_position != NULL)
	{
		delivery->target_position = pstrdup(delivery->sync->target_position);
		psync_last_change_parse(&delivery->mark, delivery->target_position);
	}
	delivery->failing = delivery->sync->failures > 0;
	psync_figures_begin(delivery);
	delivery->transaction_start = GetCurrentTimestamp();
	MemoryContextSwitchTo(old);

	Assert(delivery->target == NULL && !delivery->window_begun);
	Assert(psync_reader_upto(delivery->reader) == NULL);
	return delivery;
}

/* ------------------------------------------------------------- the target */

/*
 * Open the target.  True if the window at hand must be found anew.
 *
 * If this raises, delivery->target may be set and half open; transports'
 * close() copes with that.
 */
bool
psync_delivery_open_target(PsyncDelivery *delivery)
{
	MemoryContext old = MemoryContextSwitchTo(delivery->context);
	char	   *remote = NULL;

	Assert(delivery->target == NULL && !delivery->window_begun);

	delivery->target = psync_target_create(delivery->context, delivery->sync,
										   psync_log_identity(),
										   &delivery->transport);
	MemoryContextSwitchTo(delivery->window_context);
	delivery->transport->open(delivery->target);
	if (delivery->transport->messages != NULL)
		delivery->engine = psync_message_engine;
	if (delivery->engine->open != NULL)
		delivery->engine->open(delivery);
	if (delivery->transport->read_position != NULL)
		remote = delivery->transport->read_position(delivery->target);
	MemoryContextSwitchTo(old);

	/* a target that stores none cannot contradict ours */
	return delivery->transport->read_position != NULL &&
		psync_position_adopt(delivery, remote);
}

/* ------------------------------------------------------------ the changes */

/*
 * A shape met before that is the same but for its id.  Partitions that are
 * first written to in one transaction record one each, as they do not see each
 * other's; transports, which keep shapes apart, should not have to.
 */
static PsyncShape *
find_equal_shape(PsyncDelivery *delivery, const PsyncShape *shape)
{
	HASH_SEQ_STATUS status;
	PsyncShapeEntry *entry;

	hash_seq_init(&status, delivery->shapes);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		Assert(entry->shape != shape);
		if (psync_shape_equal(entry->shape, shape))
		{
			hash_seq_term(&status);
			return entry->shape;
		}
	}
	return NULL;
}

/*
 * The shape with this id, loaded when it is first met; lives as long as the
 * delivery, as the contract promises transports.  An error if it was never
 * recorded, which the same transaction would have done (capture/shape.c): then
 * the log is damaged.
 */
const PsyncShape *
psync_delivery_shape(PsyncDelivery *delivery, uint32 id)
{
	PsyncShapeEntry *entry = hash_search(delivery->shapes, &id, HASH_FIND, NULL);
	MemoryContext old;
	PsyncShape *shape;
	PsyncShape *equal;

	Assert(id != 0);

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
	equal = find_equal_shape(delivery, shape);
	entry = hash_search(delivery->shapes, &id, HASH_ENTER, NULL);
	entry->shape = equal != NULL ? equal : shape;
	return entry->shape;
}

/* Fill in shape and table; false if it is none of the sync's tables. */
bool
psync_delivery_locate(PsyncDelivery *delivery, PsyncChange *change, uint32 shape_id)
{
	PsyncTableEntry *entry;
	Oid			relid = shape_id;

	Assert(change->shape == NULL && change->table == NULL);

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

/* The same; false also if the sync leaves out changes of this origin. */
bool
psync_delivery_resolve(PsyncDelivery *delivery, PsyncChange *change, uint32 shape_id)
{
	return !psync_sync_excludes(delivery->sync, change->origin) &&
		psync_delivery_locate(delivery, change, shape_id);
}

/*
 * End the local transaction if it has become old: a window of millions of
 * changes takes minutes, in which our locks would keep rotation and DDL
 * waiting.  The reader does not mind, it holds nothing of a transaction.
 */
void
psync_delivery_cycle_transaction(PsyncDelivery *delivery)
{
	CHECK_FOR_INTERRUPTS();
	if (TimestampDifferenceExceeds(delivery->transaction_start,
								   GetCurrentTimestamp(), PSYNC_TRANSACTION_MS))
		psync_delivery_next_transaction(delivery);
}

/* ------------------------------------------------------------ progress */

/* What has just become old may go. */
void
psync_delivery_rotate(PsyncDelivery *delivery)
{
	(void) psync_log_tidy();
	psync_delivery_next_transaction(delivery);
}

/* deliver.h has the contract. */
void
psync_delivery_save(PsyncDelivery *delivery)
{
	PsyncDelivery *outer = stepping;
	MemoryContext caller;

	Assert(!delivery->window_begun);

	if (psync_delivery_unsaved_since(delivery) == 0)
		return;
	caller = enter_context(delivery);
	stepping = delivery;
	MemoryContextSwitchTo(delivery->window_context);
	delivery->engine->save(delivery);
	stepping = outer;
	leave_context(caller);
}

/*
 * The transaction that was to save has failed.  Its error is reported, not
 * raised: it concerns this delivery, whose events since the last save will be
 * sent again by whoever goes on, and nobody else's.
 */
static void
leave_failed(PsyncDelivery *delivery)
{
	ErrorData  *error;

	HOLD_INTERRUPTS();
	MemoryContextSwitchTo(delivery->context);
	error = CopyErrorData();
	AbortOutOfAnyTransaction();
	FlushErrorState();
	StartTransactionCommand();
	MemoryContextSwitchTo(delivery->context);
	RESUME_INTERRUPTS();
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("could not save the progress of sync \"%s\": %s",
					delivery->sync->name, error->message),
			 errdetail("Events that were delivered since the last save are sent again, with the same ids.")));
	FreeErrorData(error);
}

/* Apart from its caller, whose variables an error would clobber. */
static pg_noinline void
save_or_report(PsyncDelivery *delivery, long await_ms)
{
	PG_TRY();
	{
		delivery->engine->await(delivery, await_ms);
		psync_delivery_save(delivery);
	}
	PG_CATCH();
	{
		leave_failed(delivery);
	}
	PG_END_TRY();
	Assert(IsTransactionState());
}

/*
 * Before the delivery is left to another process.  A target that takes windows
 * knows its position; one that takes messages does not, and would be sent
 * again what was delivered since the last save, and what is under way: its
 * answers are awaited for so long.
 *
 * This may come from within another delivery's wait.  That one's transaction
 * is committed first, as its wait may do anyway: what it has written must not
 * depend on whether we can save.  A worker only, and not while the process
 * reads with a snapshot, which a commit would take away.
 */
void
psync_delivery_leave(PsyncDelivery *delivery, long await_ms)
{
	PsyncDelivery *outer = stepping;
	MemoryContext caller;

	Assert(IsTransactionState());

	if (delivery->engine->await == NULL ||
		delivery->next != psync_worker_next_transaction || ActiveSnapshotSet())
		return;
	if (psync_delivery_unsaved_since(delivery) == 0 &&
		!delivery->engine->under_way(delivery))
		return;
	if (outer == delivery)
		return;
	caller = enter_context(delivery);
	psync_delivery_next_transaction(outer != NULL ? outer : delivery);
	save_or_report(delivery, await_ms);
	leave_context(caller);
	stepping = outer;
}

/* deliver.h has the contract. */
void
psync_delivery_await_standby(PsyncDelivery *delivery)
{
	psync_delivery_next_transaction(delivery);
	psync_reader_await_durable(delivery->reader);
}

/*
 * Is the target open, and one that applies whole windows?  Those are worth
 * being sent larger windows less often.
 */
bool
psync_delivery_takes_windows(PsyncDelivery *delivery)
{
	return delivery->target != NULL && delivery->transport->messages == NULL;
}

/* deliver.h has the contract. */
TimestampTz
psync_delivery_unsaved_since(PsyncDelivery *delivery)
{
	return delivery->engine->unsaved_since(delivery);
}

/* deliver.h has the contract. */
TimestampTz
psync_delivery_wake_at(const PsyncDelivery *delivery)
{
	return delivery->engine->wake_at != NULL ? delivery->engine->wake_at(delivery) : 0;
}

/* deliver.h has the contract. */
bool
psync_delivery_watchable(const PsyncDelivery *delivery)
{
	return delivery != NULL && delivery->engine->watchable != NULL &&
		delivery->engine->watchable(delivery);
}

/* deliver.h has the contract. */
pgsocket
psync_delivery_watch(const PsyncDelivery *delivery, TimestampTz *until)
{
	return delivery->engine->watch(delivery, until);
}

/* deliver.h has the contract. */
void
psync_delivery_failure(const PsyncDelivery *delivery, PsyncDeliveryFailure *failure)
{
	delivery->engine->failure(delivery, failure);
}

/* deliver.h has the contract. */
PsyncDeliverResult
psync_delivery_step(PsyncDelivery *delivery)
{
	MemoryContext caller = enter_context(delivery);
	PsyncDeliverResult result;

	/* after an error, psync_delivery_close() tidies this up */
	stepping = delivery;
	MemoryContextSwitchTo(delivery->window_context);
	if (psync_waypoint_note())
		psync_delivery_next_transaction(delivery);
	result = delivery->engine->step(delivery);
	stepping = NULL;
	leave_context(caller);
	return result;
}

/*
 * Close the target and free everything.  Does not raise, and writes nothing:
 * progress that was not saved is found again at the target, or is delivered
 * once more to one that keeps none (P6).
 */
void
psync_delivery_close(PsyncDelivery *delivery)
{
	PsyncDelivery *outer = stepping != delivery ? stepping : NULL;

	/* ours to close, perhaps from within another one's wait */
	stepping = NULL;
	if (delivery->live.messages)
		psync_live_forget(&delivery->sync->id);
	if (delivery->target != NULL)
	{
		if (delivery->window_begun)
			(void) delivery->transport->abort_window(delivery->target);
		delivery->transport->close(delivery->target);
	}
	MemoryContextDelete(delivery->context);
	stepping = outer;
}
