# 411_http_tls.pl
#
# nginx in front of a receiver: HTTP/1.1 and HTTP/2 over TLS, client
# certificates, and certificates that must not be accepted; then OAuth tokens,
# and the addresses that may be reached.  A sync whose target is not
# acceptable waits, says why, and loses nothing.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncHttp;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir;
certify_http($dir);
my $secret = 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw';
my $receiver = start_receiver(secret => $secret);

my %port = map { $_ => free_port() } qw(http1 http2 mtls expired wrong self);
my $tls = sub {
	my ($name, $certificate, $more) = @_;
	return <<CONF;
	server {
		listen 127.0.0.1:$port{$name} ssl $more;
		ssl_certificate $dir/$certificate.crt;
		ssl_certificate_key $dir/$certificate.key;
		location / { proxy_pass $receiver->{base}; proxy_pass_request_headers on; }
CONF
};
start_nginx($dir, join '',
	$tls->('http1', 'server', '') . "\t}\n",
	$tls->('http2', 'server', 'http2') . "\t}\n",
	$tls->('mtls', 'server', '') . "\t\tssl_client_certificate $dir/ca.crt; ssl_verify_client on;\n\t}\n",
	map { $tls->($_, $_, '') . "\t}\n" } qw(expired wrong self));

my $node = start_source('source', conf => <<CONF);
payment_sync.http_allowed_hosts = 'localhost'
log_statement = none
CONF
$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION payment_sync;
CREATE TABLE payments (id int PRIMARY KEY, amount numeric);
SELECT payment_sync.capture_table('payments');
SQL

# Let a sync to this target deliver one row; return its name when it has.
my $n = 0;
sub deliver
{
	my ($name, $server, $user) = @_;
	$n++;
	create_target($node, $name, { retry_delay_min => 20, retry_delay_max => 200, %$server },
		{ signing_secret => $secret, %{ $user // {} } });
	$node->safe_psql('postgres', <<SQL);
SELECT payment_sync.create_sync('$name', '{payments}', server => '$name');
INSERT INTO payments VALUES ($n, 1.25);
SQL
	return;
}

sub drop
{
	my ($name) = @_;
	$node->safe_psql('postgres', "SELECT payment_sync.drop_sync('$name'); DROP SERVER $name CASCADE");
	return;
}

# The sync says why it waits.
sub refused
{
	my ($name, $reason, $what) = @_;
	wait_until("$what: reason", sub {
		return $node->safe_psql('postgres',
			"SELECT concat_ws(' ', last_error, last_error_detail) FROM payment_sync.stat_sync WHERE name = '$name'") =~ $reason;
	});
	ok(1, "$what: refused, and said why");
	is(stat($node, $name, 'lag_changes'), 1, "$what: nothing is lost");
	drop($name);
	return;
}

# ---------------------------------------------------------------- accepted

for my $case ([ http1 => '1.1', qr/HTTP\/1\.1/ ], [ http2 => '2', qr/HTTP\/2\.0/ ])
{
	my ($name, $version, $logged) = @$case;
	deliver($name, { url => "https://localhost:$port{$name}/$name", ca_file => "$dir/ca.crt",
		http_version => $version });
	wait_delivered($node, $name);
	$node->safe_psql('postgres', 'UPDATE payments SET amount = amount + 1');
	wait_delivered($node, $name);
	my ($line) = grep { /\/$name / } split /\n/, slurp_file("$dir/access.log");
	like($line, $logged, "$name: over TLS");
	drop($name);
}
judged_well($receiver, 'through nginx');

deliver('mtls', { url => "https://localhost:$port{mtls}/mtls", ca_file => "$dir/ca.crt" }, {
	client_cert => slurp_file("$dir/client.crt"), client_key => slurp_file("$dir/client.key") });
wait_delivered($node, 'mtls');
ok(1, 'client certificate');
drop('mtls');

# ------------------------------------------------------------- not accepted

deliver('nocert', { url => "https://localhost:$port{mtls}/nocert", ca_file => "$dir/ca.crt" });
refused('nocert', qr/status 400/, 'no client certificate');
deliver('expired', { url => "https://localhost:$port{expired}/", ca_file => "$dir/ca.crt" });
refused('expired', qr/certificate has expired/, 'certificate expired');
deliver('wrong', { url => "https://localhost:$port{wrong}/", ca_file => "$dir/ca.crt" });
refused('wrong', qr/does not match|no alternative certificate/, 'certificate of another host');
deliver('self', { url => "https://localhost:$port{self}/", ca_file => "$dir/ca.crt" });
refused('self', qr/self-signed|self signed/, 'self-signed certificate');
deliver('unknown', { url => "https://localhost:$port{http1}/" });
refused('unknown', qr/certificate/, 'authority that the system does not know');
is(scalar(grep { /\/(nocert|unknown) / && / 200 / } split /\n/, slurp_file("$dir/access.log")), 0,
	'no request got through');

# ------------------------------------------------------------------- tokens

my $oauth = start_receiver(oauth => { id => 'my client', secret => 'its s:cret', life => 3600 });
deliver('oauth', { url => "$oauth->{base}/hook", oauth_token_url => "$oauth->{base}/token" },
	{ oauth_client_id => 'my client', oauth_client_secret => 'its s:cret' });
wait_delivered($node, 'oauth');
is(receiver_state($oauth)->{tokens}, 1, 'a token was fetched');
$node->safe_psql('postgres', 'UPDATE payments SET amount = amount + 1');
wait_delivered($node, 'oauth');
is(receiver_state($oauth)->{tokens}, 1, 'and used again');
set_receiver($oauth, revoke => JSON::PP::true);
$node->safe_psql('postgres', 'UPDATE payments SET amount = amount + 1');
wait_delivered($node, 'oauth');
my $state = receiver_state($oauth);
cmp_ok($state->{unauthorized}, '>=', 1, 'the target refuses a token');
is($state->{tokens}, 2, 'and gets a new one');
is(stat($node, 'oauth', 'errors'), 0, 'which is no failure');
judged_well($oauth, 'with tokens');
drop('oauth');
deliver('badoauth', { url => "$oauth->{base}/hook", oauth_token_url => "$oauth->{base}/token" },
	{ oauth_client_id => 'my client', oauth_client_secret => 'open sesame' });
refused('badoauth', qr/could not get a token/, 'wrong client secret');

# ---------------------------------------------------------------- addresses

for my $case ([ loop6 => 'https://[::ffff:7f00:1]:1/', undef ],
	[ private => 'https://10.1.2.3/', undef ], [ metadata => 'https://169.254.169.254/latest', undef ],
	[ mapped => 'https://[::ffff:10.1.2.3]/', undef ], [ nat64 => 'https://[64:ff9b::a01:203]/', undef ],
	[ decimal => 'https://167772161/', undef ], [ local64 => 'https://[64:ff9b:1::a01:203]/', undef ],
	[ siit => 'https://[::ffff:0:10.1.2.3]/', undef ], [ siit4 => 'https://[::ffff:0:10.1.2.3]/', "'8.8.8.8, ::/8'" ],
	[ cloud => 'https://168.63.129.16/', undef ], [ bench6 => 'https://[2001:2::1]/', undef ],
	[ doc6 => 'https://[3fff:1::1]/', undef ], [ name => 'https://localhost:1/', "'hooks.example.com, 10.0.0.0/8'" ])
{
	my ($name, $url, $hosts) = @$case;
	$node->safe_psql('postgres', "ALTER SYSTEM SET payment_sync.http_allowed_hosts = "
		  . ($hosts // "''"));
	$node->reload;
	deliver($name, { url => $url, connect_timeout => 2 });
	refused($name, qr/is not allowed/, "address $url");
}

my $seen = $node->safe_psql('postgres', 'TABLE payment_sync.stat_sync') . slurp_file($node->logfile);
unlike($seen, qr/sesame|its s:cret|PRIVATE KEY|of-the-test|latest/, 'no secret is shown');

$node->stop;
done_testing();
