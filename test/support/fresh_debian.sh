#!/bin/sh
# Runs a command in a fresh Debian, to see that nothing is missing there.
#
#   test/support/fresh_debian.sh DIR make demo
#   test/support/fresh_debian.sh --user DIR make demo      as one who may sudo
#   SUITE=trixie test/support/fresh_debian.sh ...          Debian 13 instead of 12
#
# As root.  DIR is made by debootstrap if it isn't there; what is committed is
# cloned into root's or the user's home directory there.  Only /proc is mounted, and
# unmounted at the end, so DIR can be removed like any directory.
set -eu

as=root
[ "$1" != --user ] || { as=dev; shift; }
dir=$1
shift
tree=$(cd "$(dirname "$0")/../.." && pwd)
. "$tree/test/support/versions.sh"
mirror=${DEBIAN_MIRROR:-$(debian_mirror)}

command -v debootstrap >/dev/null || apt-get install -q -y debootstrap
[ -e "$dir/etc/debian_version" ] ||
	debootstrap --variant=minbase --include=git,make,ca-certificates "${SUITE:-bookworm}" "$dir" "$mirror"

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
in_chroot() {
	chroot "$dir" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
}
home=/root
if [ $as != root ]; then
	home=/home/$as
	in_chroot sh -c 'command -v sudo >/dev/null || { apt-get -q update && apt-get -q -y install sudo; }'
	in_chroot sh -c "id $as >/dev/null 2>&1 || useradd -m -s /bin/sh $as"
	echo "$as ALL=(ALL) NOPASSWD: ALL" >"$dir/etc/sudoers.d/$as"
fi
rm -rf "$dir$home/pg_outbox"
git clone -q "$tree" "$dir$home/pg_outbox"
in_chroot chown -R $as: "$home/pg_outbox"
in_chroot setpriv --reuid=$as --regid=$as --init-groups \
	env HOME=$home USER=$as LOGNAME=$as sh -c 'cd ~/pg_outbox && exec "$@"' sh "$@"
