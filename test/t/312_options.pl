# 312_options.pl
#
# Options of servers and user mappings: what libpq knows is accepted, mistakes
# are answered with the nearest option, nobody reaches a target with the
# server's own credentials, and secrets show up nowhere (P9).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncApply;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $secret = 'Sesam-0ffne-dich';
my $source = start_source('source');
my $target = start_target('target', conf => "listen_addresses = '127.0.0.1'\n");
my ($host, $port) = ($target->host, $target->port);
my $superuser = $target->safe_psql('postgres', 'SELECT current_user');

both($source, $target, 'CREATE TABLE pay (id int PRIMARY KEY, v text)');
$source->safe_psql('postgres', <<SQL);
CREATE EXTENSION payment_sync;
CREATE SERVER probe FOREIGN DATA WRAPPER payment_sync_postgres;
CREATE USER MAPPING FOR CURRENT_USER SERVER probe;
SQL

# refused(SQL, PATTERN, NAME): psql's error output fits the pattern
sub refused
{
	my ($sql, $pattern, $name, %option) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($rc, $out, $err) = $source->psql('postgres', $sql, %option);
	isnt($rc, 0, "$name: refused");
	return like($err, $pattern, $name);
}

# --- every option of the libpq that is linked with

my $tmp = PostgreSQL::Test::Utils::tempdir();
open my $c, '>', "$tmp/options.c" or die;
print $c <<'C';
#include <stdio.h>
#include "libpq-fe.h"
int main(void)
{
	for (PQconninfoOption *o = PQconndefaults(); o->keyword; o++)
		printf("%s\n", o->keyword);
	return 0;
}
C
close $c;
my ($includedir, $libdir) = map { my $v = `pg_config --$_`; chomp $v; $v } qw(includedir libdir);
system_or_bail('cc', '-I', $includedir, '-o', "$tmp/options", "$tmp/options.c", '-L', $libdir, "-Wl,-rpath,$libdir", '-lpq');
my @keywords = split /\n/, `$tmp/options`;
cmp_ok(scalar @keywords, '>', 35, 'libpq tells its options');

# ours to set, obsolete, for replication, or a file that the server would write
my %not_ours = map { $_ => 1 }
  qw(client_encoding fallback_application_name replication authtype tty requiressl sslkeylogfile
  oauth_issuer oauth_scope oauth_client_id oauth_client_secret);
my %value = (
	sslmode => 'verify-full', target_session_attrs => 'primary', gssencmode => 'disable',
	channel_binding => 'require', ssl_min_protocol_version => 'TLSv1.2',
	ssl_max_protocol_version => 'TLSv1.3', gsslib => 'gssapi', load_balance_hosts => 'random',
	sslcertmode => 'require', sslnegotiation => 'direct', min_protocol_version => '3.0',
	max_protocol_version => '3.2');
my @unaccepted;
for my $keyword (grep { !$not_ours{$_} } @keywords)
{
	my $value = $value{$keyword} // '1';
	my $ok = 0;
	for my $object ('SERVER probe', 'USER MAPPING FOR CURRENT_USER SERVER probe')
	{
		$ok++ if $source->psql('postgres', "ALTER $object OPTIONS (ADD $keyword '$value')") == 0;
	}
	push @unaccepted, "$keyword ($ok places)" if $ok != 1;
}
is("@unaccepted", '', 'each has exactly one place');
for my $keyword (sort keys %not_ours)
{
	refused("ALTER SERVER probe OPTIONS (ADD $keyword 'x')", qr/invalid option "$keyword"/, "$keyword is not for users");
}

# --- mistakes

refused("ALTER SERVER probe OPTIONS (ADD prot '1')",
	qr/invalid option "prot".*HINT:.*"port"/s, 'a typo gets a hint');
refused("ALTER SERVER probe OPTIONS (ADD ssl_mode 'require')",
	qr/invalid option "ssl_mode".*HINT:.*"sslmode"/s, 'another');
refused("ALTER USER MAPPING FOR CURRENT_USER SERVER probe OPTIONS (ADD passwort '$secret')",
	qr/invalid option "passwort".*HINT:.*"password"/s, 'a typo in a user mapping');
refused("ALTER SERVER probe OPTIONS (ADD bananas 'yes')",
	qr/invalid option "bananas".*HINT:.*payment_sync\.transport_options/s,
	'what looks like nothing is shown the list');
refused("ALTER SERVER probe OPTIONS (ADD password '$secret')",
	qr/option "password" is not allowed on a server.*HINT:.*user mapping/s, 'password on a server');
refused("ALTER USER MAPPING FOR CURRENT_USER SERVER probe OPTIONS (ADD host 'x')",
	qr/option "host" is not allowed on a user mapping.*HINT:.*server/s, 'host on a user mapping');
refused("CREATE FOREIGN DATA WRAPPER w VALIDATOR payment_sync.payment_sync_postgres_validator OPTIONS (host 'x')",
	qr/option "host" is not allowed on a foreign-data wrapper/, 'host on a wrapper');
refused("ALTER SERVER probe OPTIONS (SET sslmode 'verify')",
	qr/invalid value for option "sslmode".*verify-full/s, 'a wrong word');
refused("ALTER SERVER probe OPTIONS (SET connect_timeout 'soon')",
	qr/invalid value for option "connect_timeout"/, 'a wrong number');

# --- who may connect

$target->safe_psql('postgres', <<SQL);
CREATE ROLE feeder LOGIN PASSWORD '$secret';
GRANT CREATE ON DATABASE postgres TO feeder;
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON pay TO feeder;
SQL

# the operating system's user has a password file that would open the door
my $home = "$tmp/home";
mkdir $home;
my $hba = $target->data_dir . '/pg_hba.conf';
sub allow
{
	my ($method) = @_;
	open my $f, '>', $hba or die;
	print $f "local all $superuser trust\nlocal all all $method\nhost all all 127.0.0.1/32 $method\n";
	close $f;
	$target->reload;
	return;
}
allow('scram-sha-256');
$source->stop;
open my $pgpass, '>', "$home/.pgpass" or die;
print $pgpass "*:*:*:*:$secret\n";
close $pgpass;
chmod 0600, "$home/.pgpass";
{
	local $ENV{PGPASSFILE} = "$home/.pgpass";
	$source->start;
}
$source->safe_psql('postgres', <<SQL);
DROP SERVER probe CASCADE;
CREATE ROLE regress_shop LOGIN;
GRANT CREATE ON SCHEMA public TO regress_shop;
ALTER TABLE pay OWNER TO regress_shop;
CREATE SERVER target FOREIGN DATA WRAPPER payment_sync_postgres
	OPTIONS (host '127.0.0.1', port '$port', dbname 'postgres');
GRANT USAGE ON FOREIGN SERVER target TO regress_shop;
SQL
my %as_shop = (extra_params => [ '-U', 'regress_shop' ]);
$source->safe_psql('postgres', <<'SQL', %as_shop);
CREATE USER MAPPING FOR CURRENT_USER SERVER target OPTIONS (user 'feeder');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('shop', '{pay}', server => 'target');
INSERT INTO pay VALUES (1, 'one');
SQL
like(failure_of($source, 'shop'), qr/password is required/,
	'no use of the server\'s password file for one who is no superuser');

# Waits for a failure whose text fits, then mends it by SQL.
sub fails_then
{
	my ($pattern, $name, $mend, %option) = @_;
	$source->poll_query_until('postgres',
		"SELECT last_error || COALESCE(last_error_detail, '') ~ '$pattern' AND failures > 0 FROM payment_sync.stat_sync WHERE name = 'shop'")
	  or die "no such failure: $pattern; but " . last_failure($source, 'shop');
	pass($name);
	return if !defined $mend;
	$source->safe_psql('postgres', $mend, %option);
	goes_on($source, 'shop');
	same_rows($source, $target, 'SELECT * FROM pay', 'mended, it goes on');
	return;
}

fails_then('no password', 'a mapping without password',
	"ALTER USER MAPPING FOR CURRENT_USER SERVER target OPTIONS (ADD password '$secret')", %as_shop);

# "trust": the password was not asked for
allow('trust');
my $kick = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'feeder'";
$target->safe_psql('postgres', $kick);
$source->safe_psql('postgres', "INSERT INTO pay VALUES (2, 'two')");
fails_then('did not ask for the password', 'a target that asks for none', undef);
refused("ALTER USER MAPPING FOR CURRENT_USER SERVER target OPTIONS (ADD password_required 'false')",
	qr/permission denied.*superuser/s, 'only a superuser may lift that', %as_shop);
refused("ALTER USER MAPPING FOR CURRENT_USER SERVER target OPTIONS (ADD $_ '/etc/passwd')",
	qr/permission denied.*superuser/s, "only a superuser may set $_", %as_shop)
  for qw(sslkey sslcert passfile);
fails_then('did not ask for the password', 'it still fails',
	"ALTER USER MAPPING FOR regress_shop SERVER target OPTIONS (ADD password_required 'false')");
$source->safe_psql('postgres', 'ALTER USER MAPPING FOR regress_shop SERVER target OPTIONS (DROP password_required)');
allow('scram-sha-256');

# a wrong password
$source->safe_psql('postgres',
	"ALTER USER MAPPING FOR regress_shop SERVER target OPTIONS (SET password 'Wrong-$secret')");
$target->safe_psql('postgres', $kick);
$source->safe_psql('postgres', "INSERT INTO pay VALUES (3, 'three')");
fails_then('password authentication failed', 'a wrong password',
	"ALTER USER MAPPING FOR regress_shop SERVER target OPTIONS (SET password '$secret')");

# --- a server of postgres_fdw

SKIP:
{
	skip 'postgres_fdw is not installed', 1
	  if $source->safe_psql('postgres', "SELECT count(*) FROM pg_available_extensions WHERE name = 'postgres_fdw'") == 0;
	$source->safe_psql('postgres', <<SQL);
CREATE EXTENSION postgres_fdw;
CREATE SERVER fdw FOREIGN DATA WRAPPER postgres_fdw
	OPTIONS (host '127.0.0.1', port '$port', dbname 'postgres', fetch_size '100', use_remote_estimate 'true');
GRANT USAGE ON FOREIGN SERVER fdw TO regress_shop;
SELECT payment_sync.drop_sync('shop');
SQL
	$source->safe_psql('postgres', <<SQL, %as_shop);
CREATE USER MAPPING FOR CURRENT_USER SERVER fdw OPTIONS (user 'feeder', password '$secret');
SELECT payment_sync.create_sync('shop', '{pay}', server => 'fdw', batch => true);
INSERT INTO pay VALUES (4, 'four');
SQL
	goes_on($source, 'shop');
	same_rows($source, $target, 'SELECT * FROM pay', 'a server of postgres_fdw');
}

# an option that this libpq does not know is refused when it is used
SKIP:
{
	skip 'libpq knows them all', 1 if grep { $_ eq 'max_protocol_version' } @keywords;
	$source->safe_psql('postgres', "ALTER SERVER target OPTIONS (ADD max_protocol_version '3.2')");
	$source->safe_psql('postgres', <<'SQL', %as_shop);
SELECT payment_sync.create_sync('new', '{pay}', server => 'target');
INSERT INTO pay VALUES (5, 'five');
SQL
	like(failure_of($source, 'new'), qr/"max_protocol_version".*not known to this version of libpq/,
		'an option of a newer libpq');
}

# --- secrets

my $log = slurp_file($source->logfile);
# the statements that the test itself sent are logged, and hold it
my @leaks = grep { /\Q$secret\E/ && !/statement: |STATEMENT: |^\t/ } split /\n/, $log;
is("@leaks", '', 'no secret in the server\'s log');
for my $view (map { "payment_sync.$_" } qw(stat_sync syncs captured_tables progress_batch changes))
{
	unlike($source->safe_psql('postgres', "SELECT * FROM $view"), qr/\Q$secret\E/, "no secret in $view");
}
unlike($target->safe_psql('postgres', 'SELECT * FROM pg_stat_activity'), qr/\Q$secret\E/,
	'no secret in the target\'s list of sessions');
unlike($source->safe_psql('postgres',
	"SELECT COALESCE(string_agg(umoptions::text, ''), '') FROM pg_user_mappings WHERE usename <> 'regress_shop'", %as_shop),
	qr/\Q$secret\E/, 'nor in the mappings of others');

done_testing();
