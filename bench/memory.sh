# memory: how much a delivery worker grows while it delivers one transaction
# of many rows.
#
# Counted is anonymous memory (RssAnon of /proc/PID/status): pages of shared
# buffers that the worker happens to touch are not its own.

worker_pid()
{
	sql ours_source -c "SELECT pid FROM pg_stat_activity
		WHERE backend_type = 'payment_sync worker' LIMIT 1"
}

anonymous_kb()
{
	awk '/^RssAnon:/ { print $2 }' "/proc/$1/status"
}

bench_memory()
{
	local pid now start peak=0

	ours_pair
	ours_sync
	sql ours_source -c 'CALL fill(0, 0)'
	until_true ours_target 'SELECT count(*) = 1 FROM payments'
	pid=$(worker_pid)
	[ -n "$pid" ] || { note "no delivery worker"; return 1; }
	start=$(anonymous_kb "$pid")
	sql ours_source -c "CALL fill(1, $BATCH_ROWS)"
	while [ "$(sql ours_target -c "SELECT count(*) FROM payments
		WHERE id = $BATCH_ROWS")" = 0 ]
	do
		for _ in 1 2 3 4 5 6 7 8 9 10
		do
			now=$(anonymous_kb "$pid")
			[ "${now:-0}" -le "$peak" ] || peak=$now
			sleep 0.02
		done
	done
	[ "$(worker_pid)" = "$pid" ] || { note "the worker was replaced"; return 1; }
	note "   worker $pid: $start kB at its start, $peak kB at most"
	result "worker's memory above its start, transaction of $BATCH_ROWS rows" "—" \
		"$(printf '%.1f' "$(calc "($peak - $start) / 1024")") MiB" "—" "—" "≤ 64 MiB"
}
