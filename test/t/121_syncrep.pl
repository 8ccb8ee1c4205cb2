# 121_syncrep.pl
#
# Never ahead of the synchronous standbys (P3).  A commit that waits for a
# standby becomes visible when its wait is cancelled, when the server is started
# anew, and at once under synchronous_commit = local; it is delivered, fetched
# and sent all the same only when the standby has it.  Workers wait without
# hanging: their syncs can be disabled and delivered by hand, and they end when
# they are told to.  After the standby was promoted, the sync goes on there.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncHttp;
use PaymentSyncSession;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $local = 'SET synchronous_commit = local;';
my $source = start_source('source', conf => "payment_sync.http_allowed_hosts = 'localhost'\npayment_sync.max_workers = 1\n");
my $target = start_target('target');
my $receiver = start_receiver();

$_->safe_psql('postgres', 'CREATE TABLE pay (id int PRIMARY KEY, v text)') for $source, $target;
connect_target($source, $target);
create_target($source, 'hook', { url => "$receiver->{base}/hook" }, {});
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target');
SELECT payment_sync.create_sync('hook', '{pay}', server => 'hook');
SELECT payment_sync.create_sync('pull', '{pay}');
SQL

$source->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($source, 'base', has_streaming => 1);
$standby->append_conf('postgresql.conf',
	"primary_conninfo = '" . $source->connstr . " application_name=standby'\n");
$standby->start;
$source->append_conf('postgresql.conf', "synchronous_standby_names = 'standby'\n");
$source->reload;
$source->poll_query_until('postgres',
	"SELECT sync_state = 'sync' FROM pg_stat_replication WHERE application_name = 'standby'")
  or die 'the standby is not synchronous';

sub at_target { return $target->safe_psql('postgres', "SELECT COALESCE(string_agg(id::text, ' ' ORDER BY id), '') FROM pay"); }
sub at_hook { return receiver_state($receiver)->{requests}; }
sub fetched
{
	my $n = $source->safe_psql('postgres', "$local SELECT count(*) FROM payment_sync.fetch_changes('pull')");
	$source->safe_psql('postgres', "$local SELECT payment_sync.ack_changes('pull', position) FROM payment_sync.fetch_changes('pull')");
	return $n;
}

# The worker has looked at both, and seen that they must wait.
sub wait_held
{
	my ($name) = @_;
	ok( $source->poll_query_until('postgres',
			"SELECT bool_and(state = 'standby' AND lag_changes > 0 AND errors = 0) FROM payment_sync.stat_sync WHERE name IN ('pay', 'hook')"),
		$name);
	return;
}

# Commit in a session, whose wait for the standby is cancelled.
sub insert_and_cancel
{
	my ($id) = @_;
	my $session = PaymentSyncSession->new($source, 'postgres');
	$session->send("INSERT INTO pay VALUES ($id, 'cancelled')");
	$source->poll_query_until('postgres',
		"SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = " . $session->pid)
	  or die 'the commit does not wait';
	is($source->safe_psql('postgres', "SELECT count(*) FROM pay WHERE id = $id"), 0, "$id: while it waits it is invisible");
	$source->safe_psql('postgres', 'SELECT pg_cancel_backend(' . $session->pid . ')');
	$session->wait;
	$session->quit;
	is($source->safe_psql('postgres', "SELECT count(*) FROM pay WHERE id = $id"), 1, "$id: cancelled, it is visible");
	return;
}

$source->safe_psql('postgres', "INSERT INTO pay VALUES (1, 'together')");
wait_delivered($source, $_) for qw(pay hook);
is(at_target(), '1', 'with the standby it is delivered');
is(at_hook(), 1, 'and sent');
is(fetched(), 1, 'and fetched');

# ------------------------------------------------------- the standby is away

$standby->stop;
insert_and_cancel(2);
wait_held('the syncs wait for the standby, and say so');
$source->safe_psql('postgres', "$local INSERT INTO pay VALUES (3, 'local')");
is(at_target(), '1', 'what the standby lacks is not delivered');
is(at_hook(), 1, 'nor sent');
is($source->safe_psql('postgres', "SELECT payment_sync.pending_changes('pay')"), 2, 'it is pending');
my ($code, undef, $error) = $source->psql('postgres', "SET statement_timeout = '300ms'; SELECT * FROM payment_sync.fetch_changes('pull') OFFSET 1");
like($error, qr/statement timeout/, 'who fetches waits, and can be cancelled');

# by hand
my $hand = PaymentSyncSession->new($source, 'postgres');
$hand->send("CALL payment_sync.incremental_sync('pay')");
my $by_hand = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = " . $hand->pid;
ok($source->poll_query_until('postgres', $by_hand), 'the worker lets go of a sync while it waits');
is(at_target(), '1', 'by hand nothing is delivered either');
$source->safe_psql('postgres', 'SELECT pg_cancel_backend(' . $hand->pid . ')');
$hand->wait(may_fail => 1);
like($hand->{error}, qr/canceling statement/, 'which can be cancelled');
$hand->quit;

# disabled, enabled, terminated
$source->safe_psql('postgres', "$local SELECT payment_sync.disable_sync('pay')");
is(stat($source, 'pay', 'state'), 'disabled', 'a sync can be disabled');
ok( $source->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND granted"),
	'and the worker leaves it');
$source->safe_psql('postgres', "$local SELECT payment_sync.enable_sync('pay')");
wait_held('enabled again, it waits');
my ($pid) = worker_pids($source);
$source->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
ok( $source->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid"),
	'a worker that waits can be ended');
$source->poll_query_until('postgres',
	"SELECT count(*) = 1 AND bool_and(pid <> $pid) FROM pg_stat_activity WHERE backend_type = 'payment_sync worker'")
  or die 'no other worker';
wait_held('and the next one waits as well');

# a restart, after which all that was committed is visible
$source->restart('immediate');
wait_held('after a crash they wait');
is(at_target(), '1', 'and nothing was delivered');
is(at_hook(), 1, 'nor sent');

# ------------------------------------------------------- the standby is back

$standby->start;
wait_delivered($source, $_) for qw(pay hook);
is(at_target(), '1 2 3', 'when the standby has it, it is delivered');
cmp_ok(at_hook(), '>=', 3, 'and sent');
is(fetched(), 2, 'and fetched');
is(stat($source, 'pay', "errors || ' ' || state"), '0 idle', 'waiting was no failure');

# ------------------------------------------------- no standby, and one again

$source->safe_psql('postgres', "ALTER SYSTEM SET synchronous_standby_names = ''");
$source->reload;
$standby->stop;
$source->safe_psql('postgres', 'INSERT INTO pay SELECT generate_series(10, 12)');
wait_delivered($source, 'pay');
is(at_target(), '1 2 3 10 11 12', 'without synchronous standbys nothing waits');
$source->safe_psql('postgres', 'ALTER SYSTEM RESET synchronous_standby_names');
$source->reload;
$source->poll_query_until('postgres', "SELECT setting = 'standby' FROM pg_settings WHERE name = 'synchronous_standby_names'")
  or die 'not set';
$source->safe_psql('postgres', "$local INSERT INTO pay VALUES (20, 'local')");
wait_held('now it does again');
$source->safe_psql('postgres', "$local ALTER SYSTEM SET synchronous_standby_names = ''");
$source->reload;
wait_delivered($source, $_) for qw(pay hook);
like(at_target(), qr/ 20$/, 'who waits hears that there is no standby to wait for any more');
$source->safe_psql('postgres', "ALTER SYSTEM RESET synchronous_standby_names");
$source->reload;
$standby->start;
$source->poll_query_until('postgres',
	"SELECT sync_state = 'sync' FROM pg_stat_replication WHERE application_name = 'standby'")
  or die 'the standby is not synchronous';

# ---------------------------------------------------------------- promotion

$source->safe_psql('postgres', "INSERT INTO pay VALUES (30, 'both')");
wait_delivered($source, $_) for qw(pay hook);
$standby->stop;
insert_and_cancel(31);
wait_held('what only the old primary has waits');
$source->stop('immediate');
$standby->append_conf('postgresql.conf', "synchronous_standby_names = ''\nprimary_conninfo = ''\n");
$standby->start;
$standby->promote;
$standby->safe_psql('postgres', "INSERT INTO pay VALUES (40, 'promoted')");
wait_delivered($standby, 'pay');
is(at_target(), '1 2 3 10 11 12 20 30 40', 'the promoted standby goes on: it lacks nothing that the target has');
is($standby->safe_psql('postgres', "SELECT string_agg(id::text, ' ' ORDER BY id) FROM pay"), at_target(), 'the two agree');
is(stat($standby, 'pay', 'errors'), 0, 'without an error');

done_testing();
