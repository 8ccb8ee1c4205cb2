/*
 * log.h
 *		The change log: how changes are appended, read in windows, rotated.
 *
 * Stored form.  The log is three heaps, payment_sync.log_0 … log_2, of which
 * one is active.  A heap tuple is a chunk: many changes of one transaction
 * (and subtransaction and origin), packed:
 *
 *	column		type		meaning
 *	xid			xid8		top-level transaction
 *	position	int8		of the chunk's first change; with xid, it names the chunk
 *	at			timestamptz	when the chunk was written
 *	changes		int4		their number; 0: this tuple continues the data of
 *							the previous one with the same xid and position
 *	origin		name		NULL: made here; else who applied them
 *	data		bytea		the changes, below
 *
 * A change that is too large for a page is a chunk of its own, cut into a
 * first tuple and continuations; the tuples' order in the heap is theirs.
 *
 * A change within data (integers big-endian, unaligned):
 *
 *	offset	size	meaning
 *	0		1		operation: I, U, D, T
 *	1		1		flags: PSYNC_CHANGE_…
 *	2		4		position, less the chunk's
 *	6		4		shape id (T: oid of the relation)
 *	10		4		size of the new image, n (0: none)
 *	14		n		new image
 *	14+n	4		size of the old part, o (0: none)
 *	18+n	o		old part
 *
 * Order.  A change's position is the larger of "the writer's previous
 * position + 1" and the end of its last WAL record; since a transaction that
 * changes a row again must first see the earlier transaction's end, positions
 * of one key ascend in the order of its changes (P4).  psync_log_append()'s
 * comment has the details.  Positions say nothing about commit order: readers
 * never skip by them, they read windows (P2).
 *
 * A window is: chunks visible under snapshot B whose xid is not visible under
 * snapshot A.
 */
#ifndef PSYNC_LOG_H
#define PSYNC_LOG_H

#include "access/xlogdefs.h"
#include "access/xlogdefs.h"
#include "lib/stringinfo.h"
#include "storage/block.h"
#include "storage/itemptr.h"
#include "utils/timestamp.h"

#include "transport/payment_sync_transport.h"

#define PSYNC_LOG_TABLES		3

/* A snapshot that sees nothing that a log could hold. */
#define PSYNC_BEFORE_ALL		"3:3:"

#define PSYNC_CHANGE_KEY_CHANGED	0x01

#define PSYNC_CHANGE_HEADER_SIZE	14
/* A chunk is closed before it grows beyond this many bytes of data. */
#define PSYNC_CHUNK_BYTES_MAX		7900

/* ---------------------------------------------------------- append.c */

/* Set by payment_sync.origin; NULL or "" for local changes. */
extern char *psync_origin;

/* Called after a commit that has logged changes; set by the worker layer. */
extern void (*psync_log_commit_hook) (void);

extern void psync_log_init(void);

/*
 * Begin and end one change.  Between the two the caller appends to the
 * returned buffer the new image, calls psync_log_old(), and appends the old
 * part.  Nothing else may be logged in between; an error in between leaves
 * the log as it was before.
 */
extern StringInfo psync_log_begin(PsyncOperation op, uint32 shape_id);
extern void psync_log_old(void);
extern void psync_log_end(uint8 flags);

/*
 * Let the positions to come lie behind all WAL written so far, by anyone; for
 * changes that are logged without having written WAL of their own before.
 */
extern void psync_log_advance(void);

/* Has the current transaction logged anything? */
extern bool psync_log_has_changes(void);

/* ---------------------------------------------------------- snapshot.c */

/*
 * A snapshot as pg_snapshot prints it ("xmin:xmax:xip,…"), over top-level
 * transaction ids with epoch.
 */
typedef struct PsyncSnapshot
{
	uint64		xmin;
	uint64		xmax;
	int			nxip;
	uint64		xip[FLEXIBLE_ARRAY_MEMBER]; /* ascending */
} PsyncSnapshot;

extern PsyncSnapshot *psync_snapshot_current(void); /* of the active snapshot */
extern PsyncSnapshot *psync_snapshot_parse(const char *text);
extern char *psync_snapshot_text(const PsyncSnapshot *snapshot);
extern bool psync_snapshot_sees(const PsyncSnapshot *snapshot, uint64 xid);
/* Does b see everything that a sees? */
extern bool psync_snapshot_covers(const PsyncSnapshot *b,
								  const PsyncSnapshot *a);

/* ------------------------------------------------------------ window.c */

/*
 * Where reading starts: per log table the file it is about (a truncated table
 * has a new one) and the first block that may hold unread chunks.
 */
typedef struct PsyncReadHint
{
	Oid			filenode[PSYNC_LOG_TABLES];
	BlockNumber block[PSYNC_LOG_TABLES];
} PsyncReadHint;

/*
 * A snapshot that was taken on the way, and how far the log reached then: per
 * log table its file and how many blocks it had.  Whatever the snapshot sees
 * lies within these, or was in a file that has been emptied since.
 */
typedef struct PsyncWaypoint
{
	PsyncSnapshot *snapshot;
	PsyncReadHint end;
} PsyncWaypoint;

typedef struct PsyncReader PsyncReader;

/* What the reader found to be in the window. */
typedef struct PsyncWindowSize
{
	uint64		chunks;
	uint64		changes;
	uint64		bytes;
	TimestampTz oldest;			/* earliest "at"; 0 if empty */
} PsyncWindowSize;

/*
 * A reader belongs to one sync: it starts after snapshot "after", and
 * remembers between windows where to go on.  Allocated in a context of its
 * own below "parent".
 */
extern PsyncReader *psync_reader_create(MemoryContext parent,
										const PsyncSnapshot *after,
										const PsyncReadHint *hint);
extern void psync_reader_free(PsyncReader *reader);

/*
 * Look for the next window: takes a snapshot B, finds its chunks, releases
 * the snapshot, and flushes WAL up to here.  False if the window is empty (the
 * reader then has moved on all the same).  The snapshot under which B was
 * taken is handed to "under_snapshot" (may be NULL) while it is still active,
 * so that a batch can read its chunk under it.
 */
extern bool psync_reader_open(PsyncReader *reader, PsyncWindowSize *size,
							  void (*under_snapshot) (void *arg), void *arg);

/* The same up to a snapshot stored before (NULL: the current one). */
extern bool psync_reader_open_upto(PsyncReader *reader,
								   const PsyncSnapshot *upto);

/*
 * The same up to a waypoint, without looking at what was logged after it.  As
 * psync_reader_open(): false if the window is empty, and A has moved on.
 */
extern bool psync_reader_open_waypoint(PsyncReader *reader,
									   const PsyncWaypoint *waypoint,
									   PsyncWindowSize *size);

/*
 * The next change of the window, in order of position; false at its end.  The
 * change is valid until the next call.  shape and table are left NULL:
 * shape_id names the shape (of T: the relation).  Holds no snapshot between
 * calls, so the transaction may be ended and begun anew between calls.
 */
extern bool psync_reader_next(PsyncReader *reader, PsyncChange *change,
							  uint32 *shape_id);

/* The window is done: A becomes B.  Or is to be read again from its start. */
extern void psync_reader_done(PsyncReader *reader);
extern void psync_reader_rewind(PsyncReader *reader);

extern const PsyncSnapshot *psync_reader_after(PsyncReader *reader);	/* A */
extern const PsyncSnapshot *psync_reader_upto(PsyncReader *reader); /* B */

/* Where reading would go on: to be stored; and for this reader, which knows more. */
extern void psync_reader_hint(PsyncReader *reader, PsyncReadHint *hint);
extern const PsyncReadHint *psync_reader_tail(PsyncReader *reader);

/* ----------------------------------------------------------- durable.c */

extern XLogRecPtr psync_log_flush_wal(void);

/*
 * What a window holds must not be handed out to anyone outside before this is
 * true (P3): synchronous standbys may lack it still.  Then the window stays
 * open, to be asked about again after psync_standby_next_look() milliseconds;
 * await does so, for sessions.
 */
extern bool psync_reader_durable(PsyncReader *reader);
extern void psync_reader_await_durable(PsyncReader *reader);
extern long psync_standby_next_look(long waited_ms);

/* ------------------------------------------------------------ change.c */

/* Decode the change at *offset of a chunk's data, advancing it. */
extern void psync_change_decode(const char *data, uint32 size, uint32 *offset,
								uint64 first_position, PsyncChange *change,
								uint32 *shape_id);

extern bool psync_change_begin(const char *data, uint32 size,
							   uint64 first_position, PsyncChange *change,
							   uint32 *shape_id);

/* ------------------------------------------------------------ sample.c */

/*
 * Hand out the changes that are committed and that "after" does not see, in no
 * order, from max_pages pages at most, spread over those from the hint on.
 * Returns how many pages there are for each that was read; 1: all were.  The
 * callback must not keep what it is given.
 */
typedef void (*PsyncSampleCallback) (void *arg, PsyncChange *change,
									 uint32 shape_id);

extern double psync_log_sample(const PsyncSnapshot *after,
							   const PsyncReadHint *hint, int max_pages,
							   PsyncSampleCallback callback, void *arg);

/* -------------------------------------------------------------- keep.c */

/*
 * For who chooses a position, or moves one back, which counts only once that is
 * committed.  Between the two calls no log table is emptied: the position is
 * chosen there.  From the second to the end of the transaction none that holds
 * anything of transactions from xmin on; 0: none at all.  The first waits for
 * a rotation that is under way.
 */
extern void psync_log_choose(void);
extern void psync_log_keep(uint64 xmin);

/* --------------------------------------------------------------- log.c */

/*
 * May this process report that the log is too large?  One does, and then none
 * of the database for ten minutes.
 */
extern bool psync_log_may_warn(void);

/* ------------------------------------------------------------ rotate.c */

extern Oid	psync_log_relid(int n); /* oid of log_n; error if missing */
extern int	psync_log_active(void); /* number of the active table, cached */
extern int64 psync_log_size(void);	/* bytes of all log tables */

/*
 * Where the log ends now; and how many bytes of it lie between two places, of
 * which the first may be where a reader stands: the block that it is at is as
 * good as read.
 */
extern void psync_log_measure(PsyncReadHint *end);
extern int64 psync_log_between(const PsyncReadHint *from, const PsyncReadHint *to);

/* GUCs */
extern int	psync_log_segment_size; /* MB */
extern int	psync_log_size_max; /* payment_sync.max_log_size, MB; 0: none */
extern int	psync_backlog_step; /* MB; 0: a backlog is one window */

/*
 * Switch the active table if it is large and another one is empty, and
 * truncate inactive ones that every sync is done with.  positions() lists the
 * syncs' snapshots A (PsyncSnapshot *); it is called once the locks are held
 * that keep new syncs out.  Cheap if there is nothing to do.  Runs in its
 * caller's transaction, which should end soon.  True if a later call may
 * find more to do although nothing was logged meanwhile.
 */
extern bool psync_log_rotate(List *(*positions) (void));

#endif							/* PSYNC_LOG_H */
