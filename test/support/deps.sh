#!/bin/sh
# Installs what is missing on Debian 12 or 13, and only that; quiet when all is there.
#
#   test/support/deps.sh [what ...]       default: postgres rdkafka kafka pgnext
#
#   postgres  the distribution's PostgreSQL, its headers and test modules, a compiler
#   plpython  PL/Python for it
#   rdkafka   librdkafka's headers
#   rdkafka-new   the newest librdkafka, built from Debian's source into the cache
#   kafka     Java, and Apache Kafka's jars by Maven into the cache
#   nats      NATS' server, its client library for C, OpenSSL's headers
#   rabbitmq  RabbitMQ, its client library for C, OpenSSL's headers
#   pgnext    a newer PostgreSQL, built from Debian's source into the cache
#   kcat      an independent Kafka client
#   redis     Redis' tools, for the benchmark
#   fuzz      clang with libFuzzer and the sanitizers
#   coverage  lcov
#   valgrind  valgrind, and the newer PostgreSQL once more, built to help it
#   analyze   clang and cppcheck
#   cc        gcc, and no PostgreSQL
#
# As root, or as a user who may sudo.  Servers that run are left alone, and
# PostgreSQL's package makes no cluster of its own where it is new.  The cache is
# outside the tree (see versions.sh), so that a fresh clone finds what an earlier
# one has built.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
. "$here/versions.sh"

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	else
		sudo "$@"
	fi
}

say() {
	echo "deps: $*" >&2
}

# apt's own output only matters when it fails
apt_log=$(mktemp)
trap 'rm -f "$apt_log"' EXIT
updated=

run_apt() {
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y \
		-o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 "$@" >"$apt_log" 2>&1 </dev/null
}

install_packages() {
	missing=
	for package in "$@"; do
		dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null |
			grep -qx installed || missing="$missing $package"
	done
	[ -n "$missing" ] || return 0
	say "installing$missing"
	if [ -z "$updated" ]; then
		run_apt update || { cat "$apt_log" >&2; return 1; }
		updated=yes
	fi
	run_apt install --no-install-recommends $missing || { cat "$apt_log" >&2; return 1; }
}

no_main_cluster() {
	[ -e /etc/postgresql-common ] || {
		as_root mkdir -p /etc/postgresql-common
		printf '%s\n' 'create_main_cluster = false' "add_include_dir = 'conf.d'" |
			as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
	}
}

need_postgres() {
	no_main_cluster
	install_packages postgresql-$system_major postgresql-server-dev-$system_major libpq-dev libipc-run-perl \
		gcc make pkg-config libc6-dev perl procps util-linux
}

need_plpython() {
	install_packages postgresql-plpython3-$system_major
}

need_cc() {
	install_packages gcc make libc6-dev
}

need_rdkafka() {
	install_packages librdkafka-dev gcc libc6-dev
}

need_rdkafka_new() {
	[ -e "$rdkafka_new/complete" ] && return
	install_packages gcc make libc6-dev python3 pkg-config libssl-dev libsasl2-dev zlib1g-dev \
		liblz4-dev dpkg-dev
	"$here/build-rdkafka.sh"
}

# Any Java from 17 on will do.
need_java() {
	major=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p')
	[ "${major:-0}" -ge 17 ] || install_packages default-jre-headless
}

need_kafka() {
	need_java
	command -v openssl >/dev/null || install_packages openssl
	[ -e "$kafka_home/complete" ] && return
	command -v mvn >/dev/null || install_packages maven
	say "fetching Apache Kafka $kafka_version"
	mkdir -p "$kafka_home/lib"
	sed "s/@VERSION@/$kafka_version/" "$here/kafka-pom.xml" >"$kafka_home/pom.xml"
	mvn -q -B -f "$kafka_home/pom.xml" dependency:copy-dependencies \
		-DoutputDirectory="$kafka_home/lib" >"$apt_log" 2>&1 </dev/null ||
		{ cat "$apt_log" >&2; return 1; }
	chmod -R a+rX "$kafka_home"
	touch "$kafka_home/complete"
}

build_tools() {
	install_packages gcc make libc6-dev perl libipc-run-perl bison flex \
		zlib1g-dev dpkg-dev xz-utils bzip2
}

need_pgnext() {
	pgnext_config >/dev/null && return
	build_tools
	"$here/build-postgres.sh"
}

need_kcat() {
	install_packages kcat
}

need_nats() {
	install_packages nats-server libnats-dev libssl-dev openssl gcc libc6-dev
}

need_rabbitmq() {
	install_packages rabbitmq-server librabbitmq-dev libssl-dev openssl gcc libc6-dev
}

need_redis() {
	install_packages redis-tools
}

need_fuzz() {
	install_packages clang-14 libclang-rt-14-dev
}

need_coverage() {
	install_packages lcov
}

need_valgrind() {
	install_packages valgrind
	pgnext_config valgrind >/dev/null && return
	build_tools
	"$here/build-postgres.sh" valgrind
}

need_analyze() {
	install_packages clang-14 cppcheck
}

[ $# -gt 0 ] || set -- postgres rdkafka kafka pgnext
for what; do
	case $what in
		rdkafka-new) need_rdkafka_new ;;
		postgres | plpython | rdkafka | kafka | pgnext | kcat | redis | nats | rabbitmq | fuzz | coverage | valgrind | analyze | cc)
			"need_$what"
			;;
		*) echo "deps.sh: unknown: $what" >&2; exit 2 ;;
	esac
done
