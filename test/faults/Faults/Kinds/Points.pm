# Fault points (src/fault.h): a process dies, fails or waits between two steps of its
# work.  Points of workers are set for all and taken away once one has struck; those of
# publishers are set in a session that publishes.
package Faults::Kinds::Points;

use strict;
use warnings;

use Faults::Kinds;
use Faults::World;

my @relay = qw(relay-after-send relay-before-position relay-after-position reader-before-snapshot
	reader-before-open chunk-committed worker-before-connect);
my @transaction = qw(chunk-before-bookmark chunk-before-commit);
my @keeper = qw(rotate-before-commit rotate-before-switch rotate-after-switch free-before-commit
	free-after-commit);
my @publisher = qw(append-after-open append-between-parts append-after-id ids-after-setval);
my $error = qr/fault point "/;

sub struck
{
	my ($point, $action) = @_;
	return $action eq 'crash' ? qr/was terminated by signal 9/ : qr/fault point "$point"/;
}

# Until it has struck; without having done so it was none.
sub at_worker
{
	my ($scenario, $point, $action) = @_;
	my $pg = $scenario->pg;
	my $before = $scenario->count_log(struck($point, $action));

	Faults::World->set($pg, 'outbox.fault' => $scenario->fault_setting("$point=$action"));
	if ($action eq 'wait')
	{
		$scenario->later(0.2 + rand 1.2, sub { Faults::World->set($pg, 'outbox.fault' => $scenario->fault_setting) }, 'stopped');
		return 1;
	}
	my $done = $scenario->soon(sub { $scenario->count_log(struck($point, $action)) > $before }, 3);
	Faults::World->set($pg, 'outbox.fault' => $scenario->fault_setting);
	return $done;
}

sub add_worker_point
{
	my ($point, $action, %more) = @_;
	Faults::Kinds::add("$point=$action", weight => 1, %more,
		crash => $action eq 'crash' || $action eq 'fatal' ? 1 : 0, permits => [$error],
		inject => sub { return at_worker($_[0], $point, $action) });
	return;
}

for my $action (qw(crash error fatal wait))
{
	add_worker_point($_, $action) for @relay;
	add_worker_point($_, $action, needs => sub { $_[0]{exactly_once} }) for @transaction;
	next if $action eq 'wait';
	add_worker_point($_, $action) for @keeper;
}

# Publishes in a session of its own, past the point.
sub at_publisher
{
	my ($scenario, $point, $action) = @_;
	my $database = $scenario->database;
	my $topic = $database->{topics}{plain}[0];
	my $messages = $point eq 'ids-after-setval' ? 33_000 : 300;
	my $large = $database->{topics}{big};
	my $out = $scenario->try_sql($database->{name}, <<END);
SET outbox.fault = '${\$scenario->fault_setting("$point=$action")}';
BEGIN;
SELECT judge.publish('$large', repeat(md5(random()::text), 1000), 'k1');
SELECT judge.publish_many('$topic', $messages, 20, 20);
COMMIT;
END
	# it may have taken a lane or ids where the point is not passed
	return !defined $out && ($action eq 'crash'
		? $scenario->{sql_error} =~ /connection|terminat/ : $scenario->{sql_error} =~ /fault point/);
}

for my $point (@publisher)
{
	for my $action (qw(crash error fatal))
	{
		Faults::Kinds::add("$point=$action", weight => 1, crash => $action eq 'crash' ? 1 : 0,
			permits => [$error], inject => sub { return at_publisher($_[0], $point, $action) });
	}
}

1;
