\echo Use "CREATE EXTENSION payment_sync" to load this file. \quit

-- Everything below is qualified, except what is PostgreSQL's own.
SET LOCAL search_path TO pg_catalog, pg_temp;

-- Made here and not by the control file, so that it belongs to the extension
-- and goes with it; and so that nobody else's schema is ever taken for ours.
CREATE SCHEMA payment_sync;
COMMENT ON SCHEMA payment_sync IS 'functions and views of payment_sync, its change log and its definitions';

CREATE FUNCTION payment_sync.version() RETURNS text
	AS 'MODULE_PATHNAME', 'payment_sync_version'
	LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION payment_sync.version() IS
	'version of the loaded library; that of the SQL objects is in pg_extension';

-- ======================================================================
-- The change log
-- ======================================================================

-- One heap tuple is a chunk of many changes; src/log/log.h has the format.
-- Writers only append, readers never delete: a table that every sync is done
-- with is truncated.  Hence no index, no autovacuum (nothing to clean), no
-- truncation by vacuum, and no TOAST table (a change too large for one page
-- is continued in further tuples).  CREATE TABLE would make one for a bytea
-- column whose storage is changed afterwards; ALTER TABLE looks at both at once.
CREATE TABLE payment_sync.log_0 (
	xid xid8 NOT NULL,
	position bigint NOT NULL,
	at timestamptz NOT NULL,
	changes integer NOT NULL,
	origin name
) USING heap WITH (autovacuum_enabled = off, vacuum_truncate = off);
ALTER TABLE payment_sync.log_0
	ADD COLUMN data bytea NOT NULL, ALTER COLUMN data SET STORAGE PLAIN;
CREATE TABLE payment_sync.log_1 (
	xid xid8 NOT NULL,
	position bigint NOT NULL,
	at timestamptz NOT NULL,
	changes integer NOT NULL,
	origin name
) USING heap WITH (autovacuum_enabled = off, vacuum_truncate = off);
ALTER TABLE payment_sync.log_1
	ADD COLUMN data bytea NOT NULL, ALTER COLUMN data SET STORAGE PLAIN;
CREATE TABLE payment_sync.log_2 (
	xid xid8 NOT NULL,
	position bigint NOT NULL,
	at timestamptz NOT NULL,
	changes integer NOT NULL,
	origin name
) USING heap WITH (autovacuum_enabled = off, vacuum_truncate = off);
ALTER TABLE payment_sync.log_2
	ADD COLUMN data bytea NOT NULL, ALTER COLUMN data SET STORAGE PLAIN;

COMMENT ON TABLE payment_sync.log_0 IS 'change log, first of three rotating tables: chunks of packed changes';
COMMENT ON TABLE payment_sync.log_1 IS 'change log, second of three rotating tables: chunks of packed changes';
COMMENT ON TABLE payment_sync.log_2 IS 'change log, third of three rotating tables: chunks of packed changes';

CREATE TABLE payment_sync.log_rotation (
	active smallint NOT NULL CHECK (active BETWEEN 0 AND 2),
	rotated_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
	identity uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
	database oid NOT NULL
);
INSERT INTO payment_sync.log_rotation (active, database)
	SELECT 0, oid FROM pg_database WHERE datname = current_database();
COMMENT ON TABLE payment_sync.log_rotation IS 'one row: which log table is active, and the identity of this change log';
COMMENT ON COLUMN payment_sync.log_rotation.database IS
	'the database that this log was made in; elsewhere, in a copy of it, the syncs have no position';

-- Where a backlog can be cut: snapshots taken while the log grew.  Not dumped: they
-- speak of this server's transactions.
CREATE TABLE payment_sync.log_waypoint (
	bytes bigint PRIMARY KEY,
	snapshot pg_snapshot NOT NULL,
	filenode oid[] NOT NULL,
	block bigint[] NOT NULL,
	noted timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
COMMENT ON TABLE payment_sync.log_waypoint IS 'snapshots taken while the change log grew, at which a backlog can be cut: how many bytes had been logged, and each log table''s file and blocks then';

-- Shapes: versions of captured tables' column lists.  Not dumped: they speak
-- of attribute numbers and type oids of this database.
CREATE SEQUENCE payment_sync.shape_id AS integer;
CREATE TABLE payment_sync.shape (
	id integer PRIMARY KEY,
	relid oid NOT NULL,
	attnums smallint[] NOT NULL,
	names name[] NOT NULL,
	types oid[] NOT NULL,
	typmods integer[] NOT NULL,
	textual boolean[] NOT NULL,
	keys smallint[] NOT NULL
);
CREATE INDEX shape_relid_idx ON payment_sync.shape (relid, id);
COMMENT ON TABLE payment_sync.shape IS 'versions of captured tables'' column lists, which row images name by id';
COMMENT ON SEQUENCE payment_sync.shape_id IS 'ids of shapes';

-- ======================================================================
-- Configuration, kept by pg_dump
-- ======================================================================

CREATE TABLE payment_sync.captured (
	relid regclass PRIMARY KEY,
	columns name[],
	key name[] NOT NULL,
	old_values text NOT NULL DEFAULT 'changed'
		CHECK (old_values IN ('none', 'changed', 'all'))
);
COMMENT ON TABLE payment_sync.captured IS 'captured tables: definition';

CREATE TABLE payment_sync.sync (
	id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
	name name NOT NULL UNIQUE,
	server name,
	owner regrole NOT NULL,
	enabled boolean NOT NULL DEFAULT true,
	exclude_origins text[] NOT NULL DEFAULT '{}',
	max_log_size bigint CHECK (max_log_size > 0),
	on_log_full text NOT NULL DEFAULT 'warn' CHECK (on_log_full IN ('warn', 'disable')),
	reconcile_every interval CHECK (reconcile_every >= interval '1 s'),
	transform text,
	created timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE payment_sync.sync IS 'syncs: definition';

-- No foreign key between tables that pg_dump keeps: pg_restore --jobs may load
-- them in any order, and the key is there already.
CREATE TABLE payment_sync.sync_table (
	sync uuid NOT NULL,
	relid regclass NOT NULL,
	target_schema name,
	target_table name,
	PRIMARY KEY (sync, relid)
);
COMMENT ON TABLE payment_sync.sync_table IS 'tables of each sync and their names at the target';

SELECT pg_catalog.pg_extension_config_dump('payment_sync.captured', '');
-- An owner that was dropped is a number, in a dump as well, and may be somebody
-- else's elsewhere: such a sync stays behind.
SELECT pg_catalog.pg_extension_config_dump('payment_sync.sync',
	'WHERE EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.oid = owner)');
SELECT pg_catalog.pg_extension_config_dump('payment_sync.sync_table',
	'WHERE EXISTS (SELECT FROM payment_sync.sync s JOIN pg_catalog.pg_roles r ON r.oid = s.owner WHERE s.id = sync_table.sync)');

-- ======================================================================
-- State, not kept by pg_dump: it would be stale after a restore
-- ======================================================================

CREATE TABLE payment_sync.sync_state (
	sync uuid PRIMARY KEY REFERENCES payment_sync.sync ON DELETE CASCADE,
	position pg_snapshot NOT NULL,
	target_position text,
	released boolean NOT NULL DEFAULT false,
	restart boolean NOT NULL DEFAULT false,
	hint_filenode oid[] NOT NULL DEFAULT '{0,0,0}',
	hint_block bigint[] NOT NULL DEFAULT '{0,0,0}',
	windows bigint NOT NULL DEFAULT 0,
	changes bigint NOT NULL DEFAULT 0,
	rows_read bigint NOT NULL DEFAULT 0,
	bytes bigint NOT NULL DEFAULT 0,
	errors bigint NOT NULL DEFAULT 0,
	failures integer NOT NULL DEFAULT 0,
	started timestamptz NOT NULL DEFAULT pg_catalog.now(),
	saved timestamptz NOT NULL DEFAULT pg_catalog.now(),
	changes_per_second double precision NOT NULL DEFAULT 0,
	last_success timestamptz,
	lag_at timestamptz,
	last_error text,
	last_error_detail text,
	last_error_state text,
	last_error_at timestamptz,
	retry_at timestamptz,
	disabled_reason text,
	log_full_at timestamptz,
	failing_since timestamptz,
	generation integer NOT NULL DEFAULT 0,
	window_upto pg_snapshot,
	window_position bigint NOT NULL DEFAULT 0,
	window_xid xid8 NOT NULL DEFAULT '0',
	window_ahead bigint[],
	pull_window bigint NOT NULL DEFAULT 1,
	pull_upto pg_snapshot,
	pull_position bigint NOT NULL DEFAULT 0,
	pull_xid xid8 NOT NULL DEFAULT '0'
) WITH (fillfactor = 50);
COMMENT ON TABLE payment_sync.sync_state IS 'where each sync stands; a sync without a row here does not run';

-- Events of message targets that the position has passed although the target
-- has not taken them: src/message/park.c.  Texts are those of the
-- message; keys are hashes, by which later events of the same keys wait.
-- Asked: dead letters that are to be retried, and are parked in portions.
CREATE TABLE payment_sync.unsettled (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	sync uuid NOT NULL REFERENCES payment_sync.sync ON DELETE CASCADE,
	state text NOT NULL CHECK (state IN ('parked', 'held', 'dead', 'asked')),
	event_id text NOT NULL,
	events integer NOT NULL,
	relids oid[] NOT NULL,
	keys bigint[] NOT NULL,
	truncate boolean NOT NULL,
	type text NOT NULL,
	schema text NOT NULL,
	"table" text NOT NULL,
	operation text NOT NULL,
	key text NOT NULL,
	content_type text NOT NULL,
	attributes text[] NOT NULL,
	body bytea NOT NULL,
	failures integer NOT NULL,
	next_at timestamptz,
	status integer,
	reason text,
	excerpt text,
	error_state text,
	created timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	updated timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	tally_relids oid[] NOT NULL,
	tally_days date[] NOT NULL,
	tally_operations text[] NOT NULL,
	tally_counts integer[] NOT NULL,
	origin bigint,
	part integer NOT NULL DEFAULT 0,
	part_numbers bigint[],
	part_texts text[],
	change bytea
);
CREATE INDEX unsettled_sync_idx ON payment_sync.unsettled (sync, state, id);
COMMENT ON TABLE payment_sync.unsettled IS 'parked events, which are retried while others go on, and dead letters';
COMMENT ON SEQUENCE payment_sync.unsettled_id_seq IS 'ids of parked events and dead letters, in the order in which they came';

CREATE TABLE payment_sync.target_stats (
	sync uuid PRIMARY KEY REFERENCES payment_sync.sync ON DELETE CASCADE,
	requests bigint NOT NULL DEFAULT 0,
	events bigint NOT NULL DEFAULT 0,
	retries bigint NOT NULL DEFAULT 0,
	refused bigint NOT NULL DEFAULT 0,
	bytes bigint NOT NULL DEFAULT 0,
	statuses bigint[] NOT NULL DEFAULT '{0,0,0,0,0,0}',
	latency bigint[] NOT NULL,
	in_flight integer NOT NULL DEFAULT 0,
	breaker text NOT NULL DEFAULT 'closed',
	breaker_until timestamptz,
	last_status integer,
	last_reason text,
	last_excerpt text,
	last_at timestamptz,
	started timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
) WITH (fillfactor = 50);
COMMENT ON TABLE payment_sync.target_stats IS 'what happened at targets that take messages';

-- The books of message targets: src/message/ledger.c.  "captured" is
-- what was counted, replays included.
CREATE TABLE payment_sync.ledger_count (
	sync uuid NOT NULL REFERENCES payment_sync.sync ON DELETE CASCADE,
	relid oid NOT NULL,
	day date NOT NULL,
	operation text NOT NULL,
	captured bigint NOT NULL DEFAULT 0,
	delivered bigint NOT NULL DEFAULT 0,
	left_out bigint NOT NULL DEFAULT 0,
	excluded bigint NOT NULL DEFAULT 0,
	PRIMARY KEY (sync, relid, day, operation)
) WITH (fillfactor = 50);
COMMENT ON TABLE payment_sync.ledger_count IS 'what became of the changes that a sync''s position has passed';

CREATE TABLE payment_sync.ledger_manual (
	sync uuid NOT NULL REFERENCES payment_sync.sync ON DELETE CASCADE,
	relid oid NOT NULL,
	day date NOT NULL,
	operation text NOT NULL,
	discarded bigint NOT NULL DEFAULT 0,
	replayed bigint NOT NULL DEFAULT 0,
	made_by name NOT NULL,
	made_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
CREATE INDEX ledger_manual_idx ON payment_sync.ledger_manual (sync, relid, day);
COMMENT ON TABLE payment_sync.ledger_manual IS 'dead letters that people have discarded, and changes that they had sent again';

CREATE TABLE payment_sync.batch (
	sync uuid NOT NULL REFERENCES payment_sync.sync ON DELETE CASCADE,
	relid oid NOT NULL,
	mirror boolean NOT NULL DEFAULT false,
	initial boolean NOT NULL DEFAULT false,
	state text NOT NULL DEFAULT 'pending'
		CHECK (state IN ('pending', 'running', 'done', 'cancelled')),
	shape integer,
	cursor bytea,
	chunks bigint NOT NULL DEFAULT 0,
	rows bigint NOT NULL DEFAULT 0,
	rows_estimated bigint,
	requested timestamptz NOT NULL DEFAULT pg_catalog.now(),
	started timestamptz,
	finished timestamptz,
	request uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
	swept boolean NOT NULL DEFAULT false,
	whole boolean NOT NULL DEFAULT false,
	PRIMARY KEY (sync, relid)
) WITH (fillfactor = 50);
COMMENT ON TABLE payment_sync.batch IS 'batches asked for, under way and done; cursor is the last key copied; initial: the target is not in step before it; request: tells it from those asked for before and after; swept: a mirror has removed what the source lacks; whole: not in chunks, since rows refer to later ones';

-- Reconciliations: what was asked for, how far it has come, what it found.
-- One row per run and table.  History, not dumped: it speaks of this
-- database's oids.
CREATE SEQUENCE payment_sync.reconciliation_run;
COMMENT ON SEQUENCE payment_sync.reconciliation_run IS 'numbers of reconciliation runs';
CREATE TABLE payment_sync.reconciliation (
	run bigint NOT NULL,
	relid oid NOT NULL,
	sync uuid,
	sync_name name,
	owner regrole NOT NULL,
	other oid NOT NULL DEFAULT 0,
	server name,
	key name[],
	columns name[],
	other_columns name[],
	condition text,
	key_after text[],
	key_upto text[],
	recent boolean NOT NULL DEFAULT false,
	digest text NOT NULL DEFAULT 'hash' CHECK (digest IN ('hash', 'sha256')),
	tolerance jsonb,
	rows_per_second bigint CHECK (rows_per_second > 0),
	max_wait interval NOT NULL DEFAULT interval '10 s',
	seeds bigint[] NOT NULL DEFAULT ARRAY[
		pg_catalog.hashtextextended(pg_catalog.gen_random_uuid()::text, 1),
		pg_catalog.hashtextextended(pg_catalog.gen_random_uuid()::text, 2)],
	scheduled boolean NOT NULL DEFAULT false,
	state text NOT NULL DEFAULT 'pending'
		CHECK (state IN ('pending', 'running', 'done', 'cancelled', 'failed')),
	division text,
	cursor text[],
	compared boolean NOT NULL DEFAULT false,
	rows_estimated bigint,
	source_rows bigint NOT NULL DEFAULT 0,
	target_rows bigint NOT NULL DEFAULT 0,
	missing bigint NOT NULL DEFAULT 0,
	unexpected bigint NOT NULL DEFAULT 0,
	different bigint NOT NULL DEFAULT 0,
	in_flight bigint NOT NULL DEFAULT 0,
	matched bigint NOT NULL GENERATED ALWAYS AS
		(GREATEST(source_rows - missing - different - in_flight, 0)) STORED,
	rows_moved bigint NOT NULL DEFAULT 0,
	position text,
	requested timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	started timestamptz,
	saved timestamptz,
	finished timestamptz,
	error text,
	PRIMARY KEY (run, relid)
) WITH (fillfactor = 50);
CREATE INDEX reconciliation_sync_idx ON payment_sync.reconciliation (sync, relid, run);
COMMENT ON TABLE payment_sync.reconciliation IS 'reconciliations: a row per run and table';

CREATE TABLE payment_sync.discrepancy (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	sync uuid,
	owner regrole NOT NULL,
	relid oid NOT NULL,
	other oid NOT NULL,
	name text NOT NULL,
	digest bytea NOT NULL GENERATED ALWAYS AS
		(pg_catalog.decode(pg_catalog.md5(name), 'hex')) STORED,
	key jsonb NOT NULL,
	kind text NOT NULL CHECK (kind IN ('missing', 'unexpected', 'different')),
	source jsonb,
	target jsonb,
	columns name[] NOT NULL,
	first_run bigint NOT NULL,
	last_run bigint NOT NULL,
	first_seen timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	last_seen timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	state text NOT NULL DEFAULT 'open'
		CHECK (state IN ('open', 'accepted', 'repairing', 'repaired', 'gone')),
	reason text,
	changed_by name,
	changed_at timestamptz
);
CREATE UNIQUE INDEX discrepancy_key_idx ON payment_sync.discrepancy
	(COALESCE(sync, '00000000-0000-0000-0000-000000000000'), relid, other, digest)
	WHERE state IN ('open', 'accepted', 'repairing');
COMMENT ON TABLE payment_sync.discrepancy IS 'discrepancies, one row for as long as each lasts';
COMMENT ON SEQUENCE payment_sync.discrepancy_id_seq IS 'ids of discrepancies';

CREATE TABLE payment_sync.suspect (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	run bigint NOT NULL,
	relid oid NOT NULL,
	name text NOT NULL,
	key text[] NOT NULL,
	UNIQUE (run, relid, name)
);
COMMENT ON TABLE payment_sync.suspect IS 'keys that a run could not decide about: a change to them is on its way';
COMMENT ON SEQUENCE payment_sync.suspect_id_seq IS 'order in which suspects were noted';

-- ======================================================================
-- Record: which tables are captured
-- ======================================================================

-- Trigger functions.  Users may execute them, or they could not make triggers
-- of their own tables; on a table that is not captured they do nothing.
CREATE FUNCTION payment_sync.capture_change() RETURNS trigger
	AS 'MODULE_PATHNAME', 'payment_sync_capture_change'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.capture_change() IS 'logs each changed row of a captured table';

CREATE FUNCTION payment_sync.capture_truncate() RETURNS trigger
	AS 'MODULE_PATHNAME', 'payment_sync_capture_truncate'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.capture_truncate() IS 'logs TRUNCATE of a captured table';

CREATE FUNCTION payment_sync.capture_table(
	rel regclass,
	columns name[] DEFAULT NULL,
	key name[] DEFAULT NULL,
	old_values text DEFAULT 'changed') RETURNS void
	AS 'MODULE_PATHNAME', 'payment_sync_capture_table'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.capture_table(regclass, name[], name[], text) IS
	'records changes of a table from now on; called again, it changes what is recorded';

CREATE FUNCTION payment_sync.release_table(rel regclass) RETURNS void
	AS 'MODULE_PATHNAME', 'payment_sync_release_table'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.release_table(regclass) IS 'ends the recording of a table''s changes';

-- Names of tables and columns are no secret, as in the system catalogs.
CREATE VIEW payment_sync.captured_tables AS
	SELECT c.relid AS "table", c.columns, c.key, c.old_values,
		ARRAY(SELECT s.name
			  FROM payment_sync.sync_table t
			  JOIN payment_sync.sync s ON s.id = t.sync
			  WHERE t.relid = c.relid
			  ORDER BY s.name) AS syncs
	FROM payment_sync.captured c
	JOIN pg_class r ON r.oid = c.relid;
COMMENT ON VIEW payment_sync.captured_tables IS 'captured tables; columns is null if all are captured, also those added later';
COMMENT ON COLUMN payment_sync.captured_tables."table" IS 'captured table; of a partitioned one the topmost';
COMMENT ON COLUMN payment_sync.captured_tables.columns IS 'captured columns; null: all, also those added later';
COMMENT ON COLUMN payment_sync.captured_tables.key IS 'columns that tell a row from another, in the order of their index';
COMMENT ON COLUMN payment_sync.captured_tables.old_values IS 'which previous values are kept: none, changed or all';
COMMENT ON COLUMN payment_sync.captured_tables.syncs IS 'syncs that deliver the table''s changes';

-- ======================================================================
-- Where: wrappers of the transports
-- ======================================================================

CREATE FUNCTION payment_sync.payment_sync_postgres_validator(options text[], catalog oid)
RETURNS void
LANGUAGE C STRICT VOLATILE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'payment_sync_postgres_validator';
COMMENT ON FUNCTION payment_sync.payment_sync_postgres_validator(text[], oid) IS
	'checks options of payment_sync_postgres, its servers and user mappings';

CREATE FOREIGN DATA WRAPPER payment_sync_postgres
	NO HANDLER
	VALIDATOR payment_sync.payment_sync_postgres_validator
	OPTIONS (library 'payment_sync_postgres');
COMMENT ON FOREIGN DATA WRAPPER payment_sync_postgres IS
	'targets that are PostgreSQL databases';

CREATE FUNCTION payment_sync.payment_sync_http_validator(options text[], catalog oid)
RETURNS void
LANGUAGE C STRICT VOLATILE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'payment_sync_http_validator';
COMMENT ON FUNCTION payment_sync.payment_sync_http_validator(text[], oid) IS
	'checks options of payment_sync_http, its servers and user mappings';

CREATE FOREIGN DATA WRAPPER payment_sync_http
	NO HANDLER
	VALIDATOR payment_sync.payment_sync_http_validator
	OPTIONS (library 'payment_sync_http');
COMMENT ON FOREIGN DATA WRAPPER payment_sync_http IS
	'targets that take webhooks or speak REST';

CREATE FUNCTION payment_sync.read_transport_options(
	OUT wrapper text, OUT option text, OUT places text[], OUT type text,
	OUT valid text, OUT superuser boolean, OUT secret boolean,
	OUT meaning text) RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'payment_sync_read_transport_options'
	LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION payment_sync.read_transport_options() IS
	'options of the wrappers, as their validators know them';

CREATE VIEW payment_sync.transport_options AS
	SELECT wrapper, option, places, type, valid, superuser, secret, meaning
	FROM payment_sync.read_transport_options();
COMMENT ON VIEW payment_sync.transport_options IS
	'options of wrappers, servers and user mappings, as the validators know them';
COMMENT ON COLUMN payment_sync.transport_options.wrapper IS 'foreign-data wrapper';
COMMENT ON COLUMN payment_sync.transport_options.option IS 'the option''s name';
COMMENT ON COLUMN payment_sync.transport_options.places IS 'kinds of objects that may have it: foreign-data wrapper, server, user mapping';
COMMENT ON COLUMN payment_sync.transport_options.type IS 'string, integer, boolean or enum';
COMMENT ON COLUMN payment_sync.transport_options.valid IS 'range or list of valid values; null: any string';
COMMENT ON COLUMN payment_sync.transport_options.superuser IS 'may only a superuser set it?';
COMMENT ON COLUMN payment_sync.transport_options.secret IS 'a secret, which no message shows?';
COMMENT ON COLUMN payment_sync.transport_options.meaning IS 'what it is for, its unit and default';

-- ======================================================================
-- Tie: which tables go where
-- ======================================================================

CREATE FUNCTION payment_sync.create_sync(
	name name,
	tables regclass[],
	server name DEFAULT NULL,
	batch boolean DEFAULT false,
	targets text[] DEFAULT NULL,
	target_schema name DEFAULT NULL,
	exclude_origins text[] DEFAULT '{}',
	max_log_size text DEFAULT NULL,
	on_log_full text DEFAULT 'warn',
	enabled boolean DEFAULT true,
	mirror boolean DEFAULT false,
	transform text DEFAULT NULL) RETURNS void
	AS 'MODULE_PATHNAME', 'payment_sync_create_sync'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.create_sync(name, regclass[], name, boolean, text[], name, text[], text, text, boolean, boolean, text) IS
	'ties captured tables to a target; without a server, changes are fetched';

CREATE FUNCTION payment_sync.alter_sync(
	name name,
	new_name name DEFAULT NULL,
	server name DEFAULT NULL,
	add_tables regclass[] DEFAULT NULL,
	drop_tables regclass[] DEFAULT NULL,
	targets text[] DEFAULT NULL,
	batch boolean DEFAULT false,
	exclude_origins text[] DEFAULT NULL,
	max_log_size text DEFAULT NULL,
	on_log_full text DEFAULT NULL,
	transform text DEFAULT NULL) RETURNS void
	AS 'MODULE_PATHNAME', 'payment_sync_alter_sync'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.alter_sync(name, name, name, regclass[], regclass[], text[], boolean, text[], text, text, text) IS
	'changes what is given and leaves the rest; targets and batch are about add_tables';

CREATE FUNCTION payment_sync.enable_sync(name name, start text DEFAULT NULL) RETURNS void
	AS 'MODULE_PATHNAME', 'payment_sync_enable_sync'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.enable_sync(name, text) IS
	'lets a sync run: from where it stopped, from ''now'', or with a new ''batch''';

CREATE FUNCTION payment_sync.disable_sync(name name, reason text DEFAULT NULL) RETURNS void
	AS 'MODULE_PATHNAME', 'payment_sync_disable_sync'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.disable_sync(name, text) IS
	'stops a sync; the change log keeps what it has not delivered';

CREATE FUNCTION payment_sync.drop_sync(name name) RETURNS void
	AS 'MODULE_PATHNAME', 'payment_sync_drop_sync'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.drop_sync(name) IS 'removes a sync; its tables stay captured';

CREATE PROCEDURE payment_sync.incremental_sync(name name)
	AS 'MODULE_PATHNAME', 'payment_sync_incremental_sync'
	LANGUAGE C;
COMMENT ON PROCEDURE payment_sync.incremental_sync(name) IS
	'delivers what is pending now, in this session';

CREATE PROCEDURE payment_sync.batch_sync(
	name name,
	rel regclass DEFAULT NULL,
	mirror boolean DEFAULT false)
	AS 'MODULE_PATHNAME', 'payment_sync_batch_sync'
	LANGUAGE C;
COMMENT ON PROCEDURE payment_sync.batch_sync(name, regclass, boolean) IS
	'copies a sync''s tables, or one of them, in this session; mirror removes what the source lacks';

CREATE PROCEDURE payment_sync.tidy_log()
	AS 'MODULE_PATHNAME', 'payment_sync_tidy_log'
	LANGUAGE C;
COMMENT ON PROCEDURE payment_sync.tidy_log() IS
	'empties tables of the change log that no sync needs any more; workers and incremental_sync do it by themselves';

CREATE FUNCTION payment_sync.cancel_batch(name name, rel regclass DEFAULT NULL) RETURNS boolean
	AS 'MODULE_PATHNAME', 'payment_sync_cancel_batch'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.cancel_batch(name, regclass) IS
	'ends batches of a sync after the chunk at hand; true if there was one';

-- ======================================================================
-- Watch
-- ======================================================================

CREATE FUNCTION payment_sync.sync_lag(
	sync uuid, OUT changes bigint, OUT bytes bigint, OUT oldest timestamptz)
	AS 'MODULE_PATHNAME', 'payment_sync_sync_lag'
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.sync_lag(uuid) IS
	'committed changes that a sync has not delivered, their size, and the time of the first; an estimate if there are many';

CREATE FUNCTION payment_sync.sync_live(
	sync uuid,
	generation integer,
	OUT windows bigint,
	OUT changes bigint,
	OUT rows_read bigint,
	OUT bytes bigint,
	OUT last_success timestamptz,
	OUT standby boolean)
	AS 'MODULE_PATHNAME', 'payment_sync_sync_live'
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.sync_live(uuid, integer) IS
	'counters of a sync as its target has confirmed by now, and whether a synchronous standby is waited for; null: as in sync_state';

CREATE FUNCTION payment_sync.pending_changes(name name) RETURNS bigint
	AS 'MODULE_PATHNAME', 'payment_sync_pending_changes'
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.pending_changes(name) IS
	'number of committed changes that a sync has not delivered, exact however many there are';

CREATE FUNCTION payment_sync.log_size() RETURNS bigint
	AS 'MODULE_PATHNAME', 'payment_sync_log_size'
	LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION payment_sync.log_size() IS 'size of the change log in bytes';

CREATE FUNCTION payment_sync.sync_held(
	hint_filenode oid[], hint_block bigint[]) RETURNS bigint
	AS 'MODULE_PATHNAME', 'payment_sync_sync_held'
	LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION payment_sync.sync_held(oid[], bigint[]) IS
	'bytes of the change log from a reader''s hint to its end';

CREATE FUNCTION payment_sync.log_size_limit(max_log_size bigint) RETURNS bigint
	AS 'MODULE_PATHNAME', 'payment_sync_log_size_limit'
	LANGUAGE C STABLE CALLED ON NULL INPUT PARALLEL SAFE;
COMMENT ON FUNCTION payment_sync.log_size_limit(bigint) IS
	'the limit that holds for a sync: its own, else payment_sync.max_log_size; null: none';

CREATE FUNCTION payment_sync.worker_pid(sync uuid) RETURNS integer
	AS 'MODULE_PATHNAME', 'payment_sync_worker_pid'
	LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION payment_sync.worker_pid(uuid) IS 'process that delivers for a sync at this moment, or null';

-- Who may look: pg_monitor at all syncs, others at their own.
CREATE VIEW payment_sync.syncs WITH (security_barrier = true) AS
	SELECT s.name, s.server, s.owner, s.enabled,
		ARRAY(SELECT t.relid
			  FROM payment_sync.sync_table t
			  JOIN pg_class c ON c.oid = t.relid
			  WHERE t.sync = s.id ORDER BY t.relid::oid) AS tables,
		ARRAY(SELECT format('%I.%I', COALESCE(t.target_schema, n.nspname),
							COALESCE(t.target_table, c.relname))
			  FROM payment_sync.sync_table t
			  JOIN pg_class c ON c.oid = t.relid
			  JOIN pg_namespace n ON n.oid = c.relnamespace
			  WHERE t.sync = s.id ORDER BY t.relid::oid) AS targets,
		s.exclude_origins, s.max_log_size, s.on_log_full, s.created, s.transform
	FROM payment_sync.sync s
	WHERE pg_has_role('pg_monitor', 'USAGE') OR pg_has_role(s.owner, 'USAGE');
COMMENT ON VIEW payment_sync.syncs IS 'syncs: definition';
COMMENT ON COLUMN payment_sync.syncs.name IS 'the sync''s name';
COMMENT ON COLUMN payment_sync.syncs.server IS 'foreign server of its target; null: changes are fetched';
COMMENT ON COLUMN payment_sync.syncs.owner IS 'role with whose rights it works, and whose user mapping it uses';
COMMENT ON COLUMN payment_sync.syncs.enabled IS 'may it run?';
COMMENT ON COLUMN payment_sync.syncs.tables IS 'its captured tables';
COMMENT ON COLUMN payment_sync.syncs.targets IS 'names of the tables at the target, in the order of tables';
COMMENT ON COLUMN payment_sync.syncs.exclude_origins IS 'origins whose changes are left out; * stands for all but changes made here';
COMMENT ON COLUMN payment_sync.syncs.max_log_size IS 'bytes of the change log that it may hold back; null: payment_sync.max_log_size holds';
COMMENT ON COLUMN payment_sync.syncs.on_log_full IS 'what happens beyond that: warn, or disable the sync, too';
COMMENT ON COLUMN payment_sync.syncs.created IS 'when it was created';
COMMENT ON COLUMN payment_sync.syncs.transform IS 'SQL expression that makes the body of an event; null: the server''s format does';

CREATE VIEW payment_sync.stat_sync WITH (security_barrier = true) AS
	SELECT s.name, s.server,
		CASE
			WHEN NOT s.enabled THEN 'disabled'
			WHEN st.sync IS NULL OR st.released OR NOT o.here THEN 'stopped'
			WHEN s.server IS NULL THEN 'pull'
			WHEN lv.standby AND l.changes > 0 THEN 'standby'
			WHEN w.pid IS NOT NULL THEN 'running'
			WHEN st.retry_at > clock_timestamp() THEN 'waiting'
			WHEN l.changes > 0 OR b.pending THEN 'pending'
			ELSE 'idle'
		END AS state,
		l.changes AS lag_changes,
		l.bytes AS lag_bytes,
		CASE WHEN l.changes > 0 THEN GREATEST(clock_timestamp() - l.oldest, interval '0')
			WHEN l.changes = 0 THEN interval '0'
		END AS lag,
		GREATEST(st.windows, lv.windows) AS windows,
		GREATEST(st.changes, lv.changes) AS changes,
		GREATEST(st.rows_read, lv.rows_read) AS rows_read,
		GREATEST(st.bytes, lv.bytes) AS bytes,
		CASE WHEN st.saved > clock_timestamp() - interval '10 seconds'
			THEN st.changes_per_second
			ELSE 0
		END AS changes_per_second,
		st.started AS stats_since,
		GREATEST(st.last_success, lv.last_success) AS last_success,
		st.errors, st.failures,
		st.last_error,
		CASE WHEN pg_has_role(s.owner, 'USAGE') THEN st.last_error_detail END AS last_error_detail,
		st.last_error_state, st.last_error_at,
		st.retry_at AS next_retry,
		w.pid AS worker_pid,
		h.held AS log_held,
		h.held > h.size_limit AS log_full,
		st.disabled_reason,
		v.finished AS reconciled, v.agrees, clock_timestamp() - v.finished AS agrees_age
	FROM payment_sync.sync s
	LEFT JOIN payment_sync.sync_state st ON st.sync = s.id
	LEFT JOIN LATERAL (SELECT max(r.finished) AS finished,
							  sum(r.missing + r.unexpected + r.different) = 0 AS agrees
					   FROM payment_sync.reconciliation r
					   WHERE r.sync = s.id
					   GROUP BY r.run
					   HAVING bool_and(r.state = 'done' AND r.condition IS NULL AND NOT r.recent
									   AND r.key_after IS NULL AND r.key_upto IS NULL)
						   AND count(*) >= (SELECT count(*) FROM payment_sync.sync_table t
											WHERE t.sync = s.id)
					   ORDER BY r.run DESC LIMIT 1) v ON true
	CROSS JOIN (SELECT d.datname = current_database() AS here
				FROM payment_sync.log_rotation r
				JOIN pg_database d ON d.oid = r.database
				UNION ALL
				SELECT false LIMIT 1) o
	CROSS JOIN LATERAL (SELECT payment_sync.worker_pid(s.id) AS pid) w
	CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM payment_sync.batch
									   WHERE sync = s.id AND batch.state IN ('pending', 'running')) AS pending) b
	CROSS JOIN LATERAL (SELECT CASE WHEN NOT st.released AND o.here
									THEN payment_sync.sync_held(st.hint_filenode, st.hint_block) END AS held,
							   payment_sync.log_size_limit(s.max_log_size) AS size_limit) h
	LEFT JOIN LATERAL payment_sync.sync_lag(s.id) l ON true
	LEFT JOIN LATERAL payment_sync.sync_live(s.id, st.generation) lv ON true
	WHERE pg_has_role('pg_monitor', 'USAGE') OR pg_has_role(s.owner, 'USAGE');
COMMENT ON VIEW payment_sync.stat_sync IS 'syncs: what each is doing, what is pending, what went wrong';
COMMENT ON COLUMN payment_sync.stat_sync.name IS 'the sync''s name';
COMMENT ON COLUMN payment_sync.stat_sync.server IS 'foreign server of its target; null: changes are fetched';
COMMENT ON COLUMN payment_sync.stat_sync.state IS 'running, idle, pending (its turn will come), waiting (for the next retry), standby (a synchronous standby lacks what would be sent), pull, disabled, or stopped (has no position)';
COMMENT ON COLUMN payment_sync.stat_sync.lag_changes IS 'committed changes not yet delivered; exact up to 64 pages of the log, then an estimate; 0 means that there are none';
COMMENT ON COLUMN payment_sync.stat_sync.lag_bytes IS 'size of these changes in the change log; likewise';
COMMENT ON COLUMN payment_sync.stat_sync.lag IS 'age of the oldest of them';
COMMENT ON COLUMN payment_sync.stat_sync.windows IS 'windows delivered; of a pull sync, windows acknowledged';
COMMENT ON COLUMN payment_sync.stat_sync.changes IS 'changes delivered';
COMMENT ON COLUMN payment_sync.stat_sync.rows_read IS 'rows delivered by batches';
COMMENT ON COLUMN payment_sync.stat_sync.bytes IS 'bytes of change log delivered';
COMMENT ON COLUMN payment_sync.stat_sync.changes_per_second IS 'changes delivered per second of late; 0 after ten seconds without any';
COMMENT ON COLUMN payment_sync.stat_sync.stats_since IS 'when counting began; counters survive restarts and crashes';
COMMENT ON COLUMN payment_sync.stat_sync.last_success IS 'when the target last confirmed a window';
COMMENT ON COLUMN payment_sync.stat_sync.errors IS 'failures since stats_since';
COMMENT ON COLUMN payment_sync.stat_sync.failures IS 'failures in a row, zero after a success';
COMMENT ON COLUMN payment_sync.stat_sync.last_error IS 'message of the last failure';
COMMENT ON COLUMN payment_sync.stat_sync.last_error_detail IS 'detail of the last failure, perhaps with the key of a change; only the sync''s owner sees it';
COMMENT ON COLUMN payment_sync.stat_sync.last_error_state IS 'SQLSTATE of the last failure';
COMMENT ON COLUMN payment_sync.stat_sync.last_error_at IS 'when the last failure happened';
COMMENT ON COLUMN payment_sync.stat_sync.next_retry IS 'when delivery is tried again after a failure';
COMMENT ON COLUMN payment_sync.stat_sync.worker_pid IS 'process that delivers at this moment';
COMMENT ON COLUMN payment_sync.stat_sync.log_held IS 'bytes of the change log that cannot be truncated because of this sync, at most';
COMMENT ON COLUMN payment_sync.stat_sync.log_full IS 'is that beyond the limit?  See max_log_size and on_log_full';
COMMENT ON COLUMN payment_sync.stat_sync.disabled_reason IS 'why it was disabled, if disable_sync() or the system said so';
COMMENT ON COLUMN payment_sync.stat_sync.reconciled IS 'when the last reconciliation of all its tables was done';
COMMENT ON COLUMN payment_sync.stat_sync.agrees IS 'did that find no discrepancy?';
COMMENT ON COLUMN payment_sync.stat_sync.agrees_age IS 'how old that verdict is';

CREATE VIEW payment_sync.log_holders WITH (security_barrier = true) AS
	SELECT 'sync' AS kind, s.name AS sync, NULL::integer AS pid, NULL::text AS gid,
		CASE
			WHEN NOT s.enabled THEN 'the sync is disabled'
			WHEN st.failures > 0 THEN 'its target fails'
			WHEN s.server IS NULL THEN 'changes were not acknowledged'
			ELSE 'changes were not delivered'
		END AS reason,
		COALESCE(st.failing_since, st.last_success, st.started) AS since,
		h.held AS bytes
	FROM payment_sync.sync s
	JOIN payment_sync.sync_state st ON st.sync = s.id AND NOT st.released
	CROSS JOIN LATERAL (SELECT payment_sync.sync_held(st.hint_filenode, st.hint_block) AS held) h
	WHERE h.held > 0
		AND EXISTS (SELECT FROM payment_sync.log_rotation r
					JOIN pg_database d ON d.oid = r.database
					WHERE d.datname = current_database())
		AND (pg_has_role('pg_monitor', 'USAGE') OR pg_has_role(s.owner, 'USAGE'))
	UNION ALL
	SELECT CASE WHEN l.pid IS NULL THEN 'prepared transaction' ELSE 'transaction' END,
		NULL, l.pid, p.gid,
		CASE
			WHEN l.chooses THEN 'it has chosen the position of a sync and is not committed'
			WHEN l.writes THEN 'it has changed captured tables and is not committed'
			ELSE 'it has a lock on a table of the change log'
		END,
		COALESCE(p.prepared, a.xact_start),
		CASE WHEN l.chooses THEN payment_sync.log_size() ELSE l.bytes END
	FROM (SELECT k.pid,
			(SELECT x.transactionid FROM pg_locks x
			 WHERE k.pid IS NULL AND x.pid IS NULL AND x.granted
				AND x.locktype = 'transactionid' AND x.mode = 'ExclusiveLock'
				AND x.virtualtransaction = k.virtualtransaction LIMIT 1) AS prepared,
			bool_or(k.locktype = 'advisory') AS chooses,
			bool_or(k.mode = 'RowExclusiveLock') AS writes,
			COALESCE(sum(DISTINCT c.bytes), 0)::bigint AS bytes
		FROM pg_locks k
		JOIN pg_database d ON d.oid = k.database AND d.datname = current_database()
		LEFT JOIN (SELECT t.n, ('payment_sync.log_' || t.n)::regclass AS relid,
						pg_relation_size(('payment_sync.log_' || t.n)::regclass) AS bytes
					FROM generate_series(0, 2) t(n)
					JOIN payment_sync.log_rotation r ON r.active <> t.n) c
			ON k.locktype = 'relation' AND k.relation = c.relid AND c.bytes > 0
		WHERE k.granted AND (c.n IS NOT NULL OR k.locktype = 'advisory' AND k.objsubid = 10)
		GROUP BY k.pid, k.virtualtransaction) l
	LEFT JOIN pg_prepared_xacts p ON p.transaction = l.prepared
	LEFT JOIN pg_stat_activity a ON a.pid = l.pid;
COMMENT ON VIEW payment_sync.log_holders IS 'who keeps tables of the change log from being emptied: syncs and open transactions';
COMMENT ON COLUMN payment_sync.log_holders.kind IS 'sync, transaction, or prepared transaction';
COMMENT ON COLUMN payment_sync.log_holders.sync IS 'name of the sync, if it is one';
COMMENT ON COLUMN payment_sync.log_holders.pid IS 'process of the transaction, if it is one';
COMMENT ON COLUMN payment_sync.log_holders.gid IS 'name of the prepared transaction, if it is one';
COMMENT ON COLUMN payment_sync.log_holders.reason IS 'why it does';
COMMENT ON COLUMN payment_sync.log_holders.since IS 'begin of the transaction; of a sync, when it began to fail, or last got on; null if the caller may not know';
COMMENT ON COLUMN payment_sync.log_holders.bytes IS 'of the change log, at most';

CREATE VIEW payment_sync.progress_batch WITH (security_barrier = true) AS
	SELECT s.name AS sync, b.relid::regclass AS "table", b.state, b.mirror,
		b.chunks, b.rows, b.rows_estimated,
		CASE
			WHEN b.state = 'done' THEN 100.0
			WHEN b.rows_estimated > 0 THEN round(LEAST(100.0 * b.rows / b.rows_estimated, 99.9), 1)
		END AS percent,
		b.requested, b.started, b.finished
	FROM payment_sync.batch b
	JOIN payment_sync.sync s ON s.id = b.sync
	WHERE pg_has_role('pg_monitor', 'USAGE') OR pg_has_role(s.owner, 'USAGE');
COMMENT ON VIEW payment_sync.progress_batch IS 'the latest batch of each table of each sync';
COMMENT ON COLUMN payment_sync.progress_batch.sync IS 'the sync''s name';
COMMENT ON COLUMN payment_sync.progress_batch."table" IS 'table that is copied';
COMMENT ON COLUMN payment_sync.progress_batch.state IS 'pending, running, done or cancelled';
COMMENT ON COLUMN payment_sync.progress_batch.mirror IS 'are rows removed from the target that the source lacks?';
COMMENT ON COLUMN payment_sync.progress_batch.chunks IS 'chunks delivered';
COMMENT ON COLUMN payment_sync.progress_batch.rows IS 'rows delivered';
COMMENT ON COLUMN payment_sync.progress_batch.rows_estimated IS 'the planner''s estimate of the table''s rows when the batch was asked for';
COMMENT ON COLUMN payment_sync.progress_batch.percent IS 'rows in percent of rows_estimated; null if there is no estimate';
COMMENT ON COLUMN payment_sync.progress_batch.requested IS 'when the batch was asked for';
COMMENT ON COLUMN payment_sync.progress_batch.started IS 'when its first chunk was read';
COMMENT ON COLUMN payment_sync.progress_batch.finished IS 'when it was done or cancelled';

-- ======================================================================
-- Targets that take messages
-- ======================================================================

CREATE FUNCTION payment_sync.latency_quantile(
	latency bigint[], quantile double precision) RETURNS double precision
	AS 'MODULE_PATHNAME', 'payment_sync_latency_quantile'
	LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION payment_sync.latency_quantile(bigint[], double precision) IS
	'milliseconds within which this part of the attempts was answered, from a histogram';

-- What a target answers may repeat what it was sent: for the sync's owner only.
CREATE VIEW payment_sync.stat_target WITH (security_barrier = true) AS
	SELECT s.name AS sync, s.server,
		COALESCE(t.breaker, 'closed') AS breaker, t.breaker_until,
		COALESCE(t.in_flight, 0) AS in_flight,
		u.parked, u.held, u.dead,
		t.requests, t.events, t.retries, t.refused, t.bytes,
		t.statuses[3] AS status_2xx, t.statuses[4] AS status_3xx,
		t.statuses[5] AS status_4xx, t.statuses[6] AS status_5xx,
		t.statuses[1] AS no_status,
		payment_sync.latency_quantile(t.latency, 0.5) AS latency_p50,
		payment_sync.latency_quantile(t.latency, 0.99) AS latency_p99,
		t.last_status, t.last_reason,
		CASE WHEN pg_has_role(s.owner, 'USAGE') THEN t.last_excerpt END AS last_excerpt,
		t.last_at, st.failing_since, t.started AS stats_since
	FROM payment_sync.sync s
	LEFT JOIN payment_sync.sync_state st ON st.sync = s.id
	JOIN payment_sync.target_stats t ON t.sync = s.id
	CROSS JOIN LATERAL (
		SELECT COALESCE(sum(events) FILTER (WHERE state IN ('parked', 'asked')), 0) AS parked,
			COALESCE(sum(events) FILTER (WHERE state = 'held'), 0) AS held,
			COALESCE(sum(events) FILTER (WHERE state = 'dead'), 0) AS dead
		FROM payment_sync.unsettled
		WHERE sync = s.id) u
	WHERE pg_has_role('pg_monitor', 'USAGE') OR pg_has_role(s.owner, 'USAGE');
COMMENT ON VIEW payment_sync.stat_target IS 'targets that take messages: what they answered, and how fast; as of the last save, within a second';
COMMENT ON COLUMN payment_sync.stat_target.sync IS 'name of the sync';
COMMENT ON COLUMN payment_sync.stat_target.server IS 'foreign server of its target';
COMMENT ON COLUMN payment_sync.stat_target.breaker IS 'closed: messages are sent; open: none until breaker_until; probing: one, to see whether the target is back';
COMMENT ON COLUMN payment_sync.stat_target.breaker_until IS 'when an open breaker lets a probe through';
COMMENT ON COLUMN payment_sync.stat_target.in_flight IS 'messages without an answer';
COMMENT ON COLUMN payment_sync.stat_target.parked IS 'events that are retried while others go on, or wait behind such ones';
COMMENT ON COLUMN payment_sync.stat_target.held IS 'refused events that hold later ones of their keys';
COMMENT ON COLUMN payment_sync.stat_target.dead IS 'dead letters';
COMMENT ON COLUMN payment_sync.stat_target.requests IS 'attempts that have ended';
COMMENT ON COLUMN payment_sync.stat_target.events IS 'events that the target has taken';
COMMENT ON COLUMN payment_sync.stat_target.retries IS 'attempts that failed and are repeated';
COMMENT ON COLUMN payment_sync.stat_target.refused IS 'events that the target has refused for good, or that could not be made';
COMMENT ON COLUMN payment_sync.stat_target.bytes IS 'size of the bodies sent, repetitions included';
COMMENT ON COLUMN payment_sync.stat_target.status_2xx IS 'answers with a status of this class; of protocols without one, deliveries';
COMMENT ON COLUMN payment_sync.stat_target.status_3xx IS 'answers with a status of this class';
COMMENT ON COLUMN payment_sync.stat_target.status_4xx IS 'answers with a status of this class';
COMMENT ON COLUMN payment_sync.stat_target.status_5xx IS 'answers with a status of this class';
COMMENT ON COLUMN payment_sync.stat_target.no_status IS 'attempts that ended without an answer';
COMMENT ON COLUMN payment_sync.stat_target.latency_p50 IS 'milliseconds within which half of the attempts ended';
COMMENT ON COLUMN payment_sync.stat_target.latency_p99 IS 'milliseconds within which 99 of 100 attempts ended';
COMMENT ON COLUMN payment_sync.stat_target.last_status IS 'status of the last answer that had one';
COMMENT ON COLUMN payment_sync.stat_target.last_reason IS 'what was wrong with the last answer; null if nothing was';
COMMENT ON COLUMN payment_sync.stat_target.last_excerpt IS 'beginning of the last answer; only the sync''s owner sees it';
COMMENT ON COLUMN payment_sync.stat_target.last_at IS 'when the last attempt ended';
COMMENT ON COLUMN payment_sync.stat_target.failing_since IS 'since when nothing gets through; null if something does';
COMMENT ON COLUMN payment_sync.stat_target.stats_since IS 'when counting began';

CREATE VIEW payment_sync.dead_letters WITH (security_barrier = true) AS
	SELECT s.name AS sync, u.id,
		CASE u.state WHEN 'asked' THEN 'parked' ELSE u.state END AS state,
		u.event_id, u.events, u.type,
		u.schema, u."table", u.operation,
		CASE WHEN o.is_owner THEN u.key END AS key,
		u.status,
		CASE WHEN o.is_owner OR u.change IS NULL THEN u.reason
			ELSE split_part(u.reason, ':', 1)
		END AS reason,
		CASE WHEN o.is_owner THEN u.excerpt END AS excerpt,
		u.error_state, u.failures, u.next_at, u.created, u.updated,
		NULLIF(u.content_type, '') AS content_type,
		CASE WHEN o.is_owner AND u.change IS NULL THEN u.body END AS body
	FROM payment_sync.unsettled u
	JOIN payment_sync.sync s ON s.id = u.sync
	CROSS JOIN LATERAL (SELECT pg_has_role(s.owner, 'USAGE') AS is_owner) o
	WHERE pg_has_role('pg_monitor', 'USAGE') OR o.is_owner;
COMMENT ON VIEW payment_sync.dead_letters IS 'events that targets have refused or that could not be made, and those that are parked: not delivered, but passed';
COMMENT ON COLUMN payment_sync.dead_letters.sync IS 'name of the sync';
COMMENT ON COLUMN payment_sync.dead_letters.id IS 'for retry_dead_letters and discard_dead_letters; in order of time';
COMMENT ON COLUMN payment_sync.dead_letters.state IS 'dead: refused, or could not be made; held: likewise, and holds later events of its keys; parked: is retried';
COMMENT ON COLUMN payment_sync.dead_letters.event_id IS 'id that the target sees';
COMMENT ON COLUMN payment_sync.dead_letters.events IS 'number of events in the body';
COMMENT ON COLUMN payment_sync.dead_letters.type IS 'type of the first event';
COMMENT ON COLUMN payment_sync.dead_letters.schema IS 'schema of its table';
COMMENT ON COLUMN payment_sync.dead_letters."table" IS 'its table';
COMMENT ON COLUMN payment_sync.dead_letters.operation IS 'what happened to its row';
COMMENT ON COLUMN payment_sync.dead_letters.key IS 'its key; only the sync''s owner sees it';
COMMENT ON COLUMN payment_sync.dead_letters.status IS 'status of the target''s last answer';
COMMENT ON COLUMN payment_sync.dead_letters.reason IS 'why it was not delivered; null: it waits behind another one of its key; what is said of an event that could not be made is for the sync''s owner only';
COMMENT ON COLUMN payment_sync.dead_letters.excerpt IS 'beginning of the target''s last answer; only the sync''s owner sees it';
COMMENT ON COLUMN payment_sync.dead_letters.error_state IS 'SQLSTATE of the reason';
COMMENT ON COLUMN payment_sync.dead_letters.failures IS 'attempts that failed';
COMMENT ON COLUMN payment_sync.dead_letters.next_at IS 'when a parked one is tried again';
COMMENT ON COLUMN payment_sync.dead_letters.created IS 'when it left the line';
COMMENT ON COLUMN payment_sync.dead_letters.updated IS 'when it was last tried';
COMMENT ON COLUMN payment_sync.dead_letters.content_type IS 'media type of the body; null: the event could not be made';
COMMENT ON COLUMN payment_sync.dead_letters.body IS 'what is sent, as it is; only the sync''s owner sees it; null: the event could not be made, and is made anew when it is retried';

CREATE FUNCTION payment_sync.read_ledger(
	OUT sync name, OUT "table" regclass, OUT day date, OUT operation text,
	OUT captured bigint, OUT delivered bigint, OUT left_out bigint, OUT excluded bigint,
	OUT parked bigint, OUT held bigint, OUT dead bigint, OUT discarded bigint,
	OUT pending bigint, OUT replayed bigint) RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'payment_sync_read_ledger'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.read_ledger() IS 'the ledger''s figures, all of one moment';

CREATE VIEW payment_sync.ledger AS
	SELECT sync, "table", day, operation, captured, delivered, left_out, excluded,
		parked, held, dead, discarded, pending, replayed,
		captured + replayed - (delivered + left_out + excluded + parked + held
			+ dead + discarded + pending) AS difference,
		captured + replayed = delivered + left_out + excluded + parked + held
			+ dead + discarded + pending AS balanced
	FROM payment_sync.read_ledger();
COMMENT ON VIEW payment_sync.ledger IS 'of targets that take messages: what became of each captured change, by table, day and operation';
COMMENT ON COLUMN payment_sync.ledger.sync IS 'name of the sync';
COMMENT ON COLUMN payment_sync.ledger."table" IS 'captured table';
COMMENT ON COLUMN payment_sync.ledger.day IS 'when the changes were written to the log, in UTC';
COMMENT ON COLUMN payment_sync.ledger.operation IS 'insert, update, delete or truncate; rows of batches are no changes';
COMMENT ON COLUMN payment_sync.ledger.captured IS 'changes in the log that the sync had or has to deal with';
COMMENT ON COLUMN payment_sync.ledger.delivered IS 'the target has taken their events';
COMMENT ON COLUMN payment_sync.ledger.left_out IS 'the sync''s transform has made no event of them';
COMMENT ON COLUMN payment_sync.ledger.excluded IS 'the sync leaves out changes of their origin';
COMMENT ON COLUMN payment_sync.ledger.parked IS 'their events are retried while others go on';
COMMENT ON COLUMN payment_sync.ledger.held IS 'their events were refused, and hold later ones of their keys';
COMMENT ON COLUMN payment_sync.ledger.dead IS 'their events are dead letters';
COMMENT ON COLUMN payment_sync.ledger.discarded IS 'somebody has discarded their events';
COMMENT ON COLUMN payment_sync.ledger.pending IS 'in the log, and not yet counted elsewhere: waiting, on their way, or delivered since the last save';
COMMENT ON COLUMN payment_sync.ledger.replayed IS 'counted once more than captured, since replay() has them sent again';
COMMENT ON COLUMN payment_sync.ledger.difference IS 'captured and replayed, less all that they are accounted for by';
COMMENT ON COLUMN payment_sync.ledger.balanced IS 'is the difference zero?  If not, a change is unaccounted for';

CREATE FUNCTION payment_sync.retry_dead_letters(
	name name, ids bigint[] DEFAULT NULL) RETURNS bigint
	AS 'MODULE_PATHNAME', 'payment_sync_retry_dead_letters'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.retry_dead_letters(name, bigint[]) IS
	'sends dead letters again, with their old ids: those named or all, at most 10000; returns how many';

CREATE FUNCTION payment_sync.discard_dead_letters(
	name name, ids bigint[] DEFAULT NULL) RETURNS bigint
	AS 'MODULE_PATHNAME', 'payment_sync_discard_dead_letters'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.discard_dead_letters(name, bigint[]) IS
	'removes dead letters for good: those named, parked events among them, or all dead and held ones; returns how many';

CREATE FUNCTION payment_sync.replay(
	name name, since timestamptz DEFAULT NULL, from_position text DEFAULT NULL) RETURNS bigint
	AS 'MODULE_PATHNAME', 'payment_sync_replay'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.replay(name, timestamptz, text) IS
	'sends again what was sent since a time or from a position on, as far as the change log still holds it; returns how many changes that are';

CREATE FUNCTION payment_sync.preview_event(
	name name, key jsonb, rel regclass DEFAULT NULL) RETURNS text
	AS 'MODULE_PATHNAME', 'payment_sync_preview_event'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.preview_event(name, jsonb, regclass) IS
	'the request that inserting the row with this key would cause, secrets masked; null: the transform leaves it out';

CREATE FUNCTION payment_sync.check_target(
	server name, OUT step text, OUT ok boolean, OUT detail text,
	OUT elapsed double precision) RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'payment_sync_check_target'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.check_target(name) IS
	'tries a target step by step, up to a ping that it must take, or to its tables and their triggers; elapsed in milliseconds';

CREATE FUNCTION payment_sync.wake_workers() RETURNS void
	AS 'MODULE_PATHNAME', 'payment_sync_wake_workers'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.wake_workers() IS 'makes workers look at this database''s definitions';

-- ======================================================================
-- The log, decoded
-- ======================================================================

CREATE FUNCTION payment_sync.read_changes(
	OUT "position" bigint, OUT xid xid8, OUT at timestamptz, OUT operation text,
	OUT "table" regclass, OUT key jsonb, OUT new jsonb, OUT old jsonb,
	OUT origin text) RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'payment_sync_read_changes'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.read_changes() IS 'changes in the log, of tables that the caller may read';

-- In the target list, where rows are made as they are asked for: LIMIT is cheap.
CREATE VIEW payment_sync.changes AS
	SELECT (c.change).xid, (c.change)."position", (c.change).at, (c.change).operation,
		(c.change)."table", (c.change).key, (c.change).new, (c.change).old, (c.change).origin
	FROM (SELECT payment_sync.read_changes() AS change) c;
COMMENT ON VIEW payment_sync.changes IS
	'the change log, decoded, in order of position; only tables that the current user may read';
COMMENT ON COLUMN payment_sync.changes.xid IS 'top-level transaction';
COMMENT ON COLUMN payment_sync.changes."position" IS 'order of changes to one key; says nothing about the order of commits';
COMMENT ON COLUMN payment_sync.changes.at IS 'when the change was written to the log';
COMMENT ON COLUMN payment_sync.changes.operation IS 'insert, update, delete or truncate';
COMMENT ON COLUMN payment_sync.changes."table" IS 'captured table';
COMMENT ON COLUMN payment_sync.changes.key IS 'the row''s key; of an update the new one; null for truncate';
COMMENT ON COLUMN payment_sync.changes.new IS 'captured columns after the change; null for delete and truncate';
COMMENT ON COLUMN payment_sync.changes.old IS 'of an update the previous values, as old_values says; of a delete the row, or its key';
COMMENT ON COLUMN payment_sync.changes.origin IS 'who applied the change here; null: made here';

-- ======================================================================
-- Pull
-- ======================================================================

CREATE FUNCTION payment_sync.fetch_changes(
	name name, max_changes integer DEFAULT 1000,
	OUT "position" text, OUT xid xid8, OUT at timestamptz, OUT operation text,
	OUT "table" regclass, OUT key jsonb, OUT new jsonb, OUT old jsonb,
	OUT origin text) RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'payment_sync_fetch_changes'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.fetch_changes(name, integer) IS
	'next changes of a sync without server, in order; the same ones until they are acknowledged';

CREATE FUNCTION payment_sync.ack_changes(name name, "position" text) RETURNS void
	AS 'MODULE_PATHNAME', 'payment_sync_ack_changes'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.ack_changes(name, text) IS
	'the fetched change at this position, and all before it, are dealt with, if this transaction commits';

-- ======================================================================
-- Prove that both sides agree
-- ======================================================================

CREATE FUNCTION payment_sync.reconcile(
	name name,
	rel regclass DEFAULT NULL,
	condition text DEFAULT NULL,
	key_after text[] DEFAULT NULL,
	key_upto text[] DEFAULT NULL,
	recent boolean DEFAULT false,
	tolerance jsonb DEFAULT NULL,
	digest text DEFAULT 'hash',
	server name DEFAULT NULL,
	rows_per_second integer DEFAULT NULL,
	max_wait interval DEFAULT '10 s',
	OUT run bigint, OUT "table" regclass, OUT source_rows bigint,
	OUT target_rows bigint, OUT matched bigint, OUT missing bigint,
	OUT unexpected bigint, OUT different bigint, OUT in_flight bigint,
	OUT started timestamptz, OUT finished timestamptz, OUT "position" text) RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'payment_sync_reconcile'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.reconcile(name, regclass, text, text[], text[], boolean, jsonb, text, name, integer, interval) IS
	'compares a sync''s tables, or one, with the target, in this session; a row per table';

CREATE FUNCTION payment_sync.reconcile_with(
	rel regclass,
	other regclass,
	key name[] DEFAULT NULL,
	columns name[] DEFAULT NULL,
	other_columns name[] DEFAULT NULL,
	condition text DEFAULT NULL,
	tolerance jsonb DEFAULT NULL,
	digest text DEFAULT 'hash',
	max_wait interval DEFAULT '00:00:00',
	OUT run bigint, OUT "table" regclass, OUT source_rows bigint,
	OUT target_rows bigint, OUT matched bigint, OUT missing bigint,
	OUT unexpected bigint, OUT different bigint, OUT in_flight bigint,
	OUT started timestamptz, OUT finished timestamptz, OUT "position" text) RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'payment_sync_reconcile_with'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.reconcile_with(regclass, regclass, name[], name[], name[], text, jsonb, text, interval) IS
	'compares a relation with another one of this database: a foreign table, or a file loaded into a table';

CREATE FUNCTION payment_sync.start_reconciliation(
	name name,
	rel regclass DEFAULT NULL,
	condition text DEFAULT NULL,
	key_after text[] DEFAULT NULL,
	key_upto text[] DEFAULT NULL,
	recent boolean DEFAULT false,
	tolerance jsonb DEFAULT NULL,
	digest text DEFAULT 'hash',
	server name DEFAULT NULL,
	rows_per_second integer DEFAULT NULL,
	max_wait interval DEFAULT '10 s') RETURNS bigint
	AS 'MODULE_PATHNAME', 'payment_sync_start_reconciliation'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.start_reconciliation(name, regclass, text, text[], text[], boolean, jsonb, text, name, integer, interval) IS
	'asks for a reconciliation without waiting for it; returns the number of the run';

CREATE FUNCTION payment_sync.start_reconciliation_with(
	rel regclass,
	other regclass,
	key name[] DEFAULT NULL,
	columns name[] DEFAULT NULL,
	other_columns name[] DEFAULT NULL,
	condition text DEFAULT NULL,
	tolerance jsonb DEFAULT NULL,
	digest text DEFAULT 'hash',
	max_wait interval DEFAULT '00:00:00') RETURNS bigint
	AS 'MODULE_PATHNAME', 'payment_sync_start_reconciliation_with'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.start_reconciliation_with(regclass, regclass, name[], name[], name[], text, jsonb, text, interval) IS
	'asks for a comparison of two relations without waiting for it; returns the number of the run';

CREATE PROCEDURE payment_sync.run_reconciliation(run bigint)
	AS 'MODULE_PATHNAME', 'payment_sync_run_reconciliation'
	LANGUAGE C;
COMMENT ON PROCEDURE payment_sync.run_reconciliation(bigint) IS
	'does what is left to do of a run, in this session, and commits each step';

CREATE FUNCTION payment_sync.cancel_reconciliation(run bigint) RETURNS boolean
	AS 'MODULE_PATHNAME', 'payment_sync_cancel_reconciliation'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.cancel_reconciliation(bigint) IS
	'ends a run after the step at hand; true if there was something left to do';

CREATE FUNCTION payment_sync.reconcile_every(name name, every interval) RETURNS void
	AS 'MODULE_PATHNAME', 'payment_sync_reconcile_every'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.reconcile_every(name, interval) IS
	'lets workers reconcile a sync that often, in quiet moments; null: never';

CREATE FUNCTION payment_sync.repair(
	name name,
	run bigint DEFAULT NULL,
	rel regclass DEFAULT NULL,
	dry_run boolean DEFAULT false,
	direction text DEFAULT 'target',
	OUT "table" regclass, OUT key jsonb, OUT kind text, OUT operation text,
	OUT "row" jsonb, OUT statement text, OUT reason text) RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'payment_sync_repair'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.repair(name, bigint, regclass, boolean, text) IS
	'mends the open discrepancies of a run, at the target by sending what the source has, or at the source by statements; with dry_run, only says what it would do';

CREATE FUNCTION payment_sync.reconciliation_report(
	run bigint,
	breaks integer DEFAULT 100) RETURNS text
	AS 'MODULE_PATHNAME', 'payment_sync_reconciliation_report'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.reconciliation_report(bigint, integer) IS
	'a run as a page of HTML, with the first of its discrepancies';

CREATE FUNCTION payment_sync.accept_discrepancy(id bigint, reason text) RETURNS void
	AS 'MODULE_PATHNAME', 'payment_sync_accept_discrepancy'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.accept_discrepancy(bigint, text) IS
	'a discrepancy may stay as it is, for a reason; it is open again if it changes';

CREATE FUNCTION payment_sync.control_totals(
	name name,
	rel regclass,
	group_by name[] DEFAULT '{}',
	sum name[] DEFAULT '{}',
	condition text DEFAULT NULL,
	server name DEFAULT NULL,
	max_wait interval DEFAULT '10 s',
	OUT "group" jsonb, OUT measure text, OUT source numeric, OUT target numeric,
	OUT difference numeric, OUT in_flight bigint) RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'payment_sync_control_totals'
	LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.control_totals(name, regclass, name[], name[], text, name, interval) IS
	'rows and sums per group, on both sides, as of one position';

CREATE VIEW payment_sync.reconciliations WITH (security_barrier = true) AS
	SELECT r.run, r.sync_name AS sync, r.relid::regclass AS "table",
		NULLIF(r.other, 0)::regclass AS other, r.state,
		CASE
			WHEN r.state = 'done' THEN 100.0
			WHEN r.rows_estimated > 0
				THEN round(LEAST(100.0 * r.source_rows / r.rows_estimated, 99.9), 1)
		END AS percent,
		r.source_rows, r.target_rows, r.matched, r.missing, r.unexpected, r.different,
		r.in_flight, r.missing + r.unexpected + r.different = 0 AS agrees,
		r.division, r.digest, r.rows_moved, r."position",
		r.requested, r.started, r.finished, r.error
	FROM payment_sync.reconciliation r
	WHERE pg_has_role('pg_monitor', 'USAGE') OR pg_has_role(r.owner, 'USAGE');
COMMENT ON VIEW payment_sync.reconciliations IS 'reconciliations: what was compared, how far it has come, what was found';
COMMENT ON COLUMN payment_sync.reconciliations.run IS 'number of the run';
COMMENT ON COLUMN payment_sync.reconciliations.sync IS 'name of the sync when it was asked for; null: reconcile_with';
COMMENT ON COLUMN payment_sync.reconciliations."table" IS 'the source';
COMMENT ON COLUMN payment_sync.reconciliations.other IS 'with what reconcile_with has compared it';
COMMENT ON COLUMN payment_sync.reconciliations.state IS 'pending, running, done, cancelled, or failed';
COMMENT ON COLUMN payment_sync.reconciliations.percent IS 'by the planner''s estimate of the table''s rows; null if there is none';
COMMENT ON COLUMN payment_sync.reconciliations.source_rows IS 'rows compared at the source';
COMMENT ON COLUMN payment_sync.reconciliations.target_rows IS 'rows compared at the target';
COMMENT ON COLUMN payment_sync.reconciliations.matched IS 'rows of the source that the target has alike';
COMMENT ON COLUMN payment_sync.reconciliations.missing IS 'keys that the target lacks';
COMMENT ON COLUMN payment_sync.reconciliations.unexpected IS 'keys that only the target has';
COMMENT ON COLUMN payment_sync.reconciliations.different IS 'keys whose rows differ';
COMMENT ON COLUMN payment_sync.reconciliations.in_flight IS 'keys that differ while a change to them is on its way: no verdict';
COMMENT ON COLUMN payment_sync.reconciliations.agrees IS 'no discrepancy was found, so far';
COMMENT ON COLUMN payment_sync.reconciliations.division IS 'by range of the key, or by its hash';
COMMENT ON COLUMN payment_sync.reconciliations.digest IS 'hash or sha256';
COMMENT ON COLUMN payment_sync.reconciliations.rows_moved IS 'rows that the other side has sent, checksums included';
COMMENT ON COLUMN payment_sync.reconciliations."position" IS 'the sync''s position for which it speaks, as of the last rows that were read; null if all checksums were equal';
COMMENT ON COLUMN payment_sync.reconciliations.requested IS 'when it was asked for';
COMMENT ON COLUMN payment_sync.reconciliations.started IS 'when it began';
COMMENT ON COLUMN payment_sync.reconciliations.finished IS 'when it ended';
COMMENT ON COLUMN payment_sync.reconciliations.error IS 'why it failed';

CREATE FUNCTION payment_sync.read_progress(
	OUT pid integer, OUT run bigint, OUT sync name, OUT "table" regclass, OUT phase text,
	OUT started timestamptz, OUT rows_estimated bigint, OUT source_rows bigint,
	OUT target_rows bigint, OUT missing bigint, OUT unexpected bigint,
	OUT different bigint, OUT suspects bigint) RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'payment_sync_read_progress'
	LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION payment_sync.read_progress() IS 'what processes that reconcile report';

CREATE VIEW payment_sync.progress_reconcile AS
	SELECT pid, run, sync, "table", phase, started, rows_estimated, source_rows, target_rows,
		CASE WHEN rows_estimated > 0
			THEN round(LEAST(100.0 * source_rows / rows_estimated, 99.9), 1) END AS percent,
		missing, unexpected, different, suspects
	FROM payment_sync.read_progress();
COMMENT ON VIEW payment_sync.progress_reconcile IS 'reconciliations under way, also those that run in a session''s open transaction';
COMMENT ON COLUMN payment_sync.progress_reconcile.pid IS 'process that compares';
COMMENT ON COLUMN payment_sync.progress_reconcile.run IS 'number of the run';
COMMENT ON COLUMN payment_sync.progress_reconcile.sync IS 'the sync''s name; null: reconcile_with';
COMMENT ON COLUMN payment_sync.progress_reconcile."table" IS 'table that is compared';
COMMENT ON COLUMN payment_sync.progress_reconcile.phase IS 'comparing, or settling: suspects are looked at again';
COMMENT ON COLUMN payment_sync.progress_reconcile.started IS 'when this process began with the table';
COMMENT ON COLUMN payment_sync.progress_reconcile.rows_estimated IS 'the planner''s estimate of the table''s rows';
COMMENT ON COLUMN payment_sync.progress_reconcile.source_rows IS 'rows compared at the source';
COMMENT ON COLUMN payment_sync.progress_reconcile.target_rows IS 'rows compared at the target';
COMMENT ON COLUMN payment_sync.progress_reconcile.percent IS 'source_rows in percent of rows_estimated; null if there is no estimate';
COMMENT ON COLUMN payment_sync.progress_reconcile.missing IS 'keys that the target lacks';
COMMENT ON COLUMN payment_sync.progress_reconcile.unexpected IS 'keys that only the target has';
COMMENT ON COLUMN payment_sync.progress_reconcile.different IS 'keys whose rows differ';
COMMENT ON COLUMN payment_sync.progress_reconcile.suspects IS 'keys that are to be looked at again, as of the last step';

-- Rows of tables are for the owner alone.
CREATE VIEW payment_sync.discrepancies WITH (security_barrier = true) AS
	SELECT d.id, d.last_run AS run, s.name AS sync, d.relid::regclass AS "table",
		NULLIF(d.other, 0)::regclass AS other, d.key, d.kind, d.source, d.target,
		d.columns, d.first_run, d.first_seen, d.last_seen,
		d.state, d.reason, d.changed_by, d.changed_at
	FROM payment_sync.discrepancy d
	LEFT JOIN payment_sync.sync s ON s.id = d.sync
	WHERE pg_has_role(d.owner, 'USAGE');
COMMENT ON VIEW payment_sync.discrepancies IS 'keys on which both sides were found to differ';
COMMENT ON COLUMN payment_sync.discrepancies.id IS 'names it to accept_discrepancy()';
COMMENT ON COLUMN payment_sync.discrepancies.run IS 'the last run that saw it';
COMMENT ON COLUMN payment_sync.discrepancies.sync IS 'null: found by reconcile_with, or the sync was dropped';
COMMENT ON COLUMN payment_sync.discrepancies."table" IS 'the source';
COMMENT ON COLUMN payment_sync.discrepancies.other IS 'with what reconcile_with has compared it';
COMMENT ON COLUMN payment_sync.discrepancies.key IS 'of the row';
COMMENT ON COLUMN payment_sync.discrepancies.kind IS 'missing (not at the target), unexpected (only at the target), or different';
COMMENT ON COLUMN payment_sync.discrepancies.source IS 'the row at the source; null if it has none';
COMMENT ON COLUMN payment_sync.discrepancies.target IS 'the row at the target; null if it has none';
COMMENT ON COLUMN payment_sync.discrepancies.columns IS 'that differ, by their names at the source';
COMMENT ON COLUMN payment_sync.discrepancies.first_run IS 'the run that saw it first';
COMMENT ON COLUMN payment_sync.discrepancies.first_seen IS 'when it was seen first';
COMMENT ON COLUMN payment_sync.discrepancies.last_seen IS 'when it was seen last';
COMMENT ON COLUMN payment_sync.discrepancies.state IS 'open, accepted, repairing (its repair is on its way), repaired, or gone (a later run did not find it any more)';
COMMENT ON COLUMN payment_sync.discrepancies.reason IS 'why it was accepted';
COMMENT ON COLUMN payment_sync.discrepancies.changed_by IS 'who has accepted or repaired it';
COMMENT ON COLUMN payment_sync.discrepancies.changed_at IS 'when its state changed';

-- ======================================================================
-- Logical replication by PostgreSQL itself
-- ======================================================================

-- A publication FOR ALL TABLES includes the extension's tables.  Here it must
-- not stand in the way of what changes them: those without a primary key need
-- a replica identity.  At a subscriber that has the extension, too, the
-- publisher's rows must not become its own: src/capture/replicated.c.
CREATE FUNCTION payment_sync.skip_replicated() RETURNS trigger
	AS 'MODULE_PATHNAME', 'payment_sync_skip_replicated'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.skip_replicated() IS
	'makes nothing of rows of another server''s payment_sync, which a subscription brings';

ALTER TABLE payment_sync.log_0 REPLICA IDENTITY FULL;
ALTER TABLE payment_sync.log_1 REPLICA IDENTITY FULL;
ALTER TABLE payment_sync.log_2 REPLICA IDENTITY FULL;
ALTER TABLE payment_sync.log_rotation REPLICA IDENTITY FULL;
ALTER TABLE payment_sync.ledger_manual REPLICA IDENTITY FULL;

CREATE TRIGGER skip_replicated BEFORE INSERT OR UPDATE OR DELETE ON payment_sync.log_0
	FOR EACH ROW EXECUTE FUNCTION payment_sync.skip_replicated();
ALTER TABLE payment_sync.log_0 ENABLE REPLICA TRIGGER skip_replicated;
CREATE TRIGGER skip_replicated BEFORE INSERT OR UPDATE OR DELETE ON payment_sync.log_1
	FOR EACH ROW EXECUTE FUNCTION payment_sync.skip_replicated();
ALTER TABLE payment_sync.log_1 ENABLE REPLICA TRIGGER skip_replicated;
CREATE TRIGGER skip_replicated BEFORE INSERT OR UPDATE OR DELETE ON payment_sync.log_2
	FOR EACH ROW EXECUTE FUNCTION payment_sync.skip_replicated();
ALTER TABLE payment_sync.log_2 ENABLE REPLICA TRIGGER skip_replicated;
CREATE TRIGGER skip_replicated BEFORE INSERT OR UPDATE OR DELETE ON payment_sync.log_rotation
	FOR EACH ROW EXECUTE FUNCTION payment_sync.skip_replicated();
ALTER TABLE payment_sync.log_rotation ENABLE REPLICA TRIGGER skip_replicated;
CREATE TRIGGER skip_replicated BEFORE INSERT OR UPDATE OR DELETE ON payment_sync.log_waypoint
	FOR EACH ROW EXECUTE FUNCTION payment_sync.skip_replicated();
ALTER TABLE payment_sync.log_waypoint ENABLE REPLICA TRIGGER skip_replicated;
CREATE TRIGGER skip_replicated BEFORE INSERT OR UPDATE OR DELETE ON payment_sync.shape
	FOR EACH ROW EXECUTE FUNCTION payment_sync.skip_replicated();
ALTER TABLE payment_sync.shape ENABLE REPLICA TRIGGER skip_replicated;
CREATE TRIGGER skip_replicated BEFORE INSERT OR UPDATE OR DELETE ON payment_sync.captured
	FOR EACH ROW EXECUTE FUNCTION payment_sync.skip_replicated();
ALTER TABLE payment_sync.captured ENABLE REPLICA TRIGGER skip_replicated;
CREATE TRIGGER skip_replicated BEFORE INSERT OR UPDATE OR DELETE ON payment_sync.sync
	FOR EACH ROW EXECUTE FUNCTION payment_sync.skip_replicated();
ALTER TABLE payment_sync.sync ENABLE REPLICA TRIGGER skip_replicated;
CREATE TRIGGER skip_replicated BEFORE INSERT OR UPDATE OR DELETE ON payment_sync.sync_table
	FOR EACH ROW EXECUTE FUNCTION payment_sync.skip_replicated();
ALTER TABLE payment_sync.sync_table ENABLE REPLICA TRIGGER skip_replicated;
CREATE TRIGGER skip_replicated BEFORE INSERT OR UPDATE OR DELETE ON payment_sync.sync_state
	FOR EACH ROW EXECUTE FUNCTION payment_sync.skip_replicated();
ALTER TABLE payment_sync.sync_state ENABLE REPLICA TRIGGER skip_replicated;
CREATE TRIGGER skip_replicated BEFORE INSERT OR UPDATE OR DELETE ON payment_sync.unsettled
	FOR EACH ROW EXECUTE FUNCTION payment_sync.skip_replicated();
ALTER TABLE payment_sync.unsettled ENABLE REPLICA TRIGGER skip_replicated;
CREATE TRIGGER skip_replicated BEFORE INSERT OR UPDATE OR DELETE ON payment_sync.target_stats
	FOR EACH ROW EXECUTE FUNCTION payment_sync.skip_replicated();
ALTER TABLE payment_sync.target_stats ENABLE REPLICA TRIGGER skip_replicated;
CREATE TRIGGER skip_replicated BEFORE INSERT OR UPDATE OR DELETE ON payment_sync.ledger_count
	FOR EACH ROW EXECUTE FUNCTION payment_sync.skip_replicated();
ALTER TABLE payment_sync.ledger_count ENABLE REPLICA TRIGGER skip_replicated;
CREATE TRIGGER skip_replicated BEFORE INSERT OR UPDATE OR DELETE ON payment_sync.ledger_manual
	FOR EACH ROW EXECUTE FUNCTION payment_sync.skip_replicated();
ALTER TABLE payment_sync.ledger_manual ENABLE REPLICA TRIGGER skip_replicated;
CREATE TRIGGER skip_replicated BEFORE INSERT OR UPDATE OR DELETE ON payment_sync.batch
	FOR EACH ROW EXECUTE FUNCTION payment_sync.skip_replicated();
ALTER TABLE payment_sync.batch ENABLE REPLICA TRIGGER skip_replicated;
CREATE TRIGGER skip_replicated BEFORE INSERT OR UPDATE OR DELETE ON payment_sync.reconciliation
	FOR EACH ROW EXECUTE FUNCTION payment_sync.skip_replicated();
ALTER TABLE payment_sync.reconciliation ENABLE REPLICA TRIGGER skip_replicated;
CREATE TRIGGER skip_replicated BEFORE INSERT OR UPDATE OR DELETE ON payment_sync.discrepancy
	FOR EACH ROW EXECUTE FUNCTION payment_sync.skip_replicated();
ALTER TABLE payment_sync.discrepancy ENABLE REPLICA TRIGGER skip_replicated;
CREATE TRIGGER skip_replicated BEFORE INSERT OR UPDATE OR DELETE ON payment_sync.suspect
	FOR EACH ROW EXECUTE FUNCTION payment_sync.skip_replicated();
ALTER TABLE payment_sync.suspect ENABLE REPLICA TRIGGER skip_replicated;

-- ======================================================================
-- Keeping the definitions true when tables change
-- ======================================================================

CREATE FUNCTION payment_sync.on_ddl_command_end() RETURNS event_trigger
	AS 'MODULE_PATHNAME', 'payment_sync_on_ddl_command_end'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.on_ddl_command_end() IS 'follows renames and partitions of captured tables';

CREATE FUNCTION payment_sync.on_sql_drop() RETURNS event_trigger
	AS 'MODULE_PATHNAME', 'payment_sync_on_sql_drop'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.on_sql_drop() IS 'forgets dropped tables, and keeps what captured tables need';

CREATE FUNCTION payment_sync.on_ddl_command_start() RETURNS event_trigger
	AS 'MODULE_PATHNAME', 'payment_sync_on_ddl_command_start'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.on_ddl_command_start() IS 'keeps the keys of captured tables from DROP INDEX CONCURRENTLY';

-- ALWAYS, like the capture triggers: a table may also be altered or dropped
-- under session_replication_role = replica.
CREATE EVENT TRIGGER payment_sync_ddl_command_end ON ddl_command_end
	EXECUTE FUNCTION payment_sync.on_ddl_command_end();
ALTER EVENT TRIGGER payment_sync_ddl_command_end ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER payment_sync_ddl_command_end IS 'follows renames and partitions of captured tables';

CREATE EVENT TRIGGER payment_sync_ddl_command_start ON ddl_command_start
	WHEN TAG IN ('DROP INDEX')
	EXECUTE FUNCTION payment_sync.on_ddl_command_start();
ALTER EVENT TRIGGER payment_sync_ddl_command_start ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER payment_sync_ddl_command_start IS 'keeps the keys of captured tables from DROP INDEX CONCURRENTLY';

CREATE EVENT TRIGGER payment_sync_sql_drop ON sql_drop
	EXECUTE FUNCTION payment_sync.on_sql_drop();
ALTER EVENT TRIGGER payment_sync_sql_drop ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER payment_sync_sql_drop IS 'forgets dropped tables, and keeps what captured tables need';

-- ======================================================================
-- Privileges
-- ======================================================================

-- Everybody may call the other functions, which check what they are about: a table's
-- owner may capture it; who also has USAGE on a server may create a sync with
-- it; a sync belongs to who created it.  The tables are the extension's own.
-- To keep capture to some roles: REVOKE EXECUTE ON FUNCTION
-- payment_sync.capture_table FROM PUBLIC, and grant it to them.
GRANT USAGE ON SCHEMA payment_sync TO PUBLIC;
GRANT SELECT ON payment_sync.captured_tables, payment_sync.syncs,
	payment_sync.stat_sync, payment_sync.log_holders, payment_sync.progress_batch,
	payment_sync.changes,
	payment_sync.stat_target, payment_sync.dead_letters, payment_sync.ledger,
	payment_sync.reconciliations, payment_sync.progress_reconcile, payment_sync.discrepancies,
	payment_sync.transport_options
	TO PUBLIC;

-- Internal: what runs by itself, and nobody calls, is nobody's to call.  The
-- server asks no right of it: event triggers and validators are called without
-- one, the trigger belongs to our own tables, workers are superusers.
REVOKE EXECUTE ON FUNCTION payment_sync.wake_workers(),
	payment_sync.skip_replicated(),
	payment_sync.on_ddl_command_start(), payment_sync.on_ddl_command_end(), payment_sync.on_sql_drop(),
	payment_sync.payment_sync_http_validator(text[], oid), payment_sync.payment_sync_postgres_validator(text[], oid)
	FROM PUBLIC;

-- Internal, but for everybody: PostgreSQL runs the functions of a view with the
-- rights of who queries it, and asks who adds a partition to a captured table
-- for the right to its triggers' functions.  Each looks by itself at what the
-- caller may see: capture_change, capture_truncate, latency_quantile, log_size,
-- log_size_limit, read_changes, read_ledger, read_progress,
-- read_transport_options, sync_held, sync_lag, sync_live, worker_pid.

-- The launcher need not wait for its next look at the databases.
SELECT payment_sync.wake_workers();
