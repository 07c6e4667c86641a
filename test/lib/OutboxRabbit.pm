# A real RabbitMQ for tests, started and ended by test/support/rabbit.sh.
#
#   my $rabbit = OutboxRabbit->start;              tls => 1: for TLS too
#   $pg->create_rabbit_server... see server_options
#   $rabbit->exchange('events', 'topic');
#   $rabbit->queue('q'); $rabbit->bind('events', 'q', 'orders.*');
#   my @messages = $rabbit->consume('q');          hashes, as OutboxKafka's
#
# A node takes some seconds to start: share one in a file.  What a test starts is
# ended with it, also when it fails.
package OutboxRabbit;

use strict;
use warnings;

use File::Basename qw(dirname);
use File::Temp;
use HTTP::Tiny;
use IPC::Run ();
use JSON::PP ();
use MIME::Base64 qw(encode_base64);
use OutboxConsumed;

my $tree = dirname(__FILE__) . '/../..';
my $build = $ENV{OUTBOX_BUILD} || "$tree/build";
my $json = JSON::PP->new->utf8->canonical;
my @started;

# What the tests of RabbitMQ need is on the machine.
sub available
{
	my @servers = glob '/usr/lib/rabbitmq/lib/*/sbin/rabbitmq-server';
	return -x "$build/rabbit_consume" && @servers > 0;
}

sub start
{
	my ($class, %options) = @_;
	my $self = bless {
		dir => File::Temp::tempdir('outbox-rabbit-XXXXXX', TMPDIR => 1), vhost => '/' }, $class;

	push @started, $self;
	$self->control('start', $options{tls} ? '--tls' : ());
	return $self;
}

# A command of rabbit.sh; dies where that fails.
sub control
{
	my ($self, $command, @arguments) = @_;
	local $?;
	system("$tree/test/support/rabbit.sh", $command, $self->{dir}, @arguments) == 0
	  or die "rabbit.sh $command failed\n";
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

sub kill_node { return $_[0]->control('kill') }
sub stop_node { return $_[0]->control('stop-node') }
sub start_node { return $_[0]->control('start-node') }
sub freeze { return $_[0]->control('freeze') }
sub thaw { return $_[0]->control('thaw') }

# Does its node run?
sub running
{
	my ($self) = @_;
	my $pid = eval { $self->_file('node.pid') } or return 0;
	return (eval { _slurp("/proc/$pid/cmdline") } // '') =~ /\Q$self->{dir}\E/;
}

# An Erlang expression in the node.
sub eval_erlang
{
	my ($self, $expression) = @_;
	my ($out, $err) = ('', '');
	local $?;
	IPC::Run::run([ "$tree/test/support/rabbit.sh", 'ctl', $self->{dir}, 'eval', $expression ],
		'>', \$out, '2>', \$err) or die "rabbitmqctl: $err$out";
	return $out;
}

# Since version 4 the broker sorts a message's headers by name, and keeps one of each name.
sub sorts_headers { return $_[0]->api(GET => 'overview')->{rabbitmq_version} =~ /^(\d+)/ && $1 >= 4 }

# In bytes.  Where it is kept depends on the version; channels take it when they are opened.
sub set_max_message_size
{
	my ($self, $bytes) = @_;
	$self->eval_erlang(
		"application:set_env(rabbit, max_message_size, $bytes), persistent_term:put(max_message_size, $bytes).");
	return $self->close_connections;
}

# An alarm of the node: memory or disk.
sub set_alarm { return $_[0]->eval_erlang("rabbit_alarm:set_alarm({{resource_limit, $_[1], node()}, []}).") }
sub clear_alarm { return $_[0]->eval_erlang("rabbit_alarm:clear_alarm({resource_limit, $_[1], node()}).") }

sub _slurp
{
	my ($file) = @_;
	open my $f, '<', $file or die "$file: $!\n";
	local $/;
	return scalar <$f>;
}

sub _file
{
	my ($self, $name) = @_;
	my $text = _slurp("$self->{dir}/$name");
	chomp $text;
	return $text;
}

sub port { return $_[0]->_file('port') }

sub _escape { my ($text) = @_; $text =~ s/([^A-Za-z0-9._-])/sprintf '%%%02X', ord $1/ge; return $text }

# For option url; of another virtual host when it is named.
sub url
{
	my ($self, $vhost) = @_;
	return sprintf 'amqp://127.0.0.1:%s/%s', $self->port, _escape($vhost // $self->{vhost});
}

sub tls_url { return sprintf 'amqps://127.0.0.1:%s/%%2F', $_[0]->_file('tls_port') }

# The text of a file of its certificates: ca, other-ca, client; client.key.
sub certificate
{
	my ($self, $name) = @_;
	my $file = $name =~ /\.key$/ ? $name : "$name.pem";
	return _slurp("$self->{dir}/tls/$file");
}

# --- administration, over HTTP -------------------------------------------------------

# The answer, decoded; dies where that fails.
sub api
{
	my ($self, $method, $path, $body) = @_;
	my $answer = HTTP::Tiny->new(timeout => 60)->request($method,
		'http://127.0.0.1:' . $self->_file('http') . "/api/$path",
		{ headers => { 'content-type' => 'application/json',
				authorization => 'Basic ' . encode_base64('guest:guest', '') },
			content => defined $body ? $json->encode($body) : '' });

	die "$method $path: $answer->{status} $answer->{content}\n" unless $answer->{success};
	return ($answer->{content} // '') =~ /^[\[{]/ ? $json->decode($answer->{content}) : undef;
}

sub _v { return _escape($_[0]{vhost}) }

sub exchange
{
	my ($self, $name, $type, %arguments) = @_;
	return $self->api(PUT => 'exchanges/' . $self->_v . '/' . _escape($name),
		{ type => $type || 'topic', durable => JSON::PP::true, arguments => \%arguments });
}

sub delete_exchange { return $_[0]->api(DELETE => 'exchanges/' . $_[0]->_v . '/' . _escape($_[1])) }

# A durable queue; arguments such as 'x-queue-type' => 'quorum'.
sub queue
{
	my ($self, $name, %arguments) = @_;
	return $self->api(PUT => 'queues/' . $self->_v . '/' . _escape($name),
		{ durable => JSON::PP::true, arguments => \%arguments });
}

sub delete_queue { return $_[0]->api(DELETE => 'queues/' . $_[0]->_v . '/' . _escape($_[1])) }
sub purge_queue { return $_[0]->api(DELETE => 'queues/' . $_[0]->_v . '/' . _escape($_[1]) . '/contents') }

sub bind
{
	my ($self, $exchange, $queue, $key) = @_;
	return $self->api(POST => 'bindings/' . $self->_v . '/e/' . _escape($exchange) . '/q/' . _escape($queue),
		{ routing_key => $key });
}

# A queue of a topic's name, bound for it.
sub create_topic
{
	my ($self, $exchange, $topic, %arguments) = @_;
	$self->queue($topic, %arguments);
	return $self->bind($exchange, $topic, $topic);
}

sub create_user
{
	my ($self, $user, $password) = @_;
	return $self->api(PUT => 'users/' . _escape($user), { password => $password, tags => '' });
}

# What a user may configure, write and read: regular expressions.
sub allow
{
	my ($self, $user, $configure, $write, $read) = @_;
	return $self->api(PUT => 'permissions/' . $self->_v . '/' . _escape($user),
		{ configure => $configure, write => $write, read => $read });
}

# Which routing keys a user may write to an exchange.
sub allow_topics
{
	my ($self, $user, $exchange, $write) = @_;
	return $self->api(PUT => 'topic-permissions/' . $self->_v . '/' . _escape($user),
		{ exchange => $exchange, write => $write, read => '.*' });
}

sub create_vhost
{
	my ($self, $name) = @_;
	return $self->api(PUT => 'vhosts/' . _escape($name), {});
}

# Ends clients' connections, as an administrator may.
sub close_connections
{
	my ($self) = @_;
	return $self->eval_erlang(
		'[rabbit_networking:close_connection(P, "by the test") || P <- rabbit_networking:connections()].');
}

# Sends as any producer may: payload, properties (message_id, headers, ...).
sub publish
{
	my ($self, $exchange, $key, $payload, %properties) = @_;
	return $self->api(POST => 'exchanges/' . $self->_v . '/' . _escape($exchange || 'amq.default') . '/publish',
		{ routing_key => $key, payload => encode_base64($payload, ''), payload_encoding => 'base64',
			properties => { delivery_mode => 2, %properties } });
}

# Sends messages to a queue, or to routing keys of an exchange, with all that a header may
# be: hashes of payload, key, headers ([name, value], ...), message_id, all bytes.
sub produce
{
	my ($self, $key, @messages) = @_;
	require OutboxKafka;
	my $lines = join '', map {
		OutboxKafka::produce_line($key, %$_,
			headers => [ defined $_->{message_id} ? [ 'message-id', $_->{message_id} ] : (),
				@{ $_->{headers} || [] } ]) } @messages;
	my $err = '';
	local $?;
	IPC::Run::run([ "$build/rabbit_produce", '127.0.0.1', $self->port, $self->{vhost}, 'guest', 'guest', '' ],
		'<', \$lines, '2>', \$err) or die "rabbit_produce: $err";
	return;
}

# --- reading ----------------------------------------------------------------------------

# Runs rabbit_consume on queues; options as its own: n, timeout, payload, out, ack, stream.
sub consume_raw
{
	my ($self, $queues, %options) = @_;
	my @command = ("$build/rabbit_consume");
	my ($out, $err) = ('', '');

	push @command, '-n', $options{n} if $options{n};
	push @command, '-a' if $options{ack};
	push @command, '-s' if $options{stream};
	push @command, '-t', $options{timeout} || 60;
	push @command, '-p', $options{payload} || 'hex';
	push @command, '-o', $options{out} if $options{out};
	local $?;
	IPC::Run::run([ @command, '127.0.0.1', $self->port, $self->{vhost}, 'guest', 'guest', @$queues ],
		'>', \$out, '2>', \$err) or warn "rabbit_consume: $err";
	return $out;
}

# What is in a queue (or several: an array), in order: hashes as those of OutboxKafka's
# consume(); the topic is the routing key.
sub consume
{
	my ($self, $queue, %options) = @_;
	return OutboxConsumed::messages(
		$self->consume_raw(ref $queue ? $queue : [$queue], %options, payload => 'hex'));
}

# How many messages a queue holds, as the broker says.
sub messages
{
	my ($self, $queue) = @_;
	my ($found) = grep { $_->{name} eq $queue }
	  @{ $self->api(GET => 'queues/' . $self->_v . '?disable_stats=true&enable_queue_totals=true') };
	return $found->{messages};
}

# How many messages a reader gets of a queue.
sub count { my ($self, $queue) = @_; return scalar(my @m = $self->consume($queue)) }

END
{
	local $?;
	eval { $_->stop } for @started;
}

1;
