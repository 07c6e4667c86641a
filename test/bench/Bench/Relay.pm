# The relay: how fast it drains a backlog, how late it delivers, what it costs.
package Bench::Relay;
use strict;
use warnings;
use Bench::Report;
use IO::Select;
use Time::HiRes qw(time sleep);

my $partitions = 4;

# Two processors share a cache when a line of it goes from one to the other so fast.
my $near_ns = 100;
my $near_rounds = 5;    # of fewer no median is told

# A process that watches another one's memory; ->() ends it and gives the peak.
sub watch_memory
{
	my ($pg, $pid) = @_;
	pipe(my $read, my $write) or die;
	my $watcher = fork;

	die "fork: $!\n" unless defined $watcher;
	if ($watcher == 0)
	{
		my $peak = 0;
		my $ended = 0;
		local $SIG{TERM} = sub { $ended = 1 };
		until ($ended)
		{
			my $mb = $pg->anonymous_mb($pid) || 0;
			$peak = $mb if $mb > $peak;
			select undef, undef, undef, 0.05;
		}
		syswrite $write, $peak;
		# no destructors: server and broker are the parent's
		require POSIX;
		POSIX::_exit(0);
	}
	close $write;
	return sub {
		kill 'TERM', $watcher;
		my $peak = <$read>;
		waitpid $watcher, 0;
		return $peak || 0;
	};
}

# Publishes $n messages to a topic, a million a transaction.
sub publish_backlog
{
	my ($bench, $dbname, $topic, $n) = @_;
	for (my $from = 0; $from < $n; $from += 1_000_000)
	{
		my $count = $n - $from < 1_000_000 ? $n - $from : 1_000_000;
		$bench->{pg}->sql($dbname, "SELECT count(outbox.publish('$topic', '$bench->{payload}'::jsonb, "
			  . "'key-' || 10000 + n % 10000)) FROM generate_series(1, $count) n");
	}
	return;
}

# What a relay that has nothing to do keeps: its anonymous memory, once it is little or
# after some seconds.
sub idle_memory
{
	my ($pg, $pid) = @_;
	my $until = time + 3;
	my $mb;

	do
	{
		sleep 0.1;
		$mb = $pg->anonymous_mb($pid);
	} until $mb < 15 || time > $until;
	return $mb;
}

# One drain: seconds from CREATE SERVER until all is acknowledged, peak of
# anonymous memory, seconds of CPU, memory afterwards.
sub drain_once
{
	my ($bench, $dbname, $n, %options) = @_;
	my ($pg, $kafka) = ($bench->{pg}, $bench->{kafka}->());
	my $topic = $kafka->create_topic($partitions);

	publish_backlog($bench, $dbname, $topic, $n);
	$pg->sql($dbname, 'CHECKPOINT');
	$pg->open_session($dbname);
	my $start = time;
	$pg->create_server($dbname, 'events', $kafka->bootstrap, topics => $topic, start => 'earliest', %options);
	my $pid = $pg->relay_pid($dbname, 'events');
	my $peak_of = watch_memory($pg, $pid);
	$pg->flush($dbname, 600);
	my $seconds = time - $start;
	my $cpu = $pg->cpu_seconds($pid);
	my $peak = $peak_of->();
	my $idle = idle_memory($pg, $pid);
	$pg->close_session($dbname);
	my $arrived = $kafka->count($topic);
	# transactions end with a record too
	$arrived = $n if $options{exactly_once} && $arrived >= $n;
	die "$n messages were delivered, but there are $arrived records; delivered, dead: "
	  . $pg->sql($dbname, 'SELECT delivered, dead FROM outbox.relay_status') . "\n"
	  if $arrived != $n;

	# freed before the next round, so that each reads its own messages only
	$pg->wait_for($dbname, 'SELECT sum(pg_relation_size(relid)) < 64 * 1024 * 1024 FROM outbox.segments', 60);
	# the stored position may be a moment behind, of which it would warn
	$pg->sql($dbname, 'SET client_min_messages = error; DROP SERVER events');
	$pg->wait_for($dbname, "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'pg_outbox relay%'", 30);
	$kafka->delete_topic($topic);
	return ($seconds, $peak, $cpu, $idle);
}

sub produce_once
{
	my ($bench, $n, $poll_every) = @_;
	my $kafka = $bench->{kafka}->();
	my $topic = $kafka->create_topic($partitions);
	my @result = $kafka->produce($topic, $n, $bench->{payload_file}, $poll_every);
	my $arrived = $kafka->count($topic);

	die "$n records were produced, but there are $arrived\n" if $arrived != $n;
	$kafka->delete_topic($topic);
	return @result;
}

# Java compiles while the first ones run, until some 20 million records of both kinds
# have come.
sub warm_up
{
	my ($bench, $dbname) = @_;
	for (1 .. ($bench->{quick} ? 1 : 8))
	{
		drain_once($bench, $dbname, $bench->{quick} ? 100_000 : 1_000_000);
		produce_once($bench, $bench->{quick} ? 100_000 : 1_500_000, 1);
	}
	return;
}

# Do the processors share a cache?  A virtual machine's may now, and not in a second.
sub are_near
{
	my $ns = `$ENV{OUTBOX_BUILD}/bench_processors`;
	die "bench_processors failed\n" if $?;
	return $ns < $near_ns;
}

# The rounds of a table's columns that began and ended with near processors.
sub near_only
{
	my ($r) = @_;
	my @near = grep { $r->{near}[$_] } 0 .. $#{ $r->{near} };
	return map { my $column = $_; ($column => [ @{ $r->{$column} }[@near] ]) } keys %$r;
}

sub drain_of
{
	my ($bench, $n, $rounds) = @_;
	my $dbname = 'bench_drain';
	my $name = $n >= 1_000_000 ? $n / 1_000_000 . ' million' : $n;
	my %r = map { $_ => [] } qw(ours plain rare peak cpu plain_cpu idle near);

	headline("Drain of $name messages of 200 bytes into Kafka, beside a plain librdkafka producer");
	note('reference: written as the library\'s example, which polls after each record; then one that polls once in 100');
	Bench::Report::columns();
	$bench->{pg}->create_database($dbname);
	warm_up($bench, $dbname);
	for my $round (1 .. $rounds)
	{
		my $near = are_near();
		my ($seconds, $peak, $cpu, $idle) = drain_once($bench, $dbname, $n);
		push @{ $r{ours} }, $n / $seconds;
		push @{ $r{peak} }, $peak;
		push @{ $r{idle} }, $idle;
		push @{ $r{cpu} }, $cpu * 1_000_000 / $n;
		$near &&= are_near();
		($seconds, $cpu) = produce_once($bench, $n, 1);
		push @{ $r{plain} }, $n / $seconds;
		push @{ $r{plain_cpu} }, $cpu * 1_000_000 / $n;
		push @{ $r{near} }, $near && are_near();
		($seconds) = produce_once($bench, $n, 100);
		push @{ $r{rare} }, $n / $seconds;
	}
	result("drain of $name, messages/s", ours => median(@{ $r{ours} }), reference => median(@{ $r{plain} }),
		value => ratios(@r{qw(ours plain)}), at_least => 1.3);
	my %near = near_only(\%r);
	my $count = @{ $near{ours} };
	if ($count >= $near_rounds && $count < $rounds)
	{
		result("  ... the $count of $rounds rounds of near processors", ours => median(@{ $near{ours} }),
			reference => median(@{ $near{plain} }), value => ratios(@near{qw(ours plain)}), at_least => 1.3);
	}
	else
	{
		note("... $count of $rounds rounds while the processors shared a cache");
	}
	result('  beside one that polls once in 100', ours => median(@{ $r{ours} }), reference => median(@{ $r{rare} }),
		value => ratios(@r{qw(ours rare)}));
	result('  seconds of CPU a million', ours => median(@{ $r{cpu} }), reference => median(@{ $r{plain_cpu} }),
		value => ratios(@r{qw(cpu plain_cpu)}));
	result('  peak of anonymous memory, MB', value => (sort { $b <=> $a } @{ $r{peak} })[0], at_most => 60 + 64);
	result('  ... afterwards, idle', value => (sort { $b <=> $a } @{ $r{idle} })[0], at_most => 25);
	$bench->{pg}->drop_database($dbname);
	return;
}

sub drain
{
	my ($bench) = @_;
	drain_of($bench, $bench->{quick} ? 100_000 : 1_000_000, $bench->{quick} ? 1 : 25);
	return;
}

sub drain10m
{
	my ($bench) = @_;
	drain_of($bench, 10_000_000, $bench->{quick} ? 1 : 3);
	return;
}

# Exactly once, beside at least once.
sub once
{
	my ($bench) = @_;
	my $n = $bench->{quick} ? 100_000 : 3_000_000;
	my $dbname = 'bench_once';
	my (@once, @least);

	headline('Exactly once into Kafka, beside at least once');
	Bench::Report::columns();
	$bench->{pg}->create_database($dbname);
	produce_once($bench, 500_000, 1) for 1 .. 2;
	for my $round (1 .. ($bench->{quick} ? 1 : 3))
	{
		my ($seconds) = drain_once($bench, $dbname, $n, exactly_once => 'true');
		push @once, $n / $seconds;
		($seconds) = drain_once($bench, $dbname, $n);
		push @least, $n / $seconds;
	}
	result('drain of 3 million, messages/s', ours => median(@once), reference => median(@least),
		value => ratios(\@once, \@least), at_least => 0.8);
	$bench->{pg}->drop_database($dbname);
	latency_at($bench, 200, $bench->{quick} ? (1, 3) : (3, 15), p50 => 20);
	return;
}

# p50 and p99 in ms, each the median of the runs; exactly once when p50 is given.
sub latency_at
{
	my ($bench, $rate, $rounds, $seconds, %once) = @_;
	my ($pg, $kafka) = ($bench->{pg}, $bench->{kafka}->());
	my $dbname = 'bench_latency';
	my (%p50, %p99);

	$pg->create_database($dbname);
	$pg->create_server($dbname, 'events', $kafka->bootstrap, %once ? (exactly_once => 'true') : ());
	for my $round (1 .. $rounds)
	{
		for my $side ('pg', 'kafka')
		{
			my $topic = $kafka->create_topic($partitions);
			my ($n, $p50, undef, $p99) = split ' ', $pg->run("$ENV{OUTBOX_BUILD}/bench_latency",
				$side, $pg->conninfo($dbname), $kafka->bootstrap, $topic, $rate, $seconds,
				$bench->{payload_file});

			push @{ $p50{$side} }, $p50 / 1000;
			push @{ $p99{$side} }, $p99 / 1000;
			$kafka->delete_topic($topic);
		}
	}
	$pg->sql($dbname, 'DROP SERVER events');
	$pg->drop_database($dbname);
	my %targets = %once ? %once : $rate == 200 ? (p50 => 3, p99 => 10) : ();
	for ([ 'p50', \%p50 ], [ 'p99', \%p99 ])
	{
		my ($name, $values) = @$_;
		my $ours = median(@{ $values->{pg} });
		result("latency at $rate/s, $name, ms", ours => $ours, reference => median(@{ $values->{kafka} }),
			value => $ours, $targets{$name} ? (at_most => $targets{$name}) : ());
	}
	return;
}

sub latency
{
	my ($bench) = @_;
	headline('Latency: begin of the publishing transaction to the consumer, synchronous commit');
	note('reference: a plain client\'s record to the consumer, without PostgreSQL: the floor');
	Bench::Report::columns();
	latency_at($bench, $_, $bench->{quick} ? 1 : 3, $bench->{quick} ? 3 : 15) for 200, 2000;
	return;
}

sub idle
{
	my ($bench) = @_;
	my ($pg, $kafka) = ($bench->{pg}, $bench->{kafka}->());
	my $dbname = 'bench_idle';
	my $seconds = $bench->{quick} ? 5 : 30;
	my $topic = $kafka->create_topic($partitions);

	headline('Idle: a server that has delivered all, nobody publishes');
	Bench::Report::columns();
	$pg->create_database($dbname);
	$pg->create_server($dbname, 'events', $kafka->bootstrap);
	publish_backlog($bench, $dbname, $topic, 1000);
	$pg->flush($dbname, 60);
	my %pids = (relay => $pg->relay_pid($dbname, 'events'), keeper => $pg->keeper_pid($dbname));
	# the last position is stored and small segments are rotated by then
	sleep($bench->{quick} ? 2 : 5);
	my %before = map { $_ => $pg->switches($pids{$_}) } keys %pids;
	my $cpu = $pg->cpu_seconds($pids{relay}) + $pg->cpu_seconds($pids{keeper});
	my $start = time;
	sleep($seconds);
	my $passed = time - $start;
	for my $who ('relay', 'keeper')
	{
		result("wake-ups a second of the $who\'s main thread",
			value => ($pg->switches($pids{$who}) - $before{$who}) / $passed, at_most => 1.1);
	}
	result('CPU of relay and keeper, %',
		value => 100 * ($pg->cpu_seconds($pids{relay}) + $pg->cpu_seconds($pids{keeper}) - $cpu) / $passed);
	for my $who ('relay', 'keeper')
	{
		result("anonymous memory of the $who, MB", value => $pg->anonymous_mb($pids{$who}), at_most => 25);
	}
	$pg->sql($dbname, 'DROP SERVER events');
	$pg->drop_database($dbname);
	$kafka->delete_topic($topic);
	return;
}

1;
