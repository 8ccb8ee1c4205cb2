-- payment_sync--1.0--1.1.sql
--
-- Brings the objects of 1.0 to the state that payment_sync--1.1.sql makes.
-- t/232_upgrade.pl compares the two catalogs.

\echo Use "ALTER EXTENSION payment_sync UPDATE TO '1.1'" to load this file. \quit

-- Batches that are asked for while one is under way are others.
ALTER TABLE payment_sync.batch ADD COLUMN request uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid();

-- A mirror under way has copied its rows in another order: it begins anew, with
-- what the source lacks.
ALTER TABLE payment_sync.batch ADD COLUMN swept boolean NOT NULL DEFAULT false;
UPDATE payment_sync.batch SET state = 'pending', shape = NULL, cursor = NULL, chunks = 0, rows = 0
	WHERE mirror AND state = 'running';
COMMENT ON TABLE payment_sync.batch IS 'batches asked for, under way and done; cursor is the last key copied; initial: the target is not in step before it; request: tells it from those asked for before and after; swept: a mirror has removed what the source lacks';
