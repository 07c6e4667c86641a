# The way in of the Kafka transport alone, without PostgreSQL: groups, places, gaps,
# topics that come later, rights.  A program says "ok - what" or "not ok - what" a line.
use OutboxTest;

my $kafka = OutboxKafka->start(auto_create => 'false', sasl => 1);
my $driver = "$ENV{OUTBOX_BUILD}/kafka_driver";
my $output = '';

IPC::Run::run([ $driver, 'source', $kafka->admin_bootstrap ], '<', \'', '>&', \$output);
my $status = $?;
for (split /\n/, $output)
{
	ok($1 eq 'ok', $2) if /^(ok|not ok) - (.*)/;
}
is($status, 0, 'the program ended well') or diag($output);

# --- without rights ---------------------------------------------------------------

$kafka->create_topic('secret', 1);
my $producer = IPC::Run::run([ $driver, 'fill', $kafka->admin_bootstrap, 10, 'secret' ],
	'<', \'', '>', \$output);
ok($producer, 'ten messages are there');
$kafka->deny('app', 'read', group => 'readers');
$kafka->deny('app', 'read', topic => 'secret');

my $seen = '';
my $reader = IPC::Run::start(
	[ $driver, 'watch-source', $kafka->bootstrap, 'secret', 'readers',
		'security.protocol=SASL_PLAINTEXT', 'sasl.mechanism=PLAIN', 'sasl.username=app',
		'sasl.password=app-secret' ],
	'<', \'', '>', \$seen);

sub says
{
	my ($line, $name) = @_;
	$reader->pump while $reader->pumpable && $seen !~ $line;
	return like($seen, $line, $name);
}

says(qr/GROUP_AUTHORIZATION_FAILED \| Grant this user Read on group "readers"\./,
	'a group that it may not read');
$kafka->undeny('app', 'read', group => 'readers');
says(qr/TOPIC_AUTHORIZATION_FAILED \| Grant this user Read and Describe on topic "secret"\./,
	'a topic that it may not read');
$kafka->undeny('app', 'read', topic => 'secret');
says(qr/^messages 10 failed 0$/m, 'and all is well when the rights are there');
ok($reader->finish, 'closed');
$kafka->stop;
done_testing();
