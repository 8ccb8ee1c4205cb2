# 115_pull.pl
#
# Pull: an application fetches changes, does its work, and acknowledges in the
# same transaction.  Whatever it did not acknowledge, or acknowledged in a
# transaction that was rolled back or lost, comes again: the same changes, with
# the same positions, in the same order.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncSession;
use PaymentSyncTest;
use Test::More;

my $source = start_source('source');
$source->safe_psql('postgres', <<'SQL');
CREATE EXTENSION payment_sync;
CREATE TABLE pay (id int PRIMARY KEY, v text);
CREATE TABLE copy (id int PRIMARY KEY, v text);
CREATE TABLE unrelated (id int PRIMARY KEY);
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.capture_table('unrelated');
SELECT payment_sync.create_sync('pull', '{pay}');
INSERT INTO pay SELECT i, 'v' || i FROM generate_series(1, 10) i;
INSERT INTO unrelated SELECT generate_series(1, 10);
UPDATE pay SET v = 'new' WHERE id = 1;
DELETE FROM pay WHERE id = 2;
SQL

# position, operation and key of what is fetched
sub fetch
{
	my ($n) = @_;
	return "SELECT position, operation, key->>'id' FROM payment_sync.fetch_changes('pull', $n)";
}

my $all = $source->safe_psql('postgres', fetch(100));
my @all = split /\n/, $all;
is(scalar @all, 12, 'all changes of the table, and of no other');
is($source->safe_psql('postgres', fetch(100)), $all, 'fetched again: the same');
is($source->safe_psql('postgres', fetch(3)), join("\n", @all[ 0 .. 2 ]), 'a part of them');
sub position { return (split /\|/, $all[ $_[0] ])[0]; }

# ------------------------------------------------------------ transactions

my $s = PaymentSyncSession->new($source, 'postgres');
$s->query('BEGIN');
is($s->query(fetch(3)), join("\n", @all[ 0 .. 2 ]), 'within a transaction');
$s->query("SELECT payment_sync.ack_changes('pull', '" . position(2) . "')");
is($s->query(fetch(3)), join("\n", @all[ 3 .. 5 ]), 'acknowledged: it goes on');
$s->query('ROLLBACK');
is($s->query(fetch(4)), join("\n", @all[ 0 .. 3 ]), 'rolled back: from the start');

$s->query("BEGIN; SELECT payment_sync.ack_changes('pull', '" . position(1) . "'); SAVEPOINT s");
$s->query("SELECT payment_sync.ack_changes('pull', '" . position(5) . "')");
is($s->query(fetch(2)), join("\n", @all[ 6 .. 7 ]), 'acknowledged in a savepoint');
$s->query('ROLLBACK TO s');
is($s->query(fetch(2)), join("\n", @all[ 2 .. 3 ]), 'which is rolled back');
$s->query('COMMIT');

# the connection goes away in the middle
my $pid = $s->query('BEGIN; SELECT pg_backend_pid()');
$s->query("SELECT payment_sync.ack_changes('pull', '" . position(7) . "')");
$source->safe_psql('postgres', "SELECT pg_terminate_backend($pid, 60000)");
$s->kill;
is($source->safe_psql('postgres', fetch(2)), join("\n", @all[ 2 .. 3 ]), 'a lost connection acknowledges nothing');

# the server goes away
for my $mode ('fast', 'immediate')
{
	$source->stop($mode);
	$source->start;
	is($source->safe_psql('postgres', fetch(100)), join("\n", @all[ 2 .. 11 ]),
		"after a restart ($mode): the same, with the same positions");
}

# what commits meanwhile is not mixed in; it follows
$source->safe_psql('postgres', "INSERT INTO pay VALUES (100, 'later')");
is($source->safe_psql('postgres', fetch(100)), join("\n", @all[ 2 .. 11 ]), 'a window does not change');

# ------------------------------------------------- late and bad acknowledgements

$source->safe_psql('postgres', "SELECT payment_sync.ack_changes('pull', '" . position(11) . "')");
is(stat($source, 'pull', 'lag_changes'), 1, 'lag counts what was not acknowledged');
my $later = $source->safe_psql('postgres', fetch(100));
like($later, qr/^[^\n]*\|insert\|100$/, 'then comes what was committed later');
$source->safe_psql('postgres', "SELECT payment_sync.ack_changes('pull', '" . position($_) . "')") for 0, 11;
is($source->safe_psql('postgres', fetch(100)), $later, 'late acknowledgements do no harm');
for my $bad ('1/2', 'x/y/z', '99/1/1', '', '1/1/1/1', '-1/1/1', '1/99999999999999999999/1')
{
	my ($rc, $stdout, $stderr) = $source->psql('postgres', "SELECT payment_sync.ack_changes('pull', '$bad')");
	like($stderr, qr/invalid position/, "\"$bad\" is refused");
}
$source->safe_psql('postgres', "SELECT payment_sync.ack_changes('pull', '" . (split /\|/, $later)[0] . "')");
is($source->safe_psql('postgres', fetch(100)), '', 'nothing left');
is(stat($source, 'pull', "lag_changes || ' ' || lag_bytes || ' ' || lag"), '0 0 00:00:00', 'no lag');

# --------------------------------------------- two consumers under traffic

# Each takes what is next, applies it here, acknowledges, and at times rolls
# back.  Together they apply each change exactly once, in order.
$source->safe_psql('postgres', <<'SQL');
INSERT INTO copy SELECT * FROM pay;
CREATE PROCEDURE consume() LANGUAGE plpgsql AS $$
DECLARE
	c record;
	n int;
	idle int := 0;
BEGIN
	WHILE idle < 3 LOOP
		n := 0;
		FOR c IN SELECT * FROM payment_sync.fetch_changes('pull', 7) LOOP
			n := n + 1;
			IF c.operation = 'delete' THEN
				DELETE FROM copy WHERE id = (c.key->>'id')::int;
			ELSIF c.operation = 'insert' THEN
				INSERT INTO copy VALUES ((c.new->>'id')::int, c.new->>'v');
			ELSE
				UPDATE copy SET v = c.new->>'v' WHERE id = (c.key->>'id')::int;
			END IF;
			PERFORM payment_sync.ack_changes('pull', c.position);
		END LOOP;
		IF random() < 0.3 THEN ROLLBACK; ELSE COMMIT; END IF;
		IF n = 0 AND EXISTS (SELECT FROM pay WHERE id = -1) THEN
			idle := idle + 1;
		END IF;
	END LOOP;
END $$;
SQL
my @consumers = map { PaymentSyncSession->new($source, 'postgres') } 1 .. 2;
$_->send('CALL consume()') for @consumers;
my $script = PostgreSQL::Test::Utils::tempdir() . '/pay.sql';
PostgreSQL::Test::Utils::append_to_file($script, <<'SQL');
\set id random(1, 50)
INSERT INTO pay VALUES (:id, 'x') ON CONFLICT (id) DO UPDATE SET v = pay.v || 'x';
\set id random(1, 50)
DELETE FROM pay WHERE id = :id AND length(v) > 5;
SQL
$source->command_ok(
	[
		'pgbench', '-n', '-c', 2, '-t', 400, '-f', $script, '-h',
		$source->host, '-p', $source->port, 'postgres'
	],
	'traffic');
$source->safe_psql('postgres', "INSERT INTO pay VALUES (-1, 'end')");
$_->wait for @consumers;
is( $source->safe_psql('postgres', <<'SQL'), '', 'two consumers apply each change once, in order');
(TABLE pay EXCEPT TABLE copy) UNION ALL (TABLE copy EXCEPT TABLE pay)
SQL

# ------------------------------------------------------- states and mistakes

$source->safe_psql('postgres', "SELECT payment_sync.disable_sync('pull')");
my (undef, undef, $stderr) = $source->psql('postgres', fetch(1));
like($stderr, qr/sync "pull" is disabled/, 'disabled');
$source->safe_psql('postgres', "INSERT INTO pay VALUES (-2, 'while disabled')");
$source->safe_psql('postgres', "SELECT payment_sync.enable_sync('pull')");
like($source->safe_psql('postgres', fetch(10)), qr/\|insert\|-2$/, 'enabled: nothing is missing');
$source->safe_psql('postgres', "SELECT payment_sync.enable_sync('pull', start => 'now')");
is($source->safe_psql('postgres', fetch(10)), '', "start => 'now' leaves out what was pending");

done_testing();
