# 920_pg_cron.pl
#
# The README's schedule with pg_cron delivers, without workers of our own: a
# procedure that commits on its way runs where pg_cron runs commands.  Needs
# pg_cron, and until the next full minute.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $sharedir = `pg_config --sharedir`;
chomp $sharedir;
plan skip_all => 'pg_cron is not installed' if !-e "$sharedir/extension/pg_cron.control";

my $source = start_source('source', preload => 0, conf => <<CONF);
shared_preload_libraries = 'payment_sync, pg_cron'
payment_sync.max_workers = 0
cron.use_background_workers = on
max_worker_processes = 16
CONF
my $target = start_target('target');
$_->safe_psql('postgres', 'CREATE TABLE payments (id bigint PRIMARY KEY, amount numeric)')
  for $source, $target;
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
CREATE EXTENSION pg_cron;
SELECT payment_sync.capture_table('payments');
INSERT INTO payments SELECT i, i FROM generate_series(1, 3000) i;
SELECT payment_sync.create_sync('ledger', '{payments}', server => 'target', batch => true);
INSERT INTO payments VALUES (0, 0);
SQL

my ($schedule) = slurp_file("$FindBin::Bin/../../README.md") =~ /^(SELECT cron\.schedule\('deliver.*?;)$/m;
ok($schedule, 'the README has a schedule');
$source->safe_psql('postgres', $schedule);
ok( $source->poll_query_until(
		'postgres', "SELECT count(*) > 0 FROM cron.job_run_details WHERE status IN ('succeeded', 'failed')"),
	'the job runs');
is($source->safe_psql('postgres', 'SELECT status, return_message FROM cron.job_run_details ORDER BY runid LIMIT 1')
	  =~ s/\|.*//r, 'succeeded', 'and succeeds')
  or diag($source->safe_psql('postgres', 'SELECT * FROM cron.job_run_details'));
same_rows($source, $target, 'SELECT * FROM payments', 'the target follows');
is(stat($source, 'ledger', 'lag_changes'), 0, 'nothing is pending');

done_testing();
