# Medians, and the table of results with the targets beside.
package Bench::Report;
use strict;
use warnings;
use Exporter 'import';
our @EXPORT = qw(median ratios headline result summary note);

my @results;

sub median
{
	my @sorted = sort { $a <=> $b } @_;
	my $middle = int(@sorted / 2);
	return @sorted % 2 ? $sorted[$middle] : ($sorted[ $middle - 1 ] + $sorted[$middle]) / 2;
}

# Median of the ratios of pairs: what changes on the machine while the run goes
# on hits both of a pair.
sub ratios
{
	my ($ours, $reference) = @_;
	return median(map { $ours->[$_] / $reference->[$_] } 0 .. $#$ours);
}

sub headline
{
	printf "\n%s\n", $_[0];
	return;
}

sub note
{
	printf "  %s\n", $_[0];
	return;
}

sub number
{
	my ($value) = @_;
	return '' unless defined $value;
	return $value if $value !~ /^-?[\d.]+(e[-+]?\d+)?$/;
	return sprintf '%.0f', $value if abs($value) >= 1000 || $value == int $value;
	return sprintf $value >= 10 ? '%.1f' : '%.2f', $value;
}

sub line
{
	my ($r) = @_;
	my $verdict = !defined $r->{target} ? ''
	  : ($r->{at_least} ? $r->{value} >= $r->{target} : $r->{value} <= $r->{target}) ? 'reached'
	  : 'MISSED';
	my $target = !defined $r->{target} ? '' : ($r->{at_least} ? '>= ' : '<= ') . $r->{target};
	return sprintf "  %-46s %10s %10s %10s  %-9s %s\n", $r->{what}, number($r->{ours}),
	  number($r->{reference}), number($r->{value}), $target, $verdict;
}

sub columns
{
	printf "  %-46s %10s %10s %10s  %s\n", '', 'pg_outbox', 'reference', 'result', 'to reach';
	return;
}

# result(what, ours => , reference => , value => , at_least => or at_most => )
# value is what the target is about: a ratio, or the figure itself.
sub result
{
	my ($what, %r) = @_;
	my $at_least = delete $r{at_least};
	my $at_most = delete $r{at_most};
	$r{what} = $what;
	$r{at_least} = defined $at_least;
	$r{target} = defined $at_least ? $at_least : $at_most;
	push @results, \%r;
	print line(\%r);
	return;
}

# Only what has a target.
sub summary
{
	my @with_target = grep { defined $_->{target} } @results;
	my @missed = grep { line($_) =~ /MISSED/ } @with_target;

	return unless @with_target;
	headline('Targets');
	columns();
	print line($_) for @with_target;
	printf "\n%d of %d targets reached\n", @with_target - @missed, scalar @with_target;
	return;
}

1;
