# Two servers get the same messages, each at its own pace; what is nobody's is
# counted; where a new server starts.
use OutboxTest;

my $kafka = OutboxKafka->shared;
my $run = unique_topic('fan');
my ($orders, $secret, $payments) = ("$run.orders", "$run.orders.secret", "$run.payments");
my $pg = OutboxTest->server('main', conf => 'outbox.segment_size = 256kB');

$kafka->create_topic($_, 4) for $orders, $secret, $payments;
$pg->judge_setup;

# Both write to the same topics, so each message must be there twice; client.id
# doesn't tell them apart, so each message is counted.
$pg->sql("SELECT judge.publish_many('$orders', 500)");
$pg->create_server('a', $kafka, topics => "$run.*, !*.secret, !*.nobody*, !*.now", start => 'earliest');
ok($pg->flush, 'a server with start earliest');
$pg->judge_ok($kafka, [$orders], 'gets what was there before');
$pg->create_server('b', $kafka, topics => "$run.orders*");

my $load = $pg->load(clients => 4, seconds => 4, script => <<END);
\\set k random(1, 10)
\\set t random(1, 3)
\\if :t = 1
SELECT judge.publish_in_order('$orders', 'k' || :k);
\\elif :t = 2
SELECT judge.publish_in_order('$secret', 'k' || :k);
\\else
SELECT judge.publish_in_order('$payments', 'k' || :k);
\\endif
END
ok($pg->wait_state('b', 'running'), 'b runs');
$pg->sql(q{SELECT outbox.pause('b')});
ok($pg->wait_state('b', 'paused'), 'b is paused');
my $delivered = $pg->sql(q{SELECT delivered FROM outbox.relay_status WHERE server = 'a'});
$pg->wait_ok("SELECT delivered > $delivered + 200 FROM outbox.relay_status WHERE server = 'a'",
	'a goes on');
my $paused = $pg->sql(q{SELECT delivered FROM outbox.relay_status WHERE server = 'b'});
ok($load->finish, 'publishers went through');
ok($pg->flush, 'flush does not wait for a paused server');
is($pg->sql(q{SELECT delivered FROM outbox.relay_status WHERE server = 'b'}), $paused,
	'a paused server gets nothing');
my %verdict = $pg->judge_ok($kafka, [$payments], 'what only a gets, is there once');
cmp_ok($verdict{published}, '>', 100, 'enough of it');
$pg->sql(q{SELECT outbox.resume('b')});
ok($pg->flush, 'b catches up');
$pg->judge_ok($kafka, [$secret], 'what a excludes, is there once');
%verdict = $pg->judge($kafka, [$orders]);
my $second = $pg->sql("SELECT count(*) FROM judge.ledger WHERE topic = '$orders'") - 500;
is($verdict{duplicated}, $second, 'what both get, is there twice');
is($verdict{$_}, 0, "none $_") for qw(lost phantom stale damaged);
is($pg->sql(q{SELECT state FROM outbox.relay_status WHERE server = 'b'}), 'running', 'b runs again');
is($pg->sql('SELECT messages FROM outbox.unrouted'), 0, 'nothing was unrouted');

# What no server wants is counted, and the patterns in force when it is read count.
$pg->sql("SELECT outbox.publish('$run.nobody', 'x') FROM generate_series(1, 7)");
ok($pg->flush, 'nobody has to deliver them');
$pg->wait_ok('SELECT messages = 7 FROM outbox.unrouted', 'seven are unrouted');
$pg->sql("ALTER SERVER b OPTIONS (SET topics '$run.nobody')");
$kafka->create_topic("$run.nobody", 1);
$pg->sql("SELECT outbox.publish('$run.nobody', 'y')");
ok($pg->flush, 'delivered');
is(scalar $kafka->consume("$run.nobody"), 1, 'ALTER never reaches behind the cursor');
is($pg->sql('SELECT messages FROM outbox.unrouted'), 7, 'still seven');

# Also where both happen between the relay's look at its server and its snapshot.
my $hold = $pg->session;
$kafka->create_topic("$run.nobody2", 1);
$hold->query_safe('SELECT pg_advisory_lock(1)');
ok($pg->set_fault('reader-before-snapshot=lock:1'), 'relays are to stop there');
$pg->sql("SELECT outbox.publish('$payments', 'wake up')");
$pg->wait_ok(q{SELECT EXISTS (SELECT FROM pg_locks
	WHERE locktype = 'advisory' AND NOT granted
	  AND pid = (SELECT pid FROM outbox.relay_status WHERE server = 'b'))},
	'b is about to take a snapshot');
$pg->sql("ALTER SERVER b OPTIONS (SET topics '$run.nobody2')");
$pg->sql("SELECT outbox.publish('$run.nobody2', 'z')");
ok($pg->set_fault(''), 'and on');
$hold->quit;
ok($pg->flush, 'delivered');
is(scalar $kafka->consume("$run.nobody2"), 1, 'routed by the new patterns');
is($pg->sql('SELECT messages FROM outbox.unrouted'), 7, 'still seven');

# start now: what committed before is not for it, what was open is.
my $now = "$run.now";
$kafka->create_topic($now, 1);
my $open = $pg->session;
$pg->sql("SELECT outbox.publish('$now', 'before')");
$open->query_safe("BEGIN; SELECT outbox.publish('$now', 'open before')");
$pg->sql('DROP SERVER a; DROP SERVER b');
$pg->create_server('late', $kafka, topics => $now);
$pg->sql("SELECT outbox.publish('$now', 'after')");
$open->query_safe('COMMIT');
$open->quit;
ok($pg->flush, 'delivered');
is(join(', ', sort map { $_->{payload} } $kafka->consume($now)), 'after, open before',
	'start now');

$pg->stop;
done_testing();
