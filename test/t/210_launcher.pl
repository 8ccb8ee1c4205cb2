# 210_launcher.pl
#
# The launcher finds every database that has the extension by itself: those
# made later, those after a restart, renamed ones.  Commands that want a
# database for themselves get it: DROP, RENAME, CREATE … TEMPLATE.  A copy does
# not deliver as if it were the original.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncSession;
use PaymentSyncTest;
use Test::More;

# No unasked looks: databases must be found because of what is done.
my $source = start_source('source', conf => "payment_sync.database_scan_interval = -1\n");
my $target = start_target('target');

# A database with a sync to a target database of the same name.
sub make_database
{
	my ($db, $exists) = @_;
	$source->safe_psql('postgres', "CREATE DATABASE $db") unless $exists;
	$target->safe_psql('postgres', "CREATE DATABASE $db");
	$_->safe_psql($db, 'CREATE TABLE pay (id int PRIMARY KEY, v text)') for $source, $target;
	connect_target($source, $target, db => $db, sourcedb => $db);
	$source->safe_psql($db, <<'SQL');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target');
SQL
	return;
}

my $id = 0;

sub delivers
{
	my ($db, $name, $targetdb) = @_;
	$id++;
	$source->safe_psql($db, "INSERT INTO pay VALUES ($id, 'v')");
	ok($target->poll_query_until($targetdb // $db, "SELECT count(*) = 1 FROM pay WHERE id = $id"), $name);
	return;
}

sub workers
{
	return $source->safe_psql('postgres', <<'SQL');
SELECT string_agg(DISTINCT datname, ' ' ORDER BY datname) FROM pg_stat_activity
WHERE backend_type = 'payment_sync worker'
SQL
}

# -------------------------------------------------------------- finding them

my $idle = $source->safe_psql('postgres',
	"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'payment_sync launcher'");
is($idle, 1, 'there is a launcher');
make_database('one');
make_database('two');
delivers($_, "database $_, made while the server runs") for 'one', 'two';
is(workers(), 'one two', 'databases without the extension have no worker');
is( $source->safe_psql('postgres', <<'SQL'), 't|t|t', 'workers can be told by type, name and database');
SELECT bool_and(application_name = 'payment_sync worker'), count(DISTINCT datname) = 2, bool_and(usename IS NOT NULL)
FROM pg_stat_activity WHERE backend_type = 'payment_sync worker'
SQL
is( $source->safe_psql('postgres', <<'SQL'), 't', 'they wait in an event, not in a query');
SELECT bool_and(wait_event_type IN ('Extension', 'Activity') AND wait_event IS NOT NULL) FROM pg_stat_activity
WHERE backend_type IN ('payment_sync worker', 'payment_sync launcher') AND state IS DISTINCT FROM 'active'
SQL

for my $mode ('fast', 'immediate')
{
	$source->stop($mode);
	$source->start;
	delivers($_, "database $_, after a restart ($mode)") for 'one', 'two';
}

# The extension comes later, in a database in which it was looked for in vain.
$source->safe_psql('postgres', 'CREATE DATABASE late');
make_database('late', 1);
delivers('late', 'CREATE EXTENSION in a database that had none');

# ------------------------------------------------------------- DROP EXTENSION

$source->safe_psql('late', 'DROP EXTENSION payment_sync CASCADE');
ok($source->poll_query_until('postgres', <<'SQL'), 'DROP EXTENSION sends the worker away');
SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'payment_sync worker' AND datname = 'late'
SQL
is( $source->safe_psql('late', <<'SQL'), '0|0|0', 'and leaves nothing behind');
SELECT (SELECT count(*) FROM pg_trigger WHERE tgname LIKE '%payment_sync%'),
	(SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace('payment_sync')),
	(SELECT count(*) FROM pg_locks WHERE database = (SELECT oid FROM pg_database WHERE datname = 'late') AND locktype = 'advisory')
SQL
$source->safe_psql('late', 'INSERT INTO pay VALUES (-1)');
$target->safe_psql('late', 'INSERT INTO pay VALUES (-1)');
connect_target($source, $target, db => 'late', sourcedb => 'late');
$source->safe_psql('late', <<'SQL');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target');
SQL
delivers('late', 'CREATE EXTENSION once more');

# While changes are flowing and the target does not answer.
my $lock = PaymentSyncSession->new($target, 'late');
$lock->query('BEGIN; LOCK TABLE pay');
$source->safe_psql('late', "INSERT INTO pay VALUES (-2, 'stuck')");
$target->poll_query_until('late', 'SELECT count(*) > 0 FROM pg_locks WHERE NOT granted');
$source->safe_psql('late', "SET statement_timeout = '60s'; DROP EXTENSION payment_sync CASCADE");
pass('DROP EXTENSION while the worker waits for its target');
$lock->query('COMMIT');
$target->safe_psql('late', 'DROP SCHEMA payment_sync_target CASCADE');
connect_target($source, $target, db => 'late', sourcedb => 'late');
$source->safe_psql('late', <<'SQL');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target', batch => true);
SQL
delivers('late', 'and another CREATE EXTENSION');

# A rollback changes nothing.
$source->safe_psql('late', 'BEGIN; DROP EXTENSION payment_sync CASCADE; ROLLBACK');
delivers('late', 'DROP EXTENSION rolled back');

# ------------------------------------------------------------ whole databases

$source->safe_psql('postgres', 'ALTER DATABASE two RENAME TO second');
delivers('second', 'ALTER DATABASE … RENAME', 'two');
is(workers(), 'late one second', 'the worker is in the renamed one');

$source->safe_psql('postgres', 'DROP DATABASE late');
pass('DROP DATABASE with a worker in it');
is(workers(), 'one second', 'whose worker is gone');

my $busy = PaymentSyncSession->new($source, 'one');
my (undef, undef, $stderr) = $source->psql('postgres', 'DROP DATABASE one');
like($stderr, qr/being accessed by other users.*There is 1 other session/s,
	'DROP DATABASE fails for the sessions of users, not for ours');
$busy->quit;
delivers('one', 'after a DROP DATABASE that failed');

# ------------------------------------------------------- copies of a database

$source->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE one');
pass('CREATE DATABASE … TEMPLATE with a worker in it');
delivers('one', 'the original goes on');
is($source->safe_psql('copy', 'SELECT name, state, lag_changes IS NULL FROM payment_sync.stat_sync'),
	'pay|stopped|t', 'in the copy the sync is stopped');
$source->safe_psql('copy', "INSERT INTO pay VALUES (1000, 'copy')");
(undef, undef, $stderr) = $source->psql('copy', "CALL payment_sync.incremental_sync('pay')");
like($stderr, qr/sync "pay" is not enabled/, 'it does not deliver');
(undef, undef, $stderr) = $source->psql('copy', "SELECT payment_sync.enable_sync('pay')");
like($stderr, qr/has no position to go on from.*its database was copied/s, 'nor does it go on');

$target->safe_psql('postgres', 'CREATE DATABASE copy');
$target->safe_psql('copy', 'CREATE TABLE pay (id int PRIMARY KEY, v text)');
$source->safe_psql('copy', <<'SQL');
ALTER SERVER target OPTIONS (SET dbname 'copy');
SELECT payment_sync.enable_sync('pay', start => 'batch');
SQL
wait_delivered($source, 'pay', db => 'copy');
same_rows($source, $target, 'SELECT * FROM pay', 'started, it goes where it was told to',
	sourcedb => 'copy', targetdb => 'copy');
delivers('copy', 'and follows on');
delivers('one', 'so does the original');
same_rows($source, $target, 'SELECT * FROM pay', 'each to its own', sourcedb => 'one', targetdb => 'one');
is( $source->safe_psql('one', 'SELECT identity FROM payment_sync.log_rotation') eq
	  $source->safe_psql('copy', 'SELECT identity FROM payment_sync.log_rotation'),
	'', 'the logs can be told apart');

# An extension in template1 is in each new database.
$source->safe_psql('template1', 'CREATE EXTENSION payment_sync');
make_database('fresh');
delivers('fresh', 'the extension came with template1');
$source->safe_psql('template1', 'DROP EXTENSION payment_sync');

# ------------------------------------- prepared transactions, where nobody cares

# No process may be started in a database without the extension for these.
$source->append_conf('postgresql.conf', "log_min_messages = debug1\n");
$source->reload;
$source->safe_psql('postgres', 'SELECT 1');
my $offset = -s $source->logfile;
$source->safe_psql('postgres', "BEGIN; CREATE TABLE t$_ (); PREPARE TRANSACTION 't'; COMMIT PREPARED 't'") for 1 .. 5;
$source->safe_psql('one', "BEGIN; INSERT INTO pay VALUES (-10); PREPARE TRANSACTION 't'; COMMIT PREPARED 't'");
ok($target->poll_query_until('one', 'SELECT count(*) = 1 FROM pay WHERE id = -10'), 'COMMIT PREPARED wakes workers');
unlike(PostgreSQL::Test::Utils::slurp_file($source->logfile, $offset),
	qr/starting background worker process "payment_sync worker for database postgres"/,
	'but starts none where the extension is not');

# One that creates the extension is noticed.
$target->safe_psql('postgres', 'CREATE DATABASE prep');
$source->safe_psql('postgres', 'CREATE DATABASE prep');
$_->safe_psql('prep', 'CREATE TABLE pay (id int PRIMARY KEY, v text)') for $source, $target;
my ($host, $port, $user) = ($target->host, $target->port, $target->safe_psql('postgres', 'SELECT current_user'));
$source->safe_psql('prep', <<SQL);
BEGIN;
CREATE EXTENSION payment_sync;
CREATE SERVER target FOREIGN DATA WRAPPER payment_sync_postgres OPTIONS (host '$host', port '$port', dbname 'prep');
CREATE USER MAPPING FOR CURRENT_USER SERVER target OPTIONS (user '$user');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target');
PREPARE TRANSACTION 'p';
COMMIT PREPARED 'p';
SQL
delivers('prep', 'an extension that a prepared transaction has created');

done_testing();
