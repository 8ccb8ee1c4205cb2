# 418_http_answers.pl
#
# What counts as an acknowledgement, and when it is tried again: a status set,
# a body (Alipay's), results per event that are not as they should be;
# Retry-After in seconds and as a date, between our own delay and the cap; and
# a limit of the rate.  Delays are read from the views, not waited for.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use JSON::PP;
use MIME::Base64;
use POSIX ();
use PaymentSyncHttp;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = start_source('source', conf => "payment_sync.http_allowed_hosts = 'localhost'\n");
$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION payment_sync;
CREATE TABLE payments (id int PRIMARY KEY, amount numeric, note text);
SELECT payment_sync.capture_table('payments');
SQL

sub sql { return $node->safe_psql('postgres', $_[0]); }

sub begin
{
	my ($name, $receiver, $server, $user) = @_;
	create_target($node, $name, { url => "$receiver->{base}/hook", retry_delay_min => 20,
		retry_delay_max => 100, %$server }, $user);
	sql("TRUNCATE payments; SELECT payment_sync.create_sync('$name', '{payments}', server => '$name')");
	return;
}

sub drop { my ($name) = @_; return sql("SELECT payment_sync.drop_sync('$name'); DROP SERVER $name CASCADE"); }

sub waits
{
	my ($name, $reason, $what) = @_;
	becomes_like(sub { stat($node, $name, 'last_error') }, $reason, "$what: the sync says so");
	cmp_ok(stat($node, $name, 'lag_changes'), '>', 0, "$what: not acknowledged");
	return;
}

# ------------------------------------------------------ acknowledgements

my $receiver = start_receiver();
begin('alipay', $receiver, { success_body => 'success' });
for my $body ('fail', '', 'successful', 'success success', '{"code":"success"}')
{
	set_receiver($receiver, body => $body);
	sql("INSERT INTO payments SELECT count(*) + 1, 1 FROM payments");
	waits('alipay', qr/body is not the one that acknowledges/, "success_body, answer '$body'");
	set_receiver($receiver, body => "\r\n success\t\n");
	wait_delivered($node, 'alipay');
}
is(sql('SELECT count(*) FROM payment_sync.dead_letters'), 0, 'success_body: no event is to blame');
is(receiver_state($receiver)->{events}, 5, 'success_body: white space around it does not matter');
judged_well($receiver, 'success_body: repeated with the same id and bytes');
drop('alipay');

# A status that acknowledges although it is none of 2xx, and a 2xx that does not.
$receiver = start_receiver();
begin('statuses', $receiver, { success_status => '200-201, 409' });
set_receiver($receiver, status => 409);
sql('INSERT INTO payments VALUES (1, 1)');
wait_delivered($node, 'statuses');
is(sql("SELECT last_status || ' ' || events FROM payment_sync.stat_target WHERE sync = 'statuses'"), '409 1',
	'success_status: 409 acknowledges');
set_receiver($receiver, status => 202);
sql('INSERT INTO payments VALUES (2, 1)');
waits('statuses', qr/status 202/, 'success_status: 202 does not');
set_receiver($receiver, status => 201);
wait_delivered($node, 'statuses');
drop('statuses');

# Results that are missing, too few, or no JSON: what is not understood is no
# acknowledgement.
$receiver = start_receiver();
begin('items', $receiver, { items_path => 'Entries', items_error => 'ErrorCode' });
for my $body ('', 'ok', '{"Entries": [', '{"Entries": []}', '{"Entries": [{}, {}]}', '{"entries": [{}]}',
	'[' x 200, '{"Entries": [{"ErrorCode"')
{
	set_receiver($receiver, body => $body);
	sql("INSERT INTO payments SELECT count(*) + 1, 1 FROM payments");
	waits('items', qr/does not have the results/, "items, answer '" . substr($body, 0, 30) . "'");
	set_receiver($receiver, body => '{"Entries": [{"ErrorCode": null}]}');
	wait_delivered($node, 'items');
}
drop('items');

# ------------------------------------------------------------ Retry-After

# The first key fails while others are taken, so it is parked; next_at tells
# the delay.  The target's clock is an hour behind: a date counts from its own.
my $hour_ago = time - 3600;
my $date = sub { POSIX::strftime('%a, %d %b %Y %H:%M:%S GMT', gmtime($_[0])) };
for my $case (
	[ seconds => { 'Retry-After' => '500' }, {}, 500 ],
	[ cap => { 'Retry-After' => '5000' }, { retry_after_max => 1000000 }, 1000 ],
	[ own => { 'Retry-After' => '0' }, { retry_delay_min => 400000, retry_delay_max => 400000 }, 400 ],
	[ negative => { 'Retry-After' => '-30' }, { retry_delay_min => 400000, retry_delay_max => 400000 }, 400 ],
	[ garbage => { 'Retry-After' => 'tomorrow, perhaps' }, { retry_delay_min => 400000, retry_delay_max => 400000 }, 400 ],
	[ huge => { 'Retry-After' => '9' x 40 }, { retry_delay_min => 400000, retry_delay_max => 400000 }, 400 ],
	[ date => { 'Retry-After' => $date->($hour_ago + 700), Date => $date->($hour_ago) }, {}, 700 ],
	[ past => { 'Retry-After' => $date->($hour_ago - 700), Date => $date->($hour_ago) },
		{ retry_delay_min => 400000, retry_delay_max => 400000 }, 400 ])
{
	my ($name, $headers, $server, $seconds) = @$case;
	$receiver = start_receiver();
	set_receiver($receiver, keys => { 1 => { status => $name eq 'seconds' ? 429 : 503, headers => $headers } });
	begin($name, $receiver, $server);
	sql('INSERT INTO payments SELECT i, 1 FROM generate_series(1, 20) i');
	$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM payment_sync.dead_letters WHERE sync = '$name' AND state = 'parked'")
	  or die "$name: not parked";
	wait_delivered($node, $name);
	# from the last attempt on, with up to a quarter of jitter upwards
	my $delay = sql("SELECT extract(epoch FROM next_at - created) + 2 FROM payment_sync.dead_letters WHERE sync = '$name'");
	cmp_ok($delay, '>=', $seconds - 1, "Retry-After, $name: not before $seconds s");
	cmp_ok($delay, '<=', $seconds * 1.25 + 30, "Retry-After, $name: nor much later");
	is(scalar(grep { decode_json(MIME::Base64::decode_base64($_->{body}))->{key}{id} eq '1' } @{ receiver_requests($receiver) }),
		1, "Retry-After, $name: sent once");
	drop($name);
}

# --------------------------------------------------------------- the rate

# By the receiver's own clock, never more than the limit in any stretch of
# time, but for the burst of a tenth of a second's worth.
$receiver = start_receiver();
begin('rate', $receiver, { rate_limit => 50 });
sql('INSERT INTO payments SELECT i, 1 FROM generate_series(1, 150) i');
wait_delivered($node, 'rate');
my @at = sort { $a <=> $b } map { $_->{at} / 1e6 } @{ receiver_requests($receiver) };
cmp_ok(scalar(@at), '>=', 150, 'rate_limit: all have come');
cmp_ok($at[-1] - $at[0], '>=', (150 - 5 - 1) / 50 - 0.1, 'rate_limit: not faster than the limit');
drop('rate');

# ------------------------------------------------------------ compression

# The receiver verifies the signature over the bytes before compression.
my $secret = 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw';
for my $coding (qw(gzip zstd))
{
	$receiver = start_receiver(secret => $secret);
	begin($coding, $receiver, { compression => $coding, max_batch => 100, linger => 20 }, { signing_secret => $secret });
	sql(<<'SQL');
INSERT INTO payments SELECT i, i, repeat('ümläut ', 2000) FROM generate_series(1, 20) i;
INSERT INTO payments VALUES (100, 1, '');
SQL
	wait_delivered($node, $coding);
	judged_well($receiver, "$coding: what is signed is what is meant");
	is(receiver_state($receiver)->{events}, 21, "$coding: all events");
	my @requests = @{ receiver_requests($receiver) };
	is(scalar(grep { ($_->{headers}{'content-encoding'} // '') ne $coding } @requests), 0, "$coding: the header says so");
	my ($largest) = sort { $b <=> $a } map { $_->{headers}{'content-length'} } @requests;
	cmp_ok($largest, '<', 20000, "$coding: bodies are small");
	set_receiver($receiver, status => 415, headers => { 'Accept-Encoding' => 'identity' });
	sql('UPDATE payments SET amount = 2 WHERE id = 100');
	wait_delivered($node, $coding);
	is(sql("SELECT status FROM payment_sync.dead_letters WHERE sync = '$coding'"), 415,
		"$coding: a target that cannot read it refuses the event");
	drop($coding);
}

$node->stop;
done_testing();
