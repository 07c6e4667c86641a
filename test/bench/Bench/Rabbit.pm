# RabbitMQ, for the relay to it beside a plain rabbitmq-c program with pipelined confirms:
# a durable queue for each topic.
package Bench::Rabbit;
use strict;
use warnings;
use lib "$ENV{BENCH_HOME}/tree/test/lib";
use Bench::Brokers;
use Bench::Report;
use OutboxRabbit;

my $exchange = 'bench';

sub name { return 'RabbitMQ' }
sub wrapper { return 'outbox_rabbitmq' }
sub program { return "$ENV{OUTBOX_BUILD}/bench_rabbit_producer" }
sub messages { return 100_000 }
sub p50 { return 4 }
sub url { return $_[0]{node}->url }
sub options { return { url => $_[0]->url, exchange => $exchange } }
sub create { return $_[0]{node}->create_topic($exchange, $_[1]) }
sub delete { return $_[0]{node}->delete_queue($_[1]) }
sub count { return $_[0]{node}->messages($_[1]) }
sub stop { return $_[0]{node}->stop }

sub relay
{
	my ($bench) = @_;

	if (!OutboxRabbit->available)
	{
		note('RabbitMQ is not on this machine');
		return;
	}
	my $self = bless { node => OutboxRabbit->start }, __PACKAGE__;
	$self->{node}->exchange($exchange, 'topic');
	return Bench::Brokers::relay($bench, $self);
}

1;
