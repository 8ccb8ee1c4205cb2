# 010_capture.pl
#
# Four sessions fight over fifty rows: upserts, deletes, rows that take over
# each other's keys, savepoints and whole transactions rolled back.  Meanwhile
# the server crashes.  Then the log, replayed change by change in order of
# position, must make exactly the table: nothing of what was committed is
# missing, nothing else is there (P1), and the last change of each key is the
# last one that happened (P4).
#
# Once with the library preloaded, once without (then another kind of lock
# orders appends), and once with wal_level = minimal, where a transaction may
# change a table without writing WAL.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use IPC::Run qw(start);
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $script = "$PostgreSQL::Test::Utils::tmp_check/fight.sql";
append_to_file($script, <<'SQL');
\set id random(1, 50)
\set other random(1, 50)
\set end random(1, 5)
BEGIN;
INSERT INTO pay VALUES (:id, 1, :client_id) ON CONFLICT (id) DO UPDATE SET n = pay.n + 1, who = :client_id;
SAVEPOINT a;
DELETE FROM pay WHERE id = :other;
\if :id % 2
ROLLBACK TO a;
\else
DO $do$ BEGIN
	UPDATE pay SET id = :other WHERE id = :id;
EXCEPTION WHEN unique_violation THEN
	UPDATE pay SET n = 0 WHERE id = :other;
END $do$;
\endif
UPDATE pay SET n = n + 1 WHERE id = 1 + :id % 50;
\if :end = 1
ROLLBACK;
\else
COMMIT;
\endif
SQL

my $setup = <<'SQL';
CREATE EXTENSION payment_sync;
CREATE TABLE pay (id int PRIMARY KEY, n int, who int);
CREATE TABLE replica (LIKE pay INCLUDING ALL);
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('keeps the log', '{pay}');
CREATE FUNCTION replay() RETURNS void LANGUAGE plpgsql AS $$
DECLARE c record;
BEGIN
	DELETE FROM replica;
	FOR c IN SELECT * FROM payment_sync.changes LOOP
		IF c.operation = 'truncate' THEN
			DELETE FROM replica;
			CONTINUE;
		END IF;
		DELETE FROM replica WHERE id IN ((c.key->>'id')::int, (c.old->>'id')::int);
		INSERT INTO replica SELECT r.* FROM jsonb_populate_record(NULL::replica, c.new) r
			WHERE c.new IS NOT NULL;
	END LOOP;
END $$;
SQL

sub log_is_table
{
	my ($node, $name) = @_;
	$node->safe_psql('postgres', 'SELECT replay()');
	is( $node->safe_psql('postgres',
			'(TABLE pay EXCEPT ALL TABLE replica) UNION ALL (TABLE replica EXCEPT ALL TABLE pay)'),
		'', $name);
}

# Fight until there are so many changes, then crash, or let it end.
sub fight
{
	my ($node, $changes, $crash) = @_;
	my ($out, $err) = ('', '');
	my $before = $node->safe_psql('postgres', 'SELECT count(*) FROM payment_sync.changes');
	my $bench = start [
		'pgbench', '-n', '-c', 4, '--max-tries', 100, '-h', $node->host, '-p', $node->port,
		'-f', $script, $crash ? ('-T', 600) : ('-t', $changes / 10), 'postgres' ],
	  '>', \$out, '2>', \$err;
	if ($crash)
	{
		$node->poll_query_until('postgres',
			"SELECT count(*) >= $before + $changes FROM payment_sync.changes")
		  or die 'pgbench does not get on';
		$node->stop('immediate');
		$bench->finish;
		$node->start;
	}
	else
	{
		$bench->finish;
		unlike($err, qr/ERROR|FATAL/, 'pgbench met no error');
	}
}

for my $case (
	[ 'preloaded', preload => 1, conf => "synchronous_commit = off\n" ],
	[ 'not preloaded', preload => 0 ],
	[ 'wal_level minimal', preload => 0, conf => "wal_level = minimal\nmax_wal_senders = 0\n" ])
{
	my ($name, %option) = ($case->[0], conf => '', @$case[ 1 .. $#$case ]);
	(my $node_name = $name) =~ tr/ /_/;
	$option{conf} .= "deadlock_timeout = '20ms'\n";
	my $node = start_source($node_name, %option);
	$node->safe_psql('postgres', $setup);
	fight($node, 1500, 1);
	log_is_table($node, "$name: log and table are equal after a crash");
	fight($node, 1500, 0);
	log_is_table($node, "$name: log and table are equal at the end");

	# a new file for the table: under wal_level = minimal without WAL
	$node->safe_psql('postgres', <<'SQL');
BEGIN;
TRUNCATE pay;
INSERT INTO pay SELECT g, g FROM generate_series(1, 20) g;
UPDATE pay SET n = n + 1;
COMMIT;
UPDATE pay SET n = n + 1 WHERE id < 10;
DELETE FROM pay WHERE id = 1;
SQL
	log_is_table($node, "$name: log and table are equal after a new start");
	$node->stop;
}

done_testing();
