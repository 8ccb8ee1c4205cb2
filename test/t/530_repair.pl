# Mending what reconciliation has found, accepting what may stay, and control
# totals.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use IPC::Run;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = start_source('source');
my $target = start_target('target');
my $schema = <<'SQL';
CREATE TABLE pay (id bigint PRIMARY KEY, amount numeric(14,4), currency char(3), f float8,
	created_at timestamptz, secret text);
CREATE TABLE part (region text, id int, v text, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
CREATE TABLE part_eu PARTITION OF part FOR VALUES IN ('eu');
CREATE TABLE part_us PARTITION OF part FOR VALUES IN ('us');
SQL
$target->safe_psql('postgres', 'CREATE DATABASE second');
$source->safe_psql('postgres', $schema);
$target->safe_psql($_, $schema) for ('postgres', 'second');
$source->safe_psql('postgres', <<'SQL');
INSERT INTO pay SELECT i, i + 0.0001, CASE WHEN i % 3 = 0 THEN 'USD' ELSE 'EUR' END, i / 3.0,
	'2026-05-01 00:00:00+00'::timestamptz + i * interval '1 min', 'secret ' || i
FROM generate_series(1, 5000) i;
INSERT INTO part SELECT CASE i % 2 WHEN 0 THEN 'eu' ELSE 'us' END, i, 'v ' || i FROM generate_series(1, 1000) i;
SQL
connect_target($source, $target);
connect_target($source, $target, server => 'second', db => 'second');
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('pay', columns => '{id,amount,currency,f,created_at}');
SELECT payment_sync.capture_table('part');
SELECT payment_sync.create_sync('first', '{pay,part}', server => 'target', batch => true);
SELECT payment_sync.create_sync('second', '{pay,part}', server => 'second', batch => true);
SELECT payment_sync.create_sync('puller', '{pay}');
SQL
wait_delivered($source, $_) for ('first', 'second');

my $plant = <<'SQL';
UPDATE pay SET amount = 0 WHERE id = 10;
DELETE FROM pay WHERE id = 11;
INSERT INTO pay VALUES (9999, 1, 'EUR'), (9998, 1, 'EUR');
DELETE FROM part WHERE id = 20;
INSERT INTO part VALUES ('us', 5000, 'stray');
SQL
$target->safe_psql($_, $plant) for ('postgres', 'second');

sub open_breaks
{
	my ($sync) = @_;
	$source->safe_psql('postgres', "SELECT count(*) FROM payment_sync.reconcile('$sync')");
	return $source->safe_psql('postgres',
		"SELECT count(*) FROM payment_sync.discrepancies WHERE sync = '$sync' AND state = 'open'");
}

is(open_breaks('first'), '6', 'planted');
is(open_breaks('second'), '6', 'planted at both');

my $events = <<'SQL';
SELECT "table", kind, key->>'id', operation, "row"->>'amount', "row" ? 'secret'
FROM payment_sync.repair('first', dry_run => %s) ORDER BY "table"::text, (key->>'id')::int
SQL
my $expected = join "\n",
	'part|missing|20|update||f',
	'part|unexpected|5000|delete||',
	'pay|different|10|update|10.0001|f',
	'pay|missing|11|update|11.0001|f',
	'pay|unexpected|9998|delete||',
	'pay|unexpected|9999|delete||';
is($source->safe_psql('postgres', sprintf $events, 'true'), $expected, 'a dry run shows the events');
is($source->safe_psql('postgres', 'SELECT count(*) FROM payment_sync.changes'), '0', 'and logs none');

is($source->safe_psql('postgres', sprintf $events, 'false'), $expected, 'repair does what it said');
wait_delivered($source, $_) for ('first', 'second');
same_rows($source, $target, 'SELECT id, amount, currency, f, created_at FROM pay', 'the target is mended');
same_rows($source, $target, 'SELECT * FROM part', 'so is a partitioned table');
is($source->safe_psql('postgres', "SELECT count(*) FROM payment_sync.fetch_changes('puller')"), '0',
	'no other consumer sees the repair');
is(open_breaks('first'), '0', 'nothing is left');
is($source->safe_psql('postgres', <<'SQL'), '6|t|t', 'all are repaired, and by whom is known');
SELECT count(*), bool_and(state = 'repaired'), bool_and(changed_by = current_user)
FROM payment_sync.discrepancies WHERE sync = 'first'
SQL
is(open_breaks('second'), '6', 'the other sync has its discrepancies still');

# a role that may only read, the position included, sees what there is to see
$target->safe_psql('second', <<'SQL');
CREATE ROLE reader LOGIN;
GRANT USAGE ON SCHEMA payment_sync_target TO reader;
GRANT SELECT ON ALL TABLES IN SCHEMA payment_sync_target, public TO reader;
SQL
$source->safe_psql('postgres', <<SQL);
CREATE SERVER second_ro FOREIGN DATA WRAPPER payment_sync_postgres
	OPTIONS (host '@{[$target->host]}', port '@{[$target->port]}', dbname 'second');
CREATE USER MAPPING FOR CURRENT_USER SERVER second_ro OPTIONS (user 'reader');
SQL
is($source->safe_psql('postgres',
	"SELECT sum(missing + unexpected + different), sum(in_flight) FROM payment_sync.reconcile('second', server => 'second_ro')"),
	'6|0', 'through a role that may only SELECT');

# what happens between finding and mending counts
$source->safe_psql('postgres', <<'SQL');
INSERT INTO pay VALUES (9999, 77, 'EUR');
DELETE FROM pay WHERE id = 11;
UPDATE pay SET amount = 55 WHERE id = 10;
SQL
is($source->safe_psql('postgres', <<'SQL'), "10|update|55.0000\n11|none|\n9998|delete|\n9999|update|77.0000", 'the source as it is now');
SELECT key->>'id', operation, "row"->>'amount' FROM payment_sync.repair('second', rel => 'pay') ORDER BY 1
SQL
$source->safe_psql('postgres', "SELECT payment_sync.repair('second', rel => 'part')");
wait_delivered($source, $_) for ('first', 'second');
same_rows($source, $target, 'SELECT id, amount, currency, f, created_at FROM pay', 'mended',
	targetdb => 'second');
is(open_breaks('second'), '0', 'nothing is left there either');

# order: rows that others change while they are being repaired
my $script = "$PostgreSQL::Test::Utils::tmp_check/traffic.sql";
PostgreSQL::Test::Utils::append_to_file($script, <<'SQL');
\set id random(1, 50)
\set op random(1, 3)
\if :op = 1
DELETE FROM pay WHERE id = :id;
\elif :op = 2
INSERT INTO pay VALUES (:id, 1, 'EUR') ON CONFLICT DO NOTHING;
\else
UPDATE pay SET amount = amount + 1 WHERE id = :id;
\endif
SQL
my $traffic = IPC::Run::start(
	[ 'pgbench', '-n', '-c', '3', '-T', '600', '-f', $script,
		'-h', $source->host, '-p', $source->port, 'postgres' ],
	'>', "$script.out", '2>', "$script.err");
for my $round (1 .. 15)
{
	# row by row: what is delivered meanwhile locks rows in an order of its own
	$target->safe_psql('postgres', <<'SQL');
SELECT format(CASE WHEN i <= 25 THEN 'UPDATE pay SET f = 0 WHERE id = %1$s'
	WHEN i <= 40 THEN 'DELETE FROM pay WHERE id = %1$s'
	ELSE 'INSERT INTO pay VALUES (%1$s, 1) ON CONFLICT DO NOTHING' END, i)
FROM generate_series(1, 50) i \gexec
SQL
	$source->safe_psql('postgres', <<'SQL');
SELECT count(*) FROM payment_sync.reconcile('first', 'pay', condition => 'id <= 50', max_wait => '0.3 s');
SELECT count(*) FROM payment_sync.repair('first');
SQL
}
$traffic->kill_kill;
$source->safe_psql('postgres', "SELECT count(*) FROM payment_sync.reconcile('first', 'pay'); SELECT count(*) FROM payment_sync.repair('first')");
wait_delivered($source, 'first');
same_rows($source, $target, 'SELECT id, amount, currency, f, created_at FROM pay',
	'repairs amid changes to the same rows');

# -------------------------------------------------------------------- accept
$target->safe_psql('postgres', 'UPDATE pay SET amount = 1 WHERE id = 100; DELETE FROM pay WHERE id = 101');
is(open_breaks('first'), '2', 'two more');
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.accept_discrepancy(id, 'agreed with the bank') FROM payment_sync.discrepancies
WHERE key = '{"id": 100}' AND state = 'open'
SQL
is(open_breaks('first'), '1', 'an accepted one is not open');
is($source->safe_psql('postgres', <<'SQL'), 'accepted|agreed with the bank|t', 'with reason and name');
SELECT state, reason, changed_by = current_user FROM payment_sync.discrepancies
WHERE key = '{"id": 100}' AND state <> 'repaired'
SQL
is($source->safe_psql('postgres', "SELECT key->>'id' FROM payment_sync.repair('first', dry_run => true)"),
	'101', 'and is not repaired');
$target->safe_psql('postgres', 'UPDATE pay SET amount = 2 WHERE id = 100');
is(open_breaks('first'), '2', 'it is open again when it changes');
$source->safe_psql('postgres', 'CREATE ROLE stranger');
my ($ret, $out, $err) = $source->psql('postgres',
	"SET ROLE stranger; SELECT payment_sync.accept_discrepancy(max(id), 'x') FROM generate_series(1, 100) id");
like($err, qr/no open discrepancy/, 'strangers may not accept');
($ret, $out, $err) = $source->psql('postgres', "SET ROLE stranger; SELECT payment_sync.repair('first')");
like($err, qr/must be owner|does not exist/, 'nor repair');
$source->safe_psql('postgres', "SELECT count(*) FROM payment_sync.repair('first')");
wait_delivered($source, 'first');
is(open_breaks('first'), '0', 'all mended');

# -------------------------------------------------------------- control totals
is($source->safe_psql('postgres', <<'SQL'), '0|0', 'totals agree, to the last digit');
SELECT count(*) FILTER (WHERE difference <> 0), max(in_flight)
FROM payment_sync.control_totals('first', 'pay', '{currency,day(created_at)}', '{amount,f}')
SQL
is($source->safe_psql('postgres', <<'SQL'), 't', 'and are the table\'s');
SELECT sum(source) = (SELECT sum(amount) FROM pay)
FROM payment_sync.control_totals('first', 'pay', '{currency,day(created_at)}', '{amount,f}')
WHERE measure = 'sum(amount)'
SQL
$target->safe_psql('postgres', <<'SQL');
UPDATE pay SET amount = amount + 0.0001 WHERE id = 200;
DELETE FROM pay WHERE id = 300;
INSERT INTO pay VALUES (99999, 5, 'GBP');
SQL
is($source->safe_psql('postgres', <<'SQL'), "EUR|count|0\nEUR|sum(amount)|0.0001\nGBP|count|1\nGBP|sum(amount)|5.0000\nUSD|count|-1\nUSD|sum(amount)|-300.0001", 'differences by group');
SELECT "group"->>'currency', measure, difference
FROM payment_sync.control_totals('first', 'pay', '{currency}', '{amount}') ORDER BY 1, 2
SQL
is($source->safe_psql('postgres', <<'SQL'), '2026-05-01|count|0', 'by day');
SELECT "group"->>'day(created_at)', measure, difference
FROM payment_sync.control_totals('first', 'pay', '{day(created_at)}', condition => 'id < 100') LIMIT 1
SQL
($ret, $out, $err) = $source->psql('postgres',
	"SELECT * FROM payment_sync.control_totals('first', 'pay', '{secret}')");
like($err, qr/not delivered/, 'columns that are not captured are not read');
($ret, $out, $err) = $source->psql('postgres',
	"SELECT * FROM payment_sync.control_totals('first', 'pay', '{}', '{currency}')");
like($err, qr/cannot sum up/, 'only numbers can be summed up');
$source->safe_psql('postgres', "SELECT payment_sync.disable_sync('first'); UPDATE pay SET amount = 0 WHERE id = 3000");
is($source->safe_psql('postgres', <<'SQL'), '1', 'what is on its way is counted');
SELECT max(in_flight) FROM payment_sync.control_totals('first', 'pay', '{}', '{amount}', max_wait => '0')
SQL

done_testing();
