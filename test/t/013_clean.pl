# 013_clean.pl
#
# A dump restores without an error in every form: as a script and by
# pg_restore, with --clean --if-exists, in one transaction, by two processes,
# into an empty database and over the very database that it is of, with all of
# its tables captured.  Such a restore drops triggers and keys before their
# tables, which is refused to everybody else.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = start_source('node');
my $setup = <<'SQL';
CREATE EXTENSION payment_sync;
CREATE SCHEMA shop;
CREATE TABLE shop.pay (id int PRIMARY KEY, v text);
CREATE TABLE shop.line (id int PRIMARY KEY, pay int REFERENCES shop.pay, no text NOT NULL UNIQUE);
SELECT payment_sync.capture_table('shop.pay'), payment_sync.capture_table('shop.line', key => '{no}');
ALTER TRIGGER payment_sync_capture ON shop.pay RENAME TO "another name";
CREATE SERVER away FOREIGN DATA WRAPPER payment_sync_postgres OPTIONS (host '/nonexistent');
SELECT payment_sync.create_sync('pull', '{shop.pay,shop.line}');
SELECT payment_sync.create_sync('push', '{shop.pay}', 'away', enabled => false);
INSERT INTO shop.pay VALUES (1, 'before');
INSERT INTO shop.line VALUES (1, 1, 'a');
SQL
my $definitions = <<'SQL';
SELECT "table", columns, key, syncs FROM payment_sync.captured_tables ORDER BY "table"::text;
SELECT name, (SELECT array_agg(t ORDER BY t::text) FROM unnest(tables) t), server, enabled FROM payment_sync.syncs ORDER BY name;
SELECT tgrelid::regclass, tgname, tgenabled FROM pg_trigger WHERE NOT tgisinternal
ORDER BY tgrelid::regclass::text, tgname;
SELECT count(*) FROM pg_depend WHERE refclassid = 'pg_extension'::regclass AND classid = 'pg_trigger'::regclass;
SELECT * FROM shop.pay, shop.line;
SQL
my $dump = "$PostgreSQL::Test::Utils::tmp_check/dump";
my @at = ('-h', $node->host, '-p', $node->port);
my @clean = ('--clean', '--if-exists');
my @psql = ('psql', '-X', '-q', @at, '-v', 'ON_ERROR_STOP=1');

$node->safe_psql('postgres', 'CREATE DATABASE shop');
$node->safe_psql('shop', $setup);
my $before = $node->safe_psql('shop', $definitions);
command_ok([ 'pg_dump', @at, '-Fc', '-f', "$dump.custom", 'shop' ], 'pg_dump -Fc');
command_ok([ 'pg_dump', @at, '-Fd', '-f', "$dump.dir", 'shop' ], 'pg_dump -Fd');
command_ok([ 'pg_dump', @at, '-f', "$dump.sql", 'shop' ], 'pg_dump');
command_ok([ 'pg_dump', @at, @clean, '-f', "$dump.clean.sql", 'shop' ], 'pg_dump --clean');

# each form, with the arguments behind the database's name; whether it can go
# over a database that has the tables
my @forms = (
	[ 'script', 0, [ @psql, '-f', "$dump.sql" ] ],
	[ 'script --clean', 1, [ @psql, '-f', "$dump.clean.sql" ] ],
	[ 'script --clean, one transaction', 1, [ @psql, '-1', '-f', "$dump.clean.sql" ] ],
	[ 'pg_restore', 0, [ 'pg_restore', @at, '-e' ], "$dump.custom" ],
	[ 'pg_restore -j 2', 0, [ 'pg_restore', @at, '-e', '-j', 2 ], "$dump.dir" ],
	[ 'pg_restore --clean', 1, [ 'pg_restore', @at, '-e', @clean ], "$dump.custom" ],
	[ 'pg_restore --clean --single-transaction', 1, [ 'pg_restore', @at, '-e', @clean, '--single-transaction' ], "$dump.custom" ],
	[ 'pg_restore --clean -j 2', 1, [ 'pg_restore', @at, '-e', @clean, '-j', 2 ], "$dump.dir" ]);
for my $form (@forms)
{
	my ($name, $over, $command, @file) = @$form;
	$node->safe_psql('postgres', 'CREATE DATABASE empty');
	command_ok([ @$command, '-d', 'empty', @file ], "$name, into an empty database");
	is($node->safe_psql('empty', $definitions), $before, "$name, into an empty database: all is there");
	$node->safe_psql('postgres', 'DROP DATABASE empty WITH (FORCE)');
	next if !$over;

	$node->safe_psql('shop', "DELETE FROM shop.line; UPDATE shop.pay SET v = 'after'");
	command_ok([ @$command, '-d', 'shop', @file ], "$name, over itself");
	is($node->safe_psql('shop', $definitions), $before, "$name, over itself: all is there");
}
is($node->safe_psql('shop', <<'SQL'), 'update|shop.pay|{"id": 1}', 'after all of them it captures');
UPDATE shop.pay SET v = 'changed';
SELECT operation, "table", key FROM payment_sync.changes;
SQL

# an ordinary session may not, not even with what such a script sets but for
# one thing
for my $set ('', "SET check_function_bodies = off", "SET search_path = ''")
{
	my ($status, $out, $err) = $node->psql('shop', "$set; DROP TRIGGER payment_sync_capture ON shop.line");
	isnt($status, 0, "refused: $set");
	like($err, qr/cannot drop a capture trigger of table "line"/, 'and why');
	($status, $out, $err) = $node->psql('shop', "$set; ALTER TABLE shop.line DROP CONSTRAINT line_no_key");
	isnt($status, 0, "the key, too: $set");
}

# one table only: what the restore has made of it is said
my ($status, $out, $err) = $node->psql('shop', <<'SQL');
SET check_function_bodies = off; SET xmloption = content; SELECT set_config('search_path', '', false);
DROP TRIGGER payment_sync_capture ON shop.line;
SQL
is($status, 0, 'as a restore would');
like($err, qr/WARNING:  table "line" is no longer captured because a restore has dropped its capture trigger/,
	'not in silence');
is($node->safe_psql('shop', q{SELECT "table" FROM payment_sync.captured_tables ORDER BY "table"::text}),
	'shop.pay', 'nor half');

# partitions: PostgreSQL itself cannot drop their part of a key before the
# table's, and goes on after that error; there is no other
$node->safe_psql('shop', <<'SQL');
CREATE TABLE shop.parted (id int, d int, v text, PRIMARY KEY (id, d)) PARTITION BY LIST (d);
CREATE TABLE shop.parted_1 PARTITION OF shop.parted FOR VALUES IN (1);
CREATE TABLE shop.parted_2 PARTITION OF shop.parted FOR VALUES IN (2) PARTITION BY LIST (id);
CREATE TABLE shop.parted_2_1 PARTITION OF shop.parted_2 FOR VALUES IN (1);
SELECT payment_sync.capture_table('shop.parted'), payment_sync.capture_table('shop.line', key => '{no}');
INSERT INTO shop.parted VALUES (1, 1, 'before'), (1, 2, 'before');
SQL
$before = $node->safe_psql('shop', $definitions);
command_ok([ 'pg_dump', @at, '-Fc', '-f', "$dump.custom", 'shop' ], 'pg_dump of partitions');
$err = '';
IPC::Run::run([ 'pg_restore', @at, @clean, '-d', 'shop', "$dump.custom" ], '2>', \$err);
is(join("\n", grep { /ERROR/ && !/cannot drop inherited constraint/ } split /\n/, $err),
	'', 'partitions, over themselves: no error of ours');
is($node->safe_psql('shop', $definitions), $before, 'partitions, over themselves: all is there');

done_testing();
