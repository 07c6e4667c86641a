-- Publishing: what a transaction leaves in the log, and every refusal.
\set VERBOSITY terse
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS pg_outbox CASCADE;
CREATE EXTENSION pg_outbox;

CREATE VIEW seen AS
	SELECT topic, key, partition, headers, convert_from(payload, 'UTF8') AS payload, kind
	FROM outbox.message ORDER BY id;

-- payloads of each type, and a tombstone
SELECT outbox.publish('orders', '{"a": 1}'::jsonb) > 0 AS ok;
SELECT outbox.publish('orders', '{"a":  1}'::json, key => 'k') > 0 AS ok;
SELECT outbox.publish('orders', 'untyped', 'k', '{"b": "2", "a": "1"}') > 0 AS ok;
SELECT outbox.publish('orders', '\x6279746573'::bytea, partition => 3) > 0 AS ok;
SELECT outbox.publish('orders', NULL::jsonb, 'gone') > 0 AS ok;
SELECT outbox.publish('orders', ''::text, '') > 0 AS ok;
SELECT outbox.publish('orders', 'pairs', headers => '[["x", "1"], ["x", "2"]]') > 0 AS ok;
SELECT * FROM seen;

-- what is rolled back was never there
BEGIN;
SELECT outbox.publish('rolled-back', 'x') > 0 AS ok;
ROLLBACK;
BEGIN;
SELECT outbox.publish('savepoints', 'kept 1') > 0 AS ok;
SAVEPOINT s;
SELECT outbox.publish('savepoints', 'dropped') > 0 AS ok;
ROLLBACK TO s;
SELECT outbox.publish('savepoints', 'kept 2') > 0 AS ok;
COMMIT;
SELECT topic, payload FROM seen WHERE topic IN ('rolled-back', 'savepoints');

-- ids increase, message ids are UUIDs of version 8 and differ
SELECT bool_and(id > before) AS increasing
FROM (SELECT id, lag(id, 1, 0::bigint) OVER (ORDER BY published, id) AS before FROM outbox.message) m;
SELECT count(*) = count(DISTINCT message_id) AS distinct_ids,
	   bool_and(message_id ~ '^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$') AS version_8
FROM outbox.message;
SELECT outbox.publish('own-id', 'x', message_id => 'mine') > 0 AS ok;
SELECT message_id FROM outbox.message WHERE topic = 'own-id';

-- long messages take several rows and come back whole
SELECT outbox.publish('long', repeat('0123456789', n), repeat('k', 3000), '{"h": "v"}') > 0 AS ok
FROM unnest(ARRAY[100, 169, 170, 171, 1000, 100000]) n;
SELECT length(key) AS key, octet_length(payload) AS payload,
	   md5(payload) = md5(repeat('0123456789', octet_length(payload) / 10)) AS whole
FROM outbox.message WHERE topic = 'long' ORDER BY id;

-- batches
SELECT outbox.publish_batch('batch', ARRAY['a', NULL, 'c'], ARRAY['1', '2', NULL], '{"h": "v"}');
SELECT outbox.publish_batch('batch', ARRAY['{"n": 1}']::jsonb[]);
SELECT outbox.publish_batch('batch', ARRAY[]::text[]);
SELECT key, headers, payload, kind FROM seen WHERE topic = 'batch';
SELECT outbox.publish_batch('big-batch', array_agg('m' || i), array_agg('k' || i % 10))
FROM generate_series(1, 5000) i;
SELECT count(*), min(payload), bool_and(payload = 'm' || n) AS in_order
FROM (SELECT payload, row_number() OVER () AS n FROM seen WHERE topic = 'big-batch') s;

-- trace context: valid ones travel, invalid ones are dropped, the caller's wins
BEGIN;
SET LOCAL outbox.traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
SET LOCAL outbox.tracestate = 'vendor=1';
SELECT outbox.publish('trace', 'both', headers => '{"a": "b"}') > 0 AS ok;
SELECT outbox.publish('trace', 'own', headers => '{"traceparent": "mine"}') > 0 AS ok;
SET LOCAL outbox.tracestate = E'bad\001state';
SELECT outbox.publish('trace', 'bad state') > 0 AS ok;
SET LOCAL outbox.traceparent = '00-00000000000000000000000000000000-b7ad6b7169203331-01';
SELECT outbox.publish('trace', 'bad parent') > 0 AS ok;
SET LOCAL outbox.traceparent = '';
SELECT outbox.publish('trace', 'comment') > 0 AS ok /*traceparent='00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00'*/;
SELECT outbox.publish('trace', 'encoded') > 0 AS ok /*app='it\'s',traceparent='00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00',tracestate='congo%3Dt61%2Crojo%3D00'*/;
-- what only looks like a comment's is none
SELECT outbox.publish('trace', 'elsewhere') > 0 AS ok FROM (VALUES ('')) AS v (traceparent)
  WHERE NOT traceparent='00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00' /* end */;
COMMIT;
SELECT payload, headers FROM seen WHERE topic = 'trace';

-- refusals
SELECT outbox.publish(NULL, 'x');
SELECT outbox.publish('', 'x');
SELECT outbox.publish(repeat('t', 1025), 'x');
SELECT outbox.publish('t', 'x', headers => '1');
SELECT outbox.publish('t', 'x', headers => '{"a": 1}');
SELECT outbox.publish('t', 'x', headers => '{"a": null}');
SELECT outbox.publish('t', 'x', headers => '[["a"]]');
SELECT outbox.publish('t', 'x', headers => '["a", "b"]');
SELECT outbox.publish('t', 'x', headers => '{"": "b"}');
SELECT outbox.publish('t', 'x', headers => '{"Message-Id": "b"}');
SELECT outbox.publish('t', 'x', message_id => '');
SELECT outbox.publish('t', 'x', message_id => repeat('i', 1025));
SELECT outbox.publish('t', 'x', partition => -1);
SELECT outbox.publish('t', repeat('x', 16 * 1024 * 1024));
SELECT outbox.publish_batch('t', NULL::text[]);
SELECT outbox.publish_batch('t', ARRAY['a', 'b'], ARRAY['k']);
SELECT outbox.publish_batch('t', ARRAY[['a'], ['b']]);
BEGIN READ ONLY;
SELECT outbox.publish('t', 'x');
ROLLBACK;
SELECT count(*) FROM seen WHERE topic = 't';

-- a function that hides what it does from the planner is found out in the worker
CREATE FUNCTION sneaky() RETURNS bigint LANGUAGE plpgsql PARALLEL SAFE AS $$
BEGIN
	RETURN outbox.publish('t', 'x');
END $$;
BEGIN;
SELECT count(set_config(name, 'on', true)) FROM pg_settings
	WHERE name IN ('force_parallel_mode', 'debug_parallel_query');
SELECT sneaky();
ROLLBACK;

-- what a program tells refusals apart by
CREATE FUNCTION sqlstate_of(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE statement;
	RETURN 'none';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END $$;
SELECT sqlstate_of(format('SELECT outbox.publish(%s)', arguments)), arguments FROM unnest(ARRAY[
	$$NULL, 'x'$$, $$'', 'x'$$, $$repeat('t', 1025), 'x'$$, $$'t', 'x', headers => '1'$$,
	$$'t', 'x', headers => '{"Message-Id": "b"}'$$, $$'t', 'x', message_id => ''$$,
	$$'t', 'x', partition => -1$$, $$'t', repeat('x', 16 * 1024 * 1024)$$]) arguments;
BEGIN READ ONLY;
SELECT sqlstate_of($$SELECT outbox.publish('t', 'x')$$);
ROLLBACK;

-- prepared statements outlive DISCARD and the extension's own caches
PREPARE publish_it(text) AS SELECT outbox.publish('prepared-statement', $1) > 0 AS ok;
EXECUTE publish_it('one');
DISCARD SEQUENCES;
DISCARD PLANS;
EXECUTE publish_it('two');
DEALLOCATE publish_it;
SELECT payload FROM seen WHERE topic = 'prepared-statement';

-- a topic name that Kafka forbids, once a Kafka server would get it
SELECT outbox.publish('has space', 'x') > 0 AS ok;
BEGIN;
CREATE SERVER strict FOREIGN DATA WRAPPER outbox_kafka
	OPTIONS ("bootstrap.servers" 'localhost:1', topics 'has*');
SELECT outbox.publish('other space', 'x') > 0 AS ok;
SELECT outbox.publish('has space', 'x');
ROLLBACK;

-- in functions, triggers and procedures that commit
CREATE TABLE customers (id int, name text);
CREATE FUNCTION customers_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM outbox.publish('customers', to_jsonb(NEW), NEW.id::text);
	RETURN NEW;
END $$;
CREATE TRIGGER changed AFTER INSERT ON customers FOR EACH ROW EXECUTE FUNCTION customers_changed();
INSERT INTO customers VALUES (1, 'ada'), (2, 'bob');
CREATE PROCEDURE publish_twice() LANGUAGE plpgsql AS $$
BEGIN
	PERFORM outbox.publish('procedure', 'committed');
	COMMIT;
	PERFORM outbox.publish('procedure', 'rolled back');
	ROLLBACK;
	BEGIN
		PERFORM outbox.publish('procedure', 'in an exception block');
		RAISE 'undo';
	EXCEPTION WHEN raise_exception THEN
		PERFORM outbox.publish('procedure', 'handled');
	END;
END $$;
CALL publish_twice();
SELECT topic, key, payload FROM seen WHERE topic IN ('customers', 'procedure');

-- prepared transactions
BEGIN;
SELECT outbox.publish('prepared', 'committed') > 0 AS ok;
PREPARE TRANSACTION 'one';
BEGIN;
SELECT outbox.publish('prepared', 'rolled back') > 0 AS ok;
PREPARE TRANSACTION 'two';
SELECT count(*) FROM seen WHERE topic = 'prepared';
COMMIT PREPARED 'one';
ROLLBACK PREPARED 'two';
SELECT payload FROM seen WHERE topic = 'prepared';

-- isolation levels
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT outbox.publish('isolation', 'repeatable read') > 0 AS ok;
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT outbox.publish('isolation', 'serializable') > 0 AS ok;
COMMIT;
SELECT payload FROM seen WHERE topic = 'isolation';

-- lastval() of the session is left alone
CREATE SEQUENCE mine;
SELECT nextval('mine');
SELECT outbox.publish('t', 'x') > 0 AS ok FROM generate_series(1, 3);
SELECT lastval();

-- segments are not for hands
INSERT INTO outbox.segment_1 (id) VALUES (1);
UPDATE outbox.segment_1 SET id = 1;
DELETE FROM outbox.segment_1;
TRUNCATE outbox.segment_1;
SELECT relpersistence, reltoastrelid = 0 AS no_toast, relhasindex, reloptions
FROM pg_class WHERE oid = 'outbox.segment_1'::regclass;
SELECT DISTINCT attstorage FROM pg_attribute WHERE attrelid = 'outbox.segment_1'::regclass AND attnum > 0;

-- roles
CREATE ROLE outbox_test_nobody;
SET ROLE outbox_test_nobody;
SELECT outbox.publish('t', 'x');
RESET ROLE;
GRANT outbox_publisher TO outbox_test_nobody;
SET ROLE outbox_test_nobody;
SELECT outbox.publish('t', 'by a publisher') > 0 AS ok;
SELECT count(*) FROM outbox.message;
RESET ROLE;
DROP OWNED BY outbox_test_nobody;
DROP ROLE outbox_test_nobody;

-- created and used in one transaction, rolled back, dropped, created again
DROP EXTENSION pg_outbox CASCADE;
BEGIN;
CREATE EXTENSION pg_outbox;
SELECT outbox.publish('t', 'x') > 0 AS ok;
ROLLBACK;
BEGIN;
CREATE EXTENSION pg_outbox;
SELECT outbox.publish('t', 'first') > 0 AS ok;
COMMIT;
SELECT outbox.publish('t', 'second') > 0 AS ok;
SELECT convert_from(payload, 'UTF8') FROM outbox.message ORDER BY id;
