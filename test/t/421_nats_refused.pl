# NATS JetStream: what can't be delivered waits, or becomes a dead letter, without harm to its
# neighbours; what a person has to mend is a state with a hint, and heals by itself.
use OutboxTest;
use OutboxNats;
use OutboxNkeys;

plan skip_all => 'NATS is not on this machine' unless OutboxNats->available;

# the seed is nobody's secret: it was made for this test
my ($seed, $nkey) = ('SUANS6RMY3VWJBWRV5MUQDRQ7HA5VDNYVEWTLSA7UQ2T2U2VVCFO6ZIVPM',
	'UD2EYUL6RDUB2TAVOBKJLU36DFDB47RAP7LFGL55DE2X7NTQ72TI5RXY');
my $nats = OutboxNats->start(tls => 1, users => 1);
my $pg = OutboxTest->server('main', conf => "outbox.max_message_size = 4MB\noutbox.poll_interval = 100ms\n");

$nats->stream('EVENTS', 'orders');
$pg->judge_setup;

sub create_server
{
	my ($name, %options) = @_;
	return $pg->create_server_of('outbox_nats', $name, undef,
		url => $nats->url, stream => 'EVENTS', %options);
}

sub status { my ($column) = @_; return $pg->sql("SELECT $column FROM outbox.relay_status WHERE server = 'events'") }
sub alter { my ($options) = @_; return $pg->sql("ALTER SERVER events OPTIONS ($options)") }
sub alter_user { my ($options) = @_; return $pg->sql("ALTER USER MAPPING FOR PUBLIC SERVER events OPTIONS ($options)") }

# --- who we are ---------------------------------------------------------------------------

create_server('events', topic_timeout => '-1');
$pg->sql("SELECT judge.publish_many('orders', 100)");
ok($pg->wait_state('events', 'error'), 'no credentials are a state');
like(status('hint'), qr/user mapping/, 'with a hint');
$pg->sql(q{CREATE USER MAPPING FOR PUBLIC SERVER events OPTIONS ("user" 'app', password 'wrong')});
ok($pg->wait_for(q{SELECT last_error ~ 'Authorization' FROM outbox.relay_status}), 'wrong ones are, too');
unlike(status('last_error'), qr/wrong/, 'without the password');
alter_user(q{SET password 'app-secret'});
ok($pg->wait_state('events', 'running'), 'mended at once');
ok($pg->flush, 'delivered');
$pg->judge_ok($nats, ['orders'], 'all of it');

# --- subjects that are not there -----------------------------------------------------------

$pg->sql("SELECT judge.publish_many('orders', 2000)");
$pg->sql("SELECT judge.publish_in_order('nowhere', 'k') FROM generate_series(1, 50)");
$pg->sql("SELECT judge.publish_many('orders', 2000)");
ok($pg->wait_for(q{SELECT delivered = 4100 FROM outbox.relay_status}), 'neighbours are delivered') or diag($pg->relay_status);
like(status('last_error'), qr/topic "nowhere".*no stream takes subject/, 'a subject that no stream has says so');
is(status('state'), 'running', 'the server runs');
$nats->alter_stream('EVENTS', subjects => [ 'orders', 'nowhere' ]);
ok($pg->flush, 'delivered as soon as it is there');
$pg->judge_ok($nats, [ 'orders', 'nowhere' ], 'all of it, once, in order');

alter(q{SET topic_timeout '2s'});
$nats->stream('OTHER', 'elsewhere');
$pg->sql("SELECT outbox.publish(t, 'a' || n, 'k') FROM generate_series(1, 20) n, unnest(ARRAY['lost', 'elsewhere']) t");
ok($pg->flush, 'given up after topic_timeout');
is($pg->sql("SELECT string_agg(topic || ' ' || n || ' ' || error, ', ' ORDER BY topic) FROM (SELECT topic, count(*) n, min(error) error "
	  . "FROM outbox.dead_letter GROUP BY topic) d"), 'elsewhere 20 JETSTREAM_10060, lost 20 NO_RESPONDERS',
	'dead letters with the reason, also of what another stream would take');
$nats->delete_stream('OTHER');
$nats->alter_stream('EVENTS', subjects => [ 'orders', 'nowhere', 'lost', 'elsewhere' ]);
$pg->sql("SELECT outbox.redrive('events')");
ok($pg->flush, 'redriven');
is($nats->count([ 'lost', 'elsewhere' ]), 40, 'delivered by a redrive');
# of a subject that went away while it was in use
alter(q{SET topic_timeout '-1'});
$nats->alter_stream('EVENTS', subjects => [ 'orders', 'lost' ]);
$pg->sql("SELECT judge.publish_in_order(t, 'k' || n % 3) FROM generate_series(1, 500) n, unnest(ARRAY['orders', 'nowhere']) t");
ok($pg->wait_for(q{SELECT in_flight = 0 AND lagging_topics = 1 FROM outbox.relay_status}), 'a subject that is taken away waits alone');
$nats->alter_stream('EVENTS', subjects => [ 'orders', 'nowhere', 'lost', 'full' ]);
ok($pg->flush, 'delivered');
$pg->judge_ok($nats, [ 'orders', 'nowhere' ], 'all of it, once, in order');

# --- permissions -----------------------------------------------------------------------------

$nats->allow(publish => { deny => ['nowhere'] });
$pg->sql("SELECT judge.publish_in_order(t, 'k' || n % 3) FROM generate_series(1, 500) n, unnest(ARRAY['orders', 'nowhere']) t");
ok($pg->wait_for(q{SELECT last_error ~ 'topic "nowhere".*Publish to' FROM outbox.relay_status}), 'a forbidden subject says so')
  or diag($pg->relay_status);
ok($pg->wait_for(q{SELECT in_flight = 0 AND lagging_topics = 1 FROM outbox.relay_status}), 'it waits alone');
$nats->allow;
ok($pg->flush, 'delivered once it is allowed');
$nats->allow(publish => { deny => ['$JS.API.>'] });
ok($pg->wait_state('events', 'error'), 'without the API of JetStream: a state');
like(status('hint'), qr/STREAM\.INFO/, 'with a hint');
$nats->allow;
$pg->judge_ok($nats, [ 'orders', 'nowhere' ], 'all of it, once, in order');

# --- a stream that is full --------------------------------------------------------------------

$nats->purge('EVENTS');
$pg->sql('TRUNCATE judge.ledger');
$nats->alter_stream('EVENTS', max_msgs => 300, discard => 'new');
$pg->sql("SELECT judge.publish_in_order('orders', 'k' || n % 3) FROM generate_series(1, 500) n");
ok($pg->wait_state('events', 'blocked'), 'a full stream is a state') or diag($pg->relay_status);
like(status('last_error'), qr/maximum messages exceeded/, 'with the reason');
$nats->alter_stream('EVENTS', max_msgs => -1);
ok($pg->flush, 'all is delivered when there is room');
$pg->judge_ok($nats, ['orders'], 'once, in order');

# --- messages that are refused ------------------------------------------------------------------

$nats->alter_stream('EVENTS', max_msg_size => 20_000);
$pg->sql(<<END);
SELECT judge.publish_many('orders', 500);
SELECT outbox.publish('orders', repeat('x', 30000), 'big');
SELECT outbox.publish('orders', repeat('x', 2000000), 'big');
SELECT outbox.publish('orders', 'headers', 'big', jsonb_build_object('x', repeat('y', 70000)));
SELECT judge.publish_many('orders', 500);
END
ok($pg->flush, 'messages that are too large hold nothing up');
is($pg->sql(q{SELECT string_agg(error, ', ' ORDER BY id) FROM outbox.dead_letter}),
	'JETSTREAM_10054, MAX_PAYLOAD, JETSTREAM_10054', 'they are dead letters');
$pg->judge_ok($nats, ['orders'], 'their neighbours are delivered, each once');
$nats->alter_stream('EVENTS', max_msg_size => -1);
$pg->sql("SELECT outbox.redrive('events')");
ok($pg->flush, 'redriven');
is($pg->sql(q{SELECT string_agg(error, ', ' ORDER BY id) FROM outbox.dead_letter}),
	'MAX_PAYLOAD, JETSTREAM_10097', 'as far as the server takes them');

# --- the stream ----------------------------------------------------------------------------------

$pg->sql('TRUNCATE judge.ledger');
$nats->delete_stream('EVENTS');
$pg->sql("SELECT judge.publish_many('orders', 100)");
ok($pg->wait_state('events', 'error'), 'a missing stream is a state');
like(status('last_error'), qr/EVENTS.*stream not found/, 'that names it');
like(status('hint'), qr/create_stream/, 'with a hint');
$nats->stream('EVENTS', 'orders');
ok($pg->wait_state('events', 'running'), 'and heals when it is there');
ok($pg->flush, 'delivered');
$pg->judge_ok($nats, ['orders'], 'all of it');

alter(q{ADD topics '!made.*'});
$pg->sql(q{CREATE SERVER made FOREIGN DATA WRAPPER outbox_nats OPTIONS (url '} . $nats->url . q{', stream 'MADE', create_stream 'true',
	subject_prefix 'shop.', topics 'made.*, made.by.us, one, !made.not')});
$pg->sql(q{CREATE USER MAPPING FOR PUBLIC SERVER made OPTIONS ("user" 'app', password 'app-secret')});
ok($pg->wait_state('made', 'running'), 'a stream is made where create_stream says so');
$pg->sql("SELECT outbox.publish('made.a', 'x')");
ok($pg->flush, 'delivered');
is_deeply($nats->stream_info('MADE')->{config}{subjects}, [ 'shop.made.>', 'shop.one' ], 'of the subjects that are routed');
is($nats->count('shop.made.a', stream => 'MADE'), 1, 'with a prefix');
$pg->sql('DROP SERVER made CASCADE');

# --- nkeys, tokens ----------------------------------------------------------------------------------

alter_user(qq{DROP "user", DROP password, ADD nkey_seed '$seed'});
ok($pg->wait_state('events', 'error'), 'an nkey where the server has none');
$nats->reload(settings => '', users => 0);
$nats->reload(settings => "authorization { users: [ { nkey: $nkey } ] }\n");
ok($pg->wait_state('events', 'running'), 'an nkey that it knows') or diag($pg->relay_status);
$nats->reload(settings => "authorization { token: a-token }\n");
alter_user(q{DROP nkey_seed, ADD token 'a-token'});
ok($pg->wait_state('events', 'running'), 'a token') or diag($pg->relay_status);
$nats->reload(settings => '', users => 1);
alter_user(q{DROP token, ADD "user" 'app', ADD password 'app-secret'});

# --- TLS ------------------------------------------------------------------------------------------

$pg->sql('TRUNCATE judge.ledger');
$nats->purge('EVENTS');
alter(q{SET url '} . $nats->tls_url . q{', ADD tls_ca '} . $nats->certificate('other-ca') . q{'});
alter_user(q{DROP "user", DROP password});
ok($pg->wait_state('events', 'error'), 'an unknown authority is a state');
like(status('last_error'), qr/certificate/, 'that says so');
alter(q{SET tls_ca '} . $nats->certificate('ca') . q{'});
$pg->sql("SELECT judge.publish_many('orders', 5000)");
ok($pg->flush, 'delivered over TLS') or diag($pg->relay_status);
alter_user(q{ADD tls_certificate '} . $nats->certificate('client') . q{', ADD tls_key '} . $nats->certificate('client.key') . q{'});
$pg->sql("SELECT judge.publish_many('orders', 500)");
ok($pg->flush, 'and with a certificate of our own') or diag($pg->relay_status);
$pg->judge_ok($nats, ['orders'], 'all there');
alter(q{SET url '} . $nats->tls_url =~ s/127\.0\.0\.1/localhost/r . q{'});
ok($pg->wait_state('events', 'running'), 'the server by another name of its certificate');
alter(q{SET url '} . $nats->tls_url =~ s/127\.0\.0\.1/127.1/r . q{'});
ok($pg->wait_state('events', 'error'), 'a name that is not in the certificate') || diag($pg->relay_status);
alter(q{SET url '} . $nats->url =~ s/nats:/tls:/r . q{'});
ok($pg->wait_for(q{SELECT state = 'error' AND hint ~ 'nats://host' FROM outbox.relay_status}), 'a server without TLS');
alter(q{SET url '} . $nats->tls_url =~ s/tls:/nats:/r . q{'});
ok($pg->wait_state('events', 'running'), 'one with TLS is spoken to by TLS in any case');
unlike($pg->log_text, qr/app-secret|PRIVATE KEY|$seed|a-token/, 'no secret in the log');

# --- credentials: a server whose users an operator's accounts sign for ----------------------------------

my ($settings, $account) = OutboxNkeys->accounts(1);
my ($user, $other) = map { OutboxNkeys->new('user') } 1, 2;
my $signed = OutboxNats->start(settings => $settings);
my $credentials = $account->credentials($user);

create_server('signed', url => $signed->url, create_stream => 'true', topics => 'signed', topic_timeout => '-1');
$pg->sql(q{CREATE USER MAPPING FOR PUBLIC SERVER signed OPTIONS (credentials '} . $account->credentials($user, $other) . q{')});
$pg->sql("SELECT judge.publish_many('signed', 500)");
ok($pg->wait_for(q{SELECT state = 'error' AND last_error ~ 'Authorization' AND hint ~ 'credentials' FROM outbox.relay_status WHERE server = 'signed'}),
	'a seed that is not that of the signed user') or diag($pg->relay_status);
$pg->sql(qq{ALTER USER MAPPING FOR PUBLIC SERVER signed OPTIONS (SET credentials '$credentials')});
ok($pg->wait_state('signed', 'running'), 'credentials that are right') or diag($pg->relay_status);
ok($pg->wait_for(q{SELECT delivered = 500 FROM outbox.relay_status WHERE server = 'signed'}), 'delivered');
$pg->sql(<<END);
CREATE TABLE effect (payload bytea);
CREATE FUNCTION note(m inbox.message) RETURNS void LANGUAGE sql AS 'INSERT INTO public.effect VALUES (m.payload)';
SELECT inbox.subscribe('signed', 'signed', 'signed', 'note(inbox.message)', start => 'earliest');
END
$pg->wait_ok('SELECT count(*) = 500 FROM effect', 'and consumed');
unlike($pg->log_text, qr/\Q@{[$_->seed]}\E/, 'no seed in the log') for $user, $other;
unlike($pg->log_text, qr/\Q@{[$credentials =~ m{(\.[^.\n]+)\n-}]}\E/, 'and no signature');

$pg->stop;
done_testing();
