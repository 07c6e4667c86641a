# What happens to sessions: cancelled, ended, timed out, refused a connection, kept
# waiting by somebody's locks or by an old snapshot; the disk full, the clock wrong.
package Faults::Kinds::Sessions;

use strict;
use warnings;

use Faults::Kinds;
use Faults::World;

sub pick { return $_[ int rand @_ ] }

my $publisher = q{SELECT pid FROM pg_stat_activity WHERE application_name = 'publisher'};

Faults::Kinds::add('cancel', permits => [ qr/canceling statement due to user request/,
		qr/canceling (the )?wait for synchronous replication/ ], inject => sub {
	my $out = $_[0]->try_sql('postgres', "SELECT count(pg_cancel_backend(pid)) FROM ($publisher AND state = 'active') s");
	return $out ? "of $out" : 0;
});

Faults::Kinds::add('terminate', permits => [qr/canceling the wait for synchronous replication/], inject => sub {
	my $out = $_[0]->try_sql('postgres', "SELECT count(pg_terminate_backend(pid)) FROM ($publisher ORDER BY random() LIMIT 2) s");
	return $out ? "of $out" : 0;
});

# What ends relays and keeper in SQL's way.
Faults::Kinds::add('terminate-workers', clean_stop => 1,
	permits => [qr/terminating background worker .* due to administrator command/], inject => sub {
	my $out = $_[0]->try_sql('postgres', q{SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
		WHERE backend_type ~ '^pg_outbox (relay|keeper)'});
	return $out ? "of $out" : 0;
});

Faults::Kinds::add('cancel-workers', permits => [qr/canceling statement due to user request/], inject => sub {
	my $out = $_[0]->try_sql('postgres', q{SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity
		WHERE backend_type ~ '^pg_outbox'});
	return $out ? "of $out" : 0;
});

# A session publishes until its time is up, several times.
for my $timeout (qw(statement_timeout lock_timeout idle_in_transaction_session_timeout))
{
	Faults::Kinds::add($timeout, permits => [qr/terminating connection due to idle-in-transaction timeout/], inject => sub {
		my ($scenario) = @_;
		my $database = $scenario->database;
		my $topic = $database->{topics}{plain}[ int rand 3 ];
		for (1 .. 4)
		{
			my $ms = 1 + int rand 40;
			$scenario->try_sql($database->{name}, <<END, on_error_stop => 0);
SET $timeout = '${ms}ms';
BEGIN;
SELECT judge.publish_many('$topic', 150, 20, 50);
\\! sleep 0.05
SELECT judge.publish('$topic', 'x', 'k1');
COMMIT;
SELECT judge.publish_batch('$database->{topics}{batch}', 800);
END
		}
		return 1;
	});
}

# All connections are taken, for a moment.
Faults::Kinds::add('too-many-connections', permits => [ qr/sorry, too many clients already/,
		qr/remaining connection slots are reserved/ ], inject => sub {
	my ($scenario) = @_;
	my $pg = $scenario->pg;
	my $seconds = 0.5 + rand 1.5;
	my $loads = [ map { $pg->load(clients => 75, threads => 1, transactions => 1,
			script => "SELECT pg_sleep(3);\n", dbname => $scenario->database->{name}) } 1, 2 ];
	my $full = $scenario->soon(sub { $scenario->count_log(qr/too many clients|slots are reserved/) > 0 }, 5);
	$scenario->later($seconds, sub { $_->stop for @$loads }, 'stopped');
	return $full;
});

# Segments are locked by somebody else: publishers take other lanes, or wait.
Faults::Kinds::add('segments-locked', inject => sub {
	my ($scenario) = @_;
	my $name = $scenario->database->{name};
	my $mode = pick('ACCESS EXCLUSIVE', 'ACCESS EXCLUSIVE', 'SHARE');
	my $lanes = pick('lane < 7', 'true', 'lane IS NULL');
	my $list = $scenario->try_sql($name, "SELECT string_agg(relid::regclass::text, ', ') FROM outbox.segments WHERE $lanes")
	  or return;
	my $seconds = 0.1 + rand 1;
	my $load = $scenario->pg->load(clients => 1, threads => 1, transactions => 1, dbname => $name,
		script => "SET lock_timeout = '3s';\nBEGIN;\nLOCK TABLE $list IN $mode MODE;\nSELECT pg_sleep($seconds);\nCOMMIT;\n");
	$scenario->later($seconds + 1, sub { $load->stop }, 'stopped');
	return "$mode, $lanes";
});

# Positions, servers, dead letters locked by somebody else.
Faults::Kinds::add('tables-locked', inject => sub {
	my ($scenario) = @_;
	my $table = pick(qw(outbox.position_log outbox.segments outbox.dead_letter));
	my $seconds = 0.2 + rand 1.5;
	my $load = $scenario->pg->load(clients => 1, threads => 1, transactions => 1, dbname => $scenario->database->{name},
		script => "SET lock_timeout = '3s';\nBEGIN;\nLOCK TABLE $table IN ACCESS EXCLUSIVE MODE;\nSELECT pg_sleep($seconds);\nCOMMIT;\n");
	$scenario->later($seconds + 1, sub { $load->stop }, 'stopped');
	return $table;
});

Faults::Kinds::add('old-snapshot', inject => sub {
	my ($scenario) = @_;
	my $seconds = 1 + rand 4;
	my $load = $scenario->pg->load(clients => 1, threads => 1, transactions => 1, dbname => $scenario->database->{name},
		script => "BEGIN ISOLATION LEVEL REPEATABLE READ;\nSELECT count(*) FROM outbox.message;\nSELECT pg_sleep($seconds);\n"
		  . "SELECT count(*) FROM outbox.message;\nCOMMIT;\n");
	$scenario->later($seconds + 2, sub { $load->stop }, 'stopped');
	return sprintf 'for %.1f s', $seconds;
});

# The data disk is full, until somebody makes room.
Faults::Kinds::add('disk-full', weight => 6, needs => sub { $_[0]{disk} eq 'small' },
	permits => [ qr/No space left on device/, qr/could not extend file/, qr/could not write/ ], inject => sub {
	my ($scenario) = @_;
	my $filler = "$ENV{OUTBOX_SMALL_DISK}/filler.$$";
	return if -e $filler;
	my $seconds = 0.5 + rand 3;
	open my $f, '>', $filler or die "$filler: $!\n";
	for my $size (1 << 20, 65_536, 4096)
	{
		1 while (syswrite($f, 'x' x $size) // 0) > 0;
	}
	close $f;
	$scenario->later($seconds, sub { unlink $filler }, 'disk');
	return sprintf 'for %.1f s', $seconds;
});

# The clock is set, and some of the time back again soon.  PostgreSQL's own timeouts come
# early by that, or late; and who sleeps in SQL sleeps until that time of day.  A relay
# begins with a new client when it is set back.
Faults::Kinds::add('clock-jump', weight => 4, clean_stop => 1, permits => [ qr/canceling statement due to user request/,
		qr/terminating connection due to idle-in-transaction timeout/, qr/canceling authentication due to timeout/,
		qr/terminating wal(receiver|sender process) due to (replication )?timeout/,
		qr/canceling (the )?wait for synchronous replication/, qr/worker took too long to start/ ], inject => sub {
	my ($scenario) = @_;
	my $clock = Faults::World->clock;
	my $was = $clock->ahead;
	my $by = pick(-1, 1) * pick(2, 30, 600, 3600, 4 * 3600);
	my $wake = sub {
		$scenario->try_sql('postgres', q{SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'PgSleep'});
	};

	$clock->set($was + $by);
	return if !(eval { $clock->strikes($scenario->pg) } // 1);
	$wake->();
	return "$by s" unless rand() < 0.4;
	my $seconds = rand 4;
	$scenario->later($seconds, sub { $clock->set($was); $wake->() }, 'clock');
	return sprintf '%d s for %.1f s', $by, $seconds;
});

1;
