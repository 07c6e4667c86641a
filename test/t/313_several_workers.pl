# Several workers of one subscription share its partitions, and hand them over while
# messages come: without a lost or doubled effect, and in order by key.  Marks are off
# (dedup_by none) where nothing sends messages twice: only the rows of places protect.
use OutboxTest;

my $partitions = 6;
my $kafka = OutboxKafka->start(auto_create => 'false');
my ($topic, $sought) = map { unique_topic($_) } qw(work sought);
my $pg = OutboxTest->server('main', conf => "outbox.poll_interval = 100ms\ndeadlock_timeout = 100ms\n");

$kafka->create_topic($_, $partitions) for $topic, $sought;
$pg->create_server('events', $kafka, topics => "$topic, $sought");
$pg->sql(<<'SQL');
CREATE TABLE effect (n bigserial, topic text, partition int, key text, value text, attempt int, pid int DEFAULT pg_backend_pid());
CREATE FUNCTION note(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.effect (topic, partition, key, value, attempt)
		VALUES (m.topic, m.partition, m.key, inbox.payload_text(m), m.attempt);
	-- a fiftieth of all fails at first, with what it has written
	IF m.attempt = 1 AND right(inbox.payload_text(m), 2) IN ('17', '67') THEN
		RAISE 'not at once';
	END IF;
END
$$;
SQL
$pg->sql('CREATE TABLE sent (n bigserial, topic text)');

# One publisher, whose messages are numbered.
sub load_topic
{
	my ($to) = @_;
	return $pg->load(clients => 1, threads => 1, seconds => 600, script => <<END);
WITH s AS (INSERT INTO sent (topic) VALUES ('$to') RETURNING n)
SELECT outbox.publish('$to', n::text, 'k' || n % 40) FROM s;
END
}

# Ends it; the number of messages.
sub end_load
{
	my ($load, $to) = @_;
	$pg->end_load($load);
	return $pg->sql("SELECT count(*) FROM sent WHERE topic = '$to'");
}

sub progress_ok
{
	my ($name, $to) = @_;
	my $before = $pg->sql("SELECT count(*) FROM effect WHERE topic = '$to'");
	$pg->wait_ok("SELECT count(*) > $before + 200 FROM effect WHERE topic = '$to'", "$name: goes on");
	return;
}

sub status_ok
{
	my ($name, $expected, %options) = @_;
	return $pg->wait_ok('SELECT (state, workers, partitions) = ' . $expected
		  . " FROM inbox.subscription_status WHERE subscription = 'work'", $name, %options);
}

sub once_ok
{
	my ($name, $to, $n, %options) = @_;
	$pg->wait_ok("SELECT count(DISTINCT value) = $n FROM effect WHERE topic = '$to'", "$name: all is there", %options);
	is($pg->sql("SELECT count(*) FROM effect WHERE topic = '$to'", %options), $n, "$name: once");
	order_ok($name, $to, %options);
	return;
}

sub order_ok
{
	my ($name, $to, %options) = @_;
	is($pg->sql("SELECT count(*) FROM (SELECT value::bigint v, lag(value::bigint) OVER (PARTITION BY key ORDER BY n) w "
			  . "FROM effect WHERE topic = '$to') o WHERE w > v", %options), 0, "$name: in order by key");
	return;
}

# --- the start is the same for all partitions, whoever gets them ---------------------------
$pg->sql("SELECT outbox.publish('$topic', (-g)::text, 'k' || g) FROM generate_series(1, 300) g");
ok($pg->flush, 'published before');
$pg->sql("SELECT inbox.subscribe('work', 'events', '$topic', 'note(inbox.message)', workers => 3, "
	  . "dedup_by => 'none', batch_size => 20, backoff => '50ms')");
status_ok('three workers share the partitions', "('running', 3, $partitions)");
$pg->wait_ok("SELECT bool_and(partitions = 2) FROM inbox.worker_status", 'each has its part');
is($pg->sql(q{SELECT string_agg(backend_type, ', ' ORDER BY backend_type) FROM pg_stat_activity WHERE backend_type LIKE '%inbox%'}),
	'pg_outbox inbox work, pg_outbox inbox work (2), pg_outbox inbox work (3)', 'they have names');
my $load = load_topic($topic);
progress_ok('three workers', $topic);
$pg->wait_ok("SELECT count(DISTINCT pid) = 3 FROM effect WHERE topic = '$topic'", 'all three work');
is($pg->sql('SELECT count(*) FROM effect WHERE value::bigint < 0'), 0, 'nothing of before the start');

# --- workers join and leave ------------------------------------------------------------------
$pg->sql("SELECT inbox.alter_subscription('work', workers => 8)");
status_ok('more workers than partitions: those that have none stand by', "('running', 8, $partitions)");
progress_ok('eight workers', $topic);
$pg->sql("SELECT inbox.alter_subscription('work', workers => 2)");
status_ok('the others have left', "('running', 2, $partitions)");
$pg->wait_ok(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg_outbox inbox%'}, 'and are gone', expect => '2');
progress_ok('two workers', $topic);
for my $round (1 .. 3)
{
	my $pid = $pg->sql("SELECT pid FROM inbox.worker_status WHERE worker = 2");
	$pg->sql("SELECT pg_terminate_backend($pid)");
	$pg->wait_ok("SELECT pid <> $pid AND partitions > 0 FROM inbox.worker_status WHERE worker = 2", "round $round: another second worker");
	progress_ok("round $round", $topic);
}

my $n = end_load($load, $topic);
once_ok('handed over', $topic, $n);

# --- workers that stand still are taken for dead, and wake up -------------------------------------
# one has messages in its hands, outside of a transaction
my $second = 'SELECT pid FROM inbox.worker_status WHERE worker = 2';
my $at_fault = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND backend_type LIKE 'pg_outbox inbox work%'";
ok($pg->set_fault('inbox-received=wait'), 'workers are to stop with messages in their hands');
$pg->sql("SELECT outbox.publish('$topic', (-2 * g)::text, 'k' || g) FROM generate_series(3001, 3100) g");
$pg->wait_ok("SELECT ($at_fault) = 2", 'both have messages');
my $zombie = $pg->sql($second);
kill 'STOP', $zombie;
ok($pg->set_fault(''), 'and on');
$pg->wait_ok("SELECT partitions = $partitions FROM inbox.worker_status WHERE worker = 1", 'the first has all partitions');
$pg->wait_ok('SELECT count(*) = 100 FROM effect WHERE value::bigint BETWEEN -6200 AND -6002', 'and what the other one had');
kill 'CONT', $zombie;
status_ok('both share again', "('running', 2, $partitions)");
$pg->wait_ok("SELECT partitions = 3 FROM inbox.worker_status WHERE worker = 2", 'half and half');
is($pg->sql('SELECT count(*) FROM effect WHERE value::bigint BETWEEN -6200 AND -6002'), 100, 'the one that woke up has done nothing twice');

# one is about to commit the last message of a key that waits
$pg->sql(<<SQL);
CREATE FUNCTION second_time(m inbox.message) RETURNS void LANGUAGE plpgsql AS \$\$
BEGIN
	IF m.attempt = 1 AND inbox.payload_text(m) = '-7000' THEN
		RAISE 'not at once';
	END IF;
	PERFORM public.note(m);
END
\$\$;
SELECT inbox.alter_subscription('work', handler => 'second_time(inbox.message)');
SQL
ok($pg->set_fault('inbox-retry-before-commit=wait'), 'and before the commit of what is retried');
$pg->sql("SELECT outbox.publish('$topic', '-7000', 'waits')");
$pg->wait_ok("SELECT ($at_fault) = 1", 'it is retried');
$zombie = $pg->sql("SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND backend_type LIKE 'pg_outbox inbox work%'");
kill 'STOP', $zombie;
ok($pg->set_fault(''), 'and on');
$pg->sql("SELECT outbox.publish('$topic', '-6999', 'waits')");
$pg->wait_ok(q{SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND backend_type LIKE 'pg_outbox inbox work%'},
	'the other one waits for it');
kill 'CONT', $zombie;
$pg->wait_ok('SELECT count(*) = 2 FROM effect WHERE value::bigint IN (-7000, -6999)', 'both have their effect');
is($pg->sql("SELECT string_agg(value, ',' ORDER BY n) FROM effect WHERE key = 'waits'"), '-7000,-6999', 'in their order');
status_ok('both share again', "('running', 2, $partitions)");

# --- all of them die; a relay that died sends messages twice, so with marks ------------------------
$pg->sql("SELECT inbox.alter_subscription('work', handler => 'note(inbox.message)', dedup_by => 'message_id')");
$load = load_topic($topic);
progress_ok('with marks', $topic);
$pg->crash;
$load->stop;
$pg->start;
$n = $pg->sql("SELECT count(*) FROM sent WHERE topic = '$topic'");
$pg->sql("DELETE FROM effect WHERE value::bigint < 0");
once_ok('crashed', $topic, $n);

# --- a handler that takes longer than the group's patience (10 s) ---------------------------------
$pg->sql(<<'SQL');
CREATE FUNCTION slow(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF inbox.payload_text(m) = '-1000' THEN
		PERFORM pg_sleep(14);
	END IF;
	PERFORM public.note(m);
END
$$;
SELECT inbox.alter_subscription('work', handler => 'slow(inbox.message)');
SQL
status_ok('quiet', "('running', 2, $partitions)");
$pg->wait_ok('SELECT sum(lag) = 0 FROM inbox.worker_status', 'nothing left');
my $epochs = $pg->sql("SELECT string_agg(partition || ' ' || epoch, ',' ORDER BY partition) FROM inbox.position");
$pg->sql("SELECT outbox.publish('$topic', '-1000', 'k1')");
$pg->wait_ok("SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND backend_type LIKE 'pg_outbox inbox work%'", 'the handler is slow');
$pg->sql("SELECT outbox.publish('$topic', (-g)::text, 'k' || g) FROM generate_series(1001, 1100) g");
$pg->wait_ok("SELECT count(*) = 1 FROM effect WHERE value = '-1000'", 'it ends');
$pg->wait_ok("SELECT count(*) = 100 FROM effect WHERE value::bigint BETWEEN -1100 AND -1001", 'and so do the others');
is($pg->sql("SELECT string_agg(partition || ' ' || epoch, ',' ORDER BY partition) FROM inbox.position"), $epochs,
	'nobody has lost a partition');

# --- one that does not end ---------------------------------------------------------------------
$pg->sql(<<'SQL');
CREATE OR REPLACE FUNCTION slow(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.note(m);
	IF inbox.payload_text(m) = '-2000' THEN
		PERFORM pg_sleep(3600);
	END IF;
END
$$;
SQL
$pg->sql("SELECT outbox.publish('$topic', '-2000', 'k1')");
my $asleep = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND backend_type LIKE 'pg_outbox inbox work%'";
$pg->wait_ok("SELECT count(*) = 1 FROM ($asleep) a", 'the handler hangs');
my $hangs = $pg->sql($asleep);
is($pg->sql("SELECT pg_terminate_backend($hangs, 10000)"), 't', 'and can be ended');
$pg->wait_ok("SELECT count(*) = 1 FROM ($asleep) a WHERE pid <> $hangs", 'the message comes again');
$pg->stop('fast');
pass('the server stops while a handler hangs');
$pg->start;
$pg->sql('CREATE OR REPLACE FUNCTION slow(m inbox.message) RETURNS void LANGUAGE sql AS $$ SELECT public.note(m) $$');
# a worker may have the old one again; joined, it might go on, where there is no effect yet
$pg->wait_ok("WITH e AS MATERIALIZED (SELECT count(pg_terminate_backend(pid)) n FROM ($asleep) a) "
	  . "SELECT (SELECT n >= 0 FROM e) AND (SELECT count(*) = 1 FROM effect WHERE value = '-2000')",
	'it has its effect once');
$pg->sql("SELECT inbox.unsubscribe('work')");

# --- places are changed while messages come, and some of them wait -----------------------------------
$pg->sql("SELECT inbox.subscribe('work', 'events', '$sought', 'note(inbox.message)', start => 'earliest', workers => 2, "
	  . "batch_size => 20, backoff => '50ms')");
$load = load_topic($sought);
for my $round (1 .. 5)
{
	progress_ok("seek $round", $sought);
	$pg->sql("SELECT inbox.seek('work', 'earliest')");
}
$n = end_load($load, $sought);
once_ok('sought', $sought, $n);
$load = load_topic($sought);
for my $round (1 .. 3)
{
	progress_ok("subscribe anew $round", $sought);
	$pg->sql("SELECT inbox.unsubscribe('work')");
	$pg->sql("SELECT inbox.subscribe('work', 'events', '$sought', 'note(inbox.message)', start => 'earliest', workers => 2, "
		  . "batch_size => 20, backoff => '50ms')");
}
$n = end_load($load, $sought);
# what waited is forgotten with the subscription, and comes again: after what came behind it
$pg->wait_ok("SELECT count(DISTINCT value) = $n FROM effect WHERE topic = '$sought'", 'subscribed anew: all is there');
is($pg->sql("SELECT count(*) FROM effect WHERE topic = '$sought'"), $n, 'subscribed anew: once');
unlike($pg->log_text, qr/deadlock detected/, 'nobody waits for each other');
$pg->sql("SELECT inbox.unsubscribe('work')");

$pg->stop;
$kafka->stop;
done_testing();
