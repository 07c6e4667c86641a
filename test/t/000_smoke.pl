# Does the main job work at all: publish, commit, consumed; a rollback publishes
# nothing.  Everything else assumes so.
# every major
use OutboxTest;

my $kafka = OutboxKafka->shared;
my $topic = unique_topic('smoke');
my $pg = OutboxTest->server('main');

$kafka->create_topic($topic, 2);
$pg->create_server('events', $kafka, topics => $topic);

$pg->sql(<<END);
BEGIN;
SELECT outbox.publish('$topic', '{"n": 1}'::jsonb, 'k', '{"colour": "blue"}');
COMMIT;
BEGIN;
SELECT outbox.publish('$topic', 'never', 'k');
ROLLBACK;
SELECT outbox.publish('$topic', NULL::text, 'k');
END
ok($pg->flush, 'everything was delivered');

my @got = $kafka->consume($topic);
is(scalar @got, 2, 'two messages');
is($got[0]{payload}, '{"n": 1}', 'payload');
is($got[0]{key}, 'k', 'key');
is($got[0]{header}{colour}, 'blue', 'header of the caller');
like($got[0]{message_id}, qr/^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$/,
	'message id is a UUID');
is($got[1]{payload}, undef, 'null payload is a tombstone');

$pg->judge_setup;
my $load = $pg->load(clients => 4, transactions => 100, script => <<END);
\\set k random(1, 5)
SELECT judge.publish_in_order('$topic', 'k' || :k);
END
ok($load->finish, 'four clients published');
$pg->sql("SELECT judge.publish_many('$topic', 1000)");
ok($pg->flush, 'everything was delivered');
my %verdict = $pg->judge($kafka, [$topic]);
is($verdict{phantom}, 2, 'only the first two are not in the ledger');
is($verdict{$_}, 0, "none $_") for qw(lost reordered stale duplicated damaged scattered);
is($verdict{published}, 1400, 'all in the ledger');

$pg->stop;
done_testing();
