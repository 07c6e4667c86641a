# The clock is set back while a relay asks for its transactional id and gets no answer:
# it is not held up for as long.
use OutboxClock;
use OutboxTest;

my $hour = 3600;
my $clock = OutboxClock->new;
my $pg = OutboxTest->server('main', clock => $clock);

plan skip_all => 'the clock of servers cannot be set here' unless $clock->strikes($pg);
$clock->set(0);
$pg->judge_setup;
my $kafka = OutboxKafka->start(auto_create => 'false');
my $topic = unique_topic('asks');
$kafka->create_topic($topic, 1);
$pg->create_server('own', $kafka, topics => $topic, exactly_once => 'true');
for my $round (1 .. 10)
{
	$pg->sql("SELECT judge.publish_many('$topic', 100)");
	ok($pg->flush, 'delivers');
	$kafka->kill_broker;
	my $pid = $pg->relay_pid('own');
	$pg->sql("SELECT pg_terminate_backend($pid)");
	$pg->new_relay('own', $pid);
	$pg->sql("SELECT judge.publish_many('$topic', 100)");
	$pg->wait_ok(q{SELECT last_error IS NOT NULL AND state <> 'running' FROM outbox.relay_status}, 'it gets no answer');
	$clock->set($clock->ahead - $hour);
	$kafka->start_broker;
	ok($pg->flush(timeout => 60), "delivers when there is one, round $round");
}
$pg->judge_ok($kafka, [$topic], 'each once', committed => 1);
$kafka->stop;
$pg->stop;
done_testing();
