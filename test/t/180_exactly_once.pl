# Exactly once into Kafka: whoever reads what is committed sees every message once, in
# order, whatever crashes, at whatever moment.
use OutboxTest;

my $kafka = OutboxKafka->start(auto_create => 'false', set => ['transaction.state.log.num.partitions=4']);
my ($crash, $refused, $missing, $switch, $set_back, $off) =
  map { unique_topic($_) } qw(crash refused missing switch setback off);
my $pg = OutboxTest->server('main', conf => <<END);
outbox.segment_size = 512kB
outbox.relay_memory = 4MB
END

$kafka->create_topic($_, 4) for $crash, $refused, $switch, $set_back, $off;
$pg->judge_setup;
$pg->create_server('events', $kafka, topics => '*', exactly_once => 'true');

sub once
{
	my ($topics, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $pg->judge_ok($kafka, $topics, $name, committed => 1);
}

# It delivers, and says where it stands in a topic of its own.
$pg->sql("SELECT judge.publish_many('$crash', 1000)");
ok($pg->flush, 'delivered');
ok(scalar(grep { $_ eq 'pg_outbox.position.events' } $kafka->topics), 'there is a topic for the position');
like($kafka->admin('describe', 'pg_outbox.position.events'), qr/cleanup\.policy=compact/, 'it is compacted');
my @bookmarks = $kafka->consume('pg_outbox.position.events', committed => 1);
like($bookmarks[-1]{payload}, qr/^pg_outbox position 1\nlog [-0-9a-f]{36}\nserver \d+\nepoch \d+\nn \d+\nwal 1 [0-9A-F]+\/[0-9A-F]+\nmain \d+ \d+ \S+ \S+\n$/,
	'a position');

# The relay, the server and the broker end in every way under load.
my $load = $pg->ordered_load($crash);
for my $how (qw(relay machine broker terminate immediate relay))
{
	my $before = $pg->sql('SELECT delivered FROM outbox.relay_status');
	$pg->wait_ok("SELECT delivered > $before FROM outbox.relay_status", "delivers, before: $how");
	$pg->sql("SELECT judge.publish_many('$crash', 5000)");
	if ($how eq 'relay' || $how eq 'terminate')
	{
		my $pid = $pg->relay_pid('events');
		$pg->kill_process($pid, $how eq 'relay' ? 'KILL' : 'TERM');
		$pg->new_relay('events', $pid);
	}
	elsif ($how eq 'broker')
	{
		$kafka->kill_broker;
		$kafka->start_broker;
		next;
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
once([$crash], 'crashes: all once and in order');

# A crash at each moment of a transaction.
sub crash_at
{
	my ($point, $topic, $after, $then) = @_;
	my $pid = $pg->relay_pid('events');
	$pg->append_conf('postgresql.conf', "outbox.fault = '$point=crash'");
	$pg->reload;
	# the server goes down under it
	eval { $pg->sql("SELECT judge.publish_many('$topic', 3000)") };
	ok($pg->wait_until(sub { $pg->log_text =~ /background worker "pg_outbox relay events" \(PID $pid\) was terminated by signal 9/ }),
		"crashed: $point");
	$pg->append_conf('postgresql.conf', "outbox.fault = '$after'");
	$pg->stop('immediate');
	$pg->start;
	$then->() if $then;
	ok($pg->flush, 'delivered');
	return;
}
crash_at($_, $crash, '')
  for qw(relay-after-send chunk-before-bookmark chunk-before-commit chunk-committed relay-before-position);
once([$crash], 'crashes at each moment: all once and in order');

# Without the position at the broker, the last of them would make duplicates.
crash_at('chunk-committed', $off, 'position-at-broker=off');
my %without = $pg->judge($kafka, [$off], committed => 1);
cmp_ok($without{duplicated}, '>', 0, 'the position at the broker is what makes the difference');
$pg->append_conf('postgresql.conf', "outbox.fault = ''");
$pg->restart;

# The same while a topic is missing: the newer position, at the broker, has it too.
my $late = unique_topic('late');
$pg->sql("SELECT judge.publish_many('$late', 500)");
$pg->wait_ok('SELECT lagging_topics = 1 FROM outbox.relay_status', 'a topic is missing');
crash_at('chunk-committed', $crash, '', sub { $kafka->create_topic($late, 4) });
once([ $crash, $late ], 'a crash while a topic is missing: all once and in order');

# Refused records take nothing with them, and come once as dead letters.
$kafka->set_config($refused, 'max.message.bytes=20000');
$pg->sql(<<END);
SELECT judge.publish_many('$refused', 500);
SELECT outbox.publish('$refused', repeat('x', 50000), 'k1') FROM generate_series(1, 3);
SELECT judge.publish_many('$refused', 500);
END
ok($pg->flush, 'delivered');
is($pg->sql("SELECT count(*), string_agg(DISTINCT error, ' ') FROM outbox.dead_letter"), '3|MSG_SIZE_TOO_LARGE', 'three dead letters');
once([$refused], 'refused records: all others once and in order');

# A missing topic delays its own messages only, also with a crash in between.
$pg->sql("SELECT judge.publish_many('$missing', 1000), judge.publish_many('$crash', 1000)");
$pg->wait_ok('SELECT lagging_topics = 1 FROM outbox.relay_status', 'a topic is missing');
my $n = $pg->sql("SELECT count(*) FROM judge.ledger WHERE topic = '$crash'");
$pg->wait_ok('SELECT in_flight = 0 FROM outbox.relay_status', 'others are delivered');
my $pid = $pg->relay_pid('events');
$pg->kill_process($pid);
$pg->new_relay('events', $pid);
$pg->sql("SELECT judge.publish_many('$missing', 1000), judge.publish_many('$crash', 1000)");
$kafka->create_topic($missing, 4);
ok($pg->flush, 'delivered');
once([ $missing, $crash ], 'a topic that was missing: all once and in order');

# Switched off and on with a backlog, and paused: cleanly, so nothing comes twice.
$load = $pg->ordered_load($switch);
for my $value (qw(false true false true))
{
	$pg->sql("ALTER SERVER events OPTIONS (SET exactly_once '$value')");
	my $before = $pg->sql('SELECT delivered FROM outbox.relay_status');
	$pg->sql("SELECT judge.publish_many('$switch', 2000)");
	$pg->wait_ok("SELECT delivered > $before FROM outbox.relay_status", "delivers with exactly_once '$value'");
	$pg->sql(q{SELECT outbox.pause('events')});
	$pg->sql(q{SELECT outbox.resume('events')});
}
$pg->end_load($load);
ok($pg->flush, 'delivered');
once([$switch], 'switched over: all once and in order');

# A second relay of the same identity: the first one stops, and stays so.
my $uuid = $pg->sql('SELECT log_uuid FROM outbox.log_identity');
$kafka->fence("pg_outbox.$uuid.events");
$pg->sql("SELECT judge.publish_many('$switch', 100)");
ok($pg->wait_state('events', 'fenced'), 'fenced by another instance');
is($pg->sql('SELECT last_error FROM outbox.relay_status'), 'fenced by another instance', 'and says so');
# at once, so that the relay sees the server as it was
$pg->sql(q{SELECT outbox.pause('events'), outbox.resume('events')});
ok($pg->flush, 'delivers again when told to');
once([$switch], 'fenced: all once and in order');

# The topic of the position is lost: the position in the database is used.
$kafka->delete_topic('pg_outbox.position.events');
$pg->restart;
$pg->sql("SELECT judge.publish_many('$switch', 1000)");
ok($pg->flush, 'delivered');
once([$switch], 'the position topic was lost: all once and in order');

# A large message among small ones, as large as the relay's memory: they still share
# transactions, as the numbers of positions tell.
$pg->append_conf('postgresql.conf', "outbox.relay_memory = 1MB");
$pg->reload;
$pg->sql(q{SELECT outbox.pause('events')});
$pg->wait_state('events', 'paused');
$pg->sql(<<END);
SELECT judge.publish_many('$switch', 1000);
SELECT judge.publish('$switch', string_agg(md5(i::text), ''), 'k1') FROM generate_series(1, 28000) i;
SELECT judge.publish_many('$switch', 1000);
END
my $numbered = 'SELECT max(n) FROM outbox.position_log';
my $first = $pg->sql($numbered);
$pg->sql(q{SELECT outbox.resume('events')});
ok($pg->flush, 'delivered');
$pg->wait_ok("$numbered HAVING max(n) > $first", 'a position is stored', expect => qr/\d/);
cmp_ok($pg->sql($numbered) - $first, '<', 200, 'a large message does not make transactions small');
once([$switch], 'a large message: all once and in order');
$pg->append_conf('postgresql.conf', "outbox.relay_memory = 4MB");
$pg->reload;

# Another server of the same name starts where it was told to, not where the old one was.
my $between = unique_topic('between');
$kafka->create_topic($between, 1);
$pg->sql("SET client_min_messages = error; DROP SERVER events");
$pg->sql("SELECT outbox.publish('$between', 'before')");
$pg->create_server('events', $kafka, topics => '*', exactly_once => 'true');
$pg->sql("SELECT outbox.publish('$between', 'after')");
ok($pg->flush, 'delivered');
is(join(' ', map { $_->{payload} } $kafka->consume($between, committed => 1)), 'after',
	'a new server of an old name');

# The database is set back: the position at the broker tells of what it has not seen.
$pg->sql("SELECT judge.publish_many('$set_back', 100)");
ok($pg->flush, 'delivered');
$pg->stop;
PostgreSQL::Test::RecursiveCopy::copypath($pg->data_dir, $pg->basedir . '/before');
$pg->start;
$pg->sql("SELECT judge.publish_many('$set_back', 2000)");
ok($pg->flush, 'delivered');
$pg->stop;
PostgreSQL::Test::Utils::system_or_bail('rm', '-rf', $pg->data_dir);
PostgreSQL::Test::RecursiveCopy::copypath($pg->basedir . '/before', $pg->data_dir);
chmod 0700, $pg->data_dir;
$pg->start;
$pg->sql("SELECT judge.publish_many('$set_back', 500)");
ok($pg->flush, 'delivered');
like($pg->log_text, qr/does not go on from its position at the broker: it (rests on WAL|names transactions|was written by a copy)/,
	'the position at the broker is not believed');
my %verdict = $pg->judge($kafka, [$set_back], committed => 1);
is($verdict{lost}, 0, 'nothing that was published since is lost');

$pg->stop;
done_testing();
