# 336_circles.pl
#
# First and later copies of tables whose rows refer to each other: a tree whose
# parents come later in the key's order, two tables that refer to each other,
# with foreign keys at the target that are checked at once or are deferred;
# while the source is written to, and with what only the target has too much.
# The target's constraints hold all the time.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use IPC::Run;
use PaymentSyncApply;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = start_source('source');
my $target = start_target('target');

# No superuser at the target.
$target->safe_psql('postgres', 'CREATE ROLE feeder LOGIN; GRANT CREATE, TEMPORARY ON DATABASE postgres TO feeder');
connect_target($source, $target, user => 'feeder');

sub grant
{
	my (@tables) = @_;
	$target->safe_psql('postgres', "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON $_ TO feeder") for @tables;
	return;
}

sub equal
{
	my ($what, @tables) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return same_rows($source, $target,
		join(' UNION ALL ', map { "SELECT '$_' AS name, r::text FROM $_ r" } @tables), $what);
}

# How the tables of a sync were copied: in how many chunks
sub chunks
{
	my ($sync) = @_;
	return $source->safe_psql('postgres',
		"SELECT string_agg(\"table\" || ' ' || state || ' ' || chunks, ',' ORDER BY \"table\"::text) FROM payment_sync.progress_batch WHERE sync = '$sync'");
}

# --- a tree; some 17 MB, four chunks and more; with an index by which the target
# sees that nothing refers to a row that goes

for my $how ('', 'DEFERRABLE INITIALLY DEFERRED')
{
	my $is = $how ? 'deferred' : 'checked at once';
	my $tree = $how ? 'tree_later' : 'tree';
	$source->safe_psql('postgres', <<SQL);
CREATE TABLE $tree (id int PRIMARY KEY, parent int, pad text);
INSERT INTO $tree SELECT i, CASE WHEN i < 50000 THEN 50000 - i / 2 END, repeat('x', 300) FROM generate_series(1, 50000) i;
ALTER TABLE $tree ADD FOREIGN KEY (parent) REFERENCES $tree;
SELECT payment_sync.capture_table('$tree');
SQL
	$target->safe_psql('postgres', "CREATE TABLE $tree (id int PRIMARY KEY, parent int REFERENCES $tree $how, pad text); CREATE INDEX ON $tree (parent)");
	grant($tree);
	$source->safe_psql('postgres', "SELECT payment_sync.create_sync('$tree', '{$tree}', server => 'target', batch => true)");
	goes_on($source, $tree);
	equal("a tree whose parents come later, $is", $tree);
	is(chunks($tree), "$tree done 1", 'it came as a whole');
	is($source->safe_psql('postgres', "SELECT errors FROM payment_sync.stat_sync WHERE name = '$tree'"), 0, 'without an error');

	$source->safe_psql('postgres', <<SQL);
BEGIN; INSERT INTO $tree VALUES (70001, NULL, ''); INSERT INTO $tree VALUES (69999, 70001, '');
UPDATE $tree SET parent = 69999 WHERE id = 5; COMMIT;
SQL
	goes_on($source, $tree);
	$target->safe_psql('postgres', "TRUNCATE $tree");
	$source->safe_psql('postgres', "CALL payment_sync.batch_sync('$tree')");
	equal("a second copy into the emptied table, $is", $tree);

	$target->safe_psql('postgres',
		"BEGIN; SET CONSTRAINTS ALL DEFERRED; INSERT INTO $tree VALUES (-1, -2, ''), (-2, -1, ''); DELETE FROM $tree t WHERE id BETWEEN 1 AND 30000 AND NOT EXISTS (SELECT FROM $tree c WHERE c.parent = t.id); UPDATE $tree SET parent = NULL WHERE id > 20000; COMMIT");
	$source->safe_psql('postgres', "CALL payment_sync.batch_sync('$tree', mirror => true)");
	equal("a mirror, $is", $tree);
}

# parents that come first need no more than chunks
$source->safe_psql('postgres', <<'SQL');
CREATE TABLE chain (id int PRIMARY KEY, parent int REFERENCES chain, pad text);
INSERT INTO chain SELECT i, NULLIF(i - 1, 0), repeat('x', 300) FROM generate_series(1, 40000) i;
SELECT payment_sync.capture_table('chain');
SQL
$target->safe_psql('postgres', 'CREATE TABLE chain (id int PRIMARY KEY, parent int REFERENCES chain, pad text)');
grant('chain');
$source->safe_psql('postgres', "SELECT payment_sync.create_sync('chain', '{chain}', server => 'target', batch => true)");
goes_on($source, 'chain');
equal('a chain whose parents come first', 'chain');
like(chunks('chain'), qr/^chain done [3-9]/, 'came in chunks');

# --- two tables, both not null, and a third that refers to them

for my $how ('', 'DEFERRABLE INITIALLY DEFERRED')
{
	my $s = $how ? 'd' : 'i';
	my $tables = <<SQL;
CREATE TABLE a_$s (id int PRIMARY KEY, b int NOT NULL);
CREATE TABLE b_$s (id int PRIMARY KEY, a int NOT NULL REFERENCES a_$s %1\$s);
ALTER TABLE a_$s ADD FOREIGN KEY (b) REFERENCES b_$s %1\$s;
CREATE TABLE c_$s (id int PRIMARY KEY, a int NOT NULL REFERENCES a_$s %1\$s);
SQL
	my @names = map { "${_}_$s" } qw(a b c);
	my $list = join ',', @names;
	$source->safe_psql('postgres', sprintf $tables, 'DEFERRABLE INITIALLY DEFERRED');
	$target->safe_psql('postgres', sprintf $tables, $how);
	grant(@names);
	$source->safe_psql('postgres', <<SQL);
BEGIN;
INSERT INTO a_$s SELECT i, i FROM generate_series(1, 5000) i;
INSERT INTO b_$s SELECT i, 5001 - i FROM generate_series(1, 5000) i;
INSERT INTO c_$s SELECT i, i FROM generate_series(1, 5000) i;
COMMIT;
SELECT payment_sync.capture_table(t) FROM unnest('{$list}'::regclass[]) t;
SELECT payment_sync.create_sync('$s', '{$list}', server => 'target', batch => true);
SQL
	goes_on($source, $s);
	equal("tables that refer to each other, '$how' at the target", @names);
	$source->safe_psql('postgres', <<SQL);
BEGIN; UPDATE a_$s SET b = 5001 - b; UPDATE b_$s SET a = 5001 - a;
INSERT INTO a_$s VALUES (50000, 50000); INSERT INTO b_$s VALUES (50000, 50000); COMMIT;
SQL
	goes_on($source, $s);
	equal("changes of them, '$how'", @names);
	$target->safe_psql('postgres', "TRUNCATE $list");
	$source->safe_psql('postgres', "CALL payment_sync.batch_sync('$s')");
	equal("a second copy into emptied tables, '$how'", @names);
}

# --- written to during the first copy: new rows refer to rows not copied yet

$source->safe_psql('postgres', <<'SQL');
CREATE TABLE busy (id int PRIMARY KEY, parent int REFERENCES busy, pad text);
INSERT INTO busy SELECT i, NULLIF(i - 1, 0), repeat('x', 300) FROM generate_series(1, 60000) i;
SELECT payment_sync.capture_table('busy');
SQL
$target->safe_psql('postgres', <<'SQL');
CREATE TABLE busy (id int PRIMARY KEY, parent int REFERENCES busy, pad text);
CREATE FUNCTION halt() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.id = 30000 THEN PERFORM pg_advisory_xact_lock_shared(1); END IF;
	RETURN NEW;
END$$;
CREATE TRIGGER halt BEFORE INSERT ON busy FOR EACH ROW EXECUTE FUNCTION halt();
SQL
grant('busy');
my ($in, $out) = ("SELECT pg_advisory_lock(1);\n\\echo held\n", '');
my $holder = IPC::Run::start([ 'psql', '-XAtq', '-d', $target->connstr('postgres') ], '<', \$in, '>', \$out, '2>&1',
	IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
$holder->pump until $out =~ /held/;
$source->safe_psql('postgres', "SELECT payment_sync.create_sync('busy', '{busy}', server => 'target', batch => true)");
$target->poll_query_until('postgres',
	"SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)")
  or die 'the copy does not come to its middle';
$source->safe_psql('postgres', "INSERT INTO busy SELECT 100000 + i, 59000 + i, 'new' FROM generate_series(1, 100) i");
$in .= "\\q\n";
$holder->finish;
goes_on($source, 'busy');
equal('rows that came meanwhile and refer to rows not yet copied', 'busy');

done_testing();
