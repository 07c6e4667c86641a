#!/bin/sh
# A real NATS server with JetStream on a free port of the loopback interface.
#
#   nats.sh start DIR [--tls]     makes DIR, returns when the server answers
#   nats.sh stop DIR              ends it
#   nats.sh kill DIR              SIGKILL
#   nats.sh stop-server DIR       clean stop
#   nats.sh start-server DIR      starts it again, same ports and data; where it runs: nothing
#   nats.sh freeze DIR, thaw DIR  SIGSTOP, SIGCONT
#   nats.sh reload DIR            reads its settings again
#
# DIR/port is its port, and DIR/url what clients take.  Settings beyond that are in
# DIR/extra.conf, empty at first.  With --tls there is another server, a leaf of this one
# without JetStream of its own, for a server takes only TLS or none: its port is in
# DIR/tls_port, it asks for no password; DIR/tls/ca.pem has signed its certificate (and
# DIR/tls/client.pem), and DIR/tls/other-ca.pem has not.  It connects to this one as
# DIR/leaf_user says (user:password), if that is there, and does and suffers what this one
# does.  Only processes whose pid is in DIR, and that run with its files, are ever signalled.
set -eu

. "$(dirname "$0")/servers.sh"

say() {
	echo "nats.sh: $*" >&2
}

# Is the pid of a server, nats or leaf, ours and alive?
server_pid() {
	pid=$(cat "$dir/$1.pid" 2>/dev/null) || return 1
	tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -e "$dir/$1.conf" || return 1
	echo "$pid"
}

write_config() {
	cat >"$dir/nats.conf" <<-END
		listen: "127.0.0.1:$(cat "$dir/port")"
		server_name: outbox
		log_file: "$dir/nats.log"
		jetstream { domain: hub, store_dir: "$dir/data", max_memory_store: 64MB, max_file_store: 4GB }
		include ./extra.conf
	END
	[ -n "$tls" ] || return 0
	make_certificates "$dir"
	echo "leafnodes { listen: \"127.0.0.1:$(cat "$dir/leaf_port")\" }" >>"$dir/nats.conf"
	user=
	[ ! -e "$dir/leaf_user" ] || user=$(cat "$dir/leaf_user")@
	cat >"$dir/leaf.conf" <<-END
		listen: "127.0.0.1:$(cat "$dir/tls_port")"
		server_name: leaf
		default_js_domain: { "\$G": hub }
		log_file: "$dir/leaf.log"
		leafnodes { reconnect: 1, remotes: [ { url: "nats-leaf://${user}127.0.0.1:$(cat "$dir/leaf_port")" } ] }
		tls { cert_file: "$dir/tls/server.pem", key_file: "$dir/tls/server.key", ca_file: "$dir/tls/ca.pem" }
	END
}

answers() {
	perl -MIO::Socket::INET -e \
		'my $s = IO::Socket::INET->new(PeerAddr => "127.0.0.1:$ARGV[0]", Timeout => 1) or exit 1;
		exit(<$s> !~ /^INFO/)' "$(cat "$dir/$1")"
}

# Start a server, and wait for its port.
start_server() {
	server_pid "$1" >/dev/null && return
	setsid "$server" -c "$dir/$1.conf" </dev/null >>"$dir/out.log" 2>&1 &
	echo $! >"$dir/$1.pid"
	waited=0
	until answers "$2"; do
		if ! kill -0 "$(cat "$dir/$1.pid")" 2>/dev/null || [ "$waited" -gt 600 ]; then
			tail -n 30 "$dir/out.log" "$dir/$1.log" >&2
			say "the server $1 did not start"
			return 1
		fi
		waited=$((waited + 1))
		sleep 0.05
	done
}

gone() {
	waited=0
	while kill -0 "$1" 2>/dev/null && [ "$waited" -lt 400 ]; do
		# a zombie is gone, too
		case $(sed 's/.*) //; s/ .*//' "/proc/$1/stat" 2>/dev/null) in Z | '') return ;; esac
		waited=$((waited + 1))
		sleep 0.05
	done
}

start_servers() {
	start_server nats port
	[ ! -e "$dir/leaf.conf" ] || start_server leaf tls_port
}

signal_servers() {
	for name in leaf nats; do
		pid=$(server_pid $name) && kill -"$1" "$pid"
	done
	return 0
}

end_servers() {
	end_server leaf "$1"
	end_server nats "$1"
}

end_server() {
	pid=$(server_pid "$1") || return 0
	kill -CONT "$pid" 2>/dev/null || true
	kill -"$2" "$pid" 2>/dev/null || true
	gone "$pid"
	kill -0 "$pid" 2>/dev/null && kill -KILL "$pid" 2>/dev/null
	gone "$pid"
}

[ $# -ge 2 ] || { sed -n '2,/^set/p' "$0" | sed '$d' >&2; exit 2; }
command=$1 dir=$2
shift 2
server=$(PATH="$PATH:/usr/sbin" command -v nats-server) || {
	say "nats-server is missing: test/support/deps.sh nats"
	exit 1
}
case $command in
	start)
		tls=
		[ "${1:-}" != --tls ] || tls=yes
		mkdir -p "$dir/data"
		dir=$(cd "$dir" && pwd)
		set -- $(free_ports 3)
		for name in port leaf_port tls_port; do
			echo "$1" >"$dir/$name"
			shift
		done
		echo "nats://127.0.0.1:$(cat "$dir/port")" >"$dir/url"
		[ -e "$dir/extra.conf" ] || : >"$dir/extra.conf"
		write_config
		start_servers
		;;
	stop)
		[ -d "$dir" ] || exit 0
		dir=$(cd "$dir" && pwd)
		end_servers TERM
		;;
	kill) dir=$(cd "$dir" && pwd) && end_servers KILL ;;
	stop-server) dir=$(cd "$dir" && pwd) && end_servers TERM ;;
	start-server) dir=$(cd "$dir" && pwd) && start_servers ;;
	freeze) dir=$(cd "$dir" && pwd) && signal_servers STOP ;;
	thaw) dir=$(cd "$dir" && pwd) && signal_servers CONT ;;
	reload) dir=$(cd "$dir" && pwd) && kill -HUP "$(server_pid nats)" ;;
	*) say "unknown: $command"; exit 2 ;;
esac
