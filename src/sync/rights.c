/*
 * rights.c
 *		Who may do what.  There are no roles of our own: a table's owner decides
 *		about the table, a server's USAGE about the target, a sync's owner about
 *		the sync.
 */
#include "postgres.h"

#include "catalog/objectaddress.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_type.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "base/closest.h"
#include "compat.h"
#include "sync/admin.h"
#include "transport/payment_sync_transport.h"

/* The name that looks most like one that does not exist, or NULL. */
static const char *
closest_of(List *names, const char *wanted)
{
	PsyncClosest closest;
	ListCell   *lc;

	psync_closest_begin(&closest, wanted);
	foreach(lc, names)
		psync_closest_offer(&closest, lfirst(lc));
	return closest.name;
}

/*
 * An error unless the server exists and the caller may use it.  Names of
 * servers are public, as all of the catalogs; so they may be suggested.
 */
void
psync_check_server_usage(const char *name)
{
	ForeignServer *server = GetForeignServerByName(name, true);
	AclResult	result;

	Assert(name != NULL);

	if (server == NULL)
	{
		const char *closest =
			closest_of(psync_owner_names("SELECT srvname FROM pg_foreign_server"
										 " ORDER BY srvname", InvalidOid, (Datum) 0),
					   name);

		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("server \"%s\" does not exist", name),
				 closest ? errhint("Perhaps you meant the server \"%s\".", closest) :
				 errhint("Make one with CREATE SERVER … FOREIGN DATA WRAPPER payment_sync_postgres.")));
	}

	result = psync_server_aclcheck(server->serverid, GetUserId(), ACL_USAGE);
	if (result != ACLCHECK_OK)
		aclcheck_error(result, OBJECT_FOREIGN_SERVER, name);
}

/*
 * An error unless the caller has the rights of the sync's owner.
 */
void
psync_check_sync_owner(const PsyncSync *sync)
{
	Assert(OidIsValid(sync->owner));

	if (!has_privs_of_role(GetUserId(), sync->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of sync \"%s\"", sync->name)));
}

/*
 * Is the table one of the sync's?
 */
bool
psync_sync_has_table(const PsyncSync *sync, Oid relid)
{
	ListCell   *lc;

	foreach(lc, sync->tables)
	{
		if (((PsyncTable *) lfirst(lc))->relid == relid)
			return true;
	}
	return false;
}

/* A table was named that the sync does not have. */
void
psync_refuse_table_of_sync(const PsyncSync *sync, Oid relid)
{
	List	   *names = NIL;
	ListCell   *lc;

	Assert(!psync_sync_has_table(sync, relid));
	foreach(lc, sync->tables)
		names = lappend(names, unconstify(char *, ((PsyncTable *) lfirst(lc))->source_name));
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("sync \"%s\" has no table \"%s\"", sync->name,
					psync_table_name(relid)),
			 names != NIL ?
			 errdetail("Its tables are: %s.", psync_name_list_text(names)) : 0,
			 errhint("Add a table with payment_sync.alter_sync(name, add_tables => …).")));
	pg_unreachable();
}

/* Names of syncs are suggested to those only who may see them. */
static void
refuse_unknown_sync(const char *name)
{
	List	   *names =
		psync_owner_names("SELECT name FROM payment_sync.sync"
						  " WHERE pg_has_role($1, owner::oid, 'USAGE')"
						  " OR pg_has_role($1, 'pg_monitor', 'USAGE')"
						  " ORDER BY name", OIDOID, ObjectIdGetDatum(GetUserId()));
	const char *closest = closest_of(names, name);

	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("sync \"%s\" does not exist", name),
			 closest ? errhint("Perhaps you meant the sync \"%s\".", closest) :
			 errhint("View payment_sync.syncs lists the syncs that you may see.")));
}

/*
 * The sync of this name, which must exist and be the caller's.  In the current
 * memory context.
 */
PsyncSync *
psync_sync_get_own(const char *name)
{
	PsyncSync  *sync = psync_sync_load_by_name(name);

	if (sync == NULL)
		refuse_unknown_sync(name);
	psync_check_sync_owner(sync);
	return sync;
}
