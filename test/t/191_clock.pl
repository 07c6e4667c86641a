# The system's clock is set back or forth while all runs: nothing waits for a time of day
# to come around again.
use OutboxClock;
use OutboxTest;

my $hour = 3600;
my $kafka = OutboxKafka->shared;
my ($topic, $future) = map { unique_topic($_) } qw(clock future);
my $clock = OutboxClock->new;
my $pg = OutboxTest->server('main', clock => $clock,
	conf => 'outbox.segment_size = 64kB');

unless ($clock->strikes($pg) && $clock->set(-$hour)->strikes($pg))
{
	plan skip_all => 'the clock of servers cannot be set here';
}
$clock->set(0);
$pg->judge_setup;
$kafka->create_topic($topic, 4);
$kafka->create_topic($future, 1);
$pg->create_server('events', $kafka, topics => "$topic, $future");
ok($pg->flush, 'delivers');

for my $jump (-$hour, $hour / 2, -5 * $hour, 60)
{
	$clock->set($clock->ahead + $jump);
	$pg->sql("SELECT judge.publish_many('$topic', 500)");
	ok($pg->flush(timeout => 30), "delivers after a jump by $jump s");

	# whoever ends is started again, as at any other time
	my $relay = $pg->relay_pid('events');
	$pg->sql("SELECT pg_terminate_backend($relay)");
	$pg->sql("SELECT judge.publish_many('$topic', 500)");
	ok($pg->flush(timeout => 30), "a relay that ended is started again after $jump s");

	my $keeper = $pg->sql("SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'pg_outbox keeper%'");
	$pg->sql("SELECT pg_terminate_backend($keeper)");
	$pg->wait_ok("SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg_outbox keeper%' AND pid <> $keeper",
		"a keeper that ended is started again after $jump s", expect => 1, timeout => 30);

	# what is delivered is freed when it is quiet
	$pg->wait_ok("SELECT sum(pg_relation_size(relid)) < 65536 FROM outbox.segments",
		"segments are freed after $jump s", timeout => 30);
}

# a database that is made meanwhile is looked into
$clock->set($clock->ahead - $hour);
$pg->sql('CREATE DATABASE later');
$pg->sql('CREATE EXTENSION pg_outbox', dbname => 'later');
my $later = unique_topic('later');
$kafka->create_topic($later, 1);
$pg->create_server('events', $kafka, topics => $later, dbname => 'later');
$pg->sql("SELECT outbox.publish('$later', 'x')", dbname => 'later');
ok($pg->flush(timeout => 30, dbname => 'later'), 'a new database delivers');

# who waits with a timeout waits that long, whatever the clock says
my $relay = $pg->relay_pid('events');
$pg->kill_process($relay, 'STOP');
$pg->sql("SELECT judge.publish_many('$topic', 10)");
my $waiting = $pg->load(clients => 1, threads => 1, transactions => 1, script => "SELECT outbox.flush('6s');\n");
$pg->wait_ok(q{SELECT count(*) FROM pg_stat_activity WHERE query ~ '^SELECT outbox.flush' AND state = 'active'}, 'somebody waits', expect => 1);
$clock->set($clock->ahead - $hour);
$pg->wait_ok(q{SELECT count(*) FROM pg_stat_activity WHERE query ~ '^SELECT outbox.flush' AND state = 'active'},
	'and not for an hour', expect => 0, timeout => 30);
$waiting->stop;
$pg->kill_process($relay, 'CONT');
ok($pg->flush, 'delivers');
$pg->judge_ok($kafka, [$topic], 'nothing lost, nothing twice');

# The client library waits for a broker by the time of day; not for an hour, all the same.
for my $once ('false', 'true')
{
	my $own = OutboxKafka->start(auto_create => 'false');
	my $waits = unique_topic('waits');
	$own->create_topic($waits, 4);
	$pg->create_server('own', $own, topics => $waits, exactly_once => $once);
	$pg->sql("SELECT judge.publish_many('$waits', 100)");
	ok($pg->flush, "delivers, exactly_once $once");
	$own->kill_broker;
	$pg->sql("SELECT judge.publish_many('$waits', 100)");
	$pg->wait_ok(q{SELECT last_error IS NOT NULL FROM outbox.relay_status WHERE server = 'own'}, 'the broker is away');
	$clock->set($clock->ahead - $hour);
	$own->start_broker;
	ok($pg->flush(timeout => 60), 'delivers when it is back');
	$pg->judge_ok($own, [$waits], 'all of it', committed => 1, duplicates => $once eq 'false');
	$pg->sql('SET client_min_messages = error; DROP SERVER own CASCADE');
	$own->stop;
}

# Brokers refuse what comes from the future, by an hour: README says how to send it again.
$clock->set(2 * $hour);
$pg->sql("SELECT judge.publish_many('$future', 10)");
ok($pg->flush, 'refused');
is($pg->sql("SELECT count(*) FROM outbox.dead_letter WHERE topic = '$future' AND error = 'INVALID_TIMESTAMP'"), 10,
	'for the clock');
$clock->set(0);
$kafka->set_config($future, 'message.timestamp.after.max.ms=9223372036854775807');
is($pg->sql("SELECT outbox.redrive('events')"), 10, 'sent again');
ok($pg->flush, 'delivers');
$pg->judge_ok($kafka, [$future], 'all of it');
done_testing();
