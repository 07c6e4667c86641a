/*-------------------------------------------------------------------------
 *
 * jet_send.c
 *	  The main thread's side of the way out: send(), poll(), probe_topic().
 *
 * A topic that failed takes nothing until the relay has all of its records
 * back (send() and the io thread see to that), so that none overtakes another;
 * then probe_topic() has it tried again.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "jet.h"

#include <stdlib.h>
#include <string.h>

static uint32_t
name_bucket(const char *name)
{
	uint32_t	hash = 2166136261u;

	for (; *name; name++)
		hash = (hash ^ (unsigned char) *name) * 16777619u;
	return hash % JET_TOPIC_BUCKETS;
}

static JetTopic *
topic_find(OutboxClient *client, const char *name)
{
	JetTopic   *topic = client->last_topic;

	if (topic != NULL && strcmp(topic->name, name) == 0)
		return topic;
	topic = client->topics[name_bucket(name)];
	while (topic != NULL && strcmp(topic->name, name) != 0)
		topic = topic->next;
	return topic;
}

/* NULL: out of memory. */
static JetTopic *
topic_get(OutboxClient *client, const char *name)
{
	JetTopic   *topic = topic_find(client, name);
	size_t		size = strlen(name) + 1;

	if (topic == NULL && (topic = calloc(1, sizeof(JetTopic) + size)) != NULL)
	{
		JetTopic  **bucket = &client->topics[name_bucket(name)];

		memcpy(topic->name, name, size);
		topic->next = *bucket;
		*bucket = topic;
	}
	client->last_topic = topic;
	return topic;
}

/* A copy, but for what is borrowed; NULL: out of memory. */
static JetRecord *
record_new(OutboxClient *client, const OutboxRecord *data)
{
	JetRecord  *record = client->spare;
	int			size = data->nheaders <= JET_USUAL_HEADERS ? JET_USUAL_HEADERS : data->nheaders;

	if (record != NULL && size == JET_USUAL_HEADERS)
		client->spare = record->next;
	else
		record = malloc(sizeof(JetRecord) + size * sizeof(OutboxHeader));
	if (record == NULL)
		return NULL;
	memset(record, 0, sizeof(JetRecord));
	record->size = size;
	record->data = *data;
	if (data->nheaders > 0)
		memcpy(record->headers, data->headers, data->nheaders * sizeof(OutboxHeader));
	record->data.headers = record->headers;
	return record;
}

static void
record_free(OutboxClient *client, JetRecord *record)
{
	free(record->answer);
	if (record->id != record->id_buffer)
		free(record->id);
	if (record->size != JET_USUAL_HEADERS)
	{
		free(record);
		return;
	}
	record->next = client->spare;
	client->spare = record;
}

static size_t
size_of(const OutboxRecord *data)
{
	size_t		bytes = data->key_len + (data->payload ? data->payload_len : 0);

	for (int i = 0; i < data->nheaders; i++)
		bytes += strlen(data->headers[i].name) + data->headers[i].value_len;
	return bytes;
}

static void
hand_over(OutboxClient *client, JetRecord *record)
{
	bool		wake;

	record->topic->pending++;
	client->accepted++;
	client->bytes += record->bytes;
	pthread_mutex_lock(&client->io.lock);
	jet_list_append(&client->incoming, record);
	wake = client->io_sleeps;
	client->io_sleeps = false;
	pthread_mutex_unlock(&client->io.lock);
	if (wake)
		thread_wake(client->io.io_fd);
}

/* See transport.h. */
OutboxFailure
jet_send(OutboxClient *client, const OutboxRecord *record, OutboxError *error)
{
	const char *why = jet_cannot_carry(record);
	size_t		bytes = size_of(record);
	JetTopic   *topic;
	JetRecord  *mine;

	if (why != NULL)
		return error_set(error, OUTBOX_DEAD, "INVALID_MESSAGE", why, NULL);
	topic = topic_get(client, record->topic);
	if (topic == NULL)
		return error_set(error, OUTBOX_RETRY, "MEMORY", "out of memory", NULL);
	if (atomic_load(&topic->state) == JET_TOPIC_FAILED)
	{
		pthread_mutex_lock(&client->io.lock);
		*error = topic->error;
		pthread_mutex_unlock(&client->io.lock);
		return OUTBOX_TOPIC;
	}
	if (client->accepted > 0 && client->bytes + bytes > client->max_bytes)
		return error_set(error, OUTBOX_RETRY, "QUEUE_FULL", "enough is on its way", NULL);
	mine = record_new(client, record);
	if (mine == NULL)
		return error_set(error, OUTBOX_RETRY, "MEMORY", "out of memory", NULL);
	mine->topic = topic;
	mine->given_back_known = topic->given_back_known;
	mine->bytes = bytes;
	if (!jet_make_id(mine))
	{
		record_free(client, mine);
		return error_set(error, OUTBOX_RETRY, "MEMORY", "out of memory", NULL);
	}
	hand_over(client, mine);
	return OUTBOX_OK;
}

/* See transport.h.  Texts live until the next call. */
int
jet_poll(OutboxClient *client, OutboxReport *reports, int max)
{
	JetRecord  *record;
	int			n = 0;

	thread_drain(client->io.fd);
	while ((record = jet_list_take(&client->handed_out)) != NULL)
		record_free(client, record);

	pthread_mutex_lock(&client->io.lock);
	while (n < max && (record = jet_list_take(&client->reports)) != NULL)
	{
		jet_list_append(&client->handed_out, record);
		n++;
	}
	if (client->reports.first != NULL)
		thread_wake(client->io.fd);	/* there is more */
	pthread_mutex_unlock(&client->io.lock);

	n = 0;
	for (record = client->handed_out.first; record != NULL; record = record->next)
	{
		OutboxReport *report = &reports[n++];

		report->tag = record->data.tag;
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
 * See transport.h.  Whether a subject is the stream's, and allowed, the next
 * record says.
 */
OutboxFailure
jet_probe_topic(OutboxClient *client, const char *name, OutboxError *error)
{
	JetTopic   *topic = topic_find(client, name);

	if (topic == NULL)
		return OUTBOX_OK;
	if (topic->pending > 0)
		return error_set(error, OUTBOX_RETRY, "", "", NULL);
	atomic_store(&topic->state, JET_TOPIC_TRYING);
	return OUTBOX_OK;
}

/* All that is left at the end; the io thread is no more. */
void
jet_records_free(OutboxClient *client)
{
	JetList    *lists[] = {&client->handed_out, &client->reports, &client->incoming, &client->done};
	JetRecord  *record;

	for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++)
		while ((record = jet_list_take(lists[i])) != NULL)
			record_free(client, record);
	while ((record = client->spare) != NULL)
	{
		client->spare = record->next;
		free(record);
	}
	for (int i = 0; i < JET_TOPIC_BUCKETS; i++)
	{
		JetTopic   *topic;

		while ((topic = client->topics[i]) != NULL)
		{
			client->topics[i] = topic->next;
			free(topic);
		}
	}
}
