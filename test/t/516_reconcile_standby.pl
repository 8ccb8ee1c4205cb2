# 516_reconcile_standby.pl
#
# Reading through a server that is not where the target is: a standby whose
# replay is paused, one that is promoted, the target restored to an earlier
# position, a server that has the tables and no position.  Nothing is called a
# discrepancy that is none; what differs is in flight, with a warning, and is
# decided once the server has caught up.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use PaymentSyncSession;
use PaymentSyncTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = start_source('source');
my $target = PostgreSQL::Test::Cluster->new('target');
$target->init(allows_streaming => 1);
$target->start;
$target->safe_psql('postgres', 'CREATE TABLE pay (id int PRIMARY KEY, v int)');
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
CREATE TABLE pay (id int PRIMARY KEY, v int);
INSERT INTO pay SELECT i, 0 FROM generate_series(1, 1000) i;
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target', batch => true);
SQL
wait_delivered($source, 'pay');

$target->backup('copy');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($target, 'copy', has_streaming => 1);
$standby->start;
connect_target($source, $standby, server => 'standby');
$target->safe_psql('postgres', 'CREATE DATABASE bare');
$target->safe_psql('bare', 'CREATE TABLE pay (id int PRIMARY KEY, v int)');
connect_target($source, $target, server => 'bare', db => 'bare');

# counts and warnings of a run
sub counts
{
	my ($server, $wait) = @_;
	my ($code, $out, $err) = $source->psql('postgres',
		"SELECT missing, unexpected, different, in_flight FROM payment_sync.reconcile('pay', server => '$server', max_wait => '$wait')");
	return $out . ($err =~ /lags behind the target/ ? ' lags' : '');
}

sub open_discrepancies
{
	return $source->safe_psql('postgres', "SELECT count(*) FROM payment_sync.discrepancies WHERE sync = 'pay' AND state = 'open'");
}

$target->wait_for_catchup($standby, 'replay', $target->lsn('write'));
is(counts('standby', '10 s'), '0|0|0|0', 'a standby in step');

$standby->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
$standby->poll_query_until('postgres', q{SELECT pg_get_wal_replay_pause_state() = 'paused'}) or die 'replay goes on';
my $changes = <<'SQL';
UPDATE pay SET v = v + 1 WHERE id <= 100;
INSERT INTO pay VALUES (2000, 1);
DELETE FROM pay WHERE id = 500;
SQL
$source->safe_psql('postgres', $changes);
wait_delivered($source, 'pay');
is(counts('target', '10 s'), '0|0|0|0', 'the target itself');
is(counts('standby', '0'), '0|0|0|102 lags', 'a standby that lags: nothing is decided');
is(open_discrepancies(), 0, 'no false alarm is on record');

# an alarm that is not false is not taken back by looking at the past
$target->safe_psql('postgres', 'UPDATE pay SET v = 0 WHERE id = 7');
is(counts('target', '10 s'), '0|0|1|0', 'a row that was changed at the target');
$source->safe_psql('postgres', 'UPDATE pay SET v = 0 WHERE id <= 100 AND id <> 7');
wait_delivered($source, 'pay');
is(counts('standby', '0') =~ /^0\|0\|0\|\d+ lags$/, 1, 'the standby has it differently');
is(open_discrepancies(), 1, 'and the discrepancy stays open');
$target->safe_psql('postgres', 'UPDATE pay SET v = 1 WHERE id = 7');

# it catches up while the run waits
my $waiting = PaymentSyncSession->new($source, 'postgres');
$waiting->send(q{SELECT missing, unexpected, different, in_flight FROM payment_sync.reconcile('pay', server => 'standby', max_wait => '100 s');});
$source->poll_query_until('postgres', q{SELECT count(*) > 0 FROM pg_stat_activity WHERE pid = } . $waiting->pid . q{ AND state = 'active'})
  or die 'no run';
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
like($waiting->wait, qr/^0\|0\|0\|0$/m, 'a run that waits decides once the standby has caught up');
$waiting->quit;

# promoted, it never will
$standby->promote;
$source->safe_psql('postgres', $changes =~ s/2000/2001/r =~ s/500/501/r);
wait_delivered($source, 'pay');
$source->safe_psql('postgres', 'SELECT count(*) FROM payment_sync.reconcile($$pay$$)');
is(counts('standby', '0'), '0|0|0|102 lags', 'a standby that was promoted');
is(counts('bare', '0'), '0|0|0|' . $source->safe_psql('postgres', 'SELECT count(*) FROM pay') . ' lags', 'a server without a position');
like($source->safe_psql('postgres', q{SELECT in_flight IS NULL FROM payment_sync.control_totals('pay', 'pay', '{}', '{v}', server => 'standby')}),
	qr/^t/, 'control totals say that they cannot tell');

# the target is restored to an earlier position
$source->safe_psql('postgres', q{SELECT payment_sync.disable_sync('pay')});
$target->stop('immediate');
my $restored = PostgreSQL::Test::Cluster->new('restored');
$restored->init_from_backup($target, 'copy');
$restored->start;
connect_target($source, $restored, server => 'restored');
my $restored_counts = counts('restored', '0');
like($restored_counts, qr/^0\|0\|0\|\d+ lags$/, 'a target that was restored to an earlier position');
is(open_discrepancies(), 0, 'still no false alarm');

$source->stop;
$standby->stop;
$restored->stop;
done_testing();
