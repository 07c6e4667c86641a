# NATS JetStream, for the relay to it beside a plain cnats program that publishes
# asynchronously: for each topic a stream in files, of the topic's name.
package Bench::Nats;
use strict;
use warnings;
use lib "$ENV{BENCH_HOME}/tree/test/lib";
use Bench::Brokers;
use Bench::Report;
use OutboxNats;

sub name { return 'NATS' }
sub wrapper { return 'outbox_nats' }
sub program { return "$ENV{OUTBOX_BUILD}/bench_nats_producer" }
sub messages { return 500_000 }
sub p50 { return 3 }
sub url { return $_[0]{server}->url }
sub options { return { url => $_[0]->url, stream => $_[1] } }
sub create { return $_[0]{server}->stream($_[1], $_[1]) }
sub delete { return $_[0]{server}->delete_stream($_[1]) }
sub count { return $_[0]{server}->stream_info($_[1])->{state}{messages} }
sub stop { return $_[0]{server}->stop }

sub relay
{
	my ($bench) = @_;

	if (!OutboxNats->available)
	{
		note('NATS is not on this machine');
		return;
	}
	return Bench::Brokers::relay($bench, bless { server => OutboxNats->start }, __PACKAGE__);
}

1;
