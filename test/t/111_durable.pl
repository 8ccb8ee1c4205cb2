# 111_durable.pl
#
# Never ahead of the disk (P3).  With synchronous_commit = off a commit is
# visible before its WAL is flushed, and here nobody but the worker flushes:
# the WAL writer sleeps until a page is full.  So one row is inserted, and as
# soon as it is seen at the target the source is stopped the hard way:
# whatever the target has, the source must still have afterwards.
#
# Before that, WAL is padded so that it ends at each offset of a page at which a
# record can end, also on the first page of a segment, whose header is longer:
# all of it must be flushed before anything is handed out.

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

# ------------------------------------------------------- where WAL may end

# The WAL writer flushes whole pages, so often just the page is missing that WAL
# ends in.
sub wal_writer
{
	my (%setting) = @_;
	$source->safe_psql('postgres', "ALTER SYSTEM SET wal_writer_$_ = '$setting{$_}'") for keys %setting;
	$source->safe_psql('postgres', 'SELECT pg_reload_conf()');
	return;
}

# flush_at(OFFSET, PAGES): lets WAL end at this offset of a page, waits until the
# WAL writer has flushed the pages before it if that is asked for, reads the log,
# and returns what of WAL was not flushed then; NULL if others came between.
$source->safe_psql('postgres', <<'SQL');
CREATE FUNCTION pad(bytes int) RETURNS pg_lsn LANGUAGE sql AS $$
	SELECT pg_logical_emit_message(false, '', repeat('x', GREATEST(bytes, 0)));
$$;
CREATE FUNCTION flush_at(wanted int, pages bool, OUT unflushed bigint) LANGUAGE plpgsql AS $$
DECLARE
	at pg_lsn;
	now int;
	room int;
BEGIN
	/* a short message takes 56 bytes beside its text, and the next page has a header */
	FOR attempt IN 1 .. 20 LOOP
		now := (pg_current_wal_insert_lsn() - '0/0') % 8192;
		EXIT WHEN now = wanted;
		room := CASE WHEN now < wanted THEN wanted - now ELSE wanted - now + 8192 - 24 END;
		IF room BETWEEN 64 AND 280 THEN
			PERFORM pad(room - 56);
		ELSE
			PERFORM pad(room + CASE WHEN room < 64 THEN 8192 - 24 ELSE 0 END - 260);
		END IF;
	END LOOP;
	at := pg_current_wal_insert_lsn();
	IF pages THEN
		FOR attempt IN 1 .. 10000 LOOP
			EXIT WHEN pg_current_wal_flush_lsn() >= at - wanted::numeric;
			PERFORM pg_sleep(0.001);
		END LOOP;
		IF wanted > 24 AND pg_current_wal_flush_lsn() <> at - wanted::numeric THEN
			RETURN;
		END IF;
	END IF;
	PERFORM count(*) FROM payment_sync.changes;
	IF (at - '0/0') % 8192 = wanted AND pg_current_wal_insert_lsn() = at THEN
		/* behind a page's header nothing is written yet */
		unflushed := GREATEST(at - pg_current_wal_flush_lsn()
			- CASE WHEN wanted = 24 THEN 24 ELSE 0 END, 0);
	END IF;
END
$$;
SQL
$source->safe_psql('postgres', "INSERT INTO pay VALUES (-1, 0)");
is($source->safe_psql('postgres', <<'SQL'), '1021|1021|', 'all of WAL is flushed, wherever in a page it ends');
SELECT count(*), count(unflushed), string_agg(concat(wanted, ': ', unflushed), ', ') FILTER (WHERE unflushed IS DISTINCT FROM 0)
FROM (SELECT wanted, COALESCE(flush_at(wanted, false), flush_at(wanted, false)) AS unflushed
	FROM generate_series(24, 8184, 8) wanted) f
SQL
wal_writer(delay => '1ms', flush_after => 0);
is($source->safe_psql('postgres', <<'SQL'), '18|18|', 'also if the pages before are flushed already');
SELECT count(*), count(unflushed), string_agg(concat(wanted, ': ', unflushed), ', ') FILTER (WHERE unflushed IS DISTINCT FROM 0)
FROM (SELECT wanted, COALESCE(flush_at(wanted, true), flush_at(wanted, true),
		flush_at(wanted, true), flush_at(wanted, true)) AS unflushed
	FROM unnest(array_cat('{8176,4096}', ARRAY(SELECT generate_series(144, 24, -8)))) wanted) f
SQL

# A switch lets WAL end behind the header of a segment's first page.
my $session = PaymentSyncSession->new($source, 'postgres');
$session->query('SELECT pg_switch_wal()');
for my $step (0 .. 12)
{
	my $end = $session->query('SELECT pg_current_wal_insert_lsn()');
	$session->query('SELECT count(*) FROM payment_sync.changes');
	my $at = $session->query("SELECT ('$end'::pg_lsn - '0/0') % pg_size_bytes(current_setting('wal_segment_size'))");
	my $header = $at == 40 ? 40 : 0;
	ok($at == 40 || $step > 0, 'WAL ends behind the header of a segment');
	is($session->query("SELECT GREATEST('$end'::pg_lsn - pg_current_wal_flush_lsn() - $header, 0)"),
		0, "all of it is flushed, $at bytes into a segment");
	$session->query("SELECT pad(8 * $step)");
}
$session->quit;

# And by a worker: a commit record that ends 16 bytes into a page, the page before
# being flushed.
wal_writer(delay => '10s');
my ($worker) = worker_pids($source);
my ($id, $size, $hits) = (1, 400, 0);
my $watch = PaymentSyncSession->new($target, 'postgres');
$session = PaymentSyncSession->new($source, 'postgres');
while ($hits < 3 && $id < 300)
{
	$id++;
	kill 'STOP', $worker;
	$session->query("SELECT flush_at((40 - $size + 3 * 8192) % 8192, false)");
	my $begin = $session->query('SELECT pg_current_wal_insert_lsn()');
	$session->query("INSERT INTO pay VALUES ($id, 0)");
	my $end = $session->query('SELECT pg_current_wal_insert_lsn()');

	# the next row takes as much, if no other record comes between
	$size = $session->query("SELECT ('$end'::pg_lsn - '$begin'::pg_lsn) % 8192");
	my $flushed = "SELECT pg_current_wal_flush_lsn()";
	my $hit = $session->query("SELECT ('$end'::pg_lsn - '0/0') % 8192") == 40;
	if ($hit)
	{
		$session->until_true("($flushed) >= '$end'::pg_lsn - 40::numeric");
		$hit = $session->query("SELECT ($flushed) < '$end'") eq 't';
	}
	kill 'CONT', $worker;
	$watch->until_true("SELECT count(*) = 1 FROM pay WHERE id = $id");
	next if !$hit;
	$hits++;
	is($session->query("SELECT ($flushed) >= '$end'"), 't', 'a commit is flushed before the target has it');
}
is($hits, 3, 'commit records ended 16 bytes into a page');
$_->quit for $watch, $session;
$source->safe_psql('postgres', 'DELETE FROM pay WHERE id <> 0');
wait_delivered($source, 'pay');
wal_writer(flush_after => '1GB');

# ------------------------------------------------------------ hard stops

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
