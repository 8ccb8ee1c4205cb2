# 240_pace.pl
#
# A busy sync's windows are spaced by payment_sync.window_interval: with the
# longest interval, a hundred commits one after the other take the twenty
# windows that a quiet sync may have at once, and one for all the rest.  While
# a sync waits for its pace, the worker hears messages, and serves others.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncTest;
use Test::More;

my $source = start_source('source',
	conf => "payment_sync.window_interval = '10s'\npayment_sync.max_workers = 1\n");
my $target = start_target('target');
$_->safe_psql('postgres', 'CREATE TABLE busy (id int PRIMARY KEY); CREATE TABLE quiet (id int PRIMARY KEY)')
  for $source, $target;
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table(t) FROM unnest('{busy,quiet}'::regclass[]) t;
SELECT payment_sync.create_sync('busy', '{busy}', server => 'target');
SQL

# commit N rows one by one, each when the one before is at the target, as long
# as that takes no more windows than may follow each other at once
my $next = 1;
sub commit_rows
{
	my ($n, $wait) = @_;
	for (1 .. $n)
	{
		$source->safe_psql('postgres', "INSERT INTO busy VALUES ($next)");
		$target->poll_query_until('postgres', "SELECT EXISTS (SELECT FROM busy WHERE id = $next)")
		  or die "row $next did not arrive"
		  if $wait;
		$next++;
	}
}

commit_rows(15, 1);
pass('few commits in a row are delivered one by one');
$source->safe_psql('postgres', join '', map { "INSERT INTO busy VALUES ($_);\n" } 100 .. 250);

# the worker is paced now; a sync that is new finds it listening
$source->safe_psql('postgres', "SELECT payment_sync.create_sync('quiet', '{quiet}', server => 'target')");
$source->safe_psql('postgres', 'INSERT INTO quiet VALUES (1)');
$target->poll_query_until('postgres', 'SELECT EXISTS (SELECT FROM quiet)')
  or die 'the other sync was not served';
pass('another sync of the same worker is served');

wait_delivered($source, 'busy');
same_rows($source, $target, 'SELECT * FROM busy', 'all rows arrive');
cmp_ok(stat($source, 'busy', 'windows'), '<=', 25,
	'a hundred and fifty commits were delivered in few windows');
is(stat($source, 'busy', 'errors'), '0', 'no failure on the way');

# without an interval nothing waits
$source->safe_psql('postgres', 'ALTER SYSTEM SET payment_sync.window_interval = 0');
$source->reload;
$source->poll_query_until('postgres', "SELECT current_setting('payment_sync.window_interval') = '0'");
my $before = stat($source, 'busy', 'windows');
$next = 1000;
commit_rows(30, 1);
wait_delivered($source, 'busy');
$source->poll_query_until('postgres',
	"SELECT windows >= $before + 30 FROM payment_sync.stat_sync WHERE name = 'busy'");
is(stat($source, 'busy', 'windows') - $before, 30, 'interval 0: a window for each commit');

done_testing();
