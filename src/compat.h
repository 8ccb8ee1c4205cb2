/*
 * compat.h
 *		Differences between PostgreSQL 14 and 18.  The only file that looks at
 *		PG_VERSION_NUM.
 */
#ifndef PSYNC_COMPAT_H
#define PSYNC_COMPAT_H

#include "pg_config.h"

#if PG_VERSION_NUM < 140000 || PG_VERSION_NUM >= 190000
#error "payment_sync supports PostgreSQL 14 to 18"
#endif

/* What never returns is marked in front since 18, behind before. */
#if PG_VERSION_NUM < 180000
#define pg_noreturn pg_attribute_noreturn()
#endif

/* ------------------------------------------------- background processes */

#include "storage/proc.h"
#include "utils/wait_event.h"

/* Wait events of one's own came with 17; before, all share one name. */
#if PG_VERSION_NUM >= 170000
#define psync_wait_event_new(name)	WaitEventExtensionNew(name)
#else
#define psync_wait_event_new(name)	((void) (name), (uint32) PG_WAIT_EXTENSION)
#endif

/*
 * Are there to be synchronous standbys?  The caller holds SyncRepLock.  Newer
 * minor releases know that they do not know yet, just after the start.
 */
#include "replication/syncrep.h"
#include "replication/walsender_private.h"
#ifdef SYNC_STANDBY_DEFINED
#define psync_sync_standbys_defined() \
	((WalSndCtl->sync_standbys_status & SYNC_STANDBY_INIT) != 0 ? \
	 (WalSndCtl->sync_standbys_status & SYNC_STANDBY_DEFINED) != 0 : \
	 SyncRepStandbyNames != NULL && SyncRepStandbyNames[0] != '\0')
#else
#define psync_sync_standbys_defined()	(WalSndCtl->sync_standbys_defined)
#endif

/* Sets of events are kept with a resource owner since 17, in a context before. */
#include "storage/latch.h"
#if PG_VERSION_NUM >= 180000
#include "storage/waiteventset.h"
#endif
#if PG_VERSION_NUM >= 170000
#define psync_create_wait_event_set(n)	CreateWaitEventSet(NULL, (n))
#else
#define psync_create_wait_event_set(n)	CreateWaitEventSet(TopMemoryContext, (n))
#endif

/* A process's index into ProcGlobal->allProcs. */
#if PG_VERSION_NUM >= 170000
#define psync_my_proc_number()		((uint32) MyProcNumber)
#else
#define psync_my_proc_number()		((uint32) MyProc->pgprocno)
#endif

/* A random number in [0, 1), good enough for jitter. */
#if PG_VERSION_NUM >= 150000
#include "common/pg_prng.h"
#define psync_random()	pg_prng_double(&pg_global_prng_state)
#else
#define psync_random()	((double) random() / ((double) PG_INT32_MAX + 1))
#endif

/* Shared memory is asked for in a hook since 15, from _PG_init before. */
#if PG_VERSION_NUM >= 150000
#define PSYNC_HAVE_SHMEM_REQUEST_HOOK
#endif

#if PG_VERSION_NUM < 150000
#define MarkGUCPrefixReserved(prefix)	EmitWarningsOnPlaceholders(prefix)
#endif

/* Ownership checks have had one function for all classes since 16. */
#include "utils/acl.h"
#if PG_VERSION_NUM >= 160000
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#define psync_owns_database(oid, user) \
	object_ownercheck(DatabaseRelationId, (oid), (user))
#define psync_owns_extension(oid, user) \
	object_ownercheck(ExtensionRelationId, (oid), (user))
#else
#define psync_owns_database(oid, user)	pg_database_ownercheck((oid), (user))
#define psync_owns_extension(oid, user) pg_extension_ownercheck((oid), (user))
#endif

/* Databases left half-dropped are marked by this connection limit. */
#include "catalog/pg_database.h"
#ifndef DATCONNLIMIT_INVALID_DB
#define DATCONNLIMIT_INVALID_DB		(-2)
#endif

/* Virtual generated columns, never stored, came with 18. */
#if PG_VERSION_NUM >= 180000
#define psync_att_is_virtual(att) \
	((att)->attgenerated == ATTRIBUTE_GENERATED_VIRTUAL)
#else
#define psync_att_is_virtual(att)	((void) (att), false)
#endif

/*
 * Has the column a value in every row?  Since 18 attnotnull is also set where
 * NOT NULL was not validated for the rows that are there.
 */
#if PG_VERSION_NUM >= 180000
#define psync_att_is_not_null(desc, i) \
	(TupleDescCompactAttr((desc), (i))->attnullability == ATTNULLABLE_VALID)
#else
#define psync_att_is_not_null(desc, i)	(TupleDescAttr((desc), (i))->attnotnull)
#endif

/* A missing column may be tolerated since 16; here none is missing. */
#if PG_VERSION_NUM >= 160000
#define psync_attrmap_by_name(in, out) build_attrmap_by_name((in), (out), false)
#else
#define psync_attrmap_by_name(in, out) build_attrmap_by_name((in), (out))
#endif

/* The same for tables, and for the privilege to use a server. */
#include "catalog/pg_class.h"
#include "catalog/pg_foreign_server.h"
#if PG_VERSION_NUM >= 160000
#define psync_owns_table(oid, user) \
	object_ownercheck(RelationRelationId, (oid), (user))
#define psync_server_aclcheck(oid, user, mode) \
	object_aclcheck(ForeignServerRelationId, (oid), (user), (mode))
#else
#define psync_owns_table(oid, user)		pg_class_ownercheck((oid), (user))
#define psync_server_aclcheck(oid, user, mode) \
	pg_foreign_server_aclcheck((oid), (user), (mode))
#endif

/* What a relation's file is called has had another name since 16. */
#include "utils/relcache.h"
#if PG_VERSION_NUM >= 160000
#define psync_new_file(rel) \
	RelationSetNewRelfilenumber((rel), (rel)->rd_rel->relpersistence)
#else
#define psync_new_file(rel) \
	RelationSetNewRelfilenode((rel), (rel)->rd_rel->relpersistence)
#endif

/* A backend's status, by its place in the local copy: renamed in 16. */
#if PG_VERSION_NUM >= 160000
#define psync_local_beentry(i)	pgstat_get_local_beentry_by_index(i)
#else
#define psync_local_beentry(i)	pgstat_fetch_stat_local_beentry(i)
#endif

/* Parsing a.b takes a place for soft errors since 16. */
#include "utils/builtins.h"
#include "utils/regproc.h"
#if PG_VERSION_NUM >= 160000
#define psync_qualified_name_list(name) stringToQualifiedNameList((name), NULL)
#else
#define psync_qualified_name_list(name) stringToQualifiedNameList(name)
#endif

/* Whether a stronger lock will do is asked since 17. */
#include "storage/lock.h"
#if PG_VERSION_NUM >= 170000
#define psync_lock_held_by_me(tag, mode) LockHeldByMe((tag), (mode), false)
#else
#define psync_lock_held_by_me(tag, mode) LockHeldByMe((tag), (mode))
#endif

#endif							/* PSYNC_COMPAT_H */
