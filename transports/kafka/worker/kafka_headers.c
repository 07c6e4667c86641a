/*-------------------------------------------------------------------------
 *
 * kafka_headers.c
 *	  Lists of headers, used again.
 *
 * A record's headers are a list that the library owns from produce() to the
 * delivery report; then it can be taken off the record.  What it consists of
 * are small pieces of memory between those of the records.  Freed with each
 * record, in the order in which they were made, all these neighbours are joined
 * to large free blocks and split again for the next ones, which was a third of
 * what a drain cost the relay's thread.  Kept, they keep the records' pieces
 * apart, and one piece of the right size follows the other.
 *
 * No more lists are kept than there are records in flight, and some: so memory
 * goes back after a backlog.  A list of many or large headers is not kept.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "kafka.h"

#include <stdlib.h>
#include <string.h>

#define MAX_KEPT_SIZE	256		/* bytes of names and values, of a list */
#define SPARE_LISTS		1000	/* some 200 kB */

/* Take the headers off a list that keep() found small enough. */
static void
empty(rd_kafka_headers_t *headers)
{
	char		name[MAX_KEPT_SIZE];
	const char *first;
	const void *value;
	size_t		size;

	while (rd_kafka_header_get_all(headers, 0, &first, &value, &size) ==
		   RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		/* the library goes on to compare it after it freed the header */
		strcpy(name, first);
		(void) rd_kafka_header_remove(headers, name);
	}
}

/* A list that librdkafka owns once the record is accepted, or NULL: there are none. */
rd_kafka_headers_t *
kafka_headers_of(OutboxClient *client, const OutboxRecord *record)
{
	rd_kafka_headers_t *headers;

	if (record->nheaders == 0)
		return NULL;
	if (client->nlists > 0)
	{
		headers = client->lists[--client->nlists];
		empty(headers);
	}
	else
		headers = rd_kafka_headers_new(record->nheaders);
	for (int i = 0; i < record->nheaders; i++)
	{
		const OutboxHeader *header = &record->headers[i];

		rd_kafka_header_add(headers, header->name, -1, header->value,
							(ssize_t) header->value_len);
	}
	return headers;
}

/* Is it small? */
static bool
is_small(const rd_kafka_headers_t *headers)
{
	const char *name;
	const void *value;
	size_t		size;
	size_t		total = 0;

	for (size_t i = 0; total < MAX_KEPT_SIZE &&
		 rd_kafka_header_get_all(headers, i, &name, &value, &size) ==
		 RD_KAFKA_RESP_ERR_NO_ERROR; i++)
		total += strlen(name) + 1 + size;
	return total < MAX_KEPT_SIZE;
}

/* Of a record that is reported, and which the library is about to free. */
void
kafka_headers_keep(OutboxClient *client, const rd_kafka_message_t *message)
{
	rd_kafka_headers_t *headers;

	if (client->nlists == client->max_lists)
	{
		size_t		max = client->max_lists ? client->max_lists * 2 : 1024;
		rd_kafka_headers_t **grown = realloc(client->lists, max * sizeof(*grown));

		if (grown == NULL)
			return;
		client->lists = grown;
		client->max_lists = max;
	}
	if (rd_kafka_message_headers(message, &headers) != RD_KAFKA_RESP_ERR_NO_ERROR ||
		!is_small(headers))
		return;
	/* the callback's message is const for all of the library's users */
	(void) rd_kafka_message_detach_headers((rd_kafka_message_t *) message, &headers);
	client->lists[client->nlists++] = headers;
}

/* Free those that will hardly be needed. */
void
kafka_headers_trim(OutboxClient *client)
{
	while (client->nlists > client->accepted + SPARE_LISTS)
		rd_kafka_headers_destroy(client->lists[--client->nlists]);
}

/* At close. */
void
kafka_headers_free(OutboxClient *client)
{
	while (client->nlists > 0)
		rd_kafka_headers_destroy(client->lists[--client->nlists]);
	free(client->lists);
}
