# 221_locks.pl
#
# A transaction that someone has left open holds locks on this server that the
# one worker wants: on rows of each of the extension's tables, on the tables,
# on a captured table.  It harms the sync that it concerns, and no other; that
# one goes on by itself afterwards.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncSession;
use PaymentSyncTest;
use Test::More;

my $source = start_source('source', conf => <<'CONF');
payment_sync.max_workers = 1
payment_sync.lock_timeout = '500ms'
CONF
my $target = start_target('target');
$_->safe_psql('postgres', 'CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY, v text)')
  for $source, $target;
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('a');
SELECT payment_sync.capture_table('b');
SELECT payment_sync.create_sync('sa', '{a}', server => 'target');
SELECT payment_sync.create_sync('sb', '{b}', server => 'target');
SQL

my $open = PaymentSyncSession->new($source, 'postgres');
my $id = 0;

# arrives(TABLE, NAME): a new row of it does, whoever holds what now
sub arrives
{
	my ($table, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$id++;
	$source->safe_psql('postgres', "INSERT INTO $table VALUES ($id, 'v')");
	return ok($target->poll_query_until('postgres', "SELECT count(*) = 1 FROM $table WHERE id = $id"), $name);
}

# Progress of all that was delivered is in the table.
sub saved
{
	my ($sync) = @_;
	wait_delivered($source, $sync);
	$source->poll_query_until('postgres', "SELECT state = 'idle' FROM payment_sync.stat_sync WHERE name = '$sync'")
	  or die "$sync is busy";
	return;
}

arrives($_, "table $_ is delivered") for 'a', 'b';
saved($_) for 'sa', 'sb';

# ------------------------------------------------- rows of one sync are locked

my @tables = split /\n/, $source->safe_psql('postgres', <<'SQL');
SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'sync'
WHERE c.relnamespace = 'payment_sync'::regnamespace AND c.relkind = 'r' ORDER BY 1
SQL
cmp_ok(scalar @tables, '>', 4, 'there are tables with rows of syncs: ' . join ' ', @tables);
my $sb = $source->safe_psql('postgres', "SELECT id FROM payment_sync.sync WHERE name = 'sb'");
my $lock_rows = join ' ', "SELECT count(*) FROM (SELECT FROM payment_sync.sync WHERE id = '$sb' FOR UPDATE) x;",
  map { "SELECT count(*) FROM (SELECT FROM payment_sync.$_ WHERE sync = '$sb' FOR UPDATE) x;" } @tables;

$open->query("BEGIN; $lock_rows");
arrives('b', 'a sync whose rows are locked is delivered');
arrives('a', "so is another one, round $_") for 1 .. 5;
saved('sa');
pass('whose progress is saved');
is(stat($source, 'sa', 'errors'), 0, 'without a failure');
$open->query('ROLLBACK');
saved('sb');
pass('the progress of the first is saved when the rows are free');

my $offset = -s $source->logfile;
$open->query("BEGIN; SELECT payment_sync.disable_sync('sb')");
arrives('b', 'disable_sync() that has not committed');
$source->wait_for_log(qr/sync "sb" failed: canceling statement due to lock timeout\n.*DETAIL:  Another transaction of this server/, $offset);
arrives('a', 'does not keep other syncs');
$open->query('ROLLBACK');
saved('sb');

# ---------------------------------------------------------- tables are locked

# Nobody can save anything then; what is at the target counts.
for my $table (qw(sync sync_table sync_state))
{
	$offset = -s $source->logfile;
	$open->query("BEGIN; LOCK TABLE payment_sync.$table IN ACCESS EXCLUSIVE MODE");
	$source->safe_psql('postgres', "SELECT payment_sync.wake_workers()");
	$source->wait_for_log(qr/canceling statement due to lock timeout/, $offset);
	$open->query('ROLLBACK');
	arrives($_, "table $table was locked, which ended the worker's wait: $_ goes on") for 'a', 'b';
}

# A worker that comes while the definitions cannot be read waits for them.
$open->query('BEGIN; LOCK TABLE payment_sync.sync IN ACCESS EXCLUSIVE MODE');
$offset = -s $source->logfile;
$source->safe_psql('postgres', 'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = \'payment_sync worker\'');
$source->wait_for_log(qr/could not read the definitions of syncs: canceling statement due to lock timeout\n.*failure 3 in a row/, $offset);
$open->query('ROLLBACK');
arrives($_, "and serves $_ then") for 'a', 'b';

# ------------------------------------------------- a captured table is altered

saved($_) for 'sa', 'sb';
$open->query('BEGIN; ALTER TABLE b ADD COLUMN w int');
$offset = -s $source->logfile;
my $batch = PaymentSyncSession->new($source, 'postgres');
$source->safe_psql('postgres', <<'SQL');
INSERT INTO payment_sync.batch (sync, relid, mirror, rows_estimated)
SELECT id, 'b'::regclass, false, 0 FROM payment_sync.sync WHERE name = 'sb';
SELECT payment_sync.wake_workers();
SQL
$source->wait_for_log(qr/sync "sb" failed: canceling statement due to lock timeout/, $offset);
arrives('a', 'a batch that waits for ALTER TABLE does not keep other syncs');
like(stat($source, 'sb', 'last_error_detail'), qr/^Another transaction of this server/, 'stat_sync says what it waits for');

# A session waits as it is told to.
$batch->query("SET lock_timeout = '100ms'");
$batch->query("CALL payment_sync.batch_sync('sb')", may_fail => 1);
like($batch->{error}, qr/ERROR:  canceling statement due to lock timeout/, "a session's own lock_timeout holds");
$batch->query("RESET lock_timeout");
$batch->send("CALL payment_sync.batch_sync('sb')");
$batch->wait_blocked($source);
$source->safe_psql('postgres', 'SELECT pg_cancel_backend(' . $batch->pid . ')');
$batch->wait(may_fail => 1);
like($batch->{error}, qr/ERROR:  canceling statement due to user request/, 'without one it can be cancelled');
$open->query('COMMIT');
$target->safe_psql('postgres', 'ALTER TABLE b ADD COLUMN w int');
wait_delivered($source, 'sb');
same_rows($source, $target, "SELECT * FROM $_", "both sides are equal: $_") for 'a', 'b';

$_->quit for $open, $batch;
done_testing();
