# 318_foreign_keys.pl
#
# Foreign keys between captured tables: rows arrive in any order within a
# window, small or large, whatever the target's foreign keys do.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncApply;
use PaymentSyncTest;
use Test::More;

my $source = start_source('source');
my $target = start_target('target');

# %s: how the constraint is checked, and what is done on delete and update
my $tables = <<'SQL';
CREATE TABLE z_parent (id int PRIMARY KEY, v text);
CREATE TABLE child (id int PRIMARY KEY, parent int NOT NULL REFERENCES z_parent %1$s %2$s, v text);
CREATE TABLE a_grandchild (id int PRIMARY KEY, child int REFERENCES child %1$s %2$s);
CREATE TABLE tree (id int PRIMARY KEY, up int REFERENCES tree %1$s %2$s, v text);
CREATE TABLE egg (id int PRIMARY KEY, hen int);
CREATE TABLE hen (id int PRIMARY KEY, egg int REFERENCES egg %1$s %2$s);
ALTER TABLE egg ADD FOREIGN KEY (hen) REFERENCES hen %1$s %2$s;
CREATE TABLE bill (id int PRIMARY KEY, no text NOT NULL UNIQUE);
CREATE TABLE line (id int PRIMARY KEY, bill text REFERENCES bill (no) %1$s %2$s);
SQL
my @names = qw(z_parent child a_grandchild tree egg hen bill line);
my @queries = map { "SELECT * FROM $_" } @names;
my $deferred = 'DEFERRABLE INITIALLY DEFERRED';
$source->safe_psql('postgres', sprintf $tables, $deferred, '');
$target->safe_psql('postgres', sprintf $tables, '', '');
make_sync($source, $target, \@names);

my $clear = 'TRUNCATE ' . join(', ', @names) . ';';
my $some = $clear . <<'SQL';
INSERT INTO z_parent SELECT i, 'p' FROM generate_series(1, 9) i;
INSERT INTO child SELECT i, i, 'c' FROM generate_series(1, 9) i;
INSERT INTO a_grandchild SELECT i, i FROM generate_series(1, 9) i;
INSERT INTO tree SELECT i, NULLIF(i / 2, 0), 't' FROM generate_series(1, 20) i;
INSERT INTO egg SELECT i, NULL FROM generate_series(1, 9) i;
INSERT INTO hen SELECT i, i FROM generate_series(1, 9) i;
UPDATE egg SET hen = id % 9 + 1;
INSERT INTO bill SELECT i, 'b' || i FROM generate_series(1, 9) i;
INSERT INTO line SELECT i, 'b' || i FROM generate_series(1, 9) i
SQL

sub windows
{
	my ($topic, $prepare, $sql) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	each_window($source, $target, 'pay', $topic, $prepare, $sql, @queries);
	return;
}

sub any_order
{
	my ($where) = @_;

	windows("parents first$where", $clear . 'INSERT INTO bill VALUES (0, 0)', $some =~ s/^TRUNCATE.*?;//r . '; DELETE FROM bill WHERE id = 0');
	windows("children first$where", $clear . 'INSERT INTO bill VALUES (0, 0)', <<'SQL');
INSERT INTO line SELECT i, 'b' || i FROM generate_series(1, 9) i;
INSERT INTO bill SELECT i, 'b' || i FROM generate_series(1, 9) i;
INSERT INTO a_grandchild SELECT i, i FROM generate_series(1, 9) i;
INSERT INTO child SELECT i, i, 'c' FROM generate_series(1, 9) i;
INSERT INTO z_parent SELECT i, 'p' FROM generate_series(1, 9) i;
INSERT INTO tree SELECT i, NULLIF(i / 2, 0), 't' FROM generate_series(20, 1, -1) i;
DELETE FROM bill WHERE id = 0
SQL
	windows("parents and children go, children first$where", $some, <<'SQL');
DELETE FROM a_grandchild WHERE id > 3;
DELETE FROM child WHERE id > 3;
DELETE FROM z_parent WHERE id > 3;
DELETE FROM line WHERE id > 3;
DELETE FROM bill WHERE id > 3;
DELETE FROM tree WHERE id > 7
SQL
	windows("parents and children go, parents first$where", $some, <<'SQL');
DELETE FROM z_parent WHERE id > 3;
DELETE FROM child WHERE id > 3;
DELETE FROM a_grandchild WHERE id > 3;
DELETE FROM bill WHERE id > 3;
DELETE FROM line WHERE id > 3;
DELETE FROM tree WHERE id BETWEEN 2 AND 8;
DELETE FROM tree WHERE id > 1
SQL
	windows("a child moves to a parent that comes later, its old one goes$where", $some, <<'SQL');
DELETE FROM z_parent WHERE id = 1;
UPDATE child SET parent = 20 WHERE parent = 1;
INSERT INTO z_parent VALUES (20, 'late');
DELETE FROM bill WHERE no = 'b1';
UPDATE line SET bill = 'b20' WHERE bill = 'b1';
INSERT INTO bill VALUES (20, 'b20');
UPDATE tree SET up = 40 WHERE id = 1;
INSERT INTO tree VALUES (40, NULL, 'root')
SQL
	windows("a row goes and comes back while others refer to it$where", $some, <<'SQL');
DELETE FROM z_parent WHERE id = 1;
INSERT INTO z_parent VALUES (1, 'again');
DELETE FROM tree WHERE id = 1;
INSERT INTO tree VALUES (1, NULL, 'again')
SQL
	windows("… and children come before parents$where", $some, <<'SQL');
DELETE FROM child WHERE id = 9;
DELETE FROM a_grandchild WHERE id = 9;
DELETE FROM z_parent WHERE id = 9;
INSERT INTO z_parent VALUES (9, 'again');
INSERT INTO child VALUES (30, 30, 'early');
INSERT INTO z_parent VALUES (30, 'late')
SQL
	windows("the row that others refer to is another one now$where", $some, <<'SQL') if $where !~ /restrict|cascading/;
DELETE FROM bill WHERE id = 1;
INSERT INTO bill VALUES (100, 'b1')
SQL
	windows("keys of parents change$where", $some, <<'SQL');
UPDATE z_parent SET id = id + 100 WHERE id < 4;
UPDATE child SET parent = parent + 100 WHERE parent < 4;
UPDATE tree SET id = id + 100;
UPDATE tree SET up = up + 100;
UPDATE bill SET no = no || 'x';
UPDATE line SET bill = bill || 'x'
SQL
	windows("a circle of two tables$where", $some, <<'SQL');
INSERT INTO egg VALUES (20, 20);
INSERT INTO hen VALUES (20, 20);
INSERT INTO hen VALUES (21, 21);
INSERT INTO egg VALUES (21, 21);
DELETE FROM hen WHERE id = 1;
UPDATE egg SET hen = 2 WHERE hen = 1
SQL
	windows("a circle is taken away$where", $some, <<'SQL');
DELETE FROM hen;
DELETE FROM egg
SQL
	return;
}

# instead(CHECK, ACTIONS): the target's foreign keys are like that from now on
sub instead
{
	my ($check, $actions) = @_;
	wait_applied($target, 'pay', small_window($source, "$clear INSERT INTO bill VALUES (0, 0)"));
	$target->safe_psql('postgres', 'DROP TABLE ' . join(', ', @names) . ' CASCADE; '
		. sprintf($tables, $check, $actions) . "INSERT INTO bill VALUES (0, 0);"
		. "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'payment_sync'");
	return;
}

any_order('');
instead('DEFERRABLE', '');
any_order(', deferrable');
instead('', 'ON DELETE CASCADE ON UPDATE CASCADE');
any_order(', cascading');
instead('', 'ON DELETE RESTRICT');
any_order(', restrict');

done_testing();
