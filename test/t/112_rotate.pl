# 112_rotate.pl
#
# Rotation: the log goes on in its next table when one is large, and a table
# that every sync is done with is emptied at once, never row by row.  A sync
# that is disabled holds the log; dropped, it lets it go.  A transaction that
# stays open keeps its table, and holds up nobody.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use IPC::Run;
use PaymentSyncSession;
use PaymentSyncTest;
use Test::More;

my $source = start_source('source', conf => "payment_sync.log_segment_size = '1MB'\n");
my $target = start_target('target');

my $schema = 'CREATE TABLE pay (id int PRIMARY KEY, v text)';
$_->safe_psql('postgres', $schema) for $source, $target;
$target->safe_psql('postgres', 'CREATE SCHEMA second; CREATE TABLE second.pay (LIKE public.pay INCLUDING ALL)');
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('one', '{pay}', server => 'target');
SELECT payment_sync.create_sync('two', '{pay}', server => 'target', target_schema => 'second');
SQL

my $inserted = 0;

# Commit this many MB of changes in small transactions, waiting for nobody.
sub traffic
{
	my ($mb) = @_;
	my $writer = PaymentSyncSession->new($source, 'postgres');
	for (1 .. $mb * 10)
	{
		my $first = $inserted + 1;
		$inserted += 100;
		$writer->send("INSERT INTO pay SELECT i, repeat('v', 1000) FROM generate_series($first, $inserted) i");
		$writer->wait if $_ % 10 == 0;
	}
	$writer->quit;
	return;
}


sub files
{
	return $source->safe_psql('postgres', <<'SQL');
SELECT string_agg(relname || ':' || relfilenode, ' ' ORDER BY relname) FROM pg_class
WHERE relnamespace = 'payment_sync'::regnamespace AND relname ~ '^log_\d$'
SQL
}

sub log_is
{
	my ($condition, $name) = @_;
	ok( $source->poll_query_until('postgres', <<SQL), $name);
SELECT $condition FROM (
	SELECT payment_sync.log_size() AS size,
		(SELECT sum(pg_relation_size('payment_sync.log_' || i)) FROM generate_series(0, 2) i
		 WHERE i <> (SELECT active FROM payment_sync.log_rotation)) AS inactive) l
SQL
	return;
}

sub delivered
{
	my ($name) = @_;
	wait_delivered($source, $_) for 'one', 'two';
	same_rows($source, $target, 'SELECT * FROM public.pay', "$name: one target");
	same_rows($source, $target, 'SELECT * FROM public.pay', "$name: the other",
		target_query => 'SELECT * FROM second.pay');
	return;
}

# ------------------------------------------------------------- under traffic

# Without a pause, until each table has been emptied a few times: a table that
# is emptied gets a new file.
my $script = PostgreSQL::Test::Utils::tempdir() . '/insert.sql';
PostgreSQL::Test::Utils::append_to_file($script, <<'SQL');
INSERT INTO pay SELECT nextval('ids'), repeat('t', 1000) FROM generate_series(1, 10);
SQL
$source->safe_psql('postgres', 'CREATE SEQUENCE ids START 10000000');
my ($out, $err) = ('', '');
my $bench = IPC::Run::start(
	[
		'pgbench', '-n', '-c', 2, '-T', 120, '-R', 300, '-f', $script, '-h',
		$source->host, '-p', $source->port, 'postgres'
	],
	'>', \$out, '2>', \$err);
my %seen;
while ($bench->pumpable && keys %seen < 9)
{
	$seen{$_}++ for split / /, files();
	$bench->pump_nb;
}
cmp_ok(scalar keys %seen, q(>=), 9, 'log tables are emptied under traffic, again and again');
$bench->signal('TERM');
$bench->finish;
traffic(2);
delivered('under traffic');
log_is('inactive = 0', 'what every sync is done with is emptied');
is( $source->safe_psql('postgres', <<'SQL'), '0', 'and nothing was deleted row by row');
SELECT sum(n_tup_del + n_tup_upd) FROM pg_stat_user_tables
WHERE schemaname = 'payment_sync' AND relname ~ '^log_\d$'
SQL
cmp_ok($source->safe_psql('postgres', 'SELECT payment_sync.log_size()'),
	'<', 8 * 1024 * 1024, 'the log is small');

# --------------------------------------------------------------- held, freed

$source->safe_psql('postgres', "SELECT payment_sync.disable_sync('two')");
traffic(3);
wait_delivered($source, 'one');
cmp_ok($source->safe_psql('postgres', 'SELECT payment_sync.log_size()'),
	'>', 3 * 1024 * 1024, 'a disabled sync holds the log');
cmp_ok(stat($source, 'two', 'log_held'), '>', 3 * 1024 * 1024, 'and stat_sync says so');
cmp_ok(stat($source, 'one', 'log_held'), '<', 1024 * 1024, 'it is not the other one');
$source->safe_psql('postgres', "SELECT payment_sync.enable_sync('two')");
delivered('enabled again');
log_is('inactive = 0', 'and it lets the log go');

$source->safe_psql('postgres', "SELECT payment_sync.disable_sync('two')");
traffic(3);
wait_delivered($source, 'one');
log_is('size > 3 * 1024 * 1024', 'disabled once more, it holds the log');
$source->safe_psql('postgres', "SELECT payment_sync.drop_sync('two')");
log_is('inactive = 0', 'dropped, it lets the log go, without another change');

# ------------------------------------------------------------- open writers

$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.create_sync('two', '{pay}', server => 'target', target_schema => 'second');
SQL
$target->safe_psql('postgres', 'TRUNCATE second.pay; INSERT INTO second.pay SELECT * FROM public.pay');

# Both have written to the active table, one of them outlives a restart.
my $open = PaymentSyncSession->new($source, 'postgres');
$open->query("BEGIN; INSERT INTO pay SELECT -i, repeat('o', 1000) FROM generate_series(1, 20) i");
my $table = $source->safe_psql('postgres', <<SQL);
SELECT relation::regclass FROM pg_locks
WHERE pid = @{[$open->pid]} AND relation::regclass::text ~ '^payment_sync.log_\\d\$'
SQL
like($table, qr/^payment_sync\.log_\d$/, "an open transaction has written to $table");
my $file = $source->safe_psql('postgres', "SELECT pg_relation_filenode('$table')");
traffic(4);
delivered('past an open writer');
is($source->safe_psql('postgres', "SELECT pg_relation_filenode('$table')"),
	$file, "its table is kept meanwhile");
isnt($source->safe_psql('postgres', "SELECT 'payment_sync.log_' || active FROM payment_sync.log_rotation"),
	$table, 'though the log has gone on in another one');
$open->query('COMMIT');
delivered('the open writer has committed');
log_is('inactive = 0', 'then its table is emptied');

$source->safe_psql('postgres', <<'SQL');
BEGIN;
INSERT INTO pay SELECT -100 - i, repeat('p', 1000) FROM generate_series(1, 20) i;
PREPARE TRANSACTION 'p';
SQL
traffic(3);
$source->restart;
traffic(3);
delivered('past a prepared writer');
$source->safe_psql('postgres', "COMMIT PREPARED 'p'");
delivered('the prepared writer has committed');
log_is('inactive = 0', 'then its table is emptied');

# ------------------------------------------------- a rewrite by VACUUM FULL

$source->safe_psql('postgres', "SELECT payment_sync.disable_sync('two')");
traffic(3);
wait_delivered($source, 'one');
$source->safe_psql('postgres', "VACUUM FULL payment_sync.log_$_") for 0 .. 2;
$source->safe_psql('postgres', "SELECT payment_sync.enable_sync('two')");
traffic(1);
delivered('log tables rewritten by VACUUM FULL');

done_testing();
