# What the scenarios run on, made once and used by one after the other: a PostgreSQL,
# and Kafkas of one and of three brokers behind a proxy whose links can be cut.  What a
# scenario leaves broken is thrown away and made anew.
package Faults::World;

use strict;
use warnings;

use IPC::Run ();
use OutboxClock;
use OutboxKafka;
use OutboxTest;
use Time::HiRes qw(time usleep);

my $build = $ENV{OUTBOX_BUILD} || 'build';
my $unique = 0;

my @worlds;
my $clock;

# whoever ends it wants its servers ended too
$SIG{TERM} = $SIG{INT} = $SIG{HUP} = sub { die "death by signal\n" };

sub new
{
	my ($class) = @_;
	push @worlds, bless { kafka => {} }, $class;
	$clock ||= OutboxClock->new;
	return $worlds[-1];
}

# The clock of all PostgreSQL servers.
sub clock { return $clock }

# --- PostgreSQL ------------------------------------------------------------------

sub pg
{
	my ($self) = @_;
	$self->{pg} ||= OutboxTest->server('faults' . ++$unique, extension => 0,
		clock => $clock, init => { allows_streaming => 1 }, conf => <<END);
include_if_exists = 'faults.conf'
wal_keep_size = 512MB
autovacuum_naptime = 5s
END
	# a scenario that fails says itself what there is to say
	$self->{pg}{explained} = 1;
	return $self->{pg};
}

# Another one takes its place: a standby that was promoted.
sub replace_pg
{
	my ($self, $pg) = @_;
	my $old = $self->{pg};
	$self->{pg} = $pg;
	return $old;
}

sub give_up_pg
{
	my ($self) = @_;
	my $pg = delete $self->{pg} or return;
	eval { $pg->stop('immediate', fail_ok => 1) };
	return;
}

# Settings that all processes see: a file of their own, written anew each time.
# An undefined value takes one away.
sub set
{
	my ($class, $pg, %settings) = @_;
	my $all = $pg->{fault_settings} ||= {};

	for (keys %settings)
	{
		if (defined $settings{$_}) { $all->{$_} = $settings{$_} }
		else { delete $all->{$_} }
	}
	my $file = $pg->data_dir . '/faults.conf';
	open my $f, '>', "$file.new" or die "$file: $!\n";
	print $f "$_ = '$all->{$_}'\n" for sort keys %$all;
	close $f;
	rename "$file.new", $file or die "$file: $!\n";
	# the postmaster's own: also while it restarts its children
	my $pid = postmaster($pg);
	kill 'HUP', $pid if $pid;
	return;
}

# All settings as a scenario finds them.
sub reset_settings
{
	my ($class, $pg, %settings) = @_;
	$pg->{fault_settings} = {};
	return $class->set($pg, %settings);
}

sub postmaster
{
	my ($pg) = @_;
	open my $f, '<', $pg->data_dir . '/postmaster.pid' or return;
	my $pid = <$f>;
	return unless $pid && $pid =~ /^(\d+)$/ && $1 > 1;
	return kill(0, $1) ? $1 : undef;
}

# Starts it after whatever: what is left of the last one may take a moment to go.
sub start_pg
{
	my ($class, $pg) = @_;
	my $until = time + 60;

	$pg->{_pid} = undef;
	while (1)
	{
		return 1 if $clock->run(sub { $pg->start(fail_ok => 1) });
		# it may have started all the same, too slowly for pg_ctl
		eval { $pg->_update_pid(-1) };
		return 1 if defined $pg->{_pid} && $class->wait_up($pg);
		die "PostgreSQL does not start\n" if time > $until;
		usleep(200_000);
	}
}

sub wait_up
{
	my ($class, $pg) = @_;
	return $pg->wait_for('SELECT true', timeout => 60, quiet => 1);
}

# A standby of it that streams.
sub standby
{
	my ($self) = @_;
	my $pg = $self->pg;
	my $name = 'standby' . ++$unique;

	$pg->backup($name);
	my $standby = OutboxTest->new($name);
	$standby->init_from_backup($pg, $name, has_streaming => 1);
	PostgreSQL::Test::Utils::system_log('rm', '-rf', $pg->backup_dir . "/$name");
	$clock->run(sub { $standby->start });
	$pg->wait_for("SELECT count(*) FROM pg_stat_replication WHERE application_name = '$name' AND state = 'streaming'",
		expect => 1) or die "the standby does not stream\n";
	return $standby;
}

# --- Kafka ---------------------------------------------------------------------------

# Of so many brokers.
sub kafka
{
	my ($self, $brokers) = @_;
	return $self->{kafka}{$brokers} if $self->{kafka}{$brokers};

	my $kafka = OutboxKafka->start(brokers => $brokers, auto_create => 'false', sasl => 1, proxied => 1,
		disks => $ENV{OUTBOX_BROKER_DISKS} && "$ENV{OUTBOX_BROKER_DISKS}/$brokers",
		# the clock of PostgreSQL may be ahead
		set => [ 'file.delete.delay.ms=1000', 'log.segment.bytes=67108864',
			'log.message.timestamp.after.max.ms=9223372036854775807' ]);
	$kafka->{brokers} = $brokers;
	$kafka->start_proxy;
	$self->{kafka}{$brokers} = $kafka;
	return $kafka;
}

# Leaves nothing of a broker's disk, and gives it back.
sub fill_disk
{
	my ($class, $kafka, $n) = @_;
	open my $f, '>', "$kafka->{disks}/$n/filler" or die "$kafka->{disks}/$n: $!\n";
	for my $size (1 << 20, 4096)
	{
		1 while (syswrite($f, 'x' x $size) // 0) > 0;
	}
	close $f;
	return;
}

sub free_disk { my ($class, $kafka, $n) = @_; unlink "$kafka->{disks}/$n/filler" if $kafka->{disks}; return }

# Everything as it was, whatever a scenario has done to it.
sub heal_kafka
{
	my ($class, $kafka) = @_;
	$kafka->link_command(0, 'pass');
	for my $n (1 .. $kafka->{brokers})
	{
		$kafka->thaw($n);
		$class->free_disk($kafka, $n);
		$kafka->start_broker($n, 0) unless $kafka->broker_pid($n);
	}
	$kafka->admin('brokers', $kafka->{brokers}, 60);
	return;
}

sub end
{
	my ($self) = @_;
	$self->{ended} = 1;
	if (my $pg = $self->{pg})
	{
		$pg->{_pid} = postmaster($pg);
		eval { $pg->stop('immediate') };
	}
	$_->stop for values %{ $self->{kafka} };
	return;
}

# also when it is cut off
END
{
	local $?;
	$_->end for grep { !$_->{ended} } @worlds;
}

1;
