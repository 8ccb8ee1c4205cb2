# 214_signals.pl
#
# SIGTERM, SIGINT and SIGHUP to workers and launcher, while idle and while the
# target hangs; and the server's shutdown, which a target that hangs must not
# hold up.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncSession;
use PaymentSyncTest;
use Test::More;

my $source = start_source('source');
my $target = start_target('target');

$_->safe_psql('postgres', 'CREATE TABLE pay (id int PRIMARY KEY, v text)') for $source, $target;
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target');
SQL

my $id = 0;

sub delivers
{
	my ($name) = @_;
	$id++;
	$source->safe_psql('postgres', "INSERT INTO pay VALUES ($id, 'v')");
	ok($target->poll_query_until('postgres', "SELECT count(*) = 1 FROM pay WHERE id = $id"), $name);
	return;
}

sub pid_of
{
	my ($type) = @_;
	my $pid;
	$source->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'payment_sync $type'")
	  or die "there is no $type";
	return $source->safe_psql('postgres',
		"SELECT pid FROM pg_stat_activity WHERE backend_type = 'payment_sync $type'");
}

my $lock = PaymentSyncSession->new($target, 'postgres');

sub hang
{
	$lock->query('BEGIN; LOCK TABLE pay IN ACCESS EXCLUSIVE MODE');
	$id++;
	$source->safe_psql('postgres', "INSERT INTO pay VALUES ($id, 'hang')");
	$target->poll_query_until('postgres', 'SELECT count(*) > 0 FROM pg_locks WHERE NOT granted')
	  or die 'it does not hang';
	return;
}

sub release
{
	my ($name) = @_;
	$lock->query('COMMIT');
	ok($target->poll_query_until('postgres', "SELECT count(*) = 1 FROM pay WHERE id = $id"), $name);
	return;
}

# ---------------------------------------------------------- terminate, idle

delivers('at first');
for my $type ('worker', 'launcher')
{
	my $pid = pid_of($type);
	is($source->safe_psql('postgres', "SELECT pg_terminate_backend($pid, 60000)"), 't', "the $type ends when told to");
	delivers("$type terminated");
	isnt(pid_of($type), $pid, "there is a new $type");
}

# Without a launcher the worker goes on.
my ($launcher, $worker) = (pid_of('launcher'), pid_of('worker'));
$source->safe_psql('postgres', "SELECT pg_terminate_backend($launcher, 60000)");
delivers('right after the launcher has ended');
is(pid_of('worker'), $worker, 'by the worker that was there');
pid_of('launcher');
is(pid_of('worker'), $worker, 'which the new launcher has found');

# ----------------------------------------------------------- while it hangs

hang();
$worker = pid_of('worker');
is($source->safe_psql('postgres', "SELECT pg_terminate_backend($worker, 60000)"),
	't', 'a worker that waits for its target ends when told to');
release('and another one delivers');

my $errors = stat($source, 'pay', 'errors');
hang();
$source->safe_psql('postgres', 'SELECT pg_cancel_backend(' . pid_of('worker') . ')');
ok($source->poll_query_until('postgres',
		"SELECT errors = $errors + 1 FROM payment_sync.stat_sync WHERE name = 'pay'"),
	'pg_cancel_backend() cancels the window');
like(stat($source, 'pay', 'last_error'), qr/canceling statement/, 'which is its error');
release('then it is tried again');

hang();
my $offset = -s $source->logfile;
$source->append_conf('postgresql.conf', "log_min_messages = debug1\n");
$source->reload;
$source->safe_psql('postgres', "SELECT payment_sync.disable_sync('pay', 'a rest')");
ok($source->poll_query_until('postgres', "SELECT worker_pid IS NULL FROM payment_sync.stat_sync WHERE name = 'pay'"),
	'disable_sync() ends the wait for a target that hangs');
is(stat($source, 'pay', "state || ' ' || disabled_reason"), 'disabled a rest', 'with its reason');
$source->wait_for_log(qr/DEBUG:  payment_sync worker leaves, reason \d/, $offset);
pass('a reload has reached the worker: it says why it leaves');
$source->safe_psql('postgres', "SELECT payment_sync.enable_sync('pay')");
release('enabled, it goes on');

# ------------------------------------------------------------------ shutdown

for my $mode ('fast', 'smart')
{
	hang();
	$source->command_ok([ 'pg_ctl', '-D', $source->data_dir, '-m', $mode, '-t', 60, '-w', 'stop' ],
		"$mode shutdown while the target hangs");
	$source->_update_pid(0);
	$source->start;
	release("and it goes on after that ($mode)");
	delivers("all is well again ($mode)");

	# A save, by which the target is asked to flush: its processes do not answer.
	my $backend = $target->safe_psql('postgres',
		"SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND pid <> " . $lock->pid);
	delivers('right before');
	kill 'STOP', $backend;
	$source->command_ok([ 'pg_ctl', '-D', $source->data_dir, '-m', $mode, '-t', 60, '-w', 'stop' ],
		"$mode shutdown with progress to be saved and a target that does not answer");
	$source->_update_pid(0);
	kill 'CONT', $backend;
	$source->start;
	delivers("and nothing is lost ($mode)");
}
wait_delivered($source, 'pay');
same_rows($source, $target, 'SELECT * FROM pay', 'in the end both are equal');

done_testing();
