/*-------------------------------------------------------------------------
 *
 * kafka_memory.c
 *	  What the transport says that the library uses for a record, and what it uses.
 *
 * The relay's memory is bounded by what transports say.  So records wait here for a
 * broker that is away, and what was allocated for them is looked at.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <malloc.h>
#include <stdio.h>
#include <string.h>

#include "kafka_driver.h"

#define RECORDS		5000
#define MAX_HEADERS	7
#define UUID		"8b5f4c1e-0d3a-8f00-8000-000000000001"

/* Of this thread's records; 0: it can't be told, as under a sanitizer. */
static size_t
allocated(void)
{
	return mallinfo2().uordblks;
}

/* As the relay counts it, see window.c. */
static size_t
accounted(const OutboxRecord *record)
{
	size_t		bytes = record->key_len + T.record_overhead;

	for (int i = 0; i < record->nheaders; i++)
		bytes += T.header_overhead +
			(i == 0 ? 0 : strlen(record->headers[i].name) + record->headers[i].value_len + 10);
	if (record->payload_len <= T.copied_payload)
		bytes += record->payload_len;
	return bytes;
}

static void
check_one(OutboxClient *client, Tally *tally, const char *topic, size_t size, int nheaders)
{
	static char payload[4096];
	static const OutboxHeader header = {"message-id", UUID, sizeof(UUID) - 1};
	OutboxHeader headers[MAX_HEADERS];
	OutboxRecord record = {
		.topic = topic, .key = "key-10000", .key_len = 9,
		.payload = payload, .payload_len = size, .nheaders = nheaders, .headers = headers,
		.timestamp_ms = started_ms, .tag = tally,
	};
	OutboxError error;
	char		what[128];
	size_t		before = allocated();
	size_t		used;
	int			sent = 0;

	for (int i = 0; i < nheaders; i++)
		headers[i] = header;
	while (sent < RECORDS && T.send(client, &record, &error) == OUTBOX_OK)
		sent++;
	used = (allocated() - before) / RECORDS;
	snprintf(what, sizeof(what), "of a record of %zu bytes with %d headers, what the library uses is told", size,
			 nheaders);
	ok(sent == RECORDS && (before == 0 || (used <= accounted(&record) * 1.15 &&
										   used >= accounted(&record) * 0.85)), what);
	printf("# %zu bytes are used, %zu are told\n", used, accounted(&record));
}

void
check_memory(void)
{
	static const struct
	{
		size_t		size;
		int			nheaders;
	}			records[] = {{0, 1}, {200, 1}, {200, 3}, {1024, 1}, {1025, 1}, {4096, 1}, {10, MAX_HEADERS}};
	int			n = sizeof(records) / sizeof(records[0]);
	char		topic[128];
	Mock		mock;
	OutboxClient *client;
	OutboxError error;
	Tally		tally = {0};

	topic_name(topic, "memory");
	mock = mock_begin(topic, 1);
	client = client_open(false);
	ok(send_one(client, topic, 0, "x", 1, 1, &error) == OUTBOX_OK &&
	   wait_total(client, &tally, 1, 10) && tally.by[OUTBOX_OK] == 1, "a topic is written");
	rd_kafka_mock_broker_set_down(mock.cluster, 1);
	for (int i = 0; i < n; i++)
		check_one(client, &tally, topic, records[i].size, records[i].nheaders);
	T.purge(client, true);
	ok(wait_total(client, &tally, 1 + n * RECORDS, 10), "all are given back");
	ok(T.close(client, 5000), "closed");
	mock_end(&mock);
}
