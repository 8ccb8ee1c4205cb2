# 317_unique.pl
#
# Unique constraints beyond the key, and keys that change: whatever the source
# has got through, the target gets through too, though it checks its
# constraints after each of our statements and not when the source did.  In
# small windows and large ones, with constraints of the target immediate and
# deferrable.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncApply;
use PaymentSyncTest;
use Test::More;

my $source = start_source('source');
my $target = start_target('target');

# The source's constraint is deferrable where a statement needs it.
my $tables = <<'SQL';
CREATE TABLE seat (id int PRIMARY KEY, seat text NOT NULL, note text, CONSTRAINT seat_once UNIQUE (seat) %s);
CREATE TABLE num (id numeric PRIMARY KEY, v text);
CREATE TABLE room (id int PRIMARY KEY, room int, during int4range, EXCLUDE USING gist (during WITH &&) %s);
CREATE TABLE pair (a int, b int, v text, PRIMARY KEY (a, b), UNIQUE (b, a, v));
SQL
$source->safe_psql('postgres', sprintf($tables, ('DEFERRABLE INITIALLY DEFERRED') x 2)
	. 'CREATE TABLE shifted (id int PRIMARY KEY DEFERRABLE, n int NOT NULL UNIQUE, v text)');
$target->safe_psql('postgres', sprintf($tables, '', '')
	. 'CREATE TABLE shifted (id int UNIQUE, n int PRIMARY KEY, v text)');
connect_target($source, $target);
both($source, $target, 'CREATE TABLE ballast (id bigint PRIMARY KEY)');
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table(t) FROM unnest('{seat,num,room,pair,ballast}'::regclass[]) t;
SELECT payment_sync.capture_table('shifted', key => '{n}');
SELECT payment_sync.create_sync('pay', '{seat,num,room,pair,shifted,ballast}', server => 'target');
SQL

my @tables = map { "SELECT * FROM $_" } qw(seat num room pair shifted);
my $seats = "DELETE FROM seat; INSERT INTO seat SELECT i, 's' || i, 'n' FROM generate_series(1, 9) i";

sub windows
{
	my ($topic, $prepare, $sql) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	each_window($source, $target, 'pay', $topic, $prepare, $sql, @tables);
	return;
}

sub all_of_it
{
	my ($where) = @_;

	windows("two rows swap a unique value$where", $seats, <<'SQL');
UPDATE seat SET seat = CASE id WHEN 1 THEN 's2' ELSE 's1' END WHERE id IN (1, 2)
SQL
	windows("swapped in two statements$where", $seats, <<'SQL');
UPDATE seat SET seat = 's2' WHERE id = 1;
UPDATE seat SET seat = 's1' WHERE id = 2
SQL
	windows("a chain: each takes the next one's$where", $seats, <<'SQL');
UPDATE seat SET seat = 's' || (id % 9 + 1), note = 'moved'
SQL
	windows("through a third value, and back$where", $seats, <<'SQL');
UPDATE seat SET seat = 'tmp' WHERE id = 1;
UPDATE seat SET seat = 's1' WHERE id = 2;
UPDATE seat SET seat = 's2' WHERE id = 1;
UPDATE seat SET seat = 's3' WHERE id = 1;
UPDATE seat SET seat = 's2' WHERE id = 3
SQL
	windows("a value freed by a delete is taken$where", $seats, <<'SQL');
DELETE FROM seat WHERE id = 1;
UPDATE seat SET seat = 's1' WHERE id = 2;
INSERT INTO seat VALUES (10, 's2')
SQL
	windows("… and taken before it is freed$where", $seats, <<'SQL');
INSERT INTO seat VALUES (10, 's2');
UPDATE seat SET seat = 's1' WHERE id = 2;
DELETE FROM seat WHERE id = 1
SQL
	windows("a swap with deletes and inserts about it$where", $seats, <<'SQL');
DELETE FROM seat WHERE id IN (4, 5);
UPDATE seat SET seat = CASE id WHEN 1 THEN 's2' ELSE 's1' END WHERE id IN (1, 2);
INSERT INTO seat VALUES (4, 's5'), (5, 's4'), (11, 's11');
UPDATE seat SET id = 12 WHERE id = 11
SQL
	windows("one key, in and out and in$where", $seats, <<'SQL');
INSERT INTO seat VALUES (20, 'new');
DELETE FROM seat WHERE id = 20;
INSERT INTO seat VALUES (20, 'new again');
DELETE FROM seat WHERE id = 1;
INSERT INTO seat VALUES (1, 's1', 'again');
INSERT INTO seat VALUES (21, 'brief');
DELETE FROM seat WHERE id = 21;
DELETE FROM seat WHERE id = 2;
INSERT INTO seat VALUES (2, 'x');
DELETE FROM seat WHERE id = 2
SQL
	windows("keys swap$where", $seats, <<'SQL');
UPDATE seat SET id = -1 WHERE id = 1;
UPDATE seat SET id = 1 WHERE id = 2;
UPDATE seat SET id = 2 WHERE id = -1
SQL
	windows("keys go round$where", $seats, <<'SQL');
UPDATE seat SET id = id + 100;
UPDATE seat SET id = (id - 100) % 9 + 1
SQL
	windows("keys are shifted by statements$where", $seats, <<'SQL');
UPDATE seat SET id = 10 WHERE id = 9;
UPDATE seat SET id = 9 WHERE id = 8;
UPDATE seat SET id = 8 WHERE id = 7;
INSERT INTO seat VALUES (7, 'seven');
UPDATE seat SET seat = 's7' WHERE id = 7;
UPDATE seat SET seat = 'eight' WHERE id = 8
SQL
	windows("a key leaves and another row takes it$where", $seats, <<'SQL');
UPDATE seat SET id = 30 WHERE id = 1;
INSERT INTO seat VALUES (1, 'one');
UPDATE seat SET id = 31 WHERE id = 30;
DELETE FROM seat WHERE id = 31;
UPDATE seat SET seat = 's1' WHERE id = 1
SQL
	return;
}

all_of_it('');

# UPDATE … SET id = id + 1 needs a deferrable key at the source, which cannot
# be the captured key; here it is a unique column beside it
windows('UPDATE … SET id = id + 1, a unique column',
	"DELETE FROM shifted; INSERT INTO shifted SELECT i, i, 'v' FROM generate_series(1, 50) i",
	'UPDATE shifted SET id = id + 1');
# the captured key is shifted downwards, which works row by row in heap order
windows('UPDATE … SET n = n - 1, the key',
	"DELETE FROM shifted; INSERT INTO shifted SELECT i, i, 'v' FROM generate_series(1, 50) i",
	'UPDATE shifted SET n = n - 1; UPDATE shifted SET id = -id');

windows('keys that are equal but not the same',
	"DELETE FROM num; INSERT INTO num VALUES (1.0, 'a'), (2, 'b')", <<'SQL');
UPDATE num SET id = 1.00 WHERE id = 1;
DELETE FROM num WHERE id = 2;
INSERT INTO num VALUES (2.000, 'c');
UPDATE num SET v = 'd' WHERE id = 1
SQL
windows('an exclusion constraint',
	"DELETE FROM room; INSERT INTO room VALUES (1, 1, '[1,3)'), (2, 1, '[3,5)'), (3, 1, '[5,7)')", <<'SQL');
UPDATE room SET during = '[3,5)' WHERE id = 1;
UPDATE room SET during = '[1,3)' WHERE id = 2;
UPDATE room SET during = '[8,9)' WHERE id = 3;
INSERT INTO room VALUES (4, 1, '[5,8)')
SQL
windows('a composite key moves',
	"DELETE FROM pair; INSERT INTO pair SELECT i, i % 3, 'v' FROM generate_series(1, 9) i", <<'SQL');
UPDATE pair SET a = -a WHERE a = 1;
UPDATE pair SET a = 1, b = 2 WHERE a = 2;
UPDATE pair SET a = 2, b = 1 WHERE a = -1;
UPDATE pair SET b = b + 10 WHERE a > 4;
DELETE FROM pair WHERE a = 9
SQL

$target->safe_psql('postgres', <<'SQL');
ALTER TABLE seat DROP CONSTRAINT seat_once;
ALTER TABLE seat ADD CONSTRAINT seat_once UNIQUE (seat) DEFERRABLE;
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'payment_sync';
SQL
all_of_it(', deferrable at the target');

# many rows, so that a window is cut in pieces: each row takes its neighbour's
# value, across the cuts
$source->safe_psql('postgres', <<'SQL');
DELETE FROM seat;
INSERT INTO seat SELECT i, 's' || i FROM generate_series(1, 30000) i;
SQL
wait_delivered($source, 'pay');
$source->safe_psql('postgres', "UPDATE seat SET seat = 's' || (id % 30000 + 1)");
wait_delivered($source, 'pay');
same_rows($source, $target, 'SELECT * FROM seat', 'a long chain, deferrable at the target');
$target->safe_psql('postgres', <<'SQL');
ALTER TABLE seat DROP CONSTRAINT seat_once;
ALTER TABLE seat ADD CONSTRAINT seat_once UNIQUE (seat);
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'payment_sync';
SQL
$source->safe_psql('postgres', "UPDATE seat SET seat = 's' || (id % 30000 + 1)");
wait_delivered($source, 'pay');
same_rows($source, $target, 'SELECT * FROM seat', 'a long chain, immediate at the target');
$source->safe_psql('postgres', <<'SQL');
UPDATE seat SET id = -id;
UPDATE seat SET id = 1 - id;
SQL
wait_delivered($source, 'pay');
same_rows($source, $target, 'SELECT * FROM seat', 'all keys change twice');

done_testing();
