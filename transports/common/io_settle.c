/*-------------------------------------------------------------------------
 *
 * io_settle.c
 *	  The io thread's side of the way out: what it takes from main, and how
 *	  records are settled.
 *
 * See io_client.h for what belongs to which thread.  Which record may go, and
 * what an answer of the broker means for it, each transport decides.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "common/io_client.h"

#include <stdlib.h>
#include <string.h>

#include "common/thread.h"

#define MIN_REFUSED_MS	50
#define MAX_REFUSED_MS	2000
#define MAX_SHIFT		6		/* beyond the longest wait */

/* --- from main and back ---------------------------------------------------------- */

bool
io_take_orders(IoClient *client, IoList *to, bool *purge, bool *all)
{
	bool		stop;

	pthread_mutex_lock(&client->thread.lock);
	stop = client->thread.stop;
	if (!stop)
		io_list_splice(to, &client->incoming);
	client->io_sleeps = false;
	*purge = client->purge_queued;
	*all = client->purge_all;
	pthread_mutex_unlock(&client->thread.lock);
	return !stop;
}

bool
io_may_sleep(IoClient *client)
{
	bool		sleep;

	pthread_mutex_lock(&client->thread.lock);
	sleep = client->incoming.first == NULL && !client->thread.stop;
	client->io_sleeps = sleep;
	pthread_mutex_unlock(&client->thread.lock);
	return sleep;
}

void
io_hand_back(IoClient *client)
{
	if (client->done.first == NULL)
		return;
	pthread_mutex_lock(&client->thread.lock);
	io_list_splice(&client->reports, &client->done);
	pthread_mutex_unlock(&client->thread.lock);
	thread_wake(client->thread.fd);
}

/* --- one record ------------------------------------------------------------------ */

void
io_report(IoClient *client, IoRecord *record, OutboxFailure failure, const OutboxError *error)
{
	record->failure = failure;
	if (failure == OUTBOX_DEAD || failure == OUTBOX_PURGED)
		record->topic->given_back++;
	if (error != NULL)
	{
		size_t		name_size = strlen(error->name) + 1;

		record->answer = malloc(name_size + strlen(error->text) + 1);
		if (record->answer != NULL)
		{
			strcpy(record->answer, error->name);
			strcpy(record->answer + name_size, error->text);
		}
	}
	io_list_append(&client->done, record);
}

void
io_give_back(IoClient *client, IoRecord *record)
{
	while (record != NULL)
	{
		IoRecord   *heir = io_key_leave(&client->keys, record);

		io_report(client, record, OUTBOX_TOPIC, &record->topic->error);
		record = heir;
	}
}

void
io_refused(IoClient *client, IoRecord *record)
{
	int			shift = record->refusals < MAX_SHIFT ? record->refusals : MAX_SHIFT;
	int64_t		wait = (int64_t) MIN_REFUSED_MS << shift;

	record->refusals++;
	record->due = thread_now_ms() + (wait < MAX_REFUSED_MS ? wait : MAX_REFUSED_MS);
	io_list_append(&client->again, record);
}

int64_t
io_take_due(IoClient *client, int64_t now, IoList *to)
{
	IoList		later = {NULL, NULL};
	IoRecord   *record;
	int64_t		next = 0;

	while ((record = io_list_take(&client->again)) != NULL)
	{
		if (record->due <= now)
		{
			io_list_append(to, record);
			continue;
		}
		if (next == 0 || record->due < next)
			next = record->due;
		io_list_append(&later, record);
	}
	client->again = later;
	return next;
}

/* --- a topic that fails ---------------------------------------------------------- */

void
io_topic_failed(IoClient *client, IoTopic *topic, const OutboxError *error)
{
	pthread_mutex_lock(&client->thread.lock);
	topic->error = *error;
	topic->error.failure = OUTBOX_TOPIC;
	pthread_mutex_unlock(&client->thread.lock);
	atomic_store(&topic->state, IO_TOPIC_FAILED);
	topic->trial = NULL;
}

void
io_sweep(IoClient *client, IoList *list, const IoTopic *topic)
{
	IoList		kept = {NULL, NULL};
	IoRecord   *record;

	while ((record = io_list_take(list)) != NULL)
	{
		if (record->topic == topic)
			io_give_back(client, record);
		else
			io_list_append(&kept, record);
	}
	*list = kept;
}

/* --- purge ----------------------------------------------------------------------- */

void
io_purge_list(IoClient *client, IoList *list)
{
	IoRecord   *record;

	while ((record = io_list_take(list)) != NULL)
	{
		IoTopic    *topic = record->topic;
		IoRecord   *heir = io_key_leave(&client->keys, record);

		if (heir != NULL)
			io_list_prepend(list, heir);
		if (client->kind->purged != NULL)
			client->kind->purged(client, record);
		if (topic->trial == record)
			topic->trial = NULL;
		io_report(client, record, OUTBOX_PURGED, NULL);
		io_purge_list(client, &topic->waiting);
	}
}
