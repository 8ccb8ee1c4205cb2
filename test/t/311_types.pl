# 311_types.pl
#
# Values of every kind reach the target as they are, by pipeline (small window)
# and set-wise (large window), as new rows, as changed rows and by a batch.
# Types made by users have other oids at the target.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncApply;
use PaymentSyncTest;
use Test::More;

my $source = start_source('source');
my $target = start_target('target');

# so that no oid is the same by chance
$target->safe_psql('postgres', 'CREATE TABLE other_oids (a int); DROP TABLE other_oids');
$target->safe_psql('postgres', "CREATE TYPE unused_$_ AS ENUM ('a')") for 1 .. 7;

# a server may have been built without libxml
my $xml = $source->psql('postgres', "SELECT '<a/>'::xml") == 0 ? 'xml' : 'text';

both($source, $target, <<SQL);
CREATE SCHEMA types;
CREATE TYPE types.mood AS ENUM ('sad', 'glad', 'ça va');
CREATE DOMAIN types.cents AS bigint CHECK (value >= 0);
CREATE TYPE types.address AS (street text, no int, mood types.mood, at timestamptz[]);
CREATE TYPE types.span AS RANGE (subtype = float8);
CREATE DOMAIN types.addresses AS types.address[];
CREATE TABLE every (
	id bigint PRIMARY KEY,
	c_bool bool, c_int2 int2, c_int4 int4, c_int8 int8, c_float4 float4, c_float8 float8,
	c_numeric numeric, c_money money, c_text text, c_varchar varchar(30), c_bpchar char(12),
	c_char "char", c_name name, c_bytea bytea, c_bit bit(5), c_varbit varbit,
	c_date date, c_time time, c_timetz timetz, c_ts timestamp, c_tstz timestamptz, c_interval interval,
	c_uuid uuid, c_json json, c_jsonb jsonb, c_jsonpath jsonpath, c_xml $xml,
	c_inet inet, c_cidr cidr, c_mac macaddr, c_mac8 macaddr8,
	c_point point, c_line line, c_lseg lseg, c_box box, c_path path, c_polygon polygon, c_circle circle,
	c_tsvector tsvector, c_tsquery tsquery, c_oid oid, c_regclass regclass, c_regtype regtype,
	c_lsn pg_lsn, c_snapshot pg_snapshot, c_xid8 xid8,
	c_ints int[], c_texts text[], c_numerics numeric[][], c_shifted int[], c_tstzs timestamptz[],
	c_int4range int4range, c_numrange numrange, c_tstzrange tstzrange, c_multi nummultirange,
	c_mood types.mood, c_moods types.mood[], c_cents types.cents, c_cent_list types.cents[],
	c_address types.address, c_addresses types.address[], c_domain types.addresses,
	c_span types.span, c_spans types.span[], c_spanm types.span_multirange);
SQL

# a maker of rows, at the source: %s is the id
my $values = <<'SQL';
	SELECT i, i % 2 = 0, -32768, 2147483647, -9223372036854775808,
		(ARRAY['NaN', 'Infinity', '-0', '1.1754944e-38', '3.4028235e+38'])[1 + i % 5]::float4,
		(ARRAY['NaN', '-Infinity', '-0', '5e-324', '0.1'])[1 + i % 5]::float8,
		(ARRAY['NaN', 'Infinity', '-Infinity', '1.10', '1e-400', '-123456789012345678901234567890.1234567890'])[1 + i % 6]::numeric,
		'-12.34', E'tab\tnew\nline \\ "quote" ''apostrophe'' é€😀', 'varchar ', 'bpchar  ', 'c', 'a name',
		'\x00ff10'::bytea || decode(md5(i::text), 'hex'), B'10101', B'1',
		(ARRAY['infinity', '-infinity', '4713-01-01 BC', '5874897-12-31'])[1 + i % 4]::date,
		'24:00:00', '23:59:59.999999-15:59', (ARRAY['infinity', '294276-12-31 23:59:59.999999'])[1 + i % 2]::timestamp,
		(ARRAY['-infinity', 'infinity', '2024-10-27 02:30+02', '4713-01-01 BC'])[1 + i % 4]::timestamptz,
		'-178000000 years 11 mons -3 days 04:05:06.000007',
		md5(i::text)::uuid, '{"b": 1,  "a": [null, "é"]}', '{"b": 1, "a": [null, "é", 1e400]}', '$.a[*] ? (@ > 1)', '<a b="c">é</a>',
		'192.168.0.1/24', '2001:db8::/32', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05',
		'(1,-2.5)', '{1,2,3}', '[(0,0),(1,1)]', '(1,1),(0,0)', '((0,0),(1,1),(2,0))', '((0,0),(1,1),(2,0))', '<(1,2),3>',
		'a:1A fat:2B cat:3', 'fat & (rat | !cat)', 4294967295, 'pg_catalog.pg_class', 'numeric',
		'16/B374D848', '10:20:10,14,15', '18446744073709551615',
		ARRAY[1, NULL, -3], ARRAY['a', NULL, 'NULL', '"', ''], ARRAY[[1.5, 'NaN'], [NULL, 2]], '[-1:1]={1,2,3}', ARRAY['infinity'::timestamptz],
		'[1,10)', '(,1.5]', 'empty', '{[1,2),(3,]}',
		(enum_range(NULL::types.mood))[1 + i % 3], enum_range(NULL::types.mood) || NULL, i, ARRAY[i, NULL],
		ROW('a "street", 1', i, 'glad'::types.mood, ARRAY['2024-01-01 00:00+00'::timestamptz, NULL])::types.address, ARRAY[ROW(NULL, 1, 'sad', NULL)::types.address, NULL],
		ARRAY[ROW('x', 1, 'ça va', '{}')::types.address],
		'[1.5,)', ARRAY['[1,2)'::types.span], '{[1,2),[3,4)}'
SQL
my $insert = "INSERT INTO every $values FROM generate_series(%d, %d) i;"
  . " INSERT INTO every (id) VALUES (%d)";
my @columns = split /\n/, $source->safe_psql('postgres',
	"SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = 'every'::regclass AND attnum > 1");
# regclass by name, not by oid; all as text, which tells apart what "=" does not
my $query = 'SELECT * FROM every';

$source->safe_psql('postgres', sprintf $insert, 1, 12, 13);
make_sync($source, $target, ['every'], create => 'batch => true');
wait_delivered($source, 'pay');
same_rows($source, $target, $query, 'by a batch');
is($target->safe_psql('postgres', 'SELECT count(*) FROM every'), 13, 'the rows are there');

each_window($source, $target, 'pay', 'new rows',
	'DELETE FROM every', sprintf($insert, 21, 32, 33), $query);

# every column set to what another row has, and to NULL and back
my $list = join ', ', @columns;
my $from = join ', ', map { "o.$_" } @columns;
each_window($source, $target, 'pay', 'changed rows', undef, <<SQL, $query);
UPDATE every e SET ($list) = (SELECT $from FROM every o WHERE o.id = e.id + 1) WHERE e.id < 33;
UPDATE every SET ($list) = (SELECT $from FROM every o WHERE o.id = 21) WHERE id = 33;
UPDATE every SET ($list) = ROW(${\ join ', ', ('NULL') x @columns}) WHERE id = 27
SQL

each_window($source, $target, 'pay', 'all gone', sprintf($insert, 41, 44, 45),
	'DELETE FROM every', $query);

# a batch over rows that are there writes none of them again
$source->safe_psql('postgres', sprintf $insert, 51, 62, 63);
wait_delivered($source, 'pay');
my $before = $target->safe_psql('postgres', "SELECT string_agg(ctid::text, ' ' ORDER BY id) FROM every");
$source->safe_psql('postgres', "CALL payment_sync.batch_sync('pay', 'every')");
wait_delivered($source, 'pay');
same_rows($source, $target, $query, 'by a batch once more');
is($target->safe_psql('postgres', "SELECT string_agg(ctid::text, ' ' ORDER BY id) FROM every"),
	$before, 'which left the rows as they were');

done_testing();
