#!/usr/bin/perl
# Sums up lcov's figures, and names each stretch of over ten lines that no test reaches.
#
#   uncovered.pl PREFIX_TO_CUT coverage.info
#
# A stretch begins and ends with a line of code that was not reached, and holds none that
# was; what stands between (comments, declarations) counts.
use strict;
use warnings;

use constant LONG => 10;

my ($prefix, $info) = @ARGV;
my ($file, @lines, %sum, @stretches);

open my $in, '<', $info or die "$info: $!\n";
while (<$in>)
{
	chomp;
	if (/^SF:\Q$prefix\E(.*)/) { $file = $1; @lines = () }
	elsif (/^DA:(\d+),(\d+)/) { push @lines, [ $1, $2 ]; $sum{lines}++; $sum{lines_hit}++ if $2 }
	elsif (/^BRDA:\d+,\d+,\d+,(.*)/) { $sum{branches}++; $sum{branches_hit}++ if $1 ne '-' && $1 > 0 }
	elsif (/^end_of_record/) { stretches() }
}

sub stretches
{
	my ($from, $to);

	for my $line ((sort { $a->[0] <=> $b->[0] } @lines), [ 0, 1 ])
	{
		my ($n, $hits) = @$line;
		if (!$hits) { $from //= $n; $to = $n; next }
		push @stretches, "$file:$from-$to" if defined $from && $to - $from >= LONG;
		$from = undef;
	}
	return;
}

sub percent
{
	my ($what) = @_;
	return sprintf '%.1f %% of %d %s', 100 * ($sum{"${what}_hit"} || 0) / ($sum{$what} || 1),
	  $sum{$what} || 0, $what;
}

print "reached: ", percent('lines'), ", ", percent('branches'), "\n";
print "stretches of over ", LONG, " lines that no test reaches: ", scalar(@stretches), "\n";
print "  $_\n" for @stretches;
