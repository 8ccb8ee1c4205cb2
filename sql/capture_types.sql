-- A value in the log is the value in the table, whatever its type.  "changes"
-- shows it as to_jsonb() of the row does; all comparisons here are with that.
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
RESET client_min_messages;
CREATE SCHEMA types;
SET search_path = types;

-- a value of every type that PostgreSQL has
CREATE TABLE sample (type regtype PRIMARY KEY, value text);
INSERT INTO sample VALUES
	('boolean', 't'), ('bytea', '\x00ff5c27'), ('"char"', '~'), ('name', 'a.name"'),
	('bigint', '-9223372036854775808'), ('smallint', '-32768'), ('integer', '-2147483648'),
	('int2vector', '1 -2 3'), ('oidvector', '1 4294967295'), ('text', E'it''s "quoted"\\\n\t €'),
	('oid', '4294967295'), ('tid', '(4294967295,65535)'), ('xid', '4294967295'), ('cid', '7'),
	('xid8', '18446744073709551615'), ('json', '{"a":  1, "a": [null, 1.10]}'), ('xml', '<a b="c">€</a>'),
	('point', '(1.5,-2)'), ('lseg', '[(1,2),(3,4)]'), ('path', '((1,2),(3,4))'), ('box', '(3,4),(1,2)'),
	('polygon', '((0,0),(1,0),(0,1))'), ('line', '{1,2,3}'), ('circle', '<(1,2),3>'),
	('cidr', '10.1.0.0/16'), ('inet', '2001:db8::1/64'), ('macaddr', '08:00:2b:01:02:03'),
	('macaddr8', '08:00:2b:01:02:03:04:05'), ('real', '1.17549435e-38'),
	('double precision', '4.9406564584124654e-324'), ('money', '-92233720368547758.08'),
	('aclitem', '=r*w/' || current_user), ('character', 'x'), ('character varying', 'trailing  '),
	('date', '5874897-12-31'), ('time', '24:00:00'), ('timestamp', '294276-12-31 23:59:59.999999'),
	('timestamptz', '4714-11-24 00:00:00+00 BC'), ('interval', '-178000000 years 5 mons -3 days 04:05:06.000001'),
	('timetz', '23:59:59.999999-15:59:59'), ('bit', '1'), ('bit varying', '10110011100'),
	('numeric', '-' || repeat('9', 1000) || '.' || repeat('1', 500)), ('refcursor', 'a cursor'),
	('regproc', 'pg_catalog.now'), ('regprocedure', 'pg_catalog.lower(text)'), ('regoper', 'pg_catalog.||/'),
	('regoperator', 'pg_catalog.+(integer,integer)'), ('regclass', 'pg_catalog.pg_class'),
	('regtype', 'timestamp with time zone'), ('regrole', quote_ident(current_user)),
	('regnamespace', 'types'), ('regcollation', '"C"'), ('regconfig', 'english'),
	('regdictionary', 'simple'), ('uuid', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'), ('pg_lsn', 'FFFFFFFF/FFFFFFFF'),
	('tsvector', '''a b'':1A,2B ''c'':16383'), ('tsquery', '!''a'' & (''b'':AB | ''c d'':*) <2> ''e'''),
	('jsonb', '{"b": [1.50, null, {"€": "\u0001"}], "a": true}'), ('jsonpath', '$."a"[*]?(@ > 1)'),
	('txid_snapshot', '10:20:10,14,15'), ('pg_snapshot', '10:20:10,14,15'),
	('int4range', '[1,5)'), ('int8range', '(,)'), ('numrange', '[-Infinity,1.10]'),
	('tsrange', '(-infinity,infinity)'), ('tstzrange', 'empty'), ('daterange', '[2026-01-01,)'),
	('int4multirange', '{[1,2),[5,9)}'), ('int8multirange', '{}'), ('nummultirange', '{[1.0,2.50]}'),
	('tsmultirange', '{(,2026-01-01 00:00)}'), ('tstzmultirange', '{[2026-01-01 00:00+00,infinity]}'),
	('datemultirange', '{[2026-01-01,2026-01-03),[2026-02-01,infinity)}');
-- none is missing, but for those that no table can have a value of
SELECT oid::regtype AS missing FROM pg_type
WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'r', 'm') AND typrelid = 0
	AND typcategory NOT IN ('A', 'Z') AND typname <> 'gtsvector' AND oid NOT IN (SELECT type FROM sample);
-- a server may be built without this one
DO $$ BEGIN PERFORM '<a/>'::xml; EXCEPTION WHEN feature_not_supported THEN DELETE FROM sample WHERE type = 'xml'::regtype; END $$;

-- a table with a column of each, and of arrays of each
DO $$ BEGIN
	EXECUTE (SELECT format('CREATE TABLE every (id int PRIMARY KEY, %s)',
		string_agg(format('%I %s, %I %1$s[]', type, type, type || '[]'), ', ' ORDER BY type)) FROM sample);
END $$;
CREATE VIEW mismatch AS
	SELECT c.operation, k.key, k.value AS logged, r.value AS stored
	FROM payment_sync.changes c
	JOIN every e ON e.id = (c.key->>'id')::int,
	LATERAL jsonb_each(COALESCE(c.new, c.old)) k
	FULL JOIN LATERAL jsonb_each(to_jsonb(e)) r ON r.key = k.key
	WHERE k.value IS DISTINCT FROM r.value;
SELECT payment_sync.capture_table('every', old_values => 'all');
CREATE PROCEDURE fill(which int) LANGUAGE plpgsql AS $$
DECLARE forms text[] := '{"%1$L::%2$s, ARRAY[%1$L::%2$s, NULL, %1$L]::%2$s[]",
	"%1$L::%2$s, ARRAY[ARRAY[%1$L::%2$s, %1$L], ARRAY[NULL, %1$L]]::%2$s[]", "NULL, ''{}''"}';
BEGIN
	EXECUTE (SELECT format('INSERT INTO every VALUES (%s, %s)', which,
		string_agg(format(forms[which], value, type), ', ' ORDER BY type)) FROM sample);
END $$;
CALL fill(1);
CALL fill(2);
CALL fill(3);
INSERT INTO every VALUES (4);
SELECT count(*), count(DISTINCT key) FROM payment_sync.changes;
SELECT (SELECT count(*) FROM payment_sync.changes, jsonb_object_keys(new) WHERE key = '{"id": 1}') =
	(SELECT 1 + 2 * count(*) FROM sample) AS all_columns;
SELECT * FROM mismatch;

-- the writer's settings have no influence
TRUNCATE every;
TRUNCATE payment_sync.log_0;
SET datestyle = 'SQL, DMY';
SET intervalstyle = 'sql_standard';
SET extra_float_digits = -15;
SET bytea_output = 'escape';
SET timezone = 'Asia/Kolkata';
SET client_encoding = 'LATIN9';
CALL fill(1);
-- nor the reader's on what is equal
SELECT count(*) FROM mismatch;
RESET datestyle;
RESET intervalstyle;
RESET extra_float_digits;
RESET bytea_output;
RESET timezone;
RESET client_encoding;
SELECT * FROM mismatch;
-- old images are as new ones
TRUNCATE payment_sync.log_0;
UPDATE every SET id = 2;
SELECT key->'id' AS key, new - 'id' = old - 'id' AS same, old->'id' AS old FROM payment_sync.changes;
SELECT * FROM mismatch;
-- a difference would be seen
UPDATE every SET text = 'other';
SELECT key, stored FROM mismatch;

-- what is special in some types
CREATE TYPE mood AS ENUM ('sad', 'it''s "ok", €');
CREATE TYPE pair AS (x int, y text);
CREATE TYPE nested AS (p pair, ps pair[], m mood, d date, rc regclass);
CREATE DOMAIN positive AS numeric(8, 2) CHECK (value > 0);
CREATE DOMAIN pairs AS pair[];
CREATE TYPE textrange AS RANGE (subtype = text, collation = "C");
CREATE TABLE special (id int PRIMARY KEY, n numeric, n2 numeric(10, 2), f4 real, f8 double precision,
	d date, ts timestamp(3), tz timestamptz, a2 int[], en mood, ens mood[], co pair, cos pair[], ne nested,
	dom positive, doms positive[], dp pairs, tr textrange, tmr textmultirange, c char(5), vc varchar(5),
	b bit(3), iv interval(0), g numeric GENERATED ALWAYS AS (n2 * 2) STORED);
SELECT payment_sync.capture_table('special');
INSERT INTO special (id, n, f4, f8, d, ts, tz) VALUES
	(1, 'NaN', 'NaN', 'NaN', 'infinity', 'infinity', 'infinity'),
	(2, 'Infinity', 'Infinity', 'Infinity', '-infinity', '-infinity', '-infinity'),
	(3, '-Infinity', '-Infinity', '-Infinity', '4714-11-24 BC', '4714-11-24 BC', '4714-11-24 00:00+00 BC'),
	(4, 0.000, '-0', '-0', '0001-12-31 BC', '2026-02-28 12:00:00.1239', '2026-10-25 02:30:00 Europe/Berlin'),
	(5, 1e-20, 3.4e38, 0.1, '0001-01-01', 'epoch', 'epoch');
INSERT INTO special (id, n2, a2, en, ens, co, cos, ne, dom, doms, dp, tr, tmr, c, vc, b, iv) VALUES
	(6, 1.5, '[-1:0][5:6]={{1,NULL},{3,4}}', 'sad', '{"it''s \"ok\", €",NULL}', '(1,"a ""b"", c")',
	 '{"(1,\"x, y\")",NULL,"(,)"}', ROW(ROW(1, NULL), ARRAY[ROW(2, '')]::pair[], 'sad', '2026-11-04', 'special'),
	 1.5, '{1.50,2}', '{"(1,x)"}', '[a,"b c")', '{[a,b),[c,d)}', 'ab', 'a  ', '101', '1 mon -2 days 03:04:05.6');
-- all but the name of a table: it is qualified within a composite value, too
SELECT c.key, k.key AS differs, k.value AS logged, r.value AS stored
FROM payment_sync.changes c JOIN special s ON s.id = (c.key->>'id')::int,
LATERAL jsonb_each(c.new) k JOIN LATERAL jsonb_each(to_jsonb(s)) r USING (key)
WHERE "table" = 'special'::regclass AND k.value <> r.value;
SELECT key->'id' AS id, new->'n' AS n, new->'f4' AS f4, new->'f8' AS f8, new->'d' AS d, new->'ts' AS ts
FROM payment_sync.changes WHERE "table" = 'special'::regclass LIMIT 5;
SELECT jsonb_pretty(new - '{n,f4,f8,d,ts,tz}'::text[]) FROM payment_sync.changes WHERE key = '{"id": 6}';
-- -0 is a value of its own, and so is another scale
UPDATE special SET f8 = '0', n = 0.0 WHERE id = 4;
UPDATE special SET f8 = '0', n = 0.0 WHERE id = 4;
SELECT new->'f8' AS f8, new->'n' AS n, old FROM payment_sync.changes WHERE "table" = 'special'::regclass OFFSET 6;


-- intentionally other than to_jsonb(): names of objects are qualified, since
-- what is in a reader's search_path is nothing to a target
CREATE FUNCTION special(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE TABLE names (id int PRIMARY KEY, c regclass, f regprocedure, t regtype, o regclass);
SELECT payment_sync.capture_table('names');
INSERT INTO names VALUES (1, 'special', 'special(int)', 'mood', 'pg_class');
SELECT new AS logged FROM payment_sync.changes WHERE "table" = 'names'::regclass;
SELECT to_jsonb(names) AS stored FROM names;

SET client_min_messages = warning;
DROP EXTENSION payment_sync CASCADE;
DROP SCHEMA types CASCADE;
