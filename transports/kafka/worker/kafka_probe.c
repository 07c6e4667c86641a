/*-------------------------------------------------------------------------
 *
 * kafka_probe.c
 *	  Is a topic there, and ours to write?
 *
 * librdkafka's metadata call blocks, so a thread of ours makes it; it also
 * refreshes what librdkafka itself knows about the topic.  Metadata tells
 * whether a topic exists and may be described, not whether it may be written:
 * that comes out at the first batch, and costs a gapless client its life.  So
 * such verdicts are remembered for the process, over clients, and tried again
 * at growing intervals only.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "kafka.h"

#include <stdlib.h>
#include <string.h>

#define PROBE_TIMEOUT_MS	3000
#define PROBE_PACE_MS		1000	/* a topic is asked for once a second */
#define PARTITIONS_FRESH_MS	30000

#define VERDICT_MIN_MS		5000
#define VERDICT_MAX_MS		300000

typedef enum KafkaProbeState
{
	PROBE_IDLE = 0,
	PROBE_QUEUED,
	PROBE_DONE
} KafkaProbeState;

/* A topic that a broker refused to let us write.  Main thread only. */
typedef struct KafkaVerdict
{
	struct KafkaVerdict *next;
	rd_kafka_resp_err_t err;
	int64_t		until;			/* monotonic ms */
	int64_t		wait_ms;
	char		name[];
} KafkaVerdict;

static KafkaVerdict *verdicts;

static KafkaVerdict **
verdict_slot(const char *topic)
{
	KafkaVerdict **slot = &verdicts;

	while (*slot != NULL && strcmp((*slot)->name, topic) != 0)
		slot = &(*slot)->next;
	return slot;
}

bool
kafka_verdicts_any(void)
{
	return verdicts != NULL;
}

/* The topic was refused; one batch of reports counts once. */
void
kafka_verdict_add(const char *topic, rd_kafka_resp_err_t err)
{
	KafkaVerdict **slot = verdict_slot(topic);
	KafkaVerdict *verdict = *slot;
	int64_t		now = thread_now_ms();

	if (verdict == NULL)
	{
		size_t		size = strlen(topic) + 1;

		verdict = calloc(1, sizeof(KafkaVerdict) + size);
		if (verdict == NULL)
			return;				/* costs another refusal, no more */
		memcpy(verdict->name, topic, size);
		*slot = verdict;
	}
	else if (now < verdict->until)
		return;
	verdict->err = err;
	verdict->wait_ms = verdict->wait_ms == 0 ? VERDICT_MIN_MS
		: verdict->wait_ms * 2;
	if (verdict->wait_ms > VERDICT_MAX_MS)
		verdict->wait_ms = VERDICT_MAX_MS;
	verdict->until = now + verdict->wait_ms;
}

/* The verdict in force, or no error. */
rd_kafka_resp_err_t
kafka_verdict_find(const char *topic)
{
	KafkaVerdict *verdict = *verdict_slot(topic);

	if (verdict == NULL || thread_now_ms() >= verdict->until)
		return RD_KAFKA_RESP_ERR_NO_ERROR;
	return verdict->err;
}

/* A record was written to the topic. */
void
kafka_verdict_lift(const char *topic)
{
	KafkaVerdict **slot = verdict_slot(topic);
	KafkaVerdict *verdict = *slot;

	if (verdict != NULL)
	{
		*slot = verdict->next;
		free(verdict);
	}
}

/* Ask for one topic's metadata; blocks. */
static void
look_up(OutboxClient *client, KafkaTopic *topic)
{
	const struct rd_kafka_metadata *metadata = NULL;
	rd_kafka_resp_err_t err;
	int			partitions = 0;

	err = rd_kafka_metadata(client->rk, 0, topic->rkt, &metadata,
							PROBE_TIMEOUT_MS);
	if (err == RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		err = RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC;
		for (int i = 0; i < metadata->topic_cnt; i++)
		{
			if (strcmp(metadata->topics[i].topic, topic->name) == 0)
			{
				err = metadata->topics[i].err;
				partitions = metadata->topics[i].partition_cnt;
			}
		}
		rd_kafka_metadata_destroy(metadata);
	}

	pthread_mutex_lock(&client->probe_lock);
	topic->probe_err = err;
	topic->probe_state = PROBE_DONE;
	if (err == RD_KAFKA_RESP_ERR_NO_ERROR && partitions > 0)
	{
		topic->partitions = partitions;
		topic->looked_up = thread_now_ms();
	}
	pthread_mutex_unlock(&client->probe_lock);
	kafka_wake(client);
}

static void *
prober_main(void *arg)
{
	OutboxClient *client = arg;

	pthread_mutex_lock(&client->probe_lock);
	for (;;)
	{
		KafkaTopic *topic;

		while (!client->probe_stop && client->probe_queue == NULL)
			pthread_cond_wait(&client->probe_wake, &client->probe_lock);
		if (client->probe_stop)
			break;
		topic = client->probe_queue;
		client->probe_queue = topic->probe_next;
		pthread_mutex_unlock(&client->probe_lock);
		look_up(client, topic);
		pthread_mutex_lock(&client->probe_lock);
	}
	pthread_mutex_unlock(&client->probe_lock);
	return NULL;
}

/* At close; waits for a look-up that is under way. */
void
kafka_probe_stop(OutboxClient *client)
{
	if (!client->prober_runs)
		return;
	pthread_mutex_lock(&client->probe_lock);
	client->probe_stop = true;
	pthread_cond_signal(&client->probe_wake);
	pthread_mutex_unlock(&client->probe_lock);
	pthread_join(client->prober, NULL);
	client->prober_runs = false;
}

/* Queue a look-up at the end of the line; the lock is held. */
static void
probe_start(OutboxClient *client, KafkaTopic *topic, int64_t now)
{
	KafkaTopic **end = &client->probe_queue;

	if (!client->prober_runs)
	{
		sigset_t	saved;

		kafka_block_signals(&saved);
		client->prober_runs = pthread_create(&client->prober, NULL,
											 prober_main, client) == 0;
		kafka_restore_signals(&saved);
		if (!client->prober_runs)
			return;				/* asked again later */
	}
	while (*end != NULL)
		end = &(*end)->probe_next;
	topic->probe_next = NULL;
	*end = topic;
	topic->probe_state = PROBE_QUEUED;
	topic->probe_started = now;
	pthread_cond_signal(&client->probe_wake);
}

/* What a look-up's outcome means. */
static OutboxFailure
probe_outcome(KafkaTopic *topic, rd_kafka_resp_err_t err, OutboxError *error)
{
	switch (err)
	{
		case RD_KAFKA_RESP_ERR_NO_ERROR:
			return OUTBOX_OK;
		case RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION:
			topic->invalid = true;	/* send() says DEAD */
			return OUTBOX_OK;
		case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
		case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
		case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
			return kafka_error_set(error, OUTBOX_TOPIC, err, NULL);
		default:
			return err > RD_KAFKA_RESP_ERR_NO_ERROR &&
				err != RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE
				? kafka_error_set(error, OUTBOX_TOPIC, err, NULL)
				: kafka_error_set(error, OUTBOX_RETRY, err, NULL);
	}
}

/* See transport.h. */
OutboxFailure
kafka_probe_topic(OutboxClient *client, const char *name, OutboxError *error)
{
	OutboxFailure failure = OUTBOX_RETRY;
	rd_kafka_resp_err_t err = kafka_verdict_find(name);
	int64_t		now = thread_now_ms();
	KafkaTopic *topic;

	if (err == RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION)
		return OUTBOX_OK;		/* send() says DEAD */
	if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
		return kafka_error_set(error, OUTBOX_TOPIC, err, NULL);
	topic = kafka_topic_get(client, name, error);
	if (topic == NULL)
		return OUTBOX_OK;		/* not a name: send() says so */

	kafka_error_set(error, OUTBOX_RETRY, RD_KAFKA_RESP_ERR__IN_PROGRESS, NULL);
	pthread_mutex_lock(&client->probe_lock);
	if (topic->probe_state == PROBE_DONE)
	{
		topic->probe_state = PROBE_IDLE;
		failure = probe_outcome(topic, topic->probe_err, error);
		if (failure == OUTBOX_TOPIC)
			kafka_first_distrust(topic);
	}
	else if (topic->probe_state == PROBE_IDLE &&
			 (topic->probe_started == 0 ||
			  now - topic->probe_started >= PROBE_PACE_MS))
		probe_start(client, topic, now);
	pthread_mutex_unlock(&client->probe_lock);
	return failure;
}

/*
 * Is this partition known not to exist, by a look-up of late?  If there was
 * none, start one: the caller says TOPIC, the relay probes and sends again.
 */
bool
kafka_partition_missing(OutboxClient *client, KafkaTopic *topic,
						int32_t partition)
{
	int64_t		now = thread_now_ms();
	bool		missing;

	if (topic == NULL)
		return false;
	pthread_mutex_lock(&client->probe_lock);
	missing = topic->looked_up != 0 &&
		now - topic->looked_up < PARTITIONS_FRESH_MS &&
		partition >= topic->partitions;
	if (!missing && topic->probe_state == PROBE_IDLE)
		probe_start(client, topic, now);
	pthread_mutex_unlock(&client->probe_lock);
	return missing;
}
