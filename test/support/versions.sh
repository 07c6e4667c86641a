# Sourced: where cached components are, and which versions.

# Outside the tree, so that every clone finds it.  Root's own is no home directory:
# the ordinary user that runs its servers could not enter it.
if [ -n "${OUTBOX_CACHE:-}" ]; then
	cache=$OUTBOX_CACHE
elif [ "$(id -u)" = 0 ]; then
	cache=/var/cache/pg_outbox
else
	cache=${XDG_CACHE_HOME:-$HOME/.cache}/pg_outbox
fi
export OUTBOX_CACHE=$cache

# Not newer: the coordinators of 4.3.0 to 4.4.0 take a partition that has no leader for
# one that was deleted, and leave a transaction's end out there (KAFKA-20734).
kafka_version=4.2.2
kafka_home=$cache/kafka-$kafka_version

# The newest librdkafka, beside the system's; see build-rdkafka.sh.
rdkafka_new=$cache/rdkafka-new

# The first PostgreSQL major is what the distribution has; the second one is newer: in
# order of preference, with the Debian suites whose source packages may have it.
case $(sed -n 's/^VERSION_ID="\{0,1\}\([0-9]*\).*/\1/p' /etc/os-release) in
	13) system_major=17 pgnext_majors=18 ;;
	24) system_major=16 pgnext_majors="17 18" ;;
	*) system_major=15 pgnext_majors="17 18" ;;
esac
pgnext_suites_17="trixie trixie-security trixie-updates"
pgnext_suites_18="sid forky"

system_config=${PG_CONFIG:-/usr/lib/postgresql/$system_major/bin/pg_config}

# pgnext_config [VARIANT of build-postgres.sh]
pgnext_config() {
	for major in $pgnext_majors; do
		built=$cache/pg$major${1:+-$1}
		if [ -x "$built/bin/pg_config" ] && [ -e "$built/complete" ]; then
			echo "$built/bin/pg_config"
			return 0
		fi
	done
	return 1
}

# The first URI of the machine's apt sources that serves Debian itself.
debian_mirror() {
	{
		sed -n 's/^URIs: *\([^ ]*\).*/\1/p' /etc/apt/sources.list.d/*.sources || true
		sed -n 's/^deb  *\(\[[^]]*\]  *\)\{0,1\}\([^ ]*\) .*/\2/p' \
			/etc/apt/sources.list /etc/apt/sources.list.d/*.list || true
	} 2>/dev/null | grep -E '/debian/?$' | head -1
}
