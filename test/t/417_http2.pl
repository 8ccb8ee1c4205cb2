# 417_http2.pl
#
# HTTP/2 by option: over TLS with nginx and with Node, and without TLS by prior
# knowledge; then a server that goes away in mid-flight, resets streams, or
# never answers some.  Method: while it misbehaves, rows change; then it
# behaves, and each event must have got its whole answer, in order of its key.
# With libcurl before 8.14, which loses requests over HTTP/2, none of that may
# be different.

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
my $node = start_source('source', conf => "payment_sync.http_allowed_hosts = 'localhost'\nlog_statement = none\n");
$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION payment_sync;
CREATE TABLE payments (id int PRIMARY KEY, amount int);
SELECT payment_sync.capture_table('payments');
SQL

sub sql { return $node->safe_psql('postgres', $_[0]); }

sub begin
{
	my ($name, $url, $server) = @_;
	create_target($node, $name, { url => "$url/hook", ca_file => "$dir/ca.crt", http_version => '2',
		retry_delay_min => 10, retry_delay_max => 100, timeout => 5, %{ $server // {} } },
		{ signing_secret => $secret });
	sql("TRUNCATE payments; SELECT payment_sync.create_sync('$name', '{payments}', server => '$name')");
	return;
}

sub drop { my ($name) = @_; return sql("SELECT payment_sync.drop_sync('$name'); DROP SERVER $name CASCADE"); }

# Everything settled, nothing parked.
sub settled
{
	my ($name) = @_;
	wait_delivered($node, $name);
	$node->poll_query_until('postgres', "SELECT parked = 0 FROM payment_sync.stat_target WHERE sync = '$name'")
	  or die "$name: something stays parked";
	return;
}

# ------------------------------------------------- servers that behave

my $behind = start_receiver(secret => $secret);
my $port = free_port();
start_nginx($dir, <<CONF);
	server {
		listen 127.0.0.1:$port ssl http2;
		ssl_certificate $dir/server.crt;
		ssl_certificate_key $dir/server.key;
		location / { proxy_pass $behind->{base}; }
	}
CONF
my $node_tls = start_receiver(secret => $secret, cert => "$dir/server.crt", key => "$dir/server.key", http2 => 1);
my $node_plain = start_receiver(secret => $secret, http2 => 1);
for my $case ([ nginx => $behind, "https://localhost:$port", '2', 300 ],
	[ node => $node_tls, $node_tls->{base}, '2', 300 ],
	[ prior => $node_plain, $node_plain->{base}, '2-prior-knowledge', 100 ])
{
	my ($name, $receiver, $url, $version, $n) = @$case;
	begin($name, $url, { http_version => $version });
	sql("INSERT INTO payments SELECT i, i FROM generate_series(1, $n) i");
	sql('UPDATE payments SET amount = -amount WHERE id <= 50');
	settled($name);
	judged_well($receiver, "$name: HTTP/2");
	my $state = receiver_state($receiver);
	is($state->{events}, $n + 50, "$name: all events");
	is($state->{stale}, 0, "$name: in order");
	is(stat($node, $name, 'errors'), 0, "$name: what libcurl loses is sent again, and no failure");
	my %versions = map { $_->{version} => 1 } @{ receiver_requests($receiver) };
	is_deeply(\%versions, { '2.0' => 1 }, "$name: by HTTP/2") if $name ne 'nginx';
	drop($name);
}
unlike(slurp_file("$dir/access.log"), qr/HTTP\/1/, 'nginx: by HTTP/2');

# ------------------------------------------------ a server that does not

my $hostile = start_http2(cert => "$dir/server.crt", key => "$dir/server.key");
sub hostile { return decode_json(control($hostile, '/_state')) }

my $good = start_receiver(secret => $secret);
create_target($node, 'good', { url => "$good->{base}/hook" }, { signing_secret => $secret });
begin('hostile', $hostile->{base}, { timeout => 1 });
sql("CREATE TABLE refunds (id int PRIMARY KEY); SELECT payment_sync.capture_table('refunds');
	SELECT payment_sync.create_sync('good', '{refunds}', server => 'good')");
sql('INSERT INTO payments SELECT i, 0 FROM generate_series(1, 30) i');
settled('hostile');
my $amount = 0;
my $round = 0;
for my $mode (qw(goaway unprocessed calm refuse cancel internal half drop))
{
	$round++;
	control($hostile, "/_mode/$mode");
	my $first = $amount + 1;
	sql('UPDATE payments SET amount = ' . ++$amount) for 1 .. 3;
	sql("INSERT INTO refunds VALUES ($round)");
	wait_until("$mode: it misbehaves", sub { hostile()->{misbehaved} > 0 });
	wait_state($good, "$mode: the other sync goes on", sub { $_[0]{events} == $round });
	# what it does to each third request is enough to be got through in the end
	settled('hostile');
	my $state = hostile();
	my (%acknowledged, %last, %seen, @behind);
	$acknowledged{ decode_json($_)->{id} } = 1 for @{ $state->{acknowledged} };
	for my $event (map { decode_json($_) } @{ $state->{order} })
	{
		next if $seen{ $event->{id} }++;
		push @behind, $event->{key}{id} if $event->{position} lt ($last{ $event->{key}{id} } // '');
		$last{ $event->{key}{id} } = $event->{position};
	}
	is(scalar(keys %seen), 90, "$mode: all events came");
	is(scalar(grep { !$acknowledged{$_} } keys %seen), 0, "$mode: each has got its whole answer");
	is("@behind", '', "$mode: in order of each key");
}
is(sql('SELECT count(*) FROM payment_sync.dead_letters'), 0, 'no event is to blame');

$node->stop;
done_testing();
