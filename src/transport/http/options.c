/*
 * options.c
 *		What servers and user mappings of the http transport may bear.
 *
 * Linked into the core, which validates with it: no libcurl here.
 *
 * Below the table stand the checks of values that the table cannot express.
 * What one object bears is checked when it is given; what a server and a user
 * mapping bear together, when the target is opened (settings.c).
 *
 * An address may be a secret by itself, as that of a chat room's hook, so url
 * may stand in the user mapping, and no message shows it (P9).
 */
#include "postgres.h"

#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "common/base64.h"
#include "utils/builtins.h"

#include "target/registry.h"
#include "transport/http/http_hosts.h"
#include "transport/http/http_names.h"
#include "transport/http/http_time.h"
#include "transport/message_options.h"

#define STRING	PSYNC_OPT_STRING, false, 0, 0, NULL
#define SECRET	PSYNC_OPT_STRING, true, 0, 0, NULL
#define INTEGER(min, max) PSYNC_OPT_INT, false, min, max, NULL
#define ENUM(values) PSYNC_OPT_ENUM, false, 0, 0, values
#define BOOLEAN PSYNC_OPT_BOOL, false, 0, 0, NULL
#define METHOD ENUM("POST|PUT|PATCH|DELETE")

#define SERVER	PSYNC_ON_SERVER
#define USER	PSYNC_ON_USER
#define BOTH	(PSYNC_ON_SERVER | PSYNC_ON_USER)
#define SERVER_BY_SUPERUSER (PSYNC_ON_SERVER | PSYNC_BY_SUPERUSER)

/* The options of one template signer; sign.c reads them by the same names. */
#define SIGNER(name) \
	{name, SERVER, ENUM("stripe|github|shopify|adyen|custom"), "further signature: a known scheme, or one made of the following"}, \
	{name "_header", SERVER, STRING, "header that bears it"}, \
	{name "_content", SERVER, STRING, "what is signed, of {id}, {timestamp} and {body}"}, \
	{name "_value", SERVER, STRING, "the header's value, of {id}, {timestamp}, {hex} and {base64}; what stands in [ ] is repeated for each secret"}, \
	{name "_hash", SERVER, ENUM("sha1|sha256|sha512"), "hash of the HMAC (default sha256)"}, \
	{name "_key_encoding", SERVER, ENUM("raw|hex|base64"), "what its secrets are written in (default raw; adyen: hex)"}, \
	{name "_secret", USER, SECRET, "its secrets, by commas; an old one may end: secret@2027-01-31T00:00:00Z"}

const PsyncOption psync_http_options[] = {
	/* the wrapper's own */
	{"library", PSYNC_ON_WRAPPER, STRING, "library of the transport"},
	{"takes", PSYNC_ON_WRAPPER, ENUM("messages|windows"), "what the library's targets take (default: what the library says)"},

	/* where */
	{"url", BOTH, SECRET, "address; {schema}, {table}, {operation} and {key} are filled in"},
	{"insert_url", BOTH, SECRET, "address for inserts and rows of a batch (default: url)"},
	{"update_url", BOTH, SECRET, "address for updates (default: url)"},
	{"delete_url", BOTH, SECRET, "address for deletes (default: url)"},
	{"proxy", SERVER_BY_SUPERUSER, STRING, "URL of a proxy (default none, whatever the environment says)"},
	{"allow_http", SERVER_BY_SUPERUSER, BOOLEAN, "allow plain http to other hosts than this one (default false)"},

	/* what */
	{"method", SERVER, METHOD, "method (default POST)"},
	{"insert_method", SERVER, METHOD, "method for inserts and rows of a batch (default: method)"},
	{"update_method", SERVER, METHOD, "method for updates (default: method)"},
	{"delete_method", SERVER, METHOD, "method for deletes (default: method); DELETE has no body"},
	{"headers", SERVER, STRING, "further headers, \"Name: value\", one a line"},
	{"content_type", SERVER, STRING, "media type of bodies (default: the format's)"},
	{"compression", SERVER, ENUM("none|gzip|zstd"), "compression of bodies (default none); signatures are of the uncompressed body"},
	{"idempotency_key", SERVER, ENUM("quoted|bare|none"), "form of the header that bears the message's id (default quoted)"},
	{"idempotency_header", SERVER, STRING, "name of that header (default Idempotency-Key)"},

	/* how */
	{"http_version", SERVER, ENUM("1.1|2|2-prior-knowledge"), "version of HTTP (default 2 where libcurl is 8.14 or newer, else 1.1)"},
	{"connect_timeout", SERVER, INTEGER(1, 3600), "seconds until a connection must stand (default 10)"},
	{"timeout", SERVER, INTEGER(1, 86400), "seconds until the answer must be complete (default 30)"},
	{"ca_file", SERVER, STRING, "file of trusted certificate authorities (default: the system's)"},

	/* what is an acknowledgement */
	{"success_status", SERVER, STRING, "statuses that acknowledge, as 200-299,409 (default 200-299)"},
	{"success_body", SERVER, STRING, "body that acknowledges, white space around it aside (default: any)"},
	{"items_path", SERVER, STRING, "path to the list of results, one per event, in the answer's JSON, as a.b; . is the answer itself"},
	{"items_index", SERVER, STRING, "member with the number of the event in the body, from 0; the list then need have failures only (default: results are in the order of events)"},
	{"items_success", SERVER, STRING, "with items_index: path to a list with an entry per event that was taken, or path=value that must hold where the list of failures is absent (default: the list of failures must be there, if only empty)"},
	{"items_error", SERVER, STRING, "path, in a result, to what marks a failure unless it is null, false or empty (default: each listed event has failed, if items_index is given, else \"error\")"},
	{"items_code", SERVER, STRING, "path, in a result, to the failure's code (default: what items_error leads to, or its member \"code\")"},
	{"items_retry", SERVER, STRING, "codes of failures that may pass, by commas, * for anything at an end; all others are refusals (default: those of throttling, time-outs and internal errors)"},

	/* as whom; one of four */
	{"bearer_token", USER, SECRET, "token for \"Authorization: Bearer\""},
	{"user", USER, STRING, "user for basic authentication"},
	{"password", USER, SECRET, "password of that user"},
	{"oauth_token_url", BOTH, STRING, "where to fetch OAuth 2 tokens with client credentials"},
	{"oauth_client_id", USER, STRING, "OAuth client id"},
	{"oauth_client_secret", USER, SECRET, "OAuth client secret"},
	{"oauth_scope", BOTH, STRING, "OAuth scopes to ask for, by spaces"},
	{"oauth_audience", BOTH, STRING, "OAuth audience to ask for"},
	{"oauth_auth", SERVER, ENUM("basic|body"), "where the client's credentials travel (default basic)"},
	{"aws_region", SERVER, STRING, "AWS region, for signature version 4"},
	{"aws_service", SERVER, STRING, "AWS service, as sqs"},
	{"aws_access_key", USER, STRING, "AWS access key id"},
	{"aws_secret_key", USER, SECRET, "AWS secret access key"},
	{"aws_session_token", USER, SECRET, "AWS session token, of temporary keys"},

	/* and besides */
	{"api_key", USER, SECRET, "value of the API key's header"},
	{"api_key_header", SERVER, STRING, "name of that header (default X-API-Key)"},
	{"secret_headers", USER, SECRET, "further headers whose values are secret, \"Name: value\", one a line"},
	{"client_cert", USER, STRING, "client certificate with its chain, PEM"},
	{"client_key", USER, SECRET, "key of that certificate, PEM"},
	{"client_key_password", USER, SECRET, "password of that key"},

	/* signed how */
	{"signing_secret", USER, SECRET, "Standard Webhooks secrets, whsec_… or whsk_… (Ed25519), by commas; an old one may end: secret@2027-01-31T00:00:00Z"},
	SIGNER("signer"),
	SIGNER("signer2"),
	SIGNER("signer3"),
	SIGNER("signer4"),

	PSYNC_MESSAGE_OPTIONS,

	{NULL, 0, STRING, NULL}
};

/* ------------------------------------------------------------ elementary */

/* The value of an option of the object at hand, or NULL. */
static const char *
find(List *options, const char *keyword)
{
	ListCell   *lc;

	Assert(keyword != NULL);
	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (strcmp(def->defname, keyword) == 0)
			return defGetString(def);
	}
	return NULL;
}

/* Never shows the value: it may be a secret, or hold one. */
static void
refuse(const char *keyword, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
			 errmsg("invalid value for option \"%s\"", keyword),
			 errdetail("%s", detail)));
}

/* Only one of the two may be given. */
static void
check_exclusive(List *options, const char *one, const char *other)
{
	if (find(options, one) != NULL && find(options, other) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
				 errmsg("options \"%s\" and \"%s\" contradict each other", one, other),
				 errdetail("Each of them makes the header \"Authorization\".")));
}

/* Where there is one there must be the other. */
static void
check_needs(List *options, const char *one, const char *other)
{
	if (find(options, one) != NULL && find(options, other) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
				 errmsg("option \"%s\" needs option \"%s\"", one, other)));
}

/* --------------------------------------------------------------- headers */

/* A "token" of RFC 9110: what may name a header. */
static bool
is_header_name(const char *text, size_t size)
{
	for (size_t i = 0; i < size; i++)
	{
		unsigned char c = text[i];

		if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
			  (c >= 'A' && c <= 'Z') || (c != '\0' && strchr("!#$%&'*+-.^_`|~", c) != NULL)))
			return false;
	}
	return size > 0;
}

/* Of options that name a header. */
static void
check_header_name(List *options, const char *keyword)
{
	const char *value = find(options, keyword);

	if (value != NULL && !is_header_name(value, strlen(value)))
		refuse(keyword, "The name of a header consists of letters, digits and some signs such as \"-\".");
}

/* What may stand in the value of a header: no control character but a tab. */
static bool
is_field_value(const char *text, size_t size)
{
	for (size_t i = 0; i < size; i++)
	{
		unsigned char c = text[i];

		if ((c < ' ' && c != '\t') || c == 0x7f)
			return false;
	}
	return true;
}

/* Of options that become (a part of) a header's value. */
static void
check_field_value(List *options, const char *keyword)
{
	const char *value = find(options, keyword);

	if (value != NULL && !is_field_value(value, strlen(value)))
		refuse(keyword, "It must not contain control characters.");
}

/* A media type, with or without parameters. */
static void
check_content_type(List *options)
{
	const char *value = find(options, "content_type");
	const char *slash = value != NULL ? strchr(value, '/') : NULL;

	if (value == NULL)
		return;
	for (const char *c = value; *c; c++)
	{
		if (*c < ' ' || *c >= 0x7f)
			refuse("content_type", "It must be printable ASCII.");
	}
	if (slash == NULL || slash == value || slash[1] == '\0')
		refuse("content_type", "It must be a media type, as application/json.");
}

/* Headers that are ours to set: two of a kind would be a way to cheat. */
static const char *const reserved_headers[] = {
	"host", "content-length", "content-type", "content-encoding",
	"transfer-encoding", "connection", "expect", "upgrade", "te", "trailer",
	"webhook-id", "webhook-timestamp", "webhook-signature", NULL
};

/*
 * One line of headers: name and value are sound, and the name is none of
 * those that decide how the request is read or whether it is believed.
 */
static void
check_header_line(const char *keyword, const char *line, size_t size)
{
	const char *colon = memchr(line, ':', size);
	size_t		name = colon != NULL ? colon - line : 0;

	Assert(line != NULL);
	if (colon == NULL || !is_header_name(line, name) ||
		!is_field_value(colon, size - name))
		refuse(keyword, "Each line must be a header, \"Name: value\".");
	for (const char *const *reserved = reserved_headers; *reserved; reserved++)
	{
		if (strlen(*reserved) == name && pg_strncasecmp(line, *reserved, name) == 0)
			refuse(keyword, psprintf("The header \"%s\" is set by the transport.", *reserved));
	}
}

/*
 * Lines may end in LF or CRLF. A CR within a line would begin another header
 * at some servers, and is a control character like others.
 */
static void
check_headers(List *options, const char *keyword)
{
	const char *line = find(options, keyword);

	while (line != NULL && *line != '\0')
	{
		size_t		size = strcspn(line, "\n");

		/* a value written on another system may end its lines with both */
		check_header_line(keyword, line,
						  size > 0 && line[size] == '\n' && line[size - 1] == '\r' ?
						  size - 1 : size);
		line += size;
		if (*line == '\n')
			line++;
	}
}

/* ------------------------------------------------------------------ URLs */

/* Is the authority of a URL a name or address of this host? */
static bool
is_loopback(const char *authority, size_t size)
{
	static const char *const names[] = {"localhost", "127.0.0.1", "[::1]", NULL};

	for (const char *const *name = names; *name; name++)
	{
		size_t		length = strlen(*name);

		if (size >= length && pg_strncasecmp(authority, *name, length) == 0 &&
			(size == length || authority[length] == ':'))
			return true;
	}
	return false;
}

/* A placeholder that is misspelt would be sent as it stands. */
static void
check_placeholders(const char *keyword, const char *text, const char *const *known)
{
	for (const char *at = strchr(text, '{'); at != NULL; at = strchr(at + 1, '{'))
	{
		bool		found = false;

		for (const char *const *name = known; *name; name++)
			found = found || strncmp(at, *name, strlen(*name)) == 0;
		if (!found)
			refuse(keyword, "It contains a placeholder that is not known.");
	}
}

/*
 * The address as a whole is libcurl's to parse; what matters here is that it
 * leads by a scheme that is allowed to a host that does not depend on data,
 * and holds no credentials, which would be shown by pg_foreign_server.
 */
static void
check_url(List *options, const char *keyword)
{
	static const char *const known[] = {"{schema}", "{table}", "{operation}", "{key}", NULL};
	const char *url = find(options, keyword);
	const char *authority;
	size_t		size;
	const char *allow = find(options, "allow_http");
	bool		allowed = false;

	if (url == NULL)
		return;
	for (const unsigned char *c = (const unsigned char *) url; *c; c++)
	{
		if (*c <= ' ' || *c >= 0x7f)
			refuse(keyword, "It must consist of printable ASCII characters; others are to be percent-encoded.");
	}
	if (pg_strncasecmp(url, "https://", 8) == 0)
		authority = url + 8;
	else if (pg_strncasecmp(url, "http://", 7) == 0)
		authority = url + 7;
	else
	{
		refuse(keyword, "It must begin with \"https://\" or \"http://\".");
		pg_unreachable();
	}
	size = strcspn(authority, "/?#");
	if (size == 0 || memchr(authority, '{', size) != NULL)
		refuse(keyword, "It must name a host, without placeholders.");
	if (memchr(authority, '@', size) != NULL)
		refuse(keyword, "It must not contain a user or password; these belong into the user mapping.");
	check_placeholders(keyword, url, known);

	/* in a user mapping the server's allow_http is not seen: see settings.c */
	if (allow != NULL)
		(void) parse_bool(allow, &allowed);
	if (authority == url + 7 && !allowed && !is_loopback(authority, size))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("plain http is not allowed in option \"%s\"", keyword),
				 errdetail("Payment data would travel unprotected."),
				 errhint("Use https; or let a superuser set allow_http to \"true\" on the server.")));
}

/* --------------------------------------------------------------- secrets */

/* Decodes to at least a byte; the bytes are wiped. */
static bool
is_base64(const char *text, size_t size)
{
	char	   *bytes = palloc(pg_b64_dec_len(size) + 1);
	int			n = pg_b64_decode(text, size, (void *) bytes, pg_b64_dec_len(size));

	if (n > 0)
		explicit_bzero(bytes, n);
	pfree(bytes);
	return n > 0;
}

/* Whole bytes, at least one. */
static bool
is_hex(const char *text, size_t size)
{
	return size > 0 && size % 2 == 0 &&
		strspn(text, "0123456789abcdefABCDEF") >= size;
}

/* One secret, with "@time" after it or not, as "encoding" says. */
static void
check_secret(const char *keyword, char *secret, const char *encoding)
{
	char	   *at = strchr(secret, '@');
	bool		valid = true;
	size_t		size;

	if (at != NULL)
	{
		TimestampTz ignored;

		*at = '\0';
		/* timestamptz_in would show what may be a part of the secret */
		if (!psync_http_parse_time(at + 1, &ignored))
			refuse(keyword, "The time after \"@\" must be in UTC, as 2027-01-31T00:00:00Z.");
	}
	size = strlen(secret);
	if (strcmp(encoding, "standard") == 0)
		valid = (strncmp(secret, "whsec_", 6) == 0 && is_base64(secret + 6, size - 6)) ||
			(strncmp(secret, "whsk_", 5) == 0 && is_base64(secret + 5, size - 5));
	else if (strcmp(encoding, "hex") == 0)
		valid = is_hex(secret, size);
	else if (strcmp(encoding, "base64") == 0)
		valid = is_base64(secret, size);
	if (size == 0 || !valid)
		refuse(keyword, strcmp(encoding, "standard") == 0 ?
			   "Each secret must be \"whsec_\" or \"whsk_\" and base64." :
			   "A secret is empty, or not written in its encoding.");
}

/* The copy is taken apart in place and wiped. */
static void
check_secrets(List *options, const char *keyword, const char *encoding)
{
	const char *value = find(options, keyword);
	char	   *copy;
	char	   *next;

	if (value == NULL)
		return;
	copy = pstrdup(value);
	for (char *item = copy; item != NULL; item = next)
	{
		char	   *end;

		next = strchr(item, ',');
		if (next != NULL)
			*next++ = '\0';
		item += strspn(item, " \t\n");
		end = item + strlen(item);
		while (end > item && strchr(" \t\n", end[-1]) != NULL)
			*--end = '\0';
		check_secret(keyword, item, encoding);
	}
	explicit_bzero(copy, strlen(value));
}

/* --------------------------------------------------------------- objects */

/*
 * Statuses below 200 are never final, and a list that is read wrongly would
 * acknowledge what was refused, so nothing is let pass that is not
 * understood.
 */
static void
check_statuses(List *options)
{
	const char *at = find(options, "success_status");

	while (at != NULL)
	{
		int			low,
					high,
					used = 0;

		if (sscanf(at, " %3d - %3d %n", &low, &high, &used) < 2 || used == 0)
		{
			used = 0;
			if (sscanf(at, " %3d %n", &low, &used) == 1)
				high = low;
		}
		if (used == 0 || low < 200 || high > 599 || low > high ||
			(at[used] != ',' && at[used] != '\0'))
		{
			refuse("success_status", "It must be a list of statuses and ranges of them, from 200 to 599, as \"200-299,409\".");
			pg_unreachable();
		}
		at = at[used] == ',' ? at + used + 1 : NULL;
	}
}

/* Option "part" of a template signer, by the signer's own name. */
static char *
signer_keyword(const char *name, const char *part)
{
	return psprintf("%s_%s", name, part);
}

/*
 * The header is ours alone: it is none that decides how the request is read,
 * and no other signer's.
 */
static void
check_signer_header(List *options, const char *name, const char *const *names)
{
	char	   *keyword = signer_keyword(name, "header");
	const char *header = find(options, keyword);

	if (header == NULL)
		return;
	check_header_name(options, keyword);
	for (const char *const *reserved = reserved_headers; *reserved; reserved++)
	{
		if (pg_strcasecmp(*reserved, header) == 0)
			refuse(keyword, psprintf("The header \"%s\" is set by the transport.", *reserved));
	}
	for (; strcmp(*names, name) != 0; names++)
	{
		const char *other = find(options, signer_keyword(*names, "header"));

		if (other != NULL && pg_strcasecmp(other, header) == 0)
			refuse(keyword, psprintf("Option \"%s_header\" has the same value.", *names));
	}
}

/* A known scheme fills in what is not given, so only "custom" needs it all. */
static void
check_signer(List *options, const char *name, const char *const *names)
{
	static const char *const content[] = {"{id}", "{timestamp}", "{body}", NULL};
	static const char *const value[] = {"{id}", "{timestamp}", "{hex}", "{base64}", NULL};
	static const char *const parts[] = {"header", "content", "value", "hash", "key_encoding", NULL};
	const char *signer = find(options, name);
	char	   *content_keyword = signer_keyword(name, "content");
	char	   *value_keyword = signer_keyword(name, "value");

	check_signer_header(options, name, names);
	if (find(options, content_keyword) != NULL)
		check_placeholders(content_keyword, find(options, content_keyword), content);
	check_field_value(options, value_keyword);
	if (find(options, value_keyword) != NULL)
		check_placeholders(value_keyword, find(options, value_keyword), value);
	if (signer != NULL && strcmp(signer, "custom") == 0 &&
		(find(options, signer_keyword(name, "header")) == NULL ||
		 find(options, content_keyword) == NULL || find(options, value_keyword) == NULL))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
				 errmsg("a signer of one's own needs the options %s_header, %s_content and %s_value",
						name, name, name)));
	for (const char *const *part = parts; *part; part++)
		check_needs(options, signer_keyword(name, *part), name);
}

/* Is the option given, and is this its value? */
static bool
is_set_to(List *options, const char *keyword, const char *value)
{
	const char *given = find(options, keyword);

	return given != NULL && strcmp(given, value) == 0;
}

/* As a number; its default if it is not given. */
static int64
int_option(List *options, const char *keyword, int64 otherwise)
{
	const char *given = find(options, keyword);

	return given != NULL ? strtoll(given, NULL, 10) : otherwise;
}

pg_noreturn static void
refuse_together(const char *one, const char *other, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
			 errmsg("options \"%s\" and \"%s\" contradict each other", one, other),
			 errdetail_internal("%s", detail)));
}

/* Not refused: the events of a message may well be alike. */
static void
warn_first_counts(const char *keyword, const char *detail)
{
	ereport(WARNING,
			(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
			 errmsg("option \"%s\" concerns the first event of a message only", keyword),
			 errdetail_internal("%s", detail)));
}

/* An option without effect beside another one's value: a warning. */
static void
warn_useless(List *options, const char *keyword, bool useless, const char *detail)
{
	if (useless && find(options, keyword) != NULL)
		ereport(WARNING,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("option \"%s\" has no effect", keyword),
				 errdetail_internal("%s", detail)));
}

/*
 * A message of several events has the address and the method of its first one,
 * which is hardly what is meant by an address of its own.  With DELETE it has
 * no body, so the others would be lost.
 */
static void
check_batch_route(List *options)
{
	static const char *const methods[] = {"method", "insert_method", "update_method", "delete_method"};
	static const char *const urls[] = {"insert_url", "update_url", "delete_url"};
	static const char detail[] = "A message of several events, see max_batch, has the address of its first one.";
	const char *url = find(options, "url");

	for (int i = 0; i < lengthof(methods); i++)
	{
		if (is_set_to(options, methods[i], "DELETE"))
			refuse_together(methods[i], "max_batch",
							"DELETE has no body, which a message of several events needs.");
	}
	for (int i = 0; i < lengthof(urls); i++)
		if (find(options, urls[i]) != NULL)
			warn_first_counts(urls[i], detail);
	if (url != NULL && (strstr(url, "{key}") != NULL || strstr(url, "{operation}") != NULL))
		warn_first_counts("url", detail);
}

/*
 * Options that contradict each other whatever a sync says; those that also
 * depend on its transform are checked when the two come together
 * (message/settings.c).
 */
static void
check_together(List *options)
{
	bool		batches = int_option(options, "max_batch", 1) > 1;
	bool		single = is_set_to(options, "format", "cloudevents") ||
		is_set_to(options, "format", "cloudevents_binary") ||
		is_set_to(options, "format", "raw");
	bool		thin = false;

	if (find(options, "thin") != NULL)
		(void) parse_bool(find(options, "thin"), &thin);
	if (batches && single)
		refuse_together("format", "max_batch", "This format has one event per message.");
	if (thin && (is_set_to(options, "format", "debezium") || is_set_to(options, "format", "raw")))
		refuse_together("format", "thin", "This format has no thin events.");
	if (find(options, "content_type") != NULL && find(options, "format") != NULL &&
		strncmp(find(options, "format"), "cloudevents", strlen("cloudevents")) == 0)
		refuse_together("content_type", "format", "Receivers of CloudEvents know the format by its media type.");
	if (int_option(options, "retry_delay_min", 200) > int_option(options, "retry_delay_max", 60000))
		refuse_together("retry_delay_min", "retry_delay_max",
						"The least delay is greater than the greatest one, which is 60000 by default.");
	if (is_set_to(options, "idempotency_key", "none") && find(options, "idempotency_header") != NULL)
		refuse_together("idempotency_key", "idempotency_header", "Without the key there is no header.");
	if (batches)
		check_batch_route(options);
	warn_useless(options, "linger", !batches, "Messages have one event each, see max_batch.");
	warn_useless(options, "max_batch_bytes", !batches, "Messages have one event each, see max_batch.");
	warn_useless(options, "max_parked", is_set_to(options, "ordering", "strict"),
				 "With strict ordering nothing may pass an event that fails.");
	warn_useless(options, "on_refused",
				 is_set_to(options, "on_refused", "hold") && is_set_to(options, "ordering", "none"),
				 "Without ordering, no event waits for a refused one.");
}

/* What a server bears that the table cannot judge. */
static void
check_server(List *options)
{
	check_headers(options, "headers");
	check_header_name(options, "api_key_header");
	check_header_name(options, "idempotency_header");
	check_content_type(options);
	check_statuses(options);
	for (const char *const *name = psync_http_signer_names; *name; name++)
		check_signer(options, *name, psync_http_signer_names);
	check_needs(options, "aws_region", "aws_service");
	check_needs(options, "aws_service", "aws_region");
	check_needs(options, "items_index", "items_path");
	check_needs(options, "items_success", "items_index");
	check_needs(options, "items_error", "items_path");
	check_needs(options, "items_code", "items_path");
	check_needs(options, "items_retry", "items_path");
	check_together(options);
}

/*
 * Of the kinds of credentials that make the header "Authorization" there can
 * be one. Halves of a pair are mistakes that would show only at the target.
 */
static void
check_user(List *options)
{
	static const char *const schemes[] = {
		"bearer_token", "user", "oauth_client_id", "aws_access_key", NULL
	};

	for (const char *const *one = schemes; *one; one++)
	{
		for (const char *const *other = one + 1; *other; other++)
			check_exclusive(options, *one, *other);
	}
	check_needs(options, "user", "password");
	check_needs(options, "password", "user");
	check_needs(options, "oauth_client_id", "oauth_client_secret");
	check_needs(options, "oauth_client_secret", "oauth_client_id");
	check_needs(options, "aws_access_key", "aws_secret_key");
	check_needs(options, "aws_secret_key", "aws_access_key");
	check_needs(options, "aws_session_token", "aws_access_key");
	check_needs(options, "client_cert", "client_key");
	check_needs(options, "client_key", "client_cert");
	check_needs(options, "client_key_password", "client_key");
	check_headers(options, "secret_headers");
	check_field_value(options, "bearer_token");
	check_field_value(options, "api_key");
	check_field_value(options, "aws_session_token");
	check_secrets(options, "signing_secret", "standard");
	for (const char *const *name = psync_http_signer_names; *name; name++)
		check_secrets(options, signer_keyword(*name, "secret"), "raw");
}

/* What the option table cannot express; called after psync_options_validate. */
void
psync_http_check_options(List *options, Oid catalog)
{
	check_url(options, "url");
	check_url(options, "insert_url");
	check_url(options, "update_url");
	check_url(options, "delete_url");
	check_url(options, "oauth_token_url");
	if (catalog == ForeignServerRelationId)
		check_server(options);
	else if (catalog == UserMappingRelationId)
		check_user(options);
}

/*
 * The first entry of a list of allowed hosts that is malformed, in memory of
 * palloc; NULL if all are well-formed.  What it means is told in address.c.
 */
char *
psync_http_malformed_host(const char *value)
{
	char	   *list = pstrdup(value);
	char	   *entry;
	PsyncHttpNet net;

	if (strspn(value, " \t\n\r") == strlen(value))
		return NULL;
	while ((entry = psync_http_entry_next(&list)) != NULL)
	{
		if (psync_http_entry_parse(entry, &net) == PSYNC_HTTP_ENTRY_INVALID)
			return entry;
	}
	return NULL;
}
