# mirror: a full copy that removes what the source lacks, of tables with text
# keys, by a worker; of 100,000 rows, 300,000 and a million.
#
# The target has all rows already, one in a hundred of them no longer at the
# source.  What a row costs must not grow with the table, nor the worker's memory.

. "$BENCH/memory.sh"

mirror_tables()
{
	local name

	for name in ours_source ours_target
	do
		sql "$name" <<-'END'
			DROP TABLE IF EXISTS words;
			CREATE TABLE words (word text PRIMARY KEY, amount numeric(14,2) NOT NULL, note text);
			CREATE OR REPLACE PROCEDURE say(first bigint, last bigint) LANGUAGE sql
			BEGIN ATOMIC
				INSERT INTO words SELECT md5(i::text) || '/' || i, i / 100.0, 'order ' || i
				FROM generate_series(first, last) i;
			END;
		END
	done
}

# mirror_round ROWS
mirror_round()
{
	local rows=$1 pid now start peak=0 started

	sql ours_source -o /dev/null -c 'TRUNCATE words' -c "CALL say(1, $rows)" \
		-c 'VACUUM ANALYZE words' -c 'CHECKPOINT' \
		-c "SELECT payment_sync.capture_table('words')" \
		-c "SELECT payment_sync.create_sync('mirror', '{words}', server => 'target', enabled => false)"
	sql ours_target -c 'TRUNCATE words' -c "CALL say(1, $rows + $rows / 100)" \
		-c 'VACUUM ANALYZE words' -c 'CHECKPOINT'
	pid=$(worker_pid)
	[ -n "$pid" ] || { note "no delivery worker"; return 1; }
	start=$(anonymous_kb "$pid")
	started=$(date +%s%N)
	sql ours_source -o /dev/null -c "SELECT payment_sync.enable_sync('mirror', start => 'batch')"
	while [ "$(sql ours_source -c "SELECT state FROM payment_sync.progress_batch WHERE sync = 'mirror'")" != done ]
	do
		for _ in 1 2 3 4 5
		do
			now=$(anonymous_kb "$pid")
			[ "${now:-0}" -le "$peak" ] || peak=$now
			sleep 0.02
		done
	done
	sample "mirror_$rows" "$(calc "($(date +%s%N) - $started) / 1e3 / $rows")"
	sample "mirror_memory" "$(calc "($peak - $start) / 1024")"
	[ "$(worker_pid)" = "$pid" ] || { note "the worker was replaced"; return 1; }
	[ "$(sql ours_target -c 'SELECT count(*) FROM words')" = "$rows" ] ||
		{ note "the target is no mirror"; return 1; }
	sql ours_source -o /dev/null -c "SELECT payment_sync.drop_sync('mirror')" \
		-c "SELECT payment_sync.release_table('words')"
}

bench_mirror()
{
	local rows round

	ours_pair
	ours_sync					# keeps the worker
	mirror_tables
	for ((round = 1; round <= ${ROUNDS:-3}; round++))
	do
		for rows in 100000 300000 1000000
		do
			mirror_round $rows
		done
	done
	for rows in 300000 1000000
	do
		compare "mirror of $rows rows with text keys, for each row" "of 100000 rows" µs \
			mirror_$rows mirror_100000 "≤ 1.2 ×"
	done
	result "worker's memory above its start, mirrors up to a million rows" "—" \
		"$(printf '%.1f' "$(sort -g "$WORK/samples/mirror_memory" | tail -1)") MiB" "—" "—" "≤ 64 MiB"
	sql ours_source -o /dev/null -c "SELECT payment_sync.drop_sync('bench')"
}
