/*
 * settings.c
 *		Settings about transports that bind whoever may create a server.
 *
 * They are the core's, so that they can be set before a transport is loaded.
 */
#include "postgres.h"

#include "utils/guc.h"

#include "transport/registry.h"

/* Read by the transport, by name. */
static char *http_allowed_hosts = NULL;

/*
 * The list's grammar is told in transport/http/address.c.  All that can be
 * wrong with an entry is a sign that no name or address has: then the entry
 * would never match, and the mistake never be noticed.
 */
static bool
check_hosts(char **value, void **extra, GucSource source)
{
	static const char allowed[] =
	"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._:/*, \t\n";

	size_t		good = strspn(*value, allowed);

	if ((*value)[good] != '\0')
	{
		GUC_check_errdetail("Entries are host names, \"*\", \"*.domain\", and addresses or networks.");
		return false;
	}
	return true;
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
							   "",
							   PGC_SIGHUP, 0,
							   check_hosts, NULL, NULL);
}
