# Accepting messages, against a bare INSERT ... ON CONFLICT DO NOTHING into a table
# with the same columns and key.
package Bench::Inbox;
use strict;
use warnings;
use Bench::Publish;
use Bench::Report;
use POSIX ();

my %sql = (
	ours => q{SELECT inbox.accept('billing', gen_random_uuid()::text);},
	reference => q{INSERT INTO bare_seen (consumer, message_id, expires_at) }
	  . q{VALUES ('billing', gen_random_uuid()::text, clock_timestamp() + interval '7 days') ON CONFLICT DO NOTHING;});

sub scripts { return { map { $_ => Bench::Publish::write_script("accept-$_", $sql{$_}) } keys %sql } }

sub create_database
{
	my ($bench, $dbname) = @_;
	$bench->{pg}->create_database($dbname);
	$bench->{pg}->sql($dbname, 'CREATE TABLE bare_seen (consumer text, message_id text, '
		  . 'expires_at timestamptz NOT NULL, PRIMARY KEY (message_id, consumer))');
	return;
}

sub accept_one
{
	my ($bench) = @_;
	my $dbname = 'bench_accept';

	headline('inbox.accept() against a bare INSERT ... ON CONFLICT DO NOTHING (transactions a second)');
	Bench::Report::columns();
	for my $synchronous ('off', 'on')
	{
		for my $clients (1, 4, 16)
		{
			create_database($bench, $dbname);
			my ($ours, $reference, $our_cpu, $reference_cpu) = Bench::Publish::compare($bench, $dbname, scripts(), $bench->{quick} ? 2 : 7,
				clients => $clients, seconds => $bench->{quick} ? 1 : 3,
				settings => { synchronous_commit => $synchronous });
			result("accept, $clients clients, commit " . ($synchronous eq 'on' ? 'synchronous' : 'asynchronous'),
				ours => median(@$ours), reference => median(@$reference), value => ratios($ours, $reference),
				at_least => 0.9);
			result('  microseconds of CPU', ours => median(@$our_cpu), reference => median(@$reference_cpu),
				value => ratios($our_cpu, $reference_cpu));
			$bench->{pg}->drop_database($dbname);
		}
	}
	return;
}

# SELECT inbox.accept() so many times in one round trip and one transaction; "pipelined"
# of Redis is the same many commands sent at once.
my $pipelined = 16;

sub redis_rate
{
	my ($socket, $clients, $pipeline, $seconds, $guess) = @_;
	my $n = int($guess * $seconds) + 1000;
	my $command = "redis-benchmark -s $socket -q -r 1000000000000 -c $clients -P $pipeline -n $n "
	  . "SET billing:__rand_int__ 1 NX EX 604800";
	my ($rate) = `$command` =~ /([\d.]+) requests per second/ or die "redis-benchmark gave no rate\n";
	return $rate;
}

# Redis beside it, with an append-only file that is flushed once a second, which is
# about what asynchronous commit keeps.
sub redis
{
	my ($bench) = @_;
	my $dbname = 'bench_redis';
	my $rounds = $bench->{quick} ? 2 : 5;
	my $seconds = $bench->{quick} ? 1 : 3;
	my $redis = Bench::Redis->new;
	my %script = (1 => scripts()->{ours}, $pipelined => Bench::Publish::write_script('accept-pipelined',
			join "\n", '\startpipeline', ($sql{ours}) x $pipelined, '\endpipeline'));

	headline('inbox.accept(), asynchronous commit, beside Redis SET NX EX with appendfsync everysec (ids a second)');
	Bench::Report::columns();
	for my $pipeline (1, $pipelined)
	{
		for my $clients (1, 4)
		{
			my (@ours, @reference);
			my $guess = 5000 * $pipeline;

			create_database($bench, $dbname);
			for (1 .. $rounds)
			{
				my ($tps) = $bench->{pg}->pgbench($dbname, $script{$pipeline}, clients => $clients, seconds => $seconds,
					settings => { synchronous_commit => 'off' });
				push @ours, $tps * $pipeline;
				push @reference, $guess = redis_rate($redis->{socket}, $clients, $pipeline, $seconds, $guess);
			}
			result("$clients clients, " . ($pipeline == 1 ? 'one by one' : "pipelines of $pipeline"),
				ours => median(@ours), reference => median(@reference), value => ratios(\@ours, \@reference));
			$bench->{pg}->drop_database($dbname);
		}
	}
	$redis->stop;
	return;
}

# Batches of 1,000 new ids, each in a transaction of its own.
sub accept_batch
{
	my ($bench) = @_;
	my $dbname = 'bench_batch';
	my $batches = $bench->{quick} ? 50 : 500;
	my @rates;

	headline('inbox.accept_batch() of 1,000 ids, asynchronous commit (ids a second)');
	Bench::Report::columns();
	create_database($bench, $dbname);
	for my $round (1 .. ($bench->{quick} ? 2 : 5))
	{
		my $statement = "DO \$\$ BEGIN FOR i IN 1 .. $batches LOOP "
		  . "PERFORM inbox.accept_batch('billing', ARRAY(SELECT md5((i * 1000 + n + $round * 10000000)::text) FROM generate_series(1, 1000) n)); "
		  . 'COMMIT; END LOOP; END $$';
		my $arrays = $statement =~ s/PERFORM inbox.accept_batch\('billing', (ARRAY\(.*\))\);/PERFORM cardinality($1);/r;
		my $seconds = $bench->{pg}->seconds($dbname, $statement, synchronous_commit => 'off');
		# making the ids is not what is measured
		$seconds -= $bench->{pg}->seconds($dbname, $arrays, synchronous_commit => 'off');
		push @rates, $batches * 1000 / $seconds;
	}
	result('accept_batch, ids a second', value => median(@rates), at_least => 150_000);
	$bench->{pg}->drop_database($dbname);
	return;
}

# Pairs of rounds: transactions a second with many marks, and with an empty table.
sub live_rounds
{
	my ($bench, $databases, $rounds, $before) = @_;
	my %tps = (ours => [], reference => []);

	for my $round (1 .. $rounds)
	{
		for my $side ($round % 2 ? qw(reference ours) : qw(ours reference))
		{
			$bench->{pg}->sql($databases->{$side}, $before) if $before;
			my ($tps) = $bench->{pg}->pgbench($databases->{$side}, scripts()->{ours}, clients => 4,
				seconds => $bench->{quick} ? 1 : 3, settings => { synchronous_commit => 'off' });
			push @{ $tps{$side} }, $tps;
		}
	}
	return (ours => median(@{ $tps{ours} }), reference => median(@{ $tps{reference} }),
		value => ratios($tps{ours}, $tps{reference}));
}

# With many live marks against an empty table: where shared_buffers hold their key, right
# after checkpoints, when the first change of a page writes all of it to WAL, and later;
# and where they hold a fifth of it, so that a page is had for one that must be written first.
sub live_marks
{
	my ($bench) = @_;
	my $pg = $bench->{pg};
	my $n = $bench->{quick} ? 500_000 : 50_000_000;
	my $rounds = $bench->{quick} ? 2 : 7;
	my %databases = (ours => 'bench_marks', reference => 'bench_empty');
	my $more = "SELECT inbox.accept_batch('billing', ARRAY(SELECT gen_random_uuid()::text "
	  . "FROM generate_series(1, 1000) WHERE b > 0)) FROM generate_series(1, $n / 50 / 1000) b";

	headline("inbox.accept() with $n live marks against an empty table (transactions a second, 4 clients, asynchronous commit)");
	Bench::Report::columns();
	create_database($bench, $_) for values %databases;
	# the key is made afterwards, as full as random keys leave its pages
	$pg->sql($databases{ours}, $_) for 'ALTER TABLE inbox.seen DROP CONSTRAINT seen_pkey',
	  "INSERT INTO inbox.seen SELECT 'billing', gen_random_uuid()::text, "
	  . "clock_timestamp() + interval '7 days' FROM generate_series(1, $n)",
	  'ALTER TABLE inbox.seen ADD PRIMARY KEY (message_id, consumer) WITH (fillfactor = 69)',
	  'ALTER INDEX inbox.seen_pkey RESET (fillfactor)', 'CREATE EXTENSION pg_prewarm', 'VACUUM ANALYZE inbox.seen';

	my $key = $pg->sql($databases{ours}, "SELECT pg_relation_size('inbox.seen_pkey') >> 20");
	for my $part ([ sprintf('%.0f MB of key in shared_buffers', $key), int($key * 1.3) + 512, 0.8 ],
		[ 'a fifth of the key in shared_buffers', int($key / 5) + 32 ])
	{
		my ($what, $mb, $target) = @$part;
		$pg->restart(shared_buffers => "${mb}MB");
		$pg->sql($databases{ours}, "SELECT pg_prewarm('inbox.seen_pkey')");
		result("$what, after checkpoints", live_rounds($bench, \%databases, $bench->{quick} ? 1 : 3, 'CHECKPOINT'));
		$pg->sql($databases{ours}, $more);
		result("$what, later", live_rounds($bench, \%databases, $rounds), $target ? (at_least => $target) : ());
	}
	$pg->restart;
	$pg->drop_database($_) for values %databases;
	return;
}

sub size
{
	my ($bench, $dbname) = @_;
	return $bench->{pg}->sql($dbname, q{SELECT pg_total_relation_size('inbox.seen')});
}

# What makes message ids: random ones, and such as the outbox gives, one behind the other.
my %ids = (
	random => 'gen_random_uuid()::text',
	ordered => q{'0c9e2f71-5a34-8d12-9300-' || lpad(to_hex(n), 12, '0')});

# The array of ids from one number up to another.
sub array_of_ids
{
	my ($order, $from, $to) = @_;
	return "ARRAY(SELECT $ids{$order} FROM generate_series($from, $to) n)";
}

# Marks arrive and expire, 50 million in all: how large does the table get, against one
# that holds what was live at most and nothing else?  The keeper removes what has expired; the time
# that marks count is a few times that between two runs of autovacuum.  A page of the key is
# used again when all in it is gone, or for what belongs between its neighbours: so with random
# ids pages end half empty, with ordered ones the old end goes as a whole.
# Ids in order come faster, so that as many are alive after a shorter time.
sub expiry { return expiry_of($_[0], 'ordered', 120) }
sub expiry_random { return expiry_of($_[0], 'random', 300) }

sub expiry_of
{
	my ($bench, $order, $ttl) = @_;
	my $n = $bench->{quick} ? 1_000_000 : 50_000_000;
	my $dbname = 'bench_expiry';
	my $batch = 2000;
	my ($largest, $live, $begin) = (0, 0, time);

	$ttl = 1 if $bench->{quick};
	headline("Marks that arrive and expire after $ttl seconds, $n in all, $order ids");
	Bench::Report::columns();
	my $ids = array_of_ids($order, "i::bigint * $batch", "i::bigint * $batch + $batch - 1");

	create_database($bench, $dbname);
	for my $round (1 .. $n / $batch / 50)
	{
		my ($first, $last) = (50 * $round, 50 * $round + 49);
		$bench->{pg}->seconds($dbname, "DO \$\$ BEGIN FOR i IN $first .. $last LOOP "
			  . "PERFORM inbox.accept_batch('billing', $ids, '$ttl seconds'); COMMIT; END LOOP; END \$\$",
			synchronous_commit => 'off');
		next if time - $begin < 1.1 * $ttl;
		my $now = size($bench, $dbname);
		$largest = $now if $now > $largest;
		next if $round % 20 && $live;
		my $count = $bench->{pg}->sql($dbname, 'SELECT count(*) FROM inbox.seen WHERE expires_at > clock_timestamp()');
		$live = $count if $count > $live;
	}
	my $rate = $n / (time - $begin);
	create_database($bench, 'bench_live');
	$ids = array_of_ids($order, 'b::bigint * 10000', 'b::bigint * 10000 + 9999');
	$bench->{pg}->sql('bench_live', "SELECT inbox.accept_batch('billing', $ids, '1 day') FROM generate_series(1, $live / 10000 + 1) b");
	my $alone = size($bench, 'bench_live');
	result(sprintf('size of the table, MB, %s ids, %.0f marks a second', $order, $rate), ours => $largest / 1e6,
		reference => $alone / 1e6, value => $largest / $alone, at_most => 1.5);
	$bench->{pg}->drop_database($_) for $dbname, 'bench_live';
	return;
}

# A Redis of our own.  Debian has the server's program in redis-tools too, where it is a
# tool when it is called by that name; so no package starts a service.
package Bench::Redis;
use Time::HiRes qw(usleep);

sub new
{
	my ($class) = @_;
	my $dir = "$ENV{BENCH_HOME}/redis";
	my $self = bless { socket => "$dir/socket", parent => $$ }, $class;

	mkdir $dir;
	$self->{pid} = fork // die "fork: $!\n";
	if ($self->{pid} == 0)
	{
		open STDOUT, '>', "$dir/log";
		exec { '/usr/bin/redis-check-rdb' } 'redis-server', '--port', 0, '--unixsocket', $self->{socket},
		  '--dir', $dir, '--save', '', '--appendonly', 'yes', '--appendfsync', 'everysec'
		  or POSIX::_exit(1);
	}
	for (1 .. 200)
	{
		return $self if `redis-cli -s $self->{socket} ping 2>/dev/null` =~ /PONG/;
		usleep(50_000);
	}
	die "Redis does not start\n";
}

sub stop
{
	my ($self) = @_;
	return if $self->{parent} != $$ || !$self->{pid};
	kill 'KILL', $self->{pid};
	waitpid $self->{pid}, 0;
	$self->{pid} = undef;
	return;
}

sub DESTROY { local $?; $_[0]->stop; return }

1;
