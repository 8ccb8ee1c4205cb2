# 930_pg_upgrade.pl
#
# What doc/operating says of pg_upgrade: definitions, log and positions come
# along, nothing runs meanwhile, and afterwards a sync delivers what was
# pending and what comes, once.  Old and new server are of one version, which
# is enough for pg_upgrade to do all it does.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $old = start_source('old');
my $target = start_target('target');
$_->safe_psql('postgres', 'CREATE TABLE payments (id bigint PRIMARY KEY, amount numeric)')
  for $old, $target;
connect_target($old, $target);
$old->safe_psql('postgres', <<'SQL');
INSERT INTO payments SELECT i, i FROM generate_series(1, 500) i;
SELECT payment_sync.capture_table('payments');
SELECT payment_sync.create_sync('ledger', '{payments}', server => 'target', batch => true);
SELECT payment_sync.create_sync('billing', '{payments}');
UPDATE payments SET amount = amount + 1 WHERE id % 2 = 0;
SQL
wait_delivered($old, 'ledger');
my $position = $target->safe_psql('postgres', 'SELECT position FROM payment_sync_target.position');

# pending: changes made while the target was away
$target->stop;
$old->safe_psql('postgres', 'DELETE FROM payments WHERE id <= 10; INSERT INTO payments VALUES (1000, 1)');
my $fetched = $old->safe_psql('postgres', "SELECT position, key FROM payment_sync.fetch_changes('billing', 3)");
$old->stop;
my $log_end = -s $old->logfile;

my $new = PostgreSQL::Test::Cluster->new('new');
$new->init(allows_streaming => 1);
$new->append_conf('postgresql.conf', <<CONF);
listen_addresses = '127.0.0.1'
shared_preload_libraries = 'payment_sync'
max_prepared_transactions = 20
payment_sync.retry_delay_max = '500ms'
CONF
chdir $new->basedir;
command_ok(
	[
		'pg_upgrade', '--no-sync', '-d', $old->data_dir, '-D', $new->data_dir,
		'-b', $old->config_data('--bindir'), '-B', $new->config_data('--bindir'),
		'-s', $new->host, '-p', $old->port, '-P', $new->port
	],
	'pg_upgrade');
unlike(slurp_file($old->logfile, $log_end), qr/payment_sync worker/, 'no worker ran meanwhile');
$target->start;
is($target->safe_psql('postgres', 'SELECT position FROM payment_sync_target.position'),
	$position, 'nothing was delivered meanwhile');

$new->start;
wait_delivered($new, 'ledger');
same_rows($new, $target, 'SELECT * FROM payments', 'what was pending arrives');
is($new->safe_psql('postgres', "SELECT position, key FROM payment_sync.fetch_changes('billing', 3)"),
	$fetched, 'a pull sync goes on at the same changes');
$new->safe_psql('postgres', <<'SQL');
UPDATE payments SET amount = -amount;
INSERT INTO payments VALUES (1001, 2);
SQL
wait_delivered($new, 'ledger');
same_rows($new, $target, 'SELECT * FROM payments', 'and what comes');
is(stat($new, 'ledger', 'state IN (\'idle\', \'running\')'), 't', 'without an error');

done_testing();
