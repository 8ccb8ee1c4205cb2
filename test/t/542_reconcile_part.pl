# 542_reconcile_part.pl
#
# A part of a table: a range of keys, a condition, keys of recent changes; each
# begun in the background, interrupted and gone on with.  And relations of this
# database, in the background and while the other one follows.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use PaymentSyncTest;
use Test::More;

my $rows = 100000;
my $source = start_source('source');
my $target = start_target('target');
for my $node ($source, $target)
{
	$node->safe_psql('postgres', <<SQL);
CREATE TABLE pay (id bigint PRIMARY KEY, amount numeric(12,2), kind int);
INSERT INTO pay SELECT i, i, i % 10 FROM generate_series(1, $rows) i;
ANALYZE pay;
SQL
}
connect_target($source, $target);
# what was there before is not in the log
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target');
UPDATE pay SET amount = 0 WHERE id IN (5, 6, 50005);
DELETE FROM pay WHERE id = 7;
INSERT INTO pay VALUES (200000, 1, 1), (200001, 1, 2);
UPDATE pay SET id = 300000 WHERE id = 8;
SQL
wait_delivered($source, 'pay');
$target->safe_psql('postgres', <<'SQL');
UPDATE pay SET amount = 1 WHERE id IN (5, 500, 60000);	-- one of them recent
DELETE FROM pay WHERE id IN (200000, 70000);			-- likewise
INSERT INTO pay VALUES (7, 7, 7), (8, 8, 8), (400000, 0, 0);	-- two of them
SQL

sub result
{
	my ($run) = @_;
	return $source->safe_psql('postgres', <<SQL);
SELECT state, source_rows, target_rows, missing, unexpected, different, in_flight
FROM payment_sync.reconciliations WHERE run = $run
SQL
}
sub compare
{
	my ($arguments) = @_;
	return $source->safe_psql('postgres', <<SQL);
SELECT source_rows, missing, unexpected, different, in_flight FROM payment_sync.reconcile('pay', 'pay', $arguments)
SQL
}
sub keys_of_last
{
	return $source->safe_psql('postgres', <<'SQL');
SELECT string_agg(key->>'id', ' ' ORDER BY (key->>'id')::bigint) FROM payment_sync.discrepancies
WHERE run = (SELECT max(run) FROM payment_sync.reconciliations)
SQL
}

is(compare('recent => true'), '6|1|2|1|0', 'keys of recent changes');
is(keys_of_last(), '5 7 8 200000', 'and of no others');
is(compare(q{recent => true, condition => 'kind = 5'}), '2|0|0|1|0', 'of these, by a condition');
is(compare(q{key_after => '{100}', key_upto => '{65000}'}), '64900|0|0|2|0', 'a range of keys');
is(keys_of_last(), '500 60000', 'its keys');
is(compare(q{condition => 'kind = 0', key_upto => '{65000}'}), '6500|0|0|2|0', 'both');
is(compare(q{recent => false}), ($rows + 1) . '|2|3|3|0', 'the whole');

# interrupted, and gone on with: the part stays the part
for my $part (q{key_after => '{100}', key_upto => '{65000}'}, q{condition => 'id <= 65000 AND id > 100'})
{
	my $run = $source->safe_psql('postgres',
		"SELECT payment_sync.start_reconciliation('pay', 'pay', $part, rows_per_second => 30000)");
	$source->poll_query_until('postgres', "SELECT state = 'running' AND source_rows > 0 FROM payment_sync.reconciliations WHERE run = $run")
	  or die 'it does not run';
	$source->safe_psql('postgres', "SELECT payment_sync.cancel_reconciliation($run)");
	$source->poll_query_until('postgres', 'SELECT count(*) = 0 FROM payment_sync.progress_reconcile');
	like(result($run), qr/^cancelled\|/, "$part: cancelled");
	$source->safe_psql('postgres', "CALL payment_sync.run_reconciliation($run)");
	is(result($run), 'done|64900|64900|0|0|2|0', 'gone on with: the rest of the part');
}
my $run = $source->safe_psql('postgres', "SELECT payment_sync.start_reconciliation('pay', 'pay', recent => true)");
$source->poll_query_until('postgres', "SELECT state = 'done' FROM payment_sync.reconciliations WHERE run = $run");
is(result($run), 'done|6|7|1|2|1|0', 'keys of recent changes, in the background');

# ------------------------------------------------------- two relations here
$source->safe_psql('postgres', <<'SQL');
CREATE ROLE clerk;
CREATE TABLE settled (id bigint PRIMARY KEY, amount numeric(12,2), kind int);
INSERT INTO settled SELECT * FROM pay WHERE id NOT IN (1, 2);
UPDATE settled SET kind = 11 WHERE id = 3;
GRANT SELECT ON settled TO clerk;
SQL
$run = $source->safe_psql('postgres', "SELECT payment_sync.start_reconciliation_with('pay', 'settled')");
ok($source->poll_query_until('postgres', "SELECT state = 'done' FROM payment_sync.reconciliations WHERE run = $run"),
	'with another relation, in the background');
is(result($run), 'done|' . ($rows + 1) . '|' . ($rows - 1) . '|2|0|1|0', 'its result');
$run = $source->safe_psql('postgres', "SET ROLE clerk; SELECT payment_sync.start_reconciliation_with('pay', 'settled')");
ok($source->poll_query_until('postgres', "SELECT state = 'failed' FROM payment_sync.reconciliations WHERE run = $run"),
	'with the rights of who asked');
like($source->safe_psql('postgres', "SELECT error FROM payment_sync.reconciliations WHERE run = $run"),
	qr/permission denied for table pay/, 'who has none');

# the other one follows: what differs is looked at again, and again
$run = $source->safe_psql('postgres', "SELECT payment_sync.start_reconciliation_with('pay', 'settled', max_wait => '1 h')");
ok($source->poll_query_until('postgres', "SELECT phase = 'settling' AND suspects = 3 FROM payment_sync.progress_reconcile WHERE run = $run"),
	'suspects wait');
$source->safe_psql('postgres', 'INSERT INTO settled SELECT * FROM pay WHERE id IN (1, 2); UPDATE settled SET kind = 3 WHERE id = 3');
ok($source->poll_query_until('postgres', "SELECT state = 'done' FROM payment_sync.reconciliations WHERE run = $run"),
	'until they agree');
like(result($run), qr/^done\|\d+\|\d+\|0\|0\|0\|0$/, 'no false alarm');
$source->safe_psql('postgres', 'DELETE FROM settled WHERE id = 9');
is($source->safe_psql('postgres', "SELECT missing, in_flight FROM payment_sync.reconcile_with('pay', 'settled', max_wait => '0.2 s')"),
	'1|0', 'what differs at the end is a discrepancy');

done_testing();
