# RabbitMQ, the way in: each message has its effect once, whatever is delivered again; order of
# keys, refusals, dead letters; a queue that is missing or deleted; what a queue cannot give.
use OutboxTest;
use OutboxRabbit;

plan skip_all => 'RabbitMQ is not on this machine' unless OutboxRabbit->available;

my $rabbit = OutboxRabbit->start;
my $pg = OutboxTest->server('main');

$rabbit->exchange('events', 'topic');
$rabbit->queue('orders', 'x-queue-type' => 'quorum', 'x-single-active-consumer' => JSON::PP::true);
$rabbit->bind('events', 'orders', 'order.*');
$pg->create_server_of('outbox_rabbitmq', 'rabbit', undef, url => $rabbit->url, exchange => 'events',
	topics => 'order.*, load.*');
$pg->sql(<<'END');
CREATE TABLE got (n serial, id text, topic text, key text, payload text, headers jsonb, attempt int);
CREATE FUNCTION take(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF inbox.payload_text(m) = 'bad' OR (inbox.payload_text(m) = 'late' AND m.attempt < 2) THEN
		RAISE 'not now';
	END IF;
	INSERT INTO public.got (id, topic, key, payload, headers, attempt)
		VALUES (m.message_id, m.topic, m.key, inbox.payload_text(m), m.headers, m.attempt);
END $$;
END

sub status { my ($column, $name) = @_; return $pg->sql("SELECT $column FROM inbox.subscription_status WHERE subscription = '" . ($name || 's') . "'") }

# --- what is refused -------------------------------------------------------------------------

for ([ "start => now()::text", qr/no positions/ ],
	[ 'workers => 2', qr/one worker/ ], [ 'shared_group => true', qr/one worker/ ])
{
	$pg->sql_fails("SELECT inbox.subscribe('s', 'rabbit', 'orders', 'take(inbox.message)', $_->[0])", $_->[1],
		"no $_->[0]");
}
$pg->sql_fails(q{SELECT inbox.subscribe('s', 'rabbit', 'ord*', 'take(inbox.message)')}, qr/not a pattern/, 'no patterns');

# --- a round trip ----------------------------------------------------------------------------

$pg->sql(q{SELECT inbox.subscribe('s', 'rabbit', 'orders', 'take(inbox.message)', max_attempts => 2, backoff => '50ms')});
ok($pg->wait_for(q{SELECT state = 'running' FROM inbox.subscription_status}), 'consumes');
$pg->sql_fails(q{SELECT inbox.seek('s', 'earliest')}, qr/no positions/, 'no seek');
$pg->sql(<<'END');
SELECT outbox.publish('order.placed', 'first'::text, 'k', '{"colour": "blue"}', 'id-1');
SELECT outbox.publish('order.placed', NULL::text, 'k');
SELECT outbox.publish('order.shipped', ''::text);
END
ok($pg->wait_for('SELECT count(*) = 3 FROM got'), 'three have come');
is($pg->sql(q{SELECT topic, key, payload, headers->>'colour', headers->>'content-type' FROM got WHERE id = 'id-1'}),
	'order.placed|k|first|blue|text/plain; charset=utf-8', 'with all that they have');
is($pg->sql(q{SELECT payload IS NULL, topic FROM got WHERE id <> 'id-1' ORDER BY topic}), "t|order.placed\nf|order.shipped",
	'tombstone and empty payload');
ok(!$pg->sql(q{SELECT count(*) FROM got WHERE headers ?| ARRAY['outbox-key', 'outbox-tombstone', 'timestamp_in_ms', 'redelivered']}),
	'without what is ours');
ok($pg->wait_for(q{SELECT true}) && $pg->wait_until(sub { $rabbit->count('orders') == 0 }), 'acknowledged');

# --- known again, and not ---------------------------------------------------------------------------

$rabbit->publish('events', 'order.x', 'again', message_id => 'id-1', headers => { n => 1 });
$rabbit->publish('events', 'order.x', 'nameless', headers => { list => [ 1, 'two' ] });
$rabbit->publish('events', 'order.x', 'foreign', message_id => 'id-2', headers => { n => 7, yes => JSON::PP::true, list => [ 1, 'two' ] }, correlation_id => 'c');
ok($pg->wait_for(q{SELECT count(*) = 1 FROM got WHERE id = 'id-2'}), 'a foreign message');
is($pg->sql(q{SELECT headers->>'n', headers->>'yes', headers->>'list', headers->>'correlation-id' FROM got WHERE id = 'id-2'}),
	'7|true|[1, "two"]|c', 'its headers as text');
is($pg->sql(q{SELECT count(*) FROM got WHERE payload IN ('again', 'nameless')}), 0, 'neither a second time nor without an id');
is($pg->sql(q{SELECT convert_from(payload, 'UTF8'), subject, error LIKE '%no id%' FROM inbox.dead_letter}), 'nameless|order.x|t',
	'a message without an id is a dead letter');
$pg->sql(q{SELECT inbox.redrive('s')});
ok($pg->wait_for(q{SELECT count(*) = 1 FROM got WHERE payload = 'nameless' AND topic = 'order.x'}), 'which can be redriven');

# --- what the handler refuses --------------------------------------------------------------------------

$pg->sql(q{SELECT outbox.publish('order.placed', p, 'r') FROM unnest(ARRAY['bad', 'late', 'good']) p});
ok($pg->wait_for(q{SELECT count(*) = 2 FROM got WHERE key = 'r'}), 'later ones follow');
is($pg->sql(q{SELECT string_agg(payload, ' ' ORDER BY n) FROM got WHERE key = 'r'}), 'late good', 'in their order');
is($pg->sql(q{SELECT count(*) FROM inbox.dead_letter WHERE message_id IS NOT NULL AND key = 'r'}), 1, 'and a dead letter');

# --- once, through all that happens ---------------------------------------------------------------------

$pg->judge_setup;
$rabbit->queue('load');
$rabbit->bind('events', 'load', 'load.#');
$pg->sql(<<'END');
CREATE TABLE effect (n serial, ledger text, key text);
CREATE FUNCTION effect(m inbox.message[]) RETURNS void LANGUAGE sql AS $$
	INSERT INTO public.effect (ledger, key) SELECT x.headers->>'ledger', x.key FROM unnest(m) WITH ORDINALITY x ORDER BY ordinality
$$;
SELECT inbox.subscribe('l', 'rabbit', 'load', 'effect(inbox.message[])', batch_size => 50);
END
my $load = $pg->ordered_load('load.a');
my $more = sub {
	my ($what) = @_;
	my $n = $pg->sql('SELECT count(*) FROM effect');
	ok($pg->wait_for("SELECT count(*) > $n + 300 FROM effect"), "consuming after $what");
};
$more->('the start');
for my $round (1 .. 3)
{
	# the server restarts with it, and the publishers end
	my $pid = status('pid', 'l');
	$pg->kill_process($pid);
	ok($pg->wait_for("SELECT pid <> $pid AND state = 'running' FROM inbox.subscription_status WHERE subscription = 'l'"), 'a new worker');
	$load->stop;
	$load = $pg->ordered_load('load.a');
	$more->('a worker that was killed');
	$rabbit->close_connections;
	$more->('connections that were closed');
}
# after the commit and before the ack: all of that batch comes again
my $worker = status('pid', 'l');
ok($pg->set_fault('inbox-after-commit=crash'), 'a crash is asked for');
ok($pg->wait_for("SELECT pid <> $worker FROM inbox.subscription_status WHERE subscription = 'l'"), 'a crash before the ack');
# the next one may crash, too, before it is told
ok($pg->set_fault(''), 'no more of that');
ok($pg->wait_for(q{SELECT state = 'running' FROM inbox.subscription_status WHERE subscription = 'l'}), 'a worker that stays');
$load->stop;
$load = $pg->ordered_load('load.a');
$more->('a crash before the ack');
cmp_ok(status('duplicates', 'l'), '>', 0, 'what came again was known');
$rabbit->kill_node;
$rabbit->start_node;
$more->('a broker that was killed');
$pg->end_load($load);
ok($pg->flush, 'all is delivered');
ok($pg->wait_for(q{SELECT count(*) = (SELECT count(*) FROM judge.ledger) FROM effect}), 'each has its effect');
is($pg->sql(q{SELECT count(*) - count(DISTINCT ledger) FROM effect}), 0, 'once');
is($pg->sql(q{SELECT count(*) FROM (SELECT l.seq, lag(l.seq) OVER (PARTITION BY e.key ORDER BY e.n) AS before
	FROM effect e JOIN judge.ledger l ON l.n = e.ledger::bigint) x WHERE before > seq}), 0, 'in the order of each key');

# --- marks outlive an outage -------------------------------------------------------------------------------

$pg->sql(q{SELECT inbox.subscribe('m', 'rabbit', 'marks', 'take(inbox.message)', dedup_ttl => '4s')});
ok($pg->wait_for(q{SELECT last_error LIKE '%NOT_FOUND%' FROM inbox.subscription_status WHERE subscription = 'm'}), 'a queue that is missing is said');
$rabbit->queue('marks');
ok($pg->wait_for(q{SELECT state = 'running' FROM inbox.subscription_status WHERE subscription = 'm'}), 'and consumed when it is there');
$rabbit->publish('', 'marks', 'once', message_id => 'mark-1');
ok($pg->wait_for(q{SELECT count(*) = 1 FROM got WHERE id = 'mark-1'}), 'its message has come');
$rabbit->stop_node;
ok($pg->wait_for(q{SELECT state <> 'running' FROM inbox.subscription_status WHERE subscription = 'm'}), 'the broker is gone');
ok($pg->wait_for(q{SELECT expires_at < clock_timestamp() FROM inbox.seen WHERE consumer = 'm'}), 'its mark has expired');
is($pg->sql('SELECT inbox.expire() >= 0, (SELECT count(*) FROM inbox.seen WHERE consumer = $$m$$)'), 't|1', 'and is kept');
$rabbit->start_node;
ok($pg->wait_for(q{SELECT state = 'running' FROM inbox.subscription_status WHERE subscription = 'm'}), 'the broker is back');

# what comes again finds the mark, which had expired meanwhile
$pg->sql(q{SELECT inbox.pause('m')});
ok($pg->wait_for(q{SELECT state = 'paused' FROM inbox.subscription_status WHERE subscription = 'm'}), 'nobody consumes');
$rabbit->publish('', 'marks', 'once', message_id => 'mark-1');
ok($pg->wait_for(q{SELECT expires_at < clock_timestamp() FROM inbox.seen WHERE consumer = 'm'}), 'the mark expires again');
is($pg->sql('SELECT inbox.expire() >= 0, (SELECT count(*) FROM inbox.seen WHERE consumer = $$m$$)'), 't|1', 'and is kept again');
$pg->sql(q{SELECT inbox.resume('m')});
ok($pg->wait_for(q{SELECT duplicates = 1 OR (SELECT count(*) > 1 FROM got WHERE id = 'mark-1') FROM inbox.subscription_status WHERE subscription = 'm'}),
	'what comes again is taken');
is($pg->sql(q{SELECT count(*) FROM got WHERE id = 'mark-1'}), 1, 'and known');
$rabbit->delete_queue('marks');
ok($pg->wait_for(q{SELECT last_error ~ 'NOT_FOUND|consumer of a queue' FROM inbox.subscription_status WHERE subscription = 'm'}), 'a queue that is deleted is said');
$rabbit->queue('marks');
$rabbit->publish('', 'marks', 'new', message_id => 'mark-2');
ok($pg->wait_for(q{SELECT count(*) = 1 FROM got WHERE id = 'mark-2'}), 'and consumed again when it is back');

done_testing();
