/*-------------------------------------------------------------------------
 *
 * kafka_scenarios.c
 *	  Each promise of the Kafka transport, tried against a real broker.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kafka_driver.h"

static void
seen_values(const rd_kafka_message_t *message, void *arg)
{
	char	   *seen = arg;
	rd_kafka_headers_t *headers;
	const void *value;
	size_t		size;

	*strchr(seen, 0) = message->payload == NULL ? 'N'
		: message->len == 0 ? 'E' : 'V';
	if (!rd_kafka_message_headers(message, &headers) &&
		!rd_kafka_header_get_last(headers, "message-id", &value, &size) &&
		size == 36)
		strcat(seen, "h");
	if (rd_kafka_message_timestamp(message, NULL) == started_ms)
		strcat(seen, "t");
	if (message->key_len == 3)
		strcat(seen, "k");
}

static void
check_basics(void)
{
	char		topic[128];
	char		seen[64] = "";
	OutboxClient *client;
	OutboxError error;
	OutboxTransportStatus status;
	Tally		tally = {0};

	topic_name(topic, "basics");
	topic_admin(topic, 1, NULL);
	client = client_open(false);
	send_keyed(client, topic, -1, "x", 1, 0, &error);
	wait_total(client, &tally, 1, 10);
	send_keyed(client, topic, -1, "", 0, 1, &error);
	wait_total(client, &tally, 2, 10);
	send_keyed(client, topic, 0, NULL, 0, 2, &error);
	ok(wait_total(client, &tally, 3, 10) && tally.by[OUTBOX_OK] == 3,
	   "three records delivered");
	consume(topic, 1, seen_values, seen);
	ok(strcmp(seen, "VhtkEhtkNhtk") == 0,
	   "value, empty value and tombstone, with header, time and key");
	memset(&status, 1, sizeof(status));
	T.status(client, &status);
	ok(status.connected && !status.failed && !status.blocked, "connected");
	ok(send_one(client, topic, 7, "x", 1, 3, &error) == OUTBOX_TOPIC &&
	   strcmp(error.name, "_UNKNOWN_PARTITION") == 0,
	   "a partition that may be missing: TOPIC");
	ok(probe(client, topic, &error) == OUTBOX_OK, "probe: the topic is there");
	ok(send_one(client, topic, 7, "x", 1, 3, &error) == OUTBOX_DEAD,
	   "a partition that is missing: DEAD");
	ok(send_one(client, "no spaces!", -1, "x", 1, 4, &error) == OUTBOX_OK &&
	   wait_total(client, &tally, 4, 10) && tally.by[OUTBOX_DEAD] == 1 &&
	   send_one(client, "no spaces!", -1, "x", 1, 4, &error) == OUTBOX_DEAD,
	   "an impossible topic: DEAD, then at once");
	ok(T.close(client, 5000), "closed");
}

/*
 * That one partition has stored a record says nothing of another: its first record
 * with a key still goes ahead alone.
 */
static void
check_next_partition(void)
{
	char		topic[128];
	OutboxClient *client;
	OutboxError error;
	Tally		tally = {0};
	int			sent = 0;

	topic_name(topic, "first");
	topic_admin(topic, 2, NULL);
	client = client_open(false);
	/* by and by it is known how many partitions there are, and the first is trusted */
	for (double until = now() + 20; now() < until; sent += 2)
	{
		if (send_keyed(client, topic, 0, "x", 1, 0, &error) != OUTBOX_OK ||
			!wait_total(client, &tally, sent + 1, 10) ||
			send_keyed(client, topic, 0, "x", 1, 0, &error) != OUTBOX_OK)
			break;
		if (send_keyed(client, topic, 0, "x", 1, 0, &error) == OUTBOX_OK)
		{
			sent += 3;
			break;
		}
		if (!wait_total(client, &tally, sent + 2, 10))
			break;
	}
	ok(wait_total(client, &tally, sent, 10) && tally.by[OUTBOX_OK] == sent && sent > 2,
	   "a partition that has stored a record takes several at a time");
	ok(send_keyed(client, topic, 1, "x", 1, 0, &error) == OUTBOX_OK &&
	   send_keyed(client, topic, 1, "x", 1, 0, &error) == OUTBOX_LATER,
	   "the first record of another one goes ahead all the same");
	ok(wait_total(client, &tally, sent + 1, 10) &&
	   send_keyed(client, topic, 1, "x", 1, 0, &error) == OUTBOX_OK &&
	   send_keyed(client, topic, 1, "x", 1, 0, &error) == OUTBOX_OK,
	   "and others when it is stored");
	ok(wait_total(client, &tally, sent + 3, 10) && T.close(client, 5000), "closed");
}

static void
check_too_large(void)
{
	enum
	{
		N = 40, BAD = 17
	};
	char		topic[128];
	char	   *big = calloc(1, 20 << 20);
	signed char of_tag[N];
	OutboxClient *client;
	OutboxError error;
	OutboxTransportStatus status;
	Tally		tally = {.of_tag = of_tag};
	int			accepted = 0;
	int			left = 0;

	topic_name(topic, "toolarge");
	topic_admin(topic, 1, "max.message.bytes=9000");
	client = client_open(false);
	ok(send_one(client, topic, -1, big, 18 << 20, 0, &error) == OUTBOX_DEAD,
	   "larger than the client's limit: DEAD at once");
	for (int i = 0; i < N; i++)
		accepted += send_in_turn(client, &tally, topic, -1, big, i == BAD ? 10000 : 100, i,
								 &error) == OUTBOX_OK;
	ok(accepted == N, "a batch with one record too large is accepted");
	wait_total(client, &tally, N, 10);
	T.status(client, &status);
	ok(status.failed && status.error.failure == OUTBOX_FATAL,
	   "its refusal is FATAL for a gapless client");
	printf("# %s: %s\n", status.error.name, status.error.text);
	ok(send_one(client, topic, -1, big, 10, 0, &error) == OUTBOX_FATAL,
	   "nothing more is taken");
	T.purge(client, true);
	wait_total(client, &tally, N, 10);
	printf("# ok %d suspect %d purged %d\n", tally.by[OUTBOX_OK],
		   tally.by[OUTBOX_SUSPECT], tally.by[OUTBOX_PURGED]);
	ok(tally.total == N && of_tag[BAD] == OUTBOX_SUSPECT &&
	   tally.by[OUTBOX_DEAD] == 0, "every record is reported once");
	ok(T.close(client, 5000), "closed");

	client = client_open(true);
	memset(tally.by, 0, sizeof(tally.by));
	tally.total = 0;
	for (int i = 0; i < N; i++)
	{
		if (of_tag[i] != OUTBOX_OK)
			left += send_one(client, topic, -1, big, i == BAD ? 10000 : 100, i,
							 &error) == OUTBOX_OK;
	}
	ok(wait_total(client, &tally, left, 20) && tally.by[OUTBOX_DEAD] == 1 &&
	   of_tag[BAD] == OUTBOX_DEAD && tally.by[OUTBOX_OK] == left - 1,
	   "sent carefully, only the one is DEAD");
	T.status(client, &status);
	ok(!status.failed, "and the careful client lives on");
	ok(T.close(client, 5000), "closed");
	ok(consume(topic, 1, NULL, NULL) == N - 1, "each of the others is there once");
	free(big);
}

/* A topic deleted while records for it are on their way. */
static void
check_deleted_topic(OutboxClient *client, const char *topic)
{
	OutboxError error;
	Tally		tally = {0};
	bool		deleted = false;
	int			sent = 0;
	double		start;

	for (start = now(); now() - start < 8;)
	{
		if (!deleted && now() - start > 1)
		{
			topic_admin(topic, 0, NULL);
			deleted = true;
		}
		for (int i = 0; i < 20; i++)
			sent += send_one(client, topic, -1, "x", 1, i, &error) == OUTBOX_OK;
		gather(client, &tally);
		poll(NULL, 0, 1);
	}
	wait_total(client, &tally, sent, 10);
	printf("# sent %d: ok %d topic %d other %d\n", sent, tally.by[OUTBOX_OK],
		   tally.by[OUTBOX_TOPIC], tally.total - tally.by[OUTBOX_OK] -
		   tally.by[OUTBOX_TOPIC]);
	ok(tally.total == sent, "a topic deleted under load: all are reported");
}

static void
check_missing_topic(void)
{
	char		here[128];
	char		missing[128];
	OutboxClient *client;
	OutboxError error;
	Tally		tally = {0};
	double		start;
	double		took = 0;

	topic_name(here, "here");
	topic_name(missing, "missing");
	topic_admin(here, 1, NULL);
	client = client_open(false);
	start = now();
	for (int i = 0; i < 100; i++)
	{
		send_one(client, missing, -1, "x", 1, i, &error);
		send_in_turn(client, &tally, here, -1, "x", 1, i, &error);
	}
	wait_total(client, &tally, 100, 5);
	took = now() - start;
	ok(tally.by[OUTBOX_OK] == 100 && took < 3,
	   "another topic is not held up by a missing one");
	wait_total(client, &tally, 101, 20);
	printf("# reported missing after %.1f s\n", now() - start);
	ok(tally.by[OUTBOX_TOPIC] == 1 && now() - start < 8,
	   "a missing topic is reported as TOPIC");
	ok(send_one(client, missing, -1, "x", 1, 0, &error) == OUTBOX_TOPIC &&
	   probe(client, missing, &error) == OUTBOX_TOPIC &&
	   strstr(error.name, "UNKNOWN_TOPIC") != NULL, "send and probe say so");
	topic_admin(missing, 1, NULL);
	start = now();
	while (probe(client, missing, &error) != OUTBOX_OK && now() - start < 10)
		;
	printf("# found after %.1f s\n", now() - start);
	for (int i = 0; i < 100; i++)
		send_in_turn(client, &tally, missing, -1, "x", 1, i, &error);
	ok(wait_total(client, &tally, 201, 10) && tally.by[OUTBOX_OK] == 200 &&
	   consume(missing, 1, NULL, NULL) == 100,
	   "once created, the same client delivers");
	check_deleted_topic(client, missing);
	ok(T.close(client, 5000), "closed");
}
static void
check_purge_and_down(void)
{
	char		topic[128];
	OutboxClient *client;
	OutboxError error;
	OutboxTransportStatus status;
	Tally		tally = {0};
	OutboxOption saved = options[0];
	double		start;

	/* nobody listens there */
	options[0].value = "127.0.0.1:9";
	client = client_open(false);
	for (int i = 0; i < 1000; i++)
	{
		snprintf(topic, sizeof(topic), "any-%d", i);
		send_one(client, topic, -1, "x", 1, i, &error);
	}
	wait_total(client, &tally, 1, 2);
	T.status(client, &status);
	printf("# %s: %s\n", status.error.name, status.error.text);
	ok(!status.connected && !status.failed && status.nerrors > 0 &&
	   status.error.failure == OUTBOX_RETRY, "no broker: status only");
	T.purge(client, true);
	ok(wait_total(client, &tally, 1000, 5) && tally.by[OUTBOX_PURGED] == 1000,
	   "purge returns everything without a broker");
	start = now();
	ok(T.close(client, 5000) && now() - start < 3, "closed soon");
	options[0] = saved;

	topic_name(topic, "purge");
	topic_admin(topic, 1, NULL);
	client = client_open(false);
	memset(&tally, 0, sizeof(tally));
	for (int i = 0; i < 100000; i++)
		send_in_turn(client, &tally, topic, -1, "x", 1, i, &error);
	T.purge(client, true);
	ok(wait_total(client, &tally, 100000, 10) &&
	   tally.by[OUTBOX_OK] + tally.by[OUTBOX_PURGED] == 100000,
	   "purge under load returns everything");
	printf("# ok %d purged %d\n", tally.by[OUTBOX_OK], tally.by[OUTBOX_PURGED]);
	T.status(client, &status);
	ok(!status.failed, "which is not a failure");
	ok(T.close(client, 5000), "closed");
	client = client_open(false);
	for (int i = 0; i < 100000; i++)
		send_in_turn(client, &tally, topic, -1, "x", 1, i, &error);
	ok(T.close(client, 5000), "closed with records in flight");
}

/* Let only this principal do this on the topic. */
static void
acl_admin(const char *topic, const char *principal,
		  rd_kafka_AclOperation_t operation)
{
	char		errstr[256];
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_AclBinding_t *acl;
	rd_kafka_t *rk;
	rd_kafka_queue_t *queue;
	rd_kafka_event_t *event;

	rd_kafka_conf_set(conf, "bootstrap.servers", bootstrap, NULL, 0);
	rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, errstr, sizeof(errstr));
	queue = rd_kafka_queue_new(rk);
	acl = rd_kafka_AclBinding_new(RD_KAFKA_RESOURCE_TOPIC, topic,
								  RD_KAFKA_RESOURCE_PATTERN_LITERAL, principal,
								  "*", operation,
								  RD_KAFKA_ACL_PERMISSION_TYPE_ALLOW,
								  errstr, sizeof(errstr));
	rd_kafka_CreateAcls(rk, &acl, 1, NULL, queue);
	rd_kafka_AclBinding_destroy(acl);
	event = rd_kafka_queue_poll(queue, 20000);
	if (event == NULL || rd_kafka_event_error(event))
		printf("# acl on %s: failed\n", topic);
	if (event)
		rd_kafka_event_destroy(event);
	rd_kafka_queue_destroy(queue);
	rd_kafka_destroy(rk);
}

/* Fill options[] for a SASL/PLAIN listener. */
static void
use_sasl(const char *listener, const char *password)
{
	options[0].value = listener;
	noptions = 1;
	options[noptions++] = (OutboxOption) {"security.protocol", "sasl_plaintext"};
	options[noptions++] = (OutboxOption) {"sasl.mechanism", "PLAIN"};
	options[noptions++] = (OutboxOption) {"sasl.username", "app"};
	options[noptions++] = (OutboxOption) {"sasl.password", password};
}

/* The password is wrong. */
static void
check_password(const char *listener)
{
	OutboxClient *client;
	OutboxError error;
	OutboxTransportStatus status;
	Tally		tally = {0};

	use_sasl(listener, "wrong-secret");
	client = client_open(false);
	send_one(client, "any", -1, "x", 1, 0, &error);
	wait_total(client, &tally, 1, 2);
	T.status(client, &status);
	printf("# %s: %s\n# %s\n", status.error.name, status.error.text,
		   status.error.hint);
	ok(!status.connected && !status.failed &&
	   status.error.failure == OUTBOX_CONFIG &&
	   !strstr(status.error.text, "wrong-secret"),
	   "a wrong password: CONFIG, not failed, no secret");
	ok(T.close(client, 5000), "closed");
}

/*
 * Needs a second listener (SASL_BOOTSTRAP) with user app, password
 * app-secret, and an authorizer that allows where no ACL is found.
 */
static void
check_forbidden(const char *listener)
{
	char		hidden[128];
	char		read_only[128];
	char		free_topic[128];
	OutboxClient *client;
	OutboxError error;
	OutboxTransportStatus status;
	Tally		tally = {0};
	double		start;

	topic_name(hidden, "hidden");
	topic_name(read_only, "readonly");
	topic_name(free_topic, "free");
	topic_admin(hidden, 1, NULL);
	topic_admin(read_only, 1, NULL);
	topic_admin(free_topic, 1, NULL);
	acl_admin(hidden, "User:admin", RD_KAFKA_ACL_OPERATION_WRITE);
	acl_admin(read_only, "User:app", RD_KAFKA_ACL_OPERATION_DESCRIBE);

	use_sasl(listener, "app-secret");
	client = client_open(false);
	start = now();
	for (int i = 0; i < 10; i++)
	{
		send_one(client, hidden, -1, "x", 1, i, &error);
		send_in_turn(client, &tally, free_topic, -1, "x", 1, i, &error);
	}
	wait_total(client, &tally, 11, 15);
	printf("# after %.1f s %s\n", now() - start, tally.name);
	T.status(client, &status);
	ok(tally.by[OUTBOX_TOPIC] == 1 && tally.by[OUTBOX_OK] == 10 &&
	   !status.failed, "a hidden topic is TOPIC, others go on");
	ok(probe(client, hidden, &error) == OUTBOX_TOPIC &&
	   strcmp(error.name, "TOPIC_AUTHORIZATION_FAILED") == 0,
	   "and the probe says so");

	memset(&tally, 0, sizeof(tally));
	for (int i = 0; i < 10; i++)
		send_one(client, read_only, -1, "x", 1, i, &error);
	wait_total(client, &tally, 1, 10);
	T.status(client, &status);
	printf("# %s: %s\n", status.error.name, status.error.text);
	ok(tally.by[OUTBOX_TOPIC] == 1 && status.failed &&
	   status.error.failure == OUTBOX_FATAL,
	   "a topic we may see but not write: TOPIC, and a new client is due");
	ok(T.close(client, 5000), "closed");
	client = client_open(false);
	ok(send_one(client, read_only, -1, "x", 1, 0, &error) == OUTBOX_TOPIC &&
	   probe(client, read_only, &error) == OUTBOX_TOPIC,
	   "the new client does not fall for it at once");
	acl_admin(read_only, "User:app", RD_KAFKA_ACL_OPERATION_WRITE);
	memset(&tally, 0, sizeof(tally));
	start = now();
	while (probe(client, read_only, &error) != OUTBOX_OK && now() - start < 15)
		poll(NULL, 0, 50);
	printf("# probed fine after %.1f s\n", now() - start);
	send_one(client, read_only, -1, "x", 1, 0, &error);
	ok(wait_total(client, &tally, 1, 10) && tally.by[OUTBOX_OK] == 1,
	   "once granted, it is delivered");
	ok(T.close(client, 5000), "closed");
}

static void
check_options(void)
{
	OutboxTransportConfig config = {.server_name = "s", .max_bytes = 1 << 20,
	.max_message_size = 1 << 20, .options = options};
	OutboxError error;
	int			saved = noptions;

	options[noptions++] = (OutboxOption) {"sasl.mechanism", "hunter2"};
	options[noptions++] = (OutboxOption) {"linger.ms", "hunter2"};
	config.noptions = noptions;
	ok(T.open(&config, &error) == NULL && error.failure == OUTBOX_CONFIG &&
	   strstr(error.text, "linger.ms") && !strstr(error.text, "hunter2"),
	   "a bad value: CONFIG names the option, not the value");
	options[noptions - 1] = (OutboxOption) {"no.such", "1"};
	ok(T.open(&config, &error) == NULL && error.failure == OUTBOX_CONFIG &&
	   strstr(error.text, "no.such"), "an unknown option: CONFIG");
	options[noptions - 1] = (OutboxOption) {"security.protocol", "sasl_plaintext"};
	ok(T.open(&config, &error) == NULL && error.failure == OUTBOX_CONFIG &&
	   !strstr(error.text, "secret"), "contradicting options: CONFIG");
	printf("# %s\n", error.text);
	noptions = 1;
	config.noptions = 0;
	ok(T.open(&config, &error) == NULL && error.failure == OUTBOX_CONFIG,
	   "no bootstrap servers: CONFIG");
	noptions = saved;
}

/* Everything; the forbidden topics only where there is such a listener. */
void
check_all(void)
{
	const char *listener = getenv("SASL_BOOTSTRAP");
	OutboxOption saved = options[0];
	int			nsaved = noptions;

	check_options();
	check_basics();
	check_headers();
	check_next_partition();
	check_first();
	check_too_large();
	check_missing_topic();
	check_purge_and_down();
	if (listener != NULL)
	{
		check_password(listener);
		check_forbidden(listener);
		options[0] = saved;
		noptions = nsaved;
	}
}
