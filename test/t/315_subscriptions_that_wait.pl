# What a subscription waits for, and goes on from by itself: a topic that does not exist
# yet, a handler, a role or a right that is gone, a handler that takes too long, somebody
# who cancels it.  Where it starts.  Nothing is lost meanwhile, and nothing comes twice.
use OutboxTest;

my $kafka = OutboxKafka->start(auto_create => 'false');
my $pg = OutboxTest->server('main', conf => "outbox.poll_interval = 100ms\n");
my $stem = unique_topic('wait');
my ($there, $late, $old) = map { "$stem.$_" } qw(there late old);

$kafka->create_topic($_, 1) for $there, $old;
# metadata is asked for anew this often: a topic that appears is not told of
$pg->create_server('events', $kafka, topics => '!*', 'topic.metadata.refresh.interval.ms' => 500);
$pg->sql(<<'SQL');
CREATE TABLE state (state text, last_error text);
CREATE TABLE effect (n serial, subscription text, topic text, value text, attempt int);
CREATE FUNCTION note(name text, m inbox.message) RETURNS void LANGUAGE sql AS $$
	INSERT INTO public.effect (subscription, topic, value, attempt) VALUES (name, m.topic, inbox.payload_text(m), m.attempt) $$;
CREATE FUNCTION handler(name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('CREATE FUNCTION %I(m inbox.message) RETURNS void LANGUAGE sql AS $f$ SELECT public.note(%L, m) $f$', name, name);
END
$$;
SQL

sub subscribe
{
	my ($name, $topic, $start, $more) = @_;
	$pg->sql("SELECT handler('$name'); SELECT inbox.subscribe('$name', 'events', '$topic', '$name(inbox.message)', "
		  . "start => '$start'" . ($more ? ", $more" : '') . ')');
	return;
}

sub publish { my ($topic, @values) = @_; $kafka->produce($topic, map { { key => 'k', payload => $_ } } @values); return }

sub status_ok
{
	my ($name, $condition, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $pg->wait_ok("SELECT $condition FROM inbox.subscription_status WHERE subscription = '$name'", $what)
	  || diag($pg->sql("SELECT * FROM inbox.subscription_status WHERE subscription = '$name'"));
}

# what it had, in this order
sub effects_ok
{
	my ($name, $expected, $what, $more) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $all = "SELECT coalesce(string_agg(value, ' ' ORDER BY n), '') FROM effect WHERE subscription = '$name'" . ($more || '');
	return $pg->wait_for($all, expect => $expected, timeout => 60) ? pass($what) : is($pg->sql($all), $expected, $what);
}

# --- topics that are missing ---------------------------------------------------------------
publish($there, 'a');
subscribe('missing', "$there, $late", 'earliest');
effects_ok('missing', 'a', 'a topic that is there is consumed');
like($pg->log_text, qr/LOG:  pg_outbox subscription "missing": [^\n]*\Q$late\E[^\n]*\n[^\n]*HINT:  Create topic "\Q$late\E"/,
	'the one that is missing is told, with a hint');
status_ok('missing', "state = 'running' AND last_error LIKE '%$late%' AND hint LIKE 'Create it%'", 'and in the status, while others are consumed');
subscribe('alone', $late, 'latest');
status_ok('alone', "state = 'retrying' AND last_error LIKE '%$late%' AND hint LIKE 'Create topic%'", 'a topic that is missing alone is a state');
subscribe('pattern', "$stem.l*", 'latest');
publish($there, 'b');
effects_ok('missing', 'a b', 'and goes on being consumed');
$kafka->create_topic($late, 1);
publish($late, 'c');
effects_ok('missing', 'a b c', 'it is taken up when it appears, from its beginning');
status_ok($_, "state = 'running' AND last_error IS NULL", "$_: all is well") for qw(missing alone);
$pg->wait_ok("SELECT count(*) = 3 FROM inbox.position WHERE topic = '$late'", 'all have a place in it');
publish($late, 'd');
effects_ok('alone', 'd', 'latest: from when it was there', " AND value <> 'c'");
effects_ok('pattern', 'd', 'a pattern, too', " AND value <> 'c'");
publish("$there", 'e');
effects_ok('missing', 'a b c d e', 'all in order');

# --- where it starts --------------------------------------------------------------------------
my $hour = 3_600_000;
my $now = $pg->sql('SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint');
$kafka->produce($old, map { { payload => "v$_", timestamp => $now - (6 - $_) * $hour } } 1 .. 5);
subscribe('from_earliest', $old, 'earliest');
subscribe('from_latest', $old, 'latest');
subscribe('from_time', $old, $pg->sql("SELECT to_timestamp($now / 1000.0) - interval '2 hours 30 minutes'"));
# however the one who subscribes writes times
$pg->sql("SELECT handler('from_sql_time'); SET datestyle = 'SQL, DMY'; SET timezone = 'America/St_Johns'; "
	  . "SELECT inbox.subscribe('from_sql_time', 'events', '$old', 'from_sql_time(inbox.message)', "
	  . "start => (to_timestamp($now / 1000.0) - interval '2 hours 30 minutes')::text)");
subscribe('from_infinity', $old, '-infinity');
subscribe('from_future', $old, $pg->sql("SELECT now() + interval '1 day'"));
status_ok($_, "state = 'running'", "$_: runs") for qw(from_latest from_time from_sql_time from_future from_infinity);
$pg->wait_ok(q{SELECT count(*) = 6 FROM inbox.position WHERE subscription LIKE 'from%'}, 'all have a place');
publish($old, 'v6');
effects_ok('from_earliest', 'v1 v2 v3 v4 v5 v6', 'from the earliest');
effects_ok('from_infinity', 'v1 v2 v3 v4 v5 v6', 'and from before all time');
effects_ok('from_latest', 'v6', 'from the latest');
effects_ok('from_time', 'v4 v5 v6', 'from a time');
effects_ok('from_sql_time', 'v4 v5 v6', 'from a time that is written in another style');
effects_ok('from_future', 'v6', 'from a time that has not come: what comes next');
# it runs when the place is stored, and not before
my $holder = $pg->session;
$holder->query('BEGIN; LOCK inbox.position IN EXCLUSIVE MODE');
subscribe('from_now', $old, 'latest');
$pg->wait_ok(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'pg_outbox inbox from_now' AND wait_event_type = 'Lock'}, 'about to store where it begins');
status_ok('from_now', "state = 'starting' AND last_error IS NULL", 'it is starting until then');
publish($old, 'v7');
$holder->query('COMMIT');
status_ok('from_now', "state = 'running'", 'then it runs');
publish($old, 'v8');
effects_ok('from_now', 'v8', 'what is published from then on is consumed', " AND value <> 'v7'");
$holder->quit;
$pg->sql(q{SELECT inbox.unsubscribe(name) FROM inbox.subscription WHERE name LIKE 'from%'});
# seek takes any of these, too
$pg->sql("SET datestyle = 'German'; SELECT inbox.seek('missing', now()::text)");
publish($there, 'f');
effects_ok('missing', 'a b c d e f', 'seek to now');

# --- a pattern, and a topic that is made later ---------------------------------------------------
subscribe('later', "$stem.new*", 'latest');
$kafka->create_topic("$stem.new1", 1);
publish("$stem.new1", 'p');
$pg->wait_ok("SELECT count(*) >= 1 FROM inbox.position WHERE subscription = 'later'", 'a topic that matches appears');
$kafka->create_topic("$stem.new2", 2);
publish("$stem.new2", 'q');
$pg->wait_ok("SELECT count(*) = 3 FROM inbox.position WHERE subscription = 'later'", 'and a second one');
effects_ok('later', 'q', 'which is read from its beginning', " AND value <> 'p'");
$pg->sql("SELECT inbox.unsubscribe(s) FROM unnest(ARRAY['later', 'alone', 'pattern']) s");

# --- handlers, rights and roles that are gone -----------------------------------------------------
# what ails it is told once, not again and again
sub told { my ($pattern) = @_; my $n = () = $pg->log_text =~ /$pattern/g; return $n }

$pg->sql('DROP FUNCTION missing(inbox.message)');
publish($there, 'g');
status_ok('missing', "state = 'error' AND last_error = 'handler public.missing(inbox.message) does not exist' AND hint LIKE 'Create it%'",
	'a handler that was dropped');
my $since = $pg->sql("SELECT last_error_at FROM inbox.subscription_status WHERE subscription = 'missing'");
status_ok('missing', "last_error_at > '$since'::timestamptz + interval '3 s'", 'it is tried again');
my $states = $pg->sql(q{DO $$ BEGIN FOR i IN 1 .. 100 LOOP PERFORM pg_sleep(0.01); INSERT INTO state SELECT state, last_error FROM inbox.subscription_status
	WHERE subscription = 'missing'; END LOOP; END $$; SELECT count(*) FROM state WHERE state <> 'error' OR last_error IS NULL});
is($states, 0, 'and told all the time');
$pg->sql('CREATE FUNCTION missing(m inbox.message) RETURNS int LANGUAGE sql AS $$ SELECT 1 $$');
status_ok('missing', "state = 'error' AND last_error LIKE '%must be a function that returns void'", 'one that returns something');
$pg->sql('DROP FUNCTION missing(inbox.message); CREATE PROCEDURE missing(m inbox.message) LANGUAGE sql AS $$ SELECT 1 $$');
status_ok('missing', "state = 'error' AND last_error IS NOT NULL", 'a procedure');
$pg->sql('DROP PROCEDURE missing(inbox.message); CREATE FUNCTION missing(m inbox.message, n int) RETURNS void LANGUAGE sql AS $$ SELECT 1 $$');
status_ok('missing', "state = 'error' AND last_error LIKE '%does not exist'", 'one of another signature');
$pg->sql(q{CREATE FUNCTION missing(m inbox.message[]) RETURNS void LANGUAGE sql AS $$ SELECT public.note('missing', u) FROM unnest(m) u $$;
	SELECT inbox.alter_subscription('missing', handler => 'missing(inbox.message[])')});
effects_ok('missing', 'a b c d e f g', 'one for batches in its place');
status_ok('missing', "state = 'running' AND last_error IS NULL", 'all is well');
is($pg->sql('SELECT count(*) FROM inbox.waiting'), 0, 'no message is to blame');
cmp_ok(told(qr/LOG:  pg_outbox subscription "missing": handler public\.missing\(inbox\.message\) does not exist/), '<=', 4, 'the log was told of it, not all the time');

$pg->sql(<<'SQL');
CREATE ROLE app LOGIN IN ROLE inbox_consumer;
GRANT USAGE ON FOREIGN SERVER events TO app;
CREATE SCHEMA app;
GRANT USAGE, CREATE ON SCHEMA app TO app;
GRANT INSERT ON effect TO app;
GRANT USAGE ON SEQUENCE effect_n_seq TO app;
CREATE FUNCTION app.handle(m inbox.message) RETURNS void LANGUAGE sql AS $$ SELECT public.note('app', m) $$;
REVOKE EXECUTE ON FUNCTION app.handle(inbox.message) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.handle(inbox.message) TO app;
SQL
$pg->sql("SET ROLE app; SELECT inbox.subscribe('app', 'events', '$there', 'app.handle(inbox.message)', start => 'earliest')");
effects_ok('app', 'a b e f g', "another role's subscription");
$pg->sql('REVOKE EXECUTE ON FUNCTION app.handle(inbox.message) FROM app');
publish($there, 'h');
status_ok('app', q{state = 'error' AND last_error LIKE '%"app" may not execute handler app.handle%' AND hint LIKE 'Grant EXECUTE%'},
	'a right that was revoked');
$pg->sql('GRANT EXECUTE ON FUNCTION app.handle(inbox.message) TO app');
effects_ok('app', 'a b e f g h', 'granted again');
$pg->sql('REVOKE USAGE ON FOREIGN SERVER events FROM app');
publish($there, 'i');
effects_ok('app', 'a b e f g h i', 'the right to the server counts when one subscribes');
$pg->sql('DROP OWNED BY app; DROP ROLE app');
publish($there, 'j');
status_ok('app', "state = 'error' AND last_error LIKE '%owner does not exist%' AND hint LIKE '%inbox.unsubscribe%'", 'a role that was dropped');
effects_ok('missing', 'a b c d e f g h i j', 'other subscriptions have not noticed');
$pg->sql("SELECT inbox.unsubscribe('app')");

# --- those that take too long, those that are cancelled -------------------------------------------
$pg->sql(<<'SQL');
CREATE TABLE gate (value text PRIMARY KEY);
CREATE FUNCTION slow(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.note('slow', m);
	IF inbox.payload_text(m) = 'cancelled' AND m.attempt = 1 THEN
		PERFORM pg_sleep(1000);
	ELSIF inbox.payload_text(m) = 'caught' THEN
		BEGIN
			PERFORM pg_sleep(1000);
		EXCEPTION WHEN query_canceled THEN
			PERFORM public.note('caught', m);
		END;
	ELSIF inbox.payload_text(m) = 'too long' THEN
		PERFORM pg_sleep(1000);
	END IF;
END
$$;
SQL
$kafka->create_topic("$stem.slow", 1);
$pg->sql("SELECT inbox.subscribe('slow', 'events', '$stem.slow', 'slow(inbox.message)', start => 'earliest', backoff => '20 ms', max_attempts => 2)");
status_ok('slow', "state = 'running'", 'a subscription');
publish("$stem.slow", 'cancelled');
my $sleeps = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_outbox inbox slow' AND wait_event = 'PgSleep'};
$pg->wait_ok("SELECT count(*) = 1 FROM ($sleeps) s", 'its handler takes its time');
my $pid = $pg->sql($sleeps);
# with care it is done once more
$pg->wait_ok("SELECT EXISTS (SELECT FROM effect WHERE value = 'cancelled') FROM (SELECT count(pg_cancel_backend(pid)) FROM ($sleeps) s) c",
	'it is cancelled, and called again');
effects_ok('slow', 'cancelled', 'that was an attempt', ' AND attempt = 2');
is($pg->sql("SELECT pid FROM inbox.subscription_status WHERE subscription = 'slow'"), $pid, 'by the same worker');
# when there is nothing to cancel
$pg->sql("SELECT pg_cancel_backend($pid)") for 1 .. 3;
publish("$stem.slow", 'fine');
effects_ok('slow', 'fine', 'cancelled when idle it goes on', " AND value = 'fine'");
$pg->sql("SELECT inbox.alter_subscription('slow', timeout => '100 ms')");
publish("$stem.slow", 'too long', 'after');
effects_ok('slow', 'after', 'one that takes too long is given up', " AND value IN ('too long', 'after')");
is($pg->sql(q{SELECT string_agg(format('%s %s %s %s', convert_from(payload, 'UTF8'), sqlstate, error, attempts), ', ') FROM inbox.dead_letter}),
	'too long 57014 canceling statement due to statement timeout 2', 'with its reason');
publish("$stem.slow", 'caught', 'and after');
effects_ok('caught', 'caught', 'a handler may catch that');
effects_ok('slow', 'caught and after', 'and the timeout ends with its call', " AND value IN ('caught', 'and after')");
is($pg->sql('SELECT count(*) FROM inbox.waiting'), 0, 'nothing waits');
is($pg->sql(q{SELECT count(*) FROM (SELECT FROM effect GROUP BY subscription, topic, value HAVING count(*) > 1) twice}), 0, 'nothing twice');

# --- its server, and all of it -----------------------------------------------------------------------
$pg->sql('DROP SERVER events');
publish("$stem.slow", 'meanwhile');
status_ok('slow', q{state = 'error' AND last_error = 'server "events" does not exist' AND hint LIKE 'Create it%'}, 'a server that was dropped');
$pg->create_server('events', $kafka, topics => '!*');
effects_ok('slow', 'meanwhile', 'made anew', " AND value = 'meanwhile'");
status_ok('slow', "state = 'running' AND last_error IS NULL", 'all is well');
$pg->sql('ALTER SERVER events RENAME TO news');
publish("$stem.slow", 'renamed');
effects_ok('slow', 'renamed', 'a server that was renamed takes its subscriptions with it', " AND value = 'renamed'");
is($pg->sql('SELECT DISTINCT server FROM inbox.subscription'), 'news', 'by its new name');
status_ok('slow', "state = 'running' AND last_error IS NULL", 'all is well');
$pg->sql('DROP EXTENSION pg_outbox CASCADE');
$pg->wait_ok(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'pg_outbox inbox%'}, 'without the extension nothing runs');
$pg->sql('CREATE EXTENSION pg_outbox');
is($pg->sql('SELECT count(*) FROM inbox.subscription_status'), 0, 'and it comes back empty');
is($pg->sql(q{SELECT count(*) FROM (SELECT FROM effect GROUP BY subscription, topic, value HAVING count(*) > 1) twice}), 0, 'nothing twice');
$pg->stop;
done_testing();
