#!/bin/sh
# Builds a newer PostgreSQL from Debian's source package into the cache, with
# assertions: the binary packages of newer suites don't run on Debian 12.
#
#   build-postgres.sh              what the second major is tested with
#   build-postgres.sh valgrind     one that tells valgrind of its memory contexts,
#                                  and PostgreSQL's suppressions beside it
set -eu

variant=${1:-}

here=$(cd "$(dirname "$0")" && pwd)
. "$here/versions.sh"
. "$here/debian_source.sh"

# below another make PostgreSQL's own would leave out its generated headers
unset MAKELEVEL MAKEFLAGS MFLAGS

say() {
	echo "build-postgres: $*" >&2
}

work=$(mktemp -d "${TMPDIR:-/tmp}/pg_outbox-build.XXXXXX")
chmod 755 "$work"
trap 'rm -rf "$work"' EXIT

# With -Og the lines of a report are those of the source, and no slower: valgrind is.
build() {
	unpack_source "postgresql-$major"
	cflags='-O2 -g1' cppflags=
	[ -z "$variant" ] || cflags='-Og -g' cppflags=-DUSE_VALGRIND
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
	eval "suites=\$pgnext_suites_$major"
	fetch_source "postgresql-$major" $suites || continue
	say "building PostgreSQL $major${variant:+ for $variant}, a few minutes"
	build || continue
	chmod -R a+rX "$prefix"
	touch "$prefix/complete"
	exit 0
done
say "no newer PostgreSQL could be built"
exit 1
