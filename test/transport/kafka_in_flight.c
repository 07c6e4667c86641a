/*-------------------------------------------------------------------------
 *
 * kafka_in_flight.c
 *	  A refused batch while others are on their way: what is sent twice?
 *
 * One client sends to many partitions, and a record that its topic refuses
 * in between.  The client goes fatal; it is given up as the relay does it
 * (queue back, in flight to its end, the rest back), and what came back is
 * sent again by another client.  A consumer counts.  Where requests are
 * slow to end, they can be given up too.
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

#define PARTITIONS		6
#define N				60000
#define PER_TURN		500
#define IN_FLIGHT_WAIT	5.0		/* seconds */

typedef struct Load
{
	char		topic[128];		/* of the many */
	char		poisoned[128];	/* of the one that is refused */
	bool		at_once;		/* give up what is in flight at once */
	int			max_batch;
	size_t		size;			/* of a payload */
	char	   *values;
	signed char of_tag[N + 1];	/* the last: of the refused one */
	unsigned char seen[N];
	int			again;
} Load;

static OutboxFailure
send_number(OutboxClient *client, Load *load, Tally *tally, int i, OutboxError *error)
{
	char	   *value = load->values + (size_t) i * load->size;

	sprintf(value, "%d", i);
	return send_in_turn(client, tally, load->topic, i % PARTITIONS, value, load->size, i,
						error);
}

static OutboxFailure
send_poison(OutboxClient *client, Load *load, OutboxError *error)
{
	OutboxRecord record = {
		.topic = load->poisoned, .partition = 0, .payload = "x",
		.payload_len = 1, .timestamp_ms = started_ms, .tag = (void *) N,
	};

	return T.send(client, &record, error);
}

/* Send until the client fails; how many are out. */
static int
send_until_fatal(OutboxClient *client, Load *load, Tally *tally)
{
	OutboxError error;
	OutboxTransportStatus status = {0};
	bool		poisoned = false;
	int			next = 0;
	int			sent = 0;

	for (double until = now() + 30; !status.failed && now() < until;)
	{
		for (int i = 0; i < PER_TURN && next < N; i++)
		{
			if (send_number(client, load, tally, next, &error) != OUTBOX_OK)
				break;
			next++;
			sent++;
		}
		/* once answers come, so that requests to all partitions are out */
		if (!poisoned && tally->by[OUTBOX_OK] > 0 &&
			send_poison(client, load, &error) == OUTBOX_OK)
		{
			poisoned = true;
			sent++;
		}
		gather(client, tally);
		T.status(client, &status);
	}
	return sent;
}

/* Everything that is not acknowledged, again, carefully where need be. */
static void
send_again(Load *load, int max_batch)
{
	OutboxClient *client;
	OutboxError error;
	Tally		tally = {.of_tag = load->of_tag};
	int			sent = 0;

	if (load->of_tag[N] != OUTBOX_OK)
	{
		client = client_open(true);
		send_poison(client, load, &error);
		wait_total(client, &tally, 1, 20);
		T.close(client, 5000);
	}
	memset(&tally, 0, sizeof(tally));
	tally.of_tag = load->of_tag;
	client = client_open_narrow(false, max_batch);
	for (int i = 0; i < N; i++)
	{
		if (load->of_tag[i] == OUTBOX_OK)
			continue;
		while (send_number(client, load, &tally, i, &error) == OUTBOX_RETRY)
			gather(client, &tally);
		sent++;
	}
	wait_total(client, &tally, sent, 30);
	T.close(client, 5000);
}

static void
count_number(const rd_kafka_message_t *message, void *arg)
{
	Load	   *load = arg;
	int			i = atoi(message->payload);

	if (i >= 0 && i < N && load->seen[i]++ > 0)
		load->again++;
}

/* How many records are there twice? */
static int
refuse_in_flight(bool at_once, size_t size)
{
	Load	   *load = calloc(1, sizeof(Load));
	OutboxClient *client;
	Tally		tally = {.of_tag = load->of_tag};
	int			sent;
	int			found;
	int			again;
	int			ok_before;

	topic_name(load->topic, "inflight");
	topic_name(load->poisoned, "compacted");
	sprintf(strchr(load->topic, 0), "-%d-%d", at_once, (int) size);
	sprintf(strchr(load->poisoned, 0), "-%d-%d", at_once, (int) size);
	topic_admin(load->topic, PARTITIONS, NULL);
	topic_admin(load->poisoned, 1, "cleanup.policy=compact");
	load->size = size;
	load->values = calloc(N, size);
	memset(load->of_tag, OUTBOX_PURGED, sizeof(load->of_tag));
	client = client_open(false);
	sent = send_until_fatal(client, load, &tally);
	ok_before = tally.by[OUTBOX_OK];

	if (!at_once)
	{
		T.purge(client, false);
		wait_total(client, &tally, sent, IN_FLIGHT_WAIT);
		printf("# sent %d: ok %d before, %d after; purged %d, suspect %d, open %d\n",
			   sent, ok_before, tally.by[OUTBOX_OK] - ok_before,
			   tally.by[OUTBOX_PURGED], tally.by[OUTBOX_SUSPECT],
			   sent - tally.total);
	}
	T.purge(client, true);
	ok(wait_total(client, &tally, sent, 5), "all are reported");
	ok(T.close(client, 5000), "closed");
	ok(load->of_tag[N] == OUTBOX_SUSPECT, "the refused one is suspect");

	send_again(load, 0);
	ok(load->of_tag[N] == OUTBOX_DEAD, "and refused alone");
	found = consume(load->topic, PARTITIONS, count_number, load);
	again = load->again;
	printf("# %s, %d bytes: %d found, %d of them again\n",
		   at_once ? "given up at once" : "in flight to its end",
		   (int) size, found, again);
	ok(found - again == N, "each is there");
	topic_admin(load->topic, 0, NULL);
	topic_admin(load->poisoned, 0, NULL);
	free(load->values);
	free(load);
	return again;
}

/* With small batches fewer are refused together, and none is lost track of. */
static void
check_narrow(void)
{
	enum
	{
		RECORDS = 2000, BAD = 1234, BATCH = 100
	};
	char		topic[128];
	char	   *big = calloc(1, 20000);
	signed char of_tag[RECORDS];
	OutboxClient *client;
	OutboxError error;
	Tally		tally = {.of_tag = of_tag};

	topic_name(topic, "narrow");
	topic_admin(topic, 1, "max.message.bytes=15000");
	client = client_open_narrow(false, BATCH);
	for (int i = 0; i < RECORDS; i++)
		send_in_turn(client, &tally, topic, 0, big, i == BAD ? 20000 : 50, i, &error);
	wait_total(client, &tally, RECORDS, 2);
	T.purge(client, false);
	ok(wait_total(client, &tally, RECORDS, 5),
	   "nothing in flight: purging the queue ends it");
	printf("# narrow: ok %d suspect %d purged %d\n", tally.by[OUTBOX_OK],
		   tally.by[OUTBOX_SUSPECT], tally.by[OUTBOX_PURGED]);
	ok(of_tag[BAD] == OUTBOX_SUSPECT && tally.by[OUTBOX_SUSPECT] <= BATCH &&
	   tally.by[OUTBOX_OK] >= BAD - BATCH,
	   "of small batches one is refused, and all before it are there");
	ok(T.close(client, 5000), "closed");
	topic_admin(topic, 0, NULL);
	free(big);
}

/* A broker that does not answer: the queue comes back, the rest when asked. */
static void
check_slow_broker(void)
{
	enum
	{
		RECORDS = 3000, BATCH = 100
	};
	const char *topic = "slow";
	Mock		mock = mock_begin(topic, 1);
	OutboxClient *client;
	OutboxError error;
	OutboxTransportStatus status;
	Tally		tally = {0};
	int			open;

	client = client_open_narrow(false, BATCH);
	send_one(client, topic, 0, "x", 1, 0, &error);
	ok(wait_total(client, &tally, 1, 10), "a broker that answers");
	rd_kafka_mock_broker_set_rtt(mock.cluster, 1, 30000);
	for (int i = 1; i < RECORDS; i++)
		send_one(client, topic, 0, "x", 1, i, &error);
	wait_total(client, &tally, 2, 0.5);	/* requests are out */
	T.purge(client, false);
	wait_total(client, &tally, RECORDS, 1);
	open = RECORDS - tally.total;
	printf("# slow: purged %d, open %d\n", tally.by[OUTBOX_PURGED], open);
	ok(tally.by[OUTBOX_PURGED] > 0 && open > 0 && open <= 5 * BATCH,
	   "the queue is given back, and nothing that is on its way");
	T.purge(client, true);
	ok(wait_total(client, &tally, RECORDS, 2) &&
	   tally.by[OUTBOX_PURGED] == RECORDS - 1, "then that too");
	T.status(client, &status);
	ok(!status.failed, "which is not a failure");
	ok(T.close(client, 5000), "closed");
	mock_end(&mock);
}

void
check_in_flight(void)
{
	ok(refuse_in_flight(false, 200) == 0,
	   "what was in flight elsewhere is not sent twice");
	check_narrow();
	check_slow_broker();
}

/* The same several times, both ways. */
int
measure_in_flight(int rounds, int size)
{
	int			twice[2] = {0, 0};
	int			bad[2] = {0, 0};

	for (int i = 0; i < 2 * rounds; i++)
	{
		int			again = refuse_in_flight(i % 2, size);

		twice[i % 2] += again;
		bad[i % 2] += again > 0;
	}
	printf("in flight to its end: %d sent twice, in %d rounds of %d\n"
		   "given up at once: %d sent twice, in %d rounds of %d\n",
		   twice[0], bad[0], rounds, twice[1], bad[1], rounds);
	return 0;
}
