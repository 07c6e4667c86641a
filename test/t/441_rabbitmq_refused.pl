# RabbitMQ: what can't be delivered waits, or becomes a dead letter, without harm to its
# neighbours; what a person has to mend is a state with a hint, and heals by itself.
use OutboxTest;
use OutboxRabbit;

plan skip_all => 'RabbitMQ is not on this machine' unless OutboxRabbit->available;

my $rabbit = OutboxRabbit->start(tls => 1);
my $pg = OutboxTest->server('main', conf => "outbox.max_message_size = 32MB");

$rabbit->exchange('events', 'topic');
$rabbit->create_topic('events', 'orders');
$pg->judge_setup;

sub create_server
{
	my ($name, %options) = @_;
	return $pg->create_server_of('outbox_rabbitmq', $name, undef,
		url => $rabbit->url, exchange => 'events', %options);
}

sub status { my ($column) = @_; return $pg->sql("SELECT $column FROM outbox.relay_status WHERE server = 'events'") }

# --- unroutable ----------------------------------------------------------------------------

create_server('events', topic_timeout => '-1');
$pg->sql("SELECT judge.publish_many('orders', 2000)");
$pg->sql("SELECT judge.publish_in_order('nowhere', 'k') FROM generate_series(1, 50)");
$pg->sql("SELECT judge.publish_many('orders', 2000)");
ok($pg->wait_for(q{SELECT delivered = 4000 FROM outbox.relay_status}), 'neighbours are delivered');
like(status('last_error'), qr/topic "nowhere".*NO_ROUTE.*no queue is bound/, 'an unroutable topic says so');
is(status('state'), 'running', 'the server runs');
$rabbit->create_topic('events', 'nowhere');
ok($pg->flush, 'delivered as soon as a queue is bound');
$pg->judge_ok($rabbit, [ 'orders', 'nowhere' ], 'all of it, once, in order');

$pg->sql("ALTER SERVER events OPTIONS (SET topic_timeout '2s')");
$pg->sql("SELECT outbox.publish('lost', 'a' || n, 'k') FROM generate_series(1, 20) n");
ok($pg->flush, 'given up after topic_timeout');
is($pg->sql("SELECT count(*) || ' ' || min(error) FROM outbox.dead_letter WHERE topic = 'lost'"), '20 NO_ROUTE',
	'dead letters with the reason');
$pg->sql("SELECT outbox.publish('lost', 'once more')");
ok($pg->flush, 'what comes later is tried, too');
$rabbit->create_topic('events', 'lost');
$pg->sql("SELECT outbox.redrive('events')");
ok($pg->flush, 'redriven');
is($rabbit->count('lost'), 21, 'delivered by a redrive');

# without mandatory the broker drops what nobody wants
$pg->sql("ALTER SERVER events OPTIONS (ADD mandatory 'false')");
$pg->sql("SELECT outbox.publish('nobody', 'x')");
ok($pg->flush, 'not mandatory: dropped by the broker');
is($pg->sql(q{SELECT count(*) FROM outbox.dead_letter WHERE topic = 'nobody'}), '0', '... without a word');
$pg->sql("ALTER SERVER events OPTIONS (DROP mandatory)");

# --- a queue that is full -----------------------------------------------------------------

$rabbit->create_topic('events', 'full', 'x-max-length' => 10, 'x-overflow' => 'reject-publish');
$pg->sql("SELECT judge.publish_in_order('full', 'k' || n % 3) FROM generate_series(1, 30) n");
ok($pg->wait_for(q{SELECT last_error LIKE '%refused (nack)%' FROM outbox.relay_status}), 'a full queue is said');
$pg->sql("SELECT judge.publish_many('orders', 100)");
$pg->judge_ok($rabbit, ['full'], 'all come when there is room, once, in order in spite of the refusals',
	n => 30, ack => 1);
ok($pg->flush, 'and all is delivered');

# --- a message that the broker refuses ----------------------------------------------------

$rabbit->set_max_message_size(20000);
$rabbit->purge_queue('orders');
$pg->sql('TRUNCATE judge.ledger');
$pg->sql(<<END);
SELECT judge.publish_many('orders', 500);
SELECT outbox.publish('orders', repeat('x', 30000), 'big');
SELECT outbox.publish('orders', repeat('x', 3000000), 'big');
SELECT judge.publish_many('orders', 500);
END
ok($pg->flush, 'a message that is too large holds nothing up');
is($pg->sql(q{SELECT count(*) || ' ' || min(error) FROM outbox.dead_letter WHERE topic = 'orders'}),
	'2 PRECONDITION_FAILED', 'it is a dead letter');
$pg->judge_ok($rabbit, ['orders'], 'its neighbours are delivered', duplicates => 1);
$rabbit->set_max_message_size(134217728);

# --- exchange and permissions ---------------------------------------------------------------

$rabbit->delete_exchange('events');
$pg->sql("SELECT judge.publish_many('orders', 100)");
ok($pg->wait_state('events', 'error'), 'a missing exchange is a state');
like(status('last_error'), qr/NOT_FOUND.*no exchange 'events'/, 'that names it');
like(status('hint'), qr/declare/, 'with a hint');
$rabbit->exchange('events', 'topic');
$rabbit->bind('events', $_, $_) for qw(orders nowhere lost full);
ok($pg->wait_state('events', 'running'), 'and heals when it is there');
ok($pg->flush, 'delivered');
$pg->judge_ok($rabbit, ['orders'], 'nothing lost', duplicates => 1);

create_server('made', exchange => 'made', declare => 'fanout', topics => 'made.*');
ok($pg->wait_state('made', 'running'), 'an exchange is made where declare says so');
ok(eval { $rabbit->exchange('made', 'fanout'); 1 }, '... of that type');
ok(!eval { $rabbit->exchange('made', 'direct'); 1 }, '... and of no other');
$pg->sql('DROP SERVER made');

$rabbit->create_user('app', 'app-secret');
$rabbit->create_topic('events', 'forbidden');
$rabbit->allow('app', '', '.*', '.*');
$rabbit->allow_topics('app', 'events', '^orders$');
$rabbit->purge_queue('orders');
$pg->sql('TRUNCATE judge.ledger');
$pg->sql("ALTER SERVER events OPTIONS (SET topic_timeout '-1')");
$pg->sql(q{CREATE USER MAPPING FOR PUBLIC SERVER events OPTIONS ("user" 'app', password 'wrong')});
ok($pg->wait_state('events', 'error'), 'wrong credentials are a state');
like(status('last_error'), qr/ACCESS_REFUSED/, 'that says so');
unlike(status('last_error'), qr/wrong/, 'without the password');
$pg->sql(q{ALTER USER MAPPING FOR PUBLIC SERVER events OPTIONS (SET password 'app-secret')});
ok($pg->wait_state('events', 'running'), 'mended at once');
$pg->sql(<<END);
SELECT judge.publish_many('orders', 500);
SELECT judge.publish_in_order('forbidden', 'k') FROM generate_series(1, 20);
SELECT judge.publish_many('orders', 500);
END
ok($pg->wait_for(q{SELECT last_error ~ 'topic "forbidden".*ACCESS_REFUSED' FROM outbox.relay_status}),
	'a forbidden topic says so');
ok($pg->wait_for(q{SELECT in_flight = 0 AND lagging_topics = 1 FROM outbox.relay_status}), 'it waits alone');
$pg->judge_ok($rabbit, ['orders'], 'its neighbours are delivered, each once');
$rabbit->allow_topics('app', 'events', '.*');
ok($pg->flush, 'delivered once it is allowed');
$pg->judge_ok($rabbit, [ 'orders', 'forbidden' ], 'all of it, once, in order');
$pg->sql("ALTER SERVER events OPTIONS (SET url '" . $rabbit->url('nowhere') . "')");
ok($pg->wait_state('events', 'error'), 'a virtual host that is missing is a state');
$pg->sql("ALTER SERVER events OPTIONS (SET url '" . $rabbit->url . "')");

# --- TLS ------------------------------------------------------------------------------------------

$pg->sql("ALTER SERVER events OPTIONS (SET url '" . $rabbit->tls_url . "', ADD tls_ca '"
	  . $rabbit->certificate('other-ca') . "')");
ok($pg->wait_state('events', 'error'), 'an unknown authority is a state');
like(status('last_error'), qr/certificate is not accepted/, 'that says so');
$pg->sql("ALTER SERVER events OPTIONS (SET tls_ca '" . $rabbit->certificate('ca') . "')");
$pg->sql("SELECT judge.publish_many('orders', 500)");
ok($pg->flush, 'delivered over TLS');
$pg->sql("ALTER USER MAPPING FOR PUBLIC SERVER events OPTIONS (ADD tls_certificate '"
	  . $rabbit->certificate('client') . "', ADD tls_key '" . $rabbit->certificate('client.key') . "')");
$pg->sql("SELECT judge.publish_many('orders', 500)");
ok($pg->flush, 'and with a certificate of our own');
$pg->judge_ok($rabbit, ['orders'], 'all there');
unlike($pg->log_text, qr/app-secret|PRIVATE KEY/, 'no secret in the log');
$pg->sql("ALTER SERVER events OPTIONS (SET url '" . $rabbit->tls_url =~ s/127\.0\.0\.1/localhost/r . "')");
ok($pg->wait_state('events', 'running'), 'the broker by another name of its certificate');
$pg->sql("ALTER SERVER events OPTIONS (SET url '" . $rabbit->url . "', DROP tls_ca)");

# --- quorum queues, streams, the default exchange ---------------------------------------------

$rabbit->create_topic('events', 'quorum', 'x-queue-type' => 'quorum');
$rabbit->create_topic('events', 'stream', 'x-queue-type' => 'stream');
$pg->sql("SELECT judge.publish_in_order(t, 'k' || n % 5) FROM generate_series(1, 500) n, (VALUES ('quorum'), ('stream')) v(t)");
ok($pg->flush, 'delivered to a quorum queue and a stream');
$pg->judge_ok($rabbit, ['quorum'], 'the quorum queue has all, in order');
$pg->judge_ok($rabbit, ['stream'], 'and so has the stream', stream => 1, n => 500);
$rabbit->queue('direct');
$pg->sql("ALTER SERVER events OPTIONS (DROP exchange)");
$pg->sql("SELECT outbox.publish('direct', 'straight into a queue')");
ok($pg->flush, 'without an exchange the topic is the name of a queue');
is($rabbit->count('direct'), 1, 'it has it');

done_testing();
