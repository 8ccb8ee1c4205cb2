# idle: processor time of the launcher and the workers of an installation
# with 20 syncs that have nothing to do.

# Nanoseconds on a processor so far, of all processes of the extension.
idle_cpu()
{
	local pid total=0 ns

	for pid in $(sql ours_source -c "SELECT pid FROM pg_stat_activity
		WHERE backend_type LIKE 'payment_sync%'")
	do
		read -r ns _ < "/proc/$pid/schedstat"
		total=$((total + ns))
	done
	echo $total
}

idle_processes()
{
	sql ours_source -c "SELECT string_agg(n || ' ' || backend_type, ', ')
		FROM (SELECT backend_type, count(*) AS n FROM pg_stat_activity
			WHERE backend_type LIKE 'payment_sync%' GROUP BY 1) s"
}

bench_idle()
{
	local i before after processes seconds=${IDLE_SECONDS:-60}

	ours_pair
	# a worker that was only needed while connections were made leaves soon
	sql ours_source -o /dev/null \
		-c "ALTER SYSTEM SET payment_sync.worker_idle_timeout = '1s'" \
		-c "SELECT pg_reload_conf()"
	for ((i = 1; i <= 20; i++))
	do
		sql ours_source -o /dev/null -c "CREATE TABLE idle_$i (LIKE payments INCLUDING ALL)" \
			-c "SELECT payment_sync.capture_table('idle_$i')" \
			-c "SELECT payment_sync.create_sync('idle_$i',
				ARRAY['idle_$i']::regclass[], server => 'target', batch => false)"
		sql ours_target -c "CREATE TABLE IF NOT EXISTS idle_$i (LIKE payments INCLUDING ALL)"
	done
	for ((i = 1; i <= 20; i++))
	do
		sql ours_source -c "INSERT INTO idle_$i VALUES
			(1, 1, 1, 'EUR', 'new', 'order', NULL, now(), now())"
		until_true ours_target "SELECT count(*) = 1 FROM idle_$i"
	done
	sleep 5
	processes=$(idle_processes)
	before=$(idle_cpu)
	sleep "$seconds"
	after=$(idle_cpu)
	note "   $processes, before $before ns, after $after ns"
	[ "$processes" = "$(idle_processes)" ] ||
		{ note "processes came or went: now $(idle_processes)"; return 1; }
	result "idle installation with 20 syncs: $processes" "—" \
		"$(printf '%.4f' "$(calc "($after - $before) / ($seconds * 1e9) * 100")") % of a core" \
		"—" "—" "< 0.1 %"
	sql ours_source -o /dev/null \
		-c "ALTER SYSTEM RESET payment_sync.worker_idle_timeout" \
		-c "SELECT pg_reload_conf()"
	for ((i = 1; i <= 20; i++))
	do
		sql ours_source -c "DROP TABLE idle_$i CASCADE"
		sql ours_target -c "DROP TABLE idle_$i"
	done
}
