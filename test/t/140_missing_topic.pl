# A topic that does not exist delays only its own messages, however many there are;
# once it exists, it catches up in order, and nothing is sent twice.
use OutboxTest;

my $kafka = OutboxKafka->start(auto_create => 'false');
my $run = unique_topic('m');
my ($fine, $missing, $gone) = map { "$run.$_" } qw(fine missing gone);
my $pg = OutboxTest->server('main', conf => <<END);
outbox.segment_size = 1MB
outbox.relay_memory = 4MB
END

sub lagging { return 'SELECT lagging_topics FROM outbox.relay_status WHERE server = \'' . $_[0] . '\'' }

$kafka->create_topic($fine, 4);
$pg->judge_setup;
$pg->create_server('events', $kafka, topics => "$run.*");

# A backlog beyond memory: 30,000 messages of about 600 bytes each.
$pg->sql("SELECT judge.publish_many('$missing', 15000, 50, 300)");
$pg->wait_ok(lagging('events'), 'the missing topic lags', expect => '1');
my $load = $pg->load(clients => 3, seconds => 4, script => <<END);
\\set k random(1, 20)
\\set m random(1, 4)
SELECT judge.publish_in_order(CASE WHEN :m = 1 THEN '$missing' ELSE '$fine' END, 'k' || :k);
END
$pg->sql("SELECT judge.publish_many('$missing', 15000, 50, 300)");
$pg->sql("SELECT judge.publish_many('$fine', 20000, 50, 300)");
ok($load->finish, 'publishers never noticed');
my $n = $pg->sql("SELECT count(*) FROM judge.ledger WHERE topic = '$fine'");
$pg->wait_ok("SELECT delivered = $n FROM outbox.relay_status", 'others are delivered meanwhile');
is($pg->sql(q{SELECT outbox.flush('100ms')}), 'f', 'flush waits for the missing one');
is($pg->sql('SELECT state FROM outbox.relay_status'), 'running', 'state');
# the client library gives the topic some seconds to appear
$pg->wait_ok('SELECT last_error, hint, pending_bytes > 5000000 FROM outbox.relay_status',
	'relay_status names it, says what to do, and counts its backlog',
	expect => qr/^\Qtopic "$missing": \E.*Unknown topic[^|]*\|Create the topic[^|]*\|t$/);

# The relay ends, cleanly and not, while it lags.
$pg->restart;
$pg->wait_ok(lagging('events'), 'lags again after a restart', expect => '1');
$pg->sql("SELECT judge.publish_many('$fine', 2000)");
$n += 2000;
$pg->wait_ok(q{SELECT delivered = 2000 FROM outbox.relay_status}, 'others are delivered');
$pg->judge_ok($kafka, [$fine], 'a clean restart sends nothing of them twice');

$load = $pg->load(clients => 3, seconds => 5, script => <<END);
\\set k random(1, 20)
\\set m random(1, 4)
SELECT judge.publish_in_order(CASE WHEN :m = 1 THEN '$missing' ELSE '$fine' END, 'k' || :k);
END
$kafka->create_topic($missing, 4);
ok($load->finish, 'publishers never noticed');
ok($pg->flush, 'delivered');
$pg->wait_ok(lagging('events'), 'it lags no more', expect => '0');
$pg->judge_ok($kafka, [ $fine, $missing ], 'all once and in order');
is($pg->sql('SELECT count(*) FROM outbox.position_log WHERE topic IS NOT NULL'), 0,
	'its position is forgotten');

# Many at once, and a crash meanwhile.
my @many = map { "$run.many$_" } 1 .. 30;
$pg->sql(join ";\n", map { "SELECT judge.publish_many('$_', 300)" } @many, @many);
$pg->wait_ok(lagging('events'), 'thirty topics lag', expect => '30');
$pg->sql("SELECT judge.publish_many('$fine', 5000)");
$pg->wait_ok('SELECT in_flight = 0 AND delivered >= 5000 FROM outbox.relay_status',
	'others are delivered meanwhile');
$pg->crash;
$pg->start;
$pg->sql(join ";\n", map { "SELECT judge.publish_many('$_', 100)" } @many);
$kafka->create_topic($_, 2) for @many;
ok($pg->flush, 'delivered');
$pg->judge_ok($kafka, \@many, 'thirty topics: all once and in order');
$pg->judge_ok($kafka, [$fine], 'a crash loses nothing', duplicates => 1);
$pg->wait_ok(lagging('events'), 'none lags', expect => '0');

# Not waited for longer than topic_timeout: dead letters, until it exists.
$pg->sql(q{ALTER SERVER events OPTIONS (ADD topic_timeout '2s')});
$pg->sql("SELECT judge.publish_many('$gone', 1500)");
$pg->wait_ok("SELECT count(*) = 1500 FROM outbox.dead_letter WHERE topic = '$gone'",
	'they become dead letters');
is($pg->sql('SELECT DISTINCT error, reason, server FROM outbox.dead_letter'),
	'UNKNOWN_TOPIC_OR_PART|Broker: Unknown topic or partition|events', 'with the reason');
ok($pg->flush, 'flush is content with dead letters');
$pg->sql("SELECT judge.publish_many('$gone', 10)");
ok($pg->flush, 'later ones');
is($pg->sql("SELECT count(*) FROM outbox.dead_letter WHERE topic = '$gone'"), 1510,
	'become dead letters at once');
is($pg->sql('SELECT dead FROM outbox.relay_status'), 1510, 'relay_status counts them');
$kafka->create_topic($gone, 4);
$pg->wait_ok(lagging('events'), 'it is there', expect => '0');
$pg->sql("SELECT judge.publish_many('$gone', 10)");
ok($pg->flush, 'delivered');
is($kafka->count($gone), 10, 'later ones are sent');
is($pg->sql(q{SELECT outbox.redrive('events')}), 1510, 'redriven');
ok($pg->flush, 'delivered');
my %verdict = $pg->judge($kafka, [$gone]);
is($verdict{$_}, 0, "of the dead letters none $_") for qw(lost phantom duplicated damaged);
is($verdict{reordered}, 10, 'they come behind what was sent before');

# On error block, or waited for for ever: no dead letters.
my ($blocked, $patient) = map { "$run.$_" } qw(blocked patient);
$pg->sql(q{ALTER SERVER events OPTIONS (SET topic_timeout '1s', ADD on_error 'block')});
$pg->sql("SELECT judge.publish_many('$blocked', 100)");
ok($pg->wait_state('events', 'blocked'), 'state is blocked');
$pg->sql("SELECT judge.publish_many('$fine', 100)");
$pg->sql(q{ALTER SERVER events OPTIONS (DROP on_error, SET topic_timeout '-1')});
ok($pg->wait_state('events', 'running'), 'running');
$pg->sql("SELECT judge.publish_many('$patient', 100)");
$pg->wait_ok(lagging('events'), 'both lag', expect => '2');
$kafka->create_topic($_, 1) for $blocked, $patient;
ok($pg->flush, 'delivered');
is($pg->sql('SELECT count(*) FROM outbox.dead_letter'), 0, 'no dead letters');
$pg->judge_ok($kafka, [ $blocked, $patient ], 'all once and in order');

$pg->stop;
done_testing();
