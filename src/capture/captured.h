/*
 * captured.h
 *		Which tables are captured: by what columns and key, by which triggers.
 */
#ifndef PSYNC_CAPTURED_H
#define PSYNC_CAPTURED_H

#include "utils/array.h"
#include "utils/rel.h"

#include "base/owner.h"

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
extern const char *psync_table_name(Oid relid); /* in messages; also if it does
												 * not exist */
extern void psync_check_table_owner(Oid relid);
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

/* functions.c */
extern List *psync_find_key(Relation rel, List *names, Oid without);

/* make_trigger.c */
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

#endif							/* PSYNC_CAPTURED_H */
