# A topic whose broker takes it slowly, but steadily, does not hold up others: there is
# always something that is answered, and still room for theirs must be made.
use OutboxTest;

my $kafka = OutboxKafka->start(brokers => 2, auto_create => 'false', sasl => 1, proxied => 1);
my $run = unique_topic('slow');
my $pg = OutboxTest->server('main');
my %on;

$kafka->start_proxy;
for (my $n = 0; keys %on < 2 && $n < 40; $n++)
{
	$kafka->create_topic("$run.$n", 1, 1);
	$on{ $kafka->leader("$run.$n") } ||= "$run.$n";
}
my ($slow, $other) = @on{ 1, 2 };
ok($slow && $other, 'each broker has a topic of its own');
$pg->judge_setup;
$pg->sql(<<END);
BEGIN;
CREATE SERVER events FOREIGN DATA WRAPPER outbox_kafka OPTIONS ("bootstrap.servers" '${\$kafka->bootstrap}',
	"security.protocol" 'sasl_plaintext', "sasl.mechanism" 'PLAIN', "batch.num.messages" '10', topics '$run.*');
CREATE USER MAPPING FOR PUBLIC SERVER events OPTIONS ("sasl.username" 'app', "sasl.password" 'app-secret');
COMMIT;
SELECT judge.publish_many(topic, 10) FROM unnest(ARRAY['$slow', '$other']) topic;
END
ok($pg->flush, 'both work');

# 8 MB at half of one a second; together, so that only the relay's time counts
$kafka->link_command(1, 'slow', 500_000);
$pg->sql(<<END);
BEGIN;
SELECT judge.publish_many('$slow', 20000, 50, 300);
SELECT judge.publish_many('$other', 1000, 50, 300);
COMMIT;
END
ok($pg->wait_until(sub { $kafka->count($other) == 1010 }), 'the other topic is delivered');
my $count = $kafka->count($slow);
cmp_ok($count, '<', 10_000, 'long before the slow one');
cmp_ok($count, '>', 10, 'which goes on, too');
$kafka->link_command(1, 'pass');
ok($pg->flush, 'delivered');
$pg->judge_ok($kafka, [ $slow, $other ], 'all once and in order');

$pg->stop;
done_testing();
