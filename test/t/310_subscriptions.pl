# Subscriptions: messages of a topic have their effect exactly once, in order by key,
# through handlers that fail, workers that are killed, servers that crash.
use OutboxTest;

my $kafka = OutboxKafka->start(auto_create => 'false');
my $topic = unique_topic('orders');
my $pg = OutboxTest->server('main', conf => "outbox.poll_interval = 100ms\n");

$kafka->create_topic($topic, 4);
$pg->create_server('events', $kafka, topics => "$topic*");
$pg->sql(<<'SQL');
CREATE TABLE effect (n serial, message_id text, key text, value text, attempt int, handler text);
CREATE FUNCTION one(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.effect (message_id, key, value, attempt, handler)
		VALUES (m.message_id, m.key, inbox.payload_text(m), m.attempt, 'one');
END
$$;
CREATE FUNCTION many(m inbox.message[]) RETURNS void LANGUAGE sql AS $$
	INSERT INTO public.effect (message_id, key, value, attempt, handler)
		SELECT u.message_id, u.key, convert_from(u.payload, 'UTF8'), u.attempt, 'many' FROM unnest(m) u;
$$;
SQL

sub effects { return $pg->sql("SELECT count(*), count(DISTINCT message_id) FROM effect WHERE handler = '$_[0]'") }

# --- from the start, one by one and in batches -----------------------------------------
$pg->sql("SELECT outbox.publish('$topic', 'early ' || i, 'k' || i % 10) FROM generate_series(1, 100) i");
ok($pg->flush, 'published');
$pg->sql("SELECT inbox.subscribe('one', 'events', '$topic', 'one(inbox.message)', start => 'earliest')");
$pg->sql("SELECT inbox.subscribe('many', 'events', '$topic', 'many(inbox.message[])', start => 'latest')");
$pg->wait_ok("SELECT count(*) = 100 FROM effect WHERE handler = 'one'", 'from the earliest message');
$pg->wait_ok("SELECT bool_and(state = 'running' AND partitions = 4) FROM inbox.subscription_status", 'both run');
$pg->sql("SELECT outbox.publish('$topic', 'later ' || i, 'k' || i % 10) FROM generate_series(1, 1000) i");
$pg->wait_ok("SELECT count(*) = 1100 FROM effect WHERE handler = 'one'", 'and what follows');
$pg->wait_ok("SELECT count(*) = 1000 FROM effect WHERE handler = 'many'", 'from the latest on');
is(effects('one'), '1100|1100', 'each once');
is(effects('many'), '1000|1000', 'each once, in batches');
my $order = q{SELECT count(*) FROM (SELECT substr(value, 7)::int v, lag(substr(value, 7)::int) OVER (PARTITION BY key, handler ORDER BY n) w
	FROM effect WHERE value LIKE 'later%') o WHERE w > v};
is($pg->sql($order), 0, 'in order by key');
$pg->wait_ok('SELECT sum(lag) = 0 FROM inbox.subscription_status', 'nothing is left');
$pg->stop;
done_testing();
