# 231_restore.pl
#
# A server restored from a dump takes the place of the one that was dumped: its
# syncs are stopped, do not run off, and go on as they are told to: with a
# batch, by which the target becomes equal, or from now on.  (012_dump.pl has
# what a dump keeps, and pg_upgrade.)

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = start_source('source');
my $target = start_target('target');

$_->safe_psql('postgres', 'CREATE TABLE pay (id int PRIMARY KEY, v text); CREATE TABLE fee (id int PRIMARY KEY, v text)')
  for $source, $target;
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.capture_table('fee');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target');
SELECT payment_sync.create_sync('fee', '{fee}', server => 'target');
INSERT INTO pay SELECT i, 'dumped' FROM generate_series(1, 1000) i;
INSERT INTO fee SELECT i, 'dumped' FROM generate_series(1, 1000) i;
SQL
wait_delivered($source, $_) for 'pay', 'fee';

my $dump = "$PostgreSQL::Test::Utils::tmp_check/all.sql";
$source->command_ok([ 'pg_dumpall', '-h', $source->host, '-p', $source->port, '-f', $dump ], 'pg_dumpall');
$source->safe_psql('postgres', <<'SQL');
UPDATE pay SET v = 'lost' WHERE id <= 10;
INSERT INTO pay VALUES (2000, 'lost');
DELETE FROM pay WHERE id = 500;
SQL
wait_delivered($source, 'pay');
$source->stop;

my $restored = start_source('restored');
$restored->command_ok([ 'psql', '-XAtq', '-h', $restored->host, '-p', $restored->port, '-f', $dump, 'postgres' ], 'restored');
is($restored->safe_psql('postgres', 'SELECT name, state, lag_changes IS NULL, worker_pid IS NULL FROM payment_sync.stat_sync ORDER BY 1'),
	"fee|stopped|t|t\npay|stopped|t|t", 'the syncs are stopped');
$restored->safe_psql('postgres', "UPDATE pay SET v = 'restored' WHERE id = 1");
is($restored->safe_psql('postgres', "SELECT new->>'v' FROM payment_sync.changes"), 'restored', 'changes are captured');
my (undef, undef, $stderr) = $restored->psql('postgres', "SELECT payment_sync.enable_sync('pay')");
like($stderr, qr/has no position to go on from.*restored from a dump.*start => 'batch'/s, 'it cannot just go on');
(undef, undef, $stderr) = $restored->psql('postgres', "CALL payment_sync.incremental_sync('pay')");
like($stderr, qr/not enabled/, 'nor deliver by hand');
is($target->safe_psql('postgres', "SELECT count(*) FROM pay WHERE v = 'restored'"), 0, 'nothing has run off');

$restored->safe_psql('postgres', "SELECT payment_sync.enable_sync('pay', start => 'batch')");
wait_delivered($restored, 'pay');
same_rows($restored, $target, 'SELECT * FROM pay', "start => 'batch' makes the target equal, also what was lost");
$restored->safe_psql('postgres', "UPDATE pay SET v = 'on' WHERE id = 2");
wait_delivered($restored, 'pay');
same_rows($restored, $target, 'SELECT * FROM pay', 'and it follows on');

$restored->safe_psql('postgres', "SELECT payment_sync.enable_sync('fee', start => 'now')");
$restored->safe_psql('postgres', "UPDATE fee SET v = 'now' WHERE id = 1");
wait_delivered($restored, 'fee');
same_rows($restored, $target, 'SELECT * FROM fee', "start => 'now' for a target that is equal");
is(stat($restored, 'fee', 'rows_read'), 0, 'nothing was copied');

# The old server comes back: two sources of one target must not be.
$source->start;
$source->safe_psql('postgres', "UPDATE pay SET v = 'old server' WHERE id = 3");
ok($source->poll_query_until('postgres', "SELECT failures > 0 FROM payment_sync.stat_sync WHERE name = 'pay'"),
	'the old server, should it come back, is refused');
like(stat($source, q(pay), q(last_error)), qr{another change log|lost its position}, q(and says why));
same_rows($restored, $target, 'SELECT * FROM pay', 'the target is as it was');

done_testing();
