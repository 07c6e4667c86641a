/* pg_outbox--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION pg_outbox" to load this file. \quit

-- Warns where the server has not loaded the library; not needed afterwards.
CREATE FUNCTION pg_temp.outbox_warn_without_preload() RETURNS void
	AS 'MODULE_PATHNAME', 'outbox_warn_without_preload' LANGUAGE C;
SELECT pg_temp.outbox_warn_without_preload();
DROP FUNCTION pg_temp.outbox_warn_without_preload();

-- ---------------------------------------------------------------------------
-- Roles.  Made if absent, never dropped.
--
--   role              may
--   outbox_publisher  call outbox.publish(), outbox.publish_batch()
--   outbox_admin      read outbox.message, relay_status, dead_letter, unrouted;
--                     call flush(), pause(), resume(), redrive(), discard(), adopt();
--                     the same of the inbox, and read its tables
--   inbox_consumer    call inbox.accept(), accept_batch(), forget(), expire(),
--                     subscribe(), and change subscriptions of its own; read all of
--                     the inbox's tables and inbox.subscription_status
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
COMMENT ON SCHEMA outbox IS
	'pg_outbox: messages that are published in transactions and relayed to brokers';
CREATE SCHEMA inbox;
COMMENT ON SCHEMA inbox IS
	'pg_outbox: consumption of messages that has its effect exactly once';
GRANT USAGE ON SCHEMA outbox TO outbox_publisher, outbox_admin;
GRANT USAGE ON SCHEMA inbox TO inbox_consumer, outbox_admin;

-- ---------------------------------------------------------------------------
-- The log: segments in lanes, see src/log.
-- ---------------------------------------------------------------------------
CREATE SEQUENCE outbox.message_id_seq;
COMMENT ON SEQUENCE outbox.message_id_seq IS
	'up to where ids of messages are reserved; moved ahead in big steps';

CREATE TABLE outbox.segments (
	relid oid NOT NULL,
	lane int,
	generation bigint
) USING heap;
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
REVOKE ALL ON FUNCTION outbox.refuse_dml() FROM PUBLIC;

-- outbox.create_segments(total)
--
-- Makes segments in reserve until there are so many.  A subscriber of a
-- publication FOR ALL TABLES needs a table of the same name for each of the
-- publisher's segments before it subscribes or refreshes.
--
-- Result: how many there are.
CREATE FUNCTION outbox.create_segments(total int) RETURNS bigint LANGUAGE sql
	SET search_path = pg_catalog AS $$
	INSERT INTO outbox.segments (relid)
		SELECT outbox.create_segment()
		FROM generate_series((SELECT count(*) + 1 FROM outbox.segments), total);
	SELECT count(*) FROM outbox.segments;
$$;
COMMENT ON FUNCTION outbox.create_segments(int) IS
	'makes segments in reserve until there are so many';
REVOKE ALL ON FUNCTION outbox.create_segments(int) FROM PUBLIC;

-- The first segment of each of the 8 lanes; no two generations are the same.  And
-- one in reserve: a disk that a backlog has filled has no room for a new segment, but
-- with one more than there are lanes there is always one to rotate to, or one that is
-- emptied once its messages are delivered.
INSERT INTO outbox.segments
	SELECT outbox.create_segment(), lane, lane + 1 FROM pg_catalog.generate_series(0, 7) lane;
SELECT outbox.create_segments(9);

-- Whose log this is; see src/log/identity.c.
CREATE TABLE outbox.log_identity (
	log_uuid uuid NOT NULL,
	database_oid oid NOT NULL,
	system_identifier bigint NOT NULL,
	major int NOT NULL
);
COMMENT ON TABLE outbox.log_identity IS
	'one row: where this log is at home, so that a copy of it is told from it';
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
-- Publishes one message as part of the current transaction: it exists if and only
-- if that commits, a savepoint around the call included.
--
-- Parameters:
--   topic       name of the topic: not null, 1 to 1024 bytes, no control
--               characters, and allowed by every server that would get it
--   payload     jsonb, json, text or bytea; null is a tombstone
--   key         messages of one topic and key stay in order; null: no order
--   headers     object of strings, or array of pairs of strings where order or
--               repeated names matter; "message-id" is reserved
--   message_id  1 to 1024 bytes; null: a UUID made of the log's epoch and the id
--   partition   0 or more; null: chosen by key
-- Result: the message's id, unique and increasing in the database; it may skip
--   numbers.
-- Errors: read_only_sql_transaction (read-only transaction, recovery),
--   invalid_transaction_state (parallel worker), null_value_not_allowed,
--   invalid_parameter_value, program_limit_exceeded (larger than
--   outbox.max_message_size), configuration_limit_exceeded (backlog above
--   outbox.max_backlog), object_not_in_prerequisite_state (not preloaded).
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
-- Parameters: as for outbox.publish(), but
--   payloads  one-dimensional array, not null; a null element is a tombstone
--   keys      null: none has a key; else as many elements as payloads has
--   headers   go with every message
-- Result: how many were published.
-- Errors: as for outbox.publish(), and array_subscript_error (more dimensions,
--   another number of keys).
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
			CASE WHEN f::text LIKE '%batch%'
				THEN 'publishes messages of one topic in the current transaction; returns how many'
				ELSE 'publishes a message in the current transaction; returns its id' END);
	END LOOP;
END
$$;

-- ---------------------------------------------------------------------------
-- Looking into the log
-- ---------------------------------------------------------------------------

-- outbox.message: committed messages, and this transaction's own, that the log
-- retains; in no order.  Delivered ones vanish with their segment.
--
--   id, published    as publish() gave them; published is clock_timestamp()
--   topic            always there
--   key, partition   null where none was given
--   headers          array of pairs, trace context included; null: none
--   message_id       as consumers see it
--   payload, kind    bytes, and what they are: j json, t text, b binary
--   target           the only server that gets it, when it was redriven
--   transaction      that published it
--
-- outbox.messages(): reads it, by the log's own reader.
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

CREATE FUNCTION outbox.nats_validator(text[], oid) RETURNS void
	AS '$libdir/pg_outbox_nats_fdw', 'outbox_nats_validator'
	LANGUAGE C STRICT;
COMMENT ON FUNCTION outbox.nats_validator(text[], oid) IS
	'checks the options of outbox_nats servers and their user mappings';
REVOKE ALL ON FUNCTION outbox.nats_validator(text[], oid) FROM PUBLIC;

CREATE FOREIGN DATA WRAPPER outbox_nats
	VALIDATOR outbox.nats_validator OPTIONS (library 'pg_outbox_nats');
COMMENT ON FOREIGN DATA WRAPPER outbox_nats IS
	'NATS JetStream as a target of the outbox, and as a source';

CREATE FUNCTION outbox.rabbitmq_validator(text[], oid) RETURNS void
	AS '$libdir/pg_outbox_rabbitmq_fdw', 'outbox_rabbitmq_validator'
	LANGUAGE C STRICT;
COMMENT ON FUNCTION outbox.rabbitmq_validator(text[], oid) IS
	'checks the options of outbox_rabbitmq servers and their user mappings';
REVOKE ALL ON FUNCTION outbox.rabbitmq_validator(text[], oid) FROM PUBLIC;

CREATE FOREIGN DATA WRAPPER outbox_rabbitmq
	VALIDATOR outbox.rabbitmq_validator OPTIONS (library 'pg_outbox_rabbitmq');
COMMENT ON FOREIGN DATA WRAPPER outbox_rabbitmq IS
	'RabbitMQ as a target of the outbox';

-- Where each server stands.  Appended by its relay; of each server and topic the
-- highest n counts.  No topic: all of the server's topics but those that have
-- rows of their own, because they lag.
CREATE TABLE outbox.position_log (
	server oid NOT NULL,
	server_name name NOT NULL,
	n bigint NOT NULL,
	s1 text NOT NULL,			-- a pg_snapshot, which has no equality: rows
	s2 text NOT NULL,			-- are compared by REPLICA IDENTITY FULL
	cursor bigint NOT NULL,
	low bigint NOT NULL,
	topic text,
	acked bigint[],
	epoch bigint NOT NULL DEFAULT 0,	-- of the log, when it was written by a relay
	written timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
) USING heap;
-- kept in the row: the table gets a new file now and then, its TOAST does not
ALTER TABLE outbox.position_log
	ALTER s1 SET STORAGE MAIN, ALTER s2 SET STORAGE MAIN;
COMMENT ON TABLE outbox.position_log IS
	'positions of servers in the log; the highest n of a server and topic counts';

-- ---------------------------------------------------------------------------
-- Dead letters: what a server will not get unless somebody redrives it.
--
--   server          name of the server; it may have been dropped since
--   id .. published as in outbox.message; message_id as consumers see it
--   error           the client library's name of the error
--   reason          its text
--   attempts        how often the message was sent
--   failed_at       when it was given up
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

-- ---------------------------------------------------------------------------
-- Administration
--
-- Functions that have to look or write where an outbox_admin may not run with
-- the rights of the extension's owner.
-- ---------------------------------------------------------------------------

-- outbox.relay_status_rows(): what outbox.relay_status shows.
CREATE FUNCTION outbox.relay_status_rows(OUT server name, OUT pid int, OUT state text,
	OUT delivered bigint, OUT dead bigint, OUT in_flight bigint,
	OUT pending_bytes bigint, OUT oldest_pending timestamptz, OUT lagging_topics int,
	OUT latency interval, OUT last_error text, OUT hint text,
	OUT last_error_at timestamptz, OUT started timestamptz)
	RETURNS SETOF record AS 'MODULE_PATHNAME', 'outbox_relay_status'
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION outbox.relay_status_rows() IS 'internal: behind outbox.relay_status';
REVOKE ALL ON FUNCTION outbox.relay_status_rows() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outbox.relay_status_rows() TO outbox_admin;

-- outbox.relay_status: one row a server.
--
--   pid             of its relay; null while none runs
--   state           starting, running, paused, disabled, retrying,
--                   waiting_for_standby, blocked, error, fenced or no_worker
--   delivered, dead messages acknowledged, and given up, since the server started
--   in_flight       messages read from the log and not yet answered
--   pending_bytes   size of the log from the oldest message on that is not done,
--                   messages of other topics included
--   oldest_pending  publish time of that message
--   lagging_topics  topics that are delivered on their own, as they are behind
--   latency         from publish() to the broker's acknowledgement, mean of late
--   last_error      with hint and time; stays until the next one
--   started         when the relay started
CREATE VIEW outbox.relay_status AS
	SELECT * FROM outbox.relay_status_rows() ORDER BY server;
COMMENT ON VIEW outbox.relay_status IS 'how each server''s delivery stands';
GRANT SELECT ON outbox.relay_status TO outbox_admin;

-- outbox.unrouted: messages that no server's topics match; counted since the
-- start of the server.
CREATE FUNCTION outbox.unrouted_messages() RETURNS bigint
	AS 'MODULE_PATHNAME', 'outbox_unrouted' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION outbox.unrouted_messages() IS 'internal: behind outbox.unrouted';
REVOKE ALL ON FUNCTION outbox.unrouted_messages() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outbox.unrouted_messages() TO outbox_admin;
CREATE VIEW outbox.unrouted AS SELECT outbox.unrouted_messages() AS messages;
COMMENT ON VIEW outbox.unrouted IS
	'how many messages no server wanted since the server started';
GRANT SELECT ON outbox.unrouted TO outbox_admin;

-- outbox.flush(timeout)
--
-- Waits until all that was committed before the call is acknowledged, or a dead
-- letter, at every server that is not paused.
--
-- Parameters:
--   timeout   how long to wait, as an interval; 0 only looks
-- Result: true when all is delivered (also when there is no server), false at
--   the timeout.
-- Errors: the transaction has published itself; recovery.
CREATE FUNCTION outbox.flush(timeout interval DEFAULT '30s') RETURNS boolean
	AS 'MODULE_PATHNAME', 'outbox_flush' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION outbox.flush(interval) IS
	'waits until everything committed is delivered; false at the timeout';
REVOKE ALL ON FUNCTION outbox.flush(interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outbox.flush(interval) TO outbox_admin;

CREATE FUNCTION outbox.require_server(server name) RETURNS void
	AS 'MODULE_PATHNAME', 'outbox_require_server' LANGUAGE C STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION outbox.require_server(name) IS
	'internal: raises unless there is such a server of the outbox';
REVOKE ALL ON FUNCTION outbox.require_server(name) FROM PUBLIC;

CREATE FUNCTION outbox.keep_server_name(server name) RETURNS void
	AS 'MODULE_PATHNAME', 'outbox_keep_server_name' LANGUAGE C STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION outbox.keep_server_name(name) IS
	'internal: the server is not renamed or dropped until the transaction ends';
REVOKE ALL ON FUNCTION outbox.keep_server_name(name) FROM PUBLIC;

CREATE FUNCTION outbox.set_server_option(server name, option text, value text)
	RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	given boolean;
BEGIN
	PERFORM outbox.require_server(server);
	SELECT EXISTS (SELECT FROM pg_options_to_table(s.srvoptions) o WHERE o.option_name = option)
		INTO given FROM pg_foreign_server s WHERE s.srvname = server;
	EXECUTE format('ALTER SERVER %I OPTIONS (%s %I %L)', server,
		CASE WHEN given THEN 'SET' ELSE 'ADD' END, option, value);
END
$$;
COMMENT ON FUNCTION outbox.set_server_option(name, text, text) IS
	'internal: ALTER SERVER for one option';
REVOKE ALL ON FUNCTION outbox.set_server_option(name, text, text) FROM PUBLIC;

-- outbox.pause(server), outbox.resume(server)
--
-- A server that is paused gets nothing; its messages stay in the log.  Takes
-- effect at commit, and is dumped, as the server's option "paused".
--
-- Parameters:
--   server    name of a server of the outbox
-- Errors: there is no such server.
CREATE FUNCTION outbox.pause(server name) RETURNS void
	LANGUAGE sql STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp
	AS $$ SELECT outbox.set_server_option(server, 'paused', 'true') $$;
COMMENT ON FUNCTION outbox.pause(name) IS 'stops delivery to a server; messages are kept';
REVOKE ALL ON FUNCTION outbox.pause(name) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outbox.pause(name) TO outbox_admin;

CREATE FUNCTION outbox.resume(server name) RETURNS void
	LANGUAGE sql STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp
	AS $$ SELECT outbox.set_server_option(server, 'paused', 'false') $$;
COMMENT ON FUNCTION outbox.resume(name) IS 'goes on with delivery to a server';
REVOKE ALL ON FUNCTION outbox.resume(name) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outbox.resume(name) TO outbox_admin;

CREATE FUNCTION outbox.republish(server name, topic text, message_id text, key text,
	partition int, headers jsonb, payload bytea, kind "char", published timestamptz)
	RETURNS bigint AS 'MODULE_PATHNAME', 'outbox_republish'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION outbox.republish(name, text, text, text, int, jsonb, bytea, "char", timestamptz) IS
	'internal: puts a dead letter back into the log';
REVOKE ALL ON FUNCTION outbox.republish(name, text, text, text, int, jsonb, bytea, "char", timestamptz) FROM PUBLIC;

-- outbox.redrive(server, ids, topic)
--
-- Sends dead letters again, to that server only, whatever its topics are, with
-- the message id and headers that they had.  Order with other messages of their
-- key is given up: those went before.
--
-- Parameters:
--   server    name of a server of the outbox
--   ids       ids in outbox.dead_letter; null: all
--   topic     only those of this topic; null: all
-- Result: how many.
-- Errors: there is no such server.
CREATE FUNCTION outbox.redrive(server name, ids bigint[] DEFAULT NULL, topic text DEFAULT NULL)
	RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	redriven bigint;
BEGIN
	PERFORM outbox.keep_server_name(redrive.server);
	PERFORM outbox.require_server(redrive.server);
	WITH letter AS (
		DELETE FROM outbox.dead_letter d
		WHERE d.server = redrive.server
		  AND (redrive.ids IS NULL OR d.id = ANY (redrive.ids))
		  AND (redrive.topic IS NULL OR d.topic = redrive.topic)
		RETURNING *
	)
	SELECT count(outbox.republish(l.server, l.topic, l.message_id, l.key, l.partition,
			l.headers, l.payload, l.kind, l.published)) INTO redriven
		FROM (SELECT * FROM letter ORDER BY id) l;
	RETURN redriven;
END
$$;
COMMENT ON FUNCTION outbox.redrive(name, bigint[], text) IS
	'sends dead letters of a server again; returns how many';
REVOKE ALL ON FUNCTION outbox.redrive(name, bigint[], text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outbox.redrive(name, bigint[], text) TO outbox_admin;

-- outbox.discard(server, ids, topic)
--
-- Removes dead letters for good.
--
-- Parameters: as for outbox.redrive(); the server may be gone.
-- Result: how many.
CREATE FUNCTION outbox.discard(server name, ids bigint[] DEFAULT NULL, topic text DEFAULT NULL)
	RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	discarded bigint;
BEGIN
	-- as in redrive(): renaming locks the name first, then letters
	PERFORM outbox.keep_server_name(discard.server);
	DELETE FROM outbox.dead_letter d
	WHERE d.server = discard.server
	  AND (discard.ids IS NULL OR d.id = ANY (discard.ids))
	  AND (discard.topic IS NULL OR d.topic = discard.topic);
	GET DIAGNOSTICS discarded = ROW_COUNT;
	RETURN discarded;
END
$$;
COMMENT ON FUNCTION outbox.discard(name, bigint[], text) IS
	'removes dead letters of a server; returns how many';
REVOKE ALL ON FUNCTION outbox.discard(name, bigint[], text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outbox.discard(name, bigint[], text) TO outbox_admin;

-- outbox.adopt(server)
--
-- A server that came with a copy of a database (CREATE DATABASE ... TEMPLATE) or
-- with a restored dump gets nothing from it, since the original still sends.
-- This makes the server one of this database: from its commit on a relay sends
-- what is in this database's log and was not delivered when the copy was made;
-- after a dump was restored, what was published since then.
--
-- Parameters:
--   server    name of a server of the outbox
-- Errors: there is no such server; recovery.
CREATE FUNCTION outbox.adopt(server name) RETURNS void
	AS 'MODULE_PATHNAME', 'outbox_adopt' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE
	SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION outbox.adopt(name) IS
	'lets this database send to a server that came with a copy or a dump';
REVOKE ALL ON FUNCTION outbox.adopt(name) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outbox.adopt(name) TO outbox_admin;

-- ---------------------------------------------------------------------------
-- The inbox: marks of messages that were seen, see src/inbox/mark.c.
--
--   consumer        who saw it, a name of the application's choice
--   message_id      what was seen
--   expires_at      until when it counts
--
-- Names are compared byte by byte, whatever the database's collation; the key
-- begins with what tells most rows apart, which makes a search cheaper.  VACUUM is
-- told to come early and not to dawdle: so the table stays about as large as what has
-- not expired.
-- ---------------------------------------------------------------------------
CREATE TABLE inbox.seen (
	consumer text COLLATE "C" NOT NULL,
	message_id text COLLATE "C" NOT NULL,
	expires_at timestamptz NOT NULL,
	PRIMARY KEY (message_id, consumer)
) USING heap WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 10000,
	autovacuum_vacuum_insert_scale_factor = 1, autovacuum_vacuum_cost_limit = 1000);
CREATE INDEX seen_expires_at ON inbox.seen (expires_at);
COMMENT ON TABLE inbox.seen IS
	'messages that consumers have seen, until they expire';
GRANT SELECT ON inbox.seen TO inbox_consumer, outbox_admin;
SELECT pg_catalog.pg_extension_config_dump('inbox.seen', '');

-- inbox.accept(consumer, message_id, ttl)
--
-- Marks a message as seen, as part of the current transaction.  A concurrent
-- second caller waits for the first, and gets false if that commits, true if it
-- rolls back.  Works in every isolation level: a mark that was committed after
-- the snapshot of a REPEATABLE READ transaction counts, though what else its
-- transaction did is not visible; in a SERIALIZABLE one that is a serialization
-- failure.
--
-- Parameters:
--   consumer      name of the consumer: not null, 1 to 200 bytes
--   message_id    any text, a uuid or bytea cast to one: not null, 1 to 1024 bytes
--   ttl           how long the mark counts, from when it is set (after a wait for
--                 another caller): not null, positive
-- Result: true: it is the caller's to process; false: it was seen.
-- Errors: a parameter out of these bounds; read-only transaction, standby.
-- Source of the idea: Redis' SET key value NX EX ttl.
CREATE FUNCTION inbox.accept(consumer text, message_id text, ttl interval DEFAULT '7 days')
	RETURNS boolean
	AS 'MODULE_PATHNAME', 'inbox_accept' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION inbox.accept(text, text, interval) IS
	'marks a message as seen; true: it was not, and is the caller''s to process';

-- inbox.accept_batch(consumer, message_ids, ttl)
--
-- The same for many messages.  Concurrent batches don't deadlock.
--
-- Parameters: as of accept(); no element is null.
-- Result: those that are the caller's to process, in the order of the input; of
-- an id that is there twice the first.
CREATE FUNCTION inbox.accept_batch(consumer text, message_ids text[],
	ttl interval DEFAULT '7 days') RETURNS text[]
	AS 'MODULE_PATHNAME', 'inbox_accept_batch' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION inbox.accept_batch(text, text[], interval) IS
	'marks messages as seen; those that were not are the caller''s to process';

-- inbox.forget(consumer, message_id)
--
-- Removes a mark, so that the message may be accepted again.
--
-- Parameters: as of accept().
-- Result: true: there was one that had not expired.
CREATE FUNCTION inbox.forget(consumer text, message_id text) RETURNS boolean
	AS 'MODULE_PATHNAME', 'inbox_forget' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION inbox.forget(text, text) IS
	'removes the mark of a message that was seen';

-- inbox.expire(max_marks)
--
-- Removes marks that have expired, the oldest first.  The keeper of a database does
-- so all the time; this is for servers that have not loaded the library, from cron.
-- Marks that somebody is about to replace are left to him.
--
-- Parameters:
--   max_marks     at most so many; their locks are kept until the transaction ends
-- Result: how many.
CREATE FUNCTION inbox.expire(max_marks int DEFAULT 100000) RETURNS bigint
	AS 'MODULE_PATHNAME', 'inbox_expire' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION inbox.expire(int) IS
	'removes marks of seen messages that have expired';

-- ---------------------------------------------------------------------------
-- Subscriptions: a worker consumes topics of a server, and calls a handler; see
-- src/inbox/worker.c.
--
--   name            of the subscription, and of the consumer in inbox.seen
--   server, topics  where messages come from; names and patterns, comma-separated
--   handler         as regprocedure shows it
--   owner           whose rights it runs with
--   start           where it begins (latest, earliest or a time), until started
--   group_id        null: pg_outbox.<log_uuid>.<name>, so that no copy of the database
--                   shares the partitions
--   generation      grows when places are changed by inbox.seek()
--   own_numbers     the broker has no places: offsets are numbers of ours, and marks
--                   are kept while the worker is not connected
-- ---------------------------------------------------------------------------
CREATE TABLE inbox.subscription (
	name name PRIMARY KEY,
	server name NOT NULL,
	topics text NOT NULL,
	handler text NOT NULL,
	owner regrole NOT NULL,
	start text NOT NULL,
	started boolean NOT NULL DEFAULT false,
	paused boolean NOT NULL DEFAULT false,
	batch_size int NOT NULL
		CONSTRAINT "batch_size must be 1 to 10000" CHECK (batch_size BETWEEN 1 AND 10000),
	max_attempts int NOT NULL
		CONSTRAINT "max_attempts must be 1 to 1000" CHECK (max_attempts BETWEEN 1 AND 1000),
	backoff interval NOT NULL
		CONSTRAINT "backoff must be 1 ms to 1 hour" CHECK (backoff BETWEEN '1 millisecond' AND '1 hour'),
	on_error text NOT NULL
		CONSTRAINT "on_error must be dead_letter or block" CHECK (on_error IN ('dead_letter', 'block')),
	dedup_by text NOT NULL
		CONSTRAINT "dedup_by must be message_id, header:NAME, key, json:PATH, none"
		CHECK (dedup_by IN ('message_id', 'key', 'none') OR dedup_by ~ '^(header|json):.'),
	dedup_ttl interval NOT NULL
		CONSTRAINT "dedup_ttl must be positive" CHECK (dedup_ttl > '0'),
	group_id text
		CONSTRAINT "group_id must have 1 to 200 characters" CHECK (length(group_id) BETWEEN 1 AND 200),
	on_gap text NOT NULL
		CONSTRAINT "on_gap must be stop or skip" CHECK (on_gap IN ('stop', 'skip')),
	timeout interval NOT NULL
		CONSTRAINT "timeout must be 0 to 1 day" CHECK (timeout BETWEEN '0' AND '1 day'),
	generation bigint NOT NULL DEFAULT 0,
	workers int NOT NULL
		CONSTRAINT "workers must be 1 to 64" CHECK (workers BETWEEN 1 AND 64),
	shared_group boolean NOT NULL,
	own_numbers boolean NOT NULL
) USING heap;
COMMENT ON TABLE inbox.subscription IS
	'what is consumed, and by which handlers';

-- Where subscriptions stand: the offset of the next message of each partition, and
-- the transaction in which the worker that has it took it (0: none has had it yet).
-- incarnation tells the topic from another one of its name that is made later, where the
-- broker has something that does: it is when a stream of NATS was made.
CREATE TABLE inbox.position (
	subscription name NOT NULL REFERENCES inbox.subscription ON DELETE CASCADE,
	topic text NOT NULL,
	partition int NOT NULL,
	next bigint NOT NULL,
	epoch bigint NOT NULL DEFAULT 0,
	incarnation text,
	PRIMARY KEY (subscription, topic, partition)
) USING heap WITH (fillfactor = 50);
COMMENT ON TABLE inbox.position IS
	'the next offset of each partition that a subscription consumes';

-- Messages that wait for another attempt, or (no due) for the one before them.  Topic,
-- partition and offset are a message's place; subject is what it was sent to, where that
-- is not the place's topic.
CREATE TABLE inbox.waiting_message (
	subscription name NOT NULL REFERENCES inbox.subscription ON DELETE CASCADE,
	topic text NOT NULL,
	partition int NOT NULL,
	"offset" bigint NOT NULL,
	subject text,
	message_id text NOT NULL,
	key text,
	headers jsonb NOT NULL,
	payload bytea,
	"timestamp" timestamptz,
	attempts int NOT NULL,
	due timestamptz,
	sqlstate text,
	error text,
	context text,
	PRIMARY KEY (subscription, topic, partition, "offset")
) USING heap;
CREATE INDEX waiting_due ON inbox.waiting_message (subscription, due);
CREATE INDEX waiting_key ON inbox.waiting_message (subscription, topic, partition, pg_catalog.hashtext(key), "offset");
COMMENT ON TABLE inbox.waiting_message IS
	'all of inbox.waiting';

CREATE TABLE inbox.dead_message (
	subscription name NOT NULL,
	topic text NOT NULL,
	partition int NOT NULL,
	"offset" bigint NOT NULL,
	subject text,
	message_id text NOT NULL,
	key text,
	headers jsonb NOT NULL,
	payload bytea,
	"timestamp" timestamptz,
	attempts int NOT NULL,
	sqlstate text NOT NULL,
	error text NOT NULL,
	context text,
	failed_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	PRIMARY KEY (subscription, topic, partition, "offset")
) USING heap;
COMMENT ON TABLE inbox.dead_message IS
	'all of inbox.dead_letter';

-- What messages say is for the owner of their subscription, and for administrators.
-- Views, not policies: those would refuse dumps by roles that may read all data.
CREATE VIEW inbox.waiting WITH (security_barrier) AS
	SELECT m.* FROM inbox.waiting_message m
	WHERE pg_catalog.pg_has_role('outbox_admin', 'USAGE') OR EXISTS (
		SELECT FROM inbox.subscription s WHERE s.name = m.subscription
		AND pg_catalog.pg_has_role(s.owner::oid, 'USAGE'));
COMMENT ON VIEW inbox.waiting IS
	'messages whose handler raised, and those of the same key behind them';
CREATE VIEW inbox.dead_letter WITH (security_barrier) AS
	SELECT m.* FROM inbox.dead_message m
	WHERE pg_catalog.pg_has_role('outbox_admin', 'USAGE') OR EXISTS (
		SELECT FROM inbox.subscription s WHERE s.name = m.subscription
		AND pg_catalog.pg_has_role(s.owner::oid, 'USAGE'));
COMMENT ON VIEW inbox.dead_letter IS
	'messages that a handler did not take, with the reason';
GRANT SELECT ON inbox.subscription, inbox.position, inbox.waiting, inbox.dead_letter
	TO inbox_consumer, outbox_admin;
SELECT pg_catalog.pg_extension_config_dump('inbox.subscription', '');
SELECT pg_catalog.pg_extension_config_dump('inbox.position', '');
SELECT pg_catalog.pg_extension_config_dump('inbox.waiting_message', '');
SELECT pg_catalog.pg_extension_config_dump('inbox.dead_message', '');

CREATE FUNCTION inbox.wake() RETURNS trigger
	AS 'MODULE_PATHNAME', 'inbox_wake' LANGUAGE C;
COMMENT ON FUNCTION inbox.wake() IS
	'trigger of subscriptions: workers look at them once the transaction commits';
CREATE TRIGGER wake AFTER INSERT OR UPDATE OR DELETE ON inbox.subscription
	FOR EACH STATEMENT EXECUTE FUNCTION inbox.wake();

-- What a handler gets.  Repeated headers are an array of values; what is no text in
-- this database is shown as \x and hexadecimal digits.
CREATE TYPE inbox.message AS (
	message_id text,
	topic text,
	partition int,
	"offset" bigint,
	key text,
	headers jsonb,
	payload bytea,
	"timestamp" timestamptz,
	attempt int
);
COMMENT ON TYPE inbox.message IS
	'a message as a handler gets it';

-- Inlined into queries, so without a setting of their own.
CREATE FUNCTION inbox.payload_text(m inbox.message) RETURNS text LANGUAGE sql
	STABLE PARALLEL SAFE AS $$ SELECT pg_catalog.convert_from(m.payload, 'UTF8') $$;
COMMENT ON FUNCTION inbox.payload_text(inbox.message) IS
	'a message''s payload as text';
CREATE FUNCTION inbox.payload_json(m inbox.message) RETURNS jsonb LANGUAGE sql
	STABLE PARALLEL SAFE AS $$ SELECT pg_catalog.convert_from(m.payload, 'UTF8')::pg_catalog.jsonb $$;
COMMENT ON FUNCTION inbox.payload_json(inbox.message) IS
	'a message''s payload as jsonb';

-- inbox.retry_later(after), inbox.reject(reason)
--
-- For handlers that know: have this message again after an interval, however many
-- attempts there were; or make it a dead letter at once.  Both raise, so what the
-- handler did is undone.
CREATE FUNCTION inbox.retry_later(after interval) RETURNS void
	AS 'MODULE_PATHNAME', 'inbox_retry_later' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION inbox.retry_later(interval) IS
	'called by a handler: wants this message again after an interval';
CREATE FUNCTION inbox.reject(reason text) RETURNS void
	AS 'MODULE_PATHNAME', 'inbox_reject' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION inbox.reject(text) IS
	'called by a handler: makes this message a dead letter';

CREATE FUNCTION inbox.require_preload() RETURNS void
	AS 'MODULE_PATHNAME', 'inbox_require_preload' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION inbox.require_preload() IS
	'internal: raises where the server has not loaded the library';

-- What changes the inbox's tables has two halves: one that is called, which notes by
-- whom, and one with the rights that it needs (definer_...), which nobody else may
-- call.  The handler of a subscription runs with its owner's rights, so the owner
-- must be who called, whoever's session it is; see src/inbox/caller.c.
CREATE FUNCTION inbox.caller() RETURNS name
	AS 'MODULE_PATHNAME', 'inbox_caller' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION inbox.caller() IS
	'internal: the role that called';

-- Does this server's broker have no places of its own?  See source.h.
CREATE FUNCTION inbox.has_own_numbers(server name) RETURNS boolean
	AS 'MODULE_PATHNAME', 'inbox_has_own_numbers' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION inbox.has_own_numbers(name) IS
	'internal: whether a server''s messages have no places at the broker';

-- Whether a role may have this handler, and this server; raises where not.
CREATE FUNCTION inbox.check_subscription(s inbox.subscription) RETURNS void LANGUAGE plpgsql
	SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	f record;
	role name := s.owner::oid::regrole::name;
BEGIN
	SELECT p.oid, p.prorettype, p.pronargs, p.proargtypes[0] AS argument, p.prokind INTO f
		FROM pg_proc p WHERE p.oid = to_regprocedure(s.handler);
	IF NOT FOUND THEN
		RAISE undefined_function USING MESSAGE = format('handler %s does not exist', s.handler);
	END IF;
	IF f.prokind <> 'f' OR f.prorettype <> 'void'::regtype OR f.pronargs <> 1
		OR f.argument NOT IN ('inbox.message'::regtype, 'inbox.message[]'::regtype) THEN
		RAISE invalid_function_definition USING
			MESSAGE = format('handler %s can''t be called with messages', s.handler),
			HINT = 'A handler is a function f(inbox.message) or f(inbox.message[]) that returns void.';
	END IF;
	IF NOT has_function_privilege(role, f.oid, 'EXECUTE') THEN
		RAISE insufficient_privilege USING
			MESSAGE = format('permission denied for function %s', s.handler);
	END IF;
	PERFORM outbox.require_server(s.server);
	IF NOT has_server_privilege(role, s.server, 'USAGE') THEN
		RAISE insufficient_privilege USING
			MESSAGE = format('permission denied for foreign server %s', s.server);
	END IF;
	IF s.start NOT IN ('latest', 'earliest') THEN
		PERFORM s.start::timestamptz;
	END IF;
	IF s.own_numbers AND (s.start NOT IN ('latest', 'earliest') OR s.workers > 1 OR s.shared_group OR s.topics ~ '\*') THEN
		RAISE feature_not_supported USING
			MESSAGE = format('server "%s" can''t be consumed from like that', s.server),
			DETAIL = CASE WHEN s.start NOT IN ('latest', 'earliest') THEN 'Its broker has queues and no positions: what is in a queue is consumed.'
				WHEN s.topics ~ '\*' THEN 'Its topics are queues, and a queue has a name, not a pattern.'
				ELSE 'A queue is consumed by one worker, in its order; other consumers of it need no group.' END;
	END IF;
	IF s.dedup_by LIKE 'json:%' THEN
		PERFORM substr(s.dedup_by, 6)::jsonpath;
	END IF;
	IF btrim(s.topics, ' ,') = '' OR s.topics ~ '(^|,)\s*!' THEN
		RAISE invalid_parameter_value USING
			MESSAGE = format('"%s" is not a list of topics', s.topics),
			HINT = 'Name topics or patterns, separated by commas; exclusions are not possible here.';
	END IF;
END
$$;
COMMENT ON FUNCTION inbox.check_subscription(inbox.subscription) IS
	'internal: raises where a subscription can''t be';

-- A start as the worker and a restored dump read it, however the session writes times.
CREATE FUNCTION inbox.start_text(start text) RETURNS text LANGUAGE plpgsql STRICT
	SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF start IN ('latest', 'earliest') THEN
		RETURN start;
	END IF;
	RETURN to_jsonb(start::timestamptz)#>>'{}';
END
$$;
COMMENT ON FUNCTION inbox.start_text(text) IS
	'internal: a subscription''s start, a time in ISO''s format';

-- inbox.subscribe(name, server, topic, handler, ...)
--
-- Consumes topics of a server from now on (once this commits), and calls a handler
-- for each message, or each batch, with the caller's rights.  What the handler did,
-- the mark that the message was seen, and the place in the topic commit together.
-- The handler returns: the message is done.  It raises: what it did is undone, and
-- it gets the message again later; meanwhile messages of the same key wait.
--
-- Parameters:
--   name          of the subscription; unique in the database
--   server        a server of the outbox; the caller needs USAGE on it
--   topic         a name, or several and patterns, comma-separated; a star stands
--                 for any characters
--   handler       f(inbox.message) or f(inbox.message[]) that returns void
--   start         latest, earliest, or a time: where it begins
--   batch_size    messages a transaction, at most (1 to 10000)
--   max_attempts  until a message becomes a dead letter (1 to 1000)
--   backoff       between the first two attempts; doubled each time
--   on_error      dead_letter, or block: attempts don't end
--   dedup_by      by what a message is known again: message_id (header message-id,
--                 else ce_id), header:NAME, key, json:PATH; where there is none, and
--                 with none, by its place in the topic
--   dedup_ttl     how long it is known
--   group_id      of the consumer group; by default pg_outbox.LOG_UUID.NAME
--   on_gap        stop, or skip: what the broker does not have any more
--   timeout       of a handler; 0: none
--   workers       that share the partitions (1 to 64)
--   shared_group  true: others consume in the same group (of other databases, or
--                 other subscriptions), so where the group is counts too
-- Errors: there is such a subscription; no such server or handler, or no right to use
-- it; a parameter out of bounds.
CREATE FUNCTION inbox.definer_subscribe(name name, server name, topic text, handler regprocedure,
	start text, batch_size int, max_attempts int,
	backoff interval, on_error text,
	dedup_by text, dedup_ttl interval,
	group_id text, on_gap text, timeout interval, workers int, shared_group boolean)
	RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	s inbox.subscription;
BEGIN
	IF name IS NULL OR server IS NULL OR topic IS NULL OR handler IS NULL OR start IS NULL THEN
		RAISE null_value_not_allowed USING MESSAGE = 'name, server, topic, handler and start must not be null';
	END IF;
	PERFORM inbox.require_preload();
	s.name := name;
	s.server := server;
	s.topics := topic;
	s.handler := handler::text;
	s.owner := (SELECT oid FROM pg_roles WHERE rolname = inbox.caller());
	s.start := start;
	s.started := false;
	s.paused := false;
	s.batch_size := batch_size;
	s.max_attempts := max_attempts;
	s.backoff := backoff;
	s.on_error := on_error;
	s.dedup_by := dedup_by;
	s.dedup_ttl := dedup_ttl;
	s.group_id := group_id;
	s.on_gap := on_gap;
	s.timeout := timeout;
	s.generation := 0;
	s.workers := workers;
	s.shared_group := shared_group;
	s.own_numbers := inbox.has_own_numbers(server);
	PERFORM inbox.check_subscription(s);
	s.start := inbox.start_text(start);
	INSERT INTO inbox.subscription VALUES (s.*) ON CONFLICT DO NOTHING;
	IF NOT FOUND THEN
		RAISE duplicate_object USING MESSAGE = format('subscription "%s" already exists', name);
	END IF;
END
$$;
COMMENT ON FUNCTION inbox.definer_subscribe(name, name, text, regprocedure, text, int, int, interval, text, text, interval, text, text, interval, int, boolean) IS
	'internal: subscribe() with the rights that it needs';
CREATE FUNCTION inbox.subscribe(name name, server name, topic text, handler regprocedure,
	start text DEFAULT 'latest', batch_size int DEFAULT 1000, max_attempts int DEFAULT 10,
	backoff interval DEFAULT '1s', on_error text DEFAULT 'dead_letter',
	dedup_by text DEFAULT 'message_id', dedup_ttl interval DEFAULT '7 days',
	group_id text DEFAULT NULL, on_gap text DEFAULT 'stop', timeout interval DEFAULT '0',
	workers int DEFAULT 1, shared_group boolean DEFAULT false)
	RETURNS void
	AS 'MODULE_PATHNAME', 'inbox_as_caller' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION inbox.subscribe(name, name, text, regprocedure, text, int, int, interval, text, text,
	interval, text, text, interval, int, boolean) IS
	'has a handler called for the messages of topics';

-- A subscription that the caller may change: its own; an administrator may do what
-- does not change what is run, as the handler runs with the owner's rights.
CREATE FUNCTION inbox.own_subscription(name name, or_admin boolean DEFAULT true)
	RETURNS inbox.subscription LANGUAGE plpgsql
	SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	s inbox.subscription;
BEGIN
	SELECT * INTO s FROM inbox.subscription t WHERE t.name = own_subscription.name FOR NO KEY UPDATE;
	IF NOT FOUND THEN
		RAISE undefined_object USING MESSAGE = format('there is no subscription "%s"', name);
	END IF;
	IF NOT (or_admin AND pg_has_role(inbox.caller(), 'outbox_admin', 'USAGE'))
		AND NOT pg_has_role(inbox.caller(), s.owner::oid, 'USAGE') THEN
		RAISE insufficient_privilege USING MESSAGE = format('must be owner of subscription %s', name);
	END IF;
	RETURN s;
END
$$;
COMMENT ON FUNCTION inbox.own_subscription(name, boolean) IS
	'internal: a subscription that the caller may change';

CREATE FUNCTION inbox.stop_retries(name name) RETURNS void
	AS 'MODULE_PATHNAME', 'inbox_stop_retries' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION inbox.stop_retries(name) IS
	'internal: no message of the subscription is tried again until the transaction ends';

-- inbox.unsubscribe(name): ends it; where it stood and what waits is forgotten, dead
-- letters stay.
CREATE FUNCTION inbox.definer_unsubscribe(name name) RETURNS void LANGUAGE plpgsql STRICT
	SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM inbox.own_subscription(name);
	-- wait for what its workers have under way, before they could wait for us
	PERFORM inbox.stop_retries(name);
	PERFORM FROM inbox.position p WHERE p.subscription = definer_unsubscribe.name FOR UPDATE;
	DELETE FROM inbox.subscription s WHERE s.name = definer_unsubscribe.name;
END
$$;
COMMENT ON FUNCTION inbox.definer_unsubscribe(name) IS
	'internal: unsubscribe() with the rights that it needs';
CREATE FUNCTION inbox.unsubscribe(name name)
	RETURNS void
	AS 'MODULE_PATHNAME', 'inbox_as_caller' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION inbox.unsubscribe(name) IS
	'ends a subscription, and forgets where it stood and what waits';

CREATE FUNCTION inbox.definer_pause(name name) RETURNS void LANGUAGE plpgsql STRICT
	SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM inbox.own_subscription(name);
	UPDATE inbox.subscription s SET paused = true WHERE s.name = definer_pause.name;
END
$$;
COMMENT ON FUNCTION inbox.definer_pause(name) IS
	'internal: pause() with the rights that it needs';
CREATE FUNCTION inbox.pause(name name)
	RETURNS void
	AS 'MODULE_PATHNAME', 'inbox_as_caller' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION inbox.pause(name) IS 'stops consuming until inbox.resume()';

CREATE FUNCTION inbox.definer_resume(name name) RETURNS void LANGUAGE plpgsql STRICT
	SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM inbox.own_subscription(name);
	UPDATE inbox.subscription s SET paused = false WHERE s.name = definer_resume.name;
END
$$;
COMMENT ON FUNCTION inbox.definer_resume(name) IS
	'internal: resume() with the rights that it needs';
CREATE FUNCTION inbox.resume(name name)
	RETURNS void
	AS 'MODULE_PATHNAME', 'inbox_as_caller' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION inbox.resume(name) IS 'goes on after inbox.pause()';

-- inbox.alter_subscription(name, ...): what is not null is changed; the rest as of
-- inbox.subscribe().  For its owner only, which it keeps.
CREATE FUNCTION inbox.definer_alter_subscription(name name, topic text,
	handler regprocedure, server name, batch_size int,
	max_attempts int, backoff interval, on_error text,
	dedup_by text, dedup_ttl interval, on_gap text,
	timeout interval, workers int, shared_group boolean)
	RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	s inbox.subscription := inbox.own_subscription(name, or_admin => false);
BEGIN
	s.topics := coalesce(topic, s.topics);
	s.handler := coalesce(handler::text, s.handler);
	s.server := coalesce(server, s.server);
	s.batch_size := coalesce(batch_size, s.batch_size);
	s.max_attempts := coalesce(max_attempts, s.max_attempts);
	s.backoff := coalesce(backoff, s.backoff);
	s.on_error := coalesce(on_error, s.on_error);
	s.dedup_by := coalesce(dedup_by, s.dedup_by);
	s.dedup_ttl := coalesce(dedup_ttl, s.dedup_ttl);
	s.on_gap := coalesce(on_gap, s.on_gap);
	s.timeout := coalesce(timeout, s.timeout);
	s.workers := coalesce(workers, s.workers);
	s.shared_group := coalesce(shared_group, s.shared_group);
	s.own_numbers := inbox.has_own_numbers(s.server);
	IF s.own_numbers THEN
		s.start := 'latest';
	END IF;
	PERFORM inbox.check_subscription(s);
	UPDATE inbox.subscription t SET topics = s.topics, handler = s.handler, server = s.server,
		batch_size = s.batch_size, max_attempts = s.max_attempts, backoff = s.backoff, on_error = s.on_error,
		dedup_by = s.dedup_by, dedup_ttl = s.dedup_ttl, on_gap = s.on_gap, timeout = s.timeout,
		workers = s.workers, shared_group = s.shared_group, start = s.start, own_numbers = s.own_numbers
		WHERE t.name = definer_alter_subscription.name;
END
$$;
COMMENT ON FUNCTION inbox.definer_alter_subscription(name, text, regprocedure, name, int, int, interval, text, text, interval, text, interval, int, boolean) IS
	'internal: alter_subscription() with the rights that it needs';
CREATE FUNCTION inbox.alter_subscription(name name, topic text DEFAULT NULL,
	handler regprocedure DEFAULT NULL, server name DEFAULT NULL, batch_size int DEFAULT NULL,
	max_attempts int DEFAULT NULL, backoff interval DEFAULT NULL, on_error text DEFAULT NULL,
	dedup_by text DEFAULT NULL, dedup_ttl interval DEFAULT NULL, on_gap text DEFAULT NULL,
	timeout interval DEFAULT NULL, workers int DEFAULT NULL, shared_group boolean DEFAULT NULL)
	RETURNS void
	AS 'MODULE_PATHNAME', 'inbox_as_caller' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION inbox.alter_subscription(name, text, regprocedure, name, int, int, interval, text, text,
	interval, text, interval, int, boolean) IS
	'changes what is not null of a subscription';

-- inbox.seek(name, start): goes on from another place: latest, earliest or a time.
-- What has been marked as seen has no second effect.
CREATE FUNCTION inbox.definer_seek(name name, start text) RETURNS void LANGUAGE plpgsql STRICT
	SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	s inbox.subscription := inbox.own_subscription(name);
BEGIN
	IF s.own_numbers THEN
		RAISE feature_not_supported USING
			MESSAGE = format('subscription "%s" can''t go on from another place', name),
			DETAIL = 'Its broker has queues and no positions.';
	END IF;
	s.start := start;
	PERFORM inbox.check_subscription(s);
	s.start := inbox.start_text(start);
	DELETE FROM inbox.position p WHERE p.subscription = definer_seek.name;
	UPDATE inbox.subscription t SET start = s.start, started = false, generation = t.generation + 1
		WHERE t.name = definer_seek.name;
END
$$;
COMMENT ON FUNCTION inbox.definer_seek(name, text) IS
	'internal: seek() with the rights that it needs';
CREATE FUNCTION inbox.seek(name name, start text)
	RETURNS void
	AS 'MODULE_PATHNAME', 'inbox_as_caller' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION inbox.seek(name, text) IS
	'has a subscription go on from another place';

-- inbox.redrive(name, message_ids), inbox.discard(name, message_ids)
--
-- Has dead letters handled once more (out of their key's order), or forgets them.
--
-- Parameters:
--   name          of the subscription
--   message_ids   which; null: all of them
-- Result: how many.
CREATE FUNCTION inbox.definer_redrive(name name, message_ids text[]) RETURNS bigint LANGUAGE plpgsql
	SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	n bigint;
BEGIN
	PERFORM inbox.own_subscription(name);
	WITH moved AS (
		DELETE FROM inbox.dead_message d WHERE d.subscription = definer_redrive.name
			AND (message_ids IS NULL OR d.message_id = ANY (message_ids)) RETURNING d.*)
	INSERT INTO inbox.waiting_message (subscription, topic, partition, "offset", subject, message_id, key, headers, payload,
			"timestamp", attempts, due)
		SELECT m.subscription, m.topic, m.partition, m."offset", m.subject, m.message_id, m.key, m.headers, m.payload,
			m."timestamp", 0, clock_timestamp() FROM moved m
		-- after a seek it may wait once more already
		ON CONFLICT (subscription, topic, partition, "offset") DO NOTHING;
	GET DIAGNOSTICS n = ROW_COUNT;
	RETURN n;
END
$$;
COMMENT ON FUNCTION inbox.definer_redrive(name, text[]) IS
	'internal: redrive() with the rights that it needs';
CREATE FUNCTION inbox.redrive(name name, message_ids text[] DEFAULT NULL)
	RETURNS bigint
	AS 'MODULE_PATHNAME', 'inbox_as_caller' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION inbox.redrive(name, text[]) IS 'has dead letters handled once more';

CREATE FUNCTION inbox.definer_discard(name name, message_ids text[]) RETURNS bigint LANGUAGE plpgsql
	SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	n bigint;
BEGIN
	IF NOT pg_has_role(inbox.caller(), 'outbox_admin', 'USAGE') THEN
		PERFORM inbox.own_subscription(name);
	END IF;
	DELETE FROM inbox.dead_message d WHERE d.subscription = definer_discard.name
		AND (message_ids IS NULL OR d.message_id = ANY (message_ids));
	GET DIAGNOSTICS n = ROW_COUNT;
	RETURN n;
END
$$;
COMMENT ON FUNCTION inbox.definer_discard(name, text[]) IS
	'internal: discard() with the rights that it needs';
CREATE FUNCTION inbox.discard(name name, message_ids text[] DEFAULT NULL)
	RETURNS bigint
	AS 'MODULE_PATHNAME', 'inbox_as_caller' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION inbox.discard(name, text[]) IS 'forgets dead letters';

-- ---------------------------------------------------------------------------
-- inbox.subscription_status
--
--   subscription, server, topics    as in inbox.subscription
--   workers         that run, and the pid of the first of them
--   state           starting, running, paused, disabled, retrying, error, no_worker: of
--                   the worker that is worst
--   partitions      that are its own at the moment
--   lag             messages at the broker beyond its places, of these partitions
--   handled         messages since its workers were first started; duplicates: that had
--                   been seen; rate: messages a second, of late
--   waiting         for another attempt, or behind such a one
--   dead_letters    that nobody has redriven or discarded
--   last_error, hint, last_error_at    the last of a worker, until that one runs again
--
-- inbox.worker_status: the same for each of its workers.
-- ---------------------------------------------------------------------------
CREATE FUNCTION inbox.worker_slots(OUT subscription name, OUT worker int, OUT pid int, OUT state text,
	OUT partitions int, OUT lag bigint, OUT handled bigint, OUT duplicates bigint, OUT rate bigint,
	OUT last_error text, OUT hint text, OUT last_error_at timestamptz, OUT started timestamptz)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'inbox_worker_slots' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION inbox.worker_slots() IS
	'internal: what workers of subscriptions show';
CREATE VIEW inbox.worker_status AS
	SELECT w.* FROM inbox.subscription s JOIN inbox.worker_slots() w ON w.subscription = s.name
		AND w.worker <= s.workers;
COMMENT ON VIEW inbox.worker_status IS
	'a row for each worker of a subscription';
CREATE VIEW inbox.subscription_status AS
	SELECT s.name AS subscription, s.server, s.topics, w.workers, w.pid,
		CASE WHEN w.state IS NOT NULL THEN w.state WHEN pg_catalog.pg_is_in_recovery() THEN 'no_worker'
			WHEN pg_catalog.current_setting('outbox.enabled', true) = 'off' THEN 'disabled'
			WHEN s.paused THEN 'paused' ELSE 'starting' END AS state,
		w.partitions, w.lag, w.handled, w.duplicates, w.rate,
		(SELECT count(*) FROM inbox.waiting_message m WHERE m.subscription = s.name) AS waiting,
		(SELECT count(*) FROM inbox.dead_message d WHERE d.subscription = s.name) AS dead_letters,
		e.last_error, e.hint, e.last_error_at, w.started
	FROM inbox.subscription s
		LEFT JOIN (
			SELECT subscription, count(pid) AS workers, (array_agg(pid ORDER BY worker) FILTER (WHERE pid IS NOT NULL))[1] AS pid,
				(array_agg(state ORDER BY array_position(
					'{error,no_worker,retrying,starting,running,paused,disabled}'::text[], state)))[1] AS state,
				sum(partitions)::int AS partitions, sum(lag)::bigint AS lag, sum(handled)::bigint AS handled,
				sum(duplicates)::bigint AS duplicates, sum(rate)::bigint AS rate, min(started) AS started
			FROM inbox.worker_status GROUP BY subscription) w ON w.subscription = s.name
		LEFT JOIN (
			SELECT DISTINCT ON (subscription) subscription, last_error, hint, last_error_at
			FROM inbox.worker_status ORDER BY subscription, last_error_at DESC NULLS LAST) e
			ON e.subscription = s.name;
COMMENT ON VIEW inbox.subscription_status IS
	'a row for each subscription: its workers, how far it is, and what went wrong';
GRANT SELECT ON inbox.worker_status, inbox.subscription_status TO inbox_consumer, outbox_admin;

DO $$
DECLARE
	f regprocedure;
BEGIN
	FOR f IN SELECT p.oid FROM pg_catalog.pg_proc p
		WHERE p.pronamespace = 'inbox'::pg_catalog.regnamespace
	LOOP
		EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f);
		CONTINUE WHEN pg_catalog.obj_description(f, 'pg_proc') LIKE 'internal:%'
			OR (SELECT prorettype FROM pg_catalog.pg_proc WHERE oid = f) = 'trigger'::pg_catalog.regtype;
		EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO inbox_consumer', f);
	END LOOP;
	GRANT EXECUTE ON FUNCTION inbox.worker_slots() TO inbox_consumer, outbox_admin;
	GRANT EXECUTE ON FUNCTION inbox.pause(name), inbox.resume(name), inbox.unsubscribe(name),
		inbox.seek(name, text), inbox.redrive(name, text[]), inbox.discard(name, text[]) TO outbox_admin;
END
$$;

-- ---------------------------------------------------------------------------
-- A publication FOR ALL TABLES: see src/log/create.c.  The publisher's side
-- needs a replica identity for UPDATE and DELETE; the subscriber's side skips
-- what comes.
-- ---------------------------------------------------------------------------
CREATE FUNCTION outbox.skip_replicated() RETURNS trigger
	AS 'MODULE_PATHNAME', 'outbox_skip_replicated' LANGUAGE C;
COMMENT ON FUNCTION outbox.skip_replicated() IS
	'trigger of tables of pg_outbox: logical replication leaves them alone';
REVOKE ALL ON FUNCTION outbox.skip_replicated() FROM PUBLIC;

DO $$
DECLARE
	t record;
BEGIN
	FOR t IN SELECT c.oid::regclass AS name,
			EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary) AS has_key
		FROM pg_catalog.pg_class c
		WHERE c.relnamespace IN ('outbox'::regnamespace, 'inbox'::regnamespace) AND c.relkind = 'r'
		  AND c.relname !~ '^segment_[0-9]+$'
	LOOP
		EXECUTE pg_catalog.format('CREATE TRIGGER skip_replicated BEFORE INSERT OR UPDATE OR DELETE'
			' ON %s FOR EACH ROW EXECUTE FUNCTION outbox.skip_replicated()', t.name);
		EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE REPLICA TRIGGER skip_replicated', t.name);
		EXECUTE pg_catalog.format('CREATE TRIGGER refuse_truncate BEFORE TRUNCATE'
			' ON %s FOR EACH STATEMENT EXECUTE FUNCTION outbox.skip_replicated()', t.name);
		EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE ALWAYS TRIGGER refuse_truncate', t.name);
		IF NOT t.has_key THEN
			EXECUTE pg_catalog.format('ALTER TABLE %s REPLICA IDENTITY FULL', t.name);
		END IF;
	END LOOP;
END
$$;
