/*
 * sign.c
 *		Signatures, by which a receiver knows that a body is from here.
 *
 * A target has a list of keys for the Standard Webhooks scheme and a list of
 * signers made of templates, each with keys of its own; each that is there adds
 * its header, independent of the others:
 *
 *		webhook-signature	per live key "v1,…" (HMAC-SHA256) or "v1a,…"
 *							(Ed25519) of id.timestamp.body, base64, by spaces
 *		signer_header		signer_value, with the HMAC of signer_content
 *
 * During a rotation old and new keys both sign, until the old one expires.
 * Signed are the uncompressed bytes, since that is what receivers verify, and
 * the time is the attempt's: a signature is never used twice.
 *
 * All cryptography is OpenSSL's (EVP).  Keys are handed to it when the target
 * is opened, and our copies wiped.
 */
#include "postgres.h"

#include <openssl/core_names.h>
#include <openssl/params.h>

#include "common/base64.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "transport/http/http_names.h"
#include "transport/http/http_time.h"
#include "transport/http/http_transport.h"

/* Ed25519: seed, and seed with public key behind it. */
#define PSYNC_HTTP_SEED_BYTES		32
#define PSYNC_HTTP_KEYPAIR_BYTES	64

/* Longest signature: Ed25519 has 64 bytes, HMAC-SHA512 as well. */
#define PSYNC_HTTP_SIGNATURE_BYTES_MAX	EVP_MAX_MD_SIZE

/* So many days before the last secret expires it is said. */
#define PSYNC_HTTP_EXPIRY_DAYS		7

/* Known schemes, as templates. */
static const struct
{
	const char *name;
	const char *header;
	const char *content;
	const char *value;
	const char *encoding;
}			known_signers[] = {
	{"stripe", "Stripe-Signature", "{timestamp}.{body}", "t={timestamp}[,v1={hex}]", "raw"},
	{"github", "X-Hub-Signature-256", "{body}", "sha256={hex}", "raw"},
	{"shopify", "X-Shopify-Hmac-Sha256", "{body}", "{base64}", "raw"},
	{"adyen", "HmacSignature", "{body}", "{base64}", "hex"},
	{NULL, NULL, NULL, NULL, NULL}
};

/* ------------------------------------------------------------------ keys */

/* As many bytes as pairs of digits; -1 if it is something else. */
static int
decode_hex(const char *text, unsigned char *bytes)
{
	size_t		size = strlen(text);
	uint64		n;

	/* hex_decode would show the digit that is none, which is of a secret */
	if (size % 2 != 0 || strspn(text, "0123456789abcdefABCDEF") != size)
		return -1;
	n = hex_decode(text, size, (char *) bytes);
	Assert(n == size / 2);
	return (int) n;
}

/* A context for HMACs with this key; NULL if OpenSSL has no memory. */
static EVP_MAC_CTX *
make_mac(const unsigned char *bytes, size_t size, const char *hash)
{
	EVP_MAC    *algorithm = EVP_MAC_fetch(NULL, "HMAC", NULL);
	EVP_MAC_CTX *context = algorithm != NULL ? EVP_MAC_CTX_new(algorithm) : NULL;
	OSSL_PARAM	params[2];

	Assert(size > 0);
	params[0] = OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST,
												 unconstify(char *, hash), 0);
	params[1] = OSSL_PARAM_construct_end();
	if (context != NULL && EVP_MAC_init(context, bytes, size, params) != 1)
	{
		EVP_MAC_CTX_free(context);
		context = NULL;
	}
	/* the context has a reference of its own */
	EVP_MAC_free(algorithm);
	return context;
}

/* A key of these bytes, which are wiped.  Without either part: it is none. */
static PsyncHttpKey *
make_key(unsigned char *bytes, int size, bool ed25519, const char *hash)
{
	PsyncHttpKey *key = palloc0(sizeof(PsyncHttpKey));

	key->ed25519 = ed25519;
	key->expires = DT_NOEND;
	if (ed25519 && (size == PSYNC_HTTP_SEED_BYTES || size == PSYNC_HTTP_KEYPAIR_BYTES))
		key->pkey = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, bytes,
												 PSYNC_HTTP_SEED_BYTES);
	else if (!ed25519 && size > 0)
		key->mac = make_mac(bytes, size, hash);
	if (size > 0)
		explicit_bzero(bytes, size);
	return key;
}

/* One secret, written in "encoding"; its "@time" is cut off already. */
static PsyncHttpKey *
key_from_secret(const char *secret, const char *encoding, const char *hash)
{
	size_t		room = strlen(secret) + 1;
	unsigned char *bytes = palloc(room);
	bool		ed25519 = false;
	int			size;

	if (strcmp(encoding, "standard") == 0)
	{
		if (strncmp(secret, "whsec_", 6) == 0)
			secret += 6;
		else if (strncmp(secret, "whsk_", 5) == 0)
		{
			secret += 5;
			ed25519 = true;
		}
		else
			return palloc0(sizeof(PsyncHttpKey));
		encoding = "base64";
	}
	if (strcmp(encoding, "base64") == 0)
		size = pg_b64_decode(secret, strlen(secret), (void *) bytes, room);
	else if (strcmp(encoding, "hex") == 0)
		size = decode_hex(secret, bytes);
	else
	{
		size = strlen(secret);
		memcpy(bytes, secret, size);
	}
	return make_key(bytes, size, ed25519, hash);
}

/*
 * One item of a list of secrets: cut off at its comma and its white space, and
 * at "@time" with the time put into *expires.  Returns the rest of the list,
 * or NULL at its end.
 */
static char *
split_secret(char *item, char **secret, TimestampTz *expires, bool *valid)
{
	char	   *next = strchr(item, ',');
	char	   *at;
	char	   *end;

	if (next != NULL)
		*next++ = '\0';
	item += strspn(item, " \t\n");
	end = item + strlen(item);
	while (end > item && strchr(" \t\n", end[-1]) != NULL)
		*--end = '\0';
	*secret = item;
	*expires = DT_NOEND;
	*valid = *item != '\0';
	at = strchr(item, '@');
	if (at != NULL)
	{
		*at = '\0';
		*valid = *valid && psync_http_parse_time(at + 1, expires);
	}
	return next;
}

/*
 * Several secrets by commas, each perhaps with the time of its expiry.  Each
 * key is put into *keys at once, so that it is freed should the next one be
 * invalid.
 */
static void
keys_from_option(PsyncHttpSettings *settings, const PsyncTarget *target,
				 const char *keyword, const char *encoding, const char *hash,
				 List **keys)
{
	const char *value = psync_http_option(target, keyword);
	char	   *copy = value != NULL ? pstrdup(value) : NULL;

	Assert(*keys == NIL);
	for (char *item = copy; item != NULL;)
	{
		char	   *secret;
		TimestampTz expires;
		bool		valid;
		PsyncHttpKey *key;

		item = split_secret(item, &secret, &expires, &valid);
		psync_http_settings_add_secret(settings, secret);
		key = key_from_secret(secret, encoding, hash);
		key->expires = expires;
		*keys = lappend(*keys, key);
		if (!valid || (key->pkey == NULL && key->mac == NULL))
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
					 errmsg("invalid option \"%s\" of server \"%s\"",
							keyword, target->server_name),
					 errdetail("One of the secrets cannot be read.")));
	}
	if (copy != NULL)
		explicit_bzero(copy, strlen(value));
}

/* ------------------------------------------------------------------ init */

/* With a default. */
static const char *
option_or(const PsyncTarget *target, const char *keyword, const char *otherwise)
{
	const char *value = psync_http_option(target, keyword);

	return value != NULL ? value : otherwise;
}

/* The keys of a template signer, without which it is none. */
static void
init_signer_keys(PsyncHttpSettings *settings, const PsyncTarget *target,
				 PsyncHttpSigner *signer, const char *encoding)
{
	char	   *keyword = psprintf("%s_secret", signer->name);

	keys_from_option(settings, target, keyword,
					 option_or(target, psprintf("%s_key_encoding", signer->name), encoding),
					 option_or(target, psprintf("%s_hash", signer->name), "sha256"),
					 &signer->keys);
	if (signer->keys == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
				 errmsg("option \"%s\" of server \"%s\" needs option \"%s\"",
						signer->name, target->server_name, keyword),
				 errhint("Set it in the user mapping.")));
}

/* Two headers of the same name would be read as one, or as none. */
static void
check_signer_header(const PsyncHttpSettings *settings, const PsyncTarget *target,
					const PsyncHttpSigner *signer)
{
	ListCell   *lc;

	foreach(lc, settings->signers)
	{
		const PsyncHttpSigner *other = lfirst(lc);

		if (other != signer && pg_strcasecmp(other->header, signer->header) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
					 errmsg("two signers of server \"%s\" have the header \"%s\"",
							target->server_name, signer->header),
					 errhint("Set %s_header to another one.", signer->name)));
	}
}

/* A known scheme gives what the options leave out. */
static void
init_signer(PsyncHttpSettings *settings, const PsyncTarget *target, const char *name,
			const char *scheme)
{
	PsyncHttpSigner *signer = palloc0(sizeof(PsyncHttpSigner));
	int			known = 0;

	Assert(list_length(settings->signers) < PSYNC_HTTP_SIGNERS_MAX);
	while (known_signers[known].name != NULL &&
		   strcmp(known_signers[known].name, scheme) != 0)
		known++;
	signer->name = name;
	signer->header = option_or(target, psprintf("%s_header", name), known_signers[known].header);
	signer->content = option_or(target, psprintf("%s_content", name), known_signers[known].content);
	signer->value = option_or(target, psprintf("%s_value", name), known_signers[known].value);
	if (signer->header == NULL || signer->content == NULL || signer->value == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
				 errmsg("the signer of server \"%s\" is incomplete", target->server_name),
				 errdetail("A signer of one's own needs the options %s_header, %s_content and %s_value.",
						   name, name, name)));
	check_signer_header(settings, target, signer);

	/* in the list before it has keys, so that these are freed in any case */
	settings->signers = lappend(settings->signers, signer);
	init_signer_keys(settings, target, signer,
					 known_signers[known].encoding ? known_signers[known].encoding : "raw");
}

/* When the last of the keys expires. */
static TimestampTz
keys_end(const List *keys)
{
	TimestampTz end = DT_NOBEGIN;
	ListCell   *lc;

	foreach(lc, keys)
		end = Max(end, ((const PsyncHttpKey *) lfirst(lc))->expires);
	return end;
}

/* Of all schemes the one that ends first: receivers may look at any of them. */
static void
init_end(PsyncHttpSettings *settings)
{
	ListCell   *lc;

	settings->sign_end = DT_NOEND;
	if (settings->signing_keys != NIL)
	{
		settings->sign_end = keys_end(settings->signing_keys);
		settings->sign_end_keyword = "signing_secret";
	}
	foreach(lc, settings->signers)
	{
		const PsyncHttpSigner *signer = lfirst(lc);
		TimestampTz end = keys_end(signer->keys);

		if (end >= settings->sign_end)
			continue;
		settings->sign_end = end;
		settings->sign_end_keyword = psprintf("%s_secret", signer->name);
	}
}

/* Keys of both kinds; none at all is no mistake. */
void
psync_http_sign_init(PsyncHttpSettings *settings, PsyncTarget *target)
{
	keys_from_option(settings, target, "signing_secret", "standard", "sha256",
					 &settings->signing_keys);
	for (const char *const *name = psync_http_signer_names; *name; name++)
	{
		const char *scheme = psync_http_option(target, *name);
		char	   *secret = psprintf("%s_secret", *name);

		if (scheme != NULL)
			init_signer(settings, target, *name, scheme);
		else if (psync_http_option(target, secret) != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
					 errmsg("option \"%s\" of server \"%s\" needs option \"%s\"",
							secret, target->server_name, *name),
					 errhint("Set it on the server, or drop the secret from the user mapping.")));
	}
	init_end(settings);
}

/*
 * A rotation that is forgotten stops the sync when the last secret expires, so
 * a process says it some days before, once a day for each server.
 */
void
psync_http_sign_warn(const PsyncHttpSettings *settings, TimestampTz now)
{
	static List *warned = NIL;	/* of char *: servers, since "since" */
	static TimestampTz since = 0;
	MemoryContext old;
	ListCell   *lc;

	if (settings->sign_end > now + PSYNC_HTTP_EXPIRY_DAYS * USECS_PER_DAY ||
		settings->sign_end <= now)
		return;
	if (since <= now - USECS_PER_DAY)
	{
		list_free_deep(warned);
		warned = NIL;
		since = now;
	}
	foreach(lc, warned)
	{
		if (strcmp(lfirst(lc), settings->server_name) == 0)
			return;
	}
	old = MemoryContextSwitchTo(TopMemoryContext);
	warned = lappend(warned, pstrdup(settings->server_name));
	MemoryContextSwitchTo(old);
	ereport(WARNING,
			(errcode(ERRCODE_WARNING),
			 errmsg("the signing secrets of server \"%s\" expire soon", settings->server_name),
			 errdetail("The last secret in option \"%s\" of the user mapping expires at %s; nothing is sent from then on.",
					   settings->sign_end_keyword, timestamptz_to_str(settings->sign_end)),
			 errhint("Add a new secret in front of it.")));
}

/* OpenSSL wipes a key when it frees it. */
static void
free_keys(List *keys)
{
	ListCell   *lc;

	foreach(lc, keys)
	{
		PsyncHttpKey *key = lfirst(lc);

		EVP_PKEY_free(key->pkey);
		EVP_MAC_CTX_free(key->mac);
		key->pkey = NULL;
		key->mac = NULL;
	}
}

/* May be called twice, and before all keys are there. */
void
psync_http_sign_free(PsyncHttpSettings *settings)
{
	ListCell   *lc;

	free_keys(settings->signing_keys);
	foreach(lc, settings->signers)
		free_keys(((PsyncHttpSigner *) lfirst(lc))->keys);
}

/* --------------------------------------------------------------- signing */

/* A piece of what is signed. */
typedef struct Piece
{
	const char *bytes;
	size_t		size;
} Piece;

/*
 * Piece by piece, so that the body need not be copied; with a context that
 * knows its key already, since setting one up costs more than the HMAC of a
 * body of ordinary size.  Returns the size.
 */
static size_t
hmac(const PsyncHttpKey *key, const Piece *pieces, int npieces,
	 unsigned char *signature)
{
	size_t		size = 0;
	bool		ok;

	Assert(!key->ed25519 && npieces > 0);
	/* without a key, it begins anew with the one that it has */
	ok = EVP_MAC_init(key->mac, NULL, 0, NULL) == 1;
	for (int i = 0; ok && i < npieces; i++)
		ok = EVP_MAC_update(key->mac, (const unsigned char *) pieces[i].bytes,
							pieces[i].size) == 1;
	if (!ok || EVP_MAC_final(key->mac, signature, &size, PSYNC_HTTP_SIGNATURE_BYTES_MAX) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not sign a message")));
	return size;
}

/* Ed25519 needs all that is signed in one piece. */
static size_t
ed25519(const PsyncHttpKey *key, const Piece *pieces, int npieces,
		unsigned char *signature)
{
	EVP_MD_CTX *context = EVP_MD_CTX_new();
	size_t		size = PSYNC_HTTP_SIGNATURE_BYTES_MAX;
	StringInfoData whole;
	bool		ok;

	initStringInfo(&whole);
	for (int i = 0; i < npieces; i++)
		appendBinaryStringInfo(&whole, pieces[i].bytes, pieces[i].size);
	ok = context != NULL &&
		EVP_DigestSignInit(context, NULL, NULL, NULL, key->pkey) == 1 &&
		EVP_DigestSign(context, signature, &size, (unsigned char *) whole.data, whole.len) == 1;
	EVP_MD_CTX_free(context);
	pfree(whole.data);
	if (!ok)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not sign a message")));
	return size;
}

/* With padding, as all of these schemes have it. */
static void
append_base64(StringInfo into, const unsigned char *bytes, size_t size)
{
	int			room = pg_b64_enc_len(size);
	int			n;

	enlargeStringInfo(into, room + 1);
	n = pg_b64_encode((const void *) bytes, size, into->data + into->len, room);
	Assert(n > 0);
	into->len += n;
	into->data[into->len] = '\0';
}

/* Lower case, as all of these schemes have it. */
static void
append_hex(StringInfo into, const unsigned char *bytes, size_t size)
{
	for (size_t i = 0; i < size; i++)
		appendStringInfo(into, "%02x", bytes[i]);
}

/*
 * A receiver takes any of the signatures that it can verify, so all live
 * keys sign; their order, the newest first, is for people.
 */
static void
sign_standard(const PsyncHttpSettings *settings, PsyncHttpRequest *request,
			  const char *id, const char *timestamp, Piece body, TimestampTz now)
{
	const Piece pieces[] = {
		{id, strlen(id)}, {".", 1}, {timestamp, strlen(timestamp)}, {".", 1}, body
	};
	StringInfoData value;
	ListCell   *lc;

	/* a dot would let the same bytes be read as another id and time */
	Assert(strchr(id, '.') == NULL);
	initStringInfo(&value);
	foreach(lc, settings->signing_keys)
	{
		const PsyncHttpKey *key = lfirst(lc);
		unsigned char signature[PSYNC_HTTP_SIGNATURE_BYTES_MAX];
		size_t		size;

		if (key->expires <= now)
			continue;
		size = key->ed25519 ?
			ed25519(key, pieces, lengthof(pieces), signature) :
			hmac(key, pieces, lengthof(pieces), signature);
		appendStringInfo(&value, "%s%s,", value.len > 0 ? " " : "",
						 key->ed25519 ? "v1a" : "v1");
		append_base64(&value, signature, size);
	}
	psync_http_request_add_header(request, "webhook-timestamp", timestamp, false);
	if (value.len > 0)
		psync_http_request_add_header(request, "webhook-signature", value.data, true);
}

/* Is this placeholder here?  Then skip it. */
static bool
skip_placeholder(const char **at, const char *end, const char *placeholder)
{
	size_t		size = strlen(placeholder);

	if ((size_t) (end - *at) < size || memcmp(*at, placeholder, size) != 0)
		return false;
	*at += size;
	return true;
}

/* What a template signer signs. */
static char *
fill_content(const char *template, const char *id, const char *timestamp, Piece body,
			 size_t *size)
{
	StringInfoData content;
	const char *at = template;
	const char *end = template + strlen(template);

	initStringInfo(&content);
	while (at < end)
	{
		if (skip_placeholder(&at, end, "{id}"))
			appendStringInfoString(&content, id);
		else if (skip_placeholder(&at, end, "{timestamp}"))
			appendStringInfoString(&content, timestamp);
		else if (skip_placeholder(&at, end, "{body}"))
			appendBinaryStringInfo(&content, body.bytes, body.size);
		else
			appendStringInfoChar(&content, *at++);
	}
	*size = content.len;
	return content.data;
}

/* The stretch of the value's template from "at" to "end". */
static void
fill_value(StringInfo into, const char *at, const char *end, const char *id,
		   const char *timestamp, const unsigned char *signature, size_t size)
{
	Assert(at <= end);
	while (at < end)
	{
		if (skip_placeholder(&at, end, "{id}"))
			appendStringInfoString(into, id);
		else if (skip_placeholder(&at, end, "{timestamp}"))
			appendStringInfoString(into, timestamp);
		else if (skip_placeholder(&at, end, "{hex}"))
			append_hex(into, signature, size);
		else if (skip_placeholder(&at, end, "{base64}"))
			append_base64(into, signature, size);
		else
			appendStringInfoChar(into, *at++);
	}
}

/*
 * What stands in brackets is repeated for each live key; the rest is for the
 * first one, the newest.
 */
static void
sign_template(const PsyncHttpSigner *signer, PsyncHttpRequest *request,
			  const char *id, const char *timestamp, Piece body, TimestampTz now)
{
	const char *end = signer->value + strlen(signer->value);
	const char *open = strchr(signer->value, '[');
	const char *close = open != NULL ? strchr(open, ']') : NULL;
	Piece		content;
	StringInfoData value;
	ListCell   *lc;
	bool		first = true;
	unsigned char signature[PSYNC_HTTP_SIGNATURE_BYTES_MAX];
	size_t		size = 0;

	content.bytes = fill_content(signer->content, id, timestamp, body, &content.size);
	initStringInfo(&value);
	foreach(lc, signer->keys)
	{
		const PsyncHttpKey *key = lfirst(lc);

		if (key->expires <= now || (!first && close == NULL))
			continue;
		size = hmac(key, &content, 1, signature);
		if (first)
			fill_value(&value, signer->value, close ? open : end, id, timestamp, signature, size);
		if (close != NULL)
			fill_value(&value, open + 1, close, id, timestamp, signature, size);
		first = false;
	}
	if (!first && close != NULL)
		fill_value(&value, close + 1, end, id, timestamp, signature, size);
	if (!first)
		psync_http_request_add_header(request, signer->header, value.data, true);
}

/* The time is in Unix seconds, rounded down. */
void
psync_http_sign(const PsyncHttpSettings *settings, PsyncHttpRequest *request,
				const char *id, const char *body, size_t size, TimestampTz now)
{
	Piece		piece = {body, size};
	char	   *timestamp;
	ListCell   *lc;

	Assert(strchr(id, '.') == NULL);
	if (settings->signing_keys == NIL && settings->signers == NIL)
		return;
	timestamp = psprintf(INT64_FORMAT,
						 now / USECS_PER_SEC +
						 (int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY);
	if (settings->signing_keys != NIL)
		sign_standard(settings, request, id, timestamp, piece, now);
	foreach(lc, settings->signers)
		sign_template(lfirst(lc), request, id, timestamp, piece, now);
}
