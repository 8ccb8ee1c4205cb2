/*
 * lock.h
 *		Locks of a process that what users have written cannot give back.
 */
#ifndef PSYNC_LOCK_H
#define PSYNC_LOCK_H

#include "storage/lock.h"

extern bool psync_session_lock(const LOCKTAG *tag, bool wait);
extern void psync_session_unlock(const LOCKTAG *tag);
extern void psync_session_locks_pin(void);

#endif							/* PSYNC_LOCK_H */
