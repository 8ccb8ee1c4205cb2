# capture: time that capturing adds to each row of a bulk INSERT and UPDATE.
#
# Four ways in turn: a bare table, ours, pgq.logutriga, and an audit trigger
# in PL/pgSQL.  "Added" is the time of a statement less the mean of the two
# bare runs around it.  Each run begins with a new table and an empty log.

capture_attach()
{
	case $1 in
		bare)
			;;
		ours)
			sql capture -o /dev/null -c 'CREATE EXTENSION payment_sync' \
				-c "SELECT payment_sync.capture_table('payments')"
			;;
		pgq)
			sql capture -o /dev/null -c 'CREATE EXTENSION pgq' \
				-c "SELECT pgq.create_queue('bench')" \
				-c "CREATE TRIGGER pgq AFTER INSERT OR UPDATE OR DELETE ON payments
					FOR EACH ROW EXECUTE FUNCTION pgq.logutriga('bench')"
			;;
		audit)
			sql capture -f "$BENCH/audit.sql"
			;;
	esac
}

capture_detach()
{
	case $1 in
		ours)
			sql capture -c 'DROP EXTENSION payment_sync CASCADE'
			;;
		pgq)
			sql capture -c 'DROP TRIGGER pgq ON payments' \
				-c "SELECT pgq.drop_queue('bench')" -o /dev/null
			sql capture -c 'DROP EXTENSION pgq CASCADE'
			;;
		audit)
			sql capture -c 'DROP TABLE audit'
			;;
	esac
}

# capture_run WAY: sets INSERT_MS and UPDATE_MS.
capture_run()
{
	payments capture
	capture_attach "$1"
	sql capture -c 'CHECKPOINT'
	INSERT_MS=$(ms capture "CALL fill(1, $ROWS)")
	sql capture -c 'VACUUM ANALYZE payments' -c 'CHECKPOINT'
	UPDATE_MS=$(ms capture \
		"UPDATE payments SET status = 'captured', updated_at = now()")
	capture_detach "$1"
	note "   $1: INSERT $INSERT_MS ms, UPDATE $UPDATE_MS ms"
}

# added MS BARE_BEFORE BARE_AFTER: microseconds per row.
added()
{
	calc "($1 - ($2 + $3) / 2.0) * 1000 / $ROWS"
}

bench_capture()
{
	local round way insert_before update_before insert_ms update_ms

	calm_cluster capture "shared_preload_libraries = 'payment_sync'"
	capture_run bare		# warms up, not counted
	capture_run bare
	for ((round = 1; round <= ${ROUNDS:-5}; round++))
	do
		for way in ours pgq audit
		do
			insert_before=$INSERT_MS
			update_before=$UPDATE_MS
			capture_run "$way"
			insert_ms=$INSERT_MS
			update_ms=$UPDATE_MS
			capture_run bare
			sample "capture_insert_$way" \
				"$(added "$insert_ms" "$insert_before" "$INSERT_MS")"
			sample "capture_update_$way" \
				"$(added "$update_ms" "$update_before" "$UPDATE_MS")"
		done
	done
	compare "time added per captured row, bulk INSERT" "pgq.logutriga" µs \
		capture_insert_ours capture_insert_pgq "≤ 0.14 ×"
	compare "time added per captured row, bulk UPDATE" "pgq.logutriga" µs \
		capture_update_ours capture_update_pgq "≤ 0.14 ×"
	compare "time added per captured row, bulk INSERT" "PL/pgSQL audit trigger" µs \
		capture_insert_ours capture_insert_audit "≤ 0.2 ×"
	compare "time added per captured row, bulk UPDATE" "PL/pgSQL audit trigger" µs \
		capture_update_ours capture_update_audit "≤ 0.2 ×"
	stop_cluster capture
}
