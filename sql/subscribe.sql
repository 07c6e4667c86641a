-- Subscriptions: who may have which, and what is refused.  No broker is needed.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_outbox;
CREATE SERVER broker FOREIGN DATA WRAPPER outbox_kafka
	OPTIONS ("bootstrap.servers" '127.0.0.1:1', topics '!*');
CREATE FUNCTION handle(m inbox.message) RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION handle_all(m inbox.message[]) RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION of_text(m text) RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION of_two(m inbox.message, n int DEFAULT 1) RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION returns_int(m inbox.message) RETURNS int LANGUAGE sql AS 'SELECT 1';

SELECT inbox.subscribe('s', 'broker', 'orders', 'handle(inbox.message)');
SELECT inbox.subscribe('many', 'broker', 'orders, payments.*', 'handle_all(inbox.message[])', start => 'earliest',
	batch_size => 500, dedup_by => 'json:$.event_id', group_id => 'mine', on_error => 'block', on_gap => 'skip');
SELECT name, server, topics, handler, owner = current_user::regrole AS own, start, started, paused, batch_size, max_attempts,
	backoff, on_error, dedup_by, dedup_ttl, group_id, on_gap, timeout
FROM inbox.subscription ORDER BY name;
SELECT subscription, waiting, dead_letters FROM inbox.subscription_status ORDER BY 1;

-- refused
SELECT inbox.subscribe('s', 'broker', 'orders', 'handle(inbox.message)');
SELECT inbox.subscribe(NULL, 'broker', 'orders', 'handle(inbox.message)');
SELECT inbox.subscribe('t', 'nowhere', 'orders', 'handle(inbox.message)');
SELECT inbox.subscribe('t', 'broker', '', 'handle(inbox.message)');
SELECT inbox.subscribe('t', 'broker', 'orders, !other', 'handle(inbox.message)');
SELECT inbox.subscribe('t', 'broker', 'orders', 'nothing(inbox.message)');
SELECT inbox.subscribe('t', 'broker', 'orders', 'of_text(text)');
SELECT inbox.subscribe('t', 'broker', 'orders', 'of_two(inbox.message, int)');
SELECT inbox.subscribe('t', 'broker', 'orders', 'returns_int(inbox.message)');
SELECT inbox.subscribe('t', 'broker', 'orders', 'handle(inbox.message)', start => 'soon');
SELECT inbox.subscribe('t', 'broker', 'orders', 'handle(inbox.message)', batch_size => 0);
SELECT inbox.subscribe('t', 'broker', 'orders', 'handle(inbox.message)', max_attempts => 0);
SELECT inbox.subscribe('t', 'broker', 'orders', 'handle(inbox.message)', workers => 0);
SELECT inbox.subscribe('t', 'broker', 'orders', 'handle(inbox.message)', workers => 65);
SELECT inbox.subscribe('t', 'broker', 'orders', 'handle(inbox.message)', backoff => '0');
SELECT inbox.subscribe('t', 'broker', 'orders', 'handle(inbox.message)', on_error => 'ignore');
SELECT inbox.subscribe('t', 'broker', 'orders', 'handle(inbox.message)', dedup_by => 'payload');
SELECT inbox.subscribe('t', 'broker', 'orders', 'handle(inbox.message)', dedup_by => 'json:$.[');
SELECT inbox.subscribe('t', 'broker', 'orders', 'handle(inbox.message)', dedup_ttl => '0');
SELECT inbox.subscribe('t', 'broker', 'orders', 'handle(inbox.message)', group_id => '');
SELECT inbox.subscribe('t', 'broker', 'orders', 'handle(inbox.message)', on_gap => 'ignore');
SELECT inbox.subscribe('t', 'broker', 'orders', 'handle(inbox.message)', timeout => '-1 s');
SELECT inbox.pause('nobody');
SELECT inbox.seek('s', 'yesterday at noon or so');
SELECT inbox.retry_later('-1 s');
SELECT inbox.retry_later('1 s');
SELECT inbox.reject('not ours');

-- changed
SELECT inbox.alter_subscription('s', topic => 'invoices', batch_size => 7, timeout => '5 s', workers => 3, shared_group => true);
SELECT workers, shared_group FROM inbox.subscription WHERE name = 's';
SELECT inbox.alter_subscription('s', workers => 1, shared_group => false);
SELECT inbox.pause('s');
SELECT topics, batch_size, timeout, paused FROM inbox.subscription WHERE name = 's';
SELECT inbox.resume('s');
SELECT inbox.seek('s', '2026-01-01 00:00+00');
SELECT start::timestamptz = '2026-01-01 00:00+00' AS there, started, paused, generation FROM inbox.subscription WHERE name = 's';
SELECT inbox.redrive('s'), inbox.discard('s');

-- what a handler gets
SELECT inbox.payload_text(m), inbox.payload_json(m)->>'a' FROM (SELECT ROW('id', 't', 0, 1, 'k', '{}', '{"a": "b"}', now(), 1)::inbox.message) t (m);

-- who may
CREATE ROLE test_consumer IN ROLE inbox_consumer;
CREATE ROLE test_other IN ROLE inbox_consumer;
CREATE ROLE test_admin IN ROLE outbox_admin, inbox_consumer;
CREATE ROLE test_nobody;
REVOKE EXECUTE ON FUNCTION handle(inbox.message), handle_all(inbox.message[]) FROM PUBLIC;
SET ROLE test_nobody;
SELECT inbox.subscribe('t', 'broker', 'orders', 'public.handle(inbox.message)');
SET ROLE test_consumer;
SELECT inbox.subscribe('t', 'broker', 'orders', 'public.handle(inbox.message)');
RESET ROLE;
GRANT EXECUTE ON FUNCTION handle(inbox.message) TO test_consumer;
SET ROLE test_consumer;
SELECT inbox.subscribe('t', 'broker', 'orders', 'public.handle(inbox.message)');
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER broker TO test_consumer;
SET ROLE test_consumer;
SELECT inbox.subscribe('t', 'broker', 'orders', 'public.handle(inbox.message)');
SELECT inbox.pause('t');
SELECT inbox.pause('s');
SELECT inbox.alter_subscription('t', handler => 'public.handle_all(inbox.message[])');
UPDATE inbox.subscription SET owner = 10;
RESET ROLE;
INSERT INTO inbox.dead_message (subscription, topic, partition, "offset", message_id, headers, attempts, sqlstate, error)
	SELECT s, 'orders', 0, 1, 'of ' || s, '{}', 1, 'P0001', 'no' FROM unnest('{s,t,gone}'::text[]) s;
INSERT INTO inbox.waiting_message (subscription, topic, partition, "offset", message_id, headers, attempts)
	SELECT s, 'orders', 0, 1, 'of ' || s, '{}', 1 FROM unnest('{s,t}'::text[]) s;
SET ROLE test_consumer;
SELECT message_id FROM inbox.dead_letter UNION ALL SELECT message_id || ' waits' FROM inbox.waiting;
SET ROLE test_other;
SELECT message_id FROM inbox.dead_letter UNION ALL SELECT message_id || ' waits' FROM inbox.waiting;
SELECT inbox.resume('t');
SELECT inbox.unsubscribe('t');
SET ROLE test_admin;
SELECT message_id FROM inbox.dead_letter UNION ALL SELECT message_id || ' waits' FROM inbox.waiting ORDER BY 1;
SELECT inbox.discard('gone'), inbox.discard('s'), inbox.discard('t');
SELECT inbox.resume('t');
SELECT inbox.alter_subscription('t', batch_size => 1);
SELECT subscription FROM inbox.subscription_status ORDER BY 1;
SELECT inbox.unsubscribe('t');
RESET ROLE;
-- through somebody's function it is his, whoever's session it is
CREATE FUNCTION trap() RETURNS void LANGUAGE sql SECURITY DEFINER AS
	$$ SELECT inbox.subscribe('trap', 'broker', 'orders', 'public.handle(inbox.message)') $$;
ALTER FUNCTION trap() OWNER TO test_consumer;
SELECT trap();
SELECT owner FROM inbox.subscription WHERE name = 'trap';
CREATE OR REPLACE FUNCTION trap() RETURNS void LANGUAGE sql SECURITY DEFINER AS $$ SELECT inbox.pause('s') $$;
SELECT trap();
SELECT inbox.unsubscribe('trap');
DROP FUNCTION trap();
SET ROLE test_consumer;
SELECT inbox.definer_pause('s');
SELECT inbox.caller();
RESET ROLE;
SELECT inbox.unsubscribe('s'), inbox.unsubscribe('many');
SELECT count(*) FROM inbox.subscription;
DROP OWNED BY test_consumer;
DROP ROLE test_consumer;
DROP ROLE test_other;
DROP ROLE test_admin;
DROP ROLE test_nobody;
DROP SERVER broker;
DROP FUNCTION handle(inbox.message), handle_all(inbox.message[]), of_text(text), of_two(inbox.message, int), returns_int(inbox.message);
