# 422_altered_target.pl
#
# ALTER SERVER and ALTER USER MAPPING take effect on a target that is open: the
# delivery saves its progress and opens the target anew.  Nothing is lost, and
# what had been acknowledged does not come again.
#
# And a delivery that is left to another worker while its progress cannot be
# saved: that is nobody else's failure.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncHttp;
use PaymentSyncSession;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = start_source('source',
	conf => "payment_sync.http_allowed_hosts = 'localhost'\npayment_sync.max_workers = 2\n"
	  . "payment_sync.worker_idle_timeout = '1s'\n");
my $target = start_target('target');
$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION payment_sync;
CREATE ROLE merchant LOGIN;
CREATE TABLE payments (id int PRIMARY KEY, amount numeric);
CREATE TABLE others (id int PRIMARY KEY);
ALTER TABLE payments OWNER TO merchant;
SELECT payment_sync.capture_table('payments');
SELECT payment_sync.capture_table('others');
SQL
$target->safe_psql('postgres', 'CREATE TABLE others (id int PRIMARY KEY)');

sub sql { return $node->safe_psql('postgres', $_[0]); }

sub ids
{
	my ($receiver) = @_;
	return sort { $a <=> $b } map { /"id":"?(\d+)/ } keys %{ receiver_state($receiver)->{table} };
}

# --------------------------------------------------------- another address

my $first = start_receiver();
my $second = start_receiver();
create_target($node, 'hook', { url => "$first->{base}/hook", retry_delay_min => 20, retry_delay_max => 200 },
	{});
sql(<<'SQL');
GRANT USAGE ON FOREIGN SERVER hook TO merchant;
CREATE USER MAPPING FOR merchant SERVER hook OPTIONS (api_key 'the first key');
SET ROLE merchant;
SELECT payment_sync.create_sync('a', '{payments}', server => 'hook');
INSERT INTO payments SELECT i, i FROM generate_series(1, 20) i;
SQL
wait_delivered($node, 'a');
is_deeply([ ids($first) ], [ 1 .. 20 ], 'delivered to the first address');

sql("ALTER SERVER hook OPTIONS (SET url '$second->{base}/hook')");
sql('INSERT INTO payments SELECT i, i FROM generate_series(21, 40) i');
wait_delivered($node, 'a');
is_deeply([ ids($second) ], [ 21 .. 40 ], 'after ALTER SERVER, to the second one, and nothing twice');
is(receiver_state($first)->{requests}, 20, 'the first one gets nothing any more');

sql("ALTER USER MAPPING FOR merchant SERVER hook OPTIONS (SET api_key 'the second key')");
sql('INSERT INTO payments SELECT i, i FROM generate_series(41, 60) i');
wait_delivered($node, 'a');
my %keys;
push @{ $keys{ $_->{headers}{'x-api-key'} } }, $_ for @{ receiver_requests($second) };
is(join(', ', map { "$_: " . @{ $keys{$_} } } sort keys %keys), 'the first key: 20, the second key: 20',
	'after ALTER USER MAPPING, with the new key');

# --------------------------------------------------- while requests are open

set_receiver($second, delay => 300);
sql('INSERT INTO payments SELECT i, i FROM generate_series(61, 90) i');
wait_state($second, 'requests are under way', sub { $_[0]{requests} > 40 });
sql("ALTER SERVER hook OPTIONS (SET url '$first->{base}/hook')");
sql('INSERT INTO payments SELECT i, i FROM generate_series(91, 120) i');
wait_delivered($node, 'a');
my %both;
$both{$_}++ for ids($first), ids($second);
is_deeply([ sort { $a <=> $b } keys %both ], [ 1 .. 120 ], 'altered under way: nothing is lost');
set_receiver($second);

# A target that never answers is not waited for.
set_receiver($first, delay => 600_000);
sql('INSERT INTO payments VALUES (121, 1)');
wait_until('a request hangs', sub { receiver_state($first)->{requests} > 20 });
sql("ALTER SERVER hook OPTIONS (SET url '$second->{base}/hook')");
wait_state($second, 'it is sent to the new address', sub { exists $_[0]{table}{'public.payments {"id":121}'} });
pass('a request that hangs is given up for the new address');
set_receiver($first);

# ------------------------------------------------------------ a mended one

sql("ALTER SERVER hook OPTIONS (SET url 'http://127.0.0.1:1/', SET retry_delay_min '600000', SET retry_delay_max '600000')");
sql('INSERT INTO payments SELECT i, i FROM generate_series(122, 129) i');
$node->poll_query_until('postgres', "SELECT failures > 0 FROM payment_sync.stat_sync WHERE name = 'a'") or die;
sql("ALTER SERVER hook OPTIONS (SET url '$second->{base}/hook', SET retry_delay_min '20', SET retry_delay_max '200')");
wait_state($second, 'they are delivered', sub { 8 == grep { /"id":12[2-9]/ } keys %{ $_[0]{table} } });
pass('what made it fail is mended: it does not wait for ten minutes');

# ----------------------------------------------------------- rights are lost

sql('REVOKE USAGE ON FOREIGN SERVER hook FROM merchant');
sql('INSERT INTO payments VALUES (150, 1)');
$node->poll_query_until('postgres', <<'SQL') or die 'no failure';
SELECT last_error LIKE 'permission denied for foreign server%' FROM payment_sync.stat_sync WHERE name = 'a'
SQL
pass('REVOKE takes effect on an open target');
sql('GRANT USAGE ON FOREIGN SERVER hook TO merchant');
wait_state($second, 'it is delivered', sub { exists $_[0]{table}{'public.payments {"id":150}'} });

# --------------------------------------------------- a PostgreSQL target

connect_target($node, $target);
sql("SELECT payment_sync.create_sync('b', '{others}', server => 'target')");
sql('INSERT INTO others VALUES (1)');
wait_delivered($node, 'b');

sub sessions { return $target->safe_psql('postgres', "SELECT string_agg(application_name, ',') FROM pg_stat_activity WHERE application_name LIKE 'payment_sync%'"); }

is(sessions(), 'payment_sync', 'the target is open');
sql("ALTER SERVER target OPTIONS (ADD application_name 'payment_sync_renamed')");
wait_until('it is closed', sub { sessions() !~ /\bpayment_sync\b/ });
pass('an idle one is closed at once');
sql('INSERT INTO others VALUES (2)');
wait_delivered($node, 'b');
is(sessions(), 'payment_sync_renamed', 'and opened with the new options');
is($target->safe_psql('postgres', 'SELECT count(*) FROM others'), '2', 'each row has come once');
is(stat($node, 'b', 'errors'), '0', 'without a failure');

# ------------------------------------- left while progress cannot be saved

# One worker serves both; the other place is free.
my $one_worker = sub { scalar(worker_pids($node)) == 1 };
$node->restart;
sql('INSERT INTO payments VALUES (200, 1); INSERT INTO others VALUES (3)');
wait_delivered($node, $_) for 'a', 'b';
wait_until('there is one worker', $one_worker);
sql(<<'SQL');
CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no room'; END $$;
SQL
my $a = sql("SELECT id FROM payment_sync.sync WHERE name = 'a'");
my $errors = stat($node, 'b', 'errors');
my $lock = PaymentSyncSession->new($target, 'postgres');
$lock->query('BEGIN; LOCK TABLE others IN ACCESS EXCLUSIVE MODE');
my $offset = -s $node->logfile;
sql(<<SQL);
CREATE TRIGGER no_room BEFORE UPDATE ON payment_sync.sync_state FOR EACH ROW
	WHEN (OLD.sync = '$a') EXECUTE FUNCTION no_room();
BEGIN;
INSERT INTO payments VALUES (201, 1);
INSERT INTO others VALUES (4);
COMMIT;
SQL
wait_state($second, 'the event is delivered', sub { exists $_[0]{table}{'public.payments {"id":201}'} });
$target->poll_query_until('postgres', 'SELECT count(*) > 0 FROM pg_locks WHERE NOT granted') or die;
sql('INSERT INTO payments VALUES (202, 1)');
$node->wait_for_log(qr/WARNING: .*(?:could not save the progress of sync "a"|sync "a" failed): no room/, $offset);
sql('DROP TRIGGER no_room ON payment_sync.sync_state');
wait_state($second, 'the next event is delivered', sub { exists $_[0]{table}{'public.payments {"id":202}'} });
$lock->query('COMMIT');
wait_delivered($node, $_) for 'a', 'b';
is(stat($node, 'b', 'errors'), $errors, 'what cannot be saved is not the failure of the one that waits');
unlike(slurp_file($node->logfile, $offset), qr/sync "b" failed/, 'nor is it reported as one');
is_deeply([ ids($second) ]->[-1], 202, 'nothing is lost');
is($target->safe_psql('postgres', 'SELECT count(*) FROM others'), '4', 'of either');
judged_well($first, 'first');
judged_well($second, 'second');

$node->stop;
done_testing();
