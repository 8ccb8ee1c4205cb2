# 332_batch_stop.pl
#
# A batch that is interrupted in its middle: by kill -9, by cancel_batch, by a
# cancelled CALL, by timeouts of the target, by changes of the table.  It goes
# on at the last chunk, and at the end both sides are equal.
#
# To stop a batch at a place of our choosing, a trigger at the target waits for
# an advisory lock when the row with id 60000 comes.  It also counts the rows
# that come, in a sequence, which no rollback turns back.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use IPC::Run;
use PaymentSyncApply;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = start_source('source', conf => "restart_after_crash = on\n");
my $target = start_target('target');

# 100,000 rows make about ten chunks of 4 MB
my $rows = 100_000;
both($source, $target, <<'SQL');
CREATE TABLE pay (id int PRIMARY KEY, no int NOT NULL UNIQUE, v text, w int);
SQL
$source->safe_psql('postgres',
	"INSERT INTO pay SELECT i, 1000000 - i, repeat('x', 320) || i, i FROM generate_series(1, $rows) i");
$target->safe_psql('postgres', <<'SQL');
CREATE SEQUENCE arrived;
CREATE FUNCTION halt() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM nextval('public.arrived');
	IF NEW.id = 60000 THEN PERFORM pg_advisory_xact_lock_shared(1); END IF;
	RETURN NEW;
END$$;
CREATE TRIGGER halt BEFORE INSERT ON pay FOR EACH ROW EXECUTE FUNCTION halt();
SQL
connect_target($source, $target);
$source->safe_psql('postgres', "SELECT payment_sync.capture_table('pay')");

# A session that holds the lock, until it is let go.
sub hold
{
	my ($in, $out) = ("SELECT pg_advisory_lock(1);\n\\echo held\n", '');
	my $psql = IPC::Run::start([ 'psql', '-XAtq', '-d', $target->connstr('postgres') ],
		'<', \$in, '>', \$out, '2>&1', IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	$psql->pump until $out =~ /held/;
	return { psql => $psql, in => \$in };
}

sub let_go
{
	my ($holder) = @_;
	${ $holder->{in} } .= "\\q\n";
	$holder->{psql}->finish;
	return;
}

# Wait until the batch stands at the barrier.
sub at_barrier
{
	$target->poll_query_until('postgres', <<'SQL') or die 'the batch does not come to the barrier';
SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)
SQL
	return progress();
}

sub progress
{
	return $source->safe_psql('postgres',
		"SELECT state, chunks, rows FROM payment_sync.progress_batch WHERE sync = 'pay'");
}

sub chunks_and_rows
{
	my ($progress) = @_;
	my (undef, $chunks, $n) = split /\|/, $progress;
	return ($chunks, $n);
}

my $compare = 'SELECT * FROM pay';
sub ends_well
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_delivered($source, 'pay');
	return same_rows($source, $target, $compare, $name);
}

# --- kill -9 of the worker, and of the whole source

my $holder = hold();
$source->safe_psql('postgres',
	"SELECT payment_sync.create_sync('pay', '{pay}', server => 'target', batch => true)");
for my $victim (qw(worker server target))
{
	my $progress = at_barrier();
	my ($chunks, $n) = chunks_and_rows($progress);
	like($progress, qr/^running/, "it runs ($progress)");
	cmp_ok($chunks, '>', 2, 'and has delivered some chunks');
	cmp_ok($n, '<', 60000, 'but not the one with the barrier');
	my ($pid) = worker_pids($source);
	if ($victim eq 'worker')
	{
		kill 'KILL', $pid;
		$source->poll_query_until('postgres', "SELECT $pid NOT IN (SELECT pid FROM pg_stat_activity)");
	}
	elsif ($victim eq 'server')
	{
		$source->stop('immediate');
		# the target's session notices
		$target->poll_query_until('postgres', <<'SQL');
SELECT count(pg_terminate_backend(pid)) = 0 FROM pg_stat_activity WHERE application_name = 'payment_sync'
SQL
		$source->start;
	}
	else
	{
		# the worker must not pass the barrier before it is held again
		kill 'STOP', $pid;
		$target->stop('immediate');
		$holder->{psql}->kill_kill;
		$target->start;
		$holder = hold();
		kill 'CONT', $pid;
	}
	$progress = at_barrier();
	is(join('|', chunks_and_rows($progress)), "$chunks|$n", "it is there again, at the same chunk, $victim killed");
}

let_go($holder);
ends_well('killed three times, the batch ends well');
my ($chunks, $n) = chunks_and_rows(progress());
is($n, $rows, 'each row was counted once');
my $arrived = $target->safe_psql('postgres', 'SELECT last_value FROM arrived');
# the chunk at the barrier came four times; a batch that starts over brings
# some 50,000 rows again each time
cmp_ok($arrived, '<', $rows * 1.6, "of $rows rows $arrived arrived: it did not start over");

# --- cancel_batch

$target->safe_psql('postgres', 'TRUNCATE pay');
$holder = hold();
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.disable_sync('pay');
SELECT payment_sync.enable_sync('pay', start => 'batch');
SQL
at_barrier();
is($source->safe_psql('postgres', "SELECT payment_sync.cancel_batch('pay')"), 't', 'cancel_batch finds one');
let_go($holder);
$source->poll_query_until('postgres',
	"SELECT state = 'cancelled' FROM payment_sync.progress_batch WHERE sync = 'pay'");
wait_delivered($source, 'pay');
cmp_ok($target->safe_psql('postgres', 'SELECT count(*) FROM pay'), '<', $rows, 'it ended early');
is($source->safe_psql('postgres', "SELECT payment_sync.cancel_batch('pay')"), 'f', 'once is enough');
$source->safe_psql('postgres', "UPDATE pay SET v = 'after the batch' WHERE id = 1");
wait_delivered($source, 'pay');
is($target->safe_psql('postgres', 'SELECT v FROM pay WHERE id = 1'), 'after the batch', 'changes flow on');

# --- a cancelled CALL: what it began, the worker ends

$target->safe_psql('postgres', 'TRUNCATE pay');
$holder = hold();
my ($in, $out) = ('', '');
my $call = IPC::Run::start(
	[ 'psql', '-XAtq', '-d', $source->connstr('postgres'), '-c', "CALL payment_sync.batch_sync('pay')" ],
	'>', \$out, '2>', \my $err);
my $progress = at_barrier();
($chunks, $n) = chunks_and_rows($progress);
my $caller = "FROM pg_stat_activity WHERE query LIKE 'CALL %' AND pid <> pg_backend_pid()";
is($source->safe_psql('postgres', "SELECT count(*) $caller"), 1, 'it runs in the caller\'s session');
$source->safe_psql('postgres', "SELECT pg_cancel_backend(pid) $caller");
$call->finish;
like($err, qr/canceling statement due to user request/, 'the CALL is cancelled');
is(join('|', chunks_and_rows(at_barrier())), "$chunks|$n", 'a worker takes it up where it was');
let_go($holder);
ends_well('and brings it to its end');
is((chunks_and_rows(progress()))[1], $rows, 'each row was counted once');

# --- timeouts of the target

$source->safe_psql('postgres',
	"ALTER SERVER target OPTIONS (ADD options '-c lock_timeout=200ms')");
$target->safe_psql('postgres', 'TRUNCATE pay');
$holder = hold();
$source->psql('postgres', "CALL payment_sync.batch_sync('pay')");
like(failure_like($source, 'pay', qr/^55P03/), qr/55P03 .*lock timeout/, 'a lock_timeout of the target');
let_go($holder);
goes_on($source, 'pay');
ends_well('and on it goes');
$source->safe_psql('postgres',
	"ALTER SERVER target OPTIONS (SET options '-c statement_timeout=200ms')");
$target->safe_psql('postgres', 'TRUNCATE pay');
$holder = hold();
$source->psql('postgres', "CALL payment_sync.batch_sync('pay')");
like(failure_like($source, 'pay', qr/^57014/), qr/57014 .*statement timeout/, 'a statement_timeout of the target');
$source->safe_psql('postgres', 'ALTER SERVER target OPTIONS (DROP options)');
let_go($holder);
goes_on($source, 'pay');
ends_well('and on it goes');

# --- changes of the table, in the middle

# altered(NAME, SQL for the source, SQL for the target before it)
sub altered
{
	my ($name, $sql, $target_sql) = @_;
	$target->safe_psql('postgres', 'TRUNCATE pay');
	my $holder = hold();
	$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.disable_sync('pay');
SELECT payment_sync.enable_sync('pay', start => 'batch');
SQL
	at_barrier();
	# the target's session is in a transaction with the table
	$source->safe_psql('postgres', $sql);
	let_go($holder);
	if ($target_sql)
	{
		$target->poll_query_until('postgres', 'SELECT count(*) >= 60000 FROM pay');
		$target->safe_psql('postgres', $target_sql);
	}
	goes_on($source, 'pay');
	return ends_well("$name in the middle of a batch");
}

$compare = 'SELECT id, no, v, w FROM pay';
altered('a column is added', 'ALTER TABLE pay ADD added int; UPDATE pay SET added = id WHERE id % 1000 = 0',
	'ALTER TABLE pay ADD IF NOT EXISTS added int');
same_rows($source, $target, 'SELECT id, added FROM pay', 'with its values');
altered('a column is dropped', 'ALTER TABLE pay DROP added');
$compare = 'SELECT id, no, v, x FROM pay';
altered('a column is renamed', 'ALTER TABLE pay RENAME w TO x', 'ALTER TABLE pay RENAME w TO x');
altered('another key', "SELECT payment_sync.capture_table('pay', key => '{no}'); DELETE FROM pay WHERE id % 777 = 0");
altered('rows come and go', <<'SQL');
DELETE FROM pay WHERE id BETWEEN 1000 AND 1100;
UPDATE pay SET no = -no WHERE id BETWEEN 20000 AND 20100;
UPDATE pay SET no = -no WHERE id BETWEEN 90000 AND 90100;
INSERT INTO pay SELECT i, -i, 'new' FROM generate_series(1000001, 1000100) i
SQL
altered('TRUNCATE', 'TRUNCATE pay; INSERT INTO pay VALUES (1, 1)');

done_testing();
