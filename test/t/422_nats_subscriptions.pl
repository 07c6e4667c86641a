# NATS JetStream: streams as sources of subscriptions.  The place is the stream's sequence, in
# the database; each message has its effect once, whatever is killed.
use OutboxTest;
use OutboxNats;

plan skip_all => 'NATS is not on this machine' unless OutboxNats->available;

my $nats = OutboxNats->start;
my $pg = OutboxTest->server('main', conf => "outbox.poll_interval = 100ms\n");

$nats->stream('EVENTS', 'orders.>');
$pg->create_server_of('outbox_nats', 'events', undef, url => $nats->url, stream => 'EVENTS', topics => 'orders.*');
$pg->sql(<<'SQL');
CREATE TABLE effect (n serial, handler text, message_id text, topic text, place bigint, key text, value text, headers jsonb,
	payload bytea, "timestamp" timestamptz, attempt int);
CREATE FUNCTION note(handler text, m inbox.message) RETURNS void LANGUAGE sql AS $$
	INSERT INTO public.effect (handler, message_id, topic, place, key, value, headers, payload, "timestamp", attempt)
		VALUES (handler, m.message_id, m.topic, m."offset", m.key,
			CASE WHEN m.payload NOT LIKE '\000%'::bytea THEN inbox.payload_text(m) END, m.headers, m.payload, m."timestamp", m.attempt)
$$;
CREATE FUNCTION one(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.note('one', m);
	IF m.key = 'bad' AND m.attempt < 3 THEN
		RAISE 'not yet';
	ELSIF m.key = 'dead' THEN
		PERFORM inbox.reject(m.topic);
	END IF;
END
$$;
CREATE FUNCTION many(ms inbox.message[]) RETURNS void LANGUAGE sql AS $$
	SELECT public.note('many', m) FROM unnest(ms) m ORDER BY m."offset"
$$;
CREATE FUNCTION eu(m inbox.message) RETURNS void LANGUAGE sql AS $$ SELECT public.note('eu', m) $$;
SQL

sub subscribe
{
	my ($name, $topics, $handler, @more) = @_;
	return $pg->sql("SELECT inbox.subscribe('$name', 'events', '$topics', '$handler', "
		  . join(', ', "start => 'earliest'", "backoff => '20 ms'", @more) . ')');
}

sub status { my ($name, $column) = @_; return $pg->sql("SELECT $column FROM inbox.subscription_status WHERE subscription = '$name'") }
sub kill_worker
{
	my ($name) = @_;
	my $pid = status($name, 'pid');

	$pg->kill_process($pid);
	return $pg->wait_for("SELECT pid <> $pid FROM inbox.subscription_status WHERE subscription = '$name'");
}

sub has { my ($handler, $n, $name) = @_; return $pg->wait_ok("SELECT count(*) = $n FROM effect WHERE handler = '$handler'", $name)
	  || diag($pg->sql('SELECT * FROM inbox.subscription_status; SELECT handler, count(*) FROM effect GROUP BY 1')) }

# --- what a handler sees -----------------------------------------------------------------

$pg->sql(<<'SQL');
BEGIN;
SELECT outbox.publish('orders.eu.placed', '{"n": 1}'::jsonb, 'k', '[["colour", "blue"], ["lines", "a\nb%41"], ["blank", " x "], ["none", ""], ["colour", "red"]]', 'my id');
SELECT outbox.publish('orders.us.placed', NULL::text, 'k');
SELECT outbox.publish('orders.us.placed', ''::text, '');
SELECT outbox.publish('orders.eu.paid', '\x00ff0d0a'::bytea, E' \n');
COMMIT;
SQL
ok($pg->flush, 'delivered');
$nats->publish('orders.us.other', 'from another', 'X-None' => '', 'Nats-Msg-Id' => 'theirs', 'X-Thing' => 'a', 'X-None' => '');
$nats->publish('orders.eu.other', '', 'X-None' => '', 'X-Thing' => ' b: c ', 'X-Last' => '');
subscribe('one', 'orders.*', 'one(inbox.message)');
subscribe('many', 'orders.*', 'many(inbox.message[])');
subscribe('eu', 'orders.eu.*, nothing.here', 'eu(inbox.message)');
has('one', 6, 'all messages');
has('many', 6, 'in a batch, too');
has('eu', 3, 'a pattern and a topic that is not there');
is($pg->sql("SELECT string_agg(format('%s %s', topic, place), ', ' ORDER BY n) FROM effect WHERE handler = 'one'"),
	'orders.eu.placed 1, orders.us.placed 2, orders.us.placed 3, orders.eu.paid 4, orders.us.other 5, orders.eu.other 6',
	'the subject is the topic, the sequence the offset');
is($pg->sql("SELECT headers - 'content-type' FROM effect WHERE handler = 'one' AND place = 1"),
	'{"none": "", "blank": " x ", "lines": "a\nb%41", "colour": ["blue", "red"], "message-id": "my id"}', 'headers as they were');
is($pg->sql("SELECT string_agg(format('%s|%s|%s', split_part(message_id, chr(64), 1), key, payload IS NULL), ', ' ORDER BY n) FROM effect WHERE handler = 'one' AND place IN (1, 5, 6)"),
	'my id|k|f, theirs||f, EVENTS/0/6||f', 'the message id, also of others; without one the place');
like($pg->sql("SELECT message_id FROM effect WHERE handler = 'one' AND place = 6"), qr/^EVENTS\/0\/6\@20\d\d-/, 'in the stream of that time');
is($pg->sql("SELECT headers FROM effect WHERE handler = 'one' AND place IN (5, 6) ORDER BY n"),
	qq({"X-None": ["", ""], "X-Thing": "a", "message-id": "theirs"}\n{"X-Last": "", "X-None": "", "X-Thing": "b: c"}), 'headers of others, also without values');
is($pg->sql("SELECT payload IS NULL FROM effect WHERE handler = 'one' AND place = 2"), 't', 'a tombstone');
is($pg->sql("SELECT format('%s|%s', payload, key IS NULL) FROM effect WHERE handler = 'one' AND place = 3"), '\x|f', 'an empty payload and an empty key');
is($pg->sql("SELECT format('%s|%s', payload, key) FROM effect WHERE handler = 'one' AND place = 4"), "\\x00ff0d0a| \n", 'any bytes');
is($pg->sql(q{SELECT count(*) FROM effect WHERE "timestamp" NOT BETWEEN now() - interval '1 min' AND now()}), 0, 'the time of publishing');
is(status('one', 'state'), 'running', 'running');
is($pg->sql("SELECT string_agg(format('%s/%s: %s', topic, partition, next), ', ') FROM inbox.position WHERE subscription = 'one'"), 'EVENTS/0: 7', 'the place');

# --- handlers that raise -------------------------------------------------------------------

$pg->sql("SELECT outbox.publish('orders.eu.x', v, k) FROM (VALUES ('1', 'bad'), ('2', 'bad'), ('3', 'fine'), ('4', 'dead')) v(v, k)");
$pg->wait_ok("SELECT array_agg(value ORDER BY n) = '{1,2}' FROM effect WHERE handler = 'one' AND key = 'bad'", 'tried again, in order');
is($pg->sql("SELECT max(attempt) FROM effect WHERE key = 'bad' AND topic = 'orders.eu.x'"), 3, 'with the same topic each time');
$pg->wait_ok("SELECT count(*) = 1 FROM inbox.dead_letter WHERE subscription = 'one' AND topic = 'EVENTS' AND subject = 'orders.eu.x' AND error = 'orders.eu.x'",
	'a dead letter');

# --- kills ------------------------------------------------------------------------------------

$pg->sql("SELECT inbox.alter_subscription('one', batch_size => 20)");
$pg->sql('TRUNCATE effect');
for my $round (1 .. 6)
{
	$pg->sql("SELECT outbox.publish('orders.load', n::text, 'k' || n % 7) FROM generate_series(($round - 1) * 1000 + 1, $round * 1000) n");
	if ($round == 2)
	{
		$nats->kill_server;
		$nats->start_server;
	}
	elsif ($round == 3) { $pg->sql("SELECT pg_terminate_backend(pid) FROM inbox.subscription_status") }
	elsif ($round == 4)
	{
		$pg->wait_for(q{SELECT pid IS NOT NULL FROM inbox.subscription_status WHERE subscription = 'one'});
		kill_worker('one');
	}
	elsif ($round == 5)
	{
		$nats->freeze;
		$pg->sql("SELECT outbox.publish('orders.frozen', 'x')");
		$nats->thaw;
	}
}
has($_, 6001, "$_: all of it, once") for 'one', 'many';
is($pg->sql("SELECT count(*) FROM (SELECT FROM effect GROUP BY handler, message_id HAVING count(*) > 1) twice"), 0, 'nothing twice');
is($pg->sql(q{SELECT count(*) FROM (SELECT value::int v, lag(value::int) OVER (PARTITION BY handler, key ORDER BY n) w
	FROM effect WHERE topic = 'orders.load') o WHERE w > v}), 0, 'in order by key');

# --- where it begins -----------------------------------------------------------------------------

$pg->sql('SELECT inbox.unsubscribe(s) FROM unnest(ARRAY[\'many\', \'eu\']) s');
$pg->sql('TRUNCATE effect');
subscribe('many', 'orders.*', 'many(inbox.message[])', 'workers => 2', "dedup_by => 'none'");
$pg->wait_ok("SELECT count(*) >= 6000 FROM effect WHERE handler = 'many'", 'earliest: all that is there, with two workers of which one reads');
$pg->sql("SELECT inbox.unsubscribe('many')");
my $then = $pg->sql('SELECT clock_timestamp()');
$pg->sql('TRUNCATE effect');
$pg->sql("SELECT outbox.publish('orders.later', n::text) FROM generate_series(1, 10) n");
ok($pg->flush, 'delivered');
$pg->sql("SELECT inbox.subscribe('many', 'events', 'orders.*', 'many(inbox.message[])', start => '$then', dedup_by => 'none')");
has('many', 10, 'from a time on');
$pg->sql("SELECT inbox.unsubscribe('many')");
$pg->sql("SELECT inbox.subscribe('many', 'events', 'orders.*', 'many(inbox.message[])', dedup_by => 'none')");
$pg->wait_ok("SELECT count(*) = 1 FROM inbox.position WHERE subscription = 'many'", 'latest has a place');
$pg->sql("SELECT outbox.publish('orders.latest', 'x')");
has('many', 11, 'latest: what comes from now on');

# --- gaps -----------------------------------------------------------------------------------------

$pg->wait_ok(q{SELECT count(DISTINCT next) = 1 FROM inbox.position}, 'all have read all');
$pg->sql("SELECT inbox.pause('one')");
$pg->wait_ok(q{SELECT state = 'paused' FROM inbox.subscription_status WHERE subscription = 'one'}, 'paused');
$pg->sql("SELECT outbox.publish('orders.gap', n::text) FROM generate_series(1, 10) n");
ok($pg->flush, 'delivered');
has('many', 21, 'read by one');
$nats->purge('EVENTS');
$pg->sql("SELECT outbox.publish('orders.gap', 'behind')");
$pg->sql("SELECT inbox.resume('one')");
$pg->wait_ok(q{SELECT state = 'error' AND last_error ~ 'no message at offset' FROM inbox.subscription_status WHERE subscription = 'one'}, 'what was purged before it was read is a gap');
$pg->sql("SELECT inbox.alter_subscription('one', on_gap => 'skip')");
$pg->wait_ok("SELECT count(*) = 1 FROM effect WHERE handler = 'one' AND topic = 'orders.gap' AND value = 'behind'", 'passed over when told to');
$pg->sql("SELECT inbox.alter_subscription('one', on_gap => 'stop')");
$nats->delete_stream('EVENTS');
$pg->wait_ok(q{SELECT state <> 'running' AND last_error ~ 'stream not found' FROM inbox.subscription_status WHERE subscription = 'one'}, 'a stream that is gone');
$nats->stream('EVENTS', 'orders.>');
$pg->wait_ok(q{SELECT state = 'error' AND last_error ~ 'no message at offset' FROM inbox.subscription_status WHERE subscription = 'one'}, 'one that was made anew is a gap');
$pg->sql("SELECT inbox.seek('one', 'earliest')");
$pg->sql("SELECT outbox.publish('orders.anew', 'x')");
$pg->wait_ok("SELECT count(*) = 1 FROM effect WHERE handler = 'one' AND topic = 'orders.anew'", 'read from its beginning');

# a stream that was made anew and is longer than the place
sub start { my ($name, $server, $topics, $handler, @more) = @_;
	return $pg->sql("SELECT inbox.subscribe('$name', '$server', '$topics', '$handler', " . join(', ', "start => 'earliest'", @more) . ')') }
sub position { my ($name) = @_; return "(SELECT next FROM inbox.position WHERE subscription = '$name')" }
sub state_of { my ($name) = @_; return "SELECT state FROM inbox.subscription_status WHERE subscription = '$name'" }
$nats->stream('ANEW', 'anew.>');
$pg->create_server_of('outbox_nats', 'anew', undef, url => $nats->url, stream => 'ANEW', topics => 'anew.*');
$nats->publish('anew.a', "old $_") for 1 .. 3;
start('anew', 'anew', 'anew.*', 'one(inbox.message)');
$pg->wait_ok(q{SELECT count(*) = 3 FROM effect WHERE topic = 'anew.a'}, 'a stream is read');
$pg->sql("SELECT inbox.pause('anew')");
$pg->wait_ok(state_of('anew') =~ s/state/state = 'paused'/r, 'paused');
$nats->delete_stream('ANEW');
$nats->stream('ANEW', 'anew.>');
$nats->publish('anew.a', "new $_") for 1 .. 5;
$pg->sql("SELECT inbox.resume('anew')");
$pg->wait_ok(state_of('anew') =~ s/state/state = 'error' AND last_error ~ 'no message at offset'/r, 'one that was made anew is a gap, as long as it may be');
$pg->sql("SELECT inbox.alter_subscription('anew', on_gap => 'skip')");
$pg->wait_ok(q{SELECT string_agg(value, ',' ORDER BY n) = 'old 1,old 2,old 3,new 1,new 2,new 3,new 4,new 5' FROM effect WHERE topic = 'anew.a'},
	'read from its beginning when told to, and none is taken for one of the old stream');

# a server that takes the time when it was started for that when the stream was made, as 2.9
# does when it has changed the stream
sub restart { $nats->stop_server; return $nats->start_server }
sub made { return $nats->stream_info('AGED')->{created} }
my $limit = 1_000_000;
sub forget
{
	restart();
	$nats->alter_stream('AGED', max_msgs => ++$limit);
	return restart();
}
sub aged { my ($n, $name) = @_; return $pg->wait_ok("SELECT count(*) = $n AND min(state) = 'running' FROM effect, inbox.subscription_status
	WHERE topic = 'aged.a' AND subscription = 'aged'", $name) || diag($pg->sql("SELECT * FROM inbox.subscription_status")) }
$nats->stream('AGED', 'aged.>');
$pg->create_server_of('outbox_nats', 'aged', undef, url => $nats->url, stream => 'AGED', topics => 'aged.*');
start('aged', 'aged', 'aged.*', 'one(inbox.message)');
$nats->publish('aged.a', "old $_") for 1 .. 3;
aged(3, 'a stream is read');
my $made = made();
restart();
$nats->purge('AGED');
$nats->publish('aged.a', "young $_") for 1, 2;
aged(5, 'it has no message that is as old');
$nats->alter_stream('AGED', max_msgs => $limit);
restart();
$nats->publish('aged.a', 'behind');
note("made at $made, as told later: " . made());
aged(6, 'a stream that is told to be younger is known by its last message');
$pg->wait_ok("SELECT incarnation = '" . made() . "' FROM inbox.position WHERE subscription = 'aged'", 'that is written down');
$pg->sql("SELECT inbox.pause('aged')");
$pg->wait_ok(state_of('aged') =~ s/state/state = 'paused'/r, 'paused');
forget();
$nats->publish('aged.a', 'last');
$pg->sql("SELECT inbox.resume('aged')");
aged(7, 'or by older messages');
$pg->wait_ok("SELECT incarnation = '" . made() . "' FROM inbox.position WHERE subscription = 'aged'", 'that is written down');

# what others get and the stream forgets is no gap
$nats->stream('MIXED', 'mixed.>');
$pg->create_server_of('outbox_nats', 'mixed', undef, url => $nats->url, stream => 'MIXED', topics => 'mixed.*');
start('filtered', 'mixed', 'mixed.a', 'one(inbox.message)');
start('dropping', 'mixed', 'mixed.a, mixed.x*', 'many(inbox.message[])');
$nats->publish('mixed.a', 'first');
$nats->publish('mixed.b', "other $_") for 1 .. 20;
$pg->wait_ok('SELECT ' . position($_) . ' = 22', "$_: the place passes over what is not its own") for 'filtered', 'dropping';
$nats->purge('MIXED');
$pg->sql("SELECT inbox.pause(s) FROM unnest(ARRAY['filtered', 'dropping']) s");
$pg->wait_ok(state_of($_) =~ s/state/state = 'paused'/r, 'paused') for 'filtered', 'dropping';
$pg->sql("SELECT inbox.resume(s) FROM unnest(ARRAY['filtered', 'dropping']) s");
$nats->publish('mixed.a', 'second');
$pg->wait_ok(q{SELECT count(*) = 4 FROM effect WHERE topic = 'mixed.a'}, 'what the stream has forgotten of others is no gap');

# --- a work queue -------------------------------------------------------------------------------------

$nats->stream('JOBS', 'jobs.>', retention => 'workqueue');
$pg->create_server_of('outbox_nats', 'jobs', undef, url => $nats->url, stream => 'JOBS', topics => 'jobs.*');
$pg->sql("SELECT outbox.publish('jobs.a', n::text, 'k' || n % 5) FROM generate_series(1, 3000) n");
ok($pg->flush, 'delivered');
$pg->sql('TRUNCATE effect');
$pg->sql("SELECT inbox.subscribe('one job', 'jobs', 'jobs.*', 'one(inbox.message)', start => 'earliest', batch_size => 50)");
$pg->wait_ok("SELECT count(*) > 200 FROM effect WHERE topic = 'jobs.a'", 'a work queue is read');
kill_worker('one job');
$pg->wait_ok("SELECT count(*) = 3000 AND count(DISTINCT message_id) = 3000 FROM effect WHERE topic = 'jobs.a'", 'all of it, once, in spite of a kill')
  || diag($pg->sql("SELECT * FROM inbox.subscription_status; SELECT * FROM inbox.position; SELECT count(*), count(DISTINCT message_id), max(place) FROM effect WHERE topic = 'jobs.a'"));
ok($pg->wait_until(sub { $nats->stream_info('JOBS')->{state}{messages} == 0 }), 'acknowledged, so the stream has none left');

# what was acknowledged is gone there, so it is on disk here, whatever the handler says
$pg->sql("SELECT inbox.unsubscribe('one job')");
$pg->sql(q{CREATE FUNCTION hasty(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM set_config('synchronous_commit', 'off', true), public.note('hasty', m);
	END $$});
# commits that don't wait for the disk are on it when somebody writes them
kill 'STOP', $pg->sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'});
$pg->sql("SELECT outbox.publish('jobs.b', n::text, 'k' || n % 5) FROM generate_series(1, 500) n");
start('hasty', 'jobs', 'jobs.*', 'hasty(inbox.message)', 'batch_size => 10');
ok($pg->wait_until(sub { $pg->sql("SELECT count(*) FROM effect WHERE handler = 'hasty'") == 500
	&& $nats->stream_info('JOBS')->{state}{messages} == 0 }), 'all are acknowledged');
$pg->crash;
$pg->start;
has('hasty', 500, 'and all are here after a crash');
start('choosy', 'jobs', 'jobs.a, jobs.b', 'one(inbox.message)');
$pg->wait_ok(state_of('choosy') =~ s/state/state = 'error' AND last_error ~ 'work queue'/r, 'a work queue is for one topic or pattern');

$nats->stream('INTEREST', 'interest', retention => 'interest');
$pg->create_server_of('outbox_nats', 'interest', undef, url => $nats->url, stream => 'INTEREST', topics => 'interest');
$pg->sql("SELECT inbox.subscribe('interest', 'interest', 'interest', 'one(inbox.message)')");
$pg->wait_ok(q{SELECT state = 'error' AND last_error ~ 'interest' FROM inbox.subscription_status WHERE subscription = 'interest'}, 'retention by interest is said to be of no use');

$pg->stop;
done_testing();
