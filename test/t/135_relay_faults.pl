# The relay dies, or fails, between each two steps of its work: nothing is lost, keys
# stay in order, and a failure that lasts is not retried without a pause.
use OutboxTest;

my $kafka = OutboxKafka->shared;
my $topic = unique_topic('fault');
my $pg = OutboxTest->server('main');

$kafka->create_topic($topic, 2, 'max.message.bytes=20000');
$pg->judge_setup;
$pg->create_server('events', $kafka, topics => $topic);
ok($pg->flush, 'runs');

sub set_fault
{
	my ($fault) = @_;
	$pg->append_conf('postgresql.conf', "outbox.fault = '$fault'");
	$pg->reload;
	return;
}

sub count_log { my ($pattern) = @_; my $n = () = $pg->log_text =~ /$pattern/g; return $n }

# A dead letter among the others, so that all steps are taken.
sub publish
{
	return $pg->wait_for(<<END, expect => qr/1/);
BEGIN;
SELECT judge.publish_many('$topic', 500, 20);
SELECT judge.publish('$topic', repeat('x', 30000), 'k3');
SELECT judge.publish_many('$topic', 500, 20);
SELECT 1;
COMMIT;
END
}

for my $point (qw(relay-after-send relay-before-position relay-after-position dead-letter-committed))
{
	my $deaths = count_log(qr/was terminated by signal 9/);
	publish();
	set_fault("$point=crash");
	publish();
	ok($pg->wait_until(sub { count_log(qr/was terminated by signal 9/) > $deaths }), "crash at $point");
	set_fault('');
	$pg->wait_ok(q{SELECT outbox.flush('1s')}, 'delivered after it');
}
my $dead = '(SELECT array_agg(id) FROM outbox.dead_letter)';
my %verdict = $pg->judge_ok($kafka, [$topic], 'nothing lost, in order', duplicates => 1, dead => $dead);
is($pg->sql('SELECT count(*) FROM outbox.dead_letter'),
	$pg->sql(q{SELECT count(*) FROM judge.ledger WHERE payload_md5 = md5(repeat('x', 30000))}),
	'one dead letter for each bad message');
is($pg->sql('SELECT count(*) FROM outbox.dead_letter WHERE id NOT IN (SELECT id FROM judge.ledger)'), 0,
	'and none for others');

# A failure that lasts: shown, retried once a second, whatever publishers do.
set_fault('relay-before-position=error');
my $load = $pg->load(clients => 2, seconds => 4, script => <<END);
\\set k random(1, 20)
SELECT judge.publish_in_order('$topic', 'k' || :k);
END
ok($pg->wait_state('events', 'error'), 'state is error');
ok($load->finish, 'publishers never noticed');
my $failures = count_log(qr/fault point "relay-before-position"/);
cmp_ok($failures, '<=', 8, "retried with pauses: $failures times");
like($pg->sql('SELECT last_error FROM outbox.relay_status'), qr/fault point/, 'last_error tells');
set_fault('');
ok($pg->flush, 'delivered');
ok($pg->wait_state('events', 'running'), 'state is running');
my %after = $pg->judge_ok($kafka, [$topic], 'nothing lost, in order', duplicates => 1, dead => $dead);
is($after{duplicated}, $verdict{duplicated}, 'and nothing sent twice by that');

$pg->stop;
done_testing();
