# The log after a crash: at each fault point of appending, rotating and freeing; ids
# are never given twice; what Kafka got is what the database still knows.
# every major
use OutboxTest;
use OutboxLog;
use Time::HiRes ();

my $kafka = OutboxKafka->shared;
my $pg = OutboxTest->server('main', conf => <<END);
outbox.segment_size = 64kB
outbox.poll_interval = 100ms
autovacuum = off
wal_writer_delay = 10s
bgwriter_delay = 10s
END
my $log = OutboxLog->setup($pg);
my $closed = 'SELECT count(*) FROM outbox.segments s WHERE lane IS NOT NULL AND generation <'
  . ' (SELECT max(generation) FROM outbox.segments o WHERE o.lane = s.lane)';

$log->paused_server('one');
$pg->sql('CREATE TABLE ledger (id bigint, tag text)');

sub crashes { my $n = () = $pg->log_text =~ /was terminated by signal 9/g; return $n }

# Sets a fault point that crashes the server, and waits until it did and is back.
sub crash_at
{
	my ($fault, $go_on) = @_;
	my $before = crashes();

	$log->workers_fault($fault);
	$pg->wait_until(sub { $go_on->() if $go_on; crashes() > $before }) || die "no crash at $fault\n";
	$log->workers_fault('');
	$pg->wait_for("SELECT current_setting('outbox.fault') = ''") || die;
	# one that was started before may go by the fault still, and crash the server again
	my $cleared = Time::HiRes::time();
	$pg->wait_for(<<END, expect => 1) || die;
SELECT sum(CASE WHEN backend_start > to_timestamp($cleared) THEN 1 ELSE 2 + pg_terminate_backend(pid)::int END)
FROM pg_stat_activity WHERE backend_type = 'pg_outbox keeper'
END
	return;
}

# Committed, and of these each once, from an id on; and in order.
sub intact
{
	my ($from, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($pg->sql(<<END), '0|0|0|0', $name);
SELECT (SELECT count(*) FROM ledger WHERE id >= $from AND id NOT IN (SELECT id FROM outbox.message)),
	(SELECT count(*) FROM outbox.message WHERE topic = 't' AND id >= $from AND id NOT IN (SELECT id FROM ledger)),
	(SELECT count(*) - count(DISTINCT id) FROM outbox.message),
	(SELECT count(*) FROM test.disorder)
END
	return;
}

# --- while publishers write ----------------------------------------------------------

for my $fault ('append-after-id', 'append-between-parts', 'rotate-before-commit',
	'rotate-before-switch', 'rotate-after-switch', 'ids-after-setval')
{
	my $rows = $fault eq 'ids-after-setval' ? 5000 : 1;
	my $before = $pg->sql('SELECT count(*) FROM ledger');
	my $load = $pg->load(clients => 4, seconds => 60, script =>
		"INSERT INTO ledger SELECT outbox.publish('t', repeat('x', (random() * 6000)::int / $rows)) FROM generate_series(1, $rows);");
	$pg->wait_for("SELECT count(*) > $before + 20 FROM ledger") || die "nothing was published\n";
	crash_at("$fault=crash");
	$load->stop;
	intact(0, "all is there once after a crash at $fault");
	is($pg->sql("INSERT INTO ledger SELECT outbox.publish('t', 'next') RETURNING id > (SELECT max(id) FROM ledger)"),
		't', 'and ids go on');
}

# --- while segments are freed -----------------------------------------------------------

for my $fault ('free-before-commit', 'free-after-commit')
{
	crash_at("$fault=crash", sub {
		eval {
			$log->deliver_sql('one');
			$pg->sql("INSERT INTO ledger SELECT outbox.publish('t', repeat('x', 900)) FROM generate_series(1, 80)");
		};
	});
	my $low = $pg->sql("SELECT low FROM outbox.position_log WHERE server_name = 'one' ORDER BY n DESC LIMIT 1");
	intact($low, "what is not delivered is there after a crash at $fault");
	$log->deliver_sql('one');
	$pg->wait_ok($closed, 'and the rest is freed', expect => 0);
}

# --- ids ------------------------------------------------------------------------------------

# All is delivered and freed, so only the sequence remembers which ids were used, and
# the position, which is put aside here: it knows no more than what was delivered.
sub ids_after_crash
{
	my ($fault) = @_;
	my $s = $log->session($fault);

	my $last = $s->do("SELECT max(outbox.publish('t', '')) FROM generate_series(1, 40000)");
	$s->quit;
	$log->deliver('one');
	$pg->wait_for('SELECT count(*) = 0 FROM test.pages() WHERE last_id > ' . ($last - 30000)) || die "not freed\n";
	$log->workers_fault('ids-above-positions=off');
	$pg->stop('immediate');
	$pg->start;
	my $above = $pg->sql("SELECT outbox.publish('t', 'next') > $last");
	$log->workers_fault('');
	return $above;
}
is(ids_after_crash(''), 't', 'ids are never given twice');
is(ids_after_crash('sequence-before-limit=off'), 'f', 'without the sequence they are');
$pg->sql('DROP SERVER one; DROP EXTENSION pg_outbox; CREATE EXTENSION pg_outbox; TRUNCATE ledger');

# --- what Kafka knows -------------------------------------------------------------------------

# Stops a process of the server while it sleeps, so that it holds no lock.
sub hold_still
{
	my ($type, $sleeps) = @_;
	my $of = "FROM pg_stat_activity WHERE backend_type = '$type'";
	my $pid = $pg->sql("SELECT pid $of");
	$pg->wait_until(sub {
		$pg->kill_process($pid, 'STOP');
		return 1 if $pg->sql("SELECT wait_event $of") =~ $sleeps;
		$pg->kill_process($pid, 'CONT');
		return 0;
	}) || die "the $type never sleeps\n";
	return;
}

# The server dies when Kafka has a message whose commit nobody waited for.  Nobody but
# the relay flushes WAL meanwhile: the two writers are held still, and nothing is freed.
sub forgotten
{
	my ($fault) = @_;
	my $topic = unique_topic('flush');
	my $s;

	$kafka->create_topic($topic, 1);
	$pg->create_server('events', $kafka, topics => $topic);
	$pg->wait_state('events', 'running');
	$log->workers_fault($fault);
	$pg->sql("INSERT INTO ledger SELECT outbox.publish('$topic', 'durable'), 'durable'");
	$pg->flush || die "not delivered\n";
	$pg->sql('CHECKPOINT');
	hold_still('walwriter', qr/^WalWriterMain$/);
	hold_still('background writer', qr/^Bg[Ww]riter(Main|Hibernate)$/);
	$s = $log->session;
	$s->do('SET synchronous_commit = off');
	$s->do("INSERT INTO ledger SELECT outbox.publish('$topic', 'asynchronous'), '$topic'");
	$kafka->consume($topic, n => 2);
	$pg->crash;
	eval { $s->quit };
	$pg->start;
	$log->workers_fault('');
	my $known = $pg->sql("SELECT count(*) FROM ledger WHERE tag = '$topic'");
	$pg->flush || die "not delivered\n";
	$pg->sql('DROP SERVER events');
	return $known;
}
$pg->append_conf('postgresql.conf', 'outbox.retention = 1h');
is(forgotten(''), 1, 'what was sent is known after a crash');
is(forgotten('flush-before-send=off'), 0, 'without the flush it is forgotten');

$pg->stop;
done_testing();
