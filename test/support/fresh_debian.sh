#!/bin/sh
# Runs a command in a fresh Debian 12, to see that nothing is missing there.
#
#   test/support/fresh_debian.sh DIR make demo
#
# As root.  DIR is made by debootstrap if it isn't there; what is committed is
# cloned to DIR/root/pg_outbox.  Only /proc is mounted, and unmounted at the end, so
# DIR can be removed like any directory.
set -eu

dir=$1
shift
tree=$(cd "$(dirname "$0")/../.." && pwd)
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

command -v debootstrap >/dev/null || apt-get install -q -y debootstrap
[ -e "$dir/etc/debian_version" ] ||
	debootstrap --variant=minbase --include=git,make,ca-certificates bookworm "$dir" "$mirror"

# names and certificates as on this machine
cp /etc/resolv.conf /etc/hosts "$dir/etc/"
if [ -d /usr/local/share/ca-certificates ]; then
	mkdir -p "$dir/usr/local/share/ca-certificates"
	cp -a /usr/local/share/ca-certificates/. "$dir/usr/local/share/ca-certificates/"
	chroot "$dir" update-ca-certificates >/dev/null 2>&1
fi
mkdir -p "$dir/dev/shm"
chmod 1777 "$dir/dev/shm"
mount -t proc proc "$dir/proc"
trap 'umount "$dir/proc"' EXIT
rm -rf "$dir/root/pg_outbox"
git clone -q "$tree" "$dir/root/pg_outbox"
chroot "$dir" /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	sh -c 'cd /root/pg_outbox && exec "$@"' sh "$@"
