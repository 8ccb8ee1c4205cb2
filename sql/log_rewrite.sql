-- the change log's tables rewritten or shrunk behind the back of its readers
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
RESET client_min_messages;
CREATE TABLE rewrite_payment (id int PRIMARY KEY, note text);
SELECT payment_sync.capture_table('rewrite_payment');
SELECT payment_sync.create_sync('rewrite', '{rewrite_payment}');

-- rolled-back chunks in front, so that a rewritten table has fewer pages
BEGIN;
INSERT INTO rewrite_payment SELECT i, repeat('x', 500) FROM generate_series(1, 3000) i;
ROLLBACK;
INSERT INTO rewrite_payment SELECT i, 'one ' || i FROM generate_series(1, 1000) i;

-- a consumer that goes on with its open window after VACUUM FULL
SELECT count(*), min((key->>'id')::int), max((key->>'id')::int), max(position) AS last
FROM payment_sync.fetch_changes('rewrite', 300) \gset
\echo :count :min :max
SELECT payment_sync.ack_changes('rewrite', :'last');
VACUUM FULL payment_sync.log_0, payment_sync.log_1, payment_sync.log_2;
\set VERBOSITY sqlstate
SELECT count(*) FROM payment_sync.fetch_changes('rewrite', 900);
\set VERBOSITY default
-- which finds all the rest again
SELECT count(*), min((key->>'id')::int), max((key->>'id')::int)
FROM payment_sync.fetch_changes('rewrite', 5000);
SELECT payment_sync.ack_changes('rewrite', max(position))
FROM payment_sync.fetch_changes('rewrite', 5000);
SELECT count(*) FROM payment_sync.fetch_changes('rewrite', 5000);

-- nor does it miss what comes after one
INSERT INTO rewrite_payment VALUES (1001, 'two');
VACUUM FULL payment_sync.log_0, payment_sync.log_1, payment_sync.log_2;
INSERT INTO rewrite_payment VALUES (1002, 'three');
SELECT key FROM payment_sync.fetch_changes('rewrite', 5000);

-- a table that loses the pages behind its last committed chunk, as in a crash
-- of the machine (here by vacuum), and gets new ones before the next look
SELECT payment_sync.ack_changes('rewrite', max(position))
FROM payment_sync.fetch_changes('rewrite', 5000);
INSERT INTO rewrite_payment VALUES (1003, 'four');
BEGIN;
INSERT INTO rewrite_payment SELECT i, repeat('x', 500) FROM generate_series(5001, 6000) i;
ROLLBACK;
SELECT payment_sync.ack_changes('rewrite', max(position))
FROM payment_sync.fetch_changes('rewrite', 5000);
SELECT count(*) FROM payment_sync.fetch_changes('rewrite', 5000);
CREATE TEMP TABLE size_before AS SELECT payment_sync.log_size();
VACUUM (TRUNCATE true) payment_sync.log_0, payment_sync.log_1, payment_sync.log_2;
SELECT payment_sync.log_size() < log_size AS truncated FROM size_before;
INSERT INTO rewrite_payment VALUES (1004, 'five');
BEGIN;
INSERT INTO rewrite_payment SELECT i, repeat('x', 500) FROM generate_series(5001, 8000) i;
ROLLBACK;
SELECT key FROM payment_sync.fetch_changes('rewrite', 5000);

-- what is frozen is read as before: whose a chunk is, its own column says
INSERT INTO rewrite_payment VALUES (1005, 'six');
VACUUM FREEZE payment_sync.log_0, payment_sync.log_1, payment_sync.log_2;
SELECT payment_sync.ack_changes('rewrite', max(position))
FROM payment_sync.fetch_changes('rewrite', 5000);
SELECT key FROM payment_sync.fetch_changes('rewrite', 5000);

SELECT payment_sync.drop_sync('rewrite');
SELECT payment_sync.release_table('rewrite_payment');
DROP TABLE rewrite_payment;
DROP EXTENSION payment_sync;
