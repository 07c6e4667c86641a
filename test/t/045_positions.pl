# Positions of servers, as outbox.position_log keeps them: numbered, the highest counts;
# written now and then, when they moved, and at a clean stop; by one relay only; and the
# table is made small without losing one.  Each rule on and off.
# every major
use OutboxTest;
use OutboxLog;

my $kafka = OutboxKafka->shared;
# what is delivered stays in the log: where a rule is off, it is sent again
my $pg = OutboxTest->server('main', conf => <<END);
outbox.retention = 1h
outbox.segment_size = 64kB
outbox.poll_interval = 100ms
autovacuum = off
END
my $log = OutboxLog->setup($pg);
my $topic;

sub relays { return $pg->sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg_outbox relay%'}) }
sub rows_after { return $pg->sql("SELECT count(*) FROM outbox.position_log WHERE n > $_[0]") }
sub newest_n { return $pg->sql(q{SELECT max(n) FROM outbox.position_log WHERE server_name = 'events'}) }

# A server for a topic of its own; the one before goes.
sub new_server
{
	my (%options) = @_;
	my @config = @{ delete $options{config} || [] };

	$log->workers_fault('');
	if ($topic)
	{
		# another server's numbers begin anew
		$pg->sql('DROP SERVER events');
		$pg->wait_for(q{SELECT count(*) = 0 FROM outbox.position_log WHERE server_name = 'events'})
		  || die "positions of a server that is gone stay\n";
	}
	$topic = unique_topic('positions');
	$kafka->create_topic($topic, 2, @config);
	$pg->create_server('events', $kafka, topics => $topic, %options);
	$pg->wait_state('events', 'running') || die "the relay does not run\n";
	return;
}

sub publish { return $pg->sql("SELECT count(outbox.publish('$topic', 'm')) FROM generate_series(1, $_[0])") }
sub deliver { $pg->flush || die "not delivered\n"; return }

# Workers stop, cleanly; what is said is done meanwhile; they start, with that fault.
sub restart_relay
{
	my ($fault, $meanwhile) = @_;
	$pg->append_conf('postgresql.conf', 'outbox.enabled = off');
	$pg->reload;
	$pg->wait_until(sub { relays() == 0 }) || die "the relay does not stop\n";
	$meanwhile->() if $meanwhile;
	$pg->append_conf('postgresql.conf', 'outbox.enabled = on');
	$log->workers_fault($fault);
	$pg->wait_until(sub { relays() == 1 }) || die "no relay starts\n";
	return;
}

# What the topic has beyond so many messages.
sub duplicates { deliver(); return $kafka->count($topic) - $_[0] }

# --- numbers -------------------------------------------------------------------------

# A second relay goes on with the numbers of the first, which stored many: the third
# has to believe the second.
sub numbered
{
	my ($fault) = @_;

	new_server();
	for (1 .. 6)
	{
		my $before = newest_n();
		publish(1);
		$pg->wait_for("SELECT max(n) > $before FROM outbox.position_log") || die "no position\n";
	}
	restart_relay($fault);
	publish(10);
	deliver();
	restart_relay('');
	return duplicates(16);
}
is(numbered(''), 0, 'a new relay goes on behind the last one');
is(numbered('position-numbers=off'), 10, 'numbered from the start again, its positions are not seen');

sub highest
{
	my ($fault) = @_;

	new_server();
	publish(10);
	deliver();
	restart_relay($fault);
	return duplicates(10);
}
is(highest(''), 0, 'of several positions the highest number counts');
is(highest('position-highest=off'), 10, 'from the first one all is sent again');

# --- when they are written ---------------------------------------------------------------

# Turns of the loop, in some hundred milliseconds.
sub turns
{
	for (1 .. 5)
	{
		$pg->sql(q{SELECT outbox.pause('events')});
		$pg->wait_state('events', 'paused');
		$pg->sql(q{SELECT outbox.resume('events')});
		$pg->wait_state('events', 'running');
	}
	return;
}

# Positions that are stored while nothing is published.
sub idle_rows
{
	my ($fault) = @_;

	new_server();
	publish(1);
	deliver();
	restart_relay($fault);
	deliver();
	turns();
	my $n = newest_n();
	turns();
	return rows_after($n) ? 'some' : 'none';
}
is(idle_rows(''), 'none', 'a position that has not moved is not written');
is(idle_rows('position-when-moved=off'), 'some', 'without the rule the table grows by itself');

# Are there rows much nearer to each other than 100 ms, while messages come one by one?
# A few may be, on a machine that was busy when the first of two was written.
sub too_often
{
	my ($fault) = @_;

	new_server();
	restart_relay($fault);
	deliver();
	my $n = newest_n();
	$pg->load(clients => 1, transactions => 300, script => "SELECT outbox.publish('$topic', 'm');\n\\sleep 5 ms\n")->finish;
	deliver();
	return $pg->sql(<<END);
SELECT count(*) FILTER (WHERE gap < interval '50 ms') > 5
FROM (SELECT written - lag(written) OVER (ORDER BY n) AS gap FROM outbox.position_log WHERE n > $n) gaps
END
}
is(too_often(''), 'f', 'at most one in 100 ms');
is(too_often('position-seldom=off'), 't', 'without the rule there are more');

# What was delivered since the last one is in the one of the clean stop.
sub stopped
{
	my ($fault) = @_;

	new_server();
	restart_relay("position-in-time=off$fault");
	publish(10);
	deliver();
	restart_relay('');
	return duplicates(10);
}
is(stopped(''), 0, 'a clean stop stores the position');
is(stopped(',position-at-stop=off'), 10, 'without it what was delivered since is sent again');

# A message is refused and blocks its topic, while the other partition's are acknowledged:
# they are a full batch, so that they go at once, and it lingers.
sub acknowledged
{
	my ($fault) = @_;

	new_server(on_error => 'block', 'linger.ms' => 500, 'batch.num.messages' => 50,
		config => ['max.message.bytes=20000']);
	$log->workers_fault($fault);
	# the first message of a partition goes alone: not these
	$pg->sql("SELECT outbox.publish('$topic', 'm', partition => n) FROM generate_series(0, 1) n");
	deliver();
	$pg->sql(<<END);
BEGIN;
SELECT outbox.publish('$topic', repeat('x', 30000), partition => 0);
SELECT count(outbox.publish('$topic', 'm', partition => 1)) FROM generate_series(1, 50);
COMMIT;
END
	ok($pg->wait_state('events', 'blocked'), 'a topic is blocked');
	$pg->wait_ok('SELECT delivered FROM outbox.relay_status', 'what is behind it is delivered', expect => 52);
	restart_relay('', sub { $kafka->set_config($topic, 'max.message.bytes=100000') });
	return duplicates(53);
}
is(acknowledged(''), 0, 'a clean stop lists what is acknowledged beyond the position');
is(acknowledged('position-with-acked=off'), 50, 'without the list it is sent again');

# --- by whom ------------------------------------------------------------------------------

# A relay that is about to end, but still there: does the next one work beside it?
sub beside
{
	my ($fault) = @_;
	my $control = $log->session;

	new_server();
	$control->do('SELECT pg_advisory_lock(7)');
	$log->workers_fault("relay-leaving=lock:7$fault");
	my $pid = $pg->relay_pid('events');
	$pg->sql("SELECT pg_terminate_backend($pid)");
	$pg->wait_for("SELECT pid <> $pid FROM outbox.relay_status") || die "no new relay\n";
	publish(1);
	my $works = $pg->sql("SELECT outbox.flush('2s')");
	ok(kill(0, $pid), 'the old relay is there') || diag("pid $pid");
	my $state = $pg->sql('SELECT state FROM outbox.relay_status');
	$log->workers_fault('');
	$control->do('SELECT pg_advisory_unlock(7)');
	deliver();
	$control->quit;
	return "$works $state";
}
is(beside(''), 'f starting', 'a relay waits until it is the only one of its server');
is(beside(',server-lock=off'), 't running', 'without the lock there are two');

# --- the table made small -------------------------------------------------------------------

$log->paused_server('one');
# the high number of rows stands for days under an old snapshot
sub grow
{
	$pg->sql(<<'END');
INSERT INTO outbox.position_log (server, server_name, n, s1, s2, cursor, low)
SELECT server, server_name, n + i, s1, s2, cursor, low
FROM (SELECT * FROM outbox.position_log WHERE server_name = 'one' ORDER BY n DESC LIMIT 1) p,
	generate_series(1, 20000) i
END
	return;
}
my $size = q{SELECT pg_relation_size('outbox.position_log')};

# A position is stored just before the keeper has the table's lock.
sub compacted
{
	my ($fault) = @_;
	my $control = $log->session;

	$control->do('SELECT pg_advisory_lock(5)');
	$log->workers_fault("compact-before-lock=lock:5$fault");
	grow();
	$pg->wait_for(<<'END', expect => 'Lock') || die "the keeper does not compact\n";
SELECT wait_event_type FROM pg_stat_activity WHERE backend_type = 'pg_outbox keeper'
END
	my $low = $log->next_id;
	$log->deliver_sql('one', $low);
	$log->workers_fault('');
	$control->do('SELECT pg_advisory_unlock(5)');
	$pg->wait_ok("SELECT ($size) < 100000", 'positions are compacted');
	$control->quit;
	return $pg->sql(q{SELECT low FROM outbox.position_log WHERE server_name = 'one' ORDER BY n DESC LIMIT 1}) - $low;
}
is(compacted(''), 0, 'the newest position is read when nobody can store another');
cmp_ok(compacted(',compact-lock-first=off'), '<', 0, 'read before that, the newest is lost');

# Somebody reads the table in an open transaction.
{
	my $reader = $log->session;
	my $keeper = q{SELECT wait_event_type FROM pg_stat_activity WHERE backend_type = 'pg_outbox keeper'};

	$reader->do('BEGIN');
	$reader->do('SELECT count(*) FROM outbox.position_log');
	grow();
	# two rotations, and so a turn of the keeper in between
	for (1 .. 2)
	{
		my $newest = $pg->sql('SELECT max(generation) FROM outbox.segments');
		$pg->sql("SELECT count(outbox.publish('t', repeat('x', 900))) FROM generate_series(1, 80)");
		$pg->wait_ok("SELECT max(generation) > $newest FROM outbox.segments", 'the keeper goes on beside a reader');
	}
	is($pg->sql("SELECT ($size) > 2000000"), 't', 'and the table stays large meanwhile');
	$log->deliver_sql('one');
	pass('positions can be stored');
	$log->workers_fault('compact-never-waits=off');
	$pg->wait_ok($keeper, 'without the rule it waits for the reader', expect => 'Lock');
	$pg->sql_fails(q{SET lock_timeout = '100ms'; INSERT INTO outbox.position_log SELECT * FROM outbox.position_log},
		qr/lock timeout/, 'and nobody can store a position');
	$reader->do('COMMIT');
	$log->workers_fault('');
	$pg->wait_ok("SELECT ($size) < 100000", 'compacted');
	$reader->quit;
}

is($pg->sql(q{SELECT n_tup_upd FROM pg_stat_all_tables WHERE relid = 'outbox.position_log'::regclass}), 0,
	'no row was ever updated');

$pg->stop;
done_testing();
