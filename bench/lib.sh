# lib.sh: what the benchmarks share: building, servers, samples, the table.
# Sourced by run.  A benchmark NAME is the function bench_NAME of NAME.sh.

ROWS=${ROWS:-300000}
BATCH_ROWS=${BATCH_ROWS:-3000000}

note()
{
	echo "$(date +%T) $*" >&2
}

# ---------------------------------------------------------------- set-up

# The server refuses to run as root, so as root everything that touches a
# cluster runs as user postgres.
as_postgres()
{
	if [ "$(id -u)" = 0 ]
	then
		runuser -u postgres -- "$@"
	else
		"$@"
	fi
}

prepare()
{
	WORK=$(mktemp -d "${TMPDIR:-/tmp}/payment_sync_bench.XXXXXX")
	trap finish EXIT
	trap 'exit 130' INT TERM HUP
	chmod 755 "$WORK"
	mkdir "$WORK/samples" "$WORK/clusters"
	: > "$WORK/results"
	[ "$(id -u)" != 0 ] || chown postgres "$WORK" "$WORK/clusters"

	if [ -z "${PG_CONFIG:-}" ]
	then
		install_packages
		PG_CONFIG=/usr/lib/postgresql/15/bin/pg_config
	fi
	BIN=$("$PG_CONFIG" --bindir)
	build
}

install_packages()
{
	local wanted="postgresql-15 postgresql-server-dev-15 postgresql-15-pgq3
		libpq-dev gcc make"
	local missing=

	for package in $wanted
	do
		dpkg-query -W -f '${Status}' "$package" 2>/dev/null |
			grep -q 'install ok installed' || missing="$missing $package"
	done
	[ -n "$missing" ] || return 0
	note "installing$missing"
	apt-get update -qq >&2
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >&2
}

# Built from a copy, so that the tree is left as it was.
build()
{
	note "building"
	mkdir "$WORK/tree"
	tar -C "$BENCH/.." --exclude=.git --exclude='*.o' --exclude='*.so' -cf - . |
		tar -C "$WORK/tree" -xf -
	make -s -C "$WORK/tree" PG_CONFIG="$PG_CONFIG" > "$WORK/build.log" 2>&1 &&
		make -s -C "$WORK/tree" PG_CONFIG="$PG_CONFIG" install \
			>> "$WORK/build.log" 2>&1 ||
		{ tail -40 "$WORK/build.log" >&2; exit 1; }
	gcc -O2 -Wall -Wextra -Werror -I"$("$PG_CONFIG" --includedir)" \
		-o "$WORK/probe" "$BENCH/probe.c" -L"$("$PG_CONFIG" --libdir)" -lpq
}

finish()
{
	local status=$? dir

	trap - EXIT INT TERM HUP
	for dir in "$WORK"/clusters/*/
	do
		[ ! -f "$dir/postmaster.pid" ] ||
			as_postgres "$BIN/pg_ctl" -D "$dir" -m immediate -w stop \
				> /dev/null 2>&1 || true
	done
	if [ -n "$KEEP" ]
	then
		note "kept $WORK"
	else
		rm -rf "$WORK"
	fi
	exit "$status"
}

# --------------------------------------------------------------- clusters

# The port of a cluster, which has one from when it is made.
port()
{
	cat "$WORK/clusters/$1.port"
}

free_port()
{
	local port

	while :
	do
		port=$((20000 + RANDOM % 12000))
		# shellcheck disable=SC2188
		(: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null || break
	done
	echo $port
}

# cluster NAME [SETTING ...]: make and start it unless it runs already.
cluster()
{
	local name=$1 data=$WORK/clusters/$1 setting

	shift
	[ ! -f "$data.port" ] || return 0
	free_port > "$data.port"
	as_postgres "$BIN/initdb" -D "$data" -U postgres -A trust -E UTF8 \
		--locale=C > /dev/null
	{
		echo "port = $(port "$name")"
		echo "listen_addresses = '127.0.0.1'"
		echo "unix_socket_directories = '$WORK'"
		for setting in "$@"
		do
			echo "$setting"
		done
	} | as_postgres tee -a "$data/postgresql.conf" > /dev/null
	as_postgres "$BIN/pg_ctl" -D "$data" -l "$data/server.log" -w start \
		> /dev/null || { tail "$data/server.log" >&2; exit 1; }
}

# What every timed server gets beyond the defaults: room, so that neither a
# checkpoint nor autovacuum falls into one side's run and not into the other's.
calm()
{
	cat <<-'END'
		shared_buffers = 1GB
		max_wal_size = 16GB
		checkpoint_timeout = 1h
		autovacuum = off
	END
}

calm_cluster()
{
	local name=$1

	shift
	cluster "$name" "$(calm)" "$@"
}

stop_cluster()
{
	as_postgres "$BIN/pg_ctl" -D "$WORK/clusters/$1" -m fast -w stop > /dev/null
	rm -rf "$WORK/clusters/$1" "$WORK/clusters/$1.port"
}

conninfo()
{
	echo "host=127.0.0.1 port=$(port "$1") user=postgres dbname=postgres"
}

# sql CLUSTER [psql arguments]: quiet, unaligned, stops at the first error.
sql()
{
	local name=$1

	shift
	PGOPTIONS='-c client_min_messages=warning' "$BIN/psql" -X -q -A -t \
		-v ON_ERROR_STOP=1 "$(conninfo "$name")" "$@"
}

# ms CLUSTER STATEMENT: how long psql saw the statement take.
ms()
{
	sql "$1" -c '\timing on' -c "$2" |
		sed -n 's/^Time: \([0-9.]*\) ms.*/\1/p' | tail -1
}

# until_true CLUSTER QUERY [SECONDS]: wait until the query gives t.
until_true()
{
	local deadline=$((SECONDS + ${3:-120}))

	while [ "$(sql "$1" -c "$2")" != t ]
	do
		if [ $SECONDS -ge $deadline ]
		then
			note "gave up waiting for: $2"
			return 1
		fi
		sleep 0.1
	done
}

# rest CLUSTER ...: dirt of the last run is written out before the next.
rest()
{
	local name

	for name in "$@"
	do
		sql "$name" -c 'VACUUM ANALYZE payments' -c 'CHECKPOINT'
	done
}

payments()
{
	sql "$1" -f "$BENCH/payments.sql"
}

# ----------------------------------------------- two ways to keep in step

# Each way has a source and a target of its own, so that neither pays for
# reading the other's WAL: ours_source → ours_target, native_source →
# native_target.
ours_pair()
{
	calm_cluster ours_source "shared_preload_libraries = 'payment_sync'"
	calm_cluster ours_target
	sql ours_source -c 'DROP EXTENSION IF EXISTS payment_sync CASCADE'
	payments ours_source
	payments ours_target
	sql ours_source <<-END
		CREATE EXTENSION payment_sync;
		SELECT payment_sync.capture_table('payments');
		CREATE SERVER target FOREIGN DATA WRAPPER payment_sync_postgres
			OPTIONS (host '127.0.0.1', port '$(port ours_target)', dbname 'postgres');
		CREATE USER MAPPING FOR CURRENT_USER SERVER target OPTIONS (user 'postgres');
	END
}

ours_sync()
{
	sql ours_source -o /dev/null -c "SELECT payment_sync.create_sync('bench',
		ARRAY['payments']::regclass[], server => 'target', batch => false)"
}

native_pair()
{
	calm_cluster native_source "wal_level = logical"
	calm_cluster native_target
	sql native_target -c 'DROP SUBSCRIPTION IF EXISTS bench'
	sql native_source -c 'DROP PUBLICATION IF EXISTS bench'
	payments native_source
	payments native_target
	sql native_source -c 'CREATE PUBLICATION bench FOR TABLE payments'
	sql native_target -c "CREATE SUBSCRIPTION bench
		CONNECTION '$(conninfo native_source)' PUBLICATION bench
		WITH (copy_data = false)"
}

# probe WAY [arguments of probe.c] STATEMENT CONDITION
probe()
{
	local way=$1

	shift
	"$WORK/probe" -s "$(conninfo "${way}_source")" \
		-t "$(conninfo "${way}_target")" "$@"
}

# ------------------------------------------------------ samples and table

# sample SERIES VALUE: one run's figure.  Series that are compared get their
# values in turn, so line n of one is the neighbour in time of line n of the
# other.
sample()
{
	echo "$2" >> "$WORK/samples/$1"
	note "   $1 $2"
}

# quantile FRACTION: of the numbers on stdin, by linear interpolation.
quantile()
{
	sort -g | awk -v q="$1" '
		{ v[NR] = $1 }
		END {
			if (NR == 0) exit 1
			at = 1 + q * (NR - 1); low = int(at)
			high = low < NR ? low + 1 : low
			printf "%.6g\n", v[low] + (at - low) * (v[high] - v[low])
		}'
}

median()
{
	quantile 0.5 < "$WORK/samples/$1"
}

# ratio OURS THEIRS: median of the ratios of neighbours.
ratio()
{
	paste "$WORK/samples/$1" "$WORK/samples/$2" |
		awk '$2 != 0 { print $1 / $2 }' | quantile 0.5
}

calc()
{
	awk "BEGIN { printf \"%.6g\\n\", $1 }"
}

# result WHAT AGAINST OURS THEIRS RATIO GOAL
result()
{
	printf '| %s | %s | %s | %s | %s | %s |\n' "$@" >> "$WORK/results"
	note "   => $1 | $2 | $3 | $4 | $5 | $6"
}

# compare WHAT AGAINST UNIT OURS THEIRS GOAL: a row from two series.
compare()
{
	result "$1" "$2" "$(printf '%.4g' "$(median "$4")") $3" \
		"$(printf '%.4g' "$(median "$5")") $3" \
		"$(printf '%.2f ×' "$(ratio "$4" "$5")")" "$6"
}

report()
{
	echo "PostgreSQL $("$BIN/postgres" --version | awk '{ print $3 }')," \
		"$(nproc) processors, $(date +%F); medians of alternating runs."
	echo
	echo "| what | against | ours | theirs | ratio | goal |"
	echo "| --- | --- | --- | --- | --- | --- |"
	cat "$WORK/results"
}
