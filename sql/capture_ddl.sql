-- Tables change while their changes are recorded, and pending
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
RESET client_min_messages;
CREATE ROLE regress_ddl;
CREATE SCHEMA ddl;
SET search_path = ddl;
CREATE VIEW log AS
	SELECT operation AS op, "table"::text, key, new, old FROM payment_sync.changes;
CREATE TABLE pay (id int PRIMARY KEY, v text, secret text);
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('pull', '{pay}');

-- columns are added: with a default, which rows that are there get without
-- being written; dropped; added again by the same name
INSERT INTO pay VALUES (1, 'one'), (2, 'two');
ALTER TABLE pay ADD n int DEFAULT 5, ADD m text;
UPDATE pay SET v = 'ONE' WHERE id = 1;
UPDATE pay SET n = 5, m = NULL WHERE id = 2;
UPDATE pay SET n = 6 WHERE id = 2;
ALTER TABLE pay DROP secret;
ALTER TABLE pay ADD secret int;
UPDATE pay SET secret = 42 WHERE id = 1;
ALTER TABLE pay DROP secret;
DELETE FROM pay WHERE id = 2;
SELECT * FROM log;
TRUNCATE payment_sync.log_0;

-- types change, the key's as well; the rewritten rows are no changes
ALTER TABLE pay ALTER n TYPE numeric(8, 2), ALTER m TYPE timestamptz USING now();
ALTER TABLE pay ALTER id TYPE bigint;
INSERT INTO pay VALUES (9000000000, 'big', 1.5, 'epoch');
ALTER TABLE pay ALTER v TYPE varchar(30);
UPDATE pay SET n = 7 WHERE id = 1;
SELECT op, key, new - 'm' AS new, old FROM log;
TRUNCATE payment_sync.log_0;

-- names change while changes are pending: each has the names of its time,
-- the table and what is fetched follow
INSERT INTO pay (id, v) VALUES (3, 'before');
ALTER TABLE pay RENAME v TO "value";
ALTER TABLE pay RENAME id TO pay_id;
ALTER TABLE pay RENAME TO payment;
CREATE SCHEMA later;
ALTER TABLE payment SET SCHEMA later;
INSERT INTO later.payment (pay_id, value) VALUES (4, 'after');
ALTER SCHEMA later RENAME TO latest;
SET search_path = ddl, latest;
SELECT op, "table", key, new - 'm' - 'n' AS new FROM log;
SELECT "table", columns, key, syncs FROM payment_sync.captured_tables;
SELECT tables, targets FROM payment_sync.syncs;
SELECT key, new - 'm' - 'n' AS new FROM payment_sync.fetch_changes('pull');
-- with named columns, those follow, too
SELECT payment_sync.capture_table('payment', columns => '{pay_id,value,n}');
ALTER TABLE payment RENAME n TO net;
ALTER TABLE payment ADD other text;
SELECT columns FROM payment_sync.captured_tables;
ALTER TABLE payment DROP net;
SELECT columns FROM payment_sync.captured_tables;
TRUNCATE payment_sync.log_0;
INSERT INTO payment VALUES (5, 'named');
SELECT * FROM log;

-- of typed and inheriting tables, by their type or parent
CREATE TYPE typed AS (id int, v text);
CREATE TABLE of_type OF typed (PRIMARY KEY (id));
CREATE TABLE parent (id int, v text);
CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
SELECT payment_sync.capture_table(t, columns => '{id,v}') FROM unnest('{of_type,child}'::regclass[]) t;
ALTER TYPE typed RENAME ATTRIBUTE v TO w CASCADE;
ALTER TABLE parent RENAME v TO w;
SELECT "table", columns FROM payment_sync.captured_tables WHERE "table" IN ('of_type'::regclass, 'child'::regclass);
ALTER TYPE typed RENAME ATTRIBUTE id TO nr CASCADE;
ALTER TYPE typed DROP ATTRIBUTE w CASCADE;
ALTER TABLE parent DROP w;
SELECT "table", columns, key FROM payment_sync.captured_tables WHERE "table" IN ('of_type'::regclass, 'child'::regclass);
DROP TYPE typed CASCADE;
DROP TABLE parent CASCADE;
-- names that change places; and under session_replication_role = replica
SET session_replication_role = replica;
CREATE TABLE swap (id int PRIMARY KEY, captured text, secret text);
SELECT payment_sync.capture_table('swap', columns => '{id,captured}');
ALTER TABLE swap RENAME captured TO temporary;
ALTER TABLE swap RENAME secret TO captured;
ALTER TABLE swap RENAME temporary TO secret;
INSERT INTO swap VALUES (1, 'public', 'never');
SELECT columns FROM payment_sync.captured_tables WHERE "table" = 'swap'::regclass;
SELECT new FROM payment_sync.changes WHERE "table" = 'swap'::regclass;
DROP TABLE swap;
RESET session_replication_role;
SELECT "table" FROM payment_sync.captured_tables;

-- what may not be done to a captured table
ALTER TABLE payment SET UNLOGGED;
ALTER TABLE payment DROP CONSTRAINT pay_pkey;
ALTER TABLE payment DROP pay_id;
DROP INDEX pay_pkey;
ALTER TABLE payment ALTER pay_id DROP NOT NULL;
-- another key, then it may
CREATE UNIQUE INDEX by_value ON payment (value);
SELECT payment_sync.capture_table('payment', key => '{value}');
ALTER TABLE payment ALTER value SET NOT NULL;
SELECT payment_sync.capture_table('payment', key => '{value}');
ALTER TABLE payment DROP CONSTRAINT pay_pkey;
DROP INDEX by_value;
DROP INDEX CONCURRENTLY by_value;
SELECT indisvalid, indisready FROM pg_index WHERE indexrelid = 'by_value'::regclass;
CREATE UNIQUE INDEX by_value_too ON payment (value);
DROP INDEX CONCURRENTLY by_value_too;
DROP INDEX CONCURRENTLY IF EXISTS no_such_index;
ALTER TABLE payment ALTER value DROP NOT NULL;
ALTER TABLE payment DROP pay_id;

-- rewritten and rebuilt, it stays captured, and none of that is a change
TRUNCATE payment_sync.log_0;
CLUSTER payment USING by_value;
VACUUM FULL payment;
REINDEX TABLE payment;
REINDEX TABLE CONCURRENTLY payment;
ALTER TABLE payment SET (fillfactor = 70);
ALTER TABLE payment ADD rewritten double precision DEFAULT random();
ALTER TABLE payment SET ACCESS METHOD heap;
VACUUM ANALYZE payment;
SELECT count(*) FROM log;
INSERT INTO payment (value) VALUES ('still captured');
SELECT op, key FROM log;

-- triggers switched off: documented, and warned of; switched on, they are as before
CREATE VIEW triggers AS SELECT tgname, tgenabled FROM pg_trigger
	WHERE tgrelid = (SELECT oid FROM pg_class WHERE relname = 'payment') ORDER BY 1;
ALTER TABLE payment DISABLE TRIGGER USER;
INSERT INTO payment (value) VALUES ('not captured');
SELECT * FROM triggers;
ALTER TABLE payment ENABLE TRIGGER USER;
SELECT * FROM triggers;
ALTER TABLE payment DISABLE TRIGGER ALL;
INSERT INTO payment (value) VALUES ('not captured, either');
ALTER TABLE payment ENABLE TRIGGER ALL;
ALTER TABLE payment ENABLE REPLICA TRIGGER payment_sync_capture;
INSERT INTO payment (value) VALUES ('captured');
SELECT op, key FROM log OFFSET 1;
-- capture_table() puts it right as well
ALTER TABLE payment DISABLE TRIGGER payment_sync_capture;
SELECT payment_sync.capture_table('payment', key => '{value}');
SELECT * FROM triggers;

-- tables go, by all ways, and nothing of them stays but their changes
CREATE TABLE gone_1 (id int PRIMARY KEY);
CREATE SCHEMA going;
CREATE TABLE going.gone_2 (id int PRIMARY KEY);
CREATE TABLE going.gone_3 (id int, PRIMARY KEY (id)) PARTITION BY LIST (id);
CREATE TABLE gone_3_1 PARTITION OF going.gone_3 FOR VALUES IN (1);
CREATE TABLE gone_4 (id int PRIMARY KEY);
CREATE TYPE typed AS (id int);
CREATE TABLE gone_5 OF typed (PRIMARY KEY (id));
SELECT payment_sync.capture_table(t)
FROM unnest('{gone_1,going.gone_2,going.gone_3,gone_4,gone_5}'::regclass[]) t;
SELECT payment_sync.alter_sync('pull', add_tables => '{gone_1,going.gone_2,going.gone_3,gone_4,gone_5}');
ALTER TABLE gone_4 OWNER TO regress_ddl;
INSERT INTO gone_1 VALUES (1);
DROP TABLE gone_1;
SET client_min_messages = warning;
DROP SCHEMA going CASCADE;
DROP TYPE typed CASCADE;
RESET client_min_messages;
DROP OWNED BY regress_ddl;
SELECT "table", syncs FROM payment_sync.captured_tables;
SELECT tables FROM payment_sync.syncs;
SELECT count(*) FROM payment_sync.changes WHERE key = '{"id": 1}';
-- rolled back, it is all there
BEGIN;
DROP TABLE payment;
SELECT "table" FROM payment_sync.captured_tables;
ROLLBACK;
SELECT "table" FROM payment_sync.captured_tables;
TRUNCATE payment_sync.log_0;
UPDATE payment SET value = 'after rollback' WHERE value = 'captured';
SELECT op, key FROM log;

SET client_min_messages = warning;
DROP EXTENSION payment_sync CASCADE;
DROP SCHEMA ddl, latest CASCADE;
DROP ROLE regress_ddl;
