# A throw-away PostgreSQL to measure, and what /proc says of its processes.
package Bench::Server;
use strict;
use warnings;
use IO::Handle;
use IPC::Open2;
use POSIX ();
use Time::HiRes qw(time usleep);

# Asked for once; the benchmark has one server.
sub new
{
	my ($class, %options) = @_;
	my $self = bless {
		home => $ENV{BENCH_HOME}, bin => $ENV{BENCH_BINDIR},
		data => "$ENV{BENCH_HOME}/data", pid => $$
	}, $class;

	system("$self->{bin}/initdb -D $self->{data} -A trust -N --no-instructions >$self->{home}/initdb.log 2>&1") == 0
	  or die "initdb failed: see $self->{home}/initdb.log\n";
	open my $conf, '>>', "$self->{data}/postgresql.conf" or die;
	print $conf <<END;
shared_preload_libraries = 'pg_outbox'
listen_addresses = ''
unix_socket_directories = '$self->{home}'
max_connections = 160
max_worker_processes = 16
shared_buffers = 1GB
max_wal_size = 16GB
checkpoint_timeout = 1h
END
	close $conf;
	$self->pg_ctl('-l', "$self->{home}/server.log", 'start') or die "the server does not start\n";
	return $self;
}

sub pg_ctl
{
	my ($self, @arguments) = @_;
	return system("$self->{bin}/pg_ctl", '-D', $self->{data}, '-s', '-w', '-t', '120', @arguments) == 0;
}

sub stop
{
	my ($self) = @_;
	return if $self->{stopped}++ || $self->{pid} != $$;
	$self->pg_ctl('-m', 'immediate', 'stop');
	return;
}

sub DESTROY { local $?; $_[0]->stop; return }

sub conninfo
{
	my ($self, $dbname) = @_;
	return "host=$self->{home} dbname=$dbname user=" . getpwuid($<);
}

sub run
{
	my ($self, @command) = @_;
	open my $out, '-|', @command or die "$command[0]: $!\n";
	my $output = do { local $/; <$out> };
	close $out or die "failed: @command\n$output";
	chomp $output;
	return $output;
}

sub psql
{
	my ($self, $dbname) = @_;
	return ("$self->{bin}/psql", '-X', '-q', '-At', '-v', 'ON_ERROR_STOP=1', '-d', $self->conninfo($dbname));
}

# The result of a statement, unaligned.
sub sql
{
	my ($self, $dbname, $sql) = @_;
	my $session = $self->{sessions}{$dbname};
	return $session ? ask($session, $sql) : $self->run($self->psql($dbname), '-c', $sql);
}

# From now on statements for a database go through one session, so that what is timed is
# what they do, and neither the start of a psql nor that of a backend.
sub open_session
{
	my ($self, $dbname) = @_;
	my $session = {};

	$session->{pid} = open2($session->{from}, $session->{to}, $self->psql($dbname));
	$session->{to}->autoflush(1);
	ask($session, 'SELECT 1');
	$self->{sessions}{$dbname} = $session;
	return;
}

sub close_session
{
	my ($self, $dbname) = @_;
	my $session = delete $self->{sessions}{$dbname};

	close $session->{to};
	close $session->{from};
	local $?;
	waitpid $session->{pid}, 0;
	return;
}

sub ask
{
	my ($session, $sql) = @_;
	my $output = '';

	print { $session->{to} } "$sql;\n\\echo -- end\n";
	while (my $line = readline $session->{from})
	{
		if ($line eq "-- end\n")
		{
			chomp $output;
			return $output;
		}
		$output .= $line;
	}
	die "failed: $sql\n$output";
}

# Seconds that a statement took, as psql saw it.
sub seconds
{
	my ($self, $dbname, $sql, %settings) = @_;
	local $ENV{PGOPTIONS} = join ' ', map { "-c $_=$settings{$_}" } keys %settings;
	my $output = $self->run("$self->{bin}/psql", '-X', '-At', '-v', 'ON_ERROR_STOP=1',
		'-d', $self->conninfo($dbname), '-c', '\timing on', '-c', $sql);
	my ($ms) = $output =~ /Time: ([\d.]+) ms/ or die "no time: $output\n";
	return $ms / 1000;
}

# Start again with these settings on top.
sub restart
{
	my ($self, %settings) = @_;
	my $options = join ' ', map { "-c $_=$settings{$_}" } sort keys %settings;
	$self->pg_ctl('-l', "$self->{home}/server.log", '-o', $options, 'restart') or die "the server does not start with $options\n";
	return;
}

# A database with the extension and the table that is compared with.
sub create_database
{
	my ($self, $name) = @_;
	$self->sql('postgres', "CREATE DATABASE $name");
	$self->sql($name, 'CREATE EXTENSION pg_outbox');
	$self->sql($name, 'CREATE TABLE bare (id bigserial PRIMARY KEY, topic text, '
		  . 'key text, payload jsonb, created timestamptz DEFAULT now())');
	return;
}

sub drop_database
{
	my ($self, $name) = @_;
	$self->sql('postgres', "DROP DATABASE $name");
	return;
}

# Runs pgbench on a script: transactions a second, and the server's microseconds
# of CPU a transaction, which other load on the machine disturbs less.
#   clients, seconds or transactions, settings => {}, define => {}
sub pgbench
{
	my ($self, $dbname, $script, %options) = @_;
	my $threads = $options{clients} < 2 ? 1 : 2;
	my $settings = $options{settings} || {};
	my $define = $options{define} || {};

	local $ENV{PGOPTIONS} = join ' ', map { "-c $_=$settings->{$_}" } keys %$settings;
	my $before = $self->ended_cpu_seconds($dbname);
	my $output = $self->run("$self->{bin}/pgbench", '-n', '-M', 'prepared', '-f', $script,
		'-c', $options{clients}, '-j', $threads,
		$options{transactions} ? ('-t', $options{transactions}) : ('-T', $options{seconds}),
		(map { ('-D', "$_=$define->{$_}") } keys %$define), $self->conninfo($dbname));
	my ($tps) = $output =~ /^tps = ([\d.]+)/m or die "no tps: $output\n";
	my ($n) = $output =~ /actually processed: (\d+)/ or die "no count: $output\n";
	return ($tps, 1e6 * ($self->ended_cpu_seconds($dbname) - $before) / $n);
}

# CREATE SERVER for a broker.
sub create_server
{
	my ($self, $dbname, $name, $bootstrap, %options) = @_;
	my %all = ('bootstrap.servers' => $bootstrap, %options);
	my $list = join ', ', map { "\"$_\" '$all{$_}'" } sort keys %all;
	return $self->sql($dbname, "CREATE SERVER $name FOREIGN DATA WRAPPER outbox_kafka OPTIONS ($list)");
}

sub flush
{
	my ($self, $dbname, $seconds) = @_;
	$self->sql($dbname, "SELECT outbox.flush('${seconds}s')") eq 't'
	  or die "not delivered within $seconds s:\n"
	  . $self->sql($dbname, 'SELECT * FROM outbox.relay_status') . "\n";
	return;
}

sub wait_for
{
	my ($self, $dbname, $query, $seconds) = @_;
	my $until = time + $seconds;

	until ($self->sql($dbname, $query) eq 't')
	{
		die "waited for $seconds s: $query\n" if time > $until;
		usleep(50_000);
	}
	return;
}

# Size of the log and its dead rows.
sub log_bytes
{
	my ($self, $dbname) = @_;
	return $self->sql($dbname, 'SELECT sum(pg_relation_size(relid)) FROM outbox.segments');
}

# --- processes -------------------------------------------------------------------

sub relay_pid
{
	my ($self, $dbname, $name) = @_;
	$self->wait_for($dbname, "SELECT pid IS NOT NULL FROM outbox.relay_status WHERE server = '$name'", 30);
	return $self->sql($dbname, "SELECT pid FROM outbox.relay_status WHERE server = '$name'");
}

sub keeper_pid
{
	my ($self, $dbname) = @_;
	return $self->sql($dbname, "SELECT pid FROM pg_stat_activity WHERE datname = '$dbname' "
		  . "AND backend_type LIKE 'pg_outbox keeper%' LIMIT 1");
}

sub proc_status
{
	my ($path, $field) = @_;
	open my $f, '<', $path or return;
	while (my $line = <$f>)
	{
		return $1 if $line =~ /^\Q$field\E:\s+(\d+)/;
	}
	return;
}

# Anonymous memory, in MB.
sub anonymous_mb
{
	my ($self, $pid) = @_;
	my $kb = proc_status("/proc/$pid/status", 'RssAnon');
	return defined $kb ? $kb / 1024 : undef;
}

# How often the main thread has gone to sleep.
sub switches
{
	my ($self, $pid) = @_;
	return proc_status("/proc/$pid/task/$pid/status", 'voluntary_ctxt_switches');
}

# Two fields of /proc/PID/stat that count clock ticks, from that one on.
sub ticks
{
	my ($pid, $field) = @_;
	open my $f, '<', "/proc/$pid/stat" or return;
	my ($rest) = <$f> =~ /\) (.*)/;
	my @fields = split / /, $rest;
	return ($fields[$field] + $fields[ $field + 1 ]) / POSIX::sysconf(POSIX::_SC_CLK_TCK());
}

# Seconds of CPU, all threads.
sub cpu_seconds
{
	my ($self, $pid) = @_;
	return ticks($pid, 11);
}

# Seconds of CPU of the sessions that have ended.
sub ended_cpu_seconds
{
	my ($self, $dbname) = @_;
	open my $f, '<', "$self->{data}/postmaster.pid" or die;
	my $postmaster = <$f> + 0;
	$self->wait_for($dbname, "SELECT count(*) = 0 FROM pg_stat_activity "
		  . "WHERE backend_type = 'client backend' AND application_name = 'pgbench'", 30);
	return ticks($postmaster, 13);
}

1;
