# The network between clients and brokers, that fails as it is told to: fault_proxy
# (test/faults/proxy.c) in the background.
#
#   my $proxy = OutboxProxy->start('5001:9092');    port to connect to, port of the broker
#   $proxy->command(1, 'delay', 100);               link 1; 0 is all of them
#   my $proxy = OutboxProxy->before(9092);          one link, on a free port: $proxy->port
package OutboxProxy;

use strict;
use warnings;

use File::Basename qw(dirname);
use IO::Socket::INET;
use IPC::Run ();

my $build = $ENV{OUTBOX_BUILD} || dirname(__FILE__) . '/../../build';

sub start
{
	my ($class, @links) = @_;
	my ($in, $out) = ('', '');
	my $handle = IPC::Run::start([ "$build/fault_proxy", @links ], '<', \$in, '>', \$out);

	$handle->pump until $out =~ /ready\n/;
	return bless { in => \$in, out => \$out, handle => $handle }, $class;
}

sub before
{
	my ($class, $port) = @_;
	my $socket = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1') or die "no port: $!\n";
	my $free = $socket->sockport;

	close $socket;
	my $self = $class->start("$free:$port");
	$self->{port} = $free;
	return $self;
}

sub port { return $_[0]{port} }

sub command
{
	my ($self, @command) = @_;

	${ $self->{out} } = '';
	${ $self->{in} } .= "@command\n";
	$self->{handle}->pump until ${ $self->{out} } =~ /\n/;
	die "the proxy says: ${ $self->{out} }" unless ${ $self->{out} } eq "ok\n";
	return;
}

sub stop
{
	my ($self) = @_;
	$self->{handle}->kill_kill(grace => 1);
	return;
}

1;
