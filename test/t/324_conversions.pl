# 324_conversions.pl
#
# Columns that have another type at the target: each value arrives as it was,
# or is refused with table, key, column and reason, or arrives changed with
# the server's consent.  By pipeline, set-wise and by a batch; the two servers
# have other time zones, formats and units of money.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncApply;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

# a locale whose money has no decimals, and one with a decimal comma
my $locales = PostgreSQL::Test::Utils::tempdir();
system_or_bail('localedef', '-i', $_, '-f', 'UTF-8', "$locales/$_.UTF-8") for 'ja_JP', 'de_DE';
$ENV{LOCPATH} = $locales;

my $source = start_source('source', conf => "timezone = 'Asia/Tokyo'\ndatestyle = 'German'\nlc_monetary = 'C'\n");
my $target = start_target('target',
	conf => "timezone = 'America/Caracas'\nextra_float_digits = 0\nlc_monetary = 'ja_JP.UTF-8'\n");
both($source, $target, <<'SQL');
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE DOMAIN short AS varchar(5);
CREATE DOMAIN shorter AS short;
SQL
$source->safe_psql('postgres', <<'SQL');
CREATE DOMAIN cents AS bigint;
CREATE TYPE kind AS ENUM ('a', 'b');
SQL
$target->safe_psql('postgres', <<'SQL');
CREATE DOMAIN cents AS double precision;
CREATE DOMAIN whole AS numeric(12,0);
CREATE TYPE kind AS ENUM ('b', 'a', 'c');
SQL

# type at the source, type at the target, [values that arrive, with what the
# target shows], [values that are refused, with what arrives by consent; undef:
# refused all the same]
my @pairs = (
	[ 'numeric(14,4)', 'numeric(12,2)', { '10.0400' => '10.04', 'NaN' => 'NaN', '-9999999999.99' => '-9999999999.99' },
		{ '10.0049' => '10.00', '-0.005' => '-0.01' } ],
	[ 'numeric', 'numeric(6,2)', { '1' => '1.00', '9999.990000' => '9999.99' },
		{ '0.001' => '0.00', '10000' => undef, 'Infinity' => undef } ],
	[ 'numeric', 'int', { '10.00' => '10', '-2147483648' => '-2147483648' }, { '10.75' => '11', '2147483648' => undef, 'NaN' => undef } ],
	[ 'numeric', 'float8', { '0.1' => '0.1', '12.50' => '12.5' }, { '0.12345678901234567891' => '0.123456789012346' } ],
	[ 'bigint', 'int', { '2147483647' => '2147483647' }, { '2147483648' => undef } ],
	[ 'bigint', 'float8', { '9007199254740992' => '9.00719925474099e+15' }, { '9007199254740993' => '9.00719925474099e+15' } ],
	[ 'bigint', 'numeric(12,2)', { '-9999999999' => '-9999999999.00' }, { '10000000000' => undef } ],
	[ 'int', 'bool', { '1' => 't', '0' => 'f' }, { '7' => 't' } ],
	[ 'bool', 'int', { 'true' => '1' }, {} ],
	[ 'real', 'float8', { '0.1' => '0.100000001490116', 'NaN' => 'NaN', '-Infinity' => '-Infinity' }, {} ],
	[ 'float8', 'real', { '0.5' => '0.5', 'Infinity' => 'Infinity' }, { '0.1' => '0.1', '1e300' => undef } ],
	[ 'float8', 'numeric', { '0.30000000000000004' => '0.30000000000000004', '5e-324' => undef }, {} ],
	[ 'float8', 'numeric(10,2)', { '0.25' => '0.25' }, { '0.30000000000000004' => '0.30' } ],
	[ 'float8', 'bigint', { '1e15' => '1000000000000000' }, { '0.5' => '0', '1e19' => undef } ],
	[ 'cents', 'cents', { '1250' => '1250' }, { '9007199254740993' => '9.00719925474099e+15' } ],
	[ 'bigint', 'whole', { '5' => '5' }, { '1000000000000' => undef } ],
	[ 'money', 'money', { '1234' => "\x{ffe5}1,234" }, { '12.34' => "\x{ffe5}12" } ],
	[ 'money', 'numeric(12,2)', { '12.34' => '12.34' }, {} ],
	[ 'money', 'text', { '-1234.50' => '-1234.50' }, {} ],
	[ 'numeric', 'money', { '5.0' => "\x{ffe5}5" }, { '5.25' => "\x{ffe5}5" } ],
	[ 'timestamptz', 'timestamp', { '2026-06-01 12:00:00.123456+02' => '2026-06-01 10:00:00.123456', 'infinity' => 'infinity' }, {} ],
	[ 'timestamp', 'timestamptz', { '2026-06-01 10:00:00.123456' => '2026-06-01 06:00:00.123456-04', '-infinity' => '-infinity' }, {} ],
	[ 'timestamptz', 'timestamptz(0)', { '2026-06-01 12:00:00+00' => '2026-06-01 08:00:00-04' },
		{ '2026-06-01 12:00:00.6+00' => '2026-06-01 08:00:01-04' } ],
	[ 'timestamptz', 'timestamp(3)', { '2026-06-01 12:00:00.123+00' => '2026-06-01 12:00:00.123' },
		{ '2026-06-01 12:00:00.1234+00' => '2026-06-01 12:00:00.123' } ],
	[ 'timestamptz', 'date', { '2026-06-01 00:00:00+00' => '2026-06-01' }, { '2026-06-01 00:00:00+02' => '2026-05-31' } ],
	[ 'date', 'timestamptz', { '2026-06-01' => '2026-05-31 20:00:00-04' }, { '5874897-12-31' => undef } ],
	[ 'date', 'timestamp', { '2026-06-01' => '2026-06-01 00:00:00', 'infinity' => 'infinity' }, {} ],
	[ 'timetz', 'time', { '10:00:00+00' => '10:00:00' }, { '10:00:00+02' => '10:00:00' } ],
	[ 'time', 'timetz', { '10:00:00' => '10:00:00+00' }, {} ],
	[ 'time', 'time(0)', { '10:00:00' => '10:00:00' }, { '10:00:00.7' => '10:00:01' } ],
	[ 'interval', 'interval(0)', { '1 mon 02:00:00' => '1 mon 02:00:00' }, { '00:00:00.7' => '00:00:01' } ],
	[ 'text', 'varchar(3)', { 'abc' => 'abc', "\x{e9}\x{e9}\x{e9}" => "\x{e9}\x{e9}\x{e9}" }, { 'abcd' => 'abc', 'abc ' => 'abc' } ],
	[ 'varchar(8)', 'shorter', { 'abcde' => 'abcde' }, { 'abcdef' => 'abcde', 'abcde   ' => 'abcde' } ],
	[ 'text', 'char(4)', { 'ab' => 'ab  ', '' => '    ' }, { 'ab ' => 'ab  ', 'abcde' => 'abcd' } ],
	[ 'char(4)', 'varchar(4)', { 'ab' => 'ab' }, {} ],
	[ 'char(4)', 'char(6)', { 'ab' => 'ab    ' }, {} ],
	[ 'text', 'name', { 'n' => 'n' }, { 'x' x 70 => 'x' x 63 } ],
	[ 'text', '"char"', { 'n' => 'n' }, { 'no' => 'n' } ],
	[ 'text', 'int', { '7' => '7' }, { '007' => '7', 'seven' => undef } ],
	[ 'text', 'numeric(10,4)', { '1.50' => '1.5000' }, { '1e3' => '1000.0000', '0.00001' => '0.0000' } ],
	[ 'text', 'timestamptz', { '2026-06-01 00:00:00+00' => '2026-05-31 20:00:00-04' }, { '2026-06-01 00:00' => '2026-05-31 20:00:00-04' } ],
	[ 'int', 'text', { '-5' => '-5' }, {} ],
	[ 'bool', 'text', { 't' => 'true' }, {} ],
	[ 'timestamptz', 'text', { '2026-06-01 02:00:00+02' => '2026-06-01 00:00:00+00' }, {} ],
	[ 'uuid', 'text', { '00000000-0000-0000-0000-000000000001' => '00000000-0000-0000-0000-000000000001' }, {} ],
	[ 'mood', 'text', { 'glad' => 'glad' }, {} ],
	[ 'text', 'mood', { 'glad' => 'glad' }, {} ],
	[ 'kind', 'kind', { 'a' => 'a' }, {} ],
	[ 'mood[]', 'text[]', { '{sad,NULL}' => '{sad,NULL}' }, {} ],
	[ 'json', 'jsonb', { '{"b": 1.50,  "a": [null, "x:y", {"a": 1}]}' => '{"a": [null, "x:y", {"a": 1}], "b": 1.50}' },
		{ '{"a":1,"b":{"c":1,"c":2}}' => '{"a": 1, "b": {"c": 2}}', '"\u0000"' => undef } ],
	[ 'jsonb', 'json', { '{"a":1}' => '{"a": 1}' }, {} ],
	[ 'varbit', 'bit(3)', { '101' => '101' }, { '10' => '100', '1010' => '101' } ],
	[ 'inet', 'cidr', { '10.0.0.0/8' => '10.0.0.0/8' }, { '10.0.0.1/8' => '10.0.0.0/8' } ],
	[ 'numeric(8,4)[]', 'numeric(8,2)[]', { '{1.2300,NULL}' => '{1.23,NULL}' }, { '{1.2345}' => '{1.23}' } ],
	[ 'int[]', 'bigint[]', { '{1,2}' => '{1,2}' }, {} ],
	[ 'int4range', 'int8range', { '[1,3)' => '[1,3)' }, {} ]);

sub utf8 { my $text = shift; utf8::encode($text) if utf8::is_utf8($text) || $text =~ /[^\0-\x7f]/; return $text }
sub literal { my $text = utf8(shift); $text =~ s/'/''/g; return "'$text'" }

# a column for each pair; a row for each of its values
my (@here, @there, @good);
for my $i (0 .. $#pairs)
{
	my ($from, $to, $good) = @{ $pairs[$i] };
	push @here, "c$i $from";
	push @there, "c$i $to";
	for my $value (sort keys %$good)
	{
		push @good, { column => "c$i", type => $from, value => $value, arrives => $good->{$value} };
	}
}
my $cast = sub { $_[0]{type} eq 'money' ? literal($_[0]{value}) . '::numeric::money' : literal($_[0]{value}) };
$source->safe_psql('postgres', 'CREATE TABLE v (id int PRIMARY KEY, ' . join(', ', @here) . ')');
$target->safe_psql('postgres', 'CREATE TABLE v (id int PRIMARY KEY, ' . join(', ', @there) . ')');

sub insert_good
{
	my ($first) = @_;
	my $n = $first;
	return 'SET datestyle = ISO; ' . join '; ',
	  map { 'INSERT INTO v (id, ' . $_->{column} . ') VALUES (' . $n++ . ', ' . $cast->($_) . ')' } @good;
}

# what has arrived where it should not have
sub wrong
{
	my ($first) = @_;
	my @wrong;
	my $rows = join "\n", map { $target->safe_psql('postgres',
		"SET extra_float_digits = 0; SELECT id, $good[$_]{column} FROM v WHERE id = " . ($first + $_)) } 0 .. $#good;
	my @seen = split /\n/, $rows;
	for my $i (0 .. $#good)
	{
		next if !defined $good[$i]{arrives};
		my $expected = ($first + $i) . '|' . utf8($good[$i]{arrives});
		push @wrong, "$good[$i]{column}: '" . ($seen[$i] // '') . "' instead of '$expected'" if ($seen[$i] // '') ne $expected;
	}
	return join "\n", @wrong;
}

$source->safe_psql('postgres', insert_good(1));
make_sync($source, $target, ['v'], create => 'batch => true');
wait_delivered($source, 'pay');
is(wrong(1), '', 'values that fit, by a batch');
wait_applied($target, 'pay', small_window($source, insert_good(1001)));
is(wrong(1001), '', 'in a small window');
wait_applied($target, 'pay', large_window($source, insert_good(2001)));
is(wrong(2001), '', 'in a large window');
wait_applied($target, 'pay', large_window($source, 'UPDATE v SET id = id + 10000 WHERE id < 1000'));
is(wrong(10001), '', 'with a changed key');

# what reconciliation finds
sub found
{
	my $run = $source->safe_psql('postgres', "SELECT run FROM payment_sync.reconcile('pay', 'v')");
	return $source->safe_psql('postgres', <<SQL);
SELECT kind, key->>'id', columns FROM payment_sync.discrepancies WHERE run = $run ORDER BY (key->>'id')::int
SQL
}
is(found(), '', 'which are equal to a reconciliation');
# not so what is changed at the target
my @changed = grep { $good[$_]{value} ne 'NaN' && $good[$_]{value} !~ /infinity/i } 0 .. $#good;
$target->safe_psql('postgres', join '; ',
	map { "UPDATE v SET $good[$_]{column} = (SELECT o.$good[$_]{column} FROM v o WHERE o.$good[$_]{column} IS NOT NULL"
	  . " AND o.$good[$_]{column}::text <> v.$good[$_]{column}::text LIMIT 1) WHERE id = " . (1001 + $_) } @changed);
is(found(), join("\n", map { "different|" . (1001 + $_) . "|{$good[$_]{column}}" } @changed),
	'other values of the same columns are not');

# ------------------------------------------------------------- what is refused
sub begin_anew
{
	$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.drop_sync('pay');
TRUNCATE v;
SQL
	$target->safe_psql('postgres', 'TRUNCATE v; TRUNCATE payment_sync_target.position');
	$source->safe_psql('postgres',
		q{SELECT payment_sync.create_sync('pay', '{v,ballast}', server => 'target')});
	return;
}
my $size = 0;
for my $i (0 .. $#pairs)
{
	my ($from, $to, undef, $bad) = @{ $pairs[$i] };
	for my $value (sort keys %$bad)
	{
		begin_anew();
		my $sql = "SET datestyle = ISO; INSERT INTO v (id, c$i) VALUES (77, "
		  . $cast->({ type => $from, value => $value }) . ')';
		# one way and the other
		($size++ % 2 ? \&large_window : \&small_window)->($source, $sql);
		my $seen = failure_like($source, 'pay', qr/value of column c$i does not fit/);
		like($seen, qr/table public\.v: the value of column c$i does not fit type .* there: .*\(id\)=\(77\)/,
			utf8("$from to $to: $value is refused with table, column, reason and key"));
		is($target->safe_psql('postgres', 'SELECT count(*) FROM v'), '0', 'and does not arrive');
		unlike($seen, qr/\Q$value\E/, 'nor is it told') if length $value > 4;
	}
}

# -------------------------------------------------------------- with consent
begin_anew();
$source->safe_psql('postgres', q{ALTER SERVER target OPTIONS (ADD lossy_casts 'true')});
my %consent;
my $id = 0;
my @lossy;
for my $i (0 .. $#pairs)
{
	my ($from, $to, undef, $bad) = @{ $pairs[$i] };
	for my $value (grep { defined $bad->{$_} } sort keys %$bad)
	{
		push @lossy, "INSERT INTO v (id, c$i) VALUES (" . ++$id . ', ' . $cast->({ type => $from, value => $value }) . ')';
		$consent{$id} = [ "c$i", $bad->{$value}, $value ];
	}
}
my $lossy = 'SET datestyle = ISO; ' . join '; ', @lossy;
for my $window (\&small_window, \&large_window)
{
	wait_applied($target, 'pay', $window->($source, "DELETE FROM v; $lossy"));
	my @wrong;
	for my $n (1 .. $id)
	{
		my $seen = $target->safe_psql('postgres',
			"SET extra_float_digits = 0; SELECT $consent{$n}[0] FROM v WHERE id = $n");
		push @wrong, "$consent{$n}[0] $consent{$n}[2]: '$seen' instead of '$consent{$n}[1]'"
		  if $seen ne utf8($consent{$n}[1]);
	}
	is(join("\n", @wrong), '', 'with lossy_casts values change as casts change them');
	is(found(), '', 'which are equal to a reconciliation that knows of the loss');
}
$source->safe_psql('postgres', q{ALTER SERVER target OPTIONS (DROP lossy_casts)});
is(found(), join("\n", map { "different|$_|{$consent{$_}[0]}" } sort { $a <=> $b } keys %consent),
	'without consent none of them is equal');

# ---------------------------------------------------- what is refused as a whole
$target->safe_psql('postgres', q{CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)});
both($source, $target, 'CREATE EXTENSION citext');
my @refused = (
	[ 'uuid', 'int', 'no conversion' ],
	[ 'bool', 'bigint', 'no conversion' ],
	[ 'regclass', 'int', 'objects' ],
	[ 'money[]', 'money[]', 'lc_monetary' ],
	[ 'pair', 'pair', 'different structures' ],
	[ 'point', 'citext[]', 'different structures' ]);
$source->safe_psql('postgres', 'CREATE TYPE pair AS (a int, b int); CREATE TYPE amount AS (m money, n int)');
$target->safe_psql('postgres', 'CREATE TYPE pair AS (b int, a int); CREATE TYPE amount AS (m money, n int)');
push @refused, [ 'amount', 'amount', 'lc_monetary' ];
for my $n (0 .. $#refused)
{
	my ($from, $to, $reason) = @{ $refused[$n] };
	$source->safe_psql('postgres', "CREATE TABLE r$n (id int PRIMARY KEY, c $from)");
	$target->safe_psql('postgres', "CREATE TABLE r$n (id int PRIMARY KEY, c $to)");
	$source->safe_psql('postgres', <<SQL);
SELECT payment_sync.capture_table('r$n');
SELECT payment_sync.create_sync('r$n', '{r$n}', server => 'target');
INSERT INTO r$n VALUES (1, NULL);
SQL
	like(failure_like($source, "r$n", qr/cannot be delivered/),
		qr/column c of type .* cannot be delivered to table public\.r$n.*$reason/, "$from to $to is refused");
	$source->safe_psql('postgres', "SELECT payment_sync.drop_sync('r$n')");
}

# money in a row is written in one way, whatever the session's settings are
my $plain = start_target('plain', conf => "lc_monetary = 'C'\n");
connect_target($source, $plain, server => 'plain');
$plain->safe_psql('postgres', 'CREATE TYPE amount AS (m money, n int);
	CREATE TABLE amounts (id int PRIMARY KEY, a amount, twice int GENERATED ALWAYS AS (id * 2) STORED)');
$source->safe_psql('postgres', <<'SQL');
CREATE TABLE amounts (id int PRIMARY KEY, a amount, twice int);
SELECT payment_sync.capture_table('amounts');
SELECT payment_sync.create_sync('amounts', '{amounts}', server => 'plain');
INSERT INTO amounts VALUES (1, ROW((-1234.5)::numeric::money, 1), 7);
SET lc_monetary = 'de_DE.UTF-8';
INSERT INTO amounts VALUES (2, ROW((-1234.5)::numeric::money, 1), 4);
SQL
wait_delivered($source, 'amounts');
is($plain->safe_psql('postgres', 'SELECT id, (a).m FROM amounts ORDER BY id'),
	"1|-\$1,234.50\n2|-\$1,234.50", 'money in a row does not depend on the session');
is($source->safe_psql('postgres', q{SELECT missing, unexpected, different FROM payment_sync.reconcile('amounts')}),
	'0|0|0', 'and is equal; what the target computes is not compared');

# keys that the target holds equal
my @keys = ([ 'text', 'citext' ], [ 'text', 'text COLLATE ci' ], [ 'varchar(9)', 'varchar(9) COLLATE ci' ]);
for my $n (0 .. $#keys)
{
	my ($from, $to) = @{ $keys[$n] };
	$source->safe_psql('postgres', "CREATE TABLE k$n (id $from PRIMARY KEY, v int)");
	$target->safe_psql('postgres', "CREATE TABLE k$n (id $to PRIMARY KEY, v int)");
	$source->safe_psql('postgres', <<SQL);
SELECT payment_sync.capture_table('k$n');
SELECT payment_sync.create_sync('k$n', '{k$n}', server => 'target');
INSERT INTO k$n VALUES ('a', 1), ('A', 2);
SQL
	like(failure_like($source, "k$n", qr/may be equal/),
		qr/key column id of table public\.k$n cannot be delivered: keys that differ here may be equal there/,
		"a key of $from is not delivered to one of $to");
	$source->safe_psql('postgres', "SELECT payment_sync.drop_sync('k$n')");
}
# the same on both sides is no trouble
both($source, $target, 'CREATE TABLE same_ci (id citext PRIMARY KEY, v int)');
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('same_ci');
SELECT payment_sync.create_sync('same_ci', '{same_ci}', server => 'target');
INSERT INTO same_ci VALUES ('a', 1);
SQL
wait_delivered($source, 'same_ci');
is($target->safe_psql('postgres', 'TABLE same_ci'), 'a|1', 'citext to citext is');

done_testing();
