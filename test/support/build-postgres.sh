#!/bin/sh
# Builds a newer PostgreSQL from Debian's source package into the cache, with
# assertions: the binary packages of newer suites don't run on Debian 12.
#
# The sources come through apt, from the mirror that this machine's own apt uses
# for Debian, but with lists and cache of their own: the system's apt is not
# touched.  A suite's index may lag behind the pool (then the download fails), so
# the next suite, and then the next major, is tried.
#
#   build-postgres.sh              what the second major is tested with
#   build-postgres.sh valgrind     one that tells valgrind of its memory contexts,
#                                  and PostgreSQL's suppressions beside it
set -eu

variant=${1:-}

here=$(cd "$(dirname "$0")" && pwd)
. "$here/versions.sh"

# below another make PostgreSQL's own would leave out its generated headers
unset MAKELEVEL MAKEFLAGS MFLAGS

say() {
	echo "build-postgres: $*" >&2
}

work=$(mktemp -d "${TMPDIR:-/tmp}/pg_outbox-build.XXXXXX")
chmod 755 "$work"
trap 'rm -rf "$work"' EXIT

private_apt() {
	apt=$work/apt
	mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/parts"
	base=$(debian_mirror)
	base=${base%/}
	case $1 in
		*-security) base=$base-security ;;
	esac
	keys=/usr/share/keyrings/debian-archive-keyring.gpg
	echo "deb-src [signed-by=$keys] $base $1 main" >"$apt/sources.list"
	set -- -o Dir::State::Lists="$apt/lists" -o Dir::Cache="$apt/cache" \
		-o Dir::Etc::SourceList="$apt/sources.list" -o Dir::Etc::SourceParts="$apt/parts" \
		-o Acquire::Check-Valid-Until=false -o Acquire::Retries=3 \
		-o APT::Sandbox::User=root -o Acquire::Languages=none
	apt-get -q -q "$@" update && apt-get -q -q "$@" source --download-only "postgresql-$major"
}

fetch_source() {
	eval "suites=\$pgnext_suites_$major"
	for suite in $suites; do
		rm -rf "$work/apt" "$work/source"
		mkdir -p "$work/source"
		if (cd "$work/source" && private_apt "$suite") >"$work/apt.log" 2>&1 &&
			ls "$work"/source/postgresql-"$major"_*.orig.tar.* >/dev/null 2>&1; then
			return 0
		fi
		say "no source of PostgreSQL $major in $suite: $(grep '^E:' "$work/apt.log" | head -1 | sed 's#[a-z]*://[^ ]*/##')"
	done
	return 1
}

# With -Og the lines of a report are those of the source, and no slower: valgrind is.
build() {
	rm -rf "$work/tree"
	mkdir "$work/tree"
	cflags='-O2 -g1' cppflags=
	[ -z "$variant" ] || cflags='-Og -g' cppflags=-DUSE_VALGRIND
	tar -xf "$(ls "$work"/source/postgresql-"$major"_*.orig.tar.* | grep -v '\.asc$' | head -1)" \
		-C "$work/tree" --strip-components=1
	(
		cd "$work/tree" &&
			./configure -q --prefix="$prefix" --without-icu --without-readline \
				--enable-tap-tests --enable-cassert CFLAGS="$cflags" CPPFLAGS="$cppflags" &&
			nice -n 5 make -s -j"$(nproc)" install &&
			nice -n 5 make -s -C contrib -j"$(nproc)" install &&
			cp src/tools/valgrind.supp "$prefix/"
	) >"$work/build.log" 2>&1 || { tail -30 "$work/build.log" >&2; return 1; }
}

for major in $pgnext_majors; do
	prefix=$cache/pg$major${variant:+-$variant}
	rm -rf "$prefix"
	mkdir -p "$cache"
	fetch_source || continue
	say "building PostgreSQL $major${variant:+ for $variant}, a few minutes"
	build || continue
	chmod -R a+rX "$prefix"
	touch "$prefix/complete"
	exit 0
done
say "no newer PostgreSQL could be built"
exit 1
