# Reconciliation finds what differs and nothing else: kinds of differences,
# keys of all sorts, types and what counts as equal, servers that differ in
# encoding, collation and time zone, parts, tolerance, rights.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = start_source('source', conf => "timezone = 'Asia/Tokyo'\ndatestyle = 'German'\n");
my $target = start_target('target', conf => "timezone = 'America/Caracas'\nextra_float_digits = 0\n");
$target->safe_psql('postgres', 'CREATE ROLE reader LOGIN');

# found(SYNC, TABLE, [ARGUMENTS]): what a run of it finds, as text
sub found
{
	my ($sync, $table, $arguments) = @_;
	$arguments = $arguments ? ", $arguments" : '';
	my $run = $source->safe_psql('postgres',
		"SELECT run FROM payment_sync.reconcile('$sync', '$table'$arguments)");
	return $source->safe_psql('postgres', <<SQL);
SELECT kind || ' ' || (SELECT string_agg(value, ',' ORDER BY key) FROM jsonb_each_text(key)) ||
	CASE kind WHEN 'different' THEN ' ' || columns::text ELSE '' END
FROM payment_sync.discrepancies WHERE run = $run ORDER BY 1
SQL
}

sub counts
{
	my ($sync, $table, $arguments) = @_;
	$arguments = $arguments ? ", $arguments" : '';
	return $source->safe_psql('postgres',
		"SELECT source_rows, target_rows, matched, missing, unexpected, different, in_flight
		 FROM payment_sync.reconcile('$sync', '$table'$arguments)");
}

sub division
{
	return $source->safe_psql('postgres',
		'SELECT division FROM payment_sync.reconciliations ORDER BY run DESC LIMIT 1');
}

# ------------------------------------------------------------------ by range
my $rows = 60000;
my $schema = 'CREATE TABLE pay (id bigint PRIMARY KEY, amount numeric(12,2), note text)';
for my $node ($source, $target)
{
	$node->safe_psql('postgres', $schema);
	# gaps and skew: most ids lie close together, some far out
	$node->safe_psql('postgres', <<SQL);
INSERT INTO pay SELECT CASE WHEN i % 100 = 0 THEN i::bigint * 1000000 ELSE i END, i, 'no ' || i
FROM generate_series(1, $rows) i;
ANALYZE pay;
SQL
}
$target->safe_psql('postgres', 'GRANT SELECT ON pay TO reader');
connect_target($source, $target);
$source->safe_psql('postgres', <<SQL);
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target');
SQL

is(counts('pay', 'pay'), "$rows|$rows|$rows|0|0|0|0", 'identical tables');
is(division(), 'range', 'divided by ranges of the key');
is(found('pay', 'pay'), '', 'no discrepancy');

my $planted = <<SQL;
DELETE FROM pay WHERE id IN (1, 30001, ${rows}000000);
INSERT INTO pay VALUES (-1, 1, 'x'), (100, 2, 'y'), (${rows}000001, 3, 'z');
UPDATE pay SET amount = amount + 0.01 WHERE id = 2;
UPDATE pay SET note = NULL WHERE id = 777;
UPDATE pay SET amount = amount + 1 WHERE id = 40001;
UPDATE pay SET amount = amount - 1 WHERE id = 40002;
SQL
my $expected = join "\n", sort(
	'missing 1', 'missing 30001', "missing ${rows}000000",
	'unexpected -1', 'unexpected 100', "unexpected ${rows}000001",
	'different 2 {amount}', 'different 777 {note}',
	'different 40001 {amount}', 'different 40002 {amount}');
$target->safe_psql('postgres', $planted);
is(found('pay', 'pay'), $expected, 'planted differences, and no others');
is(counts('pay', 'pay'), "$rows|$rows|" . ($rows - 7) . '|3|3|4|0', 'counted');
cmp_ok($source->safe_psql('postgres',
	'SELECT rows_moved FROM payment_sync.reconciliations ORDER BY run DESC LIMIT 1'),
	'<', 1000, 'few rows were moved');
is(found('pay', 'pay', "digest => 'sha256'"), $expected, 'the same with sha256');
is(found('pay', 'pay', "condition => 'id BETWEEN 0 AND 1000'"),
	join("\n", sort grep { /\b(1|2|100|777)\b(?!0)/ && !/-1/ } split /\n/, $expected),
	'a part, by a condition');
is(found('pay', 'pay', "key_after => '{1}', key_upto => '{777}'"),
	join("\n", sort 'different 2 {amount}', 'different 777 {note}', 'unexpected 100'),
	'a part, by a range of keys');
is(found('pay', 'pay', q{tolerance => '{"amount": 0.01}'}),
	join("\n", sort grep { !/^different 2 / } split /\n/, $expected),
	'a tolerance');
is($source->safe_psql('postgres', <<'SQL'), 't|t|t', 'both rows, and the age, are shown');
SELECT source->>'amount' = '2.00' AND target->>'amount' = '2.01', first_run < run,
	first_seen < last_seen
FROM payment_sync.discrepancies WHERE key = '{"id": 2}'
SQL

# mended at the target: the next run says so
$target->safe_psql('postgres', 'UPDATE pay SET amount = amount - 0.01 WHERE id = 2');
is(found('pay', 'pay', q{condition => 'id > 2'}), join("\n", grep { !/ (-?1|2)( |$)/ } split /\n/, $expected),
	'a partial run');
is($source->safe_psql('postgres',
	q{SELECT state FROM payment_sync.discrepancies WHERE key = '{"id": 2}'}), 'open',
	'does not tell what became of the rest');
unlike(found('pay', 'pay'), qr/different 2 /, 'a full run');
is($source->safe_psql('postgres',
	q{SELECT state FROM payment_sync.discrepancies WHERE key = '{"id": 2}'}), 'gone',
	'does');

# everything missing: more differences than rows in a cell
$target->safe_psql('postgres', 'CREATE TABLE kept AS TABLE pay; TRUNCATE pay');
is(counts('pay', 'pay'), "$rows|0|0|$rows|0|0|0", 'an empty target');
$target->safe_psql('postgres', 'INSERT INTO pay TABLE kept');
# the target has far more rows in a range than the source
$target->safe_psql('postgres', <<SQL);
INSERT INTO pay SELECT 70000 + i, i, 'more' FROM generate_series(1, 20000) i
SQL
is(counts('pay', 'pay'), join('|', $rows, $rows + 20000, $rows - 6, 3, 20003, 3, 0),
	'a crowd at the target alone');
$target->safe_psql('postgres', 'TRUNCATE pay');
$target->safe_psql('postgres', "INSERT INTO pay SELECT CASE WHEN i % 100 = 0 THEN i::bigint * 1000000 ELSE i END, i, 'no ' || i FROM generate_series(1, $rows) i");

# ------------------------------------------------------- a role that may read
$source->safe_psql('postgres', <<SQL);
CREATE SERVER target_ro FOREIGN DATA WRAPPER payment_sync_postgres
	OPTIONS (host '@{[$target->host]}', port '@{[$target->port]}', dbname 'postgres');
CREATE USER MAPPING FOR CURRENT_USER SERVER target_ro OPTIONS (user 'reader');
SQL
is(counts('pay', 'pay', "server => 'target_ro'"), "$rows|$rows|$rows|0|0|0|0",
	'a role that may only SELECT');

# -------------------------------------------------- time-out, cancel, rights
my ($ret, $out, $err) = $source->psql('postgres',
	"SET statement_timeout = '1ms'; SELECT * FROM payment_sync.reconcile('pay')");
like($err, qr/statement timeout/, 'statement_timeout is honoured');
is($source->safe_psql('postgres',
	"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 5"), '0',
	'and nothing stays locked');
($ret, $out, $err) = $source->psql('postgres', <<'SQL');
BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT * FROM payment_sync.reconcile('pay');
SQL
like($err, qr/READ COMMITTED/, 'needs to see what is committed');
($ret, $out, $err) = $source->psql('postgres', <<'SQL');
BEGIN; UPDATE pay SET note = 'mine' WHERE id = 5; SELECT * FROM payment_sync.reconcile('pay');
SQL
like($err, qr/has changed captured tables/, 'own uncommitted changes are refused');
$source->safe_psql('postgres', 'CREATE ROLE stranger LOGIN');
for my $call ("reconcile('pay')", "start_reconciliation('pay')")
{
	($ret, $out, $err) = $source->psql('postgres',
		"SET ROLE stranger; SELECT payment_sync.$call");
	like($err, qr/must be owner|does not exist/, "a stranger may not $call");
}
is($source->safe_psql('postgres',
	'SET ROLE stranger; SELECT count(*) FROM payment_sync.discrepancies'), '0',
	'nor see rows');
($ret, $out, $err) = $source->psql('postgres', "SELECT payment_sync.reconcile('pay', 'pg_class')");
like($err, qr/no such table/, 'a table that the sync lacks');
($ret, $out, $err) = $source->psql('postgres', "SELECT payment_sync.reconcile('pay', digest => 'md5')");
like($err, qr/invalid digest/, 'a digest that there is not');

# row security at the target is an error, not a filter
$target->safe_psql('postgres', 'ALTER TABLE pay ENABLE ROW LEVEL SECURITY');
($ret, $out, $err) = $source->psql('postgres',
	"SELECT * FROM payment_sync.reconcile('pay', server => 'target_ro')");
like($err, qr/row-level security|row security/i, 'rows are never filtered silently');
$target->safe_psql('postgres', 'ALTER TABLE pay DISABLE ROW LEVEL SECURITY');

# --------------------------------------------------------------- kinds of keys
$target->safe_psql('postgres', <<'SQL');
CREATE DATABASE latin1 TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C';
SQL
$target->safe_psql('latin1', 'GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader');
connect_target($source, $target, server => 'latin1', db => 'latin1');

my %keys = (
	by_text => [ 'id text', "'no ' || i" ],
	by_c_text => [ 'id text COLLATE "C"', "'no ' || i" ],
	by_umlaut => [ 'id text', "E'\\u00e4\\u00df ' || i" ],
	by_uuid => [ 'id uuid', "md5(i::text)::uuid" ],
	by_time => [ 'id timestamptz', "'2026-03-29 00:00:00+00'::timestamptz + i * interval '1 min'" ],
	by_numeric => [ 'id numeric', "i / 8.0" ],
	by_bool => [ 'half boolean, id int', 'i % 2 = 0, i' ],
	by_two => [ 'merchant int, id text', "i % 7, 'no ' || i" ],
	by_two_c => [ 'merchant int, at timestamptz', "i % 7, '2026-01-01 00:00:00+00'::timestamptz + i * interval '1 s'" ],
	by_char => [ 'currency char(5), id int', "'EUR', i" ],
	by_c_char => [ 'currency char(5) COLLATE "C", id int', "'EU' || i % 7, i" ],
	by_bit => [ 'id bit(20)', 'i::bit(20)' ],
	by_odd => [ '"Odd "" name" int, i int', 'i, i' ]);
my $n = 20000;
for my $table (sort keys %keys)
{
	my ($columns, $values) = @{ $keys{$table} };
	my $names = join ', ', map { /^("(?:[^"]|"")*"|\w+)/ } split /, (?=[\w"])/, $columns;
	my $create = "CREATE TABLE $table ($columns, v numeric, PRIMARY KEY ($names));
		INSERT INTO $table SELECT $values, i FROM generate_series(1, $n) i; ANALYZE $table";
	$source->safe_psql('postgres', $create);
	$target->safe_psql('postgres', $create);
	$target->safe_psql('latin1', $create);
	$source->safe_psql('postgres', <<SQL);
SELECT payment_sync.capture_table('$table');
SELECT payment_sync.create_sync('$table', '{$table}', server => 'target');
SELECT payment_sync.create_sync('${table}_latin1', '{$table}', server => 'latin1');
SQL
	for my $sync ($table, "${table}_latin1")
	{
		my $db = $sync =~ /latin1/ ? 'latin1' : 'postgres';
		is(counts($sync, $table), "$n|$n|$n|0|0|0|0", "$sync: identical");
		my $division = division();
		$target->safe_psql($db, "UPDATE $table SET v = v + 1 WHERE v IN (1, 10000);
			DELETE FROM $table WHERE v IN (77, 15000)");
		is(counts($sync, $table), join('|', $n, $n - 2, $n - 4, 2, 0, 2, 0),
			"$sync: differences, by $division");
	}
}
is($source->safe_psql('postgres', <<'SQL'), "by_c_char|range\nby_c_text|range\nby_time|range\nby_two_c|range\nby_umlaut_latin1|hash\nby_uuid|range", 'cells are ranges where both sides sort alike, else hashes');
SELECT DISTINCT sync, division FROM payment_sync.reconciliations
WHERE sync IN ('by_c_char', 'by_c_text', 'by_time', 'by_two_c', 'by_uuid', 'by_umlaut_latin1') ORDER BY 1
SQL

# many differences, by keys that are evenly spread, skewed, and no numbers
for my $table ('pay', 'by_uuid', 'by_two_c')
{
	my ($column, $all, $key) = $table eq 'pay' ? ('amount', $rows, 'id') : ('v', $n, 'v');
	$target->safe_psql('postgres', "CREATE TABLE before_$table AS TABLE $table; TRUNCATE $table");
	$target->safe_psql('postgres', "INSERT INTO $table " . ($table eq 'pay' ? 'TABLE before_pay' :
		"SELECT $keys{$table}[1], i FROM generate_series(1, $n) i"));
	my $expected = $target->safe_psql('postgres', <<SQL);
WITH changed AS (UPDATE $table SET $column = $column - 0.5 WHERE hash_numeric(${key}::numeric) % 50 = 3 RETURNING 1),
	gone AS (DELETE FROM $table WHERE hash_numeric(${key}::numeric) % 500 = 7 RETURNING 1)
SELECT concat_ws('|', $all, $all - g, $all - g - c, g, 0, c, 0)
FROM (SELECT count(*) AS c FROM changed) c, (SELECT count(*) AS g FROM gone) g
SQL
	is(counts($table, $table), $expected, "$table: many differences");
	is(counts($table, $table, "digest => 'sha256'"), $expected, "$table: with sha256");
	my ($missing, $different) = (split /\|/, $expected)[3, 5];
	cmp_ok($source->safe_psql('postgres',
		'SELECT rows_moved FROM payment_sync.reconciliations ORDER BY run DESC LIMIT 1'),
		'<', 60 * ($missing + $different), "$table: rows moved are in proportion to them");
}
$target->safe_psql('postgres', 'TRUNCATE pay; INSERT INTO pay TABLE before_pay');

# a key that does not fit into the source's type
$source->safe_psql('postgres', 'CREATE TABLE narrow (id int PRIMARY KEY); INSERT INTO narrow VALUES (1), (2)');
$target->safe_psql('postgres', 'CREATE TABLE narrow (id bigint PRIMARY KEY); INSERT INTO narrow VALUES (1), (5000000000)');
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('narrow');
SELECT payment_sync.create_sync('narrow', '{narrow}', server => 'target');
SQL
is(found('narrow', 'narrow'), "missing 2\nunexpected 5000000000",
	'a key beyond the range of the type at the source');

# ------------------------------------------------------------ what is equal
# the same values, written in other ways or as other types
$source->safe_psql('postgres', <<'SQL');
CREATE TABLE kinds (id int PRIMARY KEY, num numeric, num2 numeric(10,2), f4 float4, f8 float8,
	c char(10), vc varchar(20), j json, jb jsonb, ts timestamp, tz timestamptz, iv interval,
	i4 int, arr numeric[], by bytea, b bool, u uuid, r int4range, x text);
INSERT INTO kinds VALUES
	(1, 1.0, 1.5, -0.0, 0.1, 'EUR', 'a', '{"a":1}', '{"a":1.0,"b":2}', '2026-01-01', '2026-01-01 00:00:00+00',
	 '1 day', 5, '{1.0,2}', '\xff', true, '00000000-0000-0000-0000-000000000001', '[1,3)', 'ä"\,('),
	(2, 'NaN', 1, 'NaN', 'Infinity', '', '', 'null', 'null', 'infinity', '-infinity', '-3 days', -1, '{}', '', false, NULL, 'empty', ''),
	(3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
SQL
$target->safe_psql('postgres', <<'SQL');
CREATE TABLE kinds (x text, id bigint PRIMARY KEY, num numeric, num2 numeric, f4 float4, f8 float8,
	c varchar(12), vc text, j json, jb jsonb, ts timestamp, tz timestamptz, iv interval,
	i4 bigint, arr numeric[], by bytea, b bool, u uuid, r int4range);
INSERT INTO kinds VALUES
	('ä"\,(', 1, 1.000, 1.50, 0, 0.1, 'EUR', 'a', '{"a":1}', '{"b":2,"a":1}', '2026-01-01', '2025-12-31 20:00:00-04',
	 '24:00:00', 5, '{1,2.0}', '\xff', true, '00000000-0000-0000-0000-000000000001', '[1,2]'),
	('', 2, 'NaN', 1.0, 'NaN', 'Infinity', '', '', 'null', 'null', 'infinity', '-infinity', '-3 days', -1, '{}', '', false, NULL, 'empty'),
	(NULL, 3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
SQL
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('kinds');
SELECT payment_sync.create_sync('kinds', '{kinds}', server => 'target');
SQL
is(found('kinds', 'kinds'), '', 'values that are equal to their types');
$target->safe_psql('postgres', <<'SQL');
UPDATE kinds SET num = 1.0000001, num2 = 1.501, f4 = 1e-30, f8 = 0.1000000000000001, c = 'EUR x',
	vc = 'a ', j = '{"a": 1}', jb = '{"a":1,"b":"2"}', ts = ts + interval '1 us',
	tz = tz + interval '1 us', iv = iv + interval '1 us', i4 = 6, arr = '{1}', by = '\xfe',
	b = false, u = NULL, r = '[1,2)', x = 'ae' WHERE id = 1;
SQL
is(found('kinds', 'kinds'),
	'different 1 {num,num2,f4,f8,c,vc,j,jb,ts,tz,iv,i4,arr,by,b,u,r,x}',
	'each column that differs is named');

# strings next to each other: where one ends and the next begins, nulls, bars
my @strings = (
	[ 'a,b', q{'ab','c',NULL,'d','e'}, q{'a','bc',NULL,'d','e'} ],
	[ 'b,c', q{'a','bc','d','e','f'}, q{'a','b','cd','e','f'} ],
	[ 'c,d', q{'a','b','cd','e','f'}, q{'a','b','c','de','f'} ],
	[ 'd,e', q{'a','b','c','de','f'}, q{'a','b','c','d','ef'} ],
	[ 'a,b', q{'a|b','c','d','e','f'}, q{'a','b|c','d','e','f'} ],
	[ 'd,e', q{'a','b','c','d|e','f'}, q{'a','b','c','d','e|f'} ],
	[ 'b', q{'a',NULL,'c','d','e'}, q{'a','','c','d','e'} ],
	[ 'c', q{'a','b',NULL,'d','e'}, q{'a','b','','d','e'} ],
	[ 'd', q{'a','b','c',NULL,'e'}, q{'a','b','c','','e'} ],
	[ 'b,c', q{'a',NULL,'b','c','d'}, q{'a','b',NULL,'c','d'} ],
	[ 'c,d', q{'a','b',NULL,'c','d'}, q{'a','b','c',NULL,'d'} ],
	[ 'b,c', q{'a','1','2','c','d'}, q{'a','12','','c','d'} ]);
for my $column (1, 2)
{
	my $values = join ', ', map { "($_, $strings[$_][$column])" } 0 .. $#strings;
	($column == 1 ? $source : $target)->safe_psql('postgres', <<SQL);
CREATE TABLE strings (id int PRIMARY KEY, a text NOT NULL, b text, c varchar, d text, e text NOT NULL);
INSERT INTO strings VALUES $values;
SQL
}
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('strings');
SELECT payment_sync.create_sync('strings', '{strings}', server => 'target');
SQL
for my $digest ('hash', 'sha256')
{
	is(found('strings', 'strings', "digest => '$digest'"),
		join("\n", sort map { "different $_ {$strings[$_][0]}" } 0 .. $#strings),
		"strings are told apart, $digest");
}

# ---------------------------------------------------------- any two relations
$source->safe_psql('postgres', <<'SQL');
CREATE TABLE word (w text);
INSERT INTO word VALUES ('a'), (NULL);
CREATE TABLE other_word (w text);
INSERT INTO other_word VALUES ('a'), ('');
SQL
is($source->safe_psql('postgres', <<'SQL'), '1|1|1', 'null is not empty, even alone');
SELECT matched, missing, unexpected
FROM payment_sync.reconcile_with('word', 'other_word', key => '{w}')
SQL
$source->safe_psql('postgres', <<'SQL');
CREATE TABLE settlement (reference text, gross numeric, cur text);
INSERT INTO settlement SELECT 'no ' || i, i, 'EUR' FROM generate_series(1, 1000) i;
CREATE TABLE ours (ref text PRIMARY KEY, amount numeric(12,2), currency char(3), internal text);
INSERT INTO ours SELECT 'no ' || i, i, 'EUR', 'x' FROM generate_series(1, 1000) i;
UPDATE settlement SET gross = gross + 1 WHERE reference = 'no 7';
DELETE FROM settlement WHERE reference = 'no 8';
INSERT INTO settlement VALUES ('no 9', 9, 'EUR'), ('stray', 1, 'EUR');
SQL
is($source->safe_psql('postgres', <<'SQL'), '1000|1001|998|1|2|1', 'a file that was loaded into a table');
SELECT source_rows, target_rows, matched, missing, unexpected, different
FROM payment_sync.reconcile_with('ours', 'settlement', key => '{ref}',
	columns => '{ref,amount,currency}', other_columns => '{reference,gross,cur}')
SQL
is($source->safe_psql('postgres', <<'SQL'), "different|no 7\nmissing|no 8\nunexpected|no 9\nunexpected|stray", 'its differences');
SELECT kind, key->>'ref' FROM payment_sync.discrepancies WHERE other = 'settlement'::regclass ORDER BY 1, 2
SQL
# amounts in a file of text: those are equal whose numbers are
$source->safe_psql('postgres', <<'SQL');
CREATE TABLE raw_file (reference text, gross varchar(20));
INSERT INTO raw_file SELECT ref, amount FROM ours;
UPDATE raw_file SET gross = '10.50' WHERE reference = 'no 10';
UPDATE ours SET amount = 10.5 WHERE ref = 'no 10';
UPDATE raw_file SET gross = '110.00' WHERE reference = 'no 11';
UPDATE raw_file SET gross = 'twelve' WHERE reference = 'no 12';
UPDATE raw_file SET gross = NULL WHERE reference = 'no 13';
UPDATE raw_file SET gross = '1' WHERE reference = 'no 100';
SQL
is($source->safe_psql('postgres', <<'SQL'), '996|4', 'amounts of a file of text');
SELECT matched, different
FROM payment_sync.reconcile_with('ours', 'raw_file', key => '{ref}',
	columns => '{ref,amount}', other_columns => '{reference,gross}')
SQL
($ret, $out, $err) = $source->psql('postgres',
	"SET ROLE stranger; SELECT * FROM payment_sync.reconcile_with('ours', 'settlement', key => '{ref}', columns => '{ref}', other_columns => '{reference}')");
like($err, qr/permission denied/, 'who may not read may not compare');
($ret, $out, $err) = $source->psql('postgres',
	"SELECT * FROM payment_sync.reconcile_with('settlement', 'ours')");
like($err, qr/no primary key/, 'a key is needed');

# a foreign table
$source->safe_psql('postgres', <<SQL);
CREATE EXTENSION postgres_fdw;
CREATE SERVER fdw FOREIGN DATA WRAPPER postgres_fdw
	OPTIONS (host '@{[$target->host]}', port '@{[$target->port]}', dbname 'postgres');
CREATE USER MAPPING FOR CURRENT_USER SERVER fdw OPTIONS (user '@{[$target->safe_psql('postgres', 'SELECT current_user')]}');
CREATE FOREIGN TABLE pay_there (id bigint, amount numeric(12,2), note text) SERVER fdw OPTIONS (table_name 'pay');
SQL
$target->safe_psql('postgres', "UPDATE pay SET note = 'x' WHERE id = 3");
is($source->safe_psql('postgres',
	"SELECT matched, different FROM payment_sync.reconcile_with('pay', 'pay_there')"),
	($rows - 1) . '|1', 'a foreign table');

# -------------------------------------------------------------- a large table
# so large that ranges are joined at first
$rows = 2_600_000;
for my $node ($source, $target)
{
	$node->safe_psql('postgres', <<SQL);
CREATE TABLE large (id int, v int);
INSERT INTO large SELECT i, i FROM generate_series(1, $rows) i;
ALTER TABLE large ADD PRIMARY KEY (id);
ANALYZE large;
SQL
}
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('large');
SELECT payment_sync.create_sync('large', '{large}', server => 'target');
SQL
is(counts('large', 'large'), "$rows|$rows|$rows|0|0|0|0", 'a large table');
cmp_ok($source->safe_psql('postgres',
	'SELECT rows_moved FROM payment_sync.reconciliations ORDER BY run DESC LIMIT 1'),
	'<', 260, 'needs no more checksums than a small one');
$target->safe_psql('postgres', <<SQL);
UPDATE large SET v = 0 WHERE id IN (1, 1234567, 1234568);
DELETE FROM large WHERE id IN (900000, $rows);
INSERT INTO large VALUES (0, 0);
SQL
is(found('large', 'large'), join("\n", sort 'different 1 {v}', 'different 1234567 {v}',
	'different 1234568 {v}', 'missing 900000', "missing $rows", 'unexpected 0'),
	'its differences');

done_testing();
