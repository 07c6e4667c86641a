#!/bin/sh
# A real RabbitMQ on free ports of the loopback interface.
#
#   rabbit.sh start DIR [--tls]    makes DIR, returns when the node answers
#   rabbit.sh stop DIR             ends all that start has started
#   rabbit.sh kill DIR             SIGKILL to the node
#   rabbit.sh stop-node DIR        clean stop of the node
#   rabbit.sh start-node DIR       starts it again, same ports and data
#   rabbit.sh freeze DIR, thaw DIR     SIGSTOP, SIGCONT
#   rabbit.sh ctl DIR ARGUMENTS    rabbitmqctl
#
# DIR/port is the port of AMQP, DIR/http that of the management interface; user
# guest, password guest, may do everything.  With --tls DIR/tls_port takes AMQP over
# TLS; DIR/tls/ca.pem has signed the broker's certificate (and DIR/tls/client.pem),
# and DIR/tls/other-ca.pem has not.  The node has a name, a cookie and an epmd of its
# own, so that it meets no other one of the machine.  Only processes whose pid is in
# DIR, and that run with its files, are ever signalled.  Not as root.
set -eu

. "$(dirname "$0")/servers.sh"

say() {
	echo "rabbit.sh: $*" >&2
}

sbin=$(ls -d /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin 2>/dev/null | tail -n 1)

# Is the pid in that file ours and alive?
pid_of() {
	pid=$(cat "$dir/$1.pid" 2>/dev/null) || return 1
	tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -e "$2" || return 1
	echo "$pid"
}

node_pid() { pid_of node "-outbox_dir $dir/"; }
epmd_pid() { pid_of epmd "-port $(cat "$dir/epmd_port")"; }

# Becomes a command in the node's environment.
in_env() {
	exec env HOME="$dir" ERL_EPMD_PORT="$(cat "$dir/epmd_port")" ERL_EPMD_ADDRESS=127.0.0.1 \
		RABBITMQ_CONF_ENV_FILE=/dev/null RABBITMQ_NODENAME=outbox@localhost \
		RABBITMQ_DIST_PORT="$(cat "$dir/dist_port")" RABBITMQ_CONFIG_FILE="$dir/rabbitmq.conf" \
		RABBITMQ_ADVANCED_CONFIG_FILE="$dir/advanced.config" \
		RABBITMQ_MNESIA_BASE="$dir/data" RABBITMQ_LOG_BASE="$dir/log" \
		RABBITMQ_ENABLED_PLUGINS_FILE="$dir/plugins" RABBITMQ_PID_FILE="$dir/rabbit.pid" \
		RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 -outbox_dir $dir/" \
		RUNNING_UNDER_SYSTEMD=true "$@"
}

write_config() {
	cat >"$dir/rabbitmq.conf" <<-END
		listeners.tcp.1 = 127.0.0.1:$(cat "$dir/port")
		management.tcp.ip = 127.0.0.1
		management.tcp.port = $(cat "$dir/http")
		management_agent.disable_metrics_collector = true
		vm_memory_high_watermark.relative = 0.6
		disk_free_limit.absolute = 10MB
		log.file.level = info
	END
	echo '[].' >"$dir/advanced.config"
	echo '[rabbitmq_management].' >"$dir/plugins"
	[ -n "$tls" ] || return 0
	make_certificates "$dir"
	cat >>"$dir/rabbitmq.conf" <<-END
		listeners.ssl.1 = 127.0.0.1:$(cat "$dir/tls_port")
		ssl_options.cacertfile = $dir/tls/ca.pem
		ssl_options.certfile = $dir/tls/server.pem
		ssl_options.keyfile = $dir/tls/server.key
		ssl_options.verify = verify_peer
		ssl_options.fail_if_no_peer_cert = false
	END
}

start_epmd() {
	epmd_pid >/dev/null && return
	setsid epmd -port "$(cat "$dir/epmd_port")" -address 127.0.0.1 </dev/null >"$dir/epmd.log" 2>&1 &
	echo $! >"$dir/epmd.pid"
}

# The node answers on its AMQP port, and its management interface does.
answers() {
	for port in port http; do
		perl -MIO::Socket::INET -e \
			'exit !IO::Socket::INET->new(PeerAddr => "127.0.0.1:$ARGV[0]")' "$(cat "$dir/$port")" || return 1
	done
}

start_node() {
	start_epmd
	cd "$dir"
	(in_env setsid "$sbin/rabbitmq-server") </dev/null >>"$dir/out.log" 2>&1 &
	echo $! >"$dir/node.pid"
	waited=0
	until answers; do
		if ! kill -0 "$(cat "$dir/node.pid")" 2>/dev/null || [ "$waited" -gt 1200 ]; then
			tail -n 30 "$dir/out.log" >&2
			say "the node did not start"
			return 1
		fi
		waited=$((waited + 1))
		sleep 0.1
	done
}

gone() {
	waited=0
	while kill -0 "$1" 2>/dev/null && [ "$waited" -lt 600 ]; do
		# a zombie is gone, too
		case $(sed 's/.*) //; s/ .*//' "/proc/$1/stat" 2>/dev/null) in Z | '') return ;; esac
		waited=$((waited + 1))
		sleep 0.05
	done
}

end_node() {
	pid=$(node_pid) || return 0
	kill -CONT "$pid" 2>/dev/null || true
	kill -"$1" "$pid" 2>/dev/null || true
	gone "$pid"
	kill -0 "$pid" 2>/dev/null && kill -KILL "$pid" 2>/dev/null
	gone "$pid"
}

[ $# -ge 2 ] || { sed -n '2,/^set/p' "$0" | sed '$d' >&2; exit 2; }
command=$1 dir=$2
shift 2
case $command in
	start)
		tls=
		[ "${1:-}" != --tls ] || tls=yes
		[ -n "$sbin" ] || { say "rabbitmq-server is missing: test/support/deps.sh rabbitmq"; exit 1; }
		mkdir -p "$dir/log" "$dir/data"
		dir=$(cd "$dir" && pwd)
		set -- $(free_ports 5)
		for name in port http epmd_port dist_port tls_port; do
			echo "$1" >"$dir/$name"
			shift
		done
		write_config
		start_node
		;;
	stop)
		[ -d "$dir" ] || exit 0
		end_node TERM
		if pid=$(epmd_pid); then
			kill "$pid" 2>/dev/null || true
			gone "$pid"
		fi
		;;
	kill) end_node KILL ;;
	stop-node) end_node TERM ;;
	start-node) dir=$(cd "$dir" && pwd) && start_node ;;
	freeze) kill -STOP "$(node_pid)" ;;
	thaw) kill -CONT "$(node_pid)" ;;
	ctl) in_env "$sbin/rabbitmqctl" -q "$@" ;;
	*) say "unknown: $command"; exit 2 ;;
esac
