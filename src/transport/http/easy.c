/*
 * easy.c
 *		libcurl's options: what a request may do, and what it is.
 *
 * Whatever libcurl would do on its own is turned off unless it is wanted:
 * other protocols, redirects, proxies and passwords from the environment,
 * decompression, waiting for "100 Continue", signals.  What a target sends is
 * counted, and cut off at a limit.
 *
 * Functions that libcurl calls back must not raise errors.
 */
#include "postgres.h"

#include <openssl/ssl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "storage/fd.h"

#include "transport/http/http_transport.h"

/* Seconds: how long names are remembered, and connections kept in use. */
#define PSYNC_HTTP_DNS_CACHE		60L
#define PSYNC_HTTP_CONNECTION_LIFE	600L
#define PSYNC_HTTP_IDLE_LIFE		55L

/* Body bytes are taken in pieces of this size at least. */
#define PSYNC_HTTP_BODY_ROOM_MIN	1024

/*
 * Bodies of up to this size no version of libcurl announces with "Expect:
 * 100-continue": its limit was 1024 bytes once, and is a megabyte now.
 */
#define PSYNC_HTTP_EXPECT_MIN		1024

/* ------------------------------------------------------------- callbacks */

/*
 * The socket for an address that libcurl has resolved, if the policy has
 * nothing against it.  A proxy is a superuser's choice.
 */
static curl_socket_t
on_open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
	PsyncHttpTransfer *transfer = arg;
	PsyncHttpSession *session = transfer->session;
	curl_socket_t socket_fd;

	if (session->settings->proxy[0] == '\0')
	{
		transfer->answer.refused =
			psync_http_address_refused(session->policy, transfer->request->route->host,
									   &address->addr, transfer->loopback_only);
		if (transfer->answer.refused != NULL)
			return CURL_SOCKET_BAD;
	}
	if (!psync_http_socket_room() || !AcquireExternalFD())
		return CURL_SOCKET_BAD;
	socket_fd = socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
	if (socket_fd == CURL_SOCKET_BAD)
		ReleaseExternalFD();
	else
		psync_http_socket_opened(session, socket_fd);
	return socket_fd;
}

/* The counterpart of on_open_socket(), possibly long after its transfer. */
static int
on_close_socket(void *arg, curl_socket_t socket_fd)
{
	Assert(arg != NULL);
	psync_http_socket_closed(arg, socket_fd);
	close(socket_fd);
	ReleaseExternalFD();
	return 0;
}

/* TLS of the connection at hand, for check_target(). */
static void
note_tls(PsyncHttpTransfer *transfer)
{
	const struct curl_tlssessioninfo *info = NULL;
	SSL		   *ssl;
	X509	   *certificate;
	struct tm	when;

	if (curl_easy_getinfo(transfer->easy, CURLINFO_TLS_SSL_PTR, &info) != CURLE_OK ||
		info == NULL || info->backend != CURLSSLBACKEND_OPENSSL || info->internals == NULL)
		return;
	ssl = info->internals;
	strlcpy(transfer->answer.tls_version, SSL_get_version(ssl),
			sizeof(transfer->answer.tls_version));
	certificate = SSL_get_peer_certificate(ssl);
	if (certificate == NULL)
		return;
	if (ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &when) == 1)
		transfer->answer.tls_expires = timegm(&when);
	X509_free(certificate);
}

/*
 * Before each request, also on a connection made earlier: the policy may have
 * changed since.
 */
static int
on_request(void *arg, char *address, char *local_address, int port, int local_port)
{
	PsyncHttpTransfer *transfer = arg;
	PsyncHttpSession *session = transfer->session;

	if (transfer->purpose == PSYNC_HTTP_FOR_CHECK)
		note_tls(transfer);
	if (session->settings->proxy[0] != '\0')
		return CURL_PREREQFUNC_OK;
	transfer->answer.refused =
		psync_http_address_text_refused(session->policy, transfer->request->route->host,
										address, transfer->loopback_only);
	return transfer->answer.refused == NULL ? CURL_PREREQFUNC_OK : CURL_PREREQFUNC_ABORT;
}

/* Is the header of this name?  Then copy its value, trimmed and cut off. */
static void
note_header(const char *line, size_t size, const char *name, char *value, size_t room)
{
	size_t		length = strlen(name);

	if (size <= length || line[length] != ':' ||
		pg_strncasecmp(line, name, length) != 0)
		return;
	line += length + 1;
	size -= length + 1;
	while (size > 0 && (*line == ' ' || *line == '\t'))
	{
		line++;
		size--;
	}
	while (size > 0 && (line[size - 1] == '\r' || line[size - 1] == '\n' ||
						line[size - 1] == ' '))
		size--;
	size = Min(size, room - 1);
	memcpy(value, line, size);
	value[size] = '\0';
}

/*
 * A line at a time, those of interim answers (1xx) included: a target could
 * send these without end, so all count.
 */
static size_t
on_header(char *line, size_t one, size_t size, void *arg)
{
	PsyncHttpTransfer *transfer = arg;
	PsyncHttpAnswer *answer = &transfer->answer;

	Assert(one == 1);
	transfer->header_bytes += size;
	if (transfer->header_bytes > PSYNC_HTTP_HEADER_BYTES_MAX)
	{
		answer->headers_overflow = true;
		return 0;
	}
	note_header(line, size, "retry-after", answer->retry_after, sizeof(answer->retry_after));
	note_header(line, size, "date", answer->date, sizeof(answer->date));
	return size;
}

/* Sum of all transfers' body_room in this process. */
static size_t bodies_held = 0;

static void
forget_body(void *arg)
{
	PsyncHttpTransfer *transfer = arg;

	bodies_held -= transfer->body_room;
	transfer->body_room = 0;
}

/* Before a request is sent again: nothing of the last answer stays. */
void
psync_http_easy_drop_body(PsyncHttpTransfer *transfer)
{
	if (transfer->body_room > 0)
		pfree(transfer->answer.body);
	forget_body(transfer);
}

/*
 * Make room for so many bytes more and the final zero, without errors.  The
 * room is counted until the transfer's context is reset.
 */
static bool
enlarge_body(PsyncHttpTransfer *transfer, size_t more)
{
	PsyncHttpAnswer *answer = &transfer->answer;
	size_t		room = Max(transfer->body_room * 2, PSYNC_HTTP_BODY_ROOM_MIN);
	char	   *body;

	if (answer->body_size + more < transfer->body_room)
		return true;
	while (room <= answer->body_size + more)
		room *= 2;
	if (bodies_held - transfer->body_room + room > PSYNC_HTTP_BODIES_BYTES_MAX)
		return false;
	body = MemoryContextAllocExtended(transfer->context, room, MCXT_ALLOC_NO_OOM);
	if (body == NULL)
		return false;
	if (answer->body != NULL)
	{
		memcpy(body, answer->body, answer->body_size);
		pfree(answer->body);
	}
	else
	{
		MemoryContextCallback *callback =
			MemoryContextAllocExtended(transfer->context, sizeof(*callback), MCXT_ALLOC_NO_OOM);

		if (callback == NULL)
			return false;
		callback->func = forget_body;
		callback->arg = transfer;
		MemoryContextRegisterResetCallback(transfer->context, callback);
	}
	answer->body = body;
	bodies_held += room - transfer->body_room;
	transfer->body_room = room;
	return true;
}

/* Is more of the body wanted than what can be shown of it? */
static bool
wants_body(const PsyncHttpTransfer *transfer)
{
	const PsyncHttpSettings *settings = transfer->session->settings;

	return transfer->purpose != PSYNC_HTTP_FOR_MESSAGE ||
		settings->items_path != NULL || settings->success_body != NULL;
}

/*
 * Collects the body, as far as it is wanted, up to its limit.  Returning less
 * than was given makes libcurl end the transfer.
 */
static size_t
on_body(char *bytes, size_t one, size_t size, void *arg)
{
	PsyncHttpTransfer *transfer = arg;
	PsyncHttpAnswer *answer = &transfer->answer;
	size_t		kept = size;

	Assert(one == 1);
	answer->body_received += size;
	if (!wants_body(transfer))
		kept = Min(size, PSYNC_HTTP_EXCERPT_FROM_BYTES - answer->body_size);
	if (answer->body_received > PSYNC_HTTP_BODY_BYTES_MAX ||
		(kept > 0 && !enlarge_body(transfer, kept)))
	{
		answer->body_overflow = true;
		return 0;
	}
	if (kept == 0)
		return size;
	memcpy(answer->body + answer->body_size, bytes, kept);
	answer->body_size += kept;
	answer->body[answer->body_size] = '\0';
	return size;
}

/* --------------------------------------------------------------- options */

/* Only lack of memory, or a libcurl without the feature, can be the cause. */
static void
check(CURLcode code)
{
	if (code != CURLE_OK)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_ERROR),
				 errmsg("libcurl refused an option: %s", curl_easy_strerror(code))));
}

#define set(easy, option, value)	check(curl_easy_setopt((easy), (option), (value)))

/* What a request may not do, whatever a target or the environment says. */
static void
set_restrictions(CURL *easy)
{
#if LIBCURL_VERSION_NUM >= 0x075500
	set(easy, CURLOPT_PROTOCOLS_STR, "http,https");
	set(easy, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
#else
	set(easy, CURLOPT_PROTOCOLS, (long) (CURLPROTO_HTTP | CURLPROTO_HTTPS));
	set(easy, CURLOPT_REDIR_PROTOCOLS, (long) (CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
	set(easy, CURLOPT_FOLLOWLOCATION, 0L);
	set(easy, CURLOPT_MAXREDIRS, 0L);
	set(easy, CURLOPT_NETRC, (long) CURL_NETRC_IGNORED);
	set(easy, CURLOPT_NOSIGNAL, 1L);
	set(easy, CURLOPT_NOPROGRESS, 1L);
	/* ".." in a path is refused by request.c, not resolved */
	set(easy, CURLOPT_PATH_AS_IS, 1L);
#if LIBCURL_VERSION_NUM >= 0x075700
	/* do not wait for a name's lookup when the target is closed */
	set(easy, CURLOPT_QUICK_EXIT, 1L);
#endif
}

/* Each gets the transfer, except for the one that may come after its end. */
static void
set_callbacks(PsyncHttpTransfer *transfer)
{
	CURL	   *easy = transfer->easy;

	Assert(transfer->session != NULL);
	set(easy, CURLOPT_PRIVATE, transfer);
	set(easy, CURLOPT_ERRORBUFFER, transfer->error);
	set(easy, CURLOPT_OPENSOCKETFUNCTION, on_open_socket);
	set(easy, CURLOPT_OPENSOCKETDATA, transfer);
	/* a connection outlives the transfer that made it */
	set(easy, CURLOPT_CLOSESOCKETFUNCTION, on_close_socket);
	set(easy, CURLOPT_CLOSESOCKETDATA, transfer->session);
	set(easy, CURLOPT_PREREQFUNCTION, on_request);
	set(easy, CURLOPT_PREREQDATA, transfer);
	set(easy, CURLOPT_HEADERFUNCTION, on_header);
	set(easy, CURLOPT_HEADERDATA, transfer);
	set(easy, CURLOPT_WRITEFUNCTION, on_body);
	set(easy, CURLOPT_WRITEDATA, transfer);
}

/*
 * Connections are given up after ten minutes, so that a target can move its
 * name to another address; and when they have been idle for nearly a minute,
 * which is when servers tend to close them.
 */
static void
set_connection(CURL *easy, const PsyncHttpSettings *settings)
{
	Assert(settings->timeout_ms > 0 && settings->connect_timeout_ms > 0);
	set(easy, CURLOPT_HTTP_VERSION, settings->http_version);
	if (settings->http_version != CURL_HTTP_VERSION_1_1)
		set(easy, CURLOPT_PIPEWAIT, 1L);
	set(easy, CURLOPT_CONNECTTIMEOUT_MS, settings->connect_timeout_ms);
	set(easy, CURLOPT_TIMEOUT_MS, settings->timeout_ms);
	set(easy, CURLOPT_DNS_CACHE_TIMEOUT, PSYNC_HTTP_DNS_CACHE);
	set(easy, CURLOPT_TCP_KEEPALIVE, 1L);
	set(easy, CURLOPT_MAXLIFETIME_CONN, PSYNC_HTTP_CONNECTION_LIFE);
	set(easy, CURLOPT_MAXAGE_CONN, PSYNC_HTTP_IDLE_LIFE);
	/* "" keeps the environment's proxy out */
	set(easy, CURLOPT_PROXY, settings->proxy);
	set(easy, CURLOPT_NOPROXY, "");
	set(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
}

/* From memory: a key never touches a file. */
static void
set_blob(CURL *easy, CURLoption option, const char *text)
{
	struct curl_blob blob = {
		.data = unconstify(char *, text),
		.len = strlen(text),
		.flags = CURL_BLOB_NOCOPY
	};

	set(easy, option, &blob);
}

/*
 * A ca_file replaces the system's authorities rather than adding to them:
 * whoever names one does not want the others.
 */
static void
set_tls(CURL *easy, const PsyncHttpSettings *settings)
{
	set(easy, CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	set(easy, CURLOPT_SSL_VERIFYPEER, 1L);
	set(easy, CURLOPT_SSL_VERIFYHOST, 2L);
	if (settings->ca_file != NULL)
	{
		set(easy, CURLOPT_CAINFO, settings->ca_file);
		set(easy, CURLOPT_CAPATH, NULL);
	}
	if (settings->client_cert != NULL && settings->client_key != NULL)
	{
		set(easy, CURLOPT_SSLCERTTYPE, "PEM");
		set(easy, CURLOPT_SSLKEYTYPE, "PEM");
		set_blob(easy, CURLOPT_SSLCERT_BLOB, settings->client_cert);
		set_blob(easy, CURLOPT_SSLKEY_BLOB, settings->client_key);
		if (settings->client_key_password != NULL)
			set(easy, CURLOPT_KEYPASSWD, settings->client_key_password);
	}
}

/* What holds for all requests of the session. */
void
psync_http_easy_init(PsyncHttpTransfer *transfer)
{
	const PsyncHttpSettings *settings = transfer->session->settings;

	set_restrictions(transfer->easy);
	set_callbacks(transfer);
	set_connection(transfer->easy, settings);
	set_tls(transfer->easy, settings);
	set(transfer->easy, CURLOPT_USERAGENT, "payment_sync");
}

/* "Name: value"; libcurl takes a header with an empty value by a semicolon. */
static char *
header_line(const PsyncHttpHeader *header)
{
	size_t		nname = strlen(header->name);
	size_t		nvalue = strlen(header->value);
	char	   *line = palloc(nname + nvalue + 3);

	Assert(nname > 0);
	memcpy(line, header->name, nname);
	memcpy(line + nname, nvalue == 0 ? ";" : ": ", 2);
	memcpy(line + nname + 2, header->value, nvalue);
	line[nname + 2 + nvalue] = '\0';
	return line;
}

/*
 * The list of headers, in our memory: libcurl only reads it, and so its own
 * allocations, one per header and request, are spared.  It compares each with
 * a dozen names, so a short list is worth something, too.
 *
 * libcurl before 8.3 signs for AWS every line of the list, also those that
 * take a header out, so that no target believes the signature.  Such requests
 * keep "Accept"; "Expect" does no harm where nobody waits for its answer.
 */
static void
set_headers(PsyncHttpTransfer *transfer, bool aws)
{
	/* what libcurl would add by itself; a name alone takes it out */
	static char no_accept[] = "Accept:";
	static char no_expect[] = "Expect:";
	const PsyncHttpRequest *request = transfer->request;
	struct curl_slist *list = palloc((request->nheaders + 2) * sizeof(struct curl_slist));
	int			n = 0;

	if (!aws)
		list[n++].data = no_accept;
	if (!aws && request->size > PSYNC_HTTP_EXPECT_MIN)
		list[n++].data = no_expect;
	for (int i = 0; i < request->nheaders; i++)
		list[n++].data = header_line(&request->headers[i]);
	for (int i = 0; i < n; i++)
		list[i].next = i + 1 < n ? &list[i + 1] : NULL;
	transfer->slist = list;
	set(transfer->easy, CURLOPT_HTTPHEADER, list);
}

/*
 * The handle has been used before: what the last request set must not show
 * through.
 */
static void
set_method(CURL *easy, const PsyncHttpRequest *request)
{
	const char *method = request->route->method;

	if (!request->with_body)
	{
		/* or AWS's signature would be of the last request's body, long freed */
		set(easy, CURLOPT_POSTFIELDS, NULL);
		set(easy, CURLOPT_HTTPGET, 1L);
		set(easy, CURLOPT_CUSTOMREQUEST, method);
		return;
	}
	set(easy, CURLOPT_POST, 1L);
	set(easy, CURLOPT_CUSTOMREQUEST, strcmp(method, "POST") == 0 ? NULL : method);
	set(easy, CURLOPT_POSTFIELDS, request->body);
	set(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) request->size);
}

/* What this request is. */
void
psync_http_easy_prepare(PsyncHttpTransfer *transfer)
{
	PsyncHttpSession *session = transfer->session;
	const PsyncHttpSettings *settings = session->settings;
	MemoryContext old = MemoryContextSwitchTo(transfer->context);
	bool		aws = settings->aws_sigv4 != NULL && transfer->purpose != PSYNC_HTTP_FOR_TOKEN;
	bool		fresh = session->fresh_due > 0 || transfer->purpose == PSYNC_HTTP_FOR_CHECK;

	Assert(transfer->request->with_body || transfer->request->size == 0);
	transfer->error[0] = '\0';
	transfer->loopback_only = !transfer->request->route->tls && !settings->allow_http;
	set(transfer->easy, CURLOPT_URL, transfer->request->url);
	set_method(transfer->easy, transfer->request);
	set_headers(transfer, aws);
	if (aws)
	{
		set(transfer->easy, CURLOPT_EXPECT_100_TIMEOUT_MS, 1L);
		set(transfer->easy, CURLOPT_AWS_SIGV4, settings->aws_sigv4);
		set(transfer->easy, CURLOPT_USERPWD, settings->aws_userpwd);
	}
	set(transfer->easy, CURLOPT_FRESH_CONNECT, (long) fresh);
	if (session->fresh_due > 0)
		session->fresh_due--;
	MemoryContextSwitchTo(old);
}
