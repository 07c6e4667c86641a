#!/bin/sh
# pgprefix.sh PG_CONFIG DIR - a private, relocated copy of a PostgreSQL
# installation in DIR, with the extension of this tree installed into it, so
# that tests never touch the system's and several trees can test at once.
# PostgreSQL finds its files relative to its binaries.  Prints the copy's
# pg_config.
set -eu
pg_config=$1
dir=$2
top=$(cd "$(dirname "$0")/../.." && pwd)

bindir=$("$pg_config" --bindir)
sharedir=$("$pg_config" --sharedir)
libdir=$("$pg_config" --pkglibdir)
root=$bindir
# the part that bindir, sharedir and pkglibdir have in common
while [ "${sharedir#"$root"/}" = "$sharedir" ] || [ "${libdir#"$root"/}" = "$libdir" ]; do
	root=$(dirname "$root")
done

copy="$dir/${bindir#"$root"/}/pg_config"
if [ ! -x "$copy" ]; then
	mkdir -p "$dir"
	for part in "$bindir" "$libdir" "$sharedir"; do
		target="$dir/${part#"$root"/}"
		mkdir -p "$target"
		cp -a -L "$part/." "$target/"
	done
fi
make -s -C "$top" install PG_CONFIG="$pg_config" \
	bindir="$dir/${bindir#"$root"/}" \
	pkglibdir="$dir/${libdir#"$root"/}" \
	datadir="$dir/${sharedir#"$root"/}" \
	OUTBOX_TESTING="${OUTBOX_TESTING-}" with_llvm=no >&2
chmod -R a+rX "$dir"
echo "$copy"
