/*-------------------------------------------------------------------------
 *
 * rabbit_send.c
 *	  The main thread's side of the way out: send(), poll(), probe_topic().
 *
 * How a message looks at the broker:
 *
 *	routing key				topic
 *	body					payload
 *	message_id				the header "message-id"; one that is too long for
 *							the property stays a header
 *	timestamp				publish time; its milliseconds in the header
 *							timestamp_in_ms, as in the broker's own plugin
 *	delivery_mode			2, persistent
 *	content_type			of the payload
 *	header outbox-key		key
 *	header outbox-tombstone true: there is no payload, not an empty one
 *	other headers			as they are, text
 *
 * A topic that failed takes nothing until the relay has all of its records
 * back (send() and the io thread see to that), so that none overtakes another;
 * then probe_topic() has it tried again.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "rabbit.h"

#include <stdlib.h>
#include <string.h>

#define USUAL_ENTRIES	8		/* records of these are kept for the next */
#define ENTRY_OVERHEAD	6		/* on the wire: two lengths and a kind */
#define FRAME_OVERHEAD	64		/* ... a frame's, and of properties */

static uint32_t
name_bucket(const char *name)
{
	uint32_t	hash = 2166136261u;

	for (; *name; name++)
		hash = (hash ^ (unsigned char) *name) * 16777619u;
	return hash % RABBIT_TOPIC_BUCKETS;
}

static RabbitTopic *
topic_find(OutboxClient *client, const char *name)
{
	RabbitTopic *topic = client->last_topic;

	if (topic != NULL && strcmp(topic->name, name) == 0)
		return topic;
	topic = client->topics[name_bucket(name)];
	while (topic != NULL && strcmp(topic->name, name) != 0)
		topic = topic->next;
	return topic;
}

/* NULL: out of memory. */
static RabbitTopic *
topic_get(OutboxClient *client, const char *name)
{
	RabbitTopic *topic = topic_find(client, name);
	size_t		size = strlen(name) + 1;

	if (topic == NULL && (topic = calloc(1, sizeof(RabbitTopic) + size)) != NULL)
	{
		uint32_t	bucket = name_bucket(name);

		memcpy(topic->name, name, size);
		topic->next = client->topics[bucket];
		client->topics[bucket] = topic;
	}
	client->last_topic = topic;
	return topic;
}

/* --- a record ------------------------------------------------------------------- */

static RabbitRecord *
record_new(OutboxClient *client, int nentries)
{
	RabbitRecord *record = client->spare;
	int			size = nentries <= USUAL_ENTRIES ? USUAL_ENTRIES : nentries;

	if (record != NULL && nentries <= USUAL_ENTRIES)
		client->spare = record->next;
	else
		record = malloc(sizeof(RabbitRecord) + size * sizeof(amqp_table_entry_t));
	if (record != NULL)
	{
		memset(record, 0, sizeof(RabbitRecord));
		record->size = size;
	}
	return record;
}

static void
record_free(OutboxClient *client, RabbitRecord *record)
{
	free(record->answer);
	if (record->size != USUAL_ENTRIES)
	{
		free(record);
		return;
	}
	record->next = client->spare;
	client->spare = record;
}

static amqp_table_entry_t *
add_entry(RabbitRecord *record, const char *name, uint8_t kind, size_t value_len)
{
	amqp_table_entry_t *entry = &record->entries[record->nentries++];

	entry->key = amqp_cstring_bytes(name);
	entry->value.kind = kind;
	record->properties += entry->key.len + value_len + ENTRY_OVERHEAD;
	return entry;
}

static void
add_text(RabbitRecord *record, const char *name, const char *value, size_t len)
{
	amqp_table_entry_t *entry = add_entry(record, name, AMQP_FIELD_KIND_UTF8, len);

	entry->value.value.bytes.bytes = (void *) value;
	entry->value.value.bytes.len = len;
}

/* One of the caller's headers, or the message id, which is the first. */
static void
add_header(RabbitRecord *record, const OutboxHeader *header)
{
	if (strcmp(header->name, "message-id") == 0 && record->message_id == NULL &&
		header->value_len <= RABBIT_MAX_SHORT)
	{
		record->message_id = header->value;
		record->message_id_len = header->value_len;
		return;
	}
	if (strcmp(header->name, "content-type") == 0 && header->value_len <= RABBIT_MAX_SHORT)
	{
		record->content_type = header->value;
		record->content_type_len = header->value_len;
	}
	if (header->value == NULL)
		(void) add_entry(record, header->name, AMQP_FIELD_KIND_VOID, 0);
	else
		add_text(record, header->name, header->value, header->value_len);
}

static void
fill(RabbitRecord *record, const OutboxRecord *from)
{
	record->key = from->key;
	record->key_len = from->key_len;
	record->payload = from->payload;
	record->payload_len = from->payload ? from->payload_len : 0;
	record->timestamp_ms = from->timestamp_ms;
	record->tag = from->tag;
	record->content_type = from->content_type;
	record->content_type_len = from->content_type ? strlen(from->content_type) : 0;
	for (int i = 0; i < from->nheaders; i++)
		add_header(record, &from->headers[i]);
	if (from->key != NULL)
		add_text(record, RABBIT_KEY_HEADER, from->key, from->key_len);
	if (from->payload == NULL)
		add_entry(record, RABBIT_TOMBSTONE_HEADER, AMQP_FIELD_KIND_BOOLEAN, 1)
			->value.value.boolean = 1;
	add_entry(record, RABBIT_TIME_HEADER, AMQP_FIELD_KIND_I64, sizeof(int64_t))
		->value.value.i64 = from->timestamp_ms;
	record->properties += record->message_id_len + record->content_type_len + FRAME_OVERHEAD;
	record->bytes = record->payload_len + record->properties;
}

/* What AMQP can't carry, or the broker would close the channel for. */
static const char *
cannot_carry(const OutboxRecord *record)
{
	if (strlen(record->topic) > RABBIT_MAX_SHORT)
		return "a routing key has at most 255 bytes";
	for (int i = 0; i < record->nheaders; i++)
	{
		const char *name = record->headers[i].name;

		if (strlen(name) > RABBIT_MAX_SHORT)
			return "the name of a header has at most 255 bytes";
		if (strcmp(name, "CC") == 0 || strcmp(name, "BCC") == 0)
			return "headers \"CC\" and \"BCC\" are the broker's own";
	}
	return NULL;
}

/* --- send and poll --------------------------------------------------------------- */

static void
hand_over(OutboxClient *client, RabbitRecord *record)
{
	bool		wake;

	record->topic->pending++;
	client->accepted++;
	client->bytes += record->bytes;
	pthread_mutex_lock(&client->io.lock);
	rabbit_list_append(&client->incoming, record);
	wake = client->io_sleeps;
	client->io_sleeps = false;
	pthread_mutex_unlock(&client->io.lock);
	if (wake)
		thread_wake(client->io.io_fd);
}

/* See transport.h. */
OutboxFailure
rabbit_send(OutboxClient *client, const OutboxRecord *record, OutboxError *error)
{
	const char *why = cannot_carry(record);
	RabbitTopic *topic;
	RabbitRecord *mine;

	if (why != NULL)
		return error_set(error, OUTBOX_DEAD, "SYNTAX_ERROR", why, NULL);
	topic = topic_get(client, record->topic);
	if (topic == NULL)
		return error_set(error, OUTBOX_RETRY, "MEMORY", "out of memory", NULL);
	if (atomic_load(&topic->state) == RABBIT_TOPIC_FAILED)
	{
		pthread_mutex_lock(&client->io.lock);
		*error = topic->error;
		pthread_mutex_unlock(&client->io.lock);
		return OUTBOX_TOPIC;
	}
	mine = record_new(client, record->nheaders + 3);
	if (mine == NULL)
		return error_set(error, OUTBOX_RETRY, "MEMORY", "out of memory", NULL);
	mine->topic = topic;
	mine->given_back_known = topic->given_back_known;
	fill(mine, record);
	if (client->accepted > 0 && client->bytes + mine->bytes > client->max_bytes)
	{
		record_free(client, mine);
		return error_set(error, OUTBOX_RETRY, "QUEUE_FULL",
						 "enough is on its way", NULL);
	}
	hand_over(client, mine);
	return OUTBOX_OK;
}

/* See transport.h.  Texts live until the next call. */
int
rabbit_poll(OutboxClient *client, OutboxReport *reports, int max)
{
	RabbitRecord *record;
	int			n = 0;

	thread_drain(client->io.fd);
	rabbit_connection_watch(&client->connection);
	while ((record = rabbit_list_take(&client->handed_out)) != NULL)
		record_free(client, record);

	pthread_mutex_lock(&client->io.lock);
	while (n < max && (record = rabbit_list_take(&client->reports)) != NULL)
	{
		rabbit_list_append(&client->handed_out, record);
		n++;
	}
	if (client->reports.first != NULL)
		thread_wake(client->io.fd);	/* there is more */
	pthread_mutex_unlock(&client->io.lock);

	n = 0;
	for (record = client->handed_out.first; record != NULL; record = record->next)
	{
		OutboxReport *report = &reports[n++];

		report->tag = record->tag;
		report->failure = record->failure;
		report->name = record->answer ? record->answer : "";
		report->text = record->answer ? record->answer + strlen(record->answer) + 1 : NULL;
		record->topic->pending--;
		if (record->failure == OUTBOX_DEAD || record->failure == OUTBOX_PURGED)
			record->topic->given_back_known++;
		client->accepted--;
		client->bytes -= record->bytes;
	}
	return n;
}

/*
 * See transport.h.  Nobody can ask the broker whether a routing key leads
 * anywhere, or is allowed: the next record says.
 */
OutboxFailure
rabbit_probe_topic(OutboxClient *client, const char *name, OutboxError *error)
{
	RabbitTopic *topic = topic_find(client, name);

	if (topic == NULL)
		return OUTBOX_OK;
	if (topic->pending > 0)
		return error_set(error, OUTBOX_RETRY, "", "", NULL);
	atomic_store(&topic->state, RABBIT_TOPIC_TRYING);
	return OUTBOX_OK;
}

/* All that is left at the end; the io thread is no more. */
void
rabbit_records_free(OutboxClient *client)
{
	RabbitList *lists[] = {&client->handed_out, &client->reports, &client->incoming,
	&client->done};
	RabbitRecord *record;

	for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++)
		while ((record = rabbit_list_take(lists[i])) != NULL)
			record_free(client, record);
	while ((record = client->spare) != NULL)
	{
		client->spare = record->next;
		free(record);
	}
	for (int i = 0; i < RABBIT_TOPIC_BUCKETS; i++)
	{
		RabbitTopic *topic;

		while ((topic = client->topics[i]) != NULL)
		{
			client->topics[i] = topic->next;
			free(topic);
		}
	}
}
