/*
 * admin.h
 *		Shared by the files that define captures and syncs, and react to DDL.
 */
#ifndef PSYNC_ADMIN_H
#define PSYNC_ADMIN_H

#include "utils/array.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"

#include "sync/sync.h"

/* As made; owners may rename them. */
#define PSYNC_ROW_TRIGGER		"payment_sync_capture"
#define PSYNC_TRUNCATE_TRIGGER	"payment_sync_capture_truncate"

#define PSYNC_ROW_FUNCTION		"capture_change"
#define PSYNC_TRUNCATE_FUNCTION "capture_truncate"

/* A capture trigger of a table. */
typedef struct PsyncTrigger
{
	Oid			oid;
	char		enabled;		/* TRIGGER_FIRES_… */
	int			count;			/* of triggers that call the same function */
	bool		incomplete;		/* one of them is not as ours are made */
	char		name[NAMEDATALEN];
} PsyncTrigger;

/* captured.c */
extern bool psync_is_captured(Oid relid);
extern void psync_captured_read(Oid relid, List **columns, List **key);
extern void psync_captured_write(Oid relid, List *columns, List *key,
								 const char *old_values);
extern void psync_captured_changed(Oid relid);
extern List *psync_captured_list(void);
extern List *psync_name_list(ArrayType *array);
extern Datum psync_name_array(List *names);
extern char *psync_name_list_text(List *names);
extern bool psync_name_list_has(List *names, const char *name);

/* capture_admin.c */
extern List *psync_find_key(Relation rel, List *names, Oid without);

/* capture_trigger.c */
extern char *psync_qualified_name(Oid relid);
extern bool psync_trigger_find(Oid relid, const char *function,
							   PsyncTrigger *trigger);
extern void psync_triggers_check(Oid relid);
extern void psync_triggers_clear(Oid relid);
extern void psync_trigger_enable(Oid relid, const PsyncTrigger *trigger);
extern void psync_truncate_trigger_create(Oid relid);
extern void psync_triggers_create(Oid relid);
extern void psync_triggers_drop(Oid relid);

/* partition.c */
extern Oid	psync_captured_root(Oid relid);
extern void psync_partition_check(Oid relid, Oid root);
extern void psync_partition_added(Oid relid, Oid root, bool attached);
extern void psync_partition_removed(Oid relid);
extern bool psync_captured_has_rows(Oid relid);
extern void psync_partition_warn(const char *name, const char *what);

/* ddl.c */
extern bool psync_ddl_concerns_us(FunctionCallInfo fcinfo);
extern void psync_definition_check(Oid relid, Oid without);

/* sync_admin.c: deliveries and workers must look at the definitions again */
extern void psync_definition_changed(void);
extern void psync_refuse_mirror(const char *server);

/*
 * owner.c: the names that a statement of ours returns in its first column.
 * It has one parameter, unless type is InvalidOid.
 */
extern List *psync_owner_names(const char *command, Oid type, Datum value);

/* result.c */
extern Tuplestorestate *psync_result_begin(FunctionCallInfo fcinfo, TupleDesc *desc);
extern void psync_result_put_spi(Tuplestorestate *store, TupleDesc desc);

/* state.c */
extern void psync_sync_set_reason(const char *name, const char *reason);

/* log_limit.c */
extern int64 psync_log_held(const PsyncReadHint *hint);

#endif							/* PSYNC_ADMIN_H */
