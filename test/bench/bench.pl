#!/usr/bin/perl
# Runs the parts of the benchmark; see test/bench/run, which sets it up.
use strict;
use warnings;
use Bench::Server;
use Bench::Kafka;
use Bench::Report;
use Bench::Publish;
use Bench::Relay;
use Bench::Log;
use Bench::Nats;
use Bench::Rabbit;
use Bench::Inbox;
use Bench::Subscription;

$| = 1;
my $quick = $ENV{BENCH_QUICK};
my $full = $ENV{BENCH_FULL};
my %parts = (
	publish => \&Bench::Publish::publish,
	relayed => \&Bench::Publish::relayed,
	payload => \&Bench::Publish::payload,
	bulk => \&Bench::Publish::bulk,
	drain => \&Bench::Relay::drain,
	drain10m => \&Bench::Relay::drain10m,
	latency => \&Bench::Relay::latency,
	once => \&Bench::Relay::once,
	nats => \&Bench::Nats::relay,
	rabbit => \&Bench::Rabbit::relay,
	idle => \&Bench::Relay::idle,
	space => \&Bench::Log::space,
	accept => \&Bench::Inbox::accept_one,
	accept_batch => \&Bench::Inbox::accept_batch,
	redis => \&Bench::Inbox::redis,
	marks => \&Bench::Inbox::live_marks,
	expiry => \&Bench::Inbox::expiry,
	expiry_random => \&Bench::Inbox::expiry_random,
	consume => \&Bench::Subscription::drain,
	effect => \&Bench::Subscription::latency);
my @all = qw(publish relayed payload bulk latency idle space drain once nats rabbit accept accept_batch consume effect redis marks expiry expiry_random drain10m);
my %asked = map { $_ => 1 } split ' ', $ENV{BENCH} || '';

for (keys %asked)
{
	die "no part \"$_\"; there are: @all\n" unless $parts{$_};
}
my @chosen = grep { %asked ? $asked{$_} : $_ ne 'drain10m' || $full } @all;

sub first_of
{
	my ($pattern, $file) = @_;
	open my $f, '<', $file or return '?';
	while (my $line = <$f>)
	{
		return $1 if $line =~ $pattern;
	}
	return '?';
}

# How loaded is the machine by others?
sub load
{
	return first_of(qr/^(\S+)/, '/proc/loadavg');
}

# An interrupt ends by die, so that servers are stopped.
$SIG{$_} = sub { die "interrupted\n" } for qw(INT TERM HUP PIPE);

# 200 bytes of an ordinary order.
my $payload = '{"id": 482913, "type": "order.placed", "customer": "c-20481", "total": 129.95, "currency": "EUR", '
  . '"items": [{"sku": "A-1001", "qty": 2}, {"sku": "B-77", "qty": 1}], "zip": "10115", "gift": 1234567890}';
open my $payload_to, '>', "$ENV{BENCH_HOME}/payload" or die;
print $payload_to $payload;
close $payload_to;

# One Kafka, started by the first part that needs it.
my $kafka;
my $bench = {
	quick => $quick, full => $full,
	pg => Bench::Server->new,
	payload => $payload,
	payload_file => "$ENV{BENCH_HOME}/payload",
	kafka => sub { return $kafka ||= Bench::Kafka->new }
};

printf "pg_outbox %s, %s%s\n", $ENV{BENCH_REVISION} || '', $bench->{pg}->sql('postgres', 'SHOW server_version'),
  $quick ? ', QUICK: only shows that it works' : '';
printf "%s, %d processors, %d MB, load before the start %s\n", first_of(qr/model name\s*: (.*)/, '/proc/cpuinfo'),
  `nproc` + 0, first_of(qr/MemTotal:\s+(\d+)/, '/proc/meminfo') / 1024, load();

for my $part (@chosen)
{
	eval { $parts{$part}->($bench); 1 } or do {
		my $error = $@;
		print "\n$part: $error";
		system("tail -n 20 $ENV{BENCH_HOME}/server.log") unless $error =~ /interrupted/;
		$bench->{pg}->stop;
		$kafka->stop if $kafka;
		exit 1;
	};
}
Bench::Report::summary() if @chosen > 1;
$bench->{pg}->stop;
$kafka->stop if $kafka;
