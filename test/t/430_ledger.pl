# 430_ledger.pl
#
# The ledger of a target that cannot be read.  Method: the server runs on two
# days (test/modules/payment_sync_clock.c shifts its clock to noon, and to noon
# of the day before); triggers of the test count the changes at the source, the
# receiver counts what it has taken.  Every look at the ledger, also amid
# traffic and after kill -9 of the worker, must be balanced; in the end it says
# what source and receiver say.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use IPC::Run ();
use PaymentSyncHttp;
use PaymentSyncTest;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;

my $libdir = $ENV{PSYNC_PKGLIBDIR} || `pg_config --pkglibdir`;
chomp $libdir;
my $clock = "$libdir/payment_sync_clock.so";
my $noon = 12 * 3600 - time % 86400;
my ($yesterday, $today) =
  map { POSIX::strftime('%Y-%m-%d', gmtime(time + $noon - $_ * 86400)) } (1, 0);

my $receiver = start_receiver();
$ENV{LD_PRELOAD} = $clock;
$ENV{PSYNC_CLOCK_SHIFT} = $noon - 86400;
my $node = start_source('source', conf => <<CONF);
payment_sync.http_allowed_hosts = 'localhost'
restart_after_crash = on
CONF
sub restart_at
{
	my ($shift) = @_;
	$node->stop;
	$ENV{PSYNC_CLOCK_SHIFT} = $shift;
	$node->start;
	return;
}
is($node->safe_psql('postgres', "SELECT (now() AT TIME ZONE 'UTC')::date"), $yesterday, 'the server is on the day before');

create_target($node, 'shop', { url => "$receiver->{base}/hook", max_batch => 5, retry_delay_min => 10,
	retry_delay_max => 100, previous => 'false' }, {});
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE payments (id int PRIMARY KEY, amount numeric NOT NULL, note text);
CREATE TABLE refunds (id int PRIMARY KEY, amount numeric NOT NULL, note text);
CREATE TABLE audit ("table" text, operation text, day date);
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO audit VALUES (TG_TABLE_NAME, lower(TG_OP), (clock_timestamp() AT TIME ZONE 'UTC')::date);
	RETURN NULL;
END $$;
CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON payments FOR EACH ROW EXECUTE FUNCTION audit();
CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON refunds FOR EACH ROW EXECUTE FUNCTION audit();
SELECT payment_sync.capture_table('payments'), payment_sync.capture_table('refunds');
SELECT payment_sync.create_sync('shop', '{payments,refunds}', server => 'shop', exclude_origins => '{bank}',
	transform => $$CASE WHEN event #>> '{new,note}' IS DISTINCT FROM 'secret' THEN event END$$);
SQL

# What the ledger says of a table: [column => sum] per operation and day.
sub ledger
{
	my ($columns, $where) = @_;
	return $node->safe_psql('postgres', <<SQL);
SELECT "table", operation, day, $columns FROM payment_sync.ledger
WHERE sync = 'shop' AND @{[ $where // 'true' ]} ORDER BY "table"::text COLLATE "C", operation, day
SQL
}
sub total
{
	my ($columns) = @_;
	return $node->safe_psql('postgres',
		'SELECT ' . join(', ', map { "COALESCE(sum($_), 0)" } split /, /, $columns) .
		", bool_and(balanced) FROM payment_sync.ledger WHERE sync = 'shop'");
}
# The source's own count, as lines "table operation day n".
sub source_counts
{
	return join "\n", sort split /\n/, $node->safe_psql('postgres',
		q{SELECT concat_ws(' ', "table", operation, day, count(*)) FROM audit GROUP BY "table", operation, day});
}
sub ledger_counts
{
	my ($column) = @_;
	return join "\n", sort split /\n/, $node->safe_psql('postgres', <<SQL);
SELECT concat_ws(' ', "table", operation, day, $column) FROM payment_sync.ledger WHERE sync = 'shop' AND $column > 0
SQL
}
sub receiver_counts
{
	my $counts = receiver_state($receiver)->{counts};
	return join "\n", map { "$_ $counts->{$_}" } sort keys %$counts;
}
# By saved progress, which lags behind what was delivered by a second at most.
sub wait_settled
{
	$node->poll_query_until('postgres',
		"SELECT COALESCE(sum(pending + parked), 0) = 0 FROM payment_sync.ledger WHERE sync = 'shop'")
	  or die 'the ledger does not settle: ' . ledger('pending, parked, balanced');
	return;
}

# ------------------------------------------------------------------ first day
$node->safe_psql('postgres', <<'SQL');
INSERT INTO payments SELECT i, i, 'plain' FROM generate_series(1, 20) i;
INSERT INTO payments SELECT i, i, 'secret' FROM generate_series(21, 27) i;
UPDATE payments SET amount = 0 WHERE id <= 3;
INSERT INTO refunds SELECT i, i, 'plain' FROM generate_series(1, 4) i;
SET payment_sync.origin = 'bank';
INSERT INTO refunds SELECT i, i, 'from the bank' FROM generate_series(11, 15) i;
DELETE FROM refunds WHERE id = 11;
SQL
wait_settled();
is(ledger('captured, delivered, left_out, excluded, difference, balanced'), join("\n",
	"payments|insert|$yesterday|27|20|7|0|0|t", "payments|update|$yesterday|3|3|0|0|0|t",
	"refunds|delete|$yesterday|1|0|0|1|0|t", "refunds|insert|$yesterday|9|4|0|5|0|t"),
	'delivered, left out, excluded');
is(ledger_counts('captured'), source_counts(), 'captured is what the source says');
is(ledger_counts('delivered'), receiver_counts(), 'delivered is what the receiver says');

# refused ones of this day are dead letters, retried and discarded on the next
set_receiver($receiver, refuse => 'poison');
$node->safe_psql('postgres', <<'SQL');
INSERT INTO payments SELECT i, i, CASE WHEN i % 5 = 0 THEN 'poison' ELSE 'plain' END FROM generate_series(101, 120) i;
SQL
wait_settled();
is(ledger('captured, delivered, dead, balanced', 'dead > 0'), "payments|insert|$yesterday|47|36|4|t", 'dead letters');

# left pending overnight
$node->safe_psql('postgres', <<'SQL');
SELECT payment_sync.disable_sync('shop');
INSERT INTO refunds SELECT i, i, 'late' FROM generate_series(201, 250) i;
SQL
is(ledger('captured, delivered, pending, balanced', 'pending > 0'), "refunds|insert|$yesterday|59|4|50|t", 'pending');
$node->safe_psql('postgres', q{INSERT INTO refunds VALUES (9999, 1, 'x'); DELETE FROM refunds WHERE id = 9999});
restart_at($noon);

# ------------------------------------------------------------------ second day
is($node->safe_psql('postgres', "SELECT (now() AT TIME ZONE 'UTC')::date"), $today, 'a new day');
is(ledger_counts('captured'), source_counts(), 'nothing was lost overnight');
$node->safe_psql('postgres', <<'SQL');
SELECT payment_sync.enable_sync('shop');
INSERT INTO refunds SELECT i, i, 'today' FROM generate_series(301, 330) i;
SQL
wait_settled();
is(ledger('captured, delivered, excluded, balanced', q{"table" = 'refunds'::regclass AND operation = 'insert'}), join("\n",
	"refunds|insert|$yesterday|60|55|5|t", "refunds|insert|$today|30|30|0|t"), 'each change belongs to its own day');

set_receiver($receiver);
my @dead = split /\n/, $node->safe_psql('postgres',
	"SELECT id FROM payment_sync.dead_letters WHERE sync = 'shop' ORDER BY id");
is(scalar(@dead), 4, 'one dead letter per refused event');
$node->safe_psql('postgres', "SELECT payment_sync.retry_dead_letters('shop', '{$dead[0],$dead[1]}')");
wait_settled();
is(total('dead, discarded'), '2|0|t', 'retried ones leave the dead');
$node->safe_psql('postgres', "SELECT payment_sync.discard_dead_letters('shop', '{$dead[2]}')");
is(total('dead, discarded'), '1|1|t', 'discarded ones have a column');
is($node->safe_psql('postgres', 'SELECT sum(discarded), bool_and(made_by = current_user) FROM payment_sync.ledger_manual'),
	'1|t', 'and who has discarded them is known');

# a discard that is not committed must not hold up the delivery
my $session = IPC::Run::start([ 'psql', '-XAtq', '-h', $node->host, '-p', $node->port, 'postgres' ],
	'<', \my $in, '>', \my $out, '2>', \my $err);
$in = "BEGIN;\nSELECT payment_sync.discard_dead_letters('shop', '{$dead[3]}');\n\\echo discarded\n";
$session->pump until $out =~ /discarded/;
$node->safe_psql('postgres', "INSERT INTO payments VALUES (501, 1, 'meanwhile')");
wait_settled();
is(total('dead, discarded'), '1|1|t', 'what is not committed is not discarded');
$in = "ROLLBACK;\n\\q\n";
$session->finish;
is(total('dead, discarded'), '1|1|t', 'nor after a rollback');
is(ledger_counts('delivered'), receiver_counts(), 'delivered is what the receiver says, still');

# --------------------------------------------------------------------- replay
my $replayed = $node->safe_psql('postgres',
	q{SELECT payment_sync.replay('shop', since => date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC')});
cmp_ok($replayed, '>=', 31, 'today\'s changes are sent again');
is(ledger_counts('captured'), source_counts(), 'but were captured once');
wait_settled();
like(total('captured - delivered - left_out - excluded - dead - discarded + replayed'), qr/^0\|t$/,
	'delivered twice, and the ledger says so');
is(ledger_counts('captured'), source_counts(), 'captured once, still');
my $twice = $node->safe_psql('postgres', "SELECT sum(replayed) FROM payment_sync.ledger WHERE sync = 'shop'");
is(receiver_state($receiver)->{duplicates}, $twice, 'the receiver has seen as many repetitions');

# -------------------------------------------------------------------- kill -9
# some are refused, some take long, one in ten fails after the work was done
set_receiver($receiver, refuse => 'poison', fail => 0.1, delay => 5);
my $script = "$PostgreSQL::Test::Utils::tmp_check/ledger.sql";
append_to_file($script, <<'SQL');
\set id random(1, 100)
\set kind random(1, 20)
INSERT INTO payments VALUES (:id, :kind, CASE :kind WHEN 1 THEN 'poison' WHEN 2 THEN 'secret' ELSE 'plain' END)
ON CONFLICT (id) DO UPDATE SET amount = payments.amount + 1, note = excluded.note;
DELETE FROM refunds WHERE id = :id;
INSERT INTO refunds VALUES (:id, 1, 'again') ON CONFLICT DO NOTHING;
SQL
my ($kills, $looks, $unbalanced) = (0, 0, '');
for my $round (1 .. 3)
{
	my $pgbench = IPC::Run::start([ 'pgbench', '-n', '-c', 2, '-t', 150, '-h', $node->host,
		'-p', $node->port, '-f', $script, 'postgres' ], '<', \undef, '>', \my $o, '2>', \my $e);
	my $before = receiver_state($receiver)->{requests};
	while ($pgbench->pumpable)
	{
		$pgbench->pump_nb;
		$unbalanced ||= ledger('difference', 'NOT balanced');
		$looks++;
		last if receiver_state($receiver)->{requests} > $before + 100;
	}
	$pgbench->finish;
	wait_until('more requests come', sub {
		receiver_state($receiver)->{requests} > $before + 100
	}, 60);
	my ($pid) = worker_pids($node);
	if ($pid)
	{
		kill 'KILL', $pid;
		$kills++;
		# the server ends all sessions, and starts anew
		$node->poll_query_until('postgres', 'SELECT true');
	}
	$unbalanced ||= ledger('difference', 'NOT balanced');
	is(ledger_counts('captured'), source_counts(), "after kill -9: captured is what the source says");
}
is($kills, 3, 'the worker was killed');
while (1)
{
	$unbalanced ||= ledger('difference', 'NOT balanced');
	$looks++;
	last if $node->safe_psql('postgres',
		"SELECT sum(pending + parked) = 0 FROM payment_sync.ledger WHERE sync = 'shop'") eq 't';
}
is($unbalanced, '', "balanced, at each of $looks looks");

is(ledger_counts('captured'), source_counts(), 'in the end: captured is what the source says');
is($node->safe_psql('postgres', 'SELECT count(*) - count(DISTINCT event_id) FROM payment_sync.dead_letters'), '0',
	'no event has two dead letters');
is($node->safe_psql('postgres', 'SELECT sum(dead) FROM payment_sync.ledger'),
	$node->safe_psql('postgres', 'SELECT sum(events) FROM payment_sync.dead_letters'), 'dead are the dead letters');
cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM payment_sync.dead_letters'), '>', 5, 'there are some');
# what was replayed counts twice, at the receiver once
is(ledger_counts('delivered - replayed'), receiver_counts(), 'delivered is what the receiver says');
is(join("\n", @{ receiver_state($receiver)->{problems} }), '', 'judged well: order per key, frozen bodies');

# ------------------------------------------------------------------- retention
$node->append_conf('postgresql.conf', "payment_sync.ledger_retention = 0\n");
my $old = $node->safe_psql('postgres', "SELECT count(*) FROM payment_sync.ledger WHERE day = '$yesterday'");
cmp_ok($old, '>', 0, 'the day before is there');
$node->append_conf('postgresql.conf', "payment_sync.ledger_retention = 2\n");
restart_at($noon + 2 * 86400);
$node->safe_psql('postgres', "INSERT INTO payments VALUES (9001, 1, 'plain')");
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM payment_sync.ledger WHERE day = '$yesterday'")
  or fail('settled entries go');
is(ledger('captured, dead, discarded, balanced', "day = '$yesterday'"), "payments|insert|$yesterday|47|1|1|t",
	'what is old and settled goes, what has a dead letter stays');
$node->safe_psql('postgres', "SELECT payment_sync.discard_dead_letters('shop')");
is(total('dead'), '0|t', 'all discarded');

# ---------------------------------------------------------------------- rights
$node->safe_psql('postgres', 'CREATE ROLE watcher; GRANT pg_monitor TO watcher; CREATE ROLE stranger');
is($node->safe_psql('postgres', 'SET ROLE stranger; SELECT count(*) FROM payment_sync.ledger'), '0', 'strangers see nothing');
cmp_ok($node->safe_psql('postgres', 'SET ROLE watcher; SELECT count(*) FROM payment_sync.ledger'), '>', 0, 'pg_monitor does');

$node->stop;
done_testing();
