/*
 * attempt.h
 *		Doing what may fail, and going on.
 */
#ifndef PSYNC_ATTEMPT_H
#define PSYNC_ATTEMPT_H

#include "utils/elog.h"

/* What is tried; in the caller's memory context. */
typedef void (*PsyncAttempt) (void *arg);

extern ErrorData *psync_attempt(PsyncAttempt work, void *arg, bool *late);

#endif							/* PSYNC_ATTEMPT_H */
