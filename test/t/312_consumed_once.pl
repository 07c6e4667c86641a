# Each message has its effect once, whatever dies: the worker, the server, the broker;
# also when messages are sent twice or read twice.  A handler publishes in its
# transaction, and what it publishes is consumed by another database.
use OutboxTest;

my $kafka = OutboxKafka->start(auto_create => 'false');
my ($topic, $next) = (unique_topic('first'), unique_topic('second'));
my $pg = OutboxTest->server('main', fsync => 1, conf => "outbox.poll_interval = 100ms\n");

$kafka->create_topic($_, 4) for $topic, $next;
$pg->create_server('events', $kafka, topics => "$topic, $next");
$pg->sql('CREATE DATABASE other');
$pg->sql(<<'SQL', dbname => 'other');
CREATE EXTENSION pg_outbox;
CREATE TABLE effect (n serial, message_id text, key text, value text, headers jsonb);
CREATE FUNCTION note(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.effect (message_id, key, value, headers)
		VALUES (m.message_id, m.key, inbox.payload_json(m)->>'v', m.headers);
END
$$;
SQL
$pg->create_server('events', $kafka, topics => '!*', dbname => 'other');
$pg->sql(<<SQL);
CREATE TABLE effect (n serial, message_id text, key text, value text);
CREATE FUNCTION pass_on(m inbox.message) RETURNS void LANGUAGE plpgsql AS \$\$
BEGIN
	INSERT INTO public.effect (message_id, key, value) VALUES (m.message_id, m.key, inbox.payload_text(m));
	PERFORM outbox.publish('$next', jsonb_build_object('v', inbox.payload_text(m)), m.key);
END
\$\$;
SELECT inbox.subscribe('chain', 'events', '$topic', 'pass_on(inbox.message)', start => 'earliest', batch_size => 50);
SQL
$pg->sql("SELECT inbox.subscribe('chain', 'events', '$next', 'note(inbox.message)', start => 'earliest')", dbname => 'other');

my $published = 0;

sub publish
{
	my ($n) = @_;
	$pg->sql("SELECT outbox.publish('$topic', (g + $published)::text, 'k' || g % 10) FROM generate_series(1, $n) g");
	$published += $n;
	return;
}

sub once_ok
{
	my ($name) = @_;
	for my $dbname ('postgres', 'other')
	{
		$pg->wait_ok("SELECT count(DISTINCT value) = $published FROM effect", "$name: all is in $dbname", dbname => $dbname);
		is($pg->sql('SELECT count(*) FROM effect', dbname => $dbname), $published, "$name: once");
		is($pg->sql('SELECT count(*) FROM (SELECT value::int v, lag(value::int) OVER (PARTITION BY key ORDER BY n) w FROM effect) o WHERE w > v',
			dbname => $dbname), 0, "$name: in order by key");
	}
	return;
}

sub worker { return $pg->sql("SELECT pid FROM inbox.subscription_status", dbname => $_[0] || 'postgres') }

publish(500);
once_ok('quiet');

# --- the trace goes on ------------------------------------------------------------------
my $trace = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
$pg->sql("BEGIN; SET LOCAL outbox.traceparent = '$trace'; SELECT outbox.publish('$topic', '501', 'traced'); COMMIT");
$published++;
$pg->wait_ok("SELECT headers->>'traceparent' = '$trace' FROM effect WHERE key = 'traced'", 'the trace goes through two databases', dbname => 'other');
publish(10);
once_ok('traced');
is($pg->sql("SELECT count(*) FROM effect WHERE headers ? 'traceparent'", dbname => 'other'), 1, 'and ends with its message');

# --- workers that die -------------------------------------------------------------------
for my $signal (qw(TERM KILL))
{
	publish(1000);
	for my $dbname ('postgres', 'other')
	{
		my $pid = worker($dbname);
		$pg->kill_process($pid, $signal);
		$pg->wait_ok("SELECT pid <> $pid FROM inbox.subscription_status", "another worker in $dbname", dbname => $dbname);
	}
	once_ok("workers that get SIG$signal");
}

# --- at each moment of a transaction --------------------------------------------------------
for my $moment ('inbox-before-commit', 'inbox-after-commit')
{
	for my $how ('crash', 'error', 'fatal')
	{
		# nothing of ours needs the server from when it may come to that moment, which a
		# worker that stores its place does as well; and until then effects have to wait
		my $pid = worker();
		my $gate = $pg->session;
		$gate->query('BEGIN; LOCK TABLE effect IN SHARE MODE');
		publish(300);
		ok($pg->set_fault("$moment=$how"), "$moment: $how is set");
		eval { $gate->quit };
		if ($how eq 'error')
		{
			$pg->wait_ok("SELECT last_error LIKE '%$moment%' FROM inbox.subscription_status", "$moment: error");
		}
		else
		{
			$pg->wait_ok("SELECT pid <> $pid FROM inbox.subscription_status", "$moment: $how");
		}
		# where a crash is asked for, the server crashes again and again until then
		ok($pg->set_fault(''), "$moment: $how: no more of that");
		once_ok("$moment: $how");
	}
}

# --- the server, the broker -----------------------------------------------------------------
publish(2000);
$pg->crash;
$pg->start;
once_ok('a server that crashed');
publish(2000);
$pg->stop('immediate');
$pg->start;
publish(100);
once_ok('a server that was stopped at once');
publish(2000);
$kafka->kill_broker;
$kafka->start_broker;
once_ok('a broker that crashed');

# --- sent twice, read twice ---------------------------------------------------------------
$pg->sql("SELECT outbox.publish('$topic', '0', 'twice', message_id => 'the same') FROM generate_series(1, 3)");
$published++;
once_ok('three messages of one id');
$pg->sql("SELECT inbox.seek('chain', 'earliest')");
$pg->wait_ok("SELECT duplicates >= $published FROM inbox.subscription_status", 'read once more');
$pg->sql("SELECT inbox.seek('chain', clock_timestamp()::text)");
publish(100);
once_ok('read again from the beginning, and from now');

# --- paused ----------------------------------------------------------------------------------
$pg->sql("SELECT inbox.pause('chain')");
$pg->wait_ok("SELECT state = 'paused' FROM inbox.subscription_status", 'paused');
publish(100);
ok($pg->flush, 'published');
is($pg->sql('SELECT count(*) FROM effect'), $published - 100, 'and not consumed');
$pg->sql("SELECT inbox.resume('chain')");
once_ok('resumed');

# --- what a broker lost -------------------------------------------------------------------------
$pg->sql("SELECT inbox.pause('chain')");
$pg->wait_ok("SELECT state = 'paused' FROM inbox.subscription_status", 'paused');
$kafka->delete_topic($topic);
$kafka->create_topic($topic, 4);
$pg->sql("SELECT outbox.publish('$topic', '5', 'k' || g % 10) FROM generate_series(1, 40) g");
ok($pg->flush, 'published to a topic that was made anew');
$pg->sql("SELECT inbox.resume('chain')");
$pg->wait_ok(q{SELECT state = 'error' AND last_error LIKE 'the broker has no message at offset % of partition % of topic %' AND hint LIKE '%inbox.seek()%'
	FROM inbox.subscription_status}, 'a gap is an error');
is($pg->sql("SELECT count(*) FROM effect WHERE value = '5'"), 1, 'and nothing is passed over');
$pg->sql("SELECT inbox.alter_subscription('chain', on_gap => 'skip')");
$pg->wait_ok("SELECT count(*) = 41 FROM effect WHERE value = '5'", 'unless told so');
$pg->wait_ok("SELECT state = 'running' FROM inbox.subscription_status", 'it runs');

# --- handlers that are gone -----------------------------------------------------------------------
$pg->sql('ALTER FUNCTION pass_on(inbox.message) RENAME TO elsewhere');
$pg->sql("SELECT outbox.publish('$topic', '6', 'k')");
$pg->wait_ok(q{SELECT state = 'error' AND last_error LIKE 'handler % does not exist' AND hint <> '' FROM inbox.subscription_status}, 'a handler that is gone');
$pg->sql('ALTER FUNCTION elsewhere(inbox.message) RENAME TO pass_on');
$pg->wait_ok("SELECT count(*) = 2 FROM effect WHERE value = '6'", 'it is back');
$pg->wait_ok("SELECT state = 'running' AND last_error IS NULL FROM inbox.subscription_status", 'it runs again');

$pg->sql("SELECT inbox.unsubscribe('chain')");
$pg->wait_ok(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'pg_outbox inbox chain' AND datname = 'postgres'}, 'unsubscribed');
is($pg->sql('SELECT count(*) FROM inbox.position'), 0, 'and forgotten');
$pg->stop;
done_testing();
