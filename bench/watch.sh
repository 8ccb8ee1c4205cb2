# watch: what a look at a sync costs with 10, 100,000 and 1,000,000 changes
# pending, each beside the one with 10; and the log's first row.

# What a watcher asks of one sync.
watch_look()
{
	ms watch "SELECT state, lag_changes, lag_bytes, lag, windows, changes
		FROM payment_sync.stat_sync WHERE name = '$1'"
}

# A sync that has read the log up to here, and then leaves it alone.
watch_sync()
{
	sql watch -o /dev/null -c "SELECT payment_sync.create_sync('$1', '{payments}')" \
		-c "UPDATE payments SET merchant_id = merchant_id + 1 WHERE id = 1" \
		-c "SELECT payment_sync.ack_changes('$1', position)
			FROM payment_sync.fetch_changes('$1')" \
		-c "SELECT FROM payment_sync.fetch_changes('$1')"
}

bench_watch()
{
	local i size many=${WATCH_PENDING:-1000000}

	calm_cluster watch "shared_preload_libraries = 'payment_sync'"
	payments watch
	sql watch -o /dev/null -c 'CREATE EXTENSION payment_sync' \
		-c "SELECT payment_sync.capture_table('payments')" -c 'CALL fill(1, 1)'
	watch_sync many
	sql watch -c "CALL fill(2, $((many - 100000)))"
	watch_sync some
	sql watch -c "CALL fill($((many - 99999)), $((many - 10)))"
	watch_sync ten
	sql watch -c "CALL fill($((many - 9)), $many)"
	[ "$(sql watch -c "SELECT payment_sync.pending_changes('ten')")" = 10 ]

	for ((i = 1; i <= ${ROUNDS:-15}; i++))
	do
		for size in ten some many
		do
			sample "watch_$size" "$(watch_look $size)"
		done
		sample watch_count "$(ms watch "SELECT payment_sync.pending_changes('many')")"
		sample watch_first "$(ms watch 'SELECT * FROM payment_sync.changes LIMIT 1')"
	done
	compare "stat_sync, 100,000 changes pending" "10 pending" ms watch_some watch_ten "—"
	compare "stat_sync, $many changes pending" "10 pending" ms watch_many watch_ten "≤ 3 ×"
	compare "first row of the view changes, $many changes in the log" \
		"counting them" ms watch_first watch_count "≤ 1 ×"
	stop_cluster watch
}
