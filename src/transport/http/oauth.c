/*
 * oauth.c
 *		Tokens by OAuth 2 client credentials (RFC 6749, 4.4).
 *
 * A token is fetched when the first message wants one, kept for all targets
 * of the process with the same credentials, renewed before it expires, and
 * fetched anew after a 401.  Messages that find none wait in the session's
 * list "waiting"; if the fetch fails they all get its outcome.
 *
 * Tokens lie in memory that is wiped when they are replaced (P9).
 */
#include "postgres.h"

#include <openssl/sha.h>

#include "common/base64.h"
#include "utils/memutils.h"

#include "transport/http/http_transport.h"

/* Where the answer does not say how long the token lives: seconds. */
#define PSYNC_HTTP_TOKEN_LIFE			3600

/* A token is renewed so many seconds, or this part of its life, earlier. */
#define PSYNC_HTTP_TOKEN_AHEAD_MAX		60
#define PSYNC_HTTP_TOKEN_AHEAD_PART		10

typedef struct Token
{
	unsigned char credentials[SHA256_DIGEST_LENGTH];	/* digest of what identifies it */
	char	   *text;			/* NULL: there is none */
	uint64		serial;			/* which of this process's fetches it is of */
	int64		renew_at;		/* psync_http_clock() */
	int64		expires_at;
} Token;

/* Of this process, in TopMemoryContext. */
static List *tokens = NIL;

/* Wipe before it is freed: what is freed may end up in a core file. */
static void
forget_text(Token *token)
{
	if (token->text == NULL)
		return;
	explicit_bzero(token->text, strlen(token->text));
	pfree(token->text);
	token->text = NULL;
}

/*
 * What identifies a token: its digest, so that a secret that is no longer in use
 * does not stay in memory.
 */
static void
digest_credentials(const PsyncHttpOauth *oauth, unsigned char *digest)
{
	const char *const parts[] = {oauth->token.url, oauth->client_id, oauth->client_secret,
	oauth->scope, oauth->audience};
	StringInfoData text;

	initStringInfo(&text);
	for (int i = 0; i < lengthof(parts); i++)
	{
		appendStringInfoChar(&text, parts[i] != NULL ? '+' : '-');
		if (parts[i] != NULL)
			appendBinaryStringInfo(&text, parts[i], strlen(parts[i]) + 1);
	}
	SHA256((unsigned char *) text.data, text.len, digest);
	explicit_bzero(text.data, text.len);
	pfree(text.data);
}

/* Nobody's any more, or of no use: credentials change, the process stays. */
static void
drop_old_tokens(void)
{
	ListCell   *lc;

	foreach(lc, tokens)
	{
		Token	   *token = lfirst(lc);

		if (token->text != NULL && token->expires_at > psync_http_clock())
			continue;
		forget_text(token);
		pfree(token);
		tokens = foreach_delete_current(tokens, lc);
	}
}

/* The place of the token for these credentials, made if need be. */
static Token *
find_token(const PsyncHttpOauth *oauth)
{
	unsigned char credentials[SHA256_DIGEST_LENGTH];
	MemoryContext old;
	Token	   *token;
	ListCell   *lc;

	digest_credentials(oauth, credentials);
	foreach(lc, tokens)
	{
		token = lfirst(lc);
		if (memcmp(token->credentials, credentials, sizeof(credentials)) == 0)
			return token;
	}
	drop_old_tokens();
	old = MemoryContextSwitchTo(TopMemoryContext);
	token = palloc0(sizeof(Token));
	memcpy(token->credentials, credentials, sizeof(credentials));
	tokens = lappend(tokens, token);
	MemoryContextSwitchTo(old);
	return token;
}

/* The token to send with, or NULL if one must be fetched first. */
const char *
psync_http_oauth_token(PsyncHttpSession *session, uint64 *serial)
{
	Token	   *token = find_token(session->settings->oauth);

	*serial = token->serial;
	return token->text != NULL && token->expires_at > psync_http_clock() ?
		token->text : NULL;
}

/*
 * The target did not accept it, whatever its expiry says.  Of many requests in
 * flight with one token all are refused, one after the other: those that come
 * late must not take away the new token, which may even make the old ones
 * invalid once more.
 */
void
psync_http_oauth_forget(PsyncHttpSession *session, uint64 serial)
{
	Token	   *token = find_token(session->settings->oauth);

	if (serial == token->serial)
		forget_text(token);
}

/* Whatever there is: the next request fetches one. */
void
psync_http_oauth_forget_all(PsyncHttpSession *session)
{
	Assert(session->settings->oauth != NULL);
	forget_text(find_token(session->settings->oauth));
}

/* -------------------------------------------------------------- fetching */

/* A form's field; the percent encoding is a stricter one than forms need. */
static void
append_parameter(StringInfo body, const char *name, const char *value)
{
	if (value != NULL)
		appendStringInfo(body, "%s%s=%s", body->len > 0 ? "&" : "", name,
						 psync_http_percent_encode(value));
}

/* Id and secret are encoded before they are joined: RFC 6749, 2.3.1. */
static void
add_basic(PsyncHttpRequest *request, const PsyncHttpOauth *oauth)
{
	char	   *pair = psprintf("%s:%s", psync_http_percent_encode(oauth->client_id),
								psync_http_percent_encode(oauth->client_secret));
	int			room = pg_b64_enc_len(strlen(pair));
	char	   *value = palloc0(strlen("Basic ") + room + 1);

	strcpy(value, "Basic ");
	if (pg_b64_encode((void *) pair, strlen(pair), value + strlen("Basic "), room) < 0)
		elog(ERROR, "could not encode credentials");
	psync_http_request_add_header(request, "Authorization", value, true);
}

/*
 * A form, as RFC 6749 demands; the answer is JSON. The request is not signed
 * and bears none of the target's headers.
 */
static PsyncHttpRequest *
token_request(const PsyncHttpOauth *oauth)
{
	PsyncHttpRequest *request = palloc0(sizeof(PsyncHttpRequest));
	StringInfoData body;

	request->nheaders_max = 3;
	request->headers = palloc(request->nheaders_max * sizeof(PsyncHttpHeader));
	initStringInfo(&body);
	append_parameter(&body, "grant_type", "client_credentials");
	append_parameter(&body, "scope", oauth->scope);
	append_parameter(&body, "audience", oauth->audience);
	if (oauth->in_body)
	{
		append_parameter(&body, "client_id", oauth->client_id);
		append_parameter(&body, "client_secret", oauth->client_secret);
	}
	else
		add_basic(request, oauth);
	psync_http_request_add_header(request, "Content-Type",
								  "application/x-www-form-urlencoded", false);
	psync_http_request_add_header(request, "Accept", "application/json", false);
	request->route = &oauth->token;
	request->url = oauth->token.url;
	request->with_body = true;
	request->body = body.data;
	request->size = body.len;
	return request;
}

/* Fetch a token if messages wait for one, or the one at hand gets old. */
void
psync_http_oauth_step(PsyncHttpSession *session)
{
	Token	   *token = find_token(session->settings->oauth);
	PsyncHttpTransfer *transfer;
	MemoryContext old;
	bool		wanted = token->text == NULL || token->expires_at <= psync_http_clock() ?
		!dlist_is_empty(&session->waiting) :
		token->renew_at <= psync_http_clock() && session->nbusy > 0;

	if (!wanted || session->token_underway)
		return;
	transfer = psync_http_transfer_get(session, PSYNC_HTTP_FOR_TOKEN);
	Assert(transfer != NULL);
	old = MemoryContextSwitchTo(transfer->context);
	transfer->request = token_request(session->settings->oauth);
	MemoryContextSwitchTo(old);
	session->token_underway = true;
	psync_http_start(transfer);
}

/*
 * Renewed a while before it ends, so that no request need wait; the while is
 * a part of its life where that is short.
 */
static void
store_token(Token *token, const char *text, int64 life)
{
	static uint64 fetches = 0;
	int64		ahead = Min(PSYNC_HTTP_TOKEN_AHEAD_MAX, life / PSYNC_HTTP_TOKEN_AHEAD_PART);

	Assert(life > 0);
	forget_text(token);
	token->serial = ++fetches;
	token->text = MemoryContextStrdup(TopMemoryContext, text);
	token->expires_at = psync_http_clock() + life * USECS_PER_SEC;
	token->renew_at = token->expires_at - ahead * USECS_PER_SEC;
}

/* Token and life from the answer; false if it has no token. */
static bool
read_token(PsyncHttpSession *session, const PsyncHttpAnswer *answer)
{
	PsyncHttpJson root,
				value;
	char	   *text;
	int64		life = PSYNC_HTTP_TOKEN_LIFE;

	if (!psync_http_json_parse(answer->body, answer->body_size, &root) ||
		!psync_http_json_member(root, "access_token", &value) || *value.at != '"')
		return false;
	text = psync_http_json_string(value);
	/* it becomes part of a header */
	for (const unsigned char *c = (unsigned char *) text; *c; c++)
	{
		if (*c <= ' ' || *c >= 0x7f)
			return false;
	}
	if (text[0] == '\0')
		return false;
	if (psync_http_json_member(root, "expires_in", &value))
		life = strtoll(psync_http_json_string(value), NULL, 10);
	if (life <= 0 || life > 365 * (int64) SECS_PER_DAY)
		life = PSYNC_HTTP_TOKEN_LIFE;
	psync_http_settings_token_secret(session->settings, text);
	store_token(find_token(session->settings->oauth), text, life);
	explicit_bzero(text, strlen(text));
	return true;
}

/*
 * A fetch has ended.  False with the outcome for those that wait, if there is
 * no token; what the token's endpoint refuses is about the target.
 */
bool
psync_http_oauth_ended(PsyncHttpTransfer *transfer, PsyncOutcome *outcome)
{
	PsyncHttpSession *session = transfer->session;
	const char *origin = transfer->request->route->origin;
	bool		found;

	Assert(transfer->purpose == PSYNC_HTTP_FOR_TOKEN && session->token_underway);
	session->token_underway = false;
	psync_http_outcome(transfer, outcome);
	found = outcome->kind == PSYNC_OUTCOME_DELIVERED &&
		read_token(session, &transfer->answer);
	/* the answer holds a token, so nothing is shown of it */
	if (transfer->answer.body != NULL)
		explicit_bzero(transfer->answer.body, transfer->answer.body_size);
	if (found)
		return true;
	if (outcome->kind == PSYNC_OUTCOME_DELIVERED)
		outcome->excerpt = NULL;
	if (outcome->kind != PSYNC_OUTCOME_RETRY && outcome->kind != PSYNC_OUTCOME_AGAIN)
		outcome->kind = PSYNC_OUTCOME_TARGET;
	if (outcome->reason == NULL)
		outcome->reason = psprintf("the answer of %s has no token", origin);
	else
		outcome->reason = psprintf("could not get a token: %s", outcome->reason);
	outcome->sqlerrcode = outcome->kind == PSYNC_OUTCOME_TARGET ?
		ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION : outcome->sqlerrcode;
	return false;
}
