# A real Apache Kafka for tests, started and ended by test/support/kafka.sh.
#
#   my $kafka = OutboxKafka->shared;              one for all test files
#   my $kafka = OutboxKafka->start(brokers => 3); one's own: brokers are killed
#   $kafka->bootstrap; $kafka->create_topic('t', 4, 'cleanup.policy=compact');
#   my @messages = $kafka->consume('t');          hashes, see consume()
#
# What a test starts is ended with it, also when it fails.
package OutboxKafka;

use strict;
use warnings;

use Exporter 'import';
use File::Basename qw(basename dirname);
use File::Temp;
use IO::Socket::INET;
use IPC::Run ();
use OutboxConsumed;
use OutboxProxy;
use PostgreSQL::Test::Utils ();

my $tree = dirname(__FILE__) . '/../..';
my $build = $ENV{OUTBOX_BUILD} || "$tree/build";
my @started;

# The one that test/run-check has started, or one's own.
sub shared
{
	my ($class) = @_;
	return $class->start unless $ENV{OUTBOX_KAFKA_DIR};
	return bless { dir => $ENV{OUTBOX_KAFKA_DIR}, shared => 1 }, $class;
}

# Options: brokers, auto_create ('true', 'false'), partitions, message_max_bytes,
# sasl (1), tls (1), proxied (1: clients are sent to ports of a proxy), disks (a directory
# with one for each broker), set (['property=value', ...]).
sub start
{
	my ($class, %options) = @_;
	my $self = bless { dir => File::Temp::tempdir('outbox-kafka-XXXXXX', TMPDIR => 1) }, $class;
	my @arguments;

	push @arguments, '--brokers', $options{brokers} if $options{brokers};
	push @arguments, '--auto-create', $options{auto_create} if $options{auto_create};
	push @arguments, '--partitions', $options{partitions} if $options{partitions};
	push @arguments, '--message-max-bytes', $options{message_max_bytes}
	  if $options{message_max_bytes};
	push @arguments, '--sasl' if $options{sasl};
	push @arguments, '--tls' if $options{tls};
	push @arguments, '--proxied' if $options{proxied};
	push @arguments, '--disks', $self->{disks} = $options{disks} if $options{disks};
	push @arguments, map { ('--set', $_) } @{ $options{set} || [] };
	push @started, $self;
	$self->control('start', @arguments);
	return $self;
}

# A command of kafka.sh; dies where that fails.
sub control
{
	my ($self, $command, @arguments) = @_;
	local $?;
	system("$tree/test/support/kafka.sh", $command, $self->{dir}, @arguments) == 0
	  or die "kafka.sh $command failed\n";
}

sub stop
{
	my ($self) = @_;
	return if $self->{shared} || $self->{stopped}++;
	eval { $self->{proxy}->stop } if $self->{proxy};
	$self->control('stop');
	system('rm', '-rf', $self->{dir}, $self->{disks} ? glob "$self->{disks}/*/" . basename($self->{dir}) : ());
}

# The proxy of one that is proxied: its links pass what comes.
sub start_proxy
{
	my ($self) = @_;
	$self->{proxy} =
	  OutboxProxy->start(split /\n/, PostgreSQL::Test::Utils::slurp_file("$self->{dir}/proxy"));
	return;
}

# A command to it: link_command(0, 'cut'); 0 is all links.
sub link_command { my ($self, @command) = @_; return $self->{proxy}->command(@command) }

sub kill_broker { my ($self, $n) = @_; $self->control('kill', $n || 1) }
sub stop_broker { my ($self, $n) = @_; $self->control('stop-broker', $n || 1) }
# returns when so many brokers (1) answer; 0: at once
sub start_broker { my ($self, $n, $wait) = @_; $self->control('start-broker', $n || 1, $wait // 1) }
sub freeze { my ($self, $n) = @_; $self->control('freeze', $n || 1) }
sub thaw { my ($self, $n) = @_; $self->control('thaw', $n || 1) }

sub _line
{
	my ($file) = @_;
	open my $f, '<', $file or die "$file: $!\n";
	chomp(my $line = <$f>);
	return $line;
}

sub bootstrap { return _line("$_[0]{dir}/bootstrap") }

# of a broker that runs
sub broker_pid
{
	my ($self, $n) = @_;
	my $pid = eval { _line("$self->{dir}/$n/pid") } or return;
	# empty for one that has ended
	return eval { _line("/proc/$pid/cmdline") } ? $pid : undef;
}

# without passwords, where clients need one
sub admin_bootstrap { return _line("$_[0]{dir}/bootstrap.admin") }

# of the listener for TLS
sub tls_bootstrap { return _line("$_[0]{dir}/bootstrap.tls") }

# The text of a file of its certificates: ca, other-ca, client; client.key.
sub certificate
{
	my ($self, $name) = @_;
	my $file = $name =~ /\.key$/ ? $name : "$name.pem";
	return PostgreSQL::Test::Utils::slurp_file("$self->{dir}/tls/$file");
}

# A command of kafka_admin; gives its output, dies where that fails.
sub admin
{
	my ($self, @command) = @_;
	my ($out, $err) = ('', '');
	local $?;
	IPC::Run::run([ "$build/kafka_admin", $self->admin_bootstrap, @command ],
		'>', \$out, '2>', \$err)
	  or die "kafka_admin @command: $err";
	return $out;
}

sub create_topic
{
	my ($self, $topic, $partitions, @config) = @_;
	return $self->admin('create', $topic, $partitions || 4, @config);
}

sub delete_topic { my ($self, @topics) = @_; return $self->admin('delete', @topics) }
sub set_config { my ($self, $topic, @config) = @_; return $self->admin('config', $topic, @config) }
sub topics { return map { (split /\t/)[0] } split /\n/, $_[0]->admin('list') }

# Forbids a user something, and takes that back.  What: topic, group or id (a transactional one),
# by name; operation: read, write, describe, create, all.
# Without any entry for a topic, all is allowed; with one, all else is forbidden.
sub deny { my ($self, @what) = @_; return $self->_access(30, 2, @what) }
sub undeny { my ($self, @what) = @_; return $self->_access(31, 2, @what) }
sub allow { my ($self, @what) = @_; return $self->_access(30, 3, @what) }
sub unallow { my ($self, @what) = @_; return $self->_access(31, 3, @what) }

# CreateAcls, DeleteAcls and DescribeAcls by hand: librdkafka has no transactional ids among
# them.  Waits until each broker goes by it; one that is away does once it is back.
sub _access
{
	my ($self, $api, $permission, $user, $operation, $kind, $name) = @_;
	my %kinds = (topic => 2, group => 3, id => 5);
	my %operations = (all => 2, read => 3, write => 4, create => 5, describe => 8);
	my $text = sub { pack('n/a*', $_[0]) };
	my $entry = pack('C', $kinds{$kind}) . $text->($name) . pack('C', 3) . $text->("User:$user") .
	  $text->('*') . pack('CC', $operations{$operation}, $permission);
	my @brokers = split /,/, $self->admin_bootstrap;
	my $answer;
	for (@brokers)
	{
		$answer = _request($_, $api, pack('N', 1) . $entry) and last;
	}
	# after the throttle time: number of results, error of the first
	my ($n, $error) = unpack 'x4Nn', $answer // die "broker: none is there\n";
	die "access list: error $error\n" unless $n == 1 && $error == 0;

	for my $broker (@brokers)
	{
		my $until = time + 60;

		while ($answer = _request($broker, 29, $entry))
		{
			# error, its text (none), number of resources with such an entry
			last if (unpack 'x4nnN', $answer)[2] == ($api == 30);
			die "access list: $broker does not go by it\n" if time > $until;
			select undef, undef, undef, 0.01;
		}
	}
	return;
}

# The answer to a request, without its correlation id; undef: no such broker is there.
sub _request
{
	my ($broker, $api, $body) = @_;
	my $socket = IO::Socket::INET->new(PeerAddr => $broker) or return;
	local $SIG{PIPE} = 'IGNORE';

	print $socket pack('N/a*', pack('nnN', $api, 1, 1) . pack('n/a*', 'test') . $body);
	read($socket, my $size, 4) == 4 or die "no answer\n";
	read($socket, my $answer, unpack('N', $size));
	return substr($answer, 4);
}

# The broker that leads a topic's first partition; a new topic is not known everywhere at once.
sub leader
{
	my ($self, $topic) = @_;
	my $until = time + 60;
	my $leader;

	until (($leader) = (eval { $self->admin('leaders', $topic) } // '') =~ /^0\t(\d+)/m)
	{
		die "topic $topic has no leader\n" if time > $until;
		select undef, undef, undef, 0.05;
	}
	return $leader;
}

# Waits until all partitions of topics have so many replicas in sync: a broker that is
# killed earlier may have been the only one that has all of a partition.
sub wait_in_sync
{
	my ($self, $replicas, @topics) = @_;
	my $until = time + 120;

	for my $topic (@topics)
	{
		until (eval { !grep { (split /\t/)[2] < $replicas } split /\n/, $self->admin('leaders', $topic) })
		{
			die "topic $topic has not $replicas replicas in sync\n" if time > $until;
			select undef, undef, undef, 0.05;
		}
	}
	return;
}

# Takes over a transactional id, as a second instance would.
sub fence { my ($self, $id) = @_; return $self->admin('fence', $id) }

# Leaves a transaction of that id open that has written to a topic; fence() aborts it.
sub leave_open { my ($self, $id, $topic) = @_; return $self->admin('leave-open', $id, $topic) }

# Messages in a topic, as its watermarks say.
sub count
{
	my ($self, $topic) = @_;
	my $n = 0;
	for (split /\n/, $self->admin('watermarks', $topic))
	{
		my (undef, $low, $high) = split /\t/;
		$n += $high - $low;
	}
	return $n;
}

sub _hex { my ($value) = @_; return defined $value ? unpack('H*', $value) : '\N' }

# A message as a line of kafka_produce.
sub produce_line
{
	my ($topic, %m) = @_;
	return join("\t", $topic, $m{partition} // -1, $m{timestamp} // 0, _hex($m{key}), _hex($m{payload}),
		map { $_->[0], _hex($_->[1]) } @{ $m{headers} || [] }) . "\n";
}

# Sends messages as any producer may: hashes of payload, key, headers ([name, value], ...),
# partition (0), timestamp (ms since 1970); undef is none.
sub produce
{
	my ($self, $topic, @messages) = @_;
	my $lines = join '', map { produce_line($topic, partition => 0, %$_) } @messages;
	my $err = '';
	local $?;
	IPC::Run::run([ "$build/kafka_produce", $self->admin_bootstrap ], '<', \$lines, '2>', \$err)
	  or die "kafka_produce: $err";
	return;
}

# Runs judge_consume; options as its own: n, committed, timeout, payload, out.
sub consume_raw
{
	my ($self, $topics, %options) = @_;
	my @command = ("$build/judge_consume");
	my ($out, $err) = ('', '');

	push @command, '-n', $options{n} if $options{n};
	push @command, '-c' if $options{committed};
	push @command, '-t', $options{timeout} || 60;
	push @command, '-p', $options{payload} || 'hex';
	push @command, '-o', $options{out} if $options{out};
	local $?;
	IPC::Run::run([ @command, $self->admin_bootstrap, @$topics ], '>', \$out, '2>', \$err)
	  or warn "judge_consume: $err";
	return $out;
}

# What is in a topic (or several: an array), in the order of the partitions' offsets:
# hashes of topic, partition, offset, timestamp, message_id, key, headers (array of
# pairs), header (hash), payload.  n => N waits for so many.
sub consume
{
	my ($self, $topic, %options) = @_;
	my $out = $self->consume_raw(ref $topic ? $topic : [$topic], %options, payload => 'hex');

	return OutboxConsumed::messages($out);
}

END
{
	local $?;
	eval { $_->stop } for @started;
}

1;
