/*
 * settings.c
 *		Settings about transports that bind whoever may create a server.
 *
 * They are the core's, so that they can be set before a transport is loaded.
 */
#include "postgres.h"

#include "utils/guc.h"

#include "target/registry.h"

/* Read by the transport, by name. */
static char *http_allowed_hosts = NULL;

/* A list for which nobody can have a host: no name ends with ".invalid". */
#define NOBODY	"nobody.invalid"

/*
 * A mistyped entry is an error, never a name: it would open more than was
 * meant, or never match, and nobody would notice.
 */
static bool
check_hosts(char **value, void **extra, GucSource source)
{
	char	   *entry = psync_http_malformed_host(*value);

	if (entry == NULL)
		return true;
	GUC_check_errdetail("The entry \"%s\" is not valid. Entries, by commas, are host names, \"*\", \"*.domain\", and addresses or networks with the number of their bits.",
						entry);
	return false;
}

/*
 * The default allows all public hosts.  It also takes the place of a value
 * from a configuration file that is refused when the library is loaded; such a
 * list was meant to allow less, so then it allows nobody.
 */
static const char *
default_hosts(void)
{
	const char *value = GetConfigOption("payment_sync.http_allowed_hosts", true, false);

	return value != NULL && psync_http_malformed_host(value) != NULL ? NOBODY : "";
}

/*
 * From _PG_init.
 */
void
psync_transport_settings_init(void)
{
	DefineCustomStringVariable("payment_sync.http_allowed_hosts",
							   "Sets the hosts and addresses that servers of payment_sync_http may reach.",
							   "Names (\"*\" for all, \"*.domain\"), addresses and networks, by commas. "
							   "Empty allows all hosts whose address is public; addresses that "
							   "are not must be listed as such.",
							   &http_allowed_hosts,
							   default_hosts(),
							   PGC_SIGHUP, 0,
							   check_hosts, NULL, NULL);
}
