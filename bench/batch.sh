# batch: a whole table to an empty one, against COPY BINARY from psql to psql.
#
# Same servers, same tables, same index at the target; the source is filled
# before it is captured.

batch_pipe()
{
	local started

	started=$(date +%s%N)
	sql ours_source -c 'COPY payments TO STDOUT (FORMAT binary)' |
		sql ours_target -c 'COPY payments FROM STDIN (FORMAT binary)'
	calc "($(date +%s%N) - $started) / 1e9"
}

batch_ours()
{
	local started

	ours_sync
	started=$(date +%s%N)
	sql ours_source -c "CALL payment_sync.batch_sync('bench')"
	until_true ours_target "SELECT EXISTS (SELECT FROM payments
		WHERE id = $BATCH_ROWS)" 600
	calc "($(date +%s%N) - $started) / 1e9"
}

batch_round()
{
	local way=$1 time

	sql ours_target -c 'TRUNCATE payments' -c 'CHECKPOINT'
	time=$("batch_$way")
	until_true ours_target "SELECT count(*) = $BATCH_ROWS FROM payments" 600
	sample "batch_$way" "$time"
	[ "$way" = pipe ] ||
		sql ours_source -o /dev/null -c "SELECT payment_sync.drop_sync('bench')"
}

bench_batch()
{
	local round

	ours_pair
	sql ours_source -o /dev/null -c "SELECT payment_sync.release_table('payments')" \
		-c "CALL fill(1, $BATCH_ROWS)" \
		-c "SELECT payment_sync.capture_table('payments')" \
		-c 'VACUUM ANALYZE payments' -c 'CHECKPOINT'
	for ((round = 1; round <= ${ROUNDS:-3}; round++))
	do
		batch_round pipe
		batch_round ours
	done
	compare "initial batch of $BATCH_ROWS rows" "COPY BINARY, psql to psql" s \
		batch_ours batch_pipe "≤ 1.5 ×"
}
