# RabbitMQ: a topic's destination is a durable queue of its name, bound for it.
package Conformance::Rabbitmq;

use strict;
use warnings;

use parent 'Conformance::Broker';
use OutboxProxy;
use OutboxRabbit;

my ($exchange, $user, $password) = qw(events app app-secret);
my $default_limit = 134_217_728;

sub name { return 'rabbitmq' }

sub reasons
{
	my ($self) = @_;
	my $sorts = 'the broker sorts headers by name, and keeps one of each name';
	return (
		$self->{sorts_headers} ? (header_order => $sorts, repeated_headers => $sorts) : (),
		partitions => 'a queue has one order',
		resend_after_outage => 'when a connection breaks, nobody knows what of the unconfirmed the broker took',
		keeps_messages => 'what was acknowledged is gone from its queue',
		start_latest => 'a queue is consumed from its first message on',
		places => 'a queue has no positions: what comes again is known by its id only');
}

sub refused_error { return 'PRECONDITION_FAILED' }
sub missing_message { return qr/NO_ROUTE/ }
sub missing_error { return 'NO_ROUTE' }
sub own_headers { return qw(message-id outbox-key outbox-tombstone timestamp_in_ms) }

sub start
{
	my ($class) = @_;
	my $rabbit = OutboxRabbit->start(tls => 1);
	my $proxy = OutboxProxy->before($rabbit->port);

	$rabbit->create_user($user, $password);
	$rabbit->allow($user, '.*', '.*', '.*');
	$rabbit->exchange($exchange, 'topic');
	return bless { rabbit => $rabbit, proxy => $proxy, limits => {}, sorts_headers => $rabbit->sorts_headers }, $class;
}

sub end
{
	my ($self) = @_;
	$self->{proxy}->stop;
	return $self->{rabbit}->stop;
}

sub stop_server { return $_[0]{rabbit}->stop_node }
sub kill_server { return $_[0]{rabbit}->kill_node }

sub start_server
{
	my ($self) = @_;
	return eval { $self->{rabbit}->api(GET => 'whoami') } || $self->{rabbit}->start_node;
}

sub freeze { return $_[0]{rabbit}->freeze }
sub thaw { return $_[0]{rabbit}->thaw }
sub link { my ($self, @command) = @_; return $self->{proxy}->command(0, @command) }

sub server_options
{
	my ($self, %how) = @_;

	return (url => $self->{rabbit}->tls_url, exchange => $exchange, tls_ca => $self->certificate($how{tls}))
	  if $how{tls};
	return (url => 'amqp://127.0.0.1:' . $self->{proxy}->port, exchange => $exchange);
}

sub mapping_options
{
	my ($self, %how) = @_;
	return (user => $user, password => $how{password} // $password);
}

sub ca_option { return 'tls_ca' }
sub certificate { my ($self, $name) = @_; return $self->{rabbit}->certificate($name) }
sub harmless_option { return (heartbeat => 9) }

sub deny { my ($self, $topic) = @_; return $self->{rabbit}->allow_topics($user, $exchange, "^(?!\Q$topic\E\$)") }
sub undeny { my ($self) = @_; return $self->{rabbit}->allow_topics($user, $exchange, '.*') }

sub create
{
	my ($self, $topic, %options) = @_;

	$self->{rabbit}->create_topic($exchange, $topic);
	$self->set_limit($topic, $options{limit}) if $options{limit};
	return;
}

# The whole node's.
sub set_limit
{
	my ($self, $topic, $limit) = @_;

	$self->{limits}{$topic} = 1;
	$self->{rabbit}->set_max_message_size($limit);
	return;
}

sub delete
{
	my ($self, $topic) = @_;

	$self->set_limit($topic, $default_limit) if delete $self->{limits}{$topic};
	return $self->{rabbit}->delete_queue($topic);
}

sub produce { my ($self, @arguments) = @_; return $self->{rabbit}->produce(@arguments) }
sub consume_raw { my ($self, @arguments) = @_; return $self->{rabbit}->consume_raw(@arguments) }

1;
