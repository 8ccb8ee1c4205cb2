-- what bodies look like: formats, transforms, thin events
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
RESET client_min_messages;

-- a transport for tests; test/modules/payment_sync_probe.c
CREATE FOREIGN DATA WRAPPER regress_probe OPTIONS (library 'payment_sync_probe');
CREATE TABLE payments (id int PRIMARY KEY, amount numeric(12,2), note text);
SELECT payment_sync.capture_table('payments');

-- deliver some changes to a server with these options, and show what came:
-- content type, number of events, attributes, body; what differs from run to
-- run is replaced
CREATE PROCEDURE show(options text, transform text DEFAULT NULL) LANGUAGE plpgsql AS $$
BEGIN
	COPY (SELECT) TO PROGRAM 'rm -rf probe_formats && mkdir probe_formats && cat >/dev/null';
	EXECUTE format('CREATE SERVER regress_formats FOREIGN DATA WRAPPER regress_probe OPTIONS (directory ''probe_formats'', source ''urn:bank'' %s)', options);
	CREATE USER MAPPING FOR CURRENT_USER SERVER regress_formats;
	PERFORM payment_sync.create_sync('formats', '{payments}', 'regress_formats', transform => transform);
	COMMIT;
	INSERT INTO payments VALUES (1, 10.50, E'two\nlines'), (2, 20, NULL);
	UPDATE payments SET amount = 11 WHERE id = 1;
	UPDATE payments SET id = 3 WHERE id = 2;
	DELETE FROM payments WHERE id = 3;
	TRUNCATE payments;
	COMMIT;
END
$$;
CREATE FUNCTION received() RETURNS SETOF text LANGUAGE sql AS $$
	SELECT concat_ws(' ', f[6], f[3], nullif(f[7], ''), f[8])
	FROM (SELECT string_to_array(regexp_replace(regexp_replace(regexp_replace(regexp_replace(line,
		'[0-9a-f]{32}_[0-9a-f]+_[0-9a-f]+', 'ID', 'g'),
		'2\d\d\d-\d\d-\d\dT[0-9:.]+\+00:00', 'TIME', 'g'),
		'\d{20}', 'POSITION', 'g'),
		'"(xid|txId|lsn|ts_ms|db|version)":("[^"]*"|\d+)', '"\1":X', 'g'), E'\t') AS f, n
		FROM regexp_split_to_table(rtrim(pg_read_file('probe_formats/received'), E'\n'), '\n') WITH ORDINALITY AS l (line, n)) x
	ORDER BY n
$$;
CREATE PROCEDURE forget() LANGUAGE plpgsql AS $$
BEGIN
	PERFORM payment_sync.drop_sync('formats');
	DROP SERVER regress_formats CASCADE;
END
$$;
SET client_min_messages = warning;

CALL show('');
CALL payment_sync.incremental_sync('formats');
SELECT * FROM received();
CALL forget();

CALL show($$, thin 'true'$$);
CALL payment_sync.incremental_sync('formats');
SELECT * FROM received();
CALL forget();

CALL show($$, format 'cloudevents', ordering 'strict'$$);
CALL payment_sync.incremental_sync('formats');
SELECT * FROM received();
CALL forget();

CALL show($$, format 'cloudevents_binary', ordering 'strict'$$);
CALL payment_sync.incremental_sync('formats');
SELECT * FROM received();
CALL forget();

CALL show($$, format 'debezium', ordering 'strict', previous 'false'$$);
CALL payment_sync.incremental_sync('formats');
SELECT * FROM received();
CALL forget();

-- several events per message: what is committed together comes together, but a
-- truncation comes alone
CALL show($$, max_batch '10', linger '100', thin 'true'$$);
CALL payment_sync.incremental_sync('formats');
SELECT * FROM received();
CALL forget();
CALL show($$, format 'ndjson', max_batch '10', linger '100', thin 'true'$$);
CALL payment_sync.incremental_sync('formats');
SELECT * FROM received();
CALL forget();
CALL show($$, format 'cloudevents_batch', max_batch '10', linger '100', thin 'true'$$);
CALL payment_sync.incremental_sync('formats');
SELECT * FROM received();
CALL forget();

-- transforms
CALL show($$, format 'raw'$$, $$CASE WHEN event ->> 'operation' <> 'truncate' THEN jsonb_build_object('amount', event -> 'new' -> 'amount') END$$);
CALL payment_sync.incremental_sync('formats');
SELECT * FROM received();
CALL forget();
-- an event that is left out is no event's previous one
CALL show($$, format 'cloudevents', ordering 'strict'$$, $$CASE WHEN event ->> 'operation' <> 'insert' THEN '{}'::jsonb END$$);
CALL payment_sync.incremental_sync('formats');
SELECT * FROM received();
CALL forget();
CALL show($$, format 'raw', ordering 'strict'$$, $$($1 ->> 'operation') || ' -- a comment's line'$$);
CALL show($$, format 'raw', ordering 'strict'$$, $$($1 ->> 'operation') || '!' -- a comment$$);
CALL payment_sync.incremental_sync('formats');
SELECT * FROM received();
CALL forget();
CALL show($$, format 'cloudevents', ordering 'strict'$$, $$event -> 'key'$$);
CALL payment_sync.incremental_sync('formats');
SELECT * FROM received();
SELECT transform FROM payment_sync.syncs;
SELECT payment_sync.alter_sync('formats', transform => '');
SELECT transform FROM payment_sync.syncs;

-- with the owner's rights only
CREATE ROLE regress_modest;
CREATE TABLE secret (what text);
GRANT USAGE ON FOREIGN SERVER regress_formats TO regress_modest;
GRANT CREATE ON SCHEMA public TO regress_modest;
CREATE USER MAPPING FOR regress_modest SERVER regress_formats;
SET ROLE regress_modest;
CREATE TABLE mine (id int PRIMARY KEY);
SELECT payment_sync.capture_table('mine');
SELECT payment_sync.create_sync('modest', '{mine}', 'regress_formats', transform => '(SELECT to_jsonb(s) FROM public.secret s LIMIT 1)');
INSERT INTO mine VALUES (1);
CALL payment_sync.incremental_sync('modest');
SELECT payment_sync.alter_sync('modest', transform => 'to_jsonb(current_user::text)');
CALL payment_sync.incremental_sync('modest');
RESET ROLE;
SELECT split_part(line, E'\t', 8)::jsonb -> 'data' AS data FROM regexp_split_to_table(pg_read_file('probe_formats/received'), '\n') AS line WHERE line LIKE '%mine%';
SELECT payment_sync.drop_sync('modest');
DROP TABLE mine, secret;
REVOKE CREATE ON SCHEMA public FROM regress_modest;

-- what does not go together, and what is no expression
CALL forget();
CALL show($$, format 'raw'$$);
CALL show($$, format 'cloudevents', max_batch '2'$$);
CALL show('', $$event ->> 'type'$$);
CALL payment_sync.incremental_sync('formats');
CALL forget();
CALL show('');
CALL payment_sync.batch_sync('formats', mirror => true);
SELECT payment_sync.alter_sync('formats', transform => 'event; DROP TABLE payments');
SELECT payment_sync.alter_sync('formats', transform => '1');
SELECT payment_sync.alter_sync('formats', transform => 'no_such_function(event)');
CREATE SERVER regress_pg FOREIGN DATA WRAPPER payment_sync_postgres OPTIONS (host '/nonexistent');
SELECT payment_sync.create_sync('pg', '{payments}', 'regress_pg', transform => 'event');
SELECT payment_sync.create_sync('pulled', '{payments}', transform => 'event');
CALL forget();

-- libraries that are no transports for messages, or of another version
CREATE FOREIGN DATA WRAPPER regress_magic OPTIONS (library 'payment_sync_probe_magic');
CREATE FOREIGN DATA WRAPPER regress_lacking OPTIONS (library 'payment_sync_probe_lacking');
CREATE SERVER regress_magic FOREIGN DATA WRAPPER regress_magic;
CREATE SERVER regress_lacking FOREIGN DATA WRAPPER regress_lacking;
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_magic;
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_lacking;
\set VERBOSITY terse
SELECT * FROM payment_sync.check_target('regress_magic');
SELECT * FROM payment_sync.check_target('regress_lacking');
-- this text is a version's own
\set VERBOSITY sqlstate
SELECT * FROM payment_sync.check_target('regress_pg');
\set VERBOSITY terse
CREATE SERVER regress_probe FOREIGN DATA WRAPPER regress_probe OPTIONS (directory 'probe_formats');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_probe;
SELECT step, ok, detail FROM payment_sync.check_target('regress_probe');

-- a third party's transport is asked what it takes, and so it keeps books, is no mirror, and has no tables
SELECT payment_sync.create_sync('strange', '{payments}', 'regress_probe', targets => '{elsewhere}');
SELECT payment_sync.create_sync('strange', '{payments}', 'regress_probe', transform => '1');
SELECT payment_sync.create_sync('strange', '{payments}', 'regress_probe');
INSERT INTO payments (id) VALUES (901), (902);
CALL payment_sync.incremental_sync('strange');
CALL payment_sync.batch_sync('strange', mirror => true);
SELECT payment_sync.disable_sync('strange');
SELECT payment_sync.enable_sync('strange', start => 'batch');
CALL payment_sync.incremental_sync('strange');
SELECT "table", operation, captured > 0 AS some, captured = delivered AS all_delivered, balanced
FROM payment_sync.ledger WHERE sync = 'strange' ORDER BY operation;
SELECT count(*) AS rows_read FROM regexp_split_to_table(pg_read_file('probe_formats/received'), '\n') AS line WHERE line LIKE '%payments.read%';
SELECT state, mirror FROM payment_sync.progress_batch WHERE sync = 'strange';
-- the wrapper may say it, so that nobody need load the library; it must be true
ALTER FOREIGN DATA WRAPPER regress_probe OPTIONS (ADD takes 'messages');
SELECT payment_sync.alter_sync('strange', transform => 'event');
ALTER FOREIGN DATA WRAPPER regress_probe OPTIONS (SET takes 'windows');
SELECT payment_sync.alter_sync('strange', transform => 'event');
\set VERBOSITY default
SELECT * FROM payment_sync.check_target('regress_probe');
ALTER FOREIGN DATA WRAPPER regress_probe OPTIONS (SET takes 'both');
SELECT payment_sync.alter_sync('strange', transform => 'event');
\set VERBOSITY terse
ALTER FOREIGN DATA WRAPPER regress_probe OPTIONS (DROP takes);
SELECT payment_sync.drop_sync('strange');

DROP TABLE payments;
DROP FOREIGN DATA WRAPPER regress_magic CASCADE;
DROP FOREIGN DATA WRAPPER regress_lacking CASCADE;
DROP FOREIGN DATA WRAPPER regress_probe CASCADE;
DROP EXTENSION payment_sync CASCADE;
DROP ROLE regress_modest;
DROP PROCEDURE show, forget;
DROP FUNCTION received;
