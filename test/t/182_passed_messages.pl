# With exactly_once, messages of a refused batch are sent one by one, and those of other
# topics pass them meanwhile.  The positions that are stored then name what has passed: a
# relay that is killed sends none of it again.
use OutboxTest;

my $kafka = OutboxKafka->start(auto_create => 'false');
my ($compacted, $other) = map { unique_topic($_) } qw(compacted other);
my $pg = OutboxTest->server('main');

$kafka->create_topic($compacted, 1, 'cleanup.policy=compact');
$kafka->create_topic($other, 4);
$pg->judge_setup;
$pg->create_server('events', $kafka, topics => '*', exactly_once => 'true');
ok($pg->flush, 'ready');

# a batch with a record that has no key, which a compacted topic refuses; and others behind it
$pg->sql("SELECT outbox.pause('events')");
$pg->sql(<<END);
SELECT judge.publish('$compacted', 'x' || i, CASE WHEN i <> 100 THEN 'k' || i END) FROM generate_series(1, 150) i;
SELECT judge.publish('$other', 'y' || i, 'k' || i) FROM generate_series(1, 150) i;
END
$pg->sql("SELECT outbox.resume('events')");
my $kills = 0;
for (1 .. 5)
{
	my $relay = $pg->relay_pid('events');
	my $n = $pg->sql('SELECT max(n) FROM outbox.position_log');
	last unless $pg->wait_for("SELECT max(n) > $n + 3 FROM outbox.position_log", timeout => 10, quiet => 1);
	$kills++;
	$pg->kill_process($relay, 'KILL');
	$pg->new_relay('events', $relay);
}
cmp_ok($kills, '>', 0, 'killed while messages pass others');
ok($pg->flush, 'delivered');
$pg->judge_ok($kafka, [ $compacted, $other ], 'all of it once', committed => 1,
	dead => '(SELECT array_agg(id) FROM outbox.dead_letter)');
$pg->stop;
done_testing();
