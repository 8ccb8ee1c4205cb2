# 340_origin.pl
#
# Changes that were applied by a sync bear an origin, and a sync can leave out
# given origins: two databases that sync both ways do not echo; along a chain
# A → B → C changes are passed on, or not, as C's sync says.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncApply;
use PaymentSyncTest;
use Test::More;

# three databases of one server: each with a change log of its own
my $node = start_source('node');
my %log_id;
for my $db (qw(a b c))
{
	$node->safe_psql('postgres', "CREATE DATABASE $db");
	$node->safe_psql($db, <<'SQL');
CREATE TABLE pay (id int PRIMARY KEY, v text, n int DEFAULT 0);
CREATE TABLE other (id int PRIMARY KEY);
CREATE EXTENSION payment_sync;
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.capture_table('other');
SQL
	$log_id{$db} = $node->safe_psql($db, 'SELECT identity FROM payment_sync.log_rotation');
}

# link(FROM, TO, [more arguments of create_sync], [server options])
sub link_up
{
	my ($from, $to, $more, $options) = @_;
	my ($host, $port) = ($node->host, $node->port);
	$node->safe_psql($from, <<SQL);
CREATE SERVER $to FOREIGN DATA WRAPPER payment_sync_postgres OPTIONS (host '$host', port '$port', dbname '$to'@{[$options // '']});
CREATE USER MAPPING FOR CURRENT_USER SERVER $to;
SELECT payment_sync.create_sync('to_$to', '{pay,other}', server => '$to'@{[$more ? ", $more" : '']});
SQL
	return;
}

# All that was done so far is everywhere it is to go: no sync has a lag, twice.
sub settle
{
	for (1 .. 2)
	{
		for my $db (qw(a b c))
		{
			$node->poll_query_until($db, 'SELECT COALESCE(sum(lag_changes), 0) = 0 FROM payment_sync.stat_sync WHERE server IS NOT NULL')
			  or die "$db does not settle";
		}
	}
	return;
}

sub delivered
{
	my ($db, $sync) = @_;
	return $node->safe_psql($db, "SELECT changes FROM payment_sync.stat_sync WHERE name = '$sync'");
}

sub same
{
	my ($one, $two, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(differing_rows($node, $node, 'SELECT * FROM pay', sourcedb => $one, targetdb => $two), '', $name);
}

# --- both ways

link_up('a', 'b', "exclude_origins => '{*}'");
link_up('b', 'a', "exclude_origins => '{*}'");
$node->safe_psql('a', "INSERT INTO pay SELECT i, 'a' FROM generate_series(1, 50) i");
$node->safe_psql('b', "INSERT INTO pay SELECT i, 'b' FROM generate_series(1001, 1050) i");
settle();
same('a', 'b', 'both have the rows of both');
$node->safe_psql('a', "UPDATE pay SET v = 'from a', n = 1 WHERE id > 1000");
settle();
$node->safe_psql('b', "UPDATE pay SET v = 'from b', n = 2 WHERE id % 2 = 0; DELETE FROM pay WHERE id % 10 = 1");
settle();
# a large window, and a truncate
$node->safe_psql('a', "INSERT INTO pay SELECT i, 'large' FROM generate_series(2001, 5000) i");
settle();
$node->safe_psql('b', 'INSERT INTO other VALUES (1)');
settle();
$node->safe_psql('a', 'TRUNCATE other');
settle();
same('a', 'b', 'and each follows the other\'s changes');
is($node->safe_psql('b', 'SELECT count(*) FROM other'), 0, 'TRUNCATE as well');
is(delivered('a', 'to_b'), 50 + 50 + 3000 + 1, 'A has sent what was done in A, and no more');
# 50 rows; of 100, half are even and a tenth ends in 1; a row of the other table
is(delivered('b', 'to_a'), 50 + 50 + 10 + 1, 'B likewise');

# a pair of hostile rows: the same key on both sides at once does not echo
# either, whoever wins
my $before = delivered('a', 'to_b') + delivered('b', 'to_a');
$node->safe_psql('a', "SELECT payment_sync.disable_sync('to_b')");
$node->safe_psql('b', "SELECT payment_sync.disable_sync('to_a')");
$node->safe_psql('a', "UPDATE pay SET v = 'a''s' WHERE id = 2");
$node->safe_psql('b', "UPDATE pay SET v = 'b''s' WHERE id = 2");
$node->safe_psql('a', "SELECT payment_sync.enable_sync('to_b')");
$node->safe_psql('b', "SELECT payment_sync.enable_sync('to_a')");
settle();
is(delivered('a', 'to_b') + delivered('b', 'to_a') - $before, 2, 'a conflict is two changes, not a ping-pong');
is($node->safe_psql('a', 'SELECT v FROM pay WHERE id = 2'), "b's", 'each has the other\'s version');
is($node->safe_psql('b', 'SELECT v FROM pay WHERE id = 2'), "a's", 'each has the other\'s version');
$node->safe_psql('a', "UPDATE pay SET v = 'agreed' WHERE id = 2");
settle();
same('a', 'b', 'the next change makes them equal');

# --- what the log says

$node->safe_psql('b', "SELECT payment_sync.create_sync('watch', '{pay}')");
$node->safe_psql('a', "UPDATE pay SET n = 77 WHERE id = 2");
$node->safe_psql('b', "UPDATE pay SET n = 78 WHERE id = 3");
settle();
$node->poll_query_until('b', "SELECT count(*) = 2 FROM payment_sync.fetch_changes('watch', 10)")
  or die 'no changes to watch';
is($node->safe_psql('b', "SELECT string_agg(new->>'n' || ' ' || COALESCE(origin, 'here'), ', ' ORDER BY new->>'n') FROM payment_sync.fetch_changes('watch', 10)"),
	"77 $log_id{a}, 78 here", 'changes bear the log they come from');
$node->safe_psql('b', "SELECT payment_sync.drop_sync('watch')");

# --- a chain: B passes on to C what came from A

link_up('b', 'c', "batch => true");
settle();
$node->poll_query_until('b', "SELECT bool_and(state = 'done') FROM payment_sync.progress_batch WHERE sync = 'to_c'");
same('b', 'c', 'C has a copy of B');
$node->safe_psql('a', "INSERT INTO pay VALUES (9001, 'from a')");
settle();
$node->poll_query_until('c', 'SELECT EXISTS (SELECT FROM pay WHERE id = 9001)') or die 'the chain is broken';
$node->safe_psql('b', "INSERT INTO pay VALUES (9002, 'from b')");
settle();
same('b', 'c', 'A → B → C');

# … unless C's sync leaves out A by name
$node->safe_psql('b', "SELECT payment_sync.alter_sync('to_c', exclude_origins => '{$log_id{a}}')");
$node->safe_psql('a', "INSERT INTO pay VALUES (9003, 'from a')");
$node->poll_query_until('b', 'SELECT EXISTS (SELECT FROM pay WHERE id = 9003)') or die 'A → B is broken';
$node->safe_psql('b', "INSERT INTO pay VALUES (9004, 'from b')");
$node->poll_query_until('c', 'SELECT EXISTS (SELECT FROM pay WHERE id = 9004)') or die 'B → C is broken';
settle();
is($node->safe_psql('c', 'SELECT string_agg(id::text, \' \' ORDER BY id) FROM pay WHERE id > 9000'),
	'9001 9002 9004', 'an origin that is left out');

# an origin with a name of its own
$node->safe_psql('a', "ALTER SERVER b OPTIONS (ADD origin 'head office')");
$node->safe_psql('b', "SELECT payment_sync.alter_sync('to_c', exclude_origins => '{}')");
$node->safe_psql('b', "SELECT payment_sync.create_sync('watch', '{pay}', exclude_origins => '{elsewhere}')");
$node->safe_psql('b', "SELECT payment_sync.create_sync('watch_not', '{pay}', exclude_origins => '{elsewhere,head office}')");
# the session with B is older than the option
$node->safe_psql('postgres', "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'payment_sync' AND datname = 'b'");
$node->safe_psql('a', "INSERT INTO pay VALUES (9005, 'from a')");
$node->poll_query_until('b', "SELECT EXISTS (SELECT FROM payment_sync.fetch_changes('watch', 10) WHERE origin = 'head office')")
  or die 'no such origin';
is($node->safe_psql('b', "SELECT count(*) FROM payment_sync.fetch_changes('watch_not', 10)"), 0, 'left out by its name');

# an application can set it, too
$node->safe_psql('b', "SELECT payment_sync.ack_changes('watch', position) FROM payment_sync.fetch_changes('watch', 10)");
$node->safe_psql('b', "SET payment_sync.origin = 'import'; INSERT INTO pay VALUES (9006, 'imported')");
is($node->safe_psql('b', "SELECT origin FROM payment_sync.fetch_changes('watch', 10) WHERE key->>'id' = '9006'"),
	'import', 'an application\'s own origin');

done_testing();
