# 110_order.pl
#
# The classic failures of logs that are read by number, none of which may
# happen here:
#
#	a transaction that wrote early and commits late is skipped (P2)
#	a transaction open for long holds up the others, or makes the reader walk
#	the same blocks again and again
#	what a savepoint took back is delivered
#	two transactions that changed one key are applied in the wrong order (P4)
#	a prepared transaction is lost by a restart (P1)

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncSession;
use PaymentSyncTest;
use Test::More;

my $source = start_source('source');
my $target = start_target('target');

my $schema = 'CREATE TABLE pay (id int PRIMARY KEY, v text)';
$_->safe_psql('postgres', $schema) for $source, $target;
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target');
SELECT payment_sync.create_sync('pull', '{pay}');
SQL

# Wait at the target, so that the source's log is read by the worker alone.
sub wait_at_target
{
	my ($condition, $what) = @_;
	ok($target->poll_query_until('postgres', "SELECT $condition FROM pay"), $what);
	return;
}

sub same
{
	my ($name) = @_;
	wait_delivered($source, 'pay');
	same_rows($source, $target, 'SELECT * FROM pay', $name);
	return;
}

# ------------------------------------------------- early position, late commit

# The early one has a position, and has written its chunk: more than a page.
my $early = PaymentSyncSession->new($source, 'postgres');
$early->query(<<'SQL');
BEGIN;
INSERT INTO pay VALUES (1, 'early');
INSERT INTO pay SELECT i, repeat('x', 1000) FROM generate_series(2, 20) i
SQL
$source->safe_psql('postgres', "INSERT INTO pay VALUES (100, 'late')");
wait_at_target('count(*) = 1', 'what commits first is delivered first');
$early->query('COMMIT');
wait_at_target('count(*) = 21', 'an early position that commits late is delivered');
same('early position, late commit');
is( $source->safe_psql('postgres', <<'SQL'),
SELECT (SELECT max(position) FROM payment_sync.changes WHERE key @> '{"id": 20}')
	< (SELECT position FROM payment_sync.changes WHERE key @> '{"id": 100}')
SQL
	't', 'its position was the earlier one');

# --------------------------------------------------- open for the whole test

sub log_reads
{
	return $source->safe_psql('postgres', <<'SQL');
SELECT sum(heap_blks_read + heap_blks_hit) FROM pg_statio_user_tables
WHERE schemaname = 'payment_sync' AND relname LIKE 'log\__'
SQL
}

# The worker reports what it has counted when it ends.
sub end_worker
{
	my ($pid) = worker_pids($source);
	$source->safe_psql('postgres', "SELECT pg_terminate_backend($pid, 60000)");
	return;
}

my $long = PaymentSyncSession->new($source, 'postgres');
$long->query(<<'SQL');
BEGIN;
INSERT INTO pay SELECT i, repeat('long', 500) FROM generate_series(1000, 2999) i
SQL
my $blocks = $source->safe_psql('postgres',
	'SELECT payment_sync.log_size() / 8192');
cmp_ok($blocks, '>', 450, "the long transaction has chunks in $blocks blocks");
end_worker();


# Each commit is waited for, so each is a window of its own.
my ($reads, $windows) = (log_reads(), 0);
my $writer = PaymentSyncSession->new($source, 'postgres');
my $reader = PaymentSyncSession->new($target, 'postgres');
while ($windows < 60)
{
	$windows++;
	$writer->query("INSERT INTO pay VALUES (10000 + $windows, 'around')");
	$reader->until_true("SELECT count(*) = 1 FROM pay WHERE id = 10000 + $windows");
}
end_worker();
$reads = log_reads() - $reads;

# A reader that walked the long transaction's blocks in each window would read
# $windows * $blocks.  Ours looks at them once after its start, and once more
# for each time it was started; then at the last block or two, and each chunk.
my $bound = 3 * $blocks + 12 * $windows;
cmp_ok($reads, '<', $bound, "$reads block reads in $windows windows");
cmp_ok($windows * $blocks, '>', 5 * $bound, 'which proves something');

my $commits = 4000;
my $script = PostgreSQL::Test::Utils::tempdir() . '/insert.sql';
PostgreSQL::Test::Utils::append_to_file($script,
	"INSERT INTO pay SELECT 20000 + :client_id * 10000 + count(*), 'around' FROM pay WHERE id / 10000 = 2 + :client_id;\n");
$source->command_ok(
	[
		'pgbench', '-n', '-c', 2, '-t', $commits / 2, '-f', $script, '-h',
		$source->host, '-p', $source->port, 'postgres'
	],
	"$commits transactions commit meanwhile");
$commits += $windows;
wait_at_target("count(*) = 21 + $commits", 'and are delivered');

$long->query('COMMIT');
wait_at_target("count(*) = 2021 + $commits", 'at its end the long transaction is delivered');
same('a long transaction');

# ------------------------------------------------------------- savepoints

$source->safe_psql('postgres', <<'SQL');
BEGIN;
DELETE FROM pay WHERE id > 20;
SAVEPOINT a;
UPDATE pay SET v = 'taken back' WHERE id <= 10;
INSERT INTO pay SELECT i, repeat('taken back', 100) FROM generate_series(5000, 5100) i;
ROLLBACK TO a;
SAVEPOINT b;
UPDATE pay SET v = 'kept' WHERE id = 3;
SAVEPOINT c;
UPDATE pay SET v = 'inner' WHERE id = 4;
RELEASE c;
SAVEPOINT d;
UPDATE pay SET v = 'taken back' WHERE id = 4;
ROLLBACK TO d;
RELEASE b;
INSERT INTO pay SELECT i, repeat('filler', 100) FROM generate_series(6000, 6040) i;
COMMIT;
SQL
same('rolled-back subtransactions');
is($target->safe_psql('postgres', 'SELECT v FROM pay WHERE id IN (3, 4) ORDER BY id'),
	"kept\ninner", 'what was kept is there');
is( $source->safe_psql('postgres',
		q(SELECT count(*) FROM payment_sync.changes WHERE new->>'v' LIKE 'taken back%')),
	0, 'what was taken back is not in the log');

# -------------------------------------------------- two fight over one key

# Each round: two transactions change the key, one waiting for the other; in
# the one order the waiting one has the older id, in the other the younger.
# First while the sync runs, then both in one window.
for my $together (0, 1)
{
	for my $older_first (1, 0)
	{
		my $name = ($together ? 'in one window' : 'as they come') . ', '
		  . ($older_first ? 'older first' : 'younger first');
		$source->safe_psql('postgres', "SELECT payment_sync.disable_sync('pay')") if $together;

		my $older = PaymentSyncSession->new($source, 'postgres');
		my $younger = PaymentSyncSession->new($source, 'postgres');
		$older->query("BEGIN; INSERT INTO pay SELECT max(id) + 1, 'older' FROM pay");
		$younger->query("BEGIN; INSERT INTO pay SELECT max(id) + 100, 'younger' FROM pay");
		my ($first, $second) = $older_first ? ($older, $younger) : ($younger, $older);
		$first->query("UPDATE pay SET v = 'first' WHERE id = 1");
		$second->send("UPDATE pay SET v = v || ', second' WHERE id = 1");
		$second->wait_blocked($source);
		$first->query("UPDATE pay SET v = v || ' twice' WHERE id = 1; COMMIT");
		$second->wait;
		$second->query('COMMIT');

		# one deletes the key, the other makes it again
		$older->query('BEGIN; SELECT pg_current_xact_id()');
		$younger->query('BEGIN; SELECT pg_current_xact_id()');
		$first->query('DELETE FROM pay WHERE id = 2');
		$second->send("INSERT INTO pay VALUES (2, 'again')");
		$second->wait_blocked($source);
		$first->query('COMMIT');
		$second->wait;
		$second->query('COMMIT');
		$older->quit;
		$younger->quit;

		$source->safe_psql('postgres', "SELECT payment_sync.enable_sync('pay')") if $together;
		same($name);
		is($target->safe_psql('postgres', 'SELECT v FROM pay WHERE id IN (1, 2) ORDER BY id'),
			"first twice, second\nagain", "$name: the last one to change a key wins");
	}
}

# ------------------------------------------------------ prepared transactions

$source->safe_psql('postgres', <<'SQL');
BEGIN;
UPDATE pay SET v = 'prepared' WHERE id = 5;
INSERT INTO pay SELECT i, repeat('prepared', 100) FROM generate_series(7000, 7050) i;
PREPARE TRANSACTION 'will commit';
BEGIN;
UPDATE pay SET v = 'never' WHERE id = 6;
PREPARE TRANSACTION 'will roll back';
SQL
$source->safe_psql('postgres', "INSERT INTO pay VALUES (8000, 'after prepare')");
same('prepared, not committed');
for my $mode ('fast', 'immediate')
{
	$source->stop($mode);
	$source->start;
	$source->safe_psql('postgres', "INSERT INTO pay VALUES (default_id, 'after restart')" =~ s/default_id/$mode eq 'fast' ? 8001 : 8002/er);
	same("prepared, after a restart ($mode)");
}
$source->safe_psql('postgres', "COMMIT PREPARED 'will commit'");
wait_at_target("count(*) FILTER (WHERE v LIKE 'prepared%') = 52",
	'COMMIT PREPARED wakes the worker, after restarts');
$source->safe_psql('postgres', "ROLLBACK PREPARED 'will roll back'");
same('prepared transactions');

# ------------------------------------------------------------ order, by pull

# The log has kept it all for the pull sync: per key, each change follows from
# the one before.
is( $source->safe_psql('postgres', <<'SQL'),
WITH c AS (
	SELECT key->>'id' AS id, operation, new->>'v' AS v, old->>'v' AS old,
		lag(new->>'v') OVER w AS before, lag(operation) OVER w AS operation_before
	FROM payment_sync.fetch_changes('pull', 1000000) WITH ORDINALITY AS f
	WINDOW w AS (PARTITION BY key->>'id' ORDER BY f.ordinality))
SELECT count(*) FROM c
WHERE (operation = 'insert' AND operation_before IN ('insert', 'update'))
	OR (operation <> 'insert' AND operation_before = 'delete')
	OR (operation = 'update' AND operation_before IS NOT NULL AND old IS DISTINCT FROM before)
SQL
	0, 'each change follows from the previous one of its key');

done_testing();
