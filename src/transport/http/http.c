/*
 * http.c
 *		The http transport: webhooks and REST.
 *
 * A message becomes a request, an answer an outcome.  Order, retries and what
 * is remembered are the core's; see doc/internals/messages.md.
 *
 *		http.c		callbacks					settings.c	options, parsed
 *		request.c	message -> request			sign.c		signatures
 *		auth.c		credentials					oauth.c		tokens
 *		body.c		compression					address.c	allowed addresses
 *		curl.c		multi, epoll, waiting		easy.c		libcurl's options
 *		outcome.c	answer -> outcome			json.c		looking into answers
 *		check.c		trying a target
 *		options.c	options (part of the core)
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "transport/http/http_transport.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT const PsyncTransport *payment_sync_transport_init(const PsyncServices *services);

const PsyncServices *psync_http_services = NULL;

/* The core's default of max_in_flight. */
#define PSYNC_HTTP_IN_FLIGHT	32

/* Callbacks between open and close have one. */
static PsyncHttpSession *
get_session(PsyncTarget *target)
{
	Assert(target->private_data != NULL);
	return target->private_data;
}

/* --------------------------------------------------------------- session */

/*
 * The session hangs on the target as soon as it exists, so that close()
 * frees it whatever fails here.
 */
PsyncHttpSession *
psync_http_session_create(PsyncTarget *target)
{
	MemoryContext context = AllocSetContextCreate(target->context,
												  "payment_sync http session",
												  ALLOCSET_DEFAULT_SIZES);
	PsyncHttpSession *session = MemoryContextAllocZero(context, sizeof(PsyncHttpSession));
	const char *in_flight = psync_http_services->option(target, "max_in_flight");

	session->target = target;
	session->context = context;
	session->epoll = -1;
	/* from here on close() has something to close */
	Assert(target->private_data == NULL);
	target->private_data = session;

	psync_http_curl_init();
	session->settings = psync_http_settings_create(target);
	session->policy = psync_http_policy();
	psync_http_session_start(session, in_flight != NULL ? atoi(in_flight) :
							 PSYNC_HTTP_IN_FLIGHT);
	return session;
}

/* Must not raise. */
void
psync_http_session_destroy(PsyncHttpSession *session)
{
	session->target->private_data = NULL;
	psync_http_session_end(session);
	if (session->settings != NULL)
		psync_http_settings_free(session->settings);
	MemoryContextDelete(session->context);
}

/* There is no connection to a target, only to its requests. */
static void
http_open(PsyncTarget *target)
{
	(void) psync_http_session_create(target);
}

/* Ends all that is in flight; nothing is settled any more. */
static void
http_close(PsyncTarget *target)
{
	/* open() may have failed early */
	if (target->private_data != NULL)
		psync_http_session_destroy(target->private_data);
}

/* --------------------------------------------------------------- sending */

/*
 * Where only a proxy sees the address, the host must be listed by name, be it
 * the target's or that of the endpoint that gives tokens.  A refused one is
 * done without having been started.
 */
void
psync_http_start(PsyncHttpTransfer *transfer)
{
	PsyncHttpSession *session = transfer->session;
	const char *refused = session->settings->proxy[0] == '\0' ? NULL :
		psync_http_name_refused(session->policy, transfer->request->route->host);

	Assert(!transfer->in_multi);
	if (refused == NULL)
	{
		psync_http_transfer_start(transfer);
		return;
	}
	/* of an attempt before this one, when the token was renewed */
	memset(&transfer->answer, 0, sizeof(PsyncHttpAnswer));
	transfer->answer.refused = refused;
	dlist_push_tail(&session->done, &transfer->node);
}

/*
 * Make a request of the transfer's message and start it; or let it wait for a
 * token; or, if it cannot be sent, let it be done.
 */
void
psync_http_send(PsyncHttpTransfer *transfer)
{
	PsyncHttpSession *session = transfer->session;
	const char *token = NULL;
	TimestampTz now = GetCurrentTimestamp();
	MemoryContext old;

	Assert(transfer->message != NULL);
	psync_http_sign_warn(session->settings, now);
	if (session->settings->oauth != NULL)
	{
		token = psync_http_oauth_token(session, &transfer->token_serial);
		if (token == NULL)
		{
			dlist_push_tail(&session->waiting, &transfer->node);
			return;
		}
	}
	MemoryContextReset(transfer->context);
	old = MemoryContextSwitchTo(transfer->context);
	transfer->request = psync_http_request_create(session->settings, transfer->message,
												  token, now, &transfer->unsendable);
	MemoryContextSwitchTo(old);
	Assert((transfer->request == NULL) == (transfer->unsendable.reason != NULL));
	if (transfer->request == NULL)
		dlist_push_tail(&session->done, &transfer->node);
	else
		psync_http_start(transfer);
}

/*
 * Only an error of ours is raised from here; what the target has to say
 * comes with a later poll().
 */
static bool
http_submit(PsyncTarget *target, const PsyncMessage *message)
{
	PsyncHttpTransfer *transfer = psync_http_transfer_get(get_session(target),
														  PSYNC_HTTP_FOR_MESSAGE);

	Assert(message->id != NULL && message->nevents > 0);
	if (transfer == NULL)
		return false;
	transfer->message = message;
	psync_http_send(transfer);
	return true;
}

/* -------------------------------------------------------------- settling */

/*
 * The time counts from submit(), also for those that waited for a token. The
 * core may free the message within the call.
 */
static void
settle(PsyncHttpTransfer *transfer, PsyncOutcome *outcome)
{
	Assert(transfer->message != NULL);
	outcome->elapsed_us = psync_http_clock() - transfer->started;
	psync_http_services->settle(transfer->session->target,
								transfer->message->handle, outcome);
	psync_http_transfer_release(transfer);
}

/* A token has come, or will not: those that wait go on, or fail with it. */
static int
settle_token(PsyncHttpTransfer *fetched)
{
	PsyncHttpSession *session = fetched->session;
	MemoryContext old = MemoryContextSwitchTo(fetched->context);
	PsyncOutcome outcome;
	bool		found = psync_http_oauth_ended(fetched, &outcome);
	int			n = 0;
	dlist_head	waiting;

	/* send() may put one into the session's list again */
	dlist_init(&waiting);
	while (!dlist_is_empty(&session->waiting))
		dlist_push_tail(&waiting, dlist_pop_head_node(&session->waiting));
	/* none waits for a renewal ahead of time: if it fails, the old one serves */
	while (!dlist_is_empty(&waiting))
	{
		PsyncHttpTransfer *transfer = dlist_container(PsyncHttpTransfer, node,
													  dlist_pop_head_node(&waiting));

		if (found)
			psync_http_send(transfer);
		else
		{
			settle(transfer, &outcome);
			n++;
		}
	}
	MemoryContextSwitchTo(old);
	psync_http_transfer_release(fetched);
	return n;
}

/* Has the target refused the token?  Once per message, try a new one. */
static bool
renew_token(PsyncHttpTransfer *transfer)
{
	if (transfer->session->settings->oauth == NULL || transfer->answer.status != 401 ||
		transfer->token_renewed)
		return false;
	transfer->token_renewed = true;
	psync_http_oauth_forget(transfer->session, transfer->token_serial);
	/* it waits, unless another request has seen to a new token already */
	psync_http_send(transfer);
	return true;
}

/* Tell the core of all that is done; how many messages that were. */
static int
settle_done(PsyncHttpSession *session)
{
	int			n = 0;

	while (!dlist_is_empty(&session->done))
	{
		PsyncHttpTransfer *transfer = dlist_container(PsyncHttpTransfer, node,
													  dlist_pop_head_node(&session->done));
		PsyncOutcome outcome;
		MemoryContext old;

		if (transfer->purpose == PSYNC_HTTP_FOR_TOKEN)
		{
			n += settle_token(transfer);
			continue;
		}
		if (renew_token(transfer))
			continue;
		old = MemoryContextSwitchTo(transfer->context);
		psync_http_outcome(transfer, &outcome);
		MemoryContextSwitchTo(old);
		settle(transfer, &outcome);
		n++;
	}
	return n;
}

/*
 * Each round drives all that can go on without waiting, so the wait comes
 * only when nothing can. A changed list of allowed hosts takes effect with
 * the next round.
 */
static void
http_poll(PsyncTarget *target, long timeout_ms)
{
	PsyncHttpSession *session = get_session(target);
	int64		deadline = psync_http_clock() + Max(timeout_ms, 0) * 1000;

	for (;;)
	{
		int64		left = timeout_ms < 0 ? -1 :
			Max((deadline - psync_http_clock() + 999) / 1000, 0);

		session->policy = psync_http_policy();
		if (session->settings->oauth != NULL)
			psync_http_oauth_step(session);
		psync_http_session_drive(session);
		if (settle_done(session) > 0 || left == 0)
			return;
		/* a token may have set messages free, which have now to be driven */
		if (!psync_http_session_wait(session, (long) left))
			return;
	}
}

/*
 * Finished or waiting for nothing: poll() goes on at once.
 */
static pgsocket
http_watch(PsyncTarget *target, long *timeout_ms)
{
	PsyncHttpSession *session = get_session(target);

	if (!dlist_is_empty(&session->done))
	{
		*timeout_ms = 0;
		return PGINVALID_SOCKET;
	}
	return psync_http_session_watch(session, timeout_ms);
}

/* --------------------------------------------------------------- looking */

/* A token is not fetched for it: it would be masked anyway. */
static char *
http_preview(PsyncTarget *target, const PsyncMessage *message)
{
	PsyncHttpSession *session = get_session(target);
	PsyncHttpUnsendable why;
	PsyncHttpRequest *request;

	request = psync_http_request_create(session->settings, message,
										session->settings->oauth != NULL ? "token" : NULL,
										GetCurrentTimestamp(), &why);
	if (request == NULL)
		ereport(ERROR,
				(errcode(why.sqlerrcode),
				 errmsg("the event cannot be sent"),
				 why.kind == PSYNC_OUTCOME_REFUSED ?
				 errdetail("It is refused because %s.", why.reason) :
				 errdetail("Nothing can be sent because %s.", why.reason)));
	return psync_http_request_show(session->settings, request, message);
}

static const PsyncMessageTransport messages = {
	.submit = http_submit,
	.poll = http_poll,
	.watch = http_watch,
	.preview = http_preview,
	.check = psync_http_check,
};

static const PsyncTransport transport = {
	.magic = PSYNC_TRANSPORT_MAGIC,
	.name = "http",
	.open = http_open,
	.close = http_close,
	.messages = &messages,
};

/* The only symbol that the core looks up. */
const PsyncTransport *
payment_sync_transport_init(const PsyncServices *services)
{
	Assert(services->magic == PSYNC_TRANSPORT_MAGIC);
	psync_http_services = services;
	return &transport;
}
