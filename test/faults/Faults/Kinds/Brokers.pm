# Brokers and the network between: killed, stopped, frozen, cut off, slow, lossy, full; topics
# that are missing, forbidden, narrower than before, or made anew.
package Faults::Kinds::Brokers;

use strict;
use warnings;

use Faults::Kinds;
use Faults::World;

sub pick { return $_[ int rand @_ ] }

# A broker that is up, as long as no other one is down: with two of three gone there
# is no quorum, which is an outage of its own.
sub some_broker
{
	my ($scenario) = @_;
	my $kafka = $scenario->kafka;
	return if $kafka->{away};
	$kafka->admin('brokers', $kafka->{brokers}, 60);
	return 1 + int rand $kafka->{brokers};
}

sub away_for
{
	my ($scenario, $seconds, $back) = @_;
	my $kafka = $scenario->kafka;
	$kafka->{away} = 1;
	$scenario->later($seconds, sub { $back->(); $kafka->{away} = 0 }, 'broker');
	return sprintf 'for %.1f s', $seconds;
}

for my $how (qw(kill stop freeze))
{
	Faults::Kinds::add("broker-$how", outage => 1, weight => $how eq 'freeze' ? 3 : 2, inject => sub {
		my ($scenario) = @_;
		my $kafka = $scenario->kafka;
		my $n = some_broker($scenario) or return;
		my $seconds = rand 4;

		$how eq 'kill' ? $kafka->kill_broker($n) : $how eq 'stop' ? $kafka->stop_broker($n) : $kafka->freeze($n);
		return away_for($scenario, $seconds, sub {
			$how eq 'freeze' ? $kafka->thaw($n) : $kafka->start_broker($n, 0);
		});
	});
}

# Its disk is full: it halts by itself once it wants to write, and comes back when
# somebody has made room.
Faults::Kinds::add('broker-disk-full', outage => 1, weight => 3, needs => sub { $ENV{OUTBOX_BROKER_DISKS} }, inject => sub {
	my ($scenario) = @_;
	my $kafka = $scenario->kafka;
	my $n = some_broker($scenario) or return;
	my $seconds = rand 4;

	Faults::World->fill_disk($kafka, $n);
	my $halted = $scenario->soon(sub { !$kafka->broker_pid($n) }, 5);
	return away_for($scenario, $seconds, sub {
		Faults::World->free_disk($kafka, $n);
		# also where it has not noticed, since it may have been cut short in the middle of a write
		$kafka->kill_broker($n);
		$kafka->start_broker($n, 0);
	}) . ($halted ? ', halted' : '');
});

# --- the network -----------------------------------------------------------------------------

my %network = (
	cut => sub { 0.2 + rand 4 },
	drop => sub { 0.2 + rand 4 },
	half => sub { 0.2 + rand 4 },
	delay => sub { 0.5 + rand 3 },
	slow => sub { 0.5 + rand 3 });
my %amount = (delay => [ 5, 50, 300, 1200 ], slow => [ 2000, 20_000, 200_000 ]);

for my $how (sort keys %network)
{
	Faults::Kinds::add("net-$how", outage => 1, weight => 2, inject => sub {
		my ($scenario) = @_;
		my $kafka = $scenario->kafka;
		my $link = rand() < 0.5 ? 0 : 1 + int rand $kafka->{brokers};
		my $seconds = $network{$how}->();
		my @amount = $amount{$how} ? pick(@{ $amount{$how} }) : ();

		$kafka->link_command($link, $how, @amount);
		$scenario->later($seconds, sub { $kafka->link_command($link, 'pass') });
		return sprintf '%s for %.1f s', join(' ', $link ? "broker $link" : 'all', @amount), $seconds;
	});
}

Faults::Kinds::add('net-reset', outage => 1, weight => 3, inject => sub {
	my ($scenario) = @_;
	$scenario->kafka->link_command(0, 'reset');
	return 1;
});

# --- topics -----------------------------------------------------------------------------------

# The right to write, or every right, is taken away for a while; or none is left but to see
# the topic: then metadata shows nothing of it.
for my $right (qw(write all describe))
{
	Faults::Kinds::add("acl-$right", duplicates => 1, inject => sub {
		my ($scenario) = @_;
		my $kafka = $scenario->kafka;
		my $topic = $scenario->database->{topics}{plain}[ int rand 3 ];
		return if $kafka->{away} || $scenario->{denied}{$topic}++;
		my $seconds = 0.3 + rand 3;
		my ($take, $give) = $right eq 'describe' ? qw(allow unallow) : qw(deny undeny);

		# first, since what fails may be done all the same
		$scenario->later($seconds, sub {
			$kafka->$give('app', $right, topic => $topic);
			$scenario->{denied}{$topic} = 0;
		}, 'topic');
		$kafka->$take('app', $right, topic => $topic);
		return sprintf 'for %.1f s', $seconds;
	});
}

# Large messages become dead letters, and their batch is sent again one by one.
Faults::Kinds::add('size-lowered', duplicates => 1, inject => sub {
	my ($scenario) = @_;
	my $kafka = $scenario->kafka;
	my $topic = $scenario->database->{topics}{big};
	return if $kafka->{away} || $scenario->{lowered}++;
	my $seconds = 0.5 + rand 3;

	$kafka->set_config($topic, 'max.message.bytes=20000');
	$scenario->later($seconds, sub {
		$kafka->set_config($topic, 'max.message.bytes=1048588');
		$scenario->{lowered} = 0;
	}, 'topic');
	return sprintf 'for %.1f s', $seconds;
});

# Messages for a topic that comes later, or never while the run lasts.
Faults::Kinds::add('topic-missing', once => 1, inject => sub {
	my ($scenario) = @_;
	my $database = $scenario->database;
	my $topic = $database->{topics}{late};
	my $kafka = $scenario->kafka;

	defined $scenario->try_sql($database->{name}, "SELECT judge.publish_many('$topic', 500, 20, 100)") or return;
	$database->{late_used} = 1;
	$scenario->later(1 + rand 6, sub { $kafka->create_topic($topic, 4, $kafka->{brokers}) }, 'topic');
	return 1;
});

# What the old one held is gone; what is published once the new one is there arrives.
Faults::Kinds::add('topic-recreated', once => 1, duplicates => 1, inject => sub {
	my ($scenario) = @_;
	my $database = $scenario->database;
	my $topic = $database->{topics}{gone};
	my $kafka = $scenario->kafka;
	return if $kafka->{away};

	defined $scenario->try_sql($database->{name}, "SELECT judge.publish_many('$topic', 300, 20, 100)") or return;
	$kafka->delete_topic($topic);
	$scenario->try_sql($database->{name}, "SELECT judge.publish_many('$topic', 300, 20, 100)");
	$scenario->later(0.2 + rand 2, sub {
		$kafka->create_topic($topic, 4, $kafka->{brokers});
		my $out = $scenario->try_sql($database->{name}, <<END);
SELECT last_value FROM judge.ledger_n;
SELECT judge.publish_many('$topic', 300, 20, 100);
END
		$database->{gone_from} = defined $out ? (split /\n/, $out)[0] : 9e15;
	}, 'topic');
	return 1;
});

1;
