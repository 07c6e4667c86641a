# The kinds of faults: a table that the files below Kinds/ fill.
#
# weight      how often it is drawn
# needs       sub(setup): possible in this setup?
# inject      sub(scenario): does it; true or a word about it if it was done, false
#             if there was nothing to do it to.  All choices by rand(), which is
#             seeded for each.
# crash       something dies without a word
# outage      a broker doesn't answer for a while
# clean_stop  a relay ends or begins anew in its own way
# duplicates  messages may come twice for another reason
# displaced   a position at the broker is lost: then exactly_once doesn't survive a crash
# once        at most once a scenario
# permits     patterns of errors and warnings in the server's log
package Faults::Kinds;

use strict;
use warnings;

our %kinds;

sub add
{
	my ($name, %kind) = @_;
	die "two kinds named $name\n" if $kinds{$name};
	$kinds{$name} = { weight => 2, permits => [], %kind };
	return;
}

sub possible
{
	my ($setup) = @_;
	my @possible = grep { !$kinds{$_}{needs} || $kinds{$_}{needs}->($setup) } keys %kinds;
	# PostgreSQL itself needs room to recover
	@possible = grep { !$kinds{$_}{crash} && $_ ne 'fast-restart' } @possible if $setup->{disk} eq 'small';
	return map { $_ => $kinds{$_} } @possible;
}

require Faults::Kinds::Processes;
require Faults::Kinds::Points;
require Faults::Kinds::Brokers;
require Faults::Kinds::Sessions;
require Faults::Kinds::Administration;
require Faults::Kinds::Standby;
require Faults::Kinds::Inbox;

1;
