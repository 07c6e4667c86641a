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

/* Have the client library there and start the thread; false with *error. */
bool
jet_thread_start(IoThread *io, void *(*main) (void *), OutboxError *error)
{
	if (!jet_library_open())
	{
		error_set(error, OUTBOX_FATAL, "RESOURCES", "could not open the client library", NULL);
		return false;
	}
	if (io_thread_start(io, main, error))
		return true;
	jet_library_close();
	return false;
}

/* Have it end; false: it still runs, with its memory, and the process has to exit. */
bool
jet_thread_end(IoThread *io, int timeout_ms)
{
	io_thread_stop(io);
	return thread_part(io->thread, io_thread_await(io, timeout_ms));
}

static const IoKind kind = {
	.record_size = sizeof(JetRecord),
	.entry_size = sizeof(OutboxHeader),
	.forget = jet_forget_id,
	.purged = jet_purged,
};

static void
release(OutboxClient *client)
{
	/* the thread is no more: what it had is whoever's */
	jet_purge_records(client, true);
	jet_connection_release(&client->connection);
	jet_config_free(&client->config);
	free(client->ring);
	free(client->before);
	io_client_free(&client->io);
}

/* See transport.h.  Connecting goes on in the background. */
static OutboxClient *
jet_open(const OutboxTransportConfig *config, OutboxError *error)
{
	OutboxClient *client = io_client_new(sizeof(OutboxClient), &kind, config->max_bytes, error);

	if (client == NULL)
		return NULL;
	client->chained = true;
	client->unsure_base = UINT64_MAX;
	jet_connection_init(&client->connection, &client->config, client->io.thread.io_fd);
	if (jet_config_parse(&client->config, config->client_id, config->topics, config->noptions,
						 config->options, error) &&
		jet_thread_start(&client->io.thread, jet_io_main, error))
		return client;
	release(client);
	return NULL;
}

static bool
jet_close(OutboxClient *client, int timeout_ms)
{
	if (!jet_thread_end(&client->io.thread, timeout_ms))
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
	.event_fd = io_client_event_fd,
	.send = jet_send,
	.poll = io_poll,
	.status = io_client_status,
	.probe_topic = io_probe_topic,
	.flush = io_flush,
	.purge = io_purge,
	.close = jet_close,
	.topics_on_trial = true,
	.version = jet_version,
	.record_overhead = sizeof(JetRecord) + IO_USUAL_ENTRIES * sizeof(OutboxHeader),
	.header_overhead = sizeof(OutboxHeader),
	.source = &jet_source,
};
