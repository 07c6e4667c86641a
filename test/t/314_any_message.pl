# Messages of any producer, as a handler gets them: by which id they are known again, in
# every way that there is; headers, keys and payloads that are empty, missing, repeated or
# no text; in databases of other encodings; handlers in SQL, PL/pgSQL and PL/Python.
# every major
use OutboxTest;

my $kafka = OutboxKafka->shared;
my $pg = OutboxTest->server('main', conf => "outbox.poll_interval = 100ms\n");

sub set_up
{
	my ($dbname) = @_;
	$pg->create_server('events', $kafka, topics => '!*', dbname => $dbname);
	$pg->sql(<<'SQL', dbname => $dbname);
CREATE TABLE effect (n serial, subscription text, message_id text, "offset" bigint, key text, headers jsonb,
	payload bytea, "timestamp" timestamptz, attempt int);
CREATE FUNCTION handler(name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('CREATE FUNCTION %I(m inbox.message) RETURNS void LANGUAGE sql AS $f$
		INSERT INTO public.effect (subscription, message_id, "offset", key, headers, payload, "timestamp", attempt)
			VALUES (%L, m.message_id, m."offset", m.key, m.headers, m.payload, m."timestamp", m.attempt) $f$', name, name);
END
$$;
SQL
	return;
}

sub subscribe
{
	my ($name, $topic, $more, $dbname) = @_;
	$pg->sql("SELECT handler('$name')", dbname => $dbname) if $name !~ /python|batch/;
	$pg->sql("SELECT inbox.subscribe('$name', 'events', '$topic', '$name(inbox.message"
		  . ($name =~ /batch/ ? '[]' : '') . ")', start => 'earliest'" . ($more ? ", $more" : '') . ')', dbname => $dbname);
	return;
}

# the offsets of those that had an effect
sub offsets_ok
{
	my ($subscription, $all, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$pg->wait_ok("SELECT next = $all FROM inbox.position WHERE subscription = '$subscription' AND partition = 0",
		"$name: all is consumed");
	return is($pg->sql(qq{SELECT string_agg("offset"::text, ' ' ORDER BY n) FROM effect WHERE subscription = '$subscription'}),
		$expected, $name);
}

set_up('postgres');

# --- known again by what -----------------------------------------------------------------
my $ids = unique_topic('ids');
$kafka->create_topic($ids, 1);
my $deep = '[' x 100_000;
my @messages = (
	# 0 to 4: each id twice, in each way
	{ key => 'k1', payload => '{"event": {"id": "j1"}}', headers => [ [ 'message-id', 'm1' ], [ 'order', 'h1' ], [ 'ce_id', 'c1' ] ] },
	{ key => 'k1', payload => '{"event": {"id": "j1"}, "again": 1}', headers => [ [ 'message-id', 'm1' ], [ 'order', 'h1' ], [ 'ce_id', 'c2' ] ] },
	{ key => 'k2', payload => '{"event": {"id": 7}}', headers => [ [ 'ce_id', 'c3' ], [ 'order', 'h2' ], [ 'order', 'h1' ] ] },
	{ key => 'k2', payload => '{"event": {"id": 7}}', headers => [ [ 'ce_id', 'c3' ], [ 'order', 'h2' ] ] },
	{ key => 'k3', payload => '{"event": {"id": "j1"}}', headers => [ [ 'message-id', 'm2' ], [ 'order', 'h1' ] ] },
	# 5 to 12: those that lack it all, or have it empty, or as what can't be one
	{ payload => '{"event": {}}' },
	{ payload => '{"event": {"id": null}}' },
	{ payload => '{"event": {"id": ["j1"]}}', headers => [ [ 'order', '' ], [ 'message-id', '' ] ] },
	{ key => '', payload => 'no JSON {', headers => [ [ 'order', undef ], [ 'message-id', undef ] ] },
	{ key => '', payload => undef },
	{ payload => '', headers => [ [ 'Order', 'h1' ] ] },
	{ payload => "\xff\x00 binary" },
	{ payload => $deep },
	# 13, 14: an id that is no text, and one that is too long for a mark, twice
	{ key => "\xff\x01", payload => '{"event": {"id": "\u0000"}}', headers => [ [ 'message-id', "\xff" ], [ 'order', 'x' x 5000 ] ] },
	{ key => "\xff\x01", payload => '{"event": {"id": true}}', headers => [ [ 'message-id', "\xff" ], [ 'order', 'x' x 5000 ] ] });
my @by = (
	by_default => undef, '0 2 4 5 6 7 8 9 10 11 12 13',
	by_header => 'header:order', '0 2 5 6 7 8 9 10 11 12 13',
	by_key => 'key', '0 2 4 5 6 7 8 9 10 11 12 13',
	by_json => 'json:$.event.id', '0 2 5 6 7 8 9 10 11 12 13 14',
	by_none => 'none', join(' ', 0 .. 14));
$kafka->produce($ids, @messages);
for (my $i = 0; $i < @by; $i += 3)
{
	subscribe($by[$i], $ids, defined $by[ $i + 1 ] ? "dedup_by => '$by[$i + 1]'" : undef);
}
for (my $i = 0; $i < @by; $i += 3)
{
	offsets_ok($by[$i], 15, $by[ $i + 2 ], 'dedup_by ' . ($by[ $i + 1 ] // 'not set'));
}
is($pg->sql(q{SELECT string_agg(message_id, ' ' ORDER BY n) FROM effect WHERE subscription = 'by_default' AND "offset" IN (0, 2, 4, 13)}),
	'm1 c3 m2 \xff', 'message-id, else ce_id');
is($pg->sql(q{SELECT count(*) FROM effect WHERE subscription = 'by_default' AND "offset" BETWEEN 5 AND 12
	AND message_id = format('%s/0/%s', (SELECT topics FROM inbox.subscription WHERE name = 'by_default'), "offset")}), 8,
	'else by their place');
is($pg->sql(q{SELECT string_agg(message_id, ' ' ORDER BY n) FROM effect WHERE subscription = 'by_json' AND "offset" IN (0, 2, 14)}),
	'j1 7 true', 'by a path: strings as they are, numbers and booleans as JSON has them');
is($pg->sql(q{SELECT message_id = encode(sha256(repeat('x', 5000)::bytea), 'hex') FROM effect WHERE subscription = 'by_header' AND "offset" = 13}),
	't', 'one that is too long by its hash');
is($pg->sql(q{SELECT count(*) FROM inbox.seen WHERE consumer = 'by_none'}), 0, 'none has no marks');
# read again: what has an id has no second effect, and neither what is known by its place
$pg->sql("SELECT inbox.seek(s, 'earliest') FROM unnest(ARRAY['by_default', 'by_json']) s");
$pg->wait_ok(q{SELECT bool_and(duplicates >= 15) FROM inbox.subscription_status WHERE subscription IN ('by_default', 'by_json')}, 'read again');
offsets_ok('by_default', 15, $by[2], 'nothing twice');
offsets_ok('by_json', 15, $by[11], 'nothing twice by JSON');
is($pg->sql(q{SELECT count(*) FROM inbox.waiting}), 0, 'nobody has failed');
$pg->sql(q{SELECT inbox.unsubscribe(name) FROM inbox.subscription});

# --- as handlers get them ------------------------------------------------------------------
my $any = unique_topic('any');
$kafka->create_topic($any, 1);
$kafka->produce($any,
	{ key => 'a', payload => 'text', timestamp => 1_700_000_000_123,
		headers => [ [ 'one', '1' ], [ 'twice', 'b' ], [ 'twice', undef ], [ 'none', undef ], [ 'empty', '' ], [ 'twice', 'a' ],
			[ 'binary', "\xfe\xff" ], [ "t\xc3\xa9", "\xe2\x82\xac" ], [ "\xff", 'name' ] ] },
	{ key => undef, payload => undef },
	{ key => '', payload => '' },
	{ key => "\x00\xff", payload => "\x00\xff\\x5c\x0a" },
	{ key => "k\xc3\xa9y", payload => "{\"v\": \"\xe2\x82\xac\"}" });
subscribe('arrives', $any);
$pg->wait_ok(q{SELECT count(*) = 5 FROM effect WHERE subscription = 'arrives'}, 'all have come');
is($pg->sql(q{SELECT headers FROM effect WHERE subscription = 'arrives' AND "offset" = 0}),
	'{"one": "1", "té": "€", "\\\\xff": "name", "none": null, "empty": "", "twice": ["b", null, "a"], "binary": "\\\\xfeff"}',
	'headers: repeated ones are an array, in order');
is($pg->sql(q{SELECT "timestamp" = to_timestamp(1700000000.123) FROM effect WHERE subscription = 'arrives' AND "offset" = 0}), 't',
	'the timestamp');
is($pg->sql(q{SELECT string_agg(coalesce(quote_literal(key), 'NULL') || ' ' || coalesce(quote_literal(encode(payload, 'hex')), 'NULL'), ', ' ORDER BY n)
	FROM effect WHERE subscription = 'arrives'}),
	q{'a' '74657874', NULL NULL, '' '', E'\\\\x00ff' '00ff5c7835630a', 'kéy' '7b2276223a2022e282ac227d'},
	'keys and payloads: none is not empty, what is no text is shown in hexadecimal');

# --- databases of other encodings --------------------------------------------------------------
for my $encoding ('LATIN1', 'SQL_ASCII', 'EUC_JP')
{
	my $dbname = lc $encoding;
	$pg->sql("CREATE DATABASE $dbname ENCODING '$encoding' LOCALE 'C' TEMPLATE template0");
	$pg->sql('CREATE EXTENSION pg_outbox', dbname => $dbname);
	set_up($dbname);
	subscribe('arrives', $any, undef, $dbname);
	$pg->wait_ok('SELECT count(*) = 5 FROM effect', "$encoding: all have come", dbname => $dbname);
	is($pg->sql(q{SELECT count(*) FROM effect WHERE "offset" = 3 AND key = '\x00ff' AND payload = '\x00ff5c7835630a'}, dbname => $dbname), 1,
		"$encoding: bytes are the same");
	my %key = (latin1 => '6be979', sql_ascii => '6bc3a979', euc_jp => '6b8fabb179');
	is($pg->sql(q{SELECT encode(textsend(key), 'hex') FROM effect WHERE "offset" = 4}, dbname => $dbname), $key{$dbname},
		"$encoding: a key is in the database's encoding");
	my %header = (latin1 => '\xe282ac', sql_ascii => '€', euc_jp => '\xe282ac');
	is($pg->sql(q{SELECT headers->>(SELECT k FROM jsonb_object_keys(headers) k WHERE k LIKE 't%' AND k <> 'twice') FROM effect WHERE "offset" = 0},
		dbname => $dbname), $header{$dbname}, "$encoding: what it does not have is shown in hexadecimal");
	$pg->sql('SELECT inbox.unsubscribe(name) FROM inbox.subscription', dbname => $dbname);
}

# --- languages ---------------------------------------------------------------------------------
$pg->sql(<<'SQL');
CREATE FUNCTION sql_batch(ms inbox.message[]) RETURNS void LANGUAGE sql AS $$
	INSERT INTO public.effect (subscription, message_id, "offset", key, payload)
		SELECT 'sql_batch', m.message_id, m."offset", inbox.payload_text(m), m.payload FROM unnest(ms) m WHERE m."offset" < 3;
$$;
SQL
subscribe('sql_batch', $any);
offsets_ok('sql_batch', 5, '0 1 2', 'a set-based handler in SQL');
SKIP:
{
	skip 'no PL/Python in this PostgreSQL', 4
	  unless $pg->sql(q{SELECT count(*) FROM pg_available_extensions WHERE name = 'plpython3u'});
	$pg->sql(<<'SQL');
CREATE EXTENSION plpython3u;
CREATE FUNCTION python(m inbox.message) RETURNS void LANGUAGE plpython3u AS $$
import json
headers = json.loads(m["headers"])
if m["offset"] == 2 and m["attempt"] < 3:
    raise ValueError("not yet")
plan = plpy.prepare('INSERT INTO public.effect (subscription, message_id, "offset", key, payload, attempt) VALUES ($1, $2, $3, $4, $5, $6)',
    ["text", "text", "bigint", "text", "bytea", "int"])
plpy.execute(plan, ["python", m["message_id"], m["offset"], headers.get("one", m["key"]), m["payload"], m["attempt"]])
$$;
CREATE FUNCTION python_batch(ms inbox.message[]) RETURNS void LANGUAGE plpython3u AS $$
for m in ms:
    if m["offset"] == 3:
        plpy.execute("SELECT 1 / 0")
    plan = plpy.prepare('INSERT INTO public.effect (subscription, message_id, "offset", key) VALUES ($1, $2, $3, $4)',
        ["text", "text", "bigint", "text"])
    plpy.execute(plan, ["python_batch", m["message_id"], m["offset"], m["key"]])
$$;
SQL
	subscribe('python', $any, "backoff => '20 ms'");
	subscribe('python_batch', $any, "max_attempts => 2, backoff => '20 ms'");
	$pg->wait_ok(q{SELECT count(*) = 5 FROM effect WHERE subscription = 'python'}, 'PL/Python');
	is($pg->sql(q{SELECT string_agg(format('%s %s %s %s', "offset", coalesce(key, 'None'), coalesce(payload::text, 'None'), attempt), ', ' ORDER BY "offset")
		FROM effect WHERE subscription = 'python'}),
		'0 1 \x74657874 1, 1 None None 1, 2  \x 3, 3 \x00ff \x00ff5c7835630a 1, 4 kéy \x7b2276223a2022e282ac227d 1',
		'each with what it is, one at its third attempt');
	$pg->wait_ok(q{SELECT count(*) = 4 FROM effect WHERE subscription = 'python_batch'}, 'PL/Python with batches');
	$pg->wait_ok(q{SELECT string_agg(format('%s %s %s', "offset", sqlstate, attempts), ', ') = '3 22012 2' AND bool_and(context LIKE '%python_batch%')
		FROM inbox.dead_letter WHERE subscription = 'python_batch'}, 'what it raises is told as by any other');
}
$pg->stop;
done_testing();
