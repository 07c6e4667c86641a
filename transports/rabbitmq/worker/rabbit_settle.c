/*-------------------------------------------------------------------------
 *
 * rabbit_settle.c
 *	  What becomes of records: taken in, settled, refused, given back.  The io
 *	  thread's.
 *
 * A record waits in one of these places, in this order: for its topic's first
 * record (topic->waiting), behind another of its key (followers), or to be
 * published ("ready", or "alone": one at a time on a channel of its own).
 * Then it is on the wire: in a channel's ring, under its delivery tag.
 *
 *	ack			delivered
 *	nack		refused for now, by a full queue say: published again, later
 *				each time; its key waits
 *	return		no queue gets it: the topic has failed
 *
 * A record that is refused or returned was overtaken by what came behind it:
 * the broker goes on with the next one.  So of a key one record at a time is on
 * its way (key_order.h).
 *
 * A channel that the broker closes takes its ring with it: nobody knows what
 * of it was taken.  All of it is published again, in its order.  What one
 * record did must not be done to others again, so after a refusal they go
 * alone: then the record that closes a channel is known.  The first record of
 * a topic goes alone too, and so does one that is larger than all before it: what
 * is most likely to be refused does no harm to others.
 *
 * After a refusal for good nothing of its key goes before main knows of it, which
 * has to keep a dead letter first, or have the topic wait.  So what follows is given
 * back; and what main hands over of that topic without knowing of all that came
 * back (IoRecord.given_back_known) comes back too, as it may be behind that.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "rabbit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIN_RING		64

/* --- order ------------------------------------------------------------------------ */

static void
make_ready(OutboxClient *client, IoRecord *record)
{
	io_list_append(rabbit_record(record)->alone ? &client->alone : &client->ready, record);
}

/* It is settled: the next one of its key may go. */
static void
let_follow(OutboxClient *client, IoRecord *record)
{
	IoRecord   *heir = io_key_leave(&client->io.keys, record);

	if (heir == NULL)
		return;
	if (atomic_load(&heir->topic->state) == IO_TOPIC_FAILED)
		io_give_back(&client->io, heir);
	else
		make_ready(client, heir);
}

static void
take_in(OutboxClient *client, IoRecord *record)
{
	IoTopic    *topic = record->topic;

	if (record->given_back_known != topic->given_back)
	{
		io_report(&client->io, record, OUTBOX_PURGED, NULL);
		return;
	}
	switch ((IoTopicState) atomic_load(&topic->state))
	{
		case IO_TOPIC_FAILED:
			io_report(&client->io, record, OUTBOX_TOPIC, &topic->error);
			return;
		case IO_TOPIC_TRYING:
			if (topic->trial != NULL)
			{
				io_list_append(&topic->waiting, record);
				return;
			}
			topic->trial = record;
			rabbit_record(record)->alone = true;
			break;
		case IO_TOPIC_FINE:
			break;
	}
	if (io_key_enter(&client->io.keys, record, true))
		make_ready(client, record);
}

/* New records, in their order. */
void
rabbit_take_in(OutboxClient *client, IoList *records)
{
	IoRecord   *record;

	while ((record = io_list_take(records)) != NULL)
		take_in(client, record);
}

/* --- topics ----------------------------------------------------------------------- */

/* Nothing of a topic is sent any more, until it is tried again. */
void
rabbit_topic_failed(OutboxClient *client, IoTopic *topic, const OutboxError *error)
{
	IoRecord   *record;

	io_topic_failed(&client->io, topic, error);
	io_sweep(&client->io, &client->ready, topic);
	io_sweep(&client->io, &client->alone, topic);
	io_sweep(&client->io, &client->io.again, topic);
	while ((record = io_list_take(&topic->waiting)) != NULL)
		io_report(&client->io, record, OUTBOX_TOPIC, &topic->error);
}

/* The first record of a topic is settled: the others are taken in. */
static void
take_waiting(OutboxClient *client, IoTopic *topic)
{
	IoList		waiting = topic->waiting;

	topic->trial = NULL;
	topic->waiting.first = topic->waiting.last = NULL;
	rabbit_take_in(client, &waiting);
}

/* The first record of a topic is delivered: the others follow. */
static void
topic_proved(OutboxClient *client, IoTopic *topic)
{
	atomic_store(&topic->state, IO_TOPIC_FINE);
	take_waiting(client, topic);
}

/* --- the wire ----------------------------------------------------------------------- */

/* Put a published record under the next tag; false: out of memory. */
bool
rabbit_channel_push(RabbitChannel *channel, IoRecord *record)
{
	if (channel->next - channel->first == channel->ring_size)
	{
		size_t		size = channel->ring_size == 0 ? MIN_RING : channel->ring_size * 2;
		IoRecord  **ring = calloc(size, sizeof(IoRecord *));

		if (ring == NULL)
			return false;
		for (uint64_t tag = channel->first; tag < channel->next; tag++)
			ring[tag & (size - 1)] = channel->ring[tag & (channel->ring_size - 1)];
		free(channel->ring);
		channel->ring = ring;
		channel->ring_size = size;
	}
	channel->ring[channel->next++ & (channel->ring_size - 1)] = record;
	channel->in_flight++;
	return true;
}

/* The record of a tag, which is settled by that; NULL: it was before. */
IoRecord *
rabbit_channel_pull(OutboxClient *client, RabbitChannel *channel, uint64_t tag)
{
	IoRecord  **slot = &channel->ring[tag & (channel->ring_size - 1)];
	IoRecord   *record = *slot;

	if (record == NULL)
		return NULL;
	*slot = NULL;
	channel->in_flight--;
	client->wire_n--;
	client->wire_bytes -= record->bytes;
	return record;
}

static void
pass_settled(RabbitChannel *channel)
{
	while (channel->first < channel->next &&
		   channel->ring[channel->first & (channel->ring_size - 1)] == NULL)
		channel->first++;
}

/* The broker took a record. */
static void
delivered(OutboxClient *client, IoRecord *record)
{
	IoTopic    *topic = record->topic;

	if (record->data.payload_len > client->taken)
		client->taken = record->data.payload_len;
	io_report(&client->io, record, OUTBOX_OK, NULL);
	let_follow(client, record);
	if (topic->trial == record)
		topic_proved(client, topic);
}

/* A record is refused for good; see the banner. */
void
rabbit_dead(OutboxClient *client, IoRecord *record, const OutboxError *error)
{
	IoTopic    *topic = record->topic;
	IoRecord   *heir = io_key_leave(&client->io.keys, record);

	io_report(&client->io, record, OUTBOX_DEAD, error);
	while (heir != NULL)
	{
		IoRecord   *follower = heir;

		heir = io_key_leave(&client->io.keys, follower);
		io_report(&client->io, follower, OUTBOX_PURGED, NULL);
	}
	if (topic->trial == record)
		take_waiting(client, topic);
}

/* The broker took it not: later, in its place before all others of its key. */
static void
refused(OutboxClient *client, IoRecord *record)
{
	OutboxError error;
	char		text[RABBIT_MAX_SHORT + 100];

	if (atomic_load(&record->topic->state) == IO_TOPIC_FAILED)
	{
		io_give_back(&client->io, record);
		return;
	}
	io_refused(&client->io, record);
	snprintf(text, sizeof(text), "a message with routing key \"%s\" was refused (nack)",
			 record->topic->name);
	error_set(&error, OUTBOX_RETRY, "NACK", text,
			  "It is sent again. Is a queue full that rejects what is published?");
	io_show_error(&client->io.thread, &error);
}

/* basic.ack or basic.nack. */
void
rabbit_settled(OutboxClient *client, RabbitChannel *channel, uint64_t tag,
			   bool multiple, bool taken)
{
	uint64_t	from = multiple ? channel->first : tag;

	if (multiple && tag == 0)
		tag = channel->next - 1;
	if (from < channel->first || tag >= channel->next)
		return;					/* of before: nothing of ours */
	for (uint64_t t = from; t <= tag; t++)
	{
		IoRecord   *record = rabbit_channel_pull(client, channel, t);

		if (record == NULL)
			continue;
		if (taken)
			delivered(client, record);
		else
			refused(client, record);
	}
	pass_settled(channel);
}

static bool
is_returned(const RabbitChannel *channel, const RabbitRecord *record)
{
	return record != NULL && record->io.data.payload_len == channel->returned_size &&
		strcmp(record->io.topic->name, channel->returned_key) == 0 &&
		(record->message_id != NULL) == channel->returned_has_id &&
		(record->message_id == NULL ||
		 (strlen(channel->returned_id) == record->message_id_len &&
		  memcmp(channel->returned_id, record->message_id, record->message_id_len) == 0));
}

/*
 * A basic.return is complete.  It has no delivery tag, and comes before its
 * ack: the record is known by what it is.  Where several look the same, all of
 * them count as returned: rather twice than never.
 */
void
rabbit_returned(OutboxClient *client, RabbitChannel *channel)
{
	IoTopic    *topic = NULL;
	IoList		returned = {NULL, NULL};
	IoRecord   *record;
	OutboxError error;
	char		text[3 * RABBIT_MAX_SHORT];

	channel->returning = false;
	for (uint64_t tag = channel->first; tag < channel->next; tag++)
	{
		record = channel->ring[tag & (channel->ring_size - 1)];
		if (!is_returned(channel, rabbit_record(record)))
			continue;
		(void) rabbit_channel_pull(client, channel, tag);
		topic = record->topic;
		io_list_append(&returned, record);
	}
	pass_settled(channel);
	if (topic == NULL)
		return;
	snprintf(text, sizeof(text), "the message was returned: %s (no queue is bound for routing key \"%s\")",
			 channel->returned_text, channel->returned_key);
	error_set(&error, OUTBOX_TOPIC, rabbit_code_name(channel->returned_code), text,
			  "Bind a queue; its messages wait.");
	rabbit_topic_failed(client, topic, &error);
	while ((record = io_list_take(&returned)) != NULL)
		io_give_back(&client->io, record);
}

/*
 * A channel is gone, with its connection or without: what it had is published
 * again, before all else.
 */
void
rabbit_channel_lost(OutboxClient *client, RabbitChannel *channel, bool alone)
{
	IoList		back = {NULL, NULL};
	IoList		lone = {NULL, NULL};

	for (uint64_t tag = channel->first; tag < channel->next; tag++)
	{
		IoRecord   *record = rabbit_channel_pull(client, channel, tag);

		if (record == NULL)
			continue;
		if (alone)
			rabbit_record(record)->alone = true;
		if (atomic_load(&record->topic->state) == IO_TOPIC_FAILED)
			io_give_back(&client->io, record);
		else
			io_list_append(rabbit_record(record)->alone ? &lone : &back, record);
	}
	io_list_splice(&back, &client->ready);
	client->ready = back;
	io_list_splice(&lone, &client->alone);
	client->alone = lone;
	channel->state = RABBIT_CHANNEL_CLOSED;
	channel->first = channel->next = 1;
	channel->returning = false;
}

/* What was refused goes on when its time has come; when the next one's comes, 0: none. */
int64_t
rabbit_retry_due(OutboxClient *client, int64_t now)
{
	IoList		due = {NULL, NULL};
	int64_t		next = io_take_due(&client->io, now, &due);
	IoRecord   *record;

	while ((record = io_list_take(&due)) != NULL)
		make_ready(client, record);
	return next;
}

/* --- the end -------------------------------------------------------------------------- */

static void
purge_ring(OutboxClient *client, RabbitChannel *channel, bool all)
{
	IoList		list = {NULL, NULL};

	for (uint64_t tag = channel->first; tag < channel->next; tag++)
	{
		IoRecord   *record = channel->ring[tag & (channel->ring_size - 1)];

		if (record == NULL)
			continue;
		/* what waits behind it is not on its way */
		io_purge_list(&client->io, &record->followers);
		io_purge_list(&client->io, &record->topic->waiting);
		if (all)
			io_list_append(&list, rabbit_channel_pull(client, channel, tag));
	}
	io_purge_list(&client->io, &list);
	pass_settled(channel);
}

/* See purge() in transport.h. */
void
rabbit_purge_records(OutboxClient *client, bool all)
{
	io_purge_list(&client->io, &client->ready);
	io_purge_list(&client->io, &client->alone);
	io_purge_list(&client->io, &client->io.again);
	for (int i = RABBIT_MAIN; i < RABBIT_NCHANNELS; i++)
		purge_ring(client, &client->channels[i], all);
}
