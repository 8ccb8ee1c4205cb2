/*
 * statement.h
 *		Pieces of which statement.c and set_statement.c make SQL.
 */
#ifndef PSYNC_POSTGRES_STATEMENT_H
#define PSYNC_POSTGRES_STATEMENT_H

#include "transport/postgres/postgres_transport.h"

/* Around a query: an error if it has a row. */
#define PSYNC_PG_ERROR_IF_EXISTS	"SELECT 1 OPERATOR(pg_catalog./) CASE WHEN EXISTS ("
#define PSYNC_PG_ERROR_END			") THEN 0 ELSE 1 END"

/* Where new values come from. */
typedef enum PsyncPgSetFrom
{
	PSYNC_PG_FROM_PARAMS, PSYNC_PG_FROM_EXCLUDED, PSYNC_PG_FROM_TEMP
} PsyncPgSetFrom;

/*
 * "ONLY ", where there are children that it keeps from being reached.
 */
static inline const char *
psync_pg_only(const PsyncPgTable *table)
{
	return table->children ? "ONLY " : "";
}

extern const PsyncPgMapColumn *psync_pg_key_column(const PsyncPgMap *map, int k);
extern void psync_pg_add_column_names(StringInfo sql, const PsyncPgMap *map);
extern int	psync_pg_add_extra_columns(StringInfo sql, const PsyncPgMap *map,
									   const char *alias);
extern int	psync_pg_add_assignments(StringInfo sql, const PsyncPgMap *map,
									 PsyncPgSetFrom from, bool with_keys);
extern void psync_pg_add_insert_head(StringInfo sql, const PsyncPgMap *map);
extern void psync_pg_add_arbiter(StringInfo sql, const PsyncPgMap *map);
extern bool psync_pg_add_on_conflict_update(StringInfo sql, const PsyncPgMap *map);
extern void psync_pg_add_identity_differs(StringInfo sql, const PsyncPgMap *map,
										  bool temp);
extern void psync_pg_add_written(StringInfo sql, const PsyncPgMap *map, bool temp);

#endif							/* PSYNC_POSTGRES_STATEMENT_H */
