# 333_incremental.pl
#
# incremental_sync() and batch_sync() deliver in the caller's session, with the
# worker's code: without preload, and with workers beside them.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncApply;
use PaymentSyncTest;
use Test::More;

my $bare = start_source('bare', preload => 0);
my $source = start_source('source');
my $target = start_target('target');
my $port = $target->port;

for my $node ($bare, $source)
{
	my $name = $node->name;
	my $db = $name eq 'bare' ? 'bare' : 'postgres';
	$target->safe_psql('postgres', 'CREATE DATABASE bare') if $db eq 'bare';
	my $tables = 'CREATE TABLE pay (id int PRIMARY KEY, v text)';
	$node->safe_psql('postgres', $tables);
	$target->safe_psql($db, $tables);
	connect_target($node, $target, db => $db);
	$node->safe_psql('postgres', <<'SQL');
INSERT INTO pay SELECT i, 'before' FROM generate_series(1, 40000) i;
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target', batch => true);
INSERT INTO pay VALUES (100001, 'after');
SQL
	my $call = "CALL payment_sync.incremental_sync('pay')";
	my $same = sub { same_rows($node, $target, 'SELECT * FROM pay', "$name: $_[0]", targetdb => $db) };
	if ($name eq 'bare')
	{
		is($target->safe_psql($db, 'SELECT count(*) FROM pay'), 0, "$name: nothing goes by itself");
		is(stat($node, 'pay', 'state'), 'pending', "$name: it is pending");
	}
	$node->safe_psql('postgres', $call);
	$same->('the first copy, and what came after it');
	$node->safe_psql('postgres', "UPDATE pay SET v = 'x' WHERE id < 10; DELETE FROM pay WHERE id = 20; $call");
	$same->('a small window');
	$node->safe_psql('postgres', "UPDATE pay SET v = 'y'");
	$node->safe_psql('postgres', $call);
	$same->('a large window');
	is(stat($node, 'pay', 'lag_changes || \' \' || errors'), '0 0', "$name: and stat_sync knows");
	$node->safe_psql('postgres', $call);
	$same->('nothing to do');
	$target->safe_psql($db, 'DELETE FROM pay WHERE id % 2 = 0; INSERT INTO pay VALUES (-1)');
	$node->safe_psql('postgres', "CALL payment_sync.batch_sync('pay', 'pay', mirror => true)");
	$same->('batch_sync with mirror');

	# several in one session; DDL in between
	$target->safe_psql($db, 'ALTER TABLE pay ADD n int');
	$node->safe_psql('postgres', <<SQL);
$call;
INSERT INTO pay VALUES (100002, 'z');
$call;
ALTER TABLE pay ADD n int;
UPDATE pay SET n = id WHERE id < 100;
$call;
TRUNCATE pay;
INSERT INTO pay VALUES (1, 'one', 1);
$call;
SQL
	$same->('several calls of one session, with DDL');

	# where it cannot run
	for my $case (
		[ 'in a transaction block', "BEGIN; $call; COMMIT" ],
		[ 'in a function', "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS \$\$BEGIN $call; END\$\$; SELECT f()" ],
		[ 'batch_sync in a transaction block', "BEGIN; CALL payment_sync.batch_sync('pay'); COMMIT" ])
	{
		my ($rc, $out, $err) = $node->psql('postgres', $case->[1]);
		like($err, qr/procedure "(incremental|batch)_sync" cannot run inside a transaction block.*DETAIL:.*commits after each window/s,
			"$name: $case->[0], a clear error");
	}
	$node->safe_psql('postgres', "DO \$\$BEGIN $call; END\$\$");
	pass("$name: in a DO block of its own it can");

	# errors reach the caller, and the next call goes on
	$target->safe_psql($db, 'ALTER TABLE pay RENAME TO gone');
	$node->safe_psql('postgres', "INSERT INTO pay VALUES (7, 'seven')");
	my ($rc, $out, $err) = $node->psql('postgres', $call);
	like($err, qr/public\.pay.* does not exist/, "$name: the target's error is the caller's");
	$target->safe_psql($db, 'ALTER TABLE gone RENAME TO pay');
	$node->safe_psql('postgres', $call);
	$same->('mended, the next call delivers');
	for my $wrong ([ 'no_such', 'does not exist' ], [ 'pull', 'has no target' ], [ 'off', 'is not enabled' ])
	{
		$node->safe_psql('postgres', <<'SQL') if $wrong->[0] eq 'pull';
SELECT payment_sync.create_sync('pull', '{pay}');
SELECT payment_sync.create_sync('off', '{pay}', server => 'target', enabled => false);
SQL
		($rc, $out, $err) = $node->psql('postgres', "CALL payment_sync.incremental_sync('$wrong->[0]')");
		like($err, qr/sync "$wrong->[0]" $wrong->[1]/, "$name: $wrong->[0]");
	}
}

done_testing();
