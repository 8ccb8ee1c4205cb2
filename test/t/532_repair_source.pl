# 532_repair_source.pl
#
# Mending the source: the target's rows are right.  What has changed since it
# was compared is left alone; what is refused does not keep the others back.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use IPC::Run;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = start_source('source');
my $target = start_target('target');
my $schema = <<'SQL';
CREATE TABLE pay (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, amount numeric(14,4), note varchar(10),
	cents numeric GENERATED ALWAYS AS (amount * 100) STORED, doc jsonb, at timestamptz, f float8, ok boolean, raw json);
CREATE TABLE currency (code char(3) COLLATE "C" PRIMARY KEY, name text UNIQUE);
CREATE TABLE rate (id int PRIMARY KEY, code char(3) REFERENCES currency, rate numeric CHECK (rate > 0));
CREATE TABLE part (region text, id int, v text, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
CREATE TABLE part_eu PARTITION OF part FOR VALUES IN ('eu');
SQL
$target->safe_psql('postgres', 'CREATE DATABASE second');
$source->safe_psql('postgres', $schema);
# the target has no constraints of its own, but for keys
(my $plain = $schema) =~ s/ REFERENCES currency|CHECK \(rate > 0\)| UNIQUE|varchar\(10\)/$& eq 'varchar(10)' ? 'text' : ''/ge;
$target->safe_psql($_, $plain) for ('postgres', 'second');
connect_target($source, $target);
connect_target($source, $target, server => 'second', db => 'second');
$source->safe_psql('postgres', <<'SQL');
INSERT INTO pay (amount, note, doc, at, f, ok, raw)
SELECT i, 'note ' || i, jsonb_build_object('i', i, 's', 'x''y'), '2026-05-01 12:00+02', i / 3.0, i % 2 = 0, '{"b": 1,  "a": 2}'
FROM generate_series(1, 20) i;
INSERT INTO currency VALUES ('EUR', 'euro'), ('USD', 'dollar');
INSERT INTO rate VALUES (1, 'EUR', 1), (2, 'USD', 1.1);
INSERT INTO part SELECT 'eu', i, 'v' FROM generate_series(1, 5) i;
SELECT payment_sync.capture_table(t) FROM unnest('{pay,currency,rate,part}'::regclass[]) t;
SELECT payment_sync.create_sync('first', '{pay,currency,rate,part}', server => 'target', batch => true);
SELECT payment_sync.create_sync('second', '{pay,currency,rate,part}', server => 'second', batch => true);
SQL
wait_delivered($source, $_) for ('first', 'second');

sub reconcile
{
	return $source->safe_psql('postgres',
		"SELECT sum(missing), sum(unexpected), sum(different), sum(in_flight) FROM payment_sync.reconcile('first')");
}
sub repair
{
	my ($arguments, $columns) = @_;
	return $source->safe_psql('postgres', <<SQL);
SELECT "table", key, kind, operation@{[ $columns // '' ]}
FROM payment_sync.repair('first', direction => 'source'$arguments) ORDER BY "table"::text COLLATE "C", key::text COLLATE "C"
SQL
}

is(reconcile(), '0|0|0|0', 'both sides agree');
$target->safe_psql('postgres', <<'SQL');
UPDATE pay SET amount = 99.5, note = 'it''s', doc = '{"k": [1, null, "two"]}', at = '2026-06-01 00:00+00', f = 'NaN', ok = NULL WHERE id = 1;
UPDATE pay SET raw = '{"other": "json"}', doc = '"text"' WHERE id = 2;
DELETE FROM pay WHERE id IN (3, 4);
INSERT INTO pay (id, amount, note, doc) OVERRIDING SYSTEM VALUE VALUES (1000, 7, NULL, NULL), (1001, 8, 'x', '{}');
INSERT INTO currency VALUES ('GBP', 'pound'), ('XEU', 'euro');
UPDATE currency SET name = 'US dollar' WHERE code = 'USD';
UPDATE part SET v = 'new' WHERE id = 1;
DELETE FROM part WHERE id = 2;
INSERT INTO part VALUES ('eu', 6, 'more');
SQL
is(reconcile(), '3|5|4|0', 'planted');
my $expected = join "\n",
	'currency|{"code": "GBP"}|unexpected|insert', 'currency|{"code": "USD"}|different|update',
	'currency|{"code": "XEU"}|unexpected|insert',
	'part|{"id": 1, "region": "eu"}|different|update', 'part|{"id": 2, "region": "eu"}|missing|delete',
	'part|{"id": 6, "region": "eu"}|unexpected|insert',
	'pay|{"id": 1000}|unexpected|insert', 'pay|{"id": 1001}|unexpected|insert', 'pay|{"id": 1}|different|update',
	'pay|{"id": 2}|different|update', 'pay|{"id": 3}|missing|delete', 'pay|{"id": 4}|missing|delete';
is(repair(', dry_run => true'), $expected, 'a dry run says what would be done');
is($source->safe_psql('postgres', 'SELECT count(*) FROM payment_sync.changes'), '0', 'and does nothing');
my $statement = $source->safe_psql('postgres', <<'SQL');
SELECT statement FROM payment_sync.repair('first', direction => 'source', dry_run => true) WHERE key = '{"id": 3}'
SQL
like($statement, qr/^DELETE FROM ONLY public\.pay t WHERE t\.id = '3'::bigint AND t\.amount = '3\.0000'::numeric AND/,
	'the statement names the row as it was found');

# what a dry run shows can be run by hand: id 4 is done so
$statement =~ s/'3'::bigint/'4'::bigint/;
$source->safe_psql('postgres', "DO \$\$ BEGIN PERFORM 1; END \$\$; " . $source->safe_psql('postgres', <<'SQL'));
SELECT statement FROM payment_sync.repair('first', direction => 'source', dry_run => true) WHERE key = '{"id": 4}'
SQL
is($source->safe_psql('postgres', 'SELECT count(*) FROM pay WHERE id = 4'), '0', 'a statement run by hand');

# ------------------------------------------------------- changes since then
# one change is committed before the repair, one is under way during it
$source->safe_psql('postgres', 'UPDATE part SET v = \'changed here\' WHERE id = 1');
my $session = IPC::Run::start([ 'psql', '-XAtq', '-h', $source->host, '-p', $source->port, 'postgres' ],
	'<', \my $in, '>', \my $out, '2>', \my $err);
$in = "BEGIN;\nUPDATE pay SET amount = amount + 1 WHERE id = 2;\n\\echo updated\n";
$session->pump until $out =~ /updated/;
my ($repaired, $repair_err) = ('', '');
my $repair = IPC::Run::start([ 'psql', '-XAtq', '-h', $source->host, '-p', $source->port, 'postgres', '-c', <<'SQL' ],
SELECT "table", key, operation, reason FROM payment_sync.repair('first', direction => 'source') ORDER BY 1, 2
SQL
	'<', \undef, '>', \$repaired, '2>', \$repair_err);
$source->poll_query_until('postgres',
	"SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ 'payment_sync.repair'")
  or die 'the repair does not wait for the row';
$in = "COMMIT;\n\\q\n";
$session->finish;
$repair->finish;
is($repair_err, '', 'no error');
like($repaired, qr/^pay\|\{"id": 2\}\|none\|the source's row has changed since$/m, 'a row that changed while it was waited for');
like($repaired, qr/^part\|\{"id": 1, "region": "eu"\}\|none\|the source's row has changed since$/m, 'one that had changed before');
like($repaired, qr/^pay\|\{"id": 4\}\|none\|the source's row has changed since$/m, 'one that is gone');
like($repaired, qr/^currency\|\{"code": "XEU"\}\|none\|the source has a row by now, or one with the same unique values$/m,
	'one that another unique key keeps out');
is(scalar(() = $repaired =~ /\|(?:insert|update|delete)\|$/mg), 8, 'the others are mended');
is($source->safe_psql('postgres', "SELECT amount, note, cents, doc, at = '2026-06-01 00:00+00', f, ok IS NULL FROM pay WHERE id = 1"),
	q{99.5000|it's|9950.0000|{"k": [1, null, "two"]}|t|NaN|t}, 'values of all types; generated columns follow');
is($source->safe_psql('postgres', 'SELECT string_agg(id::text, \',\' ORDER BY id) FROM pay WHERE id > 20'), '1000,1001',
	'identity columns take the given values');

# ------------------------------------------------ captured, and no new break
wait_delivered($source, $_) for ('first', 'second');
same_rows($source, $target, 'SELECT id, amount, note, cents, doc, at, f, ok FROM pay', 'another sync delivers it', targetdb => 'second');
same_rows($source, $target, 'SELECT * FROM part', 'partitions, too', targetdb => 'second');
is(reconcile(), '0|1|0|0', 'what is left is the row that cannot be inserted');
is($source->safe_psql('postgres', "SELECT key FROM payment_sync.discrepancies WHERE sync = 'first' AND state = 'open'"),
	'{"code": "XEU"}', 'that one');
is($source->safe_psql('postgres', "SELECT count(*) FILTER (WHERE state = 'repaired') >= 8 FROM payment_sync.discrepancies WHERE sync = 'first'"),
	't', 'the others are repaired');
# towards the target, in the same table of a char(n) key
is($source->safe_psql('postgres', "SELECT key, operation FROM payment_sync.repair('first')"), '{"code": "XEU"}|delete', 'a key of type char(n)');
wait_delivered($source, 'first');
is(reconcile(), '0|0|0|0', 'is mended at the target');
$target->safe_psql('postgres', "UPDATE currency SET name = 'other' WHERE code = 'GBP'");
is(reconcile(), '0|0|1|0', 'different');
is($source->safe_psql('postgres', "SELECT key, operation FROM payment_sync.repair('first')"), '{"code": "GBP"}|update', 'a row of such a key');
wait_delivered($source, 'first');
is(reconcile(), '0|0|0|0', 'is mended as well');

is($source->safe_psql('postgres', <<'SQL'), "2|2\n1|1", 'a range of such keys');
SELECT source_rows, matched FROM payment_sync.reconcile('first', 'currency', key_after => '{EUR}');
SELECT source_rows, matched FROM payment_sync.reconcile('first', 'currency', key_upto => '{EUR}');
SQL

# ---------------------------------------------------- constraints and triggers
$source->safe_psql('postgres', <<'SQL');
CREATE TABLE audit (what text);
CREATE FUNCTION on_rate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.rate = 13 THEN RAISE EXCEPTION 'unlucky rate'; END IF;
	INSERT INTO public.audit VALUES (TG_OP || ' ' || NEW.id || ' by ' || current_user);
	RETURN NEW;
END $$;
CREATE TRIGGER on_rate BEFORE INSERT OR UPDATE ON rate FOR EACH ROW EXECUTE FUNCTION on_rate();
SQL
$target->safe_psql('postgres', <<'SQL');
INSERT INTO rate VALUES (3, 'CHF', 1), (4, 'EUR', -1), (5, 'EUR', 13), (6, 'GBP', 0.9);
UPDATE rate SET rate = 1.2 WHERE id = 2;
DELETE FROM currency WHERE code = 'EUR';
SQL
$target->safe_psql('postgres', "UPDATE pay SET note = 'far longer than ten' WHERE id = 7");
is(reconcile(), '1|4|2|0', 'planted');
my ($ret, $o, $e) = $source->psql('postgres', "SELECT count(*) FROM payment_sync.repair('first', rel => 'pay', direction => 'source')");
like($e, qr/value too long/, 'other errors end the whole');
$target->safe_psql('postgres', "UPDATE pay SET note = 'note 7' WHERE id = 7");
is(repair(", rel => 'rate'", ', COALESCE(reason, \'\')'), join("\n",
	'rate|{"id": 2}|different|update|', 'rate|{"id": 3}|unexpected|none|insert or update on table "rate" violates foreign key constraint "rate_code_fkey"',
	'rate|{"id": 4}|unexpected|none|new row for relation "rate" violates check constraint "rate_rate_check"',
	'rate|{"id": 5}|unexpected|none|unlucky rate', 'rate|{"id": 6}|unexpected|insert|'),
	'what is refused says why, and the others go on');
like(repair(", rel => 'currency'", ', reason'), qr/^currency\|\{"code": "EUR"\}\|missing\|none\|update or delete on table "currency" violates foreign key/,
	'a row that others refer to');
is($source->safe_psql('postgres', "SELECT string_agg(what, ', ' ORDER BY what) FROM audit"),
	join(', ', map { "$_ by " . $source->safe_psql('postgres', 'SELECT current_user') } 'INSERT 6', 'UPDATE 2'),
	'triggers fire, in the caller\'s name');
# the missing parent comes, and then the child can be mended
$source->safe_psql('postgres', "INSERT INTO currency VALUES ('CHF', 'franc')");
like(repair(", rel => 'rate'"), qr/^rate\|\{"id": 3\}\|unexpected\|insert$/m, 'called again');

# ------------------------------------------- columns that the target computes
# are not compared, but a row that is recorded has them
$source->safe_psql('postgres', 'CREATE TABLE fee (id int PRIMARY KEY, amount numeric, fee numeric, note text)');
$target->safe_psql('postgres',
	'CREATE TABLE fee (id int PRIMARY KEY, amount numeric, fee numeric GENERATED ALWAYS AS (amount * 2) STORED, note text)');
$source->safe_psql('postgres', <<'SQL');
INSERT INTO fee SELECT i, i, 0, 'n' FROM generate_series(1, 4) i;
SELECT payment_sync.capture_table('fee');
SELECT payment_sync.create_sync('fee', '{fee}', server => 'target', batch => true);
SQL
wait_delivered($source, 'fee');
$target->safe_psql('postgres', <<'SQL');
UPDATE fee SET amount = 20, note = 'other' WHERE id = 2;
DELETE FROM fee WHERE id = 3;
INSERT INTO fee VALUES (5, 50, DEFAULT, 'more');
SQL
is($source->safe_psql('postgres', "SELECT missing, unexpected, different FROM payment_sync.reconcile('fee')"), '1|1|1',
	'a column that the target computes is not compared');
is($source->safe_psql('postgres', "SELECT key, columns, source, target FROM payment_sync.discrepancies WHERE sync = 'fee' AND kind = 'different'"),
	'{"id": 2}|{amount,note}|{"id": 2, "fee": 0, "note": "n", "amount": 2}|{"id": 2, "fee": 40, "note": "other", "amount": 20}',
	'but shown');
is($source->safe_psql('postgres', "SELECT operation FROM payment_sync.repair('fee', direction => 'source') ORDER BY 1"),
	"delete\ninsert\nupdate", 'and keeps no row from being mended');
is($source->safe_psql('postgres', 'SELECT * FROM fee ORDER BY id'), "1|1|0|n\n2|20|0|other\n4|4|0|n\n5|50|100|more",
	'an inserted row has what the target has computed');

# ---------------------------------------------------------------------- rights
$source->safe_psql('postgres', <<'SQL');
CREATE ROLE clerk;
CREATE ROLE boss;
GRANT boss TO clerk;
CREATE TABLE owned (id int PRIMARY KEY, v text);
ALTER TABLE owned OWNER TO boss;
GRANT USAGE ON FOREIGN SERVER target TO boss;
SQL
$source->safe_psql('postgres', "CREATE USER MAPPING FOR boss SERVER target OPTIONS (user '" .
	$target->safe_psql('postgres', 'SELECT current_user') . "', password_required 'false')");
$target->safe_psql('postgres', 'CREATE TABLE owned (id int PRIMARY KEY, v text)');
$source->safe_psql('postgres', <<'SQL');
SET ROLE boss;
SELECT payment_sync.capture_table('owned');
SELECT payment_sync.create_sync('owned', '{owned}', server => 'target');
SQL
$source->safe_psql('postgres', "INSERT INTO owned VALUES (1, 'a')");
wait_delivered($source, 'owned');
$target->safe_psql('postgres', "UPDATE owned SET v = 'b'");
$source->safe_psql('postgres', "SET ROLE boss; SELECT payment_sync.reconcile('owned')");
$source->safe_psql('postgres', 'REVOKE UPDATE ON owned FROM boss');
($ret, $o, $e) = $source->psql('postgres', "SET ROLE boss; SELECT count(*) FROM payment_sync.repair('owned', direction => 'source')");
like($e, qr/permission denied for table owned/, 'the caller needs the privilege');
is($source->safe_psql('postgres', "SELECT operation FROM payment_sync.repair('owned', direction => 'source')"), 'update',
	'who has it, may');
is($source->safe_psql('postgres', 'SELECT v FROM owned'), 'b', 'and does');
($ret, $o, $e) = $source->psql('postgres', "SELECT payment_sync.repair('first', direction => 'sideways')");
like($e, qr/invalid direction "sideways"/, 'an invalid direction');

done_testing();
