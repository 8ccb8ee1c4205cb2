/*
 * postgres_transport.h
 *		What the files of the postgres transport share.
 *
 * Words of this folder:
 *
 *	session		the connection to the target and all that is known of it; lives
 *				from open to close, and any error ends it, so that nothing
 *				learnt of the target outlives a failure
 *	facts		what the target's catalogs say of one of its tables
 *	map			how the columns of a shape fall on the columns of a table
 *	group		changes that are sent together: a small window whole, or some
 *				megabytes of a large one
 *	strategy	a way to apply a group; if constraints of the target forbid one,
 *				the next is tried (apply.c)
 */
#ifndef PSYNC_POSTGRES_TRANSPORT_H
#define PSYNC_POSTGRES_TRANSPORT_H

#include "lib/stringinfo.h"
#include "libpq-fe.h"

#include "compat.h"
#include "transport/conversion.h"
#include "transport/payment_sync_transport.h"

/* Handed over when the library is loaded. */
extern const PsyncServices *psync_pg_services;

/* A group of at most this size is applied change by change. */
#define PSYNC_PG_SMALL_CHANGES_MAX	1000
#define PSYNC_PG_SMALL_BYTES_MAX	(256 * 1024)

/*
 * A group is sent when it has grown to this.  Two groups may be in memory,
 * one growing while the other is applied, and the second once more in libpq's
 * buffer: this bounds the worker's memory (P7).
 */
#define PSYNC_PG_GROUP_BYTES_MAX	(4 * 1024 * 1024)
#define PSYNC_PG_GROUP_CHANGES_MAX	(64 * 1024)

/* ---------------------------------------------------------------- facts */

/*
 * As a condition on pg_trigger: the trigger may let a change of a row come to
 * nothing.  Bits of tgtype: for each row, before.
 */
#define PSYNC_PG_HOOK \
	"tgtype OPERATOR(pg_catalog.&) 3 OPERATOR(pg_catalog.=) 3" \
	" AND NOT tgisinternal AND tgenabled OPERATOR(pg_catalog.<>) 'D'"

/* A column of a target's table. */
typedef struct PsyncPgColumn
{
	char	   *name;
	Oid			type;			/* at the target */
	char	   *type_name;		/* without typmod, qualified if not built in */
	char	   *full_type;		/* with typmod */
	PsyncTypeFacts facts;		/* of the type */
	bool		generated;		/* the target computes it */
	bool		identity_always;	/* the target updates it to nothing but its
									 * default */
} PsyncPgColumn;

/*
 * A column of a unique index, with the operator by which the index tells that
 * two values are equal: that of a type from an extension is in no search_path
 * of ours.
 */
typedef struct PsyncPgIndexColumn
{
	char	   *name;
	char	   *equals;			/* "OPERATOR(schema.=)" */
	char	   *collation;		/* facts of it: "" if it tells all strings apart */
	char	   *constraint;		/* of the index; NULL: none */
} PsyncPgIndexColumn;

/* A foreign key that points to or from a table. */
typedef struct PsyncPgForeignKey
{
	Oid			referencing;
	Oid			referenced;
	char		on_delete;		/* as pg_constraint.confdeltype */
	bool		inside;			/* the referencing table is one of the sync's */
} PsyncPgForeignKey;

/*
 * A table at the target, as its catalogs described it in this session.  Shared by
 * all maps of the table and never changed after, except for "rank", which belongs
 * to whoever looks at a group.
 */
typedef struct PsyncPgTable
{
	const PsyncTable *table;	/* the core's */
	Oid			oid;			/* at the target */
	char		relkind;		/* 'r' or 'p' */
	bool		children;		/* 'r' that others may inherit from */
	char	   *name;			/* quoted and qualified */
	int			ncolumns;
	PsyncPgColumn *columns;
	List	   *unique_keys;	/* of List of PsyncPgIndexColumn *: each index
								 * that can tell rows apart */
	bool		unique_beyond;	/* has more than one unique index */
	bool		unique_deferrable;	/* one of them is checked late */
	bool		hooked;			/* has triggers or rules that may let a change
								 * of a row come to nothing */
	bool		deferrable;		/* has constraints that SET CONSTRAINTS affects */
	List	   *foreign_keys;	/* of PsyncPgForeignKey * */
	bool		referenced;		/* some foreign key points here */
	bool		actions;		/* … and deletes or changes rows there */
	bool		bound;			/* … or does not let rows here go, not even for a
								 * moment */
	bool		actions_outside;	/* … in a table that is not the sync's */
	bool		touched;		/* changed by the window at hand */
	int			rank;			/* in the group at hand: above all tables that
								 * it references */
} PsyncPgTable;

/* ----------------------------------------------------------------- maps */

/* Statements of a map; those of the first part are prepared. */
typedef enum PsyncPgStatement
{
	PSYNC_PG_UPSERT,			/* new image */
	PSYNC_PG_UPDATE,			/* new image; inserts if there is no such row */
	PSYNC_PG_DELETE,			/* key */
	PSYNC_PG_CLEAR,				/* new image, old key: remove the old row if a
								 * row with the new key is in the way */
	PSYNC_PG_MOVE,				/* new image, old key */
	PSYNC_PG_IDENTITY,			/* new image, old key: replace the row if an
								 * identity column changes */
	PSYNC_PG_CHECK_ROW,			/* new image: fail unless it has arrived */
	PSYNC_PG_CHECK_GONE			/* key: fail if its row is there */
#define PSYNC_PG_STATEMENTS	(PSYNC_PG_CHECK_GONE + 1)
} PsyncPgStatement;

/* A column that is sent: where it comes from, where it goes, and in what form. */
typedef struct PsyncPgMapColumn
{
	const PsyncColumn *source;	/* as in the shape that is sent */
	PsyncConversion conversion;
	bool		converted;		/* by us, value by value */
	const PsyncPgColumn *target;
	int			field;			/* index into the shape's columns */
	char	   *name;			/* at the target, quoted */
	bool		key;
	const char *equals;			/* if key: the operator to find it by */
	bool		as_text;		/* the image has the type's text form */
	Oid			param_type;
	const char *param_cast;		/* "::type" or "" */
	const char *temp_type;		/* of the column in temporary tables */
	const char *temp_cast;
} PsyncPgMapColumn;

/*
 * How rows of one shape fall on one table.  Made when the two first meet in a
 * session, and kept as long as it.
 *
 * Columns whose values must be converted are, when a change is taken into a
 * group: from there on the change has the shape that is sent, in which those
 * columns have the types that they become.
 *  values, lengths, formats and types are set by
 * psync_pg_put_image() and psync_pg_put_key() right before a statement is sent,
 * which copies them.
 */
typedef struct PsyncPgMap
{
	uint32		id;				/* in names of statements and tables */
	const PsyncShape *from;		/* of changes as they come */
	const PsyncShape *shape;	/* … and as they are sent; the same if no column
								 * is converted */
	PsyncPgTable *table;
	int			ncolumns;		/* that are sent; the image may have more */
	PsyncPgMapColumn *columns;
	int			nkeys;
	int		   *keys;			/* indexes into columns, in key order */
	bool		verbatim;		/* images can be sent as they stand */
	bool		direct;			/* … and into the table itself */
	bool		identity;		/* a column is GENERATED ALWAYS AS IDENTITY … */
	bool		identity_beside_key;	/* … and not of the key */
	bool		direct_failed;	/* rows were there already: use a detour */
	const char *arbiter;		/* constraint of the key's index; NULL: none */
	bool		key_ambiguous;	/* keys may be equal though their bytes are
								 * not (1.0 and 1.00) */
	uint32		prepared;		/* bit per statement */
	const char *sql[PSYNC_PG_STATEMENTS];	/* what cannot be prepared */
	bool		temp_created;
	bool		temp_used;		/* in this window */
	/* arguments of the statement being sent */
	const char **values;
	int		   *lengths;
	int		   *formats;
	Oid		   *types;
} PsyncPgMap;

/* A field of an image: size -1 means NULL, PSYNC_PG_ABSENT not in the part. */
typedef struct PsyncPgField
{
	const char *value;
	int32		size;
} PsyncPgField;

#define PSYNC_PG_ABSENT		(-2)

/* --------------------------------------------------------------- groups */

/* A change in a group; offsets are into the group's data. */
typedef struct PsyncPgEntry
{
	PsyncPgMap *map;			/* NULL for T */
	PsyncPgTable *table;
	uint32		image_at;
	uint32		image_size;
	uint32		part_at;
	uint32		part_size;
	char		op;				/* PsyncOperation */
	bool		key_changed;
} PsyncPgEntry;

/*
 * Changes in memory, in the order in which they happened.  Applied as a whole or,
 * after an error, tried again as a whole in another way; so nothing in it changes
 * between submission and the target's answer.
 */
typedef struct PsyncPgGroup
{
	StringInfoData data;		/* images and old parts, one behind the other */
	PsyncPgEntry *entries;
	int			nentries;
	int			entries_size;	/* allocated */
	List	   *maps;			/* of PsyncPgMap *, one per table */
	bool		has_truncate;
	bool		key_changed;	/* of any entry */
	bool		actions;		/* deletes rows that others hang on */
	bool		batch;			/* rows of a chunk */
} PsyncPgGroup;

/* ------------------------------------------------------------- failures */

/* An error of the target, copied from libpq; strings may be NULL. */
typedef struct PsyncPgError
{
	int			sqlstate;		/* encoded; 0: no error */
	char	   *message;
	char	   *detail;
	char	   *hint;
	char	   *schema;
	char	   *table;
	char	   *constraint;
} PsyncPgError;

/* What failed: an error, and the change that is to blame if that is known. */
typedef enum PsyncPgWhat
{
	PSYNC_PG_WHAT_GROUP,		/* some change of the group */
	PSYNC_PG_WHAT_ENTRY,		/* this one */
	PSYNC_PG_WHAT_POSITION,		/* recording the position */
	PSYNC_PG_WHAT_CONTROL		/* begin or commit */
} PsyncPgWhat;

typedef struct PsyncPgFailure
{
	PsyncPgWhat what;
	int			entry;			/* of the group, if "what" is ENTRY; else -1 */
	PsyncPgError error;
} PsyncPgFailure;

/* -------------------------------------------------------------- session */

typedef struct PsyncPgSetRun PsyncPgSetRun;

/*
 * One session with the target, from open to close.  After any error it is closed:
 * nothing here has to be put right, and the target's transaction goes with the
 * connection.
 *
 * At the target a window is a transaction, and a group of a large window is a
 * savepoint in it:
 *
 *	in_transaction	in_savepoint	applying	what is at the target
 *	no				no				no			nothing; the group grows here
 *	yes				yes				yes			a group is being applied
 *	yes				yes				no			all groups sent are applied
 */
typedef struct PsyncPgSession
{
	PsyncTarget *target;
	MemoryContext context;		/* of the session */
	MemoryContext scratch;		/* of one group's sending */
	MemoryContext converting;	/* of one change's conversion */
	PGconn	   *conn;
	bool		fd_acquired;
	PGresult   *result;			/* handed out last, while its command runs */
	PGresult   *answer;			/* of the last query that is done */
	int64		untaken;		/* bytes that came beyond those of results */
	int64		allocated;		/* by malloc, when that was last looked at */
	int64		foreign;		/* outside of memory contexts, when it began */
	TimestampTz used_at;		/* last time that it was known to be alive */
	bool		dismissed;		/* the target has said that it ends the session */
	bool		pooled;			/* the server's session is not ours alone */
	const char *begin;			/* the command that begins a transaction */
	char	   *local_settings; /* … and the one after it; NULL: none */
	bool		in_transaction; /* BEGIN was sent */
	bool		in_savepoint;	/* … and SAVEPOINT psync_group */

	/* position.c */
	char	   *position_table; /* quoted and qualified */
	char	   *position;		/* that the target has; NULL: no row */
	char	   *foreign_log;	/* whose row to take over; NULL: none */
	bool		position_prepared;
	bool		position_versioned; /* the table's key has a version */
	int64		position_version;	/* of the row */
	int			windows;		/* recorded under that version */

	/* maps: found by shape and table; the last one first */
	List	   *tables;			/* of PsyncPgTable * */
	bool		partitioned;	/* one of them is */
	List	   *touched;		/* those that the window at hand has changed and
								 * that are not hooked */
	List	   *maps;			/* of PsyncPgMap * */
	PsyncPgMap *last_map;
	uint32		maps_made;

	/* apply.c */
	PsyncPgGroup *growing;		/* changes are added to this one */
	PsyncPgGroup *spare;		/* while this one is empty, or applied */
	bool		applying;		/* spare is being applied */
	uint32		growing_max;	/* bytes */
	uint32		since_poke;
	PsyncPgSetRun *run;			/* how far the target is with it */

	/* read.c */
	bool		reading;		/* the result of a statement is not all taken */
	const char **row_values;	/* of the row handed out last */
	int			row_columns;	/* that each row must have */
	int64		row_bytes;		/* of the statement's rows so far */
	int			row_filled;		/* … and how many of them are never null */

	/* apply_batch.c */
	PsyncPgMap *chunk_map;		/* of the chunk that is being received */
	bool		chunk_keys;		/* it brings keys, not rows */
	bool		chunk_loads;	/* it goes into a temporary table … */
	bool		chunk_loaded;	/* … and some of it is there */
	bool		chunk_temp;		/* its temporary tables were there before it */
	bool		chunk_circular; /* it may be refused … */
	bool		chunk_refused;	/* … and is */
	List	   *whole_maps;		/* of tables that are loaded as a whole */
} PsyncPgSession;

/* connection.c */
extern void psync_pg_connect(PsyncPgSession *session);
extern void psync_pg_disconnect(PsyncPgSession *session);

/* answer.c */
#define PSYNC_PG_ANY_ROWS	(-1)

pg_noreturn extern void psync_pg_unexpected(PsyncPgSession *session,
											const char *detail);
extern void psync_pg_memory_begin(PsyncPgSession *session);
extern int	psync_pg_input_begin(PsyncPgSession *session);
extern void psync_pg_input_end(PsyncPgSession *session, int before);
extern void psync_pg_flush(PsyncPgSession *session);
extern PGresult *psync_pg_get_result(PsyncPgSession *session);
extern PGresult *psync_pg_take_result(PsyncPgSession *session);
extern bool psync_pg_is_alive(PsyncPgSession *session);
extern bool psync_pg_result_ready(PsyncPgSession *session);
extern PGresult *psync_pg_query(PsyncPgSession *session, const char *sql,
								int nparams, const char *const *params,
								int nrows, int ncolumns);
extern const char *psync_pg_text(PsyncPgSession *session, PGresult *result,
								 int row, int column);
extern const char *psync_pg_text_or_null(PsyncPgSession *session,
										 PGresult *result, int row, int column);
extern bool psync_pg_try(PsyncPgSession *session, const char *sql,
						 PsyncPgError *error);
extern void psync_pg_execute(PsyncPgSession *session, const char *sql);

/* settings.c */
extern void psync_pg_settings_apply(PsyncPgSession *session);
extern void psync_pg_settings_add(PsyncPgSession *session, const char *name,
								  const char *value);
extern char *psync_pg_begin_commands(PsyncPgSession *session);

/* error.c */
pg_noreturn extern void psync_pg_lost(PsyncPgSession *session);
extern char *psync_pg_clean_text(const char *text);
extern void psync_pg_error_take(PsyncPgError *error, PGresult *result);
pg_noreturn extern void psync_pg_error_raise(PsyncPgSession *session,
								 const PsyncPgError *error,
								 const char *what);
pg_noreturn extern void psync_pg_failure_raise(PsyncPgSession *session,
								   const PsyncPgGroup *group,
								   const PsyncPgFailure *failure);
extern void psync_pg_error_of_check(PsyncPgError *error, const PsyncPgMap *map,
									bool identity);
extern bool psync_pg_error_is_constraint(const PsyncPgError *error);
extern bool psync_pg_error_is_change(const PsyncPgError *error);

/* position.c */
extern char *psync_pg_position_read(PsyncPgSession *session);
extern bool psync_pg_position_prepare(PsyncPgSession *session);
extern void psync_pg_position_ready(PsyncPgSession *session);
extern void psync_pg_position_send(PsyncPgSession *session, const char *position);
extern void psync_pg_position_recorded(PsyncPgSession *session,
									   const char *position);
pg_noreturn extern void psync_pg_position_refused(PsyncPgSession *session,
									  const PsyncPgError *error);
extern char *psync_pg_position_query(PsyncPgSession *session);

/* read.c */
extern const PsyncReadTransport psync_pg_reading;

/* check.c */
extern void psync_pg_check(PsyncTarget *target,
						   void (*open) (PsyncTarget *target),
						   PsyncCheckReport report, void *arg);

/* target_table.c */
extern PsyncPgTable *psync_pg_table_get(PsyncPgSession *session,
										const PsyncTable *table);
extern PsyncPgColumn *psync_pg_table_column(const PsyncPgTable *table,
											const char *name);
extern void psync_pg_name_arrays(const List *tables, const char *params[2]);
extern void psync_pg_rank_tables(const PsyncPgGroup *group);

/* column_map.c */
extern PsyncPgMap *psync_pg_map_get(PsyncPgSession *session,
									const PsyncShape *shape,
									const PsyncTable *table);

/* statement.c */
extern char *psync_pg_statement(const PsyncPgMap *map, PsyncPgStatement statement);

/* set_statement.c */
extern char *psync_pg_sql_create_temp_rows(const PsyncPgMap *map, bool drop);
extern char *psync_pg_sql_create_temp_keys(const PsyncPgMap *map, bool drop);
extern char *psync_pg_sql_truncate_temp(const PsyncPgMap *map);
extern char *psync_pg_sql_copy_direct(const PsyncPgMap *map);
extern char *psync_pg_sql_copy_rows(const PsyncPgMap *map);
extern char *psync_pg_sql_copy_keys(const PsyncPgMap *map);
extern char *psync_pg_sql_update(const PsyncPgMap *map);
extern char *psync_pg_sql_upsert(const PsyncPgMap *map, bool if_different);
extern char *psync_pg_sql_identity(const PsyncPgMap *map);
extern char *psync_pg_sql_check_rows(const PsyncPgMap *map);
extern char *psync_pg_sql_check_gone(const PsyncPgMap *map);
extern char *psync_pg_sql_insert_missing(const PsyncPgMap *map);
extern char *psync_pg_sql_delete(const PsyncPgMap *map);
extern char *psync_pg_sql_delete_others(const PsyncPgMap *map);
extern char *psync_pg_sql_replace(const List *maps);
extern char *psync_pg_sql_analyze_keys(const PsyncPgMap *map);
extern char *psync_pg_sql_delete_unsent(const PsyncPgMap *map, bool check);
extern char *psync_pg_sql_upsert_together(const List *maps);

/* image.c */
extern void psync_pg_image_fields(const PsyncShape *shape, const char *image,
								  uint32 size, PsyncPgField *fields);
extern void psync_pg_part_fields(const PsyncShape *shape, const char *part,
								 uint32 size, PsyncPgField *fields);
extern void psync_pg_append_key(StringInfo buf, const PsyncShape *shape,
								const char *data, uint32 size, bool sparse);
extern int	psync_pg_put_image(PsyncPgMap *map, const PsyncPgField *fields);
extern int	psync_pg_put_key(PsyncPgMap *map, int at, const PsyncPgField *fields);
extern void psync_pg_copy_row(StringInfo buf, PsyncPgMap *map,
							  const PsyncPgField *fields);
extern void psync_pg_copy_key(StringInfo buf, PsyncPgMap *map,
							  const PsyncPgField *fields);

/* convert.c */
extern const PsyncShape *psync_pg_converted_shape(const PsyncPgMap *map);
extern void psync_pg_convert_change(PsyncPgSession *session, const PsyncPgMap *map,
									PsyncChange *change);

/* group.c */
extern PsyncPgGroup *psync_pg_group_create(MemoryContext context);
extern void psync_pg_group_reset(PsyncPgGroup *group);
extern void psync_pg_group_release(PsyncPgGroup *group);
extern void psync_pg_group_add(PsyncPgGroup *group, const PsyncChange *change,
							   PsyncPgMap *map, PsyncPgTable *table);
extern void psync_pg_group_add_map(PsyncPgGroup *group, PsyncPgMap *map);
extern bool psync_pg_group_takes(const PsyncPgGroup *group, const PsyncPgMap *map);
extern bool psync_pg_group_is_small(const PsyncPgGroup *group);
extern void psync_pg_group_merge(PsyncPgGroup *group, const PsyncPgGroup *later);
extern void psync_pg_entry_fields(const PsyncPgGroup *group,
								  const PsyncPgEntry *entry,
								  PsyncPgField *image, PsyncPgField *part);

/* collapse.c */

/*
 * What a group comes to for one table: entries whose rows are new, entries
 * whose rows the target has already, and entries whose (old) keys are to go.
 */
typedef struct PsyncPgNet
{
	PsyncPgMap *map;
	int			ninserts;
	int			nupdates;
	int			ndeletes;
	int		   *inserts;
	int		   *updates;
	int		   *deletes;
} PsyncPgNet;

extern PsyncPgNet *psync_pg_collapse(const PsyncPgGroup *group, int *nnets);

/* apply_pipeline.c */
#define PSYNC_PG_BEGIN		0x01
#define PSYNC_PG_COMMIT		0x02
#define PSYNC_PG_DURABLE	0x04	/* the commit waits for the disk */

extern bool psync_pg_pipeline_run(PsyncPgSession *session,
								  const PsyncPgGroup *group, const int *order,
								  int flags, const char *position,
								  PsyncPgFailure *failure);

/* apply_set.c */
typedef enum PsyncPgSetMode
{
	PSYNC_PG_SET_FAST,			/* new rows straight into the table */
	PSYNC_PG_SET_UPSERT,		/* all rows by way of a temporary table */
	PSYNC_PG_SET_REPLACE,		/* rows leave before they come back */
	PSYNC_PG_SET_LOAD			/* only load the rows, or keys, of all entries */
} PsyncPgSetMode;

extern void psync_pg_set_start(PsyncPgSession *session, PsyncPgGroup *group,
							   PsyncPgSetMode mode);
extern void psync_pg_set_poke(PsyncPgSession *session);
extern bool psync_pg_set_finish(PsyncPgSession *session, PsyncPgFailure *failure);

/* apply_batch.c */
extern void psync_pg_chunk_begin(PsyncPgSession *session, const PsyncChunk *chunk);
extern void psync_pg_chunk_row(PsyncPgSession *session, const char *image,
							   uint32 size);
extern bool psync_pg_chunk_end(PsyncPgSession *session, const PsyncChunk *chunk);

/* apply.c */
#define PSYNC_PG_SAVEPOINT	"psync_group"
#define PSYNC_PG_CHUNK_SAVEPOINT	"psync_chunk"

extern void psync_pg_apply_init(PsyncPgSession *session);
extern void psync_pg_apply_change(PsyncPgSession *session,
								  const PsyncChange *change);
extern void psync_pg_apply_touch(PsyncPgSession *session, PsyncPgTable *table);
extern void psync_pg_apply_submit(PsyncPgSession *session);
extern void psync_pg_apply_wait(PsyncPgSession *session);
extern void psync_pg_apply_protect(PsyncPgSession *session);
extern void psync_pg_apply_commit(PsyncPgSession *session, const char *position);
extern void psync_pg_apply_flush(PsyncPgSession *session);

#endif							/* PSYNC_POSTGRES_TRANSPORT_H */
