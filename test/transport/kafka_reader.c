/*-------------------------------------------------------------------------
 *
 * kafka_reader.c
 *	  Consumers and producers for the scenarios of kafka_source.c.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kafka_reader.h"

Reader *
reader_open_of(const char *group, int ntopics, const char *const *topics)
{
	OutboxSourceConfig config = {
		.server_name = "driver", .client_id = "pg_outbox_driver",
		.noptions = noptions, .options = options, .group_id = group,
		.ntopics = ntopics, .topics = topics, .max_bytes = 64 << 20,
	};
	Reader	   *reader = calloc(1, sizeof(Reader));
	OutboxError error;

	reader->answers = true;
	reader->consumer = S.open(&config, &error);
	if (reader->consumer == NULL)
	{
		printf("# open: %d %s %s\n", error.failure, error.name, error.text);
		exit(1);
	}
	return reader;
}

Reader *
reader_open(const char *group, const char *topic)
{
	return reader_open_of(group, 1, &topic);
}

bool
reader_close(Reader *reader)
{
	bool		closed = S.close(reader->consumer, 20000);

	free(reader);
	return closed;
}

bool
is_ours(const Reader *reader, const char *topic, int32_t partition)
{
	for (int i = 0; i < reader->nshare; i++)
	{
		if (reader->share[i].partition == partition &&
			strcmp(reader->share[i].topic, topic) == 0)
			return true;
	}
	return false;
}

bool
seek_to(Reader *reader, const OutboxPlace *places, int n)
{
	OutboxError error = {0};
	OutboxFailure failure = OUTBOX_RETRY;

	for (double until = now() + PATIENCE; failure == OUTBOX_RETRY && now() < until;)
		failure = S.seek(reader->consumer, places, n, &error);
	if (failure != OUTBOX_OK)
		printf("# seek: %d %s %s\n", failure, error.name, error.text);
	return failure == OUTBOX_OK;
}

/* Pause a place, or have it go on, which may have to be said again. */
bool
pause_it(Reader *reader, const OutboxPlace *place, bool paused)
{
	OutboxError error = {0};
	OutboxFailure failure = OUTBOX_RETRY;

	for (double until = now() + PATIENCE; failure == OUTBOX_RETRY && now() < until;)
		failure = S.pause(reader->consumer, place, 1, paused, &error);
	if (failure != OUTBOX_OK)
		printf("# pause: %d %s %s\n", failure, error.name, error.text);
	return failure == OUTBOX_OK;
}

static void
take_share(Reader *reader, const OutboxPlace *places, int n)
{
	reader->nshare = n;
	for (int i = 0; i < n && i < MAX_SHARE; i++)
	{
		snprintf(reader->names[i], sizeof(reader->names[i]), "%s", places[i].topic);
		reader->share[i] = places[i];
		reader->share[i].topic = reader->names[i];
		reader->share[i].offset = reader->at[places[i].partition];
	}
	if (reader->answers)
		(void) seek_to(reader, reader->share, n);
}

static void
take_messages(Reader *reader, const OutboxIncoming *messages, int n)
{
	for (int i = 0; i < n; i++)
	{
		const OutboxIncoming *message = &messages[i];

		if (reader->each != NULL)
			reader->each(message, reader->arg);
		reader->foreign += !is_ours(reader, message->topic, message->partition);
		if (message->partition < MAX_SHARE)
			reader->at[message->partition] = message->offset + 1;
		if (reader->nseen == MAX_SEEN)
			continue;
		reader->seen[reader->nseen].partition = message->partition;
		reader->seen[reader->nseen].offset = message->offset;
		snprintf(reader->seen[reader->nseen].text, 16, "%.*s",
				 (int) message->payload_len, message->payload ? message->payload : "");
		reader->nseen++;
	}
}

/* What is no message; when there is nothing, sleep on the eventfd alone. */
void
take_event(Reader *reader, OutboxSourceEvent event, const OutboxPlace *places, int n, int ms)
{
	struct pollfd pfd = {.fd = S.event_fd(reader->consumer), .events = POLLIN};

	switch (event)
	{
		case OUTBOX_SOURCE_NOTHING:
			poll(&pfd, 1, ms);
			break;
		case OUTBOX_SOURCE_MESSAGES:
		case OUTBOX_SOURCE_SAME:
		case OUTBOX_SOURCE_PASSED:
			break;
		case OUTBOX_SOURCE_ASSIGN:
			take_share(reader, places, n);
			break;
		case OUTBOX_SOURCE_GAP:
			reader->gap = places[0];
			break;
		case OUTBOX_SOURCE_REVOKE:
		case OUTBOX_SOURCE_LOST:
			reader->nshare = 0;
			if (reader->answers)
				S.give_up(reader->consumer);
			break;
	}
}

OutboxSourceEvent
step(Reader *reader, int ms)
{
	const OutboxIncoming *messages;
	const OutboxPlace *places;
	int			n;
	OutboxSourceEvent event = S.receive(reader->consumer, BATCH, &messages, &places, &n);

	reader->count[event]++;
	if (event == OUTBOX_SOURCE_MESSAGES)
		take_messages(reader, messages, n);
	else
		take_event(reader, event, places, n, ms);
	return event;
}

bool
wait_event(Reader *reader, OutboxSourceEvent event, int count)
{
	for (double until = now() + PATIENCE; reader->count[event] < count && now() < until;)
		step(reader, 1000);
	return reader->count[event] >= count;
}

bool
wait_seen(Reader *reader, int n)
{
	for (double until = now() + PATIENCE; reader->nseen < n && now() < until;)
		step(reader, 10000);
	return reader->nseen >= n;
}

/* For so long, nothing more may come. */
bool
stays_silent(Reader *reader, double seconds)
{
	int			nseen = reader->nseen;

	for (double until = now() + seconds; now() < until;)
		step(reader, 100);
	return reader->nseen == nseen;
}

bool
wait_error(Reader *reader, OutboxFailure failure, OutboxTransportStatus *status)
{
	for (double until = now() + PATIENCE; now() < until; step(reader, 200))
	{
		S.status(reader->consumer, status);
		if (status->nerrors > 0 && status->error.failure == failure)
			return true;
	}
	return false;
}

OutboxFailure
find_place(Reader *reader, const char *topic, int32_t partition, OutboxFrom from,
		   int64_t time_ms, int64_t *offset)
{
	OutboxError error;
	OutboxFailure failure = OUTBOX_RETRY;

	*offset = -2;
	for (double until = now() + PATIENCE; now() < until; step(reader, 200))
	{
		failure = S.find(reader->consumer, topic, partition, from, time_ms, offset, &error);
		if (failure != OUTBOX_RETRY)
			break;
	}
	return failure;
}

/* Does list() tell of so many partitions of this topic, and of no other? */
bool
lists(Reader *reader, const char *topic, int expected)
{
	const OutboxPlace *places;
	OutboxError error;
	bool		good = true;
	int			n = -1;

	for (double until = now() + PATIENCE; now() < until; step(reader, 200))
	{
		if (S.list(reader->consumer, &places, &n, &error) == OUTBOX_OK)
			break;
		n = -1;
	}
	for (int i = 0; i < n; i++)
		good = good && strcmp(places[i].topic, topic) == 0 && places[i].partition == i;
	return good && n == expected;
}

/* --- what is read ------------------------------------------------------- */

rd_kafka_t *
producer_new(const char *transactional_id)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();

	rd_kafka_conf_set(conf, "bootstrap.servers", bootstrap, NULL, 0);
	rd_kafka_conf_set(conf, "linger.ms", "5", NULL, 0);
	/* without it a batch that is tried again comes behind later ones */
	rd_kafka_conf_set(conf, "enable.idempotence", "true", NULL, 0);
	if (transactional_id != NULL)
		rd_kafka_conf_set(conf, "transactional.id", transactional_id, NULL, 0);
	return rd_kafka_new(RD_KAFKA_PRODUCER, conf, NULL, 0);
}

void
producer_end(rd_kafka_t *rk)
{
	rd_kafka_flush(rk, PATIENCE * 1000);
	rd_kafka_destroy(rk);
}

void
put(rd_kafka_t *rk, const char *topic, int partition, const char *text, int64_t time_ms)
{
	while (rd_kafka_producev(rk, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_PARTITION(partition),
							 RD_KAFKA_V_VALUE((void *) text, strlen(text)),
							 RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
							 RD_KAFKA_V_TIMESTAMP(time_ms),
							 RD_KAFKA_V_END) == RD_KAFKA_RESP_ERR__QUEUE_FULL)
		rd_kafka_poll(rk, 10);
}

/* Numbers from "from" on, a second apart. */
void
put_numbers(const char *topic, int partition, int from, int n)
{
	rd_kafka_t *rk = producer_new(NULL);

	for (int i = from; i < from + n; i++)
	{
		char		text[16];

		snprintf(text, sizeof(text), "%d", i);
		put(rk, topic, partition, text, started_ms - 1000000 + (int64_t) i * 1000);
	}
	producer_end(rk);
}

/* Are the messages from "first" on, of one partition, these numbers? */
bool
are_numbers(const Reader *reader, int first, int32_t partition, int from, int n)
{
	int			next = from;

	for (int i = first; i < reader->nseen; i++)
	{
		if (reader->seen[i].partition != partition)
			continue;
		if (atoi(reader->seen[i].text) != next || reader->seen[i].offset != next)
		{
			printf("# partition %d: expected %d, found %s at %ld\n", partition, next,
				   reader->seen[i].text, (long) reader->seen[i].offset);
			return false;
		}
		next++;
	}
	return next == from + n;
}

int64_t
committed_offset(const char *group, const char *topic, int partition)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
	rd_kafka_t *rk;
	int64_t		offset;

	rd_kafka_conf_set(conf, "bootstrap.servers", bootstrap, NULL, 0);
	rd_kafka_conf_set(conf, "group.id", group, NULL, 0);
	rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, NULL, 0);
	rd_kafka_topic_partition_list_add(list, topic, partition);
	rd_kafka_committed(rk, list, 20000);
	offset = list->elems[0].offset;
	rd_kafka_topic_partition_list_destroy(list);
	rd_kafka_destroy(rk);
	return offset;
}
