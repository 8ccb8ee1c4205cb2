# 234_lag.pl
#
# Watching is cheap: a look at stat_sync reads as many pages of the log with
# hundreds of thousands of changes pending as with a few thousand, 0 always means
# that nothing is pending, and pending_changes() counts exactly.  The view
# changes decodes what is asked for.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncSession;
use PaymentSyncTest;
use Test::More;

my $source = start_source('source', conf => "payment_sync.max_workers = 0\nautovacuum = off\n");
$source->safe_psql('postgres', <<'SQL');
CREATE EXTENSION payment_sync;
CREATE TABLE pay (id bigint PRIMARY KEY, note text);
CREATE TABLE rare (id int PRIMARY KEY, large text);
SELECT payment_sync.capture_table(t) FROM unnest('{pay,rare}'::regclass[]) t;
SELECT payment_sync.create_sync('pay', '{pay}');
SELECT payment_sync.create_sync('rare', '{rare}');
SQL
my $session = PaymentSyncSession->new($source, 'postgres');
my $id = 0;

sub insert
{
	my ($n) = @_;
	$session->query("INSERT INTO pay SELECT i, 'note ' || i FROM generate_series($id + 1, $id + $n) i");
	$id += $n;
	return;
}

# How many pages of the log a statement of a new session reads.
sub pages_read
{
	my ($sql) = @_;
	return $source->safe_psql('postgres', <<SQL);
SELECT COUNT(*) FROM payment_sync.shape \\gset
BEGIN;
SELECT COALESCE(sum(pg_stat_get_xact_blocks_fetched(('payment_sync.log_' || i)::regclass)), 0) AS before FROM generate_series(0, 2) i \\gset
SELECT count(*) FROM ($sql) s \\gset
SELECT sum(pg_stat_get_xact_blocks_fetched(('payment_sync.log_' || i)::regclass)) - :before FROM generate_series(0, 2) i;
COMMIT;
SQL
}

sub lag
{
	my ($sync, $columns) = @_;
	return stat($source, $sync, $columns // 'lag_changes');
}

my $look = "SELECT lag_changes, lag_bytes, lag FROM payment_sync.stat_sync WHERE name = 'pay'";
is(lag('pay', "lag_changes || ' ' || lag_bytes || ' ' || lag"), '0 0 00:00:00', 'nothing is pending');
insert(10);
is(lag('pay'), 10, 'ten are');
my $ten = pages_read($look);
cmp_ok($ten, '>', 0, "which takes $ten pages");
is(lag('rare'), 0, 'of another table none is');
insert(2000);
is(lag('pay'), 2010, 'two thousand are counted exactly');
is($source->safe_psql('postgres', "SELECT payment_sync.pending_changes('pay')"), 2010, 'by both');

insert(40000) for 1 .. 5;
my $log = $source->safe_psql('postgres', 'SELECT payment_sync.log_size() / 8192');
cmp_ok($log, '>', 500, "the log has $log pages");
my $many = pages_read($look);
cmp_ok($many, '<=', 70, "of which a look reads $many");
my $estimate = lag('pay');
cmp_ok($estimate, '>', $id * 0.8, "$estimate changes are estimated");
cmp_ok($estimate, '<', $id * 1.2, "where there are $id");
cmp_ok(lag('pay', 'lag_bytes'), '>', 1024 * 1024, 'and their bytes');
is(lag('pay', "lag > interval '0' AND lag < interval '1 hour'"), 't', 'and the age of the oldest');
is($source->safe_psql('postgres', "SELECT payment_sync.pending_changes('pay')"), $id, 'or counted');

# One change among many of another table's is on none of the pages of the sample.
$session->query("INSERT INTO rare VALUES (1)");
insert(40000);
is(lag('rare'), 1, 'it is found all the same');
is($source->safe_psql('postgres', "SELECT payment_sync.pending_changes('rare')"), 1, 'it is one change');

# Uncommitted and rolled back ones are none.
$session->query("BEGIN; INSERT INTO rare SELECT i FROM generate_series(2, 100) i; ROLLBACK");
$session->query("BEGIN; INSERT INTO rare SELECT i FROM generate_series(2, 10000) i");
is($source->safe_psql('postgres', "SELECT payment_sync.pending_changes('rare')"), 1, 'still');
$session->query('ROLLBACK');

# ------------------------------------------------------------- the view

my $first = $source->safe_psql('postgres', 'SELECT "position", key FROM payment_sync.changes LIMIT 1');
like($first, qr/\|\{"id": 1\}$/, 'the first change is shown');
my $usage = $source->safe_psql('postgres', <<'SQL');
SET work_mem = '64kB';
EXPLAIN (ANALYZE, BUFFERS, TIMING off, COSTS off, SUMMARY off) SELECT * FROM payment_sync.changes LIMIT 1
SQL
unlike($usage, qr/temp/, 'without temporary files');
like($usage, qr/ProjectSet \(actual rows=1(\.00)? /, 'and no more than it is made');
is($source->safe_psql('postgres', <<'SQL'), 't|t', 'all of them, in order');
SELECT count(*) = count(DISTINCT key ->> 'id') + 1, bool_and("position" > before) FROM (
	SELECT key, "position", lag("position", 1, 0::bigint) OVER () AS before FROM payment_sync.changes) c
SQL
is($source->safe_psql('postgres', <<'SQL'), "1\n2\n3", 'a cursor goes on where it was');
BEGIN;
DECLARE c CURSOR FOR SELECT key ->> 'id' FROM payment_sync.changes;
FETCH 1 FROM c;
SAVEPOINT s;
FETCH 1 FROM c;
FETCH 1 FROM c;
COMMIT;
SQL

# A change of many pages counts once, and nothing is left when it is acknowledged.
$session->query("SELECT payment_sync.enable_sync('rare', start => 'now')");
$session->query("INSERT INTO rare SELECT 200000, string_agg(md5(i::text), '') FROM generate_series(1, 5000) i");
is(lag('rare', "lag_changes || ' ' || (lag_bytes > 100000)"), '1 true', 'a large one is one');
$session->query("SELECT payment_sync.ack_changes('rare', position) FROM payment_sync.fetch_changes('rare', 10)");
is(lag('rare'), 0, 'acknowledged, it is none');

$session->quit;
done_testing();
