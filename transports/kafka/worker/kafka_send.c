/*-------------------------------------------------------------------------
 *
 * kafka_send.c
 *	  Topics and send().
 *
 * Topic handles are kept in a hash table of ours: librdkafka's own look-up
 * walks a list of all topics for each record.
 *
 * Order across a topic that flickers.  When a broker reports a topic as
 * missing (one that restarts does so for topics that exist), librdkafka fails
 * what it has queued for it, and takes records again as soon as some broker
 * knows the topic.  A record sent in between would overtake the failed ones,
 * whose reports the relay has not seen yet.  So when time has passed since
 * the queue of reports was last seen empty, send() looks through it first and
 * takes nothing while a failure waits there.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "kafka.h"

#include <stdlib.h>
#include <string.h>

/* FNV-1a */
static uint32_t
name_hash(const char *name)
{
	uint32_t	hash = 2166136261u;

	for (; *name; name++)
		hash = (hash ^ (unsigned char) *name) * 16777619u;
	return hash % KAFKA_TOPIC_BUCKETS;
}

/* NULL when this client has not used the topic. */
KafkaTopic *
kafka_topic_find(OutboxClient *client, const char *name)
{
	KafkaTopic *topic = client->topics[name_hash(name)];

	while (topic != NULL && strcmp(topic->name, name) != 0)
		topic = topic->next;
	return topic;
}

/* NULL with *error filled when librdkafka takes no such name. */
KafkaTopic *
kafka_topic_get(OutboxClient *client, const char *name, OutboxError *error)
{
	KafkaTopic *topic = kafka_topic_find(client, name);
	size_t		size = strlen(name) + 1;
	uint32_t	bucket;
	rd_kafka_topic_conf_t *conf;

	if (topic != NULL)
		return topic;
	topic = calloc(1, sizeof(KafkaTopic) + size);
	if (topic == NULL)
	{
		kafka_error_set(error, OUTBOX_RETRY, RD_KAFKA_RESP_ERR__FAIL,
						"out of memory");
		return NULL;
	}
	memcpy(topic->name, name, size);
	topic->client = client;
	topic->round = 1;
	conf = rd_kafka_default_topic_conf_dup(client->rk);
	rd_kafka_topic_conf_set_opaque(conf, topic);
	rd_kafka_topic_conf_set_partitioner_cb(conf, kafka_first_place);
	topic->rkt = rd_kafka_topic_new(client->rk, name, conf);
	if (topic->rkt == NULL)
	{
		kafka_error_set(error, OUTBOX_DEAD, rd_kafka_last_error(), NULL);
		free(topic);
		return NULL;
	}
	bucket = name_hash(name);
	topic->next = client->topics[bucket];
	client->topics[bucket] = topic;
	return topic;
}

/* At close, while the library is there. */
void
kafka_topics_release(OutboxClient *client)
{
	for (int i = 0; i < KAFKA_TOPIC_BUCKETS; i++)
		for (KafkaTopic *topic = client->topics[i]; topic != NULL; topic = topic->next)
			rd_kafka_topic_destroy(topic->rkt);
}

/* ... and when none of its threads can place a record any more. */
void
kafka_topics_free(OutboxClient *client)
{
	for (int i = 0; i < KAFKA_TOPIC_BUCKETS; i++)
	{
		KafkaTopic *topic = client->topics[i];

		while (topic != NULL)
		{
			KafkaTopic *next = topic->next;

			free(topic->firsts);
			free(topic);
			topic = next;
		}
	}
}

/* The topic, unless the broker has refused it lately or for good. */
static OutboxFailure
topic_to_write(OutboxClient *client, const char *name, KafkaTopic **result,
			   OutboxError *error)
{
	KafkaTopic *topic = client->last_topic;

	if (topic == NULL || strcmp(topic->name, name) != 0)
	{
		topic = kafka_topic_get(client, name, error);
		if (topic == NULL)
			return error->failure;
		client->last_topic = topic;
	}
	*result = topic;

	if (topic->invalid)
		return kafka_error_set(error, OUTBOX_DEAD,
							   RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION, NULL);
	if (kafka_verdicts_any())
	{
		rd_kafka_resp_err_t err = kafka_verdict_find(name);

		if (err == RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION)
			return kafka_error_set(error, OUTBOX_DEAD, err, NULL);
		if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
			return kafka_error_set(error, OUTBOX_TOPIC, err, NULL);
	}
	return OUTBOX_OK;
}

/* Why produce refused, and what that means. */
static OutboxFailure
produce_refused(OutboxClient *client, KafkaTopic *topic,
				const OutboxRecord *record, rd_kafka_error_t *refusal,
				OutboxError *error)
{
	rd_kafka_resp_err_t err = rd_kafka_error_code(refusal);
	OutboxFailure failure;

	if (rd_kafka_error_is_fatal(refusal) || err == RD_KAFKA_RESP_ERR__FATAL)
	{
		char		text[512] = "";

		err = rd_kafka_fatal_error(client->rk, text, sizeof(text));
		kafka_scrub(client, text, sizeof(text));
		return kafka_error_set(error, OUTBOX_FATAL, err, text);
	}
	switch (err)
	{
		case RD_KAFKA_RESP_ERR__QUEUE_FULL:
			failure = OUTBOX_RETRY;
			break;
		case RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE:
		case RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION:
		case RD_KAFKA_RESP_ERR__INVALID_ARG:
			failure = OUTBOX_DEAD;
			break;
		case RD_KAFKA_RESP_ERR__STATE:
			failure = OUTBOX_ABORT; /* a record of the transaction has failed */
			break;
		case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
			failure = kafka_partition_missing(client, topic, record->partition)
				? OUTBOX_DEAD : OUTBOX_TOPIC;
			break;
		default:
			/* missing, forbidden, or another error of the topic's metadata */
			failure = OUTBOX_TOPIC;
	}
	return kafka_error_set(error, failure, err, NULL);
}

/* See transport.h. */
OutboxFailure
kafka_send(OutboxClient *client, const OutboxRecord *record,
		   OutboxError *error)
{
	static const char waits[] = "it waits for one that is on its way";
	rd_kafka_vu_t args[8];
	int			nargs = 0;
	KafkaSent  *sent;
	rd_kafka_error_t *refusal;
	KafkaTopic *topic = NULL;
	bool		later;
	OutboxFailure failure;

	failure = topic_to_write(client, record->topic, &topic, error);
	if (failure != OUTBOX_OK)
		return failure;

	if (!kafka_reports_reserve(client))
		return kafka_error_set(error, OUTBOX_RETRY, RD_KAFKA_RESP_ERR__FAIL,
							   "out of memory");
	if (client->accepted > 0 && thread_now_ms() != client->drained_tick)
		kafka_look_ahead(client);
	if (client->failure_ahead)
		return kafka_error_set(error, OUTBOX_RETRY,
							   RD_KAFKA_RESP_ERR__PREV_IN_PROGRESS,
							   "a failed record waits to be reported");
	if (kafka_first_has_to_wait(client, topic, record) ||
		(client->transactional && kafka_blame_has_to_wait(client, topic)))
		return kafka_error_set(error, OUTBOX_LATER, RD_KAFKA_RESP_ERR__PREV_IN_PROGRESS,
							   waits);

	sent = kafka_sent_make(client, record);
	if (sent == NULL)
		return kafka_error_set(error, OUTBOX_RETRY, RD_KAFKA_RESP_ERR__FAIL,
							   "out of memory");

	args[nargs].vtype = RD_KAFKA_VTYPE_RKT;
	args[nargs++].u.rkt = topic->rkt;
	args[nargs].vtype = RD_KAFKA_VTYPE_PARTITION;
	args[nargs++].u.i32 = record->partition < 0 ? RD_KAFKA_PARTITION_UA
		: record->partition;
	args[nargs].vtype = RD_KAFKA_VTYPE_VALUE;	/* a NULL pointer: tombstone */
	args[nargs].u.mem.ptr = (void *) record->payload;
	args[nargs++].u.mem.size = record->payload ? record->payload_len : 0;
	if (record->payload && record->payload_len <= KAFKA_COPIED_PAYLOAD)
	{
		args[nargs].vtype = RD_KAFKA_VTYPE_MSGFLAGS;
		args[nargs++].u.i = RD_KAFKA_MSG_F_COPY;
	}
	args[nargs].vtype = RD_KAFKA_VTYPE_KEY;
	args[nargs].u.mem.ptr = (void *) record->key;
	args[nargs++].u.mem.size = record->key ? record->key_len : 0;
	args[nargs].vtype = RD_KAFKA_VTYPE_OPAQUE;
	args[nargs++].u.ptr = sent;
	args[nargs].vtype = RD_KAFKA_VTYPE_TIMESTAMP;
	args[nargs++].u.i64 = record->timestamp_ms;

	/*
	 * As a list: with single headers, 2.0.2 frees them twice when the
	 * partition does not exist.
	 */
	if (record->nheaders > 0)
	{
		args[nargs].vtype = RD_KAFKA_VTYPE_HEADERS;
		args[nargs++].u.headers = kafka_sent_headers(sent);
	}

	refusal = kafka_first_produce(client, topic, record, sent, args, nargs, &later);
	if (refusal == NULL && !later)
	{
		client->accepted++;
		if (client->transactional)
			kafka_blame_sent(client, topic);
		return OUTBOX_OK;
	}
	kafka_sent_refused(client, sent);
	if (later)
		return kafka_error_set(error, OUTBOX_LATER, RD_KAFKA_RESP_ERR__PREV_IN_PROGRESS,
							   waits);
	failure = produce_refused(client, topic, record, refusal, error);
	if (failure == OUTBOX_TOPIC)
		kafka_first_distrust(topic);
	rd_kafka_error_destroy(refusal);
	return failure;
}
