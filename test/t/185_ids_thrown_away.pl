# Ids that publishers threw away, because none were reserved, come again after a crash.
# A position at the broker must not be behind them: they would never be looked at.
use OutboxTest;
use OutboxLog;

my $kafka = OutboxKafka->shared;
my $topic = unique_topic('thrown');
my $pg = OutboxTest->server('main', conf => 'max_prepared_transactions = 5');
my $log = OutboxLog->setup($pg);
my $count = 0;

$kafka->create_topic($topic, 1);

sub payloads
{
	return join ' ', map { $_->{payload} } $kafka->consume($topic, committed => 1);
}

# After a start no ids are reserved: several publishers find that out, and are stopped
# before they reserve some.  Then something is delivered, and the server crashes.
sub crash_behind_thrown_ids
{
	my ($rule) = @_;
	my $n = ++$count;

	# that the position is only at the broker
	$log->workers_fault("position-in-time=off$rule");
	$pg->sql("BEGIN; SELECT outbox.publish('$topic', 'before $n'::text); PREPARE TRANSACTION 'p'");
	$pg->stop('immediate');
	$pg->start;
	$pg->wait_state('events', 'running') || die "the relay does not run\n";

	my $holder = $log->session;
	$holder->do('SELECT pg_advisory_lock(1)');
	my @sessions = map { $log->session('append-out-of-ids=lock:1') } 1 .. 3;
	for my $session (@sessions)
	{
		$session->start("SELECT outbox.publish('$topic', 'never'::text)");
		$log->wait_lock($session);
	}
	$pg->sql("COMMIT PREPARED 'p'");
	$pg->wait_until(sub { payloads() =~ /before $n\b/ }) || die "not delivered\n";
	$pg->stop('immediate');
	# published before the relay looks: a round without it would set the relay back
	$pg->append_conf('postgresql.conf', 'outbox.enabled = off');
	$pg->start;
	$pg->sql("SELECT outbox.publish('$topic', 'after $n'::text)");
	$pg->append_conf('postgresql.conf', 'outbox.enabled = on');
	$pg->reload;
	$pg->wait_state('events', 'running') || die "the relay does not run\n";
	ok($pg->flush, 'the relay has nothing left to do');
	return payloads() =~ /after $n\b/;
}

$pg->create_server('events', $kafka, topics => $topic, exactly_once => 'true');
ok(crash_behind_thrown_ids(''), 'what gets such an id is delivered');
ok(!crash_behind_thrown_ids(',ids-below-limit=off'), 'without the rule it is not');
done_testing();
