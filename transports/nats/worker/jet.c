/*-------------------------------------------------------------------------
 *
 * jet.c
 *	  The NATS worker transport: open, close and the table of functions.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "jet.h"

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

static void
release(OutboxClient *client)
{
	/* the thread is no more: what it had is whoever's */
	jet_purge_records(client, true);
	jet_records_free(client);
	jet_connection_release(&client->connection);
	jet_keys_free(&client->keys);
	jet_config_free(&client->config);
	free(client->ring);
	free(client->before);
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
jet_open(const OutboxTransportConfig *config, OutboxError *error)
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
	client->max_bytes = config->max_bytes;
	client->chained = true;
	client->unsure_base = UINT64_MAX;
	client->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	client->io_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	jet_connection_init(&client->connection, &client->config, client->io_fd);
	if (!jet_config_parse(&client->config, config->client_id, config->topics, config->noptions,
						  config->options, error))
	{
		release(client);
		return NULL;
	}
	if (client->fd >= 0 && client->io_fd >= 0 && jet_keys_init(&client->keys) &&
		jet_library_open())
	{
		if (thread_start(&client->thread, jet_io_main, client))
			return client;
		jet_library_close();
	}
	error_set(error, OUTBOX_FATAL, "RESOURCES", "could not create an eventfd or a thread",
			  NULL);
	release(client);
	return NULL;
}

static int
jet_event_fd(OutboxClient *client)
{
	return client->fd;
}

static void
jet_status(OutboxClient *client, OutboxTransportStatus *status)
{
	pthread_mutex_lock(&client->lock);
	*status = client->status;
	pthread_mutex_unlock(&client->lock);
}

/* Nothing lingers. */
static void
jet_flush(OutboxClient *client)
{
}

static void
jet_purge(OutboxClient *client, bool in_flight)
{
	pthread_mutex_lock(&client->lock);
	client->purge_queued = true;
	if (in_flight)
		client->purge_all = true;
	pthread_mutex_unlock(&client->lock);
	thread_wake(client->io_fd);
}

static bool
jet_close(OutboxClient *client, int timeout_ms)
{
	pthread_mutex_lock(&client->lock);
	client->stop = true;
	pthread_mutex_unlock(&client->lock);
	thread_wake(client->io_fd);
	if (!thread_part(client->thread, thread_await(&client->lock, &client->ended_cond,
												  &client->ended, timeout_ms)))
		return false;
	release(client);
	jet_library_close();
	return true;
}

static const char *
jet_version(void)
{
	return nats_GetVersion();
}

/*
 * Overheads: a record of ours; its message, of which the library has a copy
 * only until it is written, or 64 kB of them are.
 */
const OutboxTransport jet_transport = {
	.abi = OUTBOX_TRANSPORT_ABI,
	.name = "nats",
	.open = jet_open,
	.event_fd = jet_event_fd,
	.send = jet_send,
	.poll = jet_poll,
	.status = jet_status,
	.probe_topic = jet_probe_topic,
	.flush = jet_flush,
	.purge = jet_purge,
	.close = jet_close,
	.topics_on_trial = true,
	.version = jet_version,
	.record_overhead = sizeof(JetRecord) + JET_USUAL_HEADERS * sizeof(OutboxHeader),
	.header_overhead = sizeof(OutboxHeader),
	.source = &jet_source,
};
