-- What capture asks of those who write, and what they cannot do to it
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
RESET client_min_messages;
CREATE ROLE regress_shop;
CREATE ROLE regress_clerk;
CREATE ROLE regress_evil;
CREATE SCHEMA shop AUTHORIZATION regress_shop;
CREATE SCHEMA evil AUTHORIZATION regress_evil;
GRANT USAGE ON SCHEMA shop TO regress_clerk, regress_evil;
GRANT USAGE ON SCHEMA evil TO PUBLIC;
SET search_path = shop;
SET ROLE regress_shop;
CREATE TABLE pay (id int PRIMARY KEY, v text);
CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY LIST (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
SELECT payment_sync.capture_table(t) FROM unnest('{pay,parted}'::regclass[]) t;
GRANT INSERT, UPDATE, DELETE, TRUNCATE, SELECT ON pay, parted, parted_1 TO regress_clerk;
RESET ROLE;

-- Writers need no privilege at all on anything of the extension: not even now.
REVOKE ALL ON SCHEMA payment_sync FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA payment_sync FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA payment_sync FROM PUBLIC;
SET ROLE regress_clerk;
INSERT INTO pay VALUES (1, 'x'), (2, 'y');
UPDATE pay SET v = 'z' WHERE id = 1;
DELETE FROM pay WHERE id = 2;
TRUNCATE pay;
INSERT INTO parted VALUES (1, 'x');
TRUNCATE parted_1;
SELECT * FROM payment_sync.changes;
RESET ROLE;
SELECT operation, "table", key FROM payment_sync.changes;
TRUNCATE payment_sync.log_0;
-- nor do owners for what is not about capture
SET ROLE regress_shop;
ALTER TABLE pay ADD n int;
CREATE INDEX ON pay (n);
ALTER TABLE pay DROP n;
CREATE TABLE other (id int PRIMARY KEY);
DROP TABLE other;
RESET ROLE;
GRANT USAGE ON SCHEMA payment_sync TO PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA payment_sync TO PUBLIC;
GRANT SELECT ON payment_sync.changes, payment_sync.captured_tables TO PUBLIC;

-- Row security filters no change: the clerk's row is not the clerk's to see
SET ROLE regress_shop;
ALTER TABLE pay ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY not_hidden ON pay USING (v <> 'hidden') WITH CHECK (true);
SET ROLE regress_clerk;
INSERT INTO pay VALUES (1, 'hidden'), (2, 'seen');
UPDATE pay SET v = 'still seen';
SELECT count(*) FROM pay;
-- TRUNCATE is not subject to it; what a partition held is logged whole
SET ROLE regress_shop;
ALTER TABLE parted_1 ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
INSERT INTO parted VALUES (1, 'none sees it');
TRUNCATE parted_1;
-- the owner, to whom it applies when forced, sees no changes, and is told so
SELECT count(*) FROM payment_sync.changes WHERE "table" = 'pay'::regclass;
SELECT payment_sync.create_sync('pull', '{pay}');
SELECT * FROM payment_sync.fetch_changes('pull');
INSERT INTO pay VALUES (3, 'x');
SELECT * FROM payment_sync.fetch_changes('pull');
ALTER TABLE pay NO FORCE ROW LEVEL SECURITY;
SELECT operation, key, new FROM payment_sync.fetch_changes('pull');
RESET ROLE;
SELECT operation, "table", key, COALESCE(new->>'v', old->>'v') AS v FROM payment_sync.changes;
ALTER TABLE pay DISABLE ROW LEVEL SECURITY;
TRUNCATE payment_sync.log_0;

-- A schema in front of all others cannot lead capture astray
SET ROLE regress_evil;
SET search_path = evil, shop;
CREATE TABLE captured (relid regclass, columns name[], key name[], old_values text);
CREATE TABLE shape (LIKE captured);
CREATE TABLE log_0 (LIKE captured);
CREATE TABLE sync (LIKE captured);
CREATE TABLE pg_class (LIKE captured);
CREATE FUNCTION evil() RETURNS boolean LANGUAGE plpgsql AS
	$$ BEGIN RAISE EXCEPTION 'evil, as %', current_user; END $$;
CREATE FUNCTION eq(name, name) RETURNS boolean LANGUAGE sql AS 'SELECT evil.evil()';
CREATE FUNCTION eq(oid, oid) RETURNS boolean LANGUAGE sql AS 'SELECT evil.evil()';
CREATE FUNCTION eq(regclass, regclass) RETURNS boolean LANGUAGE sql AS 'SELECT evil.evil()';
CREATE FUNCTION eq(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT evil.evil()';
CREATE FUNCTION eq(int, int) RETURNS boolean LANGUAGE sql AS 'SELECT evil.evil()';
CREATE FUNCTION eq(uuid, uuid) RETURNS boolean LANGUAGE sql AS 'SELECT evil.evil()';
CREATE OPERATOR = (LEFTARG = name, RIGHTARG = name, FUNCTION = eq);
CREATE OPERATOR = (LEFTARG = oid, RIGHTARG = oid, FUNCTION = eq);
CREATE OPERATOR = (LEFTARG = regclass, RIGHTARG = regclass, FUNCTION = eq);
CREATE OPERATOR = (LEFTARG = text, RIGHTARG = text, FUNCTION = eq);
CREATE OPERATOR = (LEFTARG = int, RIGHTARG = int, FUNCTION = eq);
CREATE OPERATOR = (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = eq);
CREATE FUNCTION array_replace(name[], name, name) RETURNS name[] LANGUAGE sql AS 'SELECT NULL::name[] WHERE evil.evil()';
CREATE FUNCTION pg_has_role(name, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE FUNCTION pg_has_role(regrole, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE FUNCTION capture_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.evil(); END $$;
CREATE FUNCTION to_jsonb(anyelement) RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb WHERE evil.evil()';
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA evil TO PUBLIC;
RESET ROLE;
SET search_path = evil, shop, pg_catalog;
CREATE TABLE shop.victim (id int PRIMARY KEY, v text, dropped int);
CREATE TABLE shop.parted_2 PARTITION OF shop.parted FOR VALUES IN (2);
SELECT payment_sync.capture_table('shop.victim', columns => '{id,v,dropped}');
INSERT INTO shop.victim VALUES (1, 'x');
UPDATE shop.victim SET v = 'y';
ALTER TABLE shop.victim RENAME v TO w;
ALTER TABLE shop.victim DROP dropped;
ALTER TABLE shop.victim DISABLE TRIGGER USER;
ALTER TABLE shop.victim ENABLE TRIGGER USER;
DELETE FROM shop.victim;
SELECT payment_sync.create_sync('victim', '{shop.victim}');
SELECT payment_sync.alter_sync('victim', new_name => 'still');
SELECT name, tables FROM payment_sync.syncs;
SELECT columns, key, syncs FROM payment_sync.captured_tables WHERE "table" OPERATOR(pg_catalog.=) 'shop.victim'::regclass;
INSERT INTO shop.victim VALUES (2, 'z');
SELECT operation, key, new, old FROM payment_sync.fetch_changes('still');
SELECT operation, key, new, old FROM payment_sync.changes WHERE "table" OPERATOR(pg_catalog.=) 'shop.victim'::regclass;
SELECT payment_sync.drop_sync('still');
SELECT payment_sync.release_table('shop.victim');
SELECT count(*) FROM shop.victim, payment_sync.changes;
-- temporary objects cannot, either
SET search_path = shop;
CREATE TEMPORARY TABLE captured (relid regclass);
CREATE FUNCTION pg_temp.array_replace(name[], name, name) RETURNS name[] LANGUAGE sql AS 'SELECT NULL::name[]';
ALTER TABLE pay RENAME v TO w;
INSERT INTO pay VALUES (10, 'x');
SELECT new FROM payment_sync.changes WHERE "table" = 'pay'::regclass;

-- Who looks at the log runs nothing of a table's owner's with rights of their
-- own: neither a domain's check within a composite type, nor a cast to json.
SET ROLE regress_evil;
SET search_path = evil;
CREATE TABLE caught (who name, what text);
CREATE FUNCTION catch(what text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
	INSERT INTO evil.caught VALUES (current_user, what);
	PERFORM set_config('application_name', 'changed', false);
	RETURN true;
END $$;
CREATE DOMAIN bait AS int CHECK (evil.catch('check'));
CREATE TYPE trap AS (x bait);
CREATE TYPE span AS RANGE (subtype = int);
CREATE FUNCTION to_json(span) RETURNS json LANGUAGE sql AS
	$$ SELECT '"cast"'::json WHERE evil.catch('cast') $$;
CREATE CAST (span AS json) WITH FUNCTION to_json(span);
CREATE TABLE traps (k bait PRIMARY KEY, t trap, ts trap[], s span);
SELECT payment_sync.capture_table('traps');
INSERT INTO traps VALUES (1, ROW(2), ARRAY[ROW(3)::trap], '[1,2]');
DELETE FROM caught;
RESET application_name;
RESET ROLE;
SET search_path = shop;
SELECT key, new FROM payment_sync.changes WHERE "table" = 'evil.traps'::regclass;
SELECT DISTINCT who, what FROM evil.caught ORDER BY what;
SELECT current_setting('application_name') = 'changed' AS changed, current_user = session_user AS same_user;
-- with the table gone, so is who could run it
DROP TABLE evil.traps;
DELETE FROM evil.caught;
SELECT key, new FROM payment_sync.changes WHERE new ? 'ts';
TABLE evil.caught;

SET client_min_messages = warning;
DROP EXTENSION payment_sync CASCADE;
DROP SCHEMA shop, evil CASCADE;
DROP ROLE regress_shop, regress_clerk, regress_evil;
