# Two databases in one consumer group share a topic's partitions: each message has its
# effect in one of them, whoever joins and leaves; after a crash some may have it in
# both, and none is lost.
use OutboxTest;

my $partitions = 6;
my $kafka = OutboxKafka->start(auto_create => 'false');
my $common = unique_topic('common');
my $pg = OutboxTest->server('main', conf => "outbox.poll_interval = 100ms\ndeadlock_timeout = 100ms\n");

$kafka->create_topic($_, $partitions) for $common;
$pg->create_server('events', $kafka, topics => $common);
$pg->sql('CREATE DATABASE other');
$pg->sql('CREATE EXTENSION pg_outbox', dbname => 'other');
$pg->create_server('events', $kafka, topics => '!*', dbname => 'other');
for my $dbname ('postgres', 'other')
{
	$pg->sql(<<'SQL', dbname => $dbname);
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
}
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

sub order_ok
{
	my ($name, $to, %options) = @_;
	is($pg->sql("SELECT count(*) FROM (SELECT value::bigint v, lag(value::bigint) OVER (PARTITION BY key ORDER BY n) w "
			  . "FROM effect WHERE topic = '$to') o WHERE w > v", %options), 0, "$name: in order by key");
	return;
}

# --- two databases in one group ----------------------------------------------------------------------
my $shared = "SELECT inbox.subscribe('work', 'events', '$common', 'note(inbox.message)', workers => 2, dedup_by => 'none', "
  . "batch_size => 20, backoff => '50ms', group_id => 'common', shared_group => true)";
my $everywhere = sub {
	my ($what) = @_;
	return join ',', map { $pg->sql("SELECT $what FROM effect WHERE topic = '$common'", dbname => $_) } 'postgres', 'other';
};

# all that is in either database, and in none twice
sub shared_ok
{
	my ($name, $n, $repeats) = @_;
	my %count;
	$pg->wait_until(sub {
		%count = ();
		$count{$_}++ for map { split /\n/, $pg->sql("SELECT DISTINCT value FROM effect WHERE topic = '$common'", dbname => $_) } 'postgres', 'other';
		return keys %count == $n;
	});
	is(scalar keys %count, $n, "$name: all is there");
	is(scalar(grep { $_ > 1 } values %count), 0, "$name: in one of them") unless $repeats;
	for my $dbname ('postgres', 'other')
	{
		is($pg->sql("SELECT count(*) - count(DISTINCT value) FROM effect WHERE topic = '$common'", dbname => $dbname), 0, "$name: once in $dbname");
		# what the relay sends twice, the other database may have handled at first
		order_ok("$name, $dbname", $common, dbname => $dbname) unless $repeats;
	}
	return;
}

$pg->sql("SELECT outbox.publish('$common', (-g)::text, 'k' || g) FROM generate_series(1, 100) g");
ok($pg->flush, 'published before');
$pg->sql($shared);
status_ok('the first database has all', "('running', 2, $partitions)");
my $load = load_topic($common);
progress_ok('the first database', $common);
$pg->sql($shared, dbname => 'other');
for my $dbname ('postgres', 'other')
{
	$pg->wait_ok("SELECT state = 'running' AND workers = 2 AND partitions BETWEEN 2 AND 4 FROM inbox.subscription_status",
		"$dbname has its part", dbname => $dbname);
}
$pg->wait_ok("SELECT count(*) > 200 FROM effect WHERE topic = '$common'", 'both work', dbname => 'other');
$pg->sql("SELECT inbox.pause('work')");
status_ok('the other one has all', "('running', 2, $partitions)", dbname => 'other');
my $before = $pg->sql("SELECT count(*) FROM effect WHERE topic = '$common'", dbname => 'other');
$pg->wait_ok("SELECT count(*) > $before + 200 FROM effect WHERE topic = '$common'", 'and goes on', dbname => 'other');
$pg->sql("SELECT inbox.resume('work')");
$pg->wait_ok("SELECT state = 'running' AND partitions BETWEEN 2 AND 4 FROM inbox.subscription_status", 'both again');
$before = $pg->sql("SELECT count(*) FROM effect WHERE topic = '$common'");
$pg->wait_ok("SELECT count(*) > $before + 200 FROM effect WHERE topic = '$common'", 'and the first goes on');
my $n = end_load($load, $common);
shared_ok('shared', $n);
is($everywhere->('count(*) FILTER (WHERE value::bigint < 0)'), '0,0', 'nothing of before the start');

# a crash may repeat in one database what the other has done, but nothing is lost; a relay
# that died sends messages twice, so with marks
$pg->sql("SELECT inbox.alter_subscription('work', dedup_by => 'message_id')", dbname => $_) for 'postgres', 'other';
$load = load_topic($common);
$pg->wait_ok("SELECT count(*) > $before + 400 FROM effect WHERE topic = '$common'", 'under load');
$pg->crash;
$load->stop;
$pg->start;
$n = $pg->sql("SELECT count(*) FROM sent WHERE topic = '$common'");
shared_ok('crashed', $n, 1);

# seek() counts more than what the group remembers
$pg->sql("SELECT inbox.unsubscribe('work')", dbname => 'other');
status_ok('the first database has all again', "('running', 2, $partitions)");
$pg->wait_ok('SELECT sum(lag) = 0 AND sum(waiting) = 0 FROM inbox.subscription_status', 'nothing is left');
$pg->sql("SELECT inbox.alter_subscription('work', dedup_by => 'none')");
$pg->sql("TRUNCATE effect");
$pg->sql("SELECT inbox.seek('work', 'earliest')");
$pg->wait_ok("SELECT count(DISTINCT value) = 100 + $n FROM effect", 'all of the topic comes again');
$pg->wait_ok('SELECT sum(lag) = 0 AND sum(waiting) = 0 FROM inbox.subscription_status', 'nothing is left');
my $again = $pg->sql('SELECT count(*) FROM effect');
$pg->sql("SELECT inbox.pause('work')");
$pg->wait_ok("SELECT state = 'paused' FROM inbox.subscription_status", 'paused');
$pg->sql("SELECT inbox.resume('work')");
status_ok('and goes on', "('running', 2, $partitions)");
$pg->sql("SELECT outbox.publish('$common', '1000000000', 'k1')");
$pg->wait_ok("SELECT count(*) = 1 FROM effect WHERE value = '1000000000'", 'with what is new');
is($pg->sql('SELECT count(*) FROM effect'), $again + 1, 'only');
$pg->stop;
$kafka->stop;
done_testing();
