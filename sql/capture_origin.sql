-- Changes that another payment_sync has applied can be told from those made
-- here, and left out; replicated changes are captured like any other
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
RESET client_min_messages;
CREATE ROLE regress_origin;
CREATE SCHEMA west;
CREATE SCHEMA east;
CREATE TABLE west.pay (id int PRIMARY KEY, v text);
CREATE TABLE east.pay (id int PRIMARY KEY, v text);
SELECT payment_sync.capture_table(t) FROM unnest('{west.pay,east.pay}'::regclass[]) t;

-- session_replication_role = replica: user's triggers do not fire, capture does
CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN NEW.v := upper(NEW.v); RETURN NEW; END $$;
CREATE TRIGGER shout BEFORE INSERT ON west.pay FOR EACH ROW EXECUTE FUNCTION shout();
INSERT INTO west.pay VALUES (1, 'origin');
SET session_replication_role = replica;
INSERT INTO west.pay VALUES (2, 'replica');
UPDATE west.pay SET v = 'updated' WHERE id = 1;
TRUNCATE west.pay;
INSERT INTO west.pay VALUES (3, 'replica');
SET session_replication_role = local;
DELETE FROM west.pay WHERE id = 3;
RESET session_replication_role;
SELECT operation, key, new, origin FROM payment_sync.changes;
TRUNCATE payment_sync.log_0;

-- an origin is of the changes made while it is set, also within a transaction
SET payment_sync.origin = 'first';
INSERT INTO west.pay VALUES (10);
BEGIN;
INSERT INTO west.pay VALUES (11);
SET LOCAL payment_sync.origin = 'second';
INSERT INTO west.pay VALUES (12);
SAVEPOINT a;
SET LOCAL payment_sync.origin = '';
INSERT INTO west.pay VALUES (13);
ROLLBACK TO a;
INSERT INTO west.pay VALUES (14);
SET LOCAL payment_sync.origin = '';
UPDATE west.pay SET v = 'local' WHERE id = 14;
COMMIT;
RESET payment_sync.origin;
DELETE FROM west.pay WHERE id = 10;
SELECT operation, key, origin FROM payment_sync.changes;
-- any user may set it; it is a name
SET ROLE regress_origin;
SET payment_sync.origin = 'mine';
RESET payment_sync.origin;
RESET ROLE;
SELECT set_config('payment_sync.origin', repeat('x', 64), false);
SELECT length(set_config('payment_sync.origin', repeat('x', 63), false));
RESET payment_sync.origin;

-- a sync leaves out what it is told to
SELECT payment_sync.create_sync('all', '{west.pay}');
SELECT payment_sync.create_sync('not_first', '{west.pay}', exclude_origins => '{first,other}');
SELECT payment_sync.create_sync('only_local', '{west.pay}', exclude_origins => '{*}');
TRUNCATE west.pay;
SET payment_sync.origin = 'first';
INSERT INTO west.pay VALUES (20);
SET payment_sync.origin = 'FIRST';
INSERT INTO west.pay VALUES (21);
RESET payment_sync.origin;
INSERT INTO west.pay VALUES (22);
SELECT name, lag_changes FROM payment_sync.stat_sync ORDER BY name;
SELECT operation, key, origin FROM payment_sync.fetch_changes('all');
SELECT operation, key, origin FROM payment_sync.fetch_changes('not_first');
SELECT operation, key, origin FROM payment_sync.fetch_changes('only_local');
SELECT payment_sync.alter_sync('only_local', exclude_origins => '{FIRST}');
SELECT operation, key, origin FROM payment_sync.fetch_changes('only_local');
SELECT payment_sync.drop_sync(name) FROM payment_sync.syncs;
TRUNCATE west.pay, payment_sync.log_0;

-- Two tables of this database stand for two databases that sync both ways.
-- The transport sets the origin: by default the identity of its change log.
DO $$ DECLARE s record; BEGIN
	FOR s IN VALUES ('from_west', ', origin ''west'''), ('from_east', '') LOOP
		EXECUTE format('CREATE SERVER regress_%s FOREIGN DATA WRAPPER payment_sync_postgres OPTIONS (host %L, port %L, dbname %L%s)',
			s.column1, split_part(current_setting('unix_socket_directories'), ',', 1), current_setting('port'),
			current_database(), s.column2);
		EXECUTE format('CREATE USER MAPPING FOR CURRENT_USER SERVER regress_%s OPTIONS (user %L)', s.column1, current_user);
	END LOOP;
END $$;
SELECT payment_sync.create_sync('west_to_east', '{west.pay}', 'regress_from_west', target_schema => 'east', exclude_origins => '{*}');
SELECT payment_sync.create_sync('east_to_west', '{east.pay}', 'regress_from_east', target_schema => 'west', exclude_origins => '{*}');
TRUNCATE payment_sync.log_0;
INSERT INTO west.pay VALUES (1, 'made in the west');
CALL payment_sync.incremental_sync('west_to_east');
INSERT INTO east.pay VALUES (2, 'made in the east');
UPDATE east.pay SET v = 'updated in the east' WHERE id = 1;
CALL payment_sync.incremental_sync('east_to_west');
DELETE FROM west.pay WHERE id = 2;
CALL payment_sync.incremental_sync('west_to_east');
CALL payment_sync.incremental_sync('east_to_west');
CALL payment_sync.incremental_sync('west_to_east');
TABLE west.pay;
TABLE east.pay;
SELECT operation, "table", key,
	CASE origin WHEN (SELECT identity::text FROM payment_sync.log_rotation) THEN 'this change log' ELSE origin END AS origin
FROM payment_sync.changes;
SELECT name, errors FROM payment_sync.stat_sync ORDER BY name;

-- A batch is refused where its owner cannot see all rows: row security never
-- leaves out some silently.
SELECT payment_sync.drop_sync(name) FROM payment_sync.syncs;
GRANT ALL ON SCHEMA west, east TO regress_origin;
GRANT USAGE ON FOREIGN SERVER regress_from_west TO regress_origin;
GRANT ALL ON east.pay TO regress_origin;
ALTER TABLE west.pay OWNER TO regress_origin;
DO $$ BEGIN
	EXECUTE format('CREATE USER MAPPING FOR regress_origin SERVER regress_from_west OPTIONS (user %L, password_required ''false'')', current_user);
END $$;
SET ROLE regress_origin;
ALTER TABLE west.pay ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY few ON west.pay USING (id < 0);
SELECT count(*) FROM west.pay;
SELECT payment_sync.create_sync('batch', '{west.pay}', 'regress_from_west', target_schema => 'east');
CALL payment_sync.batch_sync('batch', mirror => true);
ALTER TABLE west.pay NO FORCE ROW LEVEL SECURITY;
CALL payment_sync.batch_sync('batch', mirror => true);
TABLE east.pay;
SELECT sync, state, rows FROM payment_sync.progress_batch;
SELECT payment_sync.drop_sync('batch');
RESET ROLE;

SET client_min_messages = warning;
DROP EXTENSION payment_sync CASCADE;
DROP SCHEMA west, east CASCADE;
DROP FUNCTION shout;
DROP ROLE regress_origin;
