# With exactly_once, brokers refuse to take a topic that may not be written into a
# transaction, and the library gives back all of it without telling which topic that was.
# It is found all the same: the topic's messages wait, and those of all others go on; where
# it is the position's topic, the state says so.
use OutboxTest;

my $kafka = OutboxKafka->start(auto_create => 'false', sasl => 1);
my $pg = OutboxTest->server('main');
my @fine = map { unique_topic("fine$_") } 1 .. 3;
my ($never, $revoked) = map { unique_topic($_) } qw(never revoked);
my @many = map { unique_topic("many$_") } 1 .. 12;
my $position = 'pg_outbox.position.events';
my $delivered = 0;

$kafka->create_topic($_, 2) for @fine, $never, $revoked, @many;
$pg->judge_setup;

sub status { return $pg->sql("SELECT $_[0] FROM outbox.relay_status") }

sub publish_each
{
	my ($n, @topics) = @_;
	$pg->sql('BEGIN; ' . join('', map { "SELECT judge.publish_many('$_', $n);" } @topics) . ' COMMIT');
	return;
}

sub publish { return publish_each(100, @_) }

# All but the forbidden topics' messages are delivered, and these are named.
sub others_go_on
{
	my ($what, $expected, @forbidden) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$delivered += $expected;
	ok($pg->wait_until(sub { status('delivered') >= $delivered }, timeout => 30), "$what: others go on");
	ok($pg->wait_until(sub { status('lagging_topics') == @forbidden }, timeout => 30), "$what: it is behind");
	is(status('delivered'), $delivered, "$what: its own messages wait");
	my $names = join('|', @forbidden);
	like(status('last_error'), qr/^topic "(?:$names)": .*authorization/i, "$what: it is named");
	return;
}

sub healed
{
	my ($what, $expected) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($pg->flush, "$what: delivered by itself");
	$delivered += $expected;
	is(status('delivered'), $delivered, "$what: all of it");
	$pg->judge_ok($kafka, [ @fine, $never, $revoked, @many ], "$what: all once and in order", committed => 1);
	return;
}

# One that was never allowed: it may be described, and not more.
$kafka->allow('app', 'describe', topic => $never);
$pg->sql(qq{BEGIN;
	CREATE SERVER events FOREIGN DATA WRAPPER outbox_kafka OPTIONS (
		"bootstrap.servers" '@{[ $kafka->bootstrap ]}', exactly_once 'true',
		"security.protocol" 'sasl_plaintext', "sasl.mechanism" 'PLAIN');
	CREATE USER MAPPING FOR PUBLIC SERVER events OPTIONS ("sasl.username" 'app', "sasl.password" 'app-secret');
	COMMIT});
publish($fine[0], $never, $fine[1]);
others_go_on('never allowed', 200, $never);
publish($never, @fine);
others_go_on('and again', 300, $never);
$kafka->allow('app', 'write', topic => $never);
healed('never allowed', 200);

# Rights that are taken away, of one or two, with others before and behind.
$kafka->allow('app', $_, topic => $revoked) for qw(describe write);
my $round = 0;
for my $topics ([ $revoked, @fine ], [ @fine, $revoked ], [ $fine[0], $revoked, $fine[1] ])
{
	$round++;
	publish($revoked, @fine);
	healed("round $round, before", 400);
	$kafka->unallow('app', 'write', topic => $revoked);
	publish(@$topics);
	others_go_on("round $round", 100 * (@$topics - 1), $revoked);
	$kafka->allow('app', 'write', topic => $revoked);
	healed("round $round", 100);
}
$kafka->unallow('app', 'write', topic => $_) for $never, $revoked;
publish($fine[0], $never, $fine[1], $revoked, $fine[2]);
others_go_on('two', 300, $never, $revoked);
$kafka->allow('app', 'write', topic => $_) for $never, $revoked;
healed('two', 200);

# So many that the first one is tried again before the last one is found.
$kafka->allow('app', 'describe', topic => $_) for @many;
publish(@many[ 0 .. 5 ], @fine, @many[ 6 .. 11 ]);
others_go_on('many', 300, @many);
$kafka->allow('app', 'write', topic => $_) for @many;
healed('many', 1200);

# The position's topic: nothing can be delivered, and the state says why; also behind a
# single message, which goes into a transaction together with it.
$kafka->allow('app', $_, topic => $position) for qw(describe read write);
for my $round (1 .. 5)
{
	my $n = $round % 2 ? 1 : 100;
	my @topics = $round < 3 ? $fine[0] : @fine;

	$kafka->unallow('app', 'write', topic => $position);
	publish_each($n, @topics);
	ok( $pg->wait_until(
			sub {
				status('state') eq 'error' &&
				  status('last_error') =~ /^position topic "\Q$position\E": .*authorization/i;
			},
			timeout => 30),
		"the position's topic, $round: an error");
	like(status('hint'), qr/^Grant this user Create, Describe, Read and Write on topic "\Q$position\E"\.$/, "... with a hint");
	$kafka->allow('app', 'write', topic => $position);
	healed("the position's topic, $round", $n * @topics);
}
$pg->stop;
done_testing();
