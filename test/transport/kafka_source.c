/*-------------------------------------------------------------------------
 *
 * kafka_source.c
 *	  The way in of the Kafka transport, tried against a real broker.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "kafka_driver.h"
#include "transport/source.h"

#define S (*kafka_transport.source)

#define PATIENCE	60			/* s */
#define MAX_SEEN	20000
#define MAX_SHARE	8
#define BATCH		500

/* One consumer, and all that it has said. */
typedef struct Reader
{
	OutboxConsumer *consumer;
	bool		answers;		/* assignments, from "at"; revocations */
	int64_t		at[MAX_SHARE];	/* by partition */
	OutboxPlace share[MAX_SHARE];	/* of the last ASSIGN */
	char		names[MAX_SHARE][128];
	int			nshare;			/* 0: nothing is ours */
	int			count[OUTBOX_SOURCE_LOST + 1];	/* of events */
	OutboxPlace gap;
	int			nseen;
	int			foreign;		/* messages of no partition of ours */
	struct
	{
		int32_t		partition;
		int64_t		offset;
		char		text[16];
	}			seen[MAX_SEEN];
	void		(*each) (const OutboxIncoming *message, void *arg);
	void	   *arg;
} Reader;

static Reader *
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

static Reader *
reader_open(const char *group, const char *topic)
{
	return reader_open_of(group, 1, &topic);
}

static bool
reader_close(Reader *reader)
{
	bool		closed = S.close(reader->consumer, 20000);

	free(reader);
	return closed;
}

static bool
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

static bool
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
static void
take_event(Reader *reader, OutboxSourceEvent event, const OutboxPlace *places, int n, int ms)
{
	struct pollfd pfd = {.fd = S.event_fd(reader->consumer), .events = POLLIN};

	switch (event)
	{
		case OUTBOX_SOURCE_NOTHING:
			poll(&pfd, 1, ms);
			break;
		case OUTBOX_SOURCE_MESSAGES:
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

static OutboxSourceEvent
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

static bool
wait_event(Reader *reader, OutboxSourceEvent event, int count)
{
	for (double until = now() + PATIENCE; reader->count[event] < count && now() < until;)
		step(reader, 1000);
	return reader->count[event] >= count;
}

static bool
wait_seen(Reader *reader, int n)
{
	for (double until = now() + PATIENCE; reader->nseen < n && now() < until;)
		step(reader, 10000);
	return reader->nseen >= n;
}

/* For so long, nothing more may come. */
static bool
stays_silent(Reader *reader, double seconds)
{
	int			nseen = reader->nseen;

	for (double until = now() + seconds; now() < until;)
		step(reader, 100);
	return reader->nseen == nseen;
}

static bool
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

static OutboxFailure
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
static bool
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

static rd_kafka_t *
producer_new(const char *transactional_id)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();

	rd_kafka_conf_set(conf, "bootstrap.servers", bootstrap, NULL, 0);
	rd_kafka_conf_set(conf, "linger.ms", "5", NULL, 0);
	if (transactional_id != NULL)
		rd_kafka_conf_set(conf, "transactional.id", transactional_id, NULL, 0);
	return rd_kafka_new(RD_KAFKA_PRODUCER, conf, NULL, 0);
}

static void
producer_end(rd_kafka_t *rk)
{
	rd_kafka_flush(rk, PATIENCE * 1000);
	rd_kafka_destroy(rk);
}

static void
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
static bool
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

static int64_t
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

/* --- scenarios ------------------------------------------------------------- */

typedef struct Parts
{
	int			n;
	bool		good;
} Parts;

static bool
is_text(const char *data, size_t len, const char *text)
{
	return data != NULL && len == strlen(text) && memcmp(data, text, len) == 0;
}

static void
check_parts(const OutboxIncoming *message, void *arg)
{
	Parts	   *parts = arg;
	const OutboxHeader *h = message->headers;

	switch (parts->n++)
	{
		case 0:
			parts->good = is_text(message->key, message->key_len, "key") &&
				is_text(message->payload, message->payload_len, "all") &&
				message->timestamp_ms == started_ms && message->nheaders == 4 &&
				strcmp(h[0].name, "a") == 0 && is_text(h[0].value, h[0].value_len, "1") &&
				strcmp(h[1].name, "b") == 0 && h[1].value == NULL &&
				strcmp(h[2].name, "a") == 0 && is_text(h[2].value, h[2].value_len, "2") &&
				strcmp(h[3].name, "e") == 0 && h[3].value != NULL && h[3].value_len == 0;
			break;
		case 1:
			parts->good = parts->good && message->payload == NULL &&
				is_text(message->key, message->key_len, "dead") && message->nheaders == 0;
			break;
		case 2:
			parts->good = parts->good && message->key == NULL &&
				message->payload != NULL && message->payload_len == 0 &&
				message->nheaders == 1 && strcmp(h[0].name, "z") == 0;
			break;
	}
}

static void
check_message(void)
{
	char		topic[128];
	Reader	   *reader;
	Parts		parts = {0};
	rd_kafka_t *rk = producer_new(NULL);

	topic_name(topic, "parts");
	topic_admin(topic, 1, NULL);
	rd_kafka_producev(rk, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_KEY("key", 3),
					  RD_KAFKA_V_VALUE("all", 3), RD_KAFKA_V_HEADER("a", "1", 1),
					  RD_KAFKA_V_HEADER("b", NULL, -1), RD_KAFKA_V_HEADER("a", "2", 1),
					  RD_KAFKA_V_HEADER("e", "", 0),
					  RD_KAFKA_V_TIMESTAMP(started_ms), RD_KAFKA_V_END);
	rd_kafka_producev(rk, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_KEY("dead", 4), RD_KAFKA_V_END);
	rd_kafka_producev(rk, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_VALUE("", 0),
					  RD_KAFKA_V_HEADER("z", "9", 1), RD_KAFKA_V_END);
	producer_end(rk);
	reader = reader_open(topic, topic);
	reader->each = check_parts;
	reader->arg = &parts;
	ok(wait_seen(reader, 3) && parts.good,
	   "source: key, payload, timestamp and headers; none of each");
	ok(reader_close(reader), "source: closed");
	topic_admin(topic, 0, NULL);
}

static void
check_places(void)
{
	char		topic[128];
	Reader	   *reader;
	OutboxError error = {0};
	OutboxPlace place;
	int64_t		offset;
	int			before;
	bool		good;

	topic_name(topic, "places");
	topic_admin(topic, 2, NULL);
	put_numbers(topic, 0, 0, 3000);
	put_numbers(topic, 1, 0, 3000);
	reader = reader_open(topic, topic);
	good = wait_seen(reader, 6000);
	ok(good && are_numbers(reader, 0, 0, 0, 3000) && are_numbers(reader, 0, 1, 0, 3000) &&
	   reader->foreign == 0 && reader->count[OUTBOX_SOURCE_ASSIGN] == 1,
	   "source: all of two partitions, each in order");
	ok(S.known_end(reader->consumer, topic, 0) == 3000, "source: the end is known");

	place = (OutboxPlace) {topic, 1, 1234};
	ok(S.commit(reader->consumer, &place, 1, PATIENCE * 1000, &error) == OUTBOX_OK &&
	   committed_offset(topic, topic, 1) == 1234, "source: commit tells the broker");
	place.offset = 1235;
	good = S.commit(reader->consumer, &place, 1, 0, &error) == OUTBOX_OK;
	for (double until = now() + PATIENCE;
		 committed_offset(topic, topic, 1) != 1235 && now() < until;)
		step(reader, 100);
	ok(good && committed_offset(topic, topic, 1) == 1235, "source: in the background too");

	before = reader->nseen;
	place.offset = 2000;
	ok(seek_to(reader, &place, 1) && wait_seen(reader, before + 1000) &&
	   are_numbers(reader, before, 1, 2000, 1000), "source: seek back gives it again");

	/* from the midst of what has been fetched */
	place.offset = 0;
	good = true;
	for (int round = 0; round < 10; round++)
	{
		before = reader->nseen;
		good = good && seek_to(reader, &place, 1);
		if (round < 9)
			good = good && wait_seen(reader, before + 1) &&
				reader->seen[before].offset == 0;
	}
	ok(good && wait_seen(reader, before + 3000) && are_numbers(reader, before, 1, 0, 3000),
	   "source: nothing of before a seek comes after it");

	before = reader->nseen;
	good = seek_to(reader, &place, 1) &&
		S.pause(reader->consumer, &place, 1, true, &error) == OUTBOX_OK &&
		stays_silent(reader, 1) && reader->nseen == before &&
		S.pause(reader->consumer, &place, 1, false, &error) == OUTBOX_OK &&
		wait_seen(reader, before + 1) &&
		S.pause(reader->consumer, &place, 1, true, &error) == OUTBOX_OK &&
		stays_silent(reader, 1) &&
		S.pause(reader->consumer, &place, 1, false, &error) == OUTBOX_OK;
	ok(good && wait_seen(reader, before + 3000) && are_numbers(reader, before, 1, 0, 3000),
	   "source: a paused partition is silent, and loses nothing");

	ok(find_place(reader, topic, 0, OUTBOX_FROM_EARLIEST, 0, &offset) == OUTBOX_OK &&
	   offset == 0, "source: find the first");
	ok(find_place(reader, topic, 0, OUTBOX_FROM_LATEST, 0, &offset) == OUTBOX_OK &&
	   offset == 3000, "source: find the end");
	ok(find_place(reader, topic, 0, OUTBOX_FROM_TIME, started_ms - 1000000 + 1499500,
				  &offset) == OUTBOX_OK && offset == 1500, "source: find a time");
	ok(find_place(reader, topic, 0, OUTBOX_FROM_TIME, started_ms + 86400000, &offset) ==
	   OUTBOX_OK && offset == 3000, "source: a time beyond the end is the end");
	ok(find_place(reader, "no-such-topic", 0, OUTBOX_FROM_EARLIEST, 0, &offset) ==
	   OUTBOX_TOPIC, "source: nothing to find in a missing topic");
	ok(find_place(reader, topic, 0, OUTBOX_FROM_GROUP, 0, &offset) == OUTBOX_OK &&
	   offset == -1, "source: a group that is nowhere");
	place = (OutboxPlace) {topic, 0, 42};
	ok(S.commit(reader->consumer, &place, 1, PATIENCE * 1000, &error) == OUTBOX_OK &&
	   find_place(reader, topic, 0, OUTBOX_FROM_GROUP, 0, &offset) == OUTBOX_OK && offset == 42,
	   "source: find where the group is");
	ok(lists(reader, topic, 2), "source: list the partitions of a topic");
	place = (OutboxPlace) {topic, 7, 0};
	ok(S.seek(reader->consumer, &place, 1, &error) == OUTBOX_FENCED,
	   "source: no seek in what is not ours");
	ok(reader_close(reader), "source: closed");
	topic_admin(topic, 0, NULL);
}

static void
check_group(void)
{
	char		topic[128];
	Reader	   *one;
	Reader	   *other;
	int			before;
	bool		shared;

	topic_name(topic, "group");
	topic_admin(topic, 4, NULL);
	one = reader_open(topic, topic);
	ok(wait_event(one, OUTBOX_SOURCE_ASSIGN, 1) && one->nshare == 4,
	   "source: all partitions of a group of one");
	for (int i = 0; i < 4; i++)
		put_numbers(topic, i, 0, 500);
	wait_seen(one, 10);

	other = reader_open(topic, topic);
	for (double until = now() + PATIENCE; other->nshare == 0 && now() < until;)
	{
		step(one, 50);
		step(other, 50);
		memcpy(other->at, one->at, sizeof(one->at));
	}
	for (double until = now() + PATIENCE; one->nshare == 0 && now() < until;)
		step(one, 50);
	shared = one->nshare == 2 && other->nshare == 2 && lists(one, topic, 4);
	for (double until = now() + PATIENCE; one->nseen + other->nseen < 2000 && now() < until;)
	{
		step(one, 50);
		step(other, 50);
	}
	ok(shared && one->count[OUTBOX_SOURCE_REVOKE] == 1 && one->foreign + other->foreign == 0,
	   "source: two share, and none has what is not its");
	ok(one->nseen + other->nseen == 2000, "source: together they have all");

	for (int i = 0; i < 4; i++)
	{
		if (is_ours(other, topic, i))
			one->at[i] = other->at[i];
	}
	ok(reader_close(other), "source: one leaves");
	ok(wait_event(one, OUTBOX_SOURCE_ASSIGN, 3) && one->nshare == 4,
	   "source: and the one that stays has all");
	before = one->nseen;
	for (int i = 0; i < 4; i++)
		put_numbers(topic, i, 500, 100);
	wait_seen(one, before + 400);
	shared = true;
	for (int i = 0; i < 4; i++)
		shared = shared && are_numbers(one, before, i, 500, 100);
	ok(shared, "source: from where each was");
	reader_close(one);
	topic_admin(topic, 0, NULL);
}

static void
check_unanswered(void)
{
	char		topic[128];
	Reader	   *one;
	Reader	   *other;
	OutboxError error;
	double		start;

	topic_name(topic, "unanswered");
	topic_admin(topic, 2, NULL);
	put_numbers(topic, 0, 0, 100);
	put_numbers(topic, 1, 0, 100);
	one = reader_open(topic, topic);
	one->answers = false;
	ok(wait_event(one, OUTBOX_SOURCE_ASSIGN, 1) && stays_silent(one, 2) && one->nseen == 0,
	   "source: nothing comes before the first seek");
	one->share[0].offset = 50;
	ok(seek_to(one, one->share, 1) && wait_seen(one, 50) && stays_silent(one, 1) &&
	   are_numbers(one, 0, 0, 50, 50), "source: a partition without a place stays still");
	ok(seek_to(one, one->share + 1, 1) && wait_seen(one, 150) && stays_silent(one, 1) &&
	   are_numbers(one, 0, 0, 50, 50) && are_numbers(one, 50, 1, 0, 100),
	   "source: until it has one, and the other goes on");

	other = reader_open(topic, topic);
	for (double until = now() + PATIENCE; one->count[OUTBOX_SOURCE_REVOKE] == 0 &&
		 now() < until;)
	{
		step(one, 50);
		step(other, 50);
	}
	put_numbers(topic, 0, 100, 100);
	ok(one->count[OUTBOX_SOURCE_REVOKE] == 1 && stays_silent(one, 2),
	   "source: nothing comes after the revocation");
	one->share[0].topic = topic;
	ok(S.seek(one->consumer, one->share, 1, &error) == OUTBOX_FENCED,
	   "source: no seek in what is taken away");
	start = now();
	ok(reader_close(one) && now() - start < 15, "source: closed with no answer given");
	ok(wait_event(other, OUTBOX_SOURCE_ASSIGN, 1) && other->nshare == 2,
	   "source: the other has all");
	reader_close(other);
	topic_admin(topic, 0, NULL);
}

static void
delete_records(const char *topic, int64_t before)
{
	rd_kafka_t *rk = producer_new(NULL);
	rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
	rd_kafka_DeleteRecords_t *spec;
	rd_kafka_event_t *event;

	rd_kafka_topic_partition_list_add(list, topic, 0)->offset = before;
	spec = rd_kafka_DeleteRecords_new(list);
	rd_kafka_DeleteRecords(rk, &spec, 1, NULL, queue);
	event = rd_kafka_queue_poll(queue, PATIENCE * 1000);
	if (event == NULL || rd_kafka_event_error(event))
		printf("# records of %s are not deleted\n", topic);
	if (event != NULL)
		rd_kafka_event_destroy(event);
	rd_kafka_DeleteRecords_destroy(spec);
	rd_kafka_topic_partition_list_destroy(list);
	rd_kafka_queue_destroy(queue);
	rd_kafka_destroy(rk);
}

static void
check_gap(void)
{
	char		topic[128];
	Reader	   *reader;
	OutboxPlace place;
	int64_t		offset;
	int			before;

	topic_name(topic, "gap");
	topic_admin(topic, 2, NULL);
	put_numbers(topic, 0, 0, 200);
	put_numbers(topic, 1, 0, 100);
	delete_records(topic, 100);
	reader = reader_open(topic, topic);
	reader->at[0] = 50;
	ok(wait_event(reader, OUTBOX_SOURCE_GAP, 1) && reader->gap.partition == 0 &&
	   reader->gap.offset == 50, "source: what is gone is a gap, at the place asked for");
	wait_seen(reader, 100);
	put_numbers(topic, 1, 100, 100);
	ok(wait_seen(reader, 200) && are_numbers(reader, 0, 1, 0, 200) && stays_silent(reader, 2) &&
	   reader->count[OUTBOX_SOURCE_GAP] == 1, "source: it stands still, and the others go on");
	ok(find_place(reader, topic, 0, OUTBOX_FROM_EARLIEST, 0, &offset) == OUTBOX_OK &&
	   offset == 100, "source: find the first that is left");
	before = reader->nseen;
	place = (OutboxPlace) {topic, 0, offset};
	ok(seek_to(reader, &place, 1) && wait_seen(reader, before + 100) && stays_silent(reader, 1) &&
	   are_numbers(reader, before, 0, 100, 100) && reader->nseen == before + 100,
	   "source: seek ends the gap, and repeats nothing of the others");
	place.offset = 5000;
	ok(seek_to(reader, &place, 1) && wait_event(reader, OUTBOX_SOURCE_GAP, 2) &&
	   reader->gap.offset == 5000, "source: a place beyond the end is a gap");
	reader_close(reader);
	topic_admin(topic, 0, NULL);
}

static void
check_topics(void)
{
	char		stem[64];
	char		exact[128];
	char		first[128];
	char		second[128];
	char		looks_alike[128];
	char		pattern[128];
	const char *topics[2] = {pattern, exact};
	Reader	   *reader;
	OutboxTransportStatus status = {0};

	topic_name(stem, "topics");
	snprintf(exact, sizeof(exact), "%s_exact", stem);
	snprintf(first, sizeof(first), "%s.first.x", stem);
	snprintf(second, sizeof(second), "%s.second.x", stem);
	snprintf(looks_alike, sizeof(looks_alike), "%s-third.x", stem);
	snprintf(pattern, sizeof(pattern), "%s.*.x", stem);
	topic_admin(first, 1, NULL);
	topic_admin(looks_alike, 1, NULL);
	put_numbers(first, 0, 0, 10);
	put_numbers(looks_alike, 0, 0, 10);
	reader = reader_open_of(stem, 2, topics);
	ok(wait_seen(reader, 10) && reader->nshare == 1 && strcmp(reader->names[0], first) == 0,
	   "source: the topics of a pattern, whose dots are dots");
	ok(wait_error(reader, OUTBOX_TOPIC, &status) && !status.failed && status.connected &&
	   strstr(status.error.hint, exact) != NULL, "source: a missing topic is a status with a hint");

	topic_admin(second, 1, NULL);
	topic_admin(exact, 1, NULL);
	put_numbers(second, 0, 0, 10);
	put_numbers(exact, 0, 0, 10);
	reader->at[0] = 0;
	for (double until = now() + PATIENCE; reader->nshare < 3 && now() < until;)
	{
		step(reader, 1000);
		reader->at[0] = 0;
	}
	ok(reader->nshare == 3 && reader->count[OUTBOX_SOURCE_LOST] == 0 && reader->foreign == 0,
	   "source: both are taken up when they appear");
	reader_close(reader);
	topic_admin(first, 0, NULL);
	topic_admin(second, 0, NULL);
	topic_admin(exact, 0, NULL);
	topic_admin(looks_alike, 0, NULL);
}

static void
check_aborted(void)
{
	char		topic[128];
	Reader	   *reader;
	rd_kafka_t *rk;
	bool		good = true;

	topic_name(topic, "aborted");
	topic_admin(topic, 1, NULL);
	rk = producer_new(topic);
	good = rd_kafka_init_transactions(rk, PATIENCE * 1000) == NULL;
	for (int round = 0; round < 4 && good; round++)
	{
		good = rd_kafka_begin_transaction(rk) == NULL;
		for (int i = 0; i < 50; i++)
			put(rk, topic, 0, round % 2 == 0 ? "aborted" : "committed", started_ms);
		rd_kafka_flush(rk, PATIENCE * 1000);
		good = good && (round % 2 == 0 ? rd_kafka_abort_transaction(rk, PATIENCE * 1000)
						: rd_kafka_commit_transaction(rk, PATIENCE * 1000)) == NULL;
	}
	rd_kafka_destroy(rk);
	reader = reader_open(topic, topic);
	good = good && wait_seen(reader, 100) && stays_silent(reader, 1) && reader->nseen == 100;
	for (int i = 0; i < reader->nseen; i++)
		good = good && strcmp(reader->seen[i].text, "committed") == 0;
	ok(good, "source: aborted transactions are not read");
	reader_close(reader);
	topic_admin(topic, 0, NULL);
}

void
check_source(void)
{
	check_message();
	check_places();
	check_group();
	check_unanswered();
	check_gap();
	check_topics();
	check_aborted();
}

/*
 * What a consumer says that may not do something, one line for each error, until
 * it gets messages: "status FAILURE NAME | HINT".
 */
int
watch_source(const char *topic, const char *group)
{
	Reader	   *reader = reader_open(group, topic);
	OutboxTransportStatus status = {0};
	uint64_t	nerrors = 0;

	for (double until = now() + 2 * PATIENCE; reader->nseen == 0 && now() < until;)
	{
		step(reader, 200);
		S.status(reader->consumer, &status);
		if (status.nerrors != nerrors)
			printf("status %d %s | %s\n", status.error.failure, status.error.name,
				   status.error.hint);
		nerrors = status.nerrors;
		fflush(stdout);
	}
	printf("messages %d failed %d\n", reader->nseen, status.failed);
	return !reader_close(reader);
}

/* --- how fast -------------------------------------------------------------------- */

/*
 * Messages/s of receive(), headers and all, from a topic that is filled before;
 * handle_us: how long each takes whoever asks for them.
 */
int
bench_source(int n, double handle_us)
{
	static char value[201];
	char		topic[128];
	Reader	   *reader;
	rd_kafka_t *rk = producer_new(NULL);
	struct rusage usage;
	struct rusage before;
	double		start;
	double		took;
	double		cpu;
	size_t		bytes = 0;
	int			total = 0;
	int			calls = 0;

	topic_name(topic, "bench-source");
	topic_admin(topic, 1, NULL);
	memset(value, 'x', 200);
	for (int i = 0; i < n; i++)
	{
		while (rd_kafka_producev(rk, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_PARTITION(0),
								 RD_KAFKA_V_KEY("key", 3), RD_KAFKA_V_VALUE(value, 200),
								 RD_KAFKA_V_HEADER("message-id",
												   "0190c0de-0000-8000-8000-000000000001", 36),
								 RD_KAFKA_V_END) == RD_KAFKA_RESP_ERR__QUEUE_FULL)
			rd_kafka_poll(rk, 10);
	}
	producer_end(rk);

	reader = reader_open(topic, topic);
	wait_event(reader, OUTBOX_SOURCE_ASSIGN, 1);
	start = now();
	getrusage(RUSAGE_THREAD, &before);
	while (total < n && now() - start < 120)
	{
		const OutboxIncoming *messages;
		const OutboxPlace *places;
		int			got;
		OutboxSourceEvent event = S.receive(reader->consumer, 1000, &messages, &places, &got);

		calls++;
		if (event != OUTBOX_SOURCE_MESSAGES)
		{
			take_event(reader, event, places, got, 1000);
			continue;
		}
		total += got;
		reader->at[0] = messages[got - 1].offset + 1;
		if (handle_us > 0)
			usleep((useconds_t) (got * handle_us));
		for (int i = 0; i < got; i++)
			bytes += messages[i].payload_len + messages[i].headers[0].value_len;
	}
	took = now() - start;
	getrusage(RUSAGE_THREAD, &usage);
	cpu = usage.ru_utime.tv_sec + usage.ru_utime.tv_usec / 1e6 +
		usage.ru_stime.tv_sec + usage.ru_stime.tv_usec / 1e6 -
		before.ru_utime.tv_sec - before.ru_utime.tv_usec / 1e6 -
		before.ru_stime.tv_sec - before.ru_stime.tv_usec / 1e6;
	printf("source: %d messages (%zu bytes) in %.2f s, %.0f/s, cpu of receive() %.2f s, %d calls, max rss %ld MB\n",
		   total, bytes, took, total / took, cpu, calls, usage.ru_maxrss / 1024);
	reader_close(reader);
	topic_admin(topic, 0, NULL);
	return total != n;
}
