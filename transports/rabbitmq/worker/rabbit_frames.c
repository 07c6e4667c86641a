/*-------------------------------------------------------------------------
 *
 * rabbit_frames.c
 *	  What the broker says: frames of the way out.  The io thread's.
 *
 * Nothing here waits for an answer.  Channels are opened, put into confirm
 * mode, and the exchange is looked for, by methods whose answers come as
 * frames among others: a broker that has raised an alarm reads nothing, and
 * whoever waited for it would see nothing of the rest.
 *
 * The exchange is looked for on a channel of its own, passively, since a
 * missing one closes the channel.  It is made only where option "declare" says
 * so, and never changed.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "rabbit.h"

#include <stdio.h>
#include <string.h>

#define LOOK_AGAIN_MS	1000	/* for an exchange that is missing */

/* --- channels ----------------------------------------------------------------------- */

static bool
open_channel(OutboxClient *client, RabbitChannel *channel)
{
	amqp_channel_open_t m = {amqp_empty_bytes};

	channel->state = RABBIT_CHANNEL_OPENING;
	channel->first = channel->next = 1;
	return rabbit_send_method(&client->connection, channel->number,
							  AMQP_CHANNEL_OPEN_METHOD, &m);
}

/* After connecting; false: the connection is gone. */
bool
rabbit_open_channels(OutboxClient *client)
{
	client->exchange_state = client->config.exchange[0] == '\0' ?
		RABBIT_EXCHANGE_FINE : RABBIT_EXCHANGE_UNKNOWN;
	client->exchange_due = 0;
	for (int i = RABBIT_CONTROL; i < RABBIT_NCHANNELS; i++)
	{
		client->channels[i].number = (amqp_channel_t) i;
		if (!open_channel(client, &client->channels[i]))
			return false;
	}
	return true;
}

static bool
declare_exchange(OutboxClient *client, bool passive)
{
	amqp_exchange_declare_t m;

	memset(&m, 0, sizeof(m));
	m.exchange = amqp_cstring_bytes(client->config.exchange);
	m.type = amqp_cstring_bytes(client->config.declare ? client->config.declare : "topic");
	m.passive = passive;
	m.durable = 1;
	client->exchange_state = passive ? RABBIT_EXCHANGE_ASKED : RABBIT_EXCHANGE_MADE;
	return rabbit_send_method(&client->connection, RABBIT_CONTROL,
							  AMQP_EXCHANGE_DECLARE_METHOD, &m);
}

/* Ask for the exchange when it is time to; false: the connection is gone. */
bool
rabbit_look_for_exchange(OutboxClient *client)
{
	int64_t		now = thread_now_ms();

	if (client->exchange_state != RABBIT_EXCHANGE_UNKNOWN || now < client->exchange_due ||
		client->channels[RABBIT_CONTROL].state != RABBIT_CHANNEL_OPEN)
		return true;
	client->exchange_due = now + LOOK_AGAIN_MS;
	return declare_exchange(client, true);
}

/* The exchange is there: what was said of it is over. */
static void
exchange_found(OutboxClient *client)
{
	client->exchange_state = RABBIT_EXCHANGE_FINE;
	client->blamed = false;
	rabbit_show_blocked(client);
}

/* The look for it closed the channel. */
static void
exchange_refused(OutboxClient *client, const amqp_channel_close_t *m)
{
	OutboxError error;
	bool		making = client->exchange_state == RABBIT_EXCHANGE_MADE;

	if (m->reply_code == AMQP_NOT_FOUND && client->config.declare != NULL && !making)
	{
		/* asked again as soon as the channel is open again */
		client->exchange_state = RABBIT_EXCHANGE_WANTED;
		return;
	}
	client->exchange_state = RABBIT_EXCHANGE_UNKNOWN;
	rabbit_error_closed(&error, false, m->reply_code, m->reply_text);
	error.failure = OUTBOX_CONFIG;
	snprintf(error.hint, sizeof(error.hint), "%s", making ?
			 "Allow the user to configure the exchange, or declare it yourself." :
			 "Declare the exchange, or set option \"declare\" to its type; messages wait.");
	client->blamed = true;
	io_show_error(&client->io.thread, &error);
	rabbit_show_blocked(client);
}

/* What was published closed the channel. */
static void
publish_refused(OutboxClient *client, RabbitChannel *channel, const amqp_channel_close_t *m)
{
	OutboxError error;
	IoRecord   *record = NULL;
	bool		alone = channel->number >= RABBIT_ALONE;

	rabbit_error_closed(&error, false, m->reply_code, m->reply_text);
	if (m->reply_code == AMQP_NOT_FOUND)
	{
		if (client->exchange_state == RABBIT_EXCHANGE_FINE)
			client->exchange_state = RABBIT_EXCHANGE_UNKNOWN;
		rabbit_channel_lost(client, channel, false);
		return;
	}
	if (alone && channel->in_flight == 1)
		record = channel->ring[channel->first & (channel->ring_size - 1)];
	if (record == NULL)
	{
		io_show_error(&client->io.thread, &error);
		rabbit_channel_lost(client, channel, true);
		return;
	}
	if (m->reply_code == AMQP_ACCESS_REFUSED)
	{
		snprintf(error.hint, sizeof(error.hint), "Allow the user to write there; its messages wait.");
		rabbit_topic_failed(client, record->topic, &error);
		rabbit_channel_lost(client, channel, true);
		return;
	}
	rabbit_channel_pull(client, channel, channel->first);
	rabbit_dead(client, record, &error);
	rabbit_channel_lost(client, channel, true);
}

/* A channel was closed by the broker; it is opened anew. */
static bool
channel_closed(OutboxClient *client, RabbitChannel *channel, const amqp_channel_close_t *m)
{
	amqp_channel_close_ok_t ok;

	memset(&ok, 0, sizeof(ok));
	if (!rabbit_send_method(&client->connection, channel->number,
							AMQP_CHANNEL_CLOSE_OK_METHOD, &ok))
		return false;
	if (channel->number == RABBIT_CONTROL)
		exchange_refused(client, m);
	else
		publish_refused(client, channel, m);
	return open_channel(client, channel);
}

/* A channel is open: confirm mode, or the exchange. */
static bool
channel_opened(OutboxClient *client, RabbitChannel *channel)
{
	amqp_confirm_select_t m = {0};

	if (channel->number != RABBIT_CONTROL)
		return rabbit_send_method(&client->connection, channel->number,
								  AMQP_CONFIRM_SELECT_METHOD, &m);
	channel->state = RABBIT_CHANNEL_OPEN;
	if (client->exchange_state == RABBIT_EXCHANGE_WANTED)
		return declare_exchange(client, false);
	return true;
}

/* --- methods ------------------------------------------------------------------------ */

static void
return_begins(RabbitChannel *channel, const amqp_basic_return_t *m)
{
	channel->returning = true;
	channel->returned_code = m->reply_code;
	channel->returned_left = UINT64_MAX;	/* its header is to come */
	rabbit_copy_short(channel->returned_key, m->routing_key);
	rabbit_copy_short(channel->returned_text, m->reply_text);
}

/* The connection's own channel; false: it was closed. */
static bool
connection_method(OutboxClient *client, const amqp_method_t *method, OutboxError *error)
{
	if (method->id == AMQP_CONNECTION_CLOSE_METHOD)
	{
		amqp_connection_close_t *m = method->decoded;
		amqp_connection_close_ok_t ok = {0};

		/* of what was published: one of it does it, and is to be found */
		client->accused = m->class_id == AMQP_BASIC_CLASS;
		rabbit_error_closed(error, true, m->reply_code, m->reply_text);
		(void) rabbit_send_method(&client->connection, 0, AMQP_CONNECTION_CLOSE_OK_METHOD, &ok);
		return false;
	}
	if (method->id == AMQP_CONNECTION_BLOCKED_METHOD)
	{
		amqp_connection_blocked_t *m = method->decoded;
		char		reason[RABBIT_MAX_SHORT + 1];
		char		text[RABBIT_MAX_SHORT + 100];
		OutboxError alarm;

		rabbit_copy_short(reason, m->reason);
		snprintf(text, sizeof(text), "the broker has raised an alarm and takes no messages: %s", reason);
		error_set(&alarm, OUTBOX_RETRY, "BLOCKED", text,
				  "It goes on by itself when the alarm is over: give the broker memory or disk space.");
		client->blocked = true;
		io_show_error(&client->io.thread, &alarm);
		rabbit_show_blocked(client);
	}
	else if (method->id == AMQP_CONNECTION_UNBLOCKED_METHOD)
	{
		client->blocked = false;
		rabbit_show_blocked(client);
	}
	return true;
}

/* False: the connection is gone. */
static bool
channel_method(OutboxClient *client, RabbitChannel *channel, const amqp_method_t *method)
{
	switch (method->id)
	{
		case AMQP_BASIC_ACK_METHOD:
			{
				amqp_basic_ack_t *m = method->decoded;

				rabbit_settled(client, channel, m->delivery_tag, m->multiple, true);
				return true;
			}
		case AMQP_BASIC_NACK_METHOD:
			{
				amqp_basic_nack_t *m = method->decoded;

				rabbit_settled(client, channel, m->delivery_tag, m->multiple, false);
				return true;
			}
		case AMQP_BASIC_RETURN_METHOD:
			return_begins(channel, method->decoded);
			return true;
		case AMQP_CHANNEL_OPEN_OK_METHOD:
			return channel_opened(client, channel);
		case AMQP_CONFIRM_SELECT_OK_METHOD:
			channel->state = RABBIT_CHANNEL_OPEN;
			return true;
		case AMQP_EXCHANGE_DECLARE_OK_METHOD:
			exchange_found(client);
			return true;
		case AMQP_CHANNEL_CLOSE_METHOD:
			return channel_closed(client, channel, method->decoded);
		default:
			return true;
	}
}

/* --- frames ---------------------------------------------------------------------------- */

/* Header and body of a message that is returned. */
static void
content_frame(OutboxClient *client, RabbitChannel *channel, const amqp_frame_t *frame)
{
	if (!channel->returning)
		return;
	if (frame->frame_type == AMQP_FRAME_HEADER)
	{
		amqp_basic_properties_t *p = frame->payload.properties.decoded;

		channel->returned_size = channel->returned_left = frame->payload.properties.body_size;
		channel->returned_has_id = (p->_flags & AMQP_BASIC_MESSAGE_ID_FLAG) != 0;
		channel->returned_id[0] = '\0';
		if (channel->returned_has_id)
			rabbit_copy_short(channel->returned_id, p->message_id);
	}
	else
		channel->returned_left -= frame->payload.body_fragment.len;
	if (channel->returned_left == 0)
		rabbit_returned(client, channel);
}

/* False: the connection is gone. */
static bool
take_frame(OutboxClient *client, const amqp_frame_t *frame, OutboxError *error)
{
	if (frame->channel == 0)
		return frame->frame_type != AMQP_FRAME_METHOD ||
			connection_method(client, &frame->payload.method, error);
	if (frame->channel >= RABBIT_NCHANNELS)
		return true;
	if (frame->frame_type == AMQP_FRAME_METHOD)
		return channel_method(client, &client->channels[frame->channel],
							  &frame->payload.method);
	content_frame(client, &client->channels[frame->channel], frame);
	return true;
}

/* All that is there; false: the connection is gone, with *error. */
bool
rabbit_read_frames(OutboxClient *client, OutboxError *error)
{
	RabbitConnection *connection = &client->connection;
	amqp_frame_t frame;
	bool		got;

	for (;;)
	{
		if (rabbit_read_frame(connection, &frame, &got, error) != OUTBOX_OK)
			return false;
		if (!got)
			return true;
		error_set(error, OUTBOX_RETRY, "TRANSPORT", "connection to the broker: it ended", NULL);
		if (!take_frame(client, &frame, error))
			return false;
		amqp_maybe_release_buffers_on_channel(connection->state, frame.channel);
	}
}
