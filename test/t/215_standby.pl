# 215_standby.pl
#
# A hot standby delivers nothing, and can be read; once promoted it goes on
# where the primary was, exactly once.  If the old primary had sent what the
# standby never received, the sync refuses to run and says so.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncTest;
use PostgreSQL::Test::Cluster;
use Test::More;

my $source = start_source('source', conf => "wal_keep_size = '64MB'\n");
my $target = start_target('target');

# Without a key at the target's side a change applied twice would show.
$_->safe_psql('postgres', 'CREATE TABLE pay (id int PRIMARY KEY, v text)') for $source, $target;
$target->safe_psql('postgres', <<'SQL');
CREATE TABLE applied (id int, v text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.applied VALUES (new.id, new.v);
	RETURN new;
END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE ON pay FOR EACH ROW EXECUTE FUNCTION note();
SQL
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target');
SELECT payment_sync.create_sync('pull', '{pay}');
INSERT INTO pay SELECT i, 'before' FROM generate_series(1, 1000) i;
SQL
wait_delivered($source, 'pay');

$source->backup('b');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($source, 'b', has_streaming => 1);
$standby->start;
$source->safe_psql('postgres', "INSERT INTO pay SELECT i, 'streamed' FROM generate_series(1001, 2000) i");
$source->wait_for_catchup($standby);

is( $standby->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'payment_sync%'"),
	0, 'a standby has neither launcher nor worker');
is($standby->safe_psql('postgres', 'SELECT count(*) FROM payment_sync.syncs'), 2, 'definitions can be seen there');
is($standby->safe_psql('postgres', "SELECT name FROM payment_sync.stat_sync ORDER BY name"), "pay\npull", 'states as well');
my (undef, undef, $stderr) = $standby->psql('postgres', "CALL payment_sync.incremental_sync('pay')");
like($stderr, qr/recovery|read-only/, 'it does not deliver by hand either');

# Stop the primary with changes that it has not delivered.
$source->safe_psql('postgres', "SELECT payment_sync.disable_sync('pay')");
$source->safe_psql('postgres', "UPDATE pay SET v = 'late' WHERE id <= 500");
$source->safe_psql('postgres', "UPDATE payment_sync.sync SET enabled = true");
$source->wait_for_catchup($standby);
$source->stop('immediate');
$standby->promote;
$standby->safe_psql('postgres', "INSERT INTO pay VALUES (3000, 'after promotion')");
wait_delivered($standby, 'pay');
same_rows($standby, $target, 'SELECT * FROM pay', 'promoted, it goes on');
is( $target->safe_psql('postgres', <<'SQL'), '', 'each change was applied exactly once');
SELECT id, v, count(*) FROM applied GROUP BY id, v HAVING count(*) <> 1
SQL
is($target->safe_psql('postgres', 'SELECT count(*) FROM applied'), 2501, 'and all of them');
is( $standby->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'payment_sync launcher'"),
	1, 'it has a launcher now');

# ---------------------------------------- the target is ahead of what is left

# restored(NODE, NAME, LOST): a server from a backup of NODE, which has made
# LOST transactions since that only the target knows.  The new server makes
# one of its own, with the id of the first that was lost: ids alone would not
# tell the two histories apart.
sub restored
{
	my ($node, $name, $lost) = @_;
	$node->backup($name);
	$node->safe_psql('postgres', "INSERT INTO pay SELECT max(id) + 1, 'lost with $name' FROM pay") for 1 .. $lost;
	ok($target->poll_query_until('postgres', "SELECT count(*) = $lost FROM pay WHERE v = 'lost with $name'"),
		"$name: delivered after the backup: $lost");
	$node->stop('immediate');

	my $new = PostgreSQL::Test::Cluster->new($name);
	$new->init_from_backup($node, $name);
	$new->start;
	$new->safe_psql('postgres', "INSERT INTO pay SELECT max(id) + 1, 'made by $name' FROM pay");
	ok($new->poll_query_until('postgres', "SELECT failures > 0 FROM payment_sync.stat_sync WHERE name = 'pay'"),
		"$name: a backup that is older than the target refuses to run");
	like( stat($new, 'pay', "last_error || ': ' || last_error_detail"),
		qr/the target's recorded position does not fit this change log: The target has changes that this server does not know/,
		"$name: and says so");
	$new->safe_psql('postgres', "SELECT payment_sync.enable_sync('pay', start => 'batch')");
	wait_delivered($new, 'pay');
	same_rows($new, $target, 'SELECT * FROM pay', "$name: start => 'batch' makes the target follow the restored source");
	$new->safe_psql('postgres', "UPDATE pay SET v = 'and on' WHERE id = 1");
	wait_delivered($new, 'pay');
	same_rows($new, $target, 'SELECT * FROM pay', "$name: and it goes on");
	$new->stop('immediate');
	$new->start;
	$new->safe_psql('postgres', "UPDATE pay SET v = 'once more' WHERE id = 1");
	wait_delivered($new, 'pay');
	same_rows($new, $target, 'SELECT * FROM pay', "$name: also after a crash");
	return $new;
}

my $second = restored($standby, 'second', 1);
my $third = restored($second, 'third', 60);

# The one that was given up comes back, and must not drive the target, too.
$third->stop;
$second->start;
$second->safe_psql('postgres', "INSERT INTO pay SELECT max(id) + 1, 'made by who was given up' FROM pay");
ok($second->poll_query_until('postgres', "SELECT failures > 0 FROM payment_sync.stat_sync WHERE name = 'pay'"),
	'the server that was given up refuses to run, should it come back');

done_testing();
