/*-------------------------------------------------------------------------
 *
 * window.c
 *	  Messages between the log and the broker's answer.
 *
 * A message stays in memory until its answer is there, for two reasons: the
 * client library borrows its bytes, and what has to be sent again, because a
 * client had to be given up, is sent from here, in order, not read again.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "message.h"
#include "portability/instr_time.h"
#include "relay/window.h"
#include "utils/memutils.h"

#define UUID_BYTES	37
#define BLOCK_BYTES	(256 * 1024)
#define US_PER_MS	1000

/* timestamptz counts from 2000-01-01 */
#define UNIX_EPOCH_MS \
	((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY * 1000)

OutboxWindow *
outbox_window_create(MemoryContext parent)
{
	OutboxWindow *window = MemoryContextAllocZero(parent, sizeof(OutboxWindow));

	window->context = GenerationContextCreate(parent, "pg_outbox messages",
											  BLOCK_BYTES, BLOCK_BYTES, BLOCK_BYTES);
	window->entries = MemoryContextAllocHuge(parent,
											 OUTBOX_WINDOW_ENTRIES * sizeof(OutboxEntry));
	return window;
}

/* How many entries fit? */
int
outbox_window_room(const OutboxWindow *window)
{
	return OUTBOX_WINDOW_ENTRIES - (int) (window->next - window->first);
}

Size
outbox_window_bytes(const OutboxWindow *window)
{
	return MemoryContextMemAllocated(window->context, false);
}

/* Count headers in wire form. */
static int
count_headers(const OutboxMessage *m)
{
	const char *name;
	const char *value;
	int			name_len;
	int			value_len;
	int			pos = 0;
	int			n = 0;

	while (m->headers != NULL &&
		   outbox_headers_next(m->headers, m->headers_len, &pos,
							   &name, &name_len, &value, &value_len))
		n++;
	return n;
}

/* The headers of the record: message id first, then as they were stored. */
static void
encode_headers(OutboxWindow *window, OutboxEntry *entry)
{
	OutboxMessage *m = entry->message;
	int			n = count_headers(m) + 1;
	Size		size = n * sizeof(OutboxHeader);
	char	   *chunk = MemoryContextAlloc(window->context, size + UUID_BYTES);
	OutboxHeader *headers = (OutboxHeader *) chunk;
	int			pos = 0;

	headers[0].name = "message-id";
	if (m->message_id != NULL)
		headers[0].value = m->message_id;
	else
	{
		outbox_message_uuid(m->epoch, m->id, chunk + size);
		headers[0].value = chunk + size;
	}
	headers[0].value_len = strlen(headers[0].value);
	for (int i = 1; i < n; i++)
	{
		int			name_len;
		int			value_len;

		(void) outbox_headers_next(m->headers, m->headers_len, &pos,
								   &headers[i].name, &name_len,
								   &headers[i].value, &value_len);
		headers[i].value_len = value_len;
	}
	entry->headers = headers;
	entry->nheaders = n;
}

/* Add a message behind the others. */
void
outbox_window_add(OutboxWindow *window, OutboxMessage *message)
{
	OutboxEntry *entry = outbox_window_entry(window, window->next);

	memset(entry, 0, sizeof(OutboxEntry));
	entry->message = message;
	entry->state = OUTBOX_ENTRY_QUEUED;
	if (message->damaged || message->version != OUTBOX_FORMAT_VERSION)
	{
		/* nobody can send it: a dead letter, never a loop */
		entry->state = OUTBOX_ENTRY_REFUSED;
		entry->error = MemoryContextStrdup(window->context, "UNREADABLE");
		entry->reason = MemoryContextStrdup(window->context,
											message->damaged ?
											"rows of the message are missing in the log" :
											"the message has a format that this version does not know");
	}
	else
		encode_headers(window, entry);
	window->next++;
}

/* Hand an entry to the transport. */
OutboxFailure
outbox_window_send(OutboxWindow *window, uint64 seq,
				   const OutboxTransport *transport, OutboxClient *client,
				   OutboxError *error)
{
	OutboxEntry *entry = outbox_window_entry(window, seq);
	OutboxMessage *m = entry->message;
	OutboxRecord record;
	OutboxFailure failure;

	record.topic = m->topic;
	record.partition = m->partition;
	record.key = m->key;
	record.key_len = m->key_len;
	record.payload = m->payload;
	record.payload_len = m->payload_len;
	record.nheaders = entry->nheaders;
	record.headers = entry->headers;
	record.timestamp_ms = m->published / US_PER_MS + UNIX_EPOCH_MS;
	record.tag = (void *) (uintptr_t) seq;
	failure = transport->send(client, &record, error);
	if (failure == OUTBOX_OK)
	{
		entry->state = OUTBOX_ENTRY_SENT;
		entry->attempts++;
		window->in_flight++;
	}
	return failure;
}

static void
free_entry(OutboxEntry *entry)
{
	outbox_message_free(entry->message);
	if (entry->headers != NULL)
		pfree(entry->headers);
	if (entry->error != NULL)
		pfree(entry->error);
	if (entry->reason != NULL)
		pfree(entry->reason);
}

/* Free the entries that are done, oldest first; how many. */
int
outbox_window_pop(OutboxWindow *window)
{
	int			n = 0;

	while (window->first < window->next &&
		   outbox_window_entry(window, window->first)->state == OUTBOX_ENTRY_DONE)
	{
		free_entry(outbox_window_entry(window, window->first));
		window->first++;
		n++;
	}
	window->unsent = Max(window->unsent, window->first);
	return n;
}

/* Everything without an answer has to be sent again. */
void
outbox_window_rewind(OutboxWindow *window)
{
	for (uint64 seq = window->first; seq < window->next; seq++)
	{
		OutboxEntry *entry = outbox_window_entry(window, seq);

		if (entry->state == OUTBOX_ENTRY_SENT)
			entry->state = OUTBOX_ENTRY_QUEUED;
	}
	window->unsent = window->first;
	window->in_flight = 0;
}
