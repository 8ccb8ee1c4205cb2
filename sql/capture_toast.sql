-- Large values, as they are stored: compressed, outside of the row, both; and
-- changed, or unchanged beside a column that changes
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
RESET client_min_messages;
CREATE SCHEMA toasted;
SET search_path = toasted;

CREATE TABLE big (id int PRIMARY KEY, n int, plain text, extended text, external text, main text,
	b bytea, j json, jb jsonb, a text[], v varchar, c bpchar);
ALTER TABLE big ALTER external SET STORAGE EXTERNAL, ALTER main SET STORAGE MAIN,
	ALTER plain SET STORAGE PLAIN;
SELECT payment_sync.capture_table('big', old_values => 'all');
CREATE FUNCTION noise(bytes int) RETURNS text LANGUAGE sql AS $$
	SELECT left(string_agg(md5(g::text), ''), bytes) FROM generate_series(1, bytes / 32 + 1) g $$;
-- of every size: short header, long header, compressed, out of line
INSERT INTO big SELECT n, n, noise(least(size, 1000)), noise(size), noise(size), repeat('main', size),
	noise(size)::bytea, to_json(noise(size)), to_jsonb(noise(size)), ARRAY[noise(size), NULL, repeat('x', size)],
	noise(size), noise(size)
FROM unnest('{0,1,126,127,1000,1990,2050,7900,100000}'::int[]) WITH ORDINALITY AS s (size, n);
INSERT INTO big (id, extended, external) VALUES (100, repeat('compressible ', 500000), repeat('0123456789', 500000));
-- values are what their storage says
SELECT id, pg_column_size(extended) AS extended, pg_column_size(external) AS external, octet_length(external)
FROM big WHERE id IN (4, 9, 100) ORDER BY id;
CREATE VIEW mismatch AS
	SELECT c.operation, t.id FROM payment_sync.changes c JOIN big t ON t.id::text = c.key->>'id'
	WHERE c.new - 'n' IS DISTINCT FROM to_jsonb(t) - 'n';
SELECT * FROM mismatch;
SELECT operation, key, length(new->>'external') AS external FROM payment_sync.changes;
TRUNCATE payment_sync.log_0;

-- unchanged beside another column: all of the row is there, before and after
UPDATE big SET n = -n - 1;
UPDATE big SET n = 0 WHERE id = 100;
SELECT * FROM mismatch;
SELECT count(*) AS changed_otherwise FROM payment_sync.changes WHERE new - 'n' <> old - 'n';
SELECT key, length(old->>'external') AS old, length(new->>'external') AS new FROM payment_sync.changes
WHERE key = '{"id": 100}';
-- the same values again, toasted anew, are no change
TRUNCATE payment_sync.log_0;
UPDATE big SET extended = extended || '', external = external || '', b = b || '', a = a || '{}'::text[]
WHERE a IS NOT NULL;
UPDATE big SET extended = extended || '', external = external || '' WHERE a IS NULL;
SELECT count(*) FROM payment_sync.changes;

-- with "changed", old values are those that changed
SELECT payment_sync.capture_table('big');
UPDATE big SET n = 1 WHERE id = 100;
UPDATE big SET external = external || '!' WHERE id = 100;
UPDATE big SET extended = NULL WHERE id = 100;
DELETE FROM big WHERE id = 100;
SELECT operation, length(new->>'external') AS new_external, length(new->>'extended') AS new_extended,
	ARRAY(SELECT jsonb_object_keys(old)) AS old,
	length(old->>'external') AS external, length(old->>'extended') AS extended
FROM payment_sync.changes;

-- a key that is compressed
CREATE TABLE bigkey (id text PRIMARY KEY, v int);
SELECT payment_sync.capture_table('bigkey', old_values => 'none');
INSERT INTO bigkey VALUES (repeat('k', 8000), 1);
UPDATE bigkey SET v = 2;
UPDATE bigkey SET id = id || 'k';
DELETE FROM bigkey;
SELECT operation, length(key->>'id') AS key, length(new->>'id') AS new, length(old->>'id') AS old
FROM payment_sync.changes WHERE "table" = 'bigkey'::regclass;

-- the bytes in the log are the values' own: a change of many pages
BEGIN;
INSERT INTO big (id, external) VALUES (200, noise(3000000));
SAVEPOINT a;
INSERT INTO big (id, external) VALUES (201, noise(3000000));
ROLLBACK TO a;
INSERT INTO big (id, external) VALUES (202, noise(20)), (203, noise(3000001));
COMMIT;
SELECT key, length(new->>'external') AS external, new->>'external' = t.external AS same
FROM payment_sync.changes c JOIN big t ON t.id::text = c.key->>'id' WHERE t.id >= 200;

SET client_min_messages = warning;
DROP EXTENSION payment_sync CASCADE;
DROP SCHEMA toasted CASCADE;
