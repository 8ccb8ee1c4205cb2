-- capture_table() and release_table(): what they accept, refuse and leave
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
RESET client_min_messages;
CREATE SCHEMA capture;
SET search_path = capture, public;

-- the three places with a version agree
SELECT extversion = setting AS same
FROM pg_extension, (SELECT default_version AS setting FROM pg_available_extensions
					WHERE name = 'payment_sync') a
WHERE extname = 'payment_sync';

-- a plain table, by its primary key
CREATE TABLE payment (id bigint PRIMARY KEY, amount numeric(12, 2), card text, note text);
SELECT payment_sync.capture_table('payment');
SELECT * FROM payment_sync.captured_tables;
SELECT tgname, tgenabled, tgtype, tgfoid::regproc FROM pg_trigger
WHERE tgrelid = 'payment'::regclass ORDER BY 1;

-- again, with another definition: nothing is made twice
SELECT payment_sync.capture_table('payment', columns => '{id,amount}', old_values => 'all');
SELECT * FROM payment_sync.captured_tables;
SELECT count(*) FROM pg_trigger WHERE tgrelid = 'payment'::regclass;
INSERT INTO payment VALUES (1, 10, '4111', 'secret');
UPDATE payment SET card = '4222';
UPDATE payment SET amount = 11;
SELECT operation, key, new, old FROM payment_sync.changes;

-- back to the defaults
SELECT payment_sync.capture_table('payment');
SELECT * FROM payment_sync.captured_tables;

-- a named key: the columns of a unique index, given in any order
CREATE TABLE line (doc int NOT NULL, nr int NOT NULL, what text, UNIQUE (doc, nr));
SELECT payment_sync.capture_table('line');
SELECT payment_sync.capture_table('line', key => '{nr,doc}');
SELECT "table", key FROM payment_sync.captured_tables ORDER BY 1;

-- keys that are none
CREATE TABLE nokey (a int NOT NULL, b int, c int NOT NULL, d text NOT NULL);
SELECT payment_sync.capture_table('nokey', key => '{a}');
CREATE UNIQUE INDEX ON nokey (b);
SELECT payment_sync.capture_table('nokey', key => '{b}');
CREATE UNIQUE INDEX ON nokey (a) WHERE c > 0;
SELECT payment_sync.capture_table('nokey', key => '{a}');
CREATE UNIQUE INDEX ON nokey (lower(d));
SELECT payment_sync.capture_table('nokey', key => '{d}');
ALTER TABLE nokey ADD CONSTRAINT nokey_c UNIQUE (c) DEFERRABLE;
SELECT payment_sync.capture_table('nokey', key => '{c}');
CREATE INDEX ON nokey (a, c);
SELECT payment_sync.capture_table('nokey', key => '{a,c}');
SELECT payment_sync.capture_table('nokey', key => '{x}');
CREATE UNIQUE INDEX ON nokey (c) INCLUDE (a);
SELECT payment_sync.capture_table('nokey', key => '{c}');
CREATE TABLE late (id int PRIMARY KEY DEFERRABLE);
SELECT payment_sync.capture_table('late');

-- columns
SELECT payment_sync.capture_table('payment', columns => '{amount}');
SELECT payment_sync.capture_table('payment', columns => '{id,amuont}');
SELECT payment_sync.capture_table('payment', columns => '{id,ctid}');
SELECT payment_sync.capture_table('payment', columns => '{id,amount,amount}');
SELECT payment_sync.capture_table('payment', columns => '{}');
SELECT payment_sync.capture_table('payment', columns => '{id,NULL}');
SELECT payment_sync.capture_table('payment', key => '{}');
SELECT payment_sync.capture_table('payment', old_values => 'some');
SELECT payment_sync.capture_table('payment', old_values => NULL);
SELECT payment_sync.capture_table(NULL);
SELECT * FROM payment_sync.captured_tables ORDER BY 1;

-- relations that cannot be captured
CREATE VIEW a_view AS SELECT * FROM payment;
CREATE MATERIALIZED VIEW a_matview AS SELECT * FROM payment;
CREATE SEQUENCE a_sequence;
CREATE FOREIGN DATA WRAPPER regress_capture_fdw;
CREATE SERVER regress_capture_server FOREIGN DATA WRAPPER regress_capture_fdw;
CREATE FOREIGN TABLE a_foreign (id int) SERVER regress_capture_server;
CREATE TEMPORARY TABLE a_temp (id int PRIMARY KEY);
CREATE UNLOGGED TABLE an_unlogged (id int PRIMARY KEY);
SELECT payment_sync.capture_table('a_view');
SELECT payment_sync.capture_table('a_matview');
SELECT payment_sync.capture_table('a_sequence');
SELECT payment_sync.capture_table('a_foreign');
SELECT payment_sync.capture_table('a_temp');
SELECT payment_sync.capture_table('an_unlogged');
SELECT payment_sync.capture_table('pg_class');
SELECT payment_sync.capture_table('information_schema.sql_features');
SELECT payment_sync.capture_table('payment_sync.sync');
SELECT payment_sync.capture_table('payment_pkey');
SELECT payment_sync.capture_table(0);
SELECT payment_sync.capture_table('no_such_table');

-- release
SELECT payment_sync.release_table('payment');
SELECT count(*) FROM pg_trigger WHERE tgrelid = 'payment'::regclass;
UPDATE payment SET amount = 12;
SELECT count(*) FROM payment_sync.changes WHERE "table" = 'payment'::regclass;
SELECT payment_sync.release_table('payment');
SELECT payment_sync.release_table(NULL);
SELECT payment_sync.release_table(0);

-- the triggers are the owner's: a new name is no matter, dropping them is
ALTER TRIGGER payment_sync_capture ON line RENAME TO "zz last";
SELECT payment_sync.capture_table('line', key => '{doc,nr}');
SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = 'line'::regclass ORDER BY 1;
DROP TRIGGER "zz last" ON line;
DROP TRIGGER payment_sync_capture_truncate ON line;
ALTER TABLE line DISABLE TRIGGER "zz last";
ALTER TABLE line ENABLE TRIGGER ALL;
SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = 'line'::regclass ORDER BY 1;
SELECT payment_sync.release_table('line');
SELECT tgname FROM pg_trigger WHERE tgrelid = 'line'::regclass;

-- the trigger functions do nothing by themselves
CREATE TRIGGER by_hand AFTER INSERT ON line FOR EACH ROW
	EXECUTE FUNCTION payment_sync.capture_change();
INSERT INTO line VALUES (1, 1);
CREATE TRIGGER wrong BEFORE INSERT ON line FOR EACH ROW
	EXECUTE FUNCTION payment_sync.capture_change();
INSERT INTO line VALUES (1, 2);
SELECT payment_sync.capture_change();

-- all of it is transactional
DROP TRIGGER wrong ON line;
DROP TRIGGER by_hand ON line;
BEGIN;
SELECT payment_sync.capture_table('payment');
ROLLBACK;
SELECT * FROM payment_sync.captured_tables;
SELECT count(*) FROM pg_trigger WHERE tgrelid = 'payment'::regclass;

-- DROP EXTENSION takes the triggers along
SELECT payment_sync.capture_table('payment');
SELECT payment_sync.capture_table('line', key => '{doc,nr}');
SET client_min_messages = warning;
DROP EXTENSION payment_sync CASCADE;
SELECT tgrelid::regclass, tgname FROM pg_trigger
WHERE tgrelid IN ('payment'::regclass, 'line'::regclass);
INSERT INTO payment VALUES (2, 1);
DROP SCHEMA capture CASCADE;
DROP FOREIGN DATA WRAPPER regress_capture_fdw CASCADE;
