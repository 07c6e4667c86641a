# Topics come into being, settings change, the relay and the server stop and
# start, at random moments under load; nothing is killed.  So nothing may be lost,
# reordered or duplicated.  CHAOS_SEED=n repeats a run's choices, CHAOS_SECONDS=n
# makes it longer.
use OutboxTest;
use Time::HiRes qw(time);

my $seed = $ENV{CHAOS_SEED} || int(time);
my $seconds = $ENV{CHAOS_SECONDS} || 60;
srand $seed;
note "CHAOS_SEED=$seed";

my $kafka = OutboxKafka->start(auto_create => 'false');
my $pg = OutboxTest->server('main', conf => "outbox.segment_size = 256kB\noutbox.relay_memory = 1MB");
my @topics = map { "chaos.$_" } 0 .. 7;
my @missing = @topics[2 .. 7];

$kafka->create_topic($_, 3) for @topics[0, 1];
$pg->judge_setup;
$pg->create_server('events', $kafka, topics => 'chaos.*', topic_timeout => '-1');

my $script = <<'END';
\set t random(0, 7)
\set k random(1, 20)
\set big random(1, 10)
SELECT judge.publish_in_order('chaos.' || :t, 'k' || :k, repeat('x', CASE WHEN :big = 1 THEN 20000 ELSE 200 END));
END

my ($linger, $altered) = (0, 0);
my %actions = (
	create => sub {
		my $topic = shift @missing or return;
		$kafka->create_topic($topic, 3);
	},
	alter => sub {
		$linger = ($linger + 1) % 5;
		$pg->sql("ALTER SERVER events OPTIONS (" . ($altered++ == 0 ? 'ADD' : 'SET')
			  . " \"linger.ms\" '$linger')");
	},
	pause => sub { $pg->sql("SELECT outbox.pause('events')") },
	resume => sub { $pg->sql("SELECT outbox.resume('events')") },
	terminate => sub {
		my $pid = $pg->relay_pid('events');
		$pg->kill_process($pid, 'TERM') if $pid;
	},
	disable => sub {
		$pg->append_conf('postgresql.conf', 'outbox.enabled = off');
		$pg->reload;
	},
	enable => sub {
		$pg->append_conf('postgresql.conf', 'outbox.enabled = on');
		$pg->reload;
	},
	vacuum => sub { $pg->sql('VACUUM FULL') });
my @names = sort keys %actions;

my $end = time + $seconds;
my @log;
while (time < $end)
{
	my $load = $pg->load(clients => 6, script => $script, seconds => 4);
	my $until = time + 4;
	while (time < $until)
	{
		my $name = $names[ int rand @names ];
		push @log, $name;
		$actions{$name}->();
		# let something happen in between: as many commits
		my $n = 100 + int rand 1500;
		my $at = $pg->sql('SELECT last_value FROM judge.ledger_n');
		$pg->wait_for("SELECT last_value >= $at + $n FROM judge.ledger_n", timeout => 2, quiet => 1)
		  if time < $until - 1;
	}
	ok($load->finish, 'publishers never noticed');
	$pg->restart if rand() < 0.3;
}
note join ' ', @log;
$actions{create}->() while @missing;
$actions{enable}->();
$actions{resume}->();
ok($pg->flush, 'everything was delivered');
$pg->judge_ok($kafka, \@topics, 'nothing lost, nothing twice, in order', payload => 'none');
$pg->wait_ok(q{SELECT lagging_topics = 0 FROM outbox.relay_status}, 'all topics rejoined');
$pg->stop;
$kafka->stop;
done_testing();
