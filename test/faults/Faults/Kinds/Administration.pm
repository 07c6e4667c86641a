# What a DBA does while all runs: maintenance in every form, DDL on servers in storms,
# settings, segments tampered with (refused), standbys promoted.
package Faults::Kinds::Administration;

use strict;
use warnings;

use Faults::Kinds;
use Faults::World;
use OutboxTest;
use Time::HiRes qw(usleep);

sub pick { return $_[ int rand @_ ] }

# One statement in one of the databases; the server may be busy coming back.
sub statement
{
	my ($scenario, @sql) = @_;
	my $sql = pick(@sql);
	return defined $scenario->try_sql($scenario->database->{name}, $sql) ? $sql : 0;
}

Faults::Kinds::add('vacuum', weight => 2, inject => sub {
	return statement($_[0], 'VACUUM', 'VACUUM (TRUNCATE)', 'VACUUM (TRUNCATE, INDEX_CLEANUP ON)', 'VACUUM (FREEZE)',
		'VACUUM (FREEZE, ANALYZE)', 'ANALYZE');
});
Faults::Kinds::add('vacuum-full', weight => 3, inject => sub {
	# what a crash has left prepared holds its locks for ever
	$_[0]->decide_prepared;
	return statement($_[0], 'VACUUM FULL', 'VACUUM (FULL, FREEZE, ANALYZE)');
});
Faults::Kinds::add('reindex', inject => sub {
	my ($scenario) = @_;
	my $name = $scenario->database->{name};
	my $sql = pick('REINDEX SCHEMA outbox', "REINDEX SYSTEM $name");
	return defined $scenario->try_sql($name, $sql) ? $sql : 0;
});
Faults::Kinds::add('checkpoint', inject => sub { return statement($_[0], 'CHECKPOINT', 'SELECT pg_switch_wal()') });

# Refused, whatever it is; publishers don't notice.
my @tampering = ('CLUSTER SEGMENT USING nothing', 'DELETE FROM SEGMENT', 'UPDATE SEGMENT SET id = 1', 'TRUNCATE SEGMENT',
	'INSERT INTO SEGMENT SELECT * FROM SEGMENT LIMIT 1', 'ALTER TABLE SEGMENT ADD COLUMN x int', 'DROP TABLE SEGMENT',
	'CREATE INDEX ON SEGMENT (id)', 'ALTER TABLE SEGMENT SET TABLESPACE pg_default', 'TRUNCATE outbox.segments',
	'ALTER SEQUENCE outbox.message_id_seq RESTART');
Faults::Kinds::add('tampering', permits => [
		qr/is not allowed on "\w+", (a segment of the outbox|the outbox's sequence of message ids)/,
		qr/cannot (modify|truncate) "\w+", a (segment of the outbox|table of pg_outbox)/,
		qr/cannot (drop|insert|update|delete)/, qr/index "nothing" for table "\w+" does not exist/,
		qr/must be owner|permission denied/ ], inject => sub {
	my ($scenario) = @_;
	my $name = $scenario->database->{name};
	my $segment = $scenario->try_sql($name, 'SELECT relid::regclass FROM outbox.segments ORDER BY random() LIMIT 1') or return;
	my $sql = pick(@tampering);
	(my $statement = $sql) =~ s/SEGMENT/$segment/g;
	# an UPDATE or DELETE of no row is done, and changes nothing
	$scenario->found("not refused: $statement")
	  if defined $scenario->try_sql($name, "SET lock_timeout = '5s'; $statement") && $sql !~ /^(DELETE|UPDATE|INSERT)/;
	return $sql;
});

# --- servers ---------------------------------------------------------------------------------

Faults::Kinds::add('alter-storm', clean_stop => 1, inject => sub {
	my ($scenario) = @_;
	my $database = $scenario->database;
	my $n = 0;
	for (1 .. 3 + int rand 8)
	{
		my $option = pick('linger.ms', 'batch.num.messages', 'request.timeout.ms', 'batch.size');
		my %value = ('linger.ms' => int rand 20, 'batch.num.messages' => 10 + int rand 5000,
			'request.timeout.ms' => 3000 + int rand 5000, 'batch.size' => 10_000 + int rand 900_000);
		my $verb = $database->{altered}{$option} ? 'SET' : 'ADD';
		defined $scenario->try_sql($database->{name}, qq{ALTER SERVER events OPTIONS ($verb "$option" '$value{$option}')}) or next;
		$database->{altered}{$option} = 1;
		$n++;
	}
	return $n ? "$n times" : 0;
}, permits => [ qr/option "[^"]+" (provided more than once|not found)/ ]);

Faults::Kinds::add('pause-storm', clean_stop => 1, inject => sub {
	my ($scenario) = @_;
	my $name = $scenario->database->{name};
	for (1 .. 2 + int rand 8)
	{
		$scenario->try_sql($name, "SELECT outbox.pause('events')");
		usleep(rand 100_000) if rand() < 0.5;
		$scenario->try_sql($name, "SELECT outbox.resume('events')");
	}
	# the last word counts, also if the server was away
	$scenario->later(0, sub { $scenario->try_sql($name, "SELECT outbox.resume('events')") });
	push @{ $scenario->{at_the_end} }, sub { $scenario->pg->sql("SELECT outbox.resume('events')", dbname => $name) };
	return 1;
});

# A server beside the others, with a topic of its own, goes and comes back.
Faults::Kinds::add('drop-server', weight => 3, clean_stop => 1, permits => [ qr/server "aside" is dropped with/, qr/server "aside" already exists/ ], inject => sub {
	my ($scenario) = @_;
	my $database = $scenario->database;
	my $topic = $database->{topics}{aside};

	$scenario->try_sql($database->{name}, "SELECT judge.publish_many('$topic', 500, 20, 100)");
	$scenario->try_sql($database->{name}, 'DROP SERVER IF EXISTS aside CASCADE');
	$scenario->try_sql($database->{name}, "SELECT judge.publish_many('$topic', 100, 20, 100)");
	defined $scenario->create_server($database, 'aside', $topic) or return;
	# what is published from here on arrives
	my $out = $scenario->try_sql($database->{name}, <<END) or return;
SELECT last_value FROM judge.ledger_n;
SELECT judge.publish_many('$topic', 500, 20, 100);
END
	$database->{aside_from} = (split /\n/, $out)[0];
	return 1;
});

# Off and on again.  What was sent meanwhile may come again after a crash, until the
# position at the broker has gone on behind it; and so may what was sent before a crash,
# if a relay is told to look at that position no more before it has begun to.
Faults::Kinds::add('switch-exactly-once', clean_stop => 1, weight => 2, needs => sub { $_[0]{exactly_once} }, inject => sub {
	my ($scenario) = @_;
	my $database = $scenario->database;
	my $name = $database->{name};
	my $publish = "SELECT judge.publish_many('$database->{topics}{plain}[0]', 300)";

	my $settled = $scenario->try_sql($name, "SELECT outbox.flush('12s')") || '';
	$scenario->try_sql($name, "ALTER SERVER events OPTIONS (SET exactly_once 'false')");
	$scenario->try_sql($name, $publish) if rand() < 0.7;
	$scenario->try_sql($name, "ALTER SERVER events OPTIONS (SET exactly_once 'true')");
	my $flushed = $scenario->try_sql($name, "$publish;\nSELECT outbox.flush('12s');\n$publish;\nSELECT outbox.flush('12s')");
	$scenario->{displaced}++ unless $settled eq 't' && defined $flushed && $flushed =~ /^300\nt\n300\nt$/;
	push @{ $scenario->{at_the_end} },
	  sub { $scenario->pg->sql("ALTER SERVER events OPTIONS (SET exactly_once 'true')", dbname => $name) };
	return 1;
});

# Somebody takes the identity; the relay is fenced until it is told to go on.
Faults::Kinds::add('fence', needs => sub { $_[0]{exactly_once} }, inject => sub {
	my ($scenario) = @_;
	my $kafka = $scenario->kafka;
	return if $kafka->{away};
	my $name = $scenario->database->{name};
	my $uuid = $scenario->try_sql($name, 'SELECT log_uuid FROM outbox.log_identity') or return;
	$kafka->fence("pg_outbox.$uuid.events");
	my $again = sub { $scenario->try_sql($name, "SELECT outbox.pause('events'); SELECT outbox.resume('events')") };
	$scenario->later(0.3 + rand 2, $again);
	push @{ $scenario->{at_the_end} }, $again;
	return 1;
});

# Its position at the broker is gone: after a crash the database's own is gone on from.
Faults::Kinds::add('position-lost', displaced => 1, needs => sub { $_[0]{exactly_once} }, inject => sub {
	my ($scenario) = @_;
	my $kafka = $scenario->kafka;
	return if $kafka->{away};
	my ($topic) = grep { $_ eq 'pg_outbox.position.events' } $kafka->topics or return;
	$kafka->delete_topic($topic);
	return 1;
});

# --- settings ---------------------------------------------------------------------------------

Faults::Kinds::add('disabled', clean_stop => 1, inject => sub {
	my ($scenario) = @_;
	my $seconds = rand 2;
	Faults::World->set($scenario->pg, 'outbox.enabled' => 'off');
	$scenario->later($seconds, sub { Faults::World->set($scenario->pg, 'outbox.enabled' => undef) });
	return sprintf 'for %.1f s', $seconds;
});

Faults::Kinds::add('settings-storm', inject => sub {
	my ($scenario) = @_;
	for (1 .. 6)
	{
		Faults::World->set($scenario->pg, 'outbox.segment_size' => pick('64kB', '256kB', '2MB'),
			'outbox.relay_memory' => pick('1MB', '4MB', '16MB'), 'outbox.poll_interval' => pick('100ms', '1s', '10s'));
		usleep(rand 80_000);
	}
	return 1;
});

# A standby that is waited for, and is not there.
Faults::Kinds::add('no-standby', needs => sub { $_[0]{standby} eq 'none' }, inject => sub {
	my ($scenario) = @_;
	my $seconds = 0.3 + rand 2;
	Faults::World->set($scenario->pg, synchronous_standby_names => 'nobody');
	$scenario->later($seconds, sub { Faults::World->set($scenario->pg, synchronous_standby_names => undef) }, 'stopped');
	return sprintf 'for %.1f s', $seconds;
}, permits => [qr/canceling the wait for synchronous replication/]);

1;
