# One scenario: a seed becomes a setup and a schedule of faults; they are injected at
# their moments under publishers; then all is healed, and the verdict is given.
#
# What is chosen is the seed's; what happens between is not: a second run injects the
# same faults at the same moments, into a server that is in another moment of its work.
package Faults::Scenario;

use strict;
use warnings;

use Faults::Inbox;
use Faults::Kinds;
use Faults::Publishers;
use Faults::Verdict;
use Faults::World;
use IPC::Run ();
use OutboxTest;
use Time::HiRes qw(time usleep);

my $heal_timeout = 90;
my $statements = 0;

sub pick { return $_[ int rand @_ ] }

# --- from the seed -------------------------------------------------------------------

# Options: kinds (only those), setup (hash that overrides).
sub new
{
	my ($class, $world, $seed, %options) = @_;
	my $self = bless { world => $world, seed => $seed, healers => [], counts => {}, remarks => [],
		duplicates => 0, outage => 0, clean_stop => 0, crash => 0, displaced => 0,
		tag => sprintf('f%d.%d.%d', $seed, $$, time * 1000 % 1_000_000) }, $class;

	srand $seed;
	my %setup = (
		brokers => pick(1, 1, 3),
		exactly_once => pick(0, 0, 0, 1, 1),
		databases => pick(1, 1, 2),
		segment_size => pick('64kB', '128kB', '512kB', '1MB'),
		relay_memory => pick('1MB', '4MB'),
		standby => pick(('none') x 7, 'sync', 'async'),
		disk => pick(('large') x 7, 'small'),
		faults => 16 + int rand 16,
		# workers of a subscription in each database
		inbox => 0,
		%{ $options{setup} || {} });
	$setup{disk} = 'large' unless $ENV{OUTBOX_SMALL_DISK};
	$setup{disk} = 'large' if $setup{standby} ne 'none';
	$self->{setup} = \%setup;
	$self->{schedule} = $self->draw($options{kinds});
	$self->{after_plan} = int rand 2**31;
	return $self;
}

# Which faults, when (ms from the beginning), and a seed for what each of them chooses.
sub draw
{
	my ($self, $only) = @_;
	my %kinds = Faults::Kinds::possible($self->{setup});
	my @patterns = map { my $name = quotemeta; $name =~ s/\\\*/.*/gr } $only ? @$only : '*';
	my %wanted = map { my $name = $_; $name => scalar grep { $name =~ /^$_$/ } @patterns } keys %kinds;
	my @names = map { ($_) x $kinds{$_}{weight} } grep { $wanted{$_} } sort keys %kinds;
	my @plan;
	my $at = 0;

	return [] unless @names;
	for (1 .. $self->{setup}{faults})
	{
		$at += 30 + int rand 800;
		push @plan, { at => $at, kind => pick(@names), seed => int rand 2**31 };
	}
	# what may come once only, does
	my %seen;
	@plan = grep { !$kinds{ $_->{kind} }{once} || !$seen{ $_->{kind} }++ } @plan;
	return \@plan;
}

sub describe
{
	my ($self) = @_;
	my $setup = $self->{setup};
	return join ' ', map { "$_=$setup->{$_}" } sort keys %$setup;
}

# --- what faults use --------------------------------------------------------------------

sub pg { return $_[0]{world}->pg }
sub kafka { return $_[0]{kafka} }
sub remark { my ($self, $text) = @_; push @{ $self->{remarks} }, $text; return }

# Is a fault of this kind in the schedule?
sub has { my ($self, $pattern) = @_; return scalar grep { $_->{kind} =~ $pattern } @{ $self->{schedule} } }

# One of the scenario's databases.
sub database { my ($self) = @_; return pick(@{ $self->{databases} }) }

# Waits for a condition, not for long.
sub soon
{
	my ($self, $condition, $seconds) = @_;
	return $self->pg->wait_until($condition, timeout => $seconds || 2);
}

# What the server has logged since the scenario's beginning.
sub log_text
{
	my ($self, $pg) = @_;
	$pg ||= $self->pg;
	my $text = '';
	open my $f, '<', $pg->logfile or return '';
	seek $f, $self->{log_from}{ $pg->name }, 0;
	local $/;
	$text = <$f> // '';
	return $text;
}

sub count_log { my ($self, $pattern) = @_; my $n = () = $self->log_text =~ /$pattern/g; return $n }

# Runs SQL where the server may be going down, or be waiting for what is healed
# meanwhile: undef when it fails; the reason is in $self->{sql_error}.
sub try_sql
{
	my ($self, $dbname, $sql, %options) = @_;
	my ($out, $err) = ('', '');
	my $pg = $self->pg;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/statement.sql.' . ++$statements;
	open my $f, '>', $file or die "$file: $!\n";
	print $f $sql;
	close $f;
	local $ENV{PGOPTIONS} = '-c lock_timeout=5s -c statement_timeout=30s';
	my $run = IPC::Run::start([ 'psql', '-XAtq', '-h', $pg->host, '-p', $pg->port, '-f', $file,
			'-v', 'ON_ERROR_STOP=' . ($options{on_error_stop} // 1), $dbname ],
		'<', \undef, '>', \$out, '2>', \$err);
	my $until = time + 45;
	while ($run->pumpable && time < $until)
	{
		eval { $run->pump_nb };
		$self->run_healers(time) unless $self->{healing};
		usleep(5000);
	}
	my $done = !$run->pumpable && $run->finish;
	$run->kill_kill(grace => 1) unless $done;
	unlink $file;
	chomp $out;
	$self->{sql_error} = $err;
	return $done ? $out : undef;
}

# Pids that a query gives, as long as it takes the server to come back.
sub pid_of
{
	my ($self, $where) = @_;
	for (1 .. 40)
	{
		my $out = $self->try_sql('postgres', "SELECT pid FROM pg_stat_activity WHERE $where");
		if ($out)
		{
			my @pids = split /\n/, $out;
			return pick(@pids);
		}
		usleep(50_000);
	}
	return;
}

# Heals something after so many seconds; or at the end, if that comes first.
sub later
{
	my ($self, $seconds, $code, $tag, $failures) = @_;
	push @{ $self->{healers} },
	  { at => time + $seconds, code => $code, tag => $tag || '', failures => $failures || 0 };
	return;
}

# Heals what has that tag, before something that it would block.
sub heal_now
{
	my ($self, $tag) = @_;
	for (@{ $self->{healers} })
	{
		$_->{at} = 0 if $_->{tag} eq $tag;
	}
	return $self->run_healers(0);
}

sub run_healers
{
	my ($self, $now) = @_;
	my @due = sort { $a->{at} <=> $b->{at} } grep { $_->{at} <= $now } @{ $self->{healers} };
	local $self->{healing} = 1;
	for my $healer (@due)
	{
		# one may have called for another
		my @others = grep { $_ != $healer } @{ $self->{healers} };
		next if @others == @{ $self->{healers} };
		$self->{healers} = \@others;
		next if eval { $self->run_healer($healer); 1 };
		die $@ if $@ =~ /death by signal/ || ++$healer->{failures} > 10;
		# brokers that are not ready for it: later
		$self->later(1, @$healer{qw(code tag failures)});
	}
	return;
}

sub run_healer
{
	my ($self, $healer) = @_;

	# who administrates topics needs all brokers
	if ($healer->{tag} eq 'topic' && $self->{kafka}{away})
	{
		$self->heal_now('broker');
		$self->{kafka}->admin('brokers', $self->{kafka}{brokers}, 60);
	}
	return $healer->{code}->();
}

# May something come twice?  After a crash; after a clean stop that was not answered in
# time; with exactly_once only if its position was taken from the broker before a relay
# ended without having stored it in the database.
sub duplicates_allowed
{
	my ($self) = @_;
	return 1 if $self->{transactions_lost};
	return $self->{displaced} && ($self->{crash} || $self->count_log(qr/\] pg_outbox relay \w+ ERROR: /))
	  if $self->{setup}{exactly_once};
	return $self->{crash} || $self->{duplicates} || $self->{outage} && $self->{clean_stop};
}

# --- setting up -----------------------------------------------------------------------------

sub topics
{
	my ($self, $n) = @_;
	my $stem = "$self->{tag}.$n";
	my %topics = (plain => [ map { "$stem.plain$_" } 0 .. 2 ], big => "$stem.big", batch => "$stem.batch",
		aside => "$stem.aside", gone => "$stem.gone", late => "$stem.late");
	return \%topics;
}

sub set_up_database
{
	my ($self, $n) = @_;
	my $name = "faults_$n";
	my $pg = $self->pg;
	my $place = $self->{setup}{disk} eq 'small' ? 'TABLESPACE small' : '';
	my $topics = $self->topics($n);

	$pg->sql("CREATE DATABASE $name $place");
	$pg->sql('CREATE EXTENSION pg_outbox', dbname => $name);
	$pg->judge_setup(dbname => $name);
	$pg->sql(<<END, dbname => $name);
CREATE SCHEMA app;
CREATE TABLE app.orders (id bigserial PRIMARY KEY, note text);
CREATE TABLE app.stock (item int PRIMARY KEY, n bigint);
INSERT INTO app.stock SELECT i, 0 FROM generate_series(0, 49) i;
END
	$self->{kafka}->create_topic($_, 4, $self->{setup}{brokers})
	  for @{ $topics->{plain} }, @$topics{qw(big batch aside gone)};
	my $database = { name => $name, topics => $topics };
	my $stem = "$self->{tag}.$n";
	my $server = $self->has(qr/^drop-server/) ? "$stem.*, !$topics->{aside}" : "$stem.*";
	defined $self->create_server($database, 'events', $server) or die $self->{sql_error};
	$database->{inbox} = Faults::Inbox->new(scenario => $self, database => $database) if $self->{setup}{inbox};
	return $database;
}

# In one transaction: a server without its credentials would be an error of its own.
sub create_server
{
	my ($self, $database, $name, $topics, %more) = @_;
	my %options = ('bootstrap.servers' => $self->{kafka}->bootstrap, topics => $topics,
		'security.protocol' => 'sasl_plaintext', 'sasl.mechanism' => 'PLAIN',
		'reconnect.backoff.max.ms' => 200, 'socket.timeout.ms' => 4000,
		'socket.connection.setup.timeout.ms' => 2000,
		topic_timeout => -1, exactly_once => $self->{setup}{exactly_once} ? 'true' : 'false', %more);
	my $list = join ', ', map { qq{"$_" '$options{$_}'} } sort keys %options;
	my $sql = qq{BEGIN;
		CREATE SERVER "$name" FOREIGN DATA WRAPPER outbox_kafka OPTIONS ($list);
		CREATE USER MAPPING FOR PUBLIC SERVER "$name" OPTIONS ("sasl.username" 'app', "sasl.password" 'app-secret');
		COMMIT};
	return $self->try_sql($database->{name}, $sql);
}

# The server's settings at the beginning and in the end.
sub settings
{
	my ($self) = @_;
	my $setup = $self->{setup};
	return ('outbox.segment_size' => $setup->{segment_size}, 'outbox.relay_memory' => $setup->{relay_memory},
		'outbox.fault' => $self->fault_setting);
}

# The setting outbox.fault: what a fault wants, and the rule that is switched off to see
# that the verdict notices.
sub fault_setting
{
	my ($self, $fault) = @_;
	return join(',', grep { $_ } $fault, map { "$_=off" } split /,/, $self->{setup}{without} || '');
}

sub set_up
{
	my ($self) = @_;
	my $world = $self->{world};
	my $setup = $self->{setup};
	my $pg = $world->pg;

	$self->{kafka} = $world->kafka($setup->{brokers});
	$self->{log_from} = { $pg->name => -s $pg->logfile || 0 };
	Faults::World->reset_settings($pg, $self->settings);
	Faults::World->clock->set(0);
	if ($setup->{disk} eq 'small')
	{
		$self->{place} = "$ENV{OUTBOX_SMALL_DISK}/faults.$$";
		mkdir $self->{place}, 0700 or die "$self->{place}: $!\n";
		$pg->sql("CREATE TABLESPACE small LOCATION '$self->{place}'");
	}
	$self->{databases} = [ map { $self->set_up_database($_) } 1 .. $setup->{databases} ];
	if ($setup->{standby} ne 'none')
	{
		my $standby = $self->{standby} = $world->standby;
		$self->{log_from}{ $standby->name } = 0;
		Faults::World->set($pg, synchronous_standby_names => $standby->name) if $setup->{standby} eq 'sync';
	}
	srand $self->{after_plan};
	$self->{publishers} = Faults::Publishers->start(
		dir => PostgreSQL::Test::Utils::tempdir() . "/$self->{tag}",
		pg => $pg, databases => $self->{databases}, clients => 4);
	for my $database (@{ $self->{databases} })
	{
		$pg->wait_for('SELECT min(delivered) > 20 FROM outbox.relay_status', dbname => $database->{name}, timeout => 120)
		  or die "nothing is delivered, before any fault\n";
		my $inbox = $database->{inbox} or next;
		$inbox->set_up;
		$pg->wait_for('SELECT count(*) > 20 FROM app.effect', dbname => $database->{name}, timeout => 120)
		  or die "nothing is consumed, before any fault\n";
	}
	return;
}

# --- the run -------------------------------------------------------------------------------------

sub inject
{
	my ($self, $fault) = @_;
	my $kind = $Faults::Kinds::kinds{ $fault->{kind} };
	srand $fault->{seed};
	my $what = eval { $kind->{inject}->($self) };
	my $error = $@;
	# brokers that are too busy to be administrated; in the end they are not
	if ($error =~ /^(kafka_admin |broker: |no answer|access list: )/ && $error !~ /death by signal/)
	{
		return $self->remark("$fault->{kind} (no answer)");
	}
	die "$fault->{kind}: $error" if $error;
	return $self->remark("$fault->{kind} (no target)") unless $what;
	$self->{counts}{ $fault->{kind} }++;
	$self->{$_} += $kind->{$_} || 0 for qw(duplicates outage clean_stop crash displaced);
	return $self->remark(sprintf '%s%s at %.1f s', $fault->{kind}, $what eq '1' ? '' : " $what", time - $self->{started});
}

sub run_schedule
{
	my ($self) = @_;
	$self->{started} = time;
	for my $fault (@{ $self->{schedule} })
	{
		my $at = $self->{started} + $fault->{at} / 1000;
		while (1)
		{
			my ($next) = sort { $a <=> $b } $at, map { $_->{at} } @{ $self->{healers} };
			my $wait = $next - time;
			usleep($wait * 1_000_000) if $wait > 0;
			$self->run_healers(time);
			last if time >= $at;
		}
		$self->inject($fault);
	}
	return;
}

# All is made well again, publishers come to their end, and what they left prepared
# is decided.
sub heal
{
	my ($self) = @_;
	my $setup = $self->{setup};

	$self->run_healers(9e18);
	Faults::World->heal_kafka($self->{kafka});
	$self->run_healers(9e18) while @{ $self->{healers} };
	my $pg = $self->pg;
	Faults::World->start_pg($pg) unless Faults::World::postmaster($pg);
	Faults::World->reset_settings($pg, $self->settings);
	Faults::World->wait_up($pg) or die "PostgreSQL does not come back\n";
	$self->decide_prepared;
	$self->{publishers}->end;
	$_->end_producer for grep { $_ } map { $_->{inbox} } @{ $self->{databases} };
	$pg->wait_for(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'publisher'})
	  or die "publishers do not end\n";
	$self->decide_prepared;
	return;
}

# What lost its session between the two phases is decided by somebody else.
sub decide_prepared
{
	my ($self) = @_;
	for my $database (map { $_->{name} } @{ $self->{databases} })
	{
		my $gids = $self->try_sql($database, 'SELECT gid FROM pg_prepared_xacts WHERE database = current_database()');
		# unless it was its own session that came first
		$self->try_sql($database, (rand() < 0.6 ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$_'") for split /\n/, $gids // '';
	}
	return;
}

# True, or false and $self->{failures}.
sub run
{
	my ($self) = @_;
	my $began = time;

	$self->{failures} = [];
	my $done = eval
	{
		$self->set_up;
		$self->took('set up', $began);
		$self->run_schedule;
		$self->took('schedule', $self->{started});
		my $healing = time;
		$self->heal;
		$self->took('healed', $healing);
		my $judging = time;
		$self->{verdict} = Faults::Verdict->new($self);
		$self->{verdict}->give($heal_timeout);
		$self->took('judged', $judging);
		1;
	};
	die $@ if $@ =~ /death by signal/;
	push @{ $self->{failures} }, "broke off: $@" unless $done;
	$self->{seconds} = time - $began;
	return !@{ $self->{failures} };
}

sub took
{
	my ($self, $what, $from) = @_;
	return $self->remark(sprintf '%s in %.0f s', $what, time - $from);
}

# What failed; the scenario goes on, to see what else does.
sub found { my ($self, $text) = @_; push @{ $self->{failures} }, $text; return }

# Takes its things away; a server that can't be trusted any more is stopped and left
# for whoever looks into it.
sub clean_up
{
	my ($self) = @_;
	my $world = $self->{world};
	my @databases = @{ $self->{failures} } ? () : @{ $self->{databases} || [] };

	eval { $self->{publishers}->end } if $self->{publishers};
	eval { $_->end_producer } for grep { $_ } map { $_->{inbox} } @{ $self->{databases} || [] };
	my $clean = eval
	{
		Faults::World->heal_kafka($self->{kafka}) if $self->{kafka};
		if (my $standby = delete $self->{standby})
		{
			$standby->stop('immediate');
			$standby->clean_node;
		}
		if (my $old = $self->{old_pg}) { $old->clean_node }
		my $pg = $world->pg;
		Faults::World->reset_settings($pg);
		for my $database (@databases)
		{
			$pg->sql("DROP DATABASE $database->{name} WITH (FORCE)");
			my $topics = $database->{topics};
			my %there = map { $_ => 1 } $self->{kafka}->topics;
			my @drop = grep { $there{$_} } @{ $topics->{plain} }, @$topics{qw(big batch aside gone late)},
			  map { $_->{topic} } grep { $_ } $database->{inbox};
			$self->{kafka}->delete_topic(@drop) if @drop;
		}
		$pg->sql('DROP TABLESPACE small') if $self->{place} && @databases;
		1;
	};
	system('rm', '-rf', $self->{place}) if $self->{place};
	$world->give_up_pg unless $clean && !@{ $self->{failures} };
	return;
}

1;
