-- What is recorded of each kind of statement
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
RESET client_min_messages;
CREATE SCHEMA stmt;
SET search_path = stmt;
CREATE VIEW log AS
	SELECT operation AS op, "table", key, new, old FROM payment_sync.changes;
CREATE TABLE pay (id int PRIMARY KEY, who text, amount numeric(10,2), secret text);
SELECT payment_sync.capture_table('pay', columns => '{id,who,amount}');

-- single rows, several rows
INSERT INTO pay VALUES (1, 'a', 1.5, 'hidden');
INSERT INTO pay VALUES (2, 'b', 2), (3, 'c', 3);
UPDATE pay SET who = 'A' WHERE id = 1;
UPDATE pay SET amount = amount * 2 WHERE id > 1 RETURNING id;
DELETE FROM pay WHERE id = 1;
DELETE FROM pay USING (VALUES (2), (3)) v (id) WHERE pay.id = v.id RETURNING who;
SELECT * FROM log;
TRUNCATE payment_sync.log_0;

-- COPY, also with WHERE, and FREEZE of a table that is new
COPY pay FROM stdin;
4	d	4	x
5	e	\N	y
\.
COPY pay (id, who) FROM stdin (FORMAT csv) WHERE id > 6;
6,f
7,g
\.
BEGIN;
TRUNCATE pay;
COPY pay FROM stdin (FREEZE);
8	frozen	8	x
\.
UPDATE pay SET who = 'thawed';
COMMIT;
SELECT * FROM log;
TRUNCATE payment_sync.log_0;

-- INSERT … ON CONFLICT
INSERT INTO pay VALUES (1, 'a', 1);
INSERT INTO pay VALUES (1, 'z', 9), (9, 'i', 9) ON CONFLICT (id) DO UPDATE SET who = excluded.who;
INSERT INTO pay VALUES (1, 'z', 9) ON CONFLICT (id) DO UPDATE SET who = 'never' WHERE pay.id = 2;
INSERT INTO pay VALUES (1, 'z', 9), (10, 'j', 10) ON CONFLICT DO NOTHING;
SELECT op, key, new->>'who' AS who, old FROM log;
TRUNCATE payment_sync.log_0;

-- MERGE
MERGE INTO pay USING (VALUES (1, 'merged'), (9, 'deleted'), (10, 'nothing'), (20, 'new')) v (id, who) ON pay.id = v.id
	WHEN MATCHED AND v.who = 'deleted' THEN DELETE
	WHEN MATCHED AND v.who = 'nothing' THEN DO NOTHING
	WHEN MATCHED THEN UPDATE SET who = v.who
	WHEN NOT MATCHED THEN INSERT VALUES (v.id, v.who);
SELECT op, key, new->>'who' AS who, old FROM log ORDER BY key->'id';
TRUNCATE payment_sync.log_0;

-- writes in WITH, several in one statement
WITH gone AS (DELETE FROM pay WHERE id = 20 RETURNING *),
	changed AS (UPDATE pay SET amount = 0 WHERE id = 1 RETURNING id)
INSERT INTO pay SELECT gone.id + changed.id, who, amount FROM gone, changed;
-- UPDATE … FROM, a cursor, dynamic SQL, a prepared statement, a view
UPDATE pay SET who = v.who FROM (VALUES (1, 'from')) v (id, who) WHERE pay.id = v.id;
BEGIN;
DECLARE c CURSOR FOR SELECT * FROM pay WHERE id = 1 FOR UPDATE;
FETCH c;
UPDATE pay SET who = 'cursor' WHERE CURRENT OF c;
DELETE FROM pay WHERE CURRENT OF c;
COMMIT;
PREPARE ins (int) AS INSERT INTO pay VALUES ($1, 'prepared');
EXECUTE ins (30);
EXECUTE ins (31);
CREATE VIEW pay_view AS SELECT id, who FROM pay;
UPDATE pay_view SET who = 'by view' WHERE id = 31;
CREATE TABLE source AS SELECT 40 AS id, 'selected'::text AS who;
INSERT INTO pay TABLE source;
SELECT op, key, new->>'who' AS who, old FROM log;
TRUNCATE payment_sync.log_0;

-- what leaves no trace: no row, nothing changed, or only what is not captured
UPDATE pay SET who = 'x' WHERE false;
DELETE FROM pay WHERE id = 0;
UPDATE pay SET who = who, amount = amount, id = id;
UPDATE pay SET secret = 'other';
INSERT INTO pay SELECT * FROM pay WHERE false;
SELECT id FROM pay WHERE id = 40 FOR UPDATE;
SELECT count(*) FROM log;

-- the key changes; so does a key of several columns, in whole or part
UPDATE pay SET id = 100, amount = 7 WHERE id = 40;
CREATE TABLE line (doc int, what text, nr int, PRIMARY KEY (nr, doc));
SELECT payment_sync.capture_table('line');
INSERT INTO line VALUES (1, 'x', 10), (2, 'y', 20);
UPDATE line SET nr = 11 WHERE doc = 1;
UPDATE line SET doc = doc + 10, nr = nr + 10, what = 'z' WHERE doc = 2;
UPDATE line SET what = 'same key';
DELETE FROM line;
SELECT * FROM log;
TRUNCATE payment_sync.log_0;
-- two rows that swap their keys' values by way of a third
INSERT INTO line VALUES (1, 'a', 1), (1, 'b', 2);
UPDATE line SET nr = 3 - nr + 10;
UPDATE line SET nr = nr - 10;
SELECT op, key, new->'what' AS what, old->'nr' AS old_nr FROM log OFFSET 2;
TRUNCATE payment_sync.log_0;

-- a key that is not the primary key; stored generated columns; defaults,
-- identities and BEFORE triggers: what is stored is recorded
CREATE TABLE item (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, code text NOT NULL UNIQUE,
	net int, gross int GENERATED ALWAYS AS (net * 119 / 100) STORED, at date DEFAULT '2026-01-01');
SELECT payment_sync.capture_table('item', key => '{code}');
INSERT INTO item (code, net) VALUES ('x', 100);
UPDATE item SET net = 200;
UPDATE item SET code = 'y';
SELECT * FROM log;
TRUNCATE payment_sync.log_0;
-- a generated column changes with one that is not captured
SELECT payment_sync.capture_table('item', key => '{code}', columns => '{code,gross}');
UPDATE item SET net = 201;
UPDATE item SET at = 'infinity';
SELECT op, new, old FROM log;

-- excluded columns are never read: the type of this one can be stored, but
-- who sends it fails
CREATE TYPE mute;
SET client_min_messages = warning;	-- the notices' form is a version's own
CREATE FUNCTION mute_in(cstring) RETURNS mute LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION mute_out(mute) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
CREATE FUNCTION mute_recv(internal) RETURNS mute LANGUAGE internal IMMUTABLE STRICT AS 'textrecv';
CREATE FUNCTION mute_send(mute) RETURNS bytea LANGUAGE internal IMMUTABLE STRICT AS 'trigger_in';
RESET client_min_messages;
CREATE TYPE mute (INPUT = mute_in, OUTPUT = mute_out, RECEIVE = mute_recv, SEND = mute_send, LIKE = text);
CREATE TABLE card (pan mute, id int PRIMARY KEY, brand text, cvc mute);
SELECT payment_sync.capture_table('card');
INSERT INTO card VALUES ('4111', 1, 'visa', '123');
SELECT payment_sync.capture_table('card', columns => '{id,brand}', old_values => 'all');
TRUNCATE payment_sync.log_0;
INSERT INTO card VALUES ('4111', 1, 'visa', '123');
UPDATE card SET brand = 'other', pan = '4222';
UPDATE card SET cvc = NULL;
DELETE FROM card;
SELECT op, new, old FROM log;
SELECT count(*) AS secrets FROM payment_sync.log_0 WHERE position('4111'::bytea IN data) + position('123'::bytea IN data) > 0;

SET client_min_messages = warning;
DROP EXTENSION payment_sync CASCADE;
DROP SCHEMA stmt CASCADE;
