/*-------------------------------------------------------------------------
 *
 * rabbit_io.c
 *	  The io thread of the way out.
 *
 * A turn: take what main has handed over, connect when there is no
 * connection, read frames, publish, hand reports back; then sleep until the
 * socket, main or a timer has something.  Reading goes before sleeping until
 * nothing is left in the library's buffers, which poll() does not see.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "rabbit.h"

#include <poll.h>
#include <string.h>

#define IDLE_MS				1000
#define HEARTBEAT_SHARE		4		/* turns in one, at least */

/* Show whether the broker takes messages. */
void
rabbit_show_blocked(OutboxClient *client)
{
	pthread_mutex_lock(&client->io.thread.lock);
	client->io.thread.status.blocked = client->blocked || client->blamed;
	pthread_mutex_unlock(&client->io.thread.lock);
	thread_wake(client->io.thread.fd);
}

/*
 * The connection is gone.  Where the broker ended it for one of the records,
 * that one is looked for: from now on they go one by one, and the one that
 * was alone is it.
 */
static void
connection_lost(OutboxClient *client, const OutboxError *error)
{
	bool		hunt = client->accused;

	client->accused = false;
	client->taken = RABBIT_SAFE_SIZE;
	client->blocked = client->blamed = false;
	if (hunt && client->wire_n == 1)
	{
		for (int i = RABBIT_MAIN; i < RABBIT_NCHANNELS; i++)
		{
			RabbitChannel *channel = &client->channels[i];

			if (channel->in_flight > 0)
				rabbit_dead(client, rabbit_channel_pull(client, channel, channel->first), error);
		}
	}
	for (int i = RABBIT_MAIN; i < RABBIT_NCHANNELS; i++)
		rabbit_channel_lost(client, &client->channels[i], hunt);
	client->channels[RABBIT_CONTROL].state = RABBIT_CHANNEL_CLOSED;
	if (hunt)
		client->alone_limit = 1;
	rabbit_disconnect(&client->connection, false);
	io_connect_soon(&client->io.thread);
	io_show_connected(&client->io.thread, false);
	rabbit_show_blocked(client);
	io_show_error(&client->io.thread, error);
}

/* Try to connect when it is time to. */
static void
connect_in_time(OutboxClient *client)
{
	OutboxError error;

	if (thread_now_ms() < client->io.thread.connect_due)
		return;
	if (rabbit_connect(&client->connection, &error))
	{
		client->io.thread.connect_wait = 0;
		io_show_connected(&client->io.thread, true);
		if (!rabbit_open_channels(client))
		{
			error_set(&error, OUTBOX_RETRY, "TRANSPORT",
					  "connection to the broker: it ended at once", NULL);
			connection_lost(client, &error);
		}
		return;
	}
	io_connect_later(&client->io.thread);
	io_show_error(&client->io.thread, &error);
}

/* One turn with a connection. */
static void
work(OutboxClient *client)
{
	OutboxError error;

	/* a write that failed is explained by what the broker has said before */
	if (!rabbit_read_frames(client, &error) || !rabbit_look_for_exchange(client) ||
		!rabbit_publish(client))
	{
		if (client->connection.state != NULL && rabbit_read_frames(client, &error))
			error_set(&error, OUTBOX_RETRY, "TRANSPORT",
					  "connection to the broker: it could not be written to", NULL);
		connection_lost(client, &error);
	}
}

/* Sleep until there is something to do. */
static void
io_sleep(OutboxClient *client, int64_t retry_due)
{
	struct pollfd fds[2] = {{client->io.thread.io_fd, POLLIN, 0}, {-1, POLLIN, 0}};
	int64_t		now = thread_now_ms();
	int			wait = client->config.heartbeat * 1000 / HEARTBEAT_SHARE;

	wait = thread_wait_until(wait < IDLE_MS ? wait : IDLE_MS, retry_due, now);
	if (client->connection.state == NULL)
		wait = thread_wait_until(wait, client->io.thread.connect_due, now);
	else
	{
		fds[1].fd = amqp_get_sockfd(client->connection.state);
		if (rabbit_could_publish(client))
			fds[1].events |= POLLOUT;
		if (client->exchange_state == RABBIT_EXCHANGE_UNKNOWN &&
			client->channels[RABBIT_CONTROL].state == RABBIT_CHANNEL_OPEN)
			wait = thread_wait_until(wait, client->exchange_due, now);
	}
	if (!io_may_sleep(&client->io))
		return;
	(void) poll(fds, 2, wait);
	thread_drain(client->io.thread.io_fd);
}

/* The thread's main function. */
void *
rabbit_io_main(void *arg)
{
	OutboxClient *client = arg;
	IoList		incoming = {NULL, NULL};
	bool		purge;
	bool		all;

	while (io_take_orders(&client->io, &incoming, &purge, &all))
	{
		int64_t		retry_due;

		rabbit_take_in(client, &incoming);
		retry_due = rabbit_retry_due(client, thread_now_ms());
		if (purge)
			rabbit_purge_records(client, all);
		if (client->connection.state == NULL && !purge)
			connect_in_time(client);
		if (client->connection.state != NULL)
			work(client);
		if (purge)
			rabbit_purge_records(client, all);
		io_hand_back(&client->io);
		io_sleep(client, retry_due);
	}
	rabbit_disconnect(&client->connection, !client->blocked);
	io_thread_ended(&client->io.thread);
	return NULL;
}
