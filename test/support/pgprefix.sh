#!/bin/sh
# Makes a private copy of a PostgreSQL installation, so that tests never install
# into the system's and several checkouts can test at the same time.
#
#   test/support/pgprefix.sh PG_CONFIG DIR     prints the copy's pg_config
#
# PostgreSQL finds its directories relative to its programs, as long as their
# layout below a common root is kept.  That root is / or /usr for a
# distribution's package, the prefix for one that was built here.  Nothing is
# copied again while the original is the same.
set -eu

config=$1
dir=$2

bindir=$("$config" --bindir)
stamp="$("$config" --version) $(stat -c '%Y %i' "$bindir/postgres")"
# another package may have brought a language or an extension since
stamp="$stamp $(stat -c '%Y' "$("$config" --pkglibdir)" "$("$config" --sharedir)/extension" | tr '\n' ' ')"

# the longest directory that holds both programs and libraries
root=$bindir
case $("$config" --pkglibdir)/ in
	"$bindir"/*) ;;
esac
while :; do
	inside=yes
	for what in pkglibdir sharedir includedir-server; do
		case $("$config" --$what)/ in
			"$root"/*) ;;
			*) inside= ;;
		esac
	done
	[ -z "$inside" ] || break
	root=$(dirname "$root")
done
[ "$root" != / ] || { echo "pgprefix.sh: $config spans the whole file system" >&2; exit 1; }

copy=$dir${bindir#"$root"}/pg_config
if [ "$(cat "$dir/stamp" 2>/dev/null)" != "$stamp" ]; then
	rm -rf "$dir"
	mkdir -p "$dir"
	# libdir and includedir may be the system's own: only what is PostgreSQL's
	for what in bindir pkglibdir sharedir includedir-server; do
		from=$("$config" --$what)
		to=$dir${from#"$root"}
		[ ! -e "$to" ] || continue
		mkdir -p "$(dirname "$to")"
		cp -aL "$from" "$to"
	done
	# a prefix of its own: libpq and the headers beside the server's
	if [ -e "$root/lib/libpq.so" ]; then
		cp -a "$root"/lib/*.so* "$root"/lib/*.a "$dir/lib/" 2>/dev/null || true
		[ -e "$dir/include/pg_config.h" ] || cp -an "$root/include/." "$dir/include/"
	fi
	chmod -R a+rX "$dir"
	[ "$("$copy" --pkglibdir)" = "$dir${bindir#"$root"}/../lib" ] ||
		case $("$copy" --pkglibdir) in
			"$dir"/*) ;;
			*) echo "pgprefix.sh: the copy in $dir looks elsewhere" >&2; exit 1 ;;
		esac
	echo "$stamp" >"$dir/stamp"
fi
echo "$copy"
