# 118_backlog.pl
#
# What has piled up while a target was away arrives in steps, each a state that
# the source had.  A trigger on the position's table at the target records each
# state that becomes visible: which transactions it has, whether they are whole,
# sums that never change, and the position; at the end the source says which
# transactions that position's snapshot sees.  Meanwhile transactions are open
# and prepared, roll back in part, change keys and truncate; sessions, worker and
# server are killed between steps, definitions change, log tables are rotated
# and rewritten.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncApply;
use PaymentSyncSession;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $source = start_source('source', conf => <<CONF);
payment_sync.log_segment_size = '1MB'
payment_sync.backlog_step = '1MB'
restart_after_crash = on
CONF
my $target = start_target('target');

both($source, $target, <<'SQL');
CREATE TABLE done (tx int PRIMARY KEY, n int, xid text);
CREATE TABLE movement (id bigint PRIMARY KEY, tx int, pad text);
CREATE TABLE account (id int PRIMARY KEY, balance bigint);
CREATE TABLE scratch (id int PRIMARY KEY, gen int);
CREATE TABLE later (id int PRIMARY KEY, v text);
SQL
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
CREATE SEQUENCE ids;
INSERT INTO account SELECT i, 1000 FROM generate_series(1, 100) i;
INSERT INTO scratch SELECT i, 0 FROM generate_series(1, 10) i;
SELECT payment_sync.capture_table(t) FROM unnest('{done,movement,account,scratch,later}'::regclass[]) t;
SELECT payment_sync.create_sync('pay', '{done,movement,account,scratch}', server => 'target', batch => true);
SQL
wait_delivered($source, 'pay');

# After "stop_after" states a window waits, with all its changes, until that is
# changed; an advisory lock says so.  "nap" makes each take its time.
$target->safe_psql('postgres', <<'SQL');
CREATE TABLE control (stop_after int, nap float);
INSERT INTO control VALUES (NULL, 0);
CREATE TABLE seen (n serial PRIMARY KEY, position text, txs int[], broken int, sum bigint, accounts int, gens int, scratch int);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$
BEGIN
	IF NEW.sync_name <> 'pay' OR NEW.position = (SELECT position FROM seen ORDER BY n DESC LIMIT 1) THEN
		RETURN NULL;	-- its row may be written again
	END IF;
	PERFORM pg_sleep(nap) FROM control;
	WHILE (SELECT count(*) >= stop_after FROM seen, control GROUP BY stop_after) LOOP
		PERFORM pg_advisory_xact_lock(118), pg_sleep(0.01);
	END LOOP;
	INSERT INTO seen (position, txs, broken, sum, accounts, gens, scratch)
	SELECT NEW.position, (SELECT array_agg(tx ORDER BY tx) FROM done),
		(SELECT count(*) FROM (SELECT tx, count(*) AS n FROM movement GROUP BY tx) m
		 FULL JOIN done d USING (tx) WHERE m.n IS DISTINCT FROM d.n),
		(SELECT sum(balance) FROM account), (SELECT count(*) FROM account),
		(SELECT count(DISTINCT gen) FROM scratch), (SELECT count(*) FROM scratch);
	RETURN NULL;
END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE ON payment_sync_target.position
	FOR EACH ROW EXECUTE FUNCTION note();
SQL

my $tx = 0;

# The statements of a transaction of n movements, each of 1 kB: money moves, keys
# change, a table is emptied and filled, a part is rolled back.
sub statements
{
	my ($n) = @_;
	$tx++;
	my $half = int($n / 2);
	my $rest = $n - $half;
	return <<SQL;
INSERT INTO movement SELECT nextval('ids'), $tx, repeat('m', 1000) FROM generate_series(1, $half);
UPDATE account SET balance = balance - $tx WHERE abs(id) = 1 + $tx % 50;
SAVEPOINT a;
INSERT INTO movement SELECT nextval('ids'), $tx, repeat('r', 1000) FROM generate_series(1, 20);
DELETE FROM account;
ROLLBACK TO a;
SAVEPOINT b;
UPDATE account SET balance = balance + $tx WHERE abs(id) = 51 + $tx % 50;
UPDATE account SET id = -id WHERE abs(id) = 1 + $tx % 100;
RELEASE b;
TRUNCATE scratch;
INSERT INTO scratch SELECT i, $tx FROM generate_series(1, 10) i;
INSERT INTO movement SELECT nextval('ids'), $tx, repeat('m', 1000) FROM generate_series(1, $rest);
INSERT INTO done VALUES ($tx, $n, pg_current_xact_id()::text);
SQL
}

sub transaction
{
	my ($n) = @_;
	$source->safe_psql('postgres', 'BEGIN; ' . statements($n) . ' COMMIT');
	return;
}

# Without what would lock others out: for transactions that stay open.
sub open_statements
{
	my ($n) = @_;
	$tx++;
	return <<SQL;
INSERT INTO movement SELECT nextval('ids'), $tx, repeat('o', 1000) FROM generate_series(1, $n);
INSERT INTO done VALUES ($tx, $n, pg_current_xact_id()::text);
SQL
}

# A backlog of about so many MB.
sub backlog
{
	my ($mb) = @_;
	for (1 .. $mb)
	{
		transaction($_) for 3, 5;
		transaction(1200);
		$source->safe_psql('postgres', 'CALL payment_sync.tidy_log()');
	}
	return;
}

sub seen { return $target->safe_psql('postgres', "SELECT $_[0] FROM seen") }

sub waypoints
{
	return $source->safe_psql('postgres', 'SELECT count(*) FROM payment_sync.log_waypoint');
}

# Stop at the n-th state from now on.
sub stop_after
{
	my ($n) = @_;
	$target->safe_psql('postgres', 'UPDATE control SET stop_after = ' . (seen('count(*)') + $n));
	return;
}

my $stuck = q(FROM pg_locks WHERE locktype = 'advisory' AND objid = 118);

sub wait_stuck
{
	$target->poll_query_until('postgres', "SELECT count(*) > 0 $stuck") or die 'no window waits';
	return;
}

sub end_stuck
{
	$target->safe_psql('postgres', "SELECT pg_terminate_backend(pid) $stuck");
	return;
}

sub let_go
{
	$target->safe_psql('postgres', 'UPDATE control SET stop_after = NULL');
	return;
}

# Windows, bytes of the log held, and the position that is saved.
sub progress
{
	return $source->safe_psql('postgres', <<'SQL');
SELECT s.windows, s.log_held, st.position FROM payment_sync.stat_sync s
JOIN payment_sync.sync d ON d.name = s.name JOIN payment_sync.sync_state st ON st.sync = d.id
WHERE s.name = 'pay'
SQL
}

# All that became visible since state n was a state of the source.
sub states_are_true
{
	my ($name, $from, $at_least) = @_;
	wait_delivered($source, 'pay');
	cmp_ok(seen('count(*)') - $from, '>=', $at_least, "$name: it arrives in steps");
	is( $target->safe_psql('postgres', <<SQL), '', "$name: in each, transactions are whole and sums hold");
SELECT * FROM seen WHERE n > $from
AND (broken > 0 OR sum <> 100000 OR accounts <> 100 OR gens <> 1 OR scratch <> 10)
SQL
	my @states = split /\n/, $target->safe_psql('postgres',
		"SELECT split_part(position, '\@', 1) || '|' || COALESCE(txs::text, '{}') FROM seen WHERE n > $from ORDER BY n");
	my @wrong = ();
	for my $state (@states)
	{
		my ($snapshot, $txs) = split /\|/, $state;
		my $true = $source->safe_psql('postgres', <<SQL);
SELECT COALESCE(array_agg(tx ORDER BY tx), '{}') FROM done WHERE pg_visible_in_snapshot(xid::xid8, '$snapshot')
SQL
		push @wrong, "$snapshot has $txs, not $true" if $true ne $txs;
	}
	is(join("\n", @wrong), '', "$name: each has what its snapshot saw, and no more");
	is( $target->safe_psql('postgres', <<SQL), '0', "$name: no step is done again");
SELECT count(*) - count(DISTINCT position) FROM seen
SQL
	same_rows($source, $target, "SELECT * FROM $_", "$name: $_")
	  for 'done', 'movement', 'account', 'scratch';
	return;
}

sub last_state { return seen('COALESCE(max(n), 0)') }

# ------------------------------------------- all kinds of transactions, rotation

my $from = last_state();
$target->stop;
transaction($_) for 1 .. 20;
my $long = PaymentSyncSession->new($source, 'postgres');
$long->query('BEGIN; ' . open_statements(50));
$source->safe_psql('postgres', 'BEGIN; ' . open_statements(60) . " PREPARE TRANSACTION 'p'");
backlog(3);
$source->safe_psql('postgres', "COMMIT PREPARED 'p'");
backlog(1);
$long->query(open_statements(40) . ' COMMIT');
$source->safe_psql('postgres', 'BEGIN; ' . open_statements(70) . " PREPARE TRANSACTION 'q'");
backlog(3);
cmp_ok(waypoints(), '>=', 6, 'waypoints were noted while the target was away');
my $held = stat($source, 'pay', 'log_held');
$target->start;
states_are_true('transactions of all kinds', $from, 5);
$source->safe_psql('postgres', "COMMIT PREPARED 'q'");
states_are_true('a prepared one committed afterwards', $from, 6);
$source->poll_query_until('postgres', <<SQL) or die 'the log is not emptied';
SELECT payment_sync.log_size() < $held / 2
SQL

# -------------------------------------- progress is seen; an error near the end

$from = last_state();
$target->safe_psql('postgres', 'UPDATE control SET nap = 1.1');
stop_after(4);
$target->stop;
backlog(7);
my ($windows, $lag, $position) = split /\|/, progress();
$target->start;
wait_stuck();
$target->safe_psql('postgres', 'UPDATE control SET nap = 0');
my ($windows_now, $lag_now, $position_now) = split /\|/, progress();
cmp_ok($windows_now, '>=', $windows + 2, 'stat_sync counts the steps while there are more to come');
cmp_ok($lag_now, '<', $lag, 'it shows less of the log held');
isnt($position_now, $position, 'and another position');
is(last_state(), $from + 4, 'four steps are done');

end_stuck();
wait_stuck();
is(last_state(), $from + 4, 'an error in the fifth leaves them done');
let_go();
states_are_true('an error near the end', $from, 6);

# ----------------------------------------------- the source crashes in between

$from = last_state();
stop_after(3);
$target->stop;
backlog(6);
$target->start;
wait_stuck();
my $checkpointer = q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer');
my $old = $source->safe_psql('postgres', $checkpointer);
my ($worker) = worker_pids($source);
kill 9, $worker;
$source->poll_query_until('postgres', "SELECT ($checkpointer) <> $old")
  or die 'the source does not come back';
transaction(10);
let_go();
states_are_true('a crash of the source', $from, 5);

# -------------------------- disabled, redefined, rewritten, enabled in between

$from = last_state();
stop_after(1);
$target->stop;
backlog(3);
$source->safe_psql('postgres', "VACUUM FULL payment_sync.log_$_") for 0 .. 2;
backlog(3);
$target->start;
wait_stuck();
$source->safe_psql('postgres', <<'SQL');
INSERT INTO later SELECT i, 'before' FROM generate_series(1, 100) i;
SELECT payment_sync.alter_sync('pay', add_tables => '{later}', batch => true);
UPDATE later SET v = 'after' WHERE id > 50;
SQL
let_go();
states_are_true('a table that joins, rewritten log tables', $from, 2);
same_rows($source, $target, 'SELECT * FROM later', 'a table that joins');

$from = last_state();
stop_after(1);
$target->stop;
backlog(3);
$target->start;
wait_stuck();
$source->safe_psql('postgres', "SELECT payment_sync.disable_sync('pay')");
end_stuck();
let_go();
backlog(3);
$source->safe_psql('postgres', "SELECT payment_sync.enable_sync('pay')");
states_are_true('disabled and enabled', $from, 4);

# ------------------------------------------------------------- a first copy

$from = last_state();
$target->safe_psql('postgres', 'CREATE SCHEMA copy');
$target->safe_psql('postgres', "CREATE TABLE copy.$_ (LIKE public.$_ INCLUDING ALL)")
  for 'done', 'movement', 'account', 'scratch', 'later';
$target->stop;
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.create_sync('copy', '{done,movement,account,scratch,later}', server => 'target',
	target_schema => 'copy', batch => true);
SQL
backlog(4);
$source->safe_psql('postgres', "DELETE FROM movement WHERE tx % 7 = 3; DELETE FROM done WHERE tx % 7 = 3");
backlog(1);
$target->start;
wait_delivered($source, $_) for 'copy', 'pay';
same_rows($source, $target, "SELECT * FROM public.$_", "a first copy that waits for a backlog: $_",
	target_query => "SELECT * FROM copy.$_")
  for 'done', 'movement', 'account', 'scratch', 'later';
cmp_ok(stat($source, 'copy', 'windows'), '>', 3, 'it has come in steps');
same_rows($source, $target, "SELECT * FROM $_", "the other sync: $_") for 'done', 'movement', 'account';

$target->stop;
backlog(2);
$source->safe_psql('postgres', "SELECT payment_sync.drop_sync('copy')");
backlog(2);
$target->start;
wait_delivered($source, 'pay');
same_rows($source, $target, "SELECT * FROM $_", "after another was dropped: $_") for 'done', 'movement', 'account';

# Tidy the log until the condition holds.
sub tidy_until
{
	my ($condition) = @_;
	for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		$source->safe_psql('postgres', 'CALL payment_sync.tidy_log()');
		return if $source->safe_psql('postgres', $condition) eq 't';
		usleep(100_000);
	}
	die "does not become true: $condition";
}

# ------------------- a log table that is emptied while a large window is read

$source->safe_psql('postgres', 'ALTER SYSTEM SET payment_sync.backlog_step = 0');
$source->reload;
both($source, $target, 'CREATE TABLE many (id int PRIMARY KEY)');
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('many');
SELECT payment_sync.create_sync('many', '{many}', server => 'target');
SQL
wait_delivered($source, $_) for 'many', 'pay';
$long = PaymentSyncSession->new($source, 'postgres');
$long->query(q(BEGIN; INSERT INTO later SELECT -i, repeat('r', 1000) FROM generate_series(1, 50) i));
my $first = $source->safe_psql('postgres', <<SQL);
SELECT relation::regclass FROM pg_locks
WHERE pid = @{[$long->pid]} AND relation::regclass::text ~ '^payment_sync.log_\\d\$'
SQL
like($first, qr/^payment_sync\.log_\d$/, "an open transaction has written to $first");
my $file = $source->safe_psql('postgres', "SELECT pg_relation_filenode('$first')");
backlog(2);
wait_delivered($source, $_) for 'many', 'pay';
tidy_until("SELECT 'payment_sync.log_' || active <> '$first' FROM payment_sync.log_rotation");
my $gate = PaymentSyncSession->new($target, 'postgres');
$gate->query('BEGIN; LOCK TABLE many');

# Each change has a chunk of its own: its origin differs from the one before.
$source->safe_psql('postgres', <<'SQL');
DO $$
BEGIN
	FOR i IN 1 .. 420000 LOOP
		PERFORM set_config('payment_sync.origin', 'o' || i % 2, true);
		INSERT INTO many VALUES (i);
	END LOOP;
END $$;
SQL
$target->poll_query_until('postgres',
	q(SELECT count(*) > 0 FROM pg_locks WHERE relation = 'many'::regclass AND NOT granted))
  or die 'no window waits for the table';
is($source->safe_psql('postgres', "SELECT pg_relation_filenode('$first')"), $file, 'it keeps that table');
$long->query('ROLLBACK');
my $errors = stat($source, 'many', 'errors');
tidy_until("SELECT pg_relation_filenode('$first') <> $file");
$gate->query('COMMIT');
wait_delivered($source, 'many');
is($target->safe_psql('postgres', 'SELECT count(*) FROM many'), 420000, 'a window of more chunks than are remembered');
is(stat($source, 'many', 'errors'), $errors, 'is not sent anew because a log table was emptied meanwhile');
$source->safe_psql('postgres', "SELECT payment_sync.drop_sync('many')");

# ------------------------------------------------ without background processes

$source->safe_psql('postgres', $_)
  for 'ALTER SYSTEM RESET payment_sync.backlog_step', 'ALTER SYSTEM SET payment_sync.max_workers = 0';
$source->restart;
$from = last_state();
$target->stop;
for (1 .. 5)
{
	transaction(1200);
	isnt($source->psql('postgres', "CALL payment_sync.incremental_sync('pay')"), 0, 'the target is away');
}
$target->start;
$source->safe_psql('postgres', "CALL payment_sync.incremental_sync('pay')");
states_are_true('in a session', $from, 3);

done_testing();
