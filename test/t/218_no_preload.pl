# 218_no_preload.pl
#
# Without shared_preload_libraries there are no processes: sessions deliver by
# the procedures.  Appending to the log is ordered by a heavyweight lock then,
# under which many writers must lose nothing.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncSession;
use PaymentSyncTest;
use Test::More;

my $source = start_source('source', preload => 0, conf => "payment_sync.log_segment_size = '1MB'\n");
my $target = start_target('target');

$_->safe_psql('postgres', 'CREATE TABLE pay (id bigint PRIMARY KEY, v text)') for $source, $target;
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
INSERT INTO pay SELECT i, 'before' FROM generate_series(1, 1000) i;
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target', batch => true);
SELECT payment_sync.create_sync('pull', '{pay}');
CREATE SEQUENCE ids START 100000;
SQL
is( $source->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'payment_sync%'"),
	0, 'there is no process of ours');
is(stat($source, 'pay', 'state'), 'pending', 'the batch is pending');
$source->safe_psql('postgres', "CALL payment_sync.incremental_sync('pay')");
same_rows($source, $target, 'SELECT * FROM pay', 'incremental_sync() does the batch that was asked for');

# Writers, some with more than a page at a time and savepoints, and two
# sessions that deliver at the same time.
my $script = PostgreSQL::Test::Utils::tempdir() . '/write.sql';
PostgreSQL::Test::Utils::append_to_file($script, <<'SQL');
\set hot random(1, 20)
\set n random(1, 30)
BEGIN;
INSERT INTO pay SELECT nextval('ids'), repeat('w', 500) FROM generate_series(1, :n);
SAVEPOINT s;
UPDATE pay SET v = 'taken back' WHERE id = :hot;
ROLLBACK TO s;
UPDATE pay SET v = v || 'x' WHERE id = :hot;
COMMIT;
SQL
$source->safe_psql('postgres', <<'SQL');
CREATE PROCEDURE deliver() LANGUAGE plpgsql AS $$
BEGIN
	WHILE NOT EXISTS (SELECT FROM pay WHERE id = -1) LOOP
		CALL payment_sync.incremental_sync('pay');
	END LOOP;
END $$;
SQL
my @sessions = map { PaymentSyncSession->new($source, 'postgres') } 1 .. 2;
$_->send('CALL deliver()') for @sessions;
$source->command_ok(
	[
		'pgbench', '-n', '-c', 4, '-t', 250, '-f', $script, '-h',
		$source->host, '-p', $source->port, 'postgres'
	],
	'four writers');
$source->safe_psql('postgres', "INSERT INTO pay VALUES (-1, 'end')");
$_->wait for @sessions;
$source->safe_psql('postgres', "CALL payment_sync.incremental_sync('pay')");
same_rows($source, $target, 'SELECT * FROM pay', 'nothing is lost');
is( $source->safe_psql('postgres', "SELECT count(*) FROM payment_sync.changes WHERE new->>'v' = 'taken back'"),
	0, 'and nothing that was rolled back is in the log');

# The pull sync holds the log.  Once it is acknowledged tidy_log() empties it.
my $size = $source->safe_psql('postgres', 'SELECT payment_sync.log_size()');
cmp_ok($size, '>', 4 * 1024 * 1024, 'the log has grown');
$source->safe_psql('postgres', 'CALL payment_sync.tidy_log()');
cmp_ok($source->safe_psql('postgres', 'SELECT payment_sync.log_size()'), '>=', $size, 'tidy_log() keeps what a sync needs');
1 while $source->safe_psql('postgres', <<'SQL') ne '0';
SELECT count(payment_sync.ack_changes('pull', position))
FROM (SELECT position FROM payment_sync.fetch_changes('pull', 100000) WITH ORDINALITY ORDER BY ordinality DESC LIMIT 1) f
SQL
$source->safe_psql('postgres', "CALL payment_sync.tidy_log()");
cmp_ok($source->safe_psql('postgres', 'SELECT payment_sync.log_size()'), '<', 2 * 1024 * 1024, 'and empties the rest');
my (undef, undef, $stderr) = $source->psql('postgres', 'BEGIN; CALL payment_sync.tidy_log()');
like($stderr, qr/cannot run inside a transaction block/, 'not inside a transaction');

# A batch by hand, while others write.
$target->safe_psql('postgres', 'DELETE FROM pay WHERE id % 3 = 0; INSERT INTO pay SELECT -i, $$too much$$ FROM generate_series(10, 20) i');
$source->safe_psql('postgres', "CALL payment_sync.batch_sync('pay', mirror => true)");
same_rows($source, $target, 'SELECT * FROM pay', 'batch_sync() with mirror');
is(stat($source, 'pay', 'state'), 'idle', 'nothing is pending');

# An error reaches the caller; the session goes on.
$target->safe_psql('postgres', 'ALTER TABLE pay RENAME TO elsewhere');
$source->safe_psql('postgres', "UPDATE pay SET v = 'there' WHERE id = 1");
my $session = $sessions[0];
$session->query("CALL payment_sync.incremental_sync('pay')", may_fail => 1);
like($session->{error}, qr/ERROR:.*pay/s, 'an error at the target is the caller\'s');
$target->safe_psql('postgres', 'ALTER TABLE elsewhere RENAME TO pay');
$session->query("CALL payment_sync.incremental_sync('pay')");
same_rows($source, $target, 'SELECT * FROM pay', 'mended, the same session delivers');

# Loaded later, in one session, it does not pretend to have workers.
is($source->safe_psql('postgres', "LOAD 'payment_sync'; SELECT payment_sync.wake_workers(); SELECT 'fine'"),
	"\nfine", 'waking nobody is harmless');

done_testing();
