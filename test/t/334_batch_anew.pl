# 334_batch_anew.pl
#
# What is asked for while something else is under way: a batch during a chunk
# of another, a new start during a batch or a window, a cancelled batch; and
# definitions that can be seen before their invalidations arrive.
#
# To stop a delivery, a session at the target holds a lock that it needs.  To
# hold up a commit between its becoming visible and its invalidations, a
# library sleeps there (test/modules/payment_sync_late.c).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use IPC::Run;
use PaymentSyncApply;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = start_source('source');
my $target = start_target('target');
connect_target($source, $target);

# A session that runs SQL, tells that it has, and stays until it is let go.
sub session
{
	my ($node, $sql) = @_;
	my ($in, $out) = ("$sql\n\\echo has run\n", '');
	my $psql = IPC::Run::start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres') ],
		'<', \$in, '>', \$out, '2>&1', IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	$psql->pump_nb while $in ne '';
	return { psql => $psql, in => \$in, out => \$out };
}

sub await
{
	my ($session) = @_;
	$session->{psql}->pump until ${ $session->{out} } =~ /has run/;
	return $session;
}

sub let_go
{
	my ($session) = @_;
	${ $session->{in} } .= "\\q\n";
	$session->{psql}->finish;
	unlike(${ $session->{out} }, qr/ERROR|FATAL/, 'the session went well');
	return;
}

sub lock_target
{
	my ($table) = @_;
	return await(session($target, "BEGIN; LOCK TABLE $table IN EXCLUSIVE MODE;"));
}

# Wait until the delivery waits for the lock.
sub is_stopped
{
	$target->poll_query_until('postgres', <<'SQL') or die 'the delivery does not wait for the lock';
SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'payment_sync' AND wait_event_type = 'Lock')
SQL
	return;
}

# 40,000 rows of 320 bytes make four chunks.
sub tables
{
	my ($name, $rows) = @_;
	both($source, $target, "CREATE TABLE $name (id int PRIMARY KEY, v text)");
	$source->safe_psql('postgres', <<SQL);
INSERT INTO $name SELECT i, repeat('x', 320) || i FROM generate_series(1, $rows) i;
SELECT payment_sync.capture_table('$name');
SQL
	return;
}

sub create
{
	my ($name, $more) = @_;
	$source->safe_psql('postgres', "SELECT payment_sync.create_sync('$name', '{$name}', server => 'target'$more)");
	return;
}

sub batch
{
	my ($name, $what) = @_;
	return $source->safe_psql('postgres', "SELECT $what FROM payment_sync.progress_batch WHERE sync = '$name'");
}

# --- a batch during the only chunk of another

tables('one', 10);
$target->safe_psql('postgres', "INSERT INTO one VALUES (999, 'extra')");
my $lock = lock_target('one');
create('one', ', batch => true');
is_stopped();
my $caller = session($source, "CALL payment_sync.batch_sync('one', mirror => true);");
$source->poll_query_until('postgres', "SELECT mirror FROM payment_sync.batch WHERE relid = 'one'::regclass")
  or die 'the second batch was not asked for';
let_go($lock);
let_go(await($caller));
is($target->safe_psql('postgres', 'SELECT count(*) FROM one WHERE id = 999'), 0,
	'a mirror asked for during the last chunk of a batch is made');
same_rows($source, $target, 'SELECT * FROM one', 'and both sides are equal');

# --- a batch, and a new start, in the middle of a batch of several chunks

tables('many', 40_000);
$target->safe_psql('postgres', <<'SQL');
CREATE FUNCTION halt() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.id = 30000 THEN PERFORM pg_advisory_xact_lock_shared(1); END IF;
	RETURN NEW;
END$$;
CREATE TRIGGER halt BEFORE INSERT ON many FOR EACH ROW EXECUTE FUNCTION halt();
SQL
create('many', '');
for my $how ("CALL payment_sync.batch_sync('many', mirror => true)",
	"SELECT payment_sync.enable_sync('many', start => 'batch')")
{
	$target->safe_psql('postgres', 'TRUNCATE many');
	$lock = await(session($target, 'SELECT pg_advisory_lock(1);'));
	my $first = session($source, "CALL payment_sync.batch_sync('many');");
	is_stopped();
	cmp_ok(batch('many', 'chunks'), '>', 0, 'a part is copied');

	# behind the cursor
	$target->safe_psql('postgres', "UPDATE many SET v = 'wrong' WHERE id = 7; INSERT INTO many VALUES (-1, 'extra')");
	my $before = batch('many', 'requested');
	$caller = session($source, "$how;");
	$source->poll_query_until('postgres',
		"SELECT requested <> '$before' FROM payment_sync.batch WHERE relid = 'many'::regclass")
	  or die 'the second batch was not asked for';
	let_go($lock);
	let_go(await($_)) for $first, $caller;
	goes_on($source, 'many');
	same_rows($source, $target, 'SELECT * FROM many', "copied from its start: $how");
}

# --- cancelled during a chunk, asked for again

$target->safe_psql('postgres', 'TRUNCATE many');
$lock = await(session($target, 'SELECT pg_advisory_lock(1);'));
my $first = session($source, "CALL payment_sync.batch_sync('many');");
is_stopped();
is($source->safe_psql('postgres', "SELECT payment_sync.cancel_batch('many')"), 't', 'cancelled during a chunk');
let_go($lock);
let_go(await($first));
is(batch('many', 'state'), 'cancelled', 'it stays cancelled');
$target->safe_psql('postgres', 'DELETE FROM many WHERE id < 100');
$source->safe_psql('postgres', "CALL payment_sync.batch_sync('many')");
same_rows($source, $target, 'SELECT * FROM many', 'the next one begins at the start');

# --- dropped during a chunk, and created again

$target->safe_psql('postgres', 'TRUNCATE many');
$lock = await(session($target, 'SELECT pg_advisory_lock(1);'));
$source->safe_psql('postgres', "SELECT payment_sync.drop_sync('many')");
create('many', ', batch => true');
is_stopped();
$source->safe_psql('postgres', "SELECT payment_sync.drop_sync('many')");
create('many', ', batch => true');
let_go($lock);
goes_on($source, 'many');
same_rows($source, $target, 'SELECT * FROM many', 'a batch of a sync that was made anew is copied from its start');

# --- a new start during a window

tables('live', 1);
create('live', ', batch => true');
goes_on($source, 'live');

# progress that is not saved yet when the next window begins, and due to be
# when that ends
$source->safe_psql('postgres', "INSERT INTO live VALUES (9, 'delivered')");
$target->poll_query_until('postgres', 'SELECT count(*) = 2 FROM live') or die 'nothing is delivered';
$lock = lock_target('live');
$source->safe_psql('postgres', "INSERT INTO live VALUES (10, 'under way')");
is_stopped();
$source->safe_psql('postgres', "INSERT INTO live VALUES (11, 'left out')");
$source->safe_psql('postgres', "SELECT payment_sync.enable_sync('live', start => 'now')");
$source->safe_psql('postgres', "INSERT INTO live VALUES (12, 'after the start')");
$source->safe_psql('postgres', 'SELECT pg_sleep(1.1)');
let_go($lock);
goes_on($source, 'live');
is($target->safe_psql('postgres', 'SELECT id FROM live ORDER BY id'), "1\n9\n10\n12",
	'a position set by hand is not overwritten by what was under way');

# --- a definition that is seen before its invalidation

my $late = "LOAD 'payment_sync_late'; SET payment_sync_late.delay = '4s';";
both($source, $target, 'CREATE TABLE f1 (id int PRIMARY KEY); CREATE TABLE f2 (id int PRIMARY KEY)');
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table(t) FROM unnest('{f1,f2}'::regclass[]) t;
SELECT payment_sync.create_sync('f', '{f1}', server => 'target');
INSERT INTO f1 VALUES (1);
SQL
goes_on($source, 'f');
my $alterer = session($source, <<"SQL");
$late
BEGIN;
SELECT payment_sync.alter_sync('f', add_tables => '{f2}');
INSERT INTO f2 VALUES (1);
COMMIT;
SQL
$source->poll_query_until('postgres', 'SELECT count(*) = 1 FROM f2') or die 'the change is not committed';
$source->safe_psql('postgres', 'INSERT INTO f1 VALUES (2)');
$target->poll_query_until('postgres', 'SELECT count(*) = 2 FROM f1') or die 'nothing is delivered';
let_go(await($alterer));
$source->safe_psql('postgres', 'INSERT INTO f2 VALUES (2)');
goes_on($source, 'f');
same_rows($source, $target, 'SELECT * FROM f2', 'a table is delivered from the transaction on that added it');

# a batch under way, and a table that joins with a batch of its own
both($source, $target, 'CREATE TABLE d3 (id int PRIMARY KEY)');
$source->safe_psql('postgres', "SELECT payment_sync.capture_table('d3'); INSERT INTO d3 SELECT generate_series(1, 10)");
goes_on($source, 'f');
tables('slow', 40_000);
$source->safe_psql('postgres', "SELECT payment_sync.alter_sync('f', add_tables => '{slow}')");
$target->safe_psql('postgres',
	'CREATE TRIGGER halt BEFORE INSERT ON slow FOR EACH ROW EXECUTE FUNCTION halt()');
$lock = await(session($target, 'SELECT pg_advisory_lock(1);'));
$first = session($source, "CALL payment_sync.batch_sync('f', 'slow');");
is_stopped();
$alterer = session($source,
	"$late SELECT payment_sync.alter_sync('f', add_tables => '{d3}', batch => true);");
$source->poll_query_until('postgres', "SELECT count(*) = 1 FROM payment_sync.batch WHERE relid = 'd3'::regclass")
  or die 'the batch is not asked for';
let_go($lock);
let_go(await($_)) for $first, $alterer;
goes_on($source, 'f');
same_rows($source, $target, 'SELECT * FROM d3', 'the request of a table not yet known is kept');

done_testing();
