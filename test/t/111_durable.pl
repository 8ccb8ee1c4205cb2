# 111_durable.pl
#
# Never ahead of the disk (P3).  With synchronous_commit = off a commit is
# visible before its WAL is flushed, and here nobody but the worker flushes:
# the WAL writer sleeps until a page is full.  So one row is inserted, and as
# soon as it is seen at the target the source is stopped the hard way:
# whatever the target has, the source must still have afterwards.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncSession;
use PaymentSyncTest;
use Test::More;

my $source = start_source('source', conf => <<'CONF');
synchronous_commit = off
wal_writer_delay = '10s'
wal_writer_flush_after = '1GB'
wal_buffers = '16MB'
autovacuum = off
checkpoint_timeout = '1h'
CONF
my $target = start_target('target');

$_->safe_psql('postgres', 'CREATE TABLE pay (id int PRIMARY KEY, v int)') for $source, $target;
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('pay');
INSERT INTO pay VALUES (0, 0);
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target', batch => true);
CREATE TABLE other (id int);
SQL
wait_delivered($source, 'pay');

my $rounds = 8;
my $lost = 0;
my $reader = PaymentSyncSession->new($target, 'postgres');
for my $round (1 .. $rounds)
{
	my $writer = PaymentSyncSession->new($source, 'postgres');

	$writer->query("INSERT INTO pay VALUES ($round, 0)");
	$reader->until_true("SELECT count(*) = 1 FROM pay WHERE id = $round");
	$writer->query("UPDATE pay SET v = $round WHERE id = 0");
	$reader->until_true("SELECT v = $round FROM pay WHERE id = 0");

	# Nobody delivers this one, so nobody flushes it.
	$writer->query("INSERT INTO other VALUES ($round)");
	$source->stop('immediate');
	$writer->kill;
	my $there = $reader->query('SELECT id, v FROM pay ORDER BY id');
	$source->start;
	is($source->safe_psql('postgres', 'SELECT id, v FROM pay ORDER BY id'),
		$there, "round $round: the source has all that the target has");
	$lost += !$source->safe_psql('postgres', "SELECT count(*) FROM other WHERE id = $round");
}

# If nothing was ever lost, this test has shown nothing.
cmp_ok($lost, '>', 0, "the source lost a commit in $lost of $rounds rounds");

$source->safe_psql('postgres', 'INSERT INTO pay VALUES (1000, 1000)');
wait_delivered($source, 'pay');
same_rows($source, $target, 'SELECT * FROM pay', 'and the sync goes on');

done_testing();
