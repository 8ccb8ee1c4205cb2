# 416_http_proxy.pl
#
# Through a proxy only the proxy sees the target's address.  So the target must
# be listed by name, whatever the name resolves to; so must the endpoint that
# gives tokens.  TLS goes through the proxy from end to end: it sees a name and
# a port.  A proxy that refuses is the target's fault, not an event's.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use JSON::PP;
use PaymentSyncHttp;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir;
certify_http($dir);
my $secret = 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw';
my $host = 'elsewhere.example.com';
# nobody but the proxy knows where that is
my $receiver = start_receiver(secret => $secret, cert => "$dir/wrong.crt", key => "$dir/wrong.key");
my $plain = start_receiver(secret => $secret);
my $tokens = start_receiver(oauth => { id => 'me', secret => 'client-secret' });
my $proxy = start_proxy(hosts => { $host => '127.0.0.1', 'tokens.example.com' => '127.0.0.1' },
	user => 'pay:proxy-password');
my $open_proxy = "http://pay:proxy-password\@127.0.0.1:$proxy->{port}";
my $url = "https://$host:$receiver->{port}/hook";

my $node = start_source('source', conf => "payment_sync.http_allowed_hosts = '$host'\nlog_statement = none\n");
$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION payment_sync;
CREATE TABLE payments (id serial PRIMARY KEY, amount numeric);
SELECT payment_sync.capture_table('payments');
SQL

sub sql { return $node->safe_psql('postgres', $_[0]); }

sub deliver
{
	my ($name, $server, $user) = @_;
	create_target($node, $name, { url => $url, ca_file => "$dir/ca.crt", proxy => $open_proxy,
		retry_delay_min => 20, retry_delay_max => 200, %$server },
		{ signing_secret => $secret, %{ $user // {} } });
	sql("SELECT payment_sync.create_sync('$name', '{payments}', server => '$name')");
	sql('INSERT INTO payments (amount) SELECT i FROM generate_series(1, 20) i');
	return;
}

sub drop { my ($name) = @_; return sql("SELECT payment_sync.drop_sync('$name'); DROP SERVER $name CASCADE"); }

# The sync says why it waits, and loses nothing.
sub waits
{
	my ($name, $reason, $what) = @_;
	becomes_like(sub { sql("SELECT concat_ws(' ', last_error, last_error_detail) FROM payment_sync.stat_sync WHERE name = '$name'") },
		$reason, "$what: the sync says so");
	is(stat($node, $name, 'lag_changes'), 20, "$what: nothing is lost");
	return;
}

sub proxy_state { return decode_json(control($proxy, '/_state')) }
sub allow
{
	my ($hosts) = @_;
	sql("ALTER SYSTEM SET payment_sync.http_allowed_hosts = '$hosts'");
	$node->reload;
	return;
}

# ------------------------------------------------------------ end to end TLS

deliver('tunnel', {});
wait_delivered($node, 'tunnel');
judged_well($receiver, 'through a tunnel');
is(receiver_state($receiver)->{events}, 20, 'through a tunnel: all events');
my $state = proxy_state();
cmp_ok($state->{connects}, '>=', 1, 'the proxy was asked to connect');
is_deeply([ grep { $_ ne "$host:$receiver->{port}" } @{ $state->{hosts} } ], [], 'by name');
is(scalar(grep { exists $_->{headers}{'proxy-authorization'} } @{ receiver_requests($receiver) }), 0,
	'the target does not see the proxy\'s password');

# The policy is looked at for each request, also on a connection that stands;
# the worker hears of a new one a while later.
allow('other.example.com');
my $rows = 20;
wait_until('a name that is not listed any more is refused', sub {
	sql('INSERT INTO payments (amount) VALUES (1)');
	$rows++;
	stat($node, 'tunnel', 'last_error') =~ /not allowed: the host is not listed/;
});
my $events = receiver_state($receiver)->{events};
my $failures = stat($node, 'tunnel', 'failures');
$node->poll_query_until('postgres', "SELECT failures > $failures FROM payment_sync.stat_sync WHERE name = 'tunnel'")
  or die 'it does not try again';
is(receiver_state($receiver)->{events}, $events, 'not listed any more, no request gets through');
allow("*.example.com");
wait_delivered($node, 'tunnel');
is(receiver_state($receiver)->{events}, $rows, 'listed again, it goes on');
drop('tunnel');

# ------------------------------------------------------ who must be listed

my $connects = proxy_state()->{connects};
# the proxy might reach what this machine must not
for my $case ([ unlisted => '', $url ], [ anyhost => '', "https://payments.example.org/" ],
	[ private => $host, 'https://10.1.2.3/' ], [ loopback => $host, 'https://localhost:1/' ])
{
	my ($name, $hosts, $to) = @$case;
	allow($hosts);
	deliver($name, { url => $to });
	waits($name, qr/not allowed/, "$name: $to with hosts '$hosts'");
	my $steps = sql("SELECT string_agg(concat_ws('|', step, ok, detail), E'\\n') FROM payment_sync.check_target('$name')");
	like($steps, qr/^address policy\|f\|.*http_allowed_hosts/m, "$name: check_target says so");
	drop($name);
}
is(proxy_state()->{connects}, $connects, 'the proxy was not even asked');

allow($host);
deliver('tokens', { oauth_token_url => "https://tokens.example.com:$tokens->{port}/token" },
	{ oauth_client_id => 'me', oauth_client_secret => 'client-secret' });
waits('tokens', qr/could not get a token: .*not allowed/, 'an endpoint of tokens that is not listed');
is(proxy_state()->{connects}, $connects, 'nor asked for that');
is(receiver_state($tokens)->{tokens} // 0, 0, 'the client\'s secret went nowhere');
like(sql("SELECT string_agg(concat_ws('|', step, ok, detail), E'\\n') FROM payment_sync.check_target('tokens')"),
	qr/^token\|f\|could not get a token: .*not allowed/m, 'check_target says so');
drop('tokens');

# ------------------------------------------------- plain http through a proxy

deliver('plain', { url => "http://$host:$plain->{port}/hook", allow_http => 'true' });
wait_delivered($node, 'plain');
judged_well($plain, 'plain http through a proxy');
cmp_ok(proxy_state()->{requests}, '>=', 20, 'the proxy forwards requests');
drop('plain');
deliver('localplain', { url => "http://localhost:$plain->{port}/hook" });
waits('localplain', qr/plain http is not allowed/, 'plain http to the proxy\'s localhost');
drop('localplain');
deliver('plaintoken', { oauth_token_url => "http://localhost:$tokens->{port}/token" },
	{ oauth_client_id => 'me', oauth_client_secret => 'client-secret' });
waits('plaintoken', qr/plain http is not allowed/, 'a token by plain http through a proxy');
drop('plaintoken');

# ---------------------------------------------------- a proxy that will not

control($proxy, '/_set', '{"status": 403}');
deliver('refusing', {});
waits('refusing', qr/no answer from https:\/\/\Q$host\E.*403|proxy/i, 'a proxy that refuses');
control($proxy, '/_set', '{"status": 502}');
waits('refusing', qr/502/, 'a proxy that cannot connect');
control($proxy, '/_set', '{}');
wait_delivered($node, 'refusing');
pass('when it lets us through, it goes on');
drop('refusing');
deliver('wrongpassword', { proxy => "http://pay:another\@127.0.0.1:$proxy->{port}" });
waits('wrongpassword', qr/407/, 'a password that the proxy refuses');
drop('wrongpassword');
deliver('noproxy', { proxy => 'http://127.0.0.1:' . free_port() });
waits('noproxy', qr/no answer from/, 'no proxy there');
drop('noproxy');
is(sql('SELECT count(*) FROM payment_sync.dead_letters'), 0, 'no event became a dead letter');

# ------------------------------------------------------------------- rights

sql('CREATE ROLE shopkeeper; GRANT USAGE ON FOREIGN DATA WRAPPER payment_sync_http TO shopkeeper;
	GRANT CREATE ON DATABASE postgres TO shopkeeper');
my ($code, $out, $err) = $node->psql('postgres', <<SQL);
SET ROLE shopkeeper;
CREATE SERVER mine FOREIGN DATA WRAPPER payment_sync_http OPTIONS (url '$url', proxy 'http://127.0.0.1:1');
SQL
isnt($code, 0, 'only a superuser may set a proxy');

my $seen = sql('SELECT * FROM payment_sync.stat_sync; SELECT * FROM payment_sync.stat_target') . slurp_file($node->logfile);
unlike($seen, qr/proxy-password|client-secret|\Q$secret\E/, 'no secret is shown');

$node->stop;
done_testing();
