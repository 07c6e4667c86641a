-- Options of RabbitMQ servers and their user mappings, and every error about them.
-- All in one transaction that is rolled back: no relay starts.
SET client_min_messages = error;
CREATE EXTENSION IF NOT EXISTS pg_outbox;
RESET client_min_messages;
\set ON_ERROR_ROLLBACK on
BEGIN;

-- what is fine
CREATE SERVER good FOREIGN DATA WRAPPER outbox_rabbitmq OPTIONS (
    url 'amqp://broker1:5672/shop, amqps://broker2, amqp://[::1]:5672/%2F', exchange 'events',
    "declare" 'topic', mandatory 'true', heartbeat '10', tls_verify 'full',
    tls_ca '-----BEGIN CERTIFICATE-----', topics 'orders.*', topic_timeout '5 min');
CREATE USER MAPPING FOR PUBLIC SERVER good OPTIONS ("user" 'app', password 'secret',
    tls_certificate '-----BEGIN CERTIFICATE-----', tls_key '-----BEGIN PRIVATE KEY-----');
ALTER SERVER good OPTIONS (SET "declare" 'fanout', SET tls_verify 'none');

-- where the brokers are
CREATE SERVER bad FOREIGN DATA WRAPPER outbox_rabbitmq;
\echo :LAST_ERROR_SQLSTATE
ALTER SERVER good OPTIONS (SET url '');
ALTER SERVER good OPTIONS (SET url 'broker1:5672');
ALTER SERVER good OPTIONS (SET url 'http://broker1');
ALTER SERVER good OPTIONS (SET url 'amqp://');
ALTER SERVER good OPTIONS (SET url 'amqp://a,');
ALTER SERVER good OPTIONS (SET url 'amqp://a:0');
ALTER SERVER good OPTIONS (SET url 'amqp://a:b');
ALTER SERVER good OPTIONS (SET url 'amqp://a/b/c');
ALTER SERVER good OPTIONS (SET url 'amqp://a/b%2');
ALTER SERVER good OPTIONS (SET url 'amqp://[::1');
ALTER SERVER good OPTIONS (SET url 'amqp://app:secret@a');
\echo :LAST_ERROR_SQLSTATE

-- names and values
ALTER SERVER good OPTIONS (ADD urls 'amqp://a');
ALTER SERVER good OPTIONS (ADD "something.else" '5');
ALTER SERVER good OPTIONS (SET "declare" 'headers');
ALTER SERVER good OPTIONS (SET mandatory 'perhaps');
ALTER SERVER good OPTIONS (SET heartbeat '0');
ALTER SERVER good OPTIONS (SET tls_verify 'maybe');
ALTER SERVER good OPTIONS (SET tls_ca '/etc/ca.pem');
ALTER SERVER good OPTIONS (DROP exchange);
ALTER SERVER good OPTIONS (ADD password 'secret');
ALTER USER MAPPING FOR PUBLIC SERVER good OPTIONS (ADD exchange 'a');
ALTER USER MAPPING FOR PUBLIC SERVER good OPTIONS (SET tls_key 'secret');

-- what a RabbitMQ server takes
SELECT outbox.publish(repeat('x', 255), 'payload'::text) IS NOT NULL AS fine;
ALTER SERVER good OPTIONS (SET topics '*');
SELECT outbox.publish(repeat('x', 256), 'payload'::text);
SELECT outbox.publish('orders', 'payload'::text, NULL, '{"CC": "other"}');
SELECT outbox.publish('orders', 'payload'::text, NULL, jsonb_build_object(repeat('n', 256), 'x'));
ROLLBACK;
