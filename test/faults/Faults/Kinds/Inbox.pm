# What happens to a subscription: its worker dies, stands still for so long that its group
# gives it up, or is cancelled; between two steps of its work; its tables are locked; its
# handler is gone; somebody sets its place back, pauses or changes it.
package Faults::Kinds::Inbox;

use strict;
use warnings;

use Faults::Kinds;
use Faults::Kinds::Points;
use Time::HiRes qw(time usleep);

# what the group allows its members, and a little
my $session_timeout = 10;
my $worker = q{backend_type LIKE 'pg_outbox inbox%'};

sub add
{
	my ($name, %kind) = @_;
	return Faults::Kinds::add($name, %kind, needs => sub { $_[0]{inbox} });
}

sub signal
{
	my ($scenario, $signal) = @_;
	my $pid = $scenario->pid_of($worker) or return;
	return unless kill $signal, $pid;
	return $pid;
}

add('inbox-kill', crash => 1, weight => 4, inject => sub { return signal($_[0], 'KILL') ? 1 : 0 });
add('inbox-term', weight => 3, inject => sub { return signal($_[0], 'TERM') ? 1 : 0 });
add('inbox-stop', inject => sub {
	my ($scenario) = @_;
	my $seconds = 0.2 + rand 3;
	my $pid = signal($scenario, 'STOP') or return;
	$scenario->later($seconds, sub { kill 'CONT', $pid }, 'stopped');
	return sprintf 'for %.1f s', $seconds;
});

# When it wakes up others have its partitions, or it has them anew; it must not believe what
# it believed.
add('inbox-zombie', once => 1, weight => 2, inject => sub {
	my ($scenario) = @_;
	my $pid = signal($scenario, 'STOP') or return;
	my $until = time + $session_timeout + 1.5;
	while (time < $until && kill 0, $pid)
	{
		$scenario->run_healers(time);
		usleep(50_000);
	}
	return kill 'CONT', $pid;
});

add('inbox-cancel', permits => [qr/canceling statement due to user request/], inject => sub {
	my $out = $_[0]->try_sql('postgres', "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE $worker");
	return $out ? "of $out" : 0;
});

for my $point ('inbox-before-commit', 'inbox-after-commit')
{
	for my $action (qw(crash error fatal wait))
	{
		Faults::Kinds::Points::add_worker_point($point, $action, needs => sub { $_[0]{inbox} });
	}
}

# --- administration ------------------------------------------------------------------------------

# Back to where it began, or to a time before that; marks tell what has had its effect.
add('inbox-seek', weight => 4, inject => sub {
	my ($scenario) = @_;
	my $database = $scenario->database;
	return if $database->{inbox}{dedup} eq 'none';
	my $to = rand() < 0.5 ? 'earliest' : "$database->{inbox}{began}";
	defined $scenario->try_sql($database->{name}, "SELECT inbox.seek('inbox', '$to')") or return;
	return "to $to";
});

add('inbox-pause-storm', inject => sub {
	my ($scenario) = @_;
	my $name = $scenario->database->{name};
	for (1 .. 1 + int rand 4)
	{
		$scenario->try_sql($name, q{SELECT inbox.pause('inbox')});
		usleep(rand 300_000);
		$scenario->try_sql($name, q{SELECT inbox.resume('inbox')});
		usleep(rand 300_000);
	}
	push @{ $scenario->{at_the_end} }, sub { $scenario->pg->sql(q{SELECT inbox.resume('inbox')}, dbname => $name) };
	return 1;
});

add('inbox-alter', inject => sub {
	my ($scenario) = @_;
	my $database = $scenario->database;
	my $size = (1, 5, 100, 2000)[ int rand 4 ];
	my $handler = rand() < 0.5 ? 'app.one(inbox.message)' : 'app.many(inbox.message[])';
	defined $scenario->try_sql($database->{name},
		"SELECT inbox.alter_subscription('inbox', batch_size => $size, handler => '$handler')") or return;
	return "$handler by $size";
});

# Workers join and leave the group.
Faults::Kinds::add('inbox-workers', weight => 4, needs => sub { $_[0]{inbox} > 1 }, inject => sub {
	my ($scenario) = @_;
	my $workers = 1 + int rand 4;
	defined $scenario->try_sql($scenario->database->{name}, "SELECT inbox.alter_subscription('inbox', workers => $workers)") or return;
	return "$workers";
});

# Its handler has another name, or it may not be called, for a while.
add('inbox-handler-gone', permits => [qr/(handler|function) "?app\.(one|many)\(inbox\.message(\[\])?\)"? does not exist/], inject => sub {
	my ($scenario) = @_;
	my $name = $scenario->database->{name};
	# also where a new primary has never heard of it; and no standby is waited for
	my $back = <<'SQL';
SET synchronous_commit = local;
DO $$
BEGIN
	IF to_regprocedure('app.gone(inbox.message)') IS NOT NULL THEN
		ALTER FUNCTION app.gone(inbox.message) RENAME TO one;
		ALTER FUNCTION app.gone(inbox.message[]) RENAME TO many;
	END IF;
END $$;
SQL
	defined $scenario->try_sql($name, 'BEGIN; ALTER FUNCTION app.one(inbox.message) RENAME TO gone; '
		. 'ALTER FUNCTION app.many(inbox.message[]) RENAME TO gone; COMMIT') or return;
	my $seconds = 0.2 + rand 3;
	$scenario->later($seconds, sub { defined $scenario->try_sql($name, $back) or die "no handler\n" });
	return sprintf 'for %.1f s', $seconds;
});

add('inbox-tables-locked', inject => sub {
	my ($scenario) = @_;
	my $table = (qw(inbox.position inbox.seen inbox.waiting_message inbox.subscription app.effect))[ int rand 5 ];
	my $seconds = 0.2 + rand 2;
	my $load = $scenario->pg->load(clients => 1, threads => 1, transactions => 1, dbname => $scenario->database->{name},
		script => "SET lock_timeout = '3s';\nBEGIN;\nLOCK TABLE $table IN ACCESS EXCLUSIVE MODE;\nSELECT pg_sleep($seconds);\nCOMMIT;\n");
	$scenario->later($seconds + 1, sub { $load->stop }, 'stopped');
	return $table;
});

1;
