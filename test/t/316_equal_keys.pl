# 316_equal_keys.pl
#
# Keys that are equal to an index though their bytes differ: 1 and 1.0.  In a
# table that a foreign key points to, deletes come after the rows; they must not
# take away the rows whose keys have changed into an equal one.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncTest;
use Test::More;

my $source = start_source('source');
my $target = start_target('target');
my $schema = <<'SQL';
CREATE TABLE rate (id numeric PRIMARY KEY, note text);
CREATE TABLE use_of_rate (id int PRIMARY KEY, rate numeric REFERENCES rate);
SQL
$source->safe_psql('postgres', $schema);
$target->safe_psql('postgres', $schema);
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('rate'), payment_sync.capture_table('use_of_rate');
SELECT payment_sync.create_sync('rates', '{rate,use_of_rate}', server => 'target');
INSERT INTO rate SELECT i, 'old' FROM generate_series(1, 5000) i;
INSERT INTO use_of_rate VALUES (1, 5000);
SQL
wait_delivered($source, 'rates');

# as text, since 1 and 1.0 are equal otherwise
my $rows = 'SELECT id::text, note FROM rate';
same_rows($source, $target, $rows, 'before');

$source->safe_psql('postgres',
	"UPDATE rate SET id = round(id, 1), note = 'new' WHERE id < 5000");
wait_delivered($source, 'rates');
same_rows($source, $target, $rows, 'all keys change into equal ones');

# a second time, when rows no longer go straight into the table
$source->safe_psql('postgres', <<'SQL');
BEGIN;
UPDATE rate SET id = round(id, 2), note = 'newer' WHERE id < 5000;
INSERT INTO rate SELECT i, 'more' FROM generate_series(6001, 8000) i;
DELETE FROM rate WHERE id BETWEEN 100 AND 200;
COMMIT;
SQL
wait_delivered($source, 'rates');
same_rows($source, $target, $rows, 'among other changes');

$source->safe_psql('postgres',
	"UPDATE rate SET id = id + 10000 WHERE id < 3000; DELETE FROM rate WHERE id BETWEEN 3000 AND 4500");
wait_delivered($source, 'rates');
same_rows($source, $target, $rows, 'and keys that are really others');
is($source->safe_psql('postgres', "SELECT errors FROM payment_sync.stat_sync"),
	0, 'without an error on the way');

done_testing();
