-- the log decoded: what each operation leaves, and how values look
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
RESET client_min_messages;
CREATE SCHEMA seen;
SET search_path = seen;
SET timezone = 'UTC';

-- the three kinds of old values
CREATE TABLE none (id int PRIMARY KEY, a text, b text);
CREATE TABLE changed (id int PRIMARY KEY, a text, b text);
CREATE TABLE everything (id int PRIMARY KEY, a text, b text);
SELECT payment_sync.capture_table('none', old_values => 'none');
SELECT payment_sync.capture_table('changed');
SELECT payment_sync.capture_table('everything', old_values => 'all');
DO $$
DECLARE t text;
BEGIN
	FOREACH t IN ARRAY '{none,changed,everything}'::text[] LOOP
		EXECUTE format('INSERT INTO seen.%I VALUES (1, ''a'', NULL)', t);
		EXECUTE format('UPDATE seen.%I SET b = ''b''', t);
		EXECUTE format('UPDATE seen.%I SET b = b', t);
		EXECUTE format('UPDATE seen.%I SET id = 2', t);
		EXECUTE format('DELETE FROM seen.%I', t);
		EXECUTE format('TRUNCATE seen.%I', t);
	END LOOP;
END $$;
SELECT operation, "table", key, new, old FROM payment_sync.changes;

-- what is no more, or has become something else, does not spoil what was
-- written before: a stricter domain, a label, an attribute, an object, a
-- column, its type, the table
CREATE TYPE pair AS (x int, y text);
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE DOMAIN positive AS numeric CHECK (value > 0);
CREATE TABLE types (id int PRIMARY KEY, dom positive, co pair, cos pair[], en mood, ens mood[],
	rc regclass, rcs regclass[], t text);
SELECT payment_sync.capture_table('types');
INSERT INTO types VALUES (2, 1.5, '(1,x)', '{"(1,x)"}', 'ok', '{sad,ok}', 'none', '{changed}', 'text');
DELETE FROM types;
SELECT new FROM payment_sync.changes WHERE "table" = 'types'::regclass AND operation = 'insert';
ALTER DOMAIN positive ADD CHECK (value > 2);
ALTER TYPE mood RENAME VALUE 'ok' TO 'fine';
ALTER TYPE pair ADD ATTRIBUTE z int;
ALTER TABLE changed RENAME TO "else";
SELECT new->'dom' AS dom, new->'co' AS co, new->'cos' AS cos, new->'en' AS en, new->'ens' AS ens,
	new->'rc' AS rc, new->'rcs' AS rcs
FROM payment_sync.changes WHERE "table" = 'types'::regclass AND operation = 'insert';
ALTER TABLE "else" RENAME TO changed;
ALTER TABLE types DROP COLUMN en, DROP COLUMN ens, DROP COLUMN co, DROP COLUMN cos;
DROP TYPE mood, pair;
SELECT new - 'id' - 'dom' - 'rc' - 'rcs' AS new FROM payment_sync.changes
WHERE "table" = 'types'::regclass AND operation = 'insert';
DROP TABLE none;
SELECT operation, "table"::text ~ '^[0-9]+$' AS gone, key FROM payment_sync.changes
WHERE "table"::text ~ '^[0-9]+$';

-- columns come, go and change; each change is shown in the shape it was made in
ALTER TABLE changed ADD COLUMN c int DEFAULT 5;
INSERT INTO changed VALUES (5, 'five');
ALTER TABLE changed DROP COLUMN a;
UPDATE changed SET b = 'x' WHERE id = 5;
ALTER TABLE changed RENAME b TO bee;
ALTER TABLE changed ALTER c TYPE numeric(10, 1);
UPDATE changed SET bee = 'y' WHERE id = 5;
SELECT operation, key, new, old FROM payment_sync.changes
WHERE "table" = 'changed'::regclass AND key->>'id' = '5';

-- committed changes only, also of one's own
BEGIN;
INSERT INTO everything VALUES (100);
SAVEPOINT a;
INSERT INTO everything VALUES (101);
ROLLBACK TO a;
INSERT INTO everything VALUES (102);
SELECT count(*) FROM payment_sync.changes WHERE (key->>'id')::int >= 100;
COMMIT;
BEGIN;
INSERT INTO everything VALUES (103);
ROLLBACK;
SELECT key FROM payment_sync.changes WHERE (key->>'id')::int >= 100;

-- one transaction's changes share its id, and positions ascend
SELECT count(DISTINCT xid) FROM payment_sync.changes WHERE (key->>'id')::int >= 100;
SELECT bool_and(ascending) AS ascending, bool_and(recent) AS recent FROM
	(SELECT position > lag(position, 1, 0::bigint) OVER () AS ascending,
			at BETWEEN now() - interval '1 hour' AND clock_timestamp() AS recent
	 FROM payment_sync.changes) x;

-- a change of several megabytes
INSERT INTO everything SELECT 200, string_agg(md5(g::text), ''), 'end' FROM generate_series(1, 100000) g;
UPDATE everything SET b = 'END' WHERE id = 200;
SELECT operation, length(new->>'a'), md5(new->>'a') = (SELECT md5(a) FROM everything WHERE id = 200) AS same,
	new->>'b' AS b, old->>'b' AS old_b
FROM payment_sync.changes WHERE key->>'id' = '200';

-- who applied it
SET payment_sync.origin = 'the other side';
INSERT INTO everything VALUES (300);
RESET payment_sync.origin;
INSERT INTO everything VALUES (301);
SELECT key, origin FROM payment_sync.changes WHERE (key->>'id')::int >= 300;

SET client_min_messages = warning;
DROP EXTENSION payment_sync CASCADE;
DROP SCHEMA seen CASCADE;
