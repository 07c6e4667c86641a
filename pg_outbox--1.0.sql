/* pg_outbox--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION pg_outbox" to load this file. \quit

-- ---------------------------------------------------------------------------
-- Roles.  Made if absent, never dropped.
--
--   role              may
--   outbox_publisher  call outbox.publish(), outbox.publish_batch()
--   outbox_admin      read outbox.message, relay_status, dead_letter; call
--                     flush(), redrive(), discard()
--   inbox_consumer    (kept for the inbox)
-- ---------------------------------------------------------------------------
DO $$
DECLARE
	role name;
BEGIN
	FOREACH role IN ARRAY ARRAY['outbox_publisher', 'outbox_admin', 'inbox_consumer']::name[]
	LOOP
		IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role) THEN
			EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', role);
		END IF;
	END LOOP;
END
$$;

CREATE SCHEMA outbox;
CREATE SCHEMA inbox;
GRANT USAGE ON SCHEMA outbox TO outbox_publisher, outbox_admin;

-- ---------------------------------------------------------------------------
-- The log: segments in lanes, see src/log.
-- ---------------------------------------------------------------------------
CREATE SEQUENCE outbox.message_id_seq;

CREATE TABLE outbox.segments (
	relid oid NOT NULL,
	lane int,
	generation bigint
);
COMMENT ON TABLE outbox.segments IS
	'segments of the log; no lane: empty and in reserve';

CREATE FUNCTION outbox.refuse_dml() RETURNS trigger
	AS 'MODULE_PATHNAME', 'outbox_refuse_dml' LANGUAGE C;
COMMENT ON FUNCTION outbox.refuse_dml() IS
	'trigger of segments: rows are written by outbox.publish() only';

CREATE FUNCTION outbox.create_segment() RETURNS oid
	AS 'MODULE_PATHNAME', 'outbox_create_segment_sql' LANGUAGE C;
COMMENT ON FUNCTION outbox.create_segment() IS
	'internal: makes a segment of the log';
REVOKE ALL ON FUNCTION outbox.create_segment() FROM PUBLIC;

-- the first segment of each of the 8 lanes
INSERT INTO outbox.segments
	SELECT outbox.create_segment(), lane, 1 FROM pg_catalog.generate_series(0, 7) lane;

CREATE TABLE outbox.log_identity (
	log_uuid uuid NOT NULL,
	database_oid oid NOT NULL,
	system_identifier bigint NOT NULL,
	major int NOT NULL
);
INSERT INTO outbox.log_identity
	SELECT pg_catalog.gen_random_uuid(), d.oid, s.system_identifier,
		   pg_catalog.current_setting('server_version_num')::int / 10000
	FROM pg_catalog.pg_database d, pg_catalog.pg_control_system() s
	WHERE d.datname = pg_catalog.current_database();

-- ---------------------------------------------------------------------------
-- Publishing
-- ---------------------------------------------------------------------------

-- outbox.publish(topic, payload, key, headers, message_id, partition)
--
-- Publishes one message as part of the current transaction.
--
-- Parameters:
--   topic       name of the topic; not null, not empty, at most 1024 bytes, and
--               allowed by every server that would get it
--   payload     jsonb, json, text or bytea; null is a tombstone
--   key         messages of one key stay in order; null: no order
--   headers     object of strings, or array of pairs of strings where order or
--               repeated names matter
--   message_id  null: a UUID made of the log's epoch and the id
--   partition   null: chosen by key
-- Result: the message's id, unique and increasing in the database.
-- Errors: read-only transaction, recovery, parallel worker, invalid argument,
--   message longer than outbox.max_message_size, backlog above
--   outbox.max_backlog.
CREATE FUNCTION outbox.publish(topic text, payload jsonb, key text DEFAULT NULL,
	headers jsonb DEFAULT NULL, message_id text DEFAULT NULL, partition int DEFAULT NULL)
	RETURNS bigint AS 'MODULE_PATHNAME', 'outbox_publish_jsonb'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION outbox.publish(topic text, payload json, key text DEFAULT NULL,
	headers jsonb DEFAULT NULL, message_id text DEFAULT NULL, partition int DEFAULT NULL)
	RETURNS bigint AS 'MODULE_PATHNAME', 'outbox_publish_json'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION outbox.publish(topic text, payload text, key text DEFAULT NULL,
	headers jsonb DEFAULT NULL, message_id text DEFAULT NULL, partition int DEFAULT NULL)
	RETURNS bigint AS 'MODULE_PATHNAME', 'outbox_publish_text'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION outbox.publish(topic text, payload bytea, key text DEFAULT NULL,
	headers jsonb DEFAULT NULL, message_id text DEFAULT NULL, partition int DEFAULT NULL)
	RETURNS bigint AS 'MODULE_PATHNAME', 'outbox_publish_bytea'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;

-- outbox.publish_batch(topic, payloads, keys, headers)
--
-- Publishes many messages of one topic, in the order of the array.
--
-- Parameters: as for outbox.publish(); a null element of payloads is a
--   tombstone; keys, if given, has as many elements as payloads; headers go
--   with every message.
-- Result: how many were published.
CREATE FUNCTION outbox.publish_batch(topic text, payloads jsonb[], keys text[] DEFAULT NULL,
	headers jsonb DEFAULT NULL)
	RETURNS bigint AS 'MODULE_PATHNAME', 'outbox_publish_batch_jsonb'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION outbox.publish_batch(topic text, payloads json[], keys text[] DEFAULT NULL,
	headers jsonb DEFAULT NULL)
	RETURNS bigint AS 'MODULE_PATHNAME', 'outbox_publish_batch_json'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION outbox.publish_batch(topic text, payloads text[], keys text[] DEFAULT NULL,
	headers jsonb DEFAULT NULL)
	RETURNS bigint AS 'MODULE_PATHNAME', 'outbox_publish_batch_text'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION outbox.publish_batch(topic text, payloads bytea[], keys text[] DEFAULT NULL,
	headers jsonb DEFAULT NULL)
	RETURNS bigint AS 'MODULE_PATHNAME', 'outbox_publish_batch_bytea'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;

DO $$
DECLARE
	f regprocedure;
BEGIN
	FOR f IN SELECT p.oid FROM pg_catalog.pg_proc p
		WHERE p.pronamespace = 'outbox'::regnamespace
		  AND p.proname IN ('publish', 'publish_batch')
	LOOP
		EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f);
		EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO outbox_publisher', f);
		EXECUTE pg_catalog.format('COMMENT ON FUNCTION %s IS %L', f,
			'publishes as part of the current transaction');
	END LOOP;
END
$$;

-- ---------------------------------------------------------------------------
-- Looking into the log
-- ---------------------------------------------------------------------------

-- outbox.messages(): what outbox.message shows, read by the log's own reader.
CREATE FUNCTION outbox.messages(OUT id bigint, OUT published timestamptz,
	OUT topic text, OUT key text, OUT partition int, OUT headers jsonb,
	OUT payload bytea, OUT kind "char", OUT message_id text, OUT target text,
	OUT transaction xid8)
	RETURNS SETOF record AS 'MODULE_PATHNAME', 'outbox_messages'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION outbox.messages() IS
	'committed messages that the log retains, in no particular order';
REVOKE ALL ON FUNCTION outbox.messages() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outbox.messages() TO outbox_admin;

CREATE VIEW outbox.message AS SELECT * FROM outbox.messages();
COMMENT ON VIEW outbox.message IS 'committed messages that the log retains';
GRANT SELECT ON outbox.message TO outbox_admin;

-- ---------------------------------------------------------------------------
-- Brokers are foreign servers
-- ---------------------------------------------------------------------------
CREATE FUNCTION outbox.kafka_validator(text[], oid) RETURNS void
	AS '$libdir/pg_outbox_kafka_fdw', 'outbox_kafka_validator'
	LANGUAGE C STRICT;
COMMENT ON FUNCTION outbox.kafka_validator(text[], oid) IS
	'checks the options of Kafka servers and their user mappings';
REVOKE ALL ON FUNCTION outbox.kafka_validator(text[], oid) FROM PUBLIC;

CREATE FOREIGN DATA WRAPPER outbox_kafka
	VALIDATOR outbox.kafka_validator OPTIONS (library 'pg_outbox_kafka');
COMMENT ON FOREIGN DATA WRAPPER outbox_kafka IS
	'Apache Kafka as a target of the outbox';

-- Where each server stands.  Appended by its relay; the highest n counts.
CREATE TABLE outbox.position_log (
	server oid NOT NULL,
	server_name name NOT NULL,
	n bigint NOT NULL,
	s1 pg_snapshot NOT NULL,
	s2 pg_snapshot NOT NULL,
	cursor bigint NOT NULL,
	low bigint NOT NULL,
	written timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
COMMENT ON TABLE outbox.position_log IS
	'positions of servers in the log; the highest n of a server counts';

-- ---------------------------------------------------------------------------
-- Dead letters
-- ---------------------------------------------------------------------------
CREATE TABLE outbox.dead_letter (
	server name NOT NULL,
	id bigint NOT NULL,
	message_id text NOT NULL,
	topic text NOT NULL,
	key text,
	partition int,
	headers jsonb,
	payload bytea,
	kind "char" NOT NULL,
	published timestamptz NOT NULL,
	error text NOT NULL,
	reason text NOT NULL,
	attempts int NOT NULL,
	failed_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	PRIMARY KEY (server, id)
);
COMMENT ON TABLE outbox.dead_letter IS
	'messages that a broker refused for good, with the reason';
GRANT SELECT ON outbox.dead_letter TO outbox_admin;
SELECT pg_catalog.pg_extension_config_dump('outbox.dead_letter', '');
