/*-------------------------------------------------------------------------
 *
 * io_client.c
 *	  The main thread's side of the way out: what send() is made of, poll(),
 *	  probe_topic(), purge().
 *
 * See io_client.h for what belongs to which thread.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "common/io_client.h"

#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/thread.h"

#define LIST_PREFIX io_list
#define LIST_TYPE IoList
#define LIST_ITEM IoRecord
#define LIST_DEFINE
#include "common/list.h"

/* --- topics ---------------------------------------------------------------------- */

static uint32_t
name_bucket(const char *name)
{
	uint32_t	hash = 2166136261u;

	for (; *name; name++)
		hash = (hash ^ (unsigned char) *name) * 16777619u;
	return hash % IO_TOPIC_BUCKETS;
}

static IoTopic *
topic_find(IoClient *client, const char *name)
{
	IoTopic    *topic = client->last_topic;

	if (topic != NULL && strcmp(topic->name, name) == 0)
		return topic;
	topic = client->topics[name_bucket(name)];
	while (topic != NULL && strcmp(topic->name, name) != 0)
		topic = topic->next;
	return topic;
}

IoTopic *
io_topic_get(IoClient *client, const char *name, OutboxError *error)
{
	IoTopic    *topic = topic_find(client, name);
	size_t		size = strlen(name) + 1;

	if (topic == NULL && (topic = calloc(1, sizeof(IoTopic) + size)) != NULL)
	{
		IoTopic   **bucket = &client->topics[name_bucket(name)];

		memcpy(topic->name, name, size);
		topic->next = *bucket;
		*bucket = topic;
	}
	client->last_topic = topic;
	if (topic == NULL)
	{
		error_set(error, OUTBOX_RETRY, "MEMORY", "out of memory", NULL);
		return NULL;
	}
	if (atomic_load(&topic->state) != IO_TOPIC_FAILED)
		return topic;
	pthread_mutex_lock(&client->thread.lock);
	*error = topic->error;
	pthread_mutex_unlock(&client->thread.lock);
	return NULL;
}

/* Whether it is there, and ours to write, the next record says. */
OutboxFailure
io_probe_topic(OutboxClient *client, const char *name, OutboxError *error)
{
	IoTopic    *topic = topic_find((IoClient *) client, name);

	if (topic == NULL)
		return OUTBOX_OK;
	if (topic->pending > 0)
		return error_set(error, OUTBOX_RETRY, "", "", NULL);
	atomic_store(&topic->state, IO_TOPIC_TRYING);
	return OUTBOX_OK;
}

/* --- records --------------------------------------------------------------------- */

bool
io_has_room(const IoClient *client, size_t bytes, OutboxError *error)
{
	if (client->accepted == 0 || client->bytes + bytes <= client->max_bytes)
		return true;
	error_set(error, OUTBOX_RETRY, "QUEUE_FULL", "enough is on its way", NULL);
	return false;
}

IoRecord *
io_record_new(IoClient *client, IoTopic *topic, const OutboxRecord *data, int nentries,
			  OutboxError *error)
{
	const IoKind *kind = client->kind;
	IoRecord   *record = client->spare;
	int			size = nentries <= IO_USUAL_ENTRIES ? IO_USUAL_ENTRIES : nentries;

	if (record != NULL && size == IO_USUAL_ENTRIES)
		client->spare = record->next;
	else
		record = malloc(kind->record_size + size * kind->entry_size);
	if (record == NULL)
	{
		error_set(error, OUTBOX_RETRY, "MEMORY", "out of memory", NULL);
		return NULL;
	}
	memset(record, 0, kind->record_size);
	record->size = size;
	record->topic = topic;
	record->given_back_known = topic->given_back_known;
	record->data = *data;
	record->data.nheaders = 0;
	record->data.headers = NULL;
	return record;
}

void
io_record_free(IoClient *client, IoRecord *record)
{
	free(record->answer);
	if (client->kind->forget != NULL)
		client->kind->forget(record);
	if (record->size != IO_USUAL_ENTRIES)
	{
		free(record);
		return;
	}
	record->next = client->spare;
	client->spare = record;
}

void
io_hand_over(IoClient *client, IoRecord *record)
{
	bool		wake;

	record->topic->pending++;
	client->accepted++;
	client->bytes += record->bytes;
	pthread_mutex_lock(&client->thread.lock);
	io_list_append(&client->incoming, record);
	wake = client->io_sleeps;
	client->io_sleeps = false;
	pthread_mutex_unlock(&client->thread.lock);
	if (wake)
		thread_wake(client->thread.io_fd);
}

/* Texts live until the next call. */
int
io_poll(OutboxClient *self, OutboxReport *reports, int max)
{
	IoClient   *client = (IoClient *) self;
	IoRecord   *record;
	int			n = 0;

	thread_drain(client->thread.fd);
	while ((record = io_list_take(&client->handed_out)) != NULL)
		io_record_free(client, record);

	pthread_mutex_lock(&client->thread.lock);
	while (n < max && (record = io_list_take(&client->reports)) != NULL)
	{
		io_list_append(&client->handed_out, record);
		n++;
	}
	if (client->reports.first != NULL)
		thread_wake(client->thread.fd); /* there is more */
	pthread_mutex_unlock(&client->thread.lock);

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

/* Nothing lingers. */
void
io_flush(OutboxClient *client)
{
}

void
io_purge(OutboxClient *self, bool in_flight)
{
	IoClient   *client = (IoClient *) self;

	pthread_mutex_lock(&client->thread.lock);
	client->purge_queued = true;
	if (in_flight)
		client->purge_all = true;
	pthread_mutex_unlock(&client->thread.lock);
	thread_wake(client->thread.io_fd);
}

/* --- beginning and end ----------------------------------------------------------- */

void *
io_client_new(size_t size, const IoKind *kind, size_t max_bytes, OutboxError *error)
{
	IoClient   *client = io_thread_new(size, error);

	if (client == NULL)
		return NULL;
	client->kind = kind;
	client->max_bytes = max_bytes;
	if (io_keys_init(&client->keys))
		return client;
	error_set(error, OUTBOX_FATAL, "MEMORY", "out of memory", NULL);
	io_thread_free(&client->thread);
	return NULL;
}

void
io_client_free(IoClient *client)
{
	IoList	   *lists[] = {&client->handed_out, &client->reports, &client->incoming, &client->done};
	IoRecord   *record;

	for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++)
		while ((record = io_list_take(lists[i])) != NULL)
			io_record_free(client, record);
	while ((record = client->spare) != NULL)
	{
		client->spare = record->next;
		free(record);
	}
	for (int i = 0; i < IO_TOPIC_BUCKETS; i++)
	{
		IoTopic    *topic;

		while ((topic = client->topics[i]) != NULL)
		{
			client->topics[i] = topic->next;
			free(topic);
		}
	}
	io_keys_free(&client->keys);
	io_thread_free(&client->thread);
}
