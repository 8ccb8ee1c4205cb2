# 230_watch.pl
#
# stat_sync: lag in changes, bytes and time; windows, changes, rows and bytes
# delivered, and the rate; last success, last error.  Counters survive restarts
# and crashes; exactly in the one case, at most the last second short in the
# other.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncSession;
use PaymentSyncTest;
use Test::More;

my $source = start_source('source');
my $target = start_target('target');

$_->safe_psql('postgres', 'CREATE TABLE pay (id int PRIMARY KEY, v text); CREATE TABLE other (id int PRIMARY KEY)')
  for $source, $target;
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
INSERT INTO pay SELECT i, 'before' FROM generate_series(1, 5000) i;
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.capture_table('other');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target', batch => true);
SQL

# ------------------------------------------------------------------- counters

wait_delivered($source, 'pay');
ok($source->poll_query_until('postgres', "SELECT rows_read = 5000 FROM payment_sync.stat_sync WHERE name = 'pay'"),
	'rows_read counts the batch');
is(stat($source, 'pay', 'changes'), 0, 'which is no change');
my $windows = stat($source, 'pay', 'windows');
$source->safe_psql('postgres', 'INSERT INTO pay SELECT i FROM generate_series(5001, 5100) i');
wait_delivered($source, 'pay');
is(stat($source, 'pay', 'changes'), 100, 'changes counts changes');
cmp_ok(stat($source, 'pay', 'windows'), '>', $windows, 'windows counts windows');
cmp_ok(stat($source, 'pay', 'bytes'), '>', 100 * 14, 'bytes are counted');
is(stat($source, 'pay', "last_success > clock_timestamp() - interval '1 min' AND last_success <= clock_timestamp()"),
	't', 'last_success is when the target last confirmed');
ok($source->poll_query_until('postgres', "SELECT changes_per_second > 0 FROM payment_sync.stat_sync WHERE name = 'pay'"),
	'there is a rate');
is(stat($source, 'pay', "lag_changes || ' ' || lag_bytes || ' ' || lag || ' ' || errors || ' ' || failures"),
	'0 0 00:00:00 0 0', 'no lag, no errors');
$source->safe_psql('postgres', 'INSERT INTO other SELECT generate_series(1, 10)');
is(stat($source, 'pay', 'lag_changes'), 0, 'changes of other tables are no lag');

# ------------------------------------------------------------------------ lag

my $lock = PaymentSyncSession->new($target, 'postgres');
$lock->query('BEGIN; LOCK TABLE pay');
$source->safe_psql('postgres', 'UPDATE pay SET v = $$lag$$ WHERE id <= 7');
my $since = $source->safe_psql('postgres', 'SELECT clock_timestamp()');
$target->poll_query_until('postgres', 'SELECT count(*) > 0 FROM pg_locks WHERE NOT granted');
is(stat($source, 'pay', 'lag_changes'), 7, 'lag_changes is exact');
cmp_ok(stat($source, 'pay', 'lag_bytes'), '>', 7 * 14, 'lag_bytes grows with it');
is(stat($source, 'pay', "lag >= clock_timestamp() - '$since' AND lag < clock_timestamp() - '$since' + interval '1 min'"),
	't', 'lag is the age of the oldest');
is(stat($source, 'pay', 'state'), 'running', 'the state is running');
is(stat($source, 'pay', "worker_pid = (SELECT pid FROM pg_stat_activity WHERE backend_type = 'payment_sync worker' AND datname = 'postgres' AND state = 'active')"),
	't', 'worker_pid is the process that is at it');

# what is not committed, or was rolled back, is no lag
my $open = PaymentSyncSession->new($source, 'postgres');
$open->query('BEGIN; INSERT INTO pay SELECT i FROM generate_series(10001, 12000) i');
$source->safe_psql('postgres', 'BEGIN; INSERT INTO pay SELECT i FROM generate_series(20001, 22000) i; ROLLBACK');
is(stat($source, 'pay', 'lag_changes'), 7, 'uncommitted changes are no lag');
$open->query('COMMIT');
is(stat($source, 'pay', 'lag_changes'), 2007, 'committed ones are');
$lock->query('COMMIT');
wait_delivered($source, 'pay');

# --------------------------------------------------------------- who may look

$source->safe_psql('postgres', <<'SQL');
CREATE ROLE regress_nobody LOGIN;
CREATE ROLE regress_monitor LOGIN;
GRANT pg_monitor TO regress_monitor;
SQL
is($source->safe_psql('postgres', 'SET ROLE regress_nobody; SELECT count(*) FROM payment_sync.stat_sync'), 0, 'others see nothing');
is($source->safe_psql('postgres', 'SET ROLE regress_monitor; SELECT name, lag_changes FROM payment_sync.stat_sync'),
	'pay|0', 'pg_monitor sees all');

# --------------------------------------------------------------------- errors

$target->safe_psql('postgres', 'ALTER TABLE pay ADD CONSTRAINT short CHECK (length(v) < 20)');
$source->safe_psql('postgres', "INSERT INTO pay VALUES (30001, repeat('long', 20))");
ok($source->poll_query_until('postgres', "SELECT failures >= 2 FROM payment_sync.stat_sync WHERE name = 'pay'"), 'it fails');
is( stat($source, 'pay', <<'SQL'), 't', 'the error is there with state, time and next retry');
last_error LIKE '%short%' AND last_error_state = '23514' AND errors >= failures
	AND last_error_at > last_success AND next_retry > last_error_at AND lag_changes = 1
SQL
$target->safe_psql('postgres', 'ALTER TABLE pay DROP CONSTRAINT short');
wait_delivered($source, 'pay');
ok( $source->poll_query_until('postgres', <<'SQL'), 'after a success: no failures in a row, no retry; the last error stays');
SELECT failures = 0 AND next_retry IS NULL AND last_error IS NOT NULL AND errors >= 2 AND last_success > last_error_at
FROM payment_sync.stat_sync WHERE name = 'pay'
SQL

# ---------------------------------------------------- at once, saved at leisure

sub confirmed
{
	$source->poll_query_until('postgres', "SELECT lag_changes = 0 FROM payment_sync.stat_sync WHERE name = 'pay'")
	  or die 'not confirmed';
	return;
}

# Nobody can save while the row is locked, but who asks knows.
my $holder = PaymentSyncSession->new($source, 'postgres');
my $known = stat($source, 'pay', 'changes');
$holder->query('BEGIN; SELECT FROM payment_sync.sync_state FOR UPDATE');
$source->safe_psql('postgres', "UPDATE pay SET v = 'live' WHERE id <= 30");
confirmed();
is( stat($source, 'pay', "changes - $known || ' ' || lag_changes || ' ' || payment_sync.pending_changes('pay') || ' ' || (last_success > clock_timestamp() - interval '1 min')"),
	'30 0 0 true', 'what is confirmed is seen before it is saved');
is($source->safe_psql('postgres', 'SELECT changes FROM payment_sync.sync_state'), $known, 'the table has not got it yet');
my ($worker) = worker_pids($source);
$source->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
$source->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $worker")
  or die 'the worker does not end';
is(stat($source, 'pay', "changes - $known || ' ' || lag_changes"), '30 0', 'also after its worker is gone');
$holder->query('COMMIT');
$source->safe_psql('postgres', "UPDATE pay SET v = 'next' WHERE id <= 10");
wait_delivered($source, 'pay');
is($source->safe_psql('postgres', 'SELECT changes FROM payment_sync.sync_state') - $known, 40,
	'the next worker saves what was counted');
$source->safe_psql('postgres', "SELECT payment_sync.disable_sync('pay')");
is(stat($source, 'pay', "state || ' ' || lag_changes || ' ' || changes - $known"), 'disabled 0 40', 'the figures stay when it is disabled');
$source->safe_psql('postgres', "UPDATE pay SET v = 'later' WHERE id <= 5");
is(stat($source, 'pay', 'lag_changes'), 5, 'and what is pending then is counted');
$source->safe_psql('postgres', "SELECT payment_sync.enable_sync('pay', start => 'now')");
is(stat($source, 'pay', 'lag_changes'), 0, 'started anew, it has another position');
$source->safe_psql('postgres', "UPDATE pay SET v = 'later still' WHERE id <= 5");
wait_delivered($source, 'pay');

# ------------------------------------------------------ restarts and crashes

my $counters = 'windows, changes, rows_read, bytes, errors, stats_since';
wait_delivered($source, 'pay');
my $before = stat($source, 'pay', $counters);
$source->restart;
is(stat($source, 'pay', $counters), $before, 'counters survive a restart');
my $changes = stat($source, 'pay', 'changes');
$source->safe_psql('postgres', "UPDATE pay SET v = 'stop' WHERE id <= 50");
confirmed();
is(stat($source, 'pay', "changes - $changes"), 50, 'what the target has confirmed is counted at once');
$source->restart;
is(stat($source, 'pay', "changes - $changes"), 50, 'also if stopped before they were saved at leisure');
is(stat($source, 'pay', 'lag_changes'), 0, 'and nothing is left to be done');

$before = stat($source, 'pay', $counters);
$source->stop('immediate');
$source->start;
is(stat($source, 'pay', $counters), $before, 'what was saved survives a crash');
$source->safe_psql('postgres', "UPDATE pay SET v = 'crash' WHERE id <= 50");
ok($target->poll_query_until('postgres', "SELECT count(*) = 50 FROM pay WHERE v = 'crash'"), 'delivered');
$source->stop('immediate');
$source->start;
wait_delivered($source, 'pay');
cmp_ok(stat($source, 'pay', "changes - $changes"), '<=', 100, 'a crash counts nothing twice');
same_rows($source, $target, 'SELECT * FROM pay', 'and loses no change');

done_testing();
