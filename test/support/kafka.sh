#!/bin/sh
# A real Apache Kafka (KRaft) on free ports of the loopback interface.
#
#   kafka.sh start DIR [--brokers N] [--auto-create true|false] [--partitions N]
#                      [--message-max-bytes N] [--sasl] [--tls]
#                      [--proxied] [--disks DIR] [--set property=value]
#   kafka.sh stop DIR               ends all brokers that start has started
#   kafka.sh kill DIR N             SIGKILL to broker N (1, 2, ...)
#   kafka.sh stop-broker DIR N      clean stop of broker N
#   kafka.sh start-broker DIR N [BROKERS]     starts it again, same port and data;
#                                  waits until so many answer (1; 0: does not wait)
#   kafka.sh freeze DIR N, thaw DIR N     SIGSTOP, SIGCONT
#
# start makes DIR, returns when all brokers answer, and leaves the servers to
# connect to in DIR/bootstrap.  Every node is broker and controller.  With --sasl
# clients need SASL_PLAINTEXT, PLAIN (users admin/admin-secret and app/app-secret),
# all is allowed that no ACL denies, and DIR/bootstrap.admin is an unprotected
# listener for administration.  With --tls there is one more listener, for TLS, in
# DIR/bootstrap.tls, where a client may have a certificate; see servers.sh.  With --proxied (and
# --sasl) clients are sent to other ports, where nobody listens: DIR/proxy has a line
# PORT:BROKER_PORT for each, as fault_proxy takes them.  With --disks broker N keeps its
# data below DIR/N, a disk of its own.  Only processes whose pid is in DIR, and that run
# with its files, are ever signalled.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
. "$here/versions.sh"
. "$here/servers.sh"
tree=$(cd "$here/../.." && pwd)
admin=${OUTBOX_BUILD:-$tree/build}/kafka_admin

say() {
	echo "kafka.sh: $*" >&2
}

run_java() {
	java ${OUTBOX_KAFKA_JAVA_OPTS:--Xms128m -Xmx512m -XX:+UseSerialGC -Xshare:auto} \
		-XX:-UsePerfData -Dorg.slf4j.simpleLogger.showDateTime=true \
		-cp "$kafka_home/lib/*" "$@"
}

# Is the pid in that file ours and alive?
pid_of() {
	pid=$(cat "$dir/$1/pid" 2>/dev/null) || return 1
	tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "$dir/$1/properties" || return 1
	echo "$pid"
}

write_properties() {
	node=$1 port=$2 controller=$3 internal=$4 tls_port=$5 advertised=$6
	mkdir -p "$dir/$node"
	data=$dir/$node
	[ -z "$disks" ] || data=$disks/$node/$(basename "$dir")
	mkdir -p "$data"
	cat >"$dir/$node/properties" <<-END
		process.roles=broker,controller
		node.id=$node
		controller.quorum.voters=$voters
		controller.listener.names=CONTROLLER
		log.dirs=$data/data
		offsets.topic.replication.factor=$replicas
		offsets.topic.num.partitions=4
		transaction.state.log.replication.factor=$replicas
		transaction.state.log.min.isr=1
		transaction.state.log.num.partitions=4
		default.replication.factor=$replicas
		min.insync.replicas=1
		group.initial.rebalance.delay.ms=0
		num.partitions=$partitions
		auto.create.topics.enable=$auto_create
		log.cleaner.dedupe.buffer.size=4194304
		log.segment.bytes=268435456
		broker.session.timeout.ms=6000
		controlled.shutdown.enable=true
	END
	[ -z "$message_max" ] || cat >>"$dir/$node/properties" <<-END
		message.max.bytes=$message_max
		replica.fetch.max.bytes=$message_max
	END
	listeners=CLIENT://127.0.0.1:$port
	protocols=CLIENT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT,TLS:SSL
	inter_broker=CLIENT
	if [ -n "$sasl" ]; then
		listeners=$listeners,INTERNAL://127.0.0.1:$internal
		protocols=CLIENT:SASL_PLAINTEXT,${protocols#*,}
		inter_broker=INTERNAL
		cat >>"$dir/$node/properties" <<-END
			sasl.enabled.mechanisms=PLAIN
			listener.name.client.sasl.enabled.mechanisms=PLAIN
			listener.name.client.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_admin="admin-secret" user_app="app-secret";
			authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
			allow.everyone.if.no.acl.found=true
			super.users=User:ANONYMOUS;User:admin
		END
	fi
	if [ -n "$tls" ]; then
		listeners=$listeners,TLS://127.0.0.1:$tls_port
		cat >>"$dir/$node/properties" <<-END
			listener.name.tls.ssl.keystore.type=PEM
			listener.name.tls.ssl.keystore.location=$dir/tls/keystore.pem
			listener.name.tls.ssl.truststore.type=PEM
			listener.name.tls.ssl.truststore.location=$dir/tls/ca.pem
			listener.name.tls.ssl.client.auth=requested
		END
	fi
	cat >>"$dir/$node/properties" <<-END
		listeners=$listeners,CONTROLLER://127.0.0.1:$controller
		advertised.listeners=CLIENT://127.0.0.1:$advertised${listeners#CLIENT://127.0.0.1:"$port"}
		listener.security.protocol.map=$protocols
		inter.broker.listener.name=$inter_broker
	END
	printf '%s' "$extra" >>"$dir/$node/properties"
}

launch() {
	# exec: so that $! is java's own
	(
		cd "$dir/$1"
		exec </dev/null >>"$dir/$1/log" 2>&1
		exec java ${OUTBOX_KAFKA_JAVA_OPTS:--Xms128m -Xmx512m -XX:+UseSerialGC -Xshare:auto} \
			-XX:-UsePerfData -Dorg.slf4j.simpleLogger.showDateTime=true \
			-cp "$kafka_home/lib/*" kafka.Kafka "$dir/$1/properties"
	) &
	echo $! >"$dir/$1/pid"
}

wait_brokers() {
	servers=$(cat "$dir/bootstrap.admin")
	"$admin" "$servers" brokers "$1" "${PG_TEST_TIMEOUT_DEFAULT:-90}" && return
	say "not ready; the end of its log:"
	tail -n 20 "$dir"/*/log >&2
	return 1
}

signal_broker() {
	pid=$(pid_of "$2") || return 0
	kill "-$1" "$pid"
}

wait_end() {
	waited=0
	while pid_of "$1" >/dev/null; do
		[ $waited -lt 300 ] || { signal_broker KILL "$1"; waited=0; }
		waited=$((waited + 1))
		sleep 0.1
	done
}

start() {
	brokers=1 auto_create=true partitions=4 message_max= sasl= tls= proxied= disks= extra=
	while [ $# -gt 0 ]; do
		case $1 in
			--brokers) brokers=$2; shift ;;
			--auto-create) auto_create=$2; shift ;;
			--partitions) partitions=$2; shift ;;
			--message-max-bytes) message_max=$2; shift ;;
			--sasl) sasl=yes ;;
			--tls) tls=yes ;;
			--proxied) proxied=yes ;;
			--disks) disks=$2; shift ;;
			--set) extra="$extra$2
"; shift ;;
			*) say "unknown: $1"; exit 2 ;;
		esac
		shift
	done
	replicas=$brokers
	set -- $(free_ports $((brokers * 5)))
	all=$*
	mkdir -p "$dir"
	: >"$dir/proxy"
	voters= bootstrap= bootstrap_admin= bootstrap_tls=
	for node in $(seq "$brokers"); do
		voters=$voters${voters:+,}$node@127.0.0.1:$2
		bootstrap=$bootstrap${bootstrap:+,}127.0.0.1:${proxied:+$5}
		[ -n "$proxied" ] || bootstrap=$bootstrap$1
		[ -z "$proxied" ] || echo "$5:$1" >>"$dir/proxy"
		bootstrap_admin=$bootstrap_admin${bootstrap_admin:+,}127.0.0.1:${sasl:+$3}
		[ -n "$sasl" ] || bootstrap_admin=$bootstrap
		bootstrap_tls=$bootstrap_tls${bootstrap_tls:+,}127.0.0.1:$4
		shift 5
	done
	set -- $all
	if [ -n "$tls" ]; then
		make_certificates "$dir"
		cat "$dir/tls/server.key" "$dir/tls/server.pem" >"$dir/tls/keystore.pem"
		echo "$bootstrap_tls" >"$dir/bootstrap.tls"
	fi
	for node in $(seq "$brokers"); do
		advertised=$1
		[ -z "$proxied" ] || advertised=$5
		write_properties "$node" "$1" "$2" "$3" "$4" "$advertised"
		shift 5
	done
	cluster=$(head -c 16 /dev/urandom | base64 | tr '+/' 'ab' | cut -c 1-22)
	formatting=
	for node in $(seq "$brokers"); do
		run_java kafka.tools.StorageTool format -t "$cluster" \
			-c "$dir/$node/properties" >"$dir/$node/log" 2>&1 &
		formatting="$formatting $!"
	done
	for pid in $formatting; do
		wait "$pid" || { cat "$dir"/*/log >&2; return 1; }
	done
	echo "$bootstrap" >"$dir/bootstrap"
	echo "$bootstrap_admin" >"$dir/bootstrap.admin"
	for node in $(seq "$brokers"); do
		launch "$node"
	done
	wait_brokers "$brokers" || { stop; return 1; }
}

stop() {
	for path in "$dir"/*/pid; do
		[ -e "$path" ] || continue
		node=$(basename "$(dirname "$path")")
		# nothing in here is worth a clean stop, which takes seconds
		signal_broker KILL "$node"
		wait_end "$node"
	done
}

[ $# -ge 2 ] || { say "see its first lines"; exit 2; }
command=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
shift 2
case $command in
	start) start "$@" ;;
	stop) stop ;;
	kill) signal_broker KILL "$1"; wait_end "$1" ;;
	stop-broker) signal_broker TERM "$1"; wait_end "$1" ;;
	start-broker)
		launch "$1"
		[ "${2:-1}" = 0 ] || wait_brokers "${2:-1}"
		;;
	freeze) signal_broker STOP "$1" ;;
	thaw) signal_broker CONT "$1" ;;
	*) say "unknown: $command"; exit 2 ;;
esac
