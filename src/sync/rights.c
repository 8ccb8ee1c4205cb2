/*
 * rights.c
 *		Who may do what.  There are no roles of our own: a table's owner decides
 *		about the table, a server's USAGE about the target, a sync's owner about
 *		the sync.
 */
#include "postgres.h"

#include "catalog/objectaddress.h"
#include "catalog/pg_foreign_server.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "compat.h"
#include "sync/sync.h"

void
psync_check_table_owner(Oid relid)
{
	if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
	if (!psync_owns_table(relid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER,
					   get_relkind_objtype(get_rel_relkind(relid)),
					   get_rel_name(relid));
}

void
psync_check_server_usage(const char *name)
{
	ForeignServer *server = GetForeignServerByName(name, false);
	AclResult	result;

	result = psync_server_aclcheck(server->serverid, GetUserId(), ACL_USAGE);
	if (result != ACLCHECK_OK)
		aclcheck_error(result, OBJECT_FOREIGN_SERVER, name);
}

void
psync_check_sync_owner(const PsyncSync *sync)
{
	if (!has_privs_of_role(GetUserId(), sync->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of sync \"%s\"", sync->name)));
}
