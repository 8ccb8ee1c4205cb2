/*
 * settings.c
 *		From the options of a target to what requests are made of.
 *
 * Read once, when the target is opened.  The validators have seen each object
 * by itself; what a server and a user mapping bear together is checked here,
 * as is all that would be dangerous if a wrapper had no validator.
 */
#include "postgres.h"

#include "common/string.h"
#include "mb/pg_wchar.h"
#include "nodes/parsenodes.h"
#include "utils/builtins.h"
#include "utils/formatting.h"
#include "utils/memutils.h"

#include "transport/http/http_transport.h"

/* Where the server does not say. */
#define PSYNC_HTTP_CONNECT_TIMEOUT	10
#define PSYNC_HTTP_TIMEOUT			30

/* Codes with which services say that an event may be sent again. */
#define PSYNC_HTTP_ITEMS_RETRY \
	"*throttl*, internal*, *unavailable*, *timeout*, *timedout*, toomanyrequests*, " \
	"slowdown*, *limitexceeded*, requestthrottled*, 408, 409, 423, 425, 429, 500, 502, 503, 504"

/* The oldest libcurl whose HTTP/2 was found to lose no requests. */
#define PSYNC_HTTP_SOUND_HTTP2		0x080e00

/*
 * The user mapping's value goes before the server's.  In UTF-8, as all that a
 * target is sent and all that is looked for in its answers; NULL if there is
 * none.  A copy is in the current memory context.
 */
const char *
psync_http_option(const PsyncTarget *target, const char *keyword)
{
	const char *value = psync_http_services->option(target, keyword);
	int			encoding = GetDatabaseEncoding();

	Assert(keyword != NULL);
	if (value == NULL || encoding == PG_UTF8 || encoding == PG_SQL_ASCII ||
		pg_is_ascii(value))
		return value;
	return pg_server_to_any(value, strlen(value), PG_UTF8);
}

/* With a default; defaults that people ask about are told in options.c. */
static const char *
option_or(const PsyncTarget *target, const char *keyword, const char *otherwise)
{
	const char *value = psync_http_option(target, keyword);

	return value != NULL ? value : otherwise;
}

/* False unless it says otherwise; the validators know that it is a boolean. */
static bool
option_bool(const PsyncTarget *target, const char *keyword)
{
	const char *value = psync_http_option(target, keyword);
	bool		result = false;

	if (value != NULL)
		(void) parse_bool(value, &result);
	return result;
}

/* The value is not shown: it may hold a secret. */
static void
refuse(const PsyncTarget *target, const char *keyword, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
			 errmsg("invalid option \"%s\" of server \"%s\"",
					keyword, target->server_name),
			 errdetail("%s", detail)));
}

/* --------------------------------------------------------------- headers */

/* Nothing that would end a header, or begin another one, gets into one. */
static bool
is_field_value(const char *text)
{
	for (const unsigned char *c = (const unsigned char *) text; *c; c++)
	{
		if ((*c < ' ' && *c != '\t') || *c == 0x7f)
			return false;
	}
	return true;
}

/* Kept to be looked for in what targets send; wiped with the settings. */
void
psync_http_settings_add_secret(PsyncHttpSettings *settings, const char *text)
{
	MemoryContext old;

	/* so short a text would be found where it is not meant */
	if (text == NULL || strlen(text) < 4)
		return;
	old = MemoryContextSwitchTo(settings->context);
	settings->secrets = lappend(settings->secrets, pstrdup(text));
	MemoryContextSwitchTo(old);
}

/*
 * The newest token, and the one before: answers to requests that bore it may
 * still come.  Older ones are wiped.
 */
void
psync_http_settings_token_secret(PsyncHttpSettings *settings, const char *token)
{
	char	  **tokens = settings->token_secrets;

	if (tokens[1] != NULL)
	{
		explicit_bzero(tokens[1], strlen(tokens[1]));
		pfree(tokens[1]);
	}
	tokens[1] = tokens[0];
	tokens[0] = MemoryContextStrdup(settings->context, token);
}

/*
 * For every request of the target. The validators have seen the value; third
 * parties' wrappers need not have one, so it is checked again.
 */
void
psync_http_settings_add_header(PsyncHttpSettings *settings, const char *name,
							   const char *value, bool secret)
{
	PsyncHttpHeader *header;

	Assert(name != NULL && value != NULL);
	if (!is_field_value(name) || !is_field_value(value) || *name == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("header \"%s\" has an invalid value", secret ? "***" : name),
				 errdetail("It contains control characters.")));
	settings->headers = settings->nheaders == 0 ?
		MemoryContextAlloc(settings->context, sizeof(PsyncHttpHeader)) :
		repalloc(settings->headers, (settings->nheaders + 1) * sizeof(PsyncHttpHeader));
	header = &settings->headers[settings->nheaders++];
	header->name = MemoryContextStrdup(settings->context, name);
	header->value = MemoryContextStrdup(settings->context, value);
	header->secret = secret;
	if (secret)
		psync_http_settings_add_secret(settings, value);
}

/* Headers written "Name: value", one a line. */
static void
add_header_lines(PsyncHttpSettings *settings, const PsyncTarget *target,
				 const char *keyword, bool secret)
{
	const char *lines = psync_http_option(target, keyword);
	char	   *copy = lines != NULL ? pstrdup(lines) : NULL;
	char	   *next;

	for (char *line = copy; line != NULL; line = next)
	{
		char	   *colon;
		size_t		size;

		next = strchr(line, '\n');
		if (next != NULL)
			*next++ = '\0';
		size = strlen(line);
		if (size > 0 && line[size - 1] == '\r')
			line[size - 1] = '\0';
		if (*line == '\0')
			continue;
		colon = strchr(line, ':');
		if (colon == NULL)
		{
			refuse(target, keyword, "Each line must be a header, \"Name: value\".");
			pg_unreachable();
		}
		*colon++ = '\0';
		psync_http_settings_add_header(settings, line, colon + strspn(colon, " \t"), secret);
	}
}

/* ---------------------------------------------------------------- routes */

/* Scheme and host of the route's URL, by libcurl's parser. */
bool
psync_http_route_parse(PsyncHttpRoute *route)
{
	CURLU	   *parsed = curl_url();
	char	   *scheme = NULL;
	char	   *host = NULL;
	char	   *port = NULL;

	if (parsed != NULL &&
		curl_url_set(parsed, CURLUPART_URL, route->url, CURLU_PATH_AS_IS) == CURLUE_OK &&
		curl_url_get(parsed, CURLUPART_SCHEME, &scheme, 0) == CURLUE_OK &&
		curl_url_get(parsed, CURLUPART_HOST, &host, 0) == CURLUE_OK)
	{
		/* libcurl leaves the brackets of an IPv6 address and letters' case */
		char	   *bare = pstrdup(host[0] == '[' ? host + 1 : host);

		(void) curl_url_get(parsed, CURLUPART_PORT, &port, 0);
		bare[strcspn(bare, "]")] = '\0';
		route->host = asc_tolower(bare, strlen(bare));
		route->tls = strcmp(scheme, "https") == 0;
		route->origin = psprintf("%s://%s%s%s", scheme, host,
								 port ? ":" : "", port ? port : "");
	}
	curl_free(scheme);
	curl_free(host);
	curl_free(port);
	curl_url_cleanup(parsed);
	return route->host != NULL && route->host[0] != '\0' &&
		strchr(route->host, '{') == NULL && is_field_value(route->url);
}

/* An address or method of one kind of change, else the common one. */
static void
init_route(PsyncHttpSettings *settings, const PsyncTarget *target,
		   PsyncHttpRouteKind kind, const char *url_keyword, const char *method_keyword)
{
	PsyncHttpRoute *route = &settings->routes[kind];

	if (psync_http_option(target, url_keyword) == NULL)
		url_keyword = "url";
	route->url = psync_http_option(target, url_keyword);
	if (route->url == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
				 errmsg("server \"%s\" has no option \"%s\"",
						target->server_name, "url"),
				 errhint("Set it on the server or in the user mapping.")));
	route->url = pstrdup(route->url);
	route->method = pstrdup(option_or(target, method_keyword,
									  option_or(target, "method", "POST")));
	if (!psync_http_route_parse(route))
		refuse(target, url_keyword, "It is not a URL, or its host depends on data.");
}

/* Does the user mapping have the option, rather than the server? */
static bool
is_of_user(const PsyncTarget *target, const char *keyword)
{
	ListCell   *lc;

	foreach(lc, target->user_options)
	{
		if (strcmp(lfirst_node(DefElem, lc)->defname, keyword) == 0)
			return true;
	}
	return false;
}

/* A part of a secret address, as it stands and as a target may decode it. */
static void
add_url_part(PsyncHttpSettings *settings, const char *part, size_t size)
{
	char	   *text = pnstrdup(part, size);
	char	   *decoded;
	int			length;

	psync_http_settings_add_secret(settings, text);
	decoded = curl_easy_unescape(NULL, text, (int) size, &length);
	if (decoded != NULL && strcmp(decoded, text) != 0)
		psync_http_settings_add_secret(settings, decoded);
	curl_free(decoded);
	pfree(text);
}

/*
 * An address in the user mapping is meant to be secret.  A target that says
 * "no such path" repeats a part of it, so each part behind the host is one
 * never to be shown, too; "{…}" stands for something else in each request.
 */
static void
add_url_secrets(PsyncHttpSettings *settings, const char *url)
{
	const char *host = strstr(url, "://");
	const char *path = strchr(host != NULL ? host + 3 : url, '/');

	psync_http_settings_add_secret(settings, url);
	if (path == NULL)
		return;
	add_url_part(settings, path, strlen(path));
	add_url_part(settings, path, strcspn(path, "?#"));
	while (*path != '\0')
	{
		size_t		size = strcspn(path, "/?&=#;{");

		add_url_part(settings, path, size);
		path += size;
		if (*path == '{')
			path += strcspn(path, "}");
		if (*path != '\0')
			path++;
	}
}

static void
init_routes(PsyncHttpSettings *settings, const PsyncTarget *target)
{
	init_route(settings, target, PSYNC_HTTP_INSERT, "insert_url", "insert_method");
	init_route(settings, target, PSYNC_HTTP_UPDATE, "update_url", "update_method");
	init_route(settings, target, PSYNC_HTTP_DELETE, "delete_url", "delete_method");
	settings->url_is_secret = is_of_user(target, "url") ||
		is_of_user(target, "insert_url") || is_of_user(target, "update_url") ||
		is_of_user(target, "delete_url");
	if (settings->url_is_secret)
	{
		for (int i = 0; i < PSYNC_HTTP_NROUTES; i++)
			add_url_secrets(settings, settings->routes[i].url);
	}
}

/* ------------------------------------------------------- acknowledgement */

/* "200-299,409" */
static void
init_success(PsyncHttpSettings *settings, const PsyncTarget *target)
{
	const char *at = option_or(target, "success_status", "200-299");

	settings->success = palloc(sizeof(PsyncHttpRange) * (strlen(at) / 2 + 1));
	for (;;)
	{
		PsyncHttpRange *range = &settings->success[settings->nsuccess];
		char	   *end;

		range->low = range->high = strtol(at, &end, 10);
		if (*(end += strspn(end, " ")) == '-')
			range->high = strtol(end + 1, &end, 10);
		end += strspn(end, " ");
		if (range->low < 200 || range->high < range->low || range->high > 599 ||
			(*end != ',' && *end != '\0'))
			refuse(target, "success_status", "It is not a list of statuses.");
		settings->nsuccess++;
		if (*end == '\0')
			break;
		at = end + 1;
	}
	settings->success_body = psync_http_option(target, "success_body");
	settings->content_type = psync_http_option(target, "content_type");
	settings->items_path = psync_http_option(target, "items_path");
	settings->items_index = psync_http_option(target, "items_index");
	settings->items_success = psync_http_option(target, "items_success");
	settings->items_error = psync_http_option(target, "items_error");
	if (settings->items_error == NULL && settings->items_index == NULL)
		settings->items_error = "error";
	settings->items_code = psync_http_option(target, "items_code");
	settings->items_retry = option_or(target, "items_retry", PSYNC_HTTP_ITEMS_RETRY);
}

/* --------------------------------------------------------------- the rest */

/* The option table cannot know what this build can do. */
static void
init_compression(PsyncHttpSettings *settings, const PsyncTarget *target)
{
	const char *name = option_or(target, "compression", "none");

	settings->compression = strcmp(name, "gzip") == 0 ? PSYNC_HTTP_GZIP :
		strcmp(name, "zstd") == 0 ? PSYNC_HTTP_ZSTD : PSYNC_HTTP_IDENTITY;
	if (settings->compression == PSYNC_HTTP_ZSTD && !psync_http_have_zstd())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("compression with zstd is not supported by this build"),
				 errhint("Install the package libzstd-dev and build anew.")));
}

/* HTTP/2 over TLS is negotiated, so the target may still choose 1.1. */
static void
init_version(PsyncHttpSettings *settings, const PsyncTarget *target)
{
	const char *version = psync_http_option(target, "http_version");
	const curl_version_info_data *info = curl_version_info(CURLVERSION_NOW);

	Assert(target != NULL);
	if (version == NULL)
		version = info->version_num >= PSYNC_HTTP_SOUND_HTTP2 ? "2" : "1.1";
	if (strcmp(version, "1.1") != 0 && (info->features & CURL_VERSION_HTTP2) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("HTTP/2 is not supported by this build of libcurl")));
	settings->http_version = strcmp(version, "2") == 0 ? CURL_HTTP_VERSION_2TLS :
		strcmp(version, "2-prior-knowledge") == 0 ?
		CURL_HTTP_VERSION_2_PRIOR_KNOWLEDGE : CURL_HTTP_VERSION_1_1;
}

/* The id is also in webhook-id, which cannot be turned off. */
static void
init_idempotency(PsyncHttpSettings *settings, const PsyncTarget *target)
{
	const char *form = option_or(target, "idempotency_key", "quoted");

	settings->idempotency_quoted = strcmp(form, "quoted") == 0;
	if (strcmp(form, "none") != 0)
		settings->idempotency_header = option_or(target, "idempotency_header",
												 "Idempotency-Key");
}

/*
 * A proxy reads and changes what is not protected by TLS, so plain http
 * through one is as plain http to anywhere.  The client's secret, which goes to
 * the endpoint of tokens, is guarded likewise.
 */
static void
check_plain(const PsyncHttpSettings *settings, const PsyncTarget *target)
{
	int			n = PSYNC_HTTP_NROUTES + (settings->oauth != NULL ? 1 : 0);

	for (int i = 0; i < n; i++)
	{
		const PsyncHttpRoute *route = i < PSYNC_HTTP_NROUTES ?
			&settings->routes[i] : &settings->oauth->token;

		if (route->tls || settings->allow_http)
			continue;
		if (settings->proxy[0] != '\0' ||
			(strcmp(route->host, "localhost") != 0 &&
			 strncmp(route->host, "127.", 4) != 0 && strcmp(route->host, "::1") != 0))
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
					 errmsg("plain http is not allowed for server \"%s\"",
							target->server_name),
					 errdetail("Payment data would travel unprotected."),
					 errhint("Use https; or let a superuser set allow_http to \"true\" on the server.")));
	}
}

/* How requests travel. Texts are the target's, which outlives us, or ours. */
static void
init_transport(PsyncHttpSettings *settings, const PsyncTarget *target)
{
	settings->proxy = option_or(target, "proxy", "");
	settings->allow_http = option_bool(target, "allow_http");
	/* bytes to the file system, in which PostgreSQL names files, too */
	settings->ca_file = psync_http_services->option(target, "ca_file");
	settings->connect_timeout_ms = 1000L *
		(psync_http_option(target, "connect_timeout") ? atol(psync_http_option(target, "connect_timeout")) :
		 PSYNC_HTTP_CONNECT_TIMEOUT);
	settings->timeout_ms = 1000L *
		(psync_http_option(target, "timeout") ? atol(psync_http_option(target, "timeout")) :
		 PSYNC_HTTP_TIMEOUT);
	settings->client_cert = psync_http_option(target, "client_cert");
	settings->client_key = psync_http_option(target, "client_key");
	settings->client_key_password = psync_http_option(target, "client_key_password");
	psync_http_settings_add_secret(settings, settings->client_key_password);
	init_version(settings, target);
	init_compression(settings, target);
	init_idempotency(settings, target);
}

/*
 * Everything lives in a context of its own below the target's.
 */
PsyncHttpSettings *
psync_http_settings_create(PsyncTarget *target)
{
	MemoryContext context = AllocSetContextCreate(target->context,
												  "payment_sync http settings",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	PsyncHttpSettings *settings = palloc0(sizeof(PsyncHttpSettings));

	Assert(psync_http_services != NULL);
	settings->context = context;
	settings->server_name = pstrdup(target->server_name);
	PG_TRY();
	{
		init_routes(settings, target);
		init_transport(settings, target);
		init_success(settings, target);
		add_header_lines(settings, target, "headers", false);
		add_header_lines(settings, target, "secret_headers", true);
		psync_http_auth_init(settings, target);
		check_plain(settings, target);
		psync_http_sign_init(settings, target);
	}
	PG_CATCH();
	{
		psync_http_sign_free(settings);
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	Assert(settings->nsuccess > 0);
	return settings;
}

/*
 * Must not raise. Secrets are wiped where they are ours; the options they
 * came from are the core's.
 */
void
psync_http_settings_free(PsyncHttpSettings *settings)
{
	ListCell   *lc;

	Assert(settings != NULL);
	psync_http_sign_free(settings);
	/* what is freed may still end up in a core file */
	for (int i = 0; i < lengthof(settings->token_secrets); i++)
	{
		if (settings->token_secrets[i] != NULL)
			explicit_bzero(settings->token_secrets[i], strlen(settings->token_secrets[i]));
	}
	foreach(lc, settings->secrets)
		explicit_bzero(lfirst(lc), strlen(lfirst(lc)));
	for (int i = 0; i < settings->nheaders; i++)
	{
		if (settings->headers[i].secret)
			explicit_bzero(unconstify(char *, settings->headers[i].value),
						   strlen(settings->headers[i].value));
	}
	MemoryContextDelete(settings->context);
}
