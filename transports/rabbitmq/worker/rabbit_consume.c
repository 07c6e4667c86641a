/*-------------------------------------------------------------------------
 *
 * rabbit_consume.c
 *	  The io thread of the way in.
 *
 * Each queue has a channel of its own: acks with "multiple" count for a channel,
 * and what closes one (a queue that is missing) does not touch the others.  A
 * queue is looked for first, passively; one that is missing is looked for again
 * every second.  It is consumed once main has said where its numbers begin.
 *
 * A queue that is deleted, or a channel that is closed while a queue is
 * consumed, ends the connection: main is told that all is lost, and all that was
 * not acknowledged comes again.  Rare, and simpler to be right than anything
 * finer.
 *
 * Prefetch bounds how many messages are received ahead, max_bytes how much:
 * beyond that nothing is read from the socket, and heartbeats are sent by hand.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "rabbit_source.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PREFETCH		2000
#define IDLE_MS			1000
#define LOOK_AGAIN_MS	1000
#define FIRST_CHANNEL	1

static amqp_channel_t
channel_of(int queue)
{
	return (amqp_channel_t) (FIRST_CHANNEL + queue);
}

/* --- queues --------------------------------------------------------------------------- */

static bool
open_channel(OutboxConsumer *consumer, int queue)
{
	amqp_channel_open_t m = {amqp_empty_bytes};

	consumer->queues[queue].state = RABBIT_QUEUE_OPENING;
	return rabbit_send_method(&consumer->connection, channel_of(queue),
							  AMQP_CHANNEL_OPEN_METHOD, &m);
}

static bool
look_for_queue(OutboxConsumer *consumer, int queue)
{
	amqp_queue_declare_t m;

	memset(&m, 0, sizeof(m));
	m.queue = amqp_cstring_bytes(consumer->queues[queue].name);
	m.passive = 1;
	consumer->queues[queue].state = RABBIT_QUEUE_ASKED;
	return rabbit_send_method(&consumer->connection, channel_of(queue),
							  AMQP_QUEUE_DECLARE_METHOD, &m);
}

static bool
consume_queue(OutboxConsumer *consumer, int queue)
{
	amqp_basic_qos_t qos;
	amqp_basic_consume_t m;

	memset(&qos, 0, sizeof(qos));
	memset(&m, 0, sizeof(m));
	qos.prefetch_count = PREFETCH;
	m.queue = amqp_cstring_bytes(consumer->queues[queue].name);
	m.consumer_tag = amqp_cstring_bytes(consumer->config.client_id);
	consumer->queues[queue].state = RABBIT_QUEUE_CONSUMED;
	return rabbit_send_method(&consumer->connection, channel_of(queue),
							  AMQP_BASIC_QOS_METHOD, &qos) &&
		rabbit_send_method(&consumer->connection, channel_of(queue),
						   AMQP_BASIC_CONSUME_METHOD, &m);
}

/* Whether a queue is there is known now. */
static void
queue_looked_for(OutboxConsumer *consumer, int queue, bool there)
{
	bool		listed = true;

	pthread_mutex_lock(&consumer->io.lock);
	consumer->queues[queue].there = there;
	if (!there)
		consumer->queues[queue].look_due = thread_now_ms() + LOOK_AGAIN_MS;
	for (int i = 0; i < consumer->nqueues; i++)
		listed = listed && (consumer->queues[i].there || consumer->queues[i].look_due > 0);
	consumer->listed = consumer->listed || listed;
	pthread_mutex_unlock(&consumer->io.lock);
	thread_wake(consumer->io.fd);
}

/* Acks, queues to be consumed or looked for; false: the connection is gone. */
static bool
tend_queues(OutboxConsumer *consumer)
{
	int64_t		now = thread_now_ms();

	for (int i = 0; i < consumer->nqueues; i++)
	{
		RabbitQueue *queue = &consumer->queues[i];
		uint64_t	ack;
		bool		wanted;

		pthread_mutex_lock(&consumer->io.lock);
		ack = queue->ack;
		wanted = queue->wanted;
		pthread_mutex_unlock(&consumer->io.lock);
		if (ack > queue->acked)
		{
			amqp_basic_ack_t m = {ack, 1};

			queue->acked = ack;
			if (!rabbit_send_method(&consumer->connection, channel_of(i),
									AMQP_BASIC_ACK_METHOD, &m))
				return false;
		}
		if (queue->state == RABBIT_QUEUE_THERE && wanted && !consume_queue(consumer, i))
			return false;
		if (queue->state == RABBIT_QUEUE_CLOSED && now >= queue->look_due &&
			!open_channel(consumer, i))
			return false;
	}
	return true;
}

/* --- the connection ---------------------------------------------------------------------- */

static void
drop_coming(RabbitQueue *queue)
{
	if (queue->coming != NULL)
		rabbit_delivery_free(queue->coming);
	queue->coming = NULL;
}

static void
connection_lost(OutboxConsumer *consumer, const OutboxError *error)
{
	RabbitDelivery *delivery;

	rabbit_disconnect(&consumer->connection, false);
	io_connect_soon(&consumer->io);
	pthread_mutex_lock(&consumer->io.lock);
	consumer->connected = consumer->io.status.connected = consumer->listed = false;
	while ((delivery = rabbit_deliveries_take(&consumer->arrived)) != NULL)
	{
		atomic_fetch_sub(&consumer->held, delivery->bytes);
		rabbit_delivery_free(delivery);
	}
	for (int i = 0; i < consumer->nqueues; i++)
	{
		RabbitQueue *queue = &consumer->queues[i];

		drop_coming(queue);
		queue->state = RABBIT_QUEUE_CLOSED;
		queue->look_due = 0;
		queue->acked = queue->ack = 0;
		queue->there = queue->wanted = false;
	}
	pthread_mutex_unlock(&consumer->io.lock);
	io_show_error(&consumer->io, error);
}

static void
connect_in_time(OutboxConsumer *consumer)
{
	OutboxError error;

	if (thread_now_ms() < consumer->io.connect_due)
		return;
	if (rabbit_connect(&consumer->connection, &error))
	{
		consumer->io.connect_wait = 0;
		consumer->heartbeat_due = 0;
		pthread_mutex_lock(&consumer->io.lock);
		consumer->connected = consumer->io.status.connected = consumer->io.status.was_connected = true;
		consumer->up++;
		pthread_mutex_unlock(&consumer->io.lock);
		return;
	}
	io_connect_later(&consumer->io);
	io_show_error(&consumer->io, &error);
}

/* --- frames ---------------------------------------------------------------------------------- */

/* A channel was closed; false: that ends the connection. */
static bool
channel_closed(OutboxConsumer *consumer, int number, const amqp_channel_close_t *m, OutboxError *error)
{
	RabbitQueue *queue = &consumer->queues[number];
	amqp_channel_close_ok_t ok;
	bool		asked = queue->state == RABBIT_QUEUE_ASKED;

	memset(&ok, 0, sizeof(ok));
	rabbit_error_closed(error, false, m->reply_code, m->reply_text);
	if (!asked)
	{
		if (m->reply_code == AMQP_ACCESS_REFUSED)
			snprintf(error->hint, sizeof(error->hint), "Allow the user to read the queue.");
		return false;
	}
	if (!rabbit_send_method(&consumer->connection, channel_of(number), AMQP_CHANNEL_CLOSE_OK_METHOD, &ok))
		return false;
	error->failure = OUTBOX_TOPIC;
	snprintf(error->hint, sizeof(error->hint), "Declare the queue; it is consumed as soon as it is there.");
	queue->state = RABBIT_QUEUE_CLOSED;
	/* said once: it is looked for again and again */
	if (queue->look_due == 0)
		io_show_error(&consumer->io, error);
	queue_looked_for(consumer, number, false);
	return true;
}

static void
complete(OutboxConsumer *consumer, RabbitQueue *queue)
{
	RabbitDelivery *delivery = queue->coming;

	queue->coming = NULL;
	if (delivery->incoming.payload != NULL)
		delivery->incoming.payload = delivery->body ? delivery->body : "";
	atomic_fetch_add(&consumer->held, delivery->bytes);
	pthread_mutex_lock(&consumer->io.lock);
	rabbit_deliveries_append(&consumer->arrived, delivery);
	pthread_mutex_unlock(&consumer->io.lock);
}

/* False: the connection is to be ended, with *error. */
static bool
queue_method(OutboxConsumer *consumer, int number, const amqp_method_t *method, OutboxError *error)
{
	RabbitQueue *queue = &consumer->queues[number];

	switch (method->id)
	{
		case AMQP_CHANNEL_OPEN_OK_METHOD:
			return look_for_queue(consumer, number);
		case AMQP_QUEUE_DECLARE_OK_METHOD:
			queue->state = RABBIT_QUEUE_THERE;
			queue_looked_for(consumer, number, true);
			return true;
		case AMQP_BASIC_DELIVER_METHOD:
			queue->has_header = false;
			queue->coming = rabbit_delivery_begin(queue, number, method->decoded);
			return queue->coming != NULL;
		case AMQP_BASIC_CANCEL_METHOD:
			error_set(error, OUTBOX_RETRY, "CANCELLED", "the broker ended the consumer of a queue",
					  "Was the queue deleted, or did its node go away?");
			return false;
		case AMQP_CHANNEL_CLOSE_METHOD:
			return channel_closed(consumer, number, method->decoded, error);
		default:
			return true;
	}
}

/* Header and body of a delivery; false: out of memory. */
static bool
content_frame(OutboxConsumer *consumer, RabbitQueue *queue, const amqp_frame_t *frame)
{
	RabbitDelivery *delivery = queue->coming;

	if (delivery == NULL)
		return true;
	if (frame->frame_type == AMQP_FRAME_HEADER)
	{
		size_t		size = (size_t) frame->payload.properties.body_size;

		queue->has_header = true;
		if (!rabbit_incoming_read(delivery, frame->payload.properties.decoded))
			return false;
		if (size > 0 && (delivery->body = malloc(size)) == NULL)
			return false;
		delivery->bytes += size;
		delivery->incoming.payload_len = queue->body_left = size;
	}
	else if (queue->has_header && frame->payload.body_fragment.len <= queue->body_left)
	{
		memcpy(delivery->body + delivery->incoming.payload_len - queue->body_left,
			   frame->payload.body_fragment.bytes, frame->payload.body_fragment.len);
		queue->body_left -= frame->payload.body_fragment.len;
	}
	if (queue->body_left == 0)
		complete(consumer, queue);
	return true;
}

static bool
take_frame(OutboxConsumer *consumer, const amqp_frame_t *frame, OutboxError *error)
{
	int			number = frame->channel - FIRST_CHANNEL;

	if (frame->channel == 0)
	{
		amqp_connection_close_t *m = frame->payload.method.decoded;
		amqp_connection_close_ok_t ok = {0};

		if (frame->frame_type != AMQP_FRAME_METHOD ||
			frame->payload.method.id != AMQP_CONNECTION_CLOSE_METHOD)
			return true;
		rabbit_error_closed(error, true, m->reply_code, m->reply_text);
		(void) rabbit_send_method(&consumer->connection, 0, AMQP_CONNECTION_CLOSE_OK_METHOD, &ok);
		return false;
	}
	if (number >= consumer->nqueues)
		return true;
	if (frame->frame_type == AMQP_FRAME_METHOD)
		return queue_method(consumer, number, &frame->payload.method, error);
	return content_frame(consumer, &consumer->queues[number], frame);
}

/* Is enough received ahead? */
static bool
is_full(OutboxConsumer *consumer)
{
	return atomic_load(&consumer->held) > consumer->max_bytes;
}

/* All that is there, within bounds; false: the connection is gone, with *error. */
static bool
read_frames(OutboxConsumer *consumer, OutboxError *error)
{
	amqp_frame_t frame;
	bool		got = true;
	bool		some = false;

	while (got && !is_full(consumer))
	{
		if (rabbit_read_frame(&consumer->connection, &frame, &got, error) != OUTBOX_OK)
			return false;
		if (!got)
			break;
		some = true;
		error_set(error, OUTBOX_RETRY, "TRANSPORT", "connection to the broker: it ended", NULL);
		if (!take_frame(consumer, &frame, error))
			return false;
		amqp_maybe_release_buffers_on_channel(consumer->connection.state, frame.channel);
	}
	if (some)
		thread_wake(consumer->io.fd);
	return true;
}

/* While nothing is read the library sends no heartbeats. */
static bool
beat(OutboxConsumer *consumer)
{
	amqp_frame_t frame;
	int64_t		now = thread_now_ms();

	if (!is_full(consumer) || now < consumer->heartbeat_due)
		return true;
	memset(&frame, 0, sizeof(frame));
	frame.frame_type = AMQP_FRAME_HEARTBEAT;
	consumer->heartbeat_due = now + consumer->config.heartbeat * 1000 / 2;
	return amqp_send_frame(consumer->connection.state, &frame) == AMQP_STATUS_OK;
}

/* --- the loop ------------------------------------------------------------------------------------ */

static void
work(OutboxConsumer *consumer)
{
	OutboxError error = {0};

	if (read_frames(consumer, &error) && tend_queues(consumer) && beat(consumer))
		return;
	if (consumer->connection.state != NULL && error.text[0] == '\0')
		error_set(&error, OUTBOX_RETRY, "TRANSPORT",
				  "connection to the broker: it could not be written to", NULL);
	connection_lost(consumer, &error);
}

static void
io_sleep(OutboxConsumer *consumer)
{
	struct pollfd fds[2] = {{consumer->io.io_fd, POLLIN, 0}, {-1, POLLIN, 0}};
	int			wait = consumer->config.heartbeat * 250;
	bool		sleep;

	if (wait > IDLE_MS)
		wait = IDLE_MS;
	if (consumer->connection.state == NULL)
	{
		int64_t		left = consumer->io.connect_due - thread_now_ms();

		wait = left < 0 ? 0 : left < wait ? (int) left : wait;
	}
	else if (!is_full(consumer))
		fds[1].fd = amqp_get_sockfd(consumer->connection.state);
	pthread_mutex_lock(&consumer->io.lock);
	sleep = !consumer->io.stop && consumer->io_sleeps;
	pthread_mutex_unlock(&consumer->io.lock);
	if (!sleep)
		return;
	(void) poll(fds, 2, wait);
	thread_drain(consumer->io.io_fd);
}

/* The thread's main function.  io_sleeps: nothing was asked for since the turn began. */
void *
rabbit_consume_main(void *arg)
{
	OutboxConsumer *consumer = arg;
	bool		stop = false;

	while (!stop)
	{
		pthread_mutex_lock(&consumer->io.lock);
		stop = consumer->io.stop;
		consumer->io_sleeps = true;
		pthread_mutex_unlock(&consumer->io.lock);
		if (consumer->connection.state == NULL && !stop)
			connect_in_time(consumer);
		if (consumer->connection.state != NULL && !stop)
			work(consumer);
		io_sleep(consumer);
	}
	/* the last acks */
	if (consumer->connection.state != NULL)
		(void) tend_queues(consumer);
	rabbit_disconnect(&consumer->connection, true);
	for (int i = 0; i < consumer->nqueues; i++)
		drop_coming(&consumer->queues[i]);
	io_thread_ended(&consumer->io);
	return NULL;
}
