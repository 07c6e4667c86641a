# The relay to a broker beside a plain program of the same client library: how fast a
# backlog is drained, and how late a message is.
#
# What differs from broker to broker is an object: name, wrapper (of its servers),
# options(topic) (of a server for it, a hash), program (the plain one) and url (for it),
# messages (in a drain), p50 (ms to reach), and methods create(topic), count(topic),
# delete(topic) and stop.
package Bench::Brokers;
use strict;
use warnings;
use Bench::Relay;
use Bench::Report;
use Time::HiRes qw(time);

my $rate = 200;
my $unique = 0;

# A new topic's name.
sub create_topic
{
	my ($broker) = @_;
	my $topic = 'bench-' . ++$unique;
	$broker->create($topic);
	return $topic;
}

sub create_server
{
	my ($bench, $broker, $dbname, $topic, %options) = @_;
	my %all = (%{ $broker->options($topic) }, topics => $topic, %options);
	my $list = join ', ', map { "$_ '$all{$_}'" } sort keys %all;
	$bench->{pg}->sql($dbname, 'CREATE SERVER events FOREIGN DATA WRAPPER ' . $broker->wrapper . " OPTIONS ($list)");
	return;
}

sub drop_server
{
	my ($bench, $dbname) = @_;
	# the stored position may be a moment behind, of which it would warn
	$bench->{pg}->sql($dbname, 'SET client_min_messages = error; DROP SERVER events');
	$bench->{pg}->wait_for($dbname, "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'pg_outbox relay%'", 30);
	return;
}

sub check_count
{
	my ($broker, $topic, $n, $whose) = @_;
	my $arrived = $broker->count($topic);
	die "$n messages of $whose were acknowledged, but there are $arrived\n" if $arrived != $n;
	return;
}

# Seconds from CREATE SERVER until all is acknowledged, and of the relay's CPU.
sub drain_once
{
	my ($bench, $broker, $dbname, $n) = @_;
	my $pg = $bench->{pg};

	my $topic = create_topic($broker);
	Bench::Relay::publish_backlog($bench, $dbname, $topic, $n);
	$pg->sql($dbname, 'CHECKPOINT');
	$pg->open_session($dbname);
	my $start = time;
	create_server($bench, $broker, $dbname, $topic, start => 'earliest');
	my $pid = $pg->relay_pid($dbname, 'events');
	$pg->flush($dbname, 600);
	my $seconds = time - $start;
	my $cpu = $pg->cpu_seconds($pid);
	$pg->close_session($dbname);
	check_count($broker, $topic, $n, 'the relay');
	# freed before the next round, so that each reads its own messages only
	$pg->wait_for($dbname, 'SELECT sum(pg_relation_size(relid)) < 64 * 1024 * 1024 FROM outbox.segments', 60);
	drop_server($bench, $dbname);
	$broker->delete($topic);
	return ($seconds, $cpu);
}

sub plain_once
{
	my ($bench, $broker, $n) = @_;
	my $topic = create_topic($broker);
	my @result = split ' ', $bench->{pg}->run($broker->program, $broker->url, 'drain', $topic, $n, $bench->{payload_file});
	check_count($broker, $topic, $n, 'the plain program');
	$broker->delete($topic);
	return @result;
}

sub drain
{
	my ($bench, $broker, $dbname) = @_;
	my $n = $bench->{quick} ? 20_000 : $broker->messages;
	my $name = $broker->name;
	my (@ours, @plain, @cpu, @plain_cpu);

	# files and memory that the first run needs are there for the others
	plain_once($bench, $broker, $n / 4);
	for (1 .. ($bench->{quick} ? 1 : 5))
	{
		my ($seconds, $cpu) = drain_once($bench, $broker, $dbname, $n);
		push @ours, $n / $seconds;
		push @cpu, $cpu * 1_000_000 / $n;
		($seconds, $cpu) = plain_once($bench, $broker, $n);
		push @plain, $n / $seconds;
		push @plain_cpu, $cpu * 1_000_000 / $n;
	}
	result("drain of $n into $name, messages/s", ours => median(@ours), reference => median(@plain),
		value => ratios(\@ours, \@plain), at_least => 0.8);
	result('  seconds of CPU a million', ours => median(@cpu), reference => median(@plain_cpu),
		value => ratios(\@cpu, \@plain_cpu));
	return;
}

# p50 and p99 in ms of n messages that reach a consumer of the topic; ->() publishes them
# where the arguments don't have the plain program do it.
sub consume
{
	my ($broker, $topic, $n, $publish, @plain) = @_;
	my $program = $broker->program;

	open my $consumer, '-|', $program, $broker->url, @plain ? 'latency' : 'consume', $topic, $n, @plain
	  or die "$program: $!\n";
	<$consumer> or die "the consumer did not start\n";
	$publish->();
	my $result = <$consumer>;
	close $consumer or die "the consumer failed\n";
	return split ' ', $result;
}

sub latency
{
	my ($bench, $broker, $dbname) = @_;
	my $pg = $bench->{pg};
	my $n = $rate * ($bench->{quick} ? 3 : 15);
	my ($topic, $plain_topic) = map { create_topic($broker) } 1 .. 2;
	my $file = "$ENV{BENCH_HOME}/latency.sql";
	my (%ours, %plain);

	open my $script, '>', $file or die;
	print $script "SELECT outbox.publish('$topic', '$bench->{payload}'::jsonb, 'k' || (random() * 1000)::int);\n";
	close $script;
	create_server($bench, $broker, $dbname, $topic);
	$pg->wait_for($dbname, q{SELECT state = 'running' FROM outbox.relay_status}, 30);
	for (1 .. ($bench->{quick} ? 1 : 3))
	{
		my ($p50, $p99) = consume($broker, $topic, $n, sub {
			$pg->run("$pg->{bin}/pgbench", '-n', '-M', 'prepared', '-f', $file, '-c', 1, '-R', $rate, '-t', $n,
				$pg->conninfo($dbname));
		});
		push @{ $ours{p50} }, $p50;
		push @{ $ours{p99} }, $p99;
		($p50, $p99) = consume($broker, $plain_topic, $n, sub { }, $bench->{payload_file}, $rate);
		push @{ $plain{p50} }, $p50;
		push @{ $plain{p99} }, $p99;
	}
	$pg->flush($dbname, 60);
	drop_server($bench, $dbname);
	$broker->delete($_) for $topic, $plain_topic;
	for my $name ('p50', 'p99')
	{
		my $ms = median(@{ $ours{$name} });
		result("latency into " . $broker->name . " at $rate/s, $name, ms", ours => $ms,
			reference => median(@{ $plain{$name} }), value => $ms, $name eq 'p50' ? (at_most => $broker->p50) : ());
	}
	return;
}

sub relay
{
	my ($bench, $broker) = @_;
	my $dbname = 'bench_' . lc $broker->name;

	headline($broker->name . ': the relay beside a plain program of the same library, messages of 200 bytes');
	note('latency: from publish() to a consumer; reference: a plain publisher\'s, without PostgreSQL: the floor');
	Bench::Report::columns();
	$bench->{pg}->create_database($dbname);
	drain($bench, $broker, $dbname);
	latency($bench, $broker, $dbname);
	$bench->{pg}->drop_database($dbname);
	$broker->stop;
	return;
}

1;
