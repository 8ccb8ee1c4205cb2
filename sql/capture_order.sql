-- Changes of one key are logged in the order in which they happened (P4), also
-- when a statement's triggers or functions change the same rows meanwhile.
-- Their statements end, and are logged, before the one that called them.
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
RESET client_min_messages;
CREATE SCHEMA orders;
SET search_path = orders;
CREATE TABLE t (id int PRIMARY KEY, v text, hidden int);
SELECT payment_sync.capture_table('t', columns => '{id,v}');

-- What the log makes of the table, change by change, must be the table.
CREATE TABLE replica (id int PRIMARY KEY, v text);
CREATE FUNCTION replay() RETURNS text LANGUAGE plpgsql AS $$
DECLARE c record;
BEGIN
	DELETE FROM replica;
	FOR c IN SELECT * FROM payment_sync.changes WHERE "table" = 't'::regclass LOOP
		IF c.operation = 'truncate' THEN
			DELETE FROM replica;
			CONTINUE;
		END IF;
		DELETE FROM replica WHERE id IN ((c.key->>'id')::int, (c.old->>'id')::int);
		INSERT INTO replica SELECT (c.new->>'id')::int, c.new->>'v' WHERE c.new IS NOT NULL;
	END LOOP;
	RETURN CASE WHEN EXISTS (SELECT id, v FROM t EXCEPT ALL TABLE replica)
			OR EXISTS (TABLE replica EXCEPT ALL SELECT id, v FROM t)
		THEN 'DIFFERENT' ELSE 'equal' END;
END $$;
CREATE VIEW log AS SELECT operation AS op, key->'id' AS id, new->'v' AS v, old FROM payment_sync.changes;

-- a BEFORE trigger that changes the row: what is stored is logged
CREATE FUNCTION upper_v() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN NEW.v := upper(NEW.v); RETURN NEW; END $$;
CREATE TRIGGER before_it BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION upper_v();
INSERT INTO t VALUES (1, 'stored');
-- one that makes the row as it was, or suppresses the change, leaves no trace
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN IF TG_OP = 'DELETE' THEN RETURN NULL; END IF; RETURN OLD; END $$;
CREATE TRIGGER c_refuse BEFORE UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION refuse();
UPDATE t SET v = 'lost';
DELETE FROM t;
SELECT * FROM log;
DROP TRIGGER c_refuse ON t;
DROP TRIGGER before_it ON t;
DELETE FROM t;
SELECT replay();
TRUNCATE payment_sync.log_0;

-- Triggers that fire before ours, "a…", and after, "z…".  What they run is
-- given for each row in a setting.
CREATE FUNCTION run() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF pg_trigger_depth() = 1 THEN
		EXECUTE replace(current_setting('orders.command'), '$id', COALESCE(NEW.id, OLD.id)::text);
	END IF;
	RETURN NULL;
END $$;
CREATE FUNCTION try(statement text, command text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE name text;
BEGIN
	FOREACH name IN ARRAY '{a_run,z_run}'::text[] LOOP
		EXECUTE 'CREATE TRIGGER ' || name ||
			' AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION run()';
		DELETE FROM t WHERE id < 0;	-- fires nothing
		PERFORM set_config('orders.command', command, true);
		EXECUTE statement;
		EXECUTE 'DROP TRIGGER ' || name || ' ON t';
		RETURN NEXT format('%s: %s', name, (SELECT string_agg(format('%s %s', id, v), ', ' ORDER BY id) FROM t));
	END LOOP;
END $$;

\set reset 'DELETE FROM t; TRUNCATE payment_sync.log_0; INSERT INTO t VALUES (1, ''one''), (2, ''two''), (3, ''three'');'
:reset
SELECT try('UPDATE t SET v = ''outer''', 'UPDATE t SET v = v || ''!'' WHERE id = $id');
SELECT replay();
SELECT * FROM log OFFSET 3 LIMIT 6;
:reset
SELECT try('INSERT INTO t SELECT max(id) + 1, ''new'' FROM t', 'UPDATE t SET v = ''newer'' WHERE id = $id');
SELECT replay();
-- other rows of the same statement
:reset
SELECT try('UPDATE t SET v = ''outer''', 'UPDATE t SET v = ''by $id'' WHERE id = $id % 3 + 1');
SELECT replay();
-- only what is not captured changes again: the first change must not be lost
:reset
SELECT try('UPDATE t SET v = v || ''+''', 'UPDATE t SET hidden = 1 WHERE id = $id');
SELECT replay();
-- deleted again; given another key
:reset
SELECT try('UPDATE t SET v = ''outer'' WHERE id < 3', 'DELETE FROM t WHERE id = $id % 2 + 1');
SELECT replay();
:reset
SELECT try('INSERT INTO t SELECT max(id) + 1, ''gone'' FROM t', 'DELETE FROM t WHERE id = $id');
SELECT replay();
:reset
SELECT try('UPDATE t SET id = id + 10', 'UPDATE t SET id = id + 100 WHERE id = $id');
SELECT replay();
:reset
SELECT try('UPDATE t SET id = id + 10', 'DELETE FROM t WHERE id = $id');
SELECT replay();
-- and back to the key and values it had
:reset
SELECT try('UPDATE t SET id = id + 10, v = ''x''', 'UPDATE t SET id = id - 10, v = ''back'' WHERE id = $id');
SELECT replay();
-- the key is taken away, and given to a row once more
:reset
SELECT try('DELETE FROM t', 'INSERT INTO t VALUES ($id % 3 + 1, ''again by $id'') ON CONFLICT DO NOTHING');
SELECT replay();
:reset
SELECT try('UPDATE t SET id = id + (SELECT max(id) FROM t) WHERE id < 4',
	'INSERT INTO t VALUES ($id % 3 + 1, ''again by $id'')');
SELECT replay();
-- in a partition whose columns are in another order
CREATE TABLE p (id int, d int, v text, PRIMARY KEY (id, d)) PARTITION BY LIST (d);
CREATE TABLE p_1 (v text, d int NOT NULL, junk int, id int NOT NULL, UNIQUE (d, id, junk));
ALTER TABLE p_1 DROP COLUMN junk;
ALTER TABLE p ATTACH PARTITION p_1 FOR VALUES IN (1);
SELECT payment_sync.capture_table('p');
CREATE TRIGGER a_run AFTER DELETE ON p FOR EACH ROW EXECUTE FUNCTION run();
INSERT INTO p VALUES (1, 1, 'one'), (2, 1, 'two'), (3, 1, 'three');
TRUNCATE payment_sync.log_0;
SET orders.command = 'INSERT INTO orders.p VALUES ($id + 1, 1, ''again'')';
DELETE FROM p WHERE id > 1;
TABLE p ORDER BY id;
SELECT operation, key, new FROM payment_sync.changes;
RESET orders.command;

-- rolled back to a savepoint, it never happened
:reset
SELECT try('UPDATE t SET v = ''outer'' || id',
	'DO $do$ BEGIN UPDATE orders.t SET v = ''inner'' WHERE id = $id; RAISE division_by_zero; EXCEPTION WHEN OTHERS THEN NULL; END $do$');
SELECT replay();

-- a function that the statement calls changes rows that it has changed
CREATE FUNCTION touch(i int) RETURNS text LANGUAGE plpgsql AS $$
	BEGIN UPDATE t SET v = v || '-touched' WHERE id = i - 1; RETURN 'touching ' || i; END $$;
:reset
UPDATE t SET v = touch(id) WHERE id IN (1, 2, 3);
SELECT id, v FROM t ORDER BY id;
SELECT replay();
-- foreign keys' own triggers do it, too
CREATE TABLE tree (id int PRIMARY KEY, v int REFERENCES tree ON UPDATE CASCADE ON DELETE CASCADE);
SELECT payment_sync.capture_table('tree');
INSERT INTO tree VALUES (1, 1), (2, 1), (3, 2);
TRUNCATE payment_sync.log_0;
UPDATE tree SET id = 10 WHERE id = 1;
SELECT * FROM log WHERE op <> 'truncate';
TABLE tree ORDER BY id;
DELETE FROM tree WHERE id = 10;
SELECT op, id FROM log OFFSET 3;

-- a deferred constraint trigger changes rows at commit, and is captured
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION run();
:reset
BEGIN;
SET LOCAL orders.command = 'UPDATE t SET v = ''at commit'' WHERE id = $id';
INSERT INTO t VALUES (4, 'four');
SELECT v FROM t WHERE id = 4;
COMMIT;
SELECT op, id, v FROM log WHERE id = '4';
SELECT replay();
BEGIN;
SET LOCAL orders.command = 'UPDATE t SET v = ''at prepare'' WHERE id = $id';
INSERT INTO t VALUES (5, 'five');
PREPARE TRANSACTION 'regress_order';
COMMIT PREPARED 'regress_order';
SELECT op, id, v FROM log WHERE id = '5';

SET client_min_messages = warning;
DROP EXTENSION payment_sync CASCADE;
DROP SCHEMA orders CASCADE;
