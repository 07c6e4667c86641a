# What the log leaves behind: WAL, dead rows, disk.
package Bench::Log;
use strict;
use warnings;
use Bench::Report;
use Bench::Publish;
use Bench::Relay;
use Time::HiRes qw(time usleep);

# WAL of one side's script, a message.
sub wal_per_message
{
	my ($bench, $dbname, $side, $n) = @_;
	my $pg = $bench->{pg};
	my $script = Bench::Publish::script($side, 'orders');

	$pg->sql($dbname, 'CHECKPOINT');
	my $before = $pg->sql($dbname, 'SELECT pg_current_wal_insert_lsn()');
	$pg->pgbench($dbname, $script, clients => 4, transactions => $n / 4,
		settings => { synchronous_commit => 'off' }, define => { payload => $bench->{payload} });
	return $pg->sql($dbname, "SELECT pg_current_wal_insert_lsn() - '$before'::pg_lsn") / $n;
}

sub wal
{
	my ($bench) = @_;
	my $dbname = 'bench_wal';
	my $n = $bench->{quick} ? 10_000 : 100_000;
	my %bytes;

	$bench->{pg}->create_database($dbname);
	for my $side ('ours', 'reference')
	{
		$bench->{pg}->sql($dbname, 'SELECT 1');
		$bytes{$side} = wal_per_message($bench, $dbname, $side, $n);
	}
	result('WAL, bytes a message of one transaction', ours => $bytes{ours}, reference => $bytes{reference},
		value => $bytes{ours} / $bytes{reference});
	$bench->{pg}->drop_database($dbname);
	return;
}

# Publish and deliver while another session holds an old snapshot; what is left?
sub old_snapshot
{
	my ($bench) = @_;
	my ($pg, $kafka) = ($bench->{pg}, $bench->{kafka}->());
	my $dbname = 'bench_space';
	my $n = $bench->{full} ? 5_000_000 : $bench->{quick} ? 100_000 : 1_000_000;
	my $topic = $kafka->create_topic(4);

	$pg->create_database($dbname);
	$pg->create_server($dbname, 'events', $kafka->bootstrap);
	open my $holder, '|-', "$pg->{bin}/psql", '-X', '-q', '-o', '/dev/null', '-d', $pg->conninfo($dbname) or die;
	$holder->autoflush(1);
	print $holder "BEGIN ISOLATION LEVEL REPEATABLE READ;\nSELECT txid_current();\n";
	$pg->wait_for($dbname, "SELECT count(*) > 0 FROM pg_stat_activity WHERE state = 'idle in transaction'", 30);

	my $peak = 0;
	for (my $done = 0; $done < $n; $done += 100_000)
	{
		Bench::Relay::publish_backlog($bench, $dbname, $topic, 100_000);
		my $bytes = $pg->log_bytes($dbname);
		$peak = $bytes if $bytes > $peak;
	}
	$pg->flush($dbname, 600);
	my $start = time;
	until ($pg->log_bytes($dbname) < 2 * 16 * 1024 * 1024)
	{
		last if time - $start > 60;
		usleep(100_000);
	}
	my $seconds = time - $start;
	my $dead = $pg->sql($dbname, "SELECT pg_stat_force_next_flush() IS NULL") && $pg->sql($dbname,
		'SELECT sum(pg_stat_get_dead_tuples(relid)) FROM outbox.segments');

	note(sprintf '%d messages published and delivered under a snapshot held all along', $n);
	result('dead rows in segments', value => $dead, at_most => 0);
	result('log at its largest, MB', value => $peak / 1024 / 1024);
	result('log at the end, MB (outbox.segment_size is 16)', value => $pg->log_bytes($dbname) / 1024 / 1024,
		at_most => 32);
	result('  seconds until then', value => $seconds, at_most => 10);
	close $holder;
	$pg->sql($dbname, 'DROP SERVER events');
	$pg->drop_database($dbname);
	$kafka->delete_topic($topic);
	return;
}

sub space
{
	my ($bench) = @_;
	headline('What the log leaves behind');
	Bench::Report::columns();
	wal($bench);
	old_snapshot($bench);
	return;
}

1;
