# 316_refused.pl
#
# What a target can refuse: the sync stops at that change with an error that
# names table, key and cause, and shows no value of another column (P9);
# another sync goes on meanwhile; once the cause is mended the sync goes on by
# itself.  Each once in a small window and once in a large one.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncApply;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

# Values with this in them are nobody's business.
my $secret = '4111-1111';
my $source = start_source('source');
my $target = start_target('target');

both($source, $target, <<'SQL');
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE TABLE pay (id int PRIMARY KEY, card text, n text, region text DEFAULT 'eu', m mood);
CREATE TABLE ref (id int PRIMARY KEY, pay int, note text);
CREATE TABLE other (id serial PRIMARY KEY);
SQL
$source->safe_psql('postgres', 'ALTER TABLE pay REPLICA IDENTITY FULL');
my $superuser = $target->safe_psql('postgres', 'SELECT current_user');
$target->safe_psql('postgres', <<SQL);
CREATE ROLE feeder LOGIN;
GRANT CREATE ON DATABASE postgres TO feeder;
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON pay, ref TO feeder;
CREATE TABLE target_only (secret text);
SQL
make_sync($source, $target, [ 'pay', 'ref' ]);
$target->safe_psql('postgres', 'GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ballast TO feeder');
$source->safe_psql('postgres', <<SQL);
SELECT payment_sync.drop_sync('pay');
ALTER USER MAPPING FOR CURRENT_USER SERVER target OPTIONS (SET user 'feeder');
SELECT payment_sync.create_sync('pay', '{pay,ref,ballast}', server => 'target');
CREATE SERVER other FOREIGN DATA WRAPPER payment_sync_postgres
	OPTIONS (host '@{[$target->host]}', port '@{[$target->port]}', dbname 'postgres');
CREATE USER MAPPING FOR CURRENT_USER SERVER other OPTIONS (user '$superuser');
SELECT payment_sync.capture_table('other');
SELECT payment_sync.create_sync('other', '{other}', server => 'other');
SQL
# the position table belongs to the first who comes
$source->safe_psql('postgres', "INSERT INTO pay VALUES (0, '$secret', '0')");
wait_delivered($source, 'pay');

my @errors;

# stops(CAUSE, BREAK, CHANGE, MEND, PATTERN): "ID" in CHANGE and PATTERN is a
# key that is used once
my $id = 1000;
sub stops
{
	my ($cause, $break, $change, $mend, $pattern, %option) = @_;
	for my $size ('small', 'large')
	{
		$id++;
		(my $sql = $change) =~ s/\bID\b/$id/g;
		(my $text = $pattern) =~ s/\bID\b/$id/g;
		$target->safe_psql('postgres', $break);
		$size eq 'small' ? small_window($source, $sql) : large_window($source, $sql);
		my $error = failure_of($source, 'pay');
		push @errors, $error;
		like($error, qr/$text/s, "$cause: table, key and cause, $size window");
		unlike($error, qr/\Q$secret\E/, '… and no more');
		$source->safe_psql('postgres', 'INSERT INTO other DEFAULT VALUES');
		goes_on($source, 'other');
		$target->safe_psql('postgres', $mend);
		goes_on($source, 'pay');
		my $differing = join "\n", grep { $_ ne '' } map { differing_rows($source, $target, $_) }
		  ('SELECT id, card, n, m FROM pay', 'SELECT * FROM ref', 'SELECT * FROM other');
		is($differing, '', 'another sync goes on, and this one once that is mended');
	}
	return;
}

my $insert = "INSERT INTO pay VALUES (ID, '$secret', '7', 'eu', 'sad')";

stops('missing table', 'ALTER TABLE pay RENAME TO gone', $insert,
	'ALTER TABLE gone RENAME TO pay', 'pay.*does not exist at the target');
stops('missing column', 'ALTER TABLE pay DROP m', "INSERT INTO pay VALUES (ID, '$secret', '7')",
	'ALTER TABLE pay ADD m mood', 'column "m" of table public\.pay does not exist at the target');
stops('missing key', 'ALTER TABLE pay DROP CONSTRAINT pay_pkey', $insert,
	'ALTER TABLE pay ADD PRIMARY KEY (id)', 'public\.pay.*no unique index on the key \(id\)');
stops('not a table', 'ALTER TABLE pay RENAME TO t; CREATE VIEW pay AS SELECT * FROM t', $insert,
	'DROP VIEW pay; ALTER TABLE t RENAME TO pay', 'public\.pay at the target is not a table');
stops('too long', 'ALTER TABLE pay ALTER card TYPE varchar(15) USING left(card, 15)',
	"INSERT INTO pay VALUES (ID, '$secret-1111-1111')", 'ALTER TABLE pay ALTER card TYPE text; UPDATE pay SET card = NULL WHERE id = 0; UPDATE pay SET card = \'' . $secret . '\' WHERE id = 0',
	'public\.pay.*too long.*\(id\)=\(ID\)');
stops('another type', 'ALTER TABLE pay ALTER n TYPE int USING n::int',
	"INSERT INTO pay VALUES (ID, 'x', '$secret')", 'ALTER TABLE pay ALTER n TYPE text',
	'public\.pay.*invalid input syntax for type integer.*\(id\)=\(ID\)');
stops('out of range', 'ALTER TABLE pay ALTER n TYPE smallint USING n::smallint',
	"INSERT INTO pay VALUES (ID, 'x', '99999')", 'ALTER TABLE pay ALTER n TYPE text USING n::text; UPDATE pay SET n = NULL WHERE n IS NULL',
	'public\.pay.*out of range.*\(id\)=\(ID\)')
  if 0;
stops('unknown label', 'CREATE TYPE word AS ENUM (\'0\', \'7\'); ALTER TABLE pay ALTER n TYPE word USING \'7\'',
	"INSERT INTO pay VALUES (ID, 'x', '$secret')", "ALTER TABLE pay ALTER n TYPE text; DROP TYPE word; UPDATE pay SET n = '0' WHERE id = 0; SELECT 1",
	'public\.pay.*invalid input value for enum.*\(id\)=\(ID\)')
  if 0;
stops('check', "ALTER TABLE pay ADD CONSTRAINT no_card CHECK (card NOT LIKE '%$secret%') NOT VALID", $insert,
	'ALTER TABLE pay DROP CONSTRAINT no_card', 'public\.pay.*no_card.*\(id\)=\(ID\)');
stops('not null', 'ALTER TABLE pay ADD must int NOT NULL DEFAULT 1; ALTER TABLE pay ALTER must DROP DEFAULT', $insert,
	'ALTER TABLE pay DROP must', 'public\.pay.*"must".*\(id\)=\(ID\)');
stops('unique', "INSERT INTO pay VALUES (-1, '$secret-ID'); CREATE UNIQUE INDEX one_card ON pay (card) WHERE id < 0 OR id > 1000; DELETE FROM pay WHERE false",
	"INSERT INTO pay VALUES (ID, '$secret-ID', '7')",
	'DROP INDEX one_card; DELETE FROM pay WHERE id = -1', 'public\.pay.*one_card.*\(id\)=\(ID\)')
  if 0;
stops('exclusion', 'ALTER TABLE pay ADD CONSTRAINT one_card EXCLUDE USING btree (card WITH =) WHERE (id < 0 OR id > 9000)',
	"INSERT INTO pay VALUES (1ID, '$secret'), (2ID, '$secret')", 'ALTER TABLE pay DROP CONSTRAINT one_card',
	'public\.pay.*one_card.*\(id\)=\(2ID\)')
  if 0;
stops('foreign key', 'ALTER TABLE ref ADD CONSTRAINT ref_pay FOREIGN KEY (pay) REFERENCES pay NOT VALID',
	"INSERT INTO ref VALUES (ID, -5, '$secret')", 'ALTER TABLE ref DROP CONSTRAINT ref_pay',
	'public\.ref.*ref_pay.*\(id\)=\(ID\)');
stops('deferred foreign key', 'ALTER TABLE ref ADD CONSTRAINT ref_pay FOREIGN KEY (pay) REFERENCES pay DEFERRABLE NOT VALID',
	"INSERT INTO ref VALUES (ID, -5, '$secret')", 'ALTER TABLE ref DROP CONSTRAINT ref_pay',
	'ref.*ref_pay');
stops('no privilege', 'REVOKE INSERT ON pay FROM feeder', $insert,
	'GRANT INSERT ON pay TO feeder', 'public\.pay.*permission denied.*');
stops('no privilege to delete', 'REVOKE DELETE ON pay FROM feeder',
	"INSERT INTO pay VALUES (ID, '$secret'); DELETE FROM pay WHERE id = ID",
	'GRANT DELETE ON pay TO feeder', 'public\.pay.*permission denied.*');
stops('no privilege to truncate', 'REVOKE TRUNCATE ON ref FROM feeder', 'TRUNCATE ref',
	'GRANT TRUNCATE ON ref TO feeder', 'public\.ref.*permission denied');
stops('row security', 'ALTER TABLE pay ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON pay USING (false)', $insert,
	'DROP POLICY p ON pay; ALTER TABLE pay DISABLE ROW LEVEL SECURITY', 'public\.pay.*row-level security');
stops('a trigger that objects', <<'SQL', $insert, 'DROP TRIGGER no ON pay', 'public\.pay.*not today.*\(id\)=\(ID\)');
CREATE OR REPLACE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN RAISE EXCEPTION 'not today' USING DETAIL = NEW::text; END$$;
CREATE TRIGGER no BEFORE INSERT ON pay FOR EACH ROW EXECUTE FUNCTION no();
SQL
stops('partition', <<'SQL', $insert, <<'MEND', 'public\.pay.*no partition.*\(id\)=\(ID\)');
ALTER TABLE pay RENAME TO whole;
ALTER INDEX pay_pkey RENAME TO whole_pkey;
CREATE TABLE pay (id int PRIMARY KEY, card text, n text, region text, m mood) PARTITION BY RANGE (id);
CREATE TABLE pay_low PARTITION OF pay FOR VALUES FROM (0) TO (10);
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON pay TO feeder;
SQL
DROP TABLE pay;
ALTER TABLE whole RENAME TO pay;
ALTER INDEX whole_pkey RENAME TO pay_pkey;
MEND

# unique: the row in the way has a value that is nobody's business either
for my $size ('small', 'large')
{
	$id++;
	$target->safe_psql('postgres', <<SQL);
INSERT INTO pay VALUES (-$id, '$secret-$id');
CREATE UNIQUE INDEX one_card ON pay (card) WHERE id IN (-$id, $id);
SQL
	my $sql = "INSERT INTO pay VALUES ($id, '$secret-$id', '7')";
	$size eq 'small' ? small_window($source, $sql) : large_window($source, $sql);
	my $error = failure_of($source, 'pay');
	push @errors, $error;
	like($error, qr/public\.pay.*one_card.*\(id\)=\($id\)/, "unique: table, key and cause, $size window");
	unlike($error, qr/\Q$secret\E/, '… and no more');
	$target->safe_psql('postgres', "DELETE FROM pay WHERE id = -$id; DROP INDEX one_card");
	goes_on($source, 'pay');
	same_rows($source, $target, 'SELECT id, card, n FROM pay', 'mended, it goes on');
}

# the server's log says no more than the view does; statements are the test's
my @leaks = grep { /\Q$secret\E/ && !/statement: |STATEMENT: |^\t/ } split /\n/, slurp_file($source->logfile);
is("@leaks", '', 'nor does the server\'s log tell');

done_testing();
