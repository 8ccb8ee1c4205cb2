# sustained: two clients committing single rows as fast as they can; how far
# behind is the target when they stop, and how soon has it all?
#
# The rate is rows over the time from the first commit until the target had
# the last row.  Ours and theirs slow the clients down differently (capture,
# the processors that delivery takes), so the clients' own rate is shown too.

sustained_round()
{
	local way=$1 seconds=${SUSTAINED_SECONDS:-30} started sent lag drained
	local before=0 half

	before=$(sql "${way}_source" -c 'SELECT count(*) FROM payments')
	rest "${way}_source" "${way}_target"
	started=$(date +%s%N)
	"$BIN/pgbench" -n -c 2 -j 2 -T "$seconds" -f "$BENCH/single_insert.sql" \
		"$(conninfo "${way}_source")" > "$WORK/pgbench.log" 2>&1 &
	sleep $((seconds / 2))
	half=$(sustained_lag "$way")
	wait $!
	lag=$(sustained_lag "$way")
	sent=$(($(sql "${way}_source" -c 'SELECT count(*) FROM payments') - before))
	until_true "${way}_target" \
		"SELECT count(*) = $before + $sent FROM payments" 600
	drained=$(date +%s%N)
	note "   $way: lag $half rows half-way, $lag at the end"
	sample "sustained_half_$way" "$half"
	sample "sustained_lag_$way" "$lag"
	sample "sustained_clients_$way" "$(calc "$sent / $seconds")"
	sample "sustained_rate_$way" "$(calc "$sent / (($drained - $started) / 1e9)")"
}

# Rows that the source has and the target has not; the target is asked first,
# so what commits between the questions is counted as lag.
sustained_lag()
{
	local here there

	there=$(sql "$1_target" -c 'SELECT coalesce(max(id), 0) FROM payments')
	here=$(sql "$1_source" -c 'SELECT coalesce(max(id), 0) FROM payments')
	echo $((here - there))
}

bench_sustained()
{
	local round

	native_pair
	ours_pair
	ours_sync
	for ((round = 1; round <= ${ROUNDS:-2}; round++))
	do
		sustained_round native
		sustained_round ours
	done
	compare "single-row transactions, 2 clients: delivered" \
		"native logical replication" rows/s \
		sustained_rate_ours sustained_rate_native "≥ 1.0 ×"
	compare "the same: committed at the source" \
		"native logical replication" rows/s \
		sustained_clients_ours sustained_clients_native ""
	result "the same: lag half-way" "native logical replication" \
		"$(median sustained_half_ours) rows" \
		"$(median sustained_half_native) rows" "" ""
	result "the same: lag at the end" "native logical replication" \
		"$(median sustained_lag_ours) rows" \
		"$(median sustained_lag_native) rows" "" "not growing"
}
