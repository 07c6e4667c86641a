/*-------------------------------------------------------------------------
 *
 * jet_send.c
 *	  The main thread's side of the way out: send().
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "jet.h"

#include <string.h>

static size_t
size_of(const OutboxRecord *data)
{
	size_t		bytes = data->key_len + (data->payload ? data->payload_len : 0);

	for (int i = 0; i < data->nheaders; i++)
		bytes += strlen(data->headers[i].name) + data->headers[i].value_len;
	return bytes;
}

/* A copy, but for what is borrowed; NULL with *error. */
static JetRecord *
record_new(IoClient *client, IoTopic *topic, const OutboxRecord *data, OutboxError *error)
{
	JetRecord  *record = jet_record(io_record_new(client, topic, data, data->nheaders, error));

	if (record == NULL)
		return NULL;
	if (data->nheaders > 0)
		memcpy(record->headers, data->headers, data->nheaders * sizeof(OutboxHeader));
	record->io.data.headers = record->headers;
	record->io.data.nheaders = data->nheaders;
	if (jet_make_id(record))
		return record;
	io_record_free(client, &record->io);
	error_set(error, OUTBOX_RETRY, "MEMORY", "out of memory", NULL);
	return NULL;
}

/* See transport.h. */
OutboxFailure
jet_send(OutboxClient *client, const OutboxRecord *record, OutboxError *error)
{
	const char *why = jet_cannot_carry(record);
	size_t		bytes = size_of(record);
	IoTopic    *topic;
	JetRecord  *mine;

	if (why != NULL)
		return error_set(error, OUTBOX_DEAD, "INVALID_MESSAGE", why, NULL);
	topic = io_topic_get(&client->io, record->topic, error);
	if (topic == NULL || !io_has_room(&client->io, bytes, error))
		return error->failure;
	mine = record_new(&client->io, topic, record, error);
	if (mine == NULL)
		return error->failure;
	mine->io.bytes = bytes;
	io_hand_over(&client->io, &mine->io);
	return OUTBOX_OK;
}
