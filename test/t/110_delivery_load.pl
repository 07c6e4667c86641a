# Delivery under every kind of transaction at once: savepoints, rollbacks, prepared
# and long transactions, asynchronous commits.  Nothing is lost, nothing is sent that
# did not commit, keys stay in order, and nothing is sent twice.
use OutboxTest;

my $kafka = OutboxKafka->shared;
my $topic = unique_topic('load');
my $bulk = unique_topic('bulk');
my $pg = OutboxTest->server('main', conf => 'outbox.segment_size = 512kB');

$kafka->create_topic($_, 4) for $topic, $bulk;
$pg->judge_setup;
$pg->create_server('events', $kafka, topics => "$topic, $bulk");

# One transaction is open during everything, with messages before and after.
my $long = $pg->session;
$long->query_safe("BEGIN; SELECT judge.publish('$topic', 'first', 'long')");
my $prepared = $pg->session;
$prepared->query_safe("BEGIN; SELECT judge.publish('$topic', 'prepared', 'prepared');"
	  . " PREPARE TRANSACTION 'early'");

my @load = (
	$pg->load(clients => 4, seconds => 8, script => <<END),
\\set k random(1, 30)
SET synchronous_commit = off;
SELECT judge.publish_in_order('$topic', 'o' || :k);
END
	$pg->load(clients => 4, seconds => 8, script => <<END),
\\set k random(1, 20)
\\set undo random(0, 2)
BEGIN;
SELECT judge.publish('$topic', 'a', 's' || :k);
SAVEPOINT s;
SELECT judge.publish('$topic', 'never or later', 's' || :k);
\\if :undo
ROLLBACK TO s;
\\endif
SELECT judge.publish('$topic', 'b', 's' || :k);
\\if :undo = 2
ROLLBACK;
\\else
COMMIT;
\\endif
END
	$pg->load(clients => 2, seconds => 8, script => <<END),
\\set k random(1, 20)
\\set commit random(0, 1)
BEGIN;
SELECT judge.publish('$topic', 'p', 'p' || :k);
PREPARE TRANSACTION 'load:client_id';
\\if :commit
COMMIT PREPARED 'load:client_id';
\\else
ROLLBACK PREPARED 'load:client_id';
\\endif
END
	$pg->load(clients => 1, seconds => 8, script => <<END));
SELECT judge.publish_many('$bulk', 2000, 50);
END

$long->query_safe("SELECT judge.publish('$topic', 'second', 'long')");
ok($_->finish, 'publishers went through') for @load;
ok($pg->flush, 'delivered, while one transaction is still open and one is prepared');
$pg->sql("COMMIT PREPARED 'early'");
ok($pg->flush, 'the prepared one, too');
$long->query_safe("SELECT judge.publish('$topic', 'third', 'long'); COMMIT");
$long->quit;
$prepared->quit;
ok($pg->flush, 'the long one, too');

my %verdict = $pg->judge_ok($kafka, [ $topic, $bulk ], 'all once and in order');
cmp_ok($verdict{published}, '>', 5000, "there was something to do ($verdict{published})");
my @long = grep { ($_->{key} || '') eq 'long' } $kafka->consume($topic);
is(join(' ', map { $_->{payload} } @long), 'first second third',
	'a long transaction keeps its order');
my ($delivered, $dead) = split /\|/, $pg->sql('SELECT delivered, dead FROM outbox.relay_status');
is($delivered, $verdict{published}, 'relay_status counts them');
is($dead, 0, 'no dead letters');

$pg->stop;
done_testing();
