-- DROP EXTENSION in a transaction that has changes pending; in a database of
-- its own, since other tests want to keep theirs
SELECT current_database() AS test_database \gset
CREATE DATABASE regression_drop_extension;
\c regression_drop_extension
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
CREATE TABLE drop_payment (id int PRIMARY KEY, note text);
SELECT payment_sync.capture_table('drop_payment');

-- the changes go with the log that they were meant for
BEGIN;
INSERT INTO drop_payment VALUES (1, 'pending at the drop');
SAVEPOINT s;
INSERT INTO drop_payment VALUES (2, 'in a savepoint');
DROP EXTENSION payment_sync CASCADE;
INSERT INTO drop_payment VALUES (3, 'not captured');
COMMIT;
SELECT id FROM drop_payment ORDER BY 1;
SELECT tgname FROM pg_trigger WHERE tgrelid = 'drop_payment'::regclass;

-- dropped and made again: the new log holds what was captured for it
CREATE EXTENSION payment_sync;
SELECT payment_sync.capture_table('drop_payment');
BEGIN;
INSERT INTO drop_payment VALUES (4, 'for the old log');
SAVEPOINT s;
INSERT INTO drop_payment VALUES (5, 'for the old log');
DROP EXTENSION payment_sync CASCADE;
CREATE EXTENSION payment_sync;
SELECT payment_sync.capture_table('drop_payment');
INSERT INTO drop_payment VALUES (6, 'for the new log');
RELEASE s;
INSERT INTO drop_payment VALUES (7, 'for the new log');
COMMIT;
SELECT operation, key FROM payment_sync.changes;

-- and when all of that is rolled back, the old log has all its changes
BEGIN;
INSERT INTO drop_payment VALUES (8, 'before');
SAVEPOINT s;
INSERT INTO drop_payment VALUES (9, 'lost');
DROP EXTENSION payment_sync CASCADE;
CREATE EXTENSION payment_sync;
SELECT payment_sync.capture_table('drop_payment');
INSERT INTO drop_payment VALUES (10, 'lost');
ROLLBACK TO s;
INSERT INTO drop_payment VALUES (11, 'after');
COMMIT;
SELECT operation, key FROM payment_sync.changes;

\c :test_database
DROP DATABASE regression_drop_extension;
