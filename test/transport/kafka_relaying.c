/*-------------------------------------------------------------------------
 *
 * kafka_relaying.c
 *	  A relay in small: what the real one does with each kind of report.
 *
 * Records 0 .. n-1 of one key go to one topic in order, through fatal errors
 * and refused records.  Judged by what a consumer
 * reads: each record's first appearance in order, none missing but the dead.
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

#define IDLE		(-1)		/* of_tag: not sent, or to be sent again */
#define IN_FLIGHT	(-2)

typedef struct Relay
{
	const char *topic;
	int			n;
	char	   *values;			/* 12 bytes each */
	int			big;			/* this one has big_size bytes; -1: none */
	char	   *big_value;
	size_t		big_size;
	signed char *state;			/* of each record */
	int			fatals;
	int			holds;			/* times the topic was waited for */
	int			dead;
} Relay;

/* The first record that is not settled. */
static int
first_open(const Relay *relay)
{
	int			i = 0;

	while (i < relay->n && (relay->state[i] == OUTBOX_OK ||
							relay->state[i] == OUTBOX_DEAD))
		i++;
	return i;
}

static OutboxFailure
send_number(OutboxClient *client, Relay *relay, int i, OutboxError *error)
{
	char	   *value = relay->values + (size_t) i * 12;
	size_t		size = strlen(value) + 1;

	if (i == relay->big)
	{
		value = relay->big_value;
		size = relay->big_size;
	}
	return send_one(client, relay->topic, 0, value, size, i, error);
}

/*
 * Feed [from, to) in order until all is settled, or the topic has to be
 * waited for, or the client has failed; then let what is in flight come home.
 */
static OutboxFailure
feed(OutboxClient *client, Relay *relay, int to)
{
	Tally		tally = {.of_tag = relay->state};
	OutboxError error = {0};
	OutboxTransportStatus status;
	OutboxFailure stop = OUTBOX_OK;
	int			next = first_open(relay);
	int			sent = 0;

	while (stop == OUTBOX_OK && (next < to || tally.total < sent))
	{
		for (int i = 0; i < 2000 && next < to && sent - tally.total < 50000; i++)
		{
			OutboxFailure failure;

			if (relay->state[next] == OUTBOX_OK ||
				relay->state[next] == OUTBOX_DEAD)
			{
				next++;
				continue;
			}
			failure = send_number(client, relay, next, &error);
			if (failure == OUTBOX_OK)
			{
				relay->state[next++] = IN_FLIGHT;
				sent++;
				continue;
			}
			if (failure != OUTBOX_RETRY && failure != OUTBOX_LATER)
				stop = failure;
			break;
		}
		wait_total(client, &tally, tally.total + (sent > tally.total), 0.05);
		T.status(client, &status);
		if (status.failed)
			stop = OUTBOX_FATAL;
		else if (tally.by[OUTBOX_TOPIC] > 0)
			stop = OUTBOX_TOPIC;
	}
	if (stop == OUTBOX_FATAL)
	{
		wait_total(client, &tally, sent, 2);
		T.purge(client, true);
	}
	if (!wait_total(client, &tally, sent, 20))
		ok(false, "all that was accepted is reported");
	return stop;
}

/* One record after the other, up to the last that was refused with others. */
static void
feed_carefully(Relay *relay)
{
	OutboxClient *client;
	int			last = relay->n - 1;

	while (last >= 0 && relay->state[last] != OUTBOX_SUSPECT)
		last--;
	if (last < 0)
		return;
	client = client_open(true);
	feed(client, relay, last + 1);
	T.close(client, 5000);
}

static void
run(Relay *relay)
{
	OutboxClient *client = client_open(false);
	OutboxError error;
	double		start = now();

	while (first_open(relay) < relay->n && now() - start < 120)
	{
		OutboxFailure failure = feed(client, relay, relay->n);

		if (failure == OUTBOX_FATAL)
		{
			relay->fatals++;
			T.close(client, 5000);
			feed_carefully(relay);
			client = client_open(false);
		}
		else if (failure == OUTBOX_TOPIC)
		{
			relay->holds++;
			while (probe(client, relay->topic, &error) != OUTBOX_OK &&
				   now() - start < 120)
				;
		}
	}
	T.close(client, 5000);
	for (int i = 0; i < relay->n; i++)
		relay->dead += relay->state[i] == OUTBOX_DEAD;
}

typedef struct Reading
{
	Relay	   *relay;
	int			highest;
	int			found;
	int			again;
	int			overtaken;
} Reading;

static void
read_number(const rd_kafka_message_t *message, void *arg)
{
	Reading    *reading = arg;
	int			number = atoi(message->payload);

	if (number <= reading->highest)
		reading->again++;
	else
	{
		/* only a dead one may be missing in between */
		for (int i = reading->highest + 1; i < number; i++)
			reading->overtaken += i != reading->relay->big;
		reading->highest = number;
		reading->found++;
	}
}

static Relay
relay_new(const char *topic, int n)
{
	Relay		relay = {.topic = topic, .n = n, .big = -1};

	relay.values = malloc((size_t) n * 12);
	relay.state = malloc(n);
	memset(relay.state, IDLE, n);
	for (int i = 0; i < n; i++)
		snprintf(relay.values + (size_t) i * 12, 12, "%d", i);
	return relay;
}

static void
judge(Relay *relay, const char *what)
{
	Reading		reading = {.relay = relay, .highest = -1};

	consume(relay->topic, 1, read_number, &reading);
	printf("# fatals %d holds %d dead %d found %d again %d overtaken %d\n",
		   relay->fatals, relay->holds, relay->dead, reading.found,
		   reading.again, reading.overtaken);
	ok(first_open(relay) == relay->n && reading.overtaken == 0 &&
	   reading.found + relay->dead == relay->n, what);
	free(relay->values);
	free(relay->state);
}

/* A poison record in a backlog, and a topic smaller than our batches. */
static void
check_small_topic(void)
{
	char		topic[128];
	Relay		relay;

	topic_name(topic, "small");
	topic_admin(topic, 1, "max.message.bytes=100000");
	relay = relay_new(topic, 200000);
	relay.big = 50000;
	relay.big_size = 200000;
	relay.big_value = calloc(1, relay.big_size);
	run(&relay);
	ok(relay.dead == 1, "one poison record: one dead");
	ok(relay.fatals < 8, "batches shrink to what the topic takes");
	judge(&relay, "its neighbours: each there, in order");
	free(relay.big_value);
}

/*
 * A broker says "no such topic" of a topic that exists, and soon after knows
 * it again: what is sent now must not overtake what has failed, though the
 * relay has not seen that report yet.
 */
static void
check_flicker(void)
{
	const char *topic = "flicker";
	Mock		mock = mock_begin(topic, 1);
	OutboxClient *client;
	OutboxError error;
	OutboxFailure failure = OUTBOX_OK;
	int			sent = 0;
	Tally		tally = {0};

	rd_kafka_mock_topic_set_error(mock.cluster, topic,
								  RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
	/* not known before the first record is handed over */
	rd_kafka_mock_broker_set_rtt(mock.cluster, 1, 100);
	options[noptions++] = (OutboxOption) {"topic.metadata.propagation.max.ms", "0"};
	client = client_open(false);

	/* taken until the library knows of no such topic: TOPIC, then RETRY */
	for (double until = now() + 10; now() < until && failure != OUTBOX_RETRY;)
	{
		failure = send_one(client, topic, -1, "x", 1, sent, &error);
		sent += failure == OUTBOX_OK;
		poll(NULL, 0, 10);
	}
	rd_kafka_mock_topic_set_error(mock.cluster, topic, RD_KAFKA_RESP_ERR_NO_ERROR);
	ok(failure == OUTBOX_RETRY && sent == 1,
	   "nothing is taken while a failure waits to be seen");
	poll(NULL, 0, 2500);		/* the library learns that the topic is there */
	ok(send_one(client, topic, -1, "x", 1, sent, &error) == OUTBOX_RETRY,
	   "also when the topic is back");
	ok(wait_total(client, &tally, sent, 1) && tally.by[OUTBOX_TOPIC] == sent,
	   "the eventfd says that there is something to see");
	for (int i = 0; i < 11; i++)
		send_in_turn(client, &tally, topic, -1, "x", 1, i, &error);
	ok(wait_total(client, &tally, sent + 11, 5) && tally.by[OUTBOX_OK] == 11,
	   "then it goes on");
	ok(T.close(client, 5000), "closed");
	noptions--;
	mock_end(&mock);
}

void
check_relaying(void)
{
	check_small_topic();
	check_flicker();
}
