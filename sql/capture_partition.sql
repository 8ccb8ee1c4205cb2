-- Partitioned tables: changes are those of the table that is captured, whichever
-- partition they are made in
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
RESET client_min_messages;
CREATE SCHEMA parts;
SET search_path = parts;
CREATE VIEW log AS
	SELECT operation AS op, "table", key, new->>'v' AS v, old FROM payment_sync.changes;
CREATE VIEW triggers AS
	SELECT tgrelid::regclass AS rel, tgname, tgenabled FROM pg_trigger
	WHERE tgname LIKE 'payment_sync%' ORDER BY 1, 2;

CREATE TABLE pt (id int, d date, v text, PRIMARY KEY (id, d)) PARTITION BY RANGE (d);
CREATE TABLE pt_20 PARTITION OF pt FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
-- other column order, and a dropped column
CREATE TABLE pt_21 (junk int, v text, d date NOT NULL, id int NOT NULL);
ALTER TABLE pt_21 DROP COLUMN junk;
ALTER TABLE pt ATTACH PARTITION pt_21 FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
CREATE TABLE pt_10 PARTITION OF pt FOR VALUES FROM ('2010-01-01') TO ('2011-01-01') PARTITION BY LIST (id);
SELECT payment_sync.capture_table('pt');
SELECT payment_sync.capture_table('pt_20');
-- one that is made of a partition that was there fires always, too
CREATE TABLE pt_10_1 PARTITION OF pt_10 FOR VALUES IN (1);
SELECT * FROM triggers;

-- by way of the table, and of a partition; rows move
INSERT INTO pt VALUES (1, '2020-02-02', 'x'), (2, '2021-03-03', 'y');
INSERT INTO pt_21 (id, d, v) VALUES (3, '2021-04-04', 'direct');
COPY pt FROM stdin (DELIMITER ',');
10,2020-10-10,copied
11,2021-11-11,copied
\.
UPDATE pt SET d = '2021-05-05' WHERE id = 1;
UPDATE pt_21 SET v = 'direct, too' WHERE id = 3;
INSERT INTO pt VALUES (1, '2021-05-05', 'z') ON CONFLICT (id, d) DO UPDATE SET v = excluded.v;
MERGE INTO pt USING (VALUES (10, DATE '2020-10-10'), (12, DATE '2020-12-12')) s (id, d)
	ON pt.id = s.id AND pt.d = s.d
	WHEN MATCHED THEN UPDATE SET d = '2021-10-10', v = 'merged'
	WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.d, 'new');
DELETE FROM pt_21 WHERE id = 2;
SELECT * FROM log;
TRUNCATE payment_sync.log_0;

-- partitions to come, sub-partitions with another column order as well
CREATE TABLE pt_22 PARTITION OF pt FOR VALUES FROM ('2022-01-01') TO ('2023-01-01')
	PARTITION BY LIST (id);
CREATE TABLE pt_22_5 PARTITION OF pt_22 FOR VALUES IN (5);
CREATE TABLE pt_22_6 (d date NOT NULL, id int NOT NULL, v text);
INSERT INTO pt_22_6 VALUES ('2022-01-01', 6, 'there before');
ALTER TABLE pt_22 ATTACH PARTITION pt_22_6 FOR VALUES IN (6);
INSERT INTO pt VALUES (5, '2022-06-06', 'deep'), (6, '2022-06-06', 'deep');
UPDATE pt_22 SET id = 6, d = '2022-07-07' WHERE id = 5;
UPDATE pt SET d = '2020-06-06' WHERE id = 6 AND d = '2022-06-06';
CREATE TABLE pt_23 (LIKE pt);
ALTER TABLE pt ATTACH PARTITION pt_23 FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
INSERT INTO pt_23 VALUES (7, '2023-01-01', 'attached');
SELECT * FROM log;
SELECT * FROM triggers WHERE rel::text ~ 'pt_2[23]';
TRUNCATE payment_sync.log_0;

-- what cannot be a partition of a captured table
CREATE TABLE own (LIKE pt INCLUDING INDEXES);
SELECT payment_sync.capture_table('own');
ALTER TABLE pt ATTACH PARTITION own FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE UNLOGGED TABLE unlogged PARTITION OF pt FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE FOREIGN DATA WRAPPER regress_parts;
CREATE SERVER regress_parts FOREIGN DATA WRAPPER regress_parts;
CREATE FOREIGN TABLE far PARTITION OF pt FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')
	SERVER regress_parts;
ALTER TABLE pt_20 SET UNLOGGED;
DROP TRIGGER payment_sync_capture ON pt_20;
DROP TRIGGER payment_sync_capture_truncate ON pt_20;
DROP TRIGGER payment_sync_capture_truncate ON pt;
SELECT payment_sync.release_table('own');

-- TRUNCATE of the table is one change; of a partition, its rows are deleted,
-- since the target may have other partitions or none
TRUNCATE pt_22_6;
TRUNCATE ONLY pt_20;
SELECT op, "table", key, old->>'v' AS old_v FROM log;
TRUNCATE payment_sync.log_0;
TRUNCATE pt_21, pt;
SELECT op, "table", key->'id' AS id FROM log;
TRUNCATE payment_sync.log_0;
TRUNCATE pt;
INSERT INTO pt VALUES (1, '2020-02-02', 'x'), (5, '2022-06-06', 'deep'), (8, '2022-08-08', 'none');
INSERT INTO pt VALUES (1, '2020-02-02', 'x'), (5, '2022-06-06', 'deep');
TRUNCATE pt_20;
TRUNCATE pt_22;
SELECT op, "table", key FROM log;
TRUNCATE payment_sync.log_0;
-- the same within one transaction, and rolled back to a savepoint
BEGIN;
INSERT INTO pt VALUES (2, '2020-02-02', 'x');
TRUNCATE pt;
INSERT INTO pt VALUES (3, '2020-02-02', 'x');
SAVEPOINT a;
TRUNCATE pt;
ROLLBACK TO a;
TRUNCATE pt_20;
COMMIT;
SELECT op, "table", key FROM log;
TRUNCATE payment_sync.log_0;
-- a trigger that writes elsewhere in between
CREATE TABLE audit (what text);
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN INSERT INTO audit VALUES (TG_TABLE_NAME); RETURN NULL; END $$;
CREATE TRIGGER zz_audit BEFORE TRUNCATE ON pt EXECUTE FUNCTION audit();
INSERT INTO pt VALUES (3, '2020-02-02', 'x'), (3, '2021-02-02', 'x');
TRUNCATE pt;
BEGIN;
INSERT INTO pt VALUES (3, '2021-02-02', 'x');
TRUNCATE pt;
TRUNCATE pt_21;
INSERT INTO pt VALUES (4, '2021-02-02', 'x');
TRUNCATE pt_21;
COMMIT;
SELECT op, key FROM log;
TABLE audit;
DROP TRIGGER zz_audit ON pt;
TRUNCATE payment_sync.log_0;
-- and with a prepared transaction
INSERT INTO pt VALUES (4, '2021-02-02', 'x');
BEGIN;
TRUNCATE pt_21;
PREPARE TRANSACTION 'regress_truncate';
SELECT op, key FROM log;
COMMIT PREPARED 'regress_truncate';
SELECT op, key FROM log;
TRUNCATE payment_sync.log_0;

-- detached, a table is captured no more: also with CONCURRENTLY, and a subtree
INSERT INTO pt VALUES (7, '2023-01-01', 'detached with it');
ALTER TABLE pt DETACH PARTITION pt_23;
ALTER TABLE pt DETACH PARTITION pt_22;
ALTER TABLE pt DETACH PARTITION pt_21 CONCURRENTLY;
SELECT * FROM triggers;
INSERT INTO pt_23 VALUES (8, '2023-01-01', 'not captured');
INSERT INTO pt_22 VALUES (5, '2022-01-01', 'not captured');
INSERT INTO pt_21 (id, d) VALUES (5, '2021-01-01');
TRUNCATE pt_23, pt_22, pt_21;
SELECT op, key, v FROM log;
-- attached again, it is
ALTER TABLE pt ATTACH PARTITION pt_22 FOR VALUES FROM ('2022-01-01') TO ('2023-01-01');
INSERT INTO pt VALUES (6, '2022-01-01', 'captured again');
INSERT INTO pt_23 VALUES (9, '2023-01-01', 'unseen');
ALTER TABLE pt ATTACH PARTITION pt_23 FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
SELECT op, key, v FROM log OFFSET 1;
-- a dropped partition takes rows along
DROP TABLE pt_23;

-- inheritance: a table is captured without its children
CREATE TABLE parent (id int PRIMARY KEY, v text);
CREATE TABLE child (more int) INHERITS (parent);
SELECT payment_sync.capture_table('parent');
TRUNCATE payment_sync.log_0;
INSERT INTO parent VALUES (1, 'parent');
INSERT INTO child VALUES (2, 'child');
UPDATE parent SET v = 'both';
TRUNCATE child;
SELECT * FROM log;
-- each on its own
ALTER TABLE child ADD PRIMARY KEY (id);
SELECT payment_sync.capture_table('child');
INSERT INTO child VALUES (3, 'child', 3);
UPDATE parent SET v = 'all';
DELETE FROM ONLY parent;
ALTER TABLE parent RENAME v TO w;
DELETE FROM parent;
TRUNCATE parent;
SELECT operation, "table", key, new, old FROM payment_sync.changes OFFSET 2;

-- releasing leaves no trigger on any partition
SELECT payment_sync.release_table(t) FROM unnest('{pt,parent,child}'::regclass[]) t;
SELECT * FROM triggers;
SET client_min_messages = warning;
DROP EXTENSION payment_sync CASCADE;
DROP SCHEMA parts CASCADE;
DROP FOREIGN DATA WRAPPER regress_parts CASCADE;
