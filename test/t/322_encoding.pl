# 322_encoding.pl
#
# Source and target differ in encoding, collation, time zone, date style and
# whatever else changes how values look.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncApply;
use PaymentSyncTest;
use Test::More;

my $source = start_source('source');
my $target = start_target('target');
my ($host, $port) = ($target->host, $target->port);

# pair(NAME, SOURCE ENCODING, TARGET ENCODING)
sub pair
{
	my ($name, $here, $there) = @_;
	$source->safe_psql('postgres', <<SQL);
CREATE DATABASE $name TEMPLATE template0 ENCODING '$here' LC_COLLATE 'C' LC_CTYPE 'C';
ALTER DATABASE $name SET timezone = 'America/St_Johns';
ALTER DATABASE $name SET datestyle = 'German, DMY';
ALTER DATABASE $name SET intervalstyle = 'sql_standard';
ALTER DATABASE $name SET bytea_output = 'escape';
ALTER DATABASE $name SET extra_float_digits = -5;
ALTER DATABASE $name SET lc_monetary = 'C';
SQL
	$target->safe_psql('postgres', <<SQL);
CREATE DATABASE $name TEMPLATE template0 ENCODING '$there' LC_COLLATE 'C' LC_CTYPE 'C';
ALTER DATABASE $name SET timezone = 'Asia/Tokyo';
ALTER DATABASE $name SET datestyle = 'SQL, MDY';
ALTER DATABASE $name SET intervalstyle = 'iso_8601';
ALTER DATABASE $name SET standard_conforming_strings = off;
ALTER DATABASE $name SET search_path = 'elsewhere';
ALTER DATABASE $name SET default_transaction_read_only = on;
ALTER DATABASE $name SET default_transaction_isolation = 'serializable';
SQL
	my $common = <<'SQL';
SET client_encoding = 'UTF8';
SET default_transaction_read_only = off;
SET search_path = public;
BEGIN READ WRITE;
CREATE TYPE mood AS ENUM ('süß', 'bitter');
CREATE TYPE address AS (street text, at timestamptz, length interval, b bytea, f float8);
CREATE TABLE "zahlung für" (id text PRIMARY KEY, "größe" text, c "char", n name, doc jsonb, j json, x text[],
	at timestamptz, d date, i interval, b bytea, f float8, m mood, a address, r tstzrange, ts tsvector);
CREATE TABLE ballast (id bigint PRIMARY KEY);
COMMIT;
SQL
	$source->safe_psql($name, $common);
	$target->safe_psql($name, $common);
	$source->safe_psql($name, <<SQL);
CREATE EXTENSION payment_sync;
SET client_encoding = 'UTF8';
CREATE SERVER target FOREIGN DATA WRAPPER payment_sync_postgres OPTIONS (host '$host', port '$port', dbname '$name');
CREATE USER MAPPING FOR CURRENT_USER SERVER target;
SELECT payment_sync.capture_table('"zahlung für"'), payment_sync.capture_table('ballast');
SQL
	return;
}

my $insert = <<'SQL';
INSERT INTO "zahlung für" SELECT 'schlüssel ' || i, 'Straße ñ £ \ '' "', 'x', 'näme', '{"schlüssel": "Wörter", "n": 1.10}', '["é"]', '{"ä","\"ö\"",NULL}',
	'2024-07-01 12:00:00.123456+02'::timestamptz, '2024-02-03'::date, '1 year 2 mons -3 days 04:05:06.7'::interval, '\x00ff5c27'::bytea, 0.1 + 0.2, 'süß'::mood,
	ROW('Weg, "ö"', '2024-12-31 23:59+00', '-1 day', '\xdeadbeef', 1e-300)::address, '[2024-01-01 00:00+00,)', 'größe:1A'
FROM generate_series(%d, %d) i
SQL
my $query = <<'SQL';
SELECT id, "größe", c, n, doc, j::text, x, extract(epoch FROM at) AS at, d - '2000-01-01'::date AS d,
	extract(epoch FROM i) AS i, encode(b, 'hex') AS b, f = 0.1::float8 + 0.2::float8 AS f, m, (a).street, extract(epoch FROM (a).at) AS a_at, extract(epoch FROM (a).length) AS a_length,
	encode((a).b, 'hex') AS a_b, (a).f = 1e-300 AS a_f, extract(epoch FROM lower(r)) AS r, ts::text FROM public."zahlung für"
SQL

for my $case ([ 'latin_utf', 'LATIN1', 'UTF8' ], [ 'utf_latin', 'UTF8', 'LATIN1' ], [ 'utf_utf', 'UTF8', 'UTF8' ])
{
	my ($name, $here, $there) = @$case;
	pair($name, $here, $there);
	local $ENV{PGCLIENTENCODING} = 'UTF8';
	$source->safe_psql($name, sprintf($insert, 1, 20));
	$source->safe_psql($name, <<'SQL');
SELECT payment_sync.create_sync('pay', ARRAY['"zahlung für"', 'ballast']::regclass[], server => 'target', batch => true)
SQL
	wait_delivered($source, 'pay', db => $name);
	$source->safe_psql($name, sprintf($insert, 21, 25)
		. q{; UPDATE "zahlung für" SET "größe" = upper("größe"), m = 'bitter' WHERE id LIKE '%1'; DELETE FROM "zahlung für" WHERE id = 'schlüssel 2'; UPDATE "zahlung für" SET id = id || 'ß' WHERE id = 'schlüssel 3'});
	wait_delivered($source, 'pay', db => $name);
	$source->safe_psql($name, 'BEGIN; INSERT INTO ballast SELECT generate_series(1, 1200);' . sprintf($insert, 31, 35)
		. q{; UPDATE "zahlung für" SET "größe" = 'é', m = 'süß' WHERE id LIKE '%1'; DELETE FROM "zahlung für" WHERE id = 'schlüssel 4'; UPDATE "zahlung für" SET id = id || 'ß' WHERE id = 'schlüssel 5'; COMMIT});
	wait_delivered($source, 'pay', db => $name);
	same_rows($source, $target, $query, "$here to $there", sourcedb => $name, targetdb => $name);
	is($target->safe_psql($name, 'SELECT count(*) FROM public."zahlung für"'), 28, 'the rows are there');
	# order of keys in a mirror does not depend on collations
	$target->safe_psql($name, q{SET default_transaction_read_only = off; BEGIN READ WRITE; INSERT INTO public."zahlung für" (id) VALUES ('Ä'), ('zz'), ('schlüssel 1a'); COMMIT});
	$source->safe_psql($name, q{CALL payment_sync.batch_sync('pay', mirror => true)});
	same_rows($source, $target, $query, "mirror, $here to $there", sourcedb => $name, targetdb => $name);
}

# what the target's encoding lacks stops the sync, and names the row
{
	local $ENV{PGCLIENTENCODING} = 'UTF8';
	$source->safe_psql('utf_latin', q{INSERT INTO "zahlung für" (id, "größe") VALUES ('euro', '€')});
	$source->poll_query_until('utf_latin', "SELECT failures > 0 FROM payment_sync.stat_sync") or die 'no failure';
	like($source->safe_psql('utf_latin', "SELECT concat_ws(' | ', last_error, last_error_detail) FROM payment_sync.stat_sync"),
		qr/zahlung.*has no equivalent in encoding "LATIN1".*\(id\)=\(euro\)/s, 'a character that the target lacks');
	$source->safe_psql('utf_latin', q{SELECT 1});
}

done_testing();
