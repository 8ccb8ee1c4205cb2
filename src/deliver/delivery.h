/*
 * delivery.h
 *		The state of a delivery, shared by the files of this folder only.
 */
#ifndef PSYNC_DELIVERY_H
#define PSYNC_DELIVERY_H

#include "lib/stringinfo.h"
#include "utils/hsearch.h"

#include "capture/capture.h"
#include "deliver/deliver.h"
#include "sync/live.h"

/* A chunk is closed when its rows exceed this many bytes … */
#define PSYNC_CHUNK_ROWS_BYTES	(4 * 1024 * 1024)
/* … or this many rows. */
#define PSYNC_CHUNK_ROWS_MAX	65536

/* A local transaction is ended when it is older than this. */
#define PSYNC_TRANSACTION_MS	1000

/* Progress is kept in memory at most this long. */
#define PSYNC_SAVE_INTERVAL_MS	1000

/* The batch that a delivery is working on: one table at a time. */
typedef struct PsyncBatch
{
	MemoryContext context;
	const PsyncTable *table;
	const PsyncShape *shape;
	PsyncCaptureRel *encoder;	/* columns as the query returns them */
	Oid			relid;
	pg_uuid_t	request;		/* tells it from one asked for later */
	Oid			owner;			/* whose rights the rows are read with */
	bool		mirror;
	bool		sweep;			/* a mirror that begins: the chunk at hand is the
								 * keys of all rows */
	bool		plain;			/* not partitioned: read ONLY this table */
	bool		first;			/* no chunk was delivered yet */
	bool		circular;		/* its rows may refer to rows of later chunks */
	bool		whole;			/* … and did: all rows are sent at once */
	struct PsyncBatch *next;	/* … with those of the other tables of a circle */
	uint32		saved_shape;	/* of the key in "after", as it was loaded */
	char	   *query_first;	/* without a lower bound */
	char	   *query_next;
	char	   *query_all;		/* keys, or rows */
	StringInfoData after;		/* last key delivered, as a sparse part */
	/* the chunk at hand */
	StringInfoData upto;		/* its last key */
	StringInfoData rows;		/* uint32 size and image, each */
	struct BufFile *spool;		/* instead, of a sweep or whole table: the same,
								 * of keys or images */
	MemoryContextCallback spool_closer;
	int64		nrows;
	bool		full;			/* ended by its size: there may be more */
} PsyncBatch;

/* Tells a change from all others, also those of another history. */
typedef struct PsyncLastChange
{
	uint64		xid;			/* 0: none */
	uint64		position;
	TimestampTz at;
} PsyncLastChange;

/*
 * How changes get to a target that is open.  Targets apply windows (deliver.c)
 * or take messages (message/).  A delivery begins with the engine of windows,
 * which opens the target as soon as there is something for it, and goes on with
 * the one that the target needs.  Called with the window's memory context as
 * current one, unless said otherwise.
 */
typedef struct PsyncEngine
{
	/* The target was opened: make delivery->engine_state.  May be NULL. */
	void		(*open) (PsyncDelivery *delivery);
	PsyncDeliverResult (*step) (PsyncDelivery *delivery);

	/* In whatever context, since when something is unsaved; 0: nothing is. */
	TimestampTz (*unsaved_since) (const PsyncDelivery *delivery);
	void		(*save) (PsyncDelivery *delivery);

	/*
	 * Of an engine whose targets answer later; all NULL if they answer at once.
	 * deliver.h has their contracts: psync_delivery_wake_at() and so on.
	 */
	bool		(*under_way) (const PsyncDelivery *delivery);
	void		(*await) (PsyncDelivery *delivery, long limit_ms);
	TimestampTz (*wake_at) (const PsyncDelivery *delivery);
	bool		(*watchable) (const PsyncDelivery *delivery);
	pgsocket	(*watch) (const PsyncDelivery *delivery, TimestampTz *until);
	void		(*failure) (const PsyncDelivery *delivery,
							PsyncDeliveryFailure *failure);
} PsyncEngine;

/* window.c; and the other, set from above when the library is loaded. */
extern const PsyncEngine psync_window_engine;
extern const PsyncEngine *psync_message_engine;

struct PsyncDelivery
{
	MemoryContext context;		/* of the delivery */
	MemoryContext window_context;	/* reset after each window */
	PsyncNextTransaction next;
	PsyncSync  *sync;
	char	   *definition;		/* fingerprint of what sync was built from */
	uint64		invalidations;	/* counter when that was last checked */
	PsyncSyncVersion version;	/* of the sync's row, likewise */
	List	   *exclude_origins;
	HTAB	   *tables;			/* Oid -> PsyncTable */
	HTAB	   *shapes;			/* id -> PsyncShape */
	PsyncReader *reader;
	PsyncWindowSize size;		/* of its window */
	const struct PsyncTransport *transport;
	PsyncTarget *target;		/* NULL: not open */
	bool		window_begun;	/* at the target */
	PsyncBatch *batch;			/* NULL: none under way */
	PsyncBatch *chunk;			/* the same, if its chunk comes with the window
								 * at hand; of targets that take windows */
	List	   *uncopied;		/* Oids: tables whose first copy is to come */
	bool		recheck;		/* compare whether there were any or not */
	uint64		looks;			/* times that the definition was compared */
	const PsyncEngine *engine;
	void	   *engine_state;
	TimestampTz transaction_start;

	/* not yet saved */
	PsyncSyncProgress unsaved;
	TimestampTz unsaved_since;	/* 0: nothing */
	char	   *target_position;	/* what the target holds */
	PsyncLastChange	mark;			/* of the last change that the target has */
	PsyncSyncCounters saved;	/* the state's counters */
	PsyncLive	live;			/* what was published, if anything was */
	bool		failing;		/* the state says so: a success clears it */
};

/* An entry of delivery->shapes; the key first. */
typedef struct PsyncShapeEntry
{
	uint32		id;
	PsyncShape *shape;
} PsyncShapeEntry;

/* figures.c */
extern void psync_figures_begin(PsyncDelivery *delivery);
extern void psync_figures_note(PsyncDelivery *delivery);
extern bool psync_figures_taken_over(const PsyncDelivery *delivery);
extern void psync_figures_forget(PsyncDelivery *delivery);
extern bool psync_figures_save(PsyncDelivery *delivery, PsyncSyncProgress *progress);
extern void psync_figures_publish(PsyncDelivery *delivery);
extern void psync_figures_publish_messages(PsyncDelivery *delivery,
											const PsyncSyncProgress *progress);
extern void psync_figures_await_standby(PsyncDelivery *delivery);

/* definition.c */
extern uint64 psync_definition_invalidations(void);
extern char *psync_definition_text(const PsyncSync *sync);
extern void psync_delivery_check_shapes(PsyncDelivery *delivery);
extern bool psync_delivery_changed(PsyncDelivery *delivery);
extern bool psync_delivery_outdated(PsyncDelivery *delivery);

/* batch.c */
extern PsyncBatch *psync_batch_load(PsyncDelivery *delivery);
extern void psync_batch_load_uncopied(PsyncDelivery *delivery);
extern bool psync_batch_leaves_out(const PsyncDelivery *delivery,
								   PsyncChange *change);
extern void psync_batch_delivered(PsyncDelivery *delivery, PsyncBatch *batch);
extern void psync_batch_refused(PsyncDelivery *delivery, PsyncBatch *batch);
extern void psync_batch_free(PsyncBatch *batch);

/* batch_read.c */
extern void psync_batch_build_queries(PsyncBatch *batch);
extern void psync_batch_read(void *arg);	/* arg: the PsyncBatch */
extern bool psync_batch_send(PsyncDelivery *delivery, PsyncBatch *batch);

/* deliver.c */
extern bool psync_delivery_open_target(PsyncDelivery *delivery);
extern void psync_delivery_next_transaction(PsyncDelivery *delivery);
extern void psync_delivery_cycle_transaction(PsyncDelivery *delivery);
extern bool psync_delivery_locate(PsyncDelivery *delivery, PsyncChange *change,
								  uint32 shape_id);
extern bool psync_delivery_resolve(PsyncDelivery *delivery, PsyncChange *change,
								   uint32 shape_id);
extern void psync_delivery_rotate(PsyncDelivery *delivery);
extern const PsyncShape *psync_delivery_shape(PsyncDelivery *delivery, uint32 id);

/* position.c */
extern void psync_last_change_set(PsyncLastChange *mark, const PsyncChange *change);
extern void psync_last_change_parse(PsyncLastChange *mark, const char *text);
extern char *psync_position_text(PsyncDelivery *delivery);
extern bool psync_position_adopt(PsyncDelivery *delivery, const char *remote);

#endif							/* PSYNC_DELIVERY_H */
