# Reconciliation in the background: asked for, by schedule, cancelled, slowed
# down, and gone on with after its process was killed.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use IPC::Run;
use PaymentSyncSession;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $rows = 200000;
my $source = start_source('source', conf => "restart_after_crash = on\n");
my $target = start_target('target');
for my $node ($source, $target)
{
	$node->safe_psql('postgres', <<SQL);
CREATE TABLE pay (id bigint PRIMARY KEY, amount numeric(12,2));
INSERT INTO pay SELECT i, i FROM generate_series(1, $rows) i;
ANALYZE pay;
SQL
}
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target');
SQL
$target->safe_psql('postgres', 'DELETE FROM pay WHERE id IN (5, 100000, 199999)');

sub run_is
{
	my ($run, $condition) = @_;
	return $source->poll_query_until('postgres',
		"SELECT $condition FROM payment_sync.reconciliations WHERE run = $run");
}

my $run = $source->safe_psql('postgres', "SELECT payment_sync.start_reconciliation('pay')");
ok(run_is($run, "state = 'done'"), 'a run that was asked for is done');
is($source->safe_psql('postgres',
	"SELECT source_rows, target_rows, missing, percent FROM payment_sync.reconciliations WHERE run = $run"),
	"$rows|@{[$rows - 3]}|3|100.0", 'with its result');

# slow enough to be watched
my $slow = $source->safe_psql('postgres',
	"SELECT payment_sync.start_reconciliation('pay', rows_per_second => 40000)");
ok(run_is($slow, "state = 'running' AND percent BETWEEN 1 AND 99"), 'progress is shown');
like($source->safe_psql('postgres',
	"SELECT query FROM pg_stat_activity WHERE backend_type = 'payment_sync reconciler'"),
	qr/reconciliation $slow/, 'and in pg_stat_activity');
is($source->safe_psql('postgres', "SELECT payment_sync.cancel_reconciliation($slow)"), 't', 'cancelled');
$source->poll_query_until('postgres',
	"SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'payment_sync reconciler'");
is($source->safe_psql('postgres',
	"SELECT state, source_rows < $rows FROM payment_sync.reconciliations WHERE run = $slow"),
	'cancelled|t', 'it ends early');
$source->safe_psql('postgres', "CALL payment_sync.run_reconciliation($slow)");
is($source->safe_psql('postgres',
	"SELECT state, source_rows, missing FROM payment_sync.reconciliations WHERE run = $slow"),
	"done|$rows|3", 'and is gone on with, without counting anything twice');

# kill -9 in the middle
my $killed = $source->safe_psql('postgres',
	"SELECT payment_sync.start_reconciliation('pay', rows_per_second => 40000)");
ok(run_is($killed, "state = 'running' AND source_rows > 0"), 'running');
my $pid = $source->safe_psql('postgres',
	"SELECT pid FROM pg_stat_activity WHERE backend_type = 'payment_sync reconciler'");
my $log = -s $source->logfile;
kill 'KILL', $pid;
$source->wait_for_log(qr/all server processes terminated; reinitializing/, $log);
$source->poll_query_until('postgres', 'SELECT true');
my $before = $source->safe_psql('postgres',
	"SELECT source_rows FROM payment_sync.reconciliations WHERE run = $killed");
cmp_ok($before, '>', 0, 'what was done before the crash is kept');
ok(run_is($killed, "state = 'done'"), 'and the rest is done after it, by itself');
is($source->safe_psql('postgres',
	"SELECT source_rows, target_rows, missing FROM payment_sync.reconciliations WHERE run = $killed"),
	"$rows|@{[$rows - 3]}|3", 'nothing is counted twice');

# in a session's own transaction: others see how far it is, and no more
sub in_session
{
	my ($sql) = @_;
	my $session = { out => '', err => '' };
	$session->{harness} = IPC::Run::start([ 'psql', '-XAtq', '-h', $source->host, '-p', $source->port, 'postgres', '-c', $sql ],
		'<', \undef, '>', \$session->{out}, '2>', \$session->{err});
	$source->poll_query_until('postgres', <<'SQL') or die "no progress: $session->{err}";
SELECT count(*) = 1 FROM payment_sync.progress_reconcile JOIN pg_stat_activity USING (pid)
WHERE sync = 'pay' AND "table" = 'pay'::regclass AND phase = 'comparing' AND percent BETWEEN 1 AND 99
	AND source_rows > 0 AND target_rows > 0 AND missing >= 1 AND backend_type = 'client backend'
SQL
	return $session;
}
my $slowly = "SELECT missing FROM payment_sync.reconcile('pay', rows_per_second => 10000)";
my $runs = $source->safe_psql('postgres', 'SELECT count(*) FROM payment_sync.reconciliations');
my $session = in_session($slowly);
pass('progress of a session');
is($source->safe_psql('postgres', 'CREATE ROLE stranger; SET ROLE stranger; SELECT count(*) FROM payment_sync.progress_reconcile'), '0',
	'not for strangers');
$source->safe_psql('postgres', 'SELECT pg_cancel_backend(pid) FROM payment_sync.progress_reconcile');
$session->{harness}->finish;
like($session->{err}, qr/canceling statement due to user request/, 'a session is cancelled');
is($source->safe_psql('postgres', 'SELECT count(*) FROM payment_sync.progress_reconcile'), '0', 'then there is no progress');
is($source->safe_psql('postgres', 'SELECT count(*) FROM payment_sync.reconciliations'), $runs, 'and nothing is left of it');
is($source->safe_psql('postgres', "SELECT missing FROM payment_sync.reconcile('pay')"), '3', 'the next one runs');
$session = in_session($slowly);
$log = -s $source->logfile;
kill 'KILL', $source->safe_psql('postgres', 'SELECT pid FROM payment_sync.progress_reconcile');
$session->{harness}->finish;
$source->wait_for_log(qr/all server processes terminated; reinitializing/, $log);
$source->poll_query_until('postgres', 'SELECT true');
is($source->safe_psql('postgres', 'SELECT count(*) FROM payment_sync.progress_reconcile'), '0', 'nor after kill -9');
is($source->safe_psql('postgres', "SELECT missing FROM payment_sync.reconcile('pay')"), '3', 'the next one runs');
ok($target->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name ~ 'payment_sync' AND state = 'active' AND backend_type = 'client backend'"),
	'nothing is left running at the target');

# a target that is down
$target->stop;
my $failed = $source->safe_psql('postgres', "SELECT payment_sync.start_reconciliation('pay')");
ok(run_is($failed, "state = 'failed' AND error LIKE '%connect%'"), 'a failure is told');
$target->start;
$source->safe_psql('postgres', "CALL payment_sync.run_reconciliation($failed)");
is($source->safe_psql('postgres',
	"SELECT state, missing FROM payment_sync.reconciliations WHERE run = $failed"), 'done|3',
	'and the run can be gone on with');

# by schedule
is($source->safe_psql('postgres',
	"SELECT agrees FROM payment_sync.stat_sync WHERE name = 'pay'"), 'f', 'the last verdict');
$source->safe_psql('postgres', "SELECT payment_sync.repair('pay')");
wait_delivered($source, 'pay');
$source->safe_psql('postgres', "SELECT payment_sync.reconcile_every('pay', '1 s')");
ok($source->poll_query_until('postgres',
	"SELECT agrees AND agrees_age < interval '1 min' FROM payment_sync.stat_sync WHERE name = 'pay'"),
	'workers reconcile as often as the sync says');
my $last = $source->safe_psql('postgres', 'SELECT max(run) FROM payment_sync.reconciliations');
ok($source->poll_query_until('postgres',
	"SELECT max(run) > $last + 1 FROM payment_sync.reconciliations WHERE state = 'done'"), 'again and again');
$source->safe_psql('postgres', "SELECT payment_sync.reconcile_every('pay', NULL)");

# a table that stays locked: the run fails, instead of waiting for good, and the
# next one is not held up; what failed can be gone on with
$source->safe_psql('postgres', q{ALTER DATABASE postgres SET lock_timeout = '300ms'});
my $locker = PaymentSyncSession->new($source, 'postgres');
$locker->query('BEGIN; LOCK TABLE pay IN ACCESS EXCLUSIVE MODE;');
my $locked_out = $source->safe_psql('postgres', "SELECT payment_sync.start_reconciliation('pay')");
ok(run_is($locked_out, "state = 'failed' AND error LIKE '%lock timeout%'"), 'a lock is not waited for without limit');
$locker->query('ROLLBACK;');
$locker->quit;
$source->safe_psql('postgres', 'ALTER DATABASE postgres RESET lock_timeout');
$source->safe_psql('postgres', "CALL payment_sync.run_reconciliation($locked_out)");
ok(run_is($locked_out, "state = 'done' AND source_rows > 0"), 'and the run can be gone on with');

# A target that does not answer, here since its table is locked.  With the limit
# of ten minutes, its run stays; others are not held up by it.
$source->safe_psql('postgres', <<'SQL');
CREATE TABLE quick (id int PRIMARY KEY);
INSERT INTO quick VALUES (1);
SELECT payment_sync.capture_table('quick');
SELECT payment_sync.create_sync('quick', '{quick}', server => 'target');
SQL
$target->safe_psql('postgres', 'CREATE TABLE quick (id int PRIMARY KEY); INSERT INTO quick VALUES (1)');
$locker = PaymentSyncSession->new($target, 'postgres');
$locker->query('BEGIN; LOCK TABLE pay IN ACCESS EXCLUSIVE MODE;');
my $silent = $source->safe_psql('postgres', "SELECT payment_sync.start_reconciliation('pay')");
sub unanswered
{
	my ($n) = @_;
	return $target->poll_query_until('postgres',
		"SELECT count(*) = $n FROM pg_stat_activity WHERE application_name ~ 'payment_sync' AND wait_event_type = 'Lock'");
}
unanswered(1) or die 'the run does not wait for its target';
my $quick = $source->safe_psql('postgres', "SELECT payment_sync.start_reconciliation('quick')");
ok(run_is($quick, "state = 'done' AND matched = 1"), 'a run does not wait for another one whose target does not answer');
is($source->safe_psql('postgres', "SELECT finished IS NULL FROM payment_sync.reconciliations WHERE run = $silent"), 't', 'which is still at it');
$source->safe_psql('postgres', "SELECT payment_sync.reconcile_every('quick', '1 s')");
ok($source->poll_query_until('postgres',
	"SELECT count(*) >= 2 FROM payment_sync.reconciliations WHERE sync = 'quick' AND run > $quick AND state = 'done'"),
	'nor does the schedule');
$source->safe_psql('postgres', "SELECT payment_sync.reconcile_every('quick', NULL)");

# in a session the same limit holds
my ($ret, $out, $err) = $source->psql('postgres',
	"SET payment_sync.reconcile_timeout = '200ms'; SELECT * FROM payment_sync.reconcile('pay')");
like($err, qr/an answer of the target took longer than 200 ms.*HINT:  .*payment_sync\.reconcile_timeout/s, 'a limit to the wait');
is($source->safe_psql('postgres', "SELECT missing FROM payment_sync.reconcile('quick')"), '0', 'the session goes on');

# in the background the run fails, and can be gone on with
$source->safe_psql('postgres', "ALTER DATABASE postgres SET payment_sync.reconcile_timeout = '300ms'");
my $limited = $source->safe_psql('postgres', "SELECT payment_sync.start_reconciliation('pay')");
ok(run_is($limited, "state = 'failed' AND error LIKE '%an answer of the target took longer than 300 ms%'"), 'a run fails by it');
$source->safe_psql('postgres', 'ALTER DATABASE postgres RESET payment_sync.reconcile_timeout');
is($source->safe_psql('postgres', "SELECT finished IS NULL FROM payment_sync.reconciliations WHERE run = $silent"), 't',
	'one that began before keeps its own');
$locker->query('ROLLBACK;');
$locker->quit;
ok(run_is($silent, "state = 'done' AND source_rows > 0"), 'a target that answers at last is heard');
$source->safe_psql('postgres', "CALL payment_sync.run_reconciliation($limited)");
ok(run_is($limited, "state = 'done' AND source_rows > 0"), 'what failed can be gone on with');

done_testing();
