# What the scripts that start servers for tests share; they source it.

# So many ports of the loopback interface that nobody has.
free_ports() {
	perl -MIO::Socket::INET -e '
		my @s = map { IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1") or die } 1 .. $ARGV[0];
		print join(" ", map { $_->sockport } @s), "\n"' "$1"
}

# In DIR/tls: a CA (ca.pem), what it has signed for a server at 127.0.0.1 (server.pem,
# server.key) and for a client (client.pem, client.key), and another CA (other-ca.pem).
make_certificates() {
	mkdir -p "$1/tls"
	write_certificates "$1/tls" >"$1/openssl.log" 2>&1 || { cat "$1/openssl.log" >&2; return 1; }
}

write_certificates() {
	for ca in ca other-ca; do
		openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj "/CN=$ca" \
			-keyout "$1/$ca.key" -out "$1/$ca.pem" || return 1
	done
	echo subjectAltName=IP:127.0.0.1,DNS:localhost >"$1/server.extensions"
	echo extendedKeyUsage=clientAuth >"$1/client.extensions"
	for who in server client; do
		openssl req -newkey rsa:2048 -nodes -subj /CN=$who \
			-keyout "$1/$who.key" -out "$1/$who.csr" &&
			openssl x509 -req -days 30 -in "$1/$who.csr" -extfile "$1/$who.extensions" \
				-CA "$1/ca.pem" -CAkey "$1/ca.key" -CAcreateserial -out "$1/$who.pem" || return 1
	done
}
