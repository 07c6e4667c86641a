# The publishers of a scenario: sessions that publish and write the judge's ledger in
# every way that a client can, and begin again when their connection is lost.
#
# Each works through a file of transactions, drawn from the seed, again and again.
package Faults::Publishers;

use strict;
use warnings;

use OutboxTest;
use POSIX ();
use Time::HiRes qw(usleep);

my @commit = qw(on on off local remote_apply);

# dir, pg, databases ([{ name, topics }]), clients
sub start
{
	my ($class, %options) = @_;
	my $self = bless { %options, children => [] }, $class;
	my $n = 0;

	mkdir $self->{dir};
	$self->target($self->{pg});
	for my $client (1 .. $self->{clients})
	{
		my $database = $self->{databases}[ $n++ % @{ $self->{databases} } ];
		my $file = "$self->{dir}/client$client";
		$self->write_script("$file.sql", $database, $commit[ int rand @commit ]);
		$self->{database_of}{"$file.out"} = $database->{name};
		push @{ $self->{children} }, $self->launch($file, $database->{name});
	}
	return $self;
}

# The loop of one.  Where it connects to stands in a file: after a promotion that is
# another server, and meanwhile nowhere.
sub launch
{
	my ($self, $file, $dbname) = @_;
	my $loop = <<'END';
while [ -e "$1/target" ] && [ ! -e "$1/stop" ]; do
	read -r host port <"$1/target"
	if [ "$host" != nowhere ]; then
		psql -XAtq -h "$host" -p "$port" -f "$2.sql" "$3" >>"$2.out" 2>>"$2.err"
	fi
	sleep 0.05
done
END
	my $pid = fork;
	die "fork: $!\n" unless defined $pid;
	return $pid if $pid;
	setpgrp;
	$ENV{PGAPPNAME} = 'publisher';
	exec 'sh', '-c', $loop, 'publisher', $self->{dir}, $file, $dbname or POSIX::_exit(1);
}

sub target
{
	my ($self, $pg) = @_;
	open my $f, '>', "$self->{dir}/target.new" or die "$self->{dir}: $!\n";
	print $f $pg ? $pg->host . ' ' . $pg->port . "\n" : "nowhere 0\n";
	close $f;
	rename "$self->{dir}/target.new", "$self->{dir}/target" or die "$!\n";
	$self->{pg} = $pg if $pg;
	return;
}

# Ends them; what was in their hands may commit or not: the ledger knows.
sub end
{
	my ($self) = @_;
	return if $self->{ended}++;
	local $?;
	open my $f, '>', "$self->{dir}/stop" or die "$self->{dir}: $!\n";
	close $f;
	for my $pid (@{ $self->{children} })
	{
		kill '-TERM', $pid;
		waitpid $pid, 0;
	}
	return;
}

# All ids, by database, that a client was told are committed, and on a synchronous standby.
sub told
{
	my ($self) = @_;
	my %told;
	for my $file (glob "$self->{dir}/client*.out")
	{
		# the last line may be torn
		push @{ $told{ $self->{database_of}{$file} } },
		  PostgreSQL::Test::Utils::slurp_file($file) =~ /^told (\d+)\n/mg;
	}
	return \%told;
}

sub DESTROY { my ($self) = @_; eval { $self->end }; return }

# --- what they do ------------------------------------------------------------------------

sub pick { return $_[ int rand @_ ] }

# SQL of a payload of so many bytes that doesn't shrink in its way.
sub payload
{
	my ($size) = @_;
	return "''" if $size == 0;
	return "repeat(md5(random()::text), $size / 32 + 1)";
}

sub any_payload
{
	my $kind = int rand 20;
	return 'NULL' if $kind == 0;
	return payload($kind == 1 ? 0 : $kind == 2 ? 3000 + int rand 9000 : int rand 400);
}

sub key { return "'k" . int(rand 20) . "'" }

# one message without a turn: any number of them may be in a transaction
sub message
{
	my ($topics) = @_;
	my $key = rand() < 0.1 ? 'NULL' : "'u" . int(rand 30) . "'";
	return "SELECT judge.publish('" . pick(@{ $topics->{plain} }) . "', " . any_payload() . ", $key);\n";
}

# one of a key in its turn, which holds the key to the end of the transaction
sub in_turn
{
	my ($topics) = @_;
	return "SELECT judge.publish_in_order('" . pick(@{ $topics->{plain} }) . "', " . key() . ', ' . any_payload() . ")\n";
}

sub nap { my ($ms) = @_; return sprintf "SELECT pg_sleep(%.3f);\n", rand($ms) / 1000 }

my %transactions = (
	single => sub {
		my ($topics) = @_;
		return "SELECT 'told ' || id FROM (" . in_turn($topics) . ") s(id);\n";
	},
	large => sub {
		my ($topics) = @_;
		return "SELECT judge.publish('" . $topics->{big} . "', " . payload(pick(500, 5000, 60_000, 300_000)) . ', ' . key() . ");\n";
	},
	many => sub {
		my ($topics) = @_;
		return "SELECT judge.publish_many('" . pick(@{ $topics->{plain} }) . "', " . (1 + int rand 200) . ", 25, " . pick(0, 50, 300) . ");\n";
	},
	batch => sub {
		my ($topics) = @_;
		return "SELECT judge.publish_batch('$topics->{batch}', " . (1 + int rand 400) . ");\n";
	},
	tables => sub {
		my ($topics) = @_;
		my $end = pick('COMMIT', 'COMMIT', 'COMMIT', 'ROLLBACK');
		return "BEGIN;\nINSERT INTO app.orders (note) VALUES ('o');\n" . message($topics)
		  . "UPDATE app.stock SET n = n + 1 WHERE item = " . int(rand 50) . ";\n"
		  . "SAVEPOINT a;\n" . message($topics) x (1 + int rand 3)
		  . pick("ROLLBACK TO a;\n", "RELEASE a;\n", "SAVEPOINT b;\n" . message($topics) . "ROLLBACK TO b;\n")
		  . message($topics) . in_turn($topics) . ";\n$end;\n";
	},
	exception => sub {
		my ($topics) = @_;
		my $topic = pick(@{ $topics->{plain} });
		return <<END;
DO \$\$
BEGIN
	PERFORM judge.publish('$topic', 'before', 'u1');
	BEGIN
		PERFORM judge.publish('$topic', 'never', 'u1');
		RAISE division_by_zero;
	EXCEPTION WHEN division_by_zero THEN
		PERFORM judge.publish('$topic', 'instead', 'u1');
	END;
	PERFORM judge.publish('$topic', 'after', 'u1');
END \$\$;
END
	},
	prepared => sub {
		my ($topics) = @_;
		my $end = pick('COMMIT PREPARED', 'COMMIT PREPARED', 'ROLLBACK PREPARED');
		return "SELECT 'outbox-' || gen_random_uuid() AS gid \\gset\nBEGIN;\n" . message($topics) x (1 + int rand 4)
		  . "PREPARE TRANSACTION :'gid';\n" . nap(pick(5, 5, 400)) . "$end :'gid';\n";
	},
	long => sub {
		my ($topics) = @_;
		return "BEGIN;\n" . message($topics) . nap(1500) . message($topics) . in_turn($topics) . ";\nCOMMIT;\n";
	},
	back_out => sub {
		my ($topics) = @_;
		return "BEGIN;\nSELECT judge.publish_many('" . pick(@{ $topics->{plain} }) . "', 300, 25, 50);\nROLLBACK;\n";
	});
my @often = (('single') x 30, ('tables') x 12, ('prepared') x 5, ('large') x 4, ('exception') x 4, 'many', 'batch', 'long',
	'back_out');

sub write_script
{
	my ($self, $path, $database, $commit) = @_;
	open my $f, '>', $path or die "$path: $!\n";
	print $f "SET synchronous_commit = $commit;\n";
	for (1 .. 400)
	{
		my $sql = $transactions{ $often[ int rand @often ] }->($database->{topics});
		# nobody was told that it is safe
		$sql =~ s/'told '/'done '/ if $commit eq 'off' || $commit eq 'local';
		print $f $sql;
		print $f nap(60);
	}
	close $f;
	return;
}

1;
