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
	my $self = bless { %options, kinds => @{ $options{kinds} || [] } ? $options{kinds} : undef,
		world => Faults::World->new, began => time, counts => {}, sum => {}, failed => [] }, $class;

	my $done = eval
	{
		for my $seed (@seeds)
		{
			last if $self->{seconds} && time - $self->{began} > $self->{seconds};
			$self->scenario($seed);
		}
		1;
	};
	my $error = $@;
	$self->report;
	$self->{world}->end;
	die $error unless $done;
	return;
}

sub scenario
{
	my ($self, $seed) = @_;
	my $scenario = Faults::Scenario->new($self->{world}, $seed, kinds => $self->{kinds}, setup => $self->{setup});
	my $good = $scenario->run;
	my $faults = 0;

	for (keys %{ $scenario->{counts} })
	{
		$self->{counts}{$_} += $scenario->{counts}{$_};
		$faults += $scenario->{counts}{$_};
	}
	my $sum = $self->{sum};
	my $verdict = $scenario->{verdict} || {};
	$sum->{scenarios}++;
	$sum->{faults} += $faults;
	$sum->{$_} += $verdict->{$_} || 0 for qw(published duplicated dead leaked consumed);
	ok($good, sprintf 'seed %d: %d faults, %s messages, %.0f s (%s)', $seed, $faults,
		$verdict->{published} || 0, $scenario->{seconds}, $scenario->describe);
	if (!$good || $ENV{FAULTS_VERBOSE})
	{
		diag($_) for @{ $scenario->{failures} };
		diag('schedule: ' . join '; ', @{ $scenario->{remarks} });
	}
	unless ($good)
	{
		push @{ $self->{failed} }, $seed;
		diag('once more: ' . $self->again($seed));
		keep($scenario);
	}
	$scenario->clean_up;
	return;
}

sub report
{
	my ($self) = @_;
	my ($counts, $sum) = @$self{qw(counts sum)};
	note(sprintf '%d scenarios, %d faults, %d messages (%d deliveries beyond the first, %d dead letters), %d consumed, %d files left by crashes, %d s',
		(map { $_ || 0 } @$sum{qw(scenarios faults published duplicated dead consumed leaked)}), time - $self->{began});
	note(join ', ', map { "$_ $counts->{$_}" } sort keys %$counts);
	note(@{ $self->{failed} } ? "FAILED: seeds @{ $self->{failed} }" : 'none failed');
	return;
}

sub again
{
	my ($self, $seed) = @_;
	my $setup = $self->{setup} || {};
	my $settings = join ' ', map { "$_=$setup->{$_}" } sort keys %$setup;
	return join '', $self->{kinds} ? "KINDS='@{ $self->{kinds} }' " : '', $settings ? "SETUP='$settings' " : '',
	  $ENV{RDKAFKA} ? "RDKAFKA=$ENV{RDKAFKA} " : '', "make faults SEED=$seed COUNT=1";
}

# The server's log of a scenario that failed, for whoever looks into it.
sub keep
{
	my ($scenario) = @_;
	my $directory = $ENV{TESTLOGDIR} || '.';
	mkdir $directory;
	for my $pg (grep { $_ } $scenario->pg, $scenario->{old_pg})
	{
		my $file = sprintf '%s/faults-%d-%s.log', $directory, $scenario->{seed}, $pg->name;
		open my $f, '>', $file or next;
		print $f $scenario->log_text($pg);
		close $f;
		diag("the server's log: $file");
	}
	return unless $ENV{FAULTS_KEEP};
	my $kept = sprintf '%s/faults-%d', $directory, $scenario->{seed};
	mkdir $kept;
	system 'cp', '-a', $scenario->kafka->{dir}, (map { $_->data_dir } grep { $_ } $scenario->pg, $scenario->{old_pg}), $kept;
	diag("the brokers' and the servers' directories: $kept");
	return;
}

1;
