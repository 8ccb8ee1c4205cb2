/*
 * message.h
 *		Delivery to targets that take messages; shared by the files of this folder only.
 *
 * doc/internals/messages.md explains the whole.  The files:
 *
 *	engine.c		open, step, close; feeding the line from the log
 *	settings.c		the options that all such targets share
 *	event.c			events of changes (what formats look like)
 *	body.c			bodies of events: messages
 *	unmade.c		changes of which no event can be made
 *	transform.c		the subscriber's SQL expression
 *	keys.c			a hash table of keys
 *	queue.c			the line: order, and how far all is settled
 *	send.c			attempts and their outcomes
 *	retry.c			delays, breaker, rate limit
 *	park.c			parked events and dead letters
 *	rows.c			their rows
 *	ledger.c		counts: what became of each change
 *	ledger_view.c	the view on those
 *	save.c			progress and statistics, made durable
 *
 * Units of work, from small to large:
 *
 *	event		what the target is told of one change
 *	place		an event's place in the line
 *	message		one body with one event or several; frozen once made
 *	attempt		one submission of a message, in a slot
 */
#ifndef PSYNC_MESSAGE_H
#define PSYNC_MESSAGE_H

#include "lib/ilist.h"
#include "utils/resowner.h"

#include "decode/json.h"
#include "deliver/delivery.h"
#include "message/transform.h"

struct PsyncMessages;

/* ------------------------------------------------------------- settings */

typedef enum PsyncFormat
{
	PSYNC_FORMAT_JSON,
	PSYNC_FORMAT_NDJSON,
	PSYNC_FORMAT_CLOUDEVENTS,
	PSYNC_FORMAT_CLOUDEVENTS_BINARY,
	PSYNC_FORMAT_CLOUDEVENTS_BATCH,
	PSYNC_FORMAT_DEBEZIUM,
	PSYNC_FORMAT_RAW
} PsyncFormat;

typedef enum PsyncOrdering
{
	PSYNC_ORDER_KEY,
	PSYNC_ORDER_STRICT,
	PSYNC_ORDER_NONE
} PsyncOrdering;

/* The options of message_options.h, read. */
typedef struct PsyncMessageSettings
{
	PsyncFormat format;
	bool		thin;
	bool		previous;
	PsyncJsonSettings json;
	const char *source;			/* UTF-8 */
	int			batch_max;		/* events */
	int			batch_bytes_max;
	int			linger_ms;
	int			in_flight_max;	/* messages */
	int			rate_limit;		/* messages per second; 0: none */
	PsyncOrdering ordering;
	int64		retry_delay_min;	/* ms */
	int64		retry_delay_max;
	int64		retry_after_max;
	bool		hold_refused;
	int			parked_max;		/* events */
	int64		disable_after;	/* s; 0: never */
} PsyncMessageSettings;

extern void psync_message_settings(PsyncMessageSettings *settings,
								   const PsyncTarget *target,
								   const char *transform);

/* ---------------------------------------------------------------- events */

/* What all events of one shape, or of truncations of one table, share. */
typedef struct PsyncEventTable
{
	uint32		id;				/* hash key: the shape's, or the table's oid */
	bool		truncate;		/* hash key, too */
	const PsyncTable *table;
	PsyncJsonShape *json;		/* NULL: truncate */
	bool		runs_user_code; /* to decode a row of it */
	const char *schema;			/* UTF-8, as all of these */
	const char *name;
	const char *types[5];		/* "payments.insert", by psync_op_index() */
	const char *names[5];		/* the same as JSON members: type, schema … */
} PsyncEventTable;

/* One event, in one piece of memory. */
typedef struct PsyncEvent
{
	const PsyncEventTable *table;
	PsyncOperation op;
	uint64		position;
	uint64		previous;		/* of the same key's previous event; 0: unknown */
	uint64		xid;
	TimestampTz at;
	bool		unmade;			/* its text is a fault and the change */
	int			id_size;		/* without the terminator */
	int			key_size;
	int			text_size;
	const char *content_type;	/* of RAW, else NULL */
	char		data[FLEXIBLE_ARRAY_MEMBER];	/* id, key, text; each
												 * terminated */
} PsyncEvent;

#define PSYNC_EVENT_ID(event)	((event)->data)
#define PSYNC_EVENT_KEY(event)	((event)->data + (event)->id_size + 1)
#define PSYNC_EVENT_TEXT(event) \
	((event)->data + (event)->id_size + 1 + (event)->key_size + 1)

/* Which events must not overtake each other. */
typedef struct PsyncEventKeys
{
	int			n;
	uint64		keys[2];		/* hashes; equal by chance does no harm */
} PsyncEventKeys;

typedef struct PsyncEventWriter
{
	MemoryContext context;		/* as long as the delivery */
	MemoryContext value_context;	/* reset after each event */
	const PsyncMessageSettings *settings;
	struct PsyncTransform *transform;	/* NULL: none */
	const PsyncTarget *target;
	char		log_id[33];		/* identity of the log, hex */
	HTAB	   *tables;			/* of PsyncEventTable */
	const char *source_json;
	const char *database_json;
	uint64	   *previous_keys;	/* a cache: the last position of each key */
	uint64	   *previous_positions;
	StringInfoData id;
	StringInfoData key;
	bool		key_made;		/* of the change at hand, as a whole */
	StringInfoData text;
	StringInfoData envelope;	/* what a transform is given */
	StringInfoData data;		/* CloudEvents' data */
} PsyncEventWriter;

/* Why no event could be made. */
typedef struct PsyncFault
{
	int			sqlerrcode;
	char		reason[256];
} PsyncFault;

extern PsyncEventWriter *psync_event_writer(const PsyncTarget *target,
											const PsyncMessageSettings *settings,
											const char *transform, Oid owner);
extern PsyncEvent *psync_event_make(PsyncEventWriter *writer,
									const PsyncChange *change,
									PsyncEventKeys *keys, bool again);
extern PsyncEvent *psync_event_unmade(PsyncEventWriter *writer,
									  const PsyncChange *change,
									  PsyncEventKeys *keys,
									  const PsyncFault *fault);

/* Of the event with which check_target() tries a target: it has no table. */
static inline bool
psync_event_is_ping(const PsyncTable *table)
{
	return !OidIsValid(table->relid);
}

extern void psync_event_put_position(StringInfo out, uint64 position);
extern int	psync_op_index(PsyncOperation op);

/* transform.c */
typedef struct PsyncTransform PsyncTransform;

extern PsyncTransform *psync_transform_create(const char *expression, Oid owner);
extern bool psync_transform_run(PsyncTransform *transform, const char *event,
								int size, StringInfo body,
								const char **content_type);

/* ------------------------------------------------------------------ keys */

/* Open addressing; 0 is no key. */
typedef struct PsyncKeyTable
{
	uint32		mask;			/* capacity - 1 */
	uint32		used;
	uint64	   *keys;
	uint64	   *values;
} PsyncKeyTable;

extern void psync_keys_init(PsyncKeyTable *table, uint32 capacity);
extern uint64 *psync_keys_find(PsyncKeyTable *table, uint64 key);
extern uint64 *psync_keys_enter(PsyncKeyTable *table, uint64 key);
extern void psync_keys_remove(PsyncKeyTable *table, uint64 key);
extern void psync_keys_clear(PsyncKeyTable *table);

/* ---------------------------------------------------------------- messages */

typedef enum PsyncOutgoingState
{
	PSYNC_OUT_FLYING,
	PSYNC_OUT_FAILED,			/* waits for its next attempt */
	PSYNC_OUT_IDLE				/* neither: being made, parked or buried */
} PsyncOutgoingState;

/* A message, frozen, in a memory context of its own. */
typedef struct PsyncOutgoing
{
	PsyncMessage m;
	MemoryContext context;
	dlist_node	node;			/* in messages->failed, if FAILED */
	PsyncOutgoingState state;
	uint64	   *places;			/* m.nevents of them, ascending; NULL: it was
								 * read from the table */
	uint32	   *offsets;		/* of each event's text in the body */
	uint32	   *sizes;
	const PsyncEvent **events;	/* its places', or its own */
	bool		keeps_events;	/* its places are gone, it frees them */
	bool		part;			/* of a message that was refused: may have to wait
								 * for another part */
	TimestampTz created;
	TimestampTz next_at;		/* if FAILED */
	int			failures;		/* attempts that failed */
	int			again;			/* PSYNC_OUTCOME_AGAIN in a row */
	struct PsyncParked *parked; /* NULL: in the line */
} PsyncOutgoing;

extern PsyncOutgoing *psync_outgoing_make(struct PsyncMessages *messages,
										  const uint64 *places, int n);
extern PsyncOutgoing *psync_outgoing_of_event(struct PsyncMessages *messages,
											  PsyncEvent *event);
extern PsyncOutgoing *psync_outgoing_split(struct PsyncMessages *messages,
										   PsyncOutgoing *message, int first,
										   int n);
extern void psync_outgoing_free(PsyncOutgoing *message);

/* ---------------------------------------------------------------- ledger */

/* What became of a change. */
typedef enum PsyncFate
{
	PSYNC_FATE_OPEN,
	PSYNC_FATE_DELIVERED,
	PSYNC_FATE_RECORDED,		/* its event has a row in payment_sync.unsettled */
	PSYNC_FATE_LEFT_OUT,		/* by the transform */
	PSYNC_FATE_EXCLUDED			/* by its origin */
} PsyncFate;

typedef struct PsyncLedgerKey
{
	Oid			relid;
	int32		day;			/* of the change, in UTC, as a date */
	PsyncOperation op;
} PsyncLedgerKey;

/* What is counted together. */
typedef struct PsyncLedgerEntry
{
	PsyncLedgerKey key;			/* hash key */
	/* behind the position, or recorded, since the last save */
	int64		captured;
	int64		delivered;
	int64		left_out;
	int64		excluded;
	/* in the gap at hand */
	bool		in_gap;
	struct PsyncLedgerEntry *next_in_gap;
	int64		gap_left_out;
	int64		gap_excluded;
} PsyncLedgerEntry;

/* Changes without an event that lie between two places. */
typedef struct PsyncGap
{
	PsyncLedgerEntry *entry;
	int64		left_out;
	int64		excluded;
} PsyncGap;

/* A change that is ahead of the position, and has a row. */
typedef struct PsyncAhead
{
	uint64		position;
	uint64		xid;
	bool		met;			/* was read again, and passed over */
} PsyncAhead;

/* Gaps are numbered from 0; number n is at gaps[n - gaps_base]. */
typedef struct PsyncLedger
{
	MemoryContext context;
	HTAB	   *entries;
	PsyncLedgerEntry *last;		/* looked up last */
	PsyncLedgerEntry *gap;		/* list of entries in the gap at hand */
	PsyncGap   *gaps;
	uint64		gaps_size;
	uint64		gaps_base;
	uint64		gaps_begin;		/* first that is not passed */
	uint64		gaps_end;
	uint64		nrecorded;		/* places in the line that are recorded */
	PsyncAhead *ahead;			/* by an earlier process; sorted */
	int			nahead;
	TimestampTz pruned_at;
} PsyncLedger;

/* ------------------------------------------------------------------ line */

typedef enum PsyncPlaceState
{
	PSYNC_PLACE_WAITING,		/* blockers > 0, or behind a parked key */
	PSYNC_PLACE_READY,			/* in the queue of those that may be sent */
	PSYNC_PLACE_TAKEN,			/* in a message */
	PSYNC_PLACE_SETTLED
} PsyncPlaceState;

typedef struct PsyncPlace
{
	PsyncPlaceState state;
	int			blockers;		/* earlier unsettled places with its keys */
	int			in_batch;		/* of those, in the batch being made */
	uint32		batch;			/* serial number of that batch */
	int			nkeys;
	uint64		keys[2];
	uint64		next[2];		/* next place with that key; 0: none yet */
	uint64		position;
	uint64		xid;
	TimestampTz arrived;
	PsyncEvent *event;			/* freed when settled … */
	bool		event_kept;		/* … unless its message keeps it */
	PsyncLedgerEntry *ledger;	/* NULL: a batch's row, which is not counted */
	PsyncFate	fate;			/* when settled */
	bool		recorded;		/* its event has a row, or gets one */
	uint64		gaps;			/* end of those before it */
} PsyncPlace;

/* The end of a window in the line. */
typedef struct PsyncMark
{
	uint64		end;			/* number of the first place behind it */
	char	   *upto;			/* its B, as text */
	PsyncReadHint hint;
	uint64		windows;		/* that are counted as one */
	uint64		bytes;
	uint64		gaps;			/* end of those before it */
} PsyncMark;

#define PSYNC_MARKS_MAX		256

/* Places are numbered from 1; number n is at places[n & mask]. */
typedef struct PsyncLine
{
	MemoryContext context;
	PsyncPlace *places;
	uint64		mask;			/* capacity - 1 */
	uint64		head;			/* first unsettled */
	uint64		tail;			/* next to be given */
	uint64		bytes;			/* of events */
	uint64	   *ready;			/* a ring of place numbers, same capacity */
	uint64		ready_head;
	uint64		ready_tail;
	uint64	   *behind;			/* places behind parked keys, no room to park */
	uint64		nbehind;
	PsyncKeyTable keys;			/* key -> last place */
	uint32		batch;			/* serial number of the batch being made */
	PsyncLedger ledger;

	/* how far it is settled */
	PsyncMark	marks[PSYNC_MARKS_MAX];
	int			nmarks;
	char	   *done;			/* A: all before is settled; NULL: as saved */
	PsyncReadHint done_hint;
	uint64		done_windows;	/* since the last save */
	uint64		done_bytes;
	uint64		settled;		/* events, since the last save */
	uint64		settled_position;	/* in the window at hand */
	uint64		settled_xid;
	TimestampTz settled_at;
	uint64		moves;			/* events settled and windows done, ever */
} PsyncLine;

/* A message that has failed this often, or is this old, is parked. */
#define PSYNC_PARK_FAILURES		3
#define PSYNC_PARK_MS			2000

#define PSYNC_PLACE(line, n)	(&(line)->places[(n) & (line)->mask])

extern void psync_line_init(PsyncLine *line, MemoryContext context,
							const PsyncMessageSettings *settings);
extern bool psync_line_has_room(const PsyncLine *line);
extern uint64 psync_line_add(struct PsyncMessages *messages, PsyncEvent *event,
							 const PsyncEventKeys *keys);
extern void psync_line_add_recorded(PsyncLine *line, const PsyncChange *change);
extern void psync_line_settle(struct PsyncMessages *messages, uint64 n,
							  PsyncFate fate);
extern void psync_line_mark(PsyncLine *line, const char *upto,
							const PsyncReadHint *hint, uint64 bytes);
extern int	psync_line_take(struct PsyncMessages *messages, uint64 *places);
extern void psync_line_recheck(struct PsyncMessages *messages);
extern bool psync_line_waits_for_part(struct PsyncMessages *messages,
									  const PsyncOutgoing *message);
extern bool psync_line_waits_for_parked(struct PsyncMessages *messages,
										const PsyncOutgoing *message);
extern bool psync_line_may_send(struct PsyncMessages *messages,
								const PsyncOutgoing *message);
extern bool psync_line_ready(const PsyncLine *line);

static inline bool
psync_line_is_empty(const PsyncLine *line)
{
	return line->head == line->tail;
}

/* -------------------------------------------------------------- attempts */

/* What settle() was told, copied. */
typedef struct PsyncAnswer
{
	PsyncOutcomeKind kind;
	int			sqlerrcode;
	int			status;
	int64		retry_after_ms;
	int64		elapsed_us;
	bool		partly;			/* the slot's items[] count */
	char		reason[256];
	char		excerpt[1024];
} PsyncAnswer;

/* An attempt under way; its number and generation are the handle. */
typedef struct PsyncSlot
{
	uint32		generation;
	PsyncOutgoing *message;		/* NULL: free */
	TimestampTz submitted;
	bool		answered;
	PsyncAnswer answer;
	uint8	   *items;			/* PsyncItemOutcome, batch_max of them */
	char	  **reasons;		/* the message's; per event, or NULL */
} PsyncSlot;

typedef enum PsyncBreaker
{
	PSYNC_BREAKER_CLOSED,		/* all is well */
	PSYNC_BREAKER_OPEN,			/* nothing is sent until breaker_until */
	PSYNC_BREAKER_PROBING		/* one message is on its way */
} PsyncBreaker;

/* ---------------------------------------------------------------- parked */

/* A row of payment_sync.unsettled that is to be sent or holds its keys. */
typedef struct PsyncParked
{
	dlist_node	node;			/* in messages->parked, in order of rank */
	int64		id;				/* 0: not yet saved */
	int64		origin;			/* id of the row that it was a part of, or its
								 * own; and which part: together its rank */
	int			part;
	bool		held;			/* refused: waits for a human */
	bool		split;			/* refused as a whole: to be split … */
	bool		splitting;		/* … with the next save */
	bool		truncate;
	int			nevents;
	int			nkeys;
	uint64	   *keys;
	int			nrelids;
	Oid		   *relids;
	int			failures;
	int			again;			/* attempts in a row that ended so */
	TimestampTz next_at;
	PsyncOutgoing *message;		/* NULL: to be read from the table */
} PsyncParked;

typedef enum PsyncRowOp
{
	PSYNC_ROW_PARK,				/* insert, state parked or held */
	PSYNC_ROW_BURY,				/* insert, state dead */
	PSYNC_ROW_UPDATE,			/* failed again */
	PSYNC_ROW_HOLD,				/* a parked one was refused */
	PSYNC_ROW_KILL,				/* likewise, now dead */
	PSYNC_ROW_SPLIT,			/* a parked one of several was refused */
	PSYNC_ROW_LEAVE_OUT,		/* made anew, the transform leaves it out */
	PSYNC_ROW_DELETE			/* delivered */
} PsyncRowOp;

/* A change of payment_sync.unsettled that the next save makes. */
typedef struct PsyncRowChange
{
	dlist_node	node;
	PsyncRowOp	op;
	PsyncParked *parked;		/* all but BURY */
	int64		id;				/* of the row, if parked is gone by then */
	PsyncOutgoing *message;		/* PARK, BURY */
	PsyncAnswer answer;
	int			failures;
	TimestampTz next_at;
} PsyncRowChange;

/* ----------------------------------------------------------------- stats */

/* So many due ones are found at one look. */
#define PSYNC_DUE_MAX			64

/* Latency: powers of two of microseconds, each in four parts. */
#define PSYNC_LATENCY_BUCKETS	112

typedef struct PsyncMessageStats
{
	int64		requests;
	int64		events;			/* delivered */
	int64		statuses[6];	/* by first digit; [0]: no status */
	int64		retries;
	int64		refused;
	int64		bytes;
	int64		latency[PSYNC_LATENCY_BUCKETS];
	bool		changed;
	/* not deltas */
	int			last_status;
	TimestampTz last_at;
	char		last_excerpt[1024];
	char		last_reason[256];
} PsyncMessageStats;

/* ---------------------------------------------------------------- engine */

/* The subtransaction in which events are made. */
typedef struct PsyncTrial
{
	bool		open;
	ResourceOwner outer;		/* the caller's */
	ResourceOwner inner;		/* the subtransaction's */
} PsyncTrial;

typedef struct PsyncMessages
{
	MemoryContext context;
	PsyncDelivery *delivery;
	const PsyncMessageTransport *transport;
	PsyncTarget *target;
	PsyncMessageSettings settings;
	PsyncEventWriter *writer;
	PsyncLine	line;

	/* feeding */
	bool		window_open;
	uint64		window_bytes;
	uint64		skip_position;	/* of the window at hand, up to here … */
	uint64		skip_xid;		/* … all is settled */
	bool		fence;			/* a truncation waits for all before it, or
								 * all behind it for a truncation */
	PsyncEvent *fenced;			/* the truncation, not yet in the line */
	uint64		fenced_relid;
	bool		more;			/* feeding stopped for other work, not for lack
								 * of changes */
	bool		chunk_open;		/* rows of a batch are being fed, or settled */
	const char *chunk_at;		/* next row */
	uint64		chunk_xmax;		/* of the snapshot it was read under */
	uint64		safe_position;	/* a position for rows of a batch; 0: none */
	uint64		mark_position;	/* candidates for the next window */
	uint64		mark_xmax;
	uint64		published;		/* line.moves when figures were published */
	PsyncTrial	trial;
	ErrorData  *stuck;			/* feeding cannot go on; raised when the line is
								 * empty */

	/* sending */
	PsyncSlot  *slots;			/* in_flight_max of them */
	int			nslots;
	int			in_flight;
	int		   *free_slots;
	int			nfree;
	int		   *answered;
	int			nanswered;
	PsyncOutgoing *pending;		/* made, but there was no room to send it */
	dlist_head	failed;			/* of PsyncOutgoing, in the line */
	int			nfailed;
	double		tokens;			/* of the rate limit */
	TimestampTz tokens_at;

	/* breaker */
	PsyncBreaker breaker;
	TimestampTz breaker_until;
	int			breaker_opened; /* times in a row */
	int			failures;		/* in a row, of messages in the line */
	uint64		probes;
	TimestampTz failing_since;	/* 0: not failing */
	TimestampTz last_success;
	int64		asked_wait_ms;	/* longest Retry-After of those failures */
	bool		failure_unsaved;
	bool		success_unsaved;
	bool		target_fault;	/* the last failure was about the target */
	bool		gone;			/* the target wants no more */
	PsyncAnswer failure;		/* the last one, for stat_sync */

	/* parked */
	dlist_head	parked;			/* of PsyncParked */
	int			nparked;		/* events */
	int			nheld;			/* of those, held ones */
	bool		asked;			/* there may be rows that wait to be parked */
	struct PsyncParked *due[PSYNC_DUE_MAX]; /* found due, in order */
	int			ndue;
	int			next_due;
	PsyncKeyTable parked_keys;	/* key -> how many parked ones have it */
	TimestampTz parked_next;	/* when to look for due ones; 0: now */
	int			parked_flying;
	uint64		looks;			/* the delivery's when they were last read */
	dlist_head	changes;		/* of PsyncRowChange */
	int			nchanges;

	TimestampTz saved_at;
	TimestampTz unsaved_since;	/* 0: nothing */
	PsyncMessageStats stats;
} PsyncMessages;

/* send.c */
extern void psync_messages_dispatch(PsyncMessages *messages, TimestampTz now);
extern void psync_messages_poll(PsyncMessages *messages, long timeout_ms);
extern void psync_messages_settle(PsyncTarget *target, uint64 handle,
								  const PsyncOutcome *outcome);
extern void psync_message_requeue(PsyncMessages *messages, PsyncOutgoing *message,
								  TimestampTz next_at);

/* retry.c */
extern int64 psync_retry_delay(const PsyncMessageSettings *settings, int failures,
							   int64 asked_ms);
extern void psync_breaker_success(PsyncMessages *messages, TimestampTz now);
extern void psync_breaker_failure(PsyncMessages *messages, const PsyncAnswer *answer,
								  TimestampTz now);
extern void psync_breaker_open(PsyncMessages *messages, TimestampTz now);
extern bool psync_rate_allows(PsyncMessages *messages, TimestampTz now);
extern TimestampTz psync_rate_next(const PsyncMessages *messages);
extern TimestampTz psync_park_time(const PsyncMessages *messages, TimestampTz now);

/* park.c */
extern void psync_parked_load(PsyncMessages *messages);
extern bool psync_parked_wanted(const PsyncMessages *messages);
extern bool psync_parked_blocks(const PsyncMessages *messages, int nkeys,
								const uint64 *keys, uint64 relid, bool truncate);
extern bool psync_park_place(PsyncMessages *messages, uint64 place);
extern bool psync_park(PsyncMessages *messages, PsyncOutgoing *message);
extern void psync_bury(PsyncMessages *messages, PsyncOutgoing *message,
					   const PsyncAnswer *answer);
extern void psync_parked_delivered(PsyncMessages *messages, PsyncOutgoing *message);
extern void psync_parked_again(PsyncMessages *messages, PsyncOutgoing *message,
							   TimestampTz now);
extern void psync_parked_left_out(PsyncMessages *messages, PsyncParked *parked);
extern void psync_parked_failed(PsyncMessages *messages, PsyncParked *parked,
								const PsyncAnswer *answer);
extern void psync_parked_refused(PsyncMessages *messages, PsyncParked *parked,
								 const PsyncAnswer *answer);
extern PsyncOutgoing *psync_parked_due(PsyncMessages *messages, TimestampTz now);
extern void psync_parked_gather(PsyncMessages *messages, PsyncOutgoing *message,
								PsyncParked *parked);
extern void psync_row_changes_done(PsyncMessages *messages);
extern void psync_park_overdue(PsyncMessages *messages, TimestampTz now);

/* unmade.c */
extern bool psync_change_to_event(PsyncMessages *messages, const PsyncChange *change,
								  PsyncEventKeys *keys, PsyncEvent **event);
extern void psync_trial_end(PsyncMessages *messages);
extern void psync_trial_rethrow(PsyncMessages *messages);
extern void psync_change_pack(StringInfo out, const PsyncChange *change);
extern void psync_unmade_turn(PsyncMessages *messages, uint64 place);
extern PsyncOutgoing *psync_unmade_remake(PsyncMessages *messages,
										  PsyncParked *parked,
										  bytea *packed);
extern Datum psync_unmade_change(const PsyncEvent *event);

/* rows.c */
extern void psync_row_changes_record(PsyncMessages *messages);
extern void psync_row_changes_write(PsyncMessages *messages);

/* ledger.c */
extern void psync_ledger_init(PsyncLedger *ledger, MemoryContext context,
							  const uint64 *numbers, int n);
extern int32 psync_ledger_day(TimestampTz at);
extern PsyncLedgerEntry *psync_ledger_entry(PsyncLedger *ledger, Oid relid,
											TimestampTz at, PsyncOperation op);
extern void psync_ledger_note(PsyncLedger *ledger, const PsyncChange *change,
							  PsyncFate fate);
extern uint64 psync_ledger_boundary(PsyncLedger *ledger);
extern void psync_ledger_pass(PsyncLedger *ledger, uint64 boundary);
extern void psync_ledger_pass_place(PsyncLedger *ledger, const PsyncPlace *place);
extern void psync_ledger_record(PsyncMessages *messages,
								const PsyncOutgoing *message);
extern void psync_ledger_tally(PsyncMessages *messages,
							   const PsyncOutgoing *message, Datum *values);
extern bool psync_ledger_is_ahead(PsyncLedger *ledger, const PsyncChange *change);
extern int	psync_ledger_ahead(PsyncMessages *messages, uint64 **numbers);
extern void psync_ledger_save(PsyncLedger *ledger, const pg_uuid_t *sync);
extern void psync_ledger_saved(PsyncLedger *ledger);

/* ledger_view.c */
extern void psync_ledger_replayed(const PsyncSync *sync, uint64 first);

/* save.c */
extern bool psync_messages_save(PsyncMessages *messages);
extern void psync_messages_publish(PsyncMessages *messages);
extern void psync_stats_note(PsyncMessages *messages, const PsyncOutgoing *message,
							 const PsyncAnswer *answer);

/* engine.c */
extern PsyncMessages *psync_messages_open(PsyncDelivery *delivery);

#endif							/* PSYNC_MESSAGE_H */
