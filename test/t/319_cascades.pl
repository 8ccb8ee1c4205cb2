# 319_cascades.pl
#
# Foreign keys that do something: cascades at the source, at the target or at
# both; tables of others that hang on ours; windows that are cut between a row
# and the row it references.

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
$source->safe_psql('postgres', sprintf $tables, '', 'ON DELETE CASCADE ON UPDATE CASCADE');
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

# the source's own cascades: the children's changes are logged first
my @cascades = (
	[ 'a delete cascades', 'DELETE FROM z_parent WHERE id < 5; DELETE FROM tree WHERE id = 2; DELETE FROM bill WHERE id = 3' ],
	[ 'an update cascades', 'UPDATE z_parent SET id = id + 100; UPDATE tree SET id = id + 100; UPDATE bill SET no = no || \'x\'' ],
	[ 'a circle cascades', 'DELETE FROM hen WHERE id = 1' ]);
windows("$_->[0] at the source", $some, $_->[1]) for @cascades;
$target->safe_psql('postgres', 'DROP TABLE ' . join(', ', @names) . ' CASCADE; '
	. sprintf($tables, '', 'ON DELETE CASCADE ON UPDATE CASCADE')
	. "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'payment_sync'");
windows("$_->[0] at both sides", $some, $_->[1]) for @cascades;

# a table that is not the sync's refers to ours and cascades: its rows must
# not go because ours take a detour
$target->safe_psql('postgres', <<'SQL');
CREATE TABLE audit (id int REFERENCES z_parent ON DELETE CASCADE ON UPDATE CASCADE);
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'payment_sync';
SQL
for my $size (\&small_window, \&large_window)
{
	$target->safe_psql('postgres', 'TRUNCATE audit');
	wait_applied($target, 'pay', small_window($source,
		'DELETE FROM z_parent; INSERT INTO z_parent SELECT i FROM generate_series(1, 9) i'));
	$target->safe_psql('postgres', 'INSERT INTO audit SELECT id FROM z_parent');
	wait_applied($target, 'pay', $size->($source,
		'UPDATE z_parent SET id = id + 100 WHERE id < 4; UPDATE z_parent SET v = 7; DELETE FROM z_parent WHERE id = 9'));
	is($target->safe_psql('postgres', "SELECT string_agg(id::text, ' ' ORDER BY id) FROM audit"),
		'4 5 6 7 8 101 102 103', 'rows of another table follow theirs');
}

# a window cut between children and parents, in pieces of 4 MB
$target->safe_psql('postgres', 'DROP TABLE audit; DROP TABLE ' . join(', ', @names) . ' CASCADE; '
	. sprintf($tables, '', '')
	. "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'payment_sync'");
$source->safe_psql('postgres', <<'SQL');
ALTER TABLE child DROP CONSTRAINT child_parent_fkey;
ALTER TABLE child ADD CONSTRAINT child_parent_fkey
	FOREIGN KEY (parent) REFERENCES z_parent DEFERRABLE INITIALLY DEFERRED;
SQL
both($source, $target, 'CREATE INDEX ON child (parent); CREATE INDEX ON a_grandchild (child); CREATE INDEX ON line (bill)');
wait_applied($target, 'pay', small_window($source, "$clear INSERT INTO bill VALUES (0, 0)"));
wait_applied($target, 'pay', small_window($source, <<'SQL'));
INSERT INTO child SELECT i, i, repeat('c', 60) FROM generate_series(1, 50000) i;
INSERT INTO z_parent SELECT i, repeat('p', 60) FROM generate_series(50000, 1, -1) i
SQL
same_rows($source, $target, "SELECT * FROM $_", "children far ahead of their parents: $_") for qw(child z_parent);
wait_applied($target, 'pay', small_window($source, <<'SQL'));
DELETE FROM z_parent;
INSERT INTO bill SELECT i, i FROM generate_series(1, 50000) i;
DELETE FROM child
SQL
same_rows($source, $target, "SELECT * FROM $_", "parents go long before their children: $_") for qw(child z_parent bill);

done_testing();
