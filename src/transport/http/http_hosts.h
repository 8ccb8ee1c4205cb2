/*
 * http_hosts.h
 *		Entries of payment_sync.http_allowed_hosts: names, addresses, networks.
 *
 * Read by the core's check hook and by the transport, which do not link to
 * each other; therefore in a header.  What the hook lets pass the transport
 * reads the same way, so that no entry means more than was written.
 */
#ifndef PSYNC_HTTP_HOSTS_H
#define PSYNC_HTTP_HOSTS_H

#include <arpa/inet.h>
#include <netinet/in.h>

/* An address as 16 bytes, IPv4 as IPv4-mapped, and how many bits count. */
typedef struct PsyncHttpNet
{
	unsigned char bytes[16];
	int			bits;
} PsyncHttpNet;

typedef enum PsyncHttpEntry
{
	PSYNC_HTTP_ENTRY_INVALID,
	PSYNC_HTTP_ENTRY_NET,		/* an address is a network of one */
	PSYNC_HTTP_ENTRY_LOOPBACK,	/* "localhost" */
	PSYNC_HTTP_ENTRY_NAME		/* also "*" and "*.domain" */
} PsyncHttpEntry;

/* Bits of ::ffff:0:0/96. */
#define PSYNC_HTTP_MAPPED_BITS	96

/* Longest name that DNS knows. */
#define PSYNC_HTTP_NAME_BYTES_MAX	253
#define PSYNC_HTTP_LABEL_BYTES_MAX	63

static const unsigned char psync_http_mapped_prefix[12] = {
	0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff
};

/* An address without "/bits" to 16 bytes; false if it is none. */
static inline bool
psync_http_address_parse(const char *text, unsigned char *bytes, bool *is_v4)
{
	struct in_addr v4;
	struct in6_addr v6;

	*is_v4 = inet_pton(AF_INET, text, &v4) == 1;
	if (*is_v4)
	{
		memcpy(bytes, psync_http_mapped_prefix, sizeof(psync_http_mapped_prefix));
		memcpy(bytes + sizeof(psync_http_mapped_prefix), &v4, sizeof(v4));
		return true;
	}
	if (inet_pton(AF_INET6, text, &v6) != 1)
		return false;
	memcpy(bytes, &v6, sizeof(v6));
	return true;
}

/* Digits to the end, without a zero in front; 0 if it is something else. */
static inline int
psync_http_bits_parse(const char *text, int max)
{
	size_t		size = strlen(text);
	int			bits;

	if (size < 1 || size > 3 || strspn(text, "0123456789") != size || text[0] == '0')
		return 0;
	bits = atoi(text);
	return bits <= max ? bits : 0;
}

/* An address or "address/bits".  A network of all addresses is "*", not /0. */
static inline bool
psync_http_net_parse(const char *text, PsyncHttpNet *net)
{
	char		address[INET6_ADDRSTRLEN];
	const char *slash = strchr(text, '/');
	size_t		size = slash != NULL ? (size_t) (slash - text) : strlen(text);
	bool		is_v4;

	if (size >= sizeof(address))
		return false;
	memcpy(address, text, size);
	address[size] = '\0';
	if (!psync_http_address_parse(address, net->bytes, &is_v4))
		return false;
	net->bits = 128;
	if (slash == NULL)
		return true;
	net->bits = psync_http_bits_parse(slash + 1, is_v4 ? 32 : 128);
	if (net->bits == 0)
		return false;
	net->bits += is_v4 ? PSYNC_HTTP_MAPPED_BITS : 0;
	return true;
}

/*
 * Labels by dots.  The last one of a name begins with a letter and has two at
 * least, unless it is the only one: else somebody has mistyped an address
 * (10.1.2, 10.1.2.300, 10.1.2.O), which must not become a name that never
 * matches.
 */
static inline bool
psync_http_name_is_valid(const char *name)
{
	const char *label = name;
	bool		numeric = true;	/* all labels so far but the last */

	if (strlen(name) > PSYNC_HTTP_NAME_BYTES_MAX)
		return false;
	for (;;)
	{
		size_t		size = strcspn(label, ".");
		size_t		digits = strspn(label, "0123456789");

		if (size == 0 || size > PSYNC_HTTP_LABEL_BYTES_MAX ||
			strspn(label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") < size ||
			label[0] == '-' || label[size - 1] == '-')
			return false;
		if (label[size] == '\0')
			return digits < size &&
				(label == name || (digits == 0 && (size > 1 || !numeric)));
		numeric = numeric && digits == size;
		label += size + 1;
	}
}

/* What an entry is; the network is set if it is one. */
static inline PsyncHttpEntry
psync_http_entry_parse(const char *entry, PsyncHttpNet *net)
{
	if (pg_strcasecmp(entry, "localhost") == 0)
		return PSYNC_HTTP_ENTRY_LOOPBACK;
	if (psync_http_net_parse(entry, net))
		return PSYNC_HTTP_ENTRY_NET;
	if (strcmp(entry, "*") == 0 ||
		psync_http_name_is_valid(strncmp(entry, "*.", 2) == 0 ? entry + 2 : entry))
		return PSYNC_HTTP_ENTRY_NAME;
	return PSYNC_HTTP_ENTRY_INVALID;
}

/*
 * The next entry of a list, by commas, without the white space around it; the
 * list is changed.  NULL at the end.  A list of white space only is empty.
 */
static inline char *
psync_http_entry_next(char **list)
{
	char	   *entry = *list;
	char	   *end;

	if (entry == NULL)
		return NULL;
	*list = strchr(entry, ',');
	if (*list != NULL)
		*(*list)++ = '\0';
	entry += strspn(entry, " \t\n\r");
	end = entry + strlen(entry);
	while (end > entry && strchr(" \t\n\r", end[-1]) != NULL)
		*--end = '\0';
	return entry;
}

#endif							/* PSYNC_HTTP_HOSTS_H */
