/*
 * owner.h
 *		Work on the extension's own tables as their owner.
 */
#ifndef PSYNC_OWNER_H
#define PSYNC_OWNER_H

#include "nodes/pg_list.h"

#include "base/role.h"

/* Where they are. */
#define PSYNC_SCHEMA	"payment_sync"

/*
 * How long work on these tables waits for a lock, in ms; 0: as the session is
 * set.  A worker sets it, for it has other syncs to look after.
 */
extern int	psync_owner_lock_timeout;

extern bool psync_extension_present(void);
extern void psync_owner_become(PsyncRole *save);

/*
 * Run one statement as the owner; returns how many rows it processed.  SPI
 * stays connected, with the rows in SPI_tuptable, until SPI_finish().
 */
extern uint64 psync_owner_execute(const char *command, int nargs, Oid *types,
								  Datum *values, const char *nulls);

/*
 * The names that a statement of ours returns in its first column.  It has one
 * parameter, unless type is InvalidOid.
 */
extern List *psync_owner_names(const char *command, Oid type, Datum value);

#endif							/* PSYNC_OWNER_H */
