-- who may do what: no roles of the extension's own, ownership decides
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
RESET client_min_messages;
CREATE ROLE regress_owner;
CREATE ROLE regress_deputy;
CREATE ROLE regress_writer;
CREATE ROLE regress_watcher;
CREATE ROLE regress_reader;
GRANT regress_owner TO regress_deputy;
GRANT pg_monitor TO regress_watcher;
CREATE SCHEMA bank AUTHORIZATION regress_owner;
GRANT USAGE ON SCHEMA bank TO PUBLIC;
CREATE SERVER regress_open FOREIGN DATA WRAPPER payment_sync_postgres OPTIONS (host '/nonexistent');
CREATE SERVER regress_closed FOREIGN DATA WRAPPER payment_sync_postgres OPTIONS (host '/nonexistent');
GRANT USAGE ON FOREIGN SERVER regress_open TO regress_owner;
SET search_path = bank;

SET ROLE regress_owner;
CREATE TABLE account (id int PRIMARY KEY, balance numeric, pin text);
CREATE TABLE secret (id int PRIMARY KEY, what text);
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON account TO regress_writer;
GRANT SELECT ON account TO regress_reader;
RESET ROLE;

-- capture: the table's owner, and members of that role
SET ROLE regress_writer;
SELECT payment_sync.capture_table('bank.account');
SELECT payment_sync.capture_table('pg_catalog.pg_class');
SET ROLE regress_deputy;
SELECT payment_sync.capture_table('bank.account');
SET ROLE regress_owner;
SELECT payment_sync.capture_table('bank.account', columns => '{id,balance}');
SELECT payment_sync.capture_table('bank.secret');
SET ROLE regress_writer;
SELECT payment_sync.release_table('bank.account');

-- the tables of the extension are nobody else's
SELECT * FROM payment_sync.captured;
SELECT * FROM payment_sync.sync;
SELECT * FROM payment_sync.sync_state;
SELECT * FROM payment_sync.log_0;
INSERT INTO payment_sync.captured VALUES ('bank.account', NULL, '{id}');
DELETE FROM payment_sync.shape;
SELECT nextval('payment_sync.shape_id');

-- writers need nothing
INSERT INTO bank.account VALUES (1, 10, '0000'), (2, 20, '1111');
UPDATE bank.account SET balance = 30 WHERE id = 2;
DELETE FROM bank.account WHERE id = 1;
TRUNCATE bank.account;

-- definitions of tables are for all to see, changes for who may read the table
SELECT * FROM payment_sync.captured_tables ORDER BY "table"::text;
SELECT operation, "table", key, new, old FROM payment_sync.changes;
SET ROLE regress_owner;
INSERT INTO secret VALUES (1, 'owner only');
SELECT operation, "table", key FROM payment_sync.changes;
SET ROLE regress_reader;
SELECT operation, "table", key FROM payment_sync.changes;
SET ROLE regress_watcher;
SELECT operation, "table", key FROM payment_sync.changes;
RESET ROLE;
SELECT operation, "table", key FROM payment_sync.changes;

-- who may read some columns only does not see the changes
REVOKE SELECT ON account FROM regress_reader;
GRANT SELECT (id) ON account TO regress_reader;
SET ROLE regress_reader;
SELECT count(*) FROM payment_sync.changes;

-- nor does who is subject to row security; the owner is not, unless forced
RESET ROLE;
ALTER TABLE account ENABLE ROW LEVEL SECURITY;
CREATE POLICY high_ids ON account USING (id > 1);
SET ROLE regress_writer;
SELECT count(*) FROM payment_sync.changes;
SET ROLE regress_owner;
SELECT count(*) FROM payment_sync.changes;
ALTER TABLE account FORCE ROW LEVEL SECURITY;
SELECT count(*) FROM payment_sync.changes;
ALTER TABLE account NO FORCE ROW LEVEL SECURITY, DISABLE ROW LEVEL SECURITY;

-- syncs: owner of all tables, USAGE on the server
SELECT payment_sync.create_sync('books', '{account,secret}', 'regress_closed');
SELECT payment_sync.create_sync('books', '{account,secret}', 'regress_open', enabled => false);
SELECT payment_sync.create_sync('pull', '{account,secret}');
SELECT payment_sync.alter_sync('books', server => 'regress_closed');
SET ROLE regress_writer;
SELECT payment_sync.create_sync('mine', '{bank.account}');

-- a sync is its owner's
SELECT payment_sync.alter_sync('books', new_name => 'x');
SELECT payment_sync.enable_sync('books');
SELECT payment_sync.disable_sync('books');
SELECT payment_sync.drop_sync('books');
SELECT payment_sync.cancel_batch('books');
SELECT payment_sync.fetch_changes('pull');
SELECT payment_sync.ack_changes('pull', '1/1/1');
CALL payment_sync.incremental_sync('books');
CALL payment_sync.batch_sync('books');

-- who sees that there are any: the owner, and pg_monitor
SELECT name FROM payment_sync.syncs;
SELECT name FROM payment_sync.stat_sync;
SELECT sync FROM payment_sync.progress_batch;
SET ROLE regress_watcher;
SELECT name, owner, enabled FROM payment_sync.syncs ORDER BY name;
SELECT name, state, lag_changes FROM payment_sync.stat_sync ORDER BY name;
SET ROLE regress_deputy;
SELECT name, state, lag_changes FROM payment_sync.stat_sync ORDER BY name;

-- what may name a key is for the owner
RESET ROLE;
UPDATE payment_sync.sync_state SET last_error = 'no', last_error_detail = 'The change''s key is (id)=(42).';
SET ROLE regress_watcher;
SELECT name, last_error, last_error_detail FROM payment_sync.stat_sync ORDER BY name;
SET ROLE regress_deputy;
SELECT name, last_error, last_error_detail FROM payment_sync.stat_sync ORDER BY name;
SELECT payment_sync.disable_sync('pull', 'by deputy');
SELECT payment_sync.enable_sync('pull');

-- a view that leaks does not: its filter comes first
SET ROLE regress_writer;
CREATE FUNCTION pg_temp.peek(name) RETURNS boolean LANGUAGE plpgsql COST 0.0000001
	AS $$ BEGIN RAISE NOTICE 'saw %', $1; RETURN true; END $$;
SELECT name FROM payment_sync.syncs WHERE pg_temp.peek(name);

-- fetching needs the right to read, too
SET ROLE regress_owner;
INSERT INTO account VALUES (5, 50, '5555');
INSERT INTO secret VALUES (5, 'five');
SELECT operation, "table", new FROM payment_sync.fetch_changes('pull');
REVOKE SELECT ON secret FROM regress_owner;
SELECT operation, "table", new FROM payment_sync.fetch_changes('pull');
GRANT SELECT ON secret TO regress_owner;

-- names in the search path of a caller lead nowhere
RESET ROLE;
CREATE SCHEMA trap AUTHORIZATION regress_owner;
SET ROLE regress_owner;
CREATE TABLE trap.captured AS SELECT 1 AS relid;
CREATE FUNCTION trap.array_replace(name[], name, name) RETURNS name[] LANGUAGE sql
	AS $$ SELECT '{trapped}'::name[] $$;
SET search_path = trap, bank, pg_catalog;
ALTER TABLE account RENAME balance TO amount;
SELECT columns FROM payment_sync.captured_tables WHERE "table" = 'account'::regclass;
SET search_path = bank;

-- a new owner of the table: the old one's syncs stop
RESET ROLE;
ALTER TABLE secret OWNER TO regress_writer;
SELECT name, enabled FROM payment_sync.syncs ORDER BY name;
SELECT name, state, disabled_reason FROM payment_sync.stat_sync WHERE name = 'pull';
SET ROLE regress_owner;
SELECT payment_sync.enable_sync('pull');
SELECT payment_sync.alter_sync('books', drop_tables => '{secret}');
INSERT INTO account VALUES (6);
SELECT payment_sync.enable_sync('books');
RESET ROLE;
REASSIGN OWNED BY regress_owner TO regress_writer;
CALL payment_sync.incremental_sync('books');
SELECT payment_sync.disable_sync('books');
REASSIGN OWNED BY regress_writer TO regress_owner;

-- all of it goes with DROP OWNED
DROP OWNED BY regress_owner;
SELECT "table", syncs FROM payment_sync.captured_tables;
SELECT name, tables FROM payment_sync.syncs ORDER BY name;

-- functions to be called through the views only give nothing away
SET ROLE regress_reader;
SELECT payment_sync.worker_pid(gen_random_uuid());
SELECT * FROM payment_sync.sync_lag(gen_random_uuid());
RESET ROLE;

-- capture can be kept to some
REVOKE EXECUTE ON FUNCTION payment_sync.capture_table FROM PUBLIC;
SET ROLE regress_writer;
SELECT payment_sync.capture_table('pg_class');
RESET ROLE;

SET client_min_messages = warning;
DROP EXTENSION payment_sync CASCADE;
DROP OWNED BY regress_owner, regress_deputy, regress_writer, regress_watcher, regress_reader;
DROP ROLE regress_owner, regress_deputy, regress_writer, regress_watcher, regress_reader;
