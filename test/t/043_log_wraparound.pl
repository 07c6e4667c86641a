# Transaction ids beyond 32 bits: publishers, a reader and the keeper while the low
# half of the counter wraps around.
# every major
use OutboxTest;
use OutboxLog;

my $pg = OutboxTest->server('main', start => 0, conf => <<END);
outbox.segment_size = 64kB
outbox.poll_interval = 100ms
autovacuum = off
END

# Sets the counter; the part of pg_xact that belongs to it is made.
sub set_next_xid
{
	my ($xid) = @_;
	PostgreSQL::Test::Utils::system_or_bail('pg_resetwal', '--epoch=5', "--next-transaction-id=$xid",
		"--oldest-transaction-id=$xid", $pg->data_dir);
	open my $f, '>', $pg->data_dir . sprintf('/pg_xact/%04X', $xid / (8192 * 4 * 32)) or die $!;
	print $f "\0" x (8192 * 32);
	close $f;
	return;
}

# In two steps, since what is not frozen must be less than 2^31 transactions old.
set_next_xid(2**31 - 10000);
$pg->start;
PostgreSQL::Test::Utils::system_or_bail('vacuumdb', '--all', '--freeze', '--quiet',
	'--host', $pg->host, '--port', $pg->port);
$pg->stop;
set_next_xid(2**32 - 400);
$pg->start;
$pg->sql('CREATE EXTENSION pg_outbox');

my $log = OutboxLog->setup($pg);
my $publish = sub { "SELECT outbox.publish('t', '$_[0]')" };
my $before = $pg->sql('SELECT pg_current_xact_id()');
ok($before > 5 * 2**32 && $before < 6 * 2**32, 'the counter is before the end of epoch 5');

$log->paused_server('one');
my $r = $log->reader('', now => 1);
my ($open, $prepared) = ($log->session, $log->session);

$open->do('BEGIN');
$open->do($publish->('open'));
$prepared->do('BEGIN');
$prepared->do($publish->('prepared'));
$prepared->do("PREPARE TRANSACTION 'p'");
$pg->sql($publish->('first'));
is($r->round, 'first', 'before');
my $seen = 0;
for my $i (1 .. 60)
{
	$pg->sql(join ';', map { $publish->("m$i.$_") } 1 .. 10);
	$seen += () = $r->round =~ /m$i\./g;
}
is($seen, 600, 'every message is read, once, while the counter wraps around');
ok($pg->sql('SELECT pg_current_xact_id()') > 6 * 2**32, 'it has');
is($r->state('open'), 2, 'two transactions from before are tracked');
$r->resume;
$pg->sql($publish->('after'));
is($r->round, 'after', 'a reader that starts again');
$log->deliver('one', $r->state('low'));
$pg->sql("SELECT outbox.publish('t', repeat('x', 900)) FROM generate_series(1, 200)");
$log->deliver('one', $r->state('low'));
$open->do('COMMIT');
$pg->sql("COMMIT PREPARED 'p'");
like($r->round, qr/^open prepared( xxxxx\*900){200}$/, 'what was open from before');
$pg->restart;
is($pg->sql("SELECT count(*) FROM outbox.message WHERE payload IN ('open', 'prepared')"), 2,
	'and is kept while it is not delivered');
$log->deliver('one');
$pg->wait_ok('SELECT count(*) = 0 FROM outbox.segments WHERE lane IS NOT NULL AND generation <= 8 AND relid IN (SELECT relid FROM test.pages())',
	'and freed when it is');

$pg->stop;
done_testing();
