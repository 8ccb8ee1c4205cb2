# 131_large_json.pl
#
# json holds what jsonb cannot: \u0000, lone surrogates, numbers that are no
# numeric; and text and rows can be larger than jsonb may be.  No such value
# ends a call of fetch_changes or of those who read the view changes: it is
# shown as a string, the other values and changes as ever.  Events carry json
# as it is, whatever is in it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = start_source('source');
sub q1 { return $node->safe_psql('postgres', $_[0]) }

q1(<<'SQL');
CREATE EXTENSION payment_sync;
CREATE SERVER hooks FOREIGN DATA WRAPPER payment_sync_http OPTIONS (url 'https://hooks.example.com');
CREATE USER MAPPING FOR CURRENT_USER SERVER hooks;
CREATE TABLE j (id int PRIMARY KEY, d json, a json[]);
CREATE TABLE large (id int PRIMARY KEY, a text, b text, c bytea);
ALTER TABLE large ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL;
SELECT payment_sync.capture_table('j', old_values => 'all');
SELECT payment_sync.capture_table('large');
SELECT payment_sync.create_sync('pull', '{j,large}');
SELECT payment_sync.create_sync('hook', '{j,large}', server => 'hooks', enabled => false);
INSERT INTO j VALUES (1, '{"a":"x\u0000y"}', NULL), (2, '{"a":"\ud800"}', NULL), (3, '{"a":1e1000000}', NULL),
	(4, '{"a":1, "a":2,   "b" : [ ] }', NULL), (5, '"\u0000"', NULL), (6, '{"\u0000":1}', NULL),
	(7, NULL, ARRAY['{"a":"\u0000"}', '1']::json[]);
UPDATE j SET id = 60 WHERE id = 6;
DELETE FROM j WHERE id = 60;
SQL
my $insertions = <<'SQL';
1|"{\"a\":\"x\\u0000y\"}"|null
2|"{\"a\":\"\\ud800\"}"|null
3|"{\"a\":1e1000000}"|null
4|{"a": 2, "b": []}|null
5|"\"\\u0000\""|null
6|"{\"\\u0000\":1}"|null
7|null|"{\"{\\\"a\\\":\\\"\\\\u0000\\\"}\",1}"
SQL
is(q1(<<'SQL') . "\n", $insertions, 'fetch_changes shows as strings what jsonb cannot hold');
SELECT new -> 'id', new -> 'd', new -> 'a' FROM payment_sync.fetch_changes('pull') WHERE operation = 'insert'
SQL
is(q1("SELECT count(new->>'id') + count(old->>'id') FROM payment_sync.changes"), 7 + 2 + 1,
	'so does the view changes');
like(q1(q(SELECT payment_sync.preview_event('hook', '{"id": 1}', 'j'))), qr/"d":\{"a":"x\\u0000y"\}/,
	'an event holds json as it is');

# A string of more than 256 MB, and two values that only together are too much.
q1(<<'SQL');
INSERT INTO large VALUES (1, repeat('x', 268500000), 'b', NULL);
INSERT INTO large VALUES (2, repeat('x', 140000000), repeat('y', 130000000), NULL);
INSERT INTO large VALUES (3, NULL, NULL, '\x00');
SQL
is(q1(<<'SQL'), "1|17|b|\n2|17|130000000|\n3|||\\x00", 'values that are too large are named by their size');
SELECT new ->> 'id', length(new ->> 'a'), CASE WHEN length(new ->> 'b') > 1 THEN length(new ->> 'b')::text ELSE new ->> 'b' END,
	new ->> 'c'
FROM payment_sync.changes WHERE "table" = 'large'::regclass ORDER BY position
SQL

$node->stop;
done_testing();
