/*
 * registry.h
 *		From a server's name to an opened library: wrappers, their options,
 *		and the targets made of them.
 */
#ifndef PSYNC_REGISTRY_H
#define PSYNC_REGISTRY_H

#include "sync/sync.h"
#include "transport/payment_sync_transport.h"

/*
 * A foreign-data wrapper that the core knows by name.  Others name their
 * library themselves, with the wrapper's option "library".
 */
typedef struct PsyncWrapper
{
	const char *name;
	const char *library;
	const PsyncOption *options; /* NULL: the wrapper has a validator of its
								 * own and options that are not ours */
	bool		messages;		/* its targets take messages, not windows */
} PsyncWrapper;

/* Ends with a NULL name. */
extern const PsyncWrapper psync_wrappers[];

/* Option tables, each beside its transport and ended by a NULL keyword. */
extern const PsyncOption psync_postgres_options[];
extern const PsyncOption psync_http_options[];

/*
 * What the core offers to transports.  It is made of what lies above, so it is
 * set from there when the library is loaded (message/services.c).
 */
extern const PsyncServices *psync_services;

/*
 * Load a transport's library and check that it is one, of this version, with
 * all that is required.  "wrapper" is for messages.
 */
extern const PsyncTransport *psync_transport_load(const char *library,
												  const char *wrapper);

/* The library of a foreign-data wrapper; raises an error if it has none. */
extern char *psync_wrapper_library(Oid fdwid);

/*
 * Do its targets take messages?  As its option "takes" says; of a wrapper that
 * has none and is not the core's, the library is loaded and asked.
 */
extern bool psync_wrapper_takes_messages(Oid fdwid);
extern bool psync_server_takes_messages(const char *server);

/* Raises an error if the server takes messages. */
extern void psync_refuse_mirror(const char *server);

/*
 * The target of a sync, with the options of its server and of its owner's
 * user mapping, allocated in "context"; nothing is opened yet.  Needs a
 * transaction.  Raises an error if there is no such server, mapping or
 * library, or if the owner has lost USAGE on the server.
 */
extern PsyncTarget *psync_target_create(MemoryContext context,
										const PsyncSync *sync,
										const char *log_id,
										const PsyncTransport **transport);

/*
 * Check options (of DefElem) of an object in "catalog" against a table: for
 * validators, which are SQL functions of one line.
 */
extern void psync_options_validate(List *options, Oid catalog,
								   const PsyncOption *table);

/* What no table can express, in transport/http/options.c. */
extern void psync_http_check_options(List *options, Oid catalog);
extern char *psync_http_malformed_host(const char *value);

/* Settings of transports that the core must know; for _PG_init. */
extern void psync_transport_settings_init(void);

#endif							/* PSYNC_REGISTRY_H */
