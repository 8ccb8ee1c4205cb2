# 331_batch.pl
#
# Full copies: when a sync is created and later, of one table or all, while
# pgbench writes; keys of all kinds, partitioned tables, row security; and
# mirror, which removes what the source lacks.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use IPC::Run qw(start);
use PaymentSyncApply;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = start_source('source');
my $target = start_target('target');

# Collations in which the servers' orders differ from each other and from "C".
my $icu = $source->safe_psql('postgres',
	"SELECT count(*) FROM pg_collation WHERE collname = 'de-x-icu'") ? ' COLLATE "de-x-icu"' : '';
my $tables = <<'SQL';
CREATE TABLE pay (id int PRIMARY KEY, v text, n int DEFAULT 0);
CREATE TABLE word (word text%1$s PRIMARY KEY, n int);
CREATE TABLE pair (a int, word text%1$s, b numeric, v text, PRIMARY KEY (b, word, a));
CREATE TABLE token (token uuid PRIMARY KEY, at timestamptz);
CREATE TABLE part (id int, region text%1$s, v text, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
CREATE TABLE part_eu PARTITION OF part FOR VALUES IN ('eu', 'Ä');
CREATE TABLE part_rest PARTITION OF part DEFAULT PARTITION BY RANGE (id);
CREATE TABLE part_low PARTITION OF part_rest FOR VALUES FROM (0) TO (1000);
CREATE TABLE part_high PARTITION OF part_rest FOR VALUES FROM (1000) TO (1000000);
CREATE TABLE empty (id int PRIMARY KEY);
CREATE TYPE mood AS ENUM ('sad', 'glad', 'angry');
CREATE TABLE mooded (mood mood, at date, PRIMARY KEY (mood, at));
SQL
$source->safe_psql('postgres', sprintf $tables, $icu);
$target->safe_psql('postgres', sprintf $tables, '');
$source->safe_psql('postgres', <<'SQL');
INSERT INTO pay SELECT i, repeat('x', 50) FROM generate_series(1, 60000) i;
INSERT INTO word SELECT w || i || repeat('z', 40), i FROM unnest('{a,A,ä,Ä,z,Z,é,_,-}'::text[]) w, generate_series(1, 3000) i;
INSERT INTO pair SELECT i, chr(65 + i % 60) || i % 7, i % 11 / 10.0, repeat('p', 80) FROM generate_series(1, 20000) i;
INSERT INTO token SELECT gen_random_uuid(), now() FROM generate_series(1, 30000);
INSERT INTO part SELECT i, (ARRAY['eu', 'Ä', 'us', 'ä'])[1 + i % 4], 'v' FROM generate_series(1, 40000) i;
INSERT INTO mooded SELECT m, '2024-01-01'::date + i FROM unnest(enum_range(NULL::mood)) m, generate_series(1, 300) i;
ANALYZE pay;
SQL
my @names = qw(pay word pair token part empty mooded);
my @queries = map { "SELECT * FROM $_" } @names;
my $list = join ',', @names;

sub compare
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $n = 0;
	my $query = join ' UNION ALL ', map { 'SELECT ' . $n++ . " AS q, r::text AS line FROM ($_) r" } @queries;
	return is(differing_rows($source, $target, $query), '', $name);
}

sub progress
{
	my ($table, $what) = @_;
	return $source->safe_psql('postgres',
		"SELECT $what FROM payment_sync.progress_batch WHERE sync = 'pay' AND \"table\" = '$table'::regclass");
}

# --- while pgbench writes

my $tmp = PostgreSQL::Test::Utils::tempdir();
open my $script, '>', "$tmp/write.sql" or die;
print $script <<'SQL';
\set id random(1, 60000)
\set new random(100000, 200000)
BEGIN;
UPDATE pay SET n = n + 1 WHERE id = :id;
INSERT INTO pay VALUES (:new, 'new') ON CONFLICT (id) DO UPDATE SET n = pay.n + 1;
DELETE FROM pay WHERE id = :id + 7;
INSERT INTO word VALUES ('ö' || :new, :id) ON CONFLICT (word) DO NOTHING;
DELETE FROM pair WHERE a = :id;
INSERT INTO part VALUES (:new, 'us', 'new') ON CONFLICT DO NOTHING;
UPDATE part SET region = 'eu' WHERE region = 'us' AND id = :new AND :id % 2 = 0 AND NOT EXISTS (SELECT FROM part WHERE region = 'eu' AND id = :new);
COMMIT;
SQL
close $script;
connect_target($source, $target);
$source->safe_psql('postgres',
	"CREATE INDEX ON pair (a); SELECT payment_sync.capture_table(t) FROM unnest('{$list}'::regclass[]) t");

sub with_writers
{
	my ($code) = @_;
	my ($out, $err) = ('', '');
	my $bench = start [ 'pgbench', '-n', '-c', 2, '-t', 400, '-h', $source->host, '-p', $source->port,
		'-f', "$tmp/write.sql", 'postgres' ], '>', \$out, '2>', \$err;
	$code->();
	$bench->finish;
	like($err . $out, qr/number of transactions actually processed: 800/, 'pgbench wrote meanwhile');
	return;
}

with_writers(sub {
	$source->safe_psql('postgres',
		"SELECT payment_sync.create_sync('pay', '{$list}', server => 'target', batch => true)");
});
wait_delivered($source, 'pay');
compare('create_sync(batch => true) under load');
is(progress('empty', "state || ' ' || chunks || ' ' || rows || ' ' || percent"), 'done 1 0 100.0', 'an empty table is one chunk');
is(progress('pay', "state || ' ' || (rows >= 60000) || ' ' || (chunks > 1) || ' ' || (rows_estimated = 60000) || ' ' || (finished >= started)"),
	'done true true true true', 'progress_batch tells of a large one');

with_writers(sub { $source->safe_psql('postgres', "CALL payment_sync.batch_sync('pay', 'part')") });
wait_delivered($source, 'pay');
compare('batch_sync of one table under load');
with_writers(sub { $source->safe_psql('postgres', "CALL payment_sync.batch_sync('pay')") });
wait_delivered($source, 'pay');
compare('batch_sync of all tables under load');

# --- mirror: what the source lacks, and what differs

my $damage = <<'SQL';
INSERT INTO pay SELECT i, 'too much' FROM generate_series(-50, 0) i;
INSERT INTO pay SELECT i, 'too much' FROM generate_series(1000001, 1000050) i;
INSERT INTO pay VALUES (30000, 'too much') ON CONFLICT (id) DO UPDATE SET v = 'wrong';
DELETE FROM pay WHERE id BETWEEN 100 AND 200;
INSERT INTO word VALUES ('', 1), ('0', 1), ('zzzz' || 'ω', 1), ('Azz', 1), ('äzz', 1), ('ZZ', 1), ('_', 1), ('-', 1);
DELETE FROM word WHERE n = 5;
INSERT INTO pair VALUES (0, '', -1), (0, 'zz', 'NaN'), (0, 'ä', 0.5), (99999, 'A0', 0.5);
DELETE FROM pair WHERE a % 100 = 0;
INSERT INTO token VALUES ('00000000-0000-0000-0000-000000000000'), ('ffffffff-ffff-ffff-ffff-ffffffffffff'), ('7fffffff-ffff-ffff-ffff-ffffffffffff');
DELETE FROM token WHERE token::text LIKE '5%';
INSERT INTO part VALUES (900001, '', 'x'), (900001, 'zz', 'x'), (900001, 'eu', 'x'), (0, 'Ä', 'x');
DELETE FROM part WHERE id % 50 = 0;
UPDATE part SET v = 'wrong' WHERE id % 51 = 0;
INSERT INTO empty VALUES (1), (2);
INSERT INTO mooded VALUES ('sad', '1999-01-01'), ('angry', '2030-01-01'), ('glad', '2024-12-24');
SQL
$target->safe_psql('postgres', $damage);
$source->safe_psql('postgres', "CALL payment_sync.batch_sync('pay')");
isnt($target->safe_psql('postgres', 'SELECT count(*) FROM empty'), 0, 'without mirror, rows that are too much stay');
with_writers(sub { $source->safe_psql('postgres', "CALL payment_sync.batch_sync('pay', mirror => true)") });
wait_delivered($source, 'pay');
compare('mirror, under load');

# nothing at the source
$source->safe_psql('postgres', "SELECT payment_sync.disable_sync('pay'); TRUNCATE $list");
$source->safe_psql('postgres', "SELECT payment_sync.enable_sync('pay', start => 'now')");
cmp_ok($target->safe_psql('postgres', 'SELECT count(*) FROM pay'), '>', 1000, 'the target has rows yet');
$source->safe_psql('postgres', "CALL payment_sync.batch_sync('pay', mirror => true)");
wait_delivered($source, 'pay');
compare('mirror of empty tables');
is($target->safe_psql('postgres', 'SELECT count(*) FROM pay'), 0, 'which are empty now');

# --- row security

$source->safe_psql('postgres', <<'SQL');
CREATE ROLE regress_shop LOGIN;
CREATE TABLE secured (id int PRIMARY KEY, v text);
INSERT INTO secured SELECT i, 'v' FROM generate_series(1, 9) i;
ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
CREATE POLICY odd ON secured USING (id % 2 = 1);
SELECT payment_sync.capture_table('secured');
SELECT payment_sync.create_sync('secured', '{secured}', server => 'target', batch => true);
SQL
$target->safe_psql('postgres', 'CREATE TABLE secured (id int PRIMARY KEY, v text)');
goes_on($source, 'secured');
same_rows($source, $target, 'SELECT * FROM secured', 'policies do not concern the owner');
$source->safe_psql('postgres', 'ALTER TABLE secured OWNER TO regress_shop; SELECT payment_sync.drop_sync(\'secured\')');
my $user = $target->safe_psql('postgres', 'SELECT current_user');
$target->safe_psql('postgres', "CREATE ROLE feeder SUPERUSER LOGIN; TRUNCATE secured");
$source->safe_psql('postgres', <<'SQL');
GRANT USAGE ON FOREIGN SERVER target TO regress_shop;
CREATE USER MAPPING FOR regress_shop SERVER target OPTIONS (user 'feeder', password 'x', password_required 'false');
SQL
my %as_shop = (extra_params => [ '-U', 'regress_shop' ]);
$source->safe_psql('postgres', <<'SQL', %as_shop);
SELECT payment_sync.create_sync('secured', '{secured}', server => 'target', batch => true);
SQL
goes_on($source, 'secured');
is($target->safe_psql('postgres', 'SELECT count(*) FROM secured'), 9, 'nor an owner who is no superuser');
$source->safe_psql('postgres', 'ALTER TABLE secured FORCE ROW LEVEL SECURITY', %as_shop);
my ($rc, $out, $err) = $source->psql('postgres', "CALL payment_sync.batch_sync('secured')", %as_shop);
like($err, qr/row-level security/, 'forced, they do: refused instead of filtered');
is($source->safe_psql('postgres', "SELECT rows FROM payment_sync.progress_batch WHERE sync = 'secured'"), 0,
	'and nothing was sent');

done_testing();
