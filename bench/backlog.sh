# backlog: changes that have piled up while the target was away, from its return
# until it has all of them: in steps (payment_sync.backlog_step) against in one
# window.
#
# Changes come in transactions of 500, two inserts to each update.  A session at
# the target watches the sync's position there and says when it moves: so often
# the target has shown a new state, and in between it has shown none.

BACKLOG_ROWS=${BACKLOG_ROWS:-3000000}

# The statements of a backlog: of each 1500 rows, 500 are updates of earlier ones.
backlog_sql()
{
	awk -v rows="$BACKLOG_ROWS" 'BEGIN {
		for (n = 0; 1500 * (n + 1) <= rows; n++) {
			first = 1000 * n + 1
			printf "CALL fill(%d, %d);\nCALL fill(%d, %d);\n", first, first + 499,
				first + 500, first + 999
			printf "UPDATE payments SET status = %s, updated_at = now() WHERE id BETWEEN %d AND %d;\n",
				"'"'captured'"'", first - first % 3000, first - first % 3000 + 499
		}
	}'
}

# When the position has moved, in seconds since the first look, a line each; ends
# when it is behind the transaction.
backlog_watch()
{
	sql ours_target <<-END 2>&1 | sed -n 's/.*moved \([0-9.]*\)$/\1/p'
		DO \$\$
		DECLARE
			began timestamptz := clock_timestamp();
			now text;
			before text;
		BEGIN
			LOOP
				SELECT position INTO now FROM payment_sync_target.position;
				IF now <> before THEN
					RAISE WARNING 'moved %', extract(epoch FROM clock_timestamp() - began);
					EXIT WHEN pg_visible_in_snapshot('$1', split_part(now, '@', 1)::pg_snapshot);
				END IF;
				before := now;
				PERFORM pg_sleep(0.01);
			END LOOP;
		END \$\$;
	END
}

# The worker's anonymous memory at most, in kB, until the file is gone.
backlog_memory()
{
	local peak=0 now

	while [ -e "$1" ]
	do
		now=$(awk '/^RssAnon:/ { print $2 }' "/proc/$2/status" 2> /dev/null)
		[ "${now:-0}" -le "$peak" ] || peak=$now
		sleep 0.05
	done
	echo "$peak"
}

# backlog_round SERIES STEP
backlog_round()
{
	local series=$1 xid pid memory
	local running=$WORK/backlog.running moves=$WORK/backlog.moves

	sql ours_source -c "ALTER SYSTEM SET payment_sync.backlog_step = '$2'"
	sql ours_source -c 'SELECT pg_reload_conf()' -o /dev/null
	sql ours_source -c 'TRUNCATE payments'
	until_true ours_target 'SELECT count(*) = 0 FROM payments'
	rest ours_source ours_target
	as_postgres "$BIN/pg_ctl" -D "$WORK/clusters/ours_target" -m fast -w stop > /dev/null
	backlog_sql | sql ours_source -f -
	xid=$(sql ours_source -c "WITH last AS (UPDATE payments SET note = 'last' WHERE id = 1 RETURNING 1)
		SELECT pg_current_xact_id() FROM last")
	pid=$(sql ours_source -c "SELECT pid FROM pg_stat_activity
		WHERE backend_type = 'payment_sync worker' LIMIT 1")
	note "   $(sql ours_source -c "SELECT pg_size_pretty(payment_sync.log_size())") of log"

	: > "$running"
	backlog_memory "$running" "$pid" > "$WORK/backlog.memory" &
	memory=$!
	as_postgres "$BIN/pg_ctl" -D "$WORK/clusters/ours_target" \
		-l "$WORK/clusters/ours_target/server.log" -w start > /dev/null
	backlog_watch "$xid" > "$moves"
	rm "$running"
	wait $memory
	[ "$(sql ours_source -c 'SELECT count(*), sum(amount) FROM payments')" = \
		"$(sql ours_target -c 'SELECT count(*), sum(amount) FROM payments')" ] ||
		{ note "source and target differ"; return 1; }

	sample "backlog_time_$series" "$(tail -1 "$moves")"
	sample "backlog_gap_$series" "$(awk '{ gap = $1 - before > gap ? $1 - before : gap; before = $1 } END { print gap }' "$moves")"
	sample "backlog_steps_$series" "$(wc -l < "$moves")"
	sample "backlog_memory_$series" "$(calc "$(cat "$WORK/backlog.memory") / 1024")"
}

bench_backlog()
{
	local round

	ours_pair
	sql ours_source -c "ALTER SYSTEM SET payment_sync.retry_delay_max = '200ms'"
	ours_sync
	sql ours_source -c 'CALL fill(0, 0)'
	until_true ours_target 'SELECT count(*) = 1 FROM payments'
	for ((round = 1; round <= ${ROUNDS:-3}; round++))
	do
		backlog_round off 0
		backlog_round step "${BACKLOG_STEP:-32MB}"
	done
	compare "backlog of $BACKLOG_ROWS changes: target's return → all there" "one window" s \
		backlog_time_step backlog_time_off "≤ 1.05 ×"
	compare "the same: longest time without a new state" "one window" s \
		backlog_gap_step backlog_gap_off "≤ 0.3 ×"
	compare "the same: states shown" "one window" "" backlog_steps_step backlog_steps_off "≥ 4 ×"
	compare "the same: worker's memory at most" "one window" MiB \
		backlog_memory_step backlog_memory_off "≤ 1 ×"
}
