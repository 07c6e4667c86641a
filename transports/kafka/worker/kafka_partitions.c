/*-------------------------------------------------------------------------
 *
 * kafka_partitions.c
 *	  The partitions that the group gave us, and where each of them is.
 *
 * The group's protocol is the eager one: all partitions are taken away before
 * any are given, and after each the library waits for our answer.
 *
 * A place is set by the library's seek where it fetches already.  Where it does
 * not, all partitions are assigned anew, each at its place; so it is at the
 * first seek and after a gap, which makes the library give a partition up.
 * Then messages of before may still be in the queue: those are behind their
 * partition's position, and passed over.
 *
 * Pausing throws away what was fetched, and some versions go on behind that.
 * So resuming always seeks, and what comes of a paused partition is passed
 * over.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "kafka_source.h"

#include <stdlib.h>
#include <string.h>

/* The library's main thread answers; this is for when it hangs. */
#define SEEK_TIMEOUT_MS		2000

static int
by_place(const void *a, const void *b)
{
	const KafkaPartition *one = a;
	const KafkaPartition *other = b;
	int			order = strcmp(one->topic, other->topic);

	if (order != 0)
		return order;
	return one->partition < other->partition ? -1 : one->partition > other->partition;
}

/* NULL: it is not ours. */
KafkaPartition *
kafka_partition_find(OutboxConsumer *consumer, const char *topic, int32_t partition)
{
	KafkaPartition key = {.topic = (char *) topic, .partition = partition};

	if (consumer->npartitions == 0)
		return NULL;
	return bsearch(&key, consumer->partitions, consumer->npartitions,
				   sizeof(KafkaPartition), by_place);
}

/* Places of partitions, with their names, in one piece; NULL: no memory. */
KafkaEvent *
kafka_event_new(OutboxSourceEvent kind, const KafkaPartition *partitions, int n)
{
	size_t		size = sizeof(KafkaEvent) + n * sizeof(OutboxPlace);
	KafkaEvent *event;
	char	   *names;

	for (int i = 0; i < n; i++)
		size += strlen(partitions[i].topic) + 1;
	event = calloc(1, size);
	if (event == NULL)
		return NULL;
	event->kind = kind;
	event->n = n;
	names = (char *) &event->places[n];
	for (int i = 0; i < n; i++)
	{
		size_t		len = strlen(partitions[i].topic) + 1;

		memcpy(names, partitions[i].topic, len);
		event->places[i].topic = names;
		event->places[i].partition = partitions[i].partition;
		event->places[i].offset = partitions[i].position;
		names += len;
	}
	return event;
}

static void
event_add(OutboxConsumer *consumer, OutboxSourceEvent kind,
		  const KafkaPartition *partitions, int n)
{
	KafkaEvent **end = &consumer->events;
	KafkaEvent *event = kafka_event_new(kind, partitions, n);

	if (event == NULL)
	{
		kafka_source_no_memory(consumer);
		return;
	}
	while (*end != NULL)
		end = &(*end)->next;
	*end = event;
}

static void
partitions_clear(OutboxConsumer *consumer)
{
	for (int i = 0; i < consumer->npartitions; i++)
		free(consumer->partitions[i].topic);
	free(consumer->partitions);
	consumer->partitions = NULL;
	consumer->npartitions = 0;
}

/* Take over what the group gives; false: no memory. */
static bool
partitions_set(OutboxConsumer *consumer, const rd_kafka_topic_partition_list_t *list)
{
	partitions_clear(consumer);
	consumer->partitions = calloc(list->cnt, sizeof(KafkaPartition));
	if (consumer->partitions == NULL)
		return false;
	for (int i = 0; i < list->cnt; i++)
	{
		KafkaPartition *partition = &consumer->partitions[i];

		partition->topic = strdup(list->elems[i].topic);
		if (partition->topic == NULL)
			return false;
		partition->partition = list->elems[i].partition;
		partition->position = -1;
		consumer->npartitions++;
	}
	qsort(consumer->partitions, consumer->npartitions, sizeof(KafkaPartition), by_place);
	return true;
}

/*
 * The library's rebalance callback: from receive(), or from the closer.  Nothing
 * is answered here but what needs no decision.
 */
void
kafka_rebalanced(rd_kafka_t *rk, rd_kafka_resp_err_t err,
				 rd_kafka_topic_partition_list_t *list, void *opaque)
{
	OutboxConsumer *consumer = opaque;

	if (atomic_load(&consumer->closing))
	{
		rd_kafka_assign(rk, NULL);
		return;
	}
	consumer->nrebalances++;
	consumer->outside_ms = err == RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS ? 0 : thread_now_ms();
	if (err == RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS)
	{
		if (list->cnt == 0)
		{
			/* fewer partitions than members */
			partitions_clear(consumer);
			consumer->state = GROUP_NOTHING;
			rd_kafka_assign(rk, list);
			event_add(consumer, OUTBOX_SOURCE_ASSIGN, NULL, 0);
			return;
		}
		if (!partitions_set(consumer, list))
		{
			kafka_source_no_memory(consumer);
			return;
		}
		consumer->state = GROUP_ASSIGN;
		event_add(consumer, OUTBOX_SOURCE_ASSIGN, consumer->partitions,
				  consumer->npartitions);
		return;
	}
	if (consumer->npartitions == 0)
	{
		rd_kafka_assign(rk, NULL);
		return;
	}
	consumer->state = GROUP_REVOKE;
	event_add(consumer,
			  rd_kafka_assignment_lost(rk) ? OUTBOX_SOURCE_LOST : OUTBOX_SOURCE_REVOKE,
			  consumer->partitions, consumer->npartitions);
}

/* The broker has nothing at the place, and the library has stopped. */
void
kafka_partition_gap(OutboxConsumer *consumer, KafkaPartition *partition)
{
	partition->gap = true;
	partition->started = false;
	event_add(consumer, OUTBOX_SOURCE_GAP, partition, 1);
}

/* Is this still so?  A gap may be in what was taken away since. */
static bool
event_holds(OutboxConsumer *consumer, const KafkaEvent *event)
{
	KafkaPartition *partition;

	if (event->kind != OUTBOX_SOURCE_GAP)
		return true;
	partition = kafka_partition_find(consumer, event->places[0].topic,
									 event->places[0].partition);
	return consumer->state == GROUP_OURS && partition != NULL && partition->gap;
}

/* The next event, if there is one; what it points to lives until the next call. */
bool
kafka_event_next(OutboxConsumer *consumer, OutboxSourceEvent *kind,
				 const OutboxPlace **places, int *n)
{
	do
	{
		free(consumer->told);
		consumer->told = consumer->events;
		if (consumer->told == NULL)
			return false;
		consumer->events = consumer->told->next;
	} while (!event_holds(consumer, consumer->told));
	*kind = consumer->told->kind;
	*places = consumer->told->places;
	*n = consumer->told->n;
	return true;
}

static void
list_add(rd_kafka_topic_partition_list_t *list, const KafkaPartition *partition)
{
	rd_kafka_topic_partition_list_add(list, partition->topic,
									  partition->partition)->offset = partition->position;
}

static KafkaPartition *
list_partition(OutboxConsumer *consumer, const rd_kafka_topic_partition_list_t *list, int i)
{
	return kafka_partition_find(consumer, list->elems[i].topic, list->elems[i].partition);
}

/* Pause what is to be paused; an assignment may have forgotten. */
static void
pause_again(OutboxConsumer *consumer)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);

	for (int i = 0; i < consumer->npartitions; i++)
	{
		if (consumer->partitions[i].paused && consumer->partitions[i].started)
			list_add(list, &consumer->partitions[i]);
	}
	if (list->cnt > 0)
		(void) rd_kafka_pause_partitions(consumer->client.rk, list);
	rd_kafka_topic_partition_list_destroy(list);
}

static bool
has_place(const KafkaPartition *partition)
{
	return partition->position >= 0 && !partition->gap;
}

/* Fetch all partitions that have a place, each from there. */
static OutboxFailure
assign_anew(OutboxConsumer *consumer, OutboxError *error)
{
	rd_kafka_topic_partition_list_t *list =
		rd_kafka_topic_partition_list_new(consumer->npartitions);
	rd_kafka_resp_err_t err;

	for (int i = 0; i < consumer->npartitions; i++)
	{
		KafkaPartition *partition = &consumer->partitions[i];

		partition->started = false;
		if (has_place(partition))
			list_add(list, partition);
	}
	err = rd_kafka_assign(consumer->client.rk, list);
	rd_kafka_topic_partition_list_destroy(list);
	if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
		return kafka_source_error(consumer, error, err, NULL, NULL);
	for (int i = 0; i < consumer->npartitions; i++)
		consumer->partitions[i].started = has_place(&consumer->partitions[i]);
	consumer->state = GROUP_OURS;
	pause_again(consumer);
	return OUTBOX_OK;
}

/*
 * Set partitions that are being fetched to their places.  When the library does
 * not say whether it did, they stand still until the next try.
 */
static OutboxFailure
seek_started(OutboxConsumer *consumer, rd_kafka_topic_partition_list_t *list,
			 OutboxError *error)
{
	rd_kafka_error_t *failed = rd_kafka_seek_partitions(consumer->client.rk, list,
														SEEK_TIMEOUT_MS);

	if (failed != NULL)
	{
		rd_kafka_resp_err_t err = rd_kafka_error_code(failed);

		rd_kafka_error_destroy(failed);
		for (int i = 0; i < list->cnt; i++)
		{
			KafkaPartition *partition = list_partition(consumer, list, i);

			if (partition != NULL)
				partition->started = false;
		}
		return kafka_source_error(consumer, error, err, NULL, NULL);
	}
	for (int i = 0; i < list->cnt; i++)
	{
		/* its fetching has ended meanwhile, or was not begun */
		if (list->elems[i].err != RD_KAFKA_RESP_ERR_NO_ERROR)
			return assign_anew(consumer, error);
	}
	return OUTBOX_OK;
}

/* See source.h. */
OutboxFailure
kafka_seek(OutboxConsumer *consumer, const OutboxPlace *places, int n,
		   OutboxError *error)
{
	rd_kafka_topic_partition_list_t *list;
	bool		all_started = consumer->state == GROUP_OURS;
	OutboxFailure failure = OUTBOX_OK;

	for (int i = 0; i < n; i++)
	{
		if ((consumer->state != GROUP_ASSIGN && consumer->state != GROUP_OURS) ||
			places[i].offset < 0 ||
			kafka_partition_find(consumer, places[i].topic, places[i].partition) == NULL)
			return kafka_error_set(error, OUTBOX_FENCED, RD_KAFKA_RESP_ERR__STATE,
								   "a partition to go on with is not ours");
	}
	list = rd_kafka_topic_partition_list_new(n);
	for (int i = 0; i < n; i++)
	{
		KafkaPartition *partition = kafka_partition_find(consumer, places[i].topic,
														 places[i].partition);

		partition->position = places[i].offset;
		partition->gap = false;
		all_started = all_started && partition->started;
		list_add(list, partition);
	}
	if (n > 0)
		failure = all_started ? seek_started(consumer, list, error)
			: assign_anew(consumer, error);
	rd_kafka_topic_partition_list_destroy(list);
	return failure;
}

/* Have partitions fetched again that were paused. */
static OutboxFailure
resume(OutboxConsumer *consumer, rd_kafka_topic_partition_list_t *list,
	   bool all_started, OutboxError *error)
{
	OutboxFailure failure = all_started ? seek_started(consumer, list, error)
		: assign_anew(consumer, error);

	(void) rd_kafka_resume_partitions(consumer->client.rk, list);
	for (int i = 0; i < list->cnt && failure != OUTBOX_OK; i++)
	{
		KafkaPartition *partition = list_partition(consumer, list, i);

		if (partition != NULL)
			partition->paused = true;
	}
	return failure;
}

/* See source.h. */
OutboxFailure
kafka_pause(OutboxConsumer *consumer, const OutboxPlace *places, int n,
			bool paused, OutboxError *error)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(n);
	OutboxFailure failure = OUTBOX_OK;
	bool		all_started = true;

	for (int i = 0; i < n; i++)
	{
		KafkaPartition *partition = kafka_partition_find(consumer, places[i].topic,
														 places[i].partition);

		if (partition == NULL || partition->paused == paused)
			continue;
		partition->paused = paused;
		if (has_place(partition))
		{
			all_started = all_started && partition->started;
			list_add(list, partition);
		}
	}
	if (list->cnt > 0 && consumer->state == GROUP_OURS)
	{
		if (paused)
			(void) rd_kafka_pause_partitions(consumer->client.rk, list);
		else
			failure = resume(consumer, list, all_started, error);
	}
	rd_kafka_topic_partition_list_destroy(list);
	return failure;
}

/* See source.h. */
void
kafka_give_up(OutboxConsumer *consumer)
{
	if (consumer->state != GROUP_REVOKE)
		return;
	partitions_clear(consumer);
	consumer->state = GROUP_NOTHING;
	rd_kafka_assign(consumer->client.rk, NULL);
}

void
kafka_partitions_free(OutboxConsumer *consumer)
{
	partitions_clear(consumer);
	while (consumer->events != NULL)
	{
		KafkaEvent *event = consumer->events;

		consumer->events = event->next;
		free(event);
	}
	free(consumer->told);
}
