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

#include <arpa/inet.h>
#include <netinet/in.h>

#include "utils/guc.h"
#include "utils/memutils.h"

#include "transport/http/http_transport.h"

/* An address as 16 bytes, IPv4 as IPv4-mapped, and how many bits count. */
typedef struct Net
{
	unsigned char bytes[16];
	int			bits;
} Net;

struct PsyncHttpPolicy
{
	char	   *text;			/* the setting it was made of */
	bool		empty;
	List	   *names;			/* of char *, lower case */
	List	   *nets;			/* of Net * */
};

/* Bits of ::ffff:0:0/96. */
#define MAPPED_BITS	96

/*
 * Not public: the union of what is set aside for this host, this network,
 * private use, documentation, tests and multicast.
 */
static const char *const blocked_nets[] = {
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
	"172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24",
	"192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
	"224.0.0.0/4", "240.0.0.0/4",
	"::/128", "::1/128", "fe80::/10", "fec0::/10", "fc00::/7", "ff00::/8",
	"2001:db8::/32", "2001::/32", "100::/64", "5f00::/16"
};
static Net blocked[lengthof(blocked_nets)];

static const char refused_address[] =
"the address is not public and not listed in payment_sync.http_allowed_hosts";
static const char refused_name[] =
"the host is not listed in payment_sync.http_allowed_hosts";
static const char refused_plain[] =
"plain http is allowed to this host itself only";
static const char refused_family[] =
"the address is neither IPv4 nor IPv6";

/* ------------------------------------------------------------- addresses */

static const unsigned char mapped_prefix[12] = {
	0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff
};

/* "text" without "/bits" to 16 bytes; false if it is no address. */
static bool
bytes_from_text(const char *text, unsigned char *bytes, bool *is_v4)
{
	struct in_addr v4;
	struct in6_addr v6;

	if (inet_pton(AF_INET, text, &v4) == 1)
	{
		memcpy(bytes, mapped_prefix, sizeof(mapped_prefix));
		memcpy(bytes + sizeof(mapped_prefix), &v4, sizeof(v4));
		*is_v4 = true;
		return true;
	}
	if (inet_pton(AF_INET6, text, &v6) != 1)
		return false;
	memcpy(bytes, &v6, sizeof(v6));
	*is_v4 = false;
	return true;
}

/*
 * A network from its text, IPv4 as the mapped part of IPv6, so that all
 * comparisons are of one kind. Without bits it is a single address. False if
 * it is none; what follows the slash may be anything then.
 */
static bool
net_from_text(const char *text, Net *net)
{
	char		address[INET6_ADDRSTRLEN];
	const char *slash = strchr(text, '/');
	size_t		size = slash != NULL ? (size_t) (slash - text) : strlen(text);
	bool		is_v4;

	Assert(text != NULL);
	if (size >= sizeof(address))
		return false;
	memcpy(address, text, size);
	address[size] = '\0';
	if (!bytes_from_text(address, net->bytes, &is_v4))
		return false;
	net->bits = slash != NULL ? atoi(slash + 1) + (is_v4 ? MAPPED_BITS : 0) : 128;
	return net->bits >= 0 && net->bits <= 128;
}

/*
 * Do the bits that count agree? Whole bytes first, then what is left of the
 * last one.
 */
static bool
net_contains(const Net *net, const unsigned char *bytes)
{
	int			whole = net->bits / 8;
	int			rest = net->bits % 8;

	Assert(net->bits >= 0);
	Assert(net->bits <= 128);
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
	static const unsigned char compatible[12] = {0};
	unsigned char v4[4];

	if (memcmp(bytes, nat64, sizeof(nat64)) == 0)
		memcpy(v4, bytes + 12, sizeof(v4));
	else if (bytes[0] == 0x20 && bytes[1] == 0x02)	/* 6to4 */
		memcpy(v4, bytes + 2, sizeof(v4));
	else if (memcmp(bytes, compatible, sizeof(compatible)) == 0 &&
			 (bytes[12] != 0 || bytes[13] != 0))
		memcpy(v4, bytes + 12, sizeof(v4));
	else
		return;
	memcpy(bytes, mapped_prefix, sizeof(mapped_prefix));
	memcpy(bytes + sizeof(mapped_prefix), v4, sizeof(v4));
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
			bool		ok = net_from_text(blocked_nets[i], &blocked[i]);

			Assert(ok && blocked[i].bits > 0);
			(void) ok;
		}
	}
	for (int i = 0; i < lengthof(blocked_nets); i++)
	{
		if (net_contains(&blocked[i], bytes))
			return false;
	}
	return true;
}

/*
 * This host, by IPv4 or IPv6. Plain http may go there: nobody is in between.
 */
static bool
is_loopback(const unsigned char *bytes)
{
	static const unsigned char v6[16] = {[15] = 1};

	return memcmp(bytes, v6, sizeof(v6)) == 0 ||
		(memcmp(bytes, mapped_prefix, sizeof(mapped_prefix)) == 0 && bytes[12] == 127);
}

/* ---------------------------------------------------------------- policy */

/*
 * One entry of the list, which is ours to change. What is not an address is
 * a name: the setting's check hook has seen that it could be one.
 */
static void
policy_add(PsyncHttpPolicy *policy, char *item)
{
	Net		   *net = palloc(sizeof(Net));

	Assert(item[0] != '\0');
	if (pg_strcasecmp(item, "localhost") == 0)
	{
		Net		   *other = palloc(sizeof(Net));

		(void) net_from_text("127.0.0.0/8", net);
		(void) net_from_text("::1", other);
		policy->nets = lappend(lappend(policy->nets, net), other);
	}
	else if (net_from_text(item, net))
		policy->nets = lappend(policy->nets, net);
	else
	{
		for (char *c = item; *c; c++)
			*c = pg_tolower((unsigned char) *c);
		policy->names = lappend(policy->names, item);
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
	char	   *save = NULL;

	policy->text = pstrdup(text);
	policy->empty = true;
	for (char *item = strtok_r(pstrdup(text), ", \t\n", &save); item != NULL;
		 item = strtok_r(NULL, ", \t\n", &save))
	{
		policy->empty = false;
		policy_add(policy, item);
	}
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
	if (address->sa_family == AF_INET)
	{
		memcpy(bytes, mapped_prefix, sizeof(mapped_prefix));
		memcpy(bytes + sizeof(mapped_prefix),
			   &((const struct sockaddr_in *) address)->sin_addr, 4);
	}
	else if (address->sa_family == AF_INET6)
		memcpy(bytes, &((const struct sockaddr_in6 *) address)->sin6_addr, 16);
	else
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
	if (!bytes_from_text(bare, bytes, &is_v4))
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

	if (bytes_from_text(host, bytes, &is_v4))
		return bytes_refused(policy, host, bytes, false);
	return name_is_listed(policy, host) ? NULL : refused_name;
}
