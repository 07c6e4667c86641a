/*-------------------------------------------------------------------------
 *
 * rabbit.c
 *	  The RabbitMQ worker transport: open, close and the table of functions.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "rabbit.h"

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/*
 * A thread was told to end: wait for it, half of the time patiently, then with
 * its connection cut off.  False: it still runs, with its memory, and the
 * process has to exit.
 */
bool
rabbit_thread_end(pthread_t thread, pthread_mutex_t *lock, pthread_cond_t *cond,
				  const bool *ended, RabbitConnection *connection, int timeout_ms)
{
	bool		done = thread_await(lock, cond, ended, timeout_ms / 2);

	if (!done)
	{
		rabbit_connection_cut(connection);
		done = thread_await(lock, cond, ended, timeout_ms / 2);
	}
	return thread_part(thread, done);
}

static void
release(OutboxClient *client)
{
	/* the thread is no more: what it had is whoever's */
	rabbit_purge_records(client, true);
	rabbit_records_free(client);
	for (int i = 0; i < RABBIT_NCHANNELS; i++)
		free(client->channels[i].ring);
	rabbit_keys_free(&client->keys);
	rabbit_config_free(&client->config);
	rabbit_connection_release(&client->connection);
	pthread_cond_destroy(&client->ended_cond);
	pthread_mutex_destroy(&client->lock);
	if (client->fd >= 0)
		close(client->fd);
	if (client->io_fd >= 0)
		close(client->io_fd);
	free(client);
}

/* See transport.h.  Connecting goes on in the background. */
static OutboxClient *
rabbit_open(const OutboxTransportConfig *config, OutboxError *error)
{
	OutboxClient *client = calloc(1, sizeof(OutboxClient));

	memset(error, 0, sizeof(*error));
	if (client == NULL)
	{
		error_set(error, OUTBOX_FATAL, "MEMORY", "out of memory", NULL);
		return NULL;
	}
	pthread_mutex_init(&client->lock, NULL);
	thread_cond_init(&client->ended_cond);
	rabbit_connection_init(&client->connection, &client->config);
	client->max_bytes = config->max_bytes;
	client->alone_limit = RABBIT_NALONE;
	client->taken = RABBIT_SAFE_SIZE;
	client->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	client->io_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (!rabbit_config_parse(&client->config, config->client_id, config->noptions,
							 config->options, error))
	{
		release(client);
		return NULL;
	}
	if (client->fd < 0 || client->io_fd < 0 || !rabbit_keys_init(&client->keys) ||
		!thread_start(&client->thread, rabbit_io_main, client))
	{
		error_set(error, OUTBOX_FATAL, "RESOURCES",
				  "could not create an eventfd or a thread", NULL);
		release(client);
		return NULL;
	}
	return client;
}

static int
rabbit_event_fd(OutboxClient *client)
{
	return client->fd;
}

static void
rabbit_status(OutboxClient *client, OutboxTransportStatus *status)
{
	pthread_mutex_lock(&client->lock);
	*status = client->status;
	pthread_mutex_unlock(&client->lock);
}

/* Nothing lingers. */
static void
rabbit_flush(OutboxClient *client)
{
}

static void
rabbit_purge(OutboxClient *client, bool in_flight)
{
	pthread_mutex_lock(&client->lock);
	client->purge_queued = true;
	if (in_flight)
		client->purge_all = true;
	pthread_mutex_unlock(&client->lock);
	thread_wake(client->io_fd);
}

static bool
rabbit_close(OutboxClient *client, int timeout_ms)
{
	pthread_mutex_lock(&client->lock);
	client->stop = true;
	pthread_mutex_unlock(&client->lock);
	thread_wake(client->io_fd);
	if (!rabbit_thread_end(client->thread, &client->lock, &client->ended_cond,
						   &client->ended, &client->connection, timeout_ms))
		return false;
	release(client);
	return true;
}

static const char *
rabbit_version(void)
{
	return amqp_version();
}

/*
 * Overheads: a record of ours with room for eight headers, and the headers
 * beyond that; the library keeps nothing once it has written.
 */
const OutboxTransport rabbit_transport = {
	.abi = OUTBOX_TRANSPORT_ABI,
	.name = "rabbitmq",
	.open = rabbit_open,
	.event_fd = rabbit_event_fd,
	.send = rabbit_send,
	.poll = rabbit_poll,
	.status = rabbit_status,
	.probe_topic = rabbit_probe_topic,
	.flush = rabbit_flush,
	.purge = rabbit_purge,
	.close = rabbit_close,
	.topics_on_trial = true,
	.version = rabbit_version,
	.record_overhead = sizeof(RabbitRecord) + 8 * sizeof(amqp_table_entry_t),
	.header_overhead = sizeof(amqp_table_entry_t),
	.source = &rabbit_source,
};
