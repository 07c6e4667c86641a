# The conformance suite: what every transport must do, with a real server of its broker.
#
#   Conformance->run('Kafka');       Conformance/Kafka.pm is the adapter
#
# A check is a subtest, so that what fails has its name; it gets a Conformance::Check, makes
# its own destinations and servers, and these are dropped behind it.  All checks of a file
# have one broker and one PostgreSQL.  A check that dies has failed; the next one finds both
# in order again.  OUTBOX_CHECKS='order dead_letters' runs those whose names match one of these.
package Conformance;

use strict;
use warnings;

use Conformance::Access;
use Conformance::Check;
use Conformance::Faults;
use Conformance::Inbox;
use Conformance::Messages;
use Conformance::Refusals;
use OutboxTest;

sub run
{
	my ($class, $transport) = @_;
	my $adapter = "Conformance::$transport";
	my @only = split ' ', $ENV{OUTBOX_CHECKS} || '';

	eval "require $adapter; 1" or die $@;
	my $broker = $adapter->start;
	my $pg = OutboxTest->server($broker->name, conf => <<END);
outbox.segment_size = 1MB
outbox.relay_memory = 8MB
outbox.poll_interval = 100ms
END
	$pg->judge_setup;
	Conformance::Inbox->set_up($pg);
	my @checks = map { $_->checks } map { "Conformance::$_" } qw(Messages Refusals Access Faults Inbox);
	my %known = @checks;
	while (my ($name, $code) = splice @checks, 0, 2)
	{
		next if @only && !grep { $name =~ /$_/ } @only;
		_one_check($pg, $broker, $name, $code);
	}
	$pg->stop;
	$broker->end;
	done_testing();
	return;
}

sub _one_check
{
	my ($pg, $broker, $name, $code) = @_;
	my $check = Conformance::Check->new($pg, $broker, $name);
	my $start = time;

	subtest $name => sub {
		eval { $code->($check); 1 } or fail("the check broke off: $@");
		eval { $check->clean_up; 1 } or fail("what it left: $@");
		is($check->crashes, '', 'no process has crashed');
		done_testing();
	};
	note(sprintf '%s took %d s', $name, time - $start);
	return;
}

1;
