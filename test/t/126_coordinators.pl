# Exactly once with three brokers: each of them dies and comes back under load, among
# them the one that coordinates the transactions and the one that leads the topic of the
# position; then that topic has too few replicas, another one has none; then all die at
# once.
use OutboxTest;

my $kafka = OutboxKafka->start(brokers => 3, auto_create => 'false');
my $topic = unique_topic('coordinators');
my $pg = OutboxTest->server('main', conf => <<END);
outbox.segment_size = 1MB
outbox.relay_memory = 4MB
END

$kafka->create_topic($topic, 6, 3);
$pg->judge_setup;
$pg->create_server('events', $kafka, topics => "$topic*", exactly_once => 'true');
ok($pg->flush, 'it runs');

sub delivered { return $pg->sql('SELECT delivered FROM outbox.relay_status') }

sub goes_on
{
	my ($what) = @_;
	my $before = delivered();
	return $pg->wait_ok("SELECT delivered > $before + 500 FROM outbox.relay_status", $what);
}

# the next may be killed when there is another that has all of it
my $position = 'pg_outbox.position.events';
my @replicated = ($topic, $position, '__transaction_state');
# no more than brokers, and those that catch up, can do beside
my $load = $pg->ordered_load($topic, '--rate', 500);
goes_on('delivers');
for my $broker (1 .. 3)
{
	$kafka->kill_broker($broker);
	goes_on("without broker $broker");
	$kafka->start_broker($broker, 3);
	goes_on("with broker $broker again");
	$kafka->wait_in_sync(3, @replicated);
}

# the topic of the position wants all of its replicas
$kafka->set_config($position, 'min.insync.replicas=3');
$kafka->kill_broker(2);
$pg->wait_ok("SELECT state = 'error' AND hint LIKE 'Check that % min.insync.replicas in sync.' FROM outbox.relay_status",
	'replicas are missing');
$kafka->start_broker(2, 3);
goes_on('with all replicas again');
$kafka->set_config($position, 'min.insync.replicas=1');
$kafka->wait_in_sync(3, @replicated);

# a topic whose only broker is dead waits, and so does the transaction that was to write to
# it: brokers end it only when its partition is back
my ($n, $stalled) = (0);
do
{
	$stalled = "$topic." . ++$n;
	$kafka->create_topic($stalled, 1, 1);
} until $kafka->leader($stalled) == 3;
$kafka->kill_broker(3);
$pg->sql("SELECT judge.publish_many('$stalled', 100)");
$pg->wait_ok('SELECT lagging_topics = 1 FROM outbox.relay_status', 'a topic lags');
$pg->wait_ok("SELECT state = 'error' AND hint LIKE 'Check that % topics written last have leaders %' FROM outbox.relay_status",
	'what it waits for is told');
$kafka->start_broker(3, 3);
goes_on('with its broker again');
$pg->wait_ok('SELECT lagging_topics = 0 FROM outbox.relay_status', 'it catches up');

$kafka->kill_broker($_) for 1 .. 3;
$pg->wait_ok(q{SELECT state = 'retrying' FROM outbox.relay_status}, 'none is left');
$kafka->start_broker($_, $_ == 3 ? 3 : 0) for 1 .. 3;
$pg->end_load($load);
ok($pg->flush, 'delivered');
$pg->judge_ok($kafka, [ $topic, $stalled ], 'all once and in order', committed => 1);
is($pg->sql('SELECT dead FROM outbox.relay_status'), 0, 'no dead letters');

$pg->stop;
done_testing();
