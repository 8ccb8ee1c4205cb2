# 360_lying.pl
#
# A target that lies (P7): between source and target stands a server that
# passes everything on until it is told to lie, at a moment and in a way of our
# choosing (receiver/lying.pl).  Whatever it answers, while a session begins,
# a window is sent or reconcile() reads: the source's server neither crashes nor
# fills its memory, another sync goes on, the error says what is wrong, and once
# the truth is told again, so does the sync.  363_lying_batch.pl has batches.

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

both($source, $target, <<'SQL');
CREATE TABLE pay (id int PRIMARY KEY, n int);
CREATE TABLE ballast (id bigint PRIMARY KEY);
CREATE TABLE other (id int PRIMARY KEY);
SQL
connect_target($source, $target);
start_lying($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table(t) FROM unnest('{pay,ballast,other}'::regclass[]) t;
SELECT payment_sync.create_sync('lied', '{pay,ballast}', server => 'lying');
SELECT payment_sync.create_sync('other', '{other}', server => 'target');
SQL

my $id = 0;
my $large = 0;

# A change of either sync; of "ballast" so many that they are copied.
sub change
{
	my ($size) = @_;
	$id++;
	my $sql = "INSERT INTO pay VALUES ($id, 1)";
	if ($size eq 'large')
	{
		$sql .= sprintf '; INSERT INTO ballast SELECT generate_series(%d, %d)', $large + 1, $large + 3000;
		$large += 3000;
	}
	$source->safe_psql('postgres', "BEGIN; $sql; COMMIT; INSERT INTO other VALUES ($id)");
	return;
}

sub other_goes_on
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$target->poll_query_until('postgres', "SELECT count(*) = 1 FROM other WHERE id = $id")
	  or die "$what: the other sync does not go on";
	return;
}

goes_on($source, $_) for 'lied', 'other';

# --- delivery: when, how large a window, and what is told

my $strange = qr/unexpected answer from server "lying"|lost connection to server "lying"|could not connect to server "lying"/;
my @cases = (
	# a session begins
	[ 'startup', 'small', qw(no_fields no_protocol copy_out huge_error parameters parameters_early notices_early) ],
	[ 'pg_backend_pid', 'small', qw(no_rows few_columns many_rows nulls_of_1 ready copy_out copy_in copy_both notices parameters) ],
	[ 'set_config', 'small', qw(ready errors_many copy_in huge_row) ],
	[ 'to_regclass', 'small', qw(no_rows no_rows_of_6 nulls_of_6 bad_bytes zero_bytes many_columns copy_out endless_rows huge_row) ],
	[ 'SELECT log_id, position', 'small', qw(few_columns nulls_of_3 copy_in no_error odd_state long_error) ],
	[ 'confdeltype', 'small', qw(no_rows nulls_of_8 empty_of_8 few_columns many_columns endless_rows notifications) ],
	# a window
	[ 'INSERT INTO public.pay|psync_1_', 'small', qw(ready copy_in copy_out done_many prepared_many errors_many no_error no_fields huge_error notices) ],
	[ 'RELEASE|SAVEPOINT', 'large', qw(ready copy_many copy_out done_many errors_many no_fields endless_rows parameters) ],
	[ 'PGCOPY', 'large', qw(ready copy_many copy_in copy_out done_many errors_many odd_state notices) ]);
for my $case (@cases)
{
	my ($when, $size, @lies) = @$case;
	for my $lie (@lies)
	{
		my $errors = stat($source, 'lied', 'errors');
		spread("$when\t$lie\n");
		change($size);
		other_goes_on("$lie at $when");
		$source->poll_query_until('postgres',
			"SELECT errors > $errors + 1 AND failures > 0 FROM payment_sync.stat_sync WHERE name = 'lied'")
		  or die "$lie at $when: does not fail; log:\n" . substr slurp_file($source->logfile), -3000;
		my $error = last_failure($source, 'lied');
		isnt($error, '', "$lie at $when: " . substr $error, 0, 150);
		cmp_ok(length $error, '<', 20_000, '... an error of bounded length');
		cmp_ok(most_memory(worker_pids($source)), '<', 200, '... and bounded memory');
	}
	spread('');
	goes_on($source, 'lied');
	same_rows($source, $target, 'SELECT * FROM pay', "$when: the truth again, and all is there");
}
same_rows($source, $target, 'SELECT * FROM ballast', 'also what was copied');
unlike(slurp_file($source->logfile), qr/terminated by signal|server process .* was terminated|TRAP:/, 'nothing has crashed');

# --- reading

my @reads = (
	[ 'BEGIN TRANSACTION', qw(ready copy_in errors_many notices) ],
	[ 'l.reltuples', qw(no_rows no_rows_of_6 nulls_of_6 few_columns many_columns copy_out copy_in endless_rows bad_bytes) ],
	[ 'typbasetype', qw(no_rows nulls_of_6 few_columns copy_out no_error) ],
	[ 'hashtextextended', qw(no_rows nulls_of_4 few_columns many_columns copy_both endless_rows endless_rows_of_4 notices odd_state) ]);
for my $case (@reads)
{
	my ($when, @lies) = @$case;
	for my $lie (@lies)
	{
		spread("$when\t$lie\n");
		my ($rc, $out, $err) = $source->psql('postgres', "SELECT matched FROM payment_sync.reconcile('lied', 'pay')");
		isnt($rc, 0, "reconcile, $lie at $when: $err");
		unlike($err, qr/connection to server was lost/, '... without a crash');
	}
}
spread('');
goes_on($source, 'lied');
is($source->safe_psql('postgres', "SELECT different + missing + unexpected FROM payment_sync.reconcile('lied', 'pay')"),
	0, 'the truth again, and both sides are equal');

# --- silence, and floods: the server stops all the same

for my $case ([ 'startup', 'silence' ], [ 'startup', 'silence_early' ], [ 'to_regclass', 'silence' ], [ 'confdeltype', 'silence' ], [ 'COMMIT', 'silence' ],
	[ 'PGCOPY', 'silence' ], [ 'COMMIT', 'notices' ])
{
	my ($when, $lie) = @$case;
	spread("$when\t$lie\n");
	change($when eq 'PGCOPY' ? 'large' : 'small');
	other_goes_on("$lie at $when");
	$source->stop('fast');
	pass("$lie at $when: the server stops");
	$source->start;
	spread('');
	goes_on($source, 'lied');
}
same_rows($source, $target, 'SELECT * FROM pay', 'nothing is lost, nothing comes twice');
unlike(slurp_file($source->logfile), qr/terminated by signal|was terminated|TRAP:/, 'and nothing has crashed');

stop_lying();
done_testing();
