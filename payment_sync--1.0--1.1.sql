-- payment_sync--1.0--1.1.sql
--
-- Brings the objects of 1.0 to the state that payment_sync--1.1.sql makes.
-- t/232_upgrade.pl compares the two catalogs.

\echo Use "ALTER EXTENSION payment_sync UPDATE TO '1.1'" to load this file. \quit
