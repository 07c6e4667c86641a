/*-------------------------------------------------------------------------
 *
 * kafka_first.c
 *	  The first record of a partition goes ahead.
 *
 * A mock broker enforces no sequence numbers, as a real one that knows nothing of a
 * producer.  It refuses the first request, in a way that the library tries again, and
 * takes the second, which is on its way by then: the library believes that it has
 * the first one too, and reports it as delivered.
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

#define PRODUCE		0			/* of the protocol's requests */
#define N			8			/* records */
#define RTT_MS		200			/* so long all of them are on their way */

/* Send in order, as the relay does: what has to wait, and all behind it, waits. */
static bool
send_all(OutboxClient *client, const char *topic, int partition, const char *key)
{
	static const char *const payloads[N] = {"0", "1", "2", "3", "4", "5", "6", "7"};
	OutboxError error;
	Tally		tally = {0};
	int			sent = 0;

	for (double until = now() + 20; sent < N && now() < until;)
	{
		OutboxRecord record = {
			.topic = topic, .partition = partition, .key = key,
			.key_len = key ? strlen(key) : 0, .payload = payloads[sent],
			.payload_len = 1, .timestamp_ms = started_ms,
		};

		if (T.send(client, &record, &error) == OUTBOX_OK)
			sent++;
		else
			wait_total(client, &tally, sent, 0.05);
	}
	return wait_total(client, &tally, N, 20) && tally.by[OUTBOX_OK] == N;
}

static void
count_digit(const rd_kafka_message_t *message, void *arg)
{
	int		   *seen = arg;

	seen[((const char *) message->payload)[0] - '0']++;
}

/* A key that leads to this partition of two. */
static const char *
key_to(int partition)
{
	static char keys[2][2] = {"a", "a"};
	char	   *key = keys[partition];

	while (rd_kafka_msg_partitioner_murmur2(NULL, key, 1, 2, NULL, NULL) != partition)
		key[0]++;
	return key;
}

/* Have the client know what partitions there are, and write to the first of them. */
static void
make_known(OutboxClient *client, const char *topic)
{
	Tally		tally = {0};
	OutboxError error;
	OutboxRecord record = {
		.topic = topic, .partition = -1, .key = key_to(0), .key_len = 1,
		.payload = "8", .payload_len = 1, .timestamp_ms = started_ms,
	};

	for (int i = 1; i <= 2; i++)
		ok(T.send(client, &record, &error) == OUTBOX_OK && wait_total(client, &tally, i, 20),
		   "known");
}

/*
 * How many records are not there, of those that were reported as delivered?  Known: the
 * client has written to partition 0 before, and knows what partitions there are.
 */
static int
lose(const char *topic, int partitions, int partition, const char *key, bool known)
{
	Mock		mock = mock_begin(topic, partitions);
	OutboxClient *client = client_open_narrow(false, 1);
	int			seen[N + 1] = {0};
	int			lost = 0;

	if (known)
		make_known(client, topic);
	rd_kafka_mock_broker_set_rtt(mock.cluster, 1, RTT_MS);
	rd_kafka_mock_push_request_errors(mock.cluster, PRODUCE, 1,
									  RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION);
	ok(send_all(client, topic, partition, key), "all are reported as delivered");
	ok(T.close(client, 5000), "closed");
	rd_kafka_mock_broker_set_rtt(mock.cluster, 1, 0);
	consume(topic, partitions, count_digit, seen);
	for (int i = 0; i < N; i++)
		lost += seen[i] == 0;
	mock_end(&mock);
	printf("# lost %d\n", lost);
	return lost;
}

static void
count_partitions(const rd_kafka_message_t *message, void *arg)
{
	int		   *of = arg;

	of[message->partition]++;
}

/* Records without a key stay with a partition for as long as the option says. */
static void
check_sticky(void)
{
	Mock		mock = mock_begin("stays", 3);
	OutboxClient *client;
	OutboxError error;
	Tally		tally = {0};
	int			of[3] = {0};
	int			at_once = 0;

	options[noptions++] = (OutboxOption) {"sticky.partitioning.linger.ms", "60000"};
	client = client_open(false);
	for (int i = 0; i < 3; i++)
		ok(send_one(client, "stays", i, "x", 1, 0, &error) == OUTBOX_OK &&
		   wait_total(client, &tally, i + 1, 20), "a partition is trusted");
	for (int i = 0; i < 100; i++)
		at_once += send_one(client, "stays", -1, "x", 1, 0, &error) == OUTBOX_OK;
	ok(at_once == 100 && wait_total(client, &tally, 103, 20), "where all are, nothing waits");
	ok(T.close(client, 5000), "closed");
	consume("stays", 3, count_partitions, of);
	printf("# %d %d %d\n", of[0], of[1], of[2]);
	ok(of[0] == 101 || of[1] == 101 || of[2] == 101, "all went to one of them");
	noptions--;
	mock_end(&mock);
}

/* Where no key leads to one partition too, it does, and nothing goes elsewhere. */
static void
check_fixed(void)
{
	Mock		mock = mock_begin("fixed", 3);
	OutboxClient *client;
	int			of[3] = {0};

	rd_kafka_mock_broker_set_rtt(mock.cluster, 1, RTT_MS);
	options[noptions++] = (OutboxOption) {"partitioner", "murmur2"};
	client = client_open(false);
	ok(send_all(client, "fixed", -1, NULL), "without a key, to one partition");
	ok(T.close(client, 5000), "closed");
	rd_kafka_mock_broker_set_rtt(mock.cluster, 1, 0);
	consume("fixed", 3, count_partitions, of);
	printf("# %d %d %d\n", of[0], of[1], of[2]);
	ok(of[0] == N || of[1] == N || of[2] == N, "all are there");
	noptions--;
	mock_end(&mock);
}

/* A topic that was in trouble may be another one: its first record goes alone again. */
static void
check_after_trouble(bool sent)
{
	Mock		mock = mock_begin("trouble", 1);
	OutboxClient *client;
	OutboxFailure failure = OUTBOX_OK;
	OutboxError error;
	Tally		tally = {0};
	int			seen[N + 1] = {0};
	int			lost = 0;

	options[noptions++] = (OutboxOption) {"topic.metadata.refresh.interval.ms", "100"};
	options[noptions++] = (OutboxOption) {"topic.metadata.propagation.max.ms", "0"};
	client = client_open_narrow(false, 1);
	ok(send_one(client, "trouble", -1, "8", 1, 0, &error) == OUTBOX_OK &&
	   wait_total(client, &tally, 1, 20), "a topic that is trusted");
	rd_kafka_mock_topic_set_error(mock.cluster, "trouble", RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
	if (sent)
		for (double until = now() + 10; now() < until && failure != OUTBOX_TOPIC;)
		{
			failure = send_one(client, "trouble", -1, "8", 1, 0, &error);
			poll(NULL, 0, 20);
			gather(client, &tally);
		}
	else
		failure = probe(client, "trouble", &error);
	ok(failure == OUTBOX_TOPIC, "is in trouble");
	gather(client, &tally);
	rd_kafka_mock_topic_set_error(mock.cluster, "trouble", RD_KAFKA_RESP_ERR_NO_ERROR);
	for (double until = now() + 10; now() < until && failure != OUTBOX_OK;)
		failure = probe(client, "trouble", &error);
	ok(failure == OUTBOX_OK, "no more");
	rd_kafka_mock_broker_set_rtt(mock.cluster, 1, RTT_MS);
	rd_kafka_mock_push_request_errors(mock.cluster, PRODUCE, 1,
									  RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION);
	ok(send_all(client, "trouble", -1, "key"), "all are reported as delivered");
	rd_kafka_mock_broker_set_rtt(mock.cluster, 1, 0);
	ok(T.close(client, 5000), "closed");
	consume("trouble", 1, count_digit, seen);
	for (int i = 0; i < N; i++)
		lost += seen[i] == 0;
	ok(lost == 0, sent ? "none is lost behind a refusal" : "none is lost behind a look-up");
	noptions -= 2;
	mock_end(&mock);
}

/* A partition without a leader holds up what leads to it, and nothing else. */
static void
check_leaderless(void)
{
	Mock		mock = mock_begin("leaderless", 2);
	OutboxClient *client;
	OutboxFailure failure = OUTBOX_LATER;
	OutboxError error;
	Tally		tally = {0};
	OutboxRecord record = {
		.topic = "leaderless", .partition = -1, .key = key_to(1), .key_len = 1,
		.payload = "x", .payload_len = 1, .timestamp_ms = started_ms,
	};
	int			sent = 0;

	rd_kafka_mock_partition_set_leader(mock.cluster, "leaderless", 1, -1);
	client = client_open(false);
	ok(T.send(client, &record, &error) == OUTBOX_OK, "the first one is for a partition without a leader");
	record.key = key_to(0);
	for (double until = now() + 10; now() < until && failure != OUTBOX_OK;)
	{
		failure = T.send(client, &record, &error);
		wait_total(client, &tally, 1, 0.02);
	}
	ok(failure == OUTBOX_OK && wait_total(client, &tally, 1, 10), "others go on");
	for (double until = now() + 10; now() < until && sent < 100;)
		sent += send_in_turn(client, &tally, "leaderless", -1, "x", 1, 0, &error) == OUTBOX_OK;
	ok(sent == 100 && wait_total(client, &tally, 101, 10) && tally.by[OUTBOX_OK] == 101,
	   "what has no key goes where there is one");
	ok(T.close(client, 5000), "closed");
	mock_end(&mock);
}

/*
 * A topic that the library knows no more, after an outage, though it has records for it:
 * another one does not join them unseen.
 */
static void
check_not_any_more(void)
{
	Mock		mock = mock_begin("not-any-more", 2);
	OutboxClient *client;
	OutboxError error;
	Tally		tally = {0};
	OutboxRecord record = {
		.topic = "not-any-more", .partition = -1, .key = key_to(1), .key_len = 1,
		.payload = "x", .payload_len = 1, .timestamp_ms = started_ms,
	};

	options[noptions++] = (OutboxOption) {"topic.metadata.refresh.interval.ms", "100"};
	client = client_open(false);
	make_known(client, "not-any-more");
	rd_kafka_mock_broker_set_down(mock.cluster, 1);
	poll(NULL, 0, 200);
	ok(T.send(client, &record, &error) == OUTBOX_OK &&
	   T.send(client, &record, &error) == OUTBOX_LATER, "the first one goes alone");
	poll(NULL, 0, 3000);
	ok(T.send(client, &record, &error) == OUTBOX_OK, "another one is kept meanwhile");
	rd_kafka_mock_broker_set_up(mock.cluster, 1);
	ok(wait_total(client, &tally, 2, 20) && tally.by[OUTBOX_OK] == 1 &&
	   tally.by[OUTBOX_PURGED] == 1, "and comes back");
	ok(T.close(client, 5000), "closed");
	noptions--;
	mock_end(&mock);
}

/*
 * Behind a record that is so old that brokers may forget its producer, one goes alone after
 * a pause; else a backlog is sent as any other.
 */
static void
check_old(void)
{
	Mock		mock = mock_begin("old", 1);
	OutboxClient *client = client_open(false);
	OutboxError error;
	Tally		tally = {0};
	OutboxRecord record = {
		.topic = "old", .partition = 0, .payload = "x", .payload_len = 1,
		.timestamp_ms = started_ms - 2 * kafka_remembered_ms,
	};

	for (int i = 0; i < 2; i++)
	{
		ok(T.send(client, &record, &error) == OUTBOX_OK &&
		   T.send(client, &record, &error) == OUTBOX_LATER, "an old record goes alone");
		ok(wait_total(client, &tally, 3 * i + 1, 20) &&
		   T.send(client, &record, &error) == OUTBOX_OK &&
		   T.send(client, &record, &error) == OUTBOX_OK, "others follow together");
		ok(wait_total(client, &tally, 3 * i + 3, 20), "and are stored");
		poll(NULL, 0, 1200);
	}
	ok(T.close(client, 5000), "closed");
	mock_end(&mock);
}

/* One that has waited so long is not joined by another. */
static void
check_silent(void)
{
	Mock		mock = mock_begin("silent", 1);
	int64_t		saved = kafka_remembered_ms;
	OutboxClient *client = client_open(false);
	OutboxTransportStatus status = {0};
	OutboxError error;
	Tally		tally = {0};

	ok(send_one(client, "silent", 0, "x", 1, 0, &error) == OUTBOX_OK &&
	   wait_total(client, &tally, 1, 20), "a partition that is trusted");
	rd_kafka_mock_broker_set_down(mock.cluster, 1);
	poll(NULL, 0, 200);
	send_one(client, "silent", 0, "x", 1, 0, &error);
	kafka_remembered_ms = 500;
	poll(NULL, 0, 700);
	T.status(client, &status);
	ok(!status.failed && send_one(client, "silent", 0, "x", 1, 0, &error) == OUTBOX_LATER,
	   "one that has waited for long stays alone");
	rd_kafka_mock_broker_set_up(mock.cluster, 1);
	ok(wait_total(client, &tally, 2, 20) && send_one(client, "silent", 0, "x", 1, 0, &error) == OUTBOX_OK &&
	   wait_total(client, &tally, 3, 20) && tally.by[OUTBOX_OK] == 3, "until it is stored");
	kafka_remembered_ms = saved;
	ok(T.close(client, 5000), "closed");
	mock_end(&mock);
}

/* A client that has waited so long that brokers may have forgotten it is given up. */
static void
check_forgotten(void)
{
	Mock		mock = mock_begin("forgotten", 1);
	int64_t		saved = kafka_remembered_ms;
	OutboxClient *client = client_open(false);
	OutboxTransportStatus status = {0};
	OutboxError error;
	Tally		tally = {0};

	ok(send_one(client, "forgotten", 0, "x", 1, 0, &error) == OUTBOX_OK &&
	   wait_total(client, &tally, 1, 20), "a partition that is trusted");
	rd_kafka_mock_broker_set_down(mock.cluster, 1);
	poll(NULL, 0, 200);
	for (int i = 0; i < 3; i++)
		send_one(client, "forgotten", 0, "x", 1, 0, &error);
	kafka_remembered_ms = 2000;
	wait_total(client, &tally, 4, 1);
	T.status(client, &status);
	ok(!status.failed && tally.total == 1, "some wait for a while");
	wait_total(client, &tally, 4, 1.5);
	T.status(client, &status);
	ok(status.failed && status.error.failure == OUTBOX_FATAL, "then the client is given up");
	kafka_remembered_ms = saved;
	T.purge(client, true);
	ok(wait_total(client, &tally, 4, 10) && tally.by[OUTBOX_PURGED] == 3, "all come back");
	ok(T.close(client, 5000), "closed");
	mock_end(&mock);
}

void
check_first(void)
{
	ok(lose("keyed", 1, -1, "key", false) == 0, "with a key none is lost");
	ok(lose("next", 2, -1, key_to(1), true) == 0, "nor in another partition");
	ok(lose("unkeyed", 1, -1, NULL, false) == 0, "nor without one");
	ok(lose("several", 3, -1, NULL, false) == 0, "nor where there are several partitions");
	ok(lose("chosen", 1, 0, NULL, false) == 0, "nor where it was chosen");
	ok(lose("chosen-next", 2, 1, NULL, true) == 0, "nor in another one");
	options[noptions++] = (OutboxOption) {"partitioner", "random"};
	ok(lose("random", 1, -1, "key", false) == 0, "nor where keys lead anywhere");
	noptions--;
	options[noptions++] = (OutboxOption) {"sticky.partitioning.linger.ms", "1000"};
	ok(lose("sticky", 3, -1, NULL, false) == 0, "nor where a partition is kept for a while");
	noptions--;
	check_sticky();
	check_fixed();
	check_after_trouble(true);
	check_after_trouble(false);
	check_leaderless();
	check_not_any_more();
	check_old();
	check_silent();
	check_forgotten();
}
