# A real Kafka to measure against, and the plain producer.
package Bench::Kafka;
use strict;
use warnings;

my $unique = 0;

sub new
{
	my ($class) = @_;
	my $self = bless {
		home => "$ENV{BENCH_HOME}/kafka", programs => $ENV{OUTBOX_BUILD},
		script => "$ENV{BENCH_HOME}/tree/test/support/kafka.sh", pid => $$
	}, $class;

	$ENV{OUTBOX_KAFKA_JAVA_OPTS} ||= '-Xms1g -Xmx1g';
	mkdir $self->{home};
	system($self->{script}, 'start', $self->{home}) == 0 or die "Kafka does not start\n";
	open my $f, '<', "$self->{home}/bootstrap" or die;
	chomp($self->{bootstrap} = <$f>);
	return $self;
}

sub stop
{
	my ($self) = @_;
	return if $self->{stopped}++ || $self->{pid} != $$;
	system($self->{script}, 'stop', $self->{home});
	return;
}

sub DESTROY { local $?; $_[0]->stop; return }

sub bootstrap { return $_[0]{bootstrap} }

# A new topic's name.
sub create_topic
{
	my ($self, $partitions) = @_;
	my $topic = 'bench-' . ++$unique;
	system("$self->{programs}/kafka_admin", $self->{bootstrap}, 'create', $topic, $partitions) == 0
	  or die "no topic $topic\n";
	return $topic;
}

sub delete_topic
{
	my ($self, $topic) = @_;
	system("$self->{programs}/kafka_admin", $self->{bootstrap}, 'delete', $topic);
	return;
}

# How many records a topic holds.
sub count
{
	my ($self, $topic) = @_;
	my $sum = 0;
	for my $line (`$self->{programs}/kafka_admin $self->{bootstrap} watermarks $topic`)
	{
		my (undef, $low, $high) = split ' ', $line;
		$sum += $high - $low;
	}
	return $sum;
}

# The plain producer: seconds, and seconds of CPU.
sub produce
{
	my ($self, $topic, $count, $payload_file, @properties) = @_;
	my $output = `$self->{programs}/bench_producer $self->{bootstrap} $topic $count $payload_file @properties`;
	die "the producer failed\n" if $? || $output !~ /^\d/;
	return split ' ', $output;
}

1;
