/*-------------------------------------------------------------------------
 *
 * kafka_source.c
 *	  The way in of the Kafka transport, tried against a real broker.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "kafka_reader.h"

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

	place = (OutboxPlace) {topic, 1, 1234, NULL};
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
	good = seek_to(reader, &place, 1) && pause_it(reader, &place, true) &&
		stays_silent(reader, 1) && reader->nseen == before &&
		pause_it(reader, &place, false) && wait_seen(reader, before + 1) &&
		pause_it(reader, &place, true) && stays_silent(reader, 1) &&
		pause_it(reader, &place, false);
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
	place = (OutboxPlace) {topic, 0, 42, NULL};
	ok(S.commit(reader->consumer, &place, 1, PATIENCE * 1000, &error) == OUTBOX_OK &&
	   find_place(reader, topic, 0, OUTBOX_FROM_GROUP, 0, &offset) == OUTBOX_OK && offset == 42,
	   "source: find where the group is");
	ok(lists(reader, topic, 2), "source: list the partitions of a topic");
	place = (OutboxPlace) {topic, 7, 0, NULL};
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
	place = (OutboxPlace) {topic, 0, offset, NULL};
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
