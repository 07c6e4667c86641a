-- A jsonb payload's text is what PostgreSQL's own cast gives, byte by byte.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_outbox;

CREATE TABLE sample (n serial, value jsonb);
INSERT INTO sample (value) VALUES
	('null'), ('true'), ('false'), ('0'), ('-1.50'), ('1e400'), ('1e-20'), ('123456789012345678901234567890.5'),
	('""'), ('"plain"'), ('"quote \" backslash \\ slash / tab \t newline \n return \r bell \u0007 feed \f back \b unit \u001f"'),
	('"\u007f \u0080 ä € 😀"'), ('"\\u0041"'),
	('[]'), ('{}'), ('[[]]'), ('[{}]'), ('{"a": []}'), ('{"a": {}}'), ('[[], []]'), ('[[1], [2, [3]], {}]'),
	('[1, "a", null, true, {"b": false}]'),
	('{"": ""}'), ('{"a": 1, "b": [1, 2], "c": {"d": [{"e": null}]}, "f\"g": "h"}'),
	('{"z": 1, "a": 2, "aa": 3, "a\n": 4}');
-- each control character; every character on each side of the escape; long ones
INSERT INTO sample (value) SELECT to_jsonb('a' || chr(c) || 'b' || chr(c)) FROM generate_series(1, 300) c;
INSERT INTO sample (value) SELECT to_jsonb(repeat(s, n))
	FROM unnest(ARRAY['x', '"', E'\x01', 'ab"', 'ä']) s, unnest(ARRAY[1000, 1023, 1024, 1025, 100000]) n;
INSERT INTO sample (value) SELECT jsonb_object_agg('k' || n, repeat('v', n % 50)) FROM generate_series(1, 5000) n;
INSERT INTO sample (value) SELECT jsonb_agg(n::numeric / 7) FROM generate_series(1, 5000) n;
INSERT INTO sample (value) SELECT (repeat('[', 500) || repeat(']', 500))::jsonb;

SELECT count(outbox.publish('sample', value, n::text)) FROM sample;
SELECT count(*), count(*) FILTER (WHERE m.payload = convert_to(s.value::text, 'UTF8')) AS same
	FROM sample s JOIN outbox.message m ON m.topic = 'sample' AND m.key = s.n::text;
