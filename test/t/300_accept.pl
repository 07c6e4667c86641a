# inbox.accept() in a storm: sessions that accept from a small pool of ids, alone, in
# batches and in any order, and roll back, prepare, let marks expire and crash.  What
# they do on its word is a row of "effect": each id must have one, or one for each time
# that its mark expired, and a mark and its effect are there together or not at all.
# Most of it without the library preloaded, when nobody expires marks but we.
# every major
use OutboxTest;

my $pg = OutboxTest->server('main', preload => 0);

my $setup = <<'SQL';
CREATE TABLE effect (id text, began timestamptz, accepted timestamptz, ttl interval);
CREATE FUNCTION consume(id text, ttl interval) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	began timestamptz := clock_timestamp();
BEGIN
	IF inbox.accept('storm', id, ttl) THEN
		INSERT INTO effect VALUES (id, began, clock_timestamp(), ttl);
	END IF;
END
$$;
CREATE FUNCTION consume_batch(ids text[], ttl interval) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	began timestamptz := clock_timestamp();
BEGIN
	INSERT INTO effect SELECT new, began, clock_timestamp(), ttl
	FROM unnest(inbox.accept_batch('storm', ids, ttl)) new;
END
$$;
-- n ids of a kind, in any order, some of them twice
CREATE FUNCTION any_of(kind text, pool int, n int) RETURNS text[] LANGUAGE sql VOLATILE
	RETURN ARRAY(SELECT kind || ceil(random() * pool) FROM generate_series(1, n));
-- marks without an effect, and effects without a mark, of ids that do not expire
CREATE VIEW torn AS
	SELECT * FROM (
		(SELECT message_id FROM inbox.seen WHERE message_id ~ '^long' EXCEPT SELECT id FROM effect)
		UNION ALL
		(SELECT id FROM effect WHERE id ~ '^long' EXCEPT SELECT message_id FROM inbox.seen)) t;
SQL
$pg->sql($setup);

# --- the storm ------------------------------------------------------------------------

my $storm = <<'END';
\set kind random(1, 12)
\set id random(1, 400)
\set ms random(1, 40)
\if :kind = 1
SELECT consume('long:id', '1 day');
\elif :kind = 2
BEGIN;
SELECT consume('long:id', '1 day');
ROLLBACK;
\elif :kind = 3
BEGIN;
SAVEPOINT s;
SELECT consume_batch(any_of('long', 400, 10), '1 day');
ROLLBACK TO s;
SELECT consume_batch(any_of('long', 400, 10), '1 day');
COMMIT;
\elif :kind = 4
SELECT consume_batch(any_of('long', 400, 100), '1 day');
\elif :kind = 5
BEGIN;
SELECT consume_batch(any_of('long', 400, 100), '1 day');
ROLLBACK;
\elif :kind = 6
BEGIN;
SELECT consume_batch(any_of('long', 400, 10), '1 day');
PREPARE TRANSACTION 'c:client_id';
COMMIT PREPARED 'c:client_id';
\elif :kind = 7
BEGIN;
SELECT consume_batch(any_of('short', 20, 5), ':ms ms');
PREPARE TRANSACTION 'c:client_id';
ROLLBACK PREPARED 'c:client_id';
\elif :kind = 8
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT consume_batch(any_of('short', 20, 5), ':ms ms');
COMMIT;
\elif :kind = 9
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT consume('short' || (:id % 20), ':ms ms');
COMMIT;
\elif :kind = 10
SELECT consume('short' || (:id % 20), ':ms ms');
\elif :kind = 11
SELECT consume_batch(any_of('short', 20, 100), ':ms ms');
\else
SELECT inbox.expire(10);
\endif
END

my $load = $pg->load(clients => 16, threads => 4, transactions => 150, script => $storm,
	arguments => [ '-M', 'simple' ]);
ok($load->finish, 'the storm is over');
is($pg->sql(q{SELECT count(*) FROM (SELECT id FROM effect WHERE id ~ '^long' GROUP BY 1 HAVING count(*) > 1) t}),
	0, 'no id twice');
is($pg->sql(q{SELECT count(DISTINCT id) FROM effect WHERE id ~ '^long'}), 400, 'all of the pool');
is($pg->sql('SELECT count(*) FROM torn'), 0, 'marks and effects are there together');
cmp_ok($pg->sql(q{SELECT count(*) FROM effect WHERE id ~ '^short'}), '>', 40, 'short ones, again and again');
is($pg->sql(<<'END'), 0, 'and again only when the mark had expired');
SELECT count(*) FROM (SELECT accepted, lag(began + ttl) OVER (PARTITION BY id ORDER BY accepted) AS expired
	FROM effect WHERE id ~ '^short') e WHERE accepted < expired
END
unlike($pg->log_text, qr/deadlock detected/, 'no deadlock');

# --- a mark's time begins when it is set ---------------------------------------------

my ($first, $second) = ($pg->session, $pg->session);
$first->query("BEGIN; SELECT inbox.accept('wait', 'm')");
my $pid = $second->query('SELECT pg_backend_pid()');
$second->query_until(qr/begun/, "\\echo begun\nSELECT inbox.accept('wait', 'm', '100 ms');\n");
$pg->wait_ok("SELECT wait_event_type = 'Lock' AND clock_timestamp() - query_start > '500 ms' FROM pg_stat_activity WHERE pid = $pid",
	'the second has waited longer than its mark will count');
my $end = $first->query('SELECT clock_timestamp()');
$first->query('ROLLBACK');
like($second->query('SELECT 1'), qr{^t$}m, 'the first has rolled back: it is for the second');
is($pg->sql("SELECT expires_at >= '$end'::timestamptz + interval '100 ms' FROM inbox.seen WHERE consumer = 'wait'"), 't',
	'and counts from then on');
$_->quit for $first, $second;

# --- expired by hand --------------------------------------------------------------------

$pg->wait_ok(q{SELECT max(expires_at) < clock_timestamp() FROM inbox.seen WHERE message_id !~ '^long'}, 'all short ones have expired');
my $expired = $pg->sql(q{SELECT count(*) FROM inbox.seen WHERE expires_at < clock_timestamp()});
cmp_ok($expired, '>', 0, 'nobody has removed them');
is($pg->sql('SELECT inbox.expire()'), $expired, 'inbox.expire() does');
is($pg->sql('SELECT count(*), count(DISTINCT message_id) FROM inbox.seen'), '400|400', 'and leaves the others');

# --- many at a time ---------------------------------------------------------------------

# Each batch by a new session, which takes its ids to be new until one is not: some are,
# since all take them from one stretch that moves on.
$pg->sql(<<'SQL');
CREATE FUNCTION fresh(n int) RETURNS text[] LANGUAGE sql VOLATILE
	RETURN ARRAY(SELECT 'longer ' || floor(extract(epoch FROM now()) * 1000 + random() * n * 4) FROM generate_series(1, n));
SQL
my $many = $pg->load(clients => 8, threads => 4, transactions => 40, arguments => [ '-C', '-M', 'simple' ], script => <<'END');
\set kind random(1, 4)
\if :kind = 1
BEGIN;
SELECT consume_batch(fresh(300), '1 day');
ROLLBACK;
\elif :kind = 2
SELECT consume_batch(fresh(20), '1 day');
\else
SELECT consume_batch(fresh(300), '1 day');
\endif
END
ok($many->finish, 'batches of many ids are over');
cmp_ok($pg->sql(q{SELECT count(*) FROM effect WHERE id ~ '^longer'}), '>', 1000, 'many were new');
is($pg->sql(q{SELECT count(*) FROM (SELECT id FROM effect WHERE id ~ '^longer' GROUP BY 1 HAVING count(*) > 1) t}),
	0, 'no id twice');
is($pg->sql('SELECT count(*) FROM torn'), 0, 'marks and effects are there together');
unlike($pg->log_text, qr/deadlock detected/, 'no deadlock');

# --- crashes ------------------------------------------------------------------------------

for my $synchronous ('on', 'off')
{
	my $before = $pg->sql('SELECT count(*) FROM effect');
	my $crashed = $pg->load(clients => 8, seconds => 600, script => <<END);
SET synchronous_commit = $synchronous;
\\set id random(1, 1000000)
SELECT consume('long:id', '1 day');
SELECT consume_batch(any_of('long', 1000000, 20), '1 day');
END
	$pg->wait_ok("SELECT count(*) > $before + 500 FROM effect", 'effects');
	$pg->crash;
	$crashed->stop;
	$pg->start;
	cmp_ok($pg->sql('SELECT count(*) FROM effect'), '>', $before, 'effects have survived a crash');
	is($pg->sql('SELECT count(*) FROM torn'), 0, "a crash takes marks and effects together, synchronous_commit = $synchronous");
}
is($pg->sql(q{SELECT count(*) FROM (SELECT id FROM effect WHERE id ~ '^long' GROUP BY 1 HAVING count(*) > 1) t}),
	0, 'no id twice');

# --- a dump has them -----------------------------------------------------------------------

my $dump = $pg->basedir . '/dump.sql';
$pg->command_ok([ 'pg_dump', '-f', $dump, 'postgres' ], 'dump');
$pg->sql('CREATE DATABASE restored');
$pg->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, 'restored' ], 'restore');
my $marks = q{SELECT count(*), md5(string_agg(format('%s %s %s', consumer, message_id, expires_at), ',' ORDER BY consumer, message_id)) FROM inbox.seen};
is($pg->sql($marks, dbname => 'restored'), $pg->sql($marks), 'a restored database has the marks');
is($pg->sql(q{SELECT inbox.accept('storm', 'long1'), inbox.accept('storm', 'new')}, dbname => 'restored'), 'f|t', 'and they count');
$pg->stop;

# --- the keeper ------------------------------------------------------------------------------

my $kept = OutboxTest->server('kept');
$kept->sql(q{SELECT inbox.accept('kept', 'stays'), inbox.accept('kept', 'goes', '1 ms')});
$kept->sql(q{SELECT cardinality(inbox.accept_batch('kept', ARRAY(SELECT 'x' || n FROM generate_series(1, 12000) n), '1 ms'))});
$kept->wait_ok('SELECT count(*) = 1 FROM inbox.seen', 'the keeper removes marks that have expired');
is($kept->sql('SELECT message_id FROM inbox.seen'), 'stays', 'and only these');
# one that was committed late: its time was over long before
my $late = $kept->session;
$late->query("BEGIN; SELECT inbox.accept('kept', 'late', '1 ms')");
$kept->sql(q{SELECT inbox.accept('kept', 'early', '1 ms')});
$kept->wait_ok(q{SELECT count(*) = 1 FROM inbox.seen}, 'one is removed while another is in progress');
$late->query('COMMIT');
$late->quit;
$kept->wait_ok(q{SELECT count(*) = 1 FROM inbox.seen}, 'which is removed too, in its time');
$kept->stop;
done_testing();
