# What breaks: the broker, the network, the relay, PostgreSQL.
package Conformance::Faults;

use strict;
use warnings;

use OutboxTest;

sub checks
{
	return (
		'outage under load, with bounded memory' => \&outage,
		'server restart' => \&server_restart,
		'slow server' => \&slow,
		'reconnect' => \&reconnect,
		'clean stop without duplicates' => \&clean_stop,
		'crash without loss' => \&crash);
}

# How long a publisher takes at most of so many, psql included.
sub slowest
{
	my ($c, $topic, $n) = @_;
	my $slowest = 0;

	for (1 .. $n)
	{
		my $took = $c->seconds(sub { $c->sql("SELECT judge.publish_in_order('$topic', 'one')") });
		$slowest = $took if $took > $slowest;
	}
	return $slowest;
}

# Waits for the end of a backlog and gives the most memory that the relay had meanwhile.
sub drain_ok
{
	my ($c, $name) = @_;
	my $most = 0;
	my $flushed = $c->pg->wait_until(sub {
		my $now = $c->pg->relay_memory('events');
		$most = $now if $now > $most;
		return $c->sql(q{SELECT outbox.flush('50ms')}) eq 't';
	});
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($flushed, $name);
	return $most;
}

sub outage
{
	my ($c) = @_;
	my $topic = $c->destinations('outage');

	$c->server(topics => $topic);
	my $pid = $c->pg->relay_pid('events');
	my $load = $c->load($topic);
	$c->delivers_ok('delivers', 100);
	$c->broker->kill_server;
	$c->state_ok('retrying');
	my $slowest = slowest($c, $topic, 10);
	cmp_ok($slowest, '<', 5, sprintf 'a publisher does not wait for a broker: %.2f s', $slowest);
	ok($load->running, 'publishers never noticed');
	$c->end_load($load);
	$c->sql("SELECT judge.publish_many('$topic', 60000, 50, 200)");
	is($c->status('pending_bytes > 12000000, oldest_pending < now(), last_error IS NOT NULL, hint IS NOT NULL'), 't|t|t|t',
		'relay_status tells of it: ' . $c->status('last_error'));
	is($c->sql(q{SELECT outbox.flush('100ms')}), 'f', 'flush is not true');
	$c->broker->start_server;
	my $most = drain_ok($c, 'delivered');
	my $bound = (8 + $c->broker->memory_overhead) * 1024;
	$c->pg->memory_ok($most, $bound, "the relay's memory is bounded");
	$c->state_ok('running');
	is($c->pg->relay_pid('events'), $pid, 'by the same relay');
	$c->judge_outage_ok([$topic], 'all in order', payload => 'none');
	is($c->status('dead'), 0, 'no dead letters');
	$c->wait_ok('SELECT pending_bytes < 100000 AND oldest_pending IS NULL AND in_flight = 0 FROM outbox.relay_status',
		'nothing is pending');
	return;
}

# Cleanly, and with what it has confirmed.
sub server_restart
{
	my ($c) = @_;
	my $topic = $c->destinations('restart');

	$c->server(topics => $topic);
	$c->sql("SELECT judge.publish_many('$topic', 1000)");
	$c->flush_ok;
	my $load = $c->load($topic);
	$c->delivers_ok;
	$c->broker->stop_server;
	$c->broker->start_server;
	$c->delivers_ok('delivers again');
	$c->end_load($load);
	$c->flush_ok;
	$c->judge_outage_ok([$topic], 'all in order');
	return;
}

sub slow
{
	my ($c) = @_;
	my $topic = $c->destinations('slow');

	$c->server(topics => $topic);
	$c->sql("SELECT judge.publish_many('$topic', 100)");
	$c->flush_ok;
	# answers take their time: as many are on their way as may be, and no more is asked for
	$c->broker->link('delay', 100);
	my $load = $c->load($topic);
	$c->delivers_ok('delivers with a delay of 100 ms', 500);
	$c->broker->link('slow', 50_000);
	$c->sql("SELECT judge.publish_many('$topic', 3000, 20, 200)");
	$c->delivers_ok('delivers at 50 kB/s');
	my $slowest = slowest($c, $topic, 5);
	cmp_ok($slowest, '<', 5, sprintf 'a publisher does not wait for it: %.2f s', $slowest);
	$c->broker->link('pass');
	$c->delivers_ok('and at full speed', 1000);
	# it stands still, and does not close its connections
	$c->broker->freeze;
	my $delivered = $c->status('delivered');
	ok($c->holds_for(3, sub { $load->running }), 'publishers never noticed');
	cmp_ok($c->status('pending_bytes'), '>', 0, 'what they publish waits');
	my $took = $c->seconds(sub { $c->pg->restart });
	cmp_ok($took, '<', 40, sprintf 'PostgreSQL stops all the same: %.1f s', $took);
	$c->broker->thaw;
	$c->end_load($load);
	$c->flush_ok;
	$c->judge_ok([$topic], 'all in order', duplicates => 1);
	return;
}

# Connections that break, one after the other, and not all the same way.
sub reconnect
{
	my ($c) = @_;
	my $topic = $c->destinations('reconnect');

	$c->server(topics => $topic);
	my $pid = $c->pg->relay_pid('events');
	my $load = $c->load($topic);
	for my $how (qw(reset reset cut reset half reset))
	{
		$c->delivers_ok("delivers before $how");
		$c->broker->link($how);
		if ($how eq 'cut')
		{
			$c->state_ok('retrying', 'state is retrying while nobody answers');
			$c->broker->link('pass');
		}
		elsif ($how eq 'half')
		{
			# answers are lost for a while; the requests have arrived
			$c->holds_for(1, sub { 1 });
			$c->broker->link('reset');
			$c->broker->link('pass');
		}
	}
	$c->delivers_ok('delivers in the end');
	ok($load->running, 'publishers never noticed');
	$c->end_load($load);
	$c->flush_ok;
	is($c->pg->relay_pid('events'), $pid, 'by the same relay');
	$c->judge_outage_ok([$topic], 'all in order');
	is($c->dead_letters('count(*)'), 0, 'no dead letters');
	return;
}

sub clean_stop
{
	my ($c) = @_;
	my $topic = $c->destinations('clean');
	my ($option, $value) = $c->broker->harmless_option;

	$c->server(topics => $topic);
	my $load = $c->load($topic);
	for (1 .. 3)
	{
		my $pid = $c->pg->relay_pid('events');
		$c->delivers_ok;
		$c->pg->kill_process($pid, 'TERM');
		ok($c->pg->new_relay('events', $pid), 'a relay that was asked to end is started again');
	}
	my $pid = $c->pg->relay_pid('events');
	$c->sql(qq{ALTER SERVER events OPTIONS (ADD "$option" '$value')});
	$c->delivers_ok('delivers with another option');
	is($c->pg->relay_pid('events'), $pid, 'reconfigured by the same relay');
	for (1 .. 10)
	{
		$c->sql(q{SELECT outbox.pause('events')});
		$c->sql(q{SELECT outbox.resume('events')});
	}
	ok($load->running, 'publishers never noticed');
	$c->end_load($load);
	$c->sql("SELECT judge.publish_many('$topic', 20000)");
	$c->pg->restart;
	$c->flush_ok;
	$c->judge_ok([$topic], 'all once and in order');
	return;
}

sub crash
{
	my ($c) = @_;
	my $topic = $c->destinations('crash');

	$c->server(topics => $topic);
	for my $how ('the relay is killed', 'PostgreSQL is killed', 'PostgreSQL is killed beside a broker that is down')
	{
		my $load = $c->load($topic);
		$c->delivers_ok;
		$c->sql("SELECT judge.publish_many('$topic', 5000)");
		if ($how =~ /^the relay/)
		{
			my $pid = $c->pg->relay_pid('events');
			$c->pg->kill_process($pid);
			ok($c->pg->new_relay('events', $pid), $how);
		}
		else
		{
			$c->broker->kill_server if $how =~ /broker/;
			$c->pg->crash;
			$c->pg->start;
			$c->broker->start_server;
			pass($how);
		}
		$c->end_load($load);
		$c->flush_ok;
		$c->judge_ok([$topic], 'nothing is lost, all in order', duplicates => 1);
	}
	return;
}

1;
