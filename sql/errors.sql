-- mistakes are answered with what was wrong and what to do
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
RESET client_min_messages;
CREATE SCHEMA errors;
SET search_path = errors;
CREATE TABLE payment (id int PRIMARY KEY, amount numeric, currency text);
CREATE TABLE refund (id int PRIMARY KEY);
CREATE TABLE event (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE event_2030 PARTITION OF event FOR VALUES FROM ('2030-01-01') TO ('2031-01-01');
SELECT payment_sync.capture_table(t) FROM unnest('{payment,event}'::regclass[]) t;
CREATE SERVER regress_ledger FOREIGN DATA WRAPPER payment_sync_postgres
	OPTIONS (host '/nonexistent');
SELECT payment_sync.create_sync('ledger', '{payment,event}', 'regress_ledger', enabled => false);
SELECT payment_sync.create_sync('billing', '{payment}');

-- names that nearly exist
SELECT payment_sync.drop_sync('leger');
\echo :LAST_ERROR_SQLSTATE
SELECT payment_sync.alter_sync('Ledger');
SELECT payment_sync.enable_sync('ledger2');
SELECT payment_sync.disable_sync('biling');
SELECT payment_sync.cancel_batch('bilingg');
SELECT payment_sync.fetch_changes('bill');
SELECT payment_sync.ack_changes('archive', '1/1/1');
CALL payment_sync.incremental_sync('ledgre');
\echo :LAST_ERROR_SQLSTATE
CALL payment_sync.batch_sync('ledgre');
SELECT payment_sync.create_sync('x', '{payment}', 'regress_leger');
\echo :LAST_ERROR_SQLSTATE
SELECT payment_sync.alter_sync('ledger', server => 'nowhere');
SELECT payment_sync.capture_table('payment', columns => '{id,curency}');
\echo :LAST_ERROR_SQLSTATE
SELECT payment_sync.capture_table('payment', columns => '{id,merchant}');

-- suggestions give nothing away to those who may not see it
CREATE ROLE regress_stranger;
SET ROLE regress_stranger;
SELECT payment_sync.drop_sync('leger');
RESET ROLE;

-- tables that are there, but not in it
SELECT payment_sync.create_sync('x', '{refund}');
\echo :LAST_ERROR_SQLSTATE
SELECT payment_sync.create_sync('x', '{event_2030}');
SELECT payment_sync.release_table('refund');
SELECT payment_sync.release_table('event_2030');
\echo :LAST_ERROR_SQLSTATE
SELECT payment_sync.alter_sync('ledger', drop_tables => '{refund}');
\echo :LAST_ERROR_SQLSTATE
SELECT payment_sync.alter_sync('ledger', drop_tables => '{4711}');
SELECT payment_sync.cancel_batch('ledger', 'refund');
SELECT payment_sync.enable_sync('ledger');
CALL payment_sync.batch_sync('ledger', 'refund');
\echo :LAST_ERROR_SQLSTATE
SELECT payment_sync.disable_sync('ledger');

-- a sync in a state in which it cannot
CALL payment_sync.incremental_sync('ledger');
\echo :LAST_ERROR_SQLSTATE
CALL payment_sync.incremental_sync('billing');
\echo :LAST_ERROR_SQLSTATE
SELECT payment_sync.fetch_changes('ledger');
\echo :LAST_ERROR_SQLSTATE
SELECT payment_sync.disable_sync('billing');
SELECT payment_sync.fetch_changes('billing');
\echo :LAST_ERROR_SQLSTATE
SELECT payment_sync.ack_changes('billing', '1/1/1');
SELECT payment_sync.enable_sync('billing');

-- nulls
SELECT payment_sync.capture_table(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT payment_sync.release_table(NULL);
SELECT payment_sync.create_sync('x', '{payment}', batch => NULL);
SELECT payment_sync.create_sync('x', '{payment}', exclude_origins => NULL);
SELECT payment_sync.create_sync('x', '{payment}', on_log_full => NULL);
SELECT payment_sync.enable_sync(NULL);
SELECT payment_sync.drop_sync(NULL);
SELECT payment_sync.cancel_batch(NULL);
SELECT payment_sync.fetch_changes(NULL);
SELECT payment_sync.fetch_changes('billing', NULL);
SELECT payment_sync.ack_changes(NULL, '1/1/1');
SELECT payment_sync.ack_changes('billing', NULL);
CALL payment_sync.incremental_sync(NULL);
CALL payment_sync.batch_sync(NULL);
CALL payment_sync.batch_sync('ledger', mirror => NULL);

-- values that are none
SELECT payment_sync.fetch_changes('billing', 0);
\echo :LAST_ERROR_SQLSTATE
SELECT payment_sync.ack_changes('billing', 'yesterday');
\echo :LAST_ERROR_SQLSTATE
SELECT payment_sync.ack_changes('billing', '1/1');
SELECT payment_sync.ack_changes('billing', '99999999999999999999/1/1');
SELECT payment_sync.ack_changes('billing', '7/1/1');
SELECT payment_sync.create_sync('x', '{payment}', max_log_size => '0');
\echo :LAST_ERROR_SQLSTATE
SELECT payment_sync.create_sync('x', '{payment}', targets => '{a.b.c}');
SELECT payment_sync.enable_sync('billing', 'yesterday');

-- options: unknown, in the wrong place, with a wrong value
CREATE SERVER regress_x FOREIGN DATA WRAPPER payment_sync_postgres OPTIONS (hots 'a');
\echo :LAST_ERROR_SQLSTATE
CREATE SERVER regress_x FOREIGN DATA WRAPPER payment_sync_postgres OPTIONS (colour 'red');
CREATE SERVER regress_x FOREIGN DATA WRAPPER payment_sync_postgres OPTIONS (password 'secret');
\echo :LAST_ERROR_SQLSTATE
CREATE SERVER regress_x FOREIGN DATA WRAPPER payment_sync_postgres OPTIONS (sslmode 'on');
\echo :LAST_ERROR_SQLSTATE
CREATE SERVER regress_x FOREIGN DATA WRAPPER payment_sync_postgres OPTIONS (sslmode 'allow|prefer');
CREATE SERVER regress_x FOREIGN DATA WRAPPER payment_sync_postgres OPTIONS (connect_timeout '-1');
CREATE SERVER regress_x FOREIGN DATA WRAPPER payment_sync_postgres OPTIONS (connect_timeout '5 s');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_ledger OPTIONS (host 'a');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_ledger OPTIONS (passwort 'secret');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_ledger OPTIONS (password_required 'perhaps');
CREATE FOREIGN TABLE regress_x (a int) SERVER regress_ledger OPTIONS (host 'a');
CREATE FOREIGN TABLE regress_x (a int) SERVER regress_ledger;
GRANT USAGE ON FOREIGN SERVER regress_ledger TO regress_stranger;
SET ROLE regress_stranger;
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_ledger OPTIONS (sslkey '/etc/passwd');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;

SELECT payment_sync.drop_sync(name) FROM payment_sync.syncs;
SET client_min_messages = warning;
DROP SCHEMA errors CASCADE;
DROP SERVER regress_ledger CASCADE;
DROP ROLE regress_stranger;
DROP EXTENSION payment_sync CASCADE;
