# RabbitMQ: what is published arrives, once and in the order of its keys, through outages of
# every kind; what the broker refuses harms nobody else.
use OutboxTest;
use OutboxRabbit;

plan skip_all => 'RabbitMQ is not on this machine' unless OutboxRabbit->available;

my $rabbit = OutboxRabbit->start;
my $pg = OutboxTest->server('main');

$rabbit->exchange('events', 'topic');
$rabbit->create_topic('events', 'orders.placed');
$pg->judge_setup;

sub create_server
{
	my ($name, %options) = @_;
	return $pg->create_server_of('outbox_rabbitmq', $name, undef,
		url => $rabbit->url, exchange => 'events', %options);
}

# --- what a message looks like ---------------------------------------------------------

create_server('events', topics => 'orders.*');
$pg->sql(<<END);
BEGIN;
SELECT outbox.publish('orders.placed', '{"n": 1}'::jsonb, 'k',
	'[["colour", "blue"], ["Größe", "x\\ty"], ["colour", "red"]]', 'my-id');
COMMIT;
BEGIN;
SELECT outbox.publish('orders.placed', 'never', 'k');
ROLLBACK;
SELECT outbox.publish('orders.placed', NULL::text, 'k');
SELECT outbox.publish('orders.placed', ''::text, '');
SELECT outbox.publish('orders.placed', '\\x00ff'::bytea);
SELECT outbox.publish('orders.placed', 'long', NULL, NULL, repeat('i', 300));
END
ok($pg->flush, 'everything was delivered');
my @got = $rabbit->consume('orders.placed');
is(scalar @got, 5, 'five messages, none of them rolled back');
is($got[0]{payload}, '{"n": 1}', 'payload');
is($got[0]{key}, 'k', 'key');
is($got[0]{message_id}, 'my-id', 'message id');
my $headers = [ [ 'colour', 'blue' ], [ "Gr\x{f6}\x{df}e", "x\ty" ], [ 'colour', 'red' ] ];
$headers = [ @$headers[ 1, 0 ] ] if $rabbit->sorts_headers;
is_deeply([ map { [@$_] } grep { $_->[0] =~ /^(col|Gr)/ } @{ $got[0]{headers} } ], $headers,
	'headers, in their order, one repeated');
like($got[1]{message_id}, qr/^[0-9a-f]{8}-[0-9a-f]{4}-8/, 'message id is a UUID');
is($got[1]{payload}, undef, 'null payload is a tombstone');
is($got[2]{payload}, '', 'an empty one is not');
is($got[2]{key}, '', 'an empty key is a key');
is($got[3]{key}, undef, 'none is none');
is($got[3]{payload}, "\x00\xff", 'bytes are bytes');
is($got[4]{message_id}, 'i' x 300, 'a message id longer than the property');
my $properties = $rabbit->api(POST => 'queues/%2F/orders.placed/get',
	{ count => 5, ackmode => 'ack_requeue_true', encoding => 'auto' });
is($properties->[0]{properties}{content_type}, 'application/json', 'content type of JSON');
is($properties->[0]{properties}{delivery_mode}, 2, 'persistent');
is($properties->[3]{properties}{content_type}, 'application/octet-stream', 'of bytes');
cmp_ok(abs($properties->[0]{properties}{timestamp} - time), '<', 120, 'publish time');
$rabbit->purge_queue('orders.placed');

# --- load, and outages under it -----------------------------------------------------------

my $load = $pg->ordered_load('orders.placed');
my $settle = sub {
	my ($what) = @_;
	my $before = $pg->sql("SELECT delivered FROM outbox.relay_status WHERE server = 'events'");
	ok($pg->wait_for("SELECT delivered > $before + 200 FROM outbox.relay_status WHERE server = 'events'"),
		"delivering after $what");
};

$settle->('the start');
$rabbit->kill_node;
ok($pg->wait_state('events', 'retrying'), 'a broker that was killed is retried');
$rabbit->start_node;
$settle->('a kill');
$rabbit->close_connections;
$settle->('a connection that was closed');
$rabbit->freeze;
$pg->wait_for(q{SELECT in_flight > 0 FROM outbox.relay_status});
$rabbit->thaw;
$settle->('a broker that stood still');
my $relay = $pg->relay_pid('events');
$pg->kill_process($relay);
ok($pg->new_relay('events', $relay), 'a new relay after one that was killed');
$settle->('a relay that was killed');
$pg->end_load($load);
ok($pg->flush, 'everything was delivered');
$pg->judge_ok($rabbit, ['orders.placed'], 'nothing lost, in order', duplicates => 1);

# --- an alarm -------------------------------------------------------------------------------

$rabbit->set_alarm('memory');
$pg->sql("SELECT judge.publish_many('orders.placed', 1000)");
ok($pg->wait_state('events', 'blocked'), 'an alarm of the broker is a state');
like($pg->sql('SELECT last_error FROM outbox.relay_status'), qr/alarm.*memory/, 'with its reason');
$rabbit->clear_alarm('memory');
ok($pg->flush, 'delivered when it is over');
is($pg->sql('SELECT state FROM outbox.relay_status'), 'running', 'running again');
$pg->judge_ok($rabbit, ['orders.placed'], 'nothing lost', duplicates => 1);

# --- a clean stop -----------------------------------------------------------------------------

$rabbit->purge_queue('orders.placed');
$pg->sql('TRUNCATE judge.ledger');
$load = $pg->ordered_load('orders.placed');
$settle->('the purge');
$pg->sql("ALTER SERVER events OPTIONS (ADD heartbeat '5')");
$settle->('an ALTER SERVER');
$pg->restart;
$pg->end_load($load);
$pg->wait_for('SELECT true');
ok($pg->flush, 'everything was delivered');
$pg->judge_ok($rabbit, ['orders.placed'], 'no duplicates by a reload and a restart');

done_testing();
