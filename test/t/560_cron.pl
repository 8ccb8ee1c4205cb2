# The example with pg_cron, with the real one.  It begins with the next full
# minute, so this takes up to a minute.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

chomp(my $sharedir = `pg_config --sharedir`);
plan skip_all => 'pg_cron is not installed' if !-e "$sharedir/extension/pg_cron.control";

my $source = start_source('source', preload => 0, conf => <<'CONF');
shared_preload_libraries = 'payment_sync, pg_cron'
cron.database_name = 'postgres'
cron.use_background_workers = on
max_worker_processes = 20
CONF
my $target = start_target('target');
for my $node ($source, $target)
{
	$node->safe_psql('postgres',
		'CREATE TABLE pay (id int PRIMARY KEY); INSERT INTO pay SELECT generate_series(1, 1000)');
}
connect_target($source, $target);
$target->safe_psql('postgres', 'DELETE FROM pay WHERE id = 500');
$source->safe_psql('postgres', <<'SQL');
CREATE EXTENSION pg_cron;
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('ledger', '{pay}', server => 'target');
SELECT cron.schedule('reconcile ledger', '* * * * *', $$SELECT payment_sync.reconcile('ledger')$$);
SQL
ok($source->poll_query_until('postgres',
	"SELECT state = 'done' AND missing = 1 FROM payment_sync.reconciliations ORDER BY run LIMIT 1"),
	'pg_cron reconciles');
ok($source->poll_query_until('postgres',
	"SELECT status = 'succeeded' FROM cron.job_run_details ORDER BY runid LIMIT 1"), 'and is content');
is($source->safe_psql('postgres', "SELECT agrees FROM payment_sync.stat_sync WHERE name = 'ledger'"),
	'f', 'the verdict shows');
$source->safe_psql('postgres', "SELECT cron.unschedule('reconcile ledger')");

done_testing();
