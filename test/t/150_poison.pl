# A broker refuses single records for good: too large for the topic, without a key in
# a compacted one.  Only those become dead letters; their neighbours, in the same
# batches, arrive once and in order.
use OutboxTest;

my $kafka = OutboxKafka->shared;
my $run = unique_topic('p');
my ($topic, $compacted, $other) = map { "$run.$_" } qw(sized compacted other);
my $pg = OutboxTest->server('main', conf => 'outbox.segment_size = 1MB');
my $big = "repeat('x', 30000)";

$kafka->create_topic($topic, 2, 'max.message.bytes=20000');
$kafka->create_topic($compacted, 2, 'cleanup.policy=compact');
$kafka->create_topic($other, 2);
$pg->judge_setup;
$pg->create_server('events', $kafka, topics => "$run.*");

sub letters { return $pg->sql('SELECT count(*) FROM outbox.dead_letter WHERE ' . $_[0]) }
# the library says so when it fails
sub client_changes { return scalar(() = $pg->log_text =~ /ProduceRequest for \S+ \[\d+\] with \d+ message\(s\) failed/g) }
sub dead_ids { return "(SELECT array_agg(id) FROM outbox.dead_letter)" }

# One in the middle of a dense batch, of other keys and its own.
$pg->sql(<<END);
SELECT outbox.pause('events');
BEGIN;
SELECT judge.publish_many('$topic', 3000, 20);
SELECT judge.publish('$topic', $big, 'k3');
SELECT judge.publish_many('$topic', 3000, 20);
SELECT judge.publish_many('$other', 3000, 20);
COMMIT;
SELECT outbox.resume('events');
END
ok($pg->flush, 'delivered');
is($pg->sql('SELECT error, topic, key, attempts > 0, server, reason FROM outbox.dead_letter'),
	"MSG_SIZE_TOO_LARGE|$topic|k3|t|events|Broker: Message size too large", 'one dead letter');
my %verdict = $pg->judge_ok($kafka, [ $topic, $other ], 'neighbours: all once and in order',
	dead => dead_ids());
is($verdict{published} - $verdict{consumed}, 1, 'and it is not there');

# Many, under load.
my $load = $pg->load(clients => 4, seconds => 6, script => <<END);
\\set k random(1, 20)
\\set bad random(1, 60)
\\if :bad = 1
SELECT judge.publish('$topic', $big, 'k' || :k);
\\elif :bad = 2
SELECT judge.publish('$compacted', 'keyless');
\\elif :bad < 20
SELECT judge.publish_in_order('$compacted', 'o' || :k);
\\elif :bad < 40
SELECT judge.publish_in_order('$other', 'o' || :k);
\\else
SELECT judge.publish_in_order('$topic', 'o' || :k);
\\endif
END
ok($load->finish, 'publishers never noticed');
ok($pg->flush, 'delivered');
my $bad = $pg->sql(q{SELECT count(*) FROM judge.ledger WHERE key IS NULL})
  + $pg->sql(qq{SELECT count(*) FROM judge.ledger WHERE payload_md5 = md5($big)});
is(letters('true'), $bad, "each bad one is a dead letter ($bad)");
is(letters(qq{topic = '$compacted' AND error <> 'INVALID_RECORD'}), 0, 'keyless ones by their name');
is(letters(qq{topic = '$topic' AND error <> 'MSG_SIZE_TOO_LARGE'}), 0, 'large ones by theirs');
%verdict = $pg->judge_ok($kafka, [ $topic, $other, $compacted ], 'all others in order',
	dead => dead_ids(), duplicates => 1);
is($verdict{duplicated}, 0, 'and once');
is($verdict{consumed}, $verdict{published} - $bad, 'none of the bad ones is there');
is($pg->sql('SELECT dead FROM outbox.relay_status'), $bad, 'relay_status counts them');
is($pg->sql('SELECT state FROM outbox.relay_status'), 'running', 'state');

# In the first batch that a client sends to a partition, with others behind it on the wire:
# a broker that knows nothing of the producer yet would take those.
my $first = "$run-first";
$kafka->create_topic($first, 1, 'max.message.bytes=20000');
for my $round (1 .. 5)
{
	$pg->create_server('first', $kafka, topics => $first, paused => 'true', 'batch.num.messages' => 2);
	$pg->sql("BEGIN; SELECT judge.publish_in_order('$first', 'k1'); SELECT judge.publish('$first', $big, 'k0');"
		  . " SELECT judge.publish_in_order('$first', 'k' || n % 7) FROM generate_series(1, 400) n; COMMIT");
	$pg->sql("ALTER SERVER first OPTIONS (DROP paused)");
	ok($pg->flush, 'delivered');
	is(letters("server = 'first'"), 1, 'one dead letter');
	$pg->judge_ok($kafka, [$first], 'a batch that is refused as the first one is not overtaken', dead => dead_ids());
	$pg->sql("SELECT outbox.discard('first'); DROP SERVER first");
	$kafka->delete_topic($first);
	$first = "$run-first$round";
	$kafka->create_topic($first, 1, 'max.message.bytes=20000');
}

# Redriven by ids, by topic, all; discarded.
my ($id, $message_id) = split /\|/,
  $pg->sql(qq{SELECT id, message_id FROM outbox.dead_letter WHERE topic = '$topic' ORDER BY id LIMIT 1});
is($pg->sql("SELECT outbox.redrive('events', ARRAY[$id])"), 1, 'redriven by id');
ok($pg->flush, 'answered');
is(letters("topic = '$topic' AND message_id = '$message_id'"), 1, 'and refused again');
$kafka->set_config($topic, 'max.message.bytes=1000000');
my $large = letters("topic = '$topic'");
is($pg->sql("SELECT outbox.redrive('events', topic => '$topic')"), $large, 'redriven by topic');
ok($pg->flush, 'answered');
is(letters("topic = '$topic'"), 0, 'all are delivered now');
my @got = grep { $_->{message_id} eq $message_id } $kafka->consume($topic);
is(scalar @got, 1, 'with the message id that it had');
is(join(' ', map { $_->[0] } @{ $got[0]{headers} }), 'message-id ledger', 'and its headers');
is(length $got[0]{payload}, 30000, 'and its payload');
my $keyless = letters("topic = '$compacted'");
my ($one) = $pg->sql('SELECT min(id) FROM outbox.dead_letter');
is($pg->sql("SELECT outbox.discard('events', ARRAY[$one])"), 1, 'discarded by id');
my $changes = client_changes();
is($pg->sql("SELECT outbox.redrive('events')"), $keyless - 1, 'all are redriven');
ok($pg->flush, 'answered');
is(letters("error = 'INVALID_RECORD'"), $keyless - 1, 'and refused again');
$changes = client_changes() - $changes;
cmp_ok($changes, '>', 0, 'changes of the client are seen');
cmp_ok($changes, '<', $keyless / 20, "a run of refusals takes few changes of the client: $changes for $keyless");
is($pg->sql("SELECT outbox.discard('events')"), $keyless - 1, 'all are discarded');
is(letters('true'), 0, 'none is left');
$pg->sql_fails("SELECT outbox.redrive('nobody')", qr/no outbox server "nobody"/, 'no such server');

# on_error block: the topic waits, others flow; healed by the broker and ALTER SERVER.
my ($blocked, $free) = map { "$run.$_" } qw(blocked free);
$kafka->create_topic($blocked, 2, 'max.message.bytes=20000');
$kafka->create_topic($free, 2);
$pg->sql(q{ALTER SERVER events OPTIONS (ADD on_error 'block')});
$pg->sql("BEGIN; SELECT judge.publish_many('$blocked', 500, 5);"
	  . " SELECT judge.publish('$blocked', $big, 'k1');"
	  . " SELECT judge.publish_many('$blocked', 500, 5); COMMIT");
ok($pg->wait_state('events', 'blocked'), 'state is blocked');
my $delivered = $pg->sql('SELECT delivered FROM outbox.relay_status');
$pg->sql("SELECT judge.publish_many('$free', 2000); SELECT judge.publish_many('$blocked', 100)");
$pg->wait_ok("SELECT delivered >= $delivered + 2000 FROM outbox.relay_status", 'others flow');
is($pg->sql(q{SELECT outbox.flush('100ms')}), 'f', 'flush waits');
like($pg->sql('SELECT last_error FROM outbox.relay_status'),
	qr/\Q$blocked\E.*message \d+ was refused: .*too large/, 'last_error names the message');
is(letters('true'), 0, 'no dead letter');
$pg->restart;
ok($pg->wait_state('events', 'blocked'), 'still blocked after a restart');
$kafka->set_config($blocked, 'max.message.bytes=1000000');
$pg->sql(q{ALTER SERVER events OPTIONS (ADD "linger.ms" '1')});
ok($pg->flush(timeout => 20), 'healed by ALTER SERVER, at once');
%verdict = $pg->judge_ok($kafka, [ $blocked, $free ], 'all once and in order');
is($verdict{consumed}, 3101, 'all of them');
ok($pg->wait_state('events', 'running'), 'state is running');

$pg->stop;
done_testing();
