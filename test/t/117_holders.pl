# 117_holders.pl
#
# The change log does not grow because of who has stopped (P7): an open or a
# prepared transaction pins one table, one that has chosen a position keeps what
# that needs, a dropped sync keeps nothing.  What does hold the log is in
# log_holders, by pid, gid or name, and the server's log names it once if no
# sync is to blame.  A consumer's lock keeps no worker waiting.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncSession;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $MB = 1024 * 1024;
my $source = start_source('source', conf => <<'CONF');
payment_sync.log_segment_size = '1MB'
payment_sync.max_workers = 1
CONF
my $target = start_target('target');

$_->safe_psql('postgres', 'CREATE TABLE pay (id serial PRIMARY KEY, v text)') for $source, $target;
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('one', '{pay}', server => 'target');
CREATE SERVER nowhere FOREIGN DATA WRAPPER payment_sync_http OPTIONS (url 'http://127.0.0.1:1/');
CREATE USER MAPPING FOR CURRENT_USER SERVER nowhere;
SQL

# Commit this many MB of changes, and let each be delivered.
sub traffic
{
	my ($mb) = @_;
	my $writer = PaymentSyncSession->new($source, 'postgres');
	for (1 .. $mb)
	{
		$writer->query("INSERT INTO pay (v) SELECT repeat('v', 1000) FROM generate_series(1, 200)") for 1 .. 5;
		wait_delivered($source, 'one');
	}
	$writer->quit;
	return;
}

sub query { return $source->safe_psql('postgres', $_[0]) }

sub becomes_true
{
	my ($condition, $name) = @_;
	$source->poll_query_until('postgres', "SELECT $condition")
	  or die "not true in time: $condition";
	pass($name);
	return;
}

sub emptied
{
	my ($name) = @_;
	becomes_true(<<SQL, $name);
(SELECT sum(pg_relation_size('payment_sync.log_' || i)) FROM generate_series(0, 2) i
	WHERE i <> (SELECT active FROM payment_sync.log_rotation)) = 0
SQL
	return;
}

my $offset = 0;

sub warned
{
	my ($pattern) = @_;
	my $log = slurp_file($source->logfile, $offset);
	my $n = () = $log =~ /$pattern/g;
	return $n;
}

# The warning comes at most once in ten minutes, so each case has a fresh server.
sub restart
{
	$offset = -s $source->logfile;
	$source->restart;
	return;
}

sub wait_for_warning
{
	my ($pattern, $name) = @_;
	for (1 .. 600)
	{
		last if warned($pattern);
		query("INSERT INTO pay (v) VALUES ('tick')");
		select undef, undef, undef, 0.1;
	}
	is(warned($pattern), 1, $name);
	return;
}

# ------------------------------------------------------------------ writers

my $open = PaymentSyncSession->new($source, 'postgres');
my $pid = $open->pid;
$open->query("BEGIN; INSERT INTO pay (v) SELECT repeat('o', 1000) FROM generate_series(1, 20)");
traffic(7);
cmp_ok(query('SELECT payment_sync.log_size()'), '<', 5 * $MB, 'an open transaction pins one table and no more');
is(query("SELECT kind, pid, reason, since IS NOT NULL, bytes > 0 FROM payment_sync.log_holders WHERE kind <> 'sync'"),
	"transaction|$pid|it has changed captured tables and is not committed|t|t", 'it is named');
query("CREATE ROLE somebody");
is(query("SET ROLE somebody; SELECT kind, pid FROM payment_sync.log_holders WHERE kind <> 'sync'"),
	"transaction|$pid", 'whoever asks');

# With a second one all tables are in use, and the active one grows.
query(<<'SQL');
BEGIN;
INSERT INTO pay (v) SELECT repeat('p', 1000) FROM generate_series(1, 20);
PREPARE TRANSACTION 'forgotten';
SQL
traffic(4);
is(query("SELECT kind, pid, gid FROM payment_sync.log_holders WHERE kind <> 'sync' ORDER BY since"),
	"transaction|$pid|\nprepared transaction||forgotten", 'so is a prepared one');
wait_for_warning(qr/WARNING:  the change log has grown/, 'the log has grown');
like(slurp_file($source->logfile, $offset), qr/DETAIL:  The transaction of process $pid began at /,
	'the server log names the older one');
$open->query('ROLLBACK');
$open->quit;
restart();
$open = PaymentSyncSession->new($source, 'postgres');
$open->query("BEGIN; INSERT INTO pay (v) SELECT repeat('o', 1000) FROM generate_series(1, 20)");
traffic(4);
wait_for_warning(qr/DETAIL:  Prepared transaction "forgotten" began at /, 'then the prepared one');
query("COMMIT PREPARED 'forgotten'");
$open->query('ROLLBACK');
$open->quit;
wait_delivered($source, 'one');
emptied('once they have ended, the log is emptied');
is(query("SELECT count(*) FROM payment_sync.log_holders WHERE kind <> 'sync'"), 0, 'nobody is named');
same_rows($source, $target, 'SELECT * FROM pay', 'all is delivered');

# ------------------------------------------------------- chosen positions

# left_open(NAME, SQL): a transaction that chooses a position is left open
sub left_open
{
	my ($name, $sql, $needs_all) = @_;

	restart();
	query("SELECT payment_sync.disable_sync('one')");
	query("INSERT INTO pay (v) SELECT repeat('v', 1000) FROM generate_series(1, 200)") for 1 .. 15;
	my $session = PaymentSyncSession->new($source, 'postgres');
	$session->query("BEGIN; $sql");
	query("SELECT payment_sync.enable_sync('one')");
	wait_delivered($source, 'one');
	emptied("$name left open: what it does not need is emptied") if !$needs_all;
	traffic(6);
	is( query("SELECT kind, pid, reason, bytes > 0 FROM payment_sync.log_holders WHERE kind <> 'sync'"),
		"transaction|@{[$session->pid]}|it has chosen the position of a sync and is not committed|t",
		"$name: it is named");
	wait_for_warning(qr/DETAIL:  The transaction of process @{[$session->pid]} began at/,
		"$name: the server log names it, once");
	return $session;
}

my $session = left_open('create_sync', q(SELECT payment_sync.create_sync('two', '{pay}')));
my $during = query('SELECT count(*) FROM payment_sync.changes');
$session->query("INSERT INTO pay (v) VALUES ('last'); COMMIT");
my $fetched = query("SELECT count(*), count(*) FILTER (WHERE new ->> 'v' = 'last') FROM payment_sync.fetch_changes('two', 1000000)");
like($fetched, qr/\|1$/, 'committed, the sync has its own changes');
cmp_ok((split /\|/, $fetched)[0], '>=', 6 * 1000, 'and all that came after its position');
$session->quit;

query("SELECT payment_sync.disable_sync('two')");
query("SELECT payment_sync.drop_sync('two')");
query("SELECT payment_sync.create_sync('two', '{pay}', enabled => false)");
$session = left_open('enable_sync', q(SELECT payment_sync.enable_sync('two', start => 'now')), 1);
$session->query('ROLLBACK');
query("SELECT payment_sync.drop_sync('two')");
emptied('enable_sync rolled back and the sync dropped: all is emptied');
$session->quit;

query(q(SELECT payment_sync.create_sync('hook', '{pay}', server => 'nowhere', enabled => false)));
$session = left_open('replay', q(SELECT payment_sync.replay('hook')), 1);
$session->query('ROLLBACK');
$session->quit;
query("SELECT payment_sync.drop_sync('hook')");
emptied('replay rolled back and the sync dropped: all is emptied');

query(<<'SQL');
BEGIN;
SELECT payment_sync.create_sync('prepared', '{pay}');
PREPARE TRANSACTION 'creates';
SQL
traffic(2);
is( query("SELECT kind, gid, reason FROM payment_sync.log_holders WHERE kind <> 'sync'"),
	'prepared transaction|creates|it has chosen the position of a sync and is not committed',
	'a prepared create_sync is named');
query("COMMIT PREPARED 'creates'");
cmp_ok(query("SELECT count(*) FROM payment_sync.fetch_changes('prepared', 1000000)"),
	'>=', 2000, 'and has all that came after its position');

# --------------------------------------------------------- dropped syncs

query(<<'SQL');
SELECT payment_sync.create_sync('hook', '{pay}', server => 'nowhere');
SELECT payment_sync.disable_sync('hook');
SQL
traffic(3);
is(query("SELECT kind, sync, reason, bytes > $MB FROM payment_sync.log_holders WHERE sync = 'hook'"),
	'sync|hook|the sync is disabled|t', 'a disabled sync is named');
for my $role ('replica', 'local')
{
	query(<<SQL);
SET session_replication_role = $role;
SELECT payment_sync.drop_sync(name) FROM payment_sync.syncs WHERE name = CASE '$role' WHEN 'replica' THEN 'hook' ELSE 'prepared' END;
SQL
}
my @tables = split /\n/, query(<<'SQL');
SELECT c.oid::regclass FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'sync' AND a.atttypid = 'uuid'::regtype
WHERE c.relkind = 'r' AND c.relnamespace = 'payment_sync'::regnamespace
SQL
cmp_ok(scalar @tables, '>', 3, 'there are tables with rows of syncs');
is(join(' ', grep { query("SELECT count(*) FROM $_ WHERE sync NOT IN (SELECT id FROM payment_sync.sync)") } @tables),
	'', 'under whatever session_replication_role, drop_sync leaves nothing behind');
emptied('and nothing holds the log');

query('SELECT payment_sync.disable_sync(\'one\')');
query(<<'SQL');
SET session_replication_role = replica;
INSERT INTO payment_sync.sync_state (sync, position) VALUES (gen_random_uuid(), '3:3:');
SQL
query('SELECT payment_sync.enable_sync(\'one\')');
traffic(3);
emptied('the state of a sync that is gone holds nothing');
query('DELETE FROM payment_sync.sync_state WHERE sync NOT IN (SELECT id FROM payment_sync.sync)');

# ------------------------------------------------------- a consumer's lock

restart();
query(<<'SQL');
SELECT payment_sync.create_sync('a_pull', '{pay}', max_log_size => '1MB');
SELECT payment_sync.create_sync('b_pull', '{pay}', max_log_size => '1MB', on_log_full => 'disable');
SELECT payment_sync.create_sync('c_pull', '{pay}', max_log_size => '1MB');
INSERT INTO pay (v) VALUES ('first');
SQL
my $consumer = PaymentSyncSession->new($source, 'postgres');
$consumer->query('BEGIN');
$consumer->query("SELECT count(*) FROM payment_sync.fetch_changes('$_', 1)") for 'a_pull', 'b_pull';
traffic(3);
becomes_true("log_full_at IS NOT NULL FROM payment_sync.sync_state st JOIN payment_sync.sync s ON s.id = st.sync WHERE name = 'c_pull'",
	'limits are looked at while consumers hold their syncs');
is(query('SELECT count(*) FROM pg_locks WHERE NOT granted'), 0, 'and nobody waits');
is(query("SELECT enabled FROM payment_sync.syncs WHERE name = 'b_pull'"), 't', 'a sync in use is not disabled');
$consumer->query('ROLLBACK');
$consumer->quit;
query("INSERT INTO pay (v) VALUES ('more')");
becomes_true("NOT enabled FROM payment_sync.syncs WHERE name = 'b_pull'", 'later it is');
becomes_true("log_full_at IS NOT NULL FROM payment_sync.sync_state st JOIN payment_sync.sync s ON s.id = st.sync WHERE name = 'a_pull'",
	'and the other is seen to be full');

done_testing();
