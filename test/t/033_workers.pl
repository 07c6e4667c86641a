# Workers' lives: created and dropped with their servers, at commit and at once; ended by
# a signal, a crash, a setting, a lack of slots, and back by themselves.
#
# The poll interval is an hour: whatever happens soon, happens because of a wake-up.
use OutboxTest;

my $kafka = OutboxKafka->shared;
my $topic = unique_topic('workers');
my $pg = OutboxTest->server('main', conf => <<CONF);
outbox.poll_interval = 1h
max_logical_replication_workers = 0
CONF
my $relays = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg\_outbox relay%'};

$kafka->create_topic($topic, 2);
$pg->sql('SET client_min_messages = error; CREATE ROLE owner LOGIN; GRANT USAGE ON FOREIGN DATA WRAPPER outbox_kafka TO owner');

sub quoted { return sprintf q{("bootstrap.servers" '%s', topics '%s')}, $kafka->bootstrap, $topic }
my $create = sub { "CREATE SERVER $_[0] FOREIGN DATA WRAPPER outbox_kafka OPTIONS " . quoted() };

# --- with their servers --------------------------------------------------------------------
my $session = $pg->session;
$session->query_safe('SET client_min_messages = error; BEGIN; ' . $create->('one'));
is($pg->sql($relays), '0', 'CREATE SERVER starts nothing before its commit');
$session->query_safe('COMMIT');
ok($pg->wait_state('one', 'running'), 'and a relay at its commit');
$session->query_safe('BEGIN; ' . $create->('two') . '; ROLLBACK');
$session->query_safe('BEGIN; ' . $create->('two') . q{; PREPARE TRANSACTION 'p'});
$pg->sql("SELECT outbox.publish('$topic', 'x')");
ok($pg->flush, 'a prepared CREATE SERVER counts for nothing');
is($pg->sql($relays), '1', 'as one that rolled back');
$pg->sql(q{COMMIT PREPARED 'p'});
ok($pg->wait_state('two', 'running'), 'COMMIT PREPARED starts its relay');
$pg->sql("SELECT outbox.pause('two')");
ok($pg->wait_state('two', 'paused'), 'ALTER SERVER is heard at its commit');
$pg->sql("SELECT outbox.publish('$topic', 'x')");
my ($out, $err);
$pg->psql('postgres', 'DROP SERVER two', stderr => \$err);
like($err, qr/WARNING:  server "two" is dropped with [12] undelivered messages?/, 'DROP SERVER warns of its backlog');
$pg->wait_ok($relays, 'and stops its relay', expect => '1');
$pg->wait_ok('SELECT count(DISTINCT server) FROM outbox.position_log', 'its positions go', expect => '1');

$pg->sql('SET ROLE owner; ' . $create->('mine') . '; CREATE USER MAPPING FOR PUBLIC SERVER mine');
ok($pg->wait_state('mine', 'running'), 'a server of an ordinary user');
$pg->sql('SET client_min_messages = error; DROP SERVER mine CASCADE');
$pg->wait_ok($relays, 'DROP SERVER CASCADE stops its relay', expect => '1');
$pg->sql('SET ROLE owner; ' . $create->('mine'));
ok($pg->wait_state('mine', 'running'), 'another one');
$pg->sql('DROP OWNED BY owner');
$pg->wait_ok($relays, 'DROP OWNED stops its relay', expect => '1');
ok($pg->flush, 'the first server never noticed');

# --- ended by a signal ------------------------------------------------------------------------
for my $worker ('pg_outbox launcher', 'pg_outbox keeper', 'pg_outbox relay one')
{
	my $pid_of = "SELECT pid FROM pg_stat_activity WHERE backend_type = '$worker'";
	my $pid = $pg->sql($pid_of);
	my $others = $pg->sql("SELECT string_agg(pid::text, ',' ORDER BY pid) FROM pg_stat_activity
		WHERE backend_type LIKE 'pg\\_outbox %' AND pid <> $pid");

	$pg->kill_process($pid, 'TERM');
	$pg->wait_ok("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = '$worker' AND pid <> $pid",
		"$worker comes back after SIGTERM");
	is($pg->sql("SELECT count(*) FROM pg_stat_activity WHERE pid IN ($others)"), '2', 'and the others stayed');
	$pg->sql("SELECT outbox.publish('$topic', 'x')");
	ok($pg->flush, 'what is published is delivered');
}
for my $worker ('pg_outbox keeper', 'pg_outbox relay one')
{
	$pg->kill_process($pg->sql("SELECT pid FROM pg_stat_activity WHERE backend_type = '$worker'"));
	$pg->wait_for('SELECT true');
	$pg->wait_ok("SELECT count(*) = 3 FROM pg_stat_activity WHERE backend_type LIKE 'pg\\_outbox %'",
		"after SIGKILL to $worker all come back");
	$pg->sql("SELECT outbox.publish('$topic', 'x')");
	ok($pg->flush, 'what is published is delivered');
}
$session = $pg->session;

# --- disabled ------------------------------------------------------------------------------------
$pg->append_conf('postgresql.conf', 'outbox.enabled = off');
$pg->reload;
$pg->wait_ok(q{SELECT string_agg(backend_type, ',') FROM pg_stat_activity WHERE backend_type LIKE 'pg\_outbox %'},
	'outbox.enabled = off leaves only the launcher', expect => 'pg_outbox launcher');
is($pg->sql('SELECT state FROM outbox.relay_status'), 'disabled', 'relay_status says so');
ok($pg->sql("SELECT outbox.publish('$topic', 'x')"), 'publishing goes on');
$pg->append_conf('postgresql.conf', 'outbox.enabled = on');
$pg->reload;
ok($pg->flush, 'on again: delivered');

# --- no slot for a worker ---------------------------------------------------------------------------
# Of three slots one is the launcher's and one the keeper's.
$pg->append_conf('postgresql.conf', 'max_worker_processes = 3');
$pg->restart;
$session = $pg->session;
ok($pg->wait_state('one', 'running'), 'one slot is enough for one server');
$pg->sql($create->('two'));
$pg->sql($create->('three'));
$pg->sql($create->('four'));
ok($pg->wait_state('two', 'no_worker'), 'the second has none');
like($pg->sql(q{SELECT last_error || ' / ' || hint FROM outbox.relay_status WHERE server = 'two'}),
	qr/no free slot.*max_worker_processes/, 'with a hint');
ok($pg->wait_state('four', 'no_worker'), 'nor has one for which there is not even a place to show it');
ok($pg->sql("SELECT outbox.publish('$topic', 'x')"), 'publishers never notice');
$pg->wait_ok(q{SELECT delivered > 0 FROM outbox.relay_status WHERE server = 'one'}, 'the first delivers');
$pg->sql("DROP SERVER one");
$pg->wait_ok(q{SELECT count(*) = 1 FROM outbox.relay_status WHERE state = 'running'}, 'another gets the slot');
$pg->sql('SET client_min_messages = error; DROP SERVER three; DROP SERVER four');
$pg->wait_ok(q{SELECT state FROM outbox.relay_status WHERE server = 'two'}, 'the last gets it', expect => 'running');
ok($pg->flush, 'and delivers what waited');

$pg->append_conf('postgresql.conf', 'max_worker_processes = 1');
$pg->restart;
ok($pg->wait_state('two', 'no_worker'), 'no slot even for the keeper is shown too');
ok($pg->sql("SELECT outbox.publish('$topic', 'x')"), 'publishers never notice');
$pg->append_conf('postgresql.conf', "max_worker_processes = 8\noutbox.poll_interval = 1s");
$pg->restart;
ok($pg->flush, 'with more slots it is delivered');

# --- idle ---------------------------------------------------------------------------------------------
# Counted by the kernel: each wait of the main thread is a voluntary context switch.
sub waits
{
	my ($pid) = @_;
	my ($n) = PostgreSQL::Test::Utils::slurp_file("/proc/$pid/task/$pid/status") =~ /^voluntary_ctxt_switches:\s+(\d+)/m;
	return $n;
}
my %pid = map { split /\|/ } split /\n/, $pg->sql(q{SELECT backend_type, pid FROM pg_stat_activity WHERE backend_type LIKE 'pg\_outbox %'});
# the figures are stored, and the segments rotated, a moment after the last delivery
my ($since, %before);
my $idle = $pg->wait_until(sub {
	if (!defined $since) { $since = time; %before = map { $_ => waits($pid{$_}) } keys %pid; }
	my $seconds = time - $since;
	return 0 if $seconds < 5;
	my @busy = grep { waits($pid{$_}) - $before{$_} > 2 * $seconds + 2 } keys %pid;
	undef $since;
	return !@busy;
}, timeout => 40);
ok($idle, 'idle workers wake about once a second');
unlike($pg->log_text, qr/PANIC|TRAP|terminated by signal 11/, 'no crash');
$pg->stop;
done_testing();
