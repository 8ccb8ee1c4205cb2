/*
 * position.c
 *		What a target records as position, and whether it is one of ours.
 *
 * The text is the snapshot B that ended the last window, as pg_snapshot, and
 * the mark of the last change that the target has of this sync:
 *
 *		xmin:xmax:xip,…@xid/position/at
 *
 * The mark (absent if there never was a change) says which history the
 * snapshot belongs to.  Transaction ids do not: a server that was restored from
 * a backup soon gives out the same ids again, to other transactions, and the
 * target's snapshot looks like one of its own past.  Whoever believed it would
 * skip those (P2).  So a position that is later than what we have saved is
 * believed only if the log holds the change that its mark names; and it does if
 * we have delivered it, since that was flushed before (P3) and our saved
 * position keeps it.  Three numbers suffice to tell changes apart: besides the
 * transaction, where its WAL was, and the microsecond at which it was logged.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "deliver/delivery.h"

/* ------------------------------------------------------------------- marks */

void
psync_last_change_set(PsyncLastChange *mark, const PsyncChange *change)
{
	Assert(change->xid != 0);

	mark->xid = change->xid;
	mark->position = change->position;
	mark->at = change->at;
}

/*
 * The mark of a position.  Whatever a target returns instead of one (P7) is
 * none.
 */
void
psync_last_change_parse(PsyncLastChange *mark, const char *text)
{
	const char *at = strchr(text, '@');
	char	   *end;

	memset(mark, 0, sizeof(*mark));
	if (at == NULL)
		return;
	mark->xid = strtou64(at + 1, &end, 10);
	mark->position = *end == '/' ? strtou64(end + 1, &end, 10) : 0;
	mark->at = *end == '/' ? (TimestampTz) strtou64(end + 1, &end, 10) : 0;
	if (*end != '\0' || mark->at == 0)
		memset(mark, 0, sizeof(*mark));
}

static bool
same_mark(const PsyncLastChange *a, const PsyncLastChange *b)
{
	return a->xid == b->xid && a->position == b->position && a->at == b->at;
}

/*
 * Does the log hold this change, between our position and the given one?  At
 * most about a second's worth must be read, or what a crash left unsaved.
 */
static bool
log_holds(PsyncDelivery *delivery, const PsyncSnapshot *upto,
		  const PsyncLastChange *mark)
{
	PsyncReader *reader = psync_reader_create(delivery->window_context,
											  psync_reader_after(delivery->reader),
											  &delivery->sync->hint);
	PsyncChange change;
	uint32		shape_id;
	bool		found = false;

	Assert(mark->xid != 0);

	if (psync_reader_open_upto(reader, upto))
	{
		while (!found && psync_reader_next(reader, &change, &shape_id))
		{
			PsyncLastChange	here;

			CHECK_FOR_INTERRUPTS();
			psync_last_change_set(&here, &change);
			found = same_mark(&here, mark);
		}
	}
	psync_reader_free(reader);
	return found;
}

/* --------------------------------------------------------------- positions */

/* Of the window at hand, once all of its changes are sent. */
char *
psync_position_text(PsyncDelivery *delivery)
{
	const PsyncLastChange *mark = &delivery->mark;
	char	   *snapshot = psync_snapshot_text(psync_reader_upto(delivery->reader));

	if (mark->xid == 0)
		return snapshot;
	return psprintf("%s@" UINT64_FORMAT "/" UINT64_FORMAT "/" UINT64_FORMAT,
					snapshot, mark->xid, mark->position, (uint64) mark->at);
}

/*
 * The sync stops until someone decides what is right;
 * guessing would skip changes or apply them twice (P2, P5).
 */
pg_noreturn static void
refuse_position(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the target's recorded position does not fit this change log"),
			 errdetail("%s", detail),
			 errhint("Start afresh with payment_sync.enable_sync(name, start => 'batch').")));
}

/* The snapshot of this moment, in the window's memory. */
static PsyncSnapshot *
present(void)
{
	PsyncSnapshot *now;

	PushActiveSnapshot(GetTransactionSnapshot());
	now = psync_snapshot_current();
	PopActiveSnapshot();
	return now;
}

/* Go on where the target is: we crashed before that was saved. */
static void
move_reader(PsyncDelivery *delivery, const PsyncSnapshot *there,
			const PsyncLastChange *mark, const char *remote)
{
	MemoryContext old = MemoryContextSwitchTo(delivery->context);

	psync_reader_free(delivery->reader);
	delivery->reader = psync_reader_create(delivery->context, there,
										   &delivery->sync->hint);
	delivery->target_position = pstrdup(remote);
	delivery->mark = *mark;
	MemoryContextSwitchTo(old);

	/* what is stored here is out of date */
	if (delivery->unsaved_since == 0)
		delivery->unsaved_since = GetCurrentTimestamp();
}

/*
 * Compare the target's position with ours; deliver.c has the table of cases.
 * True if the reader was moved: the window that was found does not begin where
 * the target is, and must be found anew.
 *
 * A sync that was started anew has no position at the target yet, but for one
 * that it has recorded since and not saved; whatever else is there is from
 * before.
 */
bool
psync_position_adopt(PsyncDelivery *delivery, const char *remote)
{
	const char *ours = delivery->target_position;
	PsyncSnapshot *after;
	PsyncSnapshot *there;
	PsyncLastChange	mark;
	bool		past;
	bool		later;
	bool		known;

	Assert(delivery->target != NULL && !delivery->window_begun);

	if (remote == NULL && ours != NULL)
		refuse_position("The target has lost its position: it was restored or emptied.");
	if (remote == NULL || (ours != NULL && strcmp(ours, remote) == 0))
		return false;

	/*
	 * From where this delivery began: since then the reader may have passed
	 * windows that held nothing at all, which is later than the target's
	 * last one, if a predecessor delivered that and could not save it.
	 */
	after = psync_snapshot_parse(delivery->sync->position);
	there = psync_snapshot_parse(remote);
	psync_last_change_parse(&mark, remote);
	past = psync_snapshot_covers(present(), there);
	later = psync_snapshot_covers(there, after);
	known = past && later &&
		(same_mark(&mark, &delivery->mark) ||
		 (mark.xid != 0 && log_holds(delivery, there, &mark)));

	if (delivery->sync->restart && (!known || mark.xid == 0))
		return false;
	if (past && !later)
		refuse_position("The target is at an earlier position than was delivered: it was restored from a backup.");
	if (!known)
		refuse_position("The target has changes that this server does not know: it was restored from a backup.");

	move_reader(delivery, there, &mark, remote);
	return true;
}
