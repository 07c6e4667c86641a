# NATS JetStream: what is published arrives, once and in the order of its keys, through
# outages of every kind, with and without others who write to the stream.
use OutboxTest;
use OutboxNats;

plan skip_all => 'NATS is not on this machine' unless OutboxNats->available;

my $nats = OutboxNats->start;
my $pg = OutboxTest->server('main', conf => "outbox.poll_interval = 100ms\n");

$nats->stream('EVENTS', 'orders.>');
$pg->judge_setup;

sub create_server
{
	my ($name, %options) = @_;
	return $pg->create_server_of('outbox_nats', $name, undef,
		url => $nats->url, stream => 'EVENTS', %options);
}

# --- what a message looks like ---------------------------------------------------------

create_server('events', topics => 'orders.*');
$pg->sql(<<'END');
BEGIN;
SELECT outbox.publish('orders.placed', '{"n": 1}'::jsonb, 'k',
	'[["colour", "blue"], ["Größe", "x\ty"], ["colour", "red"], ["lines", "a\nb%41"], ["blank", " x "], ["none", ""]]', 'my-id');
COMMIT;
BEGIN;
SELECT outbox.publish('orders.placed', 'never', 'k');
ROLLBACK;
SELECT outbox.publish('orders.placed', NULL::text, 'k');
SELECT outbox.publish('orders.placed', ''::text, '');
SELECT outbox.publish('orders.placed', '\x00ff0d0a'::bytea, E' \n');
END
ok($pg->flush, 'delivered') or diag($pg->relay_status);
my @messages = $nats->consume('orders.placed');
is(scalar @messages, 4, 'what committed, and nothing else');
my ($first, $tombstone, $empty, $binary) = @messages;
is($first->{payload}, '{"n": 1}', 'payload');
is($first->{key}, 'k', 'key');
is($first->{message_id}, 'my-id', 'message id');
is_deeply([ map { $_->[1] } grep { $_->[0] eq 'colour' } @{ $first->{headers} } ], [ 'blue', 'red' ], 'a repeated header');
is_deeply([ map { $first->{header}{$_} } 'lines', 'blank', 'none' ], [ "a\nb%41", ' x ', '' ],
	'headers that NATS has no way for, escaped');
is((grep { $_->[0] =~ /^Gr/ } @{ $first->{headers} })[0][1], "x\ty", 'another one');
is($first->{header}{'content-type'}, 'application/json', 'content type');
cmp_ok(abs($first->{timestamp} / 1000 - time), '<', 60, 'publish time');
is($tombstone->{payload}, undef, 'a tombstone');
is_deeply([ @$empty{qw(payload key)} ], [ '', '' ], 'an empty payload and an empty key are no tombstone and no missing key');
is_deeply([ @$binary{qw(payload key)} ], [ "\x00\xff\r\n", " \n" ], 'any bytes');

# --- load and outages -----------------------------------------------------------------

$nats->purge('EVENTS');
my $load = $pg->ordered_load('orders.placed');
my $settle = sub {
	my ($what) = @_;
	my $before = $pg->sql("SELECT delivered FROM outbox.relay_status WHERE server = 'events'");
	ok($pg->wait_for("SELECT delivered > $before + 200 FROM outbox.relay_status WHERE server = 'events'"),
		"delivering after $what") or diag($pg->relay_status);
};

$settle->('the start');
$nats->kill_server;
ok($pg->wait_state('events', 'retrying'), 'a server that was killed is retried');
$nats->start_server;
$settle->('a kill');
$nats->stop_server;
ok($pg->wait_state('events', 'retrying'), 'a server that was stopped is retried');
$nats->start_server;
$settle->('a restart');
$nats->freeze;
$pg->wait_for(q{SELECT in_flight > 0 FROM outbox.relay_status});
$nats->thaw;
$settle->('a server that stood still');
# somebody else writes to the stream
$nats->publish('orders.other', "foreign $_") for 1 .. 200;
$settle->('messages of another client');
my $relay = $pg->relay_pid('events');
$pg->kill_process($relay);
ok($pg->new_relay('events', $relay), 'a new relay after one that was killed');
$pg->end_load($load);
ok($pg->flush, 'everything was delivered');
$pg->judge_ok($nats, ['orders.placed'], 'nothing lost, in order', duplicates => 1);

# --- a clean stop -----------------------------------------------------------------------------

$nats->purge('EVENTS');
$pg->sql('TRUNCATE judge.ledger');
$load = $pg->ordered_load('orders.placed');
$settle->('the purge');
$pg->sql("ALTER SERVER events OPTIONS (ADD replicas '1')");
$settle->('an ALTER SERVER');
$pg->restart;
$pg->end_load($load);
$pg->wait_for('SELECT true');
ok($pg->flush, 'everything was delivered');
$pg->judge_ok($nats, ['orders.placed'], 'no duplicates by a reload and a restart');

# --- what a relay that crashed had sent -----------------------------------------------------------

# The stream has the first and the third, as if their answers had been lost; the second one,
# large, has no room there.  The fourth follows the third, which is there, but must not pass
# the second.
$pg->sql('DROP SERVER events CASCADE');
$nats->stream('SENT', 'sent', discard => 'new', max_bytes => 20_000);
$pg->sql(<<'END');
SELECT outbox.publish('sent', 'one'::text, 'a', message_id => 'sent-1');
SELECT outbox.publish('sent', repeat('2', 30000), 'k', message_id => 'sent-2');
SELECT outbox.publish('sent', 'three'::text, 'a', message_id => 'sent-3');
SELECT outbox.publish('sent', 'four'::text, 'k', message_id => 'sent-4');
END
$nats->publish('sent', 'one', 'Nats-Msg-Id' => 'sent-1');
$nats->publish('sent', 'three', 'Nats-Msg-Id' => 'sent-3');
$pg->create_server_of('outbox_nats', 'sent', undef, url => $nats->url, stream => 'SENT', topics => 'sent', start => 'earliest');
ok($pg->wait_state('sent', 'blocked'), 'the stream has no room') or diag($pg->relay_status);
$nats->alter_stream('SENT', max_bytes => -1);
ok($pg->flush, 'delivered when it has') or diag($pg->relay_status);
is(join(' ', map { length $_->{payload} } $nats->consume('sent', stream => 'SENT')), '3 5 30000 4',
	'what follows a message that was stored before does not pass one that was refused');
$pg->sql('DROP SERVER sent CASCADE');
create_server('events', topics => 'orders.*');

# --- acknowledgements that were lost, and a duplicate window that is over -----------------------

$nats->alter_stream('EVENTS', duplicate_window => 100_000_000);
$nats->purge('EVENTS');
$pg->sql('TRUNCATE judge.ledger');
$load = $pg->ordered_load('orders.placed');
for (1 .. 5)
{
	$settle->("outage $_");
	$nats->kill_server;
	ok($pg->wait_state('events', 'retrying'), 'an outage');
	$nats->start_server;
}
$pg->end_load($load);
ok($pg->flush, 'everything was delivered');
$pg->judge_ok($nats, ['orders.placed'], 'nothing twice: what the stream has is looked up');

$pg->stop;
done_testing();
