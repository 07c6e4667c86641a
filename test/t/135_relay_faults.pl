# The relay dies, or fails, between each two steps of its work: nothing is lost, keys
# stay in order, and a failure that lasts is not retried without a pause.
use OutboxTest;

my $kafka = OutboxKafka->shared;
my $topic = unique_topic('fault');
my $pg = OutboxTest->server('main');

$kafka->create_topic($topic, 2, 'max.message.bytes=20000');
$pg->judge_setup;
$pg->create_server('events', $kafka, topics => $topic);
ok($pg->flush, 'runs');

sub set_fault
{
	my ($fault) = @_;
	$pg->append_conf('postgresql.conf', "outbox.fault = '$fault'");
	$pg->reload;
	return;
}

sub count_log { my ($pattern) = @_; my $n = () = $pg->log_text =~ /$pattern/g; return $n }

# A dead letter among the others, so that all steps are taken.
sub publish
{
	return $pg->wait_for(<<END, expect => qr/1/);
BEGIN;
SELECT judge.publish_many('$topic', 500, 20);
SELECT judge.publish('$topic', repeat('x', 30000), 'k3');
SELECT judge.publish_many('$topic', 500, 20);
SELECT 1;
COMMIT;
END
}

for my $point (qw(relay-after-send relay-before-position relay-after-position dead-letter-committed))
{
	my $deaths = count_log(qr/was terminated by signal 9/);
	publish();
	set_fault("$point=crash");
	publish();
	ok($pg->wait_until(sub { count_log(qr/was terminated by signal 9/) > $deaths }), "crash at $point");
	set_fault('');
	$pg->wait_ok(q{SELECT outbox.flush('1s')}, 'delivered after it');
}
my $dead = '(SELECT array_agg(id) FROM outbox.dead_letter)';
my %verdict = $pg->judge_ok($kafka, [$topic], 'nothing lost, in order', duplicates => 1, dead => $dead);
is($pg->sql('SELECT count(*) FROM outbox.dead_letter'),
	$pg->sql(q{SELECT count(*) FROM judge.ledger WHERE payload_md5 = md5(repeat('x', 30000))}),
	'one dead letter for each bad message');
is($pg->sql('SELECT count(*) FROM outbox.dead_letter WHERE id NOT IN (SELECT id FROM judge.ledger)'), 0,
	'and none for others');

# A failure that lasts: shown, retried once a second, whatever publishers do.
set_fault('relay-before-position=error');
my $load = $pg->load(clients => 2, seconds => 4, script => <<END);
\\set k random(1, 20)
SELECT judge.publish_in_order('$topic', 'k' || :k);
END
ok($pg->wait_state('events', 'error'), 'state is error');
ok($load->finish, 'publishers never noticed');
my $failures = count_log(qr/fault point "relay-before-position"/);
cmp_ok($failures, '<=', 8, "retried with pauses: $failures times");
like($pg->sql('SELECT last_error FROM outbox.relay_status'), qr/fault point/, 'last_error tells');
set_fault('');
ok($pg->flush, 'delivered');
ok($pg->wait_state('events', 'running'), 'state is running');
my %after = $pg->judge_ok($kafka, [$topic], 'nothing lost, in order', duplicates => 1, dead => $dead);
is($after{duplicated}, $verdict{duplicated}, 'and nothing sent twice by that');

# Out of memory between two messages that were read: a new relay reads them again.
set_fault('relay-between-entries=error');
$pg->sql("SELECT judge.publish_many('$topic', 500, 20)");
ok($pg->wait_until(sub { $pg->log_text =~ /FATAL:  server "events" starts again after an error: fault point/ }), 'an error between two messages');
set_fault('');
ok($pg->flush, 'delivered');
$pg->judge_ok($kafka, [$topic], 'nothing lost, in order', duplicates => 1, dead => $dead);

# A message is refused while its server is being renamed: the dead letter has the new
# name, or nobody could redrive it.
sub letter_while_renamed
{
	my ($fault) = @_;
	my $ddl = $pg->session;

	set_fault($fault);
	$pg->wait_for("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_outbox relay events'", expect => 1);
	$ddl->query_safe('BEGIN; ALTER SERVER events RENAME TO news');
	$pg->sql("SELECT judge.publish('$topic', repeat('x', 30000), 'k3')");
	my $id = $pg->sql('SELECT max(id) FROM judge.ledger');
	$pg->wait_for("SELECT count(*) FROM outbox.dead_letter WHERE id = $id", expect => 1) if $fault;
	$ddl->query_safe('COMMIT');
	$ddl->quit;
	$pg->wait_for("SELECT count(*) FROM outbox.dead_letter WHERE id = $id", expect => 1);
	set_fault('');
	my $server = $pg->sql("SELECT server FROM outbox.dead_letter WHERE id = $id");
	$pg->sql('ALTER SERVER news RENAME TO events');
	return $server;
}
is(letter_while_renamed(''), 'news', 'a dead letter has the name that its server gets');
is(letter_while_renamed('keep-name=off'), 'events', 'without the lock it has one that nobody has');
$pg->wait_for("SELECT state FROM outbox.relay_status WHERE server = 'events'", expect => 'running');

# The client library can't be stopped in time: the relay ends, with its threads beside it,
# when it gives the client up and when it dies with one; nobody else notices.
{
	my $ended = 'exited with exit code 1';
	my $crashed = qr/was terminated by signal|terminating any other active server processes/;
	my $crashes = count_log($crashed);
	my $witness = $pg->session;
	my $option = 0;

	$witness->query_safe('CREATE TEMP TABLE witness AS SELECT 1 AS n');
	$load = $pg->load(clients => 2, seconds => 600, script => <<END);
\\set k random(1, 20)
SELECT judge.publish_in_order('$topic', 'k' || :k);
END
	for (
		[ 'client-stops=off', qr/FATAL:  the client library of server "events" could not be stopped in time/ ],
		[ 'relay-after-send=fatal,client-stops=off', qr/FATAL:  fault point "relay-after-send"/ ])
	{
		my ($fault, $message) = @$_;
		my ($pid, $exits) = ($pg->relay_pid('events'), count_log(qr/relay events" \(PID \d+\) $ended/));
		set_fault($fault);
		$pg->sql(q{ALTER SERVER events OPTIONS (} . ($option++ ? 'SET' : 'ADD') . qq{ "linger.ms" '$option')});
		ok($pg->wait_until(sub { $pg->log_text =~ $message }), "the relay ends: $message");
		ok($pg->wait_until(sub { count_log(qr/relay events" \(PID \d+\) $ended/) > $exits }), 'as one that failed');
		set_fault('');
		$pg->wait_ok("SELECT pid <> $pid AND state = 'running' FROM outbox.relay_status", 'a new one goes on');
	}
	is($load->running, 1, 'publishers never noticed');
	$load->stop;
	$pg->wait_for(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'pgbench'});
	ok($pg->flush, 'delivered');
	is($witness->query_safe('SELECT n FROM witness'), 1, 'other sessions live on');
	$witness->quit;
	is(count_log($crashed), $crashes, 'nothing crashed');
	$pg->judge_ok($kafka, [$topic], 'nothing lost, in order', duplicates => 1, dead => $dead);
}

$pg->stop;
done_testing();
