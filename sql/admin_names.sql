-- names with quotes, dots, spaces, capitals, other alphabets, 63 bytes
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
RESET client_min_messages;
CREATE SCHEMA "Odd ""sch.ema""";
SET search_path = "Odd ""sch.ema""";
CREATE TABLE "ta'b\le.""x""; DROP TABLE y" (
	"Id""1" int, "select" text, "ключ" uuid, "a.b" int, " " int, "$1" int, "\" int,
	"sixty_three_bytes_long_column_name_________________________end_" int,
	PRIMARY KEY ("Id""1", "ключ"));
CREATE TABLE "таблица_с_именем_63_байта__________________x" ("№" int PRIMARY KEY, "значение" text);
CREATE TABLE "%s %n $1" ("%d" int PRIMARY KEY);

SELECT payment_sync.capture_table(c.oid) FROM pg_class c
WHERE relnamespace = quote_ident(current_schema)::regnamespace AND relkind = 'r'
ORDER BY relname COLLATE "C";
SELECT octet_length(relname::text) AS bytes, relname FROM pg_class
WHERE relnamespace = quote_ident(current_schema)::regnamespace AND relkind = 'r' ORDER BY 1, 2;
SELECT * FROM payment_sync.captured_tables ORDER BY "table"::text COLLATE "C";

-- again with named columns
SELECT payment_sync.capture_table('"ta''b\le.""x""; DROP TABLE y"',
	columns => ARRAY['ключ', 'Id"1', ' ', '\', 'a.b', '$1', 'sixty_three_bytes_long_column_name_________________________end_'],
	key => ARRAY['ключ', 'Id"1']);
INSERT INTO "ta'b\le.""x""; DROP TABLE y" VALUES
	(1, 'not captured', '00000000-0000-0000-0000-000000000001', 2, 3, 4, 5, 6);
UPDATE "ta'b\le.""x""; DROP TABLE y" SET " " = NULL, "\" = 7;
DELETE FROM "ta'b\le.""x""; DROP TABLE y";
INSERT INTO "таблица_с_именем_63_байта__________________x" VALUES (1, 'рубль ₽');
INSERT INTO "%s %n $1" VALUES (1);
SELECT operation, "table", key, new, old FROM payment_sync.changes;

-- syncs and targets
SELECT payment_sync.create_sync('a "sync"; with ''quotes''', ARRAY['"%s %n $1"'::regclass],
	targets => ARRAY['"x.y"."%s"']);
SELECT payment_sync.create_sync('имя', ARRAY['"%s %n $1"'::regclass, '"ta''b\le.""x""; DROP TABLE y"'::regclass],
	target_schema => 'Other "place"');
SELECT name, tables, targets FROM payment_sync.syncs ORDER BY name COLLATE "C";
SELECT name, state FROM payment_sync.stat_sync ORDER BY name COLLATE "C";
SELECT payment_sync.alter_sync('имя', new_name => '63' || repeat('_', 55) || 'имя');
SELECT name, octet_length(name::text) FROM payment_sync.syncs ORDER BY 2;
SELECT payment_sync.release_table('"%s %n $1"');

-- names change, definitions follow
ALTER TABLE "ta'b\le.""x""; DROP TABLE y" RENAME COLUMN "Id""1" TO "I""d";
ALTER TABLE "ta'b\le.""x""; DROP TABLE y" RENAME COLUMN " " TO "  ";
ALTER TABLE "ta'b\le.""x""; DROP TABLE y" RENAME TO "plain?";
ALTER SCHEMA "Odd ""sch.ema""" RENAME TO ".";
SET search_path = ".";
SELECT "table", columns, key FROM payment_sync.captured_tables
WHERE "table" = '"plain?"'::regclass;
INSERT INTO "plain?" VALUES (2, 'x', '00000000-0000-0000-0000-000000000002');
SELECT operation, "table", key, new, old FROM payment_sync.changes WHERE "table" = '"plain?"'::regclass;

SELECT payment_sync.drop_sync(name) FROM payment_sync.syncs;
SELECT payment_sync.release_table("table") FROM payment_sync.captured_tables;
SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'payment_sync%';

SET client_min_messages = warning;
DROP SCHEMA "." CASCADE;
DROP EXTENSION payment_sync CASCADE;
