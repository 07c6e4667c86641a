# The relay to RabbitMQ, beside a plain rabbitmq-c producer with pipelined confirms.
package Bench::Rabbit;
use strict;
use warnings;
use lib "$ENV{BENCH_HOME}/tree/test/lib";
use Bench::Report;
use OutboxRabbit;
use Time::HiRes qw(time usleep);

my $program = "$ENV{OUTBOX_BUILD}/bench_rabbit_producer";

sub options
{
	my ($rabbit) = @_;
	return 'url ' . "'" . $rabbit->url . "', exchange 'bench'";
}

sub drain_once
{
	my ($bench, $rabbit, $dbname, $n) = @_;
	my $pg = $bench->{pg};

	$pg->sql($dbname, "SELECT count(outbox.publish('drain', '$bench->{payload}'::jsonb, 'key-' || 10000 + n % 10000))"
		  . " FROM generate_series(1, $n) n");
	$pg->sql($dbname, 'CHECKPOINT');
	my $start = time;
	$pg->sql($dbname, 'CREATE SERVER r FOREIGN DATA WRAPPER outbox_rabbitmq OPTIONS (' . options($rabbit) . ", start 'earliest')");
	$pg->flush($dbname, 600);
	my $seconds = time - $start;
	$pg->wait_for($dbname, 'SELECT sum(pg_relation_size(relid)) < 64 * 1024 * 1024 FROM outbox.segments', 60);
	$pg->sql($dbname, 'SET client_min_messages = error; DROP SERVER r');
	$rabbit->purge_queue('drain');
	return $seconds;
}

sub latency_once
{
	my ($bench, $rabbit, $dbname, $rate, $seconds) = @_;
	my $n = $rate * $seconds;

	open my $consumer, '-|', $program, '127.0.0.1', $rabbit->port, '', '', $n, '', 'latency', 0 or die "$program: $!\n";
	my $ready = <$consumer>;
	my $script = "$ENV{BENCH_HOME}/latency.sql";
	open my $f, '>', $script or die;
	print $f "SELECT outbox.publish('latency', '$bench->{payload}'::jsonb, 'k' || (random() * 1000)::int);\n";
	close $f;
	my $pg = $bench->{pg};
	$pg->run("$pg->{bin}/pgbench", '-n', '-M', 'prepared', '-f', $script, '-c', 1, '-R', $rate, '-t', $n, $pg->conninfo($dbname));
	my ($p50, $p99) = split ' ', <$consumer>;
	close $consumer;
	return ($p50, $p99);
}

sub relay
{
	my ($bench) = @_;
	my $n = $bench->{quick} ? 20_000 : 200_000;
	my $dbname = 'bench_rabbit';
	my (@ours, @plain, @p50, @p99);

	if (!OutboxRabbit->available)
	{
		note('RabbitMQ is not on this machine');
		return;
	}
	my $rabbit = OutboxRabbit->start;

	headline('RabbitMQ: drain of messages of 200 bytes into a durable queue, and latency at 200/s');
	Bench::Report::columns();
	$bench->{pg}->create_database($dbname);
	$rabbit->exchange('bench', 'topic');
	$rabbit->create_topic('bench', $_) for qw(drain latency);
	for my $round (1 .. ($bench->{quick} ? 1 : 5))
	{
		push @ours, $n / drain_once($bench, $rabbit, $dbname, $n);
		push @plain, $n / $bench->{pg}->run($program, '127.0.0.1', $rabbit->port, 'bench', 'drain', $n, $bench->{payload_file});
		$rabbit->purge_queue('drain');
	}
	result('drain into RabbitMQ, messages/s', ours => median(@ours), reference => median(@plain),
		value => ratios(\@ours, \@plain), at_least => 0.8);
	$bench->{pg}->sql($dbname, 'CREATE SERVER r FOREIGN DATA WRAPPER outbox_rabbitmq OPTIONS (' . options($rabbit) . ')');
	$bench->{pg}->wait_for($dbname, q{SELECT state = 'running' FROM outbox.relay_status}, 30);
	for my $round (1 .. ($bench->{quick} ? 1 : 3))
	{
		my ($p50, $p99) = latency_once($bench, $rabbit, $dbname, 200, $bench->{quick} ? 3 : 15);
		push @p50, $p50;
		push @p99, $p99;
	}
	result('latency into RabbitMQ at 200/s, p50 ms', value => median(@p50), at_most => 4);
	result('  p99 ms', value => median(@p99));
	$bench->{pg}->flush($dbname, 60);
	$bench->{pg}->drop_database($dbname);
	$rabbit->stop;
	return;
}

1;
