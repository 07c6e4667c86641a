# With synchronous standbys nothing leaves that they don't have; and a standby that is
# promoted goes on with delivery.
use OutboxTest;

my $kafka = OutboxKafka->shared;
my $topic = unique_topic('standby');
my $pg = OutboxTest->server('primary', init => { allows_streaming => 1 },
	conf => "outbox.segment_size = 512kB\nwal_keep_size = 1GB");

$kafka->create_topic($topic, 4);
$pg->judge_setup;
$pg->create_server('events', $kafka, topics => $topic);
$pg->backup('base');
my $standby = OutboxTest->new('standby');
$standby->init_from_backup($pg, 'base', has_streaming => 1);
$standby->start;
$pg->sql(q{ALTER SYSTEM SET synchronous_standby_names = 'standby'});
$pg->reload;
$pg->wait_ok(q{SELECT sync_state = 'sync' FROM pg_stat_replication}, 'a synchronous standby');

$pg->sql("SELECT judge.publish_many('$topic', 1000)");
ok($pg->flush, 'delivered');
is($standby->sql(q{SELECT state FROM outbox.relay_status}), 'no_worker', 'no relay on a standby');
is($kafka->count($topic), 1000, 'all of it');

# It ends under load: what it doesn't have is not sent.  Publishers don't wait here.
my $load = $pg->load(clients => 4, seconds => 600, script => <<END);
\\set k random(1, 20)
BEGIN;
SET LOCAL synchronous_commit = local;
SELECT judge.publish_in_order('$topic', 'k' || :k);
COMMIT;
END
$pg->wait_ok('SELECT delivered > 1100 FROM outbox.relay_status', 'delivers under load');
$standby->stop('immediate');
ok($pg->wait_state('events', 'waiting_for_standby'), 'waits for the standby');
my $sent = $kafka->count($topic);
$pg->sql("SET synchronous_commit = local; SELECT judge.publish_many('$topic', 5000)");
is($pg->sql(q{SELECT outbox.flush('1s')}), 'f', 'flush is not true');
is($kafka->count($topic), $sent, 'nothing is sent meanwhile');
is($pg->sql('SELECT state FROM outbox.relay_status'), 'waiting_for_standby', 'state');
$load->stop;
$pg->wait_ok(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'pgbench'},
	'publishers never waited');

# Nor after a restart, clean or not.
$pg->restart;
ok($pg->wait_state('events', 'waiting_for_standby'), 'waits after a clean restart');
is($kafka->count($topic), $sent, 'nothing is sent');
$standby->start;
ok($pg->flush, 'the standby is back: delivered');
$pg->judge_ok($kafka, [$topic], 'all once and in order');
ok($pg->wait_state('events', 'running'), 'state is running');

$standby->stop;
$pg->sql("SET synchronous_commit = local; SELECT judge.publish_many('$topic', 1000)");
ok($pg->wait_state('events', 'waiting_for_standby'), 'waits for the standby');
$sent = $kafka->count($topic);
$pg->crash;
$pg->start;
ok($pg->wait_state('events', 'waiting_for_standby'), 'waits after a crash');
is($kafka->count($topic), $sent, 'nothing is sent');
$standby->start;
ok($pg->flush, 'the standby is back: delivered');
$pg->judge_ok($kafka, [$topic], 'nothing lost', duplicates => 1);

# Without the setting nothing waits.
$standby->stop;
$pg->sql("SET synchronous_commit = local; SELECT judge.publish_many('$topic', 100)");
ok($pg->wait_state('events', 'waiting_for_standby'), 'waits for the standby');
$pg->sql('ALTER SYSTEM RESET synchronous_standby_names');
$pg->reload;
ok($pg->flush, 'without the setting: delivered');
$standby->start;
$pg->wait_for_catchup($standby);
$pg->sql(q{ALTER SYSTEM SET synchronous_standby_names = 'standby'});
$pg->reload;
$pg->wait_ok(q{SELECT sync_state = 'sync' FROM pg_stat_replication}, 'synchronous again');

# Failover under load: what publishers were told is committed is on the standby.
$load = $pg->load(clients => 4, seconds => 600, script => <<END);
\\set k random(1, 20)
SELECT judge.publish_in_order('$topic', 'k' || :k);
END
my $before = $pg->sql('SELECT delivered FROM outbox.relay_status');
$pg->wait_ok("SELECT delivered > $before + 200 FROM outbox.relay_status", 'delivers');
$pg->crash;
$load->stop;
$standby->promote;
$standby->sql('ALTER SYSTEM RESET synchronous_standby_names');
$standby->reload;
ok($standby->wait_state('events', 'running'), 'a relay runs on the new primary');
$standby->sql("SELECT judge.publish_many('$topic', 1000)");
ok($standby->flush, 'delivered');
$standby->judge_ok($kafka, [$topic], 'nothing lost, no phantom, in order', duplicates => 1);

$standby->stop;
done_testing();
