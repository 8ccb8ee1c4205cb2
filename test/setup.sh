# Sourced by test/run, demo/run and bench/run: installs what is needed, builds
# the tree in a scratch copy and installs it.  Needs root or sudo.
#
# Sets: PGBIN (PostgreSQL's programs), PGUSER_OS (an unprivileged user to run
# servers as), SCRATCH (a directory of that user, removed at exit), PG_CONFIG.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [ "$(id -u)" -ne 0 ]; then
	exec sudo --preserve-env=PG_CONFIG,KEEP,JOBS,EXTRA_COPT,PSYNC_SECONDS,SHOP_LOAD "$0" "$@"
fi

say() { printf '== %s\n' "$*"; }

# The newest PostgreSQL that this machine has or can have.
find_version()
{
	local version
	for version in /usr/lib/postgresql/*/bin/postgres; do
		if [ -x "$version" ]; then
			version=${version#/usr/lib/postgresql/}
			echo "${version%%/*}"
		fi
	done | sort -n | tail -1
}

# install_packages [package…]: what building and running needs, and those
# named ("VERSION" in a name is PostgreSQL's); "?name" only if there is one
install_packages()
{
	local missing=() package version
	version=$(find_version)
	if [ -z "$version" ]; then
		apt-get update -qq
		version=$(apt-cache depends postgresql | sed -n 's/.*Depends: postgresql-\([0-9]*\)$/\1/p' | head -1)
	fi
	PGVERSION=$version
	for package in "postgresql-$version" "postgresql-server-dev-$version" libpq-dev \
		libcurl4-openssl-dev libssl-dev libzstd-dev zlib1g-dev pkg-config build-essential libipc-run-perl "$@"; do
		package=${package/VERSION/$version}
		dpkg-query -W -f '${Status}' "${package#\?}" 2>/dev/null |
			grep -q 'install ok installed' && continue
		[ "${package#\?}" = "$package" ] || apt-cache show "${package#\?}" >/dev/null 2>&1 || continue
		missing+=("${package#\?}")
	done
	[ ${#missing[@]} -eq 0 ] && return
	say "installing ${missing[*]}"
	# no cluster of the system's is wanted: we make our own and throw them away
	if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
		mkdir -p /etc/postgresql-common
		echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf
	fi
	# nor a web server on port 80
	local policy=/usr/sbin/policy-rc.d
	[ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' > "$policy"; chmod 755 "$policy"; policy_made=1; }
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o Dpkg::Options::=--force-confold \
		-o DPkg::Lock::Timeout=120 \
		--no-install-recommends "${missing[@]}" >/dev/null
	[ -z "${policy_made:-}" ] || rm -f "$policy"
}

# What the tests of the http transport need: nginx, and Node with its judges.
receiver_packages()
{
	echo nginx-light curl openssl zstd
	command -v npm >/dev/null || echo nodejs npm
}

# build [make arguments]: build in a copy, so that the tree stays clean
build()
{
	PG_CONFIG=${PG_CONFIG:-/usr/lib/postgresql/$PGVERSION/bin/pg_config}
	PGBIN=$($PG_CONFIG --bindir)
	SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/payment_sync.XXXXXX")
	PGUSER_OS=postgres
	chmod 755 "$SCRATCH"
	say "building for PostgreSQL $($PG_CONFIG --version | sed 's/PostgreSQL //')"
	mkdir "$SCRATCH/src"
	WAS_INSTALLED=$(ls "$($PG_CONFIG --sharedir)/extension/payment_sync.control" 2>/dev/null || true)
	(cd "$ROOT" && tar cf - --exclude=./.git --exclude='*.o' --exclude='*.so' --exclude='*.d' .) |
		(cd "$SCRATCH/src" && tar xf -)
	make -s -C "$SCRATCH/src" -j"$(nproc)" PG_CONFIG="$PG_CONFIG" "$@" > "$SCRATCH/build.log" 2>&1 ||
		{ cat "$SCRATCH/build.log"; return 1; }
	make -s -C "$SCRATCH/src" install PG_CONFIG="$PG_CONFIG" >> "$SCRATCH/build.log" 2>&1 ||
		{ cat "$SCRATCH/build.log"; return 1; }
	make -s -C "$SCRATCH/src/test/modules" all install PG_CONFIG="$PG_CONFIG" "$@" >> "$SCRATCH/build.log" 2>&1 ||
		{ cat "$SCRATCH/build.log"; return 1; }
	chown -R "$PGUSER_OS" "$SCRATCH"
}

# Take the extension out of PostgreSQL again, unless it was there before.
uninstall()
{
	[ -n "${WAS_INSTALLED-unknown}" ] ||
		make -s -C "$SCRATCH/src" uninstall PG_CONFIG="$PG_CONFIG" >/dev/null 2>&1 || true
}

# as_user command…: run as the unprivileged user, in the scratch directory.  LANG
# as well, since PostgreSQL's test modules take LC_ALL away, and servers would get
# the encoding of whatever LANG the caller has.
as_user()
{
	(cd "$SCRATCH" && runuser -u "$PGUSER_OS" -- env PATH="$PGBIN:$PATH" \
		TMPDIR="$SCRATCH" LANG=C.UTF-8 LC_ALL=C.UTF-8 "$@")
}

free_port()
{
	perl -MIO::Socket::INET -e 'print IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1")->sockport'
}
