/*
 * registry.c
 *		From a server's name to a loaded transport and a target for it.
 *
 * A library is loaded when a process first delivers through it, and never
 * unloaded.  Naming a library is as good as running it, therefore only the
 * wrapper names one: its owner is a superuser by PostgreSQL's own rule.
 * Servers and user mappings, which others may create, cannot.
 */
#include "postgres.h"

#include "commands/defrem.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "compat.h"
#include "target/registry.h"

/*
 * Servers of postgres_fdw bear libpq's options as ours do, so they can be
 * used as they are; its validator has checked them.
 */
const PsyncWrapper psync_wrappers[] = {
	{"payment_sync_postgres", "payment_sync_postgres", psync_postgres_options},
	{"payment_sync_http", "payment_sync_http", psync_http_options, true},
	{"postgres_fdw", "payment_sync_postgres", NULL},
	{NULL, NULL, NULL}
};

const PsyncServices *psync_services = NULL;

/* ---------------------------------------------------------------- library */

/*
 * The wrapper's own word on it, or NULL.
 */
static char *
wrapper_option(List *options, const char *keyword)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (strcmp(def->defname, keyword) == 0)
			return defGetString(def);
	}
	return NULL;
}

/*
 * The library of a wrapper's servers; an error if it is no transport's
 * wrapper.  In the current memory context.
 */
char *
psync_wrapper_library(Oid fdwid)
{
	ForeignDataWrapper *fdw = GetForeignDataWrapper(fdwid);
	char	   *library = wrapper_option(fdw->options, "library");

	Assert(OidIsValid(fdwid));

	if (library != NULL)
		return library;
	for (const PsyncWrapper *known = psync_wrappers; known->name; known++)
	{
		if (strcmp(known->name, fdw->fdwname) == 0)
			return pstrdup(known->library);
	}
	ereport(ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("foreign-data wrapper \"%s\" has no transport", fdw->fdwname),
			 errdetail("Neither is it one of payment_sync's wrappers, nor does it have the option \"library\"."),
			 errhint("Create the server with a wrapper such as payment_sync_postgres.")));
	return NULL;				/* keep the compiler quiet */
}

/* Which required callback is missing?  NULL if none. */
static const char *
missing_callback(const PsyncTransport *transport)
{
	if (transport->name == NULL)
		return "name";
	if (transport->open == NULL)
		return "open";
	if (transport->close == NULL)
		return "close";
	if (transport->messages != NULL)
	{
		if (transport->messages->submit == NULL)
			return "submit";
		return transport->messages->poll == NULL ? "poll" : NULL;
	}
	if (transport->begin_window == NULL)
		return "begin_window";
	if (transport->change == NULL)
		return "change";
	if (transport->commit_window == NULL)
		return "commit_window";
	if (transport->abort_window == NULL)
		return "abort_window";
	/* chunks: all callbacks or none */
	if (transport->begin_chunk != NULL && transport->chunk_row == NULL)
		return "chunk_row";
	if (transport->begin_chunk != NULL && transport->end_chunk == NULL)
		return "end_chunk";
	return NULL;
}

/*
 * Before anything is called: a library of another version, or one that is
 * incomplete, is refused by name.
 */
static void
check_transport(const PsyncTransport *transport, const char *library)
{
	const char *missing;

	/* the magic comes first: without it no other member can be trusted */
	if (transport == NULL || transport->magic != PSYNC_TRANSPORT_MAGIC)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("transport library \"%s\" does not fit this version of payment_sync",
						library),
				 errdetail("The library has magic number 0x%08X, expected 0x%08X.",
						   transport ? transport->magic : 0, PSYNC_TRANSPORT_MAGIC),
				 errhint("Install the library anew, built for this version.")));

	missing = missing_callback(transport);
	if (missing != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("transport library \"%s\" lacks callback \"%s\"",
						library, missing)));
}

/*
 * Load the library, which the server keeps for the rest of the process, and
 * get its callbacks.  "wrapper" is for the message.
 */
const PsyncTransport *
psync_transport_load(const char *library, const char *wrapper)
{
	PsyncTransportInit init;
	const PsyncTransport *transport;

	Assert(library != NULL);
	Assert(psync_services != NULL &&
		   psync_services->magic == PSYNC_TRANSPORT_MAGIC);

	init = (PsyncTransportInit) load_external_function(library,
													   PSYNC_TRANSPORT_INIT,
													   false, NULL);
	if (init == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("library \"%s\" is not a transport of payment_sync", library),
				 errdetail("Foreign-data wrapper \"%s\" names it, but it lacks the function %s().",
						   wrapper, PSYNC_TRANSPORT_INIT)));
	transport = init(psync_services);
	check_transport(transport, library);
	return transport;
}

/* ------------------------------------------------------------------ takes */

/*
 * Does the wrapper's option say that its targets take messages?  False if it
 * is not there; "given" tells.
 */
static bool
said_to_take_messages(const ForeignDataWrapper *fdw, bool *given)
{
	const char *takes = wrapper_option(fdw->options, "takes");

	*given = takes != NULL;
	if (takes == NULL || strcmp(takes, "windows") == 0)
		return false;
	if (strcmp(takes, "messages") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("invalid value \"%s\" for option \"takes\" of foreign-data wrapper \"%s\"",
						takes, fdw->fdwname),
				 errhint("Valid values are \"messages\" and \"windows\".")));
	return true;
}

/*
 * By the wrapper's word, or by the library's own table.  The core's libraries
 * need not be loaded for that: a session that only defines syncs should not
 * map a network library.
 */
bool
psync_wrapper_takes_messages(Oid fdwid)
{
	ForeignDataWrapper *fdw = GetForeignDataWrapper(fdwid);
	const char *library = psync_wrapper_library(fdwid);
	bool		given;
	bool		messages = said_to_take_messages(fdw, &given);

	if (given)
		return messages;
	for (const PsyncWrapper *known = psync_wrappers; known->name; known++)
	{
		if (strcmp(known->library, library) == 0)
			return known->messages;
	}
	return psync_transport_load(library, fdw->fdwname)->messages != NULL;
}

/* The same of a server; NULL, which stands for none: no. */
bool
psync_server_takes_messages(const char *server)
{
	return server != NULL &&
		psync_wrapper_takes_messages(GetForeignServerByName(server, false)->fdwid);
}

/* A target that takes messages cannot be told what it should not have. */
void
psync_refuse_mirror(const char *server)
{
	if (psync_server_takes_messages(server))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("server \"%s\" takes messages and cannot be a mirror", server),
				 errhint("Leave out the argument \"mirror\": each row is then sent as an event.")));
}

/* The wrapper's word against the library's table, once it is loaded. */
static void
check_takes(const ForeignDataWrapper *fdw, const PsyncTransport *transport)
{
	bool		given;
	bool		messages = said_to_take_messages(fdw, &given);

	if (given && messages != (transport->messages != NULL))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("transport \"%s\" does not take %s", transport->name,
						messages ? "messages" : "windows"),
				 errdetail("Option \"takes\" of foreign-data wrapper \"%s\" says that it does.",
						   fdw->fdwname),
				 errhint("Correct it with ALTER FOREIGN DATA WRAPPER, or drop the option: the library is asked then.")));
}

/* ----------------------------------------------------------------- target */

/*
 * A sync hands out rows by the right of its owner; tables may have got other
 * owners since they joined it.
 */
static void
check_tables(const PsyncSync *sync)
{
	ListCell   *lc;

	foreach(lc, sync->tables)
	{
		PsyncTable *table = lfirst(lc);

		if (!psync_owns_table(table->relid, sync->owner))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("permission denied to deliver table \"%s\"",
							table->source_name),
					 errdetail("User \"%s\", owner of sync \"%s\", does not own the table.",
							   GetUserNameFromId(sync->owner, false), sync->name)));
	}
}

/*
 * Options lists may point into the caller's context; the target's lists all
 * live in its own.
 */
PsyncTarget *
psync_target_create(MemoryContext context, const PsyncSync *sync,
					const char *log_id, const PsyncTransport **transport)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	PsyncTarget *target = palloc0(sizeof(PsyncTarget));
	ForeignServer *server;
	ForeignDataWrapper *fdw;
	UserMapping *mapping;

	Assert(sync->server != NULL && sync->id_text != NULL);
	Assert(log_id != NULL);

	server = GetForeignServerByName(sync->server, false);
	fdw = GetForeignDataWrapper(server->fdwid);
	if (psync_server_aclcheck(server->serverid, sync->owner, ACL_USAGE) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for foreign server %s", server->servername),
				 errdetail("User \"%s\", owner of sync \"%s\", lacks the privilege USAGE.",
						   GetUserNameFromId(sync->owner, false), sync->name)));
	check_tables(sync);
	mapping = GetUserMapping(sync->owner, server->serverid);

	target->sync_name = pstrdup(sync->name);
	target->sync_id = pstrdup(sync->id_text);
	target->log_id = pstrdup(log_id);
	target->server_name = server->servername;
	target->server_options = server->options;
	target->user_options = mapping->options;
	target->owner_is_superuser = superuser_arg(sync->owner);
	target->restart = sync->restart;
	target->tables = sync->tables;
	target->context = context;

	*transport = psync_transport_load(psync_wrapper_library(server->fdwid),
									  fdw->fdwname);
	check_takes(fdw, *transport);
	MemoryContextSwitchTo(old);
	return target;
}
