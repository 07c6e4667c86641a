-- Options of NATS servers and their user mappings, and every error about them.
-- All in one transaction that is rolled back: no relay starts.
SET client_min_messages = error;
CREATE EXTENSION IF NOT EXISTS pg_outbox;
RESET client_min_messages;
\set ON_ERROR_ROLLBACK on
BEGIN;

-- what is fine
CREATE SERVER good FOREIGN DATA WRAPPER outbox_nats OPTIONS (
    url 'nats://host1:4222, tls://host2, nats://[::1]:4222', stream 'EVENTS', create_stream 'true',
    replicas '3', subject_prefix 'shop.', tls_verify 'full', tls_ca '-----BEGIN CERTIFICATE-----',
    topics 'orders.*', topic_timeout '5 min');
CREATE USER MAPPING FOR PUBLIC SERVER good OPTIONS ("user" 'app', password 'secret',
    tls_certificate '-----BEGIN CERTIFICATE-----', tls_key '-----BEGIN PRIVATE KEY-----');
ALTER USER MAPPING FOR PUBLIC SERVER good OPTIONS (DROP "user", DROP password, ADD token 'secret');
ALTER USER MAPPING FOR PUBLIC SERVER good OPTIONS (DROP token,
    ADD nkey_seed 'SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY');
ALTER USER MAPPING FOR PUBLIC SERVER good OPTIONS (DROP nkey_seed, ADD credentials
    '-----BEGIN NATS USER JWT-----
eyJ0
-----BEGIN USER NKEY SEED-----
SUAC');
ALTER SERVER good OPTIONS (DROP subject_prefix, SET tls_verify 'none', SET create_stream 'false');

-- where the servers are
CREATE SERVER bad FOREIGN DATA WRAPPER outbox_nats;
\echo :LAST_ERROR_SQLSTATE
CREATE SERVER bad FOREIGN DATA WRAPPER outbox_nats OPTIONS (url 'nats://a');
\echo :LAST_ERROR_SQLSTATE
ALTER SERVER good OPTIONS (SET url '');
ALTER SERVER good OPTIONS (SET url 'host1:4222');
ALTER SERVER good OPTIONS (SET url 'http://host1');
ALTER SERVER good OPTIONS (SET url 'nats://');
ALTER SERVER good OPTIONS (SET url 'nats://a,');
ALTER SERVER good OPTIONS (SET url 'nats://a:0');
ALTER SERVER good OPTIONS (SET url 'nats://a:b');
ALTER SERVER good OPTIONS (SET url 'nats://a/b');
ALTER SERVER good OPTIONS (SET url 'nats://[::1');
ALTER SERVER good OPTIONS (SET url 'nats://app:secret@a');
\echo :LAST_ERROR_SQLSTATE

-- names and values
ALTER SERVER good OPTIONS (ADD urls 'nats://a');
ALTER SERVER good OPTIONS (ADD "something.else" '5');
ALTER SERVER good OPTIONS (SET stream '');
ALTER SERVER good OPTIONS (SET stream 'a.b');
ALTER SERVER good OPTIONS (SET stream 'a b');
ALTER SERVER good OPTIONS (DROP stream);
ALTER SERVER good OPTIONS (SET create_stream 'perhaps');
ALTER SERVER good OPTIONS (SET replicas '6');
ALTER SERVER good OPTIONS (ADD subject_prefix 'a..');
ALTER SERVER good OPTIONS (ADD subject_prefix 'a.*.');
ALTER SERVER good OPTIONS (ADD subject_prefix '$JS.');
ALTER SERVER good OPTIONS (SET tls_verify 'maybe');
ALTER SERVER good OPTIONS (SET tls_ca '/etc/ca.pem');
ALTER SERVER good OPTIONS (ADD password 'secret');
ALTER SERVER good OPTIONS (ADD credentials 'secret');
ALTER USER MAPPING FOR PUBLIC SERVER good OPTIONS (ADD stream 'a');
ALTER USER MAPPING FOR PUBLIC SERVER good OPTIONS (SET tls_key 'secret');
ALTER USER MAPPING FOR PUBLIC SERVER good OPTIONS (ADD nkey_seed 'secret');
ALTER USER MAPPING FOR PUBLIC SERVER good OPTIONS (SET credentials 'secret');

-- what a NATS server takes
SELECT outbox.publish('orders.eu.placed', 'payload'::text, NULL, '{"Größe": "x"}') IS NOT NULL AS fine;
ALTER SERVER good OPTIONS (SET topics '*');
SELECT outbox.publish('orders placed', 'payload'::text);
SELECT outbox.publish('.orders', 'payload'::text);
SELECT outbox.publish('orders.', 'payload'::text);
SELECT outbox.publish('orders..placed', 'payload'::text);
SELECT outbox.publish('orders.*.placed', 'payload'::text);
SELECT outbox.publish('orders.>', 'payload'::text);
SELECT outbox.publish('$SYS.orders', 'payload'::text);
SELECT outbox.publish('_INBOX.orders', 'payload'::text);
SELECT outbox.publish('orders', 'payload'::text, NULL, '{"nats-Msg-Id": "x"}');
SELECT outbox.publish('orders', 'payload'::text, NULL, '{"outbox-key": "x"}');
SELECT outbox.publish('orders', 'payload'::text, NULL, '{"a b": "x"}');
SELECT outbox.publish('orders', 'payload'::text, NULL, '{"a:b": "x"}');
ROLLBACK;
