# The log step by step: sessions that can be left waiting, a reader driven from SQL,
# servers that deliver what the test says.
#
#   my $log = OutboxLog->setup($pg);                 schema test, see support/reader.sql
#   my $p = $log->session('append-after-id=lock:1'); outbox.fault of that session
#   $p->start("SELECT outbox.publish('t', 'a')");    does not wait for the end
#   $log->wait_lock($p);                             ... until it waits at a lock
#   my $r = $log->reader;                            all that is retained
#   $r->round                                        payloads, in the order of reading
package OutboxLog;

use strict;
use warnings;

use File::Basename qw(dirname);
use OutboxTest;

my $sql = dirname(__FILE__) . '/../support/reader.sql';

sub setup
{
	my ($class, $pg, %options) = @_;
	$pg->sql(PostgreSQL::Test::Utils::slurp_file($sql), %options);
	return bless { pg => $pg, %options }, $class;
}

sub pg { return $_[0]{pg} }

sub session
{
	my ($self, $fault) = @_;
	my $session = bless { log => $self,
		psql => $self->{pg}->session(dbname => $self->{dbname}) }, 'OutboxLog::Session';
	$session->{pid} = $session->do('SELECT pg_backend_pid()');
	$session->do("SET outbox.fault = '$fault'") if $fault;
	return $session;
}

# A reader; now => 1: only of what ends from now on.
sub reader
{
	my ($self, $fault, %options) = @_;
	my $session = bless $self->session($fault), 'OutboxLog::Reader';
	$session->do('SELECT test.open(' . ($options{now} ? 'false' : 'true') . ')');
	return $session;
}

# Waits until a session waits: for a heavyweight lock, or another kind.
sub wait_lock
{
	my ($self, $session, $kind) = @_;
	$kind ||= 'Lock';
	return $self->{pg}->wait_for("SELECT wait_event_type FROM pg_stat_activity WHERE pid = $session->{pid}",
		expect => $kind) || die "session does not wait for $kind\n";
}

# A server that never connects: its position is what deliver() says.
sub paused_server
{
	my ($self, $name) = @_;
	$self->{pg}->create_server($name, '127.0.0.1:1', paused => 'true', dbname => $self->{dbname});
	return;
}

# As if a server had delivered all that has been published; low and cursor at
# the id given, or behind the last.
sub deliver
{
	my ($self, $name, $low) = @_;
	$low ||= $self->next_id;
	return $self->deliver_sql($name, $low);
}

# The same without publishing: behind the highest id that the log holds, or where
# it stands when the log is empty.
sub deliver_sql
{
	my ($self, $name, $low) = @_;
	$low ||= "coalesce((SELECT max(last_id) + 1 FROM test.pages()),
		(SELECT max(low) FROM outbox.position_log WHERE server_name = '$name'))";
	$self->{pg}->sql(<<END, dbname => $self->{dbname});
INSERT INTO outbox.position_log (server, server_name, n, s1, s2, cursor, low)
SELECT s.oid, s.srvname, (SELECT max(n) + 1 FROM outbox.position_log p WHERE p.server = s.oid),
	pg_current_snapshot(), pg_current_snapshot(), low - 1, low
FROM pg_foreign_server s, (SELECT $low) l(low) WHERE srvname = '$name';
END
	return;
}

# The id that comes next: taken by a message that is rolled back, plus one.
sub next_id
{
	my ($self) = @_;
	return 1 + $self->{pg}->sql(<<END, dbname => $self->{dbname});
BEGIN;
SELECT outbox.publish('probe', 'probe');
ROLLBACK;
END
}

# Segments that hold something (or are in a lane's chain behind the current one).
sub listed
{
	my ($self) = @_;
	return $self->{pg}->sql('SELECT count(*) FROM outbox.segments WHERE lane IS NOT NULL',
		dbname => $self->{dbname});
}

sub wait_listed
{
	my ($self, $condition) = @_;
	return $self->{pg}->wait_for("SELECT count(*) $condition FROM outbox.segments WHERE lane IS NOT NULL",
		dbname => $self->{dbname});
}

# Settings that workers see: for the keeper's rules and fault points.
sub workers_fault
{
	my ($self, $fault) = @_;
	$self->{pg}->append_conf('postgresql.conf', "outbox.fault = '$fault'");
	$self->{pg}->reload;
	return;
}

package OutboxLog::Session;

use strict;
use warnings;

# Runs statements and gives their output; an error's text where they fail.
sub do
{
	my ($self, $sql) = @_;
	my ($out, $failed) = $self->{psql}->query("$sql;");
	my $err = $self->{psql}{stderr};
	$self->{psql}{stderr} = '';
	return $failed ? $err : $out;
}

sub start
{
	my ($self, $sql) = @_;
	my $out = $self->{psql}->query_until(qr/started\n/, "\\echo started\n$sql;\n");

	# a quick answer comes together with the echo
	($self->{ahead}) = $out =~ /started\n(.*)\z/s;
	return;
}

sub finish
{
	my ($self) = @_;
	my $ahead = delete $self->{ahead};
	my $out = $self->do('');

	chomp $ahead;
	return $ahead eq '' ? $out : $out eq '' ? $ahead : "$ahead\n$out";
}

sub quit { $_[0]{psql}->quit; return }

package OutboxLog::Reader;

use strict;
use warnings;

our @ISA = ('OutboxLog::Session');

my $list = q{coalesce(string_agg(CASE WHEN damaged THEN 'damaged' WHEN length(payload) > 40
	THEN left(payload, 5) || '*' || length(payload) ELSE coalesce(payload, 'NULL') END, ' '), '-')};

# A round to its end: the payloads.
sub round_sql { return "BEGIN; SELECT $list FROM test.round(); COMMIT" }
sub round { return $_[0]->do(round_sql()) }

sub begin { return $_[0]->do('BEGIN; SELECT test.begin(); COMMIT') }

sub fetch
{
	my ($self, $max) = @_;
	return $self->do("BEGIN; SELECT $list FROM test.fetch($max); COMMIT");
}

sub resume { return $_[0]->do('BEGIN; SELECT test.resume(); COMMIT') }

sub state
{
	my ($self, $column) = @_;
	return $self->do("BEGIN; SELECT $column FROM test.state(); COMMIT");
}

1;
