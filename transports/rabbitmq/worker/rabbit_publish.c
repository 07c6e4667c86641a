/*-------------------------------------------------------------------------
 *
 * rabbit_publish.c
 *	  Records onto the wire.  The io thread's.
 *
 * As much is on its way as keeps the broker busy, and no more: it is what
 * would be sent twice when the connection breaks.  Before the library writes,
 * the socket is asked whether it has room, since the library would wait for
 * some, and read nothing meanwhile.
 *
 * The broker has a limit for payloads that it does not tell, and closes the
 * channel of one that is larger.  So one that is larger than all that it took
 * goes on a channel of its own.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "rabbit.h"

#include <poll.h>
#include <string.h>

#define WIRE_RECORDS	8192
#define WIRE_BYTES		((size_t) 16 * 1024 * 1024)
#define ASK_EVERY		((size_t) 16 * 1024)	/* bytes, for room in the socket */
#define AT_ONCE			256		/* records, then frames are read */
#define PERSISTENT		2

static bool
has_room(const OutboxClient *client)
{
	struct pollfd socket = {amqp_get_sockfd(client->connection.state), POLLOUT, 0};

	return poll(&socket, 1, 0) == 1;
}

static RabbitChannel *
idle_channel(OutboxClient *client)
{
	for (int i = RABBIT_ALONE; i < RABBIT_ALONE + client->alone_limit; i++)
		if (client->channels[i].state == RABBIT_CHANNEL_OPEN &&
			client->channels[i].in_flight == 0)
			return &client->channels[i];
	return NULL;
}

static bool
takes(const OutboxClient *client)
{
	return client->connection.state != NULL && !client->blocked &&
		client->exchange_state == RABBIT_EXCHANGE_FINE;
}

static bool
main_takes(const OutboxClient *client)
{
	/* while one is looked for, nothing else is on its way */
	return client->ready.first != NULL && client->alone_limit == RABBIT_NALONE &&
		client->channels[RABBIT_MAIN].state == RABBIT_CHANNEL_OPEN &&
		client->wire_n < WIRE_RECORDS &&
		(client->wire_n == 0 ||
		 client->wire_bytes + client->ready.first->bytes <= WIRE_BYTES);
}

/* Would rabbit_publish() have something to do, given room in the socket? */
bool
rabbit_could_publish(const OutboxClient *client)
{
	bool		idle = idle_channel((OutboxClient *) client) != NULL;

	if (!takes(client))
		return false;
	if (client->alone.first != NULL && idle)
		return true;
	return main_takes(client) &&
		(client->ready.first->data.payload_len <= client->taken ||
		 (client->alone.first == NULL && idle));
}

static void
set_properties(amqp_basic_properties_t *p, const RabbitRecord *record)
{
	memset(p, 0, sizeof(*p));
	p->_flags = AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_TIMESTAMP_FLAG |
		AMQP_BASIC_HEADERS_FLAG;
	p->delivery_mode = PERSISTENT;
	p->timestamp = (uint64_t) (record->io.data.timestamp_ms / 1000);
	p->headers.num_entries = record->nentries;
	p->headers.entries = (amqp_table_entry_t *) record->entries;
	if (record->message_id != NULL)
	{
		p->_flags |= AMQP_BASIC_MESSAGE_ID_FLAG;
		p->message_id.bytes = (void *) record->message_id;
		p->message_id.len = record->message_id_len;
	}
	if (record->content_type != NULL)
	{
		p->_flags |= AMQP_BASIC_CONTENT_TYPE_FLAG;
		p->content_type.bytes = (void *) record->content_type;
		p->content_type.len = record->content_type_len;
	}
}

/* Headers go in one frame, of a size that the broker sets. */
static bool
fits(OutboxClient *client, IoRecord *record)
{
	OutboxError error;

	if (rabbit_record(record)->properties <= (size_t) amqp_get_frame_max(client->connection.state))
		return true;
	error_set(&error, OUTBOX_DEAD, "FRAME_ERROR",
			  "its headers are larger than a frame of this broker", NULL);
	rabbit_dead(client, record, &error);
	return false;
}

/* False: the connection is gone; reading will say why. */
static bool
publish_one(OutboxClient *client, RabbitChannel *channel, IoRecord *record)
{
	const RabbitConfig *config = &client->config;
	amqp_basic_properties_t properties;
	amqp_bytes_t body = {record->data.payload_len, (void *) record->data.payload};
	int			status;

	set_properties(&properties, rabbit_record(record));
	if (!rabbit_channel_push(channel, record))
	{
		io_list_prepend(rabbit_record(record)->alone ? &client->alone : &client->ready, record);
		return false;
	}
	client->wire_n++;
	client->wire_bytes += record->bytes;
	atomic_store(&client->connection.busy_since, thread_now_ms());
	status = amqp_basic_publish(client->connection.state, channel->number,
								amqp_cstring_bytes(config->exchange),
								amqp_cstring_bytes(record->topic->name),
								config->mandatory, 0, &properties, body);
	atomic_store(&client->connection.busy_since, 0);
	return status == AMQP_STATUS_OK;
}

/* Publish what may go now; false: the connection is gone. */
bool
rabbit_publish(OutboxClient *client)
{
	size_t		written = ASK_EVERY;
	int			n = 0;
	RabbitChannel *channel;
	IoRecord   *record;

	if (!takes(client))
		return true;
	if (client->alone.first == NULL)
		client->alone_limit = RABBIT_NALONE;
	while (n++ < AT_ONCE)
	{
		bool		waits = client->alone.first != NULL;
		bool		alone = waits && (channel = idle_channel(client)) != NULL;

		if (!alone && !main_takes(client))
			return true;
		if (!alone && client->ready.first->data.payload_len > client->taken)
		{
			if (waits || (channel = idle_channel(client)) == NULL)
				return true;
			record = io_list_take(&client->ready);
			rabbit_record(record)->alone = alone = true;
			io_list_append(&client->alone, record);
		}
		if (written >= ASK_EVERY)
		{
			if (!has_room(client))
				return true;
			written = 0;
		}
		record = io_list_take(alone ? &client->alone : &client->ready);
		if (!fits(client, record))
			continue;
		written += record->bytes;
		if (!publish_one(client, alone ? channel : &client->channels[RABBIT_MAIN], record))
			return false;
	}
	return true;
}
