# 119_large_window.pl
#
# A window with more chunks than a reader keeps references to (twice
# PSYNC_REFS_MAX, src/log/reader.h) is read in several passes over the log: each
# change comes once, in order of position, and in the order of its transaction
# (P2, P4).  Two transactions that run at the same time make the chunks, one for
# each change: a chunk has one origin, and each change has another than the one
# before.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncSession;
use PaymentSyncTest;
use Test::More;

my $changes = 200_000;			# of each of the two

my $node = start_source('source', conf => "payment_sync.max_workers = 1\n");
$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION payment_sync;
CREATE TABLE pay (who int, id int, PRIMARY KEY (who, id));
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('pulled', '{pay}');
CREATE PROCEDURE fill(who int, n int) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. n LOOP
		PERFORM set_config('payment_sync.origin', (i % 2)::text, true);
		INSERT INTO pay VALUES (who, i);
	END LOOP;
END
$$;
SQL

my @writers = map { PaymentSyncSession->new($node, 'postgres') } 1 .. 2;
$writers[$_]->send("CALL fill($_, $changes)") for 0 .. 1;
$_->wait for @writers;
$_->quit for @writers;
my $chunks = $node->safe_psql('postgres',
	'SELECT sum(n) FROM (SELECT count(*) AS n FROM payment_sync.log_0 UNION ALL SELECT count(*) FROM payment_sync.log_1'
	  . ' UNION ALL SELECT count(*) FROM payment_sync.log_2) l');
cmp_ok($chunks, '>', 2 * 192 * 1024, "$chunks chunks are more than fit");

is($node->safe_psql('postgres', <<'SQL'), "$changes|$changes|0|0", 'each change comes once, in order');
CREATE TEMP TABLE fetched AS
	SELECT position, (key ->> 'who')::int AS who, (key ->> 'id')::int AS id, ordinality AS n
	FROM payment_sync.fetch_changes('pulled', 1000000) WITH ORDINALITY;
SELECT count(*) FILTER (WHERE who = 0), count(*) FILTER (WHERE who = 1),
	count(*) - count(DISTINCT position), count(*) FILTER (WHERE id <> nth)
FROM (SELECT who, id, position, row_number() OVER (PARTITION BY who ORDER BY n) AS nth FROM fetched) f;
SQL

done_testing();
