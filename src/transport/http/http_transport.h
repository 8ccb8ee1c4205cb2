/*
 * http_transport.h
 *		What the files of the http transport share.
 *
 *		settings.c	options -> PsyncHttpSettings		(once, when opened)
 *		request.c	message -> PsyncHttpRequest			(once per attempt)
 *		curl.c		PsyncHttpRequest -> libcurl -> PsyncHttpAnswer
 *		outcome.c	PsyncHttpAnswer -> PsyncOutcome
 *		items.c		likewise, where the answer tells events apart
 *
 * libcurl calls back (curl.c, address.c).  An error raised there would jump
 * out of libcurl's frames and leave it broken, so nothing called from there
 * may raise one: what happens is noted in the transfer and acted upon later.
 */
#ifndef PSYNC_HTTP_TRANSPORT_H
#define PSYNC_HTTP_TRANSPORT_H

#include <curl/curl.h>
#include <openssl/evp.h>
#include <sys/socket.h>

#include "lib/ilist.h"
#include "lib/stringinfo.h"
#include "nodes/pg_list.h"

#include "transport/payment_sync_transport.h"

#if LIBCURL_VERSION_NUM < 0x075000
#error "the http transport needs libcurl 7.80 or newer (package libcurl4-openssl-dev)"
#endif

/* Of an answer, at most so many bytes are read: headers, body. */
#define PSYNC_HTTP_HEADER_BYTES_MAX		(64 * 1024)
#define PSYNC_HTTP_BODY_BYTES_MAX		(1024 * 1024)

/* Bodies that a process holds at the same time, all targets together. */
#define PSYNC_HTTP_BODIES_BYTES_MAX		(16 * 1024 * 1024)

/* Of an answer, at most so many bytes are shown. */
#define PSYNC_HTTP_EXCERPT_BYTES_MAX	500

/* ... and that many are looked at for it, and kept where no more is wanted. */
#define PSYNC_HTTP_EXCERPT_FROM_BYTES	(2 * PSYNC_HTTP_EXCERPT_BYTES_MAX + 4096)

/* Requests in flight at most, whatever the core asks for. */
#define PSYNC_HTTP_IN_FLIGHT_MAX		256

extern const PsyncServices *psync_http_services;

/* -------------------------------------------------------------- settings */

/* Neither part holds a control character; see settings.c and request.c. */
typedef struct PsyncHttpHeader
{
	const char *name;
	const char *value;			/* "" is sent as an empty header */
	bool		secret;			/* masked by preview() */
} PsyncHttpHeader;

/* A key to sign with, until it expires. */
typedef struct PsyncHttpKey
{
	bool		ed25519;		/* else HMAC */
	EVP_PKEY   *pkey;			/* Ed25519: the key; freed with the settings */
	EVP_MAC_CTX *mac;			/* HMAC: knows hash and key; likewise */
	TimestampTz expires;		/* DT_NOEND: never */
} PsyncHttpKey;

/* A template signer; see options signer_…. */
typedef struct PsyncHttpSigner
{
	const char *name;			/* of its first option: "signer", "signer2" … */
	const char *header;			/* name of the header that bears it */
	const char *content;		/* template of what is signed */
	const char *value;			/* template of the header's value */
	List	   *keys;			/* of PsyncHttpKey, the newest first */
} PsyncHttpSigner;

/* Where and how changes of one kind are sent. */
typedef struct PsyncHttpRoute
{
	const char *url;			/* with placeholders */
	const char *host;			/* of the URL, lower case, without brackets */
	const char *origin;			/* scheme, host and port: what may be shown */
	const char *method;			/* DELETE has no body */
	bool		tls;			/* https */
} PsyncHttpRoute;

/* Kinds of changes that may have an address and a method of their own. */
typedef enum PsyncHttpRouteKind
{
	PSYNC_HTTP_INSERT,			/* and rows of a batch, and truncate */
	PSYNC_HTTP_UPDATE,
	PSYNC_HTTP_DELETE,
	PSYNC_HTTP_NROUTES			/* how many there are */
} PsyncHttpRouteKind;

/* Of the body on its way; signed is the body as it was before. */
typedef enum PsyncHttpCompression
{
	PSYNC_HTTP_IDENTITY,		/* none */
	PSYNC_HTTP_GZIP,
	PSYNC_HTTP_ZSTD				/* only if the build has the library */
} PsyncHttpCompression;

/* What a token is fetched with; all but the route goes into the request. */
typedef struct PsyncHttpOauth
{
	PsyncHttpRoute token;		/* of the token's endpoint */
	const char *client_id;
	const char *client_secret;	/* never sent to the target itself */
	const char *scope;			/* or NULL */
	const char *audience;		/* or NULL */
	bool		in_body;		/* credentials in the body, else basic */
} PsyncHttpOauth;

/* Statuses, both ends included. */
typedef struct PsyncHttpRange
{
	int			low;			/* 200 at least: others are not final */
	int			high;			/* 599 at most */
} PsyncHttpRange;

/*
 * The options of a target, parsed and checked.  Does not change while the
 * target is open, but for the tokens that are fetched.
 */
typedef struct PsyncHttpSettings
{
	MemoryContext context;		/* of all of this */
	PsyncHttpRoute routes[PSYNC_HTTP_NROUTES];	/* by PsyncHttpRouteKind */
	bool		url_is_secret;	/* it is the user mapping's */
	const char *proxy;			/* "" for none */
	bool		allow_http;		/* plain http to other hosts, too */
	PsyncHttpHeader *headers;	/* static ones, credentials included */
	int			nheaders;		/* entries of it in use */
	PsyncHttpCompression compression;
	const char *content_type;	/* or NULL: the message's */
	const char *idempotency_header; /* NULL: none */
	bool		idempotency_quoted; /* as the Internet-Draft has it */
	long		http_version;	/* CURL_HTTP_VERSION_… */
	long		connect_timeout_ms; /* until TCP and TLS stand */
	long		timeout_ms;		/* of the whole request */
	const char *ca_file;		/* or NULL: the system's authorities */
	PsyncHttpRange *success;	/* statuses that acknowledge */
	int			nsuccess;		/* entries of it, at least one */
	const char *success_body;	/* or NULL: any */
	const char *items_path;		/* or NULL: there are no results per event */
	const char *items_index;	/* or NULL: results are in order */
	const char *items_error;	/* or NULL: each result is a failure */
	const char *items_code;		/* or NULL: what items_error leads to */
	const char *items_success;	/* or NULL: the list of failures must be there */
	const char *items_retry;	/* codes of failures that may pass */
	PsyncHttpOauth *oauth;		/* or NULL */
	const char *aws_sigv4;		/* or NULL; as libcurl wants it */
	const char *aws_userpwd;	/* access key and secret key, by a colon */
	const char *client_cert;	/* or NULL; PEM, as are the next two */
	const char *client_key;
	const char *client_key_password;	/* or NULL: the key is not encrypted */
	List	   *signing_keys;	/* of PsyncHttpKey: Standard Webhooks */
	List	   *signers;		/* of PsyncHttpSigner *, in order of their names */
	List	   *secrets;		/* of char *: never to be shown (P9) */
	char	   *token_secrets[2];	/* nor these: the newest token, the one before */
	TimestampTz sign_end;		/* from then on a scheme has no live key;
								 * DT_NOEND: never */
	const char *sign_end_keyword;	/* the option that holds its keys */
	const char *server_name;	/* for messages */
} PsyncHttpSettings;

/* Fill in the rest of a route by its URL; false if that is none. */
extern bool psync_http_route_parse(PsyncHttpRoute *route);

/* An option of the target in UTF-8; NULL if it has none. */
extern const char *psync_http_option(const PsyncTarget *target, const char *keyword);

/*
 * Raises an error that says which option is wrong, without its value.  The
 * settings belong to a context below the target's.
 */
extern PsyncHttpSettings *psync_http_settings_create(PsyncTarget *target);
extern void psync_http_settings_free(PsyncHttpSettings *settings);

/* A header for every request; "secret" keeps the value out of what is shown. */
extern void psync_http_settings_add_header(PsyncHttpSettings *settings,
										   const char *name, const char *value,
										   bool secret);

/* Never show this text, wherever a target may repeat it. */
extern void psync_http_settings_add_secret(PsyncHttpSettings *settings,
										   const char *text);
extern void psync_http_settings_token_secret(PsyncHttpSettings *settings,
											 const char *token);

/* auth.c: credentials -> headers and what libcurl needs */
extern void psync_http_auth_init(PsyncHttpSettings *settings, PsyncTarget *target);

/* sign.c; its options are listed in options.c */
extern void psync_http_sign_init(PsyncHttpSettings *settings, PsyncTarget *target);

/* Keys are OpenSSL's memory, which no context frees.  Does not raise. */
extern void psync_http_sign_free(PsyncHttpSettings *settings);

/* Warn if the secrets expire soon. */
extern void psync_http_sign_warn(const PsyncHttpSettings *settings, TimestampTz now);

/* --------------------------------------------------------------- request */

/* One request, made anew for each attempt; all of it in one context. */
typedef struct PsyncHttpRequest
{
	const PsyncHttpRoute *route;	/* the settings' */
	const char *url;			/* placeholders filled in */
	bool		with_body;		/* DELETE has none */
	const char *body;			/* as it travels: compressed or not */
	size_t		size;			/* bytes of it */
	PsyncHttpHeader *headers;	/* the settings' and the request's own */
	int			nheaders;		/* entries of it in use */
	int			nheaders_max;	/* room for so many */
} PsyncHttpRequest;

/* Why a message could not become a request, and whose fault that is. */
typedef struct PsyncHttpUnsendable
{
	PsyncOutcomeKind kind;		/* refused: the message's; target: the server's */
	int			sqlerrcode;
	const char *reason;			/* NULL: it has become one */
} PsyncHttpUnsendable;

/*
 * The request of an attempt at "now", in the current context; NULL, and why,
 * if the message cannot be one.  "token" is OAuth's, or NULL.
 */
extern PsyncHttpRequest *psync_http_request_create(const PsyncHttpSettings *settings,
												   const PsyncMessage *message,
												   const char *token,
												   TimestampTz now,
												   PsyncHttpUnsendable *why);
extern char *psync_http_request_show(const PsyncHttpSettings *settings,
									 const PsyncHttpRequest *request,
									 const PsyncMessage *message);
extern void psync_http_request_add_header(PsyncHttpRequest *request,
										  const char *name, const char *value,
										  bool secret);

/* sign.c: add the headers that sign "body"; the time is the attempt's */
extern void psync_http_sign(const PsyncHttpSettings *settings,
							PsyncHttpRequest *request, const char *id,
							const char *body, size_t size, TimestampTz now);

/* Text for a header or a URL: bytes other than unreserved ones as %XX. */
extern char *psync_http_percent_encode(const char *text);

/* body.c: the bytes that travel, in the current context */
extern const char *psync_http_compress(PsyncHttpCompression compression,
									   const char *body, size_t size,
									   size_t *compressed_size);
extern bool psync_http_have_zstd(void);

/* --------------------------------------------------------------- address */

/* The allowed hosts, parsed; see payment_sync.http_allowed_hosts. */
typedef struct PsyncHttpPolicy PsyncHttpPolicy;

/* The policy as of now; looks whether the setting has changed. */
extern const PsyncHttpPolicy *psync_http_policy(void);

/*
 * May "host" be reached at this address?  Called back from libcurl: does not
 * raise.  NULL if it may, else why not, a constant sentence.
 */
extern const char *psync_http_address_refused(const PsyncHttpPolicy *policy,
											  const char *host,
											  const struct sockaddr *address,
											  bool loopback_only);
/* The same for an address as text. */
extern const char *psync_http_address_text_refused(const PsyncHttpPolicy *policy,
												   const char *host,
												   const char *address,
												   bool loopback_only);
/* May this name be reached through a proxy, which alone sees its address? */
extern const char *psync_http_name_refused(const PsyncHttpPolicy *policy,
										   const char *host);

/* --------------------------------------------------------------- session */

typedef struct PsyncHttpSession PsyncHttpSession;

/* What came back; valid until the transfer is used again. */
typedef struct PsyncHttpAnswer
{
	CURLcode	code;			/* how libcurl ended the transfer */
	const char *error;			/* libcurl's words; name no path and no secret */
	const char *refused;		/* why the address was refused, or NULL */
	int			status;			/* 0: none */
	bool		reused;			/* the connection had been used before */
	bool		headers_overflow;	/* cut off at the limit */
	bool		body_overflow;	/* likewise */
	char	   *body;			/* zero-terminated, may hold zeros; NULL: none */
	size_t		body_size;		/* bytes without the final zero, as far as kept */
	size_t		body_received;	/* bytes that have come */
	int64		announced;		/* body bytes by Content-Length, -1: not told */
	char		retry_after[64];	/* of these headers the begin, "" if none */
	char		date[64];
	char		tls_version[16];	/* for check_target() only, as is the next */
	int64		tls_expires;	/* end of the certificate's life, Unix time */
} PsyncHttpAnswer;

/* What a transfer is for decides what becomes of its answer. */
typedef enum PsyncHttpPurpose
{
	PSYNC_HTTP_FOR_MESSAGE,		/* settled with the core */
	PSYNC_HTTP_FOR_TOKEN,		/* kept by oauth.c */
	PSYNC_HTTP_FOR_CHECK		/* reported step by step; always a new connection */
} PsyncHttpPurpose;

/* One request under way, or free to be used again, its easy handle kept. */
typedef struct PsyncHttpTransfer
{
	dlist_node	node;			/* in one of the session's lists */
	PsyncHttpSession *session;	/* that it belongs to for good */
	PsyncHttpPurpose purpose;
	CURL	   *easy;			/* kept with its options over many requests */
	bool		in_multi;		/* libcurl is at work on it */
	MemoryContext context;		/* of this request; reset before the next */
	const PsyncMessage *message;	/* NULL for a token */
	PsyncHttpRequest *request;	/* of this attempt; NULL while it waits */
	struct curl_slist *slist;	/* ours, not libcurl's: an array */
	bool		loopback_only;	/* plain http that is not allowed elsewhere */
	PsyncHttpUnsendable unsendable; /* why it could not become a request */
	bool		token_renewed;	/* sent again with a new token, once */
	uint64		token_serial;	/* the token it was sent with, see oauth.c */
	int64		started;		/* psync_http_clock() */
	size_t		header_bytes;	/* received so far */
	size_t		body_room;		/* allocated for the answer's body */
	PsyncHttpAnswer answer;		/* filled in by callbacks, complete when done */
	char		error[CURL_ERROR_SIZE]; /* where libcurl writes its words */
} PsyncHttpTransfer;

/*
 * A target that is open.  Transfers are in one of these lists:
 *
 *		idle -> (waiting ->) running -> done -> idle
 *
 * "waiting" are those that wait for an OAuth token, "done" those whose answer
 * has come and is yet to be told to the core.
 */
struct PsyncHttpSession
{
	PsyncTarget *target;
	MemoryContext context;		/* of the session and its transfers */
	PsyncHttpSettings *settings;
	const PsyncHttpPolicy *policy;	/* looked up before each drive */
	CURLM	   *multi;			/* one per target: its limits and connections
								 * stay its own */
	int			epoll;			/* all its sockets behind one; -1: none */
	bool		epoll_reserved; /* counted as a descriptor of ours */
	int64		timer;			/* when libcurl wants to be called; -1: not */
	uint32	   *sockets;		/* per descriptor: see curl.c */
	int			nsockets;		/* entries of it */
	List	   *transfers;		/* all of them */
	dlist_head	idle;
	dlist_head	waiting;
	dlist_head	running;
	dlist_head	done;
	int			nbusy;			/* not idle */
	int			nbusy_max;
	int			nopen;			/* sockets, those of idle connections among them */
	dlist_node	node;			/* in the process's list of sessions */
	bool		listed;
	int			fresh_due;		/* so many new connections are to be made */
	int			stale_in_row;	/* attempts lost with stale connections */
	bool		token_underway;	/* a token is being fetched */
};

/* A clock in microseconds that never goes back. */
extern int64 psync_http_clock(void);

/* curl.c */
extern void psync_http_curl_init(void);
extern void psync_http_session_start(PsyncHttpSession *session, int in_flight_max);
extern void psync_http_session_end(PsyncHttpSession *session);
/* A transfer that is in no list; NULL if all are busy. */
extern PsyncHttpTransfer *psync_http_transfer_get(PsyncHttpSession *session,
												  PsyncHttpPurpose purpose);
extern void psync_http_transfer_start(PsyncHttpTransfer *transfer);
extern void psync_http_transfer_release(PsyncHttpTransfer *transfer);
/* Move transfers on without waiting; those that ended are then in "done". */
extern void psync_http_session_drive(PsyncHttpSession *session);
/* Wait until there is something to drive; false if the latch was set. */
extern pgsocket psync_http_session_watch(const PsyncHttpSession *session,
										 long *timeout_ms);
extern bool psync_http_session_wait(PsyncHttpSession *session, long timeout_ms);

/* easy.c: libcurl's options.  Sockets are told to curl.c. */
extern void psync_http_easy_init(PsyncHttpTransfer *transfer);
extern void psync_http_easy_prepare(PsyncHttpTransfer *transfer);
extern void psync_http_easy_drop_body(PsyncHttpTransfer *transfer);
extern bool psync_http_socket_room(void);
extern void psync_http_socket_opened(PsyncHttpSession *session, curl_socket_t socket);
extern void psync_http_socket_closed(PsyncHttpSession *session, curl_socket_t socket);

/* oauth.c */
extern const char *psync_http_oauth_token(PsyncHttpSession *session, uint64 *serial);
extern void psync_http_oauth_step(PsyncHttpSession *session);
extern void psync_http_oauth_forget(PsyncHttpSession *session, uint64 serial);
extern void psync_http_oauth_forget_all(PsyncHttpSession *session);
extern bool psync_http_oauth_ended(PsyncHttpTransfer *transfer, PsyncOutcome *outcome);

/* outcome.c: in the current context */
extern void psync_http_outcome(PsyncHttpTransfer *transfer, PsyncOutcome *outcome);
/* Text of a target: capped, valid in our encoding, without our secrets. */
extern char *psync_http_excerpt(const PsyncHttpSettings *settings,
								const char *text, size_t size);

/* items.c: results per event; false if the answer has none that fit */
extern bool psync_http_read_items(const PsyncHttpTransfer *transfer,
								  PsyncOutcome *outcome);

/* json.c: a member of a JSON text, by path; see there */
typedef struct PsyncHttpJson
{
	const char *at;				/* begin of the value */
	const char *end;			/* just behind it */
} PsyncHttpJson;

/*
 * All of these say false if there is no such thing, and never raise an error
 * but for lack of memory.
 */
extern bool psync_http_json_parse(const char *text, size_t size, PsyncHttpJson *value);
extern bool psync_http_json_member(PsyncHttpJson object, const char *name,
								   PsyncHttpJson *value);
extern bool psync_http_json_path(PsyncHttpJson value, const char *path,
								 PsyncHttpJson *found);
extern bool psync_http_json_element(PsyncHttpJson array, const char **cursor,
									PsyncHttpJson *element);
extern bool psync_http_json_is_read(PsyncHttpJson array, const char *cursor);
extern char *psync_http_json_string(PsyncHttpJson value);
extern bool psync_http_json_truthy(PsyncHttpJson value);

/* check.c */
extern void psync_http_check(PsyncTarget *target, const PsyncMessage *ping,
							 PsyncCheckReport report, void *arg);

/* http.c */
extern PsyncHttpSession *psync_http_session_create(PsyncTarget *target);
extern void psync_http_session_destroy(PsyncHttpSession *session);
/* Start the transfer's request, unless its host may not be reached. */
extern void psync_http_start(PsyncHttpTransfer *transfer);
/* Make a request of the transfer's message and send it. */
extern void psync_http_send(PsyncHttpTransfer *transfer);

#endif							/* PSYNC_HTTP_TRANSPORT_H */
