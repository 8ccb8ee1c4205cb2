# 313_tls.pl
#
# A target that is reached by TLS only: the server proves who it is
# (sslmode = verify-full), the sync shows a client certificate whose key has
# a password.  Certificates are made here, by openssl.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncApply;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $config = `pg_config --configure`;
plan skip_all => 'PostgreSQL was built without OpenSSL' if $config !~ /openssl/;
plan skip_all => 'there is no openssl' if system('openssl version >/dev/null 2>&1') != 0;

my $tmp = PostgreSQL::Test::Utils::tempdir();
my $secret = 'key-passw0rd';

sub openssl
{
	my ($command) = @_;
	my $log = `cd $tmp && openssl $command 2>&1`;
	die "openssl $command: $log" if $? != 0;
	return;
}

# make_ca(NAME), and make_cert(NAME, CA, SUBJECT, ALTERNATIVE)
sub make_ca
{
	my ($name) = @_;
	openssl("req -new -x509 -nodes -newkey rsa:2048 -days 10 -subj /CN=$name -keyout $name.key -out $name.crt");
	return;
}

sub make_cert
{
	my ($name, $ca, $subject, $alternative) = @_;
	openssl("req -new -nodes -newkey rsa:2048 -subj $subject -keyout $name.key -out $name.csr");
	open my $f, '>', "$tmp/$name.ext" or die;
	print $f "subjectAltName = $alternative\n" if $alternative;
	close $f;
	openssl("x509 -req -days 10 -in $name.csr -CA $ca.crt -CAkey $ca.key -CAcreateserial -extfile $name.ext -out $name.crt");
	chmod 0600, "$tmp/$name.key";
	return;
}

make_ca($_) for qw(ca other_ca);
make_cert('server', 'ca', '/CN=target.example', 'DNS:localhost,IP:127.0.0.1');
make_cert('client', 'ca', '/CN=feeder');
make_cert('stranger', 'other_ca', '/CN=feeder');
openssl("rsa -aes256 -in client.key -out client_locked.key -passout pass:$secret");
chmod 0600, "$tmp/client_locked.key";

my $source = start_source('source');
my $target = start_target('target', conf => <<CONF);
listen_addresses = '127.0.0.1'
ssl = on
ssl_cert_file = '$tmp/server.crt'
ssl_key_file = '$tmp/server.key'
ssl_ca_file = '$tmp/ca.crt'
CONF
my $port = $target->port;
both($source, $target, 'CREATE TABLE pay (id int PRIMARY KEY, v text)');
my $superuser = $target->safe_psql('postgres', <<'SQL');
CREATE ROLE feeder LOGIN;
GRANT CREATE ON DATABASE postgres TO feeder;
GRANT SELECT, INSERT, UPDATE, DELETE ON pay TO feeder;
SELECT current_user
SQL
open my $hba, '>', $target->data_dir . '/pg_hba.conf' or die;
print $hba "local all $superuser trust\nhostssl all feeder 127.0.0.1/32 cert\n";
close $hba;
$target->reload;

$source->safe_psql('postgres', <<SQL);
CREATE EXTENSION payment_sync;
CREATE SERVER target FOREIGN DATA WRAPPER payment_sync_postgres OPTIONS (
	host 'localhost', hostaddr '127.0.0.1', port '$port', dbname 'postgres',
	sslmode 'verify-full', sslrootcert '$tmp/other_ca.crt');
CREATE USER MAPPING FOR CURRENT_USER SERVER target OPTIONS (user 'feeder',
	sslcert '$tmp/stranger.crt', sslkey '$tmp/stranger.key');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target');
INSERT INTO pay VALUES (1, 'one');
SQL

# fails_then(PATTERN, NAME, MEND): the next failure fits; then mend
sub fails_then
{
	my ($pattern, $name, $mend) = @_;
	$source->poll_query_until('postgres',
		"SELECT last_error_detail ~ '$pattern' FROM payment_sync.stat_sync WHERE name = 'pay'")
	  or die "no such failure: $pattern; but " . last_failure($source, 'pay');
	pass($name);
	$source->safe_psql('postgres', $mend);
	return;
}

fails_then('certificate verify failed', 'a server of another authority is not trusted',
	"ALTER SERVER target OPTIONS (SET sslrootcert '$tmp/ca.crt', SET host 'elsewhere.example')");
fails_then('does not match host name .elsewhere.example', 'nor one of another name',
	"ALTER SERVER target OPTIONS (SET host 'localhost')");
fails_then('unknown ca|connection requires a valid client certificate|certificate authentication failed',
	'a client of another authority is not let in',
	"ALTER USER MAPPING FOR CURRENT_USER SERVER target OPTIONS (SET sslcert '$tmp/client.crt', SET sslkey '$tmp/client_locked.key', ADD sslpassword 'wrong-$secret')");
fails_then('could not load private key file', 'a wrong password of the key',
	"ALTER USER MAPPING FOR CURRENT_USER SERVER target OPTIONS (SET sslpassword '$secret')");
goes_on($source, 'pay');
same_rows($source, $target, 'SELECT * FROM pay', 'all in order: rows arrive');
is($target->safe_psql('postgres', <<'SQL'), 't|/CN=feeder',
SELECT s.ssl, s.client_dn FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE a.usename = 'feeder'
SQL
	'by TLS, with the client\'s certificate');

my @leaks = grep { /\Q$secret\E/ && !/statement: |STATEMENT: |^\t/ } split /\n/, slurp_file($source->logfile);
is("@leaks", '', 'the key\'s password is in no message');

# who is no superuser must have a password, not just a file of the server's
$source->safe_psql('postgres', <<'SQL');
CREATE ROLE regress_shop LOGIN;
CREATE TABLE shop (id int PRIMARY KEY);
ALTER TABLE shop OWNER TO regress_shop;
GRANT USAGE ON FOREIGN SERVER target TO regress_shop;
SQL
$target->safe_psql('postgres', 'CREATE TABLE shop (id int PRIMARY KEY); GRANT ALL ON shop TO feeder');
$source->safe_psql('postgres', <<SQL);
CREATE USER MAPPING FOR regress_shop SERVER target OPTIONS (user 'feeder',
	sslcert '$tmp/client.crt', sslkey '$tmp/client_locked.key', sslpassword '$secret');
SQL
$source->safe_psql('postgres', <<'SQL', extra_params => [ '-U', 'regress_shop' ]);
SELECT payment_sync.capture_table('shop');
SELECT payment_sync.create_sync('shop', '{shop}', server => 'target');
INSERT INTO shop VALUES (1);
SQL
like(failure_of($source, 'shop'), qr/password is required/, 'a certificate alone is not enough');
$source->safe_psql('postgres',
	"ALTER USER MAPPING FOR regress_shop SERVER target OPTIONS (ADD password_required 'false')");
goes_on($source, 'shop');
same_rows($source, $target, 'SELECT * FROM shop', 'unless a superuser allows it');

done_testing();
