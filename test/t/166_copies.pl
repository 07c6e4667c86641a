# Copies of a database with a server that delivers exactly once: a physical one beside the
# original, one made from it as a template, a restored dump.  Who is silent stays silent,
# who is told to send sends its own, and neither disturbs the original.
use OutboxTest;
use PostgreSQL::Test::Utils ();

my $kafka = OutboxKafka->shared;
my ($topic, $theirs) = map { unique_topic($_) } qw(original copy);
my $workers = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg\_outbox%'};
my $pg = OutboxTest->server('original', init => { allows_streaming => 1 },
	conf => "outbox.segment_size = 512kB\nwal_keep_size = 1GB");
my ($host, $port) = ($pg->host, $pg->port);

$kafka->create_topic($_, 4) for $topic, $theirs;
$pg->sql('CREATE DATABASE shop');
$pg->sql('CREATE EXTENSION pg_outbox', dbname => 'shop');
$pg->judge_setup(dbname => 'shop');
$pg->create_server('shop', $kafka, topics => "$topic, $theirs", exactly_once => 'true', dbname => 'shop');

sub publish
{
	my ($node, $topic, $n, $dbname) = @_;
	return $node->sql("SELECT judge.publish_many('$topic', $n)", dbname => $dbname || 'shop');
}

# What the copy publishes is its own; the ledger's numbers don't meet the original's.
sub own_ledger
{
	my ($node, $dbname) = @_;
	return $node->sql("TRUNCATE judge.ledger; SELECT setval('judge.ledger_n', nextval('judge.ledger_n') + 1000000)",
		dbname => $dbname || 'shop');
}

sub once
{
	my ($node, $topic, $name, $dbname) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $node->judge_ok($kafka, [$topic], $name, committed => 1, dbname => $dbname || 'shop');
}

publish($pg, $topic, 1000);
ok($pg->flush(dbname => 'shop'), 'the original delivers');

# --- a template ------------------------------------------------------------------------------
$pg->sql('CREATE DATABASE copy TEMPLATE shop');
own_ledger($pg, 'copy');
publish($pg, $theirs, 300, 'copy');
ok($pg->wait_state('shop', 'error', dbname => 'copy'), "a copy's server is in error");
publish($pg, $topic, 300);
ok($pg->flush(dbname => 'shop'), 'the original goes on');
is($kafka->count($theirs), 0, 'nothing of the copy');
$pg->sql("SELECT outbox.adopt('shop')", dbname => 'copy');
ok($pg->flush(dbname => 'copy'), 'adopted, it delivers');
my $load = $pg->load(clients => 2, transactions => 100, dbname => 'copy', script => "SELECT judge.publish_many('$theirs', 3);");
publish($pg, $topic, 300) for 1 .. 5;
ok($load->finish, 'both publish');
ok($pg->flush(dbname => $_), 'both deliver') for qw(shop copy);
once($pg, $topic, 'the original: each once');
once($pg, $theirs, 'the copy: its own, each once', 'copy');
is($pg->sql('SELECT state FROM outbox.relay_status', dbname => $_), 'running', 'nobody is fenced') for qw(shop copy);

# --- a dump, by one who may not see secrets ------------------------------------------------------
$pg->sql(<<END, dbname => 'shop');
CREATE USER MAPPING FOR PUBLIC SERVER shop OPTIONS ("sasl.password" 'top-secret');
CREATE ROLE clerk LOGIN;
GRANT pg_read_all_data, pg_monitor, outbox_admin TO clerk;
END
is($pg->sql(q{SET ROLE clerk; SELECT count(*), count(umoptions) FROM pg_user_mappings WHERE srvname = 'shop'}, dbname => 'shop'),
	'1|0', 'an admin of the outbox sees that there is a mapping, not what is in it');
my $dir = PostgreSQL::Test::Utils::tempdir();
for my $user (undef, 'clerk')
{
	my $file = "$dir/" . ($user || 'all') . '.sql';
	$pg->command_ok([ 'pg_dump', '-h', $host, '-p', $port, $user ? ('-U', $user, '--exclude-schema=judge') : (), '-f', $file, 'shop' ],
		'dumped by ' . ($user || 'a superuser'));
	my $dump = PostgreSQL::Test::Utils::slurp_file($file);
	like($dump, qr/CREATE SERVER shop FOREIGN DATA WRAPPER outbox_kafka OPTIONS \(.*exactly_once 'true'/s, 'with the server');
	($user ? \&unlike : \&like)->($dump, qr/top-secret/, $user ? 'without secrets' : 'with secrets');
}
$pg->sql('DROP USER MAPPING FOR PUBLIC SERVER shop', dbname => 'shop');

# --- and restored beside the original -------------------------------------------------------------
$pg->sql('CREATE DATABASE restored TEMPLATE template0');
$pg->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-h', $host, '-p', $port, '-o', '/dev/null', '-f', "$dir/all.sql", 'restored' ],
	'restored');
$pg->sql('DROP USER MAPPING FOR PUBLIC SERVER shop', dbname => 'restored');
ok($pg->wait_state('shop', 'error', dbname => 'restored'), 'the restored server is in error');
is($pg->sql(q{SELECT option_value FROM pg_foreign_server, pg_options_to_table(srvoptions) WHERE option_name = 'home'}, dbname => 'restored'),
	$pg->sql('SELECT log_uuid FROM outbox.log_identity', dbname => 'shop'), 'as it is at home elsewhere');
own_ledger($pg, 'restored');
my $second = unique_topic('restored');
$kafka->create_topic($second, 4);
$pg->sql("ALTER SERVER shop OPTIONS (SET topics '$second')", dbname => 'restored');
publish($pg, $second, 100, 'restored');
publish($pg, $topic, 100);
ok($pg->flush(dbname => 'shop'), 'the original goes on');
is($kafka->count($second), 0, 'the restored one is silent');
$pg->sql("SELECT outbox.adopt('shop')", dbname => 'restored');
ok($pg->flush(dbname => 'restored'), 'adopted, it delivers');
$load = $pg->load(clients => 2, transactions => 100, dbname => 'restored', script => "SELECT judge.publish_many('$second', 3);");
publish($pg, $topic, 300) for 1 .. 5;
ok($load->finish, 'both publish');
ok($pg->flush(dbname => $_), 'both deliver') for qw(shop restored);
once($pg, $topic, 'the original: each once, nothing published again');
once($pg, $second, 'the restored one: each once', 'restored');
is($pg->sql('SELECT state FROM outbox.relay_status', dbname => $_), 'running', 'nobody is fenced') for qw(shop restored);
my @identities = map { $pg->sql('SELECT log_uuid FROM outbox.log_identity', dbname => $_) } qw(shop copy restored);
my %keys = map { $_->{key} => 1 } $kafka->consume('pg_outbox.position.shop', committed => 1);
is(scalar(grep { $keys{"pg_outbox.$_.shop"} } @identities), 3, 'three identities, side by side in one position topic');
$pg->sql("DROP DATABASE $_") for qw(copy restored);

# --- a physical copy, that is not to send --------------------------------------------------------
$pg->backup('base');
my $copy = OutboxTest->new('physical');
$copy->init_from_backup($pg, 'base');
$copy->append_conf('postgresql.conf', 'outbox.enabled = off');
$copy->start;
ok($copy->wait_state('shop', 'disabled', dbname => 'shop'), 'a physical copy, disabled');
own_ledger($copy);
my $before = $kafka->count($theirs);
publish($copy, $theirs, 200);
publish($pg, $topic, 500);
ok($pg->flush(dbname => 'shop'), 'the original goes on');
is($copy->sql($workers), 1, 'of workers the copy has the launcher only');
is($kafka->count($theirs), $before, 'and it sends nothing');
once($pg, $topic, 'the original: each once');

# By mistake it is switched on: one of the two stops, and neither fights.
$copy->append_conf('postgresql.conf', 'outbox.enabled = on');
$copy->reload;
ok($copy->flush(dbname => 'shop'), 'switched on, it takes over');
like($copy->log_text, qr/does not go on from its position at the broker: it (rests on WAL|names transactions|was written by a copy)/,
	'from its own position');
publish($pg, $topic, 1000);
ok($pg->wait_state('shop', 'fenced', dbname => 'shop'), 'the original is fenced');
my $since = $pg->sql('SELECT pid, last_error, last_error_at FROM outbox.relay_status', dbname => 'shop');
for my $round (1 .. 5)
{
	publish($_, $theirs, 10) for $pg, $copy;
	ok($copy->flush(dbname => 'shop'), "round $round: the copy delivers");
}
is($pg->sql('SELECT pid, last_error, last_error_at FROM outbox.relay_status', dbname => 'shop'), $since,
	'the original did not try again');
is($pg->sql('SELECT state FROM outbox.relay_status', dbname => 'shop'), 'fenced', 'and is still fenced');
is($copy->sql('SELECT state FROM outbox.relay_status', dbname => 'shop'), 'running', 'the copy runs');
$copy->stop;
# however far the original's WAL has come, and however often it has been started
$pg->sql("ALTER SYSTEM SET outbox.enabled = off");
$pg->restart;
publish($pg, $topic, 1000);
$pg->restart;
$pg->sql("ALTER SYSTEM RESET outbox.enabled");
$pg->reload;
$pg->sql("SELECT outbox.pause('shop')", dbname => 'shop');
$pg->sql("SELECT outbox.resume('shop')", dbname => 'shop');
ok($pg->flush(dbname => 'shop'), 'the copy is gone: the original goes on when told to');
my %verdict = $pg->judge($kafka, [$topic], committed => 1, dbname => 'shop');
is("$verdict{lost} $verdict{reordered} $verdict{duplicated}", '0 0 0', 'with nothing lost, though the copy has left a newer position at the broker');
like($pg->log_text, qr/does not go on from its position at the broker: it was written by a copy/, 'which is not believed');

$pg->stop;
done_testing();
