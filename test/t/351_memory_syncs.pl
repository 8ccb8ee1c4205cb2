# 351_memory_syncs.pl
#
# One worker delivers for forty syncs.  After a bulk transaction that each of
# them has sent, and sent again, the worker has given back what that took: an
# idle session keeps no group (P7).  RssAnon is what the process has for itself;
# the server's shared memory does not count.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncApply;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'there is no /proc' if !-r "/proc/$$/status";

my $syncs = 40;
my $source = start_source('source', conf => "payment_sync.max_workers = 1\n");
my $target = start_target('target', conf => "fsync = off\nmax_connections = 80\n");
both($source, $target, 'CREATE TABLE pay (id int PRIMARY KEY, v text)');
connect_target($source, $target);
$source->safe_psql('postgres', <<SQL);
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync(('s' || i)::name, '{pay}', server => 'target') FROM generate_series(1, $syncs) i;
INSERT INTO pay VALUES (0, 'x');
SQL
goes_on($source, "s$_") for 1 .. $syncs;
my ($pid) = worker_pids($source);

sub memory
{
	my ($kb) = slurp_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+) kB/m;
	return $kb;
}

my $before = memory();
for my $round (0, 1)
{
	$source->safe_psql('postgres',
		"INSERT INTO pay SELECT 20000 * $round + i, repeat('v', 200) FROM generate_series(1, 15000) i");
	goes_on($source, "s$_") for 1 .. $syncs;
}
is((worker_pids($source))[0], $pid, 'it is the same worker');
my $kept = memory() - $before;
cmp_ok($kept, '<', 40 * 1024, "$syncs idle syncs keep $kept KiB");
same_rows($source, $target, 'SELECT * FROM pay', 'all is there');

done_testing();
