-- syncs: defined, changed, enabled, disabled, dropped
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
RESET client_min_messages;
CREATE SCHEMA shop;
SET search_path = shop, public;
CREATE TABLE payment (id int PRIMARY KEY, amount numeric);
CREATE TABLE refund (id int PRIMARY KEY, amount numeric);
CREATE TABLE other (id int PRIMARY KEY);
SELECT payment_sync.capture_table(t) FROM unnest('{payment,refund}'::regclass[]) t;
CREATE SERVER regress_ledger FOREIGN DATA WRAPPER payment_sync_postgres
	OPTIONS (host '/nonexistent', dbname 'ledger');
CREATE SERVER regress_archive FOREIGN DATA WRAPPER payment_sync_postgres
	OPTIONS (host '/nonexistent', dbname 'archive');

-- a pull sync and one with a server
SELECT payment_sync.create_sync('pull', '{payment}');
SELECT payment_sync.create_sync('ledger', '{refund,payment}', 'regress_ledger',
	batch => true, targets => '{"\"Odd\".\"re.fund\"",NULL}', target_schema => 'acc',
	exclude_origins => '{*}', max_log_size => '1 GB', on_log_full => 'disable',
	enabled => false, mirror => true);
\x on
SELECT name, server, owner = current_user::regrole AS mine, enabled, tables, targets,
	exclude_origins, max_log_size, on_log_full
FROM payment_sync.syncs ORDER BY name;
SELECT name, server, state, lag_changes, lag_bytes, lag, windows, changes, errors,
	failures, last_error, next_retry, worker_pid, log_full, disabled_reason
FROM payment_sync.stat_sync ORDER BY name;
SELECT sync, "table", state, mirror, chunks, rows, percent, started, finished
FROM payment_sync.progress_batch ORDER BY "table";
\x off
SELECT "table", syncs FROM payment_sync.captured_tables ORDER BY 1;

-- mistakes
SELECT payment_sync.create_sync('ledger', '{payment}');
SELECT payment_sync.create_sync('x', '{other}');
SELECT payment_sync.create_sync('x', '{}');
SELECT payment_sync.create_sync('x', '{payment,NULL}');
SELECT payment_sync.create_sync('x', '{payment,payment}');
SELECT payment_sync.create_sync('', '{payment}');
SELECT payment_sync.create_sync(NULL, '{payment}');
SELECT payment_sync.create_sync('x', NULL);
SELECT payment_sync.create_sync('x', '{payment}', 'no_such_server');
SELECT payment_sync.create_sync('x', '{payment}', batch => true);
SELECT payment_sync.create_sync('x', '{payment}', targets => '{a,b}');
SELECT payment_sync.create_sync('x', '{payment}', targets => '{a.b.c}');
SELECT payment_sync.create_sync('x', '{payment}', targets => '{"\"a"}');
SELECT payment_sync.create_sync('x', '{payment}', max_log_size => 'much');
SELECT payment_sync.create_sync('x', '{payment}', max_log_size => '-1');
SELECT payment_sync.create_sync('x', '{payment}', on_log_full => 'panic');
SELECT name FROM payment_sync.syncs ORDER BY name;

-- a wrapper without a transport
CREATE FOREIGN DATA WRAPPER regress_no_transport;
CREATE SERVER regress_nowhere FOREIGN DATA WRAPPER regress_no_transport;
SELECT payment_sync.create_sync('x', '{payment}', 'regress_nowhere');

-- released tables and syncs
SELECT payment_sync.release_table('payment');

-- alter: only what is given changes
SELECT payment_sync.alter_sync('ledger', new_name => 'books', max_log_size => '');
SELECT payment_sync.alter_sync('books', drop_tables => '{refund}');
SELECT payment_sync.alter_sync('books', server => 'regress_archive',
	exclude_origins => '{}', on_log_full => 'warn');
SELECT name, server, tables, targets, exclude_origins, max_log_size, on_log_full
FROM payment_sync.syncs ORDER BY name;
SELECT "table" FROM payment_sync.progress_batch;
SELECT payment_sync.alter_sync('books', add_tables => '{refund}', targets => '{r}', batch => true);
SELECT targets FROM payment_sync.syncs WHERE name = 'books';
SELECT "table", mirror FROM payment_sync.progress_batch ORDER BY 1;
SELECT payment_sync.alter_sync('books', add_tables => '{refund}');
SELECT payment_sync.alter_sync('books', add_tables => '{other}');
SELECT payment_sync.alter_sync('books', drop_tables => '{other}');
SELECT payment_sync.alter_sync('books', new_name => 'pull');
SELECT payment_sync.alter_sync('books', targets => '{x}');
SELECT payment_sync.alter_sync('books', max_log_size => '0');
SELECT payment_sync.alter_sync('books', on_log_full => 'panic');
SELECT payment_sync.alter_sync('pull', server => 'regress_archive');
SELECT payment_sync.alter_sync('pull', add_tables => '{refund}', batch => true);
SELECT payment_sync.alter_sync('no such sync');
SELECT payment_sync.alter_sync(NULL);

-- batches can be cancelled, one or all
SELECT payment_sync.cancel_batch('books', 'refund');
SELECT payment_sync.cancel_batch('books');
SELECT payment_sync.cancel_batch('books');
SELECT sync, "table", state FROM payment_sync.progress_batch ORDER BY 1, 2;
SELECT payment_sync.cancel_batch('no such sync');

-- disable and enable; the log is kept meanwhile
SELECT payment_sync.disable_sync('pull', 'maintenance');
INSERT INTO payment VALUES (1, 10);
SELECT state, lag_changes, disabled_reason FROM payment_sync.stat_sync WHERE name = 'pull';
SELECT * FROM payment_sync.fetch_changes('pull');
SELECT payment_sync.enable_sync('pull');
SELECT state, lag_changes, disabled_reason FROM payment_sync.stat_sync WHERE name = 'pull';
SELECT operation, new FROM payment_sync.fetch_changes('pull');
-- leaving out what is pending
SELECT payment_sync.enable_sync('pull', start => 'now');
SELECT operation, new FROM payment_sync.fetch_changes('pull');
SELECT payment_sync.enable_sync('pull', start => 'batch');
SELECT payment_sync.enable_sync('pull', start => 'yesterday');
SELECT payment_sync.enable_sync('no such sync');
SELECT payment_sync.disable_sync(NULL);

-- as after a restore: defined, but without a position
DELETE FROM payment_sync.sync_state;
SELECT name, state, lag_changes FROM payment_sync.stat_sync ORDER BY name;
SELECT payment_sync.enable_sync('books');
SELECT * FROM payment_sync.fetch_changes('pull');
SELECT payment_sync.enable_sync('pull', 'now');
SELECT * FROM payment_sync.fetch_changes('pull');
SELECT payment_sync.enable_sync('books', 'batch');
SELECT payment_sync.disable_sync('books', 'moving');
SELECT sync, "table", state, mirror FROM payment_sync.progress_batch ORDER BY 1, 2;

-- a transaction's own changes belong to the sync it creates, also when others
-- have ended meanwhile
BEGIN;
INSERT INTO payment VALUES (2, 20);
SELECT payment_sync.create_sync('young', '{payment}');
INSERT INTO payment VALUES (3, 30);
COMMIT;
SELECT operation, key FROM payment_sync.fetch_changes('young');

-- servers: renamed with their syncs; dropped, they disable them
SELECT payment_sync.create_sync('two', '{payment}', 'regress_ledger');
ALTER SERVER regress_ledger RENAME TO regress_book;
SELECT name, server, enabled FROM payment_sync.syncs WHERE name = 'two';
DROP SERVER regress_book;
SELECT name, server, state, disabled_reason FROM payment_sync.stat_sync WHERE name = 'two';

-- procedures need a sync with a target that may run
CALL payment_sync.incremental_sync('pull');
CALL payment_sync.incremental_sync('books');
CALL payment_sync.incremental_sync('no such sync');
CALL payment_sync.batch_sync('two');
BEGIN;
CALL payment_sync.incremental_sync('pull');
ROLLBACK;

SELECT payment_sync.drop_sync(name) FROM payment_sync.syncs;
SELECT payment_sync.drop_sync('pull');
SELECT count(*) FROM payment_sync.syncs;
SELECT count(*) FROM payment_sync.sync_state;
SELECT count(*) FROM payment_sync.batch;
SELECT payment_sync.release_table('payment');

SET client_min_messages = warning;
DROP SCHEMA shop CASCADE;
DROP EXTENSION payment_sync CASCADE;
DROP FOREIGN DATA WRAPPER regress_no_transport CASCADE;
