-- Creating and dropping the extension, and servers with their identity.
\set VERBOSITY terse
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS pg_outbox CASCADE;

-- in one transaction with the first publish(), rolled back
BEGIN;
CREATE EXTENSION pg_outbox;
SELECT outbox.publish('t', 'gone') > 0 AS ok;
ROLLBACK;
SELECT outbox.publish('t', 'x');

-- rolled back to a savepoint, then for good
BEGIN;
SAVEPOINT s;
CREATE EXTENSION pg_outbox;
SELECT outbox.publish('t', 'gone') > 0 AS ok;
ROLLBACK TO s;
CREATE EXTENSION pg_outbox;
SELECT outbox.publish('t', 'one') > 0 AS ok;
SAVEPOINT s2;
SELECT outbox.publish('t', 'gone') > 0 AS ok;
ROLLBACK TO s2;
SELECT outbox.publish('t', 'two') > 0 AS ok;
COMMIT;
SELECT outbox.publish('t', 'three') > 0 AS ok;
SELECT convert_from(payload, 'UTF8') FROM outbox.message ORDER BY id;

-- the drop rolled back, to a savepoint and altogether
BEGIN;
SAVEPOINT s;
DROP EXTENSION pg_outbox;
ROLLBACK TO s;
SELECT outbox.publish('t', 'four') > 0 AS ok;
COMMIT;
BEGIN;
DROP EXTENSION pg_outbox;
ROLLBACK;
SELECT outbox.publish('t', 'five') > 0 AS ok;
SELECT count(*) FROM outbox.message;

-- after a drop, prepared statements and functions say so, or use the new one
CREATE FUNCTION publish_it() RETURNS boolean LANGUAGE plpgsql AS
	$$ BEGIN RETURN outbox.publish('t', 'from a function') > 0; END $$;
PREPARE publish AS SELECT outbox.publish('t', 'prepared') > 0 AS ok;
EXECUTE publish;
SELECT publish_it();
DROP EXTENSION pg_outbox;
EXECUTE publish;
SELECT publish_it();
SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname IN ('outbox', 'inbox')) AS left_behind;
SELECT count(*) AS roles FROM pg_roles
	WHERE rolname IN ('outbox_publisher', 'outbox_admin', 'inbox_consumer');
CREATE EXTENSION pg_outbox;
EXECUTE publish;
SELECT publish_it();
SELECT convert_from(payload, 'UTF8') FROM outbox.message ORDER BY id;
DEALLOCATE publish;
DROP FUNCTION publish_it();

-- dropped and made again in one transaction; made and dropped in one
BEGIN;
SELECT outbox.publish('t', 'old') > 0 AS ok;
DROP EXTENSION pg_outbox;
CREATE EXTENSION pg_outbox;
SELECT outbox.publish('t', 'new') > 0 AS ok;
COMMIT;
SELECT convert_from(payload, 'UTF8') FROM outbox.message ORDER BY id;
DROP EXTENSION pg_outbox;
BEGIN;
CREATE EXTENSION pg_outbox;
SELECT outbox.publish('t', 'never') > 0 AS ok;
DROP EXTENSION pg_outbox;
COMMIT;
CREATE EXTENSION pg_outbox;
SELECT outbox.publish('t', 'again') > 0 AS ok;
SELECT convert_from(payload, 'UTF8') FROM outbox.message ORDER BY id;

-- its objects can't be dropped from under it
DROP SCHEMA outbox;
DROP TABLE outbox.position_log;
DROP FOREIGN DATA WRAPPER outbox_kafka;

-- a server is at home where it is created; a dump's stays at home elsewhere
BEGIN;
CREATE SERVER events FOREIGN DATA WRAPPER outbox_kafka OPTIONS ("bootstrap.servers" '127.0.0.1:1');
CREATE SERVER IF NOT EXISTS events FOREIGN DATA WRAPPER outbox_kafka OPTIONS ("bootstrap.servers" '127.0.0.1:2');
CREATE SERVER foreign_one FOREIGN DATA WRAPPER outbox_kafka
	OPTIONS ("bootstrap.servers" '127.0.0.1:1', home '00000000-0000-4000-8000-000000000000');
SELECT srvname, option_value = (SELECT log_uuid::text FROM outbox.log_identity) AS at_home
	FROM pg_foreign_server, pg_options_to_table(srvoptions)
	WHERE option_name = 'home' ORDER BY 1;
SELECT server_name, count(*) FROM outbox.position_log GROUP BY 1 ORDER BY 1;
SELECT outbox.adopt('foreign_one');
SELECT srvname, option_value = (SELECT log_uuid::text FROM outbox.log_identity) AS at_home
	FROM pg_foreign_server, pg_options_to_table(srvoptions)
	WHERE option_name = 'home' ORDER BY 1;
SAVEPOINT s;
SELECT outbox.adopt('nobody');
ROLLBACK TO s;

-- positions and dead letters follow a server that is renamed
INSERT INTO outbox.dead_letter (server, id, message_id, topic, kind, published, error, reason, attempts)
	VALUES ('events', 1, 'a', 't', 't', now(), 'e', 'r', 1),
		   ('events', 2, 'b', 't', 't', now(), 'e', 'r', 1),
		   ('news', 2, 'b', 't', 't', now(), 'e', 'r', 1);
ALTER SERVER events RENAME TO news;
SELECT server, id FROM outbox.dead_letter ORDER BY 1, 2;
SELECT DISTINCT server_name FROM outbox.position_log ORDER BY 1;

-- but not while something that was redriven carries the old name
SELECT outbox.redrive('news', ARRAY[1]);
ALTER SERVER news RENAME TO events;
ROLLBACK;

-- a drop warns of what is undelivered: what the server would have got, from its
-- creation on
SELECT outbox.publish('orders.a', 'too early') > 0 AS ok;
CREATE SERVER events FOREIGN DATA WRAPPER outbox_kafka
	OPTIONS ("bootstrap.servers" '127.0.0.1:1', paused 'true', topics 'orders.*');
INSERT INTO outbox.dead_letter (server, id, message_id, topic, kind, published, error, reason, attempts)
	VALUES ('events', 1, 'a', 'odd', 't', now(), 'e', 'r', 1);
SELECT outbox.publish('orders.a', repeat('x', 2048), 'k') > 0 AS ok FROM generate_series(1, 2);
SELECT outbox.publish('payments', 'not for it') > 0 AS ok;
SELECT outbox.redrive('events');
ALTER SERVER events RENAME TO other;
BEGIN;
DROP SERVER events;
ROLLBACK;
SET ROLE outbox_publisher;
DROP SERVER events;
RESET ROLE;
DROP SERVER events;
DROP EXTENSION pg_outbox CASCADE;
CREATE EXTENSION pg_outbox;
