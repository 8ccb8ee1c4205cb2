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

-- Tables that refer to themselves or each other may be copied as a whole.
ALTER TABLE payment_sync.batch ADD COLUMN whole boolean NOT NULL DEFAULT false;
COMMENT ON TABLE payment_sync.batch IS 'batches asked for, under way and done; cursor is the last key copied; initial: the target is not in step before it; request: tells it from those asked for before and after; swept: a mirror has removed what the source lacks; whole: not in chunks, since rows refer to later ones';

-- Changes of which no event can be made are dead letters, too.
ALTER TABLE payment_sync.unsettled ADD COLUMN change bytea;
CREATE OR REPLACE VIEW payment_sync.dead_letters WITH (security_barrier = true) AS
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
COMMENT ON COLUMN payment_sync.dead_letters.state IS 'dead: refused, or could not be made; held: likewise, and holds later events of its keys; parked: is retried';
COMMENT ON COLUMN payment_sync.dead_letters.reason IS 'why it was not delivered; null: it waits behind another one of its key; what is said of an event that could not be made is for the sync''s owner only';
COMMENT ON COLUMN payment_sync.dead_letters.content_type IS 'media type of the body; null: the event could not be made';
COMMENT ON COLUMN payment_sync.dead_letters.body IS 'what is sent, as it is; only the sync''s owner sees it; null: the event could not be made, and is made anew when it is retried';
COMMENT ON COLUMN payment_sync.stat_target.refused IS 'events that the target has refused for good, or that could not be made';

-- Dead letters that are to be retried are parked in portions.
ALTER TABLE payment_sync.unsettled DROP CONSTRAINT unsettled_state_check,
	ADD CONSTRAINT unsettled_state_check CHECK (state IN ('parked', 'held', 'dead', 'asked'));
CREATE OR REPLACE VIEW payment_sync.stat_target WITH (security_barrier = true) AS
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

-- A sync whose owner was dropped is not kept by pg_dump.
SELECT pg_catalog.pg_extension_config_dump('payment_sync.sync',
	'WHERE EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.oid = owner)');
SELECT pg_catalog.pg_extension_config_dump('payment_sync.sync_table',
	'WHERE EXISTS (SELECT FROM payment_sync.sync s JOIN pg_catalog.pg_roles r ON r.oid = s.owner WHERE s.id = sync_table.sync)');

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

GRANT SELECT ON payment_sync.log_holders TO PUBLIC;

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

-- What runs by itself, and nobody calls, is nobody's to call.
REVOKE EXECUTE ON FUNCTION payment_sync.wake_workers(),
	payment_sync.skip_replicated(),
	payment_sync.on_ddl_command_start(), payment_sync.on_ddl_command_end(), payment_sync.on_sql_drop(),
	payment_sync.payment_sync_http_validator(text[], oid), payment_sync.payment_sync_postgres_validator(text[], oid)
	FROM PUBLIC;

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

-- What is pending is estimated where there is much of it, and counted on request.
COMMENT ON FUNCTION payment_sync.sync_lag(uuid) IS
	'committed changes that a sync has not delivered, their size, and the time of the first; an estimate if there are many';

CREATE FUNCTION payment_sync.pending_changes(name name) RETURNS bigint
	AS 'MODULE_PATHNAME', 'payment_sync_pending_changes'
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION payment_sync.pending_changes(name) IS
	'number of committed changes that a sync has not delivered, exact however many there are';
COMMENT ON COLUMN payment_sync.stat_sync.lag_changes IS 'committed changes not yet delivered; exact up to 64 pages of the log, then an estimate; 0 means that there are none';
COMMENT ON COLUMN payment_sync.stat_sync.lag_bytes IS 'size of these changes in the change log; likewise';

-- What targets have confirmed is shown at once.
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

CREATE OR REPLACE VIEW payment_sync.stat_sync WITH (security_barrier = true) AS
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
COMMENT ON COLUMN payment_sync.stat_sync.last_error_detail IS 'detail of the last failure, perhaps with the key of a change; only the sync''s owner sees it';
COMMENT ON COLUMN payment_sync.stat_sync.state IS 'running, idle, pending (its turn will come), waiting (for the next retry), standby (a synchronous standby lacks what would be sent), pull, disabled, or stopped (has no position)';

-- Rows are made as they are asked for.
CREATE OR REPLACE VIEW payment_sync.changes AS
	SELECT (c.change).xid, (c.change)."position", (c.change).at, (c.change).operation,
		(c.change)."table", (c.change).key, (c.change).new, (c.change).old, (c.change).origin
	FROM (SELECT payment_sync.read_changes() AS change) c;

COMMENT ON FUNCTION payment_sync.check_target(name) IS
	'tries a target step by step, up to a ping that it must take, or to its tables and their triggers; elapsed in milliseconds';
