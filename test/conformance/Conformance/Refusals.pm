# What a broker does not take: a single message, which becomes a dead letter and harms no
# other; and all of a topic, whose destination is missing, which waits alone.
package Conformance::Refusals;

use strict;
use warnings;

use OutboxTest;

sub checks
{
	return (
		'refused messages are dead letters' => \&refused,
		'on_error block' => \&block,
		'a missing destination delays only its own messages' => \&missing,
		'a destination that does not come' => \&given_up);
}

my $dead = '(SELECT array_agg(id) FROM outbox.dead_letter)';

sub refused
{
	my ($c) = @_;
	my ($small, $other) = ($c->create($c->topic('small'), limit => $c->broker->limit), $c->destinations('other'));
	my ($size, $error) = ($c->broker->limit * 1.5, $c->broker->refused_error);
	my $big = "repeat('x', $size)";

	$c->server(topics => "$small, $other");
	# one in the middle of a dense batch, of its key and of others
	$c->sql(<<END);
SELECT outbox.pause('events');
BEGIN;
SELECT judge.publish_many('$small', 2000, 20);
SELECT judge.publish('$small', $big, 'k3');
SELECT judge.publish_many('$small', 2000, 20);
SELECT judge.publish_many('$other', 2000, 20);
COMMIT;
SELECT outbox.resume('events');
END
	$c->flush_ok('a message that is refused is no obstacle');
	is($c->dead_letters('error, topic, key, attempts > 0, server, octet_length(payload)'),
		"$error|$small|k3|t|events|$size", 'it alone is a dead letter');
	isnt($c->dead_letters('reason'), '', 'with the reason: ' . $c->dead_letters('reason'));
	$c->judge_ok([ $small, $other ], 'its neighbours: once and in order', dead => $dead);

	# many of them under load
	my $load = $c->pg->load(clients => 4, seconds => 4, arguments => [ '-R', 500 ], script => <<END);
\\set k random(1, 20)
\\set bad random(1, 50)
\\if :bad = 1
SELECT judge.publish('$small', $big, 'k' || :k);
\\elif :bad < 20
SELECT judge.publish_in_order('$other', 'o' || :k);
\\else
SELECT judge.publish_in_order('$small', 'o' || :k);
\\endif
END
	ok($load->finish, 'publishers never noticed');
	$c->flush_ok;
	my $bad = $c->sql("SELECT count(*) FROM judge.ledger WHERE payload_md5 = md5($big)");
	is($c->sql("SELECT count(*) FROM outbox.dead_letter WHERE error = '$error'"), $bad, "each bad one is a dead letter ($bad)");
	my %verdict = $c->judge_ok([ $small, $other ], 'all others in order', dead => $dead, duplicates => 1);
	is($verdict{duplicated}, 0, 'and once');
	is($c->status('state, dead'), "running|$bad", 'relay_status counts them');

	$c->broker->set_limit($small, $c->broker->limit * 2);
	is($c->sql("SELECT outbox.redrive('events', NULL, '$small')"), $bad, 'redriven');
	$c->flush_ok;
	%verdict = $c->pg->judge($c->broker, [$small], dead => 'ARRAY[]::bigint[]');
	is("$verdict{lost} $verdict{duplicated}", '0 0', 'with the destination mended they are there, once');
	is($c->dead_letters('count(*)'), 0, 'none is left');
	return;
}

# The topic waits, others flow, and it heals.
sub block
{
	my ($c) = @_;
	my $big = sprintf q{repeat('x', %d)}, $c->broker->limit * 1.5;
	my ($small, $free) = ($c->create($c->topic('blocked'), limit => $c->broker->limit), $c->destinations('free'));

	$c->server(topics => "$small, $free", on_error => 'block');
	$c->sql("BEGIN; SELECT judge.publish_many('$small', 500, 5); SELECT judge.publish('$small', $big, 'k1');"
		  . " SELECT judge.publish_many('$small', 500, 5); COMMIT");
	$c->state_ok('blocked');
	$c->sql("SELECT judge.publish_many('$free', 2000); SELECT judge.publish_many('$small', 100)");
	ok($c->pg->wait_until(sub { $c->messages($free) == 2000 }), 'others flow');
	is($c->sql(q{SELECT outbox.flush('100ms')}), 'f', 'flush waits');
	like($c->status('last_error'), qr/\Q$small\E.*message \d+ was refused/, 'last_error names the message');
	is($c->dead_letters('count(*)'), 0, 'no dead letter');
	my ($option, $value) = $c->broker->harmless_option;
	$c->broker->set_limit($small, $c->broker->limit * 2);
	$c->sql(qq{ALTER SERVER events OPTIONS (ADD "$option" '$value')});
	$c->flush_ok('mended');
	$c->judge_ok([ $small, $free ], 'all once and in order');
	$c->state_ok('running');
	return;
}

sub missing
{
	my ($c) = @_;
	return if $c->lacks('missing_destinations');
	my ($fine) = $c->destinations('fine');
	my $missing = $c->topic('missing');

	$c->server(topics => "$fine, $missing");
	$c->sql("BEGIN; SELECT judge.publish_many('$_', 1000, 20); COMMIT") for $missing, $fine, $missing, $fine;
	$c->wait_ok("SELECT lagging_topics = 1 FROM outbox.relay_status", 'a topic lags');
	ok($c->pg->wait_until(sub { $c->messages($fine) >= 2000 }), 'others go on');
	like($c->status('last_error'), $c->broker->missing_message, 'last_error tells why');
	like($c->status('last_error'), qr/\Q$missing\E/, 'and which topic');
	isnt($c->status('hint'), '', 'with a hint: ' . $c->status('hint'));
	is($c->sql(q{SELECT outbox.flush('100ms')}), 'f', 'flush waits');

	# the relay's end, clean and not, while it lags
	$c->pg->restart;
	$c->wait_ok('SELECT lagging_topics = 1 FROM outbox.relay_status', 'lags again after a restart');
	$c->sql("SELECT judge.publish_many('$fine', 1000)");
	ok($c->pg->wait_until(sub { $c->messages($fine) >= 3000 }), 'others are delivered');
	$c->judge_ok([$fine], 'a clean restart sends nothing of them twice');

	my $load = $c->pg->load(clients => 3, seconds => 4, arguments => [ '-R', 500 ], script => <<END);
\\set k random(1, 20)
\\set m random(1, 4)
SELECT judge.publish_in_order(CASE WHEN :m = 1 THEN '$missing' ELSE '$fine' END, 'k' || :k);
END
	$c->create($missing);
	ok($load->finish, 'publishers never noticed');
	$c->flush_ok('it is there: delivered');
	$c->wait_ok('SELECT lagging_topics = 0 FROM outbox.relay_status', 'it lags no more');
	$c->judge_ok([ $fine, $missing ], 'all once and in order');
	is($c->dead_letters('count(*)'), 0, 'no dead letters');
	return;
}

sub given_up
{
	my ($c) = @_;
	return if $c->lacks('missing_destinations');
	my ($fine) = $c->destinations('fine');
	my $gone = $c->topic('gone');

	$c->server(topics => "$fine, $gone", topic_timeout => '2s');
	$c->sql("SELECT judge.publish_many('$gone', 300), judge.publish_many('$fine', 300)");
	$c->wait_ok("SELECT count(*) = 300 FROM outbox.dead_letter WHERE topic = '$gone'", 'its messages become dead letters');
	is($c->dead_letters('DISTINCT error'), $c->broker->missing_error, 'with the reason');
	$c->flush_ok('flush is content with them');
	$c->judge_ok([$fine], 'others: once and in order');
	$c->create($gone);
	$c->wait_ok('SELECT lagging_topics = 0 FROM outbox.relay_status', 'it is there');
	is($c->sql(q{SELECT outbox.redrive('events')}), 300, 'redriven');
	$c->flush_ok;
	my %verdict = $c->pg->judge($c->broker, [$gone], dead => 'ARRAY[]::bigint[]');
	is(join(' ', @verdict{qw(lost phantom duplicated damaged)}), '0 0 0 0', 'and delivered, once');
	return;
}

1;
