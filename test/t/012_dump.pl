# 012_dump.pl
#
# pg_dump keeps what is captured and the syncs' definitions, not the log nor
# positions: a restored database captures from the start, and its syncs do not
# run before they are told where to begin.  pg_upgrade keeps everything,
# changes that are pending as well.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = start_source('old');
$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION payment_sync;
CREATE ROLE regress_owner;
CREATE SCHEMA shop AUTHORIZATION regress_owner;
SET ROLE regress_owner;
CREATE TABLE shop.pay (id int PRIMARY KEY, v text, secret text);
CREATE TABLE shop.parted (id int, d int, v text, PRIMARY KEY (id, d)) PARTITION BY LIST (d);
CREATE TABLE shop.parted_1 PARTITION OF shop.parted FOR VALUES IN (1);
CREATE TABLE shop.parted_2 PARTITION OF shop.parted FOR VALUES IN (2) PARTITION BY LIST (id);
CREATE TABLE shop.parted_2_1 PARTITION OF shop.parted_2 FOR VALUES IN (1);
SELECT payment_sync.capture_table('shop.pay', columns => '{id,v}', old_values => 'all');
SELECT payment_sync.capture_table('shop.parted');
ALTER TRIGGER payment_sync_capture ON shop.pay RENAME TO "another name";
SELECT payment_sync.create_sync('pull', '{shop.pay,shop.parted}', exclude_origins => '{x}', max_log_size => '1GB');
RESET ROLE;
CREATE SERVER away FOREIGN DATA WRAPPER payment_sync_postgres OPTIONS (host '/nonexistent');
SELECT payment_sync.create_sync('push', '{shop.pay}', 'away', targets => '{other.name}', enabled => false);
INSERT INTO shop.pay VALUES (1, 'before', 'secret');
INSERT INTO shop.parted VALUES (1, 1, 'before'), (1, 2, 'before');
SQL

my $definitions = <<'SQL';
SELECT * FROM payment_sync.captured_tables ORDER BY "table"::text;
SELECT name, server, owner, enabled, exclude_origins, max_log_size FROM payment_sync.syncs ORDER BY name;
SELECT name, t, target FROM payment_sync.syncs, unnest(tables, targets) AS u (t, target) ORDER BY name, t::text;
SELECT tgrelid::regclass, tgname, tgenabled FROM pg_trigger
WHERE NOT tgisinternal ORDER BY tgrelid::regclass::text, tgname;
SELECT count(*), deptype FROM pg_depend WHERE refclassid = 'pg_extension'::regclass
AND classid = 'pg_trigger'::regclass GROUP BY deptype;
SELECT evtname, evtenabled FROM pg_event_trigger ORDER BY 1;
SQL
my $before = $node->safe_psql('postgres', $definitions);

# Capture works, after the definitions have become those of before.
sub captures
{
	my ($server, $db, $name) = @_;
	is($server->safe_psql($db, $definitions), $before, "$name: definitions");
	is( $server->safe_psql($db, <<'SQL'), <<"SQL" =~ s/\n$//r, "$name: it captures");
SET ROLE regress_owner;
INSERT INTO shop.pay VALUES (2, 'after', 'secret');
UPDATE shop.parted SET v = 'after' WHERE d = 2;
TRUNCATE shop.parted_1;
RESET ROLE;
SELECT operation, "table", key, new, old FROM payment_sync.changes WHERE new->>'v' IS DISTINCT FROM 'before';
SQL
insert|shop.pay|{"id": 2}|{"v": "after", "id": 2}|
update|shop.parted|{"d": 2, "id": 1}|{"d": 2, "v": "after", "id": 1}|{"v": "before"}
delete|shop.parted|{"d": 1, "id": 1}||{"d": 1, "v": "before", "id": 1}
SQL
	return;
}

# A sync whose owner was dropped must not become somebody else's elsewhere.
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE regress_leaver;
GRANT regress_owner TO regress_leaver;
SET ROLE regress_leaver;
SELECT payment_sync.create_sync('orphan', '{shop.pay}', enabled => false);
RESET ROLE;
DROP ROLE regress_leaver;
SQL
is($node->safe_psql('postgres', q(SELECT owner::text ~ '^\d+$' FROM payment_sync.sync WHERE name = 'orphan')), 't',
	"a sync's owner can be dropped");

# dump and restore, by script and by parallel pg_restore
my $dump = "$PostgreSQL::Test::Utils::tmp_check/dump";
my @at = ('-h', $node->host, '-p', $node->port);
command_ok([ 'pg_dump', @at, '-f', "$dump.sql", 'postgres' ], 'pg_dump');
command_ok([ 'pg_dump', @at, '-Fc', '-f', "$dump.custom", 'postgres' ], 'pg_dump -Fc');
unlike(slurp_file("$dump.sql"), qr/COPY payment_sync\.(log|shape|sync_state|batch)/, 'no state is dumped');
for my $db (qw(script parallel))
{
	$node->safe_psql('postgres', "CREATE DATABASE $db");
	command_ok(
		$db eq 'script'
		? [ 'psql', '-X', '-q', @at, '-v', 'ON_ERROR_STOP=1', '-f', "$dump.sql", $db ]
		: [ 'pg_restore', @at, '-j', 2, '-e', '-d', $db, "$dump.custom" ],
		"$db: restored");
	is($node->safe_psql($db, 'SELECT count(*) FROM payment_sync.changes'), 0, "$db: the log is empty");
	is($node->safe_psql($db, 'SELECT count(*) FROM payment_sync.sync_table WHERE sync NOT IN (SELECT id FROM payment_sync.sync)'), 0,
		"$db: the sync whose owner was dropped has left nothing");
	is($node->safe_psql($db, 'SELECT name, state FROM payment_sync.stat_sync ORDER BY 1'),
		"pull|stopped\npush|disabled", "$db: no sync runs");
	my ($status, $out, $err) = $node->psql($db, "SELECT * FROM payment_sync.fetch_changes('pull')");
	isnt($status, 0, "$db: it fetches nothing: $err");
	captures($node, $db, $db);
	$node->safe_psql($db, "SELECT payment_sync.enable_sync('pull', start => 'now')");
	$node->safe_psql($db, "INSERT INTO shop.pay VALUES (3, 'fetched')");
	is($node->safe_psql($db, "SELECT key FROM payment_sync.fetch_changes('pull')"),
		'{"id": 3}', "$db: told to begin now, it does");
	isnt(
		$node->safe_psql($db, 'SELECT identity FROM payment_sync.log_rotation'),
		$node->safe_psql('postgres', 'SELECT identity FROM payment_sync.log_rotation'),
		"$db: the log is another");
	$node->safe_psql('postgres', "DROP DATABASE $db");
}

# pg_upgrade, to the same version
$node->safe_psql('postgres', "SELECT payment_sync.drop_sync('orphan')");
my $pending = $node->safe_psql('postgres', "SELECT * FROM payment_sync.fetch_changes('pull')");
my $identity = $node->safe_psql('postgres', 'SELECT identity FROM payment_sync.log_rotation');
$node->stop;
my $new = PostgreSQL::Test::Cluster->new('new');
$new->init;
$new->append_conf('postgresql.conf', "shared_preload_libraries = 'payment_sync'\n");
my $bindir = $node->config_data('--bindir');
chdir $PostgreSQL::Test::Utils::tmp_check;
command_ok(
	[
		'pg_upgrade', '--no-sync', '-d', $node->data_dir, '-D', $new->data_dir,
		'-b', $bindir, '-B', $bindir, '-s', $new->host, '-p', $node->port, '-P', $new->port
	],
	'pg_upgrade');
$new->start;
is($new->safe_psql('postgres', "SELECT * FROM payment_sync.fetch_changes('pull')"),
	$pending, 'upgraded: what was pending still is');
is($new->safe_psql('postgres', 'SELECT identity FROM payment_sync.log_rotation'),
	$identity, 'upgraded: the log is the same');
captures($new, 'postgres', 'upgraded');

done_testing();
