# The standby of a scenario that has one: it stands still, dies, or is promoted when its
# primary is gone, with all that clients were told or without the last of it.
package Faults::Kinds::Standby;

use strict;
use warnings;

use Faults::Kinds;
use Faults::World;
use OutboxTest;
use Time::HiRes qw(time usleep);

my $any = sub { $_[0]{standby} ne 'none' };

sub process
{
	my ($standby, $type) = @_;
	my $pid = eval { $standby->sql("SELECT pid FROM pg_stat_activity WHERE backend_type = '$type'") };
	return $pid && $pid =~ /^\d+$/ ? $pid : undef;
}

Faults::Kinds::add('standby-lags', weight => 4, needs => $any, inject => sub {
	my ($scenario) = @_;
	my $standby = $scenario->{standby} or return;
	my $pid = process($standby, rand() < 0.5 ? 'walreceiver' : 'startup') or return;
	my $seconds = 0.2 + rand 2;
	kill 'STOP', $pid or return;
	$scenario->later($seconds, sub { kill 'CONT', $pid }, 'stopped');
	return sprintf 'for %.1f s', $seconds;
});

Faults::Kinds::add('standby-restart', weight => 3, needs => $any, inject => sub {
	my ($scenario) = @_;
	my $standby = $scenario->{standby} or return;
	my $how = rand() < 0.5 ? 'fast' : 'immediate';
	$scenario->heal_now('stopped');
	$standby->stop($how);
	usleep(rand 500_000);
	Faults::World->start_pg($standby);
	return $how;
});

# Its startup process or another one dies; with it all of it, to begin again.
Faults::Kinds::add('standby-crash', weight => 3, needs => $any, inject => sub {
	my ($scenario) = @_;
	my $standby = $scenario->{standby} or return;
	my $pid = process($standby, rand() < 0.5 ? 'walreceiver' : 'checkpointer') or return;
	$scenario->heal_now('stopped');
	kill 'KILL', $pid or return;
	return Faults::World->wait_up($standby);
});

# The primary dies, and the standby takes its place.  With asynchronous replication it
# may not have had all, and then ids and transactions are used again.
Faults::Kinds::add('promotion', weight => 12, once => 1, crash => 1, needs => $any, inject => sub {
	my ($scenario) = @_;
	my $standby = $scenario->{standby} or return;
	my $old = $scenario->pg;
	my $asynchronous = $scenario->{setup}{standby} eq 'async';
	my $late = process($standby, 'walreceiver');

	$scenario->{publishers}->target(undef);
	if ($asynchronous && $late && rand() < 0.5)
	{
		kill 'STOP', $late;
		usleep(rand 600_000);
	}
	$scenario->heal_now('stopped');
	$old->crash;
	kill 'CONT', $late if $late;
	delete $scenario->{standby};
	$scenario->{old_pg} = $scenario->{world}->replace_pg($standby);
	Faults::World->reset_settings($standby, $scenario->settings);
	$standby->promote;
	Faults::World->wait_up($standby);
	$scenario->{transactions_lost} = 1 if $asynchronous;
	for my $database (@{ $scenario->{databases} })
	{
		# the ledger's numbers of what is lost are at the broker
		$standby->sql(q{SELECT setval('judge.ledger_n', nextval('judge.ledger_n') + 1000000)}, dbname => $database->{name});
		$database->{"${_}_from"} &&= 9e15 for qw(aside gone);
	}
	$scenario->{publishers}->target($standby);
	return $late ? 'in the middle of streaming' : 1;
});

1;
