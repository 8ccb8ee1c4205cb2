# 116_log_edges.pl
#
# What others do to the log's last moments and last pages.  A library whose
# callbacks run after ours changes captured tables just before the commit: its
# changes are in the log, in order (P1, P4).  VACUUM (TRUNCATE) cuts pages of a
# rolled back transaction off a log table, and others fill them again, while a
# worker looks elsewhere: nothing is passed over (P2).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncSession;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = start_source('source', preload => 0, conf => <<'CONF');
shared_preload_libraries = 'payment_sync_callbacks, payment_sync'
payment_sync.max_workers = 1
autovacuum = off
wal_level = minimal
max_wal_senders = 0
CONF
my $target = start_target('target');

$_->safe_psql('postgres', 'CREATE TABLE pay (id int PRIMARY KEY, v text)') for $source, $target;
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target');
SQL

sub delivered
{
	my ($name) = @_;
	wait_delivered($source, 'pay');
	same_rows($source, $target, 'SELECT * FROM pay', $name);
	return;
}

# ------------------------------------------------ changes before the commit

# late(STATEMENT, SQL, [END]): a transaction of SQL, with the statement run before
# its end
sub late
{
	my ($statement, $sql, $end) = @_;
	$end //= 'COMMIT';
	return $source->psql('postgres', <<SQL, on_error_stop => 0);
BEGIN;
SET LOCAL payment_sync_callbacks.pre_commit = \$late\$$statement\$late\$;
$sql;
$end;
SQL
}

late("INSERT INTO pay VALUES (2, repeat('l', 9000))", 'INSERT INTO pay VALUES (1)');
delivered('a callback after ours inserts a row');
late("INSERT INTO pay VALUES (3, ''); UPDATE pay SET v = v || '.'", 'CREATE TEMP TABLE unrelated (i int)');
delivered('in a transaction that has captured nothing');
# a PostgreSQL with assertions lets no subtransaction roll back so late
my $undone = $source->safe_psql('postgres', 'SHOW debug_assertions') eq 'on' ? 100 : 3;
late(<<SQL, 'INSERT INTO pay VALUES (5); SAVEPOINT s; INSERT INTO pay VALUES (6)');
DO \$\$
BEGIN
	FOR i IN 10 .. 40 LOOP
		BEGIN
			INSERT INTO pay VALUES (i);
			IF i % $undone = 0 THEN RAISE division_by_zero; END IF;
		EXCEPTION WHEN division_by_zero THEN NULL;
		END;
	END LOOP;
END
\$\$
SQL
delivered('in subtransactions, some rolled back');
late("UPDATE pay SET v = 'late' WHERE id = 1", "UPDATE pay SET v = 'early' WHERE id = 1",
	"PREPARE TRANSACTION 'p'");
$source->safe_psql('postgres', "COMMIT PREPARED 'p'");
delivered('before a PREPARE');
late('INSERT INTO pay VALUES (1)', 'INSERT INTO pay VALUES (7)');
$source->safe_psql('postgres', 'INSERT INTO pay VALUES (8)');
delivered('a callback that fails');
is($target->safe_psql('postgres', <<'SQL'), '1:late 2 3 5 6 8|' . ($undone == 3 ? 21 : 31), 'all of it was done, in order');
SELECT string_agg(id || CASE WHEN id = 1 THEN ':' || v ELSE '' END, ' ' ORDER BY id)
	FILTER (WHERE id < 10), count(*) FILTER (WHERE id BETWEEN 10 AND 40) FROM pay
SQL

# ------------------------------------------------------- a log table cut off

my $reader = PaymentSyncSession->new($source, 'postgres');
my $log = 'payment_sync.log_' . $reader->query('SELECT active FROM payment_sync.log_rotation');

sub blocks { return $reader->query("SELECT pg_relation_size('$log') / 8192") }

# Blocks of the log that the worker has looked at, as far as it has reported.
sub looked
{
	return $reader->query("SELECT heap_blks_read + heap_blks_hit FROM pg_statio_all_tables
		WHERE relid = '$log'::regclass");
}

# Stop the worker while it waits and holds nothing: VACUUM does not cut off what
# another process has locked.  A signal may take a while, so a process is looked at
# once it has stopped.
sub stop_worker
{
	for (1 .. 600)
	{
		my ($worker) = worker_pids($source) or die 'there is no worker';
		kill 'STOP', $worker;
		for (1 .. 1800)
		{
			last if slurp_file("/proc/$worker/stat") =~ /\) T /;
			select undef, undef, undef, 0.1;
		}
		return $worker if $reader->query(<<SQL) eq 't';
SELECT wait_event_type = 'Extension' AND backend_xid IS NULL AND backend_xmin IS NULL
	AND NOT EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND locktype = 'relation')
FROM pg_stat_activity a WHERE pid = $worker
SQL
		kill 'CONT', $worker;
		select undef, undef, undef, 0.1;
	}
	die 'the worker is never at rest';
}

# VACUUM until the log is shorter than that.  Whoever has a page of it in hand for
# a moment, as the background writer has, makes VACUUM leave the page.
sub cut_off
{
	my ($length) = @_;
	for (1 .. 300)
	{
		$reader->query("VACUUM (TRUNCATE true) $log");
		return if blocks() < $length;
		select undef, undef, undef, 0.1;
	}
	die 'VACUUM cuts nothing off: ' . $reader->query("SELECT json_agg(l) FROM pg_locks l WHERE relation = '$log'::regclass");
}

for my $round (1 .. 2)
{
	my $first = 1000 * $round;
	my $seen = looked();
	my $before = blocks();

	$reader->query("BEGIN; INSERT INTO pay SELECT i, repeat('a', 4000) FROM generate_series($first, $first + 199) i; ROLLBACK");
	my $long = blocks();
	cmp_ok($long, '>', $before + 90, "round $round: a transaction that was rolled back has left its blocks");
	for (1 .. 1800)
	{
		$reader->query('SELECT payment_sync.wake_workers()');
		last if looked() >= $seen + $long - $before;
		select undef, undef, undef, 0.1;
	}
	cmp_ok(looked(), '>=', $seen + $long - $before, 'and the worker has seen them');

	my $worker = stop_worker();
	cut_off($before + 10);
	cmp_ok(blocks(), '<', $before + 10, 'VACUUM cuts them off');
	$reader->query("INSERT INTO pay VALUES ($first + $_, repeat('b', 4000))") for 1 .. 300;
	cmp_ok(blocks(), '>', $long, 'they are filled again');
	kill 'CONT', $worker;
	delivered('and all that is in them is delivered');
}
$reader->quit;

done_testing();
