# No false alarms: reconciliation runs again and again while clients insert,
# update, delete and move rows as fast as they can, and the target follows.
# A healthy sync must never show a discrepancy; planted ones must be found
# amid the traffic, and nothing else.
#
# PSYNC_RECONCILE_RUNS says how many runs; 200 or more take minutes.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use IPC::Run;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $runs = $ENV{PSYNC_RECONCILE_RUNS} // 30;
my $source = start_source('source');
my $target = start_target('target');

# by_id is divided by ranges, by_text by hashes: its collation is not "C"
my $schema = <<'SQL';
CREATE TABLE by_id (id bigint PRIMARY KEY, amount numeric(12,2), at timestamptz DEFAULT now());
CREATE TABLE by_text (id text COLLATE "und-x-icu" PRIMARY KEY, amount numeric, at timestamptz DEFAULT now());
SQL
for my $node ($source, $target)
{
	$node->safe_psql('postgres', $schema);
}
$source->safe_psql('postgres', <<'SQL');
INSERT INTO by_id SELECT i, i FROM generate_series(1, 50000) i;
INSERT INTO by_text SELECT 'no ' || i, i FROM generate_series(1, 5000) i;
ANALYZE;
SQL
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('by_id'), payment_sync.capture_table('by_text');
SELECT payment_sync.create_sync('all', '{by_id,by_text}', server => 'target', batch => true);
SQL

# Rows beyond 20000, and 2000, are left alone: there is room for planting.
my $script = "$PostgreSQL::Test::Utils::tmp_check/traffic.sql";
PostgreSQL::Test::Utils::append_to_file($script, <<'SQL');
\set id random(1, 20000)
\set other random(1, 20000)
\set few random(1, 10)
\set t random(1, 2000)
\set op random(1, 10)
\if :op <= 4
UPDATE by_id SET amount = amount + 1, at = now() WHERE id = :id;
UPDATE by_id SET amount = amount + 1, at = now() WHERE id = :few;
\elif :op = 5
DELETE FROM by_id WHERE id = :id;
\elif :op = 6
INSERT INTO by_id VALUES (:id, 1) ON CONFLICT DO NOTHING;
\elif :op = 7
UPDATE by_id SET id = :other WHERE id = :id AND NOT EXISTS (SELECT FROM by_id WHERE id = :other);
\elif :op = 8
BEGIN;
UPDATE by_text SET amount = amount + 1, at = now() WHERE id = 'no ' || :t;
UPDATE by_id SET amount = amount - 1 WHERE id BETWEEN :id AND :id + 20;
COMMIT;
\elif :op = 9
INSERT INTO by_text VALUES ('no ' || :t, 1) ON CONFLICT (id) DO UPDATE SET amount = 1;
\else
DELETE FROM by_text WHERE id = 'no ' || :t;
\endif
SQL

# the copy is under way: rows that have not arrived are no discrepancies
is($source->safe_psql('postgres',
	"SELECT sum(missing + unexpected + different) FROM payment_sync.reconcile('all', max_wait => '0')"),
	'0', 'while the first copy is under way');
wait_delivered($source, 'all');

my $traffic = IPC::Run::start(
	[ 'pgbench', '-n', '-c', '3', '-T', '3600', '--max-tries', '100', '-f', $script,
		'-h', $source->host, '-p', $source->port, 'postgres' ],
	'>', "$script.out", '2>', "$script.err");

my ($alarms, $in_flight, $compared) = (0, 0, 0);
for my $run (1 .. $runs)
{
	my $wait = $run % 3 == 0 ? '0' : '0.2 s';
	my ($found, $moving, $rows) = split /\|/, $source->safe_psql('postgres', <<SQL);
SELECT sum(missing + unexpected + different), sum(in_flight), sum(source_rows)
FROM payment_sync.reconcile('all', max_wait => '$wait')
SQL
	$alarms += $found;
	$in_flight += $moving;
	$compared += $rows;
	diag("run $run: $found false alarms") if $found > 0;
}
is($alarms, 0, "no false alarm in $runs runs");
diag("$compared rows compared, $in_flight keys in flight");
is($source->safe_psql('postgres', 'SELECT count(*) FROM payment_sync.discrepancies'), '0',
	'and none was noted');
$source->poll_query_until('postgres',
	"SELECT changes > 1000 FROM payment_sync.stat_sync WHERE name = 'all'")
  or die 'no traffic';

# While nothing is delivered and rows change, keys must be in flight: else the
# runs above would have shown nothing.
$source->safe_psql('postgres', q{SELECT payment_sync.disable_sync('all')});
my $before = $source->safe_psql('postgres', 'SELECT pg_current_wal_lsn()');
$source->poll_query_until('postgres', "SELECT pg_current_wal_lsn() > '$before'::pg_lsn + 100000")
  or die 'no traffic';
my ($found, $moving) = split /\|/, $source->safe_psql('postgres',
	"SELECT sum(missing + unexpected + different), sum(in_flight) FROM payment_sync.reconcile('all', max_wait => '0')");
is($found, 0, 'no false alarm while the sync stands still');
cmp_ok($moving, '>', 0, 'and keys are in flight');
$source->safe_psql('postgres', q{SELECT payment_sync.enable_sync('all')});

# planted amid the traffic
$target->safe_psql('postgres', <<'SQL');
UPDATE by_id SET amount = 0 WHERE id IN (30000, 49999);
DELETE FROM by_id WHERE id IN (20100, 50000);
INSERT INTO by_id VALUES (60000, 1), (-1, 1);
UPDATE by_text SET amount = 0 WHERE id = 'no 4000';
DELETE FROM by_text WHERE id = 'no 5000';
INSERT INTO by_text VALUES ('stray', 1);
SQL
my $expected = join "\n", sort(
	'different 30000', 'different 49999', 'missing 20100', 'missing 50000',
	'unexpected 60000', 'unexpected -1', 'different no 4000', 'missing no 5000',
	'unexpected stray');
for my $run (1 .. 5)
{
	my $id = $source->safe_psql('postgres',
		"SELECT min(run) FROM payment_sync.reconcile('all', max_wait => '0.2 s')");
	is($source->safe_psql('postgres', <<SQL), $expected, "planted ones, run $run");
SELECT d FROM (SELECT kind || ' ' || (key->>'id') AS d
	FROM payment_sync.discrepancies WHERE run = $id) found ORDER BY d COLLATE "C"
SQL
}

$traffic->kill_kill;
wait_delivered($source, 'all');

# at rest, nothing is in flight
is($source->safe_psql('postgres',
	"SELECT sum(in_flight), sum(missing + unexpected + different) FROM payment_sync.reconcile('all')"),
	'0|9', 'at rest, all is decided');

# a target that cannot be written keeps its rows: late is not different
$source->safe_psql('postgres', "SELECT payment_sync.disable_sync('all')");
$source->safe_psql('postgres',
	"UPDATE by_id SET amount = amount + 1 WHERE id BETWEEN 21000 AND 21099; DELETE FROM by_text WHERE id = 'no 3000'");
is($source->safe_psql('postgres', <<'SQL'), '101|9', 'a late target has keys in flight, and its discrepancies');
SELECT sum(in_flight), sum(missing + unexpected + different)
FROM payment_sync.reconcile('all', max_wait => '0')
SQL
$source->safe_psql('postgres', "SELECT payment_sync.enable_sync('all')");
wait_delivered($source, 'all');
is($source->safe_psql('postgres',
	"SELECT sum(in_flight), sum(missing + unexpected + different) FROM payment_sync.reconcile('all')"),
	'0|9', 'which arrive');

done_testing();
