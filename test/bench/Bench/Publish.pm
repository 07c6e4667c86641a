# Publishing against a bare INSERT: the same data, the same clients, in turns.
#
# Both sides are prepared statements that get the payload as a parameter, as an
# application sends it, into a table with the key that the promise names.  Each
# client count has a new database, so that no side meets the other's leftovers.
package Bench::Publish;
use strict;
use warnings;
use Bench::Report;

my @clients = (1, 4, 16, 64, 128);
my %sql = (
	ours => q{SELECT outbox.publish('TOPIC', :payload::jsonb, 'key-' || :k);},
	reference => q{INSERT INTO bare (topic, key, payload) VALUES ('TOPIC', 'key-' || :k, :payload::jsonb);});

sub write_script
{
	my ($name, $text) = @_;
	my $file = "$ENV{BENCH_HOME}/$name.sql";
	open my $f, '>', $file or die "$file: $!\n";
	print $f "$text\n";
	close $f;
	return $file;
}

# A side's script of pgbench; keys have one length, so all rows have one.
sub script
{
	my ($side, $topic) = @_;
	return write_script("publish-$side", "\\set k random(10000, 19999)\n" . $sql{$side} =~ s/TOPIC/$topic/r);
}

# Both sides in turns, the order changing: two lists of tps, and two of CPU.
sub compare
{
	my ($bench, $dbname, $scripts, $rounds, %options) = @_;
	my %tps = (ours => [], reference => []);
	my %cpu = (ours => [], reference => []);

	for my $round (0 .. $rounds - 1)
	{
		my @order = $round % 2 ? qw(reference ours) : qw(ours reference);
		for my $side (@order)
		{
			# none in the middle of a run
			$bench->{pg}->sql($dbname, 'CHECKPOINT');
			my ($tps, $cpu) = $bench->{pg}->pgbench($dbname, $scripts->{$side}, %options);
			push @{ $tps{$side} }, $tps;
			push @{ $cpu{$side} }, $cpu;
		}
	}
	return ($tps{ours}, $tps{reference}, $cpu{ours}, $cpu{reference});
}

# How full are pages?  Rows against what as many pages hold of the fullest: all
# rows of this load have one length.
sub fill
{
	my ($bench, $dbname) = @_;
	my $rows = $bench->{pg}->sql($dbname, <<'END');
SELECT string_agg(format('SELECT %s AS segment, ctid FROM %s', relid, relid::regclass), ' UNION ALL ')
FROM outbox.segments
END
	return split /\|/, $bench->{pg}->sql($dbname, <<END);
SELECT 100.0 * sum(n) / (count(*) * max(n)), max(n)
FROM (SELECT count(*) AS n FROM ($rows) rows GROUP BY segment, (ctid::text::point)[0]) pages
END
}

sub publish_at
{
	my ($bench, $clients, $synchronous) = @_;
	my $dbname = 'bench_publish';
	my %scripts = map { $_ => script($_, 'orders') } keys %sql;
	# few clients mostly wait to be woken, which takes another time each second: many short
	# rounds, so that both sides meet the same
	my ($rounds, $seconds) = $bench->{quick} ? (2, 1) : $clients <= 16 ? (31, 1) : (7, 3);

	$bench->{pg}->create_database($dbname);
	my ($ours, $reference, $our_cpu, $reference_cpu) = compare($bench, $dbname, \%scripts, $rounds,
		clients => $clients, seconds => $seconds,
		settings => { synchronous_commit => $synchronous },
		define => { payload => $bench->{payload} });
	result("publish tps, $clients clients, commit " . ($synchronous eq 'on' ? 'synchronous' : 'asynchronous'),
		ours => median(@$ours), reference => median(@$reference), value => ratios($ours, $reference),
		at_least => $synchronous eq 'on' || $clients == 1 ? 1.0 : 1.05);
	result('  microseconds of CPU', ours => median(@$our_cpu), reference => median(@$reference_cpu),
		value => ratios($our_cpu, $reference_cpu));
	my ($fill, $rows) = fill($bench, $dbname);
	result("  filled pages, %, of $rows rows a page", value => $fill, at_least => 95);
	$bench->{pg}->drop_database($dbname);
	return;
}

sub publish
{
	my ($bench) = @_;

	headline('Publish against a bare INSERT, 200 bytes (transactions a second; no server)');
	Bench::Report::columns();
	for my $synchronous ('off', 'on')
	{
		publish_at($bench, $_, $synchronous) for @clients;
	}
	return;
}

# The same while a relay takes half of the machine to deliver: what is left.
sub relayed
{
	my ($bench) = @_;
	my $dbname = 'bench_relayed';
	my $topic = $bench->{kafka}->()->create_topic(4);
	my %scripts = map { $_ => script($_, $topic) } keys %sql;

	headline('Publish while a relay delivers to Kafka on the same machine');
	Bench::Report::columns();
	$bench->{pg}->create_database($dbname);
	$bench->{pg}->create_server($dbname, 'events', $bench->{kafka}->()->bootstrap);
	for my $clients (1, 16)
	{
		my ($ours, $reference) = compare($bench, $dbname, \%scripts, $bench->{quick} ? 1 : 3,
			clients => $clients, seconds => $bench->{quick} ? 1 : 3,
			settings => { synchronous_commit => 'off' },
			define => { payload => $bench->{payload} });
		result("publish tps, $clients clients, with a relay", ours => median(@$ours),
			reference => median(@$reference), value => ratios($ours, $reference));
		$bench->{pg}->flush($dbname, 120);
	}
	$bench->{pg}->sql($dbname, 'DROP SERVER events');
	$bench->{pg}->drop_database($dbname);
	$bench->{kafka}->()->delete_topic($topic);
	return;
}

# JSON that can't be compressed, of about that many bytes, in literals.
sub payload
{
	my ($bench) = @_;
	my $dbname = 'bench_payload';

	headline('Publish against a bare INSERT, by payload (transactions a second; 1 client; asynchronous commit)');
	Bench::Report::columns();
	for my $case ([ '200 bytes', 200 ], [ '10 kB', 10_000 ], [ '1 MB', 1_000_000 ])
	{
		my ($name, $size) = @$case;
		my $json = sprintf '{"data": "%s"}', join '', map { sprintf '%02x', rand 256 } 1 .. ($size - 12) / 2;
		my %scripts = (
			ours => write_script('payload-ours', "SELECT outbox.publish('orders', '$json'::jsonb, 'key-12345');"),
			reference => write_script('payload-reference',
				"INSERT INTO bare (topic, key, payload) VALUES ('orders', 'key-12345', '$json'::jsonb);"));

		$bench->{pg}->create_database($dbname);
		my ($ours, $reference) = compare($bench, $dbname, \%scripts, $bench->{quick} ? 2 : 5,
			clients => 1, seconds => $bench->{quick} ? 1 : 3,
			settings => { synchronous_commit => 'off' });
		result("publish tps, $name", ours => median(@$ours), reference => median(@$reference),
			value => ratios($ours, $reference));
		$bench->{pg}->drop_database($dbname);
	}
	return;
}

# Many in one statement, from a table that both sides read.
sub bulk
{
	my ($bench) = @_;
	my $n = $bench->{quick} ? 50_000 : 500_000;
	my $dbname = 'bench_bulk';
	my %statements = (
		'INSERT ... SELECT' => 'INSERT INTO bare (topic, key, payload) SELECT \'orders\', key, payload FROM source',
		'SELECT publish() FROM' => 'SELECT count(outbox.publish(\'orders\', payload, key)) FROM source',
		'publish_batch()' => 'SELECT outbox.publish_batch(\'orders\', array_agg(payload), array_agg(key)) FROM source');
	my %seconds;

	headline("Bulk publish of $n messages of 200 bytes in one transaction (messages a second)");
	Bench::Report::columns();
	$bench->{pg}->create_database($dbname);
	$bench->{pg}->sql($dbname, "CREATE TABLE source AS SELECT 'key-' || 10000 + n % 10000 AS key, "
		  . "'$bench->{payload}'::jsonb AS payload FROM generate_series(1, $n) n");
	$bench->{pg}->sql($dbname, 'VACUUM ANALYZE source');
	for my $round (1 .. ($bench->{quick} ? 2 : 5))
	{
		for my $name (sort keys %statements)
		{
			$bench->{pg}->sql($dbname, 'CHECKPOINT');
			push @{ $seconds{$name} }, $bench->{pg}->seconds($dbname, $statements{$name}, synchronous_commit => 'off');
		}
	}
	my $reference = $seconds{'INSERT ... SELECT'};
	for my $name ('SELECT publish() FROM', 'publish_batch()')
	{
		result($name, ours => $n / median(@{ $seconds{$name} }), reference => $n / median(@$reference),
			value => ratios($reference, $seconds{$name}));
	}
	$bench->{pg}->drop_database($dbname);
	return;
}

1;
