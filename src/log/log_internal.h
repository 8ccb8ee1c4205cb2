/*
 * log_internal.h
 *		Shared by the files of this folder only.
 */
#ifndef PSYNC_LOG_INTERNAL_H
#define PSYNC_LOG_INTERNAL_H

#include "access/htup_details.h"
#include "nodes/pg_list.h"

#include "log/log.h"

#define PSYNC_LOG_NATTS			6

/* The columns of a log tuple that are always there; see log.h. */
typedef struct PsyncLogTuple
{
	uint64		xid;
	int64		position;
	TimestampTz at;
	int32		changes;
} PsyncLogTuple;

#define PSYNC_LOG_TUPLE(tuple)	((const PsyncLogTuple *) GETSTRUCT(tuple))

extern void psync_append_init(void);
extern void psync_append_shmem_request(void);
extern void psync_append_shmem_startup(void);
extern void psync_rotate_init(void);
extern Oid	psync_log_current(void);

/* keep.c */
extern bool psync_keep_close_gate(void);
extern List *psync_keep_positions(void);

#endif							/* PSYNC_LOG_INTERNAL_H */
