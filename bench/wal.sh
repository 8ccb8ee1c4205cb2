# wal: bytes of WAL that capturing adds to each INSERT.
#
# Bulk, and in transactions of one row.  Full page images would add to either
# side what the distance to the last checkpoint happens to be, so the pages
# are dirtied once after the checkpoint before the count begins.

. "$BENCH/capture.sh"

wal_position()
{
	sql capture -c "SELECT pg_current_wal_insert_lsn() - '0/0'"
}

# wal_run WAY: sets BULK_BYTES and SINGLE_BYTES, per row.
wal_run()
{
	local before after single=5000

	payments capture
	capture_attach "$1"
	sql capture -c 'CHECKPOINT' -c "CALL fill(1, 1000)"
	before=$(wal_position)
	sql capture -c "CALL fill(1001, 1000 + $ROWS)"
	after=$(wal_position)
	BULK_BYTES=$(calc "($after - $before) / $ROWS")

	echo "\\set id random(1000000, 1000000000000)
CALL fill(:id, :id);" > "$WORK/single.sql"
	"$BIN/pgbench" -n -c 1 -t 500 -f "$WORK/single.sql" \
		"$(conninfo capture)" > /dev/null 2>&1
	before=$(wal_position)
	"$BIN/pgbench" -n -c 1 -t $single -f "$WORK/single.sql" \
		"$(conninfo capture)" > /dev/null 2>&1
	after=$(wal_position)
	SINGLE_BYTES=$(calc "($after - $before) / $single")
	capture_detach "$1"
	note "   $1: bulk $BULK_BYTES, single $SINGLE_BYTES bytes per row"
}

bench_wal()
{
	local round way bulk single

	calm_cluster capture "shared_preload_libraries = 'payment_sync'"
	for ((round = 1; round <= ${ROUNDS:-3}; round++))
	do
		wal_run bare
		bulk=$BULK_BYTES
		single=$SINGLE_BYTES
		for way in ours pgq
		do
			wal_run "$way"
			sample "wal_bulk_$way" "$(calc "$BULK_BYTES - $bulk")"
			sample "wal_single_$way" "$(calc "$SINGLE_BYTES - $single")"
		done
	done
	compare "WAL added per captured INSERT, one statement" "pgq.logutriga" bytes \
		wal_bulk_ours wal_bulk_pgq "≤ 0.5 ×"
	compare "WAL added per captured INSERT, transactions of one row" \
		"pgq.logutriga" bytes wal_single_ours wal_single_pgq "≤ 0.5 ×"
	stop_cluster capture
}
