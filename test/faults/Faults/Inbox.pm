# The inbox of a scenario's database: a producer that sends to a topic, some of it twice, and
# a subscription whose handler writes a ledger of its effects.  Some messages fail several
# times before they are taken, some are never taken, some have the handler publish in turn.
#
# What must hold in the end is told by the topic itself, not by the producer: each id that
# is in it has had its effect once, in the order of its key.
package Faults::Inbox;

use strict;
use warnings;

use OutboxTest;
use POSIX ();
use Time::HiRes qw(time usleep);

my $build = $ENV{OUTBOX_BUILD} || 'build';
my $keys = 100;

# scenario, database
sub new
{
	my ($class, %options) = @_;
	my $self = bless { %options, topic => "$options{scenario}{tag}.$options{database}{name}.inbox" }, $class;
	$self->{scenario}->kafka->create_topic($self->{topic}, 4, $self->{scenario}{setup}{brokers});
	return $self;
}

sub sql { my ($self, $sql) = @_; return $self->{scenario}->pg->sql($sql, dbname => $self->{database}{name}) }

sub set_up
{
	my ($self) = @_;
	my $scenario = $self->{scenario};
	my $workers = $scenario->{setup}{inbox};
	# the place alone protects from effects that come twice, or the mark does too
	$self->{dedup} = rand() < 0.3 ? 'none' : 'message_id';
	$self->{dedup} = $scenario->{setup}{dedup} if $scenario->{setup}{dedup};
	my $several = $workers > 1 ? ", workers => $workers" : '';
	# with a primary whose last transactions are lost, the ledger's numbers are used again
	my $publishes = $scenario->{setup}{standby} eq 'async' ? 'false' : 'true';

	$self->sql(<<SQL);
CREATE TABLE app.effect (n bigserial, message_id text, key text, partition int, "offset" bigint, attempt int);
CREATE TABLE app.topic (LIKE judge.consumed);
CREATE FUNCTION app.one(m inbox.message) RETURNS void LANGUAGE plpgsql AS \$\$
DECLARE
	what text[] := string_to_array(inbox.payload_text(m), ' ');
BEGIN
	INSERT INTO app.effect (message_id, key, partition, "offset", attempt)
		VALUES (m.message_id, m.key, m.partition, m."offset", m.attempt);
	IF what[1] = 'publish' AND $publishes THEN
		PERFORM judge.publish('$self->{database}{topics}{plain}[0]', 'of the inbox', NULL);
	ELSIF what[1] = 'fail' AND m.attempt <= what[2]::int THEN
		RAISE division_by_zero;
	ELSIF what[1] = 'later' AND m.attempt <= what[2]::int THEN
		PERFORM inbox.retry_later('30 ms');
	ELSIF what[1] = 'reject' THEN
		PERFORM inbox.reject('never');
	END IF;
END
\$\$;
CREATE FUNCTION app.many(ms inbox.message[]) RETURNS void LANGUAGE plpgsql AS \$\$
DECLARE
	m inbox.message;
BEGIN
	FOREACH m IN ARRAY ms
	LOOP
		PERFORM app.one(m);
	END LOOP;
END
\$\$;
SELECT inbox.subscribe('inbox', 'events', '$self->{topic}', '@{[ $self->handler ]}', start => 'earliest',
	batch_size => @{[ 1 + int rand 300 ]}, max_attempts => 1000, backoff => '20 ms', dedup_by => '$self->{dedup}'$several);
SQL
	$self->{began} = $self->sql('SELECT clock_timestamp()');
	$self->start_producer;
	return;
}

# Which of the two is the database's own choice.
sub handler { my ($self) = @_; return $self->{handler} ||= rand() < 0.5 ? 'app.one(inbox.message)' : 'app.many(inbox.message[])' }

# --- the producer ----------------------------------------------------------------------------

sub line
{
	my ($self, $n) = @_;
	my $what = int rand 100;
	my $payload = $what < 3 ? 'fail ' . (1 + int rand 3) : $what < 4 ? 'later 1' : $what < 5 ? 'reject' : $what < 20 ? 'publish' : 'ok';
	return OutboxKafka::produce_line($self->{topic}, key => rand() < 0.1 ? undef : 'k' . int rand $keys, payload => $payload,
		partition => -1, headers => [ [ 'message-id', "m$n" ] ]);
}

# Sends what comes, in bursts, until it is told to end; lines of the past again, now and then.
sub start_producer
{
	my ($self) = @_;
	my $seed = int rand 2**31;
	my $bootstrap = $self->{scenario}->kafka->admin_bootstrap;
	my $pid = fork;
	die "fork: $!\n" unless defined $pid;
	if ($pid)
	{
		$self->{producer} = $pid;
		return;
	}
	srand $seed;
	my $parent = getppid;
	my $ended = 0;
	$SIG{$_} = sub { $ended = 1 } for qw(TERM INT HUP);
	$SIG{PIPE} = 'IGNORE';
	open my $to, '|-', "$build/kafka_produce", $bootstrap or POSIX::_exit(1);
	$to->autoflush(1);
	my ($n, @past) = (0);
	until ($ended || getppid != $parent)
	{
		for (1 .. 1 + int rand 25)
		{
			my $line = @past && rand() < 0.08 ? $past[ int rand @past ] : $self->line(++$n);
			print $to $line or last;
			push @past, $line;
			shift @past if @past > 500;
		}
		usleep(rand 200_000);
	}
	# all of it is acknowledged, or it says so
	POSIX::_exit(close $to ? 0 : 1);
}

# Waits until all that it has sent is at the broker.
sub end_producer
{
	my ($self) = @_;
	my $pid = delete $self->{producer} or return;
	local $?;
	kill 'TERM', $pid;
	waitpid $pid, 0;
	return;
}

sub DESTROY { my ($self) = @_; $self->end_producer; return }

# --- the verdict -----------------------------------------------------------------------------

# All is consumed, and nothing waits; a machine that is busy may take its time, but nothing
# may stand still.
sub drain
{
	my ($self, $verdict, $timeout) = @_;
	my $end = 0;
	my ($last, $until) = ('', time + $timeout);

	$end += (split /\t/)[2] for split /\n/, $self->{scenario}->kafka->admin('watermarks', $self->{topic});
	while (time < $until)
	{
		# a clock that was set back makes them wait for hours
		$self->sql(q{UPDATE inbox.waiting_message SET due = clock_timestamp() WHERE due > clock_timestamp() + interval '1 min'});
		my $state = $self->sql('SELECT (SELECT sum(next) FROM inbox.position), (SELECT count(*) FROM inbox.waiting), (SELECT count(*) FROM app.effect)');
		return 1 if $state =~ /^$end\|0\|/;
		$until = time + $timeout if $state ne $last;
		$last = $state;
		usleep(100_000);
	}
	$verdict->wrong($self->{database}, "the inbox makes no progress for $timeout s: of $end (place, waiting, effects) $last\n"
		  . $self->sql('SELECT * FROM inbox.subscription_status; SELECT * FROM inbox.position; SELECT * FROM inbox.waiting LIMIT 5'));
	return 0;
}

sub judge
{
	my ($self, $verdict) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/inbox.tsv';
	# what must have its effect once
	my ($id, $same) = $self->{dedup} eq 'none' ? ('partition, "offset"', '(a.partition, a."offset") = (t.partition, t."offset")')
	  : ('message_id', 'a.message_id = t.message_id');
	my %v;

	$self->{scenario}->kafka->consume_raw([ $self->{topic} ], out => $file, payload => 'text');
	@v{qw(sent ids lost doubled phantom reordered unwanted refused)} = split /\|/, $self->sql(<<END);
\\o /dev/null
TRUNCATE app.topic;
\\copy app.topic from '$file'
ANALYZE app.topic;
ANALYZE app.effect;
\\o
SELECT (SELECT count(*) FROM app.topic), (SELECT count(DISTINCT ($id)) FROM app.topic),
	-- neither had an effect nor was refused
	(SELECT count(DISTINCT ($id)) FROM app.topic t WHERE NOT EXISTS (SELECT FROM app.effect a WHERE $same)
		AND NOT EXISTS (SELECT FROM inbox.dead_letter a WHERE $same)),
	(SELECT count(*) FROM (SELECT FROM app.effect GROUP BY $id HAVING count(*) > 1) d),
	(SELECT count(*) FROM app.effect e WHERE NOT EXISTS (SELECT FROM app.topic t WHERE t.message_id = e.message_id
		AND t.partition = e.partition AND t."offset" = e."offset")),
	(SELECT count(*) FROM (SELECT "offset", max("offset") OVER (PARTITION BY partition, key ORDER BY n ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
		FROM app.effect WHERE key IS NOT NULL) o WHERE before > "offset"),
	-- effects of what its handler never takes
	(SELECT count(*) FROM app.effect e JOIN app.topic t USING (partition, "offset") WHERE convert_from(t.payload::bytea, 'UTF8') = 'reject'),
	(SELECT count(*) FROM inbox.dead_letter d WHERE convert_from(d.payload, 'UTF8') <> 'reject')
END
	unlink $file;
	my @bad = grep { $v{$_} } qw(lost doubled phantom reordered unwanted refused);
	$verdict->wrong($self->{database}, 'the inbox: ' . join(', ', map { "$_ $v{$_}" } @bad) . " of $v{ids}") if @bad;
	$verdict->wrong($self->{database}, 'the inbox: nothing was sent') unless $v{ids} > 100;
	$verdict->{consumed} += $v{ids};
	return;
}

1;
