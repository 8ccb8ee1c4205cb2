# 363_lying_batch.pl
#
# A target that lies while tables are copied, and while they are compared in
# the background (P7).  360_lying.pl has what is told while a session begins or a
# window is sent.  However a batch or a mirror is lied to, the server does not
# crash, memory is bounded, another sync goes on, the batch is never called
# done; once the truth is told again it ends, and both sides are equal: no row
# is lost, nor does a mirror delete one that the source has.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncApply;
use PaymentSyncLying;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = start_source('source', conf => <<'CONF');
restart_after_crash = on
payment_sync.retry_delay_max = '50ms'
CONF
my $target = start_target('target');
my $rows = 3000;

both($source, $target, <<'SQL');
CREATE TABLE pay (id int PRIMARY KEY, v text);
CREATE TABLE other (id int PRIMARY KEY);
SQL
connect_target($source, $target);
start_lying($source, $target);
$source->safe_psql('postgres', <<SQL);
INSERT INTO pay SELECT i, repeat('v', 500) FROM generate_series(1, $rows) i;
SELECT payment_sync.capture_table('pay'), payment_sync.capture_table('other');
SELECT payment_sync.create_sync('lied', '{pay}', server => 'lying');
SELECT payment_sync.create_sync('other', '{other}', server => 'target');
SQL
goes_on($source, $_) for 'lied', 'other';

my $id = 0;

sub other_goes_on
{
	my ($what) = @_;
	$id++;
	$source->safe_psql('postgres', "INSERT INTO other VALUES ($id)");
	$target->poll_query_until('postgres', "SELECT count(*) = 1 FROM other WHERE id = $id")
	  or die "$what: the other sync does not go on";
	return;
}

# Ask for a copy, without waiting for it.  Half of the rows are at the target
# already, and for a mirror some that the source lacks.
sub ask
{
	my ($kind) = @_;
	$source->safe_psql('postgres', "SELECT payment_sync.drop_sync('lied')");
	$target->safe_psql('postgres', 'TRUNCATE pay');
	$target->safe_psql('postgres', $kind eq 'first copy' ? 'SELECT 1' : <<SQL);
INSERT INTO pay SELECT i, 'old' FROM generate_series(1, $rows, 2) i;
INSERT INTO pay SELECT -i, 'not at the source' FROM generate_series(1, 100) i;
SQL
	my $mirror = $kind eq 'mirror' ? 'true' : 'false';
	$source->safe_psql('postgres', "SELECT payment_sync.create_sync('lied', '{pay}', server => 'lying', batch => true, mirror => $mirror)");
	return;
}

# --- copies: of which kind, when, and what is told

my @cases = (
	[ 'first copy', 'COPY ', qw(ready copy_out copy_many done_many endless_rows no_error) ],
	[ 'first copy', 'PGCOPY', qw(ready copy_in copy_many errors_many odd_state huge_error) ],
	[ 'first copy', 'COMMIT', qw(ready copy_in done_many no_fields) ],
	[ 'copy', 'psync_rows_', qw(ready copy_out few_columns done_many endless_rows) ],
	[ 'mirror', 'psync_keys_', qw(ready copy_out copy_many done_many no_rows) ],
	[ 'mirror', 'ANALYZE', qw(ready copy_in errors_many nulls_of_1) ],
	[ 'mirror', 'DELETE FROM public.pay t WHERE NOT EXISTS', qw(ready many_rows copy_both done_many long_error) ]);
for my $case (@cases)
{
	my ($kind, $when, @lies) = @$case;
	for my $lie (@lies)
	{
		my $what = "$kind, $lie at $when";
		spread("$when\t$lie\n");
		ask($kind);
		other_goes_on($what);
		$source->poll_query_until('postgres',
			"SELECT errors > 1 AND failures > 0 FROM payment_sync.stat_sync WHERE name = 'lied'")
		  or die "$what: does not fail; log:\n" . substr slurp_file($source->logfile), -3000;
		my $error = last_failure($source, 'lied');
		isnt($error, '', "$what: " . substr $error, 0, 150);
		cmp_ok(length $error, '<', 20_000, '... an error of bounded length');
		cmp_ok(most_memory(worker_pids($source)), '<', 200, '... and bounded memory');
		isnt($source->safe_psql('postgres', "SELECT state FROM payment_sync.progress_batch WHERE sync = 'lied'"),
			'done', '... and the batch is not done');
	}
	spread('');
	goes_on($source, 'lied');
	is($source->safe_psql('postgres', "SELECT state FROM payment_sync.progress_batch WHERE sync = 'lied'"),
		'done', "$kind, $when: the truth again, and the batch is done");
	same_rows($source, $target, 'SELECT * FROM pay', '... with all rows',
		target_query => 'SELECT * FROM pay' . ($kind eq 'copy' ? ' WHERE id > 0' : ''));
}

# --- reading, in the background

$target->safe_psql('postgres', 'DELETE FROM pay WHERE id <= 0');
my @reads = (
	[ 'BEGIN TRANSACTION', qw(ready errors_many) ],
	[ 'l.reltuples', qw(no_rows nulls_of_6 copy_out endless_rows) ],
	[ 'hashtextextended', qw(no_rows nulls_of_4 many_columns endless_rows_of_4 odd_state) ]);
for my $case (@reads)
{
	my ($when, @lies) = @$case;
	for my $lie (@lies)
	{
		my $what = "reconciliation in the background, $lie at $when";
		spread("$when\t$lie\n");
		my $run = $source->safe_psql('postgres', "SELECT payment_sync.start_reconciliation('lied', 'pay')");
		$source->poll_query_until('postgres',
			"SELECT error IS NOT NULL FROM payment_sync.reconciliations WHERE run = $run")
		  or die "$what: does not fail; log:\n" . substr slurp_file($source->logfile), -3000;
		other_goes_on($what);
		is($source->safe_psql('postgres', "SELECT count(*) FROM payment_sync.discrepancies WHERE run = $run"),
			0, "$what: nothing is called a discrepancy");
		spread('');
		$source->poll_query_until('postgres', <<SQL)
SELECT state IN ('done', 'failed', 'cancelled') FROM payment_sync.reconciliations WHERE run = $run
SQL
		  or die "$what: does not end";
	}
}
is($source->safe_psql('postgres', "SELECT different + missing + unexpected FROM payment_sync.reconcile('lied', 'pay')"),
	0, 'the truth again, and both sides are equal');
unlike(slurp_file($source->logfile), qr/terminated by signal|was terminated|TRAP:/, 'nothing has crashed');

stop_lying();
done_testing();
