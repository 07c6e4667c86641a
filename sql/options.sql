-- Options of servers, wrappers and user mappings, and every error about them.
-- All in one transaction that is rolled back: no relay starts.
SET client_min_messages = error;
CREATE EXTENSION IF NOT EXISTS pg_outbox;
RESET client_min_messages;
\set ON_ERROR_ROLLBACK on
BEGIN;

-- what is fine
CREATE SERVER good FOREIGN DATA WRAPPER outbox_kafka OPTIONS (
    "bootstrap.servers" 'broker1:9092, broker2, [::1]:9092, ssl://broker3:9093',
    topics 'orders.*, payments, !orders.test', format 'plain',
    exactly_once 'false', start 'earliest', on_error 'block',
    topic_timeout '5 min', paused 'on', "linger.ms" '2.5',
    "security.protocol" 'SASL_SSL', "sasl.mechanism" 'SCRAM-SHA-512',
    "compression.type" 'lz4', "socket.keepalive.enable" 'true',
    "max.in.flight" '5', "partitioner" 'murmur2', "debug" 'broker, topic',
    "ssl.ca.location" '/etc/ca.pem', extra 'a.b=c d.e=''f g \''h'' i=');
CREATE USER MAPPING FOR PUBLIC SERVER good OPTIONS (
    "sasl.username" 'app', "sasl.password" 'secret',
    "ssl.key.pem" '-----BEGIN PRIVATE KEY-----', "ssl.key.password" 'secret');
ALTER SERVER good OPTIONS (SET topic_timeout '-1', DROP extra, SET paused 'false');
ALTER SERVER good OPTIONS (SET topic_timeout '0');
ALTER SERVER good OPTIONS (SET topic_timeout '300s', SET topics '!a,!b');
ALTER USER MAPPING FOR PUBLIC SERVER good OPTIONS (SET "sasl.password" 'other');

-- brokers
CREATE SERVER bad FOREIGN DATA WRAPPER outbox_kafka;
CREATE SERVER bad FOREIGN DATA WRAPPER outbox_kafka OPTIONS ("bootstrap.servers" '');
CREATE SERVER bad FOREIGN DATA WRAPPER outbox_kafka OPTIONS ("bootstrap.servers" 'a,,b');
CREATE SERVER bad FOREIGN DATA WRAPPER outbox_kafka OPTIONS ("bootstrap.servers" 'a:0');
CREATE SERVER bad FOREIGN DATA WRAPPER outbox_kafka OPTIONS ("bootstrap.servers" 'a:b');
CREATE SERVER bad FOREIGN DATA WRAPPER outbox_kafka OPTIONS ("bootstrap.servers" 'a b');
CREATE SERVER bad FOREIGN DATA WRAPPER outbox_kafka OPTIONS ("metadata.broker.list" 'a');
ALTER SERVER good OPTIONS (DROP "bootstrap.servers");

-- names
ALTER SERVER good OPTIONS (ADD bootstrap_servers 'a');
ALTER SERVER good OPTIONS (ADD topic 'a');
ALTER SERVER good OPTIONS (ADD "linger" 'a');
ALTER SERVER good OPTIONS (ADD "linger.msec" '5');
ALTER SERVER good OPTIONS (ADD "something.else.altogether" '5');
ALTER SERVER good OPTIONS (ADD "queue.buffering.max.ms" '5');
\echo :LAST_ERROR_SQLSTATE

-- the core's own options
ALTER SERVER good OPTIONS (SET topics '');
ALTER SERVER good OPTIONS (SET topics ' ');
ALTER SERVER good OPTIONS (SET topics 'a,,b');
ALTER SERVER good OPTIONS (SET topics 'a,');
ALTER SERVER good OPTIONS (SET topics '!');
ALTER SERVER good OPTIONS (SET topics '!!a');
ALTER SERVER good OPTIONS (SET topics 'orders payments');
ALTER SERVER good OPTIONS (SET topics E'a\u0001b');
\echo :LAST_ERROR_SQLSTATE
ALTER SERVER good OPTIONS (SET format 'avro');
ALTER SERVER good OPTIONS (SET format 'cloudevents');
ALTER SERVER good OPTIONS (SET format 'cloudevents-structured');
\echo :LAST_ERROR_SQLSTATE
ALTER SERVER good OPTIONS (SET exactly_once 'maybe');
\echo :LAST_ERROR_SQLSTATE
ALTER SERVER good OPTIONS (SET exactly_once 'true');
ALTER SERVER good OPTIONS (ADD position_topic '');
ALTER SERVER good OPTIONS (ADD position_topic 'a b');
ALTER SERVER good OPTIONS (ADD position_topic 'positions');
ALTER SERVER good OPTIONS (SET exactly_once 'false', DROP position_topic);
ALTER SERVER good OPTIONS (SET start 'latest');
ALTER SERVER good OPTIONS (SET on_error 'ignore');
ALTER SERVER good OPTIONS (SET topic_timeout '300');
ALTER SERVER good OPTIONS (SET topic_timeout 'soon');
ALTER SERVER good OPTIONS (SET topic_timeout '-5 min');
ALTER SERVER good OPTIONS (SET topic_timeout '2 years');
-- so many that their milliseconds don't fit into 64 bits
ALTER SERVER good OPTIONS (SET topic_timeout '593066618 years');
ALTER SERVER good OPTIONS (SET topic_timeout '');
ALTER SERVER good OPTIONS (SET paused 'perhaps');
ALTER SERVER good OPTIONS (ADD extra 'broken');
ALTER SERVER good OPTIONS (ADD extra 'a=''b');
ALTER SERVER good OPTIONS (ADD extra '=b');
ALTER SERVER good OPTIONS (ADD extra 'topics=b');
ALTER SERVER good OPTIONS (ADD extra 'x=y acks=0');
ALTER SERVER good OPTIONS (ADD extra 'sasl.password=secret');
ALTER SERVER good OPTIONS (ADD extra 'linger.ms=5');
-- home is written by CREATE SERVER and by dumps
CREATE SERVER bad FOREIGN DATA WRAPPER outbox_kafka OPTIONS ("bootstrap.servers" 'a', home 'here');

-- values of the client library's properties
ALTER SERVER good OPTIONS (SET "linger.ms" '-1');
ALTER SERVER good OPTIONS (SET "linger.ms" '5x');
ALTER SERVER good OPTIONS (SET "linger.ms" '0x10');
ALTER SERVER good OPTIONS (SET "linger.ms" '');
ALTER SERVER good OPTIONS (ADD "socket.timeout.ms" '9');
ALTER SERVER good OPTIONS (ADD "socket.timeout.ms" '1e3');
ALTER SERVER good OPTIONS (ADD "socket.timeout.ms" '0100');
ALTER SERVER good OPTIONS (ADD "socket.timeout.ms" '99999999999999999999');
ALTER SERVER good OPTIONS (SET "socket.keepalive.enable" 'on');
ALTER SERVER good OPTIONS (SET "security.protocol" 'tls');
ALTER SERVER good OPTIONS (SET "max.in.flight" '6');
ALTER SERVER good OPTIONS (SET "partitioner" 'round_robin');
ALTER SERVER good OPTIONS (SET "sasl.mechanism" 'plain');
ALTER SERVER good OPTIONS (ADD "reconnect.backoff.ms" '500', ADD "reconnect.backoff.max.ms" '100');
ALTER SERVER good OPTIONS (ADD "ssl.ca.pem" '/etc/ca.pem');
-- the list of flags differs between versions of the library
\set VERBOSITY terse
ALTER SERVER good OPTIONS (SET "debug" 'broker,nonsense');
ALTER SERVER good OPTIONS (SET "debug" '');
\set VERBOSITY default

-- options that belong together
ALTER SERVER good OPTIONS (DROP "sasl.mechanism");
ALTER SERVER good OPTIONS (SET "sasl.mechanism" 'OAUTHBEARER');
ALTER SERVER good OPTIONS (DROP "security.protocol");
ALTER SERVER good OPTIONS (ADD "security.protocol" 'sasl_ssl');

-- what the relay owns
ALTER SERVER good OPTIONS (ADD "enable.idempotence" 'false');
ALTER SERVER good OPTIONS (ADD "enable.gapless.guarantee" 'false');
ALTER SERVER good OPTIONS (ADD "queuing.strategy" 'lifo');
ALTER SERVER good OPTIONS (ADD "acks" '0');
ALTER SERVER good OPTIONS (ADD "request.required.acks" '1');
ALTER SERVER good OPTIONS (ADD "retries" '3');
ALTER SERVER good OPTIONS (ADD "message.send.max.retries" '3');
ALTER SERVER good OPTIONS (ADD "message.timeout.ms" '1000');
ALTER SERVER good OPTIONS (ADD "delivery.timeout.ms" '1000');
ALTER SERVER good OPTIONS (ADD "queue.buffering.max.messages" '10');
ALTER SERVER good OPTIONS (ADD "queue.buffering.max.kbytes" '10');
ALTER SERVER good OPTIONS (ADD "delivery.report.only.error" 'true');
ALTER SERVER good OPTIONS (ADD "dr_msg_cb" 'f');
ALTER SERVER good OPTIONS (ADD "enabled_events" '1');
ALTER SERVER good OPTIONS (ADD "error_cb" 'f');
ALTER SERVER good OPTIONS (ADD "statistics.interval.ms" '1000');
ALTER SERVER good OPTIONS (ADD "log.queue" 'false');
ALTER SERVER good OPTIONS (ADD "internal.termination.signal" '10');
ALTER SERVER good OPTIONS (ADD "transactional.id" 'me');
ALTER SERVER good OPTIONS (ADD "transaction.timeout.ms" '1000');
ALTER SERVER good OPTIONS (ADD "builtin.features" 'ssl');
ALTER SERVER good OPTIONS (ADD "opaque" 'x');
ALTER SERVER good OPTIONS (ADD "group.id" 'x');
\echo :LAST_ERROR_SQLSTATE

-- secrets
ALTER SERVER good OPTIONS (ADD "sasl.password" 'secret');
ALTER SERVER good OPTIONS (ADD "ssl.key.password" 'secret');
ALTER SERVER good OPTIONS (ADD "ssl.key.pem" 'secret');
ALTER SERVER good OPTIONS (ADD "ssl.keystore.password" 'secret');
ALTER SERVER good OPTIONS (ADD "sasl.oauthbearer.client.secret" 'secret');
ALTER USER MAPPING FOR PUBLIC SERVER good OPTIONS (SET "ssl.key.pem" 'secret');
ALTER USER MAPPING FOR PUBLIC SERVER good OPTIONS (ADD "linger.ms" '5');
ALTER USER MAPPING FOR PUBLIC SERVER good OPTIONS (ADD topics '*');
ALTER USER MAPPING FOR PUBLIC SERVER good OPTIONS (ADD acks '1');
ALTER USER MAPPING FOR PUBLIC SERVER good OPTIONS (ADD sasl_password 'secret');
ALTER USER MAPPING FOR PUBLIC SERVER good OPTIONS (ADD "user" 'secret');

-- power
SAVEPOINT power;
CREATE ROLE regress_outbox_owner;
GRANT USAGE ON FOREIGN DATA WRAPPER outbox_kafka TO regress_outbox_owner;
SET ROLE regress_outbox_owner;
CREATE SERVER modest FOREIGN DATA WRAPPER outbox_kafka OPTIONS ("bootstrap.servers" 'a');
CREATE USER MAPPING FOR PUBLIC SERVER modest OPTIONS ("sasl.password" 'secret');
ALTER SERVER modest OPTIONS (ADD "plugin.library.paths" 'x');
ALTER SERVER modest OPTIONS (ADD "ssl.engine.location" 'x');
ALTER SERVER modest OPTIONS (ADD "ssl.ca.location" 'x');
ALTER SERVER modest OPTIONS (ADD "ssl.certificate.location" 'x');
ALTER SERVER modest OPTIONS (ADD "ssl.key.location" 'x');
ALTER SERVER modest OPTIONS (ADD "ssl.keystore.location" 'x');
ALTER SERVER modest OPTIONS (ADD "sasl.kerberos.kinit.cmd" 'x');
ALTER SERVER modest OPTIONS (ADD "sasl.kerberos.keytab" 'x');
ALTER SERVER modest OPTIONS (ADD "sasl.mechanism" 'GSSAPI');
ALTER SERVER modest OPTIONS (ADD "sasl.mechanisms" 'GSSAPI');
ALTER SERVER modest OPTIONS (ADD "sasl.oauthbearer.token.endpoint.url" 'x');
ALTER SERVER modest OPTIONS (ADD "sasl.oauthbearer.config" 'x');
ALTER SERVER modest OPTIONS (ADD "debug" 'all');
ALTER SERVER modest OPTIONS (ADD extra 'x=y');
\echo :LAST_ERROR_SQLSTATE
ALTER SERVER modest OPTIONS (ADD "security.protocol" 'sasl_ssl');
-- what a superuser set keeps the others from altering the server
RESET ROLE;
ALTER SERVER modest OPTIONS (ADD "debug" 'broker');
SET ROLE regress_outbox_owner;
ALTER SERVER modest OPTIONS (ADD topics 'a');
RESET ROLE;
ROLLBACK TO power;

-- foreign tables and the wrapper itself
CREATE FOREIGN TABLE no_table (a int) SERVER good OPTIONS (topic 'x');
CREATE FOREIGN TABLE no_table (a int OPTIONS (topic 'x')) SERVER good;
ALTER FOREIGN DATA WRAPPER outbox_kafka OPTIONS (SET library '../evil');
ALTER FOREIGN DATA WRAPPER outbox_kafka OPTIONS (SET library '');
ALTER FOREIGN DATA WRAPPER outbox_kafka OPTIONS (DROP library);
ALTER FOREIGN DATA WRAPPER outbox_kafka OPTIONS (ADD "bootstrap.servers" 'x');
\echo :LAST_ERROR_SQLSTATE

ROLLBACK;
