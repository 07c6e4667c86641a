# What a broker may withhold from a server that delivers exactly once: rights on its
# transactional id and on the topic of its position, the id itself, a coordinator.  Each is a state with a hint that names what to do; nothing
# is lost or comes twice, and delivery goes on by itself once the cause is gone.
use OutboxTest;

my $kafka = OutboxKafka->start(auto_create => 'false', sasl => 1, set => [
	'transaction.remove.expired.transaction.cleanup.interval.ms=500',
	'transactional.id.expiration.ms=15000' ]);
my $pg = OutboxTest->server('main');
my $uuid = $pg->sql('SELECT log_uuid FROM outbox.log_identity');
my $topic = unique_topic('withheld');
my $position = 'pg_outbox.position.events';
my $id = "pg_outbox.$uuid.events";

$kafka->create_topic($topic, 2);
$pg->judge_setup;

sub status { return $pg->sql("SELECT $_[0] FROM outbox.relay_status") }
sub publish { return $pg->sql("SELECT judge.publish_many('$topic', 200)") }

# A state with a text and a hint, while nothing can be delivered.
sub withheld
{
	my ($what, $text, $hint) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($pg->wait_until(sub { status('state') eq 'error' && status('last_error') =~ $text }), "$what: an error");
	like(status('hint'), $hint, "$what: with a hint");
	return;
}

sub healed
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($pg->flush, "$what: delivered by itself");
	is(status('state'), 'running', "$what: it runs");
	$pg->judge_ok($kafka, [$topic], "$what: all once and in order", committed => 1);
	return;
}

sub new_relay
{
	my $pid = $pg->relay_pid('events');
	$pg->kill_process($pid, 'TERM');
	return $pg->new_relay('events', $pid);
}

# The transactional id.
$kafka->deny('app', 'write', id => $id);
my $bootstrap = $kafka->bootstrap;
$pg->sql(qq{BEGIN;
	CREATE SERVER events FOREIGN DATA WRAPPER outbox_kafka OPTIONS (
		"bootstrap.servers" '$bootstrap', exactly_once 'true',
		"security.protocol" 'sasl_plaintext', "sasl.mechanism" 'PLAIN');
	CREATE USER MAPPING FOR PUBLIC SERVER events OPTIONS ("sasl.username" 'app', "sasl.password" 'app-secret');
	COMMIT});
publish();
withheld('the id', qr/authorization/i, qr/^Grant this user Describe and Write on transactional id "\Q$id\E"\.$/);

# The topic of the position can't be made.
$kafka->deny('app', 'create', topic => $position);
$kafka->undeny('app', 'write', id => $id);
my $grant = qr/^Grant this user Create, Describe, Read and Write on topic "\Q$position\E"\.$/;
withheld('no topic', qr/^position topic "\Q$position\E": .*authorization/i, $grant);
$kafka->undeny('app', 'create', topic => $position);
healed('the id, the topic');

# It can't be written any more.
$kafka->deny('app', 'write', topic => $position);
publish();
withheld('not written', qr/^position topic "\Q$position\E": .*authorization/i, $grant);
$kafka->undeny('app', 'write', topic => $position);
healed('not written');

# It can't be read, when a relay starts.
$kafka->deny('app', 'read', topic => $position);
new_relay();
publish();
withheld('not read', qr/^position topic "\Q$position\E": .*authorization/i, $grant);
$kafka->undeny('app', 'read', topic => $position);
healed('not read');

# A stranger's transaction that is open on it hides what was written before a relay starts.
$kafka->leave_open('stranger', $position);
new_relay();
publish();
withheld('hidden', qr/^position topic "\Q$position\E": a transaction that is open on it hides its end$/,
	qr/describe-producers --topic \Q$position\E --partition 0" shows whose it is\.$/);
$kafka->fence('stranger');
healed('hidden');

# It is deleted.
$kafka->delete_topic($position);
publish();
healed('deleted');

# The id expires: brokers forget one that was not used for long.
my $before = $kafka->count('__transaction_state');
ok($pg->wait_until(sub { $kafka->count('__transaction_state') > $before }), 'the id expires');
publish();
healed('the id expired');
new_relay();
publish();
healed('after that');

# Brokers too few for the state of transactions.
my $few = OutboxKafka->start(auto_create => 'false', set => ['transaction.state.log.replication.factor=3']);
my $other = unique_topic('few');
$few->create_topic($other, 1);
$pg->sql('SET client_min_messages = error; DROP SERVER events CASCADE');
$pg->create_server('events', $few, topics => $other, exactly_once => 'true');
$pg->sql("SELECT judge.publish_many('$other', 10)");
withheld('no coordinator', qr/./, qr/transaction\.state\.log\.replication\.factor/);

# It asks again without a pause; but a postmaster that dies is seen.
my $relay = $pg->relay_pid('events');
$pg->kill_process($pg->{_pid});
ok($pg->wait_until(sub { !kill 0, $relay }, timeout => 20), 'a relay does not outlive its server');
$pg->{_pid} = undef;
$pg->start;
withheld('no coordinator', qr/./, qr/transaction\.state\.log\.replication\.factor/);

$pg->stop;
done_testing();
