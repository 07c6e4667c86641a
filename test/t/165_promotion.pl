# A standby is promoted: with all that its primary had, with a position that is older than
# the broker's, and without what its primary had sent last.  What the new primary has is
# delivered, at least once and exactly once, whatever ids and transactions it uses again;
# and in recovery no worker runs.
use OutboxTest;
use PostgreSQL::Test::Utils ();

my $kafka = OutboxKafka->shared;
my ($many, $once) = map { unique_topic($_) } qw(many once);
my $workers = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg\_outbox%'};
my $pg = OutboxTest->server('first', init => { allows_streaming => 1 }, conf => <<END);
outbox.segment_size = 512kB
outbox.relay_memory = 4MB
wal_keep_size = 1GB
END

$kafka->create_topic($_, 4) for $many, $once;
$pg->judge_setup;
$pg->create_server('many', $kafka, topics => $many);
$pg->create_server('once', $kafka, topics => $once, exactly_once => 'true');

sub standby_of
{
	my ($primary, $name) = @_;
	$primary->backup($name);
	my $standby = OutboxTest->new($name);
	$standby->init_from_backup($primary, $name, has_streaming => 1);
	$standby->start;
	return $standby;
}

# Clients that note what they were told is committed: lines of ids, in files.
sub start_clients
{
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my @clients;
	for my $n (1 .. 4)
	{
		open my $f, '>', "$dir/client$n.sql" or die $!;
		print $f "SELECT judge.publish_in_order('" . ($_ % 2 ? $many : $once) . "', 'k" . ($_ % 19) . "');\n" for 1 .. 100_000;
		close $f;
		push @clients, { out => "$dir/client$n.out", handle => IPC::Run::start(
			[ 'psql', '-XAtq', '-h', $pg->host, '-p', $pg->port, '-f', "$dir/client$n.sql", 'postgres' ],
			'>', "$dir/client$n.out", '2>', '/dev/null') };
	}
	return @clients;
}

# Positions in the database tell of all that is published.
sub wait_stored
{
	my ($pg) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $pg->wait_ok(<<END, 'positions are stored');
SELECT count(*) = 2 AND bool_and(pg_visible_in_snapshot((SELECT max(xid) FROM judge.ledger), s1::pg_snapshot))
FROM (SELECT DISTINCT ON (server) * FROM outbox.position_log ORDER BY server, n DESC) p
END
}

# --- synchronous, with a backlog: what clients were told is there -------------------------

my $second = standby_of($pg, 'second');
$pg->sql(q{ALTER SYSTEM SET synchronous_standby_names = 'second'});
$pg->reload;
$pg->wait_ok(q{SELECT sync_state = 'sync' FROM pg_stat_replication}, 'a synchronous standby');
my @clients = start_clients();
$pg->wait_ok('SELECT min(delivered) > 500 FROM outbox.relay_status', 'delivers under load');
is($second->sql($workers), 0, 'no worker on the standby');
$pg->sql("SELECT judge.publish_many('$many', 40000), judge.publish_many('$once', 40000)");
$pg->crash;
$_->{handle}->finish for @clients;
cmp_ok($kafka->count($_), '<', $second->sql("SELECT count(*) FROM judge.ledger WHERE topic = '$_'"),
	'the primary dies with a backlog') for $many, $once;

$second->sql('ALTER SYSTEM RESET synchronous_standby_names');
$second->promote;
$second->wait_ok($workers, 'promoted: workers start', expect => 4);
ok($second->flush, 'the new primary delivers it');
$second->sql('CREATE TABLE told (id bigint)');
$second->sql("\\copy told from '$_->{out}'") for @clients;
cmp_ok($second->sql('SELECT count(*) FROM told'), '>', 1000, 'clients were told of commits');
is($second->sql('SELECT count(*) FROM told t WHERE NOT EXISTS (SELECT FROM judge.ledger l WHERE l.id = t.id)'),
	0, 'all of them are on the new primary');
$second->judge_ok($kafka, [$many], 'synchronous: at least once, in order', duplicates => 1);
$second->judge_ok($kafka, [$once], 'synchronous: exactly once, in order', committed => 1);
unlike($second->log_text, qr/does not go on from its position at the broker/, 'from where the broker says');

# --- nothing lost, but the broker knows more than the replicated position ------------------

$pg = $second;
my $third = standby_of($pg, 'third');
$pg->append_conf('postgresql.conf', "outbox.fault = 'chunk-committed=wait'");
$pg->reload;
$pg->sql("SELECT judge.publish_many('$_', 500)") for $many, $once;
my $n = $pg->sql("SELECT count(*) FROM judge.ledger WHERE topic = '$once'");
ok($pg->wait_until(sub { $n == (() = $kafka->consume($once, committed => 1)) }),
	'committed at the broker, and not known to the database');
$pg->wait_for_catchup($third);
$pg->crash;
$third->promote;
ok($third->flush, 'promoted, delivered');
$third->sql("SELECT judge.publish_many('$_', 500)") for $many, $once;
ok($third->flush, 'delivered');
$third->judge_ok($kafka, [$many], 'an older position: at least once, in order', duplicates => 1);
$third->judge_ok($kafka, [$once], 'an older position: exactly once, in order', committed => 1);
unlike($third->log_text, qr/does not go on from its position at the broker/, 'from where the broker says');

# --- transactions lost -----------------------------------------------------------------------

$pg = $third;
my $fourth = standby_of($pg, 'fourth');
wait_stored($pg);
$pg->wait_for_catchup($fourth);
my %before = map { $_ => $kafka->count($_) } $many, $once;
my %seen = ($many => { $pg->judge($kafka, [$many]) }, $once => { $pg->judge($kafka, [$once], committed => 1) });
$fourth->stop;
# more than the ids that a server takes in advance
$pg->sql("SELECT judge.publish_many('$_', 20000)") for $many, $once;
$pg->sql("SELECT judge.publish_many('$_', 1)") for ($many, $once) x 10;
ok($pg->flush, 'the primary delivers what the standby will never have');
my ($lost_xid, $lost_id) = split /\|/, $pg->sql('SELECT max(xid), max(id) FROM judge.ledger');
$pg->crash;

# Recovery, and recovery again after a crash in it: no workers.
$fourth->start;
is($fourth->sql($workers), 0, 'no worker on the standby');
my $guest = $fourth->session;
my $pid = $guest->query('SELECT pg_backend_pid()');
$fourth->kill_process($pid);
eval { $guest->quit };
$fourth->wait_ok("SELECT pg_is_in_recovery() AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)", 'a crash in recovery');
is($fourth->sql($workers), 0, 'no worker');
$fourth->restart;
is($fourth->sql($workers), 0, 'nor after a restart');
is($fourth->sql(q{SELECT DISTINCT state FROM outbox.relay_status}), 'no_worker', 'and it says so');
$fourth->append_conf('postgresql.conf', 'outbox.enabled = off');
$fourth->reload;
$fourth->promote;

# Published before relays start; with numbers that the ledger of the lost primary has not
# used.
$fourth->sql(q{SELECT setval('judge.ledger_n', nextval('judge.ledger_n') + 1000000)});
my @loads = map { $fourth->load(clients => 2, transactions => 200,
	script => "\\set k random(1, 20)\nSELECT judge.publish_in_order('$_', 'k' || :k);") } $many, $once;
ok($_->finish, 'published') for @loads;
$fourth->append_conf('postgresql.conf', 'outbox.enabled = on');
$fourth->reload;
ok($fourth->flush, 'the new primary delivers');
is($fourth->sql(<<END), 't', 'ids and transactions of the lost ones were used again');
SELECT min(xid) < '$lost_xid' AND min(id) < $lost_id FROM judge.ledger WHERE n > 1000000
END
like($fourth->log_text, qr/server "once" does not go on from its position at the broker: it (rests on WAL|names transactions)/,
	'the position at the broker is not believed');
for my $topic ($many, $once)
{
	my %verdict = $fourth->judge($kafka, [$topic], committed => $topic eq $once);
	is(join(' ', map { "$_ $verdict{$_}" } qw(lost reordered stale damaged scattered)),
		'lost 0 reordered 0 stale 0 damaged 0 scattered 0', "$topic: nothing that the new primary has is lost");
	is($verdict{phantom}, 20010, 'what it never had is at the broker');
	is($verdict{duplicated}, $seen{$topic}{duplicated}, 'and nothing comes again');
	is($fourth->sql('SELECT count(DISTINCT message_id) FROM judge.consumed') + $verdict{duplicated}, $verdict{consumed},
		'no message id was given twice');
}

$fourth->stop;
done_testing();
