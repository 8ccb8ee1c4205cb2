# 405_messages.pl
#
# Targets that take messages, with the test transport: it writes what it is
# sent to a file and answers as other files say (test/modules).  What must
# hold whatever the target does:
#
#	P2	nothing is lost
#	P4	of one key, events come in order, repetitions aside
#	P6	whatever is sent again has the same id
#	P7	one key that fails, or hangs, holds up no other
#	P8	kill -9 loses nothing

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = start_source('source', conf => "restart_after_crash = on\n");
my $dir = PostgreSQL::Test::Utils::tempdir();
$source->safe_psql('postgres', <<SQL);
CREATE EXTENSION payment_sync;
CREATE FOREIGN DATA WRAPPER probe OPTIONS (library 'payment_sync_probe');
CREATE TABLE payments (id int PRIMARY KEY, amount numeric, note text);
SELECT payment_sync.capture_table('payments');
SQL

# ------------------------------------------------------------------ helpers

sub sql { return $source->safe_psql('postgres', $_[0]); }

# answer(FILE, TEXT): what the target says from now on; undef: all is well
sub answer
{
	my ($file, $text) = @_;
	unlink "$dir/$file";
	return if !defined $text;
	append_to_file("$dir/$file.new", "$text\n");
	rename "$dir/$file.new", "$dir/$file" or die "cannot rename: $!";
	return;
}

# All attempts, oldest first.
sub attempts
{
	return map {
		my @f = split /\t/, $_, -1;
		+{ id => $f[0], attempt => $f[1], events => $f[2], type => $f[3], key => $f[4],
			body => $f[7] }
	} split /\n/, -e "$dir/received" ? slurp_file("$dir/received") : '';
}

sub wait_for
{
	my ($query, $what) = @_;
	local $PostgreSQL::Test::Utils::timeout_default = 60;
	$source->poll_query_until('postgres', $query)
	  or die "$what: " . sql('SELECT row_to_json(s) FROM payment_sync.stat_sync s')
	  . sql('SELECT row_to_json(s) FROM payment_sync.stat_target s');
	return;
}

# A new sync, with these options of the server.
sub begin
{
	my ($options, $arguments) = @_;
	unlink glob "$dir/*";
	my $more = $arguments ? ", $arguments" : '';
	sql(<<SQL);
DROP SERVER IF EXISTS probe CASCADE;
CREATE SERVER probe FOREIGN DATA WRAPPER probe
	OPTIONS (directory '$dir', retry_delay_min '20', retry_delay_max '100' $options);
CREATE USER MAPPING FOR CURRENT_USER SERVER probe;
SELECT payment_sync.create_sync('s', '{payments}', 'probe'$more);
SQL
	return;
}

sub finish { sql("SELECT payment_sync.drop_sync('s'); TRUNCATE payments"); return; }

sub delivered { wait_delivered($source, 's'); return; }

# A message of so many events is on its way.
sub wait_until_sent
{
	my ($events) = @_;
	for (1 .. 600)
	{
		return if grep { $_->{events} == $events } attempts();
		select undef, undef, undef, 0.1;
	}
	die "no message of $events events";
}

# Everything settled, nothing parked.
sub settled
{
	wait_for(<<'SQL', 'not settled');
SELECT lag_changes = 0 AND NOT EXISTS (SELECT FROM payment_sync.dead_letters WHERE state = 'parked')
FROM payment_sync.stat_sync WHERE name = 's'
SQL
	return;
}

# Per key, positions of first appearances ascend; returns the number of ids.
sub check_order
{
	my ($name) = @_;
	my (%seen, %last, @wrong, %attempts);
	for my $line (attempts())
	{
		for my $event ($line->{body} =~ /("id":"[0-9a-f_r]+","type".*?"at":"[^"]*")/g)
		{
			my ($id) = $event =~ /"id":"([0-9a-f_r]+)"/;
			my ($key) = $event =~ /"key":\{(.*?)\}/;
			my ($position) = $event =~ /"position":"(\d+)"/;
			next if $seen{$id}++;
			push @wrong, "$key: $position after $last{$key}"
			  if defined $key && defined $last{$key} && $position lt $last{$key};
			$last{$key} = $position if defined $key;
		}
	}
	is("@wrong", '', "$name: order of each key");
	return scalar keys %seen;
}

# ---------------------------------------------- one key fails, others go on

begin('');
answer('answer.1', 'retry 503');
sql('INSERT INTO payments SELECT i, i FROM generate_series(1, 20) i');
sql('UPDATE payments SET amount = amount + 1 WHERE id <= 2');
sql('INSERT INTO payments SELECT i, i FROM generate_series(21, 40) i');
wait_for("SELECT count(*) = 2 FROM payment_sync.dead_letters WHERE state = 'parked' AND key = '1'",
	'not parked');
delivered();
is(scalar(grep { $_->{key} ne '1' } attempts()), 40, 'a key that fails holds up no other');
is(scalar(grep { $_->{type} eq 'payments.update' && $_->{key} eq '1' } attempts()), 0,
	'its later event waits behind it');
is(sql("SELECT parked FROM payment_sync.stat_target"), '2', 'stat_target counts both');
# an attempt that says nothing about the event is followed by others
for my $verdict ('again 0', 'target 401')
{
	answer('answer.1', $verdict);
	my $before = attempts();
	for (1 .. 600)
	{
		last if attempts() >= $before + 3;
		select undef, undef, undef, 0.1;
	}
	cmp_ok(scalar(attempts()), '>=', $before + 3, "$verdict: a parked event is tried again");
}
answer('answer.1', undef);
settled();
is(check_order('a key that failed'), 42, 'all events have come');
my %ids = map { $_->{id} => 1 } grep { $_->{key} eq '1' } attempts();
is(scalar(keys %ids), 2, 'retries bear the same ids');
finish();

# ------------------------------------------------------------ a key hangs

begin(", max_in_flight '4'");
answer('answer.1', 'hang 0');
sql('INSERT INTO payments SELECT i, i FROM generate_series(1, 5) i');
for my $i (1 .. 3)
{
	sql("INSERT INTO payments SELECT 10 * $i + i, i FROM generate_series(1, 5) i");
	wait_for("SELECT events >= 5 * $i - 1 FROM payment_sync.stat_target", 'a hanging key holds up others');
}
wait_for("SELECT count(*) = 1 FROM payment_sync.dead_letters WHERE state = 'parked' AND key = '1'",
	'not parked in flight');
delivered();
pass('the position passes a message in flight');
answer('answer.1', undef);
$source->restart('immediate');
settled();
ok((grep { $_->{key} eq '1' } attempts()) >= 2, 'after a restart it is sent again');
is(check_order('a key that hung'), 20, 'all events have come');
finish();

# --------------------------------------------------------------- refusals

begin('');
answer('answer.2', 'refused 422');
sql('INSERT INTO payments SELECT i, i FROM generate_series(1, 3) i');
sql('UPDATE payments SET amount = 0 WHERE id = 2');
delivered();
is(sql("SELECT string_agg(state || ' ' || operation || ' ' || key || ' ' || status, ', ' ORDER BY id) FROM payment_sync.dead_letters"),
	'dead insert 2 422, dead update 2 422', 'what is refused becomes a dead letter');
answer('answer.2', undef);
is(sql("SELECT payment_sync.retry_dead_letters('s')"), '2', 'both are retried');
wait_for('SELECT count(*) = 0 FROM payment_sync.dead_letters', 'not retried');
is(check_order('dead letters'), 4, 'with the same ids, in order');
answer('answer.3', 'refused 400');
sql('UPDATE payments SET amount = 0 WHERE id = 3');
wait_for('SELECT count(*) = 1 FROM payment_sync.dead_letters', 'no dead letter');
is(sql("SELECT payment_sync.discard_dead_letters('s')"), '1', 'one is discarded');
is(sql('SELECT count(*) FROM payment_sync.dead_letters'), '0', 'it is gone');
finish();

begin(", on_refused 'hold'");
answer('answer.2', 'refused 422');
sql('INSERT INTO payments SELECT i, i FROM generate_series(1, 3) i');
sql('UPDATE payments SET amount = 0');
wait_for("SELECT (held, parked) = (1, 1) FROM payment_sync.stat_target", 'not held');
delivered();
is(scalar(grep { $_->{key} eq '2' && $_->{type} eq 'payments.update' } attempts()), 0,
	'a held event holds its key');
is(scalar(grep { $_->{key} ne '2' } attempts()), 4, 'and no other');
answer('answer.2', undef);
sql("SELECT payment_sync.discard_dead_letters('s')");
settled();
is(scalar(grep { $_->{key} eq '2' && $_->{type} eq 'payments.update' } attempts()), 1,
	'until it is discarded');
finish();

# several events in a message: the one at fault is found, the others delivered
begin(", max_batch '100', linger '50'");
answer('poison', 'poisonous');
sql("INSERT INTO payments SELECT i, i, CASE WHEN i IN (7, 50) THEN 'poisonous' END FROM generate_series(1, 64) i");
delivered();
is(sql("SELECT string_agg(key, ',' ORDER BY key::int) FROM payment_sync.dead_letters"), '7,50',
	'of a batch that is refused only the events at fault are dead letters');
is(check_order('halves'), 64, 'all events were sent');
finish();
begin(", max_batch '10', linger '50'");
answer('answer', 'part 200 once');
sql('INSERT INTO payments SELECT i, i FROM generate_series(1, 10) i');
wait_for('SELECT count(*) = 1 FROM payment_sync.dead_letters', 'no dead letter');
delivered();
is(sql('SELECT count(*), min(events) FROM payment_sync.dead_letters'), '1|1',
	'an answer may refuse one event of several');
finish();

# The same with a batch that was parked, because no answer came for long.
for my $mode ('dead_letter', 'hold')
{
	begin(", max_batch '64', linger '50', on_refused '$mode'");
	answer('answer.1', 'hang 0');
	sql("INSERT INTO payments SELECT i, i, CASE WHEN i IN (3, 20) THEN 'poisonous' END FROM generate_series(1, 20) i");
	wait_until_sent(20);
	sql('INSERT INTO payments SELECT i, i FROM generate_series(101, 105) i');
	wait_for("SELECT (count(*), max(events)) = (1, 20) FROM payment_sync.dead_letters WHERE state = 'parked'",
		'the batch is not parked');
	sql('UPDATE payments SET amount = -1, note = NULL WHERE id IN (3, 4)');
	wait_for("SELECT parked >= 22 FROM payment_sync.stat_target", 'what follows is not parked');
	answer('poison', 'poisonous');
	answer('answer.1', undef);
	$source->restart('immediate');
	# the later event of the key 3 bears the word as well, as a previous value
	my ($state, $refused, $held) = $mode eq 'hold' ? ('held', 2, 1) : ('dead', 3, 0);
	wait_for("SELECT count(*) = $refused FROM payment_sync.dead_letters WHERE state = '$state'", 'none is refused');
	wait_for("SELECT parked = $held FROM payment_sync.stat_target", 'the others are not delivered');
	is(sql("SELECT string_agg(key || ' ' || events || ' ' || status, ', ' ORDER BY key::int) FROM payment_sync.dead_letters WHERE state = '$state'"),
		join(', ', ('3 1 422') x ($refused - 1), '20 1 422'), "$mode: of a parked batch only the events at fault are refused");
	is(sql('SELECT sum(captured) = sum(delivered) + sum(parked) + sum(held) + sum(dead) FROM payment_sync.ledger'),
		't', "$mode: the books are balanced");
	answer('poison', undef);
	$source->restart('immediate');
	wait_for("SELECT payment_sync.retry_dead_letters('s') = $refused", 'not retried');
	settled();
	wait_for('SELECT count(*) = 0 FROM payment_sync.dead_letters', 'not delivered');
	is(check_order("$mode: a parked batch"), 27, "$mode: all events have come");
	is((grep { $_->{key} eq '3' && $_->{type} eq 'payments.update' } attempts()) > 0, 1, "$mode: what followed, too");
	finish();
}

# ---------------------------------------------------- the target as a whole

begin('');
answer('answer', 'retry 500');
sql('INSERT INTO payments SELECT i, i FROM generate_series(1, 300) i');
wait_for("SELECT failures >= 3 AND last_error LIKE '%500%' FROM payment_sync.stat_sync", 'no failure');
is(sql("SELECT count(*) FROM payment_sync.dead_letters"), '0', 'nothing is parked while nothing gets through');
my @before = attempts();
cmp_ok(scalar(@before), '<', 100, 'a dead target is not hammered');
answer('answer', undef);
delivered();
is(check_order('a target that was down'), 300, 'all events have come');
is(sql("SELECT failures FROM payment_sync.stat_sync"), '0', 'the failures are forgotten');

answer('answer', 'target 401');
sql('UPDATE payments SET amount = -1 WHERE id <= 10');
wait_for("SELECT failures >= 2 AND last_error LIKE '%401%' FROM payment_sync.stat_sync", 'no failure');
is(sql('SELECT count(*) FROM payment_sync.dead_letters'), '0', 'wrong credentials kill no event');
answer('answer', undef);
settled();
is(check_order('after wrong credentials'), 310, 'all events have come');

answer('answer', 'gone 410');
sql('UPDATE payments SET amount = -2 WHERE id <= 10');
wait_for("SELECT state = 'disabled' AND disabled_reason LIKE '%410%' FROM payment_sync.stat_sync", 'not disabled');
answer('answer', undef);
sql("SELECT payment_sync.enable_sync('s')");
settled();
is(check_order('after 410'), 320, 'one call resumes, nothing is lost');
finish();

begin(", disable_after '1'");
answer('answer', 'retry 500');
sql('INSERT INTO payments SELECT i, i FROM generate_series(1, 3) i');
wait_for("SELECT state = 'disabled' AND disabled_reason LIKE '%has failed for%' FROM payment_sync.stat_sync",
	'not disabled');
answer('answer', undef);
sql("SELECT payment_sync.enable_sync('s')");
delivered();
is(check_order('after disable_after'), 3, 'one call resumes, nothing is lost');

# Retry-After: the target's wish is clamped from below by our own delay only
answer('answer', 'again 0 once');
sql('UPDATE payments SET amount = 5 WHERE id = 1');
delivered();
is(sql('SELECT retries FROM payment_sync.stat_target') > 0, 1, 'retries are counted');
finish();

# ------------------------------------------------------ order strict, none

begin(", ordering 'strict'");
answer('answer.5', 'retry 503 once');
sql('INSERT INTO payments SELECT i, i FROM generate_series(1, 10) i');
delivered();
is(join(',', map { $_->{key} } attempts()), '1,2,3,4,5,5,6,7,8,9,10', 'strict order waits for a retry');
finish();

# ------------------------------------------------------------ rows of a batch

sql("INSERT INTO payments SELECT i, i FROM generate_series(1, 5000) i");
begin(", max_batch '50'", 'batch => true');
sql('UPDATE payments SET amount = -1 WHERE id % 100 = 0');
delivered();
wait_for("SELECT state = 'done' FROM payment_sync.progress_batch", 'batch not done');
my %read;
for my $line (attempts())
{
	$read{$1} = 1 while $line->{body} =~ /"operation":"read","key":\{"id":(\d+)\}/g;
}
is(scalar(keys %read), 5000, 'a batch sends each row as an event of its own');
my ($code, $out, $err) = $source->psql('postgres', "CALL payment_sync.batch_sync('s', mirror => true)");
like($err, qr/takes messages and cannot be a mirror/, 'a mirror is refused');
finish();

# ------------------------------------------------------------------ replay

begin('');
sql('INSERT INTO payments SELECT i, i FROM generate_series(1, 50) i');
delivered();
my @first = map { $_->{id} } attempts();
my ($position) = (attempts())[25]->{body} =~ /"position":"(\d+)"/;
is(sql("SELECT payment_sync.replay('s', from_position => '$position')"), '25', 'replay says how many');
wait_for("SELECT events = 75 FROM payment_sync.stat_target", 'not replayed');
is_deeply([ sort(map { $_->{id} } (attempts())[ 50 .. 74 ]) ], [ sort @first[ 25 .. 49 ] ],
	'replay sends the same ids from the position on');
sql('INSERT INTO payments VALUES (51, 51)');
delivered();
is((attempts())[-1]{key}, '51', 'and goes on');
finish();

# -------------------------------------------------------------- truncation

begin(", max_batch '5'");
sql('INSERT INTO payments SELECT i, i FROM generate_series(1, 20) i');
sql('TRUNCATE payments');
sql('INSERT INTO payments SELECT i, i FROM generate_series(1, 20) i');
delivered();
my @types = map { $_->{type} eq 'payments.truncate' ? 'T' : 'I' x $_->{events} } attempts();
is(join('', @types), 'I' x 20 . 'T' . 'I' x 20, 'a truncation stays between what was before and after');
finish();

# ------------------------------------------------- kill -9, again and again

begin(", max_in_flight '16'");
my $changes = 0;
for my $round (1 .. 5)
{
	answer('answer.' . (7 * $round), 'retry 503');
	answer('answer.' . (7 * $round + 1), 'refused 422 once');
	sql("INSERT INTO payments SELECT i, i FROM generate_series($round * 1000 + 1, $round * 1000 + 400) i");
	sql("INSERT INTO payments SELECT i, i FROM generate_series(1, 60) i ON CONFLICT (id) DO UPDATE SET amount = payments.amount + 1");
	$changes += 460;
	if ($round % 2)
	{
		# the postmaster restarts all others; wait until it has begun to
		my $offset = -s $source->logfile;
		kill 'KILL', worker_pids($source);
		$source->wait_for_log(qr/database system is ready to accept connections/, $offset);
	}
	else
	{
		$source->stop('immediate');
		$source->start;
	}
	$source->poll_query_until('postgres', 'SELECT true') or die 'no server';
}
answer("answer.$_", undef) for map { (7 * $_, 7 * $_ + 1) } 1 .. 5;
$source->poll_query_until('postgres', "SELECT payment_sync.retry_dead_letters('s') >= 0") or die 'cannot retry';
settled();
is(check_order('kill -9'), $changes, 'kill -9: every change has come, in order of its key');
finish();

done_testing();
