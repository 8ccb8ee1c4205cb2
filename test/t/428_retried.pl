# 428_retried.pl
#
# Any number of dead letters may be retried, by any number of calls: the worker
# keeps a portion of them in memory, whatever waits, and delivers all of them,
# those of one key in their order.  Method: the target refuses 30,000 events,
# three per key, then does not answer while all are retried; the server tells
# how large the worker's memory contexts are; then the target takes them.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = start_source('source');
my $dir = PostgreSQL::Test::Utils::tempdir();

sub q1 { return $node->safe_psql('postgres', $_[0]) }
sub wait_for
{
	my ($query, $what) = @_;
	$node->poll_query_until('postgres', $query)
	  or die "$what: " . q1('SELECT row_to_json(s) FROM payment_sync.stat_target s');
	return;
}
sub answer
{
	my ($text) = @_;
	append_to_file("$dir/answer.new", "$text\n");
	rename "$dir/answer.new", "$dir/answer" or die "cannot rename: $!";
	return;
}
sub attempts
{
	my $lines = () = slurp_file("$dir/received") =~ /\n/g;
	return $lines;
}

# Bytes of the worker's memory context that all of a delivery is in.
sub memory
{
	my ($pid) = worker_pids($node);
	my $from = -s $node->logfile;
	q1("SELECT pg_log_backend_memory_contexts($pid)");
	for (1 .. 600)
	{
		my $log = substr(slurp_file($node->logfile), $from);
		if ($log =~ /Grand total/)
		{
			my ($bytes) = $log =~ /payment_sync messages: (\d+) total/ or die "no such context: $log";
			return $bytes;
		}
		select undef, undef, undef, 0.1;
	}
	die 'the worker says nothing of its memory';
}

q1(<<SQL);
CREATE EXTENSION payment_sync;
CREATE FOREIGN DATA WRAPPER probe OPTIONS (library 'payment_sync_probe');
CREATE SERVER s FOREIGN DATA WRAPPER probe OPTIONS (directory '$dir', retry_delay_min '20', retry_delay_max '100');
CREATE USER MAPPING FOR CURRENT_USER SERVER s;
CREATE TABLE pay (id int PRIMARY KEY, n int);
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('s', '{pay}', 's');
SQL
answer('refused 422');
q1('INSERT INTO pay SELECT i, 1 FROM generate_series(1, 10000) i');
q1("UPDATE pay SET n = $_") for 2, 3;
wait_for("SELECT count(*) = 30000 FROM payment_sync.dead_letters WHERE state = 'dead'", 'not refused');
wait_delivered($node, 's');

answer('hang 0');
my $before = attempts();
is(q1("SELECT payment_sync.retry_dead_letters('s')"), '10000', '10,000 at a time');
for (1 .. 600)
{
	last if attempts() > $before;
	select undef, undef, undef, 0.1;
}
cmp_ok(attempts(), '>', $before, 'some are sent');
my $some = memory();
is(q1("SELECT payment_sync.retry_dead_letters('s')"), '10000', 'as many again') for 1, 2;
is(q1("SELECT payment_sync.retry_dead_letters('s')"), '0', 'all are asked for');
is(q1('SELECT parked, dead FROM payment_sync.stat_target'), '30000|0', 'they count as parked');
is(q1('SELECT sum(parked), sum(dead), bool_and(balanced) FROM payment_sync.ledger'), '30000|0|t', 'in the ledger, too');
# an event of the same sync tells that it has looked since
q1('INSERT INTO pay VALUES (10001, 1)');
wait_for("SELECT in_flight > 0 FROM payment_sync.stat_target", 'nothing is under way');
my $all = memory();
cmp_ok($all, '<', $some + 512 * 1024, "memory does not depend on how many there are ($some, then $all bytes)");

# one may be discarded while it waits
is(q1("SELECT payment_sync.discard_dead_letters('s', ARRAY[(SELECT max(id) FROM payment_sync.dead_letters)])"),
	'1', 'one that waits is discarded');

$before = attempts();
unlink "$dir/answer";
q1("SELECT payment_sync.disable_sync('s')");
wait_for('SELECT worker_pid IS NULL FROM payment_sync.stat_sync', 'is not disabled');
q1("SELECT payment_sync.enable_sync('s')");
wait_for('SELECT count(*) = 0 FROM payment_sync.dead_letters', 'not delivered');
wait_delivered($node, 's');

my (%last, %ids, @wrong);
my $line = 0;
for my $attempt (split /\n/, slurp_file("$dir/received"))
{
	next if $line++ < $before;
	my ($id, $body) = (split /\t/, $attempt, -1)[ 0, 7 ];
	my ($key) = $body =~ /"key":\{"id":(\d+)\}/;
	my ($position) = $body =~ /"position":"(\d+)"/;
	push @wrong, "$key: $position after $last{$key}" if defined $last{$key} && $position lt $last{$key};
	$last{$key} = $position;
	$ids{$id}++;
}
is(scalar keys %ids, 30000, 'all are delivered, but the one');
is("@wrong[0 .. ($#wrong > 5 ? 5 : $#wrong)]", '', 'of each key in order');
is(q1('SELECT sum(captured), sum(delivered), sum(discarded), bool_and(balanced) FROM payment_sync.ledger'),
	'30001|30000|1|t', 'the ledger agrees');

# Plans of transforms go with what they were made for.
my $plans = q(SELECT count(*) FROM pg_backend_memory_contexts WHERE name LIKE 'CachedPlan%');
q1("SELECT payment_sync.alter_sync('s', transform => 'event')");
is($node->safe_psql('postgres', join(';', 'CREATE TEMPORARY TABLE seen AS SELECT 1 AS n WHERE false',
	map { ("SELECT length(payment_sync.preview_event('s', '{\"id\": 1}')) > 0") x $_, "INSERT INTO seen $plans" } 5, 200)
	. ';SELECT max(n) - min(n) FROM seen') =~ s/.*\n//sr, '0', '200 previews leave no plan behind');
sub plans
{
	my ($pid) = worker_pids($node);
	my $from = -s $node->logfile;
	q1("SELECT pg_log_backend_memory_contexts($pid)");
	for (1 .. 600)
	{
		my $log = substr(slurp_file($node->logfile), $from);
		return scalar(() = $log =~ /CachedPlan/g) + ($log =~ /(\d+) more child contexts/ ? $1 : 0) if $log =~ /Grand total/;
		select undef, undef, undef, 0.1;
	}
	die 'the worker says nothing of its memory';
}
my @plans;
for my $i (1 .. 40)
{
	q1("SELECT payment_sync.alter_sync('s', transform => 'event || ''{\"round\": $i}''')");
	q1("INSERT INTO pay VALUES (20000 + $i, 1)");
	wait_delivered($node, 's');
	push @plans, plans() if $i == 10 || $i == 40;
}
cmp_ok($plans[1], '<', $plans[0] + 10, "30 deliveries more leave no plan behind: $plans[0], then $plans[1]");

$node->stop;
done_testing();
