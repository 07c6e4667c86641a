# Transactions of the Kafka transport that are aborted in bad moments, against a real
# broker behind a proxy that does what the program asks for.
use OutboxTest;

my $kafka = OutboxKafka->start(auto_create => 'false', sasl => 1, proxied => 1);
my ($in, $out, $seen) = ('', '', 0);

$kafka->start_proxy;
my $driver = IPC::Run::start(
	[ "$ENV{OUTBOX_BUILD}/kafka_driver", 'aborts', $kafka->admin_bootstrap,
		'bootstrap.servers=' . $kafka->bootstrap, 'security.protocol=SASL_PLAINTEXT',
		'sasl.mechanism=PLAIN', 'sasl.username=app', 'sasl.password=app-secret',
		# what was in flight waits that long before it is sent again
		'retry.backoff.ms=3000', 'reconnect.backoff.ms=10', 'reconnect.backoff.max.ms=10',
		# all of a batch in one request, however slow this machine is: few may be in flight
		'linger.ms=500' ],
	'<', \$in, '>', \$out);
while (1)
{
	my @lines = split /(?<=\n)/, $out;
	for (@lines[ $seen .. $#lines ])
	{
		last unless /\n\z/;
		$seen++;
		note($_);
		ok($1 eq 'ok', $2) if /^(ok|not ok) - (.*)/;
		next unless /^proxy (.*)/;
		$kafka->link_command(split / /, $1);
		$in .= "done\n";
	}
	last unless $driver->pumpable;
	$driver->pump;
}
ok($driver->finish, 'the program ended well');
$kafka->stop;
done_testing();
