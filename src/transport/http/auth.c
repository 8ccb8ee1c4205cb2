/*
 * auth.c
 *		Credentials: what shows the target who sends.
 *
 *		bearer token, basic	a header "Authorization" made once
 *		API key				a header made once, besides
 *		OAuth 2				a header per request, with the token at hand (oauth.c)
 *		AWS signature 4		made by libcurl for each request
 *		client certificate	handed to libcurl from memory, never from a file
 *
 * At most one of those that make the header "Authorization" is used.
 */
#include "postgres.h"

#include <ctype.h>

#include "common/base64.h"

#include "transport/http/http_transport.h"

/* The option, or an error that says which one needs it. */
static const char *
required_option(const PsyncTarget *target, const char *keyword, const char *by)
{
	const char *value = psync_http_option(target, keyword);

	if (value == NULL || value[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
				 errmsg("option \"%s\" of server \"%s\" needs option \"%s\"",
						by, target->server_name, keyword)));
	return value;
}

/* The password is part of the header's value, but a secret by itself, too. */
static void
init_basic(PsyncHttpSettings *settings, const PsyncTarget *target)
{
	const char *password = required_option(target, "password", "user");
	char	   *pair = psprintf("%s:%s", psync_http_option(target, "user"), password);
	int			room = pg_b64_enc_len(strlen(pair));
	char	   *value = palloc0(strlen("Basic ") + room + 1);
	int			n;

	strcpy(value, "Basic ");
	n = pg_b64_encode((void *) pair, strlen(pair), value + strlen("Basic "), room);
	if (n < 0)
		elog(ERROR, "could not encode credentials");
	psync_http_settings_add_secret(settings, value + strlen("Basic "));
	psync_http_settings_add_header(settings, "Authorization", value, true);
	psync_http_settings_add_secret(settings, password);
	explicit_bzero(pair, strlen(pair));
	explicit_bzero(value, strlen(value));
}

/* A token that somebody else renews, by altering the user mapping. */
static void
init_bearer(PsyncHttpSettings *settings, const PsyncTarget *target)
{
	const char *token = psync_http_option(target, "bearer_token");
	char	   *value = psprintf("Bearer %s", token);

	Assert(psync_http_option(target, "bearer_token") != NULL);
	psync_http_settings_add_header(settings, "Authorization", value, true);
	psync_http_settings_add_secret(settings, token);
	explicit_bzero(value, strlen(value));
}

/*
 * The credentials with which tokens are fetched; the tokens themselves are
 * oauth.c's. They are never sent to the target but only to the token's
 * endpoint, which is bound by the same rules on addresses.
 */
static void
init_oauth(PsyncHttpSettings *settings, const PsyncTarget *target)
{
	PsyncHttpOauth *oauth = palloc0(sizeof(PsyncHttpOauth));
	const char *auth = psync_http_option(target, "oauth_auth");

	Assert(settings->oauth == NULL);
	oauth->client_id = pstrdup(psync_http_option(target, "oauth_client_id"));
	oauth->client_secret = pstrdup(required_option(target, "oauth_client_secret",
												   "oauth_client_id"));
	oauth->scope = psync_http_option(target, "oauth_scope");
	oauth->audience = psync_http_option(target, "oauth_audience");
	oauth->in_body = auth != NULL && strcmp(auth, "body") == 0;
	oauth->token.method = "POST";
	oauth->token.url = pstrdup(required_option(target, "oauth_token_url", "oauth_client_id"));
	if (!psync_http_route_parse(&oauth->token))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("invalid option \"%s\" of server \"%s\"",
						"oauth_token_url", target->server_name),
				 errdetail("It is not a URL.")));
	psync_http_settings_add_secret(settings, oauth->client_secret);
	settings->oauth = oauth;
}

/* By name, then value, as AWS sorts the parameters of a query. */
static int
compare_parameters(const ListCell *a, const ListCell *b)
{
	const char *one = lfirst(a);
	const char *other = lfirst(b);
	size_t		one_size = strcspn(one, "=");
	size_t		other_size = strcspn(other, "=");
	int			result = memcmp(one, other, Min(one_size, other_size));

	Assert(one[one_size] == '=' && other[other_size] == '=');
	if (result == 0 && one_size != other_size)
		return one_size < other_size ? -1 : 1;
	return result != 0 ? result : strcmp(one + one_size, other + other_size);
}

/*
 * A parameter in AWS's canonical form: "name=value" with all but unreserved
 * characters percent-encoded, once and in upper case.  Placeholders stay, as
 * they are filled in like that (request.c).
 */
static char *
canonical_parameter(const char *text)
{
	StringInfoData buf;
	bool		has_value = false;

	initStringInfo(&buf);
	for (const char *at = text; *at != '\0'; at++)
	{
		char		one[2] = {*at, '\0'};
		unsigned int code;

		if (*at == '{')
		{
			size_t		size = strcspn(at, "}");

			appendBinaryStringInfo(&buf, at, size);
			at += size - 1;
			continue;
		}
		if (*at == '}' || (*at == '=' && !has_value))
		{
			has_value |= *at == '=';
			appendStringInfoChar(&buf, *at);
			continue;
		}
		if (*at == '%' && isxdigit((unsigned char) at[1]) && isxdigit((unsigned char) at[2]) &&
			sscanf(at + 1, "%2x", &code) == 1)
		{
			one[0] = (char) code;
			at += 2;
		}
		appendStringInfoString(&buf, one[0] == '\0' ? "%00" : psync_http_percent_encode(one));
	}
	if (!has_value)
		appendStringInfoChar(&buf, '=');
	return buf.data;
}

/*
 * The same address with its query in canonical form.  libcurl before 8.4 signs
 * the query as it stands, and AWS would find another signature for any other
 * form; to the service it makes no difference.
 */
static const char *
canonical_url(const char *url)
{
	const char *query = strchr(url, '?');
	List	   *parameters = NIL;
	StringInfoData buf;
	char	   *save = NULL;
	char	   *copy;
	ListCell   *lc;

	Assert(url != NULL);
	if (query == NULL)
		return url;
	copy = pnstrdup(query + 1, strcspn(query + 1, "#"));
	for (char *item = strtok_r(copy, "&", &save); item != NULL; item = strtok_r(NULL, "&", &save))
		parameters = lappend(parameters, canonical_parameter(item));
	list_sort(parameters, compare_parameters);
	initStringInfo(&buf);
	appendBinaryStringInfo(&buf, url, query - url);
	foreach(lc, parameters)
		appendStringInfo(&buf, "%c%s", lc == list_head(parameters) ? '?' : '&', (char *) lfirst(lc));
	return buf.data;
}

/*
 * libcurl before 8.3 signs a header without a value wrongly, so that no
 * request would be believed.
 */
static void
refuse_empty_headers(const PsyncHttpSettings *settings, const PsyncTarget *target)
{
	for (int i = 0; i < settings->nheaders; i++)
	{
		Assert(settings->headers[i].name[0] != '\0');
		if (settings->headers[i].value[0] == '\0')
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
					 errmsg("invalid option \"%s\" of server \"%s\"",
							"headers", target->server_name),
					 errdetail("The header \"%s\" has no value, which AWS signature version 4 cannot sign.",
							   settings->headers[i].name)));
	}
}

/*
 * Handed to libcurl, which signs each request when it is sent. It signs all
 * headers that start with x-amz-, so a session token is an ordinary header.
 */
static void
init_aws(PsyncHttpSettings *settings, const PsyncTarget *target)
{
	const char *token = psync_http_option(target, "aws_session_token");
	const char *secret = required_option(target, "aws_secret_key", "aws_access_key");

	settings->aws_sigv4 = psprintf("aws:amz:%s:%s",
								   required_option(target, "aws_region", "aws_access_key"),
								   required_option(target, "aws_service", "aws_access_key"));
	settings->aws_userpwd = psprintf("%s:%s", psync_http_option(target, "aws_access_key"), secret);
	psync_http_settings_add_secret(settings, secret);
	psync_http_settings_add_secret(settings, settings->aws_userpwd);
	if (token != NULL)
		psync_http_settings_add_header(settings, "X-Amz-Security-Token", token, true);
	refuse_empty_headers(settings, target);
	for (int i = 0; i < PSYNC_HTTP_NROUTES; i++)
		settings->routes[i].url = canonical_url(settings->routes[i].url);
}

/*
 * The validators refuse two kinds in one object; here they can come from
 * two.
 */
void
psync_http_auth_init(PsyncHttpSettings *settings, PsyncTarget *target)
{
	static const char *const schemes[] = {
		"bearer_token", "user", "oauth_client_id", "aws_access_key"
	};
	int			nschemes = 0;

	Assert(settings->context != NULL);
	for (int i = 0; i < lengthof(schemes); i++)
		nschemes += psync_http_option(target, schemes[i]) != NULL;
	if (nschemes > 1)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
				 errmsg("server \"%s\" and its user mapping have more than one kind of credentials",
						target->server_name),
				 errdetail("Each of them makes the header \"Authorization\".")));

	if (psync_http_option(target, "bearer_token") != NULL)
		init_bearer(settings, target);
	if (psync_http_option(target, "user") != NULL)
		init_basic(settings, target);
	if (psync_http_option(target, "oauth_client_id") != NULL)
		init_oauth(settings, target);
	if (psync_http_option(target, "aws_access_key") != NULL)
		init_aws(settings, target);
	if (psync_http_option(target, "api_key") != NULL)
	{
		const char *header = psync_http_option(target, "api_key_header");

		psync_http_settings_add_header(settings, header ? header : "X-API-Key",
									   psync_http_option(target, "api_key"), true);
	}
}
