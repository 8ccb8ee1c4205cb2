# http: webhooks to a server on the same machine.
#
#	requests	one event per request, 32 in flight, to nginx; against a bare loop of
#				curl's multi interface with the same body (curl_loop.c)
#	batches		500 events per request; against COPY of row_to_json to /dev/null
#	latency		commit -> request received, idle and at 20, 100, 1000 commits/s
#	neighbour	the same at 100 commits/s beside a sync whose target never answers
#	pending		events pile up while the target is down: the worker's memory, and
#				what writers notice of it

HTTP_EVENTS=${HTTP_EVENTS:-100000}
HTTP_BATCHED=${HTTP_BATCHED:-1000000}
HTTP_PENDING=${HTTP_PENDING:-1000000}

http_nginx()
{
	local dir=$WORK/nginx

	[ ! -d "$dir" ] || return 0
	mkdir "$dir"
	free_port > "$dir/port"
	cat > "$dir/conf" <<-END
		worker_processes 1;
		pid $dir/pid;
		error_log $dir/error.log;
		events { worker_connections 512; }
		http {
			access_log off;
			client_body_temp_path $dir/body;
			client_body_buffer_size 1m;
			client_max_body_size 64m;
			keepalive_requests 100000000;
			server {
				listen 127.0.0.1:$(cat "$dir/port");
				location / { return 200; }
				location = /status { stub_status; }
			}
		}
	END
	nginx -e "$dir/error.log" -c "$dir/conf"
	trap 'kill "$(cat "$WORK/nginx/pid")" 2> /dev/null || true' EXIT
}

# http_source: a source with payments captured and nothing else
http_source()
{
	calm_cluster http_source "shared_preload_libraries = 'payment_sync'" \
		"payment_sync.http_allowed_hosts = 'localhost'" "max_connections = 50"
	sql http_source -c 'DROP EXTENSION IF EXISTS payment_sync CASCADE'
	payments http_source
	sql http_source -o /dev/null -c 'CREATE EXTENSION payment_sync' \
		-c "SELECT payment_sync.capture_table('payments')"
}

# http_sync NAME PORT [OPTIONS]: a sync to 127.0.0.1:PORT
http_sync()
{
	sql http_source -o /dev/null -c "CREATE SERVER $1 FOREIGN DATA WRAPPER payment_sync_http
			OPTIONS (url 'http://127.0.0.1:$2/hook'${3:+, $3})" \
		-c "CREATE USER MAPPING FOR CURRENT_USER SERVER $1
			OPTIONS (signing_secret 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw')" \
		-c "SELECT payment_sync.create_sync('$1', '{payments}', server => '$1')"
}

http_drop()
{
	sql http_source -o /dev/null -c "SELECT payment_sync.drop_sync('$1')" \
		-c "DROP SERVER $1 CASCADE"
}

# http_drain NAME: seconds from the first request to the last one, once the sync
# is enabled.  nginx is asked how many requests it has had: to ask the source for
# the lag would have it read the log, and so compete with the worker.
http_drain()
{
	sql http_source -o /dev/null -c "SELECT payment_sync.enable_sync('$1')"
	perl -MIO::Socket::INET -MTime::HiRes=time,sleep -e '
		my ($port, $first, $last, $count, $asked) = (shift, 0, 0, undef, 0);
		while (!$first || time - $last < 1.5) {
			my $socket = IO::Socket::INET->new(PeerAddr => "127.0.0.1", PeerPort => $port) or die;
			print $socket "GET /status HTTP/1.0\r\n\r\n";
			my $n = join("", <$socket>) =~ /requests\s+\d+ \d+ (\d+)/ ? $1 - $asked++ : die;
			$count //= $n;
			($first, $last, $count) = ($first || time, time, $n) if $n != $count;
			sleep 0.01;
		}
		printf "%.3f\n", $last - $first' "$(cat "$WORK/nginx/port")"
	until_true http_source "SELECT lag_changes = 0 FROM payment_sync.stat_sync WHERE name = '$1'"
}

# http_pile NAME EVENTS: so many events wait
http_pile()
{
	sql http_source -o /dev/null -c "SELECT payment_sync.disable_sync('$1')" \
		-c 'TRUNCATE payments' -c "CALL fill(1, $2)"
}

http_requests()
{
	local round port

	port=$(cat "$WORK/nginx/port")
	http_sync one "$port" "max_batch '1', max_in_flight '32'"
	# a body of the size that ours have
	sql http_source -c "SELECT repeat('x', 500)" > "$WORK/body"
	for ((round = 0; round <= ${ROUNDS:-3}; round++))
	do
		http_pile one "$HTTP_EVENTS"
		http_drain one > "$WORK/seconds"
		"$WORK/curl_loop" "http://127.0.0.1:$port/hook" "$WORK/body" "$HTTP_EVENTS" 32 \
			> "$WORK/theirs"
		[ $round != 0 ] || continue
		sample http_requests_ours "$(calc "$HTTP_EVENTS / $(cat "$WORK/seconds")")"
		sample http_requests_bare "$(cat "$WORK/theirs")"
	done
	compare "webhooks, signed, one event per request, 32 in flight" \
		"bare curl loop in C" "/s" http_requests_ours http_requests_bare "≥ 0.6 ×"
	http_drop one
}

http_batches()
{
	local round

	http_sync many "$(cat "$WORK/nginx/port")" "max_batch '500', max_in_flight '32'"
	for ((round = 0; round <= ${ROUNDS:-3}; round++))
	do
		http_pile many "$HTTP_BATCHED"
		http_drain many > "$WORK/seconds"
		ms http_source "COPY (SELECT row_to_json(p) FROM payments p) TO '/dev/null'" \
			> "$WORK/theirs"
		[ $round != 0 ] || continue
		sample http_batches_ours "$(calc "$HTTP_BATCHED / $(cat "$WORK/seconds")")"
		sample http_batches_copy "$(calc "$HTTP_BATCHED / $(cat "$WORK/theirs") * 1000")"
	done
	compare "webhooks, signed, batches of 500 events: events" \
		"COPY row_to_json to /dev/null: rows" "/s" http_batches_ours http_batches_copy "≥ 0.6 ×"
	http_drop many
}

# http_latency RATE COUNT LABEL GOAL
http_latency()
{
	"$WORK/http_probe" "$HTTP_PORT" "$(conninfo http_source)" "$2" "$1" "$HTTP_FIRST" \
		> "$WORK/block"
	HTTP_FIRST=$((HTTP_FIRST + $2))
	result "commit → request received, $3: p50 / p99" "—" \
		"$(printf '%.2f / %.2f' "$(quantile 0.5 < "$WORK/block")" "$(quantile 0.99 < "$WORK/block")") ms" \
		"—" "—" "$4"
}

http_latencies()
{
	http_latency 0 "${LATENCY_PROBES:-200}" "idle" "≤ 0.5 / 1.5 ms"
	http_latency 20 200 "20 commits/s" "≤ 1 / 5 ms"
	http_latency 100 1000 "100 commits/s" "≤ 1 / 5 ms"
	http_latency 1000 10000 "1,000 commits/s" "≤ 1 / 5 ms"
}

# A target that accepts connections and never says a word.
http_neighbour()
{
	local hole

	hole=$(free_port)
	perl -MIO::Socket::INET -e 'my $s = IO::Socket::INET->new(Listen => 1000,
		LocalAddr => "127.0.0.1", LocalPort => shift); sleep 600' "$hole" &
	http_sync hole "$hole" "timeout '5'"
	http_latency 100 1000 "100 commits/s beside a target that never answers" "p99 ≤ 10 ms"
	kill $!
	http_drop hole
}

# Transactions per second of writers for so many seconds.
http_tps()
{
	cat > "$WORK/insert.sql" <<-'END'
		INSERT INTO payments VALUES (nextval('http_id'), 1, 9.99, 'EUR', 'authorized',
			'order', NULL, now(), now());
	END
	as_postgres "$BIN/pgbench" -n -c 2 -T 5 -f "$WORK/insert.sql" \
		-h 127.0.0.1 -p "$(port http_source)" -U postgres postgres |
		sed -n 's/^tps = \([0-9.]*\).*/\1/p'
}

http_pending()
{
	local pid start peak now round down

	sql http_source -o /dev/null -c 'CREATE SEQUENCE IF NOT EXISTS http_id START 100000001 CACHE 1000'
	down=$(free_port)
	http_sync down "$down" "retry_delay_max '1000'"
	# each round: without the sync at work, and with it
	for ((round = 0; round < ${ROUNDS:-3}; round++))
	do
		sql http_source -o /dev/null -c "SELECT payment_sync.disable_sync('down')"
		sample http_tps_disabled "$(http_tps)"
		sql http_source -o /dev/null -c "SELECT payment_sync.enable_sync('down')"
		sample http_tps_down "$(http_tps)"
	done
	compare "writers while the target is down" "the sync disabled" "tps" \
		http_tps_down http_tps_disabled "≥ 0.97 ×"

	until_true http_source "SELECT count(*) > 0 FROM pg_stat_activity
		WHERE backend_type = 'payment_sync worker'"
	pid=$(sql http_source -c "SELECT pid FROM pg_stat_activity
		WHERE backend_type = 'payment_sync worker' LIMIT 1")
	start=$(awk '/^RssAnon:/ { print $2 }' "/proc/$pid/status")
	peak=0
	sql http_source -c "CALL fill(200000001, $((200000000 + HTTP_PENDING)))"
	for ((round = 0; round < 200; round++))
	do
		now=$(awk '/^RssAnon:/ { print $2 }' "/proc/$pid/status")
		[ "${now:-0}" -le "$peak" ] || peak=$now
		sleep 0.1
	done
	result "worker's memory above its start, $HTTP_PENDING events pending, target down" "—" \
		"$(printf '%.1f' "$(calc "($peak - $start) / 1024")") MiB" "—" "—" "≤ 64 MiB"
	http_drop down
}

bench_http()
{
	gcc -O2 -Wall -o "$WORK/curl_loop" "$BENCH/curl_loop.c" -lcurl
	gcc -O2 -Wall -D_GNU_SOURCE -I"$("$PG_CONFIG" --includedir)" -I/usr/include/postgresql \
		-o "$WORK/http_probe" "$BENCH/http_probe.c" -L"$("$PG_CONFIG" --libdir)" -lpq -lpthread
	http_nginx
	http_source
	http_requests
	http_batches
	HTTP_PORT=$(free_port)
	HTTP_FIRST=1000000001
	http_sync probe "$HTTP_PORT"
	http_latencies
	http_neighbour
	http_drop probe
	http_pending
	stop_cluster http_source
}
