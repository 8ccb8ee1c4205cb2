-- What the extension is made of, and that nothing of it is left behind
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
RESET client_min_messages;

-- no function runs with its owner's rights; if one did, it would have to pin
-- its search_path
SELECT oid::regprocedure, prosecdef, proconfig FROM pg_proc
WHERE pronamespace = 'payment_sync'::regnamespace
AND (prosecdef OR proconfig IS NOT NULL);
SELECT count(*) > 20 AS there_are_functions FROM pg_proc
WHERE pronamespace = 'payment_sync'::regnamespace;

-- all that is in the schema is the extension's
SELECT relname FROM pg_class c
WHERE relnamespace = 'payment_sync'::regnamespace AND relkind IN ('r', 'v', 'S')
AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass
				AND objid = c.oid AND deptype = 'e');

-- pg_dump keeps definitions, and nothing else
SELECT conf::regclass, cond FROM pg_extension, unnest(extconfig, extcondition) AS c (conf, cond)
WHERE extname = 'payment_sync' ORDER BY conf::regclass::text;

-- the change log needs no TOAST table, no index, no vacuum
SELECT relname, reltoastrelid, relhasindex, reloptions FROM pg_class
WHERE relnamespace = 'payment_sync'::regnamespace AND relname LIKE 'log\__' ORDER BY 1;

-- nobody but the owner may write anywhere
SELECT c.relname, p.priv
FROM pg_class c, unnest('{INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) AS p (priv)
WHERE relnamespace = 'payment_sync'::regnamespace AND relkind IN ('r', 'v')
AND has_table_privilege('pg_monitor', c.oid, p.priv);
SELECT has_schema_privilege('pg_monitor', 'payment_sync', 'USAGE') AS usage,
	has_schema_privilege('pg_monitor', 'payment_sync', 'CREATE') AS "create";

-- the extension is where it is
ALTER EXTENSION payment_sync SET SCHEMA public;

-- its trigger functions cannot be called otherwise
SELECT payment_sync.on_sql_drop();
CREATE TABLE lone (id int PRIMARY KEY);
CREATE TRIGGER wrong AFTER INSERT ON lone FOR EACH STATEMENT
	EXECUTE FUNCTION payment_sync.capture_change();
INSERT INTO lone VALUES (1);
DROP TABLE lone;

-- DROP EXTENSION takes all that it put elsewhere along: triggers, of
-- partitions as well, and of renamed tables and triggers
CREATE SCHEMA left_behind;
SET search_path = left_behind;
CREATE TABLE plain (id int PRIMARY KEY);
CREATE TABLE parted (id int, d int, PRIMARY KEY (id, d)) PARTITION BY LIST (d);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES IN (2) PARTITION BY LIST (id);
CREATE TABLE parted_2_2 PARTITION OF parted_2 FOR VALUES IN (2);
SELECT payment_sync.capture_table(t) FROM unnest('{plain,parted}'::regclass[]) t;
CREATE TABLE parted_3 PARTITION OF parted FOR VALUES IN (3);
ALTER TRIGGER payment_sync_capture ON plain RENAME TO "else";
ALTER TABLE plain RENAME TO simple;
CREATE SERVER regress_target FOREIGN DATA WRAPPER payment_sync_postgres;
SELECT payment_sync.create_sync('s', '{simple}');
SELECT count(*) FROM pg_trigger WHERE tgrelid::regclass::text ~ 'simple|parted';
INSERT INTO simple VALUES (1);
INSERT INTO parted VALUES (1, 1), (2, 2), (3, 3);

DROP EXTENSION payment_sync;
SET client_min_messages = warning;
DROP EXTENSION payment_sync CASCADE;
RESET client_min_messages;
SELECT tgrelid::regclass, tgname FROM pg_trigger WHERE NOT tgisinternal;
SELECT evtname FROM pg_event_trigger;
SELECT nspname FROM pg_namespace WHERE nspname = 'payment_sync';
SELECT fdwname FROM pg_foreign_data_wrapper;
SELECT srvname FROM pg_foreign_server;
SELECT pg_describe_object(classid, objid, objsubid) AS orphan FROM pg_depend d
WHERE refclassid = 'pg_extension'::regclass
AND NOT EXISTS (SELECT FROM pg_extension e WHERE e.oid = d.refobjid);

-- and the tables are as they were
INSERT INTO simple VALUES (2);
UPDATE parted SET id = 4, d = 3 WHERE id = 1;
TRUNCATE parted_3, parted, simple;
ALTER TABLE parted DETACH PARTITION parted_3;
DROP TABLE parted, parted_3;

-- a second life begins anew
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
SELECT payment_sync.capture_table('simple');
INSERT INTO simple VALUES (3);
SELECT operation, key FROM payment_sync.changes;
DROP SCHEMA left_behind CASCADE;
SELECT * FROM payment_sync.captured_tables;
DROP EXTENSION payment_sync;
