# Apache Kafka.
package Conformance::Kafka;

use strict;
use warnings;

use parent 'Conformance::Broker';
use OutboxKafka;

sub name { return 'kafka' }

sub refused_error { return 'MSG_SIZE_TOO_LARGE' }
sub missing_message { return qr/Unknown topic/ }
sub missing_error { return 'UNKNOWN_TOPIC_OR_PART' }

sub start
{
	my ($class) = @_;
	my $kafka = OutboxKafka->start(auto_create => 'false', sasl => 1, tls => 1, proxied => 1,
		message_max_bytes => 20_000_000);

	$kafka->start_proxy;
	return bless { kafka => $kafka }, $class;
}

sub end { return $_[0]{kafka}->stop }
sub stop_server { return $_[0]{kafka}->stop_broker }
sub kill_server { return $_[0]{kafka}->kill_broker }
sub start_server { my ($self) = @_; return $self->{kafka}->broker_pid(1) || $self->{kafka}->start_broker }
sub freeze { return $_[0]{kafka}->freeze }
sub thaw { return $_[0]{kafka}->thaw }
sub link { my ($self, @command) = @_; return $self->{kafka}->link_command(0, @command) }

sub server_options
{
	my ($self, %how) = @_;
	my %options = ('reconnect.backoff.max.ms' => 200);

	return (%options, 'bootstrap.servers' => $self->{kafka}->tls_bootstrap,
		'security.protocol' => 'ssl', 'ssl.ca.pem' => $self->certificate($how{tls})) if $how{tls};
	return (%options, 'bootstrap.servers' => $self->{kafka}->bootstrap,
		'security.protocol' => 'sasl_plaintext', 'sasl.mechanism' => 'PLAIN');
}

# its listener for TLS asks for no password
sub mapping_options
{
	my ($self, %how) = @_;
	return () if $how{tls};
	return ('sasl.username' => 'app', 'sasl.password' => $how{password} // 'app-secret');
}

sub password_option { return 'sasl.password' }
sub ca_option { return 'ssl.ca.pem' }
sub certificate { my ($self, $name) = @_; return $self->{kafka}->certificate($name) }
sub harmless_option { return ('linger.ms' => 1) }
sub deny { my ($self, $topic) = @_; return $self->{kafka}->deny('app', 'all', topic => $topic) }
sub undeny { my ($self, $topic) = @_; return $self->{kafka}->undeny('app', 'all', topic => $topic) }

sub create
{
	my ($self, $topic, %options) = @_;
	return $self->{kafka}->create_topic($topic, $options{partitions} || 4,
		$options{limit} ? "max.message.bytes=$options{limit}" : ());
}

sub set_limit
{
	my ($self, $topic, $limit) = @_;
	return $self->{kafka}->set_config($topic, "max.message.bytes=$limit");
}

sub delete { my ($self, $topic) = @_; return $self->{kafka}->delete_topic($topic) }
sub consume_raw { my ($self, @arguments) = @_; return $self->{kafka}->consume_raw(@arguments) }

sub produce
{
	my ($self, $topic, @messages) = @_;

	for my $m (@messages)
	{
		next unless defined $m->{message_id};
		$m = { %$m, headers => [ [ 'message-id', $m->{message_id} ], @{ $m->{headers} || [] } ] };
	}
	return $self->{kafka}->produce($topic, @messages);
}

1;
