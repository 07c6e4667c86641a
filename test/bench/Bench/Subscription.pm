# Subscriptions: how fast a worker takes what lies in a topic, and how late an effect is.
package Bench::Subscription;
use strict;
use warnings;
use Bench::Report;

my $partitions = 4;

# One INSERT a message, and one a batch, of the same columns.
my %handlers = (
	one => q{CREATE FUNCTION one(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.effect (message_id, key, payload) VALUES (m.message_id, m.key, m.payload);
END
$$},
	many => q{CREATE FUNCTION many(m inbox.message[]) RETURNS void LANGUAGE sql AS $$
	INSERT INTO public.effect (message_id, key, payload) SELECT u.message_id, u.key, u.payload FROM unnest(m) u
$$});
my %arguments = (one => 'inbox.message', many => 'inbox.message[]');

# A database with handlers and their table.
sub create_database
{
	my ($bench, $dbname) = @_;
	$bench->{pg}->create_database($dbname);
	$bench->{pg}->sql($dbname, $_) for 'CREATE TABLE effect (message_id text, key text, payload bytea)',
	  values %handlers;
	$bench->{pg}->create_server($dbname, 'events', $bench->{kafka}->()->bootstrap);
	return;
}

sub drop_database
{
	my ($bench, $dbname) = @_;
	$bench->{pg}->sql($dbname, 'DROP SERVER events');
	$bench->{pg}->drop_database($dbname);
	return;
}

sub worker_pid
{
	my ($bench, $dbname) = @_;
	$bench->{pg}->wait_for($dbname, 'SELECT pid IS NOT NULL FROM inbox.subscription_status', 30);
	return $bench->{pg}->sql($dbname, 'SELECT pid FROM inbox.subscription_status');
}

# From the first commit that is seen to the last: messages between them, and seconds.  One
# session looks, in one statement, so that looking costs next to nothing.
my $watch = q{
CREATE FUNCTION watch(n bigint, OUT messages bigint, OUT seconds float8) LANGUAGE plpgsql AS $$
DECLARE
	first bigint;
	began timestamptz;
	passed bigint;
BEGIN
	LOOP
		SELECT coalesce(sum(next), 0) INTO passed FROM inbox.position;
		IF began IS NULL AND passed > 0 THEN
			first := passed;
			began := clock_timestamp();
		END IF;
		EXIT WHEN passed >= n;
		IF began IS NULL AND clock_timestamp() > now() + interval '60 s' THEN
			RAISE 'nothing has come: %', (SELECT last_error FROM inbox.subscription_status);
		END IF;
		PERFORM pg_sleep(0.005);
	END LOOP;
	messages := n - first;
	seconds := extract(epoch FROM clock_timestamp() - began);
END
$$};

# One drain of a topic from its beginning: messages a second, and microseconds of CPU a
# message, of all threads of the worker.
sub drain_once
{
	my ($bench, $topic, $n, $handler, $dedup) = @_;
	my ($pg, $dbname) = ($bench->{pg}, 'bench_subscription');

	create_database($bench, $dbname);
	$pg->sql($dbname, $watch);
	$pg->sql($dbname, 'CHECKPOINT');
	$pg->sql($dbname, "SELECT inbox.subscribe('drain', 'events', '$topic', '$handler($arguments{$handler})', "
		  . "start => 'earliest', dedup_by => '$dedup', group_id => 'drain-' || gen_random_uuid())");
	my $pid = worker_pid($bench, $dbname);
	my ($messages, $seconds) = split /\|/, $pg->sql($dbname, "SELECT * FROM watch($n)");
	my $cpu = $pg->cpu_seconds($pid);
	my $effects = $pg->sql($dbname, 'SELECT count(*) FROM effect');
	die "$n messages have $effects effects\n" if $effects != $n;
	$pg->sql($dbname, "SELECT inbox.unsubscribe('drain')");
	drop_database($bench, $dbname);
	return ($messages / $seconds, $cpu * 1e6 / $n);
}

sub drain
{
	my ($bench) = @_;
	my $kafka = $bench->{kafka}->();
	my $rounds = $bench->{quick} ? 1 : 5;

	headline('A worker of a subscription drains a topic, messages of 200 bytes (messages a second)');
	Bench::Report::columns();
	for ([ one => 'PL/pgSQL, an INSERT a message', 300_000, 30_000 ], [ many => 'INSERT ... SELECT FROM unnest', 1_000_000, 150_000 ])
	{
		my ($handler, $what, $n, $target) = @$_;
		my $topic = $kafka->create_topic($partitions);

		$n = 50_000 if $bench->{quick};
		$kafka->produce($topic, $n, $bench->{payload_file}, 100);
		for my $dedup ('message_id', 'none')
		{
			my (@rates, @cpu);
			for (1 .. $rounds)
			{
				my ($rate, $cpu) = drain_once($bench, $topic, $n, $handler, $dedup);
				push @rates, $rate;
				push @cpu, $cpu;
			}
			result($what . ($dedup eq 'none' ? ', dedup_by none' : ''), value => median(@rates), at_least => $target);
			result('  microseconds of CPU', value => median(@cpu));
		}
		$kafka->delete_topic($topic);
	}
	return;
}

# p50 and p99 in ms of what is produced to a topic, as bench_latency measures that side.
sub latency_of
{
	my ($bench, $side, $dbname, $topic) = @_;
	my $pg = $bench->{pg};
	my (undef, $p50, undef, $p99) = split ' ', $pg->run("$ENV{OUTBOX_BUILD}/bench_latency", $side, $pg->conninfo($dbname),
		$bench->{kafka}->()->bootstrap, $topic, 200, $bench->{quick} ? 3 : 15, $bench->{payload_file});
	return { p50 => $p50 / 1000, p99 => $p99 / 1000 };
}

# Produced, handled, and notified: in one process with one clock.
sub latency
{
	my ($bench) = @_;
	my ($pg, $kafka) = ($bench->{pg}, $bench->{kafka}->());
	my $dbname = 'bench_subscription';
	my %target = (p50 => 4, p99 => 12);
	my (@ours, @floor);

	headline("Latency of a subscription: produced to the effect's commit being seen");
	note('reference: produced to a plain consumer: the floor');
	Bench::Report::columns();
	create_database($bench, $dbname);
	$pg->sql($dbname, q{CREATE FUNCTION tell(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.effect (message_id, key, payload) VALUES (m.message_id, m.key, m.payload);
	PERFORM pg_notify('effect', m.key);
END
$$});
	# Java compiles while the first round runs, which does not count
	for (0 .. ($bench->{quick} ? 1 : 3))
	{
		my $topic = $kafka->create_topic($partitions);
		$pg->sql($dbname, "SELECT inbox.subscribe('latency', 'events', '$topic', 'tell(inbox.message)', "
			  . "group_id => 'latency-' || gen_random_uuid(), start => 'earliest')");
		$pg->wait_for($dbname, "SELECT state = 'running' FROM inbox.subscription_status", 30);
		push @ours, latency_of($bench, 'inbox', $dbname, $topic);
		$pg->sql($dbname, "SELECT inbox.unsubscribe('latency')");
		$pg->wait_for($dbname, "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'pg_outbox inbox%'", 30);
		$kafka->delete_topic($topic);

		$topic = $kafka->create_topic($partitions);
		push @floor, latency_of($bench, 'kafka', $dbname, $topic);
		$kafka->delete_topic($topic);
	}
	shift @$_ for \@ours, \@floor;
	for my $name ('p50', 'p99')
	{
		my $ms = median(map { $_->{$name} } @ours);
		result("effect at 200/s, $name, ms", ours => $ms, reference => median(map { $_->{$name} } @floor),
			value => $ms, at_most => $target{$name});
	}
	drop_database($bench, $dbname);
	return;
}

1;
