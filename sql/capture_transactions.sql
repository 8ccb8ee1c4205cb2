-- A change is in the log if and only if its transaction committed (P1)
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
RESET client_min_messages;
CREATE SCHEMA tx;
SET search_path = tx;
CREATE VIEW log AS
	SELECT operation AS op, "table", key->'id' AS id, new->>'v' AS v FROM payment_sync.changes;
CREATE TABLE pay (id int PRIMARY KEY, v text);
SELECT payment_sync.capture_table('pay');

-- savepoints, and whole transactions, rolled back
BEGIN;
INSERT INTO pay VALUES (1, 'kept');
SAVEPOINT a;
INSERT INTO pay VALUES (2, 'dropped');
SAVEPOINT b;
INSERT INTO pay VALUES (3, 'dropped, too');
RELEASE b;
ROLLBACK TO a;
INSERT INTO pay VALUES (4, 'kept, too');
SAVEPOINT c;
UPDATE pay SET v = 'released' WHERE id = 4;
RELEASE c;
SELECT count(*) FROM log;
COMMIT;
BEGIN;
INSERT INTO pay VALUES (5, 'rolled back');
ROLLBACK;
BEGIN;
INSERT INTO pay VALUES (5, 'ends with an error');
INSERT INTO pay VALUES (1, 'duplicate');
COMMIT;
-- a statement that fails after having changed rows
INSERT INTO pay SELECT g, 'fails at 1' FROM generate_series(3, 0, -1) g;
SELECT * FROM log;
TRUNCATE payment_sync.log_0;

-- enough for many pages of the log, in levels of which some are rolled back
BEGIN;
INSERT INTO pay SELECT g, repeat('a', 100) FROM generate_series(1001, 2000) g;
SAVEPOINT a;
INSERT INTO pay SELECT g, repeat('b', 100) FROM generate_series(2001, 3000) g;
SAVEPOINT b;
INSERT INTO pay SELECT g, repeat('c', 100) FROM generate_series(3001, 4000) g;
ROLLBACK TO b;
INSERT INTO pay SELECT g, repeat('d', 100) FROM generate_series(4001, 5000) g;
RELEASE a;
SAVEPOINT a;
DELETE FROM pay WHERE id > 1000;
ROLLBACK TO a;
UPDATE pay SET v = 'e' WHERE id > 4000;
COMMIT;
SELECT op, left(v, 1) AS v, count(*), min(id::int), max(id::int) FROM log GROUP BY 1, 2 ORDER BY 1, 2;
DELETE FROM pay WHERE id > 1000;
TRUNCATE payment_sync.log_0;

-- a function's EXCEPTION blocks, in a loop and nested
DO $$
BEGIN
	FOR i IN 1 .. 300 LOOP
		BEGIN
			INSERT INTO pay VALUES (100 + i, 'loop');
			BEGIN
				UPDATE pay SET v = 'inner' WHERE id = 100 + i;
				IF i % 3 = 0 THEN RAISE EXCEPTION 'inner'; END IF;
			EXCEPTION WHEN raise_exception THEN NULL;
			END;
			IF i % 2 = 0 THEN RAISE EXCEPTION 'outer'; END IF;
		EXCEPTION WHEN raise_exception THEN NULL;
		END;
	END LOOP;
END $$;
SELECT v, count(*), count(*) FILTER (WHERE id::int % 2 = 0) AS even FROM log GROUP BY 1 ORDER BY 1;
SELECT v, count(*) FROM pay WHERE id > 100 GROUP BY 1 ORDER BY 1;
TRUNCATE payment_sync.log_0;

-- procedures that commit and roll back on their way
CREATE PROCEDURE batches() LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 6 LOOP
		INSERT INTO pay VALUES (500 + i, 'batch');
		IF i % 2 = 0 THEN COMMIT; ELSIF i = 3 THEN ROLLBACK; END IF;
	END LOOP;
END $$;
CALL batches();
SELECT op, id, v FROM log;
SELECT count(DISTINCT xid) FROM payment_sync.changes;
TRUNCATE payment_sync.log_0;

-- prepared transactions, with savepoints; TRUNCATE is like any other change
BEGIN;
INSERT INTO pay VALUES (600, 'prepared');
SAVEPOINT a;
INSERT INTO pay VALUES (601, 'rolled back before');
ROLLBACK TO a;
SAVEPOINT b;
INSERT INTO pay VALUES (602, 'prepared, too');
PREPARE TRANSACTION 'regress_one';
BEGIN;
INSERT INTO pay VALUES (603, 'given up');
PREPARE TRANSACTION 'regress_two';
SELECT count(*) FROM log;
INSERT INTO pay VALUES (604, 'meanwhile');
ROLLBACK PREPARED 'regress_two';
COMMIT PREPARED 'regress_one';
-- an update of a row that a prepared transaction has made comes after it
UPDATE pay SET v = 'later' WHERE id = 602;
BEGIN;
TRUNCATE pay;
PREPARE TRANSACTION 'regress_three';
ROLLBACK PREPARED 'regress_three';
SELECT count(*) FROM pay WHERE id >= 600;
BEGIN;
TRUNCATE pay;
INSERT INTO pay VALUES (605, 'after truncate');
PREPARE TRANSACTION 'regress_four';
COMMIT PREPARED 'regress_four';
SELECT * FROM log;
TRUNCATE payment_sync.log_0;

-- a table whose shape is new in a transaction that does not commit
CREATE TABLE fresh (id int PRIMARY KEY, v text);
SELECT payment_sync.capture_table('fresh');
BEGIN;
INSERT INTO fresh VALUES (1, 'gone');
ROLLBACK;
BEGIN;
SAVEPOINT a;
INSERT INTO fresh VALUES (1, 'gone');
ROLLBACK TO a;
INSERT INTO fresh VALUES (2, 'kept');
COMMIT;
ALTER TABLE fresh ADD more int;
BEGIN;
INSERT INTO fresh VALUES (3, 'prepared', 3);
PREPARE TRANSACTION 'regress_shape';
INSERT INTO fresh VALUES (4, 'kept', 4);
ROLLBACK PREPARED 'regress_shape';
SELECT operation, new FROM payment_sync.changes;
-- and one that is made, captured, changed and written to in one transaction
BEGIN;
CREATE TABLE young (id int PRIMARY KEY);
SELECT payment_sync.capture_table('young');
INSERT INTO young VALUES (1);
ALTER TABLE young ADD v text DEFAULT 'x';
UPDATE young SET id = 2;
COMMIT;
SELECT operation, new, old FROM payment_sync.changes WHERE "table" = 'young'::regclass;
TRUNCATE payment_sync.log_0;

-- TRUNCATE, of several tables, with CASCADE, and of what was just filled
CREATE TABLE part_of (id int PRIMARY KEY, pay int REFERENCES pay);
SELECT payment_sync.capture_table('part_of');
INSERT INTO pay VALUES (1);
INSERT INTO part_of VALUES (1, 1);
TRUNCATE pay;
TRUNCATE pay CASCADE;
BEGIN;
INSERT INTO pay VALUES (2);
TRUNCATE fresh, pay RESTART IDENTITY CASCADE;
INSERT INTO pay VALUES (3);
SAVEPOINT a;
TRUNCATE part_of;
ROLLBACK TO a;
COMMIT;
SELECT op, "table", id FROM log WHERE op <> 'truncate' OR "table" = 'pay'::regclass;
SELECT "table", count(*) FROM log WHERE op = 'truncate' GROUP BY 1 ORDER BY 1;
-- rows deleted and set null by foreign keys
ALTER TABLE part_of DROP CONSTRAINT part_of_pay_fkey,
	ADD FOREIGN KEY (pay) REFERENCES pay ON DELETE CASCADE ON UPDATE SET NULL;
INSERT INTO pay VALUES (4), (5);
INSERT INTO part_of VALUES (4, 4), (5, 5);
TRUNCATE payment_sync.log_0;
DELETE FROM pay WHERE id = 4;
UPDATE pay SET id = 6 WHERE id = 5;
SELECT operation, "table", key, new, old FROM payment_sync.changes;

SET client_min_messages = warning;
DROP EXTENSION payment_sync CASCADE;
DROP SCHEMA tx CASCADE;
