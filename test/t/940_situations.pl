# 940_situations.pl
#
# Situations that others have met with synchronisation and that no other file
# has: errors at the target that pass, of many kinds; the target's tables are
# altered, moved, swapped and partitioned while changes come; the source is
# itself a subscriber of native logical replication; the source is read only by
# default; transaction ids pass 2^31 and 2^32 while changes wait.
#
# test/situations.md has a table of all situations, and which file tests them.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncApply;
use PaymentSyncTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = start_source('source', conf => "payment_sync.retry_delay_max = '50ms'\n");
my $target = start_target('target');

both($source, $target, <<'SQL');
CREATE TABLE pay (id int PRIMARY KEY, a int, v varchar(10), c char(3));
CREATE TABLE relayed (id int PRIMARY KEY, v text);
SQL
# a child by inheritance, whose rows are nobody's business
$target->safe_psql('postgres', "CREATE TABLE heir () INHERITS (relayed); INSERT INTO heir VALUES (7, 'its own'), (-13, 'as well')");
make_sync($source, $target, [ 'pay', 'relayed' ]);
$source->safe_psql('postgres', "INSERT INTO pay SELECT i, i, 'v' || i, 'EUR' FROM generate_series(1, 100) i");
goes_on($source, 'pay');
my $rows = 'SELECT id, a::text, v::text, rtrim(c::text) FROM pay';
my $id = 1000;

sub changes
{
	$id += 10;
	return "INSERT INTO pay VALUES ($id, 1, 'new', 'USD'); UPDATE pay SET a = a + 1 WHERE id <= 10; DELETE FROM pay WHERE id = $id - 10";
}

# --- errors that pass

$target->safe_psql('postgres', 'CREATE SEQUENCE tries');
for my $state (qw(40P01 40001 55P03 53100 53200 53300 57014 57P01 57P03 25006 08006 XX000 58030 0A000 25P02 55006))
{
	for my $size (\&small_window, \&large_window)
	{
		$target->safe_psql('postgres', <<SQL);
CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \$\$
BEGIN
	IF nextval('public.tries') <= 3 THEN RAISE EXCEPTION 'no' USING ERRCODE = '$state'; END IF;
	RETURN NEW;
END\$\$;
CREATE OR REPLACE TRIGGER refuse BEFORE INSERT ON pay FOR EACH ROW EXECUTE FUNCTION refuse();
SELECT setval('tries', 1, false);
SQL
		wait_applied($target, 'pay', $size->($source, changes()));
		cmp_ok($target->safe_psql('postgres', 'SELECT last_value FROM tries'), '>', 3, "$state passes: the target was asked again");
		is(differing_rows($source, $target, $rows), '', '... and has all');
	}
}
$target->safe_psql('postgres', 'DROP TRIGGER refuse ON pay');
goes_on($source, 'pay');

# --- DDL at the target

# what needs nothing of the source
my @alike = (
	[ 'a wider integer', 'ALTER TABLE pay ALTER a TYPE bigint' ],
	[ 'a numeric', 'ALTER TABLE pay ALTER a TYPE numeric' ],
	[ 'a longer varchar', 'ALTER TABLE pay ALTER v TYPE varchar(40)' ],
	[ 'a text', 'ALTER TABLE pay ALTER v TYPE text, ALTER c TYPE text' ],
	[ 'a column of its own', 'ALTER TABLE pay ADD extra int NOT NULL DEFAULT 7' ],
	[ 'which is dropped', 'ALTER TABLE pay DROP extra' ],
	[ 'an index', 'CREATE UNIQUE INDEX pay_twice ON pay (id); CREATE INDEX pay_v ON pay (v)' ],
	[ 'another key', 'ALTER TABLE pay DROP CONSTRAINT pay_pkey' ],
	[ 'columns in another order', 'CREATE TABLE swapped (c text, v text, a numeric, id int PRIMARY KEY); INSERT INTO swapped SELECT c, v, a, id FROM pay; DROP TABLE pay; ALTER TABLE swapped RENAME TO pay' ],
	[ 'partitions', <<'SQL' ],
CREATE TABLE parted (LIKE pay, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE low PARTITION OF parted FOR VALUES FROM (MINVALUE) TO (50);
CREATE TABLE rest PARTITION OF parted DEFAULT;
INSERT INTO parted SELECT * FROM pay; DROP TABLE pay; ALTER TABLE parted RENAME TO pay
SQL
	[ 'one more partition', 'CREATE TABLE high PARTITION OF pay FOR VALUES FROM (1000000) TO (2000000)' ],
	[ 'a table again', 'CREATE TABLE whole (LIKE pay INCLUDING ALL); INSERT INTO whole SELECT * FROM pay; DROP TABLE pay; ALTER TABLE whole RENAME TO pay' ]);
for my $case (@alike)
{
	my ($what, $ddl) = @$case;
	$target->safe_psql('postgres', "BEGIN; $ddl; COMMIT");
	for my $size (\&small_window, \&large_window)
	{
		wait_applied($target, 'pay', $size->($source, changes()));
		is(differing_rows($source, $target, $rows), '', "the target gets $what: all arrives, " . ($size == \&small_window ? 'small' : 'large') . ' window');
	}
}

# what stops the sync until it is undone, or the source follows
my @stops = (
	[ 'another schema', qr/pay/, 'CREATE SCHEMA away; ALTER TABLE pay SET SCHEMA away', 'ALTER TABLE away.pay SET SCHEMA public' ],
	[ 'another name', qr/pay/, 'ALTER TABLE pay RENAME TO paid', 'ALTER TABLE paid RENAME TO pay' ],
	[ 'no column', qr/column .*"?v"? /, 'ALTER TABLE pay RENAME v TO w', 'ALTER TABLE pay RENAME w TO v' ],
	[ 'no key', qr/unique|primary/, 'ALTER TABLE pay DROP CONSTRAINT whole_pkey', 'ALTER TABLE pay ADD PRIMARY KEY (id)' ]);
for my $case (@stops)
{
	my ($what, $error, $ddl, $undo) = @$case;
	$target->safe_psql('postgres', $ddl);
	my $xid = small_window($source, changes());
	like(failure_like($source, 'pay', $error), $error, "the target's table has $what: the sync waits");
	$target->safe_psql('postgres', $undo);
	wait_applied($target, 'pay', $xid);
	is(differing_rows($source, $target, $rows), '', '... and goes on when it is back');
	goes_on($source, 'pay');
}
$target->safe_psql('postgres', 'ALTER TABLE pay RENAME v TO w');
my $renamed = small_window($source, changes());
failure_like($source, 'pay', qr/column/);
$source->safe_psql('postgres', 'ALTER TABLE pay RENAME v TO w');
wait_applied($target, 'pay', $renamed);
$rows =~ s/v::text/w::text/;
is(differing_rows($source, $target, $rows), '', 'or when the source follows');

# --- a relay: native replication brings the rows

my $upstream = PostgreSQL::Test::Cluster->new('upstream');
$upstream->init(allows_streaming => 'logical');
$upstream->start;
$upstream->safe_psql('postgres', <<'SQL');
CREATE TABLE relayed (id int PRIMARY KEY, v text);
INSERT INTO relayed SELECT i, 'first' FROM generate_series(1, 5000) i;
CREATE PUBLICATION p FOR TABLE relayed;
SQL
$source->safe_psql('postgres',
	"CREATE SUBSCRIPTION s CONNECTION 'host=@{[$upstream->host]} port=@{[$upstream->port]} dbname=postgres' PUBLICATION p WITH (streaming = on)");
my @relays = (
	[ 'the initial copy', 'SELECT 1' ],
	[ 'changes', "UPDATE relayed SET v = 'changed' WHERE id % 7 = 0; DELETE FROM relayed WHERE id % 11 = 0; UPDATE relayed SET id = -id WHERE id % 13 = 0" ],
	[ 'savepoints', "BEGIN; INSERT INTO relayed VALUES (10001, 'kept'); SAVEPOINT a; INSERT INTO relayed VALUES (10002, 'undone'); ROLLBACK TO a; COMMIT" ],
	[ 'a TRUNCATE', "BEGIN; TRUNCATE relayed; INSERT INTO relayed SELECT i, 'anew' FROM generate_series(1, 10) i; COMMIT" ]);
for my $case (@relays)
{
	my ($what, $sql) = @$case;
	$upstream->safe_psql('postgres', $sql);
	my $all = $upstream->safe_psql('postgres', "SELECT count(*), sum(id), md5(string_agg(v, ',' ORDER BY id)) FROM relayed");
	ok( $target->poll_query_until('postgres', "SELECT (count(*), sum(id), md5(string_agg(v, ',' ORDER BY id)))::text FROM ONLY relayed", '(' . join(',', split /\|/, $all) . ')'),
		"what native replication brings goes on to the target: $what");
}
is($target->safe_psql('postgres', 'SELECT * FROM heir ORDER BY id'), "-13|as well\n7|its own", 'a table that inherits from the target has kept its rows');
$source->safe_psql('postgres', 'DROP SUBSCRIPTION s');
$upstream->stop;
goes_on($source, 'pay');

# --- a source that is read only by default

my $offset = -s $source->logfile;
my $errors = stat($source, 'pay', 'errors');
$source->safe_psql('postgres', "ALTER SYSTEM SET default_transaction_read_only = on");
$source->restart;
for (1 .. 3)
{
	local $ENV{PGOPTIONS} = '-c default_transaction_read_only=off';
	my $xid = small_window($source, changes());
	wait_applied($target, 'pay', $xid);
}
goes_on($source, 'pay');
is(differing_rows($source, $target, $rows), '', 'a source that is read only by default delivers');
is(stat($source, 'pay', 'errors'), $errors, 'without a failure');
unlike(slurp_file($source->logfile, $offset), qr/read-only transaction/, 'nor a word in the log');
$source->safe_psql('postgres', 'ALTER SYSTEM RESET default_transaction_read_only');
$source->restart;

# --- transaction ids

# Let ids go on from there; all older ones are frozen first.
sub next_xid
{
	my ($xid) = @_;
	$source->safe_psql('postgres', 'ALTER DATABASE template0 ALLOW_CONNECTIONS true');
	$source->safe_psql($_, 'VACUUM FREEZE') for qw(template0 template1 postgres);
	$source->safe_psql('postgres', 'CHECKPOINT');
	$source->stop;
	my $segment = sprintf '%s/pg_xact/%04X', $source->data_dir, $xid / (1 << 20);
	append_to_file($segment, "\0" x (256 * 1024)) if !-e $segment;
	command_ok([ 'pg_resetwal', '-x', $xid, $source->data_dir ], "transaction ids go on at $xid");
	$source->start;
	return;
}

for my $xid (1_500_000_000, 2_147_483_640, 3_400_000_000, 4_294_967_280)
{
	# some changes wait, and have ids that are long gone by then
	$source->safe_psql('postgres', "SELECT payment_sync.disable_sync('pay')");
	$source->safe_psql('postgres', changes());
	next_xid($xid);
	$source->safe_psql('postgres', changes()) for 1 .. 5;
	$source->safe_psql('postgres', "SELECT payment_sync.enable_sync('pay')");
	my $last = (small_window($source, changes()))[0];
	for (1 .. 20) { $last = small_window($source, changes()); }
	goes_on($source, 'pay');
	is(differing_rows($source, $target, $rows), '', "all arrives, up to transaction $last");
}
is($source->safe_psql('postgres', 'SELECT missing + unexpected + different FROM payment_sync.reconcile(\'pay\', \'pay\')'), 0, 'both sides are equal');
cmp_ok($source->safe_psql('postgres', 'SELECT pg_current_xact_id()'), '>', 4_294_967_296, 'ids have begun anew');

done_testing();
