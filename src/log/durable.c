/*
 * durable.c
 *		What has to be on disk before a window is handed out (P3).
 *
 * Here: all WAL up to the record that made the window's last transaction
 * visible, also under synchronous_commit = off.  At the synchronous standbys,
 * if there are any, as well.  A commit becomes visible after they have
 * confirmed it, as a rule; but not if its wait was cancelled, nor if the server
 * was started anew meanwhile, nor under synchronous_commit = local.  Who sent
 * such changes would let a target know what a promoted standby lacks.
 *
 * The walsenders keep in shared memory how far the standbys that count, by
 * priority or by quorum, have flushed: it is by this number that they let
 * commits go.  We look at it and do not queue: a worker has others to look
 * after, and whoever queues with SyncRepWaitForLSN() cannot be told to do so.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "miscadmin.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "storage/latch.h"
#include "storage/lwlock.h"

#include "compat.h"
#include "log/log.h"
#include "log/reader.h"
#include "base/wait_event.h"

/* How soon, at most, whoever waits for a standby looks again. */
#define PSYNC_STANDBY_LOOK_MS	100

/*
 * Flush WAL up to here, and return where that is: whatever the snapshot just
 * taken sees has its commit record before this point.
 */
XLogRecPtr
psync_log_flush_wal(void)
{
	XLogRecPtr	upto = GetXLogInsertRecPtr();
	uint32		in_page = upto % XLOG_BLCKSZ;

	/*
	 * At a page boundary the insert position lies behind the next page's
	 * header, which no record has written yet.  Only the first page of a
	 * segment has a long header: as far into any other page, a record ends.
	 */
	if (XLogSegmentOffset(upto, wal_segment_size) == SizeOfXLogLongPHD ||
		in_page == SizeOfXLogShortPHD)
		upto -= in_page;
	XLogFlush(upto);
	return upto;
}

/*
 * Have the synchronous standbys flushed WAL up to there?  Yes, if there are to
 * be none.
 */
static bool
standbys_have(XLogRecPtr upto)
{
	bool		have;

	if (max_wal_senders == 0)
		return true;
	LWLockAcquire(SyncRepLock, LW_SHARED);
	have = !psync_sync_standbys_defined() ||
		upto <= WalSndCtl->lsn[SYNC_REP_WAIT_FLUSH];
	LWLockRelease(SyncRepLock);
	return have;
}

/*
 * May the window that is open be handed out?  Once true it stays so; while it
 * is not, the window is kept as it is and asked for again.  A new one would end
 * later, and the standbys, always a little behind, might never have it.
 */
bool
psync_reader_durable(PsyncReader *reader)
{
	Assert(reader->upto != NULL);

	reader->durable = reader->durable || standbys_have(reader->flushed_upto);
	return reader->durable;
}

/*
 * How long to wait before looking again, after having waited for so long: a
 * round trip takes a fraction of a millisecond, the repair of a standby hours.
 */
long
psync_standby_next_look(long waited_ms)
{
	return Min(Max(waited_ms, 1), PSYNC_STANDBY_LOOK_MS);
}

/*
 * For a session, which may be cancelled: wait until the window may be handed
 * out.
 */
void
psync_reader_await_durable(PsyncReader *reader)
{
	long		waited = 0;

	while (!psync_reader_durable(reader))
	{
		long		ms = psync_standby_next_look(waited);

		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 ms, psync_wait_event(PSYNC_WAIT_STANDBY));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		waited += ms;
	}
}
