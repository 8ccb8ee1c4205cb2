/*
 * address.c
 *		Which addresses may be connected to.
 *
 * Who may create a server may name any host, but must not thereby reach what
 * only this machine can reach: its own ports, the private network, a cloud's
 * metadata service.  A check of the name is not enough, because its DNS entry
 * is the attacker's; so it is the address that is really connected to that is
 * checked, when the socket is made and before each request (easy.c).
 *
 * payment_sync.http_allowed_hosts is a list of
 *
 *		*					any name
 *		name, *.name		this name; any name that ends like this
 *		address, net/bits	this address, these addresses
 *		localhost			the loopback addresses
 *
 * A connection is allowed if its address is listed; or if the address is
 * public and the name is listed, or the list is empty.
 */
#include "postgres.h"

#include <ifaddrs.h>

#include "utils/formatting.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "transport/http/http_hosts.h"
#include "transport/http/http_transport.h"

/* So long a list of this host's own addresses is believed. */
#define PSYNC_HTTP_OWN_SECONDS	5

struct PsyncHttpPolicy
{
	char	   *text;			/* the setting it was made of */
	bool		empty;
	List	   *names;			/* of char *, lower case */
	List	   *nets;			/* of PsyncHttpNet * */
};

/*
 * Not public: the union of what is set aside for this host, this network,
 * private use, documentation, tests, translation within a network, and
 * multicast; and 168.63.129.16, which a cloud keeps for its hosts' own services.
 */
static const char *const blocked_nets[] = {
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
	"172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24",
	"168.63.129.16/32",
	"192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
	"224.0.0.0/4", "240.0.0.0/4",
	"::/128", "::1/128", "fe80::/10", "fec0::/10", "fc00::/7", "ff00::/8",
	"2001:db8::/32", "3fff::/20", "2001::/32", "2001:2::/48", "100::/64",
	"5f00::/16", "64:ff9b:1::/48"
};
static PsyncHttpNet blocked[lengthof(blocked_nets)];

static const char refused_address[] =
"the address is not public and not listed in payment_sync.http_allowed_hosts";
static const char refused_name[] =
"the host is not listed in payment_sync.http_allowed_hosts";
static const char refused_plain[] =
"plain http is allowed to this host itself only";
static const char refused_family[] =
"the address is neither IPv4 nor IPv6";

/* ------------------------------------------------------------- addresses */

static bool
is_mapped(const unsigned char *bytes)
{
	return memcmp(bytes, psync_http_mapped_prefix, sizeof(psync_http_mapped_prefix)) == 0;
}

/*
 * Do the bits that count agree? Whole bytes first, then what is left of the
 * last one.  An IPv6 network around the IPv4-mapped addresses, such as ::/8,
 * says nothing about IPv4.
 */
static bool
net_contains(const PsyncHttpNet *net, const unsigned char *bytes)
{
	int			whole = net->bits / 8;
	int			rest = net->bits % 8;

	Assert(net->bits > 0);
	Assert(net->bits <= 128);
	if (net->bits < PSYNC_HTTP_MAPPED_BITS && is_mapped(bytes))
		return false;
	if (memcmp(net->bytes, bytes, whole) != 0)
		return false;
	return rest == 0 ||
		((net->bytes[whole] ^ bytes[whole]) & (0xff << (8 - rest)) & 0xff) == 0;
}

/* An IPv4 address that travels within an IPv6 one, as IPv4-mapped. */
static void
unwrap(unsigned char *bytes)
{
	static const unsigned char nat64[12] = {0, 0x64, 0xff, 0x9b};
	static const unsigned char translated[12] = {[8] = 0xff, [9] = 0xff};
	static const unsigned char compatible[12] = {0};
	unsigned char v4[4];

	if (memcmp(bytes, nat64, sizeof(nat64)) == 0 ||
		memcmp(bytes, translated, sizeof(translated)) == 0)	/* SIIT */
		memcpy(v4, bytes + 12, sizeof(v4));
	else if (bytes[0] == 0x20 && bytes[1] == 0x02)	/* 6to4 */
		memcpy(v4, bytes + 2, sizeof(v4));
	else if (memcmp(bytes, compatible, sizeof(compatible)) == 0 &&
			 (bytes[12] != 0 || bytes[13] != 0))
		memcpy(v4, bytes + 12, sizeof(v4));
	else
		return;
	memcpy(bytes, psync_http_mapped_prefix, sizeof(psync_http_mapped_prefix));
	memcpy(bytes + sizeof(psync_http_mapped_prefix), v4, sizeof(v4));
}

/* The 16 bytes of a socket's address; false if it is of another family. */
static bool
bytes_from_socket(const struct sockaddr *address, unsigned char *bytes)
{
	if (address->sa_family == AF_INET)
	{
		memcpy(bytes, psync_http_mapped_prefix, sizeof(psync_http_mapped_prefix));
		memcpy(bytes + sizeof(psync_http_mapped_prefix),
			   &((const struct sockaddr_in *) address)->sin_addr, 4);
		return true;
	}
	if (address->sa_family != AF_INET6)
		return false;
	memcpy(bytes, &((const struct sockaddr_in6 *) address)->sin6_addr, 16);
	return true;
}

/*
 * Is it an address of one of this host's interfaces?  A connection to one's own
 * public address stays within the host, past any firewall.  Asked for before
 * each request, so the list is kept for a few seconds; if it cannot be had, the
 * one before serves.
 */
static bool
is_own(const unsigned char *bytes)
{
	static struct ifaddrs *own = NULL;
	static int64 read_at = 0;
	int64		now = psync_http_clock();
	struct ifaddrs *fresh;

	if ((own == NULL || now > read_at + PSYNC_HTTP_OWN_SECONDS * USECS_PER_SEC) &&
		getifaddrs(&fresh) == 0)
	{
		if (own != NULL)
			freeifaddrs(own);
		own = fresh;
		read_at = now;
	}
	for (const struct ifaddrs *at = own; at != NULL; at = at->ifa_next)
	{
		unsigned char mine[16];

		if (at->ifa_addr != NULL && bytes_from_socket(at->ifa_addr, mine) &&
			memcmp(mine, bytes, sizeof(mine)) == 0)
			return true;
	}
	return false;
}

/*
 * Is the address one that the whole world could reach? The table is parsed
 * on first use; it is ours, so that an entry that cannot be read is a
 * mistake in this file.
 */
static bool
is_public(const unsigned char *bytes)
{
	if (blocked[0].bits == 0)
	{
		for (int i = 0; i < lengthof(blocked_nets); i++)
		{
			bool		ok = psync_http_net_parse(blocked_nets[i], &blocked[i]);

			Assert(ok && blocked[i].bits > 0);
			(void) ok;
		}
	}
	for (int i = 0; i < lengthof(blocked_nets); i++)
	{
		if (net_contains(&blocked[i], bytes))
			return false;
	}
	return !is_own(bytes);
}

/*
 * This host, by IPv4 or IPv6. Plain http may go there: nobody is in between.
 */
static bool
is_loopback(const unsigned char *bytes)
{
	static const unsigned char v6[16] = {[15] = 1};

	return memcmp(bytes, v6, sizeof(v6)) == 0 ||
		(is_mapped(bytes) && bytes[12] == 127);
}

/* ---------------------------------------------------------------- policy */

/* A network of the policy's own. */
static void
policy_add_net(PsyncHttpPolicy *policy, const PsyncHttpNet *net)
{
	PsyncHttpNet *copy = palloc(sizeof(PsyncHttpNet));

	*copy = *net;
	policy->nets = lappend(policy->nets, copy);
}

/*
 * One entry of the list, which is ours to change.  The setting's check hook has
 * seen that all are well-formed.
 */
static void
policy_add(PsyncHttpPolicy *policy, char *item)
{
	PsyncHttpNet net;

	switch (psync_http_entry_parse(item, &net))
	{
		case PSYNC_HTTP_ENTRY_NET:
			policy_add_net(policy, &net);
			break;
		case PSYNC_HTTP_ENTRY_LOOPBACK:
			if (psync_http_net_parse("127.0.0.0/8", &net))
				policy_add_net(policy, &net);
			if (psync_http_net_parse("::1", &net))
				policy_add_net(policy, &net);
			break;
		case PSYNC_HTTP_ENTRY_NAME:
			policy->names = lappend(policy->names, asc_tolower(item, strlen(item)));
			break;
		case PSYNC_HTTP_ENTRY_INVALID:
			break;
	}
}

/*
 * In the current memory context. An empty list is remembered as such: it
 * allows more than one without a fitting entry.
 */
static PsyncHttpPolicy *
policy_create(const char *text)
{
	PsyncHttpPolicy *policy = palloc0(sizeof(PsyncHttpPolicy));
	char	   *list = pstrdup(text);
	char	   *item;

	policy->text = pstrdup(text);
	policy->empty = strspn(text, " \t\n\r") == strlen(text);
	while ((item = psync_http_entry_next(&list)) != NULL)
		policy_add(policy, item);
	return policy;
}

/*
 * Kept for the process, made anew when the setting has changed.  A policy
 * that was handed out is not freed then: requests may still go by it.
 */
const PsyncHttpPolicy *
psync_http_policy(void)
{
	static PsyncHttpPolicy *current = NULL;
	const char *text = GetConfigOption("payment_sync.http_allowed_hosts", true, false);
	MemoryContext old;

	if (text == NULL)
		text = "";
	if (current != NULL && strcmp(current->text, text) == 0)
		return current;
	old = MemoryContextSwitchTo(TopMemoryContext);
	current = policy_create(text);
	MemoryContextSwitchTo(old);
	return current;
}

/*
 * Case does not matter in names. "*.example.com" covers what is below the
 * domain, not the domain itself, as with certificates.
 */
static bool
name_is_listed(const PsyncHttpPolicy *policy, const char *host)
{
	ListCell   *lc;

	Assert(host != NULL);
	foreach(lc, policy->names)
	{
		const char *name = lfirst(lc);
		size_t		size = strlen(name);
		size_t		length = strlen(host);

		if (strcmp(name, "*") == 0 || pg_strcasecmp(name, host) == 0)
			return true;
		if (name[0] == '*' && name[1] == '.' && length > size - 1 &&
			pg_strcasecmp(host + length - (size - 1), name + 1) == 0)
			return true;
	}
	return false;
}

/* Is the address itself listed, or in a network that is? */
static bool
address_is_listed(const PsyncHttpPolicy *policy, const unsigned char *bytes)
{
	ListCell   *lc;

	foreach(lc, policy->nets)
	{
		if (net_contains(lfirst(lc), bytes))
			return true;
	}
	return false;
}

/*
 * The rule of the file's head. The order matters: plain http is the stricter
 * rule and not lifted by the list; a listed address needs no listed name,
 * since whoever listed it meant just that.
 */
static const char *
bytes_refused(const PsyncHttpPolicy *policy, const char *host,
			  unsigned char *bytes, bool loopback_only)
{
	Assert(policy != NULL);
	unwrap(bytes);
	if (loopback_only && !is_loopback(bytes))
		return refused_plain;
	if (address_is_listed(policy, bytes))
		return NULL;
	if (!is_public(bytes))
		return refused_address;
	if (policy->empty || name_is_listed(policy, host))
		return NULL;
	return refused_name;
}

/*
 * Called for the address that a socket is about to be connected to; see
 * http_transport.h. Fails closed: a family that is not known is refused.
 */
const char *
psync_http_address_refused(const PsyncHttpPolicy *policy, const char *host,
						   const struct sockaddr *address, bool loopback_only)
{
	unsigned char bytes[16];

	Assert(address != NULL);
	if (!bytes_from_socket(address, bytes))
		return refused_family;
	return bytes_refused(policy, host, bytes, loopback_only);
}

/*
 * Called before each request with the address of the connection in use, as
 * libcurl shows it.
 */
const char *
psync_http_address_text_refused(const PsyncHttpPolicy *policy, const char *host,
								const char *address, bool loopback_only)
{
	unsigned char bytes[16];
	char		bare[INET6_ADDRSTRLEN];
	bool		is_v4;

	Assert(address != NULL);

	/* an address with a zone is link-local; what cannot be read is refused */
	strlcpy(bare, address, sizeof(bare));
	bare[strcspn(bare, "%")] = '\0';
	if (!psync_http_address_parse(bare, bytes, &is_v4))
		return refused_family;
	return bytes_refused(policy, host, bytes, loopback_only);
}

/*
 * Where a proxy connects we never see an address, so the name must be listed
 * even if the list is empty: who sets a proxy sets the list as well.
 */
const char *
psync_http_name_refused(const PsyncHttpPolicy *policy, const char *host)
{
	unsigned char bytes[16];
	bool		is_v4;

	if (psync_http_address_parse(host, bytes, &is_v4))
		return bytes_refused(policy, host, bytes, false);
	return name_is_listed(policy, host) ? NULL : refused_name;
}
