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
#include "relay/window.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define BLOCK_BYTES		(256 * 1024)
#define FIRST_RING_SIZE	256
#define FIRST_HEADERS	16
#define US_PER_MS		1000

/* timestamptz counts from 2000-01-01 */
#define UNIX_EPOCH_MS \
	((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY * 1000)

OutboxWindows *
outbox_windows_create(MemoryContext parent)
{
	OutboxWindows *all = MemoryContextAllocZero(parent, sizeof(OutboxWindows));

	all->context = GenerationContextCreate(parent, "pg_outbox messages",
										   BLOCK_BYTES, BLOCK_BYTES, BLOCK_BYTES);
	all->topics = topics_create(parent);
	all->headers_size = FIRST_HEADERS;
	all->headers = MemoryContextAlloc(parent, all->headers_size * sizeof(OutboxHeader));
	return all;
}

OutboxWindow *
outbox_window_create(OutboxWindows *all, MemoryContext parent)
{
	OutboxWindow *window = MemoryContextAllocZero(parent, sizeof(OutboxWindow));

	window->all = all;
	window->size = FIRST_RING_SIZE;
	window->ring = MemoryContextAllocHuge(parent, window->size * sizeof(OutboxEntry *));
	return window;
}

void
outbox_window_free(OutboxWindow *window)
{
	Assert(outbox_window_is_empty(window));
	pfree(window->ring);
	pfree(window);
}

/* Twice the ring; places of entries are by sequence number. */
static void
grow(OutboxWindow *window)
{
	OutboxEntry **ring = MemoryContextAllocHuge(GetMemoryChunkContext(window->ring),
												window->size * 2 * sizeof(OutboxEntry *));

	for (uint64 seq = window->first; seq < window->next; seq++)
		ring[seq & (window->size * 2 - 1)] = outbox_window_entry(window, seq);
	pfree(window->ring);
	window->ring = ring;
	window->size *= 2;
}

/* Put an entry behind the others. */
static void
append(OutboxWindow *window, OutboxEntry *entry)
{
	if (window->next - window->first == window->size)
		grow(window);
	entry->window = window;
	entry->seq = window->next++;
	window->ring[entry->seq & (window->size - 1)] = entry;
	window->bytes += entry->cost;
	if (entry->state == OUTBOX_ENTRY_REFUSED)
		window->refused++;
}

/* Take an entry out of its window's counts. */
static void
uncount(OutboxEntry *entry)
{
	OutboxWindow *window = entry->window;

	window->bytes -= entry->cost;
	if (entry->state == OUTBOX_ENTRY_REFUSED)
		window->refused--;
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

/* The entry of a message that was read with room for it. */
static OutboxEntry *
make_entry(OutboxWindows *all, OutboxMessage *m)
{
	OutboxEntry *entry = outbox_entry_of(m);

	Assert(m->room == offsetof(OutboxEntry, message));
	memset(entry, 0, offsetof(OutboxEntry, uuid));
	if (m->message_id == NULL)
	{
		outbox_message_uuid(m->epoch, m->id, entry->uuid);
		m->message_id = entry->uuid;
	}

	/* the library copies key, headers and a small payload, and keeps books on each */
	entry->library_bytes = m->key_len + m->headers_len + all->record_overhead +
		(count_headers(m) + 1) * all->header_overhead;
	if (m->payload_len <= all->copied_payload)
		entry->library_bytes += m->payload_len;
	entry->cost = outbox_entry_bytes(entry) + entry->library_bytes;
	return entry;
}

void
outbox_window_add(OutboxWindow *window, OutboxMessage *message, bool done)
{
	OutboxWindows *all = window->all;
	OutboxTopic *topic = topics_get(all->topics, message->topic, message->topic_len);
	OutboxEntry *entry = make_entry(all, message);

	entry->topic = topic;
	if (topic->entries == 0)
		INSTR_TIME_SET_CURRENT(topic->moved);
	topic->entries++;
	topic->bytes += entry->cost;
	all->bytes += outbox_entry_bytes(entry);
	append(window, entry);
	if (done)
		outbox_entry_done(entry);
	else if (message->damaged)
		outbox_entry_refuse(entry, "UNREADABLE",
							"rows of the message are missing in the log");
	else if (message->version != OUTBOX_FORMAT_VERSION)
		outbox_entry_refuse(entry, "UNREADABLE",
							"the message has a format that this version does not know");
}

/* The next header of the record being made. */
static OutboxHeader *
next_header(OutboxWindows *all, int n)
{
	if (n == all->headers_size)
	{
		all->headers_size *= 2;
		all->headers = repalloc(all->headers, all->headers_size * sizeof(OutboxHeader));
	}
	return &all->headers[n];
}

/* The headers of a record: message id first, then as they were stored. */
static int
make_headers(OutboxWindows *all, const OutboxMessage *m)
{
	OutboxHeader header = {"message-id", m->message_id, strlen(m->message_id)};
	int			name_len;
	int			value_len;
	int			pos = 0;
	int			n = 0;

	*next_header(all, n++) = header;
	while (m->headers != NULL &&
		   outbox_headers_next(m->headers, m->headers_len, &pos, &header.name,
							   &name_len, &header.value, &value_len))
	{
		header.value_len = value_len;
		*next_header(all, n++) = header;
	}
	return n;
}

/* Of a payload, by what it was published as. */
static const char *
content_type(const OutboxMessage *m)
{
	if (m->payload == NULL)
		return NULL;
	switch (m->kind)
	{
		case 'j':
			return "application/json";
		case 't':
			return "text/plain; charset=utf-8";
		default:
			return "application/octet-stream";
	}
}

OutboxFailure
outbox_entry_send(OutboxEntry *entry, const OutboxTransport *transport,
				  OutboxClient *client, OutboxError *error)
{
	OutboxMessage *m = &entry->message;
	OutboxWindows *all = entry->window->all;
	OutboxRecord record;
	OutboxFailure failure;

	record.topic = entry->topic->name;
	record.partition = m->partition;
	record.key = m->key;
	record.key_len = m->key_len;
	record.payload = m->payload;
	record.payload_len = m->payload_len;
	record.nheaders = make_headers(all, m);
	record.headers = all->headers;
	record.content_type = content_type(m);
	record.timestamp_ms = m->published / US_PER_MS + UNIX_EPOCH_MS;
	record.tag = entry;
	failure = transport->send(client, &record, error);
	if (failure == OUTBOX_OK)
	{
		entry->state = OUTBOX_ENTRY_SENT;
		entry->attempts++;
		entry->topic->in_flight++;
		all->in_flight++;
		all->library_bytes += entry->library_bytes;
	}
	return failure;
}

void
outbox_entry_answered(OutboxEntry *entry)
{
	Assert(entry->state == OUTBOX_ENTRY_SENT);
	entry->state = OUTBOX_ENTRY_QUEUED;
	entry->topic->in_flight--;
	entry->window->all->in_flight--;
	entry->window->all->library_bytes -= entry->library_bytes;
}

void
outbox_entry_clear(OutboxEntry *entry)
{
	if (!entry->suspect)
		return;
	entry->suspect = false;
	entry->topic->suspects--;
	entry->window->all->suspects--;
}

void
outbox_window_clear(OutboxWindow *window)
{
	for (uint64 seq = window->first; seq < window->next; seq++)
		if (outbox_window_entry(window, seq) != NULL)
			outbox_entry_clear(outbox_window_entry(window, seq));
}

/* Count another memory for it. */
static void
set_cost(OutboxEntry *entry, Size cost)
{
	entry->window->bytes += cost - entry->cost;
	entry->topic->bytes += cost - entry->cost;
	entry->cost = cost;
}

/* What the library had for it is free again, and makes room for others. */
void
outbox_entry_hold(OutboxEntry *entry)
{
	entry->state = OUTBOX_ENTRY_HELD;
	entry->window->all->held++;
	set_cost(entry, outbox_entry_bytes(entry));
	outbox_entry_clear(entry);
}

/* Its transaction is aborted. */
static void
unhold(OutboxEntry *entry)
{
	entry->window->all->held--;
	set_cost(entry, outbox_entry_bytes(entry) + entry->library_bytes);
	entry->state = OUTBOX_ENTRY_QUEUED;
}

void
outbox_entry_done(OutboxEntry *entry)
{
	if (entry->state == OUTBOX_ENTRY_HELD)
		entry->window->all->held--;
	if (entry->state == OUTBOX_ENTRY_REFUSED)
		entry->window->refused--;
	entry->state = OUTBOX_ENTRY_DONE;
	outbox_entry_clear(entry);
}

void
outbox_entry_queue(OutboxEntry *entry)
{
	if (entry->state == OUTBOX_ENTRY_REFUSED)
		entry->window->refused--;
	entry->state = OUTBOX_ENTRY_QUEUED;
	entry->window->unsent = Min(entry->window->unsent, entry->seq);
}

void
outbox_entry_suspect(OutboxEntry *entry)
{
	if (entry->suspect)
		return;
	entry->suspect = true;
	entry->topic->suspects++;
	entry->window->all->suspects++;
}

void
outbox_entry_refuse(OutboxEntry *entry, const char *error, const char *reason)
{
	Size		len = strlen(error) + 1;

	outbox_entry_clear(entry);
	if (entry->error != NULL)
		pfree(entry->error);
	entry->error = MemoryContextAlloc(entry->window->all->context,
									  len + strlen(reason) + 1);
	entry->reason = entry->error + len;
	strcpy(entry->error, error);
	strcpy(entry->reason, reason);
	if (entry->state != OUTBOX_ENTRY_REFUSED)
		entry->window->refused++;
	entry->state = OUTBOX_ENTRY_REFUSED;
}

static void
free_entry(OutboxEntry *entry)
{
	outbox_entry_clear(entry);
	uncount(entry);
	entry->window->all->bytes -= outbox_entry_bytes(entry);
	entry->topic->bytes -= entry->cost;
	entry->topic->entries--;
	if (entry->error != NULL)
		pfree(entry->error);
	outbox_message_free(&entry->message);
}

void
outbox_window_pop(OutboxWindow *window)
{
	while (window->first < window->next)
	{
		OutboxEntry *entry = outbox_window_entry(window, window->first);

		if (entry != NULL && entry->state != OUTBOX_ENTRY_DONE)
			break;
		if (window->first + PREFETCH_ENTRIES < window->next)
			outbox_entry_prefetch(outbox_window_entry(window, window->first + PREFETCH_ENTRIES));
		if (entry != NULL)
			free_entry(entry);
		window->first++;
	}
	window->unsent = Max(window->unsent, window->first);
}

void
outbox_window_rewind(OutboxWindow *window, bool held)
{
	for (uint64 seq = window->first; seq < window->next; seq++)
	{
		OutboxEntry *entry = outbox_window_entry(window, seq);

		if (entry != NULL && entry->state == OUTBOX_ENTRY_SENT)
			outbox_entry_answered(entry);
		else if (entry != NULL && held && entry->state == OUTBOX_ENTRY_HELD)
			unhold(entry);
	}
	window->unsent = window->first;
}

void
outbox_window_move_topic(OutboxWindow *from, OutboxWindow *to, OutboxTopic *topic)
{
	Assert(outbox_window_is_empty(to));
	for (uint64 seq = from->first; seq < from->next; seq++)
	{
		OutboxEntry *entry = outbox_window_entry(from, seq);

		if (entry == NULL || entry->topic != topic)
			continue;
		uncount(entry);
		from->ring[seq & (from->size - 1)] = NULL;
		append(to, entry);
	}
	to->unsent = to->first;
	outbox_window_pop(from);
}

bool
outbox_window_trim(OutboxWindow *window, int keep, OutboxPosition *pos)
{
	uint64		from = window->next;

	while (from > window->first + keep &&
		   outbox_window_entry(window, from - 1) != NULL &&
		   outbox_window_entry(window, from - 1)->state == OUTBOX_ENTRY_QUEUED &&
		   !outbox_window_entry(window, from - 1)->suspect)
		from--;
	if (from == window->next)
		return false;
	outbox_position_before(&outbox_window_entry(window, from)->message, pos);
	for (uint64 seq = from; seq < window->next; seq++)
		free_entry(outbox_window_entry(window, seq));
	window->next = from;
	window->unsent = Min(window->unsent, from);
	return true;
}
