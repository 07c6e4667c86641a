# A point-in-time restore to a moment before the last messages: those are at the broker,
# and the database has never heard of them.  What the restored database has is delivered,
# though it gives ids and transactions of the forgotten ones again; and while it restores,
# no worker runs.
use OutboxTest;

my $kafka = OutboxKafka->shared;
my ($many, $once) = map { unique_topic($_) } qw(many once);
my $workers = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg\_outbox%'};
my $pg = OutboxTest->server('before', init => { allows_streaming => 1, has_archiving => 1 },
	conf => "outbox.segment_size = 512kB");

$kafka->create_topic($_, 4) for $many, $once;
$pg->judge_setup;
$pg->create_server('restored_many', $kafka, topics => $many);
$pg->create_server('restored_once', $kafka, topics => $once, exactly_once => 'true');
$pg->backup('base');
$pg->sql("SELECT judge.publish_many('$_', 2000)") for $many, $once;
ok($pg->flush, 'delivered');
$pg->wait_ok(<<END, 'positions are stored');
SELECT count(*) = 2 AND bool_and(pg_visible_in_snapshot((SELECT max(xid) FROM judge.ledger), s1::pg_snapshot))
FROM (SELECT DISTINCT ON (server) * FROM outbox.position_log ORDER BY server, n DESC) p
END
# a backlog that the restore brings back
$pg->sql("SELECT outbox.pause('$_')") for qw(restored_many restored_once);
$pg->sql("SELECT judge.publish_many('$_', 1000)") for $many, $once;
$pg->sql("SELECT pg_create_restore_point('here')");
$pg->sql("SELECT outbox.resume('$_')") for qw(restored_many restored_once);
# more than the ids that a server takes in advance
$pg->sql("SELECT judge.publish_many('$_', 20000)") for $many, $once;
$pg->sql("SELECT judge.publish_many('$_', 1)") for ($many, $once) x 10;
ok($pg->flush, 'delivered beyond that moment');
my ($gone_xid, $gone_id) = split /\|/, $pg->sql('SELECT max(xid), max(id) FROM judge.ledger');
my $wal = $pg->sql('SELECT pg_walfile_name(pg_switch_wal())');
$pg->wait_ok("SELECT last_archived_wal >= '$wal' FROM pg_stat_archiver", 'archived');
$pg->stop;

my $new = OutboxTest->new('restored');
$new->init_from_backup($pg, 'base', has_restoring => 1, standby => 0);
$new->append_conf('postgresql.conf', <<END);
recovery_target_name = 'here'
recovery_target_action = 'pause'
END
$new->start;
$new->wait_ok(q{SELECT pg_get_wal_replay_pause_state() = 'paused'}, 'restored up to the target');
is($new->sql($workers), 0, 'no worker in recovery');
$new->crash;
$new->start;
$new->wait_ok(q{SELECT pg_get_wal_replay_pause_state() = 'paused'}, 'a crash, and restored again');
is($new->sql($workers), 0, 'no worker');
is($new->sql('SELECT DISTINCT state FROM outbox.relay_status'), 'no_worker', 'and it says so');
$new->sql('SELECT pg_wal_replay_resume()');
$new->wait_ok("SELECT NOT pg_is_in_recovery() AND ($workers) = 4", 'the restore ends: workers start');

# still paused, as at that moment; numbers that the ledger has not used
$new->sql(q{SELECT setval('judge.ledger_n', nextval('judge.ledger_n') + 1000000)});
my @loads = map { $new->load(clients => 2, transactions => 200,
	script => "\\set k random(1, 20)\nSELECT judge.publish_in_order('$_', 'k' || :k);") } $many, $once;
ok($_->finish, 'published') for @loads;
is($new->sql("SELECT min(xid) < '$gone_xid' AND min(id) < $gone_id FROM judge.ledger WHERE n > 1000000"), 't',
	'ids and transactions are used again');
$new->sql("SELECT outbox.resume('$_')") for qw(restored_many restored_once);
ok($new->flush, 'delivered');
like($new->log_text, qr/server "restored_once" does not go on from its position at the broker: it (rests on WAL|names transactions)/,
	'the position at the broker is not believed');
for my $topic ($many, $once)
{
	my %verdict = $new->judge($kafka, [$topic], committed => $topic eq $once);
	is(join(' ', map { "$_ $verdict{$_}" } qw(lost stale damaged scattered)),
		'lost 0 stale 0 damaged 0 scattered 0', "$topic: nothing that was restored or published since is lost");
	is($verdict{phantom}, 20010, 'what came after that moment is at the broker');
	is($verdict{duplicated}, 1000, 'the backlog of that moment, which was delivered before and after, is there twice');
	is($new->sql('SELECT count(DISTINCT message_id) FROM judge.consumed'), $verdict{consumed} - 1000,
		'no message id was given to two messages');
}

$new->stop;
done_testing();
