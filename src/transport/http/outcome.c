/*
 * outcome.c
 *		From an answer, or the lack of one, to an outcome.
 *
 *		status in success_status, body as wanted	delivered; results per event
 *													are read by items.c
 *		408 423 425 429, 5xx but 501 and 505		retry, as Retry-After says
 *		409, with an idempotency key				retry: still being worked on
 *		401 403 404 407 431							about the target
 *		410											gone
 *		3xx											about the target: redirects are not followed
 *		other 4xx, 501, 505							refused
 *		no answer									retry; a stale connection: again
 *		certificate or address not acceptable		about the target
 *
 * 404 is about the target where its address is fixed; where the address is
 * made of data, it is about the event.
 *
 * All that a target sends is hostile: what is shown of it is capped, valid in
 * the database's encoding, without control characters, and without our
 * secrets, which a target may well repeat.
 */
#include "postgres.h"

#include <time.h>

#include "mb/pg_wchar.h"

#include "transport/http/http_transport.h"

/* So many attempts in a row may be lost with stale connections. */
#define PSYNC_HTTP_STALE_MAX	100

/* Retry-After, at most; the core has a cap of its own. */
#define PSYNC_HTTP_RETRY_AFTER_MAX	INT64CONST(31536000)

/* ------------------------------------------------------------------ text */

/*
 * Overwrite each secret that occurs in the text, which may hold zeros.  Both
 * are UTF-8, so this comes before the text is made one of the database's
 * encoding: of a secret beyond ASCII the rest would remain.
 */
static void
mask_secret(const char *secret, char *text, size_t size)
{
	size_t		length = strlen(secret);
	char	   *at = text;

	while ((at = memmem(at, text + size - at, secret, length)) != NULL)
	{
		memset(at, '*', length);
		at += length;
	}
}

static void
mask_secrets(const PsyncHttpSettings *settings, char *text, size_t size)
{
	ListCell   *lc;

	foreach(lc, settings->secrets)
		mask_secret(lfirst(lc), text, size);
	for (int i = 0; i < lengthof(settings->token_secrets); i++)
	{
		if (settings->token_secrets[i] != NULL)
			mask_secret(settings->token_secrets[i], text, size);
	}
}

/*
 * Bytes that are no text in the database's encoding become "?", control
 * characters blanks.  Texts from the web are UTF-8; in a database of another
 * encoding only their ASCII is kept.
 */
static void
sanitize(char *text, size_t size)
{
	bool		utf8 = GetDatabaseEncoding() == PG_UTF8;
	size_t		i = 0;

	while (i < size)
	{
		unsigned char c = text[i];
		int			length = utf8 ? pg_utf_mblen((unsigned char *) &text[i]) : 1;

		if (c < 0x80)
		{
			text[i++] = c < ' ' || c == 0x7f ? ' ' : c;
			continue;
		}
		if (length > 1 && i + length <= size &&
			pg_utf8_islegal((unsigned char *) &text[i], length))
		{
			i += length;
			continue;
		}
		text[i++] = '?';
	}
}

/* In the current memory context; see the file's head. */
char *
psync_http_excerpt(const PsyncHttpSettings *settings, const char *text, size_t size)
{
	char	   *excerpt;

	Assert(text != NULL || size == 0);

	/*
	 * Secrets are looked for in more than what is shown, so that none is cut
	 * in two by the limit and then not found.
	 */
	size = Min(size, PSYNC_HTTP_EXCERPT_FROM_BYTES);
	excerpt = palloc(size + 1);
	if (size > 0)
		memcpy(excerpt, text, size);
	excerpt[size] = '\0';
	mask_secrets(settings, excerpt, size);
	sanitize(excerpt, size);
	/* blanks in place of control characters may have made a secret */
	mask_secrets(settings, excerpt, size);
	if (size > PSYNC_HTTP_EXCERPT_BYTES_MAX)
	{
		size = GetDatabaseEncoding() == PG_UTF8 ?
			pg_encoding_mbcliplen(PG_UTF8, excerpt, size, PSYNC_HTTP_EXCERPT_BYTES_MAX) :
			PSYNC_HTTP_EXCERPT_BYTES_MAX;
		excerpt[size] = '\0';
	}
	return excerpt;
}

/* ----------------------------------------------------------- Retry-After */

/* Seconds, or a date; in milliseconds from now, -1 if there is none. */
static int64
parse_retry_after(const PsyncHttpAnswer *answer)
{
	const char *text = answer->retry_after;
	int64		seconds;
	char	   *end;

	if (text[0] == '\0')
		return -1;
	errno = 0;
	seconds = strtoll(text, &end, 10);
	if (end == text || *end != '\0')
	{
		time_t		date = curl_getdate(text, NULL);
		/* the target's own clock, if it tells the time */
		time_t		now = answer->date[0] ? curl_getdate(answer->date, NULL) : -1;

		if (date == -1)
			return -1;
		seconds = (int64) date - (int64) (now == -1 ? time(NULL) : now);
	}
	else if (errno != 0)
		return -1;
	return Min(Max(seconds, 0), PSYNC_HTTP_RETRY_AFTER_MAX) * 1000;
}

/* ------------------------------------------------------- acknowledgement */

/* Does the status acknowledge? The list is short. */
static bool
is_success(const PsyncHttpSettings *settings, int status)
{
	Assert(settings->nsuccess > 0);
	for (int i = 0; i < settings->nsuccess; i++)
	{
		if (status >= settings->success[i].low && status <= settings->success[i].high)
			return true;
	}
	return false;
}

/* Is the body the one that acknowledges, white space around it aside? */
static bool
is_expected_body(const PsyncHttpSettings *settings, const PsyncHttpAnswer *answer)
{
	const char *at = answer->body;
	const char *end = at + answer->body_size;
	size_t		length = strlen(settings->success_body);

	while (at < end && strchr(" \t\r\n", *at) != NULL && *at != '\0')
		at++;
	while (end > at && strchr(" \t\r\n", end[-1]) != NULL && end[-1] != '\0')
		end--;
	return (size_t) (end - at) == length &&
		memcmp(at, settings->success_body, length) == 0;
}

/*
 * The status says yes; does the rest of the answer agree? If not, the target
 * may have done the work or not: sent again, with the same id, it can tell.
 */
static void
acknowledge(const PsyncHttpTransfer *transfer, PsyncOutcome *outcome)
{
	const PsyncHttpSettings *settings = transfer->session->settings;
	const PsyncHttpAnswer *answer = &transfer->answer;
	bool		readable = !answer->body_overflow && answer->body != NULL;

	outcome->kind = PSYNC_OUTCOME_DELIVERED;
	outcome->sqlerrcode = 0;
	outcome->reason = NULL;
	if (transfer->purpose == PSYNC_HTTP_FOR_TOKEN)
		return;
	if (settings->success_body != NULL &&
		(!readable || !is_expected_body(settings, answer)))
		outcome->reason = "the answer's body is not the one that acknowledges";
	else if (settings->items_path != NULL &&
			 (!readable || !psync_http_read_items(transfer, outcome)))
		outcome->reason = "the answer does not have the results of the events";
	if (outcome->reason != NULL)
		outcome->sqlerrcode = ERRCODE_FDW_ERROR;
	if (outcome->reason != NULL && outcome->items == NULL)
		outcome->kind = PSYNC_OUTCOME_RETRY;
}

/* ---------------------------------------------------------------- status */

/*
 * nginx answers 400 to a wrong or missing client certificate, and to http at
 * its https port, which is not the event's fault.
 */
static bool
is_about_connection(const PsyncHttpAnswer *answer)
{
	return answer->status == 400 && answer->body != NULL &&
		(strstr(answer->body, "SSL certificate") != NULL ||
		 strstr(answer->body, "HTTPS port") != NULL);
}

/*
 * See the table in the file's head. What is not known is judged by its
 * class, as RFC 9110 wants it.
 */
static PsyncOutcomeKind
kind_of_status(const PsyncHttpTransfer *transfer)
{
	const PsyncHttpSettings *settings = transfer->session->settings;
	int			status = transfer->answer.status;

	switch (status)
	{
		case 408:
		case 423:
		case 425:
		case 429:
			return PSYNC_OUTCOME_RETRY;
		case 409:
			return settings->idempotency_header != NULL ?
				PSYNC_OUTCOME_RETRY : PSYNC_OUTCOME_REFUSED;
		case 401:
		case 403:
		case 407:
		case 431:				/* our headers are too large: most are the same for all */
			return PSYNC_OUTCOME_TARGET;
		case 404:
			return strchr(transfer->request->route->url, '{') != NULL ?
				PSYNC_OUTCOME_REFUSED : PSYNC_OUTCOME_TARGET;
		case 410:
			return PSYNC_OUTCOME_GONE;
		case 501:
		case 505:
			return PSYNC_OUTCOME_REFUSED;
		default:
			if (is_about_connection(&transfer->answer))
				return PSYNC_OUTCOME_TARGET;
			/* a redirect, or an odd answer that is no verdict on the event */
			if (status < 400)
				return PSYNC_OUTCOME_TARGET;
			return status >= 500 ? PSYNC_OUTCOME_RETRY : PSYNC_OUTCOME_REFUSED;
	}
}

/* As near as SQLSTATEs come; the status itself is told besides. */
static int
sqlerrcode_of_status(int status)
{
	if (status == 401 || status == 407)
		return ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION;
	if (status == 403)
		return ERRCODE_INSUFFICIENT_PRIVILEGE;
	return ERRCODE_FDW_ERROR;
}

/* An answer was there, so the connection was sound. */
static void
outcome_of_status(PsyncHttpTransfer *transfer, PsyncOutcome *outcome)
{
	const PsyncHttpAnswer *answer = &transfer->answer;

	transfer->session->stale_in_row = 0;
	outcome->retry_after_ms = parse_retry_after(answer);
	if (is_success(transfer->session->settings, answer->status))
	{
		acknowledge(transfer, outcome);
		return;
	}
	outcome->kind = kind_of_status(transfer);
	outcome->sqlerrcode = sqlerrcode_of_status(answer->status);
	outcome->reason = answer->status >= 300 && answer->status < 400 ?
		psprintf("%s answered with status %d, a redirect, which is not followed",
				 transfer->request->route->origin, answer->status) :
		psprintf("%s answered with status %d",
				 transfer->request->route->origin, answer->status);
}

/* --------------------------------------------------------------- failure */

/*
 * Had the answer come to its end when an HTTP/2 stream failed?  Its length
 * tells.  Without one: a server may reset a stream without error (NO_ERROR),
 * to be spared the rest of the request, only after the whole answer; for any
 * other code libcurl has words of its own.
 */
static bool
is_whole(const PsyncHttpAnswer *answer)
{
	if (answer->code != CURLE_HTTP2 && answer->code != CURLE_HTTP2_STREAM)
		return false;
	if (answer->announced >= 0)
		return answer->body_received == (uint64) answer->announced;
	return answer->status == 204 ||
		(answer->code == CURLE_HTTP2_STREAM &&
		 strcmp(answer->error, curl_easy_strerror(answer->code)) == 0);
}

/*
 * Can the status be trusted although the transfer has failed?  Yes, if it was
 * us who stopped reading; if an HTTP/2 server reset the stream after its whole
 * answer, as it may; and if it is no acknowledgement anyway.
 */
static bool
status_counts(const PsyncHttpTransfer *transfer)
{
	const PsyncHttpAnswer *answer = &transfer->answer;

	if (answer->status < 200 || answer->headers_overflow || answer->refused != NULL)
		return false;
	if (answer->code == CURLE_OK || answer->body_overflow)
		return true;
	return is_whole(answer) ||
		!is_success(transfer->session->settings, answer->status);
}

/*
 * Did the connection, used before, die under the request?  It had been closed
 * by the target meanwhile, or libcurl's HTTP/2 lost it: no fault of anybody's
 * and no reason to slow down, unless it goes on like that.
 */
static bool
is_stale(PsyncHttpTransfer *transfer)
{
	const PsyncHttpAnswer *answer = &transfer->answer;

	if (!answer->reused || answer->status != 0 || answer->refused != NULL)
		return false;
	if (answer->code != CURLE_HTTP2 && answer->code != CURLE_SEND_ERROR &&
		answer->code != CURLE_RECV_ERROR && answer->code != CURLE_HTTP2_STREAM &&
		answer->code != CURLE_GOT_NOTHING)
		return false;
	return transfer->session->stale_in_row++ < PSYNC_HTTP_STALE_MAX;
}

/* Retrying changes nothing about these soon, and no event is to blame. */
static bool
is_certificate_error(CURLcode code)
{
	return code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CERTPROBLEM ||
		code == CURLE_SSL_CACERT_BADFILE || code == CURLE_SSL_ISSUER_ERROR ||
		code == CURLE_SSL_CIPHER || code == CURLE_URL_MALFORMAT ||
		code == CURLE_UNSUPPORTED_PROTOCOL;
}

/*
 * No answer, or none that counts. If the request had been sent, the target
 * may have done the work: the retry bears the same id.
 */
static void
outcome_of_failure(PsyncHttpTransfer *transfer, PsyncOutcome *outcome)
{
	const PsyncHttpAnswer *answer = &transfer->answer;
	const char *origin = transfer->request->route->origin;

	outcome->kind = PSYNC_OUTCOME_RETRY;
	outcome->sqlerrcode = ERRCODE_CONNECTION_FAILURE;
	if (answer->error != NULL)
		outcome->reason = psprintf("no answer from %s: %s", origin,
								   psync_http_excerpt(transfer->session->settings,
													  answer->error, strlen(answer->error)));
	/* refused by name, it was never started and has no words of libcurl's */
	if (answer->refused != NULL)
	{
		outcome->kind = PSYNC_OUTCOME_TARGET;
		outcome->sqlerrcode = ERRCODE_INSUFFICIENT_PRIVILEGE;
		outcome->reason = psprintf("connection to %s is not allowed: %s",
								   origin, answer->refused);
	}
	else if (answer->headers_overflow)
		outcome->reason = psprintf("the headers of the answer from %s are too long", origin);
	else if (is_certificate_error(answer->code))
		outcome->kind = PSYNC_OUTCOME_TARGET;
	else if (answer->code == CURLE_COULDNT_CONNECT || answer->code == CURLE_COULDNT_RESOLVE_HOST)
		outcome->sqlerrcode = ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION;
	else if (is_stale(transfer))
	{
		outcome->kind = PSYNC_OUTCOME_AGAIN;
		transfer->session->fresh_due++;
	}
}

/*
 * In the current memory context, which must live until the core has been
 * told.
 */
void
psync_http_outcome(PsyncHttpTransfer *transfer, PsyncOutcome *outcome)
{
	const PsyncHttpAnswer *answer = &transfer->answer;

	memset(outcome, 0, sizeof(*outcome));
	outcome->retry_after_ms = -1;
	outcome->elapsed_us = psync_http_clock() - transfer->started;
	if (transfer->unsendable.reason != NULL)
	{
		outcome->kind = transfer->unsendable.kind;
		outcome->sqlerrcode = transfer->unsendable.sqlerrcode;
		outcome->reason = transfer->unsendable.reason;
		return;
	}
	Assert(transfer->request != NULL);
	outcome->status = answer->status;
	if (answer->body_size > 0)
		outcome->excerpt = psync_http_excerpt(transfer->session->settings,
											  answer->body, answer->body_size);
	if (status_counts(transfer))
		outcome_of_status(transfer, outcome);
	else
		outcome_of_failure(transfer, outcome);
	Assert((outcome->kind == PSYNC_OUTCOME_DELIVERED && outcome->items == NULL) ==
		   (outcome->reason == NULL));
}
