# The relay, or all of PostgreSQL, ends in every way under load.  Nothing is lost and
# keys stay in order; what ends cleanly sends nothing twice.
use OutboxTest;

my $kafka = OutboxKafka->start(auto_create => 'false');
my ($clean, $crash, $missing) = map { unique_topic($_) } qw(clean crash missing);
my $pg = OutboxTest->server('main', conf => 'outbox.segment_size = 512kB');

$kafka->create_topic($_, 4) for $clean, $crash;
$pg->judge_setup;
$pg->create_server('events', $kafka, topics => '*');

# The relay is asked to end, the server restarts, options change, pause and resume:
# all of it without duplicates.
my $load = $pg->ordered_load($clean);
for (1 .. 2)
{
	my $pid = $pg->relay_pid('events');
	$pg->kill_process($pid, 'TERM');
	ok($pg->new_relay('events', $pid), 'a relay that was asked to end is started again');
}
my $pid = $pg->relay_pid('events');
for my $linger (1, 2, 3)
{
	my $option = $linger == 1 ? 'ADD' : 'SET';
	$pg->sql("ALTER SERVER events OPTIONS ($option \"linger.ms\" '$linger')");
	my $now = $pg->sql('SELECT delivered FROM outbox.relay_status');
	$pg->wait_ok("SELECT delivered > $now FROM outbox.relay_status", 'delivers with new options');
}
is($pg->relay_pid('events'), $pid, 'reconfigured by the same relay');
for (1 .. 15)
{
	$pg->sql(q{SELECT outbox.pause('events')});
	$pg->sql(q{SELECT outbox.resume('events')});
}
ok($pg->end_load($load), 'publishers never noticed');
$pg->sql("SELECT judge.publish_many('$clean', 20000)");
$pg->restart;
ok($pg->flush, 'delivered');
$pg->judge_ok($kafka, [$clean], 'clean stops: all once and in order');

# The same while a topic is missing: what was acknowledged beyond it is not sent again.
$pg->sql("SELECT judge.publish_many('$missing', 1000)");
$pg->wait_ok('SELECT lagging_topics = 1 FROM outbox.relay_status', 'a topic is missing');
$load = $pg->ordered_load($clean);
$pg->sql("BEGIN; SELECT judge.publish_many('$missing', 1000), judge.publish_many('$clean', 3000); COMMIT");
$pid = $pg->relay_pid('events');
$pg->kill_process($pid, 'TERM');
ok($pg->new_relay('events', $pid), 'the relay is started again');
$pg->sql("BEGIN; SELECT judge.publish_many('$missing', 1000), judge.publish_many('$clean', 3000); COMMIT");
ok($pg->end_load($load), 'publishers never noticed');
$pg->restart;
$pg->sql("BEGIN; SELECT judge.publish_many('$missing', 1000), judge.publish_many('$clean', 3000); COMMIT");
$pg->wait_ok('SELECT in_flight = 0 AND lagging_topics = 1 FROM outbox.relay_status',
	'still missing');
$kafka->create_topic($missing, 4);
ok($pg->flush, 'delivered');
$pg->judge_ok($kafka, [ $clean, $missing ], 'clean stops while a topic lags: all once and in order');
$pg->wait_ok('SELECT lagging_topics = 0 FROM outbox.relay_status', 'no topic lags');

# Crashes.
$load = $pg->ordered_load($crash);
for my $how (qw(relay machine immediate relay))
{
	my $before = $pg->sql('SELECT delivered FROM outbox.relay_status');
	$pg->wait_ok("SELECT delivered > $before FROM outbox.relay_status", 'delivers');
	$pg->sql("SELECT judge.publish_many('$crash', 5000)");
	if ($how eq 'relay')
	{
		$pid = $pg->relay_pid('events');
		$pg->kill_process($pid);
		ok($pg->new_relay('events', $pid), 'the server restarted');
	}
	elsif ($how eq 'machine')
	{
		$pg->crash;
		$pg->start;
	}
	else
	{
		$pg->stop('immediate');
		$pg->start;
	}
	$pg->end_load($load);
	$load = $pg->ordered_load($crash);
}
$pg->end_load($load);
ok($pg->flush, 'delivered');
my %verdict = $pg->judge_ok($kafka, [$crash], 'crashes: nothing lost, in order', duplicates => 1);
diag("duplicates after four crashes: $verdict{duplicated} of $verdict{published}");
$pg->judge_ok($kafka, [ $clean, $missing ], 'nothing more was sent twice', duplicates => 1);

# The position lies before a message in flight; after a crash the message is all that is
# left of its batch, and is answered: then the position lies behind it.
my $inside = q{SELECT s1 <> s2 FROM outbox.position_log WHERE topic IS NULL ORDER BY n DESC LIMIT 1};
$kafka->freeze;
$pg->sql("SELECT judge.publish_in_order('$crash', 'k')");
ok($pg->wait_for($inside), 'a position before a message in flight');
$pid = $pg->relay_pid('events');
$pg->kill_process($pid);
$kafka->thaw;
ok($pg->new_relay('events', $pid), 'the server restarted');
ok($pg->flush, 'delivered');
ok($pg->wait_for($inside, expect => 'f'), 'a position behind it');

$pg->stop;
done_testing();
