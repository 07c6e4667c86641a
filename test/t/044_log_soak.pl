# A reader, eight publishers, the keeper and VACUUM at once: long and short messages,
# rollbacks, savepoints, prepared and slow transactions, rotation and freeing, passes of
# two pages that look first in a wrong place, pieces of any size, restarts from the stored
# position.
#
# A key's messages are numbered by their committed transactions, so whoever reads them
# must see 1, 2, 3 and so on: a number that is missing was lost, one that comes again is
# a duplicate, one that comes early overtook another.
# every major
use OutboxTest;
use OutboxLog;

my $pg = OutboxTest->server('main', conf => <<END);
outbox.segment_size = 64kB
outbox.poll_interval = 100ms
autovacuum = off
END
my $log = OutboxLog->setup($pg);

$pg->sql(<<'END');
CREATE TABLE numbers (k int PRIMARY KEY, n int NOT NULL) WITH (fillfactor = 50);
INSERT INTO numbers SELECT k, 0 FROM generate_series(1, 20) k;
CREATE FUNCTION soak(k int, size int, fails bool) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	number int;
BEGIN
	UPDATE numbers u SET n = n + 1 WHERE u.k = soak.k RETURNING n INTO number;
	PERFORM outbox.publish('soak', concat_ws(' ', k, number, repeat('x', size)), k::text);
	IF fails THEN RAISE division_by_zero; END IF;
EXCEPTION WHEN division_by_zero THEN NULL;
END $$;
END
$log->paused_server('one');

my $r = $log->reader('long-passes=off,good-guess=off', now => 1);
my $load = $pg->load(clients => 8, transactions => 200, script => <<'END');
\set k random(1, 20)
\set size random(1, 6000)
\set what random(1, 20)
BEGIN;
SELECT soak(:k, :size, :what = 1);
\if :what = 2
ROLLBACK;
\elif :what = 3
PREPARE TRANSACTION 'p:client_id';
COMMIT PREPARED 'p:client_id';
\elif :what = 4
SELECT pg_sleep(0.1);
COMMIT;
\else
SELECT soak(:k, 10, :what = 5);
COMMIT;
\endif
END

my $seed = srand($ENV{OUTBOX_SEED} || time);
note("OUTBOX_SEED=$seed");
my (%last, @wrong);
my $read = 0;
my $list = q{coalesce(string_agg(split_part(payload, ' ', 1) || ':' || split_part(payload, ' ', 2), ' '), '')};

sub take
{
	for my $message (split ' ', shift)
	{
		my ($k, $n) = split /:/, $message;
		push @wrong, "key $k: $n after " . ($last{$k} || 0) if $n != ($last{$k} || 0) + 1;
		$last{$k} = $n;
		$read++;
	}
	return;
}

# As the relay stores it: what has been read is done.
sub store
{
	$r->do(<<'END');
BEGIN;
INSERT INTO outbox.position_log (server, server_name, n, s1, s2, cursor, low)
SELECT s.oid, s.srvname, (SELECT max(n) + 1 FROM outbox.position_log), p.s1::pg_snapshot, p.s2::pg_snapshot, p.cursor, p.low
FROM pg_foreign_server s, test.state() p WHERE s.srvname = 'one';
COMMIT
END
	return;
}

sub read_round
{
	return 0 unless $r->begin eq 't';
	while ($r->state('reading') eq 't')
	{
		take($r->do("BEGIN; SELECT $list FROM test.fetch(" . (1 + int rand 40) . ') WHERE topic = \'soak\'; COMMIT'));
		next if rand > 0.2;
		store();
		$r->resume if rand > 0.5;
	}
	store();
	return 1;
}

my $rounds = 0;
while ($load->running)
{
	$rounds += read_round();
	$pg->sql('VACUUM') if $rounds % 20 == 19;
}
ok($load->finish, 'the publishers have finished');
$pg->wait_until(sub { read_round(); $read >= $pg->sql('SELECT sum(n) FROM numbers') }, timeout => 30);
is($read, $pg->sql('SELECT sum(n) FROM numbers'), "all was read, in $rounds rounds");
is(join(', ', @wrong[ 0 .. ($#wrong > 9 ? 9 : $#wrong) ]), '', 'each once, in the order of its key');
is($pg->sql('SELECT count(*) FROM test.disorder'), 0, 'lanes are sorted');
ok($pg->wait_until(sub { read_round(); store(); $pg->sql('SELECT count(*) < 20 FROM outbox.segments WHERE lane IS NOT NULL') eq 't' }),
	'what is read is freed');
cmp_ok($pg->sql('SELECT max(generation) FROM outbox.segments'), '>', 10, 'segments were rotated meanwhile');

$r->quit;
$pg->stop;
done_testing();
