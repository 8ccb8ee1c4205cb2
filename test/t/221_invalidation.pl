# 221_invalidation.pl
#
# What other sessions do to other tables costs a worker nothing: it reads its
# syncs' definitions again after a change of theirs, not after every
# invalidation.  And the library leaves the places for relcache callbacks, of
# which a process has ten, to others.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncSession;
use PaymentSyncTest;
use Test::More;

my $source = start_source('source', preload => 0, conf => <<'CONF');
shared_preload_libraries = 'payment_sync_callbacks, payment_sync'
payment_sync_callbacks.relcache = 6
payment_sync.max_workers = 1
autovacuum = off
CONF
my $target = start_target('target');

$_->safe_psql('postgres', 'CREATE SCHEMA s; CREATE TABLE s.pay (id int PRIMARY KEY, v text)')
  for $source, $target;
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('s.pay');
SELECT payment_sync.create_sync('pay', '{s.pay}', server => 'target');
INSERT INTO s.pay VALUES (0);
SQL
wait_delivered($source, 'pay');
pass('there is room for six more relcache callbacks in each process');

# How often definitions were read, by anyone; deliveries and their ends wait for
# the worker to report it.
my $reader = PaymentSyncSession->new($source, 'postgres');
my $there = PaymentSyncSession->new($target, 'postgres');

sub definitions_read
{
	return $reader->query(<<'SQL');
SELECT COALESCE(sum(seq_scan + COALESCE(idx_scan, 0)), 0) FROM pg_stat_all_tables
WHERE relid = 'payment_sync.sync_table'::regclass
SQL
}

my $id = 0;
my $ddl = PaymentSyncSession->new($source, 'postgres');

# deliver(ROWS, DDL): that many windows; returns how often definitions were read
sub deliver
{
	my ($rows, $statement) = @_;
	my $before = definitions_read();
	for (1 .. $rows)
	{
		$id++;
		$ddl->query($statement) if $statement;
		$reader->query("INSERT INTO s.pay VALUES ($id)");
		$there->until_true("SELECT count(*) = 1 FROM s.pay WHERE id = $id");
	}

	# counted at the latest when the worker goes to sleep
	$reader->until_true("SELECT rows_read >= $id FROM (SELECT changes AS rows_read
		FROM payment_sync.sync_state) s");
	return definitions_read() - $before;
}

my $rows = 100;
deliver($rows);
my $quiet = deliver($rows);
my $beside = deliver($rows, 'CREATE TEMP TABLE t (i int); DROP TABLE t');
cmp_ok($beside, '<=', $quiet + $rows / 10, "definitions were read $quiet times in $rows windows, "
	  . "$beside times beside others' temporary tables");
my $own = deliver($rows, "COMMENT ON COLUMN s.pay.v IS 'note'; ALTER TABLE s.pay SET (fillfactor = 90)");
cmp_ok($own, '>=', $rows / 2, "$own times when the table itself was altered each time");

# Each of these must be noticed although little counts any more.
$_->safe_psql('postgres', 'ALTER TABLE s.pay RENAME COLUMN v TO w') for $target, $source;
$source->safe_psql('postgres', "INSERT INTO s.pay VALUES (1001, 'renamed column')");
wait_delivered($source, 'pay');
$_->safe_psql('postgres', 'ALTER TABLE s.pay RENAME TO paid') for $target, $source;
$source->safe_psql('postgres', "INSERT INTO s.paid VALUES (1002, 'renamed table')");
wait_delivered($source, 'pay');
$_->safe_psql('postgres', 'ALTER SCHEMA s RENAME TO t') for $target, $source;
$source->safe_psql('postgres', "INSERT INTO t.paid VALUES (1003, 'renamed schema')");
wait_delivered($source, 'pay');
$source->safe_psql('postgres', <<'SQL');
CREATE TABLE more (id int PRIMARY KEY);
SELECT payment_sync.capture_table('more');
SQL
$target->safe_psql('postgres', 'CREATE TABLE more (id int PRIMARY KEY)');
$source->safe_psql('postgres', "SELECT payment_sync.alter_sync('pay', add_tables => '{more}')");
$source->safe_psql('postgres', 'INSERT INTO more VALUES (1)');
wait_delivered($source, 'pay');
$source->safe_psql('postgres', 'ALTER TABLE more ADD COLUMN v text; INSERT INTO more VALUES (2)');
$target->safe_psql('postgres', 'ALTER TABLE more ADD COLUMN v text');
$source->safe_psql('postgres', "INSERT INTO more VALUES (3, 'column')");
wait_delivered($source, 'pay');
same_rows($source, $target, 'SELECT * FROM t.paid', 'renames are followed');
same_rows($source, $target, 'SELECT * FROM more', 'and new tables and columns');

$_->quit for $reader, $there, $ddl;
done_testing();
