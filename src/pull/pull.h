/*
 * pull.h
 *		Where a consumer that pulls its changes has got to.
 */
#ifndef PSYNC_PULL_H
#define PSYNC_PULL_H

#include "sync/sync.h"

typedef struct PsyncPull
{
	PsyncSync  *sync;
	PsyncSnapshot *upto;		/* B; NULL: no window is open */
	int64		window;			/* its number */
	uint64		position;		/* of the last change acknowledged in it */
	uint64		xid;
} PsyncPull;

extern PsyncPull *psync_pull_load(PsyncSync *sync, bool lock);
/* Has the consumer acknowledged this change already? */
extern bool psync_pull_acknowledged(const PsyncPull *pull,
									const PsyncChange *change);

#endif							/* PSYNC_PULL_H */
