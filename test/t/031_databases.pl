# Several databases at once, and statements that need one of them alone: DROP, RENAME,
# TEMPLATE, SET TABLESPACE, ALLOW_CONNECTIONS.  None needs a manual step, and workers are
# back afterwards.
# every major
use OutboxTest;
use File::Temp ();

my $kafka = OutboxKafka->shared;
my $pg = OutboxTest->server('main', conf => 'log_min_messages = debug1');
my %topic = map { $_ => unique_topic($_) } qw(one two three);
my $workers = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg\_outbox %' AND datname = };

# Is that database's keeper and relay there, and does what it publishes arrive?
sub delivers
{
	my ($dbname, $name, $topic) = @_;
	my $before = () = $kafka->consume($topic);

	$pg->sql("SELECT outbox.publish('$topic', '$name')", dbname => $dbname);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok($pg->flush(dbname => $dbname) && (() = $kafka->consume($topic)) == $before + 1, $name);
}

$kafka->create_topic($_, 2) for values %topic;
for my $db (qw(one two three))
{
	$pg->sql("CREATE DATABASE $db");
	$pg->sql('CREATE EXTENSION pg_outbox', dbname => $db);
	$pg->create_server('events', $kafka, topics => $topic{$db}, dbname => $db);
}
delivers($_, "database $_ delivers", $topic{$_}) for qw(one two three);
is($pg->sql(q{SELECT string_agg(DISTINCT backend_type, ',' ORDER BY backend_type) FROM pg_stat_activity
	WHERE backend_type LIKE 'pg\_outbox %'}), 'pg_outbox keeper,pg_outbox launcher,pg_outbox relay events',
	'pg_stat_activity names the workers');

# --- the server starts anew: every database is found ---------------------------------
$pg->restart;
$pg->wait_ok("$workers '$_'", "workers are back in database $_", expect => '2') for qw(one two three);
$pg->wait_ok("$workers 'postgres'", 'in one without servers a keeper', expect => '1');
is($pg->sql("$workers 'template1'"), '0', 'none where there is no extension');

# --- renamed, under load -----------------------------------------------------------------
for my $round (1 .. 2)
{
	$pg->sql('ALTER DATABASE one RENAME TO uno');
	$pg->wait_ok("$workers 'uno'", "round $round: renamed, workers are back", expect => '2');
	$pg->sql('ALTER DATABASE uno RENAME TO one');
	delivers('one', "round $round: renamed back, delivers", $topic{one});
}
$pg->sql(<<'END');
BEGIN;
ALTER DATABASE one RENAME TO x;
ALTER DATABASE two RENAME TO one;
ALTER DATABASE x RENAME TO two;
ROLLBACK;
END
delivers('one', 'names swapped and rolled back, delivers', $topic{one});

# --- moved ------------------------------------------------------------------------------------
my $dir = File::Temp->newdir(CLEANUP => 1);
$pg->sql("CREATE TABLESPACE other LOCATION '$dir'");
$pg->sql("SELECT outbox.publish('$topic{one}', 'before')", dbname => 'one');
$pg->sql('ALTER DATABASE one SET TABLESPACE other');
delivers('one', 'moved to another tablespace, delivers', $topic{one});
$pg->sql('ALTER DATABASE one SET TABLESPACE pg_default');
delivers('one', 'moved back, delivers', $topic{one});

# --- no connections allowed --------------------------------------------------------------------
$pg->sql('ALTER DATABASE one ALLOW_CONNECTIONS false');
$pg->wait_ok("$workers 'one'", 'no connections allowed: workers leave', expect => '0');
is($pg->sql("$workers 'two'"), '2', 'others stay');
$pg->sql('CREATE DATABASE of_closed TEMPLATE one');
$pg->wait_ok("$workers 'of_closed'", 'a copy of it has workers', expect => '2');
$pg->restart;
$pg->wait_ok("$workers 'two'", 'after a restart workers are back elsewhere', expect => '2');
is($pg->sql("$workers 'one'"), '0', 'but not there');
$pg->sql('ALTER DATABASE one ALLOW_CONNECTIONS true');
delivers('one', 'allowed again, delivers', $topic{one});

# --- used as a template ---------------------------------------------------------------------------
for my $strategy (qw(wal_log file_copy))
{
	$pg->sql("CREATE DATABASE copy_$strategy TEMPLATE one STRATEGY $strategy");
	delivers('one', "copied by $strategy, the original delivers", $topic{one});
	$pg->wait_ok("$workers 'copy_$strategy'", "and the copy has workers", expect => '2');
	ok($pg->wait_state('events', 'error', dbname => "copy_$strategy"), "whose server is in error");
}
$pg->sql('CREATE EXTENSION pg_outbox', dbname => 'template1');
$pg->sql("SELECT outbox.publish('t', 'x')", dbname => 'template1');
$pg->wait_ok("$workers 'template1'", 'a keeper in template1', expect => '1');
$pg->sql('CREATE DATABASE by_default');
$pg->wait_ok("$workers 'by_default'", 'CREATE DATABASE without a template copies it', expect => '1');
isnt($pg->sql('SELECT log_uuid FROM outbox.log_identity', dbname => 'by_default'),
	$pg->sql('SELECT log_uuid FROM outbox.log_identity', dbname => 'template1'),
	'the copy has an identity of its own');
$pg->create_server('events', $kafka, topics => $topic{two}, dbname => 'by_default');
delivers('by_default', 'a server in it delivers', $topic{two});

# A copy whose first CREATE SERVER comes before its keeper.
$pg->append_conf('postgresql.conf', 'outbox.enabled = off');
$pg->reload;
$pg->wait_ok(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg\_outbox %'},
	'disabled: only the launcher stays', expect => '1');
$pg->sql('CREATE DATABASE quick');
$pg->create_server('events', $kafka, topics => $topic{two}, dbname => 'quick');
$pg->append_conf('postgresql.conf', 'outbox.enabled = on');
$pg->reload;
delivers('quick', 'a server made in a fresh copy is at home there', $topic{two});

# --- refused, interrupted --------------------------------------------------------------------------
my $guest = $pg->session(dbname => 'one');
$pg->sql_fails('DROP DATABASE one', qr/being accessed by other users.*1 other session/s,
	'a drop that is refused names no worker');
delivers('one', 'and they are back', $topic{one});
my $owner = $pg->session;
$owner->query_until(qr/dropping/, "\\echo dropping\nDROP DATABASE one;\n");
$pg->wait_ok(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query = 'DROP DATABASE one;' AND state = 'active'},
	'a drop that waits for a guest');
$pg->sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'DROP DATABASE one;'});
$pg->wait_ok("$workers 'one'", 'its session is terminated: workers are back', expect => '2');
eval { $owner->quit };
$pg->sql(q{CREATE ROLE somebody LOGIN; CREATE ROLE creator LOGIN CREATEDB});
my $pid = $pg->relay_pid('events', dbname => 'one');
for my $statement ('DROP DATABASE one', 'DROP DATABASE one WITH (FORCE)', 'ALTER DATABASE one RENAME TO y',
	'CREATE DATABASE y TEMPLATE one', 'ALTER DATABASE one SET TABLESPACE other')
{
	for my $role (qw(somebody creator))
	{
		my $rc = $pg->psql('postgres', "SET ROLE $role;\n$statement", on_error_stop => 1);
		ok($rc != 0, "$role may not: $statement");
	}
}
is($pg->relay_pid('events', dbname => 'one'), $pid, 'and no worker was held off by trying');
$guest->quit;

# --- dropped, under load ------------------------------------------------------------------------------
$pg->sql("SELECT outbox.publish('$topic{three}', repeat('x', 1000)) FROM generate_series(1, 20000)", dbname => 'three');
$pg->sql('DROP DATABASE three');
pass('dropped with a backlog');
my $load = $pg->load(clients => 4, seconds => 60, dbname => 'two', script => "SELECT outbox.publish('$topic{two}', 'x');");
$pg->wait_ok("SELECT delivered > 100 FROM outbox.relay_status", 'a load runs', dbname => 'two');
$pg->sql('DROP DATABASE two WITH (FORCE)');
pass('dropped by force under load');
$load->stop;
$pg->sql(q{CREATE DATABASE theirs OWNER creator TEMPLATE template0});
$pg->sql('CREATE EXTENSION pg_outbox', dbname => 'theirs');
$pg->create_server('events', $kafka, topics => $topic{two}, dbname => 'theirs');
$pg->wait_ok("$workers 'theirs'", 'workers in a database of an ordinary user', expect => '2');
$pg->sql("SET ROLE creator;\nDROP DATABASE theirs WITH (FORCE)");
pass('who may drop it by force, though workers are superusers');
$pg->sql('DROP DATABASE copy_wal_log');
$pg->wait_ok(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg\_outbox relay%'},
	'relays of the dropped are gone', expect => '5');

# Dropped and made again, again and again: no slot is used up.
for my $round (1 .. 3)
{
	$pg->sql('CREATE DATABASE again TEMPLATE template0');
	$pg->sql('CREATE EXTENSION pg_outbox', dbname => 'again');
	$pg->create_server("events$_", $kafka, topics => $topic{three}, dbname => 'again') for 1 .. 6;
	$pg->wait_ok("$workers 'again'", "round $round: workers", expect => '7');
	$pg->sql('DROP DATABASE again');
}
delivers('one', 'the first one still delivers', $topic{one});

# --- a worker that is on its way, but not connected yet ------------------------------------------------
# Without its announcement (outbox.fault = 'worker-announces=off') the drop would not wait for it.
$pg->append_conf('postgresql.conf', "outbox.fault = 'worker-before-connect=wait'");
$pg->reload;
$pg->sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity
	WHERE backend_type = 'pg_outbox keeper' AND datname = 'one'});
my $starting = sub { scalar grep { /pg_outbox keeper/ } `ps -o args= --ppid $pg->{_pid}` };
my $connected = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_outbox keeper'};
ok($pg->wait_until(sub { $starting->() > $pg->sql($connected) }), 'a keeper is on its way');
my $dropper = $pg->session;
$dropper->query_until(qr/dropping/, "\\echo dropping\nDROP DATABASE one;\n");
$pg->wait_ok(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query = 'DROP DATABASE one;'
	AND state = 'active' AND wait_event_type = 'Extension'}, 'DROP DATABASE waits for it');
$pg->append_conf('postgresql.conf', "outbox.fault = ''");
$pg->reload;
$dropper->query('SELECT 1');
is($pg->sql(q{SELECT count(*) FROM pg_database WHERE datname = 'one'}), '0', 'and is done then');
$dropper->quit;

unlike($pg->log_text, qr/FATAL:  database "?\w+"? does not exist/, 'no worker came too late');
unlike($pg->log_text, qr/PANIC|TRAP|terminated by signal/, 'no crash');
$pg->stop;
done_testing();
