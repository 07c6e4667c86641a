#!/bin/sh
# Runs a command as an ordinary user, since servers refuse to run as root:
# as postgres, else nobody, when we are root; directly otherwise.
set -eu

[ "$(id -u)" = 0 ] || exec "$@"
user=postgres
id "$user" >/dev/null 2>&1 || user=nobody
exec runuser -u "$user" -- env HOME=/nonexistent USER="$user" LOGNAME="$user" "$@"
