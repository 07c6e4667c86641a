# What a DBA gets wrong or a broker withholds: password, certificate, access list,
# topic, broker.  Each has its own state and hint, no secret shows anywhere,
# publishers don't notice, and delivery heals by itself once the cause is gone.
use OutboxTest;

my $kafka = OutboxKafka->start(auto_create => 'false', sasl => 1, tls => 1);
my $pg = OutboxTest->server('main');
my %topic = map { $_ => unique_topic($_) } qw(login tls certified open hidden readonly missing late outage);
$kafka->create_topic($topic{$_}, 2) for qw(login tls certified open hidden readonly outage);
$pg->judge_setup;

sub status
{
	my ($server, $column) = @_;
	return $pg->sql("SELECT $column FROM outbox.relay_status WHERE server = '$server'");
}

# publishes so many of a topic, in order
sub publish
{
	my ($name, $n) = @_;
	return $pg->sql(join '', map { "SELECT judge.publish_in_order('$topic{$name}', 'k" .
			$_ % 3 . "');\n" } 1 .. $n);
}

# one transaction: a server without its credentials would be an error of its own
sub sasl_server
{
	my ($name, $password, $topics) = @_;
	my $bootstrap = $kafka->bootstrap;
	return $pg->sql(qq{BEGIN;
		CREATE SERVER "$name" FOREIGN DATA WRAPPER outbox_kafka OPTIONS (
			"bootstrap.servers" '$bootstrap', topics '$topics',
			"security.protocol" 'sasl_plaintext', "sasl.mechanism" 'PLAIN',
			"reconnect.backoff.max.ms" '200');
		CREATE USER MAPPING FOR PUBLIC SERVER "$name" OPTIONS (
			"sasl.username" 'app', "sasl.password" '$password');
		COMMIT});
}

# --- a wrong password ---------------------------------------------------------

sasl_server('login', 'w0nt-be-shown', $topic{login});
publish('login', 20);
ok($pg->wait_state('login', 'error'), 'a wrong password is an error');
like(status('login', 'last_error'), qr/authentication/i, 'it says so');
like(status('login', 'hint'), qr/sasl\.password of the user mapping/, 'with a hint');
is(status('login', 'delivered'), 0, 'nothing is delivered');
ok($pg->sql("SELECT outbox.flush('1ms')") eq 'f', 'flush knows it');

# what others see of it while it lasts
unlike($pg->relay_status, qr/w0nt-be-shown/, 'no secret in relay_status');
is($pg->sql("SELECT count(*) FROM pg_stat_activity
	WHERE backend_type <> 'client backend' AND query LIKE '%w0nt-be' || '-shown%'"), 0,
	'no secret in pg_stat_activity of workers');

$pg->sql(q{ALTER USER MAPPING FOR PUBLIC SERVER login
	OPTIONS (SET "sasl.password" 'app-secret')});
ok($pg->flush, 'the right one is enough');
is(status('login', 'state'), 'running', 'and the relay runs');
$pg->judge_ok($kafka, [ $topic{login} ], 'delivered by SASL PLAIN');

# --- secrets in statements that fail -------------------------------------------------

$pg->sql_fails(q{CREATE USER MAPPING FOR CURRENT_USER SERVER login
	OPTIONS ("sasl.password" 's3cret-1', nonsense 's3cret-2')},
	qr/invalid option "nonsense"/, 'an unknown option of a user mapping');
$pg->sql_fails(q{CREATE USER MAPPING FOR CURRENT_USER SERVER login
	OPTIONS ("ssl.key.pem" 's3cret-3')},
	qr/invalid value for option "ssl.key.pem"/, 'a bad value');
$pg->sql_fails(q{ALTER SERVER login OPTIONS (ADD "sasl.password" 's3cret-4')},
	qr/sasl\.password/, 'a secret in a server');
$pg->sql_fails(q{ALTER SERVER login OPTIONS (ADD extra 'sasl.password=s3cret-5')},
	qr/sasl\.password/, 'a secret in extra');
$pg->sql_fails(q{ALTER SERVER login OPTIONS (ADD "sasl_password" 's3cret-6')},
	qr/invalid option/, 'a secret under a wrong name');
$pg->sql_fails(q{DO $$ BEGIN EXECUTE $q$CREATE USER MAPPING FOR CURRENT_USER SERVER login
	OPTIONS ("sasl.password" 's3cret-7', nonsense 'x')$q$; END $$},
	qr/invalid option/, 'in a function');
like($pg->log_text, qr/invalid option "nonsense"/, 'the errors are in the log');
unlike($pg->log_text, qr/s3cret|w0nt-be-shown|app-secret/, 'the secrets are not');

# --- TLS -----------------------------------------------------------------------

my ($ca, $other_ca) = map { $kafka->certificate($_) } qw(ca other-ca);
$pg->create_server('tls', $kafka->tls_bootstrap, topics => $topic{tls},
	'security.protocol' => 'ssl', 'ssl.ca.pem' => $other_ca,
	'reconnect.backoff.max.ms' => 200);
publish('tls', 20);
ok($pg->wait_state('tls', 'error'), 'a certificate of another CA is an error');
like(status('tls', 'last_error'), qr/ssl|certificate/i, 'it says so');
like(status('tls', 'hint'), qr/certificate/, 'with a hint');
$pg->sql(qq{ALTER SERVER tls OPTIONS (SET "ssl.ca.pem" '$ca')});
ok($pg->flush, 'the right CA is enough');
$pg->judge_ok($kafka, [ $topic{tls} ], 'delivered by TLS');

# the broker knows a client by its certificate
my ($client, $client_key) = map { $kafka->certificate($_) } qw(client client.key);
$kafka->deny('CN=client', 'all', topic => $topic{certified});
$pg->create_server('certified', $kafka->tls_bootstrap, topics => $topic{certified},
	'security.protocol' => 'ssl', 'ssl.ca.pem' => $ca, 'ssl.certificate.pem' => $client);
$pg->sql(qq{CREATE USER MAPPING FOR PUBLIC SERVER certified OPTIONS ("ssl.key.pem" '$client_key')});
publish('certified', 20);
$pg->wait_ok("SELECT last_error LIKE '%authorization%' FROM outbox.relay_status WHERE server = 'certified'",
	'a client with a certificate is that user, who may not');
is(status('certified', 'delivered'), 0, 'nothing is delivered');
$kafka->undeny('CN=client', 'all', topic => $topic{certified});
ok($pg->flush, 'who may then');
$pg->judge_ok($kafka, [ $topic{certified} ], 'delivered by TLS with a certificate');
my ($line) = $client_key =~ /\n(\S{40})/;
unlike($pg->relay_status . $pg->log_text, qr/\Q$line\E/, 'the key is shown nowhere');

# --- topics that are forbidden or missing ------------------------------------------

sasl_server('events', 'app-secret', join(', ', @topic{qw(open hidden readonly missing late)}));
$kafka->deny('app', 'all', topic => $topic{hidden});
$kafka->allow('app', 'describe', topic => $topic{readonly});
for (1 .. 5)
{
	publish($_, 10) for qw(hidden open missing readonly);
}
ok($pg->wait_until(sub { $kafka->count($topic{open}) >= 50 }),
	'others go on beside forbidden and missing topics');
ok($pg->sql("SELECT outbox.flush('1ms')") eq 'f', 'their own messages wait');
# the last error is one of theirs: which, changes with each attempt
my $one_of_them = join '|', map { quotemeta } @topic{qw(hidden missing readonly)};
$pg->wait_ok("SELECT last_error ~ '$one_of_them' FROM outbox.relay_status WHERE server = 'events'",
	'last_error names a topic');
ok($pg->wait_until(sub { $pg->log_text =~ /server "events": topic "\Q$topic{$_}\E": / }), "the log names it ($_)")
  for qw(hidden missing readonly);
$pg->judge_ok($kafka, [ $topic{open} ], 'the others: once and in order');

$kafka->create_topic($topic{missing}, 2);
$kafka->undeny('app', 'all', topic => $topic{hidden});
$kafka->allow('app', 'write', topic => $topic{readonly});
publish($_, 10) for qw(hidden open missing readonly);
ok($pg->flush, 'all heal without a hand on the server');
$pg->judge_ok($kafka, [ @topic{qw(open hidden missing)} ], 'once and in order');
# a refusal to write costs the client its life
$pg->judge_ok($kafka, [ $topic{readonly} ], 'in order', duplicates => 1);
is($pg->sql('SELECT count(*) FROM outbox.dead_letter'), 0, 'no dead letters');

# a topic that does not come is given up
$pg->sql(q{ALTER SERVER events OPTIONS (ADD topic_timeout '1s')});
publish('late', 5);
ok($pg->flush, 'a topic that does not come is not waited for longer than that');
is($pg->sql("SELECT count(*) || ' ' || min(error) FROM outbox.dead_letter
	WHERE topic = '$topic{late}'"), '5 UNKNOWN_TOPIC_OR_PART', 'its messages are dead letters');

# --- no broker -----------------------------------------------------------------------

$kafka->stop_broker;
$pg->sql('DROP SERVER login CASCADE; DROP SERVER tls CASCADE');
sasl_server('outage', 'app-secret', $topic{outage});
ok($pg->wait_state('outage', 'retrying'), 'an unreachable broker is waited for');
ok($pg->wait_state('events', 'retrying'), 'and one that went away');
like(status('outage', 'hint'), qr/bootstrap\.servers/, 'with a hint');
my $load = $pg->load(clients => 4, transactions => 50, script =>
	"\\set k random(1, 5)\nSELECT judge.publish_in_order('$topic{outage}', 'k' || :k);");
ok($load->finish, 'publishers never notice');
my $pid = $pg->relay_pid('outage');
$kafka->start_broker;
ok($pg->flush, 'it heals by itself');
is($pg->relay_pid('outage'), $pid, 'in the same worker');
$pg->judge_ok($kafka, [ $topic{outage} ], 'once and in order');
unlike($pg->log_text, qr/s3cret|w0nt-be-shown|app-secret/, 'no secret in the log up to here');
unlike($pg->relay_status, qr/s3cret|w0nt-be-shown|app-secret/, 'nor in relay_status');

$pg->stop;
$kafka->stop;
done_testing();
