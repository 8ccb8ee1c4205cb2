# 222_crashes.pl
#
# A sync whose target makes the worker crash is not served again at once, and
# after some crashes in a row it is disabled, so that the server stays up.  Only
# the sync whose turn it was is to blame: not others of its worker, nor those
# that were served while another process crashed or the server was stopped.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncSession;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = start_source('source', conf => <<'CONF');
restart_after_crash = on
payment_sync.max_workers = 2
payment_sync.max_crashes = 3
CONF
my $target = start_target('target');
my $dir = PostgreSQL::Test::Utils::tempdir();
$_->safe_psql('postgres', 'CREATE TABLE a (id int PRIMARY KEY, v text)') for $source, $target;
connect_target($source, $target);
$source->safe_psql('postgres', <<SQL);
CREATE TABLE b (id int PRIMARY KEY, v text);
CREATE FOREIGN DATA WRAPPER probe OPTIONS (library 'payment_sync_probe');
CREATE SERVER probe FOREIGN DATA WRAPPER probe OPTIONS (directory '$dir');
CREATE USER MAPPING FOR CURRENT_USER SERVER probe;
SELECT payment_sync.capture_table('a');
SELECT payment_sync.capture_table('b');
SELECT payment_sync.create_sync('good', '{a}', server => 'target');
SELECT payment_sync.create_sync('bad', '{b}', server => 'probe');
SQL

my $id = 0;

sub answer
{
	my ($text) = @_;
	unlink "$dir/answer";
	append_to_file("$dir/answer", "$text\n") if defined $text;
	return;
}

sub poll
{
	my ($query, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok($source->poll_query_until('postgres', $query), $name);
}

sub good_arrives
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$id++;
	$source->safe_psql('postgres', "INSERT INTO a VALUES ($id, 'v')");
	return ok($target->poll_query_until('postgres', "SELECT count(*) = 1 FROM a WHERE id = $id"), $name);
}

# The crash may come so soon that this session is cut off before it hears of
# its commit.
sub put_and_crash
{
	my ($n) = @_;
	$source->psql('postgres', "INSERT INTO b VALUES ($n, 'v')");
	return;
}

# The worker that serves a sync now, whose target hangs.
sub hanging_worker
{
	$id++;
	$source->safe_psql('postgres', "INSERT INTO a VALUES ($id, 'v')");
	$target->poll_query_until('postgres', 'SELECT count(*) > 0 FROM pg_locks WHERE NOT granted')
	  or die 'the target does not hang';
	return stat($source, 'good', 'worker_pid');
}

good_arrives('a sync is delivered');
$source->safe_psql('postgres', "INSERT INTO b VALUES (0, 'v')");
wait_delivered($source, 'bad');

# -------------------------------------------------------- the process crashes

my $offset = -s $source->logfile;
answer('crash 0');
put_and_crash(1);
poll("SELECT state = 'disabled' FROM payment_sync.stat_sync WHERE name = 'bad'", 'a sync that makes its worker crash is disabled');
is(stat($source, 'bad', 'disabled_reason'), '3 worker processes in a row died while they served it', 'with the reason');
like(stat($source, 'bad', "last_error || ' ' || last_error_detail"),
	qr/^worker process died while it served this sync This has happened 3 times in a row\.$/, 'and the error');
my $log = slurp_file($source->logfile, $offset);
is(scalar(() = $log =~ /terminated by signal 6/g), 3, 'after three crashes');
like($log, qr/WARNING:  sync "bad" was disabled\n.*DETAIL:  3 worker processes in a row died/, 'which the server log says');
good_arrives('the server is up, and another sync delivered');
is(stat($source, 'good', 'errors'), 0, 'which is not to blame');

answer(undef);
$source->safe_psql('postgres', "SELECT payment_sync.enable_sync('bad')");
wait_delivered($source, 'bad');
is(stat($source, 'bad', "failures || ' ' || (disabled_reason IS NULL)"), '0 true', 'enabled again, it goes on where it stopped');

# It has three attempts once more; a success begins anew.
my $crashes = stat($source, 'bad', 'errors');
for my $round (1 .. 4)
{
	answer('crash 0 once');
	put_and_crash("10 + $round");
	poll("SELECT errors = $crashes + $round AND lag_changes = 0 AND failures = 0 FROM payment_sync.stat_sync WHERE name = 'bad'",
		"a crash and then a success, round $round");
}
isnt(stat($source, 'bad', 'state'), 'disabled', 'crashes that are not in a row do not disable it');

# --------------------------------------------------------- the process gives up

answer('fatal 0');
my $session = PaymentSyncSession->new($source, 'postgres');
$source->safe_psql('postgres', "INSERT INTO b VALUES (2, 'v')");
poll("SELECT state = 'disabled' FROM payment_sync.stat_sync WHERE name = 'bad'", 'the same if the process ends with FATAL');
is($session->query('SELECT 1'), 1, 'which harms no other session');
$session->quit;
good_arrives('nor another sync');
answer(undef);
$source->safe_psql('postgres', "SELECT payment_sync.enable_sync('bad')");
wait_delivered($source, 'bad');

# ------------------------------------------------------------- who is to blame

my $lock = PaymentSyncSession->new($target, 'postgres');
my $errors = stat($source, 'bad', 'errors');
for my $round (1 .. 4)
{
	$lock->query('BEGIN; LOCK TABLE a IN ACCESS EXCLUSIVE MODE');
	my $worker = hanging_worker();
	kill KILL => $worker;
	$source->wait_for_log(qr/process: .*\(PID $worker\) was terminated by signal 9|\(PID $worker\) was terminated by signal 9/);
	$lock->query('COMMIT');
	poll("SELECT lag_changes = 0 AND failures = 0 AND errors = $round AND last_error ~ 'worker process died' FROM payment_sync.stat_sync WHERE name = 'good'",
		"kill -9, round $round: noted once for the sync that was served, which goes on");
}
is(stat($source, 'bad', 'errors'), $errors, 'and for no other');

# Others may crash while it is served.  (Its next attempt may fail because the
# session of the one before is still at work at the target: that is not blame.)
$offset = -s $source->logfile;

sub not_blamed
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return unlike(slurp_file($source->logfile, $offset), qr/worker process died while it served/, $name);
}

$lock->query('BEGIN; LOCK TABLE a IN ACCESS EXCLUSIVE MODE');
hanging_worker();
my $victim = PaymentSyncSession->new($source, 'postgres');
kill KILL => $victim->pid;
$source->wait_for_log(qr/\(PID @{[$victim->pid]}\) was terminated by signal 9/);
$lock->query('COMMIT');
poll("SELECT lag_changes = 0 FROM payment_sync.stat_sync WHERE name = 'good'", 'kill -9 of a session');
not_blamed('is not the fault of a sync that was served then');

$lock->query('BEGIN; LOCK TABLE a IN ACCESS EXCLUSIVE MODE');
hanging_worker();
$source->stop('immediate');
$lock->query('COMMIT');
$source->start;
poll("SELECT lag_changes = 0 FROM payment_sync.stat_sync WHERE name = 'good'", 'a server that was stopped at once');
not_blamed('neither');

$lock->query('BEGIN; LOCK TABLE a IN ACCESS EXCLUSIVE MODE');
my $worker = hanging_worker();
$source->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
$lock->query('COMMIT');
poll("SELECT lag_changes = 0 FROM payment_sync.stat_sync WHERE name = 'good'", 'a worker that was told to end');
not_blamed('neither');
$lock->quit;

# --------------------------------- a server that does not start over by itself

$source->append_conf('postgresql.conf', "restart_after_crash = off\n");
$source->reload;
$errors = stat($source, 'bad', 'errors');
answer('crash 0 once');
my $pidfile = $source->data_dir . '/postmaster.pid';
put_and_crash(3);
for (1 .. 1800)
{
	last if !-e $pidfile;
	select undef, undef, undef, 0.1;
}
ok(!-e $pidfile, 'the server has shut down');
$source->stop('immediate', fail_ok => 1);
$source->start;
poll("SELECT lag_changes = 0 FROM payment_sync.stat_sync WHERE name = 'bad'", 'and goes on when it is started');
is(stat($source, 'bad', 'errors'), $errors + 1, 'the crash before was noted');
same_rows($source, $target, 'SELECT * FROM a', 'nothing is lost');

done_testing();
