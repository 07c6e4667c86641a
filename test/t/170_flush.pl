# outbox.flush() tells the truth, and relay_status shows plausible figures.
use OutboxTest;
use Time::HiRes qw(time);

my $kafka = OutboxKafka->start(auto_create => 'false');
my $run = unique_topic('f');
my ($topic, $other, $missing) = map { "$run.$_" } qw(topic other missing);
my $pg = OutboxTest->server('main');
$kafka->create_topic($_, 2) for $topic, $other;
$pg->judge_setup;

$pg->sql("SELECT outbox.publish('$topic', 'x')");
is($pg->sql('SELECT outbox.flush()'), 't', 'with no server');
$pg->create_server('a', $kafka, topics => "$run.*");
$pg->create_server('b', $kafka, topics => $other);
is($pg->sql('SELECT outbox.flush()'), 't', 'with nothing to do');
is($pg->sql('SELECT outbox.flush(NULL)'), '', 'of null');
$pg->sql_fails(q{SELECT outbox.flush('-1s')}, qr/timeout must not be negative/, 'negative timeout');
$pg->sql_fails("BEGIN; SELECT outbox.publish('$topic', 'x'); SELECT outbox.flush()",
	qr/cannot flush what this transaction has published/, 'after publishing in the same transaction');
is($pg->sql("BEGIN; SAVEPOINT s; SELECT outbox.publish('$topic', 'x'); ROLLBACK TO s; COMMIT;"
	  . ' SELECT outbox.flush()') =~ /t$/, 1, 'after a rollback');

# What is committed is there when flush says so, every time.
my $wrong = 0;
for my $n (1 .. 40)
{
	my $flushed = $pg->sql("SELECT judge.publish_in_order('$topic', 'k'); SELECT outbox.flush()");
	$wrong++ unless $flushed =~ /t$/ && $kafka->count($topic) >= $n;
}
is($wrong, 0, 'what was committed is in Kafka when flush is true');

# Somebody else's open transaction doesn't count, also a long one.
my $open = $pg->session;
$open->query_safe("BEGIN; SELECT judge.publish('$topic', 'open', 'k')");
is($pg->sql('SELECT outbox.flush()'), 't', 'what is not committed does not count');
$open->query_safe('COMMIT');
$open->quit;
ok($pg->flush, 'what is, does');
$pg->judge_ok($kafka, [$topic], 'all once and in order');

# An idle server's flush is quick.
my $from = time;
$pg->sql('SELECT outbox.flush()') for 1 .. 10;
cmp_ok(time - $from, '<', 8, sprintf 'ten of an idle server: %.2f s', time - $from);

# Paused servers don't count.
$pg->sql(q{SELECT outbox.pause('b')});
ok($pg->wait_state('b', 'paused'), 'b is paused');
$pg->sql("SELECT judge.publish_many('$other', 100)");
is($pg->sql('SELECT outbox.flush()'), 't', 'a paused server does not count');
is($pg->sql(q{SELECT pending_bytes > 0, oldest_pending IS NOT NULL, in_flight FROM outbox.relay_status WHERE server = 'b'}),
	't|t|0', 'but its backlog is shown');
my $waiting = IPC::Run::start([ 'psql', '-XAtq', '-d', $pg->connstr('postgres'), '-c',
		q{BEGIN; SELECT outbox.resume('b'); COMMIT; SELECT outbox.flush()} ], '>', \my $out);
ok($waiting->finish && $out =~ /t$/, 'resumed: waited for');
is($pg->sql(q{SELECT delivered, pending_bytes, oldest_pending IS NULL, dead, in_flight, lagging_topics
	FROM outbox.relay_status WHERE server = 'b'}), '100|0|t|0|0|0', 'all is delivered');
is($pg->sql(q{SELECT latency > '0' AND latency < '1 hour', started < now(), pid > 0, last_error IS NULL
	FROM outbox.relay_status WHERE server = 'b'}), 't|t|t|t', 'latency, started, pid, no error');

# A topic that lags is waited for; the timeout is kept.
$pg->sql("SELECT judge.publish_many('$missing', 10)");
$pg->wait_ok(q{SELECT lagging_topics = 1 FROM outbox.relay_status WHERE server = 'a'}, 'a topic lags');
$from = time;
is($pg->sql(q{SELECT outbox.flush('2s')}), 'f', 'false at the timeout');
cmp_ok(time - $from, '>=', 2, 'not before');
is($pg->sql(q{SELECT outbox.flush('0')}), 'f', 'timeout 0 only looks');
is($pg->sql(q{SELECT pending_bytes > 0, oldest_pending < now() FROM outbox.relay_status WHERE server = 'a'}),
	't|t', 'its backlog is shown');
$pg->sql_fails(q{SET statement_timeout = '500ms'; SELECT outbox.flush()}, qr/statement timeout/,
	'can be cancelled');
my $session = $pg->session;
$kafka->create_topic($missing, 1);
ok($pg->flush, 'true when it is there');
is($kafka->count($missing), 10, 'delivered');
$session->quit;

# A server that can't be reached makes it wait; DROP SERVER ends that.
$pg->create_server('nowhere', '127.0.0.1:1', topics => $topic);
$pg->sql("SELECT judge.publish_in_order('$topic', 'k')");
ok($pg->wait_state('nowhere', 'retrying'), 'state is retrying');
is($pg->sql(q{SELECT outbox.flush('1s')}), 'f', 'a server that is not reached makes it wait');
$pg->sql('DROP SERVER nowhere');
ok($pg->flush, 'not when it is dropped');

# No relay at all: it waits.
$pg->sql('ALTER SYSTEM SET outbox.enabled = off');
$pg->reload;
$pg->wait_ok(q{SELECT bool_and(state = 'disabled' AND pid IS NULL) FROM outbox.relay_status}, 'disabled');
$pg->sql("SELECT judge.publish_many('$topic', 100)");
is($pg->sql(q{SELECT outbox.flush('500ms')}), 'f', 'disabled: false');
$pg->sql('ALTER SYSTEM RESET outbox.enabled');
$pg->reload;
ok($pg->flush, 'enabled again: delivered');
$pg->judge_ok($kafka, [ $topic, $other, $missing ], 'all once and in order, but for what b got too',
	duplicates => 1);

$pg->stop;
done_testing();
