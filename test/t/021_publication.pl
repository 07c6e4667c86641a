# A publication FOR ALL TABLES with a subscriber that has the extension too, and a
# log, positions, servers, dead letters and marks of its own.  The subscriber's log stays
# its own, nothing is published twice, publisher's keeper goes on, and no row of a
# segment is ever sent as a change.
use OutboxTest;

my $kafka = OutboxKafka->shared;
my ($theirs, $ours) = (unique_topic('publisher'), unique_topic('subscriber'));
my $pg = OutboxTest->server('main', conf => <<END);
wal_level = logical
outbox.segment_size = 64kB
max_replication_slots = 20
max_logical_replication_workers = 10
max_sync_workers_per_subscription = 4
END

sub sub_sql { my ($sql) = @_; return $pg->sql($sql, dbname => 'subscriber') }

# as they are when nothing comes from outside
my $state = <<END;
SELECT (SELECT count(*) FROM outbox.segments s WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = s.relid)) AS foreign_segments,
	(SELECT count(*) - count(DISTINCT relid) FROM outbox.segments) AS twice,
	(SELECT count(DISTINCT lane) FROM outbox.segments) AS lanes,
	(SELECT string_agg(DISTINCT server_name, ' ') FROM outbox.position_log) AS servers,
	(SELECT count(*) FROM outbox.log_identity) AS identities,
	(SELECT string_agg(reason, ' ') FROM outbox.dead_letter) AS dead,
	(SELECT string_agg(DISTINCT topic, ' ') FROM outbox.message) AS topics
END

$kafka->create_topic($_, 2) for $theirs, $ours;
$pg->judge_setup;
$pg->sql('CREATE TABLE orders (id int PRIMARY KEY)');
$pg->create_server('events', $kafka, topics => $theirs, paused => 'true');
$pg->sql('CREATE DATABASE subscriber');
sub_sql('CREATE EXTENSION pg_outbox; CREATE TABLE orders (id int PRIMARY KEY)');
$pg->judge_setup(dbname => 'subscriber');
$pg->create_server('events2', $kafka, topics => $ours, dbname => 'subscriber');

# the same dead letter on both sides, by its key
$pg->sql("INSERT INTO outbox.dead_letter VALUES ('events', 1, 'id', 't', NULL, NULL, NULL, NULL, 't', now(), 'e', 'of the publisher', 1, now())");
sub_sql("INSERT INTO outbox.dead_letter VALUES ('events', 1, 'id', 't', NULL, NULL, NULL, NULL, 't', now(), 'e', 'of the subscriber', 1, now())");

# marks of the inbox
$pg->sql("SELECT inbox.accept('c', 'both'), inbox.accept('c', 'publisher')");
sub_sql("SELECT inbox.accept('c', 'both', '1 day'), inbox.accept('c', 'subscriber')");
my $marks = 'SELECT string_agg(format(\'%s %s\', message_id, expires_at), \',\' ORDER BY message_id) FROM inbox.seen';
my $subscribers = sub_sql($marks);

# a backlog in more segments than a new extension has
$pg->sql('INSERT INTO orders VALUES (1)');
$pg->wait_until(sub {
	$pg->sql("SELECT judge.publish_many('$theirs', 1000)");
	$pg->sql('SELECT count(*) FROM outbox.segments') > 12;
});
cmp_ok($pg->sql('SELECT count(*) FROM outbox.segments'), '>', 12, 'the publisher has more than the first segments');
my $segments = $pg->sql('SELECT count(*) + 8 FROM outbox.segments');
is(sub_sql("SELECT outbox.create_segments($segments)"), $segments, 'so has the subscriber, now');

$pg->sql('CREATE PUBLICATION everything FOR ALL TABLES');
$pg->sql(<<END);
SELECT pg_create_logical_replication_slot('everything', 'pgoutput');
SELECT pg_create_logical_replication_slot('watch', 'pgoutput');
END
sub_sql("CREATE SUBSCRIPTION everything CONNECTION 'host="
	  . $pg->host . " port=" . $pg->port . " dbname=postgres' PUBLICATION everything"
	  . " WITH (create_slot = false, slot_name = 'everything')");

# both sides publish and rotate while the first copy runs and after it
my @loads = map {
	$pg->load(clients => 2, seconds => 6, dbname => $_->[0],
		script => "\\set k random(1, 20)\nSELECT judge.publish_in_order('$_->[1]', 'k' || :k, repeat('x', 1000));")
} ([ 'postgres', $theirs ], [ 'subscriber', $ours ]);
$pg->wait_ok("SELECT count(*) > 20 AND bool_and(srsubstate IN ('r', 's')) FROM pg_subscription_rel",
	'the first copy is done', dbname => 'subscriber');
ok($_->finish, 'publishing went on') for @loads;
$pg->sql("SELECT outbox.resume('events')");
ok($pg->flush, 'publisher delivered');
ok($pg->flush(dbname => 'subscriber'), 'subscriber delivered');
$pg->sql("DELETE FROM outbox.dead_letter; SELECT inbox.accept('c', 'later'), inbox.forget('c', 'both'), inbox.accept('c', 'short', '1 ms')");
$pg->wait_ok("SELECT count(*) = 0 FROM inbox.seen WHERE message_id = 'short'", 'publisher removes what has expired');
$pg->sql('INSERT INTO orders VALUES (2)');
$pg->wait_ok('SELECT count(*) = 2 FROM orders', 'replication goes on', dbname => 'subscriber');

# --- each side has its own ------------------------------------------------------------

# its messages, or none where they are freed already
like(sub_sql($state), qr/^0\|0\|8\|events2\|1\|of the subscriber\|(\Q$ours\E)?$/,
	"subscriber's log, positions and dead letters are its own");
is($pg->sql("SELECT string_agg(DISTINCT server_name, ' ') FROM outbox.position_log"), 'events', "and the publisher's");
is(sub_sql($marks), $subscribers, "subscriber's marks, too");
is($pg->sql("SELECT string_agg(message_id, ' ' ORDER BY message_id) FROM inbox.seen"), 'later publisher', "and the publisher's");
sub_sql("SELECT judge.publish_many('$ours', 100)");
ok($pg->flush(dbname => 'subscriber'), 'subscriber publishes and delivers');
$pg->judge_ok($kafka, [$theirs], "publisher's messages: each once");
sub_sql("DELETE FROM judge.ledger WHERE topic = '$theirs'");
$pg->judge_ok($kafka, [$ours], "subscriber's messages: each once", dbname => 'subscriber');
unlike($pg->log_text, qr/replica identity|equality operator|pg_outbox [a-z]+[^\n]* ERROR/, 'no worker was stopped by it');

# --- what the publication sends ---------------------------------------------------------

my $changes = "pg_logical_slot_peek_binary_changes('watch', NULL, NULL, 'proto_version', '1', 'publication_names', 'everything')";
is($pg->sql("SELECT count(*) > 0 FROM $changes WHERE position('orders'::bytea IN data) > 0"), 't', 'changes of tables are sent');
is($pg->sql("SELECT count(*) FROM $changes WHERE get_byte(data, 0) = 82 AND position('segment_'::bytea IN data) > 0"),
	0, 'none of segments');

# a relay that starts again reads its own positions
$pg->restart;
sub_sql("SELECT judge.publish_many('$ours', 10)");
$pg->sql("SELECT judge.publish_many('$theirs', 10)");
ok($pg->flush, 'publisher delivers after a restart');
ok($pg->flush(dbname => 'subscriber'), 'subscriber, too');
is($kafka->count($theirs), $pg->sql("SELECT count(*) FROM judge.ledger WHERE topic = '$theirs'"), 'nothing twice');

sub_sql('ALTER SUBSCRIPTION everything DISABLE; ALTER SUBSCRIPTION everything SET (slot_name = NONE); DROP SUBSCRIPTION everything');
$pg->stop;
done_testing();
