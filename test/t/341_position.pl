# 341_position.pl
#
# The position at the target: its table's name and place, several syncs at
# once, a table that was emptied or restored, two that deliver the same sync,
# and a crash exactly between the target's commit and our own books (P5).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use IPC::Run;
use PaymentSyncApply;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = start_source('source', conf => "restart_after_crash = on\npayment_sync.retry_delay_max = '100ms'\n");
# so that its commits can wait for a standby
my $target = start_target('target', conf => "wal_level = replica\nmax_wal_senders = 4\n");
my ($host, $port) = ($target->host, $target->port);

# The target's "arrived" tells how often a row was applied.
both($source, $target, 'CREATE TABLE pay (id int PRIMARY KEY, n int DEFAULT 0); CREATE TABLE second (id int PRIMARY KEY)');
$target->safe_psql('postgres', <<'SQL');
CREATE TABLE arrived (id int, op text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN INSERT INTO public.arrived VALUES (NEW.id, TG_OP); RETURN NULL; END$$;
CREATE TRIGGER note AFTER INSERT OR UPDATE ON pay FOR EACH ROW EXECUTE FUNCTION note();
SQL
$source->safe_psql('postgres', <<SQL);
CREATE EXTENSION payment_sync;
CREATE SERVER target FOREIGN DATA WRAPPER payment_sync_postgres OPTIONS (host '$host', port '$port', dbname 'postgres',
	position_schema 'Our Books', position_table 'how far');
CREATE USER MAPPING FOR CURRENT_USER SERVER target;
SELECT payment_sync.capture_table('pay'), payment_sync.capture_table('second');
SQL

# --- its table

# ten syncs that all find it missing
$source->safe_psql('postgres', "SELECT payment_sync.create_sync(('s' || i)::name, '{second}', server => 'target', enabled => false) FROM generate_series(1, 9) i");
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target');
SELECT payment_sync.enable_sync(('s' || i)::name) FROM generate_series(1, 9) i;
INSERT INTO pay VALUES (1);
INSERT INTO second VALUES (1);
SQL
goes_on($source, $_) for 'pay', map { "s$_" } 1 .. 9;
my $where = '"Our Books"."how far"';
is($target->safe_psql('postgres', "SELECT string_agg(sync_name, ' ' ORDER BY sync_name) FROM $where"),
	'pay s1 s2 s3 s4 s5 s6 s7 s8 s9', 'the table has the name and place that were asked for, and a row per sync');
is($target->safe_psql('postgres', "SELECT count(*) FROM pg_namespace WHERE nspname = 'payment_sync_target'"),
	0, 'and there is no other');
isnt($target->safe_psql('postgres', "SELECT obj_description('$where'::regclass)"), '', 'it says what it is for');
is($target->safe_psql('postgres', "SELECT count(*) FROM pg_class WHERE relname = 'how far'"), 1, 'it was created once');
$source->safe_psql('postgres', "SELECT payment_sync.drop_sync(('s' || i)::name) FROM generate_series(1, 9) i");

# --- somebody meddles with it

sub insert
{
	my ($id) = @_;
	$source->safe_psql('postgres', "INSERT INTO pay VALUES ($id)");
	return;
}

my $hang_up = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'payment_sync'";
my $keep = $target->safe_psql('postgres', "SELECT position FROM $where WHERE sync_name = 'pay'");
insert(2);
goes_on($source, 'pay');

# the row goes while the session is open: the next window is refused
$target->safe_psql('postgres', "CREATE TABLE saved AS SELECT * FROM $where; DELETE FROM $where");
insert(3);
like(failure_like($source, 'pay', qr/restored or emptied/),
	qr/recorded position does not fit.*has lost its position: it was restored or emptied/, 'a row that was deleted');
is($target->safe_psql('postgres', 'SELECT count(*) FROM pay WHERE id = 3'), 0, 'nothing is applied then');
$target->safe_psql('postgres', "INSERT INTO $where SELECT * FROM saved");
goes_on($source, 'pay');
same_rows($source, $target, 'SELECT * FROM pay', 'put back, it goes on');

# an earlier one is back, as after a restore of the target
my $now = $target->safe_psql('postgres', "SELECT position FROM $where WHERE sync_name = 'pay'");
$target->safe_psql('postgres', "UPDATE $where SET position = '$keep'");
insert(4);
like(failure_like($source, 'pay', qr/earlier position/),
	qr/earlier position than was delivered: it was restored from a backup/, 'an earlier position');
$target->safe_psql('postgres', "UPDATE $where SET position = '$now'");
goes_on($source, 'pay');

# one from the future, as after a restore of the source
$target->safe_psql('postgres', "UPDATE $where SET position = '900000000:900000000:'; $hang_up");
insert(5);
like(failure_like($source, 'pay', qr/does not know/),
	qr/changes that this server does not know: it was restored from a backup/, 'a position ahead of this server');

# another log's: two sources of one target
$target->safe_psql('postgres', "UPDATE $where SET log_id = gen_random_uuid()");
like(failure_like($source, 'pay', qr/another change log/),
	qr/already follows sync "pay" of another change log/, 'another change log');
$target->safe_psql('postgres', "DELETE FROM $where");

# the remedy that the message names
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.disable_sync('pay');
SELECT payment_sync.enable_sync('pay', start => 'batch');
SQL
goes_on($source, 'pay');
same_rows($source, $target, 'SELECT * FROM pay', 'a new start, with a batch');

# garbage
$target->safe_psql('postgres', "UPDATE $where SET position = 'x'; $hang_up");
insert(6);
like(failure_like($source, 'pay', qr/invalid snapshot/), qr/invalid snapshot "x"/, 'what is no position at all');
$source->safe_psql('postgres', "SELECT payment_sync.disable_sync('pay')");
$target->safe_psql('postgres', "DELETE FROM $where");
$source->safe_psql('postgres', "SELECT payment_sync.enable_sync('pay', start => 'batch')");
goes_on($source, 'pay');

# --- two that deliver

# a session takes the sync from the worker, under load
my ($out, $err) = ('', '');
my $tmp = PostgreSQL::Test::Utils::tempdir();
open my $script, '>', "$tmp/insert.sql" or die;
print $script "INSERT INTO pay SELECT COALESCE(max(id), 0) + 1 FROM pay WHERE id >= 1000 ON CONFLICT DO NOTHING;\n";
close $script;
$source->safe_psql('postgres', 'INSERT INTO pay VALUES (1000)');
my $load = IPC::Run::start([ 'pgbench', '-n', '-c', 1, '-T', 4, '-f', "$tmp/insert.sql", '-h', $source->host,
	'-p', $source->port, 'postgres' ], '>', \$out, '2>', \$err);
my $calls = 0;
while ($load->pumpable)
{
	my ($rc) = $source->psql('postgres', "CALL payment_sync.incremental_sync('pay')");
	last if $rc != 0;
	$calls++;
	$load->pump_nb;
}
$load->finish;
cmp_ok($calls, '>', 3, "incremental_sync was called $calls times beside the worker");
goes_on($source, 'pay');
same_rows($source, $target, 'SELECT * FROM pay', 'worker and sessions took turns');
is($target->safe_psql('postgres', "SELECT count(*) FROM (SELECT id FROM arrived WHERE id >= 1000 AND op = 'INSERT' GROUP BY id HAVING count(*) > 1) d"),
	0, 'nothing was applied twice');
is($target->safe_psql('postgres', "SELECT count(*) FROM arrived WHERE id >= 1000 AND op <> 'INSERT'"), 0, 'not even as an update');

# a copy of the same session's view: somebody else moves the position while a
# window is under way, and that window is refused as a whole
my ($in) = ("BEGIN; UPDATE $where SET position = position; SELECT 'held';\n");
$out = '';
my $rival = IPC::Run::start([ 'psql', '-XAtq', '-d', $target->connstr('postgres') ], '<', \$in, '>', \$out, '2>&1');
$rival->pump until $out =~ /held/;
insert(7);
$target->poll_query_until('postgres', 'SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)') or die;
$keep = $target->safe_psql('postgres', "SELECT position FROM $where");
$in .= "UPDATE $where SET position = '1:1:'; COMMIT;\n\\q\n";
$rival->finish;
like(failure_like($source, 'pay', qr/another session/),
	qr/changed by another session.*The window was not applied/, 'a rival at the target');
is($target->safe_psql('postgres', 'SELECT count(*) FROM pay WHERE id = 7'), 0, 'it was not');
$target->safe_psql('postgres', "UPDATE $where SET position = '$keep'");
goes_on($source, 'pay');

# --- a crash between the target's commit and our own books

# The target's commit waits for a standby that does not exist; the changes are
# on its disk and not confirmed.  Then the worker dies.
for my $victim ('worker', 'worker and target')
{
	my $id = $victim eq 'worker' ? 100 : 200;
	$target->safe_psql('postgres', 'TRUNCATE arrived');
	$source->safe_psql('postgres', "ALTER SERVER target OPTIONS (ADD options '-c synchronous_commit=on')");
	$target->append_conf('postgresql.conf', "synchronous_standby_names = 'nobody'\n");
	$target->reload;
	$target->psql('postgres', "SET synchronous_commit = local; $hang_up");
	$source->safe_psql('postgres', "INSERT INTO pay SELECT i FROM generate_series($id, $id + 9) i");
	$target->poll_query_until('postgres', <<'SQL') or die 'the target does not wait';
SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'payment_sync' AND wait_event = 'SyncRep')
SQL
	my ($pid) = worker_pids($source);
	kill 'KILL', $pid;
	$target->stop('immediate') if $victim ne 'worker';
	$target->adjust_conf('postgresql.conf', 'synchronous_standby_names', "''");
	$victim eq 'worker' ? $target->reload : $target->start;
	$source->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid") or die;
	goes_on($source, 'pay');
	same_rows($source, $target, 'SELECT * FROM pay', "$victim killed after the commit: all is there");
	is($target->safe_psql('postgres', "SELECT count(*), count(DISTINCT id) FROM arrived WHERE id BETWEEN $id AND $id + 9"),
		'10|10', 'once');
	$source->safe_psql('postgres', 'ALTER SERVER target OPTIONS (DROP options)');
}

# The target crashes with commits that were confirmed but not yet on its disk,
# as synchronous_commit = off allows: they are lost with their position, and
# sent again.  SIGSTOP keeps its WAL writer from being in time.
my $walwriter = $target->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'");
$source->safe_psql('postgres', "INSERT INTO pay VALUES (300)");
goes_on($source, 'pay');
kill 'STOP', $walwriter;
# the worker has the target flush now and then, which may come in between
my ($last, $lost) = (300, 'f');
for (1 .. 20)
{
	my ($from, $to) = ($last + 1, $last + 5);
	$last = $to;
	$source->safe_psql('postgres', "INSERT INTO pay SELECT i FROM generate_series($from, $to) i");
	$target->poll_query_until('postgres', "SELECT EXISTS (SELECT FROM pay WHERE id = $to)") or die;
	$lost = $target->safe_psql('postgres', 'SELECT pg_current_wal_insert_lsn() > pg_current_wal_flush_lsn()');
	last if $lost eq 't';
}
is($lost, 't', 'the target has confirmed what is not on its disk');
# SIGQUIT to the postmaster ends all others by SIGQUIT, and that by SIGKILL
$target->stop('immediate');
$target->start;
goes_on($source, 'pay');
same_rows($source, $target, 'SELECT * FROM pay', 'commits that the target has lost are sent again');

# --- prepared transactions of the source

$source->safe_psql('postgres', <<'SQL');
BEGIN; INSERT INTO pay VALUES (401); UPDATE pay SET n = 5 WHERE id = 1; PREPARE TRANSACTION 'one';
BEGIN; INSERT INTO pay VALUES (402); PREPARE TRANSACTION 'two';
INSERT INTO pay VALUES (403);
SQL
$target->poll_query_until('postgres', 'SELECT EXISTS (SELECT FROM pay WHERE id = 403)') or die;
is($target->safe_psql('postgres', 'SELECT count(*) FROM pay WHERE id IN (401, 402)'), 0, 'prepared is not committed');
$source->stop('immediate');
$source->start;
$source->safe_psql('postgres', "COMMIT PREPARED 'one'; ROLLBACK PREPARED 'two'");
$target->poll_query_until('postgres', 'SELECT EXISTS (SELECT FROM pay WHERE id = 401)') or die;
same_rows($source, $target, 'SELECT * FROM pay', 'prepared, crashed, committed');

done_testing();
