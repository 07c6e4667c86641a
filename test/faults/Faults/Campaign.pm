# Runs scenarios and tells what was done, what failed, and how to do it again.
package Faults::Campaign;

use strict;
use warnings;

use Faults::Scenario;
use Faults::World;
use OutboxTest;

# seeds: a list, or from and count.  kinds, setup: see campaign.pl.
# seconds: no scenario begins after so many.
sub run
{
	my ($class, %options) = @_;
	my @seeds = $options{seeds} ? @{ $options{seeds} } : $options{from} .. $options{from} + $options{count} - 1;
	my $kinds = @{ $options{kinds} || [] } ? $options{kinds} : undef;
	my $world = Faults::World->new;
	my $began = time;
	my (%counts, @failed, %sum);

	for my $seed (@seeds)
	{
		last if $options{seconds} && time - $began > $options{seconds};
		my $scenario = Faults::Scenario->new($world, $seed, kinds => $kinds, setup => $options{setup});
		my $good = $scenario->run;
		my $faults = 0;
		for (keys %{ $scenario->{counts} })
		{
			$counts{$_} += $scenario->{counts}{$_};
			$faults += $scenario->{counts}{$_};
		}
		$sum{scenarios}++;
		$sum{faults} += $faults;
		$sum{$_} += ($scenario->{verdict} || {})->{$_} || 0 for qw(published duplicated dead leaked);
		ok($good, sprintf 'seed %d: %d faults, %s messages, %.0f s (%s)', $seed, $faults,
			($scenario->{verdict} || {})->{published} || 0, $scenario->{seconds}, $scenario->describe);
		if (!$good || $ENV{FAULTS_VERBOSE})
		{
			diag($_) for @{ $scenario->{failures} };
			diag("schedule: " . join '; ', @{ $scenario->{notes} });
		}
		unless ($good)
		{
			push @failed, $seed;
			diag("once more: " . again($seed, %options));
			keep($scenario);
		}
		$scenario->clean_up;
	}
	note(sprintf '%d scenarios, %d faults, %d messages (%d of them twice, %d dead letters), %d files left by crashes, %d s',
		map { $_ || 0 } @sum{qw(scenarios faults published duplicated dead leaked)}, time - $began);
	note(join ', ', map { "$_ $counts{$_}" } sort keys %counts);
	note(@failed ? "FAILED: seeds @failed" : 'none failed');
	$world->end;
	return;
}

sub again
{
	my ($seed, %options) = @_;
	my $setup = $options{setup} || {};
	my $settings = join ' ', map { "$_=$setup->{$_}" } sort keys %$setup;
	my @more = (@{ $options{kinds} || [] } ? "KINDS='@{ $options{kinds} }' " : (), $settings ? "SETUP='$settings' " : (),
		$ENV{RDKAFKA} ? "RDKAFKA=$ENV{RDKAFKA} " : ());
	return join '', @more, "make faults SEED=$seed COUNT=1";
}

# The server's log of a scenario that failed, for whoever looks into it.
sub keep
{
	my ($scenario) = @_;
	my $directory = $ENV{TESTLOGDIR} || '.';
	for my $pg (grep { $_ } $scenario->pg, $scenario->{old_pg})
	{
		my $file = sprintf '%s/faults-%d-%s.log', $directory, $scenario->{seed}, $pg->name;
		open my $f, '>', $file or next;
		print $f $scenario->log_text($pg);
		close $f;
		diag("the server's log: $file");
	}
	return;
}

1;
