/*
 * reconcile.h
 *		What the files of this folder share.
 *
 * Words of this folder, beyond the design's:
 *
 *	side		one of the two relations that are compared: 0 the source, 1 the
 *				target or, for reconcile_with(), another relation here
 *	run			one call of reconcile(); has a row per table
 *	cell		a set of rows that both sides can name: a range of keys, or the
 *				keys whose hash begins with certain bits
 *	checksum	number of rows of a cell and a digest of them
 *	suspect		a key on which the two sides were seen to differ
 *	verdict		that they do differ, whatever is still on its way
 *
 * States of a cell, and who moves it:
 *
 *		unknown		-> equal		differing_cells, equal checksums
 *		unknown		-> split		split_range: it has many rows
 *		unknown		-> singled out	examine_singled_out: it has few, and its
 *									keys whose rows' digests differ are read
 *		unknown		-> read			psync_examine_cells, where that is not possible
 *
 * and of a key that was read:
 *
 *		read		-> matched		equal, by psync_row_compare
 *		read		-> verdict		psync_examine: differs, and no change in the
 *									log between the target's position and the
 *									source's snapshot is about this key
 *		read		-> suspect		psync_examine: there is such a change
 *		suspect		-> any of these	psync_settle: read again, later
 *		suspect		-> in flight	psync_settle: max_wait is over
 *
 * Memory.  Cells of a step, their rows and keys live in "work", which is reset
 * after each step; only boundaries of cells, of which there are at most
 * PSYNC_CELLS_MAX, live as long as the run.  Suspects wait in a table.
 */
#ifndef PSYNC_RECONCILE_H
#define PSYNC_RECONCILE_H

#include "fmgr.h"
#include "utils/tuplestore.h"

#include "sync/sync.h"
#include "transport/conversion.h"
#include "transport/payment_sync_transport.h"

/* Rows that a cell should have, and how many cells a table has at most. */
#define PSYNC_CELL_ROWS			8192
#define PSYNC_CELLS_MAX			4096
/* Cells whose checksums are asked for in one statement. */
#define PSYNC_STEP_CELLS		16
#define PSYNC_FIRST_CELLS		2
/* A cell of so few rows is read rather than split. */
#define PSYNC_LEAF_ROWS			24
/* Rows, or keys, that are read in one go; fewer of wide rows. */
#define PSYNC_READ_ROWS			8192
#define PSYNC_READ_KEYS			1000
#define PSYNC_READ_BYTES		(64 * 1024 * 1024)
/* Larger values than that are told apart by a hash. */
#define PSYNC_VALUE_BYTES		(16 * 1024 * 1024)
/* How such a value is read: this mark, "length:hash:beginning". */
#define PSYNC_SHORT_MARK		"\\x01payment_sync:"
/* Cells that splitting makes at a time, at least and at most. */
#define PSYNC_SPLIT_MIN			32
#define PSYNC_SPLIT_MAX			2048
/* Hashed cells: how many bits of the hash tell them apart at first. */
#define PSYNC_HASH_BITS			12

/* Lengths of less than 2^31 that a seed of 64 bits has room for. */
#define PSYNC_SEED_LENGTHS		2

#define PSYNC_SOURCE			0
#define PSYNC_OTHER				1

/* A column as one side has it. */
typedef struct PsyncSideColumn
{
	char	   *name;			/* quoted */
	char	   *type;			/* as format_type gives it, no typmod */
	Oid			base;			/* type, or what a domain is over */
	int32		typmod;
	PsyncTypeFacts facts;
	char	   *value;			/* what is compared: an expression over alias t */
	Oid			as;				/* … of this type */
	int32		as_typmod;
	bool		bytewise;		/* no collation, or one that sorts bytes */
	bool		not_null;
	bool		generated;		/* computed there */
	char	   *canonical;		/* expression for checksums, over alias t */
	char	   *hashed;			/* … as an argument of concat_ws() */
	char	   *length;			/* of that in bytes, or NULL: not needed */
	char	   *text;			/* expression for reading */
} PsyncSideColumn;

/* Where the length of a string goes, without which none could be told apart. */
typedef enum PsyncLengthPlace
{
	PSYNC_LENGTH_BEFORE,		/* before it, into the text that is hashed */
	PSYNC_LENGTH_SEED,			/* into the seed, of which there is room for two */
	PSYNC_LENGTH_NOWHERE		/* the string stands last */
} PsyncLengthPlace;

typedef struct PsyncPair
{
	char	   *name;			/* at the source */
	char	   *other_name;
	bool		key;
	PsyncSideColumn side[2];
	bool		by_text;		/* in the key: found by its text; the types
								 * differ, or "=" is an extension's */
	Oid			decide_type;	/* its "=" decides if the texts differ; or
								 * InvalidOid: the texts do */
	PsyncLengthPlace length_place;	/* if sides have a length */
	const char *tolerance;		/* largest difference that is none, or NULL */
} PsyncPair;

typedef struct PsyncSide
{
	bool		remote;			/* else a relation of this database */
	const PsyncTransport *transport;	/* if remote */
	PsyncTarget *target;		/* if remote; NULL: not open */
	Oid			userid;			/* if local: whose rights it is read with */
	char	   *schema;
	char	   *relname;
	char	   *from;			/* quoted, with ONLY if it is a plain table */
	char		relkind;
	char	   *encoding;
	int			version;		/* of the server, as server_version_num */
	double		rows;			/* by the catalog's estimate */
	double		pages;
	double		bytes;			/* with what is stored out of line */
	bool		ordered;		/* has an index in the key's order */
	const char *sql;			/* if local: sent, not yet collected */
	int			ncolumns;		/* of what was sent */
} PsyncSide;

/* Rows of a result, as text. */
typedef struct PsyncRows
{
	int			nrows;
	int			ncolumns;
	char	  **values;			/* NULL: null; row by row */
} PsyncRows;

typedef struct PsyncCell
{
	char	  **after;			/* exclusive bound, per key column; NULL: open */
	char	  **upto;			/* inclusive bound */
	char	 ***inner;			/* bounds at which to split it, if there are */
	int			ninner;
	int64		prefix;			/* if hashed: first bits of the keys' hash */
	int64		rows;			/* of the side that has more */
	bool		more_at_other;	/* that is the other side */
} PsyncCell;

/* What is asked for; a row of payment_sync.reconciliation. */
typedef struct PsyncRun
{
	int64		run;
	Oid			relid;
	bool		has_sync;
	pg_uuid_t	sync;
	Oid			owner;			/* of the sync; who asked, for reconcile_with */
	Oid			other;			/* reconcile_with's, or InvalidOid */
	char	   *server;			/* to read through; NULL: the sync's own */
	List	   *key;			/* of char *; given to reconcile_with */
	List	   *columns;
	List	   *other_columns;
	char	   *where;
	char	  **after;			/* part of the table, as of a cell */
	char	  **upto;
	int			nafter;
	int			nupto;
	bool		recent;			/* only keys that the log still holds */
	bool		crypto;			/* sha256 */
	char	   *tolerance;		/* jsonb as text, or NULL */
	int64		rows_per_second;	/* 0: no limit */
	int64		max_wait;		/* ms, for suspects */
	int64		seeds[2];
	char	   *state;
	char	  **cursor;			/* keys up to here are done */
	int			ncursor;
	bool		compared;		/* all steps are done, suspects may be left */
	bool		started;
} PsyncRun;

typedef struct PsyncCounts
{
	int64		source_rows;
	int64		target_rows;
	int64		missing;
	int64		unexpected;
	int64		different;
	int64		in_flight;
	int64		rows_moved;		/* taken from the other side, checksums included */
} PsyncCounts;

/* Ends the transaction and begins the next; NULL: it cannot be ended. */
typedef void (*PsyncReconcileNext) (void);

typedef struct PsyncReconcile
{
	MemoryContext context;		/* of this table's run */
	MemoryContext work;			/* of a step */
	PsyncReconcileNext next;
	PsyncRun   *run;
	PsyncSync  *sync;			/* NULL: reconcile_with */
	PsyncSide	side[2];
	int			npairs;			/* compared */
	int			nshown;			/* and, behind those, only read and recorded */
	PsyncPair  *pairs;
	int			nkeys;
	int		   *keys;			/* indexes into pairs, in key order */
	AttrNumber *key_attnums;	/* at the source */
	bool		integer_key;	/* a single integer, on both sides */
	int			read_rows;		/* at a time at most, by how wide they are */
	bool		deciding;		/* reconcile_with: the wait is over */
	bool		hashed;			/* cells are hashes, not ranges */
	int			hash_bits;		/* if hashed: of the cells at hand */
	bool		escape;			/* encodings differ: compare UTF-8, escaped */
	char	   *position_query; /* at the target */
	const char *position;		/* last one read; what the run speaks for */
	bool		lags;			/* the server that is read, as last seen */
	bool		has_lagged;		/* at any time of this process's part */
	/* ranges */
	int			nbounds;
	char	 ***bounds;			/* last keys of all cells but the last */
	int			next_bound;
	char	  **after;			/* where the next step begins */
	double		density;		/* differences per cell of PSYNC_CELL_ROWS, of late */
	int64		found;			/* differences and suspects so far */
	PsyncCounts counts;
	int64		rows_read[2];	/* by the last examination */
	int64		rows_before;	/* compared before this process began */
	TimestampTz started;		/* when it did */
} PsyncReconcile;

/* side.c */
extern void psync_side_init(void);
extern void psync_side_ask_position(PsyncReconcile *rec);
extern void psync_side_send(PsyncSide *side, const char *sql,
							int ncolumns, int nfilled);
extern PsyncRows *psync_side_collect(PsyncSide *side);
extern PsyncRows *psync_side_collect_here(PsyncSide *side);
extern PsyncRows *psync_side_query(PsyncSide *side, const char *sql,
								   int ncolumns, int nfilled);
extern void psync_side_open(PsyncReconcile *rec, const char *server);
extern void psync_side_close(PsyncSide *side);
#define psync_rows_get(rows, row, column) \
	((rows)->values[(row) * (rows)->ncolumns + (column)])

/* form.c */
extern void psync_pair_compare_as(PsyncPair *pair, bool sync, bool lossy);

/* table.c */
extern void psync_table_describe(PsyncReconcile *rec);

/* query.c */
extern char *psync_query_checksum(const PsyncReconcile *rec, int side,
								  List *cells);
extern char *psync_query_split(const PsyncReconcile *rec, int side,
							   const PsyncCell *cell, int64 width);
extern char *psync_query_sample(const PsyncReconcile *rec, double percent,
								int64 stride);
extern char *psync_query_row_digests(const PsyncReconcile *rec, int side,
									 List *cells);
extern char *psync_query_rows(const PsyncReconcile *rec, int side, List *cells);
extern char *psync_query_keys(const PsyncReconcile *rec, int side,
							  char ***keys, int nkeys);
extern void psync_append_array(StringInfo buf, char **values, int n, int stride);

/* checksum.c */
extern void psync_cells_begin(PsyncReconcile *rec);
extern bool psync_cells_step(PsyncReconcile *rec);

/* compare.c */
typedef struct PsyncDifference
{
	char	   *name;			/* of the key, for comparing keys */
	char	  **key;			/* per key column */
	char	  **source;			/* per pair; NULL: no such row */
	char	  **target;
	bool	   *differs;		/* per pair; NULL unless both are there */
	bool		touched;		/* a change on its way is about this key */
} PsyncDifference;

extern char *psync_key_significant(const PsyncPair *pair, const char *value);
extern bool psync_is_number(const char *value);
extern char *psync_key_name(const PsyncReconcile *rec, char **key);
extern PsyncDifference *psync_rows_compare(PsyncReconcile *rec,
										   const PsyncRows *source,
										   const PsyncRows *other, int *n);
extern char ***psync_rows_single_out(const PsyncReconcile *rec,
									 const PsyncRows *source,
									 const PsyncRows *other, int *n);
extern const char *psync_rows_position(const PsyncRows *rows);

/* recheck.c */

/* Both sides' rows, and the log between them. */
typedef struct PsyncBothRows
{
	PsyncRows  *rows[2];
	const char *position;		/* P; NULL: the sync has none */
	bool		undecidable;	/* rows may come without a change */
	PsyncReader *reader;		/* open from P to B */
} PsyncBothRows;

extern void psync_read_begin(PsyncReconcile *rec, const char *source,
							 const char *other, int ncolumns,
							 PsyncBothRows *both);
extern void psync_read_end(PsyncReconcile *rec, PsyncBothRows *both);
extern int64 psync_read_count_changes(PsyncReconcile *rec, PsyncBothRows *both);
extern void psync_pause_ms(long ms);
extern void psync_examine_cells(PsyncReconcile *rec, List *cells);
extern void psync_examine_keys(PsyncReconcile *rec, char ***keys, int nkeys);
extern void psync_settle(PsyncReconcile *rec);
extern void psync_suspect_recent(PsyncReconcile *rec);

/* record.c */
extern Datum psync_row_json(const PsyncReconcile *rec, int side, char **values);
extern Datum psync_key_json(const PsyncReconcile *rec, char **key);

/* store.c */
extern PsyncRun *psync_run_load(int64 number, Oid relid, PsyncCounts *counts);
extern void psync_run_begin(PsyncReconcile *rec);
extern bool psync_run_save(PsyncReconcile *rec, char **cursor, bool compared);
extern void psync_run_finish(PsyncReconcile *rec);
extern void psync_run_failed(int64 run, const char *message);
extern int64 psync_run_request_due(const char *due_command);
extern void psync_store_differences(PsyncReconcile *rec,
									PsyncDifference *differences, int n);
extern void psync_store_suspects(PsyncReconcile *rec,
								 PsyncDifference *differences, int n);
extern int64 psync_store_last_suspect(PsyncReconcile *rec);
extern char ***psync_store_take_suspects(PsyncReconcile *rec, int64 upto, int *n);
extern int64 psync_store_count_suspects(PsyncReconcile *rec);

/* progress.c */
extern void psync_progress_begin(const PsyncReconcile *rec);
extern void psync_progress_update(const PsyncReconcile *rec, bool settling);
extern void psync_progress_end(void);

/* repair_source.c */
extern void psync_repair_source(const PsyncSync *sync, const PsyncTable *table,
								int64 run, bool dry_run,
								Tuplestorestate *store, TupleDesc desc);

/* reconcile.c */

/* A reconciliation that only looks, for others of this folder. */
extern PsyncReconcile *psync_look_open(PsyncSync *sync, Oid relid, PsyncRun *run);
extern void psync_look_close(PsyncReconcile *rec);
extern bool psync_run_is_free(int64 run);
extern void psync_reconcile_run(int64 number, PsyncReconcileNext next, bool wait);
extern void psync_reconcile_pause(PsyncReconcile *rec);


/* condition.c */
extern void psync_check_condition(const char *condition);
extern void psync_check_rate(int rows_per_second);
extern int64 psync_check_wait(const Interval *interval);

/* request.c */
extern PsyncSync *psync_reconcile_sync(const char *name);
extern void psync_check_reconcile_transaction(const char *function);
extern int64 psync_run_argument(FunctionCallInfo fcinfo);
extern int64 psync_interval_ms(const Interval *interval);

#endif							/* PSYNC_RECONCILE_H */
