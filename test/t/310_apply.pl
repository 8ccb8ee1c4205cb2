# 310_apply.pl
#
# What reaches the target, and what happens when a change cannot be applied:
# the sync stops at it with an error that names table, key and cause, another
# sync goes on, and once the cause is mended the first goes on by itself.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncTest;
use Test::More;

my $source = start_source('source');
my $target = start_target('target');
my $schema = <<'SQL';
CREATE TABLE pay (id bigint PRIMARY KEY, merchant text, amount numeric(12,2),
	at timestamptz DEFAULT now(), u uuid DEFAULT gen_random_uuid());
CREATE TABLE other (id int PRIMARY KEY, v text);
SQL
$source->safe_psql('postgres', $schema);
$target->safe_psql('postgres', $schema);
$source->safe_psql('postgres',
	"INSERT INTO pay SELECT i, 'before', i FROM generate_series(1, 30000) i");
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.capture_table('other');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target', batch => true);
SELECT payment_sync.create_sync('other', '{other}', server => 'target');
SQL

wait_delivered($source, 'pay');
same_rows($source, $target, 'SELECT * FROM pay', 'initial batch');

$source->safe_psql('postgres', $_) for (
	"INSERT INTO pay VALUES (100001, 'one', 1.10)",
	"UPDATE pay SET merchant = 'two' WHERE id = 2",
	"UPDATE pay SET id = 100003 WHERE id = 3",
	"DELETE FROM pay WHERE id = 4",
	"BEGIN; INSERT INTO pay VALUES (100004); DELETE FROM pay WHERE id = 100004; COMMIT",
	"BEGIN; DELETE FROM pay WHERE id = 5; INSERT INTO pay VALUES (5, 'again'); COMMIT");
wait_delivered($source, 'pay');
same_rows($source, $target, 'SELECT * FROM pay', 'small windows');

$source->safe_psql('postgres', <<'SQL');
BEGIN;
INSERT INTO pay SELECT i, 'large', i FROM generate_series(200001, 230000) i;
UPDATE pay SET amount = amount + 1 WHERE id % 2 = 0;
DELETE FROM pay WHERE id BETWEEN 10000 AND 15000;
UPDATE pay SET id = id + 1000000 WHERE id BETWEEN 16000 AND 16500;
COMMIT;
SQL
wait_delivered($source, 'pay');
same_rows($source, $target, 'SELECT * FROM pay', 'a large window');

$source->safe_psql('postgres',
	"BEGIN; TRUNCATE pay; INSERT INTO pay VALUES (1, 'fresh', 1); COMMIT");
wait_delivered($source, 'pay');
same_rows($source, $target, 'SELECT * FROM pay', 'TRUNCATE');

# stops(CAUSE, BREAK, CHANGE, MEND, PATTERN): BREAK and MEND run at the target
sub stops
{
	my ($cause, $break, $change, $mend, $pattern) = @_;
	$target->safe_psql('postgres', $break);
	$source->safe_psql('postgres', $change);
	$source->poll_query_until('postgres',
		"SELECT failures > 0 FROM payment_sync.stat_sync WHERE name = 'pay'")
	  or die "no failure for: $cause";
	like(stat($source, 'pay', "last_error || ' ' || COALESCE(last_error_detail, '')"),
		$pattern, "$cause: the error names it");
	$source->safe_psql('postgres',
		"INSERT INTO other SELECT COALESCE(max(id), 0) + 1, '$cause' FROM other");
	wait_delivered($source, 'other');
	same_rows($source, $target, 'SELECT * FROM other', "$cause: another sync goes on");
	$target->safe_psql('postgres', $mend);
	wait_delivered($source, 'pay');
	same_rows($source, $target, 'SELECT id, merchant, amount FROM pay',
		"$cause: mended, it goes on");
	$source->poll_query_until('postgres',
		"SELECT failures = 0 FROM payment_sync.stat_sync WHERE name = 'pay'");
}

stops('missing column',
	'ALTER TABLE pay DROP COLUMN u',
	"INSERT INTO pay VALUES (10, 'no column', 1)",
	'ALTER TABLE pay ADD COLUMN u uuid',
	qr/pay.*"u"|"u".*pay/s);
stops('constraint',
	'ALTER TABLE pay ADD CONSTRAINT cheap CHECK (amount < 100)',
	"INSERT INTO pay VALUES (11, 'dear', 1000)",
	'ALTER TABLE pay DROP CONSTRAINT cheap',
	qr/pay.*cheap.*11/s);
stops('type',
	'ALTER TABLE pay ALTER merchant TYPE varchar(10)',
	"INSERT INTO pay VALUES (12, 'much too long', 1)",
	'ALTER TABLE pay ALTER merchant TYPE text',
	qr/pay.*12/s);
stops('missing table',
	'ALTER TABLE pay RENAME TO elsewhere',
	"INSERT INTO pay VALUES (13, 'nowhere', 1)",
	'ALTER TABLE elsewhere RENAME TO pay',
	qr/pay/);
stops('constraint in a large window',
	'ALTER TABLE pay ADD CONSTRAINT cheap CHECK (amount < 2000)',
	"INSERT INTO pay SELECT i, 'x', CASE i WHEN 52345 THEN 5000 ELSE 1 END FROM generate_series(50001, 55000) i",
	'ALTER TABLE pay DROP CONSTRAINT cheap',
	qr/pay.*cheap.*52345/s);

# the target goes away and comes back
$target->stop('immediate');
$source->safe_psql('postgres', "INSERT INTO pay VALUES (14, 'alone', 1)");
$source->poll_query_until('postgres',
	"SELECT failures > 0 AND next_retry IS NOT NULL FROM payment_sync.stat_sync WHERE name = 'pay'")
  or die 'no failure';
pass('a target that is down is an error with a next retry');
$target->start;
wait_delivered($source, 'pay');
same_rows($source, $target, 'SELECT id, merchant, amount FROM pay', 'after its return');

# a permission
$target->safe_psql('postgres', <<'SQL');
CREATE ROLE feeder LOGIN;
GRANT CREATE ON DATABASE postgres TO feeder;
GRANT SELECT, INSERT, UPDATE ON other TO feeder;
SQL
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.drop_sync('other');
ALTER USER MAPPING FOR CURRENT_USER SERVER target OPTIONS (SET user 'feeder');
SELECT payment_sync.drop_sync('pay');
SQL
$target->safe_psql('postgres', 'DROP SCHEMA payment_sync_target CASCADE');
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.create_sync('other', '{other}', server => 'target');
DELETE FROM other WHERE id = 1;
SQL
$source->poll_query_until('postgres',
	"SELECT failures > 0 FROM payment_sync.stat_sync WHERE name = 'other'")
  or die 'no failure';
like(stat($source, 'other', 'last_error'), qr/other.*permission denied|permission denied.*other/s,
	'a missing permission is named');
$target->safe_psql('postgres', 'GRANT DELETE ON other TO feeder');
wait_delivered($source, 'other');
same_rows($source, $target, 'SELECT * FROM other', 'granted, it goes on');

done_testing();
