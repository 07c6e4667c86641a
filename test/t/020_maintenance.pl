# A DBA looks after the database while it publishes: VACUUM in each form, an old
# snapshot, locks on segments, event triggers on all DDL, a dump and its restore, the
# sequence of ids set back.  Nothing is lost, repeated or out of order, publishers
# don't wait, and space comes back.
use OutboxTest;

my $kafka = OutboxKafka->shared;
my $topic = unique_topic('orders');
my $pg = OutboxTest->server('main', conf => <<END);
outbox.segment_size = 64kB
autovacuum_naptime = 1s
END

$pg->judge_setup;
$kafka->create_topic($topic, 2);
$pg->create_server('events', $kafka, topics => $topic);

my $segments = "SELECT count(*) FROM outbox.segments";
my $retained = "SELECT sum(pg_relation_size(relid)) FROM outbox.segments";

# --- who may hear of DDL, and what defaults may do ----------------------------------

# no statement but a client's may fire an event trigger
$pg->sql(<<'END');
CREATE FUNCTION only_clients() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
	IF (SELECT backend_type <> 'client backend' FROM pg_stat_activity WHERE pid = pg_backend_pid()) THEN
		RAISE EXCEPTION 'event trigger fired by %', tg_tag;
	END IF;
END $$;
CREATE EVENT TRIGGER begins ON ddl_command_start EXECUTE FUNCTION only_clients();
CREATE EVENT TRIGGER ends ON ddl_command_end EXECUTE FUNCTION only_clients();
CREATE EVENT TRIGGER drops ON sql_drop EXECUTE FUNCTION only_clients();
CREATE EVENT TRIGGER rewrites ON table_rewrite EXECUTE FUNCTION only_clients();
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC;
ALTER DATABASE postgres SET default_transaction_read_only = on;
END
$ENV{PGOPTIONS} = '-c default_transaction_read_only=off';

# --- VACUUM in the middle of a backlog and of publishing ----------------------------

my $old = $pg->session;
$old->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_current_snapshot()');
$pg->sql("SELECT outbox.pause('events')");

# A line pointer that a plain VACUUM has given back goes to a later row: inside a page
# ids are out of order.  Rows before it that are gone shift what VACUUM FULL copies, so
# that somewhere the two halves of such a page would come to lie on two pages.
for my $round (1 .. 25)
{
	my $lane = $pg->sql("SELECT string_agg(relid::regclass::text, ',') FROM outbox.segments WHERE lane = 0");
	my ($some, $few) = (20 + 3 * $round % 17, 1 + $round % 5);
	$pg->sql(<<END);
SELECT count(judge.publish('$topic', repeat('x', 100), 'hole')) FROM generate_series(1, $some);
BEGIN; SELECT count(judge.publish('$topic', repeat('x', 100), 'gone')) FROM generate_series(1, $few); ROLLBACK;
SELECT count(judge.publish('$topic', repeat('x', 100), 'hole')) FROM generate_series(1, 3);
VACUUM $lane;
SELECT count(judge.publish('$topic', repeat('x', 100), 'hole')) FROM generate_series(1, $some);
END
}
$pg->sql('VACUUM FULL');

my $load = $pg->load(clients => 6, seconds => 6, script => <<END);
\\set k random(1, 20)
\\set fate random(1, 4)
\\set size random(1, 3000)
BEGIN;
SELECT judge.publish_in_order('$topic', 'k' || :k, repeat('x', :size));
\\if :fate = 1
ROLLBACK;
\\else
SAVEPOINT s;
SELECT judge.publish('$topic', repeat('y', :size), 'a' || :k);
ROLLBACK TO s;
SELECT judge.publish('$topic', repeat('z', :size), 'b' || :k);
COMMIT;
\\endif
END
for (1 .. 2)
{
	$pg->sql($_) for 'VACUUM', 'VACUUM (TRUNCATE, INDEX_CLEANUP ON)', 'VACUUM FULL', 'VACUUM (FREEZE)',
	  'REINDEX SCHEMA outbox', 'ANALYZE', 'VACUUM (FULL, FREEZE, ANALYZE)';
}
$pg->sql("SELECT outbox.resume('events')");
for (1 .. 2)
{
	$pg->sql($_) for 'VACUUM (TRUNCATE)', 'VACUUM FULL', 'REINDEX SYSTEM postgres', 'VACUUM (FREEZE)';
}
ok($load->finish, 'publishers go on beside VACUUM and REINDEX of everything');
ok($pg->flush, 'delivered');
my %verdict = $pg->judge_ok($kafka, [$topic], 'all there, once, in order');
cmp_ok($verdict{published}, '>', 500, "enough of it ($verdict{published})");
cmp_ok($pg->sql($segments), '>', 8, 'segments were rotated');
unlike($pg->log_text, qr/event trigger fired/, 'no event trigger heard of it');
is($pg->sql(<<END), 0, 'no rights came with the defaults');
SELECT count(*) FROM pg_class WHERE oid IN (SELECT relid FROM outbox.segments) AND relacl IS NOT NULL
END

# --- space comes back under the old snapshot, and nothing is dead -----------------------

$pg->wait_ok("SELECT ($retained) < 2 * 8 * 65536", 'space came back while a session holds an old snapshot');
is($pg->sql(<<END), '0|0|0', 'no dead rows, updates or deletes');
SELECT sum(n_dead_tup), sum(n_tup_upd), sum(n_tup_del) FROM pg_stat_user_tables
WHERE relid IN (SELECT relid FROM outbox.segments)
END
is($pg->sql('SELECT count(*) FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND backend_type = \'client backend\' AND state = \'idle in transaction\''),
	1, 'the old snapshot is still held');
$old->query_safe('COMMIT');
$old->quit;

# --- locks on segments, for as long as a transaction is open -----------------------------

# All lanes but one: those who find it busy wait for it, not for the locks.
{
	my $locker = $pg->session;
	$locker->query_safe('BEGIN');
	$locker->query_safe("LOCK TABLE $_ IN ACCESS EXCLUSIVE MODE") for split /\n/,
	  $pg->sql("SELECT relid::regclass FROM outbox.segments WHERE lane <> 7");
	my $busy = $pg->load(clients => 32, seconds => 3, script => <<END,
SELECT outbox.publish_batch('nobody', array_agg('m'::text)) FROM generate_series(1, 500);
END
	);
	my $handle = $busy->{handle};
	my $ended = $pg->wait_until(sub { eval { $handle->pump_nb }; !$handle->pumpable }, timeout => 40);
	ok($ended, 'publishers share the lane that is left');
	$pg->sql("CREATE SERVER other FOREIGN DATA WRAPPER outbox_kafka OPTIONS (\"bootstrap.servers\" '127.0.0.1:1', topics 'other', paused 'true')");
	pass('CREATE SERVER does not wait');
	$locker->query_safe('ROLLBACK');
	$locker->quit;
	ok($busy->finish, 'all of them');
	$pg->sql('DROP SERVER other');
}

# --- a dump, and what comes of it ----------------------------------------------------------

{
	my $before = $kafka->count($topic);
	$pg->sql("SELECT outbox.pause('events')");
	$pg->sql("SELECT judge.publish_many('$topic', 100)");
	$pg->sql("INSERT INTO outbox.dead_letter VALUES ('events', 1, 'id', 't', NULL, NULL, NULL, NULL, 't', now(), 'e', 'r', 1, now())");
	my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';
	$pg->command_ok([ 'pg_dump', '-h', $pg->host, '-p', $pg->port, '-f', $dump, 'postgres' ], 'dumped');
	unlike(PostgreSQL::Test::Utils::slurp_file($dump), qr/segment_|position_log|message_id_seq/, 'without the log');
	$pg->sql('CREATE DATABASE restored');
	$pg->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-h', $pg->host, '-p', $pg->port,
			'-f', $dump, 'restored' ], 'restored');
	is($pg->sql('SELECT count(*) FROM outbox.message', dbname => 'restored'), 0, 'the log is empty there');
	is($pg->sql('SELECT count(*) FROM outbox.dead_letter', dbname => 'restored'), 1, 'dead letters came along');
	$pg->sql('DROP DATABASE restored');
	is($kafka->count($topic), $before, 'nothing was published again');
	$pg->sql("SELECT outbox.resume('events')");
	ok($pg->flush, 'delivered');
}

# --- the sequence set back, and the server's memory lost ----------------------------------

$pg->wait_ok("SELECT ($retained) = 0", 'the log is empty');
$pg->sql("SELECT setval('outbox.message_id_seq', 1); CHECKPOINT");
$pg->append_conf('postgresql.conf', 'outbox.enabled = off');
$pg->crash;
$pg->start;
$pg->sql("SELECT judge.publish_many('$topic', 100)");
$pg->append_conf('postgresql.conf', 'outbox.enabled = on');
$pg->reload;
ok($pg->flush, 'delivered after a crash, the sequence set back');
$pg->judge_ok($kafka, [$topic], 'all there, in order', duplicates => 1);

$pg->stop;
done_testing();
