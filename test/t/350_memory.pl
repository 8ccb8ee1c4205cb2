# 350_memory.pl
#
# A worker that delivers a transaction of a million rows stays within 64 MiB
# of what it had before (P7).  RssAnon is what the process has for itself; the
# server's shared memory does not count.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncApply;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'there is no /proc' if !-r "/proc/$$/status";

my $source = start_source('source', conf => "payment_sync.max_workers = 1\n");
my $target = start_target('target', conf => "fsync = off\n");
my $rows = 1_000_000;
both($source, $target, 'CREATE TABLE pay (id int PRIMARY KEY, v text, n numeric)');
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target');
INSERT INTO pay VALUES (0);
SQL
wait_delivered($source, 'pay');
my ($pid) = worker_pids($source);

sub memory
{
	open my $status, '<', "/proc/$pid/status" or die "worker $pid has ended";
	my ($kb) = map { /^RssAnon:\s+(\d+) kB/ } <$status>;
	return $kb;
}

# the most that is seen while the condition is not yet true
sub most_until
{
	my ($node, $query) = @_;
	my $most = 0;
	my $left = 20 * $PostgreSQL::Test::Utils::timeout_default;
	while ($left-- > 0)
	{
		my $now = memory();
		$most = $now if $now > $most;
		last if $left % 4 == 0 && $node->safe_psql('postgres', $query) eq 't';
		select undef, undef, undef, 0.05;
	}
	die 'not delivered in time' if $left <= 0;
	return $most;
}

my $before = memory();
$source->safe_psql('postgres',
	"INSERT INTO pay SELECT i, 'payment number ' || i, i / 7.0 FROM generate_series(1, $rows) i");
my $most = most_until($target, "SELECT count(*) > $rows FROM pay");
cmp_ok($most - $before, '<', 64 * 1024, sprintf('inserts: %d KiB above %d KiB', $most - $before, $before));
$source->safe_psql('postgres', "UPDATE pay SET n = n + 1 WHERE id <= 300000");
$source->safe_psql('postgres', "INSERT INTO pay VALUES (-1)");
$most = most_until($target, "SELECT EXISTS (SELECT FROM pay WHERE id = -1)");
cmp_ok($most - $before, '<', 64 * 1024, sprintf('updates: %d KiB above', $most - $before));
is((worker_pids($source))[0], $pid, 'it is the same worker');
is($target->safe_psql('postgres', 'SELECT sum(n), count(*) FROM pay'),
	$source->safe_psql('postgres', 'SELECT sum(n), count(*) FROM pay'), 'all is there');

# a batch of the same table
$source->safe_psql('postgres', "SELECT payment_sync.disable_sync('pay')");
$target->safe_psql('postgres', 'TRUNCATE pay');
$source->safe_psql('postgres', "SELECT payment_sync.enable_sync('pay', start => 'batch')");
$source->poll_query_until('postgres',
	"SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'payment_sync worker'") or die;
($pid) = worker_pids($source);
$most = most_until($source, "SELECT state = 'done' FROM payment_sync.progress_batch");
cmp_ok($most - $before, '<', 64 * 1024, sprintf('a batch: %d KiB above', $most - $before));

done_testing();
