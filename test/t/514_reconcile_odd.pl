# 514_reconcile_odd.pl
#
# One odd value never ends a reconciliation, nor is it overlooked: files whose
# columns are declared NOT NULL and are not, keys and amounts that are none,
# nulls and doubled lines, JSON that jsonb cannot hold, keys whose types differ
# or come from an extension.  Each verdict on a file is compared with an outer
# join of the two relations' texts, at once and after a wait, which reads rows
# again by their keys.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = start_source('source');
my $target = start_target('target');
connect_target($source, $target);
my $file = PostgreSQL::Test::Utils::tempdir . '/file.csv';

sub sql { return $source->safe_psql('postgres', $_[0]) }

# ------------------------------------------------- NOT NULL that is not enforced

sql(<<SQL);
CREATE EXTENSION file_fdw;
CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
CREATE TABLE three (id int PRIMARY KEY, a text NOT NULL, b int NOT NULL, c date NOT NULL, d text);
INSERT INTO three SELECT i, 'a' || i, i, '2024-01-01', 'd' FROM generate_series(1, 200) i;
CREATE FOREIGN TABLE three_file (id int NOT NULL, a text NOT NULL, b int NOT NULL, c date NOT NULL, d text)
	SERVER files OPTIONS (filename '$file', format 'csv');
CREATE TABLE three_part (id int NOT NULL, a text NOT NULL, b int NOT NULL, c date NOT NULL, d text)
	PARTITION BY RANGE (id);
CREATE TABLE three_part1 PARTITION OF three_part FOR VALUES FROM (101) TO (1000);
CREATE FOREIGN TABLE three_part0 PARTITION OF three_part FOR VALUES FROM (-10) TO (101)
	SERVER files OPTIONS (filename '$file', format 'csv');
INSERT INTO three_part1 SELECT * FROM three WHERE id > 100;
SQL

sub write_file
{
	my ($upto, %line) = @_;
	open my $out, '>', $file or die;
	for my $id (1 .. $upto)
	{
		print $out ($line{$id} // "$id,a$id,$id,2024-01-01,d") . "\n";
	}
	close $out;
	return;
}

my $with = 'SELECT source_rows, target_rows, matched, missing, unexpected, different FROM payment_sync.reconcile_with';
for my $digest ('hash', 'sha256')
{
	write_file(200);
	is(sql("$with('three', 'three_file', digest => '$digest')"), '200|200|200|0|0|0', "$digest: an equal file");
	write_file(200, 7 => '7,,7,2024-01-01,d', 8 => '8,a8,,2024-01-01,d', 9 => '9,a9,9,,d', 10 => ',a10,10,2024-01-01,d');
	is(sql("$with('three', 'three_file', digest => '$digest')"), '200|200|196|1|1|3',
		"$digest: nulls in a file's NOT NULL columns");
	write_file(100, 7 => '7,,7,2024-01-01,d', 10 => '10,a10,10,,d');
	is(sql("$with('three', 'three_part', digest => '$digest')"), '200|200|198|0|0|2',
		"$digest: nulls in a foreign partition's");
}
# a null must not let its neighbours move into its place
sql(<<SQL);
CREATE TABLE shifted (id int PRIMARY KEY, a int, b int, c text, d text);
CREATE FOREIGN TABLE shifted_file (id int NOT NULL, a int NOT NULL, b int NOT NULL, c text NOT NULL, d text NOT NULL)
	SERVER files OPTIONS (filename '$file', format 'csv');
INSERT INTO shifted VALUES (1, NULL, 5, 'x', NULL), (2, 5, NULL, NULL, 'x');
SQL
write_file(2, 1 => '1,5,,x,', 2 => '2,5,,,x');
is(sql("$with('shifted', 'shifted_file')"), '2|2|1|0|0|1', 'a null is told from a value that moved');

# --------------------------------------------------------------- odd values

sql(<<'SQL');
CREATE TABLE pay (id bigint PRIMARY KEY, day date NOT NULL, amount numeric(12,2), at timestamptz, ok boolean, doc json, cur char(3));
INSERT INTO pay SELECT i, date '2024-01-01' + i::int, i * 1.10, timestamptz '2024-01-01 00:00:00+00' + i * interval '1 h',
	i % 2 = 0, json_build_object('n', i), 'EUR' FROM generate_series(1, 300) i;
CREATE TABLE clean AS SELECT id::text, day::text, amount::text, (at AT TIME ZONE 'UTC')::text || '+00' AS at, ok::text, doc::text, cur::text FROM pay;
CREATE TABLE odd (LIKE clean);
SQL

# what an outer join says, key and values by their texts; trailing zeros and the padding aside
my $expected = <<'SQL';
WITH s AS (SELECT id::text AS k, row_number() OVER (PARTITION BY id) AS n, (amount::text, ok::text)::text AS v FROM pay),
o AS (SELECT id AS k, row_number() OVER (PARTITION BY id) AS n,
	(CASE WHEN amount ~ '^[0-9]+[.][0-9]+$' THEN amount::numeric(20,2)::text ELSE amount END, CASE ok WHEN 't' THEN 'true' WHEN 'f' THEN 'false' ELSE ok END)::text AS v FROM odd)
SELECT (SELECT count(*) FROM s) || '|' || (SELECT count(*) FROM o) || '|' || count(*) FILTER (WHERE s.v = o.v) || '|' || count(*) FILTER (WHERE o.n IS NULL) || '|' ||
	count(*) FILTER (WHERE s.n IS NULL) || '|' || count(*) FILTER (WHERE s.v <> o.v OR s.n IS NOT NULL AND o.n IS NOT NULL AND s.v IS DISTINCT FROM o.v)
FROM s FULL JOIN o ON s.k = o.k AND s.n = o.n
SQL

my %odd = (
	'leading zeros in a key' => "UPDATE odd SET id = '00042' WHERE id = '42'",
	'a sign in a key' => "UPDATE odd SET id = '+42' WHERE id = '42'",
	'a blank in a key' => "UPDATE odd SET id = ' 42' WHERE id = '42'",
	'a blank key' => "UPDATE odd SET id = ' ' WHERE id = '42'",
	'an empty key' => "UPDATE odd SET id = '' WHERE id = '42'",
	'a null key' => "UPDATE odd SET id = NULL WHERE id = '42'",
	'null keys, doubled' => "UPDATE odd SET id = NULL WHERE id IN ('42', '43')",
	'a word for a key' => "UPDATE odd SET id = 'total' WHERE id = '42'",
	'a large number for a key' => "UPDATE odd SET id = '99999999999999999999999' WHERE id = '42'",
	'an exponent in a key' => "UPDATE odd SET id = '1e999999' WHERE id = '42'",
	'NaN for a key' => "UPDATE odd SET id = 'NaN' WHERE id = '42'",
	'a quote and a backslash in a key' => "UPDATE odd SET id = E'4\"\\\\''2' WHERE id = '42'",
	'braces and a comma in a key' => "UPDATE odd SET id = '{4,2}' WHERE id = '42'",
	'a word that is null' => "UPDATE odd SET id = 'NULL' WHERE id = '42'",
	'a doubled line' => "INSERT INTO odd SELECT * FROM odd WHERE id = '42'",
	'a word for an amount' => "UPDATE odd SET amount = 'n/a' WHERE id = '42'",
	'a comma in an amount' => "UPDATE odd SET amount = '5,50' WHERE id = '42'",
	'a currency in an amount' => "UPDATE odd SET amount = 'EUR 46.20' WHERE id = '42'",
	'an empty amount' => "UPDATE odd SET amount = '' WHERE id = '42'",
	'no amount' => "UPDATE odd SET amount = NULL WHERE id = '42'",
	'an infinite amount' => "UPDATE odd SET amount = 'Infinity' WHERE id = '42'",
	'an exponent in an amount' => "UPDATE odd SET amount = '1e9999999' WHERE id = '42'",
	'trailing zeros' => "UPDATE odd SET amount = amount || '000' WHERE id = '42'",
	'a boolean as psql shows it' => "UPDATE odd SET ok = left(ok, 1) WHERE id IN ('41', '42')",
	'a word for a boolean' => "UPDATE odd SET ok = 'yes, please' WHERE id = '42'",
	'a word that begins like a boolean' => "UPDATE odd SET ok = 'truly' WHERE id = '41'");
for my $name (sort keys %odd)
{
	sql("TRUNCATE odd; INSERT INTO odd SELECT * FROM clean; $odd{$name}");
	my $right = sql($expected);
	for my $wait ('0 s', '1 ms')
	{
		is(sql("$with('pay', 'odd', columns => '{id,amount,ok}', max_wait => '$wait')"), $right, "$name, wait $wait");
	}
	is(sql("$with('pay', 'odd', columns => '{id,amount,ok}', tolerance => '{\"amount\": 0}')"), $right, "$name, with a tolerance");
}
# each has a row, with its text
sql(<<'SQL');
TRUNCATE odd; INSERT INTO odd SELECT * FROM clean;
UPDATE odd SET id = '00042' WHERE id = '42';
UPDATE odd SET id = '' WHERE id = '43';
UPDATE odd SET id = NULL WHERE id = '44';
UPDATE odd SET amount = 'n/a' WHERE id = '45';
UPDATE odd SET doc = '{"a": "\u0000"}' WHERE id = '46';
UPDATE odd SET ok = 'truly' WHERE id = '47';
UPDATE odd SET day = '2024-2-30' WHERE id = '48';
SQL
my $run = sql(q{SELECT run FROM payment_sync.reconcile_with('pay', 'odd')});
is(sql(qq{SELECT kind || ' ' || (key -> 'id') || ' ' || columns::text || ' ' || coalesce(
	(SELECT string_agg(v::text, ' ' ORDER BY k) FROM jsonb_each(target) e(k, v) WHERE k = ANY (columns)), '')
	FROM payment_sync.discrepancies WHERE run = $run ORDER BY kind, coalesce(target ->> 'id', source ->> 'id')}),
	join("\n", 'different 45 {amount} "n/a"', 'different 46 {doc} "{\"a\": \"\\\\u0000\"}"', 'different 47 {ok} "truly"',
		'different 48 {day} "2024-2-30"', 'missing 42 {} ', 'missing 43 {} ', 'missing 44 {} ', 'unexpected "" {} ',
		'unexpected "00042" {} ', 'unexpected null {} '),
	'discrepancies show the texts');
# another key than the primary one: dates as text
is(sql(qq{SELECT missing, unexpected, different FROM payment_sync.reconcile_with('pay', 'odd', key => '{day}', columns => '{day,amount}', max_wait => '1 ms')}),
	'1|1|1', 'a date that is none as a key');

# JSON that jsonb cannot hold, at the source
sql(<<'SQL');
CREATE TABLE docs (id int PRIMARY KEY, doc json);
CREATE TABLE docs2 (id int PRIMARY KEY, doc json);
INSERT INTO docs VALUES (1, '{"a": "\u0000"}'), (2, '{"a": "\ud800"}'), (3, '{"a": 1e999999}'), (4, '[1]'), (5, '"\u0000"');
INSERT INTO docs2 VALUES (1, '{"a": "x"}'), (2, '{"a": "y"}'), (3, '{"a": "z"}'), (4, '[1]'), (5, '"\u0000"');
SQL
is(sql("$with('docs', 'docs2')"), '5|5|2|0|0|3', 'JSON that jsonb cannot hold');

# ---------------------------------------------------- keys of differing types

sql(<<'SQL');
CREATE TABLE numbered (id numeric(10,2) PRIMARY KEY, v int);
CREATE TABLE texted (id text PRIMARY KEY, v int);
INSERT INTO numbered SELECT i, i FROM generate_series(1, 100) i;
INSERT INTO texted SELECT CASE i % 3 WHEN 0 THEN i || '.0' WHEN 1 THEN i || '.00' ELSE i::text END, i FROM generate_series(1, 100) i;
UPDATE texted SET v = 0 WHERE id = '7.00';
INSERT INTO texted VALUES ('abc.0', 1), ('abc', 2);
SQL
is(sql("$with('numbered', 'texted', max_wait => '$_')"), '100|102|99|0|2|1', "numbers and texts as keys, wait $_") for '0 s', '1 ms';

$target->safe_psql('postgres', 'CREATE TABLE ids (id text PRIMARY KEY, v int)');
sql(<<'SQL');
CREATE TABLE ids (id bigint PRIMARY KEY, v int);
SELECT payment_sync.capture_table('ids');
INSERT INTO ids SELECT i, i FROM generate_series(1, 100) i;
SELECT payment_sync.create_sync('ids', '{ids}', server => 'target', batch => true);
SQL
wait_delivered($source, 'ids');
$target->safe_psql('postgres', q{INSERT INTO ids VALUES ('abc', 1), ('007', 1); UPDATE ids SET v = 0 WHERE id = '5'});
my $verdicts = 'SELECT missing, unexpected, different, in_flight FROM payment_sync.reconcile';
is(sql("$verdicts('ids')"), '0|2|1|0', 'a key at the target that is none here');
sql(q{SELECT payment_sync.disable_sync('ids'); UPDATE ids SET v = -v WHERE id IN (5, 6)});
is(sql("$verdicts('ids', max_wait => '0')"), '0|2|0|2', 'keys on their way are known by their texts');
sql(q{TRUNCATE ids});
is(sql("$verdicts('ids', max_wait => '0')"), '0|0|0|102', 'nothing is decided before a TRUNCATE has come');
sql(q{SELECT payment_sync.drop_sync('ids')});

# ---------------------------------------------------- keys of extensions' types

for my $node ($source, $target)
{
	$node->safe_psql('postgres', <<'SQL');
CREATE SCHEMA ext;
CREATE EXTENSION ltree SCHEMA ext;
CREATE EXTENSION citext SCHEMA ext;
CREATE TYPE color AS ENUM ('red', 'green');
CREATE DOMAIN trail AS ext.ltree;
CREATE TABLE tree (p ext.ltree PRIMARY KEY, v int);
CREATE TABLE tree2 (p trail, c color, v int, PRIMARY KEY (p, c));
CREATE TABLE names (n ext.citext PRIMARY KEY, v int);
SQL
}
sql(<<'SQL');
SELECT payment_sync.capture_table('tree');
SELECT payment_sync.capture_table('tree2');
SELECT payment_sync.capture_table('names');
INSERT INTO tree VALUES ('a.b', 1), ('a.c', 2), ('a.d', 3);
INSERT INTO tree2 VALUES ('a.b', 'red', 1), ('a.c', 'green', 2), ('a.d', 'red', 3);
INSERT INTO names VALUES ('Anna', 1), ('bert', 2), ('Carl', 3);
SELECT payment_sync.create_sync('ext', '{tree,tree2,names}', server => 'target', batch => true);
SQL
wait_delivered($source, 'ext');
for my $table (qw(tree tree2 names))
{
	my $key = $table eq 'names' ? 'n' : 'p';
	my $columns = $table eq 'tree2' ? 'p, c, v' : "$key, v";
	my $other = $table eq 'tree2' ? "'a.x', 'red', 9" : "'a_x', 9";
	$target->safe_psql('postgres', <<SQL);
UPDATE $table SET v = 0 WHERE v = 1;
DELETE FROM $table WHERE v = 2;
INSERT INTO $table ($columns) VALUES ($other);
SQL
	is(sql("$verdicts('ext', '$table')"), '1|1|1|0', "$table: what differs");
	is(sql("SELECT count(*) FROM payment_sync.repair('ext', rel => '$table')"), 3, "$table: is repaired");
	wait_delivered($source, 'ext');
	is(sql("$verdicts('ext', '$table')"), '0|0|0|0', "$table: then nothing does");
}

# ------------------------------------------- repair of the source, of odd texts

$target->safe_psql('postgres', 'CREATE TABLE amounts (id int PRIMARY KEY, amount numeric(12,2), doc json, v int)');
sql(<<'SQL');
CREATE TABLE amounts (id int PRIMARY KEY, amount text, doc json, v int);
SELECT payment_sync.capture_table('amounts');
INSERT INTO amounts VALUES (1, '5.10', '{}', 1), (2, '6.00', '{}', 2), (3, '7', '{}', 3);
SELECT payment_sync.create_sync('amounts', '{amounts}', server => 'target', batch => true);
SQL
wait_delivered($source, 'amounts');
$target->safe_psql('postgres', q{UPDATE amounts SET v = v + 10; UPDATE amounts SET doc = '{"z": "\u0000"}' WHERE id = 3});
is(sql("$verdicts('amounts')"), '0|0|3|0', 'amounts kept as text: what differs');
is(sql(q{SELECT key ->> 'id', operation, reason FROM payment_sync.repair('amounts', direction => 'source') ORDER BY 1}),
	"1|update|\n2|update|\n3|none|a value of column \"doc\" is recorded as text, which jsonb cannot hold as JSON",
	'is taken over to the source, which has not changed');
is(sql('SELECT id, amount, doc, v FROM amounts ORDER BY id'), "1|5.10|{}|11\n2|6.00|{}|12\n3|7|{}|3", 'and nothing else');

# -------------------------------------------- domains over domains, odd collations

for my $node ($source, $target)
{
	$node->safe_psql('postgres', <<'SQL');
CREATE DOMAIN money1 AS numeric;
CREATE DOMAIN money2 AS money1 CHECK (VALUE >= 0);
CREATE DOMAIN money3 AS money2;
CREATE TABLE domains (id int PRIMARY KEY, a money3);
CREATE COLLATION "C" (provider = icu, locale = 'und');
CREATE TABLE collated (k text COLLATE public."C" PRIMARY KEY, v int);
SQL
}
sql(q{INSERT INTO domains SELECT i, (i || '.50')::numeric FROM generate_series(1, 50) i;
	INSERT INTO collated SELECT chr(CASE WHEN i % 2 = 0 THEN 65 ELSE 97 END + i % 26) || i, i FROM generate_series(1, 3000) i});
$target->safe_psql('postgres', q{INSERT INTO domains SELECT i, (i || '.5')::numeric FROM generate_series(1, 50) i;
	INSERT INTO collated SELECT chr(CASE WHEN i % 2 = 0 THEN 65 ELSE 97 END + i % 26) || i, i FROM generate_series(1, 3000) i});
sql(q{SELECT payment_sync.capture_table('domains'); SELECT payment_sync.capture_table('collated');
	SELECT payment_sync.create_sync('domains', '{domains,collated}', server => 'target')});
is(sql("$verdicts('domains', 'domains')"), '0|0|0|0', 'a number under three domains');
is(sql("$verdicts('domains', 'collated')"), '0|0|0|0', 'a collation that is called "C" and is another');
is(sql('SELECT division FROM payment_sync.reconciliations ORDER BY run DESC LIMIT 1'), 'hash', 'is not taken for an order of bytes');


# ------------------------------------- types whose text is nothing to the other side

$target->safe_psql('postgres', <<'SQL');
CREATE ROLE only_there;
CREATE TABLE only_there (id int);
CREATE TABLE registered (id int PRIMARY KEY, c regclass, r regrole, m numeric[], i interval, n numrange);
INSERT INTO registered VALUES (1, 'only_there', 'only_there', '{1.0,2}', '24:00:00', '[1.0,2)'), (2, 'pg_class', 'only_there', '{1}', '1 day', '[1,3)');
SQL
sql(<<'SQL');
CREATE TABLE registered (id int PRIMARY KEY, c regclass, r regrole, m numeric[], i interval, n numrange);
INSERT INTO registered VALUES (1, 'pg_class', 'pg_monitor', '{1,2.00}', '1 day', '[1,2.00)'), (2, 'pg_class', 'pg_monitor', '{1}', '1 day', '[1,4)');
SELECT payment_sync.capture_table('registered');
SELECT payment_sync.create_sync('registered', '{registered}', server => 'target');
SQL
is(sql("$verdicts('registered')"), '0|0|2|0', 'names of what is not here');
is(sql(q{SELECT string_agg(columns::text, ' ' ORDER BY key) FROM payment_sync.discrepancies WHERE sync = 'registered'}),
	'{c,r} {r,n}', 'and values that differ by their texts only');

# ------------------------------------ rows that look alike when written one after another

# Every combination of nulls, blanks and separators in neighbouring columns,
# beside another combination: each pair that differs must be found.
my $combined = <<'SQL';
CREATE TABLE combined%1$s (id int PRIMARY KEY, a char(3), b char(3), c text, d varchar(5), e int, f date, g text);
INSERT INTO combined%1$s
WITH w(n, v) AS (SELECT ordinality - 1, NULLIF(v, 'null') FROM unnest('{null,"",a,|,a|,|a,|1," "}'::text[]) WITH ORDINALITY u(v)),
s(n, id) AS (SELECT n, CASE WHEN '%2$s' = '' THEN n ELSE (n * 13 + %3$d) %% 4096 END FROM generate_series(0, 4095) n)
SELECT s.id, w0.v, w1.v, w2.v, w3.v, NULLIF(s.n / 512 %% 3, 0), CASE WHEN s.n %% 5 = 0 THEN date '2024-01-01' END, w1.v
FROM s JOIN w w0 ON w0.n = s.n %% 8 JOIN w w1 ON w1.n = s.n / 8 %% 8 JOIN w w2 ON w2.n = s.n / 64 %% 8 JOIN w w3 ON w3.n = s.n / 512 %% 8;
SQL
for my $shift (1, 77)
{
	sql(sprintf $combined, "_s$shift", '', 0);
	sql(sprintf $combined, "_o$shift", 'other', $shift);
	my $right = sql("SELECT 4096 || '|' || 4096 || '|' || count(*) FILTER (WHERE s IS NOT DISTINCT FROM o) || '|0|0|' || count(*) FILTER (WHERE s IS DISTINCT FROM o)
		FROM combined_s$shift s JOIN combined_o$shift o USING (id)");
	for my $digest ('hash', 'sha256')
	{
		is(sql("$with('combined_s$shift', 'combined_o$shift', digest => '$digest')"), $right, "combinations, $digest, shift $shift");
	}
	# and by the digests of single rows, at a target
	sql(sprintf $combined, '', '', 0);
	$target->safe_psql('postgres', 'DROP TABLE IF EXISTS combined');
	$target->safe_psql('postgres', sprintf $combined, '', 'other', $shift);
	sql(q{SELECT payment_sync.capture_table('combined'); SELECT payment_sync.create_sync('combined', '{combined}', server => 'target')});
	is(sql("SELECT source_rows, target_rows, matched, missing, unexpected, different FROM payment_sync.reconcile('combined')"),
		$right, "combinations at the target, shift $shift");
	# one row at a time: only its own digest can tell
	$target->safe_psql('postgres', 'DROP TABLE combined');
	$target->safe_psql('postgres', sprintf $combined, '', '', 0);
	$target->safe_psql('postgres', q{UPDATE combined SET a = '' WHERE id = 8; UPDATE combined SET b = NULL WHERE id = 9; UPDATE combined SET c = NULL WHERE id = 74;
		UPDATE combined SET d = '' WHERE id = 33; UPDATE combined SET g = '' WHERE id = 3; UPDATE combined SET g = NULL WHERE id = 11});
	is(sql("$verdicts('combined')"), '0|0|6|0', "nulls and empty strings, shift $shift");
	sql(q{SELECT payment_sync.drop_sync('combined'); SELECT payment_sync.release_table('combined'); DROP TABLE combined});
}

$source->stop;
$target->stop;
done_testing();
