/*
 * options.c
 *		What servers and user mappings of the postgres transport may bear.
 *
 * Linked into the core, which validates with it: no code, no libpq.
 *
 * All connection options of libpq 14 to 18 are here, whichever libpq the
 * transport runs with; it refuses those that its libpq does not know.  Left
 * out are those that the transport sets itself (client_encoding,
 * fallback_application_name, replication), that are obsolete (requiressl,
 * authtype, tty), sslkeylogfile, which would let a user mapping write session
 * keys to a file of this server, and oauth_*: libpq then fetches URLs of the
 * user's choice and writes to the server's standard error.
 *
 * As in postgres_fdw, what identifies the user belongs to the user mapping,
 * and what makes this server read a file of its own in the user's name is for
 * superusers.  "secret" options appear in no message (P9).
 */
#include "postgres.h"

#include <limits.h>

#include "target/registry.h"

#define STRING	PSYNC_OPT_STRING, false, 0, 0, NULL
#define SECRET	PSYNC_OPT_STRING, true, 0, 0, NULL
#define INTEGER(min, max) PSYNC_OPT_INT, false, min, max, NULL
#define ENUM(values) PSYNC_OPT_ENUM, false, 0, 0, values
#define BOOLEAN PSYNC_OPT_BOOL, false, 0, 0, NULL

#define SERVER	PSYNC_ON_SERVER
#define USER	PSYNC_ON_USER
#define USER_BY_SUPERUSER (PSYNC_ON_USER | PSYNC_BY_SUPERUSER)
#define SERVER_BY_SUPERUSER (PSYNC_ON_SERVER | PSYNC_BY_SUPERUSER)

const PsyncOption psync_postgres_options[] = {
	/* the wrapper's own */
	{"library", PSYNC_ON_WRAPPER, STRING, "library of the transport"},
	{"takes", PSYNC_ON_WRAPPER, ENUM("messages|windows"), "what the library's targets take (default: what the library says)"},

	/* where */
	{"host", SERVER, STRING, "host name or socket directory; several by commas"},
	{"hostaddr", SERVER, STRING, "numeric address, to spare the name's lookup"},
	{"port", SERVER, STRING, "port number; several by commas (default 5432)"},
	{"dbname", SERVER, STRING, "database (default: the user's name)"},
	{"service", SERVER, STRING, "service name in pg_service.conf"},
	{"servicefile", SERVER_BY_SUPERUSER, STRING, "file used instead of pg_service.conf"},
	{"target_session_attrs", SERVER,
		ENUM("any|read-write|read-only|primary|standby|prefer-standby"),
	"which of several hosts will do (default any)"},
	{"load_balance_hosts", SERVER, ENUM("disable|random"), "order in which hosts are tried"},
	{"options", SERVER, STRING, "command-line options for the remote session"},
	{"application_name", SERVER, STRING, "name of the remote session (default payment_sync)"},

	/* how long */
	{"connect_timeout", SERVER, INTEGER(0, INT_MAX), "seconds to wait for a connection (default 30, 0: without limit)"},
	{"keepalives", SERVER, INTEGER(0, 1), "send TCP keepalives (default 1)"},
	{"keepalives_idle", SERVER, INTEGER(0, INT_MAX), "seconds of silence before the first keepalive (default 30)"},
	{"keepalives_interval", SERVER, INTEGER(0, INT_MAX), "seconds between keepalives (default 10)"},
	{"keepalives_count", SERVER, INTEGER(0, INT_MAX), "keepalives that may be lost (default 3)"},
	{"tcp_user_timeout", SERVER, INTEGER(0, INT_MAX), "milliseconds that data may stay unacknowledged (default 60000)"},

	/* how protected */
	{"sslmode", SERVER, ENUM("disable|allow|prefer|require|verify-ca|verify-full"), "use of TLS (default prefer)"},
	{"sslnegotiation", SERVER, ENUM("postgres|direct"), "how TLS is begun"},
	{"sslcompression", SERVER, INTEGER(0, 1), "TLS compression (default 0)"},
	{"sslrootcert", SERVER, STRING, "file of trusted certificate authorities"},
	{"sslcrl", SERVER, STRING, "file of revoked certificates"},
	{"sslcrldir", SERVER, STRING, "directory of revoked certificates"},
	{"sslsni", SERVER, INTEGER(0, 1), "name the host when TLS begins (default 1)"},
	{"sslcertmode", SERVER, ENUM("disable|allow|require"), "use of a client certificate (default allow)"},
	{"ssl_min_protocol_version", SERVER, ENUM("TLSv1|TLSv1.1|TLSv1.2|TLSv1.3"), "oldest TLS version (default TLSv1.2)"},
	{"ssl_max_protocol_version", SERVER, ENUM("TLSv1|TLSv1.1|TLSv1.2|TLSv1.3"), "newest TLS version"},
	{"min_protocol_version", SERVER, ENUM("3.0|3.2|latest"), "oldest wire protocol"},
	{"max_protocol_version", SERVER, ENUM("3.0|3.2|latest"), "newest wire protocol"},
	{"channel_binding", SERVER, ENUM("disable|prefer|require"), "tie the password's proof to TLS (default prefer)"},
	{"require_auth", SERVER, STRING, "authentication methods that will do, by commas"},
	{"requirepeer", SERVER, STRING, "operating system user at the other end of the socket"},
	{"gssencmode", SERVER, ENUM("disable|prefer|require"), "use of GSSAPI encryption (default prefer)"},
	{"krbsrvname", SERVER, STRING, "Kerberos service name (default postgres)"},
	{"gsslib", SERVER, ENUM("gssapi|sspi"), "GSSAPI library, on Windows"},
	{"gssdelegation", SERVER, INTEGER(0, 1), "pass on GSSAPI credentials (default 0)"},

	/* as whom */
	{"user", USER, STRING, "role at the target (default: name of the server's operating system user)"},
	{"password", USER, SECRET, "password of that role"},
	{"passfile", USER_BY_SUPERUSER, STRING, "file of passwords"},
	{"sslcert", USER_BY_SUPERUSER, STRING, "file of the client certificate"},
	{"sslkey", USER_BY_SUPERUSER, STRING, "file of the client certificate's key"},
	{"sslpassword", USER, SECRET, "password of that key"},
	{"scram_client_key", USER, SECRET, "SCRAM client key, base64, used before the password"},
	{"scram_server_key", USER, SECRET, "SCRAM server key, base64, used before the password"},
	{"password_required", USER_BY_SUPERUSER, BOOLEAN, "must a sync whose owner is no superuser have a password (default true)"},

	/* what for */
	{"position_schema", SERVER, STRING, "schema of the position table at the target (default payment_sync_target)"},
	{"position_table", SERVER, STRING, "name of that table (default position)"},
	{"lossy_casts", SERVER, BOOLEAN, "deliver also values that the target's types cannot hold as they are (default false)"},
	{"search_path", SERVER, STRING, "search_path of the session that delivers (default empty)"},
	{"session_replication_role", SERVER, ENUM("origin|replica|local"), "which triggers fire at the target (default origin)"},
	{"origin", SERVER, STRING, "payment_sync.origin of the remote session (default: identity of this change log)"},

	{NULL, 0, STRING, NULL}
};
