# Where the broker's library is: in the relay, never in a client backend.  And when
# it is nowhere: a state with a hint, and publishing goes on.
use OutboxTest;
use File::Basename qw(dirname);

my $kafka = OutboxKafka->shared;
my $topic = unique_topic('library');
$kafka->create_topic($topic, 2);

# an installation of its own, to take a file away from
my $prefix = PostgreSQL::Test::Utils::tempdir() . '/prefix';
my $support = dirname(__FILE__) . '/../support';
chomp(my $config = `$support/pgprefix.sh $ENV{PG_CONFIG} $prefix`);
chomp(my $libdir = `$config --pkglibdir`);
my $library = "$libdir/pg_outbox_kafka.so";
ok(-e $library, 'the library is in the copy');

my $pg = OutboxTest->server('main', install_path => dirname(dirname($config)));
$pg->judge_setup;

sub maps
{
	my ($pid) = @_;
	return PostgreSQL::Test::Utils::slurp_file("/proc/$pid/maps");
}

# --- missing ---------------------------------------------------------------------

rename $library, "$library.hidden" or die "$library: $!\n";
$pg->create_server('events', $kafka, topics => $topic);
ok($pg->wait_state('events', 'error', timeout => 30), 'a missing library is an error');
like($pg->sql('SELECT last_error FROM outbox.relay_status'), qr/pg_outbox_kafka/,
	'that names it');
isnt($pg->sql('SELECT hint FROM outbox.relay_status'), '', 'with a hint');
$pg->sql("SELECT judge.publish_in_order('$topic', 'k')") for 1 .. 3;
rename "$library.hidden", $library or die "$library: $!\n";
ok($pg->flush, 'it heals by itself when the library is back');
$pg->judge_ok($kafka, [$topic], 'nothing lost');

# --- who has it -------------------------------------------------------------------

my $session = $pg->session;
$session->query('SET client_min_messages = error');
$session->query_safe("SELECT judge.publish_in_order('$topic', 'k')");
$session->query_safe(q{CREATE SERVER other FOREIGN DATA WRAPPER outbox_kafka
	OPTIONS ("bootstrap.servers" '127.0.0.1:1', topics 'none')});
$session->query_safe(q{ALTER SERVER other OPTIONS (ADD "linger.ms" '5')});
$session->query_safe(q{CREATE USER MAPPING FOR PUBLIC SERVER other
	OPTIONS ("sasl.username" 'u', "sasl.password" 'p')});
$session->query_safe("SELECT outbox.publish_batch('$topic', ARRAY['a', 'b'])");
$session->query_safe(q{SELECT count(*) FROM outbox.message, outbox.relay_status});
$session->query_safe("SELECT outbox.pause('other'), outbox.resume('other')");
$session->query_safe("SELECT outbox.flush('1ms')");
$session->query_safe(q{DROP SERVER other CASCADE});
my $maps = maps($session->query_safe('SELECT pg_backend_pid()'));
like($maps, qr/pg_outbox_kafka_fdw\.so/, 'the backend has checked DDL');
unlike($maps, qr/librdkafka|pg_outbox_kafka\.so/, 'without any broker library');
$session->quit;
like(maps($pg->relay_pid('events')), qr/librdkafka/, 'the relay has it');
my $others = $pg->sql(q{SELECT string_agg(pid::text, ' ') FROM pg_stat_activity
	WHERE backend_type ~ 'pg_outbox' AND backend_type !~ 'relay'});
ok($others, 'launcher and keeper are there');
unlike(maps($_), qr/librdkafka/, "process $_ has not") for split / /, $others;

$pg->stop;
done_testing();
