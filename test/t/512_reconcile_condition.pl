# 512_reconcile_condition.pl
#
# A condition is an expression, at the target as here: it cannot end the
# statement that it is part of and begin another one.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncTest;
use Test::More;

my $source = start_source('source');
my $target = start_target('target');
my $schema = 'CREATE TABLE pay (id int PRIMARY KEY, note text)';
$source->safe_psql('postgres', $schema);
$target->safe_psql('postgres', $schema);
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target');
INSERT INTO pay SELECT i, 'x' FROM generate_series(1, 10) i;
SQL
wait_delivered($source, 'pay');

is($source->safe_psql('postgres',
		"SELECT matched, missing FROM payment_sync.reconcile('pay', condition => 'id > 5')"),
	'5|0', 'a condition holds on both sides');

# closes the query for checksums, leaves the read-only mode, and closes again
my ($status) = $source->psql('postgres', <<'SQL');
SELECT * FROM payment_sync.reconcile('pay', condition =>
	'true) OFFSET 0) s(i, x) GROUP BY i; COMMIT; BEGIN READ WRITE;'
	' CREATE TABLE public.smuggled (); COMMIT; SELECT 1 FROM (SELECT 1, 1 WHERE (true')
SQL
isnt($status, 0, 'one that ends the statement is an error');
is($target->safe_psql('postgres', "SELECT to_regclass('public.smuggled') IS NULL"),
	't', 'nothing else was run at the target');

done_testing();
