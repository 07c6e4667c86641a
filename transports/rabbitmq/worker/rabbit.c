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

/*
 * Have a thread end: wait for it, half of the time patiently, then with its
 * connection cut off.  False: it still runs, with its memory, and the process
 * has to exit.
 */
bool
rabbit_thread_end(IoThread *io, RabbitConnection *connection, int timeout_ms)
{
	bool		done;

	io_thread_stop(io);
	done = io_thread_await(io, timeout_ms / 2);
	if (!done)
	{
		rabbit_connection_cut(connection);
		done = io_thread_await(io, timeout_ms / 2);
	}
	return thread_part(io->thread, done);
}

static const IoKind kind = {
	.record_size = sizeof(RabbitRecord),
	.entry_size = sizeof(amqp_table_entry_t),
};

static void
release(OutboxClient *client)
{
	/* the thread is no more: what it had is whoever's */
	rabbit_purge_records(client, true);
	for (int i = 0; i < RABBIT_NCHANNELS; i++)
		free(client->channels[i].ring);
	rabbit_config_free(&client->config);
	rabbit_connection_release(&client->connection);
	io_client_free(&client->io);
}

/* See transport.h.  Connecting goes on in the background. */
static OutboxClient *
rabbit_open(const OutboxTransportConfig *config, OutboxError *error)
{
	OutboxClient *client = io_client_new(sizeof(OutboxClient), &kind, config->max_bytes, error);

	if (client == NULL)
		return NULL;
	rabbit_connection_init(&client->connection, &client->config);
	client->alone_limit = RABBIT_NALONE;
	client->taken = RABBIT_SAFE_SIZE;
	if (rabbit_config_parse(&client->config, config->client_id, config->noptions,
							config->options, error) &&
		io_thread_start(&client->io.thread, rabbit_io_main, error))
		return client;
	release(client);
	return NULL;
}

static bool
rabbit_close(OutboxClient *client, int timeout_ms)
{
	if (!rabbit_thread_end(&client->io.thread, &client->connection, timeout_ms))
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
 * Overheads: a record of ours with room for the usual headers, and the headers
 * beyond that; the library keeps nothing once it has written.
 */
const OutboxTransport rabbit_transport = {
	.abi = OUTBOX_TRANSPORT_ABI,
	.name = "rabbitmq",
	.open = rabbit_open,
	.event_fd = io_client_event_fd,
	.send = rabbit_send,
	.poll = rabbit_poll,
	.status = io_client_status,
	.probe_topic = io_probe_topic,
	.flush = io_flush,
	.purge = io_purge,
	.close = rabbit_close,
	.topics_on_trial = true,
	.version = rabbit_version,
	.record_overhead = sizeof(RabbitRecord) + IO_USUAL_ENTRIES * sizeof(amqp_table_entry_t),
	.header_overhead = sizeof(amqp_table_entry_t),
	.source = &rabbit_source,
};
