# 114_limit.pl
#
# A sync that does not get on holds back the log.  Past the limit, the sync's
# own or payment_sync.max_log_size, there is one warning in the server's log
# and a mark in stat_sync; with on_log_full = 'disable' the sync is disabled
# with its reason, and the log is emptied.  Writers are never stopped.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncTest;
use Test::More;

my $source = start_source('source', conf => "payment_sync.log_segment_size = '1MB'\n");
my $target = start_target('target');

$_->safe_psql('postgres', 'CREATE TABLE pay (id serial PRIMARY KEY, v text)') for $source, $target;
connect_target($source, $target);

# A target that is not there, so that its sync does not get on.
$source->safe_psql('postgres', <<'SQL');
CREATE SERVER nowhere FOREIGN DATA WRAPPER payment_sync_postgres
	OPTIONS (host '127.0.0.1', port '1', dbname 'postgres');
CREATE USER MAPPING FOR CURRENT_USER SERVER nowhere OPTIONS (user 'nobody');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('good', '{pay}', server => 'target');
SELECT payment_sync.create_sync('bad', '{pay}', server => 'nowhere');
SQL

sub insert_mb
{
	my ($mb) = @_;
	$source->safe_psql('postgres', "INSERT INTO pay (v) SELECT repeat('v', 1000) FROM generate_series(1, 100)")
	  for 1 .. 10 * $mb;
	return;
}

# A change now and then, as traffic has them, until the condition holds.
sub until_under_traffic
{
	my ($condition, $name) = @_;
	my $done = 0;
	for (1 .. 600)
	{
		$source->safe_psql('postgres', "INSERT INTO pay (v) VALUES ('tick')");
		$done = $source->safe_psql('postgres', "SELECT $condition") eq 't';
		last if $done;
		$source->safe_psql('postgres', 'SELECT pg_sleep(0.1)');
	}
	ok($done, $name);
	return;
}

sub full
{
	my ($sync) = @_;
	return "COALESCE((SELECT log_full FROM payment_sync.stat_sync WHERE name = '$sync'), false)";
}

sub warnings
{
	my ($offset, $pattern) = @_;
	my $log = PostgreSQL::Test::Utils::slurp_file($source->logfile, $offset);
	my $n = () = $log =~ /$pattern/g;
	return $n;
}

# ------------------------------------------------------------ no limit, ever

insert_mb(3);
is(stat($source, 'bad', 'log_full IS NOT TRUE'), 't', 'without a limit nothing is full');
cmp_ok(stat($source, 'bad', 'log_held'), '>', 3 * 1024 * 1024, 'though much is held');

# --------------------------------------------------------- the server's limit

my $offset = -s $source->logfile;
$source->append_conf('postgresql.conf', "payment_sync.max_log_size = '2MB'\n");
$source->reload;
until_under_traffic(full('bad'), 'past max_log_size, stat_sync marks the sync');
until_under_traffic(
	"(SELECT log_full_at IS NOT NULL FROM payment_sync.sync_state JOIN payment_sync.sync s ON s.id = sync WHERE s.name = 'bad')",
	'the worker has seen it');
like(PostgreSQL::Test::Utils::slurp_file($source->logfile, $offset),
	qr/WARNING:  sync "bad" holds back \d+ kB of the change log\n.*DETAIL:  Its limit is 2048 kB\./,
	'the server log has a warning');
insert_mb(1);
is(warnings($offset, 'WARNING:  sync "bad" holds back'), 1, 'one, not one for each look');
is(stat($source, 'good', 'log_full'), 'f', 'the sync that gets on is not blamed');
wait_delivered($source, 'good');
same_rows($source, $target, 'SELECT * FROM pay', 'and is delivered');
is(stat($source, 'bad', 'state || (disabled_reason IS NULL)') =~ /disabled/, '', "on_log_full = 'warn' is all");

# ------------------------------------------------------------ a limit of its own

$source->safe_psql('postgres', "SELECT payment_sync.alter_sync('bad', max_log_size => '1GB')");
ok($source->poll_query_until('postgres', 'SELECT NOT ' . full('bad')), "a sync's own limit goes before the server's");
until_under_traffic(
	"(SELECT log_full_at IS NULL FROM payment_sync.sync_state JOIN payment_sync.sync s ON s.id = sync WHERE s.name = 'bad')",
	'it is not full any more');
$source->safe_psql('postgres', "SELECT payment_sync.alter_sync('bad', max_log_size => '3MB')");
until_under_traffic("(SELECT log_full_at IS NOT NULL FROM payment_sync.sync_state JOIN payment_sync.sync s ON s.id = sync WHERE s.name = 'bad')",
	'and full again');
is(warnings($offset, 'WARNING:  sync "bad" holds back'), 2, 'a second crossing, a second warning');

# ------------------------------------------------------------------- disable

$source->safe_psql('postgres', "SELECT payment_sync.alter_sync('bad', on_log_full => 'disable')");
until_under_traffic("(SELECT state = 'disabled' FROM payment_sync.stat_sync WHERE name = 'bad')",
	"on_log_full = 'disable' disables it");
like(stat($source, 'bad', 'disabled_reason'), qr/^it held back \d+ kB of the change log$/, 'with its reason');
like(PostgreSQL::Test::Utils::slurp_file($source->logfile, $offset),
	qr/WARNING:  sync "bad" is disabled because it holds back \d+ kB of the change log/,
	'and a warning');
ok( $source->poll_query_until('postgres', 'SELECT payment_sync.log_size() < 3 * 1024 * 1024'),
	'the log is emptied');
wait_delivered($source, 'good');
same_rows($source, $target, 'SELECT * FROM pay', 'nothing was lost for the other sync');

my ($rc, $stdout, $stderr) = $source->psql('postgres', "SELECT payment_sync.enable_sync('bad')");
like($stderr, qr/sync "bad" has no position to go on from.*start => 'batch'/s,
	'it cannot go on as if nothing were missing');

# With a target it starts anew by a batch.
$target->safe_psql('postgres', 'CREATE SCHEMA again; CREATE TABLE again.pay (LIKE public.pay); ALTER TABLE again.pay ADD PRIMARY KEY (id); INSERT INTO again.pay VALUES (-1)');
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.alter_sync('bad', server => 'target', drop_tables => '{pay}');
SELECT payment_sync.alter_sync('bad', add_tables => '{pay}', targets => '{again.pay}');
SELECT payment_sync.enable_sync('bad', start => 'batch');
SQL
wait_delivered($source, 'bad');
same_rows($source, $target, 'SELECT id, v FROM public.pay', 'enabled with a batch, it has all',
	target_query => 'SELECT id, v FROM again.pay');
is(stat($source, 'bad', 'disabled_reason'), '', 'the reason is gone');

# ---------------------------------------------------------- pull syncs likewise

$source->safe_psql('postgres', "SELECT payment_sync.create_sync('pull', '{pay}', on_log_full => 'disable', max_log_size => '2MB')");
insert_mb(3);
until_under_traffic("(SELECT state = 'disabled' FROM payment_sync.stat_sync WHERE name = 'pull')",
	'a pull sync that nobody fetches from is disabled, too');

done_testing();
