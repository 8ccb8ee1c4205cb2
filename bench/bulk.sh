# bulk: one transaction of many rows, from its commit at the source until the
# target shows all of it, against native logical replication.
#
# Both apply it in one transaction at the target, so the last row tells of
# all; the count is checked afterwards.

# bulk_check WAY CONDITION: does every row at the target fulfil it?
bulk_check()
{
	until_true "$1_target" "SELECT count(*) = $ROWS FROM payments WHERE $2" 5
}

bulk_round()
{
	local way=$1 time

	sql "${way}_source" -c 'TRUNCATE payments'
	until_true "${way}_target" 'SELECT count(*) = 0 FROM payments'
	rest "${way}_source" "${way}_target"
	read -r time _ < <(probe "$way" -p 1000 "CALL fill(1, $ROWS)" \
		"SELECT true FROM payments WHERE id = $ROWS")
	bulk_check "$way" "status = 'authorized'"
	sample "bulk_insert_$way" "$time"

	rest "${way}_source" "${way}_target"
	read -r time _ < <(probe "$way" -p 1000 \
		"UPDATE payments SET status = 'captured', updated_at = now()" \
		"SELECT status = 'captured' FROM payments WHERE id = $ROWS")
	bulk_check "$way" "status = 'captured'"
	sample "bulk_update_$way" "$time"
}

bench_bulk()
{
	local round

	native_pair
	ours_pair
	ours_sync
	for ((round = 1; round <= ${ROUNDS:-5}; round++))
	do
		bulk_round native
		bulk_round ours
	done
	compare "$ROWS-row INSERT, commit → all at the target" \
		"native logical replication" ms bulk_insert_ours bulk_insert_native "≤ 0.5 ×"
	compare "$ROWS-row UPDATE, commit → all at the target" \
		"native logical replication" ms bulk_update_ours bulk_update_native "≤ 0.45 ×"
}
