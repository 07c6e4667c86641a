# What arrives: everything that was published, as it was published, in the order of its
# keys, at each server that wants it.
package Conformance::Messages;

use strict;
use warnings;
use utf8;

use Encode qw(encode_utf8);
use OutboxTest;

sub checks
{
	return (
		'deliver' => \&deliver,
		'order per key' => \&order,
		'fan-out by pattern' => \&fan_out,
		'headers byte for byte' => \&headers,
		'payloads and keys' => \&payloads,
		'largest payload' => \&largest);
}

sub deliver
{
	my ($c) = @_;
	my $topic = $c->destinations('deliver');

	$c->server(topics => $topic);
	$c->sql(<<END);
BEGIN;
SELECT outbox.publish('$topic', '{"item": "tea", "amount": 3}'::jsonb, 'one');
SAVEPOINT s;
SELECT outbox.publish('$topic', 'never', 'one');
ROLLBACK TO s;
SELECT outbox.publish('$topic', '{"b":1,  "a":2}'::json, 'one');
SELECT outbox.publish('$topic', 'text', 'one', message_id => 'import-17');
COMMIT;
BEGIN;
SELECT outbox.publish('$topic', 'never', 'one');
ROLLBACK;
SELECT outbox.publish_batch('$topic', ARRAY['first', 'second']::text[], ARRAY['one', 'one']);
END
	my ($from, $to) = map { $c->sql("SELECT (extract(epoch FROM $_) * 1000)::bigint") }
	  "clock_timestamp() - interval '1 min'", 'clock_timestamp()';
	$c->flush_ok;
	my @messages = $c->messages($topic);
	is(join('|', map { $_->{payload} } @messages), '{"item": "tea", "amount": 3}|{"b":1,  "a":2}|text|first|second',
		'what committed is there, in its order, and nothing else');
	is(join(' ', map { $_->{key} } @messages), 'one one one one one', 'with its keys');
	is($messages[2]{message_id}, 'import-17', 'a message id of its own');
	is(scalar(grep { $_->{message_id} =~ /^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$/ } @messages), 4,
		'or a UUID');
	is(scalar(grep { $_->{timestamp} >= $from && $_->{timestamp} <= $to } @messages), 5, 'when it was published')
	  or diag(join ' ', $from, $to, map { $_->{timestamp} } @messages);
	is($c->status('state, delivered, dead, last_error IS NULL'), 'running|5|0|t', 'relay_status tells it');
	$c->wait_ok('SELECT in_flight = 0 AND oldest_pending IS NULL FROM outbox.relay_status', 'and that nothing is left');
	return;
}

sub order
{
	my ($c) = @_;
	my ($topic, $other) = $c->destinations('order', 'other');

	$c->server(topics => "$topic, $other");
	my $load = $c->pg->load(clients => 8, seconds => 5, script => <<END);
\\set k random(1, 20)
\\set t random(1, 4)
\\if :t = 1
BEGIN;
SELECT judge.publish_in_order('$other', 'k' || :k);
SELECT judge.publish_in_order('$other', 'k' || :k);
COMMIT;
\\else
SELECT judge.publish_in_order('$topic', 'k' || :k);
\\endif
END
	ok($load->finish, 'publishers went through');
	$c->sql("SELECT judge.publish_many('$topic', 20000, 500); SELECT judge.publish('$topic', 'no key')");
	$c->flush_ok;
	my %verdict = $c->judge_ok([ $topic, $other ], 'all once and in the order of their keys');
	cmp_ok($verdict{consumed}, '>', 20_100, 'enough of them');
	return;
}

# Two servers with patterns that overlap; what a third one excludes, and what nobody wants.
sub fan_out
{
	my ($c) = @_;
	my ($orders, $secret, $payments) = $c->destinations('orders', 'orders.secret', 'payments');
	my $run = $c->topic('');

	$c->server(name => 'events', topics => "${run}*, !*.secret, !*.nobody");
	$c->server(name => 'audit', topics => "${run}orders*");
	$c->sql("SELECT outbox.pause('audit')");
	ok($c->pg->wait_state('audit', 'paused'), 'one is paused');
	my $unrouted = $c->sql('SELECT coalesce(sum(messages), 0) FROM outbox.unrouted');
	$c->sql("SELECT judge.publish_many('$_', 500, 20)") for $orders, $secret, $payments;
	$c->sql("SELECT outbox.publish('${run}nobody', 'x') FROM generate_series(1, 7)");
	$c->wait_ok("SELECT delivered = 1000 FROM outbox.relay_status WHERE server = 'events'", 'the other goes on');
	is($c->status('delivered', 'audit'), 0, 'it gets nothing');
	$c->sql("SELECT outbox.resume('audit')");
	$c->flush_ok;
	is($c->status('delivered', 'audit'), 1000, 'and then what it wants');
	$c->judge_ok([ $secret, $payments ], 'what one of them wants is there once');
	my %verdict = $c->pg->judge($c->broker, [$orders]);
	is($verdict{$_}, 0, "of what both want none is $_") for qw(lost phantom damaged);
	is($verdict{duplicated}, $c->broker->lacks('own_duplicates') ? 0 : 500,
		'it is there twice' . ($c->broker->lacks('own_duplicates') ? ', seen as once: ' . $c->broker->lacks('own_duplicates') : ''));
	is($c->sql('SELECT sum(messages) FROM outbox.unrouted') - $unrouted, 7, 'what nobody wants is counted');
	return;
}

sub _json
{
	return JSON::PP->new->utf8(0)->canonical->encode($_[0]);
}

# Headers as they are to be compared; sort keeps those of one name in their order.
sub _comparable
{
	my ($c, $headers) = @_;
	return _json($headers) if !$headers || !$c->broker->lacks('header_order');
	return _json([ sort { $a->[0] cmp $b->[0] } @$headers ]);
}

sub headers_ok
{
	my ($c, $topic, $n, $headers, $name) = @_;
	my $json = _json($headers) =~ s/'/''/gr;

	$c->sql(encode_utf8("SELECT outbox.publish('$topic', '$n', 'k', headers => '$json'::jsonb)"));
	$c->flush_ok("$name: delivered");
	my ($message) = grep { $_->{payload} eq $n } $c->messages($topic);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(encode_utf8(_comparable($c, $message && $message->{headers})), encode_utf8(_comparable($c, $headers)), $name);
}

sub headers
{
	my ($c) = @_;
	my $topic = $c->destinations('headers');
	my $trace = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';

	$c->lacks('header_order');
	$c->server(topics => $topic);
	headers_ok($c, $topic, 1, [], 'none');
	headers_ok($c, $topic, 2,
		[ [ 'zulu', '1' ], [ 'Alpha', 'two words' ], [ 'alpha', "a 'quoted' \"one\", with \\ and % and : and ;" ],
			[ 'm-i_x.9', 'tab	inside' ], [ 'unicode', '€ 東京 é 😀' ], [ 'empty', '' ], [ 'content-type', 'application/json' ],
			[ 'long', 'x' x 10_000 ], [ 'last', '{"json": [1, 2]}' ] ], 'as they were given');
	headers_ok($c, $topic, 3, [ map { [ "h$_", "value $_" ] } 1 .. 100 ], 'a hundred');
	headers_ok($c, $topic, 4, [ [ 'b', '1' ], [ 'a', '2' ], [ 'b', '0' ], [ 'a', '3' ] ], 'repeated ones')
	  unless $c->lacks('repeated_headers');
	headers_ok($c, $topic, 5, [ [ 'lines', "one\r\ntwo\nthree: 3\r\n" ] ], 'line breaks')
	  unless $c->lacks('header_line_breaks');
	headers_ok($c, $topic, 6, [ [ 'outer', "  \t blanks \t " ] ], 'blanks around')
	  unless $c->lacks('header_outer_blanks');
	$c->sql("BEGIN; SET LOCAL outbox.traceparent = '$trace'; SET LOCAL outbox.tracestate = 'a=1';"
		  . " SELECT outbox.publish('$topic', 'traced', headers => '{\"mine\": \"x\"}'); COMMIT");
	$c->flush_ok;
	my ($traced) = grep { $_->{payload} eq 'traced' } $c->messages($topic);
	is(_comparable($c, $traced->{headers}), _comparable($c, [ [ 'traceparent', $trace ], [ 'tracestate', 'a=1' ], [ 'mine', 'x' ] ]),
		'the trace, then the others');
	return;
}

sub _show { return defined $_[0] ? "'$_[0]'" : 'NULL' }

sub payloads
{
	my ($c) = @_;
	my $topic = $c->destinations('payloads');
	my $none = $c->broker->lacks('tombstones') ? "''" : 'NULL';
	my $no_key = $c->broker->lacks('empty_keys') ? 'NULL' : "''";
	my $bytes = join '', map { chr } 0 .. 255;
	my $key = encode_utf8('ключ 鍵 "key"');

	$c->server(topics => $topic);
	$c->sql($_) for "SELECT outbox.publish('$topic', NULL::jsonb, 'tombstone')",
	  "SELECT outbox.publish('$topic', '', 'empty')",
	  "SELECT outbox.publish('$topic', '\\x'::bytea, 'empty bytea')",
	  "SELECT outbox.publish('$topic', '\\x" . unpack('H*', $bytes) . "'::bytea, 'bytes')",
	  "SELECT outbox.publish('$topic', '{\"k\": \"" . encode_utf8('東京') . "\"}'::jsonb, 'json')",
	  "SELECT outbox.publish('$topic', 'unicode key', '$key')",
	  "SELECT outbox.publish('$topic', 'long key', repeat('k', 1000))",
	  "SELECT outbox.publish('$topic', 'empty key', '')",
	  "SELECT outbox.publish('$topic', 'no key')";
	$c->flush_ok;
	my @messages = $c->messages($topic);
	is(scalar @messages, 9, 'all have come');
	my %by_key = map { (defined $_->{key} ? $_->{key} : 'none') => $_ } @messages;
	my %by_payload = map { (defined $_->{payload} ? $_->{payload} : 'none') => $_ } @messages;
	is(_show($by_key{tombstone}{payload}), $none, 'a tombstone' . ($none eq 'NULL' ? '' : ': ' . $c->broker->lacks('tombstones')));
	is(_show($by_key{empty}{payload}), "''", 'an empty text');
	is(_show($by_key{'empty bytea'}{payload}), "''", 'an empty bytea');
	ok($by_key{bytes}{payload} eq $bytes, 'every byte');
	is($by_key{json}{payload}, encode_utf8('{"k": "東京"}'), 'JSON in UTF-8');
	is($by_payload{'unicode key'}{key}, $key, 'a key in UTF-8');
	is($by_payload{'long key'}{key}, 'k' x 1000, 'a long key');
	is(_show($by_payload{'empty key'}{key}), $no_key, 'an empty key' . ($no_key eq 'NULL' ? ': ' . $c->broker->lacks('empty_keys') : ''));
	is(_show($by_payload{'no key'}{key}), 'NULL', 'no key');
	return;
}

sub largest
{
	my ($c) = @_;
	my $topic = $c->destinations('largest');
	my $size = $c->broker->largest_payload;

	$c->server(topics => $topic);
	$c->sql(<<END);
BEGIN;
SELECT judge.publish_in_order('$topic', 'k', 'before');
SELECT judge.publish_in_order('$topic', 'k', repeat('x', $size));
SELECT judge.publish_in_order('$topic', 'k', 'behind');
SELECT judge.publish_in_order('$topic', 'k', repeat('y', $size));
COMMIT;
END
	$c->flush_ok;
	is($c->sql('SELECT count(*) FROM outbox.dead_letter'), 0, "payloads of $size bytes are not refused");
	$c->judge_ok([$topic], 'all once, in order, undamaged');
	return;
}

1;
