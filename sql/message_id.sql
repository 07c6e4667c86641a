-- A derived message id: version 8 of 64 bits of epoch and 58 of id, as RFC 9562 lays it out.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_outbox;

CREATE FUNCTION derived(epoch bigint, id bigint) RETURNS text LANGUAGE sql IMMUTABLE AS $$
	SELECT string_agg(lpad(to_hex(substr(bits, n * 8 + 1, 8)::bit(8)::int), 2, '0'), '' ORDER BY n)::uuid::text
	FROM (SELECT substr(epoch::bit(64)::text, 1, 48) || '1000' || substr(epoch::bit(64)::text, 49, 12)
			|| '10' || substr(epoch::bit(64)::text, 61, 4) || substr(id::bit(64)::text, 7, 58) AS bits) b,
		generate_series(0, 15) n
$$;
CREATE TABLE row_of (id bigint, epoch bigint);

SELECT count(outbox.publish('ids', 'x')) FROM generate_series(1, 1000);
DO $$
DECLARE
	segment regclass;
BEGIN
	FOR segment IN SELECT relid FROM outbox.segments LOOP
		EXECUTE 'INSERT INTO row_of SELECT id, epoch FROM ' || segment;
	END LOOP;
END
$$;
SELECT count(*), count(DISTINCT m.message_id) AS different,
	   count(*) FILTER (WHERE m.message_id = derived(r.epoch, r.id)) AS as_derived
	FROM outbox.message m JOIN row_of r USING (id) WHERE m.topic = 'ids';
