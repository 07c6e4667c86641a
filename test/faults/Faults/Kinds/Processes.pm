# Processes of PostgreSQL die, are asked to end, or stand still; the whole server too.
package Faults::Kinds::Processes;

use strict;
use warnings;

use Faults::Kinds;
use Faults::World;
use Time::HiRes qw(time usleep);

my %process = (
	relay => q{backend_type LIKE 'pg_outbox relay%'},
	keeper => q{backend_type LIKE 'pg_outbox keeper%'},
	launcher => q{backend_type = 'pg_outbox launcher'},
	publisher => q{application_name = 'publisher'},
	walwriter => q{backend_type = 'walwriter'});

# Signals one, found by its description.
sub signal
{
	my ($scenario, $signal, $who) = @_;
	my $pid = $scenario->pid_of($process{$who}) or return;
	return unless kill $signal, $pid;
	return $pid;
}

for my $who (sort keys %process)
{
	Faults::Kinds::add("$who-kill", crash => 1, weight => $who eq 'relay' ? 3 : 1,
		inject => sub { return signal($_[0], 'KILL', $who) ? 1 : 0 });
	next if $who eq 'walwriter';
	Faults::Kinds::add("$who-stop", inject => sub {
		my ($scenario) = @_;
		my $seconds = 0.2 + rand 3;
		my $pid = signal($scenario, 'STOP', $who) or return;
		$scenario->later($seconds, sub { kill 'CONT', $pid }, 'stopped');
		return sprintf 'for %.1f s', $seconds;
	});
	Faults::Kinds::add("$who-term", clean_stop => $who eq 'relay' ? 1 : 0,
		permits => [qr/canceling the wait for synchronous replication/],
		inject => sub { return signal($_[0], 'TERM', $who) ? 1 : 0 });
}

# A postmaster that is alone gone leaves children who notice; the machine takes all.
sub end_postmaster
{
	my ($scenario, $how) = @_;
	my $pg = $scenario->pg;
	my $pid = Faults::World::postmaster($pg) or return;

	$scenario->heal_now('stopped');
	$pg->{_pid} = $pid;
	if ($how eq 'postmaster-kill')
	{
		kill 'KILL', $pid;
		$scenario->soon(sub { !kill 0, $pid }, 10);
		$pg->{_pid} = undef;
	}
	elsif ($how eq 'machine') { $pg->crash }
	else
	{
		# asked for it while it recovers, PostgreSQL 15 may wait for its checkpointer for ever
		Faults::World->wait_up($pg) if $how eq 'fast';
		$pg->stop($how, fail_ok => 1);
	}
	return 1;
}

sub add_restart
{
	my ($name, $how, %more) = @_;
	Faults::Kinds::add($name, %more, inject => sub {
		my ($scenario) = @_;
		end_postmaster($scenario, $how) or return;
		usleep(rand 500_000);
		return Faults::World->start_pg($scenario->pg);
	});
	return;
}
# start_pg() waits for children that take their time, but not for ever
add_restart('postmaster-kill', 'postmaster-kill', crash => 1, permits => [qr/pre-existing shared memory block/]);
add_restart('machine-crash', 'machine', crash => 1);
add_restart('immediate-restart', 'immediate', crash => 1);
add_restart('fast-restart', 'fast', clean_stop => 1);

# It dies again while it recovers.
Faults::Kinds::add('recovery-crash', crash => 1, inject => sub {
	my ($scenario) = @_;
	my $pg = $scenario->pg;

	end_postmaster($scenario, 'machine') or return;
	for (1 .. 1 + int rand 3)
	{
		Faults::World->clock->run(sub { system('pg_ctl', '-W', '-s', '-D', $pg->data_dir, '-l', $pg->logfile, 'start') });
		$scenario->soon(sub { Faults::World::postmaster($pg) }, 5) or next;
		usleep(rand 250_000);
		my $pid = Faults::World::postmaster($pg) or next;
		$pg->{_pid} = $pid;
		$pg->crash;
	}
	return Faults::World->start_pg($pg);
});

1;
