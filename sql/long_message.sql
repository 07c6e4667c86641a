-- A message of several rows that is the last of its lane, behind fuller pages.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_outbox;

SELECT count(outbox.publish('long', 'short ' || n)) FROM generate_series(1, 300) n;
SELECT outbox.publish('long', repeat('0123456789', 1000), 'k') > 0 AS ok;
SELECT count(*), count(DISTINCT id), max(octet_length(payload)) FROM outbox.message WHERE topic = 'long';
SELECT outbox.publish('long', repeat('0123456789', 2000), 'k') > 0 AS ok;
SELECT outbox.publish('long', repeat('0123456789', 3000), 'k') > 0 AS ok;
SELECT count(*), count(DISTINCT id), max(octet_length(payload)) FROM outbox.message WHERE topic = 'long';
