# Long and rough: three brokers are killed, frozen and restarted in turn under load,
# the relay and all of PostgreSQL end in between, a topic is missing and bad messages
# are published all the time.  Nothing is lost, keys stay in order; and memory stays
# bounded while hundreds of thousands of messages are delivered.
use OutboxTest;

my $kafka = OutboxKafka->start(brokers => 3, auto_create => 'false');
my $run = unique_topic('rough');
my ($topic, $sized, $missing, $bulk) = map { "$run.$_" } qw(topic sized missing bulk);
my $memory_mb = 16;
my $pg = OutboxTest->server('main', conf => <<END);
outbox.segment_size = 2MB
outbox.relay_memory = ${memory_mb}MB
END

$kafka->create_topic($topic, 6, 3);
$kafka->create_topic($sized, 3, 3, 'max.message.bytes=20000');
$kafka->create_topic($bulk, 6, 3);
$pg->judge_setup;
$pg->create_server('events', $kafka, topics => "$run.*", topic_timeout => '-1');

my @load;

sub start_load
{
	@load = map { $pg->load(clients => 2, seconds => 600, script => $_) } <<END, <<END2;
\\set k random(1, 40)
\\set t random(1, 10)
SELECT judge.publish_in_order(CASE WHEN :t = 1 THEN '$missing' WHEN :t < 4 THEN '$sized'
	ELSE '$topic' END, 'k' || :k);
END
\\set k random(1, 40)
\\set bad random(1, 200)
\\if :bad = 1
SELECT judge.publish('$sized', repeat('x', 30000), 'b' || :k);
\\else
BEGIN;
SELECT judge.publish('$topic', 'a', 'b' || :k);
SAVEPOINT s;
SELECT judge.publish('$topic', 'never', 'b' || :k);
ROLLBACK TO s;
SELECT judge.publish('$sized', 'b', 'b' || :k);
COMMIT;
\\endif
END2
	return;
}

sub end_load
{
	$_->stop for @load;
	return $pg->wait_for(q{SELECT count(*) = 0 FROM pg_stat_activity
		WHERE application_name = 'pgbench'});
}

sub delivers
{
	my ($what) = @_;
	my $now = $pg->sql('SELECT delivered FROM outbox.relay_status');
	return $pg->wait_ok("SELECT delivered > $now + 100 OR delivered < $now FROM outbox.relay_status",
		"delivers $what");
}

start_load();
delivers('at first');
for my $round (1 .. 3)
{
	my $broker = $round;

	$kafka->kill_broker($broker);
	delivers("without broker $broker");
	$kafka->start_broker($broker, 3);
	$kafka->freeze($broker);
	$pg->sql("SELECT judge.publish_many('$topic', 20000, 100, 200)");
	$kafka->thaw($broker);
	delivers("with broker $broker again");
	if ($round == 1)
	{
		$pg->kill_process($pg->relay_pid('events'));
		$pg->wait_ok('SELECT delivered < 1000000 FROM outbox.relay_status', 'the server restarted');
	}
	elsif ($round == 2)
	{
		$pg->crash;
		$pg->start;
	}
	else
	{
		$pg->restart;
	}
	end_load();
	start_load();
	delivers("after ending no. $round");
}
ok(end_load(), 'load ended');
$kafka->create_topic($missing, 3, 3);
ok($pg->flush(timeout => 300), 'delivered');
my %verdict = $pg->judge_ok($kafka, [ $topic, $sized, $missing ], 'nothing lost, in order',
	duplicates => 1, dead => '(SELECT array_agg(id) FROM outbox.dead_letter)');
diag("$verdict{published} published, $verdict{duplicated} duplicates");
is($pg->sql('SELECT count(*) FROM outbox.dead_letter'),
	$pg->sql(q{SELECT count(*) FROM judge.ledger WHERE payload_md5 = md5(repeat('x', 30000))}),
	'dead letters are the bad messages');
$pg->wait_ok('SELECT lagging_topics = 0 FROM outbox.relay_status', 'none lags');

# A drain of many.
$pg->sql(q{SELECT outbox.pause('events')});
$pg->sql("SELECT judge.publish_many('$bulk', 100000, 1000, 200)") for 1 .. 5;
$pg->sql(q{SELECT outbox.resume('events')});
my $most = 0;
my $drained = $pg->wait_until(sub {
	my $now = $pg->relay_memory('events');
	$most = $now if $now > $most;
	return $pg->sql(q{SELECT outbox.flush('50ms')}) eq 't';
}, timeout => 300);
ok($drained, 'drained');
$pg->memory_ok($most, (60 + $memory_mb) * 1024, 'relay memory was bounded');
$pg->judge_ok($kafka, [$bulk], 'all once and in order', payload => 'none', timeout => 300);

$pg->stop;
done_testing();
