/*-------------------------------------------------------------------------
 *
 * jet_settle.c
 *	  What becomes of records, and which one is next.  The io thread's.
 *
 * A record waits in one of these places: for its topic's first record
 * (topic->waiting), behind another of its key (followers), for its time after
 * a refusal ("again"), or to be published: "heirs" go before "ready".
 *
 * The first record of a topic goes alone, with nothing else on the wire: that
 * nobody takes it, or that it is forbidden, the server says without saying of
 * which record, or in which order.  So does one that was refused for now (the
 * stream is full, or has no space): what is behind it in its topic waits for
 * it, others are tried meanwhile.
 *
 * While others write to the stream, no more than one record of a key is on its
 * way at a time (key_order.h): should it be refused, none has passed it.  Those
 * that hold a key do so until they are done with; there are no new ones when the
 * others are gone.
 *
 * After a refusal for good nothing of its key goes before main knows of it, which
 * has to keep a dead letter first, or have the topic wait.  So what main has handed
 * over of that topic without knowing of all that came back of it
 * (IoRecord.given_back_known) comes back too.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "jet.h"

/* A record is done with: the next one of its key may go. */
static void
let_follow(OutboxClient *client, IoRecord *record)
{
	IoRecord   *heir = io_key_leave(&client->io.keys, record);

	/* before all that is ready, of which some may be of its key */
	if (heir != NULL)
		io_list_append(&client->heirs, heir);
}

/* A topic's first record is done with: those that wait for it come next. */
static void
end_trial(OutboxClient *client, IoRecord *record, IoTopicState state)
{
	IoTopic    *topic = record->topic;

	if (topic->trial != record)
		return;
	topic->trial = NULL;
	if (atomic_load(&topic->state) != IO_TOPIC_FAILED)
		atomic_store(&topic->state, state);
	io_list_splice(&topic->waiting, &client->ready);
	client->ready = topic->waiting;
	topic->waiting.first = topic->waiting.last = NULL;
}

static void
no_longer_alone(OutboxClient *client, const IoRecord *record)
{
	if (client->alone == record)
		client->alone = NULL;
}

/* The stream has it. */
void
jet_delivered(OutboxClient *client, IoRecord *record)
{
	client->doubt = false;
	no_longer_alone(client, record);
	let_follow(client, record);
	end_trial(client, record, IO_TOPIC_FINE);
	io_report(&client->io, record, OUTBOX_OK, NULL);
}

/* Refused for good. */
void
jet_dead(OutboxClient *client, IoRecord *record, const OutboxError *error)
{
	no_longer_alone(client, record);
	let_follow(client, record);
	end_trial(client, record, IO_TOPIC_TRYING);
	io_report(&client->io, record, OUTBOX_DEAD, error);
}

/* Refused for now: later, before all others of its topic. */
void
jet_hold(OutboxClient *client, IoRecord *record, const OutboxError *error)
{
	IoTopic    *topic = record->topic;

	no_longer_alone(client, record);
	io_show_error(&client->io.thread, error);
	if (atomic_load(&topic->state) == IO_TOPIC_FAILED)
	{
		io_give_back(&client->io, record);
		return;
	}
	if (topic->trial != NULL && topic->trial != record)
	{
		io_list_append(&topic->waiting, record);
		return;
	}
	atomic_store(&topic->state, IO_TOPIC_TRYING);
	topic->trial = record;
	io_refused(&client->io, record);
}

/* --- topics that fail --------------------------------------------------------------- */

/* A record's topic takes nothing, until it is tried again. */
void
jet_topic_failed(OutboxClient *client, IoRecord *record, const OutboxError *error)
{
	IoTopic    *topic = record->topic;

	no_longer_alone(client, record);
	io_topic_failed(&client->io, topic, error);
	io_give_back(&client->io, record);
	io_sweep(&client->io, &topic->waiting, topic);
	io_sweep(&client->io, &client->heirs, topic);
	io_sweep(&client->io, &client->ready, topic);
	io_sweep(&client->io, &client->io.again, topic);
}

/* Give back what main sent before it knew what has come back, with all that follow it. */
static void
purge(OutboxClient *client, IoRecord *record)
{
	while (record != NULL)
	{
		IoRecord   *heir = io_key_leave(&client->io.keys, record);

		no_longer_alone(client, record);
		end_trial(client, record, IO_TOPIC_TRYING);
		io_report(&client->io, record, OUTBOX_PURGED, NULL);
		record = heir;
	}
}

/* --- what is next --------------------------------------------------------------------- */

/* The next record that may go, as far as its topic and its key are concerned. */
IoRecord *
jet_next_record(OutboxClient *client)
{
	IoRecord   *record;

	while ((record = io_list_take(client->heirs.first ? &client->heirs : &client->ready)) != NULL)
	{
		IoTopic    *topic = record->topic;

		if (record->given_back_known != topic->given_back)
		{
			purge(client, record);
			continue;
		}
		switch ((IoTopicState) atomic_load(&topic->state))
		{
			case IO_TOPIC_FAILED:
				io_give_back(&client->io, record);
				continue;
			case IO_TOPIC_TRYING:
				if (topic->trial != NULL && topic->trial != record)
				{
					io_list_append(&topic->waiting, record);
					continue;
				}
				topic->trial = record;
				break;
			case IO_TOPIC_FINE:
				break;
		}
		if (io_key_enter(&client->io.keys, record, !client->chained))
			return record;
	}
	return NULL;
}

/* --- the end --------------------------------------------------------------------------- */

/* See IoKind. */
void
jet_purged(IoClient *client, IoRecord *record)
{
	no_longer_alone((OutboxClient *) client, record);
}

/* What waits for records that stay where they are. */
static void
purge_behind(OutboxClient *client, IoRecord *record)
{
	io_purge_list(&client->io, &record->followers);
	io_purge_list(&client->io, &record->topic->waiting);
}

/* See purge() in transport.h. */
void
jet_purge_records(OutboxClient *client, bool all)
{
	IoList		wire = {NULL, NULL};

	io_purge_list(&client->io, &client->heirs);
	io_purge_list(&client->io, &client->ready);
	io_purge_list(&client->io, &client->io.again);
	for (IoRecord *record = client->unsure.first; record != NULL; record = record->next)
		purge_behind(client, record);
	for (uint64_t n = client->first; n < client->next; n++)
	{
		IoRecord   *record = client->ring[n & (client->ring_size - 1)];

		if (record == NULL)
			continue;
		purge_behind(client, record);
		if (all)
			io_list_append(&wire, jet_wire_pull(client, n));
	}
	if (!all)
		return;
	jet_forget_unsure(client);
	io_purge_list(&client->io, &client->ready);
	io_purge_list(&client->io, &wire);
}
