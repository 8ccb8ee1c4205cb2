/*
 * hold.c
 *		Commands that want a database, or the extension, for themselves.
 *
 * DROP DATABASE, ALTER DATABASE … RENAME or SET TABLESPACE, and CREATE
 * DATABASE for its template, fail while anyone is connected; they do not know
 * that our workers come and go by themselves.  DROP EXTENSION would wait for
 * a worker that is inside a long step.  So before such a command the database
 * is held: no worker is started there, and those that are there are asked to
 * leave.  The hold ends with the transaction, whichever way it ends, and the
 * launcher looks again.
 *
 * The rejected way is to let workers notice: the server has no message for it
 * (only autovacuum is told to go), and gives up after five seconds.
 *
 * Only those who may run the command get as far as a hold; anyone else could
 * stop delivery by asking for what the server refuses.
 */
#include "postgres.h"

#include <signal.h>

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "base/wait_event.h"
#include "base/wakeup.h"
#include "compat.h"
#include "sync/sync.h"
#include "worker/shmem.h"
#include "worker/worker.h"

/*
 * How long a command waits for workers to leave.  They do so within
 * milliseconds unless something outside our hands blocks them; then the
 * command goes on and says itself what is in its way.
 */
#define PSYNC_HOLD_WAIT_MS_MAX	5000

#define PSYNC_EXTENSION_NAME	"payment_sync"

static ProcessUtility_hook_type prev_process_utility_hook = NULL;
static object_access_hook_type prev_object_access_hook = NULL;

/* Databases held by this transaction, in TopMemoryContext. */
static List *held_databases = NIL;

/* ------------------------------------------------------- which, and may he */

/* The database of this name, if the current user owns it. */
static Oid
psync_hold_owned_database(const char *name)
{
	Oid			dboid = get_database_oid(name, true);

	if (OidIsValid(dboid) && !psync_owns_database(dboid, GetUserId()))
		return InvalidOid;
	return dboid;
}

/* As CREATE DATABASE checks it; a role may have the right by itself only. */
static bool
psync_hold_may_create_databases(void)
{
	HeapTuple	tuple;
	bool		result;

	if (superuser())
		return true;

	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	result = HeapTupleIsValid(tuple) &&
		((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	return result;
}

/* The template, if the current user may copy it. */
static Oid
psync_hold_template(const CreatedbStmt *stmt)
{
	const char *name = "template1";
	HeapTuple	tuple;
	Oid			dboid;
	ListCell   *lc;

	foreach(lc, stmt->options)
	{
		DefElem    *option = lfirst_node(DefElem, lc);

		if (strcmp(option->defname, "template") == 0 && option->arg != NULL)
			name = defGetString(option);
	}

	dboid = get_database_oid(name, true);
	if (!OidIsValid(dboid) || !psync_hold_may_create_databases())
		return InvalidOid;
	if (psync_owns_database(dboid, GetUserId()))
		return dboid;

	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(dboid));
	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	if (!((Form_pg_database) GETSTRUCT(tuple))->datistemplate)
		dboid = InvalidOid;
	ReleaseSysCache(tuple);
	return dboid;
}

/* This database, if our extension is among those to be dropped. */
static Oid
psync_hold_extension(const DropStmt *stmt)
{
	ListCell   *lc;

	foreach(lc, stmt->objects)
	{
		Oid			extension;

		if (strcmp(strVal(lfirst(lc)), PSYNC_EXTENSION_NAME) != 0)
			continue;
		extension = get_extension_oid(PSYNC_EXTENSION_NAME, true);
		if (OidIsValid(extension) &&
			psync_owns_extension(extension, GetUserId()))
			return MyDatabaseId;
	}
	return InvalidOid;
}

/* SET TABLESPACE copies the files; no other option minds connections. */
static bool
psync_hold_moves_database(const AlterDatabaseStmt *stmt)
{
	ListCell   *lc;

	foreach(lc, stmt->options)
	{
		if (strcmp(lfirst_node(DefElem, lc)->defname, "tablespace") == 0)
			return true;
	}
	return false;
}

/* The database that the statement wants for itself, or InvalidOid. */
static Oid
psync_hold_target(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_DropdbStmt:
			return psync_hold_owned_database(((DropdbStmt *) stmt)->dbname);

		case T_RenameStmt:
			if (((RenameStmt *) stmt)->renameType == OBJECT_DATABASE)
				return psync_hold_owned_database(((RenameStmt *) stmt)->subname);
			return InvalidOid;

		case T_AlterDatabaseStmt:
			if (psync_hold_moves_database((AlterDatabaseStmt *) stmt))
				return psync_hold_owned_database(((AlterDatabaseStmt *) stmt)->dbname);
			return InvalidOid;

		case T_CreatedbStmt:
			return psync_hold_template((CreatedbStmt *) stmt);

		case T_DropStmt:
			if (((DropStmt *) stmt)->removeType == OBJECT_EXTENSION)
				return psync_hold_extension((DropStmt *) stmt);
			return InvalidOid;

		default:
			return InvalidOid;
	}
}

/* ---------------------------------------------------------- hold, release */

/*
 * Ask the database's workers to leave; false if there are none.  A slot is
 * emptied by its process under the same lock, after it has left the database:
 * so the pid is that of our worker, and an empty slot means that the server
 * sees no connection any more.
 */
static bool
psync_hold_expel(Oid dboid)
{
	bool		any = false;

	Assert(OidIsValid(dboid));
	Assert(list_member_oid(held_databases, dboid));

	LWLockAcquire(psync_control_lock, LW_EXCLUSIVE);
	for (int i = 0; i < psync_max_workers; i++)
	{
		PsyncSharedWorker *slot = &psync_slots[i];

		if (pg_atomic_read_u32(&slot->dboid) != dboid)
			continue;

		/*
		 * One that is still starting finds its slot lost and goes, before it
		 * enters the database.
		 */
		if (slot->pid == 0)
			psync_slot_release(slot, true);
		else
		{
			kill(slot->pid, SIGTERM);
			any = true;
		}
	}
	LWLockRelease(psync_control_lock);
	return any;
}

static bool
psync_hold_occupied(Oid dboid)
{
	int			workers;

	LWLockAcquire(psync_control_lock, LW_SHARED);
	workers = psync_database_workers(dboid);
	LWLockRelease(psync_control_lock);
	return workers > 0;
}

/*
 * Wait for them to be gone.  Interruptible: the command may be cancelled, and
 * the hold then ends with its transaction.
 */
static void
psync_hold_wait(Oid dboid)
{
	uint32		event = psync_wait_event(PSYNC_WAIT_WORKER_EXIT);
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													   PSYNC_HOLD_WAIT_MS_MAX);

	ConditionVariablePrepareToSleep(&psync_control->gone);
	while (psync_hold_occupied(dboid))
	{
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
														   deadline);

		if (left <= 0)
			break;
		ConditionVariableTimedSleep(&psync_control->gone, left, event);
	}
	ConditionVariableCancelSleep();
}

/* Keep workers out of the database until the transaction ends. */
static void
psync_hold_database(Oid dboid)
{
	PsyncSharedDatabase *database;
	MemoryContext caller;

	Assert(IsTransactionState());

	if (list_member_oid(held_databases, dboid))
		return;

	/* Remembered first: nothing may fail between holding and remembering. */
	caller = MemoryContextSwitchTo(TopMemoryContext);
	held_databases = lappend_oid(held_databases, dboid);
	MemoryContextSwitchTo(caller);

	LWLockAcquire(psync_control_lock, LW_EXCLUSIVE);
	database = psync_database_enter(dboid);
	if (database != NULL)
		database->holds++;
	LWLockRelease(psync_control_lock);

	/* Without an entry the database has no worker and will get none. */
	if (database == NULL)
		held_databases = list_delete_oid(held_databases, dboid);
	else if (psync_hold_expel(dboid))
		psync_hold_wait(dboid);
}

/*
 * At the end of the transaction.  The database may be gone now; the launcher
 * looks before it starts a worker.
 */
void
psync_hold_release(void)
{
	ListCell   *lc;

	if (held_databases == NIL)
		return;

	LWLockAcquire(psync_control_lock, LW_EXCLUSIVE);
	foreach(lc, held_databases)
	{
		PsyncSharedDatabase *database = psync_database_find(lfirst_oid(lc));

		/* Held, it was not forgotten. */
		Assert(database != NULL && database->holds > 0);
		database->holds--;

		/* Those that we have sent away did not fail: no delay. */
		database->start_after = 0;
	}
	LWLockRelease(psync_control_lock);

	list_free(held_databases);
	held_databases = NIL;
	psync_wakeup_launcher(PSYNC_LAUNCHER_SCAN);
}

/* ------------------------------------------------------------------- hooks */

static bool
psync_hold_commits_prepared(Node *stmt)
{
	return IsA(stmt, TransactionStmt) &&
		((TransactionStmt *) stmt)->kind == TRANS_STMT_COMMIT_PREPARED;
}

static void
psync_hold_process_utility(PlannedStmt *pstmt, const char *queryString,
						   bool readOnlyTree, ProcessUtilityContext context,
						   ParamListInfo params, QueryEnvironment *queryEnv,
						   DestReceiver *dest, QueryCompletion *qc)
{
	Node	   *stmt = pstmt->utilityStmt;
	Oid			dboid = psync_hold_target(stmt);
	bool		commits_prepared = psync_hold_commits_prepared(stmt);
	bool		present = commits_prepared && psync_extension_present();

	if (OidIsValid(dboid))
		psync_hold_database(dboid);
	if (IsA(stmt, CreatedbStmt) || IsA(stmt, DropdbStmt))
		psync_wakeup_scan();

	if (prev_process_utility_hook)
		prev_process_utility_hook(pstmt, queryString, readOnlyTree, context,
								  params, queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context,
								params, queryEnv, dest, qc);

	/*
	 * The statement may be freed by now.  What the prepared transaction did
	 * is visible, but nobody here knows what it was; where the extension is
	 * not, and was not before, it is nothing that concerns us.
	 */
	if (commits_prepared && (present || psync_extension_present()))
	{
		psync_wakeup_changes();
		psync_wakeup_config();
	}
}

/*
 * However an extension is dropped (DROP OWNED, a cascade), the workers look
 * whether it was ours.
 */
static void
psync_hold_object_access(ObjectAccessType access, Oid classId, Oid objectId,
						 int subId, void *arg)
{
	Assert(psync_shmem_ready());	/* the hook is set with preload only */

	if (prev_object_access_hook)
		prev_object_access_hook(access, classId, objectId, subId, arg);

	if (access == OAT_DROP && classId == ExtensionRelationId)
		psync_wakeup_config();
}

/* With preload only. */
void
psync_hold_init(void)
{
	prev_process_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = psync_hold_process_utility;
	prev_object_access_hook = object_access_hook;
	object_access_hook = psync_hold_object_access;
}
