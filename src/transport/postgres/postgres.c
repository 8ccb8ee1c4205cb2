/*
 * postgres.c
 *		The postgres transport: another PostgreSQL database as target.
 *
 * Exactly once (P5): the position is committed with the changes, under a
 * condition on the position before (position.c).  Where a crash may fall:
 *
 *	before COMMIT arrives		the target rolls back, the window is sent again
 *	after, before the answer	the position read on the next open says that the
 *								window is done
 *
 * Any error ends the session, so that no state of it can be wrong afterwards;
 * the core opens a new one after its back-off.
 *
 *	postgres.c			callbacks				connection.c	connecting
 *	settings.c			the remote session		answer.c		remote answers
 *	position.c			the position table		error.c			remote errors
 *	target_table.c		facts of a table		column_map.c	columns by name
 *	statement.c			SQL						image.c			row images
 *	convert.c			values of other types
 *	group.c				changes in memory		collapse.c		last per key
 *	apply.c				windows, strategies		apply_pipeline.c	one by one
 *	apply_set.c			many at once			apply_batch.c	chunks
 *	read.c				for reconciliation
 *	options.c			options (part of the core)
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/memutils.h"

#include "compat.h"
#include "transport/postgres/postgres_transport.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT const PsyncTransport *payment_sync_transport_init(const PsyncServices *services);

const PsyncServices *psync_pg_services = NULL;

/*
 * The session of an open target.
 */
static PsyncPgSession *
get_session(PsyncTarget *target)
{
	Assert(target->private_data != NULL);
	return target->private_data;
}

/*
 * Connect.  The session is hung on the target before anything can fail, so
 * that close() finds what there is of it.
 */
static void
pg_open(PsyncTarget *target)
{
	MemoryContext context = AllocSetContextCreate(target->context,
												  "payment_sync postgres session",
												  ALLOCSET_DEFAULT_SIZES);
	PsyncPgSession *session = MemoryContextAllocZero(context, sizeof(PsyncPgSession));

	Assert(target->private_data == NULL);
	session->target = target;
	session->context = context;
	session->scratch = AllocSetContextCreate(context, "payment_sync postgres scratch",
											 ALLOCSET_DEFAULT_SIZES);
	session->converting = AllocSetContextCreate(context, "payment_sync postgres conversion",
												ALLOCSET_DEFAULT_SIZES);
	psync_pg_apply_init(session);

	/* from here on close() has something to close */
	target->private_data = session;
	psync_pg_connect(session);
}

/*
 * In the current memory context, as the contract says.
 */
static char *
pg_read_position(PsyncTarget *target)
{
	char	   *position = psync_pg_position_read(get_session(target));

	return position != NULL ? pstrdup(position) : NULL;
}

/*
 * Closes the connection, whatever is under way there: the target rolls back.
 */
static void
pg_close(PsyncTarget *target)
{
	PsyncPgSession *session = target->private_data;

	/* open() may have failed early */
	if (session == NULL)
		return;
	target->private_data = NULL;
	psync_pg_disconnect(session);
	MemoryContextDelete(session->context);
}

/*
 * Before the session is used: targets and firewalls close connections that are
 * quiet for long, which is no failure.  A new one is as good if the target has
 * the position that it had.  If not, the core must know.
 */
static void
ensure_session(PsyncTarget *target)
{
	PsyncPgSession *session = get_session(target);
	char	   *before = NULL;
	char	   *now;

	Assert(!session->in_transaction && !session->applying);
	Assert(session->growing->nentries == 0);

	if (psync_pg_is_alive(session))
		return;
	if (session->position != NULL)
		before = MemoryContextStrdup(target->context, session->position);
	pg_close(target);
	pg_open(target);
	now = psync_pg_position_read(get_session(target));
	if ((before == NULL) != (now == NULL) ||
		(before != NULL && strcmp(before, now) != 0))
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("lost connection to server \"%s\"", target->server_name),
				 errdetail("The target has another position now.")));
	if (before != NULL)
		pfree(before);
}

/* Nothing is sent before there is something to send. */
static void
pg_begin_window(PsyncTarget *target, const PsyncWindowInfo *info)
{
	ensure_session(target);
}

/*
 * Into the growing group; may send it, and wait for the one before.
 */
static void
pg_change(PsyncTarget *target, const PsyncChange *change)
{
	psync_pg_apply_change(get_session(target), change);
}

/*
 * A chunk comes behind the window's changes, in the same transaction.
 */
static void
pg_begin_chunk(PsyncTarget *target, const PsyncChunk *chunk)
{
	psync_pg_chunk_begin(get_session(target), chunk);
}

/*
 * The image is copied.
 */
static void
pg_chunk_row(PsyncTarget *target, const char *image, uint32 size)
{
	psync_pg_chunk_row(get_session(target), image, size);
}

/*
 * Rows that are to go are gone when this returns; those that came may still be
 * on their way.
 */
static bool
pg_end_chunk(PsyncTarget *target, const PsyncChunk *chunk)
{
	return psync_pg_chunk_end(get_session(target), chunk);
}

/*
 * Returns when the target has confirmed, or raises.
 */
static void
pg_commit_window(PsyncTarget *target, const char *position)
{
	psync_pg_apply_commit(get_session(target), position);
}

/*
 * Between windows, about once a second.
 */
static void
pg_flush(PsyncTarget *target)
{
	ensure_session(target);
	psync_pg_apply_flush(get_session(target));
}

/* The target rolls back when the connection goes; the core closes it next. */
static bool
pg_abort_window(PsyncTarget *target)
{
	return false;
}

/* In a session of its own, which ends whatever comes of it. */
static void
pg_check(PsyncTarget *target, PsyncCheckReport report, void *arg)
{
	PG_TRY();
	{
		psync_pg_check(target, pg_open, report, arg);
	}
	PG_CATCH();
	{
		pg_close(target);
		PG_RE_THROW();
	}
	PG_END_TRY();
	pg_close(target);
}

static const PsyncTransport transport = {
	.magic = PSYNC_TRANSPORT_MAGIC,
	.name = "postgres",
	.open = pg_open,
	.read_position = pg_read_position,
	.begin_window = pg_begin_window,
	.change = pg_change,
	.begin_chunk = pg_begin_chunk,
	.chunk_row = pg_chunk_row,
	.end_chunk = pg_end_chunk,
	.commit_window = pg_commit_window,
	.flush = pg_flush,
	.abort_window = pg_abort_window,
	.close = pg_close,
	.reading = &psync_pg_reading,
	.check = pg_check,
};

/*
 * The entry of the library; the core's services outlive it.
 */
const PsyncTransport *
payment_sync_transport_init(const PsyncServices *services)
{
	Assert(services->magic == PSYNC_TRANSPORT_MAGIC);
	psync_pg_services = services;
	return &transport;
}
