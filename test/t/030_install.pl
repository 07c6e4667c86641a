# Installing where the library is not preloaded, and dropping the extension under load:
# nobody hangs, nobody deadlocks, nothing is written into a void.
# every major
use OutboxTest;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use PostgreSQL::Test::Utils ();

# --- built without a client library ---------------------------------------------------
# what the compiler finds first is as good as nothing
my $tree = abs_path(dirname(__FILE__) . '/../..');
my $hidden = PostgreSQL::Test::Utils::tempdir();
mkdir "$hidden/$_" or die $! for qw(nats rabbitmq-c);
PostgreSQL::Test::Utils::append_to_file("$hidden/$_", "#error not here\n")
	for qw(nats/nats.h amqp.h rabbitmq-c/amqp.h);
my $plan = sub { scalar qx{make -n -C '$tree' -f extension.mk all CPPFLAGS='$_[0]' 2>&1} };
like($plan->(''), qr/clients of kafka nats rabbitmq are built"/, 'make builds what it has libraries for');
like($plan->("-I$hidden"), qr/clients of kafka are built; missing are: nats \(libnats-dev .*rabbitmq \(/,
	'and names what it has none for');

# --- without shared_preload_libraries -------------------------------------------------
my $plain = OutboxTest->server('plain', preload => 0, extension => 0);
my ($out, $err);

$plain->psql('postgres', 'CREATE EXTENSION pg_outbox', stderr => \$err, on_error_stop => 1);
like($err, qr/WARNING:  pg_outbox is not loaded by the server.*HINT:.*shared_preload_libraries = 'pg_outbox'/s,
	'CREATE EXTENSION warns with the line to add');
is($plain->sql(q{SELECT extname FROM pg_extension WHERE extname = 'pg_outbox'}), 'pg_outbox',
	'and works');
$plain->psql('postgres', "DROP EXTENSION pg_outbox;\nCREATE EXTENSION pg_outbox", stderr => \$err);
like($err, qr/WARNING:  pg_outbox is not loaded/, 'also the second time in a session');
$plain->sql_fails(q{SELECT outbox.publish('t', 'x')},
	qr/pg_outbox must be loaded via shared_preload_libraries.*HINT:/s, 'publishing raises');
$plain->sql_fails(
	q{CREATE SERVER s FOREIGN DATA WRAPPER outbox_kafka OPTIONS ("bootstrap.servers" 'x')},
	qr/pg_outbox must be loaded by the server to create or alter its servers.*HINT:/s,
	'CREATE SERVER raises');
is($plain->sql('SELECT count(*) FROM outbox.relay_status'), '0', 'relay_status is empty');
is($plain->sql('SELECT count(*) FROM outbox.message'), '0', 'the log is empty');
$plain->sql_fails(q{SELECT outbox.flush('1s')}, qr/must be loaded via/, 'flush raises');
$plain->append_conf('postgresql.conf', "shared_preload_libraries = 'pg_outbox'");
$plain->restart;
ok($plain->sql(q{SELECT outbox.publish('t', 'x')}), 'after adding the line it publishes');
$plain->stop;

# --- dropping while others work ----------------------------------------------------------
my $kafka = OutboxKafka->shared;
my $topic = unique_topic('drop');
my $pg = OutboxTest->server('main', conf => "outbox.segment_size = 64kB\ndeadlock_timeout = 100ms");

$kafka->create_topic($topic, 2);
$pg->create_server('events', $kafka, topics => $topic);
$pg->sql("SELECT outbox.publish('$topic', 'first')");
ok($pg->flush, 'the relay runs');

# A transaction that published waits for nobody; the drop waits for it.  It goes on to use
# up the reserve of ids, so it needs the sequence too.  If the drop did not wait before it
# locks (outbox.fault = 'drop-waits-first=off'), the two would be in a deadlock.
my $publisher = $pg->session;
$publisher->query_safe('SET client_min_messages = warning');
$publisher->query_safe("BEGIN; SELECT outbox.publish('$topic', 'kept 1')");
my $dropper = $pg->session;
$dropper->query_safe('SET client_min_messages = error');
$dropper->query_until(qr/dropping/, "\\echo dropping\nDROP EXTENSION pg_outbox CASCADE;\n");
$pg->wait_ok(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'DROP EXT%' AND wait_event_type = 'Lock'},
	'DROP EXTENSION waits for the open transaction');
is($pg->sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg\_outbox %'}),
	1, 'only the launcher is left');
ok($pg->sql("SELECT outbox.publish('$topic', 'meanwhile')"), 'others publish meanwhile');
$publisher->query_safe("SELECT count(outbox.publish('$topic', 'kept ' || i)) FROM generate_series(2, 40000) i; COMMIT");
$dropper->query_safe('SELECT 1');
is($pg->sql(q{SELECT count(*) FROM pg_extension WHERE extname = 'pg_outbox'}), '0', 'then it is dropped');
my $answer = $publisher->query("SELECT outbox.publish('$topic', 'late')");
like($publisher->{stderr}, qr/schema "outbox" does not exist/, 'the publisher is told');
unlike($pg->log_text, qr/deadlock detected/, 'without a deadlock');
$pg->wait_ok(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type LIKE 'pg\_outbox %'},
	'no relay and no keeper are left behind');

# A publisher that waits in the middle of a statement for a drop that commits.
$pg->sql('CREATE EXTENSION pg_outbox');
$dropper->query_safe('BEGIN; DROP EXTENSION pg_outbox');
$publisher->query_until(qr/publishing/, "\\echo publishing\nSELECT outbox.publish('$topic', 'late');\n");
$pg->wait_ok(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%late%' AND wait_event_type = 'Lock'
	AND pid <> pg_backend_pid()}, 'a publisher waits for an open drop');
$dropper->query_safe('COMMIT');
$publisher->query('SELECT 1');
like($publisher->{stderr}, qr/extension pg_outbox was dropped|does not exist/, 'and is told that it was dropped');

# ... and for one that rolls back.
$pg->sql('CREATE EXTENSION pg_outbox');
$pg->create_server('events', $kafka, topics => $topic);
$dropper->query_safe('BEGIN; DROP EXTENSION pg_outbox CASCADE');
$publisher->{stderr} = '';
$publisher->query_until(qr/publishing/, "\\echo publishing\nSELECT outbox.publish('$topic', 'survives');\n");
$pg->wait_ok(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%survives%' AND wait_event_type = 'Lock'
	AND pid <> pg_backend_pid()}, 'a publisher waits for an open drop');
$dropper->query_safe('ROLLBACK');
$publisher->query_safe('SELECT 1');
ok($pg->flush, 'after the rollback the relay is back and delivers');

# Dropped and made again, again and again, under load.
my $load = $pg->load(clients => 6, seconds => 60, script => <<SCRIPT);
DO \$\$
BEGIN
	PERFORM outbox.publish('$topic', 'load', 'k');
	PERFORM outbox.publish('$topic', 'load', 'k') FROM generate_series(1, 20);
EXCEPTION WHEN undefined_object OR invalid_schema_name OR undefined_function OR undefined_table THEN
	NULL;
END
\$\$;
SCRIPT
for my $round (1 .. 5)
{
	$pg->sql('DROP EXTENSION pg_outbox CASCADE');
	$pg->sql('CREATE EXTENSION pg_outbox');
	$pg->create_server('events', $kafka, topics => $topic);
	$pg->wait_ok("SELECT delivered > 0 FROM outbox.relay_status", "round $round: delivers again");
}
$load->stop;
unlike($pg->log_text, qr/deadlock detected|PANIC|TRAP|terminated by signal 11/, 'no deadlock, no crash');
unlike($load->output, qr/aborted/, 'publishers got no other error') or diag($load->output);
ok($pg->flush, 'all is delivered in the end');

$publisher->quit;
$dropper->quit;
$pg->stop;
done_testing();
