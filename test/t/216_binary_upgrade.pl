# 216_binary_upgrade.pl
#
# In pg_upgrade's binary-upgrade mode no process of ours starts: nothing may
# be delivered, nor anything written, while pg_upgrade is at work.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncTest;
use Test::More;

my $source = start_source('source');
my $target = start_target('target');

$_->safe_psql('postgres', 'CREATE TABLE pay (id int PRIMARY KEY, v text)') for $source, $target;
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target');
SELECT payment_sync.disable_sync('pay');
INSERT INTO pay VALUES (1, 'pending');
SELECT payment_sync.enable_sync('pay') WHERE false;
UPDATE payment_sync.sync SET enabled = true;
SQL
$source->stop;

# As pg_upgrade starts servers, roughly.
$source->command_ok(
	[ 'pg_ctl', '-w', '-D', $source->data_dir, '-l', $source->logfile, '-o', '-b', 'start' ],
	'a server in binary-upgrade mode');
$source->_update_pid(1);
is( $source->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'payment_sync%'"),
	0, 'has neither launcher nor worker');
is( $source->safe_psql('postgres', "SELECT lag_changes, state FROM payment_sync.stat_sync"),
	'1|pending', 'though there is something to deliver');
is($target->safe_psql('postgres', 'SELECT count(*) FROM pay'), 0, 'nothing is delivered');
$source->stop;
$source->start;
wait_delivered($source, 'pay');
same_rows($source, $target, 'SELECT * FROM pay', 'afterwards it is');

done_testing();
