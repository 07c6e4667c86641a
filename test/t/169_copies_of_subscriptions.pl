# Subscriptions in copies of their database: a template's, a restored dump's, a standby's.
# Places, what waits, dead letters and marks come along.  A copy is silent until it is told
# otherwise, takes nothing away from the original, and goes on from where it was; each
# message has its effect once in each of them.
use OutboxTest;
use PostgreSQL::Test::Utils ();

my $kafka = OutboxKafka->shared;
my $topic = unique_topic('copied');
my $pg = OutboxTest->server('original', init => { allows_streaming => 1 }, conf => <<END);
outbox.poll_interval = 100ms
wal_keep_size = 512MB
END
my ($host, $port) = ($pg->host, $pg->port);
my $n = 0;

$kafka->create_topic($topic, 4);
$pg->sql('CREATE DATABASE shop');
$pg->sql('CREATE EXTENSION pg_outbox', dbname => 'shop');
$pg->create_server('events', $kafka, topics => '!*', dbname => 'shop');
$pg->sql(<<'SQL', dbname => 'shop');
CREATE TABLE effect (n serial, message_id text, value text);
CREATE TABLE broken (value text);
CREATE FUNCTION note(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.effect (message_id, value) VALUES (m.message_id, inbox.payload_text(m));
	IF inbox.payload_text(m) = 'rejected' THEN
		PERFORM inbox.reject('not ours');
	ELSIF EXISTS (SELECT FROM public.broken b WHERE b.value = inbox.payload_text(m)) THEN
		RAISE 'broken';
	END IF;
END
$$;
SQL
$pg->sql("SELECT inbox.subscribe('s', 'events', '$topic', 'note(inbox.message)', start => 'earliest', backoff => '1 s', on_error => 'block')",
	dbname => 'shop');

# n messages, some of them twice
sub produce
{
	my ($count) = @_;
	$kafka->produce($topic, map { my $i = ++$n; ({ partition => $i % 4, key => 'k' . $i % 8, payload => "v$i",
		headers => [ [ 'message-id', "m$i" ] ] }) x ($i % 5 ? 1 : 2) } 1 .. $count);
	return;
}

# Each message once in that database.
sub once_ok
{
	my ($node, $dbname, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$node->wait_ok("SELECT count(DISTINCT value) = $n FROM effect WHERE value LIKE 'v%'", "$name: all of them", dbname => $dbname);
	return is($node->sql('SELECT count(*) - count(DISTINCT message_id) FROM effect', dbname => $dbname), 0, "$name: once");
}

sub state_ok
{
	my ($node, $dbname, $state, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $node->wait_ok('SELECT state FROM inbox.subscription_status', $name, expect => $state, dbname => $dbname);
}

# What a copy has of it all.
my $things = q{SELECT (SELECT string_agg(format('%s %s', partition, next), ',' ORDER BY partition) FROM inbox.position),
	(SELECT string_agg(message_id, ',' ORDER BY message_id) FROM inbox.waiting), (SELECT string_agg(message_id, ',') FROM inbox.dead_letter),
	(SELECT count(*) FROM inbox.seen), (SELECT count(*) FROM effect)};

$pg->sql("INSERT INTO broken VALUES ('waits')", dbname => 'shop');
$kafka->produce($topic, { payload => 'rejected', headers => [ [ 'message-id', 'r' ] ] },
	map { { key => 'w', payload => $_, headers => [ [ 'message-id', $_ ] ] } } 'waits', 'behind');
produce(500);
once_ok($pg, 'shop', 'the original');
$pg->wait_ok(q{SELECT count(*) = 2 FROM inbox.waiting}, 'two wait', dbname => 'shop');
$pg->sql("SELECT inbox.pause('s')", dbname => 'shop');
state_ok($pg, 'shop', 'paused', 'paused');
produce(500);
my $had = $pg->sql($things, dbname => 'shop');
like($had, qr/\|behind,waits\|r\|/, 'with all that a copy can have');

# --- made beside the original --------------------------------------------------------------
$pg->sql('CREATE DATABASE copy TEMPLATE shop');
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';
$pg->command_ok([ 'pg_dump', '-h', $host, '-p', $port, '-f', $dump, 'shop' ], 'dumped');
$pg->sql('CREATE DATABASE restored TEMPLATE template0');
$pg->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-h', $host, '-p', $port, '-o', '/dev/null', '-f', $dump, 'restored' ], 'restored');
for my $dbname ('copy', 'restored')
{
	is($pg->sql($things, dbname => $dbname), $had, "$dbname: places, what waits, dead letters and marks came along");
	$pg->sql("SELECT inbox.resume('s')", dbname => $dbname);
	$pg->wait_ok(q{SELECT state = 'error' AND last_error LIKE '%created in another database%' AND hint LIKE '%outbox.adopt(''events'')%'
		FROM inbox.subscription_status}, "$dbname: in error, with reason and hint", dbname => $dbname);
}
$pg->sql("SELECT inbox.resume('s')", dbname => 'shop');
once_ok($pg, 'shop', 'the original goes on');
is($pg->sql($things, dbname => $_), $had, "$_: silent") for 'copy', 'restored';

# adopted, each has what it has not had, and the original all that comes
for my $dbname ('copy', 'restored')
{
	$pg->sql("SELECT outbox.adopt('events')", dbname => $dbname);
	once_ok($pg, $dbname, "$dbname: adopted, it goes on");
}
for my $dbname ('shop', 'copy', 'restored')
{
	$pg->wait_ok(q{SELECT state = 'running' AND partitions = 4 FROM inbox.subscription_status}, "$dbname: has all partitions", dbname => $dbname);
}
produce(500);
once_ok($pg, $_, "$_: all three together") for 'shop', 'copy', 'restored';
$pg->sql('DELETE FROM broken', dbname => $_) for 'shop', 'copy', 'restored';
for my $dbname ('shop', 'copy', 'restored')
{
	$pg->wait_ok(q{SELECT string_agg(value, ' ' ORDER BY n) = 'waits behind' FROM effect WHERE value NOT LIKE 'v%'},
		"$dbname: what waited is handled, in order", dbname => $dbname);
	is($pg->sql("SELECT inbox.discard('s')", dbname => $dbname), 1, "$dbname: its own dead letter");
}
$pg->sql("DROP DATABASE $_") for 'copy', 'restored';

# --- a standby --------------------------------------------------------------------------------
$pg->backup('base');
my $standby = OutboxTest->new('standby');
$standby->init_from_backup($pg, 'base', has_streaming => 1);
$standby->start;
produce(200);
once_ok($pg, 'shop', 'the primary');
$pg->wait_ok("SELECT sum(next) = $n + $n / 5 + 3 FROM inbox.position", 'and nothing more to come', dbname => 'shop');
$standby->wait_ok($things, 'a standby has what the primary has', expect => $pg->sql($things, dbname => 'shop'), dbname => 'shop');
is($standby->sql('SELECT state FROM inbox.subscription_status', dbname => 'shop'), 'no_worker', 'nothing runs on a standby');
is($standby->sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg\_outbox%'}), 0, 'really');
# the standby stops before the last of it, and takes the primary's place: what it has not
# had is consumed again
$standby->append_conf('postgresql.conf', "primary_conninfo = ''");
$standby->reload;
$standby->wait_ok('SELECT count(*) = 0 FROM pg_stat_wal_receiver', 'streaming ends');
my $before = $standby->sql($things, dbname => 'shop');
produce(300);
once_ok($pg, 'shop', 'the primary has more');
$pg->crash;
is($standby->sql($things, dbname => 'shop'), $before, 'the standby does not know of it');
$standby->promote;
state_ok($standby, 'shop', 'running', 'promoted, it runs');
once_ok($standby, 'shop', 'the new primary');
produce(300);
once_ok($standby, 'shop', 'and what comes');
$standby->stop;
done_testing();
