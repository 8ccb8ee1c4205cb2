# 330_first_copy.pl
#
# A first copy of tables with foreign keys, while they change: a change may
# refer to rows that are not copied yet.  The tables are named, and created,
# such that neither order is that of the foreign keys.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncTest;
use Test::More;

my $source = start_source('source', conf => "payment_sync.max_workers = 0\n");
my $target = start_target('target');
my @tables = qw(refunds payments merchants);
$_->safe_psql('postgres', <<'SQL') for $source, $target;
CREATE TABLE refunds (id int PRIMARY KEY, payment int NOT NULL);
CREATE TABLE payments (id int PRIMARY KEY, merchant int NOT NULL, note text);
CREATE TABLE merchants (id int PRIMARY KEY, name text);
ALTER TABLE payments ADD FOREIGN KEY (merchant) REFERENCES merchants;
ALTER TABLE refunds ADD FOREIGN KEY (payment) REFERENCES payments;
SQL
$source->safe_psql('postgres', <<'SQL');
INSERT INTO merchants SELECT i, 'old' FROM generate_series(1, 100) i;
INSERT INTO payments SELECT i, 1 + i % 100, repeat('x', 50) FROM generate_series(1, 100000) i;
INSERT INTO refunds SELECT i, i FROM generate_series(1, 1000) i;
SQL
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table(t) FROM unnest('{refunds,payments,merchants}'::regclass[]) t;
SELECT payment_sync.create_sync('ledger', '{refunds,payments,merchants}', server => 'target', batch => true);
INSERT INTO payments VALUES (200001, 14, 'new'), (200002, 15, 'new');
INSERT INTO refunds VALUES (200001, 99999), (200002, 200001);
UPDATE payments SET note = 'changed' WHERE id % 1000 = 0;
UPDATE merchants SET name = 'changed' WHERE id = 99;
DELETE FROM refunds WHERE id = 200002;
DELETE FROM payments WHERE id = 200002;
UPDATE payments SET id = 300000 WHERE id = 90000;
INSERT INTO merchants VALUES (101, 'new');
INSERT INTO payments VALUES (200003, 101, 'new');
SQL
$source->safe_psql('postgres', "CALL payment_sync.incremental_sync('ledger')");
same_rows($source, $target, "SELECT * FROM $_", "first copy: $_") for @tables;
is(stat($source, 'ledger', 'errors'), 0, 'without a failure');

# a table that joins later, with changes before its copy is read
$_->safe_psql('postgres', <<'SQL') for $source, $target;
CREATE TABLE disputes (id int PRIMARY KEY, refund int NOT NULL REFERENCES refunds);
SQL
$source->safe_psql('postgres', <<'SQL');
INSERT INTO disputes SELECT i, i FROM generate_series(1, 10) i;
SELECT payment_sync.capture_table('disputes');
SELECT payment_sync.alter_sync('ledger', add_tables => '{disputes}', batch => true);
INSERT INTO refunds VALUES (300001, 1);
INSERT INTO disputes VALUES (11, 300001);
UPDATE disputes SET refund = 300001 WHERE id = 5;
SQL
$source->safe_psql('postgres', "CALL payment_sync.incremental_sync('ledger')");
same_rows($source, $target, "SELECT * FROM $_", "another table: $_") for @tables, 'disputes';

# a first copy that is cancelled: what changes from then on is delivered
$_->safe_psql('postgres', 'CREATE TABLE notes (id int PRIMARY KEY, v text)') for $source, $target;
$source->safe_psql('postgres', <<'SQL');
INSERT INTO notes VALUES (1, 'before');
SELECT payment_sync.capture_table('notes');
SELECT payment_sync.alter_sync('ledger', add_tables => '{notes}', batch => true);
SELECT payment_sync.cancel_batch('ledger', 'notes');
INSERT INTO notes VALUES (2, 'after');
SQL
$source->safe_psql('postgres', "CALL payment_sync.incremental_sync('ledger')");
is($target->safe_psql('postgres', 'SELECT * FROM notes'), '2|after', 'a first copy cancelled');

# a later copy hides nothing: the target is in step all the while
$source->safe_psql('postgres', <<'SQL');
UPDATE merchants SET name = 'again';
CALL payment_sync.batch_sync('ledger');
SQL
same_rows($source, $target, "SELECT * FROM $_", "a later copy: $_") for @tables, 'disputes', 'notes';

done_testing();
