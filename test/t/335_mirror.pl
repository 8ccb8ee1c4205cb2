# 335_mirror.pl
#
# A mirror removes what the source lacks and nothing else, whatever type,
# collation and order the key has at the other side; while pgbench inserts,
# deletes and brings back rows in all ranges of keys; and after kill -9.
#
# Each kind of key is a table of its own; some rows at the target are extra,
# some lack, some differ.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use IPC::Run qw(start);
use PaymentSyncApply;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = start_source('source', conf => "restart_after_crash = on\n");
my $target = start_target('target');
my $tmp = PostgreSQL::Test::Utils::tempdir();

# A role that has the documented privileges and no others.
$target->safe_psql('postgres', <<'SQL');
CREATE ROLE feeder LOGIN;
GRANT CREATE, TEMPORARY ON DATABASE postgres TO feeder;
SQL
connect_target($source, $target, user => 'feeder');

# --- kinds of keys: name, type at the source, type at the target, key of row
# i at the source, keys that are extra at the target

both($source, $target, q(CREATE EXTENSION citext));
$source->safe_psql('postgres', <<'SQL');
CREATE TYPE grade AS ENUM ('a', 'b', 'c');
CREATE DOMAIN number AS bigint CHECK (VALUE > 0);
SQL
$target->safe_psql('postgres', <<'SQL');
CREATE TYPE grade AS ENUM ('b', 'a', 'c', 'd');
CREATE DOMAIN number AS bigint;
SQL
my $icu = $source->safe_psql('postgres',
	"SELECT count(*) FROM pg_collation WHERE collname = 'de-x-icu'");
if ($icu)
{
	both($source, $target, <<'SQL');
CREATE COLLATION anycase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
SQL
}
my @kinds = (
	[ 'same', 'int', 'int', 'i', [ '-1', '0', '999999' ] ],
	[ 'wider', 'int', 'bigint', 'i', [ '-1', '99999999999' ] ],
	[ 'as_text', 'bigint', 'text', 'i', [ q('zzz'), q('00042'), q(''), q('-1') ] ],
	[ 'from_text', 'text', 'bigint', 'i::text', ['-7'] ],
	[ 'uuid_text', 'uuid', 'text', q(md5(i::text)::uuid), [ q('A'), q('ffffffff-ffff-ffff-ffff-fffffffffff') ] ],
	[ 'text_uuid', 'text', 'uuid', q(md5(i::text)::uuid::text), [q('00000000-0000-0000-0000-000000000000')] ],
	[ 'words', 'text', 'text COLLATE "C"', q((ARRAY['ä','A','a','Z','z','_'])[1 + i % 6] || i), [ q('B'), q('äa'), q('~') ] ],
	[ 'bytes', 'bytea', 'bytea', q(decode(md5(i::text), 'hex')), [q('\\\\x00')] ],
	[ 'exact', 'numeric', 'text', '(i / 10.0)::numeric(10, 1)', [q('1.00')] ],
	[ 'padded', 'varchar(20)', 'char(20)', q('k' || i), [q('k')] ],
	[ 'moment', 'timestamptz', 'timestamptz', q('2024-01-01 00:00Z'::timestamptz + i * interval '1 h'), [q('1999-12-31')] ],
	[ 'of_domain', 'number', 'number', 'i', ['-1'] ],
	[ 'folded', 'citext', 'citext', q('Key' || i), [ q('other'), q('KEY') ] ],
	[ 'folded_text', 'citext', 'text', q('Key' || i), [ q('key1'), q('KEY2') ] ],
	$icu ? (
		[ 'german', 'text COLLATE "de-x-icu"', 'text COLLATE "C"', q((ARRAY['ä','A','a','Z','z','_'])[1 + i % 6] || i), [q('Ö')] ],
		[ 'any_case', 'text COLLATE anycase', 'text', q('Key' || i), [ q('key1'), q('zz') ] ]) : ());
my $rows = 3000;
for my $kind (@kinds)
{
	my ($name, $here, $there, $key) = @$kind;
	$source->safe_psql('postgres', <<SQL);
CREATE TABLE k_$name (k $here PRIMARY KEY, i int, v text);
INSERT INTO k_$name SELECT $key, i, repeat('v', 40) FROM generate_series(1, $rows) i;
SQL
	$target->safe_psql('postgres', "CREATE TABLE k_$name (k $there PRIMARY KEY, i int, v text)");
}
# two columns, the first of few values in another order
for my $node ($source, $target)
{
	$node->safe_psql('postgres', 'CREATE TABLE k_graded (grade grade, no int, i int, v text, PRIMARY KEY (grade, no))');
}
$source->safe_psql('postgres',
	"INSERT INTO k_graded SELECT g, i, i, 'v' FROM unnest('{a,b,c}'::grade[]) g, generate_series(1, $rows) i");
my @tables = ((map { "k_$_->[0]" } @kinds), 'k_graded');
my $list = join ',', @tables;
$target->safe_psql('postgres', "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON $_ TO feeder") for @tables;
$source->safe_psql('postgres', <<SQL);
SELECT payment_sync.capture_table(t) FROM unnest('{$list}'::regclass[]) t;
SELECT payment_sync.create_sync('keys', '{$list}', server => 'target', batch => true);
SQL
goes_on($source, 'keys');

# what both sides show of keys, whatever type they have
sub equal
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $query = join ' UNION ALL ', map {
		my $key = $_ eq 'k_graded' ? "grade::text || no" : $_ eq 'k_padded' ? 'rtrim(k::text)' : 'k::text';
		"SELECT '$_' AS name, ($key) COLLATE \"C\" AS key, i, v FROM $_"
	} @tables;
	return is(differing_rows($source, $target, $query), '', $what);
}
equal('copied');

sub damage
{
	for my $kind (@kinds)
	{
		my ($name, undef, undef, undef, $extra) = @$kind;
		$target->safe_psql('postgres', join '', <<SQL, map { "INSERT INTO k_$name VALUES ($_, -1, 'extra');" } @$extra);
DELETE FROM k_$name WHERE i % 100 = 7;
UPDATE k_$name SET v = 'wrong' WHERE i % 100 = 8;
SQL
	}
	$target->safe_psql('postgres',
		q(INSERT INTO k_graded VALUES ('d', 1, -1, 'extra'), ('a', 0, -1, 'extra'), ('b', 99999, -1, 'extra')));
	return;
}

damage();
$source->safe_psql('postgres', "CALL payment_sync.batch_sync('keys', mirror => true)");
equal('a mirror removes what is extra, and nothing else');

damage();
$source->safe_psql('postgres', "SELECT payment_sync.enable_sync('keys', start => 'batch')");
goes_on($source, 'keys');
equal('so does a new start');

# --- while rows come, go and come back

both($source, $target, <<'SQL');
CREATE TABLE live (k text PRIMARY KEY);
CREATE TABLE moving (id int PRIMARY KEY, u text UNIQUE);
SQL
$target->safe_psql('postgres', 'GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON live, moving TO feeder');
$source->safe_psql('postgres', <<'SQL');
INSERT INTO live SELECT md5(i::text) FROM generate_series(1, 20000) i;
INSERT INTO moving SELECT i, 'u' || i FROM generate_series(1, 1000) i;
SELECT payment_sync.capture_table(t) FROM unnest('{live,moving}'::regclass[]) t;
SELECT payment_sync.create_sync('live', '{live,moving}', server => 'target', batch => true);
SQL
goes_on($source, 'live');
open my $script, '>', "$tmp/write.sql" or die;
print $script <<'SQL';
\set id random(1, 30000)
DELETE FROM live WHERE k = md5(:id::text);
INSERT INTO live VALUES (md5((:id + 7)::text)) ON CONFLICT DO NOTHING;
INSERT INTO live VALUES (md5(:id::text)) ON CONFLICT DO NOTHING;
SQL
close $script;
for my $round (1 .. 3)
{
	$target->safe_psql('postgres', <<'SQL');
INSERT INTO live SELECT 'extra' || i FROM generate_series(1, 500) i;
INSERT INTO live SELECT md5(i::text) FROM generate_series(20000, 30000) i ON CONFLICT DO NOTHING;
SQL
	my ($out, $err) = ('', '');
	my $bench = start [ 'pgbench', '-n', '-c', 2, '-t', 300, '-h', $source->host, '-p', $source->port,
		'-f', "$tmp/write.sql", 'postgres' ], '>', \$out, '2>', \$err;
	$source->safe_psql('postgres', "CALL payment_sync.batch_sync('live', mirror => true)");
	$bench->finish;
	like($err . $out, qr/number of transactions actually processed: 600/, 'pgbench wrote meanwhile');
	goes_on($source, 'live');
	same_rows($source, $target, 'SELECT * FROM live', "both sides are equal, round $round");
}

# --- a unique value that an extra row holds

$source->safe_psql('postgres', q(UPDATE moving SET u = 'new' WHERE id = 500));
goes_on($source, 'live');
$target->safe_psql('postgres', q(UPDATE moving SET u = 'old' WHERE id = 500; INSERT INTO moving VALUES (5000, 'new')));
$source->safe_psql('postgres', "CALL payment_sync.batch_sync('live', mirror => true)");
same_rows($source, $target, 'SELECT * FROM moving', 'extra rows go before their values come');

# --- rows that refer to rows which go

both($source, $target, <<'SQL');
CREATE TABLE account (id text PRIMARY KEY);
CREATE TABLE entry (id text PRIMARY KEY, account text NOT NULL REFERENCES account);
SQL
$target->safe_psql('postgres', 'GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON account, entry TO feeder');
$source->safe_psql('postgres', <<'SQL');
INSERT INTO account SELECT 'a' || i FROM generate_series(1, 10) i;
INSERT INTO entry SELECT 'e' || i, 'a' || 1 + i % 10 FROM generate_series(1, 100) i;
SELECT payment_sync.capture_table(t) FROM unnest('{account,entry}'::regclass[]) t;
SQL
$target->safe_psql('postgres', q(INSERT INTO account VALUES ('extra'); INSERT INTO entry VALUES ('extra', 'extra'), ('too', 'extra')));
$source->safe_psql('postgres',
	"SELECT payment_sync.create_sync('books', '{account,entry}', server => 'target', batch => true, mirror => true)");
goes_on($source, 'books');
same_rows($source, $target, $_, "mirrored: $_") for 'SELECT * FROM account', 'SELECT * FROM entry';

# --- kill -9 between the keys and the rows

$target->safe_psql('postgres', <<'SQL');
CREATE FUNCTION halt() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_advisory_xact_lock_shared(1);
	RETURN NULL;
END$$;
CREATE TRIGGER halt AFTER DELETE ON live FOR EACH STATEMENT EXECUTE FUNCTION halt();
INSERT INTO live VALUES ('extra');
SQL
my ($in, $out) = ("SELECT pg_advisory_lock(1);\n\\echo held\n", '');
my $holder = start [ 'psql', '-XAtq', '-d', $target->connstr('postgres') ], '<', \$in, '>', \$out, '2>&1',
  IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default);
$holder->pump until $out =~ /held/;
$source->safe_psql('postgres', "SELECT payment_sync.enable_sync('live', start => 'batch')");
$target->poll_query_until('postgres',
	"SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)")
  or die 'the mirror does not come to its deletes';
$source->stop('immediate');
$source->start;
is($source->safe_psql('postgres', "SELECT count(*) FROM payment_sync.batch WHERE mirror AND NOT swept AND relid = 'live'::regclass"),
	1, 'what was not committed at the target is to be done');
$in .= "\\q\n";
$holder->finish;
goes_on($source, 'live');
same_rows($source, $target, $_, "after a crash: $_") for 'SELECT * FROM live', 'SELECT * FROM moving';
is($source->safe_psql('postgres', q(SELECT count(*) FROM pg_ls_tmpdir())), 0, 'no temporary file is left');

# --- many tables: which one is next costs the same for each

my $tables = 80;
both($source, $target, <<"SQL");
DO \$\$BEGIN FOR i IN 1 .. $tables LOOP EXECUTE format('CREATE TABLE many_%s (id int PRIMARY KEY)', i); END LOOP; END\$\$;
SQL
$target->safe_psql('postgres', <<'SQL');
DO $$DECLARE r regclass; BEGIN
	FOR r IN SELECT oid FROM pg_class WHERE relname ~ '^many_\d+$' LOOP
		EXECUTE format('INSERT INTO %s VALUES (1); GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON %s TO feeder', r, r);
	END LOOP;
END$$;
SQL
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table(oid) FROM pg_class WHERE relname ~ '^many_\d+$';
SELECT payment_sync.create_sync('many', (SELECT array_agg(oid::regclass) FROM pg_class WHERE relname ~ '^many_\d+$'),
	server => 'target', batch => false);
SQL
my $looks = q(SELECT seq_scan + idx_scan FROM pg_stat_sys_tables WHERE relid = 'pg_constraint'::regclass);
my $before = $source->safe_psql('postgres', $looks);
$source->safe_psql('postgres', "CALL payment_sync.batch_sync('many', mirror => true)");
# each table is asked for twice, to remove its rows and to copy
$source->poll_query_until('postgres', "SELECT ($looks) >= $before + 2 * $tables")
  or die 'the session has not reported what it has read';
cmp_ok($source->safe_psql('postgres', $looks) - $before, '<', 20 * $tables,
	"$tables tables: foreign keys are looked for a few times for each");
is($target->safe_psql('postgres', join ' UNION ALL ', map { "SELECT id FROM many_$_" } 1 .. $tables),
	'', 'and all are mirrored');

done_testing();
