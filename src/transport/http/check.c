/*
 * check.c
 *		Trying a target step by step, with a signed ping on a new connection.
 *
 * One request goes all the way; the steps are told by how far it came, with
 * the time that each took.
 */
#include "postgres.h"

#include <time.h>

#include "utils/timestamp.h"

#include "transport/http/http_transport.h"

/* Receivers allow for five minutes; a clock that far off is to be mended. */
#define PSYNC_HTTP_CLOCK_SKEW_MAX	60

typedef struct Check
{
	PsyncCheckReport report;
	void	   *arg;
	PsyncHttpTransfer *transfer;
	PsyncOutcome outcome;
} Check;

/*
 * Tell the core of a step. Details come from us or have been stripped of
 * secrets by outcome.c.
 */
static void
step(Check *check, const char *name, bool ok, const char *detail, int64 elapsed_us)
{
	Assert(name != NULL);
	check->report(check->arg, name, ok, detail, elapsed_us);
}

/*
 * Microseconds from the begin of the request to the end of a phase; 0 if it
 * was never reached, which is how the steps know where it stopped.
 */
static int64
time_of(Check *check, CURLINFO info)
{
	curl_off_t	value = 0;

	(void) curl_easy_getinfo(check->transfer->easy, info, &value);
	return (int64) value;
}

/* ------------------------------------------------------------------ steps */

/*
 * Told only where the secrets end some day.  False if nothing can be signed any more, and so nothing
 * be sent.
 */
static bool
report_signature(Check *check, const PsyncHttpSettings *settings)
{
	bool		ok = settings->sign_end > GetCurrentTimestamp();

	if (settings->sign_end != DT_NOEND)
		step(check, "signature", ok,
			 psprintf(ok ? "the last secret in option \"%s\" expires at %s" :
					  "all secrets in option \"%s\" have expired, the last at %s",
					  settings->sign_end_keyword, timestamptz_to_str(settings->sign_end)), 0);
	return ok;
}

/* libcurl resolves in a thread of its own; its time counts from the begin. */
static bool
report_name(Check *check)
{
	const PsyncHttpAnswer *answer = &check->transfer->answer;
	bool		ok = answer->code != CURLE_COULDNT_RESOLVE_HOST &&
		answer->code != CURLE_COULDNT_RESOLVE_PROXY;

	step(check, "name resolution", ok,
		 ok ? check->transfer->request->route->host : check->outcome.reason,
		 time_of(check, CURLINFO_NAMELOOKUP_TIME_T));
	return ok;
}

/* Both callbacks of easy.c note a refusal at the same place. */
static bool
report_address(Check *check)
{
	const char *refused = check->transfer->answer.refused;

	step(check, "address policy", refused == NULL,
		 refused != NULL ? refused : "allowed", 0);
	return refused == NULL;
}

/* Did it fail after TCP stood?  libcurl then has no time for that, either. */
static bool
is_tls_failure(CURLcode code)
{
	return code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CONNECT_ERROR ||
		code == CURLE_SSL_CERTPROBLEM || code == CURLE_SSL_CIPHER ||
		code == CURLE_SSL_CACERT_BADFILE || code == CURLE_SSL_ISSUER_ERROR;
}

/* Shows the address that was chosen of all that the name has. */
static bool
report_connect(Check *check)
{
	int64		connected = time_of(check, CURLINFO_CONNECT_TIME_T);
	bool		ok = connected > 0 || is_tls_failure(check->transfer->answer.code);
	char	   *address = NULL;
	long		port = 0;

	(void) curl_easy_getinfo(check->transfer->easy, CURLINFO_PRIMARY_IP, &address);
	(void) curl_easy_getinfo(check->transfer->easy, CURLINFO_PRIMARY_PORT, &port);
	step(check, "connection", ok,
		 ok ? psprintf("%s port %ld", address, port) : check->outcome.reason,
		 Max(connected - time_of(check, CURLINFO_NAMELOOKUP_TIME_T), 0));
	return ok;
}

/* The day is enough to see whether a certificate ends soon. */
static char *
format_date(int64 unix_time)
{
	time_t		seconds = unix_time;
	struct tm	broken;
	char		text[32];

	if (gmtime_r(&seconds, &broken) == NULL ||
		strftime(text, sizeof(text), "%Y-%m-%d", &broken) == 0)
		return pstrdup("an unknown date");
	return pstrdup(text);
}

/*
 * Verification is part of the handshake: if it has ended, the certificate
 * was acceptable.
 */
static bool
report_tls(Check *check)
{
	const PsyncHttpAnswer *answer = &check->transfer->answer;
	int64		done = time_of(check, CURLINFO_APPCONNECT_TIME_T);

	if (!check->transfer->request->route->tls)
	{
		step(check, "TLS", true, "not used", 0);
		return true;
	}
	step(check, "TLS", done > 0,
		 done > 0 ? psprintf("%s, certificate valid until %s", answer->tls_version,
							 format_date(answer->tls_expires)) : check->outcome.reason,
		 Max(done - time_of(check, CURLINFO_CONNECT_TIME_T), 0));
	return done > 0;
}

/*
 * Credentials are judged by the status only: whoever says 200 has not
 * refused them.
 */
static void
report_answer(Check *check)
{
	int			status = check->transfer->answer.status;
	bool		refused = status == 401 || status == 403 || status == 407;
	bool		ok = check->outcome.kind == PSYNC_OUTCOME_DELIVERED &&
		check->outcome.items == NULL;	/* results may refuse the event itself */

	if (status != 0)
		step(check, "authentication", !refused,
			 refused ? check->outcome.reason : "not refused", 0);
	step(check, "ping", ok,
		 ok ? psprintf("acknowledged with status %d", status) : check->outcome.reason,
		 time_of(check, CURLINFO_TOTAL_TIME_T));
}

/*
 * Receivers refuse signatures whose time is off by more than five minutes,
 * so a clock that drifts is an outage to come. Nothing is said if the target
 * does not tell the time.
 */
static void
report_clock(Check *check)
{
	time_t		theirs = check->transfer->answer.date[0] != '\0' ?
		curl_getdate(check->transfer->answer.date, NULL) : -1;
	int64		skew;
	int64		distance;

	if (theirs == -1)
		return;
	skew = (int64) time(NULL) - (int64) theirs;
	distance = skew < 0 ? -skew : skew;
	step(check, "clock", distance <= PSYNC_HTTP_CLOCK_SKEW_MAX,
		 psprintf("this server's clock is " INT64_FORMAT " s %s that of the target",
				  distance, skew >= 0 ? "ahead of" : "behind"), 0);
}

/* ---------------------------------------------------------------- running */

/* A token fetched for the ping; false if there is none. */
static bool
take_token(Check *check, PsyncHttpTransfer *fetched)
{
	PsyncHttpSession *session = fetched->session;
	int64		began = fetched->started;
	bool		found = psync_http_oauth_ended(fetched, &check->outcome);

	step(check, "token", found, found ? "received" : check->outcome.reason,
		 psync_http_clock() - began);
	psync_http_transfer_release(fetched);
	if (found && !dlist_is_empty(&session->waiting))
	{
		dlist_delete(&check->transfer->node);
		psync_http_send(check->transfer);
	}
	return found;
}

/* Until the ping's answer is there; false if it was never sent. */
static bool
await_answer(Check *check)
{
	PsyncHttpSession *session = check->transfer->session;

	for (;;)
	{
		session->policy = psync_http_policy();
		if (session->settings->oauth != NULL)
			psync_http_oauth_step(session);
		psync_http_session_drive(session);
		while (!dlist_is_empty(&session->done))
		{
			PsyncHttpTransfer *transfer = dlist_container(PsyncHttpTransfer, node,
														  dlist_pop_head_node(&session->done));

			if (transfer == check->transfer)
				return true;
			if (!take_token(check, transfer))
				return false;
		}
		(void) psync_http_session_wait(session, -1);
	}
}

/*
 * A cached token would hide that none can be fetched any more, so it is
 * forgotten first.
 */
static void
run_check(PsyncHttpSession *session, const PsyncMessage *ping, Check *check)
{
	Assert(ping != NULL);
	check->transfer = psync_http_transfer_get(session, PSYNC_HTTP_FOR_CHECK);
	Assert(check->transfer != NULL);
	check->transfer->message = ping;
	if (session->settings->oauth != NULL)
		psync_http_oauth_forget_all(session);
	psync_http_send(check->transfer);
	if (!await_answer(check))
		return;
	psync_http_outcome(check->transfer, &check->outcome);
	if (check->transfer->unsendable.reason != NULL)
	{
		step(check, "ping", false, check->transfer->unsendable.reason, 0);
		return;
	}
	if (report_name(check) && report_address(check) && report_connect(check) &&
		report_tls(check))
	{
		report_answer(check);
		report_clock(check);
	}
}

/* Apart from the error handling around it, which likes no variables. */
static pg_noinline void
open_and_check(PsyncTarget *target, const PsyncMessage *ping,
			   PsyncCheckReport report, void *arg)
{
	Check		check = {.report = report,.arg = arg};
	PsyncHttpSession *session = psync_http_session_create(target);

	step(&check, "settings", true, session->settings->routes[0].origin, 0);
	if (report_signature(&check, session->settings))
		run_check(session, ping, &check);
}

/*
 * A session of its own, closed in any case; the sync that uses the server
 * goes on meanwhile.
 */
void
psync_http_check(PsyncTarget *target, const PsyncMessage *ping,
				 PsyncCheckReport report, void *arg)
{
	Assert(target->private_data == NULL);
	PG_TRY();
	{
		open_and_check(target, ping, report, arg);
	}
	PG_CATCH();
	{
		if (target->private_data != NULL)
			psync_http_session_destroy(target->private_data);
		PG_RE_THROW();
	}
	PG_END_TRY();
	psync_http_session_destroy(target->private_data);
}
