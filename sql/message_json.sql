-- how values of each type look in events
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
RESET client_min_messages;
SET timezone = 'America/New_York';
SET datestyle = 'SQL, DMY';

-- a transport for tests; test/modules/payment_sync_probe.c
COPY (SELECT) TO PROGRAM 'rm -rf probe_json && mkdir probe_json && cat >/dev/null';
CREATE FOREIGN DATA WRAPPER regress_probe OPTIONS (library 'payment_sync_probe');
CREATE SERVER regress_json FOREIGN DATA WRAPPER regress_probe OPTIONS (directory 'probe_json');
CREATE SERVER regress_numbers FOREIGN DATA WRAPPER regress_probe
	OPTIONS (directory 'probe_json', numeric_as 'number', bigint_as 'number');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_json;
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_numbers;

CREATE TYPE mood AS ENUM ('good', 'ba"d');
CREATE TYPE pair AS (a int, b numeric);
CREATE DOMAIN amount AS numeric(12,2);
CREATE DOMAIN code AS text CHECK (value <> '');
CREATE TABLE types (
	id int PRIMARY KEY,
	b boolean, i2 smallint, i8 bigint, o oid, n numeric, d amount, f4 real, f8 float8,
	t text, v varchar(20), c char(3), nm name, dm code, e mood, u uuid, bt bytea,
	ts timestamp, tz timestamptz, dt date, tm time, tmz timetz, iv interval,
	j json, jb jsonb, ia int[], na numeric[], ta text[], ea mood[], p pair, r int4range,
	inet inet, "odd ""name\" int);
SELECT payment_sync.capture_table('types');
SELECT payment_sync.create_sync('json', '{types}', 'regress_json', enabled => false);
SELECT payment_sync.create_sync('numbers', '{types}', 'regress_numbers', enabled => false);

CREATE FUNCTION shown(sync name, id int) RETURNS SETOF text LANGUAGE sql AS $$
	SELECT key || ' ' || value
	FROM json_each_text(split_part(payment_sync.preview_event(sync, jsonb_build_object('id', id)),
								   E'\n\n', 2)::json -> 'new')
	WHERE value IS NOT NULL
$$;
-- the text itself, since json_each_text() takes off quotes
CREATE FUNCTION raw(sync name, id int, col text) RETURNS text LANGUAGE sql AS $$
	SELECT (split_part(payment_sync.preview_event(sync, jsonb_build_object('id', id)),
					   E'\n\n', 2)::json -> 'new' -> col)::text
$$;

INSERT INTO types VALUES (1, true, -32768, 9223372036854775807, 4294967295, 12345678901234567890.123456789,
	99.5, 1.5, 0.1, E'q"b\\n\n\t\x01\x7f/é€😀', 'x', 'a', 'nm', 'dm', 'ba"d',
	'00112233-4455-6677-8899-aabbccddeeff', '\x00ff10',
	'2026-01-02 03:04:05.6', '2026-07-02 03:04:05.678901+02', '2026-02-28', '23:59:59.999999',
	'01:02:03+04', '1 day 2 hours', E'{"a" :\n [1, 1.0]}', '{"z": 1, "a": "x"}',
	'{{1,2},{3,NULL}}', '{1.10,NaN}', '{"a,b",NULL,"c\"d"}', '{good,"ba\"d"}', '(1,2.50)',
	'[1,5)', '10.0.0.1/8', 7);
SELECT * FROM shown('json', 1);
SELECT raw('json', 1, 'i8'), raw('json', 1, 'n'), raw('json', 1, 'd'), raw('json', 1, 'f8');
SELECT raw('numbers', 1, 'i8'), raw('numbers', 1, 'n'), raw('numbers', 1, 'd'), raw('numbers', 1, 'na');

-- what JSON has no words for
INSERT INTO types (id, n, f4, f8, ts, tz, dt) VALUES
	(2, 'NaN', 'NaN', 'Infinity', 'infinity', '-infinity', 'infinity'),
	(3, 'Infinity', '-Infinity', '-Infinity', '0044-03-15 12:00 BC', '12026-01-01 00:00+00', '4713-01-01 BC');
SELECT raw('numbers', 2, c) AS "2", raw('numbers', 3, c) AS "3"
FROM unnest('{n,f4,f8,ts,tz,dt}'::text[]) AS c;

-- numeric, digit by digit
CREATE TEMP TABLE amounts (n serial, value numeric);
INSERT INTO amounts (value) VALUES (0), (0.00), (-0.000001), (1), (10), (9999), (10000), (-10000.0001),
	(100000000), (0.0001), (0.00001000), (123456789.987654321), (1e30), (1e-30), (99999999.9999),
	(-5.50), (power(10::numeric, 1000)), (0.5), (20000000000000000.02);
INSERT INTO types (id, n) SELECT 100 + n, value FROM amounts;
SELECT count(*) AS wrong FROM amounts
WHERE raw('numbers', 100 + n, 'n') <> value::text OR raw('json', 100 + n, 'n') <> to_json(value::text)::text;
INSERT INTO types (id, n) SELECT 1000 + i, (random() * 10 ^ (i % 20 - 8))::numeric * (CASE i % 3 WHEN 0 THEN -1 ELSE 1 END)
FROM generate_series(1, 200) i;
SELECT count(*) AS wrong FROM types WHERE id > 1000 AND raw('numbers', id, 'n') <> n::text;

-- dates and times of many years
INSERT INTO types (id, tz, ts, dt, f8, i8) SELECT 2000 + i, t, t AT TIME ZONE 'UTC', (t AT TIME ZONE 'UTC')::date, i / 7.0, i * 1000003
FROM generate_series(1, 200) i, LATERAL (SELECT '0001-01-01 00:00+00'::timestamptz + i * interval '18250 days 7 hours 11.123457 seconds') AS x (t)
WHERE extract(year FROM t) < 10000;
SELECT count(*) AS rows,
	count(*) FILTER (WHERE (raw('json', id, 'tz')::json #>> '{}')::timestamptz <> tz) AS tz,
	count(*) FILTER (WHERE (raw('json', id, 'ts')::json #>> '{}')::timestamp <> ts) AS ts,
	count(*) FILTER (WHERE (raw('json', id, 'dt')::json #>> '{}')::date <> dt) AS dt,
	count(*) FILTER (WHERE (raw('json', id, 'f8'))::float8 <> f8) AS f8
FROM types WHERE id > 2000;

-- every character below 256, and some above
INSERT INTO types (id, t) SELECT 3000 + i, 'a' || chr(i) || 'b' FROM generate_series(1, 700) i;
SELECT count(*) AS wrong FROM types WHERE id > 3000 AND raw('json', id, 't')::json #>> '{}' <> t;

-- a type that is gone
CREATE TYPE gone AS ENUM ('x');
CREATE TABLE leaving (id int PRIMARY KEY, g gone, n int);
SELECT payment_sync.capture_table('leaving');
SELECT payment_sync.alter_sync('json', add_tables => '{leaving}');
INSERT INTO leaving VALUES (1, 'x', 5);
ALTER TABLE leaving DROP COLUMN g;
DROP TYPE gone;
SELECT payment_sync.enable_sync('json');
CALL payment_sync.incremental_sync('json');
SELECT split_part(line, E'\t', 8)::jsonb -> 'new'
FROM regexp_split_to_table(pg_read_file('probe_json/received'), '\n') AS line
WHERE line LIKE '%leaving.insert%';

-- mistakes
SELECT payment_sync.preview_event('json', '{"id": 1}');
SELECT payment_sync.preview_event('json', '{"id": 77}', 'types');
SELECT payment_sync.preview_event('json', '{"id": 1}', 'pg_class');
SELECT payment_sync.preview_event('json', NULL);

SET client_min_messages = warning;
SELECT payment_sync.drop_sync('json'), payment_sync.drop_sync('numbers');
DROP TABLE types, leaving;
DROP SERVER regress_json CASCADE;
DROP SERVER regress_numbers CASCADE;
DROP FOREIGN DATA WRAPPER regress_probe;
DROP EXTENSION payment_sync;
