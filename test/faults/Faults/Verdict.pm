# What must hold once a scenario is over and all is well again: the judge's verdict on
# every message, positions, dead letters, space, files, and the server's log.
package Faults::Verdict;

use strict;
use warnings;

use Faults::Kinds;
use OutboxTest;
use Time::HiRes qw(time usleep);

# What the server may always log: what comes of a server that restarts under clients,
# and of a transaction block whose statement has failed.
my @always = (
	qr/the database system is (starting up|shutting down|in recovery mode|not yet accepting connections|not accepting connections)/,
	qr/terminating connection (because of crash of another server process|due to unexpected postmaster exit)/,
	qr/terminating (connection|background worker .*) due to administrator command/,
	qr/connection to client lost/,
	qr/could not (connect to the primary server|receive data from WAL stream|send end-of-streaming message)/,
	qr/terminating walreceiver process due to administrator command/,
	qr/current transaction is aborted/,
	qr/can only be used in transaction blocks/,
	qr/savepoint "\w" does not exist/,
	qr/there is (no|already a) transaction in progress/,
	qr/prepared transaction with identifier "outbox-[^"]*" (does not exist|is busy)/,
	qr/maximum number of prepared transactions reached/,
	qr/terminating autovacuum process due to administrator command/,
	qr/canceling (the )?wait for synchronous replication/,
	# nothing of a scenario's own waits for ever: locks are held by what a crash has
	# left prepared, too
	qr/canceling statement due to (lock|statement) timeout/,
	# recovery comes to a database that was dropped since
	qr/could not open directory "(base|pg_tblspc)\/[^"]*"/,
	qr/some useless files may be left behind in old database directory/,
	# a consumer that leaves its group while the network is half there; another worker begins
	qr/the client library of subscription "\w+" could not be stopped/,
	# how a relay takes up the position that the broker has
	qr/server "\w+" starts again, from its position at the broker/);

sub new
{
	my ($class, $scenario) = @_;
	return bless { scenario => $scenario, published => 0, duplicated => 0, dead => 0, leaked => 0, consumed => 0 }, $class;
}

sub sql
{
	my ($self, $database, $sql) = @_;
	return $self->{scenario}->pg->sql($sql, dbname => $database->{name});
}

sub wrong
{
	my ($self, $database, $text) = @_;
	return $self->{scenario}->found(($database ? "$database->{name}: " : '') . $text);
}

sub give
{
	my ($self, $timeout) = @_;
	my $scenario = $self->{scenario};

	for my $database (@{ $scenario->{databases} })
	{
		$_->() for splice @{ $scenario->{at_the_end} || [] };
		# before the outbox: its handler publishes
		if (my $inbox = $database->{inbox})
		{
			$inbox->drain($self, $timeout);
			$inbox->judge($self);
		}
		$self->flush($database, $timeout) or next;
		$self->messages($database);
		$self->beside($database, $_) for qw(aside gone);
		$self->dead_letters($database);
		$self->positions($database) unless $scenario->{transactions_lost};
		$self->space($database);
		$self->files($database);
	}
	$self->told;
	$self->log;
	return;
}

# What a client was told is committed is there, also on another server.
sub told
{
	my ($self) = @_;
	my $scenario = $self->{scenario};
	# somebody who is cancelled while he waits for the standby is told so in a warning
	return if $scenario->{transactions_lost} || $scenario->has(qr/^(cancel|terminate|publisher|statement)/);
	my $told = $scenario->{publishers}->told;
	for my $database (@{ $scenario->{databases} })
	{
		my @ids = @{ $told->{ $database->{name} } || [] } or next;
		my $missing = $self->sql($database, 'SELECT count(*) FROM unnest(ARRAY[' . join(',', @ids)
			  . ']) id WHERE NOT EXISTS (SELECT FROM judge.ledger l WHERE l.id = id.id)');
		$self->wrong($database, "$missing of " . @ids . ' that clients were told are committed are not there') if $missing;
	}
	return;
}

# Does all arrive, now that nothing is in the way?  A machine that is busy with other
# things may take its time; but nothing may stand still.
sub flush
{
	my ($self, $database, $timeout) = @_;
	my ($last, $until) = ('', time + $timeout);

	while (time < $until)
	{
		return 1 if $self->sql($database, q{SELECT outbox.flush('1s')}) eq 't';
		my $delivered = $self->sql($database, 'SELECT sum(delivered) FROM outbox.relay_status');
		$until = time + $timeout if $delivered ne $last;
		$last = $delivered;
	}
	my $status = $self->{scenario}->pg->relay_status(dbname => $database->{name});
	my $sessions = $self->sql($database, <<'END');
SELECT pid, backend_type, state, wait_event_type, wait_event, pg_blocking_pids(pid), left(query, 80)
FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
END
	$self->wrong($database, "no progress for $timeout s after all was healed\n$status\n$sessions");
	return 0;
}

sub read_topics
{
	my ($self, $database, @topics) = @_;
	my $scenario = $self->{scenario};
	my $file = PostgreSQL::Test::Utils::tempdir() . '/consumed.tsv';

	$scenario->kafka->consume_raw(\@topics, committed => $scenario->{setup}{exactly_once}, out => $file);
	$self->sql($database, "SET client_min_messages = error;\nTRUNCATE judge.consumed;\n\\copy judge.consumed from '$file'\n"
		  . "SELECT judge.read_batches('$database->{topics}{batch}');\nANALYZE judge.consumed;\nANALYZE judge.ledger;");
	unlink $file;
	return;
}

sub messages
{
	my ($self, $database) = @_;
	my $scenario = $self->{scenario};
	my $topics = $database->{topics};
	my @topics = (@{ $topics->{plain} }, @$topics{qw(big batch)}, $database->{late_used} ? $topics->{late} : ());
	my $list = 'ARRAY[' . join(', ', map { "'$_'" } @topics) . ']';
	my %v;

	$self->read_topics($database, @topics, @$topics{qw(aside gone)});
	@v{qw(published consumed lost phantom reordered stale duplicated damaged scattered)} = split /\|/, $self->sql($database,
		"SET client_min_messages = error; SELECT * FROM judge.verdict($list, (SELECT array_agg(id) FROM outbox.dead_letter))");
	my @bad = qw(lost reordered stale damaged scattered);
	push @bad, 'phantom' unless $scenario->{transactions_lost};
	push @bad, 'duplicated' if $v{duplicated} > $self->most_duplicates;
	@bad = grep { $v{$_} } @bad;
	$self->wrong($database, join(', ', map { "$_ $v{$_}" } @bad) . " of $v{published}") if @bad;
	$self->wrong($database, 'nothing was published') unless $v{published} > 100;
	my $hollow = $self->sql($database, <<END);
SELECT count(*) FROM judge.consumed c JOIN judge.ledger l ON l.n = c.ledger::bigint AND l.topic = c.topic
WHERE (c.payload IS NULL) <> (l.payload_md5 IS NULL)
END
	$self->wrong($database, "$hollow payloads are null, or should be") if $hollow;
	$self->{published} += $v{published};
	$self->{duplicated} += $v{duplicated};
	return;
}

# After each end of a relay what was in its memory may come again.
sub most_duplicates
{
	my ($self) = @_;
	my $scenario = $self->{scenario};
	return 0 unless $scenario->duplicates_allowed;
	my $starts = $scenario->count_log(qr/pg_outbox server "\w+" uses/);
	my $memory = $scenario->has(qr/^settings-storm/) ? 16 : $scenario->{setup}{relay_memory} =~ /(\d+)MB/ ? $1 : die;
	# what a message takes beside its payload, see transports/kafka
	return $starts * $memory * 1024 * 1024 / 200;
}

# Topics that what was before may be missing from: made anew, or their server was.
sub beside
{
	my ($self, $database, $which) = @_;
	my $from = $database->{"${which}_from"} // return;
	my $topic = $database->{topics}{$which};
	my $lost = $self->sql($database, <<END);
SELECT count(*) FROM judge.ledger l WHERE topic = '$topic' AND n > $from
	AND NOT EXISTS (SELECT FROM judge.consumed c WHERE c.topic = l.topic AND c.ledger::bigint = l.n)
END
	my $phantom = $self->sql($database, <<END);
SELECT count(*) FROM judge.consumed c WHERE topic = '$topic'
	AND NOT EXISTS (SELECT FROM judge.ledger l WHERE c.topic = l.topic AND c.ledger::bigint = l.n)
END
	$self->wrong($database, "topic $which: lost $lost, phantom $phantom")
	  if $lost || $phantom && !$self->{scenario}{transactions_lost};
	return;
}

# There for messages that were too large for a while, and for nothing else.
sub dead_letters
{
	my ($self, $database) = @_;
	my $out = $self->sql($database, <<END);
SELECT count(*), count(*) FILTER (WHERE NOT (topic = '$database->{topics}{big}' AND error = 'MSG_SIZE_TOO_LARGE'
		AND octet_length(payload) > 15000)),
	count(*) FILTER (WHERE NOT EXISTS (SELECT FROM judge.ledger l WHERE l.id = d.id))
FROM outbox.dead_letter d
END
	my ($all, $other, $unknown) = split /\|/, $out;
	$self->{dead} += $all;
	$self->wrong($database, "$all dead letters, but no message was too large") if $all && !$self->{scenario}->has(qr/^size-lowered/);
	$self->wrong($database, "$other dead letters for another reason") if $other;
	$self->wrong($database, "$unknown dead letters of nothing that was published") if $unknown;
	return;
}

# Each position is behind the one before it.
sub positions
{
	my ($self, $database) = @_;
	my $back = $self->sql($database, <<'END');
SELECT string_agg(format('n %s: %s %s %s %s after %s %s %s %s', n, s1, s2, cursor, low, was_s1, was_s2, was_cursor, was_low), E'\n')
FROM (
	SELECT *, lag(n) OVER w AS was_n, lag(s1) OVER w AS was_s1, lag(s2) OVER w AS was_s2,
		lag(cursor) OVER w AS was_cursor, lag(low) OVER w AS was_low
	FROM outbox.position_log WHERE topic IS NULL WINDOW w AS (PARTITION BY server ORDER BY n, written)) p
WHERE n <= was_n OR low < was_low
	OR pg_snapshot_xmax(s1::pg_snapshot) < pg_snapshot_xmax(was_s1::pg_snapshot)
	OR pg_snapshot_xmin(s1::pg_snapshot) < pg_snapshot_xmin(was_s1::pg_snapshot)
	-- a round that is over has no cursor
	OR s1 <> s2 AND s1 = was_s1 AND s2 = was_s2 AND cursor < was_cursor
END
	$self->wrong($database, "positions go back:\n$back") if $back ne '';
	return;
}

sub space
{
	my ($self, $database) = @_;
	my $size = 'SELECT coalesce(sum(pg_relation_size(relid)), 0) FROM outbox.segments';
	# when it is quiet, each lane keeps less than an eighth of a segment's size
	my ($n, $unit) = $self->{scenario}{setup}{segment_size} =~ /^(\d+)(kB|MB)$/ or die "segment_size\n";
	my $most = $n * ($unit eq 'MB' ? 1024 * 1024 : 1024);
	return if $self->{scenario}->pg->wait_for("SELECT ($size) < $most", timeout => 30, dbname => $database->{name}, quiet => 1);
	$self->wrong($database, $self->sql($database, $size) . " bytes of segments are not freed:\n"
		  . $self->sql($database, <<END));
SELECT format('%s lane %s generation %s: %s', relid::regclass, lane, generation, pg_relation_size(relid))
FROM outbox.segments WHERE pg_relation_size(relid) > 0 ORDER BY generation;
SELECT p FROM outbox.position_log p ORDER BY n DESC LIMIT 5;
SELECT pid, backend_type, state, backend_xmin, wait_event FROM pg_stat_activity WHERE datname = current_database();
END
	return;
}

# Files that no relation has.  PostgreSQL itself leaves those behind that a transaction
# had made when the server crashed.
sub files
{
	my ($self, $database) = @_;
	my $scenario = $self->{scenario};

	$self->sql($database, 'CHECKPOINT');
	my $path = $self->sql($database, q{SELECT pg_relation_filepath('pg_class')});
	$path =~ s{/[^/]*$}{};
	opendir my $dir, $scenario->pg->data_dir . "/$path" or die "$path: $!\n";
	my %known = map { $_ => 1 } split /\n/, $self->sql($database, 'SELECT pg_relation_filenode(oid) FROM pg_class');
	my @leaked = grep { /^(\d+)(_\w+|\.\d+)*$/ && !$known{$1} } readdir $dir;
	# a table may have gone between
	my %later = map { $_ => 1 } split /\n/, $self->sql($database, 'SELECT pg_relation_filenode(oid) FROM pg_class');
	@leaked = grep { /^(\d+)/ && !$later{$1} } @leaked;
	$self->{leaked} += @leaked;
	my $crashes = $scenario->{crash};
	$self->wrong($database, scalar(@leaked) . " files are left behind: @leaked") if @leaked > 16 * $crashes;
	return;
}

# --- the server's log ------------------------------------------------------------------------

sub log
{
	my ($self) = @_;
	my $scenario = $self->{scenario};
	my @permitted = (@always, map { @{ $Faults::Kinds::kinds{ $_->{kind} }{permits} } } @{ $scenario->{schedule} });
	my (%unexpected, %lines, $count);

	for my $text ($scenario->log_text, $scenario->{old_pg} ? $scenario->log_text($scenario->{old_pg}) : ())
	{
		for (split /\n/, $text)
		{
			# somebody looks at the server: no session of ours has that name
			next if /client backend psql /;
			if (/was terminated by signal (\d+)/)
			{
				next if $1 == 9 && $scenario->{crash};
			}
			elsif (/\b(?:WARNING|ERROR|FATAL|PANIC):  (.*)/)
			{
				my $message = $1;
				next if grep { $message =~ $_ } @permitted;
			}
			elsif (/^\S+ (\d+:\d+):\d\d\S* \S+ (\[\d+\] pg_outbox .*LOG:  pg_outbox .*)/)
			{
				# the same thing again and again, from one process in one minute
				next unless ++$lines{"$1 $2"} == 30;
			}
			elsif (!/TRAP:|invalid memory alloc|could not be stopped in time/) { next }
			s/^\S+ \S+ \S+ //;
			$unexpected{$_} = 1 if ++$count <= 5;
		}
	}
	$self->wrong(undef, "the log has, $count times:\n" . join "\n", sort keys %unexpected) if $count;
	return;
}

1;
