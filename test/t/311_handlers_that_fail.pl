# Handlers that raise: what they did is undone, the message is tried again, those of its
# key wait, others go on; what is not taken in the end is a dead letter.
use OutboxTest;

my $kafka = OutboxKafka->start(auto_create => 'false');
my $topic = unique_topic('failing');
my $pg = OutboxTest->server('main', conf => "outbox.poll_interval = 100ms\n");

$kafka->create_topic($topic, 2);
$pg->create_server('events', $kafka, topics => "$topic*");
$pg->sql(<<'SQL');
CREATE TABLE effect (n serial, message_id text, key text, value text, attempt int, handler text);
CREATE TABLE broken (value text PRIMARY KEY, until int);
CREATE FUNCTION check_one(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	v text := inbox.payload_text(m);
BEGIN
	IF EXISTS (SELECT FROM public.broken b WHERE b.value = v AND m.attempt < b.until) THEN
		RAISE division_by_zero USING MESSAGE = 'no ' || v;
	ELSIF v = 'later' AND m.attempt < 3 THEN
		PERFORM inbox.retry_later('50 ms');
	ELSIF v = 'rejected' THEN
		PERFORM inbox.reject('not ours');
	ELSIF v = 'slow' AND m.attempt = 1 THEN
		PERFORM pg_sleep(100);
	END IF;
END
$$;
CREATE FUNCTION one(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.effect (message_id, key, value, attempt, handler)
		VALUES (m.message_id, m.key, inbox.payload_text(m), m.attempt, 'one');
	PERFORM public.check_one(m);
END
$$;
CREATE FUNCTION many(ms inbox.message[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	m inbox.message;
BEGIN
	FOREACH m IN ARRAY ms
	LOOP
		INSERT INTO public.effect (message_id, key, value, attempt, handler)
			VALUES (m.message_id, m.key, inbox.payload_text(m), m.attempt, 'many');
		PERFORM public.check_one(m);
	END LOOP;
END
$$;
SQL
for my $handler ('one(inbox.message)', 'many(inbox.message[])')
{
	my ($name) = $handler =~ /^(\w+)/;
	$pg->sql("SELECT inbox.subscribe('$name', 'events', '$topic', '$handler', start => 'earliest', "
		  . "max_attempts => 4, backoff => '20 ms', timeout => '2 s')");
}

# of what is published in one transaction, the handlers get it in few batches
sub handled
{
	my ($values, $condition, $name) = @_;
	$pg->sql("SELECT outbox.publish('$topic', v[1], v[2]) FROM (VALUES "
		  . join(', ', map { "(1, ARRAY['$_->[0]', '$_->[1]'])" } @$values) . ') t (i, v)');
	for my $handler ('one', 'many')
	{
		$pg->wait_ok($condition =~ s/HANDLER/$handler/gr, "$handler: $name");
	}
	return;
}

my @ordinary = map { [ "v$_", 'k' . $_ % 7 ] } 1 .. 200;
handled(\@ordinary, "SELECT count(*) = 200 FROM effect WHERE handler = 'HANDLER'", 'all that is fine');

# --- tried again, in the order of its key -------------------------------------------------
$pg->sql("INSERT INTO broken VALUES ('b50', 3), ('b51', 2)");
handled([ map { [ "b$_", 'k' . $_ % 7 ] } 1 .. 100 ],
	"SELECT count(*) = 100 FROM effect WHERE handler = 'HANDLER' AND value LIKE 'b%'", 'all in the end');
is($pg->sql(q{SELECT string_agg(format('%s %s %s', handler, value, attempt), ', ' ORDER BY handler, value) FROM effect
	WHERE value IN ('b50', 'b51')}), 'many b50 3, many b51 2, one b50 3, one b51 2', 'at which attempt');
my $order = q{SELECT count(*) FROM (SELECT handler, n, substr(value, 2)::int v, lag(substr(value, 2)::int)
	OVER (PARTITION BY key, handler ORDER BY n) w FROM effect WHERE value ~ '^b\d') o WHERE w > v};
is($pg->sql($order), 0, 'in order by key');
is($pg->sql(q{SELECT count(*) FROM effect a JOIN effect b USING (handler) WHERE a.value = 'b50' AND b.value = 'b98' AND a.n > b.n}),
	2, 'others have not waited');
is($pg->sql('SELECT count(*) FROM inbox.waiting'), 0, 'nothing waits');

# --- given up ----------------------------------------------------------------------------
$pg->sql("INSERT INTO broken VALUES ('d5', 1000)");
handled([ map { [ "d$_", 'k1' ] } 1 .. 10 ],
	"SELECT count(*) = 9 FROM effect WHERE handler = 'HANDLER' AND value LIKE 'd%'", 'the others of the key');
is($pg->sql(q{SELECT string_agg(format('%s %s %s %s %s', subscription, convert_from(payload, 'UTF8'), sqlstate, error, attempts), ', ' ORDER BY subscription)
	FROM inbox.dead_letter}), 'many d5 22012 no d5 4, one d5 22012 no d5 4', 'a dead letter with the reason');
like($pg->sql(q{SELECT context FROM inbox.dead_letter WHERE subscription = 'one'}), qr/PL\/pgSQL function public\.check_one/,
	'and where it was raised');
is($pg->sql('SELECT string_agg(dead_letters::text, \',\') FROM inbox.subscription_status'), '1,1', 'the status counts it');
$pg->sql("DELETE FROM broken WHERE value = 'd5'");
is($pg->sql("SELECT inbox.redrive('one'), inbox.discard('many'), inbox.discard('many', ARRAY['x'])"), '1|1|0', 'redriven, discarded');
$pg->wait_ok("SELECT count(*) = 1 FROM effect WHERE handler = 'one' AND value = 'd5'", 'the redriven one is handled');
is($pg->sql('SELECT count(*) FROM inbox.dead_letter'), 0, 'no dead letters');

# --- handlers that know --------------------------------------------------------------------
handled([ [ 'later', 'x' ], [ 'after', 'x' ] ],
	"SELECT array_agg(value ORDER BY n) = '{later,after}' FROM effect WHERE handler = 'HANDLER' AND key = 'x'", 'later');
handled([ [ 'rejected', 'y' ], [ 'fine', 'y' ] ], "SELECT count(*) = 1 FROM effect WHERE handler = 'HANDLER' AND key = 'y'", 'rejected');
is($pg->sql(q{SELECT string_agg(format('%s %s %s', error, attempts, sqlstate), ', ') FROM inbox.dead_letter}),
	'not ours 1 OB002, not ours 1 OB002', 'at once');
handled([ [ 'slow', 'z' ] ], "SELECT count(*) = 1 FROM effect WHERE handler = 'HANDLER' AND key = 'z' AND attempt = 2", 'a handler that takes too long');

# --- what is left for the commit -----------------------------------------------------------
# nothing tells which message of a batch it was
$pg->sql(<<'SQL');
CREATE TABLE late (n serial, value text, key text, attempt int, handler text);
CREATE FUNCTION check_late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.value = 'l50' OR NEW.value = 'l60' AND NEW.attempt < 3 THEN
		RAISE check_violation USING MESSAGE = 'late ' || NEW.value;
	END IF;
	RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_late();
CREATE FUNCTION late_one(m inbox.message) RETURNS void LANGUAGE sql AS $$
	INSERT INTO public.late (value, key, attempt, handler) VALUES (inbox.payload_text(m), m.key, m.attempt, 'one') $$;
CREATE FUNCTION late_many(ms inbox.message[]) RETURNS void LANGUAGE sql AS $$
	INSERT INTO public.late (value, key, attempt, handler) SELECT inbox.payload_text(m), m.key, m.attempt, 'many' FROM unnest(ms) m $$;
SQL
$kafka->create_topic("$topic.late", 2);
$pg->sql("SELECT inbox.subscribe('late_$_->[0]', 'events', '$topic.late', 'late_$_->[0]($_->[1])', start => 'earliest', "
	  . "max_attempts => 4, backoff => '20 ms')") for [ 'one', 'inbox.message' ], [ 'many', 'inbox.message[]' ];
$pg->sql("SELECT outbox.publish('$topic.late', 'l' || n, 'k' || n % 7) FROM generate_series(1, 100) n");
$pg->wait_ok("SELECT count(*) = 198 AND count(DISTINCT (handler, value)) = 198 FROM late", 'a commit that raises: all others are handled, once');
$pg->wait_ok(q{SELECT string_agg(format('%s %s %s %s', subscription, sqlstate, error, attempts), ', ' ORDER BY subscription) = 'late_many 23514 late l50 4, late_one 23514 late l50 4'
	FROM inbox.dead_letter WHERE subscription LIKE 'late%'}, 'the one to blame is a dead letter');
is($pg->sql(q{SELECT string_agg(format('%s %s', handler, attempt), ', ' ORDER BY handler) FROM late WHERE value = 'l60'}),
	'many 3, one 3', 'one that is fine later is tried until then');
is($pg->sql(q{SELECT count(*) FROM (SELECT n, substr(value, 2)::int v, lag(substr(value, 2)::int) OVER (PARTITION BY key, handler ORDER BY n) w
	FROM late) o WHERE w > v}), 0, 'in order by key');
$pg->wait_ok(q{SELECT bool_and(state = 'running' AND handled = 99) AND count(*) = 2 FROM inbox.subscription_status WHERE subscription LIKE 'late%'},
	'the subscriptions run, and count what they handled');
is($pg->sql('SELECT count(*) FROM inbox.waiting'), 0, 'nothing waits');
$pg->sql(q{SELECT inbox.unsubscribe('late_one'), inbox.unsubscribe('late_many')});

# --- unsubscribing while one is tried again ---------------------------------------------------
# the row of the one that is tried is written anew, behind that of the one that waits for it
$pg->sql(<<'SQL');
CREATE FUNCTION blocked(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF inbox.payload_text(m) = 'first' AND m.attempt = 1 THEN
		RAISE 'once more';
	ELSIF inbox.payload_text(m) = 'first' THEN
		PERFORM pg_advisory_xact_lock_shared(77);
	END IF;
END
$$;
SQL
my $holder = $pg->session;
my $leaver = $pg->session;
$holder->query('SELECT pg_advisory_lock(77)');
$kafka->create_topic("$topic.blocked", 1);
$pg->sql("SELECT inbox.subscribe('blocked', 'events', '$topic.blocked', 'blocked(inbox.message)', start => 'earliest', backoff => '2 s')");
$pg->sql("SELECT outbox.publish('$topic.blocked', v, 'k') FROM unnest(ARRAY['first', 'second', 'third']) v");
$pg->wait_ok('SELECT count(*) = 3 FROM inbox.waiting', 'one is to be tried again, two wait for it');
$pg->sql(q{UPDATE inbox.waiting_message SET due = clock_timestamp() WHERE due IS NOT NULL});
my $blocked = q{SELECT count(*) = 1 FROM pg_stat_activity WHERE %s AND wait_event_type = 'Lock'};
$pg->wait_ok(sprintf($blocked, q{backend_type = 'pg_outbox inbox blocked'}), 'it is tried again');
# it takes the rows as they lie
$leaver->query('SET enable_indexscan = off; SET enable_bitmapscan = off');
$leaver->query_until(qr/leaving/, "\\echo leaving\nSELECT inbox.unsubscribe('blocked');\n\\echo left\n");
$pg->wait_ok(sprintf($blocked, q{query LIKE 'SELECT inbox.unsubscribe%' AND backend_type = 'client backend'}), 'unsubscribe() waits');
$holder->query('SELECT pg_advisory_unlock(77)');
$leaver->query_until(qr/left/, '');
is($pg->sql(q{SELECT count(*) FROM inbox.subscription WHERE name = 'blocked'}), 0, 'it is done then');
is($pg->sql('SELECT count(*) FROM inbox.waiting'), 0, 'nothing waits');
unlike($pg->log_text, qr/deadlock/, 'nobody had to give up');
$_->quit for $holder, $leaver;

# --- whose rights they have ------------------------------------------------------------------
# a subscription of somebody who may little: also what is left for the commit is his
$pg->sql(<<'SQL');
CREATE ROLE app LOGIN IN ROLE inbox_consumer;
GRANT USAGE ON FOREIGN SERVER events TO app;
CREATE SCHEMA app AUTHORIZATION app;
SET ROLE app;
CREATE TABLE app.done (value text, who name, session name, deferred boolean);
CREATE FUNCTION app.later() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NOT NEW.deferred THEN
		INSERT INTO app.done VALUES (NEW.value, current_user, session_user, true);
	END IF;
	RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER later AFTER INSERT ON app.done DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION app.later();
CREATE FUNCTION app.handle(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO app.done VALUES (inbox.payload_text(m), current_user, session_user, false);
	IF inbox.payload_text(m) = 'again' AND m.attempt = 1 THEN
		RAISE 'again';
	ELSIF inbox.payload_text(m) = 'out' THEN
		RESET ROLE;
		SET SESSION AUTHORIZATION DEFAULT;
	ELSIF inbox.payload_text(m) = 'plain' THEN
		PERFORM inbox.subscribe('from a handler', 'events', 'nothing', 'app.handle(inbox.message)');
	ELSIF inbox.payload_text(m) = 'forbidden' THEN
		DELETE FROM public.effect;
	END IF;
END
$$;
SQL
$pg->sql("SET ROLE app; SELECT inbox.subscribe('app', 'events', '$topic', 'app.handle(inbox.message)', max_attempts => 2, backoff => '20 ms')");
$pg->wait_ok("SELECT state = 'running' AND partitions = 2 FROM inbox.subscription_status WHERE subscription = 'app'", 'a subscription of another role');
$pg->sql("SELECT outbox.publish('$topic', v, v) FROM unnest(ARRAY['plain', 'again', 'out', 'forbidden']) v");
$pg->wait_ok("SELECT count(*) = 4 FROM app.done", 'what it may it does');
$pg->wait_ok("SELECT count(*) = 2 FROM inbox.dead_letter WHERE subscription = 'app'", 'what it may not it does not');
is($pg->sql(q{SELECT string_agg(format('%s %s %s', value, who, deferred), ', ' ORDER BY value, deferred) FROM app.done}),
	'again app f, again app t, plain app f, plain app t', 'all with its own rights, deferred triggers too');
is($pg->sql(q{SELECT string_agg(error, ', ' ORDER BY message_id) FROM inbox.dead_letter WHERE subscription = 'app' AND error LIKE 'permission denied%'}),
	'permission denied for table effect', 'and no others');
is($pg->sql("SELECT owner FROM inbox.subscription WHERE name = 'from a handler'"), 'app', 'what it subscribes is its own');
$pg->sql("SELECT inbox.unsubscribe('app'), inbox.unsubscribe('from a handler')");
$pg->wait_ok("SELECT count(*) >= 4 FROM effect WHERE value IN ('plain', 'out')", 'the others have had them');

# --- blocked -------------------------------------------------------------------------------
$pg->sql(q{SELECT inbox.alter_subscription(s, on_error => 'block', max_attempts => 1) FROM unnest(ARRAY['one', 'many']) s});
$pg->sql("INSERT INTO broken VALUES ('e1', 1000000)");
handled([ [ 'e1', 'w' ], [ 'e2', 'w' ], [ 'e3', 'v' ] ],
	"SELECT count(*) = 1 FROM effect WHERE handler = 'HANDLER' AND value LIKE 'e%'", 'only the other key');
$pg->wait_ok("SELECT bool_and(attempts > 5) FROM inbox.waiting WHERE due IS NOT NULL", 'it is tried for ever');
is($pg->sql('SELECT string_agg(waiting::text, \',\') FROM inbox.subscription_status'), '2,2', 'the status counts those that wait');
# a new worker knows which keys wait
my $pid = $pg->sql("SELECT pid FROM inbox.subscription_status WHERE subscription = 'one'");
$pg->sql("SELECT pg_terminate_backend($pid)");
$pg->wait_ok("SELECT pid <> $pid AND state = 'running' AND partitions = 2 FROM inbox.subscription_status WHERE subscription = 'one'", 'another worker');
$pg->sql("SELECT outbox.publish('$topic', 'e4', 'w')");
$pg->wait_ok("SELECT count(*) = 2 FROM inbox.waiting WHERE convert_from(payload, 'UTF8') = 'e4'", 'the next of the key waits too');
# what waits is read once more
$pg->sql("INSERT INTO broken VALUES ('e5', 1000000)");
$kafka->produce($topic, { payload => 'e5' });
$pg->wait_ok("SELECT count(*) = 2 FROM inbox.waiting WHERE convert_from(payload, 'UTF8') = 'e5'", 'one without a key waits');
my $places = 'SELECT string_agg(next::text, $$,$$ ORDER BY subscription, partition) FROM inbox.position';
my $waiting = 'SELECT string_agg(convert_from(payload, $$UTF8$$), $$,$$ ORDER BY subscription, "offset", partition) FROM inbox.waiting';
my ($stood, $waited) = map { $pg->sql($_) } $places, $waiting;
$pg->sql("SELECT inbox.seek(s, 'earliest') FROM unnest(ARRAY['one', 'many']) s");
$pg->wait_ok($places, 'after a seek to the beginning they come to where they were', expect => $stood, timeout => 30);
is($pg->sql($waiting), $waited, 'with the same messages waiting');
unlike($pg->log_text, qr/duplicate key/, 'and no conflict');
$pg->sql("DELETE FROM broken WHERE value IN ('e1', 'e5')");
for my $handler ('one', 'many')
{
	$pg->wait_ok("SELECT array_agg(value ORDER BY n) = '{e1,e2,e4}' FROM effect WHERE handler = '$handler' AND key = 'w'", "$handler: until it is mended");
}
is($pg->sql('SELECT count(*) FROM (SELECT FROM effect GROUP BY message_id, handler HAVING count(*) > 1) twice'), 0, 'nothing twice');

# --- sent to something else than its place's topic ---------------------------------------------
$pg->sql(q{CREATE OR REPLACE FUNCTION one(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF m.attempt > 1 THEN
		PERFORM inbox.reject(m.topic);
	END IF;
	RAISE 'for %', m.topic;
END
$$});
$pg->sql(qq{INSERT INTO inbox.dead_message (subscription, topic, partition, "offset", subject, message_id, headers, attempts, sqlstate, error)
	VALUES ('one', '$topic', 0, 1000000, 'orders.eu', 'with a subject', '{}', 1, '', '')});
is($pg->sql("SELECT inbox.redrive('one', ARRAY['with a subject'])"), 1, 'a message that was sent to another topic than its place has');
$pg->wait_ok("SELECT count(*) = 1 FROM inbox.dead_letter WHERE error = 'orders.eu' AND subject = 'orders.eu'", 'the handler gets that topic, each time');
$pg->stop;
done_testing();
