/*
 * request.c
 *		From a message to a request: address, headers, body.
 *
 * A request is made anew for each attempt, because the signature bears the
 * attempt's time.  The body's bytes are those of the message, so that what
 * bears the same Idempotency-Key is the same.
 *
 * Values of data get into the address (percent-encoded) and into ce- headers
 * (likewise), and nowhere else; none of them can end a header or a path.
 */
#include "postgres.h"

#include "common/string.h"
#include "mb/pg_wchar.h"

#include "transport/http/http_transport.h"

/* Longer addresses are refused by most servers. */
#define PSYNC_HTTP_URL_BYTES_MAX	8000

/* Headers beyond static ones and attributes that a request may get. */
#define PSYNC_HTTP_OWN_HEADERS_MAX	12

static const char hex_digits[] = "0123456789ABCDEF";

/* All but RFC 3986's unreserved characters as %XX. */
char *
psync_http_percent_encode(const char *text)
{
	char	   *encoded = palloc(strlen(text) * 3 + 1);
	char	   *to = encoded;

	for (const unsigned char *c = (const unsigned char *) text; *c; c++)
	{
		if ((*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') ||
			(*c >= '0' && *c <= '9') || strchr("-._~", *c) != NULL)
			*to++ = *c;
		else
		{
			*to++ = '%';
			*to++ = hex_digits[*c >> 4];
			*to++ = hex_digits[*c & 0xf];
		}
	}
	*to = '\0';
	return encoded;
}

/*
 * The value of a ce- header: CloudEvents' own rule, which encodes all but
 * printable ASCII, and space, quote and percent sign.
 */
static char *
encode_attribute(const char *text)
{
	char	   *encoded = palloc(strlen(text) * 3 + 1);
	char	   *to = encoded;

	for (const unsigned char *c = (const unsigned char *) text; *c; c++)
	{
		if (*c > 0x20 && *c < 0x7f && *c != '"' && *c != '%')
			*to++ = *c;
		else
		{
			*to++ = '%';
			*to++ = hex_digits[*c >> 4];
			*to++ = hex_digits[*c & 0xf];
		}
	}
	*to = '\0';
	return encoded;
}

/*
 * Name and value must last as long as the request. That neither can break
 * out of its line was made sure where they come from.
 */
void
psync_http_request_add_header(PsyncHttpRequest *request, const char *name,
							  const char *value, bool secret)
{
	PsyncHttpHeader *header = &request->headers[request->nheaders];

	Assert(request->nheaders < request->nheaders_max);
	Assert(strpbrk(name, "\r\n:") == NULL && strpbrk(value, "\r\n") == NULL);
	header->name = name;
	header->value = value;
	header->secret = secret;
	request->nheaders++;
}

/* --------------------------------------------------------------- address */

/*
 * What is not an update or a delete creates: inserts, rows of a batch, and
 * truncate, which has no key and fits no other address.
 */
static const PsyncHttpRoute *
choose_route(const PsyncHttpSettings *settings, const char *operation)
{
	if (operation != NULL && strcmp(operation, "update") == 0)
		return &settings->routes[PSYNC_HTTP_UPDATE];
	if (operation != NULL && strcmp(operation, "delete") == 0)
		return &settings->routes[PSYNC_HTTP_DELETE];
	return &settings->routes[PSYNC_HTTP_INSERT];
}

/*
 * What may stand for a placeholder: not nothing, which would be the address
 * of the whole collection, and no dots that lead to another path even when
 * percent-encoded.
 */
static bool
fits_into_path(const char *value)
{
	return value != NULL && value[0] != '\0' &&
		strcmp(value, ".") != 0 && strcmp(value, "..") != 0;
}

/*
 * A template without placeholders is used as it is. NULL, and why, if the
 * event cannot have an address.
 */
static const char *
fill_url(const char *template, const PsyncMessage *message, const char **why)
{
	const struct
	{
		const char *placeholder;
		const char *value;
	}			known[] = {
		{"{schema}", message->schema},
		{"{table}", message->table},
		{"{operation}", message->operation},
		{"{key}", message->key},
	};
	StringInfoData url;
	const char *at = template;

	Assert(template != NULL);
	if (strchr(template, '{') == NULL)
		return template;
	initStringInfo(&url);
	while (*at != '\0')
	{
		int			i = 0;

		while (i < lengthof(known) &&
			   strncmp(at, known[i].placeholder, strlen(known[i].placeholder)) != 0)
			i++;
		if (i == lengthof(known))
		{
			appendStringInfoChar(&url, *at++);
			continue;
		}
		if (!fits_into_path(known[i].value))
		{
			*why = strcmp(message->operation, "truncate") == 0 ?
				"a truncation has no key, and the address wants one" :
				"the event's key cannot be part of an address";
			return NULL;
		}
		appendStringInfoString(&url, psync_http_percent_encode(known[i].value));
		at += strlen(known[i].placeholder);
	}
	if (url.len > PSYNC_HTTP_URL_BYTES_MAX)
	{
		*why = "the address becomes too long";
		return NULL;
	}
	return url.data;
}

/* --------------------------------------------------------------- headers */

/*
 * CloudEvents' binary mode. Names are the core's, lower-case letters and
 * digits.
 */
static void
add_attributes(PsyncHttpRequest *request, const PsyncMessage *message)
{
	for (int i = 0; i < message->nattributes; i++)
	{
		const PsyncAttribute *attribute = &message->attributes[i];

		psync_http_request_add_header(request, psprintf("ce-%s", attribute->name),
									  encode_attribute(attribute->value), false);
	}
}

/*
 * The format's media type has no parameters: JSON is UTF-8 anyway, and
 * receivers compare the whole value.  A service may have a name of its own for
 * JSON, as AWS has.
 */
static void
add_body_headers(const PsyncHttpSettings *settings, PsyncHttpRequest *request,
				 const PsyncMessage *message)
{
	if (!request->with_body)
		return;
	psync_http_request_add_header(request, "Content-Type",
								  settings->content_type != NULL ?
								  settings->content_type : message->content_type, false);
	if (settings->compression != PSYNC_HTTP_IDENTITY)
		psync_http_request_add_header(request, "Content-Encoding",
									  settings->compression == PSYNC_HTTP_GZIP ?
									  "gzip" : "zstd", false);
}

/*
 * The id once for receivers of webhooks and once for servers that know the
 * Internet-Draft on idempotency keys, where it is a quoted string.
 */
static void
add_id_headers(const PsyncHttpSettings *settings, PsyncHttpRequest *request,
			   const PsyncMessage *message)
{
	psync_http_request_add_header(request, "webhook-id", message->id, false);
	if (settings->idempotency_header != NULL)
		psync_http_request_add_header(request, settings->idempotency_header,
									  settings->idempotency_quoted ?
									  psprintf("\"%s\"", message->id) : message->id,
									  false);
}

/* Could a media type or id, made by the core or by a user's SQL, break out? */
static bool
is_sound(const PsyncMessage *message)
{
	for (const unsigned char *c = (const unsigned char *) message->content_type; *c; c++)
	{
		if (*c < ' ' || *c >= 0x7f)
			return false;
	}
	for (const unsigned char *c = (const unsigned char *) message->id; *c; c++)
	{
		if (*c <= ' ' || *c >= 0x7f || *c == '"' || *c == '.')
			return false;
	}
	return true;
}

/*
 * Why no request can be made of the message.  Keys that have all expired must
 * not make the requests unsigned: who wants signatures would then be without
 * them, and nothing would say so.
 */
static bool
is_sendable(const PsyncHttpSettings *settings, const PsyncMessage *message,
			TimestampTz now, PsyncHttpUnsendable *why)
{
	why->kind = PSYNC_OUTCOME_REFUSED;
	why->sqlerrcode = ERRCODE_FDW_ERROR;
	why->reason = NULL;
	if (settings->sign_end <= now)
	{
		why->kind = PSYNC_OUTCOME_TARGET;
		why->sqlerrcode = ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION;
		why->reason = psprintf("all signing secrets of server \"%s\" in option \"%s\" have expired",
							   settings->server_name, settings->sign_end_keyword);
	}
	else if (!is_sound(message))
		why->reason = "its media type or id cannot be part of a header";
	return why->reason == NULL;
}

/* Signed last: what is signed must be what is sent. */
PsyncHttpRequest *
psync_http_request_create(const PsyncHttpSettings *settings, const PsyncMessage *message,
						  const char *token, TimestampTz now, PsyncHttpUnsendable *why)
{
	PsyncHttpRequest *request = palloc0(sizeof(PsyncHttpRequest));

	Assert(message->id != NULL && message->content_type != NULL);
	Assert(message->body != NULL || message->size == 0);
	if (!is_sendable(settings, message, now, why))
		return NULL;
	request->route = choose_route(settings, message->operation);
	request->url = fill_url(request->route->url, message, &why->reason);
	if (request->url == NULL)
		return NULL;
	request->nheaders_max = settings->nheaders + message->nattributes +
		list_length(settings->signers) + PSYNC_HTTP_OWN_HEADERS_MAX;
	request->headers = palloc(request->nheaders_max * sizeof(PsyncHttpHeader));
	request->with_body = strcmp(request->route->method, "DELETE") != 0;

	add_body_headers(settings, request, message);
	add_id_headers(settings, request, message);
	add_attributes(request, message);
	for (int i = 0; i < settings->nheaders; i++)
		request->headers[request->nheaders++] = settings->headers[i];
	if (token != NULL)
		psync_http_request_add_header(request, "Authorization",
									  psprintf("Bearer %s", token), true);
	psync_http_sign(settings, request, message->id,
					request->with_body ? message->body : "",
					request->with_body ? message->size : 0, now);
	if (request->with_body)
		request->body = psync_http_compress(settings->compression, message->body,
											message->size, &request->size);
	Assert(request->nheaders <= request->nheaders_max);
	return request;
}

/* --------------------------------------------------------------- showing */

/* A secret value, but for the word before it that tells its kind. */
static void
append_masked(StringInfo into, const char *value)
{
	if (strncmp(value, "Bearer ", 7) == 0 || strncmp(value, "Basic ", 6) == 0)
		appendBinaryStringInfo(into, value, strchr(value, ' ') - value + 1);
	appendStringInfoString(into, "***");
}

/* What was made UTF-8 to be sent is shown as it was. */
static void
append_utf8(StringInfo into, const char *value)
{
	bool		as_is = GetDatabaseEncoding() == PG_SQL_ASCII || pg_is_ascii(value);

	Assert(value != NULL);
	appendStringInfoString(into, as_is ? value :
						   pg_any_to_server(value, strlen(value), PG_UTF8));
}

/*
 * A transform may make bodies of any bytes.  Only text can be shown, and in
 * the database's encoding only.
 */
static void
append_body(StringInfo into, const PsyncMessage *message)
{
	char	   *body = pnstrdup(message->body, message->size);

	if (pg_verify_mbstr(PG_UTF8, body, message->size, true))
		appendStringInfoString(into, pg_any_to_server(body, message->size, PG_UTF8));
	else
		appendStringInfo(into, "(%zu bytes that are not text)", message->size);
}

/*
 * As it would travel over HTTP/1.1, secrets masked.  Headers that libcurl
 * makes by itself (Content-Length, and Authorization for AWS) are shown as
 * far as they are known; the body before its compression.
 */
char *
psync_http_request_show(const PsyncHttpSettings *settings, const PsyncHttpRequest *request,
						const PsyncMessage *message)
{
	const char *path = request->url + strcspn(request->url, ":") + strlen("://");
	size_t		authority = strcspn(path, "/?#");
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfo(&text, "%s %s%s HTTP/1.1\n", request->route->method,
					 settings->url_is_secret || path[authority] != '/' ? "/" : "",
					 settings->url_is_secret ? "***" : path + authority);
	appendStringInfo(&text, "Host: %.*s\n", (int) authority, path);
	appendStringInfo(&text, "User-Agent: payment_sync\n");
	if (settings->aws_sigv4 != NULL)
		appendStringInfoString(&text, "Authorization: AWS4-HMAC-SHA256 ***\n");
	for (int i = 0; i < request->nheaders; i++)
	{
		appendStringInfo(&text, "%s: ", request->headers[i].name);
		if (request->headers[i].secret)
			append_masked(&text, request->headers[i].value);
		else
			append_utf8(&text, request->headers[i].value);
		appendStringInfoChar(&text, '\n');
	}
	if (request->with_body)
	{
		appendStringInfo(&text, "Content-Length: %zu\n\n", request->size);
		append_body(&text, message);
	}
	return text.data;
}
