/*
 * admin.h
 *		Shared by the files that define captures and syncs, and react to DDL.
 */
#ifndef PSYNC_ADMIN_H
#define PSYNC_ADMIN_H

#include "utils/array.h"
#include "utils/rel.h"

#include "sync/sync.h"

#define PSYNC_ROW_TRIGGER		"payment_sync_capture"
#define PSYNC_TRUNCATE_TRIGGER	"payment_sync_capture_truncate"

/* capture_admin.c */
extern bool psync_is_captured(Oid relid);
extern List *psync_find_key(Relation rel, List *names);
/* DDL of our own, as the caller; the event triggers let it pass. */
extern int	psync_own_ddl;
extern void psync_run_ddl(const char *format,...) pg_attribute_printf(1, 2);
extern char *psync_qualified_name(Oid relid);
extern bool psync_trigger_exists(Oid relid, const char *name);
extern void psync_create_truncate_trigger(Oid relid);
extern void psync_drop_trigger(Oid relid, const char *trigger);
extern List *psync_name_list(ArrayType *array);
extern Datum psync_name_array(List *names);

/* sync_admin.c: deliveries and workers must look at the definitions again */
extern void psync_definition_changed(void);

#endif							/* PSYNC_ADMIN_H */
