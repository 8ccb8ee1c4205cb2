# 420_http_items.pl
#
# Answers that tell the events of a batch apart, as EventBridge's and SQS's do:
# what was taken is done, what failed for a reason that may pass comes again
# with the same id, what was refused is a dead letter, and nothing else waits.
# An answer with success status that does not say so of the events is none.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use JSON::PP;
use MIME::Base64;
use PaymentSyncHttp;
use PaymentSyncTest;
use Test::More;

my $node = start_source('source', conf => "payment_sync.http_allowed_hosts = 'localhost'\n");
$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION payment_sync;
CREATE TABLE payments (id int PRIMARY KEY, amount numeric);
SELECT payment_sync.capture_table('payments');
SQL

sub sql { return $node->safe_psql('postgres', $_[0]); }

# The events of all requests, in order: "ID operation".
sub events_sent
{
	my ($receiver) = @_;
	return map { my $request = $_;
		map { "$_->{key}{id} $_->{operation} $_->{id}" } @{ decode_json(decode_base64($request->{body})) }
	} @{ receiver_requests($receiver) };
}

# One batch of twelve events; of the key 3 there are three.
sub deliver
{
	my ($name, $options, %items) = @_;
	my $receiver = start_receiver();
	set_receiver($receiver, items => \%items);
	create_target($node, $name, { url => "$receiver->{base}/hook", max_batch => 100, linger => 100,
		retry_delay_min => 50, retry_delay_max => 400, %$options }, {});
	sql("SELECT payment_sync.create_sync('$name', '{payments}', server => '$name')");
	sql(<<'SQL');
BEGIN;
INSERT INTO payments SELECT i, i FROM generate_series(1, 10) i;
UPDATE payments SET amount = 33 WHERE id = 3;
UPDATE payments SET amount = 333 WHERE id = 3;
COMMIT;
SQL
	return $receiver;
}

sub finish
{
	my ($name) = @_;
	sql("SELECT payment_sync.drop_sync('$name'); DROP SERVER $name CASCADE; TRUNCATE payments");
	return;
}

# ------------------------------------------- a result per event, in order

my $receiver = deliver('entries', { items_path => 'Entries', items_error => 'ErrorCode' },
	style => 'entries', codes => {
		3 => [ 'ThrottlingException', 2 ], 5 => [ 'InvalidArgument', 1000 ],
		7 => [ 'InternalFailure', 1 ], 9 => [ 'MalformedDetail', 1000 ] });
wait_delivered($node, 'entries');
wait_state($receiver, 'all but the refused ones have come', sub { $_[0]{events} == 10 });
$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM payment_sync.dead_letters WHERE state = 'parked'")
  or die 'something is parked';
judged_well($receiver, 'entries');
is(sql(<<'SQL'),
SELECT string_agg(key || ' ' || state || ' ' || events || ' ' || substring(reason from '[^ ]*$'), ', ' ORDER BY key::int)
FROM payment_sync.dead_letters
SQL
	'5 dead 1 InvalidArgument, 9 dead 1 MalformedDetail',
	'only what was refused is a dead letter, each with its own reason');
my $state = receiver_state($receiver);
is($state->{table}{'public.payments {"id":3}'}{amount}, '333', 'the key that was throttled ends as it should');
my @sent = events_sent($receiver);
my %times;
$times{$_}++ for @sent;
my @again = grep { $times{$_} > 1 } keys %times;
is_deeply([ sort { $a <=> $b } keys %{ { map { (split / /)[0] => 1 } @again } } ], [ 3, 7 ],
	'what was taken or refused is not sent again; what is sent again has the same id');
is(scalar(grep { /^3 insert/ } @sent), 3, 'throttled twice, the event is sent three times');
my @of_key = map { (split / /)[1] } grep { /^3 / } @sent;
like(join(" ", @of_key), qr{^insert update update insert update update insert update update$},
	'and the later events of its key behind it each time');
is($state->{stale}, 0, 'no event of a key came behind a newer one');
is(sql("SELECT events FROM payment_sync.stat_target WHERE sync = 'entries'"), '10',
	'delivered events are counted once');
finish('entries');

# ------------------------------------------------- a list of failures only

$receiver = deliver('failed', { items_path => 'Failed', items_index => 'Id', items_code => 'Code',
		items_retry => 'Busy*, Later' },
	style => 'failed', codes => {
		2 => [ 'BusyNow', 3 ], 4 => [ 'later', 1 ], 6 => [ 'ThrottlingException', 1 ] });
wait_state($receiver, 'all have come but one', sub { $_[0]{events} == 11 });
wait_delivered($node, 'failed');
judged_well($receiver, 'failed');
is(sql('SELECT string_agg(key, $$,$$) FROM payment_sync.dead_letters'), '6',
	'items_retry says which codes are for retry, whatever the default is');
finish('failed');

# ------------------------------------------------ answers without the list

# One event that waits for an answer of which the body is all that matters.
sub answers
{
	my ($name, $options, $unread, $read) = @_;
	my $receiver = start_receiver();
	create_target($node, $name, { url => "$receiver->{base}/hook", max_batch => 10, items_path => 'Failed',
		items_index => 'Id', retry_delay_min => 10, retry_delay_max => 50, %$options }, {});
	sql("SELECT payment_sync.create_sync('$name', '{payments}', server => '$name')");
	for my $case ([ '{"Failed": [{"Id": "0", "Code": "AccessDenied"}]}', qr/^false .*AccessDenied/ ],
		[ $unread->[0], qr/^false .*does not have the results/ ])
	{
		set_receiver($receiver, body => $case->[0]);
		like(sql("SELECT ok || ' ' || detail FROM payment_sync.check_target('$name') WHERE step = 'ping'"),
			$case->[1], "$name: check_target: $case->[0]");
	}
	my $pings = receiver_state($receiver)->{events};
	sql('INSERT INTO payments VALUES (1, 1)');
	for my $body (@$unread)
	{
		set_receiver($receiver, body => $body);
		my $before = receiver_state($receiver)->{requests};
		# a second request comes because the answer to the first was not enough
		my $state = wait_state($receiver, "$name: $body: it is sent again", sub { $_[0]{requests} >= $before + 2 });
		is($state->{events}, $pings + 1, "$name: $body: sent again with its id, and nothing goes past it");
	}
	$node->poll_query_until('postgres', <<SQL) or die "$name: no reason";
SELECT concat_ws(' ', last_error, last_error_detail) ~ 'does not have the results of the events' FROM payment_sync.stat_sync WHERE name = '$name'
SQL
	is(sql("SELECT events FROM payment_sync.stat_target WHERE sync = '$name'"), '0', "$name: no event counts as delivered");
	is(sql('SELECT count(*) FROM payment_sync.dead_letters'), '0', "$name: none is refused");
	for my $body (@$read)
	{
		set_receiver($receiver, body => $body);
		wait_delivered($node, $name);
		my $before = receiver_state($receiver)->{requests};
		sql('UPDATE payments SET amount = amount + 1');
		wait_delivered($node, $name);
		is(receiver_state($receiver)->{requests}, $before + 1, "$name: $body: acknowledges");
	}
	judged_well($receiver, $name);
	finish($name);
	return;
}

my @never = ('{"message": "internal failure"}', '{"Failed": "all"}', '{"Failed": null}', '{"Failed": {}}',
	'ok', '', '[]', '{"Failed": [', '{"Failed": [{"Id": "0"} {"Id": "1"}]}', '{"Failed": [,]}', '{"Failed": [{"Id": "7"}]}');
answers('nolist', {}, [ @never, '{}', '{"Successful": [{"Id": "0"}]}' ], [ '{"Failed": []}', '{"Failed": [ ]}' ]);
answers('listed', { items_success => 'Successful' },
	[ @never, '{"Failed": []}', '{"Successful": []}', '{"Successful": true}', '{"Successful": [{}, {}]}', '{"Successful": [{}'],
	[ '{"Successful": [{"Id": "0"}]}', '{"Successful": [{"Id": "0"}], "Failed": []}', '{"Failed": null, "Successful": [{}]}' ]);
answers('value', { items_success => 'result.errors=false' },
	[ @never, '{"errors": false}', '{"result": {"errors": true}}', '{"result": {"errors": 0}}', '{"result": false}' ],
	[ '{"result": {"errors": false}}', '{"Failed": null, "result": {"errors": false}}', '{"Failed": []}' ]);

# ------------------------------------- one key that fails for long is parked

$receiver = deliver('parked', { items_path => 'Entries', items_error => 'ErrorCode' },
	style => 'entries', codes => { 3 => [ '503', 1000 ] });
$node->poll_query_until('postgres', <<'SQL') or die 'not parked';
SELECT count(*) >= 1 AND bool_and(key = '3') FROM payment_sync.dead_letters WHERE state = 'parked'
SQL
sql('INSERT INTO payments SELECT i, i FROM generate_series(101, 150) i');
sql('UPDATE payments SET amount = -3 WHERE id = 3');
wait_delivered($node, 'parked');
$state = wait_state($receiver, 'the others go on', sub { $_[0]{events} == 9 + 50 });
pass('the others go on while the events of one key are parked');
ok(!exists $state->{table}{'public.payments {"id":3}'}, 'none of which was taken');
$node->restart('immediate');
set_receiver($receiver, items => { style => 'entries', codes => {} });
wait_state($receiver, 'the parked ones have come', sub { $_[0]{events} == 9 + 50 + 4 });
$state = receiver_state($receiver);
is($state->{table}{'public.payments {"id":3}'}{amount}, '-3', 'after a restart they come, in order');
is($state->{stale}, 0, 'no event of a key came behind a newer one');
judged_well($receiver, 'parked');

# --------------------------------------------------- all of them are throttled

set_receiver($receiver, items => { style => 'entries',
	codes => { map { $_ => [ '429', 1000 ] } 201 .. 220 } });
sql('INSERT INTO payments SELECT i, i FROM generate_series(201, 220) i');
$node->poll_query_until('postgres', <<'SQL') or die 'no failure';
SELECT failures >= 2 AND last_error LIKE '%429%' FROM payment_sync.stat_sync WHERE name = 'parked'
SQL
is(sql("SELECT count(*) FROM payment_sync.dead_letters"), '0',
	'a target that takes no event of a batch is down: nothing is parked');
set_receiver($receiver);
set_receiver($receiver, items => { style => 'entries', codes => {} });
wait_state($receiver, 'all have come', sub { $_[0]{events} == 9 + 50 + 4 + 20 });
judged_well($receiver, 'throttled');

$node->stop;
done_testing();
