# Servers with pg_outbox for TAP tests, on top of PostgreSQL::Test::Cluster.
#
#   use OutboxTest;                                  exports Test::More too
#   my $pg = OutboxTest->server('main');             running, extension created
#   my $kafka = OutboxKafka->shared;
#   $pg->create_server('events', $kafka, topics => 'orders.*');
#   $pg->sql(q{SELECT outbox.publish('orders.a', 'payload'::text, 'key')});
#   ok($pg->flush, 'delivered');
#   $pg->judge_ok($kafka, ['orders.a'], 'all there');
#
# Nothing here sleeps for a guessed time: wait_for() polls, has a timeout, and says
# what it waited for.  When a test fails, the end of each server's log and
# outbox.relay_status are printed.
package OutboxTest;

use strict;
use warnings;

use parent -norequire, 'PostgreSQL::Test::Cluster';

use File::Basename qw(dirname);
use IPC::Run ();
use OutboxKafka;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils ();
use Test::More;
use Time::HiRes qw(time usleep);

our $timeout = $ENV{PG_TEST_TIMEOUT_DEFAULT} || 120;
my $file_timeout = $ENV{OUTBOX_FILE_TIMEOUT} || 900;
my $judge_dir = dirname(__FILE__) . '/../judge';
my $unique = 0;
my @servers;

# A server that does not start ends its own file only.
{
	no warnings 'redefine';
	*PostgreSQL::Test::Cluster::BAIL_OUT = sub { die "$_[0]\n" };
	*PostgreSQL::Test::Utils::BAIL_OUT = sub { die "$_[0]\n" };
}

sub import
{
	my ($class) = @_;
	my $caller = caller;
	strict->import;
	warnings->import;
	Test::More->export_to_level(1);
	# a file that hangs is a failure, and cleans up too
	$SIG{ALRM} = sub { die "the whole file took longer than $file_timeout s\n" };
	alarm $file_timeout;
	no strict 'refs';
	*{"${caller}::unique_topic"} = \&unique_topic;
	return;
}

# A name that no other test file uses: the Kafka is shared.
sub unique_topic
{
	my ($stem) = @_;
	my ($file) = $0 =~ m{([^/]+?)(\.pl)?$};
	return sprintf '%s.%s.%d.%d', $stem || 'topic', $file, $$, ++$unique;
}

# Makes and starts a server.
#
# conf       lines of postgresql.conf
# fsync      1: on, for tests that kill the machine's memory of things
# preload    0: without shared_preload_libraries
# extension  0: without CREATE EXTENSION in database postgres
# start      0: not started
# install_path  another PostgreSQL than the one in the PATH
# clock      an OutboxClock that it starts on
sub server
{
	my ($class, $name, %options) = @_;
	my $self = $class->new($name,
		$options{install_path} ? (install_path => $options{install_path}) : ());

	$self->init(%{ $options{init} || {} });
	$self->append_conf('postgresql.conf', join "\n",
		(!exists $options{preload} || $options{preload})
		? "shared_preload_libraries = 'pg_outbox'" : '',
		'wal_level = replica', 'max_wal_senders = 10', 'shared_buffers = 64MB',
		'max_connections = 150', 'max_worker_processes = 32',
		'max_prepared_transactions = 20', 'restart_after_crash = on',
		'log_statement = none', 'log_min_messages = info',
		"log_line_prefix = '%m [%p] %b %q%a '",
		'fsync = ' . ($options{fsync} ? 'on' : 'off'),
		$options{conf} || '', '');
	push @servers, $self;
	return $self if defined $options{start} && !$options{start};
	$options{clock} ? $options{clock}->run(sub { $self->start }) : $self->start;
	$self->sql('CREATE EXTENSION pg_outbox')
	  unless defined $options{extension} && !$options{extension};
	return $self;
}

# --- SQL -------------------------------------------------------------------

# Runs statements and gives their output; dies where one fails.
# Options as safe_psql's: dbname => 'other'.
sub sql
{
	my ($self, $sql, %options) = @_;
	return $self->safe_psql($options{dbname} || 'postgres', $sql);
}

# The statement must fail with a message that matches.
sub sql_fails
{
	my ($self, $sql, $pattern, $name, %options) = @_;
	my ($out, $err);
	my $rc = $self->psql($options{dbname} || 'postgres', $sql,
		stdout => \$out, stderr => \$err, on_error_stop => 1);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok($rc != 0 && $err =~ $pattern, $name) || diag("exit $rc: $err$out");
}

# Polls until the query gives that (default t); false and a word at the timeout.
# Unlike poll_query_until it bears a server that is restarting.
sub wait_for
{
	my ($self, $query, %options) = @_;
	my $expected = defined $options{expect} ? $options{expect} : 't';
	my $until = time + ($options{timeout} || $timeout);
	my ($out, $err) = ('', '');

	while (1)
	{
		my $rc = eval { $self->psql($options{dbname} || 'postgres', $query,
				stdout => \$out, stderr => \$err) };
		return 1 if defined $rc && $rc == 0
		  && (ref $expected ? $out =~ $expected : $out eq $expected);
		last if time > $until;
		usleep(50_000);
	}
	diag("timed out waiting for: $query\nexpected: $expected\nlast: $out $err")
	  unless $options{quiet};
	return 0;
}

sub wait_ok
{
	my ($self, $query, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok($self->wait_for($query, %options), $name);
}

# Polls a Perl condition.
sub wait_until
{
	my ($self, $condition, %options) = @_;
	my $until = time + ($options{timeout} || $timeout);
	while (1)
	{
		return 1 if $condition->();
		return 0 if time > $until;
		usleep(50_000);
	}
}

# Sets outbox.fault ('': nothing) in all processes, whatever crashes of it meanwhile, and
# waits until each has been told: the postmaster tells them before it takes a connection
# that has the new setting.
sub set_fault
{
	my ($self, $fault) = @_;
	return $self->wait_for('ALTER SYSTEM SET outbox.fault = ' . _quote($fault), expect => '')
	  && $self->wait_for('SELECT pg_reload_conf()')
	  && $self->wait_for('SHOW outbox.fault', expect => $fault);
}

# A psql session that stays: ->query('...'), ->quit.
sub session
{
	my ($self, %options) = @_;
	return $self->background_psql($options{dbname} || 'postgres', on_error_stop => 0);
}

# --- servers (brokers) and their relays --------------------------------------

sub _quote
{
	my ($text) = @_;
	$text =~ s/'/''/g;
	return "'$text'";
}

# CREATE SERVER; $kafka is an OutboxKafka or bootstrap servers; options of the server,
# and dbname.
sub create_server
{
	my ($self, $name, $kafka, %options) = @_;
	my $dbname = delete $options{dbname};
	my %all = ('bootstrap.servers' => ref $kafka ? $kafka->bootstrap : $kafka, %options);

	return $self->create_server_of('outbox_kafka', $name, $dbname, %all);
}

# The same of any wrapper, with all of its options.
sub create_server_of
{
	my ($self, $wrapper, $name, $dbname, %options) = @_;
	my $list = join ', ', map { qq{"$_" } . _quote($options{$_}) } sort keys %options;

	return $self->sql(qq{CREATE SERVER "$name" FOREIGN DATA WRAPPER $wrapper OPTIONS ($list)},
		dbname => $dbname);
}

sub relay_status
{
	my ($self, %options) = @_;
	my $out = '';
	$self->psql($options{dbname} || 'postgres', 'SELECT * FROM outbox.relay_status',
		extra_params => ['-x'], stdout => \$out, stderr => \my $err);
	return $out;
}

sub relay_pid
{
	my ($self, $name, %options) = @_;
	return $self->sql("SELECT pid FROM outbox.relay_status WHERE server = '$name'", %options);
}

# A relay's own memory, in kB; 0 for one that has just gone.
sub relay_memory
{
	my ($self, $name) = @_;
	my $pid = $self->relay_pid($name) or return 0;
	my $status = eval { PostgreSQL::Test::Utils::slurp_file("/proc/$pid/status") } or return 0;
	return $status =~ /^RssAnon:\s+(\d+) kB/m ? $1 : 0;
}

# Is it below a bound?  Sanitizers take much more, for themselves.
sub memory_ok
{
	my ($self, $kb, $bound, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return pass("$name: not under a sanitizer") if $ENV{OUTBOX_SANITIZED};
	return cmp_ok($kb, '<', $bound, "$name: $kb kB");
}

sub wait_state
{
	my ($self, $name, $state, %options) = @_;
	return $self->wait_for("SELECT state FROM outbox.relay_status WHERE server = '$name'",
		expect => $state, %options);
}

# outbox.flush(): is everything delivered?
sub flush
{
	my ($self, %options) = @_;
	my $seconds = $options{timeout} || $timeout;
	return $self->sql("SELECT outbox.flush('${seconds}s')", dbname => $options{dbname}) eq 't';
}

# SIGKILL to one process of this server: it restarts itself.
sub kill_process
{
	my ($self, $pid, $signal) = @_;
	die "no pid\n" unless $pid && $pid =~ /^\d+$/;
	return kill($signal || 'KILL', $pid);
}

# SIGKILL to all at once, as when the machine dies; start() brings it back.  The
# postmaster stands still first: a child that it starts meanwhile would be left, and
# could wait for ever for a lock that one of the dead has held.
sub crash
{
	my ($self) = @_;
	my $postmaster = $self->{_pid};

	kill 'STOP', $postmaster;
	$self->wait_until(sub { `ps -o stat= -p $postmaster` !~ /^[^TZ]/ });
	my @children = split /\s+/, `ps -o pid= --ppid $postmaster`;

	kill 'KILL', $postmaster, grep { /^\d+$/ } @children;
	$self->wait_until(sub { !grep { kill 0, $_ } grep { /^\d+$/ } @children, $postmaster });
	$self->{_pid} = undef;
	return;
}

sub log_text
{
	my ($self) = @_;
	return -e $self->logfile ? PostgreSQL::Test::Utils::slurp_file($self->logfile) : '';
}

# A script of pgbench in the background; ->finish waits for its end.
#
#   my $load = $pg->load(clients => 8, seconds => 10, script => q{SELECT ...;});
sub load
{
	my ($self, %options) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/load-' . ++$unique . '.sql';
	open my $f, '>', $file or die "$file: $!\n";
	print $f $options{script};
	close $f;
	my @command = ('pgbench', '-n', '-f', $file, '-c', $options{clients} || 4,
		'-j', $options{threads} || 2,
		$options{transactions} ? ('-t', $options{transactions}) : ('-T', $options{seconds} || 5),
		'-h', $self->host, '-p', $self->port, '-U', (getpwuid($<))[0],
		@{ $options{arguments} || [] }, $options{dbname} || 'postgres');
	my $output = '';
	# else its sessions would have the test's name
	local $ENV{PGAPPNAME} = 'pgbench';
	my $handle = IPC::Run::start(\@command, '<', \'', '>&', \$output);
	return bless { handle => $handle, output => \$output }, 'OutboxTest::Load';
}

# Publishers of a topic whose keys the judge can tell the order of.
sub ordered_load
{
	my ($self, $topic, @arguments) = @_;
	return $self->load(clients => 4, seconds => 600, arguments => \@arguments, script => <<END);
\\set k random(1, 20)
SELECT judge.publish_in_order('$topic', 'k' || :k);
END
}

# Ends them; what was in their hands may commit or not: the ledger knows.
sub end_load
{
	my ($self, $load) = @_;
	$load->stop;
	return $self->wait_for(q{SELECT count(*) = 0 FROM pg_stat_activity
		WHERE application_name = 'pgbench'});
}

# Waits for another relay than that of a pid.
sub new_relay
{
	my ($self, $server, $old) = @_;
	return $self->wait_for("SELECT pid <> $old FROM outbox.relay_status WHERE server = '$server' AND pid IS NOT NULL");
}

# --- the judge -----------------------------------------------------------------

# Makes schema judge; see test/judge/judge.sql.
sub judge_setup
{
	my ($self, %options) = @_;
	return $self->sql(PostgreSQL::Test::Utils::slurp_file("$judge_dir/judge.sql"), %options);
}

# Reads the topics and compares with the ledger: a hash of counts.
# Options: dbname, dead (SQL array of ids that count as dead letters), committed,
# payload => 'none' (faster), consumer's timeout.
sub judge
{
	my ($self, $kafka, $topics, %options) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/consumed-' . ++$unique . '.tsv';
	my $list = 'ARRAY[' . join(', ', map { _quote($_) } @$topics) . ']::text[]';
	my $dead = $options{dead} || 'NULL';

	$kafka->consume_raw($topics, %options, out => $file);
	my $counts = $self->sql(<<END, dbname => $options{dbname});
\\o /dev/null
TRUNCATE judge.consumed;
\\copy judge.consumed from '$file'
ANALYZE judge.consumed;
ANALYZE judge.ledger;
\\o
SELECT * FROM judge.verdict($list, $dead);
END
	unlink $file;
	my %verdict;
	@verdict{qw(published consumed lost phantom reordered stale duplicated damaged scattered)} =
	  split /\|/, $counts;
	return %verdict;
}

# All arrived, once and in order.  duplicates => 1 allows duplicates (after a crash).
sub judge_ok
{
	my ($self, $kafka, $topics, $name, %options) = @_;
	my %verdict = $self->judge($kafka, $topics, %options);
	my @bad = grep { $verdict{$_} } qw(lost phantom reordered stale damaged scattered);

	push @bad, 'duplicated' if $verdict{duplicated} && !$options{duplicates};
	push @bad, 'published' unless $verdict{published} || $options{empty};
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok(!@bad, $name) or diag(join ', ', map { "$_ $verdict{$_}" } sort keys %verdict);
	return %verdict;
}

# --- what helps after a failure --------------------------------------------------

sub explain_failure
{
	my ($self) = @_;
	return if $self->{explained}++;
	my @log = split /\n/, $self->log_text;
	my $from = @log > 60 ? @log - 60 : 0;

	diag("--- end of the log of " . $self->name);
	diag($_) for @log[ $from .. $#log ];
	my $status = eval { defined $self->{_pid} ? $self->relay_status : '' };
	diag("--- outbox.relay_status of " . $self->name . "\n$status") if $status;
	return;
}

END
{
	my $exit_code = $?;
	if ($exit_code != 0 || !Test::More->builder->is_passing)
	{
		eval { $_->explain_failure } for @servers;
	}
	# processes that may end by themselves leave their coverage behind
	if ($ENV{OUTBOX_GENTLE_STOP})
	{
		eval { $_->stop('fast', fail_ok => 1) if defined $_->{_pid} } for @servers;
	}
	$? = $exit_code;
}

package OutboxTest::Load;

sub output { return ${ $_[0]{output} } }

# Is it still at work?
sub running { my ($self) = @_; return !$self->{finished} && $self->{handle}->pumpable && eval { $self->{handle}->pump_nb; 1 } }

# Waits for the end; true when all went well.
sub finish
{
	my ($self) = @_;
	return 1 if $self->{finished}++;
	my $ok = $self->{handle}->finish;
	Test::More::diag(${ $self->{output} }) unless $ok;
	return $ok;
}

sub stop
{
	my ($self) = @_;
	return if $self->{finished}++;
	$self->{handle}->kill_kill(grace => 5);
	return;
}

sub DESTROY { local $?; $_[0]->stop unless $_[0]{finished}; return }

1;
