# tps: transactions of one INSERT and one UPDATE, two clients, a server with
# its default settings, with capture and without.
#
# Two tables in one database, so that both sides meet the same disk in the
# same seconds; many short runs in turn.

bench_tps()
{
	local round way seconds=${TPS_SECONDS:-2} tps

	cluster tps "shared_preload_libraries = 'payment_sync'"
	for way in bare ours
	do
		payments tps
		sql tps -c "CALL fill(1, 100000)" -c "ALTER TABLE payments RENAME TO $way" \
			-c "ALTER INDEX payments_pkey RENAME TO ${way}_pkey" \
			-c "ALTER SEQUENCE payments_id_seq RENAME TO ${way}_id_seq" \
			-c "ALTER TABLE $way ALTER id RESTART WITH 100001" \
			-c "DROP PROCEDURE fill"
		sed "s/TABLE/$way/g" > "$WORK/$way.sql" <<-'END'
			\set merchant random(1, 1000)
			\set amount random(100, 100000)
			\set id random(1, 100000)
			BEGIN;
			INSERT INTO TABLE (merchant_id, amount, currency, status, reference, created_at, updated_at)
			VALUES (:merchant, :amount / 100.0, 'EUR', 'authorized', 'order ' || :amount, now(), now());
			UPDATE TABLE SET status = 'captured', updated_at = now() WHERE id = :id;
			COMMIT;
		END
	done
	sql tps -o /dev/null -c 'CREATE EXTENSION payment_sync' \
		-c "SELECT payment_sync.capture_table('ours')"
	sql tps -c 'VACUUM ANALYZE bare, ours' -c 'CHECKPOINT'

	for ((round = 0; round <= ${ROUNDS:-40}; round++))
	do
		# Who comes first changes from round to round.
		for way in $([ $((round % 2)) = 0 ] && echo bare ours || echo ours bare)
		do
			tps=$("$BIN/pgbench" -n -c 2 -j 2 -T "$seconds" -f "$WORK/$way.sql" \
				"$(conninfo tps)" 2>&1 | sed -n 's/^tps = \([0-9.]*\).*/\1/p')
			[ $round = 0 ] || sample "tps_$way" "$tps"
		done
	done
	compare "pgbench, 1 INSERT + 1 UPDATE, 2 clients" "without capture" TPS \
		tps_ours tps_bare "≥ 0.93 ×"
	stop_cluster tps
}
