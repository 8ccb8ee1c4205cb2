# 320_refused.pl
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
my $secret = '4111-11111';
my $source = start_source('source', conf => "payment_sync.retry_delay_max = '100ms'\n");
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
make_sync($source, $target, [ 'pay', 'ref' ], user => 'feeder');
$target->safe_psql('postgres', 'GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ballast TO feeder');
$source->safe_psql('postgres', <<SQL);
CREATE SERVER other FOREIGN DATA WRAPPER payment_sync_postgres
	OPTIONS (host '@{[$target->host]}', port '@{[$target->port]}', dbname 'postgres');
CREATE USER MAPPING FOR CURRENT_USER SERVER other OPTIONS (user '$superuser');
SELECT payment_sync.capture_table('other');
SELECT payment_sync.create_sync('other', '{other}', server => 'other');
SQL
# the position table belongs to the first who comes
$source->safe_psql('postgres', "INSERT INTO pay VALUES (0, '$secret', '0')");
wait_delivered($source, 'pay');

# stops(CAUSE, BREAK, CHANGE, MEND, PATTERN, [AFTER]): "ID" in CHANGE and PATTERN is a
# key that is used once; AFTER is run at the source
my $id = 1000;
sub stops
{
	my ($cause, $break, $change, $mend, $pattern, $after) = @_;
	for my $size ('small', 'large')
	{
		$id++;
		(my $sql = $change) =~ s/\bID\b/$id/g;
		(my $text = $pattern) =~ s/\bID\b/$id/g;
		$target->safe_psql('postgres', $break);
		$size eq 'small' ? small_window($source, $sql) : large_window($source, $sql);
		my $error = failure_like($source, 'pay', qr/$text/s);
		like($error, qr/$text/s, "$cause: table, key and cause, $size window");
		unlike($error, qr/\Q$secret\E/, '… and no more');
		my $others = $source->safe_psql('postgres',
			'INSERT INTO other DEFAULT VALUES; SELECT count(*) FROM other');
		$target->poll_query_until('postgres', "SELECT count(*) = $others FROM other")
		  or die 'the other sync does not go on';
		$target->safe_psql('postgres', $mend);
		mended($source, 'pay');
		my $differing = join "\n", grep { $_ ne '' } map { differing_rows($source, $target, $_) }
		  ('SELECT id, card, n, m FROM pay', 'SELECT * FROM ref', 'SELECT * FROM other');
		is($differing, '', 'another sync goes on, and this one once that is mended');
		$source->safe_psql('postgres', $after) if $after;
	}
	return;
}

my $insert = "INSERT INTO pay VALUES (ID, '$secret', '7', 'eu', 'sad')";

# a session that is open hears it from the target, a new one finds it out
stops('missing table', 'ALTER TABLE pay RENAME TO gone', $insert,
	'ALTER TABLE gone RENAME TO pay', 'public\.pay.*does not exist');
stops('missing column', 'ALTER TABLE pay RENAME m TO gone', $insert,
	'ALTER TABLE pay RENAME gone TO m', '(column "m".*pay|pay.*column "m").*does not exist');
my $hang_up = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = 'feeder'";
stops('missing table, new session', "ALTER TABLE pay RENAME TO gone; $hang_up", $insert,
	'ALTER TABLE gone RENAME TO pay', 'public\.pay. does not exist at the target');
stops('missing column, new session', "ALTER TABLE pay RENAME m TO gone; $hang_up", $insert,
	'ALTER TABLE pay RENAME gone TO m', 'column "m" of table public\.pay does not exist at the target');
stops('missing key', "ALTER TABLE pay DROP CONSTRAINT pay_pkey; $hang_up", $insert,
	'ALTER TABLE pay ADD PRIMARY KEY (id)', 'public\.pay.*no unique index on the key \(id\)');
stops('not a table', 'ALTER TABLE pay RENAME TO t; CREATE VIEW pay AS SELECT * FROM t; ' . $hang_up, $insert,
	'DROP VIEW pay; ALTER TABLE t RENAME TO pay', 'public\.pay.*at the target is not a table');
my $reset = "UPDATE pay SET n = '7' WHERE n <> '7'";
stops('too long', 'ALTER TABLE pay ALTER n TYPE varchar(8)',
	"INSERT INTO pay VALUES (ID, 'x', '$secret')", 'ALTER TABLE pay ALTER n TYPE text',
	'public\.pay.*too long.*\(id\)=\(ID\)', $reset);
stops('another type', 'ALTER TABLE pay ALTER n TYPE int USING n::int',
	"INSERT INTO pay VALUES (ID, 'x', '$secret')", 'ALTER TABLE pay ALTER n TYPE text',
	'public\.pay.*invalid input syntax for type integer.*\(id\)=\(ID\)', $reset);
stops('unknown label', "CREATE TYPE word AS ENUM ('7', '0'); ALTER TABLE pay ALTER n TYPE word USING n::word",
	"INSERT INTO pay VALUES (ID, 'x', '$secret')", 'ALTER TABLE pay ALTER n TYPE text; DROP TYPE word',
	'public\.pay.*invalid input value for enum.*\(id\)=\(ID\)', $reset);
stops('out of range', 'ALTER TABLE pay ALTER n TYPE smallint USING n::smallint',
	"INSERT INTO pay VALUES (ID, 'x', '41111111')", 'ALTER TABLE pay ALTER n TYPE text',
	'public\.pay.*out of range.*\(id\)=\(ID\)', $reset);
stops('check', "ALTER TABLE pay ADD CONSTRAINT no_card CHECK (card NOT LIKE '%$secret%') NOT VALID", $insert,
	'ALTER TABLE pay DROP CONSTRAINT no_card', 'public\.pay.*no_card.*\(id\)=\(ID\)');
stops('not null', 'ALTER TABLE pay ADD must int NOT NULL DEFAULT 1; ALTER TABLE pay ALTER must DROP DEFAULT', $insert,
	'ALTER TABLE pay DROP must', 'public\.pay.*"must".*\(id\)=\(ID\)');
stops('foreign key', 'ALTER TABLE ref ADD CONSTRAINT ref_pay FOREIGN KEY (pay) REFERENCES pay NOT VALID',
	"INSERT INTO ref VALUES (ID, -5, '$secret')", 'ALTER TABLE ref DROP CONSTRAINT ref_pay',
	'public\.ref.*ref_pay.*\(id\)=\(ID\)');
stops('deferred foreign key', 'ALTER TABLE ref ADD CONSTRAINT ref_pay FOREIGN KEY (pay) REFERENCES pay DEFERRABLE INITIALLY DEFERRED NOT VALID',
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
	my $error = failure_like($source, 'pay', qr/one_card/);
	like($error, qr/public\.pay.*one_card.*\(id\)=\($id\)/, "unique: table, key and cause, $size window");
	unlike($error, qr/\Q$secret\E/, '… and no more');
	$target->safe_psql('postgres', "DELETE FROM pay WHERE id = -$id; DROP INDEX one_card");
	mended($source, 'pay');
	same_rows($source, $target, 'SELECT id, card, n FROM pay', 'mended, it goes on');
}

# the server's log says no more than the view does; statements are the test's
my @leaks = grep { /\Q$secret\E/ && !/statement: |STATEMENT: |^\t/ } split /\n/, slurp_file($source->logfile);
is("@leaks", '', 'nor does the server\'s log tell');

done_testing();
