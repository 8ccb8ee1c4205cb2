# 315_columns.pl
#
# Columns are matched by name: the target's table may have another name and
# schema, another order of columns, columns of its own, columns that it
# computes, and wider types.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncApply;
use PaymentSyncTest;
use Test::More;

my $source = start_source('source');
my $target = start_target('target');

$source->safe_psql('postgres', <<'SQL');
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE TABLE pay (id int PRIMARY KEY, amount numeric(12,2) NOT NULL, merchant varchar(20), n int, small smallint,
	r real, at date, gross numeric GENERATED ALWAYS AS (amount * 1.2) STORED, m mood, ids int[], "Odd ""Name" text, doc json);
CREATE TABLE item (a int, b text, v text, PRIMARY KEY (a, b));
CREATE TABLE counted (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, serial_no int GENERATED ALWAYS AS IDENTITY, v text);
CREATE TABLE only_key (a int, b int, PRIMARY KEY (a, b));
CREATE TABLE computed (id int PRIMARY KEY, net int, gross int);
SQL
$target->safe_psql('postgres', <<'SQL');
CREATE SCHEMA "Odd Books";
CREATE TABLE "Odd Books"."the.payments" ("Odd ""Name" text, extra text DEFAULT 'of the target', ids bigint[], m text, at timestamptz,
	r float8, small int, n bigint, merchant text, gross numeric, amount numeric, doc jsonb, id bigint PRIMARY KEY,
	seen timestamptz NOT NULL DEFAULT now(), must int NOT NULL DEFAULT 7);
CREATE TABLE "Odd Books".item (v text, b text, a bigint, PRIMARY KEY (b, a));
CREATE TABLE "Odd Books".counted (v text, id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, serial_no int GENERATED ALWAYS AS IDENTITY);
CREATE TABLE "Odd Books".only_key (b bigint, a int, UNIQUE (b, a), extra int DEFAULT 3);
CREATE TABLE "Odd Books".computed (id int PRIMARY KEY, net int, gross int GENERATED ALWAYS AS (net * 2) STORED);
SQL

connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table(t) FROM unnest('{pay,item,counted,only_key,computed}'::regclass[]) t;
CREATE TABLE ballast (id bigint PRIMARY KEY);
SELECT payment_sync.capture_table('ballast');
INSERT INTO pay (id, amount, merchant, n, small, r, at, m, ids, "Odd ""Name", doc) SELECT i, i, 'm' || i, i, i, i, '2024-01-01'::date, 'glad'::mood, ARRAY[i], 'odd', '{"a":1}'::json FROM generate_series(1, 5) i;
INSERT INTO counted (v) SELECT 'batch' FROM generate_series(1, 3);
SELECT payment_sync.create_sync('pay', '{pay,item,counted,only_key,computed,ballast}', server => 'target', batch => true,
	targets => ARRAY['"Odd Books"."the.payments"', '"Odd Books".item', '"Odd Books".counted', '"Odd Books".only_key', '"Odd Books".computed', '"Odd Books".weight']);
SQL
like(failure_of($source, 'pay'), qr/"Odd Books\.weight" does not exist at the target.*"public\.ballast"/s,
	'a missing table is named, and whose it is');
$target->safe_psql('postgres', 'CREATE TABLE "Odd Books".weight (id bigint PRIMARY KEY)');
goes_on($source, 'pay');

my @queries = (
	[   'SELECT id, amount, merchant, n, small, r::float8, at::timestamptz, gross, m::text, ids::bigint[], "Odd ""Name", doc::jsonb FROM pay',
		'SELECT id, amount, merchant, n, small, r, at, gross, m, ids, "Odd ""Name", doc FROM "Odd Books"."the.payments"' ],
	[ 'SELECT a, b, v FROM item', 'SELECT a, b, v FROM "Odd Books".item' ],
	[ 'SELECT id, serial_no, v FROM counted', 'SELECT id, serial_no, v FROM "Odd Books".counted' ],
	[ 'SELECT a, b FROM only_key', 'SELECT a, b FROM "Odd Books".only_key' ],
	[ 'SELECT id, net, net * 2 AS gross FROM computed', 'SELECT id, net, gross FROM "Odd Books".computed' ]);

sub compare
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_delivered($source, 'pay');
	my $differing = join "\n", grep { $_ ne '' }
	  map { differing_rows($source, $target, $_->[0], target_query => $_->[1]) } @queries;
	return is($differing, '', $name);
}

compare('by a batch');
my $first = 1;
for my $size (\&small_window, \&large_window)
{
	my $name = $first ? 'small window' : 'large window';
	my ($from, $upto) = $first ? (101, 110) : (201, 210);
	$first = 0;
	$size->($source, <<SQL);
INSERT INTO pay (id, amount, merchant, n, small, r, at, m, ids, "Odd ""Name", doc) SELECT i, i * 1.01, 'merchant ' || i, -i, -i, 0.1, 'infinity'::date, 'sad'::mood, ARRAY[i, NULL], E'odd\\n"', '{"b":  [null]}'::json FROM generate_series($from, $upto) i;
INSERT INTO item SELECT i, 'b' || i, 'v' FROM generate_series($from, $upto) i;
INSERT INTO counted (v) SELECT 'new' FROM generate_series($from, $upto);
INSERT INTO only_key SELECT i, -i FROM generate_series($from, $upto) i;
INSERT INTO computed SELECT i, i, 0 FROM generate_series($from, $upto) i
SQL
	compare("new rows, $name");
	$target->safe_psql('postgres',
		'UPDATE "Odd Books"."the.payments" SET extra = \'kept \' || id, must = id');
	$size->($source, <<SQL);
UPDATE pay SET amount = amount + 1, doc = NULL, m = NULL, ids = '{}' WHERE id % 2 = 0;
UPDATE pay SET id = id + 1000 WHERE id = $from;
UPDATE item SET v = 'changed', b = b || 'x' WHERE a % 3 = 0;
UPDATE item SET v = NULL WHERE a % 3 = 1;
UPDATE counted SET v = 'changed' WHERE id % 2 = 0;
UPDATE only_key SET a = a + 1 WHERE a = $upto;
UPDATE computed SET net = net + 1;
DELETE FROM pay WHERE id = $upto;
DELETE FROM item WHERE a = $from;
DELETE FROM counted WHERE id % 5 = 0;
DELETE FROM only_key WHERE a = $from;
DELETE FROM computed WHERE id = $from
SQL
	compare("changed rows, $name");
	is($target->safe_psql('postgres', <<SQL), '', "the target's own columns are left alone, $name");
SELECT string_agg(id::text, ' ') FROM "Odd Books"."the.payments"
WHERE id BETWEEN $from + 1 AND $upto AND (extra <> 'kept ' || id OR must <> id)
SQL
}

# a chain of renames, source first and target first, with changes pending
$source->safe_psql('postgres', "SELECT payment_sync.disable_sync('pay')");
$source->safe_psql('postgres', <<'SQL');
UPDATE item SET v = 'before the rename' WHERE a = 102;
ALTER TABLE item RENAME v TO w;
UPDATE item SET w = 'after the rename' WHERE a = 103;
SELECT payment_sync.enable_sync('pay');
SQL
$queries[1] = [ 'SELECT a, b, w FROM item', 'SELECT a, b, v FROM "Odd Books".item' ];
like(failure_of($source, 'pay'), qr/column "w" of table "Odd Books"\.item does not exist at the target/,
	'renamed at the source only: what is new has no place');
$target->safe_psql('postgres', 'ALTER TABLE "Odd Books".item RENAME v TO w');
$queries[1] = [ 'SELECT a, b, w FROM item', 'SELECT a, b, w FROM "Odd Books".item' ];
compare('renamed at the target as well, it goes on');

# columns come and go
$target->safe_psql('postgres', 'ALTER TABLE "Odd Books".item ADD added int');
$source->safe_psql('postgres', <<'SQL');
ALTER TABLE item ADD added int;
UPDATE item SET added = 5 WHERE a = 102;
ALTER TABLE computed DROP gross;
INSERT INTO computed VALUES (1, 1);
SQL
$queries[1] = [ 'SELECT a, b, w, added FROM item', 'SELECT a, b, w, added FROM "Odd Books".item' ];
compare('a column added here and there, another dropped here');

done_testing();
