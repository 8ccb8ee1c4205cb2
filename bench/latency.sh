# latency: one row on an idle system, from the acknowledged commit at the
# source until the target shows it.
#
# Blocks of probes in turn.  The gap between probes lets every process fall
# asleep, so that waking up is part of what is measured.

bench_latency()
{
	local round way probes=${LATENCY_PROBES:-200} first

	native_pair
	ours_pair
	ours_sync
	rest native_source native_target ours_source ours_target
	for ((round = 0; round <= ${ROUNDS:-6}; round++))
	do
		for way in native ours
		do
			first=$((round * probes + 1))
			probe "$way" -n "$probes" -f "$first" -g 25 -p 30 \
				'INSERT INTO payments VALUES ($1::bigint, 1, 9.99, '"'EUR', 'authorized',
					'order', NULL, now(), now())" \
				'SELECT true FROM payments WHERE id = $1::bigint' |
				awk '{ print $1 }' > "$WORK/block"
			[ $round != 0 ] || continue
			sample "latency_p50_$way" "$(quantile 0.5 < "$WORK/block")"
			sample "latency_p99_$way" "$(quantile 0.99 < "$WORK/block")"
		done
	done
	compare "commit → visible at the target, one row, idle: p50" \
		"native logical replication" ms \
		latency_p50_ours latency_p50_native "≤ 1.0 ×"
	compare "the same: p99" "native logical replication" ms \
		latency_p99_ours latency_p99_native "≤ 1.0 ×"
}
