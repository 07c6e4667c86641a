-- Marks of seen messages: inbox.accept(), accept_batch(), forget(), expire().
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_outbox;

-- once a consumer and message
SELECT inbox.accept('billing', 'm1');
SELECT inbox.accept('billing', 'm1');
SELECT inbox.accept('shipping', 'm1');
SELECT inbox.accept('billing', 'm2'), inbox.accept('billing', 'm2');
SELECT inbox.accept('billing', gen_random_uuid()::text), inbox.accept('billing', '\x00ff'::bytea::text);
SELECT consumer, count(*), min(expires_at) > now() + interval '6 days 23 hours' AS a_week
FROM inbox.seen GROUP BY 1 ORDER BY 1;

-- as part of the transaction, and of its savepoints
BEGIN;
SELECT inbox.accept('tx', 'a');
SAVEPOINT s;
SELECT inbox.accept('tx', 'b'), inbox.accept('tx', 'a');
ROLLBACK TO s;
SELECT inbox.accept('tx', 'b');
ROLLBACK;
SELECT inbox.accept('tx', 'a'), inbox.accept('tx', 'b');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT inbox.accept('tx', 'a'), inbox.accept('tx', 'c');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT inbox.accept('tx', 'c'), inbox.accept('tx', 'd');
COMMIT;

-- an expired mark counts as absent, in the transaction that set it only later
BEGIN;
SELECT inbox.accept('short', 'a', '1 microsecond'), inbox.accept('short', 'a', '1 microsecond');
COMMIT;
SELECT inbox.accept('short', 'a', '1 hour'), inbox.accept('short', 'a');
SELECT count(*), min(expires_at) > now() + interval '59 minutes' FROM inbox.seen WHERE consumer = 'short';
BEGIN;
SELECT inbox.accept('short', 'b', '1 microsecond');
COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT inbox.accept('short', 'b');
ROLLBACK;
SELECT inbox.accept('short', 'b');

-- forgotten
SELECT inbox.forget('short', 'b'), inbox.forget('short', 'b'), inbox.accept('short', 'b');
SELECT inbox.accept('short', 'same statement'), inbox.forget('short', 'same statement');
BEGIN;
SELECT inbox.accept('short', 'c', '1 microsecond');
SAVEPOINT s;
SELECT inbox.forget('short', 'c');
ROLLBACK TO s;
SELECT inbox.forget('short', 'c'), inbox.accept('short', 'c', '1 microsecond');
COMMIT;
SELECT inbox.forget('short', 'c') AS expired;

-- in batches: those that are new, in their order
SELECT inbox.accept_batch('batch', ARRAY['z', 'a', 'm', 'a', 'z']);
SELECT inbox.accept_batch('batch', ARRAY['a', 'n', 'b', 'z']);
SELECT inbox.accept_batch('batch', ARRAY['a', 'n', 'b', 'z']);
SELECT inbox.accept_batch('batch', '{}'), inbox.accept_batch('batch', '[5:6]={q,r}'::text[]);
SELECT cardinality(inbox.accept_batch('many', ARRAY(SELECT 'id' || i FROM generate_series(1, 5000) i)));
SELECT cardinality(inbox.accept_batch('many', ARRAY(SELECT 'id' || i FROM generate_series(4001, 6000) i)));

SELECT cardinality(inbox.accept_batch('many', ARRAY(SELECT 'id' || i FROM generate_series(5001, 6100) i)));
SELECT count(*), count(DISTINCT message_id) FROM inbox.seen WHERE consumer = 'many';
SELECT inbox.accept_batch('old', ARRAY(SELECT 'o' || i FROM generate_series(1, 100) i), '1 microsecond') IS NOT NULL;
SELECT cardinality(inbox.accept_batch('old', ARRAY(SELECT 'o' || i FROM generate_series(1, 200) i)));
DELETE FROM inbox.seen WHERE consumer = 'old';

-- names are bytes, whatever a collation says
SELECT inbox.accept('bytes', 'straße'), inbox.accept('bytes', 'STRASSE'), inbox.accept('bytes', ' a'), inbox.accept('bytes', 'a');

-- in functions, and prepared
CREATE TABLE effect (id text);
CREATE FUNCTION consume(id text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF inbox.accept('function', id) THEN
		INSERT INTO effect VALUES (id);
	END IF;
END
$$;
SELECT consume(id) FROM unnest(ARRAY['a', 'b', 'a', 'c', 'b']) id;
SELECT count(*) FROM effect;
PREPARE accept(text) AS SELECT inbox.accept('prepared', $1);
EXECUTE accept('a');
EXECUTE accept('a');

-- expiry removes what has expired, the oldest first, and no more than it is told to
SELECT inbox.accept_batch('old', ARRAY['a', 'b', 'c'], '1 microsecond');
SELECT inbox.accept('young', 'a');
SELECT inbox.expire(2) <= 2, inbox.expire() >= 0;
SELECT count(*) FROM inbox.seen WHERE expires_at < now();
-- and does not look at what is live
SELECT cardinality(inbox.accept_batch('live', ARRAY(SELECT 'live ' || i FROM generate_series(1, 2000) i)));
CREATE VIEW looked_at AS
	SELECT idx_tup_fetch + seq_tup_read AS n FROM pg_stat_xact_user_tables WHERE relid = 'inbox.seen'::regclass;
BEGIN;
SELECT n AS before FROM looked_at \gset
SELECT inbox.expire(1) >= 0;
SELECT n - :before < 100 AS few FROM looked_at;
ROLLBACK;
DROP VIEW looked_at;
SELECT inbox.accept('young', 'a');

-- many at a time: all new, some known, some twice, some expired
SELECT cardinality(inbox.accept_batch('several', ARRAY(SELECT 'id ' || i FROM generate_series(1, 300) i)));
SELECT cardinality(inbox.accept_batch('several', ARRAY(SELECT 'id ' || i FROM generate_series(1, 300) i)));
SELECT inbox.accept_batch('several', ARRAY(SELECT 'id ' || i FROM generate_series(303, 290, -1) i) || ARRAY['id 301', '', 'id']);
SELECT inbox.accept_batch('several', ARRAY(SELECT 'id ' || i FROM generate_series(303, 280, -1) i) || ARRAY['id 301', 'id', 'id 1', 'i']);
SELECT cardinality(inbox.accept_batch('brief', ARRAY(SELECT repeat('x', i) FROM generate_series(1, 500) i), '1 microsecond'));
SELECT cardinality(inbox.accept_batch('brief', ARRAY(SELECT repeat('x', i) FROM generate_series(1, 600) i)));
SELECT consumer, count(*), count(DISTINCT message_id) FROM inbox.seen WHERE consumer IN ('several', 'brief') GROUP BY 1 ORDER BY 1;
-- what fails in the midst of it is undone, and nothing else
\c -
BEGIN;
CREATE INDEX fails ON inbox.seen ((1 / CASE WHEN message_id = 'f100' THEN 0 ELSE 1 END));
CREATE TABLE tried (n int);
DO $$
BEGIN
	INSERT INTO tried VALUES (1);
	BEGIN
		INSERT INTO tried VALUES (2);
		PERFORM inbox.accept_batch('fails', ARRAY(SELECT 'f' || i FROM generate_series(80, 120) i));
	EXCEPTION WHEN division_by_zero THEN
		INSERT INTO tried VALUES (3);
	END;
	PERFORM inbox.accept_batch('fails', ARRAY(SELECT 'f' || i FROM generate_series(50, 90) i));
END
$$;
SELECT * FROM tried;
SELECT count(*), min(message_id), max(message_id) FROM inbox.seen WHERE consumer = 'fails';
ROLLBACK;
-- every index has its entries
BEGIN;
CREATE INDEX partial ON inbox.seen (message_id) WHERE length(message_id) > 3;
SELECT cardinality(inbox.accept_batch('some', ARRAY(SELECT 'some'::text || i FROM generate_series(1, 50) i) || ARRAY(SELECT chr(i) FROM generate_series(40, 60) i)));
SET LOCAL enable_seqscan = off;
SELECT count(*) FROM inbox.seen WHERE consumer = 'some' AND length(message_id) > 3 AND message_id > 'some';
SELECT count(*) FROM inbox.seen WHERE consumer = 'some' AND expires_at > now();
SELECT message_id FROM inbox.seen WHERE consumer = 'some' AND message_id IN ('some17', '+');
ROLLBACK;

-- refused
SELECT inbox.accept(NULL, 'a');
SELECT inbox.accept('', 'a');
SELECT inbox.accept('c', NULL);
SELECT inbox.accept('c', '');
SELECT inbox.accept(repeat('c', 201), 'a');
SELECT inbox.accept(repeat('c', 200), repeat('a', 1024));
SELECT inbox.accept('c', repeat('a', 1025));
SELECT inbox.accept('c', 'a', NULL);
SELECT inbox.accept('c', 'a', '0');
SELECT inbox.accept('c', 'a', '-1 second');
SELECT inbox.accept('c', 'a', '300000 years');
SELECT inbox.accept_batch('c', NULL);
SELECT inbox.accept_batch('c', ARRAY['a', NULL]);
SELECT inbox.accept_batch('c', ARRAY['a', '']);
SELECT inbox.accept_batch('c', ARRAY[['a'], ['b']]);
SELECT inbox.expire(0);
SELECT inbox.forget('c', NULL);
BEGIN READ ONLY;
SELECT inbox.accept('c', 'a');
ROLLBACK;

-- who may
CREATE ROLE test_nobody;
CREATE ROLE test_consumer IN ROLE inbox_consumer;
SET ROLE test_nobody;
SELECT inbox.accept('c', 'a');
SELECT count(*) FROM inbox.seen;
SET ROLE test_consumer;
SELECT inbox.accept('c', 'a');
SELECT message_id FROM inbox.seen WHERE consumer = 'c' AND message_id = 'a';
SELECT inbox.expire() >= 0;
INSERT INTO inbox.seen VALUES ('c', 'b', now());
RESET ROLE;
DROP ROLE test_nobody;
DROP ROLE test_consumer;
TRUNCATE inbox.seen;
DELETE FROM inbox.seen;
DROP FUNCTION consume(text);
DROP TABLE effect;
