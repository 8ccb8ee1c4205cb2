# 113_idle.pl
#
# What a sync costs others.  Idle: nothing, no WAL, no transaction, no block
# read, not even a wake-up of its processes.  Waiting for its target: no
# snapshot, so that VACUUM can remove dead rows, and no transaction, so that
# no lock is in anybody's way (P7).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncSession;
use PaymentSyncTest;
use Test::More;

# Nobody else shall write WAL or count transactions.
my $source = start_source('source', conf => <<'CONF');
autovacuum = off
wal_level = minimal
max_wal_senders = 0
checkpoint_timeout = '1h'
payment_sync.database_scan_interval = -1
CONF
my $target = start_target('target');

$_->safe_psql('postgres', <<'SQL') for $source, $target;
CREATE TABLE pay (id int PRIMARY KEY, v text);
CREATE TABLE big (id int PRIMARY KEY, v text);
SQL
$source->safe_psql('postgres', 'CREATE DATABASE watch');
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.capture_table('big');
SELECT payment_sync.create_sync('sync ' || i, '{pay}', server => 'target',
	targets => ARRAY[CASE WHEN i > 1 THEN 'pay_' || i ELSE 'pay' END])
FROM generate_series(1, 20) i;
SQL
$target->safe_psql('postgres',
	"SELECT format('CREATE TABLE pay_%s (LIKE pay INCLUDING ALL)', i) FROM generate_series(2, 20) i \\gexec");
$source->safe_psql('postgres', "INSERT INTO pay VALUES (1, 'one')");
wait_delivered($source, "sync $_") for 1 .. 20;

# ----------------------------------------------------------------------- idle

# From another database, so that looking does not count.
sub figures
{
	my $counts = $source->safe_psql('watch', <<'SQL');
SELECT d.xact_commit, d.xact_rollback, d.blks_read + d.blks_hit, pg_current_wal_insert_lsn()
FROM pg_stat_database d WHERE d.datname = 'postgres'
SQL
	my @switches;
	for my $pid (
		split /\n/,
		$source->safe_psql('watch',
			"SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'payment_sync%' ORDER BY pid"))
	{
		open my $status, '<', "/proc/$pid/status" or next;
		push @switches, map { /^voluntary_ctxt_switches:\s+(\d+)/ ? "$pid woken $1" : () } <$status>;
	}
	return join "\n", $counts, @switches;
}

# What is left to do after a change (saving progress, tidying) takes seconds.
# Then, however long we look, nothing moves.
my ($before, $same) = ('', 0);
for (1 .. 90)
{
	my $now = figures();
	$same = $now eq $before ? $same + 1 : 0;
	last if $same == 12;
	$before = $now;
	$source->safe_psql('watch', 'SELECT pg_sleep(1)');
}
is($same, 12, 'for twelve seconds: no transaction, no block, no WAL, no wake-up')
  or diag("before:\n$before\nnow:\n" . figures());
like($before, qr/woken/, 'and there are processes that could have woken up') if -e '/proc/self/status';

my $held = <<'SQL';
SELECT count(*) FILTER (WHERE backend_type = 'payment_sync worker') > 0
	AND bool_and(backend_xmin IS NULL AND backend_xid IS NULL AND xact_start IS NULL)
FROM pg_stat_activity WHERE backend_type LIKE 'payment_sync%'
SQL
is($source->safe_psql('watch', $held), 't', 'an idle worker has neither snapshot nor transaction');

# Nothing was due to wake anybody, by no timer: what delivers this is the latch
# that the commit sets.
$source->safe_psql('postgres', "INSERT INTO pay VALUES (100, 'latch')");
ok($target->poll_query_until('postgres', 'SELECT count(*) = 1 FROM pay WHERE id = 100'),
	'a commit wakes the worker');

# ------------------------------------------------------------- a target waits

my $blocker = PaymentSyncSession->new($target, 'postgres');
$blocker->query('BEGIN; LOCK TABLE pay IN ACCESS EXCLUSIVE MODE');
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.drop_sync('sync ' || i) FROM generate_series(2, 20) i;
INSERT INTO pay VALUES (2, 'two');
SQL
sub wait_stuck
{
	my ($sync) = @_;
	ok($target->poll_query_until('postgres',
			"SELECT count(*) > 0 FROM pg_locks WHERE NOT granted"), "$sync waits for its target");
	return;
}
wait_stuck('a window');
ok($source->poll_query_until('watch', $held), 'a worker that waits has neither snapshot nor transaction');
is( $source->safe_psql('watch', <<'SQL'), '0', 'and no lock on a table');
SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE a.backend_type = 'payment_sync worker' AND l.locktype = 'relation'
SQL
is(stat($source, 'sync 1', 'state'), 'running', 'stat_sync shows it running');
is( $source->safe_psql('watch', <<'SQL'), 'active|sync "sync 1"', 'and pg_stat_activity what it is at');
SELECT state, query FROM pg_stat_activity
WHERE backend_type = 'payment_sync worker' AND state = 'active'
SQL

# Were a snapshot held, the rows that die now could not be removed.
$source->safe_psql('postgres', 'UPDATE pay SET v = v');
$source->safe_psql('postgres', 'VACUUM pay');
is($source->safe_psql('postgres', "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'pay'"),
	0, 'VACUUM removes what has died meanwhile');
$blocker->query('COMMIT');
wait_delivered($source, 'sync 1');
same_rows($source, $target, 'SELECT * FROM pay', 'and then it goes on');

# The same for a chunk of a batch, which has read the table at the source.
$source->safe_psql('postgres', "INSERT INTO big SELECT i, 'big' FROM generate_series(1, 100000) i");
$blocker->query('BEGIN; LOCK TABLE big IN ACCESS EXCLUSIVE MODE');
$source->safe_psql('postgres',
	"SELECT payment_sync.create_sync('big', '{big}', server => 'target', batch => true)");
wait_stuck('a batch');
ok($source->poll_query_until('watch', $held), 'a batch that waits has neither snapshot nor transaction');
$source->safe_psql('postgres', "SET lock_timeout = '60s'; ALTER TABLE big ADD COLUMN w int");
pass('and is not in the way of ALTER TABLE');
$target->safe_psql('postgres', 'SELECT 1');
$blocker->query('ALTER TABLE big ADD COLUMN w int; COMMIT');
wait_delivered($source, 'big');
same_rows($source, $target, 'SELECT * FROM big', 'and then it goes on');

# --------------------------------------- a session that waits for its target

$source->safe_psql('postgres', "SELECT payment_sync.drop_sync('big')");
my $session = PaymentSyncSession->new($source, 'postgres');
$blocker->query('BEGIN; LOCK TABLE pay IN ACCESS EXCLUSIVE MODE');
$source->safe_psql('postgres', "INSERT INTO pay VALUES (3, 'three')");
wait_stuck('the worker');
$session->send("CALL payment_sync.incremental_sync('sync 1')");
ok( $source->poll_query_until('watch', <<SQL), 'a session that wants the sync waits for its lock');
SELECT count(*) > 0 FROM pg_locks WHERE pid = @{[$session->pid]} AND NOT granted
SQL
$blocker->query('COMMIT');
$session->wait;
same_rows($source, $target, 'SELECT * FROM pay', 'and gets it once the worker can give it');

done_testing();
