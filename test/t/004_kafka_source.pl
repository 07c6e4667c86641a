# The way in of the Kafka transport alone, without PostgreSQL: groups, places, gaps,
# topics that come later.  A program says "ok - what" or "not ok - what" a line.
use OutboxTest;

my $kafka = OutboxKafka->start(auto_create => 'false');
my $output = '';

IPC::Run::run([ "$ENV{OUTBOX_BUILD}/kafka_driver", 'source', $kafka->bootstrap ],
	'<', \'', '>&', \$output);
my $status = $?;
for (split /\n/, $output)
{
	ok($1 eq 'ok', $2) if /^(ok|not ok) - (.*)/;
}
is($status, 0, 'the program ended well') or diag($output);
$kafka->stop;
done_testing();
