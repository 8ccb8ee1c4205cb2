# 518_reconcile_large.pl
#
# No value is too large for a reconciliation: texts that jsonb cannot hold, bytes
# whose text is twice as long, many wide rows that differ.  Each makes a row of
# its own, and the run goes on.  Both sides are filled before the table is
# captured, so nothing of it is delivered but what repair sends.

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

sub sql { return $source->safe_psql('postgres', $_[0]) }

for my $node ($source, $target)
{
	$node->safe_psql('postgres', <<'SQL');
CREATE TABLE big (id int PRIMARY KEY, v text, b bytea, doc json, js jsonb, at text);
INSERT INTO big VALUES (1, repeat('x', 20000000), NULL, NULL, NULL, 'equal'),
	(3, repeat('z', 17000000), repeat('b', 17000000)::bytea, ('"' || repeat('j', 17000000) || '"')::json, '1', 'equal'),
	(7, NULL, NULL, NULL, '{}', 'changed'), (8, 'small', '\x00ff', '{}', '[1.0]', 'equal');
SQL
}
$source->safe_psql('postgres', <<'SQL');
INSERT INTO big VALUES (2, repeat('y', 270000000) || '1', NULL, NULL, NULL, 'v'),
	(4, repeat('m', 17000000), NULL, NULL, NULL, 'missing'),
	(5, NULL, repeat('b', 17000000)::bytea, NULL, NULL, 'b'), (6, NULL, NULL, ('"' || repeat('j', 17000000) || '1"')::json, NULL, 'doc'),
	(9, E'\x01payment_sync:17:ab:c', NULL, NULL, NULL, 'looks like one'),
	(10, NULL, NULL, NULL, to_jsonb(repeat('o', 70000000)), 'js');
SQL
$target->safe_psql('postgres', <<'SQL');
INSERT INTO big VALUES (2, repeat('y', 270000000) || '2', NULL, NULL, NULL, 'v'),
	(5, NULL, repeat('b', 16999999)::bytea || 'c', NULL, NULL, 'b'), (6, NULL, NULL, ('"' || repeat('j', 17000000) || '2"')::json, NULL, 'doc'),
	(9, E'\x01payment_sync:', NULL, NULL, NULL, 'looks like one'),
	(10, NULL, NULL, NULL, to_jsonb(repeat('o', 69999999) || 'p'), 'js'),
	(11, repeat('u', 17000000), NULL, NULL, NULL, 'unexpected');
UPDATE big SET at = 'other' WHERE id = 7;
SQL
sql(<<'SQL');
SELECT payment_sync.capture_table('big');
SELECT payment_sync.create_sync('big', '{big}', server => 'target');
SQL

my $counts = 'SELECT source_rows, target_rows, matched, missing, unexpected, different, in_flight FROM payment_sync.reconcile';
for my $digest ('hash', 'sha256')
{
	is(sql("$counts('big', digest => '$digest')"), '10|10|3|1|1|6|0', "$digest: large values end no run, and are compared");
}
is(sql(<<'SQL'),
SELECT (key ->> 'id')::int, kind, columns, (source -> 'v') - 'hash', (target -> 'v') - 'hash'
FROM payment_sync.discrepancies WHERE sync = 'big' AND (key ->> 'id')::int IN (2, 4, 11) ORDER BY 1
SQL
	join("\n",
		sprintf('2|different|{v}|{"bytes": 270000001, "begins": "%s"}|{"bytes": 270000001, "begins": "%1$s"}', 'y' x 200),
		sprintf('4|missing|{}|{"bytes": 17000000, "begins": "%s"}|', 'm' x 200),
		sprintf('11|unexpected|{}||{"bytes": 17000000, "begins": "%s"}', 'u' x 200)),
	'they are shown by their beginnings');
is(sql(<<'SQL'), "2|v|t\n5|b|t\n6|doc|t\n7|at|f\n9|v|f\n10|js|t", 'and told apart');
SELECT (key ->> 'id')::int, c, COALESCE((source -> c::text ->> 'hash') <> (target -> c::text ->> 'hash'), false)
FROM payment_sync.discrepancies, unnest(columns) c WHERE sync = 'big' AND kind = 'different' ORDER BY 1
SQL
is(sql(q{SELECT source ->> 'v' FROM payment_sync.discrepancies WHERE sync = 'big' AND key = '{"id": 9}'}),
	'{"hash": "ab", "bytes": 17, "begins": "c"}', 'a value that looks like that is shown so, which harms nothing');

# the report, and mending both ways
cmp_ok(sql('SELECT length(payment_sync.reconciliation_report(max(run))) FROM payment_sync.reconciliations'), '<', 1000000,
	'a report is for people');
is(sql(<<'SQL'), join("\n",
SELECT (key ->> 'id')::int, operation, reason FROM payment_sync.repair('big', direction => 'source') ORDER BY 1
SQL
	'2|none|a value of column "v" is too large to be recorded', '4|none|a value of column "v" is too large to be recorded',
	'5|none|a value of column "b" is too large to be recorded', '6|none|a value of column "doc" is too large to be recorded',
	'7|update|', '9|none|a value of column "v" is too large to be recorded',
	'10|none|a value of column "js" is too large to be recorded', '11|none|a value of column "v" is too large to be recorded'),
	'the source is mended by what is recorded, or not');
is(sql("SELECT (key ->> 'id')::int, operation FROM payment_sync.repair('big') ORDER BY 1"),
	"2|update\n4|update\n5|update\n6|update\n9|update\n10|update\n11|delete", 'the target by what the source has');
wait_delivered($source, 'big');
is(sql("$counts('big')"), '10|10|10|0|0|0|0', 'which makes both sides agree');

# many wide rows: more bytes than are read at a time
for my $node ($source, $target)
{
	$node->safe_psql('postgres', <<'SQL');
CREATE TABLE wide (id int PRIMARY KEY, v text);
ALTER TABLE wide ALTER v SET STORAGE EXTERNAL;
INSERT INTO wide SELECT i, repeat('w', 500000) || i FROM generate_series(1, 300) i;
SQL
}
$target->safe_psql('postgres', q{UPDATE wide SET v = v || 'x'});
sql(<<'SQL');
SELECT payment_sync.capture_table('wide');
SELECT payment_sync.create_sync('wide', '{wide}', server => 'target');
SQL
is(sql("$counts('wide')"), '300|300|0|0|0|300|0', 'wide rows');
is(sql("SELECT count(*) FROM payment_sync.discrepancies WHERE sync = 'wide' AND length(source ->> 'v') >= 500001"), '300', 'each of them is recorded whole');

done_testing();
