# A user signs up and gets one welcome e-mail, whatever dies in between; README.md tells of it.
#
# BROKER is kafka, nats or rabbitmq.  First the consumer in Go, then the handler in the
# database, which takes over from it.
use OutboxTest;
use OutboxKafka;
use File::Basename qw(dirname);
use File::Temp;
use PostgreSQL::Test::Utils ();

my $dir = dirname(__FILE__);
my $build = $ENV{OUTBOX_BUILD} || "$dir/../../build";
my $broker = $ENV{BROKER} || 'kafka';
my $topic = 'users.created';

if (!-x "$build/welcome_consumer" || !-x "$build/welcome_sink")
{
	plan skip_all => 'there is no go on this machine' unless grep { -x "$_/go" } split /:/, $ENV{PATH};
	plan skip_all => 'go did not build the programs: is it 1.22 or newer, and can their modules be had?';
}

# --- the broker: what CREATE SERVER is told, where the consumer finds it, and whether it
# --- keeps what has been consumed -----------------------------------------------------------

sub kafka
{
	my $kafka = OutboxKafka->start(auto_create => 'false');
	$kafka->create_topic($topic, 4);
	return ({ 'bootstrap.servers' => $kafka->bootstrap }, $kafka->bootstrap, keeps => 1, broker => $kafka);
}

sub nats
{
	require OutboxNats;
	plan skip_all => 'NATS is not on this machine' unless OutboxNats->available;
	my $nats = OutboxNats->start;
	$nats->stream('EVENTS', 'users.>');
	return ({ url => $nats->url, stream => 'EVENTS' }, $nats->url, keeps => 1, broker => $nats);
}

sub rabbitmq
{
	require OutboxRabbit;
	plan skip_all => 'RabbitMQ is not on this machine' unless OutboxRabbit->available;
	my $rabbit = OutboxRabbit->start;
	$rabbit->exchange('events', 'topic');
	$rabbit->create_topic('events', $topic);
	return ({ url => $rabbit->url, exchange => 'events' },
		'amqp://guest:guest@127.0.0.1:' . $rabbit->port . '/', keeps => 0, broker => $rabbit);
}

my %start = (kafka => \&kafka, nats => \&nats, rabbitmq => \&rabbitmq);
my $start = $start{$broker} or die "BROKER=$broker is not known\n";
my ($options, $url, %more) = $start->();
my $pg = OutboxTest->server('shop', conf => "outbox.poll_interval = 100ms\n");
$pg->sql(PostgreSQL::Test::Utils::slurp_file("$dir/$_.sql")) for qw(users mail);
$pg->create_server_of("outbox_$broker", 'events', undef, topics => 'users.*', %$options);

# --- the mail server ---------------------------------------------------------------------------

my $mail = File::Temp::tempdir('outbox-mail-XXXXXX', TMPDIR => 1, CLEANUP => 1);
my $address = '';
my $sink = IPC::Run::start([ "$build/welcome_sink", '-listen', '127.0.0.1:0', '-dir', $mail, '-busy', 4 ],
	'<', \'', '>', \$address);
$sink->pump until $address =~ /\n/;
chomp $address;

sub mail_file { return PostgreSQL::Test::Utils::slurp_file("$mail/$_[0].log") }

# how often an e-mail to that user was accepted by the server; how often it is in the mailbox
sub mails
{
	my ($log, $id) = @_;
	return scalar grep { !$id || /^<email\.welcome\.$id\@/ } split /\n/, mail_file($log);
}
sub accepted { return mails('accepted', @_) }
sub mailbox { return mails('mailbox', @_) }

# --- the users service ---------------------------------------------------------------------------

# their ids: a crash of PostgreSQL may leave some out
my @users;

# each request has a trace of its own
sub trace_of { return sprintf '%032x', 0xabc000 + $_[0] }

sub sign_up
{
	my ($n, $name) = @_;
	for my $request (@users + 1 .. @users + $n)
	{
		push @users, $pg->sql(sprintf "SELECT sign_up('User %d', '%s%d\@mail.example', '00-%s-%016x-01')",
			$request, $name || 'user', $request, trace_of($request), $request);
	}
	return;
}

# all e-mails are sent, as the database and the mailboxes know
sub sent_ok
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $n = @users;
	$pg->wait_ok("SELECT count(*) = $n AND count(DISTINCT user_id) = $n FROM welcome_emails", "$name: each was sent one, says the database");
	is(mailbox(), $n, "$name: each has one in the mailbox");
	return is(scalar(grep { mailbox($_) != 1 } @users), 0, "$name: and nobody two or none");
}

# --- the consumer in Go ---------------------------------------------------------------------------


sub start_consumer
{
	my (@arguments) = @_;
	local %ENV = (%ENV, BROKER => $broker, BROKER_URL => $url, SMTP => $address, PGHOST => $pg->host,
		PGPORT => $pg->port, PGDATABASE => 'postgres', PGUSER => (getpwuid($<))[0]);
	return IPC::Run::start([ "$build/welcome_consumer", @arguments ], '<', \'', '>>', "$mail/spans.log", '2>>', "$mail/errors.log");
}

sub kill_consumer
{
	my ($consumer) = @_;
	$consumer->signal('KILL');
	eval { $consumer->finish };
	return;
}

# A consumer with -crash ends itself.
sub wait_death
{
	my ($consumer) = @_;
	my $dead = $pg->wait_until(sub { eval { $consumer->pump_nb }; !$consumer->pumpable });
	kill_consumer($consumer) unless $dead;
	eval { $consumer->finish };
	return $dead;
}

note('a sign-up that is rolled back is no e-mail; a mail server that is busy is tried again');
my $consumer = start_consumer();
$pg->sql("BEGIN; SELECT sign_up('Nobody', 'nobody\@mail.example', '00-" . trace_of(0xfff) . "-0000000000000001-01'); ROLLBACK");
sign_up(10);
sign_up(2, 'busy');
sign_up(10);
sent_ok('in peace');
is(accepted(), scalar @users, 'and none was sent twice');
unlike(mail_file('accepted'), qr/nobody/, 'the one that was rolled back has none');
like(mail_file('errors'), qr/451 .*busy/, 'the consumer was refused, and has naked');

note('the trace of the sign-up goes on');
my ($trace, $parent) = (trace_of(3), sprintf '%016x', 3);
is($pg->sql("SELECT split_part(traceparent, '-', 2) FROM welcome_emails WHERE user_id = $users[2]"), $trace, 'in the database');
like(mail_file('spans'), qr/"Parent":\{"TraceID":"$trace","SpanID":"$parent"/, 'in a span that is a child of its span');
like(mail_file('accepted'), qr/^<email\.welcome\.$users[2]\@\S+\t\S+\t00-$trace-/m, 'in the e-mail');

note('killed again and again, wherever it is');
for (1 .. 10)
{
	my $before = accepted();
	sign_up(5);
	$pg->wait_until(sub { accepted() > $before });
	kill_consumer($consumer);
	$consumer = start_consumer();
}
sent_ok('killed ten times');
note(sprintf '%d e-mails were accepted twice by the mail server', accepted() - @users);
kill_consumer($consumer);

note('killed at each moment');
my %times = ('before-send' => 1, 'after-commit' => 1, 'after-send' => 2);
for my $moment (qw(before-send after-commit after-send))
{
	my $dying = start_consumer('-crash', $moment);
	sign_up(1);
	my $id = $users[-1];
	ok(wait_death($dying), "$moment: it dies");
	$consumer = start_consumer();
	sent_ok($moment);
	is(accepted($id), $times{$moment}, "$moment: accepted by the mail server so often");
	is(mailbox($id), 1, "$moment: one in the mailbox");
	kill_consumer($consumer);
}

note('told to stop');
$consumer = start_consumer();
sign_up(1);
sent_ok('before it stops');
$consumer->signal('TERM');
ok(wait_death($consumer), 'it ends by itself');
is($consumer->result(0), 0, 'and says that all is well');

# --- the handler in the database ---------------------------------------------------------------------

SKIP:
{
	skip 'no PL/Python in this PostgreSQL', 1
	  unless $pg->sql(q{SELECT count(*) FROM pg_available_extensions WHERE name = 'plpython3u'});
	my ($host, $port) = split /:/, $address;

	note('the handler takes over: what is sent is not sent again');
	my $before = accepted();
	$pg->sql('CREATE EXTENSION plpython3u');
	$pg->sql(PostgreSQL::Test::Utils::slurp_file("$dir/handler.sql"));
	my $start = $more{keeps} ? "start => 'earliest', " : '';
	$pg->sql("INSERT INTO mail_server VALUES ('$host', $port);
		SELECT inbox.subscribe('welcome', 'events', '$topic', 'welcome(inbox.message)',
			${start}batch_size => 1, backoff => '200 ms')");
	sign_up(5);
	sent_ok('taken over');
	is(accepted(), $before + 5, 'only the new ones');
	is($pg->sql("SELECT split_part(traceparent, '-', 2) FROM welcome_emails WHERE user_id = $users[-1]"), trace_of(scalar @users), 'with their trace');

	note('killed again and again: each time PostgreSQL restarts');
	for (1 .. 5)
	{
		my $pid = $pg->sql('SELECT pid FROM inbox.subscription_status');
		$before = accepted();
		sign_up(5);
		$pg->wait_until(sub { accepted() > $before });
		$pg->kill_process($pid);
		$pg->wait_for("SELECT pid <> $pid FROM inbox.subscription_status");
	}
	sent_ok('killed five times');

	note('at the one moment: accepted by the mail server, not committed');
	my $pid = $pg->sql('SELECT pid FROM inbox.subscription_status');
	ok($pg->set_fault('inbox-before-commit=wait'), 'a worker is to stop there');
	sign_up(1);
	ok($pg->wait_until(sub { accepted($users[-1]) == 1 }), 'it has sent the e-mail, and waits');
	$pg->kill_process($pid);
	$pg->wait_ok("SELECT pid <> $pid FROM inbox.subscription_status", 'it dies');
	ok($pg->set_fault(''), 'and the next one is not');
	sent_ok('before the commit');
	is(accepted($users[-1]) . ' ' . mailbox($users[-1]), '2 1', 'accepted twice, one in the mailbox');
	is($pg->sql('SELECT count(*) FROM inbox.dead_letter'), 0, 'no dead letters');
}

$sink->kill_kill(grace => 1);
$pg->stop;
$more{broker}->stop;
done_testing();
