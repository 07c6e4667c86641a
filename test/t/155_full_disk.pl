# The data disk is full, really: by the backlog itself, then by somebody else's file.
# Publishers get the error, the server lives, relay and keeper say what is wrong and go
# on by themselves; nothing is lost, and nothing is sent twice.  (pg_wal lies elsewhere:
# when that is full, PostgreSQL stops itself.)
use OutboxTest;

my $disk = $ENV{OUTBOX_SMALL_DISK};
plan skip_all => 'a small disk has to be mounted, which run-check does where root may'
  unless $disk && -w $disk;

my $kafka = OutboxKafka->shared;
my ($topic, $narrow) = map { unique_topic($_) } qw(full narrow);
my @small = (dbname => 'small');
my $place = "$disk/tablespace.$$";
my $filler = "$disk/filler.$$";
my $full = qr/53100.*No space left on device/s;
my $pg = OutboxTest->server('main', extension => 0, conf => <<END);
outbox.segment_size = 256kB
autovacuum = off
END

mkdir $place, 0700 or die "$place: $!\n";
END { local $?; unlink $filler if $filler; system('rm', '-rf', $place) if $place }

$pg->sql("CREATE TABLESPACE small LOCATION '$place'");
$pg->sql('CREATE DATABASE small TABLESPACE small');
$pg->sql('CREATE EXTENSION pg_outbox', @small);
$pg->judge_setup(@small);
$kafka->create_topic($topic, 2);
$kafka->create_topic($narrow, 1, 'max.message.bytes=20000');
$pg->create_server('events', $kafka, topics => "$topic, $narrow", @small);
$pg->sql("SELECT judge.publish_many('$topic', 100)", @small);
ok($pg->flush(@small), 'delivers');

# Publishes messages of that size until there is no room for another.
sub publish_until_full
{
	my ($size) = @_;
	my $load = $pg->load(clients => 4, seconds => 600, @small, script => <<END);
\\set k random(1, 20)
SELECT judge.publish_in_order('$topic', 'k' || :k, repeat('x', $size));
END
	ok($pg->wait_until(sub { !$load->running }), "published until the disk is full: $size bytes each");
	like($load->output, qr/No space left on device/, 'which is what publishers are told');
	$load->stop;
	return;
}

sub refused
{
	return $pg->sql_fails("\\set VERBOSITY verbose\nSELECT outbox.publish('$topic', repeat('x', 100000))",
		$full, 'a large message is refused', @small);
}

# --- by the backlog: delivery alone gives the space back -----------------------------------

# All of it lies in the lanes' current segments, which nobody has rotated, and there is no
# room for a new one.
$pg->append_conf('postgresql.conf', 'outbox.enabled = off');
$pg->reload;
$pg->wait_for(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg_outbox%' AND datname = 'small'},
	expect => 0) || die "workers do not stop\n";
publish_until_full($_) for 5000, 100;
refused();
is($pg->sql('SELECT 1'), 1, 'the server lives');
$pg->append_conf('postgresql.conf', 'outbox.enabled = on');
$pg->reload;
ok($pg->flush(@small), 'all of it is delivered');
$pg->wait_ok('SELECT sum(pg_relation_size(relid)) < 2500000 FROM outbox.segments', 'and the space comes back', @small);
$pg->sql("SELECT judge.publish_many('$topic', 1000)", @small);
ok($pg->flush(@small), 'publishers go on');
$pg->judge_ok($kafka, [$topic], 'nothing lost, all once and in order', @small);

# --- by somebody else's file, while the relay has dead letters to keep ----------------------

$pg->sql("SELECT outbox.pause('events')", @small);
$pg->sql(<<END, @small);
SELECT judge.publish_many('$topic', 500);
SELECT count(judge.publish('$narrow', (SELECT string_agg(md5(i::text || j), '') FROM generate_series(1, 1000) j), 'bad'))
	FROM generate_series(1, 20) i;
SELECT judge.publish_many('$topic', 500);
END
my $bad = $pg->sql('SELECT count(*) FROM judge.ledger WHERE key = \'bad\'', @small);
open my $f, '>', $filler or die "$filler: $!\n";
for my $size (65536, 4096)
{
	1 while (syswrite($f, 'x' x $size) // 0) > 0;
}
close $f;
refused();
$pg->sql("SELECT outbox.resume('events')", @small);
ok($pg->wait_state('events', 'error', @small), 'the relay is in error');
like($pg->sql('SELECT last_error FROM outbox.relay_status', @small), qr/No space left on device/, 'and says why');
my $pid = $pg->relay_pid('events', @small);
is($pg->sql("SELECT outbox.flush('1s')", @small), 'f', 'it does not pass what it can not keep');
unlink $filler;
ok($pg->flush(@small), 'with room again it goes on by itself');
is($pg->relay_pid('events', @small), $pid, 'the same relay');
ok($pg->wait_state('events', 'running', @small), 'it runs');
is($pg->sql('SELECT count(*) FROM outbox.dead_letter', @small), $bad, 'dead letters are kept');
$pg->judge_ok($kafka, [ $topic, $narrow ], 'nothing lost, all once and in order', @small,
	dead => '(SELECT array_agg(id) FROM outbox.dead_letter)');
unlike($pg->log_text, qr/PANIC|was terminated by signal/, 'nothing crashed');
like($pg->log_text, qr/could not rotate or free segments: could not extend file/, 'the keeper has said what was wrong');

$pg->stop;
done_testing();
