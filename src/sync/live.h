/*
 * live.h
 *		What targets have confirmed, known to everyone at once.
 *
 * The tables follow within a second; see live.c.
 */
#ifndef PSYNC_LIVE_H
#define PSYNC_LIVE_H

#include "storage/lwlock.h"

#include "sync/sync.h"

/*
 * Of a position no more transactions that it does not see are kept.
 */
#define PSYNC_LIVE_XIDS			48

typedef struct PsyncLiveSnapshot
{
	uint64		xmin;
	uint64		xmax;
	int			nxip;
	uint64		xip[PSYNC_LIVE_XIDS];
} PsyncLiveSnapshot;

/* The figures of one sync. */
typedef struct PsyncLive
{
	int32		generation;		/* as in the sync's state */
	int			pid;			/* of whoever delivers, or was the last to */
	bool		messages;		/* the target has no position of its own */
	bool		standby;		/* what is next is lacking at a synchronous
								 * standby */
	PsyncSyncCounters total;
	TimestampTz delivered_at;	/* 0: not since this delivery began */
	PsyncLiveSnapshot position;
	bool		has_window;		/* up to a place in it, all is settled */
	PsyncLiveSnapshot window;
	uint64		window_position;
	uint64		window_xid;
} PsyncLive;

/* For the layer that has the shared memory. */
extern Size psync_live_size(void);
extern void psync_live_attach(void *memory, LWLock *lock, bool found);

/* No-ops, and false, without shared memory. */
extern void psync_live_publish(const pg_uuid_t *sync, PsyncLive *live);
extern void psync_live_forget(const pg_uuid_t *sync);
extern bool psync_live_read(const pg_uuid_t *sync, int32 generation,
							PsyncLive *live);

extern void psync_live_set_snapshot(PsyncLiveSnapshot *live,
									const PsyncSnapshot *snapshot);
extern PsyncSnapshot *psync_live_get_snapshot(const PsyncLiveSnapshot *live);

#endif							/* PSYNC_LIVE_H */
