/*-------------------------------------------------------------------------
 *
 * jet_source.c
 *	  The way in: a stream as a source.  The main thread's side.
 *
 * The place is the database's: the server sends from the sequence on that
 * seek() names, and remembers nothing of us, unless the stream is a work queue,
 * whose messages it forgets when they are acknowledged, after the commit.
 *
 * One of a subscription's workers has the place, the first; others have
 * nothing to do.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "jet_source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIST_PREFIX jet_arrivals
#define LIST_TYPE JetArrivals
#define LIST_ITEM JetArrival
#define LIST_DEFINE
#include "common/list.h"

void
jet_arrival_free(JetArrival *arrival)
{
	natsMsg_Destroy(arrival->msg);
	free(arrival);
}

/* Forget a list; with the lock held, or alone. */
static void
free_all(OutboxConsumer *consumer, JetArrivals *list)
{
	JetArrival *arrival;

	while ((arrival = jet_arrivals_take(list)) != NULL)
	{
		consumer->held -= arrival->bytes;
		jet_arrival_free(arrival);
	}
}

/* --- opening and closing ------------------------------------------------------------ */

static void
release(OutboxConsumer *consumer)
{
	free_all(consumer, &consumer->arrived);
	free_all(consumer, &consumer->out);
	for (int i = 0; i < consumer->ntopics; i++)
		free(consumer->topics[i]);
	free(consumer->topics);
	free(consumer->messages);
	free(consumer->headers);
	jet_connection_release(&consumer->connection);
	jet_config_free(&consumer->config);
	io_thread_free(&consumer->io);
}

/* The topics to read; false: out of memory. */
static bool
set_topics(OutboxConsumer *consumer, const OutboxSourceConfig *config)
{
	char		filter[JET_MAX_SUBJECT];

	consumer->topics = calloc(config->ntopics, sizeof(char *));
	if (consumer->topics == NULL)
		return false;
	for (int i = 0; i < config->ntopics; i++)
	{
		consumer->topics[i] = strdup(config->topics[i]);
		if (consumer->topics[i] == NULL)
			return false;
		consumer->ntopics++;
	}
	consumer->exact = jet_topic_filter(consumer, filter, sizeof(filter));
	return true;
}

static OutboxConsumer *
source_open(const OutboxSourceConfig *config, OutboxError *error)
{
	OutboxConsumer *consumer = io_thread_new(sizeof(OutboxConsumer), error);

	if (consumer == NULL)
		return NULL;
	consumer->max_bytes = config->max_bytes;
	consumer->member = config->member == 0;
	consumer->wanted = -1;
	jet_connection_init(&consumer->connection, &consumer->config, consumer->io.io_fd);
	if (jet_config_parse(&consumer->config, config->client_id, NULL, config->noptions,
						 config->options, error))
	{
		if (!set_topics(consumer, config))
			error_set(error, OUTBOX_FATAL, "MEMORY", "out of memory", NULL);
		else if (jet_thread_start(&consumer->io, jet_reader_main, error))
			return consumer;
	}
	release(consumer);
	return NULL;
}

static bool
source_close(OutboxConsumer *consumer, int timeout_ms)
{
	if (!jet_thread_end(&consumer->io, timeout_ms))
		return false;
	release(consumer);
	jet_library_close();
	return true;
}

/* --- events --------------------------------------------------------------------------- */

static void
set_place(OutboxConsumer *consumer, int64_t offset, const OutboxPlace **places, int *n)
{
	consumer->place = (OutboxPlace) {consumer->config.stream, 0, offset, NULL};
	*places = &consumer->place;
	*n = 1;
}

/* Take what has come, up to max; with the lock held. */
static int
take_out(OutboxConsumer *consumer, int max)
{
	int			n = 0;

	while (n < max && consumer->arrived.first != NULL)
	{
		jet_arrivals_append(&consumer->out, jet_arrivals_take(&consumer->arrived));
		n++;
	}
	if (consumer->arrived.first != NULL)
		thread_wake(consumer->io.fd); /* there is more */
	return n;
}

/* There was no memory for all that was taken out: from there on it comes again. */
static void
come_again(OutboxConsumer *consumer, int64_t from)
{
	pthread_mutex_lock(&consumer->io.lock);
	free_all(consumer, &consumer->arrived);
	consumer->wanted = from;
	consumer->generation++;
	consumer->passed = 0;
	pthread_mutex_unlock(&consumer->io.lock);
	thread_wake(consumer->io.io_fd);
}

static OutboxSourceEvent
source_receive(OutboxConsumer *consumer, int max, const OutboxIncoming **messages,
			   const OutboxPlace **places, int *n)
{
	OutboxSourceEvent event = OUTBOX_SOURCE_NOTHING;
	int			taken = 0;
	bool		room;

	thread_drain(consumer->io.fd);
	*n = 0;
	pthread_mutex_lock(&consumer->io.lock);
	room = consumer->held > consumer->max_bytes / 2;
	free_all(consumer, &consumer->out);
	if (!consumer->assigned)
	{
		if (consumer->seen)
			event = OUTBOX_SOURCE_ASSIGN;
	}
	else if (consumer->gap)
		event = consumer->gap_same ? OUTBOX_SOURCE_SAME : OUTBOX_SOURCE_GAP;
	else if (!consumer->paused && (taken = take_out(consumer, max)) > 0)
		event = OUTBOX_SOURCE_MESSAGES;
	else if (consumer->arrived.first == NULL && consumer->passed > consumer->handed)
		event = OUTBOX_SOURCE_PASSED;
	if (consumer->gap)
		set_place(consumer, consumer->gap_at, places, n);
	else if (event == OUTBOX_SOURCE_PASSED)
	{
		consumer->handed = consumer->passed;
		set_place(consumer, consumer->passed, places, n);
	}
	consumer->gap = false;
	pthread_mutex_unlock(&consumer->io.lock);
	if (room)
		thread_wake(consumer->io.io_fd);

	if (event == OUTBOX_SOURCE_ASSIGN)
	{
		consumer->assigned = true;
		if (consumer->member)
			set_place(consumer, -1, places, n);
	}
	if (event == OUTBOX_SOURCE_MESSAGES)
	{
		*n = jet_incoming_fill(consumer);
		*messages = consumer->messages;
		if (*n == 0)
			event = OUTBOX_SOURCE_NOTHING;
		else
			consumer->handed = consumer->messages[*n - 1].offset + 1;
		if (*n < taken)
			come_again(consumer, *n > 0 ? consumer->handed : (int64_t) consumer->out.first->sequence);
	}
	return event;
}

static bool
is_ours(const OutboxConsumer *consumer, const char *topic, int32_t partition)
{
	return consumer->member && consumer->assigned && partition == 0 &&
		strcmp(topic, consumer->config.stream) == 0;
}

static OutboxFailure
source_seek(OutboxConsumer *consumer, const OutboxPlace *places, int n, OutboxError *error)
{
	for (int i = 0; i < n; i++)
		if (!is_ours(consumer, places[i].topic, places[i].partition))
			return error_set(error, OUTBOX_FENCED, "FENCED", "the stream is not ours", NULL);
	if (n == 0)
		return OUTBOX_OK;
	pthread_mutex_lock(&consumer->io.lock);
	free_all(consumer, &consumer->arrived);
	consumer->wanted = places[0].offset;
	/* a crash may have come before we could say so */
	consumer->committed = (uint64_t) places[0].offset;
	consumer->generation++;
	consumer->gap = false;
	consumer->passed = 0;
	snprintf(consumer->wanted_created, sizeof(consumer->wanted_created), "%s",
			 places[0].incarnation ? places[0].incarnation : "");
	pthread_mutex_unlock(&consumer->io.lock);
	consumer->paused = false;
	consumer->handed = places[0].offset;
	thread_wake(consumer->io.io_fd);
	return OUTBOX_OK;
}

static OutboxFailure
source_pause(OutboxConsumer *consumer, const OutboxPlace *places, int n, bool paused,
			 OutboxError *error)
{
	for (int i = 0; i < n; i++)
		if (is_ours(consumer, places[i].topic, places[i].partition))
			consumer->paused = paused;
	thread_wake(consumer->io.fd);
	return OUTBOX_OK;
}

/* A work queue is told; other streams remember nothing of us. */
static OutboxFailure
source_commit(OutboxConsumer *consumer, const OutboxPlace *places, int n, int wait_ms,
			  OutboxError *error)
{
	for (int i = 0; i < n; i++)
	{
		if (!is_ours(consumer, places[i].topic, places[i].partition))
			return error_set(error, OUTBOX_FENCED, "FENCED", "the stream is not ours", NULL);
		pthread_mutex_lock(&consumer->io.lock);
		consumer->committed = (uint64_t) places[i].offset;
		pthread_mutex_unlock(&consumer->io.lock);
		thread_wake(consumer->io.io_fd);
	}
	return OUTBOX_OK;
}

/* Nothing is ever taken from us. */
static void
source_give_up(OutboxConsumer *consumer)
{
}

/* --- looking things up ------------------------------------------------------------------ */

static OutboxFailure
not_yet(OutboxError *error)
{
	return error_set(error, OUTBOX_RETRY, "", "", NULL);
}

static OutboxFailure
source_find(OutboxConsumer *consumer, const char *topic, int32_t partition, OutboxFrom from,
			int64_t time_ms, int64_t *offset, OutboxError *error)
{
	bool		known;

	pthread_mutex_lock(&consumer->io.lock);
	known = consumer->seen;
	switch (from)
	{
		case OUTBOX_FROM_EARLIEST:
			*offset = (int64_t) consumer->first_sequence;
			break;
		case OUTBOX_FROM_LATEST:
			*offset = (int64_t) consumer->last_sequence + 1;
			break;
		case OUTBOX_FROM_GROUP:
			*offset = -1;
			break;
		case OUTBOX_FROM_TIME:
			known = consumer->question == JET_ASK_DONE && consumer->question_ms == time_ms;
			*offset = consumer->answer;
			if (!known)
			{
				consumer->question = JET_ASK_TIME;
				consumer->question_ms = time_ms;
			}
			break;
	}
	pthread_mutex_unlock(&consumer->io.lock);
	if (known)
		return OUTBOX_OK;
	thread_wake(consumer->io.io_fd);
	return not_yet(error);
}

static OutboxFailure
source_list(OutboxConsumer *consumer, const OutboxPlace **places, int *n, OutboxError *error)
{
	bool		seen;

	pthread_mutex_lock(&consumer->io.lock);
	seen = consumer->seen;
	pthread_mutex_unlock(&consumer->io.lock);
	if (!seen)
		return not_yet(error);
	set_place(consumer, -1, places, n);
	return OUTBOX_OK;
}

static int64_t
source_known_end(OutboxConsumer *consumer, const char *topic, int32_t partition)
{
	int64_t		end;

	pthread_mutex_lock(&consumer->io.lock);
	end = consumer->seen ? (int64_t) consumer->last_sequence + 1 : -1;
	pthread_mutex_unlock(&consumer->io.lock);
	return end;
}

static void
source_incarnation(OutboxConsumer *consumer, char *text)
{
	pthread_mutex_lock(&consumer->io.lock);
	strcpy(text, consumer->created);
	pthread_mutex_unlock(&consumer->io.lock);
}

static bool
source_forgets(OutboxConsumer *consumer)
{
	bool		forgets;

	pthread_mutex_lock(&consumer->io.lock);
	forgets = consumer->work_queue;
	pthread_mutex_unlock(&consumer->io.lock);
	return forgets;
}

const OutboxSource jet_source = {
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
	.incarnation = source_incarnation,
	.forgets = source_forgets,
	.places_are_streams = true,
};
