# The judge must be able to say no: every kind of fault is made up and found.
# every major
use OutboxTest;

my $pg = OutboxTest->server('main');
$pg->judge_setup;

# Two transactions of key a in turn, two messages of b in one transaction, two
# transactions of c that overlap, and what was rolled back.
$pg->sql(q{SELECT judge.publish_in_order('t', 'a', 'a1')});
$pg->sql(q{SELECT judge.publish_in_order('t', 'a', 'a2')});
$pg->sql(q{SELECT judge.publish_in_order('t', 'a', 'a3')});
$pg->sql(q{BEGIN; SELECT judge.publish('t', 'b1', 'b'), judge.publish('t', 'b2', 'b'); COMMIT});
my $other = $pg->session;
$other->query_safe(q{BEGIN; SELECT judge.publish('t', 'c1', 'c')});
$pg->sql(q{SELECT judge.publish('t', 'c2', 'c')});
$other->query_safe(q{COMMIT});
$other->quit;
$pg->sql(q{SELECT judge.publish('t', 'c3', 'c')});
$pg->sql(q{BEGIN; SELECT judge.publish('t', 'never', 'a'); ROLLBACK});

# Deliveries: payloads in this order, in partition 0.
sub verdict
{
	my ($order, $change) = @_;
	my $sql = 'TRUNCATE judge.consumed;';
	my $offset = 0;
	for (@$order)
	{
		$sql .= sprintf q{INSERT INTO judge.consumed
			SELECT 't', 0, %d, 0, NULL, n::text, key::bytea, '[]', '%s', 0 FROM judge.ledger
			WHERE payload_md5 = md5('%s');}, $offset++, $_, $_;
	}
	$sql .= $change || '';
	$pg->sql($sql);
	my %v;
	@v{qw(published consumed lost phantom reordered stale duplicated damaged scattered)} =
	  split /\|/, $pg->sql(q{SET client_min_messages = error; SELECT * FROM judge.verdict()});
	delete @v{qw(published consumed)};
	return join ' ', map { "$_=$v{$_}" } grep { $v{$_} } sort keys %v;
}

my @all = qw(a1 a2 a3 b1 b2 c1 c2 c3);
is(verdict(\@all), '', 'all once and in order');
is(verdict([qw(b1 a1 c1 a2 b2 a3 c2 c3)]), '', 'keys may mix');
is(verdict([qw(a1 a2 a3 b1 b2 c2 c1 c3)]), '', 'transactions that overlap have no order');
is(verdict([qw(a1 a2 b1 b2 c1 c2 c3)]), 'lost=1', 'lost');
is(verdict([qw(a1 a3 a2 b1 b2 c1 c2 c3)]), 'reordered=1 stale=1', 'transactions in turn');
is(verdict([qw(a1 a2 a3 b2 b1 c1 c2 c3)]), 'reordered=1', 'inside a transaction');
is(verdict([qw(a1 a2 a3 b1 b2 c3 c1 c2)]), 'reordered=1', 'by what a snapshot saw');
is(verdict([ @all, 'a3' ]), 'duplicated=1', 'duplicated');
is(verdict([qw(a1 a2 a3 a2 a3 b1 b2 c1 c2 c3)]), 'duplicated=2', 'a replay is no reordering');
is(verdict([ @all, 'a2' ]), 'duplicated=1 stale=1', 'a replay that breaks off');
is(verdict(\@all, q{INSERT INTO judge.consumed VALUES ('t', 0, 99, 0, NULL, '999999');}),
	'phantom=1', 'phantom by number');
is(verdict(\@all, q{INSERT INTO judge.consumed VALUES ('t', 0, 99, 0, NULL, NULL);}),
	'phantom=1', 'phantom without header');
is(verdict(\@all, q{UPDATE judge.consumed SET payload = 'x' WHERE "offset" = 0;}),
	'damaged=1', 'another payload');
is(verdict(\@all, q{UPDATE judge.consumed SET key = 'x' WHERE "offset" = 0;}),
	'damaged=1', 'another key');
is(verdict(\@all, q{UPDATE judge.consumed SET message_id = '00000000-0000-8000-8000-0fffffffffff'
	WHERE "offset" = 0;}), 'damaged=1', 'another id');
is(verdict(\@all, q{UPDATE judge.consumed c SET message_id = '00000000-0000-8000-8000-'
	|| lpad(to_hex(l.id), 12, '0') FROM judge.ledger l WHERE l.n = c.ledger::bigint;}),
	'', 'ids as they should be');
is(verdict(\@all, q{UPDATE judge.consumed SET partition = 1 WHERE payload = 'a3';}),
	'scattered=1', 'scattered');

# As fast as tests with a million messages need it.
$pg->sql(q{SELECT judge.publish_many('big', 100000)});
$pg->sql(q{TRUNCATE judge.consumed; INSERT INTO judge.consumed
	SELECT topic, 0, n, 0, NULL, n::text, key::bytea, '[]', NULL, 0 FROM judge.ledger});
like($pg->sql(q{SELECT * FROM judge.verdict(ARRAY['big'])}), qr/^100000\|100000\|0\|0\|0\|0\|0\|0\|0$/,
	'a hundred thousand');

$pg->stop;
done_testing();
