# A copy of a database, a restored dump, or what is left after an upgrade: who may send,
# and from where it goes on.
use OutboxTest;
use PostgreSQL::Test::Utils ();

my $kafka = OutboxKafka->shared;
my $pg = OutboxTest->server('main');
my $topic = unique_topic('backlog');
my ($host, $port) = ($pg->host, $pg->port);

$kafka->create_topic($topic, 2);

sub last_error
{
	my (%options) = @_;
	return $pg->sql("SELECT concat(last_error, ' / ', hint) FROM outbox.relay_status", %options);
}

# --- a copy, made while the original has a backlog ---------------------------------------
$pg->sql('CREATE DATABASE original');
$pg->sql('CREATE EXTENSION pg_outbox', dbname => 'original');
$pg->judge_setup(dbname => 'original');
$pg->create_server('events', $kafka, topics => $topic, dbname => 'original');
$pg->sql("SELECT judge.publish_many('$topic', 100)", dbname => 'original');
ok($pg->flush(dbname => 'original'), 'the first part is delivered');
$pg->sql("SELECT outbox.pause('events')", dbname => 'original');
$pg->sql("SELECT judge.publish_many('$topic', 1000)", dbname => 'original');
$pg->sql('CREATE DATABASE copy TEMPLATE original');
$pg->sql("SELECT outbox.resume('events')", dbname => $_) for qw(original copy);
ok($pg->flush(dbname => 'original'), 'the original delivers its backlog');
ok($pg->wait_state('events', 'error', dbname => 'copy'), "the copy's server is in error");
like(last_error(dbname => 'copy'), qr/created in another database.*outbox\.adopt\('events'\)/,
	'with reason and hint');
$pg->sql("SELECT outbox.publish('$topic', 'from the copy')", dbname => 'copy');
is($pg->sql("SELECT outbox.flush('10ms')", dbname => 'copy'), 'f', 'the copy delivers nothing');
is($pg->sql("SELECT state FROM outbox.relay_status", dbname => 'copy'), 'error', 'and stays so');
my %verdict = $pg->judge_ok($kafka, [$topic], 'everything came once, in order', dbname => 'original');
is($verdict{consumed}, 1100, 'and nothing of the copy');
$pg->sql_fails("SET ROLE outbox_publisher; SELECT outbox.adopt('events')", qr/permission denied/,
	'adopting is not for publishers', dbname => 'copy');
$pg->sql("SET ROLE outbox_admin; SELECT outbox.adopt('events')", dbname => 'copy');
ok($pg->flush(dbname => 'copy'), 'after adopt() the copy delivers');
my @got = $kafka->consume($topic);
is(scalar @got, 2101, 'the backlog as it was copied, and its own');
my %ids = map { $_->{message_id} => 1 } @got;
is(scalar keys %ids, 1101, 'the same messages under the same ids');
$pg->restart;
for my $db (qw(original copy))
{
	$pg->sql("SELECT outbox.publish('$topic', 'later')", dbname => $db);
	ok($pg->flush(dbname => $db), "after a restart $db delivers");
}

# --- a dump, restored into another database ---------------------------------------------------
$pg->sql("SELECT outbox.pause('events')", dbname => 'original');
$pg->sql("SELECT outbox.publish('$topic', 'in the log when dumped')", dbname => 'original');
$pg->sql(q{INSERT INTO outbox.dead_letter (server, id, message_id, topic, kind, published, error, reason, attempts)
	VALUES ('events', 1, 'a', 't', 't', now(), 'e', 'r', 1)}, dbname => 'original');
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';
$pg->command_ok(['pg_dump', '-h', $host, '-p', $port, '-f', $dump, 'original'], 'dumped');
$pg->sql('CREATE DATABASE restored TEMPLATE template0');
$pg->command_ok(['psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-h', $host, '-p', $port, '-o', '/dev/null',
	'-f', $dump, 'restored'], 'restored');
$pg->sql("SELECT outbox.resume('events')", dbname => $_) for qw(original restored);
ok($pg->wait_state('events', 'error', dbname => 'restored'), 'the restored server is in error');
like(last_error(dbname => 'restored'), qr/restored dump.*outbox\.adopt/, 'with reason and hint');
is($pg->sql('SELECT count(*) FROM outbox.message', dbname => 'restored'), '0', 'no message was restored');
is($pg->sql('SELECT count(*) FROM outbox.dead_letter', dbname => 'restored'), '1', 'a dead letter was');
ok($pg->flush(dbname => 'original'), 'the original goes on');
my $before = () = $kafka->consume($topic);
is($before, 2104, 'nothing was published again');
$pg->sql("SELECT outbox.adopt('events'); SELECT outbox.publish('$topic', 'from the restored')", dbname => 'restored');
ok($pg->flush(dbname => 'restored'), 'after adopt() it delivers');
is(scalar(() = $kafka->consume($topic)), $before + 1, 'what was published there');
$pg->sql("DROP DATABASE $_") for qw(copy restored);

# --- renamed ---------------------------------------------------------------------------------------
$pg->sql("SELECT outbox.pause('events')", dbname => 'original');
$pg->sql("SELECT outbox.publish('$topic', 'before')", dbname => 'original');
$pg->sql('ALTER SERVER events RENAME TO news', dbname => 'original');
$pg->sql("SELECT outbox.resume('news'); SELECT outbox.publish('$topic', 'after')", dbname => 'original');
ok($pg->flush(dbname => 'original'), 'a renamed server delivers');
is(scalar(() = $kafka->consume($topic)), $before + 3, 'from where it was');
$pg->wait_ok(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = 'original' AND backend_type = 'pg_outbox relay news'},
	'its relay has the new name');
is($pg->sql('SELECT server FROM outbox.dead_letter', dbname => 'original'), 'news', 'dead letters follow');

# --- after pg_upgrade: other system, other major, other oids of servers; from where it was ------------
my $uuid = $pg->sql('SELECT log_uuid FROM outbox.log_identity', dbname => 'original');

sub change_catalog
{
	my ($sql) = @_;
	$pg->sql("SELECT outbox.pause('news')", dbname => 'original');
	$pg->sql("SELECT outbox.publish('$topic', 'waits')", dbname => 'original');
	$pg->wait_state('news', 'paused', dbname => 'original');
	$pg->append_conf('postgresql.conf', 'outbox.enabled = off');
	$pg->restart;
	$pg->sql($sql, dbname => 'original');
	$pg->sql("SELECT outbox.resume('news')", dbname => 'original');
	$pg->append_conf('postgresql.conf', 'outbox.enabled = on');
	$pg->restart;
	return;
}

$before = () = $kafka->consume($topic);
change_catalog('UPDATE outbox.position_log SET server = 1;
	UPDATE outbox.log_identity SET system_identifier = 1, major = 14');
ok($pg->flush(dbname => 'original'), 'after an upgrade it delivers');
is(scalar(() = $kafka->consume($topic)), $before + 1, 'from where it was');
is($pg->sql('SELECT log_uuid FROM outbox.log_identity', dbname => 'original'), $uuid, 'under its old identity');

# --- another cluster of the same major -------------------------------------------------------------------
change_catalog('UPDATE outbox.log_identity SET system_identifier = 1');
ok($pg->wait_state('news', 'error', dbname => 'original'), 'in another cluster the server is in error');
isnt($pg->sql('SELECT log_uuid FROM outbox.log_identity', dbname => 'original'), $uuid, 'with a new identity');
$pg->sql("SELECT outbox.adopt('news')", dbname => 'original');
ok($pg->flush(dbname => 'original'), 'and after adopt() it delivers');
is(scalar(() = $kafka->consume($topic)), $before + 2, 'from where it was');

# --- positions that can't be ---------------------------------------------------------------------------------
change_catalog('DELETE FROM outbox.position_log');
ok($pg->wait_state('news', 'error', dbname => 'original'), 'without a position the server is in error');
like(last_error(dbname => 'original'), qr/no position in the log.*outbox\.adopt/, 'with reason and hint');
$pg->sql("SELECT outbox.adopt('news'); SELECT outbox.publish('$topic', 'x')", dbname => 'original');
ok($pg->flush(dbname => 'original'), 'after adopt() it goes on');

change_catalog(q{UPDATE outbox.position_log SET s1 = '4611686018427387904:4611686018427387904:',
	s2 = '4611686018427387904:4611686018427387904:'});
ok($pg->wait_state('news', 'error', dbname => 'original'), 'a position ahead of the database is not believed');
like(last_error(dbname => 'original'), qr/ahead of the database/, 'with the reason');
my $pid = $pg->relay_pid('news', dbname => 'original');
$pg->wait_ok("SELECT last_error_at > started + interval '3s' FROM outbox.relay_status",
	'it is tried again', dbname => 'original');
is($pg->relay_pid('news', dbname => 'original'), $pid, 'by the same relay');

$pg->stop;
done_testing();
