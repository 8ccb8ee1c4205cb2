# 219_watch.pl
#
# One worker, several targets that take messages: one that never answers holds
# up no other, and answers of all of them are seen to as they come.  While a
# target is down, commits do not wake the worker.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use IO::Socket::INET;
use PaymentSyncHttp;
use PaymentSyncTest;
use Test::More;

my $node = start_source('source', conf => <<'CONF');
payment_sync.max_workers = 1
payment_sync.http_allowed_hosts = 'localhost'
payment_sync.worker_idle_timeout = 1
CONF
my $target = start_target('target');
$_->safe_psql('postgres', 'CREATE TABLE pay (id int PRIMARY KEY, v text)') for $node, $target;
connect_target($node, $target);
$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION IF NOT EXISTS payment_sync;
SELECT payment_sync.capture_table('pay');
SQL

# accepts, by way of the kernel, and never says a word
my $hole = IO::Socket::INET->new(Listen => 1000, LocalAddr => '127.0.0.1') or die;
my @receivers = map { start_receiver() } 1 .. 2;
create_target($node, 'hole', { url => 'http://127.0.0.1:' . $hole->sockport, timeout => 600, max_in_flight => 4 }, {});
create_target($node, "hook$_", { url => $receivers[$_ - 1]{base} . '/hook' }, {}) for 1, 2;
$node->safe_psql('postgres', "SELECT payment_sync.create_sync('$_', '{pay}', server => '$_')")
  for 'hole', 'hook1', 'hook2', 'target';

sub add
{
	my ($from, $to) = @_;
	$node->safe_psql('postgres', "INSERT INTO pay SELECT i, 'v' FROM generate_series($from, $to) i");
	return;
}

# ------------------------------------------------ one that never answers

add(1, 10);
wait_delivered($node, $_) for 'hook1', 'hook2', 'target';
pass('others are served');
is(PaymentSyncTest::stat($node, 'hole', 'failures'), '0',
	'the one that never answers has not failed');
ok($node->poll_query_until('postgres', "SELECT in_flight = 4 AND requests = 0 AND latency_p50 IS NULL
	FROM payment_sync.stat_target WHERE sync = 'hole'"), 'but what it was asked is to be seen');
my ($worker) = worker_pids($node);
is(scalar(worker_pids($node)), 1, 'by one worker');

for my $i (2 .. 15)
{
	add($i * 10, $i * 10);
	wait_delivered($node, $_) for 'hook1', 'hook2', 'target';
}
pass('commit by commit');
is(PaymentSyncTest::stat($node, 'hole', 'failures'), '0', 'and still it has not failed');
is((worker_pids($node))[0], $worker, 'it is the same worker, also after it was idle for long');

# a session takes a sync away from the worker that waits for its answers
$node->safe_psql('postgres', "SELECT payment_sync.disable_sync('hole')");
$node->safe_psql('postgres', "CALL payment_sync.incremental_sync('hook1')");
add(1001, 1001);
wait_delivered($node, 'hook1');
$node->safe_psql('postgres', "SELECT payment_sync.enable_sync('hole')");

# ------------------------------------------------ answers as they come

# both slow: each event of one key after the other, all on one worker
set_receiver($_, delay => 20) for @receivers;
$node->safe_psql('postgres', "UPDATE pay SET v = v || 'x' WHERE id <= 10") for 1 .. 10;
wait_delivered($node, $_) for 'hook1', 'hook2', 'target';
judged_well($receivers[$_], 'receiver ' . ($_ + 1)) for 0, 1;
same_rows($node, $target, 'SELECT * FROM pay', 'the other server has all rows');

# ------------------------------------------------ a transform that takes long

$node->append_conf('postgresql.conf', "payment_sync.transform_timeout = '300ms'");
$node->reload;
$node->safe_psql('postgres', <<'SQL');
SELECT payment_sync.create_sync('slow', '{pay}', server => 'hook1',
	transform => 'to_jsonb((SELECT 1 FROM pg_catalog.pg_sleep(3600)))');
SQL
for my $i (1501 .. 1503)
{
	add($i, $i);
	wait_delivered($node, $_) for 'hook1', 'hook2', 'target';
}
ok($node->poll_query_until('postgres', "SELECT last_error LIKE 'transform took longer than 300 ms%'
	AND last_error_state = '57014' AND state IN ('waiting', 'running', 'pending') AND failures > 0
	FROM payment_sync.stat_sync WHERE name = 'slow'"), 'a transform that takes too long fails');
is(join(',', map { PaymentSyncTest::stat($node, $_, 'failures') } 'hook1', 'hook2', 'target'), '0,0,0',
	'others are served meanwhile');
is((worker_pids($node))[0], $worker, 'by the same worker');
$node->safe_psql('postgres', "SELECT payment_sync.alter_sync('slow', transform => 'event')");
$node->safe_psql('postgres', "SELECT payment_sync.enable_sync('slow')");
wait_delivered($node, 'slow');
$node->safe_psql('postgres', "SELECT payment_sync.drop_sync('slow')");

# ------------------------------------------------ a target that is down

$node->safe_psql('postgres', "SELECT payment_sync.drop_sync('$_')") for 'hole', 'hook1', 'hook2', 'target';
create_target($node, 'down', { url => 'http://127.0.0.1:' . free_port(), retry_delay_min => 60000, retry_delay_max => 60000 }, {});
$node->safe_psql('postgres', "SELECT payment_sync.create_sync('down', '{pay}', server => 'down')");
add(2001, 2100);
$node->poll_query_until('postgres', "SELECT failures > 0 AND next_retry > now() + interval '10 s'
	FROM payment_sync.stat_sync WHERE name = 'down'") or die;

sub switches
{
	my ($pid) = worker_pids($node);
	open(my $file, '<', "/proc/$pid/status") or die $!;
	return (join('', <$file>) =~ /^voluntary_ctxt_switches:\s+(\d+)/m)[0];
}

my $before = switches();
$node->pgbench('-n -c 2 -t 1000', 0, [qr/processed: 2000/], [qr/^$/], 'writers while the target is down',
	{ '219_insert' => "INSERT INTO pay VALUES (nextval('pay_id'), 'v')" })
  if $node->safe_psql('postgres', 'CREATE SEQUENCE pay_id START 10000') eq '';
cmp_ok(switches() - $before, '<', 500, '2000 commits do not wake the worker');

# ... which hears of everything else
create_target($node, 'up', { url => $receivers[0]{base} . '/hook' }, {});
$node->safe_psql('postgres', "SELECT payment_sync.create_sync('up', '{pay}', server => 'up')");
add(3001, 3001);
wait_delivered($node, 'up');
add(3002, 3002);
wait_delivered($node, 'up');
pass('a new sync is served at once');

$node->stop;
done_testing();
