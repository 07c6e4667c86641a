/*-------------------------------------------------------------------------
 *
 * kafka_headers.c
 *	  Records' headers: each has its own, whatever lists are used again.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <string.h>

#include "kafka_driver.h"

#define MANY			30000
#define SHAPES_A_TIME	6		/* more than the transport knows at a time */
#define SAME_SHAPES		6000	/* records, before there are other ones */

typedef struct Seen
{
	int			n;
	int			wrong;
	char		first_wrong[256];
} Seen;

static void
add_headers(const rd_kafka_message_t *message, void *arg)
{
	char	   *seen = arg;
	rd_kafka_headers_t *headers = NULL;
	const char *name;
	const void *value;
	size_t		size;

	(void) rd_kafka_message_headers(message, &headers);
	for (size_t i = 0; headers != NULL &&
		 !rd_kafka_header_get_all(headers, i, &name, &value, &size); i++)
	{
		seen = strchr(seen, 0);
		if (value == NULL)
			sprintf(seen, "%s ", name);
		else if (size > 10)
			sprintf(seen, "%s=(%zu) ", name, size);
		else
			sprintf(seen, "%s=%.*s ", name, (int) size, (const char *) value);
	}
	strcat(seen, "| ");
}

/* One after the other, so that what one had could get into the next. */
static void
check_kinds(void)
{
	static char large[1000];
	static const struct
	{
		int			n;
		OutboxHeader headers[3];
	}			records[] = {
		{3, {{"a", "1", 1}, {"b", "2", 1}, {"a", "3", 1}}},
		{1, {{"a", "4", 1}}},
		{0},
		{2, {{"large", large, sizeof(large)}, {"b", "", 0}}},
		{2, {{"b", NULL, 0}, {"a", "5", 1}}},
		{3, {{"c", "6", 1}, {"c", "7", 1}, {"", "8", 1}}},
		{1, {{"a", "9", 1}}},
		{1, {{"b", "10", 2}}},
		{1, {{"b", "1 of two", 1}}},
	};
	char		topic[128];
	char		seen[1024] = "";
	OutboxClient *client;
	OutboxError error;
	Tally		tally = {0};
	int			n = sizeof(records) / sizeof(records[0]);

	topic_name(topic, "headers");
	topic_admin(topic, 1, NULL);
	client = client_open(false);
	for (int i = 0; i < n; i++)
	{
		OutboxRecord record = {
			.topic = topic, .partition = 0, .payload = "x", .payload_len = 1,
			.nheaders = records[i].n, .headers = records[i].headers,
			.timestamp_ms = started_ms, .tag = &record,
		};

		T.send(client, &record, &error);
		wait_total(client, &tally, i + 1, 10);
	}
	ok(tally.by[OUTBOX_OK] == n, "records with headers of all kinds");
	consume(topic, 1, add_headers, seen);
	ok(strcmp(seen, "a=1 b=2 a=3 | a=4 | | large=(1000) b= | b a=5 | c=6 c=7 =8 | a=9 | b=10 | b=1 | ") == 0,
	   "each has its own, and no others");
	printf("# %s\n", seen);
	ok(T.close(client, 5000), "closed");
}

/*
 * The shape of the nth record: names and lengths of its headers, of which there are
 * some at a time, and others by and by.
 */
static int
shape_of(int n)
{
	return n / SAME_SHAPES * SHAPES_A_TIME / 2 + n * 7 % SHAPES_A_TIME;
}

/* Its headers, which tell its number. */
static int
make_headers(int n, OutboxHeader headers[2], char names[2][16], char values[2][32])
{
	int			shape = shape_of(n);
	int			count = 1 + shape % 2;

	for (int i = 0; i < count; i++)
	{
		snprintf(names[i], sizeof(names[i]), "h%d.%d", shape, i);
		headers[i].name = names[i];
		headers[i].value = values[i];
		headers[i].value_len = snprintf(values[i], sizeof(values[i]), "%0*d", 6 + shape + i, n);
	}
	return count;
}

static void
compare_headers(const rd_kafka_message_t *message, void *arg)
{
	Seen	   *seen = arg;
	OutboxHeader headers[2];
	char		names[2][16];
	char		values[2][32];
	rd_kafka_headers_t *list = NULL;
	const char *name = "";
	const void *value = "";
	size_t		size = 0;
	int			number;
	int			n;
	bool		good;

	memcpy(&number, message->payload, sizeof(number));
	n = make_headers(number, headers, names, values);
	(void) rd_kafka_message_headers(message, &list);
	good = list != NULL && (int) rd_kafka_header_cnt(list) == n;
	for (int i = 0; good && i < n; i++)
		good = !rd_kafka_header_get_all(list, i, &name, &value, &size) &&
			strcmp(name, names[i]) == 0 && size == headers[i].value_len &&
			memcmp(value, values[i], size) == 0;
	seen->n++;
	if (good || seen->wrong++ > 0)
		return;
	snprintf(seen->first_wrong, sizeof(seen->first_wrong), "record %d: %s=%.*s instead of %s=%s",
			 number, name, (int) size, (const char *) value, names[0], values[0]);
}

/* Thousands on their way at a time, of shapes that come and go. */
static void
check_many(void)
{
	static int	numbers[MANY];
	char		topic[128];
	OutboxClient *client;
	OutboxError error;
	Tally		tally = {0};
	Seen		seen = {0};

	topic_name(topic, "many-headers");
	topic_admin(topic, 1, NULL);
	client = client_open(false);
	for (int n = 0; n < MANY; n++)
	{
		OutboxHeader headers[2];
		char		names[2][16];
		char		values[2][32];
		OutboxRecord record = {
			.topic = topic, .partition = 0, .payload = (char *) &numbers[n],
			.payload_len = sizeof(int), .headers = headers,
			.timestamp_ms = started_ms, .tag = &numbers[n],
		};

		numbers[n] = n;
		record.nheaders = make_headers(n, headers, names, values);
		while (T.send(client, &record, &error) != OUTBOX_OK &&
			   wait_total(client, &tally, tally.total + 1, 10))
			;
		if (n % 1000 == 999)
			wait_total(client, &tally, n - 3000, 10);
	}
	ok(wait_total(client, &tally, MANY, 30) && tally.by[OUTBOX_OK] == MANY,
	   "records of more shapes of headers than are known at a time");
	consume(topic, 1, compare_headers, &seen);
	ok(seen.n == MANY && seen.wrong == 0, "have the headers that they were given");
	printf("# %d records, %d with others; %s\n", seen.n, seen.wrong, seen.first_wrong);
	ok(T.close(client, 5000), "closed");
}

/* What is on its way, or not yet polled, when a client is closed. */
static void
check_closed(void)
{
	char		topic[128];
	OutboxClient *client;
	OutboxError error;
	Tally		tally = {0};
	int			sent = 0;

	topic_name(topic, "closed-headers");
	topic_admin(topic, 1, NULL);
	client = client_open(false);
	while (sent < 2000 && send_in_turn(client, &tally, topic, 0, "x", 1, 1, &error) == OUTBOX_OK)
		sent++;
	ok(sent == 2000 && T.close(client, 5000), "closed with records on their way");
}

void
check_headers(void)
{
	check_kinds();
	check_many();
	check_closed();
}
