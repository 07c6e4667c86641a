# The way in: messages of any producer have their effect once, in the order of their keys,
# whatever breaks meanwhile.
package Conformance::Inbox;

use strict;
use warnings;
use utf8;

use Encode qw(encode_utf8);
use OutboxTest;

sub checks
{
	return (
		'inbox: messages as they were sent' => \&arrive,
		'inbox: ack, nak, redelivery, dead letters' => \&nak,
		'inbox: known again' => \&dedup,
		'inbox: the place' => \&place,
		'inbox: outages of the broker' => \&outages,
		'inbox: a missing source' => \&missing,
		'inbox: wrong credentials' => \&credentials);
}

# Handlers: one that writes down what it gets, one that raises for what is in "broken" until
# that attempt.
sub set_up
{
	my ($class, $pg) = @_;
	return $pg->sql(<<'SQL');
CREATE TABLE effect (n bigserial, message_id text, topic text, partition int, "offset" bigint, key text,
	headers jsonb, payload bytea, "timestamp" timestamptz, attempt int, at timestamptz DEFAULT clock_timestamp());
CREATE TABLE broken (value text PRIMARY KEY, until int);
CREATE FUNCTION note(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.effect (message_id, topic, partition, "offset", key, headers, payload, "timestamp", attempt)
		VALUES (m.message_id, m.topic, m.partition, m."offset", m.key, m.headers, m.payload, m."timestamp", m.attempt);
	IF EXISTS (SELECT FROM public.broken b WHERE convert_to(b.value, 'UTF8') = m.payload AND m.attempt < b.until) THEN
		RAISE division_by_zero USING MESSAGE = 'no ' || inbox.payload_text(m);
	ELSIF m.payload = 'later' AND m.attempt < 3 THEN
		PERFORM inbox.retry_later('50 ms');
	ELSIF m.payload = 'rejected' THEN
		PERFORM inbox.reject('not ours');
	END IF;
END
$$;
SQL
}

# A subscription "in" of a destination, from what is there on.
sub subscribe
{
	my ($c, $topic, $more) = @_;
	return $c->sql("SELECT inbox.subscribe('in', 'events', '$topic', 'note(inbox.message)', start => 'earliest', "
		  . "backoff => '20 ms'" . ($more ? ", $more" : '') . ')');
}

sub in_status { my ($c, $column) = @_; return $c->sql("SELECT $column FROM inbox.subscription_status") }

sub runs_ok
{
	my ($c, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $c->wait_ok("SELECT state = 'running' AND partitions > 0 FROM inbox.subscription_status", $name || 'it runs');
}

# So many numbered messages "1", "2", ... of ten keys; from where the last call ended.
sub send_numbers
{
	my ($c, $topic, $n) = @_;
	my $from = $c->{numbers} || 0;

	$c->broker->produce($topic, map { { key => 'k' . $_ % 10, payload => "$_", message_id => "$c->{run}-$_" } } $from + 1 .. $from + $n);
	$c->{numbers} = $from + $n;
	return;
}

# All numbers had their effect once, each key's in order.
sub once_ok
{
	my ($c, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$c->wait_ok("SELECT count(DISTINCT payload) = $c->{numbers} FROM effect", "$name: all have come");
	is($c->sql('SELECT count(*) FROM effect'), $c->{numbers}, "$name: once");
	return is($c->sql(q{SELECT count(*) FROM (SELECT convert_from(payload, 'UTF8')::int v,
		lag(convert_from(payload, 'UTF8')::int) OVER (PARTITION BY key ORDER BY n) w FROM effect) o WHERE w > v}), 0,
		"$name: in order by key");
}

sub arrive
{
	my ($c) = @_;
	return if $c->lacks('subscriptions');
	my $topic = $c->create($c->topic('arrive'), partitions => 1);
	my $broker = $c->broker;
	my $bytes = join '', map { chr } 0 .. 255;
	my @headers = ([ 'one', '1' ], [ 'unicode', encode_utf8('é 東京') ], [ 'empty', '' ], [ 'json', '{"a": [1]}' ]);

	push @headers, [ 'twice', 'b' ], [ 'twice', 'a' ] unless $c->lacks('repeated_headers');
	push @headers, [ 'binary', "\xfe\xff" ] unless $c->lacks('header_bytes');
	$broker->produce($topic,
		{ key => 'a', payload => 'text', headers => \@headers, message_id => 'm1' },
		{ key => 'b', payload => '', message_id => 'm2' },
		{ key => 'c', payload => undef, message_id => 'm3' },
		{ key => undef, payload => 'no key', message_id => 'm4' },
		{ key => encode_utf8('ключ'), payload => $bytes, message_id => 'm5' },
		{ key => '', payload => 'empty key', message_id => 'm6' },
		{ key => 'k', payload => 'no id' });
	$c->server(topics => '!*');
	subscribe($c, $topic);
	my $n = $broker->lacks('places') ? 6 : 7;
	$c->wait_ok("SELECT count(*) = $n FROM effect", 'all have come, from the earliest on');
	my $wanted = q{'one', headers->'one', 'unicode', headers->'unicode', 'empty', headers->'empty', 'json', headers->'json'};
	is($c->sql("SELECT jsonb_build_object($wanted) = '"
			  . encode_utf8('{"one": "1", "unicode": "é 東京", "empty": "", "json": "{\"a\": [1]}"}') . "' FROM effect WHERE message_id = 'm1'"),
		't', 'headers') or diag($c->sql("SELECT headers FROM effect WHERE message_id = 'm1'"));
	is($c->sql(q{SELECT headers->'twice' FROM effect WHERE message_id = 'm1'}), '["b", "a"]', 'a repeated header')
	  unless $broker->lacks('repeated_headers');
	is($c->sql(q{SELECT headers->>'binary' FROM effect WHERE message_id = 'm1'}), '\xfeff', 'one that is no text')
	  unless $broker->lacks('header_bytes');
	my %by_id = map { my @f = split /\|/, $_, -1; $f[0] => "$f[1] $f[2]" } split /\n/,
	  $c->sql(q{SELECT message_id, coalesce(quote_literal(key), 'NULL'), coalesce(encode(payload, 'hex'), 'NULL') FROM effect});
	is($by_id{m2}, q{'b' }, 'an empty payload');
	is($by_id{m3}, $broker->lacks('tombstones') ? q{'c' } : q{'c' NULL}, 'a tombstone');
	is($by_id{m4}, 'NULL ' . unpack('H*', 'no key'), 'no key');
	is($by_id{m5}, encode_utf8(q{'ключ' }) . unpack('H*', $bytes), 'a key in UTF-8, and every byte');
	is($by_id{m6}, ($broker->lacks('empty_keys') ? 'NULL ' : q{'' }) . unpack('H*', 'empty key'), 'an empty key');
	is($c->sql(q{SELECT count(*) FROM effect WHERE attempt <> 1}), 0, 'each at its first attempt');
	is($c->sql(q{SELECT string_agg(message_id, ' ' ORDER BY n) FROM effect WHERE message_id LIKE 'm_'}), 'm1 m2 m3 m4 m5 m6', 'in their order');
	no_id_ok($c, $topic);
	return;
}

# One without an id has its effect, under a name that the transport makes, or is a dead
# letter where the broker has no way to know it again.
sub no_id_ok
{
	my ($c, $topic) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($c->sql(q{SELECT convert_from(payload, 'UTF8') FROM inbox.dead_letter}), 'no id', 'one without an id is a dead letter')
	  if $c->broker->lacks('places');
	return is($c->sql(q{SELECT message_id <> '' FROM effect WHERE payload = 'no id'}), 't',
		'one without an id: ' . $c->sql(q{SELECT message_id FROM effect WHERE payload = 'no id'}));
}

sub nak
{
	my ($c) = @_;
	return if $c->lacks('subscriptions');
	my $topic = $c->create($c->topic('nak'), partitions => 1);

	$c->sql("INSERT INTO broken VALUES ('b5', 3), ('d1', 1000)");
	$c->server(topics => '!*');
	subscribe($c, $topic, 'max_attempts => 4');
	runs_ok($c);
	$c->broker->produce($topic, map { { key => 'k' . $_ % 5, payload => "b$_", message_id => "b$_" } } 1 .. 50);
	$c->wait_ok(q{SELECT count(*) = 50 FROM effect}, 'all in the end');
	is($c->sql(q{SELECT attempt FROM effect WHERE payload = 'b5'}), 3, 'one at its third attempt');
	is($c->sql(q{SELECT string_agg(convert_from(payload, 'UTF8'), ' ' ORDER BY n) FROM effect WHERE key = 'k0'}),
		'b5 b10 b15 b20 b25 b30 b35 b40 b45 b50', 'those of its key behind it');
	is($c->sql('SELECT count(*) FROM inbox.waiting'), 0, 'nothing waits');

	$c->broker->produce($topic, map { { key => 'd', payload => "d$_", message_id => "d$_" } } 1 .. 5);
	$c->wait_ok(q{SELECT count(*) = 4 FROM effect WHERE key = 'd'}, 'others of a key go on behind one that is given up');
	is($c->sql(q{SELECT format('%s %s %s %s', convert_from(payload, 'UTF8'), sqlstate, error, attempts) FROM inbox.dead_letter}),
		'd1 22012 no d1 4', 'that is a dead letter with the reason');
	$c->sql('TRUNCATE broken');
	is($c->sql("SELECT inbox.redrive('in')"), 1, 'redriven');
	$c->wait_ok(q{SELECT count(*) = 1 FROM effect WHERE payload = 'd1'}, 'and handled');

	$c->broker->produce($topic, map { { key => 'x', payload => $_, message_id => $_ } } qw(later rejected fine));
	$c->wait_ok(q{SELECT string_agg(convert_from(payload, 'UTF8'), ' ' ORDER BY n) = 'later fine' FROM effect WHERE key = 'x'},
		'later, rejected, and what is behind them');
	is($c->sql(q{SELECT format('%s %s', error, attempts) FROM inbox.dead_letter}), 'not ours 1', 'rejected at once');
	$c->sql('TRUNCATE broken');

	# a worker that dies while something waits
	$c->sql("INSERT INTO broken VALUES ('w1', 1000)");
	$c->sql("SELECT inbox.alter_subscription('in', on_error => 'block')");
	$c->broker->produce($topic, map { { key => 'w', payload => "w$_", message_id => "w$_" } } 1 .. 3);
	$c->wait_ok('SELECT count(*) = 3 FROM inbox.waiting', 'three wait');
	my $pid = in_status($c, 'pid');
	$c->pg->kill_process($pid);
	$c->wait_ok("SELECT pid <> $pid FROM inbox.subscription_status", 'another worker');
	$c->sql('TRUNCATE broken');
	$c->wait_ok(q{SELECT string_agg(convert_from(payload, 'UTF8'), ' ' ORDER BY n) = 'w1 w2 w3' FROM effect WHERE key = 'w'},
		'they are handled, in order');
	is($c->sql('SELECT count(*) FROM (SELECT FROM effect GROUP BY message_id HAVING count(*) > 1) twice'), 0, 'nothing twice');
	return;
}

sub dedup
{
	my ($c) = @_;
	return if $c->lacks('subscriptions');
	my $topic = $c->create($c->topic('dedup'), partitions => 1);

	$c->server(topics => '!*');
	subscribe($c, $topic);
	runs_ok($c);
	$c->broker->produce($topic, (map { { key => 'k', payload => "$_", message_id => 'the same' } } 1 .. 3),
		{ key => 'k', payload => 'other', message_id => 'other' });
	$c->wait_ok("SELECT count(*) = 1 FROM effect WHERE payload = 'other'", 'what is behind three messages of one id has come');
	is($c->sql("SELECT string_agg(convert_from(payload, 'UTF8'), ' ') FROM effect WHERE message_id = 'the same'"), 1, 'the first of them alone');
	if (!$c->lacks('keeps_messages'))
	{
		$c->sql("SELECT inbox.seek('in', 'earliest')");
		$c->wait_ok('SELECT duplicates >= 6 FROM inbox.subscription_status', 'all is read again');
		is($c->sql('SELECT count(*) FROM effect'), 2, 'and has no second effect');
	}
	if (!$c->lacks('start_latest'))
	{
		$c->sql("SELECT inbox.unsubscribe('in')");
		$c->wait_ok(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'pg_outbox inbox%'}, 'unsubscribed');
		$c->sql("SELECT inbox.subscribe('in', 'events', '$topic', 'note(inbox.message)')");
		runs_ok($c, 'a new one, from the latest message on');
		$c->broker->produce($topic, { payload => 'new', message_id => 'new' });
		$c->wait_ok("SELECT count(*) = 1 FROM effect WHERE payload = 'new'", 'the next one has come');
		is($c->sql('SELECT count(*) FROM effect'), 3, 'and no earlier ones');
	}
	return;
}

# PostgreSQL's place counts, whatever dies between its commit and the broker's word.
sub place
{
	my ($c) = @_;
	return if $c->lacks('subscriptions');
	my $topic = $c->destinations('place');

	$c->server(topics => '!*');
	subscribe($c, $topic, 'batch_size => 50');
	send_numbers($c, $topic, 300);
	once_ok($c, 'quiet');
	for my $signal (qw(TERM KILL))
	{
		send_numbers($c, $topic, 1000);
		my $pid = in_status($c, 'pid');
		$c->pg->kill_process($pid, $signal);
		$c->wait_ok("SELECT pid <> $pid FROM inbox.subscription_status", "another worker after SIG$signal");
		once_ok($c, "SIG$signal");
	}
	$c->expect_aborts;
	for my $fault ('inbox-before-commit=crash', 'inbox-after-commit=crash', 'inbox-after-commit=error')
	{
		my $pid = in_status($c, 'pid');
		ok($c->pg->set_fault($fault), "$fault is set");
		send_numbers($c, $topic, 300);
		if ($fault =~ /error/)
		{
			$c->wait_ok("SELECT last_error LIKE '%inbox-after-commit%' FROM inbox.subscription_status", $fault);
		}
		else
		{
			$c->wait_ok("SELECT pid <> $pid FROM inbox.subscription_status", $fault);
		}
		# the next worker may crash too, before it is told
		ok($c->pg->set_fault(''), "$fault: no more of that");
		once_ok($c, $fault);
	}
	send_numbers($c, $topic, 2000);
	$c->pg->crash;
	$c->pg->start;
	once_ok($c, 'PostgreSQL crashed');
	send_numbers($c, $topic, 1000);
	$c->pg->restart;
	once_ok($c, 'PostgreSQL was restarted');
	$c->sql("SELECT inbox.pause('in')");
	$c->wait_ok("SELECT state = 'paused' FROM inbox.subscription_status", 'paused');
	send_numbers($c, $topic, 100);
	ok($c->holds_for(1, sub { $c->sql('SELECT count(*) FROM effect') == $c->{numbers} - 100 }), 'nothing is consumed');
	$c->sql("SELECT inbox.resume('in')");
	once_ok($c, 'resumed');
	return;
}

sub outages
{
	my ($c) = @_;
	return if $c->lacks('subscriptions');
	my $topic = $c->destinations('outages');

	$c->server(topics => '!*');
	subscribe($c, $topic, 'batch_size => 50');
	send_numbers($c, $topic, 1000);
	once_ok($c, 'quiet');
	my $pid = in_status($c, 'pid');
	send_numbers($c, $topic, 1000);
	$c->broker->kill_server;
	$c->wait_ok(q{SELECT state IN ('retrying', 'starting') AND last_error <> '' FROM inbox.subscription_status}, 'it is known that the broker is down');
	$c->broker->start_server;
	send_numbers($c, $topic, 1000);
	once_ok($c, 'a broker that was killed');
	for my $how (qw(reset cut))
	{
		send_numbers($c, $topic, 1000);
		$c->broker->link($how);
		send_numbers($c, $topic, 100);
		$c->broker->link('pass');
		once_ok($c, "a network with $how");
	}
	$c->broker->stop_server;
	$c->broker->start_server;
	send_numbers($c, $topic, 500);
	once_ok($c, 'a broker that was restarted');
	$c->broker->freeze;
	ok($c->holds_for(2, sub { in_status($c, 'pid') == $pid }), 'a broker that stands still');
	$c->broker->thaw;
	send_numbers($c, $topic, 500);
	once_ok($c, 'and goes on');
	is(in_status($c, 'pid'), $pid, 'all by the same worker');
	runs_ok($c);
	return;
}

sub missing
{
	my ($c) = @_;
	return if $c->lacks('subscriptions');
	my $topic = $c->topic('late');

	$c->server(topics => '!*');
	subscribe($c, $topic);
	$c->wait_ok("SELECT last_error LIKE '%$topic%' FROM inbox.subscription_status", 'a source that is missing is told');
	$c->create($topic);
	send_numbers($c, $topic, 100);
	once_ok($c, 'it is taken up when it appears');
	$c->wait_ok("SELECT state = 'running' AND last_error IS NULL FROM inbox.subscription_status", 'all is well');
	return;
}

sub credentials
{
	my ($c) = @_;
	return if $c->lacks('subscriptions');
	my $topic = $c->destinations('login');
	my $option = $c->broker->password_option;
	my %right = $c->broker->mapping_options;

	$c->server(topics => '!*', password => 'w0nt-be-shown');
	subscribe($c, $topic);
	send_numbers($c, $topic, 100);
	$c->wait_ok("SELECT state = 'error' AND last_error <> '' AND hint LIKE '%user mapping%' FROM inbox.subscription_status",
		'a wrong password is an error with a hint');
	is($c->sql('SELECT count(*) FROM inbox.subscription_status s WHERE s::text LIKE \'%w0nt-be\' || \'-shown%\''), 0, 'that does not show it');
	unlike($c->pg->log_text, qr/w0nt-be-shown/, 'nor does the log');
	$c->sql(qq{ALTER USER MAPPING FOR PUBLIC SERVER events OPTIONS (SET "$option" '$right{$option}')});
	once_ok($c, 'the right one is enough');
	return;
}

1;
