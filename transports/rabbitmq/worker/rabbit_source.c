/*-------------------------------------------------------------------------
 *
 * rabbit_source.c
 *	  The way in: queues as topics.  The main thread's side.
 *
 * RabbitMQ has no positions.  A place here is (queue, partition 0, a number of
 * ours): deliveries are numbered in the order in which they come, going on from
 * where seek() says, so that places in the database only grow.  They mean
 * nothing to the broker and, after the connection was lost, nothing to us: what
 * was not acknowledged comes again under other numbers.  So a message is known
 * again by its id only (own_numbers in source.h).
 *
 * Deliveries are kept until they are committed.  So seek(), after an error in
 * the database say, goes back without the broker.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "rabbit_source.h"

#include <stdlib.h>
#include <string.h>

#define LIST_PREFIX rabbit_deliveries
#define LIST_TYPE RabbitDeliveries
#define LIST_ITEM RabbitDelivery
#define LIST_DEFINE
#include "common/list.h"

void
rabbit_delivery_free(RabbitDelivery *delivery)
{
	free(delivery->body);
	free(delivery->chunk);
	free(delivery);
}

/* Free what is done with, and let more be read. */
static void
free_all(OutboxConsumer *consumer, RabbitDeliveries *list)
{
	RabbitDelivery *delivery;
	size_t		bytes = 0;

	while ((delivery = rabbit_deliveries_take(list)) != NULL)
	{
		bytes += delivery->bytes;
		rabbit_delivery_free(delivery);
	}
	if (bytes > 0 && atomic_fetch_sub(&consumer->held, bytes) > consumer->max_bytes)
		thread_wake(consumer->io.io_fd);
}

/* Something for the io thread to look at. */
static void
nudge(OutboxConsumer *consumer)
{
	consumer->io_sleeps = false;
	thread_wake(consumer->io.io_fd);
}

static RabbitQueue *
queue_find(OutboxConsumer *consumer, const char *name)
{
	for (int i = 0; i < consumer->nqueues; i++)
		if (strcmp(consumer->queues[i].name, name) == 0)
			return &consumer->queues[i];
	return NULL;
}

/* --- opening and closing ------------------------------------------------------------ */

static void
release(OutboxConsumer *consumer)
{
	for (int i = 0; i < consumer->nqueues; i++)
	{
		free_all(consumer, &consumer->queues[i].kept);
		free(consumer->queues[i].name);
	}
	free_all(consumer, &consumer->arrived);
	free_all(consumer, &consumer->done);
	free(consumer->queues);
	free(consumer->out);
	free(consumer->places);
	rabbit_config_free(&consumer->config);
	rabbit_connection_release(&consumer->connection);
	io_thread_free(&consumer->io);
}

/* The queues to consume; false: out of memory. */
static bool
set_queues(OutboxConsumer *consumer, const OutboxSourceConfig *config)
{
	consumer->queues = calloc(config->ntopics, sizeof(RabbitQueue));
	consumer->places = calloc(config->ntopics, sizeof(OutboxPlace));
	if (consumer->queues == NULL || consumer->places == NULL)
		return false;
	for (int i = 0; i < config->ntopics; i++)
	{
		if (queue_find(consumer, config->topics[i]) != NULL)
			continue;
		consumer->queues[consumer->nqueues].name = strdup(config->topics[i]);
		if (consumer->queues[consumer->nqueues].name == NULL)
			return false;
		consumer->nqueues++;
	}
	return true;
}

static OutboxConsumer *
source_open(const OutboxSourceConfig *config, OutboxError *error)
{
	OutboxConsumer *consumer = io_thread_new(sizeof(OutboxConsumer), error);

	if (consumer == NULL)
		return NULL;
	rabbit_connection_init(&consumer->connection, &consumer->config);
	consumer->max_bytes = config->max_bytes;
	if (rabbit_config_parse(&consumer->config, config->client_id, config->noptions,
							config->options, error))
	{
		if (!set_queues(consumer, config))
			error_set(error, OUTBOX_FATAL, "MEMORY", "out of memory", NULL);
		else if (io_thread_start(&consumer->io, rabbit_consume_main, error))
			return consumer;
	}
	release(consumer);
	return NULL;
}

/* What was committed is acknowledged before the connection is closed. */
static bool
source_close(OutboxConsumer *consumer, int timeout_ms)
{
	if (!rabbit_thread_end(&consumer->io, &consumer->connection, timeout_ms))
		return false;
	release(consumer);
	return true;
}

/* --- receiving ------------------------------------------------------------------------ */

/* All queues, with those that are assigned only; how many. */
static int
list_places(OutboxConsumer *consumer, bool with_numbers)
{
	int			n = 0;

	for (int i = 0; i < consumer->nqueues; i++)
	{
		RabbitQueue *queue = &consumer->queues[i];

		if (queue->assigned)
			consumer->places[n++] = (OutboxPlace) {
				queue->name, 0, with_numbers && queue->placed ? queue->next : -1
			};
	}
	return n;
}

/* The connection that what is assigned came by is gone. */
static OutboxSourceEvent
lose(OutboxConsumer *consumer, const OutboxPlace **places, int *n)
{
	*n = list_places(consumer, true);
	*places = consumer->places;
	for (int i = 0; i < consumer->nqueues; i++)
	{
		RabbitQueue *queue = &consumer->queues[i];

		free_all(consumer, &queue->kept);
		queue->cursor = NULL;
		queue->assigned = queue->placed = queue->paused = false;
	}
	consumer->any_assigned = false;
	consumer->losing = true;
	return OUTBOX_SOURCE_LOST;
}

/* Queues that are there and not assigned yet; how many.  With the lock held. */
static int
assign(OutboxConsumer *consumer)
{
	int			n = 0;

	for (int i = 0; i < consumer->nqueues; i++)
	{
		RabbitQueue *queue = &consumer->queues[i];

		if (queue->there && !queue->assigned)
		{
			queue->assigned = true;
			consumer->places[n++] = (OutboxPlace) {queue->name, 0, -1};
		}
	}
	if (n > 0)
		consumer->any_assigned = true;
	return n;
}

/* Take over what has arrived.  With the lock held. */
static void
take_arrived(OutboxConsumer *consumer)
{
	RabbitDelivery *delivery;

	while ((delivery = rabbit_deliveries_take(&consumer->arrived)) != NULL)
	{
		RabbitQueue *queue = &consumer->queues[delivery->queue];

		rabbit_deliveries_append(&queue->kept, delivery);
		if (queue->cursor == NULL)
			queue->cursor = delivery;
	}
}

/* Hand out what is next, up to max; how many. */
static int
hand_out(OutboxConsumer *consumer, int max)
{
	int			n = 0;

	if (max > consumer->out_size)
	{
		OutboxIncoming *out = realloc(consumer->out, max * sizeof(OutboxIncoming));

		if (out == NULL)
			max = consumer->out_size;
		else
		{
			consumer->out = out;
			consumer->out_size = max;
		}
	}
	for (int i = 0; i < consumer->nqueues && n < max; i++)
	{
		RabbitQueue *queue = &consumer->queues[i];

		while (queue->placed && !queue->paused && queue->cursor != NULL && n < max)
		{
			consumer->out[n] = queue->cursor->incoming;
			consumer->out[n++].offset = queue->next++;
			queue->cursor = queue->cursor->next;
		}
	}
	return n;
}

/* See source.h. */
static OutboxSourceEvent
source_receive(OutboxConsumer *consumer, int max, const OutboxIncoming **messages,
			   const OutboxPlace **places, int *n)
{
	bool		lost;
	int			assigned = 0;

	thread_drain(consumer->io.fd);
	rabbit_connection_watch(&consumer->connection);
	free_all(consumer, &consumer->done);
	*n = 0;
	if (consumer->losing)
		return OUTBOX_SOURCE_NOTHING;
	pthread_mutex_lock(&consumer->io.lock);
	lost = consumer->any_assigned &&
		(!consumer->connected || consumer->up != consumer->generation);
	if (!lost)
	{
		consumer->generation = consumer->up;
		assigned = assign(consumer);
		take_arrived(consumer);
	}
	pthread_mutex_unlock(&consumer->io.lock);
	if (lost)
		return lose(consumer, places, n);
	if (assigned > 0)
	{
		*places = consumer->places;
		*n = assigned;
		return OUTBOX_SOURCE_ASSIGN;
	}
	*n = hand_out(consumer, max);
	*messages = consumer->out;
	return *n > 0 ? OUTBOX_SOURCE_MESSAGES : OUTBOX_SOURCE_NOTHING;
}

/* Has the connection gone since receive()?  With the lock held. */
static bool
is_gone(OutboxConsumer *consumer)
{
	return consumer->losing || !consumer->connected || consumer->up != consumer->generation;
}

/*
 * Where the numbers of a queue go on: back to a delivery that is kept, or, for
 * the first time or after somebody has moved the place, from what comes next.
 */
static void
place_queue(RabbitQueue *queue, int64_t offset)
{
	int64_t		kept = 0;

	for (RabbitDelivery *d = queue->kept.first; d != NULL; d = d->next)
		kept++;
	if (!queue->placed || offset < queue->base || offset > queue->base + kept)
		queue->base = offset;
	queue->next = queue->base;
	queue->cursor = queue->kept.first;
	while (queue->next < offset && queue->cursor != NULL)
	{
		queue->next++;
		queue->cursor = queue->cursor->next;
	}
	queue->placed = true;
	queue->paused = false;
}

static OutboxFailure
source_seek(OutboxConsumer *consumer, const OutboxPlace *places, int n, OutboxError *error)
{
	bool		fenced = false;

	pthread_mutex_lock(&consumer->io.lock);
	for (int i = 0; i < n && !fenced; i++)
	{
		RabbitQueue *queue = queue_find(consumer, places[i].topic);

		fenced = queue == NULL || !queue->assigned || is_gone(consumer);
	}
	for (int i = 0; i < n && !fenced; i++)
	{
		RabbitQueue *queue = queue_find(consumer, places[i].topic);

		place_queue(queue, places[i].offset);
		queue->wanted = true;
	}
	nudge(consumer);
	pthread_mutex_unlock(&consumer->io.lock);
	thread_wake(consumer->io.fd);
	return fenced ? error_set(error, OUTBOX_FENCED, "GONE", "the connection was lost", NULL) :
		OUTBOX_OK;
}

static OutboxFailure
source_pause(OutboxConsumer *consumer, const OutboxPlace *places, int n, bool paused,
			 OutboxError *error)
{
	for (int i = 0; i < n; i++)
	{
		RabbitQueue *queue = queue_find(consumer, places[i].topic);

		if (queue != NULL && queue->placed)
			queue->paused = paused;
	}
	if (!paused)
		thread_wake(consumer->io.fd);
	return OUTBOX_OK;
}

/* Acknowledge what is below these places; the broker answers nothing to that. */
static OutboxFailure
source_commit(OutboxConsumer *consumer, const OutboxPlace *places, int n, int wait_ms,
			  OutboxError *error)
{
	bool		gone;

	pthread_mutex_lock(&consumer->io.lock);
	gone = is_gone(consumer);
	for (int i = 0; i < n && !gone; i++)
	{
		RabbitQueue *queue = queue_find(consumer, places[i].topic);

		while (queue != NULL && queue->placed && queue->base < places[i].offset &&
			   queue->kept.first != NULL && queue->kept.first != queue->cursor)
		{
			RabbitDelivery *delivery = rabbit_deliveries_take(&queue->kept);

			queue->ack = delivery->tag;
			queue->base++;
			rabbit_deliveries_append(&consumer->done, delivery);
		}
	}
	nudge(consumer);
	pthread_mutex_unlock(&consumer->io.lock);
	return gone ? error_set(error, OUTBOX_FENCED, "GONE", "the connection was lost", NULL) :
		OUTBOX_OK;
}

static void
source_give_up(OutboxConsumer *consumer)
{
	consumer->losing = false;
	thread_wake(consumer->io.fd);
}

/* A queue begins with what is in it, whatever is asked for. */
static OutboxFailure
source_find(OutboxConsumer *consumer, const char *topic, int32_t partition, OutboxFrom from,
			int64_t time_ms, int64_t *offset, OutboxError *error)
{
	*offset = from == OUTBOX_FROM_GROUP ? -1 : 0;
	return OUTBOX_OK;
}

/* The queues that are there. */
static OutboxFailure
source_list(OutboxConsumer *consumer, const OutboxPlace **places, int *n, OutboxError *error)
{
	bool		listed;

	*n = 0;
	*places = consumer->places;
	pthread_mutex_lock(&consumer->io.lock);
	listed = consumer->listed;
	for (int i = 0; i < consumer->nqueues; i++)
		if (consumer->queues[i].there)
			consumer->places[(*n)++] = (OutboxPlace) {consumer->queues[i].name, 0, -1};
	pthread_mutex_unlock(&consumer->io.lock);
	return listed ? OUTBOX_OK : error_set(error, OUTBOX_RETRY, "", "", NULL);
}

/* The broker does not say. */
static int64_t
source_known_end(OutboxConsumer *consumer, const char *topic, int32_t partition)
{
	return -1;
}

/* A queue's messages are gone when they are acknowledged. */
static bool
source_forgets(OutboxConsumer *consumer)
{
	return true;
}

const OutboxSource rabbit_source = {
	.open = source_open,
	.event_fd = io_consumer_event_fd,
	.receive = source_receive,
	.seek = source_seek,
	.pause = source_pause,
	.commit = source_commit,
	.give_up = source_give_up,
	.find = source_find,
	.list = source_list,
	.known_end = source_known_end,
	.status = io_consumer_status,
	.close = source_close,
	.forgets = source_forgets,
	.own_numbers = true,
};
