-- a transaction of many savepoints: chunks that could not be joined, read again
-- in order and in little memory
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
RESET client_min_messages;
CREATE TABLE save_payment (id int PRIMARY KEY, note text);
SELECT payment_sync.capture_table('save_payment');

BEGIN;
INSERT INTO save_payment VALUES (0, 'before all of them');
DO $$
BEGIN
	FOR i IN 1..20000 LOOP
		BEGIN
			INSERT INTO save_payment VALUES (i, 'in a savepoint');
			IF i % 1000 = 0 THEN
				UPDATE save_payment SET note = repeat('large', 4000) WHERE id = i;
			END IF;
			IF i % 7 = 0 THEN
				RAISE division_by_zero;
			END IF;
		EXCEPTION WHEN division_by_zero THEN
			NULL;
		END;
	END LOOP;
END $$;
INSERT INTO save_payment VALUES (-1, 'after all of them');
COMMIT;

-- read by a function, so that its memory can be looked at: a cursor holds it
CREATE TABLE save_read AS
SELECT row_number() OVER () AS nr, operation, (key->>'id')::int AS id, length(new->>'note') AS size
FROM payment_sync.changes WHERE "table" = 'save_payment'::regclass;
SELECT operation, count(*), sum(id) FROM save_read GROUP BY 1 ORDER BY 1;
SELECT count(*) FROM save_payment;
SELECT id FROM save_read WHERE nr IN (SELECT min(nr) FROM save_read UNION SELECT max(nr) FROM save_read) ORDER BY nr;
SELECT count(*) AS disordered FROM (
	SELECT id, lag(id) OVER (ORDER BY nr) AS previous, operation FROM save_read WHERE id > 0) r
WHERE previous > id OR (previous = id AND operation = 'insert');
SELECT DISTINCT size FROM save_read WHERE operation = 'update';

-- as many chunks as that are not open at once: what is left below the reader
-- when it has come half-way is a few buffers
CREATE FUNCTION save_half() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	before bigint := (SELECT sum(total_bytes) FROM pg_backend_memory_contexts);
BEGIN
	PERFORM count(*) FROM payment_sync.fetch_changes('save_pull', 5000);
	RETURN (SELECT sum(total_bytes) FROM pg_backend_memory_contexts) - before < 16 * 1024 * 1024;
END $$;
SELECT payment_sync.create_sync('save_pull', '{save_payment}');
BEGIN;
INSERT INTO save_payment VALUES (100000, 'before all of them');
DO $$
BEGIN
	FOR i IN 100001..120000 LOOP
		BEGIN
			INSERT INTO save_payment VALUES (i, 'in a savepoint');
		EXCEPTION WHEN division_by_zero THEN
			NULL;
		END;
	END LOOP;
END $$;
COMMIT;
SELECT save_half();

SELECT payment_sync.drop_sync('save_pull');
SELECT payment_sync.release_table('save_payment');
DROP TABLE save_payment, save_read;
DROP FUNCTION save_half();
DROP EXTENSION payment_sync;
