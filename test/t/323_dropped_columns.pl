# 323_dropped_columns.pl
#
# A column is its number, not its name.  Changes wait, the sync being off,
# while the columns that they hold are dropped, made anew under the same name,
# renamed, or get another type; then the sync goes on.  Values of a column that
# is gone go nowhere: not into a new one of its name, and they keep no other
# value from being delivered.  Both ways of applying a window, and a window
# that is under way while it happens.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncApply;
use PaymentSyncTest;
use Test::More;

my $source = start_source('source');
my $target = start_target('target');

# The columns that a table begins with, what is done at the source while the
# sync is off, what is done at the target before it is on, what to compare.
my @cases = (
	[ 'dropped at both sides', 'v int, s text',
		"INSERT INTO %s VALUES (1, 1, 'old'), (2, 2, 'old'); UPDATE %s SET s = 'older' WHERE id = 1; DELETE FROM %s WHERE id = 2; ALTER TABLE %s DROP s; INSERT INTO %s VALUES (3, 3)",
		'ALTER TABLE %s DROP s', 'id, v' ],
	[ 'dropped at the source, kept at the target', 'v int, s text',
		"INSERT INTO %s VALUES (1, 1, 'old'); ALTER TABLE %s DROP s; UPDATE %s SET v = 2",
		'', 'id, v, NULL::text AS s', 'id, v, s' ],
	[ 'made and dropped within one transaction', 'v int',
		"BEGIN; INSERT INTO %s VALUES (1, 1); ALTER TABLE %s ADD tmp text; UPDATE %s SET tmp = 'x'; UPDATE %s SET v = length(tmp) + 5; ALTER TABLE %s DROP tmp; COMMIT",
		'', 'id, v' ],
	[ 'made anew with the same type', 'v int, s text',
		"INSERT INTO %s VALUES (1, 1, 'old'), (2, 2, 'old'); UPDATE %s SET s = 'older' WHERE id = 1; ALTER TABLE %s DROP s; ALTER TABLE %s ADD s text; INSERT INTO %s VALUES (3, 3, 'new'); UPDATE %s SET s = 'newer' WHERE id = 2",
		'ALTER TABLE %s DROP s; ALTER TABLE %s ADD s text', 'id, v, s' ],
	[ 'made anew with another type', 'v int, s text',
		"INSERT INTO %s VALUES (1, 1, 'old'), (2, 2, 'old'); UPDATE %s SET s = 'older' WHERE id = 1; ALTER TABLE %s DROP s; ALTER TABLE %s ADD s int; INSERT INTO %s VALUES (3, 3, 33)",
		'ALTER TABLE %s DROP s; ALTER TABLE %s ADD s int', 'id, v, s' ],
	[ 'made anew twice, with a default', 'v int, s text',
		"INSERT INTO %s VALUES (1, 1, 'old'); ALTER TABLE %s DROP s; ALTER TABLE %s ADD s int; INSERT INTO %s VALUES (2, 2, 22); ALTER TABLE %s DROP s; ALTER TABLE %s ADD s text DEFAULT 'd'; UPDATE %s SET v = v + 1 WHERE id = 2",
		"ALTER TABLE %s DROP s; ALTER TABLE %s ADD s text DEFAULT 'd'", 'id, v, s' ],
	[ 'renamed, and the old name given to another', 'v int, s text',
		"INSERT INTO %s VALUES (1, 1, 'old'); ALTER TABLE %s RENAME s TO r; ALTER TABLE %s ADD s text; INSERT INTO %s VALUES (2, 2, 'r', 's')",
		'ALTER TABLE %s RENAME s TO r; ALTER TABLE %s ADD s text', 'id, v, r, s' ],
	[ 'dropped, and another renamed to its name', 'v int, s text, r text',
		"INSERT INTO %s VALUES (1, 1, 'old', 'kept'); ALTER TABLE %s DROP s; ALTER TABLE %s RENAME r TO s; INSERT INTO %s VALUES (2, 2, 's')",
		'ALTER TABLE %s DROP s; ALTER TABLE %s RENAME r TO s', 'id, v, s' ],
	[ 'another type', 'v int, s int',
		"INSERT INTO %s VALUES (1, 1, 11); ALTER TABLE %s ALTER s TYPE bigint; UPDATE %s SET s = 5000000000; INSERT INTO %s VALUES (2, 2, 22)",
		'ALTER TABLE %s ALTER s TYPE bigint', 'id, v, s' ],
	[ 'a key of two, renamed', 'v int, s text',
		"INSERT INTO %s VALUES (1, 1, 'old'), (2, 2, 'old'); ALTER TABLE %s RENAME id TO nr; DELETE FROM %s WHERE nr = 1; UPDATE %s SET nr = 3; ALTER TABLE %s DROP s",
		'ALTER TABLE %s RENAME id TO nr; ALTER TABLE %s DROP s', 'nr, v' ]);

my %table = map { $_ => "t$_" } 0 .. $#cases;
my $create = join ';',
  map { "CREATE TABLE $table{$_} (id int PRIMARY KEY, $cases[$_][1])" } 0 .. $#cases;
both($source, $target, $create);
make_sync($source, $target, [ map { $table{$_} } 0 .. $#cases ]);
wait_delivered($source, 'pay');

sub named
{
	my ($sql, $table) = @_;
	$sql =~ s/%s/$table/g;
	return $sql;
}

for my $large (0, 1)
{
	my $size = $large ? 'large window' : 'small window';
	if ($large)
	{
		# begin again, with other numbers of the columns
		my $again = join ';', map {
			my ($n, $columns) = ($_, $cases[$_][1]);
			"DROP TABLE $table{$n}; CREATE TABLE $table{$n} (id int PRIMARY KEY, filler int, $columns); ALTER TABLE $table{$n} DROP filler"
		} 0 .. $#cases;
		both($source, $target, $again);
		$source->safe_psql('postgres',
			"SELECT payment_sync.capture_table(x::regclass), payment_sync.alter_sync('pay', add_tables => ARRAY[x::regclass]) FROM unnest('{"
			  . join(',', values %table) . "}'::text[]) x");
		wait_delivered($source, 'pay');
	}
	$source->safe_psql('postgres', "SELECT payment_sync.disable_sync('pay')");
	$source->safe_psql('postgres', 'INSERT INTO ballast SELECT generate_series(100001, 103000)')
	  if $large;
	for my $n (0 .. $#cases)
	{
		$source->safe_psql('postgres', named($cases[$n][2], $table{$n}));
		$target->safe_psql('postgres', named($cases[$n][3], $table{$n})) if $cases[$n][3];
	}
	$source->safe_psql('postgres', "SELECT payment_sync.enable_sync('pay')");
	wait_delivered($source, 'pay');
	for my $n (0 .. $#cases)
	{
		same_rows($source, $target, "SELECT $cases[$n][4] FROM $table{$n}",
			"$cases[$n][0], $size",
			target_query => 'SELECT ' . ($cases[$n][5] // $cases[$n][4]) . " FROM $table{$n}");
	}
}
is($source->safe_psql('postgres',
		"SELECT count(*) FROM payment_sync.reconcile('pay') WHERE missing + unexpected + different > 0"),
	'0', 'and it is proved');

# a key's column is needed to find rows by: without it nothing is applied, and
# what to do is said
both($source, $target, 'CREATE TABLE keyed (id int PRIMARY KEY, code text NOT NULL UNIQUE, v int)');
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('keyed');
SELECT payment_sync.alter_sync('pay', add_tables => '{keyed}');
INSERT INTO keyed VALUES (1, 'a', 1);
SQL
wait_delivered($source, 'pay');
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.disable_sync('pay');
INSERT INTO keyed VALUES (2, 'b', 2);
SELECT payment_sync.capture_table('keyed', key => '{code}');
UPDATE keyed SET v = 3 WHERE code = 'a';
ALTER TABLE keyed DROP id;
SELECT payment_sync.enable_sync('pay');
SQL
wait_delivered($source, 'pay');
same_rows($source, $target, 'SELECT code, v FROM keyed',
	'a dropped column of the key finds its rows as long as the target has it');
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.disable_sync('pay');
ALTER TABLE keyed ADD id int;
UPDATE keyed SET id = v;
SELECT payment_sync.capture_table('keyed', key => '{code}');
SELECT payment_sync.enable_sync('pay');
SQL
wait_delivered($source, 'pay');
$source->safe_psql('postgres', <<'SQL');
ALTER TABLE keyed ALTER id SET NOT NULL, ADD UNIQUE (id);
SELECT payment_sync.disable_sync('pay');
SELECT payment_sync.capture_table('keyed', key => '{id}');
INSERT INTO keyed (code, v, id) VALUES ('c', 4, 4);
SELECT payment_sync.capture_table('keyed', key => '{code}');
ALTER TABLE keyed DROP id;
SQL
$target->safe_psql('postgres', 'ALTER TABLE keyed DROP id');
$source->safe_psql('postgres', "SELECT payment_sync.enable_sync('pay')");
like(failure_of($source, 'pay'), qr/key column "id" of table public\.keyed was dropped/,
	'a dropped column of the key that the target lacks is named');
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.disable_sync('pay');
SELECT payment_sync.enable_sync('pay', start => 'batch');
SQL
goes_on($source, 'pay');
same_rows($source, $target, 'SELECT code, v FROM keyed', 'a new copy mends it');

# a type that is gone cannot be read, so no bytes of its values are taken for
# text
both($source, $target, "CREATE TYPE mood AS ENUM ('fine'); CREATE TABLE moods (id int PRIMARY KEY, m mood)");
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('moods');
SELECT payment_sync.alter_sync('pay', add_tables => '{moods}');
SELECT payment_sync.disable_sync('pay');
INSERT INTO moods VALUES (1, 'fine');
SQL
both($source, $target, 'ALTER TABLE moods ALTER m TYPE text; DROP TYPE mood');
$source->safe_psql('postgres', "SELECT payment_sync.enable_sync('pay')");
like(failure_of($source, 'pay'), qr/the type that column "m" of table public\.moods had was dropped/,
	'a value whose type is gone is not delivered as something else');

done_testing();
