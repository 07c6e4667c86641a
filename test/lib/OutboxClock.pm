# A system clock that jumps, of the servers that are started on it (test/faults/clock.c).
#
#   my $clock = OutboxClock->new;
#   $clock->run(sub { $pg->start });      this server's clock
#   $clock->set(-3600);                   an hour behind the real one
#   $clock->ahead;                        -3600
package OutboxClock;

use strict;
use warnings;

use PostgreSQL::Test::Utils ();
use Time::HiRes qw(CLOCK_MONOTONIC clock_gettime usleep);

my $shortest = 1.5;
my $library = ($ENV{OUTBOX_BUILD} || 'build') . '/fault_clock.so';

sub new
{
	my ($class) = @_;
	my $self = bless { file => PostgreSQL::Test::Utils::tempdir() . '/clock' }, $class;
	return $self->set(0);
}

# In place: servers have it mapped.  A change lasts: a relay looks once a second, and set
# forth and back meanwhile, the clock has not changed for it.
sub set
{
	my ($self, $seconds) = @_;
	my $rest = ($self->{since} || 0) + $shortest - clock_gettime(CLOCK_MONOTONIC);
	usleep($rest * 1_000_000) if $rest > 0;
	open my $f, -e $self->{file} ? '+<' : '>', $self->{file} or die "$self->{file}: $!\n";
	syswrite($f, pack('q', $seconds)) == 8 or die "$self->{file}: $!\n";
	close $f;
	$self->{since} = clock_gettime(CLOCK_MONOTONIC) if $seconds != ($self->{ahead} // $seconds);
	$self->{ahead} = $seconds;
	return $self;
}

sub ahead { return $_[0]{ahead} }

# Is the server's clock this one?  Not where something else must be preloaded first.
sub strikes
{
	my ($self, $pg) = @_;
	my $off = $pg->sql('SELECT extract(epoch FROM clock_timestamp())::bigint') - time - $self->{ahead};
	return abs($off) < 60;
}

sub run
{
	my ($self, $code) = @_;
	local $ENV{LD_PRELOAD} = $library;
	local $ENV{FAULT_CLOCK} = $self->{file};
	return $code->();
}

1;
