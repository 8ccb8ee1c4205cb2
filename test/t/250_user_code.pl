# 250_user_code.pl
#
# What users have written (checks of domains, transforms) runs as whom it
# belongs to, cannot be deceived by the reader's search_path, leaves the
# transaction, the session and the worker usable whatever it raises, and takes
# no longer than it may.  Every kind of misbehaviour is a domain within a
# composite type, which is decoded in a session (the view changes, a pull
# consumer, preview_event) and in a worker that serves another sync as well.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PaymentSyncHttp;
use PaymentSyncSession;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $receiver = start_receiver();
my $node = start_source('source', conf => <<CONF);
payment_sync.http_allowed_hosts = '127.0.0.1'
payment_sync.user_code_timeout = '400ms'
payment_sync.transform_timeout = '400ms'
payment_sync.max_workers = 1
CONF
create_target($node, 'hooks', { url => "$receiver->{base}/hooks", retry_delay_min => '10' });

sub q1 { return $node->safe_psql('postgres', $_[0]) }

# ---------------------------------------------------------------- search_path

q1(<<'SQL');
CREATE ROLE holder LOGIN; CREATE ROLE reader LOGIN;
GRANT CREATE ON DATABASE postgres TO holder, reader;
SET ROLE holder;
CREATE SCHEMA o;
CREATE FUNCTION o.check_digit(text) RETURNS bool LANGUAGE sql AS 'SELECT true';
CREATE FUNCTION o.luhn(text) RETURNS bool LANGUAGE plpgsql AS 'BEGIN RETURN check_digit($1); END';
SET search_path = o;
CREATE DOMAIN o.pan AS text CHECK (o.luhn(VALUE));
CREATE TYPE o.card AS (number o.pan);
CREATE TABLE o.cards (id int PRIMARY KEY, c o.card);
CREATE TABLE o.secret (s text);
GRANT USAGE ON SCHEMA o TO reader;
GRANT SELECT ON o.cards TO reader;
SELECT payment_sync.capture_table('o.cards');
INSERT INTO o.cards VALUES (1, ROW('4111'));
RESET search_path;
SET ROLE reader;
CREATE SCHEMA reader;
GRANT USAGE ON SCHEMA reader TO PUBLIC;
CREATE FUNCTION reader.check_digit(text) RETURNS bool LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO o.secret VALUES ('written by the reader'); RETURN true; END $$;
SQL
is($node->safe_psql('postgres', <<'SQL'), 1, 'a value is shown whose check cannot be evaluated');
SET ROLE reader; SET search_path = reader;
SELECT count(new) FROM payment_sync.changes WHERE "table" = 'o.cards'::regclass;
SQL
is(q1('SELECT count(*) FROM o.secret'), 0, "the reader's functions do not run as the table's owner");

# --------------------------------------------------------------- misbehaviour

# Each is a check, in force while the table test.bad says so for this process.
my %misbehaviour = (
	raise => "RAISE EXCEPTION 'not for readers'",
	internal => 'RAISE EXCEPTION USING ERRCODE = \'internal_error\'',
	cancel => 'RAISE query_canceled',
	sleep => 'PERFORM pg_sleep(600)',
	catch => 'LOOP BEGIN PERFORM pg_sleep(600); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP',
	spin => 'LOOP END LOOP',
	lock => 'LOCK TABLE locked',
	plpgsql => "PERFORM count(*) FROM pg_class; RETURN false",
	subtransaction => 'BEGIN RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN NULL; END; RETURN false',
	discard => 'DISCARD ALL',
	unlisten => 'UNLISTEN *',
	temporary => 'CREATE TEMPORARY TABLE leftover ()',
	role => 'SET ROLE NONE; RESET SESSION AUTHORIZATION',
	commit => 'COMMIT',
	deallocate => 'DEALLOCATE ALL',
	settings => "PERFORM set_config('statement_timeout', '1ms', false), set_config('search_path', 'bad', false), set_config('payment_sync.origin', 'bad', false); RETURN false",
	unlock => 'PERFORM pg_advisory_unlock_all(); RETURN false',
	advisory => 'PERFORM pg_advisory_lock(4711); RETURN false',
);
my @misbehaviours = sort keys %misbehaviour;

q1(<<'SQL');
CREATE TABLE good (id int PRIMARY KEY);
CREATE TABLE locked ();
CREATE TABLE misbehaving (pids text);
INSERT INTO misbehaving VALUES ('none');
SELECT payment_sync.capture_table('good');
SQL
for my $name (@misbehaviours)
{
	q1(<<SQL);
CREATE FUNCTION check_$name(text) RETURNS bool LANGUAGE plpgsql SET search_path = public AS \$\$
BEGIN
	IF current_setting('application_name') ~ 'payment_sync worker|misbehave' THEN
		$misbehaviour{$name};
	END IF;
	RETURN true;
END \$\$;
CREATE DOMAIN domain_$name AS text CHECK (check_$name(VALUE));
CREATE TYPE type_$name AS (d domain_$name);
CREATE TABLE table_$name (id int PRIMARY KEY, c type_$name);
SELECT payment_sync.capture_table('table_$name');
SELECT payment_sync.create_sync('pull_$name', '{table_$name,good}');
SELECT payment_sync.create_sync('hook_$name', '{table_$name}', server => 'hooks', enabled => false);
INSERT INTO table_$name VALUES (1, ROW('x'));
INSERT INTO good SELECT count(*) FROM good;
SQL
}
my $holder = PaymentSyncSession->new($node, 'postgres');
$holder->query('BEGIN; LOCK TABLE locked');

# In a session: each way to decode, then an ordinary statement, ROLLBACK, and
# what the code may have left behind.
for my $name (@misbehaviours)
{
	my $session = PaymentSyncSession->new($node, 'postgres');
	$session->query("SET application_name = 'misbehave'; SET search_path = public");
	$session->query('BEGIN');
	my $all = $session->query(<<SQL, may_fail => 1);
SELECT operation, new FROM payment_sync.changes WHERE "table" IN ('table_$name'::regclass, 'good'::regclass) ORDER BY position LIMIT 200
SQL
	unlike($session->{error}, qr/FATAL|server closed/, "$name, changes: the session lives");
	like($session->{error} . $all, qr/"id": 0/, "$name, changes: other changes are shown");
	$session->query('ROLLBACK', may_fail => 1);
	unlike($session->{error}, qr/FATAL|ERROR/, "$name, changes: ROLLBACK works");
	is($session->query('SELECT 1'), 1, "$name, changes: the session can be used");
	my $fetched = $session->query("SELECT operation, new FROM payment_sync.fetch_changes('pull_$name', 3)",
		may_fail => 1);
	like($fetched, qr/"id": 1\b/, "$name, fetch_changes: the change is fetched");
	like($fetched, qr/"id": \d+}/, "$name, fetch_changes: so are others");
	$session->query(qq(SELECT payment_sync.preview_event('hook_$name', '{"id": 1}')), may_fail => 1);
	unlike($session->{error}, qr/FATAL|server closed/, "$name, preview_event: the session lives");
	is($session->query('SELECT 1'), 1, "$name, preview_event: the session can be used");
	is($session->query(<<'SQL'), 'public|0||0', "$name: nothing is left behind");
SELECT current_setting('search_path'), current_setting('statement_timeout'), current_setting('payment_sync.origin'),
	(SELECT count(*) FROM pg_class WHERE relname = 'leftover')
SQL
	$session->quit;
}

# In a worker, which serves another sync as well.
q1("SELECT payment_sync.create_sync('other', '{good}', server => 'hooks')");
q1('INSERT INTO good VALUES (1000)');
wait_delivered($node, 'other');
my @workers = worker_pids($node);
is(scalar @workers, 1, 'one worker serves them all');
my %slow = map { $_ => 1 } qw(sleep catch spin lock);
for my $name (@misbehaviours)
{
	q1("SELECT payment_sync.enable_sync('hook_$name'); INSERT INTO table_$name VALUES (2, ROW('y'))");
	if ($slow{$name})
	{
		$node->poll_query_until('postgres', <<SQL) or die "hook_$name does not fail";
SELECT last_error LIKE 'functions of user-defined types took longer than 400 ms%'
FROM payment_sync.stat_sync WHERE name = 'hook_$name'
SQL
		pass("$name, worker: its sync fails");
	}
	else
	{
		wait_delivered($node, "hook_$name");
		pass("$name, worker: its sync delivers");
	}
}
q1('INSERT INTO good VALUES (1001)');
wait_delivered($node, 'other');
is(join(',', worker_pids($node)), $workers[0], 'the worker lives, and serves the other sync');
is(q1("SELECT errors FROM payment_sync.stat_sync WHERE name = 'other'"), 0, 'which has not failed');
my $locks = "SELECT count(*) FROM pg_locks WHERE pid = $workers[0] AND locktype = 'advisory' AND granted";
is(q1("$locks AND objsubid IN (1, 2)"), 0, 'the worker keeps no advisory lock of user code');
is(q1("$locks AND objsubid = 3"), scalar @misbehaviours + 1, 'and has given back none of its own');
$holder->quit;
q1("SELECT payment_sync.disable_sync('hook_$_')") for @misbehaviours;

# --------------------------------------------------------------------- cancel

$node->append_conf('postgresql.conf', "payment_sync.user_code_timeout = '1h'\n");
$node->reload;
my $asleep = "SELECT count(*) FROM pg_stat_activity WHERE pid = %d AND wait_event = 'PgSleep'";
for my $what ("SELECT * FROM payment_sync.fetch_changes('pull_sleep', 3)",
	q(SELECT payment_sync.preview_event('hook_sleep', '{"id": 1}')))
{
	my $session = PaymentSyncSession->new($node, 'postgres');
	$session->query("SET application_name = 'misbehave'");
	$session->query('BEGIN');
	$session->send($what);
	$node->poll_query_until('postgres', sprintf($asleep, $session->pid), 1) or die "no sleep: $what";
	q1('SELECT pg_cancel_backend(' . $session->pid . ')');
	$session->wait(may_fail => 1);
	like($session->{error}, qr/canceling statement due to user request/, "canceled: $what");
	$session->query('ROLLBACK', may_fail => 1);
	unlike($session->{error}, qr/ERROR|FATAL/, 'ROLLBACK works');
	is($session->query('SELECT 1'), 1, 'the session can be used');
	$session->quit;
}
# its earlier change may be a dead letter by now
q1("INSERT INTO table_sleep VALUES (3, ROW('z')); SELECT payment_sync.enable_sync('hook_sleep')");
$node->poll_query_until('postgres', sprintf($asleep, $workers[0]), 1) or die 'no sleep in the worker';
q1("SELECT pg_cancel_backend($workers[0])");
$node->poll_query_until('postgres', <<SQL) or die 'the canceled sync does not fail';
SELECT last_error = 'canceling statement due to user request' FROM payment_sync.stat_sync WHERE name = 'hook_sleep'
SQL
q1("SELECT payment_sync.disable_sync('hook_sleep')");
q1("SELECT pg_cancel_backend($workers[0])");
q1('INSERT INTO good VALUES (1002)');
wait_delivered($node, 'other');
is(join(',', worker_pids($node)), $workers[0], 'the canceled worker goes on');

# ----------------------------------------------------------------- transforms

$node->append_conf('postgresql.conf', "payment_sync.user_code_timeout = '400ms'\n");
$node->reload;
for my $transform ('jsonb_agg(event)', "jsonb_build_object('n', count(*))")
{
	my $session = PaymentSyncSession->new($node, 'postgres');
	$session->query(qq(BEGIN; SELECT payment_sync.alter_sync('other', transform => \$\$$transform\$\$)), may_fail => 1);
	$session->query(q(SELECT payment_sync.preview_event('other', '{"id": 1}')), may_fail => 1);
	unlike($session->{error}, qr/FATAL|server closed/, "an aggregate as transform: $transform");
	$session->query('ROLLBACK');
	is($session->query('SELECT 1'), 1, 'the session can be used');
	$session->quit;
}

$node->stop;
done_testing();
