/*
 * owner.c
 *		Working on the extension's own tables, whoever calls.
 *
 * Users have no privilege on these tables.  The C functions check what the
 * caller may do as the caller, then become the tables' owner for as long as a
 * statement of ours takes, with a search_path that holds nothing a user could
 * have put there.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "base/owner.h"
#include "compat.h"

int			psync_owner_lock_timeout = 0;

/*
 * Is the extension in this database?  The library may be loaded in all of
 * them.
 */
bool
psync_extension_present(void)
{
	return OidIsValid(get_extension_oid("payment_sync", true));
}

/*
 * Whose tables they are: whoever ran CREATE EXTENSION, or was given the tables
 * since.
 */
static Oid
owner_of_tables(void)
{
	Oid			schema = get_namespace_oid(PSYNC_SCHEMA, true);
	Oid			relid = InvalidOid;
	HeapTuple	tuple;
	Oid			owner;

	if (OidIsValid(schema))
		relid = get_relname_relid("sync", schema);
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("extension \"payment_sync\" is not installed in this database"),
				 errhint("Run CREATE EXTENSION payment_sync.")));
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/*
 * Until psync_role_return().  What is run meanwhile is ours.  The time that it
 * waits for locks is limited in workers.  Foreign keys between our tables work
 * whatever the session's session_replication_role is: a sync must not leave rows
 * behind.
 */
void
psync_owner_become(PsyncRole *save)
{
	psync_role_become(save, owner_of_tables(), PSYNC_ROLE_TRUSTED);
	if (SessionReplicationRole != SESSION_REPLICATION_ROLE_ORIGIN)
		(void) set_config_option("session_replication_role", "origin", PGC_SUSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (psync_owner_lock_timeout > 0)
	{
		char		timeout[16];

		snprintf(timeout, sizeof(timeout), "%d", psync_owner_lock_timeout);
		(void) set_config_option("lock_timeout", timeout, PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	}
}

/*
 * Run one statement as the owner and return how many rows it processed.  SPI
 * stays connected: rows are in SPI_tuptable until the caller's SPI_finish(),
 * and what is to outlive that must be copied to another context.
 *
 * Statements are constants of ours; all that comes from users goes in as
 * parameters.  Always a fresh snapshot: read_only is false, so the statement
 * sees what the same function has just written.
 */
uint64
psync_owner_execute(const char *command, int nargs, Oid *types, Datum *values,
					const char *nulls)
{
	PsyncRole	save;
	bool		push = !ActiveSnapshotSet();
	int			ret;

	Assert(command != NULL && (nargs == 0 || (types != NULL && values != NULL)));

	/* a delivering process has no portal whose snapshot SPI could use */
	if (push)
		PushActiveSnapshot(GetTransactionSnapshot());
	psync_owner_become(&save);
	SPI_connect();
	ret = SPI_execute_with_args(command, nargs, types, values, nulls, false, 0);
	if (ret < 0)
		elog(ERROR, "could not execute \"%s\": %s", command,
			 SPI_result_code_string(ret));
	psync_role_return(&save);
	if (push)
		PopActiveSnapshot();
	return SPI_processed;
}

/*
 * owner.h has the contract.
 */
List *
psync_owner_names(const char *command, Oid type, Datum value)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *result = NIL;

	(void) psync_owner_execute(command, OidIsValid(type) ? 1 : 0, &type, &value,
							   NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *name = SPI_getvalue(SPI_tuptable->vals[i],
										SPI_tuptable->tupdesc, 1);
		MemoryContext old = MemoryContextSwitchTo(context);

		Assert(name != NULL);
		result = lappend(result, pstrdup(name));
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	return result;
}
