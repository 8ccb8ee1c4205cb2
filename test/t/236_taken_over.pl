# 236_taken_over.pl
#
# What a process has delivered and could not save is known by the target, and
# whoever takes the sync over asks it.  A chunk of a batch is delivered in a
# window that may hold no change at all; the successor, which finds nothing to
# deliver, must neither save nor assume a position that is later than the target's:
# it would take the target for one that was restored from a backup (P5).

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use PaymentSyncSession;
use PaymentSyncTest;
use Test::More;

my $source = start_source('source', conf => <<'CONF');
payment_sync.max_workers = 1
restart_after_crash = on
CONF
my $target = start_target('target');
$_->safe_psql('postgres', 'CREATE TABLE pay (id int PRIMARY KEY, v text)') for $source, $target;
$source->safe_psql('postgres', "INSERT INTO pay SELECT i, 'row' FROM generate_series(1, 100) i");
connect_target($source, $target);
$source->safe_psql('postgres', "SELECT payment_sync.capture_table('pay')");

# copied(NAME): the first copy of the sync is at the target, its position is not
# saved.  Returns the session that keeps it from being saved, and the worker.
sub copied
{
	my ($name) = @_;
	$target->safe_psql('postgres', 'TRUNCATE pay');
	my $there = PaymentSyncSession->new($target, 'postgres');
	$there->query('BEGIN; LOCK TABLE pay IN EXCLUSIVE MODE');
	$source->safe_psql('postgres', "SELECT payment_sync.create_sync('$name', '{pay}', server => 'target', batch => true)");
	$target->poll_query_until('postgres', 'SELECT count(*) > 0 FROM pg_locks WHERE NOT granted') or die 'no copy';
	my $here = PaymentSyncSession->new($source, 'postgres');
	$here->query("BEGIN; SELECT count(*) FROM (SELECT FROM payment_sync.sync_state WHERE sync = (SELECT id FROM payment_sync.sync WHERE name = '$name') FOR UPDATE) x");
	$there->query('ROLLBACK');
	$there->quit;
	$target->poll_query_until('postgres', 'SELECT count(*) = 100 FROM pay') or die 'not copied';
	$source->poll_query_until('postgres',
		"SELECT state = 'done' FROM payment_sync.progress_batch WHERE sync = '$name'") or die 'not done';
	return ($here, worker_pids($source));
}

sub goes_on
{
	my ($name, $id) = @_;
	$source->safe_psql('postgres', "INSERT INTO pay VALUES ($id, 'later')");
	wait_delivered($source, $name);
	same_rows($source, $target, 'SELECT * FROM pay', "$name: the target has all");
	is(stat($source, $name, 'last_error'), '', 'without an error');
	return;
}

# A crash: nobody knows what was delivered but the target.
my ($locker, $worker) = copied('crashed');
kill 'KILL', $worker;
$source->poll_query_until('postgres', 'SELECT true') or die 'no server';
$locker->quit;
$source->poll_query_until('postgres', <<SQL) or die 'no worker is at rest';
SELECT count(*) > 0 FROM pg_stat_activity
WHERE backend_type = 'payment_sync worker' AND wait_event_type = 'Extension' AND pid <> $worker
SQL
goes_on('crashed', 1001);
$source->safe_psql('postgres', "SELECT payment_sync.drop_sync('crashed'); DELETE FROM pay WHERE id > 100");

# A session takes the sync from a worker that cannot save, and finds nothing.
($locker, $worker) = copied('taken');
$source->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
$source->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $worker") or die 'worker stays';
$locker->query('ROLLBACK');
$locker->quit;
$source->safe_psql('postgres', "CALL payment_sync.incremental_sync('taken')") for 1 .. 2;
goes_on('taken', 1002);

done_testing();
