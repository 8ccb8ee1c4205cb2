# 130_decoding.pl
#
# Native logical replication of the same database: chunks of the change log are
# not decoded, so a publication FOR ALL TABLES carries each change once.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncTest;
use Test::More;

my $source = start_source('source', conf => "wal_level = logical\n");
$source->safe_psql('postgres', <<'SQL');
CREATE EXTENSION payment_sync;
CREATE TABLE pay (id int PRIMARY KEY, note text);
SELECT payment_sync.capture_table('pay');
INSERT INTO pay VALUES (0, 'records the shape');
CREATE PUBLICATION everything FOR ALL TABLES;
SELECT pg_create_logical_replication_slot('decoder', 'pgoutput');
INSERT INTO pay SELECT i, repeat('x', 100) FROM generate_series(1, 500) i;
INSERT INTO pay VALUES (501, repeat('large', 10000));
SQL

# pgoutput's messages: the first byte is I for an insert
my $inserts = $source->safe_psql('postgres', <<'SQL');
SELECT count(*)
FROM pg_logical_slot_get_binary_changes('decoder', NULL, NULL,
	'proto_version', '1', 'publication_names', 'everything')
WHERE get_byte(data, 0) = ascii('I')
SQL
is($inserts, 501, 'each row is decoded once');
is($source->safe_psql('postgres', 'SELECT count(*) FROM payment_sync.changes'),
	502, 'and was captured');

# what was captured is replayed after a crash all the same
$source->stop('immediate');
$source->start;
is($source->safe_psql('postgres', 'SELECT count(*) FROM payment_sync.changes'),
	502, 'and is there after a crash');

done_testing();
