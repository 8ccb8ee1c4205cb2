/*
 * apply_pipeline.c
 *		Applying changes one by one, without waiting between them.
 *
 * Prepared statements go down libpq's pipeline; a small window takes one
 * round trip as a whole:
 *
 *		BEGIN, a statement per change, the position, COMMIT, sync
 *
 * If a statement fails, the target skips the rest up to the sync, COMMIT
 * included, and stays in the failed transaction.  What was sent is remembered
 * as a ticket each, so that an error finds its change.
 *
 * Statements are prepared in the pipeline too, right before their first use.
 * The target keeps them when the transaction is rolled back, but has not got
 * them if the pipeline failed before; so they count as prepared once their
 * result has come.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"
#include "transport/postgres/statement.h"

/* Wait for results after this many changes, so that queues stay short. */
#define PSYNC_PG_SLICE_CHANGES	1000

typedef enum TicketKind
{
	TICKET_ENTRY,				/* (part of) a change */
	TICKET_PREPARE,				/* for the next change */
	TICKET_POSITION_PREPARE,
	TICKET_POSITION,
	TICKET_CONTROL
} TicketKind;

/* What a result that is still to come will be about. */
typedef struct Ticket
{
	TicketKind	kind;
	int			entry;			/* index; of a PREPARE: it was for this one */
	PsyncPgStatement statement; /* ENTRY, PREPARE */
	bool		commit;			/* CONTROL: this is COMMIT */
} Ticket;

/* One call of psync_pg_pipeline_run(). */
typedef struct PipelineRun
{
	PsyncPgSession *session;
	const PsyncPgGroup *group;
	Ticket	   *tickets;		/* one per command sent since the last sync */
	int			ntickets;
	int			tickets_size;	/* allocated */
	PsyncPgField *image;		/* of the change at hand */
	PsyncPgField *part;
} PipelineRun;

/*
 * Note what was just sent.  The result is valid until the next call.
 */
static Ticket *
add_ticket(PipelineRun *run, TicketKind kind, int entry)
{
	Ticket	   *ticket;

	if (run->ntickets == run->tickets_size)
	{
		run->tickets_size *= 2;
		run->tickets = repalloc(run->tickets, run->tickets_size * sizeof(Ticket));
	}
	ticket = &run->tickets[run->ntickets++];
	ticket->kind = kind;
	ticket->entry = entry;
	ticket->statement = PSYNC_PG_UPSERT;
	ticket->commit = false;
	return ticket;
}

/* ---------------------------------------------------------------- sending */

/*
 * A command without parameters.
 */
static void
send_command(PipelineRun *run, const char *sql, bool commit)
{
	if (!PQsendQueryParams(run->session->conn, sql, 0, NULL, NULL, NULL, NULL, 0))
		psync_pg_lost(run->session);
	add_ticket(run, TICKET_CONTROL, -1)->commit = commit;
}

/*
 * The transaction, and what is set for it.
 */
static void
send_begin(PipelineRun *run)
{
	send_command(run, run->session->begin, false);
	if (run->session->local_settings != NULL)
		send_command(run, run->session->local_settings, false);
}

/*
 * A map's statement for a session that keeps nothing for us; made once.
 */
static const char *
unprepared(PsyncPgSession *session, PsyncPgMap *map, PsyncPgStatement statement)
{
	if (map->sql[statement] == NULL)
		map->sql[statement] = MemoryContextStrdup(session->context,
												  psync_pg_statement(map, statement));
	return map->sql[statement];
}

/*
 * The map's parameters are set: run the statement, prepared if need be.  libpq
 * copies the parameters, so they may be set anew at once.
 */
static void
send_statement(PipelineRun *run, PsyncPgMap *map, PsyncPgStatement statement,
			   int nparams, int entry)
{
	PGconn	   *conn = run->session->conn;
	char		name[64];

	Assert(statement >= 0 && statement < PSYNC_PG_STATEMENTS);
	if (run->session->pooled)
	{
		if (!PQsendQueryParams(conn, unprepared(run->session, map, statement), nparams,
							   map->types, map->values, map->lengths, map->formats, 0))
			psync_pg_lost(run->session);
		add_ticket(run, TICKET_ENTRY, entry)->statement = statement;
		return;
	}
	snprintf(name, sizeof(name), "psync_%u_%d", map->id, statement);
	if ((map->prepared & (1 << statement)) == 0)
	{
		if (!PQsendPrepare(conn, name, psync_pg_statement(map, statement), nparams,
						   map->types))
			psync_pg_lost(run->session);
		add_ticket(run, TICKET_PREPARE, entry)->statement = statement;
		map->prepared |= 1 << statement;
	}
	if (!PQsendQueryPrepared(conn, name, nparams, map->values, map->lengths,
							 map->formats, 0))
		psync_pg_lost(run->session);
	add_ticket(run, TICKET_ENTRY, entry)->statement = statement;
}

/*
 * An update that changes the key, as two statements: make room, then move the
 * row.  Both have the same parameters.
 */
static void
send_move(PipelineRun *run, PsyncPgMap *map, int n)
{
	int			nparams = psync_pg_put_image(map, run->image);

	nparams = psync_pg_put_key(map, nparams, run->part);
	send_statement(run, map, PSYNC_PG_CLEAR, nparams, n);
	if (map->identity)
		send_statement(run, map, PSYNC_PG_IDENTITY, nparams, n);
	send_statement(run, map, PSYNC_PG_MOVE, nparams, n);
}

/*
 * A row with an identity column, which may be there with another value of it.
 */
static void
send_identity(PipelineRun *run, PsyncPgMap *map, int n)
{
	int			nparams = psync_pg_put_image(map, run->image);

	nparams = psync_pg_put_key(map, nparams, run->image);
	send_statement(run, map, PSYNC_PG_IDENTITY, nparams, n);
}

/*
 * See that a change has had its effect.  Keys that are equal without having the
 * same bytes cannot be told from each other.
 */
static void
send_checks(PipelineRun *run, const PsyncPgEntry *entry, int n)
{
	PsyncPgMap *map = entry->map;

	if (entry->op != PSYNC_DELETE)
		send_statement(run, map, PSYNC_PG_CHECK_ROW, psync_pg_put_image(map, run->image), n);
	if (entry->op == PSYNC_DELETE || (entry->key_changed && !map->key_ambiguous))
		send_statement(run, map, PSYNC_PG_CHECK_GONE, psync_pg_put_key(map, 0, run->part), n);
}

/*
 * One change, as one statement or several.
 */
static void
send_change(PipelineRun *run, int n)
{
	const PsyncPgEntry *entry = &run->group->entries[n];
	PsyncPgMap *map = entry->map;

	psync_pg_entry_fields(run->group, entry,
						  entry->op != PSYNC_DELETE ? run->image : NULL,
						  entry->part_size > 0 ? run->part : NULL);
	if (entry->op == PSYNC_DELETE)
		send_statement(run, map, PSYNC_PG_DELETE,
					   psync_pg_put_key(map, 0, run->part), n);
	else if (entry->key_changed)
		send_move(run, map, n);
	else
	{
		if (map->identity_beside_key)
			send_identity(run, map, n);
		send_statement(run, map,
					   entry->op == PSYNC_UPDATE ? PSYNC_PG_UPDATE : PSYNC_PG_UPSERT,
					   psync_pg_put_image(map, run->image), n);
	}
	if (map->table->hooked)
		send_checks(run, entry, n);
}

/*
 * TRUNCATEs that follow each other go as one, as they came from one command
 * perhaps: tables that reference each other can only be truncated together.
 * Returns the number of entries done.
 */
static int
send_truncate(PipelineRun *run, const int *order, int from, int upto)
{
	StringInfoData sql;
	int			n = 0;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "TRUNCATE ");
	while (from + n < upto)
	{
		int			i = order ? order[from + n] : from + n;
		const PsyncPgTable *table = run->group->entries[i].table;

		if (run->group->entries[i].op != PSYNC_TRUNCATE)
			break;
		appendStringInfo(&sql, "%s%s%s", n > 0 ? ", " : "",
						 psync_pg_only(table), table->name);
		n++;
	}
	if (!PQsendQueryParams(run->session->conn, sql.data, 0, NULL, NULL, NULL, NULL, 0))
		psync_pg_lost(run->session);
	add_ticket(run, TICKET_ENTRY, order ? order[from] : from);
	return n;
}

/*
 * Entries from "from" up to but not "upto", in the given order.
 */
static void
send_slice(PipelineRun *run, const int *order, int from, int upto)
{
	for (int i = from; i < upto;)
	{
		int			n = order ? order[i] : i;

		Assert(n >= 0 && n < run->group->nentries);
		if (run->group->entries[n].op == PSYNC_TRUNCATE)
			i += send_truncate(run, order, i, upto);
		else
		{
			send_change(run, n);
			i++;
		}
	}
}

/*
 * The last statement before COMMIT, so that its row is locked no longer than
 * that.
 */
static void
send_position(PipelineRun *run, const char *position)
{
	if (psync_pg_position_prepare(run->session))
		add_ticket(run, TICKET_POSITION_PREPARE, -1);
	psync_pg_position_send(run->session, position);
	add_ticket(run, TICKET_POSITION, -1);
}

/* -------------------------------------------------------------- receiving */

/*
 * The error, and whose it is.
 */
static void
note_failure(const PsyncPgGroup *group, const Ticket *ticket, PGresult *result,
			 PsyncPgFailure *failure)
{
	failure->entry = ticket->entry;
	switch (ticket->kind)
	{
		case TICKET_ENTRY:
		case TICKET_PREPARE:
			failure->what = PSYNC_PG_WHAT_ENTRY;
			break;
		case TICKET_POSITION_PREPARE:
		case TICKET_POSITION:
			failure->what = PSYNC_PG_WHAT_POSITION;
			break;
		case TICKET_CONTROL:
			failure->what = PSYNC_PG_WHAT_CONTROL;
			break;
	}
	psync_pg_error_take(&failure->error, result);
	if (ticket->kind == TICKET_ENTRY && ticket->statement >= PSYNC_PG_IDENTITY)
		psync_pg_error_of_check(&failure->error, group->entries[ticket->entry].map,
								ticket->statement == PSYNC_PG_IDENTITY);
}

/* A statement that the target did not get to is not prepared. */
static void
forget_prepared(PipelineRun *run, const Ticket *ticket)
{
	if (ticket->kind == TICKET_PREPARE)
		run->group->entries[ticket->entry].map->prepared &= ~(1 << ticket->statement);
}

/*
 * COMMIT of a transaction that has failed succeeds as ROLLBACK.  It cannot
 * come to that here, as the pipeline skips the rest after a failure; if it
 * did, changes would be lost.
 */
static void
check_committed(PsyncPgSession *session, PGresult *result)
{
	if (strcmp(PQcmdStatus(result), "COMMIT") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("transaction was not committed at server \"%s\"",
						session->target->server_name)));
}

/*
 * One ticket's result; false if it failed.  After the first failure the target
 * skips what follows, and libpq says so for each.
 */
static bool
receive(PipelineRun *run, const Ticket *ticket, bool failed, PsyncPgFailure *failure)
{
	PsyncPgSession *session = run->session;
	PGresult   *result = psync_pg_get_result(session);
	ExecStatusType status = PQresultStatus(result);
	bool		ok = status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK;

	if (result == NULL || PQstatus(session->conn) == CONNECTION_BAD)
		psync_pg_lost(session);
	if (failed ? status != PGRES_PIPELINE_ABORTED : !ok && status != PGRES_FATAL_ERROR)
		psync_pg_unexpected(session, psprintf("It answered a change with %s.",
											  PQresStatus(status)));
	if (ok && ticket->commit)
		check_committed(session, result);
	if (ok && ticket->kind == TICKET_POSITION_PREPARE)
		psync_pg_position_ready(session);
	if (!ok)
		forget_prepared(run, ticket);
	if (!ok && !failed)
		note_failure(run->group, ticket, result, failure);

	/* each command's results end with NULL */
	if (psync_pg_get_result(session) != NULL)
		psync_pg_unexpected(session, "It answered a change twice.");
	return ok;
}

/*
 * Send all and receive the results of all tickets; false if one failed.  The
 * group waits here; what has been sent is answered to the last command, so
 * that the connection is in order afterwards.
 */
static bool
synchronize(PipelineRun *run, PsyncPgFailure *failure)
{
	bool		failed = false;
	PGresult   *result;

	if (!PQpipelineSync(run->session->conn))
		psync_pg_lost(run->session);
	for (int i = 0; i < run->ntickets; i++)
		failed |= !receive(run, &run->tickets[i], failed, failure);
	Assert(!failed || failure->error.sqlstate != 0);
	run->ntickets = 0;

	result = psync_pg_get_result(run->session);
	if (result == NULL)
		psync_pg_lost(run->session);
	if (PQresultStatus(result) == PGRES_FATAL_ERROR)
	{
		/* an error after the last command's completion */
		psync_pg_error_take(&failure->error, result);
		psync_pg_error_raise(run->session, &failure->error, "could not apply changes");
	}
	if (PQresultStatus(result) != PGRES_PIPELINE_SYNC)
		psync_pg_unexpected(run->session, "It did not confirm the end of the changes.");
	return !failed;
}

/* -------------------------------------------------------------- a whole run */

/*
 * Columns of the widest shape in the group: how many fields a change may have.
 */
static int
widest_shape(const PsyncPgGroup *group)
{
	int			widest = 1;
	ListCell   *lc;

	foreach(lc, group->maps)
		widest = Max(widest, ((PsyncPgMap *) lfirst(lc))->shape->ncolumns);
	return widest;
}

/*
 * Where a slice ends: after so many changes, but not between TRUNCATEs, which
 * go as one.
 */
static int
end_of_slice(const PsyncPgGroup *group, const int *order, int from)
{
	int			end = from + PSYNC_PG_SLICE_CHANGES;

	Assert(end < group->nentries);
	while (end < group->nentries &&
		   group->entries[order ? order[end - 1] : end - 1].op == PSYNC_TRUNCATE &&
		   group->entries[order ? order[end] : end].op == PSYNC_TRUNCATE)
		end++;
	return end;
}

/*
 * All of the group, a slice at a time, so that neither side's queue of unread
 * answers grows without limit: a target that cannot send its answers stops
 * reading.
 */
static bool
run_slices(PipelineRun *run, const int *order, int flags, const char *position,
		   PsyncPgFailure *failure)
{
	int			nentries = run->group->nentries;
	int			from = 0;

	if (flags & PSYNC_PG_BEGIN)
		send_begin(run);
	if (flags & PSYNC_PG_DURABLE)
		send_command(run, "SET LOCAL synchronous_commit TO on", false);
	while (nentries - from > PSYNC_PG_SLICE_CHANGES)
	{
		int			end = end_of_slice(run->group, order, from);

		send_slice(run, order, from, end);
		if (!synchronize(run, failure))
			return false;
		from = end;
	}
	send_slice(run, order, from, nentries);
	if (flags & PSYNC_PG_COMMIT)
	{
		send_position(run, position);
		send_command(run, "COMMIT", true);
	}
	return synchronize(run, failure);
}

/*
 * Apply the group's changes in the given order (NULL: as they came), within a
 * transaction begun or committed here as flags say; position is recorded if it
 * is committed.  False if something failed: the transaction then has failed
 * too.  Memory comes from the session's scratch context.
 */
bool
psync_pg_pipeline_run(PsyncPgSession *session, const PsyncPgGroup *group,
					  const int *order, int flags, const char *position,
					  PsyncPgFailure *failure)
{
	MemoryContext old = MemoryContextSwitchTo(session->scratch);
	PipelineRun run = {0};
	int			width = widest_shape(group);
	bool		ok;

	Assert(((flags & PSYNC_PG_COMMIT) != 0) == (position != NULL));
	Assert(session->run == NULL);

	run.session = session;
	run.group = group;
	run.tickets_size = Min(group->nentries, PSYNC_PG_SLICE_CHANGES) * 2 + 16;
	run.tickets = palloc(run.tickets_size * sizeof(Ticket));
	run.image = palloc(width * sizeof(PsyncPgField));
	run.part = palloc(width * sizeof(PsyncPgField));

	if (!PQenterPipelineMode(session->conn))
		psync_pg_lost(session);
	ok = run_slices(&run, order, flags, position, failure);
	if (!PQexitPipelineMode(session->conn))
		psync_pg_lost(session);
	MemoryContextSwitchTo(old);
	return ok;
}
