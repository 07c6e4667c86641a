# A real NATS server with JetStream for tests, started and ended by test/support/nats.sh.
#
#   my $nats = OutboxNats->start;                  tls => 1: TLS at tls_url; users => 1
#   $nats->stream('EVENTS', 'orders.>');           further settings as JetStream has them
#   my @messages = $nats->consume('orders.a');     hashes, see OutboxConsumed
#   $nats->publish('orders.a', 'payload', 'Nats-Msg-Id' => 'x');
#
# With users there are admin, who may everything, and app, who may what allow() says.
# What a test starts is ended with it, also when it fails.
package OutboxNats;

use strict;
use warnings;

use File::Basename qw(dirname);
use File::Temp;
use IO::Socket::INET;
use IPC::Run ();
use JSON::PP ();
use OutboxConsumed;

my $tree = dirname(__FILE__) . '/../..';
my $build = $ENV{OUTBOX_BUILD} || "$tree/build";
my $json = JSON::PP->new->utf8->canonical;
my @started;

# What the tests of NATS need is on the machine.
sub available
{
	return -x "$build/nats_consume" && grep { -x "$_/nats-server" } split(/:/, $ENV{PATH}), '/usr/sbin';
}

sub start
{
	my ($class, %options) = @_;
	my $self = bless {
		dir => File::Temp::tempdir('outbox-nats-XXXXXX', TMPDIR => 1), stream => 'EVENTS',
		users => $options{users}, settings => $options{settings} || '' }, $class;

	push @started, $self;
	$self->_write('leaf_user', 'admin:admin-secret') if $self->{users};
	$self->_write_settings;
	$self->control('start', $options{tls} ? '--tls' : ());
	return $self;
}

# A command of nats.sh; dies where that fails.
sub control
{
	my ($self, $command, @arguments) = @_;
	local $?;
	delete $self->{socket};
	system("$tree/test/support/nats.sh", $command, $self->{dir}, @arguments) == 0
	  or die "nats.sh $command failed\n";
	return;
}

sub stop
{
	my ($self) = @_;
	return if $self->{stopped}++;
	$self->control('stop');
	system('rm', '-rf', $self->{dir});
	return;
}

sub kill_server { return $_[0]->control('kill') }
sub stop_server { return $_[0]->control('stop-server') }
sub start_server { return $_[0]->control('start-server') }
sub freeze { return $_[0]->control('freeze') }
sub thaw { return $_[0]->control('thaw') }

sub _file
{
	my ($self, $name) = @_;
	open my $f, '<', "$self->{dir}/$name" or die "$name: $!\n";
	my $text = do { local $/; <$f> };
	chomp $text;
	return $text;
}

sub _write
{
	my ($self, $name, $text) = @_;
	open my $f, '>', "$self->{dir}/$name" or die "$name: $!\n";
	print $f $text;
	close $f or die "$name: $!\n";
	return;
}

sub port { return $_[0]->_file('port') }
sub url { return $_[0]->_file('url') }
sub tls_url { return 'tls://127.0.0.1:' . $_[0]->_file('tls_port') }

# The text of a file of its certificates: ca, other-ca, client; client.key.
sub certificate
{
	my ($self, $name) = @_;
	return $self->_file('tls/' . ($name =~ /\.key$/ ? $name : "$name.pem")) . "\n";
}

# --- settings -------------------------------------------------------------------------

sub _write_settings
{
	my ($self) = @_;
	my $text = $self->{settings};

	if ($self->{users})
	{
		my $permissions = $json->encode($self->{permissions} || {});
		$text .= qq{\nauthorization { users: [ { user: admin, password: admin-secret },
			{ user: app, password: app-secret, permissions: $permissions } ] }\n};
	}
	$self->_write('extra.new', $text);
	rename "$self->{dir}/extra.new", "$self->{dir}/extra.conf" or die "$!";
	return;
}

# The server reads these settings, instead of what start() had.
sub reload
{
	my ($self, %options) = @_;
	$self->{$_} = $options{$_} for keys %options;
	$self->_write_settings;
	my $before = () = $self->_file('nats.log') =~ /Reloaded server configuration|Failed to reload/g;
	$self->control('reload');
	for (1 .. 200)
	{
		my $now = () = $self->_file('nats.log') =~ /Reloaded server configuration|Failed to reload/g;
		return if $now > $before;
		select undef, undef, undef, 0.05;
	}
	die "the server did not reload its settings\n";
}

# What user app may: publish => { deny => ['x'] }, subscribe => ...; nothing: all.
sub allow { my ($self, %permissions) = @_; return $self->reload(permissions => \%permissions) }

# --- a small client -------------------------------------------------------------------

sub _socket
{
	my ($self) = @_;
	return $self->{socket} if $self->{socket};
	my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1:' . $self->port) or die "nats: $!\n";
	my %connect = (verbose => JSON::PP::false, pedantic => JSON::PP::false, headers => JSON::PP::true,
		no_responders => JSON::PP::true, lang => 'perl', version => '1', protocol => 1);

	@connect{qw(user pass)} = qw(admin admin-secret) if $self->{users};
	$self->{inbox} = "_INBOX.test.$$." . int rand 1e9;
	$self->{replies} = 0;
	readline $socket;
	print $socket 'CONNECT ' . $json->encode(\%connect) . "\r\nSUB $self->{inbox}.* 1\r\n";
	return $self->{socket} = $socket;
}

# The next message to our inbox: its payload.
sub _reply
{
	my ($self) = @_;
	my $socket = $self->_socket;
	local $SIG{ALRM} = sub { die "no reply from the NATS server\n" };
	my $left = alarm 30;

	while (defined(my $line = readline $socket))
	{
		print $socket "PONG\r\n" if $line =~ /^PING/;
		die "nats: $line" if $line =~ /^-ERR/;
		next unless $line =~ /^(H?)MSG \S+ \S+ +(?:(\d+) +)?(\d+)\r/;
		my ($headers, $size) = ($1 ? $2 : 0, $3);
		read($socket, my $data, $size + 2) == $size + 2 or last;
		alarm $left;
		die "nats: nobody listens there\n" if substr($data, 0, $headers) =~ m{^NATS/1.0 503};
		return substr($data, $headers, $size - $headers);
	}
	die "the NATS server has closed the connection\n";
}

# Sends one message with a reply subject, and returns the reply.
sub _ask
{
	my ($self, $subject, $payload, @headers) = @_;
	my $reply = $self->_socket && "$self->{inbox}." . ++$self->{replies};
	my $block = @headers ? "NATS/1.0\r\n" : '';

	while (my ($name, $value) = splice @headers, 0, 2)
	{
		$block .= "$name: $value\r\n";
	}
	$block .= "\r\n" if $block;
	my $sizes = $block ? length($block) . ' ' . (length($block) + length $payload) : length $payload;
	print { $self->_socket } ($block ? 'HPUB' : 'PUB') . " $subject $reply $sizes\r\n$block$payload\r\n";
	return $self->_reply;
}

# A request to JetStream's API: its answer, decoded; dies where that is an error.
sub api
{
	my ($self, $what, $body) = @_;
	my $answer = $json->decode($self->_ask("\$JS.API.$what", defined $body ? $json->encode($body) : ''));

	die "$what: $answer->{error}{description}\n" if $answer->{error};
	return $answer;
}

# Publishes as any producer may, and waits until it is stored.
sub publish
{
	my ($self, $subject, $payload, @headers) = @_;
	my $answer = $json->decode($self->_ask($subject, $payload, @headers));
	die "$subject: $answer->{error}{description}\n" if $answer->{error};
	return $answer->{seq};
}

# --- streams ---------------------------------------------------------------------------

# Makes one, of these subjects (an array, or one).
sub stream
{
	my ($self, $name, $subjects, %settings) = @_;
	return $self->api("STREAM.CREATE.$name",
		{ name => $name, subjects => ref $subjects ? $subjects : [$subjects], retention => 'limits',
			max_consumers => -1, max_msgs => -1, max_bytes => -1, max_age => 0, max_msg_size => -1,
			max_msgs_per_subject => -1, discard => 'old', storage => 'file', num_replicas => 1, %settings });
}

# Changes settings of one.
sub alter_stream
{
	my ($self, $name, %settings) = @_;
	my $config = $self->stream_info($name)->{config};
	return $self->api("STREAM.UPDATE.$name", { %$config, %settings });
}

sub stream_info { my ($self, $name) = @_; return $self->api("STREAM.INFO.$name") }
sub delete_stream { my ($self, $name) = @_; return $self->api("STREAM.DELETE.$name") }
sub purge { my ($self, $name, %what) = @_; return $self->api("STREAM.PURGE.$name", \%what) }

# --- reading ----------------------------------------------------------------------------

# Runs nats_consume on subjects of a stream; options as its own: n, timeout, payload, out.
sub consume_raw
{
	my ($self, $subjects, %options) = @_;
	my @command = ("$build/nats_consume");
	my ($out, $err) = ('', '');

	push @command, '-n', $options{n} if $options{n};
	push @command, '-t', $options{timeout} || 60;
	push @command, '-p', $options{payload} || 'hex';
	push @command, '-o', $options{out} if $options{out};
	push @command, '-u', 'admin:admin-secret' if $self->{users};
	local $?;
	IPC::Run::run([ @command, $self->url, $options{stream} || $self->{stream}, @$subjects ],
		'>', \$out, '2>', \$err) or warn "nats_consume: $err";
	return $out;
}

# What is in a subject (or several: an array), in order: hashes.
sub consume
{
	my ($self, $subject, %options) = @_;
	return OutboxConsumed::messages(
		$self->consume_raw(ref $subject ? $subject : [$subject], %options, payload => 'hex'));
}

sub count { my ($self, $subject, %options) = @_; return scalar(my @m = $self->consume($subject, %options)) }

END
{
	local $?;
	eval { $_->stop } for @started;
}

1;
