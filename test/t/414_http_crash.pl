# 414_http_crash.pl
#
# Method: pgbench changes payments at full speed; the receiver fails 5 % of
# requests at random, half of these after it has done the work; the worker is
# killed with -9 now and then.  In the end the receiver's table, made of the
# events by id and position, equals the source's.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use IPC::Run ();
use PaymentSyncHttp;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $seconds = $ENV{PSYNC_SECONDS} || 10;
my $secret = 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw';
my $receiver = start_receiver(secret => $secret);
my $node = start_source('source', conf => <<CONF);
payment_sync.http_allowed_hosts = 'localhost'
restart_after_crash = on
fsync = off
CONF
create_target($node, 'shop', { url => "$receiver->{base}/hook", max_batch => 20, retry_delay_min => 10,
	retry_delay_max => 100 }, { signing_secret => $secret });
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE payments (id int PRIMARY KEY, amount numeric NOT NULL, state text NOT NULL);
SELECT payment_sync.capture_table('payments');
SELECT payment_sync.create_sync('shop', '{payments}', server => 'shop');
SQL
my $script = PostgreSQL::Test::Utils::tempdir . '/payments.sql';
append_to_file($script, <<'SQL');
\set id random(1, 2000)
\set d random(1, 10)
BEGIN;
INSERT INTO payments VALUES (:id, :d, 'new')
ON CONFLICT (id) DO UPDATE SET amount = payments.amount + :d, state = 'changed';
DELETE FROM payments WHERE id = :id + 1 AND :d = 10;
COMMIT;
SQL

set_receiver($receiver, fail => 0.05);
my ($out, $err) = ('', '');
my $pgbench = IPC::Run::start([ 'pgbench', '-n', '-c', 4, '-T', $seconds, '-h', $node->host,
	'-p', $node->port, '-f', $script, 'postgres' ], '<', \undef, '>', \$out, '2>', \$err);

# kill the worker each time after so many more requests have come
my $kills = 0;
while ($pgbench->pumpable)
{
	my $before = receiver_state($receiver)->{requests};
	wait_until('requests come', sub {
		$pgbench->pump_nb;
		return !$pgbench->pumpable || receiver_state($receiver)->{requests} > $before + 300;
	}, 120);
	last if !$pgbench->pumpable;
	my ($pid) = worker_pids($node);
	next if !$pid;
	kill 'KILL', $pid;
	$kills++;
	# the server restarts; pgbench's sessions end with it
	$node->poll_query_until('postgres', 'SELECT true');
	last if $kills >= 3;
	$pgbench->finish;
	$pgbench = IPC::Run::start([ 'pgbench', '-n', '-c', 4, '-T', $seconds / 2, '-h', $node->host,
		'-p', $node->port, '-f', $script, 'postgres' ], '<', \undef, '>', \$out, '2>', \$err);
}
$pgbench->finish;
cmp_ok($kills, '>=', 1, "the worker was killed ($kills times)");
wait_delivered($node, 'shop');

my $state = receiver_state($receiver);
cmp_ok($state->{failed}, '>', 0, "requests were failed on purpose ($state->{failed} of $state->{requests})");
is(join("\n", @{ $state->{problems} }), '', 'judged well: signatures, frozen bodies, order per key');
my %source = map { my ($id, $amount, $state) = split /\|/; $id => "$amount|$state" }
  split /\n/, $node->safe_psql('postgres', 'TABLE payments');
my %target = map { $_->{id} => "$_->{amount}|$_->{state}" } values %{ $state->{table} };
is_deeply(\%target, \%source, "the receiver's table equals the source's ($state->{events} events)");

$node->stop;
done_testing();
