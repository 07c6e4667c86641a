# NATS JetStream: a topic's destination is a subject of the stream EVENTS.
package Conformance::Nats;

use strict;
use warnings;

use parent 'Conformance::Broker';
use OutboxNats;
use OutboxProxy;

my ($stream, $user, $password) = qw(EVENTS app app-secret);

sub name { return 'nats' }

sub reasons
{
	return (
		partitions => 'a stream has one order',
		header_order => 'clients of NATS keep headers by their names',
		own_duplicates => 'a stream takes a message id once within its duplicate window');
}

sub refused_error { return 'JETSTREAM_10054' }
sub missing_message { return qr/no stream takes subject/ }
sub missing_error { return 'NO_RESPONDERS' }

sub own_headers
{
	return qw(Nats-Msg-Id Nats-Expected-Stream Nats-Expected-Last-Sequence Nats-Expected-Last-Msg-Id
	  outbox-key outbox-tombstone outbox-time outbox-escaped);
}

# The kind of payload is told by a header that may be the caller's.
sub is_own_header
{
	my ($self, $name, $value) = @_;
	return $self->SUPER::is_own_header($name) || ($name eq 'content-type' && $value =~ m{^text/plain});
}

sub start
{
	my ($class) = @_;
	my $nats = OutboxNats->start(tls => 1, users => 1, settings => "max_payload: 17000000\n");
	my $self = bless { nats => $nats, proxy => OutboxProxy->before($nats->port),
		topics => {}, limits => {}, ids => {} }, $class;

	$nats->stream($stream, $self->_subjects);
	return $self;
}

# A stream has one at least.
sub _subjects { my ($self) = @_; return [ 'no.topic', sort keys %{ $self->{topics} } ] }

sub end
{
	my ($self) = @_;
	$self->{proxy}->stop;
	return $self->{nats}->stop;
}

sub stop_server { return $_[0]{nats}->stop_server }
sub kill_server { return $_[0]{nats}->kill_server }
sub start_server { return $_[0]{nats}->start_server }
sub freeze { return $_[0]{nats}->freeze }
sub thaw { return $_[0]{nats}->thaw }
sub link { my ($self, @command) = @_; return $self->{proxy}->command(0, @command) }

sub server_options
{
	my ($self, %how) = @_;

	return (stream => $stream, url => $self->{nats}->tls_url, tls_ca => $self->certificate($how{tls})) if $how{tls};
	return (stream => $stream, url => 'nats://127.0.0.1:' . $self->{proxy}->port);
}

# its server for TLS asks for no password
sub mapping_options
{
	my ($self, %how) = @_;
	return () if $how{tls};
	return (user => $user, password => $how{password} // $password);
}

sub ca_option { return 'tls_ca' }
sub certificate { my ($self, $name) = @_; return $self->{nats}->certificate($name) }
sub harmless_option { return (replicas => 1) }
sub deny { my ($self, $topic) = @_; return $self->{nats}->allow(publish => { deny => [$topic] }) }
sub undeny { my ($self) = @_; return $self->{nats}->allow }

sub create
{
	my ($self, $topic, %options) = @_;

	$self->{topics}{$topic} = 1;
	$self->{nats}->alter_stream($stream, subjects => $self->_subjects);
	$self->set_limit($topic, $options{limit}) if $options{limit};
	return;
}

# The whole stream's.
sub set_limit
{
	my ($self, $topic, $limit) = @_;

	$self->{limits}{$topic} = 1;
	return $self->{nats}->alter_stream($stream, max_msg_size => $limit);
}

sub delete
{
	my ($self, $topic) = @_;

	$self->set_limit($topic, -1) if $self->{limits}{$topic};
	delete $self->{$_}{$topic} for qw(limits topics);
	$self->{nats}->purge($stream, filter => $topic);
	return $self->{nats}->alter_stream($stream, subjects => $self->_subjects);
}

sub consume_raw { my ($self, @arguments) = @_; return $self->{nats}->consume_raw(@arguments) }

# An id that comes again is in our own header: the stream would not take it.
sub produce
{
	my ($self, $topic, @messages) = @_;

	for my $m (@messages)
	{
		my ($id, $key) = @$m{qw(message_id key)};
		my @headers = map { @$_ } @{ $m->{headers} || [] };

		unshift @headers, $self->{ids}{$id}++ ? 'message-id' : 'Nats-Msg-Id', $id if defined $id;
		push @headers, 'outbox-key', $key if defined $key && $key ne '';
		push @headers, 'outbox-key', '%', 'outbox-escaped', 'outbox-key' if defined $key && $key eq '';
		push @headers, 'outbox-tombstone', 'true' unless defined $m->{payload};
		$self->{nats}->publish($topic, $m->{payload} // '', @headers);
	}
	return;
}

1;
