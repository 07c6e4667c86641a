# The broker dies, freezes and comes back under load, with a backlog that is larger
# than the relay's memory.  Publishers never notice, memory stays bounded, and as the
# producer is kept, nothing is sent twice.
use OutboxTest;
use Time::HiRes qw(time);

my $kafka = OutboxKafka->start(auto_create => 'false');
my $topic = unique_topic('outage');
my $memory_mb = 4;
my $pg = OutboxTest->server('main', conf => <<END);
outbox.segment_size = 1MB
outbox.relay_memory = ${memory_mb}MB
END

$kafka->create_topic($topic, 4);
$pg->judge_setup;
$pg->create_server('events', $kafka, topics => '*');

sub load
{
	my ($seconds) = @_;
	return $pg->load(clients => 4, seconds => $seconds, script => <<END);
\\set k random(1, 20)
SELECT judge.publish_in_order('$topic', 'k' || :k);
END
}

# Idle: the main threads sleep.  A wake-up a second each, and what it takes to ask.
ok($pg->flush, 'nothing to do');
$pg->wait_ok('SELECT in_flight = 0 FROM outbox.relay_status', 'idle');
my $pid = $pg->relay_pid('events');
my %idle = map { split /\|/ } split /\n/,
  $pg->sql(q{SELECT backend_type, pid FROM pg_stat_activity WHERE backend_type LIKE 'pg_outbox %'});
is(scalar keys %idle, 3, 'launcher, keeper, relay: ' . join ', ', sort keys %idle);
sub wakeups
{
	my $status = PostgreSQL::Test::Utils::slurp_file("/proc/$_[0]/status");
	return $status =~ /^voluntary_ctxt_switches:\s+(\d+)/m ? $1 : 0;
}
my $from = time;
my %before = map { $_ => wakeups($idle{$_}) } keys %idle;
$pg->wait_until(sub { time - $from > 5 });
my $seconds = time - $from;
for (sort keys %idle)
{
	my $rate = (wakeups($idle{$_}) - $before{$_}) / $seconds;
	cmp_ok($rate, '<=', 3, sprintf('%s wakes up seldom: %.1f a second', $_, $rate));
}
$pg->memory_ok($pg->relay_memory('events'), 25_000, 'idle relay memory');

# Killed and restarted under load.
my $load = load(6);
$pg->wait_ok('SELECT delivered > 100 FROM outbox.relay_status', 'delivers');
$kafka->kill_broker;
ok($pg->wait_state('events', 'retrying'), 'state is retrying');
my $slowest = 0;
for (1 .. 20)
{
	my $start = time;
	$pg->sql("SELECT judge.publish_in_order('$topic', 'one')");
	my $took = time - $start;
	$slowest = $took if $took > $slowest;
}
cmp_ok($slowest, '<', 5, sprintf 'a publisher never waits for a broker: %.2f s, psql included', $slowest);
ok($load->finish, 'publishers never noticed');
$pg->sql("SELECT judge.publish_many('$topic', 40000, 50, 200)");
my $status = $pg->sql('SELECT pending_bytes > 8000000, oldest_pending < now(), last_error IS NOT NULL, last_error_at > started, hint IS NOT NULL'
	  . ' FROM outbox.relay_status');
is($status, 't|t|t|t|t', 'relay_status tells of it');
is($pg->sql(q{SELECT outbox.flush('100ms')}), 'f', 'flush is not true');
$kafka->start_broker;
my $most = 0;
my $flushed = $pg->wait_until(sub {
	my $now = $pg->relay_memory('events');
	$most = $now if $now > $most;
	return $pg->sql(q{SELECT outbox.flush('50ms')}) eq 't';
});
ok($flushed, 'delivered');
ok($pg->wait_state('events', 'running'), 'state is running');
is($pg->relay_pid('events'), $pid, 'by the same relay');
$pg->judge_ok($kafka, [$topic], 'killed: all once and in order');

# Frozen and thawed under load.
$load = load(4);
$kafka->freeze;
$pg->sql("SELECT judge.publish_many('$topic', 20000, 50, 200)");
ok($load->finish, 'publishers never noticed');
$kafka->thaw;
ok($pg->flush, 'delivered');
$pg->judge_ok($kafka, [$topic], 'frozen: all once and in order');

# A drain of many keeps memory bounded.
$pg->sql(q{SELECT outbox.pause('events')});
my $bulk = unique_topic('bulk');
$kafka->create_topic($bulk, 4);
$pg->sql("SELECT judge.publish_many('$bulk', 100000, 1000, 200)");
$pg->sql(q{SELECT outbox.resume('events')});
$flushed = $pg->wait_until(sub {
	my $now = $pg->relay_memory('events');
	$most = $now if $now > $most;
	return $pg->sql(q{SELECT outbox.flush('50ms')}) eq 't';
});
ok($flushed, 'drained');
$pg->memory_ok($most, (60 + $memory_mb) * 1024, 'relay memory was bounded');
$pg->judge_ok($kafka, [$bulk], 'all once and in order', payload => 'none');
is($pg->sql('SELECT dead FROM outbox.relay_status'), 0, 'no dead letters');
$pg->wait_ok('SELECT pending_bytes < 100000 AND oldest_pending IS NULL AND in_flight = 0'
	  . ' FROM outbox.relay_status', 'relay_status: nothing pending');

$pg->stop;
done_testing();
