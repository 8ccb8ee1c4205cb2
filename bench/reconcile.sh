# reconcile: comparing a table on two servers, against what one would do by
# hand: a full outer join over postgres_fdw that compares all columns, and
# checksum aggregates by range of the key, run on both servers at once.

RECONCILE_ROWS=${RECONCILE_ROWS:-2000000}

# A tenth of a percent of the rows per group, as ranges of the key would be.
# OFFSET 0 keeps the planner from making a row's text twice.
reconcile_sums()
{
	cat <<-END
		SELECT c, count(*), sum(hashtextextended(x, 1)), sum(hashtextextended(x, 2))
		FROM (SELECT id / 10000, p::text FROM payments p OFFSET 0) s(c, x) GROUP BY 1
	END
}

reconcile_sha()
{
	cat <<-END
		SELECT id / 10000, count(*),
			sha256(convert_to(string_agg(p::text, E'\\n' ORDER BY id), 'UTF8'))
		FROM payments p GROUP BY 1
	END
}

# The same statement on both servers at once; seconds until both are done.
reconcile_both()
{
	local started

	started=$(date +%s%N)
	sql ours_source -o "$WORK/sums_source" -c "$1" &
	sql ours_target -o "$WORK/sums_target" -c "$1"
	wait $!
	calc "($(date +%s%N) - $started) / 1e9"
}

reconcile_join()
{
	local started

	started=$(date +%s%N)
	sql ours_source -o /dev/null -c "SELECT count(*) FROM payments s
		FULL JOIN payments_there t USING (id)
		WHERE (s.merchant_id, s.amount, s.currency, s.status, s.reference, s.note,
			s.created_at, s.updated_at) IS DISTINCT FROM
			(t.merchant_id, t.amount, t.currency, t.status, t.reference, t.note,
			t.created_at, t.updated_at)"
	calc "($(date +%s%N) - $started) / 1e9"
}

# reconcile_ours SYNC EXPECTED [ARGUMENTS]: seconds; fails unless it finds that many
reconcile_ours()
{
	local sync=$1 expected=$2 started found

	started=$(date +%s%N)
	found=$(sql ours_source -c "SELECT missing + unexpected + different
		FROM payment_sync.reconcile('$sync', 'payments'${3:-})")
	calc "($(date +%s%N) - $started) / 1e9"
	[ "$found" = "$expected" ] || { note "found $found, not $expected"; return 1; }
}

# reconcile_moved SYNC: rows that its last run has fetched
reconcile_moved()
{
	sql ours_source -c "SELECT rows_moved FROM payment_sync.reconciliations
		WHERE sync = '$1' ORDER BY run DESC LIMIT 1"
}

# reconcile_memory SYNC: peak of the anonymous memory of the two sessions
# together, in MB, while that is reconciled.
reconcile_memory()
{
	local session most=0 now pid kb

	sql ours_source -o /dev/null -c "SELECT payment_sync.reconcile('$1')" &
	session=$!
	while kill -0 $session 2> /dev/null
	do
		now=0
		for pid in $(sql ours_source -c "SELECT pid FROM pg_stat_activity
				WHERE query LIKE '%reconcile(%' AND pid <> pg_backend_pid()") \
			$(sql ours_target -c "SELECT pid FROM pg_stat_activity WHERE application_name = 'payment_sync'
				AND (query LIKE '%hashtextextended%' OR query LIKE 'SELECT -1 AS i%')")
		do
			kb=$(awk '/^RssAnon/ { kb = $2 } END { print kb + 0 }' "/proc/$pid/status" 2> /dev/null || true)
			now=$((now + ${kb:-0}))
		done
		[ $now -le $most ] || most=$now
	done
	wait $session
	calc "$most / 1024"
}

# reconcile_found SYNC: differences that its last run has found
reconcile_found()
{
	sql ours_source -c "SELECT missing + unexpected + different FROM payment_sync.reconciliations
		WHERE sync = '$1' ORDER BY run DESC LIMIT 1"
}

# reconcile_rows SYNC: how many rows it has compared
reconcile_rows()
{
	sql ours_source -c "SELECT source_rows FROM payment_sync.reconciliations
		WHERE sync = '$1' ORDER BY run DESC LIMIT 1"
}

# An eighth of the table, with as many planted differences, and with as many in
# a hundred, under the same names in another schema.
reconcile_small()
{
	sql ours_source -o /dev/null <<-END
		CREATE SCHEMA small;
		CREATE TABLE small.payments (LIKE payments INCLUDING ALL);
		INSERT INTO small.payments SELECT * FROM payments WHERE id <= $RECONCILE_ROWS / 8;
		VACUUM ANALYZE small.payments;
		SELECT payment_sync.capture_table('small.payments');
		SELECT payment_sync.create_sync('small_ten', '{small.payments}', server => 'target',
			targets => '{small.ten}');
		SELECT payment_sync.create_sync('small_percent', '{small.payments}', server => 'target',
			targets => '{small.percent}');
	END
	sql ours_target <<-END
		CREATE SCHEMA small;
		CREATE TABLE small.ten (LIKE payments INCLUDING ALL);
		INSERT INTO small.ten SELECT * FROM payments WHERE id <= $RECONCILE_ROWS / 8;
		UPDATE small.ten SET amount = amount + 1 WHERE id % ($RECONCILE_ROWS / 80) = 7;
		CREATE TABLE small.percent (LIKE payments INCLUDING ALL);
		INSERT INTO small.percent SELECT * FROM payments_percent WHERE id <= $RECONCILE_ROWS / 8;
		VACUUM ANALYZE small.ten, small.percent;
	END
}

# The same at two sizes: rows moved must not follow the table's, nor memory.
reconcile_sizes()
{
	local sync memory

	reconcile_small
	for sync in small_ten ten small_percent percent
	do
		memory=$(reconcile_memory "$sync")
		result "$(reconcile_rows "$sync") rows, $(reconcile_found "$sync") differences: rows moved" "—" \
			"$(reconcile_moved "$sync")" "—" "—" "≤ $(($(reconcile_found "$sync") * 100))"
		result "the same: memory of both sessions" "—" "$memory MB" "—" "—" "—"
	done
}

reconcile_set_up()
{
	ours_pair
	sql ours_source -o /dev/null -c "SELECT payment_sync.release_table('payments')" \
		-c "CALL fill(1, $RECONCILE_ROWS)" -c "SELECT payment_sync.capture_table('payments')"
	sql ours_source -c 'COPY payments TO STDOUT (FORMAT binary)' |
		sql ours_target -c 'COPY payments FROM STDIN (FORMAT binary)'
	sql ours_source <<-END
		CREATE EXTENSION IF NOT EXISTS postgres_fdw;
		DROP SERVER IF EXISTS there CASCADE;
		CREATE SERVER there FOREIGN DATA WRAPPER postgres_fdw
			OPTIONS (host '127.0.0.1', port '$(port ours_target)', dbname 'postgres', fetch_size '10000');
		CREATE USER MAPPING FOR CURRENT_USER SERVER there OPTIONS (user 'postgres');
		CREATE FOREIGN TABLE payments_there (id bigint, merchant_id integer, amount numeric(14,2),
			currency char(3), status text, reference text, note text, created_at timestamptz,
			updated_at timestamptz) SERVER there OPTIONS (table_name 'payments');
	END
	# the same table twice more at the target, with differences
	sql ours_target <<-END
		CREATE TABLE payments_ten (LIKE payments INCLUDING ALL);
		INSERT INTO payments_ten SELECT * FROM payments;
		UPDATE payments_ten SET amount = amount + 1 WHERE id % ($RECONCILE_ROWS / 10) = 7;
		CREATE TABLE payments_percent (LIKE payments INCLUDING ALL);
		INSERT INTO payments_percent SELECT * FROM payments;
		UPDATE payments_percent SET amount = amount + 1 WHERE hashint8(id) % 100 = 0;
		VACUUM FULL ANALYZE payments_ten, payments_percent;
	END
	ours_sync
	sql ours_source -o /dev/null <<-END
		SELECT payment_sync.create_sync('ten', '{payments}', server => 'target',
			targets => '{payments_ten}');
		SELECT payment_sync.create_sync('percent', '{payments}', server => 'target',
			targets => '{payments_percent}');
	END
	rest ours_source ours_target
}

bench_reconcile()
{
	local round percent

	reconcile_set_up
	percent=$(sql ours_source -c "SELECT count(*) FROM payments WHERE hashint8(id) % 100 = 0")
	for ((round = 1; round <= ${ROUNDS:-3}; round++))
	do
		sample reconcile_join "$(reconcile_join)"
		sample reconcile_identical "$(reconcile_ours bench 0)"
		sample reconcile_sums "$(reconcile_both "$(reconcile_sums)")"
		sample reconcile_ten "$(reconcile_ours ten 10)"
		sample reconcile_again "$(reconcile_ours bench 0)"
		sample reconcile_percent "$(reconcile_ours percent "$percent")"
		sample reconcile_sha_ours "$(reconcile_ours bench 0 ", digest => 'sha256'")"
		sample reconcile_sha "$(reconcile_both "$(reconcile_sha)")"
	done
	compare "reconcile $RECONCILE_ROWS identical rows" "full outer join over postgres_fdw" s \
		reconcile_identical reconcile_join "≤ 0.3 ×"
	compare "reconcile $RECONCILE_ROWS identical rows" "checksum aggregate by hand on both" s \
		reconcile_identical reconcile_sums "≤ 1.2 ×"
	compare "the same with sha256" "sha256 aggregate by hand on both" s \
		reconcile_sha_ours reconcile_sha "≤ 1.2 ×"
	compare "the same, 10 planted differences" "identical tables" s \
		reconcile_ten reconcile_again "≤ 1.2 ×"
	compare "the same, 1 % of the rows differ" "identical tables" s \
		reconcile_percent reconcile_again "≤ 3 ×"
	reconcile_sizes
}
