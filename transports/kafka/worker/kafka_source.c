/*-------------------------------------------------------------------------
 *
 * kafka_source.c
 *	  The Kafka consumer: open, receive, commit, close, and the table.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "kafka_source.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OUTSIDE_MS		60000

/* The library's callback of commits: from receive(). */
static void
committed(rd_kafka_t *rk, rd_kafka_resp_err_t err,
		  rd_kafka_topic_partition_list_t *list, void *opaque)
{
	OutboxConsumer *consumer = opaque;
	const char *topic = NULL;

	(void) rk;
	if (atomic_load(&consumer->closing))
		return;
	for (int i = 0; list != NULL && i < list->cnt; i++)
	{
		if (list->elems[i].err != RD_KAFKA_RESP_ERR_NO_ERROR)
		{
			err = list->elems[i].err;
			topic = list->elems[i].topic;
		}
	}
	/* after a rebalance it is of no use, and no news */
	if (err != RD_KAFKA_RESP_ERR_NO_ERROR && err != RD_KAFKA_RESP_ERR__NO_OFFSET &&
		err != RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS && kafka_source_class(err) != OUTBOX_FENCED)
		kafka_source_note(consumer, err, topic, NULL);
}

/*
 * The opaque pointer is a client for kafka_report.c's callbacks and a consumer
 * for ours: the one begins with the other.
 */
static rd_kafka_conf_t *
build_config(OutboxClient *client, const void *config, OutboxError *error)
{
	rd_kafka_conf_t *conf = kafka_config_source(client, config, error);

	if (conf != NULL)
	{
		rd_kafka_conf_set_rebalance_cb(conf, kafka_rebalanced);
		rd_kafka_conf_set_offset_commit_cb(conf, committed);
	}
	return conf;
}

static bool
subscribe(OutboxConsumer *consumer, OutboxError *error)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(consumer->ntopics);
	rd_kafka_resp_err_t err;

	for (int i = 0; i < consumer->ntopics; i++)
	{
		char		expression[KAFKA_MAX_EXPRESSION];
		bool		is_pattern = kafka_topic_expression(consumer->topics[i], expression);

		rd_kafka_topic_partition_list_add(list, is_pattern ? expression : consumer->topics[i],
										  RD_KAFKA_PARTITION_UA);
	}
	err = rd_kafka_subscribe(consumer->client.rk, list);
	rd_kafka_topic_partition_list_destroy(list);
	if (err == RD_KAFKA_RESP_ERR_NO_ERROR)
		return true;
	kafka_source_error(consumer, error, err, NULL, NULL);
	error->failure = OUTBOX_CONFIG;
	return false;
}

static void
consumer_free(OutboxConsumer *consumer)
{
	kafka_find_free(consumer);
	kafka_partitions_free(consumer);
	kafka_client_release(&consumer->client);
	for (int i = 0; i < consumer->ntopics; i++)
		free(consumer->topics[i]);
	free(consumer->topics);
	free(consumer->group_id);
	free(consumer->received);
	free(consumer->messages);
	free(consumer->headers);
	free(consumer);
}

/* In a thread of its own at close: each of these may take long. */
static void
consumer_destroy(void *arg)
{
	OutboxConsumer *consumer = arg;

	kafka_find_stop(consumer);
	rd_kafka_queue_io_event_enable(consumer->client.queue, -1, NULL, 0);
	rd_kafka_queue_destroy(consumer->client.queue);
	rd_kafka_consumer_close(consumer->client.rk);
	rd_kafka_destroy_flags(consumer->client.rk, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
}

static OutboxConsumer *
source_open(const OutboxSourceConfig *config, OutboxError *error)
{
	OutboxConsumer *consumer = calloc(1, sizeof(OutboxConsumer));

	memset(error, 0, sizeof(*error));
	if (consumer != NULL)
		consumer->group_id = strdup(config->group_id);
	if (consumer == NULL || consumer->group_id == NULL || !kafka_topics_ask(consumer, config))
	{
		if (consumer != NULL)
			consumer_free(consumer);
		kafka_error_set(error, OUTBOX_FATAL, RD_KAFKA_RESP_ERR__FAIL, "out of memory");
		return NULL;
	}
	if (!kafka_client_init(&consumer->client, error) ||
		!kafka_client_connect(&consumer->client, RD_KAFKA_CONSUMER, build_config,
							  config, error))
	{
		consumer_free(consumer);
		return NULL;
	}
	if (!subscribe(consumer, error))
	{
		atomic_store(&consumer->closing, true);
		consumer_destroy(consumer);
		consumer_free(consumer);
		return NULL;
	}
	consumer->outside_ms = thread_now_ms();
	return consumer;
}

/*
 * The library waits for the group's answer as long as a handler may take, also
 * where the network has lost it.  So who is not let in for a while begins anew; when
 * the group waits for another member's handler that does no harm.
 */
static void
check_outside(OutboxConsumer *consumer)
{
	char		text[300];

	if (consumer->outside_ms == 0 || consumer->client.failed ||
		thread_now_ms() - consumer->outside_ms < OUTSIDE_MS)
		return;
	/* nobody answers at all, or there is nothing to have a share in */
	if (atomic_load(&consumer->client.brokers_up) == 0 ||
		(consumer->client.nerrors > 0 && consumer->client.error.failure != OUTBOX_RETRY))
		return;
	snprintf(text, sizeof(text), "group \"%.180s\" has given no share of its partitions for %d s",
			 consumer->group_id, OUTSIDE_MS / 1000);
	kafka_source_note(consumer, RD_KAFKA_RESP_ERR__TIMED_OUT, NULL, text);
	consumer->client.failed = true;
}

static int
source_event_fd(OutboxConsumer *consumer)
{
	return consumer->client.fd;
}

/* Give the last batch back. */
static void
release_messages(OutboxConsumer *consumer)
{
	for (int i = 0; i < consumer->nreceived; i++)
		rd_kafka_message_destroy(consumer->received[i]);
	consumer->nreceived = 0;
}

/* Room for a batch; false: no memory. */
static bool
reserve_messages(OutboxConsumer *consumer, int max)
{
	rd_kafka_message_t **received;
	OutboxIncoming *messages;

	if (max <= consumer->max_messages)
		return true;
	received = realloc(consumer->received, max * sizeof(*received));
	if (received == NULL)
		return false;
	consumer->received = received;
	messages = realloc(consumer->messages, max * sizeof(*messages));
	if (messages == NULL)
		return false;
	consumer->messages = messages;
	consumer->max_messages = max;
	return true;
}

/* What is no message: an error of a topic, a partition or the group. */
static void
take_error(OutboxConsumer *consumer, const rd_kafka_message_t *message)
{
	const char *topic = message->rkt == NULL ? NULL : rd_kafka_topic_name(message->rkt);
	KafkaPartition *partition = topic == NULL ? NULL
		: kafka_partition_find(consumer, topic, message->partition);

	switch (message->err)
	{
		case RD_KAFKA_RESP_ERR__PARTITION_EOF:
			break;
		case RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET:
		case RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE:
			if (consumer->state == GROUP_OURS && partition != NULL &&
				partition->started)
				kafka_partition_gap(consumer, partition);
			break;
		default:
			kafka_source_note(consumer, message->err, topic, rd_kafka_message_errstr(message));
			break;
	}
}

/* May this message be handed out?  Then its partition goes on behind it. */
static bool
take_place(OutboxConsumer *consumer, KafkaPartition *partition,
		   const rd_kafka_message_t *message)
{
	if (consumer->state != GROUP_OURS || partition == NULL || !partition->started ||
		partition->paused || partition->gap || message->offset < partition->position)
		return false;
	partition->position = message->offset + 1;
	return true;
}

/*
 * Keep of a batch what may be handed out, in its order, and take in the rest.
 * A rebalance in the midst of it makes all of the batch old: what was before
 * is of partitions that are to be given up.
 */
static void
sort_out(OutboxConsumer *consumer, int n, bool rebalanced)
{
	KafkaPartition *partition = NULL;
	const rd_kafka_message_t *last = NULL;

	for (int i = 0; i < n; i++)
	{
		rd_kafka_message_t *message = consumer->received[i];
		bool		keep = false;

		if (message->err != RD_KAFKA_RESP_ERR_NO_ERROR)
			take_error(consumer, message);
		else if (!rebalanced)
		{
			if (last == NULL || last->rkt != message->rkt ||
				last->partition != message->partition)
				partition = kafka_partition_find(consumer,
												 rd_kafka_topic_name(message->rkt),
												 message->partition);
			keep = take_place(consumer, partition, message);
		}
		if (keep)
			last = consumer->received[consumer->nreceived++] = message;
		else
		{
			last = NULL;
			rd_kafka_message_destroy(message);
		}
	}
}

/* Have the library parse the headers, and make room for them. */
static bool
reserve_headers(OutboxConsumer *consumer)
{
	size_t		n = 0;

	for (int i = 0; i < consumer->nreceived; i++)
	{
		rd_kafka_headers_t *headers;
		rd_kafka_resp_err_t err = rd_kafka_message_headers(consumer->received[i], &headers);

		consumer->messages[i].nheaders = 0;
		if (err == RD_KAFKA_RESP_ERR_NO_ERROR)
			n += consumer->messages[i].nheaders = (int) rd_kafka_header_cnt(headers);
		else if (err != RD_KAFKA_RESP_ERR__NOENT)
			kafka_source_note(consumer, err, rd_kafka_topic_name(consumer->received[i]->rkt),
							  "the headers of a message can't be read");
	}
	if (n > consumer->max_headers)
	{
		OutboxHeader *grown = realloc(consumer->headers, 2 * n * sizeof(OutboxHeader));

		if (grown == NULL)
			return false;
		consumer->headers = grown;
		consumer->max_headers = 2 * n;
	}
	return true;
}

/* One message as the core sees it; *headers goes on behind its own. */
static void
fill_message(OutboxIncoming *to, const rd_kafka_message_t *from, OutboxHeader **headers)
{
	rd_kafka_timestamp_type_t type;
	rd_kafka_headers_t *list;

	to->topic = rd_kafka_topic_name(from->rkt);
	to->subject = NULL;
	to->message_id = NULL;
	to->partition = from->partition;
	to->offset = from->offset;
	to->timestamp_ms = rd_kafka_message_timestamp(from, &type);
	if (type == RD_KAFKA_TIMESTAMP_NOT_AVAILABLE)
		to->timestamp_ms = -1;
	to->key = from->key;
	to->key_len = from->key_len;
	to->payload = from->payload;
	to->payload_len = from->len;
	to->headers = *headers;
	if (to->nheaders == 0 ||
		rd_kafka_message_headers(from, &list) != RD_KAFKA_RESP_ERR_NO_ERROR)
		return;
	for (int i = 0; i < to->nheaders; i++)
	{
		OutboxHeader *header = (*headers)++;
		const void *value;

		(void) rd_kafka_header_get_all(list, i, &header->name, &value, &header->value_len);
		header->value = value;
	}
}

static OutboxSourceEvent
source_receive(OutboxConsumer *consumer, int max, const OutboxIncoming **messages,
			   const OutboxPlace **places, int *n)
{
	OutboxSourceEvent kind = OUTBOX_SOURCE_NOTHING;
	unsigned	nrebalances = consumer->nrebalances;
	OutboxHeader *headers;
	uint64_t	counter;
	size_t		queued;
	ssize_t		got;

	while (read(consumer->client.fd, &counter, sizeof(counter)) < 0 && errno == EINTR)
		;
	*n = 0;
	check_outside(consumer);
	release_messages(consumer);
	if (!reserve_messages(consumer, max))
	{
		kafka_source_no_memory(consumer);
		return OUTBOX_SOURCE_NOTHING;
	}
	if (consumer->events == NULL)
	{
		got = rd_kafka_consume_batch_queue(consumer->client.queue, 0,
										   consumer->received, max);
		if (got > 0)
			sort_out(consumer, (int) got, consumer->nrebalances != nrebalances);
	}

	if (consumer->nreceived > 0)
	{
		if (!reserve_headers(consumer))
		{
			kafka_source_no_memory(consumer);
			return OUTBOX_SOURCE_NOTHING;
		}
		headers = consumer->headers;
		for (int i = 0; i < consumer->nreceived; i++)
			fill_message(&consumer->messages[i], consumer->received[i], &headers);
		*messages = consumer->messages;
		*n = consumer->nreceived;
		kind = OUTBOX_SOURCE_MESSAGES;
	}
	else if (!kafka_event_next(consumer, &kind, places, n))
		kind = OUTBOX_SOURCE_NOTHING;

	queued = rd_kafka_queue_length(consumer->client.queue);
	if (consumer->events != NULL || queued > 0)
		kafka_wake(&consumer->client);
	kafka_keep_fetching(consumer, queued);
	return kind;
}

static OutboxFailure
commit_outcome(OutboxConsumer *consumer, rd_kafka_event_t *event, OutboxError *error)
{
	rd_kafka_resp_err_t err = rd_kafka_event_error(event);
	rd_kafka_topic_partition_list_t *list = rd_kafka_event_topic_partition_list(event);
	const char *topic = NULL;

	for (int i = 0; list != NULL && i < list->cnt; i++)
	{
		if (list->elems[i].err != RD_KAFKA_RESP_ERR_NO_ERROR)
		{
			err = list->elems[i].err;
			topic = list->elems[i].topic;
		}
	}
	return err == RD_KAFKA_RESP_ERR_NO_ERROR ? OUTBOX_OK
		: kafka_source_error(consumer, error, err, topic, NULL);
}

static OutboxFailure
source_commit(OutboxConsumer *consumer, const OutboxPlace *places, int n, int wait_ms,
			  OutboxError *error)
{
	rd_kafka_topic_partition_list_t *list;
	rd_kafka_resp_err_t err;
	rd_kafka_queue_t *queue = NULL;
	rd_kafka_event_t *event = NULL;
	OutboxFailure failure = OUTBOX_OK;

	if (n == 0)
		return OUTBOX_OK;
	list = rd_kafka_topic_partition_list_new(n);
	for (int i = 0; i < n; i++)
		rd_kafka_topic_partition_list_add(list, places[i].topic,
										  places[i].partition)->offset = places[i].offset;
	if (wait_ms <= 0)
		err = rd_kafka_commit(consumer->client.rk, list, 1);
	else
	{
		queue = rd_kafka_queue_new(consumer->client.rk);
		err = rd_kafka_commit_queue(consumer->client.rk, list, queue, NULL, NULL);
	}
	if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
		failure = kafka_source_error(consumer, error, err, NULL, NULL);
	else if (queue != NULL)
	{
		event = rd_kafka_queue_poll(queue, wait_ms);
		failure = event != NULL ? commit_outcome(consumer, event, error)
			: kafka_source_error(consumer, error, RD_KAFKA_RESP_ERR__TIMED_OUT, NULL, NULL);
	}
	if (event != NULL)
		rd_kafka_event_destroy(event);
	if (queue != NULL)
		rd_kafka_queue_destroy(queue);
	rd_kafka_topic_partition_list_destroy(list);
	return failure;
}

static void
source_status(OutboxConsumer *consumer, OutboxTransportStatus *status)
{
	kafka_status(&consumer->client, status);
}

/* What the library waits for is answered, else it would wait on. */
static bool
source_close(OutboxConsumer *consumer, int timeout_ms)
{
	release_messages(consumer);
	atomic_store(&consumer->closing, true);
	if (consumer->state == GROUP_ASSIGN || consumer->state == GROUP_REVOKE)
		rd_kafka_assign(consumer->client.rk, NULL);
	if (!kafka_close_within(consumer_destroy, consumer, timeout_ms))
		return false;
	consumer_free(consumer);
	return true;
}

const OutboxSource kafka_source = {
	.open = source_open,
	.event_fd = source_event_fd,
	.receive = source_receive,
	.seek = kafka_seek,
	.pause = kafka_pause,
	.commit = source_commit,
	.give_up = kafka_give_up,
	.find = kafka_find,
	.list = kafka_list,
	.known_end = kafka_known_end,
	.status = source_status,
	.close = source_close,
};
