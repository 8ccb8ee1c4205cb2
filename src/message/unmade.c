/*
 * unmade.c
 *		Changes of which no event can be made.
 *
 * A transform raises an error, the key's type refuses to be read, the text
 * would be too large.  Such a change must neither hold up all others nor be
 * lost.  It takes a place in the line like any other; when its turn comes it
 * is treated as an event that the target has refused: it becomes a dead letter
 * or, if the server's options say so, holds its key.  Its row has the change
 * itself in place of a body, so that an event can be made of it later, by
 * another transform perhaps, when the log has long forgotten it.
 *
 * Not every error is about the change.  A lack of memory, a deadlock, a cancel
 * would have come with any other; what cannot be found, or may not be used,
 * will be wanting for the next one as well.  Then feeding is stuck: what is in
 * the line is delivered, and the error is raised when that is done, so that
 * the sync fails and is tried again from this change on.  Of code that takes
 * too long nobody knows whose fault it is: after some failures in a row it is
 * taken to be the change's.
 *
 * To make an event runs users' code.  That needs a subtransaction to go on
 * after an error.  Where no such code is run one subtransaction serves many
 * events, since nothing but a value can be at fault, and nothing is written;
 * it costs as much as making a few of them.  It is open only while the line is
 * being filled; whatever else is done meanwhile belongs to the transaction
 * around it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "libpq/pqformat.h"
#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#include "base/role.h"
#include "compat.h"
#include "decode/value.h"
#include "message/message.h"

/* After so many failures in a row, taking too long is the change's fault. */
#define PSYNC_LATE_MAX			3

/* What others than the owner see ends at the colon: see dead_letters. */
#define PSYNC_UNMADE_REASON		"could not make the event: "

/* Of a packed change; psync_change_pack() has the layout. */
#define PSYNC_PACKED_VERSION	1
#define PSYNC_PACKED_KEY_CHANGED 0x01
#define PSYNC_PACKED_WHOLE		0x02

/* Larger ones are kept without their images: a row could not hold them. */
#define PSYNC_PACKED_MAX		(MaxAllocSize - 1024 * 1024)

/* ---------------------------------------------------------- packed changes */

/* Append a change as unpack() reads it. */
void
psync_change_pack(StringInfo out, const PsyncChange *change)
{
	bool		whole = (Size) change->new_size + change->old_size < PSYNC_PACKED_MAX;

	Assert(change->table != NULL);
	pq_sendbyte(out, PSYNC_PACKED_VERSION);
	pq_sendbyte(out, (uint8) change->op);
	pq_sendbyte(out, (change->key_changed ? PSYNC_PACKED_KEY_CHANGED : 0) |
				(whole ? PSYNC_PACKED_WHOLE : 0));
	pq_sendint32(out, change->op == PSYNC_TRUNCATE ? change->table->relid :
				 change->shape->id);
	pq_sendint32(out, change->new_size);
	pq_sendint32(out, change->old_size);
	pq_sendint64(out, change->position);
	pq_sendint64(out, change->xid);
	pq_sendint64(out, (uint64) change->at);
	if (!whole)
		return;
	if (change->new_size > 0)
		psync_json_put(out, change->new_image, change->new_size);
	if (change->old_size > 0)
		psync_json_put(out, change->old_part, change->old_size);
}

/*
 * The inverse: the shape's id, or the table's, is returned.  The images stay
 * where they are.  False if they were not kept.
 */
static bool
unpack(bytea *packed, PsyncChange *change, uint32 *id)
{
	StringInfoData in;
	int			flags;

	in.data = VARDATA_ANY(packed);
	in.len = in.maxlen = VARSIZE_ANY_EXHDR(packed);
	in.cursor = 0;
	memset(change, 0, sizeof(*change));
	if (pq_getmsgbyte(&in) != PSYNC_PACKED_VERSION)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("change of a dead letter has an unknown format")));
	change->op = pq_getmsgbyte(&in);
	flags = pq_getmsgbyte(&in);
	change->key_changed = (flags & PSYNC_PACKED_KEY_CHANGED) != 0;
	*id = pq_getmsgint(&in, 4);
	change->new_size = pq_getmsgint(&in, 4);
	change->old_size = pq_getmsgint(&in, 4);
	change->position = (uint64) pq_getmsgint64(&in);
	change->xid = (uint64) pq_getmsgint64(&in);
	change->at = pq_getmsgint64(&in);
	if ((flags & PSYNC_PACKED_WHOLE) == 0)
		return false;
	change->new_image = pq_getmsgbytes(&in, change->new_size);
	change->old_part = pq_getmsgbytes(&in, change->old_size);
	return true;
}

/* Of an event that could not be made, for its row. */
Datum
psync_unmade_change(const PsyncEvent *event)
{
	Size		size = event->text_size - sizeof(PsyncFault);
	bytea	   *packed = MemoryContextAllocHuge(CurrentMemoryContext, VARHDRSZ + size);

	Assert(event->unmade && event->text_size > sizeof(PsyncFault));
	SET_VARSIZE(packed, VARHDRSZ + size);
	memcpy(VARDATA(packed), PSYNC_EVENT_TEXT(event) + sizeof(PsyncFault), size);
	return PointerGetDatum(packed);
}

/* ------------------------------------------------------------------ trying */

/* The subtransaction is there, and what is acquired belongs to it. */
static void
enter_trial(PsyncTrial *trial)
{
	MemoryContext context = CurrentMemoryContext;

	if (!trial->open)
	{
		trial->outer = CurrentResourceOwner;
		BeginInternalSubTransaction(NULL);
		trial->inner = CurrentResourceOwner;
		trial->open = true;
		MemoryContextSwitchTo(context);
	}
	CurrentResourceOwner = trial->inner;
}

/* Before anything may end the transaction. */
void
psync_trial_end(PsyncMessages *messages)
{
	PsyncTrial *trial = &messages->trial;
	MemoryContext context = CurrentMemoryContext;

	if (!trial->open)
		return;
	CurrentResourceOwner = trial->inner;
	ReleaseCurrentSubTransaction();
	trial->open = false;
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = trial->outer;
}

/* The error at hand ends the subtransaction, and is the caller's then. */
static ErrorData *
abort_trial(PsyncTrial *trial, MemoryContext context)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	FlushErrorState();
	trial->open = false;
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = trial->outer;
	return error;
}

/*
 * In a PG_CATCH: the error goes on.  Whoever handles it must find the
 * transaction as it was before the subtransaction.
 */
void
psync_trial_rethrow(PsyncMessages *messages)
{
	if (!messages->trial.open)
		PG_RE_THROW();
	ReThrowError(abort_trial(&messages->trial,
							 messages->delivery->window_context));
}

/*
 * Make the change's event.  NULL if the transform leaves it out; or, with the
 * error, which lasts as long as the delivery, if it cannot be made.  *late:
 * the limit of time was exceeded.
 */
static PsyncEvent *
try_event(PsyncMessages *messages, const PsyncChange *change,
		  PsyncEventKeys *keys, bool again, ErrorData **error, bool *late)
{
	MemoryContext context = CurrentMemoryContext;
	PsyncEvent *volatile event = NULL;
	ErrorData  *volatile failure = NULL;
	volatile bool exceeded = false;

	enter_trial(&messages->trial);
	PG_TRY();
	{
		event = psync_event_make(messages->writer, change, keys, again);
	}
	PG_CATCH();
	{
		exceeded = psync_limit_exceeded();
		failure = abort_trial(&messages->trial, messages->context);
	}
	PG_END_TRY();
	CurrentResourceOwner = messages->trial.outer;
	MemoryContextSwitchTo(context);

	/* what users' code may have written is to stay whatever the next one does */
	if (messages->writer->transform != NULL ||
		(event != NULL && event->table->runs_user_code))
		psync_trial_end(messages);
	*error = failure;
	*late = exceeded;
	return event;
}

/*
 * Would another change have met the same error?  What is not found or not
 * allowed is of that kind, and what a lock is in the way of.
 */
static bool
is_about_change(const ErrorData *error)
{
	if (psync_error_is_about_server(error))
		return false;
	switch (ERRCODE_TO_CATEGORY(error->sqlerrcode))
	{
		case ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION:
		case ERRCODE_INVALID_SCHEMA_NAME:
		case ERRCODE_INVALID_TRANSACTION_STATE:
		case ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE:
		case ERRCODE_CONNECTION_EXCEPTION:
			return false;
		default:
			return true;
	}
}

/*
 * May the change be passed over?  Not if nothing may overtake what is refused;
 * then it is tried again until somebody does something about it.
 */
static bool
may_pass(const PsyncMessages *messages, const ErrorData *error, bool late)
{
	if (messages->settings.hold_refused &&
		messages->settings.ordering == PSYNC_ORDER_STRICT)
		return false;
	if (late)
		return psync_line_is_empty(&messages->line) && messages->last_success == 0 &&
			messages->delivery->sync->failures >= PSYNC_LATE_MAX;
	return is_about_change(error);
}

static void
set_fault(PsyncFault *fault, const ErrorData *error)
{
	const char *message = error->message != NULL ? error->message : "";
	int			room = sizeof(fault->reason) - sizeof(PSYNC_UNMADE_REASON);
	int			length = pg_mbcliplen(message, strlen(message), room);

	memset(fault, 0, sizeof(*fault));
	fault->sqlerrcode = error->sqlerrcode;
	strcpy(fault->reason, PSYNC_UNMADE_REASON);
	memcpy(fault->reason + strlen(PSYNC_UNMADE_REASON), message, length);
}

/*
 * The event of a change that is fed, NULL if the transform leaves it out; one
 * that says so if none can be made.  False: feeding cannot go on.
 */
bool
psync_change_to_event(PsyncMessages *messages, const PsyncChange *change,
					  PsyncEventKeys *keys, PsyncEvent **event)
{
	ErrorData  *error;
	PsyncFault	fault;
	bool		late;

	*event = try_event(messages, change, keys, false, &error, &late);
	if (error == NULL)
		return true;
	if (!may_pass(messages, error, late))
	{
		messages->stuck = error;
		return false;
	}
	set_fault(&fault, error);
	FreeErrorData(error);
	*event = psync_event_unmade(messages->writer, change, keys, &fault);
	return true;
}

/* ------------------------------------------------------------ being refused */

static void
answer_fault(PsyncAnswer *answer, const PsyncFault *fault)
{
	memset(answer, 0, sizeof(*answer));
	answer->kind = PSYNC_OUTCOME_REFUSED;
	answer->sqlerrcode = fault->sqlerrcode;
	answer->retry_after_ms = -1;
	strlcpy(answer->reason, fault->reason, sizeof(answer->reason));
}

/*
 * Nothing holds the place back: its event is refused.  If it is to hold its
 * key and there is no room for that, it waits for some.
 */
void
psync_unmade_turn(PsyncMessages *messages, uint64 n)
{
	PsyncLine  *line = &messages->line;
	PsyncPlace *place = PSYNC_PLACE(line, n);
	PsyncOutgoing *message;
	PsyncAnswer answer;
	PsyncFault	fault;

	Assert(place->event->unmade && place->state == PSYNC_PLACE_WAITING);
	memcpy(&fault, PSYNC_EVENT_TEXT(place->event), sizeof(fault));
	answer_fault(&answer, &fault);
	place->state = PSYNC_PLACE_TAKEN;
	message = psync_outgoing_make(messages, &n, 1);
	if (!messages->settings.hold_refused)
	{
		messages->stats.refused++;
		psync_bury(messages, message, &answer);
	}
	else if (psync_park(messages, message))
		psync_parked_refused(messages, message->parked, &answer);
	else
	{
		psync_outgoing_free(message);
		place->state = PSYNC_PLACE_WAITING;
		line->behind[line->nbehind++] = n;
		return;
	}
	messages->stats.changed = true;
}

/* ------------------------------------------------------------- making anew */

/* No event can be made of it now, either. */
static void
fail_again(PsyncMessages *messages, PsyncParked *parked, const ErrorData *error,
		   bool late)
{
	PsyncAnswer answer;
	PsyncFault	fault;

	set_fault(&fault, error);
	answer_fault(&answer, &fault);
	if (late || is_about_change(error))
		psync_parked_refused(messages, parked, &answer);
	else
		psync_parked_failed(messages, parked, &answer);
}

/* For a reason of ours. */
static void
refuse(PsyncMessages *messages, PsyncParked *parked, const char *reason)
{
	ErrorData	error = {0};

	error.sqlerrcode = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
	error.message = unconstify(char *, reason);
	fail_again(messages, parked, &error, true);
}

/*
 * A parked row that holds a change is due: its message, with the id that it
 * always had.  NULL if there is none, or none yet; that is noted then.
 */
PsyncOutgoing *
psync_unmade_remake(PsyncMessages *messages, PsyncParked *parked, bytea *packed)
{
	PsyncChange change;
	PsyncEventKeys keys;
	PsyncEvent *event;
	ErrorData  *error;
	uint32		id;
	bool		late;

	if (!unpack(packed, &change, &id))
	{
		refuse(messages, parked, "the change is too large to be kept");
		return NULL;
	}
	if (!psync_delivery_locate(messages->delivery, &change, id))
	{
		refuse(messages, parked, "the table has left the sync");
		return NULL;
	}
	event = try_event(messages, &change, &keys, true, &error, &late);
	psync_trial_end(messages);
	if (error != NULL)
	{
		fail_again(messages, parked, error, late);
		FreeErrorData(error);
		return NULL;
	}
	if (event == NULL)
	{
		psync_parked_left_out(messages, parked);
		return NULL;
	}
	return psync_outgoing_of_event(messages, event);
}
