# Three brokers: leaders change under load, and a topic that only a dead broker has
# waits, while others flow with a backlog beyond the relay's memory.
use OutboxTest;

my $kafka = OutboxKafka->start(brokers => 3, auto_create => 'false');
my $run = unique_topic('b');
my $topic = "$run.replicated";
my $pg = OutboxTest->server('main', conf => <<END);
outbox.segment_size = 1MB
outbox.relay_memory = 4MB
END

$kafka->create_topic($topic, 6, 3);
$pg->judge_setup;
$pg->create_server('events', $kafka, topics => "$run.*");

my $load = $pg->load(clients => 4, seconds => 14, script => <<END);
\\set k random(1, 40)
SELECT judge.publish_in_order('$topic', 'k' || :k);
END
$pg->wait_ok('SELECT delivered > 100 FROM outbox.relay_status', 'delivers');
$kafka->kill_broker(2);
my $before = $pg->sql('SELECT delivered FROM outbox.relay_status');
$pg->wait_ok("SELECT delivered > $before + 1000 FROM outbox.relay_status", 'goes on with other leaders');
$kafka->start_broker(2, 3);
ok($load->finish, 'publishers never noticed');
ok($pg->flush, 'delivered');
$pg->judge_ok($kafka, [$topic], 'leader changes: all once and in order');

# Topics of one replica: two that are on broker 3, and one that is not.
my (@single, @stalled, @others);
while (@single < 40 && (@stalled < 2 || !@others))
{
	my $single = "$run.single" . @single;
	push @single, $single;
	$kafka->create_topic($single, 1, 1);
	push @{ $kafka->leader($single) == 3 ? \@stalled : \@others }, $single;
}
cmp_ok(scalar @stalled, '>=', 2, 'two topics are on broker 3 only');
$pg->sql("SELECT judge.publish_many('$_', 10)") for @single;
ok($pg->flush, 'all of them work');
$kafka->kill_broker(3);
$pg->wait_until(sub { $kafka->admin('leaders', $topic) !~ /\t3$/m });

# first only a few messages of them, then more than the relay's memory
$pg->sql("SELECT judge.publish_many('$_', 5)") for @stalled;
$before = $pg->sql('SELECT delivered FROM outbox.relay_status');
$pg->sql("SELECT judge.publish_many('$_', 20000, 50, 300)") for $topic, $others[0];
$pg->wait_ok("SELECT delivered >= $before + 40000 FROM outbox.relay_status",
	'a few messages that can not be sent hold up nobody');
$pg->sql("SELECT judge.publish_many('$_', 20000, 50, 300)") for $stalled[0];
$pg->sql("SELECT judge.publish_many('$_', 10000, 50, 300)") for $topic, $others[0];
$pg->wait_ok("SELECT delivered >= $before + 60000 FROM outbox.relay_status",
	'many messages that can not be sent, neither');
cmp_ok($pg->sql('SELECT lagging_topics FROM outbox.relay_status'), '>=', 1, 'they lag');
is($pg->sql(q{SELECT outbox.flush('100ms')}), 'f', 'flush waits');
$kafka->start_broker(3, 3);
ok($pg->flush, 'delivered');
$pg->judge_ok($kafka, [ $topic, @single ], 'a dead broker: all once and in order');
$pg->wait_ok('SELECT lagging_topics = 0 FROM outbox.relay_status', 'none lags');

# More than are under way at a time while answers come, and less than the relay's memory.
$pg->sql("ALTER SYSTEM SET outbox.relay_memory = '64MB'");
$pg->reload;
$kafka->kill_broker(3);
$pg->wait_until(sub { $kafka->admin('leaders', $topic) !~ /\t3$/m });
$before = $pg->sql('SELECT delivered FROM outbox.relay_status');
$pg->sql("SELECT judge.publish_many('$stalled[0]', 20000, 50, 300)");
$pg->sql("SELECT judge.publish_many('$others[0]', 1000, 50, 300)");
$pg->wait_ok("SELECT delivered >= $before + 1000 FROM outbox.relay_status",
	'many that are under way and get no answer hold up nobody');
cmp_ok($pg->sql('SELECT in_flight FROM outbox.relay_status'), '>', 8192, 'they are under way');
$kafka->start_broker(3, 3);
ok($pg->flush, 'delivered');
$pg->judge_ok($kafka, [ $topic, @single ], 'all once and in order');
is($pg->sql('SELECT dead FROM outbox.relay_status'), 0, 'no dead letters');

$pg->stop;
done_testing();
