# PaymentSyncApply.pm
#
# What the tests of the postgres transport (3xx) share beyond PaymentSyncTest:
# a pair of servers with the same tables, one sync called "pay" between them,
# and the two ways in which a window is applied.
#
# A small window goes down a pipeline, statement by statement; a large one is
# applied set-wise.  Which it is depends on its size alone.  So a test that
# wants to see both does the same twice, the second time with a ballast of
# 1,200 rows of table "ballast" in the same transaction.

package PaymentSyncApply;

use strict;
use warnings;

use Exporter 'import';
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

our @EXPORT = qw(both make_sync small_window large_window wait_applied
  each_window failure_of failure_like goes_on mended last_failure);

# Run SQL at both sides.
sub both
{
	my ($source, $target, $sql, %option) = @_;
	my $db = $option{db} // 'postgres';
	$source->safe_psql($db, $sql);
	$target->safe_psql($db, $sql);
	return;
}

# make_sync(SOURCE, TARGET, TABLES, [create => arguments of create_sync],
# [user => role at the target])
# Captures the tables, and "ballast", and ties them to the target.
sub make_sync
{
	my ($source, $target, $tables, %option) = @_;
	my $sync = $option{sync} // 'pay';
	my $list = join ',', @$tables, 'ballast';
	my $more = $option{create} ? ", $option{create}" : '';
	both($source, $target, 'CREATE TABLE ballast (id bigint PRIMARY KEY)');
	connect_target($source, $target, $option{user} ? (user => $option{user}) : ());
	$source->safe_psql('postgres', <<SQL);
SELECT payment_sync.capture_table(t) FROM unnest('{$list}'::regclass[]) t;
SELECT payment_sync.create_sync('$sync', '{$list}', server => 'target'$more);
SQL
	return;
}

my $ballast = 0;

# Run SQL in a transaction; returns that transaction's id.
sub small_window
{
	my ($source, $sql) = @_;
	my $out = $source->safe_psql('postgres', "BEGIN; SELECT pg_current_xact_id(); $sql; COMMIT");
	return (split /\n/, $out)[0];
}

sub large_window
{
	my ($source, $sql) = @_;
	my ($first, $last) = ($ballast + 1, $ballast + 1200);
	$ballast = $last;
	return small_window($source,
		"INSERT INTO ballast SELECT generate_series($first, $last); $sql");
}

# Wait until the position at the target is behind a transaction, of which
# something was to be delivered.  Much quicker than wait_delivered(), since the
# position that the source knows is saved at leisure.
sub wait_applied
{
	my ($target, $sync, $xid) = @_;
	$target->poll_query_until('postgres', <<SQL)
SELECT pg_visible_in_snapshot('$xid', split_part(position, '\@', 1)::pg_snapshot)
FROM payment_sync_target.position WHERE sync_name = '$sync'
SQL
	  or die "transaction $xid does not arrive";
	return;
}

# each_window(SOURCE, TARGET, SYNC, TOPIC, PREPARE, SQL, QUERIES)
# For each size of window: PREPARE in a window of its own, then SQL, then the
# queries give the same at both sides.
sub each_window
{
	my ($source, $target, $sync, $topic, $prepare, $sql, @queries) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $n = 0;
	my $query = join ' UNION ALL ',
	  map { 'SELECT ' . $n++ . " AS query, r::text AS line FROM ($_) r" } @queries;
	for my $size (\&small_window, \&large_window)
	{
		wait_applied($target, $sync, small_window($source, $prepare)) if $prepare;
		wait_applied($target, $sync, $size->($source, $sql));
		is(differing_rows($source, $target, $query), '', "$topic, " . ($size == \&small_window ? 'small' : 'large') . ' window');
	}
	return;
}

# Wait until the sync has failed anew; its error and detail in one string.
sub failure_of
{
	my ($source, $sync) = @_;
	$source->poll_query_until('postgres',
		"SELECT failures > 0 FROM payment_sync.stat_sync WHERE name = '$sync'")
	  or die "sync $sync does not fail";
	return last_failure($source, $sync);
}

# Wait until the sync fails with an error that fits; returns all that came up
# to then.  A failure may be preceded by another, such as a lost connection.
sub failure_like
{
	my ($source, $sync, $pattern) = @_;
	my $seen = '';
	for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		my $error = stat($source, $sync,
			"CASE WHEN failures > 0 THEN concat_ws(' | ', last_error_state, last_error, last_error_detail) END");
		$seen .= "$error\n" if index($seen, "$error\n") < 0;
		last if $error =~ $pattern;
		usleep(100_000);
	}
	return $seen;
}

sub last_failure
{
	my ($source, $sync) = @_;
	return stat($source, $sync,
		"concat_ws(' | ', last_error_state, last_error, last_error_detail)");
}

# Wait until the sync has delivered all and has forgotten its failures.
sub goes_on
{
	my ($source, $sync) = @_;
	wait_delivered($source, $sync);
	$source->poll_query_until('postgres',
		"SELECT failures = 0 FROM payment_sync.stat_sync WHERE name = '$sync'")
	  or die "sync $sync still counts failures";
	return;
}

# Wait until a sync that was failing has got over it.  The window that did it
# holds all that was committed before this call.
sub mended
{
	my ($source, $sync) = @_;
	$source->poll_query_until('postgres',
		"SELECT failures = 0 FROM payment_sync.stat_sync WHERE name = '$sync'")
	  or die "sync $sync does not recover: " . last_failure($source, $sync);
	return;
}

1;
