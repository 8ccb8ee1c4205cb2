# 325_converted_keys.pl
#
# Keys that have another type at the target: rows are found, changed, moved and
# deleted there, by pipeline, set-wise and by a mirror, and compared; errors
# name the key; keys that would become one are refused.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncApply;
use PaymentSyncTest;
use Test::More;

my $source = start_source('source', conf => "timezone = 'Asia/Tokyo'\n");
my $target = start_target('target', conf => "timezone = 'America/Caracas'\n");

# [type at the source, at the target, a key of i]
my @keys = (
	[ 'bigint', 'int', 'i' ],
	[ 'int', 'bigint', 'i' ],
	[ 'int', 'text', 'i' ],
	[ 'numeric(14,4)', 'numeric(12,2)', 'i / 4.0' ],
	[ 'numeric', 'bigint', 'i' ],
	[ 'text', 'varchar(10)', "'no ' || i" ],
	[ 'varchar(10)', 'char(12)', "'no ' || i" ],
	[ 'uuid', 'text', "md5(i::text)::uuid" ],
	[ 'date', 'timestamptz', "'2026-01-01'::date + i::int" ],
	[ 'timestamptz', 'timestamp', "'2026-01-01 00:00+00'::timestamptz + i * interval '1 s'" ],
	[ 'timestamptz', 'timestamptz(0)', "'2026-01-01 00:00+00'::timestamptz + i * interval '1 s'" ]);
for my $k (0 .. $#keys)
{
	$source->safe_psql('postgres', "CREATE TABLE k$k (id $keys[$k][0] PRIMARY KEY, v numeric(10,3))");
	$target->safe_psql('postgres', "CREATE TABLE k$k (id $keys[$k][1] PRIMARY KEY, v numeric(10,2))");
}
my @tables = map { "k$_" } 0 .. $#keys;

# for all tables: %1$s is the table, %2$s and so on the keys of 1 and so on
sub each_table
{
	my ($sql, @i) = @_;
	return join '; ', map {
		my $k = $_;
		sprintf $sql, "k$k", map { my $i = $_; my $key = $keys[$k][2]; $key =~ s/\bi\b/$i/g; "($key)" } @i;
	} 0 .. $#keys;
}

sub compared
{
	return $source->safe_psql('postgres', join ' UNION ALL ',
		map { "SELECT '$_', source_rows, missing, unexpected, different FROM payment_sync.reconcile('pay', '$_')" } @tables);
}
sub all_equal { my ($n) = @_; return join "\n", map { "$_|$n|0|0|0" } @tables }

my $rows = join '; ', map { "INSERT INTO k$_ SELECT $keys[$_][2], i FROM generate_series(1, 20) i" } 0 .. $#keys;
$source->safe_psql('postgres', $rows);
make_sync($source, $target, \@tables, create => 'batch => true');
wait_delivered($source, 'pay');
is(compared(), all_equal(20), 'copied');

my $work = each_table('UPDATE %1$s SET v = -1 WHERE id = %2$s; DELETE FROM %1$s WHERE id = %3$s; '
	  . 'INSERT INTO %1$s VALUES (%4$s, 1); UPDATE %1$s SET id = %5$s WHERE id = %6$s', 1, 2, 31, 32, 3);
wait_applied($target, 'pay', small_window($source, $work));
is(compared(), all_equal(20), 'a small window');
is($target->safe_psql('postgres', join ' UNION ALL ', map { "SELECT count(*) FILTER (WHERE v = -1) FROM $_" } @tables),
	join("\n", (1) x @tables), 'which changed the rows');
$work = each_table('UPDATE %1$s SET v = -2 WHERE id = %2$s; DELETE FROM %1$s WHERE id = %3$s; '
	  . 'INSERT INTO %1$s VALUES (%4$s, 1); UPDATE %1$s SET id = %5$s WHERE id = %6$s', 4, 5, 41, 42, 6);
wait_applied($target, 'pay', large_window($source, $work));
is(compared(), all_equal(20), 'a large window');
is($target->safe_psql('postgres', join ' UNION ALL ', map { "SELECT count(*) FILTER (WHERE v = -2) FROM $_" } @tables),
	join("\n", (1) x @tables), 'which changed the rows');

# differences at the target are named, and repaired
$target->safe_psql('postgres', join '; ', map {
	"DELETE FROM $_ WHERE v = 7; UPDATE $_ SET v = 1.5 WHERE v = 8" } @tables);
is(compared(), join("\n", map { "$_|20|1|0|1" } @tables), 'differences are found');
$source->safe_psql('postgres', q{SELECT * FROM payment_sync.reconcile('pay'); SELECT payment_sync.repair('pay')});
wait_delivered($source, 'pay');
is(compared(), all_equal(20), 'and repaired');

# a mirror takes away what the source lacks, and nothing else
$source->safe_psql('postgres', 'SET session_replication_role = replica; ' . each_table('DELETE FROM %1$s WHERE id = %2$s', 9));
$target->safe_psql('postgres', join '; ', map { "DELETE FROM $_ WHERE v = 10" } @tables);
$source->safe_psql('postgres', "CALL payment_sync.batch_sync('pay', mirror => true)");
wait_delivered($source, 'pay');
is(compared(), all_equal($source->safe_psql('postgres', 'SELECT count(*) FROM k0')), 'a mirror');

# an error tells the key, and no two keys become one
$target->safe_psql('postgres', 'ALTER TABLE k3 ADD CHECK (v < 1000)');
$source->safe_psql('postgres', 'INSERT INTO k3 VALUES (99.25, 1000)');
like(failure_like($source, 'pay', qr/check constraint/), qr/\(id\)=\(99\.25\d*\)/, 'an error of the target tells the key');
$target->safe_psql('postgres', 'ALTER TABLE k3 DROP CONSTRAINT k3_v_check');
mended($source, 'pay');
$source->safe_psql('postgres', 'INSERT INTO k3 VALUES (0.501, 1), (0.502, 2)');
like(failure_like($source, 'pay', qr/does not fit/), qr/table public\.k3: the value of column id does not fit.*\(id\)=\(0\.5010\)/,
	'keys that would become one are refused');

done_testing();
