/*
 * fuzz_address.c
 *		The list of allowed hosts, and addresses in all their notations: what
 *		is not listed and not public is refused, however it is written.
 */
#include "fuzz.h"

#include "../../src/transport/http/address.c"

const bool	fuzz_terminated = true;

static const char *allowed;

int64
psync_http_clock(void)
{
	return 1;
}

char *
asc_tolower(const char *text, size_t size)
{
	char	   *lower = pnstrdup(text, size);

	for (char *at = lower; *at != '\0'; at++)
		*at = pg_tolower((unsigned char) *at);
	return lower;
}

const char *
GetConfigOption(const char *name, bool missing_ok, bool restrict_privileged)
{
	return allowed;
}

/* Does the kernel see a loopback, private or link-local address in it? */
static bool
is_inside(const char *text)
{
	struct in_addr v4;
	uint32		address;

	if (inet_pton(AF_INET, text, &v4) != 1)
		return false;
	address = ntohl(v4.s_addr);
	return address >> 24 == 127 || address >> 24 == 10 || address >> 24 == 0 ||
		address >> 16 == 0xc0a8 || address >> 16 == 0xa9fe || address >> 20 == 0xac1;
}

void
fuzz_one(const char *data, size_t size)
{
	const char *list = fuzz_string(&data, &size);
	const char *host = fuzz_string(&data, &size);
	const char *address = fuzz_string(&data, &size);
	PsyncHttpPolicy *policy;
	PsyncHttpNet net;

	(void) psync_http_address_text_refused(policy_create(list), host, address, false);
	(void) psync_http_name_refused(policy_create(list), host);

	/* names alone, or nothing at all, never open the way to the inside */
	policy = policy_create(strchr(list, '/') == NULL ? list : "");
	if (policy->nets == NIL && is_inside(address))
		fuzz_check(psync_http_address_text_refused(policy, host, address, false) != NULL);
	/* a network holds its own address, and is never one of all addresses */
	if (psync_http_entry_parse(list, &net) == PSYNC_HTTP_ENTRY_NET)
	{
		fuzz_check(net.bits > 0 && net.bits <= 128);
		fuzz_check(net_contains(&net, net.bytes));
	}
}
