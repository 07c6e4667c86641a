# Records that a broker refuses for good.  It refuses the whole batch that they came
# in; still each becomes a dead letter alone, and its neighbours arrive, once as far
# as they were not in that batch's client, and in order.
use OutboxTest;

my $kafka = OutboxKafka->shared;
my $pg = OutboxTest->server('main');
my %topic = map { $_ => unique_topic($_) } qw(small compacted plain many);
$kafka->create_topic($topic{small}, 1, 'max.message.bytes=20000');
$kafka->create_topic($topic{compacted}, 1, 'cleanup.policy=compact', 'segment.ms=86400000',
	'min.cleanable.dirty.ratio=1');
$kafka->create_topic($topic{plain}, 2);
$kafka->create_topic($topic{many}, 1, 'max.message.bytes=20000');
$pg->judge_setup;
$pg->create_server('events', $kafka, topics => join(', ', values %topic));
my $dead = '(SELECT array_agg(id) FROM outbox.dead_letter)';

sub dead_letters
{
	my ($name) = @_;
	return $pg->sql("SELECT error, attempts > 0, key, octet_length(payload)
		FROM outbox.dead_letter WHERE topic = '$topic{$name}' ORDER BY id");
}

# --- too large for the topic --------------------------------------------------------

$pg->sql(<<END);
BEGIN;
SELECT judge.publish_in_order('$topic{small}', 'a', 'a' || n) FROM generate_series(1, 50) n;
SELECT judge.publish_in_order('$topic{small}', 'a', repeat('x', 30000));
SELECT judge.publish_in_order('$topic{small}', 'a', 'a' || n) FROM generate_series(51, 100) n;
COMMIT;
END
ok($pg->flush, 'a message that is too large for its topic is no obstacle');
is(dead_letters('small'), 'MSG_SIZE_TOO_LARGE|t|a|30000', 'it alone is a dead letter');
$pg->judge_ok($kafka, [ $topic{small} ], 'its neighbours: once and in order', dead => $dead);

# --- without a key in a compacted topic ---------------------------------------------

$pg->sql(<<END);
BEGIN;
SELECT judge.publish_in_order('$topic{compacted}', 'a', 'a' || n) FROM generate_series(1, 20) n;
SELECT judge.publish('$topic{compacted}', 'no key');
SELECT judge.publish_in_order('$topic{compacted}', 'a', 'a' || n) FROM generate_series(21, 40) n;
SELECT judge.publish('$topic{compacted}', 'no key');
SELECT judge.publish_in_order('$topic{compacted}', 'b', 'b' || n) FROM generate_series(1, 20) n;
COMMIT;
END
ok($pg->flush, 'messages without a key are no obstacle in a compacted topic');
is(dead_letters('compacted'), "INVALID_RECORD|t||6\nINVALID_RECORD|t||6",
	'they alone are dead letters');
$pg->judge_ok($kafka, [ $topic{compacted} ], 'their neighbours: once and in order',
	dead => $dead);

# --- a partition that is not there ----------------------------------------------------

$pg->sql(<<END);
BEGIN;
SELECT judge.publish_in_order('$topic{plain}', 'a', 'a' || n) FROM generate_series(1, 20) n;
SELECT judge.publish('$topic{plain}', 'no partition', 'p', partition => 99);
SELECT judge.publish_in_order('$topic{plain}', 'a', 'a' || n) FROM generate_series(21, 40) n;
COMMIT;
END
ok($pg->flush, 'a partition that is not there is no obstacle');
is(dead_letters('plain'), '_UNKNOWN_PARTITION|t|p|12', 'its message is a dead letter');
$pg->judge_ok($kafka, [ $topic{plain} ], 'its neighbours: once and in order', dead => $dead);

# --- many in a backlog, while other topics have requests in flight -----------------------

$pg->sql("SELECT outbox.pause('events')");
for my $round (1 .. 5)
{
	$pg->sql("SELECT judge.publish_many('$topic{plain}', 4000)");
	$pg->sql("SELECT judge.publish_many('$topic{many}', 4000, 10)");
	$pg->sql("SELECT judge.publish_in_order('$topic{many}', 'p', repeat('x', 30000))");
}
$pg->sql("SELECT outbox.resume('events')");
ok($pg->flush, 'a backlog with several of them');
is($pg->sql("SELECT count(*) FROM outbox.dead_letter WHERE topic = '$topic{many}'"), 5,
	'each is a dead letter');
$pg->judge_ok($kafka, [ $topic{many} ], 'the rest of that topic: once and in order',
	dead => $dead);
$pg->judge_ok($kafka, [ $topic{plain} ], 'another topic, in flight then: once and in order',
	dead => $dead);

# --- mended and sent again -----------------------------------------------------------------

$kafka->set_config($topic{small}, 'max.message.bytes=100000');
is($pg->sql("SELECT outbox.redrive('events', NULL, '$topic{small}')"), 1, 'redriven');
ok($pg->flush, 'and delivered');
my %verdict = $pg->judge($kafka, [ $topic{small} ], dead => 'ARRAY[]::bigint[]');
is($verdict{lost}, 0, 'with the topic mended it is there');
is($verdict{duplicated}, 0, 'once');

$pg->stop;
done_testing();
