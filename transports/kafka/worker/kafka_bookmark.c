/*-------------------------------------------------------------------------
 *
 * kafka_bookmark.c
 *	  Reading a transactional client's bookmark.
 *
 * The bookmark is a record in a compacted topic of one partition, written in
 * the transactions of the records that it tells of.  It is read once, after
 * the transactional id is ours and nothing of a former instance is open any
 * more.
 *
 * Two handles: one that sees all says where the partition ends, and one that
 * sees only what is committed reads up to there.  With the latter alone, an end
 * before a transaction that is still being settled would pass for the end.
 * Should that happen (other clients may write there, and a relay of another
 * database shares the topic where its server has the same name), we wait until it
 * is, and say so.
 *
 * All of that blocks, so a thread of ours does it; it touches nothing of the
 * client but what is passed here, and hands over under the lock.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "kafka.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CALL_TIMEOUT_MS		2000
#define CREATE_TIMEOUT_MS	10000
#define PAUSE_MS			200

struct KafkaBookmarkReader
{
	rd_kafka_conf_t *all_conf;
	rd_kafka_conf_t *committed_conf;
	pthread_t	thread;
	bool		runs;
	atomic_bool stop;

	/* the outcome; guarded by lock */
	pthread_mutex_t lock;
	bool		done;
	rd_kafka_resp_err_t err;	/* of the last try */
	char		detail[256];	/* the broker's text, or empty */
	char	   *text;
};

/* An error of the bookmark's topic, with a hint that names it. */
void
kafka_bookmark_error(OutboxClient *client, OutboxError *error,
					 OutboxFailure failure, rd_kafka_resp_err_t err)
{
	const char *topic = client->bookmark_topic;
	char		text[256];

	snprintf(text, sizeof(text), "position topic \"%.150s\": %s", topic,
			 err == RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS ?
			 "a transaction that is open on it hides its end" : rd_kafka_err2str(err));
	kafka_error_set(error, failure, err, text);
	if (err == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED ||
		err == RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED)
		snprintf(error->hint, sizeof(error->hint),
				 "Grant this user Create, Describe, Read and Write on topic \"%.150s\".", topic);
	else if (err == RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE)
		snprintf(error->hint, sizeof(error->hint),
				 "Raise max.message.bytes of topic \"%.150s\".", topic);
	else if (err == RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS ||
			 err == RD_KAFKA_RESP_ERR_INVALID_REPLICATION_FACTOR)
		snprintf(error->hint, sizeof(error->hint),
				 "Start more brokers, or create topic \"%.150s\" with fewer replicas.", topic);
	else if (err == RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS)
		snprintf(error->hint, sizeof(error->hint),
				 "Wait until that ends; \"kafka-transactions.sh describe-producers --topic %.120s --partition 0\" shows whose it is.", topic);
	else if (err == RD_KAFKA_RESP_ERR__TIMED_OUT)
		snprintf(error->hint, sizeof(error->hint),
				 "Check that topic \"%.120s\" has a leader and min.insync.replicas in sync.", topic);
}

/* Note what the last try came to. */
static void
note(struct KafkaBookmarkReader *reader, rd_kafka_resp_err_t err, const char *detail)
{
	pthread_mutex_lock(&reader->lock);
	reader->err = err;
	snprintf(reader->detail, sizeof(reader->detail), "%s", detail ? detail : "");
	pthread_mutex_unlock(&reader->lock);
}

/* Ask for the topic; its error, or none. */
static rd_kafka_resp_err_t
describe(rd_kafka_t *rk, rd_kafka_topic_t *rkt)
{
	const struct rd_kafka_metadata *metadata = NULL;
	rd_kafka_resp_err_t err = rd_kafka_metadata(rk, 0, rkt, &metadata, CALL_TIMEOUT_MS);

	if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
		return err;
	err = metadata->topic_cnt == 1 ? metadata->topics[0].err : RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
	if (err == RD_KAFKA_RESP_ERR_NO_ERROR && metadata->topics[0].partition_cnt > 0)
		err = metadata->topics[0].partitions[0].err;
	rd_kafka_metadata_destroy(metadata);
	/* of brokers that are down only some replicas are missing */
	return err == RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE ? RD_KAFKA_RESP_ERR_NO_ERROR : err;
}

/* Make the topic: compacted, often, with as many replicas as brokers do. */
static rd_kafka_resp_err_t
create(rd_kafka_t *rk, const char *name, char *detail, size_t size, atomic_bool *stop)
{
	int			waited = 0;
	rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
	rd_kafka_NewTopic_t *topic = rd_kafka_NewTopic_new(name, 1, -1, detail, size);
	rd_kafka_AdminOptions_t *options = rd_kafka_AdminOptions_new(rk, RD_KAFKA_ADMIN_OP_CREATETOPICS);
	rd_kafka_event_t *event;
	rd_kafka_resp_err_t err = RD_KAFKA_RESP_ERR__TIMED_OUT;

	detail[0] = '\0';
	rd_kafka_NewTopic_set_config(topic, "cleanup.policy", "compact");
	rd_kafka_NewTopic_set_config(topic, "segment.ms", "600000");
	rd_kafka_NewTopic_set_config(topic, "min.cleanable.dirty.ratio", "0.1");
	rd_kafka_AdminOptions_set_request_timeout(options, CALL_TIMEOUT_MS, detail, size);
	rd_kafka_AdminOptions_set_operation_timeout(options, CREATE_TIMEOUT_MS, detail, size);
	rd_kafka_CreateTopics(rk, &topic, 1, options, queue);
	do
		event = rd_kafka_queue_poll(queue, PAUSE_MS);
	while (event == NULL && !atomic_load(stop) && (waited += PAUSE_MS) < CREATE_TIMEOUT_MS);
	if (event != NULL)
	{
		size_t		n = 0;
		const rd_kafka_topic_result_t **results = NULL;
		const rd_kafka_CreateTopics_result_t *result;

		err = rd_kafka_event_error(event);
		if (err == RD_KAFKA_RESP_ERR_NO_ERROR &&
			(result = rd_kafka_event_CreateTopics_result(event)) != NULL &&
			(results = rd_kafka_CreateTopics_result_topics(result, &n)) != NULL && n == 1)
		{
			err = rd_kafka_topic_result_error(results[0]);
			snprintf(detail, size, "%s", rd_kafka_topic_result_error_string(results[0]) ?
					 rd_kafka_topic_result_error_string(results[0]) : "");
		}
		rd_kafka_event_destroy(event);
	}
	rd_kafka_AdminOptions_destroy(options);
	rd_kafka_NewTopic_destroy(topic);
	rd_kafka_queue_destroy(queue);
	return err == RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS ? RD_KAFKA_RESP_ERR_NO_ERROR : err;
}

/* Have the topic; false: not this time. */
static bool
ensure_topic(OutboxClient *client, rd_kafka_t *rk, rd_kafka_topic_t *rkt)
{
	struct KafkaBookmarkReader *reader = client->bookmark_reader;
	char		detail[256] = "";
	rd_kafka_resp_err_t err = describe(rk, rkt);

	if (err == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART || err == RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC)
	{
		err = create(rk, client->bookmark_topic, detail, sizeof(detail), &reader->stop);
		if (err == RD_KAFKA_RESP_ERR_NO_ERROR)
		{
			detail[0] = '\0';	/* that somebody else has made it */
			err = describe(rk, rkt);
		}
		if (err == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART ||
			err == RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC)
			err = RD_KAFKA_RESP_ERR__TIMED_OUT; /* not everywhere yet */
	}
	note(reader, err, detail);
	return err == RD_KAFKA_RESP_ERR_NO_ERROR;
}

/* Keep a record's text when it is of our key; an empty one removes it. */
static void
take_record(OutboxClient *client, const rd_kafka_message_t *message, char **text)
{
	size_t		len = strlen(client->bookmark_key);

	if (message->key_len != len || memcmp(message->key, client->bookmark_key, len) != 0)
		return;
	free(*text);
	*text = message->payload == NULL ? NULL : strndup(message->payload, message->len);
}

/* Read what is committed up to an offset; false: it failed, or must stop. */
static bool
read_up_to(OutboxClient *client, rd_kafka_topic_t *rkt, int64_t end, char **text)
{
	struct KafkaBookmarkReader *reader = client->bookmark_reader;
	int64_t		at = 0;
	int64_t		heard_ms = thread_now_ms();
	bool		hidden = false;

	while (at < end && !atomic_load(&reader->stop))
	{
		rd_kafka_message_t *message = rd_kafka_consume(rkt, 0, PAUSE_MS);
		rd_kafka_resp_err_t err;

		if (message == NULL)
		{
			/* the end of what is visible is told once */
			if (!hidden && thread_now_ms() - heard_ms > CALL_TIMEOUT_MS)
				note(reader, RD_KAFKA_RESP_ERR__TIMED_OUT, NULL);
			continue;
		}
		heard_ms = thread_now_ms();
		err = message->err;
		if (err == RD_KAFKA_RESP_ERR_NO_ERROR)
		{
			take_record(client, message, text);
			at = message->offset + 1;
			hidden = false;
			note(reader, err, NULL);
		}
		else if (err == RD_KAFKA_RESP_ERR__PARTITION_EOF)
		{
			at = message->offset > at ? message->offset : at;
			hidden = at < end;
			note(reader, hidden ? RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS : RD_KAFKA_RESP_ERR_NO_ERROR, NULL);
		}
		else
			note(reader, err, NULL);
		rd_kafka_message_destroy(message);
		/* those that pass are tried again by the library itself */
		if (err == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED ||
			err == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART ||
			err == RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC ||
			err == RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE)
			return false;
	}
	return at >= end;
}

/* One try to read the bookmark. */
static bool
try_read(OutboxClient *client, rd_kafka_t *all, rd_kafka_t *committed, char **text)
{
	struct KafkaBookmarkReader *reader = client->bookmark_reader;
	const char *name = client->bookmark_topic;
	rd_kafka_topic_t *all_topic = rd_kafka_topic_new(all, name, NULL);
	rd_kafka_topic_t *topic = rd_kafka_topic_new(committed, name, NULL);
	int64_t		low = 0;
	int64_t		high = 0;
	bool		ok = ensure_topic(client, all, all_topic) && !atomic_load(&reader->stop);

	if (ok)
	{
		rd_kafka_resp_err_t err = rd_kafka_query_watermark_offsets(all, name, 0, &low, &high,
																   CALL_TIMEOUT_MS);

		note(reader, err, NULL);
		ok = err == RD_KAFKA_RESP_ERR_NO_ERROR;
	}
	if (ok && low < high)
	{
		ok = rd_kafka_consume_start(topic, 0, RD_KAFKA_OFFSET_BEGINNING) == 0;
		if (ok)
		{
			ok = read_up_to(client, topic, high, text);
			rd_kafka_consume_stop(topic, 0);
		}
		else
			note(reader, rd_kafka_last_error(), NULL);
	}
	rd_kafka_topic_destroy(topic);
	rd_kafka_topic_destroy(all_topic);
	return ok;
}

/* A handle; NULL, with the reason noted, when the library refuses. */
static rd_kafka_t *
consumer_new(struct KafkaBookmarkReader *reader, rd_kafka_conf_t **conf)
{
	char		errstr[256] = "";
	rd_kafka_t *rk = rd_kafka_new(RD_KAFKA_CONSUMER, *conf, errstr, sizeof(errstr));

	if (rk != NULL)
		*conf = NULL;
	else
		note(reader, RD_KAFKA_RESP_ERR__INVALID_ARG, errstr);
	return rk;
}

static void *
reader_main(void *arg)
{
	OutboxClient *client = arg;
	struct KafkaBookmarkReader *reader = client->bookmark_reader;
	rd_kafka_t *all = consumer_new(reader, &reader->all_conf);
	rd_kafka_t *committed = all ? consumer_new(reader, &reader->committed_conf) : NULL;
	char	   *text = NULL;

	while (committed != NULL && !atomic_load(&reader->stop))
	{
		free(text);
		text = NULL;
		if (try_read(client, all, committed, &text))
		{
			pthread_mutex_lock(&reader->lock);
			reader->done = true;
			reader->text = text;
			text = NULL;
			pthread_mutex_unlock(&reader->lock);
			break;
		}
		kafka_wake(client);
		for (int ms = 0; ms < 1000 && !atomic_load(&reader->stop); ms += PAUSE_MS)
			(void) poll(NULL, 0, PAUSE_MS);
	}
	free(text);
	if (committed != NULL)
		rd_kafka_destroy(committed);
	if (all != NULL)
		rd_kafka_destroy(all);
	kafka_wake(client);
	return NULL;
}

/* Configure a consumer that connects as the client does. */
static rd_kafka_conf_t *
consumer_conf(OutboxClient *client, const OutboxTransportConfig *config,
			  const char *isolation, OutboxError *error)
{
	rd_kafka_conf_t *conf = kafka_config_consumer(client, config, error);
	char		errstr[256];

	/* the end is seen by an answer without records, which brokers hold back */
	if (conf != NULL &&
		(rd_kafka_conf_set(conf, "fetch.wait.max.ms", "10", errstr, sizeof(errstr)) != RD_KAFKA_CONF_OK ||
		 rd_kafka_conf_set(conf, "isolation.level", isolation, errstr, sizeof(errstr)) != RD_KAFKA_CONF_OK ||
		 rd_kafka_conf_set(conf, "enable.partition.eof", "true", errstr, sizeof(errstr)) != RD_KAFKA_CONF_OK))
	{
		kafka_error_set(error, OUTBOX_CONFIG, RD_KAFKA_RESP_ERR__INVALID_ARG, errstr);
		rd_kafka_conf_destroy(conf);
		return NULL;
	}
	return conf;
}

/* At open, before the producer is made: all that needs the configuration. */
bool
kafka_bookmark_prepare(OutboxClient *client, const OutboxTransportConfig *config,
					   OutboxError *error)
{
	struct KafkaBookmarkReader *reader = calloc(1, sizeof(struct KafkaBookmarkReader));

	client->bookmark_key = strdup(config->bookmark_key);
	client->bookmark_topic = strdup(config->bookmark_topic);
	if (reader == NULL || client->bookmark_key == NULL || client->bookmark_topic == NULL)
	{
		free(reader);
		kafka_error_set(error, OUTBOX_FATAL, RD_KAFKA_RESP_ERR__FAIL, "out of memory");
		return false;
	}
	client->bookmark_reader = reader;
	pthread_mutex_init(&reader->lock, NULL);
	reader->all_conf = consumer_conf(client, config, "read_uncommitted", error);
	if (reader->all_conf == NULL)
		return false;
	reader->committed_conf = consumer_conf(client, config, "read_committed", error);
	if (reader->committed_conf == NULL)
		return false;
	return true;
}

/* See transport.h. */
OutboxFailure
kafka_bookmark_read(OutboxClient *client, const char **text, OutboxError *error)
{
	struct KafkaBookmarkReader *reader = client->bookmark_reader;
	OutboxFailure failure = OUTBOX_RETRY;

	*text = NULL;
	if (!reader->runs && !reader->done)
	{
		sigset_t	saved;

		kafka_block_signals(&saved);
		reader->runs = pthread_create(&reader->thread, NULL, reader_main, client) == 0;
		kafka_restore_signals(&saved);
	}
	pthread_mutex_lock(&reader->lock);
	if (reader->done)
	{
		*text = reader->text;
		failure = OUTBOX_OK;
	}
	else if (reader->err != RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		if (kafka_is_config_error(reader->err) ||
			reader->err == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED ||
			reader->err == RD_KAFKA_RESP_ERR_INVALID_REPLICATION_FACTOR ||
			reader->err == RD_KAFKA_RESP_ERR_POLICY_VIOLATION)
			failure = OUTBOX_CONFIG;
		kafka_bookmark_error(client, error, failure, reader->err);
		if (reader->detail[0] != '\0')
			snprintf(error->text + strlen(error->text), sizeof(error->text) - strlen(error->text),
					 ": %s", reader->detail);
		kafka_scrub(client, error->text, sizeof(error->text));
	}
	pthread_mutex_unlock(&reader->lock);
	return failure;
}

/* Wait for the thread; at close it may take as long as a call does. */
void
kafka_bookmark_stop(OutboxClient *client)
{
	struct KafkaBookmarkReader *reader = client->bookmark_reader;

	if (reader == NULL || !reader->runs)
		return;
	atomic_store(&reader->stop, true);
	pthread_join(reader->thread, NULL);
	reader->runs = false;
}

void
kafka_bookmark_free(OutboxClient *client)
{
	struct KafkaBookmarkReader *reader = client->bookmark_reader;

	free(client->bookmark_key);
	free(client->bookmark_topic);
	if (reader == NULL)
		return;
	if (reader->all_conf != NULL)
		rd_kafka_conf_destroy(reader->all_conf);
	if (reader->committed_conf != NULL)
		rd_kafka_conf_destroy(reader->committed_conf);
	pthread_mutex_destroy(&reader->lock);
	free(reader->text);
	free(reader);
}
