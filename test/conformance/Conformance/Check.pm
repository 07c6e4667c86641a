# What a check has in its hands: a PostgreSQL, a broker, names of its own, and what it
# would otherwise have to say each time.
#
#   my ($c) = @_;
#   my ($orders, $other) = $c->destinations('orders', 'other');
#   $c->server(topics => "$orders, $other");
#   $c->sql("SELECT judge.publish_many('$orders', 100)");
#   $c->flush_ok;
#   $c->judge_ok([ $orders ], 'all there');
package Conformance::Check;

use strict;
use warnings;

use OutboxTest;
use Time::HiRes ();

my $number = 0;

sub new
{
	my ($class, $pg, $broker, $name) = @_;
	# in topics' names, which several checks have in one broker
	my $run = sprintf 'c%d-%d', $$, ++$number;
	return bless { pg => $pg, broker => $broker, name => $name, run => $run, topics => [],
		log_from => length $pg->log_text }, $class;
}

sub pg { return $_[0]{pg} }
sub broker { return $_[0]{broker} }
sub sql { my ($self, @arguments) = @_; return $self->{pg}->sql(@arguments) }
sub wait_ok { my ($self, @arguments) = @_; local $Test::Builder::Level = $Test::Builder::Level + 1; return $self->{pg}->wait_ok(@arguments) }

# Does the broker lack that?  Then what needs it is skipped, with the reason.
sub lacks
{
	my ($self, $capability) = @_;
	my $reason = $self->{broker}->lacks($capability) or return 0;

	Test::More->builder->skip($self->{broker}->name . ": $reason");
	return 1;
}

# A topic's name, of this check alone.
sub topic { my ($self, $stem) = @_; return "$self->{run}.$stem" }

# Topics' names, of which the destinations are there.
sub destinations
{
	my ($self, @stems) = @_;
	my @topics = map { $self->topic($_) } @stems;

	$self->create($_) for @topics;
	return wantarray ? @topics : $topics[0];
}

sub create
{
	my ($self, $topic, %options) = @_;
	$self->{broker}->create($topic, %options);
	push @{ $self->{topics} }, $topic;
	return $topic;
}

# --- servers ------------------------------------------------------------------------------

sub _options
{
	my (%options) = @_;
	return join ', ', map { qq{"$_" '} . $options{$_} =~ s/'/''/gr . q{'} } sort keys %options;
}

# A server with its user mapping, in one transaction; what is not the core's own comes
# from the broker.  name (events), tls, password as in Conformance::Broker; other options are
# those of CREATE SERVER.
sub server
{
	my ($self, %options) = @_;
	my $name = delete $options{name} || 'events';
	my %how = map { $_ => delete $options{$_} } grep { exists $options{$_} } qw(tls password);
	my $wrapper = 'outbox_' . $self->{broker}->name;
	my $server = _options($self->{broker}->server_options(%how), %options);
	my $mapping = _options($self->{broker}->mapping_options(%how));

	return $self->sql("BEGIN;
		CREATE SERVER $name FOREIGN DATA WRAPPER $wrapper OPTIONS ($server);"
		  . ($mapping ? "CREATE USER MAPPING FOR PUBLIC SERVER $name OPTIONS ($mapping);" : '')
		  . 'COMMIT');
}

sub status
{
	my ($self, $column, $server) = @_;
	$server ||= 'events';
	return $self->sql("SELECT $column FROM outbox.relay_status WHERE server = '$server'");
}

sub state_ok
{
	my ($self, $state, $name, $server) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok($self->{pg}->wait_state($server || 'events', $state), $name || "state is $state");
}

sub delivers_ok
{
	my ($self, $name, $more) = @_;
	my $now = $self->status('delivered');
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $self->wait_ok(sprintf(q{SELECT delivered > %d FROM outbox.relay_status WHERE server = 'events'},
			$now + ($more || 0)), $name || 'delivers');
}

sub flush_ok
{
	my ($self, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok($self->{pg}->flush, $name || 'delivered');
}

# --- what arrived ---------------------------------------------------------------------------

sub judge_ok
{
	my ($self, $topics, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $self->{pg}->judge_ok($self->{broker}, $topics, $name, %options);
}

# After an outage: what the broker had received and not confirmed may be there twice where
# it cannot tell.
sub judge_outage_ok
{
	my ($self, $topics, $name, %options) = @_;
	my $reason = $self->{broker}->lacks('resend_after_outage');
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	note($self->{broker}->name . " may have duplicates: $reason") if $reason;
	return $self->judge_ok($topics, $name, %options, duplicates => defined $reason);
}

sub messages { my ($self, @arguments) = @_; return $self->{broker}->messages(@arguments) }

sub messages_sorted { my ($self, @arguments) = @_; return sort map { $_->{payload} } $self->messages(@arguments) }

# Dead letters.
sub dead_letters
{
	my ($self, $columns, $topic) = @_;
	return $self->sql("SELECT $columns FROM outbox.dead_letter" . ($topic ? " WHERE topic = '$topic'" : ''));
}

# --- time -------------------------------------------------------------------------------------

# Publishers of a topic with so many messages a second, in the order of 20 keys: where a key
# has one message at a time on its way, that is a load and no overload.
sub load { my ($self, $topic) = @_; return $self->{pg}->ordered_load($topic, '-R', 500) }
sub end_load { my ($self, $load) = @_; return $self->{pg}->end_load($load) }

# How long something takes, in seconds.
sub seconds
{
	my ($self, $code) = @_;
	my $start = Time::HiRes::time();
	$code->();
	return Time::HiRes::time() - $start;
}

# Lets time pass while something must hold.
sub holds_for
{
	my ($self, $seconds, $code) = @_;
	my $until = Time::HiRes::time() + $seconds;
	my $holds = 1;
	$self->{pg}->wait_until(sub { $holds &&= $code->(); !$holds || Time::HiRes::time() > $until });
	return $holds;
}

# --- its end ------------------------------------------------------------------------------------

sub clean_up
{
	my ($self) = @_;
	my $pg = $self->{pg};

	$self->{broker}->heal;
	$pg->start unless defined $pg->{_pid};
	$pg->wait_for('SELECT true');
	$pg->sql('SELECT inbox.unsubscribe(name) FROM inbox.subscription');
	$pg->sql(<<'END');
SELECT format('DROP SERVER %I CASCADE', srvname) FROM pg_foreign_server
\gexec
DELETE FROM outbox.dead_letter;
DELETE FROM inbox.dead_letter;
TRUNCATE effect, judge.ledger, judge.key_seq;
ALTER SYSTEM RESET ALL;
END
	$pg->sql('SELECT pg_reload_conf()');
	$pg->wait_for('SELECT count(*) = 0 FROM outbox.relay_status');
	eval { $self->{broker}->delete($_) } for @{ $self->{topics} };
	return;
}

# A check that has a process abort at a fault point says so.
sub expect_aborts { $_[0]{aborts} = 1; return }

# Lines of the log that tell of a crash; what a check itself has killed is not one.
sub crashes
{
	my ($self) = @_;
	my $log = substr $self->{pg}->log_text, $self->{log_from};
	my $expected = $self->{aborts} ? qr/[69]:/ : qr/9:/;
	return join "\n", grep { /PANIC|TRAP:|was terminated by signal (?!$expected)/ } split /\n/, $log;
}

1;
