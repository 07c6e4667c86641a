# Reading the log by snapshot difference, step by step: what a round reads while
# publishers are open, roll back, prepare; long messages; the position after a crash
# of the relay; how much a round reads.
# every major
use OutboxTest;
use OutboxLog;
use List::Util ();

my $pg = OutboxTest->server('main', conf => "outbox.enabled = off\nautovacuum = off");
my $log = OutboxLog->setup($pg);
my $publish = sub { "SELECT outbox.publish('t', $_[0])" };

# --- long, short, rolled back, prepared ---------------------------------------------

{
	my $r = $log->reader;
	my ($a, $b) = ($log->session, $log->session);

	$a->do('BEGIN');
	$a->do($publish->("'a1'"));
	$b->do($publish->("'b1'"));
	is($r->round, 'b1', 'a transaction that is open delays nobody');
	is($r->begin, 'f', 'no round without news');
	$a->do($publish->("'a2'"));
	$b->do($publish->("'b2'"));
	is($r->round, 'b2', 'the next, too');
	is($r->state('open'), 1, 'one transaction is tracked');
	$a->do('COMMIT');
	is($r->round, 'a1 a2', 'what was open comes when it ends');
	is($r->state('open'), 0, 'none is tracked');

	$a->do('BEGIN; SAVEPOINT s');
	$a->do($publish->("'in a savepoint'"));
	is($r->round, '-', 'the id is looked at only within a second');
	$b->do($publish->("'b3'"));
	is($r->round, 'b3', 'open');
	$a->do('RELEASE s; SAVEPOINT s2');
	$a->do($publish->("'rolled back'"));
	$a->do('ROLLBACK TO s2');
	$a->do($publish->("'kept'"));
	$a->do('COMMIT');
	is($r->round, 'in a savepoint kept', 'the savepoint that was kept');

	$a->do('BEGIN');
	$a->do($publish->("'never'"));
	$b->do($publish->("'b4'"));
	is($r->round, 'b4', 'open again');
	$a->do('ROLLBACK');
	is($r->begin, 't', 'a round when a tracked transaction has ended');
	is($r->fetch(10), '-', 'rolled back: nothing');
	is($r->state('open'), 0, 'and no longer tracked');

	# more subtransactions than a snapshot lists
	$a->do('BEGIN');
	$a->do(<<'END');
DO $$ BEGIN FOR i IN 1..150 LOOP
	BEGIN
		PERFORM outbox.publish('t', 's' || i);
		IF i % 50 <> 0 THEN RAISE division_by_zero; END IF;
	EXCEPTION WHEN division_by_zero THEN NULL;
	END;
END LOOP; END $$
END
	$a->do(<<'END');
DO $$ BEGIN FOR i IN 1..100 LOOP
	BEGIN PERFORM outbox.publish('t', 'o' || i) WHERE i % 50 = 0; CREATE TEMP TABLE x(); DROP TABLE x;
	EXCEPTION WHEN division_by_zero THEN NULL; END;
END LOOP; END $$
END
	$b->do($publish->("'b5'"));
	is($r->round, 'b5', 'a transaction with an overflowed subtransaction cache is open');
	is($r->state('open'), 1, 'as one');
	$a->do('COMMIT');
	is($r->round, 's50 s100 s150 o50 o100', 'its subtransactions that were kept');
	$_->quit for $r, $a, $b;
}

# --- prepared transactions --------------------------------------------------------------

# The counter moves at PREPARE: else a reader that has not seen the transaction
# before would not notice COMMIT PREPARED, which moves no counter.
sub prepared
{
	my ($fault) = @_;
	my $r = $log->reader('ids-only-round=off', now => 1);
	my ($a, $b) = ($log->session($fault), $log->session);

	$r->round;
	$a->do('BEGIN');
	$a->do($publish->("'p'"));
	$a->do("PREPARE TRANSACTION 'p'");
	my $first = $r->round;
	$b->do("COMMIT PREPARED 'p'");
	my $then = $r->round;
	$_->quit for $r, $a, $b;
	return "$first, $then";
}
is(prepared(''), '-, p', 'a prepared transaction is read when it is committed');
is(prepared('count-at-prepare=off'), '-, -', 'without the count at PREPARE it is missed');

# --- the open list ------------------------------------------------------------------------

sub left_open
{
	my ($fault) = @_;
	my $r = $log->reader($fault, now => 1);
	my $a = $log->session;

	$a->do('BEGIN');
	$a->do($publish->("'a'"));
	$pg->sql($publish->("'b'"));
	my $first = $r->round;
	$a->do('COMMIT');
	my $then = $r->round;
	$_->quit for $r, $a;
	return "$first, $then";
}
is(left_open(''), 'b, a', 'left open, read later');
is(left_open('open-list=off'), 'b, -', 'without the open list it is missed');

# --- touching the lanes ---------------------------------------------------------------------

# A publisher has its id, but its row is not there yet: the reader has to wait for
# the lane, or it takes the id for done.
sub slow_append
{
	my ($fault) = @_;
	my $r = $log->reader("$fault,ids-only-round=off", now => 1);
	my ($slow, $control) = ($log->session('append-after-id=lock:1'), $log->session);

	$pg->sql($publish->("'before'"));
	$r->round;
	$control->do('SELECT pg_advisory_lock(1)');
	$slow->do('BEGIN');
	$slow->start($publish->("'slow'"));
	$log->wait_lock($slow);
	$pg->sql($publish->("'fast'"));
	$r->start($r->round_sql);
	$log->wait_lock($r, 'LWLock') unless $fault;
	my $first = $fault ? $r->finish : '';
	$control->do('SELECT pg_advisory_unlock(1)');
	$slow->finish;
	$first = $r->finish unless $fault;
	$slow->do('COMMIT');
	my $then = $r->round;
	$_->quit for $r, $slow, $control;
	return "$first, $then";
}
is(slow_append(''), 'fast, slow', 'an id that was taken is waited for');
is(slow_append('touch-lanes=off'), 'fast, -', 'without touching the lanes it is missed');

# --- ids and rows under one hold of the lane --------------------------------------------------

# A publisher that has its id, and no lock, while others fill pages.
sub overtaken
{
	my ($fault) = @_;
	my ($slow, $control) = ($log->session("$fault,append-after-id=lock:1"), $log->session);

	$control->do('SELECT pg_advisory_lock(1)');
	$slow->start($publish->("'slow'"));
	$log->wait_lock($slow);
	$pg->sql("SELECT outbox.publish('t', repeat('x', 1000)) FROM generate_series(1, 40)");
	$control->do('SELECT pg_advisory_unlock(1)');
	$slow->finish;
	my $disorder = $pg->sql('SELECT count(*) > 0 FROM test.disorder');
	$_->quit for $slow, $control;
	return $disorder;
}
is(overtaken(''), 'f', 'a lane is sorted from page to page');
is(overtaken('ids-under-lock=off'), 't', 'ids taken without the lock are out of order');
new_log();

# A message of many rows, and others that publish meanwhile.
sub interleaved
{
	my ($fault) = @_;
	my $r = $log->reader('', now => 1);
	my ($long, $control) = ($log->session("$fault,append-between-parts=lock:1"), $log->session);

	$r->round;
	$control->do('SELECT pg_advisory_lock(1)');
	$long->start($publish->("repeat('l', 50000)"));
	$log->wait_lock($long);
	$pg->sql($publish->("'short'"));
	$control->do('SELECT pg_advisory_unlock(1)');
	$long->finish;
	my $all = $r->round;
	$_->quit for $r, $long, $control;
	return $all;
}
is(interleaved(''), 'lllll*50000 short', 'a long message is in one piece');
is(interleaved('one-hold=off'), 'damaged short', 'with other rows between its own it is damaged');
new_log();

# --- nothing heavyweight under the lane's lock ---------------------------------------------------

# REINDEX in an open transaction locks a catalog's index.  Publishers have read what
# they need before they take a lane, so they go on; with a catalog look-up under the
# lock they would hang, the lane's lock in their hands.
sub under_lock
{
	my ($fault) = @_;
	my ($warm, $ddl, $monitor) = ($log->session, $log->session, $log->session);
	my $state = "SELECT CASE WHEN query NOT LIKE '%AS meanwhile%' THEN 'not yet' WHEN wait_event_type = 'Lock'"
	  . " THEN 'hangs' WHEN state = 'idle' THEN 'done' ELSE '' END FROM pg_stat_activity WHERE pid = $warm->{pid}";

	$_->do($publish->("repeat('w', 30000)")) for $warm, $warm;
	$warm->do("SET outbox.fault = '$fault'");
	$monitor->do($state) for 1 .. 2;
	$ddl->do('BEGIN');
	$ddl->do('REINDEX INDEX pg_catalog.pg_class_oid_index');
	$warm->start("SELECT outbox.publish('t', repeat('w', 30000)) > 0 AND outbox.publish('t', 'w') > 0 AS meanwhile");
	my $seen = '';
	$pg->wait_until(sub { ($seen = $monitor->do($state)) =~ /^(hangs|done)$/ });
	$ddl->do('COMMIT');
	$warm->finish;
	$_->quit for $warm, $ddl, $monitor;
	return $seen;
}
is(under_lock(''), 'done', 'publishing goes on beside REINDEX of a catalog');
is(under_lock('nothing-under-lock=off'), 'hangs', 'a look-up under the lock would hang');
is($pg->sql(<<END), 0, 'segments have neither TOAST nor indexes, and store plain');
SELECT count(*) FROM outbox.segments s JOIN pg_class c ON c.oid = s.relid
WHERE c.reltoastrelid <> 0 OR c.relhasindex OR EXISTS (SELECT FROM pg_attribute a
	WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.attstorage <> 'p')
END

# --- long messages ------------------------------------------------------------------------------------

{
	my $r = $log->reader('', now => 1);
	my $a = $log->session;

	$r->round;
	$pg->sql($publish->("repeat('x', $_)")) for 1000, 20000, 100, 50000;
	is($r->round, 'xxxxx*1000 xxxxx*20000 xxxxx*100 xxxxx*50000',
		'long messages, also as the last of a lane');
	for my $n (3000, 10000, 30000)
	{
		# it begins on the page before the last one
		$a->do('BEGIN');
		$a->do($publish->("repeat('y', $n)"));
		$pg->sql($publish->("'b'"));
		is($r->round, 'b', "left open: $n");
		$a->do('COMMIT');
		is($r->round, "yyyyy*$n", 'read whole');
	}
	# a half-written one of a transaction that failed
	$a->do("SET outbox.fault = 'append-between-parts=error'");
	like($a->do($publish->("repeat('e', 30000)")), qr/fault point/, 'fails in the middle');
	$a->do('RESET outbox.fault');
	$pg->sql($publish->("repeat('z', 30000)"));
	is($r->round, 'zzzzz*30000', 'a half-written message is stepped over');
	$_->quit for $r, $a;
}

# --- VACUUM ----------------------------------------------------------------------------------------------

{
	my $r = $log->reader('', now => 1);
	my $a = $log->session;

	$r->round;
	$pg->sql($publish->("'first'"));
	$pg->sql("BEGIN; SELECT outbox.publish('t', repeat('a', 500)) FROM generate_series(1, 2000); ROLLBACK");
	$pg->sql('VACUUM');
	$pg->sql($publish->("'second'"));
	is($r->round, 'first second', 'behind pages that VACUUM emptied');
	$pg->sql("BEGIN; SELECT outbox.publish('t', repeat('a', 500)) FROM generate_series(1, 200); ROLLBACK");
	$pg->sql('VACUUM (TRUNCATE)');
	$pg->sql($publish->("'third'"));
	$pg->sql('VACUUM (FREEZE)');
	is($r->round, 'third', 'behind a tail that VACUUM truncated');
	$a->do('BEGIN');
	$a->do($publish->("repeat('o', 5000)"));
	$pg->sql($publish->("'fourth'"));
	is($r->round, 'fourth', 'left open');
	$a->do('COMMIT');
	$pg->sql('VACUUM FULL');
	is($r->round, 'ooooo*5000', 'VACUUM FULL of the database changes nothing');
	is($pg->sql('SELECT count(*) FROM test.disorder'), 0, 'lanes are sorted');
	$_->quit for $r, $a;
}

# --- pieces, and a reader that starts again from its position ------------------------------------------

{
	my $r = $log->reader('', now => 1);
	my $a = $log->session;

	$r->round;
	$a->do('BEGIN');
	$a->do($publish->("'open'"));
	$pg->sql("SELECT outbox.publish('t', 'm' || i) FROM generate_series(1, 5) i");
	is($r->begin, 't', 'a round');
	is($r->fetch(2), 'm1 m2', 'a piece');
	$r->resume;
	is($r->fetch(2), 'm3 m4', 'goes on behind the cursor after a crash');
	is($r->fetch(9), 'm5', 'and to its end');
	$a->do('COMMIT');
	is($r->round, 'open', 'what was open is found again');
	$a->do('BEGIN');
	$a->do($publish->("'open 2'"));
	$pg->sql($publish->("'m6'"));
	is($r->round, 'm6', 'a round');
	$r->resume;
	$a->do('COMMIT');
	is($r->round, 'open 2', 'what was open is found from low on');
	$pg->sql("BEGIN; SELECT outbox.publish('t', 'never'); ROLLBACK");
	ok($pg->wait_until(sub { $r->round; $r->state('low = cursor + 1') eq 't'
				&& $r->state('low') == $log->next_id - 1 }),
		'low passes what was rolled back');
	$_->quit for $r, $a;
}

# --- what a round reads ----------------------------------------------------------------------------------

{
	my $r = $log->reader('', now => 1);
	my $a = $log->session;
	my (@pages, $before);

	$r->round;
	$a->do('BEGIN');
	$a->do("SELECT outbox.publish('t', repeat('a', 500)) FROM generate_series(1, 1000)");
	$a->do($publish->("'open'"));
	for (1 .. 12)
	{
		$pg->sql("SELECT outbox.publish('t', repeat('b', 500)) FROM generate_series(1, 100)");
		$before = $r->state('pages');
		$r->do('BEGIN; SELECT count(*) FROM test.round(); COMMIT');
		push @pages, $r->state('pages') - $before;
	}
	shift @pages;
	my ($least, $most) = (List::Util::min(@pages), List::Util::max(@pages));
	cmp_ok($most, '<=', $least + 10, "a round beside an open transaction reads the same ($least to $most pages)");
	is($r->state('open'), 1, 'one entry');
	$a->do('COMMIT');
	is($r->do('BEGIN; SELECT count(*) FROM test.round(); COMMIT'), 1001, 'all of it in the end');
	$_->quit for $r, $a;
}

# --- refusals --------------------------------------------------------------------------------------------

{
	my $a = $log->session;
	$a->do('BEGIN READ ONLY');
	like($a->do($publish->("'x'")), qr/read-only transaction/, 'refused in a read-only transaction');
	$a->do('ROLLBACK');
	$a->do("SET outbox.fault = 'refuse-read-only=off'; BEGIN READ ONLY");
	like($a->do($publish->("'x'")), qr/^\d+$/, 'without the rule it publishes');
	$a->do('ROLLBACK');
	$a->quit;
}

# A log that is in order again.
sub new_log
{
	$pg->sql('DROP EXTENSION pg_outbox; CREATE EXTENSION pg_outbox');
	return;
}

$pg->stop;
done_testing();
