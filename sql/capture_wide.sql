-- Tables of very many columns, and of none but the key
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
RESET client_min_messages;
CREATE SCHEMA wide;
SET search_path = wide;
-- names of 63 bytes, so that the shape is larger than a page
SELECT format('CREATE TABLE w%s (id int PRIMARY KEY, %s)', n,
	(SELECT string_agg(format('%s %s', rpad(format('c%s_%s', g, n), 63, '_'),
			(ARRAY['int', 'bigint', 'text', 'boolean', 'numeric', 'uuid', 'timestamptz'])[g % 7 + 1]), ', ')
	 FROM generate_series(2, n) g)) FROM unnest('{1000,1600}'::int[]) n
\gexec
CREATE TABLE w1 (id int PRIMARY KEY);
SELECT payment_sync.capture_table(t) FROM unnest('{w1000,w1600,w1}'::regclass[]) t;
CREATE VIEW mismatch AS
	SELECT c."table", c.key FROM payment_sync.changes c
	JOIN (SELECT 'w1000'::regclass AS rel, id, to_jsonb(w1000) AS r FROM w1000
		  UNION ALL SELECT 'w1600'::regclass, id, to_jsonb(w1600) FROM w1600) t
		ON t.rel = c."table" AND t.id::text = c.key->>'id'
	WHERE c.new IS DISTINCT FROM t.r;

-- all columns null, and values in all of them as far as a page can hold them
INSERT INTO w1000 VALUES (1);
INSERT INTO w1600 VALUES (1);
DO $$ DECLARE rel regclass; BEGIN
	FOREACH rel IN ARRAY '{w1000,w1600}'::regclass[] LOOP
		EXECUTE (SELECT format('INSERT INTO %s SELECT 2, %s', rel, string_agg(CASE
			WHEN attnum > 800 AND attnum <> 994 THEN format('NULL::%s', atttypid::regtype)
			ELSE (ARRAY['7', '8::bigint', '''t''::text', 'true', '1.5::numeric', '''a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11''::uuid',
				'''infinity''::timestamptz'])[attnum % 7 + 1] END, ', ' ORDER BY attnum))
			FROM pg_attribute WHERE attrelid = rel AND attnum > 1);
	END LOOP;
END $$;
SELECT "table", operation, (SELECT count(*) FROM jsonb_object_keys(new)) AS columns FROM payment_sync.changes;
SELECT * FROM mismatch;

-- the last column changes; one is dropped, one is renamed; all old values
DO $$ BEGIN
	EXECUTE (SELECT format('UPDATE w1000 SET %I = %I + 1', attname, attname)
			 FROM pg_attribute WHERE attrelid = 'w1000'::regclass AND attnum = 994);
	EXECUTE (SELECT format('ALTER TABLE w1000 DROP %I', attname)
			 FROM pg_attribute WHERE attrelid = 'w1000'::regclass AND attnum = 500);
	EXECUTE (SELECT format('ALTER TABLE w1000 RENAME %I TO last', attname)
			 FROM pg_attribute WHERE attrelid = 'w1000'::regclass AND attnum = 994);
END $$;
SELECT payment_sync.capture_table('w1000', old_values => 'all');
UPDATE w1000 SET last = last + 1;
UPDATE w1000 SET last = last;
DELETE FROM w1000 WHERE id = 1;
SELECT operation, key, (SELECT count(*) FROM jsonb_object_keys(new)) AS new,
	(SELECT count(*) FROM jsonb_object_keys(old)) AS old, old->'last' AS last
FROM payment_sync.changes WHERE "table" = 'w1000'::regclass OFFSET 2;

-- only a key
INSERT INTO w1 VALUES (1);
UPDATE w1 SET id = 2;
UPDATE w1 SET id = 2;
DELETE FROM w1;
SELECT operation, key, new, old FROM payment_sync.changes WHERE "table" = 'w1'::regclass;

SET client_min_messages = warning;
DROP EXTENSION payment_sync CASCADE;
DROP SCHEMA wide CASCADE;
