/*-------------------------------------------------------------------------
 *
 * kafka_find.c
 *	  Where a partition begins and ends, where it is at a time, and where the
 *	  group is; which partitions there are.
 *
 * The library's calls block, so a thread of ours makes them.  It also wakes the
 * library up where it sleeps too long (kafka_keep_fetching).
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "kafka_source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ASK_TIMEOUT_MS		3000
#define ASK_PACE_MS			1000	/* what failed is asked again once a second */

#define NUDGE_TIMEOUT_MS	1000
#define NUDGE_PACE_MS		10
#define NUDGE_LEAST			1000	/* messages */
#define NEEDS_NO_NUDGE		0x02020000	/* versions from here on */

/* A question that is not about a place: which partitions there are. */
#define LIST				(-1)

typedef enum KafkaQuestionState
{
	QUESTION_ASKED,
	QUESTION_ANSWERED
} KafkaQuestionState;

typedef struct KafkaQuestion
{
	struct KafkaQuestion *next;
	int			from;			/* an OutboxFrom, or LIST */
	int64_t		time_ms;
	int32_t		partition;
	KafkaQuestionState state;
	rd_kafka_resp_err_t err;
	int64_t		offset;
	KafkaEvent *list;
	int64_t		answered_ms;
	char		topic[];
} KafkaQuestion;

struct KafkaFinder
{
	pthread_mutex_t lock;		/* guards all below */
	pthread_cond_t wake;
	pthread_t	thread;
	bool		runs;			/* main thread only */
	bool		stop;
	KafkaQuestion *questions;
	rd_kafka_topic_partition_list_t *nudge; /* whose brokers to wake, or NULL */
};

/* The library's questions about one partition, asked with a list. */
static rd_kafka_resp_err_t
ask_listed(rd_kafka_t *rk, const KafkaQuestion *question, int64_t *offset)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
	rd_kafka_resp_err_t err;

	rd_kafka_topic_partition_list_add(list, question->topic,
									  question->partition)->offset = question->time_ms;
	if (question->from == OUTBOX_FROM_GROUP)
		err = rd_kafka_committed(rk, list, ASK_TIMEOUT_MS);
	else
		err = rd_kafka_offsets_for_times(rk, list, ASK_TIMEOUT_MS);
	if (err == RD_KAFKA_RESP_ERR_NO_ERROR)
		err = list->elems[0].err;
	if (list->elems[0].offset >= 0)
		*offset = list->elems[0].offset;
	rd_kafka_topic_partition_list_destroy(list);
	return err;
}

/* Ask the brokers; blocks. */
static rd_kafka_resp_err_t
ask(OutboxConsumer *consumer, const KafkaQuestion *question, int64_t *offset, KafkaEvent **list)
{
	rd_kafka_t *rk = consumer->client.rk;
	int64_t		low;
	int64_t		high;
	rd_kafka_resp_err_t err;

	if (question->from == LIST)
		return kafka_list_ask(consumer, list);
	if (question->from == OUTBOX_FROM_GROUP)
		return ask_listed(rk, question, offset);
	err = rd_kafka_query_watermark_offsets(rk, question->topic, question->partition,
										   &low, &high, ASK_TIMEOUT_MS);
	*offset = question->from == OUTBOX_FROM_EARLIEST ? low : high;
	/* in this order: what comes meanwhile is young enough, and not behind that end */
	if (err == RD_KAFKA_RESP_ERR_NO_ERROR && question->from == OUTBOX_FROM_TIME)
		err = ask_listed(rk, question, offset);
	return err;
}

/* Any request wakes a broker's thread; so one to all leaders. */
static void
nudge(OutboxConsumer *consumer)
{
	struct KafkaFinder *finder = consumer->finder;
	rd_kafka_topic_partition_list_t *list = finder->nudge;

	finder->nudge = NULL;
	pthread_mutex_unlock(&finder->lock);
	(void) rd_kafka_offsets_for_times(consumer->client.rk, list, NUDGE_TIMEOUT_MS);
	rd_kafka_topic_partition_list_destroy(list);
	pthread_mutex_lock(&finder->lock);
}

static void *
finder_main(void *arg)
{
	OutboxConsumer *consumer = arg;
	struct KafkaFinder *finder = consumer->finder;

	pthread_mutex_lock(&finder->lock);
	while (!finder->stop)
	{
		KafkaQuestion *question = finder->questions;
		rd_kafka_resp_err_t err;
		int64_t		offset = -1;
		KafkaEvent *list = NULL;

		while (question != NULL && question->state != QUESTION_ASKED)
			question = question->next;
		if (finder->nudge != NULL)
		{
			nudge(consumer);
			continue;
		}
		if (question == NULL)
		{
			pthread_cond_wait(&finder->wake, &finder->lock);
			continue;
		}
		/* one that is asked is not freed */
		pthread_mutex_unlock(&finder->lock);
		err = ask(consumer, question, &offset, &list);
		pthread_mutex_lock(&finder->lock);
		question->err = err;
		question->offset = offset;
		question->list = list;
		question->answered_ms = thread_now_ms();
		question->state = QUESTION_ANSWERED;
		kafka_wake(&consumer->client);
	}
	pthread_mutex_unlock(&finder->lock);
	return NULL;
}

static struct KafkaFinder *
finder_get(OutboxConsumer *consumer)
{
	struct KafkaFinder *finder = consumer->finder;

	if (finder == NULL)
	{
		finder = calloc(1, sizeof(struct KafkaFinder));
		if (finder == NULL)
			return NULL;
		pthread_mutex_init(&finder->lock, NULL);
		pthread_cond_init(&finder->wake, NULL);
		consumer->finder = finder;
	}
	if (!finder->runs)
	{
		sigset_t	saved;

		kafka_block_signals(&saved);
		finder->runs = pthread_create(&finder->thread, NULL, finder_main, consumer) == 0;
		kafka_restore_signals(&saved);
	}
	return finder;
}

/* Where the question stands in the list, or its end; the lock is held. */
static KafkaQuestion **
question_slot(struct KafkaFinder *finder, const char *topic, int32_t partition,
			  int from, int64_t time_ms)
{
	KafkaQuestion **slot = &finder->questions;

	while (*slot != NULL &&
		   ((*slot)->partition != partition || (*slot)->from != from ||
			(*slot)->time_ms != time_ms || strcmp((*slot)->topic, topic) != 0))
		slot = &(*slot)->next;
	return slot;
}

/* Put a question at the end of the list; the lock is held. */
static void
question_put(struct KafkaFinder *finder, KafkaQuestion **end, const char *topic,
			 int32_t partition, int from, int64_t time_ms)
{
	size_t		size = strlen(topic) + 1;
	KafkaQuestion *question = calloc(1, sizeof(KafkaQuestion) + size);

	if (question == NULL)
		return;					/* asked again later */
	memcpy(question->topic, topic, size);
	question->partition = partition;
	question->from = from;
	question->time_ms = time_ms;
	*end = question;
	pthread_cond_signal(&finder->wake);
}

/*
 * Ask, or take the answer: then OK, and the question is the caller's, to free.
 */
static OutboxFailure
take_answer(OutboxConsumer *consumer, const char *topic, int32_t partition, int from,
			int64_t time_ms, KafkaQuestion **answer, OutboxError *error)
{
	struct KafkaFinder *finder = finder_get(consumer);
	OutboxFailure failure = OUTBOX_RETRY;
	KafkaQuestion **slot;
	KafkaQuestion *question;

	memset(error, 0, sizeof(*error));
	error->failure = OUTBOX_RETRY;
	if (finder == NULL || !finder->runs)
		return kafka_error_set(error, OUTBOX_RETRY, RD_KAFKA_RESP_ERR__FAIL,
							   "could not start a thread");
	pthread_mutex_lock(&finder->lock);
	slot = question_slot(finder, topic, partition, from, time_ms);
	question = *slot;
	if (question == NULL)
		question_put(finder, slot, topic, partition, from, time_ms);
	else if (question->state == QUESTION_ANSWERED &&
			 question->err == RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		*answer = question;
		*slot = question->next;
		failure = OUTBOX_OK;
	}
	else if (question->err != RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		failure = kafka_source_error(consumer, error, question->err, topic, NULL);
		if (question->state == QUESTION_ANSWERED &&
			thread_now_ms() - question->answered_ms >= ASK_PACE_MS)
		{
			question->state = QUESTION_ASKED;
			pthread_cond_signal(&finder->wake);
		}
	}
	pthread_mutex_unlock(&finder->lock);
	return failure;
}

/* See source.h. */
OutboxFailure
kafka_find(OutboxConsumer *consumer, const char *topic, int32_t partition,
		   OutboxFrom from, int64_t time_ms, int64_t *offset, OutboxError *error)
{
	KafkaQuestion *answer;
	OutboxFailure failure = take_answer(consumer, topic, partition, from,
										from == OUTBOX_FROM_TIME ? time_ms : 0, &answer, error);

	if (failure != OUTBOX_OK)
		return failure;
	*offset = answer->offset;
	free(answer);
	return OUTBOX_OK;
}

/* See source.h. */
OutboxFailure
kafka_list(OutboxConsumer *consumer, const OutboxPlace **places, int *n, OutboxError *error)
{
	KafkaQuestion *answer;
	OutboxFailure failure = take_answer(consumer, "", -1, LIST, 0, &answer, error);

	if (failure != OUTBOX_OK)
		return failure;
	free(consumer->listed);
	consumer->listed = answer->list;
	free(answer);
	*places = consumer->listed->places;
	*n = consumer->listed->n;
	return OUTBOX_OK;
}

/* See source.h. */
int64_t
kafka_known_end(OutboxConsumer *consumer, const char *topic, int32_t partition)
{
	int64_t		low;
	int64_t		high;

	if (rd_kafka_get_watermark_offsets(consumer->client.rk, topic, partition, &low,
									   &high) != RD_KAFKA_RESP_ERR_NO_ERROR || high < 0)
		return -1;
	return high;
}

/*
 * Before 2.2 a broker's thread that finds the queue full looks again when it has
 * something else to do, or after a second.  So it gets something to do when half
 * of what was queued is gone.  Called with the number of those left.
 */
void
kafka_keep_fetching(OutboxConsumer *consumer, size_t queued)
{
	struct KafkaFinder *finder;
	int64_t		now;

	if (queued > consumer->most_queued)
		consumer->most_queued = queued;
	if (consumer->most_queued < NUDGE_LEAST || queued > consumer->most_queued / 2 ||
		rd_kafka_version() >= NEEDS_NO_NUDGE)
		return;
	now = thread_now_ms();
	if (now - consumer->nudged_ms < NUDGE_PACE_MS)
		return;
	finder = finder_get(consumer);
	if (finder == NULL || !finder->runs)
		return;
	consumer->nudged_ms = now;
	consumer->most_queued = queued;
	pthread_mutex_lock(&finder->lock);
	if (finder->nudge == NULL)
	{
		finder->nudge = rd_kafka_topic_partition_list_new(consumer->npartitions);
		for (int i = 0; i < consumer->npartitions; i++)
			rd_kafka_topic_partition_list_add(finder->nudge, consumer->partitions[i].topic,
											  consumer->partitions[i].partition)->offset =
				RD_KAFKA_OFFSET_END;
		pthread_cond_signal(&finder->wake);
	}
	pthread_mutex_unlock(&finder->lock);
}

/* Waits for a question that is under way. */
void
kafka_find_stop(OutboxConsumer *consumer)
{
	struct KafkaFinder *finder = consumer->finder;

	if (finder == NULL || !finder->runs)
		return;
	pthread_mutex_lock(&finder->lock);
	finder->stop = true;
	pthread_cond_signal(&finder->wake);
	pthread_mutex_unlock(&finder->lock);
	pthread_join(finder->thread, NULL);
	finder->runs = false;
}

void
kafka_find_free(OutboxConsumer *consumer)
{
	struct KafkaFinder *finder = consumer->finder;

	free(consumer->listed);
	if (finder == NULL)
		return;
	while (finder->questions != NULL)
	{
		KafkaQuestion *question = finder->questions;

		finder->questions = question->next;
		free(question->list);
		free(question);
	}
	if (finder->nudge != NULL)
		rd_kafka_topic_partition_list_destroy(finder->nudge);
	pthread_cond_destroy(&finder->wake);
	pthread_mutex_destroy(&finder->lock);
	free(finder);
}
