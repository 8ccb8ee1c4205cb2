/*
 * payment_sync_transport.h
 *		The contract between the core of payment_sync and a transport.
 *
 * A transport is a shared library that talks one protocol to a target.  It is
 * loaded only in the process that delivers, so that neither the core nor a
 * writer ever maps a network library.  A foreign-data wrapper names its
 * library with the option "library"; a third party may add one from an
 * extension of its own.  Whether its targets take windows or messages, below,
 * is what its table says; with the wrapper's option takes 'windows' or takes
 * 'messages', sessions that define syncs need not load it to know.
 *
 * The library exports one function, payment_sync_transport_init(), which gets
 * the core's services and returns a constant table of callbacks.  Libraries
 * never link to each other: whatever a transport needs from the core comes
 * through PsyncServices.
 *
 * Life of a target:
 *
 *		open -> read_position -> { begin_window -> change* / rows* ->
 *		commit_window | abort_window }* -> close
 *
 * Every callback is called in the delivering process only, never inside a
 * critical section, and always inside a local transaction that holds no
 * snapshot; a wait may end it and begin another.  Callbacks may raise errors with ereport(ERROR); the core then
 * calls abort_window (if a window was begun) or close, and retries later with
 * back-off.  They may wait, but only through services->wait(), which handles
 * interrupts.  The current memory context during a callback is short-lived
 * (reset after the window); what must last goes into target->context.
 */
#ifndef PAYMENT_SYNC_TRANSPORT_H
#define PAYMENT_SYNC_TRANSPORT_H

#include "access/attnum.h"
#include "nodes/pg_list.h"
#include "utils/timestamp.h"

/*
 * Changed whenever a struct in this file changes, so that a stale library is
 * refused instead of crashing: "PS", then a counter.
 */
#define PSYNC_TRANSPORT_MAGIC	0x5053000E

#define PSYNC_TRANSPORT_INIT	"payment_sync_transport_init"

/* ---------------------------------------------------------------- data */

/*
 * One column of a shape.  "textual" columns carry the type's text output
 * instead of its binary form, because the binary form is missing or holds
 * object ids that mean nothing on another server.
 */
typedef struct PsyncColumn
{
	AttrNumber	attnum;			/* in the captured table (its root, if
								 * partitioned) */
	bool		key;			/* part of the key */
	bool		textual;
	Oid			type;
	int32		typmod;
	const char *name;			/* name when the shape was recorded */
	const char *current_name;	/* name now, or NULL if dropped since */
	const char *type_name;		/* schema-qualified where not built in, with
								 * typmod, as format_type gives it; NULL if
								 * the type is gone */
	Oid			relid;			/* the captured table */
	bool		name_reused;	/* another column of the table bears "name"
								 * now */
} PsyncColumn;

/*
 * A version of a captured table's column list.  Row images name their shape.
 * Lives as long as the delivery; transports may hang plans on it by id.
 */
typedef struct PsyncShape
{
	uint32		id;
	Oid			relid;
	int			ncolumns;
	PsyncColumn *columns;		/* in the order of the image's fields */
	int			nkeys;
	int		   *keys;			/* indexes into columns, in key order */
	bool		fixed;			/* reserved for the core */
} PsyncShape;

/* A captured table as one sync sees it. */
typedef struct PsyncTable
{
	Oid			relid;
	const char *source_schema;	/* current names at the source */
	const char *source_name;
	const char *target_schema;	/* names at the target */
	const char *target_name;
} PsyncTable;

typedef enum PsyncOperation
{
	PSYNC_INSERT = 'I',
	PSYNC_UPDATE = 'U',
	PSYNC_DELETE = 'D',
	PSYNC_TRUNCATE = 'T',
	PSYNC_READ = 'R'			/* a row of a batch */
} PsyncOperation;

/*
 * One change.  new_image is a COPY BINARY tuple of the shape's columns: int16
 * count, then per column int32 length (-1: NULL) and bytes, all big-endian.
 * old_part is sparse: int16 count, then per entry int16 index into the
 * shape's columns, int32 length, bytes; indexes ascend.  It holds the key
 * columns for D, and for U if key_changed (else the key is in the new image);
 * the rest depends on the table's old_values.  Neither is aligned.
 */
typedef struct PsyncChange
{
	PsyncOperation op;
	bool		key_changed;	/* U only: old_part's key differs from the new */
	uint64		position;		/* commit-independent order, see log/log.h */
	uint64		xid;			/* top-level transaction, epoch included */
	TimestampTz at;				/* when the change was flushed to the log */
	const char *origin;			/* NULL: changed locally */
	const PsyncShape *shape;	/* NULL for T */
	const PsyncTable *table;
	const char *new_image;
	uint32		new_size;		/* bytes; 0 if none */
	const char *old_part;
	uint32		old_size;		/* bytes; 0 if none */
} PsyncChange;

/*
 * Rows of one chunk of a batch: some rows of one table as of the window's end,
 * as images of the same shape.  Or, before the first of those in a mirror, the
 * keys of all rows that the table has then, as sparse parts like old_part: the
 * target must lose its rows whose keys are not among them.  Neither comes in an
 * order that would mean anything to the target.
 *
 * Rows of a circular table may refer to rows of a later chunk, of this table or
 * of another one: then the target may refuse such a chunk.  It is followed by
 * whole tables, all those of the circle in one window, whose rows are to be
 * applied at once when the last of them has come.
 */
typedef struct PsyncChunk
{
	const PsyncTable *table;
	const PsyncShape *shape;
	bool		keys;			/* of all rows, not rows */
	bool		first;			/* first chunk of the table's batch */
	bool		circular;		/* end_chunk() may refuse it */
	bool		whole;			/* all rows of the table … */
	bool		last;			/* … and of its circle, with this one */
} PsyncChunk;

/* What the core knows of the window before it sends it. */
typedef struct PsyncWindowInfo
{
	uint64		changes;		/* an upper bound of the changes to come */
	uint64		bytes;			/* of their log chunks */
	bool		batch;			/* chunk rows will follow the changes */
} PsyncWindowInfo;

/* -------------------------------------------------------------- options */

typedef enum PsyncOptionType
{
	PSYNC_OPT_STRING,
	PSYNC_OPT_INT,				/* range min..max */
	PSYNC_OPT_BOOL,
	PSYNC_OPT_ENUM				/* one of "values" */
} PsyncOptionType;

#define PSYNC_ON_SERVER		0x01
#define PSYNC_ON_USER		0x02
#define PSYNC_ON_WRAPPER	0x04
#define PSYNC_BY_SUPERUSER	0x08	/* only a superuser may set it */

/*
 * One option that a server or user mapping may bear.  Plain data, so that
 * validators, docs and tests read it; array ends with a NULL keyword.
 */
typedef struct PsyncOption
{
	const char *keyword;
	int			where;			/* PSYNC_ON_… */
	PsyncOptionType type;
	bool		secret;			/* never shown (P9) */
	int64		min;
	int64		max;
	const char *values;			/* PSYNC_OPT_ENUM: "a|b|c" */
	const char *meaning;		/* for the reference; with unit and default */
} PsyncOption;

/* ------------------------------------------------------------- services */

/* A target as the core hands it to the transport. */
typedef struct PsyncTarget
{
	const char *sync_name;
	const char *sync_id;		/* uuid as text: key of the position row */
	const char *log_id;			/* identity of this change log, as text */
	const char *server_name;
	List	   *server_options; /* of DefElem; values are strings */
	List	   *user_options;
	bool		owner_is_superuser; /* else only the mapping's own credentials
									 * may be used, never the server's */
	bool		restart;		/* the sync was told to start anew: a position
								 * recorded before, for this sync or by another
								 * change log, is to be replaced, not refused */
	List	   *tables;			/* of PsyncTable *, the sync's tables */
	MemoryContext context;		/* lives until close */
	void	   *private_data;	/* the transport's own */
	void	   *core_data;		/* the core's own */
	bool		read_only;		/* opened to be read, for reconciliation: nothing
								 * may be written there, not even the transport's
								 * own tables, and no position is recorded */
} PsyncTarget;

struct PsyncOutcome;
struct PsyncConversions;

/*
 * What the core offers.  All of it may raise errors, except settle().
 */
typedef struct PsyncServices
{
	uint32		magic;

	/*
	 * Wait for a socket (WL_SOCKET_READABLE and/or WL_SOCKET_WRITEABLE; fd
	 * PGINVALID_SOCKET for none), the latch or a timeout in ms (-1: none).
	 * Processes interrupts, so a cancel or shutdown raises an error from
	 * here.  Returns the WL_ events that occurred.
	 */
	int			(*wait) (pgsocket fd, int events, long timeout_ms);

	/*
	 * The same value as its type's text output (allocated in the current
	 * memory context); NULL for a NULL value.  "value" points to the
	 * bytes of a field of an image, "size" is its length or -1.
	 */
	char	   *(*value_to_text) (const PsyncColumn *column, const char *value,
								  int32 size);

	/*
	 * The key of a change as "(a, b)=(1, x)", for messages.  Values of
	 * columns that are not part of the key never appear (P9).
	 */
	char	   *(*describe_key) (const PsyncChange *change);

	/* Value of an option, or NULL; and with a default. */
	const char *(*option) (const PsyncTarget *target, const char *keyword);

	/* How values of one type become values of another; see conversion.h. */
	const struct PsyncConversions *conversions;

	/*
	 * An attempt has ended.  Called by a message transport from within poll(),
	 * exactly once per handle that submit() took, unless close comes first.
	 * Does not raise and does not wait: the core takes note and acts later.
	 */
	void		(*settle) (PsyncTarget *target, uint64 handle,
						   const struct PsyncOutcome *outcome);
} PsyncServices;

/* ------------------------------------------------------------- messages */

/*
 * Some targets take no windows but messages: an HTTP endpoint, a broker.  A
 * transport for such a target sets "messages" in its table and leaves out the
 * callbacks for windows.  The core then does all that is the same for every
 * protocol: it makes events of changes and bodies of events, keeps the order
 * per key, limits what is in flight, retries, keeps dead letters, and records
 * what has been acknowledged.  The transport does what is the protocol's: it
 * turns a message into a request, and an answer into an outcome.
 *
 *		open -> { submit* -> poll }* -> close
 */

/* One attribute of an event that travels beside the body (CloudEvents' binary
 * mode, a broker's headers): name without any protocol's prefix. */
typedef struct PsyncAttribute
{
	const char *name;
	const char *value;			/* UTF-8, not yet encoded for any protocol */
} PsyncAttribute;

/*
 * One attempt to send one body.  All of it stays as it is, at the same
 * address, until the attempt is settled; a later attempt of the same message
 * has the same bytes (it is frozen), but another handle.
 */
typedef struct PsyncMessage
{
	uint64		handle;			/* names the attempt to services->settle() */
	int			attempt;		/* 1, 2, … */
	const char *id;				/* P6: of the event, or made of the ids of all
								 * events in the body; no dot, no space */
	int			nevents;		/* in the body */

	/* of the first event, for addresses and routing */
	const char *type;			/* "payments.insert" */
	const char *schema;			/* of the table, at the source */
	const char *table;
	const char *operation;		/* "insert", … */
	const char *key;			/* values of the key's columns, comma-separated */

	const char *content_type;	/* media type without parameters */
	const char *body;			/* identity bytes: what is to be signed */
	size_t		size;			/* bytes */
	int			nattributes;
	const PsyncAttribute *attributes;
} PsyncMessage;

typedef enum PsyncOutcomeKind
{
	PSYNC_OUTCOME_DELIVERED,	/* acknowledged as the target's options say */
	PSYNC_OUTCOME_AGAIN,		/* lost with a stale connection: send at once,
								 * counts as no failure */
	PSYNC_OUTCOME_RETRY,		/* this message may succeed later */
	PSYNC_OUTCOME_REFUSED,		/* this message never will */
	PSYNC_OUTCOME_TARGET,		/* it is about the target, not the message:
								 * wrong credentials, no such address */
	PSYNC_OUTCOME_GONE			/* the target wants no more, ever */
} PsyncOutcomeKind;

/*
 * How one event of a message fared, where an answer tells them apart.  Those
 * to be sent again keep their ids, and hold back only what must not overtake
 * them; the message that they come in is another one.
 */
typedef enum PsyncItemOutcome
{
	PSYNC_ITEM_DELIVERED,
	PSYNC_ITEM_RETRY,			/* may succeed later: throttled, internal error */
	PSYNC_ITEM_REFUSED			/* never will */
} PsyncItemOutcome;

/*
 * How an attempt ended.  Texts come from a target: the transport has capped
 * them and made them valid in the database's encoding, and they hold no
 * secret (P9).  Valid during the call of services->settle() only.
 */
typedef struct PsyncOutcome
{
	PsyncOutcomeKind kind;
	int			sqlerrcode;		/* 0 if all is delivered */
	int			status;			/* the protocol's own, e.g. 503; 0: none */
	int64		retry_after_ms; /* as the target asked, not yet clamped; -1 */
	const char *reason;			/* one line; NULL if all is delivered */
	const char *excerpt;		/* of the answer, or NULL */
	const uint8 *items;			/* if delivered: a PsyncItemOutcome per event of
								 * the body; NULL: all of them are */
	const char *const *item_reasons;	/* with items: per event, as reason */
	int64		elapsed_us;		/* from submission to the answer */
} PsyncOutcome;

/* A step of check_target(). */
typedef void (*PsyncCheckReport) (void *arg, const char *step, bool ok,
								  const char *detail, int64 elapsed_us);

typedef struct PsyncMessageTransport
{
	/*
	 * Required.  Begin an attempt; the answer is given to services->settle()
	 * from within a later poll(), never from within submit().  Does not block.
	 * False if there is no room now: the core polls and tries again.
	 */
	bool		(*submit) (PsyncTarget *target, const PsyncMessage *message);

	/*
	 * Required.  Move attempts on; return when one was settled, the latch was
	 * set, or after timeout_ms (0: do not wait; -1: no limit).  Waits through
	 * services->wait() only.
	 */
	void		(*poll) (PsyncTarget *target, long timeout_ms);

	/*
	 * Optional.  What poll() would wait for, so that one process can wait for
	 * several targets: returns a descriptor that becomes readable when poll()
	 * has something to do, PGINVALID_SOCKET if nothing is under way, and in
	 * *timeout_ms after what time there is anyway (-1: never).  Does not wait.
	 * Without it a target under way holds up the process's others.
	 */
	pgsocket	(*watch) (PsyncTarget *target, long *timeout_ms);

	/*
	 * Optional.  The request that submit() would send, secrets masked.
	 * Between open() and close(); does not touch the network.
	 */
	char	   *(*preview) (PsyncTarget *target, const PsyncMessage *message);

	/* Optional.  Try the target step by step; open() was not called. */
	void		(*check) (PsyncTarget *target, const PsyncMessage *ping,
						  PsyncCheckReport report, void *arg);
} PsyncMessageTransport;

/* -------------------------------------------------------------- reading */

/*
 * Reading at a target that is a PostgreSQL server, for reconciliation.  The
 * target was opened with read_only set; only open, these and close are called
 * then.  The caller may hold a snapshot.
 *
 *		open -> { set* -> send -> row* }* -> close
 */
typedef struct PsyncReadTransport
{
	/*
	 * A setting (GUC) for the statements that follow.  Between statements;
	 * does not wait.
	 */
	void		(*set) (PsyncTarget *target, const char *name, const char *value);

	/*
	 * Send one statement and return without waiting for its result, so that
	 * both sides can work at the same time.  The previous one's rows must all
	 * have been taken.  Its rows must have ncolumns columns, the first nfilled
	 * of which are never null; whatever else the target sends is an error.
	 */
	void		(*send) (PsyncTarget *target, const char *sql,
						 int ncolumns, int nfilled);

	/*
	 * The next row of its result, as text: an array of as many strings, NULL
	 * for nulls, valid in the database's encoding, until the next call; or NULL
	 * at the end.  May wait.  Rows are taken from the network as they are asked
	 * for, so a large result needs no memory.
	 */
	const char *const *(*row) (PsyncTarget *target);

	/*
	 * A query that returns the position recorded for the sync, as one text
	 * column, or no row; to be put into other statements, which then see rows
	 * and position at one time.  May wait.  In the current memory context.
	 */
	char	   *(*position_query) (PsyncTarget *target);
} PsyncReadTransport;

/* ------------------------------------------------------------ callbacks */

typedef struct PsyncTransport
{
	uint32		magic;			/* PSYNC_TRANSPORT_MAGIC */
	const char *name;			/* for messages, e.g. "postgres" */

	/*
	 * Required.  Connect and check.  Called once before anything else; a
	 * failure raises an error whose text holds no secret (P9).
	 */
	void		(*open) (PsyncTarget *target);

	/*
	 * Optional.  The position the target last recorded for this sync, as
	 * given to commit_window, or NULL if it has none yet.  Raises an error
	 * if it belongs to another change log.  Allocated in the current context.
	 */
	char	   *(*read_position) (PsyncTarget *target);

	/* Required.  A window begins; nothing may be visible until it commits. */
	void		(*begin_window) (PsyncTarget *target,
								 const PsyncWindowInfo *info);

	/*
	 * Required.  One change, in order of position.  The change and all it
	 * points to, except shape and table, is valid only during the call.
	 */
	void		(*change) (PsyncTarget *target, const PsyncChange *change);

	/*
	 * Optional (no batch without them).  A chunk's begin; its rows or keys;
	 * its end.  They follow all changes of the window.  The end returns false
	 * if the chunk's rows refer to rows that are not there and were therefore
	 * left out of the window; for circular ones only.
	 */
	void		(*begin_chunk) (PsyncTarget *target, const PsyncChunk *chunk);
	void		(*chunk_row) (PsyncTarget *target, const char *image,
							  uint32 size);
	bool		(*end_chunk) (PsyncTarget *target, const PsyncChunk *chunk);

	/*
	 * Required.  Commit the window, together with "position" if the target
	 * can store one.  Returns only when the target has confirmed.  With a
	 * flush callback it need not be durable yet, but must then be lost as a
	 * whole, with its position, if it is lost.
	 */
	void		(*commit_window) (PsyncTarget *target, const char *position);

	/*
	 * Optional.  Make all windows committed so far durable.  Called before
	 * the core forgets them, about once a second, and between windows only.
	 */
	void		(*flush) (PsyncTarget *target);

	/*
	 * Required.  Forget the window.  Called after an error; must not raise.
	 * The core calls close next if this returns false.
	 */
	bool		(*abort_window) (PsyncTarget *target);

	/* Required.  Disconnect and free.  Must not raise; may not wait long. */
	void		(*close) (PsyncTarget *target);

	/* The target takes messages; all callbacks between open and close are
	 * NULL then.  NULL: it takes windows. */
	const PsyncMessageTransport *messages;

	/* The target can be read with SQL.  NULL: it cannot. */
	const PsyncReadTransport *reading;

	/*
	 * Optional; of targets that take windows.  Try the target step by step, and
	 * look at its tables; open() was not called.  An error, if it is not there.
	 */
	void		(*check) (PsyncTarget *target, PsyncCheckReport report, void *arg);
} PsyncTransport;

typedef const PsyncTransport *(*PsyncTransportInit) (const PsyncServices *services);

#endif							/* PAYMENT_SYNC_TRANSPORT_H */
