#!/bin/sh
# Builds the newest librdkafka that Debian has as source into the cache: tests run with
# it where LD_LIBRARY_PATH says so (RDKAFKA=new make faults).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
. "$here/versions.sh"
. "$here/debian_source.sh"

unset MAKELEVEL MAKEFLAGS MFLAGS

say() {
	echo "build-rdkafka: $*" >&2
}

work=$(mktemp -d "${TMPDIR:-/tmp}/pg_outbox-build.XXXXXX")
chmod 755 "$work"
trap 'rm -rf "$work"' EXIT

fetch_source librdkafka sid forky trixie || { say "no newer librdkafka could be had"; exit 1; }
say "building $(cd "$work/source" && ls librdkafka_*.orig.tar.* | head -1), a minute"
unpack_source librdkafka
rm -rf "$rdkafka_new"
(
	cd "$work/tree" &&
		./configure --disable-curl --disable-zstd --disable-syslog --prefix="$rdkafka_new" &&
		nice -n 5 make -s -C src -j"$(nproc)" &&
		make -s -C src install
) >"$work/build.log" 2>&1 || { tail -30 "$work/build.log" >&2; exit 1; }
chmod -R a+rX "$rdkafka_new"
touch "$rdkafka_new/complete"
