# 212_asked.pl
#
# One worker, two databases, and a target that hangs in one of them.  The other
# database has its turn within a bound, whatever the worker is doing when it is
# asked to leave: in a hundred rounds, and with processes stopped (SIGSTOP) at
# the moments at which a mere message could be lost.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncSession;
use PaymentSyncTest;
use Test::More;
use Time::HiRes qw(usleep);

my $rounds = $ENV{PSYNC_ROUNDS} // 100;
my $source = start_source('source', conf => <<'CONF');
payment_sync.max_workers = 1
payment_sync.database_turn = '50ms'
payment_sync.retry_delay_min = '1ms'
payment_sync.retry_delay_max = '100ms'
CONF
my $target = start_target('target');

for my $db (qw(one two))
{
	$_->safe_psql('postgres', "CREATE DATABASE $db") for $source, $target;
	$_->safe_psql($db, 'CREATE TABLE a (id bigint PRIMARY KEY, v text)') for $source, $target;
	connect_target($source, $target, db => $db, sourcedb => $db);
	$source->safe_psql($db, <<'SQL');
SELECT payment_sync.capture_table('a');
SELECT payment_sync.create_sync('a', '{a}', server => 'target');
SQL
}

my %session = map { $_ => PaymentSyncSession->new($source, $_) } qw(one two);
my %there = map { $_ => PaymentSyncSession->new($target, $_) } qw(one two);
my $lock = PaymentSyncSession->new($target, 'one');
my $id = 0;

sub put
{
	my ($db) = @_;
	$id++;
	$session{$db}->query("INSERT INTO a VALUES ($id, 'v')");
	return $id;
}

# Is it there in time?  The limit is far above what the settings promise.
sub arrives
{
	my ($db, $n) = @_;
	my $end = time + 60;
	while (time < $end)
	{
		return 1 if $there{$db}->query("SELECT count(*) FROM a WHERE id = $n") eq '1';
		usleep(5000);
	}
	return 0;
}

sub hang  { return $lock->query('BEGIN; LOCK TABLE a IN ACCESS EXCLUSIVE MODE') }
sub relax { return $lock->query('COMMIT') }

sub await_hanging
{
	$there{one}->until_true('EXISTS (SELECT FROM pg_locks WHERE NOT granted)');
	return;
}

# The worker of this database, which is the only one.
sub worker_of
{
	my ($db) = @_;
	$session{$db}->until_true(<<'SQL');
EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'payment_sync worker' AND datname = current_database())
SQL
	return $session{$db}->query(<<'SQL');
SELECT pid FROM pg_stat_activity WHERE backend_type = 'payment_sync worker' AND datname = current_database()
SQL
}

ok(arrives($_, put($_)), "database $_ is delivered") for qw(one two);

# ------------------------------------------------------------ many rounds

my $late = 0;
for (1 .. $rounds)
{
	hang();
	my $stuck = put('one');
	await_hanging();
	$late++ if !arrives('two', put('two'));
	relax();
	$late++ if !arrives('one', $stuck);
	last if $late;
}
is($late, 0, "$rounds times a target hung, and the other database was delivered");

# --------------------------- asked in the moment in which a turn is to begin

# The worker is asleep.  It wakes with news for itself, and is asked to leave.
for my $round (1 .. 3)
{
	ok(arrives('one', put('one')), "round $round: the worker is in database one");
	my $worker = worker_of('one');
	hang();
	kill STOP => $worker;
	my $stuck = put('one');
	my $wanted = put('two');
	usleep(1_500_000);
	kill CONT => $worker;
	ok(arrives('two', $wanted), 'asked before the turn of a sync whose target hangs');
	relax();
	ok(arrives('one', $stuck), 'which goes on later');
}

# ---------------------- asked in the moment in which progress is to be saved

for my $round (1 .. 3)
{
	ok(arrives('one', put('one')), "round $round: progress is not saved yet");
	my $worker = worker_of('one');
	kill STOP => $worker;
	my $backends = $there{one}->query("SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE application_name LIKE 'payment_sync%' AND datname = 'one'");
	kill STOP => split / /, $backends;
	my $wanted = put('two');
	usleep(1_500_000);
	kill CONT => $worker;
	ok(arrives('two', $wanted), 'asked before a target that is frozen was to flush');
	kill CONT => split / /, $backends;
	ok(arrives('one', put('one')), 'which goes on later');
}

# ----------------------------------------------- patience has grown meanwhile

$target->safe_psql('one', <<'SQL');
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION refuse();
SQL
my $refused = put('one');
$session{one}->until_true("(SELECT failures >= 8 FROM payment_sync.stat_sync)");
hang();
await_hanging();
ok(arrives('two', put('two')), 'a sync that has failed often holds its worker no longer than others');
$lock->query('DROP TRIGGER refuse ON a');
relax();
ok(arrives('one', $refused), 'and is delivered in the end');

same_rows($source, $target, 'SELECT * FROM a', "nothing is lost in database $_", sourcedb => $_, targetdb => $_)
  for qw(one two);
$_->quit for values %session, values %there, $lock;
done_testing();
