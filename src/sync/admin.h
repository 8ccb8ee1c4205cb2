/*
 * admin.h
 *		For the files that define syncs and react to DDL.
 */
#ifndef PSYNC_ADMIN_H
#define PSYNC_ADMIN_H

#include "base/function.h"
#include "base/wakeup.h"
#include "capture/captured.h"
#include "sync/sync.h"

/* ddl.c */
extern bool psync_ddl_concerns_us(FunctionCallInfo fcinfo);
extern void psync_definition_check(Oid relid, Oid without);

/* state.c */
extern void psync_sync_set_reason(const char *name, const char *reason);

/* sync.c, state.c: a hint in two columns, or parameters */
extern void psync_hint_read(HeapTuple row, TupleDesc desc, int column,
							PsyncReadHint *hint);
extern void psync_hint_write(Datum *values, char *nulls,
							 const PsyncReadHint *hint);

/* log_limit.c */
extern int64 psync_log_held(const PsyncReadHint *hint);

#endif							/* PSYNC_ADMIN_H */
