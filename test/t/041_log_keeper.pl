# The keeper's part of the log: rotating segments under load, and freeing them when
# all positions say so and never before; each rule on and off.
# every major
use OutboxTest;
use OutboxLog;

my $pg = OutboxTest->server('main', conf => <<END);
outbox.segment_size = 64kB
outbox.poll_interval = 100ms
autovacuum = off
END
my $log = OutboxLog->setup($pg);
# one segment's worth
my $segment = sub { "SELECT outbox.publish('t', '$_[0] ' || repeat('x', 900)) FROM generate_series(1, 80)" };
my $closed = 'SELECT count(*) FROM outbox.segments s WHERE lane IS NOT NULL AND generation <'
  . ' (SELECT max(generation) FROM outbox.segments o WHERE o.lane = s.lane)';

my $newest = 'SELECT max(generation) FROM outbox.segments';

# So many segments, each rotated; 80 messages in each.
sub fill
{
	my ($tag, $n) = @_;
	for (1 .. $n)
	{
		my $before = $pg->sql($newest);
		$pg->sql($segment->($tag));
		$pg->wait_for("SELECT ($newest) > $before") || die "not rotated\n";
	}
	return;
}

# All of it, at both servers.
sub deliver_all
{
	my $low = shift || $log->next_id;
	$log->deliver($_, $low) for 'one', 'two';
	return;
}

sub wait_freed
{
	$pg->wait_for($closed, expect => 0) || die "not freed\n";
	return;
}

# How many messages begin so?
sub kept { return $pg->sql("SELECT count(*) FROM outbox.message WHERE payload LIKE '$_[0]%'::bytea") }

$log->paused_server($_) for 'one', 'two';

# --- pooled segments -------------------------------------------------------------------------------

# A reader has read the list of segments when two of its lane are freed, given to
# another lane, and filled again.
sub reused
{
	my ($fault) = @_;
	my $r = $log->reader('', now => 1);
	my ($busy, $control) = ($log->session('append-between-parts=lock:1'), $log->session);

	$r->round;
	fill('first', 2);
	my $freed = join ', ', split /\n/, $pg->sql($closed =~ s/count\(\*\)/relid/r);
	$r->do('BEGIN; SELECT count(*) FROM test.round(); COMMIT');
	my $low = $log->next_id;
	$pg->sql("SELECT outbox.publish('t', 'wanted')");
	$r->resume;
	$r->do("SET outbox.fault = '$fault,reader-before-open=lock:2'");
	is($r->begin, 't', 'a round');
	$control->do('SELECT pg_advisory_lock(1), pg_advisory_lock(2)');
	$r->start('BEGIN; SELECT payload FROM test.fetch(10); COMMIT');
	$log->wait_lock($r);

	deliver_all($low);
	wait_freed();
	# the first lane is held, so others take the next one
	$busy->start("SELECT outbox.publish('t', repeat('l', 10000))");
	$log->wait_lock($busy);
	# until those two have been used again and rotated
	while ($pg->sql("SELECT count(DISTINCT relid) FROM test.pages() WHERE relid IN ($freed)") < 2)
	{
		fill('second', 1);
	}
	fill('third', 1);
	$control->do('SELECT pg_advisory_unlock(1), pg_advisory_unlock(2)');
	my $read = $r->finish;
	$busy->finish;
	deliver_all();
	wait_freed();
	$_->quit for $r, $busy, $control;
	return $read;
}
is(reused(''), 'wanted', 'segments that changed lanes are noticed');
is(reused('open-then-check=off'), '', 'without the check a message is missed');

# --- a lane that is rotated under a publisher ---------------------------------------------------------

sub rotated
{
	my ($fault) = @_;
	my ($late, $control) = ($log->session("$fault,append-after-open=lock:1"), $log->session);

	$control->do('SELECT pg_advisory_lock(1)');
	$late->start("SELECT outbox.publish('t', 'late')");
	$log->wait_lock($late);
	fill('rotate', 2);
	$control->do('SELECT pg_advisory_unlock(1)');
	$late->finish;
	my $disorder = $pg->sql('SELECT count(*) > 0 FROM test.disorder');
	$_->quit for $late, $control;
	return $disorder;
}
is(rotated(''), 'f', 'a publisher looks again under the lock');
is(rotated('append-recheck=off'), 't', 'without that it writes into an old segment');
deliver_all();
wait_freed();

# --- rotation under load ---------------------------------------------------------------

$pg->sql(<<'END');
CREATE TABLE causal (k int PRIMARY KEY, n int NOT NULL);
INSERT INTO causal SELECT k, 0 FROM generate_series(1, 20) k;
CREATE FUNCTION causal(k int, size int, fails bool) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	number int;
BEGIN
	UPDATE causal c SET n = n + 1 WHERE c.k = causal.k RETURNING n INTO number;
	PERFORM outbox.publish('causal', number || ' ' || repeat('x', size), k::text);
	IF fails THEN RAISE division_by_zero; END IF;
EXCEPTION WHEN division_by_zero THEN NULL;
END $$;
END
{
	my $old = $log->session;
	$old->do('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
	my $load = $pg->load(clients => 8, transactions => 250, script => <<'END');
\set k random(1, 20)
\set size random(1, 4000)
SELECT causal(:k, :size, random() < 0.2);
END
	$pg->sql('VACUUM') for 1 .. 5;
	ok($load->finish, 'eight clients published, with rollbacks and VACUUM');
	$pg->wait_ok("SELECT ($closed) > 10", 'segments were rotated');
	is($pg->sql('SELECT count(*) FROM test.disorder'), 0, 'each lane is sorted by page');
	is($pg->sql("SELECT count(*) FROM outbox.message WHERE topic = 'causal'"),
		$pg->sql('SELECT sum(n) FROM causal'), 'all that was committed is there');
	is($pg->sql(<<'END'), 0, 'ids are causal');
SELECT count(*) FROM (SELECT split_part(convert_from(payload, 'UTF8'), ' ', 1)::int AS n,
	row_number() OVER (PARTITION BY key ORDER BY id) AS place
	FROM outbox.message WHERE topic = 'causal') m WHERE n <> place
END
	my $r = $log->reader;
	is($r->do('BEGIN; SELECT count(*), bool_and(id > before) FROM (SELECT id, lag(id, 1, 0::bigint) OVER () AS before FROM test.round()) r; COMMIT'),
		$pg->sql('SELECT count(*) FROM outbox.message') . '|t', 'a reader has all, in the order of ids');
	$r->quit;

	# a restart finds the lanes as they are
	my $last = $pg->sql('SELECT max(id) FROM outbox.message');
	my $all = $pg->sql('SELECT count(*) FROM outbox.message');
	$old->quit;
	$pg->restart;
	is($pg->sql("SELECT outbox.publish('t', 'after the restart') > $last"), 't', 'ids go on');
	is($pg->sql('SELECT count(*) FROM outbox.message'), $all + 1, 'all is there after a restart');
	is($pg->sql('SELECT count(*) FROM test.disorder'), 0, 'sorted');
}

# --- freeing -------------------------------------------------------------------------------

{
	my $old = $log->session;
	$old->do('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox.message');
	$log->deliver('one');
	is($pg->sql("SELECT ($closed) > 10"), 't', 'nothing is freed while one server still has to get it');
	deliver_all();
	$pg->wait_ok($closed, 'all is freed when both have it, under an old snapshot too', expect => 0);
	is($pg->sql(<<'END'), 0, 'no segment has dead rows');
SELECT coalesce(sum(n_dead_tup), 0) FROM pg_stat_all_tables t JOIN outbox.segments s USING (relid)
END
	$pg->wait_ok('SELECT sum(pg_relation_size(relid)) <= 2 * 64 * 1024 FROM outbox.segments',
		'the space is back');
	$old->quit;
}

# Delivered or not?  low says so.
sub undelivered
{
	my ($fault) = @_;
	$log->workers_fault($fault);
	fill('undelivered', 3);
	wait_freed() if $fault;
	my $kept = kept('undelivered');
	$log->workers_fault('');
	deliver_all();
	wait_freed();
	return $kept;
}
is(undelivered(''), 240, 'what is not delivered stays');
is(undelivered('free-below-low=off'), 0, 'without the rule it is lost');

# --- behind a transaction that stays open ----------------------------------------------------

{
	my $open = $log->session;
	my $r = $log->reader('', now => 1);

	$r->round;
	$open->do('BEGIN');
	my $low = $open->do("SELECT outbox.publish('open', 'open')");
	$r->round;

	$log->workers_fault('free-by-scan=off');
	fill('beside an open one', 6);
	$r->do('BEGIN; SELECT count(*) FROM test.round(); COMMIT');
	is($r->state('low'), $low, 'an open transaction holds low back');
	# the open one counts as running in the snapshot of this position
	deliver_all($low);
	fill('beside an open one', 1);
	is($pg->sql("SELECT ($closed) >= 7"), 't', 'without the scan the log grows behind it');
	$log->workers_fault('');
	deliver_all($low);
	$pg->wait_ok("SELECT ($closed) <= 1", 'what is done beside it is freed');
	$pg->sql('BEGIN; ' . $segment->('rolled back') . '; ROLLBACK');
	$pg->wait_ok("SELECT ($closed) <= 1", 'what was rolled back too');
	fill('not delivered', 3);
	is(kept('not delivered'), 240, 'what is not delivered stays');
	$open->do('COMMIT');
	like($r->round, qr/^open( not d\*\d+){240}$/, 'and the open one is read when it commits');
	deliver_all();
	wait_freed();
	$_->quit for $open, $r;
}

# --- a server that is being created ------------------------------------------------------------

# Its first position is not visible until it commits: nothing may be freed meanwhile.
sub created
{
	my ($fault) = @_;
	my $ddl = $log->session;

	$log->workers_fault($fault);
	$ddl->do('BEGIN');
	$ddl->do(q{CREATE SERVER three FOREIGN DATA WRAPPER outbox_kafka
		OPTIONS ("bootstrap.servers" '127.0.0.1:1', paused 'true')});
	fill('for three', 3);
	deliver_all();
	# the keeper has had its turns: it rotates what comes afterwards
	$fault ? wait_freed() : fill('later', 2);
	$ddl->do('COMMIT');
	my $kept = kept('for three');
	$log->workers_fault('');
	$pg->sql('DROP SERVER three');
	deliver_all();
	wait_freed();
	$ddl->quit;
	return $kept;
}
is(created(''), 240, 'what is published while a server is created is kept for it');
is(created('freeing-lock=off'), 0, 'without the freeing lock it is lost');

# --- failures of the keeper ------------------------------------------------------------------------------

{
	my $before = $pg->sql($newest);
	my $keeper = $pg->sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_outbox keeper'");

	$log->workers_fault('rotate-before-commit=error');
	$pg->sql($segment->('no rotation'));
	ok($pg->wait_until(sub { $pg->log_text =~ /could not rotate or free segments: fault point/ }),
		'a failure is logged');
	$pg->sql($segment->('still none'));
	is($pg->sql($newest), $before, 'publishing goes on without rotation');
	is($pg->sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_outbox keeper'"), $keeper,
		'the keeper lives');
	$log->workers_fault('');
	$pg->wait_ok("SELECT ($newest) > $before", 'rotated when the cause is gone');
	my $times = () = $pg->log_text =~ /could not rotate or free/g;
	is($times, 1, 'logged once');
}

# --- outbox.max_backlog, outbox.retention -------------------------------------------------------------------

{
	$pg->append_conf('postgresql.conf', 'outbox.max_backlog = 1MB');
	$pg->reload;
	my $refused = '';
	ok($pg->wait_until(sub {
			$pg->psql('postgres', $segment->('backlog'), stderr => \$refused);
			return $refused =~ /max_backlog/;
		}), 'publishing is refused');
	like($refused, qr/HINT:  See outbox.relay_status/, 'with a hint');
	$log->deliver_sql($_) for 'one', 'two';
	ok($pg->wait_until(sub { $pg->psql('postgres', "SELECT outbox.publish('t', 'again')") == 0 }),
		'and goes on when messages are delivered');
	$pg->append_conf('postgresql.conf', 'outbox.max_backlog = 0');

	$pg->append_conf('postgresql.conf', 'outbox.retention = 1h');
	$pg->reload;
	deliver_all();
	fill('retained', 3);
	deliver_all();
	fill('more', 2);
	is(kept('retained'), 240, 'delivered messages are retained');
	$pg->append_conf('postgresql.conf', 'outbox.retention = 1s');
	$pg->reload;
	deliver_all();
	$pg->wait_ok($closed, 'and freed after their time', expect => 0);
}

# --- the table of positions -----------------------------------------------------------------------------------

{
	$pg->sql(<<'END');
INSERT INTO outbox.position_log (server, server_name, n, s1, s2, cursor, low, topic)
SELECT server, server_name, n + i, s1, s2, cursor, low, CASE WHEN i % 2 = 0 THEN 'lagging' END
FROM (SELECT DISTINCT ON (server) * FROM outbox.position_log ORDER BY server, n DESC) p,
	generate_series(1, 20000) i
END
	my $latest = 'SELECT server_name, topic, max(n) FROM outbox.position_log GROUP BY 1, 2 ORDER BY 1, 2';
	my $before = $pg->sql($latest);
	$pg->wait_ok("SELECT pg_relation_size('outbox.position_log') < 100000", 'positions are compacted');
	is($pg->sql($latest), $before, 'the newest of each server and topic stay');
}

$pg->stop;
done_testing();
