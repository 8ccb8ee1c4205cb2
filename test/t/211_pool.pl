# 211_pool.pl
#
# Fewer workers than databases and syncs: all take turns.  One that keeps its
# worker busy, or whose target hangs, harms nobody (P7).  No room for a worker
# at all: a warning that names the setting.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use IPC::Run;
use PaymentSyncSession;
use PaymentSyncTest;
use Test::More;

my $source = start_source('source', conf => "payment_sync.max_workers = 1\n");
my $target = start_target('target');
my @databases = qw(one two three);

for my $db (@databases)
{
	$_->safe_psql('postgres', "CREATE DATABASE $db") for $source, $target;
	$_->safe_psql($db, <<'SQL') for $source, $target;
CREATE TABLE a (id bigint PRIMARY KEY, v text);
CREATE TABLE b (id bigint PRIMARY KEY, v text);
SQL
	connect_target($source, $target, db => $db, sourcedb => $db);
	$source->safe_psql($db, <<'SQL');
SELECT payment_sync.capture_table('a');
SELECT payment_sync.capture_table('b');
SELECT payment_sync.create_sync('a', '{a}', server => 'target');
SELECT payment_sync.create_sync('b', '{b}', server => 'target');
SQL
}

my $id = 0;

sub delivers
{
	my ($db, $table, $name) = @_;
	$id++;
	$source->safe_psql($db, "INSERT INTO $table VALUES (-$id, 'v')");
	ok($target->poll_query_until($db, "SELECT count(*) = 1 FROM $table WHERE id = -$id"), $name);
	return;
}

# ------------------------------------------------------------ one is busy

my $script = PostgreSQL::Test::Utils::tempdir() . '/busy.sql';
PostgreSQL::Test::Utils::append_to_file($script, "INSERT INTO a VALUES (nextval('ids'), 'busy');\n");
$source->safe_psql('one', 'CREATE SEQUENCE ids');
my ($out, $err) = ('', '');
my $bench = IPC::Run::start(
	[
		'pgbench', '-n', '-c', 1, '-R', 200, '-T', 600, '-f', $script, '-h',
		$source->host, '-p', $source->port, 'one'
	],
	'>', \$out, '2>', \$err);
ok($target->poll_query_until('one', 'SELECT count(*) > 100 FROM a'), 'one sync is always busy');
delivers('one', 'b', 'another one of its database has its turn');
delivers($_, 'b', "so has database $_") for 'two', 'three';
ok($bench->pumpable, 'all that while it was busy');
is( $source->safe_psql('postgres', <<'SQL'), 't', 'with one worker');
SELECT count(*) <= 1 FROM pg_stat_activity WHERE backend_type = 'payment_sync worker'
SQL
like(PostgreSQL::Test::Utils::slurp_file($source->logfile),
	qr/WARNING:  all delivery workers are in use\n.*HINT:  You might need to increase payment_sync.max_workers/s,
	'which is said in the server log');
$bench->signal('TERM');
$bench->finish;
wait_delivered($source, 'a', db => 'one');
same_rows($source, $target, 'SELECT * FROM a', 'the busy one has lost nothing', sourcedb => 'one', targetdb => 'one');

# --------------------------------------------------------- one target hangs

my $lock = PaymentSyncSession->new($target, 'one');
$lock->query('BEGIN; LOCK TABLE a IN ACCESS EXCLUSIVE MODE');
$source->safe_psql('one', "INSERT INTO a VALUES (-1000, 'stuck')");
ok($target->poll_query_until('one', 'SELECT count(*) > 0 FROM pg_locks WHERE NOT granted'), 'a target hangs');
delivers('one', 'b', 'another sync of this database is delivered');
delivers($_, 'a', "so is database $_") for 'two', 'three';
ok( $source->poll_query_until('one',
		"SELECT failures > 0 FROM payment_sync.stat_sync WHERE name = 'a'"), 'the stuck one has failed');
like(stat($source, 'a', 'last_error', db => 'one'),
	qr/^target has not finished a window within \d+ ms, and others wait for this worker$/, 'for that reason');
$lock->query('COMMIT');
ok($target->poll_query_until('one', 'SELECT count(*) = 1 FROM a WHERE id = -1000'), 'and is delivered in the end');

# The same with room for another worker: the stuck one just waits.
$source->append_conf('postgresql.conf', "payment_sync.max_workers = 4\n");
$source->restart;
my $errors = stat($source, 'a', 'errors', db => 'one');
$lock->query('BEGIN; LOCK TABLE a IN ACCESS EXCLUSIVE MODE');
$source->safe_psql('one', "INSERT INTO a VALUES (-1001, 'stuck')");
ok($target->poll_query_until('one', 'SELECT count(*) > 0 FROM pg_locks WHERE NOT granted'), 'a target hangs');
delivers('one', 'b', 'another worker takes the other sync');
delivers('one', 'b', 'and keeps it');
delivers($_, 'a', "database $_ has its own") for 'two', 'three';
is( $source->safe_psql('one', <<'SQL'), 'running|t', 'both can be seen');
SELECT state, worker_pid IN (SELECT pid FROM pg_stat_activity WHERE backend_type = 'payment_sync worker')
FROM payment_sync.stat_sync WHERE name = 'a'
SQL
$lock->query('COMMIT');
ok($target->poll_query_until('one', 'SELECT count(*) = 1 FROM a WHERE id = -1001'), 'the stuck one goes on');
is(stat($source, 'a', 'errors', db => 'one'), $errors, 'without a failure');

# ---------------------------------------------------------- no room at all

my $offset = -s $source->logfile;
$source->append_conf('postgresql.conf', "max_worker_processes = 1\nmax_logical_replication_workers = 0\n");
$source->restart;
$source->wait_for_log(qr/WARNING:  out of background worker slots\n.*HINT:  You might need to increase max_worker_processes/, $offset);
pass('no place for a worker: a warning with the setting to raise');
$source->safe_psql('two', "INSERT INTO a VALUES (-2000, 'by hand')");
$source->safe_psql('two', "CALL payment_sync.incremental_sync('a')");
is($target->safe_psql('two', 'SELECT count(*) FROM a WHERE id = -2000'), 1, 'sessions can deliver all the same');
$source->append_conf('postgresql.conf', "max_worker_processes = 8\n");
$source->restart;
delivers('two', 'a', 'with room, workers deliver again');

done_testing();
